// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/match"
)

// Workload is what a targetRef names: a Service, Deployment, StatefulSet or DaemonSet.
type Workload struct {
	// Pods selects its pods. Nil is no selector, which a Service may lack; the empty one of a Service is
	// none as well, and has to be given as nil.
	Pods *metav1.LabelSelector
	// Ports are those of a Service.
	Ports []Port
}

// Port is a port of a Service.
type Port struct {
	// Name is what a sectionName means. A Service's only port may have none.
	Name string
	// Target is the name of the container port that it leads to, or its number.
	Target string
}

// Workloads are those of the policy's namespace that exist, by the ref that names them without a section.
// It may hold more than a policy needs.
type Workloads map[v1alpha1.TargetRef]Workload

// Refs gives the refs that [Compile] looks up for a policy: each once, without a section.
func Refs(p *v1alpha1.RateLimitPolicy) []v1alpha1.TargetRef {
	var refs []v1alpha1.TargetRef
	for _, ref := range p.Spec.TargetRefs {
		if ref = whole(ref); !slices.Contains(refs, ref) {
			refs = append(refs, ref)
		}
	}
	return refs
}

// whole is the ref to all of a workload's sections.
func whole(ref v1alpha1.TargetRef) v1alpha1.TargetRef {
	ref.SectionName = ""
	return ref
}

// Resolve gives the target that a ref names. Its error is a sentence for the user, the same for the same
// workloads.
func (w Workloads) Resolve(ref v1alpha1.TargetRef) (match.Target, error) {
	found, ok := w[whole(ref)]
	section := slices.IndexFunc(found.Ports, func(p Port) bool { return p.Name == ref.SectionName })
	switch {
	case !ok:
		return match.Target{}, fmt.Errorf("%s %q not found: create it or correct the name", ref.Kind, ref.Name)
	case found.Pods == nil:
		return match.Target{}, fmt.Errorf("%s %q has no selector, and so no pods to limit: target what runs them instead", ref.Kind, ref.Name)
	case ref.SectionName != "" && section < 0:
		return match.Target{}, fmt.Errorf("%s %q has no port named %q%s", ref.Kind, ref.Name, ref.SectionName, offer(found.Ports))
	}
	t := match.Target{ID: targetID(ref), Pods: selector(found.Pods)}
	if ref.SectionName != "" {
		// An injected sidecar calls its listeners by the container ports that they stand before, and knows their
		// numbers.
		t.Section = cmp.Or(found.Ports[section].Target, ref.SectionName)
	}
	return t, nil
}

// offer says, after a name that isn't there, which ports have one.
func offer(ports []Port) string {
	var named []string
	for _, p := range ports {
		if p.Name != "" {
			named = append(named, p.Name)
		}
	}
	if len(named) == 0 {
		return ": give its port that name"
	}
	slices.Sort(named)
	return ", its ports are: " + short(named, ", ", 200)
}

// targets gives the targets of a policy that are found, and an error for each that isn't.
func (w Workloads) targets(p *v1alpha1.RateLimitPolicy) ([]match.Target, field.ErrorList) {
	if p.Spec.Selector != nil {
		return unresolved(p), nil
	}
	found := []match.Target{}
	var missing field.ErrorList
	for i, ref := range p.Spec.TargetRefs {
		t, err := w.Resolve(ref)
		if err != nil {
			e := field.NotFound(field.NewPath("spec", "targetRefs").Index(i), ref.Name)
			e.Detail = err.Error()
			missing = append(missing, e)
			continue
		}
		found = append(found, t)
	}
	return found, missing
}

// unresolved gives the targets of a policy without a look at the cluster.
func unresolved(p *v1alpha1.RateLimitPolicy) []match.Target {
	if s := p.Spec.Selector; s != nil {
		return []match.Target{{ID: "Selector", Pods: selector(s)}}
	}
	targets := []match.Target{}
	for _, ref := range p.Spec.TargetRefs {
		targets = append(targets, match.Target{ID: targetID(ref), Section: ref.SectionName})
	}
	return targets
}

// targetID is part of the counters' identity: a change of it starts all of them anew.
func targetID(ref v1alpha1.TargetRef) string {
	id := ref.Kind + "/" + ref.Name
	if ref.SectionName != "" {
		id += "/" + ref.SectionName
	}
	return id
}

// selector makes empty lists and maps nil, which they would be after a way through JSON: what is compiled
// has to equal what was stored.
func selector(s *metav1.LabelSelector) match.Selector {
	var c match.Selector
	if len(s.MatchLabels) > 0 {
		c.MatchLabels = maps.Clone(s.MatchLabels)
	}
	for _, r := range s.MatchExpressions {
		c.MatchExpressions = append(c.MatchExpressions, match.Requirement{
			Key: r.Key, Operator: string(r.Operator), Values: append([]string(nil), r.Values...),
		})
	}
	return c
}

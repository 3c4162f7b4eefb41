// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
	"github.com/weir-dev/weir/internal/match"
)

// Advise says of a policy that can be enforced what its author may not have meant: keys that clients can evade,
// limits that never refuse anything since others are as strict, or that can't be leased as they ask to be, and what of the policies in force it ends. Each
// is a sentence that begins with a field.
//
// The limits are those of the policy; inForce is what is published in its namespace, its own former self
// included.
func Advise(p *v1alpha1.RateLimitPolicy, limits match.Policy, inForce []match.Policy) []string {
	advice := append(evadable(p), unleased(p, limits)...)
	for _, other := range inForce {
		if other.Name == p.Name {
			advice = append(advice, ended(other, limits)...)
		} else {
			advice = append(advice, shadowed(p, limits, other)...)
		}
	}
	return advice
}

// evadable finds keys whose value any client can choose anew for each request, where nothing else in the policy
// bounds all clients together, or each by what it can't choose.
func evadable(p *v1alpha1.RateLimitPolicy) []string {
	var advice []string
	for i := range p.Spec.Limits {
		l := &p.Spec.Limits[i]
		j := slices.IndexFunc(l.Key, chosen)
		if j < 0 || !enforces(p, l) || bounded(p, l) {
			continue
		}
		path := field.NewPath("spec", "limits").Index(i).Child("key").Index(j).Child("header", "name")
		advice = append(advice, fmt.Sprintf("%s: any client can choose %s, and have a fresh counter with each new value: add a limit by clientIP, or one without a key",
			path, l.Key[j].Header.Name))
	}
	return advice
}

// unleased finds limits that stay exact in a policy whose distribution is Leased.
func unleased(p *v1alpha1.RateLimitPolicy, limits match.Policy) []string {
	var advice []string
	for _, l := range limits.Limits {
		if _, leased := strategy.Lease(&l.Limit); leased || l.Limit.Lease == 0 {
			continue
		}
		advice = append(advice, fmt.Sprintf("%s: is too low, or too short, to take shares of in advance, and is decided by the store for each request as if the distribution were Exact",
			limitPath(p, l)))
	}
	return advice
}

// limitPath gives the path of the limit that another was compiled from.
func limitPath(p *v1alpha1.RateLimitPolicy, l match.Limit) *field.Path {
	at := slices.IndexFunc(p.Spec.Limits, func(s v1alpha1.Limit) bool { return string(s.Name) == l.Name })
	return field.NewPath("spec", "limits").Index(at)
}

// chosen says whether a client chooses the value of a key.
func chosen(k v1alpha1.KeySource) bool { return k.Header != nil }

// bounded says whether another limit of the policy counts the same requests by what no client chooses.
func bounded(p *v1alpha1.RateLimitPolicy, l *v1alpha1.Limit) bool {
	return slices.ContainsFunc(p.Spec.Limits, func(other v1alpha1.Limit) bool {
		all := len(other.When) == 0 || reflect.DeepEqual(other.When, l.When)
		return all && enforces(p, &other) && !slices.ContainsFunc(other.Key, chosen)
	})
}

// enforces says whether a limit refuses anything.
func enforces(p *v1alpha1.RateLimitPolicy, l *v1alpha1.Limit) bool {
	mode := l.Enforcement
	setDefault(&mode, p.Spec.Enforcement)
	return mode == "" || mode == v1alpha1.EnforcementEnforce
}

// shadowed finds the limits that another policy leaves nothing to refuse.
func shadowed(p *v1alpha1.RateLimitPolicy, limits, other match.Policy) []string {
	if len(limits.Targets) == 0 || !coversAll(other.Targets, limits.Targets) {
		return nil
	}
	var advice []string
	for _, l := range limits.Limits {
		i := slices.IndexFunc(other.Limits, func(o match.Limit) bool { return asStrict(o, l) })
		if i < 0 {
			continue
		}
		advice = append(advice, fmt.Sprintf("%s: never refuses anything, since limit %q of policy %q counts the same requests and is at least as strict",
			limitPath(p, l), other.Limits[i].Name, other.Name))
	}
	return advice
}

// coversAll says whether the pods and sections of each target are among those of another.
func coversAll(wide, targets []match.Target) bool {
	return !slices.ContainsFunc(targets, func(t match.Target) bool {
		return !slices.ContainsFunc(wide, func(w match.Target) bool { return covers(w, t) })
	})
}

// covers compares selectors by their text: one that merely selects the same pods today may not do so tomorrow.
func covers(wide, t match.Target) bool {
	pods := reflect.DeepEqual(wide.Pods, match.Selector{}) || reflect.DeepEqual(wide.Pods, t.Pods)
	return pods && (wide.Section == "" || wide.Section == t.Section)
}

// asStrict says whether a refuses every request that b does, in the same order of requests.
func asStrict(a, b match.Limit) bool {
	requests := len(a.When) == 0 || reflect.DeepEqual(a.When, b.When)
	x, y := a.Limit, b.Limit
	rate := x.Requests <= y.Requests && x.Burst <= y.Burst
	x.Requests, x.Burst, y.Requests, y.Burst = 0, 0, 0, 0
	x.Lease, y.Lease = 0, 0
	everywhere := !perReplica(a) || perReplica(b)
	return !a.Shadow && requests && everywhere && reflect.DeepEqual(a.Key, b.Key) && rate && x == y
}

func perReplica(l match.Limit) bool { return l.Distribution == limiter.PerReplica }

// ended says what is in force of a policy and ends with its new form.
func ended(old, now match.Policy) []string {
	var advice []string
	for _, t := range old.Targets {
		if !slices.ContainsFunc(now.Targets, func(n match.Target) bool { return n.ID == t.ID }) {
			advice = append(advice, fmt.Sprintf("spec: target %s, in force now, ends", t.ID))
		}
	}
	for _, l := range old.Limits {
		if why := renewed(l, now.Limits); why != "" {
			advice = append(advice, fmt.Sprintf("spec.limits: limit %q, in force now, %s", l.Name, why))
		}
	}
	return advice
}

// renewed says what becomes of a limit's counters, if they don't stay.
func renewed(old match.Limit, limits []match.Limit) string {
	i := slices.IndexFunc(limits, func(l match.Limit) bool { return l.Name == old.Name })
	if i < 0 {
		return "ends"
	}
	now := limits[i]
	var changed []string
	if now.Limit.Algorithm != old.Limit.Algorithm {
		changed = append(changed, "strategy")
	}
	if !reflect.DeepEqual(sources(now.Key), sources(old.Key)) {
		changed = append(changed, "key")
	}
	if perReplica(now) != perReplica(old) {
		changed = append(changed, "distribution")
	}
	if len(changed) == 0 {
		return ""
	}
	return "starts with fresh counters: its " + strings.Join(changed, " and ") + " changes"
}

// sources are what a key's counters are named by: not what becomes of requests without it.
func sources(key []match.KeySource) []match.KeySource {
	named := slices.Clone(key)
	for i := range named {
		named[i].OnMissing = ""
	}
	return named
}

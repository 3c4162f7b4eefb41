// SPDX-License-Identifier: Apache-2.0

// Package policy turns API objects into the limits that enforcers know, or says why it can't.
//
// It is pure: what it needs of the cluster is an argument. The webhook, the controller and the sidecar that
// runs alone call the same functions, so that none of them accepts what another refuses.
package policy

import (
	"cmp"
	"slices"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/match"
)

// Compile gives what enforcers have to know of a policy. What the policy doesn't set has the default of the
// CRD's schema. Its error is always a [*Refusal].
//
// When targets are missing and nothing else is wrong, the policy holds those that were found, perhaps none:
// its limits can be enforced there. With any other error it is zero.
func Compile(p *v1alpha1.RateLimitPolicy, workloads Workloads) (match.Policy, error) {
	if err := check(p); err != nil {
		return match.Policy{}, err
	}
	targets, missing := workloads.targets(p)
	c := compile(p, targets)
	if len(missing) > 0 {
		return c, &Refusal{Reason: v1alpha1.ReasonTargetNotFound, Errors: missing}
	}
	return c, nil
}

// Standalone compiles a policy where there is no cluster to look its targets up in: they keep their IDs and
// sections, but those that come from targetRefs select every pod. A policy without a namespace is in
// default, as it would be for kubectl. Its error is always a [*Refusal].
func Standalone(p *v1alpha1.RateLimitPolicy) (match.Policy, error) {
	if err := check(p); err != nil {
		return match.Policy{}, err
	}
	c := compile(p, unresolved(p))
	c.Namespace = cmp.Or(c.Namespace, "default")
	return c, nil
}

// compile compiles a policy that was checked.
func compile(p *v1alpha1.RateLimitPolicy, targets []match.Target) match.Policy {
	c := match.Policy{
		Namespace:  p.Namespace,
		Name:       p.Name,
		Generation: p.Generation,
		Targets:    targets,
		Limits:     []match.Limit{},
		Response:   response(p.Spec.Response),
	}
	for i := range p.Spec.Limits {
		l := &p.Spec.Limits[i]
		enforcement := cmp.Or(l.Enforcement, p.Spec.Enforcement, v1alpha1.EnforcementEnforce)
		if enforcement == v1alpha1.EnforcementDisabled {
			continue
		}
		limit := parameters(l.Strategy)
		limit.Lease = ahead(p.Spec.Distribution)
		c.Limits = append(c.Limits, match.Limit{
			Name:         string(l.Name),
			When:         conditions(l.When),
			Key:          key(l.Key),
			Limit:        limit,
			Shadow:       enforcement == v1alpha1.EnforcementShadow,
			OnFailure:    onFailure(p.Spec.OnStoreFailure),
			Distribution: distribution(p.Spec.Distribution),
		})
	}
	return c
}

func onFailure(f *v1alpha1.OnStoreFailure) limiter.FailureMode {
	if f == nil {
		return limiter.FailOpen
	}
	switch f.Mode {
	case v1alpha1.OnStoreFailureClosed:
		return limiter.FailClosed
	case v1alpha1.OnStoreFailureLocal:
		return limiter.FailLocal
	default:
		return limiter.FailOpen
	}
}

func distribution(d *v1alpha1.Distribution) limiter.Distribution {
	if d != nil && d.Mode == v1alpha1.DistributionPerReplica {
		return limiter.PerReplica
	}
	return limiter.Exact
}

func conditions(when []v1alpha1.RequestMatch) []match.When {
	var compiled []match.When
	for i := range when {
		compiled = append(compiled, condition(&when[i]))
	}
	return compiled
}

func condition(m *v1alpha1.RequestMatch) match.When {
	w := match.When{Methods: slices.Clone(m.Methods), Hosts: slices.Clone(m.Hosts)}
	for _, p := range m.Paths {
		w.Paths = append(w.Paths, match.PathMatch{Type: cmp.Or(p.Type, pathPrefix), Value: p.Value})
	}
	for _, h := range m.Headers {
		c := match.HeaderMatch{Name: string(h.Name), Type: cmp.Or(h.Type, headerExact)}
		if h.Value != nil {
			c.Value = *h.Value
		}
		w.Headers = append(w.Headers, c)
	}
	return w
}

func key(sources []v1alpha1.KeySource) []match.KeySource {
	var compiled []match.KeySource
	for i := range sources {
		compiled = append(compiled, source(&sources[i]))
	}
	return compiled
}

func source(k *v1alpha1.KeySource) match.KeySource {
	s := match.KeySource{
		Method:    k.Method != nil,
		Host:      k.Host != nil,
		OnMissing: string(cmp.Or(k.OnMissing, v1alpha1.OnMissingShare)),
	}
	if k.Header != nil {
		s.Header = string(k.Header.Name)
	}
	if k.ClientIP != nil {
		s.ClientIP = &match.ClientIPKey{IPv6PrefixLength: 64}
		if bits := k.ClientIP.IPv6PrefixLength; bits != nil {
			s.ClientIP.IPv6PrefixLength = int(*bits)
		}
	}
	return s
}

// response tells nil from empty: no list of headers is the default one, an empty list is none.
func response(r *v1alpha1.Response) match.Response {
	c := match.Response{StatusCode: 429, Body: string(v1alpha1.BodyProblem)}
	if r == nil || r.Headers == nil {
		c.Headers = []string{string(v1alpha1.HeadersDraft11)}
	}
	if r == nil {
		return c
	}
	for _, h := range r.Headers {
		c.Headers = append(c.Headers, string(h))
	}
	if r.StatusCode != nil {
		c.StatusCode = int(*r.StatusCode)
	}
	if r.Body != nil {
		c.Body = string(cmp.Or(r.Body.Type, v1alpha1.BodyProblem))
	}
	return c
}

// SPDX-License-Identifier: Apache-2.0

// Package match turns a request into hits.
//
// It knows which limits a request matches, the key of its counter under each of them, and what it costs.
package match

import (
	"cmp"
	"net/http"
	"net/netip"
	"slices"

	"github.com/weir-dev/weir/internal/limiter"
)

// Request is what limits can see of a request.
type Request struct {
	// Listener is the name of the listener that it came in by. An unnamed listener serves every section.
	Listener string
	// Port is the number of the application's port behind the listener. A section may be called by it as well.
	Port   string
	Method string
	// Path as it was sent, still escaped.
	Path string
	// Host as it was sent, with or without a port.
	Host   string
	Header http.Header
	// Client is the client's address, trusted proxies left out.
	Client netip.Addr
}

// Options are what a [Matcher] has to know of where it runs.
type Options struct {
	// Instance is the first part of every counter's key: installations that share a Redis differ in it. It
	// must not contain braces, for they say in which slot a key is.
	Instance string
	// Labels of the pod that enforces. Targets that don't select them are left out.
	Labels map[string]string
	// Everything makes every target select this enforcer, whatever its labels: for standalone use.
	Everything bool
}

// selects says whether the enforcer is one of the target's pods.
func (o Options) selects(t Target) bool { return o.Everything || t.Pods.Selects(o.Labels) }

// Matcher turns requests into hits. It is immutable, and so safe for concurrent use.
type Matcher struct {
	policies  []Policy
	responses map[policyName]Response
	rules     []rule
	// readsPaths says whether any rule looks at paths. Reading a path costs something.
	readsPaths bool
	// readsHeaders says whether any rule looks at headers, and so at their aliases.
	readsHeaders bool
}

// policyName names a policy.
type policyName struct{ namespace, name string }

// New makes a matcher of the policies whose targets select the enforcer. What is there twice, by the name
// of the policy and the limit and the ID of the target, counts once: the first of them.
func New(policies []Policy, o Options) *Matcher {
	m := &Matcher{policies: selected(policies, o), responses: map[policyName]Response{}}
	names := newNamer(o.Instance)
	for _, p := range m.policies {
		m.responses[policyName{p.Namespace, p.Name}] = p.Response
		for _, l := range p.Limits {
			m.rules = append(m.rules, newRule(p, l, names))
		}
	}
	m.readsPaths = slices.ContainsFunc(m.rules, rule.readsPaths)
	m.readsHeaders = slices.ContainsFunc(m.rules, rule.readsHeaders)
	return m
}

// selected gives the policies that have a target here, with those targets only, in order of their names.
func selected(policies []Policy, o Options) []Policy {
	var kept []Policy
	for _, p := range policies {
		var targets []Target
		for _, t := range p.Targets {
			if o.selects(t) {
				targets = append(targets, t)
			}
		}
		if len(targets) > 0 {
			p.Targets = targets
			kept = append(kept, p)
		}
	}
	slices.SortStableFunc(kept, func(a, b Policy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return slices.CompactFunc(kept, func(a, b Policy) bool {
		return a.Namespace == b.Namespace && a.Name == b.Name
	})
}

// Match gives the hits of a request: one for each target of each limit that it matches. The keys of a
// request's hits are distinct.
func (m *Matcher) Match(r Request) []limiter.Hit {
	v := view{Request: r, host: bareHost(r.Host)}
	if m.readsPaths {
		// Most paths have one reading, and cost no allocation.
		var buf [1]string
		v.paths = readings(buf[:0], r.Path)
	}
	if m.readsHeaders {
		v.odd = oddNames(r.Header)
	}
	var hits []limiter.Hit
	for i := range m.rules {
		hits = m.rules[i].appendHits(hits, &v)
	}
	return hits
}

// Policies gives the policies that select the enforcer, in order of their names, each with only those of
// its targets that do.
func (m *Matcher) Policies() []Policy { return slices.Clone(m.policies) }

// Response gives what a client is told that a limit of this policy refuses. It is zero for a policy that
// the matcher doesn't have.
func (m *Matcher) Response(id limiter.LimitID) Response {
	return m.responses[policyName{id.Namespace, id.Policy}]
}

// rule is one limit of one policy, ready to be matched.
type rule struct {
	when     []condition
	key      []source
	counters []counter
	// hit is what all hits of the rule have in common.
	hit limiter.Hit
}

func newRule(p Policy, l Limit, names *namer) rule {
	r := rule{hit: limiter.Hit{
		Limit:        l.Limit,
		Cost:         1,
		Shadow:       l.Shadow,
		OnFailure:    l.OnFailure,
		Distribution: l.Distribution,
		ID:           limiter.LimitID{Namespace: p.Namespace, Policy: p.Name, Limit: l.Name},
	}}
	for _, w := range l.When {
		r.when = append(r.when, newCondition(w))
	}
	for _, k := range l.Key {
		r.key = append(r.key, newSource(k))
	}
	for _, t := range p.Targets {
		if c, ok := names.counter(r.hit, t, len(r.key) > 0); ok {
			r.counters = append(r.counters, c)
		}
	}
	return r
}

func (r rule) readsPaths() bool {
	return slices.ContainsFunc(r.when, func(c condition) bool { return len(c.paths) > 0 })
}

func (r rule) readsHeaders() bool {
	return slices.ContainsFunc(r.when, func(c condition) bool { return len(c.headers) > 0 }) ||
		slices.ContainsFunc(r.key, func(s source) bool { return s.kind == kindHeader })
}

// appendHits appends the hits of a request under this rule.
func (r *rule) appendHits(hits []limiter.Hit, v *view) []limiter.Hit {
	if !r.serves(v.Listener, v.Port) || !r.matches(v) {
		return hits
	}
	var scratch [256]byte
	m, onMissing := newMessage(scratch[:0], r.key, v)
	if onMissing == onMissingSkip {
		return hits
	}
	hits = slices.Grow(hits, len(r.counters))
	for i := range r.counters {
		c := &r.counters[i]
		if !c.serves(v.Listener, v.Port) {
			continue
		}
		h := r.hit
		h.Target = c.target
		if onMissing == onMissingDeny {
			h.Deny = true
		} else {
			h.Key, h.Overflow = c.key(m), c.overflow
		}
		hits = append(hits, h)
	}
	return hits
}

// serves says whether any of the rule's targets is behind this listener.
func (r *rule) serves(listener, port string) bool {
	for i := range r.counters {
		if r.counters[i].serves(listener, port) {
			return true
		}
	}
	return false
}

// matches says whether one of the conditions holds, or there is none.
func (r *rule) matches(v *view) bool {
	for i := range r.when {
		if r.when[i].holds(v) {
			return true
		}
	}
	return len(r.when) == 0
}

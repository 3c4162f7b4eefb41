// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"

	"github.com/weir-dev/weir/api/v1alpha1"
)

// Default sets what the CRD's schema would set, in place, and nothing else: what a policy may leave open for
// good, like a burst, stays open, or an edit of the requests would leave the old burst behind. Twice is the same
// as once.
func Default(p *v1alpha1.RateLimitPolicy) {
	s := &p.Spec
	setDefault(&s.Enforcement, v1alpha1.EnforcementEnforce)
	s.OnStoreFailure = cmp.Or(s.OnStoreFailure, &v1alpha1.OnStoreFailure{})
	setDefault(&s.OnStoreFailure.Mode, v1alpha1.OnStoreFailureOpen)
	s.Distribution = cmp.Or(s.Distribution, &v1alpha1.Distribution{})
	setDefault(&s.Distribution.Mode, v1alpha1.DistributionExact)
	for i := range s.Limits {
		defaultLimit(&s.Limits[i])
	}
	if s.Response != nil {
		defaultResponse(s.Response)
	}
}

// setDefault sets what is not set.
func setDefault[T comparable](field *T, value T) {
	var none T
	if *field == none {
		*field = value
	}
}

func defaultLimit(l *v1alpha1.Limit) {
	setDefault(&l.Priority, v1alpha1.PriorityDefault)
	for i := range l.When {
		defaultMatch(&l.When[i])
	}
	for i := range l.Key {
		defaultKey(&l.Key[i])
	}
	defaultStrategy(&l.Strategy)
	for i := range l.Overrides {
		for j := range l.Overrides[i].When {
			defaultMatch(&l.Overrides[i].When[j])
		}
	}
}

func defaultMatch(m *v1alpha1.RequestMatch) {
	for i := range m.Paths {
		setDefault(&m.Paths[i].Type, pathPrefix)
	}
	for i := range m.Headers {
		setDefault(&m.Headers[i].Type, headerExact)
	}
}

func defaultKey(k *v1alpha1.KeySource) {
	setDefault(&k.OnMissing, v1alpha1.OnMissingShare)
	if k.ClientIP != nil && k.ClientIP.IPv6PrefixLength == nil {
		k.ClientIP.IPv6PrefixLength = new(int32(64))
	}
}

func defaultStrategy(s *v1alpha1.Strategy) {
	if s.SlidingWindow != nil {
		setDefault(&s.SlidingWindow.Precision, precisionRing)
	}
	if s.LeakyBucket != nil {
		setDefault(&s.LeakyBucket.Mode, modeQueue)
	}
	if s.FixedWindow != nil && s.FixedWindow.Calendar != nil {
		setDefault(&s.FixedWindow.Calendar.TimeZone, "UTC")
	}
}

// defaultResponse tells nil from empty, as the schema does: no list of headers is the default one, an empty list
// is none.
func defaultResponse(r *v1alpha1.Response) {
	if r.StatusCode == nil {
		r.StatusCode = new(int32(429))
	}
	if r.Headers == nil {
		r.Headers = []v1alpha1.HeaderFormat{v1alpha1.HeadersDraft11}
	}
	r.Body = cmp.Or(r.Body, &v1alpha1.ResponseBody{})
	setDefault(&r.Body.Type, v1alpha1.BodyProblem)
}

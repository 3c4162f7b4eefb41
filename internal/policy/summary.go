// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/limiter"
)

// columnSize is what a column of kubectl's table can hold.
const columnSize = 80

// Target says in short what a policy applies to, as in "Service/checkout:http, Deployment/cart" or
// "Selector app=web".
func Target(p *v1alpha1.RateLimitPolicy) string {
	if s := p.Spec.Selector; s != nil {
		return short([]string{"Selector " + labels(s)}, "", columnSize)
	}
	var parts []string
	for _, ref := range p.Spec.TargetRefs {
		part := ref.Kind + "/" + ref.Name
		if ref.SectionName != "" {
			part += ":" + ref.SectionName
		}
		parts = append(parts, part)
	}
	return short(parts, ", ", columnSize)
}

// labels writes a selector as kubectl does, and {} for the one that selects everything.
func labels(s *metav1.LabelSelector) string {
	if len(s.MatchLabels)+len(s.MatchExpressions) == 0 {
		return "{}"
	}
	return metav1.FormatLabelSelector(s)
}

// Summary says in short what a policy's limits are, as in "100/1m burst 200 per x-api-key", "5/1s queue 10s", of
// which the latter is how long a request can wait, or "50 in flight". It works for every policy, also one that
// can't be compiled.
func Summary(p *v1alpha1.RateLimitPolicy) string {
	var parts []string
	for i := range p.Spec.Limits {
		parts = append(parts, limitSummary(p, &p.Spec.Limits[i]))
	}
	return short(parts, "; ", columnSize)
}

func limitSummary(p *v1alpha1.RateLimitPolicy, l *v1alpha1.Limit) string {
	s := strategySummary(l.Strategy)
	if len(l.Key) > 0 {
		s += " per " + keySummary(l.Key)
	}
	if distribution(p.Spec.Distribution) == limiter.PerReplica {
		s += " in each replica"
	}
	if e := l.Enforcement; e == v1alpha1.EnforcementShadow || e == v1alpha1.EnforcementDisabled {
		s += " (" + strings.ToLower(string(e)) + ")"
	}
	return s
}

func strategySummary(s v1alpha1.Strategy) string {
	switch {
	case s.TokenBucket != nil:
		b := s.TokenBucket
		if b.Burst != nil && *b.Burst != b.Requests {
			return fmt.Sprintf("%d/%s burst %d", b.Requests, b.Window, *b.Burst)
		}
		return fmt.Sprintf("%d/%s", b.Requests, b.Window)
	case s.SlidingWindow != nil && s.SlidingWindow.Precision == precisionApproximate:
		return fmt.Sprintf("%d/%s sliding approx", s.SlidingWindow.Requests, s.SlidingWindow.Window)
	case s.SlidingWindow != nil && s.SlidingWindow.Precision == precisionLog:
		return fmt.Sprintf("%d/%s sliding log", s.SlidingWindow.Requests, s.SlidingWindow.Window)
	case s.SlidingWindow != nil:
		return fmt.Sprintf("%d/%s sliding", s.SlidingWindow.Requests, s.SlidingWindow.Window)
	case s.LeakyBucket != nil && s.LeakyBucket.Mode == modeMeter:
		return fmt.Sprintf("%d/%s leaky", s.LeakyBucket.Requests, s.LeakyBucket.Window)
	case s.LeakyBucket != nil:
		return fmt.Sprintf("%d/%s queue %s", s.LeakyBucket.Requests, s.LeakyBucket.Window, maxDelay(s.LeakyBucket))
	case s.FixedWindow != nil && s.FixedWindow.Window != nil:
		return fmt.Sprintf("%d/%s fixed", s.FixedWindow.Requests, *s.FixedWindow.Window)
	case s.FixedWindow != nil && s.FixedWindow.Calendar != nil:
		return fmt.Sprintf("%d a %s", s.FixedWindow.Requests, strings.ToLower(string(s.FixedWindow.Calendar.Unit)))
	case s.Adaptive != nil:
		return fmt.Sprintf("%d to %d/%s", s.Adaptive.MinRequests, s.Adaptive.MaxRequests, s.Adaptive.Window)
	case s.Concurrency != nil:
		return fmt.Sprintf("%d in flight", s.Concurrency.MaxInFlight)
	}
	return "nothing"
}

func keySummary(key []v1alpha1.KeySource) string {
	names := make([]string, len(key))
	for i := range key {
		names[i] = sourceSummary(&key[i])
	}
	return strings.Join(names, ", ")
}

// sourceSummary names a source by what tells it from others.
func sourceSummary(k *v1alpha1.KeySource) string {
	switch {
	case k.Header != nil:
		return string(k.Header.Name)
	case k.Cookie != nil:
		return "cookie " + k.Cookie.Name
	case k.Query != nil:
		return "query " + k.Query.Name
	case k.Claim != nil:
		return "claim " + k.Claim.Name
	case k.PathParam != nil:
		return "pathParam " + k.PathParam.Name
	case k.ClientIP != nil:
		return "clientIP"
	case k.Method != nil:
		return "method"
	case k.Host != nil:
		return "host"
	}
	return "expression"
}

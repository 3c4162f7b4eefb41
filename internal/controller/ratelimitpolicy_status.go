// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/match"
	"github.com/weir-dev/weir/internal/policy"
	"github.com/weir-dev/weir/internal/usage"
)

// silence is how long an enforcer may be silent and still count as reporting.
const silence = 10 * time.Second

// forgotten is how long a silent enforcer is waited for. One that stops in good order leaves at once.
const forgotten = time.Minute

// statusOf is the whole status of a policy: what came of its spec, and what the enforcers of its namespace
// report, or why that can't be read. Only the times of transition come from its present status.
func statusOf(p *v1alpha1.RateLimitPolicy, n notice, seen observed, readErr error) v1alpha1.RateLimitPolicyStatus {
	s := v1alpha1.RateLimitPolicyStatus{
		ObservedGeneration: n.generation,
		Target:             policy.Target(p),
		Summary:            cmp.Or(n.summary, policy.Summary(p)),
		Targets:            targetsOf(p, n),
	}
	enforcers := tally{}
	if n.published != nil {
		s.Revision = n.published.Since.Number
		enforcers = count(n, seen.enforcers)
		s.Limits = limitsOf(p, n.published, seen.totals)
	}
	if readErr != nil {
		// What could not be read is not known to have changed.
		s.Enforcers, s.Limits = p.Status.Enforcers, p.Status.Limits
	} else {
		s.Enforcers = &v1alpha1.Enforcers{Expected: enforcers.expected(), Current: enforcers.current}
	}

	now := []metav1.Condition{
		accepted(n),
		programmed(p, n),
		enforced(p, n, enforcers, readErr),
		storeReady(n, enforcers, readErr),
	}
	now = append(now, ready(now))
	now = append(now, progress(now)...)
	s.Conditions = withTransitions(p.Status.Conditions, now, n.generation)
	return s
}

// accepted says whether the spec is fit to be enforced as it stands.
func accepted(n notice) metav1.Condition {
	if n.refusal == nil {
		return condition(v1alpha1.ConditionAccepted, metav1.ConditionTrue, v1alpha1.ReasonAccepted, "The spec is valid and every target exists")
	}
	return condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse, reasonOf(n.refusal), n.refusal.Error())
}

// programmed says whether the config store holds this generation.
func programmed(p *v1alpha1.RateLimitPolicy, n notice) metav1.Condition {
	no := func(reason, format string, args ...any) metav1.Condition {
		return condition(v1alpha1.ConditionProgrammed, metav1.ConditionFalse, reason, fmt.Sprintf(format, args...))
	}
	switch {
	case n.published != nil && n.published.Generation == n.generation:
		// Also while the store is away: what it held, the enforcers still have.
		return condition(v1alpha1.ConditionProgrammed, metav1.ConditionTrue, v1alpha1.ReasonProgrammed,
			fmt.Sprintf("Published generation %d: %s for %s", n.generation, plural(len(n.published.Limits), "limit"), policy.Target(p)))
	case n.refusal != nil && n.published != nil:
		return no(v1alpha1.ReasonLastAcceptedKept, "Generation %d was not accepted: generation %d, the last accepted one, stays enforced", n.generation, n.published.Generation)
	case n.refusal != nil:
		return no(v1alpha1.ReasonNotAccepted, "Nothing is published, since no generation of this policy has been accepted")
	case n.err != nil && n.published != nil:
		return no(v1alpha1.ReasonPublishFailed, "The config store can't take generation %d yet: generation %d stays enforced", n.generation, n.published.Generation)
	case n.err != nil:
		return no(v1alpha1.ReasonPublishFailed, "The config store can't take generation %d yet", n.generation)
	}
	return no(v1alpha1.ReasonPending, "Generation %d is about to be published", n.generation)
}

// enforced says whether every enforcer of the targets enforces what is published.
func enforced(p *v1alpha1.RateLimitPolicy, n notice, t tally, readErr error) metav1.Condition {
	state := func(status metav1.ConditionStatus, reason, format string, args ...any) metav1.Condition {
		return condition(v1alpha1.ConditionEnforced, status, reason, fmt.Sprintf(format, args...))
	}
	switch {
	case n.published == nil || n.published.Generation != n.generation:
		return state(metav1.ConditionFalse, v1alpha1.ReasonPending, "This generation is not published")
	case p.Spec.Enforcement == v1alpha1.EnforcementDisabled:
		return state(metav1.ConditionUnknown, v1alpha1.ReasonDisabled, "Enforcement is disabled: set spec.enforcement to Enforce or Shadow")
	case readErr != nil:
		return state(metav1.ConditionUnknown, v1alpha1.ReasonUnreachable, "The store that enforcers report to can't be read")
	case t.expected() == 0:
		return state(metav1.ConditionUnknown, v1alpha1.ReasonNoEnforcers, "No enforcer of the targets has reported: run their pods with the sidecar")
	case t.silent > 0:
		return state(metav1.ConditionFalse, v1alpha1.ReasonNotReporting, "%s of the targets been silent for over %s", have(t.silent, "enforcer"), silence)
	case t.current < t.expected():
		return state(metav1.ConditionFalse, v1alpha1.ReasonPending, "Generation %d is enforced by %d of %s so far", n.generation, t.current, plural(int(t.expected()), "enforcer"))
	}
	return state(metav1.ConditionTrue, v1alpha1.ReasonEnforced, "Generation %d is enforced by %d of %s", n.generation, t.current, plural(int(t.expected()), "enforcer"))
}

// storeReady says whether we reach the config store, and the enforcers their counters.
func storeReady(n notice, t tally, readErr error) metav1.Condition {
	no := func(reason, format string, args ...any) metav1.Condition {
		return condition(v1alpha1.ConditionStoreReady, metav1.ConditionFalse, reason, fmt.Sprintf(format, args...))
	}
	switch {
	case n.err != nil || readErr != nil:
		return no(v1alpha1.ReasonUnreachable, "The manager can't reach the store: enforcers keep the limits that they have, and onStoreFailure decides wherever they can't reach it either")
	case t.degraded > 0:
		return no(v1alpha1.ReasonDegraded, "%s not reached the counters lately: onStoreFailure decides there", have(t.degraded, "enforcer"))
	}
	return condition(v1alpha1.ConditionStoreReady, metav1.ConditionTrue, v1alpha1.ReasonReachable, "The store can be reached")
}

// ready is the first of the conditions that isn't good. An Enforced that can't be known for want of
// enforcers, or because nothing is to be enforced, doesn't hold it back, but is told.
func ready(conditions []metav1.Condition) metav1.Condition {
	good := condition(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady, "The limits are enforced as written")
	for _, c := range conditions {
		switch {
		case c.Status == metav1.ConditionTrue:
		case c.Reason == v1alpha1.ReasonNoEnforcers || c.Reason == v1alpha1.ReasonDisabled:
			good.Reason, good.Message = c.Reason, c.Message
		default:
			return condition(v1alpha1.ConditionReady, metav1.ConditionFalse, c.Reason, c.Message)
		}
	}
	return good
}

// progress gives the helper condition of kstatus that fits: Stalled when only an edit can help, else
// Reconciling when something is still on its way, or waited for, else none.
func progress(conditions []metav1.Condition) []metav1.Condition {
	c := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
	switch {
	case c.Status == metav1.ConditionTrue:
		return nil
	case c.Reason == v1alpha1.ReasonInvalid || c.Reason == v1alpha1.ReasonUnsupported:
		return []metav1.Condition{condition(v1alpha1.ConditionStalled, metav1.ConditionTrue, c.Reason, c.Message)}
	}
	return []metav1.Condition{condition(v1alpha1.ConditionReconciling, metav1.ConditionTrue, c.Reason, c.Message)}
}

// targetsOf tells of each target, when there is more than one.
func targetsOf(p *v1alpha1.RateLimitPolicy, n notice) []v1alpha1.TargetStatus {
	if len(p.Spec.TargetRefs) < 2 {
		return nil
	}
	statuses := make([]v1alpha1.TargetStatus, 0, len(p.Spec.TargetRefs))
	for i, ref := range p.Spec.TargetRefs {
		c := condition(v1alpha1.ConditionAccepted, metav1.ConditionTrue, v1alpha1.ReasonAccepted, "The target exists")
		if message, missing := missingTarget(n.refusal, i); missing {
			c = condition(v1alpha1.ConditionAccepted, metav1.ConditionFalse, v1alpha1.ReasonTargetNotFound, message)
		}
		statuses = append(statuses, v1alpha1.TargetStatus{
			Ref:        ref,
			Conditions: withTransitions(conditionsOfTarget(p.Status.Targets, ref), []metav1.Condition{c}, n.generation),
		})
	}
	return statuses
}

// missingTarget says whether the target of this index is among those that a refusal misses, and how.
func missingTarget(refusal error, index int) (message string, missing bool) {
	var r *policy.Refusal
	if !errors.As(refusal, &r) || r.Reason != v1alpha1.ReasonTargetNotFound {
		return "", false
	}
	path := field.NewPath("spec", "targetRefs").Index(index).String()
	for _, err := range r.Errors {
		if err.Field == path {
			return err.Detail, true
		}
	}
	return "", false
}

func conditionsOfTarget(targets []v1alpha1.TargetStatus, ref v1alpha1.TargetRef) []metav1.Condition {
	for _, t := range targets {
		if t.Ref == ref {
			return t.Conditions
		}
	}
	return nil
}

// limitsOf gives the usage of each limit that is published.
func limitsOf(p *v1alpha1.RateLimitPolicy, published *configstore.Policy, totals map[limiter.LimitID]usage.Counts) []v1alpha1.LimitStatus {
	statuses := make([]v1alpha1.LimitStatus, 0, len(published.Limits))
	for _, l := range published.Limits {
		total := totals[limiter.LimitID{Namespace: p.Namespace, Policy: p.Name, Limit: l.Name}]
		statuses = append(statuses, v1alpha1.LimitStatus{
			Name:            v1alpha1.Name(l.Name),
			Allowed:         total.Allowed,
			Denied:          total.Denied,
			ShadowDenied:    total.ShadowDenied,
			FailedOpen:      total.FailedOpen,
			CurrentRequests: l.Limit.Requests,
		})
	}
	return statuses
}

// tally counts the enforcers of a policy's targets.
type tally struct {
	current, behind, silent int32
	// degraded of them report that they could not reach their counters.
	degraded int32
}

func (t tally) expected() int32 { return t.current + t.behind + t.silent }

// count tallies the reports of those enforcers that the policy's targets select.
func count(n notice, reports []usage.Observed) tally {
	var t tally
	for _, r := range latestRuns(reports) {
		if r.Age > forgotten || !selects(n.published.Targets, r.Labels) {
			continue
		}
		switch {
		case r.Age > silence:
			t.silent++
			continue
		case r.Revision.Compare(n.published.Since) < 0:
			t.behind++
		default:
			t.current++
		}
		if r.Degraded {
			t.degraded++
		}
	}
	return t
}

// latestRuns leaves out what a sidecar reported before it was started again.
func latestRuns(reports []usage.Observed) map[string]usage.Observed {
	latest := make(map[string]usage.Observed, len(reports))
	for _, r := range reports {
		pod := cmp.Or(r.UID, r.Pod)
		if other, ok := latest[pod]; !ok || r.Age < other.Age {
			latest[pod] = r
		}
	}
	return latest
}

func selects(targets []match.Target, labels map[string]string) bool {
	for _, t := range targets {
		if t.Pods.Selects(labels) {
			return true
		}
	}
	return false
}

// onlyUsageChanged says whether two statuses tell the same but for the usage of the limits.
func onlyUsageChanged(a, b v1alpha1.RateLimitPolicyStatus) bool {
	a.Limits, b.Limits = nil, nil
	return equality.Semantic.DeepEqual(a, b)
}

func condition(conditionType string, status metav1.ConditionStatus, reason, message string) metav1.Condition {
	return metav1.Condition{Type: conditionType, Status: status, Reason: reason, Message: message}
}

// withTransitions gives the conditions of now, of this generation. Those whose status is as it was keep
// the time of their transition.
func withTransitions(before, now []metav1.Condition, generation int64) []metav1.Condition {
	conditions := make([]metav1.Condition, 0, len(now))
	for _, c := range now {
		c.ObservedGeneration = generation
		if was := meta.FindStatusCondition(before, c.Type); was != nil {
			conditions = append(conditions, *was)
		}
		meta.SetStatusCondition(&conditions, c)
	}
	return conditions
}

// reasonOf gives the reason of a refusal.
func reasonOf(refusal error) string {
	var r *policy.Refusal
	if errors.As(refusal, &r) {
		return r.Reason
	}
	return v1alpha1.ReasonInvalid
}

// plural is like "1 limit" and "2 limits".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// have is like "1 enforcer has" and "2 enforcers have".
func have(n int32, noun string) string {
	if n == 1 {
		return "1 " + noun + " has"
	}
	return plural(int(n), noun) + " have"
}

// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/inject"
	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/match"
	"github.com/weir-dev/weir/internal/policy"
	"github.com/weir-dev/weir/internal/usage"
)

// silence is how long an enforcer may be silent and still count as reporting.
const silence = 10 * time.Second

// forgotten is how long a silent enforcer is waited for. One that stops in good order leaves at once.
const forgotten = time.Minute

// statusOf is the whole status of a policy. Only the times of transition, and what can't be observed at
// present, come from the status that it has.
func statusOf(p *v1alpha1.RateLimitPolicy, v view) v1alpha1.RateLimitPolicyStatus {
	s := v1alpha1.RateLimitPolicyStatus{
		ObservedGeneration: v.generation,
		Target:             policy.Target(p),
		Summary:            cmp.Or(v.summary, policy.Summary(p)),
		Targets:            targetsOf(p, v.notice),
	}
	enforcers := tally{}
	if v.published != nil {
		s.Revision = v.published.Since.Number
		enforcers = count(p, v.notice, v.enforcers)
		enforcers.note(p, v.published, v.bare)
		s.Limits = limitsOf(p, v.published, v.totals)
	}
	if v.reportsErr != nil {
		s.Enforcers, s.Limits = p.Status.Enforcers, p.Status.Limits
	} else {
		s.Enforcers = &v1alpha1.Enforcers{Expected: enforcers.expected(), Current: enforcers.current}
	}

	now := []metav1.Condition{
		accepted(v.notice),
		programmed(p, v.notice),
		enforced(v, enforcers),
		storeReady(v, enforcers),
	}
	now = append(now, ready(now))
	now = append(now, progress(now)...)
	s.Conditions = withTransitions(p.Status.Conditions, now, v.generation)
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
		return no(v1alpha1.ReasonPublishFailed, "%s: generation %d stays enforced", why(n.err), n.published.Generation)
	case n.err != nil:
		return no(v1alpha1.ReasonPublishFailed, "%s", why(n.err))
	}
	return no(v1alpha1.ReasonPending, "Generation %d is about to be published", n.generation)
}

// why says in a sentence that stays the same what keeps limits from being published.
func why(err error) string {
	var keeping keepError
	switch {
	case errors.As(err, &keeping):
		return fmt.Sprintf("The accepted spec can't be kept in a ControllerRevision (%s)", apierrors.ReasonForError(keeping))
	case errors.Is(err, configstore.ErrTooLarge):
		return "The limits of this namespace make more than 1 MiB; move some to another namespace"
	}
	return "The config store can't be reached"
}

// isStoreAway says whether an error is the store's doing.
func isStoreAway(err error) bool {
	return err != nil && !errors.As(err, new(keepError)) && !errors.As(err, new(podsError)) && !errors.Is(err, configstore.ErrTooLarge)
}

// unread is what can't be read of the enforcers.
func unread(err error) string {
	if errors.As(err, new(podsError)) {
		return "The list of the namespace's pods"
	}
	return "The store that enforcers report to"
}

// enforced says whether every enforcer of the targets enforces what is published.
func enforced(v view, t tally) metav1.Condition {
	state := func(status metav1.ConditionStatus, reason, format string, args ...any) metav1.Condition {
		return condition(v1alpha1.ConditionEnforced, status, reason, fmt.Sprintf(format, args...))
	}
	switch {
	case v.published == nil || v.published.Generation != v.generation:
		return state(metav1.ConditionFalse, v1alpha1.ReasonPending, "This generation is not published")
	case len(v.published.Limits) == 0:
		return state(metav1.ConditionUnknown, v1alpha1.ReasonDisabled, "Every limit is disabled: set enforcement to Enforce or Shadow")
	case v.reportsErr != nil:
		return state(metav1.ConditionUnknown, v1alpha1.ReasonUnreachable, "%s can't be read", unread(v.reportsErr))
	case t.leaking > 0:
		return state(metav1.ConditionFalse, v1alpha1.ReasonNotIntercepted, "%s%s", t.leak, andMore(t.leaking-1))
	case t.expected() == 0:
		return state(metav1.ConditionUnknown, v1alpha1.ReasonNoEnforcers, "No pod of the targets runs with the sidecar: label their namespace or the pods, and restart them")
	case t.silent > 0:
		return state(metav1.ConditionFalse, v1alpha1.ReasonNotReporting, "%s of the targets been silent for over %s", have(t.silent, "enforcer"), silence)
	case t.current < t.expected():
		return state(metav1.ConditionFalse, v1alpha1.ReasonPending, "Generation %d is enforced by %d of %s so far", v.generation, t.current, plural(int(t.expected()), "enforcer"))
	}
	good := fmt.Sprintf("Generation %d is enforced by %d of %s", v.generation, t.current, plural(int(t.expected()), "enforcer"))
	if limits := overflowing(v); len(limits) > 0 {
		return state(metav1.ConditionTrue, v1alpha1.ReasonTooManyKeys,
			"%s, but more keys have come lately than can have counters: the others share one under %s. Look at who sends them, or raise --max-keys-per-policy of the sidecar", good, strings.Join(limits, ", "))
	}
	return state(metav1.ConditionTrue, v1alpha1.ReasonEnforced, "%s", good)
}

// overflowing gives the limits whose keys don't all have counters, like limit "per-key".
func overflowing(v view) []string {
	var limits []string
	for _, l := range v.published.Limits {
		if v.totals[limiter.LimitID{Namespace: v.published.Namespace, Policy: v.published.Name, Limit: l.Name}].Overflowed > 0 {
			limits = append(limits, fmt.Sprintf("limit %q", l.Name))
		}
	}
	return limits
}

// ready is the first of the conditions that isn't good. An Enforced that can't be known for want of
// enforcers, or because nothing is to be enforced, doesn't hold it back, but is told, and so is a flood of keys: who
// sends them must not be able to make the policy look broken.
func ready(conditions []metav1.Condition) metav1.Condition {
	good := condition(v1alpha1.ConditionReady, metav1.ConditionTrue, v1alpha1.ReasonReady, "The limits are enforced as written")
	for _, c := range conditions {
		switch {
		case c.Reason == v1alpha1.ReasonNoEnforcers || c.Reason == v1alpha1.ReasonDisabled || c.Reason == v1alpha1.ReasonTooManyKeys:
			good.Reason, good.Message = c.Reason, c.Message
		case c.Status == metav1.ConditionTrue:
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
			Allowed:         total.Allowed + total.LocalAllowed,
			Denied:          total.Denied + total.LocalDenied,
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
	// leaking pods are reached by requests without a sidecar, the first as leak says.
	leaking int32
	leak    string
	// faults are the words that they have for it.
	faults []string
}

func (t tally) expected() int32 { return t.current + t.behind + t.silent }

// count tallies those enforcers that the policy's targets select.
func count(p *v1alpha1.RateLimitPolicy, n notice, enforcers []enforcer) tally {
	var t tally
	for _, e := range enforcers {
		if !e.running && e.Age > forgotten || !selects(n.published.Targets, e.labels) {
			continue
		}
		if leak := leakOf(p, e); leak != "" {
			t.leak = cmp.Or(t.leak, leak)
			t.leaking++
		}
		switch {
		case e.Age > silence:
			t.silent++
			continue
		case e.enforces(n):
			t.current++
		default:
			t.behind++
		}
		if e.Degraded {
			t.degraded++
			t.faults = append(t.faults, e.Reason)
		}
	}
	return t
}

// note notes those pods of the policy's targets that lack a sidecar. A policy for all enforced pods isn't about those
// that can't have one.
func (t *tally) note(p *v1alpha1.RateLimitPolicy, published *configstore.Policy, pods []bare) {
	for _, b := range pods {
		if b.reason != reasonNotInjected && isEverything(p.Spec.Selector) || !selects(published.Targets, b.labels) {
			continue
		}
		t.leak = cmp.Or(t.leak, fmt.Sprintf("Pod %s %s", b.name, b.why))
		t.leaking++
	}
}

func isEverything(s *metav1.LabelSelector) bool {
	return s != nil && len(s.MatchLabels)+len(s.MatchExpressions) == 0
}

// enforces says whether it reports what is published, or something later. A later epoch than ours is of a leader
// that we know nothing of: what it enforces isn't ours. One that was started with other labels enforces something
// else.
func (e enforcer) enforces(n notice) bool {
	return e.Revision.Compare(n.published.Since) >= 0 && e.Revision.Epoch <= n.epoch && selects(n.published.Targets, e.Labels)
}

// leakOf says how requests that the policy is about come to the enforcer's pod without its sidecar; or nothing. Of a
// Service that is a target all ports matter that are targets, of others those alone that lead past the sidecar to
// what is limited.
func leakOf(p *v1alpha1.RateLimitPolicy, e enforcer) string {
	for _, l := range e.leaks {
		if leads(p, l) {
			return fmt.Sprintf("Pod %s: %s %s", e.Pod, servicePort(l), l.Message)
		}
	}
	return ""
}

// leads says whether requests that a policy is about come through a leak.
func leads(p *v1alpha1.RateLimitPolicy, l inject.Leak) bool {
	if p.Spec.Selector != nil {
		return l.Limited
	}
	return slices.ContainsFunc(p.Spec.TargetRefs, func(ref v1alpha1.TargetRef) bool {
		if ref.Kind != "Service" {
			return l.Limited
		}
		return ref.Name == l.Service && (ref.SectionName == "" || ref.SectionName == l.Port)
	})
}

// servicePort is like "port web of Service checkout".
func servicePort(l inject.Leak) string {
	if l.Port == "" {
		return "the port of Service " + l.Service
	}
	return "port " + l.Port + " of Service " + l.Service
}

func selects(targets []match.Target, labels map[string]string) bool {
	for _, t := range targets {
		if t.Pods.Selects(labels) {
			return true
		}
	}
	return false
}

// onlyUsageChanged says whether two statuses tell the same but for the usage of the limits, and how often
// such a change is worth a write.
func onlyUsageChanged(a, b v1alpha1.RateLimitPolicyStatus) (interval time.Duration, only bool) {
	interval = steadyUsageInterval
	if muchChanged(a.Limits, b.Limits) {
		interval = usageInterval
	}
	a.Limits, b.Limits = nil, nil
	return interval, equality.Semantic.DeepEqual(a, b)
}

func muchChanged(a, b []v1alpha1.LimitStatus) bool {
	if len(a) != len(b) {
		return true
	}
	for i := range a {
		if a[i].Name != b[i].Name || a[i].CurrentRequests != b[i].CurrentRequests ||
			differMuch(a[i].Allowed, b[i].Allowed) || differMuch(a[i].Denied, b[i].Denied) ||
			differMuch(a[i].ShadowDenied, b[i].ShadowDenied) || differMuch(a[i].FailedOpen, b[i].FailedOpen) {
			return true
		}
	}
	return false
}

// differMuch says whether a count has come or gone, or changed by more than a quarter.
func differMuch(a, b int64) bool {
	return (a == 0) != (b == 0) || 4*max(a-b, b-a) > max(a, b)
}

// ours is a status without the conditions that others keep in it.
func ours(s v1alpha1.RateLimitPolicyStatus) v1alpha1.RateLimitPolicyStatus {
	own := *s.DeepCopy()
	own.Conditions = slices.DeleteFunc(own.Conditions, func(c metav1.Condition) bool { return !slices.Contains(conditionTypes, c.Type) })
	return own
}

// conditionTypes are those that we keep.
var conditionTypes = []string{
	v1alpha1.ConditionAccepted, v1alpha1.ConditionProgrammed, v1alpha1.ConditionEnforced, v1alpha1.ConditionStoreReady,
	v1alpha1.ConditionReady, v1alpha1.ConditionStalled, v1alpha1.ConditionReconciling,
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

// andMore is like " (so with 2 more pods)", and nothing for 0.
func andMore(n int32) string {
	switch n {
	case 0:
		return ""
	case 1:
		return " (so with 1 more pod)"
	}
	return fmt.Sprintf(" (so with %d more pods)", n)
}

// have is like "1 enforcer has" and "2 enforcers have".
func have(n int32, noun string) string {
	if n == 1 {
		return "1 " + noun + " has"
	}
	return plural(int(n), noun) + " have"
}

// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/match"
	"github.com/weir-dev/weir/internal/policy"
)

var checkout = v1alpha1.TargetRef{Kind: "Service", Name: "checkout"}

// withCheckout are the workloads of a namespace with the Service checkout.
var withCheckout = policy.Workloads{checkout: {Pods: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "checkout"}}}}

// aPolicy targets the Service checkout.
func aPolicy(generation, requests int64) *v1alpha1.RateLimitPolicy {
	return &v1alpha1.RateLimitPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a", Generation: generation, UID: "uid-of-a"},
		Spec: v1alpha1.RateLimitPolicySpec{
			TargetRefs: []v1alpha1.TargetRef{checkout},
			Limits: []v1alpha1.Limit{{
				Name:     "all",
				Strategy: v1alpha1.Strategy{TokenBucket: &v1alpha1.TokenBucket{Requests: v1alpha1.Requests(requests), Window: "1m"}},
			}},
		},
	}
}

func unsupported(generation int64) *v1alpha1.RateLimitPolicy {
	p := aPolicy(generation, 1)
	p.Spec.Limits[0].Strategy = v1alpha1.Strategy{Adaptive: &v1alpha1.Adaptive{MinRequests: 1, MaxRequests: 2, Window: "1s"}}
	return p
}

func TestJudge(t *testing.T) {
	accepted := func(generation, requests int64) *lastAccepted {
		return &lastAccepted{generation: generation, spec: aPolicy(generation, requests).Spec}
	}
	published := func(generation, requests int64) *configstore.Policy {
		return &configstore.Policy{Policy: mustCompile(t, aPolicy(generation, requests)), UID: "uid-of-a"}
	}
	type outcome struct {
		reason        string
		newlyAccepted bool
		requests      int64 // of the limit to enforce; 0 when there is none
		generation    int64 // that it is of
		targets       int
	}
	for name, test := range map[string]struct {
		policy    *v1alpha1.RateLimitPolicy
		last      *lastAccepted
		published *configstore.Policy
		workloads policy.Workloads
		want      outcome
	}{
		"a good spec is accepted": {
			policy: aPolicy(1, 10), workloads: withCheckout,
			want: outcome{newlyAccepted: true, requests: 10, generation: 1, targets: 1},
		},
		"a spec that was accepted before is not accepted anew": {
			policy: aPolicy(1, 10), last: accepted(1, 10), workloads: withCheckout,
			want: outcome{requests: 10, generation: 1, targets: 1},
		},
		"a good edit is accepted": {
			policy: aPolicy(2, 20), last: accepted(1, 10), workloads: withCheckout,
			want: outcome{newlyAccepted: true, requests: 20, generation: 2, targets: 1},
		},
		"a bad edit keeps the last accepted spec": {
			policy: unsupported(2), last: accepted(1, 10), workloads: withCheckout,
			want: outcome{reason: v1alpha1.ReasonUnsupported, requests: 10, generation: 1, targets: 1},
		},
		"a bad edit keeps what is published while the kept spec can't be seen": {
			policy: unsupported(2), published: published(1, 10), workloads: withCheckout,
			want: outcome{reason: v1alpha1.ReasonUnsupported, requests: 10, generation: 1, targets: 1},
		},
		"a bad first spec enforces nothing": {
			policy: unsupported(1), workloads: withCheckout,
			want: outcome{reason: v1alpha1.ReasonUnsupported},
		},
		"a target that was never there is waited for": {
			policy: aPolicy(1, 10), workloads: policy.Workloads{},
			want: outcome{reason: v1alpha1.ReasonTargetNotFound},
		},
		"a target that goes away stays in force": {
			policy: aPolicy(1, 10), last: accepted(1, 10), published: published(1, 10), workloads: policy.Workloads{},
			want: outcome{reason: v1alpha1.ReasonTargetNotFound, requests: 10, generation: 1, targets: 1},
		},
		"a bad edit keeps what is published when the kept specs that we see are older": {
			policy: unsupported(3), last: accepted(1, 1000), published: published(2, 10), workloads: withCheckout,
			want: outcome{reason: v1alpha1.ReasonUnsupported, requests: 10, generation: 2, targets: 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := judge(test.policy, test.last, test.published, test.workloads)
			got := outcome{newlyAccepted: d.newlyAccepted}
			var refusal *policy.Refusal
			if errors.As(d.refusal, &refusal) {
				got.reason = refusal.Reason
			}
			if d.limits != nil {
				got.requests, got.generation, got.targets = d.limits.Limits[0].Limit.Requests, d.limits.Generation, len(d.limits.Targets)
			}
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(outcome{})); diff != "" {
				t.Errorf("judgement (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSnapshot(t *testing.T) {
	a, b := mustCompile(t, aPolicy(1, 10)), mustCompile(t, aPolicy(1, 20))
	b.Name = "b"
	edited := a
	edited.Generation = 2
	base := configstore.Snapshot{
		Namespace: "shop",
		Revision:  configstore.Revision{Epoch: 7, Number: 3},
		Policies: []configstore.Policy{
			{Policy: a, Since: configstore.Revision{Epoch: 7, Number: 1}},
			{Policy: b, Since: configstore.Revision{Epoch: 7, Number: 3}},
		},
	}
	next := configstore.Revision{Epoch: 8, Number: 4}
	again := configstore.Policy{Policy: a, UID: "another", Since: next}
	for name, test := range map[string]struct {
		decided decisions
		base    configstore.Snapshot
		awaited bool
		want    configstore.Snapshot
	}{
		"a policy that was deleted and created again is a new one": {
			decided: decisions{{name: "a", uid: "another", limits: &a}, {name: "b", limits: &b}}, base: base,
			want: configstore.Snapshot{Namespace: "shop", Revision: next, Policies: []configstore.Policy{again, base.Policies[1]}},
		},
		"what is published already is left as it is": {
			decided: decisions{{name: "a", limits: &a}, {name: "b", limits: &b}}, base: base, want: base,
		},
		"an edit gives the edited policy alone a new revision": {
			decided: decisions{{name: "a", limits: &edited}, {name: "b", limits: &b}}, base: base,
			want: configstore.Snapshot{Namespace: "shop", Revision: next, Policies: []configstore.Policy{
				{Policy: edited, Since: next}, base.Policies[1],
			}},
		},
		"a policy that is gone is left out": {
			decided: decisions{{name: "b", limits: &b}}, base: base,
			want: configstore.Snapshot{Namespace: "shop", Revision: next, Policies: []configstore.Policy{base.Policies[1]}},
		},
		"that the last policy is gone is published too": {
			base: base,
			want: configstore.Snapshot{Namespace: "shop", Revision: next, Policies: []configstore.Policy{}},
		},
		"one policy in the place of another is a change": {
			decided: decisions{{name: "a", limits: &a}, {name: "c", limits: &b}}, base: base,
			want: configstore.Snapshot{Namespace: "shop", Revision: next, Policies: []configstore.Policy{
				base.Policies[0], {Policy: b, Since: next},
			}},
		},
		"a namespace that never had a policy has nothing published": {
			want: configstore.Snapshot{Namespace: "shop"},
		},
		"unless its sidecars wait for it": {
			awaited: true,
			want:    configstore.Snapshot{Namespace: "shop", Revision: configstore.Revision{Epoch: 8, Number: 1}, Policies: []configstore.Policy{}},
		},
		"they wait no longer when there is one": {
			awaited: true,
			base:    configstore.Snapshot{Namespace: "shop", Revision: configstore.Revision{Epoch: 7, Number: 1}, Policies: []configstore.Policy{}},
			want:    configstore.Snapshot{Namespace: "shop", Revision: configstore.Revision{Epoch: 7, Number: 1}, Policies: []configstore.Policy{}},
		},
		"a policy that stays although it is gone is left as it is, in its place": {
			decided: decisions{{name: "b", limits: &b}}.with(base.Policies[:1]), base: base, want: base,
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, test.decided.snapshot("shop", test.base, 8, test.awaited)); diff != "" {
				t.Errorf("snapshot (-want +got):\n%s", diff)
			}
		})
	}
}

func mustCompile(t *testing.T, p *v1alpha1.RateLimitPolicy) match.Policy {
	t.Helper()
	limits, err := policy.Compile(p, withCheckout)
	if err != nil {
		t.Fatal(err)
	}
	return limits
}

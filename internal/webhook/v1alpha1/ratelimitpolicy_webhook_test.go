// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/match"
)

func TestPolicies(t *testing.T) {
	w := newWorld(t)
	for name, test := range map[string]func(*testing.T, *world, *v1alpha1.RateLimitPolicy){
		"what can be enforced is admitted without a word":      admitted,
		"what the schema lets through is refused by its field": refused,
		"what this release can't enforce is refused":           unsupported,
		"a missing target is warned of":                        warned,
		"what is in force is compared":                         compared,
		"what stays in force meanwhile is told":                keeps,
		"a change beside the spec is admitted as it is":        relabeled,
		"an empty list of headers stays empty":                 emptyHeaders,
		"a policy is admitted with the store away":             storeAway,
	} {
		t.Run(name, func(t *testing.T) { test(t, w, newPolicy(w.namespaced(t))) })
	}
}

// newPolicy gives a policy of 100 requests a minute to the Service checkout.
func newPolicy(namespace string) *v1alpha1.RateLimitPolicy {
	return &v1alpha1.RateLimitPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "a"},
		Spec: v1alpha1.RateLimitPolicySpec{
			TargetRefs: []v1alpha1.TargetRef{{Kind: "Service", Name: "checkout"}},
			Limits: []v1alpha1.Limit{{
				Name:     "all",
				Strategy: v1alpha1.Strategy{TokenBucket: &v1alpha1.TokenBucket{Requests: 100, Window: "1m"}},
			}},
		},
	}
}

func admitted(t *testing.T, w *world, p *v1alpha1.RateLimitPolicy) {
	wantAdmitted(t, w, w.Create(t.Context(), p))
}

func refused(t *testing.T, w *world, p *v1alpha1.RateLimitPolicy) {
	p.Spec.Limits[0].Key = []v1alpha1.KeySource{{Header: &v1alpha1.HeaderKey{Name: "Host"}}}
	wantRefused(t, w.Create(t.Context(), p), map[string]string{
		"spec.limits[0].key[0].header.name": `Invalid value: "Host": must not be Host: use the key host instead`,
	})
}

func unsupported(t *testing.T, w *world, p *v1alpha1.RateLimitPolicy) {
	p.Spec.Limits[0].Priority = v1alpha1.PriorityCritical
	wantRefused(t, w.Create(t.Context(), p), map[string]string{
		"spec.limits[0].priority": "Forbidden: Critical is not supported by this release",
	})
}

func warned(t *testing.T, w *world, p *v1alpha1.RateLimitPolicy) {
	p.Spec.TargetRefs[0].Name = "cart"
	wantAdmitted(t, w, w.Create(t.Context(), p),
		`spec.targetRefs[0]: Service "cart" not found: create it or correct the name`)
}

func compared(t *testing.T, w *world, p *v1alpha1.RateLimitPolicy) {
	wantAdmitted(t, w, w.Create(t.Context(), p))
	w.publish(t, p, "a")
	p.Spec.Limits[0].Name = "some"
	wantAdmitted(t, w, w.Update(t.Context(), p), `spec.limits: limit "all", in force now, ends`)

	other := newPolicy(p.Namespace)
	other.Name = "b"
	wantAdmitted(t, w, w.Create(t.Context(), other),
		`spec.limits[0]: never refuses anything, since limit "all" of policy "a" counts the same requests and is at least as strict`)
}

func keeps(t *testing.T, w *world, p *v1alpha1.RateLimitPolicy) {
	wantAdmitted(t, w, w.Create(t.Context(), p))
	w.publish(t, p, "a")
	p.Spec.TargetRefs[0].Name = "cart"
	wantAdmitted(t, w, w.Update(t.Context(), p),
		`spec.targetRefs[0]: Service "cart" not found: create it or correct the name`,
		"spec: generation 1 of this policy stays in force until all targets are there")
}

func relabeled(t *testing.T, w *world, p *v1alpha1.RateLimitPolicy) {
	p.Spec.TargetRefs[0].Name = "cart"
	if err := w.Create(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	w.warnings.take()
	p.Labels = map[string]string{"team": "shop"}
	wantAdmitted(t, w, w.Update(t.Context(), p))
}

func emptyHeaders(t *testing.T, w *world, p *v1alpha1.RateLimitPolicy) {
	p.Spec.Response = &v1alpha1.Response{Headers: []v1alpha1.HeaderFormat{}}
	wantAdmitted(t, w, w.Create(t.Context(), p))
	var stored v1alpha1.RateLimitPolicy
	if err := w.Get(t.Context(), client.ObjectKeyFromObject(p), &stored); err != nil {
		t.Fatal(err)
	}
	want := &v1alpha1.Response{
		StatusCode: new(int32(429)), Headers: []v1alpha1.HeaderFormat{}, Body: &v1alpha1.ResponseBody{Type: v1alpha1.BodyProblem},
	}
	if diff := cmp.Diff(want, stored.Spec.Response); diff != "" {
		t.Errorf("response (-want +got):\n%s", diff)
	}
}

func storeAway(t *testing.T, w *world, p *v1alpha1.RateLimitPolicy) {
	w.redis.Kill()
	began := time.Now()
	p.Spec.TargetRefs[0].Name = "cart"
	wantAdmitted(t, w, w.Create(t.Context(), p),
		`spec.targetRefs[0]: Service "cart" not found: create it or correct the name`,
		"the config store can't be reached: what is in force stays so until it is back")
	t.Logf("it took %s", time.Since(began))
	if err := w.redis.Restart(); err != nil {
		t.Fatal(err)
	}
}

// publish publishes a policy's limit, as the manager's leader would.
func (w *world) publish(t *testing.T, p *v1alpha1.RateLimitPolicy, name string) {
	t.Helper()
	epoch, err := w.publisher.Claim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	revision := configstore.Revision{Epoch: epoch, Number: 1}
	published := match.Policy{
		Namespace: p.Namespace, Name: name, Generation: p.Generation,
		Targets: []match.Target{{ID: "Service/checkout", Pods: match.Selector{MatchLabels: map[string]string{"app": "checkout"}}}},
		Limits:  []match.Limit{{Name: "all", Limit: limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 100, Window: time.Minute, Burst: 100}}},
	}
	err = w.publisher.Publish(t.Context(), configstore.Snapshot{
		Namespace: p.Namespace, Revision: revision,
		Policies: []configstore.Policy{{Policy: published, UID: string(p.UID), Since: revision}},
	})
	if err != nil {
		t.Fatal(err)
	}
}

func wantAdmitted(t *testing.T, w *world, err error, warnings ...string) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(warnings, w.warnings.take()); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

// wantRefused wants an error that has just these messages, by their fields.
func wantRefused(t *testing.T, err error, want map[string]string) {
	t.Helper()
	var status apierrors.APIStatus
	if !apierrors.IsInvalid(err) || !errors.As(err, &status) {
		t.Fatalf("got error %v, want a refusal", err)
	}
	got := map[string]string{}
	for _, cause := range status.Status().Details.Causes {
		got[cause.Field] = cause.Message
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("causes (-want +got):\n%s", diff)
	}
}

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/test/playground"
)

// arrival is the longest that a change may take from kubectl to every sidecar.
const arrival = 2 * time.Second

func TestThePathOfAPolicy(t *testing.T) {
	const name = "path"
	apply(t, name, `{targetRefs: [{group: "", kind: Service, name: checkout, sectionName: http}],
		limits: [{name: per-key, key: [{header: {name: x-api-key}}], strategy: {fixedWindow: {requests: 10, window: 24h}}}]}`)
	applied := time.Now()
	p := awaitReady(t, name)
	t.Logf("enforced by every sidecar, and said so on the object, %s after kubectl was done", time.Since(applied).Round(time.Millisecond))

	t.Run("each key has a budget of its own, shared by the sidecars", func(t *testing.T) {
		for _, key := range []string{"alice", "bob"} {
			if diff := cmp.Diff(playground.Tally{Allowed: 10, Refused: 30}, send(t, 4, 10, key)); diff != "" {
				t.Errorf("answers to %s (-want +got):\n%s", key, diff)
			}
		}
	})

	t.Run("a refusal says which limit refused and how long to wait", func(t *testing.T) {
		r, err := playground.Get(t.Context(), weir.Sidecars[0].URL, "alice")
		if err != nil {
			t.Fatal(err)
		}
		if r.Status != http.StatusTooManyRequests || r.Header.Get("Retry-After") == "" || !strings.Contains(r.Body, name) || !strings.Contains(r.Body, "per-key") {
			t.Errorf("got %+v", r)
		}
	})

	t.Run("the counts come up onto the object", func(t *testing.T) {
		p = await(t, name, func(p *v1alpha1.RateLimitPolicy) bool {
			return len(p.Status.Limits) == 1 && p.Status.Limits[0].Denied == 61
		})
		want := v1alpha1.RateLimitPolicyStatus{
			ObservedGeneration: 1,
			Target:             "Service/checkout:http",
			Summary:            "10/24h fixed per x-api-key",
			Enforcers:          &v1alpha1.Enforcers{Expected: sidecars, Current: sidecars},
			Limits:             []v1alpha1.LimitStatus{{Name: "per-key", Allowed: 20, Denied: 61, CurrentRequests: 10}},
		}
		if diff := cmp.Diff(want, p.Status, cmpopts.IgnoreFields(v1alpha1.RateLimitPolicyStatus{}, "Revision", "Conditions")); diff != "" {
			t.Errorf("status (-want +got):\n%s", diff)
		}
		for _, c := range p.Status.Conditions {
			if c.Status != "True" || c.ObservedGeneration != p.Generation {
				t.Errorf("condition %+v", c)
			}
		}
	})

	t.Run("kubectl shows it at a glance", func(t *testing.T) {
		out, err := weir.Kubectl(t.Context(), "get", "weirpolicy", "--namespace", playground.Namespace, name, "--no-headers")
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Fields(out)
		want := []string{name, "Service/checkout:http", "10/24h", "fixed", "per", "x-api-key", "Enforce", "True", "Ready"}
		if diff := cmp.Diff(want, got[:min(len(got), len(want))]); diff != "" {
			t.Errorf("columns (-want +got):\n%s", diff)
		}
	})

	t.Run("events say what has happened", func(t *testing.T) {
		eventually(t, patience, "events for publication and enforcement", func() bool {
			out, err := weir.Kubectl(t.Context(), "get", "events.events.k8s.io", "--namespace", playground.Namespace,
				"--output", "jsonpath={range .items[?(@.regarding.name=='"+name+"')]}{.reason} {end}")
			return err == nil && strings.Contains(out, "Programmed") && strings.Contains(out, "Enforced")
		})
	})

	t.Run("an edit reaches every sidecar in under 2 s, and keeps the counts", func(t *testing.T) {
		edit(t, name, `{targetRefs: [{group: "", kind: Service, name: checkout, sectionName: http}],
			limits: [{name: per-key, key: [{header: {name: x-api-key}}], strategy: {fixedWindow: {requests: 15, window: 24h}}}]}`)
		for _, s := range weir.Sidecars {
			eventually(t, arrival, "the edit arrives", func() bool { return enforced(t, s, name) == 15 })
		}
		if diff := cmp.Diff(playground.Tally{Allowed: 5, Refused: 15}, send(t, 4, 5, "alice")); diff != "" {
			t.Errorf("answers to alice (-want +got):\n%s", diff)
		}
	})

	t.Run("deletion lifts the limit in under 2 s", func(t *testing.T) {
		if _, err := weir.Kubectl(t.Context(), "delete", "weirpolicy", "--namespace", playground.Namespace, name); err != nil {
			t.Fatal(err)
		}
		for _, s := range weir.Sidecars {
			eventually(t, arrival, "the limit is lifted", func() bool {
				r, err := playground.Get(t.Context(), s.URL, "alice")
				return err == nil && r.Status == http.StatusOK
			})
		}
	})
}

func TestABadPolicyIsRefusedAtApplyWithTheFieldsPath(t *testing.T) {
	const limit = `{name: a, strategy: {tokenBucket: {requests: 1, window: 1s}}}`
	for name, test := range map[string]struct{ spec, path string }{
		"burst below 1": {
			`{selector: {}, limits: [{name: a, strategy: {tokenBucket: {requests: 1, window: 1s, burst: 0}}}]}`,
			"spec.limits[0].strategy.tokenBucket.burst",
		},
		"window 0s": {
			`{selector: {}, limits: [{name: a, strategy: {tokenBucket: {requests: 1, window: "0s"}}}]}`,
			"spec.limits[0].strategy.tokenBucket.window",
		},
		"two limits of one name": {
			`{selector: {}, limits: [` + limit + `,` + limit + `]}`,
			"spec.limits[1]",
		},
		"selector and targetRefs": {
			`{selector: {}, targetRefs: [{group: "", kind: Service, name: checkout}], limits: [` + limit + `]}`,
			"spec.targetRefs",
		},
		"an unknown strategy": {
			`{selector: {}, limits: [{name: a, strategy: {magic: {requests: 1}}}]}`,
			"spec.limits[0].strategy.magic",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := weir.KubectlWith(t.Context(), manifest("bad", test.spec), "apply", "-f", "-")
			if err == nil || !strings.Contains(err.Error(), test.path) {
				t.Errorf("want a refusal that names %s, got: %v", test.path, err)
			}
		})
	}
}

func TestABadEditKeepsTheLastAcceptedSpec(t *testing.T) {
	const name = "kept"
	apply(t, name, `{selector: {}, limits: [{name: all, strategy: {fixedWindow: {requests: 10, window: 24h}}}]}`)
	awaitReady(t, name)
	if diff := cmp.Diff(playground.Tally{Allowed: 5}, send(t, 1, 5, "")); diff != "" {
		t.Fatalf("answers before the edit (-want +got):\n%s", diff)
	}

	edit(t, name, `{selector: {}, limits: [{name: all, strategy: {adaptive: {minRequests: 1, maxRequests: 100, window: 1s}}}]}`)
	refusedAndKept := func(p *v1alpha1.RateLimitPolicy) bool {
		accepted := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionAccepted)
		programmed := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionProgrammed)
		return p.Status.ObservedGeneration == 2 &&
			accepted != nil && accepted.Reason == v1alpha1.ReasonUnsupported &&
			programmed != nil && programmed.Reason == v1alpha1.ReasonLastAcceptedKept &&
			meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionStalled)
	}
	p := await(t, name, refusedAndKept)
	t.Log(meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionAccepted).Message)
	t.Log(meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionProgrammed).Message)
	if diff := cmp.Diff(playground.Tally{Allowed: 5, Refused: 5}, send(t, 2, 5, "")); diff != "" {
		t.Errorf("answers after the edit (-want +got):\n%s", diff)
	}

	// Nothing but the ControllerRevision can tell what was accepted now.
	if err := weir.Manager.Stop(); err != nil {
		t.Error(err)
	}
	flush(t)
	if err := weir.Manager.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "the manager publishes the last accepted spec again", func() bool { return stored(t, name) == 10 })
	await(t, name, refusedAndKept)
	admitsExactly(t, 10)

	edit(t, name, `{selector: {}, limits: [{name: all, strategy: {fixedWindow: {requests: 12, window: 24h}}}]}`)
	awaitReady(t, name)
	if diff := cmp.Diff(playground.Tally{Allowed: 2, Refused: 8}, send(t, 2, 5, "")); diff != "" {
		t.Errorf("answers after the mended edit (-want +got):\n%s", diff)
	}
}

// later is a Service that is not there from the start.
const later = `apiVersion: v1
kind: Service
metadata: {name: later, namespace: shop}
spec: {selector: {app: checkout}, ports: [{port: 80}]}
`

func TestAMissingTargetIsToldAndComesIntoForceWhenItIsThere(t *testing.T) {
	const name = "early"
	apply(t, name, `{targetRefs: [{group: "", kind: Service, name: later}], limits: [{name: all, strategy: {fixedWindow: {requests: 3, window: 24h}}}]}`)
	await(t, name, func(p *v1alpha1.RateLimitPolicy) bool {
		c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
		return c != nil && c.Reason == v1alpha1.ReasonTargetNotFound
	})
	if _, err := weir.KubectlWith(t.Context(), later, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	awaitReady(t, name)
	if diff := cmp.Diff(playground.Tally{Allowed: 3, Refused: 7}, send(t, 2, 5, "")); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
}

func TestShadowRefusesNobodyAndCountsWhomItWould(t *testing.T) {
	const name = "shadow"
	apply(t, name, `{selector: {}, enforcement: Shadow, limits: [{name: all, strategy: {fixedWindow: {requests: 10, window: 24h}}}]}`)
	awaitReady(t, name)
	if diff := cmp.Diff(playground.Tally{Allowed: 40}, send(t, 4, 10, "")); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	p := await(t, name, func(p *v1alpha1.RateLimitPolicy) bool {
		return len(p.Status.Limits) == 1 && p.Status.Limits[0].ShadowDenied == 30
	})
	want := []v1alpha1.LimitStatus{{Name: "all", Allowed: 10, ShadowDenied: 30, CurrentRequests: 10}}
	if diff := cmp.Diff(want, p.Status.Limits); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
}

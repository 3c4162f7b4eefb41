// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/test/playground"
)

// several is the spec of a policy that refuses nothing.
const several = `{selector: {}, limits: [{name: all, strategy: {fixedWindow: {requests: 100000, window: 24h}}}]}`

// applyMany applies policies of these names, all at once, and has them deleted when the test ends.
func applyMany(t *testing.T, names ...string) {
	t.Helper()
	t.Cleanup(func() { removeMany(t, names...) })
	var manifests []string
	for _, name := range names {
		manifests = append(manifests, manifest(name, several))
	}
	if _, err := weir.KubectlWith(t.Context(), strings.Join(manifests, "---\n"), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	awaitPublished(t, len(names))
}

// removeMany deletes policies and waits until none is published, with the confirmation that this takes.
func removeMany(t *testing.T, names ...string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	for _, args := range [][]string{
		{"annotate", "namespace", playground.Namespace, v1alpha1.AnnotationConfirmRemoval + "=true", "--overwrite"},
		append([]string{"delete", "ratelimitpolicies", "--namespace", playground.Namespace, "--ignore-not-found"}, names...),
	} {
		if _, err := weir.Kubectl(ctx, args...); err != nil {
			t.Error(err)
		}
	}
	awaitPublished(t, 0)
	if _, err := weir.Kubectl(ctx, "annotate", "namespace", playground.Namespace, v1alpha1.AnnotationConfirmRemoval+"-"); err != nil {
		t.Error(err)
	}
}

// awaitPublished waits until so many policies are published.
func awaitPublished(t *testing.T, policies int) {
	t.Helper()
	client := weir.Redis.Client(t)
	eventually(t, patience, fmt.Sprintf("%d policies are published", policies), func() bool {
		s, err := published(context.WithoutCancel(t.Context()), client)
		return err == nil && len(s.Policies) == policies
	})
}

func numbered(prefix string, n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	return names
}

func TestTheAPIServerIsAway(t *testing.T) {
	exhaust(t, "outage")
	g, m := behindGate(t)
	start(t, m)
	apply(t, "before", several)
	eventually(t, patience, "the manager behind the gate leads", func() bool { return stored(t, "before") > 0 })
	changed, back := refusedThroughout(t), neverShrinks(t, 2)
	began := time.Now()
	g.set(down)
	// Without the API server it can't keep the lease.
	select {
	case <-m.Ended():
	case <-time.After(patience):
		t.Fatal("the manager goes on without the lease")
	}
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "it asks again", func() bool { return g.hits.Load() >= 3 })
	away := time.Since(began)
	g.set(nil)
	began = time.Now()
	apply(t, "after", several)
	eventually(t, patience, "a change is published", func() bool {
		restart(t, m)
		return stored(t, "after") > 0
	})
	tell(t, "K4", "the manager is back <= 30 s after the API server, 0 decisions and 0 snapshots lost",
		"%s (away for %s), %s and %s", seconds(time.Since(began)), seconds(away), changed(), back())
}

// restart starts a manager that has ended by itself, as the kubelet would.
func restart(t *testing.T, m *playground.Manager) {
	t.Helper()
	select {
	case <-m.Ended():
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
	default:
	}
}

func TestWatchesOfTheAPIServerEnd(t *testing.T) {
	names := numbered("listed", 5)
	applyMany(t, names...)
	g, m := behindGate(t)
	start(t, m)
	back := neverShrinks(t, len(names))
	eventually(t, patience, "the manager behind the gate leads", func() bool {
		edit(t, names[0], strings.Replace(several, "100000", "100001", 1))
		return stored(t, names[0]) == 100001
	})
	for i, fault := range []fault{nil, expired} {
		g.set(fault) // Which closes all watches.
		if fault != nil {
			eventually(t, patience, "watches have come to an end, and lists were asked for anew", func() bool { return g.hits.Load() >= 3 })
		}
		g.set(nil)
		want := int64(200000 + i)
		edit(t, names[1], strings.Replace(several, "100000", fmt.Sprint(want), 1))
		eventually(t, patience, "a change is published", func() bool { return stored(t, names[1]) == want })
	}
	tell(t, "K5", "watches closed, expired, and listed slowly: 0 snapshots with fewer policies", "%s", back())
}

func TestPoliciesThatCannotBeListedStayPublished(t *testing.T) {
	names := numbered("unseen", 12)
	applyMany(t, names...)
	g, m := behindGate(t)
	token := metricsReader(t)

	t.Run("K6: the right to read them was revoked", func(t *testing.T) {
		g.set(forbidden)
		start(t, m)
		back := neverShrinks(t, len(names))
		eventually(t, patience, "it has asked again and again", func() bool { return g.hits.Load() >= 5 })
		ready, err := playground.Get(t.Context(), m.Health+"/readyz", "")
		if err != nil || ready.Status == http.StatusOK {
			t.Errorf("it is ready: %+v (%v)", ready, err)
		}
		tell(t, "K6", "nothing is published while policies may not be read, the manager is not ready", "%s snapshots with less, it answers %d", back(), ready.Status)
		if err := m.Stop(); err != nil {
			t.Error(err)
		}
	})

	t.Run("K6: the list is empty", func(t *testing.T) {
		g.set(empty)
		start(t, m)
		back := neverShrinks(t, len(names))
		eventually(t, patience, "the metric tells that all removals are withheld", func() bool {
			return strings.Contains(metricsOf(t, m, token), fmt.Sprintf("weir_withheld_removals{namespace=%q} %d\n", playground.Namespace, len(names)))
		})
		eventually(t, patience, "so does an event", func() bool {
			out, err := weir.Kubectl(t.Context(), "get", "events.events.k8s.io", "--field-selector", "reason=RemovalWithheld", "--output", "name")
			return err == nil && out != ""
		})
		tell(t, "K6", "an empty list at the start removes nothing, metric and event say so", "%s snapshots with less, %d withheld", back(), len(names))
	})

	t.Run("they are followed again once they can be seen", func(t *testing.T) {
		g.set(nil)
		edit(t, names[0], strings.Replace(several, "100000", "300000", 1))
		eventually(t, patience, "a change is published", func() bool { return stored(t, names[0]) == 300000 })
		awaitPublished(t, len(names))
		eventually(t, patience, "nothing is withheld any more", func() bool {
			return !strings.Contains(metricsOf(t, m, token), "weir_withheld_removals{")
		})
	})
}

// metricsReader gives the token of a service account that may read metrics.
func metricsReader(t *testing.T) string {
	t.Helper()
	for _, args := range [][]string{
		{"create", "serviceaccount", "--namespace", "default", "prometheus"},
		{"create", "clusterrolebinding", "prometheus", "--clusterrole", "weir-metrics-reader", "--serviceaccount", "default:prometheus"},
	} {
		if _, err := weir.Kubectl(t.Context(), args...); err != nil && !strings.Contains(err.Error(), "already exists") {
			t.Fatal(err)
		}
	}
	token, err := weir.Kubectl(t.Context(), "create", "token", "--namespace", "default", "prometheus")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(token)
}

// insecure asks a manager whose certificate is its own, or is for a Service's name.
var insecure = &http.Client{
	Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
	Timeout:   10 * time.Second,
}

// metricsOf gives a manager's metrics, or nothing.
func metricsOf(t *testing.T, m *playground.Manager, token string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, m.Metrics+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := insecure.Do(request)
	if err != nil {
		return ""
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return ""
	}
	return string(body)
}

func TestPoliciesGoWithoutTheStoreAndTheManager(t *testing.T) {
	const name = "unfinished"
	apply(t, name, several)
	awaitReady(t, name)
	killRedis(t)
	began := time.Now()
	if _, err := weir.Kubectl(t.Context(), "delete", "weirpolicy", "--namespace", playground.Namespace, name, "--timeout=30s"); err != nil {
		t.Error(err)
	}
	withoutStore := time.Since(began)
	if err := weir.Redis.Restart(); err != nil {
		t.Fatal(err)
	}
	apply(t, name, several)
	awaitReady(t, name)
	stopManager(t)
	began = time.Now()
	out, err := weir.Kubectl(t.Context(), "delete", "ratelimitpolicies,services,deployments,controllerrevisions", "--all", "--namespace", playground.Namespace, "--dry-run=server", "--output", "name")
	if err != nil {
		t.Error(err)
	}
	finalizers, err := weir.Kubectl(t.Context(), "get", "ratelimitpolicies,controllerrevisions", "--namespace", playground.Namespace, "--output", "jsonpath={.items[*].metadata.finalizers}")
	if err != nil || finalizers != "" {
		t.Errorf("finalizers are %q (%v), want none", finalizers, err)
	}
	if _, err := weir.Kubectl(t.Context(), "delete", "weirpolicy", "--namespace", playground.Namespace, name, "--timeout=30s"); err != nil {
		t.Error(err)
	}
	tell(t, "K9", "a policy is gone <= 60 s without Redis, at once without the manager; no finalizers", "%s; %s, of %d objects none",
		seconds(withoutStore), seconds(time.Since(began)), len(strings.Fields(out)))
}

func TestAPolicyThatNoWebhookHasSeenIsRefusedByTheController(t *testing.T) {
	const good, bad = "good", "bad"
	apply(t, good, several)
	awaitReady(t, good)
	// The playground's API server asks no webhook. Regular expressions are nothing that its own schema looks into.
	apply(t, bad, `{selector: {}, limits: [{name: all, when: [{paths: [{type: RegularExpression, value: "("}]}], strategy: {fixedWindow: {requests: 1, window: 24h}}}]}`)
	p := await(t, bad, func(p *v1alpha1.RateLimitPolicy) bool {
		return meta.IsStatusConditionFalse(p.Status.Conditions, v1alpha1.ConditionAccepted)
	})
	c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionAccepted)
	edit(t, good, strings.Replace(several, "100000", "100001", 1))
	awaitReady(t, good)
	for _, s := range weir.Sidecars {
		if diff := cmp.Diff([]int64{100001, 0}, []int64{enforced(t, s, good), enforced(t, s, bad)}); diff != "" {
			t.Errorf("enforced requests of the good policy and the bad (-want +got):\n%s", diff)
		}
	}
	tell(t, "K10", "Accepted=False with a reason, other policies unaffected", "%s: %s; the other is edited, and ready", c.Reason, c.Message)
}

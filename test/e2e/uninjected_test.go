// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// reported is the longest that a pod may be without its sidecar before that is told.
const reported = 30 * time.Second

// admission is how long the API server waits for an answer about a pod.
const admission = 2 * time.Second

func TestPodsThatStartWithoutAWebhookAreTold(t *testing.T) {
	const namespace = "unanswered"
	pods := filepath.Join(weir.ControlPlane.Root, "config", "webhook", "pods.yaml")
	kubectl(t, "create", "namespace", namespace)
	kubectl(t, "label", "namespace", namespace, "ratelimit.weir.dev/inject=enabled")
	t.Cleanup(func() { kubectl(t, "delete", "-f", pods, "--ignore-not-found") })
	// Its Service leads to no manager here.
	kubectl(t, "apply", "-f", pods)

	t.Run("K15: failurePolicy Ignore", func(t *testing.T) {
		began := time.Now()
		eventually(t, patience, "a pod starts", func() bool {
			began = time.Now()
			_, err := weir.KubectlWith(t.Context(), pod(namespace, "ignored"), "create", "-f", "-")
			return err == nil // The API server may not yet know that pods of new namespaces have a service account.
		})
		started := time.Since(began)
		if started > 2*admission {
			t.Errorf("the pod started after %s", started)
		}
		token := metricsReader(t)
		eventually(t, reported, "the metric tells", func() bool {
			return strings.Contains(metricsOf(t, weir.Manager, token), fmt.Sprintf("weir_pods_without_sidecar{namespace=%q,reason=\"NotInjected\"} 1\n", namespace))
		})
		eventually(t, reported, "an event of the pod tells", func() bool {
			out, err := weir.Kubectl(t.Context(), "get", "events.events.k8s.io", "--namespace", namespace, "--output", "jsonpath={.items[*].regarding.name} {.items[*].reason}")
			return err == nil && out == "ignored NotInjected"
		})
		tell(t, "K15", "without a webhook a pod starts, after 2 s at most, and is reported <= 30 s", "%s, %s", seconds(started), seconds(time.Since(began)))
		kubectl(t, "delete", "pod", "--namespace", namespace, "ignored", "--grace-period=0", "--force")
	})

	t.Run("K15: failurePolicy Fail", func(t *testing.T) {
		kubectl(t, "patch", "-f", pods, "--type=json", "--patch", `[{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Fail"}]`)
		var complaint string
		eventually(t, patience, "a pod is refused", func() bool {
			_, err := weir.KubectlWith(t.Context(), pod(namespace, "refused"), "create", "--dry-run=server", "-f", "-")
			if err == nil {
				return false
			}
			complaint = err.Error()
			return strings.Contains(complaint, `failed calling webhook "namespaces.inject.ratelimit.weir.dev"`)
		})
		_, message, _ := strings.Cut(complaint, "Internal error occurred: ")
		tell(t, "K15", "with failurePolicy Fail a clear message", "%s", message)
	})
}

func pod(namespace, name string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: %s}\nspec: {containers: [{name: app, image: example.invalid/app}]}\n", name, namespace)
}

// kubectl is for what has to succeed.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := weir.Kubectl(context.WithoutCancel(t.Context()), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

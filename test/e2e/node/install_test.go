// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What docs/injection.md tells a user to do, on a cluster with nothing but the chart.
func TestFromInstallToLimitedTraffic(t *testing.T) {
	release(t)
	makeNamespace(t, "market")
	deployCheckout(t, "market")

	t.Run("pods of a namespace that didn't ask for the sidecar have none", func(t *testing.T) {
		for _, pod := range podsOf(t, "market", "checkout") {
			if injected(&pod) {
				t.Errorf("%s has it", pod.Name)
			}
		}
	})

	t.Run("with the label, and a restart, both replicas have it", func(t *testing.T) {
		kubectl(t, "label", "namespace", "market", "ratelimit.weir.dev/inject=enabled")
		awaitCredentials(t, "market")
		restart(t, "market", "checkout")
		pods := podsOf(t, "market", "checkout")
		for _, pod := range pods {
			if !injected(&pod) {
				t.Errorf("%s hasn't", pod.Name)
			}
		}
		if len(pods) != 2 {
			t.Errorf("there are %d pods", len(pods))
		}
	})

	t.Run("both replicas admit what one budget has, and not one request more", func(t *testing.T) {
		apply(t, "market", "total", "{name: all, strategy: {fixedWindow: {requests: 100, window: 8784h}}}")
		answers := get(t, "market", "http://checkout/", "150")
		admitted := regexp.MustCompile(`(?m)^200 hello from (checkout-\w+-\w+)$`).FindAllStringSubmatch(answers, -1)
		refused := regexp.MustCompile(`(?m)^429 .*"violated-policies":\["total/all"\]`).FindAllString(answers, -1)
		if len(admitted) != 100 || len(refused) != 50 {
			t.Errorf("%d requests were admitted, want 100, and %d refused, want 50:\n%s", len(admitted), len(refused), answers)
		}
		by := map[string]bool{}
		for _, match := range admitted {
			by[match[1]] = true
		}
		// That one replica gets all of 100 is as likely as 99 heads in a row.
		if len(by) != 2 {
			t.Errorf("they were admitted by %v", by)
		}
		report(t, "one budget", "100 of 150 requests admitted, by 2 replicas", "%d, by %d", len(admitted), len(by))
	})

	t.Run("the object tells of it", func(t *testing.T) {
		until(t, "the status has the figures", func() bool {
			figures := kubectl(t, "--namespace=market", "get", "weirpolicy", "total",
				"--output=jsonpath={.status.limits[0].allowed} {.status.limits[0].denied} {.status.enforcers.current}/{.status.enforcers.expected}")
			return figures == "100 50 2/2"
		})
	})

	t.Run("the policy that helm tells of is taken", func(t *testing.T) {
		notes, err := os.ReadFile(filepath.Join(chart, "templates", "NOTES.txt"))
		if err != nil {
			t.Fatal(err)
		}
		_, policy, _ := strings.Cut(string(notes), "<<END\n")
		policy, _, told := strings.Cut(policy, "    END\n")
		if !told {
			t.Fatalf("there is none in\n%s", notes)
		}
		policy = strings.NewReplacer("NAMESPACE", "market", "SERVICE", "checkout").Replace(policy)
		if _, err := cluster.Kubectl(t.Context(), policy, "apply", "--dry-run=server", "--filename=-"); err != nil {
			t.Error(err)
		}
	})

	t.Run("kubectl describe shows events and conditions", func(t *testing.T) {
		told := kubectl(t, "--namespace=market", "describe", "weirpolicy", "total")
		for _, part := range []string{"Generation 1 is enforced by 2 of 2 enforcers", "Published"} {
			if !strings.Contains(told, part) {
				t.Errorf("%q is not in\n%s", part, told)
			}
		}
	})
}

func TestEverySampleIsEnforced(t *testing.T) {
	release(t)
	optIn(t, "shop")
	deployCheckout(t, "shop")
	kubectl(t, "apply", "--kustomize="+root+"/config/samples")
	names := strings.Fields(kubectl(t, "--namespace=shop", "get", "weirpolicy", "--output=jsonpath={.items[*].metadata.name}"))
	if len(names) == 0 {
		t.Fatal("there are no samples")
	}
	for _, name := range names {
		awaitEnforced(t, "shop", name)
	}
	report(t, "samples", "each enforced by 2 of 2", "%d, each enforced by 2 of 2", len(names))
}

// get sends requests from a namespace's client, each on a connection of its own.
func get(t *testing.T, namespace, url, times string) string {
	t.Helper()
	return kubectl(t, "--namespace="+namespace, "exec", "client", "--", "/workload", "get", url, times)
}

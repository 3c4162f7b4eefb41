// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// previous is the commit that users upgrade from in this test.
const previous = "6f8acfb55017ba7458974aae9cb89bf1acd02410"

func TestUpgradeRollbackAndUninstallBreakNothing(t *testing.T) {
	withdraw(t)
	tree := previousTree(t)
	archives, err := buildImages(t.Context(), tree, t.TempDir(), "previous", "weir-manager", "weir-sidecar")
	if err != nil {
		t.Fatal(err)
	}
	for _, archive := range archives {
		if err := cluster.LoadFile(t.Context(), archive); err != nil {
			t.Fatal(err)
		}
	}
	kubectl(t, "create", "namespace", system)
	t.Cleanup(func() { withdraw(t) })
	kubectl(t, "apply", "--namespace="+system, "--filename=testdata/redis.yaml")
	kubectl(t, "--namespace="+system, "wait", "--for=condition=Ready", "pod/redis", "--timeout="+patience.String())
	values := func(tag string) string {
		return "--set=redis.url=redis://redis." + system + ":6379,image.tag=" + tag + ",sidecar.image.tag=" + tag
	}
	helm(t, "install", "weir", filepath.Join(tree, "charts", "weir"), values("previous"))
	released = true
	makeNamespace(t, "upgrade", optsIn)
	deployCheckout(t, "upgrade")
	apply(t, "upgrade", "checkout", generous+", "+spent(10))
	spend(t, 10)
	before := identities(t)

	t.Run("an upgrade leaves pods and traffic alone", func(t *testing.T) {
		stop := load(t, "upgrade", 50)
		helm(t, "upgrade", "weir", chart, values("e2e"))
		awaitEnforced(t, "upgrade", "checkout")
		sent, failed, slowest := unharmed(t, stop())
		if diff := cmp.Diff(before, identities(t)); diff != "" {
			t.Errorf("pods and restarts (-before +after):\n%s", diff)
		}
		report(t, "upgrade", "0 failed requests, and the same pods", "%d of %d, the slowest %s", failed, sent, slowest.Round(time.Millisecond))
	})

	t.Run("former sidecars take what the new manager publishes", func(t *testing.T) {
		apply(t, "upgrade", "checkout", generous+", "+spent(12))
		report(t, "K20", "a limit raised by 2 to admit 2, with the new manager and former sidecars", "%d", spend(t, 2))
	})

	t.Run("new sidecars count on where the former ones were", func(t *testing.T) {
		// The former managers may be asked for as long as they are there.
		until(t, "they are gone", func() bool { return len(managers(t, newClient(t))) == 2 })
		restart(t, "upgrade", "checkout")
		awaitEnforced(t, "upgrade", "checkout")
		report(t, "K20", "what is spent to admit 0, with new sidecars", "%d", spend(t, 0))
	})

	t.Run("so do they under the former manager, after a rollback", func(t *testing.T) {
		stop := load(t, "upgrade", 50)
		helm(t, "rollback", "weir", "1")
		apply(t, "upgrade", "checkout", generous+", "+spent(15))
		admitted := spend(t, 3)
		sent, failed, _ := unharmed(t, stop())
		report(t, "K20", "a limit raised by 3 to admit 3, with the former manager and new sidecars, and 0 failed requests", "%d, and %d of %d", admitted, failed, sent)
	})

	t.Run("uninstalled, it leaves policies and pods as they are, and no webhook", func(t *testing.T) {
		spec := func() string {
			return kubectl(t, "--namespace=upgrade", "get", "weirpolicy", "checkout", "--output=jsonpath={.spec}")
		}
		was := spec()
		stop := load(t, "upgrade", 50)
		helm(t, "uninstall", "weir")
		released = false
		if diff := cmp.Diff(was, spec()); diff != "" {
			t.Errorf("the policy (-before +after):\n%s", diff)
		}
		left := kubectl(t, "get", "mutatingwebhookconfigurations,validatingwebhookconfigurations", "--output=name")
		if strings.Contains(left, "weir") {
			t.Errorf("webhooks are left:\n%s", left)
		}
		spend(t, 0)
		restart(t, "upgrade", "checkout")
		awaitPods(t, "upgrade", 2)
		sent, failed, _ := unharmed(t, stop())
		report(t, "uninstall", "0 failed requests, while new pods start", "%d of %d", failed, sent)
	})
	kubectl(t, "delete", "namespace", system, "--timeout="+patience.String())
}

// spent is a limit on some paths, for as long as a test may run.
func spent(requests int) string {
	return fmt.Sprintf("{name: spent, when: [{paths: [{type: Prefix, value: /spent}]}], strategy: {fixedWindow: {requests: %d, window: 8784h}}}", requests)
}

// previousTree gives the sources of the previous version.
func previousTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	archive := filepath.Join(dir, "tree.tar")
	for _, args := range [][]string{
		// Git may not trust the folder that CI cloned into.
		{"git", "-c", "safe.directory=*", "-C", root, "archive", "--output=" + archive, previous},
		{"tar", "--extract", "--directory=" + dir, "--file=" + archive},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s, of a clone with its history: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	return dir
}

// spend spends the limit, demands that it had so much left, and gives how much that was.
func spend(t *testing.T, want int) (admitted int) {
	t.Helper()
	answers := get(t, "upgrade", "http://checkout/spent", "20")
	if admitted = strings.Count(answers, "200 hello"); admitted != want {
		t.Errorf("%d requests are admitted, want %d:\n%s", admitted, want, answers)
	}
	return admitted
}

// identities tells which pods there are and how often their containers were restarted.
func identities(t *testing.T) map[string]int32 {
	t.Helper()
	restarts := map[string]int32{}
	for _, pod := range podsOf(t, "upgrade", "checkout") {
		restarts[string(pod.UID)] = pod.Status.ContainerStatuses[0].RestartCount + sidecarOf(&pod).RestartCount
	}
	return restarts
}

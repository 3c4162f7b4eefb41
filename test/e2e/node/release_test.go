// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/weir-dev/weir/api/v1alpha1"
)

// system is the namespace that Weir is installed in.
const system = "weir-system"

// chart is that of the working tree.
var chart = filepath.Join(root, "charts", "weir")

// released says that the chart is installed. The first test that wants it has it installed for all that follow.
var released bool

// release has Weir installed as a user would.
func release(t *testing.T) {
	t.Helper()
	if released {
		return
	}
	helm(t, "install", "weir", chart, "--create-namespace", "--values=testdata/values.yaml")
	released = true
	awaitAdmission(t)
}

// awaitAdmission returns when the API server reaches a manager: kube-proxy follows a pod's readiness with a delay.
func awaitAdmission(t *testing.T) {
	t.Helper()
	awaitRollout(t, system, "weir-manager")
	c := newClient(t)
	until(t, "the managers are asked", func() bool { return c.Create(t.Context(), anyPolicy("default"), client.DryRunAll) == nil })
}

// withdraw has no Weir installed, and no pods left of it.
func withdraw(t *testing.T) {
	t.Helper()
	if !released {
		return
	}
	helm(t, "uninstall", "weir")
	released = false
	kubectl(t, "delete", "namespace", system, "--timeout="+patience.String())
}

var helmTool = sync.OnceValues(func() (string, error) {
	out, err := exec.Command(filepath.Join(root, "hack", "tool.sh"), "helm").Output()
	return strings.TrimSpace(string(out)), err
})

// helm runs helm on the release's namespace, and has it wait for what it does.
func helm(t *testing.T, args ...string) {
	t.Helper()
	tool, err := helmTool()
	if err != nil {
		t.Fatalf("hack/tool.sh helm: %v", err)
	}
	cmd := exec.Command(tool, append(args, "--namespace="+system, "--wait", "--timeout=3m")...)
	home := t.TempDir()
	cmd.Env = append(os.Environ(), "KUBECONFIG="+cluster.Kubeconfig,
		"HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("helm %s: %v\n%s%s", strings.Join(args, " "), err, out, describe(t, system))
	}
}

// describe tells of a namespace what may explain a failure.
func describe(t *testing.T, namespace string) string {
	t.Helper()
	var told strings.Builder
	for _, args := range [][]string{
		{"get", "pods", "--output=wide"},
		{"get", "events", "--sort-by=.lastTimestamp"},
	} {
		out, err := cluster.Kubectl(context.WithoutCancel(t.Context()), "", append(args, "--namespace="+namespace)...)
		told.WriteString(out)
		if err != nil {
			told.WriteString(err.Error())
		}
	}
	return told.String()
}

// optsIn is the label of a namespace whose pods get the sidecar.
const optsIn = "ratelimit.weir.dev/inject: enabled"

// optIn makes a namespace whose pods get the sidecar, until the test ends.
func optIn(t *testing.T, name string) {
	t.Helper()
	makeNamespace(t, name, optsIn)
	awaitCredentials(t, name)
}

// awaitCredentials returns when pods find in a namespace what the sidecar logs in with: a kubelet that doesn't looks
// again after a minute.
func awaitCredentials(t *testing.T, namespace string) {
	t.Helper()
	c := newClient(t)
	until(t, "there are credentials", func() bool {
		return c.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "weir-redis"}, &corev1.Secret{}) == nil
	})
}

// makeNamespace makes a namespace of the restricted profile. What is in it ends with the test, in its own time.
func makeNamespace(t *testing.T, name string, labels ...string) {
	t.Helper()
	labels = append(labels, "pod-security.kubernetes.io/enforce: restricted")
	_, err := cluster.Kubectl(t.Context(), "{apiVersion: v1, kind: Namespace, metadata: {name: "+name+", labels: {"+strings.Join(labels, ", ")+"}}}",
		"create", "--filename=-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(describe(t, name))
		}
		if _, err := cluster.Kubectl(context.WithoutCancel(t.Context()), "", "delete", "namespace", name, "--wait=false"); err != nil {
			t.Error(err)
		}
	})
}

// deployCheckout has the application and its client run in a namespace.
func deployCheckout(t *testing.T, namespace string) {
	t.Helper()
	kubectl(t, "apply", "--server-side", "--namespace="+namespace, "--filename=testdata/checkout.yaml")
	awaitRollout(t, namespace, "checkout")
	kubectl(t, "--namespace="+namespace, "wait", "--for=condition=Ready", "pod/client", "--timeout="+patience.String())
}

func awaitRollout(t *testing.T, namespace, deployment string) {
	t.Helper()
	kubectl(t, "--namespace="+namespace, "rollout", "status", "deployment/"+deployment, "--timeout="+patience.String())
}

// restart has all pods of a Deployment replaced, and returns when the new ones are available.
func restart(t *testing.T, namespace, deployment string) {
	t.Helper()
	kubectl(t, "--namespace="+namespace, "rollout", "restart", "deployment/"+deployment)
	awaitRollout(t, namespace, deployment)
}

// generous is a limit that counts every request and refuses none.
const generous = "{name: generous, strategy: {tokenBucket: {requests: 100000, window: 1s}}}"

// apply applies a policy with these limits on the checkout, and returns when both replicas enforce it.
func apply(t *testing.T, namespace, name, limits string) {
	t.Helper()
	_, err := cluster.Kubectl(t.Context(), `{apiVersion: ratelimit.weir.dev/v1alpha1, kind: RateLimitPolicy,
metadata: {name: `+name+`}, spec: {targetRefs: [{group: "", kind: Service, name: checkout, sectionName: http}],
limits: [`+limits+`]}}`, "apply", "--namespace="+namespace, "--filename=-")
	if err != nil {
		t.Fatal(err)
	}
	awaitEnforced(t, namespace, name)
}

// awaitEnforced returns when both replicas enforce a policy.
func awaitEnforced(t *testing.T, namespace, name string) {
	t.Helper()
	c := newClient(t)
	var p v1alpha1.RateLimitPolicy
	until(t, name+" is enforced by 2 of 2", func() bool {
		if err := c.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, &p); err != nil {
			t.Fatal(err)
		}
		for _, condition := range p.Status.Conditions {
			if condition.Type == v1alpha1.ConditionEnforced && condition.Status == "True" && condition.ObservedGeneration == p.Generation {
				return p.Status.Enforcers != nil && p.Status.Enforcers.Expected == 2 && p.Status.Enforcers.Current == 2
			}
		}
		return false
	})
}

// report says in one line what was to be and what was.
func report(t *testing.T, id, expected, format string, measured ...any) {
	t.Helper()
	t.Logf("%s (node): expected %s, measured %s", id, expected, fmt.Sprintf(format, measured...))
}

// until waits for something to come true.
func until(t *testing.T, what string, come func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !come(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func newClient(t *testing.T) client.Client {
	t.Helper()
	if err := v1alpha1.AddToScheme(scheme.Scheme); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(cluster.Config, client.Options{Scheme: scheme.Scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// podsOf gives the pods of an application that are not about to end.
func podsOf(t *testing.T, namespace, app string) []corev1.Pod {
	t.Helper()
	var list struct{ Items []corev1.Pod }
	out := kubectl(t, "--namespace="+namespace, "get", "pods", "--selector=app="+app, "--output=json")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	var lasting []corev1.Pod
	for i := range list.Items {
		if list.Items[i].DeletionTimestamp == nil {
			lasting = append(lasting, list.Items[i])
		}
	}
	return lasting
}

// injected says whether a pod has the sidecar.
func injected(pod *corev1.Pod) bool {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == "weir-sidecar" {
			return true
		}
	}
	return false
}

// sidecarOf gives the sidecar's status in a pod: zero before the kubelet has said anything of it.
func sidecarOf(pod *corev1.Pod) corev1.ContainerStatus {
	for _, status := range pod.Status.InitContainerStatuses {
		if status.Name == "weir-sidecar" {
			return status
		}
	}
	return corev1.ContainerStatus{}
}

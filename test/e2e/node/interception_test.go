// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/weir-dev/weir/api/v1alpha1"
)

// kinds are the probes of each kind, by the name of the pod that has it. Where nobody listens, the kubelet's client of
// gRPC goes on trying until its timeout.
var kinds = map[string]string{
	"http-by-name":   "httpGet: {path: /healthz, port: http}",
	"http-by-number": "httpGet: {path: /healthz, port: 8080}",
	"tcp":            "tcpSocket: {port: http}",
	"grpc":           "grpc: {port: 8080}",
	"exec":           "exec: {command: [/workload, check, http://127.0.0.1:8080/healthz]}",
}

// probed are a pod and its Service: NAME, PROBE and TARGET stand for what differs.
const probed = `
apiVersion: v1
kind: Pod
metadata:
  name: NAME
  labels: {app: NAME}
  # On a machine that is busy with other things the store may be slow to answer, and then requests are admitted.
  annotations: {ratelimit.weir.dev/decision-timeout: 1s}
spec:
  terminationGracePeriodSeconds: 1
  securityContext:
    runAsNonRoot: true
    seccompProfile: {type: RuntimeDefault}
  containers:
  - name: app
    image: weir.test/workload:dev
    args: [serve]
    ports:
    - {name: http, containerPort: 8080}
    startupProbe: {PROBE, periodSeconds: 1, failureThreshold: 60}
    livenessProbe: {PROBE, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 2}
    readinessProbe: {PROBE, periodSeconds: 1, timeoutSeconds: 10}
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
---
apiVersion: v1
kind: Service
metadata:
  name: NAME
spec:
  selector: {app: NAME}
  ports:
  - {name: web, port: 80, targetPort: TARGET}
---
`

// asking is who sends the requests.
const asking = `
apiVersion: v1
kind: Pod
metadata:
  name: client
  labels: {ratelimit.weir.dev/inject: disabled}
spec:
  terminationGracePeriodSeconds: 1
  securityContext:
    runAsNonRoot: true
    seccompProfile: {type: RuntimeDefault}
  containers:
  - name: client
    image: weir.test/workload:dev
    args: [serve]
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
---
`

// Both ways for requests to get into the sidecar, before an application with probes of each kind: requests are
// limited, probes are not, and still tell what they are there for.
func TestInterception(t *testing.T) {
	release(t)
	t.Run("by the ports' names", func(t *testing.T) {
		testInterception(t, v1alpha1.InterceptionPortTakeover, "restricted", "http")
	})
	t.Run("by their numbers", func(t *testing.T) {
		testInterception(t, v1alpha1.InterceptionRedirect, "privileged", "8080")
	})
}

func testInterception(t *testing.T, way, profile, target string) {
	ns := strings.ToLower(way)
	optIn(t, ns)
	kubectl(t, "label", "--overwrite", "namespace", ns, "pod-security.kubernetes.io/enforce="+profile)
	kubectl(t, "annotate", "namespace", ns, v1alpha1.AnnotationInterception+"="+way)
	startProbed(t, ns, target)
	limitProbed(t, ns)
	before := conditions(t, ns)

	t.Run("each application gets the one request of its limit, as no probe counts", func(t *testing.T) {
		for name := range kinds {
			answers := get(t, ns, "http://"+name+"/", "3")
			admitted, refused := strings.Count(answers, "200 hello"), strings.Count(answers, "429 ")
			if admitted != 1 || refused != 2 {
				t.Errorf("%s: got\n%s", name, answers)
			}
			report(t, way+", requests, "+name, "1 of 3 admitted", "%d, and %d refused", admitted, refused)
		}
	})

	if way == v1alpha1.InterceptionRedirect {
		t.Run("no number leads past the sidecar", func(t *testing.T) {
			for name := range kinds {
				address := kubectl(t, "--namespace="+ns, "get", "pod", name, "--output=jsonpath={.status.podIP}")
				if got := get(t, ns, "http://"+address+":8080/", "1"); !strings.HasPrefix(got, "429 ") {
					t.Errorf("%s: got %s", name, got)
				}
			}
		})
	}

	t.Run("probes are never limited", func(t *testing.T) {
		enough := probesOf(t, ns) + 10
		until(t, "there are 10 more probes", func() bool { return probesOf(t, ns) >= enough })
		if diff := cmp.Diff(before, conditions(t, ns)); diff != "" {
			t.Errorf("readiness and restarts (-before +after):\n%s", diff)
		}
	})

	t.Run("an application's death is noticed", func(t *testing.T) {
		fall(t, way, ns, "dead", []string{"exec", "grpc", "http-by-name", "http-by-number", "tcp"})
	})
	t.Run("its illness is noticed where a probe asks about it", func(t *testing.T) {
		fall(t, way, ns, "sick", []string{"exec", "grpc", "http-by-name", "http-by-number"})
	})
}

// startProbed has the applications and their client run, and returns when all are ready.
func startProbed(t *testing.T, ns, target string) {
	t.Helper()
	manifest := asking
	for name, probe := range kinds {
		manifest += strings.NewReplacer("NAME", name, "PROBE", probe, "TARGET", target).Replace(probed)
	}
	if _, err := cluster.Kubectl(t.Context(), manifest, "apply", "--namespace="+ns, "--filename=-"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	kubectl(t, "--namespace="+ns, "wait", "--for=condition=Ready", "pods", "--all", "--timeout="+patience.String())
	t.Logf("all are ready after %s", time.Since(began).Round(100*time.Millisecond))
	for name := range kinds {
		pods := podsOf(t, ns, name)
		if len(pods) != 1 || !injected(&pods[0]) {
			t.Fatalf("%s has no sidecar:\n%s", name, describe(t, ns))
		}
		// DNS and Services follow readiness with a delay.
		until(t, "the client reaches "+name, func() bool {
			_, err := cluster.Kubectl(t.Context(), "", "--namespace="+ns, "exec", "client", "--", "/workload", "check", "http://"+name+"/")
			return err == nil
		})
	}
}

// limitProbed limits each application to one request in a year, and returns when all enforce that.
func limitProbed(t *testing.T, ns string) {
	t.Helper()
	var refs []string
	for name := range kinds {
		refs = append(refs, `{group: "", kind: Service, name: `+name+`, sectionName: web}`)
	}
	_, err := cluster.Kubectl(t.Context(), `{apiVersion: ratelimit.weir.dev/v1alpha1, kind: RateLimitPolicy,
metadata: {name: once}, spec: {targetRefs: [`+strings.Join(refs, ", ")+`],
limits: [{name: all, strategy: {fixedWindow: {requests: 1, window: 8784h}}}]}}`, "apply", "--namespace="+ns, "--filename=-")
	if err != nil {
		t.Fatal(err)
	}
	until(t, "all enforce the policy", func() bool {
		return kubectl(t, "--namespace="+ns, "get", "weirpolicy", "once",
			`--output=jsonpath={.status.conditions[?(@.type=="Enforced")].status} {.status.enforcers.current}`) == fmt.Sprintf("True %d", len(kinds))
	})
}

// condition is what probes make of a pod.
type condition struct {
	Ready    corev1.ConditionStatus
	Since    time.Time
	Restarts int32
}

func conditions(t *testing.T, ns string) map[string]condition {
	t.Helper()
	found := map[string]condition{}
	for name := range kinds {
		for _, pod := range podsOf(t, ns, name) {
			var c condition
			for _, pc := range pod.Status.Conditions {
				if pc.Type == corev1.PodReady {
					c.Ready, c.Since = pc.Status, pc.LastTransitionTime.Time
				}
			}
			for _, status := range slices.Concat(pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses) {
				c.Restarts += status.RestartCount
			}
			found[name] = c
		}
	}
	return found
}

// probesOf gives how many probes have reached the application that tells of them.
func probesOf(t *testing.T, ns string) int {
	t.Helper()
	return strings.Count(kubectl(t, "--namespace="+ns, "logs", "http-by-number", "--container=app"), "GET /healthz\n")
}

// fall makes applications dead or sick, and wants the kubelet to notice and to start them anew.
func fall(t *testing.T, way, ns, how string, names []string) {
	t.Helper()
	before, began := conditions(t, ns), map[string]time.Time{}
	for _, name := range names {
		began[name] = time.Now()
		kubectl(t, "--namespace="+ns, "exec", name, "--container=app", "--", "/workload", "get", "http://127.0.0.1:8080/"+how)
	}
	noticed := map[string]time.Duration{}
	until(t, fmt.Sprintf("the kubelet has started %v anew", names), func() bool {
		for name, now := range conditions(t, ns) {
			if _, ok := noticed[name]; !ok && now.Restarts > before[name].Restarts {
				noticed[name] = time.Since(began[name])
			}
		}
		return len(noticed) == len(names)
	})
	for _, name := range names {
		report(t, fmt.Sprintf("%s, %s, %s", way, how, name), "started anew after 2 failed probes", "after %s", noticed[name].Round(100*time.Millisecond))
	}
	kubectl(t, "--namespace="+ns, "wait", "--for=condition=Ready", "pods", "--all", "--timeout="+patience.String())
}

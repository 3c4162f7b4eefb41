// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Of the other reasons, and of other systems and probes, internal/inject tells.
func TestPodsThatCannotHaveTheSidecarRunWithoutIt(t *testing.T) {
	release(t)
	optIn(t, "odd")
	kubectl(t, "label", "--overwrite", "namespace", "odd", "pod-security.kubernetes.io/enforce=privileged")
	c := newClient(t)
	for reason, change := range map[string]func(*corev1.PodSpec){
		"HostNetwork": func(s *corev1.PodSpec) { s.HostNetwork = true },
		"NoHTTPPort":  func(s *corev1.PodSpec) { s.Containers[0].Ports = nil },
		"PortClash": func(s *corev1.PodSpec) {
			s.Containers[0].Ports = append(s.Containers[0].Ports, corev1.ContainerPort{Name: "own", ContainerPort: 15101})
		},
	} {
		t.Run(reason, func(t *testing.T) {
			pod := workloadPod("odd", strings.ToLower(reason))
			change(&pod.Spec)
			if err := c.Create(t.Context(), pod); err != nil {
				t.Fatal(err)
			}
			kubectl(t, "--namespace=odd", "wait", "--for=condition=Ready", "pod/"+pod.Name, "--timeout="+patience.String())
			if why := pod.Annotations["ratelimit.weir.dev/not-injected"]; injected(pod) || !strings.HasPrefix(why, reason+": ") {
				t.Errorf("it has the sidecar: %t, for %q", injected(pod), why)
			}
			report(t, "I2", "a pod that runs without the sidecar, told "+reason, "%q", pod.Annotations["ratelimit.weir.dev/not-injected"])
		})
	}
}

func TestAJobWithTheSidecarCompletes(t *testing.T) {
	release(t)
	optIn(t, "jobs")
	c := newClient(t)
	pod := workloadPod("jobs", "")
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	// The sidecar answers before the job begins.
	pod.Spec.Containers[0].Args = []string{"get", "http://127.0.0.1:15091/readyz"}
	job := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: "jobs", Name: "once"},
		Spec:       batchv1.JobSpec{BackoffLimit: new(int32(0)), Template: corev1.PodTemplateSpec{Spec: pod.Spec}},
	}
	began := time.Now()
	if err := c.Create(t.Context(), job); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "--namespace=jobs", "wait", "--for=condition=Complete", "job/once", "--timeout="+patience.String())
	took := time.Since(began)
	var pods corev1.PodList
	if err := c.List(t.Context(), &pods, client.InNamespace("jobs")); err != nil {
		t.Fatal(err)
	}
	if len(pods.Items) != 1 || !injected(&pods.Items[0]) {
		t.Errorf("there are %d pods, the first with the sidecar: %t", len(pods.Items), injected(&pods.Items[0]))
	}
	report(t, "I3", "a Job with the sidecar to complete", "completed after %s", took.Round(time.Millisecond))
}

func TestWithoutRedisPodsStartAndTrafficFlows(t *testing.T) {
	release(t)
	optIn(t, "adrift")
	c := newClient(t)
	scaleRedis(t, 0)
	t.Cleanup(func() { scaleRedis(t, 1) })

	// No snapshot of this namespace has ever been seen, and none can be.
	pod, _ := create(t, c, "adrift", "first")
	var began time.Time
	until(t, "the sidecar is ready", func() bool {
		if err := c.Get(t.Context(), client.ObjectKeyFromObject(pod), pod); err != nil {
			t.Fatal(err)
		}
		sidecar := sidecarOf(pod)
		if began.IsZero() && sidecar.State.Running != nil {
			began = time.Now()
		}
		return sidecar.Ready
	})
	ready := time.Since(began)
	kubectl(t, "--namespace=adrift", "wait", "--for=condition=Ready", "pod/first", "--timeout="+patience.String())
	app := time.Since(began)
	// The kubelet looks once a second, and a busy machine late.
	if ready > 15*time.Second {
		t.Errorf("the sidecar is ready after %s", ready)
	}
	deployCheckout(t, "adrift")
	if answers := get(t, "adrift", "http://checkout/", "10"); strings.Count(answers, "200 hello") != 10 {
		t.Errorf("the answers are:\n%s", answers)
	}
	report(t, "I4", "a sidecar without snapshot or store ready in 2 s, as the kubelet sees it once a second, and the application in 30 s",
		"%s and %s", ready.Round(time.Millisecond), app.Round(time.Millisecond))

	t.Run("limits hold when it is back", func(t *testing.T) {
		scaleRedis(t, 1)
		apply(t, "adrift", "total", "{name: all, strategy: {fixedWindow: {requests: 10, window: 8784h}}}")
		if answers := get(t, "adrift", "http://checkout/", "20"); strings.Count(answers, "200 hello") != 10 {
			t.Errorf("the answers are:\n%s", answers)
		}
	})
}

// scaleRedis ends the bundled Redis, or brings it back without what it knew.
func scaleRedis(t *testing.T, replicas int) {
	t.Helper()
	for _, args := range [][]string{
		{"scale", "statefulset/weir-redis", fmt.Sprintf("--replicas=%d", replicas)},
		{"rollout", "status", "statefulset/weir-redis", "--timeout=" + patience.String()},
		{"wait", "--for=jsonpath={.status.replicas}=" + fmt.Sprint(replicas), "statefulset/weir-redis", "--timeout=" + patience.String()},
	} {
		if _, err := cluster.Kubectl(context.WithoutCancel(t.Context()), "", append(args, "--namespace="+system)...); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPasswordsAreSeenNowhere(t *testing.T) {
	release(t)
	optIn(t, "secrets")
	deployCheckout(t, "secrets")
	apply(t, "secrets", "checkout", generous)
	get(t, "secrets", "http://checkout/", "10")
	passwords := redisPasswords(t)

	told := map[string]string{
		"objects":          kubectl(t, "get", "pods,deployments,statefulsets,configmaps,events,services,ratelimitpolicies", "--all-namespaces", "--output=yaml"),
		"the manager logs": kubectl(t, "--namespace="+system, "logs", "--selector=app.kubernetes.io/component=manager", "--tail=-1"),
		"Redis logs":       kubectl(t, "--namespace="+system, "logs", "weir-redis-0"),
	}
	for _, pod := range podsOf(t, "secrets", "checkout") {
		told[pod.Name+" logs"] = kubectl(t, "--namespace=secrets", "logs", pod.Name, "--all-containers")
		for _, path := range []string{"/metrics", "/debug/snapshot"} {
			told[pod.Name+path] = kubectl(t, "--namespace=secrets", "exec", pod.Name, "--container=app", "--", "/workload", "get", "http://127.0.0.1:15090"+path)
		}
		wantMounted(t, &pod)
	}
	hits, read := 0, 0
	for where, text := range told {
		read += len(text)
		for what, password := range passwords {
			if strings.Contains(text, password) || strings.Contains(text, base64.StdEncoding.EncodeToString([]byte(password))) {
				hits++
				t.Errorf("%s is in %s", what, where)
			}
		}
	}
	report(t, "I7", "credentials in files of mode 0440, and 0 hits in objects, logs, metrics and debug output", "%d hits in %d bytes of %d places", hits, read, len(told))
}

// redisPasswords gives those of all users of the bundled Redis.
func redisPasswords(t *testing.T) map[string]string {
	t.Helper()
	passwords := map[string]string{}
	var users corev1.Secret
	if err := newClient(t).Get(t.Context(), client.ObjectKey{Namespace: system, Name: "weir-redis-users"}, &users); err != nil {
		t.Fatal(err)
	}
	for key, value := range users.Data {
		if strings.HasSuffix(key, "password") {
			passwords[key] = string(value)
		}
	}
	if len(passwords) < 2 {
		t.Fatalf("there are %d passwords, want the manager's and the sidecars'", len(passwords))
	}
	return passwords
}

// wantMounted demands that the sidecar has its credentials as files that only it and its group may read.
func wantMounted(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	for _, volume := range pod.Spec.Volumes {
		if s := volume.Secret; s != nil {
			if s.SecretName != "weir-redis" || s.DefaultMode == nil || *s.DefaultMode != 0o440 {
				t.Errorf("%s mounts %+v", pod.Name, s)
			}
			return
		}
	}
	t.Errorf("%s has no credentials", pod.Name)
}

// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/weir-dev/weir/api/v1alpha1"
)

func TestRolloutsOfTheManagerFailNoAdmission(t *testing.T) {
	const rollouts, admissions = 5, 2000
	release(t)
	optIn(t, "rollouts")
	a := ask(t, "rollouts", 50)
	for range rollouts {
		restart(t, system, "weir-manager")
	}
	a.await(t, admissions)
	report(t, "K14", "0 of 2000 admissions failed in 5 rollouts", "%s", a.stop(t))
}

func TestTheCertificate(t *testing.T) {
	release(t)
	optIn(t, "certificate")
	c := newClient(t)

	t.Run("that has expired when the manager starts is replaced", func(t *testing.T) {
		endManagers(t)
		setCertificate(t, c, time.Now().Add(-91*24*time.Hour))
		began := time.Now()
		kubectl(t, "--namespace="+system, "scale", "deployment/weir-manager", "--replicas=1")
		until(t, "there is another certificate", func() bool { return certificate(t, c).NotAfter.After(time.Now()) })
		took := time.Since(began)
		awaitAdmission(t)
		if err := admits(t.Context(), c, "certificate", 0); err != nil {
			t.Error(err)
		}
		if took > 10*time.Second {
			t.Errorf("it takes %s, as if nobody looked but every 10 s", took)
		}
		report(t, "K13", "an expired certificate replaced in 5 s", "%s, with the start of the pod", took.Round(time.Millisecond))
	})

	t.Run("is renewed by three replicas without a failure", func(t *testing.T) {
		endManagers(t)
		setCertificate(t, c, time.Now().Add(-61*24*time.Hour))
		old := certificate(t, c)
		kubectl(t, "--namespace="+system, "scale", "deployment/weir-manager", "--replicas=3")
		awaitAdmission(t)
		a := ask(t, "certificate", 20)
		for _, step := range []struct {
			what string
			done func(*corev1.Secret) bool
		}{
			{"the next authority is trusted", func(s *corev1.Secret) bool { return len(s.Data["next.crt"]) > 0 }},
			{"its certificate is served", func(s *corev1.Secret) bool { return len(s.Data["next.crt"]) == 0 }},
			{"the former authority is trusted no more", func(s *corev1.Secret) bool {
				return strings.Count(string(s.Data["ca.crt"]), "BEGIN CERTIFICATE") == 1
			}},
		} {
			until(t, step.what, func() bool { return step.done(webhookSecret(t, c)) })
			hurry(t, c)
		}
		told := a.stop(t)
		if certificate(t, c).Equal(old) {
			t.Error("it is still the old one")
		}
		report(t, "K13", "0 failures at 20 calls a second while 3 replicas renew it", "%s", told)
	})
	kubectl(t, "--namespace="+system, "scale", "deployment/weir-manager", "--replicas=2")
	awaitAdmission(t)
}

func TestWithoutAManager(t *testing.T) {
	release(t)
	optIn(t, "orphans")
	makeNamespace(t, "strangers")
	c := newClient(t)
	deployCheckout(t, "orphans")
	apply(t, "orphans", "total", "{name: all, strategy: {fixedWindow: {requests: 10, window: 8784h}}}")
	endManagers(t)

	t.Run("limits go on", func(t *testing.T) {
		answers := get(t, "orphans", "http://checkout/", "20")
		if admitted := strings.Count(answers, "200 hello"); admitted != 10 {
			t.Errorf("%d requests are admitted, want 10:\n%s", admitted, answers)
		}
	})

	t.Run("pods start without the sidecar", func(t *testing.T) {
		pod, took := create(t, c, "orphans", "ignored")
		if injected(pod) || took > 2*time.Second {
			t.Errorf("after %s there is a pod, with the sidecar: %t", took, injected(pod))
		}
		kubectl(t, "--namespace=orphans", "wait", "--for=condition=Ready", "pod/ignored", "--timeout="+patience.String())
		report(t, "K15", "a pod in 2 s with failurePolicy Ignore", "%s", took.Round(time.Millisecond))
	})

	t.Run("a policy's change is refused with a clear message, and its deletion isn't", func(t *testing.T) {
		_, err := cluster.Kubectl(t.Context(), "", "--namespace=orphans", "patch", "weirpolicy", "total", "--type=merge", `--patch={"spec": {"enforcement": "Disabled"}}`)
		if err == nil || !strings.Contains(err.Error(), `failed calling webhook "default.ratelimitpolicies.ratelimit.weir.dev"`) {
			t.Errorf("got %v", err)
		}
		kubectl(t, "--namespace=orphans", "delete", "weirpolicy", "total", "--timeout="+patience.String())
	})

	setFailurePolicy(t, "Fail")
	t.Cleanup(func() { setFailurePolicy(t, "Ignore") })

	t.Run("with failurePolicy Fail, pods are refused with a clear message", func(t *testing.T) {
		err := c.Create(t.Context(), workloadPod("orphans", "failed"))
		want := `failed calling webhook "namespaces.inject.ratelimit.weir.dev"`
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "weir-webhook") {
			t.Errorf("got %v, want %s and the Service's name", err, want)
		}
		report(t, "K15", "a clear message with failurePolicy Fail", "%q", err)
	})

	t.Run("with failurePolicy Fail, the rest of the cluster goes on", func(t *testing.T) {
		for _, namespace := range []string{system, "kube-system", "strangers"} {
			pod, took := create(t, c, namespace, "other")
			if took > time.Second {
				t.Errorf("a pod of %s takes %s", namespace, took)
			}
			if err := c.Delete(t.Context(), pod, client.GracePeriodSeconds(1)); err != nil {
				t.Error(err)
			}
			report(t, "K16", "a pod of "+namespace+" in 1 s", "%s", took.Round(time.Millisecond))
		}
	})

	t.Run("with failurePolicy Fail, the manager comes back by itself", func(t *testing.T) {
		kubectl(t, "--namespace="+system, "scale", "deployment/weir-manager", "--replicas=2")
		awaitAdmission(t)
		if pod, _ := create(t, c, "orphans", "late"); !injected(pod) {
			t.Error("a pod has no sidecar")
		}
	})
}

func TestAHungManagerStandsInNobodysWay(t *testing.T) {
	const writes = 200
	release(t)
	optIn(t, "hung")
	c := newClient(t)
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "renewed"}}
	if err := c.Create(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Delete(context.WithoutCancel(t.Context()), lease); err != nil {
			t.Error(err)
		}
	})
	thaw := freezeManagers(t, c)

	pod, injecting := create(t, c, "hung", "ignored")
	if injected(pod) {
		t.Error("a hung manager has answered")
	}
	renewing := times(t, writes, func() error { return c.Update(t.Context(), lease) })
	others := times(t, writes/4, func() error {
		event := &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "hung", GenerateName: "said-"}, InvolvedObject: corev1.ObjectReference{Namespace: "hung"}}
		review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: "unknown"}}
		return errors.Join(c.Create(t.Context(), event), c.Create(t.Context(), review),
			c.Create(t.Context(), workloadPod(system, "own"), client.DryRunAll))
	})
	thaw()
	// Whoever were sent to us would wait for the 2 seconds of the webhooks' timeout.
	for what, took := range map[string]time.Duration{"a lease": renewing[writes*99/100], "an event, a token review and a pod of ours": others[len(others)*99/100]} {
		if took > time.Second {
			t.Errorf("%s waits for %s", what, took)
		}
	}
	if injecting > 8*time.Second {
		t.Errorf("a pod waits for %s, want the 2 seconds of the webhook's timeout", injecting)
	}
	report(t, "K17", "lease PUT p99 of 10 ms on an idle machine, and nothing that waits but pods to inject, for 2 s",
		"lease PUT p50 %s, p99 %s; an event, a token review and a pod of ours p99 %s; a pod to inject %s",
		renewing[writes/2].Round(time.Microsecond), renewing[writes*99/100].Round(time.Microsecond),
		others[len(others)*99/100].Round(time.Microsecond), injecting.Round(time.Millisecond))
	// Those that have lost the lease meanwhile end by themselves.
	restart(t, system, "weir-manager")
	awaitAdmission(t)
}

// asker asks the API server for what only the manager can answer, steadily.
type asker struct {
	end      context.CancelFunc
	asking   sync.WaitGroup
	mu       sync.Mutex
	asked    int
	slowest  time.Duration
	failures []error
}

// ask has so many pods injected and policies checked a second, until stop is called. Nothing of it is stored.
func ask(t *testing.T, namespace string, perSecond int) *asker {
	t.Helper()
	c := newClient(t)
	ctx, end := context.WithCancel(t.Context())
	a := &asker{end: end}
	interval, began := time.Second/time.Duration(perSecond), time.Now()
	a.asking.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Until(began.Add(time.Duration(i) * interval))):
			}
			a.asking.Go(func() {
				sent := time.Now()
				err := admits(context.WithoutCancel(ctx), c, namespace, i)
				a.add(time.Since(sent), err)
			})
		}
	})
	t.Cleanup(func() { end(); a.asking.Wait() })
	return a
}

func (a *asker) add(took time.Duration, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked++
	a.slowest = max(a.slowest, took)
	if err != nil {
		a.failures = append(a.failures, err)
	}
}

// await returns when so many have been asked.
func (a *asker) await(t *testing.T, asked int) {
	t.Helper()
	until(t, fmt.Sprint(asked, " have been asked"), func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.asked >= asked
	})
}

// stop demands that none has failed, and says how many of them have.
func (a *asker) stop(t *testing.T) string {
	t.Helper()
	a.end()
	a.asking.Wait()
	if len(a.failures) > 0 {
		t.Errorf("%d of %d failed:\n%v", len(a.failures), a.asked, errors.Join(a.failures[:min(len(a.failures), 5)]...))
	}
	return fmt.Sprintf("%d of %d, the slowest %s", len(a.failures), a.asked, a.slowest.Round(time.Millisecond))
}

// admits demands that the manager answers for a pod or for a policy, in turn.
func admits(ctx context.Context, c client.Client, namespace string, i int) error {
	if i%2 == 0 {
		pod := workloadPod(namespace, "asked")
		if err := c.Create(ctx, pod, client.DryRunAll); err != nil {
			return err
		}
		if !injected(pod) {
			return errors.New("a pod got no sidecar")
		}
		return nil
	}
	return c.Create(ctx, anyPolicy(namespace), client.DryRunAll)
}

func anyPolicy(namespace string) *v1alpha1.RateLimitPolicy {
	return &v1alpha1.RateLimitPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "asked"},
		Spec: v1alpha1.RateLimitPolicySpec{
			Selector: &metav1.LabelSelector{},
			Limits:   []v1alpha1.Limit{{Name: "all", Strategy: v1alpha1.Strategy{TokenBucket: &v1alpha1.TokenBucket{Requests: 1, Window: "1s"}}}},
		},
	}
}

// workloadPod is a pod that any namespace takes.
func workloadPod(namespace, name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: new(int64(1)),
			SecurityContext:               &corev1.PodSecurityContext{RunAsNonRoot: new(true), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
			Containers: []corev1.Container{{
				Name: "app", Image: "weir.test/workload:dev", Args: []string{"serve"},
				Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
					Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}
}

// create creates a pod, and says how long the API server took for it.
func create(t *testing.T, c client.Client, namespace, name string) (*corev1.Pod, time.Duration) {
	t.Helper()
	pod, began := workloadPod(namespace, name), time.Now()
	if err := c.Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	return pod, time.Since(began)
}

// times says how long each of n calls took, the quickest first.
func times(t *testing.T, n int, call func() error) []time.Duration {
	t.Helper()
	var all []time.Duration
	for range n {
		began := time.Now()
		if err := call(); err != nil {
			t.Fatal(err)
		}
		all = append(all, time.Since(began))
	}
	slices.Sort(all)
	return all
}

// managers gives the pods of the manager.
func managers(t *testing.T, c client.Client) []corev1.Pod {
	t.Helper()
	var pods corev1.PodList
	if err := c.List(t.Context(), &pods, client.InNamespace(system), client.MatchingLabels{"app.kubernetes.io/name": "weir", "app.kubernetes.io/component": "manager"}); err != nil {
		t.Fatal(err)
	}
	return pods.Items
}

// endManagers has no manager run. They are given no time to go in good order.
func endManagers(t *testing.T) {
	t.Helper()
	kubectl(t, "--namespace="+system, "scale", "deployment/weir-manager", "--replicas=0")
	until(t, "every manager is told to end", func() bool {
		return !slices.ContainsFunc(managers(t, newClient(t)), func(pod corev1.Pod) bool { return pod.DeletionTimestamp == nil })
	})
	kubectl(t, "--namespace="+system, "delete", "pods", "--selector=app.kubernetes.io/name=weir,app.kubernetes.io/component=manager",
		"--grace-period=1", "--timeout="+patience.String())
	// The API server may still know the address of one that has gone.
	until(t, "the webhooks' Service leads nowhere", func() bool {
		return kubectl(t, "--namespace="+system, "get", "endpointslices", "--selector=kubernetes.io/service-name=weir-webhook",
			"--output=jsonpath={.items[*].endpoints[*].addresses}") == ""
	})
}

// freezeManagers has every manager hang until thaw is called, or the test ends.
func freezeManagers(t *testing.T, c client.Client) (thaw func()) {
	t.Helper()
	// One that is about to end would still answer.
	until(t, "there are two managers", func() bool { return len(managers(t, c)) == 2 })
	var frozen []string
	thaw = func() {
		for _, id := range frozen {
			if err := cluster.Thaw(context.WithoutCancel(t.Context()), id); err != nil {
				t.Error(err)
			}
		}
		frozen = nil
	}
	t.Cleanup(thaw)
	for _, pod := range managers(t, c) {
		id := pod.Status.ContainerStatuses[0].ContainerID
		if err := cluster.Freeze(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		frozen = append(frozen, id)
	}
	return thaw
}

func setFailurePolicy(t *testing.T, policy string) {
	t.Helper()
	patch := fmt.Sprintf(`[{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": %[1]q}, {"op": "replace", "path": "/webhooks/1/failurePolicy", "value": %[1]q}]`, policy)
	if _, err := cluster.Kubectl(context.WithoutCancel(t.Context()), "", "patch", "mutatingwebhookconfiguration", "weir-pods", "--type=json", "--patch="+patch); err != nil {
		t.Fatal(err)
	}
}

func webhookSecret(t *testing.T, c client.Client) *corev1.Secret {
	t.Helper()
	s := &corev1.Secret{}
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: system, Name: "weir-webhook"}, s); err != nil {
		t.Fatal(err)
	}
	return s
}

// certificate gives what the managers are to serve.
func certificate(t *testing.T, c client.Client) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(webhookSecret(t, c).Data[corev1.TLSCertKey])
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// setCertificate has the Secret hold one that was issued at this time for 90 days. It is its own authority.
func setCertificate(t *testing.T, c client.Client, issued time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		DNSNames:     []string{"weir-webhook." + system + ".svc"},
		NotBefore:    issued, NotAfter: issued.Add(90 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, IsCA: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	s := webhookSecret(t, c)
	s.Data = map[string][]byte{
		"ca.crt": text, corev1.TLSCertKey: text, corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		"since": []byte(issued.UTC().Format(time.RFC3339Nano)),
	}
	if err := c.Update(t.Context(), s); err != nil {
		t.Fatal(err)
	}
}

// hurry has the next step of a renewal come after 20 seconds instead of 2 minutes, which is still as long as two looks
// of each replica.
func hurry(t *testing.T, c client.Client) {
	t.Helper()
	since, err := time.Parse(time.RFC3339Nano, string(webhookSecret(t, c).Data["since"]))
	if err != nil {
		t.Fatal(err)
	}
	until(t, "each replica has looked twice", func() bool { return time.Since(since) > 20*time.Second })
	s := webhookSecret(t, c)
	s.Data["since"] = []byte(since.Add(-2 * time.Minute).UTC().Format(time.RFC3339Nano))
	if err := c.Update(t.Context(), s); err != nil {
		t.Fatal(err)
	}
}

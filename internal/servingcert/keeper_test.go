// SPDX-License-Identifier: Apache-2.0

package servingcert

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/weir-dev/weir/test/controlplane"
)

var plane *controlplane.ControlPlane

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	os.Exit(controlplane.Main(m, &plane))
}

// world is a namespace for the Secret, and configurations of one test.
type world struct {
	client.Client
	secret         types.NamespacedName
	configurations []client.Object
}

func newWorld(t *testing.T) *world {
	t.Helper()
	c, err := client.New(plane.Config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{Client: c}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "servingcert-"}}
	if err := c.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	w.secret = types.NamespacedName{Namespace: ns.Name, Name: "weir-webhook"}
	for _, kind := range []string{"MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"} {
		w.install(t, kind)
	}
	meta := metav1.ObjectMeta{Name: ns.Name}
	absent := metav1.ObjectMeta{Name: ns.Name + "-absent"}
	w.configurations = []client.Object{
		&admissionv1.MutatingWebhookConfiguration{ObjectMeta: meta},
		&admissionv1.ValidatingWebhookConfiguration{ObjectMeta: meta},
		&admissionv1.MutatingWebhookConfiguration{ObjectMeta: absent},
	}
	t.Cleanup(func() {
		for _, o := range w.configurations {
			// The test's own context is done by now.
			if err := c.Delete(context.WithoutCancel(t.Context()), o); client.IgnoreNotFound(err) != nil {
				t.Error(err)
			}
		}
	})
	return w
}

// install applies a configuration as Helm does, and fails where anyone else owns what is applied.
func (w *world) install(t *testing.T, kind string) {
	t.Helper()
	webhook := func(name string) map[string]any {
		return map[string]any{
			"name": name, "sideEffects": "None", "admissionReviewVersions": []any{"v1"}, "failurePolicy": "Ignore",
			"clientConfig":      map[string]any{"service": map[string]any{"namespace": "weir-system", "name": "weir-webhook"}},
			"namespaceSelector": map[string]any{"matchLabels": map[string]any{"kubernetes.io/metadata.name": "nowhere"}},
			"rules":             []any{map[string]any{"apiGroups": []any{""}, "apiVersions": []any{"v1"}, "resources": []any{"pods"}, "operations": []any{"CREATE"}}},
		}
	}
	u := &unstructured.Unstructured{Object: map[string]any{"webhooks": []any{webhook("a.weir.dev"), webhook("b.weir.dev")}}}
	u.SetGroupVersionKind(admissionv1.SchemeGroupVersion.WithKind(kind))
	u.SetName(w.secret.Namespace)
	if err := w.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(u), client.FieldOwner("helm")); err != nil {
		t.Fatal(err)
	}
}

// keeper gives a keeper, as of another replica.
func (w *world) keeper() *Keeper {
	return New(w, w.secret, names, w.configurations, Options{}, logr.Discard())
}

// trusted gives the authorities that all webhooks trust.
func (w *world) trusted(t *testing.T) []byte {
	t.Helper()
	var all [][]byte
	for _, o := range w.configurations[:2] {
		if err := w.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
			t.Fatal(err)
		}
		for _, bundle := range bundles(o) {
			all = append(all, bundle)
		}
	}
	if len(all) != 4 {
		t.Fatalf("there are %d webhooks, want 4", len(all))
	}
	for _, bundle := range all {
		if !bytes.Equal(bundle, all[0]) {
			t.Error("webhooks trust different authorities")
		}
	}
	return all[0]
}

// wantBelieved shakes hands with each replica, trusting what the webhooks trust.
func wantBelieved(t *testing.T, w *world, replicas ...*Keeper) {
	t.Helper()
	cas, err := decodeCAs(w.trusted(t))
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range replicas {
		server := serve(t, k.GetCertificate)
		for _, name := range names {
			dialer := tls.Dialer{Config: &tls.Config{RootCAs: pool(cas), ServerName: name, MinVersion: tls.VersionTLS13}}
			conn, err := dialer.DialContext(t.Context(), "tcp", server)
			if err != nil {
				t.Errorf("replica %d: %v", i, err)
				continue
			}
			_ = conn.Close()
		}
	}
}

// serve shakes hands with whoever comes, with the certificate that it is given, and gives the address.
func serve(t *testing.T, certificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)) string {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: certificate, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(ln)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return ln.Addr().String()
}

func keep(t *testing.T, k *Keeper, now time.Time) {
	t.Helper()
	if err := k.keep(t.Context(), now); err != nil {
		t.Fatal(err)
	}
}

func TestEveryReplicaServesWhatIsTrusted(t *testing.T) {
	w := newWorld(t)
	replicas := []*Keeper{w.keeper(), w.keeper(), w.keeper()}
	// The API server's clock can't be set: what was issued in the past is good until after now.
	now := time.Now().Add(-70 * 24 * time.Hour)
	round := func(after time.Duration) {
		t.Helper()
		now = now.Add(after)
		for _, k := range replicas {
			keep(t, k, now)
			if k.kept.current != nil && replicas[2].kept.current != nil {
				wantBelieved(t, w, replicas...)
			}
		}
	}
	round(0)
	first := w.trusted(t)
	for _, after := range []time.Duration{61 * 24 * time.Hour, 10 * time.Second, 2 * time.Minute, 10 * time.Second, 2 * time.Minute} {
		round(after)
	}
	wantBelieved(t, w, replicas...)
	if last := w.trusted(t); bytes.Contains(last, first) || bytes.Count(last, []byte("BEGIN CERTIFICATE")) != 1 {
		t.Errorf("trusted at the end:\n%s", last)
	}
}

func TestAnExpiredCertificateIsReplacedAtOnce(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	keep(t, w.keeper(), now.Add(-100*24*time.Hour))
	k := w.keeper()
	keep(t, k, now)
	wantBelieved(t, w, k)
}

func TestALostSecretGetsBackWhatIsServed(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	a, b := w.keeper(), w.keeper()
	keep(t, a, now)
	keep(t, b, now)
	before := w.trusted(t)
	if err := w.Delete(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: w.secret.Namespace, Name: w.secret.Name}}); err != nil {
		t.Fatal(err)
	}
	keep(t, b, now)
	keep(t, a, now)
	if diff := cmp.Diff(string(before), string(w.trusted(t))); diff != "" {
		t.Errorf("trusted (-before +after):\n%s", diff)
	}
	wantBelieved(t, w, a, b, w.keeperThatHasKept(t, now))
}

func (w *world) keeperThatHasKept(t *testing.T, now time.Time) *Keeper {
	t.Helper()
	k := w.keeper()
	keep(t, k, now)
	return k
}

func TestOfTwoReplicasOneIssues(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	a, b := w.keeper(), w.keeper()
	loaded, err := b.load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	keep(t, a, now)
	other, _, err := rotation{}.step(now, names, normal, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.store(t.Context(), loaded, other); !apierrors.IsAlreadyExists(err) {
		t.Errorf("the second one got %v", err)
	}
	keep(t, b, now)
	wantBelieved(t, w, a, b)
}

func TestConfigurationsStayThoseOfWhoInstalls(t *testing.T) {
	w := newWorld(t)
	k, now := w.keeper(), time.Now()
	keep(t, k, now)
	before := w.trusted(t)
	for _, kind := range []string{"MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"} {
		w.install(t, kind)
	}
	if diff := cmp.Diff(string(before), string(w.trusted(t))); diff != "" {
		t.Errorf("trusted after another installation (-before +after):\n%s", diff)
	}
	// Whoever empties it has it filled again.
	c := w.configurations[0].(*admissionv1.MutatingWebhookConfiguration)
	c.Webhooks[1].ClientConfig.CABundle = nil
	if err := w.Update(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	keep(t, k, now)
	wantBelieved(t, w, k)
}

func TestReadyIsWhoeverCanBeTalkedTo(t *testing.T) {
	w := newWorld(t)
	k := w.keeper()
	address := serve(t, k.GetCertificate)
	check := func() error {
		return k.Ready(address)((&http.Request{}).WithContext(t.Context()))
	}
	if err := check(); err == nil {
		t.Error("it is ready without a certificate")
	}
	keep(t, k, time.Now())
	if err := check(); err != nil {
		t.Errorf("with a certificate: %v", err)
	}
	k.told = nil
	if err := check(); err == nil {
		t.Error("it is ready though nobody trusts it")
	}
}

func TestTheKeeperEndsWithItsContext(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	k := w.keeper()
	ended := make(chan error, 1)
	go func() { ended <- k.Start(ctx) }()
	address := serve(t, k.GetCertificate)
	for k.Ready(address)((&http.Request{}).WithContext(ctx)) != nil {
		select {
		case err := <-ended:
			t.Fatalf("it ended: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

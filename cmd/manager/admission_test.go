// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	admissionreview "k8s.io/api/admission/v1"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/weir-dev/weir/internal/redistest"
	"github.com/weir-dev/weir/test/controlplane"
)

var plane *controlplane.ControlPlane

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	os.Exit(controlplane.Main(m, &plane))
}

func TestEveryReplicaAnswers(t *testing.T) {
	c, err := client.New(plane.Config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	install(t, c)
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "weir-", Labels: map[string]string{"ratelimit.weir.dev/inject": "enabled"}}}
	if err := c.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	redis := redistest.Start(t)
	replicas := []*replica{newReplica(t, redis.URL(), ns.Name), newReplica(t, redis.URL(), ns.Name)}
	for i, r := range replicas {
		t.Run(fmt.Sprintf("replica %d", i), func(t *testing.T) {
			r.waitUntilReady(t)
			if diff := cmp.Diff("weir-sidecar", r.inject(t, c, ns.Name)); diff != "" {
				t.Errorf("name of the container that a pod gets (-want +got):\n%s", diff)
			}
		})
	}
}

func TestACertificateOfOthersIsServed(t *testing.T) {
	c, err := client.New(plane.Config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "weir-"}}
	if err := c.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	dir := writeCertificate(t, "weir-webhook."+ns.Name+".svc")
	newReplica(t, redistest.Start(t).URL(), ns.Name, "--webhook-cert-dir", dir).waitUntilReady(t)
	err = c.Get(t.Context(), client.ObjectKey{Namespace: ns.Name, Name: webhookSecret}, new(corev1.Secret))
	if !apierrors.IsNotFound(err) {
		t.Errorf("the manager has made a certificate of its own, or %v", err)
	}
}

// writeCertificate writes a certificate of a server, which is its own authority, as cert-manager would. It gives the folder.
func writeCertificate(t *testing.T, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	for file, content := range map[string][]byte{
		"ca.crt": text, "tls.crt": text, "tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
	} {
		if err := os.WriteFile(filepath.Join(dir, file), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// install installs the configurations of config/webhook until the test ends.
func install(t *testing.T, c client.Client) {
	t.Helper()
	for _, name := range []string{"policies.yaml", "pods.yaml"} {
		text, err := os.ReadFile(filepath.Join(plane.Root, "config", "webhook", name))
		if err != nil {
			t.Fatal(err)
		}
		for d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096); ; {
			o := &unstructured.Unstructured{}
			if err := d.Decode(&o.Object); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if err := c.Create(t.Context(), o); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				// The test's own context is done by now.
				if err := c.Delete(context.WithoutCancel(t.Context()), o); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// replica is a manager that answers admission requests and does nothing else.
type replica struct {
	*admission
	address string
	ended   chan error
}

// newReplica runs a replica in a namespace, with further flags, until the test ends.
func newReplica(t *testing.T, redis, namespace string, flags ...string) *replica {
	t.Helper()
	dir := t.TempDir()
	settings := "image: weir-sidecar\nredis: redis://weir-redis:6379\nguaranteedResources: {cpu: 1, memory: 1Gi}\n"
	if err := os.WriteFile(filepath.Join(dir, "sidecar.yaml"), []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	o, err := parse(append([]string{
		"--redis", redis, "--namespace", namespace, "--webhook-port", strconv.Itoa(port), "--config-dir", dir,
		"--metrics-bind-address", "0", "--health-probe-bind-address", "0",
	}, flags...), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	a, err := o.newAdmission(plane.Config, logr.Discard())
	if err != nil {
		t.Fatal(err)
	}
	mgr, err := newManager(plane.Config, o, a.server(), logr.Discard())
	if err != nil {
		t.Fatal(err)
	}
	opened, err := o.open(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.addTo(mgr, opened, "test"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := &replica{admission: a, address: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), ended: make(chan error, 1)}
	go func() { r.ended <- mgr.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-r.ended; err != nil {
			t.Error(err)
		}
		_ = opened.counters.Close()
		_ = opened.configs.Close()
	})
	return r
}

func freePort(t *testing.T) int {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().(*net.TCPAddr).Port
}

func (r *replica) waitUntilReady(t *testing.T) {
	t.Helper()
	for r.cert.Ready(r.address)((&http.Request{}).WithContext(t.Context())) != nil {
		select {
		case err := <-r.ended:
			t.Fatalf("the manager ended: %v", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// inject asks the replica about a pod, as the API server would, trusting what it is told to trust. It gives the
// name of the container that the answer adds.
func (r *replica) inject(t *testing.T, c client.Client, namespace string) string {
	t.Helper()
	pod := corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{
		Name: "app", Image: "app", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
	}}}}
	raw, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	review := admissionreview.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionreview.AdmissionRequest{
			UID: "1", Operation: admissionreview.Create, Namespace: namespace, Object: runtime.RawExtension{Raw: raw},
		},
	}
	body, err := json.Marshal(review)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(r.post(t, c, namespace, body), &review); err != nil {
		t.Fatal(err)
	}
	var patch []struct {
		Path  string          `json:"path"`
		Value json.RawMessage `json:"value"`
	}
	if err := json.Unmarshal(review.Response.Patch, &patch); err != nil {
		t.Fatalf("%v in the answer %+v", err, review.Response)
	}
	for _, op := range patch {
		var added []corev1.Container
		if op.Path == "/spec/initContainers" && json.Unmarshal(op.Value, &added) == nil && len(added) == 1 {
			return added[0].Name
		}
	}
	return ""
}

// post asks as the configuration for pods says, but at the replica's own address.
func (r *replica) post(t *testing.T, c client.Client, namespace string, body []byte) []byte {
	t.Helper()
	var configuration admissionv1.MutatingWebhookConfiguration
	if err := c.Get(t.Context(), client.ObjectKey{Name: podConfiguration}, &configuration); err != nil {
		t.Fatal(err)
	}
	config := configuration.Webhooks[0].ClientConfig
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(config.CABundle)
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: config.Service.Name + "." + namespace + ".svc", MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+r.address+*config.Service.Path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("status %d, %s, %v", resp.StatusCode, answer, err)
	}
	if !resp.Close {
		t.Errorf("the connection stays open, with %s", resp.Proto)
	}
	return answer
}

// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/redis/go-redis/v9"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	apiv1alpha1 "github.com/weir-dev/weir/api/v1alpha1"
	redisconfig "github.com/weir-dev/weir/internal/configstore/redis"
	"github.com/weir-dev/weir/internal/inject"
	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/redistest"
	"github.com/weir-dev/weir/internal/webhook/v1alpha1"
	"github.com/weir-dev/weir/test/controlplane"
)

const instance = "test"

// settings are those of the sidecars.
var settings = inject.Settings{
	Image: "weir-sidecar:test",
	Redis: "redis://weir-redis.weir-system:6379",
	GuaranteedResources: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("250m"), corev1.ResourceMemory: resource.MustParse("128Mi"),
	},
	Credentials: true,
	Instance:    instance,
}

var plane *controlplane.ControlPlane

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	redisclient.LogTo(logr.Discard())
	os.Exit(controlplane.Main(m, &plane))
}

// world is an API server that asks the webhooks of a manager, by the configurations that are installed.
type world struct {
	t *testing.T
	// Client collects what it is warned of in warnings.
	client.Client
	warnings  *warnings
	redis     *redistest.Server
	publisher *redisconfig.Publisher
	events    *events.FakeRecorder
	// cache is the manager's.
	cache client.Reader
}

// newWorld serves the webhooks until the test ends. Its tests can't run side by side: the configurations are for
// the whole API server.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, warnings: &warnings{}, redis: redistest.Start(t), events: events.NewFakeRecorder(100)}
	w.publisher = redisconfig.NewPublisher(w.redis.Client(t), instance, logr.Discard())
	scheme := newScheme(t)
	cfg := rest.CopyConfig(plane.Config)
	cfg.WarningHandlerWithContext = w.warnings
	var err error
	if w.Client, err = client.New(cfg, client.Options{Scheme: scheme}); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(plane.Root, "config", "webhook")
	configs := &envtest.WebhookInstallOptions{Paths: []string{filepath.Join(dir, "policies.yaml"), filepath.Join(dir, "pods.yaml")}}
	if err := configs.PrepWithoutInstalling(); err != nil {
		t.Fatal(err)
	}
	for _, c := range configs.MutatingWebhooks {
		for i := range c.Webhooks {
			c.Webhooks[i].TimeoutSeconds = new(int32(30)) // The machine may be busy.
		}
	}
	if err := configs.Install(plane.Config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range configs.MutatingWebhooks {
			w.delete(c)
		}
		for _, c := range configs.ValidatingWebhooks {
			w.delete(c)
		}
		if err := configs.Cleanup(); err != nil {
			t.Error(err)
		}
	})
	w.serve(scheme, configs, w.open())
	return w
}

// open opens the config store as the manager does.
func (w *world) open() redis.UniversalClient {
	w.t.Helper()
	configs, err := redisclient.Open(w.redis.URL())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = configs.Close() })
	return configs
}

// serve runs a manager with the webhooks until the test ends, and waits until it answers.
func (w *world) serve(scheme *runtime.Scheme, configs *envtest.WebhookInstallOptions, store redis.UniversalClient) {
	w.t.Helper()
	server := webhook.NewServer(webhook.Options{
		Host: configs.LocalServingHost, Port: configs.LocalServingPort, CertDir: configs.LocalServingCertDir,
	})
	mgr, err := ctrl.NewManager(plane.Config, ctrl.Options{
		Scheme: scheme, Logger: logr.Discard(), Metrics: metricsserver.Options{BindAddress: "0"}, WebhookServer: server,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	policies := v1alpha1.NewRateLimitPolicyWebhook(mgr.GetAPIReader(), redisconfig.NewPublisher(store, instance, logr.Discard()))
	if err := policies.SetupWithManager(mgr); err != nil {
		w.t.Fatal(err)
	}
	v1alpha1.SetupPodWebhook(mgr, settings, w.events)
	w.cache = mgr.GetClient()
	ctx, cancel := context.WithCancel(w.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
	})
	for started := server.StartedChecker(); started(&http.Request{}) != nil; {
		select {
		case err := <-ended:
			w.t.Fatalf("the manager ended: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (w *world) create(t *testing.T, o client.Object) {
	t.Helper()
	if err := w.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
}

func (w *world) delete(o client.Object) {
	w.t.Helper()
	// The test's own context is done by now.
	if err := w.Delete(context.WithoutCancel(w.t.Context()), o); err != nil {
		w.t.Error(err)
	}
}

// namespaced makes a namespace with the Service checkout, for one test, with pairs of label and value.
func (w *world) namespaced(t *testing.T, labels ...string) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "webhook-"}}
	ns.Labels = map[string]string{}
	for pair := range slices.Chunk(labels, 2) {
		ns.Labels[pair[0]] = pair[1]
	}
	w.create(t, ns)
	w.create(t, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: "checkout"},
		Spec: corev1.ServiceSpec{
			ClusterIP: corev1.ClusterIPNone, // There are only 255 others.
			Selector:  map[string]string{"app": "checkout"},
			Ports:     []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}},
		},
	})
	return ns.Name
}

// cached waits until the manager has seen a Service.
func (w *world) cached(t *testing.T, namespace, name string) {
	t.Helper()
	for key := (client.ObjectKey{Namespace: namespace, Name: name}); w.cache.Get(t.Context(), key, &corev1.Service{}) != nil; {
		select {
		case <-t.Context().Done():
			t.Fatalf("the manager doesn't see Service %s", name)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func newScheme(t *testing.T) *runtime.Scheme {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, apiv1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return scheme
}

// warnings are those that a client has had since they were last taken. It is not for concurrent use.
type warnings struct{ texts []string }

// HandleWarningHeaderWithContext is part of rest.WarningHandlerWithContext.
func (w *warnings) HandleWarningHeaderWithContext(_ context.Context, code int, _ string, text string) {
	if code != 299 {
		text = fmt.Sprintf("with code %d: %s", code, text)
	}
	w.texts = append(w.texts, text)
}

func (w *warnings) take() []string {
	texts := w.texts
	w.texts = nil
	return texts
}

// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/redis/go-redis/v9"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	apiv1alpha1 "github.com/weir-dev/weir/api/v1alpha1"
	redisconfig "github.com/weir-dev/weir/internal/configstore/redis"
	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/redistest"
	"github.com/weir-dev/weir/internal/webhook/v1alpha1"
	"github.com/weir-dev/weir/test/controlplane"
)

const instance = "test"

var plane *controlplane.ControlPlane

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
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
}

// newWorld serves the webhooks until the test ends. Its tests can't run side by side: the configurations are for
// the whole API server.
func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, warnings: &warnings{}, redis: redistest.Start(t)}
	w.publisher = redisconfig.NewPublisher(w.redis.Client(t), instance, logr.Discard())
	scheme := newScheme(t)
	cfg := rest.CopyConfig(plane.Config)
	cfg.WarningHandlerWithContext = w.warnings
	var err error
	if w.Client, err = client.New(cfg, client.Options{Scheme: scheme}); err != nil {
		t.Fatal(err)
	}
	configs := &envtest.WebhookInstallOptions{Paths: []string{filepath.Join(plane.Root, "config", "webhook", "policies.yaml")}}
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

func (w *world) create(o client.Object) {
	w.t.Helper()
	if err := w.Create(w.t.Context(), o); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) delete(o client.Object) {
	w.t.Helper()
	// The test's own context is done by now.
	if err := w.Delete(context.WithoutCancel(w.t.Context()), o); err != nil {
		w.t.Error(err)
	}
}

// namespaced makes a namespace with the Service checkout, for one test.
func (w *world) namespaced(t *testing.T) string {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-", ",", "", "'", "").Replace(t.Name()))
	name = strings.Trim(name[max(0, len(name)-63):], "-")
	w.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	w.create(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "checkout"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "checkout"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	})
	return name
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

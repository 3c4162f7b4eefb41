// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook"

	redisconfig "github.com/weir-dev/weir/internal/configstore/redis"
	"github.com/weir-dev/weir/internal/inject"
	"github.com/weir-dev/weir/internal/servingcert"
	"github.com/weir-dev/weir/internal/webhook/v1alpha1"
)

// The objects that admission needs, as config and the chart name them.
const (
	webhookService       = "weir-webhook"
	webhookSecret        = "weir-webhook"
	policyConfigurations = "weir-policies"
	podConfiguration     = "weir-pods"
)

// admission is the part of the manager that the API server asks. A nil one answers nothing.
type admission struct {
	port int
	// namespace is the manager's own.
	namespace string
	cert      certificate
	// sidecars are the settings of those that pods get. Nil is none.
	sidecars *inject.Settings
	log      logr.Logger
}

// certificate is what the webhooks are served with.
type certificate interface {
	GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error)
	Ready(address string) func(*http.Request) error
}

// newAdmission reads what admission needs, without a question to the API server.
func (o options) newAdmission(kube *rest.Config, log logr.Logger) (*admission, error) {
	if o.webhookPort == 0 {
		return nil, nil
	}
	namespace, err := o.ownNamespace()
	if err != nil {
		return nil, err
	}
	a := &admission{port: o.webhookPort, namespace: namespace, log: log}
	if o.configDir != "" {
		if a.sidecars, err = readSettings(filepath.Join(o.configDir, "sidecar.yaml")); err != nil {
			return nil, fmt.Errorf("--config-dir: %w", err)
		}
		a.sidecars.Credentials = o.redisUsers != "" || o.sidecarCredentials != ""
	}
	a.cert, err = o.newCertificate(kube, namespace, log.WithName("certificate"))
	return a, err
}

// newCertificate gives the certificate of the flag's files, or one that we keep ourselves.
func (o options) newCertificate(kube *rest.Config, namespace string, log logr.Logger) (certificate, error) {
	name := webhookService + "." + namespace + ".svc"
	if o.webhookCertDir != "" {
		return servingcert.NewFiles(o.webhookCertDir, name), nil
	}
	// A client without a cache.
	c, err := client.New(kube, client.Options{})
	if err != nil {
		return nil, fmt.Errorf("making a client for the certificate: %w", err)
	}
	return servingcert.New(c,
		types.NamespacedName{Namespace: namespace, Name: webhookSecret},
		[]string{name},
		[]client.Object{
			&admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: policyConfigurations}},
			&admissionv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: policyConfigurations}},
			&admissionv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: podConfiguration}},
		},
		servingcert.Options{}, log), nil
}

func readSettings(path string) (*inject.Settings, error) {
	text, err := os.ReadFile(path) //nolint:gosec // The operator names the folder.
	if err != nil {
		return nil, fmt.Errorf("reading the settings of sidecars: %w", err)
	}
	s, err := inject.ParseSettings(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &s, nil
}

// namespaceFile is where Kubernetes tells a pod its namespace.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// ownNamespace is that of the manager.
func (o options) ownNamespace() (string, error) {
	if o.namespace != "" {
		return o.namespace, nil
	}
	text, err := os.ReadFile(namespaceFile)
	if err != nil {
		return "", usageError{errors.New("--namespace is required outside a cluster, with --webhook-port and --redis-users: the namespace of the webhooks' Service and of Secrets")}
	}
	return strings.TrimSpace(string(text)), nil
}

// server is what the manager is to serve with; nil is nothing.
func (a *admission) server() webhook.Server {
	if a == nil {
		return nil
	}
	return unattached{webhook.NewServer(webhook.Options{
		Port: a.port,
		TLSOpts: []func(*tls.Config){func(c *tls.Config) {
			c.GetCertificate = a.cert.GetCertificate
			// HTTP/2 would refuse what comes while a connection closes, to be sent again, a second later the next time.
			c.NextProtos = []string{"http/1.1"}
		}},
	})}
}

// unattached is a server that answers one request on each connection. The API server would keep those to a replica
// that is about to end, although its Service doesn't lead there any more: it would still be asked, with the settings of
// a former version, and at last meet its end with a request that it can't send again.
type unattached struct{ webhook.Server }

// Register implements [webhook.Server].
func (s unattached) Register(path string, hook http.Handler) {
	s.Server.Register(path, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		hook.ServeHTTP(w, r)
	}))
}

// injects says whether pods get sidecars.
func (a *admission) injects() bool { return a != nil && a.sidecars != nil }

// addTo has every replica of the manager answer, whoever leads.
func (a *admission) addTo(mgr ctrl.Manager, redis stores, instance string) error {
	if a == nil {
		return nil
	}
	store := redisconfig.NewPublisher(redis.configs, instance, a.log.WithName("configstore"))
	if err := v1alpha1.NewRateLimitPolicyWebhook(mgr.GetAPIReader(), store).SetupWithManager(mgr); err != nil {
		return err
	}
	if a.injects() {
		settings := *a.sidecars
		settings.Instance = instance
		v1alpha1.SetupPodWebhook(mgr, settings, mgr.GetEventRecorder("weir-manager"))
	}
	if keeper, ours := a.cert.(*servingcert.Keeper); ours {
		if err := mgr.Add(keeper); err != nil {
			return fmt.Errorf("adding the keeper of the certificate: %w", err)
		}
	}
	ready := a.cert.Ready(net.JoinHostPort("127.0.0.1", strconv.Itoa(a.port)))
	if err := errors.Join(mgr.AddReadyzCheck("webhooks", ready), mgr.AddReadyzCheck("caches", synced(mgr))); err != nil {
		return fmt.Errorf("adding a readiness check: %w", err)
	}
	return nil
}

// addMetrics has the expiry of the certificate among the metrics.
func (a *admission) addMetrics(registry prometheus.Registerer) error {
	if a == nil {
		return nil
	}
	if err := registry.Register(servingcert.Expiration(a.cert.GetCertificate)); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	return nil
}

// synced gives a check that what pods are injected by is known: whoever asks before would have to wait.
func synced(mgr ctrl.Manager) func(*http.Request) error {
	return func(req *http.Request) error {
		ctx, cancel := context.WithTimeout(req.Context(), 500*time.Millisecond)
		defer cancel()
		if !mgr.GetCache().WaitForCacheSync(ctx) {
			return errors.New("the caches are not filled yet")
		}
		return nil
	}
}

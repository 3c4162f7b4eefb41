// SPDX-License-Identifier: Apache-2.0

package controller_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/controller"
	"github.com/weir-dev/weir/test/controlplane"
)

// The manager is the real one's service account, with no other rights than that has.
func TestCredentials(t *testing.T) {
	w := newCredentialsWorld(t)

	t.Run("a namespace that has opted in has them", func(t *testing.T) {
		for _, label := range []string{v1alpha1.LabelInject, v1alpha1.LabelCredentials} {
			namespace := w.createNamespace(t, map[string]string{label: "enabled"})
			if diff := cmp.Diff(secretOf("first-password"), w.awaitSecret(t, namespace, "first-password")); diff != "" {
				t.Errorf("%s: Secret (-want +got):\n%s", label, diff)
			}
		}
	})
	t.Run("a namespace that opts in later gets them, and loses them when it leaves", func(t *testing.T) {
		namespace := w.createNamespace(t, nil)
		w.label(t, namespace, v1alpha1.InjectEnabled)
		w.awaitSecret(t, namespace, "first-password")
		w.label(t, namespace, v1alpha1.InjectDisabled)
		w.awaitNoSecret(t, namespace)
	})
	t.Run("they stay until the last pod with a sidecar is gone", func(t *testing.T) {
		namespace := w.createNamespace(t, map[string]string{v1alpha1.LabelInject: v1alpha1.InjectEnabled})
		w.awaitSecret(t, namespace, "first-password")
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "checkout", Labels: map[string]string{v1alpha1.LabelInjected: "true"}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}},
		}
		w.must(t, w.Create(t.Context(), pod))
		w.label(t, namespace, "")
		// Another namespace that leaves after it tells when this one has been looked at.
		other := w.createNamespace(t, map[string]string{v1alpha1.LabelInject: v1alpha1.InjectEnabled})
		w.awaitSecret(t, other, "first-password")
		w.label(t, other, "")
		w.awaitNoSecret(t, other)
		w.awaitSecret(t, namespace, "first-password")

		w.must(t, w.Delete(t.Context(), pod, client.GracePeriodSeconds(0)))
		w.awaitNoSecret(t, namespace)
	})
	t.Run("somebody else's Secret of the same name is left alone", func(t *testing.T) {
		namespace := w.createNamespace(t, nil)
		theirs := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "weir-redis"}, StringData: map[string]string{"username": "theirs"}}
		w.must(t, w.Create(t.Context(), theirs))
		w.label(t, namespace, v1alpha1.InjectEnabled)
		other := w.createNamespace(t, map[string]string{v1alpha1.LabelInject: v1alpha1.InjectEnabled})
		w.awaitSecret(t, other, "first-password")
		var s corev1.Secret
		w.must(t, w.Get(t.Context(), client.ObjectKeyFromObject(theirs), &s))
		if diff := cmp.Diff(theirs.ResourceVersion, s.ResourceVersion); diff != "" {
			t.Errorf("version (-before +after):\n%s", diff)
		}
		if !w.hasLogged("a Secret is somebody else's") {
			t.Error("nobody is told")
		}
		w.label(t, namespace, "")
		w.must(t, w.Delete(t.Context(), theirs))
	})
	t.Run("new ones get to every namespace", func(t *testing.T) {
		namespace := w.createNamespace(t, map[string]string{v1alpha1.LabelInject: v1alpha1.InjectEnabled})
		w.awaitSecret(t, namespace, "first-password")
		w.set(nil, errors.New("the file is being written"))
		w.set(files("second-password"), nil)
		if diff := cmp.Diff(secretOf("second-password"), w.awaitSecret(t, namespace, "second-password")); diff != "" {
			t.Errorf("Secret (-want +got):\n%s", diff)
		}
	})
	t.Run("the log has none of them", func(t *testing.T) {
		if w.hasLogged("first-password") || w.hasLogged("second-password") {
			t.Error("a password was logged")
		}
	})
}

func files(password string) map[string][]byte {
	return map[string][]byte{"username": []byte("weir-sidecar"), "password": []byte(password)}
}

// secretOf is what matters of a Secret with such a password.
func secretOf(password string) *corev1.Secret {
	return &corev1.Secret{Type: "ratelimit.weir.dev/redis-credentials", Data: files(password)}
}

// credentialsWorld is a manager that keeps credentials, and an administrator.
type credentialsWorld struct {
	*world

	mu    sync.Mutex
	files map[string][]byte
	err   error
	// logged is what the manager has logged, at every level.
	logged []string
}

func newCredentialsWorld(t *testing.T) *credentialsWorld {
	t.Helper()
	c, err := client.New(plane.Config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w := &credentialsWorld{world: &world{t: t, Client: c}, files: files("first-password")}
	manager := installRights(t, w)
	anyName := true
	log := funcr.New(w.log, funcr.Options{Verbosity: 10})
	mgr, err := ctrl.NewManager(manager, ctrl.Options{
		Logger: log, Metrics: metricsserver.Options{BindAddress: "0"}, Controller: config.Controller{SkipNameValidation: &anyName},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := controller.NewCredentialsReconciler(mgr.GetClient(), mgr.GetAPIReader(), w.source, log)
	if err := r.SetupWithManager(mgr); err != nil {
		t.Fatal(err)
	}
	controlplane.RunManager(t, mgr)
	return w
}

// installRights gives the manager's service account its rights, and waits until the API server goes by them. It gives
// a client's configuration that acts as that account.
func installRights(t *testing.T, w *credentialsWorld) *rest.Config {
	t.Helper()
	system := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "weir-system"}}
	if err := w.Create(t.Context(), system); client.IgnoreAlreadyExists(err) != nil {
		t.Fatal(err)
	}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(kubeconfig, plane.Kubeconfig, 0o600); err != nil {
		t.Fatal(err)
	}
	apply := exec.CommandContext(t.Context(), plane.Kubectl, "--kubeconfig", kubeconfig, "--namespace", "weir-system", "apply", "-k", filepath.Join(plane.Root, "config", "rbac"))
	if out, err := apply.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	manager := rest.CopyConfig(plane.Config)
	manager.Impersonate.UserName = "system:serviceaccount:weir-system:weir-manager"
	c, err := client.New(manager, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w.eventually("the manager may create Secrets, but not this one", func() bool {
		err := c.Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "weir-system", Name: "other"}}, client.DryRunAll)
		return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "weir-manager-secrets")
	})
	return manager
}

func (w *credentialsWorld) source() (map[string][]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.files, w.err
}

func (w *credentialsWorld) log(prefix, args string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.logged = append(w.logged, prefix+" "+args)
}

func (w *credentialsWorld) hasLogged(words string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.logged, func(line string) bool { return strings.Contains(line, words) })
}

func (w *credentialsWorld) set(files map[string][]byte, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.files, w.err = files, err
}

func (w *credentialsWorld) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (w *credentialsWorld) createNamespace(t *testing.T, labels map[string]string) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "credentials-", Labels: labels}}
	w.must(t, w.Create(t.Context(), ns))
	return ns.Name
}

// label sets the label of a namespace, or removes it if the value is empty.
func (w *credentialsWorld) label(t *testing.T, namespace, value string) {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	w.must(t, w.Get(t.Context(), client.ObjectKeyFromObject(ns), ns))
	before := ns.DeepCopy()
	if value == "" {
		delete(ns.Labels, v1alpha1.LabelInject)
	} else {
		ns.Labels[v1alpha1.LabelInject] = value
	}
	w.must(t, w.Patch(t.Context(), ns, client.MergeFrom(before)))
}

// awaitSecret gives what matters of a namespace's Secret once it has the password.
func (w *credentialsWorld) awaitSecret(t *testing.T, namespace, password string) *corev1.Secret {
	t.Helper()
	var s corev1.Secret
	w.eventually("namespace "+namespace+" has its Secret", func() bool {
		err := w.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "weir-redis"}, &s)
		return err == nil && string(s.Data["password"]) == password
	})
	return &corev1.Secret{Type: s.Type, Data: s.Data}
}

func (w *credentialsWorld) awaitNoSecret(t *testing.T, namespace string) {
	t.Helper()
	w.eventually("namespace "+namespace+" has no Secret any more", func() bool {
		return apierrors.IsNotFound(w.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "weir-redis"}, new(corev1.Secret)))
	})
}

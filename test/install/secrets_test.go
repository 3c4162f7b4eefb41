// SPDX-License-Identifier: Apache-2.0

package install_test

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	corev1apply "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/weir-dev/weir/internal/inject"
)

// patience is for what has no stated bound, on a machine that is busy with other things.
const patience = time.Minute

// Whoever has stolen the manager's token has its rights.
func TestWithTheManagersTokenNoOtherSecretIsWritten(t *testing.T) {
	admin := newClient(t)
	thief := asManager(t, admin)
	optedIn := newNamespace(t, admin, map[string]string{"ratelimit.weir.dev/inject": "enabled"})
	podsOptIn := newNamespace(t, admin, map[string]string{"ratelimit.weir.dev/credentials": "enabled"})
	optedOut := newNamespace(t, admin, map[string]string{"ratelimit.weir.dev/inject": "disabled"})

	for name, test := range map[string]struct {
		namespace, name string
		kind            corev1.SecretType
		refused         bool
	}{
		"what sidecars log in with":                      {optedIn, "weir-redis", inject.CredentialsType, false},
		"the same where single pods opt in":              {podsOptIn, "weir-redis", inject.CredentialsType, false},
		"the certificate":                                {namespace, "weir-webhook", corev1.SecretTypeTLS, false},
		"the users of Redis":                             {namespace, "weir-redis-users", corev1.SecretTypeOpaque, false},
		"another name":                                   {optedIn, "weir-redis-2", inject.CredentialsType, true},
		"a service account's token":                      {optedIn, "weir-redis", corev1.SecretTypeServiceAccountToken, true},
		"a service account's token under another name":   {optedIn, "token", corev1.SecretTypeServiceAccountToken, true},
		"a token of our own namespace":                   {namespace, "weir-redis-users", corev1.SecretTypeServiceAccountToken, true},
		"a token that lets a node join":                  {"kube-system", "bootstrap-token-abcdef", corev1.SecretTypeBootstrapToken, true},
		"another type":                                   {optedIn, "weir-redis", corev1.SecretTypeOpaque, true},
		"a namespace that has opted out":                 {optedOut, "weir-redis", inject.CredentialsType, true},
		"a namespace that nobody has asked about":        {"default", "weir-redis", inject.CredentialsType, true},
		"our own namespace is none of the sidecars'":     {namespace, "weir-redis", inject.CredentialsType, true},
		"the users of Redis in somebody's namespace":     {optedIn, "weir-redis-users", corev1.SecretTypeOpaque, true},
		"the certificate's name with another type":       {namespace, "weir-webhook", corev1.SecretTypeOpaque, true},
		"what the API server was to make up the name of": {optedIn, "", inject.CredentialsType, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: test.namespace, Name: test.name}, Type: test.kind}
			switch {
			case test.name == "":
				s.GenerateName = "weir-redis"
			case test.kind == corev1.SecretTypeTLS:
				s.Data = map[string][]byte{"tls.crt": nil, "tls.key": nil}
			case test.kind == corev1.SecretTypeServiceAccountToken:
				s.Annotations = map[string]string{corev1.ServiceAccountNameKey: "default"}
			}
			wantRefused(t, test.refused, thief.Create(t.Context(), s, client.DryRunAll))
		})
	}
}

func TestWhatTheManagerMayDoToSecretsThatAreThere(t *testing.T) {
	admin := newClient(t)
	manager := asManager(t, admin)
	ns := newNamespace(t, admin, map[string]string{"ratelimit.weir.dev/inject": "enabled"})
	theirs := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "theirs"}}
	if err := admin.Create(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
	ours := corev1apply.Secret("weir-redis", ns).WithType(inject.CredentialsType).WithData(map[string][]byte{"password": []byte("a")})
	apply := func() error {
		return manager.Apply(t.Context(), ours, client.FieldOwner("test"), client.ForceOwnership)
	}
	t.Run("it applies its own, new and again", func(t *testing.T) {
		for range 2 {
			wantRefused(t, false, apply())
		}
	})
	t.Run("it reads its own", func(t *testing.T) {
		wantRefused(t, false, manager.Get(t.Context(), client.ObjectKey{Namespace: ns, Name: "weir-redis"}, new(corev1.Secret)))
	})
	t.Run("it neither reads nor changes nor deletes another", func(t *testing.T) {
		wantRefused(t, true, manager.Get(t.Context(), client.ObjectKeyFromObject(theirs), new(corev1.Secret)))
		wantRefused(t, true, manager.List(t.Context(), new(corev1.SecretList)))
		wantRefused(t, true, manager.List(t.Context(), new(corev1.SecretList), client.InNamespace(ns)))
		wantRefused(t, true, manager.Patch(t.Context(), theirs.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(`{"data":{"a":"Yg=="}}`))))
		wantRefused(t, true, manager.Update(t.Context(), theirs.DeepCopy()))
		wantRefused(t, true, manager.Delete(t.Context(), theirs.DeepCopy()))
		wantRefused(t, true, manager.DeleteAllOf(t.Context(), new(corev1.Secret), client.InNamespace(ns)))
	})
	t.Run("once the namespace has left it can't write, but delete", func(t *testing.T) {
		unlabel := []byte(`{"metadata":{"labels":{"ratelimit.weir.dev/inject":null}}}`)
		left := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}
		if err := admin.Patch(t.Context(), left, client.RawPatch("application/merge-patch+json", unlabel)); err != nil {
			t.Fatal(err)
		}
		ours.WithData(map[string][]byte{"password": []byte("b")})
		// The policy looks into a cache of the API server's, which follows.
		eventually(t, "writing is refused", func() bool { return apierrors.IsForbidden(apply()) })
		wantRefused(t, false, manager.Delete(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "weir-redis"}}))
	})
}

func wantRefused(t *testing.T, refused bool, err error) {
	t.Helper()
	if refused != apierrors.IsForbidden(err) || !refused && err != nil {
		t.Errorf("got %v, want a refusal: %t", err, refused)
	}
}

// asManager installs what says who may do what to Secrets, and gives a client with the manager's rights, once the API
// server goes by them.
func asManager(t *testing.T, admin client.Client) client.Client {
	t.Helper()
	createNamespace(t, admin)
	for _, o := range kustomize(t) {
		if !strings.HasPrefix(o.GetAPIVersion(), "rbac.authorization.k8s.io/") && !strings.HasPrefix(o.GetKind(), "ValidatingAdmissionPolicy") {
			continue
		}
		if err := admin.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(o), client.ForceOwnership, client.FieldOwner("install-test")); err != nil {
			t.Fatal(err)
		}
	}
	config := rest.CopyConfig(plane.Config)
	config.Impersonate.UserName = "system:serviceaccount:" + namespace + ":weir-manager"
	c, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	probe := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "probe"}}
	eventually(t, "the policy is in force", func() bool {
		err := c.Create(t.Context(), probe.DeepCopy(), client.DryRunAll)
		return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "ValidatingAdmissionPolicy")
	})
	return c
}

func newNamespace(t *testing.T, c client.Client, labels map[string]string) string {
	t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "install-", Labels: labels}}
	if err := c.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	return ns.Name
}

func eventually(t *testing.T, what string, come func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !come(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// The rights are few enough to be told.
func TestTheManagerHasNoRightToEverything(t *testing.T) {
	for name, objects := range map[string][]*unstructured.Unstructured{
		"config": kustomize(t), "chart": helm(t), "chart, all values used": helm(t, "--values", "testdata/all-values.yaml"),
	} {
		t.Run(name, func(t *testing.T) {
			for _, o := range objects {
				rules, _, err := unstructured.NestedSlice(o.Object, "rules")
				if err != nil || !strings.HasSuffix(o.GetKind(), "Role") {
					continue
				}
				for _, rule := range rules {
					for _, field := range []string{"apiGroups", "resources", "verbs", "nonResourceURLs"} {
						values, _, err := unstructured.NestedStringSlice(rule.(map[string]any), field)
						if err != nil {
							t.Fatal(err)
						}
						for _, v := range values {
							if strings.Contains(v, "*") {
								t.Errorf("%s %s: %s has %q", o.GetKind(), o.GetName(), field, v)
							}
						}
					}
				}
			}
		})
	}
}

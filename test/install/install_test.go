// SPDX-License-Identifier: Apache-2.0

// Package install_test holds the two ways of installing Weir, config and the chart, to an API server and
// to each other.
package install_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/inject"
	"github.com/weir-dev/weir/test/controlplane"
)

const namespace = "weir-system"

var (
	plane *controlplane.ControlPlane
	root  = filepath.Join("..", "..")
)

func TestMain(m *testing.M) {
	os.Exit(controlplane.Main(m, &plane))
}

func TestTheAPIServerTakesEveryObject(t *testing.T) {
	c := newClient(t)
	createNamespace(t, c)
	for name, objects := range map[string][]*unstructured.Unstructured{
		"config":                 kustomize(t),
		"chart":                  helm(t),
		"chart, all values used": helm(t, "--values", "testdata/all-values.yaml"),
	} {
		for _, o := range objects {
			t.Run(fmt.Sprintf("%s/%s %s", name, o.GetKind(), o.GetName()), func(t *testing.T) {
				err := c.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(o), client.DryRunAll, client.ForceOwnership, client.FieldOwner("install-test"))
				if err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// The namespace of config enforces the profile, which says nothing of Deployments: their pods just never come.
func TestOurPodsKeepToTheRestrictedProfile(t *testing.T) {
	c := newClient(t)
	createNamespace(t, c)
	for name, objects := range map[string][]*unstructured.Unstructured{"config": kustomize(t), "chart": helm(t)} {
		for _, o := range objects {
			template, found, err := unstructured.NestedMap(o.Object, "spec", "template")
			if err != nil {
				t.Fatal(err)
			}
			if !found {
				continue
			}
			t.Run(name+"/"+o.GetKind()+" "+o.GetName(), func(t *testing.T) {
				pod := &unstructured.Unstructured{Object: template}
				pod.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Pod"))
				pod.SetNamespace(namespace)
				pod.SetName(o.GetName())
				if err := c.Create(t.Context(), pod, client.DryRunAll); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// What the profile leaves open.
func TestOurPodsAreShutInFurther(t *testing.T) {
	for name, objects := range map[string][]*unstructured.Unstructured{"config": kustomize(t), "chart": helm(t)} {
		var policies []networkingv1.NetworkPolicy
		pods := map[string]corev1.PodTemplateSpec{}
		for _, o := range objects {
			var workload appsv1.Deployment // A StatefulSet's template is in the same place.
			var policy networkingv1.NetworkPolicy
			switch o.GetKind() {
			case "Deployment", "StatefulSet":
				convert(t, o, &workload)
				pods[o.GetKind()+" "+o.GetName()] = workload.Spec.Template
			case "NetworkPolicy":
				convert(t, o, &policy)
				policies = append(policies, policy)
			}
		}
		for of, pod := range pods {
			t.Run(name+"/"+of, func(t *testing.T) {
				for _, c := range pod.Spec.Containers {
					if s := c.SecurityContext; s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
						t.Errorf("container %s may write to its root", c.Name)
					}
				}
				if pod.Spec.ServiceAccountName == "" && (pod.Spec.AutomountServiceAccountToken == nil || *pod.Spec.AutomountServiceAccountToken) {
					t.Error("it has a token that it doesn't need")
				}
				selects := func(p networkingv1.NetworkPolicy) bool {
					selector, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
					return err == nil && selector.Matches(labels.Set(pod.Labels))
				}
				if !slices.ContainsFunc(policies, selects) {
					t.Error("no NetworkPolicy selects it")
				}
			})
		}
	}
}

func convert(t *testing.T, o *unstructured.Unstructured, into any) {
	t.Helper()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, into); err != nil {
		t.Fatal(err)
	}
}

func TestMonitorsFollowTheirValues(t *testing.T) {
	monitors := func(args ...string) (kinds []string) {
		for _, o := range helm(t, args...) {
			if strings.HasPrefix(o.GetAPIVersion(), "monitoring.coreos.com/") {
				kinds = append(kinds, o.GetKind())
			}
		}
		return kinds
	}
	for _, test := range []struct {
		values string
		want   []string
	}{
		{"replicas=2", nil},
		{"metrics.serviceMonitor.enabled=true", []string{"ServiceMonitor"}},
		{"metrics.podMonitor.enabled=true,metrics.podMonitor.token.secretName=reader", []string{"PodMonitor"}},
	} {
		if diff := cmp.Diff(test.want, monitors("--set", test.values)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.values, diff)
		}
	}
}

func TestTheBundledRedisMakesWayForAnother(t *testing.T) {
	for name, args := range map[string][]string{
		"named by its URL":  {"--set", "redis.url=redis://other:6379"},
		"named by a Secret": {"--set", "redis.urlFrom.secretName=redis,sidecar.redis.url=redis://other:6379"},
		"with all values":   {"--values", "testdata/all-values.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, o := range helm(t, args...) {
				if strings.HasPrefix(o.GetName(), "weir-redis") || o.GetName() == "weir-manager-redis" {
					t.Errorf("%s %s is there", o.GetKind(), o.GetName())
				}
			}
		})
	}
}

func TestCertManagerTakesOverTheCertificate(t *testing.T) {
	objects := helm(t, "--set", "webhook.certificates=CertManager")
	for _, o := range objects {
		if strings.HasSuffix(o.GetKind(), "WebhookConfiguration") {
			if diff := cmp.Diff(namespace+"/weir-webhook", o.GetAnnotations()["cert-manager.io/inject-ca-from"]); diff != "" {
				t.Errorf("%s %s: whose authority is to be trusted (-want +got):\n%s", o.GetKind(), o.GetName(), diff)
			}
		}
		if o.GetName() == "weir-manager-webhook" || strings.Contains(fmt.Sprint(o.Object["rules"]), "webhookconfigurations") {
			t.Errorf("%s %s gives the manager rights that it doesn't need", o.GetKind(), o.GetName())
		}
	}
	certificate, _, err := unstructured.NestedMap(find(t, objects, "Certificate", "weir-webhook").Object, "spec")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]any{"weir-webhook." + namespace + ".svc"}, certificate["dnsNames"]); diff != "" {
		t.Errorf("names in the certificate (-want +got):\n%s", diff)
	}
	// What signs is an authority, and not the certificate itself.
	if diff := cmp.Diff(map[string]any{"ca": map[string]any{"secretName": "weir-webhook-ca"}}, find(t, objects, "Issuer", "weir-webhook").Object["spec"]); diff != "" {
		t.Errorf("issuer (-want +got):\n%s", diff)
	}
	deployment := fmt.Sprint(find(t, objects, "Deployment", "weir-manager").Object["spec"])
	for _, part := range []string{"--webhook-cert-dir=/etc/weir-webhook", fmt.Sprint("secretName:", certificate["secretName"])} {
		if !strings.Contains(deployment, part) {
			t.Errorf("the Deployment lacks %s", part)
		}
	}
}

func TestConfigAndChartInstallTheSame(t *testing.T) {
	config, chart := kustomize(t), helm(t)
	want := map[string]map[string]any{}
	for _, o := range config {
		// helm makes the namespace itself, when asked to.
		if o.GetKind() != "Namespace" {
			want[o.GetKind()+" "+o.GetName()] = essence(o)
		}
	}
	got := map[string]map[string]any{}
	for _, o := range chart {
		got[o.GetKind()+" "+o.GetName()] = essence(o)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("objects (-config +chart):\n%s", diff)
	}
}

func TestTheChartLeavesOutTheCRDsWhenAsked(t *testing.T) {
	for _, o := range helm(t, "--set", "crds.install=false") {
		if o.GetKind() == "CustomResourceDefinition" {
			t.Errorf("%s is there", o.GetName())
		}
	}
}

func TestTheChartRefusesValuesItDoesNotKnow(t *testing.T) {
	out, err := template(t, "--set", "replicaz=3").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "replicaz") {
		t.Errorf("got error %v and output %q, want a refusal of replicaz", err, out)
	}
}

func TestTheManagerUnderstandsItsSettings(t *testing.T) {
	for name, objects := range map[string][]*unstructured.Unstructured{
		"config":                 kustomize(t),
		"chart":                  helm(t),
		"chart, all values used": helm(t, "--values", "testdata/all-values.yaml"),
	} {
		t.Run(name, func(t *testing.T) {
			text, _, err := unstructured.NestedString(find(t, objects, "ConfigMap", "weir-manager").Object, "data", "sidecar.yaml")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := inject.ParseSettings([]byte(text)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestTheChartRefusesToShowAPassword(t *testing.T) {
	for name, value := range map[string]string{
		"in the URL":     "redis.url=redis://:secret@redis:6379",
		"in a Secret":    "redis.urlFrom.secretName=redis",
		"of a sidecar's": "sidecar.redis.url=redis://:secret@redis:6379",
	} {
		t.Run(name, func(t *testing.T) {
			out, err := template(t, "--set", value).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "sidecar") {
				t.Errorf("got error %v and output %q, want a refusal that names the sidecar's value", err, out)
			}
		})
	}
}

// A webhook that is down must keep nobody from anything but changing what it is for.
func TestWebhooksKeepOutOfTheWay(t *testing.T) {
	for name, objects := range map[string][]*unstructured.Unstructured{
		"config":                 kustomize(t),
		"chart":                  helm(t),
		"chart, all values used": helm(t, "--values", "testdata/all-values.yaml"),
	} {
		t.Run(name, func(t *testing.T) {
			for _, o := range objects {
				if !strings.HasSuffix(o.GetKind(), "WebhookConfiguration") {
					continue
				}
				var c admissionv1.MutatingWebhookConfiguration // The other kind has the same fields, but for one.
				convert(t, o, &c)
				for i := range c.Webhooks {
					wantOutOfTheWay(t, &c.Webhooks[i])
				}
			}
		})
	}
}

func wantOutOfTheWay(t *testing.T, w *admissionv1.MutatingWebhook) {
	t.Helper()
	for _, r := range w.Rules {
		if slices.Contains(r.Operations, admissionv1.Delete) || slices.Contains(r.Operations, admissionv1.OperationAll) {
			t.Errorf("%s is asked about deletion", w.Name)
		}
		if slices.Equal(r.Resources, []string{"ratelimitpolicies"}) {
			continue
		}
		if !slices.Equal(r.Resources, []string{"pods"}) || !slices.Equal(r.Operations, []admissionv1.OperationType{admissionv1.Create}) {
			t.Errorf("%s is asked about %v of %v", w.Name, r.Operations, r.Resources)
		}
		selector, err := metav1.LabelSelectorAsSelector(w.NamespaceSelector)
		if err != nil {
			t.Fatal(err)
		}
		for _, ns := range []string{"kube-system", namespace} {
			for _, inject := range []string{"enabled", ""} {
				if selector.Matches(labels.Set{corev1.LabelMetadataName: ns, v1alpha1.LabelInject: inject}) {
					t.Errorf("%s is asked about pods of %s", w.Name, ns)
				}
			}
		}
	}
}

// essence is an object without what Helm adds for its own sake, and without the pull policy, which config
// leaves to the cluster.
func essence(o *unstructured.Unstructured) map[string]any {
	o = o.DeepCopy()
	// kustomize doesn't know that these have none. The API server does.
	if strings.HasPrefix(o.GetKind(), "ValidatingAdmissionPolicy") {
		o.SetNamespace("")
	}
	return strip(o.Object, "annotations", "app.kubernetes.io/instance", "app.kubernetes.io/version", "app.kubernetes.io/managed-by",
		"app.kubernetes.io/component", "helm.sh/chart", "imagePullPolicy").(map[string]any)
}

// strip removes keys at any depth, and makes every number a float64.
func strip(v any, keys ...string) any {
	switch v := v.(type) {
	case map[string]any:
		for _, key := range keys {
			delete(v, key)
		}
		for key := range v {
			v[key] = strip(v[key], keys...)
		}
	case []any:
		for i := range v {
			v[i] = strip(v[i], keys...)
		}
	case int64:
		return float64(v)
	}
	return v
}

func newClient(t *testing.T) client.Client {
	t.Helper()
	c, err := client.New(plane.Config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return client.WithFieldValidation(c, metav1.FieldValidationStrict)
}

// createNamespace creates the namespace of config, with its labels, if no other test has.
func createNamespace(t *testing.T, c client.Client) {
	t.Helper()
	o := find(t, kustomize(t), "Namespace", namespace)
	if err := c.Create(t.Context(), o); client.IgnoreAlreadyExists(err) != nil {
		t.Fatal(err)
	}
}

func find(t *testing.T, objects []*unstructured.Unstructured, kind, name string) *unstructured.Unstructured {
	t.Helper()
	for _, o := range objects {
		if o.GetKind() == kind && o.GetName() == name {
			return o
		}
	}
	t.Fatalf("there is no %s %s", kind, name)
	return nil
}

func kustomize(t *testing.T) []*unstructured.Unstructured {
	t.Helper()
	return objects(t, exec.CommandContext(t.Context(), plane.Kubectl, "kustomize", filepath.Join(root, "config", "default")))
}

func helm(t *testing.T, args ...string) []*unstructured.Unstructured {
	t.Helper()
	return objects(t, template(t, args...))
}

func template(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	path, err := exec.CommandContext(t.Context(), filepath.Join(root, "hack", "tool.sh"), "helm").Output()
	if err != nil {
		t.Fatalf("finding helm: %v", err)
	}
	args = append([]string{"template", "weir", filepath.Join(root, "charts", "weir"), "--namespace", namespace}, args...)
	return exec.CommandContext(t.Context(), strings.TrimSpace(string(path)), args...)
}

func objects(t *testing.T, cmd *exec.Cmd) []*unstructured.Unstructured {
	t.Helper()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, &stderr)
	}
	var all []*unstructured.Unstructured
	for d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(out), 4096); ; {
		o := &unstructured.Unstructured{}
		err := d.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("%s: %v", cmd, err)
		}
		if len(o.Object) > 0 {
			all = append(all, o)
		}
	}
}

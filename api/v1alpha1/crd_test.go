// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/test/controlplane"
)

var plane *controlplane.ControlPlane

func TestMain(m *testing.M) {
	os.Exit(controlplane.Main(m, &plane))
}

func TestTheAPIServerEstablishesTheCRD(t *testing.T) {
	var crd apiextensionsv1.CustomResourceDefinition
	if err := newClient(t).Get(t.Context(), client.ObjectKey{Name: "ratelimitpolicies.ratelimit.weir.dev"}, &crd); err != nil {
		t.Fatal(err)
	}
	// A schema that the API server has reservations about would have NonStructuralSchema here.
	want := map[apiextensionsv1.CustomResourceDefinitionConditionType]apiextensionsv1.ConditionStatus{
		apiextensionsv1.Established:   apiextensionsv1.ConditionTrue,
		apiextensionsv1.NamesAccepted: apiextensionsv1.ConditionTrue,
	}
	got := map[apiextensionsv1.CustomResourceDefinitionConditionType]apiextensionsv1.ConditionStatus{}
	for _, c := range crd.Status.Conditions {
		got[c.Type] = c.Status
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("conditions (-want +got):\n%s", diff)
	}
}

// Each file begins with what the API server must say about it: the field, then the message.
func TestABadPolicyIsRefusedWithItsField(t *testing.T) {
	c := newClient(t)
	for _, path := range files(t, "testdata/refused/*.yaml") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			text, policy := load(t, path)
			err := c.Create(t.Context(), policy)
			if diff := cmp.Diff(comments(text), complaints(err)); diff != "" {
				t.Errorf("refusal (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAGoodPolicyIsAccepted(t *testing.T) {
	c := newClient(t)
	if err := c.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}); err != nil {
		t.Fatal(err)
	}
	for _, path := range append(files(t, "testdata/accepted/*.yaml"), files(t, "../../config/samples/*.yaml")...) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			_, policy := load(t, path)
			if err := c.Create(t.Context(), policy); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	c := newClient(t)
	policy := &v1alpha1.RateLimitPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "defaults", Namespace: metav1.NamespaceDefault},
		Spec: v1alpha1.RateLimitPolicySpec{
			Selector: &metav1.LabelSelector{},
			Limits: []v1alpha1.Limit{
				{
					Name:     "bucket",
					Key:      []v1alpha1.KeySource{{ClientIP: &v1alpha1.ClientIPKey{}}},
					Strategy: v1alpha1.Strategy{TokenBucket: &v1alpha1.TokenBucket{Requests: 10, Window: "1m"}},
				},
				{
					Name:     "sliding",
					When:     []v1alpha1.RequestMatch{{Paths: []v1alpha1.PathMatch{{Value: "/a"}}}},
					Strategy: v1alpha1.Strategy{SlidingWindow: &v1alpha1.SlidingWindow{Requests: 10, Window: "1m"}},
				},
			},
		},
	}
	if err := c.Create(t.Context(), policy); err != nil {
		t.Fatal(err)
	}
	var got v1alpha1.RateLimitPolicy
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(policy), &got); err != nil {
		t.Fatal(err)
	}
	want := v1alpha1.RateLimitPolicySpec{
		Selector:       &metav1.LabelSelector{},
		Enforcement:    v1alpha1.EnforcementEnforce,
		OnStoreFailure: &v1alpha1.OnStoreFailure{Mode: v1alpha1.OnStoreFailureOpen},
		Distribution:   &v1alpha1.Distribution{Mode: v1alpha1.DistributionExact},
		Limits: []v1alpha1.Limit{
			{
				Name: "bucket",
				Key: []v1alpha1.KeySource{{
					ClientIP:  &v1alpha1.ClientIPKey{IPv6PrefixLength: new(int32(64))},
					OnMissing: v1alpha1.OnMissingShare,
				}},
				// burst is left out: it defaults to requests, also when those are edited later.
				Strategy: v1alpha1.Strategy{TokenBucket: &v1alpha1.TokenBucket{Requests: 10, Window: "1m"}},
				Priority: v1alpha1.PriorityDefault,
			},
			{
				Name:     "sliding",
				When:     []v1alpha1.RequestMatch{{Paths: []v1alpha1.PathMatch{{Type: "Prefix", Value: "/a"}}}},
				Strategy: v1alpha1.Strategy{SlidingWindow: &v1alpha1.SlidingWindow{Requests: 10, Window: "1m", Precision: "Ring"}},
				Priority: v1alpha1.PriorityDefault,
			},
		},
	}
	if diff := cmp.Diff(want, got.Spec); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
	// What waits for the policy to be Ready must not take its creation for that.
	if diff := cmp.Diff(v1alpha1.RateLimitPolicyStatus{ObservedGeneration: -1}, got.Status); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

// newClient is as strict about unknown fields as kubectl.
func newClient(t *testing.T) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{v1alpha1.AddToScheme, corev1.AddToScheme, apiextensionsv1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.New(plane.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return client.WithFieldValidation(c, metav1.FieldValidationStrict)
}

// files are those of a pattern that hold objects.
func files(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	paths = slices.DeleteFunc(paths, func(p string) bool { return filepath.Base(p) == "kustomization.yaml" })
	if err != nil || len(paths) == 0 {
		t.Fatalf("no file is like %s: %v", pattern, err)
	}
	return paths
}

func load(t *testing.T, path string) ([]byte, *unstructured.Unstructured) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	object := &unstructured.Unstructured{}
	if err := yaml.UnmarshalStrict(text, &object.Object); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return text, object
}

// comments are the lines of a file's header.
func comments(text []byte) []string {
	var lines []string
	s := bufio.NewScanner(bytes.NewReader(text))
	for s.Scan() {
		comment, found := strings.CutPrefix(s.Text(), "# ")
		if !found {
			break
		}
		lines = append(lines, comment)
	}
	return lines
}

// complaints are what an API server says of each field, or in short where it read no further.
func complaints(err error) []string {
	var refusal *apierrors.StatusError
	if !errors.As(err, &refusal) {
		return nil
	}
	details := refusal.ErrStatus.Details
	if details == nil || len(details.Causes) == 0 {
		return []string{refusal.ErrStatus.Message}
	}
	var lines []string
	for _, cause := range details.Causes {
		lines = append(lines, cause.Field+": "+cause.Message)
	}
	return lines
}

// Whoever may write a policy must not reach by it what they can't reach by themselves.
func TestAPolicyNamesNothingOutsideItsNamespace(t *testing.T) {
	c := newClient(t)
	var crd apiextensionsv1.CustomResourceDefinition
	if err := c.Get(t.Context(), client.ObjectKey{Name: "ratelimitpolicies.ratelimit.weir.dev"}, &crd); err != nil {
		t.Fatal(err)
	}
	for _, v := range crd.Spec.Versions {
		for _, path := range foreign("spec", v.Schema.OpenAPIV3Schema.Properties["spec"]) {
			t.Errorf("%s: %s is there", v.Name, path)
		}
	}
	for name, target := range map[string]map[string]any{
		"a Service of another namespace": {"group": "", "kind": "Service", "name": "checkout", "namespace": "bank"},
		"a Secret":                       {"group": "", "kind": "Secret", "name": "weir-redis"},
		"a Redis":                        {"group": "redis.example.com", "kind": "Redis", "name": "counters"},
	} {
		t.Run(name+" is refused", func(t *testing.T) {
			policy := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{
				"targetRefs": []any{target},
				"limits":     []any{map[string]any{"name": "all", "strategy": map[string]any{"tokenBucket": map[string]any{"requests": int64(1), "window": "1m"}}}},
			}}}
			policy.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("RateLimitPolicy"))
			policy.SetNamespace(metav1.NamespaceDefault)
			policy.SetName("foreign")
			err := c.Create(t.Context(), policy)
			if !apierrors.IsInvalid(err) && !apierrors.IsBadRequest(err) {
				t.Errorf("got %v, want a refusal", err)
			}
		})
	}
}

// foreign gives the paths of fields that name a namespace, a Secret or a Redis.
func foreign(path string, schema apiextensionsv1.JSONSchemaProps) []string {
	var found []string
	for name, property := range schema.Properties {
		lower := strings.ToLower(name)
		if strings.Contains(lower, "namespace") || strings.Contains(lower, "secret") || strings.Contains(lower, "redis") {
			found = append(found, path+"."+name)
		}
		found = append(found, foreign(path+"."+name, property)...)
	}
	if schema.Items != nil && schema.Items.Schema != nil {
		found = append(found, foreign(path+"[]", *schema.Items.Schema)...)
	}
	return found
}

// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/inject"
	"github.com/weir-dev/weir/internal/inject/injecttest"
)

func TestPods(t *testing.T) {
	w := newWorld(t)
	for name, test := range map[string]func(*testing.T, *world){
		"a restricted namespace takes the pod with its sidecar":   restricted,
		"a pod of a labeled namespace can do without":             optedOut,
		"a pod alone can ask for the sidecar":                     optedIn,
		"a pod alone is told that it lacks credentials":           lockedOut,
		"a namespace can forbid it":                               forbidden,
		"why a pod has none is on the pod, and told to its owner": toldToOwner,
		"a dry run tells nobody but who asked":                    dryRun,
		"a Service that goes past the sidecar is told":            bypassed,
		"redirecting is the namespace's to choose":                redirected,
		"one that forbids what it takes is told":                  notRedirected,
		"what was accepted is accepted with the sidecar":          acceptedAsBefore,
	} {
		t.Run(name, func(t *testing.T) { test(t, w) })
	}
}

// newPod gives a pod that the restricted profile takes.
func newPod(namespace string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "checkout", Labels: map[string]string{"app": "checkout"}},
		Spec: corev1.PodSpec{
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: new(true), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name: "app", Image: "checkout",
				Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: new(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}
}

// outcome is what becomes of a pod.
type outcome struct {
	Sidecar  bool
	Why      string
	Warnings []string
	Events   []string
}

// outcomeOf creates a pod and gives what becomes of it.
func (w *world) outcomeOf(t *testing.T, p *corev1.Pod, options ...client.CreateOption) outcome {
	t.Helper()
	if err := w.Create(t.Context(), p, options...); err != nil {
		t.Fatal(err)
	}
	o := outcome{Why: p.Annotations[v1alpha1.AnnotationNotInjected], Warnings: w.warnings.take()}
	for _, c := range p.Spec.InitContainers {
		o.Sidecar = o.Sidecar || c.Name == inject.Container
	}
	for len(w.events.Events) > 0 {
		o.Events = append(o.Events, <-w.events.Events)
	}
	return o
}

func wantOutcome(t *testing.T, want, got outcome) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("outcome (-want +got):\n%s", diff)
	}
}

func restricted(t *testing.T, w *world) {
	ns := w.namespaced(t, v1alpha1.LabelInject, v1alpha1.InjectEnabled, "pod-security.kubernetes.io/enforce", "restricted")
	wantOutcome(t, outcome{Sidecar: true}, w.outcomeOf(t, newPod(ns)))
}

func optedOut(t *testing.T, w *world) {
	p := newPod(w.namespaced(t, v1alpha1.LabelInject, v1alpha1.InjectEnabled))
	p.Labels[v1alpha1.LabelInject] = v1alpha1.InjectDisabled
	wantOutcome(t, outcome{}, w.outcomeOf(t, p))
}

func optedIn(t *testing.T, w *world) {
	p := newPod(w.namespaced(t, v1alpha1.LabelCredentials, v1alpha1.CredentialsEnabled))
	p.Labels[v1alpha1.LabelInject] = v1alpha1.InjectEnabled
	wantOutcome(t, outcome{Sidecar: true}, w.outcomeOf(t, p))
}

func lockedOut(t *testing.T, w *world) {
	p := newPod(w.namespaced(t))
	p.Labels[v1alpha1.LabelInject] = v1alpha1.InjectEnabled
	p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "checkout", UID: "1", Controller: new(true)}}
	why := "the sidecar can't log in to Redis: label namespace " + p.Namespace + " ratelimit.weir.dev/credentials=enabled"
	wantOutcome(t, outcome{
		Sidecar:  true,
		Warnings: []string{why},
		Events:   []string{"Warning NoCredentials " + why},
	}, w.outcomeOf(t, p))
}

func forbidden(t *testing.T, w *world) {
	p := newPod(w.namespaced(t, v1alpha1.LabelInject, v1alpha1.InjectDisabled))
	p.Labels[v1alpha1.LabelInject] = v1alpha1.InjectEnabled
	wantOutcome(t, outcome{}, w.outcomeOf(t, p))
}

// windowsPod gives a pod that can't have the sidecar, and has an owner.
func windowsPod(namespace string) *corev1.Pod {
	p := newPod(namespace)
	p.Spec.NodeSelector = map[string]string{corev1.LabelOSStable: "windows"}
	p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "checkout", UID: "1", Controller: new(true)}}
	return p
}

const notOnWindows = "Platform: the sidecar runs on linux, not on windows"

func toldToOwner(t *testing.T, w *world) {
	ns := w.namespaced(t, v1alpha1.LabelInject, v1alpha1.InjectEnabled)
	wantOutcome(t, outcome{
		Why:      notOnWindows,
		Warnings: []string{"no sidecar of Weir: " + notOnWindows},
		Events:   []string{"Warning NotIntercepted no sidecar of Weir: " + notOnWindows},
	}, w.outcomeOf(t, windowsPod(ns)))
}

func dryRun(t *testing.T, w *world) {
	ns := w.namespaced(t, v1alpha1.LabelInject, v1alpha1.InjectEnabled)
	wantOutcome(t, outcome{
		Why:      notOnWindows,
		Warnings: []string{"no sidecar of Weir: " + notOnWindows},
	}, w.outcomeOf(t, windowsPod(ns), client.DryRunAll))
}

func bypassed(t *testing.T, w *world) {
	p := newPod(w.namespaced(t, v1alpha1.LabelInject, v1alpha1.InjectEnabled))
	p.Labels["app"] = "cart"
	w.create(t, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: "cart"},
		Spec:       corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone, Selector: map[string]string{"app": "cart"}, Ports: []corev1.ServicePort{{Port: 8080}}},
	})
	w.cached(t, p.Namespace, "cart")
	wantOutcome(t, outcome{
		Sidecar:  true,
		Warnings: []string{"Service cart reaches port 8080 by number, past the sidecar: set targetPort: http"},
	}, w.outcomeOf(t, p))
}

func redirected(t *testing.T, w *world) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		GenerateName: "webhook-",
		Labels:       map[string]string{v1alpha1.LabelInject: v1alpha1.InjectEnabled},
		Annotations:  map[string]string{v1alpha1.AnnotationInterception: v1alpha1.InterceptionRedirect},
	}}
	w.create(t, ns)
	w.create(t, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: "checkout"},
		Spec: corev1.ServiceSpec{
			ClusterIP: corev1.ClusterIPNone, Selector: map[string]string{"app": "checkout"},
			Ports: []corev1.ServicePort{{Name: "http", Port: 8080}},
		},
	})
	w.cached(t, ns.Name, "checkout")
	p := newPod(ns.Name)
	p.Spec.Containers[0].Ports[0].Name = ""
	wantOutcome(t, outcome{Sidecar: true}, w.outcomeOf(t, p))
	if diff := cmp.Diff([]string{"redirect", "8080:15101"}, p.Spec.InitContainers[0].Args); diff != "" {
		t.Errorf("what is redirected (-want +got):\n%s", diff)
	}
}

func notRedirected(t *testing.T, w *world) {
	ns := w.namespaced(t, v1alpha1.LabelInject, v1alpha1.InjectEnabled, "pod-security.kubernetes.io/enforce", "baseline")
	p := newPod(ns)
	p.Annotations = map[string]string{v1alpha1.AnnotationInterception: v1alpha1.InterceptionRedirect}
	why := "PodSecurity: namespace " + ns + " has label pod-security.kubernetes.io/enforce: baseline, which forbids the" +
		" capability NET_ADMIN that redirecting takes: do with PortTakeover, or with another namespace"
	wantOutcome(t, outcome{Why: why, Warnings: []string{"no sidecar of Weir: " + why}}, w.outcomeOf(t, p))
}

// madeUp is how many pods are made up: each is two calls.
const madeUp = 500

func acceptedAsBefore(t *testing.T, w *world) {
	plain, labeled := w.namespaced(t), w.namespaced(t, v1alpha1.LabelInject, v1alpha1.InjectEnabled)
	m := injecttest.New(2)
	accepted, sidecars := 0, 0
	for i := range madeUp {
		p := m.Pod()
		if i%2 == 0 {
			metav1.SetMetaDataAnnotation(&p.ObjectMeta, v1alpha1.AnnotationInterception, v1alpha1.InterceptionRedirect)
		}
		delete(p.Labels, v1alpha1.LabelInject)
		before, after := p.DeepCopy(), p
		before.Namespace, after.Namespace = plain, labeled
		if err := w.Create(t.Context(), before, client.DryRunAll); err != nil {
			continue
		}
		accepted++
		if err := w.Create(t.Context(), after, client.DryRunAll); err != nil {
			t.Errorf("with the sidecar: %v", err)
		}
		if after.Labels[v1alpha1.LabelInjected] != "" {
			sidecars++
		}
	}
	w.warnings.take()
	t.Logf("of %d pods %d were accepted, %d with the sidecar", madeUp, accepted, sidecars)
	if sidecars < madeUp/10 {
		t.Errorf("only %d of %d pods have the sidecar", sidecars, madeUp)
	}
}

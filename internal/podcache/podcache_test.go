// SPDX-License-Identifier: Apache-2.0

package podcache_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/podcache"
	"github.com/weir-dev/weir/test/controlplane"
)

// patience is for what has no stated bound.
const patience = 30 * time.Second

var plane *controlplane.ControlPlane

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	os.Exit(controlplane.Main(m, &plane))
}

func TestPods(t *testing.T) {
	pods := start(t)
	c, err := client.New(plane.Config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	injected := map[string]string{"app": "checkout", v1alpha1.LabelInjected: "true"}
	with, without := create(t, c, "with", injected), create(t, c, "without", map[string]string{"app": "checkout"})
	metadata := func(pod *corev1.Pod, annotations map[string]string) metav1.PartialObjectMetadata {
		return metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Labels: pod.Labels, Annotations: annotations,
		}}
	}
	said := map[string]string{v1alpha1.AnnotationNotInjected: "HostNetwork: do without"}

	t.Run("one without the sidecar is there before it runs, with what the injector said alone", func(t *testing.T) {
		await(t, pods.Others, metadata(without, said))
	})
	t.Run("one with the sidecar is not there before it runs", func(t *testing.T) {
		await(t, pods.Injected)
	})
	t.Run("it comes when it runs", func(t *testing.T) {
		setPhase(t, c, with, corev1.PodRunning)
		await(t, pods.Injected, metadata(with, nil))
	})
	t.Run("it goes when it has ended", func(t *testing.T) {
		setPhase(t, c, with, corev1.PodSucceeded)
		await(t, pods.Injected)
	})
	t.Run("so does one without the sidecar", func(t *testing.T) {
		setPhase(t, c, without, corev1.PodFailed)
		await(t, pods.Others)
	})
}

// start runs the caches until the test ends.
func start(t *testing.T) *podcache.Pods {
	t.Helper()
	mgr, err := ctrl.NewManager(plane.Config, ctrl.Options{Logger: logr.Discard(), Metrics: metricsserver.Options{BindAddress: "0"}})
	if err != nil {
		t.Fatal(err)
	}
	pods, err := podcache.New(mgr)
	if err != nil {
		t.Fatal(err)
	}
	controlplane.RunManager(t, mgr)
	select {
	case <-mgr.Elected():
	case <-time.After(patience):
		t.Fatal("the manager does not start")
	}
	return pods
}

func create(t *testing.T, c client.Client, name string, labels map[string]string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: labels, Annotations: map[string]string{
			v1alpha1.AnnotationNotInjected: "HostNetwork: do without", "somebody/else": "a long story",
		}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "example.invalid/app"}}},
	}
	if _, ok := labels[v1alpha1.LabelInjected]; ok {
		delete(pod.Annotations, v1alpha1.AnnotationNotInjected)
	}
	if err := c.Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	return pod
}

func setPhase(t *testing.T, c client.Client, pod *corev1.Pod, phase corev1.PodPhase) {
	t.Helper()
	pod.Status.Phase = phase
	if err := c.Status().Update(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
}

// await waits until a cache holds these pods alone.
func await(t *testing.T, list func(context.Context, string) ([]metav1.PartialObjectMetadata, error), want ...metav1.PartialObjectMetadata) {
	t.Helper()
	opts := cmp.Options{
		cmpopts.EquateEmpty(), cmpopts.IgnoreFields(metav1.ObjectMeta{}, "ResourceVersion"), cmpopts.IgnoreFields(metav1.PartialObjectMetadata{}, "TypeMeta"),
	}
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		got, err := list(t.Context(), "default")
		if err != nil {
			t.Fatal(err)
		}
		diff := cmp.Diff(want, got, opts)
		if diff == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("pods (-want +got):\n%s", diff)
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

// Package workload looks up what policies target.
package workload

import (
	"cmp"
	"context"
	"fmt"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/policy"
)

// Kinds make an empty object of each kind that a targetRef can name, by the ref's kind.
var Kinds = map[string]func() client.Object{
	"Service":     func() client.Object { return &corev1.Service{} },
	"Deployment":  func() client.Object { return &appsv1.Deployment{} },
	"StatefulSet": func() client.Object { return &appsv1.StatefulSet{} },
	"DaemonSet":   func() client.Object { return &appsv1.DaemonSet{} },
}

// LookUp gets what the policies of a namespace refer to. Refs that name nothing, or a kind that can't be
// targeted, are left out.
func LookUp(ctx context.Context, c client.Reader, namespace string, refs []v1alpha1.TargetRef) (policy.Workloads, error) {
	found := policy.Workloads{}
	for _, ref := range refs {
		newObject, ok := Kinds[ref.Kind]
		if _, known := found[ref]; known || !ok {
			continue
		}
		o := newObject()
		err := c.Get(ctx, types.NamespacedName{Namespace: namespace, Name: ref.Name}, o)
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("looking up %s %s: %w", ref.Kind, ref.Name, err)
		}
		found[ref] = seen(o)
	}
	return found, nil
}

// seen gives what policies see of a workload.
func seen(o client.Object) policy.Workload {
	switch o := o.(type) {
	case *appsv1.Deployment:
		return policy.Workload{Pods: o.Spec.Selector}
	case *appsv1.StatefulSet:
		return policy.Workload{Pods: o.Spec.Selector}
	case *appsv1.DaemonSet:
		return policy.Workload{Pods: o.Spec.Selector}
	case *corev1.Service:
		return serviceOf(o)
	}
	return policy.Workload{}
}

func serviceOf(s *corev1.Service) policy.Workload {
	var w policy.Workload
	if len(s.Spec.Selector) > 0 {
		w.Pods = &metav1.LabelSelector{MatchLabels: s.Spec.Selector}
	}
	for _, p := range s.Spec.Ports {
		w.Ports = append(w.Ports, policy.Port{Name: p.Name, Target: target(p)})
	}
	return w
}

// target gives the name or number of the container port that a Service's port leads to.
func target(p corev1.ServicePort) string {
	if p.TargetPort.Type == intstr.Int {
		return strconv.Itoa(int(cmp.Or(p.TargetPort.IntVal, p.Port)))
	}
	return p.TargetPort.StrVal
}

// KeepSelector is a cache transform that keeps of a workload no more than policies see.
func KeepSelector(o any) (any, error) {
	switch o := o.(type) {
	case *appsv1.Deployment:
		o.Spec, o.Status = appsv1.DeploymentSpec{Selector: o.Spec.Selector}, appsv1.DeploymentStatus{}
	case *appsv1.StatefulSet:
		o.Spec, o.Status = appsv1.StatefulSetSpec{Selector: o.Spec.Selector}, appsv1.StatefulSetStatus{}
	case *appsv1.DaemonSet:
		o.Spec, o.Status = appsv1.DaemonSetSpec{Selector: o.Spec.Selector}, appsv1.DaemonSetStatus{}
	case *corev1.Service:
		o.Spec, o.Status = corev1.ServiceSpec{Selector: o.Spec.Selector, Ports: o.Spec.Ports}, corev1.ServiceStatus{}
	}
	if m, ok := o.(metav1.Object); ok {
		m.SetManagedFields(nil)
		m.SetAnnotations(nil)
	}
	return o, nil
}

// Changed lets through those events that can change what a policy applies to: a Deployment's
// status changes all the time.
var Changed = predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool {
		return !equality.Semantic.DeepEqual(seen(e.ObjectOld), seen(e.ObjectNew))
	},
}

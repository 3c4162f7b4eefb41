// SPDX-License-Identifier: Apache-2.0

// Package podcache holds what the manager has to know of the cluster's pods.
package podcache

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/weir-dev/weir/api/v1alpha1"
)

// MirrorAnnotation is on the pods that stand for those of a node's own files. The API server admits them
// without asking anyone.
const MirrorAnnotation = "kubernetes.io/config.mirror"

// Pods are the cluster's pods: their metadata, and of that only names, UID, labels and what the injector has
// written. They are safe for concurrent use.
//
// Metadata tells nothing of a pod's phase. The API server knows it, and selects by it, so that a pod comes when
// it begins to run, and goes when it has ended, without a look at any status: hence two caches, as a cache has one
// selector for a kind.
type Pods struct {
	injected, others cache.Cache
}

// New has mgr run the caches, on every replica, so that the next leader has them filled.
func New(mgr ctrl.Manager) (*Pods, error) {
	injected, err := newCache(mgr, selection.Exists, "status.phase="+string(corev1.PodRunning))
	if err != nil {
		return nil, fmt.Errorf("making the cache of pods with the sidecar: %w", err)
	}
	// Whether they run or not: what is wrong can be told before.
	others, err := newCache(mgr, selection.DoesNotExist, "status.phase!="+string(corev1.PodSucceeded)+",status.phase!="+string(corev1.PodFailed))
	if err != nil {
		return nil, fmt.Errorf("making the cache of pods without the sidecar: %w", err)
	}
	return &Pods{injected: injected, others: others}, nil
}

// newCache gives a cache of the pods for which this holds of the label that the injector sets.
func newCache(mgr ctrl.Manager, label selection.Operator, field string) (cache.Cache, error) {
	requirement, err := labels.NewRequirement(v1alpha1.LabelInjected, label, nil)
	if err != nil {
		return nil, err
	}
	phase, err := fields.ParseSelector(field)
	if err != nil {
		return nil, err
	}
	shared := true // Nobody changes what it gives.
	c, err := cache.New(mgr.GetConfig(), cache.Options{
		HTTPClient: mgr.GetHTTPClient(), Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper(),
		DefaultLabelSelector: labels.NewSelector().Add(*requirement), DefaultFieldSelector: phase,
		DefaultTransform: keepNamesAndLabels, DefaultUnsafeDisableDeepCopy: &shared,
	})
	if err != nil {
		return nil, err
	}
	return c, mgr.Add(c)
}

// Injected gives the pods of a namespace that have the sidecar and run, also those that are about to end. Nobody
// may change them. It waits for the cache to be filled, and fails when ctx is done before.
func (p *Pods) Injected(ctx context.Context, namespace string) ([]metav1.PartialObjectMetadata, error) {
	return list(ctx, p.injected, namespace)
}

// Others gives the pods without the sidecar that have not ended, of a namespace, or of all when that is empty. Else
// it is like Injected.
func (p *Pods) Others(ctx context.Context, namespace string) ([]metav1.PartialObjectMetadata, error) {
	return list(ctx, p.others, namespace)
}

func list(ctx context.Context, c cache.Cache, namespace string) ([]metav1.PartialObjectMetadata, error) {
	pods := &metav1.PartialObjectMetadataList{}
	pods.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PodList"))
	if err := c.List(ctx, pods, client.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("listing pods: %w", err)
	}
	return pods.Items, nil
}

// keepNamesAndLabels is a cache transform. Owners and other annotations would be most of what a pod takes.
func keepNamesAndLabels(o any) (any, error) {
	pod, ok := o.(*metav1.PartialObjectMetadata)
	if !ok {
		return o, nil
	}
	kept := metav1.ObjectMeta{
		Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion,
		Labels: pod.Labels, DeletionTimestamp: pod.DeletionTimestamp,
	}
	for _, key := range []string{v1alpha1.AnnotationNotInjected, v1alpha1.AnnotationInterception, MirrorAnnotation} {
		if value, ok := pod.Annotations[key]; ok {
			if kept.Annotations == nil {
				kept.Annotations = map[string]string{}
			}
			kept.Annotations[key] = value
		}
	}
	pod.ObjectMeta = kept
	return pod, nil
}

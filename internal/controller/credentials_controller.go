// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	corev1apply "k8s.io/client-go/applyconfigurations/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/inject"
)

// Whoever may create a Secret may choose its name. What else keeps the manager from more than this one is the
// ValidatingAdmissionPolicy weir-manager-secrets.
//
// +kubebuilder:rbac:groups="",resources=secrets,verbs=create
// +kubebuilder:rbac:groups="",resources=secrets,resourceNames=weir-redis,verbs=get;patch;delete
// +kubebuilder:rbac:groups="",resources=pods,verbs=list

// credentialsOwner owns the data of the Secrets that the manager keeps.
const credentialsOwner = client.FieldOwner("weir-manager-credentials")

const (
	// credentialsInterval is how often it is seen whether the credentials have changed.
	credentialsInterval = time.Second
	// credentialsResync is how often a Secret is looked at that nothing is heard of: nobody watches Secrets.
	credentialsResync = 5 * time.Minute
	// lingerInterval is how often it is seen whether a namespace that has left has sidecars still.
	lingerInterval = 10 * time.Second
)

// CredentialsSource gives what sidecars log in to Redis with at present, as the files of a Secret. An error means
// that this isn't known now: what is known from before stays in use.
type CredentialsSource func() (map[string][]byte, error)

// CredentialsReconciler keeps, in each namespace that has opted in, a Secret with what sidecars log in to Redis with.
// Once a namespace has left, the Secret stays as it is until the last pod with a sidecar is gone.
//
// Its requests name a namespace. It touches no Secret that it hasn't made.
type CredentialsReconciler struct {
	client client.Client
	// live reads Secrets and pods past the cache, which would fetch all of the cluster.
	live    client.Reader
	source  CredentialsSource
	log     logr.Logger
	current atomic.Pointer[map[string][]byte]
	// failing says whether the source failed the last time, so that it is told of once.
	failing bool
	changed trigger
}

// NewCredentialsReconciler gives a reconciler that reads namespaces with c, and all else with live, which must have no
// cache.
func NewCredentialsReconciler(c client.Client, live client.Reader, source CredentialsSource, log logr.Logger) *CredentialsReconciler {
	return &CredentialsReconciler{client: c, live: live, source: source, log: log}
}

// SetupWithManager has the manager run the reconciler.
func (r *CredentialsReconciler) SetupWithManager(mgr ctrl.Manager) error {
	err := ctrl.NewControllerManagedBy(mgr).
		Named("credentials").
		WatchesMetadata(&corev1.Namespace{}, &handler.EnqueueRequestForObject{},
			builder.WithPredicates(predicate.Or(specChanged, predicate.LabelChangedPredicate{}))).
		WatchesRawSource(&r.changed).
		WithLogConstructor(func(req *reconcile.Request) logr.Logger {
			log := mgr.GetLogger().WithValues("controller", "credentials")
			if req == nil {
				return log
			}
			return log.WithValues("namespace", req.Name)
		}).
		Complete(r)
	if err != nil {
		return fmt.Errorf("setting up the credentials controller: %w", err)
	}
	if err := mgr.Add(r); err != nil {
		return fmt.Errorf("adding the watch over credentials: %w", err)
	}
	return nil
}

// Reconcile writes or deletes the Secret of the request's namespace, if it isn't as it should be.
func (r *CredentialsReconciler) Reconcile(ctx context.Context, req reconcile.Request) (ctrl.Result, error) {
	current := r.current.Load()
	if current == nil {
		return ctrl.Result{}, nil // Every namespace is looked at again as soon as there is something to write.
	}
	namespace, err := r.namespace(ctx, req.Name)
	if err != nil || namespace == nil || !namespace.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, err // Its Secret goes with it.
	}
	stored, err := r.stored(ctx, req.Name)
	if err != nil {
		return ctrl.Result{}, err
	}
	if !inject.MayHaveCredentials(namespace.Labels) {
		return r.withdraw(ctx, stored)
	}
	if err := r.keep(ctx, req.Name, stored, *current); err != nil {
		return ctrl.Result{}, err
	}
	return ctrl.Result{RequeueAfter: credentialsResync}, nil
}

// keep writes the Secret, if it isn't as it should be. Somebody else's stays theirs: nobody hears of its deletion, so
// that it is told of each time.
func (r *CredentialsReconciler) keep(ctx context.Context, namespace string, stored *corev1.Secret, data map[string][]byte) error {
	switch {
	case stored == nil:
		return r.apply(ctx, namespace, data)
	case stored.Type != inject.CredentialsType:
		ctrl.LoggerFrom(ctx).Info("a Secret is somebody else's: delete it to have it kept", "secret", stored.Name, "type", stored.Type, "wanted", inject.CredentialsType)
		return nil
	case maps.EqualFunc(stored.Data, data, bytes.Equal):
		return nil
	}
	return r.apply(ctx, namespace, data)
}

// namespace gives a namespace, or nil where there is none.
func (r *CredentialsReconciler) namespace(ctx context.Context, name string) (*metav1.PartialObjectMetadata, error) {
	namespace := &metav1.PartialObjectMetadata{}
	namespace.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	if err := r.client.Get(ctx, types.NamespacedName{Name: name}, namespace); err != nil {
		if client.IgnoreNotFound(err) == nil {
			return nil, nil
		}
		return nil, fmt.Errorf("looking up the namespace: %w", err)
	}
	return namespace, nil
}

// stored gives the namespace's Secret, or nil where there is none.
func (r *CredentialsReconciler) stored(ctx context.Context, namespace string) (*corev1.Secret, error) {
	var s corev1.Secret
	if err := r.live.Get(ctx, types.NamespacedName{Namespace: namespace, Name: inject.CredentialsSecret}, &s); err != nil {
		if client.IgnoreNotFound(err) == nil {
			return nil, nil
		}
		return nil, fmt.Errorf("reading the Secret %s: %w", inject.CredentialsSecret, err)
	}
	return &s, nil
}

func (r *CredentialsReconciler) apply(ctx context.Context, namespace string, data map[string][]byte) error {
	s := corev1apply.Secret(inject.CredentialsSecret, namespace).
		WithLabels(map[string]string{"app.kubernetes.io/name": "weir", "app.kubernetes.io/managed-by": "weir-manager"}).
		WithType(inject.CredentialsType).
		WithData(data)
	if err := r.client.Apply(ctx, s, credentialsOwner, client.ForceOwnership); err != nil {
		return fmt.Errorf("writing the Secret %s: %w", inject.CredentialsSecret, err)
	}
	ctrl.LoggerFrom(ctx).Info("wrote the credentials for Redis", "secret", inject.CredentialsSecret)
	return nil
}

// withdraw deletes a Secret of ours, unless pods are left that may need it.
func (r *CredentialsReconciler) withdraw(ctx context.Context, s *corev1.Secret) (ctrl.Result, error) {
	if s == nil || s.Type != inject.CredentialsType {
		return ctrl.Result{}, nil
	}
	needed, err := r.hasSidecars(ctx, s.Namespace)
	if err != nil {
		return ctrl.Result{}, err
	}
	if needed {
		return ctrl.Result{RequeueAfter: lingerInterval}, nil
	}
	if err := r.client.Delete(ctx, s, client.Preconditions{UID: &s.UID}); client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, fmt.Errorf("deleting the Secret %s: %w", s.Name, err)
	}
	ctrl.LoggerFrom(ctx).Info("deleted the credentials for Redis", "secret", s.Name)
	return ctrl.Result{}, nil
}

// hasSidecars says whether a namespace has pods with a sidecar that have not ended.
func (r *CredentialsReconciler) hasSidecars(ctx context.Context, namespace string) (bool, error) {
	var pods metav1.PartialObjectMetadataList
	pods.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PodList"))
	err := r.live.List(ctx, &pods, client.Limit(1), client.InNamespace(namespace),
		client.MatchingLabels{v1alpha1.LabelInjected: "true"},
		client.MatchingFieldsSelector{Selector: fields.ParseSelectorOrDie("status.phase!=Succeeded,status.phase!=Failed")})
	if err != nil {
		return false, fmt.Errorf("listing pods with a sidecar: %w", err)
	}
	return len(pods.Items) > 0, nil
}

// Start watches over the source until ctx is done: what has changed is written to every namespace.
func (r *CredentialsReconciler) Start(ctx context.Context) error {
	tick := time.NewTicker(credentialsInterval)
	defer tick.Stop()
	for {
		if err := r.look(ctx); err != nil && ctx.Err() == nil {
			r.log.Error(err, "changed credentials do not get to every namespace")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look has every namespace reconciled if the credentials have changed.
func (r *CredentialsReconciler) look(ctx context.Context) error {
	next, err := r.source()
	if err != nil {
		r.complain(err)
		return nil
	}
	r.failing = false
	if current := r.current.Load(); current != nil && maps.EqualFunc(*current, next, bytes.Equal) {
		return nil
	}
	var namespaces metav1.PartialObjectMetadataList
	namespaces.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NamespaceList"))
	if err := r.client.List(ctx, &namespaces); err != nil {
		return fmt.Errorf("listing namespaces: %w", err)
	}
	r.current.Store(&next)
	for i := range namespaces.Items {
		r.changed.enqueue(types.NamespacedName{Name: namespaces.Items[i].Name})
	}
	return nil
}

// complain tells once why the credentials aren't known. At the start they may be about to be made.
func (r *CredentialsReconciler) complain(err error) {
	if !r.failing {
		r.failing = true
		r.log.Info("waiting for the sidecars' credentials for Redis", "reason", err.Error())
	}
}

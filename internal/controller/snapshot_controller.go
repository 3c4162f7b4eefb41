// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/policy"
)

// publishRetry bounds how long a failed publication waits for its next try.
const publishRetry = 2 * time.Second

// restoreInterval is how often the store is looked at for snapshots that it has lost.
const restoreInterval = time.Second

// SnapshotReconciler keeps the published snapshot of each namespace in step with its policies.
//
// Its requests name a namespace. It runs on the leader only: the first publication claims the config store,
// and once a later leader has done the same, [SnapshotReconciler.Start] ends with an error, and so must the
// process.
type SnapshotReconciler struct {
	client   client.Client
	store    configstore.Publisher
	board    *Board
	accepted acceptedSpecs
	lost     trigger
	fenced   chan error

	claim sync.Mutex
	epoch int64

	mu sync.Mutex
	// last is what the store is known to have held of each namespace that was looked at. The zero
	// revision is a namespace that it held nothing of.
	last map[string]configstore.Snapshot
}

// NewSnapshotReconciler gives a reconciler that publishes to store and notes on board what came of it.
func NewSnapshotReconciler(c client.Client, store configstore.Publisher, board *Board) *SnapshotReconciler {
	return &SnapshotReconciler{
		client:   c,
		store:    store,
		board:    board,
		accepted: acceptedSpecs{client: c},
		fenced:   make(chan error, 1),
		last:     map[string]configstore.Snapshot{},
	}
}

// SetupWithManager has the manager run the reconciler.
func (r *SnapshotReconciler) SetupWithManager(mgr ctrl.Manager) error {
	toNamespace := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: o.GetNamespace()}}}
	})
	b := ctrl.NewControllerManagedBy(mgr).
		Named("snapshot").
		Watches(&v1alpha1.RateLimitPolicy{}, toNamespace, builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		// Every namespace is looked at once: its last policy may have gone while no manager ran.
		WatchesMetadata(&corev1.Namespace{}, handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
			return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: o.GetName()}}}
		}), builder.WithPredicates(predicate.GenerationChangedPredicate{})).
		WatchesRawSource(&r.lost).
		WithOptions(controller.Options{
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](50*time.Millisecond, publishRetry),
		})
	for _, newObject := range kinds {
		b = b.Watches(newObject(), toNamespace, builder.WithPredicates(workloadChanged))
	}
	if err := b.Complete(r); err != nil {
		return fmt.Errorf("setting up the snapshot controller: %w", err)
	}
	if err := mgr.Add(r); err != nil {
		return fmt.Errorf("adding the watch over published snapshots: %w", err)
	}
	return nil
}

// Reconcile publishes the snapshot of the request's namespace, if it says anything new.
func (r *SnapshotReconciler) Reconcile(ctx context.Context, req reconcile.Request) (ctrl.Result, error) {
	policies, err := r.policies(ctx, req.Namespace)
	if err != nil {
		return ctrl.Result{}, err
	}
	last, known := r.lastKnown(req.Namespace)
	if known && len(policies) == 0 && len(last.Policies) == 0 {
		return ctrl.Result{}, nil
	}
	stored, loadErr := r.load(ctx, req.Namespace)
	if loadErr != nil {
		stored = last
	}
	decided, err := r.decide(ctx, policies, stored)
	if err != nil {
		return ctrl.Result{}, err
	}
	if loadErr != nil {
		r.board.post(req.Namespace, decided.notices(stored, loadErr))
		return ctrl.Result{}, loadErr
	}
	published, err := r.publish(ctx, req.Namespace, decided, stored)
	r.board.post(req.Namespace, decided.notices(published, err))
	return ctrl.Result{}, err
}

// policies gives the policies of a namespace that aren't on their way out, by name.
func (r *SnapshotReconciler) policies(ctx context.Context, namespace string) ([]v1alpha1.RateLimitPolicy, error) {
	var list v1alpha1.RateLimitPolicyList
	if err := r.client.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("listing policies: %w", err)
	}
	items := slices.DeleteFunc(list.Items, func(p v1alpha1.RateLimitPolicy) bool { return !p.DeletionTimestamp.IsZero() })
	slices.SortFunc(items, func(a, b v1alpha1.RateLimitPolicy) int { return strings.Compare(a.Name, b.Name) })
	return items, nil
}

// decide judges every policy, and keeps the specs that are newly accepted before anything enforces them.
func (r *SnapshotReconciler) decide(ctx context.Context, policies []v1alpha1.RateLimitPolicy, stored configstore.Snapshot) (decisions, error) {
	if len(policies) == 0 {
		return nil, nil
	}
	namespace := policies[0].Namespace
	accepted, err := r.accepted.inNamespace(ctx, namespace)
	if err != nil {
		return nil, err
	}
	workloads, err := lookUpWorkloads(ctx, r.client, namespace, refsOf(policies, accepted))
	if err != nil {
		return nil, err
	}
	decided := make(decisions, 0, len(policies))
	for i := range policies {
		p := &policies[i]
		d := judge(p, accepted[p.UID], find(stored.Policies, p.Name), workloads)
		if d.newlyAccepted {
			if err := r.accepted.keep(ctx, p); err != nil {
				return nil, err
			}
		}
		decided = append(decided, d)
	}
	return decided, nil
}

// refsOf gives the targets of the policies, as they are and as they were last accepted.
func refsOf(policies []v1alpha1.RateLimitPolicy, accepted map[types.UID]*lastAccepted) []v1alpha1.TargetRef {
	var refs []v1alpha1.TargetRef
	for i := range policies {
		p := &policies[i]
		refs = append(refs, policy.Refs(p)...)
		if last := accepted[p.UID]; last != nil {
			refs = append(refs, policy.Refs(last.of(p))...)
		}
	}
	return refs
}

// publish brings the store up to date, and gives what it holds then.
func (r *SnapshotReconciler) publish(ctx context.Context, namespace string, decided decisions, stored configstore.Snapshot) (configstore.Snapshot, error) {
	last, _ := r.lastKnown(namespace)
	if stored.Revision.Compare(last.Revision) < 0 {
		// The store has lost what it held. If nothing else has changed, it gets the very same back.
		stored = last
	}
	epoch, err := r.claimed(ctx)
	if err != nil {
		return stored, err
	}
	next := decided.snapshot(namespace, stored, epoch)
	if next.Revision != (configstore.Revision{}) {
		if err := r.store.Publish(ctx, next); err != nil {
			r.noteFencing(err)
			return stored, fmt.Errorf("publishing limits: %w", err)
		}
	}
	if next.Revision != stored.Revision {
		log.FromContext(ctx).Info("published limits", "policies", len(next.Policies), "revision", next.Revision.String())
	}
	r.remember(namespace, next)
	return next, nil
}

// claimed gives the epoch of this leader, claiming the store the first time.
func (r *SnapshotReconciler) claimed(ctx context.Context) (int64, error) {
	r.claim.Lock()
	defer r.claim.Unlock()
	if r.epoch != 0 {
		return r.epoch, nil
	}
	epoch, err := r.store.Claim(ctx)
	if err != nil {
		return 0, fmt.Errorf("claiming the config store: %w", err)
	}
	r.epoch = epoch
	return epoch, nil
}

// load gives what the store holds of a namespace: the zero revision when that is nothing, and nothing but
// a revision when it can't be understood, so that what is published next comes after it.
func (r *SnapshotReconciler) load(ctx context.Context, namespace string) (configstore.Snapshot, error) {
	stored, err := r.store.Load(ctx, namespace)
	if err != nil {
		return configstore.Snapshot{}, fmt.Errorf("reading the config store: %w", err)
	}
	if s, ok := stored[namespace]; ok {
		return s, nil
	}
	revisions, err := r.store.Revisions(ctx, namespace)
	if err != nil {
		return configstore.Snapshot{}, fmt.Errorf("reading the config store: %w", err)
	}
	return configstore.Snapshot{Namespace: namespace, Revision: revisions[namespace]}, nil
}

func (r *SnapshotReconciler) lastKnown(namespace string) (configstore.Snapshot, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := r.last[namespace]
	return s, ok
}

func (r *SnapshotReconciler) remember(namespace string, s configstore.Snapshot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last[namespace] = s
}

func (r *SnapshotReconciler) noteFencing(err error) {
	if !errors.Is(err, configstore.ErrFenced) {
		return
	}
	select {
	case r.fenced <- err:
	default: // It is known already.
	}
}

// Start watches over what was published until ctx is done: a snapshot that the store has lost, or that it
// could not take, is brought back. It fails when a later leader has claimed the store.
func (r *SnapshotReconciler) Start(ctx context.Context) error {
	tick := time.NewTicker(restoreInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-r.fenced:
			return err
		case <-tick.C:
			r.restoreLost(ctx)
		}
	}
}

// restoreLost has every namespace reconciled whose stored revision isn't the one that was published. A
// store that can't be read is left to the next look: who writes status knows of it already.
func (r *SnapshotReconciler) restoreLost(ctx context.Context) {
	published := r.published()
	if len(published) == 0 {
		return
	}
	stored, err := r.store.Revisions(ctx, slices.Collect(maps.Keys(published))...)
	if err != nil {
		return
	}
	for namespace, revision := range published {
		if stored[namespace] != revision {
			r.lost.enqueue(types.NamespacedName{Namespace: namespace})
		}
	}
}

// published gives the revision of every namespace that the store should hold something of.
func (r *SnapshotReconciler) published() map[string]configstore.Revision {
	r.mu.Lock()
	defer r.mu.Unlock()
	revisions := make(map[string]configstore.Revision, len(r.last))
	for namespace, s := range r.last {
		if s.Revision != (configstore.Revision{}) {
			revisions[namespace] = s.Revision
		}
	}
	return revisions
}

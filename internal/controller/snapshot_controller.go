// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/policy"
	"github.com/weir-dev/weir/internal/workload"
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
	client     client.Client
	store      configstore.Publisher
	board      *Board
	accepted   acceptedSpecs
	leadership *leadership
	memory     *memory
	guard      *guard
	lost       trigger

	surveying sync.Mutex
	surveyed  bool
}

// NewSnapshotReconciler gives a reconciler that publishes to store and notes on board what came of it. It tells
// recorder of removals that it withholds.
func NewSnapshotReconciler(c client.Client, store configstore.Publisher, board *Board, recorder events.EventRecorder) *SnapshotReconciler {
	memory := newMemory()
	return &SnapshotReconciler{
		client:     c,
		store:      store,
		board:      board,
		accepted:   acceptedSpecs{client: c},
		leadership: newLeadership(store),
		memory:     memory,
		guard:      newGuard(c, memory, recorder),
	}
}

// Metrics collects weir_withheld_removals{namespace}.
func (r *SnapshotReconciler) Metrics() prometheus.Collector { return r.guard }

// SetupWithManager has the manager run the reconciler.
func (r *SnapshotReconciler) SetupWithManager(mgr ctrl.Manager) error {
	toNamespace := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: o.GetNamespace()}}}
	})
	toItself := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Namespace: o.GetName()}}}
	})
	b := ctrl.NewControllerManagedBy(mgr).
		Named("snapshot").
		Watches(&v1alpha1.RateLimitPolicy{}, toNamespace, builder.WithPredicates(specChanged)).
		// A kept spec that somebody deletes is kept anew.
		Watches(&appsv1.ControllerRevision{}, toNamespace, builder.WithPredicates(specChanged)).
		// Every namespace is looked at once: its last policy may have gone while no manager ran. Labels and
		// annotations say whether it has sidecars, and whether its policies may go.
		WatchesMetadata(&corev1.Namespace{}, toItself, builder.WithPredicates(predicate.Or(
			specChanged, predicate.LabelChangedPredicate{}, predicate.AnnotationChangedPredicate{}))).
		WatchesRawSource(&r.lost).
		WithLogConstructor(func(req *reconcile.Request) logr.Logger {
			if req == nil {
				return mgr.GetLogger()
			}
			return mgr.GetLogger().WithValues("controller", "snapshot", "namespace", req.Namespace)
		}).
		WithOptions(controller.Options{
			RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](50*time.Millisecond, publishRetry),
		})
	for _, newObject := range workload.Kinds {
		b = b.Watches(newObject(), toNamespace, builder.WithPredicates(workload.Changed))
	}
	if err := b.Complete(r); err != nil {
		return fmt.Errorf("setting up the snapshot controller: %w", err)
	}
	if err := mgr.Add(r); err != nil {
		return fmt.Errorf("adding the watch over published snapshots: %w", err)
	}
	return nil
}

// specChanged lets through what makes a spec another: also an object that was deleted and created again
// while nobody looked.
var specChanged = predicate.Or(predicate.GenerationChangedPredicate{}, predicate.Funcs{
	UpdateFunc: func(e event.UpdateEvent) bool { return e.ObjectOld.GetUID() != e.ObjectNew.GetUID() },
})

// Reconcile publishes the snapshot of the request's namespace, if it says anything new.
func (r *SnapshotReconciler) Reconcile(ctx context.Context, req reconcile.Request) (ctrl.Result, error) {
	policies, err := r.policies(ctx, req.Namespace)
	if err != nil {
		return ctrl.Result{}, err
	}
	awaited, err := r.awaited(ctx, req.Namespace)
	if err != nil {
		return ctrl.Result{}, err
	}
	last, known := r.memory.of(req.Namespace)
	if known && len(policies) == 0 && last.Revision == (configstore.Revision{}) && !awaited {
		return ctrl.Result{}, nil
	}
	base, lost, storeErr := r.load(ctx, req.Namespace, last)
	decided, err := r.decide(ctx, policies, base)
	if err != nil {
		return ctrl.Result{}, err
	}
	staying, again, err := r.guard.review(ctx, base, policies, time.Now())
	if err != nil {
		return ctrl.Result{}, err
	}
	held := base
	if storeErr == nil {
		held, storeErr = r.publish(ctx, req.Namespace, decided.with(staying), base, lost, awaited)
	}
	r.board.post(req.Namespace, decided.notices(held, storeErr))
	if storeErr != nil {
		return ctrl.Result{RequeueAfter: publishRetry}, nil //nolint:nilerr // The board tells it, and the watch over the store logs once when it is away.
	}
	if err := r.accepted.forgetSuperseded(ctx, req.Namespace, decided); err != nil {
		return ctrl.Result{}, err
	}
	return ctrl.Result{RequeueAfter: again}, decided.err()
}

// awaited says whether the sidecars of a namespace wait for a snapshot, whatever is in it: they are ready with it.
func (r *SnapshotReconciler) awaited(ctx context.Context, name string) (bool, error) {
	namespace, err := namespaceNamed(ctx, r.client, name)
	if err != nil {
		return false, err
	}
	return namespace != nil && namespace.Labels[v1alpha1.LabelInject] == v1alpha1.InjectEnabled, nil
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

// load gives what the store should hold of a namespace, and whether it has lost that: then it is what it
// held last. It is the zero revision when there has never been anything, and nothing but a revision when
// it can't be understood, so that what is published next comes after it.
func (r *SnapshotReconciler) load(ctx context.Context, namespace string, last configstore.Snapshot) (base configstore.Snapshot, lost bool, err error) {
	if err := r.survey(ctx); err != nil {
		return last, false, err
	}
	snapshots, err := r.store.Load(ctx, namespace)
	if err != nil {
		return last, false, fmt.Errorf("reading the config store: %w", err)
	}
	stored, ok := snapshots[namespace]
	if !ok {
		revisions, err := r.store.Revisions(ctx, namespace)
		if err != nil {
			return last, false, fmt.Errorf("reading the config store: %w", err)
		}
		stored = configstore.Snapshot{Namespace: namespace, Revision: revisions[namespace]}
	}
	if stored.Revision.Compare(last.Revision) < 0 {
		return last, true, nil
	}
	return stored, false, nil
}

// surveyChunk is of how many namespaces the snapshots are loaded at once.
const surveyChunk = 100

// survey loads what is published of every namespace, once: what is gone from the first of them is measured by that.
func (r *SnapshotReconciler) survey(ctx context.Context) error {
	r.surveying.Lock()
	defer r.surveying.Unlock()
	if r.surveyed {
		return nil
	}
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NamespaceList"))
	if err := r.client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("listing namespaces: %w", err)
	}
	for some := range slices.Chunk(list.Items, surveyChunk) {
		names := make([]string, len(some))
		for i := range some {
			names[i] = some[i].Name
		}
		snapshots, err := r.store.Load(ctx, names...)
		if err != nil {
			return fmt.Errorf("reading the config store: %w", err)
		}
		for name, s := range snapshots {
			if _, known := r.memory.of(name); !known {
				r.memory.keep(name, s, lasts(s))
			}
		}
	}
	r.surveyed = true
	return nil
}

// decide judges every policy, and keeps the specs that are newly accepted before anything enforces them.
func (r *SnapshotReconciler) decide(ctx context.Context, policies []v1alpha1.RateLimitPolicy, base configstore.Snapshot) (decisions, error) {
	if len(policies) == 0 {
		return nil, nil
	}
	namespace := policies[0].Namespace
	accepted, err := r.accepted.inNamespace(ctx, namespace)
	if err != nil {
		return nil, err
	}
	workloads, err := workload.LookUp(ctx, r.client, namespace, refsOf(policies, accepted))
	if err != nil {
		return nil, err
	}
	decided := make(decisions, 0, len(policies))
	for i := range policies {
		p := &policies[i]
		published := findObject(base.Policies, p)
		d := judge(p, accepted[p.UID], published, workloads)
		if d.newlyAccepted {
			if err := r.accepted.keep(ctx, p); err != nil {
				d = d.withhold(published, err)
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
func (r *SnapshotReconciler) publish(ctx context.Context, namespace string, decided decisions, base configstore.Snapshot, lost, awaited bool) (configstore.Snapshot, error) {
	epoch, err := r.leadership.claimed(ctx)
	if err != nil {
		return base, err
	}
	next := decided.snapshot(namespace, base, epoch, awaited)
	lasting := awaited || lasts(next)
	if lost && lasting || next.Revision != base.Revision {
		if err := r.store.Publish(ctx, next); err != nil {
			r.leadership.note(err)
			return base, fmt.Errorf("publishing limits: %w", err)
		}
		log.FromContext(ctx).Info("published limits", "policies", len(next.Policies), "revision", next.Revision.String(), "restored", next.Revision == base.Revision)
	}
	r.memory.keep(namespace, next, lasting)
	return next, nil
}

// lasts says whether a snapshot is to be restored when the store has lost it. One that was published for the sidecars
// alone, before there was any policy, may expire when the namespace has none any more. Once there have been policies
// it may not: an old store must not bring them back.
func lasts(s configstore.Snapshot) bool { return len(s.Policies) > 0 || s.Revision.Number > 1 }

// Start watches over what was published until ctx is done: a snapshot that the store has lost, or that it
// could not take, is brought back. It fails when a later leader has claimed the store.
func (r *SnapshotReconciler) Start(ctx context.Context) error {
	tick := time.NewTicker(restoreInterval)
	defer tick.Stop()
	outage := outage{log: log.FromContext(ctx).WithName("configstore"), tell: r.board.storeAway}
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-r.leadership.lost:
			return err
		case <-tick.C:
			outage.note(r.restoreLost(ctx))
		}
	}
}

// restoreLost has every namespace reconciled whose stored revision isn't the one that was published.
func (r *SnapshotReconciler) restoreLost(ctx context.Context) error {
	published := r.memory.revisions()
	stored, err := r.store.Revisions(ctx, slices.Collect(maps.Keys(published))...)
	if err != nil {
		return err
	}
	for namespace, revision := range published {
		if stored[namespace] == revision {
			continue
		}
		gone, err := r.gone(ctx, namespace)
		if err != nil {
			return err
		}
		if gone {
			r.memory.forget(namespace)
			continue
		}
		r.lost.enqueue(types.NamespacedName{Namespace: namespace})
	}
	return nil
}

// gone says whether a namespace doesn't exist any more. What the store has of it expires by itself.
func (r *SnapshotReconciler) gone(ctx context.Context, name string) (bool, error) {
	namespace, err := namespaceNamed(ctx, r.client, name)
	return namespace == nil && err == nil, err
}

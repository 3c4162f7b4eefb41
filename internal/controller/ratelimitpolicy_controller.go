// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/weir-dev/weir/api/v1alpha1"
)

// fieldOwner owns the status of our objects.
const fieldOwner = client.FieldOwner("weir-manager")

// An object is written because of nothing but its usage at most this often: when it has changed much, and
// when it has changed a little, as the usage of steady traffic always does.
const (
	usageInterval       = 10 * time.Second
	steadyUsageInterval = 2 * time.Minute
)

// RateLimitPolicyReconciler writes onto each policy what has become of it: what the [Board] says.
type RateLimitPolicyReconciler struct {
	client client.Client
	board  *Board
	events events.EventRecorder
	usage  *pace
}

// NewRateLimitPolicyReconciler gives a reconciler that writes what board says and tells recorder what has
// changed.
func NewRateLimitPolicyReconciler(c client.Client, board *Board, recorder events.EventRecorder) *RateLimitPolicyReconciler {
	return &RateLimitPolicyReconciler{client: c, board: board, events: recorder, usage: newPace(steadyUsageInterval, time.Now)}
}

// SetupWithManager has the manager run the reconciler.
func (r *RateLimitPolicyReconciler) SetupWithManager(mgr ctrl.Manager) error {
	err := ctrl.NewControllerManagedBy(mgr).
		For(&v1alpha1.RateLimitPolicy{}, builder.WithPredicates(specChanged)).
		WatchesRawSource(&r.board.changed).
		Complete(reconcile.AsReconciler(r.client, r))
	if err != nil {
		return fmt.Errorf("setting up the status controller: %w", err)
	}
	return nil
}

// Reconcile writes the status of one policy, once, and only if it has changed.
func (r *RateLimitPolicyReconciler) Reconcile(ctx context.Context, p *v1alpha1.RateLimitPolicy) (ctrl.Result, error) {
	v, ok := r.board.view(p)
	if !ok || !p.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, nil // The board says when there is something to tell.
	}
	before := ours(p.Status)
	p.Status = statusOf(p, v)
	if equality.Semantic.DeepEqual(before, p.Status) {
		return ctrl.Result{}, nil
	}
	if interval, only := onlyUsageChanged(before, p.Status); only {
		if wait := r.usage.wait(p.UID, interval); wait > 0 {
			return ctrl.Result{RequeueAfter: wait}, nil
		}
	}
	if err := r.apply(ctx, p); err != nil {
		// A conflict is another object of that name: the cache will bring it.
		return ctrl.Result{}, client.IgnoreNotFound(ignoreConflict(err))
	}
	r.usage.note(p.UID)
	r.tell(p, before)
	return ctrl.Result{}, nil
}

func ignoreConflict(err error) error {
	if apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// apply writes the status by server-side apply, so that whatever others keep there stays theirs.
func (r *RateLimitPolicyReconciler) apply(ctx context.Context, p *v1alpha1.RateLimitPolicy) error {
	status, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&p.Status)
	if err != nil {
		return fmt.Errorf("encoding status: %w", err)
	}
	u := &unstructured.Unstructured{Object: map[string]any{"status": status}}
	u.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("RateLimitPolicy"))
	u.SetNamespace(p.Namespace)
	u.SetName(p.Name)
	u.SetUID(p.UID)
	if err := r.client.Status().Apply(ctx, client.ApplyConfigurationFromUnstructured(u), fieldOwner, client.ForceOwnership); err != nil {
		return fmt.Errorf("writing status: %w", err)
	}
	return nil
}

// news are the turns of a condition that are worth an event, whose note is the condition's message.
var news = map[[2]string]struct{ eventType, action string }{
	{v1alpha1.ConditionAccepted, v1alpha1.ReasonInvalid}:            {corev1.EventTypeWarning, "Accept"},
	{v1alpha1.ConditionAccepted, v1alpha1.ReasonUnsupported}:        {corev1.EventTypeWarning, "Accept"},
	{v1alpha1.ConditionAccepted, v1alpha1.ReasonTargetNotFound}:     {corev1.EventTypeWarning, "Accept"},
	{v1alpha1.ConditionProgrammed, v1alpha1.ReasonProgrammed}:       {corev1.EventTypeNormal, "Publish"},
	{v1alpha1.ConditionProgrammed, v1alpha1.ReasonLastAcceptedKept}: {corev1.EventTypeWarning, "Publish"},
	{v1alpha1.ConditionProgrammed, v1alpha1.ReasonPublishFailed}:    {corev1.EventTypeWarning, "Publish"},
	{v1alpha1.ConditionEnforced, v1alpha1.ReasonEnforced}:           {corev1.EventTypeNormal, "Enforce"},
	{v1alpha1.ConditionEnforced, v1alpha1.ReasonTooManyKeys}:        {corev1.EventTypeWarning, "Enforce"},
	{v1alpha1.ConditionEnforced, v1alpha1.ReasonNotReporting}:       {corev1.EventTypeWarning, "Enforce"},
	{v1alpha1.ConditionEnforced, v1alpha1.ReasonNotIntercepted}:     {corev1.EventTypeWarning, "Enforce"},
	{v1alpha1.ConditionStoreReady, v1alpha1.ReasonUnreachable}:      {corev1.EventTypeWarning, "Count"},
	{v1alpha1.ConditionStoreReady, v1alpha1.ReasonAuthFailed}:       {corev1.EventTypeWarning, "Count"},
	{v1alpha1.ConditionStoreReady, v1alpha1.ReasonReadOnly}:         {corev1.EventTypeWarning, "Count"},
	{v1alpha1.ConditionStoreReady, v1alpha1.ReasonStoreFull}:        {corev1.EventTypeWarning, "Count"},
	{v1alpha1.ConditionStoreReady, v1alpha1.ReasonDegraded}:         {corev1.EventTypeWarning, "Count"},
	{v1alpha1.ConditionStoreReady, v1alpha1.ReasonReachable}:        {corev1.EventTypeNormal, "Count"},
	{v1alpha1.ConditionStoreReady, v1alpha1.ReasonEvicts}:           {corev1.EventTypeWarning, "Count"},
}

// tell emits an event for each condition that has turned since before.
func (r *RateLimitPolicyReconciler) tell(p *v1alpha1.RateLimitPolicy, before v1alpha1.RateLimitPolicyStatus) {
	for _, now := range p.Status.Conditions {
		was := meta.FindStatusCondition(before.Conditions, now.Type)
		if was != nil && was.Reason == now.Reason && (was.Message == now.Message || now.Type == v1alpha1.ConditionStoreReady) {
			continue // How many enforcers a store fails is no news either.
		}
		if was == nil && now.Reason == v1alpha1.ReasonReachable {
			continue // A store that has always been there is no news.
		}
		if item, ok := news[[2]string{now.Type, now.Reason}]; ok {
			r.events.Eventf(p, nil, item.eventType, now.Reason, item.action, "%s", now.Message)
		}
	}
}

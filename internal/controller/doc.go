// SPDX-License-Identifier: Apache-2.0

// Package controller keeps published limits and status in step with the API objects.
//
// Its parts have one direction each. The [SnapshotReconciler] takes the policies of a namespace down to the
// config store and notes on the [Board] what came of each. The [Observer] takes who enforces up from the cluster,
// and what they report from the store; the [Detector], which pods lack a sidecar. The [RateLimitPolicyReconciler]
// writes all of it onto the object; it decides nothing about limits. The [CredentialsReconciler] stands by itself: it
// keeps what sidecars log in to Redis with.
package controller

// Some clusters let only those make an object the blocking owner of another who may update its finalizers.
//
// +kubebuilder:rbac:groups=ratelimit.weir.dev,resources=ratelimitpolicies,verbs=list;watch
// +kubebuilder:rbac:groups=ratelimit.weir.dev,resources=ratelimitpolicies/status,verbs=patch
// +kubebuilder:rbac:groups=ratelimit.weir.dev,resources=ratelimitpolicies/finalizers,verbs=update
// +kubebuilder:rbac:groups="",resources=services,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=namespaces,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=pods,verbs=list;watch
// +kubebuilder:rbac:groups=apps,resources=deployments;statefulsets;daemonsets,verbs=get;list;watch
// +kubebuilder:rbac:groups=apps,resources=controllerrevisions,verbs=list;watch;create;delete
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

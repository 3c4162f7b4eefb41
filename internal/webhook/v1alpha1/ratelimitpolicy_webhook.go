// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/match"
	"github.com/weir-dev/weir/internal/policy"
	"github.com/weir-dev/weir/internal/workload"
)

// storeWait is how long an answer waits for the config store. The API server waits for 5 s.
const storeWait = 500 * time.Millisecond

// snapshots reads what is published.
type snapshots interface {
	Load(ctx context.Context, namespaces ...string) (map[string]configstore.Snapshot, error)
}

// RateLimitPolicyWebhook answers for policies: it refuses what no cluster could enforce, and warns of what this
// one does not enforce yet, or not as meant. So the order in which objects are applied never matters.
type RateLimitPolicyWebhook struct {
	client client.Reader
	store  snapshots
}

// NewRateLimitPolicyWebhook gives a webhook that looks targets up with c, and what is in force in store. It
// admits as well while the store is away. c should read from the API server itself: a Service is often created
// just before its policy, and a cache would not have it yet.
func NewRateLimitPolicyWebhook(c client.Reader, store snapshots) *RateLimitPolicyWebhook {
	return &RateLimitPolicyWebhook{client: c, store: store}
}

// SetupWithManager has the manager's webhook server serve both halves, at the paths that controller-runtime
// gives them.
func (w *RateLimitPolicyWebhook) SetupWithManager(mgr ctrl.Manager) error {
	err := ctrl.NewWebhookManagedBy(mgr, &v1alpha1.RateLimitPolicy{}).WithDefaulter(w).WithValidator(w).Complete()
	if err != nil {
		return fmt.Errorf("setting up the webhooks of RateLimitPolicy: %w", err)
	}
	return nil
}

// Default implements [admission.Defaulter]. The API server has set the defaults of its schema before it asks:
// this sets those of a schema that is newer, where the manager was upgraded before the CRD.
func (w *RateLimitPolicyWebhook) Default(_ context.Context, p *v1alpha1.RateLimitPolicy) error {
	policy.Default(p)
	return nil
}

// ValidateCreate implements [admission.Validator].
func (w *RateLimitPolicyWebhook) ValidateCreate(ctx context.Context, p *v1alpha1.RateLimitPolicy) (admission.Warnings, error) {
	return w.validate(ctx, p)
}

// ValidateUpdate implements [admission.Validator]. What leaves the spec as it is is admitted, since a policy that
// an earlier release has let through must still be labeled, and deleted.
func (w *RateLimitPolicyWebhook) ValidateUpdate(ctx context.Context, before, p *v1alpha1.RateLimitPolicy) (admission.Warnings, error) {
	if equality.Semantic.DeepEqual(before.Spec, p.Spec) {
		return nil, nil
	}
	return w.validate(ctx, p)
}

// ValidateDelete implements [admission.Validator]. The API server never asks.
func (w *RateLimitPolicyWebhook) ValidateDelete(context.Context, *v1alpha1.RateLimitPolicy) (admission.Warnings, error) {
	return nil, nil
}

func (w *RateLimitPolicyWebhook) validate(ctx context.Context, p *v1alpha1.RateLimitPolicy) (admission.Warnings, error) {
	workloads, lookup := workload.LookUp(ctx, w.client, p.Namespace, policy.Refs(p))
	limits, refusal := compile(p, workloads)
	if refusal != nil && refusal.Reason != v1alpha1.ReasonTargetNotFound {
		return nil, apierrors.NewInvalid(v1alpha1.GroupVersion.WithKind("RateLimitPolicy").GroupKind(), p.Name, refusal.Errors)
	}
	if lookup != nil {
		log.FromContext(ctx).Error(lookup, "admitting a policy without a look at its targets")
		return admission.Warnings{"spec.targetRefs: the manager can't look the targets up at present"}, nil
	}
	inForce, err := w.inForce(ctx, p.Namespace)
	if err != nil {
		log.FromContext(ctx).Error(err, "admitting a policy without a look at those in force")
		return append(missing(refusal), "the config store can't be reached: what is in force stays so until it is back"), nil
	}
	if refusal != nil {
		return append(missing(refusal), kept(p, inForce)...), nil
	}
	published := make([]match.Policy, len(inForce))
	for i := range inForce {
		published[i] = inForce[i].Policy
	}
	return policy.Advise(p, limits, published), nil
}

// compile is [policy.Compile], whose errors are refusals.
func compile(p *v1alpha1.RateLimitPolicy, workloads policy.Workloads) (match.Policy, *policy.Refusal) {
	limits, err := policy.Compile(p, workloads)
	var refusal *policy.Refusal
	errors.As(err, &refusal)
	return limits, refusal
}

// inForce gives what the config store holds of a namespace.
func (w *RateLimitPolicyWebhook) inForce(ctx context.Context, namespace string) ([]configstore.Policy, error) {
	ctx, cancel := context.WithTimeout(ctx, storeWait)
	defer cancel()
	stored, err := w.store.Load(ctx, namespace)
	if err != nil {
		return nil, fmt.Errorf("reading the config store: %w", err)
	}
	return stored[namespace].Policies, nil
}

// missing tells of the targets that a refusal is about; nil is about none.
func missing(r *policy.Refusal) admission.Warnings {
	var warnings admission.Warnings
	if r != nil {
		for _, e := range r.Errors {
			warnings = append(warnings, e.Field+": "+e.Detail)
		}
	}
	return warnings
}

// kept says what stays in force of a policy whose new form can't be enforced yet.
func kept(p *v1alpha1.RateLimitPolicy, inForce []configstore.Policy) admission.Warnings {
	for _, old := range inForce {
		if old.Name == p.Name && old.UID == string(p.UID) {
			return admission.Warnings{fmt.Sprintf("spec: generation %d of this policy stays in force until all targets are there", old.Generation)}
		}
	}
	return nil
}

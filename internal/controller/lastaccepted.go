// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/weir-dev/weir/api/v1alpha1"
)

// AcceptedLabel is on every ControllerRevision that keeps an accepted spec. The manager watches no others.
const AcceptedLabel = "ratelimit.weir.dev/accepted-spec"

// acceptedSpec is the data of such a ControllerRevision.
type acceptedSpec struct {
	Spec v1alpha1.RateLimitPolicySpec `json:"spec"`
}

// lastAccepted is the last spec of a policy that was accepted.
type lastAccepted struct {
	generation int64
	spec       v1alpha1.RateLimitPolicySpec
}

// keepError says that an accepted spec can't be kept. It is about one policy alone.
type keepError struct{ error }

func (e keepError) Unwrap() error { return e.error }

// of gives the policy as it was when this was accepted.
func (l *lastAccepted) of(p *v1alpha1.RateLimitPolicy) *v1alpha1.RateLimitPolicy {
	old := p.DeepCopy()
	old.Generation, old.Spec = l.generation, l.spec
	return old
}

// acceptedSpecs keeps the last accepted spec of every policy as a ControllerRevision that the policy owns,
// so that it outlives the store and the manager, and goes with the policy. The revision's number is the
// generation that was accepted.
type acceptedSpecs struct {
	client client.Client
}

// inNamespace gives the last accepted specs of a namespace by the policy's UID. What this release can't
// read, as a later one has kept it, is left out: half understood, it would be another limit.
func (s acceptedSpecs) inNamespace(ctx context.Context, namespace string) (map[types.UID]*lastAccepted, error) {
	revisions, err := s.list(ctx, namespace)
	if err != nil {
		return nil, err
	}
	last := map[types.UID]*lastAccepted{}
	for _, revision := range revisions { // oldest first, so that the latest stays
		owner := metav1.GetControllerOf(&revision)
		if owner == nil {
			continue
		}
		var data acceptedSpec
		decoder := json.NewDecoder(bytes.NewReader(revision.Data.Raw))
		decoder.DisallowUnknownFields()
		if decoder.Decode(&data) != nil {
			delete(last, owner.UID)
			continue
		}
		last[owner.UID] = &lastAccepted{generation: revision.Revision, spec: data.Spec}
	}
	return last, nil
}

// keep makes the policy's spec its last accepted one. Its errors are keepErrors.
func (s acceptedSpecs) keep(ctx context.Context, p *v1alpha1.RateLimitPolicy) error {
	if err := s.create(ctx, p); err != nil {
		return keepError{fmt.Errorf("keeping the accepted spec of %s: %w", p.Name, err)}
	}
	return nil
}

func (s acceptedSpecs) create(ctx context.Context, p *v1alpha1.RateLimitPolicy) error {
	raw, err := json.Marshal(acceptedSpec{Spec: p.Spec})
	if err != nil {
		return err
	}
	revision := &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.Namespace,
			Name:      revisionName(p),
			Labels:    map[string]string{AcceptedLabel: "true"},
		},
		Revision: p.Generation,
		Data:     runtime.RawExtension{Raw: raw},
	}
	if err := controllerutil.SetControllerReference(p, revision, s.client.Scheme()); err != nil {
		return err
	}
	return client.IgnoreAlreadyExists(s.client.Create(ctx, revision))
}

// forgetSuperseded deletes what was accepted before the specs that are newly accepted. It comes after their
// publication: until then the earlier ones are what is in force.
func (s acceptedSpecs) forgetSuperseded(ctx context.Context, namespace string, decided decisions) error {
	accepted := map[types.UID]int64{}
	for _, d := range decided {
		if d.newlyAccepted {
			accepted[d.uid] = d.generation
		}
	}
	if len(accepted) == 0 {
		return nil
	}
	revisions, err := s.list(ctx, namespace)
	if err != nil {
		return err
	}
	for _, revision := range revisions {
		owner := metav1.GetControllerOf(&revision)
		if owner == nil || revision.Revision >= accepted[owner.UID] {
			continue
		}
		if err := s.client.Delete(ctx, &revision); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("deleting ControllerRevision %s: %w", revision.Name, err)
		}
	}
	return nil
}

// list gives the kept specs of a namespace, oldest first.
func (s acceptedSpecs) list(ctx context.Context, namespace string) ([]appsv1.ControllerRevision, error) {
	var revisions appsv1.ControllerRevisionList
	if err := s.client.List(ctx, &revisions, client.InNamespace(namespace), client.HasLabels{AcceptedLabel}); err != nil {
		return nil, fmt.Errorf("listing accepted specs: %w", err)
	}
	slices.SortFunc(revisions.Items, func(a, b appsv1.ControllerRevision) int { return cmp.Compare(a.Revision, b.Revision) })
	return revisions.Items, nil
}

// revisionName is the same for the same generation of the same object, and for no other: the data of a
// ControllerRevision can't be changed once it is there.
func revisionName(p *v1alpha1.RateLimitPolicy) string {
	const longest = 253
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d", p.UID, p.Generation))
	suffix := "-" + hex.EncodeToString(sum[:5])
	return strings.TrimRight(p.Name[:min(len(p.Name), longest-len(suffix))], "-.") + suffix
}

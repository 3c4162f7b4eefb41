// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/match"
	"github.com/weir-dev/weir/internal/policy"
)

// decision is what is to be enforced of one policy, and why.
type decision struct {
	name       string
	uid        types.UID
	generation int64
	// refusal is why the policy is not accepted as it stands; nil when it is.
	refusal error
	// newlyAccepted says that this generation is accepted, and not kept as such yet.
	newlyAccepted bool
	// limits are to be enforced; nil is none.
	limits *match.Policy
	// summary of the limits, as far as it is known.
	summary string
	// err is why the limits are not what they should be.
	err error
}

// decisions are those of one namespace, by name.
type decisions []decision

// judge decides what to enforce of a policy: its spec if that is accepted, else the last one that was.
//
// Where no accepted spec is known, or none as late as the one that is published, what is published stays:
// our view of the kept specs may lag behind, or they are of a release that could do more.
func judge(p *v1alpha1.RateLimitPolicy, last *lastAccepted, published *configstore.Policy, workloads policy.Workloads) decision {
	d := decision{name: p.Name, uid: p.UID, generation: p.Generation}
	limits, err := policy.Compile(p, workloads)
	if err == nil {
		d.limits, d.summary = &limits, policy.Summary(p)
		d.newlyAccepted = last == nil || last.generation != p.Generation
		return d
	}
	d.refusal = err
	if last != nil && (published == nil || published.Generation <= last.generation) {
		accepted := last.of(p)
		d.limits, d.summary = stillEnforceable(accepted, published, workloads), policy.Summary(accepted)
	}
	if d.limits == nil && published != nil {
		d.limits = &published.Policy
	}
	return d
}

// withhold leaves in force what is published, because of err.
func (d decision) withhold(published *configstore.Policy, err error) decision {
	d.newlyAccepted, d.limits, d.summary, d.err = false, nil, "", err
	if published != nil {
		d.limits = &published.Policy
	}
	return d
}

// stillEnforceable compiles a policy that was accepted. A target that is gone since then stays as it was:
// its pods may well be there, and a Service that is replaced is gone for a moment. It is nil when this
// release can't compile the policy.
func stillEnforceable(accepted *v1alpha1.RateLimitPolicy, published *configstore.Policy, workloads policy.Workloads) *match.Policy {
	limits, err := policy.Compile(accepted, workloads)
	if err == nil {
		return &limits
	}
	var refusal *policy.Refusal
	if !errors.As(err, &refusal) || refusal.Reason != v1alpha1.ReasonTargetNotFound {
		return nil
	}
	if published != nil && published.Generation == limits.Generation {
		limits.Targets = withMissing(limits.Targets, published.Targets)
	}
	return &limits
}

// withMissing adds those of the old targets that aren't found any more. They keep their order, so that the
// outcome is the same each time.
func withMissing(found, old []match.Target) []match.Target {
	targets := slices.Clone(old)
	for _, t := range found {
		if i := slices.IndexFunc(targets, func(o match.Target) bool { return o.ID == t.ID }); i >= 0 {
			targets[i] = t
		} else {
			targets = append(targets, t)
		}
	}
	return targets
}

// with gives the decisions, and one for each policy that stays although it is gone.
func (ds decisions) with(staying []configstore.Policy) decisions {
	all := slices.Clone(ds)
	for i := range staying {
		all = append(all, decision{name: staying[i].Name, uid: types.UID(staying[i].UID), limits: &staying[i].Policy})
	}
	slices.SortFunc(all, func(a, b decision) int { return cmp.Compare(a.name, b.name) })
	return all
}

// snapshot gives what to publish after base. It is base itself when it says the same, and the zero
// revision when there has never been anything to say. Where sidecars wait for a snapshot, that there are no policies
// is something to say.
func (ds decisions) snapshot(namespace string, base configstore.Snapshot, epoch int64, awaited bool) configstore.Snapshot {
	next := configstore.Snapshot{
		Namespace: namespace,
		Revision:  configstore.Revision{Epoch: epoch, Number: base.Revision.Number + 1},
		Policies:  []configstore.Policy{},
	}
	changed := awaited && base.Policies == nil // Nothing is stored, or nothing that can be understood.
	for _, d := range ds {
		if d.limits == nil {
			continue
		}
		p := configstore.Policy{Policy: *d.limits, UID: string(d.uid), Since: next.Revision}
		if old := find(base.Policies, d.name); old != nil && old.UID == p.UID && same(old.Policy, p.Policy) {
			p.Since = old.Since
		} else {
			changed = true
		}
		next.Policies = append(next.Policies, p)
	}
	if !changed && len(next.Policies) == len(base.Policies) {
		base.Namespace = namespace
		return base
	}
	return next
}

// notices says what came of each decision when the store holds this snapshot, and err kept it from holding
// a later one.
func (ds decisions) notices(held configstore.Snapshot, err error) map[string]notice {
	notices := make(map[string]notice, len(ds))
	for _, d := range ds {
		n := notice{
			uid:        d.uid,
			generation: d.generation,
			refusal:    d.refusal,
			published:  find(held.Policies, d.name),
			epoch:      held.Revision.Epoch,
			summary:    d.summary,
			err:        cmp.Or(d.err, err),
		}
		if n.published != nil && n.published.UID != string(d.uid) {
			n.published = nil // It is of an earlier object of that name.
		}
		notices[d.name] = n
	}
	return notices
}

// err is why some limits are not what they should be.
func (ds decisions) err() error {
	var errs []error
	for _, d := range ds {
		errs = append(errs, d.err)
	}
	return errors.Join(errs...)
}

// findObject gives what is published of this very object, or nil.
func findObject(policies []configstore.Policy, p *v1alpha1.RateLimitPolicy) *configstore.Policy {
	if found := find(policies, p.Name); found != nil && found.UID == string(p.UID) {
		return found
	}
	return nil
}

// find gives the policy of this name, or nil.
func find(policies []configstore.Policy, name string) *configstore.Policy {
	for i := range policies {
		if policies[i].Name == name {
			return &policies[i]
		}
	}
	return nil
}

// same compares as the store would see it: absent and empty are one.
func same(a, b match.Policy) bool {
	x, errA := json.Marshal(a)
	y, errB := json.Marshal(b)
	return errA == nil && errB == nil && bytes.Equal(x, y)
}

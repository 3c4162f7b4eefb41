// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bytes"
	"encoding/json"
	"errors"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/match"
	"github.com/weir-dev/weir/internal/policy"
)

// decision is what is to be enforced of one policy, and why.
type decision struct {
	name       string
	generation int64
	// refusal is why the policy is not accepted as it stands; nil when it is.
	refusal error
	// newlyAccepted says that this generation is accepted, and not kept as such yet.
	newlyAccepted bool
	// limits are to be enforced; nil is none.
	limits *match.Policy
	// summary of the limits, as far as it is known.
	summary string
}

// decisions are those of one namespace, by name.
type decisions []decision

// judge decides what to enforce of a policy: its spec if that is accepted, else the last one that was.
//
// A spec that was accepted stays in force at the targets that are left when one of them goes. Where no
// accepted spec is known, what is published stays: our view of the kept specs may lag behind, or be of a
// release that could do more.
func judge(p *v1alpha1.RateLimitPolicy, last *lastAccepted, published *configstore.Policy, workloads policy.Workloads) decision {
	d := decision{name: p.Name, generation: p.Generation}
	limits, err := policy.Compile(p, workloads)
	if err == nil {
		d.limits, d.summary = &limits, policy.Summary(p)
		d.newlyAccepted = last == nil || last.generation != p.Generation
		return d
	}
	d.refusal = err
	if last != nil {
		accepted := last.of(p)
		d.limits, d.summary = stillEnforceable(accepted, workloads), policy.Summary(accepted)
	}
	if d.limits == nil && published != nil {
		d.limits = &published.Policy
	}
	return d
}

// stillEnforceable compiles a policy that was accepted. It is nil when this release can't.
func stillEnforceable(accepted *v1alpha1.RateLimitPolicy, workloads policy.Workloads) *match.Policy {
	limits, err := policy.Compile(accepted, workloads)
	var refusal *policy.Refusal
	if err == nil || errors.As(err, &refusal) && refusal.Reason == v1alpha1.ReasonTargetNotFound {
		return &limits
	}
	return nil
}

// snapshot gives what to publish after base. It is base itself when it says the same, and the zero
// revision when there has never been anything to say.
func (ds decisions) snapshot(namespace string, base configstore.Snapshot, epoch int64) configstore.Snapshot {
	next := configstore.Snapshot{
		Namespace: namespace,
		Revision:  configstore.Revision{Epoch: epoch, Number: base.Revision.Number + 1},
		Policies:  []configstore.Policy{},
	}
	changed := false
	for _, d := range ds {
		if d.limits == nil {
			continue
		}
		p := configstore.Policy{Policy: *d.limits, Since: next.Revision}
		if old := find(base.Policies, d.name); old != nil && same(old.Policy, p.Policy) {
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
		notices[d.name] = notice{
			generation: d.generation,
			refusal:    d.refusal,
			published:  find(held.Policies, d.name),
			summary:    d.summary,
			err:        err,
		}
	}
	return notices
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

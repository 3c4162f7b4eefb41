// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"context"
	"slices"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

// Beside gives a store that counts in process what each replica counts by itself, and all else in the shared store,
// whose verdicts it has o remember for the time when there are none.
//
// A request with hits of both kinds takes from the counters in process first, and gives that back when the shared
// store refuses or can't answer. A request of the first kind alone never asks the shared store.
func (o *Own) Beside(shared limiter.Store) limiter.Store {
	return &beside{own: o, shared: shared}
}

type beside struct {
	own    *Own
	shared limiter.Store
}

// Take implements [limiter.Store].
func (b *beside) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	if slices.ContainsFunc(hits, alone) {
		return b.takeBoth(ctx, hits)
	}
	return b.ask(ctx, hits)
}

// alone says whether each replica counts the hit by itself.
func alone(h limiter.Hit) bool { return h.Distribution == limiter.PerReplica }

// ask asks the shared store.
func (b *beside) ask(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	for i := range hits {
		if hits[i].OnFailure == limiter.FailLocal {
			b.own.shares.Note(&hits[i])
		}
	}
	verdicts, err := b.shared.Take(ctx, hits)
	if err != nil {
		return nil, err
	}
	for i := range verdicts {
		if hits[i].OnFailure == limiter.FailLocal && verdicts[i] != (limiter.Verdict{}) {
			b.own.readings.note(hits[i].Key, &verdicts[i], time.Now())
		}
	}
	return verdicts, nil
}

// takeBoth takes what is counted in process, then what is shared, and last what is in the shadow in process: that
// must be asked only when all else admits.
func (b *beside) takeBoth(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	t := taking{hits: hits, verdicts: make([]limiter.Verdict, len(hits))}
	admitted, err := t.take(ctx, b.own.counters.Take, func(h limiter.Hit) bool { return alone(h) && !h.Shadow })
	if !admitted {
		return t.verdicts, err
	}
	charged := t.charges()
	admitted, err = t.take(ctx, b.ask, func(h limiter.Hit) bool { return !alone(h) })
	if !admitted {
		// In process nothing is slow, and nobody has to wait for it.
		_ = b.own.counters.Refund(context.WithoutCancel(ctx), charged)
		return t.verdicts, err
	}
	_, err = t.take(ctx, b.own.counters.Take, func(h limiter.Hit) bool { return alone(h) && h.Shadow })
	return t.verdicts, err
}

// Refund implements [limiter.Store].
func (b *beside) Refund(ctx context.Context, charges []limiter.Charge) error {
	return b.amend(ctx, charges, limiter.Store.Refund)
}

// Renew implements [limiter.Store].
func (b *beside) Renew(ctx context.Context, charges []limiter.Charge) error {
	return b.amend(ctx, charges, limiter.Store.Renew)
}

func (b *beside) amend(ctx context.Context, charges []limiter.Charge, with func(limiter.Store, context.Context, []limiter.Charge) error) error {
	var own, shared []limiter.Charge
	for _, c := range charges {
		if alone(c.Hit) {
			own = append(own, c)
		} else {
			shared = append(shared, c)
		}
	}
	if len(own) > 0 {
		if err := with(b.own.counters, ctx, own); err != nil {
			return err
		}
	}
	if len(shared) > 0 {
		return with(b.shared, ctx, shared)
	}
	return nil
}

// taking is a request that is taken from one store after the other.
type taking struct {
	hits     []limiter.Hit
	verdicts []limiter.Verdict
}

// take takes some of the hits from a store, and says whether the request may go on. With an error there are no
// verdicts.
func (t *taking) take(ctx context.Context, from func(context.Context, []limiter.Hit) ([]limiter.Verdict, error), which func(limiter.Hit) bool) (admitted bool, err error) {
	var (
		some   []limiter.Hit
		places []int
	)
	for i, h := range t.hits {
		if which(h) {
			some, places = append(some, h), append(places, i)
		}
	}
	if len(some) == 0 {
		return true, nil
	}
	verdicts, err := from(ctx, some)
	if err != nil {
		t.verdicts = nil
		return false, err
	}
	admitted = true
	for i, place := range places {
		t.verdicts[place] = verdicts[i]
		admitted = admitted && (verdicts[i].Allowed || some[i].Shadow)
	}
	return admitted, nil
}

// charges are what was taken so far.
func (t *taking) charges() []limiter.Charge {
	var charged []limiter.Charge
	for i, v := range t.verdicts {
		if v.Allowed && t.hits[i].Cost > 0 {
			charged = append(charged, limiter.Charge{Hit: t.hits[i], Receipt: v.Receipt})
		}
	}
	return charged
}

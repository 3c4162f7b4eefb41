// SPDX-License-Identifier: Apache-2.0

package limiter

import (
	"context"
	"slices"
	"time"
)

// storeTimeout is how long the store may take for what is no decision.
const storeTimeout = time.Second

// queues says whether a request of this hit has to wait for its slot. A peek has none, and a shadow hit only tries
// out what it would be like.
func (h *Hit) queues() bool {
	return h.Limit.Algorithm == LeakyBucketQueue && h.Cost > 0 && !h.Shadow
}

// takesPermit says whether a request of this hit holds a permit while it is under way. A peek holds none.
func (h *Hit) takesPermit() bool { return h.Limit.Algorithm == Concurrency && h.Cost > 0 }

// costs says whether the hit is charged for.
func (h *Hit) costs() bool { return h.Cost > 0 }

// outlasts says whether the hit matters for longer than its verdict takes.
func (h *Hit) outlasts() bool { return h.queues() || h.takesPermit() }

func some(hits []Hit, is func(*Hit) bool) bool {
	for i := range hits {
		if is(&hits[i]) {
			return true
		}
	}
	return false
}

// decideInTurn decides a request that may have to wait for its turn, and then to hold permits.
func (e *Engine) decideInTurn(ctx context.Context, hits []Hit) Decision {
	first, permits := steps(hits)
	verdicts, err := e.store.Take(context.WithoutCancel(ctx), first)
	if err != nil {
		return e.fail(ctx, hits, err)
	}
	if d, refused := e.refuse(first, verdicts); refused {
		return d
	}
	waited, left := e.hold(ctx, first, verdicts)
	if left {
		e.refund(charges(first, verdicts, (*Hit).costs))
		return Decision{Left: true, Waited: waited}
	}
	d := e.goOn(ctx, first, verdicts, permits)
	d.Waited += waited
	return d
}

// steps splits the hits of a request that has to queue before it takes permits: while it waits, others can use
// them. Of all other requests all hits are taken in one step.
func steps(hits []Hit) (first, permits []Hit) {
	if !some(hits, (*Hit).queues) || !some(hits, (*Hit).takesPermit) {
		return hits, nil
	}
	for i := range hits {
		if hits[i].takesPermit() {
			permits = append(permits, hits[i])
		} else {
			first = append(first, hits[i])
		}
	}
	return first, permits
}

// goOn admits a request whose hits were charged, if it gets the permits too that are still to be taken.
func (e *Engine) goOn(ctx context.Context, hits []Hit, verdicts []Verdict, permits []Hit) Decision {
	if len(permits) == 0 {
		return e.admitWithPermits(hits, verdicts)
	}
	more, err := e.store.Take(context.WithoutCancel(ctx), permits)
	if err != nil {
		return e.failAfter(ctx, hits, verdicts, permits, err)
	}
	if d, refused := e.refuse(permits, more); refused {
		e.refund(charges(hits, verdicts, (*Hit).costs))
		return d
	}
	return e.admitWithPermits(slices.Concat(hits, permits), slices.Concat(verdicts, more))
}

// failAfter decides without the permits that the store can't answer for. What was charged before stays so if the
// request is admitted.
func (e *Engine) failAfter(ctx context.Context, hits []Hit, verdicts []Verdict, permits []Hit, err error) Decision {
	d := e.fail(ctx, permits, err)
	if !d.Allowed {
		e.refund(charges(hits, verdicts, (*Hit).costs))
		return d
	}
	admitted := e.admit(hits, verdicts)
	admitted.Err, admitted.permits = err, d.permits
	return admitted
}

func (e *Engine) admitWithPermits(hits []Hit, verdicts []Verdict) Decision {
	d := e.admit(hits, verdicts)
	d.permits = e.keep(charges(hits, verdicts, (*Hit).takesPermit))
	return d
}

// charges gives what was charged of some kind of hits, for a request that all verdicts admit but for those of
// shadow hits.
func charges(hits []Hit, verdicts []Verdict, of func(*Hit) bool) []Charge {
	var charged []Charge
	for i, v := range verdicts {
		if v.Allowed && of(&hits[i]) {
			charged = append(charged, Charge{Hit: hits[i], Receipt: v.Receipt})
		}
	}
	return charged
}

// refund gives charges back. It is tried once: a charge that stays costs others a slot or a permit, until it
// expires.
func (e *Engine) refund(charged []Charge) {
	if len(charged) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	_ = e.store.Refund(ctx, charged)
}

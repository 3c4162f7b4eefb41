// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

// longestWindow is the longest that a limit can have.
const longestWindow = 8784 * time.Hour

// Shares tells which part of a limit is this replica's own. It is safe for concurrent use.
type Shares interface {
	// Note counts a hit as demand, whether it is admitted or not.
	Note(h *limiter.Hit)
	// Share gives a part above 0, and at most 1.
	Share(h *limiter.Hit) float64
}

// Own is a [limiter.Store] of counters that this replica has to itself, whatever becomes of the store that it shares
// with others: those of limits that each replica counts by itself, and, for the time when the shared store can't
// answer, those of its share of all other limits.
//
// A share begins with what was left of the limit by the last verdict of the shared store, so that an outage doesn't
// start with a fresh budget. It is kept over the store's return for as long as it counts, so that a store which comes
// and goes gives no fresh budgets either. A share admits one request at a time at least, however small it is.
//
// An Own is safe for concurrent use.
type Own struct {
	counters limiter.Store
	shares   Shares
	readings *readings
}

// NewOwn gives a store on counters in process.
func NewOwn(counters limiter.Store, shares Shares) *Own {
	return &Own{counters: counters, shares: shares, readings: newReadings()}
}

// Take implements [limiter.Store].
func (o *Own) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	own := slices.Clone(hits)
	for i := range own {
		h := &own[i]
		if h.Distribution == limiter.PerReplica {
			continue
		}
		share := o.shares.Share(h)
		h.Limit = part(h.Limit, share)
		if err := o.seed(ctx, hits[i], *h, share); err != nil {
			return nil, err
		}
	}
	return o.counters.Take(ctx, own)
}

// Refund implements [limiter.Store].
func (o *Own) Refund(ctx context.Context, charges []limiter.Charge) error {
	return o.counters.Refund(ctx, o.owned(charges))
}

// Renew implements [limiter.Store].
func (o *Own) Renew(ctx context.Context, charges []limiter.Charge) error {
	return o.counters.Renew(ctx, o.owned(charges))
}

func (o *Own) owned(charges []limiter.Charge) []limiter.Charge {
	own := slices.Clone(charges)
	for i := range own {
		if h := &own[i].Hit; h.Distribution != limiter.PerReplica {
			h.Limit = part(h.Limit, o.shares.Share(h))
		}
	}
	return own
}

// seed takes from a replica's counter what it has above its share of what was left of the limit. That is done once
// for each verdict of the shared store: from then on the counter itself knows.
func (o *Own) seed(ctx context.Context, whole, own limiter.Hit, share float64) error {
	left, known := o.readings.take(&whole, time.Now())
	if !known {
		return nil
	}
	own.Shadow, own.Cost = false, 0
	verdicts, err := o.counters.Take(ctx, []limiter.Hit{own})
	if err != nil {
		return err
	}
	own.Cost = min(verdicts[0].Remaining-int64(share*float64(left)), own.Limit.Capacity())
	if own.Cost <= 0 {
		return nil
	}
	_, err = o.counters.Take(ctx, []limiter.Hit{own})
	return err
}

// part gives the limit of who has a share of one: the same number of requests in a longer window where only the rate
// matters, else fewer requests, but at least one.
func part(l limiter.Limit, share float64) limiter.Limit {
	some := func(n int64) int64 { return max(1, int64(share*float64(n))) }
	switch l.Algorithm {
	case limiter.TokenBucket, limiter.LeakyBucketMeter, limiter.LeakyBucketQueue:
		window := math.Ceil(float64(l.Window.Microseconds()) / share)
		if most := float64(longestWindow.Microseconds()); window > most {
			l.Requests, window = some(int64(float64(l.Requests)*most/float64(l.Window.Microseconds()))), most
		}
		l.Window = time.Duration(window) * time.Microsecond
		l.Burst = some(l.Burst)
		if l.MaxQueue > 0 {
			l.MaxQueue = some(l.MaxQueue)
		}
	default:
		l.Requests = some(l.Requests)
	}
	return l
}

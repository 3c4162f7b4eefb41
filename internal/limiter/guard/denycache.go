// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"context"
	"hash/maphash"
	"sync/atomic"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

const (
	// maxRefusals take some 4 MB.
	maxRefusals = 1 << 14
	// checkInterval is how often the store is asked whether a refusal still holds.
	checkInterval = 500 * time.Millisecond
)

// DenyCache gives a store that remembers what the inner one refuses, and refuses it from memory until the wait
// that the store told is over: so a flood above a limit costs the store next to nothing, and what the store
// can't answer any more isn't admitted for that.
//
// A refusal holds for the same key, limit and cost, and never refuses longer than the store said. The store is
// asked again twice a second, by one request while the others go on being refused; so a refund by somebody else, or
// counts that were lost, are noticed within a second. After a refund through the cache itself, nothing is remembered
// of its keys. A failure of the store leaves a refusal as it is.
//
// The verdicts of a request that is refused from memory are zero for the hits that nothing is remembered of.
// Shadow hits are neither remembered nor answered from memory, and so are hits that take what fits or that never fit,
// and those of [limiter.Concurrency]: a permit can come back at any moment.
func DenyCache(store limiter.Store) limiter.Store {
	return &denyCache{store: store, seed: maphash.MakeSeed()}
}

type denyCache struct {
	store limiter.Store
	seed  maphash.Seed
	// refusals are found by the hash of their key. Where two meet, the newer one stays: what is forgotten
	// costs a question to the store, no more.
	refusals [maxRefusals]atomic.Pointer[refusal]
}

// refusal is what the store refused, and is never changed.
type refusal struct {
	key     string
	limit   limiter.Limit
	cost    int64
	verdict limiter.Verdict
	// asked is when the store was asked, and checked when it last was whether the refusal still holds. Both
	// are from before the question was sent: to the store the wait starts later, and ends later.
	asked, checked time.Time
}

// Take implements [limiter.Store].
func (c *denyCache) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	asked := time.Now()
	if refused := c.recall(hits, asked); refused != nil && !c.claim(hits, asked) {
		return refused, nil
	}
	verdicts, err := c.store.Take(ctx, hits)
	if err != nil {
		// Others may have been refused meanwhile.
		if refused := c.recall(hits, time.Now()); refused != nil {
			return refused, nil
		}
		return nil, err
	}
	c.remember(hits, verdicts, asked)
	return verdicts, nil
}

// Refund implements [limiter.Store].
func (c *denyCache) Refund(ctx context.Context, charges []limiter.Charge) error {
	err := c.store.Refund(ctx, charges)
	for i := range charges { // After an error too: the store may have done it.
		c.forget(charges[i].Hit.Key)
	}
	return err
}

// Renew implements [limiter.Store].
func (c *denyCache) Renew(ctx context.Context, charges []limiter.Charge) error {
	return c.store.Renew(ctx, charges)
}

// recall gives the verdicts of a request that is refused from memory, or nil.
func (c *denyCache) recall(hits []limiter.Hit, now time.Time) []limiter.Verdict {
	var verdicts []limiter.Verdict
	for i := range hits {
		_, r := c.find(&hits[i], now)
		if r == nil {
			continue
		}
		if verdicts == nil {
			verdicts = make([]limiter.Verdict, len(hits))
		}
		verdicts[i] = r.at(now)
	}
	return verdicts
}

// claim says whether a refusal is due to be checked with the store, and this request is the one to do it.
func (c *denyCache) claim(hits []limiter.Hit, now time.Time) bool {
	for i := range hits {
		slot, r := c.find(&hits[i], now)
		if r != nil && now.Sub(r.checked) >= checkInterval && slot.CompareAndSwap(r, r.checkedAt(now)) {
			return true
		}
	}
	return false
}

// find gives the refusal that holds for a hit now, or nil, and where it is.
func (c *denyCache) find(h *limiter.Hit, now time.Time) (*atomic.Pointer[refusal], *refusal) {
	if h.Shadow || h.UpTo {
		return nil, nil
	}
	slot := c.slot(h.Key)
	r := slot.Load()
	if r == nil || !r.of(h) || now.Sub(r.asked) >= r.lasts() {
		return nil, nil
	}
	return slot, r
}

// remember keeps what the store has refused, and forgets what it refuses no more.
func (c *denyCache) remember(hits []limiter.Hit, verdicts []limiter.Verdict, asked time.Time) {
	for i, v := range verdicts {
		h := &hits[i]
		slot := c.slot(h.Key)
		switch {
		case h.Shadow, h.UpTo, h.Limit.Algorithm == limiter.Concurrency:
		case v.RetryAfter > 0:
			slot.Store(&refusal{key: h.Key, limit: h.Limit, cost: h.Cost, verdict: v, asked: asked, checked: asked})
		case v.Allowed:
			if r := slot.Load(); r != nil && r.of(h) {
				slot.CompareAndSwap(r, nil)
			}
		}
	}
}

func (c *denyCache) forget(key string) {
	slot := c.slot(key)
	if r := slot.Load(); r != nil && r.key == key {
		slot.CompareAndSwap(r, nil)
	}
}

func (c *denyCache) slot(key string) *atomic.Pointer[refusal] {
	return &c.refusals[maphash.String(c.seed, key)%maxRefusals]
}

// of says whether this is about the very same question to the store. A higher cost is refused as well, but
// has to wait longer.
func (r *refusal) of(h *limiter.Hit) bool {
	return r.key == h.Key && r.cost == h.Cost && r.limit == h.Limit
}

// lasts gives how long the store is sure to refuse. The wait that it tells is rounded up, and the strategies
// forgive who comes a millionth of a request too early, of which there is at least one in a window.
func (r *refusal) lasts() time.Duration {
	return r.verdict.RetryAfter - 2*time.Microsecond - r.limit.Window/1e6
}

// at gives the verdict with what is left of its times. Of a counter with nothing left, nobody can take
// anything meanwhile, so it is the one that the store would give.
func (r *refusal) at(now time.Time) limiter.Verdict {
	v, age := r.verdict, now.Sub(r.asked)
	v.RetryAfter -= age
	v.ResetAfter = max(0, v.ResetAfter-age)
	return v
}

func (r *refusal) checkedAt(now time.Time) *refusal {
	checked := *r
	checked.checked = now
	return &checked
}

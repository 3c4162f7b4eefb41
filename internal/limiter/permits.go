// SPDX-License-Identifier: Apache-2.0

package limiter

import (
	"context"
	"slices"
	"sync"
	"time"
)

// maxRenewals is how many requests' permits are renewed in one call, so that none keeps the store from its decisions
// for long.
const maxRenewals = 128

// holding is the permits of one request.
type holding struct {
	engine  *Engine
	charges []Charge
	// term is how long they last without being renewed.
	term time.Duration
	// due is when they have to be renewed. It belongs to the mutex of permits.
	due time.Time
}

// keep keeps the permits of a request. It is nil if there are none.
func (e *Engine) keep(permits []Charge) *holding {
	if len(permits) == 0 {
		return nil
	}
	h := &holding{engine: e, charges: permits, term: permits[0].Hit.Limit.Window}
	for _, c := range permits {
		h.term = min(h.term, c.Hit.Limit.Window)
	}
	e.permits.add(h, time.Now())
	return h
}

// Release gives back the permits of a request that is over. It returns when the store has them, or after a second
// at most, so that whoever sends one request after the other is never refused for the one before. It can be called
// for every decision, at any time and more than once.
func (d Decision) Release() {
	if d.permits != nil && d.permits.engine.permits.remove(d.permits) {
		d.permits.engine.refund(d.permits.charges)
	}
}

// Run renews the permits of requests that are under way for long, until ctx is done. Without it a permit that is
// older than its limit's window counts no more, whether its request is over or not.
//
// A permit is renewed when a third to a half of its window has passed, so that one call renews many. A call that
// fails is repeated when a sixth of the window has passed, which leaves time for two or three more.
func (e *Engine) Run(ctx context.Context) {
	if e.fallback != nil {
		var own sync.WaitGroup
		defer own.Wait()
		own.Go(func() { e.fallback.Run(ctx) })
	}
	for {
		var due <-chan time.Time // Nothing comes of it while nothing is held.
		if at := e.permits.nextRound(); !at.IsZero() {
			due = time.After(time.Until(at))
		}
		select {
		case <-ctx.Done():
			return
		case <-e.permits.sooner:
		case <-due:
			e.renew(ctx, time.Now())
		}
	}
}

// renew renews the permits that are old enough. A store that doesn't answer is given up after a second, however
// many there are.
func (e *Engine) renew(ctx context.Context, now time.Time) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	for batch := range slices.Chunk(e.permits.old(now), maxRenewals) {
		var charged []Charge
		for _, h := range batch {
			charged = append(charged, h.charges...)
		}
		e.remember(charged)
		err := e.store.Renew(ctx, charged)
		e.permits.tried(batch, now, err == nil)
	}
	e.permits.plan()
}

// remember has the roster know the keys of permits for as long as these are renewed.
func (e *Engine) remember(permits []Charge) {
	for i := range permits {
		if h := &permits[i].Hit; e.roster != nil && h.Overflow != "" && h.Overflow != h.Key {
			e.roster.Enlist(h)
		}
	}
}

// permits are those that requests hold.
type permits struct {
	mu   sync.Mutex
	held map[*holding]struct{}
	// next is when the next round of renewals is. Zero for none.
	next time.Time
	// sooner has room for one value, which says that next has come nearer.
	sooner chan struct{}
}

func newPermits() permits {
	return permits{held: map[*holding]struct{}{}, sooner: make(chan struct{}, 1)}
}

func (p *permits) add(h *holding, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	h.due = now.Add(h.term / 2)
	p.held[h] = struct{}{}
	if p.next.IsZero() || h.due.Before(p.next) {
		p.next = h.due
		select {
		case p.sooner <- struct{}{}:
		default:
		}
	}
}

// remove says whether h was still held.
func (p *permits) remove(h *holding) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, held := p.held[h]
	delete(p.held, h)
	return held
}

func (p *permits) nextRound() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.next
}

// old gives those that are due in a sixth of their term.
func (p *permits) old(now time.Time) []*holding {
	p.mu.Lock()
	defer p.mu.Unlock()
	var old []*holding
	for h := range p.held {
		if !h.due.After(now.Add(h.term / 6)) {
			old = append(old, h)
		}
	}
	return old
}

// tried says when holdings are due that the store was asked to renew at a time.
func (p *permits) tried(batch []*holding, asked time.Time, renewed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range batch {
		if renewed {
			h.due = asked.Add(h.term / 2)
		} else {
			h.due = asked.Add(h.term / 6)
		}
	}
}

// plan sets the next round to when the first holding is due.
func (p *permits) plan() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = time.Time{}
	for h := range p.held {
		if p.next.IsZero() || h.due.Before(p.next) {
			p.next = h.due
		}
	}
}

// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"github.com/weir-dev/weir/internal/limiter"
)

// Counter is the state of one counter in process. The zero value is one from which nothing was taken.
type Counter struct {
	// Layout tells how State was written: to strategies with states of another layout the counter is as if
	// nothing was taken.
	Layout byte
	// State is the same bytes as in Redis, without the header before them.
	State []byte
	// Expires, in microseconds since the Unix epoch, is when the counter can be forgotten.
	Expires int64
}

// live gives the state, as far as a strategy can read it.
func (c *Counter) live(s *Strategy, now int64) []byte {
	if c.Layout == s.layout && now < c.Expires {
		return c.State
	}
	return nil
}

// Evaluator decides requests in process as [Script] does in Redis. The zero value is ready to use. It keeps
// buffers, and so is not safe for concurrent use.
type Evaluator struct {
	// strategy and taking are those of the hit that was asked about last.
	strategy *Strategy
	taking   Taking
	// allowed says of each hit whether it admits the request.
	allowed []bool
}

// Decide decides a request of hits that pass [Check], counters[i] being the counter of hits[i], and no
// counter that of two hits. Now is microseconds since the Unix epoch. The verdicts, as many as hits, have to be
// zero, and are filled in.
func (e *Evaluator) Decide(now int64, hits []limiter.Hit, counters []*Counter, verdicts []limiter.Verdict) {
	if len(hits) == 1 {
		// The only hit needs nobody's consent.
		allowed := e.take(now, &hits[0], counters[0], timesOf(&hits[0]))
		e.conclude(&verdicts[0], now, &hits[0], counters[0], allowed)
		return
	}
	admitted := e.ask(now, hits, counters)
	times := int64(0)
	if admitted {
		times = 1
	}
	for i := range hits {
		if !hits[i].Shadow {
			e.take(now, &hits[i], counters[i], times)
			e.conclude(&verdicts[i], now, &hits[i], counters[i], e.allowed[i])
		}
	}
	for i := range hits {
		if hits[i].Shadow && admitted {
			allowed := e.take(now, &hits[i], counters[i], 1)
			e.conclude(&verdicts[i], now, &hits[i], counters[i], allowed)
		}
	}
}

// ask says whether all hits that count admit the request, and charges none.
func (e *Evaluator) ask(now int64, hits []limiter.Hit, counters []*Counter) bool {
	admitted := true
	e.allowed = e.allowed[:0]
	for i := range hits {
		allowed := hits[i].Shadow || e.take(now, &hits[i], counters[i], 1)
		e.allowed = append(e.allowed, allowed)
		admitted = admitted && allowed
	}
	return admitted
}

// take works out what a hit takes, and leaves it in e.taking.
func (e *Evaluator) take(now int64, h *limiter.Hit, c *Counter, times int64) bool {
	e.strategy = of(h.Limit.Algorithm)
	e.taking.reset()
	e.strategy.Take(&e.taking, c.live(e.strategy, now), now, &h.Limit, costOf(h), times)
	return e.taking.Admitted > 0
}

// conclude tells of e.taking, and keeps the counter's next state.
func (e *Evaluator) conclude(v *limiter.Verdict, now int64, h *limiter.Hit, c *Counter, allowed bool) {
	s := e.strategy
	said := e.taking.Said
	if len(said) == 0 {
		said = e.taking.Next
	}
	if len(said) == 0 {
		said = c.live(s, now)
	}
	admitted := e.taking.Admitted
	*v = s.tell(said, now, h, Place{Cost: costOf(h), Nth: max(0, admitted-1), Charged: admitted, Allowed: allowed})
	c.keep(s, now, &e.taking)
}

// keep makes the next state the counter's, if there is one.
func (c *Counter) keep(s *Strategy, now int64, t *Taking) {
	if len(t.Next) > 0 {
		c.Layout, c.State, c.Expires = s.layout, append(c.State[:0], t.Next...), now+t.TTL+slack
	}
}

// Amend refunds or renews the charge of a hit. What is gone owes nothing.
func (e *Evaluator) Amend(now int64, h *limiter.Hit, c *Counter, receipt int64, renew bool) {
	s := of(h.Limit.Algorithm)
	state := c.live(s, now)
	if len(state) == 0 {
		return
	}
	expires := c.Expires
	e.taking.reset()
	s.Amend(&e.taking, state, now, &h.Limit, Charge{Cost: costOf(h), Receipt: receipt, Renew: renew})
	c.keep(s, now, &e.taking)
	// What was taken under another limit since can count for longer.
	c.Expires = max(c.Expires, expires)
}

// costOf bounds a cost. What is above the capacity never fits, by however much, and Lua can't tell all of it apart.
// A hit that takes up to its cost is as many equal requests as there can be, of a part of the cost.
func costOf(h *limiter.Hit) int64 {
	if h.UpTo {
		return (most(h) + maxTimes - 1) / maxTimes
	}
	return min(h.Cost, h.Limit.Capacity()+1)
}

// timesOf gives how many equal requests of its cost a hit is.
func timesOf(h *limiter.Hit) int64 {
	if cost := costOf(h); h.UpTo && cost > 0 {
		return most(h) / cost
	}
	return 1
}

// most is what a hit can take that takes up to its cost.
func most(h *limiter.Hit) int64 { return min(h.Cost, h.Limit.Capacity()) }

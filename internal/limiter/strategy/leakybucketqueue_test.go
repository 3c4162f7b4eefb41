// SPDX-License-Identifier: Apache-2.0

package strategy_test

import (
	"cmp"
	"fmt"
	"math/big"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// turn is when a request goes on, and what it costs.
type turn struct{ slot, cost int64 }

// apart finds turns that are nearer to each other than what goes on from one to the other costs. They are told
// rounded up, and so may be nearer by less than a microsecond, but no two are the same.
func apart(rt *rapid.T, l limiter.Limit, turns []turn) {
	slices.SortFunc(turns, func(a, b turn) int { return cmp.Compare(a.slot, b.slot) })
	window, requests := big.NewInt(l.Window.Microseconds()), big.NewInt(l.Requests)
	cost, latest := new(big.Int), (*big.Int)(nil)
	for i, a := range turns {
		if i > 0 && turns[i-1].slot == a.slot {
			rt.Errorf("two requests go on at %d", a.slot)
		}
		// How late it comes after all the costs before it, in parts of which as many as requests are a microsecond.
		late := new(big.Int).Mul(big.NewInt(a.slot), requests)
		late.Sub(late, new(big.Int).Mul(cost, window))
		if latest != nil && new(big.Int).Sub(latest, late).Cmp(requests) >= 0 {
			rt.Errorf("the one that goes on at %d is too early", a.slot)
		}
		if latest == nil || late.Cmp(latest) > 0 {
			latest = late
		}
		cost.Add(cost, big.NewInt(a.cost))
	}
}

// crowd are requests that come to one queue, wait, leave and go on.
type crowd struct {
	rt      *rapid.T
	limit   limiter.Limit
	e       strategy.Evaluator
	counter strategy.Counter
	// now is the clock that the counter sees, which may be set back, and truth is one that is not.
	now, truth int64
	last       limiter.Verdict
	staying    []guest
	// back is by how much the clock is set back at most.
	back int64
}

// guest is a request that has not left.
type guest struct {
	turn
	receipt int64
}

// play has them come, and leave while the clock isn't set back: who takes the slot of one that left then goes on later
// than that would have, by as long as the clock went back.
func (c *crowd) play() {
	for range rapid.IntRange(1, 150).Draw(c.rt, "number") {
		c.step()
		if c.back == 0 && len(c.staying) > 0 && rapid.IntRange(0, 3).Draw(c.rt, "leave") == 0 {
			c.leave()
		} else {
			c.come()
		}
	}
	var turns []turn
	for _, g := range c.staying {
		turns = append(turns, g.turn)
	}
	apart(c.rt, c.limit, turns)
}

func (c *crowd) step() {
	window := c.limit.Window.Microseconds()
	beside := rapid.Int64Range(-1, 1).Draw(c.rt, "beside")
	forward := int64(0)
	switch rapid.IntRange(0, 9).Draw(c.rt, "step") {
	case 0:
		forward = c.last.RetryAfter.Microseconds() + beside
	case 1:
		forward = c.last.Wait.Microseconds() + beside
	case 2:
		forward = window/c.limit.Requests + beside
	case 3:
		forward = rapid.Int64Range(0, window).Draw(c.rt, "long")
	case 4:
		c.now -= rapid.Int64Range(0, c.back).Draw(c.rt, "back")
	}
	c.now += max(0, forward)
	c.truth += max(0, forward)
}

func (c *crowd) leave() {
	// Most often one of the last, who still wait.
	few := min(len(c.staying), rapid.SampledFrom([]int{1, 8, 8, 150}).Draw(c.rt, "few"))
	i := len(c.staying) - rapid.IntRange(1, few).Draw(c.rt, "guest")
	g := c.staying[i]
	c.staying = slices.Delete(c.staying, i, i+1)
	c.e.Amend(c.now, &limiter.Hit{Key: "a", Limit: c.limit, Cost: g.cost}, &c.counter, g.receipt, false)
}

func (c *crowd) come() {
	cost := rapid.OneOf(rapid.Just(int64(1)), rapid.Just(int64(1)), rapid.Int64Range(1, c.limit.Requests)).Draw(c.rt, "cost")
	c.last = decide(&c.e, c.now, limiter.Hit{Key: "a", Limit: c.limit, Cost: cost}, &c.counter)
	if !c.last.Allowed {
		told := c.last.RetryAfter.Microseconds()
		if v := peek(c.counter, c.now+told, c.limit, cost); !v.Allowed {
			c.rt.Errorf("after %d us a cost of %d got %+v", told, cost, v)
		}
		if v := peek(c.counter, c.now+told-1, c.limit, cost); v.Allowed {
			c.rt.Errorf("after %d of %d us a cost of %d got %+v", told-1, told, cost, v)
		}
		return
	}
	slot := c.truth + c.last.Wait.Microseconds()
	ahead := int64(0)
	for _, g := range c.staying {
		if g.slot > c.truth && g.slot < slot {
			ahead++
		}
	}
	if c.last.Wait > c.limit.MaxDelay || c.limit.MaxQueue > 0 && ahead >= c.limit.MaxQueue {
		c.rt.Errorf("a request waits for %s behind %d of %+v", c.last.Wait, ahead, c.limit)
	}
	c.staying = append(c.staying, guest{turn{slot, cost}, c.last.Receipt})
}

func TestLeakyBucketQueueBound(t *testing.T) {
	for name, back := range map[string]int64{
		"slots are as far apart as they cost, and nobody waits too long or behind too many": 0,
		"the same goes while the clock is back a little":                                    1_000_000,
		"the same goes when the clock is set back by far":                                   100_000_000,
	} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				c := crowd{rt: rt, limit: limits(rt, limiter.LeakyBucketQueue), now: epoch, truth: epoch, back: back}
				c.play()
			})
		})
	}
	t.Run("a request is refused only if its slot would be too late", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) {
			l := limits(rt, limiter.LeakyBucketQueue)
			l.MaxQueue = 0
			free := big.NewRat(epoch, 1)
			for _, e := range play(rt, l, 0) {
				now := big.NewRat(e.at, 1)
				if free.Cmp(now) < 0 {
					free.Set(now)
				}
				latest := new(big.Rat).Add(now, big.NewRat(l.MaxDelay.Microseconds(), 1))
				if fits := e.cost <= l.Requests && free.Cmp(latest) <= 0; e.verdict.Allowed != fits {
					rt.Errorf("at %d, with the next slot at %s, a cost of %d got %+v", e.at, free.FloatString(3), e.cost, e.verdict)
				}
				if e.verdict.Allowed {
					length := big.NewRat(l.Window.Microseconds(), l.Requests)
					length.Mul(length, big.NewRat(e.cost, 1))
					if one := big.NewRat(1, 1); length.Cmp(one) < 0 {
						length = one
					}
					free.Add(free, length)
				}
			}
		})
	})
}

func TestLeakyBucketQueueThroughput(t *testing.T) {
	t.Run("whoever sends all that it can, gets the rate and a queue", func(t *testing.T) {
		const windows = 50
		l := limiter.Limit{Algorithm: limiter.LeakyBucketQueue, Requests: 60, Window: time.Second, MaxDelay: time.Second, MaxQueue: 5}
		var e strategy.Evaluator
		var c strategy.Counter
		total := 0
		for now := epoch; now <= epoch+windows*1_000_000; {
			v := decide(&e, now, limiter.Hit{Key: "a", Limit: l, Cost: 1}, &c)
			if v.Allowed {
				total++
			}
			now += v.RetryAfter.Microseconds()
		}
		if want := 60*windows + 1 + 5; total != want {
			t.Errorf("%d windows admitted %d, not %d", windows, total, want)
		}
	})
	for _, l := range []limiter.Limit{
		{Requests: 7, Window: 10 * time.Millisecond},
		{Requests: 3, Window: time.Second},
		{Requests: 900_001, Window: time.Second},
		{Requests: 999_999_937, Window: 8784 * time.Hour},
	} {
		t.Run(fmt.Sprintf("no slot of %d in %s is a microsecond late", l.Requests, l.Window), func(t *testing.T) {
			l.Algorithm, l.MaxDelay = limiter.LeakyBucketQueue, 8784*time.Hour
			var e strategy.Evaluator
			var c strategy.Counter
			for n := range int64(20_000) {
				got := decide(&e, epoch, limiter.Hit{Key: "a", Limit: l, Cost: 1}, &c).Wait.Microseconds()
				if want := (n*l.Window.Microseconds() + l.Requests - 1) / l.Requests; got != want {
					t.Fatalf("request %d waits for %d us, not %d", n, got, want)
				}
			}
		})
	}
}

// waits takes from a queue, and gives how many seconds each request waits and the receipts.
func waits(e *strategy.Evaluator, c *strategy.Counter, now int64, l limiter.Limit, requests int) (seconds, receipts []int64) {
	for range requests {
		v := decide(e, now, limiter.Hit{Key: "a", Limit: l, Cost: 1}, c)
		seconds, receipts = append(seconds, int64(v.Wait/time.Second)), append(receipts, v.Receipt)
	}
	return seconds, receipts
}

func TestLeakyBucketQueueHoles(t *testing.T) {
	l := limiter.Limit{Algorithm: limiter.LeakyBucketQueue, Requests: 1, Window: time.Second, MaxDelay: time.Hour}
	hit := limiter.Hit{Key: "a", Limit: l, Cost: 1}
	check := func(t *testing.T, want, got []int64) {
		t.Helper()
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("waits (-want +got):\n%s", diff)
		}
	}
	t.Run("the earliest hole is taken first", func(t *testing.T) {
		var e strategy.Evaluator
		var c strategy.Counter
		_, receipts := waits(&e, &c, epoch, l, 6)
		for _, i := range []int{3, 1, 4} {
			e.Amend(epoch, &hit, &c, receipts[i], false)
		}
		got, _ := waits(&e, &c, epoch, l, 5)
		check(t, []int64{1, 3, 4, 6, 7}, got)
	})
	t.Run("a hole that has passed is nobody's", func(t *testing.T) {
		var e strategy.Evaluator
		var c strategy.Counter
		_, receipts := waits(&e, &c, epoch, l, 6)
		e.Amend(epoch, &hit, &c, receipts[1], false)
		e.Amend(epoch, &hit, &c, receipts[3], false)
		got, _ := waits(&e, &c, epoch+1_000_001, l, 2)
		check(t, []int64{1, 4}, got)
	})
	t.Run("who leaves when its slot has passed leaves no hole", func(t *testing.T) {
		var e strategy.Evaluator
		var c strategy.Counter
		_, receipts := waits(&e, &c, epoch, l, 3)
		e.Amend(epoch+1_000_001, &hit, &c, receipts[1], false)
		got, _ := waits(&e, &c, epoch+2_000_000, l, 2)
		check(t, []int64{1, 2}, got)
	})
	t.Run("a hole that an earlier queue's receipt has left goes with the slots around it", func(t *testing.T) {
		var e strategy.Evaluator
		var c strategy.Counter
		one := hit
		one.Limit.Requests, one.Limit.Window = 3, 3*time.Second
		three := one
		three.Cost = 3
		slot := decide(&e, epoch, three, &c).Receipt
		e.Amend(epoch, &one, &c, slot+1_000_000, false)
		e.Amend(epoch, &three, &c, slot, false)
		got, _ := waits(&e, &c, epoch, one.Limit, 3)
		check(t, []int64{0, 1, 2}, got)
	})
	t.Run("when all have left, in any order, the queue is as new", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) {
			l := limits(rt, limiter.LeakyBucketQueue)
			var e strategy.Evaluator
			var c strategy.Counter
			want := peek(c, epoch, l, 1)
			var receipts []int64
			for range rapid.IntRange(1, 100).Draw(rt, "number") {
				if v := decide(&e, epoch, limiter.Hit{Key: "a", Limit: l, Cost: 1}, &c); v.Allowed {
					receipts = append(receipts, v.Receipt)
				}
			}
			for _, receipt := range rapid.Permutation(receipts).Draw(rt, "order") {
				e.Amend(epoch, &limiter.Hit{Key: "a", Limit: l, Cost: 1}, &c, receipt, false)
			}
			if diff := gocmp.Diff(want, peek(c, epoch, l, 1)); diff != "" {
				rt.Errorf("a request is told (-want +got):\n%s", diff)
			}
		})
	})
	t.Run("a queue has 128 holes at most", func(t *testing.T) {
		var e strategy.Evaluator
		var c strategy.Counter
		_, receipts := waits(&e, &c, epoch, l, 200)
		for _, receipt := range receipts[10:180] {
			e.Amend(epoch, &hit, &c, receipt, false)
		}
		got, _ := waits(&e, &c, epoch, l, 130)
		check(t, []int64{137, 200, 201}, got[127:])
	})
	t.Run("a slot of another spacing is nobody's hole", func(t *testing.T) {
		var e strategy.Evaluator
		var c strategy.Counter
		slow := l
		slow.Window = 10 * time.Second
		_, receipts := waits(&e, &c, epoch, l, 5)
		e.Amend(epoch, &hit, &c, receipts[1], false)
		got, _ := waits(&e, &c, epoch, slow, 2)
		check(t, []int64{5, 15}, got)
		e.Amend(epoch, &hit, &c, receipts[2], false)
		got, _ = waits(&e, &c, epoch, l, 1)
		check(t, []int64{25}, got)
	})
	t.Run("a slot is found again after the clock was set back", func(t *testing.T) {
		var e strategy.Evaluator
		var c strategy.Counter
		const hour = 3600_000_000
		_, receipts := waits(&e, &c, epoch, l, 5)
		got, _ := waits(&e, &c, epoch-hour, l, 1)
		check(t, []int64{5}, got)
		e.Amend(epoch-hour, &hit, &c, receipts[3], false)
		got, _ = waits(&e, &c, epoch-hour+1_000_000, l, 2)
		check(t, []int64{2, 5}, got)
	})
}

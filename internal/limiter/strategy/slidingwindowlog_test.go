// SPDX-License-Identifier: Apache-2.0

package strategy_test

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

func TestSlidingWindowLogBound(t *testing.T) {
	for name, back := range map[string]int64{
		"no window admits more than its requests":                                 0,
		"no window admits more than its requests when the clock is back a little": 1_000_000,
	} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				l := limits(rt, limiter.SlidingWindowLog)
				if most := mostIn(l.Window.Microseconds(), play(rt, l, back)); most > l.Requests {
					rt.Errorf("a window admits %d", most)
				}
			})
		})
	}
	t.Run("what is refused would be too much for its window", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) {
			l := limits(rt, limiter.SlidingWindowLog)
			events := play(rt, l, 0)
			for i, e := range events {
				taken := admittedSince(e.at-l.Window.Microseconds(), events[:i+1])
				if !e.verdict.Allowed && taken+e.cost <= l.Requests {
					rt.Errorf("at %d a cost of %d was refused after %d", e.at, e.cost, taken)
				}
			}
		})
	})
	t.Run("times go on where their 48 bits start anew", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) {
			l := limits(rt, limiter.SlidingWindowLog)
			anew := epoch>>48<<48 + 1<<48
			events := playFrom(rt, anew-l.Window.Microseconds(), l, 1_000_000)
			if most := mostIn(l.Window.Microseconds(), events); most > l.Requests {
				rt.Errorf("a window admits %d", most)
			}
		})
	})
}

func TestSlidingWindowLogRefunds(t *testing.T) {
	t.Run("what is refunded counts no more, and all else does", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) {
			l := limits(rt, limiter.SlidingWindowLog)
			var e strategy.Evaluator
			var c strategy.Counter
			var kept []loan
			now, window := epoch, l.Window.Microseconds()
			for range rapid.IntRange(1, 60).Draw(rt, "number") {
				now += rapid.SampledFrom([]int64{0, 0, 1, window / 10, window - 1, window}).Draw(rt, "step")
				cost := rapid.Int64Range(1, max(1, l.Requests/5)).Draw(rt, "cost")
				h := limiter.Hit{Key: "a", Limit: l, Cost: cost}
				if v := decide(&e, now, h, &c); v.Allowed {
					kept = append(kept, loan{at: now, cost: cost, receipt: v.Receipt})
				}
				if len(kept) > 0 && rapid.Bool().Draw(rt, "refund") {
					i := rapid.IntRange(0, len(kept)-1).Draw(rt, "loan")
					e.Amend(now, &limiter.Hit{Limit: l, Cost: kept[i].cost}, &c, kept[i].receipt, false)
					kept = slices.Delete(kept, i, i+1)
				}
				want := l.Requests
				for _, b := range kept {
					if b.at > now-window {
						want -= b.cost
					}
				}
				if got := peek(c, now, l, 0).Remaining; got != want {
					rt.Fatalf("%d remain, not %d", got, want)
				}
			}
		})
	})
	for name, test := range map[string]struct{ younger, want int64 }{
		"a charge is refunded when 256 have come after it":     {256, 1},
		"a charge stays when more than 256 have come after it": {257, 0},
	} {
		t.Run(name, func(t *testing.T) {
			l := limiter.Limit{Algorithm: limiter.SlidingWindowLog, Requests: test.younger + 1, Window: time.Minute}
			var e strategy.Evaluator
			var c strategy.Counter
			h := limiter.Hit{Key: "a", Limit: l, Cost: 1}
			receipt := decide(&e, epoch, h, &c).Receipt
			for i := range test.younger {
				decide(&e, epoch+1+i, h, &c)
			}
			e.Amend(epoch+test.younger, &h, &c, receipt, false)
			if got := peek(c, epoch+test.younger, l, 0).Remaining; got != test.want {
				t.Errorf("%d remain, not %d", got, test.want)
			}
		})
	}
}

func TestSlidingWindowLogEdits(t *testing.T) {
	t.Run("another limit counts what is in its window, but maybe not what had left the old one", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) {
			before, after := limits(rt, limiter.SlidingWindowLog), limits(rt, limiter.SlidingWindowLog)
			var e strategy.Evaluator
			var c strategy.Counter
			var charges []charge
			now := epoch
			for range rapid.IntRange(1, 30).Draw(rt, "number") {
				now += rapid.Int64Range(0, before.Window.Microseconds()/4).Draw(rt, "step")
				cost := rapid.Int64Range(1, before.Requests).Draw(rt, "cost")
				if decide(&e, now, limiter.Hit{Key: "a", Limit: before, Cost: cost}, &c).Allowed {
					charges = append(charges, charge{now, cost})
				}
			}
			last := charges[len(charges)-1].at
			var sure, possible int64
			for _, ch := range charges {
				if ch.at > now-after.Window.Microseconds() {
					possible += ch.cost
					if ch.at > last-before.Window.Microseconds() {
						sure += ch.cost
					}
				}
			}
			v := peek(c, now, after, 0)
			if v.Remaining > max(0, after.Requests-sure) || v.Remaining < after.Requests-possible {
				rt.Fatalf("after %d to %d were taken from %+v, %d remain of %+v", sure, possible, before, v.Remaining, after)
			}
		})
	})
	t.Run("a refund under an older limit doesn't let what counts be forgotten sooner", func(t *testing.T) {
		old := limiter.Limit{Algorithm: limiter.SlidingWindowLog, Requests: 2, Window: time.Second}
		current := old
		current.Window = time.Hour
		var e strategy.Evaluator
		var c strategy.Counter
		h := limiter.Hit{Key: "a", Limit: old, Cost: 1}
		receipt := decide(&e, epoch, h, &c).Receipt
		decide(&e, epoch, limiter.Hit{Key: "a", Limit: current, Cost: 1}, &c)
		e.Amend(epoch, &h, &c, receipt, false)
		if got := peek(c, epoch+current.Window.Microseconds()-1, current, 0).Remaining; got != 1 {
			t.Errorf("%d remain, not 1", got)
		}
	})
}

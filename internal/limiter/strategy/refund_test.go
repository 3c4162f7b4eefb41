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

// loan is an admission that can be refunded.
type loan struct {
	at, cost, receipt int64
	wait              time.Duration
	returned          bool
}

// borrow draws requests on one counter, of which some are refunded later, and gives all that were admitted.
func borrow(rt *rapid.T, l limiter.Limit) []*loan {
	var e strategy.Evaluator
	var c strategy.Counter
	var loans []*loan
	now, last := epoch, limiter.Verdict{}
	for range rapid.IntRange(1, 100).Draw(rt, "number") {
		switch rapid.IntRange(0, 4).Draw(rt, "step") {
		case 0:
			now += max(0, last.RetryAfter.Microseconds())
		case 1:
			now += rapid.Int64Range(0, l.Window.Microseconds()/l.Requests).Draw(rt, "turn")
		case 2:
			now += rapid.Int64Range(0, l.Window.Microseconds()).Draw(rt, "window")
		}
		out := slices.DeleteFunc(slices.Clone(loans), func(b *loan) bool { return b.returned })
		if len(out) > 0 && rapid.IntRange(0, 2).Draw(rt, "refund") == 0 {
			b := out[rapid.IntRange(0, len(out)-1).Draw(rt, "loan")]
			b.returned = true
			e.Amend(now, &limiter.Hit{Limit: l, Cost: b.cost}, &c, b.receipt, false)
			continue
		}
		cost := costs(rt, l, last)
		last = decide(&e, now, limiter.Hit{Key: "a", Limit: l, Cost: cost}, &c)
		if last.Allowed {
			loans = append(loans, &loan{at: now, cost: cost, receipt: last.Receipt, wait: last.Wait})
		}
	}
	return loans
}

// kept gives the admissions that were not refunded.
func kept(loans []*loan) (charges []charge, events []event) {
	for _, b := range loans {
		if !b.returned {
			charges = append(charges, charge{b.at, b.cost})
			events = append(events, event{b.at, b.cost, limiter.Verdict{Allowed: true}})
		}
	}
	return charges, events
}

func TestRefundsKeepBounds(t *testing.T) {
	bounds := map[limiter.Algorithm]func(rt *rapid.T, l limiter.Limit, loans []*loan){
		limiter.TokenBucket: func(rt *rapid.T, l limiter.Limit, loans []*loan) {
			charges, _ := kept(loans)
			if excess := worst(l, charges); excess > l.Window.Microseconds()/1000 {
				rt.Errorf("%d/%d too much", excess, l.Window.Microseconds())
			}
		},
		limiter.FixedWindow: func(rt *rapid.T, l limiter.Limit, loans []*loan) {
			taken := map[int64]int64{}
			charges, _ := kept(loans)
			for _, c := range charges {
				id := c.at / l.Window.Microseconds()
				if taken[id] += c.cost; taken[id] > l.Requests {
					rt.Errorf("a window admits %d", taken[id])
				}
			}
		},
		limiter.CalendarWindow: func(rt *rapid.T, l limiter.Limit, loans []*loan) {
			taken := map[string]int64{}
			charges, _ := kept(loans)
			for _, c := range charges {
				id := page(rt, l.Calendar, c.at)
				if taken[id] += c.cost; taken[id] > l.Requests {
					rt.Errorf("%s admits %d", id, taken[id])
				}
			}
		},
		limiter.SlidingWindowRing:        mostKept(1),
		limiter.SlidingWindowLog:         mostKept(1),
		limiter.Concurrency:              mostKept(1), // What nobody gives back is out for a window at least.
		limiter.SlidingWindowApproximate: mostKept(2),
		limiter.LeakyBucketMeter: func(rt *rapid.T, l limiter.Limit, loans []*loan) {
			charges, _ := kept(loans)
			l.Burst = 1
			if excess := worst(l, ends(charges)); excess > l.Window.Microseconds()/1000 {
				rt.Errorf("%d/%d too much", excess, l.Window.Microseconds())
			}
		},
		limiter.LeakyBucketQueue: func(rt *rapid.T, l limiter.Limit, loans []*loan) {
			var turns []turn
			for _, b := range loans {
				if !b.returned {
					turns = append(turns, turn{b.at + b.wait.Microseconds(), b.cost})
				}
			}
			apart(rt, l, turns)
		},
	}
	for _, algorithm := range strategy.Names() {
		t.Run(string(algorithm)+" lets no more through for what is refunded", func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				l := limiter.Limit{
					Algorithm: algorithm,
					Requests:  rapid.Int64Range(1, 20).Draw(rt, "requests"),
					Window:    time.Duration(rapid.Int64Range(10_000, 10_000_000).Draw(rt, "window")) * time.Microsecond,
					Calendar:  calendars(rt),
				}
				if algorithm == limiter.CalendarWindow {
					l.Window = 24 * time.Hour // The steps go by it.
				}
				l.Burst = l.Requests
				if algorithm == limiter.LeakyBucketQueue {
					patience(rt, &l)
				}
				bounds[algorithm](rt, l, borrow(rt, l))
			})
		})
	}
}

// mostKept bounds what any window keeps by so many times the requests.
func mostKept(times int64) func(rt *rapid.T, l limiter.Limit, loans []*loan) {
	return func(rt *rapid.T, l limiter.Limit, loans []*loan) {
		if _, events := kept(loans); len(events) > 0 {
			if most := mostIn(l.Window.Microseconds(), events); most > times*l.Requests {
				rt.Errorf("a window admits %d", most)
			}
		}
	}
}

// ends moves what costs more than one to the next admission: a meter takes the turns after it.
func ends(charges []charge) []charge {
	moved := slices.Clone(charges)
	for i := range moved {
		next := 1 + i
		moved[i].cost = 1
		if next < len(moved) {
			moved[next].cost = charges[i].cost
		}
	}
	return moved
}

func TestRefundAtOnce(t *testing.T) {
	for _, algorithm := range strategy.Names() {
		t.Run(string(algorithm)+" is as before when what was taken is refunded at once", func(t *testing.T) {
			l := limiter.Limit{Algorithm: algorithm, Requests: 3, Window: time.Minute, Burst: 3}
			l.Calendar = limiter.Calendar{Unit: limiter.Day, TimeZone: "UTC"}
			var e strategy.Evaluator
			var c strategy.Counter
			want := peek(c, epoch, l, 1)
			h := limiter.Hit{Key: "a", Limit: l, Cost: 1}
			v := decide(&e, epoch, h, &c)
			e.Amend(epoch+1000, &h, &c, v.Receipt, false)
			got := peek(c, epoch, l, 1)
			want.Receipt, got.Receipt = 0, 0
			if got != want {
				t.Errorf("it says %+v, not %+v", got, want)
			}
		})
	}
}

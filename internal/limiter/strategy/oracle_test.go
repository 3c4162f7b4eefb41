// SPDX-License-Identifier: Apache-2.0

package strategy_test

import (
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// event is a request and its verdict.
type event struct {
	at, cost int64
	verdict  limiter.Verdict
}

// limits draws parameters of an algorithm.
func limits(rt *rapid.T, algorithm limiter.Algorithm) limiter.Limit {
	windows := []int64{10_000, 10_007, 99_999, 1_000_000, 5_999_999, 6_000_001, 60_000_000, 3_600_000_000, 31_622_400_000_000}
	l := limiter.Limit{
		Algorithm: algorithm,
		Requests:  rapid.OneOf(rapid.Int64Range(1, 20), rapid.SampledFrom([]int64{999, 1_000_000_000})).Draw(rt, "requests"),
		Window:    time.Duration(rapid.OneOf(rapid.SampledFrom(windows), rapid.Int64Range(10_000, 100_000_000)).Draw(rt, "window")) * time.Microsecond,
		Calendar:  calendars(rt),
	}
	switch algorithm {
	case limiter.LeakyBucketQueue:
		patience(rt, &l)
	case limiter.SlidingWindowLog, limiter.Concurrency:
		l.Requests = min(l.Requests, 10_000)
	}
	return l
}

// patience draws how long and how many requests of a queue can wait: from none to those of two windows.
func patience(rt *rapid.T, l *limiter.Limit) {
	most := min(2*l.Window.Microseconds(), (8784 * time.Hour).Microseconds())
	l.MaxDelay = time.Duration(rapid.Int64Range(0, most).Draw(rt, "maxDelay")) * time.Microsecond
	l.MaxQueue = rapid.SampledFrom([]int64{0, 0, 1, 2, 5, 1_000_000_000}).Draw(rt, "maxQueue")
}

// play draws requests and decides them on one counter. Half of them come when something changes, or a
// microsecond beside it; the clock is back by up to so much.
func play(rt *rapid.T, l limiter.Limit, back int64) []event {
	return playFrom(rt, epoch, l, back)
}

// playFrom is play from another time on.
func playFrom(rt *rapid.T, start int64, l limiter.Limit, back int64) []event {
	var e strategy.Evaluator
	var c strategy.Counter
	var events []event
	window, now, latest, last := l.Window.Microseconds(), start, start, limiter.Verdict{}
	for range rapid.IntRange(1, 150).Draw(rt, "number") {
		beside := rapid.Int64Range(-1, 1).Draw(rt, "beside")
		switch rapid.IntRange(0, 7).Draw(rt, "step") {
		case 0:
			now += max(0, last.RetryAfter.Microseconds()+beside)
		case 1:
			now += max(0, last.ResetAfter.Microseconds()+beside)
		case 2:
			now += max(0, window-now%window+beside)
		case 3:
			now += max(0, slot(l)-now%slot(l)+beside)
		case 4:
			now += rapid.Int64Range(0, 2*window).Draw(rt, "long")
		case 5:
			now = latest - rapid.Int64Range(0, back).Draw(rt, "back")
		}
		latest = max(latest, now)
		cost := costs(rt, l, last)
		last = decide(&e, now, limiter.Hit{Key: "a", Limit: l, Cost: cost}, &c)
		events = append(events, event{now, cost, last})
	}
	return events
}

func costs(rt *rapid.T, l limiter.Limit, last limiter.Verdict) int64 {
	return rapid.OneOf(
		rapid.Just(int64(1)),
		rapid.Just(min(l.Requests, last.Remaining+1)),
		rapid.Just(max(1, last.Remaining)),
		rapid.Int64Range(1, l.Requests),
	).Draw(rt, "cost")
}

// slot is how long a slot of a ring is, rounded up.
func slot(l limiter.Limit) int64 {
	window := l.Window.Microseconds()
	number := max(10, min(60, window/100_000))
	return (window + number - 1) / number
}

// mostIn gives the most that was admitted in any (t - window, t]. When the clock is back, it takes the time from
// the latest admission until the clock is there again: a counter has no other way to know what was before.
func mostIn(window int64, events []event) int64 {
	var admitted []event
	var sum, most, latest int64
	first := 0
	for _, e := range events {
		if !e.verdict.Allowed {
			continue
		}
		latest = max(latest, e.at)
		admitted = append(admitted, event{at: latest, cost: e.cost})
		for sum += e.cost; admitted[first].at <= latest-window; first++ {
			sum -= admitted[first].cost
		}
		most = max(most, sum)
	}
	return most
}

// admittedSince gives what the events before the last one were admitted after a time.
func admittedSince(start int64, events []event) int64 {
	var sum int64
	for _, e := range events[:len(events)-1] {
		if e.verdict.Allowed && e.at > start {
			sum += e.cost
		}
	}
	return sum
}

func TestSlidingWindowRingBound(t *testing.T) {
	for name, back := range map[string]int64{
		"no window admits more than its requests":                                 0,
		"no window admits more than its requests when the clock is back a little": 1_000_000,
	} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				l := limits(rt, limiter.SlidingWindowRing)
				if most := mostIn(l.Window.Microseconds(), play(rt, l, back)); most > l.Requests {
					rt.Errorf("a window admits %d", most)
				}
			})
		})
	}
	t.Run("what is refused would be too much for a window and a slot", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) {
			l := limits(rt, limiter.SlidingWindowRing)
			events := play(rt, l, 0)
			for i, e := range events {
				reach := e.at - l.Window.Microseconds() - slot(l)
				if taken := admittedSince(reach, events[:i+1]); !e.verdict.Allowed && taken+e.cost <= l.Requests {
					rt.Errorf("at %d a cost of %d was refused after %d", e.at, e.cost, taken)
				}
			}
		})
	})
}

func TestSlidingWindowApproximateBound(t *testing.T) {
	t.Run("no window admits more than twice its requests", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) {
			l := limits(rt, limiter.SlidingWindowApproximate)
			if most := mostIn(l.Window.Microseconds(), play(rt, l, 0)); most > 2*l.Requests {
				rt.Errorf("a window admits %d", most)
			}
		})
	})
	t.Run("what is admitted fits as if the previous window had been even", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) {
			l := limits(rt, limiter.SlidingWindowApproximate)
			window, taken := l.Window.Microseconds(), map[int64]float64{}
			for _, e := range play(rt, l, 0) {
				id, part := e.at/window, float64(e.at%window)/float64(window)
				spare := float64(l.Requests-e.cost) - taken[id-1]*(1-part) - taken[id]
				if e.verdict.Allowed != (spare >= 0) && math.Abs(spare) > 1e-5 {
					rt.Errorf("at %d a cost of %d with %g to spare got %+v", e.at, e.cost, spare, e.verdict)
				}
				if e.verdict.Allowed {
					taken[id] += float64(e.cost)
				}
			}
		})
	})
}

func TestLeakyBucketMeterBound(t *testing.T) {
	t.Run("the next is admitted only when the last one's turns are over", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) {
			l := limits(rt, limiter.LeakyBucketMeter)
			due := math.Inf(-1)
			turn := float64(l.Window.Microseconds()) / float64(l.Requests)
			for _, e := range play(rt, l, 0) {
				if !e.verdict.Allowed {
					continue
				}
				if early := due - float64(e.at); early > turn*1e-5+0.5 {
					rt.Errorf("at %d a request is %g us early", e.at, early)
				}
				due = float64(e.at) + turn*float64(e.cost)
			}
		})
	})
}

func TestThroughput(t *testing.T) {
	const windows = 50
	tests := map[limiter.Algorithm]struct{ most, least int64 }{
		// With 10 slots a window, 11 slots admit 60.
		limiter.SlidingWindowRing:        {60 * windows, 60 * windows * 10 / 11},
		limiter.SlidingWindowLog:         {60 * (windows + 1), 60 * (windows + 1)},
		limiter.SlidingWindowApproximate: {61 * windows, 59 * windows},
		limiter.LeakyBucketMeter:         {60*windows + 1, 60 * windows},
	}
	for algorithm, want := range tests {
		t.Run(string(algorithm)+" admits as much as it can to whoever takes all that it gets", func(t *testing.T) {
			l := limiter.Limit{Algorithm: algorithm, Requests: 60, Window: time.Second}
			var e strategy.Evaluator
			var c strategy.Counter
			var total int64
			for now := epoch; now <= epoch+windows*l.Window.Microseconds(); {
				v := decide(&e, now, limiter.Hit{Key: "a", Limit: l, Cost: 1}, &c)
				if v.Allowed {
					total++
				} else if v.RetryAfter <= 0 {
					t.Fatalf("after %d one is refused, and told to try again at once", total)
				}
				now += v.RetryAfter.Microseconds()
			}
			if total < want.least || total > want.most {
				t.Errorf("%d windows admitted %d, not %d to %d", windows, total, want.least, want.most)
			}
		})
	}
}

// peek gives what a counter would say to a cost, and leaves it as it is.
func peek(c strategy.Counter, now int64, l limiter.Limit, cost int64) limiter.Verdict {
	c.State = slices.Clone(c.State)
	var e strategy.Evaluator
	return decide(&e, now, limiter.Hit{Key: "a", Limit: l, Cost: cost}, &c)
}

func TestWaiting(t *testing.T) {
	for _, algorithm := range strategy.Names() {
		if algorithm == limiter.Concurrency {
			continue // Nobody knows when a permit comes back.
		}
		t.Run(string(algorithm)+" admits who has waited as told, and nobody much sooner", func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				l := limits(rt, algorithm)
				l.Burst = l.Requests
				var e strategy.Evaluator
				var c strategy.Counter
				now := epoch
				for range rapid.IntRange(1, 30).Draw(rt, "number") {
					now += rapid.Int64Range(0, l.Window.Microseconds()).Draw(rt, "step")
					cost := rapid.Int64Range(1, l.Requests).Draw(rt, "cost")
					v := decide(&e, now, limiter.Hit{Key: "a", Limit: l, Cost: cost}, &c)
					if v.Allowed {
						continue
					}
					told := v.RetryAfter.Microseconds()
					if late := peek(c, now+told, l, cost); !late.Allowed {
						rt.Fatalf("after %d us a cost of %d got %+v", told, cost, late)
					}
					// Where rates are fractions, a millionth of a request is not waited for.
					early := told - 2 - l.Window.Microseconds()/500_000
					if v := peek(c, now+early, l, cost); early > 0 && v.Allowed {
						rt.Fatalf("after %d of %d us a cost of %d got %+v", early, told, cost, v)
					}
				}
			})
		})
	}
}

func TestEditsGiveNothing(t *testing.T) {
	for _, algorithm := range []limiter.Algorithm{limiter.SlidingWindowRing, limiter.SlidingWindowApproximate} {
		t.Run(string(algorithm)+" keeps what was taken through any edit, for the new window and its slot or another", func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				before, after := limits(rt, algorithm), limits(rt, algorithm)
				var e strategy.Evaluator
				var c strategy.Counter
				now := epoch
				for range rapid.IntRange(1, 30).Draw(rt, "number") {
					now += rapid.Int64Range(0, before.Window.Microseconds()/4).Draw(rt, "step")
					cost := rapid.Int64Range(1, before.Requests).Draw(rt, "cost")
					decide(&e, now, limiter.Hit{Key: "a", Limit: before, Cost: cost}, &c)
				}
				taken := before.Requests - peek(c, now, before, 0).Remaining
				v := decide(&e, now, limiter.Hit{Key: "a", Limit: after}, &c)
				if want := max(0, after.Requests-taken); v.Remaining != want {
					rt.Fatalf("after %d were taken from %+v, %d remain of %+v, not %d", taken, before, v.Remaining, after, want)
				}
				now += 2 * max(before.Window, after.Window).Microseconds()
				if v := peek(c, now, after, 0); v.Remaining != after.Requests {
					rt.Fatalf("two windows later %d remain of %+v", v.Remaining, after)
				}
			})
		})
	}
}

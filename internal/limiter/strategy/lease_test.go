// SPDX-License-Identifier: Apache-2.0

package strategy_test

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

func TestLease(t *testing.T) {
	second := limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 1000, Window: time.Second, Burst: 1000, Lease: 100 * time.Millisecond}
	tests := map[string]struct {
		limit limiter.Limit
		want  strategy.Terms
	}{
		"a bucket is smaller by what it gains in the term of a lease": {
			second,
			strategy.Terms{
				Limit:   limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 1000, Window: time.Second, Burst: 850},
				Horizon: 100 * time.Millisecond,
				Term:    150 * time.Millisecond,
				Rate:    1000,
			},
		},
		"a bucket lends a fifth of its burst at most, for a shorter time": {
			limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 1000, Window: time.Second, Burst: 150, Lease: 100 * time.Millisecond},
			strategy.Terms{
				Limit:   limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 1000, Window: time.Second, Burst: 120},
				Horizon: 20 * time.Millisecond,
				Term:    30 * time.Millisecond,
				Rate:    1000,
			},
		},
		"a window is lent for a quarter of it at most": {
			limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 100, Window: 200 * time.Millisecond, Lease: 100 * time.Millisecond},
			strategy.Terms{
				Limit:   limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 100, Window: 200 * time.Millisecond},
				Horizon: 50 * time.Millisecond,
				Term:    75 * time.Millisecond,
			},
		},
		"a ring is lent for a quarter of a slot at most": {
			limiter.Limit{Algorithm: limiter.SlidingWindowRing, Requests: 100, Window: time.Second, Lease: 100 * time.Millisecond},
			strategy.Terms{
				Limit:   limiter.Limit{Algorithm: limiter.SlidingWindowRing, Requests: 100, Window: time.Second},
				Horizon: 25 * time.Millisecond,
				Term:    45 * time.Millisecond,
				Rate:    100,
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, ok := strategy.Lease(&test.limit)
			if diff := cmp.Diff(test.want, got); diff != "" || !ok {
				t.Errorf("terms, which are %t (-want +got):\n%s", ok, diff)
			}
		})
	}
	for name, spoil := range map[string]func(*limiter.Limit){
		"what doesn't want to be is not leased":                         func(l *limiter.Limit) { l.Lease = 0 },
		"a small bucket is not leased":                                  func(l *limiter.Limit) { l.Burst = 19 },
		"a bucket that is soon full is not leased":                      func(l *limiter.Limit) { l.Burst = 37 },
		"a bucket that gains next to nothing is not leased":             func(l *limiter.Limit) { l.Window = 2000 * time.Second },
		"a short window is not leased":                                  func(l *limiter.Limit) { l.Algorithm, l.Window = limiter.FixedWindow, 19*time.Millisecond },
		"a window of short slots is not leased":                         func(l *limiter.Limit) { l.Algorithm, l.Window = limiter.SlidingWindowRing, 199*time.Millisecond },
		"a log, of which each request leaves the window, is not leased": func(l *limiter.Limit) { l.Algorithm = limiter.SlidingWindowLog },
		"turns are not leased":                                          func(l *limiter.Limit) { l.Algorithm = limiter.LeakyBucketMeter },
		"slots of a queue are not leased":                               func(l *limiter.Limit) { l.Algorithm = limiter.LeakyBucketQueue },
		"permits are not leased":                                        func(l *limiter.Limit) { l.Algorithm = limiter.Concurrency },
	} {
		t.Run(name, func(t *testing.T) {
			l := second
			spoil(&l)
			if got, ok := strategy.Lease(&l); ok {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// lease is what a taker holds of a counter.
type lease struct {
	receipt, left int64
	// dies is when it can't be used any more.
	dies int64
}

// market draws takers of one counter, who take some requests for at once and others ahead of time, and gives all
// requests that were admitted, by when they came. The clock jumps to where leases end as often as between.
type market struct {
	limit    limiter.Limit
	terms    strategy.Terms
	e        strategy.Evaluator
	c        strategy.Counter
	now      int64
	leases   []lease
	admitted []charge
}

func (m *market) run(rt *rapid.T) {
	last := limiter.Verdict{}
	for range rapid.IntRange(100, 150).Draw(rt, "number") {
		m.advance(rt, last)
		switch rapid.IntRange(0, 5).Draw(rt, "what") {
		case 0, 1:
			cost := rapid.OneOf(rapid.Just(m.limit.Capacity()), rapid.Int64Range(1, m.limit.Capacity()), rapid.Int64Range(1, 3)).Draw(rt, "lease")
			last = decide(&m.e, m.now, limiter.Hit{Key: "a", Limit: m.terms.Limit, Cost: cost, UpTo: true}, &m.c)
			m.hold(last)
		case 2:
			cost := rapid.OneOf(rapid.Just(max(1, last.Remaining)), rapid.Just(m.limit.Capacity()), rapid.Int64Range(1, 3)).Draw(rt, "cost")
			last = decide(&m.e, m.now, limiter.Hit{Key: "a", Limit: m.limit, Cost: cost}, &m.c)
			if last.Allowed {
				m.admitted = append(m.admitted, charge{m.now, cost})
			}
		case 3:
			m.giveBack(rt)
		default:
			m.use(rt)
		}
	}
}

func (m *market) advance(rt *rapid.T, last limiter.Verdict) {
	switch rapid.IntRange(0, 6).Draw(rt, "step") {
	case 0:
		m.now += last.RetryAfter.Microseconds()
	case 1:
		m.now += rapid.Int64Range(0, m.terms.Term.Microseconds()).Draw(rt, "soon")
	case 2:
		m.now += rapid.Int64Range(0, 2*m.limit.Window.Microseconds()).Draw(rt, "late")
	case 3:
		if len(m.leases) > 0 {
			m.now = max(m.now, m.leases[0].dies-1)
		}
	case 4:
		m.now = max(m.now, m.c.Expires)
	}
}

func (m *market) hold(v limiter.Verdict) {
	if v.Taken == 0 {
		return
	}
	lasts := m.terms.Term
	if v.Lasts > 0 {
		lasts = min(lasts, v.Lasts)
	}
	m.leases = append(m.leases, lease{receipt: v.Receipt, left: v.Taken, dies: m.now + lasts.Microseconds()})
}

// use uses a part of one of the leases, or all of it.
func (m *market) use(rt *rapid.T) {
	i, ok := m.draw(rt)
	if !ok || m.leases[i].dies <= m.now {
		return
	}
	l := &m.leases[i]
	cost := rapid.OneOf(rapid.Just(l.left), rapid.Int64Range(1, l.left)).Draw(rt, "use")
	m.admitted = append(m.admitted, charge{m.now, cost})
	if l.left -= cost; l.left == 0 {
		m.leases = slices.Delete(m.leases, i, i+1)
	}
}

// giveBack gives back what is left of one of the leases, at any time.
func (m *market) giveBack(rt *rapid.T) {
	i, ok := m.draw(rt)
	if !ok {
		return
	}
	m.e.Amend(m.now, &limiter.Hit{Key: "a", Limit: m.limit, Cost: m.leases[i].left}, &m.c, m.leases[i].receipt, false)
	m.leases = slices.Delete(m.leases, i, i+1)
}

func (m *market) draw(rt *rapid.T) (int, bool) {
	if len(m.leases) == 0 {
		return 0, false
	}
	return rapid.IntRange(0, len(m.leases)-1).Draw(rt, "lease"), true
}

// events gives what was admitted.
func (m *market) events() []event {
	var events []event
	for _, c := range m.admitted {
		events = append(events, event{c.at, c.cost, limiter.Verdict{Allowed: true}})
	}
	return events
}

func TestLeasesKeepBounds(t *testing.T) {
	bounds := map[limiter.Algorithm]func(rt *rapid.T, m *market){
		limiter.TokenBucket: func(rt *rapid.T, m *market) {
			if excess := worst(m.limit, m.admitted); excess > m.limit.Window.Microseconds()/1000 {
				rt.Errorf("%d/%d too much", excess, m.limit.Window.Microseconds())
			}
		},
		limiter.FixedWindow: func(rt *rapid.T, m *market) {
			taken := map[int64]int64{}
			for _, c := range m.admitted {
				id := c.at / m.limit.Window.Microseconds()
				if taken[id] += c.cost; taken[id] > m.limit.Requests {
					rt.Errorf("a window admits %d", taken[id])
				}
			}
		},
		limiter.CalendarWindow: func(rt *rapid.T, m *market) {
			taken := map[int64]int64{}
			for _, c := range m.admitted {
				day := c.at / (24 * time.Hour).Microseconds()
				if taken[day] += c.cost; taken[day] > m.limit.Requests {
					rt.Errorf("a day admits %d", taken[day])
				}
			}
		},
		limiter.SlidingWindowRing: func(rt *rapid.T, m *market) {
			if most := mostIn(m.limit.Window.Microseconds(), m.events()); most > m.limit.Requests {
				rt.Errorf("a window admits %d", most)
			}
		},
		limiter.SlidingWindowApproximate: func(rt *rapid.T, m *market) {
			if most := mostIn(m.limit.Window.Microseconds(), m.events()); most > 2*m.limit.Requests {
				rt.Errorf("a window admits %d", most)
			}
		},
	}
	for _, algorithm := range strategy.Names() {
		if !strategy.Leasable(algorithm) {
			continue
		}
		t.Run(string(algorithm)+" admits no more than it states when it is leased, used late and given back", func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				m := &market{now: epoch, limit: limiter.Limit{
					Algorithm: algorithm,
					Requests:  rapid.Int64Range(20, 2000).Draw(rt, "requests"),
					Window:    time.Duration(rapid.OneOf(rapid.SampledFrom([]int64{1_000_000, 60_000_000, 99_999_999}), rapid.Int64Range(100_000, 10_000_000)).Draw(rt, "window")) * time.Microsecond,
					Burst:     rapid.Int64Range(20, 1000).Draw(rt, "burst"),
					Calendar:  limiter.Calendar{Unit: limiter.Day, TimeZone: "UTC"},
					Lease:     time.Duration(rapid.Int64Range(10, 500).Draw(rt, "lease")) * time.Millisecond,
				}}
				if algorithm == limiter.CalendarWindow {
					m.limit.Window = 0
				}
				var leased bool
				if m.terms, leased = strategy.Lease(&m.limit); !leased {
					return
				}
				if m.limit.Window == 0 {
					m.limit.Window = 12 * time.Hour // For the steps of the clock: the strategy has no use of it.
				}
				m.run(rt)
				bounds[algorithm](rt, m)
			})
		})
	}
}

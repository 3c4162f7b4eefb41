// SPDX-License-Identifier: Apache-2.0

// Package strategy holds the counting algorithms, each written twice: in Lua for Redis, and in Go.
//
// A strategy is a pure rule: from the state of a counter, the time, a limit and a cost it makes the number of
// requests that are admitted and the next state. [Script] runs the rules inside Redis, [Evaluator] in process; both
// decide a request by all of its hits at once, and both write the same bytes. What a verdict tells beside, both
// work out in Go, from what the rule left.
package strategy

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

// strategies is the one place that names them all. It is a list because every request looks in it: the few names
// are compared sooner than one is hashed. The most used come first.
var strategies = [...]struct {
	algorithm limiter.Algorithm
	strategy  *Strategy
}{
	{limiter.TokenBucket, &tokenBucket},
	{limiter.FixedWindow, &fixedWindow},
	{limiter.SlidingWindowRing, &slidingWindowRing},
	{limiter.SlidingWindowApproximate, &slidingWindowApproximate},
	{limiter.LeakyBucketMeter, &leakyBucketMeter},
	{limiter.CalendarWindow, &calendarWindow},
	{limiter.LeakyBucketQueue, &leakyBucketQueue},
	{limiter.Concurrency, &concurrency},
	{limiter.SlidingWindowLog, &slidingWindowLog},
}

// Strategy is one algorithm. Times are microseconds, now since the Unix epoch. An empty state is that of a counter
// from which nothing was taken, or not for long. Limits have to be valid, and costs at most one above the capacity.
type Strategy struct {
	// Validate says what is wrong with a limit, in the words of the API: "burst must be at least 1".
	Validate func(l *limiter.Limit) error
	// Take is the rule: so many equal requests take from a counter, one after the other. A cost of 0 takes
	// nothing and is always admitted.
	Take func(t *Taking, state []byte, now int64, l *limiter.Limit, cost, times int64)
	// Tell makes the verdict of one of these requests, from what Take said.
	Tell func(said []byte, now int64, l *limiter.Limit, p Place) limiter.Verdict
	// Amend refunds the charge that receipt is for, or renews it, where state is the counter's now, with what
	// others took since, and is never empty. Where the charge doesn't count any more, Next stays empty.
	Amend func(t *Taking, state []byte, now int64, l *limiter.Limit, c Charge)

	// largest gives how many bytes a state has at most that was written for this limit alone. Nil where it is never
	// more than shortState.
	largest func(l *limiter.Limit) int
	// lend gives the terms of a lease for so long ahead. Nil where what is taken ahead of time could let too much through.
	lend func(l *limiter.Limit, ahead time.Duration) Terms
	// ends gives until when a charge counts as if it were made later, by its receipt. Nil where that makes no
	// difference.
	ends func(l *limiter.Limit, receipt int64) int64

	// lives gives for how long a charge counts, at most.
	lives func(l *limiter.Limit) time.Duration

	// code stands for the strategy on the wire, and layout before its states in Redis, so that no strategy
	// reads a state that it doesn't understand: it takes it for an empty one. A new layout takes a new number,
	// and an old one is never used again.
	code, layout byte
	// smallest is how many bytes at least follow the header in what Take says.
	smallest int
	// lua is the body of a Lua function of the parameters that gives Take as a function of state, which is the
	// counter's whole value or nil when empty, cost, times and counter, which is its index in KEYS. That gives how
	// many are admitted, the value, true if it is a new one, and what it says, if that is not the value. A new
	// value starts with LAYOUT and what keep gives for the counter and the microseconds that it has to live. So does
	// what it says.
	lua string
	// openLua is empty where states are strings. Else it is the body of a Lua function of a counter that has no string.
	// That gives a table that stands for the state, and sets when it expires, if that is known; or nothing, if the
	// counter has no such state. The new value is a table as well: its method save writes it for the counter.
	openLua string
	// amendLua is the body of a Lua function of the parameters that gives Amend as a function of state, cost,
	// receipt, whether to renew, and counter. That gives the new value, or nothing.
	amendLua string
	// params sets the parameters that the Lua takes. Now is the caller's time, which may not be Redis's: Lua
	// whose parameters are of another time sets stale, and is called again with others.
	params func(p *[maxParams]float64, now int64, l *limiter.Limit)
}

// tell tells of a hit. There is no receipt of what was not charged, and a hit in the shadow holds nobody.
func (s *Strategy) tell(said []byte, now int64, h *limiter.Hit, p Place) limiter.Verdict {
	v := s.Tell(said, now, &h.Limit, p)
	if !p.Allowed {
		v.Receipt = 0
	}
	if h.UpTo {
		v.Taken = p.Charged * p.Cost
	}
	if v.Taken > 0 && s.ends != nil {
		v.Lasts = wait(float64(s.ends(&h.Limit, v.Receipt) - now))
	}
	if h.Shadow {
		v.Wait = 0
	}
	return v
}

// Taking is what comes of a rule.
type Taking struct {
	// Admitted is how many of the requests are. The first ones are, and the others, which would have to wait,
	// are not.
	Admitted int64
	// Next is the next state, and empty where nothing changes: a denial and a cost of 0 take nothing. They change
	// the state all the same where it can't stay as it is because the clock was set back or the window is
	// another, or where it took long to find what has expired; such a change takes and gives nothing, and is to be
	// kept even when the request is refused.
	Next []byte
	// TTL is after how many microseconds Next says nothing that an empty state doesn't.
	TTL int64
	// Said is what to tell from. Where it is empty that is Next, or the state if that is empty as well.
	Said []byte
}

func (t *Taking) reset() {
	*t = Taking{Next: t.Next[:0], Said: t.Said[:0]}
}

// Place is one of the equal requests that a rule has decided together.
type Place struct {
	Cost    int64
	Allowed bool
	// Nth counts them from 0. The first ones are charged, as many as Charged.
	Nth, Charged int64
}

// later is what those that are charged and come after this one cost.
func (p Place) later() int64 {
	if p.Nth >= p.Charged {
		return 0
	}
	return (p.Charged - 1 - p.Nth) * p.Cost
}

// Charge is what was taken from a counter.
type Charge struct {
	Cost, Receipt int64
	// Renew asks for it to last longer, instead of to be given back. That goes for what [Renewable] gives.
	Renew bool
}

// For gives the strategy of an algorithm, and false for one that there is none of.
func For(a limiter.Algorithm) (*Strategy, bool) {
	s := of(a)
	return s, s != nil
}

// of gives the strategy of an algorithm, and nil if there is none.
func of(a limiter.Algorithm) *Strategy {
	for i := range strategies {
		if strategies[i].algorithm == a {
			return strategies[i].strategy
		}
	}
	return nil
}

// shortState is the most bytes of a state of a strategy that keeps nothing of single requests or slots.
const shortState = 32

// MaxState gives how many bytes the state of a counter has at most, in process, while this is its limit and no other
// was. The limit has to be one that [Check] passes.
func MaxState(l *limiter.Limit) int {
	if s := of(l.Algorithm); s.largest != nil {
		return s.largest(l)
	}
	return shortState
}

// Names gives the algorithms that have a strategy, sorted.
func Names() []limiter.Algorithm {
	names := make([]limiter.Algorithm, 0, len(strategies))
	for _, s := range strategies {
		names = append(names, s.algorithm)
	}
	slices.Sort(names)
	return names
}

// Renewable gives those of the charges that can be made to last longer: the permits.
func Renewable(charges []limiter.Charge) []limiter.Charge {
	once := func(c limiter.Charge) bool { return c.Hit.Limit.Algorithm != limiter.Concurrency }
	return slices.DeleteFunc(slices.Clone(charges), once)
}

// Check says why no store can decide a request of these hits, in an error that wraps [limiter.ErrInvalid].
func Check(hits []limiter.Hit) error {
	for i := range hits {
		h := &hits[i]
		if err := check(hits, i); err != nil {
			return fmt.Errorf("%w of limit %q of %s/%s: %w", limiter.ErrInvalid, h.ID.Limit, h.ID.Namespace, h.ID.Policy, err)
		}
	}
	return nil
}

func check(hits []limiter.Hit, i int) error {
	h, before := &hits[i], hits[:i]
	s, ok := For(h.Limit.Algorithm)
	if !ok {
		return fmt.Errorf("unknown algorithm %q", h.Limit.Algorithm)
	}
	if h.Key == "" {
		return errors.New("key must not be empty")
	}
	for j := range before {
		if before[j].Key == h.Key {
			return fmt.Errorf("key %q must be hit once only", h.Key)
		}
	}
	if h.Cost < 0 {
		return fmt.Errorf("cost must be at least 0, not %d", h.Cost)
	}
	if h.UpTo && (s.lend == nil || h.Shadow || len(hits) > 1) {
		return errors.New("up to its cost is taken of what can be leased only, and of one counter at a time")
	}
	return s.Validate(&h.Limit)
}

const (
	// maxRequests keeps a level's error far below tolerance: doubles near it are 1e-7 apart.
	maxRequests = 1_000_000_000
	minWindow   = 10 * time.Millisecond
	maxWindow   = 8784 * time.Hour
	// longest is the longest time that the rules tell, 285 years: above it doubles skip microseconds.
	longest = 1 << 53
	// grace is how far the clock may step back before a rule stops waiting for it to catch up.
	grace = 1_000_000
	// slack is how much longer than it says anything a state lives: Redis counts a time to live from a moment that
	// isn't quite the script's, and a clock may be set back.
	slack = 1_000_000
)

// validateRate checks requests in a window.
func validateRate(l *limiter.Limit) error {
	if err := validateRequests(l); err != nil {
		return err
	}
	return validateWindow(l)
}

func validateWindow(l *limiter.Limit) error {
	switch {
	case l.Window < minWindow:
		return fmt.Errorf("window must be at least 10ms, not %s", l.Window)
	case l.Window > maxWindow:
		return fmt.Errorf("window must be at most 8784h, not %s", l.Window)
	case l.Window%time.Microsecond != 0:
		return fmt.Errorf("window must be whole microseconds, not %s", l.Window)
	}
	return nil
}

func validateRequests(l *limiter.Limit) error {
	switch {
	case l.Requests < 1:
		return fmt.Errorf("requests must be at least 1, not %d", l.Requests)
	case l.Requests > maxRequests:
		return fmt.Errorf("requests must be at most %d, not %d", maxRequests, l.Requests)
	}
	return nil
}

// wait makes microseconds a duration.
func wait(us float64) time.Duration {
	return time.Duration(us) * time.Microsecond
}

// SPDX-License-Identifier: Apache-2.0

// Package strategy holds the counting algorithms, each written twice: in Lua for Redis, and in Go.
//
// A strategy is a pure rule: from the state of a counter, the time, a limit and a cost it makes a verdict
// and the next state. [Script] runs the rules inside Redis, [Evaluator] in process; both decide a request by
// all of its hits at once, and both write the same bytes.
package strategy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

// strategies is the one place that names them all.
var strategies = map[limiter.Algorithm]Strategy{
	limiter.CalendarWindow:           calendarWindow,
	limiter.FixedWindow:              fixedWindow,
	limiter.LeakyBucketMeter:         leakyBucketMeter,
	limiter.SlidingWindowApproximate: slidingWindowApproximate,
	limiter.SlidingWindowRing:        slidingWindowRing,
	limiter.TokenBucket:              tokenBucket,
}

// Strategy is one algorithm.
type Strategy struct {
	// Validate says what is wrong with a limit, in the words of the API: "burst must be at least 1". A
	// limit has to be valid for everything else here.
	Validate func(l limiter.Limit) error
	// Take is the rule. Times are microseconds, now since the Unix epoch. An empty state is that of a
	// counter from which nothing was taken, or not for long.
	//
	// The next state is appended to dst, which must not overlap state. It is nil where nothing changes:
	// a denial and a cost of 0 take nothing. They change the state all the same where it can't stay as
	// it is because the clock was set back or the window is another; such a change takes and gives
	// nothing, and is to be kept even when the request is refused. After ttl the next state says
	// nothing that an empty one doesn't.
	Take func(dst, state []byte, now int64, l limiter.Limit, cost int64) (v limiter.Verdict, next []byte, ttl int64)
	// GiveBack undoes a charge of this cost that left the state receipt. State is the counter's now, with what
	// others took since, and is never empty. The next state is nil where nothing can be given back, since what
	// was charged doesn't count any more.
	GiveBack func(dst, state []byte, now int64, l limiter.Limit, cost int64, receipt []byte) (next []byte, ttl int64)

	// code stands for the strategy on the wire, and layout before its states in Redis, so that no strategy
	// reads a state that it doesn't understand: it takes it for an empty one. A new layout takes a new number,
	// and an old one is never used again.
	code, layout byte
	// lua is the body of a Lua function that gives the rule: a function of state (nil when empty), now, cost and
	// params. It returns whether the cost is allowed, what remains, the waits to retry (-1 for never) and to
	// reset, and the next state (or nil) with its time to live.
	lua string
	// giveBackLua is GiveBack as a Lua function of state, now, cost, receipt and params.
	giveBackLua string
	// params gives the parameters that the Lua takes. There are as many for every limit. Now is the caller's
	// time, which may not be Redis's: a rule whose parameters are of another time sets stale, and is asked
	// again with others.
	params func(now int64, l limiter.Limit) []int64
}

// width is how many params there are.
func (s Strategy) width() int { return len(s.params(0, limiter.Limit{})) }

// For gives the strategy of an algorithm, and false for one that there is none of.
func For(a limiter.Algorithm) (Strategy, bool) {
	s, ok := strategies[a]
	return s, ok
}

// Names gives the algorithms that have a strategy, sorted.
func Names() []limiter.Algorithm {
	return slices.Sorted(maps.Keys(strategies))
}

// Check says why no store can decide a request of these hits, in an error that wraps [limiter.ErrInvalid].
func Check(hits []limiter.Hit) error {
	for i, h := range hits {
		if err := check(h, hits[:i]); err != nil {
			return fmt.Errorf("%w of limit %q of %s/%s: %w", limiter.ErrInvalid, h.ID.Limit, h.ID.Namespace, h.ID.Policy, err)
		}
	}
	return nil
}

func check(h limiter.Hit, before []limiter.Hit) error {
	s, ok := For(h.Limit.Algorithm)
	if !ok {
		return fmt.Errorf("unknown algorithm %q", h.Limit.Algorithm)
	}
	if h.Key == "" {
		return errors.New("key must not be empty")
	}
	if slices.ContainsFunc(before, func(b limiter.Hit) bool { return b.Key == h.Key }) {
		return fmt.Errorf("key %q must be hit once only", h.Key)
	}
	if h.Cost < 0 {
		return fmt.Errorf("cost must be at least 0, not %d", h.Cost)
	}
	return s.Validate(h.Limit)
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
	// slack is how much longer than it says anything a state lives. Redis counts a time to live in
	// milliseconds, and from a moment that isn't quite the script's.
	slack = 1_000_000
)

// validateRate checks requests in a window.
func validateRate(l limiter.Limit) error {
	if err := validateRequests(l); err != nil {
		return err
	}
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

func validateRequests(l limiter.Limit) error {
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

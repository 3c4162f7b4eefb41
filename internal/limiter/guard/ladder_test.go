// SPDX-License-Identifier: Apache-2.0

package guard_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/guard"
	"github.com/weir-dev/weir/internal/limiter/memorystore"
)

// times is how often or how far a test goes: in the long run, which WEIR_TEST_LONG asks for, farther.
func times(usual, long int) int {
	if os.Getenv("WEIR_TEST_LONG") != "" {
		return long
	}
	return usual
}

// swap is a store that can be another from one call to the next.
type swap struct{ limiter.Store }

// flaky is a store that can be away, and counts the questions.
type flaky struct {
	limiter.Store
	away  bool
	asked int
}

func (f *flaky) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	f.asked++
	if f.away {
		return nil, errSilent
	}
	return f.Store.Take(ctx, hits)
}

// ladder is all that a replica decides with, and all that was seen of it since the start of a path.
type ladder struct {
	engine *limiter.Engine
	// breaker is new on each path, and so is the key; all else goes on, since it keeps nothing but by key.
	breaker *swap
	store   *flaky
	shares  *fixed
	hit     limiter.Hit

	outcomes []limiter.Outcome
	// shared and own are when a request was admitted by the store, and by the replica alone.
	shared, own []time.Time
	// down is since when the store has been away, and askedBefore how often it was asked by then.
	down, up    time.Time
	askedBefore int
	paths       int
	violation   string
}

// four is a limit of 4 at once, and 4 in 10 seconds.
var four = limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 4, Window: 10 * time.Second, Burst: 4}

func newLadder() *ladder {
	l := &ladder{
		breaker: &swap{},
		store:   &flaky{Store: memorystore.New(memorystore.Options{MaxCounters: 1 << 24})},
		shares:  &fixed{},
	}
	own := guard.NewOwn(memorystore.New(memorystore.Options{MaxCounters: 1 << 24}), l.shares)
	l.engine = limiter.NewEngineWithFallback(own.Beside(guard.DenyCache(l.breaker)), own, l)
	return l
}

// Record implements [limiter.Recorder].
func (l *ladder) Record(_ limiter.LimitID, o limiter.Outcome) { l.outcomes = append(l.outcomes, o) }

// begin starts a path, with everything as new.
func (l *ladder) begin() {
	l.paths++
	l.breaker.Store = guard.Breaker(l.store, silent)
	l.store.away, l.store.asked, l.askedBefore = false, 0, 0
	l.shares.share = 0.5
	l.hit = limiter.Hit{Key: fmt.Sprint(l.paths), Limit: four, Cost: 1, OnFailure: limiter.FailLocal}
	l.shared, l.own, l.violation = nil, nil, ""
	l.up = time.Now()
}

// moves are what can happen to a replica. What a replica can be besides, like one that holds a lease, takes moves of
// its own and claims about them in check.
var moves = []struct {
	name string
	make func(l *ladder)
}{
	{"six requests", func(l *ladder) {
		for range 6 { // As many as open the breaker.
			l.request()
			time.Sleep(10 * time.Millisecond)
		}
	}},
	{"store goes", func(l *ladder) {
		if !l.store.away {
			l.store.away, l.down, l.askedBefore = true, time.Now(), l.store.asked
		}
	}},
	{"store comes", func(l *ladder) {
		if l.store.away {
			l.store.away, l.up = false, time.Now()
		}
	}},
	{"time for a probe", func(*ladder) { time.Sleep(probeInterval + time.Millisecond) }},
	{"time for a token", func(*ladder) { time.Sleep(2500 * time.Millisecond) }},
	{"another failure mode", func(l *ladder) {
		next := map[limiter.FailureMode]limiter.FailureMode{
			limiter.FailLocal: limiter.FailClosed, limiter.FailClosed: limiter.FailOpen, limiter.FailOpen: limiter.FailLocal,
		}
		l.hit.OnFailure = next[l.hit.OnFailure]
	}},
	{"another share", func(l *ladder) { l.shares.share = 0.75 - l.shares.share }},
}

// request makes a request, and looks at what came of it.
func (l *ladder) request() {
	l.outcomes = l.outcomes[:0]
	asked, now := l.store.asked, time.Now()
	d := l.engine.Decide(context.Background(), []limiter.Hit{l.hit}) //nolint:forbidigo // Paths are many, and none outlives its test.
	if len(l.outcomes) != 1 {
		l.violated("a request has %d outcomes", len(l.outcomes))
		return
	}
	switch l.outcomes[0] {
	case limiter.Allowed:
		l.shared = append(l.shared, now)
	case limiter.LocalAllowed:
		l.own = append(l.own, now)
	}
	l.check(d, l.outcomes[0], l.store.asked > asked)
}

// check says which of the claims about a ladder doesn't hold of a decision.
func (l *ladder) check(d limiter.Decision, o limiter.Outcome, asked bool) {
	byMode := map[limiter.FailureMode][]limiter.Outcome{
		limiter.FailOpen:   {limiter.FailedOpen},
		limiter.FailClosed: {limiter.FailedClosed},
		limiter.FailLocal:  {limiter.LocalAllowed, limiter.LocalDenied},
	}
	answered := o == limiter.Allowed || o == limiter.Denied
	// While the store is away, Denied is remembered.
	answers := asked && !l.store.away
	switch {
	case !answered && !slices.Contains(byMode[l.hit.OnFailure], o):
		l.violated("a limit that fails %s is %s", l.hit.OnFailure, o)
	case o == limiter.Allowed && !answers:
		l.violated("a request is allowed by a store that didn't answer")
	case d.Allowed != slices.Contains([]limiter.Outcome{limiter.Allowed, limiter.FailedOpen, limiter.LocalAllowed}, o):
		l.violated("a request is %s and allowed: %t", o, d.Allowed)
	case answers && !answered:
		l.violated("a store that answered was not believed: %s", o)
	case !answered && !l.store.away && time.Since(l.up) > probeInterval:
		l.violated("the store is not asked %s after its return", time.Since(l.up))
	}
	if l.store.away {
		// Five failures open the breaker if there was no answer for 30 ms either; then one probe at a time.
		if most := 8 + int(time.Since(l.down)/(200*time.Millisecond)); l.store.asked-l.askedBefore > most {
			l.violated("a store that has been away for %s was asked %d times", time.Since(l.down), l.store.asked-l.askedBefore)
		}
	}
	const burst, rate, largest = 4, 0.4, 0.5
	if excess := worst(l.shared, rate); excess > burst {
		l.violated("the store has admitted %v above the rate, more than %d", excess, burst)
	}
	if excess := worst(l.own, largest*rate); excess > largest*burst+1 {
		l.violated("the replica has admitted %v above its rate by itself, more than %v", excess, largest*burst+1)
	}
	if excess := worst(l.both(), rate+largest*rate); excess > burst+largest*burst+1 {
		l.violated("%v were admitted above all rates", excess)
	}
}

func (l *ladder) both() []time.Time {
	all := slices.Concat(l.shared, l.own)
	slices.SortFunc(all, time.Time.Compare)
	return all
}

func (l *ladder) violated(format string, args ...any) {
	if l.violation == "" {
		l.violation = fmt.Sprintf(format, args...)
	}
}

// worst gives by how much events exceed a rate per second, in the interval in which they do so the most.
func worst(events []time.Time, rate float64) float64 {
	if len(events) == 0 {
		return 0
	}
	excess, least := 0., 0.
	for i, at := range events {
		above := float64(i) - rate*at.Sub(events[0]).Seconds()
		least = min(least, above)
		excess = max(excess, above+1-least)
	}
	return excess
}

// walk makes every path of so many moves, and calls visit at the end of each.
func walk(length int, path []int, visit func(path []int)) {
	if len(path) == length {
		visit(path)
		return
	}
	for m := range moves {
		walk(length, append(path, m), visit)
	}
}

// TestEveryPathOfTheLadder looks at each order in which things can happen, up to a length.
func TestEveryPathOfTheLadder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		length := times(5, 7)
		l := newLadder()
		violations := 0
		walk(length, nil, func(path []int) {
			l.begin()
			for _, m := range path {
				moves[m].make(l)
			}
			if l.violation == "" {
				return
			}
			if violations++; violations <= 10 {
				t.Errorf("%s: %s", nameOf(path), l.violation)
			}
		})
		t.Logf("expected: 0 violations; measured: %d on %d paths of %d moves", violations, l.paths, length)
	})
}

func nameOf(path []int) string {
	names := make([]string, len(path))
	for i, m := range path {
		names[i] = moves[m].name
	}
	return strings.Join(names, ", ")
}

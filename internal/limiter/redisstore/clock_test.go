// SPDX-License-Identifier: Apache-2.0

package redisstore_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/redisstore"
	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/redistest"
)

const (
	// shortest is a window of which many fit into a test. What a clock jumps is none of its multiples.
	shortest = 700 * time.Millisecond
	// many is what the limits of clocked admit in it.
	many = 20
	// delay is the longest that a queue of clocked has anybody wait.
	delay = 100 * time.Millisecond
)

// clocked is a limit, and what becomes of it when Redis's clock jumps.
type clocked struct {
	limit limiter.Limit
	// admits is the most that any time of a length admits.
	admits func(time.Duration) float64
	// back and ahead are how much more it is where the clock is set back or ahead meanwhile.
	back, ahead float64
	// lockout is the longest, after a clock that was set back is first looked at, until something is admitted.
	lockout time.Duration
}

// rate is what a bucket gains.
const rate = many / float64(shortest)

// steadily admits at a rate, and so much at once.
func steadily(burst float64) func(time.Duration) float64 {
	return func(d time.Duration) float64 { return burst + rate*float64(d) }
}

// inEach admits a number in any time that is shorter than the window.
func inEach(n float64) func(time.Duration) float64 {
	return func(d time.Duration) float64 { return n * float64(1+d/shortest) }
}

// of gives a limit of many in the shortest window.
func of(a limiter.Algorithm) limiter.Limit {
	return limiter.Limit{Algorithm: a, Requests: many, Window: shortest, Burst: many, MaxDelay: delay}
}

var (
	turn = time.Duration(1 / rate)
	slot = shortest / 10
	// allClocked has every strategy whose windows a test can wait for.
	allClocked = []clocked{
		{of(limiter.TokenBucket), steadily(many), 0, many, turn},
		{of(limiter.LeakyBucketMeter), steadily(1), 0, 1, turn},
		{of(limiter.LeakyBucketQueue), steadily(1), 0, 1 + rate*float64(delay), turn},
		{of(limiter.SlidingWindowRing), inEach(many), 0, many, shortest + slot},
		{of(limiter.SlidingWindowLog), inEach(many), 0, many, shortest},
		{of(limiter.SlidingWindowApproximate), inEach(2 * many), 0, many, shortest + turn},
		// A jump cuts short the window in which the clock comes out, and one ahead also the window that it leaves.
		{of(limiter.FixedWindow), func(d time.Duration) float64 { return many * float64(2+d/shortest) }, many, 2 * many, shortest},
		// Nobody gives a permit back.
		{of(limiter.Concurrency), inEach(many), 0, many, shortest + shortest/64},
	}
)

// TestC9RedisClockIsSetBack is C9.
func TestC9RedisClockIsSetBack(t *testing.T) {
	testJumps(t, "C9", -120*time.Second)
}

// TestC10RedisClockIsSetAhead is C10.
func TestC10RedisClockIsSetAhead(t *testing.T) {
	testJumps(t, "C10", 300*time.Second)
}

// jump is one of the clock, by the test's own clock: at some moment from one time to the other.
type jump struct{ from, to time.Time }

// testJumps has each limit asked all the time, while Redis's clock jumps three times.
func testJumps(t *testing.T, id string, by time.Duration) {
	t.Helper()
	server, clock := redistest.StartWithClock(t)
	client, err := redisclient.OpenCounting(server.URL() + patience)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	store := redisstore.New(client)
	histories := make([][]asked, len(allClocked))
	done := make(chan struct{})
	var asking sync.WaitGroup
	for i, c := range allClocked {
		asking.Go(func() { histories[i] = askUntil(t, store, on(i, c.limit), done) })
	}
	var jumps []jump
	for n, phase := range []time.Duration{shortest / 4, shortest / 2, 3 * shortest / 4} {
		// Now and then a jump leads into the second half of a window, or out of it.
		now := time.Now().Add(time.Duration(n) * by)
		time.Sleep(2*shortest + now.Truncate(shortest).Add(phase).Sub(now))
		j := jump{from: time.Now()}
		if err := clock.Set(time.Duration(n+1) * by); err != nil {
			t.Error(err)
		}
		j.to = time.Now()
		jumps = append(jumps, j)
	}
	time.Sleep(5 * shortest / 2)
	close(done)
	asking.Wait()
	for i, c := range allClocked {
		t.Run(fmt.Sprintf("%s keeps its bounds", c.limit.Algorithm), func(t *testing.T) { c.check(t, id, by, histories[i], jumps) })
	}
}

// asked is a request and its verdict, which Redis gave at some time between the two.
type asked struct {
	from, to time.Time
	// until is when it was served at the latest.
	until   time.Time
	verdict limiter.Verdict
}

// turn gives when a request was served at the soonest.
func (a asked) turn() time.Time { return a.from.Add(a.verdict.Wait) }

// with widens the times by those of another request.
func (a asked) with(b asked) asked {
	if b.from.Before(a.from) {
		a.from = b.from
	}
	if b.to.After(a.to) {
		a.to = b.to
	}
	if b.until.After(a.until) {
		a.until = b.until
	}
	return a
}

// askUntil makes a request every ten milliseconds, one after the other.
func askUntil(t *testing.T, store limiter.Store, hit limiter.Hit, done <-chan struct{}) (history []asked) {
	t.Helper()
	ticks := time.NewTicker(10 * time.Millisecond)
	defer ticks.Stop()
	for {
		from := time.Now()
		verdicts, err := store.Take(t.Context(), []limiter.Hit{hit})
		if err != nil {
			t.Error(err)
			return history
		}
		to := time.Now()
		history = append(history, asked{from, to, to.Add(verdicts[0].Wait), verdicts[0]})
		select {
		case <-done:
			return history
		case <-ticks.C:
		}
	}
}

// check holds a history against the bounds. Each time that it compares is longer than Redis's was: so what breaks them here
// has broken them there, however busy the machine is.
func (c clocked) check(t *testing.T, id string, by time.Duration, history []asked, jumps []jump) {
	t.Helper()
	more := c.ahead
	if by < 0 {
		more = c.back
	}
	worst := c.worst(history, jumps, more)
	var longest time.Duration
	if by < 0 {
		for _, j := range jumps {
			longest = max(longest, lockout(history, j))
		}
	}
	t.Logf("%s: %s: expected: admitted at most %.0f above its bound, refused for at most %s; measured: %.1f, %s, of %d requests",
		id, c.limit.Algorithm, more, c.lockout.Round(time.Millisecond), max(0, worst+more), longest.Round(time.Millisecond), len(history))
	if worst > tolerance {
		t.Errorf("%.2f more than the bound were admitted", worst)
	}
	if longest > c.lockout {
		t.Errorf("a request was refused %s after the clock was set back", longest)
	}
}

// tolerance is what a rate brings in the microseconds that Redis's clock leaves out.
const tolerance = 0.001

// worst gives the most that any time has admitted above the bound, which is more by so much for each jump in it. Who waits
// in a queue is admitted when the wait is over.
func (c clocked) worst(history []asked, jumps []jump, more float64) float64 {
	history = slices.DeleteFunc(slices.Clone(history), func(a asked) bool { return !a.verdict.Allowed })
	slices.SortFunc(history, func(a, b asked) int { return a.turn().Compare(b.turn()) })
	worst := float64(-len(history))
	for i, first := range history {
		span := first
		for j, next := range history[i:] {
			span = span.with(next)
			bound := c.admits(span.until.Sub(first.turn()))
			for _, at := range jumps {
				if span.from.Before(at.to) && span.to.After(at.from) {
					bound += more
				}
			}
			worst = max(worst, float64(j+1)-bound)
		}
	}
	return worst
}

// lockout gives how long after a jump, or after the first request that came after it, the last one was sent that was
// refused before any was admitted.
func lockout(history []asked, j jump) time.Duration {
	var first time.Time
	var longest time.Duration
	for _, a := range history {
		switch {
		case a.from.Before(j.to):
		case a.verdict.Allowed:
			return longest
		case first.IsZero():
			first = a.to
		default:
			longest = max(longest, a.from.Sub(first))
		}
	}
	return longest
}

// TestC9AndC10InADay are both for a calendar, whose windows a test can't wait for.
func TestC9AndC10InADay(t *testing.T) {
	server, clock := redistest.StartWithClock(t)
	store := redisstore.New(server.Client(t))
	// From here on it is a minute after a midnight, or less by a part of a second.
	now := time.Now()
	ahead := now.Truncate(24 * time.Hour).Add(24*time.Hour + time.Minute).Sub(now).Truncate(time.Second)
	set := func(offset time.Duration) {
		t.Helper()
		if err := clock.Set(ahead + offset); err != nil {
			t.Fatal(err)
		}
	}
	hit := on(0, limiter.Limit{Algorithm: limiter.CalendarWindow, Requests: many, Calendar: limiter.Calendar{Unit: limiter.Day, TimeZone: "UTC"}})
	spend := func() (admitted int, last limiter.Verdict) {
		t.Helper()
		for range 2 * many {
			if last = take(t, store, hit); last.Allowed {
				admitted++
			}
		}
		return admitted, last
	}
	t.Run("a clock that is set back to the day before gives nothing, and its day ends that day", func(t *testing.T) {
		set(0)
		before, _ := spend()
		set(-120 * time.Second)
		after, last := spend()
		set(0)
		again, _ := spend()
		t.Logf("C9: CalendarWindow: expected: %d, then 0, refused for at most a minute; measured: %d, %d, %s; the day begins anew with %d", many, before, after, last.RetryAfter, again)
		if diff := cmp.Diff([]int{many, 0}, []int{before, after}); diff != "" {
			t.Errorf("admitted before and after (-want +got):\n%s", diff)
		}
		if last.RetryAfter > time.Minute+time.Second || again > many {
			t.Errorf("to retry after %s; %d admitted in the day that begins anew", last.RetryAfter, again)
		}
	})
	t.Run("a clock that is set ahead to the next day gives a day's requests once", func(t *testing.T) {
		set(24*time.Hour - 120*time.Second)
		before, _ := spend()
		set(24*time.Hour + 180*time.Second)
		after, _ := spend()
		again, _ := spend()
		t.Logf("C10: CalendarWindow: expected: at most %d, then %d, then 0; measured: %d, %d, %d", many, many, before, after, again)
		if before > many || after != many || again != 0 {
			t.Errorf("admitted: %d, %d, %d", before, after, again)
		}
	})
}

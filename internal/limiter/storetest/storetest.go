// SPDX-License-Identifier: Apache-2.0

// Package storetest is the suite that every limiter.Store has to pass.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/limiter"
)

// Epoch is when the clock of a store under test starts: 15 seconds into a window of a minute.
var Epoch = time.Date(2026, time.January, 1, 0, 0, 15, 0, time.UTC)

// Start gives a new store, whose clock is at [Epoch], and what sets the clock forward, or back by a negative
// time.
type Start func(t *testing.T) (store limiter.Store, advance func(time.Duration))

var (
	bucket      = limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 10, Window: time.Minute, Burst: 3}
	window      = limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 3, Window: time.Minute}
	calendar    = limiter.Limit{Algorithm: limiter.CalendarWindow, Requests: 3, Calendar: limiter.Calendar{Unit: limiter.Day, TimeZone: "Europe/Berlin"}}
	ring        = limiter.Limit{Algorithm: limiter.SlidingWindowRing, Requests: 3, Window: time.Minute}
	exact       = limiter.Limit{Algorithm: limiter.SlidingWindowLog, Requests: 3, Window: time.Minute}
	approximate = limiter.Limit{Algorithm: limiter.SlidingWindowApproximate, Requests: 3, Window: time.Minute}
	meter       = limiter.Limit{Algorithm: limiter.LeakyBucketMeter, Requests: 10, Window: time.Minute}
	queue       = limiter.Limit{Algorithm: limiter.LeakyBucketQueue, Requests: 10, Window: time.Minute, MaxDelay: 20 * time.Second}
	permits     = limiter.Limit{Algorithm: limiter.Concurrency, Requests: 3, Window: time.Minute}

	// threes are the limits that admit 3 at once.
	threes = []limiter.Limit{bucket, window, ring, exact, approximate}
)

// Run runs the suite.
func Run(t *testing.T, start Start) {
	t.Run("a token bucket says what remains and how long to wait", func(t *testing.T) {
		store, _ := start(t)
		check(t, store, requests(4, hit("a", bucket)), []limiter.Verdict{
			{Allowed: true, Remaining: 2, ResetAfter: 12 * time.Second},
			{Allowed: true, Remaining: 1, ResetAfter: 6 * time.Second},
			{Allowed: true, Remaining: 0, ResetAfter: 6 * time.Second},
			{Allowed: false, Remaining: 0, RetryAfter: 6 * time.Second, ResetAfter: 6 * time.Second},
		})
	})
	t.Run("a fixed window says what remains and how long to wait", func(t *testing.T) {
		store, _ := start(t)
		check(t, store, requests(4, hit("a", window)), []limiter.Verdict{
			{Allowed: true, Remaining: 2, ResetAfter: 45 * time.Second},
			{Allowed: true, Remaining: 1, ResetAfter: 45 * time.Second},
			{Allowed: true, Remaining: 0, ResetAfter: 45 * time.Second},
			{Allowed: false, Remaining: 0, RetryAfter: 45 * time.Second, ResetAfter: 45 * time.Second},
		})
	})
	runCalendar(t, start)
	runSliding(t, start)
	runLog(t, start)
	runMeter(t, start)
	runQueue(t, start)
	runLeaving(t, start)
	runPermits(t, start)
	runRefunds(t, start)
	t.Run("a lowered burst cuts the level and a raised one gives nothing", func(t *testing.T) {
		store, _ := start(t)
		low, high := bucket, bucket
		low.Burst, high.Burst = 1, 9
		check(t, store, []limiter.Hit{hit("a", bucket), hit("a", low), hit("a", high)}, []limiter.Verdict{
			{Allowed: true, Remaining: 2, ResetAfter: 12 * time.Second},
			{Allowed: true, Remaining: 0, ResetAfter: 6 * time.Second},
			{Allowed: false, Remaining: 0, RetryAfter: 6 * time.Second, ResetAfter: 6 * time.Second},
		})
	})
	t.Run("the count goes into the window of another length", func(t *testing.T) {
		store, advance := start(t)
		short := window
		short.Window = 10 * time.Second
		check(t, store, []limiter.Hit{hit("a", window), hit("a", window), hit("a", short), hit("a", short)}, []limiter.Verdict{
			{Allowed: true, Remaining: 2, ResetAfter: 45 * time.Second},
			{Allowed: true, Remaining: 1, ResetAfter: 45 * time.Second},
			{Allowed: true, Remaining: 0, ResetAfter: 5 * time.Second},
			{Allowed: false, Remaining: 0, RetryAfter: 5 * time.Second, ResetAfter: 5 * time.Second},
		})
		advance(5 * time.Second)
		check(t, store, requests(1, hit("a", short)), []limiter.Verdict{
			{Allowed: true, Remaining: 2, ResetAfter: 10 * time.Second},
		})
	})
	t.Run("another algorithm starts anew on the same key", func(t *testing.T) {
		store, _ := start(t)
		check(t, store, []limiter.Hit{hit("a", bucket), hit("a", window), hit("a", bucket)}, []limiter.Verdict{
			{Allowed: true, Remaining: 2, ResetAfter: 12 * time.Second},
			{Allowed: true, Remaining: 2, ResetAfter: 45 * time.Second},
			{Allowed: true, Remaining: 2, ResetAfter: 12 * time.Second},
		})
	})
	for _, l := range threes {
		t.Run(string(l.Algorithm), func(t *testing.T) {
			runCosts(t, start, l)
			runClock(t, start, l)
		})
	}
	runUpTo(t, start)
	runTogether(t, start)
	runShadow(t, start)
	runInvalid(t, start)
}

// runCalendar is about days of Berlin. The clock starts at a quarter of a minute past one there.
func runCalendar(t *testing.T, start Start) {
	day := 23*time.Hour - 15*time.Second
	t.Run("a day of a time zone says what remains and how long to wait", func(t *testing.T) {
		store, _ := start(t)
		check(t, store, requests(4, hit("a", calendar)), []limiter.Verdict{
			{Allowed: true, Remaining: 2, ResetAfter: day},
			{Allowed: true, Remaining: 1, ResetAfter: day},
			{Allowed: true, Remaining: 0, ResetAfter: day},
			{Allowed: false, Remaining: 0, RetryAfter: day, ResetAfter: day},
		})
	})
	t.Run("a day of a time zone ends at its midnight", func(t *testing.T) {
		store, advance := start(t)
		takeAll(t, store, hit("a", calendar))
		advance(day - time.Millisecond)
		wantAllowed(t, store, hit("a", calendar), 1, false, 0)
		advance(time.Millisecond)
		wantAllowed(t, store, hit("a", calendar), 3, true, 0)
	})
	t.Run("the day on which summer starts is over after 23 hours", func(t *testing.T) {
		store, advance := start(t)
		advance(time.Date(2026, time.March, 28, 23, 0, 0, 0, time.UTC).Sub(Epoch))
		check(t, store, requests(1, hit("a", calendar)), []limiter.Verdict{{Allowed: true, Remaining: 2, ResetAfter: 23 * time.Hour}})
	})
	t.Run("a clock that is set back a little doesn't count a day twice", func(t *testing.T) {
		store, advance := start(t)
		advance(day)
		takeAll(t, store, hit("a", calendar))
		advance(-time.Second)
		wantAllowed(t, store, hit("a", calendar), 1, false, 0)
		advance(time.Second)
		wantAllowed(t, store, hit("a", calendar), 1, false, 0)
	})
	t.Run("the count goes into a day of another zone, a longer unit and a window without calendar", func(t *testing.T) {
		store, _ := start(t)
		tokyo, week := calendar, calendar
		tokyo.Calendar.TimeZone, week.Calendar.Unit = "Asia/Tokyo", limiter.Week
		check(t, store, []limiter.Hit{hit("a", calendar), hit("a", tokyo), hit("a", week), hit("a", window)}, []limiter.Verdict{
			{Allowed: true, Remaining: 2, ResetAfter: day},
			{Allowed: true, Remaining: 1, ResetAfter: 15*time.Hour - 15*time.Second},
			// The 1st of January 2026 is a Thursday.
			{Allowed: true, Remaining: 0, ResetAfter: 3*24*time.Hour + day},
			{Allowed: false, Remaining: 0, RetryAfter: 45 * time.Second, ResetAfter: 45 * time.Second},
		})
	})
	t.Run("a request that hits a calendar and another limit is charged to both or none", func(t *testing.T) {
		store, _ := start(t)
		takeAll(t, store, hit("b", calendar))
		want := []limiter.Verdict{
			{Allowed: true, Remaining: 3, ResetAfter: 18 * time.Second},
			{Allowed: false, Remaining: 0, RetryAfter: day, ResetAfter: day},
		}
		if diff := cmp.Diff(want, take(t, store, hit("a", bucket), hit("b", calendar))); diff != "" {
			t.Errorf("verdicts (-want +got):\n%s", diff)
		}
	})
}

// runSliding is about windows that slide.
func runSliding(t *testing.T, start Start) {
	t.Run("a ring says what remains and how long to wait", func(t *testing.T) {
		store, advance := start(t)
		gone := 61 * time.Second
		check(t, store, requests(4, hit("a", ring)), []limiter.Verdict{
			{Allowed: true, Remaining: 2, ResetAfter: gone},
			{Allowed: true, Remaining: 1, ResetAfter: gone},
			{Allowed: true, Remaining: 0, ResetAfter: gone},
			{Allowed: false, Remaining: 0, RetryAfter: gone, ResetAfter: gone},
		})
		advance(gone - time.Microsecond)
		wantAllowed(t, store, hit("a", ring), 1, false, 0)
		advance(time.Microsecond)
		wantAllowed(t, store, hit("a", ring), 1, true, 2)
	})
	t.Run("a ring gives back slot by slot what was taken", func(t *testing.T) {
		store, advance := start(t)
		wantAllowed(t, store, hit("a", ring), 1, true, 2)
		advance(30 * time.Second)
		wantAllowed(t, store, hit("a", ring), 2, true, 0)
		advance(31 * time.Second)
		costs := []limiter.Hit{hit("a", ring), hit("a", ring)}
		costs[0].Cost = 3
		check(t, store, costs, []limiter.Verdict{
			{Allowed: false, Remaining: 1, RetryAfter: 30 * time.Second, ResetAfter: 30 * time.Second},
			{Allowed: true, Remaining: 0, ResetAfter: 30 * time.Second},
		})
	})
	t.Run("an approximate window says what remains and how long to wait", func(t *testing.T) {
		store, advance := start(t)
		check(t, store, requests(4, hit("a", approximate)), []limiter.Verdict{
			{Allowed: true, Remaining: 2, ResetAfter: 105 * time.Second},
			{Allowed: true, Remaining: 1, ResetAfter: 75 * time.Second},
			{Allowed: true, Remaining: 0, ResetAfter: 65 * time.Second},
			{Allowed: false, Remaining: 0, RetryAfter: 65 * time.Second, ResetAfter: 65 * time.Second},
		})
		advance(65 * time.Second)
		check(t, store, requests(2, hit("a", approximate)), []limiter.Verdict{
			{Allowed: true, Remaining: 0, ResetAfter: 20 * time.Second},
			{Allowed: false, Remaining: 0, RetryAfter: 20 * time.Second, ResetAfter: 20 * time.Second},
		})
	})
	for _, l := range []limiter.Limit{ring, approximate} {
		t.Run(fmt.Sprint(l.Algorithm, " takes the count into a window of another length"), func(t *testing.T) {
			store, advance := start(t)
			long, short := l, l
			long.Window, short.Window = time.Hour, 10*time.Second
			for _, other := range []limiter.Limit{short, l, long} {
				wantAllowed(t, store, hit("a", l), 2, true, 1)
				wantAllowed(t, store, hit("a", other), 1, true, 0)
				wantAllowed(t, store, hit("a", other), 1, false, 0)
				advance(2 * other.Window)
				wantAllowed(t, store, hit("a", other), 0, true, 3)
			}
		})
	}
	for _, l := range []limiter.Limit{ring, exact, approximate} {
		t.Run(fmt.Sprint(l.Algorithm, " can use a raised limit at once, and holds a lowered one"), func(t *testing.T) {
			store, _ := start(t)
			low, high := l, l
			low.Requests, high.Requests = 1, 5
			wantAllowed(t, store, hit("a", l), 3, true, 0)
			wantAllowed(t, store, hit("a", low), 1, false, 0)
			wantAllowed(t, store, hit("a", high), 2, true, 0)
		})
	}
}

// runLog is about a window that slides and knows when what was taken.
func runLog(t *testing.T, start Start) {
	t.Run("a log says what remains and how long to wait", func(t *testing.T) {
		store, advance := start(t)
		check(t, store, requests(4, hit("a", exact)), []limiter.Verdict{
			{Allowed: true, Remaining: 2, ResetAfter: time.Minute},
			{Allowed: true, Remaining: 1, ResetAfter: time.Minute},
			{Allowed: true, Remaining: 0, ResetAfter: time.Minute},
			{Allowed: false, Remaining: 0, RetryAfter: time.Minute, ResetAfter: time.Minute},
		})
		advance(time.Minute - time.Microsecond)
		wantAllowed(t, store, hit("a", exact), 1, false, 0)
		advance(time.Microsecond)
		wantAllowed(t, store, hit("a", exact), 1, true, 2)
	})
	t.Run("a log gives back request by request what was taken", func(t *testing.T) {
		store, advance := start(t)
		wantAllowed(t, store, hit("a", exact), 1, true, 2)
		advance(10 * time.Second)
		wantAllowed(t, store, hit("a", exact), 1, true, 1)
		advance(10 * time.Second)
		wantAllowed(t, store, hit("a", exact), 1, true, 0)
		costs := requests(3, hit("a", exact))
		costs[1].Cost, costs[2].Cost = 2, 3
		check(t, store, costs, []limiter.Verdict{
			{Allowed: false, Remaining: 0, RetryAfter: 40 * time.Second, ResetAfter: 40 * time.Second},
			{Allowed: false, Remaining: 0, RetryAfter: 50 * time.Second, ResetAfter: 40 * time.Second},
			{Allowed: false, Remaining: 0, RetryAfter: 60 * time.Second, ResetAfter: 40 * time.Second},
		})
		advance(50 * time.Second)
		wantAllowed(t, store, hit("a", exact), 2, true, 0)
	})
	t.Run("a log has no end", func(t *testing.T) {
		store, advance := start(t)
		large := exact
		large.Requests = 10_000
		wantAllowed(t, store, hit("a", large), 3000, true, 7000)
		advance(20 * time.Second)
		wantAllowed(t, store, hit("a", large), 3000, true, 4000)
		for range 100 {
			advance(20 * time.Second)
			wantAllowed(t, store, hit("a", large), 3000, true, 1000)
			wantAllowed(t, store, hit("a", large), 1001, false, 1000)
		}
	})
	t.Run("a log of a shorter window counts what is in that, and of a longer one what has not left the shorter", func(t *testing.T) {
		store, advance := start(t)
		short := exact
		short.Window = 10 * time.Second
		wantAllowed(t, store, hit("a", exact), 2, true, 1)
		advance(10 * time.Second)
		wantAllowed(t, store, hit("a", short), 0, true, 3)
		wantAllowed(t, store, hit("a", exact), 0, true, 1)
		wantAllowed(t, store, hit("a", short), 1, true, 2)
		wantAllowed(t, store, hit("a", exact), 0, true, 2)
	})
}

// runPermits is about limits of how many requests are under way at a time.
func runPermits(t *testing.T, start Start) {
	// lasts is after how long a permit is back for sure that nobody renews.
	const lasts = time.Minute + time.Minute/64
	t.Run("permits say what remains, and to try again in a second", func(t *testing.T) {
		store, _ := start(t)
		check(t, store, requests(4, hit("a", permits)), []limiter.Verdict{
			{Allowed: true, Remaining: 2, ResetAfter: time.Second},
			{Allowed: true, Remaining: 1, ResetAfter: time.Second},
			{Allowed: true, Remaining: 0, ResetAfter: time.Second},
			{Allowed: false, Remaining: 0, RetryAfter: time.Second, ResetAfter: time.Second},
		})
	})
	t.Run("a permit is out until it is given back, and can be given back once", func(t *testing.T) {
		store, advance := start(t)
		first := charge(t, store, hit("a", permits))
		wantAllowed(t, store, hit("a", permits), 2, true, 0)
		advance(time.Minute - time.Microsecond)
		wantAllowed(t, store, hit("a", permits), 1, false, 0)
		for range 2 {
			refund(t, store, first)
			wantAllowed(t, store, hit("a", permits), 0, true, 1)
		}
		wantAllowed(t, store, hit("a", permits), 1, true, 0)
	})
	t.Run("a permit that nobody renews comes back by itself", func(t *testing.T) {
		store, advance := start(t)
		charge(t, store, hit("a", permits))
		advance(30 * time.Second)
		wantAllowed(t, store, hit("a", permits), 2, true, 0)
		advance(lasts - 30*time.Second)
		wantAllowed(t, store, hit("a", permits), 1, true, 0)
		advance(lasts)
		wantAllowed(t, store, hit("a", permits), 3, true, 0)
	})
	t.Run("a renewed permit lasts for another window", func(t *testing.T) {
		store, advance := start(t)
		first, second := charge(t, store, hit("a", permits)), charge(t, store, hit("a", permits))
		for range 5 {
			advance(time.Minute - time.Microsecond)
			renew(t, store, first)
		}
		wantAllowed(t, store, hit("a", permits), 0, true, 2)
		renew(t, store, second)
		wantAllowed(t, store, hit("a", permits), 0, true, 2)
		advance(lasts)
		wantAllowed(t, store, hit("a", permits), 0, true, 3)
	})
	t.Run("a permit that has expired is not renewed, and gives nothing back", func(t *testing.T) {
		store, advance := start(t)
		old := charge(t, store, hit("a", permits))
		advance(lasts)
		wantAllowed(t, store, hit("a", permits), 3, true, 0)
		renew(t, store, old)
		refund(t, store, old)
		wantAllowed(t, store, hit("a", permits), 1, false, 0)
	})
	t.Run("permits of one call are given back and renewed together", func(t *testing.T) {
		store, advance := start(t)
		a, b, other := charge(t, store, hit("a", permits)), charge(t, store, hit("a", permits)), charge(t, store, hit("b", permits))
		advance(time.Minute - time.Microsecond)
		renew(t, store, a, b, other)
		advance(time.Minute - time.Microsecond)
		wantAllowed(t, store, hit("a", permits), 0, true, 1)
		refund(t, store, a, b, other)
		wantAllowed(t, store, hit("a", permits), 3, true, 0)
		wantAllowed(t, store, hit("b", permits), 3, true, 0)
	})
	t.Run("a cost takes as many permits, which come back together", func(t *testing.T) {
		store, _ := start(t)
		h := hit("a", permits)
		h.Cost = 2
		two := charge(t, store, h)
		wantAllowed(t, store, hit("a", permits), 2, false, 1)
		wantAllowed(t, store, hit("a", permits), 1, true, 0)
		refund(t, store, two)
		wantAllowed(t, store, hit("a", permits), 2, true, 0)
	})
	t.Run("a cost of 0 takes no permit, and one above all that there are never fits", func(t *testing.T) {
		store, _ := start(t)
		costs := requests(2, hit("a", permits))
		costs[0].Cost, costs[1].Cost = 0, 4
		check(t, store, costs, []limiter.Verdict{
			{Allowed: true, Remaining: 3, ResetAfter: time.Second},
			{Allowed: false, Remaining: 3, RetryAfter: limiter.Never, ResetAfter: time.Second},
		})
	})
	t.Run("a raised limit has more permits at once, and a lowered one gives none until fewer are out", func(t *testing.T) {
		store, _ := start(t)
		low, high := permits, permits
		low.Requests, high.Requests = 1, 4
		first, second := charge(t, store, hit("a", permits)), charge(t, store, hit("a", permits))
		wantAllowed(t, store, hit("a", high), 2, true, 0)
		third := charge(t, store, hit("b", permits))
		wantAllowed(t, store, hit("b", low), 1, false, 0)
		refund(t, store, first, second, third)
		wantAllowed(t, store, hit("a", high), 0, true, 2)
		wantAllowed(t, store, hit("b", low), 1, true, 0)
	})
	t.Run("a clock that is set back gives no permits and keeps none for long", func(t *testing.T) {
		store, advance := start(t)
		first := charge(t, store, hit("a", permits))
		wantAllowed(t, store, hit("a", permits), 2, true, 0)
		advance(-time.Hour)
		wantAllowed(t, store, hit("a", permits), 1, false, 0)
		refund(t, store, first)
		wantAllowed(t, store, hit("a", permits), 1, true, 0)
		advance(lasts)
		wantAllowed(t, store, hit("a", permits), 3, true, 0)
	})
	t.Run("50 callers at once get as many permits as there are", func(t *testing.T) {
		store, _ := start(t)
		many := permits
		many.Requests = 100
		if got := admitted(t, store, 50, 10, []limiter.Hit{hit("a", many)}); got != 100 {
			t.Errorf("%d requests were admitted, not 100", got)
		}
	})
	t.Run("50 callers at once who give back what they got leave nothing out", func(t *testing.T) {
		store, _ := start(t)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				for range 10 {
					h := hit("a", permits)
					verdicts, err := store.Take(t.Context(), []limiter.Hit{h})
					if err != nil {
						t.Error(err)
						return
					}
					if verdicts[0].Allowed {
						refund(t, store, limiter.Charge{Hit: h, Receipt: verdicts[0].Receipt})
					}
				}
			})
		}
		wg.Wait()
		wantAllowed(t, store, hit("a", permits), 3, true, 0)
	})
	t.Run("a permit is not taken for a request that another limit refuses", func(t *testing.T) {
		store, _ := start(t)
		takeAll(t, store, hit("b", window))
		want := []limiter.Verdict{
			{Allowed: true, Remaining: 3, ResetAfter: time.Second},
			{Allowed: false, Remaining: 0, RetryAfter: 45 * time.Second, ResetAfter: 45 * time.Second},
		}
		if diff := cmp.Diff(want, take(t, store, hit("a", permits), hit("b", window))); diff != "" {
			t.Errorf("verdicts (-want +got):\n%s", diff)
		}
		wantAllowed(t, store, hit("a", permits), 3, true, 0)
	})
}

// runUpTo is about hits that take what they can get.
func runUpTo(t *testing.T, start Start) {
	for _, l := range []limiter.Limit{bucket, window, ring, approximate} {
		t.Run(string(l.Algorithm)+" gives as much of a cost as fits, and then nothing", func(t *testing.T) {
			store, _ := start(t)
			h := hit("a", l)
			h.UpTo = true
			var got []int64
			for _, cost := range []int64{0, 2, 2, 2} {
				h.Cost = cost
				got = append(got, take(t, store, h)[0].Taken)
			}
			if diff := cmp.Diff([]int64{0, 2, 1, 0}, got); diff != "" {
				t.Errorf("taken (-want +got):\n%s", diff)
			}
		})
		t.Run(string(l.Algorithm)+" gives all of a large cost, but for a part that its unit doesn't divide", func(t *testing.T) {
			store, _ := start(t)
			h := hit("a", l)
			h.Limit.Requests, h.Limit.Burst, h.Cost, h.UpTo = 1000, 1000, 777, true
			v := take(t, store, h)[0]
			h.Cost = 1_000_000
			more := take(t, store, h)[0]
			if diff := cmp.Diff([]int64{776, 224, 224, 0}, []int64{v.Taken, v.Remaining, more.Taken, more.Remaining}); diff != "" {
				t.Errorf("taken and remaining, twice (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("what was taken of a window lasts until it ends, and of a slot until that does", func(t *testing.T) {
		store, _ := start(t)
		var got []time.Duration
		for i, l := range []limiter.Limit{bucket, window, ring, approximate, calendar} {
			h := hit(fmt.Sprint(i), l)
			h.UpTo = true
			got = append(got, take(t, store, h)[0].Lasts)
		}
		want := []time.Duration{0, 45 * time.Second, time.Second, 45 * time.Second, 23*time.Hour - 15*time.Second}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("lasts (-want +got):\n%s", diff)
		}
	})
	t.Run("equal requests for as much as fits are each told what they got", func(t *testing.T) {
		store, _ := start(t)
		h := hit("a", window)
		h.Cost, h.UpTo = 2, true
		var sum atomic.Int64
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() { sum.Add(take(t, store, h)[0].Taken) })
		}
		all.Wait()
		if got := sum.Load(); got != 3 {
			t.Errorf("%d were taken, not 3", got)
		}
	})
}

// runRefunds is about what is given back to limits whose capacity is 3.
func runRefunds(t *testing.T, start Start) {
	for _, l := range threes {
		t.Run(fmt.Sprint(l.Algorithm, " can give again what was given back"), func(t *testing.T) {
			store, _ := start(t)
			first := charge(t, store, hit("a", l))
			wantAllowed(t, store, hit("a", l), 2, true, 0)
			refund(t, store, first)
			wantAllowed(t, store, hit("a", l), 1, true, 0)
		})
		t.Run(fmt.Sprint(l.Algorithm, " is not changed by being renewed"), func(t *testing.T) {
			store, _ := start(t)
			renew(t, store, charge(t, store, hit("a", l)))
			wantAllowed(t, store, hit("a", l), 0, true, 2)
		})
	}
}

// runMeter is about a leaky bucket, which admits one request at a time.
func runMeter(t *testing.T, start Start) {
	turn := 6 * time.Second
	t.Run("a meter admits a request at its turn, and not before", func(t *testing.T) {
		store, advance := start(t)
		check(t, store, requests(2, hit("a", meter)), []limiter.Verdict{
			{Allowed: true, Remaining: 0, ResetAfter: turn},
			{Allowed: false, Remaining: 0, RetryAfter: turn, ResetAfter: turn},
		})
		advance(turn - time.Millisecond)
		wantAllowed(t, store, hit("a", meter), 1, false, 0)
		advance(time.Millisecond)
		wantAllowed(t, store, hit("a", meter), 1, true, 0)
	})
	t.Run("a meter saves no turns that nobody took", func(t *testing.T) {
		store, advance := start(t)
		wantAllowed(t, store, hit("a", meter), 1, true, 0)
		advance(time.Hour)
		wantAllowed(t, store, hit("a", meter), 1, true, 0)
		wantAllowed(t, store, hit("a", meter), 1, false, 0)
	})
	t.Run("a cost takes as many turns of a meter, and those of a window at most", func(t *testing.T) {
		store, advance := start(t)
		costs := requests(4, hit("a", meter))
		costs[0].Cost, costs[1].Cost, costs[2].Cost = 11, 0, 3
		check(t, store, costs, []limiter.Verdict{
			{Allowed: false, Remaining: 1, RetryAfter: limiter.Never, ResetAfter: turn},
			{Allowed: true, Remaining: 1, ResetAfter: turn},
			{Allowed: true, Remaining: 0, ResetAfter: 3 * turn},
			{Allowed: false, Remaining: 0, RetryAfter: 3 * turn, ResetAfter: 3 * turn},
		})
		advance(3 * turn)
		wantAllowed(t, store, hit("a", meter), 10, true, 0)
		wantAllowed(t, store, hit("a", meter), 0, true, 0)
	})
	t.Run("a meter under a set-back clock gives nothing and locks nobody out", func(t *testing.T) {
		store, advance := start(t)
		wantAllowed(t, store, hit("a", meter), 1, true, 0)
		advance(-time.Hour)
		wantAllowed(t, store, hit("a", meter), 1, false, 0)
		advance(turn)
		wantAllowed(t, store, hit("a", meter), 1, true, 0)
	})
	t.Run("a change of rate moves the turns that are owed", func(t *testing.T) {
		store, _ := start(t)
		fast := meter
		fast.Requests = 60
		check(t, store, []limiter.Hit{hit("a", meter), hit("a", fast)}, []limiter.Verdict{
			{Allowed: true, Remaining: 0, ResetAfter: turn},
			{Allowed: false, Remaining: 0, RetryAfter: time.Second, ResetAfter: time.Second},
		})
	})
	t.Run("50 callers of a meter at once are admitted as one", func(t *testing.T) {
		store, _ := start(t)
		if got := admitted(t, store, 50, 4, []limiter.Hit{hit("a", meter)}); got != 1 {
			t.Errorf("%d requests were admitted, not 1", got)
		}
	})
}

// runQueue is about a leaky bucket in which requests wait for their turns, each of which takes as long.
func runQueue(t *testing.T, start Start) {
	turn := 6 * time.Second
	t.Run("a queue says how long each request waits, and refuses whose wait would be too long", func(t *testing.T) {
		store, advance := start(t)
		check(t, store, requests(5, hit("a", queue)), []limiter.Verdict{
			{Allowed: true, Remaining: 3, ResetAfter: 3 * turn},
			{Allowed: true, Remaining: 2, ResetAfter: 2 * turn, Wait: turn},
			{Allowed: true, Remaining: 1, ResetAfter: turn, Wait: 2 * turn},
			{Allowed: true, Remaining: 0, ResetAfter: 4 * time.Second, Wait: 3 * turn},
			{Allowed: false, Remaining: 0, RetryAfter: 4 * time.Second, ResetAfter: 4 * time.Second},
		})
		advance(4*time.Second - time.Microsecond)
		wantAllowed(t, store, hit("a", queue), 1, false, 0)
		advance(time.Microsecond)
		wantWaits(t, store, requests(1, hit("a", queue)), queue.MaxDelay)
	})
	t.Run("a queue lets as many wait as it has room for", func(t *testing.T) {
		store, advance := start(t)
		short := queue
		short.MaxDelay, short.MaxQueue = time.Hour, 2
		check(t, store, requests(4, hit("a", short)), []limiter.Verdict{
			{Allowed: true, Remaining: 2, ResetAfter: 2 * turn},
			{Allowed: true, Remaining: 1, ResetAfter: turn, Wait: turn},
			{Allowed: true, Remaining: 0, ResetAfter: turn, Wait: 2 * turn},
			{Allowed: false, Remaining: 0, RetryAfter: turn, ResetAfter: turn},
		})
		advance(turn)
		wantWaits(t, store, requests(1, hit("a", short)), 2*turn)
	})
	t.Run("a queue in which nobody can wait admits a request at its turn", func(t *testing.T) {
		store, advance := start(t)
		none := queue
		none.MaxDelay = 0
		check(t, store, requests(2, hit("a", none)), []limiter.Verdict{
			{Allowed: true, Remaining: 0, ResetAfter: turn},
			{Allowed: false, Remaining: 0, RetryAfter: turn, ResetAfter: turn},
		})
		advance(turn)
		wantWaits(t, store, requests(1, hit("a", none)), 0)
	})
	t.Run("a queue saves no turns that nobody took", func(t *testing.T) {
		store, advance := start(t)
		wantWaits(t, store, requests(2, hit("a", queue)), 0, turn)
		advance(time.Hour)
		wantWaits(t, store, requests(2, hit("a", queue)), 0, turn)
	})
	t.Run("a cost takes as many turns of a queue, those of a window at most, and none waits for 0", func(t *testing.T) {
		store, _ := start(t)
		costs := requests(5, hit("a", queue))
		costs[0].Cost, costs[1].Cost, costs[2].Cost, costs[4].Cost = 11, 3, 0, 2
		check(t, store, costs, []limiter.Verdict{
			{Allowed: false, Remaining: 4, RetryAfter: limiter.Never, ResetAfter: 4 * turn},
			{Allowed: true, Remaining: 1, ResetAfter: turn},
			{Allowed: true, Remaining: 1, ResetAfter: turn},
			{Allowed: true, Remaining: 0, ResetAfter: 4 * time.Second, Wait: 3 * turn},
			{Allowed: false, Remaining: 0, RetryAfter: 4 * time.Second, ResetAfter: 4 * time.Second},
		})
	})
	t.Run("a queue that another limit refuses, or that is a shadow, holds nobody", func(t *testing.T) {
		store, _ := start(t)
		takeAll(t, store, hit("b", window))
		wantWaits(t, store, requests(1, hit("a", queue)), 0)
		want := []limiter.Verdict{
			{Allowed: true, Remaining: 3, ResetAfter: 3 * turn},
			{Allowed: false, Remaining: 0, RetryAfter: 45 * time.Second, ResetAfter: 45 * time.Second},
		}
		if diff := cmp.Diff(want, take(t, store, hit("a", queue), hit("b", window))); diff != "" {
			t.Errorf("verdicts (-want +got):\n%s", diff)
		}
		want = []limiter.Verdict{{Allowed: true, Remaining: 2, ResetAfter: 2 * turn}}
		if diff := cmp.Diff(want, take(t, store, shadow(hit("a", queue)))); diff != "" {
			t.Errorf("verdicts (-want +got):\n%s", diff)
		}
	})
	t.Run("a queue keeps its slots when its rate is changed, and spaces those after them anew", func(t *testing.T) {
		store, _ := start(t)
		fast := queue
		fast.Requests = 60
		wantWaits(t, store, []limiter.Hit{hit("a", queue), hit("a", queue), hit("a", fast), hit("a", fast), hit("a", queue)},
			0, turn, 2*turn, 2*turn+time.Second, 2*turn+2*time.Second)
	})
	t.Run("a queue goes on from where it was when the clock is set back", func(t *testing.T) {
		store, advance := start(t)
		wantWaits(t, store, requests(2, hit("a", queue)), 0, turn)
		advance(-time.Hour)
		wantWaits(t, store, requests(1, hit("a", queue)), 2*turn)
		advance(turn)
		wantWaits(t, store, requests(1, hit("a", queue)), 2*turn)
	})
	t.Run("50 callers of a queue at once have slots of their own", func(t *testing.T) {
		store, _ := start(t)
		var mu sync.Mutex
		var got []time.Duration
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if v := take(t, store, hit("a", queue))[0]; v.Allowed {
					mu.Lock()
					defer mu.Unlock()
					got = append(got, v.Wait)
				}
			})
		}
		wg.Wait()
		slices.Sort(got)
		if diff := cmp.Diff([]time.Duration{0, turn, 2 * turn, 3 * turn}, got); diff != "" {
			t.Errorf("waits (-want +got):\n%s", diff)
		}
	})
}

// runLeaving is about requests that leave a queue.
func runLeaving(t *testing.T, start Start) {
	turn := 6 * time.Second
	t.Run("the last one in a queue that leaves lets the next one have its slot", func(t *testing.T) {
		store, _ := start(t)
		charged := chargeAll(t, store, requests(3, hit("a", queue)))
		refund(t, store, charged[2])
		two := hit("a", queue)
		two.Cost = 2
		wantWaits(t, store, requests(1, two), 2*turn)
	})
	t.Run("the slot of another that leaves is for one of no higher cost, and for one alone", func(t *testing.T) {
		store, _ := start(t)
		charged := chargeAll(t, store, requests(3, hit("a", queue)))
		refund(t, store, charged[1])
		two := hit("a", queue)
		two.Cost = 2
		wantWaits(t, store, []limiter.Hit{two, hit("a", queue)}, 3*turn, turn)
		wantAllowed(t, store, hit("a", queue), 1, false, 0)
	})
	t.Run("a queue that all leave is as new", func(t *testing.T) {
		store, _ := start(t)
		charged := chargeAll(t, store, requests(4, hit("a", queue)))
		refund(t, store, charged[1], charged[3], charged[0], charged[2])
		wantWaits(t, store, requests(4, hit("a", queue)), 0, turn, 2*turn, 3*turn)
	})
	t.Run("who leaves after its turn gives nothing back", func(t *testing.T) {
		store, advance := start(t)
		charged := chargeAll(t, store, requests(3, hit("a", queue)))
		advance(turn + time.Second)
		refund(t, store, charged[1])
		wantWaits(t, store, requests(1, hit("a", queue)), 2*turn-time.Second)
	})
}

// chargeAll charges one hit after the other.
func chargeAll(t *testing.T, store limiter.Store, hits []limiter.Hit) []limiter.Charge {
	t.Helper()
	var charged []limiter.Charge
	for _, h := range hits {
		charged = append(charged, charge(t, store, h))
	}
	return charged
}

// wantWaits has requests admitted, one after the other, of which each has to wait so long.
func wantWaits(t *testing.T, store limiter.Store, hits []limiter.Hit, want ...time.Duration) {
	t.Helper()
	var got []time.Duration
	for _, h := range hits {
		v := take(t, store, h)[0]
		if !v.Allowed {
			t.Errorf("a request got %+v", v)
		}
		got = append(got, v.Wait)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("waits (-want +got):\n%s", diff)
	}
}

// runCosts is what requests take from a limit whose capacity is 3.
func runCosts(t *testing.T, start Start, l limiter.Limit) {
	t.Run("a cost takes as much at once", func(t *testing.T) {
		store, _ := start(t)
		wantAllowed(t, store, hit("a", l), 2, true, 1)
		wantAllowed(t, store, hit("a", l), 2, false, 1)
		wantAllowed(t, store, hit("a", l), 1, true, 0)
	})
	t.Run("a cost of 0 takes nothing and always fits", func(t *testing.T) {
		store, _ := start(t)
		wantAllowed(t, store, hit("a", l), 0, true, 3)
		wantAllowed(t, store, hit("a", l), 3, true, 0)
		wantAllowed(t, store, hit("a", l), 0, true, 0)
	})
	t.Run("a cost above the capacity never fits", func(t *testing.T) {
		store, _ := start(t)
		for _, cost := range []int64{4, 1 << 53, 1<<63 - 1} {
			h := hit("a", l)
			h.Cost = cost
			if v := take(t, store, h)[0]; v.Allowed || v.RetryAfter != limiter.Never || v.Remaining != 3 {
				t.Errorf("cost %d got %+v", cost, v)
			}
		}
		wantAllowed(t, store, hit("a", l), 3, true, 0)
	})
	t.Run("a denied request charges nothing", func(t *testing.T) {
		store, advance := start(t)
		takeAll(t, store, hit("a", l))
		before := take(t, store, hit("a", l))
		for range 50 {
			take(t, store, hit("a", l))
		}
		if diff := cmp.Diff(before, take(t, store, hit("a", l))); diff != "" {
			t.Errorf("after 50 denials (-before +after):\n%s", diff)
		}
		advance(before[0].RetryAfter)
		if v := take(t, store, hit("a", l))[0]; !v.Allowed {
			t.Errorf("after %s the request got %+v", before[0].RetryAfter, v)
		}
	})
	t.Run("keys don't share a count", func(t *testing.T) {
		store, _ := start(t)
		takeAll(t, store, hit("a", l))
		wantAllowed(t, store, hit("b", l), 1, true, 2)
	})
	t.Run("50 callers at once are admitted as often as one", func(t *testing.T) {
		store, _ := start(t)
		l.Requests, l.Window, l.Burst = 100, 24*time.Hour, 100
		if got := admitted(t, store, 50, 10, []limiter.Hit{hit("a", l)}); got != 100 {
			t.Errorf("%d requests were admitted, not 100", got)
		}
	})
}

// runClock is what the clock does to a limit whose capacity is 3.
func runClock(t *testing.T, start Start, l limiter.Limit) {
	t.Run("who waits for as long as told is admitted, and who is quicker is not", func(t *testing.T) {
		store, advance := start(t)
		takeAll(t, store, hit("a", l))
		for range 20 {
			advance(777_777 * time.Microsecond)
			refused := take(t, store, hit("a", l))[0]
			if refused.Allowed {
				continue
			}
			advance(refused.RetryAfter - time.Millisecond)
			if v := take(t, store, hit("a", l))[0]; v.Allowed || v.RetryAfter != time.Millisecond {
				t.Fatalf("1ms before its time the request got %+v", v)
			}
			advance(time.Millisecond)
			if v := take(t, store, hit("a", l))[0]; !v.Allowed {
				t.Fatalf("after %s the request got %+v", refused.RetryAfter, v)
			}
		}
	})
	t.Run("a counter that was left alone for long is as new", func(t *testing.T) {
		store, advance := start(t)
		takeAll(t, store, hit("a", l))
		advance(24 * time.Hour)
		wantAllowed(t, store, hit("a", l), 1, true, 2)
	})
	t.Run("a clock that is set back gives nothing and locks nobody out", func(t *testing.T) {
		store, advance := start(t)
		takeAll(t, store, hit("a", l))
		before := take(t, store, hit("a", l))[0]
		advance(-time.Hour)
		refused := take(t, store, hit("a", l))[0]
		if diff := cmp.Diff(before, refused); diff != "" {
			t.Fatalf("an hour back the verdict differs (-before +after):\n%s", diff)
		}
		advance(refused.RetryAfter)
		if v := take(t, store, hit("a", l))[0]; !v.Allowed {
			t.Errorf("after %s the request got %+v", refused.RetryAfter, v)
		}
	})
	t.Run("a clock that is set back a little doesn't count a window twice", func(t *testing.T) {
		store, advance := start(t)
		advance(45 * time.Second)
		takeAll(t, store, hit("a", l))
		advance(-time.Microsecond)
		wantAllowed(t, store, hit("a", l), 1, false, 0)
		advance(time.Microsecond)
		wantAllowed(t, store, hit("a", l), 1, false, 0)
	})
}

// runTogether is about the hits of one request.
func runTogether(t *testing.T, start Start) {
	t.Run("one refusal charges none of a request's limits", func(t *testing.T) {
		store, _ := start(t)
		takeAll(t, store, hit("b", window))
		want := []limiter.Verdict{
			{Allowed: true, Remaining: 3, ResetAfter: 18 * time.Second},
			{Allowed: false, Remaining: 0, RetryAfter: 45 * time.Second, ResetAfter: 45 * time.Second},
			{Allowed: true, Remaining: 3, ResetAfter: 45 * time.Second},
		}
		for range 5 {
			got := take(t, store, hit("a", bucket), hit("b", window), hit("c", window))
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("verdicts (-want +got):\n%s", diff)
			}
		}
	})
	t.Run("every limit of an admitted request is charged", func(t *testing.T) {
		store, _ := start(t)
		want := []limiter.Verdict{
			{Allowed: true, Remaining: 2, ResetAfter: 12 * time.Second},
			{Allowed: true, Remaining: 2, ResetAfter: 45 * time.Second},
		}
		if diff := cmp.Diff(want, take(t, store, hit("a", bucket), hit("b", window))); diff != "" {
			t.Errorf("verdicts (-want +got):\n%s", diff)
		}
	})
	t.Run("50 callers of crossing limits are admitted as often as the strictest allows", func(t *testing.T) {
		store, _ := start(t)
		wide, narrow := window, bucket
		wide.Requests, narrow.Window, narrow.Burst = 1000, 24*time.Hour, 60
		there := []limiter.Hit{hit("wide", wide), hit("narrow", narrow)}
		back := []limiter.Hit{there[1], there[0]}
		if got := admitted(t, store, 50, 4, there, back); got != 60 {
			t.Errorf("%d requests were admitted, not 60", got)
		}
		wantAllowed(t, store, hit("wide", wide), 0, true, 940)
	})
}

// runShadow is about shadow hits beside others.
func runShadow(t *testing.T, start Start) {
	t.Run("a shadow limit refuses nobody and is charged by itself", func(t *testing.T) {
		store, _ := start(t)
		full, free := shadow(hit("s", window)), shadow(hit("t", bucket))
		takeAll(t, store, hit("s", window))
		want := []limiter.Verdict{
			{Allowed: false, Remaining: 0, RetryAfter: 45 * time.Second, ResetAfter: 45 * time.Second},
			{Allowed: true, Remaining: 2, ResetAfter: 45 * time.Second},
			{Allowed: true, Remaining: 2, ResetAfter: 12 * time.Second},
		}
		if diff := cmp.Diff(want, take(t, store, full, hit("a", window), free)); diff != "" {
			t.Errorf("verdicts (-want +got):\n%s", diff)
		}
	})
	t.Run("a shadow limit isn't asked about a refused request", func(t *testing.T) {
		store, _ := start(t)
		takeAll(t, store, hit("a", window))
		want := []limiter.Verdict{
			{},
			{Allowed: false, Remaining: 0, RetryAfter: 45 * time.Second, ResetAfter: 45 * time.Second},
		}
		if diff := cmp.Diff(want, take(t, store, shadow(hit("s", bucket)), hit("a", window))); diff != "" {
			t.Errorf("verdicts (-want +got):\n%s", diff)
		}
		wantAllowed(t, store, hit("s", bucket), 1, true, 2)
	})
}

// runInvalid is about requests that get no verdict.
func runInvalid(t *testing.T, start Start) {
	tests := map[string]func(*limiter.Hit){
		"a negative cost is invalid":        func(h *limiter.Hit) { h.Cost = -1 },
		"an unknown algorithm is invalid":   func(h *limiter.Hit) { h.Limit.Algorithm = "Abacus" },
		"a limit of no requests is invalid": func(h *limiter.Hit) { h.Limit.Requests = 0 },
		"a window of 0 is invalid":          func(h *limiter.Hit) { h.Limit.Window = 0 },
		"a calendar of no known zone is invalid": func(h *limiter.Hit) {
			h.Limit = calendar
			h.Limit.Calendar.TimeZone = "Mars/Phobos"
		},
		"a token bucket without burst is invalid": func(h *limiter.Hit) { h.Limit.Burst = 0 },
		"as much as fits of two is invalid":       func(h *limiter.Hit) { h.UpTo = true },
		"a key that is hit twice is invalid":      func(h *limiter.Hit) { h.Key = hit("a", bucket).Key },
		"a hit without a key is invalid":          func(h *limiter.Hit) { h.Key = "" },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			store, _ := start(t)
			bad := hit("b", bucket)
			spoil(&bad)
			if _, err := store.Take(t.Context(), []limiter.Hit{hit("a", bucket), bad}); !errors.Is(err, limiter.ErrInvalid) {
				t.Errorf("the error is %v, not ErrInvalid", err)
			}
			wantAllowed(t, store, hit("a", bucket), 1, true, 2)
		})
	}
	for name, spoil := range map[string]func(*limiter.Hit){
		"as much as fits of a shadow hit is invalid":  func(h *limiter.Hit) { h.Shadow = true },
		"as much as fits of permits is invalid":       func(h *limiter.Hit) { h.Limit = permits },
		"as many slots of a queue as fit are invalid": func(h *limiter.Hit) { h.Limit = queue },
	} {
		t.Run(name, func(t *testing.T) {
			store, _ := start(t)
			bad := hit("a", bucket)
			bad.UpTo = true
			spoil(&bad)
			if _, err := store.Take(t.Context(), []limiter.Hit{bad}); !errors.Is(err, limiter.ErrInvalid) {
				t.Errorf("the error is %v, not ErrInvalid", err)
			}
		})
	}
	t.Run("a request without hits has no verdicts", func(t *testing.T) {
		store, _ := start(t)
		if v := take(t, store); len(v) != 0 {
			t.Errorf("got %+v", v)
		}
	})
	t.Run("a context that is done charges nothing", func(t *testing.T) {
		store, _ := start(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := store.Take(ctx, []limiter.Hit{hit("a", bucket)}); !errors.Is(err, context.Canceled) {
			t.Errorf("the error is %v, not context.Canceled", err)
		}
		wantAllowed(t, store, hit("a", bucket), 1, true, 2)
	})
}

func hit(key string, l limiter.Limit) limiter.Hit {
	id := limiter.LimitID{Namespace: "shop", Policy: "checkout", Limit: string(l.Algorithm)}
	return limiter.Hit{Key: "weir:test:{shop/0}:" + key, Limit: l, Cost: 1, ID: id}
}

func shadow(h limiter.Hit) limiter.Hit {
	h.Shadow = true
	return h
}

func requests(n int, h limiter.Hit) []limiter.Hit {
	hits := make([]limiter.Hit, n)
	for i := range hits {
		hits[i] = h
	}
	return hits
}

// take decides one request.
func take(t *testing.T, store limiter.Store, hits ...limiter.Hit) []limiter.Verdict {
	t.Helper()
	verdicts, err := store.Take(t.Context(), hits)
	if err != nil {
		t.Error(err)
		return make([]limiter.Verdict, len(hits))
	}
	for i, h := range hits {
		if v := verdicts[i]; !v.Allowed && !h.Shadow && v.RetryAfter == 0 {
			t.Errorf("a refused hit was told no wait: %+v", v)
		}
		verdicts[i].Receipt = 0 // What is in it is the store's own business.
	}
	return verdicts
}

// charge takes one of a limit, and gives what refunds it.
func charge(t *testing.T, store limiter.Store, h limiter.Hit) limiter.Charge {
	t.Helper()
	verdicts, err := store.Take(t.Context(), []limiter.Hit{h})
	if err != nil {
		t.Fatal(err)
	}
	if !verdicts[0].Allowed {
		t.Fatalf("the charge got %+v", verdicts[0])
	}
	return limiter.Charge{Hit: h, Receipt: verdicts[0].Receipt}
}

func refund(t *testing.T, store limiter.Store, charges ...limiter.Charge) {
	t.Helper()
	if err := store.Refund(t.Context(), charges); err != nil {
		t.Error(err)
	}
}

func renew(t *testing.T, store limiter.Store, charges ...limiter.Charge) {
	t.Helper()
	if err := store.Renew(t.Context(), charges); err != nil {
		t.Error(err)
	}
}

// takeAll leaves nothing of a limit whose capacity is 3.
func takeAll(t *testing.T, store limiter.Store, h limiter.Hit) {
	t.Helper()
	wantAllowed(t, store, h, 3, true, 0)
}

// check decides a request for each hit, one after the other.
func check(t *testing.T, store limiter.Store, hits []limiter.Hit, want []limiter.Verdict) {
	t.Helper()
	var got []limiter.Verdict
	for _, h := range hits {
		got = append(got, take(t, store, h)...)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("verdicts (-want +got):\n%s", diff)
	}
}

func wantAllowed(t *testing.T, store limiter.Store, h limiter.Hit, cost int64, allowed bool, remaining int64) {
	t.Helper()
	h.Cost = cost
	if v := take(t, store, h)[0]; v.Allowed != allowed || v.Remaining != remaining {
		t.Errorf("a cost of %d got %+v, want allowed %t and remaining %d", cost, v, allowed, remaining)
	}
}

// admitted counts how many requests of so many callers are. The callers differ in what they request.
func admitted(t *testing.T, store limiter.Store, callers, each int, requests ...[]limiter.Hit) int64 {
	t.Helper()
	var sum atomic.Int64
	var wg sync.WaitGroup
	for caller := range callers {
		hits := requests[caller%len(requests)]
		wg.Go(func() {
			for range each {
				verdicts := take(t, store, hits...)
				if !slices.ContainsFunc(verdicts, func(v limiter.Verdict) bool { return !v.Allowed }) {
					sum.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return sum.Load()
}

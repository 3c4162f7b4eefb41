// SPDX-License-Identifier: Apache-2.0

package strategy_test

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

var epoch = time.Date(2026, time.January, 1, 0, 0, 15, 0, time.UTC).UnixMicro()

// charge is a cost that was admitted.
type charge struct{ at, cost int64 }

// decide decides a request with one hit.
func decide(e *strategy.Evaluator, now int64, h limiter.Hit, c *strategy.Counter) limiter.Verdict {
	verdicts := make([]limiter.Verdict, 1)
	e.Decide(now, []limiter.Hit{h}, []*strategy.Counter{c}, verdicts)
	return verdicts[0]
}

// simulate decides random requests on one counter, at random times that are back by up to maxBack, and gives what
// was admitted, at the latest time so far.
func simulate(random *rand.Rand, l limiter.Limit, requests int, maxBack int64) []charge {
	var e strategy.Evaluator
	var c strategy.Counter
	var admitted []charge
	now, latest := epoch, epoch
	for range requests {
		cost := 1 + random.Int64N(1+l.Capacity()/3)
		v := decide(&e, now, limiter.Hit{Key: "a", Limit: l, Cost: cost}, &c)
		if v.Allowed {
			admitted = append(admitted, charge{latest, cost})
		}
		switch soon := v.RetryAfter.Microseconds(); random.IntN(8) {
		case 0, 1, 2:
			now += soon
		case 3:
			now += random.Int64N(1 + l.Window.Microseconds()/l.Requests)
		case 4:
			now += max(0, soon-1)
		case 5:
			now = latest - random.Int64N(1+maxBack)
		}
		latest = max(latest, now)
	}
	return admitted
}

func TestTokenBucketBound(t *testing.T) {
	t.Run("no interval admits more than burst + rate * t", func(t *testing.T) {
		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 0))
		for range 200 {
			l := limiter.Limit{
				Algorithm: limiter.TokenBucket,
				Requests:  1 + random.Int64N(1000),
				Window:    time.Duration(10_000+random.Int64N(10_000_000)) * time.Microsecond,
				Burst:     1 + random.Int64N(50),
			}
			if excess := worst(l, simulate(random, l, 500, 0)); excess > l.Window.Microseconds()/100_000 {
				t.Fatalf("seed %d: %+v admits %d/%d too much", seed, l, excess, l.Window.Microseconds())
			}
		}
	})
	t.Run("whoever takes all that it gets, gets burst + rate * t", func(t *testing.T) {
		l := limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 7, Window: time.Second, Burst: 20}
		var e strategy.Evaluator
		var c strategy.Counter
		total := 0
		for now := epoch; now <= epoch+100_000_000; now += 1000 {
			for decide(&e, now, limiter.Hit{Key: "a", Limit: l, Cost: 1}, &c).Allowed {
				total++
			}
		}
		if total != 20+7*100 {
			t.Errorf("100 seconds admitted %d, not 720", total)
		}
	})
}

// worst gives, in tokens times the window, by how much the interval that admitted the most is above burst +
// rate * t.
func worst(l limiter.Limit, admitted []charge) int64 {
	window := l.Window.Microseconds()
	var sum, excess int64
	// lowest is the least, over all starts, of what was admitted before minus what the rate gave by then.
	lowest := int64(0)
	for i, c := range admitted {
		given := (c.at - epoch) * l.Requests
		if before := sum*window - given; i == 0 || before < lowest {
			lowest = before
		}
		sum += c.cost
		excess = max(excess, sum*window-given-lowest-l.Burst*window)
	}
	return excess
}

func TestFixedWindowBound(t *testing.T) {
	for name, back := range map[string]int64{
		"no window admits more than its requests":                                 0,
		"no window admits more than its requests when the clock is back a little": 1_000_000,
	} {
		t.Run(name, func(t *testing.T) {
			seed := rand.Uint64()
			random := rand.New(rand.NewPCG(seed, 0))
			for range 200 {
				l := limiter.Limit{
					Algorithm: limiter.FixedWindow,
					Requests:  1 + random.Int64N(50),
					Window:    time.Duration(10_000+random.Int64N(10_000_000)) * time.Microsecond,
				}
				taken := map[int64]int64{}
				for _, c := range simulate(random, l, 500, back) {
					id := c.at / l.Window.Microseconds()
					if taken[id] += c.cost; taken[id] > l.Requests {
						t.Fatalf("seed %d: a window of %+v admits %d", seed, l, taken[id])
					}
				}
			}
		})
	}
	t.Run("whoever takes all that it gets, gets the requests of each window", func(t *testing.T) {
		l := limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 7, Window: time.Second}
		var e strategy.Evaluator
		var c strategy.Counter
		total := 0
		for now := epoch; now < epoch+100_000_000; now += 1000 {
			for decide(&e, now, limiter.Hit{Key: "a", Limit: l, Cost: 1}, &c).Allowed {
				total++
			}
		}
		if total != 700 {
			t.Errorf("100 windows admitted %d, not 700", total)
		}
	})
}

func TestNames(t *testing.T) {
	t.Run("every algorithm has a strategy", func(t *testing.T) {
		want := []limiter.Algorithm{
			limiter.CalendarWindow, limiter.Concurrency, limiter.FixedWindow, limiter.LeakyBucketMeter, limiter.LeakyBucketQueue,
			limiter.SlidingWindowApproximate, limiter.SlidingWindowLog, limiter.SlidingWindowRing, limiter.TokenBucket,
		}
		if diff := cmp.Diff(want, strategy.Names()); diff != "" {
			t.Errorf("names (-want +got):\n%s", diff)
		}
	})
	t.Run("an unknown algorithm has none", func(t *testing.T) {
		if _, ok := strategy.For("Abacus"); ok {
			t.Error("there is a strategy")
		}
	})
}

func TestValidate(t *testing.T) {
	bucket := limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 1, Window: 10 * time.Millisecond, Burst: 1}
	window := limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 1_000_000_000, Window: 8784 * time.Hour}
	calendar := limiter.Limit{
		Algorithm: limiter.CalendarWindow, Requests: 1, Calendar: limiter.Calendar{Unit: limiter.Day, TimeZone: "Europe/Berlin"},
	}
	queue := limiter.Limit{
		Algorithm: limiter.LeakyBucketQueue, Requests: 1, Window: time.Second, MaxDelay: 8784 * time.Hour, MaxQueue: 1_000_000_000,
	}
	log := limiter.Limit{Algorithm: limiter.SlidingWindowLog, Requests: 10_000, Window: 8784 * time.Hour}
	permits := limiter.Limit{Algorithm: limiter.Concurrency, Requests: 10_000, Window: 10 * time.Millisecond}
	const noZone = "timeZone must be a name of the IANA database, like Europe/Berlin, not "
	tests := map[string]struct {
		limit  limiter.Limit
		change func(*limiter.Limit)
		want   string
	}{
		"the least of a bucket":  {bucket, func(*limiter.Limit) {}, ""},
		"the most of a window":   {window, func(*limiter.Limit) {}, ""},
		"no requests":            {window, func(l *limiter.Limit) { l.Requests = 0 }, "requests must be at least 1, not 0"},
		"too many requests":      {bucket, func(l *limiter.Limit) { l.Requests++; l.Requests *= 1e9 }, "requests must be at most 1000000000, not 2000000000"},
		"too short a window":     {bucket, func(l *limiter.Limit) { l.Window-- }, "window must be at least 10ms, not 9.999999ms"},
		"too long a window":      {window, func(l *limiter.Limit) { l.Window += time.Second }, "window must be at most 8784h, not 8784h0m1s"},
		"a part of microseconds": {bucket, func(l *limiter.Limit) { l.Window++ }, "window must be whole microseconds, not 10.000001ms"},
		"no burst":               {bucket, func(l *limiter.Limit) { l.Burst = 0 }, "burst must be at least 1, not 0"},
		"a calendar":             {calendar, func(*limiter.Limit) {}, ""},
		"an empty calendar":      {calendar, func(l *limiter.Limit) { l.Requests = 0 }, "requests must be at least 1, not 0"},
		"no unit":                {calendar, func(l *limiter.Limit) { l.Calendar.Unit = "" }, `unit must be one of Day, Week, Month, Year, not ""`},
		"no zone":                {calendar, func(l *limiter.Limit) { l.Calendar.TimeZone = "" }, noZone + `""`},
		"an unknown zone":        {calendar, func(l *limiter.Limit) { l.Calendar.TimeZone = "Mars/Phobos" }, noZone + `"Mars/Phobos"`},
		"a zone of the machine":  {calendar, func(l *limiter.Limit) { l.Calendar.TimeZone = "Local" }, noZone + `"Local"`},
		"the most of a queue":    {queue, func(*limiter.Limit) {}, ""},
		"a queue without bounds": {queue, func(l *limiter.Limit) { l.MaxDelay, l.MaxQueue = 0, 0 }, ""},
		"a negative delay":       {queue, func(l *limiter.Limit) { l.MaxDelay = -time.Second }, "maxDelay must be at least 0s, not -1s"},
		"too long a delay":       {queue, func(l *limiter.Limit) { l.MaxDelay++ }, "maxDelay must be at most 8784h, not 8784h0m0.000000001s"},
		"a part of a delay":      {queue, func(l *limiter.Limit) { l.MaxDelay = 1500 }, "maxDelay must be whole microseconds, not 1.5µs"},
		"a negative queue":       {queue, func(l *limiter.Limit) { l.MaxQueue = -1 }, "maxQueue must be at least 0, not -1"},
		"too long a queue":       {queue, func(l *limiter.Limit) { l.MaxQueue++ }, "maxQueue must be at most 1000000000, not 1000000001"},
		"a queue of no requests": {queue, func(l *limiter.Limit) { l.Requests = 0 }, "requests must be at least 1, not 0"},
		"the most of a log":      {log, func(*limiter.Limit) {}, ""},
		"an endless log":         {log, func(l *limiter.Limit) { l.Requests++ }, "requests must be at most 10000, not 10001"},
		"an empty log":           {log, func(l *limiter.Limit) { l.Requests = 0 }, "requests must be at least 1, not 0"},
		"the most of permits":    {permits, func(*limiter.Limit) {}, ""},
		"endless permits":        {permits, func(l *limiter.Limit) { l.Requests++ }, "maxInFlight must be at most 10000, not 10001"},
		"no permits":             {permits, func(l *limiter.Limit) { l.Requests = 0 }, "maxInFlight must be at least 1, not 0"},
		"permits for no time":    {permits, func(l *limiter.Limit) { l.Window = 0 }, "window must be at least 10ms, not 0s"},
		"too much of a burst":    {bucket, func(l *limiter.Limit) { l.Burst = 1e9 + 1 }, "burst must be at most 1000000000, not 1000000001"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			test.change(&test.limit)
			s, _ := strategy.For(test.limit.Algorithm)
			got := ""
			if err := s.Validate(&test.limit); err != nil {
				got = err.Error()
			}
			if got != test.want {
				t.Errorf("the error is %q, not %q", got, test.want)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	t.Run("the error names the limit and what is wrong", func(t *testing.T) {
		err := strategy.Check([]limiter.Hit{{
			Key:   "a",
			Limit: limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 1, Window: time.Second},
			Cost:  -2,
			ID:    limiter.LimitID{Namespace: "shop", Policy: "checkout", Limit: "login"},
		}})
		want := `invalid hit of limit "login" of shop/checkout: cost must be at least 0, not -2`
		if !errors.Is(err, limiter.ErrInvalid) || err.Error() != want {
			t.Errorf("the error is %q, not %q", err, want)
		}
	})
}

// An approximate window doesn't know when it was last asked, and so not how much of the previous one still counted.
func TestApproximateWindowOnAClockThatIsSetBack(t *testing.T) {
	l := limiter.Limit{Algorithm: limiter.SlidingWindowApproximate, Requests: 20, Window: 700 * time.Millisecond}
	window := l.Window.Microseconds()
	h := limiter.Hit{Key: "a", Limit: l, Cost: 1}
	longest := window + window/l.Requests
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 0))
		var e strategy.Evaluator
		var c strategy.Counter
		now := epoch + random.Int64N(window)
		for range 200 + random.Int64N(100) {
			now += random.Int64N(20_000)
			decide(&e, now, h, &c)
		}
		now -= 2_000_000 + random.Int64N(300_000_000)
		for back := now; !decide(&e, now, h, &c).Allowed; now += 1000 {
			if now-back > longest {
				t.Fatalf("seed %d: refused for more than %d us after the clock was set back", seed, longest)
			}
		}
	}
}

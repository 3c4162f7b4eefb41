// SPDX-License-Identifier: Apache-2.0

package strategy_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

func TestLife(t *testing.T) {
	for _, algorithm := range strategy.Names() {
		t.Run("no counter outlives the life of its limit: "+string(algorithm), func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				l := limits(rt, algorithm)
				if algorithm == limiter.TokenBucket {
					l.Burst = rapid.Int64Range(1, 3*l.Requests).Draw(rt, "burst")
				}
				var e strategy.Evaluator
				var c strategy.Counter
				now, life := epoch, strategy.Life(&l).Microseconds()
				for range rapid.IntRange(1, 50).Draw(rt, "number") {
					now += rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(-900_000, 2*l.Window.Microseconds())).Draw(rt, "step")
					cost := rapid.Int64Range(1, min(l.Capacity(), 65_535)).Draw(rt, "cost")
					decide(&e, now, limiter.Hit{Key: "a", Limit: l, Cost: cost}, &c)
					if c.Expires > now+life {
						rt.Fatalf("a counter of %+v lives for %d us, and not %d", l, c.Expires-now, life)
					}
				}
			})
		})
	}
	t.Run("it is the longest that Redis keeps a key", func(t *testing.T) {
		for window, want := range map[time.Duration]time.Duration{
			10 * time.Millisecond: 4012500 * time.Microsecond,
			time.Minute:           79 * time.Second,
			24 * time.Hour:        24*time.Hour + 64*time.Second,
		} {
			l := limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 1, Window: window}
			if got := strategy.Life(&l); got != want {
				t.Errorf("of a window of %s it is %s, not %s", window, got, want)
			}
		}
	})
	t.Run("of a bucket it is the time in which it fills", func(t *testing.T) {
		l := limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 100, Window: time.Minute, Burst: 200}
		if got, want := strategy.Life(&l), 2*time.Minute+30*time.Second+4*time.Second; got != want {
			t.Errorf("it is %s, not %s", got, want)
		}
	})
}

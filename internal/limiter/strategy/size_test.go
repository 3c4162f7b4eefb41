// SPDX-License-Identifier: Apache-2.0

package strategy_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

func TestMaxState(t *testing.T) {
	for _, algorithm := range strategy.Names() {
		t.Run(fmt.Sprint("no state of a ", algorithm, " is longer"), func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				l := limits(rt, algorithm)
				l.Burst = l.Requests
				var e strategy.Evaluator
				var c strategy.Counter
				var charges []limiter.Verdict
				now := epoch
				for range rapid.IntRange(1, 150).Draw(rt, "steps") {
					now += rapid.OneOf(
						rapid.Just(int64(0)),
						rapid.Int64Range(0, l.Window.Microseconds()/l.Requests),
						rapid.Int64Range(0, slot(l)),
						rapid.Int64Range(-3_000_000, 0),
					).Draw(rt, "step")
					hit := limiter.Hit{Key: "a", Limit: l, Cost: 1}
					if n := len(charges); n > 0 && rapid.IntRange(0, 3).Draw(rt, "refund") == 0 {
						e.Amend(now, &hit, &c, charges[rapid.IntRange(0, n-1).Draw(rt, "charge")].Receipt, false)
					} else if v := decide(&e, now, hit, &c); v.Allowed {
						charges = append(charges, v)
					}
					if most := strategy.MaxState(&l); len(c.State) > most {
						rt.Fatalf("it has %d bytes, more than %d", len(c.State), most)
					}
				}
			})
		})
	}
	t.Run("a full log and full permits come as near to it as a block", func(t *testing.T) {
		for algorithm, block := range map[limiter.Algorithm]int{limiter.SlidingWindowLog: 7 * 8, limiter.Concurrency: 0} {
			l := limiter.Limit{Algorithm: algorithm, Requests: 100, Window: 1e9}
			var e strategy.Evaluator
			var c strategy.Counter
			for range l.Requests {
				decide(&e, epoch, limiter.Hit{Key: "a", Limit: l, Cost: 1}, &c)
			}
			if most := strategy.MaxState(&l); len(c.State) < most-block {
				t.Errorf("a full %s has %d bytes, less than %d", algorithm, len(c.State), most-block)
			}
		}
	})
}

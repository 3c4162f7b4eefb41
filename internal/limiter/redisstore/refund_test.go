// SPDX-License-Identifier: Apache-2.0

package redisstore_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
	"github.com/weir-dev/weir/internal/redistest"
)

// TestRefundsAlike runs random charges and refunds through the script in Redis and through the Go.
func TestRefundsAlike(t *testing.T) {
	client := redistest.Start(t).Client(t)
	for _, algorithm := range strategy.Names() {
		t.Run(fmt.Sprint(algorithm, " refunds alike in Redis and in Go"), func(t *testing.T) {
			if diff := newLedger(t, client, onClock, algorithm).diff(times(3_000, 300_000)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestBrokenRefundsAreFound says that the comparison would find an error.
func TestBrokenRefundsAreFound(t *testing.T) {
	client := redistest.Start(t).Client(t)
	for name, fault := range map[string]struct {
		right, wrong string
		of           limiter.Algorithm
	}{
		"a refund that is lost":                             {"if next then store(", "if false then store(", limiter.FixedWindow},
		"a bucket that gains from a refund":                 {"max(0, cost - lost)", "cost", limiter.TokenBucket},
		"a bucket that fills above its burst":               {"min(burst, level + max", "(level + max", limiter.TokenBucket},
		"a window that refunds what another window took":    {"finish <= now or finish ~= receipt", "finish <= now", limiter.FixedWindow},
		"a ring that refunds in its newest slot":            {"30 + 4 * (receipt - first)", "#state - 4", limiter.SlidingWindowRing},
		"a ring that forgets the sum":                       {"first, total - back", "first, total", limiter.SlidingWindowRing},
		"an approximation that never refunds the past":      {"receipt + length == finish", "false", limiter.SlidingWindowApproximate},
		"an approximation that keeps what it should refund": {"max(0, current - cost)", "current", limiter.SlidingWindowApproximate},
	} {
		t.Run(name+" is found", func(t *testing.T) {
			if !strings.Contains(strategy.Script, fault.right) {
				t.Fatalf("the script has no %q", fault.right)
			}
			broken := func(script string) string { return onClock(strings.ReplaceAll(script, fault.right, fault.wrong)) }
			if newLedger(t, client, broken, fault.of).diff(20_000) == "" {
				t.Error("20,000 steps were alike")
			}
		})
	}
}

// ledger charges one counter, on both sides, and refunds.
type ledger struct {
	t       *testing.T
	history *history
	client  *redis.Client
	scripts deployed
	counter strategy.Counter
	charges []limiter.Charge
}

func newLedger(t *testing.T, client *redis.Client, change func(script string) string, algorithm limiter.Algorithm) *ledger {
	t.Helper()
	if err := client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	return &ledger{t: t, history: newHistory(rand.Uint64(), algorithm), client: client, scripts: deploy(t, client, change)}
}

// diff makes so many steps, and gives the first after which the sides differ.
func (l *ledger) diff(steps int) string {
	for step := range steps {
		h := l.history
		h.advance()
		if h.random.IntN(50) == 0 {
			h.change()
		}
		if err := l.client.Set(l.t.Context(), "clock", h.now, 0).Err(); err != nil {
			l.t.Fatal(err)
		}
		var err error
		if len(l.charges) > 0 && h.random.IntN(3) == 0 {
			err = l.refund()
		} else {
			err = l.take()
		}
		if err != nil {
			return err.Error()
		}
		if diff := l.compare(); diff != "" {
			return fmt.Sprintf("seed %d, step %d, at %d, %+v (-Go +Redis):\n%s", h.seed, step, h.now, h.limit, diff)
		}
	}
	return ""
}

func (l *ledger) call(r strategy.Request) ([][]limiter.Verdict, error) {
	var c strategy.Call
	c.Reset(l.history.now)
	c.Add(r)
	reply, err := l.scripts.run(l.t.Context(), l.client, &c).Slice()
	if err != nil {
		return nil, err
	}
	return c.Verdicts(reply)
}

func (l *ledger) take() error {
	limit := l.history.limit
	limit.Algorithm = l.history.algorithms[0]
	hits := []limiter.Hit{{Key: "a", Limit: limit, Cost: l.history.cost()}}
	told, err := l.call(strategy.Request{Hits: hits})
	if err != nil {
		return err
	}
	verdicts := make([]limiter.Verdict, 1)
	l.history.evaluator.Decide(l.history.now, hits, []*strategy.Counter{&l.counter}, verdicts)
	if diff := cmp.Diff([][]limiter.Verdict{verdicts}, told); diff != "" {
		return fmt.Errorf("verdicts differ:\n%s", diff)
	}
	v := verdicts[0]
	if v.Allowed && hits[0].Cost > 0 {
		l.charges = append(l.charges, limiter.Charge{Hit: hits[0], Receipt: v.Receipt})
	}
	l.history.soon = []int64{v.RetryAfter.Microseconds(), v.ResetAfter.Microseconds()}
	return nil
}

// refund refunds any charge: most often the last one, but an old one too.
func (l *ledger) refund() error {
	i := len(l.charges) - 1
	if l.history.random.IntN(3) == 0 {
		i = l.history.random.IntN(len(l.charges))
	}
	c := l.charges[i]
	l.charges = append(l.charges[:i], l.charges[i+1:]...)
	l.history.evaluator.Amend(l.history.now, &c.Hit, &l.counter, c.Receipt, false)
	_, err := l.call(strategy.Request{Hits: []limiter.Hit{c.Hit}, Receipts: []int64{c.Receipt}})
	return err
}

// compare gives how the counters differ. Neither forgets: what is long past must be refunded to nobody.
func (l *ledger) compare() string {
	value, _ := l.client.Get(l.t.Context(), "a").Result()
	if value == "" && len(l.counter.State) == 0 {
		return ""
	}
	state, expiry := cut(value)
	if l.counter.Expires != math.MaxInt64 {
		if expiry*1_000_000 < l.counter.Expires {
			return fmt.Sprintf("it counts until %d us, and expires at %d s", l.counter.Expires, expiry)
		}
		l.counter.Expires = math.MaxInt64
	}
	return cmp.Diff(string(l.counter.Layout)+string(l.counter.State), state)
}

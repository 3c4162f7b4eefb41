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

// TestGivingBackAlike runs random loans and returns through the scripts in Redis and through the Go.
func TestGivingBackAlike(t *testing.T) {
	client := redistest.Start(t).Client(t)
	for _, algorithm := range strategy.Names() {
		t.Run(fmt.Sprint(algorithm, " gives back alike in Redis and in Go"), func(t *testing.T) {
			if diff := newLender(t, client, strategy.GiveBack, algorithm).diff(3_000); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestBrokenReturnsAreFound says that the comparison would find an error.
func TestBrokenReturnsAreFound(t *testing.T) {
	client := redistest.Start(t).Client(t)
	for name, fault := range map[string]struct {
		right, wrong string
		of           limiter.Algorithm
	}{
		"a bucket that gains from what it lent":              {"max(0, cost - lost)", "cost", limiter.TokenBucket},
		"a bucket that fills above its burst":                {"min(burst, level + max", "(level + max", limiter.TokenBucket},
		"a window that gives back what another window took":  {"finish <= now or finish ~= struct.unpack('<d', receipt)", "finish <= now", limiter.FixedWindow},
		"a ring that gives back in its newest slot":          {"16 + 4 * (charged - first)", "#state - 4", limiter.SlidingWindowRing},
		"an approximation that never gives back the past":    {"charged + length == finish", "false", limiter.SlidingWindowApproximate},
		"an approximation that keeps what it was given back": {"max(0, current - cost)", "current", limiter.SlidingWindowApproximate},
	} {
		t.Run(name+" is found", func(t *testing.T) {
			broken := strings.Replace(strategy.GiveBack, fault.right, fault.wrong, 1)
			if broken == strategy.GiveBack {
				t.Fatalf("the script has no %q", fault.right)
			}
			if newLender(t, client, broken, fault.of).diff(20_000) == "" {
				t.Error("20,000 steps were alike")
			}
		})
	}
}

// lender lends from one counter, on both sides, and gives back.
type lender struct {
	t       *testing.T
	history *history
	client  *redis.Client
	lend    *redis.Script
	back    *redis.Script
	counter strategy.Counter
	loans   []strategy.Loan
}

func newLender(t *testing.T, client *redis.Client, back string, algorithm limiter.Algorithm) *lender {
	t.Helper()
	if err := client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	return &lender{
		t:       t,
		history: newHistory(rand.Uint64(), algorithm),
		client:  client,
		lend:    redis.NewScript(onClock(strategy.Lend)),
		back:    redis.NewScript(onClock(back)),
	}
}

// diff makes so many steps, and gives the first after which the sides differ.
func (l *lender) diff(steps int) string {
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
		if len(l.loans) > 0 && h.random.IntN(3) == 0 {
			err = l.giveBack()
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

func (l *lender) take() error {
	limit := l.history.limit
	limit.Algorithm = l.history.algorithms[0]
	hit := limiter.Hit{Key: "a", Limit: limit, Cost: l.history.cost()}
	keys, args := strategy.Call(l.history.now, []limiter.Hit{hit})
	reply, err := l.lend.Run(l.t.Context(), l.client, keys, args...).Slice()
	if err != nil {
		return err
	}
	_, receipts, err := strategy.Receipts(reply, 1)
	if err != nil {
		return err
	}
	if receipts[0] != "" && hit.Cost > 0 {
		l.loans = append(l.loans, strategy.Loan{Hit: hit, Receipt: receipts[0]})
	}
	v := l.history.evaluator.Decide(l.history.now, []limiter.Hit{hit}, []*strategy.Counter{&l.counter})[0]
	l.history.soon = []int64{v.RetryAfter.Microseconds(), v.ResetAfter.Microseconds()}
	return nil
}

// giveBack gives back any loan: most often the last one, but an old one too.
func (l *lender) giveBack() error {
	i := len(l.loans) - 1
	if l.history.random.IntN(3) == 0 {
		i = l.history.random.IntN(len(l.loans))
	}
	loan := l.loans[i]
	l.loans = append(l.loans[:i], l.loans[i+1:]...)
	keys, args := strategy.Return(l.history.now, loan)
	if err := l.back.Run(l.t.Context(), l.client, keys, args...).Err(); err != nil {
		return err
	}
	limit := loan.Hit.Limit
	s, _ := strategy.For(limit.Algorithm)
	next, ttl := s.GiveBack(nil, l.counter.State, l.history.now, limit, loan.Hit.Cost, []byte(loan.Receipt))
	if next != nil {
		l.counter.State, l.counter.Expires = next, l.history.now+ttl
	}
	return nil
}

// compare gives how the counters differ. Neither forgets: what is long past must be given back to nobody.
func (l *lender) compare() string {
	value, _ := l.client.Get(l.t.Context(), "a").Result()
	ttl, _ := l.client.Get(l.t.Context(), "a:ttl").Int64()
	if value == "" && len(l.counter.State) == 0 {
		return ""
	}
	if l.counter.Expires != math.MaxInt64 {
		if want := (l.counter.Expires - l.history.now + 999) / 1000; want != ttl {
			return fmt.Sprintf("it lives for %d ms in Go and %d ms in Redis", want, ttl)
		}
		l.counter.Expires = math.MaxInt64
	}
	return cmp.Diff(string(l.counter.State), value[1:])
}

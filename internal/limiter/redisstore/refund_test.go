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

// TestRefundsAlike runs random charges, refunds and renewals through the script in Redis and through the Go.
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

// refundFaults are what could be wrong with a refund, and the algorithm that it would show with.
var refundFaults = map[string]struct {
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
	"a queue that never gives back its last slot":       {"if told == receipt then", "if false then", limiter.LeakyBucketQueue},
	"a queue that moves for any slot":                   {"if told == receipt then", "if told >= receipt then", limiter.LeakyBucketQueue},
	"a queue that keeps holes at its end":               {"local free = #holes > 0", "local free = false", limiter.LeakyBucketQueue},
	"a queue that gives back to another spacing":        {"if not same or next <= clock", "if next <= clock", limiter.LeakyBucketQueue},
	"a queue that takes holes of another spacing":       {"if per ~= requests or length ~= window then return", "if false then return", limiter.LeakyBucketQueue},
	"a queue that makes holes of what has passed":       {"receipt >= clock", "true", limiter.LeakyBucketQueue},
	"a queue that makes holes of large costs":           {"elseif cost == 1 and receipt", "elseif receipt", limiter.LeakyBucketQueue},
	"a queue whose holes are in no order":               {"at > 0 and read('<d', holes, at - 7) > receipt", "false", limiter.LeakyBucketQueue},
	"a queue that forgets a hole":                       {"sub(holes, 1, at) .. write('<d', receipt)", "sub(holes, 1, at)", limiter.LeakyBucketQueue},
	"a queue that keeps holes that have passed":         {"read('<d', state, at) < clock", "false", limiter.LeakyBucketQueue},
	"a queue that gives a hole twice":                   {"sub(holes, used + 1), true", "holes, true", limiter.LeakyBucketQueue},
	"a queue that gives holes that are too late":        {"read('<d', holes, used + 1) <= latest", "true", limiter.LeakyBucketQueue},
	"a queue that gives holes to large costs":           {"if cost == 1 then\n      while", "if true then\n      while", limiter.LeakyBucketQueue},
	"a queue that tells no holes":                       {"true, header .. holes", "true", limiter.LeakyBucketQueue},
	"a log that refunds another cost":                   {"== receipt and (sum - before) % 65536 == cost", "== receipt", limiter.SlidingWindowLog},
	"a log that refunds what was taken since":           {"now - age == receipt and (sum", "now - age >= receipt and (sum", limiter.SlidingWindowLog},
	"a log that refunds what has left":                  {"age >= window or now - age < receipt", "now - age < receipt", limiter.SlidingWindowLog},
	"a log that refunds its newest only":                {"max(log.from + 1, last - 256)", "last", limiter.SlidingWindowLog},
	"a log that keeps the sums":                         {"(parts[i] - cost) % 65536", "parts[i]", limiter.SlidingWindowLog},
	"a log that keeps the elements":                     {"min(log.held, b), others", "min(log.held, b + 1), others", limiter.SlidingWindowLog},
	"a log that forgets a time":                         {"i % 7 * 8 + 9)", "i % 7 * 8 + 1, -9)", limiter.SlidingWindowLog},
	"permits that stay out":                             {"p.used - cost", "p.used", limiter.Concurrency},
	"permits that come back twice":                      {"p.changes[id], p.used = false, p.used - cost", "p.used = p.used - cost", limiter.Concurrency},
	"permits that are given back when they are renewed": {"if renew then", "if false then", limiter.Concurrency},
	"permits that expire though they are renewed":       {"min(p.soonest, expires), max(p.latest, expires)\nend\n\nreturn", "p.soonest, p.latest\nend\n\nreturn", limiter.Concurrency},
	"permits that are renewed after they have expired":  {"if p.soonest <= now then", "if false then", limiter.Concurrency},
	"permits that nobody cleans up":                     {"p.soonest, p.latest = LONGEST, 0 end", "p.soonest = LONGEST end", limiter.Concurrency},
	"permits with the ids of earlier ones":              {"max(p.last + 1, now)", "now", limiter.Concurrency},
	"a set-back clock that permits don't know of":       {"expires = expires - back", "expires = expires", limiter.Concurrency},
}

// TestBrokenRefundsAreFound says that the comparison would find an error.
func TestBrokenRefundsAreFound(t *testing.T) {
	client := redistest.Start(t).Client(t)
	for name, fault := range refundFaults {
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

// ledger charges a counter, and a window beside it now and then, on both sides, refunds and renews.
type ledger struct {
	t        *testing.T
	history  *history
	client   *redis.Client
	scripts  deployed
	counters map[string]*strategy.Counter
	charges  []limiter.Charge
}

func newLedger(t *testing.T, client *redis.Client, change func(script string) string, algorithm limiter.Algorithm) *ledger {
	t.Helper()
	if err := client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	return &ledger{
		t:        t,
		history:  newHistory(rand.Uint64(), algorithm),
		client:   client,
		scripts:  deploy(t, client, change),
		counters: map[string]*strategy.Counter{"a": {}, "b": {}},
	}
}

// diff makes so many steps, and gives the first after which the sides differ.
func (l *ledger) diff(steps int) string {
	for step := range steps {
		h := l.history
		// Some come at once: in a queue they wait behind each other.
		if h.random.IntN(3) == 0 {
			h.advance()
		}
		if h.random.IntN(50) == 0 {
			h.change()
		}
		if err := l.client.Set(l.t.Context(), "clock", h.now, 0).Err(); err != nil {
			l.t.Fatal(err)
		}
		var err error
		if len(l.charges) > 0 && h.random.IntN(3) == 0 {
			err = l.amend()
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

func (l *ledger) call(requests ...strategy.Request) ([][]limiter.Verdict, error) {
	var c strategy.Call
	c.Reset(l.history.now)
	for _, r := range requests {
		c.Add(r)
	}
	reply, err := l.scripts.run(l.t.Context(), l.client, &c).Slice()
	if err != nil {
		return nil, err
	}
	return c.Verdicts(reply)
}

// take has some equal requests decided, in one call and one by one.
func (l *ledger) take() error {
	h := l.history
	hits := l.hits()
	var want [][]limiter.Verdict
	var requests []strategy.Request
	for range 1 + max(0, h.random.IntN(8)-4) {
		requests = append(requests, strategy.Request{Hits: hits})
		want = append(want, l.decide(hits))
	}
	told, err := l.call(requests...)
	if err != nil {
		return err
	}
	if diff := cmp.Diff(want, told); diff != "" {
		return fmt.Errorf("verdicts on %+v differ:\n%s", hits, diff)
	}
	h.soon = soon(want[len(want)-1][0])
	return nil
}

func (l *ledger) hits() []limiter.Hit {
	h := l.history
	limit, window := limitOf(h.algorithms[0], h.limit), limitOf(limiter.FixedWindow, h.limit)
	hits := []limiter.Hit{{Key: "a", Limit: limit, Cost: h.cost()}}
	if h.random.IntN(4) == 0 {
		hits = append(hits, limiter.Hit{Key: "b", Limit: window, Cost: 1})
	}
	return hits
}

// decide decides a request in Go, and writes down what it is charged.
func (l *ledger) decide(hits []limiter.Hit) []limiter.Verdict {
	var counters []*strategy.Counter
	for _, h := range hits {
		counters = append(counters, l.counters[h.Key])
	}
	verdicts := make([]limiter.Verdict, len(hits))
	l.history.evaluator.Decide(l.history.now, hits, counters, verdicts)
	if admits(verdicts) {
		for i, h := range hits {
			if h.Cost > 0 {
				l.charges = append(l.charges, limiter.Charge{Hit: h, Receipt: verdicts[i].Receipt})
			}
		}
	}
	return verdicts
}

// amend refunds any charge, or renews it: most often one of the last ones, but an old one too.
func (l *ledger) amend() error {
	few := len(l.charges)
	if l.history.random.IntN(5) > 0 {
		few = min(few, 8)
	}
	i := len(l.charges) - 1 - l.history.random.IntN(few)
	c := l.charges[i]
	renew := c.Hit.Limit.Algorithm == limiter.Concurrency && l.history.random.IntN(2) == 0
	if !renew {
		l.charges = append(l.charges[:i], l.charges[i+1:]...)
	}
	l.amendInGo(c, renew)
	_, err := l.call(strategy.Request{Hits: []limiter.Hit{c.Hit}, Receipts: []int64{c.Receipt}, Renew: renew})
	return err
}

// amendInGo takes no notice of what has expired, as Redis doesn't on this clock.
func (l *ledger) amendInGo(c limiter.Charge, renew bool) {
	counter, now := l.counters[c.Hit.Key], l.history.now
	// For as long as it lives at least, it does after it.
	counter.Expires = now + 1
	l.history.evaluator.Amend(now, &c.Hit, counter, c.Receipt, renew)
	if counter.Expires == now+1 {
		counter.Expires = math.MaxInt64
	}
}

// compare gives how the counters differ. Neither forgets: what is long past must be refunded to nobody.
func (l *ledger) compare() string {
	held, err := l.client.EvalSha(l.t.Context(), l.scripts.values, []string{"a", "b"}).StringSlice()
	if err != nil {
		return err.Error()
	}
	return l.differ("a", held[0]) + l.differ("b", held[1])
}

func (l *ledger) differ(key, value string) string {
	c := l.counters[key]
	if value == "" {
		return cmp.Diff("", string(c.State))
	}
	state, expiry := cut(value)
	if c.Expires != math.MaxInt64 {
		if expiry*1_000_000 < c.Expires {
			return fmt.Sprintf("%s counts until %d us, and expires at %d s", key, c.Expires, expiry)
		}
		c.Expires = math.MaxInt64
	}
	return cmp.Diff(string(c.Layout)+string(c.State), state)
}

// SPDX-License-Identifier: Apache-2.0

package redisstore_test

import (
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/storetest"
	"github.com/weir-dev/weir/internal/limiter/strategy"
	"github.com/weir-dev/weir/internal/redistest"
)

// TestRedisAndGoAgree runs random histories through the script in Redis and through the Go, and compares
// verdicts, states and times to live.
func TestRedisAndGoAgree(t *testing.T) {
	client := redistest.Start(t).Client(t)
	for _, algorithm := range strategy.Names() {
		t.Run(fmt.Sprint(algorithm, " decides alike in Redis and in Go"), func(t *testing.T) {
			agree(t, client, times(20_000, 1_000_000), algorithm)
		})
	}
	t.Run("all algorithms decide alike on the same keys", func(t *testing.T) {
		agree(t, client, times(5_000, 1_000_000), strategy.Names()...)
	})
}

func agree(t *testing.T, client *redis.Client, requests int, algorithms ...limiter.Algorithm) {
	t.Helper()
	if diff := newHistory(rand.Uint64(), algorithms...).diff(t, client, onClock, requests); diff != "" {
		t.Fatal(diff)
	}
	t.Logf("expected: %d requests decided alike; measured: all", requests)
}

// faults are what could be wrong with a script, and the algorithm that it would show with.
var faults = map[string]struct {
	right, wrong string
	of           limiter.Algorithm
}{
	"a bucket without tolerance":                         {"* cost + TOLERANCE", "* cost", limiter.TokenBucket},
	"a bucket that gains while the clock is back":        {"if last <= now then\n      level", "if true then\n      level", limiter.TokenBucket},
	"a bucket that waits for the clock for ever":         {"last - now > GRACE", "false", limiter.TokenBucket},
	"a bucket that doesn't wait for the clock":           {"last - now > GRACE", "true", limiter.TokenBucket},
	"a bucket that fills above its burst":                {"if level > burst then level = burst end", "", limiter.TokenBucket},
	"a bucket that is charged when it denies":            {"local taken = admitted * cost", "local taken = max(1, admitted) * cost", limiter.TokenBucket},
	"a bucket that admits one more of many":              {"admitted < times and level - admitted", "admitted < times and level - (admitted - 1)", limiter.TokenBucket},
	"a bucket that is forgotten before it is full":       {"(burst - level) / rate + (last - now)", "0", limiter.TokenBucket},
	"a bucket that asks too little":                      {"cost < burst and cost or burst", "1", limiter.TokenBucket},
	"a bucket without an upper bound of costs":           {"cost > most", "cost > 2 * most", limiter.TokenBucket},
	"a meter that admits what costs more than one":       {"cost < burst and cost or burst", "cost", limiter.LeakyBucketMeter},
	"a meter that never admits a cost above one":         {"cost > most", "cost > burst", limiter.LeakyBucketMeter},
	"a log that admits one more":                         {"requests - total) / cost)\n", "requests - total + 1) / cost)\n", limiter.SlidingWindowLog},
	"a log of a microsecond less":                        {"return element(log, i) < window", "return element(log, i) < window - 1", limiter.SlidingWindowLog},
	"a log of a microsecond more":                        {"return element(log, i) < window", "return element(log, i) <= window", limiter.SlidingWindowLog},
	"a log that forgets all but the newest":              {"return log, gone, total", "return log, log.size - 2, total", limiter.SlidingWindowLog},
	"a log that is never trimmed":                        {"first > 0 or last < log.listed - 1", "last < log.listed - 1", limiter.SlidingWindowLog},
	"a log that is trimmed of one too many":              {"'LTRIM', key, first, last", "'LTRIM', key, first + 1, last", limiter.SlidingWindowLog},
	"a log that is charged once for all":                 {"(sum + i * cost) % 65536", "(sum + cost) % 65536", limiter.SlidingWindowLog},
	"a log that doesn't wait for the clock":              {"if -age > GRACE", "if -age > 0", limiter.SlidingWindowLog},
	"a log that waits for the clock for ever":            {"if -age > GRACE", "if false", limiter.SlidingWindowLog},
	"a log whose times step back":                        {"total, now - min(age, 0), false", "total, now, false", limiter.SlidingWindowLog},
	"a log that forgets when the clock is set back":      {"start(total), 0, total, now, true", "start(1), 0, 1, now, true", limiter.SlidingWindowLog},
	"a log that tells too short a wait":                  {"65536 >= units", "65536 >= units - 1", limiter.SlidingWindowLog},
	"a log that doesn't see its own charges":             {"size = size + #others / 8,", "size = (log.listed == 0 and 1 or size) + #others / 8,", limiter.SlidingWindowLog},
	"a log that is forgotten too soon":                   {"keep(counter, at + window - now)", "keep(counter, 0)", limiter.SlidingWindowLog},
	"permits of which there is one more":                 {"requests - p.used) / cost", "requests - p.used + 1) / cost", limiter.Concurrency},
	"permits that last too long":                         {"expires + -expires % tick", "expires + tick", limiter.Concurrency},
	"permits that expire a microsecond late":             {"if entry and expires > now", "if entry and expires >= now", limiter.Concurrency},
	"permits that are looked for a microsecond late":     {"p.soonest <= now", "p.soonest < now", limiter.Concurrency},
	"permits that never expire":                          {"if p.soonest <= now then", "if false then", limiter.Concurrency},
	"permits that stay when they have expired":           {"swept.changes[id] = false", "local _ = false", limiter.Concurrency},
	"permits that a set-back clock keeps out":            {"p.seen - now > GRACE", "false", limiter.Concurrency},
	"permits that a clock takes back that is back a bit": {"p.seen - now > GRACE", "p.seen - now > 0", limiter.Concurrency},
	"permits whose counter is forgotten too soon":        {"keep(counter, max(0, p.latest - now))", "keep(counter, 0)", limiter.Concurrency},
	"permits with the ids of earlier ones":               {"max(p.last + 1, now)", "now", limiter.Concurrency},
	"permits that nobody has asked for":                  {"if entry and id <= p.last then", "if entry then", limiter.Concurrency},
	"a ring of a slot less":                              {"- each - first", "- each - first + 1", limiter.SlidingWindowRing},
	"a ring of a slot more":                              {"- each - first", "- each - first - 1", limiter.SlidingWindowRing},
	"a ring of other slots":                              {"min(60, max(10,", "min(60, max(11,", limiter.SlidingWindowRing},
	"a ring that forgets to subtract what is gone":       {"total = total - old[i]", "total = total", limiter.SlidingWindowRing},
	"a ring that admits one more":                        {"floor((requests - total) / cost)", "floor((requests - total + 1) / cost)", limiter.SlidingWindowRing},
	"a ring that is charged when it denies":              {"write('<I4', newest + taken)", "write('<I4', newest + cost)", limiter.SlidingWindowRing},
	"a ring that starts anew when it changes":            {"return current, total, write('<I4', total), true", "return current, 0, '', false", limiter.SlidingWindowRing},
	"a ring that doesn't wait for the clock":             {"each) - now > GRACE", "each) - now > 0", limiter.SlidingWindowRing},
	"a ring that waits for the clock for ever":           {"or start_of(first + held - 1, length, each) - now > GRACE", "", limiter.SlidingWindowRing},
	"a ring that is charged in its oldest slot":          {"counts .. string.rep('\\0\\0\\0\\0', missing)", "string.rep('\\0\\0\\0\\0', missing) .. counts", limiter.SlidingWindowRing},
	"a ring that is forgotten too soon":                  {"slots, window, slots) - now)", "0, window, slots) - now)", limiter.SlidingWindowRing},
	"an approximation that forgets a window too soon":    {"stored, previous, current = stored + length, current, 0", "stored, previous, current = stored + length, 0, 0", limiter.SlidingWindowApproximate},
	"an approximation that weighs nothing":               {"previous * (min(left, window) / window)", "previous", limiter.SlidingWindowApproximate},
	"an approximation that rounds its weight":            {"previous * (min(left, window) / window)", "floor(previous * (min(left, window) / window))", limiter.SlidingWindowApproximate},
	"an approximation that weighs a set-back clock":      {"min(left, window) / window", "left / window", limiter.SlidingWindowApproximate},
	"an approximation without tolerance":                 {"cost <= requests + TOLERANCE", "cost <= requests", limiter.SlidingWindowApproximate},
	"an approximation that starts anew when it changes":  {"return finish, 0, count, true", "return finish, 0, 0, false", limiter.SlidingWindowApproximate},
	"an approximation that counts what never fitted":     {"count = min(count, requests) end", "count = count end", limiter.SlidingWindowApproximate},
	"an approximation that is counted twice":             {"stored - window - now <= GRACE then return", "stored - window - now < 0 then return", limiter.SlidingWindowApproximate},
	"an approximation that is forgotten with its window": {"keep(counter, finish + window - now)", "keep(counter, finish - now)", limiter.SlidingWindowApproximate},
	"a queue that admits who comes too late":             {"next < latest or next == latest and part <= longest_part", "next <= latest", limiter.LeakyBucketQueue},
	"a queue that admits one less":                       {"next < latest or next == latest and part <= longest_part", "next < latest", limiter.LeakyBucketQueue},
	"a queue that loses fractions":                       {"next + turn, part + rest, admitted + 1", "next + turn, part, admitted + 1", limiter.LeakyBucketQueue},
	"a queue that multiplies in one step":                {"return turn, lower % requests", "return turn, cost * rest % requests", limiter.LeakyBucketQueue},
	"a queue that is charged when it denies":             {"local turn, rest = turn_of(cost)", "local turn, rest = turn_of(cost) next = next + (admitted < times and turn or 0)", limiter.LeakyBucketQueue},
	"a queue without an upper bound of costs":            {"elseif cost <= requests then", "else", limiter.LeakyBucketQueue},
	"a queue that keeps slots for a cost of 0":           {"(admitted == 0 or cost == 0) and not moved", "admitted == 0 and not moved", limiter.LeakyBucketQueue},
	"a queue of several slots in a microsecond":          {"if turn == 0 then return 1, 0 end", "", limiter.LeakyBucketQueue},
	"a queue that keeps the parts of another rate":       {"if per ~= requests and part > 0 then next, part = next + 1, 0 end", "", limiter.LeakyBucketQueue},
	"a queue that starts anew when it changes":           {"return clock, next, part, '', moved, false end", "return now, now, 0, '', false, false end", limiter.LeakyBucketQueue},
	"a queue that saves slots that nobody took":          {"if next < clock then return now, now, 0, '', false, false end", "", limiter.LeakyBucketQueue},
	"a queue that waits for the clock for ever":          {"if last - clock > GRACE then clock", "if false then clock", limiter.LeakyBucketQueue},
	"a queue that doesn't wait for the clock":            {"if last - clock > GRACE then clock", "if last - clock > 0 then clock", limiter.LeakyBucketQueue},
	"a queue that forgets how far the clock was set":     {"clock, clock - now)", "clock, 0)", limiter.LeakyBucketQueue},
	"a queue that is forgotten before its last slot":     {"next - clock + ceil(part / requests)", "0", limiter.LeakyBucketQueue},
	"a window that admits one more":                      {"floor((requests - count) / cost)", "floor((requests - count + 1) / cost)", limiter.FixedWindow},
	"a window that ends a microsecond late":              {"stored > now then", "stored >= now then", limiter.FixedWindow},
	"a window that starts anew when it changes":          {"count = taken", "count = stored == finish and taken or 0", limiter.FixedWindow},
	"a window that is counted twice":                     {"now + window + GRACE", "now + window", limiter.FixedWindow},
	"a window that waits for the clock for ever":         {"and stored <= latest then", "then", limiter.FixedWindow},
	"a window that stays when it is changed":             {"moved = stored ~= finish", "moved = false", limiter.FixedWindow},
	"a calendar's window that ends a microsecond late":   {"now < second", "now <= second", limiter.CalendarWindow},
	"a calendar's window that starts a microsecond late": {"now < third", "now <= third", limiter.CalendarWindow},
	"a calendar's window that is counted twice":          {"finish - now > GRACE then latest", "true then latest", limiter.CalendarWindow},
	"a calendar's window that is waited for for long":    {"finish - now > GRACE then latest", "false then latest", limiter.CalendarWindow},
	"a request that charges what it can":                 {"if not shadow and admissions[hit] > admitted then", "if false then", limiter.FixedWindow},
	"a refused request that charges shadow limits":       {"if any and admitted > 0 then takeTogether", "if any then takeTogether", limiter.FixedWindow},
	"a shadow limit that refuses":                        {"terms[first + 3] == 1", "terms[first + 3] == 2", limiter.FixedWindow},
	"a shadow limit that takes for the refused":          {"takeTogether(from, size, admitted, true, admitted)", "takeTogether(from, size, times, true, admitted)", limiter.FixedWindow},
	"a batch that doesn't see its own charges":           {"values[counter], kinds[counter], changed[counter] = state,", "values[counter], kinds[counter], changed[counter] = values[counter] or state,", limiter.FixedWindow},
	"a request apart that charges what it can":           {"if least < times then agree", "if false then agree", limiter.FixedWindow},
	"a request apart that is refused with another":       {"least = TIMES\n    end", "end", limiter.FixedWindow},
	"a request apart of two, of which one changes":       {"agree(counter - number + 1, counter)", "agree(counter, counter)", limiter.FixedWindow},
	"a time to live that is never put off":               {"if expiries[counter] < due then", "if expiries[counter] == 0 then", limiter.FixedWindow},
	"an end that is told and not written":                {"elseif extended[counter] then", "elseif false then", limiter.FixedWindow},
}

// TestBrokenScriptsAreFound says that the comparison would find an error.
func TestBrokenScriptsAreFound(t *testing.T) {
	client := redistest.Start(t).Client(t)
	for name, fault := range faults {
		t.Run(name+" is found", func(t *testing.T) {
			if !strings.Contains(strategy.Script+strategy.Apart, fault.right) {
				t.Fatalf("no script has %q", fault.right)
			}
			broken := func(script string) string { return onClock(strings.ReplaceAll(script, fault.right, fault.wrong)) }
			h := newHistory(rand.Uint64(), fault.of)
			if h.diff(t, client, broken, 20_000) == "" {
				t.Error("20,000 requests were decided alike")
			}
		})
	}
}

// TestEndsArePutOff asks the scripts' own prelude when states expire.
func TestEndsArePutOff(t *testing.T) {
	client, ctx := redistest.Start(t).Client(t), t.Context()
	prelude, _, _ := strings.Cut(strategy.Apart, "local function rule")
	script := onClock(prelude + "expiries[1] = tonumber(ARGV[1]) return {keep(1, tonumber(ARGV[2])), extended[1]}")
	const second = 1_000_000
	client.Set(ctx, "clock", 1000*second, 0)
	type end struct {
		expiry int64
		later  bool
	}
	for name, test := range map[string]struct {
		expiry int64
		ttl    float64
		want   end
	}{
		"more than a second after it has ceased to count": {0, 0, end{1002, true}},
		"rounded up":                                         {0, 0.001, end{1003, true}},
		"later than it has to":                               {0, 8 * second, end{1012, true}},
		"a minute later at most":                             {0, 3600 * second, end{4662, true}},
		"not at all while it is late enough":                 {1010, 9*second - 1, end{1010, false}},
		"even for the last microsecond":                      {1010, 9 * second, end{1014, true}},
		"but never so late that a microsecond has no number": {0, 1e30, end{1<<53/second + 1002 + 60, true}},
	} {
		t.Run("a state is kept "+name, func(t *testing.T) {
			reply, err := client.Eval(ctx, script, []string{"a"}, test.expiry, test.ttl).Slice()
			if err != nil {
				t.Fatal(err)
			}
			got := end{reply[0].(int64), len(reply) > 1 && reply[1] == int64(1)}
			if got != test.want {
				t.Errorf("it is %+v, not %+v", got, test.want)
			}
		})
	}
}

// TestPreciseAtAnyRate would fail for a bucket that keeps a time as one double, or whole microseconds.
func TestPreciseAtAnyRate(t *testing.T) {
	client := redistest.Start(t).Client(t)
	scripts, ctx := deploy(t, client, onClock), t.Context()
	l := limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 900_000, Window: time.Second, Burst: 100}
	now := storetest.Epoch.UnixMicro()
	admitted := 0
	for range 500 {
		now += 13
		call := callOf(now, batchOf(limiter.Hit{Key: "precise", Limit: l, Cost: 1}, 20))
		client.Set(ctx, "clock", now, 0)
		reply, err := scripts.run(ctx, client, call).Slice()
		if err != nil {
			t.Fatal(err)
		}
		verdicts, err := call.Verdicts(reply)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range verdicts {
			if v[0].Allowed {
				admitted++
			}
		}
	}
	// The burst, and 0.9 for each of the 13 us between the first and the last batch.
	if want := 100 + 13*499*9/10; admitted != want {
		t.Errorf("%d were admitted, not %d", admitted, want)
	}
}

func batchOf(h limiter.Hit, n int) [][]limiter.Hit {
	requests := make([][]limiter.Hit, n)
	for i := range requests {
		requests[i] = []limiter.Hit{h}
	}
	return requests
}

// history makes up requests as it goes, in Go, and so can step to where something is about to change.
type history struct {
	seed       uint64
	random     *rand.Rand
	algorithms []limiter.Algorithm
	now        int64
	limit      limiter.Limit
	evaluator  strategy.Evaluator
	counters   map[string]*strategy.Counter
	// soon are the waits that the last verdicts told, in microseconds.
	soon []int64
}

// batch is one call with the answer that Go gives.
type batch struct {
	now int64
	// caller is what the caller takes for now.
	caller   int64
	requests [][]limiter.Hit
	want     outcome
	// needed are the microseconds until which the states count.
	needed map[string]int64
}

// outcome is all that can be seen of a call.
type outcome struct {
	Verdicts []limiter.Verdict
	// States of what was ever written, by key, with their layouts.
	States map[string]string
	// expiries are the seconds in which they expire: as they say, and as Redis was told.
	expiries map[string][2]int64
}

// lives says what is wrong with when the states expire.
func (o outcome) lives(b batch) string {
	for key, e := range o.expiries {
		switch {
		case e[0] > e[1]:
			return fmt.Sprintf("%s says that it expires at %d, and does at %d", key, e[0], e[1])
		case e[0]*1_000_000 < b.needed[key]:
			return fmt.Sprintf("%s expires at %d s, and counts until %d us", key, e[0], b.needed[key])
		}
	}
	return ""
}

func newHistory(seed uint64, algorithms ...limiter.Algorithm) *history {
	h := &history{
		seed:       seed,
		random:     rand.New(rand.NewPCG(seed, 0)),
		algorithms: algorithms,
		now:        storetest.Epoch.UnixMicro(),
		counters:   map[string]*strategy.Counter{},
	}
	h.change()
	return h
}

// diff runs so many requests through both, and gives the first difference.
func (h *history) diff(t *testing.T, client *redis.Client, change func(script string) string, requests int) string {
	t.Helper()
	if err := client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	scripts := deploy(t, client, change)
	states, needed := map[string]string{}, map[string]int64{}
	for requests > 0 {
		var batches []batch
		for range 50 {
			b := h.batch(states, needed)
			requests -= len(b.requests)
			batches = append(batches, b)
		}
		for i, got := range run(t, client, scripts, batches) {
			diff := cmp.Diff(batches[i].want, got, cmpopts.IgnoreUnexported(outcome{}))
			if diff += got.lives(batches[i]); diff != "" {
				return fmt.Sprintf("seed %d, at %d, requests %+v (-Go +Redis):\n%s", h.seed, batches[i].now, batches[i].requests, diff)
			}
		}
	}
	return ""
}

var keys = []string{"a", "b", "c", "d", "e", "f"}

// batch makes up a call and decides it in Go.
func (h *history) batch(states map[string]string, needed map[string]int64) batch {
	h.advance()
	// A calendar has no window of less than 23 hours.
	skew := h.random.Int64N(44*3600_000_000) - 22*3600_000_000
	b := batch{now: h.now, caller: h.now + skew}
	h.soon = h.soon[:0]
	for _, hits := range h.requests() {
		for range 1 + max(0, h.random.IntN(8)-4) {
			b.requests = append(b.requests, hits)
			b.want.Verdicts = append(b.want.Verdicts, h.decide(hits, states, needed)...)
		}
	}
	b.want.States, b.needed = maps.Clone(states), maps.Clone(needed)
	return b
}

func (h *history) decide(hits []limiter.Hit, states map[string]string, needed map[string]int64) []limiter.Verdict {
	counters := make([]*strategy.Counter, len(hits))
	for i, hit := range hits {
		if h.counters[hit.Key] == nil {
			h.counters[hit.Key] = &strategy.Counter{}
		}
		counters[i] = h.counters[hit.Key]
	}
	verdicts := make([]limiter.Verdict, len(hits))
	h.evaluator.Decide(h.now, hits, counters, verdicts)
	for i, c := range counters {
		h.soon = append(h.soon, soon(verdicts[i])...)
		if c.Expires != 0 && c.Expires != math.MaxInt64 {
			states[hits[i].Key] = string(c.Layout) + string(c.State)
			needed[hits[i].Key] = c.Expires
			// Redis keeps it for ever here: what expired must not be missed.
			c.Expires = math.MaxInt64
		}
	}
	return verdicts
}

// soon gives after how many microseconds something changes for a request.
func soon(v limiter.Verdict) []int64 {
	return []int64{v.RetryAfter.Microseconds(), v.ResetAfter.Microseconds(), v.Wait.Microseconds()}
}

// requests makes up those of a call. One time in three each has two hits, and they have no counter in common.
func (h *history) requests() [][]limiter.Hit {
	var requests [][]limiter.Hit
	if counters := h.random.Perm(len(keys)); h.random.IntN(3) == 0 {
		for pair := range slices.Chunk(counters, 2) {
			requests = append(requests, h.request(pair))
		}
		return requests
	}
	for range 1 + h.random.IntN(6) {
		requests = append(requests, h.request(h.random.Perm(len(keys))[:1+h.random.IntN(3)]))
	}
	return requests
}

// request makes up hits of some counters.
func (h *history) request(counters []int) []limiter.Hit {
	if h.random.IntN(20) == 0 {
		h.change()
	}
	var hits []limiter.Hit
	for _, k := range counters {
		l := limitOf(h.algorithms[h.random.IntN(len(h.algorithms))], h.limit)
		hits = append(hits, limiter.Hit{Key: keys[k], Limit: l, Cost: h.cost(), Shadow: h.random.IntN(4) == 0})
	}
	if first := &hits[0]; len(hits) == 1 && !first.Shadow && strategy.Leasable(first.Limit.Algorithm) {
		first.UpTo = h.random.IntN(3) == 0
	}
	return hits
}

// limitOf makes a limit one of an algorithm, as far as that goes.
func limitOf(a limiter.Algorithm, l limiter.Limit) limiter.Limit {
	l.Algorithm = a
	if a == limiter.SlidingWindowLog || a == limiter.Concurrency {
		l.Requests = min(l.Requests, 10_000)
	}
	return l
}

func (h *history) cost() int64 {
	switch h.random.IntN(10) {
	case 0:
		return 0
	case 1:
		return h.limit.Burst + h.random.Int64N(3) - 1
	case 2:
		return h.limit.Requests + h.random.Int64N(3) - 1
	case 3:
		return 1 + h.random.Int64N(h.limit.Burst)
	case 4:
		return math.MaxInt64
	}
	return 1
}

// change makes up other parameters, now and then the largest or the smallest.
func (h *history) change() {
	windows := []time.Duration{10 * time.Millisecond, 7_777_777 * time.Microsecond, 61_234_567 * time.Microsecond, time.Second, time.Minute, 3_599_999_999 * time.Microsecond, 8784 * time.Hour}
	amounts := []int64{1, 2, 3, 7, 10, 1_000, 1_000_000_000}
	h.limit = limiter.Limit{
		Requests: amounts[h.random.IntN(len(amounts))],
		Window:   windows[h.random.IntN(len(windows))],
		Burst:    amounts[h.random.IntN(len(amounts))],
		Calendar: limiter.Calendar{Unit: units[h.random.IntN(len(units))], TimeZone: zones[h.random.IntN(len(zones))]},
	}
	delays := []time.Duration{0, time.Microsecond, h.limit.Window / 3, h.limit.Window, 4 * h.limit.Window}
	h.limit.MaxDelay = min(8784*time.Hour, delays[h.random.IntN(len(delays))].Truncate(time.Microsecond))
	if h.random.IntN(2) == 0 {
		h.limit.MaxQueue = amounts[h.random.IntN(len(amounts))]
	}
}

var (
	units = []limiter.Unit{limiter.Day, limiter.Week, limiter.Month, limiter.Year}
	zones = []string{"UTC", "Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", "Pacific/Apia"}
	// oddities are the days on which the clocks of these zones are changed.
	oddities = []time.Time{
		time.Date(2026, time.March, 29, 0, 0, 0, 0, time.UTC),
		time.Date(2026, time.October, 25, 0, 0, 0, 0, time.UTC),
		time.Date(2018, time.February, 18, 0, 0, 0, 0, time.UTC),
		time.Date(2018, time.November, 4, 0, 0, 0, 0, time.UTC),
		time.Date(2026, time.April, 4, 0, 0, 0, 0, time.UTC),
		time.Date(2011, time.December, 30, 0, 0, 0, 0, time.UTC),
	}
)

// advance sets the clock forward, or back.
func (h *history) advance() {
	h.now += h.step()
	// All microseconds are doubles up to the year 2255.
	if h.now < 0 || h.now > 1<<53-1<<50 {
		h.now = storetest.Epoch.UnixMicro()
	}
}

// step is how far the clock goes. Half of the steps land where something changes, or beside it.
func (h *history) step() int64 {
	window := h.limit.Window.Microseconds()
	beside := h.random.Int64N(3) - 1
	switch h.random.IntN(10) {
	case 0:
		return 0
	case 1:
		return window - h.now%window + beside
	case 2:
		return window/h.limit.Requests + beside
	case 3, 4:
		if len(h.soon) > 0 {
			return h.soon[h.random.IntN(len(h.soon))] + beside
		}
		return 1
	case 5:
		return -[]int64{1, 999_999, 1_000_000, 1_000_001, window, h.random.Int64N(4_000_000)}[h.random.IntN(6)]
	case 6:
		return h.random.Int64N(4 * window)
	case 7:
		if h.random.IntN(20) == 0 {
			return oddities[h.random.IntN(len(oddities))].UnixMicro() - h.now
		}
	}
	return h.random.Int64N(1 + 2*window/min(h.limit.Requests, window))
}

// run gives what Redis answers and holds after each of the batches, all sent at once.
func run(t *testing.T, client *redis.Client, scripts deployed, batches []batch) []outcome {
	t.Helper()
	var calls []*strategy.Call
	var replies []*redis.Cmd
	var values []*redis.Cmd
	var expiries []*redis.SliceCmd
	_, err := client.Pipelined(t.Context(), func(p redis.Pipeliner) error {
		for _, b := range batches {
			c := callOf(b.caller, b.requests)
			p.Set(t.Context(), "clock", b.now, 0)
			calls, replies = append(calls, c), append(replies, scripts.run(t.Context(), p, c))
			values = append(values, p.EvalSha(t.Context(), scripts.values, keys))
			expiries = append(expiries, p.MGet(t.Context(), expiryKeys()...))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	outcomes := make([]outcome, len(batches))
	for i := range batches {
		outcomes[i] = outcome{States: map[string]string{}, expiries: map[string][2]int64{}}
		verdicts, err := calls[i].Verdicts(replies[i].Val().([]any))
		if err != nil {
			t.Fatal(err)
		}
		outcomes[i].Verdicts = slices.Concat(verdicts...)
		for k, key := range keys {
			if value := values[i].Val().([]any)[k].(string); value != "" {
				state, expiry := cut(value)
				told, _ := strconv.ParseInt(fmt.Sprint(expiries[i].Val()[k]), 10, 64)
				outcomes[i].States[key], outcomes[i].expiries[key] = state, [2]int64{expiry, told}
			}
		}
	}
	return outcomes
}

// deployed are the hashes of scripts that Redis knows.
type deployed struct {
	all   string
	apart string
	// values is of a script that gives what keys hold, with the header before it.
	values string
}

const valuesLua = `local values = {}
for i = 1, #KEYS do
  local key = KEYS[i]
  local kind = redis.call('TYPE', key).ok
  if kind == 'string' then
    values[i] = redis.call('GET', key)
  elseif kind == 'list' then
    values[i] = struct.pack('<BI5', 9, redis.call('GET', key .. ':expires')) .. table.concat(redis.call('LRANGE', key, 0, -1))
  elseif kind == 'hash' then
    local fields, entries = redis.call('HGETALL', key), {}
    for f = 1, #fields, 2 do
      if fields[f] ~= '' then entries[#entries + 1] = fields[f] .. fields[f + 1] end
    end
    table.sort(entries, function(a, b) return struct.unpack('<d', a) < struct.unpack('<d', b) end)
    values[i] = redis.call('HGET', key, '') .. table.concat(entries)
  else
    values[i] = ''
  end
end
return values`

func deploy(t *testing.T, client *redis.Client, change func(script string) string) deployed {
	t.Helper()
	load := func(script string) string {
		sha, err := client.ScriptLoad(t.Context(), change(script)).Result()
		if err != nil {
			t.Fatal(err)
		}
		return sha
	}
	d := deployed{all: load(strategy.Script), apart: load(strategy.Apart)}
	sha, err := client.ScriptLoad(t.Context(), valuesLua).Result()
	if err != nil {
		t.Fatal(err)
	}
	d.values = sha
	return d
}

// run runs a call as the store does.
func (d deployed) run(ctx context.Context, client redis.Cmdable, c *strategy.Call) *redis.Cmd {
	if args, ok := c.Apart(); ok {
		return client.EvalSha(ctx, d.apart, c.Keys(), args...)
	}
	return client.EvalSha(ctx, d.all, c.Keys(), c.Args()...)
}

// cut gives the state of a value with its layout, and the second in which it expires.
func cut(value string) (state string, expiry int64) {
	for i := range 5 {
		expiry |= int64(value[1+i]) << (8 * i)
	}
	return value[:1] + value[6:], expiry
}

func callOf(now int64, requests [][]limiter.Hit) *strategy.Call {
	var c strategy.Call
	c.Reset(now)
	for _, hits := range requests {
		c.Add(strategy.Request{Hits: hits})
	}
	return &c
}

func expiryKeys() []string {
	var names []string
	for _, key := range keys {
		names = append(names, key+":expires")
	}
	return names
}

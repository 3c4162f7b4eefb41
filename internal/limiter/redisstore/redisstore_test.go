// SPDX-License-Identifier: Apache-2.0

package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/redisstore"
	"github.com/weir-dev/weir/internal/limiter/storetest"
	"github.com/weir-dev/weir/internal/limiter/strategy"
	"github.com/weir-dev/weir/internal/redistest"
)

// onClock makes a script take the time from the key "clock", in microseconds, and keep what it writes for
// ever, with the second in which it would expire beside it. The script's own text stays as it is: only the redis it
// sees differs.
func onClock(script string) string {
	return `local real = redis
local function time()
  local now = tonumber(real.call('GET', 'clock'))
  return math.floor(now / 1000000), now % 1000000
end
local function expire(key, ttl)
  return real.call('SET', key .. ':expires', string.format('%.0f', time() + ttl))
end
local redis = {call = function(command, key, ...)
  if command == 'TIME' then
    local second, micros = time()
    return {string.format('%.0f', second), string.format('%.0f', micros)}
  elseif command == 'SETEX' then
    local ttl, state = ...
    expire(key, ttl)
    return real.call('SET', key, state)
  elseif command == 'EXPIRE' then
    local ttl, greater = ...
    local expires = greater and tonumber(real.call('GET', key .. ':expires')) or 0
    return time() + ttl > expires and expire(key, ttl)
  elseif command == 'DEL' then
    return real.call('DEL', key, key .. ':expires')
  end
  return real.call(command, key, ...)
end, pcall = redis.pcall}
` + script
}

func TestStore(t *testing.T) {
	client := redistest.Start(t).Client(t)
	storetest.Run(t, func(t *testing.T) (limiter.Store, func(time.Duration)) {
		ctx := t.Context()
		if err := client.FlushAll(ctx).Err(); err != nil {
			t.Fatal(err)
		}
		if err := client.Set(ctx, "clock", storetest.Epoch.UnixMicro(), 0).Err(); err != nil {
			t.Fatal(err)
		}
		advance := func(d time.Duration) {
			if err := client.IncrBy(ctx, "clock", d.Microseconds()).Err(); err != nil {
				t.Fatal(err)
			}
		}
		return redisstore.NewOf(client, onClock), advance
	})
}

func TestOnRedisClock(t *testing.T) {
	server := redistest.Start(t)
	store, client := redisstore.New(server.Client(t)), server.Client(t)
	bucket := limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 100, Window: 8784 * time.Hour, Burst: 100}
	window := limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 3, Window: 8784 * time.Hour}

	t.Run("50 callers at once are admitted as often as one", func(t *testing.T) {
		var sum atomic.Int64
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				for range 10 {
					if v, err := store.Take(t.Context(), []limiter.Hit{{Key: "many", Limit: bucket, Cost: 1}}); err != nil {
						t.Error(err)
					} else if v[0].Allowed {
						sum.Add(1)
					}
				}
			})
		}
		wg.Wait()
		if sum.Load() != 100 {
			t.Errorf("%d requests were admitted, not 100", sum.Load())
		}
	})
	t.Run("a window ends, on Redis's clock, at a multiple of its length", func(t *testing.T) {
		hour := limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 3, Window: time.Hour}
		before := serverTime(t, client)
		end := take(t, store, limiter.Hit{Key: "aligned", Limit: hour, Cost: 1}).ResetAfter
		after := serverTime(t, client)
		first, last := before.Add(end), after.Add(end)
		if last.Truncate(time.Hour).Before(first) {
			t.Errorf("the window ends between %s and %s", first, last)
		}
	})
	t.Run("a counter expires within two minutes of the end of its window, and not before", func(t *testing.T) {
		hour := limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 3, Window: time.Hour}
		before := serverTime(t, client)
		take(t, store, limiter.Hit{Key: "expires", Limit: hour, Cost: 1})
		after := serverTime(t, client)
		expires, err := client.PExpireTime(t.Context(), "expires").Result()
		if err != nil {
			t.Fatal(err)
		}
		at := time.UnixMilli(expires.Milliseconds())
		if first, last := endOfHour(before), endOfHour(after).Add(2*time.Minute); at.Before(first) || at.After(last) {
			t.Errorf("the counter expires at %s, not from %s to %s", at, first, last)
		}
	})
	for _, algorithm := range []limiter.Algorithm{limiter.SlidingWindowLog, limiter.Concurrency} {
		t.Run(fmt.Sprint("a counter of ", algorithm, " expires a window after the last request, or up to three minutes later"), func(t *testing.T) {
			hit := limiter.Hit{Key: "expires-" + string(algorithm), Cost: 1}
			hit.Limit = limiter.Limit{Algorithm: algorithm, Requests: 100, Window: time.Hour}
			take(t, store, hit)
			take(t, store, hit)
			before := serverTime(t, client)
			// Another script decides a batch.
			if remaining, errs := redisstore.Decide(store, batchOf(hit, 3)); remaining[2] != 95 {
				t.Errorf("%d remain, not 95: %v", remaining[2], errs)
			}
			after := serverTime(t, client)
			expires, err := client.PExpireTime(t.Context(), hit.Key).Result()
			if err != nil {
				t.Fatal(err)
			}
			at := time.UnixMilli(expires.Milliseconds())
			if first, last := before.Add(time.Hour), after.Add(time.Hour+3*time.Minute); at.Before(first) || at.After(last) {
				t.Errorf("it expires at %s, not from %s to %s", at, first, last)
			}
		})
	}
	t.Run("a denied request writes nothing", func(t *testing.T) {
		hit := limiter.Hit{Key: "denied", Limit: window, Cost: 4}
		if v := take(t, store, hit); v.Allowed {
			t.Errorf("got %+v", v)
		}
		if n := client.Exists(t.Context(), "denied").Val(); n != 0 {
			t.Error("the counter exists")
		}
	})
	t.Run("a script that Redis has forgotten is sent again", func(t *testing.T) {
		hit := limiter.Hit{Key: "forgotten", Limit: window, Cost: 1}
		for want := int64(2); want >= 0; want-- {
			if err := client.ScriptFlush(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			if v := take(t, store, hit); v.Remaining != want {
				t.Errorf("%d remain, not %d", v.Remaining, want)
			}
		}
	})
	t.Run("a caller that gives up gets its error, though the client heeds no context", func(t *testing.T) {
		if err := server.Pause(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = server.Resume() }()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, err := store.Take(ctx, []limiter.Hit{{Key: "late", Limit: window, Cost: 1}})
		if got := redisstore.Reason(err); got != "timeout" {
			t.Errorf("the reason is %q: %v", got, err)
		}
	})
}

// counted is a client that knows how its script is called.
type counted struct {
	redis.Scripter
	calls, atOnce         atomic.Int64
	mostAtOnce, mostAList atomic.Int64
}

func (c *counted) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	c.calls.Add(1)
	raise(&c.mostAtOnce, c.atOnce.Add(1))
	defer c.atOnce.Add(-1)
	requests := int64(1)
	if len(args) > 1 {
		// All of them are equal, and ride as one: how many they are is the second byte.
		requests = int64(args[1].(string)[1])
	}
	raise(&c.mostAList, requests)
	return c.Scripter.EvalSha(ctx, sha, keys, args...)
}

func raise(most *atomic.Int64, n int64) {
	for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
	}
}

func TestFlood(t *testing.T) {
	hit := limiter.Hit{Key: "flood", Limit: limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 1, Window: 8784 * time.Hour}, Cost: 1}
	client := &counted{Scripter: redistest.Start(t).Client(t)}
	store := redisstore.New(client)
	const callers, each = 256, 40
	var admitted atomic.Int64
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range each {
				if v, err := store.Take(t.Context(), []limiter.Hit{hit}); err != nil {
					t.Error(err)
				} else if v[0].Allowed {
					admitted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := admitted.Load(); n != 1 {
		t.Errorf("%d requests were admitted, not 1", n)
	}
	if n := client.mostAtOnce.Load(); n > 4 {
		t.Errorf("%d calls were under way at once, more than 4", n)
	}
	if n := client.mostAList.Load(); n > 128 {
		t.Errorf("a call had %d requests, more than 128", n)
	}
	if n := client.calls.Load(); n > callers*each/2 {
		t.Errorf("%d requests took %d calls: they don't ride together", callers*each, n)
	}
}

func TestSpoiledCounters(t *testing.T) {
	client := redistest.Start(t).Client(t)
	l := limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 9, Window: 8784 * time.Hour, Burst: 9}
	batch := func() (remaining []int64, errs []error) {
		var requests [][]limiter.Hit
		for _, key := range []string{"a", "b", "a", "spoiled", "a", "spoiled", "b"} {
			requests = append(requests, []limiter.Hit{{Key: key, Limit: l, Cost: 1}})
		}
		return redisstore.Decide(redisstore.New(client), requests)
	}
	for name, test := range map[string]struct {
		spoil func(ctx context.Context) error
		want  []int64
	}{
		"a value of another type is no state, and is replaced": {
			func(ctx context.Context) error { return client.LPush(ctx, "spoiled", "x").Err() },
			[]int64{8, 8, 7, 8, 6, 7, 7},
		},
		"a broken state fails its own requests, and no other of the batch is lost or charged twice": {
			func(ctx context.Context) error { return client.Set(ctx, "spoiled", "\x0a.....x", 0).Err() },
			[]int64{8, 8, 7, -1, 6, -1, 7},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := client.FlushAll(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			if err := test.spoil(t.Context()); err != nil {
				t.Fatal(err)
			}
			remaining, errs := batch()
			if diff := cmp.Diff(test.want, remaining); diff != "" {
				t.Errorf("remaining, or -1 for an error (-want +got):\n%s\n%v", diff, errs)
			}
		})
	}
}

func TestOtherTypes(t *testing.T) {
	client, ctx := redistest.Start(t).Client(t), t.Context()
	store := redisstore.New(client)
	for _, algorithm := range []limiter.Algorithm{limiter.SlidingWindowLog, limiter.Concurrency, limiter.TokenBucket} {
		hit := limiter.Hit{Key: "a", Limit: limiter.Limit{Algorithm: algorithm, Requests: 5, Window: time.Hour, Burst: 5}, Cost: 1}
		for name, cmd := range map[string][]any{
			"a string of no layout":      {"SET", "a", "x"},
			"a string of another layout": {"SETEX", "a", 7200, "\xff123456"},
			"a set":                      {"SADD", "a", "x"},
			"a hash of no layout":        {"HSET", "a", "x", "y"},
			"a hash of another layout":   {"HSET", "a", "", "\xff123456"},
		} {
			t.Run(fmt.Sprint(name, " is no state of ", algorithm, ", and is replaced"), func(t *testing.T) {
				client.Del(ctx, "a")
				if err := client.Do(ctx, cmd...).Err(); err != nil {
					t.Fatal(err)
				}
				remaining, errs := redisstore.Decide(store, batchOf(hit, 2))
				if diff := cmp.Diff([]int64{4, 3}, remaining); diff != "" {
					t.Errorf("remaining (-want +got):\n%s\n%v", diff, errs)
				}
				if v := take(t, store, hit); v.Remaining != 2 {
					t.Errorf("%d remain, not 2", v.Remaining)
				}
				if ttl := client.TTL(ctx, "a").Val(); ttl <= 0 {
					t.Errorf("it lives for %s", ttl)
				}
			})
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	store := redisstore.New(redistest.Start(t).Client(t))
	for _, algorithm := range []limiter.Algorithm{limiter.SlidingWindowLog, limiter.Concurrency} {
		t.Run(fmt.Sprint(algorithm, " admits all that it ever can in one batch"), func(t *testing.T) {
			const all = 10_000
			hit := limiter.Hit{Key: string(algorithm), Limit: limiter.Limit{Algorithm: algorithm, Requests: all, Window: time.Hour}, Cost: 1}
			var want []int64
			for n := range int64(all) {
				want = append(want, all-1-n)
			}
			remaining, _ := redisstore.Decide(store, batchOf(hit, all))
			if diff := cmp.Diff(want, remaining); diff != "" {
				t.Errorf("remaining, or -1 for an error (-want +got):\n%s", diff)
			}
			if v := take(t, store, hit); v.Allowed {
				t.Errorf("one more got %+v", v)
			}
		})
	}
}

// deaf is a client that makes its calls, and never hears the answers.
type deaf struct {
	redis.Scripter
	err error
}

func (d deaf) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	cmd := d.Scripter.EvalSha(ctx, sha, keys, args...)
	cmd.SetErr(d.err)
	return cmd
}

func TestNothingIsSentTwice(t *testing.T) {
	client := redistest.Start(t).Client(t)
	hit := limiter.Hit{Limit: limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 100, Window: 8784 * time.Hour}, Cost: 1}
	store := redisstore.New(client)
	hit.Key = "known" // From here on Redis knows the script of batches.
	redisstore.Decide(store, batchOf(hit, 2))
	for reason, err := range map[string]error{"timeout": os.ErrDeadlineExceeded, "unreachable": io.EOF, "other": errors.New("whatever")} {
		t.Run("a batch whose answer is lost is charged once: "+reason, func(t *testing.T) {
			hit.Key = reason
			_, errs := redisstore.Decide(redisstore.New(deaf{client, err}), batchOf(hit, 10))
			for _, err := range errs {
				if got := redisstore.Reason(err); got != reason {
					t.Errorf("the reason is %q: %v", got, err)
				}
			}
			peek := hit
			peek.Cost = 0
			if v := take(t, store, peek); v.Remaining != 90 {
				t.Errorf("%d remain, not 90", v.Remaining)
			}
		})
	}
}

func TestReason(t *testing.T) {
	server := redistest.Start(t)
	ctx, client := t.Context(), server.Client(t)
	hit := limiter.Hit{Key: "a", Limit: limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 9, Window: time.Hour}, Cost: 1}
	failure := func(c redis.Scripter) error {
		_, err := redisstore.New(c).Take(ctx, []limiter.Hit{hit})
		return err
	}
	config := func(key, value string) {
		t.Helper()
		if err := client.ConfigSet(ctx, key, value).Err(); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]string{
		"none":     redisstore.Reason(nil),
		"invalid":  redisstore.Reason(strategy.Check([]limiter.Hit{{}})),
		"canceled": redisstore.Reason(fmt.Errorf("taking: %w", context.Canceled)),
		"deadline": redisstore.Reason(&net.OpError{Op: "read", Err: os.ErrDeadlineExceeded}),
		"open":     redisstore.Reason(fmt.Errorf("%w: %w", limiter.ErrNotAsked, io.EOF)),
		"pool":     redisstore.Reason(redis.ErrPoolTimeout),
		"reset":    redisstore.Reason(fmt.Errorf("reading: %w", syscall.ECONNRESET)),
		"end":      redisstore.Reason(io.EOF),
		"unknown":  redisstore.Reason(errors.New("whatever")),
	}
	config("maxmemory", "1")
	got["full"] = redisstore.Reason(failure(client))
	config("maxmemory", "0")
	config("min-replicas-to-write", "1")
	got["no replicas"] = redisstore.Reason(failure(client))
	config("min-replicas-to-write", "0")
	if err := client.Do(ctx, "ACL", "SETUSER", "reader", "on", ">pw", "~*", "+get").Err(); err != nil {
		t.Fatal(err)
	}
	for name, password := range map[string]string{"no permission": "pw", "wrong password": "x"} {
		c := redis.NewClient(&redis.Options{Addr: server.Addr, Username: "reader", Password: password, MaxRetries: -1, DisableIdentity: true})
		got[name] = redisstore.Reason(failure(c))
		_ = c.Close()
	}
	if err := client.Set(ctx, "a", "", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if err := client.ReplicaOf(ctx, "127.0.0.1", "1").Err(); err != nil {
		t.Fatal(err)
	}
	got["replica"] = redisstore.Reason(failure(client))
	server.Kill()
	got["down"] = redisstore.Reason(failure(client))

	want := map[string]string{
		"none": "", "open": "open", "invalid": "invalid", "canceled": "canceled", "deadline": "timeout", "pool": "timeout",
		"reset": "unreachable", "end": "unreachable", "unknown": "other", "full": "oom", "no replicas": "readonly",
		"no permission": "auth", "wrong password": "auth", "replica": "readonly", "down": "unreachable",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("reasons (-want +got):\n%s", diff)
	}
	for name, reason := range got {
		if reason != "" && !slices.Contains(redisstore.Reasons(), reason) {
			t.Errorf("%s: %s is not among all reasons", name, reason)
		}
	}
}

// BenchmarkTake tells the time of a decision, all callers together, and how much of it Redis works.
func BenchmarkTake(b *testing.B) {
	client := redistest.Start(b).Client(b)
	l := limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 100, Window: time.Second, Burst: 100}
	for _, callers := range []int{1, 4, 16, 64, 256} {
		b.Run(fmt.Sprint("callers=", callers), func(b *testing.B) {
			store := redisstore.New(client)
			before := busy(b, client)
			var left atomic.Int64
			left.Store(int64(b.N))
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					for n := left.Add(-1); n >= 0; n = left.Add(-1) {
						hit := limiter.Hit{Key: fmt.Sprint("weir:bench:{shop/0}:", n%10_000), Limit: l, Cost: 1}
						if _, err := store.Take(b.Context(), []limiter.Hit{hit}); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64((busy(b, client)-before).Nanoseconds())/float64(b.N), "redis-ns/op")
		})
	}
}

// busy is the processor time that Redis has used.
func busy(b *testing.B, client *redis.Client) time.Duration {
	b.Helper()
	info, err := client.InfoMap(b.Context(), "cpu").Result()
	if err != nil {
		b.Fatal(err)
	}
	var seconds float64
	for _, name := range []string{"used_cpu_sys", "used_cpu_user"} {
		s, err := strconv.ParseFloat(info["CPU"][name], 64)
		if err != nil {
			b.Fatal(err)
		}
		seconds += s
	}
	return time.Duration(seconds * float64(time.Second))
}

func take(t *testing.T, store limiter.Store, h limiter.Hit) limiter.Verdict {
	t.Helper()
	v, err := store.Take(t.Context(), []limiter.Hit{h})
	if err != nil {
		t.Fatal(err)
	}
	return v[0]
}

func endOfHour(now time.Time) time.Time {
	return now.Truncate(time.Hour).Add(time.Hour)
}

func serverTime(t *testing.T, client *redis.Client) time.Time {
	t.Helper()
	now, err := client.Time(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	return now
}

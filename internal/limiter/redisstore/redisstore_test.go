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
// ever, with the time to live beside it. The script's own text stays as it is: only the redis it sees differs.
func onClock(script string) string {
	return `local real = redis
local redis = {call = function(command, key, value, px, ttl)
  if command == 'TIME' then
    local now = tonumber(real.call('GET', 'clock'))
    return {string.format('%.0f', math.floor(now / 1000000)), string.format('%.0f', now % 1000000)}
  end
  if command == 'GET' then return real.call('GET', key) end
  assert(command == 'SET' and px == 'PX')
  real.call('SET', key .. ':ttl', ttl)
  return real.call('SET', key, value)
end}
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
		return redisstore.NewOf(client, onClock(strategy.Script)), advance
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
	t.Run("a counter expires, but not before its window has ended", func(t *testing.T) {
		hour := limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 3, Window: time.Hour}
		before := serverTime(t, client)
		take(t, store, limiter.Hit{Key: "expires", Limit: hour, Cost: 1})
		after := serverTime(t, client)
		expires, err := client.PExpireTime(t.Context(), "expires").Result()
		if err != nil {
			t.Fatal(err)
		}
		at := time.UnixMilli(expires.Milliseconds())
		if first, last := endOfHour(before), endOfHour(after).Add(time.Minute); at.Before(first) || at.After(last) {
			t.Errorf("the counter expires at %s, not from %s to %s", at, first, last)
		}
	})
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
	t.Run("a caller that gives up gets its error", func(t *testing.T) {
		if err := server.Pause(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = server.Resume() }()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		patient := redis.NewClient(&redis.Options{Addr: server.Addr, MaxRetries: -1, ContextTimeoutEnabled: true, DisableIdentity: true})
		defer func() { _ = patient.Close() }()
		_, err := redisstore.New(patient).Take(ctx, []limiter.Hit{{Key: "late", Limit: window, Cost: 1}})
		if got := redisstore.Reason(err); got != "timeout" {
			t.Errorf("the reason is %q: %v", got, err)
		}
	})
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
		"none": "", "invalid": "invalid", "canceled": "canceled", "deadline": "timeout", "pool": "timeout",
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

func BenchmarkTake(b *testing.B) {
	client := redistest.Start(b).Client(b)
	l := limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 100, Window: time.Second, Burst: 100}
	for _, limits := range []int{1, 3} {
		b.Run(fmt.Sprint("limits=", limits), func(b *testing.B) {
			store := redisstore.New(client)
			var caller atomic.Int64
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				id := caller.Add(1)
				for i := 0; pb.Next(); i++ {
					var hits []limiter.Hit
					for n := range limits {
						key := fmt.Sprintf("weir:bench:{shop/%d}:%d-%d", id, i%1000, n)
						hits = append(hits, limiter.Hit{Key: key, Limit: l, Cost: 1})
					}
					if _, err := store.Take(b.Context(), hits); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
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

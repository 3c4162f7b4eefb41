// SPDX-License-Identifier: Apache-2.0

package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/guard"
	"github.com/weir-dev/weir/internal/limiter/redisstore"
	"github.com/weir-dev/weir/internal/limiter/storetest"
	"github.com/weir-dev/weir/internal/limiter/strategy"
	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/redistest"
)

// dial gives a client as the sidecar has it.
func dial(tb testing.TB, url string) *redis.ClusterClient {
	tb.Helper()
	client, err := redisclient.OpenCounting(url)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = client.Close() })
	return client.(*redis.ClusterClient)
}

// patience, after a URL, is for calls that end when they are answered, however long a busy machine takes.
const patience = "?dial_timeout=30s&read_timeout=30s&write_timeout=30s"

// circuit gives one as the sidecar has it.
func circuit() redisstore.Circuit { return guard.NewCircuit(redisstore.Unanswered) }

// year is a window in which nothing of a test ends.
const year = 8784 * time.Hour

func TestCluster(t *testing.T) {
	cluster := redistest.StartCluster(t)
	client := dial(t, cluster.URL()+patience)
	fresh := func(t *testing.T) *redisstore.Cluster {
		t.Helper()
		if err := cluster.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		return redisstore.NewCluster(client, circuit)
	}
	t.Run("passes the suite of stores", func(t *testing.T) { testSuite(t, cluster, client) })
	t.Run("64 callers are admitted exactly as often as each limit says", func(t *testing.T) { testExact(t, fresh(t)) })
	t.Run("limits in several slots never admit more than the strictest, and what they refuse is given back", func(t *testing.T) {
		testSpread(t, fresh(t))
	})
	t.Run("a refused request is told of all its limits, wherever they are", func(t *testing.T) { testTold(t, fresh(t)) })
	t.Run("a script that one node has forgotten is sent to it again", func(t *testing.T) {
		testForgotten(t, cluster, fresh(t))
	})
	t.Run("slots that move under load cost no error and no request too many", func(t *testing.T) {
		testMoves(t, cluster, fresh(t))
	})
}

// testSuite has the whole suite on a clock of its own: one for each slot, as a script can't look into another.
func testSuite(t *testing.T, cluster *redistest.Cluster, client *redis.ClusterClient) {
	storetest.Run(t, func(t *testing.T) (limiter.Store, func(time.Duration)) {
		ctx := t.Context()
		if err := cluster.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		if err := client.Set(ctx, "{shop/0}clock", storetest.Epoch.UnixMicro(), 0).Err(); err != nil {
			t.Fatal(err)
		}
		advance := func(d time.Duration) {
			if err := client.IncrBy(ctx, "{shop/0}clock", d.Microseconds()).Err(); err != nil {
				t.Fatal(err)
			}
		}
		return redisstore.NewClusterOf(client, circuit, onClockOfSlot), advance
	})
}

// onClockOfSlot is [onClock] with a clock for each partition: the key "{shop/0}clock" is that of "{shop/0}".
func onClockOfSlot(script string) string {
	return strings.ReplaceAll(onClock(script), "'clock'", "string.match(KEYS[1], '{.-}') .. 'clock'")
}

// years are those of the calendar.
var years = limiter.Calendar{Unit: limiter.Year, TimeZone: "UTC"}

// on gives a hit on a counter of a partition.
func on(partition int, l limiter.Limit) limiter.Hit {
	return limiter.Hit{Key: fmt.Sprintf("weir:test:{shop/%d}:%s", partition, l.Algorithm), Limit: l, Cost: 1}
}

func testExact(t *testing.T, store *redisstore.Cluster) {
	for i, l := range []limiter.Limit{
		{Algorithm: limiter.FixedWindow, Requests: 1000, Window: year},
		{Algorithm: limiter.TokenBucket, Requests: 1000, Window: year, Burst: 1000},
	} {
		if n := flood(t, store, 64, 20, on(i, l)); n != 1000 {
			t.Errorf("%s admitted %d, not 1000", l.Algorithm, n)
		}
	}
}

// flood has callers request the same at once, and counts what is admitted.
func flood(t *testing.T, store limiter.Store, callers, each int, hits ...limiter.Hit) int64 {
	t.Helper()
	var sum atomic.Int64
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for range each {
				if v, err := store.Take(t.Context(), hits); err != nil {
					t.Error(err)
				} else if admits(v) {
					sum.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return sum.Load()
}

func admits(verdicts []limiter.Verdict) bool {
	return !slices.ContainsFunc(verdicts, func(v limiter.Verdict) bool { return !v.Allowed })
}

func testSpread(t *testing.T, store *redisstore.Cluster) {
	narrow := limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 60, Window: year}
	for i, algorithm := range strategy.Names() {
		wide := limiter.Limit{Algorithm: algorithm, Requests: 1000, Window: year, Calendar: years, Burst: 1000, MaxDelay: year, MaxQueue: 999}
		costs := int64(1)
		if algorithm == limiter.LeakyBucketMeter {
			wide.Window, costs = 10*time.Millisecond, 0 // It admits one at a time: here it is only asked.
		}
		w, n := on(10*i, wide), on(10*i+1, narrow)
		w.Cost = costs
		if got := flood(t, store, 16, 10, w, n); got != 60 {
			t.Errorf("%s and a limit of 60 admitted %d", algorithm, got)
		}
		w.Cost = 0
		// A bucket keeps what it gained since: a millionth here, but what remains is rounded down.
		if got := take(t, store, w).Remaining; costs > 0 && got != 940 && (algorithm != limiter.TokenBucket || got != 939) {
			t.Errorf("%s has %d left, not 940", algorithm, got)
		}
	}
}

func testTold(t *testing.T, store *redisstore.Cluster) {
	one := limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 1, Window: year}
	three := limiter.Limit{Algorithm: limiter.SlidingWindowRing, Requests: 3, Window: year}
	first, refuses, last, shadow := on(0, three), on(1, one), on(2, three), on(3, one)
	shadow.Shadow = true
	take(t, store, refuses)
	verdicts, err := store.Take(t.Context(), []limiter.Hit{shadow, first, refuses, last})
	if err != nil {
		t.Fatal(err)
	}
	type told struct {
		Allowed   bool
		Remaining int64
		Waits     bool
	}
	var got []told
	for _, v := range verdicts {
		got = append(got, told{v.Allowed, v.Remaining, v.RetryAfter > 0})
	}
	if diff := cmp.Diff([]told{{}, {true, 3, false}, {false, 0, true}, {true, 3, false}}, got); diff != "" {
		t.Errorf("verdicts (-want +got):\n%s", diff)
	}
	full := on(4, one)
	take(t, store, full)
	if verdicts, err = store.Take(t.Context(), []limiter.Hit{refuses, full}); err != nil || verdicts[1].RetryAfter <= 0 {
		t.Errorf("of two that refuse, the second tells %+v, %v", verdicts, err)
	}
}

func testForgotten(t *testing.T, cluster *redistest.Cluster, store *redisstore.Cluster) {
	l := limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 9, Window: year}
	for want := int64(8); want >= 0; want-- {
		node := cluster.Masters[want%3].Client(t)
		if err := node.ScriptFlush(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		for p := range 8 {
			if v := take(t, store, on(p, l)); v.Remaining != want {
				t.Errorf("%d remain in partition %d, not %d", v.Remaining, p, want)
			}
		}
	}
}

func testMoves(t *testing.T, cluster *redistest.Cluster, store *redisstore.Cluster) {
	l := limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 100, Window: year}
	const partitions = 20
	done := make(chan struct{})
	var admitted [partitions]atomic.Int64
	var callers sync.WaitGroup
	for caller := range 8 {
		callers.Go(func() {
			other := l
			other.Algorithm = limiter.SlidingWindowRing
			for i := caller; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				p := i % partitions
				// New counters beside the old one: they are where the slot goes to.
				fresh := on(p, other)
				fresh.Key += fmt.Sprint(caller, i)
				verdicts, err := store.Take(t.Context(), []limiter.Hit{on(p, l), fresh})
				if err != nil {
					t.Error(err)
				} else if admits(verdicts) {
					admitted[p].Add(1)
				}
			}
		})
	}
	err := errors.Join(moveAll(t.Context(), cluster, 0, 1), moveAll(t.Context(), cluster, 1, 2))
	close(done)
	callers.Wait()
	if err != nil {
		t.Fatal(err)
	}
	for p := range partitions {
		if n := admitted[p].Load() + flood(t, store, 1, 100, on(p, l)); n != 100 {
			t.Errorf("partition %d admitted %d, not 100", p, n)
		}
	}
}

// moveAll moves the slots of all partitions of the test that one master has to another.
func moveAll(ctx context.Context, cluster *redistest.Cluster, from, to int) error {
	for p := range 20 {
		slot, err := cluster.Slot(ctx, fmt.Sprintf("{shop/%d}", p))
		if err != nil {
			return err
		}
		if slot*3/16384 != from {
			continue
		}
		if err := cluster.Move(ctx, cluster.Masters[from], cluster.Masters[to], slot); err != nil {
			return err
		}
	}
	return nil
}

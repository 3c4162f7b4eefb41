// SPDX-License-Identifier: Apache-2.0

package memorystore

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// room is a store on a clock that stands still until it is set.
type room struct {
	*Store
	now time.Time
}

func newRoom(counters int) *room {
	r := &room{now: time.Date(2026, time.March, 1, 0, 0, 0, 0, time.UTC)}
	r.Store = New(Options{MaxCounters: counters, Now: func() time.Time { return r.now }})
	return r
}

func (r *room) take(t *testing.T, key int, l limiter.Limit) limiter.Verdict {
	t.Helper()
	v, err := r.Take(t.Context(), []limiter.Hit{hitOf(key, l)})
	if err != nil {
		t.Fatal(err)
	}
	return v[0]
}

func hitOf(key int, l limiter.Limit) limiter.Hit {
	return limiter.Hit{Key: fmt.Sprint(key), Limit: l, Cost: 1}
}

// counters is how many keys have one of their own.
func (r *room) counters() int {
	n := 0
	for i := range r.shards {
		n += int(r.shards[i].table.length)
	}
	return n
}

// bytes is the memory of all counters, but for what a page of each shard has left.
func (r *room) bytes() int {
	const pointer, header = 8, 24
	sum := -len(r.shards) * chunkSize * int(unsafe.Sizeof(slot{}))
	for i := range r.shards {
		t := &r.shards[i].table
		sum += pointer*cap(t.chunks) + len(t.chunks)*chunkSize*int(unsafe.Sizeof(slot{}))
		sum += 4*cap(t.heads) + 4*cap(t.free) + header*cap(t.states)
		for _, state := range t.states {
			sum += cap(state)
		}
	}
	return sum
}

func TestMaxCountersBoundsBytes(t *testing.T) {
	const counters, keys, requests = 300, 400, 100
	for _, test := range []struct {
		algorithm limiter.Algorithm
		want      int
	}{
		{limiter.TokenBucket, counters},
		{limiter.SlidingWindowRing, counters},
		// 856 and 1840 bytes.
		{limiter.SlidingWindowLog, counters / 3},
		{limiter.Concurrency, counters / 6},
	} {
		t.Run(fmt.Sprintf("of keys that all have taken what they get of a %s, %d have a counter", test.algorithm, test.want), func(t *testing.T) {
			l := limiter.Limit{Algorithm: test.algorithm, Requests: requests, Window: time.Hour, Burst: requests}
			r := newRoom(counters)
			for range requests {
				for key := range keys {
					r.take(t, key, l)
				}
				r.now = r.now.Add(l.Window / requests / 2)
			}
			if got := r.counters(); got != test.want {
				t.Errorf("%d have", got)
			}
			if got := r.bytes(); got > 800*counters {
				t.Errorf("they take %d bytes, more than 800 for each of %d", got, counters)
			}
		})
	}
}

func TestALimitHasACounterInAnyCase(t *testing.T) {
	l := limiter.Limit{Algorithm: limiter.Concurrency, Requests: 10_000, Window: time.Hour}
	r := newRoom(1)
	permit := r.take(t, 1, l)
	if err := r.Refund(t.Context(), []limiter.Charge{{Hit: hitOf(1, l), Receipt: permit.Receipt}}); err != nil {
		t.Fatal(err)
	}
	if got := r.take(t, 1, l).Remaining; got != 9999 {
		t.Errorf("after a permit came back %d remain, not 9999: the counter is one that is shared", got)
	}
}

func TestEditedLimits(t *testing.T) {
	few := limiter.Limit{Algorithm: limiter.SlidingWindowLog, Requests: 20, Window: time.Hour}
	many := few
	many.Requests = 1000
	t.Run("keys that have a counter keep it when the limit gets larger, and newcomers share one until there is room", func(t *testing.T) {
		const counters = 40
		r := newRoom(counters)
		for key := range counters {
			r.take(t, key, few)
		}
		// Longer than a slot has room for, as is found by the one after.
		for range 5 {
			for key := range counters {
				r.take(t, key, many)
			}
		}
		got := []int64{r.take(t, 0, many).Remaining, r.take(t, 100, many).Remaining, r.take(t, 101, many).Remaining}
		if diff := cmp.Diff([]int64{993, 999, 998}, got); diff != "" {
			t.Errorf("remaining for one that was there, and for two that were not (-want +got):\n%s", diff)
		}
		r.now = r.now.Add(2 * many.Window)
		for key := range 2 * counters { // Each looks at two in its shard.
			other := hitOf(key, few)
			other.Key, other.ID.Limit = other.Key+"-other", "other"
			if _, err := r.Take(t.Context(), []limiter.Hit{other}); err != nil {
				t.Fatal(err)
			}
		}
		r.take(t, 100, few)
		if got := r.take(t, 101, few).Remaining; got != 19 {
			t.Errorf("when all were idle, a newcomer has %d left, not 19", got)
		}
	})
	t.Run("a limit weighs what its counters do, whatever it was", func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 0))
		r := newRoom(2000)
		for range 20_000 {
			l := limiter.Limit{
				Algorithm: []limiter.Algorithm{limiter.TokenBucket, limiter.SlidingWindowLog, limiter.Concurrency}[random.IntN(3)],
				Requests:  1 + random.Int64N(200), Window: time.Minute, Burst: 100,
			}
			r.take(t, random.IntN(60), l)
			r.now = r.now.Add(time.Duration(random.IntN(400)) * time.Millisecond)
		}
		weight := 0
		for i := range r.shards {
			for s := range r.shards[i].table.length {
				weight += int(r.shards[i].table.at(s + 1).weight)
			}
		}
		if got := r.limits.all[0].weight; got != weight || weight == 0 {
			t.Errorf("it weighs %d, and its counters %d", got, weight)
		}
	})
}

func TestWeight(t *testing.T) {
	for _, test := range []struct {
		algorithm limiter.Algorithm
		requests  int64
		want      uint16
	}{
		{limiter.TokenBucket, 1_000_000_000, 1},
		{limiter.SlidingWindowRing, 1_000_000_000, 1},
		{limiter.LeakyBucketQueue, 100, 4},
		{limiter.SlidingWindowLog, 33, 1},
		{limiter.SlidingWindowLog, 34, 2},
		{limiter.SlidingWindowLog, 1000, 26},
		{limiter.SlidingWindowLog, 10_000, 251},
		{limiter.Concurrency, 100, 6},
		{limiter.Concurrency, 10_000, 563},
	} {
		t.Run(fmt.Sprintf("a counter of a %s of %d counts as %d", test.algorithm, test.requests, test.want), func(t *testing.T) {
			l := limiter.Limit{Algorithm: test.algorithm, Requests: test.requests, Window: time.Hour}
			if got := weightOf(&l); got != test.want {
				t.Errorf("it counts as %d, for %d bytes", got, strategy.MaxState(&l))
			}
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package memorystore_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/memorystore"
	"github.com/weir-dev/weir/internal/limiter/storetest"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// clock stands still until it is set.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) { c.Set(c.Now().Add(d)) }

func (c *clock) Set(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = now
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) (limiter.Store, func(time.Duration)) {
		c := &clock{now: storetest.Epoch}
		return memorystore.New(memorystore.Options{Now: c.Now}), c.Advance
	})
}

func TestMaxCounters(t *testing.T) {
	l := limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 5, Window: time.Hour, Burst: 5}
	id := limiter.LimitID{Namespace: "shop", Policy: "checkout", Limit: "per-client"}
	full := func(t *testing.T, c *clock) *memorystore.Store {
		s := memorystore.New(memorystore.Options{Now: c.Now, MaxCounters: 10})
		for i := range 10 {
			allowed(t, s, limiter.Hit{Key: fmt.Sprint("old-", i), Limit: l, Cost: 3, ID: id})
		}
		return s
	}
	t.Run("a flood of keys gets no more than one key does", func(t *testing.T) {
		s := full(t, &clock{now: storetest.Epoch})
		admitted := 0
		for i := range 1000 {
			if allowed(t, s, limiter.Hit{Key: fmt.Sprint("new-", i), Limit: l, Cost: 1, ID: id}) {
				admitted++
			}
		}
		if admitted != 5 {
			t.Errorf("%d of 1000 requests with keys of their own were admitted, not 5", admitted)
		}
	})
	t.Run("a flood of keys takes nothing from those that were there, and gives them nothing", func(t *testing.T) {
		s := full(t, &clock{now: storetest.Epoch})
		for i := range 1000 {
			allowed(t, s, limiter.Hit{Key: fmt.Sprint("new-", i), Limit: l, Cost: 1, ID: id})
		}
		old := limiter.Hit{Key: "old-3", Limit: l, Cost: 1, ID: id}
		got := []bool{allowed(t, s, old), allowed(t, s, old), allowed(t, s, old)}
		if want := [3]bool{true, true, false}; [3]bool(got) != want {
			t.Errorf("a key that had 2 left got %v", got)
		}
	})
	t.Run("a key that has taken from the shared counter gets none of its own while that lasts", func(t *testing.T) {
		c := &clock{now: storetest.Epoch}
		s := memorystore.New(memorystore.Options{Now: c.Now, MaxCounters: 2})
		short := l
		short.Window = time.Minute
		for i := range 2 {
			allowed(t, s, limiter.Hit{Key: fmt.Sprint("old-", i), Limit: short, Cost: 1, ID: id})
		}
		admitted := 0
		for range 20 {
			for range 10 {
				if allowed(t, s, limiter.Hit{Key: "new", Limit: l, Cost: 1, ID: id}) {
					admitted++
				}
			}
			c.Advance(time.Minute)
		}
		// The burst, and one for each 12 minutes.
		if admitted != 6 {
			t.Errorf("%d requests of one key were admitted in 19 minutes, not 6", admitted)
		}
	})
	t.Run("a flood of keys under one limit refuses none under another", func(t *testing.T) {
		s := full(t, &clock{now: storetest.Epoch})
		other := id
		other.Policy = "search"
		for i := range 10 {
			for range 5 {
				if !allowed(t, s, limiter.Hit{Key: fmt.Sprint("other-", i), Limit: l, Cost: 1, ID: other}) {
					t.Errorf("other-%d has no counter of its own", i)
				}
			}
		}
	})
	t.Run("two hits of one limit share no counter within a request", func(t *testing.T) {
		s := full(t, &clock{now: storetest.Epoch})
		v, err := s.Take(t.Context(), []limiter.Hit{
			{Key: "new-a", Limit: l, Cost: 4, ID: id},
			{Key: "new-b", Limit: l, Cost: 4, ID: id},
		})
		if err != nil || !v[0].Allowed || !v[1].Allowed {
			t.Errorf("got %+v, %v", v, err)
		}
	})
	t.Run("counters that have expired make room", func(t *testing.T) {
		c := &clock{now: storetest.Epoch}
		s := full(t, c)
		c.Advance(24 * time.Hour)
		for i := range 5 {
			key := fmt.Sprint("new-", i)
			if !allowed(t, s, limiter.Hit{Key: key, Limit: l, Cost: 5, ID: id}) {
				t.Errorf("%s has no counter of its own", key)
			}
		}
	})
}

func TestMaxCountersOverManyShards(t *testing.T) {
	l := limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 5, Window: time.Hour, Burst: 5}
	c := &clock{now: storetest.Epoch}
	s := memorystore.New(memorystore.Options{Now: c.Now, MaxCounters: 3000})
	admitted := func(prefix string) int {
		sum := 0
		for i := range 6000 {
			if allowed(t, s, limiter.Hit{Key: fmt.Sprint(prefix, i), Limit: l, Cost: 5}) {
				sum++
			}
		}
		return sum
	}
	if got := admitted("old-"); got != 3001 {
		t.Errorf("%d of 6000 keys were admitted, not 3000 by their own counters and one by the shared one", got)
	}
	c.Advance(24 * time.Hour)
	// Few may be in a shard that no new key comes to in time.
	if got := admitted("new-"); got < 2900 || got > 3001 {
		t.Errorf("when all had expired, %d of 6000 keys were admitted, not about 3000", got)
	}
}

// TestTogether has many requests at once that hit some of the same keys, in any order.
func TestTogether(t *testing.T) {
	for name, most := range map[string]int{"counters of their own": 0, "most of them in shared counters": 8} {
		t.Run(name, func(t *testing.T) {
			const keys, callers, each = 40, 16, 300
			s := memorystore.New(memorystore.Options{Now: func() time.Time { return storetest.Epoch }, MaxCounters: most})
			hits := make([]limiter.Hit, keys)
			for i := range hits {
				l := limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 1000, Window: time.Hour}
				id := limiter.LimitID{Namespace: "shop", Policy: "checkout", Limit: fmt.Sprint(i % 4)}
				hits[i] = limiter.Hit{Key: fmt.Sprint("key-", i), Limit: l, Cost: 1, ID: id}
			}
			var taken [keys]atomic.Int64
			var wg sync.WaitGroup
			for caller := range callers {
				wg.Go(func() {
					random := rand.New(rand.NewPCG(1, uint64(caller)))
					for range each {
						some := random.Perm(keys)[:1+random.IntN(5)]
						var request []limiter.Hit
						for _, i := range some {
							request = append(request, hits[i])
						}
						v, err := s.Take(t.Context(), request)
						if err != nil {
							t.Error(err)
							return
						}
						if slices.ContainsFunc(v, func(v limiter.Verdict) bool { return !v.Allowed }) {
							continue
						}
						for _, i := range some {
							taken[i].Add(1)
						}
					}
				})
			}
			wg.Wait()
			for i := range hits {
				hits[i].Cost = 0
				v, err := s.Take(t.Context(), hits[i:i+1])
				if err != nil {
					t.Fatal(err)
				}
				left := 1000 - taken[i].Load()
				if most == 0 && v[0].Remaining != left || most > 0 && v[0].Remaining > left {
					t.Errorf("key %d has %d left, not %d", i, v[0].Remaining, left)
				}
			}
		})
	}
}

// TestStoreIsAMap holds a store to a map of counters that are never swept, moved or packed.
func TestStoreIsAMap(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		c := &clock{now: storetest.Epoch}
		s := memorystore.New(memorystore.Options{Now: c.Now})
		counters := map[string]*strategy.Counter{}
		var evaluator strategy.Evaluator
		latest, expires := c.Now(), int64(0)
		for range rapid.IntRange(1, 60).Draw(rt, "requests") {
			now := c.Now().Add(time.Duration(drawStep(rt)) * time.Microsecond)
			if expires > 0 && rapid.Bool().Draw(rt, "to an edge") {
				now = time.UnixMicro(expires + rapid.SampledFrom([]int64{-1e6, -1, 0, 1}).Draw(rt, "beside it"))
			}
			// A clock that is set back by more can find again what was not swept yet.
			c.Set(later(now, latest.Add(-time.Second)))
			latest = later(latest, c.Now())
			hits := drawHits(rt)
			want, counted := make([]limiter.Verdict, len(hits)), make([]*strategy.Counter, len(hits))
			for i, h := range hits {
				if counters[h.Key] == nil {
					counters[h.Key] = &strategy.Counter{}
				}
				counted[i] = counters[h.Key]
			}
			evaluator.Decide(c.Now().UnixMicro(), hits, counted, want)
			got, err := s.Take(t.Context(), hits)
			if err != nil {
				rt.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				rt.Fatalf("verdicts (-map +store):\n%s", diff)
			}
			expires = counted[0].Expires
		}
	})
}

// drawStep gives microseconds by which the clock moves.
func drawStep(rt *rapid.T) int64 {
	return rapid.OneOf(
		rapid.Just(int64(0)), rapid.Int64Range(0, 2e6), rapid.Int64Range(-1e6, 0), rapid.Int64Range(0, 4e9),
	).Draw(rt, "step")
}

// drawHits gives one to four hits with keys of their own.
func drawHits(rt *rapid.T) []limiter.Hit {
	keys := rapid.SliceOfNDistinct(rapid.IntRange(0, 100), 1, 4, rapid.ID[int]).Draw(rt, "keys")
	hits := make([]limiter.Hit, len(keys))
	for i, key := range keys {
		// A long state takes the place of a short one when the algorithm of a limit is edited.
		algorithm := rapid.SampledFrom([]limiter.Algorithm{
			limiter.TokenBucket, limiter.FixedWindow, limiter.SlidingWindowRing, limiter.SlidingWindowApproximate,
		}).Draw(rt, "algorithm")
		hits[i] = limiter.Hit{
			Key:    fmt.Sprint(key),
			Limit:  limiter.Limit{Algorithm: algorithm, Requests: 5, Window: time.Second, Burst: 5},
			Cost:   rapid.Int64Range(0, 6).Draw(rt, "cost"),
			Shadow: rapid.IntRange(0, 9).Draw(rt, "shadow") == 0,
		}
	}
	return hits
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func TestAllocations(t *testing.T) {
	s := memorystore.New(memorystore.Options{})
	var hits []limiter.Hit
	for _, algorithm := range strategy.Names() {
		l := limiter.Limit{
			Algorithm: algorithm, Requests: 1e9, Window: time.Second, Burst: 1e9,
			Calendar: limiter.Calendar{Unit: limiter.Day, TimeZone: "Europe/Berlin"},
		}
		if algorithm == limiter.SlidingWindowLog || algorithm == limiter.Concurrency {
			l.Requests = 10_000
		}
		hits = append(hits, limiter.Hit{Key: string(algorithm), Limit: l, Cost: 1})
	}
	allocations := testing.AllocsPerRun(1000, func() {
		if _, err := s.Take(t.Context(), hits); err != nil {
			t.Error(err)
		}
	})
	if allocations > 1 {
		t.Errorf("a decision allocates %.0f times, not once for its verdicts", allocations)
	}
}

func allowed(t *testing.T, s *memorystore.Store, h limiter.Hit) bool {
	t.Helper()
	v, err := s.Take(t.Context(), []limiter.Hit{h})
	if err != nil {
		t.Fatal(err)
	}
	return v[0].Allowed
}

// SPDX-License-Identifier: Apache-2.0

package memorystore_test

import (
	"fmt"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

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

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
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

// BenchmarkTake gives the processor time of a decision, also where others use the machine, and the memory of a
// key, but for the bytes of the string, which nobody keeps.
func BenchmarkTake(b *testing.B) {
	for name, keys := range map[string]int{"hot": 1000, "cold": 1_000_000} {
		b.Run(name, func(b *testing.B) { benchmarkTake(b, keys) })
	}
}

func benchmarkTake(b *testing.B, keys int) {
	l := limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 100, Window: time.Hour, Burst: 100}
	hits := make([]limiter.Hit, keys)
	for i := range hits {
		hits[i] = limiter.Hit{Key: fmt.Sprintf("weir:3f1c8a:{shop/17}:%032x", i), Limit: l, Cost: 1}
	}
	empty := heap()
	s := memorystore.New(memorystore.Options{MaxCounters: keys})
	take := func(i int) {
		if _, err := s.Take(b.Context(), hits[i:i+1]); err != nil {
			b.Error(err)
		}
	}
	for i := range hits {
		take(i)
	}
	memory := heap() - empty
	b.ReportAllocs()
	start := processorTime(b)
	for i := 0; b.Loop(); i++ {
		take(i * 7919 % keys)
	}
	b.ReportMetric(float64(processorTime(b)-start)/float64(b.N), "cpu-ns/op")
	b.ReportMetric(float64(memory)/float64(keys), "B/key")
}

func heap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

func processorTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func allowed(t *testing.T, s *memorystore.Store, h limiter.Hit) bool {
	t.Helper()
	v, err := s.Take(t.Context(), []limiter.Hit{h})
	if err != nil {
		t.Fatal(err)
	}
	return v[0].Allowed
}

// SPDX-License-Identifier: Apache-2.0

package limiter_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/memorystore"
)

// members is a roster of those keys alone, that counts how often it is asked for each.
type members struct {
	all map[string]bool

	mu    sync.Mutex
	asked map[string]int
}

func enlisted(keys ...string) *members {
	m := &members{all: map[string]bool{}, asked: map[string]int{}}
	for _, k := range keys {
		m.all[k] = true
	}
	return m
}

func (m *members) Enlist(h *limiter.Hit) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked[h.Key]++
	return m.all[h.Key]
}

// keyed is a hit of a limit of 5 an hour with a key.
func keyed(limit, key string) limiter.Hit {
	return with(hit(limit), func(h *limiter.Hit) { h.Key, h.Overflow = limit+"/"+key, limit+"/overflow" })
}

func TestOverflow(t *testing.T) {
	engine := func(m *members) *limiter.Engine {
		e := limiter.NewEngine(memorystore.New(memorystore.Options{}), nobody{})
		e.Bound(m)
		return e
	}
	t.Run("keys without a counter of their own get together what one key gets", func(t *testing.T) {
		e := engine(enlisted("a/known"))
		allowed := 0
		for i := range 20 {
			if e.Decide(t.Context(), []limiter.Hit{keyed("a", string(rune('a'+i)))}).Allowed {
				allowed++
			}
		}
		if allowed != 5 {
			t.Errorf("%d requests of 20 keys are allowed, not 5", allowed)
		}
		for i := range 6 {
			if got, want := e.Decide(t.Context(), []limiter.Hit{keyed("a", "known")}).Allowed, i < 5; got != want {
				t.Errorf("request %d of a known key is allowed: %t", i, got)
			}
		}
	})
	t.Run("a limit without a key asks nobody", func(t *testing.T) {
		m := enlisted()
		if !engine(m).Decide(t.Context(), []limiter.Hit{hit("a")}).Allowed || len(m.asked) != 0 {
			t.Errorf("it asks for %v", m.asked)
		}
	})
	t.Run("one limit's shared counter refuses, and the others charge nothing", func(t *testing.T) {
		e := engine(enlisted("b/new"))
		both := []limiter.Hit{keyed("a", "new"), keyed("b", "new")}
		for range 5 {
			e.Decide(t.Context(), both[:1])
		}
		d := e.Decide(t.Context(), both)
		if d.Allowed || d.By.Key != "a/overflow" {
			t.Errorf("got %+v", d)
		}
		if d := e.Decide(t.Context(), both[1:]); d.Verdicts[0].Remaining != 4 {
			t.Errorf("the other limit has %d left, not 4", d.Verdicts[0].Remaining)
		}
	})
	t.Run("the hits of the caller stay as they are", func(t *testing.T) {
		hits := []limiter.Hit{keyed("a", "new"), hit("b")}
		d := engine(enlisted()).Decide(t.Context(), hits)
		if diff := cmp.Diff([]limiter.Hit{keyed("a", "new"), hit("b")}, hits); diff != "" {
			t.Errorf("hits (-want +got):\n%s", diff)
		}
		if got := d.Hits[0].Key; got != "a/overflow" {
			t.Errorf("it counts on %s", got)
		}
	})
	t.Run("a store that is away leaves the replica's own counter to the keys that share one", func(t *testing.T) {
		own := memorystore.New(memorystore.Options{})
		e := limiter.NewEngineWithFallback(storeFunc(failing), own, nobody{})
		e.Bound(enlisted())
		allowed := 0
		for i := range 20 {
			h := with(keyed("a", string(rune('a'+i))), func(h *limiter.Hit) { h.OnFailure = limiter.FailLocal })
			if e.Decide(t.Context(), []limiter.Hit{h}).Allowed {
				allowed++
			}
		}
		if allowed != 5 {
			t.Errorf("%d requests of 20 keys are allowed, not 5", allowed)
		}
	})
	t.Run("a permit of a shared counter comes back to it", func(t *testing.T) {
		e := engine(enlisted())
		for i := range 20 {
			d := e.Decide(t.Context(), []limiter.Hit{with(keyed("c", string(rune('a'+i))), permit)})
			if !d.Allowed {
				t.Fatalf("request %d is refused", i)
			}
			d.Release()
		}
	})
	t.Run("keys that share a queue wait for each other", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			e := limiter.NewEngine(memorystore.New(memorystore.Options{Now: time.Now}), nobody{})
			e.Bound(enlisted())
			start := time.Now()
			for i := range 3 {
				d := e.Decide(t.Context(), []limiter.Hit{with(keyed("q", string(rune('a'+i))), func(h *limiter.Hit) {
					h.Limit = limiter.Limit{Algorithm: limiter.LeakyBucketQueue, Requests: 1, Window: time.Second, MaxDelay: time.Minute}
				})})
				if waited := time.Since(start); !d.Allowed || waited != time.Duration(i)*time.Second {
					t.Errorf("request %d goes on after %s: %t", i, waited, d.Allowed)
				}
			}
		})
	})
	t.Run("a key is remembered for as long as its permit is renewed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			m := enlisted("c/known")
			e := limiter.NewEngine(memorystore.New(memorystore.Options{Now: time.Now}), nobody{})
			e.Bound(m)
			ctx, stop := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() { e.Run(ctx) })
			d := e.Decide(ctx, []limiter.Hit{with(keyed("c", "known"), permit)})
			other := e.Decide(ctx, []limiter.Hit{with(keyed("c", "new"), permit), with(hit("c3"), permit)})
			time.Sleep(2*term - time.Second)
			d.Release()
			other.Release()
			stop()
			running.Wait()
			synctest.Wait()
			want := map[string]int{"c/known": 1 + 3, "c/new": 1}
			if diff := cmp.Diff(want, m.asked); diff != "" {
				t.Errorf("asked for (-want +got):\n%s", diff)
			}
		})
	})
}

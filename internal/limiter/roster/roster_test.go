// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"context"
	"crypto/rand"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/memorystore"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// overflows counts the hits on shared counters, by the name of the limit.
type overflows struct {
	mu sync.Mutex
	of map[string]int
}

func (o *overflows) Overflow(id limiter.LimitID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.of == nil {
		o.of = map[string]int{}
	}
	o.of[id.Limit]++
}

var minute = limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 100, Window: time.Minute}

// life is how long a key of a limit of a minute is known.
var life = strategy.Life(&minute)

func id(limit string) limiter.LimitID {
	return limiter.LimitID{Namespace: "shop", Policy: "checkout", Limit: limit}
}

func hit(limit, key string) *limiter.Hit {
	return &limiter.Hit{Key: limit + "/" + key, Overflow: limit, Limit: minute, Cost: 1, ID: id(limit)}
}

// keys gives how many keys each limit has.
func keys(r *Roster) map[string]int {
	counts := map[string]int{}
	for _, c := range r.Counts() {
		counts[c.ID.Limit] = c.Keys
	}
	return counts
}

func TestRoster(t *testing.T) {
	t.Run("no more keys than the cap have counters of their own", func(t *testing.T) {
		var o overflows
		r := New(10, &o, logr.Discard())
		r.Keep([]limiter.LimitID{id("a")})
		for i := range 1000 {
			if got, want := r.enlist(hit("a", fmt.Sprint(i)), 0), i < 10; got != want {
				t.Errorf("key %d is enlisted: %t", i, got)
			}
		}
		if diff := cmp.Diff(map[string]int{"a": 990}, o.of); diff != "" {
			t.Errorf("overflows (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(map[string]int{"a": 10}, keys(r)); diff != "" {
			t.Errorf("keys (-want +got):\n%s", diff)
		}
	})

	t.Run("a key that is known keeps its counter through a flood", func(t *testing.T) {
		r := New(10, &overflows{}, logr.Discard())
		r.enlist(hit("a", "legal"), 0)
		for i := range 1000 {
			r.enlist(hit("a", fmt.Sprint(i)), 0)
		}
		for at := time.Duration(0); at < 10*life; at += life {
			r.sweep(at)
			if !r.enlist(hit("a", "legal"), at) {
				t.Errorf("after %s it is not known any more", at)
			}
		}
	})

	t.Run("a key is known for the life of its counter, and forgotten within two seconds", func(t *testing.T) {
		r := New(1, &overflows{}, logr.Discard())
		r.enlist(hit("a", "old"), 0)
		r.sweep(life)
		if r.enlist(hit("a", "new"), life) {
			t.Error("a new key is enlisted while the old one lives")
		}
		r.sweep(life + 2*time.Second)
		if !r.enlist(hit("a", "new"), life+2*time.Second) {
			t.Error("a new key is not enlisted when the old one is gone")
		}
	})

	t.Run("a flood under one limit leaves the others their part", func(t *testing.T) {
		r := New(30, &overflows{}, logr.Discard())
		r.Keep([]limiter.LimitID{id("a"), id("b"), id("c"), {Namespace: "shop", Policy: "other", Limit: "d"}})
		for i := range 100 {
			r.enlist(hit("a", fmt.Sprint(i)), 0)
		}
		for i := range 100 {
			r.enlist(hit("b", fmt.Sprint(i)), 0)
		}
		if diff := cmp.Diff(map[string]int{"a": 5 + 15, "b": 5, "c": 0, "d": 0}, keys(r)); diff != "" {
			t.Errorf("keys (-want +got):\n%s", diff)
		}
	})

	t.Run("another limit takes the room that a flood gives back", func(t *testing.T) {
		r := New(30, &overflows{}, logr.Discard())
		r.Keep([]limiter.LimitID{id("a"), id("b"), id("c")})
		for i := range 100 {
			r.enlist(hit("a", fmt.Sprint(i)), 0)
		}
		r.sweep(life + 2*time.Second)
		for i := range 100 {
			r.enlist(hit("b", fmt.Sprint(i)), life)
		}
		if diff := cmp.Diff(map[string]int{"a": 0, "b": 5 + 15, "c": 0}, keys(r)); diff != "" {
			t.Errorf("keys (-want +got):\n%s", diff)
		}
	})

	t.Run("a limit that comes to a policy has its part at once, and the policy no more keys than it may", func(t *testing.T) {
		r := New(30, &overflows{}, logr.Discard())
		r.Keep([]limiter.LimitID{id("a")})
		for i := range 20 {
			r.enlist(hit("a", fmt.Sprint(i)), 0)
		}
		r.Keep([]limiter.LimitID{id("a"), id("b")})
		for i := range 100 {
			r.enlist(hit("b", fmt.Sprint(i)), 0)
		}
		if diff := cmp.Diff(map[string]int{"a": 20, "b": 10}, keys(r)); diff != "" {
			t.Errorf("keys (-want +got):\n%s", diff)
		}
	})

	t.Run("a limit that comes back finds its keys", func(t *testing.T) {
		r := New(1, &overflows{}, logr.Discard())
		r.Keep([]limiter.LimitID{id("a")})
		r.enlist(hit("a", "first"), 0)
		r.Keep(nil)
		if got := keys(r); len(got) != 0 {
			t.Errorf("a limit that is gone is told of: %v", got)
		}
		r.Keep([]limiter.LimitID{id("a")})
		if !r.enlist(hit("a", "first"), 0) || r.enlist(hit("a", "second"), 0) {
			t.Error("its keys are others")
		}
	})

	t.Run("a limit that nobody told of has the whole cap", func(t *testing.T) {
		r := New(2, &overflows{}, logr.Discard())
		if !r.enlist(hit("a", "1"), 0) || !r.enlist(hit("a", "2"), 0) || r.enlist(hit("a", "3"), 0) {
			t.Error("it has another")
		}
	})

	t.Run("a limit that no store can decide is left to the store", func(t *testing.T) {
		r := New(1, &overflows{}, logr.Discard())
		h := hit("a", "1")
		h.Limit.Algorithm = "Unheard"
		if !r.Enlist(h) {
			t.Error("its key is not enlisted")
		}
	})
}

// TestRosterIsExact plays random keys at random times against a plain list of who was seen when.
func TestRosterIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.IntRange(1, 20).Draw(t, "most")
		r := New(most, &overflows{}, logr.Discard())
		var now time.Duration
		until := map[string]time.Duration{} // of the keys that have counters
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			now += rapid.OneOf(
				rapid.Just(time.Duration(0)),
				rapid.Custom(func(t *rapid.T) time.Duration { return time.Duration(rapid.Int64Range(0, int64(life)).Draw(t, "ns")) }),
				rapid.SampledFrom([]time.Duration{time.Second, life - 1, life, life + 1, life + 2*time.Second}),
			).Draw(t, "step")
			swept := rapid.Bool().Draw(t, "swept")
			if swept {
				r.sweep(now)
			}
			key := fmt.Sprint(rapid.IntRange(0, 40).Draw(t, "key"))
			lives, held := 0, 0
			for _, end := range until {
				if now < end {
					lives++
				}
				if now < end+2*time.Second {
					held++
				}
			}
			enlisted := r.enlist(hit("a", key), now)
			switch {
			case now < until[key] && !enlisted:
				t.Fatalf("at %s a key is not known whose counter lives until %s", now, until[key])
			case now >= until[key] && lives >= most && enlisted:
				t.Fatalf("at %s a key is enlisted beside %d others", now, lives)
			case held < most && swept && !enlisted:
				t.Fatalf("at %s a key is not enlisted beside %d others", now, held)
			}
			if enlisted {
				until[key] = now + life
			}
		}
	})
}

func TestAPolicyNeverHasMoreKeysThanItMay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		most, number := rapid.IntRange(1, 40).Draw(t, "most"), rapid.IntRange(1, 5).Draw(t, "limits")
		var ids []limiter.LimitID
		for i := range number {
			ids = append(ids, id(fmt.Sprint(i)))
		}
		l := newLimits(most)
		l.divide(ids)
		keys, total, own := make([]int, number), 0, most/2/number
		for range 200 {
			i := rapid.IntRange(0, number-1).Draw(t, "limit")
			if rapid.Bool().Draw(t, "comes") {
				beyond := 0
				for _, n := range keys {
					beyond += max(0, n-own)
				}
				want := keys[i] < own || beyond < most-number*own
				if _, got := l.take(ids[i]); got != want {
					t.Fatalf("limit %d of %v, which may have %d, gets one more: %t", i, keys, most, got)
				}
				if want {
					keys[i], total = keys[i]+1, total+1
				}
			} else if keys[i] > 0 {
				l.giveBack(l.numbers[ids[i]])
				keys[i], total = keys[i]-1, total-1
			}
			if total > most {
				t.Fatalf("there are %v keys, and there may be %d", keys, most)
			}
		}
	})
}

func TestRun(t *testing.T) {
	t.Run("room comes back when keys are forgotten", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := New(1, &overflows{}, logr.Discard())
			end := start(t, r)
			if !r.Enlist(hit("a", "old")) || r.Enlist(hit("a", "new")) {
				t.Error("the first key alone has to be enlisted")
			}
			time.Sleep(life)
			if !r.Enlist(hit("a", "old")) {
				t.Error("the first key was forgotten in its life")
			}
			time.Sleep(life + 2*sweepInterval)
			synctest.Wait()
			if !r.Enlist(hit("a", "new")) {
				t.Error("there is no room")
			}
			end()
		})
	})

	t.Run("a flood is told of when it begins and when it is over", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var lines []string
			log := funcr.New(func(_, args string) { lines = append(lines, args) }, funcr.Options{})
			r := New(1, &overflows{}, log)
			end := start(t, r)
			for range 5000 { // It lasts for 50 s.
				r.Enlist(hit("a", rand.Text()))
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(2 * time.Minute)
			synctest.Wait()
			want := []string{
				`"level"=0 "msg"="new keys share a counter" "namespace"="shop" "policy"="checkout" "limit"="a" "keys"=1`,
				`"level"=0 "msg"="new keys have counters of their own again" "namespace"="shop" "policy"="checkout" "limit"="a" "keys"=0`,
			}
			if diff := cmp.Diff(want, lines); diff != "" {
				t.Errorf("log (-want +got):\n%s", diff)
			}
			end()
		})
	})
}

// start runs a roster, and gives what ends it.
func start(t *testing.T, r *Roster) (end func()) {
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { r.Run(ctx) })
	return func() {
		stop()
		running.Wait()
		synctest.Wait()
	}
}

func TestManyAtOnce(t *testing.T) {
	const callers, most = 8, 1000
	var o overflows
	r := New(most, &o, logr.Discard())
	r.Keep([]limiter.LimitID{id("a")})
	var all sync.WaitGroup
	enlisted := make([]map[string]bool, callers)
	for c := range callers {
		enlisted[c] = map[string]bool{}
		all.Go(func() {
			for i := range 4 * most {
				key := fmt.Sprint(i)
				if was := enlisted[c][key]; r.Enlist(hit("a", key)) {
					enlisted[c][key] = true
				} else if was {
					t.Errorf("key %s is not known any more", key)
				}
				if i%100 == 0 {
					r.sweep(0)
				}
			}
		})
	}
	all.Wait()
	if got := keys(r)["a"]; got != most {
		t.Errorf("%d keys are known, of %d that may be", got, most)
	}
}

// TestMemory says what keys take, and what nobody's keys take.
func TestMemory(t *testing.T) {
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	r := New(100_000, &overflows{}, logr.Discard())
	empty := heap() - before
	for i := range 1_000_000 {
		r.enlist(hit("a", fmt.Sprint(i)), 0)
	}
	full := heap() - before
	t.Logf("expected: below 64 KiB without keys, below 5 MB after 1,000,000; measured: %d and %d bytes", empty, full)
	if empty > 64<<10 || full > 5e6 {
		t.Errorf("it takes %d bytes, and %d after a flood", empty, full)
	}
	runtime.KeepAlive(r)
}

func BenchmarkEnlist(b *testing.B) {
	const known = 100_000
	r := New(known, &overflows{}, logr.Discard())
	r.Keep([]limiter.LimitID{id("a")})
	prefix := strings.Repeat("k", 40)
	hits := make([]*limiter.Hit, 2*known)
	for i := range hits {
		hits[i] = hit("a", fmt.Sprint(prefix, i))
		r.Enlist(hits[i])
	}
	for name, some := range map[string][]*limiter.Hit{
		"one known key":      hits[:1],
		"100,000 known keys": hits[:known],
		"new keys":           hits[known:],
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				r.Enlist(some[i])
				if i++; i == len(some) {
					i = 0
				}
			}
		})
	}
}

// BenchmarkDecide compares whole decisions in process with a roster and without.
func BenchmarkDecide(b *testing.B) {
	const known = 10_000
	hits := make([][]limiter.Hit, known)
	for i := range hits {
		hits[i] = []limiter.Hit{*hit("a", fmt.Sprint(i))}
	}
	for name, bound := range map[string]bool{"without a roster": false, "with a roster": true} {
		b.Run(name, func(b *testing.B) {
			e := limiter.NewEngine(memorystore.New(memorystore.Options{}), nobody{})
			if bound {
				e.Bound(New(known, &overflows{}, logr.Discard()))
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				e.Decide(b.Context(), hits[i])
				i = (i + 1) % known
			}
		})
	}
}

// nobody wants to know any outcomes.
type nobody struct{}

func (nobody) Record(limiter.LimitID, limiter.Outcome) {}

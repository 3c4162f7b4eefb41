// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/memorystore"
	"github.com/weir-dev/weir/internal/limiter/storetest"
)

var (
	plenty = limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 10_000, Window: time.Second, Burst: 10_000, Lease: 100 * time.Millisecond}
	daily  = limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 10_000, Window: 24 * time.Hour, Lease: 100 * time.Millisecond}
)

// TestStoreWithLeases says that who leases nothing notices nothing.
func TestStoreWithLeases(t *testing.T) {
	storetest.Run(t, func(*testing.T) (limiter.Store, func(time.Duration)) {
		now := storetest.Epoch
		return NewLeases(memorystore.New(memorystore.Options{Now: func() time.Time { return now }})),
			func(d time.Duration) { now = now.Add(d) }
	})
}

// inBubble runs a test of a fleet in virtual time.
func inBubble(t *testing.T, name string, replicas int, l limiter.Limit, test func(ctx context.Context, t *testing.T, f *fleet)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(replicas, l)
			f.run(t.Context(), func(ctx context.Context) { test(ctx, t, f) })
		})
	})
}

// warm has the replicas lease, and waits for what is under way then.
func (f *fleet) warm(ctx context.Context, rate float64) {
	for _, r := range f.replicas {
		r.rate = rate
	}
	f.offer(ctx, rand.New(rand.NewPCG(1, 2)), time.Second)
	time.Sleep(2 * halfWay)
	synctest.Wait()
}

// left gives what the counter has left, by itself.
func (f *fleet) left(t *testing.T, h limiter.Hit) int64 {
	t.Helper()
	h.Cost = 0
	verdicts, err := f.counters.Take(t.Context(), []limiter.Hit{h})
	if err != nil {
		t.Fatal(err)
	}
	return verdicts[0].Remaining
}

// charged gives what replicas were admitted.
func (f *fleet) charged() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	var sum int64
	for _, a := range f.admissions {
		sum += a.cost
	}
	return sum
}

func TestLeases(t *testing.T) {
	inBubble(t, "a counter that is asked often is leased", 1, plenty, func(ctx context.Context, t *testing.T, f *fleet) {
		f.warm(ctx, 2000)
		f.forget()
		f.warm(ctx, 2000)
		if r := f.result(plenty, time.Second); r.admitted != 1 || r.local < 0.99 || r.asked > 0.01 {
			t.Errorf("got %+v", r)
		}
	})
	inBubble(t, "a counter that is seldom asked is not", 3, plenty, func(ctx context.Context, t *testing.T, f *fleet) {
		f.warm(ctx, 5)
		if c := f.replicas[0].Counts(); c.Local != 0 || c.Taken != 0 || c.Stored == 0 {
			t.Errorf("got %+v", c)
		}
	})
	low := limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 19, Window: time.Second, Lease: 100 * time.Millisecond}
	inBubble(t, "a low limit is never leased, and so all of it can be had", 30, low, func(ctx context.Context, t *testing.T, f *fleet) {
		f.warm(ctx, 100)
		if got := f.inWindow(time.Second); got != 19 {
			t.Errorf("a window admits %d", got)
		}
	})
	last := daily
	last.Requests = 500
	inBubble(t, "of the last of a window nothing is left over", 5, last, func(ctx context.Context, t *testing.T, f *fleet) {
		f.warm(ctx, 500)
		f.warm(ctx, 500)
		if got := f.charged(); got != 500 {
			t.Errorf("%d were admitted", got)
		}
	})
	inBubble(t, "demand that moves to another replica is followed", 2, plenty, func(ctx context.Context, t *testing.T, f *fleet) {
		random := rand.New(rand.NewPCG(1, 3))
		for i := range 4 {
			f.replicas[i%2].rate, f.replicas[1-i%2].rate = 8000, 0
			f.offer(ctx, random, time.Second)
		}
		if r := f.result(plenty, 4*time.Second); r.admitted != 1 || r.local < 0.7 {
			t.Errorf("got %+v", r)
		}
	})
	inBubble(t, "what is not used is given back soon", 1, daily, func(ctx context.Context, t *testing.T, f *fleet) {
		f.warm(ctx, 1000)
		time.Sleep(300 * time.Millisecond)
		if got, want := f.left(t, f.replicas[0].hit), daily.Requests-f.charged(); got != want {
			t.Errorf("%d are left, not %d", got, want)
		}
	})
	t.Run("all that is held is given back at the end", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFleet(3, daily)
			f.run(t.Context(), func(ctx context.Context) { f.warm(ctx, 1000) })
			if got, want := f.left(t, f.replicas[0].hit), daily.Requests-f.charged(); got != want {
				t.Errorf("%d are left, not %d", got, want)
			}
			before := f.asked.Load()
			if _, err := f.replicas[0].Take(t.Context(), []limiter.Hit{f.replicas[0].hit}); err != nil || f.asked.Load() != before+1 {
				t.Errorf("after it the store was asked %d times: %v", f.asked.Load()-before, err)
			}
		})
	})
	inBubble(t, "an edit gives back what was leased of the old limit", 1, daily, func(ctx context.Context, t *testing.T, f *fleet) {
		f.warm(ctx, 1000)
		r := f.replicas[0]
		r.hit.Limit.Requests = 20_000
		r.ask(ctx)
		time.Sleep(100 * time.Millisecond)
		if got, want := f.left(t, r.hit), 20_000-f.charged(); got != want {
			t.Errorf("%d are left, not %d", got, want)
		}
	})
	inBubble(t, "a lease that is under way at an edit goes back too", 1, daily, func(ctx context.Context, t *testing.T, f *fleet) {
		f.warm(ctx, 1000)
		r := f.replicas[0]
		for random := rand.New(rand.NewPCG(1, 5)); !r.asking(); {
			f.offer(ctx, random, halfWay)
			synctest.Wait() // A lease that comes at this very moment has come.
		}
		before := r.Counts().Taken
		r.hit.Limit.Requests++
		r.ask(ctx)
		time.Sleep(100 * time.Millisecond)
		if taken := r.Counts().Taken - before; taken == 0 {
			t.Error("nothing was under way")
		}
		if got, want := f.left(t, r.hit), daily.Requests+1-f.charged(); got != want {
			t.Errorf("%d are left, not %d", got, want)
		}
	})
	inBubble(t, "a crash loses no more than what was held, and only until the window ends", 1, daily, func(ctx context.Context, t *testing.T, f *fleet) {
		f.warm(ctx, 1000)
		f.crash(ctx, 0)
		f.warm(ctx, 1000)
		time.Sleep(300 * time.Millisecond)
		lost := daily.Requests - f.charged() - f.left(t, f.replicas[0].hit)
		t.Logf("%d are lost of a demand of 1000 a second", lost)
		if lost < 1 || lost > 300 {
			t.Errorf("%d are lost", lost)
		}
	})
	inBubble(t, "while the store is away, what is held is used up, and then the error is its own", 1, plenty, func(ctx context.Context, t *testing.T, f *fleet) {
		f.warm(ctx, 1000)
		r := f.replicas[0]
		r.down.Store(true)
		admitted := 0
		for {
			v, err := r.Take(ctx, []limiter.Hit{r.hit})
			if err != nil {
				if !errors.Is(err, errDown) {
					t.Errorf("the error is %v", err)
				}
				break
			}
			if v[0].Allowed {
				admitted++
			}
		}
		if admitted < 30 || admitted > 300 {
			t.Errorf("%d were admitted", admitted)
		}
		r.down.Store(false)
		time.Sleep(time.Second)
		f.warm(ctx, 1000)
		f.forget()
		f.warm(ctx, 1000)
		if r := f.result(plenty, time.Second); r.admitted != 1 || r.local < 0.97 {
			t.Errorf("when it is back: %+v", r)
		}
	})
	inBubble(t, "a decision in process tells what remains, and to wait where nothing does", 1, plenty, func(ctx context.Context, t *testing.T, f *fleet) {
		f.warm(ctx, 1000)
		r := f.replicas[0]
		v, err := r.Take(ctx, []limiter.Hit{r.hit})
		if err != nil || !v[0].Allowed || v[0].Remaining < 7000 || v[0].Remaining > 10_000 {
			t.Errorf("with plenty left: %+v, %v", v, err)
		}
		r.rate = 50_000
		f.offer(ctx, rand.New(rand.NewPCG(1, 4)), 2*time.Second)
		for range 100_000 {
			if v, err = r.Take(ctx, []limiter.Hit{r.hit}); err != nil || !v[0].Allowed {
				break
			}
		}
		got := v[0]
		if got.Remaining != 0 || got.RetryAfter <= 0 || got.RetryAfter > plenty.Lease || got.ResetAfter != got.RetryAfter {
			t.Errorf("with nothing left: %+v, %v", got, err)
		}
	})
}

func TestLeasesOfSeveralLimits(t *testing.T) {
	exact := limiter.Hit{Key: "weir:test:{shop/0}:exact", Limit: limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 5, Window: 24 * time.Hour}, Cost: 1}
	inBubble(t, "what an exact limit refuses is not charged to the leased one", 1, daily, func(ctx context.Context, t *testing.T, f *fleet) {
		f.warm(ctx, 1000)
		r, before := f.replicas[0], f.charged()
		var admitted int64
		for range 50 {
			v, err := r.Take(ctx, []limiter.Hit{r.hit, exact})
			if err != nil {
				t.Fatal(err)
			}
			if v[0].Allowed && v[1].Allowed {
				admitted++
			}
		}
		if admitted != 5 {
			t.Errorf("%d were admitted", admitted)
		}
		time.Sleep(300 * time.Millisecond)
		if got, want := f.left(t, r.hit), daily.Requests-before-5; got != want {
			t.Errorf("%d are left, not %d", got, want)
		}
	})
	inBubble(t, "what a leased limit refuses is not charged to the exact one, and asks nobody", 1, plenty, func(ctx context.Context, t *testing.T, f *fleet) {
		f.warm(ctx, 100_000)
		r := f.replicas[0]
		for range 10_000 {
			r.ask(ctx)
		}
		asked := f.asked.Load()
		v, err := r.Take(ctx, []limiter.Hit{r.hit, exact})
		if err != nil || v[0].Allowed || v[1] != (limiter.Verdict{}) || f.asked.Load() != asked {
			t.Errorf("got %+v, %v after %d round trips", v, err, f.asked.Load()-asked)
		}
		if got := f.left(t, exact); got != 5 {
			t.Errorf("%d are left", got)
		}
	})
	shadow := exact
	shadow.Shadow = true
	inBubble(t, "a shadow limit that can't be asked doesn't refuse", 1, plenty, func(ctx context.Context, t *testing.T, f *fleet) {
		f.warm(ctx, 1000)
		r := f.replicas[0]
		r.down.Store(true)
		v, err := r.Take(ctx, []limiter.Hit{r.hit, shadow})
		if err != nil || !v[0].Allowed || !v[1].Allowed {
			t.Errorf("got %+v, %v", v, err)
		}
	})
	inBubble(t, "of a refused request nothing is told of its shadow limits, nor charged to them", 1, plenty, func(ctx context.Context, t *testing.T, f *fleet) {
		leased := f.replicas[0].hit
		f.warm(ctx, 1000)
		r := f.replicas[0]
		leased.Shadow, exact.Cost = true, 6
		v, err := r.Take(ctx, []limiter.Hit{leased, exact})
		want := []limiter.Verdict{{}, {Remaining: 5, RetryAfter: limiter.Never, ResetAfter: v[1].ResetAfter}}
		if diff := cmp.Diff(want, v); diff != "" || err != nil {
			t.Errorf("verdicts, with error %v (-want +got):\n%s", err, diff)
		}
	})
	inBubble(t, "a request that nobody can decide is charged for only if it may have been", 1, daily, func(ctx context.Context, t *testing.T, f *fleet) {
		f.warm(ctx, 1000)
		r, before := f.replicas[0], f.charged()
		bad := exact
		bad.Cost = -1
		if _, err := r.Take(ctx, []limiter.Hit{r.hit, bad}); !errors.Is(err, limiter.ErrInvalid) {
			t.Errorf("the error is %v", err)
		}
		r.down.Store(true)
		if _, err := r.Take(ctx, []limiter.Hit{r.hit, exact}); !errors.Is(err, errDown) {
			t.Errorf("the error is %v", err)
		}
		r.down.Store(false)
		time.Sleep(300 * time.Millisecond)
		if got, want := f.left(t, r.hit), daily.Requests-before-1; got != want {
			t.Errorf("%d are left, not %d", got, want)
		}
	})
}

func TestLeasesOfManyKeys(t *testing.T) {
	inBubble(t, "a flood of keys takes bounded memory, and leaves those alone that are leased", 1, plenty, func(ctx context.Context, t *testing.T, f *fleet) {
		f.warm(ctx, 1000)
		r := f.replicas[0]
		h := r.hit
		for i := range 100_000 {
			h.Key = fmt.Sprint("weir:test:{shop/0}:", i)
			r.decide(&h)
		}
		if n := r.accounts(); n > accountShards*maxAccounts {
			t.Errorf("there are %d accounts", n)
		}
		f.forget()
		f.warm(ctx, 1000)
		if r := f.result(plenty, time.Second); r.admitted != 1 || r.local < 0.99 {
			t.Errorf("got %+v", r)
		}
		time.Sleep(2 * time.Second)
		if n := r.accounts(); n != 0 {
			t.Errorf("%d accounts are never forgotten", n)
		}
	})
}

// asking says whether a lease is under way.
func (r *replica) asking() bool {
	s := r.shard(r.hit.Key)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[r.hit.Key].asking
}

// accounts gives how many a replica has.
func (r *replica) accounts() int {
	n := 0
	for i := range r.shards {
		r.shards[i].mu.Lock()
		n += len(r.shards[i].all)
		r.shards[i].mu.Unlock()
	}
	return n
}

func TestLeasedDecisionAllocatesOnce(t *testing.T) {
	inBubble(t, "a decision in process allocates its verdict", 1, plenty, func(ctx context.Context, t *testing.T, f *fleet) {
		f.warm(ctx, 10_000)
		r := f.replicas[0]
		hits := []limiter.Hit{r.hit}
		if n := testing.AllocsPerRun(100, func() { _, _ = r.Take(ctx, hits) }); n > 1 {
			t.Errorf("it allocates %g times", n)
		}
	})
}

func BenchmarkLeasedDecision(b *testing.B) {
	l := limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 1_000_000_000, Window: time.Second, Burst: 1_000_000_000, Lease: 100 * time.Millisecond}
	for name, store := range map[string]limiter.Store{
		"leased":     NewLeases(memorystore.New(memorystore.Options{})),
		"in process": memorystore.New(memorystore.Options{}),
	} {
		b.Run(name, func(b *testing.B) {
			if leases, ok := store.(*Leases); ok {
				ctx, stop := context.WithCancel(b.Context())
				done := make(chan struct{})
				go func() { defer close(done); leases.Run(ctx) }()
				defer func() { stop(); <-done }()
			}
			hits := []limiter.Hit{{Key: "weir:test:{shop/0}:hot", Limit: l, Cost: 1}}
			b.ReportAllocs()
			for b.Loop() {
				_, _ = store.Take(b.Context(), hits)
			}
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package guard_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/guard"
	"github.com/weir-dev/weir/internal/limiter/memorystore"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// fixed is a share that never changes, and what was noted as demand.
type fixed struct {
	share float64
	noted int64
}

func (f *fixed) Note(h *limiter.Hit) { f.noted += h.Cost }

func (f *fixed) Share(*limiter.Hit) float64 { return f.share }

func newOwn(share float64) *guard.Own {
	return guard.NewOwn(memorystore.New(memorystore.Options{}), &fixed{share: share})
}

// local is a hit that fails local.
func local(key string, l limiter.Limit) limiter.Hit {
	return limiter.Hit{Key: key, Limit: l, Cost: 1, OnFailure: limiter.FailLocal}
}

// admits gives how many of so many requests at once a store admits.
func admits(t *testing.T, store limiter.Store, n int, hits ...limiter.Hit) int {
	t.Helper()
	admitted := 0
	for range n {
		verdicts := take(t, store, hits)
		ok := true
		for _, v := range verdicts {
			ok = ok && v.Allowed
		}
		if ok {
			admitted++
		}
	}
	return admitted
}

// hundred are limits that admit 100 at once, of each strategy that admits so many.
var hundred = map[limiter.Algorithm]limiter.Limit{
	limiter.TokenBucket:              {Requests: 100, Window: time.Minute, Burst: 100},
	limiter.FixedWindow:              {Requests: 100, Window: time.Hour},
	limiter.CalendarWindow:           {Requests: 100, Calendar: limiter.Calendar{Unit: limiter.Day, TimeZone: "UTC"}},
	limiter.SlidingWindowRing:        {Requests: 100, Window: time.Hour},
	limiter.SlidingWindowLog:         {Requests: 100, Window: time.Hour},
	limiter.SlidingWindowApproximate: {Requests: 100, Window: time.Hour},
	limiter.LeakyBucketMeter:         {Requests: 100, Window: 100 * time.Second},
	limiter.LeakyBucketQueue:         {Requests: 100, Window: 100 * time.Second, MaxDelay: 99 * time.Second},
	limiter.Concurrency:              {Requests: 100, Window: time.Minute},
}

func TestOwnShares(t *testing.T) {
	for _, algorithm := range strategy.Names() {
		l := hundred[algorithm]
		l.Algorithm = algorithm
		want := 25
		if algorithm == limiter.LeakyBucketMeter {
			want = 1 // It saves up nothing.
		}
		t.Run(fmt.Sprintf("a quarter of a limit of %s admits a quarter", algorithm), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if got := admits(t, newOwn(0.25), 100, local("a", l)); got != want {
					t.Errorf("%d of 100 were admitted, not %d", got, want)
				}
			})
		})
		t.Run(fmt.Sprintf("a tiny share of a limit of %s admits one", algorithm), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if got := admits(t, newOwn(1e-6), 100, local("a", l)); got != 1 {
					t.Errorf("%d of 100 were admitted, not 1", got)
				}
			})
		})
	}
	t.Run("a share of a rate is exact, however few requests that is", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			own := newOwn(1. / 3)
			daily := local("a", limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 1, Window: 24 * time.Hour, Burst: 1})
			take(t, own, []limiter.Hit{daily})
			if v := take(t, own, []limiter.Hit{daily}); v[0].RetryAfter.Round(time.Second) != 72*time.Hour {
				t.Errorf("the next is admitted after %s", v[0].RetryAfter)
			}
		})
	})
	t.Run("a share of the longest window is still a limit", func(t *testing.T) {
		yearly := local("a", limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 1000, Window: 8784 * time.Hour, Burst: 1000})
		if got := admits(t, newOwn(0.1), 200, yearly); got != 100 {
			t.Errorf("%d were admitted, not 100", got)
		}
	})
	t.Run("a limit that each replica counts by itself is whole", func(t *testing.T) {
		h := local("a", hundred[limiter.TokenBucket])
		h.Limit.Algorithm, h.Limit.Window, h.Distribution = limiter.TokenBucket, 8784*time.Hour, limiter.PerReplica
		if got := admits(t, newOwn(0.25), 200, h); got != 100 {
			t.Errorf("%d were admitted, not 100", got)
		}
	})
	t.Run("a permit that is given back can be used again", func(t *testing.T) {
		own := newOwn(0.01)
		l := hundred[limiter.Concurrency]
		l.Algorithm = limiter.Concurrency
		h := local("a", l)
		v := take(t, own, []limiter.Hit{h})
		charges := []limiter.Charge{{Hit: h, Receipt: v[0].Receipt}}
		if err := own.Renew(t.Context(), charges); err != nil {
			t.Error(err)
		}
		if err := own.Refund(t.Context(), charges); err != nil {
			t.Error(err)
		}
		if got := admits(t, own, 2, h); got != 1 {
			t.Errorf("%d were admitted, not 1", got)
		}
	})
}

// outage is a shared store that can be away, and the replica's own beside it.
type outage struct {
	shared *counted
	own    *guard.Own
	store  limiter.Store
	shares *fixed
}

func newOutage(share float64) *outage {
	o := &outage{shared: newCounted(), shares: &fixed{share: share}}
	o.own = guard.NewOwn(memorystore.New(memorystore.Options{}), o.shares)
	o.store = o.own.Beside(o.shared)
	return o
}

func TestOwnBeginsWithWhatWasLeft(t *testing.T) {
	window := limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 100, Window: time.Hour}
	run := func(name string, test func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
	}
	run("a share of what was left", func(t *testing.T) {
		for _, algorithm := range strategy.Names() {
			if algorithm == limiter.LeakyBucketMeter {
				continue
			}
			l := hundred[algorithm]
			l.Algorithm = algorithm
			o := newOutage(0.25)
			admits(t, o.store, 60, local("a", l))
			if got := admits(t, o.own, 100, local("a", l)); got != 10 {
				t.Errorf("of %s %d were admitted after 60 of 100, not a quarter of 40", algorithm, got)
			}
		}
	})
	run("nothing where nothing was left", func(t *testing.T) {
		o := newOutage(0.25)
		admits(t, o.store, 150, local("a", window))
		if got := admits(t, o.own, 100, local("a", window)); got != 0 {
			t.Errorf("%d were admitted", got)
		}
	})
	run("all of the share where the store has said nothing", func(t *testing.T) {
		o := newOutage(0.25)
		admits(t, o.store, 100, local("another", window))
		if got := admits(t, o.own, 100, local("a", window)); got != 25 {
			t.Errorf("%d were admitted, not 25", got)
		}
	})
	run("and in the next window all of the share", func(t *testing.T) {
		o := newOutage(0.25)
		admits(t, o.store, 100, local("a", window))
		time.Sleep(time.Hour)
		if got := admits(t, o.own, 100, local("a", window)); got != 25 {
			t.Errorf("%d were admitted, not 25", got)
		}
	})
	run("and what a bucket has gained since", func(t *testing.T) {
		o := newOutage(0.25)
		bucket := local("a", limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 100, Window: 100 * time.Second, Burst: 100})
		admits(t, o.store, 100, bucket)
		time.Sleep(40 * time.Second)
		if got := admits(t, o.own, 100, bucket); got != 10 {
			t.Errorf("%d were admitted, not a quarter of 40", got)
		}
	})
	run("a store that comes and goes gives no fresh budgets", func(t *testing.T) {
		o := newOutage(0.25)
		got := 0
		for range 10 {
			o.shared.Store = memorystore.New(memorystore.Options{}) // It even forgets.
			admits(t, o.store, 1, local("a", window))
			got += admits(t, o.own, 100, local("a", window))
		}
		if want := 24; got != want {
			t.Errorf("%d were admitted without the store, not %d", got, want)
		}
	})
	run("limits that fail open or closed are not remembered", func(t *testing.T) {
		o := newOutage(0.25)
		h := local("a", window)
		h.OnFailure = limiter.FailOpen
		admits(t, o.store, 100, h)
		if got := admits(t, o.own, 100, local("a", window)); got != 25 || o.shares.noted != 0 {
			t.Errorf("%d were admitted, not 25, and %d noted", got, o.shares.noted)
		}
	})
}

func TestBeside(t *testing.T) {
	mine := func(key string, requests int64) limiter.Hit {
		h := limiter.Hit{Key: key, Limit: once, Cost: 1, Distribution: limiter.PerReplica}
		h.Limit.Requests = requests
		return h
	}
	ours := func(key string, requests int64) limiter.Hit {
		h := mine(key, requests)
		h.Distribution = limiter.Exact
		return h
	}
	run := func(name string, test func(t *testing.T, o *outage)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, newOutage(0.5)) })
		})
	}
	run("what each replica counts by itself never asks the store", func(t *testing.T, o *outage) {
		o.shared.err = errSilent
		if got := admits(t, o.store, 5, mine("a", 3)); got != 3 {
			t.Errorf("%d were admitted, not 3", got)
		}
		wantQuestions(t, o.shared, 0)
	})
	run("a request refused in process is charged nowhere, and nobody asks the store", func(t *testing.T, o *outage) {
		if got := admits(t, o.store, 5, ours("b", 10), mine("a", 3)); got != 3 {
			t.Errorf("%d were admitted, not 3", got)
		}
		wantQuestions(t, o.shared, 3)
		if got := admits(t, o.store, 10, ours("b", 10)); got != 7 {
			t.Errorf("%d were left, not 7", got)
		}
	})
	run("a request refused by the store is charged nowhere", func(t *testing.T, o *outage) {
		if got := admits(t, o.store, 5, mine("a", 10), ours("b", 3)); got != 3 {
			t.Errorf("%d were admitted, not 3", got)
		}
		if got := admits(t, o.store, 10, mine("a", 10)); got != 7 {
			t.Errorf("%d were left, not 7", got)
		}
	})
	run("a store that fails leaves nothing charged in process", func(t *testing.T, o *outage) {
		o.shared.err = errSilent
		if _, err := o.store.Take(t.Context(), []limiter.Hit{mine("a", 3), ours("b", 3)}); err == nil {
			t.Error("there is no error")
		}
		if got := admits(t, o.store, 5, mine("a", 3)); got != 3 {
			t.Errorf("%d were left, not 3", got)
		}
	})
	run("a limit in the shadow is charged for what all others admit", func(t *testing.T, o *outage) {
		shadow := mine("shadow", 10)
		shadow.Shadow = true
		for range 5 {
			take(t, o.store, []limiter.Hit{shadow, mine("a", 10), ours("b", 3)})
		}
		if got := take(t, o.store, []limiter.Hit{shadow})[0].Remaining; got != 6 {
			t.Errorf("%d are left, not 6", got)
		}
	})
	run("charges go back to where they came from", func(t *testing.T, o *outage) {
		l := hundred[limiter.Concurrency]
		l.Algorithm, l.Requests = limiter.Concurrency, 1
		a, b := local("a", l), local("b", l)
		a.Distribution = limiter.PerReplica
		hits := []limiter.Hit{a, b}
		for range 3 {
			var charges []limiter.Charge
			for i, v := range take(t, o.store, hits) {
				if !v.Allowed {
					t.Fatalf("%s is refused", hits[i].Key)
				}
				charges = append(charges, limiter.Charge{Hit: hits[i], Receipt: v.Receipt})
			}
			for _, amend := range []func(context.Context, []limiter.Charge) error{o.store.Renew, o.store.Refund} {
				if err := amend(t.Context(), charges); err != nil {
					t.Error(err)
				}
			}
		}
	})
	run("demand is what is asked for, admitted or not", func(t *testing.T, o *outage) {
		h := local("a", once)
		h.Cost = 2
		admits(t, o.store, 5, h)
		if o.shares.noted != 10 {
			t.Errorf("%d are noted, not 10", o.shares.noted)
		}
	})
}

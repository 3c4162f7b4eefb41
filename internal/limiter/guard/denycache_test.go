// SPDX-License-Identifier: Apache-2.0

package guard_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/guard"
	"github.com/weir-dev/weir/internal/limiter/memorystore"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// checkInterval is how long a refusal is believed before the store is asked about it again.
const checkInterval = 500 * time.Millisecond

// counted is a store that counts in process, and the questions to it. While err is set it fails with that.
type counted struct {
	limiter.Store
	delay time.Duration
	calls atomic.Int64
	err   error
}

func newCounted() *counted { return &counted{Store: memorystore.New(memorystore.Options{})} }

func (c *counted) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	c.calls.Add(1)
	time.Sleep(c.delay)
	if c.err != nil {
		return nil, c.err
	}
	return c.Store.Take(ctx, hits)
}

// once admits 1 request in each ten seconds, the first of which start with the clock of a bubble.
var once = limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 1, Window: 10 * time.Second}

func one(key string) limiter.Hit { return limiter.Hit{Key: key, Limit: once, Cost: 1} }

func TestDenyCache(t *testing.T) {
	type takeFunc func(hits ...limiter.Hit) []limiter.Verdict
	run := func(name string, test func(t *testing.T, s *counted, take takeFunc)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newCounted()
				cached := guard.DenyCache(s)
				test(t, s, func(hits ...limiter.Hit) []limiter.Verdict {
					t.Helper()
					return take(t, cached, hits)
				})
			})
		})
	}
	wantVerdicts := func(t *testing.T, got []limiter.Verdict, want ...limiter.Verdict) {
		t.Helper()
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(limiter.Verdict{}, "Receipt")); diff != "" {
			t.Errorf("verdicts (-want +got):\n%s", diff)
		}
	}
	wait := func(d time.Duration) limiter.Verdict { return limiter.Verdict{RetryAfter: d, ResetAfter: d} }
	fresh := limiter.Verdict{Allowed: true, ResetAfter: 10 * time.Second}

	run("a refusal is repeated from memory, with what is left of the wait", func(t *testing.T, s *counted, take takeFunc) {
		wantVerdicts(t, take(one("a")), fresh)
		wantVerdicts(t, take(one("a")), wait(10*time.Second))
		time.Sleep(checkInterval - 1)
		wantVerdicts(t, take(one("a")), wait(9500*time.Millisecond+1))
		wantQuestions(t, s, 2)
	})
	run("who waits for as long as told is admitted, and the store alone decides on the last moment", func(t *testing.T, s *counted, take takeFunc) {
		take(one("a"))
		time.Sleep(9900 * time.Millisecond)
		wantVerdicts(t, take(one("a")), wait(100*time.Millisecond))
		moment := 12 * time.Microsecond
		time.Sleep(100*time.Millisecond - moment - 1)
		wantVerdicts(t, take(one("a")), wait(moment+1))
		wantQuestions(t, s, 2)
		time.Sleep(time.Nanosecond)
		wantVerdicts(t, take(one("a")), wait(moment))
		wantQuestions(t, s, 3)
		time.Sleep(moment)
		wantVerdicts(t, take(one("a")), fresh)
	})
	run("the time that the store takes to refuse lengthens no wait", func(t *testing.T, s *counted, take takeFunc) {
		take(one("a"))
		time.Sleep(9900 * time.Millisecond)
		s.delay = 20 * time.Millisecond
		wantVerdicts(t, take(one("a")), wait(80*time.Millisecond))
		wantVerdicts(t, take(one("a")), wait(60*time.Millisecond))
		wantQuestions(t, s, 2)
	})
	run("twice a second one request asks whether a refusal still holds, and nobody waits for it", func(t *testing.T, s *counted, take takeFunc) {
		take(one("a"))
		take(one("a"))
		s.delay = budget
		var slow atomic.Int64
		for range 2999 {
			time.Sleep(time.Millisecond)
			go func() {
				start := time.Now()
				take(one("a"))
				if time.Since(start) > 0 {
					slow.Add(1)
				}
			}()
		}
		time.Sleep(budget)
		wantQuestions(t, s, 2+5)
		if got := slow.Load(); got != 5 {
			t.Errorf("%d requests waited for the store, not 5", got)
		}
	})
	run("counts that were lost are noticed within a second", func(t *testing.T, s *counted, take takeFunc) {
		take(one("a"))
		take(one("a"))
		s.Store = memorystore.New(memorystore.Options{})
		time.Sleep(checkInterval)
		wantVerdicts(t, take(one("a")), limiter.Verdict{Allowed: true, ResetAfter: 9500 * time.Millisecond})
		wantVerdicts(t, take(one("a")), wait(9500*time.Millisecond))
	})
	run("other parameters and costs are a question of their own", func(t *testing.T, s *counted, take takeFunc) {
		take(one("a"))
		take(one("a"))
		edited, peek := one("a"), one("a")
		edited.Limit.Requests, peek.Cost = 5, 0
		wantVerdicts(t, take(edited), limiter.Verdict{Allowed: true, Remaining: 3, ResetAfter: 10 * time.Second})
		wantVerdicts(t, take(peek), fresh)
		wantQuestions(t, s, 4)
	})
	run("a request is refused for any one of its limits, and charges none", func(t *testing.T, s *counted, take takeFunc) {
		take(one("a"))
		take(one("a"))
		wantVerdicts(t, take(one("b"), one("a")), limiter.Verdict{}, wait(10*time.Second))
		wantQuestions(t, s, 2)
		wantVerdicts(t, take(one("b")), fresh)
	})
	run("shadow limits and what never fits are the store's to decide", func(t *testing.T, s *counted, take takeFunc) {
		shadow, huge := one("shadow"), one("huge")
		shadow.Shadow, huge.Cost = true, 2
		for range 10 {
			take(shadow)
			take(huge)
		}
		wantQuestions(t, s, 20)
	})
	run("a limit in shadow isn't refused for what it refused before", func(t *testing.T, s *counted, take takeFunc) {
		take(one("a"))
		take(one("a"))
		shadow := one("a")
		shadow.Shadow = true
		take(shadow)
		wantQuestions(t, s, 3)
	})
}

func TestDenyCacheOfAStoreThatFails(t *testing.T) {
	t.Run("what is over its limit stays refused until its time, and no longer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newCounted()
			store := guard.DenyCache(guard.Breaker(s, silent))
			take(t, store, []limiter.Hit{one("a")})
			take(t, store, []limiter.Hit{one("a")})
			s.err = errSilent
			for range 99 {
				time.Sleep(100 * time.Millisecond)
				if v := take(t, store, []limiter.Hit{one("a")}); v[0].Allowed {
					t.Fatal("a request above the limit was admitted")
				}
			}
			time.Sleep(100 * time.Millisecond)
			if _, err := store.Take(t.Context(), []limiter.Hit{one("a")}); !errors.Is(err, errSilent) {
				t.Errorf("after the wait the error is %v", err)
			}
		})
	})
	t.Run("a request that got no answer is refused for what others heard meanwhile", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := newCounted()
			var asked atomic.Bool
			store := guard.DenyCache(storeFunc(func(ctx context.Context) ([]limiter.Verdict, error) {
				if asked.CompareAndSwap(false, true) {
					time.Sleep(budget)
					return nil, errSilent
				}
				return s.Take(ctx, []limiter.Hit{one("a")})
			}))
			go func() {
				time.Sleep(budget / 2)
				take(t, store, []limiter.Hit{one("a")})
				take(t, store, []limiter.Hit{one("a")})
			}()
			if v := take(t, store, []limiter.Hit{one("a")}); v[0].Allowed {
				t.Error("a request above the limit was admitted")
			}
		})
	})
}

func TestDenyCacheAndRefunds(t *testing.T) {
	refusal := []limiter.Verdict{{RetryAfter: time.Hour, ResetAfter: time.Hour}}
	tests := map[string]struct {
		hit      limiter.Hit
		refunded string
		err      error
		want     int64
	}{
		"a refund makes what is remembered of its key void":           {one("a"), "a", nil, 2},
		"so does a refund that may have failed":                       {one("a"), "a", errSilent, 2},
		"what is remembered of other keys holds":                      {one("a"), "b", nil, 1},
		"a request for a permit is asked of the store, refund or not": {permit("a"), "b", nil, 2},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &refunding{verdicts: refusal, err: test.err}
				store := guard.DenyCache(s)
				take(t, store, []limiter.Hit{test.hit})
				charges := []limiter.Charge{{Hit: one(test.refunded), Receipt: 7}}
				if err := store.Refund(t.Context(), charges); !errors.Is(err, test.err) {
					t.Errorf("the refund's error is %v", err)
				}
				take(t, store, []limiter.Hit{test.hit})
				want := refunding{verdicts: refusal, err: test.err, asked: test.want, refunded: charges}
				if diff := cmp.Diff(want, *s, cmp.AllowUnexported(refunding{}), cmpopts.EquateErrors()); diff != "" {
					t.Errorf("what the store was asked (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// refunding is a store that always says the same, and notes what it is asked.
type refunding struct {
	verdicts []limiter.Verdict
	err      error
	asked    int64
	refunded []limiter.Charge
}

func (r *refunding) Take(context.Context, []limiter.Hit) ([]limiter.Verdict, error) {
	r.asked++
	return r.verdicts, nil
}

func (r *refunding) Refund(_ context.Context, charges []limiter.Charge) error {
	r.refunded = append(r.refunded, charges...)
	return r.err
}

func (r *refunding) Renew(context.Context, []limiter.Charge) error { return r.err }

// permit is a hit of a counter with one permit.
func permit(key string) limiter.Hit {
	return limiter.Hit{Key: key, Limit: limiter.Limit{Algorithm: limiter.Concurrency, Requests: 1, Window: 10 * time.Second}, Cost: 1}
}

// With and without the cache, requests at random times are decided alike.
func TestDenyCacheDecidesAsTheStore(t *testing.T) {
	for seed := range uint64(10) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { decideAlike(t, rand.New(rand.NewPCG(seed, 0))) })
		})
	}
}

// rounding is what the waits that a bucket tells one after the other differ by.
var rounding = cmp.Comparer(func(a, b time.Duration) bool { return (a - b).Abs() <= 2*time.Microsecond })

func decideAlike(t *testing.T, random *rand.Rand) {
	plain, asked := newCounted(), newCounted()
	cached := guard.DenyCache(asked)
	var retry time.Duration
	for step := range 1000 {
		hits := someHits(random)
		want, got := take(t, plain, hits), take(t, cached, hits)
		if len(want) != len(got) {
			t.Fatalf("step %d: %d verdicts, not %d", step, len(got), len(want))
		}
		for i := range got {
			if got[i] == (limiter.Verdict{}) && refused(hits, got) {
				continue
			}
			if hits[i].Cost > 1 { // What others take of the rest isn't known here, and may lengthen the wait.
				got[i].Remaining, got[i].RetryAfter, got[i].ResetAfter = want[i].Remaining, want[i].RetryAfter, want[i].ResetAfter
			}
			if diff := cmp.Diff(want[i], got[i], rounding); diff != "" {
				t.Fatalf("step %d: verdict on %+v (-want +got):\n%s", step, hits[i], diff)
			}
			retry = max(retry, want[i].RetryAfter)
		}
		switch random.IntN(50) {
		case 0:
			time.Sleep(time.Duration(random.IntN(700)) * time.Millisecond)
		case 1:
			time.Sleep(retry - min(retry, time.Duration(random.IntN(8))*time.Microsecond))
			retry = 0
		}
	}
	if asked.calls.Load() > plain.calls.Load()*9/10 {
		t.Errorf("of %d requests the store was asked %d, so the cache has shown little", plain.calls.Load(), asked.calls.Load())
	}
}

// someHits gives hits of some of the strategies, each with a counter that is soon used up.
func someHits(random *rand.Rand) []limiter.Hit {
	var hits []limiter.Hit
	names := strategy.Names()
	random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	day := limiter.Calendar{Unit: limiter.Day, TimeZone: "UTC"}
	for _, algorithm := range names[:1+random.IntN(3)] {
		hits = append(hits, limiter.Hit{
			Key:    fmt.Sprint(algorithm, random.IntN(2)),
			Limit:  limiter.Limit{Algorithm: algorithm, Requests: 4, Window: 2 * time.Second, Calendar: day, Burst: 3, MaxDelay: time.Second},
			Cost:   [...]int64{0, 1, 1, 1, 2, 5}[random.IntN(6)],
			Shadow: random.IntN(8) == 0,
		})
	}
	return hits
}

func refused(hits []limiter.Hit, verdicts []limiter.Verdict) bool {
	for i, v := range verdicts {
		if v.RetryAfter != 0 && !hits[i].Shadow {
			return true
		}
	}
	return false
}

func TestDenyCacheUnderManyCallers(t *testing.T) {
	slow := limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 100, Window: 24 * time.Hour}
	store := guard.DenyCache(newCounted())
	var admitted atomic.Int64
	var wg sync.WaitGroup
	for caller := range 50 {
		hits := []limiter.Hit{{Key: fmt.Sprint(caller % 2), Limit: slow, Cost: 1}}
		wg.Go(func() {
			for range 20 {
				if take(t, store, hits)[0].Allowed {
					admitted.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if got := admitted.Load(); got != 200 {
		t.Errorf("%d requests of two keys were admitted, not 200", got)
	}
}

func TestDenyCacheIsBounded(t *testing.T) {
	const size, keys = 1 << 14, 20_000
	deny := storeFunc(func(context.Context) ([]limiter.Verdict, error) {
		return []limiter.Verdict{{RetryAfter: time.Hour, ResetAfter: time.Hour}}, nil
	})
	s := &counted{Store: deny}
	store := guard.DenyCache(s)
	for range 2 {
		for i := range keys {
			take(t, store, []limiter.Hit{one(fmt.Sprint(i))})
		}
	}
	if got := 2*keys - s.calls.Load(); got > size {
		t.Errorf("%d refusals were remembered, more than %d", got, size)
	}
}

func BenchmarkDenyCache(b *testing.B) {
	allow := []limiter.Verdict{{Allowed: true}}
	deny := []limiter.Verdict{{RetryAfter: time.Hour, ResetAfter: time.Hour}}
	for name, verdicts := range map[string][]limiter.Verdict{"admitted": allow, "refused": deny} {
		b.Run(name, func(b *testing.B) {
			store := guard.DenyCache(storeFunc(func(context.Context) ([]limiter.Verdict, error) { return verdicts, nil }))
			hits := []limiter.Hit{one("weir:3f1c:{shop/17}:6d1f6a3e0c5b4b7f8a9d0e1f2a3b4c5d")}
			b.ReportAllocs()
			for b.Loop() {
				_, _ = store.Take(b.Context(), hits)
			}
		})
	}
}

// take decides a request. It doesn't end the test when the store fails, so that any goroutine may call it.
func take(t *testing.T, store limiter.Store, hits []limiter.Hit) []limiter.Verdict {
	t.Helper()
	verdicts, err := store.Take(t.Context(), hits)
	if err != nil {
		t.Error(err)
		return make([]limiter.Verdict, len(hits))
	}
	return verdicts
}

func wantQuestions(t *testing.T, s *counted, want int64) {
	t.Helper()
	if diff := cmp.Diff(want, s.calls.Load()); diff != "" {
		t.Errorf("questions to the store (-want +got):\n%s", diff)
	}
}

// SPDX-License-Identifier: Apache-2.0

package redisstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// tower is a batcher whose flights land when told to.
type tower struct {
	*batcher
	mu sync.Mutex
	// departed holds the keys of each flight, in the order of their departures.
	departed []string
	landing  chan struct{}
}

func newTower() *tower {
	w := &tower{landing: make(chan struct{})}
	w.batcher = newBatcher(func(requests []strategy.Request, answers []answer) {
		var keys []string
		for i, r := range requests {
			keys = append(keys, r.Hits[0].Key)
			answers[i] = answerTo(r.Hits)
		}
		w.mu.Lock()
		w.departed = append(w.departed, strings.Join(keys, " "))
		w.mu.Unlock()
		<-w.landing
	})
	return w
}

// answerTo is one that only the request of these hits gets.
func answerTo(hits []limiter.Hit) answer {
	if hits[0].Key == "bad" {
		return answer{err: errors.New("bad")}
	}
	n, _ := strconv.ParseInt(hits[0].Key, 10, 64)
	return answer{verdicts: []limiter.Verdict{{Allowed: true, Remaining: n}}}
}

// request has a caller of its own take, and waits until it waits.
func (w *tower) request(ctx context.Context, keys ...string) <-chan error {
	errs := make(chan error, len(keys))
	for _, key := range keys {
		hits := []limiter.Hit{{Key: key}}
		go func() {
			verdicts, err := w.ride(ctx, strategy.Request{Hits: hits})
			if want := answerTo(hits); err == nil && !cmp.Equal(want.verdicts, verdicts) {
				err = fmt.Errorf("request %s got %+v", key, verdicts)
			}
			errs <- err
		}()
		synctest.Wait()
	}
	return errs
}

// land lets one flight land, whichever.
func (w *tower) land() {
	w.landing <- struct{}{}
	synctest.Wait()
}

func (w *tower) check(t *testing.T, want ...string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if diff := cmp.Diff(want, w.departed); diff != "" {
		t.Errorf("flights (-want +got):\n%s", diff)
	}
}

// budget is how long callers wait who do not wait for ever.
const budget = 20 * time.Millisecond

func numbers(from, to int) []string {
	var names []string
	for n := from; n <= to; n++ {
		names = append(names, strconv.Itoa(n))
	}
	return names
}

func TestBatcher(t *testing.T) {
	run := func(name string, test func(t *testing.T, w *tower)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newTower()
				test(t, w)
				close(w.landing)
				time.Sleep(2 * patience) // The shuttles go home.
			})
		})
	}
	run("the first few depart at once, and the next together in the order they came", func(t *testing.T, w *tower) {
		errs := w.request(t.Context(), numbers(1, 7)...)
		w.check(t, "1", "2", "3", "4")
		w.land()
		w.check(t, "1", "2", "3", "4", "5 6 7")
		for range 4 {
			w.land()
		}
		for range 7 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		w.request(t.Context(), "8")
		w.check(t, "1", "2", "3", "4", "5 6 7", "8")
	})
	run("one flight takes many, and none departs beside it until three quarters as many wait", func(t *testing.T, w *tower) {
		w.request(t.Context(), numbers(1, 20)...)
		for range 4 {
			w.land()
		}
		many := strings.Join(numbers(5, 20), " ")
		w.check(t, "1", "2", "3", "4", many)
		w.request(t.Context(), numbers(21, 31)...)
		w.check(t, "1", "2", "3", "4", many)
		w.request(t.Context(), "last")
		w.check(t, "1", "2", "3", "4", many, strings.Join(numbers(21, 31), " ")+" last")
	})
	run("a batch takes no more requests than it may", func(t *testing.T, w *tower) {
		w.request(t.Context(), numbers(1, 4+maxRequests+1)...)
		w.land()
		w.check(t, "1", "2", "3", "4", strings.Join(numbers(5, 4+maxRequests), " "))
	})
	run("a batch takes no more hits than it may, but always one request", func(t *testing.T, w *tower) {
		w.request(t.Context(), numbers(1, 4)...)
		for range 2 {
			go func() {
				_, _ = w.ride(t.Context(), strategy.Request{Hits: slices.Repeat([]limiter.Hit{{Key: "large"}}, maxHits)})
			}()
		}
		synctest.Wait()
		w.land()
		w.land()
		w.check(t, "1", "2", "3", "4", "large", "large")
	})
	run("an answer is one request's own", func(t *testing.T, w *tower) {
		w.request(t.Context(), numbers(1, 4)...)
		good, bad := w.request(t.Context(), "5"), w.request(t.Context(), "bad")
		w.land()
		w.check(t, "1", "2", "3", "4", "5 bad")
		for range 4 {
			w.land()
		}
		if err := <-good; err != nil {
			t.Error(err)
		}
		if err := <-bad; err == nil {
			t.Error("the bad request has no error")
		}
	})
	run("a request that is given up while it waits never departs", func(t *testing.T, w *tower) {
		w.request(t.Context(), numbers(1, 5)...)
		ctx, cancel := context.WithCancel(t.Context())
		errs := w.request(ctx, "given up")
		w.request(t.Context(), "6")
		cancel()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("the error is %v", err)
		}
		w.land()
		w.check(t, "1", "2", "3", "4", "5 6")
	})
	run("a caller who gives up under way has its error at once, and the flight goes on", func(t *testing.T, w *tower) {
		ctx, cancel := context.WithCancel(t.Context())
		errs := w.request(ctx, "1")
		cancel()
		if err := <-errs; !errors.Is(err, context.Canceled) {
			t.Errorf("the error is %v", err)
		}
		w.check(t, "1")
	})
	run("flights that hang are four, and hold up nobody longer than it wants to wait", func(t *testing.T, w *tower) {
		for n := range 10 {
			ctx, cancel := context.WithTimeout(t.Context(), budget)
			errs := w.request(ctx, numbers(100*n, 100*n+19)...)
			for range 20 {
				if err := <-errs; !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("the error is %v", err)
				}
			}
			cancel()
		}
		w.check(t, "0", "1", "2", "3")
		for range 4 {
			w.land()
		}
		w.request(t.Context(), "back")
		w.check(t, "0", "1", "2", "3", "back")
	})
	run("a flight that hangs with many aboard stops the others only until they give up", func(t *testing.T, w *tower) {
		w.request(t.Context(), numbers(1, 4)...)
		ctx, cancel := context.WithTimeout(t.Context(), budget)
		defer cancel()
		hung := w.request(ctx, numbers(5, 20)...)
		for range 4 {
			w.land()
		}
		w.request(t.Context(), "21", "22")
		many := strings.Join(numbers(5, 20), " ")
		w.check(t, "1", "2", "3", "4", many)
		for range 16 {
			if err := <-hung; !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the error is %v", err)
			}
		}
		synctest.Wait()
		w.check(t, "1", "2", "3", "4", many, "21 22")
	})
}

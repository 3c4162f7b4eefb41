// SPDX-License-Identifier: Apache-2.0

package guard_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/guard"
)

const (
	probeInterval = 200 * time.Millisecond
	// maxProbe is how long a probe goes on after its caller has gone.
	maxProbe = 500 * time.Millisecond
)

var errSilent = errors.New("silent")

func silent(err error) bool { return errors.Is(err, errSilent) }

// patient is a store that fails with err, if it is not nil, after a delay.
type patient struct {
	err   error
	delay time.Duration
	calls atomic.Int64
}

func (p *patient) Take(ctx context.Context, _ []limiter.Hit) ([]limiter.Verdict, error) {
	return nil, p.answer(ctx)
}

func (p *patient) Refund(ctx context.Context, _ []limiter.Charge) error { return p.answer(ctx) }

func (p *patient) Renew(ctx context.Context, _ []limiter.Charge) error { return p.answer(ctx) }

func (p *patient) answer(ctx context.Context) error {
	p.calls.Add(1)
	select {
	case <-time.After(p.delay):
		return p.err
	case <-ctx.Done():
		return errSilent
	}
}

func TestBreaker(t *testing.T) {
	run := func(name string, test func(t *testing.T, p *patient, take func() error)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &patient{}
				store := guard.Breaker(p, silent)
				test(t, p, func() error {
					_, err := store.Take(t.Context(), nil)
					return err
				})
				time.Sleep(maxProbe)
				synctest.Wait()
			})
		})
	}
	fail := func(take func() error, times int) {
		for range times {
			_ = take()
		}
	}
	run("a store that answers is asked each time", func(t *testing.T, p *patient, take func() error) {
		for range 100 {
			if err := take(); err != nil {
				t.Fatal(err)
			}
		}
		wantCalls(t, p, 100)
	})
	run("a store that fails now and then is asked each time", func(t *testing.T, p *patient, take func() error) {
		for range 10 {
			p.err = errSilent
			fail(take, 4)
			p.err = nil
			fail(take, 1)
		}
		wantCalls(t, p, 50)
	})
	run("many failures at once are one stumble", func(t *testing.T, p *patient, take func() error) {
		_ = take()
		p.err, p.delay = errSilent, budget
		for range 100 {
			go func() { _ = take() }()
		}
		time.Sleep(budget)
		synctest.Wait()
		p.err, p.delay = nil, budget
		for range 100 {
			go func() {
				if err := take(); err != nil {
					t.Error(err)
				}
			}()
		}
		time.Sleep(budget)
		synctest.Wait()
	})
	run("after five failures and a probe nobody waits, and everybody knows why", func(t *testing.T, p *patient, take func() error) {
		p.err, p.delay = errSilent, budget
		start := time.Now()
		fail(take, 6)
		if took := time.Since(start); took != 6*budget {
			t.Errorf("six failures took %s", took)
		}
		for range 1000 {
			if err := take(); !errors.Is(err, limiter.ErrNotAsked) || !errors.Is(err, errSilent) {
				t.Fatalf("the error is %v", err)
			}
		}
		if took := time.Since(start); took != 6*budget {
			t.Errorf("a thousand more took %s", took-6*budget)
		}
		wantCalls(t, p, 6)
	})
	run("an open breaker probes five times a second, one at a time", func(t *testing.T, p *patient, take func() error) {
		p.err, p.delay = errSilent, budget
		fail(take, 6)
		for range 2200 {
			go func() { _ = take() }()
			time.Sleep(time.Millisecond)
		}
		wantCalls(t, p, 16)
	})
	run("the first answer closes the breaker", func(t *testing.T, p *patient, take func() error) {
		p.err = errSilent
		fail(take, 6)
		p.err = nil
		time.Sleep(probeInterval)
		for range 100 {
			if err := take(); err != nil {
				t.Fatal(err)
			}
		}
		p.err = errSilent
		fail(take, 4)
		wantCalls(t, p, 110)
	})
	run("an open breaker asks a store that is back at once, however many waited for it", func(t *testing.T, p *patient, take func() error) {
		p.err, p.delay = errSilent, budget
		for range 100 {
			go func() { _ = take() }()
		}
		time.Sleep(budget)
		synctest.Wait()
		p.err, p.delay = nil, 0
		for range 100 {
			if err := take(); err != nil {
				t.Fatal(err)
			}
		}
	})
	run("of a store that hangs a probe's caller waits for a millisecond, and the probe closes the breaker all the same", func(t *testing.T, p *patient, take func() error) {
		p.err, p.delay = fmt.Errorf("%w: %w", errSilent, context.DeadlineExceeded), budget
		fail(take, 5)
		start := time.Now()
		fail(take, 1)
		if took := time.Since(start); took != time.Millisecond {
			t.Errorf("a probe's caller waited for %s", took)
		}
		time.Sleep(budget + probeInterval)
		synctest.Wait()
		p.err, p.delay = nil, 10*time.Millisecond
		if err := take(); !errors.Is(err, errSilent) || errors.Is(err, limiter.ErrNotAsked) {
			t.Errorf("the error is %v", err)
		}
		time.Sleep(p.delay)
		if err := take(); err != nil {
			t.Error(err)
		}
		wantCalls(t, p, 8)
	})
	run("errors that are answers open nothing", func(t *testing.T, p *patient, take func() error) {
		p.err = limiter.ErrInvalid
		fail(take, 100)
		wantCalls(t, p, 100)
	})
	run("a probe without a result makes room for the next", func(t *testing.T, p *patient, take func() error) {
		p.err = errSilent
		fail(take, 5)
		p.err = limiter.ErrInvalid
		if err := take(); !errors.Is(err, limiter.ErrInvalid) {
			t.Errorf("the error is %v", err)
		}
		p.err = nil
		if err := take(); err != nil {
			t.Error(err)
		}
	})
}

func TestBreakerLearnsFromAllCalls(t *testing.T) {
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &patient{err: errSilent}
				store := guard.Breaker(p, silent)
				for range 6 {
					_ = call(t.Context(), store)
				}
				for other, call := range calls {
					if err := call(t.Context(), store); !errors.Is(err, limiter.ErrNotAsked) {
						t.Errorf("after six failures the error of %s is %v", other, err)
					}
				}
				p.err = nil
				time.Sleep(probeInterval)
				if err := call(t.Context(), store); err != nil {
					t.Errorf("the error of a probe is %v", err)
				}
				for other, call := range calls {
					if err := call(t.Context(), store); err != nil {
						t.Errorf("after an answer the error of %s is %v", other, err)
					}
				}
				wantCalls(t, p, 10)
			})
		})
	}
}

func TestBreakerAndCallersInAHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &patient{delay: budget}
		store := guard.Breaker(p, silent)
		for range 100 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			_, _ = store.Take(ctx, nil)
			cancel()
		}
		if _, err := store.Take(t.Context(), nil); err != nil {
			t.Errorf("callers who didn't wait for the store have opened the breaker: %v", err)
		}
	})
}

func TestCircuitWithinADeadline(t *testing.T) {
	late := func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }
	synctest.Test(t, func(t *testing.T) {
		p := &patient{delay: time.Hour}
		store := guard.Deadline(guard.Breaker(p, late), budget)
		for range 6 {
			if _, err := store.Take(t.Context(), nil); !late(err) || errors.Is(err, limiter.ErrNotAsked) {
				t.Errorf("the error is %v", err)
			}
		}
		if _, err := store.Take(t.Context(), nil); !late(err) || !errors.Is(err, limiter.ErrNotAsked) {
			t.Errorf("budgets that were spent have not opened the circuit: %v", err)
		}
		synctest.Wait()
		p.delay = 0
		time.Sleep(maxProbe + probeInterval) // The probe was under way when the budget of its caller was spent.
		if _, err := store.Take(t.Context(), nil); err != nil {
			t.Error(err)
		}
		wantCalls(t, p, 7)
		synctest.Wait()
	})
}

func wantCalls(t *testing.T, p *patient, want int64) {
	t.Helper()
	if diff := cmp.Diff(want, p.calls.Load()); diff != "" {
		t.Errorf("calls of the store (-want +got):\n%s", diff)
	}
}

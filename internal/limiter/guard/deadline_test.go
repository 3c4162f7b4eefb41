// SPDX-License-Identifier: Apache-2.0

package guard_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/guard"
)

const budget = 20 * time.Millisecond

// storeFunc is a store of one function, which answers all calls.
type storeFunc func(ctx context.Context) ([]limiter.Verdict, error)

func (f storeFunc) Take(ctx context.Context, _ []limiter.Hit) ([]limiter.Verdict, error) {
	return f(ctx)
}

func (f storeFunc) Refund(ctx context.Context, _ []limiter.Charge) error {
	_, err := f(ctx)
	return err
}

func (f storeFunc) Renew(ctx context.Context, _ []limiter.Charge) error {
	_, err := f(ctx)
	return err
}

// calls are what a store can be asked, by name.
var calls = map[string]func(ctx context.Context, store limiter.Store) error{
	"Take": func(ctx context.Context, store limiter.Store) error {
		_, err := store.Take(ctx, nil)
		return err
	},
	"Refund": func(ctx context.Context, store limiter.Store) error { return store.Refund(ctx, nil) },
	"Renew":  func(ctx context.Context, store limiter.Store) error { return store.Renew(ctx, nil) },
}

func TestDeadline(t *testing.T) {
	run := func(name string, test func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
	}
	run("an answer in time is the answer", func(t *testing.T) {
		want := []limiter.Verdict{{Allowed: true, Remaining: 4}}
		store := guard.Deadline(storeFunc(func(context.Context) ([]limiter.Verdict, error) {
			time.Sleep(budget - time.Nanosecond)
			return want, nil
		}), budget)
		got, err := store.Take(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("verdicts (-want +got):\n%s", diff)
		}
	})
	run("an error in time is the error", func(t *testing.T) {
		want := errors.New("no route")
		store := guard.Deadline(storeFunc(func(context.Context) ([]limiter.Verdict, error) { return nil, want }), budget)
		if _, err := store.Take(t.Context(), nil); !errors.Is(err, want) {
			t.Errorf("the error is %v, not %v", err, want)
		}
	})
	run("a caller that gives up first gets its own error", func(t *testing.T) {
		store := guard.Deadline(storeFunc(waitForContext), budget)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(5*time.Millisecond, cancel)
		start := time.Now()
		_, err := store.Take(ctx, nil)
		if took := time.Since(start); took != 5*time.Millisecond || !errors.Is(err, context.Canceled) {
			t.Errorf("after %s the error is %v", took, err)
		}
	})
	for name, call := range calls {
		run(name+" of a store that doesn't answer is given up when the budget is spent", func(t *testing.T) {
			store := guard.Deadline(storeFunc(waitForContext), budget)
			start := time.Now()
			err := call(t.Context(), store)
			if took := time.Since(start); took != budget || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("after %s the error is %v", took, err)
			}
		})
	}
}

func waitForContext(ctx context.Context) ([]limiter.Verdict, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

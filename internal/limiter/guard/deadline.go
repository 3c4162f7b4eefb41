// SPDX-License-Identifier: Apache-2.0

// Package guard keeps a store that fails from harming those who ask it.
package guard

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

const (
	// maxLateness is how late a timer rings in a process that has the processor time it needs.
	maxLateness = 5 * time.Millisecond
	// maxExtensions bounds how often a call gets its budget anew.
	maxExtensions = 4
)

// errSpent is why a call has ended that got no answer within its budget.
var errSpent = fmt.Errorf("waiting for the store: %w", context.DeadlineExceeded)

// Deadline gives a store that answers within budget, with an error that wraps [context.DeadlineExceeded] if
// the inner store has not answered by then.
//
// A process that is kept from running, by the limit of its container or by more requests than it can serve,
// finds the answers of the store only after the budget is spent, and would give up a store that is well: a
// flood of requests would be its own way out of its limits. Who rings more than 5 ms late knows that, and
// grants the budget once more, up to four times.
func Deadline(store limiter.Store, budget time.Duration) limiter.Store {
	return &deadline{store: store, budget: budget, alarms: sync.Pool{New: func() any { return newAlarm() }}}
}

type deadline struct {
	store  limiter.Store
	budget time.Duration
	// alarms are those that are not set, to be used again.
	alarms sync.Pool
}

// Take implements [limiter.Store].
func (d *deadline) Take(ctx context.Context, hits []limiter.Hit) (verdicts []limiter.Verdict, err error) {
	err = d.within(ctx, func(ctx context.Context) error {
		verdicts, err = d.store.Take(ctx, hits)
		return err
	})
	return verdicts, err
}

// Refund implements [limiter.Store].
func (d *deadline) Refund(ctx context.Context, charges []limiter.Charge) error {
	return d.within(ctx, func(ctx context.Context) error { return d.store.Refund(ctx, charges) })
}

// Renew implements [limiter.Store].
func (d *deadline) Renew(ctx context.Context, charges []limiter.Charge) error {
	return d.within(ctx, func(ctx context.Context) error { return d.store.Renew(ctx, charges) })
}

// within calls the store with a context that ends when the budget is spent.
func (d *deadline) within(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a := d.alarms.Get().(*alarm)
	a.set(d.budget, cancel)
	defer func() {
		if a.timer.Stop() && !a.rung.Load() {
			a.end = nil
			d.alarms.Put(a)
		}
	}()
	err := call(ctx)
	if err != nil && spent(ctx) {
		return errSpent
	}
	return err
}

// spent says whether a call has ended because its budget is spent.
func spent(ctx context.Context) bool {
	return context.Cause(ctx) == errSpent //nolint:errorlint // This very error is what the alarm gives.
}

// alarm ends a call when its budget is spent.
type alarm struct {
	timer      *time.Timer
	budget     time.Duration
	extensions int
	due        time.Time
	end        context.CancelCauseFunc
	// rung says that it has rung: it may be at that still, and can't be used again.
	rung atomic.Bool
}

func newAlarm() *alarm {
	a := new(alarm)
	a.timer = time.AfterFunc(time.Hour, a.ring)
	a.timer.Stop()
	return a
}

// set has the alarm ring when the budget is spent. It must not be set already.
func (a *alarm) set(budget time.Duration, end context.CancelCauseFunc) {
	a.budget, a.extensions, a.end = budget, maxExtensions, end
	a.wind()
}

func (a *alarm) wind() {
	a.due = time.Now().Add(a.budget)
	a.timer.Reset(a.budget)
}

func (a *alarm) ring() {
	a.rung.Store(true)
	// A timer that has run out is served first. Behind all others who are ready to run, it shows how long they
	// have to wait.
	runtime.Gosched()
	if a.spent(time.Now()) {
		a.end(errSpent)
		return
	}
	a.wind()
}

// spent says whether the budget is, or has to be granted once more.
func (a *alarm) spent(now time.Time) bool {
	if now.Sub(a.due) <= maxLateness || a.extensions == 0 {
		return true
	}
	a.extensions--
	return false
}

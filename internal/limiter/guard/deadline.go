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
func (d *deadline) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	call := d.begin(ctx)
	verdicts, err := d.store.Take(call, hits)
	return verdicts, d.end(call, err)
}

// Refund implements [limiter.Store].
func (d *deadline) Refund(ctx context.Context, charges []limiter.Charge) error {
	call := d.begin(ctx)
	return d.end(call, d.store.Refund(call, charges))
}

// Renew implements [limiter.Store].
func (d *deadline) Renew(ctx context.Context, charges []limiter.Charge) error {
	call := d.begin(ctx)
	return d.end(call, d.store.Renew(call, charges))
}

// begin gives a call its budget.
func (d *deadline) begin(ctx context.Context) *timed {
	t := &timed{Context: ctx, alarm: d.alarms.Get().(*alarm)}
	t.alarm.set(d.budget)
	if ctx.Done() != nil {
		t.unwatch = context.AfterFunc(ctx, t.alarm.leave)
	}
	return t
}

// end says what has become of a call.
func (d *deadline) end(t *timed, err error) error {
	if err != nil && spent(t) {
		err = errSpent
	}
	if t.alarm.unset() && (t.unwatch == nil || t.unwatch()) {
		d.alarms.Put(t.alarm)
	}
	return err
}

// timed is the context of a call: it ends with the caller's, and when the budget is spent. It is written for the
// decisions, which come by the hundred thousand: what the context package has takes five allocations instead of one.
type timed struct {
	context.Context
	alarm *alarm
	// unwatch is what [context.AfterFunc] gave, if the caller's context can end.
	unwatch func() bool
}

// Done implements [context.Context].
func (t *timed) Done() <-chan struct{} { return t.alarm.done }

// Err implements [context.Context].
func (t *timed) Err() error {
	if t.alarm.state.Load() == rung {
		return context.DeadlineExceeded
	}
	return t.Context.Err()
}

// alarmKey is of the alarm that is set for a call.
type alarmKey struct{}

// Value implements [context.Context].
func (t *timed) Value(key any) any {
	if key == (alarmKey{}) {
		return t.alarm
	}
	return t.Context.Value(key)
}

// spent says whether a call has ended because its budget is spent.
func spent(ctx context.Context) bool {
	a, ok := ctx.Value(alarmKey{}).(*alarm)
	return ok && a.state.Load() == rung
}

// alarm ends a call when its budget is spent.
type alarm struct {
	timer      *time.Timer
	budget     time.Duration
	extensions int
	due        time.Time
	// ringing says that the timer has run out once: it may be at that still, and can't be used again.
	ringing atomic.Bool
	state   atomic.Int32
	// done is closed at the end of the state set.
	done chan struct{}
}

// The states of an alarm: what has become of the call that it is set for.
const (
	set int32 = iota
	rung
	left
)

func newAlarm() *alarm {
	a := &alarm{done: make(chan struct{})}
	a.timer = time.AfterFunc(time.Hour, a.ring)
	a.timer.Stop()
	return a
}

// set has the alarm ring when the budget is spent. It must not be set already.
func (a *alarm) set(budget time.Duration) {
	a.budget, a.extensions = budget, maxExtensions
	a.wind()
}

// unset says whether the alarm can be set again: not if it has ended a call, or may be about to.
func (a *alarm) unset() bool {
	return a.timer.Stop() && !a.ringing.Load() && a.state.Load() == set
}

// leave ends the call for a caller who has given up.
func (a *alarm) leave() { a.finish(left) }

func (a *alarm) finish(state int32) {
	if a.state.CompareAndSwap(set, state) {
		close(a.done)
	}
}

func (a *alarm) wind() {
	a.due = time.Now().Add(a.budget)
	a.timer.Reset(a.budget)
}

func (a *alarm) ring() {
	a.ringing.Store(true)
	// A timer that has run out is served first. Behind all others who are ready to run, it shows how long they
	// have to wait.
	runtime.Gosched()
	if a.spent(time.Now()) {
		a.finish(rung)
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

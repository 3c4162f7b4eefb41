// SPDX-License-Identifier: Apache-2.0

package limiter

import (
	"context"
	"slices"
	"sync"
	"time"
)

// hold holds a request until the last of its slots. It says how long that was, and whether the request has left.
func (e *Engine) hold(ctx context.Context, hits []Hit, verdicts []Verdict) (waited time.Duration, left bool) {
	last := -1
	for i := range hits {
		if hits[i].queues() && (last < 0 || verdicts[i].Wait > verdicts[last].Wait) {
			last = i
		}
	}
	if last < 0 {
		return 0, false
	}
	start := time.Now()
	err := e.lines.wait(ctx, hits[last].Key, verdicts[last])
	return time.Since(start), err != nil
}

// Waiting tells how many requests are held for their turn in a queue now, and in what time the last of them has it.
func (e *Engine) Waiting() (requests int, longest time.Duration) {
	requests, longest = e.lines.waiting(time.Now())
	if e.fallback != nil {
		more, longer := e.fallback.Waiting()
		requests, longest = requests+more, max(longest, longer)
	}
	return requests, longest
}

// lines are the requests that are held: a line for each counter, in the order of the slots. A request with slots
// in several counters stands in the line of the last one only, so that it holds up nobody in the others.
type lines struct {
	mu    sync.Mutex
	byKey map[string][]*waiter
}

type waiter struct {
	slot int64
	due  time.Time
	// isDue says that the time of the slot has come.
	isDue bool
	// turn has room for one value, which says that nobody with an earlier slot waits any more either.
	turn chan struct{}
}

func newLines() lines { return lines{byKey: map[string][]*waiter{}} }

// wait returns when the time of a slot has come and all with earlier slots have gone on, or left. Timers alone would
// let requests overtake each other: those that are due at nearly the same time may wake up in any order. The error
// is that of ctx.
func (l *lines) wait(ctx context.Context, key string, v Verdict) error {
	w := &waiter{slot: v.Receipt, due: time.Now().Add(v.Wait), turn: make(chan struct{}, 1)}
	l.join(key, w)
	// Who is next goes on only when this one runs, and so can't be overtaken any more.
	defer l.leave(key, w)
	timer := time.NewTimer(v.Wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		l.arrive(key, w)
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-w.turn:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// join puts w into its line. The verdicts of two slots may get here in another order than the slots'.
func (l *lines) join(key string, w *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	line := l.byKey[key]
	i := len(line)
	for i > 0 && line[i-1].slot > w.slot {
		i--
	}
	l.byKey[key] = slices.Insert(line, i, w)
}

// arrive says that the time of w has come.
func (l *lines) arrive(key string, w *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w.isDue = true
	l.call(key)
}

// leave takes w out of its line.
func (l *lines) leave(key string, w *waiter) {
	l.mu.Lock()
	defer l.mu.Unlock()
	line := l.byKey[key]
	i := slices.Index(line, w)
	l.byKey[key] = slices.Delete(line, i, i+1)
	if len(line) == 1 {
		delete(l.byKey, key)
		return
	}
	l.call(key)
}

// call lets the first in a line go on if it is due. It may have been called before.
func (l *lines) call(key string) {
	if first := l.byKey[key][0]; first.isDue {
		select {
		case first.turn <- struct{}{}:
		default:
		}
	}
}

func (l *lines) waiting(now time.Time) (requests int, longest time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.byKey {
		requests += len(line)
		for _, w := range line {
			longest = max(longest, w.due.Sub(now))
		}
	}
	return requests, longest
}

// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

const (
	// maxFailures in a row open a circuit, if there was no answer for maxSilence either: when many wait at
	// once, as many fail at once.
	maxFailures = 5
	maxSilence  = 30 * time.Millisecond
	// probeInterval is how long an open circuit waits after a probe has failed. A store that is back is
	// noticed this much later at most.
	probeInterval = 200 * time.Millisecond
	// probePatience is how long the caller of a probe waits for somebody who hangs: most who are back answer sooner.
	// maxProbe is how long the probe itself does.
	probePatience = time.Millisecond
	maxProbe      = 500 * time.Millisecond
)

// Circuit spares callers the wait for somebody who doesn't answer. After five failures in a row, and 30 ms without
// an answer, it is open: its calls fail at once, with an error that wraps [limiter.ErrNotAsked] and the last
// failure. One call at a time is let through as a probe, the first at once, the next 200 ms after one that
// failed, and the first answer closes the circuit. So who only stumbled is asked again after one probe, however
// many waited for it. The caller of a probe waits for it; but once a budget was spent on who doesn't answer, a
// millisecond only. Then it is told the last failure, and the call goes on without it, for half a second at most.
//
// A failure is an error that unanswered is true of, or a call whose [Deadline] has passed, unless the caller gave
// up by itself: callers who are in a hurry say nothing about whom they ask. Other errors count neither way.
//
// A Circuit is safe for concurrent use.
type Circuit struct {
	unanswered func(error) bool
	// born is when the circuit was made, and answered is how long after that the last answer came, in nanoseconds.
	born     time.Time
	answered atomic.Int64
	// ailing says that something failed after the last answer. Without it nothing below is of interest.
	ailing atomic.Bool

	mu       sync.Mutex
	failures int
	last     error
	open     bool
	// hangs says that a budget was spent since the last answer.
	hangs bool
	// While the circuit is open: whether a probe is under way, and else when the next may be.
	probing bool
	next    time.Time
}

// NewCircuit gives a circuit that is closed.
func NewCircuit(unanswered func(error) bool) *Circuit {
	c := &Circuit{unanswered: unanswered, born: time.Now()}
	c.answered.Store(-int64(maxSilence)) // Who never answered has been silent for long.
	return c
}

// Do makes a call, unless the circuit is open. The error is that of the call, or says why there is none, or no answer
// to it yet: the call may then still go on, and what it writes must not be read.
func (c *Circuit) Do(ctx context.Context, call func(context.Context) error) error {
	probe, err := c.admit()
	switch {
	case err != nil:
		return err
	case probe:
		return c.probe(ctx, call)
	}
	return c.judge(ctx, call(ctx))
}

// judge learns from what has become of a call that was no probe.
func (c *Circuit) judge(ctx context.Context, err error) error {
	if err == nil {
		c.succeed()
		return nil
	}
	if spent(ctx) {
		err = errSpent
	}
	if c.unanswered(err) && (ctx.Err() == nil || spent(ctx)) {
		c.fail(err, false)
	}
	return err
}

// probe makes a call that doesn't end with its caller's patience.
func (c *Circuit) probe(ctx context.Context, call func(context.Context) error) error {
	result := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), maxProbe)
		defer cancel()
		err := call(ctx)
		switch {
		case err == nil:
			c.succeed()
		case c.unanswered(err):
			c.fail(err, true)
		default:
			c.release()
		}
		result <- err
	}()
	patience, last := c.failing()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-result:
		return err
	case <-timer.C:
	case <-ctx.Done():
	}
	return fmt.Errorf("waiting for a probe: %w", last)
}

// failing gives how long the caller of a probe waits, and the last failure.
func (c *Circuit) failing() (patience time.Duration, last error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.hangs {
		return probePatience, c.last
	}
	return maxProbe, c.last
}

// well says that nothing has failed after the last answer.
func (c *Circuit) well() bool { return !c.ailing.Load() }

// admit says whether the call is a probe, or why it must not be made.
func (c *Circuit) admit() (probe bool, err error) {
	if c.well() {
		return false, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.open {
		return false, nil
	}
	if c.probing || time.Now().Before(c.next) {
		return false, fmt.Errorf("%w: %w", limiter.ErrNotAsked, c.last)
	}
	c.probing = true
	return true, nil
}

func (c *Circuit) succeed() {
	c.answered.Store(int64(time.Since(c.born)))
	if c.well() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures = 0
	c.open, c.hangs, c.probing, c.next = false, false, false, time.Time{}
	c.ailing.Store(false)
}

func (c *Circuit) fail(err error, probe bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.ailing.Store(true)
	c.failures++
	c.last = err
	c.hangs = c.hangs || errors.Is(err, context.DeadlineExceeded)
	c.open = c.open || c.failures >= maxFailures && c.silence(now) >= maxSilence
	if probe {
		c.probing, c.next = false, now.Add(probeInterval)
	}
}

// silence is how long there was no answer.
func (c *Circuit) silence(now time.Time) time.Duration {
	return now.Sub(c.born) - time.Duration(c.answered.Load())
}

// release makes room for another probe, after one that has shown nothing.
func (c *Circuit) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.probing = false
}

// Breaker gives a store that is asked through a [Circuit] of its own.
func Breaker(store limiter.Store, unanswered func(error) bool) limiter.Store {
	return &breaker{store: store, circuit: NewCircuit(unanswered)}
}

type breaker struct {
	store   limiter.Store
	circuit *Circuit
}

// Take implements [limiter.Store].
func (b *breaker) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	if b.circuit.well() {
		verdicts, err := b.store.Take(ctx, hits)
		return verdicts, b.circuit.judge(ctx, err)
	}
	return b.take(ctx, hits)
}

// take is Take when the circuit may not let the call through.
func (b *breaker) take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	var verdicts []limiter.Verdict
	err := b.circuit.Do(ctx, func(ctx context.Context) (err error) {
		verdicts, err = b.store.Take(ctx, hits)
		return err
	})
	if err != nil {
		return nil, err
	}
	return verdicts, nil
}

// Refund implements [limiter.Store].
func (b *breaker) Refund(ctx context.Context, charges []limiter.Charge) error {
	return b.circuit.Do(ctx, func(ctx context.Context) error { return b.store.Refund(ctx, charges) })
}

// Renew implements [limiter.Store].
func (b *breaker) Renew(ctx context.Context, charges []limiter.Charge) error {
	return b.circuit.Do(ctx, func(ctx context.Context) error { return b.store.Renew(ctx, charges) })
}

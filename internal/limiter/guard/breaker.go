// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

const (
	// maxFailures in a row open a breaker, if there was no answer for maxSilence either: when many wait at
	// once, as many fail at once.
	maxFailures = 5
	maxSilence  = 30 * time.Millisecond
	// probeInterval is how long an open breaker waits after a probe has failed. A store that is back is
	// noticed this much later at most.
	probeInterval = 200 * time.Millisecond
)

// Breaker gives a store that spares its callers the wait for one that doesn't answer. After five failures in
// a row, and 30 ms without an answer, it is open: it fails at once, with an error that wraps
// [limiter.ErrNotAsked] and the last failure. One request at a time is let through as a probe, the first at
// once, the next 200 ms after one that failed, and the first answer closes the breaker. So a store that only
// stumbled is asked again after one probe, however many waited for it.
//
// A failure is an error that unanswered is true of, unless the caller gave up by itself: callers who are in
// a hurry say nothing about the store. Other errors count neither way.
func Breaker(store limiter.Store, unanswered func(error) bool) limiter.Store {
	return &breaker{store: store, unanswered: unanswered}
}

type breaker struct {
	store      limiter.Store
	unanswered func(error) bool

	mu       sync.Mutex
	failures int
	last     error
	answered time.Time
	open     bool
	// While the breaker is open: whether a probe is under way, and else when the next may be.
	probing bool
	next    time.Time
}

// Take implements [limiter.Store].
func (b *breaker) Take(ctx context.Context, hits []limiter.Hit) (verdicts []limiter.Verdict, err error) {
	err = b.ask(ctx, func() error {
		verdicts, err = b.store.Take(ctx, hits)
		return err
	})
	return verdicts, err
}

// Refund implements [limiter.Store].
func (b *breaker) Refund(ctx context.Context, charges []limiter.Charge) error {
	return b.ask(ctx, func() error { return b.store.Refund(ctx, charges) })
}

// Renew implements [limiter.Store].
func (b *breaker) Renew(ctx context.Context, charges []limiter.Charge) error {
	return b.ask(ctx, func() error { return b.store.Renew(ctx, charges) })
}

// ask calls the store if it may be, and learns from how that ends.
func (b *breaker) ask(ctx context.Context, call func() error) error {
	probe, err := b.admit()
	if err != nil {
		return err
	}
	err = call()
	switch {
	case err == nil:
		b.succeed()
	case ctx.Err() == nil && b.unanswered(err):
		b.fail(err, probe)
	case probe:
		b.release()
	}
	return err
}

// admit says whether the call is a probe, or why it must not ask the store.
func (b *breaker) admit() (probe bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open {
		return false, nil
	}
	if b.probing || time.Now().Before(b.next) {
		return false, fmt.Errorf("%w: %w", limiter.ErrNotAsked, b.last)
	}
	b.probing = true
	return true, nil
}

func (b *breaker) succeed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failures, b.answered = 0, time.Now()
	b.open, b.probing, b.next = false, false, time.Time{}
}

func (b *breaker) fail(err error, probe bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.failures++
	b.last = err
	b.open = b.open || b.failures >= maxFailures && now.Sub(b.answered) >= maxSilence
	if probe {
		b.probing, b.next = false, now.Add(probeInterval)
	}
}

// release makes room for another probe, after one that has shown nothing.
func (b *breaker) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing = false
}

// SPDX-License-Identifier: Apache-2.0

// Package guard keeps a store that fails from harming those who ask it.
package guard

import (
	"context"
	"fmt"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

// maxCalls bounds the calls under way, those that were given up among them. It is far more than a store
// that answers ever has, and few enough goroutines to wait in.
const maxCalls = 1024

// Deadline gives a store that answers within budget, with an error that wraps [context.DeadlineExceeded] if
// the inner store has not answered by then. It doesn't trust the inner store to heed its context: a call
// is given up, and goes on in the background until it returns, so the hits must not be changed after
// Take. While 1,024 calls are under way, all others fail at once.
func Deadline(store limiter.Store, budget time.Duration) limiter.Store {
	return &deadline{store: store, budget: budget, calls: make(chan struct{}, maxCalls)}
}

type deadline struct {
	store  limiter.Store
	budget time.Duration
	calls  chan struct{}
}

type answer struct {
	verdicts []limiter.Verdict
	err      error
}

// Take implements [limiter.Store].
func (d *deadline) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	select {
	case d.calls <- struct{}{}:
	default:
		return nil, fmt.Errorf("waiting for the store: %d calls are unanswered: %w", maxCalls, context.DeadlineExceeded)
	}
	ctx, cancel := context.WithTimeout(ctx, d.budget)
	defer cancel()
	answers := make(chan answer, 1)
	go func() {
		defer func() { <-d.calls }()
		verdicts, err := d.store.Take(ctx, hits)
		answers <- answer{verdicts, err}
	}()
	select {
	case a := <-answers:
		return a.verdicts, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the store: %w", ctx.Err())
	}
}

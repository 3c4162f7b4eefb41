// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/weir-dev/weir/internal/configstore"
)

// leadership is this leader's claim on the config store. It is safe for concurrent use.
type leadership struct {
	store configstore.Publisher
	// lost gets an error once a later leader has claimed the store.
	lost chan error

	mu    sync.Mutex
	epoch int64
}

func newLeadership(store configstore.Publisher) *leadership {
	return &leadership{store: store, lost: make(chan error, 1)}
}

// claimed gives the epoch of this leader. It claims the store the first time.
func (l *leadership) claimed(ctx context.Context) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.epoch != 0 {
		return l.epoch, nil
	}
	epoch, err := l.store.Claim(ctx)
	if err != nil {
		return 0, fmt.Errorf("claiming the config store: %w", err)
	}
	l.epoch = epoch
	return epoch, nil
}

// note looks at what a publication came to.
func (l *leadership) note(err error) {
	if !errors.Is(err, configstore.ErrFenced) {
		return
	}
	select {
	case l.lost <- err:
	default: // It is known already.
	}
}

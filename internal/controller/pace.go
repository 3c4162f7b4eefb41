// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// pace spaces what is done to an object. It is safe for concurrent use.
type pace struct {
	interval time.Duration
	now      func() time.Time

	mu   sync.Mutex
	last map[types.UID]time.Time
}

func newPace(interval time.Duration, now func() time.Time) *pace {
	return &pace{interval: interval, now: now, last: map[types.UID]time.Time{}}
}

// wait gives how long to wait until it may be done to this object again.
func (p *pace) wait(uid types.UID) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, ok := p.last[uid]
	if !ok {
		return 0
	}
	return max(0, p.interval-p.now().Sub(last))
}

// note says that it has been done to this object. What is older than the interval is forgotten.
func (p *pace) note(uid types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for other, last := range p.last {
		if now.Sub(last) >= p.interval {
			delete(p.last, other)
		}
	}
	p.last[uid] = now
}

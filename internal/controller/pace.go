// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// pace spaces what is done to an object. It is safe for concurrent use.
type pace struct {
	longest time.Duration
	now     func() time.Time

	mu   sync.Mutex
	last map[types.UID]time.Time
}

// newPace gives a pace that remembers for as long as the longest interval that will be asked for.
func newPace(longest time.Duration, now func() time.Time) *pace {
	return &pace{longest: longest, now: now, last: map[types.UID]time.Time{}}
}

// wait gives how long to wait until the interval has passed since it was last done to this object.
func (p *pace) wait(uid types.UID, interval time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	last, ok := p.last[uid]
	if !ok {
		return 0
	}
	return max(0, interval-p.now().Sub(last))
}

// note says that it has been done to this object. What is older than the longest interval is forgotten.
func (p *pace) note(uid types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for other, last := range p.last {
		if now.Sub(last) >= p.longest {
			delete(p.last, other)
		}
	}
	p.last[uid] = now
}

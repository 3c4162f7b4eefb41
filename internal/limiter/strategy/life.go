// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

// Life gives for how long a store may keep a counter of a valid limit, from when it was last asked to take from it: as
// long as what was taken can count, and some more, as Redis is told seldom when a key expires. Of 100 a minute in a fixed
// window it is 79 s. No store keeps anything for an algorithm that isn't known.
func Life(l *limiter.Limit) time.Duration {
	s := of(l.Algorithm)
	if s == nil {
		return 0
	}
	counts := s.lives(l)
	return counts + min(counts/4, time.Minute) + margin
}

// margin is for a state that lives longer than it says anything, for a clock that was set back a little, and for
// Redis, which is told whole seconds, rounded up twice.
const margin = (slack+grace)*time.Microsecond + 2*time.Second

func livesWindow(l *limiter.Limit) time.Duration { return l.Window }

// gained gives how long it takes to gain so much, at most what there can be a time of.
func gained(l *limiter.Limit, units int64) time.Duration {
	us := float64(units) / float64(l.Requests) * float64(l.Window.Microseconds())
	return wait(min(us, longest))
}

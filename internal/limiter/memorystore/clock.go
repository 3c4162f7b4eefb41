// SPDX-License-Identifier: Apache-2.0

package memorystore

import (
	"sync/atomic"
	"time"
)

// clock tells the same as time.Now in half of the time, by reading the monotonic clock alone. The two differ by the same
// until somebody sets the clock, which it sees as soon as it looks, once in lookEvery.
type clock struct {
	seen atomic.Pointer[sight]
}

// sight is a time that was read from both clocks.
type sight struct {
	at time.Time
	// unix is at in nanoseconds since the Unix epoch, by the wall clock.
	unix int64
}

const lookEvery = 100 * time.Millisecond

func newClock() *clock {
	c := &clock{}
	c.look()
	return c
}

// now gives microseconds since the Unix epoch. It is safe for concurrent use.
func (c *clock) now() int64 {
	s := c.seen.Load()
	passed := time.Since(s.at)
	if passed >= lookEvery {
		return c.look().unix / 1000
	}
	return (s.unix + int64(passed)) / 1000
}

func (c *clock) look() *sight {
	now := time.Now()
	s := &sight{now, now.UnixNano()}
	c.seen.Store(s)
	return s
}

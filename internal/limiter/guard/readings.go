// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"hash/maphash"
	"sync"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

// maxReadings take some 1 MB.
const maxReadings = 1 << 14

// readings are what the shared store last said that is left of limits. They are found by the hash of their key; where
// two meet, the newer one stays: the other's share begins with a fresh budget.
type readings struct {
	seed  maphash.Seed
	slots []reading
}

// reading is what was left, and when.
type reading struct {
	mu   sync.Mutex
	key  string
	left int64
	// ends is how long that was to last, by the verdict.
	ends time.Duration
	at   time.Time
}

func newReadings() *readings {
	return &readings{seed: maphash.MakeSeed(), slots: make([]reading, maxReadings)}
}

func (r *readings) slot(key string) *reading {
	return &r.slots[maphash.String(r.seed, key)%maxReadings]
}

// note keeps what a verdict says.
func (r *readings) note(key string, v *limiter.Verdict, now time.Time) {
	s := r.slot(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.key, s.left, s.ends, s.at = key, v.Remaining, v.ResetAfter, now
}

// take gives what is left of a hit's limit by now, at least, and forgets it. It is not known where the store has said
// nothing since the last time, or so long ago that all may be left again.
func (r *readings) take(h *limiter.Hit, now time.Time) (left int64, known bool) {
	s := r.slot(h.Key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.key != h.Key {
		return 0, false
	}
	s.key = ""
	age := now.Sub(s.at)
	switch h.Limit.Algorithm {
	case limiter.FixedWindow, limiter.CalendarWindow:
		return s.left, age < s.ends
	case limiter.TokenBucket, limiter.LeakyBucketMeter, limiter.LeakyBucketQueue:
		gained := float64(h.Limit.Requests) * float64(age) / float64(h.Limit.Window)
		return s.left + int64(min(gained, float64(h.Limit.Capacity()))), true
	default:
		return s.left, age < h.Limit.Window
	}
}

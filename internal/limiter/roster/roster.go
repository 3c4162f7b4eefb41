// SPDX-License-Identifier: Apache-2.0

// Package roster bounds how many keys have counters of their own.
package roster

import (
	"context"
	"hash/maphash"
	"math"
	"sync"
	"time"

	"github.com/go-logr/logr"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

const (
	// shardCount is over how many locks keys are spread.
	shardCount = 64
	// sweepInterval is how often it is looked for keys to forget, so that they are known for up to so much longer.
	sweepInterval = time.Second
)

// Recorder is told of each hit that counts on a shared counter. Overflow is called on the way of requests: it has to be
// quick and safe for concurrent use.
type Recorder interface {
	Overflow(id limiter.LimitID)
}

// Roster is a [limiter.Roster]: it knows the keys that have come, each for as long as a store may keep a counter that
// was charged when the key came last, which is [strategy.Life]. So a key that this replica has charged keeps its
// counter for as long as that says anything, however many others come; and while as many keys are known as may be, none
// is added.
//
// Keys are known by a hash of 64 bits that nobody outside can foresee. One that has the hash of another counts on its own
// counter all the same, and isn't counted as a key: of a million keys that come to 100,000 that are known, one does so
// with odds of 1 to 10^8.
//
// A key takes some 25 bytes. What was taken is kept for the next keys. [Roster.Run] has to run, or no key is ever
// forgotten. A Roster is safe for concurrent use.
type Roster struct {
	start    time.Time
	seed     maphash.Seed
	shards   [shardCount]shard
	limits   limits
	recorder Recorder
	log      logr.Logger
}

var _ limiter.Roster = (*Roster)(nil)

// shard holds a part of the keys.
type shard struct {
	mu   sync.Mutex
	keys map[uint64]key // by hash
}

// key is what is known of one.
type key struct {
	// until is the second since the start in which it may be forgotten.
	until uint32
	// limit is its index among the limits.
	limit uint32
}

// New gives a roster of at most so many keys for each policy, that tells recorder of the hits of all others, and log when
// that begins and ends for a limit.
func New(most int, recorder Recorder, log logr.Logger) *Roster {
	r := &Roster{start: time.Now(), seed: maphash.MakeSeed(), limits: newLimits(most), recorder: recorder, log: log}
	for i := range r.shards {
		r.shards[i].keys = map[uint64]key{}
	}
	return r
}

// Keep tells the roster of all limits that have keys. One half of the keys that a policy may have is shared out evenly
// among its limits, so that a flood of one leaves room under the others, and the other half is for whichever needs it. Keys
// of limits that are gone stay known, as their counters stay, for limits that come back.
func (r *Roster) Keep(keyed []limiter.LimitID) { r.limits.divide(keyed) }

// Enlist implements [limiter.Roster].
func (r *Roster) Enlist(h *limiter.Hit) bool {
	return r.enlist(h, time.Since(r.start))
}

func (r *Roster) enlist(h *limiter.Hit, now time.Duration) bool {
	hash := maphash.String(r.seed, h.Key)
	until := second(now + strategy.Life(&h.Limit))
	if r.shards[hash%shardCount].enlist(hash, until, h.ID, &r.limits) {
		return true
	}
	r.recorder.Overflow(h.ID)
	return false
}

func (s *shard) enlist(hash uint64, until uint32, id limiter.LimitID, l *limits) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, known := s.keys[hash]
	switch {
	case known && k.until >= until:
		return true
	case !known:
		number, room := l.take(id)
		if !room {
			return false
		}
		k.limit = number
	}
	k.until = until
	s.keys[hash] = k
	return true
}

// second gives the first whole second that isn't before a time.
func second(at time.Duration) uint32 {
	return uint32(min((at+time.Second-1)/time.Second, math.MaxUint32))
}

// Run forgets keys, and tells of floods, until ctx is done.
func (r *Roster) Run(ctx context.Context) {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r.sweep(time.Since(r.start))
			r.tell()
		}
	}
}

// sweep forgets the keys whose time is over. It keeps one shard at a time from requests.
func (r *Roster) sweep(now time.Duration) {
	for i := range r.shards {
		r.shards[i].sweep(uint32(now/time.Second), &r.limits)
	}
}

func (s *shard) sweep(now uint32, l *limits) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for hash, k := range s.keys {
		if k.until < now {
			delete(s.keys, hash)
			l.giveBack(k.limit)
		}
	}
}

// tell logs which floods have begun or ended.
func (r *Roster) tell() {
	for _, f := range r.limits.news() {
		log := r.log.WithValues("namespace", f.id.Namespace, "policy", f.id.Policy, "limit", f.id.Limit)
		if f.on {
			log.Info("new keys share a counter", "keys", f.keys)
		} else {
			log.Info("new keys have counters of their own again", "keys", f.keys)
		}
	}
}

// Count is how many keys of a limit have counters of their own.
type Count struct {
	ID   limiter.LimitID
	Keys int
}

// Counts gives the number of keys of each limit that [Roster.Keep] was last told of.
func (r *Roster) Counts() []Count { return r.limits.counts() }

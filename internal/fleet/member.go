// SPDX-License-Identifier: Apache-2.0

// Package fleet divides limits among the replicas that share them, for the time when they can't ask the store.
package fleet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/limiter"
)

const (
	// beatInterval is how often a replica tells the others of itself.
	beatInterval = time.Second
	// silence is how long a replica may be silent and still has its shares.
	silence = 10 * time.Second
	// callTimeout bounds all beats of one round.
	callTimeout = time.Second
	// recent is the weight of the latest second in a demand: what was asked for five seconds ago counts a third.
	recent = 0.2
)

// Pool is what one limit admits on one target: what its replicas share.
type Pool struct {
	ID     limiter.LimitID
	Target string
}

// PoolOf gives the pool that a hit takes from.
func PoolOf(h *limiter.Hit) Pool { return Pool{ID: h.ID, Target: h.Target} }

// Member is one replica among those that share pools. It knows how many they are, and which part of each pool is its
// own: half of it by its part of the demand, and half of it in equal parts. Both are as of the last time that the
// store could say.
//
// The parts of all replicas never add up to more than the whole, among those that the store knows: a part is granted
// out of what no other replica may still hold. A replica to which nothing was granted yet takes an equal part. If it
// is one that the others don't know, they add up to as much more as there are more replicas than known.
//
// A Member is safe for concurrent use.
type Member struct {
	client   redis.UniversalClient
	instance string
	name     string
	log      logr.Logger
	// term is how long a replica that is silent still has its shares, and learning how long a ledger is new.
	term, learning time.Duration
	// pools is replaced, never changed, so that those who ask need no lock.
	pools atomic.Pointer[map[Pool]*standing]
	// mu guards replacing pools.
	mu sync.Mutex
	// The following belong to Run. beats counts them, and failing says whether the last one failed.
	beats   int64
	failing bool
}

// standing is how a replica stands in a pool.
type standing struct {
	// asked is the cost of what was asked for since the last beat.
	asked atomic.Int64
	// grant is in millionths of the pool, and replicas are those that share it, this one included. Both are 0 until
	// the store has said.
	grant, replicas atomic.Int64
	// demand is cost per second. It belongs to Run.
	demand float64
}

// New gives a member that shares no pools yet, in the installation called instance. The name tells it from other
// replicas, and from its own earlier runs.
func New(client redis.UniversalClient, instance, name string, log logr.Logger) *Member {
	m := &Member{client: client, instance: instance, name: name, log: log, term: silence, learning: silence}
	m.pools.Store(&map[Pool]*standing{})
	return m
}

// Keep makes these pools the ones that the member shares. What is known of those that it shared before stays.
func (m *Member) Keep(pools []Pool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := *m.pools.Load()
	kept := make(map[Pool]*standing, len(pools))
	for _, p := range pools {
		kept[p] = known[p]
		if kept[p] == nil {
			kept[p] = new(standing)
		}
	}
	m.pools.Store(&kept)
}

// Note counts what a hit asks for as demand for its pool, whether it is admitted or not.
func (m *Member) Note(h *limiter.Hit) {
	if s := m.of(h); s != nil {
		s.asked.Add(h.Cost)
	}
}

// Share gives which part of the hit's pool is this replica's: above 0, and 1 where no other replica is known of.
func (m *Member) Share(h *limiter.Hit) float64 {
	s := m.of(h)
	if s == nil {
		return 1
	}
	if granted := s.grant.Load(); granted > 0 {
		return float64(granted) / whole
	}
	return 1 / float64(max(1, s.replicas.Load()))
}

// Replicas gives how many replicas share the hit's pool as far as is known, this one included.
func (m *Member) Replicas(h *limiter.Hit) int {
	s := m.of(h)
	if s == nil {
		return 1
	}
	return int(max(1, s.replicas.Load()))
}

func (m *Member) of(h *limiter.Hit) *standing { return (*m.pools.Load())[PoolOf(h)] }

// Run tells the store of this replica at once, and then each second until ctx is done, whatever the store does. Then
// it takes its leave, so that the others have its shares, and returns nil.
func (m *Member) Run(ctx context.Context) error {
	last := time.Now()
	for {
		now := time.Now()
		if err := m.round(ctx, now.Sub(last), m.term); ctx.Err() == nil {
			m.tell(err)
		}
		last = now
		select {
		case <-ctx.Done():
			_ = m.round(context.WithoutCancel(ctx), 0, 0) // If that fails it is forgotten, some seconds later.
			return nil
		case <-time.After(jitter(beatInterval)):
		}
	}
}

// tell logs when beats begin or cease to fail.
func (m *Member) tell(err error) {
	if m.failing == (err != nil) {
		return
	}
	m.failing = err != nil
	if m.failing {
		m.log.Error(err, "the store doesn't tell of other replicas")
		return
	}
	m.log.Info("the store tells of other replicas again")
}

// round tells the store of all pools. The first that fails ends it: the others would as well.
func (m *Member) round(ctx context.Context, passed, life time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for p, s := range *m.pools.Load() {
		s.follow(passed)
		if err := m.beat(ctx, p, s, life); err != nil {
			return fmt.Errorf("sharing limit %q of %s/%s: %w", p.ID.Limit, p.ID.Namespace, p.ID.Policy, err)
		}
	}
	return nil
}

// follow brings the demand up to date.
func (s *standing) follow(passed time.Duration) {
	if passed <= 0 {
		return
	}
	rate := float64(s.asked.Swap(0)) / passed.Seconds()
	s.demand += recent * (rate - s.demand)
}

// jitter is d, give or take a tenth: replicas don't beat in step.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5) //nolint:gosec // Nobody gains by guessing it.
}

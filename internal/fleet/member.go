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
	// readInterval is how often a replica reads how many pods there are, and readTimeout bounds that.
	readInterval = 10 * time.Second
	readTimeout  = 2 * time.Second
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
// How many replicas there are is the larger of how many have told of themselves and how many pods are counted. The
// parts of as many never add up to more than the whole: a part is granted out of what no other replica may still hold,
// and leaves room for those that are counted and have not told of themselves. A replica to which nothing was granted
// yet takes an equal part. If there are more replicas than known, they add up to as much more.
//
// A Member is safe for concurrent use.
type Member struct {
	client   redis.UniversalClient
	instance string
	name     string
	o        Options
	// term is how long a replica that is silent still has its shares, and learning how long a ledger is new.
	term, learning time.Duration
	// pools is replaced, never changed, so that those who ask need no lock.
	pools atomic.Pointer[map[Pool]*standing]
	// changed says that there are pools whose pods were not asked for yet.
	changed chan struct{}
	// mu guards replacing pools.
	mu sync.Mutex
	// recalled is how many replicas an earlier run has known. It is never changed.
	recalled record
	// The following belong to Run. beats counts them, failing says whether the last one failed, and saved is what the
	// file has.
	beats   int64
	failing bool
	saved   record
}

// Options are what a member can do without.
type Options struct {
	// Census tells how many pods share each pool. Without one those count that have told of themselves.
	Census *Census
	// File keeps how many replicas there were over restarts, so that one without the store knows of the others. Empty
	// is none.
	File string
	Log  logr.Logger
}

// standing is how a replica stands in a pool.
type standing struct {
	// asked is the cost of what was asked for since the last beat.
	asked atomic.Int64
	// grant is in millionths of the pool, and replicas are those that have told that they share it, this one included.
	// Both are 0 until the store has said; then replicas is what an earlier run has known. pods are those counted.
	grant, replicas, pods atomic.Int64
	// demand is cost per second. It belongs to Run.
	demand float64
}

// among gives how many replicas share the pool, as far as is known: 1 at least.
func (s *standing) among() int64 { return max(1, s.replicas.Load(), s.pods.Load()) }

// New gives a member that shares no pools yet, in the installation called instance. The name tells it from other
// replicas, and from its own earlier runs.
func New(client redis.UniversalClient, instance, name string, o Options) *Member {
	m := &Member{client: client, instance: instance, name: name, o: o, term: silence, learning: silence, changed: make(chan struct{}, 1)}
	m.pools.Store(&map[Pool]*standing{})
	m.recalled = m.recall()
	m.saved = m.recalled
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
			kept[p].replicas.Store(m.recalled[groupOf(p).String()])
		}
	}
	m.pools.Store(&kept)
	select {
	case m.changed <- struct{}{}:
	default:
	}
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
	all := float64(s.among())
	if granted := s.grant.Load(); granted > 0 {
		return float64(granted) / whole * float64(max(1, s.replicas.Load())) / all
	}
	return 1 / all
}

// Replicas gives how many replicas share the hit's pool as far as is known, this one included.
func (m *Member) Replicas(h *limiter.Hit) int {
	s := m.of(h)
	if s == nil {
		return 1
	}
	return int(s.among())
}

func (m *Member) of(h *limiter.Hit) *standing { return (*m.pools.Load())[PoolOf(h)] }

// Run tells the store of this replica at once, and then each second until ctx is done, whatever the store does. Then
// it takes its leave, so that the others have its shares, and returns nil.
func (m *Member) Run(ctx context.Context) error {
	var reading sync.WaitGroup
	defer reading.Wait()
	if m.o.Census != nil {
		reading.Go(func() { m.follow(ctx) })
	}
	last := time.Now()
	for {
		now := time.Now()
		if err := m.round(ctx, now.Sub(last), m.term); ctx.Err() == nil {
			m.tell(err)
		}
		m.remember()
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
		m.o.Log.Error(err, "the store doesn't tell of other replicas")
		return
	}
	m.o.Log.Info("the store tells of other replicas again")
}

// follow reads how many pods share the pools, at once for those that are new, until ctx is done.
func (m *Member) follow(ctx context.Context) {
	for {
		m.count(ctx)
		select {
		case <-ctx.Done():
			return
		case <-m.changed:
		case <-time.After(jitter(readInterval)):
		}
	}
}

// count reads how many pods share the pools. Where that isn't to be learned, what was known stays: whoever follows the
// snapshots tells of a config store that is away.
func (m *Member) count(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	pods := map[Group]int{}
	for p, s := range *m.pools.Load() {
		g := groupOf(p)
		if _, read := pods[g]; !read {
			n, err := m.o.Census.Read(ctx, g)
			if err != nil {
				return
			}
			pods[g] = n
		}
		if pods[g] > 0 {
			s.pods.Store(int64(pods[g]))
		}
	}
}

// round tells the store of all pools. The first that fails ends it: the others would as well.
func (m *Member) round(ctx context.Context, passed, life time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for p, s := range *m.pools.Load() {
		s.age(passed)
		if err := m.beat(ctx, p, s, life); err != nil {
			return fmt.Errorf("sharing limit %q of %s/%s: %w", p.ID.Limit, p.ID.Namespace, p.ID.Policy, err)
		}
	}
	return nil
}

// age brings the demand up to date.
func (s *standing) age(passed time.Duration) {
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

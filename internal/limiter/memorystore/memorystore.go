// SPDX-License-Identifier: Apache-2.0

// Package memorystore counts hits in process.
package memorystore

import (
	"cmp"
	"context"
	"hash/maphash"
	"slices"
	"sync"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// defaultMaxCounters take some 16 MB.
const defaultMaxCounters = 100_000

// Options are what a [Store] may have.
type Options struct {
	// Now is the clock, which may be set back. The default is time.Now.
	Now func() time.Time
	// MaxCounters bounds the memory of each limit, 100,000 by default. While a limit has so many counters,
	// the keys that have none share one, and go on with it until it is as new. So a flood of keys refuses
	// newcomers of that limit sooner than it should: it never makes room for more requests, and neither
	// those who have a counter nor other limits notice.
	MaxCounters int
}

// Store is a [limiter.Store] for a single process. What it counted is gone with the process.
type Store struct {
	now   func() time.Time
	max   int
	seeds [2]maphash.Seed

	mu        sync.Mutex
	evaluator strategy.Evaluator
	counters  map[name]*counter
	// swept holds the counters in no order, for sweep to walk.
	swept []*counter
	hand  int
	// limits are those that were ever hit: as many as there are in policies.
	limits map[limiter.LimitID]*limit
	// found is the buffer for the counters of a request.
	found []*strategy.Counter
}

type counter struct {
	strategy.Counter
	name  name
	limit *limit
	// room is where most states fit, so that they need no memory of their own.
	room [16]byte
}

// name stands for a key in less room: hashes of 128 bits that nobody outside can foresee. That two keys have the
// same is less likely than that the machine miscounts.
type name [2]uint64

// limit is what the counters of one limit have in common.
type limit struct {
	// counters is how many there are, without those that are shared.
	counters int
	// shared are the counters of the keys that have none of their own. A request can hit one limit more than
	// once, for different targets: its second hit has the second of them.
	shared []*strategy.Counter
}

var _ limiter.Store = (*Store)(nil)

// New gives a store that holds no counts yet.
func New(o Options) *Store {
	s := &Store{
		now:      o.Now,
		max:      cmp.Or(o.MaxCounters, defaultMaxCounters),
		seeds:    [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
		counters: map[name]*counter{},
		limits:   map[limiter.LimitID]*limit{},
	}
	if s.now == nil {
		s.now = time.Now
	}
	return s
}

// Take implements [limiter.Store].
func (s *Store) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := strategy.Check(hits); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now().UnixMicro()
	s.sweep(now, 2*len(hits))
	s.found = s.found[:0]
	for i := range hits {
		s.found = append(s.found, s.find(now, hits, i))
	}
	verdicts := make([]limiter.Verdict, len(hits))
	s.evaluator.Decide(now, hits, s.found, verdicts)
	return verdicts, nil
}

// Refund implements [limiter.Store].
func (s *Store) Refund(ctx context.Context, charges []limiter.Charge) error {
	return s.amend(ctx, charges, false)
}

// Renew implements [limiter.Store].
func (s *Store) Renew(ctx context.Context, charges []limiter.Charge) error {
	return s.amend(ctx, strategy.Renewable(charges), true)
}

func (s *Store) amend(ctx context.Context, charges []limiter.Charge, renew bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now().UnixMicro()
	for i := range charges {
		h := &charges[i].Hit
		if c, ok := s.counters[s.name(h.Key)]; ok {
			s.evaluator.Amend(now, h, &c.Counter, charges[i].Receipt, renew)
		}
	}
	return nil
}

// find gives the counter of hits[i], a new one if need be.
func (s *Store) find(now int64, hits []limiter.Hit, i int) *strategy.Counter {
	n := s.name(hits[i].Key)
	if c, ok := s.counters[n]; ok {
		return &c.Counter
	}
	l := s.limits[hits[i].ID]
	if l == nil {
		l = &limit{}
		s.limits[hits[i].ID] = l
	}
	if l.counters >= s.max || l.sharing(now) {
		return l.share(hits, i)
	}
	c := &counter{name: n, limit: l}
	c.State = c.room[:0]
	l.counters++
	s.counters[n] = c
	s.swept = append(s.swept, c)
	return &c.Counter
}

func (s *Store) name(key string) name {
	return name{maphash.String(s.seeds[0], key), maphash.String(s.seeds[1], key)}
}

// sharing says whether keys without a counter have taken something that still counts. With a counter of its
// own such a key could take as much again.
func (l *limit) sharing(now int64) bool {
	return slices.ContainsFunc(l.shared, func(c *strategy.Counter) bool { return c.Expires > now })
}

// share gives the counter that hits[i] has with others.
func (l *limit) share(hits []limiter.Hit, i int) *strategy.Counter {
	nth := 0
	for _, h := range hits[:i] {
		if h.ID == hits[i].ID {
			nth++
		}
	}
	for len(l.shared) <= nth {
		l.shared = append(l.shared, &strategy.Counter{})
	}
	return l.shared[nth]
}

// sweep forgets those of the next few counters that have expired. Two looked at for each hit are more than
// a hit can add, so the expired never pile up, and no request pays for many.
func (s *Store) sweep(now int64, few int) {
	for range min(few, len(s.swept)) {
		if s.hand >= len(s.swept) {
			s.hand = 0
		}
		if s.swept[s.hand].Expires > now {
			s.hand++
			continue
		}
		s.forget(s.hand)
	}
}

func (s *Store) forget(i int) {
	last := len(s.swept) - 1
	s.swept[i].limit.counters--
	delete(s.counters, s.swept[i].name)
	s.swept[i], s.swept[last] = s.swept[last], nil
	s.swept = s.swept[:last]
}

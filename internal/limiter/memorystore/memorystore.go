// SPDX-License-Identifier: Apache-2.0

// Package memorystore counts hits in process.
package memorystore

import (
	"cmp"
	"context"
	"sync"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// defaultMaxCounters takes some 20 MB.
const defaultMaxCounters = 100_000

// Options are what a [Store] may have.
type Options struct {
	// Now is the clock, which may be set back. The default is time.Now.
	Now func() time.Time
	// MaxCounters bounds the memory, 100,000 by default. While so many counters are in use, the keys that
	// have none share one per limit. So a flood of keys refuses newcomers sooner than it should: it
	// never makes room for more requests, and those who have a counter don't notice.
	MaxCounters int
}

// Store is a [limiter.Store] for a single process. What it counted is gone with the process.
type Store struct {
	now func() time.Time
	max int

	mu        sync.Mutex
	evaluator strategy.Evaluator
	counters  map[string]*counter
	// swept holds the counters in no order, for sweep to walk.
	swept  []*counter
	hand   int
	shared map[share]*strategy.Counter
	// found is the buffer for the counters of a request.
	found []*strategy.Counter
}

type counter struct {
	strategy.Counter
	key string
}

// share tells the shared counters apart. A request can hit one limit more than once, for different
// targets: nth keeps it from hitting one counter twice.
type share struct {
	id  limiter.LimitID
	nth int
}

var _ limiter.Store = (*Store)(nil)

// New gives a store that holds no counts yet.
func New(o Options) *Store {
	s := &Store{
		now:      o.Now,
		max:      cmp.Or(o.MaxCounters, defaultMaxCounters),
		counters: map[string]*counter{},
		shared:   map[share]*strategy.Counter{},
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
		s.found = append(s.found, s.find(hits, i))
	}
	return s.evaluator.Decide(now, hits, s.found), nil
}

// find gives the counter of hits[i], a new one if need be.
func (s *Store) find(hits []limiter.Hit, i int) *strategy.Counter {
	key := hits[i].Key
	if c, ok := s.counters[key]; ok {
		return &c.Counter
	}
	if len(s.counters) >= s.max {
		return s.findShared(hits, i)
	}
	c := &counter{key: key}
	s.counters[key] = c
	s.swept = append(s.swept, c)
	return &c.Counter
}

// findShared gives the counter that the keys of a limit share while there is no room.
func (s *Store) findShared(hits []limiter.Hit, i int) *strategy.Counter {
	id := share{id: hits[i].ID}
	for _, h := range hits[:i] {
		if h.ID == id.id {
			id.nth++
		}
	}
	c, ok := s.shared[id]
	if !ok {
		c = &strategy.Counter{}
		s.shared[id] = c
	}
	return c
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
	delete(s.counters, s.swept[i].key)
	s.swept[i], s.swept[last] = s.swept[last], nil
	s.swept = s.swept[:last]
}

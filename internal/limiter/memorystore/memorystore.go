// SPDX-License-Identifier: Apache-2.0

// Package memorystore counts hits in process.
package memorystore

import (
	"cmp"
	"context"
	"hash/maphash"
	"math/bits"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// defaultMaxCounters take some 8 MB where their states are short, and 80 MB at most.
const defaultMaxCounters = 100_000

// Options are what a [Store] may have.
type Options struct {
	// Now is the clock, which may be set back. The default tells the same as time.Now, but for up to 100 ms after
	// somebody set the machine's clock.
	Now func() time.Time
	// MaxCounters bounds the memory of each limit, 100,000 by default, to 800 bytes for each of them; where states are
	// short, it takes a tenth of that. A counter whose state can have more than 320 bytes counts as several, one for
	// each 320: that of a log of 1,000 requests as 26, and that of 100 permits as 6. If an edit lets states be longer,
	// those who have a counter keep it, and can so take more than the bound until they are idle.
	//
	// While a limit has so many counters,
	// the keys that have none share one, and go on with it until it is as new. So a flood of keys refuses
	// newcomers of that limit sooner than it should: it never makes room for more requests, and neither
	// those who have a counter nor other limits notice. What was taken from a counter that is shared can be neither
	// refunded nor renewed.
	MaxCounters int
}

// Store is a [limiter.Store] for a single process. What it counted is gone with the process.
type Store struct {
	now    func() int64
	seeds  [2]maphash.Seed
	shards []shard
	limits limits
}

var _ limiter.Store = (*Store)(nil)

// New gives a store that holds no counts yet.
func New(o Options) *Store {
	most := cmp.Or(o.MaxCounters, defaultMaxCounters)
	s := &Store{
		now:    newClock().now,
		seeds:  [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
		shards: make([]shard, shardsFor(most)),
		limits: limits{max: most, numbers: map[limiter.LimitID]uint32{}},
	}
	if o.Now != nil {
		s.now = func() int64 { return o.Now().UnixMicro() }
	}
	for i := range s.shards {
		s.shards[i].table = newTable()
		s.shards[i].desk.limits = &s.limits
	}
	return s
}

// maxShards is what the set that lock makes has bits for.
const maxShards = 64

// shardsFor gives over how many shards to spread counters: a power of two. A newcomer finds room where its own
// shard has a counter that has expired, and a limit that has all its counters has at least 16 of them in each.
func shardsFor(counters int) int {
	shards := 1
	for shards < maxShards && 32*shards <= counters {
		shards *= 2
	}
	return shards
}

// Take implements [limiter.Store].
func (s *Store) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := strategy.Check(hits); err != nil {
		return nil, err
	}
	if len(hits) == 0 {
		return nil, nil
	}
	// A request of more hits allocates twice.
	var room [16]name
	names := room[:0]
	for i := range hits {
		names = append(names, s.name(hits[i].Key))
	}
	locked := s.lock(names)
	defer s.unlock(locked)
	return s.decide(&s.shards[bits.TrailingZeros64(locked)].desk, hits, names), nil
}

// decide decides a request whose shards are locked.
func (s *Store) decide(d *desk, hits []limiter.Hit, names []name) []limiter.Verdict {
	defer d.unlockLimits()
	d.begin(s.now(), len(hits))
	// A sweep moves counters, and so comes before any is seated.
	for _, n := range names {
		d.sweep(s.shard(n))
	}
	for i, n := range names {
		d.seat(&s.shard(n).table, n, hits, i)
	}
	verdicts := make([]limiter.Verdict, len(hits))
	d.evaluator.Decide(d.now, hits, d.counters, verdicts)
	d.end()
	return verdicts
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
	for i := range charges {
		s.amendOne(&charges[i], renew)
	}
	return nil
}

// amendOne amends a charge on a counter of its own. Whether one on a shared counter still counts can't be told.
func (s *Store) amendOne(c *limiter.Charge, renew bool) {
	n := s.name(c.Hit.Key)
	sh := s.shard(n)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	slot := sh.table.find(n)
	if slot == 0 {
		return
	}
	var counter strategy.Counter
	sh.table.load(slot, &counter)
	sh.desk.evaluator.Amend(s.now(), &c.Hit, &counter, c.Receipt, renew)
	sh.table.keep(slot, &counter)
}

func (s *Store) name(key string) name {
	a, b := maphash.String(s.seeds[0], key), maphash.String(s.seeds[1], key)
	return name{uint32(a), uint32(a >> 32), uint32(b)}
}

func (s *Store) shard(n name) *shard { return &s.shards[s.number(n)] }

// number gives the index of a name's shard. Its buckets go by other bits.
func (s *Store) number(n name) uint32 { return n[1] & uint32(len(s.shards)-1) }

// lock locks the shards of all names, in an order that keeps two requests from waiting for each other, and gives the
// set of their numbers.
func (s *Store) lock(names []name) uint64 {
	var set uint64
	for _, n := range names {
		set |= 1 << s.number(n)
	}
	for rest := set; rest != 0; rest &= rest - 1 {
		s.shards[bits.TrailingZeros64(rest)].mu.Lock()
	}
	return set
}

func (s *Store) unlock(set uint64) {
	for ; set != 0; set &= set - 1 {
		s.shards[bits.TrailingZeros64(set)].mu.Unlock()
	}
}

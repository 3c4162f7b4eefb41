// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"context"
	"hash/maphash"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

const (
	// Accounts take some 400 bytes each, and so 7 MB at most.
	accountShards = 64
	maxAccounts   = 256
	// sweepInterval is how often it is looked for what isn't used.
	sweepInterval = 25 * time.Millisecond
	// maxRefunds is how much is given back in one call, so that none keeps the store from its decisions for long.
	maxRefunds = 128
	// leaseTimeout is how long the store may take for what nobody waits for.
	leaseTimeout = time.Second
)

// Leases is a store that takes ahead of time what its callers are about to ask for, where limits say so by their
// Lease, and then decides in process. What it takes is charged at once, and used within a term or given back; the
// terms are those of [strategy.Lease], and with them replicas together admit no more at any time than if each request
// had asked the inner store.
//
// A key that is seldom asked for isn't leased, nor are limits of which a replica would get next to nothing: the inner
// store decides these. So it does where a lease is used up before the next one is there. Where all replicas want more
// than there is, each asks for the same part of its demand, and refuses the rest by itself; they tell each other of
// their demand in a counter beside the leased one.
//
// While the inner store doesn't answer, what is held is used up. What a replica holds that crashes is charged and not
// used: a bucket gains it again, and of a window it is lost.
//
// [Leases.Run] has to run, or nothing is leased. A Leases is safe for concurrent use.
type Leases struct {
	store  limiter.Store
	start  time.Time
	seed   maphash.Seed
	shards [accountShards]accounts
	// due are the accounts that want a lease.
	due chan *account
}

// NewLeases gives a store that takes from the inner one, which remembers refusals and can fail.
func NewLeases(store limiter.Store) *Leases {
	l := &Leases{store: store, start: time.Now(), seed: maphash.MakeSeed(), due: make(chan *account, maxAccounts)}
	for i := range l.shards {
		l.shards[i].all = map[string]*account{}
	}
	return l
}

// now is since the start, and so doesn't follow a clock that is set.
func (l *Leases) now() time.Duration { return time.Since(l.start) }

// LeaseCounts are since the start.
type LeaseCounts struct {
	// Local are the hits that were decided in process, and Stored those of limits with a Lease that weren't.
	Local, Stored int64
	// Taken is what was taken ahead of time. Of that Returned was given back, and Lost could not be.
	Taken, Returned, Lost int64
}

// Counts tells what has become of leases.
func (l *Leases) Counts() LeaseCounts {
	var sum LeaseCounts
	for i := range l.shards {
		c := l.shards[i].counted()
		sum.Local += c.Local
		sum.Stored += c.Stored
		sum.Taken += c.Taken
		sum.Returned += c.Returned
		sum.Lost += c.Lost
	}
	return sum
}

// accounts are those of a part of the keys.
type accounts struct {
	mu  sync.Mutex
	all map[string]*account
	// owed is what accounts held that are not there any more.
	owed   []limiter.Charge
	counts LeaseCounts
	closed bool
}

func (s *accounts) counted() LeaseCounts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts
}

// of gives the account of a hit. It is nil if the hit can't be leased, or there is no room for one more.
func (s *accounts) of(h *limiter.Hit, now time.Duration) *account {
	a := s.all[h.Key]
	if a != nil && a.hit.Limit == h.Limit {
		return a
	}
	terms, ok := strategy.Lease(&h.Limit)
	if !ok || s.closed || a == nil && !s.roomy(now) {
		return nil
	}
	if a != nil { // An edit: what was leased of the old limit goes back.
		s.owed = a.settle(math.MaxInt64, s.owed)
	}
	a = newAccount(h, terms, now)
	s.all[h.Key] = a
	return a
}

// roomy makes room for one more account, if one of the few that it looks at is idle.
func (s *accounts) roomy(now time.Duration) bool {
	const few = 4
	looked := 0
	for key, a := range s.all {
		if len(s.all) < maxAccounts || looked == few {
			break
		}
		if a.idle(now) {
			delete(s.all, key)
		}
		looked++
	}
	return len(s.all) < maxAccounts
}

// Take implements [limiter.Store].
func (l *Leases) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	if !anyLeasable(hits) {
		return l.store.Take(ctx, hits)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(hits) > 1 {
		return l.takeTogether(ctx, hits)
	}
	if v, answer := l.decide(&hits[0]); answer != unknown {
		return []limiter.Verdict{v}, nil
	}
	return l.store.Take(ctx, hits)
}

func anyLeasable(hits []limiter.Hit) bool {
	for i := range hits {
		if leasable(&hits[i]) {
			return true
		}
	}
	return false
}

func leasable(h *limiter.Hit) bool { return h.Limit.Lease > 0 && h.Cost > 0 && !h.UpTo }

// decide has a hit's account decide, and take a lease in time.
func (l *Leases) decide(h *limiter.Hit) (limiter.Verdict, answer) {
	if !leasable(h) {
		return limiter.Verdict{}, unknown
	}
	now, s := l.now(), l.shard(h.Key)
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.of(h, now)
	if a == nil {
		s.counts.Stored++
		return limiter.Verdict{}, unknown
	}
	v, answer := a.take(now, h.Cost)
	if a.wants(now) {
		select {
		case l.due <- a:
			a.asking, a.asked = true, now
		default: // It asks again with the next hit.
		}
	}
	if answer == unknown {
		s.counts.Stored++
	} else {
		s.counts.Local++
	}
	return v, answer
}

func (l *Leases) shard(key string) *accounts {
	return &l.shards[maphash.String(l.seed, key)%accountShards]
}

// Refund implements [limiter.Store].
func (l *Leases) Refund(ctx context.Context, charges []limiter.Charge) error {
	return l.store.Refund(ctx, charges)
}

// Renew implements [limiter.Store].
func (l *Leases) Renew(ctx context.Context, charges []limiter.Charge) error {
	return l.store.Renew(ctx, charges)
}

// Run takes leases and gives back what isn't used, until ctx is done. Then it gives back everything, which takes
// two seconds at most. Leases that are taken at once ride together, as far as the inner store's requests do.
func (l *Leases) Run(ctx context.Context) {
	var calls sync.WaitGroup
	sweep := time.NewTicker(sweepInterval)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			calls.Wait()
			l.close()
			return
		case a := <-l.due:
			calls.Go(func() { l.lease(a) })
		case <-sweep.C:
			if owed := l.sweep(l.now()); len(owed) > 0 {
				calls.Go(func() { l.refund(owed) })
			}
		}
	}
}

// lease takes a lease for an account.
func (l *Leases) lease(a *account) {
	ctx, cancel := context.WithTimeout(context.Background(), leaseTimeout)
	defer cancel()
	if err := l.divide(ctx, a); err != nil {
		l.with(a, func(*accounts) { a.failed(l.now()) })
		return
	}
	h := a.hit
	h.Limit, h.UpTo, h.Shadow = a.terms.Limit, true, false
	l.with(a, func(*accounts) { h.Cost = a.ask(l.now()) })
	if h.Cost == 0 {
		return
	}
	sent := l.now()
	verdicts, err := l.store.Take(ctx, []limiter.Hit{h})
	if err != nil {
		l.with(a, func(*accounts) { a.failed(l.now()) })
		return
	}
	l.with(a, func(s *accounts) {
		a.granted(l.now(), sent, verdicts[0])
		s.counts.Taken += verdicts[0].Taken
		if s.all[h.Key] != a { // An edit came first.
			s.owed = a.settle(math.MaxInt64, s.owed)
		}
	})
}

// divide tells the others of an account's demand, and learns of theirs, where there may not be enough for all.
func (l *Leases) divide(ctx context.Context, a *account) error {
	var census limiter.Hit
	contended := false
	l.with(a, func(*accounts) { census, contended = a.census() })
	if !contended {
		return nil
	}
	verdicts, err := l.store.Take(ctx, []limiter.Hit{census})
	if err == nil {
		l.with(a, func(*accounts) { a.counted(verdicts[0]) })
	}
	return err
}

// with calls do while the account's shard is locked.
func (l *Leases) with(a *account, do func(s *accounts)) {
	s := l.shard(a.hit.Key)
	s.mu.Lock()
	defer s.mu.Unlock()
	do(s)
}

// sweep takes out what is not used any more, and forgets who is idle.
func (l *Leases) sweep(now time.Duration) []limiter.Charge {
	var owed []limiter.Charge
	for i := range l.shards {
		owed = l.shards[i].sweep(now, owed)
	}
	return owed
}

func (s *accounts) sweep(now time.Duration, owed []limiter.Charge) []limiter.Charge {
	s.mu.Lock()
	defer s.mu.Unlock()
	owed = append(owed, s.owed...)
	s.owed = s.owed[:0]
	for key, a := range s.all {
		if owed = a.settle(now, owed); a.idle(now) {
			delete(s.all, key)
		}
	}
	return owed
}

// refund gives back charges, in few calls.
func (l *Leases) refund(owed []limiter.Charge) {
	ctx, cancel := context.WithTimeout(context.Background(), leaseTimeout)
	defer cancel()
	for batch := range slices.Chunk(owed, maxRefunds) {
		err := l.store.Refund(ctx, batch)
		for i := range batch {
			l.shard(batch[i].Hit.Key).returned(batch[i].Hit.Cost, err)
		}
	}
}

func (s *accounts) returned(units int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.counts.Lost += units
	} else {
		s.counts.Returned += units
	}
}

// close gives back all that is held, and has no account take more.
func (l *Leases) close() {
	var owed []limiter.Charge
	for i := range l.shards {
		owed = l.shards[i].close(owed)
	}
	if len(owed) > 0 {
		l.refund(owed)
	}
}

func (s *accounts) close(owed []limiter.Charge) []limiter.Charge {
	s.mu.Lock()
	defer s.mu.Unlock()
	owed = append(owed, s.owed...)
	for _, a := range s.all {
		owed = a.settle(math.MaxInt64, owed)
	}
	s.all, s.owed, s.closed = nil, nil, true
	return owed
}

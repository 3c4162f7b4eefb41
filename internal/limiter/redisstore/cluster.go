// SPDX-License-Identifier: Apache-2.0

package redisstore

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// Cluster is a [limiter.Store] on a Redis Cluster. The counters of one partition, which is what stands in braces
// in their keys, are in one slot: they are decided as by a [Store], in one atomic step.
//
// A request with counters in several partitions takes from one after the other, and when one refuses it gives
// back what it took from those before. So it is never admitted without all its limits, but others may be
// refused for what it held meanwhile. What it took stays taken if a partition doesn't answer, as the request
// may be let through. Shadow hits come last; one whose partition doesn't answer is told allowed, since it must
// not affect the others.
type Cluster struct {
	client  redis.Scripter
	scripts scripts

	mu sync.Mutex
	// partitions have what decides the hits of each, which are in one slot: a batch is one call of one script.
	partitions map[string]*Store
}

var _ limiter.Store = (*Cluster)(nil)

// NewCluster gives a store on a client that sends nothing twice but what was certainly not executed. It is bound
// as [New] says, for each partition.
func NewCluster(client redis.Scripter) *Cluster {
	return &Cluster{client: client, scripts: shipped, partitions: map[string]*Store{}}
}

// Take implements [limiter.Store].
func (c *Cluster) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	if err := check(ctx, hits); err != nil || len(hits) == 0 {
		return nil, err
	}
	verdicts, err := c.take(ctx, hits, tag)
	if err != nil && len(hits) > 1 && underWay(err) {
		// Counters move one by one: each by itself can always be found.
		return c.take(ctx, hits, func(key string) string { return key })
	}
	return verdicts, err
}

func (c *Cluster) take(ctx context.Context, hits []limiter.Hit, group func(key string) string) ([]limiter.Verdict, error) {
	enforced, shadows := split(hits, group)
	if len(enforced)+len(shadows) == 1 {
		return c.partition(hits[0].Key).batcher.ride(ctx, strategy.Request{Hits: hits})
	}
	s := &spread{cluster: c, hits: hits, verdicts: make([]limiter.Verdict, len(hits))}
	for i, p := range enforced {
		admitted, err := s.enforce(ctx, p, i == len(enforced)-1)
		if err != nil {
			return nil, s.fail(ctx, err)
		}
		if !admitted {
			s.refuse(ctx, slices.Delete(enforced, i, i+1))
			return s.verdicts, nil
		}
	}
	for _, p := range shadows {
		s.shadow(ctx, p)
	}
	return s.verdicts, nil
}

// Refund implements [limiter.Store].
func (c *Cluster) Refund(ctx context.Context, charges []limiter.Charge) error {
	return c.amend(ctx, charges, (*Store).Refund)
}

// Renew implements [limiter.Store].
func (c *Cluster) Renew(ctx context.Context, charges []limiter.Charge) error {
	return c.amend(ctx, charges, (*Store).Renew)
}

// amend has each partition amend its charges, all at once.
func (c *Cluster) amend(ctx context.Context, charges []limiter.Charge, amend func(*Store, context.Context, []limiter.Charge) error) error {
	byPartition := map[*Store][]limiter.Charge{}
	for _, ch := range charges {
		p := c.partition(ch.Hit.Key)
		byPartition[p] = append(byPartition[p], ch)
	}
	var g errgroup.Group
	for p, some := range byPartition {
		g.Go(func() error { return amend(p, ctx, some) })
	}
	return g.Wait()
}

// partition gives what decides the hits on a key. There are as many as its namespace has partitions.
func (c *Cluster) partition(key string) *Store {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := tag(key)
	p := c.partitions[name]
	if p == nil {
		p = newStore(c.client, c.scripts)
		c.partitions[name] = p
	}
	return p
}

// part is the hits of a request that are decided together, by their places in it.
type part []int

// split gives the parts of a request in the order of their first hits: those that decide it, and those that are in
// its shadow. Shadow hits ride with the last part that decides where they can.
func split(hits []limiter.Hit, group func(key string) string) (enforced, shadows []part) {
	enforced = gather(hits, group, false)
	shadows = gather(hits, group, true)
	if len(enforced) == 0 {
		return nil, shadows
	}
	last := &enforced[len(enforced)-1]
	for i, p := range shadows {
		if group(hits[p[0]].Key) == group(hits[(*last)[0]].Key) {
			*last = append(*last, p...)
			return enforced, slices.Delete(shadows, i, i+1)
		}
	}
	return enforced, shadows
}

func gather(hits []limiter.Hit, group func(key string) string, shadow bool) []part {
	var parts []part
	index := map[string]int{}
	for i, h := range hits {
		if h.Shadow != shadow {
			continue
		}
		name := group(h.Key)
		if _, ok := index[name]; !ok {
			index[name] = len(parts)
			parts = append(parts, nil)
		}
		parts[index[name]] = append(parts[index[name]], i)
	}
	return parts
}

// tag gives what of a key its slot follows from.
func tag(key string) string {
	_, rest, open := strings.Cut(key, "{")
	name, _, closed := strings.Cut(rest, "}")
	if !open || !closed || name == "" {
		return key
	}
	return name
}

// spread is a request with hits in several partitions.
type spread struct {
	cluster  *Cluster
	hits     []limiter.Hit
	verdicts []limiter.Verdict
	// charges are what was taken and can be given back.
	charges []limiter.Charge
}

// enforce takes a part. What comes before the last one may have to be given back.
func (s *spread) enforce(ctx context.Context, p part, last bool) (admitted bool, err error) {
	hits := s.of(p)
	verdicts, err := s.cluster.partition(hits[0].Key).batcher.ride(ctx, strategy.Request{Hits: hits})
	if err != nil {
		return false, err
	}
	s.place(p, verdicts)
	admitted = !slices.ContainsFunc(p, func(i int) bool { return !s.hits[i].Shadow && !s.verdicts[i].Allowed })
	if admitted && !last {
		s.owe(hits, verdicts)
	}
	return admitted, nil
}

func (s *spread) owe(hits []limiter.Hit, verdicts []limiter.Verdict) {
	for i := range hits {
		if hits[i].Cost > 0 {
			s.charges = append(s.charges, limiter.Charge{Hit: hits[i], Receipt: verdicts[i].Receipt})
		}
	}
}

// shadow takes a part that must not affect the others.
func (s *spread) shadow(ctx context.Context, p part) {
	hits := s.of(p)
	verdicts, err := s.cluster.partition(hits[0].Key).batcher.ride(ctx, strategy.Request{Hits: hits})
	if err != nil {
		verdicts = slices.Repeat([]limiter.Verdict{{Allowed: true}}, len(hits))
	}
	s.place(p, verdicts)
}

// fail gives back what is to be taken again, counter by counter. After all other errors it stays taken.
func (s *spread) fail(ctx context.Context, err error) error {
	if underWay(err) {
		s.giveBack(ctx)
	}
	return err
}

// refuse gives back what was taken, and asks the other parts what they would have said. The request is refused
// whatever becomes of that, and it doesn't take longer than the caller wants to wait.
func (s *spread) refuse(ctx context.Context, others []part) {
	for _, p := range others {
		for _, i := range p {
			s.verdicts[i] = limiter.Verdict{Allowed: !s.hits[i].Shadow}
		}
	}
	s.giveBack(ctx)
	for _, p := range others {
		hits := s.of(p)
		if verdicts, err := s.cluster.partition(hits[0].Key).batcher.ride(ctx, strategy.Request{Hits: hits, Try: true}); err == nil {
			s.place(p, verdicts)
		}
	}
}

// giveBack gives back all charges, also when the caller doesn't wait for it. What can't be given back stays taken
// until it counts no more: it may have been given back all the same, and must not be twice.
func (s *spread) giveBack(ctx context.Context) {
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		_ = s.cluster.Refund(context.WithoutCancel(ctx), s.charges)
	}()
	select {
	case <-returned:
	case <-ctx.Done():
	}
}

func (s *spread) of(p part) []limiter.Hit {
	hits := make([]limiter.Hit, len(p))
	for i, place := range p {
		hits[i] = s.hits[place]
	}
	return hits
}

func (s *spread) place(p part, verdicts []limiter.Verdict) {
	for i, place := range p {
		s.verdicts[place] = verdicts[i]
	}
}

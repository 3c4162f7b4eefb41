// SPDX-License-Identifier: Apache-2.0

package redisstore

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// Cluster is a [limiter.Store] on a Redis Cluster. The counters of one partition, which is what stands in braces
// in their keys, are in one slot: they are decided as by a [Store], in one atomic step. Requests that come at once
// for one shard leave together, in one pipeline with a call for each partition, and each shard has a circuit of its
// own: one that doesn't answer takes no other with it.
//
// A request with counters in several partitions takes from one after the other, and when one refuses it gives
// back what it took from those before. So it is never admitted without all its limits, but others may be
// refused for what it held meanwhile. What it took stays taken if a partition doesn't answer, as the request
// may be let through. Shadow hits come last; one whose partition doesn't answer is told allowed, since it must
// not affect the others.
type Cluster struct {
	client     *redis.ClusterClient
	scripts    scripts
	newCircuit func() Circuit
	// elsewhere is the circuit of the calls that find their way by themselves.
	elsewhere Circuit
	// mapped says that the client knows which shard has which slots. From then on it keeps that up to date by
	// itself; before, the question could take longer than a caller wants to wait.
	mapped atomic.Bool

	mu         sync.Mutex
	partitions map[string]*partition
	shards     map[*redis.Client]*shard
}

var _ limiter.Store = (*Cluster)(nil)

// partition is what of the counters is in one slot.
type partition struct {
	// shard is the one that was asked last. Nil if none was yet.
	shard *shard
	// store asks whatever shard has the slot, and follows it.
	store *Store
}

// NewCluster gives a store on a client that sends nothing twice but what was certainly not executed, like those of
// package redisclient. The client's own timeouts have to end a call that gets no answer. Callers are bound by
// their contexts alone; at most four calls at a time for each shard go on without them.
//
// Each shard gets a circuit. Callers should have a deadline that the circuit knows of: without it a shard that
// hangs fails nobody before the client's timeouts do.
func NewCluster(client *redis.ClusterClient, circuit func() Circuit) *Cluster {
	return &Cluster{
		client:     client,
		scripts:    shipped,
		newCircuit: circuit,
		elsewhere:  circuit(),
		partitions: map[string]*partition{},
		shards:     map[*redis.Client]*shard{},
	}
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
		return c.ride(ctx, strategy.Request{Hits: hits})
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
	return c.amend(ctx, charges, false)
}

// Renew implements [limiter.Store].
func (c *Cluster) Renew(ctx context.Context, charges []limiter.Charge) error {
	return c.amend(ctx, strategy.Renewable(charges), true)
}

// amend has each partition amend its charges, all at once.
func (c *Cluster) amend(ctx context.Context, charges []limiter.Charge, renew bool) error {
	byPartition := map[string][]limiter.Charge{}
	for _, ch := range charges {
		if err := check(ctx, []limiter.Hit{ch.Hit}); err != nil {
			return err
		}
		name := tag(ch.Hit.Key)
		byPartition[name] = append(byPartition[name], ch)
	}
	var g errgroup.Group
	for _, some := range byPartition {
		g.Go(func() error { return c.amendTogether(ctx, some, renew) })
	}
	return g.Wait()
}

// amendTogether amends charges of one partition.
func (c *Cluster) amendTogether(ctx context.Context, charges []limiter.Charge, renew bool) error {
	_, err := c.ride(ctx, amendment(charges, renew))
	if err == nil || len(charges) == 1 || !underWay(err) {
		return err
	}
	for i := range charges {
		// Counters move one by one: each by itself can always be found.
		if _, err := c.ride(ctx, amendment(charges[i:i+1], renew)); err != nil {
			return err
		}
	}
	return nil
}

// ride has a request of one partition decided: in a pipeline to the shard that has its slot, and where that is not
// known, or the shard has executed nothing, by a call that finds its way by itself.
func (c *Cluster) ride(ctx context.Context, r strategy.Request) ([]limiter.Verdict, error) {
	p := c.find(ctx, r.Hits[0].Key)
	if p.shard != nil {
		if verdicts, err := through(ctx, p.shard.circuit, p.shard.batcher, r); !unexecuted(err) {
			return verdicts, err
		}
	}
	verdicts, err := through(ctx, c.elsewhere, p.store.batcher, r)
	if err == nil {
		c.mapped.Store(true)
	}
	return verdicts, err
}

// through rides unless the circuit is open. Who answers that it has executed nothing has answered.
func through(ctx context.Context, circuit Circuit, b *batcher, r strategy.Request) ([]limiter.Verdict, error) {
	var (
		verdicts []limiter.Verdict
		refusal  error
	)
	err := circuit.Do(ctx, func(ctx context.Context) (err error) {
		verdicts, err = b.ride(ctx, r)
		if unexecuted(err) {
			refusal = err
			return nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return verdicts, refusal
}

// find gives the partition of a key as it is now.
func (c *Cluster) find(ctx context.Context, key string) partition {
	node := c.node(ctx, key)
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.partition(tag(key))
	if node != nil {
		p.shard = c.shard(node)
	}
	return *p
}

// node gives the client of the node that has the slot of a key, or nil if that is not known.
func (c *Cluster) node(ctx context.Context, key string) *redis.Client {
	if !c.mapped.Load() {
		return nil
	}
	node, err := c.client.MasterForKey(ctx, key)
	if err != nil {
		return nil
	}
	return node
}

// partition gives one by its name. There are as many as a namespace has. The caller holds the mutex.
func (c *Cluster) partition(name string) *partition {
	p := c.partitions[name]
	if p == nil {
		p = &partition{store: newStore(c.client, c.scripts)}
		c.partitions[name] = p
	}
	return p
}

// shard gives that of a node. The caller holds the mutex.
func (c *Cluster) shard(node *redis.Client) *shard {
	s := c.shards[node]
	if s == nil {
		c.forget()
		s = newShard(node, c.scripts, c.newCircuit())
		c.shards[node] = s
	}
	return s
}

// forget drops the shards that no partition was asked of last: nodes come and go, each time under new addresses.
func (c *Cluster) forget() {
	used := map[*shard]bool{}
	for _, p := range c.partitions {
		used[p.shard] = true
	}
	maps.DeleteFunc(c.shards, func(_ *redis.Client, s *shard) bool { return !used[s] })
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
	verdicts, err := s.cluster.ride(ctx, strategy.Request{Hits: hits})
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
	verdicts, err := s.cluster.ride(ctx, strategy.Request{Hits: hits})
	if err != nil {
		verdicts = slices.Repeat([]limiter.Verdict{{Allowed: true}}, len(hits))
	}
	s.place(p, verdicts)
}

// fail gives back what is to be taken again, counter by counter, and what was taken before a shard that was not asked:
// that error says that nothing was charged. After all other errors it stays taken.
func (s *spread) fail(ctx context.Context, err error) error {
	if underWay(err) || errors.Is(err, limiter.ErrNotAsked) {
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
		if verdicts, err := s.cluster.ride(ctx, strategy.Request{Hits: hits, Try: true}); err == nil {
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

// SPDX-License-Identifier: Apache-2.0

// Package redisstore counts hits in Redis.
package redisstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// scripts are what a store runs: one for all calls, and one for those whose requests have no counter in common.
type scripts struct {
	all, apart *redis.Script
}

// shipped are hashed once.
var shipped = newScripts(func(source string) string { return source })

func newScripts(change func(source string) string) scripts {
	return scripts{all: redis.NewScript(change(strategy.Script)), apart: redis.NewScript(change(strategy.Apart))}
}

// of gives the script that decides a call, and its arguments.
func (s scripts) of(c *strategy.Call) (*redis.Script, []any) {
	if args, ok := c.Apart(); ok {
		return s.apart, args
	}
	return s.all, c.Args()
}

// Store is a [limiter.Store] that all who use one Redis share. Requests that come at once are decided in one
// script call, one after the other, each with all its counters in one atomic step. That takes a single
// primary, alone or under Sentinel; a Redis Cluster takes a [Cluster].
type Store struct {
	client  redis.Scripter
	scripts scripts
	batcher *batcher
	// calls are those that are not under way, to be used again.
	calls sync.Pool
}

var _ limiter.Store = (*Store)(nil)

// New gives a store on a client that sends nothing twice, like those of package redisclient: a call that is
// sent again after a timeout can be charged twice. The client's own timeouts have to end a call that gets no
// answer. Callers are bound by their contexts alone; at most four calls at a time go on without them.
func New(client redis.Scripter) *Store {
	return newStore(client, shipped)
}

func newStore(client redis.Scripter, scripts scripts) *Store {
	s := &Store{client: client, scripts: scripts}
	s.batcher = newBatcher(s.decide)
	s.calls.New = func() any { return new(strategy.Call) }
	return s
}

// Take implements [limiter.Store]. [Reason] classifies its errors.
func (s *Store) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	if err := check(ctx, hits); err != nil || len(hits) == 0 {
		return nil, err
	}
	return s.batcher.ride(ctx, strategy.Request{Hits: hits})
}

// Refund implements [limiter.Store]. It rides with what others take.
func (s *Store) Refund(ctx context.Context, charges []limiter.Charge) error {
	return s.amend(ctx, charges, false)
}

// Renew implements [limiter.Store]. It rides with what others take.
func (s *Store) Renew(ctx context.Context, charges []limiter.Charge) error {
	return s.amend(ctx, strategy.Renewable(charges), true)
}

func (s *Store) amend(ctx context.Context, charges []limiter.Charge, renew bool) error {
	r := amendment(charges, renew)
	for i := range r.Hits {
		if err := check(ctx, r.Hits[i:i+1]); err != nil {
			return err
		}
	}
	if len(charges) == 0 {
		return nil
	}
	_, err := s.batcher.ride(ctx, r)
	return err
}

func amendment(charges []limiter.Charge, renew bool) strategy.Request {
	r := strategy.Request{Renew: renew}
	for _, c := range charges {
		r.Hits, r.Receipts = append(r.Hits, c.Hit), append(r.Receipts, c.Receipt)
	}
	return r
}

// check says why a request can't be sent.
func check(ctx context.Context, hits []limiter.Hit) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return strategy.Check(hits)
}

// decide decides the requests of a batch, in order.
func (s *Store) decide(requests []strategy.Request, answers []answer) {
	err := s.call(requests, answers)
	if err != nil && len(requests) > 1 && spoiled(err) {
		half := len(requests) / 2
		s.decide(requests[:half], answers[:half])
		s.decide(requests[half:], answers[half:])
		return
	}
	for i := range answers {
		answers[i].err = err
	}
}

// call answers all requests with verdicts, or fails. Its context is none of the callers': one of them who gives up must
// not take the answer from the others.
func (s *Store) call(requests []strategy.Request, answers []answer) error {
	call := s.calls.Get().(*strategy.Call)
	defer s.calls.Put(call)
	verdicts, err := s.run(call, time.Now().UnixMicro(), requests)
	var stale *strategy.StaleError
	if errors.As(err, &stale) {
		// Nothing was charged, and it is decided by Redis's clock, however wrong ours is.
		verdicts, err = s.run(call, stale.Now, requests)
	}
	for i, v := range verdicts {
		answers[i].verdicts = v
	}
	return err
}

// run runs the script once, for a time that is hopefully Redis's.
func (s *Store) run(call *strategy.Call, now int64, requests []strategy.Request) ([][]limiter.Verdict, error) {
	call.Reset(now)
	for _, r := range requests {
		call.Add(r)
	}
	script, args := s.scripts.of(call)
	// Run sends the script's text after NOSCRIPT, which says that the call was not executed.
	reply, err := script.Run(context.Background(), s.client, call.Keys(), args...).Slice()
	if err != nil {
		return nil, fmt.Errorf("taking from Redis: %w", err)
	}
	return call.Verdicts(reply)
}

// spoiled says whether a call failed for what one of its counters holds: a state that no rule can read. The script
// reads and computes before it writes, so nothing was charged, and the requests can be sent again without the one that
// spoils it for all. No other error says so much, but that some counters of the call are on their way to another shard.
func spoiled(err error) bool {
	return redis.HasErrorPrefix(err, "user_script:") || underWay(err)
}

// underWay says whether a call was not executed since some of its counters are with one shard of a cluster
// already, and others with the shard that they are leaving.
func underWay(err error) bool { return redis.HasErrorPrefix(err, "TRYAGAIN") }

// SPDX-License-Identifier: Apache-2.0

// Package redisstore counts hits in Redis.
package redisstore

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// The scripts are hashed once.
var (
	script   = redis.NewScript(strategy.Script)
	lend     = redis.NewScript(strategy.Lend)
	try      = redis.NewScript(strategy.Try)
	giveBack = redis.NewScript(strategy.GiveBack)
)

// For gives the store that fits a client: a [Cluster] or a [Store].
func For(client redis.UniversalClient) limiter.Store {
	if c, ok := client.(*redis.ClusterClient); ok {
		return NewCluster(c)
	}
	return New(client)
}

// Store is a [limiter.Store] that all who use one Redis share. Requests that come at once are decided in one
// script call, one after the other, each with all its counters in one atomic step. That takes a single
// primary, alone or under Sentinel; a Redis Cluster takes a [Cluster].
type Store struct {
	client redis.Scripter
	script *redis.Script
	// lends says that the script's reply has receipts.
	lends   bool
	batcher batcher
}

var _ limiter.Store = (*Store)(nil)

// New gives a store on a client that sends nothing twice, like those of package redisclient: a call that is
// sent again after a timeout can be charged twice. The client's own timeouts have to end a call that gets no
// answer. Callers are bound by their contexts alone; at most four calls at a time go on without them.
func New(client redis.Scripter) *Store {
	return newStore(client, script)
}

func newStore(client redis.Scripter, script *redis.Script) *Store {
	s := &Store{client: client, script: script}
	s.batcher.fly = s.decide
	return s
}

// Take implements [limiter.Store]. [Reason] classifies its errors.
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
	return s.batcher.take(ctx, hits)
}

// decide decides the requests of a batch, in order.
func (s *Store) decide(requests [][]limiter.Hit) []answer {
	verdicts, receipts, err := s.call(requests)
	if err != nil && len(requests) > 1 && spoiled(err) {
		half := len(requests) / 2
		return append(s.decide(requests[:half]), s.decide(requests[half:])...)
	}
	answers := make([]answer, len(requests))
	for i, hits := range requests {
		if err != nil {
			answers[i].err = err
			continue
		}
		answers[i].verdicts, verdicts = verdicts[:len(hits):len(hits)], verdicts[len(hits):]
		if receipts != nil {
			answers[i].receipts, receipts = receipts[:len(hits):len(hits)], receipts[len(hits):]
		}
	}
	return answers
}

// call gives the verdicts of all requests, one request after the other, and the receipts if it lends. Its context
// is none of the callers': one of them who gives up must not take the answer from the others.
func (s *Store) call(requests [][]limiter.Hit) ([]limiter.Verdict, []string, error) {
	hits := 0
	for _, r := range requests {
		hits += len(r)
	}
	cmd := s.run(time.Now().UnixMicro(), requests)
	if now, stale := strategy.Stale(cmd.Val()); stale {
		// Nothing was charged, and it is decided by Redis's clock, however wrong ours is.
		cmd = s.run(now, requests)
	}
	if err := cmd.Err(); err != nil {
		return nil, nil, fmt.Errorf("taking from Redis: %w", err)
	}
	if s.lends {
		return readLoan(cmd, hits)
	}
	reply, err := cmd.Int64Slice()
	if err != nil {
		return nil, nil, fmt.Errorf("taking from Redis: %w", err)
	}
	verdicts, err := strategy.Verdicts(reply, hits)
	return verdicts, nil, err
}

func readLoan(cmd *redis.Cmd, hits int) ([]limiter.Verdict, []string, error) {
	reply, err := cmd.Slice()
	if err != nil {
		return nil, nil, fmt.Errorf("borrowing from Redis: %w", err)
	}
	return strategy.Receipts(reply, hits)
}

// run runs the script once, for a time that is hopefully Redis's.
func (s *Store) run(now int64, requests [][]limiter.Hit) *redis.Cmd {
	keys, args := strategy.Call(now, requests...)
	// Run sends the script's text after NOSCRIPT, which says that the call was not executed.
	return s.script.Run(context.Background(), s.client, keys, args...)
}

// spoiled says whether a call failed for what one of its counters holds: the value of another type, or a
// state that no rule can read. The script reads and computes before it writes, so nothing was charged, and
// the requests can be sent again without the one that spoils it for all. No other error says so much, but
// that some counters of the call are on their way to another shard.
func spoiled(err error) bool {
	return redis.HasErrorPrefix(err, "WRONGTYPE") || redis.HasErrorPrefix(err, "user_script:") || underWay(err)
}

// underWay says whether a call was not executed since some of its counters are with one shard of a cluster
// already, and others with the shard that they are leaving.
func underWay(err error) bool { return redis.HasErrorPrefix(err, "TRYAGAIN") }

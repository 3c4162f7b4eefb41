// SPDX-License-Identifier: Apache-2.0

// Package redisstore counts hits in Redis.
package redisstore

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// script is hashed once.
var script = redis.NewScript(strategy.Script)

// Store is a [limiter.Store] that all who use one Redis share. It decides a request in one script call, all its
// counters in one atomic step. That takes a single primary, alone or under Sentinel: on a Redis Cluster a
// request whose counters are in several slots is an error.
type Store struct {
	client redis.Scripter
	script *redis.Script
}

var _ limiter.Store = (*Store)(nil)

// New gives a store on a client that sends nothing twice, like those of package redisclient: a call that is
// sent again after a timeout can be charged twice.
func New(client redis.Scripter) *Store {
	return &Store{client: client, script: script}
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
	keys, args := strategy.Call(hits)
	// Run sends the script's text after NOSCRIPT, which alone says that the call was not executed.
	reply, err := s.script.Run(ctx, s.client, keys, args...).Int64Slice()
	if err != nil {
		return nil, fmt.Errorf("taking from Redis: %w", err)
	}
	return strategy.Verdicts(reply, len(hits))
}

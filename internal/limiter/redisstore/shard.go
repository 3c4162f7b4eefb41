// SPDX-License-Identifier: Apache-2.0

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

// Circuit keeps calls from a shard that has not answered others lately. It is safe for concurrent use.
type Circuit interface {
	// Do makes a call, unless the circuit is open: then its error wraps [limiter.ErrNotAsked]. After any error the call
	// may still go on, and what it writes must not be read.
	Do(ctx context.Context, call func(context.Context) error) error
}

// shard has the requests of a batch decided in one round trip to the node that has their slots at the moment: those
// of one partition in one call, which is atomic by itself.
type shard struct {
	node    *redis.Client
	scripts scripts
	circuit Circuit
	batcher *batcher
	// calls are those that are not under way, to be used again.
	calls sync.Pool
}

func newShard(node *redis.Client, scripts scripts, circuit Circuit) *shard {
	s := &shard{node: node, scripts: scripts, circuit: circuit}
	s.batcher = newBatcher(s.decide)
	s.calls.New = func() any { return new(shardCall) }
	return s
}

// decide sends each call once. Who is told that its call was not executed can ask again, and keeps nobody waiting
// whose call was.
func (s *shard) decide(requests []strategy.Request, answers []answer) {
	calls := s.share(requests)
	// The error is that of one of the calls, which tells it by itself.
	_, _ = s.node.Pipelined(context.Background(), func(pipe redis.Pipeliner) error {
		for _, c := range calls {
			// Only if the node knows the script: a pipeline can't send its text after NOSCRIPT.
			script, args := s.scripts.of(&c.call)
			c.reply = script.EvalSha(context.Background(), pipe, c.call.Keys(), args...)
		}
		return nil
	})
	for _, c := range calls {
		c.answer(answers)
		s.calls.Put(c)
	}
}

// share gives the calls of a batch, one for each partition. In each the requests have the order of the batch.
func (s *shard) share(requests []strategy.Request) []*shardCall {
	var calls []*shardCall
	now := time.Now().UnixMicro()
	byPartition := map[string]*shardCall{}
	for i, r := range requests {
		name := tag(r.Hits[0].Key)
		c := byPartition[name]
		if c == nil {
			c = s.calls.Get().(*shardCall)
			c.call.Reset(now)
			c.places = c.places[:0]
			byPartition[name] = c
			calls = append(calls, c)
		}
		c.call.Add(r)
		c.places = append(c.places, i)
	}
	return calls
}

// shardCall is what of a batch is of one partition.
type shardCall struct {
	call strategy.Call
	// places are those of its requests in the batch.
	places []int
	reply  *redis.Cmd
}

// answer gives each request its own of a batch's answers.
func (c *shardCall) answer(answers []answer) {
	verdicts, err := c.verdicts()
	for i, place := range c.places {
		if err != nil {
			answers[place].err = err
			continue
		}
		answers[place].verdicts = verdicts[i]
	}
}

func (c *shardCall) verdicts() ([][]limiter.Verdict, error) {
	reply, err := c.reply.Slice()
	if err != nil {
		return nil, fmt.Errorf("taking from Redis: %w", err)
	}
	return c.call.Verdicts(reply)
}

// unexecuted says whether a call has changed nothing and can be sent again: to the shard that has the slot now, with
// the script's text, for another time, or in parts.
func unexecuted(err error) bool {
	return redis.HasErrorPrefix(err, "MOVED") || redis.HasErrorPrefix(err, "ASK") ||
		redis.HasErrorPrefix(err, "NOSCRIPT") || errors.As(err, new(*strategy.StaleError)) || spoiled(err)
}

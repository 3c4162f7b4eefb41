// SPDX-License-Identifier: Apache-2.0

package redisstore

import (
	"context"

	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// NewOf gives a store that runs changed scripts.
func NewOf(client redis.Scripter, change func(source string) string) *Store {
	return newStore(client, newScripts(change))
}

// NewClusterOf gives a store that runs changed scripts.
func NewClusterOf(client *redis.ClusterClient, circuit func() Circuit, change func(source string) string) *Cluster {
	c := NewCluster(client, circuit)
	c.scripts = newScripts(change)
	return c
}

// ByPartition gives a store whose calls all find their way by themselves.
func ByPartition(ctx context.Context, c *Cluster, hit limiter.Hit) *Store {
	return c.find(ctx, hit.Key).store
}

// Decide decides requests of one hit in one batch, and gives what remains after each. It is -1 after an error.
func Decide(s *Store, requests [][]limiter.Hit) (remaining []int64, errs []error) {
	riding := make([]strategy.Request, len(requests))
	for i, hits := range requests {
		riding[i].Hits = hits
	}
	answers := make([]answer, len(riding))
	s.decide(riding, answers)
	for _, a := range answers {
		errs = append(errs, a.err)
		if a.err != nil {
			remaining = append(remaining, -1)
			continue
		}
		remaining = append(remaining, a.verdicts[0].Remaining)
	}
	return remaining, errs
}

// Idle says whether no call is under way.
func Idle(s *Store) bool {
	s.batcher.mu.Lock()
	defer s.batcher.mu.Unlock()
	return s.batcher.flights == 0
}

// UnderWay is how many calls or pipelines are under way.
func UnderWay(c *Cluster) int {
	return total(c, func(b *batcher) int { return b.flights })
}

// Waiting is how many requests wait for a flight.
func Waiting(c *Cluster) int {
	return total(c, func(b *batcher) int { return b.waiting })
}

func total(c *Cluster, of func(*batcher) int) (sum int) {
	count := func(b *batcher) {
		b.mu.Lock()
		defer b.mu.Unlock()
		sum += of(b)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.partitions {
		count(p.store.batcher)
	}
	for _, s := range c.shards {
		count(s.batcher)
	}
	return sum
}

// SPDX-License-Identifier: Apache-2.0

package redisstore

import (
	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// NewOf gives a store that runs another script.
func NewOf(client redis.Scripter, source string) *Store {
	return newStore(client, redis.NewScript(source))
}

// NewClusterOf gives a store that runs another script.
func NewClusterOf(client redis.Scripter, source string) *Cluster {
	c := NewCluster(client)
	c.script = redis.NewScript(source)
	return c
}

// Decide decides requests of one hit in one batch, and gives what remains after each. It is -1 after an error.
func Decide(s *Store, requests [][]limiter.Hit) (remaining []int64, errs []error) {
	riding := make([]strategy.Request, len(requests))
	for i, hits := range requests {
		riding[i].Hits = hits
	}
	for _, a := range s.decide(riding) {
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

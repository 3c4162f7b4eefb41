// SPDX-License-Identifier: Apache-2.0

package redisstore

import (
	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// NewOf gives a store that runs changed scripts.
func NewOf(client redis.Scripter, change func(source string) string) *Store {
	return newStore(client, newScripts(change))
}

// NewClusterOf gives a store that runs changed scripts.
func NewClusterOf(client redis.Scripter, change func(source string) string) *Cluster {
	c := NewCluster(client)
	c.scripts = newScripts(change)
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

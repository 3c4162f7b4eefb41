// SPDX-License-Identifier: Apache-2.0

package redisstore

import (
	"context"
	"testing"

	"github.com/redis/go-redis/v9"
)

// closed is a circuit that never opens.
type closed struct{}

func (closed) Do(ctx context.Context, call func(context.Context) error) error { return call(ctx) }

func TestShardsThatAreGone(t *testing.T) {
	client := redis.NewClusterClient(&redis.ClusterOptions{})
	defer func() { _ = client.Close() }()
	c := NewCluster(client, func() Circuit { return closed{} })
	t.Run("are forgotten when their partitions have moved", func(t *testing.T) {
		still := c.shard(redis.NewClient(&redis.Options{}))
		c.partition("still").shard = still
		for range 100 {
			c.partition("moving").shard = c.shard(redis.NewClient(&redis.Options{}))
		}
		if len(c.shards) > 3 || c.partition("still").shard != still {
			t.Errorf("there are %d shards, or the one that stays is gone", len(c.shards))
		}
	})
}

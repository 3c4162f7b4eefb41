// SPDX-License-Identifier: Apache-2.0

package redisclient

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// NoEviction is the [EvictionPolicy] of a Redis that refuses writes when it has no memory left, and keeps what it holds.
const NoEviction = "noeviction"

// EvictionPolicy gives what Redis throws away when it has no memory left, by the name that it has in maxmemory-policy. Of
// a cluster it is that of a master which throws anything away, if there is one. It takes the right to INFO memory: CONFIG
// has everything else in it too, and a Redis that others run doesn't let anybody see it.
func EvictionPolicy(ctx context.Context, client redis.UniversalClient) (string, error) {
	cluster, ok := client.(*redis.ClusterClient)
	if !ok {
		return evictionPolicy(ctx, client)
	}
	var mu sync.Mutex
	policy := NoEviction
	err := cluster.ForEachMaster(ctx, func(ctx context.Context, master *redis.Client) error {
		its, err := evictionPolicy(ctx, master)
		if err != nil || its == NoEviction {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		policy = its
		return nil
	})
	return policy, err
}

func evictionPolicy(ctx context.Context, client redis.Cmdable) (string, error) {
	info, err := client.Info(ctx, "memory").Result()
	if err != nil {
		return "", fmt.Errorf("asking what Redis does without memory: %w", err)
	}
	for line := range strings.Lines(info) {
		if policy, ok := strings.CutPrefix(line, "maxmemory_policy:"); ok {
			return strings.TrimSpace(policy), nil
		}
	}
	return "", errors.New("asking what Redis does without memory: it doesn't say")
}

// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// countsKept is how long counts are kept: some time after the last manager they are of no use to anyone.
const countsKept = 10 * time.Minute

// Group is those who share the pools of one target of one policy.
type Group struct{ Namespace, Policy, Target string }

// groupOf gives the group that shares a pool.
func groupOf(p Pool) Group {
	return Group{Namespace: p.ID.Namespace, Policy: p.ID.Policy, Target: p.Target}
}

// String is like shop/checkout/Service/api.
func (g Group) String() string { return g.Namespace + "/" + g.field() }

func (g Group) field() string { return g.Policy + "/" + g.Target }

// Census is how many pods with a sidecar there are in the groups of each namespace. The manager counts them, and each
// replica reads how many its own groups have. It is kept beside the snapshots, not in them: rollouts change it all the
// time, and need no revision for that, nor wake anybody.
//
// A Census is safe for concurrent use.
type Census struct {
	client   redis.UniversalClient
	instance string
}

// NewCensus gives the census of the installation called instance. The client is that of the config store.
func NewCensus(client redis.UniversalClient, instance string) *Census {
	return &Census{client: client, instance: instance}
}

// KEYS[1] by group, how many pods there are
// ARGV[1] milliseconds to keep them   ARGV[2] a group   ARGV[3] how many pods it has   ... and so on
var count = redis.NewScript(`
redis.call('DEL', KEYS[1])
for i = 2, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
return redis.call('PEXPIRE', KEYS[1], ARGV[1])
`)

// Write replaces what is known of a namespace. The groups are its own, and those without pods are left out.
func (c *Census) Write(ctx context.Context, namespace string, pods map[Group]int) error {
	args := []any{countsKept.Milliseconds()}
	for g, n := range pods {
		args = append(args, g.field(), n)
	}
	if err := count.Run(ctx, c.client, []string{c.key(namespace)}, args...).Err(); err != nil {
		return fmt.Errorf("writing how many pods namespace %s has: %w", namespace, err)
	}
	return nil
}

// Read gives how many pods a group has, and 0 when that isn't known.
func (c *Census) Read(ctx context.Context, g Group) (int, error) {
	n, err := c.client.HGet(ctx, c.key(g.Namespace), g.field()).Int()
	if err != nil && !errors.Is(err, redis.Nil) {
		return 0, fmt.Errorf("reading how many pods %s has: %w", g, err)
	}
	return n, nil
}

// key is beside the snapshot of a namespace: whoever may read one may read the other. No namespace has a slash.
func (c *Census) key(namespace string) string {
	return "weir:" + c.instance + ":{config}:" + namespace + "/pods"
}

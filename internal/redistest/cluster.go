// SPDX-License-Identifier: Apache-2.0

package redistest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// slots is how many slots a cluster has.
const slots = 16384

// masters is how many nodes of a cluster have slots. It is the least that can agree on a failover.
const masters = 3

// Cluster is a Redis Cluster of three masters with equal parts of the slots, and maybe a replica of each.
type Cluster struct {
	// Masters are the nodes that had slots from the start, in the order of their slots.
	Masters []*Server
	// Replicas are of the masters at the same place. There are none unless asked for.
	Replicas []*Server
}

// StartCluster starts a cluster and stops it when the test ends. Every slot can be written to when it returns.
func StartCluster(tb testing.TB) *Cluster { return startCluster(tb, masters) }

// StartReplicated is [StartCluster] with a replica for each master, all in step.
func StartReplicated(tb testing.TB) *Cluster { return startCluster(tb, 2*masters) }

func startCluster(tb testing.TB, size int) *Cluster {
	tb.Helper()
	nodes := make([]*Server, size)
	for i := range nodes {
		nodes[i] = startNode(tb)
	}
	c := &Cluster{Masters: nodes[:masters], Replicas: nodes[masters:]}
	if err := c.join(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return c
}

// startNode starts a server that can be part of a cluster. Its bus takes a port of its own choice, since the
// usual one, 10000 above, can be taken or be none.
func startNode(tb testing.TB) *Server {
	tb.Helper()
	bus := FreePort(tb)
	s := StartWith(tb, "--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-node-timeout", "2000",
		"--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0")
	s.bus = bus
	return s
}

// URL is the cluster as a redis+cluster:// URL.
func (c *Cluster) URL() string {
	addrs := make([]string, len(c.Masters))
	for i, m := range c.Masters {
		addrs[i] = m.Addr
	}
	return "redis+cluster://" + strings.Join(addrs, ",")
}

// Flush empties all masters.
func (c *Cluster) Flush(ctx context.Context) error {
	for _, m := range c.Masters {
		if err := m.do(ctx, "FLUSHALL"); err != nil {
			return fmt.Errorf("flushing %s: %w", m.Addr, err)
		}
	}
	return nil
}

// join makes the nodes a cluster.
func (c *Cluster) join(ctx context.Context) error {
	for i, m := range c.Masters {
		if err := m.do(ctx, "CLUSTER", "ADDSLOTSRANGE", i*slots/masters, (i+1)*slots/masters-1); err != nil {
			return fmt.Errorf("giving slots to %s: %w", m.Addr, err)
		}
		if err := m.do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", i+1); err != nil {
			return fmt.Errorf("giving an epoch to %s: %w", m.Addr, err)
		}
	}
	all := append(append([]*Server{}, c.Masters...), c.Replicas...)
	for _, n := range all[1:] {
		if err := n.meet(ctx, all[0]); err != nil {
			return err
		}
	}
	if err := eventually(ctx, func() bool { return agree(ctx, all) }); err != nil {
		return fmt.Errorf("forming a cluster: %w", err)
	}
	return c.replicate(ctx)
}

func (c *Cluster) replicate(ctx context.Context) error {
	for i, r := range c.Replicas {
		id, err := c.Masters[i].text(ctx, "CLUSTER", "MYID")
		if err != nil {
			return err
		}
		if err := r.do(ctx, "CLUSTER", "REPLICATE", id); err != nil {
			return fmt.Errorf("replicating %s: %w", c.Masters[i].Addr, err)
		}
	}
	if err := eventually(ctx, func() bool { return c.inStep(ctx) }); err != nil {
		return fmt.Errorf("waiting for the replicas: %w", err)
	}
	return nil
}

// inStep says whether the replicas have all that their masters have, and are known to.
func (c *Cluster) inStep(ctx context.Context) bool {
	for i, r := range c.Replicas {
		info, err := r.text(ctx, "INFO", "replication")
		if err != nil || !strings.Contains(info, "master_link_status:up") {
			return false
		}
		nodes, err := c.Masters[i].text(ctx, "CLUSTER", "NODES")
		if err != nil || strings.Count(nodes, "slave ") != len(c.Replicas) {
			return false
		}
	}
	return true
}

// agree says whether all nodes know each other and see all slots served.
func agree(ctx context.Context, nodes []*Server) bool {
	for _, n := range nodes {
		info, err := n.text(ctx, "CLUSTER", "INFO")
		if err != nil || !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, fmt.Sprint("cluster_known_nodes:", len(nodes), "\r")) {
			return false
		}
	}
	return true
}

// eventually waits until something is the case.
func eventually(ctx context.Context, is func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for !is() {
		select {
		case <-ctx.Done():
			return errors.New("it takes more than 30s")
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// Slot gives the slot of a key.
func (c *Cluster) Slot(ctx context.Context, key string) (int, error) {
	client := c.Masters[0].client()
	defer func() { _ = client.Close() }()
	slot, err := client.ClusterKeySlot(ctx, key).Result()
	return int(slot), err
}

// Move moves slots with all their keys from one master to another, 50 at a time, while both serve them.
func (c *Cluster) Move(ctx context.Context, from, to *Server, slots ...int) error {
	m := move{source: from.client(), target: to.client(), to: to}
	defer func() { _ = errors.Join(m.source.Close(), m.target.Close()) }()
	var err error
	if m.sourceID, err = m.source.Do(ctx, "CLUSTER", "MYID").Text(); err != nil {
		return fmt.Errorf("naming %s: %w", from.Addr, err)
	}
	if m.targetID, err = m.target.Do(ctx, "CLUSTER", "MYID").Text(); err != nil {
		return fmt.Errorf("naming %s: %w", to.Addr, err)
	}
	for some := range slices.Chunk(slots, 50) {
		if err := m.slots(ctx, some); err != nil {
			return err
		}
	}
	return nil
}

// move is that of slots from one master to another.
type move struct {
	source, target     *redis.Client
	sourceID, targetID string
	to                 *Server
}

func (m *move) slots(ctx context.Context, slots []int) error {
	if err := set(ctx, m.target, slots, "IMPORTING", m.sourceID); err != nil {
		return fmt.Errorf("importing slots: %w", err)
	}
	if err := set(ctx, m.source, slots, "MIGRATING", m.targetID); err != nil {
		return fmt.Errorf("migrating slots: %w", err)
	}
	for _, slot := range slots {
		if err := m.keys(ctx, slot); err != nil {
			return fmt.Errorf("moving the keys of slot %d: %w", slot, err)
		}
	}
	// The new owner first: between the two, the slots would else have none.
	for _, node := range []*redis.Client{m.target, m.source} {
		if err := set(ctx, node, slots, "NODE", m.targetID); err != nil {
			return fmt.Errorf("settling slots: %w", err)
		}
	}
	return nil
}

// set has a node set slots at once: for each that came alone it would write a file and wait for the disk.
func set(ctx context.Context, node *redis.Client, slots []int, state, id string) error {
	_, err := node.Pipelined(ctx, func(p redis.Pipeliner) error {
		for _, slot := range slots {
			p.Do(ctx, "CLUSTER", "SETSLOT", slot, state, id)
		}
		return nil
	})
	return err
}

// keys moves all keys of a slot.
func (m *move) keys(ctx context.Context, slot int) error {
	host, port, err := net.SplitHostPort(m.to.Addr)
	if err != nil {
		return err
	}
	for {
		keys, err := m.source.ClusterGetKeysInSlot(ctx, slot, 100).Result()
		if err != nil || len(keys) == 0 {
			return err
		}
		args := []any{"MIGRATE", host, port, "", 0, 5000, "KEYS"}
		for _, k := range keys {
			args = append(args, k)
		}
		if err := m.source.Do(ctx, args...).Err(); err != nil {
			return err
		}
	}
}

func (s *Server) meet(ctx context.Context, other *Server) error {
	host, port, err := net.SplitHostPort(other.Addr)
	if err != nil {
		return err
	}
	if err := s.do(ctx, "CLUSTER", "MEET", host, port, other.bus); err != nil {
		return fmt.Errorf("introducing %s to %s: %w", s.Addr, other.Addr, err)
	}
	return nil
}

// do sends one command.
func (s *Server) do(ctx context.Context, args ...any) error {
	client := s.client()
	defer func() { _ = client.Close() }()
	return client.Do(ctx, args...).Err()
}

// text sends one command that answers with text.
func (s *Server) text(ctx context.Context, args ...any) (string, error) {
	client := s.client()
	defer func() { _ = client.Close() }()
	return client.Do(ctx, args...).Text()
}

func (s *Server) client() *redis.Client {
	return redis.NewClient(&redis.Options{Addr: s.Addr, MaxRetries: -1, DisableIdentity: true})
}

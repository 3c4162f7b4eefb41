// SPDX-License-Identifier: Apache-2.0

package redisclient_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/redistest"
)

func TestOpenCluster(t *testing.T) {
	type settings struct {
		Addrs              []string
		Username, Password string
		TLS, Stale         bool
		Reload, Read       time.Duration
		Redirects          int
	}
	want := settings{Addrs: []string{"a:7000"}, Reload: time.Second, Read: time.Second, Redirects: 3}
	with := func(change func(*settings)) settings {
		s := want
		change(&s)
		return s
	}
	for name, test := range map[string]struct {
		url  string
		want settings
	}{
		"one host": {"redis+cluster://a:7000", want},
		"many hosts and a user": {"redis+cluster://ada:se%2Ccret@a:7000,b:7001,[::1]:7002/0", with(func(s *settings) {
			s.Addrs, s.Username, s.Password = []string{"a:7000", "b:7001", "[::1]:7002"}, "ada", "se,cret"
		})},
		"hosts in the query": {"redis+cluster://a:7000?addr=b:7001&addr=c:7002", with(func(s *settings) {
			s.Addrs = []string{"a:7000", "b:7001", "c:7002"}
		})},
		"TLS": {"rediss+cluster://a:7000", with(func(s *settings) { s.TLS = true })},
		"a timeout of the user's, but no replicas and no retries": {"redis+cluster://a:7000?read_timeout=3s&read_only=true&max_retries=5&max_redirects=9", with(func(s *settings) {
			s.Read = 3 * time.Second
		})},
	} {
		t.Run(name, func(t *testing.T) {
			client, err := redisclient.Open(test.url)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = client.Close() }()
			o := client.(*redis.ClusterClient).Options()
			got := settings{
				Addrs: o.Addrs, Username: o.Username, Password: o.Password, TLS: o.TLSConfig != nil, Stale: o.ReadOnly,
				Reload: o.ClusterStateReloadInterval, Read: o.ReadTimeout, Redirects: o.MaxRedirects,
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
		})
	}
}

// lossy is a connection that loses what comes after an EVAL was sent.
type lossy struct {
	net.Conn
	sent *atomic.Int64
}

func (l lossy) Write(b []byte) (int, error) {
	if !strings.Contains(string(b), "eval") {
		return l.Conn.Write(b)
	}
	l.sent.Add(1)
	_, err := l.Conn.Write(b)
	return len(b), errors.Join(err, l.Close())
}

func TestClusterSendsOnce(t *testing.T) {
	client, err := redisclient.Open(redistest.StartCluster(t).URL())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	var sent atomic.Int64
	client.(*redis.ClusterClient).OnNewNode(func(node *redis.Client) { node.AddHook(losing{sent: &sent}) })
	ctx := t.Context()
	const script = "return redis.call('INCR', KEYS[1])"
	for name, call := range map[string]func() error{
		"a command whose answer is lost isn't sent again": func() error {
			return client.Eval(ctx, script, []string{"a"}).Err()
		},
		"nor is a pipeline": func() error {
			_, err := client.Pipelined(ctx, func(p redis.Pipeliner) error {
				p.Eval(ctx, script, []string{"a"})
				return nil
			})
			return err
		},
		"nor is a pipeline to one node": func() error {
			node, err := client.(*redis.ClusterClient).MasterForKey(ctx, "a")
			if err != nil {
				t.Fatal(err)
			}
			_, err = node.Pipelined(ctx, func(p redis.Pipeliner) error {
				p.Eval(ctx, script, []string{"a"})
				return nil
			})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			sent.Store(0)
			if err := call(); err == nil {
				t.Error("the call had an answer")
			}
			if n := sent.Load(); n != 1 {
				t.Errorf("it was sent %d times", n)
			}
		})
	}
}

// losing has a client's connections be lossy.
type losing struct {
	redis.Hook
	sent *atomic.Int64
}

func (l losing) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := next(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return lossy{Conn: conn, sent: l.sent}, nil
	}
}

func (losing) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (losing) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func TestClusterFailover(t *testing.T) {
	cluster := redistest.StartReplicated(t)
	client, err := redisclient.OpenCounting(cluster.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	ctx := t.Context()
	t.Run("a planned failover costs no error and no count", func(t *testing.T) {
		replica := cluster.Replicas[0].Client(t)
		if err := replica.Do(ctx, "CLUSTER", "FAILOVER").Err(); err != nil {
			t.Fatal(err)
		}
		begun, after := time.Now(), 0
		for n := int64(1); after < 100; n++ {
			if got, err := client.Incr(ctx, "{b}n").Result(); err != nil || got != n {
				t.Fatalf("after %d calls the count is %d, %v", n, got, err)
			}
			if role, err := replica.Do(ctx, "ROLE").Slice(); err == nil && role[0] == "master" {
				after++
			}
			if time.Since(begun) > 20*time.Second {
				t.Fatal("the replica doesn't take over")
			}
		}
	})
	t.Run("a master that dies is missed until it is replaced, and no other with it", func(t *testing.T) {
		cluster.Masters[1].Kill()
		killed := time.Now()
		for client.Incr(ctx, "{c}n").Err() != nil {
			if err := client.Incr(ctx, "{a}n").Err(); err != nil && !redis.HasErrorPrefix(err, "CLUSTERDOWN") {
				t.Errorf("another shard fails with %v", err)
			}
			if time.Since(killed) > 30*time.Second {
				t.Fatal("the replica doesn't take over")
			}
		}
		t.Logf("replaced after %s", time.Since(killed))
	})
}

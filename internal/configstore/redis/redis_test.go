// SPDX-License-Identifier: Apache-2.0

package redis_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"
	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/configstore/configstoretest"
	"github.com/weir-dev/weir/internal/configstore/redis"
	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/match"
	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/redistest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	instance = "test"
	key      = "weir:test:{config}:shop"
	patience = 20 * time.Second
)

func TestPublisher(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	testPublisher(t, func(t *testing.T) goredis.UniversalClient { return server.Client(t) })
}

func testPublisher(t *testing.T, connect func(t *testing.T) goredis.UniversalClient) {
	configstoretest.TestPublisher(t, func(t *testing.T) configstoretest.Published {
		client := connect(t)
		flush := func() { flush(t, client) }
		flush()
		return configstoretest.Published{
			Publisher: func() configstore.Publisher { return redis.NewPublisher(client, instance, testr.New(t)) },
			Flush:     flush,
		}
	})
}

func TestWatcher(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	testWatcher(t, func(t *testing.T) goredis.UniversalClient { return server.Client(t) })
}

func testWatcher(t *testing.T, connect func(t *testing.T) goredis.UniversalClient) {
	configstoretest.TestWatcher(t, func(t *testing.T) configstoretest.Watched {
		client := connect(t)
		flush(t, client)
		l := lead(t, client)
		put := func(policies ...configstoretest.Policy) { l.publish(compile(policies)...) }
		put(configstoretest.Policy{Name: "a", Requests: 1})
		return configstoretest.Watched{
			Watcher: func(log logr.Logger) configstore.Watcher {
				return redis.NewWatcher(client, instance, "shop", log)
			},
			Put: put,
			Corrupt: func() {
				hset(t, client, "epoch", l.epoch, "number", l.number+1, "body", "{")
				l.number++
			},
			Lose: func() { flush(t, client) },
		}
	})
}

func TestCluster(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t)
	connect := func(t *testing.T) goredis.UniversalClient {
		t.Helper()
		client, err := redisclient.Open(cluster.URL())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		return client
	}
	t.Run("a cluster keeps what is published", func(t *testing.T) { testPublisher(t, connect) })
	t.Run("a cluster tells who watches", func(t *testing.T) { testWatcher(t, connect) })
}

// leader publishes for the namespace shop.
type leader struct {
	t             *testing.T
	publisher     *redis.Publisher
	epoch, number int64
}

func lead(t *testing.T, client goredis.UniversalClient) *leader {
	t.Helper()
	p := redis.NewPublisher(client, instance, testr.New(t))
	epoch, err := p.Claim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return &leader{t: t, publisher: p, epoch: epoch}
}

func (l *leader) publish(policies ...match.Policy) configstore.Snapshot {
	l.t.Helper()
	l.number++
	s := configstore.Snapshot{Namespace: "shop", Revision: configstore.Revision{Epoch: l.epoch, Number: l.number}}
	for _, p := range policies {
		s.Policies = append(s.Policies, configstore.Policy{Policy: p, Since: s.Revision})
	}
	if err := l.publisher.Publish(l.t.Context(), s); err != nil {
		l.t.Fatal(err)
	}
	return s
}

func compile(policies []configstoretest.Policy) []match.Policy {
	var compiled []match.Policy
	for _, p := range policies {
		compiled = append(compiled, match.Policy{
			Namespace: "shop",
			Name:      p.Name,
			Limits:    []match.Limit{{Name: "all", Limit: limiter.Limit{Requests: p.Requests}}},
		})
	}
	slices.SortFunc(compiled, func(a, b match.Policy) int { return strings.Compare(a.Name, b.Name) })
	return compiled
}

func flush(t *testing.T, client goredis.UniversalClient) {
	t.Helper()
	if c, ok := client.(*goredis.ClusterClient); ok {
		flushMasters := func(ctx context.Context, m *goredis.Client) error { return m.FlushAll(ctx).Err() }
		if err := c.ForEachMaster(t.Context(), flushMasters); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
}

func hset(t *testing.T, client goredis.UniversalClient, fields ...any) {
	t.Helper()
	if err := client.HSet(t.Context(), key, fields...).Err(); err != nil {
		t.Fatal(err)
	}
}

// watch runs a watcher of the namespace shop until the test ends, and gives what it applies.
func watch(t *testing.T, client goredis.UniversalClient, log logr.Logger) <-chan configstore.Snapshot {
	t.Helper()
	applied := make(chan configstore.Snapshot, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() {
		err := redis.NewWatcher(client, instance, "shop", log).Watch(ctx, func(s configstore.Snapshot) { applied <- s })
		if err != nil {
			t.Errorf("Watch: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		run.Wait()
	})
	return applied
}

// lines gives a logger and what it logs.
func lines() (logr.Logger, <-chan string) {
	c := make(chan string, 100)
	return funcr.New(func(_, args string) { c <- args }, funcr.Options{}), c
}

// next gives what comes next, or fails the test.
func next[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func TestGarbage(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	const body = `{"namespace":"shop","revision":{"epoch":9000000000000,"number":7},"policies":[]}`
	later := func(body string) []any { return []any{"epoch", 9000000000000, "number", 7, "body", body} }
	cases := map[string]struct {
		fields []any
		want   string
	}{
		"a body that is no JSON": {later("{"), "decoding snapshot 9000000000000/7: unexpected end of JSON input"},
		"another namespace's":    {later(strings.ReplaceAll(body, "shop", "bank")), `snapshot 9000000000000/7 is of namespace \"bank\"`},
		"another revision's":     {later(strings.ReplaceAll(body, "7", "8")), "snapshot 9000000000000/7 calls itself 9000000000000/8"},
		"an older one":           {[]any{"epoch", 1, "number", 7, "body", body}, "snapshot 1/7 is older than the one enforced"},
		"no number":              {[]any{"epoch", "now"}, `reading the stored epoch: strconv.ParseInt: parsing \"now\"`},
		"50 MB":                  {later(strings.Repeat(" ", 50_000_000)), "it has 50000000 bytes"},
	}
	for name, c := range cases {
		t.Run(name+" is told of once and ignored", func(t *testing.T) {
			flush(t, client)
			l := lead(t, client)
			log, logged := lines()
			applied := watch(t, client, log)
			next(t, logged) // Nothing is stored yet.
			first := l.publish(compile([]configstoretest.Policy{{Name: "a", Requests: 1}})...)
			if diff := cmp.Diff(first, next(t, applied)); diff != "" {
				t.Fatalf("applied (-want +got):\n%s", diff)
			}
			hset(t, client, c.fields...)
			for line := ""; !strings.Contains(line, c.want); {
				line = next(t, logged)
			}
			// Each of these makes the watcher look again.
			for range 5 {
				client.Publish(t.Context(), key, "")
			}
			flush(t, client)
			l.number++
			second := l.publish()
			if diff := cmp.Diff(second, next(t, applied)); diff != "" {
				t.Errorf("applied (-want +got):\n%s", diff)
			}
			for len(logged) > 0 {
				if line := <-logged; strings.Contains(line, c.want) {
					t.Errorf("logged again: %s", line)
				}
			}
		})
	}
}

func TestNewerManager(t *testing.T) {
	t.Parallel()
	t.Run("fields of a newer manager are ignored", func(t *testing.T) {
		client := redistest.Start(t).Client(t)
		hset(t, client, "epoch", 5, "number", 7, "body",
			`{"namespace":"shop","revision":{"epoch":5,"number":7,"hint":1},"policies":[{"name":"a","mood":"good"}],"color":"red"}`)
		revision := configstore.Revision{Epoch: 5, Number: 7}
		want := configstore.Snapshot{Namespace: "shop", Revision: revision, Policies: []configstore.Policy{{Policy: match.Policy{Name: "a"}}}}
		if diff := cmp.Diff(want, next(t, watch(t, client, testr.New(t)))); diff != "" {
			t.Errorf("applied (-want +got):\n%s", diff)
		}
	})
}

func TestRights(t *testing.T) {
	t.Parallel()
	const read = "%R~" + key
	cases := map[string][]any{
		"a watcher needs to read its key and its channel, no more": {read, "&" + key, "+hmget", "+hstrlen", "+subscribe", "+ping"},
		"a watcher that hears no announcements polls":              {read, "+hmget", "+hstrlen"},
	}
	for name, rights := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := redistest.Start(t)
			admin := server.Client(t)
			user := append([]any{"ACL", "SETUSER", "sidecar", "on", "nopass"}, rights...)
			if err := admin.Do(t.Context(), user...).Err(); err != nil {
				t.Fatal(err)
			}
			client := goredis.NewClient(&goredis.Options{Addr: server.Addr, Username: "sidecar", Password: "any", MaxRetries: -1, DisableIdentity: true})
			t.Cleanup(func() { _ = client.Close() })
			l := lead(t, admin)
			first := l.publish()
			applied := watch(t, client, testr.New(t))
			if diff := cmp.Diff(first, next(t, applied)); diff != "" {
				t.Errorf("applied (-want +got):\n%s", diff)
			}
			start := time.Now()
			second := l.publish()
			if diff := cmp.Diff(second, next(t, applied)); diff != "" {
				t.Errorf("applied (-want +got):\n%s", diff)
			}
			t.Logf("a change came after %s", time.Since(start))
		})
	}
}

func TestAFirstStartIsNoTrouble(t *testing.T) {
	t.Parallel()
	log, logged := lines()
	watch(t, redistest.Start(t).Client(t), log)
	if diff := cmp.Diff(`"level"=0 "msg"="waiting for a first snapshot" "namespace"="shop"`, next(t, logged)); diff != "" {
		t.Errorf("logged (-want +got):\n%s", diff)
	}
}

func TestOutage(t *testing.T) {
	t.Parallel()
	policies := compile([]configstoretest.Policy{{Name: "a", Requests: 1}})

	t.Run("a store that isn't there at first is waited for", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t)
		server.Kill()
		log, logged := lines()
		applied := watch(t, server.Client(t), log)
		next(t, logged)
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
		want := lead(t, server.Client(t)).publish(policies...)
		if diff := cmp.Diff(want, next(t, applied)); diff != "" {
			t.Errorf("applied (-want +got):\n%s", diff)
		}
	})

	t.Run("a store that comes back empty changes nothing until the leader restores it", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t)
		l := lead(t, server.Client(t))
		first := l.publish(policies...)
		log, logged := lines()
		applied := watch(t, server.Client(t), log)
		next(t, applied)
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
		for line := ""; !strings.Contains(line, "no snapshot is stored"); {
			line = next(t, logged)
		}
		if err := l.publisher.Publish(t.Context(), first); err != nil {
			t.Fatal(err)
		}
		second := l.publish()
		if diff := cmp.Diff(second, next(t, applied)); diff != "" {
			t.Errorf("applied (-want +got):\n%s", diff)
		}
	})

	t.Run("a store that hangs is waited for", func(t *testing.T) {
		t.Parallel()
		server := redistest.Start(t)
		l := lead(t, server.Client(t))
		l.publish(policies...)
		log, logged := lines()
		client := goredis.NewClient(&goredis.Options{Addr: server.Addr, MaxRetries: -1, DisableIdentity: true, ContextTimeoutEnabled: true})
		t.Cleanup(func() { _ = client.Close() })
		applied := watch(t, client, log)
		next(t, applied)
		if err := server.Pause(); err != nil {
			t.Fatal(err)
		}
		next(t, logged)
		if err := server.Resume(); err != nil {
			t.Fatal(err)
		}
		want := l.publish()
		if diff := cmp.Diff(want, next(t, applied)); diff != "" {
			t.Errorf("applied (-want +got):\n%s", diff)
		}
	})
}

func TestLatency(t *testing.T) {
	t.Run("a publication arrives in well under 2 s", func(t *testing.T) {
		client := redistest.Start(t).Client(t)
		l := lead(t, client)
		l.publish()
		const watchers, publications = 10, 50
		var applied []<-chan configstore.Snapshot
		for range watchers {
			applied = append(applied, watch(t, client, testr.New(t)))
		}
		for _, c := range applied {
			next(t, c)
		}
		var took []time.Duration
		for range publications {
			start := time.Now()
			l.publish(compile([]configstoretest.Policy{{Name: "a", Requests: l.number}})...)
			for _, c := range applied {
				next(t, c)
				took = append(took, time.Since(start))
			}
		}
		slices.Sort(took)
		p99 := took[len(took)*99/100]
		t.Logf("publish to apply: p50 %s, p99 %s", took[len(took)/2], p99)
		if p99 > 2*time.Second {
			t.Errorf("p99 is %s, want 2 s at most", p99)
		}
	})
}

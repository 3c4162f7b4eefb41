// SPDX-License-Identifier: Apache-2.0

package redisusers_test

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	goredis "github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/configstore/configstoretest"
	"github.com/weir-dev/weir/internal/configstore/redis"
	"github.com/weir-dev/weir/internal/fleet"
	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/redisstore"
	"github.com/weir-dev/weir/internal/limiter/strategy"
	"github.com/weir-dev/weir/internal/match"
	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/redistest"
	"github.com/weir-dev/weir/internal/redisusers"
	"github.com/weir-dev/weir/internal/usage"
)

const instance = "test"

func TestTheRightsAreEnoughForAll(t *testing.T) {
	server := redistest.Start(t)
	admin := server.Client(t)
	setUsers(t, admin)
	sidecar, manager := logIn(t, server.URL(), redisusers.Sidecar), logIn(t, server.URL(), redisusers.Manager)

	t.Run("the sidecar counts, with every strategy", func(t *testing.T) { count(t, redisstore.New(sidecar)) })
	t.Run("the manager publishes", func(t *testing.T) {
		configstoretest.TestPublisher(t, func(t *testing.T) configstoretest.Published {
			flush(t, admin)
			return configstoretest.Published{
				Publisher: func() configstore.Publisher { return redis.NewPublisher(manager, instance, logr.Discard()) },
				Flush:     func() { flush(t, admin) },
			}
		})
	})
	t.Run("the sidecar watches what the manager publishes", func(t *testing.T) {
		flush(t, admin)
		watch(t, manager, sidecar)
	})
	t.Run("the sidecar reports, and the manager reads it", func(t *testing.T) { report(t, manager, sidecar) })
	t.Run("the sidecar shares limits with others", func(t *testing.T) { share(t, sidecar) })
	t.Run("the manager learns what is evicted", func(t *testing.T) { learn(t, manager) })
	t.Run("the manager counts pods, and the sidecar reads it", func(t *testing.T) { census(t, manager, sidecar) })
	t.Run("nothing was refused", func(t *testing.T) { wantNothingRefused(t, admin) })
}

func TestTheRightsAreEnoughOnACluster(t *testing.T) {
	cluster := redistest.StartCluster(t)
	admin, err := redisclient.Open(cluster.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Close() })
	each := func(do func(ctx context.Context, node *goredis.Client) error) {
		t.Helper()
		if err := admin.(*goredis.ClusterClient).ForEachMaster(t.Context(), do); err != nil {
			t.Fatal(err)
		}
	}
	each(func(_ context.Context, node *goredis.Client) error {
		setUsers(t, node)
		return nil
	})
	sidecar, manager := logIn(t, cluster.URL(), redisusers.Sidecar), logIn(t, cluster.URL(), redisusers.Manager)
	count(t, redisstore.NewCluster(sidecar.(*goredis.ClusterClient), func() redisstore.Circuit { return closed{} }))
	watch(t, manager, sidecar)
	report(t, manager, sidecar)
	share(t, sidecar)
	learn(t, manager)
	census(t, manager, sidecar)
	each(func(_ context.Context, node *goredis.Client) error {
		wantNothingRefused(t, node)
		return nil
	})
}

// What is run depends on chance and time. What can be run does not.
func TestEveryCommandInAScriptIsARight(t *testing.T) {
	var missing []string
	for _, m := range regexp.MustCompile(`(?:call|pass)\('([A-Z]+)'`).FindAllStringSubmatch(strategy.Script+strategy.Apart, -1) {
		right := "+" + strings.ToLower(m[1])
		if !strings.Contains(strings.Join(redisusers.Rights(redisusers.Sidecar), " ")+" ", right+" ") {
			missing = append(missing, right)
		}
	}
	if diff := cmp.Diff([]string(nil), missing); diff != "" {
		t.Errorf("rights that are missing (-want +got):\n%s", diff)
	}
}

func TestNothingElseIsARight(t *testing.T) {
	server := redistest.StartWith(t, "--enable-debug-command", "yes")
	admin := server.Client(t)
	setUsers(t, admin)
	if err := admin.FunctionLoad(t.Context(), "#!lua name=theirs\nredis.register_function('theirs', function() return 1 end)").Err(); err != nil {
		t.Fatal(err)
	}
	both := []string{
		"GET other", "SET other 1", "GET weir:test:", "DEL weir:test:other",
		"EVAL return(redis.call('GET','other')) 0", "EVAL return(redis.call('SET','other','1')) 0", "EVAL return(redis.call('KEYS','*')) 0",
		"KEYS *", "SCAN 0", "RANDOMKEY", "DBSIZE", "FLUSHALL", "FLUSHDB", "SWAPDB 0 1", "SELECT 1",
		"CONFIG GET *", "CONFIG SET maxmemory 1", "DEBUG OBJECT other", "INFO", "MONITOR", "SHUTDOWN", "SAVE", "BGSAVE",
		"REPLICAOF other 6379", "SLAVEOF other 6379", "MODULE LIST", "LATENCY RESET", "SLOWLOG GET",
		"ACL LIST", "ACL WHOAMI", "ACL SETUSER weir-sidecar allcommands", "ACL DELUSER weir-manager", "ACL LOAD", "ACL LOG",
		"FUNCTION LIST", "FUNCTION FLUSH", "FCALL theirs 0", "SCRIPT FLUSH", "SCRIPT KILL", "SCRIPT LOAD return(1)",
		"CLIENT LIST", "CLIENT KILL TYPE normal", "CLUSTER FAILOVER", "CLUSTER RESET",
		"SUBSCRIBE other", "PSUBSCRIBE *", "PUBLISH other 1",
		"RENAME weir:test:{shop/0}:a other", "COPY weir:test:{shop/0}:a other", "DUMP weir:test:{shop/0}:a", "MIGRATE other 6379 a 0 1",
	}
	for user, refused := range map[string][]string{
		redisusers.Sidecar: append([]string{
			"HSET weir:test:{config}:shop body {}", "DEL weir:test:{config}:shop", "PEXPIRE weir:test:{config}:shop 1",
			"GET weir:test:{config}/epoch", "SET weir:test:{config}/epoch 1",
			"EVAL return(redis.call('HSET','weir:test:{config}:shop','body','')) 0", "EVAL return(redis.call('HSET',KEYS[1],'body','')) 1 weir:test:{config}:shop",
			"PUBLISH weir:test:{config}:shop 9/9", "INCR weir:test:{shop/0}:a", "GETDEL weir:test:{shop/0}:a",
		}, both...),
		redisusers.Manager: append([]string{
			"GET weir:test:{shop/0}:a", "SET weir:test:{shop/0}:a 1", "DEL weir:test:{shop/0}:a", "HGETALL weir:test:{shop/0}:a",
			"EVAL return(redis.call('GET',KEYS[1])) 1 weir:test:{shop/0}:a", "SUBSCRIBE weir:test:{config}:shop",
		}, both...),
	} {
		client := logIn(t, server.URL(), user)
		for _, command := range refused {
			t.Run(user+" "+command, func(t *testing.T) {
				var args []any
				for word := range strings.FieldsSeq(command) {
					args = append(args, word)
				}
				err := client.Do(t.Context(), args...).Err()
				// Redis has other words for what a script may not do.
				if err == nil || !regexp.MustCompile(`^NOPERM|user executing the script can't|ACL failure in script`).MatchString(err.Error()) {
					t.Errorf("got %v, want a refusal", err)
				}
			})
		}
	}
}

func TestTheDocsTellTheRights(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(plane.Root, "docs", "operating.md"))
	if err != nil {
		t.Fatal(err)
	}
	told := strings.Join(strings.Fields(string(text)), " ")
	for _, user := range []string{redisusers.Manager, redisusers.Sidecar} {
		if want := "ACL SETUSER " + user + " reset on >PASSWORD " + strings.Join(redisusers.Rights(user), " ") + " "; !strings.Contains(told, want) {
			t.Errorf("docs/operating.md lacks: %s", want)
		}
	}
}

// setUsers makes both users, with their names for passwords.
func setUsers(t *testing.T, admin *goredis.Client) {
	t.Helper()
	for _, user := range []string{redisusers.Manager, redisusers.Sidecar} {
		rules := append([]string{"reset", "on", ">" + user}, redisusers.Rights(user)...)
		if err := admin.ACLSetUser(t.Context(), user, rules...).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

func logIn(t *testing.T, url, user string) goredis.UniversalClient {
	t.Helper()
	as := func(context.Context) (string, string, error) { return user, user, nil }
	c, err := redisclient.Open(url, redisclient.LogIn(as))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func flush(t *testing.T, admin *goredis.Client) {
	t.Helper()
	if err := admin.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
}

func wantNothingRefused(t *testing.T, admin *goredis.Client) {
	t.Helper()
	refused, err := admin.ACLLog(t.Context(), 10).Result()
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range refused {
		t.Errorf("%s was refused: %s of %s, %s", r.Username, r.Reason, r.Object, r.Context)
	}
}

// closed is a circuit that never opens.
type closed struct{}

func (closed) Do(ctx context.Context, call func(context.Context) error) error { return call(ctx) }

// count takes, refunds and renews, with windows so short that counters come and go.
func count(t *testing.T, store limiter.Store) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	for _, a := range strategy.Names() {
		l := limiter.Limit{Algorithm: a, Requests: 3, Window: 10 * time.Millisecond, Burst: 3, MaxDelay: 10 * time.Millisecond}
		if a == limiter.CalendarWindow {
			l.Window, l.Calendar = 0, limiter.Calendar{Unit: limiter.Day, TimeZone: "Europe/Berlin"}
		}
		for range 100 {
			hits := []limiter.Hit{hitOf(l, "a", 1+rng.Int64N(2))}
			if rng.IntN(2) == 0 {
				hits = append(hits, hitOf(l, "b", 1)) // Two are decided by another script than one.
			}
			verdicts, err := store.Take(t.Context(), hits)
			if err != nil {
				t.Fatalf("%s: taking: %v", a, err)
			}
			var charges []limiter.Charge
			for i, v := range verdicts {
				if v.Allowed && rng.IntN(2) == 0 {
					charges = append(charges, limiter.Charge{Hit: hits[i], Receipt: v.Receipt})
				}
			}
			if err := store.Refund(t.Context(), charges); err != nil {
				t.Fatalf("%s: refunding: %v", a, err)
			}
			if err := store.Renew(t.Context(), strategy.Renewable(charges)); err != nil {
				t.Fatalf("%s: renewing: %v", a, err)
			}
		}
	}
}

// learn demands that the manager learns what Redis throws away.
func learn(t *testing.T, manager goredis.UniversalClient) {
	t.Helper()
	if policy, err := redisclient.EvictionPolicy(t.Context(), manager); err != nil || policy != redisclient.NoEviction {
		t.Errorf("the policy is %q, %v", policy, err)
	}
}

func hitOf(l limiter.Limit, key string, cost int64) limiter.Hit {
	id := limiter.LimitID{Namespace: "shop", Policy: "p", Limit: key}
	return limiter.Hit{Key: "weir:test:{shop/0}:" + string(l.Algorithm) + key, Limit: l, Cost: cost, ID: id}
}

// watch publishes twice and demands to be told of it.
func watch(t *testing.T, manager, sidecar goredis.UniversalClient) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	applied := make(chan configstore.Snapshot, 100)
	var watching sync.WaitGroup
	watching.Go(func() {
		apply := func(s configstore.Snapshot) { applied <- s }
		if err := redis.NewWatcher(sidecar, instance, "shop", logr.Discard()).Watch(ctx, apply); err != nil {
			t.Errorf("watching: %v", err)
		}
	})
	defer watching.Wait()
	defer cancel()
	p := redis.NewPublisher(manager, instance, logr.Discard())
	epoch, err := p.Claim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for n := range int64(2) {
		want := configstore.Snapshot{Namespace: "shop", Revision: configstore.Revision{Epoch: epoch, Number: n + 1}}
		want.Policies = []configstore.Policy{{Policy: match.Policy{Namespace: "shop", Name: "a"}, Since: want.Revision}}
		if err := p.Publish(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-applied:
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("applied (-want +got):\n%s", diff)
			}
		case <-time.After(patience):
			t.Fatal("nothing came")
		}
	}
}

// report reports once, and demands that the manager reads it, and that it is gone when the sidecar is.
func report(t *testing.T, manager, sidecar goredis.UniversalClient) {
	t.Helper()
	want := usage.Report{Enforcer: usage.Enforcer{Pod: "checkout-1", UID: "1", Nonce: "1"}}
	ctx, cancel := context.WithCancel(t.Context())
	var reporting sync.WaitGroup
	reporting.Go(func() {
		r := usage.NewReporter(sidecar, instance, "shop", func(time.Time) usage.Report { return want }, logr.Discard())
		if err := r.Run(ctx); err != nil {
			t.Errorf("reporting: %v", err)
		}
	})
	defer reporting.Wait()
	defer cancel()
	reader := usage.NewReader(manager, instance)
	if err := reader.Check(ctx); err != nil {
		t.Error(err)
	}
	awaitReports := func(n int) []usage.Observed {
		t.Helper()
		for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
			reports, err := reader.Read(t.Context(), "shop")
			if err != nil {
				t.Fatal(err)
			}
			if len(reports["shop"]) == n {
				return reports["shop"]
			}
			if time.Now().After(end) {
				t.Fatalf("got %d reports, want %d", len(reports["shop"]), n)
			}
		}
	}
	if diff := cmp.Diff(want, awaitReports(1)[0].Report); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
	cancel()
	awaitReports(0)
}

// share has two replicas tell of themselves, and leave.
func share(t *testing.T, sidecar goredis.UniversalClient) {
	t.Helper()
	hit := limiter.Hit{ID: limiter.LimitID{Namespace: "shop", Policy: "checkout", Limit: "all"}, Target: "Service/checkout"}
	ctx, cancel := context.WithCancel(t.Context())
	var sharing sync.WaitGroup
	defer sharing.Wait()
	defer cancel()
	var members []*fleet.Member
	for _, name := range []string{"a", "b"} {
		m := fleet.New(sidecar, instance, name, fleet.Options{})
		m.Keep([]fleet.Pool{fleet.PoolOf(&hit)})
		sharing.Go(func() {
			if err := m.Run(ctx); err != nil {
				t.Errorf("sharing: %v", err)
			}
		})
		members = append(members, m)
	}
	for end := time.Now().Add(patience); members[0].Replicas(&hit) != 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it knows %d replicas, not 2", members[0].Replicas(&hit))
		}
	}
}

// census has a manager write how many pods there are, and a sidecar read it.
func census(t *testing.T, manager, sidecar goredis.UniversalClient) {
	t.Helper()
	group := fleet.Group{Namespace: "shop", Policy: "checkout", Target: "Service/checkout"}
	if err := fleet.NewCensus(manager, instance).Write(t.Context(), "shop", map[fleet.Group]int{group: 3}); err != nil {
		t.Fatal(err)
	}
	if n, err := fleet.NewCensus(sidecar, instance).Read(t.Context(), group); n != 3 || err != nil {
		t.Errorf("read %d: %v", n, err)
	}
}

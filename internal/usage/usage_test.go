// SPDX-License-Identifier: Apache-2.0

package usage_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/redistest"
	"github.com/weir-dev/weir/internal/usage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	instance = "test"
	key      = "weir:test:{report/shop}"
	patience = 20 * time.Second
)

// report of one enforcer.
func report(pod string) usage.Report {
	return usage.Report{
		Enforcer: usage.Enforcer{Pod: pod, UID: "uid-" + pod, Nonce: "1", Labels: map[string]string{"app": "checkout"}},
		Revision: configstore.Revision{Epoch: 1795445799075, Number: 42},
		Degraded: true,
		Reason:   "oom",
		Limits: []usage.Limit{
			{Namespace: "shop", Policy: "p", Limit: "a", Counts: usage.Counts{Allowed: 1, Denied: 2, ShadowDenied: 3, FailedOpen: 4, FailedClosed: 5, LocalAllowed: 6, LocalDenied: 7, Overflowed: 8}},
			{Namespace: "shop", Policy: "p", Limit: "b", Counts: usage.Counts{Denied: 1}},
		},
	}
}

// run runs a reporter until the test ends, or the function it gives is called.
func run(t *testing.T, client redis.UniversalClient, r usage.Report, log logr.Logger) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	reporter := usage.NewReporter(client, instance, "shop", func(time.Time) usage.Report { return r }, log)
	var running sync.WaitGroup
	running.Go(func() {
		if err := reporter.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// await reads until as many report as should.
func await(t *testing.T, reader *usage.Reader, enforcers int) map[string][]usage.Observed {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		reports, err := reader.Read(ctx, "shop", "other")
		if err != nil {
			t.Fatal(err)
		}
		if len(reports["shop"]) == enforcers {
			return reports
		}
	}
}

func TestReports(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t)
	client := server.Client(t)
	reader := usage.NewReader(client, instance)
	ageless := cmpopts.IgnoreFields(usage.Observed{}, "Age")
	open := func(t *testing.T) {
		t.Helper()
		if err := client.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("what enforcers report is read, whole", func(t *testing.T) {
		open(t)
		run(t, client, report("two"), testr.New(t))
		run(t, client, report("one"), testr.New(t))
		got := await(t, reader, 2)
		want := map[string][]usage.Observed{"shop": {{Report: report("one")}, {Report: report("two")}}}
		if diff := cmp.Diff(want, got, ageless); diff != "" {
			t.Errorf("reports (-want +got):\n%s", diff)
		}
		for _, o := range got["shop"] {
			if o.Age < 0 || o.Age > patience {
				t.Errorf("the report of %s is %s old", o.Pod, o.Age)
			}
		}
	})

	t.Run("nobody's namespace is absent, and no namespaces are no trouble", func(t *testing.T) {
		open(t)
		for _, namespaces := range [][]string{{"shop", "other"}, nil} {
			got, err := reader.Read(t.Context(), namespaces...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(map[string][]usage.Observed{}, got); diff != "" {
				t.Errorf("reports (-want +got):\n%s", diff)
			}
		}
	})

	t.Run("an enforcer that ends leaves nothing", func(t *testing.T) {
		open(t)
		stop := run(t, client, report("one"), testr.New(t))
		run(t, client, report("two"), testr.New(t))
		await(t, reader, 2)
		stop()
		got := await(t, reader, 1)
		want := map[string][]usage.Observed{"shop": {{Report: report("two")}}}
		if diff := cmp.Diff(want, got, ageless); diff != "" {
			t.Errorf("reports (-want +got):\n%s", diff)
		}
	})

	t.Run("an enforcer is forgotten after five minutes of silence", func(t *testing.T) {
		open(t)
		now := time.Now().UnixMilli()
		leave := func(pod string, at int64) {
			body := fmt.Sprintf(`%d {"pod":%q,"nonce":"1"}`, at, pod)
			if err := client.HSet(t.Context(), key, pod, body).Err(); err != nil {
				t.Fatal(err)
			}
		}
		leave("silent for four minutes", now-4*60_000)
		leave("silent for six minutes", now-6*60_000)
		leave("six minutes ahead", now+6*60_000)
		got := await(t, reader, 1)
		want := map[string][]usage.Observed{"shop": {{Report: usage.Report{Enforcer: usage.Enforcer{Pod: "silent for four minutes", Nonce: "1"}}}}}
		if diff := cmp.Diff(want, got, ageless); diff != "" {
			t.Errorf("reports (-want +got):\n%s", diff)
		}
		if age := got["shop"][0].Age; age < 4*time.Minute || age > 5*time.Minute {
			t.Errorf("the report is %s old, want 4 minutes", age)
		}
		if diff := cmp.Diff([]string{"silent for four minutes"}, client.HKeys(t.Context(), key).Val()); diff != "" {
			t.Errorf("stored (-want +got):\n%s", diff)
		}
	})

	t.Run("garbage is left out, and what bears no time is removed", func(t *testing.T) {
		open(t)
		now := time.Now().UnixMilli()
		if err := client.HSet(t.Context(), key, "no time", "{}", "no report", fmt.Sprint(now, " {")).Err(); err != nil {
			t.Fatal(err)
		}
		await(t, reader, 0)
		if diff := cmp.Diff([]string{"no report"}, client.HKeys(t.Context(), key).Val()); diff != "" {
			t.Errorf("stored (-want +got):\n%s", diff)
		}
	})

	t.Run("a namespace that everybody left expires", func(t *testing.T) {
		open(t)
		run(t, client, report("one"), testr.New(t))
		await(t, reader, 1)
		if ttl := client.PTTL(t.Context(), key).Val(); ttl <= usage.Window || ttl > 2*usage.Window {
			t.Errorf("the key lives for %s, want 10 minutes", ttl)
		}
	})

	t.Run("reports are back after a flush", func(t *testing.T) {
		open(t)
		run(t, client, report("one"), testr.New(t))
		await(t, reader, 1)
		open(t)
		start := time.Now()
		await(t, reader, 1)
		t.Logf("they were back after %s", time.Since(start))
	})
}

func TestCluster(t *testing.T) {
	t.Run("reports of namespaces in different slots are read together", func(t *testing.T) {
		client, err := redisclient.Open(redistest.StartCluster(t).URL())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = client.Close() }()
		stop := run(t, client, report("one"), testr.New(t))
		reader := usage.NewReader(client, instance)
		await(t, reader, 1)
		if _, err := reader.Read(t.Context(), "a", "b", "c", "d", "e", "shop"); err != nil {
			t.Error(err)
		}
		stop()
		await(t, reader, 0)
	})
}

func TestOutage(t *testing.T) {
	t.Parallel()
	t.Run("an outage is told of once, and its end", func(t *testing.T) {
		server := redistest.Start(t)
		client := server.Client(t)
		lines := make(chan string, 100)
		server.Kill()
		run(t, client, report("one"), funcr.New(func(_, args string) { lines <- args }, funcr.Options{}))
		want(t, lines, "usage reports do not reach the store")
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
		want(t, lines, "usage reports reach the store again")
		await(t, usage.NewReader(client, instance), 1)
	})
}

// want demands that the next line has this message.
func want(t *testing.T, lines <-chan string, message string) {
	t.Helper()
	select {
	case line := <-lines:
		if !strings.Contains(line, fmt.Sprintf(`"msg"=%q`, message)) {
			t.Errorf("logged %s, want %q", line, message)
		}
	case <-time.After(patience):
		t.Fatalf("nothing was logged, want %q", message)
	}
}

func TestTotals(t *testing.T) {
	t.Run("all reports of one limit are added up", func(t *testing.T) {
		reports := []usage.Observed{{Report: report("one")}, {Report: report("two")}, {}}
		id := limiter.LimitID{Namespace: "shop", Policy: "p", Limit: "a"}
		want := usage.Counts{Allowed: 2, Denied: 4, ShadowDenied: 6, FailedOpen: 8, FailedClosed: 10, LocalAllowed: 12, LocalDenied: 14, Overflowed: 16}
		if diff := cmp.Diff(want, usage.Totals(reports)[id]); diff != "" {
			t.Errorf("total (-want +got):\n%s", diff)
		}
	})
}

func TestRounded(t *testing.T) {
	for n, want := range map[int64]int64{
		0: 0, 1: 1, 99: 99, 100: 100, 104: 100, 105: 110, 999: 1000, 1249: 1200, 1250: 1300, 18432: 18000, 99499: 99000, 99500: 100000,
	} {
		got := usage.Counts{Allowed: n, Denied: n, ShadowDenied: n, FailedOpen: n, FailedClosed: n}.Rounded()
		if diff := cmp.Diff(usage.Counts{Allowed: want, Denied: want, ShadowDenied: want, FailedOpen: want, FailedClosed: want}, got); diff != "" {
			t.Errorf("%d rounded (-want +got):\n%s", n, diff)
		}
	}
}

func TestCheck(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client(t)
	reader := usage.NewReader(client, instance)
	t.Run("a store that takes reports is well", func(t *testing.T) {
		if err := reader.Check(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("so it is to a user who may write the keys of reports and no others", func(t *testing.T) {
		if err := client.Do(t.Context(), "ACL", "SETUSER", "reader", "on", "nopass", "~weir:*:{report/*}", "+set").Err(); err != nil {
			t.Fatal(err)
		}
		limited, err := redisclient.Open("redis://reader:any@" + server.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = limited.Close() }()
		if err := usage.NewReader(limited, instance).Check(t.Context()); err != nil {
			t.Error(err)
		}
	})
	t.Run("one that is full says so", func(t *testing.T) {
		if err := client.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
			t.Fatal(err)
		}
		if got := redisclient.Reason(reader.Check(t.Context())); got != redisclient.Full {
			t.Errorf("the reason is %q", got)
		}
	})
}

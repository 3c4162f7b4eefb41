// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/weir-dev/weir/internal/configstore"
	redisconfig "github.com/weir-dev/weir/internal/configstore/redis"
	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/match"
	"github.com/weir-dev/weir/internal/redistest"
	"github.com/weir-dev/weir/internal/usage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come. It is only ever used up by a failing test.
const patience = 20 * time.Second

// running is a sidecar that runs, in front of an application of its own.
type running struct {
	// url and admin are where it listens.
	url, admin string
	// application is the number of the application's port.
	application int32
	client      *http.Client
	// stop is what SIGTERM does.
	stop  context.CancelFunc
	ended chan error
	log   *journal
}

// launch runs a sidecar in front of app, until the test ends.
func launch(t *testing.T, app http.Handler, args ...string) *running {
	t.Helper()
	upstream := httptest.NewServer(app)
	t.Cleanup(upstream.Close)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)

	ctx, stop := context.WithCancel(t.Context())
	log := &journal{out: t.Output(), addresses: make(chan address, 2)}
	application := upstream.Listener.Addr().(*net.TCPAddr).Port
	r := &running{application: int32(application), client: &http.Client{Transport: transport}, stop: stop, ended: make(chan error, 1), log: log}
	args = append([]string{"--listen", "127.0.0.1:0", "--upstream", upstream.URL, "--admin-listen", "127.0.0.1:0", "--drain-delay", "0s"}, args...)
	go func() { r.ended <- run(ctx, args, t.Output(), log) }()
	for range 2 {
		select {
		case a := <-log.addresses:
			if a.Listener == "admin" {
				r.admin = "http://" + a.Address
			} else {
				r.url = "http://" + a.Address
			}
		case err := <-r.ended:
			t.Fatalf("the sidecar ended: %v", err)
		}
	}
	t.Cleanup(func() { stop(); r.end(t) })
	return r
}

// end waits for the end of a sidecar that was stopped.
func (r *running) end(t *testing.T) {
	t.Helper()
	select {
	case err, first := <-r.ended:
		if err != nil {
			t.Errorf("the sidecar ended with %v", err)
		}
		if first {
			close(r.ended)
		}
	case <-time.After(patience):
		t.Fatal("the sidecar does not end")
	}
}

// address is a log line about a listener.
type address struct{ Msg, Listener, Address string }

// journal is a log that is read along.
type journal struct {
	mu        sync.Mutex
	out       io.Writer
	addresses chan address
	lines     []string
}

func (j *journal) Write(line []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var a address
	if err := json.Unmarshal(bytes.TrimSpace(line), &a); err == nil && a.Msg == "listening" {
		j.addresses <- a
	}
	j.lines = append(j.lines, string(line))
	return j.out.Write(line)
}

// all gives what has been logged.
func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.lines)
}

// answer is the part of a response that tests look at.
type answer struct {
	Status int
	Body   string
}

func (r *running) get(t *testing.T, url string) answer {
	t.Helper()
	a, err := r.ask(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (r *running) ask(ctx context.Context, url string) (answer, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return answer{}, err
	}
	res, err := r.client.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	return answer{Status: res.StatusCode, Body: string(body)}, err
}

// statuses sends n requests.
func (r *running) statuses(t *testing.T, n int) []int {
	t.Helper()
	var got []int
	for range n {
		got = append(got, r.get(t, r.url).Status)
	}
	return got
}

// eventually waits until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if holds() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("it does not come about that %s", what)
}

var hello = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })

// write writes a policy that admits so many requests, and then hardly any more.
func write(t *testing.T, path string, requests int) {
	t.Helper()
	content := fmt.Sprintf(`apiVersion: ratelimit.weir.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: checkout-api}
spec:
  selector: {}
  limits:
  - name: total
    strategy: {tokenBucket: {requests: %d, window: 1000h}}
`, requests)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func repeat(status, n int) []int { return slices.Repeat([]int{status}, n) }

func TestAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policies.yaml")
	write(t, path, 5)
	s := launch(t, hello, "--policies", path)

	t.Run("it is ready at once", func(t *testing.T) {
		eventually(t, "the sidecar is ready", func() bool { return s.get(t, s.admin+"/readyz").Status == http.StatusOK })
		if diff := cmp.Diff(answer{Status: http.StatusOK}, s.get(t, s.admin+"/healthz")); diff != "" {
			t.Errorf("/healthz (-want +got):\n%s", diff)
		}
	})

	t.Run("it admits exactly what the policy says", func(t *testing.T) {
		want := slices.Concat(repeat(http.StatusOK, 5), repeat(http.StatusTooManyRequests, 3))
		if diff := cmp.Diff(want, s.statuses(t, 8)); diff != "" {
			t.Errorf("statuses (-want +got):\n%s", diff)
		}
	})

	t.Run("it counts what it did", func(t *testing.T) {
		metrics := s.get(t, s.admin+"/metrics").Body
		for _, line := range []string{
			`weir_decisions_total{limit="total",namespace="default",outcome="allowed",policy="checkout-api"} 5`,
			`weir_decisions_total{limit="total",namespace="default",outcome="denied",policy="checkout-api"} 3`,
			`weir_decision_duration_seconds_count{path="proxy"} 8`,
			`weir_snapshot_revision{namespace=""} 1`,
			`weir_store_errors_total{reason="unreachable"} 0`,
		} {
			if !strings.Contains(metrics, line+"\n") {
				t.Errorf("metrics lack %s", line)
			}
		}
	})

	t.Run("it tells what it enforces", func(t *testing.T) {
		var got enforced
		if err := json.Unmarshal([]byte(s.get(t, s.admin+"/debug/snapshot").Body), &got); err != nil {
			t.Fatal(err)
		}
		got.Revision.Epoch = 0 // A time.
		want := enforced{
			Revision: configstore.Revision{Number: 1},
			Policies: []match.Policy{{
				Namespace: "default",
				Name:      "checkout-api",
				Targets:   []match.Target{{ID: "Selector"}},
				Limits: []match.Limit{{
					Name:      "total",
					Limit:     limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 5, Window: 1000 * time.Hour, Burst: 5},
					OnFailure: limiter.FailOpen,
				}},
				Response: match.Response{StatusCode: 429, Headers: []string{"Draft11"}, Body: "Problem"},
			}},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("snapshot (-want +got):\n%s", diff)
		}
	})

	t.Run("an edit of the file counts while it runs", func(t *testing.T) {
		write(t, path, 1000)
		eventually(t, "the new limit admits", func() bool {
			return strings.Contains(s.get(t, s.admin+"/debug/snapshot").Body, `"requests": 1000`)
		})
	})
}

func TestLogLinesHaveNoEmptyFields(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policies.yaml")
	write(t, path, 5)
	s := launch(t, hello, "--policies", path)
	eventually(t, "the policies are enforced", func() bool { return s.get(t, s.admin+"/debug/snapshot").Status == http.StatusOK })
	s.stop()
	s.end(t)
	for _, line := range s.log.all() {
		if strings.Contains(line, `:""`) {
			t.Errorf("logged %s", line)
		}
	}
}

func TestPoliciesThatAreWrongAreToldAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policies.yaml")
	write(t, path, 0)
	err := run(t.Context(), []string{"--listen", "127.0.0.1:0", "--upstream", "http://127.0.0.1:1", "--policies", path}, t.Output(), t.Output())
	if err == nil || !strings.Contains(err.Error(), "requests") {
		t.Errorf("run returned %v", err)
	}
}

// shop are the flags of a sidecar in namespace shop.
func shop(t *testing.T, redis string) []string {
	t.Helper()
	labels := filepath.Join(t.TempDir(), "labels")
	if err := os.WriteFile(labels, []byte("app=\"checkout\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"--namespace", "shop", "--pod-labels-file", labels, "--redis", redis, "--instance", "test", "--decision-timeout", "10s"}
}

// published is a snapshot with one policy for the sidecar, and one for others.
func published(epoch int64) configstore.Snapshot {
	policy := func(name, app string) configstore.Policy {
		return configstore.Policy{Policy: match.Policy{
			Namespace: "shop",
			Name:      name,
			Targets:   []match.Target{{ID: "Service/" + app, Pods: match.Selector{MatchLabels: map[string]string{"app": app}}}},
			Limits: []match.Limit{{
				Name:      "total",
				Limit:     limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 5, Window: 1000 * time.Hour, Burst: 5},
				OnFailure: limiter.FailOpen,
			}},
			Response: match.Response{StatusCode: 429, Body: "None"},
		}}
	}
	return configstore.Snapshot{
		Namespace: "shop",
		Revision:  configstore.Revision{Epoch: epoch, Number: 7},
		Policies:  []configstore.Policy{policy("cart-api", "cart"), policy("checkout-api", "checkout")},
	}
}

func TestInACluster(t *testing.T) {
	server := redistest.Start(t)
	publisher := redisconfig.NewPublisher(server.Client(t), "test", testr.New(t))
	epoch, err := publisher.Claim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	t.Setenv("POD_NAME", "checkout-0")
	t.Setenv("POD_UID", "uid-0")
	s := launch(t, hello, append(shop(t, server.URL()), "--state-dir", state)...)
	if err := publisher.Publish(t.Context(), published(epoch)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the snapshot arrives", func() bool { return s.get(t, s.admin+"/debug/snapshot").Status == http.StatusOK })

	t.Run("the limits that select the pod count in Redis", func(t *testing.T) {
		want := slices.Concat(repeat(http.StatusOK, 5), repeat(http.StatusTooManyRequests, 2))
		if diff := cmp.Diff(want, s.statuses(t, 7)); diff != "" {
			t.Errorf("statuses (-want +got):\n%s", diff)
		}
	})

	reader := usage.NewReader(server.Client(t), "test")
	reports := func(t *testing.T) []usage.Observed {
		observed, err := reader.Read(t.Context(), "shop")
		if err != nil {
			t.Fatal(err)
		}
		return observed["shop"]
	}

	t.Run("it reports", func(t *testing.T) {
		want := usage.Report{
			Enforcer: usage.Enforcer{Pod: "checkout-0", UID: "uid-0", Labels: map[string]string{"app": "checkout"}},
			Revision: configstore.Revision{Epoch: epoch, Number: 7},
			Ports:    map[string]int32{"": s.application},
			Limits:   []usage.Limit{{Namespace: "shop", Policy: "checkout-api", Limit: "total", Counts: usage.Counts{Allowed: 5, Denied: 2}}},
		}
		var diff string
		eventually(t, "the report is as it should be", func() bool {
			observed := reports(t)
			if len(observed) != 1 {
				return false
			}
			got := observed[0].Report
			got.Nonce = ""
			diff = cmp.Diff(want, got)
			return diff == ""
		})
	})

	t.Run("it takes leave when it ends", func(t *testing.T) {
		s.stop()
		s.end(t)
		if left := reports(t); len(left) > 0 {
			t.Errorf("reports are left: %v", left)
		}
	})

	t.Run("started again without Redis it still knows its limits, and admits", func(t *testing.T) {
		server.Kill()
		s := launch(t, hello, append(shop(t, server.URL()), "--state-dir", state)...)
		eventually(t, "the sidecar is ready", func() bool { return s.get(t, s.admin+"/readyz").Status == http.StatusOK })
		if diff := cmp.Diff(repeat(http.StatusOK, 2), s.statuses(t, 2)); diff != "" {
			t.Errorf("statuses (-want +got):\n%s", diff)
		}
		metrics := s.get(t, s.admin+"/metrics").Body
		for _, line := range []string{
			`weir_decisions_total{limit="total",namespace="shop",outcome="failed_open",policy="checkout-api"} 2`,
			`weir_store_errors_total{reason="unreachable"} 2`,
			`weir_snapshot_revision{namespace="shop"} 7`,
		} {
			if !strings.Contains(metrics, line+"\n") {
				t.Errorf("metrics lack %s", line)
			}
		}
	})
}

func TestWhatRedisRefusedStaysRefusedWithoutIt(t *testing.T) {
	server := redistest.Start(t)
	path := filepath.Join(t.TempDir(), "policies.yaml")
	write(t, path, 1)
	s := launch(t, hello, "--policies", path, "--redis", server.URL(), "--decision-timeout", "10s")
	want := []int{http.StatusOK, http.StatusTooManyRequests, http.StatusTooManyRequests}
	if diff := cmp.Diff(want, s.statuses(t, 3)); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
	server.Kill()
	if diff := cmp.Diff(repeat(http.StatusTooManyRequests, 3), s.statuses(t, 3)); diff != "" {
		t.Errorf("statuses without Redis (-want +got):\n%s", diff)
	}
}

// nowhere is the URL of a Redis that isn't there.
func nowhere(t *testing.T) string {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return "redis://" + ln.Addr().String()
}

func TestWithoutRedisFromTheStart(t *testing.T) {
	for mode, status := range map[bootstrapMode]int{bootstrapOpen: http.StatusOK, bootstrapClosed: http.StatusServiceUnavailable} {
		t.Run(fmt.Sprintf("mode %s applies, and the sidecar is ready all the same", mode), func(t *testing.T) {
			t.Parallel()
			s := launch(t, hello, append(shop(t, nowhere(t)), "--bootstrap-mode", string(mode))...)
			if diff := cmp.Diff(status, s.get(t, s.url).Status); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(answer{http.StatusNotFound, "no policies are known yet\n"}, s.get(t, s.admin+"/debug/snapshot")); diff != "" {
				t.Errorf("/debug/snapshot (-want +got):\n%s", diff)
			}
			eventually(t, "the sidecar is ready", func() bool { return s.get(t, s.admin+"/readyz").Status == http.StatusOK })
		})
	}
}

func TestReadiness(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	matcher := match.New(nil, match.Options{})
	tests := []struct {
		name  string
		after time.Duration
		live  func(*state)
		want  string
	}{
		{"not without policies", bootstrapWait - 1, func(*state) {}, "waiting for policies"},
		{"without policies after two seconds", bootstrapWait, func(*state) {}, "<nil>"},
		{"with policies at once", 0, func(s *state) { s.enforce(configstore.Snapshot{}, matcher) }, "<nil>"},
		{"not while draining", time.Hour, func(s *state) { s.enforce(configstore.Snapshot{}, matcher); s.draining.Store(true) }, "draining"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newState(start)
			tt.live(s)
			if diff := cmp.Diff(tt.want, fmt.Sprint(s.unready(start.Add(tt.after)))); diff != "" {
				t.Errorf("unready (-want +got):\n%s", diff)
			}
		})
	}
}

func TestProbesTellAStrangerNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policies.yaml")
	if err := os.WriteFile(path, []byte("# none yet\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := parse([]string{
		"--listen", ":0", "--upstream", "http://127.0.0.1:1", "--policies", path, "--probe-listen", "127.0.0.1:0",
		"--app-probe", `/probes/app/liveness={"tcpSocket":{"port":1}}`,
	}, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSidecar(o, testr.New(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	own, err := s.openOwn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got [][]int
	for _, e := range own {
		t.Cleanup(func() { _ = e.Close() })
		var codes []int
		for _, path := range []string{"/healthz", "/readyz", "/metrics", "/debug/snapshot", "/probes/app/liveness", "/probes/app/readiness"} {
			w := httptest.NewRecorder()
			e.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
			codes = append(codes, w.Code)
		}
		got = append(got, codes)
	}
	want := [][]int{
		{http.StatusOK, http.StatusServiceUnavailable, http.StatusOK, http.StatusNotFound, http.StatusNotFound, http.StatusNotFound}, // admin, before there are policies
		{http.StatusOK, http.StatusServiceUnavailable, http.StatusNotFound, http.StatusNotFound, http.StatusServiceUnavailable, http.StatusNotFound},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status of each endpoint (-want +got):\n%s", diff)
	}
}

func TestLeaving(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policies.yaml")
	write(t, path, 1000)
	s := launch(t, hello, "--policies", path)
	eventually(t, "the sidecar is ready", func() bool { return s.get(t, s.admin+"/readyz").Status == http.StatusOK })
	closes := func() bool {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := s.client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		return res.Close
	}
	if closes() {
		t.Error("it lets clients go too soon")
	}
	if err := run(t.Context(), []string{"leave", "--admin-listen", strings.TrimPrefix(s.admin, "http://")}, t.Output(), t.Output()); err != nil {
		t.Error(err)
	}
	if !closes() {
		t.Error("it lets no client go")
	}
	if diff := cmp.Diff(answer{Status: http.StatusOK}, s.get(t, s.admin+"/readyz")); diff != "" {
		t.Errorf("readiness (-want +got):\n%s", diff)
	}
	s.stop()
	s.end(t)
	t.Run("where no sidecar runs there is an error", func(t *testing.T) {
		err := run(t.Context(), []string{"leave", "--admin-listen", strings.TrimPrefix(s.admin, "http://")}, t.Output(), t.Output())
		if err == nil || !strings.HasPrefix(err.Error(), "telling the sidecar: ") {
			t.Errorf("got %v", err)
		}
	})
}

func TestDraining(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policies.yaml")
	write(t, path, 1000)
	arrived, finish := make(chan struct{}), make(chan struct{})
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(arrived)
			<-finish
		}
		_, _ = io.WriteString(w, "hello")
	})
	s := launch(t, app, "--policies", path, "--drain-delay", "2s")
	slow := make(chan answer, 1)
	go func() {
		a, err := s.ask(t.Context(), s.url+"/slow")
		if err != nil {
			t.Error(err)
		}
		slow <- a
	}()
	<-arrived

	s.stop()
	eventually(t, "the sidecar is not ready", func() bool {
		return s.get(t, s.admin+"/readyz") == answer{http.StatusServiceUnavailable, "draining\n"}
	})
	if diff := cmp.Diff(answer{http.StatusOK, "hello"}, s.get(t, s.url)); diff != "" {
		t.Errorf("a request of someone who hasn't noticed yet (-want +got):\n%s", diff)
	}
	eventually(t, "the door closes", func() bool {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", strings.TrimPrefix(s.url, "http://"))
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	close(finish)
	if diff := cmp.Diff(answer{http.StatusOK, "hello"}, <-slow); diff != "" {
		t.Errorf("the request in flight (-want +got):\n%s", diff)
	}
	s.end(t)
	log := s.log.all()
	if last := log[len(log)-1]; !strings.Contains(last, `"msg":"stopped","drained":`) {
		t.Errorf("the last words are %s", last)
	}
}

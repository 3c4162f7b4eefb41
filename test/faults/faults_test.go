// SPDX-License-Identifier: Apache-2.0

// Package faults breaks the store under live traffic, and says what was expected and what was measured. Its tests have
// the names that the catalog of faults gives them.
package faults

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/redistest"
	"github.com/weir-dev/weir/test/playground"
)

const (
	// replicas of the application, each with a sidecar.
	replicas = 2
	// places is how many connections for counting a sidecar has at most.
	places = 8
	// patience is for what has no stated bound.
	patience = time.Minute
	// budget is what a decision may take, where a test isn't about that: more than a busy machine needs.
	budget = 5 * time.Second
)

// binaries is the folder of the sidecar.
var binaries string

// builtIn names that folder to the tests once they run in a network of their own.
const builtIn = "WEIR_FAULTS_BINARIES"

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if binaries = os.Getenv(builtIn); binaries != "" {
		if err := program("", "ip", "link", "set", "lo", "up"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "weir-faults-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := program("", "go", "build", "-o", filepath.Join(dir, "weir-sidecar"), "../../cmd/sidecar"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return again(dir)
}

// again runs the tests in a network of their own, so that what they do to it is felt by nobody else. That takes root.
func again(dir string) int {
	path, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.CommandContext(context.Background(), path, os.Args[1:]...) //nolint:forbidigo // No test runs yet.
	cmd.Env = append(os.Environ(), builtIn+"="+dir)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, "making a network for the tests:", err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

// program runs a program to its end, with an input.
func program(input, name string, args ...string) error {
	cmd := exec.CommandContext(context.Background(), name, args...) //nolint:forbidigo // It is run before the tests too, and after them.
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("running %s: %w: %s", name, err, out)
	}
	return nil
}

// limit is what each policy of a test admits, once and for all: what comes back in a year is less than one.
const limit = 200

// policies are one for each failure mode, each for a path of its own. Whatever is sent to /free has no limit.
var policies = policyOf("open", "onStoreFailure: {mode: Open}") +
	policyOf("closed", "onStoreFailure: {mode: Closed}") +
	policyOf("local", "onStoreFailure: {mode: Local}") +
	policyOf("alone", "distribution: {mode: PerReplica}") +
	keyed

// keyed is a policy of a limit with a counter for each client, so that its counters are in many slots.
const keyed = `---
apiVersion: ratelimit.weir.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: keyed}
spec:
  selector: {}
  onStoreFailure: {mode: Closed}
  limits:
  - name: each
    when: [{paths: [{type: Prefix, value: /keyed}]}]
    key: [{header: {name: x-api-key}}]
    strategy: {tokenBucket: {requests: 1000000, window: 8784h}}
`

func policyOf(name, mode string) string {
	return fmt.Sprintf(`---
apiVersion: ratelimit.weir.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: %[1]s}
spec:
  selector: {}
  %[2]s
  limits:
  - name: all
    when: [{paths: [{type: Prefix, value: /%[1]s}]}]
    strategy: {tokenBucket: {requests: 1, window: 8784h, burst: %[3]d}}
  - name: each
    when: [{paths: [{type: Prefix, value: /many/%[1]s}]}]
    strategy: {tokenBucket: {requests: 1000000, window: 1s}}
`, name, mode, limit)
}

// fleet is the replicas of a test.
type fleet struct {
	sidecars []*playground.Sidecar
	next     int
}

// launch starts replicas that count in a Redis, which need not be there, and waits until each is ready. It gives how
// long the slowest took.
func launch(t *testing.T, n int, url string, flags ...string) (*fleet, time.Duration) {
	t.Helper()
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))
	t.Cleanup(app.Close)
	dir := t.TempDir()
	file := filepath.Join(dir, "policies.yaml")
	if err := os.WriteFile(file, []byte(policies), 0o600); err != nil {
		t.Fatal(err)
	}
	f := &fleet{}
	var slowest time.Duration
	for i := range n {
		all := append([]string{"--policies", file, "--redis", url, "--decision-timeout", budget.String()}, flags...)
		s := playground.NewSidecar(playground.Options{Binaries: binaries, Dir: dir}, fmt.Sprint("replica-", i), app.URL, all...)
		t.Cleanup(func() {
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
			if t.Failed() {
				tail(t, s.Log)
			}
		})
		begun := time.Now()
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, time.Since(begun))
		f.sidecars = append(f.sidecars, s)
	}
	return f, slowest
}

// tail shows the end of a log.
func tail(t *testing.T, path string) {
	t.Helper()
	log, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	t.Logf("%s:\n%s", path, log[max(0, len(log)-4000):])
}

// get sends a request to the replicas in turn.
func (f *fleet) get(t *testing.T, path string) playground.Response {
	t.Helper()
	f.next++
	return ask(t, f.sidecars[f.next%len(f.sidecars)], path)
}

func ask(t *testing.T, s *playground.Sidecar, path string) playground.Response {
	t.Helper()
	r, err := playground.Get(t.Context(), s.URL+path, "")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// statuses sends so many requests, and counts the answers by their status.
func (f *fleet) statuses(t *testing.T, path string, n int) map[int]int {
	t.Helper()
	got := map[int]int{}
	for range n {
		got[f.get(t, path).Status]++
	}
	return got
}

// metric adds up a metric of all replicas, of the series whose labels have all of these texts.
func (f *fleet) metric(t *testing.T, name string, labels ...string) int64 {
	t.Helper()
	var total float64
	for _, s := range f.sidecars {
		r, err := playground.Get(t.Context(), s.Admin+"/metrics", "")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(r.Body) {
			series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			if !strings.HasPrefix(series, name) || !hasAll(series, labels) {
				continue
			}
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatal(err)
			}
			total += n
		}
	}
	return int64(total)
}

func hasAll(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

// enforcing waits until the store decides for each replica, and gives how long that took.
func (f *fleet) enforcing(t *testing.T) time.Duration {
	t.Helper()
	begun := time.Now()
	for _, s := range f.sidecars {
		eventually(t, "the store decides", func() bool { return ask(t, s, "/many/closed").Status == http.StatusOK })
	}
	return time.Since(begun)
}

// aware waits until all replicas know of each other.
func (f *fleet) aware(t *testing.T, server *redistest.Server) {
	t.Helper()
	client := server.Client(t)
	var known map[string]int64
	eventually(t, "the store knows all replicas", func() bool {
		known = beats(t, client)
		return len(known) == len(f.sidecars)
	})
	eventually(t, "each replica has been told", func() bool {
		told := true
		for name, n := range beats(t, client) {
			// Each beat counts once for each of two limits, and the first may have been under way.
			told = told && n >= known[name]+4
		}
		return told
	})
}

// beats gives, by replica, how often it has told of itself.
func beats(t *testing.T, client *redis.Client) map[string]int64 {
	t.Helper()
	ledger, err := client.HGetAll(t.Context(), "weir:default:{fleet/default/local/all/Selector}:shares").Result()
	if err != nil {
		t.Fatal(err)
	}
	delete(ledger, "") // The sums.
	numbers := map[string]int64{}
	for name, entry := range ledger {
		fields := strings.Fields(entry)
		n, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		numbers[name] = n
	}
	return numbers
}

func eventually(t *testing.T, what string, come func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !come(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

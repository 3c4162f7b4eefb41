// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/redistest"
	"github.com/weir-dev/weir/test/playground"
)

const (
	// maxKeys is the sidecar's default.
	maxKeys = 100_000
	// floodKeys come in as many parts as rounds, over so many connections.
	floodKeys, floodRounds, floodConns = 1_000_000, 10, 8
	// legalKeys each have perKey requests, once and for all.
	legalKeys, perKey = 100, 20
	// others are more keys of Redis than those of the other policies, and of the replicas about each other.
	others = 20
	// maxResident is the most that the sidecar may take of the machine's memory.
	maxResident = 64 << 20
)

// floodedPolicy is a policy with a key, for a path of its own.
func floodedPolicy(name, mode string) string {
	return fmt.Sprintf(`---
apiVersion: ratelimit.weir.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: %[1]s}
spec:
  selector: {}
  %[2]s
  limits:
  - name: per-key
    when: [{paths: [{type: Prefix, value: /%[1]s}]}]
    key: [{header: {name: x-api-key}}]
    strategy: {tokenBucket: {requests: 1, window: 8784h, burst: %[3]d}}
`, name, mode, perKey)
}

// launchFlooded is launch with more policies.
func launchFlooded(t *testing.T, n int, url, policies string, flags ...string) *fleet {
	t.Helper()
	file := filepath.Join(t.TempDir(), "flooded.yaml")
	if err := os.WriteFile(file, []byte(policies), 0o600); err != nil {
		t.Fatal(err)
	}
	f, _ := launch(t, n, url, append(flags, "--policies", file)...)
	return f
}

// TestS7KeyFlood is S7: somebody makes up a million keys.
func TestS7KeyFlood(t *testing.T) {
	server := redistest.Start(t)
	f := launchFlooded(t, 1, server.URL(), floodedPolicy("flooded", "onStoreFailure: {mode: Closed}"))
	f.enforcing(t)
	legal := newLegal(f.sidecars[0])
	legal.send(t, perKey/4)
	before, empty := seriesOf(t, f.sidecars[0]), usedBy(t, server)

	begun, got := time.Now(), map[int]int{}
	for round := range floodRounds {
		var part sync.WaitGroup
		var answers map[int]int
		part.Go(func() { answers = flood(t, f.sidecars[0], round*floodKeys/floodRounds, floodKeys/floodRounds) })
		legal.send(t, 1)
		part.Wait()
		for status, n := range answers {
			got[status] += n
		}
	}
	took := time.Since(begun)
	legal.send(t, perKey)

	keys, err := server.Client(t).DBSize(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	shared := f.metric(t, "weir_overflow_decisions_total", `limit="per-key"`)
	known := f.metric(t, "weir_limit_keys", `limit="per-key"`)
	resident, peak := memoryOf(t, f.sidecars[0])
	after := seriesOf(t, f.sidecars[0])
	own := maxKeys - legalKeys
	filled := usedBy(t, server) - empty
	t.Logf("S7: expected: at most %d keys in Redis and a few of other limits, in 25.6 MB, %d decisions by the shared counter, %d known keys, +0 series, at most 64 MiB, %d answers 200 and none 5xx, each of %d legal keys admitted %d times; "+
		"measured: %d, %.1f MB, %d, %d, %+d, %.1f MiB (%.1f at most), %v, %d to %d; %d keys a second for %s",
		maxKeys+1, floodKeys-own, maxKeys, own+perKey, legalKeys, perKey,
		keys, float64(filled)/1e6, shared, known, len(after)-len(before), mebibytes(resident), mebibytes(peak), got, slices.Min(legal.admitted), slices.Max(legal.admitted),
		int(floodKeys/took.Seconds()), took.Round(time.Second))

	if keys > maxKeys+1+others {
		t.Errorf("Redis has %d keys", keys)
	}
	// Redis keeps more than keys: what it has for its clients, and what the memory's allocator can't use.
	if filled > 2*256*maxKeys {
		t.Errorf("Redis took %d bytes for them", filled)
	}
	if shared != floodKeys-int64(own) || known != maxKeys {
		t.Errorf("%d requests were decided by the shared counter, and %d keys are known", shared, known)
	}
	if diff := cmp.Diff(map[int]int{http.StatusOK: own + perKey, http.StatusTooManyRequests: floodKeys - own - perKey}, got); diff != "" {
		t.Errorf("the flood's answers (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("series (-before +after):\n%s", diff)
	}
	if peak > maxResident {
		t.Errorf("the sidecar took %d bytes", peak)
	}
	if diff := cmp.Diff(slices.Repeat([]int{perKey}, legalKeys), legal.admitted); diff != "" {
		t.Errorf("admitted of each legal key (-want +got):\n%s", diff)
	}
}

// TestS7KeyFloodInEveryMode is S7 on a small scale, with the counters in other places.
func TestS7KeyFloodInEveryMode(t *testing.T) {
	const most, keys = 10, 100
	modes := map[string]string{
		"exact": "distribution: {mode: Exact}",
		"mine":  "distribution: {mode: PerReplica}",
		"share": "onStoreFailure: {mode: Local}",
	}
	var policies string
	for name, mode := range modes {
		policies += floodedPolicy(name, mode)
	}
	// One more key's worth goes to the first that share.
	want := map[int]int{perKey: most + 1, 0: keys - most - 1}
	server := redistest.Start(t)
	f := launchFlooded(t, 1, server.URL(), policies, "--max-keys-per-policy", fmt.Sprint(most))
	f.enforcing(t)
	for name := range modes {
		t.Run("the first keys have counters of their own, and the others one: "+name, func(t *testing.T) {
			if diff := cmp.Diff(want, admits(t, f.sidecars[0], "/"+name, 0, keys)); diff != "" {
				t.Errorf("keys by how many of their requests are admitted (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("so it goes on without Redis: share", func(t *testing.T) {
		server.Kill()
		// What is spent stays so, as far as the replica was told of it: no key gets more than without the flood.
		got := admits(t, f.sidecars[0], "/share", 0, keys)
		t.Logf("S7: expected: without Redis nothing more is admitted to known keys and to those that share; measured: %v", got)
		if diff := cmp.Diff(map[int]int{0: keys}, got); diff != "" {
			t.Errorf("keys by how many of their requests are admitted (-want +got):\n%s", diff)
		}
	})
}

// TestS7KeyFloodOfTwoReplicas is S7 on a small scale, with replicas that see other keys.
func TestS7KeyFloodOfTwoReplicas(t *testing.T) {
	const most = 10
	server := redistest.Start(t)
	f := launchFlooded(t, 2, server.URL(), floodedPolicy("flooded", "onStoreFailure: {mode: Closed}"), "--max-keys-per-policy", fmt.Sprint(most))
	f.enforcing(t)
	got := []map[int]int{
		admits(t, f.sidecars[0], "/flooded", 0, most),
		admits(t, f.sidecars[1], "/flooded", most, 2*most),
		admits(t, f.sidecars[0], "/flooded", 2*most, 3*most),
		admits(t, f.sidecars[1], "/flooded", 3*most, 4*most),
	}
	keys, err := server.Client(t).DBSize(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	want := []map[int]int{{perKey: most}, {perKey: most}, {perKey: 1, 0: most - 1}, {0: most}}
	t.Logf("S7 (two replicas): expected: at most %d keys in Redis and a few of other limits, keys by how many of their requests are admitted: %v; measured: %d, %v", 2*most+1, want, keys, got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("keys by how many of their requests are admitted (-want +got):\n%s", diff)
	}
	if keys > 2*most+1+others {
		t.Errorf("Redis has %d keys", keys)
	}
}

// admits sends one request more of each key than it has, and counts the keys by how many of them are admitted.
func admits(t *testing.T, s *playground.Sidecar, path string, first, end int) map[int]int {
	t.Helper()
	got := map[int]int{}
	for i := first; i < end; i++ {
		admitted := 0
		for range perKey + 1 {
			r, err := playground.Get(t.Context(), s.URL+path, fmt.Sprint("key-", i))
			if err != nil {
				t.Fatal(err)
			}
			if r.Status == http.StatusOK {
				admitted++
			}
		}
		got[admitted]++
	}
	return got
}

// legal are the keys of those who were there before.
type legal struct {
	sidecar  *playground.Sidecar
	admitted []int
}

func newLegal(s *playground.Sidecar) *legal { return &legal{s, make([]int, legalKeys)} }

// send sends so many requests of each key.
func (l *legal) send(t *testing.T, each int) {
	t.Helper()
	for i := range l.admitted {
		for range each {
			r, err := playground.Get(t.Context(), l.sidecar.URL+"/flooded", fmt.Sprint("legal-", i))
			switch {
			case err != nil:
				t.Error(err)
			case r.Status == http.StatusOK:
				l.admitted[i]++
			case r.Status != http.StatusTooManyRequests:
				t.Errorf("a legal key has the answer %d", r.Status)
			}
		}
	}
}

// flood sends a request for each of some keys that nobody has used, and counts the answers by their status.
func flood(t *testing.T, s *playground.Sidecar, first, keys int) map[int]int {
	var mu sync.Mutex
	var all sync.WaitGroup
	got := map[int]int{}
	for c := range floodConns {
		all.Go(func() {
			answers, err := pour(strings.TrimPrefix(s.URL, "http://"), first+c, keys/floodConns)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			for status, n := range answers {
				got[status] += n
			}
		})
	}
	all.Wait()
	return got
}

// pour sends so many requests over one connection, many at a time: a client that waits for each answer would take more
// of the machine than the sidecar.
func pour(address string, first, requests int) (map[int]int, error) {
	const together = 50
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(10 * patience)); err != nil {
		return nil, err
	}
	answers := bufio.NewReader(conn)
	got := map[int]int{}
	for i := 0; i < requests; i += together {
		var text strings.Builder
		for j := range min(together, requests-i) {
			fmt.Fprintf(&text, "GET /flooded HTTP/1.1\r\nHost: shop\r\nX-Api-Key: made-up-%d\r\n\r\n", first+(i+j)*floodConns)
		}
		if _, err := io.WriteString(conn, text.String()); err != nil {
			return got, err
		}
		for range min(together, requests-i) {
			r, err := http.ReadResponse(answers, nil)
			if err != nil {
				return got, err
			}
			got[r.StatusCode]++
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return got, err
			}
		}
	}
	return got, nil
}

// usedBy gives the bytes that Redis has in use.
func usedBy(t *testing.T, server *redistest.Server) int64 {
	t.Helper()
	info, err := server.Client(t).Info(t.Context(), "memory").Result()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(info, "used_memory:")
	if !found {
		t.Fatalf("Redis doesn't tell of its memory:\n%s", info)
	}
	var used int64
	if _, err := fmt.Sscan(rest, &used); err != nil {
		t.Fatal(err)
	}
	return used
}

// seriesOf gives the names of all series of a sidecar, sorted.
func seriesOf(t *testing.T, s *playground.Sidecar) []string {
	t.Helper()
	r, err := playground.Get(t.Context(), s.Admin+"/metrics", "")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for line := range strings.Lines(r.Body) {
		if name, _, ok := strings.Cut(line, " "); ok && name != "#" {
			names[name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// memoryOf gives the bytes of the machine's memory that a sidecar has now, and those that it had at most.
func memoryOf(t *testing.T, s *playground.Sidecar) (resident, peak int64) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		var kilobytes int64
		name, value, _ := strings.Cut(line, ":")
		if name != "VmRSS" && name != "VmHWM" {
			continue
		}
		if _, err := fmt.Sscan(value, &kilobytes); err != nil {
			t.Fatal(err)
		}
		if name == "VmRSS" {
			resident = kilobytes << 10
		} else {
			peak = kilobytes << 10
		}
	}
	if resident == 0 || peak == 0 {
		t.Fatalf("the machine doesn't tell of its memory:\n%s", status)
	}
	return resident, peak
}

func mebibytes(bytes int64) float64 { return float64(bytes) / (1 << 20) }

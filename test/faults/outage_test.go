// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/redistest"
	"github.com/weir-dev/weir/test/playground"
)

// TestR20RedisEvictsCounters is what of R20 concerns counts, and a sidecar that has no manager.
func TestR20RedisEvictsCounters(t *testing.T) {
	server := redistest.StartWith(t, "--maxmemory-policy", "allkeys-lru")
	f, _ := launch(t, replicas, server.URL())
	f.enforcing(t)
	for _, s := range f.sidecars {
		eventually(t, "a sidecar warns", func() bool { return strings.Contains(logOf(t, s), `"policy":"allkeys-lru"`) })
	}
	before := f.statuses(t, "/closed", 2*limit)
	evictAll(t, server.Client(t))
	// A replica goes on for half a second to refuse what it has been refused.
	eventually(t, "the limit begins anew", func() bool { return f.get(t, "/closed").Status == http.StatusOK })
	after := f.statuses(t, "/closed", 2*limit)
	after[http.StatusOK]++
	errors := f.metric(t, "weir_store_errors_total")
	t.Logf("R20: expected: a warning at the start, at most %d admitted, and as many after the eviction, 0 errors; measured: each replica warns, %v, %v, %d",
		limit, before, after, errors)
	want := map[int]int{http.StatusOK: limit, http.StatusTooManyRequests: limit}
	if diff := cmp.Diff(want, before); diff != "" {
		t.Errorf("answers before (-want +got):\n%s", diff)
	}
	if after[http.StatusOK] > limit || after[http.StatusOK]+after[http.StatusTooManyRequests] != 2*limit+1 || errors != 0 {
		t.Errorf("answers after: %v, and %d errors", after, errors)
	}
}

// evictAll fills Redis, with room for little more than it holds, until no counter is left.
func evictAll(t *testing.T, client *redis.Client) {
	t.Helper()
	if err := client.ConfigSet(t.Context(), "maxmemory", "4mb").Err(); err != nil {
		t.Fatal(err)
	}
	junk := strings.Repeat("x", 8<<10)
	eventually(t, "the counters are evicted", func() bool {
		var left *redis.StringSliceCmd
		_, err := client.Pipelined(t.Context(), func(p redis.Pipeliner) error {
			for i := range 1000 {
				p.Set(t.Context(), fmt.Sprint("junk:", i), junk, 0)
			}
			left = p.Keys(t.Context(), "weir:default:{default/*")
			return nil
		})
		return err == nil && len(left.Val()) == 0
	})
	if err := client.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
}

func logOf(t *testing.T, s *playground.Sidecar) string {
	t.Helper()
	log, err := os.ReadFile(s.Log)
	if err != nil {
		t.Fatal(err)
	}
	return string(log)
}

// soak is how long Redis is away in R27: what the catalog says in the long run, which WEIR_TEST_LONG asks for.
func soak() time.Duration {
	if os.Getenv("WEIR_TEST_LONG") != "" {
		return 10 * time.Minute
	}
	return 20 * time.Second
}

// sample is what a fleet holds at a moment.
type sample struct{ goroutines, descriptors, bytes int64 }

func (f *fleet) sample(t *testing.T) sample {
	t.Helper()
	return sample{f.metric(t, "go_goroutines"), f.metric(t, "process_open_fds"), f.metric(t, "process_resident_memory_bytes")}
}

// TestR27RedisIsAwayForLong is R27.
func TestR27RedisIsAwayForLong(t *testing.T) {
	const (
		parts = 10
		// logged is how many lines of one kind a replica may log in a second.
		logged = 10
		// most is what the descriptors and goroutines of a replica may be more than at first, since it has connections to
		// the test and to the application too, and mebibyte what its memory may.
		most, mebibyte = 64, 1 << 20
	)
	server := redistest.Start(t)
	f, _ := launch(t, replicas, server.URL())
	f.enforcing(t)
	server.Kill()
	begun := time.Now()
	var samples []sample
	for range parts {
		for _, path := range []string{"/many/open", "/many/closed", "/many/local"} {
			f.sendFor(t, path, soak()/parts/3)
		}
		samples = append(samples, f.sample(t))
	}
	passed := time.Since(begun)
	lines := map[string]int{}
	for _, s := range f.sidecars {
		for message, n := range errorsIn(t, s) {
			lines[message] = max(lines[message], n)
		}
	}
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	back := f.enforcing(t)
	first, last := samples[parts/2-1], samples[parts-1]
	t.Logf("R27: expected: in %s no growth, at most %d lines a second of a kind; measured: from %+v in the middle to %+v at the end, all lines of a replica: %v; enforcing after %s",
		passed.Round(time.Second), logged, first, last, lines, back.Round(time.Millisecond))
	if last.goroutines > first.goroutines+most*replicas || last.descriptors > first.descriptors+most*replicas || last.bytes > first.bytes+16*mebibyte*replicas {
		t.Errorf("from %+v to %+v", first, last)
	}
	for message, n := range lines {
		if bound := logged * (int(passed.Seconds()) + 2); n > bound {
			t.Errorf("%q was logged %d times in %s, more than %d", message, n, passed, bound)
		}
	}
}

// errorsIn counts the errors that a sidecar has logged, by their messages.
func errorsIn(t *testing.T, s *playground.Sidecar) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for line := range strings.Lines(logOf(t, s)) {
		var entry struct{ Level, Msg string }
		if err := json.Unmarshal([]byte(line), &entry); err == nil && entry.Level == "error" {
			counts[entry.Msg]++
		}
	}
	return counts
}

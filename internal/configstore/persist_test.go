// SPDX-License-Identifier: Apache-2.0

package configstore_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/match"
)

// replay is a watcher of a store that had these snapshots, one after the other.
type replay []configstore.Snapshot

func (r replay) Watch(_ context.Context, apply func(configstore.Snapshot)) error {
	for _, s := range r {
		apply(s)
	}
	return nil
}

// watch gives all that a watcher applies, until it ends.
func watch(t *testing.T, w configstore.Watcher) []configstore.Snapshot {
	t.Helper()
	var applied []configstore.Snapshot
	if err := w.Watch(t.Context(), func(s configstore.Snapshot) { applied = append(applied, s) }); err != nil {
		t.Fatalf("Watch: %v", err)
	}
	return applied
}

func snapshot(epoch, number int64) configstore.Snapshot {
	r := configstore.Revision{Epoch: epoch, Number: number}
	return configstore.Snapshot{Namespace: "shop", Revision: r, Policies: []configstore.Policy{
		{Policy: match.Policy{Namespace: "shop", Name: "a", Generation: number}, Since: r},
	}}
}

// firstRelease is a snapshot as the first release wrote it. It is never changed.
const firstRelease = `{"namespace":"shop","revision":{"epoch":1,"number":2},"policies":[{"namespace":"shop","name":"a","generation":3,
	"targets":[{"id":"Selector","pods":{}}],"limits":[
	{"name":"steady","limit":{"algorithm":"TokenBucket","requests":10,"window":1000000000,"burst":5},"onFailure":"Open"},
	{"name":"spaced","limit":{"algorithm":"LeakyBucketMeter","requests":10,"window":1000000000},"onFailure":"Open"}],
	"response":{"statusCode":429,"headers":["Draft11"],"body":"Problem"},"uid":"uid-of-a","since":{"epoch":1,"number":2}}]}`

func TestPersist(t *testing.T) {
	t.Run("without a file it follows the store", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "snapshot.json")
		store := replay{snapshot(1, 1), snapshot(1, 2)}
		got := watch(t, configstore.Persist(store, path, testr.New(t)))
		if diff := cmp.Diff([]configstore.Snapshot(store), got); diff != "" {
			t.Errorf("applied (-want +got):\n%s", diff)
		}
	})

	t.Run("a restart without the store applies the last snapshot, and leaves but one file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "snapshot.json")
		watch(t, configstore.Persist(replay{snapshot(1, 1), snapshot(1, 2)}, path, testr.New(t)))
		got := watch(t, configstore.Persist(replay{}, path, testr.New(t)))
		if diff := cmp.Diff([]configstore.Snapshot{snapshot(1, 2)}, got); diff != "" {
			t.Errorf("applied (-want +got):\n%s", diff)
		}
		files, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*"))
		if err != nil {
			t.Fatal(err)
		}
		hidden, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{path}, append(files, hidden...)); diff != "" {
			t.Errorf("files (-want +got):\n%s", diff)
		}
	})

	t.Run("a restart never goes back, and applies nothing twice", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "snapshot.json")
		watch(t, configstore.Persist(replay{snapshot(2, 2)}, path, testr.New(t)))
		store := replay{snapshot(1, 9), snapshot(2, 1), snapshot(2, 2), snapshot(2, 3)}
		got := watch(t, configstore.Persist(store, path, testr.New(t)))
		if diff := cmp.Diff([]configstore.Snapshot{snapshot(2, 2), snapshot(2, 3)}, got); diff != "" {
			t.Errorf("applied (-want +got):\n%s", diff)
		}
	})

	// What a release has written to disks and stores, the next ones read.
	t.Run("a snapshot of the first release means what it meant", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "snapshot.json")
		if err := os.WriteFile(path, []byte(firstRelease), 0o600); err != nil {
			t.Fatal(err)
		}
		r := configstore.Revision{Epoch: 1, Number: 2}
		want := configstore.Snapshot{Namespace: "shop", Revision: r, Policies: []configstore.Policy{{
			Policy: match.Policy{
				Namespace:  "shop",
				Name:       "a",
				Generation: 3,
				Targets:    []match.Target{{ID: "Selector"}},
				Limits: []match.Limit{
					{Name: "steady", Limit: limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 10, Window: time.Second, Burst: 5}, OnFailure: limiter.FailOpen},
					{Name: "spaced", Limit: limiter.Limit{Algorithm: limiter.LeakyBucketMeter, Requests: 10, Window: time.Second}, OnFailure: limiter.FailOpen},
				},
				Response: match.Response{StatusCode: 429, Headers: []string{"Draft11"}, Body: "Problem"},
			},
			UID:   "uid-of-a",
			Since: r,
		}}}
		got := watch(t, configstore.Persist(replay{}, path, testr.New(t)))
		if diff := cmp.Diff([]configstore.Snapshot{want}, got); diff != "" {
			t.Errorf("applied (-want +got):\n%s", diff)
		}
	})

	for name, content := range map[string]string{
		"an empty file":         "",
		"half a file":           `{"namespace":"shop","revision":{"epoch":1,`,
		"a file of another use": `{"name":"shop"}`,
	} {
		t.Run(name+" is told of, ignored and replaced", func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "snapshot.json")
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			log, lines := count()
			got := watch(t, configstore.Persist(replay{snapshot(1, 1)}, path, log))
			got = append(got, watch(t, configstore.Persist(replay{}, path, log))...)
			if diff := cmp.Diff([]configstore.Snapshot{snapshot(1, 1), snapshot(1, 1)}, got); diff != "" {
				t.Errorf("applied (-want +got):\n%s", diff)
			}
			if *lines != 1 {
				t.Errorf("%d lines were logged, want 1", *lines)
			}
		})
	}

	t.Run("a folder that can't be written to costs a log line and no snapshot", func(t *testing.T) {
		log, lines := count()
		path := filepath.Join(t.TempDir(), "missing", "snapshot.json")
		got := watch(t, configstore.Persist(replay{snapshot(1, 1)}, path, log))
		if diff := cmp.Diff([]configstore.Snapshot{snapshot(1, 1)}, got); diff != "" {
			t.Errorf("applied (-want +got):\n%s", diff)
		}
		if *lines != 1 {
			t.Errorf("%d lines were logged, want 1", *lines)
		}
	})
}

// count gives a logger and how many lines it has logged.
func count() (logr.Logger, *int) {
	lines := new(int)
	return funcr.New(func(string, string) { *lines++ }, funcr.Options{}), lines
}

func TestRevisionCompare(t *testing.T) {
	inOrder := []configstore.Revision{{}, {Number: 1}, {Epoch: 1}, {Epoch: 1, Number: 9}, {Epoch: 1, Number: 10}, {Epoch: 2, Number: 1}}
	for i, r := range inOrder {
		for j, o := range inOrder {
			if got := r.Compare(o); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%s.Compare(%s) = %d", r, o, got)
			}
		}
	}
}

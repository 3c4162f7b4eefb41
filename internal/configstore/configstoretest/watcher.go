// SPDX-License-Identifier: Apache-2.0

// Package configstoretest is the suite that every config store must pass.
package configstoretest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/configstore"
)

// patience is how long a test waits for what should take a second at most, on a machine that is busy.
const patience = 20 * time.Second

// Policy is as much of a policy as tells two versions of it apart: one limit, requests per minute.
type Policy struct {
	Name     string
	Requests int64
}

// Watched is one config store, and what a test does to it.
type Watched struct {
	// Watcher gives a watcher of the store that logs to log.
	Watcher func(log logr.Logger) configstore.Watcher
	// Put makes these the policies of the store, all of them, whatever it held before.
	Put func(policies ...Policy)
	// Corrupt makes what the store holds impossible to understand.
	Corrupt func()
	// Lose makes the store hold nothing, as it may after a restart.
	Lose func()
}

// TestWatcher holds a watcher to its contract. It calls open for each test, which gives a store that
// holds the policy {a 1}.
func TestWatcher(t *testing.T, open func(t *testing.T) Watched) {
	t.Run("what is stored is applied at once", func(t *testing.T) {
		watch(t, open(t)).expect(Policy{"a", 1})
	})

	t.Run("a change is applied", func(t *testing.T) {
		store := open(t)
		w := watch(t, store)
		w.expect(Policy{"a", 1})
		store.Put(Policy{"a", 2})
		w.expect(Policy{"a", 2})
	})

	t.Run("policies come and go, in order of their names", func(t *testing.T) {
		store := open(t)
		w := watch(t, store)
		w.expect(Policy{"a", 1})
		store.Put(Policy{"c", 1}, Policy{"a", 1}, Policy{"b", 1})
		w.expect(Policy{"a", 1}, Policy{"b", 1}, Policy{"c", 1})
		store.Put(Policy{"b", 1})
		w.expect(Policy{"b", 1})
	})

	t.Run("no policies, said explicitly, are applied", func(t *testing.T) {
		store := open(t)
		w := watch(t, store)
		w.expect(Policy{"a", 1})
		store.Put()
		w.expect()
	})

	t.Run("each watcher sees everything", func(t *testing.T) {
		store := open(t)
		one, other := watch(t, store), watch(t, store)
		one.expect(Policy{"a", 1})
		other.expect(Policy{"a", 1})
		store.Put(Policy{"a", 2})
		one.expect(Policy{"a", 2})
		other.expect(Policy{"a", 2})
	})

	t.Run("garbage is told of and changes nothing", func(t *testing.T) {
		store := open(t)
		w := watch(t, store)
		w.expect(Policy{"a", 1})
		store.Corrupt()
		w.expectTrouble()
		store.Put(Policy{"a", 2})
		w.expect(Policy{"a", 2})
	})

	t.Run("missing data is told of and changes nothing", func(t *testing.T) {
		store := open(t)
		w := watch(t, store)
		w.expect(Policy{"a", 1})
		store.Lose()
		w.expectTrouble()
		store.Put(Policy{"a", 2})
		w.expect(Policy{"a", 2})
	})
}

// watching is a watcher at work.
type watching struct {
	tb      testing.TB
	applied chan configstore.Snapshot
	trouble chan string
}

// watch runs a watcher until the test ends, and sees to it that it keeps the contract all the while.
func watch(t *testing.T, store Watched) *watching {
	t.Helper()
	w := &watching{tb: t, applied: make(chan configstore.Snapshot, 100), trouble: make(chan string, 100)}
	watcher := store.Watcher(funcr.New(w.hear, funcr.Options{}))
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() {
		if err := watcher.Watch(ctx, w.check()); err != nil {
			t.Errorf("Watch: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		run.Wait()
	})
	return w
}

func (w *watching) hear(prefix, args string) {
	select {
	case w.trouble <- prefix + args:
	default:
	}
}

// check gives an apply function that demands later and later revisions, one at a time.
func (w *watching) check() func(configstore.Snapshot) {
	var busy atomic.Bool
	var last configstore.Revision
	return func(s configstore.Snapshot) {
		if !busy.CompareAndSwap(false, true) {
			w.tb.Error("apply was called while it ran")
		}
		if s.Revision.Compare(last) <= 0 {
			w.tb.Errorf("revision %s was applied after %s", s.Revision, last)
		}
		if err := since(s); err != nil {
			w.tb.Error(err)
		}
		last = s.Revision
		w.applied <- s
		busy.Store(false)
	}
}

// since checks that each policy says since when it is as it is.
func since(s configstore.Snapshot) error {
	for _, p := range s.Policies {
		if p.Since == (configstore.Revision{}) || p.Since.Compare(s.Revision) > 0 {
			return fmt.Errorf("policy %s of revision %s is as it is since %s", p.Name, s.Revision, p.Since)
		}
	}
	return nil
}

// expect waits for the next snapshot, which must hold these policies.
func (w *watching) expect(want ...Policy) {
	w.tb.Helper()
	select {
	case s := <-w.applied:
		if diff := cmp.Diff(want, policies(s)); diff != "" {
			w.tb.Fatalf("policies (-want +got):\n%s", diff)
		}
	case <-time.After(patience):
		w.tb.Fatalf("no snapshot came with the policies %v", want)
	}
}

// expectTrouble waits until the watcher has said that something is wrong, and checks that it has applied
// nothing for that.
func (w *watching) expectTrouble() {
	w.tb.Helper()
	select {
	case <-w.trouble:
	case <-time.After(patience):
		w.tb.Fatal("the watcher says nothing of the trouble")
	}
	select {
	case s := <-w.applied:
		w.tb.Fatalf("in trouble, the watcher applied %v", policies(s))
	default:
	}
}

func policies(s configstore.Snapshot) []Policy {
	var ps []Policy
	for _, p := range s.Policies {
		ps = append(ps, Policy{p.Name, p.Limits[0].Limit.Requests})
	}
	return ps
}

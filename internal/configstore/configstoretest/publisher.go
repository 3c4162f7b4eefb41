// SPDX-License-Identifier: Apache-2.0

package configstoretest

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/match"
)

// Published is one config store that can be written to, and what a test does to it.
type Published struct {
	// Publisher gives another publisher of the store, which has claimed nothing.
	Publisher func() configstore.Publisher
	// Flush makes the store forget everything, claims and all.
	Flush func()
}

// TestPublisher holds a publisher to its contract. It calls open for each test, which gives an empty
// store.
func TestPublisher(t *testing.T, open func(t *testing.T) Published) {
	testClaim(t, open)
	testPublish(t, open)
	testFence(t, open)
}

func testClaim(t *testing.T, open func(t *testing.T) Published) {
	t.Run("an epoch is the clock in milliseconds", func(t *testing.T) {
		before := time.Now().UnixMilli()
		epoch := claim(t, open(t).Publisher())
		if after := time.Now().UnixMilli(); epoch < before || epoch > after {
			t.Errorf("claimed epoch %d, want one from %d to %d", epoch, before, after)
		}
	})

	t.Run("each claim is later than all before", func(t *testing.T) {
		store := open(t)
		last := int64(0)
		for range 20 {
			epoch := claim(t, store.Publisher())
			if epoch <= last {
				t.Fatalf("claimed epoch %d after %d", epoch, last)
			}
			last = epoch
		}
	})
}

func testPublish(t *testing.T, open func(t *testing.T) Published) {
	t.Run("what is published is loaded, whole", func(t *testing.T) {
		p := open(t).Publisher()
		shop := snapshot("shop", configstore.Revision{Epoch: claim(t, p), Number: 1})
		empty := configstore.Snapshot{Namespace: "epoch", Revision: shop.Revision, Policies: []configstore.Policy{}}
		publish(t, p, shop)
		publish(t, p, empty)
		wantLoaded(t, p, map[string]configstore.Snapshot{"shop": shop, "epoch": empty})
	})

	t.Run("what isn't stored is absent", func(t *testing.T) {
		wantLoaded(t, open(t).Publisher(), map[string]configstore.Snapshot{})
	})

	t.Run("no namespaces are no trouble", func(t *testing.T) {
		got, err := open(t).Publisher().Load(t.Context())
		if err != nil || len(got) != 0 {
			t.Errorf("Load() = %v, %v", got, err)
		}
	})

	t.Run("a later revision replaces an earlier one", func(t *testing.T) {
		p := open(t).Publisher()
		epoch := claim(t, p)
		publish(t, p, snapshot("shop", configstore.Revision{Epoch: epoch, Number: 9}))
		later := snapshot("shop", configstore.Revision{Epoch: epoch, Number: 10})
		publish(t, p, later)
		wantLoaded(t, p, map[string]configstore.Snapshot{"shop": later})
	})

	t.Run("an earlier revision is stale, and so is the same one with other contents", func(t *testing.T) {
		p := open(t).Publisher()
		epoch := claim(t, p)
		stored := snapshot("shop", configstore.Revision{Epoch: epoch, Number: 10})
		publish(t, p, stored)
		refuse(t, p, snapshot("shop", configstore.Revision{Epoch: epoch, Number: 9}), configstore.ErrStale)
		refuse(t, p, snapshot("shop", configstore.Revision{Epoch: epoch - 1, Number: 11}), configstore.ErrStale)
		other := stored
		other.Policies = nil
		refuse(t, p, other, configstore.ErrStale)
		wantLoaded(t, p, map[string]configstore.Snapshot{"shop": stored})
	})

	t.Run("publishing what is stored does nothing", func(t *testing.T) {
		p := open(t).Publisher()
		stored := snapshot("shop", configstore.Revision{Epoch: claim(t, p), Number: 1})
		publish(t, p, stored)
		publish(t, p, stored)
		wantLoaded(t, p, map[string]configstore.Snapshot{"shop": stored})
	})

	t.Run("a snapshot above 1 MiB is too large", func(t *testing.T) {
		p := open(t).Publisher()
		large := snapshot("shop", configstore.Revision{Epoch: claim(t, p), Number: 1})
		large.Policies[0].Name = strings.Repeat("a", configstore.MaxBytes)
		refuse(t, p, large, configstore.ErrTooLarge)
		wantLoaded(t, p, map[string]configstore.Snapshot{})
	})

	t.Run("of many with one revision, one is published", func(t *testing.T) {
		p := open(t).Publisher()
		revision := configstore.Revision{Epoch: claim(t, p), Number: 1}
		var published atomic.Int32
		var all sync.WaitGroup
		for i := range int64(8) {
			all.Go(func() {
				s := snapshot("shop", revision)
				s.Policies[0].Generation = i
				switch err := p.Publish(t.Context(), s); {
				case err == nil:
					published.Add(1)
				case !errors.Is(err, configstore.ErrStale):
					t.Errorf("Publish: %v", err)
				}
			})
		}
		all.Wait()
		if n := published.Load(); n != 1 {
			t.Errorf("%d were published, want 1", n)
		}
	})
}

func testFence(t *testing.T, open func(t *testing.T) Published) {
	t.Run("a publisher that has claimed nothing is fenced, on an empty store too", func(t *testing.T) {
		p := open(t).Publisher()
		refuse(t, p, snapshot("shop", configstore.Revision{Epoch: 1, Number: 1}), configstore.ErrFenced)
		wantLoaded(t, p, map[string]configstore.Snapshot{})
	})

	t.Run("a deposed leader is fenced, whatever it publishes", func(t *testing.T) {
		store := open(t)
		deposed, leader := store.Publisher(), store.Publisher()
		epoch := claim(t, deposed)
		stored := snapshot("shop", configstore.Revision{Epoch: epoch, Number: 1})
		publish(t, deposed, stored)
		claim(t, leader)
		refuse(t, deposed, snapshot("shop", configstore.Revision{Epoch: epoch, Number: 2}), configstore.ErrFenced)
		refuse(t, deposed, snapshot("other", configstore.Revision{Epoch: epoch, Number: 1}), configstore.ErrFenced)
		refuse(t, deposed, stored, configstore.ErrFenced)
		wantLoaded(t, leader, map[string]configstore.Snapshot{"shop": stored})
	})

	t.Run("a revision beyond the claimed epoch is an error", func(t *testing.T) {
		p := open(t).Publisher()
		epoch := claim(t, p)
		err := p.Publish(t.Context(), snapshot("shop", configstore.Revision{Epoch: epoch + 1, Number: 1}))
		if err == nil || errors.Is(err, configstore.ErrFenced) || errors.Is(err, configstore.ErrStale) {
			t.Errorf("Publish: %v, want an error of its own", err)
		}
		wantLoaded(t, p, map[string]configstore.Snapshot{})
	})

	t.Run("after a flush the leader restores what it had, and its claim", func(t *testing.T) {
		store := open(t)
		first, second := store.Publisher(), store.Publisher()
		old := snapshot("shop", configstore.Revision{Epoch: claim(t, first), Number: 1})
		publish(t, first, old)
		claim(t, second)
		store.Flush()
		publish(t, second, old)
		wantLoaded(t, second, map[string]configstore.Snapshot{"shop": old})
		refuse(t, first, snapshot("shop", configstore.Revision{Epoch: old.Revision.Epoch, Number: 2}), configstore.ErrFenced)
	})
}

// snapshot of a namespace with one policy.
func snapshot(namespace string, r configstore.Revision) configstore.Snapshot {
	return configstore.Snapshot{Namespace: namespace, Revision: r, Policies: []configstore.Policy{{
		Policy: match.Policy{
			Namespace:  namespace,
			Name:       "a",
			Generation: 3,
			Targets:    []match.Target{{ID: "Selector", Pods: match.Selector{MatchLabels: map[string]string{"app": "a"}}}},
			Limits: []match.Limit{{Name: "all", Limit: limiter.Limit{
				Algorithm: limiter.TokenBucket, Requests: 1, Window: time.Minute, Burst: 1,
			}}},
			Response: match.Response{StatusCode: 429, Headers: []string{"Draft11"}, Body: "Problem"},
		},
		Since: r,
	}}}
}

func claim(t *testing.T, p configstore.Publisher) int64 {
	t.Helper()
	epoch, err := p.Claim(t.Context())
	if err != nil {
		t.Fatalf("Claim: %v", err)
	}
	return epoch
}

func publish(t *testing.T, p configstore.Publisher, s configstore.Snapshot) {
	t.Helper()
	if err := p.Publish(t.Context(), s); err != nil {
		t.Fatalf("Publish: %v", err)
	}
}

func refuse(t *testing.T, p configstore.Publisher, s configstore.Snapshot, want error) {
	t.Helper()
	if err := p.Publish(t.Context(), s); !errors.Is(err, want) {
		t.Errorf("Publish: %v, want %v", err, want)
	}
}

// wantLoaded checks all that is stored of the namespaces that the tests use, and their revisions.
func wantLoaded(t *testing.T, p configstore.Publisher, want map[string]configstore.Snapshot) {
	t.Helper()
	namespaces := []string{"shop", "epoch", "other"}
	loaded, err := p.Load(t.Context(), namespaces...)
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	if diff := cmp.Diff(want, loaded); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
	wantRevisions := map[string]configstore.Revision{}
	for n, s := range want {
		wantRevisions[n] = s.Revision
	}
	revisions, err := p.Revisions(t.Context(), namespaces...)
	if err != nil {
		t.Fatalf("Revisions: %v", err)
	}
	if diff := cmp.Diff(wantRevisions, revisions); diff != "" {
		t.Errorf("revisions (-want +got):\n%s", diff)
	}
}

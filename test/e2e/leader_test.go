// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/test/playground"
)

// The longest that a change may wait for another leader: when the first has said that it goes, and when it has not.
// On a machine with nothing else to do it is 2 s and 17 s.
const (
	handover = 10 * time.Second
	takeover = 30 * time.Second
)

// tell prints what came of a case of the catalog.
func tell(t *testing.T, id, expected, format string, args ...any) {
	t.Helper()
	t.Logf("%s (API server): expected %s, measured %s", id, expected, fmt.Sprintf(format, args...))
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

func TestAnotherManagerTakesOver(t *testing.T) {
	const name, probe = "taken-over", "probe"
	exhaust(t, name)
	// It is of no pod: to edit it changes no decision.
	ofNobody := func(requests int) string {
		return fmt.Sprintf(`{selector: {matchLabels: {app: nobody}}, limits: [{name: all, strategy: {fixedWindow: {requests: %d, window: 24h}}}]}`, requests)
	}
	apply(t, probe, ofNobody(1))
	eventually(t, patience, "the probe is published", func() bool { return stored(t, probe) == 1 })
	requests := 1
	// change has the probe edited, and gives how long since began the change took to be published.
	change := func(t *testing.T, began time.Time, within time.Duration) time.Duration {
		t.Helper()
		requests++
		edit(t, probe, ofNobody(requests))
		eventually(t, within-time.Since(began), "a change is published", func() bool { return stored(t, probe) == int64(requests) })
		return time.Since(began)
	}
	second := newManager(t, "second", weir.Kubeconfig)
	start(t, second)

	t.Run("K2: the leader is asked to end", func(t *testing.T) {
		changed := refusedThroughout(t)
		began := time.Now()
		if err := weir.Manager.Stop(); err != nil {
			t.Error(err)
		}
		ended := time.Since(began)
		took := change(t, began, handover)
		tell(t, "K2", "another leader <= 2 s after SIGTERM, the process ends, 0 decisions changed",
			"%s, ended after %s, %s", seconds(took), seconds(ended), changed())
	})
	start(t, weir.Manager)

	t.Run("K1: the leader is killed", func(t *testing.T) {
		changed := refusedThroughout(t)
		began := time.Now()
		second.Kill()
		took := change(t, began, takeover)
		tell(t, "K1", "another leader <= 17 s after kill -9, 0 decisions changed", "%s, %s", seconds(took), changed())
	})
	start(t, second)

	t.Run("K3: the leader hangs, and comes back when another leads", func(t *testing.T) {
		changed, back := refusedThroughout(t), neverShrinks(t, 2)
		began := time.Now()
		if err := weir.Manager.Pause(); err != nil {
			t.Fatal(err)
		}
		took := change(t, began, takeover)
		if err := weir.Manager.Resume(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-weir.Manager.Ended():
		case <-time.After(patience):
			t.Error("the former leader goes on")
		}
		change(t, time.Now(), patience)
		tell(t, "K3", "another leader <= 17 s after SIGSTOP, the former ends after SIGCONT, 0 revisions go back, 0 decisions changed",
			"%s, it ended, %s, %s", seconds(took), back(), changed())
	})
	start(t, weir.Manager)
}

// start starts a manager and waits until it looks for the lease.
func start(t *testing.T, m *playground.Manager) {
	t.Helper()
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "the manager is there", func() bool {
		r, err := playground.Get(t.Context(), m.Health+"/healthz", "")
		return err == nil && r.Status == http.StatusOK
	})
}

// exhaust applies a policy whose limit is used up at once, until the test ends.
func exhaust(t *testing.T, name string) {
	t.Helper()
	apply(t, name, `{selector: {}, limits: [{name: all, strategy: {fixedWindow: {requests: 10, window: 24h}}}]}`)
	awaitReady(t, name)
	if got := send(t, 2, 10, ""); got.Allowed != 10 {
		t.Fatalf("answers are %+v, want 10 allowed", got)
	}
}

// refusedThroughout has a client ask each sidecar without a pause, and demands that every request is refused until the
// returned function is called, which says how many were not.
func refusedThroughout(t *testing.T) (stop func() string) {
	t.Helper()
	var total playground.Tally
	end := background(t, func(ctx context.Context) {
		for _, s := range weir.Sidecars {
			if r, err := playground.Get(ctx, s.URL, ""); err == nil {
				total.Add(r)
			} else if ctx.Err() == nil {
				t.Error(err)
			}
		}
	})
	return func() string {
		end()
		changed := total.Allowed + total.Other
		if changed > 0 || total.Refused == 0 {
			t.Errorf("decisions are %+v, want all refused", total)
		}
		return fmt.Sprintf("%d of %d", changed, total.Refused+changed)
	}
}

// published is the snapshot that Redis holds.
func published(ctx context.Context, client *redis.Client) (configstore.Snapshot, error) {
	var s configstore.Snapshot
	body, err := client.HGet(ctx, "weir:playground:{config}:"+playground.Namespace, "body").Bytes()
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(body, &s)
}

// neverShrinks demands of each snapshot that is stored that it has so many policies at least, and of its revision that
// it doesn't come before the last, until the returned function is called, which says of how many that was not so.
func neverShrinks(t *testing.T, policies int) (stop func() string) {
	t.Helper()
	var (
		last        configstore.Revision
		looks, back int
	)
	client := weir.Redis.Client(t)
	end := background(t, func(ctx context.Context) {
		now, err := published(ctx, client)
		if err != nil {
			return // The store may be slow to answer. It loses nothing here, as the revision says.
		}
		if now.Revision.Compare(last) < 0 || len(now.Policies) < policies {
			t.Errorf("revision %s with %d policies comes after %s, want no fewer than %d", now.Revision, len(now.Policies), last, policies)
			back++
		}
		last = now.Revision
		looks++
	})
	return func() string {
		end()
		return fmt.Sprintf("%d of %d", back, looks)
	}
}

// background does something over and over, until the returned function is called, or the test ends.
func background(t *testing.T, do func(context.Context)) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	group.Go(func() {
		for ctx.Err() == nil {
			do(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	stop = func() {
		cancel()
		group.Wait()
	}
	t.Cleanup(stop)
	return stop
}

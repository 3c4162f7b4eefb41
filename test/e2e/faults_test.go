// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/test/playground"
)

// republished is the longest that the manager may take to bring back a snapshot that Redis has lost.
const republished = 5 * time.Second

// flush empties Redis.
func flush(t *testing.T) {
	t.Helper()
	if err := weir.Redis.Client(t).FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
}

// killRedis ends Redis until the test restarts it, or fails.
func killRedis(t *testing.T) {
	t.Helper()
	weir.Redis.Kill()
	t.Cleanup(func() {
		if t.Failed() {
			_ = weir.Redis.Restart()
		}
	})
}

func TestFlushUnderTrafficLetsNothingThroughUnlimited(t *testing.T) {
	const name, limit = "flushed", 50
	apply(t, name, `{selector: {}, limits: [{name: all, strategy: {fixedWindow: {requests: 50, window: 24h}}}]}`)
	awaitReady(t, name)

	var (
		group sync.WaitGroup
		total playground.Tally
	)
	group.Go(func() { total = send(t, 4, 500, "") })
	eventually(t, patience, "the limit is used up", func() bool {
		r, err := playground.Get(t.Context(), weir.Sidecars[0].URL, "")
		return err == nil && r.Status == http.StatusTooManyRequests
	})
	flush(t)
	began := time.Now()
	eventually(t, republished, "the manager publishes again", func() bool { return stored(t, name) == limit })
	t.Logf("published again %s after FLUSHALL", time.Since(began).Round(time.Millisecond))
	group.Wait()
	if total.Other > 0 || total.Allowed > 2*limit {
		t.Errorf("want %d allowed at most, since the counts are lost once, and the rest refused; got %+v", 2*limit, total)
	}
	awaitReady(t, name)
}

func TestARestartOfTheManagerLosesNoPolicy(t *testing.T) {
	const name = "manager-restart"
	apply(t, name, `{selector: {}, limits: [{name: all, strategy: {fixedWindow: {requests: 10, window: 24h}}}]}`)
	awaitReady(t, name)
	if err := weir.Manager.Stop(); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(playground.Tally{Allowed: 10, Refused: 10}, send(t, 2, 10, "")); diff != "" {
		t.Errorf("answers without a manager (-want +got):\n%s", diff)
	}
	if err := weir.Manager.Start(); err != nil {
		t.Fatal(err)
	}
	// Another policy shows that the new leader works, and takes nothing from the old one.
	apply(t, name+"-2", `{selector: {}, limits: [{name: all, strategy: {fixedWindow: {requests: 1000, window: 24h}}}]}`)
	awaitReady(t, name+"-2")
	awaitReady(t, name)
	if diff := cmp.Diff(playground.Tally{Refused: 20}, send(t, 2, 10, "")); diff != "" {
		t.Errorf("answers after the restart (-want +got):\n%s", diff)
	}
}

func TestAPolicyDeletedWhileNoManagerRunsIsLifted(t *testing.T) {
	const name = "deleted-unseen"
	apply(t, name, `{selector: {}, limits: [{name: all, strategy: {fixedWindow: {requests: 1, window: 24h}}}]}`)
	awaitReady(t, name)
	if err := weir.Manager.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := weir.Kubectl(t.Context(), "delete", "weirpolicy", "--namespace", playground.Namespace, name); err != nil {
		t.Error(err)
	}
	if err := weir.Manager.Start(); err != nil {
		t.Fatal(err)
	}
	for _, s := range weir.Sidecars {
		eventually(t, patience, "the limit is lifted", func() bool { return enforced(t, s, name) == 0 })
	}
}

func TestARestartOfRedisLosesNoPolicy(t *testing.T) {
	const name = "redis-restart"
	apply(t, name, `{selector: {}, onStoreFailure: {mode: Closed}, limits: [{name: all, strategy: {fixedWindow: {requests: 10, window: 24h}}}]}`)
	awaitReady(t, name)

	killRedis(t)
	if diff := cmp.Diff(playground.Tally{Other: 10}, send(t, 2, 5, "")); diff != "" {
		t.Errorf("answers of a Closed limit without Redis (-want +got):\n%s", diff)
	}
	if err := weir.Redis.Restart(); err != nil {
		t.Fatal(err)
	}
	eventually(t, republished, "the manager publishes again", func() bool { return stored(t, name) == 10 })
	awaitReady(t, name)
	if diff := cmp.Diff(playground.Tally{Allowed: 10, Refused: 10}, send(t, 2, 10, "")); diff != "" {
		t.Errorf("answers after the restart (-want +got):\n%s", diff)
	}
}

func TestASidecarThatStartsWithoutRedisAndManagerEnforcesWhatItLastHad(t *testing.T) {
	const name = "cold-start"
	apply(t, name, `{selector: {}, onStoreFailure: {mode: Closed}, limits: [{name: all, strategy: {fixedWindow: {requests: 10, window: 24h}}}]}`)
	awaitReady(t, name)
	killRedis(t)
	s := weir.Sidecars[0]
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "the last snapshot is enforced", func() bool { return enforced(t, s, name) == 10 })
	if err := weir.Redis.Restart(); err != nil {
		t.Fatal(err)
	}
	awaitReady(t, name)
}

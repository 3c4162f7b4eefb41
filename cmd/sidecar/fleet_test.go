// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"

	redisconfig "github.com/weir-dev/weir/internal/configstore/redis"
	"github.com/weir-dev/weir/internal/fleet"
	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/redistest"
)

func TestAReplicaThatStartsAgainWithoutRedisKnowsOfTheOthers(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client(t)
	publisher := redisconfig.NewPublisher(client, "test", testr.New(t))
	epoch, err := publisher.Claim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	snapshot := published(epoch)
	for _, p := range snapshot.Policies {
		p.Limits[0].OnFailure, p.Limits[0].Limit.Burst = limiter.FailLocal, 40
	}
	if err := publisher.Publish(t.Context(), snapshot); err != nil {
		t.Fatal(err)
	}
	group := fleet.Group{Namespace: "shop", Policy: "checkout-api", Target: "Service/checkout"}
	if err := fleet.NewCensus(client, "test").Write(t.Context(), "shop", map[fleet.Group]int{group: 4}); err != nil {
		t.Fatal(err)
	}

	state := t.TempDir()
	s := launch(t, hello, append(shop(t, server.URL()), "--state-dir", state)...)
	eventually(t, "it has kept how many pods there are", func() bool {
		kept, _ := os.ReadFile(filepath.Join(state, "replicas.json")) // There is none at first.
		return string(kept) == `{"shop/checkout-api/Service/checkout":4}`
	})
	s.stop()
	s.end(t)
	server.Kill()

	s = launch(t, hello, append(shop(t, server.URL()), "--state-dir", state)...)
	eventually(t, "the snapshot is enforced", func() bool { return s.get(t, s.admin+"/debug/snapshot").Status == http.StatusOK })
	want := slices.Concat(repeat(http.StatusOK, 10), repeat(http.StatusTooManyRequests, 5))
	if diff := cmp.Diff(want, s.statuses(t, 15)); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
}

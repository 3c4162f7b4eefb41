// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/weir-dev/weir/test/playground"
)

func TestTwoSidecarsLease(t *testing.T) {
	const (
		limit   = 4000
		clients = 8
		each    = 200
	)
	apply(t, "leased", fmt.Sprintf(`{selector: {}, distribution: {mode: Leased}, limits: [{name: all, strategy: {fixedWindow: {requests: %d, window: 24h}}}]}`, limit))
	awaitReady(t, "leased")
	admitted := send(t, clients, each, "").Allowed // By now the sidecars know that the counter is busy.

	inProcess, calls := decidedInProcess(t), scriptCalls(t)
	admitted += send(t, clients, each, "").Allowed
	inProcess, calls = decidedInProcess(t)-inProcess, scriptCalls(t)-calls
	t.Logf("of %d requests %d were decided in process; Redis had %d calls", clients*each, inProcess, calls)
	if admitted != 2*clients*each || inProcess < clients*each/2 || calls > clients*each/2 {
		t.Errorf("%d were admitted", admitted)
	}

	eventually(t, patience, "everything is refused", func() bool {
		round := send(t, clients, each/4, "").Allowed
		admitted += round
		return round == 0
	})
	// What a sidecar holds when everything is refused, or could not give back, was charged and admits nobody.
	t.Logf("%d of %d were admitted", admitted, limit)
	if admitted > limit {
		t.Errorf("%d were admitted, of at most %d", admitted, limit)
	}
}

// decidedInProcess is how many requests the sidecars have decided by leases.
func decidedInProcess(t *testing.T) int {
	t.Helper()
	sum := 0
	for _, s := range weir.Sidecars {
		r, err := playground.Get(context.WithoutCancel(t.Context()), s.Admin+"/metrics", "")
		if err != nil {
			t.Fatal(err)
		}
		sum += metric(t, r.Body, `weir_lease_decisions_total{by="process"} %d`)
	}
	return sum
}

// scriptCalls is how many calls of scripts Redis had.
func scriptCalls(t *testing.T) int {
	t.Helper()
	stats, err := weir.Redis.Client(t).Info(t.Context(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	return metric(t, stats, "cmdstat_evalsha:calls=%d")
}

// metric gives the number in the one line of a text that has this form.
func metric(t *testing.T, text, form string) int {
	t.Helper()
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		n := 0
		if _, err := fmt.Sscanf(lines.Text(), form, &n); err == nil {
			return n
		}
	}
	t.Fatalf("no line is like %s in:\n%s", form, text)
	return 0
}

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/test/playground"
)

// clockDrift is how far Redis's clock and the test's can get apart in seconds.
const clockDrift = 5 * time.Millisecond

// everywhere runs a test of the sidecars that enforce a policy of this spec: of one that counts in process, and of
// two that share their counts in Redis.
func everywhere(t *testing.T, spec string, test func(t *testing.T, app *application, sidecars []*playground.Sidecar)) {
	for setup, sidecars := range map[string]int{"one sidecar, alone": 1, "two sidecars, with Redis": 2} {
		t.Run(setup, func(t *testing.T) {
			t.Parallel()
			app := newApplication(t, 0)
			test(t, app, enforce(t, app, sidecars, spec))
		})
	}
}

func TestAQueueLetsRequestsGoOnOneByOne(t *testing.T) {
	const requests, interval = 30, 50 * time.Millisecond
	spec := `{selector: {}, limits: [{name: all, strategy: {leakyBucket: {requests: 20, window: 1s}}}]}`
	everywhere(t, spec, func(t *testing.T, app *application, sidecars []*playground.Sidecar) {
		began := time.Now()
		got := count(ask(t.Context(), t, sidecars, requests), requests)
		if diff := cmp.Diff(playground.Tally{Allowed: requests}, got); diff != "" {
			t.Fatalf("answers (-want +got):\n%s", diff)
		}
		came := app.arrivals()
		// A busy machine can make a request late, and so come close to the next. But it can't make one early.
		for turn, at := range came {
			if early := began.Add(time.Duration(turn) * interval).Sub(at); early > clockDrift {
				t.Errorf("request %d came %s before its turn", turn, early)
			}
		}
		closest := interval
		for i, at := range came[1:] {
			closest = min(closest, at.Sub(came[i]))
		}
		t.Logf("%d requests came within %s, the closest two %s apart", requests, came[requests-1].Sub(came[0]), closest)
	})
}

func TestAQueueRefusesWhoWouldWaitForTooLong(t *testing.T) {
	const window, maxDelay = 5 * time.Second, time.Second
	spec := `{selector: {}, limits: [{name: all, strategy: {leakyBucket: {requests: 1, window: 5s, maxDelay: 1s}}}]}`
	everywhere(t, spec, func(t *testing.T, app *application, sidecars []*playground.Sidecar) {
		first, last := sidecars[0].URL, sidecars[len(sidecars)-1].URL
		began := time.Now()
		if r := mustGet(t, first); r.Status != http.StatusOK {
			t.Fatalf("the first request got %+v", r)
		}
		refused := mustGet(t, last)
		wait, err := strconv.Atoi(refused.Header.Get("Retry-After"))
		if refused.Status != http.StatusTooManyRequests || err != nil || wait < 1 || time.Duration(wait)*time.Second > window-maxDelay {
			t.Fatalf("want a refusal for %s at most, got %+v", window-maxDelay, refused)
		}
		time.Sleep(time.Until(refused.At.Add(time.Duration(wait) * time.Second)))
		if r := mustGet(t, last); r.Status != http.StatusOK {
			t.Errorf("after %d seconds, as told, the request got %+v", wait, r)
		}
		if came := app.arrivals(); len(came) != 2 || came[1].Sub(began) < window-clockDrift {
			t.Errorf("requests came at %v, after %s; want 2, %s apart", came, began, window)
		}
	})
}

func TestAClientThatLeavesAQueueGivesItsTurnBack(t *testing.T) {
	const window = 5 * time.Second
	// One can wait, and no more.
	spec := `{selector: {}, limits: [{name: all, strategy: {leakyBucket: {requests: 1, window: 5s, maxDelay: 6s}}}]}`
	everywhere(t, spec, func(t *testing.T, app *application, sidecars []*playground.Sidecar) {
		began := time.Now()
		if r := mustGet(t, sidecars[0].URL); r.Status != http.StatusOK {
			t.Fatalf("the first request got %+v", r)
		}
		ctx, leave := context.WithCancel(t.Context())
		answers := ask(ctx, t, sidecars, 2)
		if r := <-answers; r.Status != http.StatusTooManyRequests {
			t.Fatalf("want one to wait and the other to be refused, got %+v", r)
		}
		leave()
		if r := <-answers; r.Status != 0 {
			t.Fatalf("the client that left got %+v", r)
		}
		eventually(t, patience, "another has its turn", func() bool { return mustGet(t, sidecars[0].URL).Status == http.StatusOK })
		came := app.arrivals()
		if len(came) != 2 {
			t.Fatalf("requests came at %v; want 2", came)
		}
		if after := came[1].Sub(began); after < window-clockDrift || after >= 2*window {
			t.Errorf("the other came after %s; want the turn of the one who left, after %s", after, window)
		}
	})
}

func mustGet(t *testing.T, url string) playground.Response {
	t.Helper()
	r, err := playground.Get(t.Context(), url, "")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

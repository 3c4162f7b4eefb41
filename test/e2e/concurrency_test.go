// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/weir-dev/weir/test/playground"
)

const (
	maxInFlight = 5
	// permitTerm is how long the permits of a crashed sidecar last.
	permitTerm = 10 * time.Second
)

var concurrency = fmt.Sprintf(`{selector: {}, limits: [{name: all, strategy: {concurrency: {maxInFlight: %d}}}]}`, maxInFlight)

func TestTwoSidecarsShareAConcurrencyLimit(t *testing.T) {
	const stay = 5 * time.Millisecond
	app := newApplication(t, stay)
	two := enforce(t, app, 2, concurrency)

	t.Run("of many at once so many are admitted, and no more", func(t *testing.T) {
		const requests = 4 * maxInFlight
		release := app.hold(t)
		answers := ask(t.Context(), t, two, requests)
		got := count(answers, requests-maxInFlight)
		release()
		if diff := cmp.Diff(playground.Tally{Refused: requests - maxInFlight}, got); diff != "" {
			t.Errorf("first answers (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(playground.Tally{Allowed: maxInFlight}, count(answers, maxInFlight)); diff != "" {
			t.Errorf("answers of those that were held (-want +got):\n%s", diff)
		}
	})

	t.Run("one that ends makes room for another", func(t *testing.T) {
		const clients, each = 2 * maxInFlight, 20
		// Were permits only to expire, it would take forty terms.
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		began := time.Now()
		var group errgroup.Group
		for i := range clients {
			group.Go(func() error {
				for range each {
					if err := insist(ctx, two[i%2]); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
		t.Logf("%d requests were admitted in %s", clients*each, time.Since(began).Round(time.Millisecond))
	})

	if _, most := app.present(); most != maxInFlight {
		t.Errorf("at most %d requests were under way at a time, want %d", most, maxInFlight)
	}
}

func TestACrashedSidecarsPermitsAreFreeAfterTheirTerm(t *testing.T) {
	// tick is how much later than it could be somebody is admitted.
	const tick = 3 * time.Second
	app := newApplication(t, 0)
	two := enforce(t, app, 2, concurrency)
	crashing, other := two[0], two[1]
	app.hold(t)
	var group sync.WaitGroup
	t.Cleanup(group.Wait)
	for range maxInFlight {
		group.Go(func() { _ = insist(t.Context(), crashing) }) // The crash ends it.
	}
	eventually(t, patience, "all permits are taken", func() bool { return underWay(app) == maxInFlight })

	// A permit that nobody renews would be free again.
	ctx, cancel := context.WithTimeout(t.Context(), permitTerm+tick)
	defer cancel()
	if err := insist(ctx, other); ctx.Err() == nil {
		t.Fatalf("while all permits were taken, another request was answered: %v", err)
	}
	if _, most := app.present(); most != maxInFlight {
		t.Fatalf("%d requests were under way at a time, want %d", most, maxInFlight)
	}

	crashing.Kill()
	killed := time.Now()
	eventually(t, patience, "the requests of the crashed sidecar are over", func() bool { return underWay(app) == 0 })
	for range maxInFlight {
		group.Go(func() { _ = insist(t.Context(), other) }) // The end of the test ends it.
	}
	eventually(t, time.Until(killed.Add(permitTerm+tick)), "all permits are taken again", func() bool { return underWay(app) == maxInFlight })
	t.Logf("all permits were taken again %s after the crash", time.Since(killed).Round(time.Millisecond))
}

// insist sends a request again and again until it is not refused.
func insist(ctx context.Context, s *playground.Sidecar) error {
	for {
		switch r, err := playground.Get(ctx, s.URL, ""); {
		case err != nil:
			return err
		case r.Status == http.StatusOK:
			return nil
		case r.Status != http.StatusTooManyRequests:
			return fmt.Errorf("got %+v", r)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func underWay(app *application) int {
	now, _ := app.present()
	return now
}

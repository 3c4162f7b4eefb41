// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/test/playground"
)

func TestTwoSidecarsAdmitExactlyTheLimit(t *testing.T) {
	const clients = 8

	t.Run("fixedWindow 100 per 10s, in one aligned window", func(t *testing.T) {
		apply(t, "exact-window", `{selector: {}, limits: [{name: all, strategy: {fixedWindow: {requests: 100, window: 10s}}}]}`)
		awaitReady(t, "exact-window")
		for round := range 3 {
			start := awaitWindow(10 * time.Second)
			got := send(t, clients, 50, "")
			if took := time.Since(start); took > 9*time.Second {
				t.Fatalf("sending took %s, longer than the window", took)
			}
			if diff := cmp.Diff(playground.Tally{Allowed: 100, Refused: 300}, got); diff != "" {
				t.Errorf("answers in round %d (-want +got):\n%s", round, diff)
			}
		}
	})

	t.Run("tokenBucket 100 per 1h, burst 100", func(t *testing.T) {
		apply(t, "exact-bucket", `{selector: {}, limits: [{name: all, strategy: {tokenBucket: {requests: 100, window: 1h, burst: 100}}}]}`)
		awaitReady(t, "exact-bucket")
		if diff := cmp.Diff(playground.Tally{Allowed: 100, Refused: 300}, send(t, clients, 50, "")); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
	})

	t.Run("slidingWindow 100 per 1h", func(t *testing.T) {
		apply(t, "exact-sliding", `{selector: {}, limits: [{name: all, strategy: {slidingWindow: {requests: 100, window: 1h}}}]}`)
		awaitReady(t, "exact-sliding")
		if diff := cmp.Diff(playground.Tally{Allowed: 100, Refused: 300}, send(t, clients, 50, "")); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
	})

	t.Run("slidingWindow 100 per 10s with precision Log, and as many when those are out of the window", func(t *testing.T) {
		apply(t, "exact-log", `{selector: {}, limits: [{name: all, strategy: {slidingWindow: {requests: 100, window: 10s, precision: Log}}}]}`)
		awaitReady(t, "exact-log")
		var end time.Time
		for round := range 2 {
			time.Sleep(time.Until(end.Add(10 * time.Second)))
			start := time.Now()
			got := send(t, clients, 50, "")
			end = time.Now()
			if took := end.Sub(start); took > 9*time.Second {
				t.Fatalf("sending took %s, longer than the window", took)
			}
			if diff := cmp.Diff(playground.Tally{Allowed: 100, Refused: 300}, got); diff != "" {
				t.Errorf("answers in round %d (-want +got):\n%s", round, diff)
			}
		}
	})

	t.Run("fixedWindow 100 a day of a time zone, which ends at midnight there", func(t *testing.T) {
		zone := farFromMidnight(t)
		apply(t, "exact-day", `{selector: {}, limits: [{name: all, strategy: {fixedWindow: {requests: 100, calendar: {unit: Day, timeZone: `+zone.String()+`}}}}]}`)
		awaitReady(t, "exact-day")
		if diff := cmp.Diff(playground.Tally{Allowed: 100, Refused: 300}, send(t, clients, 50, "")); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
		for _, s := range weir.Sidecars {
			now := time.Now().In(zone)
			midnight := time.Date(now.Year(), now.Month(), now.Day()+1, 0, 0, 0, 0, zone)
			most := secondsUntil(midnight)
			r := mustGet(t, s.URL)
			told, least := 0, secondsUntil(midnight)
			if _, err := fmt.Sscanf(r.Header.Get("RateLimit"), `"exact-day/all";r=0;t=%d`, &told); err != nil || told < least || told > most {
				t.Errorf("RateLimit: %s; want t from %d to %d, until midnight in %s", r.Header.Get("RateLimit"), least, most, zone)
			}
		}
	})

	t.Run("two limits: what one refuses is not charged to the other", func(t *testing.T) {
		apply(t, "exact-pair", `{selector: {}, limits: [
			{name: total, strategy: {fixedWindow: {requests: 30, window: 24h}}},
			{name: per-key, key: [{header: {name: x-api-key}}], strategy: {fixedWindow: {requests: 20, window: 24h}}}]}`)
		awaitReady(t, "exact-pair")
		if diff := cmp.Diff(playground.Tally{Allowed: 20, Refused: 380}, send(t, clients, 50, "alice")); diff != "" {
			t.Errorf("answers to alice (-want +got):\n%s", diff)
		}
		// Alice's 380 refusals left the total alone.
		if diff := cmp.Diff(playground.Tally{Allowed: 10, Refused: 390}, send(t, clients, 50, "bob")); diff != "" {
			t.Errorf("answers to bob (-want +got):\n%s", diff)
		}
	})
}

// farFromMidnight gives a time zone in which it isn't midnight soon, nor was it just now. None of them changes its
// clocks.
func farFromMidnight(t *testing.T) *time.Location {
	t.Helper()
	for _, name := range []string{"Asia/Tokyo", "America/Phoenix"} {
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		if hour := time.Now().In(zone).Hour(); hour >= 2 && hour < 22 {
			return zone
		}
	}
	t.Fatal("it is midnight everywhere")
	return nil
}

// secondsUntil rounds up.
func secondsUntil(end time.Time) int {
	return int((time.Until(end) + time.Second - 1) / time.Second)
}

// awaitWindow waits for the start of the next window on the clock, and gives it. Redis has the same clock:
// it runs on this machine.
func awaitWindow(window time.Duration) time.Time {
	next := time.Now().Truncate(window).Add(window)
	time.Sleep(time.Until(next))
	return next
}

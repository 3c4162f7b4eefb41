// SPDX-License-Identifier: Apache-2.0

package servingcert

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var (
	start  = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	names  = []string{"weir-webhook.weir-system.svc", "127.0.0.1"}
	normal = pace{lifetime: 90 * 24 * time.Hour, overlap: 2 * time.Minute}
)

func TestSteps(t *testing.T) {
	const day = 24 * time.Hour
	var r rotation
	now := start
	for _, s := range []struct {
		after time.Duration
		told  bool
		want  string
	}{
		{0, false, "issued"},
		{time.Second, true, ""},
		{60*day - 2*time.Second, true, ""},
		{time.Second, true, "trusted the next"},
		{2*time.Minute - 1, true, ""},
		{1, false, ""},
		{time.Hour, true, "switched"},
		{2*time.Minute - 1, true, ""},
		{1, true, "dropped the former"},
		{time.Second, true, ""},
		{59 * day, true, ""},
		{day, true, "trusted the next"},
		{29 * day, false, ""},
		// The API server never got to know the next authority, and the time of the present one is over.
		{day, false, "issued"},
		// Nobody was there for a year.
		{365 * day, false, "issued"},
	} {
		now = now.Add(s.after)
		next, got, err := r.step(now, names, normal, s.told)
		if err != nil {
			t.Fatal(err)
		}
		if got != s.want {
			t.Fatalf("after %s: step %q, want %q", now.Sub(start), got, s.want)
		}
		if r = next; !r.serves(names, now) {
			t.Fatalf("after %s: what is served is not believed", now.Sub(start))
		}
	}
}

func TestASecretHoldsAllOfARotation(t *testing.T) {
	r, _, err := rotation{}.step(start, names, normal, false)
	if err != nil {
		t.Fatal(err)
	}
	if r, _, err = r.step(start.Add(61*24*time.Hour), names, normal, true); err != nil {
		t.Fatal(err)
	}
	data, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := decode(data).encode()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(data, again); diff != "" {
		t.Errorf("encoded again (-before +after):\n%s", diff)
	}
}

func TestWhatCannotBeReadIsMadeAnew(t *testing.T) {
	r, _, err := rotation{}.step(start, names, normal, false)
	if err != nil {
		t.Fatal(err)
	}
	data, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	for key := range data {
		if key == keySince {
			continue
		}
		broken := map[string][]byte{}
		for k, v := range data {
			broken[k] = v
		}
		broken[key] = []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
		if _, step, err := decode(broken).step(start, names, normal, true); step != "issued" || err != nil {
			t.Errorf("with a broken %s: step %q, %v", key, step, err)
		}
	}
	if _, step, err := r.step(start, []string{"another.name"}, normal, true); step != "issued" || err != nil {
		t.Errorf("for another name: step %q, %v", step, err)
	}
}

// Forty hours with three replicas that look at the Secret when it suits them, and an API server that learns of a
// bundle later still: whoever is asked is believed at every moment.
func TestEveryReplicaIsBelievedAtEveryMoment(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 0))
	const replicas = 3
	p := pace{lifetime: 10 * time.Hour, overlap: 2 * time.Minute}
	var secret, told rotation
	served := [replicas]rotation{}
	now, steps := start, map[string]int{}
	// seen is what the API server trusts; it follows told within a minute.
	var seen rotation
	seenAt := now
	for now.Before(start.Add(40 * time.Hour)) {
		if secret.next == nil && len(secret.cas) == 1 {
			now = now.Add(10 * time.Minute) // Nothing is under way.
		}
		for i := range replicas {
			next, step, err := secret.step(now, names, p, bytes.Equal(encodeCAs(told.cas), encodeCAs(secret.cas)))
			if err != nil {
				t.Fatal(err)
			}
			steps[step]++
			secret, served[i] = next, next
			if rng.IntN(4) > 0 { // The other times the API server doesn't answer.
				told = next
			}
			if seen.current == nil || now.Sub(seenAt) > time.Minute {
				seen, seenAt = told, now
			}
			now = now.Add(time.Duration(rng.Int64N(int64(10 * time.Second))))
			for j := range replicas {
				if served[j].current == nil || seen.current == nil {
					continue
				}
				if !good(served[j].current, seen.cas, names, now) {
					t.Fatalf("after %s replica %d is not believed", now.Sub(start), j)
				}
			}
		}
	}
	if steps["issued"] != 1 || steps["dropped the former"] < 5 {
		t.Errorf("steps: %v", steps)
	}
}

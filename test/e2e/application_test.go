// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weir-dev/weir/test/playground"
)

// application is one that a test has for itself, and that tells who is with it.
type application struct {
	url string
	// stay is how long each request takes it.
	stay time.Duration

	mu       sync.Mutex
	came     []time.Time
	underWay int
	most     int
	// gate is closed while nobody is held.
	gate chan struct{}
}

// newApplication serves until the test ends.
func newApplication(t *testing.T, stay time.Duration) *application {
	t.Helper()
	a := &application{stay: stay, gate: make(chan struct{})}
	close(a.gate)
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	a.url = server.URL
	return a
}

// ServeHTTP answers when the request has stayed, and is not held any more. A client that leaves ends both.
func (a *application) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	gate := a.enter()
	defer a.leave()
	select {
	case <-time.After(a.stay):
	case <-r.Context().Done():
	}
	select {
	case <-gate:
	case <-r.Context().Done():
	}
}

func (a *application) enter() (gate <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.came = append(a.came, time.Now())
	a.underWay++
	a.most = max(a.most, a.underWay)
	return a.gate
}

func (a *application) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.underWay--
}

// hold keeps those that come from now on until they are released, or the test ends.
func (a *application) hold(t *testing.T) (release func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	gate := make(chan struct{})
	a.gate = gate
	release = sync.OnceFunc(func() { close(gate) })
	t.Cleanup(release)
	return release
}

// arrivals gives when requests came, in order.
func (a *application) arrivals() []time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.came)
}

// present gives how many requests are under way now, and the most that ever were.
func (a *application) present() (now, most int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.underWay, a.most
}

// enforce starts sidecars in front of an application, which enforce a policy of this spec until the test ends. One
// counts in process; more of them share their counts in Redis.
func enforce(t *testing.T, app *application, sidecars int, spec string) []*playground.Sidecar {
	t.Helper()
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte(manifest("alone", spec)), 0o600); err != nil {
		t.Fatal(err)
	}
	// The counters in Redis are the test's own.
	instance := rand.Text()
	flags := []string{"--policies", policy, "--instance", instance}
	if sidecars > 1 {
		flags = append(flags, "--redis", weir.Redis.URL())
	}
	started := make([]*playground.Sidecar, sidecars)
	for i := range started {
		s := playground.NewSidecar(options, fmt.Sprintf("%s-%d", instance, i), app.url, flags...)
		t.Cleanup(func() {
			if err := s.Stop(); err != nil {
				t.Errorf("%v; its log is %s", err, s.Log)
			}
		})
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		started[i] = s
	}
	return started
}

// ask sends requests, all at once and evenly over the sidecars, and gives the answers as they come. That of one who
// leaves, which the end of the test makes everyone, has nothing in it.
func ask(ctx context.Context, t *testing.T, sidecars []*playground.Sidecar, requests int) <-chan playground.Response {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	answers := make(chan playground.Response, requests)
	var group sync.WaitGroup
	for i := range requests {
		group.Go(func() {
			r, err := playground.Get(ctx, sidecars[i%len(sidecars)].URL, "")
			if err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			answers <- r
		})
	}
	t.Cleanup(func() {
		cancel()
		group.Wait()
	})
	return answers
}

// count counts so many answers as soon as they have come.
func count(answers <-chan playground.Response, number int) playground.Tally {
	var tally playground.Tally
	for range number {
		tally.Add(<-answers)
	}
	return tally
}

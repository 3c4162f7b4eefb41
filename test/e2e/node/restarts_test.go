// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// tally is what became of the requests of one kind of client, as the workload counts them.
type tally struct {
	Sent, Failed int
	Failures     []string
	Slowest      time.Duration
}

// load has a namespace's client send the checkout so many requests a second, by clients of each kind, until stop is
// called. That gives a tally for each kind.
func load(t *testing.T, namespace string, rate int) (stop func() map[string]tally) {
	t.Helper()
	cmd := cluster.KubectlCommand(t.Context(), "--namespace="+namespace, "exec", "--stdin", "client", "--",
		"/workload", "load", strconv.Itoa(rate), "http://checkout/")
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	line, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end := func() error {
		ended = true
		_ = line.Close() // It may have ended by itself.
		return cmd.Wait()
	}
	t.Cleanup(func() {
		if !ended {
			_ = end() // The test has failed for another reason.
		}
	})
	return func() map[string]tally {
		t.Helper()
		err := end()
		tallies := map[string]tally{}
		if err == nil {
			err = json.Unmarshal(out.Bytes(), &tallies)
		}
		if err != nil || len(tallies) == 0 {
			t.Fatalf("the load says %q, and %q: %v", out.String(), complaint.String(), err)
		}
		return tallies
	}
}

// unharmed demands that no request has failed, and sums up all kinds of clients.
func unharmed(t *testing.T, tallies map[string]tally) (sent, failed int, slowest time.Duration) {
	t.Helper()
	for kind, got := range tallies {
		if got.Failed > 0 || got.Sent == 0 {
			t.Errorf("%s: %d of %d requests failed:\n%s", kind, got.Failed, got.Sent, strings.Join(got.Failures, "\n"))
		}
		sent += got.Sent
		failed += got.Failed
		slowest = max(slowest, got.Slowest)
	}
	return sent, failed, slowest
}

func TestRollingRestartsFailNoRequest(t *testing.T) {
	const restarts, rate = 20, 500
	release(t)
	optIn(t, "restarts")
	deployCheckout(t, "restarts")
	apply(t, "restarts", "checkout", generous)

	began := time.Now()
	stop := load(t, "restarts", rate)
	for range restarts {
		restart(t, "restarts", "checkout")
	}
	awaitPods(t, "restarts", 2)
	tallies := stop()
	took := time.Since(began)
	sent, failed, slowest := unharmed(t, tallies)
	share := func(kind string) string {
		return fmt.Sprintf("%s %d of %d", kind, tallies[kind].Failed, tallies[kind].Sent)
	}
	report(t, "I5", "0 failed requests in 20 restarts at 500 a second", "%d of %d (%s, %s, %s) at %.0f a second, the slowest %s",
		failed, sent, share("keep-alive"), share("HTTP/2"), share("gRPC"), float64(sent)/took.Seconds(), slowest.Round(time.Millisecond))
}

// awaitPods returns when the checkout has so many pods, with those that are about to end.
func awaitPods(t *testing.T, namespace string, want int) {
	t.Helper()
	until(t, "the former pods have ended", func() bool {
		names := kubectl(t, "--namespace="+namespace, "get", "pods", "--selector=app=checkout", "--output=name")
		return strings.Count(names, "\n") == want
	})
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestKeysThatAreTooManyShareACounter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policies.yaml")
	err := os.WriteFile(path, []byte(`apiVersion: ratelimit.weir.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: each}
spec:
  selector: {}
  limits:
  - name: per-host
    key: [{host: {}}]
    strategy: {tokenBucket: {requests: 2, window: 1000h}}
`), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	r := launch(t, hello, "--policies", path, "--max-keys-per-policy", "3")
	eventually(t, "the policies are enforced", func() bool { return len(r.keySeries(t)) == 2 })
	before := maps.Clone(r.keySeries(t))
	got := map[int]int{}
	for i := range 10 {
		for range 3 {
			got[r.getFrom(t, fmt.Sprintf("host-%d.example", i))]++
		}
	}
	if diff := cmp.Diff(map[int]int{200: 2*3 + 2, 429: 22}, got); diff != "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	const labels = `{limit="per-host",namespace="default",policy="each"}`
	want := []map[string]string{
		{"weir_limit_keys" + labels: "0", "weir_overflow_decisions_total" + labels: "0"},
		{"weir_limit_keys" + labels: "3", "weir_overflow_decisions_total" + labels: "21"},
	}
	if diff := cmp.Diff(want, []map[string]string{before, r.keySeries(t)}); diff != "" {
		t.Errorf("metrics before and after (-want +got):\n%s", diff)
	}
}

// getFrom gives the status of a request to a host.
func (r *running) getFrom(t *testing.T, host string) int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Host = host
	response, err := r.client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	return response.StatusCode
}

// keySeries gives the metrics about keys, with their values.
func (r *running) keySeries(t *testing.T) map[string]string {
	t.Helper()
	series := map[string]string{}
	for line := range strings.Lines(r.get(t, r.admin+"/metrics").Body) {
		if strings.HasPrefix(line, "weir_limit_keys{") || strings.HasPrefix(line, "weir_overflow_decisions_total{") {
			name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			series[name] = value
		}
	}
	return series
}

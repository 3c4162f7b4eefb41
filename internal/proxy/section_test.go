// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/go-logr/logr"

	"github.com/weir-dev/weir/internal/match"
)

func TestASectionMayBeThePortOfTheApplication(t *testing.T) {
	for upstream, port := range map[string]string{
		"http://127.0.0.1:8080": "8080",
		"http://checkout":       "80",
		"https://checkout":      "443",
	} {
		t.Run(upstream, func(t *testing.T) {
			u, err := url.Parse(upstream)
			if err != nil {
				t.Fatal(err)
			}
			p := newProxy(refuses, checkout(func(p *match.Policy) { p.Targets[0].Section = port }))
			h := &handler{Proxy: p, listener: "http", upstream: newForwarder(u, p.metrics, logr.Discard())}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", http.NoBody))
			if w.Code != http.StatusTooManyRequests {
				t.Errorf("got %d, want the refusal of section %s", w.Code, port)
			}
		})
	}
}

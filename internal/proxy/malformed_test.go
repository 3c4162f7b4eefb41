// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAMalformedTargetReachesNobody(t *testing.T) {
	want := crlf("HTTP/1.1 400 Bad Request",
		"Cache-Control: no-store",
		"Content-Length: 148",
		"Content-Type: application/problem+json", "",
		`{"type":"about:blank","title":"Bad Request","status":400,"detail":"The request's target has a fragment. Send %23 for a # in the path or the query."}`)
	for name, target := range map[string]string{
		"in the path":          "/echo/login#x",
		"in the query":         "/echo?a#x",
		"in the absolute form": "http://shop.example/echo/login#x",
		"at the end":           "/#",
	} {
		t.Run("a fragment "+name+" is refused", func(t *testing.T) {
			addr := front(t, newProxy(admits), unreached(t))
			r := send(t, addr, crlf("GET "+target+" HTTP/1.1", "Host: shop.example", "Connection: close", "", ""))
			if diff := cmp.Diff(want, undated(readAll(t, r))); diff != "" {
				t.Errorf("response (-want +got):\n%s", diff)
			}
		})
	}

	t.Run("a fragment over HTTP/2 is refused", func(t *testing.T) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+front(t, newProxy(admits), unreached(t)), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.URL.Opaque = "/echo/login#x"
		res, err := newClient(t, true).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		if res.StatusCode != http.StatusBadRequest {
			t.Errorf("status is %s", res.Status)
		}
	})

	t.Run("an escaped # is as good as any character", func(t *testing.T) {
		res, err := newClient(t, false).Get("http://" + front(t, newProxy(admits), application(t, http.HandlerFunc(echo))) + "/a%23b")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		if res.StatusCode != http.StatusOK {
			t.Errorf("status is %s", res.Status)
		}
	})
}

func TestThePrefaceOfHTTP2IsNoRequest(t *testing.T) {
	for name, preface := range map[string]string{
		"a wrong one":             crlf("PRI * HTTP/2.0", "", "XX", "", ""),
		"one with headers":        crlf("PRI * HTTP/2.0", "Host: shop.example", "", "SM", "", ""),
		"one of another protocol": crlf("PRI * HTTP/1.1", "Host: shop.example", "Connection: close", "", ""),
	} {
		t.Run(name+" is refused", func(t *testing.T) {
			got := readAll(t, send(t, front(t, newProxy(admits), unreached(t)), preface))
			if status, _, _ := strings.Cut(got, "\r\n"); status != "HTTP/1.1 400 Bad Request" {
				t.Errorf("the client got %q", got)
			}
		})
	}
}

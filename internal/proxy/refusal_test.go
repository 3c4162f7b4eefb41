// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/match"
)

// unreached is an application that no request may reach.
func unreached(t *testing.T) string {
	return application(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("%s %s reached the application", r.Method, r.RequestURI)
	}))
}

func byKey(p *match.Policy) {
	p.Limits[0].Key = []match.KeySource{{Header: "x-api-key", OnMissing: "Deny"}}
}

// atATime makes the limit one of requests under way.
func atATime(p *match.Policy) {
	p.Limits[0].Limit = limiter.Limit{Algorithm: limiter.Concurrency, Requests: 5, Window: 10 * time.Second}
}

// inTurn makes the limit a queue.
func inTurn(p *match.Policy) {
	p.Limits[0].Limit = limiter.Limit{
		Algorithm: limiter.LeakyBucketQueue, Requests: 5, Window: time.Second, MaxDelay: time.Hour, MaxQueue: 50,
	}
}

func failClosed(p *match.Policy) { p.Limits[0].OnFailure = limiter.FailClosed }

func TestARefusalSaysWhichLimitAndHowLong(t *testing.T) {
	never := verdict{RetryAfter: limiter.Never, ResetAfter: time.Minute}
	tests := []struct {
		name    string
		store   limiter.Store
		policy  match.Policy
		request string
		want    string
	}{
		{
			"a limit is reached", refuses, checkout(),
			crlf("GET / HTTP/1.1", "Host: shop.example", "", ""),
			crlf("HTTP/1.1 429 Too Many Requests",
				"Cache-Control: no-store",
				"Content-Length: 316",
				"Content-Type: application/problem+json",
				`Ratelimit: "checkout-api/per-customer";r=0;t=12`,
				`Ratelimit-Policy: "checkout-api/per-customer";q=100;w=60`,
				"Retry-After: 12", "",
				`{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Request cannot be satisfied as assigned quota has been exceeded","status":429,"detail":"Limit per-customer of policy checkout-api admits 100 requests per 1m; try again in 12 seconds.","violated-policies":["checkout-api/per-customer"]}`),
		},
		{
			"HEAD gets no body", refuses, checkout(),
			crlf("HEAD / HTTP/1.1", "Host: shop.example", "", ""),
			crlf("HTTP/1.1 429 Too Many Requests",
				"Cache-Control: no-store",
				"Content-Length: 316",
				"Content-Type: application/problem+json",
				`Ratelimit: "checkout-api/per-customer";r=0;t=12`,
				`Ratelimit-Policy: "checkout-api/per-customer";q=100;w=60`,
				"Retry-After: 12", "", ""),
		},
		{
			"the policy wants another status, no body and no fields", refuses,
			checkout(func(p *match.Policy) { p.Response = match.Response{StatusCode: 403, Body: "None"} }),
			crlf("GET / HTTP/1.1", "Host: shop.example", "", ""),
			crlf("HTTP/1.1 403 Forbidden", "Cache-Control: no-store", "Content-Length: 0", "Retry-After: 12", "", ""),
		},
		{
			"no wait helps", never, checkout(),
			crlf("GET / HTTP/1.1", "Host: shop.example", "", ""),
			crlf("HTTP/1.1 429 Too Many Requests",
				"Cache-Control: no-store",
				"Content-Length: 357",
				"Content-Type: application/problem+json",
				`Ratelimit: "checkout-api/per-customer";r=0;t=60`,
				`Ratelimit-Policy: "checkout-api/per-customer";q=100;w=60`, "",
				`{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Request cannot be satisfied as assigned quota has been exceeded","status":429,"detail":"Limit per-customer of policy checkout-api admits 100 requests per 1m; this request costs more than that at once, however long it waits.","violated-policies":["checkout-api/per-customer"]}`),
		},
		{
			"a leaky bucket has no turn yet", refuses,
			checkout(func(p *match.Policy) { p.Limits[0].Limit.Algorithm = limiter.LeakyBucketMeter }),
			crlf("GET / HTTP/1.1", "Host: shop.example", "", ""),
			crlf("HTTP/1.1 429 Too Many Requests",
				"Cache-Control: no-store",
				"Content-Length: 331",
				"Content-Type: application/problem+json",
				`Ratelimit: "checkout-api/per-customer";r=0;t=12`,
				`Ratelimit-Policy: "checkout-api/per-customer";q=100;w=60`,
				"Retry-After: 12", "",
				`{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Request cannot be satisfied as assigned quota has been exceeded","status":429,"detail":"Limit per-customer of policy checkout-api admits 100 requests per 1m, evenly spaced; try again in 12 seconds.","violated-policies":["checkout-api/per-customer"]}`),
		},
		{
			"a queue is full", refuses,
			checkout(func(p *match.Policy) {
				inTurn(p)
				p.Limits[0].Limit.MaxDelay = 10 * time.Second
			}),
			crlf("GET / HTTP/1.1", "Host: shop.example", "", ""),
			crlf("HTTP/1.1 429 Too Many Requests",
				"Cache-Control: no-store",
				"Content-Length: 374",
				"Content-Type: application/problem+json",
				`Ratelimit: "checkout-api/per-customer";r=0;t=12`,
				`Ratelimit-Policy: "checkout-api/per-customer";q=5;w=1`,
				"Retry-After: 12", "",
				`{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Request cannot be satisfied as assigned quota has been exceeded","status":429,"detail":"Limit per-customer of policy checkout-api admits 5 requests per 1s, evenly spaced, and lets up to 50 others wait for up to 10s; try again in 12 seconds.","violated-policies":["checkout-api/per-customer"]}`),
		},
		{
			"the delay alone bounds a queue", refuses,
			checkout(func(p *match.Policy) {
				p.Limits[0].Limit = limiter.Limit{Algorithm: limiter.LeakyBucketQueue, Requests: 1, Window: time.Second, MaxDelay: time.Minute}
			}),
			crlf("GET / HTTP/1.1", "Host: shop.example", "", ""),
			crlf("HTTP/1.1 429 Too Many Requests",
				"Cache-Control: no-store",
				"Content-Length: 348",
				"Content-Type: application/problem+json",
				`Ratelimit: "checkout-api/per-customer";r=0;t=12`,
				`Ratelimit-Policy: "checkout-api/per-customer";q=1;w=1`,
				"Retry-After: 12", "",
				`{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Request cannot be satisfied as assigned quota has been exceeded","status":429,"detail":"Limit per-customer of policy checkout-api admits 1 request per 1s, and lets others wait for up to 1m; try again in 12 seconds.","violated-policies":["checkout-api/per-customer"]}`),
		},
		{
			"all permits are taken", refuses, checkout(atATime),
			crlf("GET / HTTP/1.1", "Host: shop.example", "", ""),
			crlf("HTTP/1.1 429 Too Many Requests",
				"Cache-Control: no-store",
				"Content-Length: 317",
				"Content-Type: application/problem+json",
				`Ratelimit: "checkout-api/per-customer";r=0`,
				`Ratelimit-Policy: "checkout-api/per-customer";q=5;qu="concurrent-requests"`,
				"Retry-After: 12", "",
				`{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Request cannot be satisfied as assigned quota has been exceeded","status":429,"detail":"Limit per-customer of policy checkout-api admits 5 requests at a time; try again in 12 seconds.","violated-policies":["checkout-api/per-customer"]}`),
		},
		{
			"a day of the calendar isn't over", refuses,
			checkout(func(p *match.Policy) {
				p.Limits[0].Limit = limiter.Limit{
					Algorithm: limiter.CalendarWindow, Requests: 100,
					Calendar: limiter.Calendar{Unit: limiter.Day, TimeZone: "Europe/Berlin"},
				}
			}),
			crlf("GET / HTTP/1.1", "Host: shop.example", "", ""),
			crlf("HTTP/1.1 429 Too Many Requests",
				"Cache-Control: no-store",
				"Content-Length: 334",
				"Content-Type: application/problem+json",
				`Ratelimit: "checkout-api/per-customer";r=0;t=12`,
				`Ratelimit-Policy: "checkout-api/per-customer";q=100`,
				"Retry-After: 12", "",
				`{"type":"https://iana.org/assignments/http-problem-types#quota-exceeded","title":"Request cannot be satisfied as assigned quota has been exceeded","status":429,"detail":"Limit per-customer of policy checkout-api admits 100 requests per day in Europe/Berlin; try again in 12 seconds.","violated-policies":["checkout-api/per-customer"]}`),
		},
		{
			"the key is missing", admits, checkout(byKey),
			crlf("GET / HTTP/1.1", "Host: shop.example", "", ""),
			crlf("HTTP/1.1 429 Too Many Requests",
				"Cache-Control: no-store",
				"Content-Length: 215",
				"Content-Type: application/problem+json", "",
				`{"type":"about:blank","title":"Too Many Requests","status":429,"detail":"Limit per-customer of policy checkout-api needs header x-api-key, which the request lacks.","violated-policies":["checkout-api/per-customer"]}`),
		},
		{
			"the key reads in several ways", admits, checkout(byKey),
			crlf("GET / HTTP/1.1", "Host: shop.example", "X-Api-Key: real", "X-Api-Key: r0", "", ""),
			crlf("HTTP/1.1 429 Too Many Requests",
				"Cache-Control: no-store",
				"Content-Length: 245",
				"Content-Type: application/problem+json", "",
				`{"type":"about:blank","title":"Too Many Requests","status":429,"detail":"Limit per-customer of policy checkout-api needs header x-api-key in a single line and spelling, which the request lacks.","violated-policies":["checkout-api/per-customer"]}`),
		},
		{
			"the store is away and the policy fails closed",
			broken{},
			checkout(failClosed),
			crlf("GET / HTTP/1.1", "Host: shop.example", "", ""),
			crlf("HTTP/1.1 503 Service Unavailable",
				"Cache-Control: no-store",
				"Content-Length: 319",
				"Content-Type: application/problem+json",
				"Retry-After: 1", "",
				`{"type":"https://iana.org/assignments/http-problem-types#temporary-reduced-capacity","title":"Request cannot be satisfied due to temporary server capacity constraints","status":503,"detail":"Limit per-customer of policy checkout-api can't be counted at the moment, and admits nothing meanwhile; try again in 1 second."}`),
		},
		{
			"a tunnel is asked for", admits, checkout(),
			crlf("CONNECT shop.example:443 HTTP/1.1", "Host: shop.example", "", ""),
			crlf("HTTP/1.1 501 Not Implemented",
				"Cache-Control: no-store",
				"Content-Length: 98",
				"Content-Type: application/problem+json", "",
				`{"type":"about:blank","title":"Not Implemented","status":501,"detail":"CONNECT is not forwarded."}`),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			addr := front(t, newProxy(tt.store, tt.policy), unreached(t))
			request := strings.Replace(tt.request, "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1)
			if diff := cmp.Diff(tt.want, undated(readAll(t, send(t, addr, request)))); diff != "" {
				t.Errorf("response (-want +got):\n%s", diff)
			}
		})
	}
}

// undated leaves out of a response what net/http adds to those of our own.
func undated(response string) string {
	var kept []string
	for line := range strings.SplitSeq(response, "\r\n") {
		if !strings.HasPrefix(line, "Date: ") && line != "Connection: close" {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "\r\n")
}

func TestALimitedCallOfGRPC(t *testing.T) {
	never := verdict{RetryAfter: limiter.Never}
	tests := []struct {
		name   string
		store  limiter.Store
		policy match.Policy
		want   http.Header
	}{
		{"is told the wait", refuses, checkout(), http.Header{
			"Cache-Control":           {"no-store"},
			"Content-Length":          {"0"},
			"Content-Type":            {"application/grpc+proto"},
			"Grpc-Status":             {"8"},
			"Grpc-Message":            {"Limit per-customer of policy checkout-api admits 100 requests per 1m; try again in 12 seconds."},
			"Grpc-Retry-Pushback-Ms":  {"11500"},
			"Grpc-Status-Details-Bin": {"CAgSXkxpbWl0IHBlci1jdXN0b21lciBvZiBwb2xpY3kgY2hlY2tvdXQtYXBpIGFkbWl0cyAxMDAgcmVxdWVzdHMgcGVyIDFtOyB0cnkgYWdhaW4gaW4gMTIgc2Vjb25kcy4aNgoodHlwZS5nb29nbGVhcGlzLmNvbS9nb29nbGUucnBjLlJldHJ5SW5mbxIKCggICxCAyrXuAQ"},
			"Ratelimit":               {`"checkout-api/per-customer";r=0;t=12`},
			"Ratelimit-Policy":        {`"checkout-api/per-customer";q=100;w=60`},
		}},
		{"is told not to retry what never fits", never, checkout(func(p *match.Policy) { p.Response.Headers = nil }), http.Header{
			"Cache-Control":          {"no-store"},
			"Content-Length":         {"0"},
			"Content-Type":           {"application/grpc+proto"},
			"Grpc-Status":            {"8"},
			"Grpc-Message":           {"Limit per-customer of policy checkout-api admits 100 requests per 1m; this request costs more than that at once, however long it waits."},
			"Grpc-Retry-Pushback-Ms": {"-1"},
		}},
		{"is unavailable where the policy fails closed", broken{}, checkout(failClosed), http.Header{
			"Cache-Control":           {"no-store"},
			"Content-Length":          {"0"},
			"Content-Type":            {"application/grpc+proto"},
			"Grpc-Status":             {"14"},
			"Grpc-Message":            {"Limit per-customer of policy checkout-api can't be counted at the moment, and admits nothing meanwhile; try again in 1 second."},
			"Grpc-Retry-Pushback-Ms":  {"1000"},
			"Grpc-Status-Details-Bin": {"CA4SfkxpbWl0IHBlci1jdXN0b21lciBvZiBwb2xpY3kgY2hlY2tvdXQtYXBpIGNhbid0IGJlIGNvdW50ZWQgYXQgdGhlIG1vbWVudCwgYW5kIGFkbWl0cyBub3RoaW5nIG1lYW53aGlsZTsgdHJ5IGFnYWluIGluIDEgc2Vjb25kLhoyCih0eXBlLmdvb2dsZWFwaXMuY29tL2dvb2dsZS5ycGMuUmV0cnlJbmZvEgYKBAgBEAA"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			addr := front(t, newProxy(tt.store, tt.policy), unreached(t))
			res, err := newClient(t, true).Post("http://"+addr+"/shop.Checkout/Pay", "application/grpc+proto", strings.NewReader("\x00\x00\x00\x00\x00"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = res.Body.Close() }()
			res.Header.Del("Date")
			if diff := cmp.Diff(tt.want, res.Header); diff != "" || res.StatusCode != http.StatusOK || readAll(t, res.Body) != "" {
				t.Errorf("status %s, trailers-only header (-want +got):\n%s", res.Status, diff)
			}
		})
	}
}

func TestGRPCMessagesArePercentEncoded(t *testing.T) {
	if diff := cmp.Diff("100%25 of %E2%82%AC%0A", percentEncode("100% of €\n")); diff != "" {
		t.Errorf("encoded (-want +got):\n%s", diff)
	}
}

func TestARefusedExpectationIsNotRead(t *testing.T) {
	addr := front(t, newProxy(refuses, checkout()), unreached(t))
	r := send(t, addr, crlf("POST / HTTP/1.1", "Host: shop.example", "Content-Length: 1000", "Expect: 100-continue", "", ""))
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusTooManyRequests || !res.Close {
		t.Errorf("the first response is %s, and ends the connection: %t", res.Status, res.Close)
	}
}

func TestWithoutTheStore(t *testing.T) {
	t.Run("an open limit lets its requests through", func(t *testing.T) {
		app := application(t, http.HandlerFunc(echo))
		res, err := newClient(t, false).Get("http://" + front(t, newProxy(broken{}, checkout()), app))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		if res.StatusCode != http.StatusOK || res.Header.Get("RateLimit") != "" {
			t.Errorf("status %s, RateLimit %q", res.Status, res.Header.Get("RateLimit"))
		}
	})
}

func TestQuotas(t *testing.T) {
	hit := func(edit func(*limiter.Hit)) limiter.Hit {
		h := limiter.Hit{
			Limit: limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 100, Window: time.Minute},
			ID:    limiter.LimitID{Namespace: "shop", Policy: "checkout-api", Limit: "per-customer"},
		}
		edit(&h)
		return h
	}
	plain := hit(func(*limiter.Hit) {})
	tests := []struct {
		name     string
		hits     []limiter.Hit
		verdicts []limiter.Verdict
		want     http.Header
	}{
		{
			"times are rounded up",
			[]limiter.Hit{plain},
			[]limiter.Verdict{{Allowed: true, Remaining: 7, ResetAfter: 1001 * time.Millisecond}},
			http.Header{
				"Ratelimit":        {`"checkout-api/per-customer";r=7;t=2`},
				"Ratelimit-Policy": {`"checkout-api/per-customer";q=100;w=60`},
			},
		},
		{
			"several limits are one list, in one order",
			[]limiter.Hit{plain, hit(func(h *limiter.Hit) { h.ID.Limit = "total"; h.Limit.Window = time.Hour })},
			[]limiter.Verdict{{Allowed: true, Remaining: 7, ResetAfter: time.Second}, {Allowed: true, Remaining: 3, ResetAfter: time.Second}},
			http.Header{
				"Ratelimit":        {`"checkout-api/per-customer";r=7;t=1, "checkout-api/total";r=3;t=1`},
				"Ratelimit-Policy": {`"checkout-api/per-customer";q=100;w=60, "checkout-api/total";q=100;w=3600`},
			},
		},
		{
			"of two targets the one with less left is told",
			[]limiter.Hit{plain, plain, plain},
			[]limiter.Verdict{{Remaining: 7}, {Remaining: 3}, {Remaining: 5}},
			http.Header{
				"Ratelimit":        {`"checkout-api/per-customer";r=3;t=0`},
				"Ratelimit-Policy": {`"checkout-api/per-customer";q=100;w=60`},
			},
		},
		{
			"a window of no whole seconds is not told",
			[]limiter.Hit{hit(func(h *limiter.Hit) { h.Limit.Window = 1500 * time.Millisecond })},
			[]limiter.Verdict{{Remaining: 3}},
			http.Header{
				"Ratelimit":        {`"checkout-api/per-customer";r=3;t=0`},
				"Ratelimit-Policy": {`"checkout-api/per-customer";q=100`},
			},
		},
		{
			"a window of the calendar is not told, for days are not all as long",
			[]limiter.Hit{hit(func(h *limiter.Hit) {
				h.Limit = limiter.Limit{
					Algorithm: limiter.CalendarWindow, Requests: 100,
					Calendar: limiter.Calendar{Unit: limiter.Day, TimeZone: "Europe/Berlin"},
				}
			})},
			[]limiter.Verdict{{Remaining: 3, ResetAfter: 23 * time.Hour}},
			http.Header{
				"Ratelimit":        {`"checkout-api/per-customer";r=3;t=82800`},
				"Ratelimit-Policy": {`"checkout-api/per-customer";q=100`},
			},
		},
		{
			"shadow limits are not told",
			[]limiter.Hit{hit(func(h *limiter.Hit) { h.Shadow = true })},
			[]limiter.Verdict{{Remaining: 3}},
			http.Header{},
		},
		{
			"a policy that doesn't tell is not told of",
			[]limiter.Hit{hit(func(h *limiter.Hit) { h.ID.Policy = "silent" })},
			[]limiter.Verdict{{Remaining: 3}},
			http.Header{},
		},
	}
	m := match.New([]match.Policy{checkout()}, match.Options{Everything: true})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := http.Header{}
			writeQuotas(got, quotasOf(m, limiter.Decision{Allowed: true, Hits: tt.hits, Verdicts: tt.verdicts}))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("fields (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDurationsReadWell(t *testing.T) {
	for d, want := range map[time.Duration]string{
		10 * time.Millisecond:      "10ms",
		10 * time.Second:           "10s",
		time.Minute:                "1m",
		90 * time.Second:           "1m30s",
		time.Hour:                  "1h",
		time.Hour + 10*time.Minute: "1h10m",
		10 * time.Hour:             "10h",
		time.Hour + time.Second:    "1h0m1s",
	} {
		t.Run(fmt.Sprint("is ", want), func(t *testing.T) {
			if got := short(d); got != want {
				t.Errorf("short(%v) = %q", d, got)
			}
		})
	}
}

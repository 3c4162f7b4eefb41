// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/match"
)

// exchange is one request as an application saw it, and the response as the client saw it.
type exchange struct {
	Method, URI, Host, Proto string
	Header, Trailer          http.Header
	Body                     string

	Status          int
	Early           []string
	ResponseHeader  http.Header
	ResponseTrailer http.Header
	Response        string
}

// echo answers with what it saw.
func echo(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	switch r.URL.Path {
	case "/hints":
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
	case "/gzip":
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		defer func() { _ = z.Close() }()
		_, _ = io.WriteString(z, "zipped")
		return
	case "/nothing":
		w.WriteHeader(http.StatusNoContent)
		return
	case "/moved":
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(http.StatusFound)
		return
	}
	if r.Method != http.MethodHead {
		w.Header().Set("Trailer", "X-Sum")
		defer w.Header().Set("X-Sum", "42")
	}
	w.Header()["Set-Cookie"] = []string{"a=1", "b=2"}
	_ = json.NewEncoder(w).Encode(exchange{
		Method: r.Method, URI: r.RequestURI, Host: r.Host, Proto: r.Proto,
		Header: r.Header, Trailer: r.Trailer, Body: string(body),
	})
}

// ask makes one exchange.
func ask(t *testing.T, c *http.Client, r *http.Request) exchange {
	t.Helper()
	var early []string
	trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		early = append(early, fmt.Sprint(code, h))
		return nil
	}}
	res, err := c.Do(r.WithContext(httptrace.WithClientTrace(t.Context(), trace)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body := readAll(t, res.Body)
	var x exchange
	_ = json.Unmarshal([]byte(body), &x) // Not all responses echo.
	x.Status, x.Early, x.ResponseHeader, x.ResponseTrailer = res.StatusCode, early, res.Header, res.Trailer
	if x.Method == "" {
		x.Response = body
	}
	// The clock makes them differ, and the one address that the proxy adds to what is echoed.
	for _, name := range []string{"Date", "Content-Length"} {
		x.ResponseHeader.Del(name)
	}
	return x
}

func TestAdmittedRequestsPassUnharmed(t *testing.T) {
	app := application(t, http.HandlerFunc(echo))
	// The only limit matches and tells nothing, so that what differs is the proxy's own doing.
	silent := checkout()
	silent.Response.Headers = nil
	through := front(t, newProxy(admits, silent), app)

	tests := []struct {
		name    string
		method  string
		uri     string
		header  http.Header
		body    string
		trailer http.Header
	}{
		{name: "a plain GET", method: "GET", uri: "/"},
		{name: "HEAD", method: "HEAD", uri: "/"},
		{name: "OPTIONS", method: "OPTIONS", uri: "/"},
		{name: "a method of one's own", method: "PURGE", uri: "/cache"},
		{name: "escaped and doubled path", method: "GET", uri: "/a%2Fb//%2e%2E/c;v=1/%E2%82%AC"},
		{name: "two slashes at the start", method: "GET", uri: "//double/slash"},
		{name: "characters that Go would escape", method: "GET", uri: "/{id}|^`\"<>"},
		{name: "a query that does not parse", method: "GET", uri: "/?a=%zz&b;c=1&&=&d"},
		{name: "an empty query", method: "GET", uri: "/?"},
		{name: "a body", method: "POST", uri: "/", body: strings.Repeat("body ", 10_000)},
		{name: "a body with trailers", method: "POST", uri: "/", body: "sum me", trailer: http.Header{"X-Checksum": {"abc"}}},
		{name: "Expect", method: "POST", uri: "/", body: "expected", header: http.Header{"Expect": {"100-continue"}}},
		{name: "headers of many values", method: "GET", uri: "/", header: http.Header{"Cookie": {"a=1; b=2"}, "X-Many": {"1", "2", ""}}},
		{name: "what proxies before us said", method: "GET", uri: "/", header: http.Header{
			"Forwarded":         {"for=198.51.100.7;proto=https"},
			"X-Forwarded-Host":  {"shop.example"},
			"X-Forwarded-Proto": {"https"},
			"X-Forwarded-Port":  {"443"},
			"X-Real-Ip":         {"198.51.100.7"},
		}},
		{name: "a compressed response", method: "GET", uri: "/gzip", header: http.Header{"Accept-Encoding": {"gzip"}}},
		{name: "103 Early Hints", method: "GET", uri: "/hints"},
		{name: "204 No Content", method: "GET", uri: "/nothing"},
		{name: "302 Found", method: "GET", uri: "/moved"},
	}
	for _, http2 := range []bool{false, true} {
		client := newClient(t, http2)
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s over HTTP/2 %t", tt.name, http2), func(t *testing.T) {
				if http2 && strings.HasPrefix(tt.uri, "//") {
					tt.uri = tt.uri[1:] // Go's client can't send it over HTTP/2.
				}
				request := func(addr string) *http.Request {
					r, err := http.NewRequestWithContext(t.Context(), tt.method, "http://"+addr, strings.NewReader(tt.body))
					if err != nil {
						t.Fatal(err)
					}
					if path, query, ok := strings.Cut(tt.uri, "?"); strings.HasPrefix(path, "//") {
						r.URL.Path = path
					} else {
						r.URL.Opaque, r.URL.RawQuery, r.URL.ForceQuery = path, query, ok
					}
					r.Host = "shop.example:8080"
					r.Header = tt.header.Clone()
					if r.Header == nil {
						r.Header = http.Header{}
					}
					r.Header.Set("User-Agent", "")
					if tt.trailer != nil {
						r.Trailer, r.ContentLength = tt.trailer, -1
					}
					return r
				}
				want := ask(t, client, request(app))
				got := ask(t, client, request(through))
				if got.Header != nil {
					if diff := cmp.Diff([]string{"127.0.0.1"}, got.Header["X-Forwarded-For"]); diff != "" {
						t.Errorf("X-Forwarded-For (-want +got):\n%s", diff)
					}
					delete(got.Header, "X-Forwarded-For")
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("exchange (-direct +through the proxy):\n%s", diff)
				}
			})
		}
	}
}

// wire is an application that plays a recording: it answers each connection's first request with the
// same bytes, and tells the head of the request.
func wire(t *testing.T, answer string) (addr string, heads <-chan string) {
	t.Helper()
	ln := listen(t)
	t.Cleanup(func() { _ = ln.Close() })
	seen := make(chan string, 1)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			seen <- readHead(conn)
			_, _ = io.WriteString(conn, answer)
			_ = conn.Close()
		}
	}()
	return ln.Addr().String(), seen
}

func readHead(conn net.Conn) string {
	var head strings.Builder
	for r := bufio.NewReader(conn); !strings.HasSuffix(head.String(), "\r\n\r\n"); {
		line, err := r.ReadString('\n')
		if err != nil {
			break
		}
		head.WriteString(line)
	}
	return head.String()
}

func TestWhatTheApplicationReceives(t *testing.T) {
	tests := []struct {
		name     string
		in, want string
	}{
		{
			"nothing is invented but the peer's address",
			crlf("GET / HTTP/1.1", "Host: shop.example", "", ""),
			crlf("GET / HTTP/1.1", "Host: shop.example", "X-Forwarded-For: 127.0.0.1", "", ""),
		},
		{
			"the peer joins the addresses that were there",
			crlf("GET / HTTP/1.1", "Host: shop.example", "X-Forwarded-For: 1.1.1.1", "X-Forwarded-For: 2.2.2.2, 3.3.3.3", "", ""),
			crlf("GET / HTTP/1.1", "Host: shop.example", "X-Forwarded-For: 1.1.1.1, 2.2.2.2, 3.3.3.3, 127.0.0.1", "", ""),
		},
		{
			"Connection can't drop what proxies said",
			crlf("GET / HTTP/1.1", "Host: shop.example", "Connection: X-Forwarded-For, X-Forwarded-Proto, Forwarded",
				"X-Forwarded-For: 1.1.1.1", "X-Forwarded-Proto: https", "Forwarded: for=1.1.1.1", "", ""),
			crlf("GET / HTTP/1.1", "Host: shop.example", "Forwarded: for=1.1.1.1", "X-Forwarded-For: 1.1.1.1, 127.0.0.1", "X-Forwarded-Proto: https", "", ""),
		},
		{
			"aliases of what proxies say are dropped",
			crlf("GET / HTTP/1.1", "Host: shop.example", "X_Forwarded_For: 9.9.9.9", "x-forwarded_proto: https", "X_REAL_IP: 9.9.9.9", "X_Harmless: 1", "", ""),
			crlf("GET / HTTP/1.1", "Host: shop.example", "X-Forwarded-For: 127.0.0.1", "X_harmless: 1", "", ""),
		},
		{
			"an upgrade to HTTP/2 is not asked for",
			crlf("GET / HTTP/1.1", "Host: shop.example", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__", "", ""),
			crlf("GET / HTTP/1.1", "Host: shop.example", "X-Forwarded-For: 127.0.0.1", "", ""),
		},
		{
			"not even among others",
			crlf("GET / HTTP/1.1", "Host: shop.example", "Connection: upgrade", "Upgrade: websocket, H2C", "", ""),
			crlf("GET / HTTP/1.1", "Host: shop.example", "X-Forwarded-For: 127.0.0.1", "", ""),
		},
		{
			"the absolute form is as good as any",
			crlf("GET http://shop.example/a?b HTTP/1.1", "Host: other.example", "", ""),
			crlf("GET /a?b HTTP/1.1", "Host: shop.example", "X-Forwarded-For: 127.0.0.1", "", ""),
		},
		{
			"OPTIONS * is the application's",
			crlf("OPTIONS * HTTP/1.1", "Host: shop.example", "", ""),
			crlf("OPTIONS * HTTP/1.1", "Host: shop.example", "X-Forwarded-For: 127.0.0.1", "", ""),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			app, heads := wire(t, crlf("HTTP/1.1 204 No Content", "", ""))
			send(t, front(t, newProxy(admits), app), tt.in)
			if diff := cmp.Diff(tt.want, <-heads); diff != "" {
				t.Errorf("request at the application (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhatTheClientReceives(t *testing.T) {
	limited := checkout()
	tests := []struct {
		name         string
		policies     []match.Policy
		answer, want string
	}{
		{
			"nothing is invented",
			nil,
			crlf("HTTP/1.1 200 OK", "Content-Length: 2", "", "hi"),
			crlf("HTTP/1.1 200 OK", "Content-Length: 2", "", "hi"),
		},
		{
			"nothing is invented after early hints",
			nil,
			crlf("HTTP/1.1 103 Early Hints", "Link: </a>", "", "HTTP/1.1 200 OK", "Content-Length: 2", "", "hi"),
			crlf("HTTP/1.1 103 Early Hints", "Link: </a>", "", "HTTP/1.1 200 OK", "Content-Length: 2", "", "hi"),
		},
		{
			"quotas are told",
			[]match.Policy{limited},
			crlf("HTTP/1.1 200 OK", "Content-Length: 2", "", "hi"),
			crlf("HTTP/1.1 200 OK", "Content-Length: 2", `Ratelimit: "checkout-api/per-customer";r=41;t=30`,
				`Ratelimit-Policy: "checkout-api/per-customer";q=100;w=60`, "", "hi"),
		},
		{
			"quotas join those of the application",
			[]match.Policy{limited},
			crlf("HTTP/1.1 404 Not Found", "Content-Length: 0", `RateLimit: "theirs";r=1`, `RateLimit-Policy: "theirs";q=5`, "", ""),
			crlf("HTTP/1.1 404 Not Found", "Content-Length: 0", `Ratelimit: "theirs";r=1`, `Ratelimit: "checkout-api/per-customer";r=41;t=30`,
				`Ratelimit-Policy: "theirs";q=5`, `Ratelimit-Policy: "checkout-api/per-customer";q=100;w=60`, "", ""),
		},
		{
			"quotas are not told on redirects, nor early",
			[]match.Policy{limited},
			crlf("HTTP/1.1 103 Early Hints", "Link: </a>", "", "HTTP/1.1 302 Found", "Content-Length: 0", "Location: /b", "", ""),
			crlf("HTTP/1.1 103 Early Hints", "Link: </a>", "", "HTTP/1.1 302 Found", "Content-Length: 0", "Location: /b", "", ""),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			app, heads := wire(t, tt.answer)
			got := send(t, front(t, newProxy(admits, tt.policies...), app), crlf("GET / HTTP/1.1", "Host: shop.example", "", ""))
			<-heads
			answer := make([]byte, len(tt.want))
			n, _ := io.ReadFull(got, answer)
			if diff := cmp.Diff(tt.want, string(answer[:n])); diff != "" {
				t.Errorf("response at the client (-want +got):\n%s", diff)
			}
		})
	}
}

func TestEventsArriveAsTheyAreSent(t *testing.T) {
	seen := make(chan struct{})
	app := application(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 {
			_, _ = fmt.Fprintf(w, "data: %d\n", i)
			_ = http.NewResponseController(w).Flush()
			<-seen
		}
	}))
	res, err := newClient(t, false).Get("http://" + front(t, newProxy(admits, checkout()), app))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	events := bufio.NewReader(res.Body)
	for i := range 3 {
		got, err := events.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(fmt.Sprintf("data: %d\n", i), got); diff != "" {
			t.Fatalf("event (-want +got):\n%s", diff)
		}
		seen <- struct{}{}
	}
}

// upgrade is the start of a WebSocket.
var upgrade = crlf("GET /chat HTTP/1.1", "Host: shop.example", "Connection: Upgrade", "Upgrade: websocket", "", "")

// chat switches protocols and then echoes line by line.
func chat(w http.ResponseWriter, _ *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	_, _ = rw.WriteString(crlf("HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket", "", ""))
	for err == nil {
		_ = rw.Flush()
		var line string
		line, err = rw.ReadString('\n')
		_, _ = rw.WriteString(line)
	}
}

func TestUpgradedConnectionsPass(t *testing.T) {
	addr := front(t, newProxy(admits, checkout()), application(t, http.HandlerFunc(chat)))
	conn := dial(t, addr)
	_, _ = io.WriteString(conn, upgrade)
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("status is %s", res.Status)
	}
	for _, want := range []string{"one\n", "two\n"} {
		_, _ = io.WriteString(conn, want)
		if got, err := r.ReadString('\n'); err != nil || got != want {
			t.Fatalf("echo of %q is %q, %v", want, got, err)
		}
	}
	_ = conn.Close()
}

// zeros is so many zero bytes.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestLargeBodiesAreStreamed(t *testing.T) {
	const size = 64 << 20
	app := application(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
	}))
	addr := front(t, newProxy(admits, checkout()), app)
	sum := sha256.New()
	_, _ = io.CopyN(sum, zeros{}, size)
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/2 %t", http2), func(t *testing.T) {
			res, err := newClient(t, http2).Post("http://"+addr, "application/octet-stream", io.LimitReader(zeros{}, size))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = res.Body.Close() }()
			got := sha256.New()
			if n, err := io.Copy(got, res.Body); err != nil || n != size {
				t.Fatalf("read %d bytes of %d: %v", n, size, err)
			}
			if !bytes.Equal(sum.Sum(nil), got.Sum(nil)) {
				t.Error("the body came back changed")
			}
		})
	}
}

func TestAnAnswerBeforeTheEndOfTheBodyArrives(t *testing.T) {
	app := application(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	}))
	addr := front(t, newProxy(admits, checkout()), app)
	r := send(t, addr, crlf("POST / HTTP/1.1", "Host: shop.example", "Content-Length: 1000000", "", "the start"))
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != http.StatusRequestEntityTooLarge || !res.Close {
		t.Errorf("the response is %s, and ends the connection: %t", res.Status, res.Close)
	}
}

func TestOneConnectionOfHTTP2HoldsAHundredRequests(t *testing.T) {
	const maxConcurrentStreams = 3
	r := send(t, front(t, newProxy(admits), closed(t)), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	header := make([]byte, 9)
	if _, err := io.ReadFull(r, header); err != nil {
		t.Fatal(err)
	}
	settings := make([]byte, header[2])
	if _, err := io.ReadFull(r, settings); err != nil {
		t.Fatal(err)
	}
	got := map[uint16]uint32{}
	for s := settings; len(s) > 0; s = s[6:] {
		got[binary.BigEndian.Uint16(s)] = binary.BigEndian.Uint32(s[2:])
	}
	if got[maxConcurrentStreams] != 100 {
		t.Errorf("the settings are %v", got)
	}
}

// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/match"
)

// closed gives a host and port where nobody listens.
func closed(t *testing.T) string {
	t.Helper()
	ln := listen(t)
	defer func() { _ = ln.Close() }()
	return ln.Addr().String()
}

func TestAFailureIsBlamedOnWhoeverFailed(t *testing.T) {
	reads := func(t *testing.T) string {
		return application(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.Copy(io.Discard, r.Body); err == nil {
				t.Error("the application got a whole body")
			}
		}))
	}
	tests := []struct {
		name     string
		upstream func(*testing.T) string
		request  string
		want     string
		failures string
	}{
		{
			"the application is down", closed,
			crlf("GET / HTTP/1.1", "Host: shop.example", "Connection: close", "", ""),
			crlf("HTTP/1.1 502 Bad Gateway",
				"Cache-Control: no-store",
				"Content-Length: 177",
				"Content-Type: application/problem+json", "",
				`{"type":"about:blank","title":"Bad Gateway","status":502,"detail":"The application behind this proxy refused the connection or broke it off. No rate limit refused the request."}`),
			"502",
		},
		{
			"the application hangs up",
			func(t *testing.T) string { addr, _ := wire(t, ""); return addr },
			crlf("POST / HTTP/1.1", "Host: shop.example", "Content-Length: 0", "Connection: close", "", ""),
			crlf("HTTP/1.1 502 Bad Gateway",
				"Cache-Control: no-store",
				"Content-Length: 177",
				"Content-Type: application/problem+json", "",
				`{"type":"about:blank","title":"Bad Gateway","status":502,"detail":"The application behind this proxy refused the connection or broke it off. No rate limit refused the request."}`),
			"502",
		},
		{
			"the client's chunks are malformed", reads,
			crlf("POST / HTTP/1.1", "Host: shop.example", "Transfer-Encoding: chunked", "", "zz", "no hexadecimal", "0", "", ""),
			crlf("HTTP/1.1 400 Bad Request",
				"Cache-Control: no-store",
				"Content-Length: 106",
				"Content-Type: application/problem+json", "",
				`{"type":"about:blank","title":"Bad Request","status":400,"detail":"The body of the request is malformed."}`),
			"400",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := newProxy(admits)
			got := readAll(t, send(t, front(t, p, tt.upstream(t)), tt.request))
			if n := strings.Count(got, "\r\nDate: "); n != 1 {
				t.Errorf("the response has %d dates", n)
			}
			if diff := cmp.Diff(tt.want, undated(got)); diff != "" {
				t.Errorf("response (-want +got):\n%s", diff)
			}
			if n := testutil.ToFloat64(p.metrics.failures.WithLabelValues(tt.failures)); n != 1 {
				t.Errorf("%v failures are counted as %s", n, tt.failures)
			}
		})
	}
}

func TestBlame(t *testing.T) {
	gone, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	cancel()
	here := context.WithoutCancel(t.Context())
	tests := []struct {
		name string
		ctx  context.Context
		err  error
		want int
	}{
		{"a refused connection is the application's", here, syscall.ECONNREFUSED, http.StatusBadGateway},
		{"a timeout is the application's", here, &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, http.StatusGatewayTimeout},
		{"a canceled request is the client's", gone, context.Canceled, statusClientGone},
		{"half a body is the client's end", here, clientBodyError{io.ErrUnexpectedEOF}, statusClientGone},
		{"a reset while reading the body is the client's end", here, clientBodyError{&net.OpError{Op: "read", Err: syscall.ECONNRESET}}, statusClientGone},
		{"garbage in the body is the client's fault", here, clientBodyError{errors.New("malformed chunked encoding")}, http.StatusBadRequest},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, blame(tt.ctx, tt.err)); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAClientThatHangsUpEndsItsRequest(t *testing.T) {
	arrived, ended := make(chan struct{}), make(chan struct{})
	app := application(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
		close(ended)
	}))
	p := newProxy(admits)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	addr, served := start(ctx, t, p, app, patience)
	conn := dial(t, addr)
	_, _ = io.WriteString(conn, crlf("GET / HTTP/1.1", "Host: shop.example", "", ""))
	<-arrived
	_ = conn.Close()
	<-ended
	cancel()
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	if n := testutil.ToFloat64(p.metrics.failures.WithLabelValues("499")); n != 1 {
		t.Errorf("%v requests are counted as given up", n)
	}
}

func TestAnUpgradeToHTTP2IsNotTunneled(t *testing.T) {
	app, heads := wire(t, crlf("HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: h2c", "", "PRI * HTTP/2.0"))
	got := readAll(t, send(t, front(t, newProxy(admits), app),
		crlf("GET / HTTP/1.1", "Host: shop.example", "Connection: Upgrade, close", "Upgrade: h2c", "", "")))
	<-heads
	if status, _, _ := strings.Cut(got, "\r\n"); status != "HTTP/1.1 502 Bad Gateway" || strings.Contains(got, "PRI") {
		t.Errorf("the client got %q", got)
	}
}

func TestBeforeAnyLimitsAreKnown(t *testing.T) {
	for _, tt := range []struct {
		name    string
		closed  bool
		status  int
		outcome string
	}{
		{"requests are forwarded", false, http.StatusOK, "allowed"},
		{"requests are refused where that is wanted", true, http.StatusServiceUnavailable, "denied"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := New(limiter.NewEngine(broken{}, noRecorder{}), Options{BootstrapClosed: tt.closed})
			addr := front(t, p, application(t, http.HandlerFunc(echo)))
			res, err := newClient(t, false).Get("http://" + addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = res.Body.Close() }()
			if diff := cmp.Diff(tt.status, res.StatusCode); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
			if n := testutil.ToFloat64(p.metrics.bootstrap.WithLabelValues(tt.outcome)); n != 1 {
				t.Errorf("%v requests are counted as %s", n, tt.outcome)
			}
		})
	}
}

func TestSwappedLimitsCountFromTheNextRequestOn(t *testing.T) {
	p := newProxy(refuses)
	addr := front(t, p, application(t, http.HandlerFunc(echo)))
	client := newClient(t, false)
	var got []int
	for _, m := range []*match.Matcher{
		match.New(nil, match.Options{Everything: true}),
		match.New([]match.Policy{checkout()}, match.Options{Everything: true}),
	} {
		p.Swap(m)
		res, err := client.Get("http://" + addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		got = append(got, res.StatusCode)
	}
	if diff := cmp.Diff([]int{http.StatusOK, http.StatusTooManyRequests}, got); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
}

// keys is a store that admits everything and notes under which keys.
type keys struct {
	verdict
	seen map[string]bool
}

func newKeys() keys { return keys{verdict: admits, seen: map[string]bool{}} }

func (k keys) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	for _, h := range hits {
		k.seen[h.Key] = true
	}
	return k.verdict.Take(ctx, hits)
}

func TestAClientCannotChooseItsAddress(t *testing.T) {
	byAddress := checkout(func(p *match.Policy) {
		p.Limits[0].Key = []match.KeySource{{ClientIP: &match.ClientIPKey{IPv6PrefixLength: 64}, OnMissing: "Share"}}
	})
	loopback := TrustedProxies{netip.MustParsePrefix("127.0.0.0/8")}
	for _, tt := range []struct {
		name    string
		trusted TrustedProxies
		want    int
	}{
		{"whatever it writes, one client has one counter", nil, 1},
		{"behind a trusted proxy each client has its own", loopback, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			counters := newKeys()
			p := New(limiter.NewEngine(counters, noRecorder{}), Options{TrustedProxies: tt.trusted})
			p.Swap(match.New([]match.Policy{byAddress}, match.Options{Everything: true}))
			h := &handler{Proxy: p, upstream: newForwarder(&url.URL{Scheme: "http", Host: closed(t)}, p.metrics, logr.Discard())}
			for _, address := range []string{"198.51.100.1", "198.51.100.2", "2001:db8::1", "2001:db8::2"} {
				r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
				r.RemoteAddr = "127.0.0.1:4711"
				r.Header.Set("X-Forwarded-For", address)
				h.ServeHTTP(httptest.NewRecorder(), r)
			}
			if len(counters.seen) != tt.want {
				t.Errorf("there are %d counters, not %d", len(counters.seen), tt.want)
			}
		})
	}
}

func TestWhatConnectionDropsIsNotCountedBy(t *testing.T) {
	byKey := checkout(func(p *match.Policy) {
		p.Limits[0].Key = []match.KeySource{{Header: "x-api-key", OnMissing: "Share"}}
	})
	counters := newKeys()
	p := New(limiter.NewEngine(counters, noRecorder{}), Options{})
	p.Swap(match.New([]match.Policy{byKey}, match.Options{Everything: true}))
	h := &handler{Proxy: p, upstream: newForwarder(&url.URL{Scheme: "http", Host: closed(t)}, p.metrics, logr.Discard())}
	for _, header := range []http.Header{
		{},
		{"Connection": {"X-Api-Key"}, "X-Api-Key": {"r0"}},
		{"Connection": {"close", "a, x-api-key"}, "X-Api-Key": {"r1"}},
	} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.Header = header
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	if len(counters.seen) != 1 {
		t.Errorf("there are %d counters for requests that reach the application without the key", len(counters.seen))
	}
}

func TestDraining(t *testing.T) {
	t.Run("what is in flight finishes", func(t *testing.T) {
		for _, http2 := range []bool{false, true} {
			arrived, finish := make(chan struct{}), make(chan struct{})
			app := application(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				close(arrived)
				<-finish
				_, _ = io.WriteString(w, "done")
			}))
			ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
			addr, served := start(ctx, t, newProxy(admits, checkout()), app, patience)
			body := make(chan string)
			go func() {
				res, err := newClient(t, http2).Get("http://" + addr)
				if err != nil {
					body <- err.Error()
					return
				}
				defer func() { _ = res.Body.Close() }()
				b, _ := io.ReadAll(res.Body)
				body <- string(b)
			}()
			<-arrived
			stop()
			awaitClosed(t, addr)
			close(finish)
			if diff := cmp.Diff("done", <-body); diff != "" {
				t.Errorf("body (-want +got):\n%s", diff)
			}
			if err := <-served; err != nil {
				t.Error(err)
			}
		}
	})

	t.Run("an upgraded connection is waited for", func(t *testing.T) {
		ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
		addr, served := start(ctx, t, newProxy(admits), application(t, http.HandlerFunc(chat)), patience)
		conn, r := openChat(t, addr)
		stop()
		awaitClosed(t, addr)
		_, _ = io.WriteString(conn, "still here\n")
		if got, err := r.ReadString('\n'); err != nil || got != "still here\n" {
			t.Errorf("echo is %q, %v", got, err)
		}
		_ = conn.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})

	t.Run("what takes longer than grace is cut off, and told", func(t *testing.T) {
		ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
		addr, served := start(ctx, t, newProxy(admits), application(t, http.HandlerFunc(chat)), time.Millisecond)
		_, r := openChat(t, addr)
		stop()
		if _, err := r.ReadString('\n'); err == nil {
			t.Error("the connection goes on")
		}
		if err := <-served; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Serve returned %v", err)
		}
	})
}

func openChat(t *testing.T, addr string) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn := dial(t, addr)
	_, _ = io.WriteString(conn, upgrade)
	r := bufio.NewReader(conn)
	if _, err := http.ReadResponse(r, nil); err != nil {
		t.Fatal(err)
	}
	return conn, r
}

// awaitClosed waits until nobody accepts at addr any more.
func awaitClosed(t *testing.T, addr string) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
		if err != nil {
			return
		}
		_ = conn.Close()
	}
	t.Fatalf("%s still accepts", addr)
}

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
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/match"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come. It is only ever used up by a failing test.
const patience = 20 * time.Second

// verdict is a store that says the same of every hit.
type verdict limiter.Verdict

func (v verdict) Take(_ context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	verdicts := make([]limiter.Verdict, len(hits))
	for i := range verdicts {
		verdicts[i] = limiter.Verdict(v)
	}
	return verdicts, nil
}

func (verdict) Refund(context.Context, []limiter.Charge) error { return nil }

func (verdict) Renew(context.Context, []limiter.Charge) error { return nil }

// broken is a store that can't answer.
type broken struct{}

func (broken) Take(context.Context, []limiter.Hit) ([]limiter.Verdict, error) {
	return nil, errAway
}

func (broken) Refund(context.Context, []limiter.Charge) error { return errAway }

func (broken) Renew(context.Context, []limiter.Charge) error { return errAway }

var errAway = errors.New("the store is away")

var (
	admits  = verdict{Allowed: true, Remaining: 41, ResetAfter: 30 * time.Second}
	refuses = verdict{RetryAfter: 11500 * time.Millisecond, ResetAfter: 11500 * time.Millisecond}
)

type noRecorder struct{}

func (noRecorder) Record(limiter.LimitID, limiter.Outcome) {}

// checkout is a policy with one limit.
func checkout(edit ...func(*match.Policy)) match.Policy {
	p := match.Policy{
		Namespace: "shop",
		Name:      "checkout-api",
		Targets:   []match.Target{{ID: "Service/checkout"}},
		Limits: []match.Limit{{
			Name:  "per-customer",
			Limit: limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 100, Window: time.Minute},
		}},
		Response: match.Response{StatusCode: 429, Headers: []string{draft11}, Body: "Problem"},
	}
	for _, e := range edit {
		e(&p)
	}
	return p
}

// newProxy makes a proxy that enforces policies with what store says.
func newProxy(store limiter.Store, policies ...match.Policy) *Proxy {
	p := New(limiter.NewEngine(store, noRecorder{}), Options{})
	p.Swap(match.New(policies, match.Options{Everything: true}))
	return p
}

// front serves a proxy in front of upstream, a host and port, and gives the proxy's.
func front(t testing.TB, p *Proxy, upstream string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	addr, served := start(ctx, t, p, upstream, patience)
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	return addr
}

// start serves a proxy until ctx is done, and tells the outcome.
func start(ctx context.Context, t testing.TB, p *Proxy, upstream string, grace time.Duration) (addr string, served <-chan error) {
	t.Helper()
	ln := listen(t)
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, ln, "", &url.URL{Scheme: "http", Host: upstream}, grace) }()
	return ln.Addr().String(), done
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// application serves h over HTTP/1 and unencrypted HTTP/2, and gives its host and port.
func application(t testing.TB, h http.Handler) string {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = &http.Protocols{}
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Config.DisableGeneralOptionsHandler = true
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// newClient gives a client that speaks one protocol and adds nothing of its own.
func newClient(t testing.TB, http2 bool) *http.Client {
	t.Helper()
	var p http.Protocols
	p.SetHTTP1(!http2)
	p.SetUnencryptedHTTP2(http2)
	tr := &http.Transport{Protocols: &p, DisableCompression: true, ExpectContinueTimeout: patience}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{
		Transport:     tr,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// send sends raw bytes and gives what comes back.
func send(t *testing.T, addr, request string) *bufio.Reader {
	t.Helper()
	conn := dial(t, addr)
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	return bufio.NewReader(conn)
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// crlf writes a request or a response as people read it.
func crlf(lines ...string) string { return strings.Join(lines, "\r\n") }

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// BenchmarkForwarding tells what the proxy adds to a request, counting left out.
func BenchmarkForwarding(b *testing.B) {
	app := application(b, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))
	for name, addr := range map[string]string{"direct": app, "through": front(b, newProxy(admits, checkout()), app)} {
		b.Run(name, func(b *testing.B) {
			client := newClient(b, false)
			b.ReportAllocs()
			for b.Loop() {
				r, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://"+addr, nil)
				if err != nil {
					b.Fatal(err)
				}
				res, err := client.Do(r)
				if err != nil {
					b.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			}
		})
	}
}

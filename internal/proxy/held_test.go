// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/weir-dev/weir/internal/limiter"
)

// lender is a store that admits everything after a wait, and tells what is given back.
type lender struct {
	verdict
	refunded chan []limiter.Charge
}

// newLender gives a store whose verdicts have a receipt of 7.
func newLender(wait time.Duration) *lender {
	v := admits
	v.Wait, v.Receipt = wait, 7
	return &lender{verdict: v, refunded: make(chan []limiter.Charge, 100)}
}

func (l *lender) Refund(_ context.Context, charges []limiter.Charge) error {
	l.refunded <- charges
	return nil
}

// wantRefund waits until one charge is given back.
func (l *lender) wantRefund(t *testing.T) {
	t.Helper()
	select {
	case charges := <-l.refunded:
		var got []int64
		for _, c := range charges {
			got = append(got, c.Receipt)
		}
		if diff := cmp.Diff([]int64{7}, got); diff != "" {
			t.Errorf("receipts given back (-want +got):\n%s", diff)
		}
	case <-time.After(patience):
		t.Error("nothing is given back")
	}
}

// wantNoRefund says so if anything was given back.
func (l *lender) wantNoRefund(t *testing.T) {
	t.Helper()
	select {
	case charges := <-l.refunded:
		t.Errorf("%+v is given back", charges)
	default:
	}
}

// awaitHeld waits until so many requests are held.
func awaitHeld(t *testing.T, p *Proxy, want int) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if n, _ := p.engine.Waiting(); n == want {
			return
		}
	}
	t.Fatalf("there are never %d requests held", want)
}

func TestARequestIsHeldForItsTurn(t *testing.T) {
	const wait = 50 * time.Millisecond
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("and then forwarded, HTTP/2 %t", http2), func(t *testing.T) {
			store := newLender(wait)
			addr := front(t, newProxy(store, checkout(inTurn)), application(t, http.HandlerFunc(echo)))
			start := time.Now()
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr, strings.NewReader("body"))
			if err != nil {
				t.Fatal(err)
			}
			got := ask(t, newClient(t, http2), r)
			if took := time.Since(start); took < wait || got.Status != http.StatusOK || got.Body != "body" {
				t.Errorf("after %s the answer is %d, to %q", took, got.Status, got.Body)
			}
			store.wantNoRefund(t)
		})
	}
	t.Run("before anybody asks for its body", func(t *testing.T) {
		addr := front(t, newProxy(newLender(wait), checkout(inTurn)), application(t, http.HandlerFunc(echo)))
		start := time.Now()
		r := send(t, addr, crlf("POST / HTTP/1.1", "Host: shop.example", "Content-Length: 4", "Expect: 100-continue", "", ""))
		line, err := r.ReadString('\n')
		if err != nil || line != "HTTP/1.1 100 Continue\r\n" {
			t.Errorf("the answer is %q, %v", line, err)
		}
		if took := time.Since(start); took < wait {
			t.Errorf("it came after %s", took)
		}
	})
	t.Run("also while the proxy drains", func(t *testing.T) {
		p := newProxy(newLender(wait), checkout(inTurn))
		ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
		addr, served := start(ctx, t, p, application(t, http.HandlerFunc(echo)), patience)
		r := send(t, addr, crlf("GET / HTTP/1.1", "Host: shop.example", "", ""))
		awaitHeld(t, p, 1)
		stop()
		if res, err := http.ReadResponse(r, nil); err != nil || res.StatusCode != http.StatusOK {
			t.Errorf("the answer is %+v, %v", res, err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// longHeld holds a request for an hour, and gives what lets its client leave.
func longHeld(t *testing.T, p *Proxy, addr string, http2 bool) (leave func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	client, left := newClient(t, http2), make(chan struct{})
	go func() {
		defer close(left)
		if res, err := client.Do(r); err == nil {
			_ = res.Body.Close()
			t.Errorf("the answer is %s", res.Status)
		}
	}()
	awaitHeld(t, p, 1)
	return func() { cancel(); <-left }
}

func TestAClientThatLeavesWhileItIsHeld(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("gives its slot back, and never reaches the application, HTTP/2 %t", http2), func(t *testing.T) {
			store := newLender(time.Hour)
			p := newProxy(store, checkout(inTurn))
			ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
			addr, served := start(ctx, t, p, unreached(t), patience)
			longHeld(t, p, addr, http2)()
			store.wantRefund(t)
			stop()
			if err := <-served; err != nil {
				t.Error(err)
			}
			store.wantNoRefund(t)
			if n := testutil.ToFloat64(p.metrics.failures.WithLabelValues("499")); n != 1 {
				t.Errorf("%v requests are counted as given up", n)
			}
			if n := count(t, p.metrics.waits); n != 1 {
				t.Errorf("%d waits are measured", n)
			}
		})
	}
}

// count gives the number of measurements in a histogram.
func count(t *testing.T, h prometheus.Histogram) uint64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(h)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families[0].GetMetric()[0].GetHistogram().GetSampleCount()
}

func TestDrainingWaitsForTheLastTurn(t *testing.T) {
	p := newProxy(newLender(time.Hour), checkout(inTurn))
	addr := front(t, p, unreached(t))
	if got := p.untilLastTurn(); got != 0 {
		t.Errorf("while nobody is held, it waits for %s", got)
	}
	leave := longHeld(t, p, addr, false)
	if got := p.untilLastTurn(); got <= time.Hour-patience || got > time.Hour {
		t.Errorf("while a request is held for an hour, it waits for %s", got)
	}
	leave()
	awaitHeld(t, p, 0)
}

func TestHeldRequestsAreMeasuredApart(t *testing.T) {
	p := newProxy(newLender(time.Hour), checkout(inTurn))
	addr := front(t, p, unreached(t))
	want := func(held int) {
		t.Helper()
		const text = "# HELP weir_queue_waiting Requests that are held for their turn in a queue now.\n# TYPE weir_queue_waiting gauge\nweir_queue_waiting %d\n"
		if err := testutil.CollectAndCompare(p, strings.NewReader(fmt.Sprintf(text, held)), "weir_queue_waiting"); err != nil {
			t.Error(err)
		}
	}
	want(0)
	leave := longHeld(t, p, addr, false)
	want(1)
	leave()
	awaitHeld(t, p, 0)
	want(0)

	m := newMetrics(limiter.NewEngine(admits, noRecorder{}))
	m.decided(3*time.Second+2*time.Millisecond, 3*time.Second)
	m.decided(2*time.Millisecond, 0)
	expected := `# HELP weir_decision_duration_seconds Time to decide a request, without that in a queue.
# TYPE weir_decision_duration_seconds histogram
weir_decision_duration_seconds_bucket{path="proxy",le="5e-05"} 0
weir_decision_duration_seconds_bucket{path="proxy",le="0.0001"} 0
weir_decision_duration_seconds_bucket{path="proxy",le="0.00025"} 0
weir_decision_duration_seconds_bucket{path="proxy",le="0.0005"} 0
weir_decision_duration_seconds_bucket{path="proxy",le="0.001"} 0
weir_decision_duration_seconds_bucket{path="proxy",le="0.0025"} 2
weir_decision_duration_seconds_bucket{path="proxy",le="0.005"} 2
weir_decision_duration_seconds_bucket{path="proxy",le="0.01"} 2
weir_decision_duration_seconds_bucket{path="proxy",le="0.02"} 2
weir_decision_duration_seconds_bucket{path="proxy",le="0.03"} 2
weir_decision_duration_seconds_bucket{path="proxy",le="0.05"} 2
weir_decision_duration_seconds_bucket{path="proxy",le="0.1"} 2
weir_decision_duration_seconds_bucket{path="proxy",le="+Inf"} 2
weir_decision_duration_seconds_sum{path="proxy"} 0.004
weir_decision_duration_seconds_count{path="proxy"} 2
`
	if err := testutil.CollectAndCompare(m.decisions, strings.NewReader(expected)); err != nil {
		t.Error(err)
	}
}

func TestAPermitIsHeldUntilTheResponseIsOver(t *testing.T) {
	t.Run("of a stream", func(t *testing.T) {
		store, next := newLender(0), make(chan struct{})
		app := application(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			w.WriteHeader(http.StatusEarlyHints)
			_, _ = io.WriteString(w, "data: 1\n")
			_ = http.NewResponseController(w).Flush()
			<-next
		}))
		r := send(t, front(t, newProxy(store, checkout(atATime)), app), crlf("GET / HTTP/1.1", "Host: shop.example", "", ""))
		for line := ""; line != "data: 1\n"; {
			var err error
			if line, err = r.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		store.wantNoRefund(t)
		close(next)
		store.wantRefund(t)
	})
	t.Run("of an upgraded connection", func(t *testing.T) {
		store := newLender(0)
		conn, r := openChat(t, front(t, newProxy(store, checkout(atATime)), application(t, http.HandlerFunc(chat))))
		_, _ = io.WriteString(conn, "still here\n")
		if got, err := r.ReadString('\n'); err != nil || got != "still here\n" {
			t.Errorf("echo is %q, %v", got, err)
		}
		store.wantNoRefund(t)
		_ = conn.Close()
		store.wantRefund(t)
	})
	t.Run("whose client hangs up", func(t *testing.T) {
		store, arrived := newLender(0), make(chan struct{})
		app := application(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			close(arrived)
			<-r.Context().Done()
		}))
		conn := dial(t, front(t, newProxy(store, checkout(atATime)), app))
		_, _ = io.WriteString(conn, crlf("GET / HTTP/1.1", "Host: shop.example", "", ""))
		<-arrived
		store.wantNoRefund(t)
		_ = conn.Close()
		store.wantRefund(t)
	})
	t.Run("that never comes, because the application is down", func(t *testing.T) {
		store := newLender(0)
		res, err := newClient(t, false).Get("http://" + front(t, newProxy(store, checkout(atATime)), closed(t)))
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		store.wantRefund(t)
	})
	t.Run("that the application breaks off", func(t *testing.T) {
		store := newLender(0)
		app, heads := wire(t, crlf("HTTP/1.1 200 OK", "Content-Length: 100", "", "half"))
		r := send(t, front(t, newProxy(store, checkout(atATime)), app), crlf("GET / HTTP/1.1", "Host: shop.example", "", ""))
		<-heads
		_, _ = io.Copy(io.Discard, r)
		store.wantRefund(t)
	})
	t.Run("and not a moment longer: who sends one request after the other needs one permit", func(t *testing.T) {
		one := &single{free: make(chan struct{}, 1)}
		one.free <- struct{}{}
		addr := front(t, newProxy(one, checkout(atATime)), application(t, http.HandlerFunc(echo)))
		for _, http2 := range []bool{false, true} {
			client := newClient(t, http2)
			for range 50 {
				r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr, nil)
				if err != nil {
					t.Fatal(err)
				}
				if got := ask(t, client, r); got.Status != http.StatusOK {
					t.Fatalf("the answer is %d", got.Status)
				}
			}
		}
	})
}

// single is a store with one permit.
type single struct {
	verdict
	free chan struct{}
}

func (s *single) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	select {
	case <-s.free:
		return admits.Take(ctx, hits)
	default:
		return refuses.Take(ctx, hits)
	}
}

func (s *single) Refund(context.Context, []limiter.Charge) error {
	s.free <- struct{}{}
	return nil
}

func TestAHandlerThatPanicsGivesItsPermitBack(t *testing.T) {
	store := newLender(0)
	p := newProxy(store, checkout(atATime))
	h := &handler{Proxy: p, upstream: &forwarder{}} // Without a ReverseProxy.
	defer func() {
		if recover() == nil {
			t.Error("nothing panicked")
		}
		store.wantRefund(t)
		store.wantNoRefund(t)
	}()
	h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
}

func TestQuotasAreToldAsOfTheTurn(t *testing.T) {
	m := newProxy(admits, checkout(inTurn)).matcher.Load()
	d := limiter.Decision{
		Hits:     []limiter.Hit{{ID: limiter.LimitID{Namespace: "shop", Policy: "checkout-api", Limit: "per-customer"}}},
		Verdicts: []limiter.Verdict{{Allowed: true, Remaining: 4, ResetAfter: 30 * time.Second}},
		Waited:   10 * time.Second,
	}
	want := []quota{{name: "checkout-api/per-customer", remaining: 4, reset: 20 * time.Second}}
	if diff := cmp.Diff(want, quotasOf(m, d), cmp.AllowUnexported(quota{})); diff != "" {
		t.Errorf("quotas (-want +got):\n%s", diff)
	}
}

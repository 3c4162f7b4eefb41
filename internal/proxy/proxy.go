// SPDX-License-Identifier: Apache-2.0

// Package proxy enforces decisions on HTTP requests.
//
// It stands in front of one application and, where no limit refuses, is as good as absent: what arrives
// at the application, and what comes back, are the bytes that direct access would have given.
package proxy

import (
	"context"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/match"
)

// Options are what a [Proxy] may have. The zero value believes no proxy, and forwards before the first
// [Proxy.Swap].
type Options struct {
	// TrustedProxies are believed about the client's address.
	TrustedProxies TrustedProxies
	// BootstrapClosed answers 503 to what arrives before the first [Proxy.Swap].
	BootstrapClosed bool
	Log             logr.Logger
}

// Proxy forwards what the limits admit and answers the rest. It is safe for concurrent use, and a
// prometheus.Collector.
type Proxy struct {
	engine  *limiter.Engine
	matcher atomic.Pointer[match.Matcher]
	leaving atomic.Bool
	options Options
	metrics metrics
}

// New makes a proxy that asks engine about every request.
func New(engine *limiter.Engine, o Options) *Proxy {
	return &Proxy{engine: engine, options: o, metrics: newMetrics(engine)}
}

// Swap makes m decide which limits a request hits, from the next request on.
func (p *Proxy) Swap(m *match.Matcher) { p.matcher.Store(m) }

// Leave has clients open their next connection elsewhere, before this one breaks: HTTP/1 is told with each response
// that the connection closes, and HTTP/2 with the first that it takes no more requests. All that comes is still
// served, and upgraded connections go on.
func (p *Proxy) Leave() { p.leaving.Store(true) }

// handler enforces on one listener.
type handler struct {
	*Proxy
	listener string
	upstream *forwarder
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f, ok := notARequest(r); ok {
		f.answer(w, r)
		return
	}
	// An upgraded connection isn't one that could be closed after a response.
	if h.leaving.Load() && r.Header.Get("Upgrade") == "" {
		w.Header().Set("Connection", "close")
	}
	m := h.matcher.Load()
	if m == nil {
		h.bootstrap(w, r)
		return
	}
	d := h.decide(m, r)
	// However the request ends: by a panic too, and of an upgraded connection that is when nobody speaks any more.
	defer d.Release()
	switch {
	case d.Left:
		h.upstream.fail(w, r, context.Cause(r.Context()))
	case !d.Allowed:
		refusalOf(m, d, r.Header).answer(w, r)
	default:
		h.upstream.forward(w, r, quotasOf(m, d))
	}
}

// notARequest refuses what may not be forwarded, whatever the limits say.
func notARequest(r *http.Request) (refusal, bool) {
	switch {
	case r.Method == http.MethodConnect:
		// Requests in a tunnel would be nobody's to count.
		return notTunneled(), true
	case r.Method == "PRI":
		// Reserved for the preface of HTTP/2. The server lets one pass that is wrong.
		return brokenPreface(), true
	case strings.Contains(r.RequestURI, "#"):
		// Many applications cut a target off at a fragment, and so would serve a path that no limit has seen.
		return fragment(), true
	}
	return refusal{}, false
}

// bootstrap answers a request that arrives before anything is known of limits.
func (h *handler) bootstrap(w http.ResponseWriter, r *http.Request) {
	if h.options.BootstrapClosed {
		h.metrics.bootstrap.WithLabelValues("denied").Inc()
		noLimitsYet().answer(w, r)
		return
	}
	h.metrics.bootstrap.WithLabelValues("allowed").Inc()
	h.upstream.forward(w, r, nil)
}

// decide decides a request. It returns when the request's turn has come, or its client has left. The body is not
// read meanwhile, and while any of it is still to come, net/http doesn't see a client of HTTP/1 leave: its request
// then fails in its turn.
func (h *handler) decide(m *match.Matcher, r *http.Request) limiter.Decision {
	start := time.Now()
	hits := m.Match(match.Request{
		Listener: h.listener,
		Port:     h.upstream.port,
		Method:   r.Method,
		Path:     rawPath(r),
		Host:     r.Host,
		Header:   endToEnd(r.Header),
		Client:   h.client(r),
	})
	d := h.engine.Decide(r.Context(), hits)
	h.metrics.decided(time.Since(start), d.Waited)
	return d
}

func (h *handler) client(r *http.Request) netip.Addr {
	return h.options.TrustedProxies.client(peer(r), r.Header["X-Forwarded-For"])
}

// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
)

// forwarder forwards requests to one application.
type forwarder struct {
	proxy    *httputil.ReverseProxy
	upstream *url.URL
	// port of the application.
	port    string
	mirror  *mirror
	metrics metrics
	log     logr.Logger
}

func newForwarder(upstream *url.URL, m metrics, log logr.Logger) *forwarder {
	f := &forwarder{upstream: upstream, port: portOf(upstream), mirror: newMirror(), metrics: m, log: log}
	f.proxy = &httputil.ReverseProxy{
		Rewrite:       f.rewrite,
		Transport:     f.mirror,
		FlushInterval: -1, // What the application has written, the client may be waiting for.
		BufferPool:    &buffers{},
		ErrorHandler:  f.fail,
		ErrorLog:      slog.NewLogLogger(logr.ToSlogHandler(log), slog.LevelDebug),
	}
	return f
}

// portOf gives the port of a URL that may leave it to the scheme.
func portOf(u *url.URL) string {
	usual := "80"
	if u.Scheme == "https" {
		usual = "443"
	}
	return cmp.Or(u.Port(), usual)
}

// forward forwards a request, and tells of quotas with the response.
func (f *forwarder) forward(w http.ResponseWriter, r *http.Request, quotas []quota) {
	// Without it net/http would throw away a part of the body when a response begins before its end. Only
	// HTTP/1 needs it, and an error says that it is something else.
	_ = http.NewResponseController(w).EnableFullDuplex()
	body := &clientBody{ReadCloser: r.Body}
	// A copy, because the server looks at the body of its own.
	r = r.WithContext(r.Context())
	if r.Body != http.NoBody {
		r.Body = body
	}
	res := &response{ResponseWriter: w, request: r, body: body, quotas: quotas}
	f.proxy.ServeHTTP(res, r)
	if res.answered && res.bodyPending() {
		linger(w, r)
	}
}

// rewrite addresses the request to the application and undoes what ReverseProxy does to it otherwise.
func (f *forwarder) rewrite(pr *httputil.ProxyRequest) {
	out := pr.Out
	out.URL.Scheme, out.URL.Host = f.upstream.Scheme, f.upstream.Host
	out.URL.RawQuery = pr.In.URL.RawQuery
	out.URL.Opaque = opaquePath(pr.In)
	// The server fills in the trailers of pr.In when it has read the body.
	out.Trailer = pr.In.Trailer
	forwarded(out.Header, pr.In)
	dropAliases(out.Header)
	dropUpgradeToHTTP(out.Header)
}

// rawPath gives the path as the client sent it, byte for byte.
func rawPath(r *http.Request) string {
	if !strings.HasPrefix(r.RequestURI, "/") {
		return r.URL.EscapedPath()
	}
	path, _, _ := strings.Cut(r.RequestURI, "?")
	return path
}

// opaquePath is the path for URL.Opaque, which is sent as it is where Path and RawPath would be escaped
// anew. It is empty for what Opaque can't hold: two slashes at the start would become a host.
func opaquePath(r *http.Request) string {
	if !strings.HasPrefix(r.RequestURI, "/") || strings.HasPrefix(r.RequestURI, "//") {
		return ""
	}
	return rawPath(r)
}

// saidByProxies are the headers that tell of the client and its request what we can't know.
var saidByProxies = []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"}

// endToEnd gives the headers that reach the application, as far as limits may look at them. What Connection
// names does not: a client that counts by its key must not be served as one without.
func endToEnd(h http.Header) http.Header {
	kept := h
	for _, line := range h["Connection"] {
		for option := range strings.SplitSeq(line, ",") {
			name := http.CanonicalHeaderKey(strings.TrimSpace(option))
			if _, ok := kept[name]; !ok || name == "Upgrade" || slices.Contains(saidByProxies, name) {
				continue
			}
			if len(kept) == len(h) { // Nothing is dropped yet.
				kept = maps.Clone(h)
			}
			delete(kept, name)
		}
	}
	return kept
}

// forwarded keeps what the proxies before us said, even if the client's Connection header asks to drop
// it, and adds the one address that the application can't see any more. The application's host and
// scheme are as they were, so there is nothing to say of them.
func forwarded(out http.Header, in *http.Request) {
	for _, name := range saidByProxies {
		if values, ok := in.Header[name]; ok {
			out[name] = values
		}
	}
	hops := slices.Clone(in.Header["X-Forwarded-For"])
	if a := peer(in); a.IsValid() {
		hops = append(hops, a.String())
	}
	if len(hops) > 0 {
		// One line, because many applications read only one.
		out["X-Forwarded-For"] = []string{strings.Join(hops, ", ")}
	}
}

// dropAliases drops headers like X_Forwarded_For. Applications behind CGI, WSGI and their like can't tell
// them from the real ones, so that a client could write what only proxies may.
func dropAliases(h http.Header) {
	for name := range h {
		if !strings.Contains(name, "_") {
			continue
		}
		plain := strings.ToLower(strings.ReplaceAll(name, "_", "-"))
		if strings.HasPrefix(plain, "x-forwarded-") || plain == "x-real-ip" {
			delete(h, name)
		}
	}
}

// dropUpgradeToHTTP drops the wish to go on in another version of HTTP, or in TLS, on this connection:
// ReverseProxy would tunnel all further requests past the limits. RFC 9110 lets a server ignore it.
func dropUpgradeToHTTP(h http.Header) {
	for protocol := range strings.SplitSeq(h.Get("Upgrade"), ",") {
		name, _, _ := strings.Cut(strings.ToLower(strings.TrimSpace(protocol)), "/")
		if strings.HasPrefix(name, "h2") || name == "http" || name == "tls" {
			h.Del("Upgrade")
			h.Del("Connection")
		}
	}
	h.Del("Http2-Settings")
}

// fail answers a request that was not forwarded, or whose response did not come. Such an answer is never
// about limits, and says so.
func (f *forwarder) fail(w http.ResponseWriter, r *http.Request, err error) {
	status := blame(r.Context(), err)
	f.metrics.failures.WithLabelValues(strconv.Itoa(status)).Inc()
	// w keeps net/http from dating what it takes for the application's response.
	w.Header().Set("Date", time.Now().UTC().Format(http.TimeFormat))
	switch status {
	case statusClientGone:
		// Nobody is there to answer, and a connection ended is what a half-read request deserves.
		panic(http.ErrAbortHandler)
	case http.StatusBadRequest:
		malformedBody().write(w, r)
	default:
		f.log.Error(err, "the application did not answer", "status", status)
		upstreamFailure(status).write(w, r)
	}
}

// statusClientGone counts requests that were given up by their client. It is never sent.
const statusClientGone = 499

// blame gives the status that says whose fault a failed request is.
func blame(ctx context.Context, err error) int {
	var body clientBodyError
	var timeout net.Error
	switch {
	case errors.As(err, &body) && !body.gone():
		return http.StatusBadRequest
	case errors.As(err, &body), errors.Is(ctx.Err(), context.Canceled):
		return statusClientGone
	case errors.As(err, &timeout) && timeout.Timeout():
		return http.StatusGatewayTimeout
	}
	return http.StatusBadGateway
}

// clientBody is the body of a request. It marks the errors of reading it, which the transport returns among
// its own, and knows whether its end was reached.
type clientBody struct {
	io.ReadCloser
	ended atomic.Bool
}

func (b *clientBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	switch err { // Readers return io.EOF bare, and it must stay so.
	case nil:
		return n, nil
	case io.EOF:
		b.ended.Store(true)
		return n, io.EOF
	}
	return n, clientBodyError{err}
}

type clientBodyError struct{ error }

func (e clientBodyError) Error() string { return fmt.Sprintf("reading the client's body: %v", e.error) }
func (e clientBodyError) Unwrap() error { return e.error }

// gone tells a client that broke off from one that sent garbage.
func (e clientBodyError) gone() bool {
	var broken *net.OpError
	return errors.Is(e, io.ErrUnexpectedEOF) || errors.As(e, &broken)
}

// mirror speaks to the application as the client speaks to us: HTTP/2 is answered by HTTP/2, which gRPC
// needs, and HTTP/1 by HTTP/1, which upgrades need.
type mirror struct{ http1, http2 *http.Transport }

func newMirror() *mirror {
	var one, two http.Protocols
	one.SetHTTP1(true)
	two.SetHTTP2(true)
	two.SetUnencryptedHTTP2(true)
	return &mirror{http1: newTransport(&one), http2: newTransport(&two)}
}

func (m *mirror) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.ProtoMajor == 2 {
		return m.http2.RoundTrip(r)
	}
	return m.http1.RoundTrip(r)
}

func (m *mirror) close() {
	m.http1.CloseIdleConnections()
	m.http2.CloseIdleConnections()
}

func newTransport(p *http.Protocols) *http.Transport {
	return &http.Transport{
		Protocols:   p,
		DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext,
		// The client's Accept-Encoding is the application's business.
		DisableCompression:    true,
		MaxIdleConnsPerHost:   maxIdleConns,
		IdleConnTimeout:       idleConnTimeout,
		ExpectContinueTimeout: expectContinueTimeout,
	}
}

const (
	// An application that doesn't accept within this time is down: it is on the same machine.
	dialTimeout = 5 * time.Second
	// Enough to keep a connection for each of as many concurrent requests.
	maxIdleConns = 512
	// A POST that meets a connection just closed by the application can't be sent again. So ours end
	// first: the shortest default known is 2 s (gunicorn), and connecting to the same machine is cheap.
	idleConnTimeout = time.Second
	// How long an application that ignores Expect: 100-continue delays the body.
	expectContinueTimeout = time.Second
)

// response is the response to a request that was forwarded.
type response struct {
	http.ResponseWriter
	request *http.Request
	body    *clientBody
	quotas  []quota
	// answered says that the header is written. That of an upgrade never is: it belongs to the tunnel.
	answered bool
}

// Unwrap lets http.ResponseController flush and hijack.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader adds the fields that tell of quotas, and keeps net/http from adding any of its own.
func (w *response) WriteHeader(status int) {
	if status == http.StatusContinue {
		// The application's made the transport ask for the body, and that makes net/http send ours.
		return
	}
	if status >= http.StatusOK {
		h := w.Header()
		leaveAbsent(h, "Content-Type")
		leaveAbsent(h, "Date")
		if status < 300 || status >= 400 { // The draft advises against them on redirects.
			writeQuotas(h, w.quotas)
		}
		if w.bodyPending() {
			h.Set("Connection", "close")
		}
		w.answered = true
	}
	w.ResponseWriter.WriteHeader(status)
}

// bodyPending says whether the connection holds more of the request's body. What is still to come may be
// malformed, and then nobody could tell where the next request on the connection begins: in full duplex
// net/http would look for it right there.
func (w *response) bodyPending() bool {
	return hasBody(w.request) && !w.body.ended.Load()
}

// leaveAbsent keeps net/http from making up a field that the application did not send.
func leaveAbsent(h http.Header, name string) {
	if _, ok := h[name]; !ok {
		h[name] = nil
	}
}

// buffers lends the buffers that bodies are copied through.
type buffers struct{ pool sync.Pool }

type buffer [32 << 10]byte

func (b *buffers) Get() []byte {
	if v, ok := b.pool.Get().(*buffer); ok {
		return v[:]
	}
	return new(buffer)[:]
}

func (b *buffers) Put(p []byte) { b.pool.Put((*buffer)(p)) }

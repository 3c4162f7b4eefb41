// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/go-logr/logr"
)

// Serve forwards what arrives at ln to upstream, of which scheme and host count, until ctx is done. Then
// it closes ln and lets what is in flight finish, upgraded connections too, for up to grace from when the last
// request that is held in a queue has its turn; what is left then is cut off, and is an error. The limits of a section count where the section has the listener's
// name; where the name is empty all do.
func (p *Proxy) Serve(ctx context.Context, ln net.Listener, name string, upstream *url.URL, grace time.Duration) error {
	f := newForwarder(upstream, p.metrics, p.options.Log.WithValues("listener", cmp.Or(name, ln.Addr().String())))
	defer f.mirror.close()
	requests, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()

	t := &tracked{Handler: &handler{Proxy: p, listener: name, upstream: f}}
	s := newServer(t, p.options.Log)
	s.BaseContext = func(net.Listener) context.Context { return requests }
	drained := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() { drained <- t.drain(s, p.untilLastTurn()+grace) })
	if err := s.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		stop()
		return fmt.Errorf("serving %s: %w", ln.Addr(), err)
	}
	if err := <-drained; err != nil {
		return fmt.Errorf("draining %s: %w", ln.Addr(), err)
	}
	return nil
}

// untilLastTurn is how long requests will still be held for.
func (p *Proxy) untilLastTurn() time.Duration {
	_, longest := p.engine.Waiting()
	return longest
}

func newServer(h http.Handler, log logr.Logger) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:   h,
		Protocols: &protocols,
		// Bodies and responses may take any time. Headers may not: a client that dribbles them holds a
		// connection and no request.
		ReadHeaderTimeout: 5 * time.Second,
		// Longer than the load balancers in front of us keep theirs (up to 10 minutes), lest one of them
		// sends a request into a connection that we are closing.
		IdleTimeout:    15 * time.Minute,
		MaxHeaderBytes: 256 << 10,
		// Requests of one connection that are in flight. RFC 9113 advises against less than 100.
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 100},
		// OPTIONS * is the application's to answer.
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     slog.NewLogLogger(logr.ToSlogHandler(log), slog.LevelError),
	}
}

// tracked knows whether requests are in flight, those of upgraded connections among them: http.Server
// forgets these.
type tracked struct {
	http.Handler
	inFlight sync.WaitGroup
}

func (t *tracked) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	t.inFlight.Add(1)
	defer t.inFlight.Done()
	t.Handler.ServeHTTP(w, r)
}

// drain stops s and waits for all that is in flight, or for grace to pass.
func (t *tracked) drain(s *http.Server, grace time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		return errors.Join(err, s.Close())
	}
	idle := make(chan struct{})
	go func() { defer close(idle); t.inFlight.Wait() }()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

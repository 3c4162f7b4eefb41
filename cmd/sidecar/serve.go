// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
)

// drainGrace is how long requests in flight have to finish once nothing is accepted any more.
const drainGrace = 30 * time.Second

// opened is a route whose listener is open.
type opened struct {
	route
	net.Listener
}

// open opens a listener for each route, or none.
func open(ctx context.Context, routes []route) ([]opened, error) {
	var all []opened
	for _, r := range routes {
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp", r.address)
		if err != nil {
			for _, o := range all {
				_ = o.Close()
			}
			return nil, fmt.Errorf("opening a listener: %w", err)
		}
		all = append(all, opened{route: r, Listener: ln})
	}
	return all, nil
}

// serve serves the listeners until ctx is done and all requests have had their answer. It says how long it took
// from the one to the other.
func (s *sidecar) serve(ctx context.Context, listeners []opened) (drained time.Duration, err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	accepting, refuse := context.WithCancel(context.WithoutCancel(ctx))
	defer refuse()
	var servers errgroup.Group
	for _, l := range listeners {
		servers.Go(func() error {
			defer stop() // One listener that fails ends all, in good order.
			return s.proxy.Serve(accepting, l, l.name, l.upstream, drainGrace)
		})
		s.log.Info("listening", "listener", cmp.Or(l.name, l.Addr().String()), "address", l.Addr().String(), "upstream", l.upstream.String())
	}
	<-ctx.Done()
	// Readiness fails first, and only when all have noticed does the door close: whoever has not yet may
	// still send requests here.
	began := time.Now()
	s.state.draining.Store(true)
	s.log.Info("draining", "delay", s.options.drainDelay.String())
	<-time.After(s.options.drainDelay)
	refuse()
	err = servers.Wait()
	return time.Since(began), err
}

// serveAdmin serves the admin endpoints until ctx is done.
func serveAdmin(ctx context.Context, ln net.Listener, st *state, metrics prometheus.Gatherer, log logr.Logger) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /readyz", st.serveReady)
	mux.HandleFunc("GET /debug/snapshot", st.serveSnapshot)
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          slog.NewLogLogger(logr.ToSlogHandler(log), slog.LevelError),
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the admin endpoints: %w", err)
	}
	return nil
}

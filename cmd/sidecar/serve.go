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
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/weir-dev/weir/internal/probe"
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
			closeAll(all)
			return nil, fmt.Errorf("opening a listener: %w", err)
		}
		all = append(all, opened{route: r, Listener: ln})
	}
	return all, nil
}

func closeAll(listeners []opened) {
	for _, l := range listeners {
		_ = l.Close()
	}
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
	s.proxy.Leave()
	s.log.Info("draining", "delay", s.options.drainDelay.String())
	<-time.After(s.options.drainDelay)
	refuse()
	err = servers.Wait()
	return time.Since(began), err
}

// endpoints are what the sidecar serves of its own.
type endpoints struct {
	net.Listener
	http.Handler
}

// openOwn opens the listeners of the sidecar's own endpoints, or none.
func (s *sidecar) openOwn(ctx context.Context) ([]endpoints, error) {
	routes, handlers := []route{{name: "admin", address: s.options.adminAddress}}, []http.Handler{s.admin()}
	if address := s.options.probeAddress; address != "" {
		mux := s.probes()
		mux.Handle(probe.Prefix, probe.NewHandler(s.options.probes))
		routes, handlers = append(routes, route{name: "probes", address: address}), append(handlers, mux)
	}
	listeners, err := open(ctx, routes)
	if err != nil {
		return nil, err
	}
	own := make([]endpoints, len(listeners))
	for i, l := range listeners {
		own[i] = endpoints{Listener: l, Handler: handlers[i]}
		s.log.Info("listening", "listener", l.name, "address", l.Addr().String())
	}
	return own, nil
}

// admin is for those who operate the sidecar.
func (s *sidecar) admin() *http.ServeMux {
	mux := s.probes()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /debug/snapshot", s.state.serveSnapshot)
	mux.HandleFunc("POST /leave", s.serveLeave)
	return mux
}

// serveLeave lets the clients go before the application does. The sidecar stays ready: Services know of the end
// already, and where no other pod is left, it is still the one to ask.
func (s *sidecar) serveLeave(http.ResponseWriter, *http.Request) {
	s.proxy.Leave()
	s.log.Info("leaving")
}

// probes tell a stranger nothing.
func (s *sidecar) probes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /readyz", s.state.serveReady)
	return mux
}

// serve serves the endpoints until ctx is done.
func (e endpoints) serve(ctx context.Context, log logr.Logger) error {
	server := &http.Server{
		Handler:           e.Handler,
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          slog.NewLogLogger(logr.ToSlogHandler(log), slog.LevelError),
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(e.Listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the sidecar's own endpoints: %w", err)
	}
	return nil
}

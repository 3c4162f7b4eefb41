// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"

	"google.golang.org/grpc/health"
)

// patient is an application that goes on running when it is ill, as only probes can tell.
type patient struct {
	http.Handler
	net.Listener
	calls      *health.Server
	sick, dead atomic.Bool
}

// ServeHTTP makes it ill when it is asked to, and lets it answer as long as it can.
func (p *patient) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/sick":
		p.sick.Store(true)
		p.calls.Shutdown()
	case r.URL.Path == "/dead":
		p.dead.Store(true)
		_ = p.Close()
	case p.sick.Load() && r.ProtoMajor == 1:
		http.Error(w, "sick", http.StatusInternalServerError)
	default:
		p.Handler.ServeHTTP(w, r)
	}
}

// serve returns when the server ends, but not by death: then it waits for ctx to be done.
func (p *patient) serve(ctx context.Context, s *http.Server) error {
	err := s.Serve(p.Listener)
	if p.dead.Load() {
		<-ctx.Done()
		return http.ErrServerClosed
	}
	return err
}

// check fails unless the answer is 200.
func check(ctx context.Context, url string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("making a request: %w", err)
	}
	response, err := (&http.Client{Timeout: timeout}).Do(r)
	if err != nil {
		return fmt.Errorf("sending a request: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the answer is %s", response.Status)
	}
	return nil
}

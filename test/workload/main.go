// SPDX-License-Identifier: Apache-2.0

// Command workload is what tests run in pods: an application to send requests to, and a client to send them.
//
//	workload serve           answers every request on :8080 with the name of its host, and gRPC health checks
//	                         until a request for /sick or /dead: then it answers with errors, or not at all
//	workload check URL       fails unless the answer is 200
//	workload get URL [N]     prints the status and the body of the answer, N times on as many connections
//	workload load RATE URL   sends so many requests a second, by clients of several kinds, until its input ends,
//	                         and prints what became of them
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// timeout is how long a client waits, and how long a server lets requests end that are in flight.
const timeout = 5 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "workload:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	switch {
	case len(args) == 1 && args[0] == "serve":
		return serve(ctx)
	case len(args) == 2 && args[0] == "check":
		return check(ctx, args[1])
	case len(args) == 2 && args[0] == "get":
		return get(ctx, args[1], "1", out)
	case len(args) == 3 && args[0] == "get":
		return get(ctx, args[1], args[2], out)
	case len(args) == 3 && args[0] == "load":
		return load(ctx, args[1], args[2], in, out)
	}
	return fmt.Errorf("got %q, want serve, check URL, get URL [N], or load RATE URL", strings.Join(args, " "))
}

// serve answers until ctx is done, and then what is in flight.
func serve(ctx context.Context) error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("finding the name of this host: %w", err)
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", ":8080")
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	calls, app := grpc.NewServer(), &patient{Listener: listener, calls: health.NewServer()}
	healthv1.RegisterHealthServer(calls, app.calls)
	server := http.Server{
		ReadHeaderTimeout: timeout,
		Protocols:         &protocols,
		Handler:           app,
	}
	app.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			calls.ServeHTTP(w, r)
			return
		}
		log.Println(r.Method, r.URL.Path)
		fmt.Fprintln(w, "hello from", host)
	})
	failed := make(chan error, 1)
	go func() { failed <- app.serve(ctx, &server) }()
	log.Println("serving on", listener.Addr())
	select {
	case err := <-failed:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		return fmt.Errorf("shutting down: %w", err)
	}
	if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving: %w", err)
	}
	return nil
}

// get sends requests one after the other.
func get(ctx context.Context, url, times string, out io.Writer) error {
	n, err := strconv.Atoi(times)
	if err != nil {
		return fmt.Errorf("got %q, want how many requests", times)
	}
	for range n {
		if err := getOnce(ctx, url, out); err != nil {
			return err
		}
	}
	return nil
}

func getOnce(ctx context.Context, url string, out io.Writer) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("making a request: %w", err)
	}
	r.Close = true // A Service chooses a pod for each connection.
	response, err := (&http.Client{Timeout: timeout}).Do(r)
	if err != nil {
		return fmt.Errorf("sending a request: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	fmt.Fprintln(out, response.StatusCode, strings.TrimSpace(string(body)))
	return nil
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

const (
	// longestLoad bounds a load that nobody ends.
	longestLoad = 10 * time.Minute
	// connections of each kind of client that has one for all its requests.
	connections = 4
	// toldFailures is how many failures of a kind of client are told in words.
	toldFailures = 10
)

// tally is what became of the requests of one kind of client.
type tally struct {
	Sent, Failed int
	// Failures are the first ones, in words.
	Failures []string
	// Slowest is the longest that an answer took.
	Slowest time.Duration
}

// load sends requests at a steady rate, however long answers take, by each kind of client in turn. It ends with
// in, and then prints a tally for each kind.
func load(ctx context.Context, rate, target string, in io.Reader, out io.Writer) error {
	perSecond, err := strconv.Atoi(rate)
	if err != nil || perSecond <= 0 {
		return fmt.Errorf("got %q, want how many requests a second", rate)
	}
	clients, err := newClients(target)
	if err != nil {
		return err
	}
	ctx, stop := context.WithTimeout(ctx, longestLoad)
	defer stop()
	go func() {
		defer stop()
		_, _ = io.Copy(io.Discard, in) // Whatever ends it is an end.
	}()

	tallies := map[string]*tally{}
	for _, c := range clients {
		tallies[c.kind] = &tally{}
	}
	var mu sync.Mutex
	var inFlight sync.WaitGroup
	interval, began := time.Second/time.Duration(perSecond), time.Now()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			inFlight.Wait()
			return json.NewEncoder(out).Encode(tallies)
		case <-time.After(time.Until(began.Add(time.Duration(i) * interval))):
		}
		c := clients[i%len(clients)]
		inFlight.Go(func() {
			// What is under way when the load ends is still answered.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
			defer cancel()
			sent := time.Now()
			err := c.send(ctx)
			mu.Lock()
			defer mu.Unlock()
			tallies[c.kind].add(sent, time.Since(sent), err)
		})
	}
}

func (t *tally) add(sent time.Time, took time.Duration, err error) {
	t.Sent++
	t.Slowest = max(t.Slowest, took)
	if err == nil {
		return
	}
	t.Failed++
	if len(t.Failures) < toldFailures {
		t.Failures = append(t.Failures, fmt.Sprintf("%s, after %s: %v", sent.Format(time.TimeOnly+".000"), took, err))
	}
}

// sender is a client of some kind. Its send fails unless the answer is a good one.
type sender struct {
	kind string
	send func(context.Context) error
}

// newClients gives as many clients of each kind, in turn.
func newClients(target string) ([]sender, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("parsing the URL: %w", err)
	}
	var one, two http.Protocols
	one.SetHTTP1(true)
	two.SetUnencryptedHTTP2(true)
	// It takes as many connections as it has requests under way, and keeps those that it needs: a server can't tell
	// an idle one of HTTP/1 that it ends, other than by closing it, which may cross a request.
	keepAlive := httpSender(target, &http.Transport{Protocols: &one, MaxIdleConnsPerHost: 64, IdleConnTimeout: 2 * time.Second})
	var all []sender
	for range connections {
		calls, err := grpcSender(net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "80")))
		if err != nil {
			return nil, err
		}
		all = append(all,
			sender{"keep-alive", keepAlive},
			sender{"HTTP/2", httpSender(target, &http.Transport{Protocols: &two})},
			sender{"gRPC", calls})
	}
	return all, nil
}

func httpSender(target string, transport *http.Transport) func(context.Context) error {
	client := &http.Client{Transport: transport}
	return func(ctx context.Context) error {
		// Unlike a GET, it isn't sent again in silence when a connection breaks.
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, target, http.NoBody)
		if err != nil {
			return err
		}
		response, err := client.Do(r)
		if err != nil {
			return err
		}
		defer func() { _ = response.Body.Close() }()
		body, err := io.ReadAll(response.Body)
		if err == nil && response.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s: %s", response.Status, body)
		}
		return err
	}
}

func grpcSender(host string) (func(context.Context) error, error) {
	conn, err := grpc.NewClient(host, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("making a gRPC client: %w", err)
	}
	client := healthv1.NewHealthClient(conn)
	return func(ctx context.Context) error {
		_, err := client.Check(ctx, &healthv1.HealthCheckRequest{})
		return err
	}, nil
}

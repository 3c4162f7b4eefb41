// SPDX-License-Identifier: Apache-2.0

package redisclient_test

import (
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/redistest"
)

// watched is how long dials are counted.
const watched = 2 * time.Second

// openPaced opens clients of all kinds that share a pace.
func openPaced(t *testing.T, url string) []redis.UniversalClient {
	t.Helper()
	var (
		pace    redisclient.Pace
		clients []redis.UniversalClient
	)
	for _, open := range []func(string, ...redisclient.Option) (redis.UniversalClient, error){redisclient.Open, redisclient.OpenCounting, redisclient.Open} {
		client, err := open(url, redisclient.Paced(&pace))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		clients = append(clients, client)
	}
	return clients
}

// hammer has each client ask all the time, for as long as dials are watched, and gives how many there may be.
func hammer(t *testing.T, clients []redis.UniversalClient) (most int64) {
	t.Helper()
	begun := time.Now()
	ctx, stop := context.WithTimeout(t.Context(), watched)
	defer stop()
	var callers sync.WaitGroup
	for _, c := range clients {
		for range 3 {
			callers.Go(func() {
				for ctx.Err() == nil {
					_ = c.Ping(t.Context()).Err()
					time.Sleep(time.Millisecond)
				}
			})
		}
	}
	callers.Wait()
	return int64(time.Since(begun).Seconds()*5) + 1
}

func TestPace(t *testing.T) {
	t.Run("a server that lets nobody in is dialed five times a second", func(t *testing.T) {
		var dials atomic.Int64
		clients := openPaced(t, "redis://"+hangingUp(t, &dials))
		_ = clients[0].Ping(t.Context()).Err()
		dials.Store(0)
		most := hammer(t, clients)
		t.Logf("expected: at most %d; measured: %d in %s", most, dials.Load(), watched)
		if n := dials.Load(); n > most || n == 0 {
			t.Errorf("%d dials", n)
		}
	})
	t.Run("a server that refuses the password is asked five times a second, and everybody knows why", func(t *testing.T) {
		server := redistest.Start(t)
		if err := server.Client(t).ConfigSet(t.Context(), "requirepass", "right").Err(); err != nil {
			t.Fatal(err)
		}
		clients := openPaced(t, "redis://:wrong@"+server.Addr)
		_ = clients[0].Ping(t.Context()).Err()
		before := connections(t, server)
		most := hammer(t, clients)
		n := connections(t, server) - before - 1 // Counting takes one.
		t.Logf("expected: at most %d; measured: %d in %s", most, n, watched)
		if n > most || n == 0 {
			t.Errorf("%d dials", n)
		}
		for _, c := range clients {
			err := c.Ping(t.Context()).Err()
			if redisclient.Reason(err) != redisclient.Auth || strings.Count(err.Error(), "waiting") > 1 {
				t.Errorf("the error is %v", err)
			}
		}
	})
	t.Run("a server that is back is found in half a second", func(t *testing.T) {
		server := redistest.Start(t)
		clients := openPaced(t, server.URL())
		server.Kill()
		for range 20 {
			_ = clients[1].Ping(t.Context()).Err()
		}
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
		await(t, clients[1])
	})
	t.Run("a server that is well is dialed at once", func(t *testing.T) {
		server := redistest.Start(t)
		clients := openPaced(t, server.URL())
		var callers sync.WaitGroup
		for range 50 {
			callers.Go(func() {
				if err := clients[0].Ping(t.Context()).Err(); err != nil {
					t.Error(err)
				}
			})
		}
		callers.Wait()
	})
}

// hangingUp gives the address of a server that closes each connection, and counts them.
func hangingUp(t *testing.T, dials *atomic.Int64) string {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			dials.Add(1)
			_ = conn.Close()
		}
	})
	t.Cleanup(func() { _ = ln.Close(); serving.Wait() })
	return ln.Addr().String()
}

// connections gives how many a server has ever had.
func connections(t *testing.T, server *redistest.Server) int64 {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: server.Addr, Password: "right", MaxRetries: -1, DisableIdentity: true, PoolSize: 1})
	defer func() { _ = client.Close() }()
	var total int64
	info, err := client.Info(t.Context(), "stats").Result()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(info) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "total_connections_received:"); ok {
			for _, digit := range n {
				total = 10*total + int64(digit-'0')
			}
		}
	}
	return total
}

// SPDX-License-Identifier: Apache-2.0

package redisclient_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/redistest"
)

// inTime is less than the second that a pool sleeps, and more than a busy machine adds.
const inTime = 700 * time.Millisecond

func TestOpenCounting(t *testing.T) {
	t.Run("a Redis that was gone is found as soon as it is back", func(t *testing.T) {
		server := redistest.Start(t)
		client := openCounting(t, server)
		server.Kill()
		for range 50 { // More than the pool has places.
			if err := client.Ping(t.Context()).Err(); err == nil {
				t.Fatal("a Redis that is gone has answered")
			}
		}
		if err := server.Restart(); err != nil {
			t.Fatal(err)
		}
		await(t, client)
	})
	t.Run("a Redis that has paused is found as soon as it goes on", func(t *testing.T) {
		server := redistest.Start(t)
		client := openCounting(t, server)
		if err := server.Pause(); err != nil {
			t.Fatal(err)
		}
		for range 2 { // On its old connection, and on a new one.
			if err := client.Ping(t.Context()).Err(); err == nil {
				t.Fatal("a Redis that pauses has answered")
			}
		}
		if err := server.Resume(); err != nil {
			t.Fatal(err)
		}
		await(t, client)
	})
	t.Run("a deadline doesn't cost the connection", func(t *testing.T) {
		server := redistest.Start(t)
		client := openCounting(t, server)
		if err := server.Pause(); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(100*time.Millisecond, func() { _ = server.Resume() })
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := client.Ping(ctx).Err(); err != nil {
			t.Errorf("after its deadline the answer came with %v", err)
		}
		if n := client.PoolStats().StaleConns; n != 0 {
			t.Errorf("%d connections were closed", n)
		}
	})
	for name, url := range map[string]string{
		"what a URL asks for holds":          "redis://redis?pool_size=3&max_concurrent_dials=2&read_timeout=3s",
		"what a Sentinel's URL asks for too": "redis+sentinel://sentinel?master_name=main&pool_size=3&max_concurrent_dials=2&read_timeout=3s",
	} {
		t.Run(name, func(t *testing.T) {
			client, err := redisclient.OpenCounting(url)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = client.Close() }()
			o := client.(*redis.Client).Options()
			got := []any{o.PoolSize, o.MaxConcurrentDials, o.ReadTimeout, o.WriteTimeout, o.ContextTimeoutEnabled, o.MaxRetries}
			if diff := cmp.Diff([]any{3, 2, 3 * time.Second, 500 * time.Millisecond, false, 0}, got); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("a URL that is none is refused", func(t *testing.T) {
		if _, err := redisclient.OpenCounting("http://redis"); err == nil {
			t.Error("the URL was taken")
		}
	})
}

// openCounting opens a client and has it connect.
func openCounting(t *testing.T, server *redistest.Server) redis.UniversalClient {
	t.Helper()
	client, err := redisclient.OpenCounting(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	if err := client.Ping(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	return client
}

// await asks until there is an answer.
func await(t *testing.T, client redis.UniversalClient) {
	t.Helper()
	back := time.Now()
	for client.Ping(t.Context()).Err() != nil {
		if time.Since(back) > 10*time.Second {
			t.Fatal("the client doesn't find Redis again")
		}
	}
	took := time.Since(back)
	t.Logf("answered after %s", took)
	if took > inTime {
		t.Errorf("after %s back, Redis is found, later than %s", took, inTime)
	}
}

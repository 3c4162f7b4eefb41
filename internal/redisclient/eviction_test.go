// SPDX-License-Identifier: Apache-2.0

package redisclient_test

import (
	"testing"

	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/redistest"
)

func TestEvictionPolicy(t *testing.T) {
	server, cluster := redistest.Start(t), redistest.StartCluster(t)
	for name, test := range map[string]struct {
		url  string
		node *redistest.Server
	}{
		"a server's is found":                        {server.URL(), server},
		"that of one node of a cluster is found too": {cluster.URL(), cluster.Masters[1]},
	} {
		t.Run(name, func(t *testing.T) {
			client, err := redisclient.Open(test.url)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = client.Close() }()
			for _, want := range []string{redisclient.NoEviction, "allkeys-lru", "volatile-ttl", redisclient.NoEviction} {
				if err := test.node.Client(t).ConfigSet(t.Context(), "maxmemory-policy", want).Err(); err != nil {
					t.Fatal(err)
				}
				if got, err := redisclient.EvictionPolicy(t.Context(), client); err != nil || got != want {
					t.Errorf("the policy is %q, %v, not %q", got, err, want)
				}
			}
		})
	}
	t.Run("a Redis that is away has none", func(t *testing.T) {
		client, err := redisclient.Open("redis://127.0.0.1:" + redistest.FreePort(t))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = client.Close() }()
		if got, err := redisclient.EvictionPolicy(t.Context(), client); err == nil {
			t.Errorf("the policy is %q", got)
		}
	})
}

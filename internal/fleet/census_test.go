// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/weir-dev/weir/internal/redistest"
)

var group = groupOf(pool)

// counted gives a member that reads how many pods there are, of a namespace that has so many.
func counted(t *testing.T, client redis.UniversalClient, pods int) *Member {
	t.Helper()
	census := NewCensus(client, "test")
	if err := census.Write(t.Context(), group.Namespace, map[Group]int{group: pods}); err != nil {
		t.Fatal(err)
	}
	m := New(client, "test", "counted", Options{Census: census})
	m.Keep([]Pool{pool})
	m.count(t.Context())
	return m
}

func TestCensus(t *testing.T) {
	client := redistest.Start(t).Client(t)
	census := NewCensus(client, "test")
	other := Group{Namespace: "shop", Policy: "checkout", Target: "Service/checkout/http"}
	read := func(t *testing.T) []int {
		t.Helper()
		var counts []int
		for _, g := range []Group{group, other} {
			n, err := census.Read(t.Context(), g)
			if err != nil {
				t.Fatal(err)
			}
			counts = append(counts, n)
		}
		return counts
	}
	for _, test := range []struct {
		name string
		pods map[Group]int
		want []int
	}{
		{"a namespace that was never counted has no known groups", nil, []int{0, 0}},
		{"groups of one policy are counted apart", map[Group]int{group: 3, other: 10_000}, []int{3, 10_000}},
		{"a group that is gone is forgotten", map[Group]int{group: 4}, []int{4, 0}},
		{"so are all", map[Group]int{}, []int{0, 0}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.pods != nil {
				if err := census.Write(t.Context(), "shop", test.pods); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(test.want, read(t)); diff != "" {
				t.Errorf("counts (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("counts that nobody writes any more expire", func(t *testing.T) {
		counted(t, client, 5)
		left, err := client.PTTL(t.Context(), census.key("shop")).Result()
		if err != nil || left <= 0 || left > countsKept {
			t.Errorf("they are kept for %s: %v", left, err)
		}
	})
}

func TestSharesOfPodsThatAreCounted(t *testing.T) {
	t.Run("who has heard nobody takes an equal part of those counted", func(t *testing.T) {
		m := counted(t, redistest.Start(t).Client(t), 5)
		if s, n := m.Share(&hit), m.Replicas(&hit); s != 0.2 || n != 5 {
			t.Errorf("the share is %v of %d replicas", s, n)
		}
	})
	t.Run("what was granted leaves room for those that have not told of themselves", func(t *testing.T) {
		_, members := settled(t, 2)
		for _, m := range members {
			m.of(&hit).pods.Store(8)
		}
		silent := New(nil, "test", "silent", Options{})
		silent.Keep([]Pool{pool})
		silent.of(&hit).pods.Store(8)
		all := members[0].Share(&hit) + members[1].Share(&hit) + 6*silent.Share(&hit)
		if all != 1 {
			t.Errorf("all shares are %v", all)
		}
	})
	t.Run("more that have told of themselves than are counted are all there", func(t *testing.T) {
		_, members := settled(t, 4)
		m := members[0]
		m.of(&hit).pods.Store(2)
		if s, n := m.Share(&hit), m.Replicas(&hit); s != 0.25 || n != 4 {
			t.Errorf("the share is %v of %d replicas", s, n)
		}
	})
	t.Run("a store that loses its counts, or is gone, changes nothing", func(t *testing.T) {
		client := redistest.Start(t).Client(t)
		m := counted(t, client, 5)
		if err := client.FlushAll(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		m.count(t.Context())
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
		m.count(t.Context())
		if n := m.Replicas(&hit); n != 5 {
			t.Errorf("there are %d replicas", n)
		}
	})
	t.Run("a member that runs reads them at once for pools that come, and ends", func(t *testing.T) {
		server := redistest.Start(t)
		counted(t, server.Client(t), 5)
		defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
		client := redis.NewClient(&redis.Options{Addr: server.Addr, MaxRetries: -1, DisableIdentity: true})
		defer func() { _ = client.Close() }()
		m := New(client, "test", "a", Options{Census: NewCensus(client, "test")})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- m.Run(ctx) }()
		m.Keep([]Pool{pool})
		eventually(t, func() bool { return m.Replicas(&hit) == 5 })
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

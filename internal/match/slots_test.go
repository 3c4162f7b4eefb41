// SPDX-License-Identifier: Apache-2.0

package match_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/guard"
	"github.com/weir-dev/weir/internal/limiter/redisstore"
	"github.com/weir-dev/weir/internal/limiter/strategy"
	"github.com/weir-dev/weir/internal/match"
	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/redistest"
)

// TestR17Slots is R17 of the catalog of faults: a cluster refuses a script whose keys are in more than one slot.
func TestR17Slots(t *testing.T) {
	client, err := redisclient.OpenCounting(redistest.StartCluster(t).URL() + "?dial_timeout=30s&read_timeout=30s&write_timeout=30s")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	store := redisstore.NewCluster(client.(*redis.ClusterClient), func() redisstore.Circuit {
		return guard.NewCircuit(redisstore.Unanswered)
	})
	t.Run("each call for 10,000 random policies has its keys in one slot", func(t *testing.T) {
		testSlots(t, store, func(r names) []limiter.Hit {
			return match.New([]match.Policy{r.policy()}, match.Options{Instance: "test", Everything: true}).Match(r.request())
		})
	})
	t.Run("each call for 10,000 random names has its keys in one slot", func(t *testing.T) {
		header := match.KeySource{Header: "x-api-key"}
		limit := limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 1_000_000, Window: time.Hour}
		m := match.New([]match.Policy{{Namespace: "shop", Name: "checkout", Targets: []match.Target{{ID: "Service/checkout"}}, Limits: []match.Limit{
			{Name: "a", Key: []match.KeySource{header}, Limit: limit},
			{Name: "b", Key: []match.KeySource{header}, Limit: limit, Shadow: true},
			{Name: "c", Key: []match.KeySource{{Host: true}}, Limit: limit},
			{Name: "d", Limit: limit},
		}}}, match.Options{Instance: "test", Everything: true})
		testSlots(t, store, func(r names) []limiter.Hit { return m.Match(r.request()) })
	})
}

// testSlots takes 10,000 times what a request is made up to hit.
func testSlots(t *testing.T, store limiter.Store, makeUp func(names) []limiter.Hit) {
	t.Helper()
	const requests = 10_000
	seed := rand.Uint64()
	r := names{rand.New(rand.NewPCG(seed, 0))}
	hits := make(chan []limiter.Hit)
	var crossed, keys atomic.Int64
	var callers sync.WaitGroup
	for range 32 {
		callers.Go(func() {
			for h := range hits {
				keys.Add(int64(len(h)))
				_, err := store.Take(t.Context(), h)
				if redis.HasErrorPrefix(err, "CROSSSLOT") {
					crossed.Add(1)
				}
				if err != nil {
					t.Errorf("seed %d: %v", seed, err)
				}
			}
		})
	}
	for range requests {
		hits <- makeUp(r)
	}
	close(hits)
	callers.Wait()
	t.Logf("expected: 0 of %d requests cross slots; measured: %d, with %d keys", requests, crossed.Load(), keys.Load())
}

// names makes up what people and clients choose.
type names struct{ *rand.Rand }

// text is up to 12 characters, most of which mean something to Redis, or to who writes keys.
func (r names) text() string {
	const alphabet = "{}:/%*?[]\\ \"\r\nabcäß漢\x00\x7f0123456789"
	letters := []rune(alphabet)
	text := make([]rune, r.IntN(13))
	for i := range text {
		text[i] = letters[r.IntN(len(letters))]
	}
	return string(text)
}

func (r names) request() match.Request {
	return match.Request{
		Method: r.text(),
		Host:   r.text(),
		Header: http.Header{"X-Api-Key": {r.text()}, "X-Other": {r.text()}},
		Client: netip.AddrFrom4([4]byte{byte(r.IntN(256)), byte(r.IntN(256)), 0, 1}),
	}
}

func (r names) policy() match.Policy {
	p := match.Policy{Namespace: fmt.Sprint("ns-", r.IntN(3)), Name: r.text()}
	for range 1 + r.IntN(2) {
		p.Targets = append(p.Targets, match.Target{ID: r.text()})
	}
	for range 1 + r.IntN(3) {
		p.Limits = append(p.Limits, r.limit())
	}
	return p
}

func (r names) limit() match.Limit {
	algorithms := strategy.Names()
	l := match.Limit{Name: r.text(), Shadow: r.IntN(4) == 0, Limit: limiter.Limit{
		Algorithm: algorithms[r.IntN(len(algorithms))],
		Requests:  10, Window: time.Hour, Burst: 10, Calendar: limiter.Calendar{Unit: limiter.Day, TimeZone: "UTC"},
	}}
	sources := []match.KeySource{
		{Header: "x-api-key"}, {Header: "x-other"}, {Method: true}, {Host: true}, {ClientIP: &match.ClientIPKey{IPv6PrefixLength: 64}},
	}
	for range r.IntN(3) {
		l.Key = append(l.Key, sources[r.IntN(len(sources))])
	}
	return l
}

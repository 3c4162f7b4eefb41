// SPDX-License-Identifier: Apache-2.0

package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/redisstore"
	"github.com/weir-dev/weir/internal/limiter/strategy"
	"github.com/weir-dev/weir/internal/redistest"
)

// tap knows what scripts a client's connections call, and can keep them from being sent, or answered.
type tap struct {
	mu sync.Mutex
	// calls are how many there are in each write.
	calls []int
	// shut, if it is not nil, keeps what is written until it is closed.
	shut chan struct{}
	// lossy connections end with the next call.
	lossy bool
}

func (p *tap) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := next(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return tapped{Conn: conn, tap: p}, nil
	}
}

func (*tap) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (*tap) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// close keeps all calls from now on, until the function that it gives is called.
func (p *tap) close() (open func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	shut := make(chan struct{})
	p.calls, p.shut = nil, shut
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.shut = nil
		close(shut)
	}
}

// through gives what a write has to wait for, if it is to, and whether its connection is to end.
func (p *tap) through(written []byte) (shut chan struct{}, lossy bool) {
	calls := strings.Count(string(written), "evalsha")
	if calls == 0 {
		return nil, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, calls)
	return p.shut, p.lossy
}

type tapped struct {
	net.Conn
	tap *tap
}

func (c tapped) Write(b []byte) (int, error) {
	shut, lossy := c.tap.through(b)
	if shut != nil {
		<-shut
	}
	n, err := c.Conn.Write(b)
	if lossy {
		err = errors.Join(err, c.Close())
	}
	return n, err
}

// rig is a store whose calls can be watched and kept.
type rig struct {
	*redisstore.Cluster
	tap *tap
	// first are hits on the first shard, each in a partition of its own.
	first []limiter.Hit
}

func newRig(t *testing.T, cluster *redistest.Cluster) *rig {
	t.Helper()
	if err := cluster.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	client := dial(t, cluster.URL()+patience)
	r := &rig{Cluster: redisstore.NewCluster(client, circuit), tap: &tap{}}
	client.OnNewNode(func(node *redis.Client) { node.AddHook(r.tap) })
	for n := 0; len(r.first) < 64; n++ {
		hit := on(n, limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 9, Window: year})
		slot, err := cluster.Slot(t.Context(), hit.Key)
		if err != nil {
			t.Fatal(err)
		}
		if slot < 16384/3 {
			r.first = append(r.first, hit)
		}
	}
	for _, node := range cluster.Masters {
		if err := node.Client(t).ScriptLoad(t.Context(), strategy.Script).Err(); err != nil {
			t.Fatal(err)
		}
	}
	// The first answer brings the map of the slots, and by the second all is as usual.
	warm := r.first[0]
	warm.Cost = 0
	for range 2 {
		take(t, r, warm)
	}
	return r
}

// result is what becomes of a request for one hit.
type result struct {
	Remaining int64
	Failed    bool
}

// together has requests for the hits leave together, behind four others, and gives what became of them. When they wait,
// and nothing has been sent yet, meanwhile is called.
func (r *rig) together(t *testing.T, meanwhile func(), hits ...limiter.Hit) []result {
	t.Helper()
	open := r.tap.close()
	const flights = 4
	results := make([]result, flights+len(hits))
	var callers sync.WaitGroup
	for i := range results {
		hit := r.first[0]
		hit.Cost = 0
		if i >= flights {
			hit = hits[i-flights]
		}
		callers.Go(func() {
			verdicts, err := r.Take(t.Context(), []limiter.Hit{hit})
			if err != nil {
				results[i].Failed = true
				return
			}
			results[i].Remaining = verdicts[0].Remaining
		})
		r.await(t, min(i+1, flights), max(0, i+1-flights))
	}
	meanwhile()
	open()
	callers.Wait()
	return results[flights:]
}

// await waits until so many flights are under way, and so many requests wait.
func (r *rig) await(t *testing.T, flights, waiting int) {
	t.Helper()
	for begun := time.Now(); redisstore.UnderWay(r.Cluster) != flights || redisstore.Waiting(r.Cluster) != waiting; {
		if time.Since(begun) > 20*time.Second {
			t.Fatalf("%d are under way and %d wait", redisstore.UnderWay(r.Cluster), redisstore.Waiting(r.Cluster))
		}
		runtime.Gosched()
	}
}

func TestPipelines(t *testing.T) {
	cluster := redistest.StartCluster(t)
	nothing := func() {}
	t.Run("requests that wait for one shard leave in one write, with a call for each partition", func(t *testing.T) {
		r := newRig(t, cluster)
		hits := append(r.first[:50:50], r.first[:50]...)
		want := make([]result, len(hits))
		for i := range want {
			want[i].Remaining = 8 - int64(i/50)
		}
		if diff := cmp.Diff(want, r.together(t, nothing, hits...)); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]int{1, 1, 1, 1, 50}, slices.Sorted(slices.Values(r.tap.calls))); diff != "" {
			t.Errorf("calls in each write (-want +got):\n%s", diff)
		}
	})
	t.Run("a call that isn't executed is sent again, and no other", func(t *testing.T) {
		r := newRig(t, cluster)
		ctx, owner := t.Context(), cluster.Masters[0].Client(t)
		spoiled, beside, moved, well := r.first[1], r.first[1], r.first[63], r.first[3]
		spoiled.Limit = limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 9, Window: year, Burst: 9}
		beside.Key += " beside"
		meanwhile := func() {
			slot, err := cluster.Slot(ctx, moved.Key)
			if err == nil {
				err = cluster.Move(ctx, cluster.Masters[0], cluster.Masters[1], slot)
			}
			if err = errors.Join(err, owner.Set(ctx, spoiled.Key, "\x0a.....x", 0).Err()); err != nil {
				t.Error(err)
			}
		}
		got := r.together(t, meanwhile, spoiled, beside, moved, well)
		if diff := cmp.Diff([]result{{Failed: true}, {Remaining: 8}, {Remaining: 8}, {Remaining: 8}}, got); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
		for _, hit := range []limiter.Hit{beside, moved, well} {
			hit.Cost = 0
			if left := take(t, r, hit).Remaining; left != 8 {
				t.Errorf("%s has %d left, not 8", hit.Key, left)
			}
		}
	})
	t.Run("a script that the shard has forgotten is sent to it again", func(t *testing.T) {
		r := newRig(t, cluster)
		forget := func() {
			if err := cluster.Masters[0].Client(t).ScriptFlush(t.Context()).Err(); err != nil {
				t.Error(err)
			}
		}
		got := r.together(t, forget, r.first[3], r.first[4])
		if diff := cmp.Diff([]result{{Remaining: 8}, {Remaining: 8}}, got); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
	})
	t.Run("a script that the shard never knew is sent to it for its own calls alone", func(t *testing.T) {
		r := newRig(t, cluster)
		if err := cluster.Masters[0].Client(t).ScriptFlush(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		known, unknown := r.first[3], r.first[4]
		known.Cost = 0
		take(t, r, known)
		known.Cost = 1
		unknown.Limit = limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 9, Window: year, Burst: 9}
		got := r.together(t, nothing, known, unknown)
		if diff := cmp.Diff([]result{{Remaining: 8}, {Remaining: 8}}, got); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
		known.Cost = 0
		if left := take(t, r, known).Remaining; left != 8 {
			t.Errorf("a call beside it has left %d, not 8", left)
		}
	})
	t.Run("calls whose answers are lost are not sent again", func(t *testing.T) {
		r := newRig(t, cluster)
		lose := func() {
			r.tap.mu.Lock()
			defer r.tap.mu.Unlock()
			r.tap.lossy = true
		}
		got := r.together(t, lose, r.first[3], r.first[4], r.first[3])
		if diff := cmp.Diff([]result{{Failed: true}, {Failed: true}, {Failed: true}}, got); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]int{1, 1, 1, 1, 2}, slices.Sorted(slices.Values(r.tap.calls))); diff != "" {
			t.Errorf("calls in each write (-want +got):\n%s", diff)
		}
	})
}

// valve is a circuit that is open when it is told to be.
type valve struct{ open atomic.Bool }

func (v *valve) Do(ctx context.Context, call func(context.Context) error) error {
	if v.open.Load() {
		return limiter.ErrNotAsked
	}
	return call(ctx)
}

func TestAnOpenCircuit(t *testing.T) {
	cluster := redistest.StartCluster(t)
	var valves []*valve
	store := redisstore.NewCluster(dial(t, cluster.URL()+patience), func() redisstore.Circuit {
		valves = append(valves, &valve{})
		return valves[len(valves)-1]
	})
	limit := limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 9, Window: year}
	first, last := counters(t, cluster, 1, limit, 0, slots/3)[0], counters(t, cluster, 1, limit, slots/3+1, 2*slots/3)[0]
	// The first answer brings the map of the slots. Then each shard gets a circuit when it is first asked.
	for _, hit := range []limiter.Hit{first, first, last} {
		take(t, store, hit)
	}
	valves[len(valves)-1].open.Store(true)
	t.Run("charges nothing, not even to the shards that were asked before", func(t *testing.T) {
		if _, err := store.Take(t.Context(), []limiter.Hit{first, last}); !errors.Is(err, limiter.ErrNotAsked) {
			t.Errorf("the error is %v", err)
		}
		peek := first
		peek.Cost = 0
		if left := take(t, store, peek).Remaining; left != 7 {
			t.Errorf("%d are left, not 7", left)
		}
	})
	t.Run("is that of one shard", func(t *testing.T) {
		if left := take(t, store, first).Remaining; left != 6 {
			t.Errorf("%d are left, not 6", left)
		}
	})
}

// BenchmarkCluster tells the time of a decision, 64 callers together, and how much of it all nodes work.
func BenchmarkCluster(b *testing.B) {
	cluster := redistest.StartCluster(b)
	store := redisstore.NewCluster(dial(b, cluster.URL()), circuit)
	b.Run("a call for each partition", func(b *testing.B) {
		benchmarkCluster(b, cluster, func(h limiter.Hit) limiter.Store { return redisstore.ByPartition(b.Context(), store, h) })
	})
	b.Run("a pipeline for each shard", func(b *testing.B) {
		benchmarkCluster(b, cluster, func(limiter.Hit) limiter.Store { return store })
	})
}

func benchmarkCluster(b *testing.B, cluster *redistest.Cluster, store func(limiter.Hit) limiter.Store) {
	l := limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 100, Window: time.Second, Burst: 100}
	worked := func() (sum time.Duration) {
		for _, m := range cluster.Masters {
			sum += busy(b, m.Client(b))
		}
		return sum
	}
	before := worked()
	var left atomic.Int64
	left.Store(int64(b.N))
	b.ReportAllocs()
	b.ResetTimer()
	var callers sync.WaitGroup
	for range 64 {
		callers.Go(func() {
			for n := left.Add(-1); n >= 0; n = left.Add(-1) {
				hit := limiter.Hit{Key: fmt.Sprintf("weir:bench:{shop/%d}:%d", n%256, n%10_000), Limit: l, Cost: 1}
				if _, err := store(hit).Take(b.Context(), []limiter.Hit{hit}); err != nil {
					b.Error(err)
				}
			}
		})
	}
	callers.Wait()
	b.StopTimer()
	b.ReportMetric(float64((worked()-before).Nanoseconds())/float64(b.N), "redis-ns/op")
}

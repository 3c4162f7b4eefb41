// SPDX-License-Identifier: Apache-2.0

package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/redisstore"
	"github.com/weir-dev/weir/internal/limiter/storetest"
	"github.com/weir-dev/weir/internal/limiter/strategy"
	"github.com/weir-dev/weir/internal/redistest"
)

const (
	// A history has phases, between which the clock moves, and in each phase every client makes some requests.
	clients, phases, requestsEach = 16, 10, 8
	// pairs of counters are hit one of the two or both: at most 500 requests see the same counter.
	pairs = 4
	// hasty is the share of the requests that are given up after next to no time, if there is no answer yet.
	hasty = 0.015
)

// TestLinearizable has clients make requests at once, some of which are given up, and refund some of what they got. It
// looks for an order in which the Go twins decide alike. What was given up may have been decided, or not.
func TestLinearizable(t *testing.T) {
	server := redistest.Start(t)
	testLinearizable(t, times(60, 200), "", onServer(t, server, redisstore.NewOf(server.Client(t), onClock)))
}

// TestLinearizableOnACluster has each pair of counters in a partition of its own, all on one shard.
func TestLinearizableOnACluster(t *testing.T) {
	testLinearizable(t, times(20, 200), " on a cluster", onCluster(t, redistest.StartCluster(t)))
}

func testLinearizable(t *testing.T, histories int, where string, s setting) {
	names := strategy.Names()
	asked, givenUp, ordered := 0, 0, 0
	for n := range histories {
		mix := []limiter.Algorithm{names[n%len(names)], names[(n+n/len(names))%len(names)]}
		t.Run(fmt.Sprintf("history %d of %s and %s%s has an order", n, mix[0], mix[1], where), func(t *testing.T) {
			r := newRehearsal(t, s, mix)
			operations := r.run(t)
			if result := check(operations); result == porcupine.Ok {
				ordered++
			} else {
				t.Errorf("seed %d: the history is %s", r.seed, result)
			}
			asked += len(operations)
			for _, o := range operations {
				if o.Return == never {
					givenUp++
				}
			}
		})
	}
	if givenUp == 0 || givenUp > asked/20 {
		t.Errorf("%d of %d requests were given up, not some, and at most 5 per cent", givenUp, asked)
	}
	t.Logf("expected: %d of %d histories have an order; measured: %d, with %d of %d requests given up", histories, histories, ordered, givenUp, asked)
}

// setting is where a history takes place.
type setting struct {
	store limiter.Store
	// idle says whether no call is under way.
	idle func() bool
	// paused is the server that stops now and then.
	paused *redistest.Server
	// key names a counter, and set sets the clock of all of them.
	key func(n int) string
	set func(ctx context.Context, now int64) error
	// flush forgets all.
	flush func(ctx context.Context) error
}

func onServer(t *testing.T, server *redistest.Server, store *redisstore.Store) setting {
	t.Helper()
	client := server.Client(t)
	return setting{
		store:  store,
		idle:   func() bool { return redisstore.Idle(store) },
		paused: server,
		key:    func(n int) string { return fmt.Sprint("counter", n) },
		set:    func(ctx context.Context, now int64) error { return client.Set(ctx, "clock", now, 0).Err() },
		flush:  func(ctx context.Context) error { return client.FlushAll(ctx).Err() },
	}
}

func onCluster(t *testing.T, cluster *redistest.Cluster) setting {
	t.Helper()
	client := dial(t, cluster.URL()+patience)
	store := redisstore.NewClusterOf(client, circuit, onClockOfSlot)
	var partitions []string
	for _, hit := range counters(t, cluster, pairs, limiter.Limit{}, 0, slots/3) {
		_, rest, _ := strings.Cut(hit.Key, "{")
		name, _, _ := strings.Cut(rest, "}")
		partitions = append(partitions, "{"+name+"}")
	}
	return setting{
		store:  store,
		idle:   func() bool { return redisstore.UnderWay(store) == 0 },
		paused: cluster.Masters[0],
		key:    func(n int) string { return fmt.Sprint(partitions[n/2], "counter", n) },
		set: func(ctx context.Context, now int64) error {
			var err error
			for _, p := range partitions {
				err = errors.Join(err, client.Set(ctx, p+"clock", now, 0).Err())
			}
			return err
		},
		flush: cluster.Flush,
	}
}

// TestBrokenHistoriesAreFound says that there is no order where the store is broken.
func TestBrokenHistoriesAreFound(t *testing.T) {
	server := redistest.Start(t)
	client := server.Client(t)
	const kept = "values[counter], kinds[counter], changed[counter] = state,"
	if strings.Count(strategy.Script, kept) != 1 {
		t.Fatalf("the script has %q not once", kept)
	}
	forgetful := func(script string) string {
		return onClock(strings.Replace(script, kept, "values[counter], kinds[counter], changed[counter] = values[counter] or state,", 1))
	}
	stores := map[string]*redisstore.Store{
		"a batch that doesn't see its own charges": redisstore.NewOf(client, forgetful),
		"a client that sends its calls twice":      redisstore.NewOf(repeating{client}, onClock),
	}
	for name, store := range stores {
		t.Run(name+" is found", func(t *testing.T) {
			r := newRehearsal(t, onServer(t, server, store), []limiter.Algorithm{limiter.TokenBucket, limiter.FixedWindow})
			if result := check(r.run(t)); result != porcupine.Illegal {
				t.Errorf("seed %d: the history is %s", r.seed, result)
			}
		})
	}
}

// repeating is a client that can't wait for an answer before it asks again.
type repeating struct{ redis.Scripter }

func (r repeating) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	r.Scripter.EvalSha(ctx, sha, keys, args...)
	return r.Scripter.EvalSha(ctx, sha, keys, args...)
}

// never is when a request returns that was given up: what it does can show at any time.
const never = math.MaxInt64

// asking is the input of an operation. The last one of each pair asks nothing, in a phase after all others.
type asking struct {
	phase int
	now   int64
	// pair is which counters may be hit, and hits those that are.
	pair int
	hits []limiter.Hit
	// refunds is what is given back, if there are no hits.
	refunds limiter.Charge
}

// rehearsal makes a history.
type rehearsal struct {
	setting
	seed   uint64
	random *rand.Rand
	// stalls says that there are times without an answer to anybody.
	stalls bool
	// limits are of the counters, two for each pair.
	limits [2 * pairs]limiter.Limit
	// held are the charges that each client can give back. A client is alone with its own.
	held [clients][]limiter.Charge
	// order gives the calls and returns their places.
	order atomic.Int64

	mu         sync.Mutex
	operations []porcupine.Operation
}

func newRehearsal(t *testing.T, s setting, mix []limiter.Algorithm) *rehearsal {
	t.Helper()
	if err := s.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Each permit has an id of its own. Many requests at once that may or may not have got one are more orders than can
	// be tried.
	r := &rehearsal{setting: s, seed: rand.Uint64(), stalls: !slices.Contains(mix, limiter.Concurrency)}
	r.random = rand.New(rand.NewPCG(r.seed, 0))
	for i := range r.limits {
		r.limits[i] = limiter.Limit{
			Algorithm: mix[i%2],
			Requests:  5 + r.random.Int64N(30),
			Window:    time.Second * time.Duration(1+r.random.IntN(10)),
			Burst:     5 + r.random.Int64N(30),
			Calendar:  limiter.Calendar{Unit: limiter.Day, TimeZone: "UTC"},
			MaxDelay:  time.Second * time.Duration(r.random.IntN(10)),
			MaxQueue:  r.random.Int64N(10),
		}
	}
	return r
}

// run gives a history. If it has stalls, Redis stops in the second phase and in the seventh until all clients have
// given up.
func (r *rehearsal) run(t *testing.T) []porcupine.Operation {
	t.Helper()
	now := storetest.Epoch.UnixMicro()
	for phase := range phases {
		if err := r.set(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		if r.stalls && (phase == 1 || phase == 6) {
			r.stall(t, phase, now)
		}
		r.together(func(id int, random *rand.Rand) {
			for range requestsEach {
				if a, ok := r.refund(id, random, phase, now); ok {
					r.ask(t, id, time.Minute, a)
					continue
				}
				patience := time.Minute
				if random.Float64() < hasty {
					patience = time.Duration(random.IntN(300)) * time.Microsecond
				}
				r.ask(t, id, patience, r.request(random, phase, now))
			}
		})
		// What was given up can still be under way, and must not see the next phase's clock.
		for !r.idle() {
			runtime.Gosched()
		}
		now += r.step(now)
	}
	for pair := range pairs {
		r.operations = append(r.operations, porcupine.Operation{
			ClientId: clients, Input: asking{phase: phases, pair: pair}, Call: r.order.Add(1), Return: r.order.Add(1),
		})
	}
	return r.operations
}

// stall has every client give up a request, of which Redis finds some when it goes on.
func (r *rehearsal) stall(t *testing.T, phase int, now int64) {
	t.Helper()
	if err := r.paused.Pause(); err != nil {
		t.Fatal(err)
	}
	r.together(func(id int, random *rand.Rand) {
		r.ask(t, id, 5*time.Millisecond, r.request(random, phase, now))
	})
	if err := r.paused.Resume(); err != nil {
		t.Fatal(err)
	}
}

// together has all clients act at once, each by random numbers of its own.
func (r *rehearsal) together(act func(id int, random *rand.Rand)) {
	var wg sync.WaitGroup
	for id := range clients {
		random := rand.New(rand.NewPCG(r.random.Uint64(), 0))
		wg.Go(func() { act(id, random) })
	}
	wg.Wait()
}

// refund makes up a refund now and then. It is never given up: nothing would tell of it.
func (r *rehearsal) refund(id int, random *rand.Rand, phase int, now int64) (asking, bool) {
	held := r.held[id]
	if len(held) == 0 || random.IntN(5) > 0 {
		return asking{}, false
	}
	last := held[len(held)-1]
	r.held[id] = held[:len(held)-1]
	return asking{phase: phase, now: now, pair: number(last.Hit) / 2, refunds: last}, true
}

// request makes up a request for one counter of a pair, or for both.
func (r *rehearsal) request(random *rand.Rand, phase int, now int64) asking {
	a := asking{phase: phase, now: now, pair: random.IntN(pairs)}
	both, one := random.IntN(2) == 0, random.IntN(2)
	for i := range 2 {
		if both || i == one {
			n := 2*a.pair + i
			a.hits = append(a.hits, limiter.Hit{Key: r.key(n), Limit: r.limits[n], Cost: random.Int64N(4)})
		}
	}
	return a
}

// ask makes one request, and writes down what came of it.
func (r *rehearsal) ask(t *testing.T, id int, patience time.Duration, a asking) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	o := porcupine.Operation{ClientId: id, Input: a, Call: r.order.Add(1)}
	verdicts, err := r.put(ctx, a)
	o.Output, o.Return = verdicts, r.order.Add(1)
	if err == nil && admits(verdicts) {
		for i, h := range a.hits {
			r.held[id] = append(r.held[id], limiter.Charge{Hit: h, Receipt: verdicts[i].Receipt})
		}
	}
	if err != nil {
		o.Return = never
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.operations = append(r.operations, o)
}

// put asks the store. There are no verdicts on a refund, but not as after an error.
func (r *rehearsal) put(ctx context.Context, a asking) ([]limiter.Verdict, error) {
	if len(a.hits) > 0 {
		return r.store.Take(ctx, a.hits)
	}
	if err := r.store.Refund(ctx, []limiter.Charge{a.refunds}); err != nil {
		return nil, err
	}
	return []limiter.Verdict{}, nil
}

// step is how far the clock goes: half of the time to where a window ends, or beside it, and now and then back.
func (r *rehearsal) step(now int64) int64 {
	window := r.limits[r.random.IntN(len(r.limits))].Window.Microseconds()
	switch r.random.IntN(6) {
	case 0, 1, 2:
		return window - now%window + r.random.Int64N(3) - 1
	case 3:
		return -r.random.Int64N(2_000_000)
	}
	return r.random.Int64N(window)
}

// check looks for an order of a history.
func check(history []porcupine.Operation) porcupine.CheckResult {
	return porcupine.CheckOperationsTimeout(porcupine.Model{
		Partition: byPair,
		Init:      func() any { return situation{} },
		Step: func(state, input, output any) (bool, any) {
			verdicts, _ := output.([]limiter.Verdict)
			return state.(situation).step(input.(asking), verdicts)
		},
	}, history, 3*time.Minute)
}

func byPair(history []porcupine.Operation) [][]porcupine.Operation {
	parts := make([][]porcupine.Operation, pairs)
	for _, o := range history {
		pair := o.Input.(asking).pair
		parts[pair] = append(parts[pair], o)
	}
	return parts
}

// situation is what the model knows: in which phase the last request was decided, and a pair of counters.
type situation struct {
	phase    int
	counters [2]counter
}

// counter is a strategy.Counter that can be compared.
type counter struct {
	layout byte
	state  string
}

// evaluated makes it a strategy.Counter again. On the clock of the test nothing expires.
func (c counter) evaluated() *strategy.Counter {
	return &strategy.Counter{Layout: c.layout, State: []byte(c.state), Expires: math.MaxInt64}
}

// step decides one request by the Go twins, and says whether that is what it was answered. No verdicts are
// those of a request that was given up.
func (s situation) step(a asking, verdicts []limiter.Verdict) (bool, any) {
	if verdicts == nil && a.phase < s.phase {
		// Its phase is over: it has not been decided at all. To say so anywhere would give more orders than can
		// be tried.
		return s.phase == phases, s
	}
	s.phase = a.phase
	if a.phase == phases {
		return true, s
	}
	var e strategy.Evaluator
	if h := a.refunds.Hit; len(a.hits) == 0 {
		c := s.counters[place(h)].evaluated()
		e.Amend(a.now, &h, c, a.refunds.Receipt, false)
		s.counters[place(h)] = counter{c.Layout, string(c.State)}
		return true, s
	}
	counters := make([]*strategy.Counter, len(a.hits))
	for i, h := range a.hits {
		counters[i] = s.counters[place(h)].evaluated()
	}
	want := make([]limiter.Verdict, len(a.hits))
	e.Decide(a.now, a.hits, counters, want)
	for i, h := range a.hits {
		s.counters[place(h)] = counter{counters[i].Layout, string(counters[i].State)}
	}
	return verdicts == nil || slices.Equal(want, verdicts), s
}

// number is which of all counters a hit is on, and place which of its pair.
func number(h limiter.Hit) int { return int(h.Key[len(h.Key)-1] - '0') }

func place(h limiter.Hit) int { return number(h) % 2 }

// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/redistest"
)

// patience is more than anything takes here.
const patience = time.Minute

var (
	hit  = limiter.Hit{ID: limiter.LimitID{Namespace: "shop", Policy: "checkout", Limit: "all"}, Target: "Service/checkout", Cost: 1}
	pool = PoolOf(&hit)
)

// world is a store and those who share a pool in it.
type world struct {
	client   *redis.Client
	learning time.Duration
	joined   int
}

// join gives a member that has not been heard of yet.
func (w *world) join() *Member {
	w.joined++
	m := New(w.client, "test", fmt.Sprint("replica-", w.joined), Options{})
	// Nobody is forgotten because the machine is busy.
	m.term, m.learning = time.Hour, w.learning
	m.Keep([]Pool{pool})
	return m
}

// beat has a member tell of a second in which it was asked for so much.
func beat(t *testing.T, m *Member, asked int64) {
	t.Helper()
	asking := hit
	asking.Cost = asked
	m.Note(&asking)
	if err := m.round(t.Context(), time.Second, m.term); err != nil {
		t.Fatal(err)
	}
}

// settled gives a world whose ledger is older than a term, and n members of even demand that have their shares.
func settled(t *testing.T, n int) (*world, []*Member) {
	t.Helper()
	w := &world{client: redistest.Start(t).Client(t), learning: 200 * time.Millisecond}
	var members []*Member
	for range n {
		members = append(members, w.join())
	}
	eventually(t, func() bool {
		for _, m := range members {
			beat(t, m, 10)
		}
		return !slices.ContainsFunc(members, func(m *Member) bool { return held(m) != whole/int64(n) })
	})
	return w, members
}

// flush has the store lose its ledger, and ends the new one's time of learning when all have told it of themselves.
func (w *world) flush(t *testing.T, members []*Member) {
	t.Helper()
	if err := w.client.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	for _, m := range members {
		m.learning = time.Hour
		beat(t, m, 10)
		if sum(members) > whole {
			t.Fatalf("%d replicas hold %d millionths", len(members), sum(members))
		}
	}
	w.learning = 0
	for _, m := range members {
		m.learning = 0
	}
}

func eventually(t *testing.T, holds func() bool) {
	t.Helper()
	for begun := time.Now(); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Since(begun) > patience {
			t.Fatal("it does not come about")
		}
	}
}

// sum gives what all members hold.
func sum(members []*Member) int64 {
	var all int64
	for _, m := range members {
		all += held(m)
	}
	return all
}

func held(m *Member) int64 { return (*m.pools.Load())[pool].grant.Load() }

func TestShares(t *testing.T) {
	t.Run("who knows of nobody has all", func(t *testing.T) {
		m := New(nil, "test", "alone", Options{})
		if s, n := m.Share(&hit), m.Replicas(&hit); s != 1 || n != 1 {
			t.Errorf("the share is %v of %d replicas", s, n)
		}
	})
	t.Run("in a ledger that is new all have equal parts of those known", func(t *testing.T) {
		w := &world{client: redistest.Start(t).Client(t), learning: time.Hour}
		members := []*Member{w.join(), w.join(), w.join(), w.join()}
		var got []float64
		for range 2 {
			got = nil
			for _, m := range members {
				beat(t, m, 100)
				got = append(got, m.Share(&hit))
			}
		}
		if diff := cmp.Diff([]float64{0.25, 0.25, 0.25, 0.25}, got); diff != "" {
			t.Errorf("shares (-want +got):\n%s", diff)
		}
	})
	t.Run("half of a share follows demand, and half is equal", func(t *testing.T) {
		_, members := settled(t, 2)
		for range 100 {
			beat(t, members[0], 30)
			beat(t, members[1], 0)
		}
		// All of one half, and half of the other; then what is left of the whole.
		if a, b := members[0].Share(&hit), members[1].Share(&hit); a < 0.74 || a > 0.75 || b < 0.25 || b > 0.26 || a+b > 1 {
			t.Errorf("the shares are %v and %v, not 3/4 and 1/4", a, b)
		}
	})
	t.Run("who leaves makes room at once", func(t *testing.T) {
		_, members := settled(t, 2)
		if err := members[0].round(t.Context(), 0, 0); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() bool { beat(t, members[1], 10); return members[1].Share(&hit) == 1 })
		if n := members[1].Replicas(&hit); n != 1 {
			t.Errorf("there are %d replicas", n)
		}
	})
	t.Run("who falls silent makes room after its term", func(t *testing.T) {
		_, members := settled(t, 2)
		members[0].term = 50 * time.Millisecond
		beat(t, members[0], 10)
		eventually(t, func() bool { beat(t, members[1], 10); return members[1].Share(&hit) == 1 })
	})
	t.Run("without the store what it said last holds", func(t *testing.T) {
		w, members := settled(t, 4)
		if err := w.client.Close(); err != nil {
			t.Fatal(err)
		}
		if err := members[0].round(t.Context(), time.Second, time.Hour); err == nil {
			t.Error("a store that is gone was told")
		}
		if s, n := members[0].Share(&hit), members[0].Replicas(&hit); s != 0.25 || n != 4 {
			t.Errorf("the share is %v of %d replicas", s, n)
		}
	})
	t.Run("a beat that comes after a later one changes nothing", func(t *testing.T) {
		_, members := settled(t, 2)
		m := members[0]
		before := held(m)
		m.beats -= 2
		beat(t, m, 1000)
		m.beats++
		if got := held(m); got != before {
			t.Errorf("it holds %d, not %d", got, before)
		}
	})
}

// Whatever is lost on the way, replicas that know of each other never hold more than the whole.
func TestSharesNeverAddUpToMoreThanTheWhole(t *testing.T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			w, members := settled(t, 1+random.IntN(4))
			var largest int64
			for range 1000 {
				i := random.IntN(len(members))
				m := members[i]
				switch chance := random.IntN(100); {
				case chance < 3:
					members = append(members, w.join())
				case chance < 6 && len(members) > 1:
					if err := m.round(t.Context(), 0, 0); err != nil {
						t.Fatal(err)
					}
					members = append(members[:i], members[i+1:]...)
				case chance < 7:
					w.flush(t, members)
				case chance < 25: // The answer is lost.
					s := (*m.pools.Load())[pool]
					grant, replicas := s.grant.Load(), s.replicas.Load()
					beat(t, m, random.Int64N(1000))
					s.grant.Store(grant)
					s.replicas.Store(replicas)
				default:
					beat(t, m, random.Int64N(1000)*random.Int64N(2))
				}
				largest = max(largest, sum(members))
				if sum(members) > whole {
					t.Fatalf("%d replicas hold %d millionths", len(members), sum(members))
				}
			}
			t.Logf("expected: at most 1; measured: %v", float64(largest)/whole)
		})
	}
}

func TestAMemberRuns(t *testing.T) {
	server := redistest.Start(t)
	t.Run("it tells of itself at once, and takes its leave", func(t *testing.T) {
		defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
		client := redis.NewClient(&redis.Options{Addr: server.Addr, MaxRetries: -1, DisableIdentity: true})
		defer func() { _ = client.Close() }()
		m := New(client, "test", "a", Options{Log: testr.New(t)})
		m.Keep([]Pool{pool})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- m.Run(ctx) }()
		eventually(t, func() bool { return (*m.pools.Load())[pool].replicas.Load() == 1 })
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		other := New(client, "test", "b", Options{})
		other.Keep([]Pool{pool})
		eventually(t, func() bool { beat(t, other, 1); return other.Replicas(&hit) == 1 })
	})
	t.Run("a store that goes and comes is told of once each", func(t *testing.T) {
		var logged []string
		m := New(server.Client(t), "test", "c", Options{Log: logr.New(sink{&logged})})
		for _, err := range []error{nil, context.Canceled, context.Canceled, nil, nil} {
			m.tell(err)
		}
		want := []string{"the store doesn't tell of other replicas", "the store tells of other replicas again"}
		if diff := cmp.Diff(want, logged); diff != "" {
			t.Errorf("logged (-want +got):\n%s", diff)
		}
	})
	t.Run("what it knows of a pool outlives a new snapshot, and no longer than the pool", func(t *testing.T) {
		m := New(server.Client(t), "test", "d", Options{})
		m.Keep([]Pool{pool})
		beat(t, m, 1)
		before := (*m.pools.Load())[pool]
		m.Keep([]Pool{pool, {Target: "another"}})
		if (*m.pools.Load())[pool] != before {
			t.Error("it is forgotten")
		}
		m.Keep(nil)
		if m.of(&hit) != nil {
			t.Error("it is remembered")
		}
	})
}

// sink keeps the messages of a logger.
type sink struct{ messages *[]string }

func (sink) Init(logr.RuntimeInfo) {}

func (sink) Enabled(int) bool { return true }

func (s sink) Info(_ int, message string, _ ...any) { *s.messages = append(*s.messages, message) }

func (s sink) Error(_ error, message string, _ ...any) { *s.messages = append(*s.messages, message) }

func (s sink) WithValues(...any) logr.LogSink { return s }

func (s sink) WithName(string) logr.LogSink { return s }

// SPDX-License-Identifier: Apache-2.0

package guard_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/guard"
	"github.com/weir-dev/weir/internal/limiter/memorystore"
)

const (
	// perSecond and atOnce are what the limits of a simulation admit: 20 a second, and 40 at once.
	perSecond, atOnce = 20, 40
	// window is the time in which a fixed window has atOnce.
	window = 2 * time.Second
	// lasts is how long traffic comes.
	lasts = 30 * time.Second
	// recovery is how soon after the store's return all replicas have to ask it again.
	recovery = time.Second
	// propagation is how long it takes at most until a replica enforces an edit.
	propagation = 2 * time.Second
	// tolerance is what a rate brings in the microseconds that a store's clock leaves out.
	tolerance = 0.001
)

// medium is a store that can be away, or hang, and lose what it has counted.
type medium struct {
	mu    sync.Mutex
	store limiter.Store
	away  bool
	// hung is closed when a store that hangs goes on. Nil when it doesn't hang.
	hung chan struct{}
}

func (m *medium) now() (store limiter.Store, away bool, hung chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.store, m.away, m.hung
}

func (m *medium) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	store, away, hung := m.now()
	if away {
		return nil, errSilent
	}
	if hung == nil {
		return store.Take(ctx, hits)
	}
	select {
	case <-ctx.Done(): // Whoever has asked is charged in the end.
		return nil, ctx.Err()
	case <-hung:
		return store.Take(ctx, hits)
	}
}

func (m *medium) Refund(context.Context, []limiter.Charge) error { return nil }

func (m *medium) Renew(context.Context, []limiter.Charge) error { return nil }

// out takes the store away for a time, and says when it was back, and whether it had lost its counts.
func (m *medium) out(random *rand.Rand, d time.Duration) absence {
	a := absence{from: time.Now(), empty: random.IntN(3) == 0}
	hang := make(chan struct{})
	m.mu.Lock()
	if random.IntN(2) == 0 {
		m.away = true
	} else {
		m.hung = hang
	}
	m.mu.Unlock()
	time.Sleep(d)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.away, m.hung = false, nil
	close(hang)
	if a.empty {
		m.store = memorystore.New(memorystore.Options{})
	}
	a.until = time.Now()
	return a
}

// absence is an outage of the store.
type absence struct {
	from, until time.Time
	empty       bool
}

// history is what became of the requests of all replicas, in the order of time.
type history struct {
	mu       sync.Mutex
	at       map[limiter.Outcome][]time.Time
	absences []absence
	replicas int
}

func (h *history) Record(_ limiter.LimitID, o limiter.Outcome) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at[o] = append(h.at[o], time.Now())
}

// simulate has replicas with uneven traffic go through outages, and with every other seed through edits too.
func simulate(seed uint64, mode limiter.FailureMode, limit limiter.Limit) *history {
	random := rand.New(rand.NewPCG(seed, 0))
	n := 2 + random.IntN(7)
	h := &history{at: map[limiter.Outcome][]time.Time{}, replicas: n}
	m := &medium{store: memorystore.New(memorystore.Options{})}
	demand := uneven(random, n)
	load := perSecond * math.Exp2(3*random.Float64()-1) // From half of the limit to four times as much.
	hits := make([]atomic.Pointer[limiter.Hit], n)
	var all sync.WaitGroup
	for i := range n {
		hits[i].Store(&limiter.Hit{Key: "a", Limit: limit, Cost: 1, OnFailure: mode})
		own := guard.NewOwn(memorystore.New(memorystore.Options{}), &still{share: (demand[i] + 1/float64(n)) / 2})
		shared := guard.DenyCache(guard.Breaker(guard.Deadline(m, budget), unanswered))
		engine := limiter.NewEngineWithFallback(own.Beside(shared), own, h)
		traffic := rand.New(rand.NewPCG(seed, uint64(i)+1))
		all.Go(func() {
			for end := time.Now().Add(lasts); time.Now().Before(end); {
				time.Sleep(time.Duration(traffic.ExpFloat64() / (load * demand[i]) * float64(time.Second)))
				all.Go(func() { engine.Decide(context.Background(), []limiter.Hit{*hits[i].Load()}) }) //nolint:forbidigo // It ends by itself.
			}
		})
	}
	if seed%2 == 1 {
		all.Go(func() { edit(rand.New(rand.NewPCG(seed, uint64(n)+1)), hits) })
	}
	for range 1 + random.IntN(3) {
		time.Sleep(time.Duration(1+random.IntN(5000)) * time.Millisecond)
		h.absences = append(h.absences, m.out(random, time.Duration(100+random.IntN(4000))*time.Millisecond))
	}
	all.Wait()
	time.Sleep(maxProbe) // A probe may still be under way.
	return h
}

// edit has the policy edited for as long as traffic comes, to half of its limit and back, and one that limits without
// the store also to refuse without it, and back. Each replica hears of an edit in its own time.
func edit(random *rand.Rand, hits []atomic.Pointer[limiter.Hit]) {
	original := *hits[0].Load()
	var hearing sync.WaitGroup
	for end := time.Now().Add(lasts); time.Now().Before(end); time.Sleep(propagation + time.Duration(random.IntN(5000))*time.Millisecond) {
		edited := original
		if random.IntN(2) == 0 {
			edited.Limit.Requests, edited.Limit.Burst = original.Limit.Requests/2, original.Limit.Burst/2
		}
		if original.OnFailure == limiter.FailLocal && random.IntN(2) == 0 {
			edited.OnFailure = limiter.FailClosed
		}
		for i := range hits {
			after := time.Duration(random.Int64N(int64(propagation)))
			hearing.Go(func() {
				time.Sleep(after)
				hits[i].Store(&edited)
			})
		}
	}
	hearing.Wait()
}

func unanswered(err error) bool { return silent(err) || errors.Is(err, context.DeadlineExceeded) }

// still is a share that is known to be a replica's, and never changes.
type still struct{ share float64 }

func (*still) Note(*limiter.Hit) {}

func (s *still) Share(*limiter.Hit) float64 { return s.share }

// uneven divides traffic among replicas, by Zipf's law.
func uneven(random *rand.Rand, n int) []float64 {
	parts, sum, skew := make([]float64, n), 0., 1.5*random.Float64()
	for i := range parts {
		parts[i] = math.Pow(float64(i+1), -skew)
		sum += parts[i]
	}
	for i := range parts {
		parts[i] /= sum
	}
	return parts
}

// busiest gives the most events in a window of the clock.
func busiest(events []time.Time) float64 {
	counts, most := map[int64]int{}, 0
	for _, at := range events {
		id := at.UnixNano() / int64(window)
		counts[id]++
		most = max(most, counts[id])
	}
	return float64(most)
}

// emptied is how often the store has lost its counts.
func (h *history) emptied() float64 {
	n := 0.
	for _, a := range h.absences {
		if a.empty {
			n++
		}
	}
	return n
}

// late is how long after the store's return a request was last decided without it.
func (h *history) late() time.Duration {
	var latest time.Duration
	for _, o := range []limiter.Outcome{limiter.FailedOpen, limiter.FailedClosed, limiter.LocalAllowed, limiter.LocalDenied} {
		for _, at := range h.at[o] {
			since := lasts
			for _, a := range h.absences {
				if !at.Before(a.from) {
					since = max(0, at.Sub(a.until))
				}
			}
			latest = max(latest, since)
		}
	}
	return latest
}

// claim is a bound, and what a history has to show for it.
type claim struct {
	mode   limiter.FailureMode
	name   string
	window bool
	bound  func(h *history) float64
	seen   func(h *history) float64
}

var (
	byStore  = func(h *history) []time.Time { return h.at[limiter.Allowed] }
	byItself = func(h *history) []time.Time { return h.at[limiter.LocalAllowed] }
	exactly  = func(h *history) float64 { return atOnce * (1 + h.emptied()) }
	above    = func(events func(*history) []time.Time) func(*history) float64 {
		return func(h *history) float64 { return worst(events(h), perSecond) }
	}
	inWindow = func(events func(*history) []time.Time) func(*history) float64 {
		return func(h *history) float64 { return busiest(events(h)) }
	}
	total = func(h *history) []time.Time {
		all := slices.Concat(byStore(h), byItself(h))
		slices.SortFunc(all, time.Time.Compare)
		return all
	}
	none = func(*history) float64 { return 0 }
)

// claims are those of docs/guarantees.md about outages.
var claims = []claim{
	{limiter.FailOpen, "bucket: admitted by the store above the rate, B and B more for each loss of counts", false, exactly, above(byStore)},
	{limiter.FailOpen, "refused without the store", false, none, func(h *history) float64 { return float64(len(h.at[limiter.FailedClosed])) }},
	{limiter.FailOpen, "window: admitted by the store, L and L more for each loss of counts", true, exactly, inWindow(byStore)},
	{limiter.FailClosed, "bucket: admitted above the rate, B and B more for each loss of counts", false, exactly, above(byStore)},
	{limiter.FailClosed, "admitted without the store", false, none, func(h *history) float64 {
		return float64(len(h.at[limiter.FailedOpen]) + len(h.at[limiter.LocalAllowed]))
	}},
	{limiter.FailClosed, "window: admitted, L and L more for each loss of counts", true, exactly, inWindow(byStore)},
	{limiter.FailLocal, "bucket: admitted without the store above the rate (G8f), B + n", false, func(h *history) float64 { return atOnce + float64(h.replicas) }, above(byItself)},
	{limiter.FailLocal, "bucket: admitted by the store above the rate, B and B more for each loss of counts", false, exactly, above(byStore)},
	{limiter.FailLocal, "window: admitted without the store, L + n", true, func(h *history) float64 { return atOnce + float64(h.replicas) }, inWindow(byItself)},
	{limiter.FailLocal, "window: admitted in all, in that of entry or exit, 2 L + n and L more for each loss of counts", true, func(h *history) float64 {
		return atOnce + float64(h.replicas) + exactly(h)
	}, inWindow(total)},
}

// limits are those of the claims, by whether they have windows.
var limits = map[bool]limiter.Limit{
	false: {Algorithm: limiter.TokenBucket, Requests: perSecond, Window: time.Second, Burst: atOnce},
	true:  {Algorithm: limiter.FixedWindow, Requests: atOnce, Window: window},
}

// TestC14OutagesAndEdits is C14: whatever the store does, and however the policy is edited meanwhile, no more is
// admitted than is stated.
func TestC14OutagesAndEdits(t *testing.T) {
	const parts = 8
	seeds := uint64(times(20, 10_000))
	for _, mode := range []limiter.FailureMode{limiter.FailOpen, limiter.FailClosed, limiter.FailLocal} {
		t.Run(fmt.Sprintf("a limit that fails %s keeps its bounds", mode), func(t *testing.T) {
			s := &survey{mode: mode, nearest: map[string][2]float64{}}
			t.Run("all seeds", func(t *testing.T) {
				for part := range uint64(parts) {
					t.Run(fmt.Sprintf("each %dth from %d", parts, part), func(t *testing.T) {
						t.Parallel()
						for seed := part; seed < seeds; seed += parts {
							s.look(t, seed)
						}
					})
				}
			})
			s.report(t, seeds)
		})
	}
}

// survey is what many histories of one mode have shown.
type survey struct {
	mode limiter.FailureMode

	mu sync.Mutex
	// nearest is, by claim, what was seen and its bound where these were nearest to each other.
	nearest map[string][2]float64
	// latest is the longest that it took to ask the store again.
	latest time.Duration
}

// look holds the histories of a seed against the claims.
func (s *survey) look(t *testing.T, seed uint64) {
	t.Helper()
	for windowed, limit := range limits {
		h := historyOf(t, seed, s.mode, limit)
		for _, c := range claims {
			if c.mode != s.mode || c.window != windowed {
				continue
			}
			seen, bound := c.seen(h), c.bound(h)
			if seen > bound+tolerance {
				t.Errorf("seed %d: %s: %.1f, more than %.1f", seed, c.name, seen, bound)
			}
			s.note(c.name, seen, bound, h.late())
		}
	}
}

func (s *survey) note(claim string, seen, bound float64, late time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latest = max(s.latest, late)
	if n, ok := s.nearest[claim]; !ok || seen-bound > n[0]-n[1] {
		s.nearest[claim] = [2]float64{seen, bound}
	}
}

func (s *survey) report(t *testing.T, seeds uint64) {
	t.Helper()
	for _, c := range claims {
		if n, ok := s.nearest[c.name]; ok && c.mode == s.mode {
			t.Logf("C14: %s, %s: expected: at most %.0f; measured: %.1f, the nearest of %d seeds", s.mode, c.name, n[1], n[0], seeds)
		}
	}
	t.Logf("C14: %s: expected: the store decides %s after its return; measured: %s", s.mode, recovery, s.latest)
	if s.latest > recovery {
		t.Errorf("a request was decided without the store %s after its return", s.latest)
	}
}

func historyOf(t *testing.T, seed uint64, mode limiter.FailureMode, l limiter.Limit) *history {
	t.Helper()
	var h *history
	synctest.Test(t, func(*testing.T) {
		h = simulate(seed, mode, l)
		synctest.Wait()
	})
	return h
}

// TestR2AHangInVirtualTime is R2 as it is where nothing else is slow.
func TestR2AHangInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const every, lasts = 2 * time.Millisecond, 30 * time.Second
		m := &medium{hung: make(chan struct{}), store: memorystore.New(memorystore.Options{})}
		store := guard.Breaker(guard.Deadline(m, budget), unanswered)
		var (
			sent sync.WaitGroup
			mu   sync.Mutex
			took []time.Duration
		)
		for range int(lasts / every) {
			sent.Go(func() {
				begun := time.Now()
				_, _ = store.Take(t.Context(), []limiter.Hit{one("a")})
				mu.Lock()
				defer mu.Unlock()
				took = append(took, time.Since(begun))
			})
			time.Sleep(every)
		}
		sent.Wait()
		slices.Sort(took)
		longest, p99 := took[len(took)-1], took[len(took)*99/100]
		first, _ := slices.BinarySearch(took, time.Millisecond+1)
		slow := len(took) - first
		t.Logf("R2: expected: no request waits longer than %s, at most 40 longer than 1 ms, p99 at most 1 ms; measured: %s, %d, %s, of %d", budget, longest, slow, p99, len(took))
		if longest > budget || slow > 40 || p99 > time.Millisecond {
			t.Errorf("the longest is %s, %d are slow, p99 is %s", longest, slow, p99)
		}
		close(m.hung)
		time.Sleep(maxProbe)
		synctest.Wait()
	})
}

// Replicas that nobody knows of make it as much more as there are more of them.
func TestOutagesWithReplicasThatNobodyKnows(t *testing.T) {
	for _, replicas := range []struct{ known, there int }{{4, 4}, {4, 3}, {2, 6}, {1, 5}, {3, 4}} {
		t.Run(fmt.Sprintf("%d known, %d there", replicas.known, replicas.there), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 100, Window: time.Hour}
				admitted := 0
				for range replicas.there {
					own := guard.NewOwn(memorystore.New(memorystore.Options{}), &still{share: 1 / float64(replicas.known)})
					admitted += admits(t, own, 200, local("a", l))
				}
				most := 100*replicas.there/replicas.known + replicas.there
				t.Logf("expected: at most %d; measured: %d", most, admitted)
				if admitted > most {
					t.Errorf("%d were admitted", admitted)
				}
			})
		})
	}
}

// An outage begins with what is left, not with a fresh budget: what all admit in the window of entry is what the
// limit has, and what came since each replica last asked.
func TestOutagesBeginWithWhatIsLeft(t *testing.T) {
	var most float64
	const n = 4
	for seed := range uint64(times(20, 1000)) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			m := &medium{store: memorystore.New(memorystore.Options{})}
			h := &history{at: map[limiter.Outcome][]time.Time{}, replicas: n}
			hit := limiter.Hit{Key: "a", Limit: limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 100, Window: time.Hour}, Cost: 1, OnFailure: limiter.FailLocal}
			var engines []*limiter.Engine
			for range n {
				own := guard.NewOwn(memorystore.New(memorystore.Options{}), &still{share: 1. / n})
				engines = append(engines, limiter.NewEngineWithFallback(own.Beside(guard.Breaker(m, silent)), own, h))
			}
			before := random.IntN(150)
			for i := range before + n { // In turn, so that the last readings of all are of the last n requests.
				engines[i%n].Decide(t.Context(), []limiter.Hit{hit})
			}
			m.away = true
			for range 1000 {
				engines[random.IntN(n)].Decide(t.Context(), []limiter.Hit{hit})
			}
			most = max(most, float64(len(total(h))))
		})
	}
	t.Logf("expected: at most 100 and the %d since the readings; measured: %v", n-1, most)
	if most > 100+n-1 {
		t.Errorf("%v were admitted", most)
	}
}

// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/redistest"
	"github.com/weir-dev/weir/test/playground"
)

const (
	// shardBudget is for decisions of a Redis that hangs: more than a well one needs on a busy machine.
	shardBudget = 400 * time.Millisecond
	// following is more than it takes to find a primary that there is, and a sixth of the minute that the client library
	// would take by itself.
	following = 10 * time.Second
)

// stream is a steady load, and what came of each request.
type stream struct {
	mu      sync.Mutex
	answers []answer
}

// answer is what a request got that was sent at a time.
type answer struct {
	sent   time.Time
	status int
}

// stream has clients of so many names send requests to the replicas in turn, one every four milliseconds, whatever
// becomes of those before, until it is stopped. It gives the answers in the order in which they were asked for.
func (f *fleet) stream(t *testing.T, path string, clients ...string) (stop func() []answer) {
	t.Helper()
	var (
		s    stream
		sent sync.WaitGroup
		done = make(chan struct{})
	)
	sent.Go(func() {
		ticks := time.NewTicker(4 * time.Millisecond)
		defer ticks.Stop()
		for n := 0; ; n++ {
			sent.Go(func() { s.send(t, f.sidecars[n%len(f.sidecars)].URL+path, clients[n/len(f.sidecars)%len(clients)]) })
			select {
			case <-done:
				return
			case <-ticks.C:
			}
		}
	})
	stop = sync.OnceValue(func() []answer {
		close(done)
		sent.Wait()
		slices.SortFunc(s.answers, func(a, b answer) int { return a.sent.Compare(b.sent) })
		return s.answers
	})
	t.Cleanup(func() { stop() }) // Of a test that fails meanwhile.
	return stop
}

func (s *stream) send(t *testing.T, url, client string) {
	begun := time.Now()
	r, err := playground.Get(t.Context(), url, client)
	if err != nil {
		t.Error(err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers = append(s.answers, answer{begun, r.Status})
}

// degraded is what a stream shows of the time in which a store didn't decide.
type degraded struct {
	// statuses counts all answers.
	statuses map[int]int
	// last is how long after the fault the last request was sent that got no 200, and 0 if all got one.
	last time.Duration
	// part is which part of those from the first to the last of them got none.
	part float64
}

func degradedSince(fault time.Time, answers []answer) degraded {
	d := degraded{statuses: map[int]int{}}
	first, last := len(answers), -1
	for i, a := range answers {
		d.statuses[a.status]++
		if a.status != http.StatusOK {
			first, last = min(first, i), i
		}
	}
	if last >= 0 {
		d.last = answers[last].sent.Sub(fault)
		d.part = float64(len(answers)-d.statuses[http.StatusOK]) / float64(last-first+1)
	}
	return d
}

// check demands that nothing got any other answer than a closed limit has, and that it was over not long after there
// was a primary again, where the stated figure is too short for a busy machine.
func (d degraded) check(t *testing.T, stated, promoted time.Duration) {
	t.Helper()
	for status := range d.statuses {
		if status != http.StatusOK && status != http.StatusServiceUnavailable {
			t.Errorf("answers: %v", d.statuses)
		}
	}
	if most := max(stated, promoted+following); d.last > most {
		t.Errorf("enforcing after %s, later than %s", d.last, most)
	}
}

// awaitRole waits until a server is a master, or a slave, as Redis calls them.
func awaitRole(t *testing.T, server *redistest.Server, role string) {
	t.Helper()
	client := server.Client(t)
	eventually(t, server.Addr+" is a "+role, func() bool {
		got, err := client.Do(t.Context(), "ROLE").Slice()
		return err == nil && got[0] == role
	})
}

// awaitReplication waits until a replica has all that was written until now.
func awaitReplication(t *testing.T, primary *redistest.Server) {
	t.Helper()
	conn := primary.Client(t).Conn()
	defer func() { _ = conn.Close() }()
	if err := conn.Set(t.Context(), "now", 1, 0).Err(); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Wait(t.Context(), 1, patience).Result(); n != 1 || err != nil {
		t.Fatalf("%d replicas have it: %v", n, err)
	}
}

// checkSpent demands that what was counted before a fault is still counted after it.
func checkSpent(t *testing.T, before, after map[int]int) {
	t.Helper()
	if after[http.StatusOK] == 0 || after[http.StatusTooManyRequests] == 0 || before[http.StatusOK]+after[http.StatusOK] > limit {
		t.Errorf("answers of a limit of %d: %v, and then %v", limit, before, after)
	}
}

// TestR10APrimaryDies is R10.
func TestR10APrimaryDies(t *testing.T) {
	const stated = 4 * time.Second
	sentinel := redistest.StartSentinel(t)
	f, _ := launch(t, replicas, sentinel.URL())
	f.enforcing(t)
	before := f.statuses(t, "/closed", limit/2)
	awaitReplication(t, sentinel.Primary)
	stop := f.stream(t, "/many/closed", "anyone")
	fault := time.Now()
	sentinel.Primary.Kill()
	awaitRole(t, sentinel.Replica, "master")
	promoted := time.Since(fault)
	f.enforcing(t)
	d := degradedSince(fault, stop())
	after := f.statuses(t, "/closed", 2*limit)
	t.Logf("R10: expected: degraded for at most %s, of the requests meanwhile 90 to 100 %% refused, overshoot 0; measured: %s (its replica is the primary after %s), %.0f %%, %d: %v",
		stated, d.last.Round(time.Millisecond), promoted.Round(time.Millisecond), 100*d.part, before[http.StatusOK]+after[http.StatusOK]-limit, d.statuses)
	d.check(t, stated, promoted)
	checkSpent(t, before, after)
	if d.statuses[http.StatusServiceUnavailable] == 0 {
		t.Error("nobody has noticed")
	}
}

// TestR12APrimaryHangsAndComesBack is R12.
func TestR12APrimaryHangsAndComesBack(t *testing.T) {
	const stated, hang = 4 * time.Second, 6 * time.Second
	sentinel := redistest.StartSentinel(t)
	f, _ := launch(t, replicas, sentinel.URL(), "--decision-timeout", shardBudget.String())
	f.enforcing(t)
	stop := f.stream(t, "/many/closed", "anyone")
	fault := time.Now()
	if err := sentinel.Primary.Pause(); err != nil {
		t.Fatal(err)
	}
	awaitRole(t, sentinel.Replica, "master")
	promoted := time.Since(fault)
	f.enforcing(t)
	d := degradedSince(fault, stop())

	before := f.statuses(t, "/closed", limit/2)
	time.Sleep(hang - time.Since(fault))
	if err := sentinel.Primary.Resume(); err != nil {
		t.Fatal(err)
	}
	awaitRole(t, sentinel.Primary, "slave")
	f.enforcing(t)
	readOnly := func() int64 { return f.metric(t, "weir_store_errors_total", `reason="readonly"`) }
	during := readOnly()
	after := f.statuses(t, "/closed", 2*limit)
	since := readOnly() - during
	t.Logf("R12: expected: degraded for at most %s, READONLY at most %d times, then 0, overshoot 0; measured: %s (its replica is the primary after %s), %d, %d, %d: %v",
		stated, places*replicas, d.last.Round(time.Millisecond), promoted.Round(time.Millisecond), during, since, before[http.StatusOK]+after[http.StatusOK]-limit, d.statuses)
	d.check(t, stated, promoted)
	if during > places*replicas || since > 0 {
		t.Errorf("READONLY is what %d requests got, and later %d", during, since)
	}
	checkSpent(t, before, after)
}

// TestR13TheAddressMovesOn is R13: the address leads to the new primary, and the old one stays, as a replica, at the end
// of the connections that there are.
func TestR13TheAddressMovesOn(t *testing.T) {
	p := startPartition(t)
	before := p.fleet.statuses(t, "/closed", limit/2)
	awaitReplication(t, p.old)
	host, port, err := net.SplitHostPort(p.other.Addr)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.other.Client(t).ReplicaOf(t.Context(), "no", "one").Err(); err != nil {
		t.Fatal(err)
	}
	for _, g := range p.gates {
		g.turn(p.other.Addr)
	}
	if err := p.old.Client(t).ReplicaOf(t.Context(), host, port).Err(); err != nil {
		t.Fatal(err)
	}
	back := p.fleet.enforcing(t)
	readOnly := storeErrors(t, p.fleet, "readonly")
	after := p.fleet.statuses(t, "/closed", 2*limit)
	since := storeErrors(t, p.fleet, "readonly") - readOnly
	t.Logf("R13: expected: READONLY drops the connection, enforcing within 1 s, overshoot 0; measured: %d answers and then %d, %s, %d",
		readOnly, since, back.Round(time.Millisecond), before[http.StatusOK]+after[http.StatusOK]-limit)
	if readOnly == 0 || readOnly > places*replicas {
		t.Errorf("READONLY is what %d requests got", readOnly)
	}
	checkSpent(t, before, after)
}

// TestR14AShardFails is R14.
func TestR14AShardFails(t *testing.T) {
	for name, fail := range map[string]func(*redistest.Server) error{
		"a shard whose master dies enforces again when its replica has taken over":  func(s *redistest.Server) error { s.Kill(); return nil },
		"a shard whose master hangs enforces again when its replica has taken over": (*redistest.Server).Pause,
	} {
		t.Run(name, func(t *testing.T) { testShardFails(t, fail) })
	}
}

func testShardFails(t *testing.T, fail func(*redistest.Server) error) {
	// The nodes of the test are missed after 2 s.
	const stated = 2*time.Second + 3500*time.Millisecond
	cluster := redistest.StartReplicated(t)
	for _, s := range slices.Concat(cluster.Masters, cluster.Replicas) {
		// Else all shards refuse while one of them has no master.
		if err := s.Client(t).ConfigSet(t.Context(), "cluster-require-full-coverage", "no").Err(); err != nil {
			t.Fatal(err)
		}
	}
	f, _ := launch(t, replicas, cluster.URL(), "--decision-timeout", shardBudget.String())
	f.enforcing(t)
	clients := clientsByShard(t, f, cluster, 4)
	lost := f.stream(t, "/keyed", clients[1]...)
	well := f.stream(t, "/keyed", slices.Concat(clients[0], clients[2])...)
	fault := time.Now()
	if err := fail(cluster.Masters[1]); err != nil {
		t.Fatal(err)
	}
	awaitRole(t, cluster.Replicas[1], "master")
	promoted := time.Since(fault)
	for _, client := range clients[1] {
		for _, s := range f.sidecars {
			eventually(t, "the shard decides", func() bool { return askAs(t, s, "/keyed", client).Status == http.StatusOK })
		}
	}
	in, others := degradedSince(fault, lost()), degradedSince(fault, well())
	t.Logf("R14: expected: enforcing within %s, others 0 degraded; measured: %s (its replica is the master after %s), %.0f %% of the requests meanwhile refused, others %d of %d",
		stated, in.last.Round(time.Millisecond), promoted.Round(time.Millisecond), 100*in.part,
		others.statuses[http.StatusServiceUnavailable], others.statuses[http.StatusServiceUnavailable]+others.statuses[http.StatusOK])
	in.check(t, stated, promoted)
	// A busy machine can stop all for longer than the budget. It would be as many as in the shard that fails, if they
	// shared its circuit.
	if refused := others.statuses[http.StatusServiceUnavailable]; refused > others.statuses[http.StatusOK]/4 {
		t.Errorf("other shards: %v", others.statuses)
	}
	if in.statuses[http.StatusServiceUnavailable] == 0 {
		t.Error("nobody has noticed")
	}
}

// clientsByShard finds clients whose counters each of the masters has, so many for each.
func clientsByShard(t *testing.T, f *fleet, cluster *redistest.Cluster, each int) [][]string {
	t.Helper()
	counted := func() []int {
		numbers := make([]int, len(cluster.Masters))
		for i, m := range cluster.Masters {
			keys, err := m.Client(t).Keys(t.Context(), "weir:default:{default/*}:*").Result()
			if err != nil {
				t.Fatal(err)
			}
			numbers[i] = len(keys)
		}
		return numbers
	}
	clients, before := make([][]string, len(cluster.Masters)), counted()
	for n, found := 0, 0; found < each*len(clients); n++ {
		client := strconv.Itoa(n)
		eventually(t, "the store counts", func() bool { return askAs(t, f.sidecars[0], "/keyed", client).Status == http.StatusOK })
		after := counted()
		for i := range clients {
			if after[i] > before[i] && len(clients[i]) < each {
				clients[i] = append(clients[i], client)
				found++
			}
		}
		before = after
	}
	return clients
}

func askAs(t *testing.T, s *playground.Sidecar, path, client string) playground.Response {
	t.Helper()
	r, err := playground.Get(t.Context(), s.URL+path, client)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// gate is an address that leads to one server and then to another, as that of a Service or a proxy does which follows
// the primary.
type gate struct {
	addr string

	mu     sync.Mutex
	target string
	closed bool
	open   map[net.Conn]bool
}

func startGate(t *testing.T, target string) *gate {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{addr: ln.Addr().String(), target: target, open: map[net.Conn]bool{}}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { g.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		g.hangUp(func() { g.closed = true })
		serving.Wait()
	})
	return g
}

// turn has the gate lead elsewhere. Connections through it stay.
func (g *gate) turn(target string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.target = target
}

// lead has the gate lead elsewhere. Connections through it end.
func (g *gate) lead(target string) { g.hangUp(func() { g.target = target }) }

// hangUp changes the gate and ends all connections through it.
func (g *gate) hangUp(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
	for conn := range g.open {
		_ = conn.Close()
	}
	clear(g.open)
}

// serve passes on what comes from both sides until either side ends.
func (g *gate) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	server, ok := g.dial(conn)
	if !ok {
		return
	}
	defer func() { _ = server.Close() }()
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(conn, server)
		_ = conn.Close()
	})
	_, _ = io.Copy(server, conn)
	_ = server.Close()
	back.Wait()
}

// dial gives a connection to where the gate leads, which ends when that changes.
func (g *gate) dial(conn net.Conn) (net.Conn, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, false
	}
	server, err := net.Dial("tcp", g.target)
	if err != nil {
		return nil, false
	}
	g.open[conn], g.open[server] = true, true
	return server, true
}

// TestR18TwoPrimaries is R18: a partition as the clients see it. Each of two replicas of the application reaches Redis
// through a gate of its own, and after the split these lead to two primaries that hear nothing of each other. That takes
// no network: what makes the difference is which primary a client talks to, and that what one counts the other
// doesn't.
func TestR18TwoPrimaries(t *testing.T) {
	t.Run("two primaries admit no more than twice the limit, less what was counted before", func(t *testing.T) {
		p := startPartition(t)
		before := p.fleet.statuses(t, "/closed", limit/2)
		p.split(t)
		during := p.fleet.statuses(t, "/closed", 3*limit)
		p.heal(t)
		after := p.fleet.statuses(t, "/closed", limit)
		const most = 2*limit - limit/2
		admitted := before[http.StatusOK] + during[http.StatusOK] + after[http.StatusOK]
		t.Logf("R18: expected: admitted at most 2 L - n0 = %d, after the heal 0; measured: %d, %d", most, admitted, after[http.StatusOK])
		if admitted > most || during[http.StatusOK] <= limit/2 {
			t.Errorf("answers before, during and after: %v, %v, %v", before, during, after)
		}
		if diff := cmp.Diff(map[int]int{http.StatusTooManyRequests: limit}, after); diff != "" {
			t.Errorf("answers after the heal (-want +got):\n%s", diff)
		}
	})
	t.Run("a primary that is to have a replica counts nothing twice", func(t *testing.T) {
		p := startPartition(t)
		if err := p.old.Client(t).ConfigSet(t.Context(), "min-replicas-to-write", "1").Err(); err != nil {
			t.Fatal(err)
		}
		before := p.fleet.statuses(t, "/closed", limit/2)
		p.split(t)
		during := p.fleet.statuses(t, "/closed", 3*limit)
		p.heal(t)
		after := p.fleet.statuses(t, "/closed", limit)
		admitted := before[http.StatusOK] + during[http.StatusOK] + after[http.StatusOK]
		t.Logf("R18 with min-replicas-to-write: expected: admitted at most L = %d, the old primary's side refuses; measured: %d, %v", limit, admitted, during)
		if admitted > limit || during[http.StatusServiceUnavailable] < limit {
			t.Errorf("answers before, during and after: %v, %v, %v", before, during, after)
		}
	})
}

// partition is a primary and its replica, and two replicas of the application that reach the primary, each through a
// gate.
type partition struct {
	old, other *redistest.Server
	gates      []*gate
	fleet      *fleet
}

func startPartition(t *testing.T) *partition {
	t.Helper()
	p := &partition{old: redistest.Start(t)}
	host, port, err := net.SplitHostPort(p.old.Addr)
	if err != nil {
		t.Fatal(err)
	}
	p.other = redistest.StartWith(t, "--replicaof", host+" "+port, "--repl-diskless-sync-delay", "0")
	awaitReplication(t, p.old)
	p.fleet = &fleet{}
	for range replicas {
		g := startGate(t, p.old.Addr)
		one, _ := launch(t, 1, "redis://"+g.addr)
		p.gates, p.fleet.sidecars = append(p.gates, g), append(p.fleet.sidecars, one.sidecars...)
	}
	p.fleet.enforcing(t)
	return p
}

// split makes the replica a second primary, with all that was counted before, and has one gate lead to it.
func (p *partition) split(t *testing.T) {
	t.Helper()
	awaitReplication(t, p.old)
	if err := p.other.Client(t).ReplicaOf(t.Context(), "no", "one").Err(); err != nil {
		t.Fatal(err)
	}
	awaitRole(t, p.other, "master")
	client := p.old.Client(t)
	eventually(t, "the old primary has noticed", func() bool {
		info, err := client.Info(t.Context(), "replication").Result()
		return err == nil && strings.Contains(info, "connected_slaves:0")
	})
	p.gates[1].lead(p.other.Addr)
	s := p.fleet.sidecars[1]
	eventually(t, "the other primary decides", func() bool { return ask(t, s, "/many/closed").Status == http.StatusOK })
}

// heal makes the old primary a replica of the other, as Sentinel does when it is back, and has both gates lead there.
func (p *partition) heal(t *testing.T) {
	t.Helper()
	host, port, err := net.SplitHostPort(p.other.Addr)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.old.Client(t).ReplicaOf(t.Context(), host, port).Err(); err != nil {
		t.Fatal(err)
	}
	awaitRole(t, p.old, "slave")
	p.gates[0].lead(p.other.Addr)
	p.fleet.enforcing(t)
}

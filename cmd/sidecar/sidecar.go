// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	goredis "github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/configstore/file"
	redisconfig "github.com/weir-dev/weir/internal/configstore/redis"
	"github.com/weir-dev/weir/internal/fleet"
	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/guard"
	"github.com/weir-dev/weir/internal/limiter/memorystore"
	"github.com/weir-dev/weir/internal/limiter/redisstore"
	"github.com/weir-dev/weir/internal/limiter/roster"
	"github.com/weir-dev/weir/internal/match"
	"github.com/weir-dev/weir/internal/policy"
	"github.com/weir-dev/weir/internal/proxy"
	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/usage"
)

// maxReply is more than any reply has that a sidecar asks for: the largest is that with its policies.
const maxReply = 4 * configstore.MaxBytes

// sidecar is everything wired together.
type sidecar struct {
	options  options
	log      logr.Logger
	state    *state
	engine   *limiter.Engine
	proxy    *proxy.Proxy
	recorder *usage.Recorder
	roster   *roster.Roster
	// store is what all replicas count in together, and whose failures are told.
	store *watched
	// leases is what of that is taken ahead of time, counters the Redis to count in, and fleet who else counts there.
	// They are nil where requests are counted in process.
	leases   *guard.Leases
	counters goredis.UniversalClient
	fleet    *fleet.Member
	// configs is the Redis of the config store. It is nil where policies are files.
	configs goredis.UniversalClient
	watcher configstore.Watcher
	// matching is what the policies of a snapshot are matched with.
	matching match.Options
	// reporter is nil where nobody reads reports.
	reporter *usage.Reporter
	metrics  *prometheus.Registry
	clients  []goredis.UniversalClient
	// pace is what all clients connect at.
	pace redisclient.Pace
}

// newSidecar wires a sidecar. It opens no connection and waits for nothing.
func newSidecar(o options, log logr.Logger) (*sidecar, error) {
	s := &sidecar{
		options:  o,
		log:      log,
		state:    newState(time.Now()),
		recorder: usage.NewRecorder(),
		metrics:  prometheus.NewRegistry(),
	}
	s.roster = roster.New(o.maxKeys, s.recorder, log.WithName("keys"))
	join := s.joinCluster
	if o.namespace == "" {
		join = s.standAlone
	}
	for _, open := range []func() error{s.openConfigs, s.openStore, join} {
		if err := open(); err != nil {
			return nil, err
		}
	}
	s.engine.Bound(s.roster)
	s.proxy = proxy.New(s.engine, proxy.Options{
		TrustedProxies:  o.trustedProxies,
		BootstrapClosed: o.bootstrap == bootstrapClosed,
		Log:             log.WithName("proxy"),
	})
	s.metrics.MustRegister(s.proxy, s.recorder, keyMetrics{s.roster}, s.store.failures, s.state.revision,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return s, nil
}

// maxShared is how many counters a limit can have in process beside those of its keys: one for each of its targets.
const maxShared = 64

// openConfigs opens the config store, where policies come from one.
func (s *sidecar) openConfigs() (err error) {
	o := s.options
	if o.namespace != "" {
		s.configs, err = s.openRedis("--config-redis", cmp.Or(o.configRedis, o.redis), redisclient.Open)
	}
	return err
}

// openStore opens what requests are counted in.
func (s *sidecar) openStore() error {
	log := s.log.WithName("store")
	inProcess := memorystore.New(memorystore.Options{MaxCounters: s.options.maxKeys + maxShared})
	if s.options.redis == "" {
		s.store = watch(inProcess, log)
		s.engine = limiter.NewEngine(s.store, s.recorder)
		return nil
	}
	client, err := s.openRedis("--redis", s.options.redis, redisclient.Open)
	if err != nil {
		return err
	}
	counting, err := s.openRedis("--redis", s.options.redis, redisclient.OpenCounting)
	if err != nil {
		return err
	}
	s.counters = client
	s.store = watch(guarded(counting, s.options.decisionTimeout), log)
	s.leases = guard.NewLeases(guard.DenyCache(s.store))
	s.metrics.MustRegister(leaseMetrics{s.leases})
	s.fleet = fleet.New(client, s.options.instance, rand.Text(), s.fleetOptions())
	own := guard.NewOwn(inProcess, s.fleet)
	s.engine = limiter.NewEngineWithFallback(own.Beside(s.leases), own, s.recorder)
	return nil
}

// fleetOptions say where a replica learns of others that it can't hear.
func (s *sidecar) fleetOptions() fleet.Options {
	o := fleet.Options{Log: s.log.WithName("fleet")}
	if s.configs != nil {
		o.Census = fleet.NewCensus(s.configs, s.options.instance)
	}
	if s.options.stateDir != "" {
		o.File = filepath.Join(s.options.stateDir, "replicas.json")
	}
	return o
}

// guarded gives the store that fits a client, with a budget for each decision and a breaker, or one for each shard.
func guarded(client goredis.UniversalClient, budget time.Duration) limiter.Store {
	if cluster, ok := client.(*goredis.ClusterClient); ok {
		circuit := func() redisstore.Circuit { return guard.NewCircuit(redisstore.Unanswered) }
		return guard.Deadline(redisstore.NewCluster(cluster, circuit), budget)
	}
	return guard.Breaker(guard.Deadline(redisstore.New(client), budget), redisstore.Unanswered)
}

// standAlone takes the policies from files and enforces all of them.
func (s *sidecar) standAlone() error {
	w, err := file.NewWatcher(s.options.policies, policy.Standalone, s.log.WithName("policies"))
	if err != nil {
		return fmt.Errorf("reading --policies: %w", err)
	}
	s.watcher = w
	s.matching = match.Options{Instance: s.options.instance, Everything: true}
	return nil
}

// joinCluster takes the policies that the manager publishes, enforces those that select this pod, and
// reports.
func (s *sidecar) joinCluster() error {
	o := s.options
	labels, err := readLabels(o.podLabelsFile)
	if err != nil {
		return fmt.Errorf("--pod-labels-file: %w", err)
	}
	enforcer, err := self(labels)
	if err != nil {
		return err
	}
	log := s.log.WithName("policies")
	s.matching = match.Options{Instance: o.instance, Labels: labels}
	s.watcher = redisconfig.NewWatcher(s.configs, o.instance, o.namespace, log)
	if o.stateDir != "" {
		s.watcher = configstore.Persist(s.watcher, filepath.Join(o.stateDir, "snapshot.json"), log)
	}
	ports := portsOf(o.routes)
	report := func(now time.Time) usage.Report {
		return usage.Report{
			Enforcer: enforcer,
			Revision: s.state.now().Revision,
			Ports:    ports,
			Degraded: s.recorder.Degraded(now),
			Reason:   s.store.reason(now),
			Limits:   s.recorder.Recent(now),
		}
	}
	s.reporter = usage.NewReporter(s.counters, o.instance, o.namespace, report, s.log.WithName("usage"))
	return nil
}

// openRedis opens a client. Its connections come with the first command.
func (s *sidecar) openRedis(flag, url string, open func(url string, options ...redisclient.Option) (goredis.UniversalClient, error)) (goredis.UniversalClient, error) {
	options := []redisclient.Option{redisclient.Paced(&s.pace), redisclient.MaxReply(maxReply)}
	if dir := s.options.credentialsDir; dir != "" {
		options = append(options, redisclient.CredentialsIn(dir))
	}
	client, err := open(url, options...)
	if err != nil {
		return nil, usageError{fmt.Errorf("%s: %w", flag, err)}
	}
	s.clients = append(s.clients, client)
	return client, nil
}

func (s *sidecar) close() {
	for _, c := range s.clients {
		_ = c.Close() // Nothing is left to be said to it.
	}
}

// defaultPorts are those of URLs that name none.
var defaultPorts = map[string]string{"http": "80", "https": "443"}

// portsOf gives the ports that the routes lead to, by the names of their listeners.
func portsOf(routes []route) map[string]int32 {
	ports := make(map[string]int32, len(routes))
	for _, r := range routes {
		number, err := strconv.ParseUint(cmp.Or(r.upstream.Port(), defaultPorts[r.upstream.Scheme]), 10, 16)
		if err == nil { // Else it is none that anything could reach.
			ports[r.name] = int32(number)
		}
	}
	return ports
}

// self is this run of the sidecar, as reports name it.
func self(labels map[string]string) (usage.Enforcer, error) {
	pod := os.Getenv("POD_NAME")
	if pod == "" {
		host, err := os.Hostname()
		if err != nil {
			return usage.Enforcer{}, fmt.Errorf("naming this sidecar (or set POD_NAME): %w", err)
		}
		pod = host
	}
	return usage.Enforcer{Pod: pod, UID: os.Getenv("POD_UID"), Nonce: rand.Text(), Labels: labels}, nil
}

// run serves until ctx is done and all requests have had their answer, or something vital fails.
func (s *sidecar) run(ctx context.Context) error {
	listeners, err := open(ctx, s.options.routes)
	if err != nil {
		return err
	}
	own, err := s.openOwn(ctx)
	if err != nil {
		closeAll(listeners)
		return err
	}

	// What serves the requests in flight goes on until they have had their answer.
	lasting, finish := context.WithCancel(context.WithoutCancel(ctx))
	defer finish()
	helpers, lasting := errgroup.WithContext(lasting)
	for _, e := range own {
		helpers.Go(func() error { return e.serve(lasting, s.log) })
	}
	helpers.Go(func() error { return s.follow(lasting) })
	helpers.Go(func() error { s.engine.Run(lasting); return nil })
	helpers.Go(func() error { s.roster.Run(lasting); return nil })
	if s.leases != nil {
		helpers.Go(func() error { s.leases.Run(lasting); return nil })
	}
	helpers.Go(func() error { s.tellOfBootstrap(lasting); return nil })
	if s.counters != nil {
		helpers.Go(func() error { s.store.greet(lasting, s.counters); return nil })
		helpers.Go(func() error { return s.fleet.Run(lasting) })
	}
	if s.counters != nil && s.options.namespace == "" { // Else the manager looks, and tells it on the objects.
		helpers.Go(func() error { s.store.warnOfEviction(lasting, s.counters); return nil })
	}
	if s.reporter != nil {
		helpers.Go(func() error { return s.reporter.Run(lasting) })
	}
	ctx, stop := context.WithCancel(ctx)
	context.AfterFunc(lasting, stop)
	drained, err := s.serve(ctx, listeners)
	finish()
	err = errors.Join(err, helpers.Wait())
	s.log.Info("stopped", "drained", drained.Round(time.Millisecond).String())
	return err
}

// follow enforces the snapshots of the config store.
func (s *sidecar) follow(ctx context.Context) error {
	if err := s.watcher.Watch(ctx, s.enforce); err != nil {
		return fmt.Errorf("watching policies: %w", err)
	}
	return nil
}

// enforce enforces a snapshot from the next request on.
func (s *sidecar) enforce(snapshot configstore.Snapshot) {
	policies := make([]match.Policy, len(snapshot.Policies))
	for i, p := range snapshot.Policies {
		policies[i] = p.Policy
	}
	m := match.New(policies, s.matching)
	s.roster.Keep(keyed(m.Policies()))
	s.proxy.Swap(m)
	s.recorder.Keep(m.Policies())
	if s.fleet != nil {
		s.fleet.Keep(pools(m.Policies()))
	}
	s.state.enforce(snapshot, m)
	log := s.log
	if snapshot.Namespace != "" { // Files have none.
		log = log.WithValues("namespace", snapshot.Namespace)
	}
	log.Info("enforcing policies", "revision", snapshot.Revision.String(), "count", len(m.Policies()))
}

// pools are what this replica has a share of while the store is away.
func pools(policies []match.Policy) []fleet.Pool {
	var shared []fleet.Pool
	for _, p := range policies {
		for _, l := range p.Limits {
			if !l.Divided() {
				continue
			}
			for _, t := range p.Targets {
				id := limiter.LimitID{Namespace: p.Namespace, Policy: p.Name, Limit: l.Name}
				shared = append(shared, fleet.Pool{ID: id, Target: t.ID})
			}
		}
	}
	return shared
}

// tellOfBootstrap says so if no policies have come in time.
func (s *sidecar) tellOfBootstrap(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(bootstrapWait):
		if !s.state.known() {
			s.log.Info("no policies are known yet", "bootstrapMode", s.options.bootstrap)
		}
	}
}

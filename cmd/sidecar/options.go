// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/probe"
	"github.com/weir-dev/weir/internal/proxy"
)

// defaultAdminAddress can be reached from the pod alone.
const defaultAdminAddress = "127.0.0.1:15090"

// mostKeys take some 2.5 GB: to allow more would be no bound.
const mostKeys = 100_000_000

// options are the sidecar's flags.
type options struct {
	routes          []route
	policies        list
	namespace       string
	podLabelsFile   string
	redis           string
	configRedis     string
	credentialsDir  string
	instance        string
	adminAddress    string
	probeAddress    string
	probes          map[string]probe.Probe
	decisionTimeout time.Duration
	trustedProxies  proxy.TrustedProxies
	maxKeys         int
	bootstrap       bootstrapMode
	stateDir        string
	drainDelay      time.Duration
	logLevel        zapcore.Level
	version         bool
}

// route is a listener and the application behind it.
type route struct {
	// name is what a target's sectionName has to be. Empty is behind all sections.
	name     string
	address  string
	upstream *url.URL
}

// usageError is a fault in the arguments.
type usageError struct{ error }

func (e usageError) Error() string { return e.error.Error() + " (see weir-sidecar -h)" }

// parse reads the flags. What is wrong with them comes back as a usageError that names the flag. Help is written
// to stdout, and is [flag.ErrHelp].
func parse(args []string, stdout io.Writer) (options, error) {
	o := options{decisionTimeout: 20 * time.Millisecond, drainDelay: 5 * time.Second, maxKeys: 100_000}
	var listen, upstream list
	fs := flag.NewFlagSet("weir-sidecar", flag.ContinueOnError)
	fs.SetOutput(io.Discard) // Whoever calls tells of errors.
	fs.Var(&listen, "listen", "`[NAME=]ADDRESS` to accept requests at; NAME is what a policy's sectionName selects (repeatable)")
	fs.Var(&upstream, "upstream", "`[NAME=]URL` of the application behind the listener of that name (one for each --listen)")
	fs.Var(&o.policies, "policies", "`file or folder` of policies to enforce on everything, without a cluster (repeatable)")
	fs.StringVar(&o.namespace, "namespace", "", "`name` of the namespace whose published policies are enforced, where they select this pod")
	fs.StringVar(&o.podLabelsFile, "pod-labels-file", "", "`file` with this pod's labels, as the downward API writes it")
	fs.StringVar(&o.redis, "redis", "", "`URL` of the Redis to count in; without one, --policies count in process")
	fs.StringVar(&o.configRedis, "config-redis", "", "`URL` of the Redis that policies are published in (default: --redis)")
	fs.StringVar(&o.credentialsDir, "redis-credentials", "", "`folder` with the files username, password and ca.crt for Redis, which may change (default: those of the URLs)")
	fs.StringVar(&o.instance, "instance", "default", "`name` of the installation; must be the manager's")
	fs.StringVar(&o.adminAddress, "admin-listen", defaultAdminAddress, "`address` of /metrics, /healthz, /readyz and /debug/snapshot")
	fs.StringVar(&o.probeAddress, "probe-listen", "", "`address` of /healthz and /readyz alone, for who can't reach --admin-listen (default: none)")
	fs.Func("app-probe", "`PATH=PROBE`, in JSON, that --probe-listen asks the application in the kubelet's stead (repeatable)", o.addProbe)
	fs.Var((*duration)(&o.decisionTimeout), "decision-timeout", "longest `time` to wait for Redis; then onStoreFailure decides")
	fs.Func("trusted-proxies", "`CIDR,...` of the proxies that are believed about X-Forwarded-For (repeatable)", o.addTrustedProxies)
	fs.IntVar(&o.maxKeys, "max-keys-per-policy", o.maxKeys, "`number` of keys of a policy that have counters of their own; more share one")
	fs.TextVar(&o.bootstrap, "bootstrap-mode", bootstrapOpen, "`mode` before any policies are known: Open admits all requests, Closed refuses them")
	fs.StringVar(&o.stateDir, "state-dir", "", "`folder` to keep the last policies in over a restart (default: none)")
	fs.Var((*duration)(&o.drainDelay), "drain-delay", "`time` to go on accepting after SIGTERM, until nobody sends any more")
	fs.TextVar(&o.logLevel, "log-level", zapcore.InfoLevel, "least severe `level` to log: debug, info, warn or error")
	fs.BoolVar(&o.version, "version", false, "print the version, and nothing else")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintln(stdout, "weir-sidecar enforces rate limits on the requests to one application. As weir-sidecar leave it tells the\none that runs that its pod is ending, and as weir-sidecar redirect FROM:TO ... it sends what arrives at\nsome ports to others. Otherwise its flags are:")
		fs.SetOutput(stdout)
		fs.PrintDefaults()
		return o, err
	case err != nil:
		return o, usageError{err}
	case o.version:
		return o, nil
	case fs.NArg() > 0:
		return o, usageError{fmt.Errorf("unexpected argument %q", fs.Arg(0))}
	}
	var err error
	if o.routes, err = pair(listen, upstream); err != nil {
		return o, usageError{err}
	}
	if err := o.check(); err != nil {
		return o, usageError{err}
	}
	return o, nil
}

// check says which flags don't go together, and which have values that can't be.
func (o options) check() error {
	standalone := len(o.policies) > 0
	switch {
	case standalone && o.namespace != "":
		return errors.New("--policies and --namespace exclude each other: policies come from files or from the store")
	case !standalone && o.namespace == "":
		return errors.New("--policies or --namespace is required: the policies to enforce")
	case !standalone && o.podLabelsFile == "":
		return errors.New("--pod-labels-file is required with --namespace: policies select pods by their labels")
	case !standalone && o.redis == "":
		return errors.New("--redis is required with --namespace: the sidecars of an application count together")
	case standalone && o.configRedis != "":
		return errors.New("--config-redis goes with --namespace only: policies come from files")
	case standalone && o.stateDir != "":
		return errors.New("--state-dir goes with --namespace only: policies are in files already")
	case o.probeAddress == "" && len(o.probes) > 0:
		return errors.New("--app-probe goes with --probe-listen only: that is where it is asked")
	case o.maxKeys < 1 || o.maxKeys > mostKeys:
		return fmt.Errorf("--max-keys-per-policy must be from 1 to %d", mostKeys)
	case o.decisionTimeout <= 0:
		return errors.New("--decision-timeout must be above zero")
	case o.drainDelay < 0:
		return errors.New("--drain-delay must not be negative")
	}
	if err := checkAddress(o.adminAddress); err != nil {
		return fmt.Errorf("--admin-listen %s: %w", o.adminAddress, err)
	}
	if o.probeAddress != "" {
		if err := checkAddress(o.probeAddress); err != nil {
			return fmt.Errorf("--probe-listen %s: %w", o.probeAddress, err)
		}
	}
	if err := configstore.CheckInstance(o.instance); err != nil {
		return fmt.Errorf("--instance: %w", err)
	}
	return nil
}

// checkAddress wants an address to listen at.
func checkAddress(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return errors.New("must be like :8080 or 127.0.0.1:8080")
	}
	return nil
}

// pair finds the upstream of each listener.
func pair(listen, upstream list) ([]route, error) {
	urls := map[string]*url.URL{}
	for _, s := range upstream {
		name, target := named(s)
		if urls[name] != nil {
			return nil, fmt.Errorf("--upstream %s: there are two for one --listen", s)
		}
		u, err := parseUpstream(target)
		if err != nil {
			return nil, err
		}
		urls[name] = u
	}
	var routes []route
	for _, s := range listen {
		name, address := named(s)
		if err := checkAddress(address); err != nil {
			return nil, fmt.Errorf("--listen %s: %w", s, err)
		}
		if slices.ContainsFunc(routes, func(r route) bool { return r.name == name }) {
			return nil, fmt.Errorf("--listen %s: there are two of one name", s)
		}
		if urls[name] == nil {
			return nil, fmt.Errorf("--listen %s: there is no --upstream of the same name", s)
		}
		routes = append(routes, route{name: name, address: address, upstream: urls[name]})
	}
	switch {
	case len(routes) == 0:
		return nil, errors.New("--listen is required: the address to accept requests at")
	case len(routes) < len(urls):
		return nil, errors.New("--upstream: there is one without a --listen of the same name")
	}
	return routes, nil
}

// named reads [NAME=]VALUE.
func named(s string) (name, value string) {
	if name, value, ok := strings.Cut(s, "="); ok {
		return name, value
	}
	return "", s
}

func parseUpstream(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil, u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "":
		return nil, fmt.Errorf("--upstream %s: must be like http://127.0.0.1:8080", s)
	case u.User != nil:
		return nil, fmt.Errorf("--upstream %s: must have no user and password: those of clients are forwarded as they are", u.Redacted())
	case strings.Trim(u.Path, "/") != "", u.RawQuery != "":
		return nil, fmt.Errorf("--upstream %s: must be a scheme, a host and a port: paths are forwarded as they are", s)
	}
	return u, nil
}

func (o *options) addProbe(s string) error {
	path, p, err := probe.Parse(s)
	if err != nil {
		return err
	}
	if o.probes == nil {
		o.probes = map[string]probe.Probe{}
	}
	if _, ok := o.probes[path]; ok {
		return fmt.Errorf("%s is there twice", path)
	}
	o.probes[path] = p
	return nil
}

func (o *options) addTrustedProxies(s string) error {
	for network := range strings.SplitSeq(s, ",") {
		p, err := parseNetwork(strings.TrimSpace(network))
		if err != nil {
			return err
		}
		o.trustedProxies = append(o.trustedProxies, p)
	}
	return nil
}

// parseNetwork parses a CIDR, or an address, which is a network of its own.
func parseNetwork(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, errors.New("must be addresses or CIDRs like 10.0.0.0/8")
	case p != p.Masked():
		// It may be an address whose bits were miscounted: to trust the whole network would be a guess.
		return p, fmt.Errorf("%s is not the start of its network, which is %s", p, p.Masked())
	}
	return p, nil
}

// duration is the value of a flag. Its error shows how to write one.
type duration time.Duration

func (d *duration) String() string { return time.Duration(*d).String() }

func (d *duration) Set(s string) error {
	parsed, err := time.ParseDuration(s)
	if err != nil {
		return errors.New("must be like 20ms or 5s")
	}
	*d = duration(parsed)
	return nil
}

// list is a flag that can be repeated.
type list []string

func (l *list) String() string { return strings.Join(*l, ", ") }

func (l *list) Set(s string) error {
	*l = append(*l, s)
	return nil
}

// bootstrapMode says what becomes of requests before any policies are known.
type bootstrapMode string

const (
	bootstrapOpen   bootstrapMode = "Open"
	bootstrapClosed bootstrapMode = "Closed"
)

// MarshalText is part of encoding.TextMarshaler.
func (m bootstrapMode) MarshalText() ([]byte, error) { return []byte(m), nil }

// UnmarshalText is part of encoding.TextUnmarshaler.
func (m *bootstrapMode) UnmarshalText(text []byte) error {
	switch mode := bootstrapMode(text); mode {
	case bootstrapOpen, bootstrapClosed:
		*m = mode
		return nil
	}
	return errors.New("must be Open or Closed")
}

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap/zapcore"

	"github.com/weir-dev/weir/internal/probe"
	"github.com/weir-dev/weir/internal/proxy"
)

func TestFlags(t *testing.T) {
	upstream := &url.URL{Scheme: "http", Host: "127.0.0.1:3000"}
	defaults := options{
		instance:        "default",
		adminAddress:    "127.0.0.1:15090",
		decisionTimeout: 20 * time.Millisecond,
		maxKeys:         100_000,
		bootstrap:       bootstrapOpen,
		drainDelay:      5 * time.Second,
		logLevel:        zapcore.InfoLevel,
	}
	with := func(edit func(*options)) options {
		o := defaults
		edit(&o)
		return o
	}
	tests := []struct {
		name string
		args string
		want options
	}{
		{
			"alone, three flags do",
			"--listen :8080 --upstream http://127.0.0.1:3000 --policies policies.yaml",
			with(func(o *options) {
				o.routes = []route{{address: ":8080", upstream: upstream}}
				o.policies = list{"policies.yaml"}
			}),
		},
		{
			"in a cluster, names pair listeners and upstreams",
			"--listen http=:8080 --listen admin=:8081 --upstream admin=http://127.0.0.1:3001 --upstream http=http://127.0.0.1:3000/" +
				" --namespace shop --pod-labels-file labels --redis redis://weir --config-redis redis://config" +
				" --trusted-proxies 10.0.0.0/8,fd00::/8 --trusted-proxies 192.0.2.1,2001:db8::1 --bootstrap-mode Closed --log-level debug" +
				" --instance one --max-keys-per-policy 1000 --state-dir /state --drain-delay 0s --decision-timeout 1s --admin-listen :1" +
				` --probe-listen :2 --app-probe /probes/app/liveness={"tcpSocket":{"port":3}}`,
			options{
				routes: []route{
					{name: "http", address: ":8080", upstream: &url.URL{Scheme: "http", Host: "127.0.0.1:3000", Path: "/"}},
					{name: "admin", address: ":8081", upstream: &url.URL{Scheme: "http", Host: "127.0.0.1:3001"}},
				},
				namespace:       "shop",
				podLabelsFile:   "labels",
				redis:           "redis://weir",
				configRedis:     "redis://config",
				instance:        "one",
				adminAddress:    ":1",
				probeAddress:    ":2",
				probes:          map[string]probe.Probe{"/probes/app/liveness": {TCPSocket: &probe.TCPSocket{Port: 3}}},
				decisionTimeout: time.Second,
				trustedProxies: proxy.TrustedProxies{
					netip.MustParsePrefix("10.0.0.0/8"),
					netip.MustParsePrefix("fd00::/8"),
					netip.MustParsePrefix("192.0.2.1/32"),
					netip.MustParsePrefix("2001:db8::1/128"),
				},
				maxKeys:   1000,
				bootstrap: bootstrapClosed,
				stateDir:  "/state",
				logLevel:  zapcore.DebugLevel,
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parse(strings.Fields(tt.args), t.Output())
			if err != nil {
				t.Fatal(err)
			}
			compareAddrs := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(options{}, route{}), compareAddrs); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAFaultInTheFlagsNamesTheFlag(t *testing.T) {
	const (
		route  = "--listen :8080 --upstream http://127.0.0.1:3000 "
		probed = `/probes/app/liveness={"tcpSocket":{"port":3}}`
	)
	tests := []struct{ name, args, want string }{
		{"no flags", "", "--listen is required: the address to accept requests at"},
		{"no policies", route, "--policies or --namespace is required: the policies to enforce"},
		{"two sources of policies", route + "--policies p --namespace shop", "--policies and --namespace exclude each other: policies come from files or from the store"},
		{"no labels", route + "--namespace shop", "--pod-labels-file is required with --namespace: policies select pods by their labels"},
		{"no Redis", route + "--namespace shop --pod-labels-file f", "--redis is required with --namespace: the sidecars of an application count together"},
		{"config Redis with files", route + "--policies p --config-redis redis://c", "--config-redis goes with --namespace only: policies come from files"},
		{"state with files", route + "--policies p --state-dir d", "--state-dir goes with --namespace only: policies are in files already"},
		{"no time to decide", route + "--policies p --decision-timeout 0s", "--decision-timeout must be above zero"},
		{"no keys", route + "--policies p --max-keys-per-policy 0", "--max-keys-per-policy must be from 1 to 100000000"},
		{"a delay in the past", route + "--policies p --drain-delay -1s", "--drain-delay must not be negative"},
		{"a bad address for probes", route + "--policies p --probe-listen 8080", "--probe-listen 8080: must be like :8080 or 127.0.0.1:8080"},
		{"probes that nobody can ask", route + "--policies p --app-probe " + probed, "--app-probe goes with --probe-listen only: that is where it is asked"},
		{"a probe that is none", route + "--app-probe /healthz", `invalid value "/healthz" for flag -app-probe: must begin with /probes/`},
		{"two probes at one path", route + "--app-probe " + probed + " --app-probe " + probed, `invalid value ` + strconv.Quote(probed) + ` for flag -app-probe: /probes/app/liveness is there twice`},
		{"nothing to redirect", "redirect", "redirect: name ports, like 8080:15101"},
		{"a redirection to nowhere", "redirect 8080", "redirect: 8080: must be two ports, like 8080:15101"},
		{"a listener without an upstream", "--listen a=:8080 --upstream http://x", "--listen a=:8080: there is no --upstream of the same name"},
		{"an upstream without a listener", route + "--upstream b=http://x", "--upstream: there is one without a --listen of the same name"},
		{"two listeners of one name", route + "--listen :8081", "--listen :8081: there are two of one name"},
		{"two upstreams of one name", route + "--upstream http://x", "--upstream http://x: there are two for one --listen"},
		{"an upstream that is no URL", "--listen :8080 --upstream localhost:3000", "--upstream localhost:3000: must be like http://127.0.0.1:8080"},
		{"an upstream without a scheme", "--listen :8080 --upstream 127.0.0.1:3000", "--upstream 127.0.0.1:3000: must be like http://127.0.0.1:8080"},
		{"an upstream without a host", "--listen :8080 --upstream http://:3000", "--upstream http://:3000: must be like http://127.0.0.1:8080"},
		{"an upstream with a password", "--listen :8080 --upstream http://me:secret@x", "--upstream http://me:xxxxx@x: must have no user and password: those of clients are forwarded as they are"},
		{"an upstream with a path", "--listen :8080 --upstream http://x/base", "--upstream http://x/base: must be a scheme, a host and a port: paths are forwarded as they are"},
		{"a listener that is no address", "--listen 18080", "--listen 18080: must be like :8080 or 127.0.0.1:8080"},
		{"a listener without a port", "--listen 127.0.0.1: --upstream http://x", "--listen 127.0.0.1:: must be like :8080 or 127.0.0.1:8080"},
		{"a listener beyond the ports", "--listen :65536 --upstream http://x", "--listen :65536: must be like :8080 or 127.0.0.1:8080"},
		{"an admin listener that is no address", route + "--policies p --admin-listen 15090", "--admin-listen 15090: must be like :8080 or 127.0.0.1:8080"},
		{"proxies that are no networks", route + "--trusted-proxies 10.0.0.0/8,shop", `invalid value "10.0.0.0/8,shop" for flag -trusted-proxies: must be addresses or CIDRs like 10.0.0.0/8`},
		{"a proxy with a mask", route + "--trusted-proxies 10.0.0.1/8", `invalid value "10.0.0.1/8" for flag -trusted-proxies: 10.0.0.1/8 is not the start of its network, which is 10.0.0.0/8`},
		{"an instance that breaks keys", route + "--policies p --instance {a}", `--instance: must be 1 to 63 letters, digits, dots, underscores or hyphens, not "{a}"`},
		{"a time without a unit", route + "--decision-timeout 20", `invalid value "20" for flag -decision-timeout: must be like 20ms or 5s`},
		{"an unknown mode", route + "--bootstrap-mode Ajar", `invalid value "Ajar" for flag -bootstrap-mode: must be Open or Closed`},
		{"an unknown flag", "--lissen :8080", "flag provided but not defined: -lissen"},
		{"an argument", route + "--policies p more", `unexpected argument "more"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := run(t.Context(), strings.Fields(tt.args), t.Output(), t.Output())
			var usage usageError
			if !errors.As(err, &usage) {
				t.Fatalf("run returned %v, which is no fault in the flags", err)
			}
			if diff := cmp.Diff(tt.want+" (see weir-sidecar -h)", err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}

	t.Run("a URL that names no Redis", func(t *testing.T) {
		err := run(t.Context(), strings.Fields(route+"--policies p --redis http://x"), t.Output(), t.Output())
		if !errors.As(err, new(usageError)) || !strings.HasPrefix(err.Error(), "--redis: ") {
			t.Errorf("run returned %v", err)
		}
	})
}

func TestHelpListsTheFlags(t *testing.T) {
	var out strings.Builder
	if err := run(t.Context(), []string{"--help"}, &out, t.Output()); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("run returned %v", err)
	}
	for _, part := range []string{"-bootstrap-mode", "-decision-timeout time", "(default 20ms)"} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("help lacks %q: %s", part, out.String())
		}
	}
}

func TestVersionIsAllThatItPrints(t *testing.T) {
	var stdout, stderr strings.Builder
	if err := run(t.Context(), []string{"--version"}, &stdout, &stderr); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff("weir-sidecar dev\n", stdout.String()+stderr.String()); diff != "" {
		t.Errorf("printed (-want +got):\n%s", diff)
	}
}

func TestPodLabels(t *testing.T) {
	t.Run("are read as the downward API writes them", func(t *testing.T) {
		got, err := parseLabels("app=\"checkout\"\nempty=\"\"\nexample.com/quote=\"a\\\"b\\\\c\\n\"\n")
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{"app": "checkout", "empty": "", "example.com/quote": "a\"b\\c\n"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("labels (-want +got):\n%s", diff)
		}
	})
	for _, line := range []string{"app", "app=checkout", "=\"checkout\"", "app=\"checkout"} {
		t.Run("may not be like "+line, func(t *testing.T) {
			if got, err := parseLabels(line); err == nil {
				t.Errorf("labels are %v", got)
			}
		})
	}
}

// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/match"
)

// simple is a policy with one limit of one request a second.
func simple() *v1alpha1.RateLimitPolicy {
	return &v1alpha1.RateLimitPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "simple"},
		Spec: v1alpha1.RateLimitPolicySpec{
			Selector: &metav1.LabelSelector{},
			Limits: []v1alpha1.Limit{{
				Name:     "all",
				Strategy: v1alpha1.Strategy{TokenBucket: &v1alpha1.TokenBucket{Requests: 1, Window: "1s"}},
			}},
		},
	}
}

func TestCompile(t *testing.T) {
	t.Run("no error is nil", func(t *testing.T) {
		if _, err := Compile(simple(), nil); err != nil {
			t.Error(err)
		}
	})
	t.Run("every error is a refusal", func(t *testing.T) {
		p := simple()
		p.Spec.Limits = nil
		for name, compile := range map[string]func() (match.Policy, error){
			"Compile":    func() (match.Policy, error) { return Compile(p, nil) },
			"Standalone": func() (match.Policy, error) { return Standalone(p) },
		} {
			c, err := compile()
			var r *Refusal
			if !errors.As(err, &r) || r.Reason != v1alpha1.ReasonInvalid {
				t.Errorf("%s: got the error %v", name, err)
			}
			if diff := cmp.Diff(match.Policy{}, c); diff != "" {
				t.Errorf("%s: policy (-want +got):\n%s", name, diff)
			}
		}
	})
	t.Run("a message is the same each time, whatever the order of labels", func(t *testing.T) {
		p := simple()
		p.Spec.Selector.MatchLabels = map[string]string{"a!": "1", "b!": "2", "c!": "3", "d": "?", "e": "!"}
		_, first := Compile(p, nil)
		for range 20 {
			if _, err := Compile(p, nil); err.Error() != first.Error() {
				t.Fatalf("got %q after %q", err, first)
			}
		}
	})
	t.Run("a message is bounded, however much is wrong", func(t *testing.T) {
		p := simple()
		p.Spec.Limits = make([]v1alpha1.Limit, 2000)
		_, err := Compile(p, nil)
		if got := err.Error(); len(got) >= 1024 || !strings.HasSuffix(got, " more") {
			t.Errorf("got %d bytes: %s", len(got), got)
		}
	})
}

func TestStandalone(t *testing.T) {
	p := simple()
	p.Generation = 2
	p.Spec.Selector = nil
	p.Spec.TargetRefs = []v1alpha1.TargetRef{
		{Kind: "Service", Name: "checkout", SectionName: "http"},
		{Group: "apps", Kind: "Deployment", Name: "cart"},
	}
	want := match.Policy{
		Namespace:  "default",
		Name:       "simple",
		Generation: 2,
		Targets:    []match.Target{{ID: "Service/checkout/http", Section: "http"}, {ID: "Deployment/cart"}},
		Limits: []match.Limit{{
			Name:      "all",
			Limit:     limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 1, Window: time.Second, Burst: 1},
			OnFailure: limiter.FailOpen,
		}},
		Response: match.Response{StatusCode: 429, Headers: []string{"Draft11"}, Body: "Problem"},
	}

	t.Run("targets need no cluster, and a namespace is assumed", func(t *testing.T) {
		got, err := Standalone(p)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("policy (-want +got):\n%s", diff)
		}
	})
	t.Run("targets have the same IDs as in a cluster", func(t *testing.T) {
		all := &metav1.LabelSelector{}
		found, missing := Workloads{
			{Kind: "Service", Name: "checkout"}:               {Pods: all, Ports: []Port{{Name: "http"}}},
			{Group: "apps", Kind: "Deployment", Name: "cart"}: {Pods: all},
		}.targets(p)
		if missing != nil {
			t.Fatal(missing)
		}
		if diff := cmp.Diff(want.Targets, found); diff != "" {
			t.Errorf("targets (-standalone +cluster):\n%s", diff)
		}
	})
}

func TestRefs(t *testing.T) {
	t.Run("each workload is looked up once, whole", func(t *testing.T) {
		p := simple()
		p.Spec.TargetRefs = []v1alpha1.TargetRef{
			{Kind: "Service", Name: "checkout", SectionName: "http"},
			{Kind: "Service", Name: "checkout", SectionName: "grpc"},
			{Group: "apps", Kind: "Deployment", Name: "checkout"},
		}
		want := []v1alpha1.TargetRef{
			{Kind: "Service", Name: "checkout"},
			{Group: "apps", Kind: "Deployment", Name: "checkout"},
		}
		if diff := cmp.Diff(want, Refs(p)); diff != "" {
			t.Errorf("refs (-want +got):\n%s", diff)
		}
	})
	t.Run("a selector needs none", func(t *testing.T) {
		if got := Refs(simple()); got != nil {
			t.Errorf("got %v", got)
		}
	})
}

func TestWindows(t *testing.T) {
	for in, want := range map[v1alpha1.Window]time.Duration{
		"10ms":        10 * time.Millisecond,
		"1m":          time.Minute,
		"1h30m":       90 * time.Minute,
		"1s500ms":     1500 * time.Millisecond,
		"8784h":       8784 * time.Hour,
		"8783h60m":    8784 * time.Hour,
		"00001s":      time.Second,
		"1m1m1m1m":    4 * time.Minute,
		"":            0,
		"0s":          0,
		"9ms":         0,
		"8784h1ms":    0,
		"1":           0,
		"1d":          0,
		"1.5h":        0,
		"-1m":         0,
		"1us":         0,
		"1m 1s":       0,
		"100000s":     0,
		"1m1m1m1m1m":  0,
		"1m\n":        0,
		"\u0661m":     0,
		"99999h1h1h1": 0,
	} {
		got, err := windowBounds.parse(string(in))
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: got %v, %v, want %v", in, got, err, want)
		}
	}
}

func TestDelays(t *testing.T) {
	for in, want := range map[v1alpha1.Duration]time.Duration{
		"1ms":    time.Millisecond,
		"10s":    10 * time.Second,
		"1h":     time.Hour,
		"59m60s": time.Hour,
		"0ms":    0,
		"1h1ms":  0,
		"1":      0,
		"":       0,
	} {
		got, err := delayBounds.parse(string(in))
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: got %v, %v, want %v", in, got, err, want)
		}
	}
}

func TestShort(t *testing.T) {
	long := strings.Repeat("é", 100)
	for name, tt := range map[string]struct {
		parts []string
		want  string
	}{
		"nothing is empty":               {nil, ""},
		"what fits is whole":             {[]string{"one", "two", "three", "four", "five", "six", "7"}, "one; two; three; four; five; six; 7"},
		"what doesn't fit is counted":    {[]string{"one", "two", "three", "four", "five", "six", "seven"}, "one; two; three; four; and 3 more"},
		"a part that is too long is cut": {[]string{long}, "ééééééééé..."},
		"what follows it is counted":     {[]string{long, "two"}, "ééééééééé...; and 1 more"},
	} {
		t.Run(name, func(t *testing.T) {
			got := short(tt.parts, "; ", 36)
			if got != tt.want || len(got) > 36 || !utf8.ValidString(got) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestSummary(t *testing.T) {
	summary := func(limits string) string {
		p := simple()
		p.Spec.Limits = nil
		unmarshal(t, []byte(limits), &p.Spec.Limits)
		return Summary(p)
	}
	for in, want := range map[string]string{
		`[]`: "",
		`[{strategy: {tokenBucket: {requests: 100, window: 1m, burst: 200}}, key: [{header: {name: x-api-key}}]}]`: "100/1m burst 200 per x-api-key",
		`[{strategy: {tokenBucket: {requests: 100, window: 1m, burst: 100}}}]`:                                     "100/1m",
		`[{strategy: {slidingWindow: {requests: 100, window: 1m}}, key: [{claim: {name: sub}}, {host: {}}]}]`:      "100/1m sliding per claim sub, host",
		`[{strategy: {leakyBucket: {requests: 5, window: 1s}}, key: [{cookie: {name: id}}, {query: {name: q}}]}]`:  "5/1s queue 10s per cookie id, query q",
		`[{strategy: {leakyBucket: {requests: 5, window: 1s, mode: Queue, maxDelay: 500ms, maxQueue: 2}}}]`:        "5/1s queue 500ms",
		`[{strategy: {leakyBucket: {requests: 5, window: 1s, mode: Meter}}}]`:                                      "5/1s leaky",
		`[{strategy: {slidingWindow: {requests: 100, window: 1m, precision: Approximate}}}]`:                       "100/1m sliding approx",
		`[{strategy: {slidingWindow: {requests: 100, window: 1m, precision: Log}}}]`:                               "100/1m sliding log",
		`[{strategy: {fixedWindow: {requests: 5, window: 1s}}, enforcement: Shadow, key: [{method: {}}]}]`:         "5/1s fixed per method (shadow)",
		`[{strategy: {fixedWindow: {requests: 5, calendar: {unit: Day}}}, key: [{pathParam: {name: id}}]}]`:        "5 a day per pathParam id",
		`[{strategy: {adaptive: {minRequests: 5, maxRequests: 9, window: 1s}}, key: [{expression: a}]}]`:           "5 to 9/1s per expression",
		`[{strategy: {concurrency: {maxInFlight: 5}}, key: [{host: {}}]}, {strategy: {}}]`:                         "5 in flight per host; nothing",
	} {
		if got := summary(in); got != want {
			t.Errorf("%s: got %q, want %q", in, got, want)
		}
	}
	t.Run("it is bounded", func(t *testing.T) {
		var limits []string
		for i := range 32 {
			limits = append(limits, fmt.Sprintf("{strategy: {tokenBucket: {requests: %d, window: 1m}}}", i+1000))
		}
		want := "1000/1m; 1001/1m; 1002/1m; 1003/1m; 1004/1m; 1005/1m; 1006/1m; and 25 more"
		if got := summary("[" + strings.Join(limits, ", ") + "]"); got != want || len(got) > 80 {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func FuzzCompile(f *testing.F) {
	for _, in := range inputs(f) {
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var p v1alpha1.RateLimitPolicy
		if yaml.Unmarshal(in, &p) != nil {
			return
		}
		if s := Summary(&p); len(s) > columnSize {
			t.Errorf("a summary of %d bytes: %s", len(s), s)
		}
		if s := Target(&p); len(s) > columnSize {
			t.Errorf("a target of %d bytes: %s", len(s), s)
		}
		workloads := Workloads{}
		for _, ref := range Refs(&p) {
			workloads[ref] = Workload{Pods: &metav1.LabelSelector{}}
		}
		c, err := Compile(&p, workloads)
		if err != nil && len(err.Error()) >= 1024 {
			t.Errorf("a message of %d bytes: %s", len(err.Error()), err)
		}
		b, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		var back match.Policy
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c, back); diff != "" {
			t.Errorf("after a round trip as JSON (-before +after):\n%s", diff)
		}
		match.New([]match.Policy{c}, match.Options{Everything: true}).Match(match.Request{Path: "/a;b/../%2e%2F"})
	})
}

// SPDX-License-Identifier: Apache-2.0

package match

import (
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/limiter"
)

var hundred = limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 100, Window: time.Minute, Burst: 100}

// checkout is a policy for one Service with these limits.
func checkout(limits ...Limit) Policy {
	return Policy{
		Namespace: "shop",
		Name:      "checkout",
		Targets: []Target{{
			ID:   "Service/checkout",
			Pods: Selector{MatchLabels: map[string]string{"app": "checkout"}},
		}},
		Limits: limits,
	}
}

// matcher makes a matcher of one policy, wherever it is meant for.
func matcher(p Policy) *Matcher {
	return New([]Policy{p}, Options{Instance: "test", Everything: true})
}

// names gives the policy and limit of each hit.
func names(hits []limiter.Hit) []string {
	var got []string
	for _, h := range hits {
		got = append(got, h.ID.Policy+"/"+h.ID.Limit)
	}
	return got
}

func TestMatch(t *testing.T) {
	t.Run("a hit carries all that deciding and reporting need", func(t *testing.T) {
		p := checkout(Limit{
			Name:         "per-key",
			Key:          []KeySource{{Header: "X-Api-Key"}},
			Limit:        hundred,
			Shadow:       true,
			OnFailure:    limiter.FailClosed,
			Distribution: limiter.PerReplica,
		})
		got := matcher(p).Match(Request{Header: http.Header{"X-Api-Key": {"alice"}}})
		want := []limiter.Hit{{
			Key:          "weir:test:{shop/128}:I8Sqvqh3ERDSL_BVEyAzrQ",
			Overflow:     "weir:test:{shop/109}:_Ko7ZwE9XRtIPpRME-02bg",
			Limit:        hundred,
			Cost:         1,
			Shadow:       true,
			OnFailure:    limiter.FailClosed,
			Distribution: limiter.PerReplica,
			Target:       "Service/checkout",
			ID:           limiter.LimitID{Namespace: "shop", Policy: "checkout", Limit: "per-key"},
		}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("hits (-want +got):\n%s", diff)
		}
	})

	t.Run("every limit of every policy that selects the pod hits", func(t *testing.T) {
		elsewhere := checkout(Limit{Name: "a", Limit: hundred})
		elsewhere.Name = "elsewhere"
		elsewhere.Targets[0].Pods = Selector{MatchLabels: map[string]string{"app": "cart"}}
		all := checkout(Limit{Name: "a", Limit: hundred})
		all.Name = "all"
		all.Targets[0] = Target{ID: "Selector"}
		both := checkout(Limit{Name: "b", Limit: hundred}, Limit{Name: "a", Limit: hundred})

		m := New([]Policy{both, elsewhere, all}, Options{Labels: map[string]string{"app": "checkout"}})
		want := []string{"all/a", "checkout/b", "checkout/a"}
		if diff := cmp.Diff(want, names(m.Match(Request{}))); diff != "" {
			t.Errorf("hits (-want +got):\n%s", diff)
		}
	})

	t.Run("each target has a counter of its own", func(t *testing.T) {
		p := checkout(Limit{Name: "a", Limit: hundred})
		p.Targets = append(p.Targets, Target{ID: "Deployment/checkout"})
		hits := matcher(p).Match(Request{})
		if len(hits) != 2 || hits[0].Key == hits[1].Key {
			t.Errorf("got %v, want two hits with different keys", hits)
		}
	})

	t.Run("what is there twice counts once", func(t *testing.T) {
		p := checkout(Limit{Name: "a", Limit: hundred}, Limit{Name: "a", Limit: hundred})
		p.Targets = append(p.Targets, p.Targets[0])
		m := New([]Policy{p, p}, Options{Everything: true})
		if got := m.Match(Request{}); len(got) != 1 {
			t.Errorf("got %d hits, want 1: %v", len(got), got)
		}
		if got := m.Policies(); len(got) != 1 {
			t.Errorf("got %d policies, want 1: %v", len(got), got)
		}
	})

	t.Run("no policies hit nothing", func(t *testing.T) {
		if got := New(nil, Options{}).Match(Request{}); got != nil {
			t.Errorf("got %v", got)
		}
	})
}

func TestSections(t *testing.T) {
	p := checkout(Limit{Name: "a", Limit: hundred})
	p.Targets = []Target{
		{ID: "Service/checkout/http", Section: "http"},
		{ID: "Service/checkout/grpc", Section: "grpc"},
		{ID: "Service/checkout/web", Section: "8080"},
		{ID: "Service/checkout"},
	}
	m := matcher(p)
	for name, tt := range map[string]struct {
		listener, port string
		want           int
	}{
		"a named listener serves its section and the targets without one": {"http", "80", 2},
		"a listener serves what calls it by its port too":                 {"http", "8080", 3},
		"a listener of another name serves the targets without one":       {"admin", "80", 1},
		"an unnamed listener serves every section":                        {"", "80", 4},
	} {
		t.Run(name, func(t *testing.T) {
			if got := m.Match(Request{Listener: tt.listener, Port: tt.port}); len(got) != tt.want {
				t.Errorf("got %d hits, want %d", len(got), tt.want)
			}
		})
	}

	t.Run("a limit whose sections are all elsewhere hits nothing", func(t *testing.T) {
		p.Targets = p.Targets[:3]
		if got := matcher(p).Match(Request{Listener: "admin"}); got != nil {
			t.Errorf("got %v", got)
		}
	})
}

func TestPolicies(t *testing.T) {
	t.Run("only the targets here are told, in order of the policies' names", func(t *testing.T) {
		here := Target{ID: "Deployment/a", Pods: Selector{MatchLabels: map[string]string{"app": "a"}}}
		there := Target{ID: "Deployment/b", Pods: Selector{MatchLabels: map[string]string{"app": "b"}}}
		given := []Policy{
			{Namespace: "shop", Name: "z", Targets: []Target{there, here}},
			{Namespace: "shop", Name: "y", Targets: []Target{there}},
			{Namespace: "shop", Name: "x", Targets: []Target{here}},
		}
		before := slices.Clone(given)
		got := New(given, Options{Labels: map[string]string{"app": "a"}}).Policies()
		want := []Policy{
			{Namespace: "shop", Name: "x", Targets: []Target{here}},
			{Namespace: "shop", Name: "z", Targets: []Target{here}},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("policies (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(before, given); diff != "" {
			t.Errorf("the argument was changed (-before +after):\n%s", diff)
		}
	})
}

func TestResponse(t *testing.T) {
	p := checkout(Limit{Name: "a", Limit: hundred})
	p.Response = Response{StatusCode: 503, Headers: []string{"Draft11"}, Body: "None"}
	m := matcher(p)

	t.Run("it is that of the limit's policy", func(t *testing.T) {
		got := m.Response(m.Match(Request{})[0].ID)
		if diff := cmp.Diff(p.Response, got); diff != "" {
			t.Errorf("response (-want +got):\n%s", diff)
		}
	})
	t.Run("it is zero for a policy of another namespace", func(t *testing.T) {
		got := m.Response(limiter.LimitID{Namespace: "other", Policy: "checkout", Limit: "a"})
		if diff := cmp.Diff(Response{}, got); diff != "" {
			t.Errorf("response (-want +got):\n%s", diff)
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	keyed := Limit{Name: "per-key", Key: []KeySource{{Header: "X-Api-Key"}}, Limit: hundred}
	paths := Limit{
		Name:  "login",
		When:  []When{{Methods: []string{"POST"}, Paths: []PathMatch{{Type: "Exact", Value: "/login"}}}},
		Key:   []KeySource{{ClientIP: &ClientIPKey{IPv6PrefixLength: 64}}},
		Limit: hundred,
	}
	request := Request{
		Method: "POST",
		Path:   "/login",
		Host:   "shop.example.com:8080",
		Header: http.Header{"X-Api-Key": {"d290f1ee-6c54-4b01-90e6-d701748f0851"}},
		Client: netip.MustParseAddr("192.0.2.7"),
	}
	odd := request
	odd.Path = "/shop//..%2F%2e/login;jsessionid=1"

	for _, bb := range []struct {
		name    string
		policy  Policy
		request Request
	}{
		{"one shared counter", checkout(Limit{Name: "all", Limit: hundred}), request},
		{"one header", checkout(keyed), request},
		{"two limits with conditions", checkout(keyed, paths), request},
		{"a path with many readings", checkout(paths), odd},
	} {
		b.Run(bb.name, func(b *testing.B) {
			m := matcher(bb.policy)
			b.ReportAllocs()
			for b.Loop() {
				m.Match(bb.request)
			}
		})
	}
}

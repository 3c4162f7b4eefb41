// SPDX-License-Identifier: Apache-2.0

package match

import (
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/weir-dev/weir/internal/limiter"
)

// keyOf gives the key of the only hit of a request under a limit with these sources.
func keyOf(t interface{ Fatalf(string, ...any) }, r Request, sources ...KeySource) string {
	hits := matcher(checkout(Limit{Name: "a", Key: sources, Limit: hundred})).Match(r)
	if len(hits) != 1 {
		t.Fatalf("got %d hits, want 1: %v", len(hits), hits)
	}
	return hits[0].Key
}

// place is the part of a key that says where it is stored.
func place(key string) string { return key[:strings.LastIndexByte(key, ':')] }

func TestKeys(t *testing.T) {
	ip := KeySource{ClientIP: &ClientIPKey{IPv6PrefixLength: 64}}
	from := func(addr string) Request { return Request{Client: netip.MustParseAddr(addr)} }
	with := func(lines ...string) Request { return Request{Header: http.Header{"X-A": lines}} }
	// alias has a line of x_a, and then others of x-a.
	alias := func(first string, lines ...string) Request {
		h := http.Header{"X_a": {first}}
		if len(lines) > 0 {
			h["X-A"] = lines
		}
		return Request{Header: h}
	}
	header := KeySource{Header: "x-a"}

	for name, tt := range map[string]struct {
		source KeySource
		a, b   Request
		same   bool
	}{
		"another header value is another counter":         {header, with("1"), with("2"), false},
		"an empty value is a value":                       {header, with(""), Request{}, false},
		"several lines name no counter of their own":      {header, with("1", "2"), with("1", "3"), true},
		"an added empty line is a line":                   {header, with("1", ""), with("2", ""), true},
		"several lines are not their first one":           {header, with("1", "2"), with("1"), false},
		"several lines are not no line":                   {header, with("1", "2"), Request{}, false},
		"commas in one line are part of the value":        {header, with("1,2"), with("1,3"), false},
		"an alias makes a value ambiguous":                {header, alias("1", "2"), with("1", "2"), true},
		"an alias alone is ambiguous, too":                {header, alias("1"), with("1", "2"), true},
		"a header like a key with an underscore is one":   {KeySource{Header: "x_a"}, alias("1", "2"), alias("1", "3"), true},
		"the case of a header's name says nothing":        {KeySource{Header: "X-a"}, with("1"), with("1"), true},
		"another address is another counter":              {ip, from("192.0.2.1"), from("192.0.2.2"), false},
		"a mapped IPv4 address is an IPv4 address":        {ip, from("192.0.2.1"), from("::ffff:192.0.2.1"), true},
		"IPv6 counts by its prefix":                       {ip, from("2001:db8::1"), from("2001:db8::ff:1"), true},
		"another prefix is another counter":               {ip, from("2001:db8::1"), from("2001:db8:0:1::1"), false},
		"a zone says nothing":                             {ip, from("fe80::1%eth0"), from("fe80::1%eth1"), true},
		"a zone in a mapped address says nothing":         {ip, from("::ffff:192.0.2.1%eth0"), from("192.0.2.1"), true},
		"methods count by their name":                     {KeySource{Method: true}, Request{Method: "GET"}, Request{Method: "PUT"}, false},
		"methods count in any case":                       {KeySource{Method: true}, Request{Method: "GET"}, Request{Method: "get"}, true},
		"hosts count by their name":                       {KeySource{Host: true}, Request{Host: "a.example"}, Request{Host: "b.example"}, false},
		"hosts count in any case, without port and dot":   {KeySource{Host: true}, Request{Host: "a.example"}, Request{Host: "A.example.:80"}, true},
		"a port is no part of an IPv6 host":               {KeySource{Host: true}, Request{Host: "[::1]"}, Request{Host: "[::1]:80"}, true},
		"a missing value shares one counter":              {header, Request{}, Request{Header: http.Header{"X-B": {"1"}}}, true},
		"a missing address shares one counter":            {ip, Request{}, Request{Method: "GET"}, true},
		"a missing address is no address that could come": {ip, Request{}, from("0.0.0.0"), false},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := keyOf(t, tt.a, tt.source), keyOf(t, tt.b, tt.source)
			if (a == b) != tt.same {
				t.Errorf("got %s and %s, want the same: %v", a, b, tt.same)
			}
		})
	}

	t.Run("every bit of a long IPv6 prefix counts", func(t *testing.T) {
		whole := KeySource{ClientIP: &ClientIPKey{IPv6PrefixLength: 128}}
		if keyOf(t, from("2001:db8::1"), whole) == keyOf(t, from("2001:db8::2"), whole) {
			t.Error("two addresses share a counter")
		}
	})
	t.Run("no value shows in a key", func(t *testing.T) {
		if key := keyOf(t, with("alice@example.com"), header); strings.Contains(key, "alice") {
			t.Error(key)
		}
	})
}

func TestMissing(t *testing.T) {
	missing := func(how ...string) []limiter.Hit {
		var key []KeySource
		for i, h := range how {
			key = append(key, KeySource{Header: string(rune('a' + i)), OnMissing: h})
		}
		hits := matcher(checkout(Limit{Name: "a", Key: key, Limit: hundred})).Match(Request{})
		for i := range hits {
			if hits[i].Key != "" {
				hits[i].Key, hits[i].Overflow = "a key", "all keys"
			}
		}
		return hits
	}
	shared := limiter.Hit{
		Key: "a key", Overflow: "all keys", Limit: hundred, Cost: 1, Target: "Service/checkout",
		ID: limiter.LimitID{Namespace: "shop", Policy: "checkout", Limit: "a"},
	}
	denied := shared
	denied.Key, denied.Overflow, denied.Deny = "", "", true

	for name, tt := range map[string]struct {
		how  []string
		want []limiter.Hit
	}{
		"Share counts":                                {[]string{"Share"}, []limiter.Hit{shared}},
		"Skip leaves the limit out":                   {[]string{"Skip"}, nil},
		"Deny refuses without a key":                  {[]string{"Deny"}, []limiter.Hit{denied}},
		"a later Deny refuses after a Share":          {[]string{"Share", "Deny"}, []limiter.Hit{denied}},
		"the first that isn't shared decides":         {[]string{"Skip", "Deny"}, nil},
		"what an older snapshot doesn't say is Share": {[]string{""}, []limiter.Hit{shared}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, missing(tt.how...)); diff != "" {
				t.Errorf("hits (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAmbiguous(t *testing.T) {
	hits := func(onMissing string, h http.Header) []limiter.Hit {
		key := []KeySource{{Header: "x-api-key", OnMissing: onMissing}}
		return matcher(checkout(Limit{Name: "a", Key: key, Limit: hundred})).Match(Request{Header: h})
	}
	two := http.Header{"X-Api-Key": {"real", "r0"}}
	shared := hits("Share", two)

	t.Run("Skip counts it as Share does", func(t *testing.T) {
		if diff := cmp.Diff(shared, hits("Skip", two)); diff != "" {
			t.Errorf("hits (-Share +Skip):\n%s", diff)
		}
	})
	t.Run("Deny refuses without a key", func(t *testing.T) {
		denied := slices.Clone(shared)
		denied[0].Key, denied[0].Overflow, denied[0].Deny = "", "", true
		if diff := cmp.Diff(denied, hits("Deny", two)); diff != "" {
			t.Errorf("hits (-want +got):\n%s", diff)
		}
	})
	for _, name := range []string{"X_api_key", "X_api-Key", "X-Api_key", "X.api.key"} {
		t.Run("an alias like "+name+" doesn't escape Skip", func(t *testing.T) {
			if diff := cmp.Diff(shared, hits("Skip", http.Header{name: {"real"}})); diff != "" {
				t.Errorf("hits (-want +got):\n%s", diff)
			}
		})
	}
	for _, name := range []string{"X_api_keys", "Y_api_key", "Xapikey", "X_api"} {
		t.Run(name+" is no alias", func(t *testing.T) {
			if got := hits("Skip", http.Header{name: {"real"}}); got != nil {
				t.Errorf("got %v", got)
			}
		})
	}
}

// value has the bytes in it that joined keys fall over.
var value = rapid.StringOfN(rapid.SampledFrom([]rune("ab_:{}*,|/\n\x00\x01é")), 0, 6, -1)

func TestDistinctTuples(t *testing.T) {
	key := []KeySource{{Header: "a"}, {Header: "b"}, {Host: true}}
	tuple := rapid.Custom(func(t *rapid.T) [3]string {
		return [3]string{value.Draw(t, "a"), value.Draw(t, "b"), strings.ReplaceAll(value.Draw(t, "host"), ":", "")}
	})
	request := func(v [3]string) Request {
		h := http.Header{}
		for i, name := range []string{"A", "B"} {
			if v[i] != "" {
				h[name] = []string{v[i]}
			}
		}
		return Request{Header: h, Host: v[2]}
	}
	t.Run("two tuples have one key only if they are the same", rapid.MakeCheck(func(t *rapid.T) {
		v, w := tuple.Draw(t, "v"), tuple.Draw(t, "w")
		a, b := keyOf(t, request(v), key...), keyOf(t, request(w), key...)
		if (a == b) != (v == w) {
			t.Errorf("%q and %q have the keys %s and %s", v, w, a, b)
		}
	}))
	t.Run("where one value ends doesn't let another begin", rapid.MakeCheck(func(t *rapid.T) {
		all := value.Draw(t, "all")
		i := rapid.IntRange(0, len(all)).Draw(t, "i")
		j := rapid.IntRange(0, len(all)).Draw(t, "j")
		a := keyOf(t, request([3]string{all[:i], all[i:]}), key...)
		b := keyOf(t, request([3]string{all[:j], all[j:]}), key...)
		if (a == b) != (i == j) {
			t.Errorf("%q cut at %d and at %d has the keys %s and %s", all, i, j, a, b)
		}
	}))
}

func TestCounterIdentity(t *testing.T) {
	r := Request{Header: http.Header{"A": {"1"}, "B": {"1"}}, Method: "1"}
	limit := Limit{Name: "a", Key: []KeySource{{Header: "a"}}, Limit: hundred}
	key := func(o Options, p Policy) string {
		o.Everything = true
		return New([]Policy{p}, o).Match(r)[0].Key
	}
	instance := Options{Instance: "test"}
	same := key(instance, checkout(limit))

	changes := map[string]func(*Options, *Policy){
		"instance":        func(o *Options, _ *Policy) { o.Instance = "other" },
		"namespace":       func(_ *Options, p *Policy) { p.Namespace = "other" },
		"policy":          func(_ *Options, p *Policy) { p.Name = "other" },
		"limit":           func(_ *Options, p *Policy) { p.Limits[0].Name = "other" },
		"target":          func(_ *Options, p *Policy) { p.Targets[0].ID = "Service/other" },
		"algorithm":       func(_ *Options, p *Policy) { p.Limits[0].Limit.Algorithm = limiter.FixedWindow },
		"kind of source":  func(_ *Options, p *Policy) { p.Limits[0].Key[0] = KeySource{Method: true} },
		"name of source":  func(_ *Options, p *Policy) { p.Limits[0].Key[0].Header = "b" },
		"a second source": func(_ *Options, p *Policy) { p.Limits[0].Key = slices.Repeat(p.Limits[0].Key, 2) },
		"no source":       func(_ *Options, p *Policy) { p.Limits[0].Key = nil },
	}
	seen := map[string]string{same: "nothing"}
	for _, what := range slices.Sorted(maps.Keys(changes)) {
		t.Run("it follows from the "+what, func(t *testing.T) {
			l := limit
			l.Key = slices.Clone(limit.Key)
			o, p := instance, checkout(l)
			changes[what](&o, &p)
			k := key(o, p)
			if other, ok := seen[k]; ok {
				t.Errorf("a change of %s gives the key of a change of %s: %s", what, other, k)
			}
			seen[k] = what
		})
	}
	t.Run("it doesn't follow from what may be edited", func(t *testing.T) {
		l := limit
		l.Limit = limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 7, Window: time.Hour, Burst: 9}
		l.When = []When{{Headers: []HeaderMatch{{Name: "a", Type: "Present"}}}}
		l.Shadow, l.OnFailure, l.Key = true, limiter.FailClosed, []KeySource{{Header: "A", OnMissing: "Skip"}}
		p := checkout(l)
		p.Generation = 7
		p.Targets[0].Pods = Selector{}
		p.Response.StatusCode = 503
		if got := key(instance, p); got != same {
			t.Errorf("got %s, want %s", got, same)
		}
	})
}

func TestOverflow(t *testing.T) {
	overflow := func(p Policy, value string) string {
		return matcher(p).Match(Request{Header: http.Header{"A": {value}}})[0].Overflow
	}
	limit := Limit{Name: "a", Key: []KeySource{{Header: "a"}}, Limit: hundred}
	same := overflow(checkout(limit), "1")

	t.Run("all keys of a limit and target share one counter", func(t *testing.T) {
		for _, value := range []string{"2", "", "Service/checkout", same} {
			if got := overflow(checkout(limit), value); got != same {
				t.Errorf("with the value %q it is %s, not %s", value, got, same)
			}
		}
	})
	t.Run("no key has that counter", rapid.MakeCheck(func(t *rapid.T) {
		r := Request{Header: http.Header{"A": {value.Draw(t, "value")}}}
		if h := matcher(checkout(limit)).Match(r)[0]; h.Key == h.Overflow {
			t.Errorf("both are %s", h.Key)
		}
	}))
	t.Run("another limit or target has another", func(t *testing.T) {
		other := limit
		other.Name = "b"
		elsewhere := checkout(limit)
		elsewhere.Targets[0].ID = "Service/elsewhere"
		if a, b := overflow(checkout(other), "1"), overflow(elsewhere, "1"); a == same || b == same || a == b {
			t.Errorf("they are %s, %s and %s", same, a, b)
		}
	})
	t.Run("a limit without a key has none", func(t *testing.T) {
		if got := overflow(checkout(Limit{Name: "a", Limit: hundred}), "1"); got != "" {
			t.Errorf("it is %s", got)
		}
	})
}

func TestPartitions(t *testing.T) {
	r := Request{Header: http.Header{"A": {"1"}}}
	places := func(key ...KeySource) map[string]bool {
		here := map[string]bool{}
		for _, policy := range []string{"x", "y"} {
			for _, limit := range []string{"a", "b"} {
				p := checkout(Limit{Name: limit, Key: key, Limit: hundred})
				p.Name = policy
				here[place(matcher(p).Match(r)[0].Key)] = true
			}
		}
		return here
	}
	t.Run("the limits of all policies on one key meet", func(t *testing.T) {
		if got := places(KeySource{Header: "a"}); len(got) != 1 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("the limits of all policies on one target meet", func(t *testing.T) {
		if got := places(); len(got) != 1 {
			t.Errorf("got %v", got)
		}
	})
	t.Run("counters spread over all partitions", func(t *testing.T) {
		got := map[string]bool{}
		m := matcher(checkout(Limit{Name: "a", Key: []KeySource{{Header: "a"}}, Limit: hundred}))
		for i := range 1 << 12 {
			r := Request{Header: http.Header{"A": {string(rune(0x4e00 + i))}}}
			got[place(m.Match(r)[0].Key)] = true
		}
		if len(got) != 256 {
			t.Errorf("got %d partitions, want 256", len(got))
		}
	})
}

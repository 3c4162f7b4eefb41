// SPDX-License-Identifier: Apache-2.0

package match

import (
	"net/http"
	"testing"
)

// hit says whether a request matches these conditions.
func hit(r Request, when ...When) bool {
	return len(matcher(checkout(Limit{Name: "a", When: when, Limit: hundred})).Match(r)) > 0
}

func TestWhen(t *testing.T) {
	post := When{Methods: []string{"POST"}}
	v1 := When{Headers: []HeaderMatch{{Name: "x-version", Type: "Exact", Value: "1"}}}
	request := Request{Method: "POST", Header: http.Header{"X-Version": {"2"}}}

	t.Run("no conditions match every request", func(t *testing.T) {
		if !hit(request) {
			t.Error("no hit")
		}
	})
	t.Run("one of several conditions is enough", func(t *testing.T) {
		if !hit(request, v1, post) {
			t.Error("no hit")
		}
	})
	t.Run("all fields of one condition have to match", func(t *testing.T) {
		if hit(request, When{Methods: post.Methods, Headers: v1.Headers}) {
			t.Error("a hit")
		}
	})
}

func TestMethods(t *testing.T) {
	w := When{Methods: []string{"GET", "POST"}}
	for method, want := range map[string]bool{"GET": true, "POST": true, "post": true, "PUT": false, "": false} {
		if got := hit(Request{Method: method}, w); got != want {
			t.Errorf("method %q: got %v, want %v", method, got, want)
		}
	}
}

func TestHosts(t *testing.T) {
	w := When{Hosts: []string{"shop.example.com", "*.example.org"}}
	for host, want := range map[string]bool{
		"shop.example.com":       true,
		"shop.example.com:8080":  true,
		"Shop.Example.COM.":      true,
		"shop.example.com.:8080": true,
		"www.shop.example.com":   false,
		"example.com":            false,
		"a.example.org":          true,
		"a.b.example.org":        true,
		"example.org":            false,
		".example.org":           false,
		"badexample.org":         false,
		"[::1]:8080":             false,
		"":                       false,
	} {
		if got := hit(Request{Host: host}, w); got != want {
			t.Errorf("host %q: got %v, want %v", host, got, want)
		}
	}
}

func TestHeaders(t *testing.T) {
	for name, tt := range map[string]struct {
		match HeaderMatch
		lines []string
		want  bool
	}{
		"Exact matches the value":                   {HeaderMatch{Type: "Exact", Value: "a"}, []string{"a"}, true},
		"Exact looks at case":                       {HeaderMatch{Type: "Exact", Value: "a"}, []string{"A"}, false},
		"Exact matches any of several lines":        {HeaderMatch{Type: "Exact", Value: "a"}, []string{"b", "a"}, true},
		"Exact doesn't join lines":                  {HeaderMatch{Type: "Exact", Value: "a,b"}, []string{"a", "b"}, false},
		"Exact wants the header, even for no value": {HeaderMatch{Type: "Exact"}, nil, false},
		"Exact matches an empty value":              {HeaderMatch{Type: "Exact"}, []string{""}, true},
		"Prefix matches the beginning":              {HeaderMatch{Type: "Prefix", Value: "Bot"}, []string{"Bot/1"}, true},
		"Prefix matches any of several lines":       {HeaderMatch{Type: "Prefix", Value: "Bot"}, []string{"", "Bot/1"}, true},
		"Prefix matches nothing else":               {HeaderMatch{Type: "Prefix", Value: "Bot"}, []string{"A Bot"}, false},
		"Prefix wants the header":                   {HeaderMatch{Type: "Prefix"}, nil, false},
		"Present matches an empty value":            {HeaderMatch{Type: "Present"}, []string{""}, true},
		"Present wants the header":                  {HeaderMatch{Type: "Present"}, nil, false},
		"Absent matches no header":                  {HeaderMatch{Type: "Absent"}, nil, true},
		"Absent matches no empty value":             {HeaderMatch{Type: "Absent"}, []string{""}, false},
		"an unknown type matches nothing":           {HeaderMatch{Type: "Suffix", Value: "a"}, []string{"a"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			tt.match.Name = "x-test"
			r := Request{Header: http.Header{}}
			if tt.lines != nil {
				r.Header["X-Test"] = tt.lines
			}
			if got := hit(r, When{Headers: []HeaderMatch{tt.match}}); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestAliases(t *testing.T) {
	r := Request{Header: http.Header{"X_test": {"a"}}}
	for claim, m := range map[string]HeaderMatch{
		"Exact matches the value of an alias":  {Type: "Exact", Value: "a"},
		"Prefix matches the value of an alias": {Type: "Prefix", Value: "a"},
		"Present matches an alias":             {Type: "Present"},
		"Absent matches in spite of an alias":  {Type: "Absent"},
	} {
		t.Run(claim, func(t *testing.T) {
			m.Name = "x-test"
			if !hit(r, When{Headers: []HeaderMatch{m}}) {
				t.Error("no hit")
			}
		})
	}
}

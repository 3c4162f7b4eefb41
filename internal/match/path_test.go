// SPDX-License-Identifier: Apache-2.0

package match

import (
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPaths(t *testing.T) {
	tests := []struct {
		claim         string
		match         PathMatch
		hits, passing []string
	}{{
		claim:   "Exact matches the whole path and its case",
		match:   PathMatch{Type: "Exact", Value: "/login"},
		hits:    []string{"/login"},
		passing: []string{"/", "/login/a", "/logins", "/Login", "/LOGIN/", "/a/login", ""},
	}, {
		claim: "Exact matches a path that only a slash at the end tells apart",
		match: PathMatch{Type: "Exact", Value: "/echo/login"},
		hits: []string{
			"/echo/login/", "/echo/login//", "/echo/login/.", "/echo/login/%2e", "/echo/login/%2E/", "/echo/login%2f",
			"/echo/login%2F.", "/echo/login%5C", "/echo/login/;a", "/echo/login;a/", "/echo/login/x/..", "/echo/login/./",
		},
		passing: []string{"/echo/login/..", "/echo/login/x"},
	}, {
		claim:   "a slash at the end of an Exact says nothing",
		match:   PathMatch{Type: "Exact", Value: "/login/"},
		hits:    []string{"/login", "/login/"},
		passing: []string{"/", "/login/a"},
	}, {
		claim:   "Exact / matches the root alone",
		match:   PathMatch{Type: "Exact", Value: "/"},
		hits:    []string{"/", "", "//", "/.", "/.."},
		passing: []string{"/a", "/a/"},
	}, {
		claim: "Exact matches whatever some server takes for the path",
		match: PathMatch{Type: "Exact", Value: "/login"},
		hits: []string{
			"//login", "/./login", "/x/../login", "/%6cogin", "/%6Cogin", "/%2e/login", "/x/%2E%2e/login",
			"/x/..%2flogin", "/x%2F..%2Flogin", "%2Flogin", `\login`, "/x/..%5clogin", "/login;a=1", "/x/..;/login",
			"/x/..;a/login;b", "/login/x/..;/../../login", "login", "/x//../../login", "/../login",
		},
	}, {
		claim: "dot segments are resolved both before and after slashes are merged",
		match: PathMatch{Type: "Exact", Value: "/a/b"},
		hits:  []string{"/a//../b", "/x/../a/b"},
	}, {
		claim:   "Prefix matches whole elements",
		match:   PathMatch{Type: "Prefix", Value: "/foo"},
		hits:    []string{"/foo", "/foo/", "/foo/bar", "/foo%2Fbar", "/foo;x/bar"},
		passing: []string{"/foobar", "/fo", "/a/foo", "/Foo"},
	}, {
		claim:   "a slash at the end of a Prefix says nothing",
		match:   PathMatch{Type: "Prefix", Value: "/foo/"},
		hits:    []string{"/foo", "/foo/bar"},
		passing: []string{"/foobar"},
	}, {
		claim: "Prefix counts what a server leaves below it, dots and all",
		match: PathMatch{Type: "Prefix", Value: "/foo"},
		hits:  []string{"/foo/../bar", "/foo/%2e%2e/bar"},
	}, {
		claim: "Prefix / matches every path",
		match: PathMatch{Type: "Prefix", Value: "/"},
		hits:  []string{"/", "/a", "", "*", "//", "/.."},
	}, {
		claim:   "a value is compared in its canonical form",
		match:   PathMatch{Type: "Exact", Value: "/a//./b%20c/%40me"},
		hits:    []string{"/a/b%20c/@me", "/a/b c/%40me"},
		passing: []string{"/a/b+c/@me"},
	}, {
		claim:   "%2F in a value differs from a slash",
		match:   PathMatch{Type: "Exact", Value: "/projects/a%2fb"},
		hits:    []string{"/projects/a%2Fb", "/projects/%61%2fb"},
		passing: []string{"/projects/a/b"},
	}, {
		claim:   "escapes are decoded once",
		match:   PathMatch{Type: "Exact", Value: "/login"},
		passing: []string{"/%256cogin", "/x/..%252Flogin"},
	}, {
		claim:   "a percent sign that escapes nothing is itself",
		match:   PathMatch{Type: "Exact", Value: "/100%"},
		hits:    []string{"/100%", "/100%25"},
		passing: []string{"/100", "/100%2525"},
	}, {
		claim:   "an unknown type matches nothing",
		match:   PathMatch{Type: "Template", Value: "/a"},
		passing: []string{"/a"},
	}}
	for _, tt := range tests {
		t.Run(tt.claim, func(t *testing.T) {
			when := When{Paths: []PathMatch{tt.match}}
			for _, p := range tt.hits {
				if !hit(Request{Path: p}, when) {
					t.Errorf("%q doesn't match; its readings are %q", p, readings(nil, p))
				}
			}
			for _, p := range tt.passing {
				if hit(Request{Path: p}, when) {
					t.Errorf("%q matches; its readings are %q", p, readings(nil, p))
				}
			}
		})
	}
}

func TestReadings(t *testing.T) {
	t.Run("a path has at most 18, the canonical one first", func(t *testing.T) {
		const p = `/a;x/b;/c%2Fd%5ce;y//../../f`
		got := readings(nil, p)
		if len(got) > 18 || got[0] != canonicalPath(p) {
			t.Errorf("got %q", got)
		}
	})
	t.Run("a reading that says the same as another is left out", func(t *testing.T) {
		want := []string{"/a/c/d", "/a/b/../c/d"}
		if diff := cmp.Diff(want, readings(nil, "/a/b/../c//%64")); diff != "" {
			t.Errorf("readings (-want +got):\n%s", diff)
		}
	})
}

func FuzzReadings(f *testing.F) {
	for _, seed := range []string{
		"/", "", "*", "/a/b", "//a", "/./a/../b", "/a//../b", "/%2e%2E/a", "/a%2Fb%5c", `/a\b`, "/a;x/..;/b", "/%", "/%zz", "/%25%",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, p string) {
		all := readings(nil, p)
		for _, r := range all {
			if !strings.HasPrefix(r, "/") || strings.Contains(r, "//") {
				t.Errorf("%q has the reading %q", p, r)
			}
		}
		canonical := canonicalPath(p)
		if boldest := resolvedThenMerged(decodedWithBackslashes(withoutParameters(p))); isPlain(p) && (canonical != p || boldest != p) {
			t.Errorf("%q passes for plain, but reads %q and %q", p, canonical, boldest)
		}
		if again := canonicalPath(canonical); again != canonical {
			t.Errorf("the canonical form of %q is %q, and that of this is %q", p, canonical, again)
		}
		if seen, ok := routed(p); ok && !slices.Contains(all, seen) {
			t.Errorf("%q is routed as %q, which is none of %q", p, seen, all)
		}
	})
}

// routed is the path as net/http's router sees it: decoded once, and clean.
func routed(p string) (string, bool) {
	decoded, err := url.PathUnescape(p)
	if err != nil || strings.Contains(decoded, "%") || !strings.HasPrefix(decoded, "/") {
		return "", false
	}
	clean := path.Clean(decoded)
	folder := slices.ContainsFunc([]string{"/", "/.", "/.."}, func(end string) bool {
		return strings.HasSuffix(decoded, end)
	})
	if folder && clean != "/" {
		clean += "/"
	}
	return clean, true
}

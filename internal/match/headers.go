// SPDX-License-Identifier: Apache-2.0

package match

import (
	"net/http"
	"slices"
	"strings"
)

// Of several lines of a header some applications read the first, some the last, some all; and those behind
// CGI, WSGI and their like can't tell x_api_key from X-Api-Key. A limit has to hold for all of them. So a
// condition holds when one of the readings fulfills it, and only a value that all readings share names a
// counter.

// Ambiguous says whether applications could read different values of a header, because it has several
// lines, or an alias: another header whose name differs only in punctuation.
func Ambiguous(h http.Header, name string) bool {
	v := view{Request: Request{Header: h}, odd: oddNames(h)}
	_, p := v.value(newHeaderName(name))
	return p == ambiguous
}

// headerName names a header that a limit looks at.
type headerName struct {
	canonical string
	// plain is what all its aliases are called when their punctuation is dashes.
	plain string
}

func newHeaderName(name string) headerName {
	return headerName{canonical: http.CanonicalHeaderKey(name), plain: plainName(name)}
}

// presence says whether a request has a value. It is part of the counters' names: never change one.
type presence byte

const (
	missing presence = iota
	given
	ambiguous
)

// value gives the one value that every application reads. An empty line is a value.
func (v *view) value(n headerName) (string, presence) {
	lines := v.lines(n)
	switch {
	case len(lines) == 0:
		return "", missing
	case len(lines) > 1 || len(v.Header[n.canonical]) == 0:
		return "", ambiguous
	}
	return lines[0], given
}

// lines gives the lines of a header, and then those of its aliases.
func (v *view) lines(n headerName) []string {
	lines := slices.Clip(v.Header[n.canonical])
	if n.plain != n.canonical {
		lines = append(lines, v.Header[n.plain]...)
	}
	for _, name := range v.odd[n.plain] {
		if name != n.canonical {
			lines = append(lines, v.Header[name]...)
		}
	}
	return lines
}

// oddNames gives the names that have other punctuation than dashes, by their plain names. Most requests have
// none.
func oddNames(h http.Header) map[string][]string {
	var odd map[string][]string
	for name := range h {
		if !strings.ContainsFunc(name, isOdd) {
			continue
		}
		if odd == nil {
			odd = map[string][]string{}
		}
		plain := plainName(name)
		odd[plain] = append(odd[plain], name)
	}
	return odd
}

// plainName is a name in canonical form, with dashes for all punctuation.
func plainName(name string) string {
	return http.CanonicalHeaderKey(strings.Map(func(r rune) rune {
		if isOdd(r) {
			return '-'
		}
		return r
	}, name))
}

// isOdd says whether a character of a name is neither a letter, nor a digit, nor a dash.
func isOdd(r rune) bool {
	return r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
}

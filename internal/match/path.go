// SPDX-License-Identifier: Apache-2.0

package match

import (
	"slices"
	"strings"
)

// Servers don't agree on what a path says. A limit that reads it in one way could be dodged by a path that
// the application reads in another: /x/..%2Flogin is /login to some, /x/..;/login to others. So a path is
// read in every way that is common among servers, and matches when one reading does. In all of them
// escapes are decoded, and slashes that follow each other are one; %252F stays what it is, for a server
// that decodes twice is open to more than we could close.
//
// Readings only ever add requests to a limit. Whatever exempts requests has to ask that all of them match.

// readings appends the ways to read a path to buf, each in the form of [canonicalPath]; the latter comes
// first.
func readings(buf []string, path string) []string {
	if isPlain(path) {
		return append(buf, path)
	}
	paths := fork([]string{path}, asItIs, withoutParameters)
	paths = fork(paths, decoded, decodedWithSlashes, decodedWithBackslashes)
	return append(buf, fork(paths, mergedThenResolved, resolvedThenMerged, merged)...)
}

// canonicalPath is the reading of RFC 3986, with runs of slashes merged first. Escapes are decoded but for
// %2F, which differs from a slash, and %25, without which the result could be read in two ways.
func canonicalPath(path string) string { return mergedThenResolved(decoded(path)) }

// fork gives what the paths become in each of these ways, without repetition.
func fork(paths []string, ways ...func(string) string) []string {
	var forked []string
	for _, p := range paths {
		for _, way := range ways {
			if q := way(p); !slices.Contains(forked, q) {
				forked = append(forked, q)
			}
		}
	}
	return forked
}

// isPlain says that a path has only one reading, itself.
func isPlain(path string) bool {
	return strings.HasPrefix(path, "/") && !strings.ContainsAny(path, `%;\`) &&
		!strings.Contains(path, "//") && !strings.Contains(path, "/.")
}

func asItIs(path string) string { return path }

// withoutParameters leaves out what follows a semicolon in each element, as servlet containers do.
func withoutParameters(path string) string {
	if !strings.Contains(path, ";") {
		return path
	}
	elements := strings.Split(path, "/")
	for i, e := range elements {
		elements[i], _, _ = strings.Cut(e, ";")
	}
	return strings.Join(elements, "/")
}

// decoded leaves %2F as it is, decodedWithSlashes takes it for a slash, and decodedWithBackslashes takes a
// backslash for one, too.
func decoded(path string) string                { return decode(path, "") }
func decodedWithSlashes(path string) string     { return decode(path, "/") }
func decodedWithBackslashes(path string) string { return decode(path, `/\`) }

// decode decodes the escapes of a path. What is one of the slashes becomes a slash, however it was sent.
func decode(path, slashes string) string {
	b := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		c, escaped := unescape(path[i:])
		if escaped {
			i += len("%2F") - 1
		}
		switch {
		case strings.IndexByte(slashes, c) >= 0:
			b = append(b, '/')
		case c == '/' && escaped:
			b = append(b, "%2F"...)
		case c == '%':
			b = append(b, "%25"...)
		default:
			b = append(b, c)
		}
	}
	return string(b)
}

// unescape gives the first byte of s, or what s escapes there. A percent sign that escapes nothing is itself.
func unescape(s string) (c byte, escaped bool) {
	if s[0] != '%' || len(s) < len("%2F") {
		return s[0], false
	}
	high, ok := unhex(s[1])
	low, okLow := unhex(s[2])
	if !ok || !okLow {
		return s[0], false
	}
	return high<<4 | low, true
}

func unhex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// The dot segments of /a//../b take a away where slashes are merged first, and nothing where they are
// resolved first. Many routers do neither, and serve /a/../b below /a.
func mergedThenResolved(path string) string { return resolved(merged(path)) }
func resolvedThenMerged(path string) string { return merged(resolved(path)) }

// merged makes runs of slashes one, and begins with one.
func merged(path string) string {
	b := make([]byte, 0, len(path)+1)
	b = append(b, '/')
	for i := range len(path) {
		if path[i] != '/' || b[len(b)-1] != '/' {
			b = append(b, path[i])
		}
	}
	return string(b)
}

// resolved takes out the elements . and .. of a path, and what the latter undo.
func resolved(path string) string {
	elements := strings.Split(strings.TrimPrefix(path, "/"), "/")
	var kept []string
	for i, e := range elements {
		if e != "." && e != ".." {
			kept = append(kept, e)
			continue
		}
		if e == ".." && len(kept) > 0 {
			kept = kept[:len(kept)-1]
		}
		if i == len(elements)-1 {
			// What is left is a folder: /a/b/.. is /a/.
			kept = append(kept, "")
		}
	}
	return "/" + strings.Join(kept, "/")
}

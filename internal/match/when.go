// SPDX-License-Identifier: Apache-2.0

package match

import (
	"slices"
	"strings"
)

// view is a request as conditions and keys see it: what they all need is worked out once.
type view struct {
	Request
	host string
	// paths are the readings of the path.
	paths []string
	// odd are the names of headers that may be aliases of others, by their plain names.
	odd map[string][]string
}

// condition is a [When], ready to be evaluated.
type condition struct {
	methods []string
	paths   []PathMatch
	hosts   []string
	headers []headerCondition
}

func newCondition(w When) condition {
	c := condition{methods: w.Methods, hosts: w.Hosts}
	for _, p := range w.Paths {
		p.Value = strings.TrimSuffix(canonicalPath(p.Value), "/")
		c.paths = append(c.paths, p)
	}
	for _, h := range w.Headers {
		c.headers = append(c.headers, headerCondition{HeaderMatch: h, name: newHeaderName(h.Name)})
	}
	return c
}

// The types of a [PathMatch] and a [HeaderMatch]. One that is none of these matches nothing.
const (
	typeExact   = "Exact"
	typePrefix  = "Prefix"
	typePresent = "Present"
	typeAbsent  = "Absent"
)

func (c *condition) holds(v *view) bool {
	return c.hasMethod(v.Method) && c.hasHost(v.host) && c.hasPath(v.paths) && c.hasHeaders(v)
}

// hasMethod ignores case: some applications take get for GET, and a limit on GET must count it there.
func (c *condition) hasMethod(method string) bool {
	for _, m := range c.methods {
		if strings.EqualFold(m, method) {
			return true
		}
	}
	return len(c.methods) == 0
}

func (c *condition) hasHost(host string) bool {
	for _, h := range c.hosts {
		if hostMatches(h, host) {
			return true
		}
	}
	return len(c.hosts) == 0
}

// hostMatches says whether a host is the pattern, or is below it when the pattern is like *.example.com.
func hostMatches(pattern, host string) bool {
	suffix, ok := strings.CutPrefix(pattern, "*")
	if !ok {
		return pattern == host
	}
	return len(host) > len(suffix) && strings.HasSuffix(host, suffix)
}

// bareHost gives a host without its port, in lower case and without the dot of a fully qualified name.
func bareHost(host string) string {
	end := len(host)
	if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
		end = i
	}
	return strings.ToLower(strings.TrimSuffix(host[:end], "."))
}

// hasPath says whether any reading of the path matches any of the condition's.
func (c *condition) hasPath(paths []string) bool {
	for i := range c.paths {
		for _, p := range paths {
			if c.paths[i].matches(p) {
				return true
			}
		}
	}
	return len(c.paths) == 0
}

// matches compares a path with a value in canonical form, without a slash at its end. What follows one in
// the path is nothing: many routers serve /a/ as /a.
func (p *PathMatch) matches(path string) bool {
	switch p.Type {
	case typeExact:
		return strings.TrimSuffix(path, "/") == p.Value
	case typePrefix:
		rest, ok := strings.CutPrefix(path, p.Value)
		return ok && (rest == "" || rest[0] == '/')
	}
	return false
}

func (c *condition) hasHeaders(v *view) bool {
	for i := range c.headers {
		if !c.headers[i].holds(v) {
			return false
		}
	}
	return true
}

// headerCondition is a [HeaderMatch], ready to be evaluated.
type headerCondition struct {
	HeaderMatch
	name headerName
}

// holds says whether any line matches, be it an alias's. Aliases don't make a header less absent: an
// application that knows none would serve such a request as one without the header.
func (h *headerCondition) holds(v *view) bool {
	switch h.Type {
	case typePresent:
		return len(v.lines(h.name)) > 0
	case typeAbsent:
		return len(v.Header[h.name.canonical]) == 0
	case typeExact:
		return slices.Contains(v.lines(h.name), h.Value)
	case typePrefix:
		return slices.ContainsFunc(v.lines(h.name), func(l string) bool { return strings.HasPrefix(l, h.Value) })
	}
	return false
}

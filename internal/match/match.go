// SPDX-License-Identifier: Apache-2.0

// Package match turns a request into hits.
//
// It knows which limits a request matches, the key of its counter under each of them, and what it costs.
package match

import (
	"net/http"
	"net/netip"

	"github.com/weir-dev/weir/internal/limiter"
)

// Request is what limits can see of a request.
type Request struct {
	// Listener is the name of the listener that it came in by. An unnamed listener serves every section.
	Listener string
	Method   string
	// Path as it was sent, still escaped.
	Path string
	// Host as it was sent, with or without a port.
	Host   string
	Header http.Header
	// Client is the client's address, trusted proxies left out.
	Client netip.Addr
}

// Options are what a [Matcher] has to know of where it runs.
type Options struct {
	// Instance is the first part of every counter's key: installations that share a Redis differ in it.
	Instance string
	// Labels of the pod that enforces. Targets that don't select them are left out.
	Labels map[string]string
	// Everything makes every target select this enforcer, whatever its labels: for standalone use.
	Everything bool
}

// Matcher turns requests into hits. It is immutable, and so safe for concurrent use.
type Matcher struct{}

// New makes a matcher of the policies whose targets select the enforcer.
func New(policies []Policy, o Options) *Matcher { panic("todo") }

// Match gives the hits of a request: one for each target of each limit that it matches. The keys of a
// request's hits are distinct.
func (m *Matcher) Match(r Request) []limiter.Hit { panic("todo") }

// Policies gives the policies that select the enforcer, in order of their names.
func (m *Matcher) Policies() []Policy { panic("todo") }

// Response gives what a client is told that a limit of this policy refuses.
func (m *Matcher) Response(id limiter.LimitID) Response { panic("todo") }

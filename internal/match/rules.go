// SPDX-License-Identifier: Apache-2.0

package match

import (
	"github.com/weir-dev/weir/internal/limiter"
)

// Policy is what enforcers know of a RateLimitPolicy: plain data, as it travels in a snapshot.
// New fields must have a zero value that means what their absence meant.
type Policy struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	// Generation of the object that these limits were compiled from.
	Generation int64 `json:"generation"`
	// Targets each have counters of their own. A pod enforces those that select it.
	Targets []Target `json:"targets"`
	Limits  []Limit  `json:"limits"`
	// Response is what a client that one of the limits refuses is told.
	Response Response `json:"response"`
}

// Target is a set of pods, and the port of theirs that counts.
type Target struct {
	// ID is part of the counters' identity: Service/checkout/http, or Selector.
	ID string `json:"id"`
	// Pods are the labels that a pod must have; see [Selector].
	Pods Selector `json:"pods"`
	// Section is the name of the listener that counts, or the number of the port behind it. Empty is all of them.
	Section string `json:"section,omitempty"`
}

// Selector selects by labels, as a Kubernetes label selector does. The zero value selects everything.
type Selector struct {
	MatchLabels map[string]string `json:"matchLabels,omitempty"`
	// MatchExpressions must all hold.
	MatchExpressions []Requirement `json:"matchExpressions,omitempty"`
}

// Requirement is one condition on one label.
type Requirement struct {
	Key string `json:"key"`
	// Operator is In, NotIn, Exists or DoesNotExist.
	Operator string   `json:"operator"`
	Values   []string `json:"values,omitempty"`
}

// Limit is one limit: which requests it counts, by what key, and how many it admits.
type Limit struct {
	Name string `json:"name"`
	// When is an OR of matches; none is every request.
	When []When `json:"when,omitempty"`
	// Key is the tuple that names a counter; none is one counter for each target.
	Key          []KeySource          `json:"key,omitempty"`
	Limit        limiter.Limit        `json:"limit"`
	Shadow       bool                 `json:"shadow,omitempty"`
	OnFailure    limiter.FailureMode  `json:"onFailure,omitempty"`
	Distribution limiter.Distribution `json:"distribution,omitempty"`
}

// Divided says whether the replicas divide the limit among them while the store is away.
func (l Limit) Divided() bool {
	return l.OnFailure == limiter.FailLocal && l.Distribution != limiter.PerReplica
}

// When describes requests. All its fields must match; an absent one matches.
type When struct {
	Methods []string      `json:"methods,omitempty"`
	Paths   []PathMatch   `json:"paths,omitempty"`
	Hosts   []string      `json:"hosts,omitempty"`
	Headers []HeaderMatch `json:"headers,omitempty"`
}

// PathMatch matches the path of a request.
type PathMatch struct {
	// Type is Exact or Prefix.
	Type  string `json:"type"`
	Value string `json:"value"`
}

// HeaderMatch matches one header of a request.
type HeaderMatch struct {
	Name string `json:"name"`
	// Type is Exact, Prefix, Present or Absent.
	Type  string `json:"type"`
	Value string `json:"value,omitempty"`
}

// KeySource gives one value of the tuple that names a counter. Exactly one of its sources is set.
type KeySource struct {
	Header   string       `json:"header,omitempty"`
	ClientIP *ClientIPKey `json:"clientIP,omitempty"`
	Method   bool         `json:"method,omitempty"`
	Host     bool         `json:"host,omitempty"`
	// OnMissing is Skip, Share or Deny.
	OnMissing string `json:"onMissing"`
}

// ClientIPKey is the client's address.
type ClientIPKey struct {
	// IPv6PrefixLength is how many bits of an IPv6 address count.
	IPv6PrefixLength int `json:"ipv6PrefixLength"`
}

// Response is what a refused client is told.
type Response struct {
	StatusCode int `json:"statusCode"`
	// Headers are formats: Draft11, Legacy.
	Headers []string `json:"headers,omitempty"`
	// Body is Problem or None.
	Body string `json:"body"`
}

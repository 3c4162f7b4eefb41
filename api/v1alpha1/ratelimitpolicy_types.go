// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// RateLimitPolicy limits the rate of the requests that reach its targets.
//
// All policies that select a pod stack: every limit that matches a request must admit it, and a request
// that one of them refuses is charged to none.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:shortName=weirpolicy,categories=weir
// +kubebuilder:subresource:status
// +kubebuilder:selectablefield:JSONPath=.spec.enforcement
// +kubebuilder:printcolumn:name="Target",type=string,JSONPath=`.status.target`,description="What the limits apply to"
// +kubebuilder:printcolumn:name="Limits",type=string,JSONPath=`.status.summary`,description="The limits in short"
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=`.spec.enforcement`,description="Enforce, Shadow or Disabled"
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`,description="Whether the limits are enforced as written"
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`,description="Why, or why not"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type RateLimitPolicy struct {
	metav1.TypeMeta `json:",inline"`
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// spec is what to limit, and how.
	// +required
	Spec RateLimitPolicySpec `json:"spec"`

	// status is what has become of the spec.
	// +kubebuilder:default:={"observedGeneration":-1}
	// +optional
	Status RateLimitPolicyStatus `json:"status,omitempty"`
}

// RateLimitPolicyList is a list of RateLimitPolicy.
//
// +kubebuilder:object:root=true
type RateLimitPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []RateLimitPolicy `json:"items"`
}

// Enforcement says what becomes of a request that is over a limit.
//
// +kubebuilder:validation:Enum=Enforce;Shadow;Disabled
type Enforcement string

const (
	// EnforcementEnforce refuses it.
	EnforcementEnforce Enforcement = "Enforce"
	// EnforcementShadow lets it through and counts what would have been refused.
	EnforcementShadow Enforcement = "Shadow"
	// EnforcementDisabled neither counts nor refuses.
	EnforcementDisabled Enforcement = "Disabled"
)

// RateLimitPolicySpec is what to limit, and how.
//
// +kubebuilder:validation:XValidation:rule="has(self.targetRefs) != has(self.selector)",message="exactly one of targetRefs and selector must be set",fieldPath=".targetRefs"
type RateLimitPolicySpec struct {
	// targetRefs are the workloads to limit: Services, Deployments, StatefulSets or DaemonSets of this
	// namespace. Targets never share a counter.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +optional
	TargetRefs []TargetRef `json:"targetRefs,omitempty"`

	// selector limits the pods of this namespace that carry these labels, as one target. {} is every
	// enforced pod of the namespace.
	// +optional
	Selector *metav1.LabelSelector `json:"selector,omitempty"`

	// enforcement is Enforce (a request over a limit is refused), Shadow (it is let through and counted as
	// shadowDenied) or Disabled (nothing is counted). A limit may override it.
	// +kubebuilder:default=Enforce
	// +optional
	Enforcement Enforcement `json:"enforcement,omitempty"`

	// onStoreFailure says what becomes of a request while the counters can't be reached.
	// +kubebuilder:default={mode: Open}
	// +optional
	OnStoreFailure *OnStoreFailure `json:"onStoreFailure,omitempty"`

	// distribution says how the enforcers of a target share one budget.
	// +kubebuilder:default={mode: Exact}
	// +optional
	Distribution *Distribution `json:"distribution,omitempty"`

	// authentication says who is believed about a request's identity. Keys and expressions see
	// verified claims only. Not supported yet.
	// +optional
	Authentication *Authentication `json:"authentication,omitempty"`

	// limits all have to admit a request.
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	// +required
	Limits []Limit `json:"limits"`

	// response is what a refused client is told.
	// +optional
	Response *Response `json:"response,omitempty"`
}

// TargetRef names one object of the policy's namespace.
//
// +kubebuilder:validation:XValidation:rule="self.kind == 'Service' ? size(self.group) == 0 : self.group == 'apps'",message="group must be \"\" for a Service and apps for a Deployment, StatefulSet or DaemonSet",fieldPath=".group"
// +kubebuilder:validation:XValidation:rule="!has(self.sectionName) || self.kind == 'Service'",message="only a Service has sections: its ports",fieldPath=".sectionName"
type TargetRef struct {
	// group is "" for a Service and apps for the others.
	// +kubebuilder:validation:Enum="";apps
	// +required
	Group string `json:"group"`

	// kind of the object.
	// +kubebuilder:validation:Enum=Service;Deployment;StatefulSet;DaemonSet
	// +required
	Kind string `json:"kind"`

	// name of the object.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +required
	Name string `json:"name"`

	// sectionName is the name of a Service's port. Empty is all its ports.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +optional
	SectionName string `json:"sectionName,omitempty"`
}

// OnStoreFailureMode says what becomes of a request while the counters can't be reached.
//
// +kubebuilder:validation:Enum=Open;Closed;Local
type OnStoreFailureMode string

const (
	// OnStoreFailureOpen admits it, and counts it as failedOpen.
	OnStoreFailureOpen OnStoreFailureMode = "Open"
	// OnStoreFailureClosed refuses it with 503 and Retry-After.
	OnStoreFailureClosed OnStoreFailureMode = "Closed"
	// OnStoreFailureLocal keeps limiting in process, with this replica's share of the limit.
	OnStoreFailureLocal OnStoreFailureMode = "Local"
)

// OnStoreFailure says what becomes of a request while the counters can't be reached.
type OnStoreFailure struct {
	// mode is Open (the request is admitted, and counted as failedOpen), Closed (it is refused with 503 and
	// Retry-After) or Local (each replica keeps limiting by itself, with its share). Where limits of
	// several modes match a request, Closed wins over Local, and Local over Open.
	// +kubebuilder:default=Open
	// +optional
	Mode OnStoreFailureMode `json:"mode,omitempty"`
}

// DistributionMode says how the enforcers of a target share one budget.
//
// +kubebuilder:validation:Enum=Exact;Leased;PerReplica
type DistributionMode string

const (
	// DistributionExact asks the store about every request.
	DistributionExact DistributionMode = "Exact"
	// DistributionLeased takes budget from the store in advance and decides in process.
	DistributionLeased DistributionMode = "Leased"
	// DistributionPerReplica counts in each replica alone, with the whole limit.
	DistributionPerReplica DistributionMode = "PerReplica"
)

// Distribution says how the enforcers of a target share one budget.
//
// +kubebuilder:validation:XValidation:rule="!has(self.syncInterval) || self.mode == 'Leased'",message="syncInterval goes with mode Leased only",fieldPath=".syncInterval"
type Distribution struct {
	// mode is Exact (one shared budget, and one round trip for each request), Leased (the same budget, of
	// which replicas take shares in advance: for tokenBucket, fixedWindow, and slidingWindow but with precision Log)
	// or PerReplica (each replica has the whole budget to itself, and counts in process).
	// +kubebuilder:default=Exact
	// +optional
	Mode DistributionMode `json:"mode,omitempty"`

	// syncInterval is for how long ahead a replica takes its share at most, for Leased: half as long again it may be
	// held. From 10ms to 500ms; 100ms by default.
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('10ms') && duration(self) <= duration('500ms')",message="must be a duration from 10ms to 500ms"
	// +optional
	SyncInterval *Duration `json:"syncInterval,omitempty"`
}

// Authentication says who is believed about a request's identity.
type Authentication struct {
	// jwt are the issuers whose JSON Web Tokens are believed.
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	// +required
	JWT []JWTIssuer `json:"jwt"`
}

// JWTIssuer is one issuer whose JSON Web Tokens are believed.
type JWTIssuer struct {
	// name of this entry.
	// +required
	Name Name `json:"name"`

	// issuer must equal the token's iss claim.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	// +required
	Issuer string `json:"issuer"`

	// audiences: one of them must be among the token's aud claim. Empty accepts any.
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=2048
	// +optional
	Audiences []string `json:"audiences,omitempty"`

	// jwksFrom is where the issuer's keys are.
	// +required
	JWKSFrom JWKSSource `json:"jwksFrom"`
}

// JWKSSource is where a JSON Web Key Set is.
type JWKSSource struct {
	// configMap of the policy's namespace.
	// +required
	ConfigMap ConfigMapKey `json:"configMap"`
}

// ConfigMapKey names one entry of a ConfigMap.
type ConfigMapKey struct {
	// name of the ConfigMap.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +required
	Name string `json:"name"`

	// key in its data.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +required
	Key string `json:"key"`
}

// Name is a name within its list: a lower-case DNS label, so that it can stand in HTTP fields as it is.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=63
// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
type Name string

// Duration is a GEP-2257 duration, like 1m, 1h30m or 500ms: one to four numbers of up to five digits,
// each with one of the units h, m, s and ms.
//
// +kubebuilder:validation:MaxLength=32
// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
type Duration string

// Limit is one limit: which requests it counts, by what key, and how many it admits.
//
// +kubebuilder:validation:XValidation:rule="!has(self.overrides) || !has(self.strategy.slidingWindow) || !has(self.strategy.slidingWindow.precision) || self.strategy.slidingWindow.precision != 'Log' || self.overrides.all(o, !has(o.requests) || o.requests <= 10000)",message="requests must be at most 10000 with precision Log, which keeps each request",fieldPath=".overrides"
type Limit struct {
	// name of the limit. It appears in metrics, in RateLimit fields and in refusals, and is part of the
	// counters' identity: a renamed limit starts with fresh counters.
	// +required
	Name Name `json:"name"`

	// when says which requests count: those that match any of the entries. Absent is every request.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +optional
	When []RequestMatch `json:"when,omitempty"`

	// key splits the limit: one counter for each distinct tuple of these values. Absent is one shared
	// counter for each target.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=8
	// +optional
	Key []KeySource `json:"key,omitempty"`

	// strategy is how the limit counts.
	// +required
	Strategy Strategy `json:"strategy"`

	// cost is what a request takes from the limit. Absent is 1. Not supported yet.
	// +optional
	Cost *Cost `json:"cost,omitempty"`

	// priority says which requests are refused first as the limit is approached: Sheddable before Default
	// before Critical, which may use all of it. Not supported yet: any but Default.
	// +kubebuilder:default=Default
	// +optional
	Priority Priority `json:"priority,omitempty"`

	// enforcement overrides the policy's for this limit.
	// +optional
	Enforcement Enforcement `json:"enforcement,omitempty"`

	// overrides give some requests other parameters, in the same counters. The first that matches a
	// request wins, and what it doesn't set is inherited. Not supported yet.
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=16
	// +optional
	Overrides []Override `json:"overrides,omitempty"`
}

// Priority says which requests are refused first as the limit is approached.
//
// +kubebuilder:validation:Enum=Critical;Default;Sheddable
type Priority string

const (
	// PriorityCritical may use the whole limit.
	PriorityCritical Priority = "Critical"
	// PriorityDefault is what a limit without a priority has.
	PriorityDefault Priority = "Default"
	// PrioritySheddable is refused first.
	PrioritySheddable Priority = "Sheddable"
)

// RequestMatch describes requests. All its fields must match.
//
// +kubebuilder:validation:MinProperties=1
type RequestMatch struct {
	// methods: one of them must be the request's.
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=32
	// +kubebuilder:validation:items:Pattern=`^[A-Z][A-Z-]*$`
	// +optional
	Methods []string `json:"methods,omitempty"`

	// paths: one of them must match the request's.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +optional
	Paths []PathMatch `json:"paths,omitempty"`

	// hosts: one of them must be the request's host, port left out. *.example.com is any name below
	// example.com.
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=253
	// +kubebuilder:validation:items:Pattern=`^(\*\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
	// +optional
	Hosts []string `json:"hosts,omitempty"`

	// headers: all of them must match. Of several lines of a header, one that matches is enough, and so is
	// one of another header whose name differs only in punctuation, like x_beta from x-beta.
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +optional
	Headers []HeaderMatch `json:"headers,omitempty"`

	// expression is a CEL expression that must be true. Not supported yet.
	// +optional
	Expression Expression `json:"expression,omitempty"`
}

// Expression is a CEL expression over request, claims and source.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=2048
type Expression string

// PathMatch describes paths of requests.
//
// +kubebuilder:validation:XValidation:rule="self.type == 'RegularExpression' || self.value.startsWith('/')",message="must begin with /, as every path does",fieldPath=".value"
type PathMatch struct {
	// type is Exact (of the whole path: /a matches /a and /a/, not /a/b), Prefix (of whole elements: /a
	// matches /a and /a/b, not /ab), Template (like /orders/{id}) or RegularExpression (RE2, of the whole
	// path). Not supported yet: the latter two.
	// +kubebuilder:validation:Enum=Exact;Prefix;Template;RegularExpression
	// +kubebuilder:default=Prefix
	// +optional
	Type string `json:"type,omitempty"`

	// value is the path, prefix, template or expression. Paths are compared in a canonical form: //a,
	// /x/../a and /%61 are /a. Case counts: /A is not /a. If your application ignores case, limit a
	// prefix above all spellings, like /.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	// +required
	Value string `json:"value"`
}

// HeaderMatch describes one header of requests.
//
// +kubebuilder:validation:XValidation:rule="self.type in ['Present', 'Absent'] ? !has(self.value) : has(self.value)",message="value goes with Exact, Prefix and RegularExpression, and only with them",fieldPath=".value"
type HeaderMatch struct {
	// name of the header, in any case.
	// +required
	Name HeaderName `json:"name"`

	// type is Exact, Prefix or RegularExpression (of value), Present or Absent (without one). Not supported
	// yet: RegularExpression.
	// +kubebuilder:validation:Enum=Exact;Prefix;RegularExpression;Present;Absent
	// +kubebuilder:default=Exact
	// +optional
	Type string `json:"type,omitempty"`

	// value to compare with.
	// +kubebuilder:validation:MaxLength=1024
	// +optional
	Value *string `json:"value,omitempty"`
}

// HeaderName is the name of an HTTP field.
//
// +kubebuilder:validation:MinLength=1
// +kubebuilder:validation:MaxLength=256
// +kubebuilder:validation:Pattern="^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
type HeaderName string

// KeySource is one value of the tuple that names a counter.
//
// +kubebuilder:validation:XValidation:rule="!has(self.cookie) || self.cookie.name.matches('^[A-Za-z0-9!#$%&\\'*+.^_`|~-]+$')",message="no cookie can have this name",fieldPath=".cookie.name"
// +kubebuilder:validation:ExactlyOneOf=header;cookie;query;clientIP;claim;pathParam;method;host;expression
type KeySource struct {
	// header is the value of a header, which any client can choose: it separates clients that
	// cooperate. Applications differ in which of several lines they read, and some take x_api_key for
	// x-api-key. So all requests with several lines of the header, or with another header whose name
	// differs only in punctuation, count together in one counter, also where onMissing is Skip; where it
	// is Deny they are refused.
	// +optional
	Header *HeaderKey `json:"header,omitempty"`

	// cookie is the value of a cookie. Not supported yet.
	// +optional
	Cookie *NamedKey `json:"cookie,omitempty"`

	// query is the value of a query parameter. Not supported yet.
	// +optional
	Query *NamedKey `json:"query,omitempty"`

	// clientIP is the client's address: the connection's peer, unless that is a trusted proxy.
	// +optional
	ClientIP *ClientIPKey `json:"clientIP,omitempty"`

	// claim is a claim of a verified token. Not supported yet.
	// +optional
	Claim *NamedKey `json:"claim,omitempty"`

	// pathParam is what a {name} of a path template stands for. Not supported yet.
	// +optional
	PathParam *NamedKey `json:"pathParam,omitempty"`

	// method is the request's method.
	// +optional
	Method *EmptyKey `json:"method,omitempty"`

	// host is the request's host, in lower case and without the port.
	// +optional
	Host *EmptyKey `json:"host,omitempty"`

	// expression is a CEL expression that gives a string. Not supported yet.
	// +optional
	Expression Expression `json:"expression,omitempty"`

	// onMissing says what becomes of a request that has no such value: Share one counter among all of
	// them, Skip the limit, or Deny.
	// +kubebuilder:validation:Enum=Skip;Share;Deny
	// +kubebuilder:default=Share
	// +optional
	OnMissing OnMissing `json:"onMissing,omitempty"`
}

// OnMissing says what becomes of a request that lacks a value of the key.
type OnMissing string

const (
	// OnMissingSkip leaves the limit out for it.
	OnMissingSkip OnMissing = "Skip"
	// OnMissingShare counts all such requests in one counter.
	OnMissingShare OnMissing = "Share"
	// OnMissingDeny refuses it.
	OnMissingDeny OnMissing = "Deny"
)

// HeaderKey names a header.
type HeaderKey struct {
	// name of the header, in any case.
	// +required
	Name HeaderName `json:"name"`
}

// NamedKey names a cookie, query parameter, claim or path parameter.
type NamedKey struct {
	// name of it.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	// +required
	Name string `json:"name"`
}

// EmptyKey has no settings.
type EmptyKey struct{}

// ClientIPKey is the client's address.
type ClientIPKey struct {
	// ipv6PrefixLength is how many bits of an IPv6 address count, since one client often has a whole
	// prefix. 64 by default.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=128
	// +kubebuilder:default=64
	// +optional
	IPv6PrefixLength *int32 `json:"ipv6PrefixLength,omitempty"`
}

// Strategy is how a limit counts.
//
// +kubebuilder:validation:ExactlyOneOf=tokenBucket;slidingWindow;leakyBucket;fixedWindow;adaptive;concurrency
type Strategy struct {
	// tokenBucket admits a burst, and then a steady rate: at most burst + requests/window * t in any time t.
	// +optional
	TokenBucket *TokenBucket `json:"tokenBucket,omitempty"`

	// slidingWindow admits so many requests in any window, wherever it starts.
	// +optional
	SlidingWindow *SlidingWindow `json:"slidingWindow,omitempty"`

	// leakyBucket spaces requests evenly.
	// +optional
	LeakyBucket *LeakyBucket `json:"leakyBucket,omitempty"`

	// fixedWindow admits so many requests in each window on the clock, and so up to twice as many in a time
	// as long as a window.
	// +optional
	FixedWindow *FixedWindow `json:"fixedWindow,omitempty"`

	// adaptive finds the rate that the target can serve. Not supported yet.
	// +optional
	Adaptive *Adaptive `json:"adaptive,omitempty"`

	// concurrency admits so many requests at the same time.
	// +optional
	Concurrency *Concurrency `json:"concurrency,omitempty"`
}

// Requests is a number of requests.
//
// +kubebuilder:validation:Minimum=1
// +kubebuilder:validation:Maximum=1000000000
type Requests int64

// Window is a duration from 10ms to 8784h.
//
// +kubebuilder:validation:MaxLength=32
// +kubebuilder:validation:Pattern=`^([0-9]{1,5}(h|m|s|ms)){1,4}$`
// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('10ms') && duration(self) <= duration('8784h')",message="must be a duration from 10ms to 8784h"
type Window string

// TokenBucket admits at most burst + requests/window * t in any time t.
type TokenBucket struct {
	// requests that come back in each window.
	// +required
	Requests Requests `json:"requests"`

	// window in which they come back, evenly.
	// +required
	Window Window `json:"window"`

	// burst is how many can be taken at once when nothing was taken for long. Defaults to requests.
	// +optional
	Burst *Requests `json:"burst,omitempty"`
}

// SlidingWindow admits at most requests in any window.
//
// +kubebuilder:validation:XValidation:rule="!has(self.precision) || self.precision != 'Log' || self.requests <= 10000",message="must be at most 10000 with precision Log, which keeps each request",fieldPath=".requests"
type SlidingWindow struct {
	// requests in any window.
	// +required
	Requests Requests `json:"requests"`

	// window that slides.
	// +required
	Window Window `json:"window"`

	// precision is Ring (never above the limit; may refuse for up to a slot too long, a slot being a 60th of
	// the window, or 100ms of one under 6s, or a 10th of one under 1s), Log (exact, for limits up to 10000) or
	// Approximate (the smallest state; up to twice the limit in the worst case).
	// +kubebuilder:validation:Enum=Ring;Log;Approximate
	// +kubebuilder:default=Ring
	// +optional
	Precision string `json:"precision,omitempty"`
}

// LeakyBucket spaces requests evenly: window/requests lies between one and the next, and what nobody took is
// not saved up.
//
// +kubebuilder:validation:XValidation:rule="self.mode != 'Meter' || (!has(self.maxDelay) && !has(self.maxQueue))",message="maxDelay and maxQueue go with mode Queue only",fieldPath=".mode"
type LeakyBucket struct {
	// requests in each window.
	// +required
	Requests Requests `json:"requests"`

	// window over which they are spaced.
	// +required
	Window Window `json:"window"`

	// mode is Queue (a request waits for its turn) or Meter (it is refused until its turn).
	// +kubebuilder:validation:Enum=Queue;Meter
	// +kubebuilder:default=Queue
	// +optional
	Mode string `json:"mode,omitempty"`

	// maxDelay is the longest that a request waits, for Queue: one whose turn comes later is refused. From 1ms
	// to 1h; 10s by default.
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('1ms') && duration(self) <= duration('1h')",message="must be a duration from 1ms to 1h"
	// +optional
	MaxDelay *Duration `json:"maxDelay,omitempty"`

	// maxQueue is how many requests can wait at a time, for Queue. By default as many as maxDelay allows.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100000
	// +optional
	MaxQueue *int32 `json:"maxQueue,omitempty"`
}

// FixedWindow admits at most requests in each window on the clock, and so at most twice that in any time
// as long as a window.
//
// +kubebuilder:validation:ExactlyOneOf=window;calendar
type FixedWindow struct {
	// requests in each window.
	// +required
	Requests Requests `json:"requests"`

	// window whose multiples since the Unix epoch are the windows' starts: with 24h each UTC day is one.
	// +optional
	Window *Window `json:"window,omitempty"`

	// calendar makes days, weeks, months or years of a time zone the windows.
	// +optional
	Calendar *Calendar `json:"calendar,omitempty"`
}

// Calendar makes days, weeks, months or years of a time zone the windows. When its clocks change, a day has 23 or
// 25 hours.
type Calendar struct {
	// unit is Day, Week (from Monday), Month or Year.
	// +kubebuilder:validation:Enum=Day;Week;Month;Year
	// +required
	Unit string `json:"unit"`

	// timeZone whose midnight starts a day: a name of the IANA database, like Europe/Berlin.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:default=UTC
	// +optional
	TimeZone string `json:"timeZone,omitempty"`
}

// Adaptive finds, between two bounds, the rate that the target can serve.
//
// +kubebuilder:validation:XValidation:rule="self.minRequests <= self.maxRequests",message="must not be above maxRequests",fieldPath=".minRequests"
type Adaptive struct {
	// minRequests in each window are always admitted.
	// +required
	MinRequests Requests `json:"minRequests"`

	// maxRequests in each window are never exceeded.
	// +required
	MaxRequests Requests `json:"maxRequests"`

	// window of both.
	// +required
	Window Window `json:"window"`

	// targetLatency is the 95th percentile of the response time to hold.
	// +optional
	TargetLatency *Duration `json:"targetLatency,omitempty"`

	// targetErrorPercent is the share of failed responses (429, 503, 504 and lost connections) above
	// which the rate is cut.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	// +optional
	TargetErrorPercent *int32 `json:"targetErrorPercent,omitempty"`
}

// Concurrency admits so many requests at the same time. One counts from when it is admitted until its response
// is over, however long that takes: a stream or a WebSocket counts while it is open. Those of an enforcer that
// crashed count for some 10 seconds more.
type Concurrency struct {
	// maxInFlight requests at the same time.
	// +required
	MaxInFlight InFlight `json:"maxInFlight"`
}

// InFlight is a number of requests at the same time. Each of them has an entry of its own in the counter, which
// is why there can't be more.
//
// +kubebuilder:validation:Minimum=1
// +kubebuilder:validation:Maximum=10000
type InFlight int64

// Cost is what a request takes from a limit.
type Cost struct {
	// expression is a CEL expression that gives a whole number, 0 or more.
	// +required
	Expression Expression `json:"expression"`
}

// Override gives some requests other parameters, in the same counters.
//
// +kubebuilder:validation:XValidation:rule="!has(self.exempt) || !self.exempt || (!has(self.requests) && !has(self.window) && !has(self.burst) && !has(self.maxInFlight))",message="an exempt request has no other parameters",fieldPath=".exempt"
type Override struct {
	// name of the override.
	// +required
	Name Name `json:"name"`

	// when says which requests: those that match any of the entries.
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +required
	When []RequestMatch `json:"when"`

	// requests instead of the strategy's.
	// +optional
	Requests *Requests `json:"requests,omitempty"`

	// window instead of the strategy's.
	// +optional
	Window *Window `json:"window,omitempty"`

	// burst instead of the strategy's.
	// +optional
	Burst *Requests `json:"burst,omitempty"`

	// maxInFlight instead of the strategy's.
	// +optional
	MaxInFlight *InFlight `json:"maxInFlight,omitempty"`

	// exempt requests are not counted by this limit.
	// +optional
	Exempt *bool `json:"exempt,omitempty"`
}

// HeaderFormat is a way of telling clients about their quota in HTTP fields.
//
// +kubebuilder:validation:Enum=Draft11;Legacy
type HeaderFormat string

const (
	// HeadersDraft11 is RateLimit and RateLimit-Policy of draft-ietf-httpapi-ratelimit-headers-11.
	HeadersDraft11 HeaderFormat = "Draft11"
	// HeadersLegacy is X-RateLimit-Limit, -Remaining and -Reset, the latter in seconds from now.
	HeadersLegacy HeaderFormat = "Legacy"
)

// Response is what a refused client is told.
type Response struct {
	// statusCode of a refusal. 429 by default.
	// +kubebuilder:validation:Minimum=400
	// +kubebuilder:validation:Maximum=599
	// +kubebuilder:default=429
	// +optional
	StatusCode *int32 `json:"statusCode,omitempty"`

	// headers that tell clients about their quota, on every response. [Draft11] by default; [] is none.
	// Retry-After comes with every refusal that waiting can cure, whatever is said here. Not supported yet:
	// Legacy.
	// +listType=set
	// +kubebuilder:validation:MaxItems=2
	// +kubebuilder:default={Draft11}
	// +optional
	Headers []HeaderFormat `json:"headers"`

	// body of a refusal.
	// +kubebuilder:default={type: Problem}
	// +optional
	Body *ResponseBody `json:"body,omitempty"`
}

// BodyType is a kind of body.
//
// +kubebuilder:validation:Enum=Problem;None
type BodyType string

const (
	// BodyProblem is an RFC 9457 problem that names the policy and the limit.
	BodyProblem BodyType = "Problem"
	// BodyNone is an empty body.
	BodyNone BodyType = "None"
)

// ResponseBody is the body of a refusal.
type ResponseBody struct {
	// type is Problem (an RFC 9457 problem that names the policy and the limit) or None (no body).
	// +kubebuilder:default=Problem
	// +optional
	Type BodyType `json:"type,omitempty"`
}

// RateLimitPolicyStatus is what has become of the spec.
type RateLimitPolicyStatus struct {
	// observedGeneration is the generation that this status is about. -1 before the first look.
	// +kubebuilder:default=-1
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// revision is the number of the first snapshot that carries the limits that are enforced now. Zero
	// when none are.
	// +optional
	Revision int64 `json:"revision,omitempty"`

	// target says in short what the limits apply to.
	// +optional
	Target string `json:"target,omitempty"`

	// summary says in short what limits are enforced. After an edit that was not accepted these are those of
	// the last accepted spec.
	// +optional
	Summary string `json:"summary,omitempty"`

	// enforcers counts the sidecars of the targets.
	// +optional
	Enforcers *Enforcers `json:"enforcers,omitempty"`

	// conditions: Accepted, Programmed, Enforced, StoreReady and Ready; Stalled or Reconciling while
	// they are true.
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// targets tells of each target, when there is more than one.
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	// +optional
	Targets []TargetStatus `json:"targets,omitempty"`

	// limits is the usage of the last 5 minutes, rounded to two digits, so that steady traffic changes
	// nothing here. It is written at most every 10 seconds; live figures are in the metrics.
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=32
	// +optional
	Limits []LimitStatus `json:"limits,omitempty"`
}

// Enforcers counts the sidecars of a policy's targets.
type Enforcers struct {
	// expected to enforce.
	Expected int32 `json:"expected"`
	// current is how many of them enforce what the policy says now.
	Current int32 `json:"current"`
}

// TargetStatus tells of one target.
type TargetStatus struct {
	// ref is the target.
	Ref TargetRef `json:"ref"`

	// conditions: Accepted says whether the target was found.
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// LimitStatus is the usage of one limit in the last 5 minutes, rounded to two digits.
type LimitStatus struct {
	// name of the limit.
	Name Name `json:"name"`
	// allowed requests.
	Allowed int64 `json:"allowed"`
	// denied requests.
	Denied int64 `json:"denied"`
	// shadowDenied requests would have been denied, were the limit not in Shadow.
	ShadowDenied int64 `json:"shadowDenied"`
	// failedOpen requests were let through because the counters couldn't be reached.
	FailedOpen int64 `json:"failedOpen"`
	// currentRequests is how many requests per window the limit admits now.
	// +optional
	CurrentRequests int64 `json:"currentRequests,omitempty"`
}

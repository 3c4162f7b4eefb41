// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// LabelInject says whether pods get the sidecar. On a namespace, [InjectEnabled] is for all its pods, and
// [InjectDisabled] for none; on a pod either overrides the former.
const (
	LabelInject = "ratelimit.weir.dev/inject"

	InjectEnabled  = "enabled"
	InjectDisabled = "disabled"
)

// LabelCredentials, "enabled" on a namespace, has the manager keep the sidecars' credentials for Redis there, for pods
// that opt in one by one. A namespace whose pods all do has them without.
const (
	LabelCredentials = "ratelimit.weir.dev/credentials" //nolint:gosec // It is the name of a label.

	CredentialsEnabled = "enabled"
)

// AnnotationInterception is how requests get into the sidecar. That of a namespace is for those of its pods that have
// none of their own; without either it is [InterceptionPortTakeover].
const (
	AnnotationInterception = "ratelimit.weir.dev/interception"

	// InterceptionPortTakeover moves the names of the pod's HTTP ports to the sidecar. Services that reach them by
	// number go past it.
	InterceptionPortTakeover = "PortTakeover"
	// InterceptionRedirect leads connections from outside the pod to the sidecar, whatever port of it they are for.
	// An init container needs the capability NET_ADMIN for that. Pods that are intercepted so have the annotation,
	// wherever it came from.
	InterceptionRedirect = "Redirect"
)

// What a pod may choose of its sidecar. A value that isn't understood keeps the sidecar out, and is told.
const (
	// AnnotationPorts lists the container ports whose requests are limited, by name, like "http,admin", or where they
	// are redirected by number as well. Without it they are those that a Service's appProtocol or their own name calls
	// HTTP or gRPC.
	AnnotationPorts = "ratelimit.weir.dev/ports"
	// AnnotationBootstrapMode is Open or Closed: what becomes of requests before any policies are known.
	AnnotationBootstrapMode = "ratelimit.weir.dev/bootstrap-mode"
	// AnnotationDecisionTimeout is the longest wait for Redis, from 1ms to 1s.
	AnnotationDecisionTimeout = "ratelimit.weir.dev/decision-timeout"
	// AnnotationTrustedProxies are the addresses or CIDRs of those who are believed about X-Forwarded-For.
	AnnotationTrustedProxies = "ratelimit.weir.dev/trusted-proxies"
	// AnnotationLogLevel is debug, info, warn or error.
	AnnotationLogLevel = "ratelimit.weir.dev/log-level"
)

// What becomes of a pod is written on it.
const (
	// LabelInjected is "true" on pods with the sidecar in them.
	LabelInjected = "ratelimit.weir.dev/injected"
	// AnnotationNotInjected says why a pod that was to have the sidecar has none, as in "HostNetwork: ...".
	AnnotationNotInjected = "ratelimit.weir.dev/not-injected"
)

// AnnotationConfirmRemoval is "true" on a namespace whose policies may go at any time and in any number. Without it
// their limits stay enforced when more than 10 policies, and more than half of all, are gone at once.
const AnnotationConfirmRemoval = "ratelimit.weir.dev/confirm-removal"

// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Condition types of a RateLimitPolicy. All but Stalled and Reconciling are always present after the
// first reconcile, and True is the good value of each of them. Stalled and Reconciling are the helpers
// of kstatus: they are present only while True, and never together.
const (
	// ConditionAccepted says whether the spec is valid, uses only what this release implements, and
	// every target exists. While it is False the last accepted spec, if there is one, stays enforced.
	ConditionAccepted = "Accepted"
	// ConditionProgrammed says whether the config store holds this generation's limits.
	ConditionProgrammed = "Programmed"
	// ConditionEnforced says whether every enforcer of the targets reports this generation's limits, and their
	// requests come through it. The enforcers are the pods with the sidecar that run, and whoever else reports;
	// of the latter, one that falls silent is known for a minute, and one that stops in good order not at all.
	// It is Unknown, and does not hold back Ready, while there is no enforcer.
	ConditionEnforced = "Enforced"
	// ConditionStoreReady says whether the manager can read and write the config store, and whether
	// every enforcer can reach its counters. While an enforcer can't, onStoreFailure decides there.
	ConditionStoreReady = "StoreReady"
	// ConditionReady is derived from the others: True when the limits are enforced as written.
	ConditionReady = "Ready"
	// ConditionStalled is True when only an edit by the user can help.
	ConditionStalled = "Stalled"
	// ConditionReconciling is True while the manager, or an enforcer, is still catching up, or waits for a
	// target to exist.
	ConditionReconciling = "Reconciling"
)

// Reasons of the conditions.
const (
	// ReasonAccepted goes with Accepted=True.
	ReasonAccepted = "Accepted"
	// ReasonInvalid goes with Accepted=False: a field has a value that cannot be enforced.
	ReasonInvalid = "Invalid"
	// ReasonUnsupported goes with Accepted=False: a field is not implemented by this release.
	ReasonUnsupported = "Unsupported"
	// ReasonTargetNotFound goes with Accepted=False: a targetRef names an object, or a port of one,
	// that does not exist. The policy comes into force as soon as it does.
	ReasonTargetNotFound = "TargetNotFound"

	// ReasonProgrammed goes with Programmed=True.
	ReasonProgrammed = "Programmed"
	// ReasonNotAccepted goes with Programmed=False: there is nothing of this generation to publish.
	ReasonNotAccepted = "NotAccepted"
	// ReasonLastAcceptedKept goes with Programmed=False: an earlier generation is what is published,
	// because this one was not accepted.
	ReasonLastAcceptedKept = "LastAcceptedKept"
	// ReasonPublishFailed goes with Programmed=False: the config store refused or can't be reached.
	ReasonPublishFailed = "PublishFailed"
	// ReasonPending goes with Programmed=False and Enforced=False: the change is on its way.
	ReasonPending = "Pending"

	// ReasonEnforced goes with Enforced=True.
	ReasonEnforced = "Enforced"
	// ReasonTooManyKeys goes with Enforced=True and Ready=True: so many keys came to a limit in the last five minutes that
	// not each of them has a counter. Those that have none share one.
	ReasonTooManyKeys = "TooManyKeys"
	// ReasonNotReporting goes with Enforced=False: an enforcer has been silent for over 10 s.
	ReasonNotReporting = "NotReporting"
	// ReasonNotIntercepted goes with Enforced=False: requests reach a pod of the targets without its sidecar, or the
	// pod was to have one and has none.
	ReasonNotIntercepted = "NotIntercepted"
	// ReasonNoEnforcers goes with Enforced=Unknown: no pod of the targets runs with the sidecar, and none reports.
	ReasonNoEnforcers = "NoEnforcers"
	// ReasonDisabled goes with Enforced=Unknown: spec.enforcement is Disabled.
	ReasonDisabled = "Disabled"

	// ReasonReachable goes with StoreReady=True.
	ReasonReachable = "Reachable"
	// ReasonEvicts goes with StoreReady=True: the store can be reached, but throws away counters or snapshots when it
	// has no memory left. Its maxmemory-policy is to be noeviction.
	ReasonEvicts = "Evicts"
	// ReasonUnreachable goes with StoreReady=False, and with Enforced=Unknown while the manager can't
	// read which enforcers there are, or what they report.
	ReasonUnreachable = "Unreachable"
	// ReasonAuthFailed goes with StoreReady=False: the store refuses the user, the password or the rights of the
	// manager or of an enforcer.
	ReasonAuthFailed = "AuthFailed"
	// ReasonReadOnly goes with StoreReady=False: the store takes no writes, since it is a replica, or waits for
	// its replicas or its disk.
	ReasonReadOnly = "ReadOnly"
	// ReasonStoreFull goes with StoreReady=False: the store has no memory left to count in.
	ReasonStoreFull = "StoreFull"
	// ReasonDegraded goes with StoreReady=False: an enforcer could not reach its counters lately, and
	// onStoreFailure decided in their stead.
	ReasonDegraded = "Degraded"

	// ReasonReady goes with Ready=True. So do NoEnforcers and Disabled, when there is nothing to enforce, and TooManyKeys.
	ReasonReady = "Ready"
)

// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/redisclient"
)

// faults are those of a store that somebody can mend who knows which it is, the gravest first, by the word that
// redisclient and the reports of enforcers have for them.
var faults = []struct {
	word, reason string
	// manager says it of the manager's store, and enforcers of theirs, after how many they are.
	manager, enforcers string
}{
	{
		redisclient.Auth, v1alpha1.ReasonAuthFailed,
		"The store refuses the manager: look at its user, password and rights",
		"been refused by the counters' store: look at their user, password and rights",
	},
	{
		redisclient.Full, v1alpha1.ReasonStoreFull,
		"The store has no memory left: give it more",
		"found no memory left in the counters' store: give it more",
	},
	{
		redisclient.ReadOnly, v1alpha1.ReasonReadOnly,
		"The store takes no writes: it is a replica, or waits for its replicas or its disk",
		"not been let write to the counters' store: it is a replica, or waits for its replicas or its disk",
	},
}

// storeReady says whether we reach the config store, and the enforcers their counters, and warns of what may become of
// them there.
func storeReady(v view, t tally) metav1.Condition {
	no := func(reason, format string, args ...any) metav1.Condition {
		message := fmt.Sprintf(format, args...) + ". Enforcers keep the limits that they have, and onStoreFailure decides wherever they can't count"
		return condition(v1alpha1.ConditionStoreReady, metav1.ConditionFalse, reason, message)
	}
	switch err := storeErr(v); {
	case err != nil:
		for _, f := range faults {
			if f.word == redisclient.Reason(err) {
				return no(f.reason, "%s", f.manager)
			}
		}
		return no(v1alpha1.ReasonUnreachable, "The manager can't reach the store")
	case t.degraded > 0:
		for _, f := range faults {
			if slices.Contains(t.faults, f.word) {
				return no(f.reason, "%s %s", have(t.degraded, "enforcer"), f.enforcers)
			}
		}
		return no(v1alpha1.ReasonDegraded, "%s not reached the counters lately", have(t.degraded, "enforcer"))
	case v.evicting != "":
		return condition(v1alpha1.ConditionStoreReady, metav1.ConditionTrue, v1alpha1.ReasonEvicts,
			fmt.Sprintf("The store can be reached, but evicts what it holds when it is full (%s): set its maxmemory-policy to noeviction", v.evicting))
	}
	return condition(v1alpha1.ConditionStoreReady, metav1.ConditionTrue, v1alpha1.ReasonReachable, "The store can be reached")
}

// storeErr is why a store can't be used, or nil. Who can't leave reports can't count either, so that store comes first.
func storeErr(v view) error {
	switch {
	case isStoreAway(v.reportsErr):
		return v.reportsErr
	case v.storeErr != nil:
		return v.storeErr
	case isStoreAway(v.err):
		return v.err
	}
	return nil
}

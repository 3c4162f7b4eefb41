// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/test/playground"
)

// told is the longest that a fault of the store may take to be told on the object.
const told = 10 * time.Second

// The faults of R13, R19 and R22 that Redis itself tells, each with what ends it.
func TestAFaultOfTheStoreIsToldOnTheObject(t *testing.T) {
	const name = "store-faults"
	apply(t, name, `{selector: {}, onStoreFailure: {mode: Local}, limits: [{name: all, strategy: {fixedWindow: {requests: 100000, window: 24h}}}]}`)
	awaitReady(t, name)
	// One connection for all, since Redis may let nobody in any more.
	redis := weir.Redis.Client(t).Conn()
	defer func() { _ = redis.Close() }()
	host, port, err := net.SplitHostPort(weir.Redis.Addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range []struct{ reason, breaks, mends string }{
		{v1alpha1.ReasonStoreFull, "CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"},
		// Its own replica: it waits for itself, and takes no writes meanwhile.
		{v1alpha1.ReasonReadOnly, "REPLICAOF " + host + " " + port, "REPLICAOF NO ONE"},
		{v1alpha1.ReasonAuthFailed, "CONFIG SET requirepass other", `CONFIG SET requirepass ""`},
	} {
		t.Run(fault.reason, func(t *testing.T) {
			do(t, redis, fault.breaks)
			t.Cleanup(func() { do(t, redis, fault.mends) })
			if fault.reason == v1alpha1.ReasonAuthFailed {
				do(t, redis, "CLIENT KILL TYPE NORMAL SKIPME YES")
			}
			began := time.Now()
			var others int
			eventually(t, told, "StoreReady is False with "+fault.reason, func() bool {
				others += send(t, 2, 5, "").Other
				return storeReady(t, name) == fault.reason
			})
			took := time.Since(began)
			do(t, redis, fault.mends)
			began = time.Now()
			eventually(t, patience, "StoreReady is True", func() bool { return storeReady(t, name) == v1alpha1.ReasonReachable })
			t.Logf("%s: expected: told within %s, 0 answers 5xx; measured: %s, %d; its end is told after %s",
				fault.reason, told, took.Round(time.Millisecond), others, time.Since(began).Round(time.Millisecond))
			if others > 0 {
				t.Errorf("%d answers are neither 200 nor 429", others)
			}
			eventually(t, patience, "the fault and its end are events", func() bool {
				events, err := weir.Kubectl(t.Context(), "get", "events", "--namespace", playground.Namespace,
					"--field-selector", "involvedObject.name="+name, "--output", "jsonpath={.items[*].reason}")
				return err == nil && strings.Contains(events, fault.reason) && strings.Contains(events, v1alpha1.ReasonReachable)
			})
			awaitReady(t, name)
		})
	}
}

// do runs a command of words without spaces.
func do(t *testing.T, redis *redis.Conn, command string) {
	t.Helper()
	var args []any
	for word := range strings.FieldsSeq(command) {
		args = append(args, strings.Trim(word, `"`))
	}
	if err := redis.Do(context.WithoutCancel(t.Context()), args...).Err(); err != nil {
		t.Errorf("%s: %v", command, err)
	}
}

// storeReady gives the reason of a policy's condition.
func storeReady(t *testing.T, name string) string {
	t.Helper()
	p, err := weir.AwaitPolicy(t.Context(), name, patience, func(*v1alpha1.RateLimitPolicy) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionStoreReady)
	if c == nil {
		return ""
	}
	return c.Reason
}

// What a pod counts by itself it counts also while there is no Redis, and each of two pods has the whole limit.
func TestPerReplicaNeedsNoRedis(t *testing.T) {
	const name, limit = "per-replica", 10
	apply(t, name, `{selector: {}, distribution: {mode: PerReplica}, onStoreFailure: {mode: Closed}, limits: [{name: all, strategy: {fixedWindow: {requests: 10, window: 24h}}}]}`)
	awaitReady(t, name)
	killRedis(t)
	if diff := cmp.Diff(playground.Tally{Allowed: limit * sidecars, Refused: 10}, send(t, 2, limit+5, "")); diff != "" {
		t.Errorf("answers without Redis (-want +got):\n%s", diff)
	}
	if err := weir.Redis.Restart(); err != nil {
		t.Fatal(err)
	}
	awaitReady(t, name)
}

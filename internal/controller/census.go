// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/fleet"
	"github.com/weir-dev/weir/internal/match"
)

const (
	// censusInterval is how often pods are counted: what a rollout changes is told in one go.
	censusInterval = 10 * time.Second
	// censusAnew is after how long counts are told that have not changed: the store may have lost them.
	censusAnew = time.Minute
)

// register is where the counts of a namespace are told.
type register interface {
	Write(ctx context.Context, namespace string, pods map[fleet.Group]int) error
}

// Census tells how many pods with the sidecar each target has, for policies whose limits their replicas divide among them
// while the store is away. It runs on the leader only, and tells only what has changed.
type Census struct {
	published *memory
	pods      pods
	register  register
	told      map[string]telling // by namespace
}

// telling is what was told of a namespace, and when.
type telling struct {
	pods map[fleet.Group]int
	at   time.Time
}

// NewCensus gives a census of the policies that a reconciler publishes.
func NewCensus(published *SnapshotReconciler, pods pods, register register) *Census {
	return &Census{published: published.memory, pods: pods, register: register, told: map[string]telling{}}
}

// Start counts every ten seconds until ctx is done. A store or an API server that is away is told of by others, who look
// at them more often.
func (c *Census) Start(ctx context.Context) error {
	tick := time.NewTicker(censusInterval)
	defer tick.Stop()
	for {
		if err := c.take(ctx, time.Now()); err != nil && ctx.Err() == nil {
			log.FromContext(ctx).V(1).Info("sidecars are not told how many pods there are", "reason", err.Error())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// take counts the pods of all namespaces, and tells what is new. The first that fails ends it: the others would as well.
func (c *Census) take(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, censusInterval)
	defer cancel()
	told := make(map[string]telling, len(c.told))
	for namespace, s := range c.published.all() {
		last, known := c.told[namespace]
		policies := slices.DeleteFunc(slices.Clone(s.Policies), func(p configstore.Policy) bool { return !slices.ContainsFunc(p.Limits, match.Limit.Divided) })
		if len(policies) == 0 && !known {
			continue
		}
		running, err := c.pods.Injected(ctx, namespace)
		if err != nil {
			return fmt.Errorf("looking up the pods of namespace %s: %w", namespace, err)
		}
		pods := countPods(policies, running)
		if known && maps.Equal(pods, last.pods) && now.Sub(last.at) < censusAnew {
			told[namespace] = last
			continue
		}
		if err := c.register.Write(ctx, namespace, pods); err != nil {
			return err
		}
		if len(policies) > 0 {
			told[namespace] = telling{pods: pods, at: now}
		}
	}
	c.told = told
	return nil
}

// countPods counts by policy and target. A pod that is about to end still has its share.
func countPods(policies []configstore.Policy, running []metav1.PartialObjectMetadata) map[fleet.Group]int {
	pods := map[fleet.Group]int{}
	for _, p := range policies {
		for _, t := range p.Targets {
			for i := range running {
				if t.Pods.Selects(running[i].Labels) {
					pods[fleet.Group{Namespace: p.Namespace, Policy: p.Name, Target: t.ID}]++
				}
			}
		}
	}
	return pods
}

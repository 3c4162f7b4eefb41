// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/fleet"
	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/match"
)

// running are pods with the sidecar, all of one namespace, each known by its labels.
type running []map[string]string

func (r running) Injected(context.Context, string) ([]metav1.PartialObjectMetadata, error) {
	var pods []metav1.PartialObjectMetadata
	for _, labels := range r {
		pods = append(pods, metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Labels: labels}})
	}
	return pods, nil
}

// heard is a register that keeps what it was told last, and how often it was.
type heard struct {
	times int
	pods  map[fleet.Group]int
	err   error
}

func (h *heard) Write(_ context.Context, _ string, pods map[fleet.Group]int) error {
	if h.err != nil {
		return h.err
	}
	h.times++
	h.pods = pods
	return nil
}

func TestCensus(t *testing.T) {
	front, back := map[string]string{"app": "front"}, map[string]string{"app": "back"}
	policyOf := func(name string, l match.Limit) configstore.Policy {
		return configstore.Policy{Policy: match.Policy{Namespace: "shop", Name: name, Limits: []match.Limit{l}, Targets: []match.Target{
			{ID: "Service/front", Pods: match.Selector{MatchLabels: front}}, {ID: "Selector"},
		}}}
	}
	local := match.Limit{OnFailure: limiter.FailLocal}
	alone := match.Limit{OnFailure: limiter.FailLocal, Distribution: limiter.PerReplica}
	begun := time.Unix(1_800_000_000, 0)
	census := func(h *heard, pods running, policies ...configstore.Policy) *Census {
		m := newMemory()
		m.keep("shop", configstore.Snapshot{Namespace: "shop", Policies: policies}, true)
		return &Census{published: m, pods: pods, register: h, told: map[string]telling{}}
	}
	take := func(t *testing.T, c *Census, after time.Duration) {
		t.Helper()
		if err := c.take(t.Context(), begun.Add(after)); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("pods are counted by policy and target", func(t *testing.T) {
		h := &heard{}
		take(t, census(h, running{front, front, back}, policyOf("a", local), policyOf("b", local)), 0)
		want := map[fleet.Group]int{
			{Namespace: "shop", Policy: "a", Target: "Service/front"}: 2, {Namespace: "shop", Policy: "a", Target: "Selector"}: 3,
			{Namespace: "shop", Policy: "b", Target: "Service/front"}: 2, {Namespace: "shop", Policy: "b", Target: "Selector"}: 3,
		}
		if diff := cmp.Diff(want, h.pods); diff != "" {
			t.Errorf("told (-want +got):\n%s", diff)
		}
	})
	t.Run("of policies whose limits are not divided nothing is told", func(t *testing.T) {
		h := &heard{}
		take(t, census(h, running{front}, policyOf("a", match.Limit{OnFailure: limiter.FailOpen}), policyOf("b", alone)), 0)
		if h.times != 0 {
			t.Errorf("told %v", h.pods)
		}
	})
	t.Run("what has not changed is told again after a minute only", func(t *testing.T) {
		h := &heard{}
		c := census(h, running{front}, policyOf("a", local))
		for after := range time.Minute / time.Second {
			take(t, c, after*time.Second)
		}
		if h.times != 1 {
			t.Errorf("told %d times", h.times)
		}
		take(t, c, time.Minute)
		if h.times != 2 {
			t.Errorf("told %d times", h.times)
		}
	})
	t.Run("a pod that comes is told, and that the last one goes is told once", func(t *testing.T) {
		h := &heard{}
		c := census(h, running{front}, policyOf("a", local))
		take(t, c, 0)
		c.pods = running{front, front}
		take(t, c, time.Second)
		if n := h.pods[fleet.Group{Namespace: "shop", Policy: "a", Target: "Service/front"}]; n != 2 {
			t.Errorf("told of %d pods", n)
		}
		c.pods = running{}
		take(t, c, 2*time.Second)
		take(t, c, 3*time.Second)
		if h.times != 3 || len(h.pods) != 0 {
			t.Errorf("told %d times, at last %v", h.times, h.pods)
		}
	})
	t.Run("what the store did not take is told once it does", func(t *testing.T) {
		h := &heard{err: errors.New("away")}
		c := census(h, running{front}, policyOf("a", local))
		if err := c.take(t.Context(), begun); !errors.Is(err, h.err) {
			t.Errorf("got %v", err)
		}
		h.err = nil
		take(t, c, time.Second)
		if h.times != 1 {
			t.Errorf("told %d times", h.times)
		}
	})
}

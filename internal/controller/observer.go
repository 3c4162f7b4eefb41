// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/usage"
)

// observeInterval is how often the enforcers' reports are read.
const observeInterval = time.Second

// reader reads what the enforcers of some namespaces report.
type reader interface {
	Read(ctx context.Context, namespaces ...string) (map[string][]usage.Observed, error)
	// Check says why enforcers can't report, if that is the store's doing.
	Check(ctx context.Context) error
}

// pods lists those that have the sidecar and run.
type pods interface {
	Injected(ctx context.Context, namespace string) ([]metav1.PartialObjectMetadata, error)
}

// Observer puts on the [Board] who enforces, and what they report. It runs on the leader only.
type Observer struct {
	client  client.Reader
	pods    pods
	reports reader
	board   *Board
	roll    roll
}

// NewObserver gives an observer of all namespaces that have policies.
func NewObserver(c client.Reader, pods pods, reports reader, board *Board) *Observer {
	return &Observer{client: c, pods: pods, reports: reports, board: board}
}

// Start observes until ctx is done.
func (o *Observer) Start(ctx context.Context) error {
	tick := time.NewTicker(observeInterval)
	defer tick.Stop()
	outage := outage{log: log.FromContext(ctx).WithName("usage"), tell: o.board.reportsAway}
	for {
		outage.note(o.observe(ctx))
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (o *Observer) observe(ctx context.Context) error {
	namespaces, err := o.namespaces(ctx)
	if err != nil {
		return err
	}
	if err := o.reports.Check(ctx); err != nil {
		return err
	}
	reports, err := o.reports.Read(ctx, namespaces...)
	if err != nil {
		return err
	}
	seen := make(map[string]observed, len(namespaces))
	now := time.Now()
	o.roll.begin()
	for _, namespace := range namespaces {
		enforcers, err := o.enforcers(ctx, namespace, reports[namespace], now)
		if err != nil {
			return err
		}
		seen[namespace] = observe(enforcers, usage.Totals(reports[namespace]))
	}
	o.roll.end()
	o.board.observe(seen)
	return nil
}

// podsError says that it isn't known which pods run. The store has no part in it.
type podsError struct{ error }

func (e podsError) Unwrap() error { return e.error }

// enforcers gives those of a namespace. What pods and Services there are is in a cache, unless there is no way to
// fill it.
func (o *Observer) enforcers(ctx context.Context, namespace string, reports []usage.Observed, now time.Time) ([]enforcer, error) {
	ctx, cancel := context.WithTimeout(ctx, observeInterval)
	defer cancel()
	pods, err := o.pods.Injected(ctx, namespace)
	if err != nil {
		return nil, podsError{fmt.Errorf("looking up the pods of namespace %s: %w", namespace, err)}
	}
	var services corev1.ServiceList
	if err := o.client.List(ctx, &services, client.InNamespace(namespace), client.UnsafeDisableDeepCopy); err != nil {
		return nil, podsError{fmt.Errorf("looking up the Services of namespace %s: %w", namespace, err)}
	}
	return o.roll.call(pods, reports, services.Items, now), nil
}

// namespaces gives those that have policies.
func (o *Observer) namespaces(ctx context.Context) ([]string, error) {
	var policies v1alpha1.RateLimitPolicyList
	if err := o.client.List(ctx, &policies, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("listing policies: %w", err)
	}
	names := make([]string, 0, len(policies.Items))
	for i := range policies.Items {
		names = append(names, policies.Items[i].Namespace)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// observed is who enforces in one namespace, and what they report.
type observed struct {
	enforcers []enforcer
	// totals are the counts of all of them, rounded as a status tells them.
	totals map[limiter.LimitID]usage.Counts
	// digest changes when another status is to be told.
	digest string
}

func observe(enforcers []enforcer, totals map[limiter.LimitID]usage.Counts) observed {
	o := observed{enforcers: enforcers, totals: totals}
	lines := make([]string, 0, len(o.enforcers)+len(o.totals))
	for _, e := range o.enforcers {
		lines = append(lines, fmt.Sprint(e.Enforcer, e.Revision, e.Age > silence, e.Age > forgotten, e.Degraded, e.Reason, e.running, e.labels, e.leaks))
	}
	for id, total := range o.totals {
		o.totals[id] = total.Rounded()
		lines = append(lines, fmt.Sprint(id, o.totals[id]))
	}
	slices.Sort(lines)
	o.digest = strings.Join(lines, "\n")
	return o
}

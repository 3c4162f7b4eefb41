// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

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

// Observer puts on the [Board] what enforcers report. It runs on the leader only.
type Observer struct {
	client  client.Reader
	reports reader
	board   *Board
}

// NewObserver gives an observer of all namespaces that have policies.
func NewObserver(c client.Reader, reports reader, board *Board) *Observer {
	return &Observer{client: c, reports: reports, board: board}
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
	for _, namespace := range namespaces {
		seen[namespace] = observe(reports[namespace])
	}
	o.board.observe(seen)
	return nil
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

// observed is what the enforcers of one namespace report.
type observed struct {
	enforcers []usage.Observed
	// totals are the counts of all of them, rounded as a status tells them.
	totals map[limiter.LimitID]usage.Counts
	// digest changes when another status is to be told.
	digest string
}

func observe(reports []usage.Observed) observed {
	o := observed{enforcers: reports, totals: usage.Totals(reports)}
	lines := make([]string, 0, len(o.enforcers)+len(o.totals))
	for _, e := range o.enforcers {
		lines = append(lines, fmt.Sprint(e.Enforcer, e.Revision, e.Age > silence, e.Age > forgotten, e.Degraded, e.Reason))
	}
	for id, total := range o.totals {
		o.totals[id] = total.Rounded()
		lines = append(lines, fmt.Sprint(id, o.totals[id]))
	}
	slices.Sort(lines)
	o.digest = strings.Join(lines, "\n")
	return o
}

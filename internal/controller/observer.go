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
	"github.com/weir-dev/weir/internal/usage"
)

// observeInterval is how often the enforcers' reports are read.
const observeInterval = time.Second

// reader reads what the enforcers of some namespaces report.
type reader interface {
	Read(ctx context.Context, namespaces ...string) (map[string][]usage.Observed, error)
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
	failing := false
	for {
		err := o.observe(ctx)
		if failing != (err != nil) && ctx.Err() == nil {
			failing = err != nil
			log.FromContext(ctx).Info("reading usage reports", "failing", failing, "error", text(err))
		}
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
	reports, err := o.reports.Read(ctx, namespaces...)
	o.board.report(reports, err)
	return err
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

// digest changes when reports would make another status.
func digest(reports []usage.Observed) string {
	lines := make([]string, 0, len(reports))
	for _, r := range reports {
		lines = append(lines, fmt.Sprint(r.Enforcer, r.Labels, r.Revision, r.Age > silence, r.Age > forgotten, r.Degraded, r.Limits))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

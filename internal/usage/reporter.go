// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/go-logr/logr"
	"github.com/redis/go-redis/v9"
)

const (
	// reportInterval is how often a sidecar reports.
	reportInterval = time.Second
	// callTimeout bounds one call to the store.
	callTimeout = time.Second
)

// reportsKey is the hash of a namespace's reports. Each is the time of the store in milliseconds, a
// space, and the report as JSON.
func reportsKey(instance, namespace string) string {
	return "weir:" + instance + ":{report/" + namespace + "}"
}

// The time is the store's, so that the clocks of nodes don't matter.
//
// KEYS[1] the namespace's reports
// ARGV[1] the enforcer's field
// ARGV[2] its report as JSON
// ARGV[3] milliseconds until the namespace is forgotten, if nobody reports any more
var leave = redis.NewScript(`
local now = redis.call('TIME')
local ms = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
redis.call('HSET', KEYS[1], ARGV[1], ms .. ' ' .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return redis.status_reply('OK')
`)

// Reporter leaves reports of one enforcer in Redis.
type Reporter struct {
	client redis.UniversalClient
	key    string
	report func(now time.Time) Report
	log    logr.Logger
	// failing says whether the last report failed, so that an outage is logged once.
	failing bool
}

// NewReporter gives a reporter for an enforcer of the namespace, in the installation called instance.
// It calls report each time for what to say; all its reports must be of one [Enforcer].
func NewReporter(client redis.UniversalClient, instance, namespace string, report func(now time.Time) Report, log logr.Logger) *Reporter {
	return &Reporter{client: client, key: reportsKey(instance, namespace), report: report, log: log}
}

// Run reports at once, and then each second until ctx is done, whatever the store does. Then it takes the
// report back, so that an enforcer that left isn't missed, and returns nil.
func (r *Reporter) Run(ctx context.Context) error {
	for {
		r.tell(ctx)
		select {
		case <-ctx.Done():
			r.withdraw(context.WithoutCancel(ctx))
			return nil
		case <-time.After(jitter(reportInterval)):
		}
	}
}

// tell writes a report, and logs when that begins or ceases to fail.
func (r *Reporter) tell(ctx context.Context) {
	err := r.write(ctx)
	if ctx.Err() != nil || r.failing == (err != nil) {
		return
	}
	r.failing = err != nil
	if r.failing {
		r.log.Error(err, "usage reports do not reach the store")
		return
	}
	r.log.Info("usage reports reach the store again")
}

func (r *Reporter) write(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	report := r.report(time.Now())
	body, err := json.Marshal(report)
	if err != nil {
		return fmt.Errorf("encoding report: %w", err)
	}
	return leave.Run(ctx, r.client, []string{r.key}, report.field(), body, 2*Window.Milliseconds()).Err()
}

// withdraw takes the report back. If that fails it ages, and is forgotten.
func (r *Reporter) withdraw(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := r.client.HDel(ctx, r.key, r.report(time.Now()).field()).Err(); err != nil {
		r.log.Error(err, "a last usage report stays in the store")
	}
}

// jitter is d, give or take a tenth: sidecars don't report in step.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5) //nolint:gosec // Nobody gains by guessing it.
}

// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"slices"
	"time"

	"github.com/dunglas/httpsfv"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/match"
)

// draft11 is the format of the fields RateLimit and RateLimit-Policy in
// draft-ietf-httpapi-ratelimit-headers-11.
const draft11 = "Draft11"

// quota is what a client is told of one limit.
type quota struct {
	// name is the policy's name and the limit's, as in checkout-api/per-customer.
	name      string
	limit     limiter.Limit
	remaining int64
	reset     time.Duration
}

// quotasOf gives the limits that a decision rests on, of the policies that tell. Shadow limits are not
// told: a client would obey them.
func quotasOf(m *match.Matcher, d limiter.Decision) []quota {
	var quotas []quota
	for i, v := range d.Verdicts {
		h := d.Hits[i]
		if h.Shadow || !slices.Contains(m.Response(h.ID).Headers, draft11) {
			continue
		}
		// The verdict is from before the wait.
		reset := max(0, v.ResetAfter-d.Waited)
		quotas = addQuota(quotas, quota{name: nameOf(h.ID), limit: h.Limit, remaining: v.Remaining, reset: reset})
	}
	return quotas
}

// addQuota adds q. Of one limit, counted for several targets, it keeps the target with the least left.
func addQuota(quotas []quota, q quota) []quota {
	i := slices.IndexFunc(quotas, func(o quota) bool { return o.name == q.name })
	if i < 0 {
		return append(quotas, q)
	}
	if q.remaining < quotas[i].remaining {
		quotas[i] = q
	}
	return quotas
}

// nameOf names a limit to clients. A slash is in neither part.
func nameOf(id limiter.LimitID) string { return id.Policy + "/" + id.Limit }

// writeQuotas adds one line of each field. What the application says in lines of its own stays as it is:
// to clients the lines of a field are one list.
func writeQuotas(h http.Header, quotas []quota) {
	if len(quotas) == 0 {
		return
	}
	var policies, states httpsfv.List
	for _, q := range quotas {
		policies = append(policies, q.policy())
		states = append(states, q.state())
	}
	addField(h, "Ratelimit-Policy", policies)
	addField(h, "Ratelimit", states)
}

// policy says how much is allowed: "checkout-api/per-customer";q=100;w=60. Of requests under way at a time it is
// "checkout-api/at-a-time";q=5;qu="concurrent-requests", which has no window.
func (q quota) policy() httpsfv.Item {
	item := httpsfv.NewItem(q.name)
	item.Params.Add("q", min(q.limit.Requests, maxInteger))
	if q.concurrent() {
		item.Params.Add("qu", "concurrent-requests")
		return item
	}
	// w counts whole seconds, and is one number for all windows. One that doesn't, and days or months that aren't
	// all as long, are better left out than told wrong.
	if q.limit.Window > 0 && q.limit.Window%time.Second == 0 {
		item.Params.Add("w", int64(q.limit.Window/time.Second))
	}
	return item
}

// state says how much is left, and for how long: "checkout-api/per-customer";r=99;t=42. When requests under way will
// be over nobody knows, so of these it has no t.
func (q quota) state() httpsfv.Item {
	item := httpsfv.NewItem(q.name)
	item.Params.Add("r", min(q.remaining, maxInteger))
	if !q.concurrent() {
		item.Params.Add("t", seconds(q.reset))
	}
	return item
}

func (q quota) concurrent() bool { return q.limit.Algorithm == limiter.Concurrency }

// maxInteger is the largest integer that a structured field holds.
const maxInteger = 999_999_999_999_999

// addField leaves a field out that can't be encoded: names of Kubernetes objects always can.
func addField(h http.Header, name string, list httpsfv.List) {
	if value, err := httpsfv.Marshal(list); err == nil {
		h[name] = append(h[name], value)
	}
}

// seconds rounds up, so that nobody who obeys comes too early.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

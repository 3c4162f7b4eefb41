// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/match"
)

// Problem types, as draft-ietf-httpapi-ratelimit-headers-11 registers them.
const (
	quotaExceeded   = "https://iana.org/assignments/http-problem-types#quota-exceeded"
	reducedCapacity = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"
	// blank is the type of a problem that says no more than its status.
	blank = "about:blank"
)

// problem is an RFC 9457 problem.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	// Violated names the limits that refused as the RateLimit fields do.
	Violated []string `json:"violated-policies,omitempty"`
}

// refusal is what a client gets instead of the application's response.
type refusal struct {
	problem
	// retryAfter is how long to wait, [limiter.Never], or 0 when there is nothing to say of it.
	retryAfter time.Duration
	quotas     []quota
	// bare refusals have no body.
	bare bool
	// grpc is the status that gRPC clients get.
	grpc grpcStatus
}

// retryWhenStoreIsBack is the wait that clients are told while limits can't be counted.
const retryWhenStoreIsBack = time.Second

// refusalOf tells a client of a decision that doesn't allow its request.
func refusalOf(m *match.Matcher, d limiter.Decision, h http.Header) refusal {
	switch {
	case d.Err != nil:
		return notCounted(m, d)
	case d.By.Deny:
		return notIdentified(m, d, h)
	}
	return overLimit(m, d)
}

func overLimit(m *match.Matcher, d limiter.Decision) refusal {
	told := m.Response(d.By.ID)
	return refusal{
		problem: problem{
			Type:     quotaExceeded,
			Title:    "Request cannot be satisfied as assigned quota has been exceeded",
			Status:   cmp.Or(told.StatusCode, http.StatusTooManyRequests),
			Detail:   fmt.Sprintf("%s admits %s; %s.", describe(d.By.ID), rate(d.By.Limit), advice(d.RetryAfter)),
			Violated: violated(d),
		},
		retryAfter: d.RetryAfter,
		quotas:     quotasOf(m, d),
		bare:       bare(told),
		grpc:       grpcResourceExhausted,
	}
}

// notIdentified refuses a request that lacks what its key is made of.
func notIdentified(m *match.Matcher, d limiter.Decision, h http.Header) refusal {
	told := m.Response(d.By.ID)
	status := cmp.Or(told.StatusCode, http.StatusTooManyRequests)
	return refusal{
		problem: problem{
			Type:     blank,
			Title:    http.StatusText(status),
			Status:   status,
			Detail:   fmt.Sprintf("%s needs %s, which the request lacks.", describe(d.By.ID), missing(m, d.By.ID, h)),
			Violated: []string{nameOf(d.By.ID)},
		},
		bare: bare(told),
		grpc: grpcResourceExhausted,
	}
}

// notCounted refuses a request under a limit that fails closed.
func notCounted(m *match.Matcher, d limiter.Decision) refusal {
	return refusal{
		problem: problem{
			Type:   reducedCapacity,
			Title:  "Request cannot be satisfied due to temporary server capacity constraints",
			Status: http.StatusServiceUnavailable,
			Detail: describe(d.By.ID) + " can't be counted at the moment, and admits nothing meanwhile; try again in 1 second.",
		},
		retryAfter: retryWhenStoreIsBack,
		bare:       bare(m.Response(d.By.ID)),
		grpc:       grpcUnavailable,
	}
}

// noLimitsYet refuses a request before limits are known, where that is wanted.
func noLimitsYet() refusal {
	return refusal{
		problem: problem{
			Type:   reducedCapacity,
			Title:  "Request cannot be satisfied due to temporary server capacity constraints",
			Status: http.StatusServiceUnavailable,
			Detail: "No limits have been loaded yet; try again in 1 second.",
		},
		retryAfter: retryWhenStoreIsBack,
		grpc:       grpcUnavailable,
	}
}

func notTunneled() refusal {
	return plain(http.StatusNotImplemented, "CONNECT is not forwarded.", grpcUnimplemented)
}

func brokenPreface() refusal {
	return plain(http.StatusBadRequest, "PRI begins a connection of HTTP/2, and is no method.", grpcInternal)
}

func fragment() refusal {
	return plain(http.StatusBadRequest, "The request's target has a fragment. Send %23 for a # in the path or the query.", grpcInternal)
}

func malformedBody() refusal {
	return plain(http.StatusBadRequest, "The body of the request is malformed.", grpcInternal)
}

func upstreamFailure(status int) refusal {
	if status == http.StatusGatewayTimeout {
		return plain(status, "The application behind this proxy did not answer in time. No rate limit refused the request.", grpcUnavailable)
	}
	return plain(status, "The application behind this proxy refused the connection or broke it off. No rate limit refused the request.", grpcUnavailable)
}

func plain(status int, detail string, code grpcStatus) refusal {
	return refusal{
		problem: problem{Type: blank, Title: http.StatusText(status), Status: status, Detail: detail},
		grpc:    code,
	}
}

// answer answers a request whose body nobody reads.
func (f refusal) answer(w http.ResponseWriter, r *http.Request) {
	hurry(w, r)
	f.write(w, r)
	linger(w, r)
}

// write writes the refusal in the language of the request.
func (f refusal) write(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	writeQuotas(h, f.quotas)
	if isGRPC(r.Header) {
		f.writeGRPC(w, r.Header.Get("Content-Type"))
		return
	}
	if f.retryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(seconds(f.retryAfter), 10))
	}
	if f.bare {
		h.Set("Content-Length", "0")
		w.WriteHeader(f.Status)
		return
	}
	// Strings and integers always have a JSON form.
	body, _ := json.Marshal(f.problem)
	h.Set("Content-Type", "application/problem+json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(f.Status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // A client that is gone misses nothing.
	}
}

func bare(r match.Response) bool { return r.Body == "None" }

// describe names a limit at the start of a sentence.
func describe(id limiter.LimitID) string {
	return fmt.Sprintf("Limit %s of policy %s", id.Limit, id.Policy)
}

// rate says how much a limit admits: 100 requests per 1m. A leaky bucket refuses the second one too, if it
// comes too soon, or lets it wait.
func rate(l limiter.Limit) string {
	if l.Algorithm == limiter.Concurrency {
		return requests(l.Requests) + " at a time"
	}
	s := requests(l.Requests) + " per " + window(l)
	if l.Requests > 1 && (l.Algorithm == limiter.LeakyBucketMeter || l.Algorithm == limiter.LeakyBucketQueue) {
		s += ", evenly spaced"
	}
	if l.Algorithm == limiter.LeakyBucketQueue {
		s += ", and lets " + waiting(l.MaxQueue) + " wait for up to " + short(l.MaxDelay)
	}
	return s
}

func requests(n int64) string {
	if n == 1 {
		return "1 request"
	}
	return fmt.Sprintf("%d requests", n)
}

func window(l limiter.Limit) string {
	if l.Algorithm == limiter.CalendarWindow {
		return strings.ToLower(string(l.Calendar.Unit)) + " in " + l.Calendar.TimeZone
	}
	return short(l.Window)
}

// waiting says how many others can wait. 0 is as many as have their turn in time.
func waiting(n int64) string {
	if n == 0 {
		return "others"
	}
	return fmt.Sprintf("up to %d others", n)
}

// short is a duration as people write it: 1m, not 1m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-len("0s")]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-len("0m")]
	}
	return s
}

func advice(wait time.Duration) string {
	if wait == limiter.Never {
		return "this request costs more than that at once, however long it waits"
	}
	if n := seconds(wait); n > 1 {
		return fmt.Sprintf("try again in %d seconds", n)
	}
	return "try again in 1 second"
}

// violated names the limits that refused, each once.
func violated(d limiter.Decision) []string {
	var names []string
	for i, v := range d.Verdicts {
		name := nameOf(d.Hits[i].ID)
		if !v.Allowed && !d.Hits[i].Shadow && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// missing names what the key of a limit needs and the request doesn't have.
func missing(m *match.Matcher, id limiter.LimitID, h http.Header) string {
	for _, source := range keyOf(m, id) {
		if source.OnMissing != "Deny" || source.Header == "" {
			continue
		}
		if len(h.Values(source.Header)) == 0 {
			return "header " + source.Header
		}
		if match.Ambiguous(h, source.Header) {
			return "header " + source.Header + " in a single line and spelling"
		}
	}
	return "a part of its key"
}

func keyOf(m *match.Matcher, id limiter.LimitID) []match.KeySource {
	for _, p := range m.Policies() {
		if p.Namespace != id.Namespace || p.Name != id.Policy {
			continue
		}
		for _, l := range p.Limits {
			if l.Name == id.Limit {
				return l.Key
			}
		}
	}
	return nil
}

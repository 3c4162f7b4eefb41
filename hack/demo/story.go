// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"sigs.k8s.io/yaml"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/test/playground"
)

const (
	policyName = "per-api-key"
	// burst of the policy in config/samples.
	burst = 20
	// arrivalGoal is the longest that an edit may take to reach a sidecar.
	arrivalGoal = 2 * time.Second
	// pause between the requests of the client that sends all the time.
	pause = 10 * time.Millisecond
	// phase is how long that client is watched, before the edit and after it.
	phase = 2 * time.Second
)

// edit raises the limit to 50 requests a second, which responses tell as edited.
const (
	edited = `"per-api-key/per-key";q=3000`
	edit   = `[{"op": "replace", "path": "/spec/limits/0/strategy/tokenBucket", "value": {"requests": 3000, "window": "1m", "burst": 60}}]`
)

// story is what the demo tells.
type story struct {
	*playground.Playground
}

func (s story) tell(ctx context.Context) error {
	for _, chapter := range []func(context.Context) error{s.applySamples, s.exceedLimit, s.editUnderTraffic, s.showStatus} {
		if err := chapter(ctx); err != nil {
			return err
		}
	}
	return nil
}

// applySamples applies every sample and shows the policies as soon as they are enforced.
func (s story) applySamples(ctx context.Context) error {
	title("kubectl apply -k config/samples")
	if err := s.show(ctx, "apply", "--kustomize", "config/samples"); err != nil {
		return err
	}
	if _, err := s.AwaitPolicy(ctx, policyName, 20*time.Second, ready); err != nil {
		return err
	}
	title("kubectl get weirpolicy --namespace shop")
	return s.show(ctx, "get", "weirpolicy", "--namespace", playground.Namespace)
}

// exceedLimit sends one client's requests until well over its limit.
func (s story) exceedLimit(ctx context.Context) error {
	const requests = 30
	title("Alice sends %d requests at once; her limit is 100 a minute, and %d at once", requests, burst)
	var tally playground.Tally
	var refused *playground.Response
	began := time.Now()
	for range requests {
		r, err := playground.Get(ctx, s.url(), "alice")
		if err != nil {
			return err
		}
		tally.Add(r)
		if r.Status == http.StatusTooManyRequests && refused == nil {
			refused = &r
		}
	}
	fmt.Printf("%d allowed, %d refused\n", tally.Allowed, tally.Refused)
	refilled := int(time.Since(began).Minutes()*100) + 1
	if tally.Other > 0 || tally.Allowed < burst || tally.Allowed > burst+refilled {
		return fmt.Errorf("want %d to %d allowed and the rest refused, got %+v", burst, burst+refilled, tally)
	}
	title("One of the refusals, in full")
	fmt.Printf("HTTP/1.1 %d %s\n%s\n%s\n", refused.Status, http.StatusText(refused.Status), fields(refused.Header), refused.Body)
	if refused.Header.Get("Retry-After") == "" {
		return fmt.Errorf("the refusal does not say when to retry")
	}
	return nil
}

// editUnderTraffic raises the limit while a client keeps sending, and times the edit's arrival.
func (s story) editUnderTraffic(ctx context.Context) error {
	title("Bob sends 100 requests a second, and meanwhile the limit is raised to 50 a second")
	sending, stopSending := context.WithCancel(ctx)
	defer stopSending()
	bob := &sender{url: s.url(), apiKey: "bob"}
	var group errgroup.Group
	group.Go(func() error { return bob.send(sending) })

	wait(ctx, phase)
	applied := time.Now()
	if err := s.show(ctx, "patch", "weirpolicy", "--namespace", playground.Namespace, policyName, "--type", "json", "--patch", edit); err != nil {
		return err
	}
	answered := time.Now()
	wait(ctx, phase)
	stopSending()
	if err := group.Wait(); err != nil {
		return err
	}

	arrived, ok := bob.firstTold(edited)
	if !ok {
		return fmt.Errorf("no response shows the new limit %s after the edit", phase)
	}
	before, after := bob.between(applied.Add(-phase), applied), bob.between(arrived, arrived.Add(phase))
	fmt.Printf("before: %3d allowed, %3d refused\n", before.Allowed, before.Refused)
	fmt.Printf("after:  %3d allowed, %3d refused\n", after.Allowed, after.Refused)
	fmt.Printf("The first response under the new limit came %s after kubectl was called, which itself took %s.\n",
		arrived.Sub(applied).Round(time.Millisecond), answered.Sub(applied).Round(time.Millisecond))
	switch {
	case before.Other+after.Other > 0:
		return fmt.Errorf("some answers were neither allowed nor refused: %+v before, %+v after", before, after)
	case after.Allowed <= before.Allowed || before.Refused == 0:
		return fmt.Errorf("the edit had no effect: %+v before, %+v after", before, after)
	case arrived.Sub(answered) > arrivalGoal:
		return fmt.Errorf("the edit arrived %s after kubectl was done, later than %s", arrived.Sub(answered), arrivalGoal)
	}
	return nil
}

// showStatus shows what has come back onto the object.
func (s story) showStatus(ctx context.Context) error {
	title("What has come back onto the object")
	p, err := s.AwaitPolicy(ctx, policyName, 30*time.Second, func(p *v1alpha1.RateLimitPolicy) bool {
		return ready(p) && p.Generation == 2 && len(p.Status.Limits) == 1 && p.Status.Limits[0].Denied > 0 && p.Status.Limits[0].Allowed > burst
	})
	if err != nil {
		return err
	}
	status, err := yaml.Marshal(map[string]any{"status": p.Status})
	if err != nil {
		return fmt.Errorf("printing the status: %w", err)
	}
	fmt.Print(string(status))
	title("kubectl events --namespace shop --for weirpolicy/%s", policyName)
	if err := s.show(ctx, "events", "--namespace", playground.Namespace, "--for", "ratelimitpolicies.ratelimit.weir.dev/"+policyName); err != nil {
		return err
	}
	title("kubectl get weirpolicy --namespace shop")
	return s.show(ctx, "get", "weirpolicy", "--namespace", playground.Namespace)
}

func (s story) url() string { return s.Sidecars[0].URL + "/api/orders" }

// show runs kubectl and prints what it says.
func (s story) show(ctx context.Context, args ...string) error {
	out, err := s.Kubectl(ctx, args...)
	fmt.Print(out)
	return err
}

func ready(p *v1alpha1.RateLimitPolicy) bool { return playground.IsReady(p, 1) }

// sender is a client that sends all the time.
type sender struct {
	url, apiKey string
	responses   []playground.Response
}

// send sends until ctx is done.
func (s *sender) send(ctx context.Context) error {
	for ctx.Err() == nil {
		r, err := playground.Get(context.WithoutCancel(ctx), s.url, s.apiKey)
		if err != nil {
			return err
		}
		s.responses = append(s.responses, r)
		wait(ctx, pause)
	}
	return nil
}

// firstTold gives the time of the first response that tells of this limit.
func (s *sender) firstTold(limit string) (time.Time, bool) {
	for _, r := range s.responses {
		if strings.Contains(r.Header.Get("RateLimit-Policy"), limit) {
			return r.At, true
		}
	}
	return time.Time{}, false
}

// between counts the responses that came in a time.
func (s *sender) between(from, to time.Time) playground.Tally {
	var t playground.Tally
	for _, r := range s.responses {
		if !r.At.Before(from) && r.At.Before(to) {
			t.Add(r)
		}
	}
	return t
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// fields gives header fields as they would be read off the wire.
func fields(h http.Header) string {
	var b strings.Builder
	_ = h.Write(&b) // A strings.Builder takes everything.
	return strings.ReplaceAll(b.String(), "\r\n", "\n")
}

// SPDX-License-Identifier: Apache-2.0

// Package playground runs all of Weir on this machine: an API server, Redis, the manager, and sidecars in
// front of an example application. The demo and the end-to-end tests play in it.
package playground

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/redistest"
	"github.com/weir-dev/weir/test/controlplane"
)

//go:embed shop.yaml
var manifests embed.FS

// Namespace is where the example application is.
const Namespace = "shop"

// instance keeps the playground's keys apart in Redis, which it has to itself anyway.
const instance = "playground"

// Options says what to run.
type Options struct {
	// Binaries is the folder of weir-manager and weir-sidecar.
	Binaries string
	// Dir is an existing folder for logs and files.
	Dir string
	// Sidecars is how many enforcers to run. Each is in front of the same application.
	Sidecars int
	// ManagerFlags are given to each manager, beside those that it needs.
	ManagerFlags []string
	// AuditLog is the file that tells of every request to the API server. Empty is none.
	AuditLog string
	// Progress is told what is being started. Nil is nobody.
	Progress func(what string)
}

// Playground is what runs. Its processes can be stopped and started one by one.
type Playground struct {
	ControlPlane *controlplane.ControlPlane
	// Kubeconfig is the path of an administrator's.
	Kubeconfig string
	Redis      *redistest.Server
	Manager    *Manager
	Sidecars   []*Sidecar

	app *http.Server
}

// Start starts everything, and returns when requests can be sent. The caller must Stop it, also after an
// error.
func Start(ctx context.Context, o Options) (*Playground, error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	p := &Playground{}
	for _, step := range []struct {
		what string
		run  func(context.Context, Options) error
	}{
		{"the API server, with etcd", p.startControlPlane},
		{"Redis", p.startRedis},
		{"an example application", p.startApplication},
		{"the manager", p.startManager},
		{"the sidecar in front of the application", p.startSidecars},
	} {
		o.Progress(step.what)
		if err := step.run(ctx, o); err != nil {
			return p, fmt.Errorf("starting %s: %w", step.what, err)
		}
	}
	return p, nil
}

// Stop ends everything that Start started, the clients of a thing before the thing itself.
func (p *Playground) Stop() error {
	var errs []error
	for _, s := range p.Sidecars {
		errs = append(errs, s.Stop())
	}
	if p.Manager != nil {
		errs = append(errs, p.Manager.Stop())
	}
	if p.app != nil {
		errs = append(errs, p.app.Close())
	}
	if p.Redis != nil {
		p.Redis.Kill()
	}
	if p.ControlPlane != nil {
		errs = append(errs, p.ControlPlane.Stop())
	}
	return errors.Join(errs...)
}

// Kubectl runs kubectl as an administrator and gives what it prints. Its error holds what it complains of.
func (p *Playground) Kubectl(ctx context.Context, args ...string) (string, error) {
	return p.KubectlWith(ctx, "", args...)
}

// KubectlWith is Kubectl with a standard input.
func (p *Playground) KubectlWith(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, p.ControlPlane.Kubectl, args...) //nolint:gosec // kubectl, with our own arguments.
	cmd.Env = append(os.Environ(), "KUBECONFIG="+p.Kubeconfig)
	cmd.Stdin = strings.NewReader(stdin)
	var out, complaint strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return out.String(), nil
}

func (p *Playground) startControlPlane(ctx context.Context, o Options) error {
	var err error
	if p.ControlPlane, err = controlplane.StartWith(controlplane.Options{AuditLog: o.AuditLog}); err != nil {
		return err
	}
	p.Kubeconfig = filepath.Join(o.Dir, "kubeconfig")
	if err := os.WriteFile(p.Kubeconfig, p.ControlPlane.Kubeconfig, 0o600); err != nil {
		return fmt.Errorf("writing the kubeconfig: %w", err)
	}
	shop, err := manifests.ReadFile("shop.yaml")
	if err != nil {
		return fmt.Errorf("reading the shop's manifests: %w", err)
	}
	_, err = p.KubectlWith(ctx, string(shop), "apply", "-f", "-")
	return err
}

func (p *Playground) startRedis(_ context.Context, o Options) error {
	var err error
	p.Redis, err = redistest.Launch(o.Dir)
	return err
}

// startApplication serves something to limit.
func (p *Playground) startApplication(ctx context.Context, _ Options) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	p.app = &http.Server{
		Addr:              listener.Addr().String(),
		ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprintf(w, "checkout: %s %s\n", r.Method, r.URL.Path)
		}),
	}
	go func() { _ = p.app.Serve(listener) }() // Ends with Stop.
	return nil
}

// startManager installs Weir as kustomize would, and runs the manager. Of the Deployment nothing comes: there is no
// kubelet.
func (p *Playground) startManager(ctx context.Context, o Options) error {
	if _, err := p.Kubectl(ctx, "apply", "--kustomize", filepath.Join(p.ControlPlane.Root, "config", "default")); err != nil {
		return err
	}
	var err error
	if p.Manager, err = p.NewManager(ctx, o, "manager", p.Kubeconfig); err != nil {
		return err
	}
	if err := p.Manager.Start(); err != nil {
		return err
	}
	// It is ready when it has made its certificate, and had the API server trust it.
	if err := await(ctx, p.Manager.Process, func(ctx context.Context) bool { return ok(ctx, p.Manager.Health+"/readyz") }); err != nil {
		return err
	}
	// Without nodes no Service leads anywhere: the API server would ask in vain.
	_, err = p.Kubectl(ctx, "delete", "mutatingwebhookconfigurations/weir-policies", "mutatingwebhookconfigurations/weir-pods", "validatingwebhookconfigurations/weir-policies")
	return err
}

// impersonate writes a kubeconfig that is another's, but for the user that it acts as.
func impersonate(kubeconfig, user, path string) error {
	c, err := clientcmd.LoadFromFile(kubeconfig)
	if err != nil {
		return fmt.Errorf("reading the kubeconfig: %w", err)
	}
	for _, a := range c.AuthInfos {
		a.Impersonate = user
	}
	if err := clientcmd.WriteToFile(*c, path); err != nil {
		return fmt.Errorf("writing the manager's kubeconfig: %w", err)
	}
	return nil
}

func (p *Playground) startSidecars(ctx context.Context, o Options) error {
	labels := filepath.Join(o.Dir, "labels")
	if err := os.WriteFile(labels, []byte("app=\"checkout\"\n"), 0o600); err != nil {
		return fmt.Errorf("writing the pod's labels: %w", err)
	}
	for i := range o.Sidecars {
		name := fmt.Sprintf("checkout-%d", i)
		state := filepath.Join(o.Dir, name)
		if err := os.MkdirAll(state, 0o700); err != nil {
			return fmt.Errorf("making the sidecar's state folder: %w", err)
		}
		s := NewSidecar(o, name, "http://"+p.app.Addr,
			"--namespace", Namespace, "--pod-labels-file", labels, "--state-dir", state,
			"--redis", p.Redis.URL(), "--instance", instance)
		p.Sidecars = append(p.Sidecars, s)
		if err := s.Start(ctx); err != nil {
			return err
		}
	}
	return nil
}

// await waits until a process of ours is ready.
func await(ctx context.Context, p *Process, ready func(context.Context) bool) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		if ready(ctx) {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("it ended at once; its log is %s", p.Log)
		case <-ctx.Done():
			return fmt.Errorf("it does not get ready; its log is %s", p.Log)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ok says whether a URL answers 200.
func ok(ctx context.Context, url string) bool {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return false
	}
	_, _ = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// freeAddress gives an address on loopback that nobody listens on now.
func freeAddress(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("finding a port: %w", err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String(), nil
}

// Policy gives a policy of the example application's namespace as it is now.
func (p *Playground) Policy(ctx context.Context, name string) (*v1alpha1.RateLimitPolicy, error) {
	out, err := p.Kubectl(ctx, "get", "--namespace", Namespace, "ratelimitpolicies.ratelimit.weir.dev", name, "--output", "json")
	if err != nil {
		return nil, err
	}
	var policy v1alpha1.RateLimitPolicy
	if err := json.Unmarshal([]byte(out), &policy); err != nil {
		return nil, fmt.Errorf("reading policy %s: %w", name, err)
	}
	return &policy, nil
}

// AwaitPolicy gives a policy as soon as it is as wanted. If that takes too long the error says how it is.
func (p *Playground) AwaitPolicy(ctx context.Context, name string, patience time.Duration, wanted func(*v1alpha1.RateLimitPolicy) bool) (*v1alpha1.RateLimitPolicy, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		policy, err := p.Policy(ctx, name)
		if err == nil && wanted(policy) {
			return policy, nil
		}
		select {
		case <-ctx.Done():
			out, _ := p.Kubectl(context.WithoutCancel(ctx), "get", "--namespace", Namespace, "ratelimitpolicies.ratelimit.weir.dev", name, "--output", "yaml")
			return nil, fmt.Errorf("policy %s is not as wanted after %s:\n%s", name, patience, out)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// IsReady says whether a policy's present generation is enforced by so many sidecars.
func IsReady(p *v1alpha1.RateLimitPolicy, enforcers int) bool {
	return p.Status.ObservedGeneration == p.Generation &&
		meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionReady) &&
		p.Status.Enforcers != nil && p.Status.Enforcers.Current == int32(enforcers)
}

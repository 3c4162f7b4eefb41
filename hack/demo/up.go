// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/weir-dev/weir/hack/keep"
	"github.com/weir-dev/weir/test/playground"
)

// up starts a playground that outlives this process, and says what to do with it.
func up(ctx context.Context) error {
	k, err := keeper()
	if err != nil {
		return err
	}
	fmt.Println("Starting an API server, Redis, the manager, an application and a sidecar in front of it...")
	return k.Up(ctx, "serve")
}

// serve is the process that up leaves behind: it keeps a playground until it is told to end.
func serve(ctx context.Context) error {
	k, err := keeper()
	if err != nil {
		return err
	}
	p, err := playground.Start(ctx, options(k.Dir))
	if err == nil {
		err = settle(ctx, p)
	}
	if err == nil {
		err = k.Welcome(welcome(p))
	}
	if err == nil {
		<-ctx.Done()
	}
	return errors.Join(err, p.Stop())
}

// settle applies the samples.
func settle(ctx context.Context, p *playground.Playground) error {
	if _, err := p.Kubectl(ctx, "apply", "--kustomize", "config/samples"); err != nil {
		return err
	}
	_, err := p.AwaitPolicy(ctx, policyName, 20*time.Second, ready)
	return err
}

func welcome(p *playground.Playground) string {
	s := p.Sidecars[0]
	environment := "export KUBECONFIG=" + p.Kubeconfig
	if _, err := exec.LookPath("kubectl"); err != nil {
		environment += "\n  export PATH=$PATH:" + filepath.Dir(p.ControlPlane.Kubectl)
	}
	return strings.NewReplacer("ENVIRONMENT", environment, "SIDECAR", s.URL, "ADMIN", s.Admin).Replace(`
Weir is up. Next:

  ENVIRONMENT
  kubectl get weirpolicy --namespace shop

  # 30 requests of one client; its limit is 100 a minute and 20 at once
  for i in $(seq 30); do curl -s -o /dev/null -w '%{http_code}\n' -H 'x-api-key: me' SIDECAR/api/orders; done | sort | uniq -c
  curl -i -H 'x-api-key: me' SIDECAR/api/orders

  # change the limit and look again
  kubectl edit weirpolicy --namespace shop per-api-key
  kubectl describe weirpolicy --namespace shop per-api-key

  curl -s ADMIN/debug/snapshot        # what the sidecar enforces
  curl -s ADMIN/metrics | grep weir_

  make demo-down                      # ends it all
`)
}

// down ends what up has left running.
func down() error {
	k, err := keeper()
	if err != nil {
		return err
	}
	return k.Down()
}

// keeper keeps the playground that up starts.
func keeper() (keep.Keeper, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return keep.Keeper{}, fmt.Errorf("finding the cache folder: %w", err)
	}
	return keep.Keeper{Name: "demo", Dir: filepath.Join(cache, "weir", "demo"), Remedy: "make demo-down"}, nil
}

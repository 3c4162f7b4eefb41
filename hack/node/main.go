// SPDX-License-Identifier: Apache-2.0

// Command node runs a real Kubernetes node on this machine, to try things on.
//
//	node up [ARCHIVE...]   starts it, with the images of OCI archives in it, and leaves it running
//	node down              ends it
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/weir-dev/weir/hack/keep"
	"github.com/weir-dev/weir/test/node"
)

func main() {
	node.Boot()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	k, err := keeper()
	if err != nil {
		return err
	}
	switch {
	case len(args) > 0 && args[0] == "up":
		return up(ctx, k, args[1:])
	case len(args) > 1 && args[0] == "serve":
		return serve(ctx, k, args[1], args[2:])
	case len(args) == 1 && args[0] == "down":
		return k.Down()
	}
	return fmt.Errorf("got %q, want up [ARCHIVE...] or down", strings.Join(args, " "))
}

// up starts a node that outlives this process, after building what it is made of.
func up(ctx context.Context, k keep.Keeper, archives []string) error {
	tools, err := node.Tools(ctx, ".")
	if err != nil {
		return err
	}
	return k.Up(ctx, append([]string{"serve", tools}, archives...)...)
}

// serve is the process that up leaves behind: it keeps a node until it is told to end.
func serve(ctx context.Context, k keep.Keeper, tools string, archives []string) error {
	began := time.Now()
	dir := nodeDir(k)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("making a folder: %w", err)
	}
	n, err := node.Start(ctx, node.Options{Dir: dir, Tools: tools, Progress: func(what string) {
		fmt.Printf("%5.1f s  %s\n", time.Since(began).Seconds(), what)
	}})
	for _, archive := range archives {
		if err == nil {
			err = n.LoadFile(ctx, archive)
		}
	}
	if err == nil {
		err = k.Welcome(welcome(n, time.Since(began)))
	}
	if err == nil {
		select {
		case <-ctx.Done():
		case <-n.Ended():
			err = n.Err()
		}
	}
	return errors.Join(err, n.Stop())
}

func welcome(n *node.Node, took time.Duration) string {
	return fmt.Sprintf(`%5.1f s  ready

  export KUBECONFIG=%s
  kubectl get pods --all-namespaces
  make node-down      # ends it all
`, took.Seconds(), n.Kubeconfig)
}

// keeper keeps the node that up starts.
func keeper() (keep.Keeper, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return keep.Keeper{}, fmt.Errorf("finding the cache folder: %w", err)
	}
	k := keep.Keeper{Name: "node", Dir: filepath.Join(cache, "weir", "node"), Remedy: "make node-down"}
	k.Clean = func() error { return node.Clean(nodeDir(k)) }
	return k, nil
}

// nodeDir is not the keeper's own folder, whose node is the keeper's program.
func nodeDir(k keep.Keeper) string { return filepath.Join(k.Dir, "state") }

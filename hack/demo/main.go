// SPDX-License-Identifier: Apache-2.0

// Command demo shows Weir's main job from end to end on this machine, and fails if anything is not as it
// should be. With up it leaves everything running to play with, until down.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/weir-dev/weir/test/playground"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return demo(ctx)
	}
	switch args[0] {
	case "up":
		return up(ctx)
	case "serve":
		return serve(ctx)
	case "down":
		return down()
	}
	return fmt.Errorf("unknown command %q: want up, down or nothing", args[0])
}

// demo runs the story in a playground of its own, and clears it away.
func demo(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "weir-demo-")
	if err != nil {
		return fmt.Errorf("making a folder: %w", err)
	}
	began := time.Now()
	title("Starting, all on this machine's loopback")
	p, err := playground.Start(ctx, options(dir))
	defer func() {
		title("Cleaning up")
		err = errors.Join(err, p.Stop())
		if err != nil {
			fmt.Printf("The logs are in %s\n", dir)
			return
		}
		err = os.RemoveAll(dir)
		fmt.Printf("Done in %s.\n", time.Since(began).Round(time.Second))
	}()
	if err != nil {
		return err
	}
	return story{p}.tell(ctx)
}

func options(dir string) playground.Options {
	return playground.Options{
		Binaries: filepath.Join("bin"),
		Dir:      dir,
		Sidecars: 1,
		Progress: func(what string) { fmt.Println("  starting", what) },
	}
}

func title(format string, args ...any) {
	fmt.Printf("\n== "+format+"\n", args...)
}

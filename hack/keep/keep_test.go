// SPDX-License-Identifier: Apache-2.0

package keep_test

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/weir-dev/weir/hack/keep"
)

// TestMain is also the process that a test leaves running.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "serve" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM) //nolint:forbidigo // This is no test.
		defer stop()
		if err := (keep.Keeper{Dir: os.Args[2]}).Welcome("welcome\n"); err != nil {
			panic(err)
		}
		<-ctx.Done()
		return
	}
	if len(os.Args) == 2 && os.Args[1] == "fail" {
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestUpAndDown(t *testing.T) {
	k := keeper(t)
	cleaned := 0
	k.Clean = func() error { cleaned++; return nil }
	if err := k.Up(t.Context(), "serve", k.Dir); err != nil {
		t.Fatal(err)
	}

	t.Run("a second one is refused", func(t *testing.T) {
		err := k.Up(t.Context(), "serve", k.Dir)
		if err == nil || !strings.Contains(err.Error(), "the kept is up already") || !strings.Contains(err.Error(), "make kept-down ends it") {
			t.Errorf("got %v", err)
		}
	})

	t.Run("nothing is left after it is down", func(t *testing.T) {
		if err := k.Down(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(k.Dir); !os.IsNotExist(err) {
			t.Errorf("its folder: got %v, want it gone", err)
		}
		if cleaned != 2 {
			t.Errorf("cleared up %d times, want before and after", cleaned)
		}
	})

	t.Run("to end it again is fine", func(t *testing.T) {
		if err := k.Down(); err != nil {
			t.Error(err)
		}
	})
}

func TestAProcessThatEndsIsTold(t *testing.T) {
	err := keeper(t).Up(t.Context(), "fail")
	if err == nil || !strings.Contains(err.Error(), "the kept ended (exit status 1)") {
		t.Errorf("got %v", err)
	}
}

func keeper(t *testing.T) keep.Keeper {
	t.Helper()
	k := keep.Keeper{Name: "kept", Dir: filepath.Join(t.TempDir(), "kept"), Remedy: "make kept-down"}
	t.Cleanup(func() { _ = k.Down() })
	return k
}

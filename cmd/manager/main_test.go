// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBadFlagsAreToldByName(t *testing.T) {
	for name, test := range map[string]struct{ args, want string }{
		"no Redis":           {"", "--redis is required: the URL of the Redis to publish to, like redis://weir-redis:6379"},
		"an unknown flag":    {"--redis redis://r --rediss", "flag provided but not defined: -rediss"},
		"a bad level":        {"--redis redis://r --log-level loud", `invalid value "loud" for flag -log-level: unrecognized level: "loud"`},
		"a stray argument":   {"--redis redis://r up", `unexpected argument "up"`},
		"no such port":       {"--redis redis://r --webhook-port 70000", "--webhook-port must be from 0 to 65535, not 70000"},
		"nobody to ask":      {"--redis redis://r --config-dir d", "--config-dir goes with --webhook-port only: the API server has to ask about pods"},
		"nobody to serve":    {"--redis redis://r --webhook-cert-dir d", "--webhook-cert-dir goes with --webhook-port only: it is what is served there"},
		"users twice":        {"--redis redis://r --redis-users u --redis-credentials d", "--redis-users excludes --redis-credentials and --sidecar-redis-credentials: it makes the users that these are given"},
		"a bad instance":     {"--redis redis://r --instance {a}", `--instance: must be 1 to 63 letters, digits, dots, underscores or hyphens, not "{a}"`},
		"a bad Redis URL":    {"--redis http://r", `--redis: opening Redis: the scheme must be redis, rediss or unix, or one of redis and rediss with +sentinel or +cluster, not "http"`},
		"a bad config Redis": {"--redis redis://r --config-redis r:6379", `--config-redis: opening Redis: the scheme must be redis, rediss or unix, or one of redis and rediss with +sentinel or +cluster, not "r:6379"`},
	} {
		t.Run(name, func(t *testing.T) {
			var stderr strings.Builder
			err := run(t.Context(), strings.Fields(test.args), t.Output(), &stderr)
			if !errors.As(err, new(usageError)) {
				t.Fatalf("run returned %v, which is no fault in the flags", err)
			}
			if diff := cmp.Diff(test.want+" (see weir-manager -h)", err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if stderr.Len() > 0 {
				t.Errorf("it was told twice: %s", stderr.String())
			}
		})
	}
}

func TestTheKubernetesAPIIsLookedForLast(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	t.Setenv("KUBECONFIG", missing) // Or that of whoever runs the tests would be found.
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Run("without one, the flag is named", func(t *testing.T) {
		err := run(t.Context(), []string{"--redis", "redis://r"}, t.Output(), t.Output())
		if !errors.As(err, new(usageError)) || !strings.HasPrefix(err.Error(), "--kubeconfig is required outside a cluster") {
			t.Errorf("run returned %v", err)
		}
	})
	t.Run("a file that isn't there is named", func(t *testing.T) {
		err := run(t.Context(), []string{"--redis", "redis://r", "--kubeconfig", missing}, t.Output(), t.Output())
		if err == nil || !strings.Contains(err.Error(), missing) {
			t.Errorf("run returned %v", err)
		}
	})
}

func TestHelpIsNoFailure(t *testing.T) {
	var help strings.Builder
	if err := run(t.Context(), []string{"-h"}, &help, t.Output()); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("got %v, want %v", err, flag.ErrHelp)
	}
	for _, part := range []string{"weir-manager compiles", "-redis URL", "-kubeconfig file"} {
		if !strings.Contains(help.String(), part) {
			t.Errorf("the help lacks %q:\n%s", part, help.String())
		}
	}
}

func TestVersionIsAllThatItPrints(t *testing.T) {
	var stdout, stderr strings.Builder
	if err := run(t.Context(), []string{"--version"}, &stdout, &stderr); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff("weir-manager dev\n", stdout.String()+stderr.String()); diff != "" {
		t.Errorf("printed (-want +got):\n%s", diff)
	}
}

func TestSidecarsNeverLogInAsTheManager(t *testing.T) {
	folder := func(username string) string {
		t.Helper()
		dir := t.TempDir()
		for name, content := range map[string]string{"username": username, "password": "secret"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	o := options{redisCredentials: folder("weir-manager\n"), sidecarCredentials: folder("weir-sidecar")}
	t.Run("another user is fine", func(t *testing.T) {
		got, err := o.credentialsForSidecars(nil)()
		if err != nil {
			t.Fatal(err)
		}
		want := map[string][]byte{"username": []byte("weir-sidecar"), "password": []byte("secret")}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("files (-want +got):\n%s", diff)
		}
	})
	t.Run("the same user is refused", func(t *testing.T) {
		o.sidecarCredentials = folder("weir-manager")
		if got, err := o.credentialsForSidecars(nil)(); err == nil {
			t.Errorf("got %q", got)
		}
	})
}

// SPDX-License-Identifier: Apache-2.0

// Package e2e proves the whole way, on the shipped binaries: kubectl, a real API server, the manager, a
// real Redis, two sidecars, and real HTTP traffic.
package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/test/playground"
)

const (
	// sidecars of the application.
	sidecars = 2
	// patience is for what has no stated bound.
	patience = 30 * time.Second
)

// weir is the one playground of all tests. They run one after another, and each clears away its policies. The
// options are those that it was started with.
var (
	weir    *playground.Playground
	options playground.Options
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "weir-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx := context.Background() //nolint:forbidigo // No test runs yet.
	build := exec.CommandContext(ctx, "go", "build", "-o", dir, "../../cmd/manager", "../../cmd/sidecar")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the binaries: %v\n%s", err, out)
		return 1
	}
	for from, to := range map[string]string{"manager": "weir-manager", "sidecar": "weir-sidecar"} {
		if err := os.Rename(dir+"/"+from, dir+"/"+to); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	// Namespaces that opt in get what sidecars would log in with, although this Redis knows no users.
	credentials := filepath.Join(dir, "credentials")
	if err := writeCredentials(credentials); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	options = playground.Options{
		Binaries: dir, Dir: dir, Sidecars: sidecars, AuditLog: filepath.Join(dir, "audit.log"),
		ManagerFlags: []string{"--sidecar-redis-credentials", credentials},
	}
	weir, err = playground.Start(ctx, options)
	code := 1
	if err == nil {
		code = m.Run()
		err = weir.Stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if code != 0 {
		fmt.Fprintln(os.Stderr, "the logs are in", dir)
		return code
	}
	_ = os.RemoveAll(dir)
	return 0
}

func writeCredentials(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for _, name := range []string{"username", "password"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("anything"), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// apply applies a policy of this name and spec, and has it deleted, and lifted, when the test ends.
func apply(t *testing.T, name, spec string) {
	t.Helper()
	t.Cleanup(func() { remove(t, name) })
	edit(t, name, spec)
}

// edit applies another spec.
func edit(t *testing.T, name, spec string) {
	t.Helper()
	if _, err := weir.KubectlWith(t.Context(), manifest(name, spec), "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// remove deletes a policy and waits until no sidecar enforces it.
func remove(t *testing.T, name string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	if _, err := weir.Kubectl(ctx, "delete", "weirpolicy", "--namespace", playground.Namespace, name, "--ignore-not-found"); err != nil {
		t.Error(err)
	}
	for _, s := range weir.Sidecars {
		eventually(t, patience, name+" is lifted", func() bool { return enforced(t, s, name) == 0 })
	}
}

func manifest(name, spec string) string {
	return fmt.Sprintf("apiVersion: ratelimit.weir.dev/v1alpha1\nkind: RateLimitPolicy\nmetadata: {name: %s, namespace: %s}\nspec: %s\n", name, playground.Namespace, spec)
}

// enforced gives the requests of the first limit of a policy, as a sidecar says that it enforces it; 0 when
// it doesn't.
func enforced(t *testing.T, s *playground.Sidecar, name string) int64 {
	t.Helper()
	r, err := playground.Get(context.WithoutCancel(t.Context()), s.Admin+"/debug/snapshot", "")
	if err != nil {
		t.Fatal(err)
	}
	return requests(t, r.Body, name)
}

// stored is the same of the snapshot that Redis holds; 0 also when it holds none.
func stored(t *testing.T, name string) int64 {
	t.Helper()
	body, err := weir.Redis.Client(t).HGet(t.Context(), "weir:playground:{config}:"+playground.Namespace, "body").Result()
	if err != nil {
		return 0
	}
	return requests(t, body, name)
}

func requests(t *testing.T, snapshot, name string) int64 {
	t.Helper()
	var s configstore.Snapshot
	if err := json.Unmarshal([]byte(snapshot), &s); err != nil {
		t.Fatalf("reading snapshot %s: %v", snapshot, err)
	}
	for _, p := range s.Policies {
		if p.Name == name {
			return p.Limits[0].Limit.Requests
		}
	}
	return 0
}

// awaitReady waits until every sidecar enforces a policy's present generation.
func awaitReady(t *testing.T, name string) *v1alpha1.RateLimitPolicy {
	t.Helper()
	return await(t, name, func(p *v1alpha1.RateLimitPolicy) bool { return playground.IsReady(p, sidecars) })
}

func await(t *testing.T, name string, wanted func(*v1alpha1.RateLimitPolicy) bool) *v1alpha1.RateLimitPolicy {
	t.Helper()
	p, err := weir.AwaitPolicy(t.Context(), name, patience, wanted)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// send has clients send requests, all at once and evenly over the sidecars, and counts the answers.
func send(t *testing.T, clients, requestsEach int, apiKey string) playground.Tally {
	t.Helper()
	var (
		mu    sync.Mutex
		total playground.Tally
		group sync.WaitGroup
	)
	for i := range clients {
		group.Go(func() {
			for range requestsEach {
				r, err := playground.Get(t.Context(), weir.Sidecars[i%sidecars].URL, apiKey)
				mu.Lock()
				if err != nil {
					t.Error(err)
				} else {
					total.Add(r)
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	return total
}

// admitsExactly demands that so many requests are admitted from now on, and no more. When counts are lost, a
// sidecar goes on for half a second to refuse what it has been refused.
func admitsExactly(t *testing.T, limit int) {
	t.Helper()
	admitted := 0
	eventually(t, patience, fmt.Sprintf("%d requests are admitted", limit), func() bool {
		admitted += send(t, 2, 5, "").Allowed
		return admitted >= limit
	})
	if admitted += send(t, 2, 10, "").Allowed; admitted != limit {
		t.Errorf("%d requests were admitted, not %d", admitted, limit)
	}
}

// eventually waits for something to come true.
func eventually(t *testing.T, within time.Duration, what string, come func() bool) {
	t.Helper()
	for end := time.Now().Add(within); ; time.Sleep(20 * time.Millisecond) {
		if come() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", within, what)
		}
	}
}

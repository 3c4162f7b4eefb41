// SPDX-License-Identifier: Apache-2.0

package file_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/configstore/configstoretest"
	"github.com/weir-dev/weir/internal/configstore/file"
	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/match"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

// compile knows fixed windows, and refuses those of 13 requests.
func compile(p *v1alpha1.RateLimitPolicy) (match.Policy, error) {
	compiled := match.Policy{Namespace: p.Namespace, Name: p.Name}
	for i, l := range p.Spec.Limits {
		requests := int64(l.Strategy.FixedWindow.Requests)
		if requests == 13 {
			return match.Policy{}, fmt.Errorf("spec.limits[%d].strategy.fixedWindow.requests: 13 is unlucky", i)
		}
		compiled.Limits = append(compiled.Limits, match.Limit{Name: string(l.Name), Limit: limiter.Limit{Requests: requests}})
	}
	return compiled, nil
}

// policy gives a policy as YAML.
func policy(name string, requests int64) string {
	return fmt.Sprintf(`apiVersion: ratelimit.weir.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: %s}
spec:
  selector: {}
  limits:
  - name: all
    strategy: {fixedWindow: {requests: %d, window: 1m}}
`, name, requests)
}

// write replaces a file in one step, as editors do.
func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, log logr.Logger, paths ...string) *file.Watcher {
	t.Helper()
	w, err := file.NewWatcher(paths, compile, log)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestWatcher(t *testing.T) {
	t.Parallel()
	places := map[string]func(file string) string{
		"a folder": filepath.Dir,
		"a file":   func(file string) string { return file },
	}
	for name, place := range places {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			configstoretest.TestWatcher(t, func(t *testing.T) configstoretest.Watched {
				path := filepath.Join(t.TempDir(), "policies", "policies.yaml")
				put := func(policies ...configstoretest.Policy) {
					if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
						t.Fatal(err)
					}
					documents := []string{"# These are all.\n"}
					for _, p := range policies {
						documents = append(documents, policy(p.Name, p.Requests))
					}
					write(t, path, strings.Join(documents, "---\n"))
				}
				put(configstoretest.Policy{Name: "a", Requests: 1})
				return configstoretest.Watched{
					Watcher: func(log logr.Logger) configstore.Watcher { return open(t, log, place(path)) },
					Put:     put,
					Corrupt: func() { write(t, path, "{") },
					Lose: func() {
						if err := os.RemoveAll(filepath.Dir(path)); err != nil {
							t.Fatal(err)
						}
					},
				}
			})
		})
	}
}

func TestStart(t *testing.T) {
	cases := map[string]struct{ content, want string }{
		"an unknown field": {
			strings.ReplaceAll(policy("a", 1), "window:", "windw:"),
			`policies.yaml: document 1: unknown field "spec.limits[0].strategy.fixedWindow.windw"`,
		},
		"a field twice": {
			policy("a", 1) + "kind: Other\n",
			`policies.yaml: document 1: yaml: unmarshal errors:` + "\n" + `  line 9: key "kind" already set in map`,
		},
		"a wrong value": {
			policy("a", 1) + "---\n" + policy("b", 13),
			"policies.yaml: RateLimitPolicy default/b: spec.limits[0].strategy.fixedWindow.requests: 13 is unlucky",
		},
		"another kind": {
			"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n",
			`policies.yaml: document 1: it is of kind "ConfigMap" of "v1", want RateLimitPolicy of ratelimit.weir.dev/v1alpha1`,
		},
		"a kind of that name that isn't kustomize's": {
			"apiVersion: kustomize.toolkit.fluxcd.io/v1\nkind: Kustomization\nmetadata: {name: a}\n",
			`policies.yaml: document 1: it is of kind "Kustomization" of "kustomize.toolkit.fluxcd.io/v1", want RateLimitPolicy of ratelimit.weir.dev/v1alpha1`,
		},
		"another version": {
			strings.ReplaceAll(policy("a", 1), "v1alpha1", "v1"),
			`policies.yaml: document 1: it is of kind "RateLimitPolicy" of "ratelimit.weir.dev/v1", want RateLimitPolicy of ratelimit.weir.dev/v1alpha1`,
		},
		"no name": {
			strings.ReplaceAll(policy("a", 1), "name: a}", "labels: {}}"),
			"policies.yaml: document 1: metadata.name is missing",
		},
		"no YAML": {"{", "policies.yaml: document 1: yaml: line 1: did not find expected node content"},
		"nothing": {" \n", "policies.yaml: the file is empty; a file without policies must hold a comment"},
		"a policy twice": {
			policy("a", 1) + "---\n" + policy("a", 2),
			"policies.yaml: RateLimitPolicy default/a is in policies.yaml too",
		},
	}
	for name, c := range cases {
		t.Run(name+" is refused at the start", func(t *testing.T) {
			t.Chdir(t.TempDir())
			write(t, "policies.yaml", c.content)
			_, err := file.NewWatcher([]string{"policies.yaml"}, compile, testr.New(t))
			if err == nil {
				t.Fatal("NewWatcher gives no error")
			}
			if diff := cmp.Diff(c.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}

	t.Run("a missing path is refused at the start", func(t *testing.T) {
		_, err := file.NewWatcher([]string{filepath.Join(t.TempDir(), "missing")}, compile, testr.New(t))
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("NewWatcher: %v, want that it doesn't exist", err)
		}
	})

	t.Run("several paths are one snapshot, and an overlap is no trouble", func(t *testing.T) {
		folder := t.TempDir()
		one, two := filepath.Join(folder, "one.yaml"), filepath.Join(folder, "two.yml")
		write(t, one, policy("b, namespace: shop", 1)+"---\n"+policy("a, namespace: shop", 2))
		write(t, two, "# A comment.\n---\n"+policy("c", 3))
		write(t, filepath.Join(folder, "README.md"), "Not a policy.")
		write(t, filepath.Join(folder, ".hidden.yaml"), "{")
		write(t, filepath.Join(folder, "kustomization.yaml"), "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [one.yaml]\n")
		got := <-watch(t, open(t, testr.New(t), folder, one, folder+"/"))
		since := configstore.Revision{Epoch: got.Revision.Epoch, Number: 1}
		want := configstore.Snapshot{Revision: since, Policies: []configstore.Policy{
			{Policy: match.Policy{Namespace: "default", Name: "c", Limits: limits(3)}, Since: since},
			{Policy: match.Policy{Namespace: "shop", Name: "a", Limits: limits(2)}, Since: since},
			{Policy: match.Policy{Namespace: "shop", Name: "b", Limits: limits(1)}, Since: since},
		}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("snapshot (-want +got):\n%s", diff)
		}
	})
}

func limits(requests int64) []match.Limit {
	return []match.Limit{{Name: "all", Limit: limiter.Limit{Requests: requests}}}
}

// watch runs a watcher until the test ends, and gives what it applies.
func watch(t *testing.T, w *file.Watcher) <-chan configstore.Snapshot {
	t.Helper()
	applied := make(chan configstore.Snapshot, 100)
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() {
		if err := w.Watch(ctx, func(s configstore.Snapshot) { applied <- s }); err != nil {
			t.Errorf("Watch: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		run.Wait()
	})
	return applied
}

// await waits for the next snapshot, and demands that these are its policies.
func await(t *testing.T, applied <-chan configstore.Snapshot, want ...string) {
	t.Helper()
	select {
	case s := <-applied:
		var got []string
		for _, p := range s.Policies {
			got = append(got, fmt.Sprintf("%s %d since %d", p.Name, p.Limits[0].Limit.Requests, p.Since.Number))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("policies (-want +got):\n%s", diff)
		}
	case <-time.After(patience):
		t.Fatalf("no snapshot came with %v", want)
	}
}

func TestReload(t *testing.T) {
	t.Parallel()
	t.Run("one bad policy affects no other, in its file or beside it", func(t *testing.T) {
		t.Parallel()
		folder := t.TempDir()
		one, two := filepath.Join(folder, "one.yaml"), filepath.Join(folder, "two.yaml")
		write(t, one, policy("a", 1)+"---\n"+policy("b", 1))
		write(t, two, policy("c", 1)+"---\n"+policy("d", 1))
		trouble := make(chan string, 100)
		log := funcr.New(func(_, args string) { trouble <- args }, funcr.Options{})
		applied := watch(t, open(t, log, folder))
		await(t, applied, "a 1 since 1", "b 1 since 1", "c 1 since 1", "d 1 since 1")

		write(t, one, policy("a", 13)+"---\n"+policy("b", 2))
		await(t, applied, "a 1 since 1", "b 2 since 2", "c 1 since 1", "d 1 since 1")
		write(t, two, policy("c", 1))
		await(t, applied, "a 1 since 1", "b 2 since 2", "c 1 since 1")
		write(t, one, policy("a", 3)+"---\n"+policy("b", 2))
		await(t, applied, "a 3 since 4", "b 2 since 2", "c 1 since 1")

		want := fmt.Sprintf(`"msg"="keeping the last good policies" "error"=%q`,
			one+": RateLimitPolicy default/a: spec.limits[0].strategy.fixedWindow.requests: 13 is unlucky")
		if diff := cmp.Diff(want, <-trouble); diff != "" {
			t.Errorf("logged (-want +got):\n%s", diff)
		}
		if len(trouble) > 0 {
			t.Errorf("logged more: %s", <-trouble)
		}
	})

	t.Run("a deleted file takes its policies with it, within 2 s", func(t *testing.T) {
		t.Parallel()
		folder := t.TempDir()
		write(t, filepath.Join(folder, "one.yaml"), policy("a", 1))
		write(t, filepath.Join(folder, "two.yaml"), policy("b", 1))
		applied := watch(t, open(t, testr.New(t), folder))
		await(t, applied, "a 1 since 1", "b 1 since 1")
		start := time.Now()
		if err := os.Remove(filepath.Join(folder, "one.yaml")); err != nil {
			t.Fatal(err)
		}
		await(t, applied, "b 1 since 1")
		t.Logf("it took %s", time.Since(start))
	})

	t.Run("a policy that moves to another file changes nothing", func(t *testing.T) {
		t.Parallel()
		folder := t.TempDir()
		write(t, filepath.Join(folder, "one.yaml"), policy("a", 1))
		applied := watch(t, open(t, testr.New(t), folder))
		await(t, applied, "a 1 since 1")
		if err := os.Rename(filepath.Join(folder, "one.yaml"), filepath.Join(folder, "two.yaml")); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(folder, "three.yaml"), policy("b", 1))
		await(t, applied, "a 1 since 1", "b 1 since 2")
	})

	t.Run("a file that is written in place is followed", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "policies.yaml")
		write(t, path, policy("a", 1))
		applied := watch(t, open(t, testr.New(t), path))
		await(t, applied, "a 1 since 1")
		if err := os.WriteFile(path, []byte(policy("a", 2)), 0o600); err != nil {
			t.Fatal(err)
		}
		await(t, applied, "a 2 since 2")
	})

	for name, place := range map[string]string{"a folder": "", "a file of one": "policies.yaml"} {
		t.Run("a mounted ConfigMap that is swapped is followed: "+name, func(t *testing.T) {
			t.Parallel()
			folder := t.TempDir()
			mount(t, folder, "1", policy("a", 1))
			link(t, filepath.Join("..data", "policies.yaml"), filepath.Join(folder, "policies.yaml"))
			applied := watch(t, open(t, testr.New(t), filepath.Join(folder, place)))
			await(t, applied, "a 1 since 1")
			mount(t, folder, "2", policy("a", 2))
			await(t, applied, "a 2 since 2")
		})
	}
}

// mount puts a version of a ConfigMap where the kubelet would.
func mount(t *testing.T, folder, version, content string) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(folder, ".."+version), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(folder, ".."+version, "policies.yaml"), content)
	link(t, ".."+version, filepath.Join(folder, "..data_tmp"))
	if err := os.Rename(filepath.Join(folder, "..data_tmp"), filepath.Join(folder, "..data")); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/test/playground"
)

// earlier is the commit whose binaries work together with ours. It has to be one of the main line.
const earlier = "6f8acfb55017ba7458974aae9cb89bf1acd02410"

func TestManagersAndSidecarsOfTwoVersionsWorkTogether(t *testing.T) {
	apply(t, "skew", several)
	awaitReady(t, "skew")
	old, ours := options, options
	old.Binaries = buildEarlier(t)
	old.ManagerFlags = []string{"--config-dir", filepath.Join(old.Binaries, "config")} // An installation has its own.
	app := newApplication(t, 0)
	var both []*playground.Sidecar
	for name, o := range map[string]playground.Options{"sidecar-earlier": old, "sidecar-ours": ours} {
		s := playground.NewSidecar(o, name, app.url, "--namespace", playground.Namespace, "--pod-labels-file", filepath.Join(options.Dir, "labels"),
			"--redis", weir.Redis.URL(), "--instance", "playground")
		t.Cleanup(func() {
			if err := s.Stop(); err != nil {
				t.Error(err)
			}
		})
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		both = append(both, s)
	}
	stopManager(t)
	enforcing := 0
	// The installation is upgraded, and then rolled back. The sidecars go on meanwhile.
	for i, o := range []playground.Options{old, ours, old} {
		m, err := weir.NewManager(t.Context(), o, fmt.Sprintf("version-%d", i), weir.Kubeconfig)
		if err != nil {
			t.Fatal(err)
		}
		start(t, m)
		name := fmt.Sprintf("skew-%d", i)
		edit(t, name, `{selector: {}, limits: [{name: all, strategy: {fixedWindow: {requests: 10, window: 24h}}}]}`)
		for _, s := range both {
			eventually(t, patience, "the policy is enforced", func() bool { return enforced(t, s, name) == 10 })
			enforcing++
		}
		await(t, name, func(p *v1alpha1.RateLimitPolicy) bool { return playground.IsReady(p, sidecars+len(both)) })
		var got playground.Tally
		for n := range 20 {
			r, err := playground.Get(t.Context(), both[n%len(both)].URL, "")
			if err != nil {
				t.Fatal(err)
			}
			got.Add(r)
		}
		if want := (playground.Tally{Allowed: 10, Refused: 10}); got != want {
			t.Errorf("answers with manager %d are %+v, want %+v", i, got, want)
		}
		remove(t, name)
		if err := m.Stop(); err != nil {
			t.Error(err)
		}
	}
	tell(t, "K20", "each sidecar enforces what each manager publishes, 6 of 6, with one budget, over an upgrade and a rollback", "%d of 6", enforcing)
}

// buildEarlier builds the binaries of the earlier commit, and gives their folder. The settings of its sidecars are in the
// folder config there.
func buildEarlier(t *testing.T) string {
	t.Helper()
	source, bin := t.TempDir(), t.TempDir()
	// git may not trust the folder that CI cloned into.
	archive := exec.CommandContext(t.Context(), "git", "-c", "safe.directory=*", "-C", weir.ControlPlane.Root, "archive", earlier)
	var tree, complaint bytes.Buffer
	archive.Stdout, archive.Stderr = &tree, &complaint
	if err := archive.Run(); err != nil {
		t.Fatalf("getting commit %s (is this a shallow clone? git fetch --unshallow): %v\n%s", earlier, err, &complaint)
	}
	unpack := exec.CommandContext(t.Context(), "tar", "-x", "-C", source)
	unpack.Stdin = &tree
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("unpacking commit %s: %v\n%s", earlier, err, out)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "./cmd/manager", "./cmd/sidecar")
	build.Dir = source
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building commit %s: %v\n%s", earlier, err, out)
	}
	for from, to := range map[string]string{"manager": "weir-manager", "sidecar": "weir-sidecar"} {
		if err := os.Rename(filepath.Join(bin, from), filepath.Join(bin, to)); err != nil {
			t.Fatal(err)
		}
	}
	writeSettings(t, filepath.Join(source, "config", "manager", "config.yaml"), filepath.Join(bin, "config"))
	return bin
}

// writeSettings writes what the manager's ConfigMap in a file holds into a folder.
func writeSettings(t *testing.T, file, dir string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var settings corev1.ConfigMap
	if err := yaml.Unmarshal(text, &settings); err != nil {
		t.Fatalf("parsing %s: %v", file, err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, value := range settings.Data {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

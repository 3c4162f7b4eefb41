// SPDX-License-Identifier: Apache-2.0

// Package node_test proves on a real node that Weir installs, injects and limits as a user has it, and breaks nothing
// when it is upgraded, restarted, down or hung; and that the node leaves nothing behind.
package node_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/weir-dev/weir/test/node"
)

const (
	root = "../../.."
	// patience is for what has no stated bound, on a machine that is busy with other things.
	patience = 4 * time.Minute
)

// cluster is the one node of all tests but those that start their own.
var cluster *node.Node

func TestMain(m *testing.M) {
	// The node's first process is this program too.
	node.Boot()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctrl.SetLogger(logr.Discard())
	dir, err := os.MkdirTemp("", "weir-images-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ctx := context.Background() //nolint:forbidigo // No test runs yet.
	archives, err := buildImages(ctx, root, dir, "e2e", "weir-manager", "weir-sidecar", "workload", "redis")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return node.Main(m, &cluster, root, archives...)
}

// buildImages builds images of a tree of our sources into dir, and gives their archives.
func buildImages(ctx context.Context, tree, dir, version string, names ...string) ([]string, error) {
	build := exec.CommandContext(ctx, "go", append([]string{"run", "./hack/images", "-version", version, "-o", dir}, names...)...)
	build.Dir = tree
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building images: %w\n%s", err, out)
	}
	var archives []string
	for _, name := range names {
		archives = append(archives, filepath.Join(dir, name+".tar"))
	}
	return archives, nil
}

func TestTheSidecarRunsInAPod(t *testing.T) {
	kubectl(t, "apply", "--server-side", "-f", "testdata/alone.yaml")
	kubectl(t, "--namespace=alone", "rollout", "status", "deployment/checkout", "--timeout="+patience.String())
	kubectl(t, "--namespace=alone", "wait", "--for=condition=Ready", "pod/client", "--timeout="+patience.String())

	t.Run("a pod reaches it by the Service's name", func(t *testing.T) {
		for _, url := range []string{"http://checkout/", "http://checkout.alone.svc.cluster.local/"} {
			eventually(t, url, regexp.MustCompile(`^200 hello from checkout-\w+-\w+\n$`))
		}
	})

	t.Run("it limits what a policy limits", func(t *testing.T) {
		eventually(t, "http://checkout/limited", regexp.MustCompile(`^200 `))
		eventually(t, "http://checkout/limited", regexp.MustCompile(`^429 .*"violated-policies":\["checkout/once"\]`))
	})

	t.Run("kubectl shows its log", func(t *testing.T) {
		if log := kubectl(t, "--namespace=alone", "logs", "deployment/checkout", "--container=app"); !strings.Contains(log, "GET /limited\n") {
			t.Errorf("the application's log is %q", log)
		}
	})

	t.Run("its namespace takes no pod that may do more", func(t *testing.T) {
		_, err := cluster.Kubectl(t.Context(), "", "--namespace=alone", "run", "root", "--image=weir.test/workload:dev")
		if err == nil || !strings.Contains(err.Error(), `violates PodSecurity "restricted:latest"`) {
			t.Errorf("got %v, want a refusal", err)
		}
	})

	t.Run("it goes when it is deleted", func(t *testing.T) {
		kubectl(t, "delete", "namespace", "alone", "--timeout="+patience.String())
	})
}

// The node is ended both ways: as one should, and as the kernel or an impatient user does.
func TestNothingIsLeftOfANode(t *testing.T) {
	program := filepath.Join(t.TempDir(), "node")
	build := exec.Command("go", "build", "-o", program, "./hack/node")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	// What has been built already is not built again.
	if err := os.Mkdir(filepath.Join(home, "weir"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(cache, "weir", "tools"), filepath.Join(home, "weir", "tools")); err != nil {
		t.Fatal(err)
	}
	run := func(arg string) (string, error) {
		cmd := exec.Command(program, arg)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "XDG_CACHE_HOME="+home)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	before := machine(t, home)
	for _, end := range []string{"down", "killed, then down"} {
		t.Run(end, func(t *testing.T) {
			out, err := run("up")
			if err != nil {
				t.Fatalf("up: %v\n%s", err, out)
			}
			t.Log(out)
			if out, err := run("up"); err == nil || !strings.Contains(out, "the node is up already") {
				t.Errorf("a second up: %v\n%s", err, out)
			}
			keeper := readPID(t, filepath.Join(home, "weir", "node", "pid"))
			if end != "down" {
				if err := syscall.Kill(keeper, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			if out, err := run("down"); err != nil {
				t.Errorf("down: %v\n%s", err, out)
			}
			if diff := cmp.Diff(before, machine(t, home)); diff != "" {
				t.Errorf("the machine (-before +after):\n%s", diff)
			}
			if left := lines(t, "find", "/sys/fs/cgroup", "-name", fmt.Sprintf("weir-node-%d", keeper)); len(left) > 0 {
				t.Errorf("cgroups are left: %q", left)
			}
		})
	}
}

// machine is what of this machine a node could have changed, or left behind.
func machine(t *testing.T, home string) map[string][]string {
	t.Helper()
	return map[string][]string{
		"mounts":    grep(t, home, "/proc/self/mountinfo"),
		"processes": grep(t, home, "/proc/[0-9]*/cmdline"),
		"files":     lines(t, "find", "-H", filepath.Join(home, "weir")),
		"links":     lines(t, "ip", "-oneline", "link"),
		"addresses": lines(t, "ip", "-brief", "address"),
		"routes":    lines(t, "ip", "route", "show", "table", "all"),
		"rules":     lines(t, "nft", "list", "ruleset"),
		"sysctls": lines(t, "head", "/proc/sys/vm/overcommit_memory", "/proc/sys/vm/panic_on_oom", "/proc/sys/kernel/panic",
			"/proc/sys/kernel/panic_on_oops", "/proc/sys/kernel/hostname", "/proc/sys/net/ipv4/ip_forward"),
	}
}

// lines is what a command prints.
func lines(t *testing.T, name string, args ...string) []string {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return slices.Collect(strings.Lines(string(out)))
}

// grep gives the lines with s in them, of those files that are still there.
func grep(t *testing.T, s, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			continue // A process has ended.
		}
		for line := range strings.Lines(string(content)) {
			if strings.Contains(line, s) {
				found = append(found, line)
			}
		}
	}
	return found
}

func readPID(t *testing.T, path string) int {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(raw))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := cluster.Kubectl(t.Context(), "", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// eventually sends requests from that namespace's client until an answer is as wanted: kube-proxy and DNS follow a
// pod's readiness with a delay.
func eventually(t *testing.T, url string, want *regexp.Regexp) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		got, err := cluster.Kubectl(t.Context(), "", "--namespace=alone", "exec", "client", "--", "/workload", "get", url)
		if err == nil && want.MatchString(got) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: got %q (%v), want %s", url, got, err, want)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

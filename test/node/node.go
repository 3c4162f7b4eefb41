// SPDX-License-Identifier: Apache-2.0

// Package node runs a real Kubernetes node with its control plane on this machine, for tests: pods run, Services
// and DNS names lead to them. It lives in namespaces and cgroups of its own, leaves the machine as it is, and
// has no way out to any network.
package node

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/weir-dev/weir/internal/oci"
)

//go:embed all:etc
var etc embed.FS

//go:embed coredns.yaml
var coreDNS string

// startPatience is how long each step of the start may take on a machine that is busy with other things.
const startPatience = 2 * time.Minute

// Options says where a node lives and what it is made of.
type Options struct {
	// Dir is an existing, empty folder for the node's configuration and logs. All else is in memory, a few
	// hundred MiB with what is in the images.
	Dir string
	// Tools is the folder that hack/node.sh prints.
	Tools string
	// Progress is told what is being awaited. Nil is nobody.
	Progress func(what string)
}

// Node is a cluster of one node.
type Node struct {
	// Config is an administrator's, with client-side rate limits too high to matter. Copy it before
	// changing it.
	Config *rest.Config
	// Kubeconfig is the path of the same for kubectl and helm.
	Kubeconfig string

	dir    string
	tools  string
	api    *net.TCPListener
	line   *os.File      // closed when the node is to end
	output *os.File      // what the first process and its helpers say
	pid    int           // of the node's first process
	ended  chan struct{} // closed when the first process has ended
	err    error         // of its end
	client client.Client
}

// Tools gives the folder of the programs that a node is made of. Where they have not been built, that takes
// about 10 minutes, and is told of on standard error. Root is the folder of our repository.
func Tools(ctx context.Context, root string) (string, error) {
	script := exec.CommandContext(ctx, filepath.Join(root, "hack", "node.sh")) //nolint:gosec // Our own script.
	script.Stderr = os.Stderr
	out, err := script.Output()
	if err != nil {
		return "", fmt.Errorf("running hack/node.sh for kubelet and the rest: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Start starts a node and returns when pods can be scheduled and names be resolved, after some 10 seconds. It
// needs root, cgroups of version 1, and a program that calls Boot first. The caller must Stop the node, also
// after an error; should the program be killed, then the node ends by itself, and Clean clears up after it.
func Start(ctx context.Context, o Options) (*Node, error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	n := &Node{dir: o.Dir, tools: o.Tools, Kubeconfig: filepath.Join(o.Dir, "kubeconfig")}
	if os.Geteuid() != 0 {
		return n, errors.New("a node can only be started by root, who may make namespaces and cgroups")
	}
	for _, step := range []struct {
		what string
		run  func(context.Context) error
	}{
		{"configuration and certificates", n.configure},
		{"cgroups", n.makeCgroups},
		{"the first process", n.boot},
		{"containerd, with the images of the node's own pods", n.loadOwnImages},
		{"the API server", n.awaitAPI},
		{"the node", n.awaitNode},
		{"DNS", n.awaitDNS},
	} {
		o.Progress(step.what)
		if err := n.within(ctx, step.run); err != nil {
			return n, fmt.Errorf("starting a node, at %s: %w%s", step.what, err, n.lastWords())
		}
	}
	return n, nil
}

// Main is what a package's TestMain hands to os.Exit: it runs the tests with one node for all of them, in *n,
// with the images of OCI archives in it, and returns the exit code. Root is the folder of our repository. Tests
// keep apart by using namespaces of their own.
func Main(m *testing.M, n **Node, root string, archives ...string) int {
	Boot()
	code, err := runTests(context.Background(), m, n, root, archives)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func runTests(ctx context.Context, m *testing.M, n **Node, root string, archives []string) (code int, err error) {
	tools, err := Tools(ctx, root)
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "weir-node-")
	if err != nil {
		return 0, fmt.Errorf("making a folder: %w", err)
	}
	*n, err = Start(ctx, Options{Dir: dir, Tools: tools})
	for _, archive := range archives {
		if err == nil {
			err = (*n).LoadFile(ctx, archive)
		}
	}
	if err == nil {
		code = m.Run()
	}
	if err = errors.Join(err, (*n).Stop()); err != nil || code != 0 {
		fmt.Fprintf(os.Stderr, "the node's logs are in %s/log\n", dir)
		return code, err
	}
	return code, Clean(dir)
}

// Stop ends the node with all that it holds, at once. What it has written stays, for whoever wants to know why.
func (n *Node) Stop() error {
	if n.ended != nil {
		// Its own end is the kernel's signal to end everything in its namespace.
		if err := syscall.Kill(n.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stopping the node: %w", err)
		}
		<-n.ended
	}
	var errs []error
	if n.api != nil {
		errs = append(errs, n.api.Close())
	}
	if n.line != nil {
		errs = append(errs, n.line.Close())
	}
	if n.output != nil {
		errs = append(errs, n.output.Close())
	}
	return errors.Join(append(errs, removeCgroups(n.dir))...)
}

// Clean removes a node's folder and what else is left of a node that has ended, however it ended.
func Clean(dir string) error {
	if err := removeCgroups(dir); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing the node's folder: %w", err)
	}
	return nil
}

// Ended is closed when the node has ended, by Stop or because a component has. Err says why.
func (n *Node) Ended() <-chan struct{} { return n.ended }

// Err says why a node has ended.
func (n *Node) Err() error { return fmt.Errorf("the node has ended: %w%s", n.err, n.lastWords()) }

// Load imports an OCI archive, so that pods can run its images. Their pull policy must not be Always.
func (n *Node) Load(ctx context.Context, archive io.Reader) error {
	ctr := n.command(ctx, "ctr", "--namespace=k8s.io", "images", "import", "-")
	ctr.Stdin = archive
	if out, err := ctr.CombinedOutput(); err != nil {
		return fmt.Errorf("importing an image: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// LoadFile is [Node.Load] of a file.
func (n *Node) LoadFile(ctx context.Context, path string) error {
	f, err := os.Open(path) //nolint:gosec // The caller's choice.
	if err != nil {
		return fmt.Errorf("importing an image: %w", err)
	}
	defer func() { _ = f.Close() }()
	return n.Load(ctx, f)
}

// Kubectl runs kubectl as an administrator with a standard input, and gives what it prints. Its error holds
// what it complains of.
func (n *Node) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := n.KubectlCommand(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, complaint strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return out.String(), nil
}

// KubectlCommand is kubectl as an administrator, for who wants more of it than [Node.Kubectl].
func (n *Node) KubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(n.tools, "kubectl"), args...) //nolint:gosec // kubectl, with our own arguments.
	cmd.Env = append(os.Environ(), "KUBECONFIG="+n.Kubeconfig)
	return cmd
}

// Freeze stops all processes of a container, without their knowledge, until Thaw. ID is what the pod's status says,
// with containerd:// or without.
func (n *Node) Freeze(ctx context.Context, id string) error { return n.task(ctx, "pause", id) }

// Thaw has a frozen container go on.
func (n *Node) Thaw(ctx context.Context, id string) error { return n.task(ctx, "resume", id) }

func (n *Node) task(ctx context.Context, verb, id string) error {
	id = strings.TrimPrefix(id, "containerd://")
	if out, err := n.command(ctx, "ctr", "--namespace=k8s.io", "tasks", verb, id).CombinedOutput(); err != nil {
		return fmt.Errorf("ctr tasks %s %s: %w: %s", verb, id, err, bytes.TrimSpace(out))
	}
	return nil
}

// configure writes the node's /etc, and makes its /var/log.
func (n *Node) configure(context.Context) error {
	files, err := fs.Sub(etc, "etc")
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	if err := os.CopyFS(filepath.Join(n.dir, "etc"), files); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	// root is where the node's first process mounts its root.
	for _, dir := range []string{"root", "log"} {
		if err := os.MkdirAll(filepath.Join(n.dir, dir), 0o755); err != nil { //nolint:gosec // The node's pods aren't root.
			return fmt.Errorf("making a folder: %w", err)
		}
	}
	return writePKI(filepath.Join(n.dir, "etc", "kubernetes"))
}

// cgroupsFile lists the node's cgroups, one a line, from before they are made until they are removed.
const cgroupsFile = "cgroups"

func (n *Node) makeCgroups(context.Context) error {
	paths, err := childCgroups("weir-node-" + strconv.Itoa(os.Getpid()))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(n.dir, cgroupsFile), []byte(strings.Join(paths, "\n")), 0o600); err != nil {
		return fmt.Errorf("noting the cgroups: %w", err)
	}
	for _, path := range paths {
		if err := makeCgroup(path); err != nil {
			return err
		}
	}
	return nil
}

// readCgroups gives the cgroups that were made for a node: none, if it didn't get that far.
func readCgroups(dir string) ([]string, error) {
	raw, err := os.ReadFile(filepath.Join(dir, cgroupsFile)) //nolint:gosec // Our own folder.
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading what cgroups there are: %w", err)
	}
	return strings.Fields(string(raw)), nil
}

func removeCgroups(dir string) error {
	paths, err := readCgroups(dir)
	if err != nil {
		return err
	}
	for _, path := range paths {
		if err := removeCgroup(path); err != nil {
			return err
		}
	}
	return nil
}

// boot starts the node's first process, which is this very program.
func (n *Node) boot(context.Context) error {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // On loopback it takes no time.
	if err != nil {
		return fmt.Errorf("listening for clients of the API server: %w", err)
	}
	n.api = l.(*net.TCPListener)
	inherited, err := n.api.File()
	if err != nil {
		return fmt.Errorf("handing on the listener: %w", err)
	}
	defer func() { _ = inherited.Close() }()
	if n.output, err = os.Create(filepath.Join(n.dir, "log", "node.log")); err != nil {
		return fmt.Errorf("making a log: %w", err)
	}
	cmd := exec.Command("/proc/self/exe") //nolint:noctx // It ends with Stop, or with this process.
	cmd.Args = []string{firstProcess, n.dir, n.tools}
	cmd.Stdout, cmd.Stderr = n.output, n.output
	end, line, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("making a lifeline: %w", err)
	}
	defer func() { _ = end.Close() }()
	n.line = line
	cmd.ExtraFiles = []*os.File{inherited, end}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET |
			syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the first process: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		n.err = cmd.Wait()
		close(ended)
	}()
	n.pid, n.ended = cmd.Process.Pid, ended
	return n.writeKubeconfig()
}

// writeKubeconfig leads the administrator to the API server through the forwarder.
func (n *Node) writeKubeconfig() error {
	c, err := clientcmd.LoadFromFile(filepath.Join(n.dir, "etc", "kubernetes", "admin.kubeconfig"))
	if err != nil {
		return fmt.Errorf("reading the administrator's kubeconfig: %w", err)
	}
	for _, cluster := range c.Clusters {
		cluster.Server = "https://" + n.api.Addr().String()
	}
	if err := clientcmd.WriteToFile(*c, n.Kubeconfig); err != nil {
		return fmt.Errorf("writing the kubeconfig: %w", err)
	}
	if n.Config, err = clientcmd.NewDefaultClientConfig(*c, nil).ClientConfig(); err != nil {
		return fmt.Errorf("reading the kubeconfig: %w", err)
	}
	n.Config.QPS, n.Config.Burst = 1000, 2000
	return nil
}

// loadOwnImages imports the images of CoreDNS and of a pod's sandbox, as soon as containerd takes them.
func (n *Node) loadOwnImages(ctx context.Context) error {
	if err := n.await(ctx, func(ctx context.Context) error {
		return n.command(ctx, "ctr", "version").Run()
	}); err != nil {
		return err
	}
	for _, name := range []string{"pause", "coredns"} {
		content, err := os.ReadFile(filepath.Join(n.tools, name)) //nolint:gosec // One of our tools.
		if err != nil {
			return fmt.Errorf("packing %s: %w", name, err)
		}
		image := oci.Image{
			Name:         "weir.test/" + name + ":node",
			Architecture: runtime.GOARCH,
			Files:        map[string]oci.File{"/" + name: {Content: content, Executable: true}},
			Entrypoint:   []string{"/" + name},
			User:         "65532:65532",
		}
		var archive bytes.Buffer
		if _, err := image.Write(&archive); err != nil {
			return fmt.Errorf("packing %s: %w", name, err)
		}
		if err := n.Load(ctx, &archive); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) awaitAPI(ctx context.Context) error {
	if err := n.await(ctx, func(ctx context.Context) error {
		_, err := n.Kubectl(ctx, "", "get", "--raw", "/readyz")
		return err
	}); err != nil {
		return err
	}
	var err error
	if n.client, err = client.New(n.Config, client.Options{Scheme: scheme.Scheme}); err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	return nil
}

// awaitNode returns when bare pods are taken and scheduled.
func (n *Node) awaitNode(ctx context.Context) error {
	if _, err := n.Kubectl(ctx, coreDNS, "apply", "--server-side", "-f", "-"); err != nil {
		return err
	}
	if err := n.await(ctx, func(ctx context.Context) error {
		return n.client.Get(ctx, client.ObjectKey{Namespace: "default", Name: "default"}, &corev1.ServiceAccount{})
	}); err != nil {
		return err
	}
	return n.await(ctx, func(ctx context.Context) error {
		var node corev1.Node
		if err := n.client.Get(ctx, client.ObjectKey{Name: Name}, &node); err != nil {
			return err
		}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
				return fmt.Errorf("the node is not ready: %s", c.Message)
			}
		}
		if len(node.Spec.Taints) > 0 {
			return fmt.Errorf("the node is tainted: %s", node.Spec.Taints[0].Key)
		}
		return nil
	})
}

func (n *Node) awaitDNS(ctx context.Context) error {
	return n.await(ctx, func(ctx context.Context) error {
		var coredns appsv1.Deployment
		if err := n.client.Get(ctx, client.ObjectKey{Namespace: "kube-system", Name: "coredns"}, &coredns); err != nil {
			return err
		}
		if coredns.Status.AvailableReplicas == 0 {
			return errors.New("no pod of CoreDNS is available")
		}
		return nil
	})
}

// within gives a step its time, and ends it when the node ends.
func (n *Node) within(ctx context.Context, step func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	if n.ended == nil {
		return step(ctx)
	}
	done := make(chan error, 1)
	go func() { done <- step(ctx) }()
	select {
	case err := <-done:
		return err
	case <-n.ended:
		cancel()
		return errors.Join(n.err, <-done)
	}
}

// await tries until it works, or until ctx is done.
func (n *Node) await(ctx context.Context, try func(context.Context) error) error {
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// command gives a tool's command that runs in the node.
func (n *Node) command(ctx context.Context, tool string, args ...string) *exec.Cmd {
	enter := []string{"--target", strconv.Itoa(n.pid), "--mount", "--net", "--pid", "--ipc", "--uts", "--", filepath.Join(toolsDir, tool)}
	return exec.CommandContext(ctx, "nsenter", append(enter, args...)...) //nolint:gosec // Our own table.
}

// lastWords is what the node's first process has said, if anything.
func (n *Node) lastWords() string {
	raw, err := os.ReadFile(filepath.Join(n.dir, "log", "node.log"))
	if err != nil || len(raw) == 0 {
		return ""
	}
	return "\n" + strings.TrimSpace(string(raw))
}

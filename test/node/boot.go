// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// firstProcess and firstProcessInCgroups are the names under which Start starts this program once more, and
	// under which that starts itself once more.
	firstProcess          = "weir-node"
	firstProcessInCgroups = "weir-node-in-cgroups"

	// apiListener and lifeline are the files that the node's first process inherits: one to accept from
	// outside, and one that ends when the program has ended that started the node.
	apiListener = 3
	lifeline    = 4

	// apiPatience is how long the API server may take to be ready.
	apiPatience = 2 * time.Minute
)

// Boot makes this process the node's first one, if that is what Start has started it for, and then never
// returns. A program that calls Start calls Boot before anything else.
func Boot() {
	var err error
	switch os.Args[0] {
	case firstProcess:
		err = enterCgroups(os.Args[1])
	case firstProcessInCgroups:
		err = bootNode(os.Args[1], os.Args[2])
	default:
		return
	}
	// Nothing in the node outlives its first process.
	fmt.Fprintln(os.Stderr, "node:", err)
	os.Exit(1)
}

// enterCgroups joins the cgroups that were made for the node, and makes them all that can be seen of the
// hierarchies.
func enterCgroups(dir string) error {
	cgroups, err := readCgroups(dir)
	if err != nil {
		return err
	}
	for _, path := range cgroups {
		if err := joinCgroup(path); err != nil {
			return err
		}
	}
	// A namespace is a thread's, until the thread starts a program and is alone.
	runtime.LockOSThread()
	if err := syscall.Unshare(syscall.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("making a namespace of cgroups: %w", err)
	}
	args := append([]string{firstProcessInCgroups}, os.Args[1:]...)
	return fmt.Errorf("starting once more: %w", syscall.Exec("/proc/self/exe", args, os.Environ())) //nolint:gosec // This very program.
}

// bootNode starts all of the node's components, and returns when one of them has ended.
func bootNode(dir, tools string) error {
	endWithParent()
	if err := enterRoot(dir, tools); err != nil {
		return err
	}
	if err := bringUpNetwork(); err != nil {
		return err
	}
	if err := forwardAPI(); err != nil {
		return err
	}
	c := &components{running: map[int]string{}}
	for _, p := range controlPlane {
		if err := c.start(p); err != nil {
			return err
		}
	}
	// The others end or fall asleep when they find no API server.
	started := make(chan error, 1)
	go func() {
		err := awaitAPIServer()
		for _, p := range clients {
			if err == nil {
				err = c.start(p)
			}
		}
		started <- err
	}()
	ended := make(chan error, 1)
	go func() { ended <- c.awaitEnd() }()
	select {
	case err := <-ended:
		return err
	case err := <-started:
		if err != nil {
			return err
		}
	}
	return <-ended
}

// endWithParent ends this process, and so the node, when its parent has ended. The kernel has a signal for that,
// but forgets about it when a program is started from any thread but the first.
func endWithParent() {
	for _, inherited := range []int{apiListener, lifeline} {
		syscall.CloseOnExec(inherited)
	}
	line := os.NewFile(lifeline, "lifeline")
	go func() {
		_, _ = io.Copy(io.Discard, line) // Nothing is ever written to it.
		fmt.Fprintln(os.Stderr, "node: ending, as who started it has ended")
		os.Exit(1)
	}()
}

// bringUpNetwork gives the node an address on a cable that leads nowhere: all traffic stays in the node. The
// route lets a connection to a Service's address get as far as kube-proxy's rules.
func bringUpNetwork() error {
	ip := exec.Command("ip", "-batch", "-") //nolint:noctx // It takes milliseconds.
	ip.Stdin = strings.NewReader(`link set lo up
link add node type veth peer name nowhere
link set nowhere up
link set node up
address add ` + address + `/24 dev node
route add default dev node
`)
	if out, err := ip.CombinedOutput(); err != nil {
		return fmt.Errorf("configuring the network: %w: %s", err, out)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600); err != nil {
		return fmt.Errorf("letting pods reach each other: %w", err)
	}
	return nil
}

// forwardAPI lets those outside reach the API server: the listener that this process inherited is in their
// network, and what it dials is in its own.
func forwardAPI() error {
	l, err := net.FileListener(os.NewFile(apiListener, "API listener"))
	if err != nil {
		return fmt.Errorf("inheriting a listener: %w", err)
	}
	go func() {
		for {
			outside, err := l.Accept()
			if err != nil {
				return // The process is about to end.
			}
			go join(outside)
		}
	}()
	return nil
}

// join copies between a connection from outside and the API server until both have ended.
func join(outside net.Conn) {
	defer func() { _ = outside.Close() }()
	inside, err := net.Dial("tcp", net.JoinHostPort(address, apiPort)) //nolint:noctx // Refused at once, or accepted.
	if err != nil {
		return
	}
	defer func() { _ = inside.Close() }()
	var both sync.WaitGroup
	for from, to := range map[net.Conn]net.Conn{outside: inside, inside: outside} {
		both.Go(func() {
			_, _ = io.Copy(to, from) // Either side may hang up.
			_ = to.(*net.TCPConn).CloseWrite()
		})
	}
	both.Wait()
}

// awaitAPIServer returns when the API server is ready.
func awaitAPIServer() error {
	ca, err := os.ReadFile("/etc/kubernetes/pki/ca.crt")
	if err != nil {
		return fmt.Errorf("reading the authority: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	api := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}}
	ctx, cancel := context.WithTimeout(context.Background(), apiPatience)
	defer cancel()
	for {
		err := ready(ctx, &api)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the API server is not ready after %s: %w", apiPatience, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func ready(ctx context.Context, api *http.Client) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+net.JoinHostPort(address, apiPort)+"/readyz", nil)
	if err != nil {
		return err
	}
	response, err := api.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

// components are the processes that the node can't be without.
type components struct {
	mu      sync.Mutex
	running map[int]string // by process
}

// start starts a program of the tools, with a log of its own.
func (c *components) start(p program) error {
	log, err := os.Create(filepath.Join("/var/log", p.name+".log"))
	if err != nil {
		return fmt.Errorf("making the log of %s: %w", p.name, err)
	}
	defer func() { _ = log.Close() }()                              // The child has a handle of its own.
	cmd := exec.Command(filepath.Join(toolsDir, p.name), p.args...) //nolint:gosec,noctx // Our own table; it ends with the node.
	cmd.Stdout, cmd.Stderr = log, log
	// Held until the process is known, so that it can't be mourned before.
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", p.name, err)
	}
	c.running[cmd.Process.Pid] = p.name
	return nil
}

// awaitEnd returns when a component has ended. Until then it reaps whoever has lost its parent, as is a first
// process's duty.
func (c *components) awaitEnd() error {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("waiting for processes: %w", err)
		}
		c.mu.Lock()
		name, known := c.running[pid]
		c.mu.Unlock()
		if known {
			return fmt.Errorf("%s has ended, %s: its log says why", name, describe(status))
		}
	}
}

func describe(status syscall.WaitStatus) string {
	if status.Signaled() {
		return "killed by a signal: " + status.Signal().String()
	}
	return fmt.Sprintf("with exit status %d", status.ExitStatus())
}

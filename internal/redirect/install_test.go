// SPDX-License-Identifier: Apache-2.0

package redirect_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/weir-dev/weir/internal/redirect"
)

// patience is for what takes no time on a machine that isn't busy.
const patience = 20 * time.Second

// The two ends of a cable: the pod's, and that of who is outside of it.
const (
	pod4, pod6         = "192.0.2.1", "2001:db8::1"
	outside4, outside6 = "192.0.2.2", "2001:db8::2"
)

const ruleset = `table inet weir {
	chain inbound {
		type nat hook prerouting priority dstnat; policy accept;
		iifname "lo" accept
		tcp dport %d redirect to :%d
	}
}
`

func TestConnectionsFromOutsideAreRedirected(t *testing.T) {
	pod, outside := cabled(t)
	application, other, sidecar := pod.serve(t, "application"), pod.serve(t, "other"), pod.serve(t, "sidecar")
	ports := []redirect.Port{{From: application, To: sidecar}}
	// An init container may run again.
	for range 2 {
		pod.install(t, ports)
		want := fmt.Sprintf(ruleset, application, sidecar)
		if diff := cmp.Diff(want, pod.run(t, nil, "nft", "list", "ruleset")); diff != "" {
			t.Errorf("rules (-want +got):\n%s", diff)
		}
	}

	for name, test := range map[string]struct {
		from *namespace
		to   string
		port uint16
		want string
	}{
		"IPv4, to the application":                     {outside, pod4, application, "sidecar"},
		"IPv6, to the application":                     {outside, pod6, application, "sidecar"},
		"IPv4, to a port that isn't redirected":        {outside, pod4, other, "other"},
		"IPv6, to a port that isn't redirected":        {outside, pod6, other, "other"},
		"IPv4, to the sidecar itself":                  {outside, pod4, sidecar, "sidecar"},
		"from within, over loopback":                   {pod, "127.0.0.1", application, "application"},
		"from within, over loopback of IPv6":           {pod, "::1", application, "application"},
		"from within, to the pod's own address":        {pod, pod4, application, "application"},
		"from within, to the pod's own IPv6 address":   {pod, pod6, application, "application"},
		"from within, to a port that isn't redirected": {pod, "127.0.0.1", other, "other"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := test.from.call(t, test.to, test.port); got != test.want {
				t.Errorf("%s answers, want %s", got, test.want)
			}
		})
	}

	t.Run("other ports take the place of those before", func(t *testing.T) {
		pod.install(t, []redirect.Port{{From: other, To: sidecar}})
		got := []string{outside.call(t, pod4, application), outside.call(t, pod4, other)}
		if diff := cmp.Diff([]string{"application", "sidecar"}, got); diff != "" {
			t.Errorf("who answers (-want +got):\n%s", diff)
		}
	})
}

func TestPorts(t *testing.T) {
	t.Run("are read as they are written", func(t *testing.T) {
		want := redirect.Port{From: 8080, To: 15101}
		got, err := redirect.ParsePort(want.String())
		if err != nil || got != want {
			t.Errorf("got %v (%v), want %v", got, err, want)
		}
	})
	for _, s := range []string{"", "8080", "8080:", ":15101", "0:15101", "8080:0", "8080:65536", "8080:15101:1", "http:15101"} {
		t.Run(fmt.Sprintf("%q is refused", s), func(t *testing.T) {
			_, err := redirect.ParsePort(s)
			if want := s + ": must be two ports, like 8080:15101"; err == nil || err.Error() != want {
				t.Errorf("got error %v, want %s", err, want)
			}
		})
	}
}

// namespace is a network namespace. It ends with its file and its sockets.
type namespace struct{ *os.File }

// cabled makes two namespaces and a cable between them. That takes root.
func cabled(t *testing.T) (pod, outside *namespace) {
	t.Helper()
	pod, outside = newNamespace(t), newNamespace(t)
	pod.run(t, outside, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", "/proc/self/fd/3")
	pod.connect(t, pod4, pod6)
	outside.connect(t, outside4, outside6)
	return pod, outside
}

func newNamespace(t *testing.T) *namespace {
	t.Helper()
	type result struct {
		*os.File
		error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // And never unlocked: the thread ends with the goroutine.
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{error: fmt.Errorf("making a network namespace: %w", err)}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		made <- result{f, err}
	}()
	r := <-made
	if r.error != nil {
		t.Fatal(r.error)
	}
	t.Cleanup(func() { _ = r.Close() })
	return &namespace{r.File}
}

// do does something on a thread in the namespace. What it opens stays there.
func (n *namespace) do(t *testing.T, what func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(n.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("entering a network namespace: %w", err)
			return
		}
		done <- what()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// run runs a program in the namespace, which has the other as its file 3.
func (n *namespace) run(t *testing.T, other *namespace, name string, args ...string) string {
	t.Helper()
	var out []byte
	n.do(t, func() (err error) {
		cmd := exec.CommandContext(t.Context(), name, args...)
		if other != nil {
			cmd.ExtraFiles = []*os.File{other.File}
		}
		if out, err = cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w: %s", cmd.Args, err, out)
		}
		return nil
	})
	return string(out)
}

func (n *namespace) connect(t *testing.T, v4, v6 string) {
	t.Helper()
	n.run(t, nil, "ip", "address", "add", v4+"/24", "dev", "eth0")
	n.run(t, nil, "ip", "address", "add", v6+"/64", "dev", "eth0", "nodad")
	n.run(t, nil, "ip", "link", "set", "eth0", "up")
	n.run(t, nil, "ip", "link", "set", "lo", "up")
}

// serve has a server say its name to all who connect, and gives its port.
func (n *namespace) serve(t *testing.T, name string) uint16 {
	t.Helper()
	var l net.Listener
	n.do(t, func() (err error) {
		l, err = net.Listen("tcp", ":0")
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, name)
			_ = conn.Close()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String()).Port()
}

// call gives the name of who answers.
func (n *namespace) call(t *testing.T, address string, port uint16) string {
	t.Helper()
	var name []byte
	n.do(t, func() error {
		conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(netip.MustParseAddr(address), port).String(), patience)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		name, err = io.ReadAll(conn)
		return err
	})
	return string(name)
}

func (n *namespace) install(t *testing.T, ports []redirect.Port) {
	t.Helper()
	n.do(t, func() error { return redirect.Install(ports) })
}

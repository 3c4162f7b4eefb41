// SPDX-License-Identifier: Apache-2.0

// Package redistest runs a real Redis for a test.
package redistest

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Server is a redis-server on a loopback port, which keeps nothing on disk.
type Server struct {
	// Addr is host:port. It stays the same over a restart.
	Addr string
	dir  string
	// flags are those beyond what every server has.
	flags []string
	// env is what its environment has beyond the test's.
	env []string
	// bus is the port on which a node of a cluster talks to the others.
	bus string
	cmd *exec.Cmd
}

// Start starts a server and stops it when the test ends. REDIS_SERVER names another binary, like
// valkey-server's. A missing binary fails the test.
func Start(tb testing.TB) *Server {
	tb.Helper()
	return StartWith(tb)
}

// Launch is [Start] for programs that aren't tests: dir is the server's working directory, and the caller
// must Kill it.
func Launch(dir string) (*Server, error) { return launch(dir) }

// StartWith is [Start] with more flags of redis-server, like "--requirepass".
func StartWith(tb testing.TB, flags ...string) *Server {
	tb.Helper()
	s, err := launch(tb.TempDir(), flags...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Kill)
	return s
}

func launch(dir string, flags ...string) (*Server, error) {
	s, err := newServer(dir, flags...)
	if err != nil {
		return nil, err
	}
	return s, s.Restart()
}

// newServer gives a server that has not started yet.
func newServer(dir string, flags ...string) (*Server, error) {
	port, err := freePort()
	if err != nil {
		return nil, fmt.Errorf("finding a port for redis-server: %w", err)
	}
	return &Server{Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), dir: dir, flags: flags}, nil
}

// URL is the server as a redis:// URL.
func (s *Server) URL() string { return "redis://" + s.Addr }

// Client gives a client of the server, closed when the test ends.
func (s *Server) Client(tb testing.TB) *redis.Client {
	tb.Helper()
	c := redis.NewClient(&redis.Options{Addr: s.Addr, MaxRetries: -1, DisableIdentity: true})
	tb.Cleanup(func() { _ = c.Close() })
	return c
}

// Kill ends the server at once, with all that it holds.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
}

// Pause stops the server from answering, its connections open, until [Server.Resume].
func (s *Server) Pause() error { return s.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume ends a [Server.Pause].
func (s *Server) Resume() error { return s.cmd.Process.Signal(syscall.SIGCONT) }

// Restart starts the server, empty, on the same port, after ending it if it runs. It returns when the
// server answers.
func (s *Server) Restart() error {
	s.Kill()
	_, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		return fmt.Errorf("reading the server's address: %w", err)
	}
	return s.start(append([]string{"--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", s.dir}, s.flags...)...)
}

func (s *Server) start(args ...string) error {
	s.cmd = exec.Command(binary(), args...) //nolint:gosec,noctx // The caller's choice of server, which lives until it is killed.
	// A test that is killed takes its server with it.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.cmd.Env = append(os.Environ(), s.env...)
	if err := s.cmd.Start(); err != nil {
		s.cmd = nil
		return fmt.Errorf("starting redis-server (hack/redis.sh installs it): %w", err)
	}
	return s.await(10 * time.Second)
}

func (s *Server) await(timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c := redis.NewClient(&redis.Options{Addr: s.Addr, MaxRetries: -1, DisableIdentity: true})
	defer func() { _ = c.Close() }()
	// A server that wants to know who asks has answered.
	for err := c.Ping(ctx).Err(); err != nil && !redis.HasErrorPrefix(err, "NOAUTH"); err = c.Ping(ctx).Err() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("redis-server on %s did not answer within %s", s.Addr, timeout)
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

func binary() string {
	if b := os.Getenv("REDIS_SERVER"); b != "" {
		return b
	}
	return "redis-server"
}

// FreePort gives a port that nobody listens on.
func FreePort(tb testing.TB) string {
	tb.Helper()
	port, err := freePort()
	if err != nil {
		tb.Fatalf("finding a free port: %v", err)
	}
	return strconv.Itoa(port)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // Closed at once.
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}

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

// Server is a redis-server of a test's own, on a loopback port, which keeps nothing on disk.
type Server struct {
	// Addr is host:port. It stays the same over a restart.
	Addr string
	cmd  *exec.Cmd
	tb   testing.TB
}

// Start starts a server and stops it when the test ends. REDIS_SERVER names another binary, like
// valkey-server's. A missing binary fails the test.
func Start(tb testing.TB) *Server {
	tb.Helper()
	port, err := freePort()
	if err != nil {
		tb.Fatalf("finding a port for redis-server: %v", err)
	}
	s := &Server{Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), tb: tb}
	s.Restart()
	tb.Cleanup(s.Kill)
	return s
}

// URL is the server as a redis:// URL.
func (s *Server) URL() string { return "redis://" + s.Addr }

// Client gives a client of the server, closed when the test ends.
func (s *Server) Client() *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: s.Addr, MaxRetries: -1, DisableIdentity: true})
	s.tb.Cleanup(func() { _ = c.Close() })
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
func (s *Server) Pause() { s.signal(syscall.SIGSTOP) }

// Resume ends a [Server.Pause].
func (s *Server) Resume() { s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig os.Signal) {
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.tb.Fatalf("sending redis-server %v: %v", sig, err)
	}
}

// Restart starts the server, empty, on the same port, after ending it if it runs. It returns when the
// server answers.
func (s *Server) Restart() {
	s.tb.Helper()
	s.Kill()
	_, port, _ := net.SplitHostPort(s.Addr)
	s.cmd = exec.Command(binary(), "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", s.tb.TempDir()) //nolint:gosec,noctx // The test's own choice of server, which outlives the test's context.
	// A test that is killed takes its server with it.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		s.tb.Fatalf("starting redis-server (run hack/redis.sh to install it): %v", err)
	}
	if err := s.await(10 * time.Second); err != nil {
		s.tb.Fatal(err)
	}
}

func (s *Server) await(timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c := redis.NewClient(&redis.Options{Addr: s.Addr, MaxRetries: -1, DisableIdentity: true})
	defer func() { _ = c.Close() }()
	for c.Ping(ctx).Err() != nil {
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

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // Closed at once.
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}

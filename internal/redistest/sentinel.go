// SPDX-License-Identifier: Apache-2.0

package redistest

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Sentinel is a primary with a replica, which three Sentinels watch.
type Sentinel struct {
	// Primary and Replica are what each was at the start.
	Primary, Replica *Server
	sentinels        []*Server
}

// sentinelConf has Sentinels that miss a primary after a second, and need two of them to replace it.
const sentinelConf = `port %s
bind 127.0.0.1
dir %s
sentinel monitor main %s %s 2
sentinel down-after-milliseconds main 1000
sentinel failover-timeout main 10000
`

// StartSentinel starts servers that are in step and Sentinels that know of each other, and stops all of them when
// the test ends.
func StartSentinel(tb testing.TB) *Sentinel {
	tb.Helper()
	s := &Sentinel{Primary: Start(tb)}
	host, port, err := net.SplitHostPort(s.Primary.Addr)
	if err != nil {
		tb.Fatal(err)
	}
	s.Replica = StartWith(tb, "--replicaof", host+" "+port, "--repl-diskless-sync-delay", "0")
	for range 3 {
		s.sentinels = append(s.sentinels, startSentinel(tb, host, port))
	}
	ctx := tb.Context()
	if err := eventually(ctx, func() bool { return s.ready(ctx) }); err != nil {
		tb.Fatalf("waiting for the Sentinels: %v", err)
	}
	return s
}

func startSentinel(tb testing.TB, host, port string) *Server {
	tb.Helper()
	own, dir := FreePort(tb), tb.TempDir()
	conf := filepath.Join(dir, "sentinel.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, sentinelConf, own, dir, host, port), 0o600); err != nil {
		tb.Fatal(err)
	}
	s := &Server{Addr: net.JoinHostPort("127.0.0.1", own), dir: dir}
	if err := s.start(conf, "--sentinel"); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Kill)
	return s
}

// ready says whether each Sentinel knows the others and the replica, which is in step.
func (s *Sentinel) ready(ctx context.Context) bool {
	info, err := s.Replica.text(ctx, "INFO", "replication")
	if err != nil || !strings.Contains(info, "master_link_status:up") {
		return false
	}
	for _, one := range s.sentinels {
		info, err := one.text(ctx, "INFO", "sentinel")
		if err != nil || !strings.Contains(info, "status=ok") || !strings.Contains(info, "slaves=1,sentinels=3") {
			return false
		}
	}
	return true
}

// URL is the primary as a redis+sentinel:// URL.
func (s *Sentinel) URL() string {
	query := url.Values{"master_name": {"main"}}
	for _, one := range s.sentinels[1:] {
		query.Add("addr", one.Addr)
	}
	return "redis+sentinel://" + s.sentinels[0].Addr + "?" + query.Encode()
}

// Failover has the replica replace the primary, which is well. It returns before that has happened.
func (s *Sentinel) Failover(ctx context.Context) error {
	return s.sentinels[0].do(ctx, "SENTINEL", "FAILOVER", "main")
}

// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/redistest"
)

// liar stands between clients and a Redis, and answers in its stead while it has a lie to tell.
type liar struct {
	addr string
	lie  atomic.Pointer[lie]
	// connections counts those that were made, and scripts counts those that came, whoever answered.
	connections, scripts atomic.Int64
}

// lie is what is answered to some commands.
type lie struct {
	to    func(command []byte) bool
	reply string
}

func startLiar(t *testing.T, server *redistest.Server) *liar {
	t.Helper()
	ln, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &liar{addr: ln.Addr().String()}
	var (
		serving sync.WaitGroup
		mu      sync.Mutex
		open    []net.Conn
		closed  bool
	)
	keep := func(conn net.Conn) bool {
		mu.Lock()
		defer mu.Unlock()
		open = append(open, conn)
		return !closed
	}
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			redis, err := net.Dial("tcp", server.Addr)
			if err != nil || !keep(conn) || !keep(redis) {
				_ = conn.Close()
				continue
			}
			l.connections.Add(1)
			serving.Go(func() {
				_ = l.serve(conn, redis) // It ends with either connection.
				_ = conn.Close()
				_ = redis.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		closed = true
		for _, conn := range open {
			_ = conn.Close()
		}
		mu.Unlock()
		serving.Wait()
	})
	return l
}

// serve passes on one command at a time, and its answer.
func (l *liar) serve(conn, redis net.Conn) error {
	commands, answers := bufio.NewReader(conn), bufio.NewReader(redis)
	for {
		command, err := readValue(commands)
		if err != nil {
			return err
		}
		if isScript(command) {
			l.scripts.Add(1)
		}
		if lie := l.lie.Load(); lie != nil && lie.to(command) {
			if _, err := io.WriteString(conn, lie.reply); err != nil {
				return err
			}
			continue
		}
		if _, err := redis.Write(command); err != nil {
			return err
		}
		answer, err := readValue(answers)
		if err != nil {
			return err
		}
		if _, err := conn.Write(answer); err != nil {
			return err
		}
	}
}

// isScript says whether a command runs a script on counters, which are those with a partition in their keys.
func isScript(command []byte) bool {
	return bytes.Contains(bytes.ToUpper(command[:min(len(command), 32)]), []byte("EVAL")) && bytes.Contains(command, []byte(":{default/"))
}

// readValue reads one value of RESP, and gives its bytes.
func readValue(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	value := bytes.Clone(line)
	size, err := strconv.Atoi(string(bytes.TrimSpace(line[1:])))
	switch line[0] {
	case '$', '=', '!':
		if err != nil {
			return nil, err
		}
		if size < 0 {
			return value, nil
		}
		body := make([]byte, size+len("\r\n"))
		_, err := io.ReadFull(r, body)
		return append(value, body...), err
	case '*', '~', '>', '%':
		if err != nil {
			return nil, err
		}
		if line[0] == '%' {
			size *= 2
		}
		for range size {
			part, err := readValue(r)
			if err != nil {
				return nil, err
			}
			value = append(value, part...)
		}
	case '+', '-', ':', ',', '#', '_', '(':
	default:
		return nil, errors.New("no value of RESP")
	}
	return value, nil
}

// TestR25RedisAnswersWithErrors is R25.
func TestR25RedisAnswersWithErrors(t *testing.T) {
	server := redistest.Start(t)
	l := startLiar(t, server)
	f, _ := launch(t, 1, "redis://"+l.addr)
	f.enforcing(t)
	const sent = 10
	for reply, want := range map[string]struct {
		reason string
		// opens says that Redis is asked no more.
		opens bool
	}{
		"LOADING Redis is loading the dataset in memory":                                {reason: "loading"},
		"READONLY You can't write against a read only replica. script: 0":               {reason: "readonly"},
		"MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to no": {reason: "unreachable", opens: true},
		"CLUSTERDOWN The cluster is down":                                               {reason: "unreachable", opens: true},
		"TRYAGAIN Multiple keys request during rehashing of slot":                       {reason: "other"},
		"NOREPLICAS Not enough good replicas to write.":                                 {reason: "readonly"},
		"NOPERM this user has no permissions to run the 'evalsha' command":              {reason: "auth"},
		"NOAUTH Authentication required.":                                               {reason: "auth", opens: true},
		"MISCONF Redis is configured to save RDB snapshots":                             {reason: "readonly"},
		"WRONGTYPE Operation against a key holding the wrong kind of value":             {reason: "other"},
		"BUSY Redis is busy running a script.":                                          {reason: "busy"},
		"OOM command not allowed when used memory > 'maxmemory'.":                       {reason: "oom"},
		"ERR user_script:1: whatever it is":                                             {reason: "other"},
	} {
		name, _, _ := strings.Cut(reply, " ")
		t.Run(name, func(t *testing.T) {
			label := `reason="` + want.reason + `"`
			before := f.metric(t, "weir_store_errors_total", label)
			l.scripts.Store(0)
			l.lie.Store(&lie{isScript, "-" + reply + "\r\n"})
			got := []map[int]int{f.statuses(t, "/many/open", sent), f.statuses(t, "/many/closed", sent), f.statuses(t, "/many/local", sent), f.statuses(t, "/many/alone", sent)}
			asked, counted := l.scripts.Load(), f.metric(t, "weir_store_errors_total", label)-before
			l.lie.Store(nil)
			back := f.enforcing(t)
			t.Logf("R25 %s: expected: open 200, closed 503, local and per replica as limited, told as %s; measured: %v, %d times %s, Redis asked %d times of %d, enforcing after %s",
				name, want.reason, got, counted, want.reason, asked, 3*sent, back)
			if diff := cmp.Diff([]map[int]int{{http.StatusOK: sent}, {http.StatusServiceUnavailable: sent}, {http.StatusOK: sent}, {http.StatusOK: sent}}, got); diff != "" {
				t.Errorf("answers (-want +got):\n%s", diff)
			}
			if counted == 0 {
				t.Errorf("no failure is told as %s", want.reason)
			}
			if !want.opens && asked < 3*sent {
				t.Errorf("Redis was asked %d times: an answer has opened the circuit", asked)
			}
		})
	}
}

// TestR26RedisAnswersWithNoise is R26.
func TestR26RedisAnswersWithNoise(t *testing.T) {
	server := redistest.Start(t)
	l := startLiar(t, server)
	f, _ := launch(t, 1, "redis://"+l.addr)
	f.enforcing(t)
	const (
		sent = 10
		// most is what the sidecar may need for it, and noise what else a process that is busy comes to need.
		most, noise = 16 << 20, 16 << 20
	)
	anything := func([]byte) bool { return true }
	for name, lie := range map[string]lie{
		"garbage":                        {isScript, "\x00\x01\xff garbage\r\n"},
		"garbage to all that is said":    {anything, "HTTP/1.1 400 Bad Request\r\n\r\n"},
		"half of an answer":              {isScript, "*3\r\n:1\r\n$1\r\n"},
		"2^31 bytes":                     {isScript, "$2147483648\r\n"},
		"2^31 values":                    {isScript, "*2147483648\r\n"},
		"2^63-1 values":                  {isScript, "*9223372036854775807\r\n"},
		"10,000 lists in each other":     {isScript, strings.Repeat("*1\r\n", 10_000)},
		"10,000,000 lists in each other": {isScript, strings.Repeat("*1\r\n", 10_000_000)},
		"a line of 64 MiB":               {isScript, "+" + strings.Repeat("a", 64<<20) + "\r\n"},
		"verdicts that are none":         {isScript, "*3\r\n:1\r\n$1\r\n\xff\r\n$4\r\nabcd\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			f.statuses(t, "/many/closed", sent)
			memory, connections := f.metric(t, "process_resident_memory_bytes"), l.connections.Load()
			l.lie.Store(&lie)
			got := []map[int]int{f.statuses(t, "/many/open", sent), f.statuses(t, "/many/closed", sent), f.statuses(t, "/many/local", sent)}
			memory, connections = f.metric(t, "process_resident_memory_bytes")-memory, l.connections.Load()-connections
			l.lie.Store(nil)
			back := f.enforcing(t)
			t.Logf("R26 %s: expected: open 200, closed 503, local as limited, memory +16 MiB at most; measured: %v, %+.1f MiB, %d connections anew, enforcing after %s",
				name, got, float64(memory)/(1<<20), connections, back)
			if diff := cmp.Diff([]map[int]int{{http.StatusOK: sent}, {http.StatusServiceUnavailable: sent}, {http.StatusOK: sent}}, got); diff != "" {
				t.Errorf("answers (-want +got):\n%s", diff)
			}
			if memory > most+noise {
				t.Errorf("it needs %d bytes more", memory)
			}
		})
	}
}

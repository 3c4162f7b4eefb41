// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"testing"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

func TestLeaving(t *testing.T) {
	for name, store := range map[string]limiter.Store{"admitted": admits, "refused": refuses} {
		t.Run("HTTP/1 is told that the connection closes, with a request "+name, func(t *testing.T) {
			p := newProxy(store, checkout())
			conn := dial(t, front(t, p, application(t, http.HandlerFunc(echo))))
			r := bufio.NewReader(conn)
			closes := func() bool {
				_, _ = io.WriteString(conn, crlf("GET / HTTP/1.1", "Host: shop.example", "", ""))
				res, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatal(err)
				}
				_ = readAll(t, res.Body)
				return res.Close
			}
			if closes() {
				t.Error("it closes too soon")
			}
			p.Leave()
			if !closes() {
				t.Error("it doesn't close")
			}
			if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
				t.Errorf("after the last answer comes %q, %v", rest, err)
			}
		})
	}

	t.Run("HTTP/2 goes on with another connection, and loses no request", func(t *testing.T) {
		p := newProxy(admits, checkout())
		addr := front(t, p, application(t, http.HandlerFunc(echo)))
		client := newClient(t, true)
		reuses := func() (reused bool) {
			trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused }}
			r, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), http.MethodPost, "http://"+addr, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			res, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_, err = io.Copy(io.Discard, res.Body)
			if _ = res.Body.Close(); err != nil || res.StatusCode != http.StatusOK {
				t.Errorf("the answer is %s, %v", res.Status, err)
			}
			return reused
		}
		reuses()
		if !reuses() {
			t.Error("before it leaves there is a second connection")
		}
		p.Leave()
		for end := time.Now().Add(patience); reuses(); {
			if time.Now().After(end) {
				t.Fatal("the client stays with its connection")
			}
		}
	})

	t.Run("upgraded connections begin and go on", func(t *testing.T) {
		p := newProxy(admits, checkout())
		addr := front(t, p, application(t, http.HandlerFunc(chat)))
		before, read := openChat(t, addr)
		p.Leave()
		after, readAfter := openChat(t, addr)
		for conn, r := range map[io.ReadWriteCloser]io.Reader{before: read, after: readAfter} {
			var got string
			_, _ = io.WriteString(conn, "hi\n")
			if _, err := fmt.Fscanln(r, &got); err != nil || got != "hi" {
				t.Errorf("the echo is %q, %v", got, err)
			}
			_ = conn.Close()
		}
	})
}

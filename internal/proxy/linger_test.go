// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/match"
)

func TestARefusalDoesNotWaitForTheBody(t *testing.T) {
	addr := front(t, newProxy(refuses, checkout()), unreached(t))
	for name, request := range map[string]string{
		"of a known length":        crlf("POST / HTTP/1.1", "Host: shop.example", "Content-Length: 100", "", "a"),
		"in chunks":                crlf("POST / HTTP/1.1", "Host: shop.example", "Transfer-Encoding: chunked", "", "1", "a", ""),
		"that was expected":        crlf("POST / HTTP/1.1", "Host: shop.example", "Content-Length: 100", "Expect: 100-continue", "", "a"),
		"on a closing connection":  crlf("POST / HTTP/1.1", "Host: shop.example", "Content-Length: 100", "Connection: close", "", "a"),
		"too large to wait for":    crlf("POST / HTTP/1.1", "Host: shop.example", "Content-Length: 1000000", "", "a"),
		"of gRPC over HTTP/1":      crlf("POST / HTTP/1.1", "Host: shop.example", "Content-Type: application/grpc-web", "Content-Length: 100", "", "a"),
		"that should be no tunnel": crlf("CONNECT shop.example:443 HTTP/1.1", "Host: shop.example", "Content-Length: 100", "", "a"),
	} {
		t.Run("a client that never ends one "+name+" is answered and let go", func(t *testing.T) {
			t.Parallel()
			r := send(t, addr, request)
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			_ = readAll(t, res.Body)
			if !res.Close {
				t.Errorf("%s does not end the connection", res.Status)
			}
			if rest := readAll(t, r); rest != "" {
				t.Errorf("after the response came %q", rest)
			}
		})
	}
}

func TestARefusedBodyThatArrivesKeepsTheConnection(t *testing.T) {
	for name, edit := range map[string]func(*match.Policy){
		"with a problem": func(*match.Policy) {},
		"without a body": func(p *match.Policy) { p.Response.Body = "None" },
	} {
		t.Run("refused "+name, func(t *testing.T) {
			conn := dial(t, front(t, newProxy(refuses, checkout(edit)), unreached(t)))
			r := bufio.NewReader(conn)
			for _, parts := range [][]string{
				{crlf("POST / HTTP/1.1", "Host: shop.example", "Content-Length: 5", "", "hello")},
				{crlf("POST / HTTP/1.1", "Host: shop.example", "Content-Length: 5", "", ""), "he", "llo"},
				{crlf("POST / HTTP/1.1", "Host: shop.example", "Transfer-Encoding: chunked", "", ""), crlf("5", "hello", "0", "", "")},
				{crlf("POST / HTTP/1.1", "Host: shop.example", "Content-Length: 200000", "", ""), strings.Repeat("a", 200_000)},
				{crlf("GET / HTTP/1.1", "Host: shop.example", "", "")},
			} {
				for _, part := range parts {
					_, _ = io.WriteString(conn, part)
				}
				res, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatal(err)
				}
				_ = readAll(t, res.Body)
				if res.StatusCode != http.StatusTooManyRequests || res.Close || res.ContentLength < 0 {
					t.Errorf("%q is answered with %s of length %d, which ends the connection: %t", parts[0], res.Status, res.ContentLength, res.Close)
				}
			}
		})
	}
}

// uploads sends 8 MiB in chunks so many times, each on a connection of its own, and counts what comes of it.
func uploads(t *testing.T, addr string, times int) map[string]int {
	t.Helper()
	results := map[string]int{}
	for range times {
		client := newClient(t, false)
		res, err := client.Post("http://"+addr, "application/octet-stream", io.LimitReader(zeros{}, 8<<20))
		if err != nil {
			results[err.Error()]++
			continue
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		client.CloseIdleConnections()
		results[res.Status]++
	}
	return results
}

func TestAClientThatIsStillSendingGetsItsAnswer(t *testing.T) {
	const times = 50
	want := map[string]int{"413 Request Entity Too Large": times}
	app := application(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	}))
	t.Run("from the application", func(t *testing.T) {
		got := uploads(t, front(t, newProxy(admits, checkout()), app), times)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
	})
	t.Run("from a limit", func(t *testing.T) {
		limit := checkout(func(p *match.Policy) { p.Response.StatusCode = http.StatusRequestEntityTooLarge })
		got := uploads(t, front(t, newProxy(refuses, limit), app), times)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
	})
	t.Run("from nobody, where the application is down", func(t *testing.T) {
		got := uploads(t, front(t, newProxy(admits, checkout()), closed(t)), times)
		if diff := cmp.Diff(map[string]int{"502 Bad Gateway": times}, got); diff != "" {
			t.Errorf("results (-want +got):\n%s", diff)
		}
	})
}

func TestAnAnsweredClientThatNeverEndsItsBodyIsLetGo(t *testing.T) {
	for name, request := range map[string]string{
		"of a known length": crlf("POST / HTTP/1.1", "Host: shop.example", "Content-Length: 100", "", "a"),
		"in chunks":         crlf("POST / HTTP/1.1", "Host: shop.example", "Transfer-Encoding: chunked", "", "1", "a", ""),
	} {
		t.Run("a body "+name, func(t *testing.T) {
			t.Parallel()
			app, _ := wire(t, crlf("HTTP/1.1 413 Request Entity Too Large", "Content-Length: 0", "", ""))
			r := send(t, front(t, newProxy(admits, checkout()), app), request)
			res, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatal(err)
			}
			if rest := readAll(t, r); rest != "" || !res.Close {
				t.Errorf("%s, and then %q; it ends the connection: %t", res.Status, rest, res.Close)
			}
		})
	}
}

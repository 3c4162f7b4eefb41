// SPDX-License-Identifier: Apache-2.0

package redisclient

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// small is what a reply of a test may have.
const small = 1000

func TestVet(t *testing.T) {
	for name, test := range map[string]struct {
		reply string
		whole bool
	}{
		"a status":                            {"+OK\r\n", true},
		"an error":                            {"-ERR whatever it is\r\n", true},
		"a number":                            {":12\r\n", true},
		"nothing":                             {"_\r\n", true},
		"no text":                             {"$-1\r\n", true},
		"no list":                             {"*-1\r\n", true},
		"an empty text":                       {"$0\r\n\r\n", true},
		"an empty list":                       {"*0\r\n", true},
		"a text with the ends of lines in it": {"$6\r\n\r\n*9\r\n\r\n", true},
		"a list of all kinds":                 {"*9\r\n+a\r\n-b\r\n:1\r\n,1.5\r\n#t\r\n(123\r\n=5\r\ntxt:a\r\n!1\r\na\r\n_\r\n", true},
		"lists in lists":                      {"*2\r\n*1\r\n*2\r\n:1\r\n:2\r\n:3\r\n", true},
		"a map":                               {"%2\r\n+a\r\n*1\r\n:1\r\n+b\r\n:2\r\n", true},
		"a set and a push":                    {"~1\r\n>2\r\n+message\r\n$1\r\na\r\n", true},
		"as much as there may be":             {"$994\r\n" + strings.Repeat("a", 994) + "\r\n", true},
		"one byte more":                       {"$995\r\n" + strings.Repeat("a", 995) + "\r\n", false},
		"a line that doesn't end":             {"+" + strings.Repeat("a", small), false},
		"many texts that are too much in all": {"*4\r\n" + strings.Repeat("$250\r\n"+strings.Repeat("a", 250)+"\r\n", 4), false},
		"more values than there can be":       {"*32\r\n", false},
		"more of a map than there can be":     {"%16\r\n", false},
		"2^31 bytes":                          {"$2147483648\r\n", false},
		"2^31 values":                         {"*2147483648\r\n", false},
		"2^63-1 bytes":                        {"$9223372036854775807\r\n", false},
		"2^63-1 values":                       {"*9223372036854775807\r\n", false},
		"2^64 bytes":                          {"$18446744073709551616\r\n", false},
		"a size that is none":                 {"$a\r\n", false},
		"a size below nothing":                {"$-2\r\n", false},
		"a size that is told later":           {"$?\r\n", false},
		"a size without an end of its own":    {"$1\n", false},
		"a size that is longer than any":      {"$" + strings.Repeat("0", small/2) + "1\r\n", false},
		"lists as deep as they may be":        {strings.Repeat("*1\r\n", maxDepth-5) + ":1\r\n", true},
		"lists that are deeper":               {strings.Repeat("*1\r\n", maxDepth+1), false},
		"an attribute":                        {"|1\r\n+a\r\n+b\r\n+OK\r\n", false},
		"an empty line":                       {"\r\n", false},
		"what isn't Redis":                    {"HTTP/1.1 400 Bad Request\r\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			for way, chunk := range map[string]int{"at once": len(test.reply), "byte by byte": 1} {
				v := newVet(small)
				err := passInChunks(&v, []byte(test.reply), chunk)
				if whole := err == nil; whole != test.whole || !whole && !errors.Is(err, errGarbled) {
					t.Errorf("%s: got %v", way, err)
				}
				if fresh := newVet(small); test.whole && (v.depth != 0 || v.lacks != fresh.lacks || v.size != 0 || v.skip != 0 || v.length != 0) {
					t.Errorf("%s: the reply is not over: %+v", way, v)
				}
			}
		})
	}
}

func passInChunks(v *vet, reply []byte, size int) error {
	for len(reply) > 0 {
		n := min(size, len(reply))
		if err := v.pass(reply[:n]); err != nil {
			return err
		}
		reply = reply[n:]
	}
	return nil
}

// FuzzReplies looks for replies that the library doesn't survive.
func FuzzReplies(f *testing.F) {
	for _, seed := range []string{
		"*3\r\n:1\r\n$1\r\n\x01\r\n$4\r\nabcd\r\n",
		"$2147483648\r\n", "*9223372036854775807\r\n", "%4611686018427387904\r\n",
		"%1\r\n*1\r\n:1\r\n:2\r\n", "|1\r\n+a\r\n+b\r\n", ">2\r\n+message\r\n+a\r\n+OK\r\n", "=3\r\ntxt\r\n", "#x\r\n", "(x\r\n", "-\r\n", "$?\r\n",
		strings.Repeat("*1\r\n", 2*maxDepth), "HTTP/1.1 400 Bad Request\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(_ *testing.T, reply []byte) {
		// Connecting is answered well.
		said := io.MultiReader(strings.NewReader("%0\r\n"), bytes.NewReader(reply))
		client := redis.NewClient(&redis.Options{
			MaxRetries:      -1,
			DisableIdentity: true,
			Dialer: func(context.Context, string, string) (net.Conn, error) {
				nowhere, _ := net.Pipe()
				return vetConn(&speaker{Conn: nowhere, says: said}, 1<<20), nil
			},
		})
		defer func() { _ = client.Close() }()
		for range 3 {
			_ = client.Do(context.Background(), "GET", "a").Err() //nolint:forbidigo // A fuzzed test has no end to heed.
		}
	})
}

// speaker is a connection at whose other end somebody talks without listening.
type speaker struct {
	net.Conn
	says io.Reader
}

// Read is part of [net.Conn].
func (s *speaker) Read(p []byte) (int, error) { return s.says.Read(p) }

// Write is part of [net.Conn].
func (*speaker) Write(p []byte) (int, error) { return len(p), nil }

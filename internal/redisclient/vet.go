// SPDX-License-Identifier: Apache-2.0

package redisclient

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"
)

const (
	// largestReply is what a reply may have at most, in bytes, unless [MaxReply] says otherwise.
	largestReply = 64 << 20
	// maxDepth is how deep the lists of a reply may be in each other. Those of Redis are a few.
	maxDepth = 32
	// maxHeader is more than a line has that tells a size: its kind, 19 digits, and its end.
	maxHeader = 24
	// valueSize is about what the library allocates for a value, beside its text.
	valueSize = 32
)

// errGarbled is why a connection is given up: who is at its other end doesn't speak as Redis does.
var errGarbled = errors.New("the reply is not one of Redis")

// MaxReply has a connection be given up on which a reply has more than so many bytes, or says that it will: 64 MiB
// without it.
func MaxReply(size int64) Option { return func(u *use) { u.maxReply = size } }

// vetted is a connection that reads nothing but what can be replies of Redis. The library believes what a reply
// says of its size: it allocates as much before any of it is there, and panics where that can't be. Lists in lists
// it reads by recursion, up to where the stack ends and the process with it.
type vetted struct {
	net.Conn
	vet vet
	// broken is why nothing more is read. The library may ask again.
	broken error
}

// vettedSocket is a vetted connection that the library can look at, to see whether it was closed.
type vettedSocket struct {
	*vetted
	syscall.Conn
}

func vetConn(conn net.Conn, maxReply int64) net.Conn {
	v := &vetted{Conn: conn, vet: newVet(maxReply)}
	if socket, ok := conn.(syscall.Conn); ok {
		return vettedSocket{v, socket}
	}
	return v
}

// Read is part of [net.Conn].
func (v *vetted) Read(p []byte) (int, error) {
	if v.broken != nil {
		return 0, v.broken
	}
	n, err := v.Conn.Read(p)
	if v.broken = v.vet.pass(p[:n]); v.broken != nil {
		return 0, v.broken
	}
	return n, err
}

// vet follows the replies that pass through it.
type vet struct {
	max int64
	// size is what the reply has so far, or has said that it will have.
	size int64
	// skip is how much of a text, and of what ends it, is still to come.
	skip int64
	// line is the start of a line that is coming, and length is how long it is so far.
	line   [maxHeader]byte
	length int
	// lacks is how many values are to come on each level. The first is that of the reply itself.
	lacks [maxDepth + 1]int64
	depth int
}

func newVet(maxReply int64) vet {
	v := vet{max: maxReply}
	v.lacks[0] = 1
	return v
}

// pass follows what was read. After an error it must not be called again.
func (v *vet) pass(p []byte) error {
	for len(p) > 0 {
		if v.skip > 0 {
			n := min(v.skip, int64(len(p)))
			p, v.skip = p[n:], v.skip-n
			if v.skip == 0 {
				v.finish()
			}
			continue
		}
		n := bytes.IndexByte(p, '\n') + 1
		ends := n > 0
		if !ends {
			n = len(p)
		}
		copy(v.line[min(v.length, maxHeader):], p[:n])
		v.length += n
		p = p[n:]
		if err := v.grow(int64(n)); err != nil {
			return err
		}
		if ends {
			if err := v.begin(); err != nil {
				return err
			}
		}
	}
	return nil
}

// grow has the reply be larger.
func (v *vet) grow(by int64) error {
	if by > v.max-v.size {
		return fmt.Errorf("%w: it has more than %d bytes", errGarbled, v.max)
	}
	v.size += by
	return nil
}

// begin takes in the first line of a value, which may be all of it.
func (v *vet) begin() error {
	line := v.line[:min(v.length, maxHeader)]
	v.length = 0
	switch kind := line[0]; kind {
	case '+', '-', ':', ',', '#', '(', '_':
		v.finish()
		return nil
	case '$', '=', '!':
		return v.text(line)
	case '*', '~', '>':
		return v.list(line, 1)
	case '%':
		return v.list(line, 2) // A key and a value.
	default: // Attributes included, which Redis gives only to who asks for them.
		return fmt.Errorf("%w: it has a value that begins with %q", errGarbled, kind)
	}
}

func (v *vet) text(line []byte) error {
	n, err := sizeOf(line)
	if err != nil {
		return err
	}
	if n < 0 { // There is none.
		v.finish()
		return nil
	}
	v.skip = n + int64(len("\r\n"))
	return v.grow(n)
}

func (v *vet) list(line []byte, times int64) error {
	n, err := sizeOf(line)
	if err != nil {
		return err
	}
	if n <= 0 {
		v.finish()
		return nil
	}
	if n > v.max || v.depth == maxDepth {
		return fmt.Errorf("%w: it has %d values on level %d", errGarbled, n, v.depth)
	}
	v.depth++
	v.lacks[v.depth] = n * times
	return v.grow(n * times * valueSize)
}

// sizeOf reads a line like "$12". Minus one stands for nothing.
func sizeOf(line []byte) (int64, error) {
	digits, ended := bytes.CutSuffix(line[1:], []byte("\r\n"))
	n, err := strconv.ParseInt(string(digits), 10, 64)
	if !ended || err != nil || n < -1 {
		return 0, fmt.Errorf("%w: it has the size %q", errGarbled, line)
	}
	return n, nil
}

// finish ends a value, and the lists whose last it is.
func (v *vet) finish() {
	v.lacks[v.depth]--
	for v.lacks[v.depth] == 0 && v.depth > 0 {
		v.depth--
		v.lacks[v.depth]--
	}
	if v.depth == 0 {
		v.lacks[0], v.size = 1, 0
	}
}

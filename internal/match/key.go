// SPDX-License-Identifier: Apache-2.0

package match

import (
	"encoding/binary"
	"net/netip"
	"strings"
)

// What becomes of a request that lacks a value of the key. Anything else is Share.
const (
	onMissingSkip = "Skip"
	onMissingDeny = "Deny"
)

// Kinds of what a message speaks of. They are part of the counters' names: never change one.
const (
	kindTarget byte = iota
	kindHeader
	kindClientIP
	kindMethod
	kindHost
	kindOverflow
)

// message is what names a counter: room for a seed, and then the tuple of the key. Every value in it
// follows its length, so that no two tuples give the same bytes.
type message []byte

// newMessage writes the tuple of a request's values for a key into buf. In the order of the sources, the
// first value that is lacking and isn't shared ends it, and onMissing says what becomes of the request.
func newMessage(buf []byte, key []source, v *view) (m message, onMissing string) {
	buf = append(buf, make([]byte, seedSize)...)
	for i := range key {
		s := &key[i]
		with, p := s.append(buf, v)
		if s.denies(p) || s.skips(p) {
			return nil, s.onMissing
		}
		buf = with
	}
	return buf, ""
}

// source is a [KeySource], ready to be read.
type source struct {
	kind   byte
	header headerName
	// bits of an IPv6 address that count.
	bits      int
	onMissing string
	// definition is how the source stands in a tuple: its kind, its name and its bits.
	definition []byte
}

func newSource(k KeySource) source {
	s := source{onMissing: k.OnMissing}
	switch {
	case k.Header != "":
		s.kind, s.header = kindHeader, newHeaderName(k.Header)
	case k.ClientIP != nil:
		s.kind, s.bits = kindClientIP, k.ClientIP.IPv6PrefixLength
	case k.Method:
		s.kind = kindMethod
	case k.Host:
		s.kind = kindHost
	}
	s.definition = binary.AppendVarint(appendString([]byte{s.kind}, s.header.canonical), int64(s.bits))
	return s
}

// denies says whether the limit refuses a request because of the source.
func (s *source) denies(p presence) bool { return p != given && s.onMissing == onMissingDeny }

// skips says whether the limit leaves a request out because of the source. An ambiguous value never is a
// reason: whoever wants to escape a limit could add a line.
func (s *source) skips(p presence) bool { return p == missing && s.onMissing == onMissingSkip }

// append appends the source, the presence of its value in a request, and the value if there is one. So no
// value that a client can send equals a missing or an ambiguous one.
func (s *source) append(b []byte, v *view) ([]byte, presence) {
	b = append(b, s.definition...)
	switch s.kind {
	case kindHeader:
		return appendHeader(b, v, s.header)
	case kindClientIP:
		return appendAddr(b, v.Client, s.bits)
	case kindMethod:
		// In upper case, for some applications take get for GET.
		return appendValue(b, strings.ToUpper(v.Method))
	case kindHost:
		return appendValue(b, v.host)
	}
	return append(b, byte(missing)), missing
}

func appendHeader(b []byte, v *view, n headerName) ([]byte, presence) {
	value, p := v.value(n)
	b = append(b, byte(p))
	if p == given {
		b = appendString(b, value)
	}
	return b, p
}

// appendAddr appends the network of an address: 4 bytes of IPv4, also where it comes mapped into IPv6, or
// the first bits of IPv6.
func appendAddr(b []byte, a netip.Addr, bits int) ([]byte, presence) {
	a = a.Unmap().WithZone("")
	if a.Is4() {
		bits = a.BitLen()
	}
	network, err := a.Prefix(bits)
	if err != nil || !a.IsValid() {
		return append(b, byte(missing)), missing
	}
	b = binary.AppendVarint(append(b, byte(given)), int64(a.BitLen()/8))
	if a.Is4() {
		ip := network.Addr().As4()
		return append(b, ip[:]...), given
	}
	ip := network.Addr().As16()
	return append(b, ip[:]...), given
}

// appendValue appends a value; the empty one is missing.
func appendValue(b []byte, value string) ([]byte, presence) {
	if value == "" {
		return append(b, byte(missing)), missing
	}
	return appendString(append(b, byte(given)), value), given
}

// appendString appends a string after its length.
func appendString(b []byte, s string) []byte {
	return append(binary.AppendVarint(b, int64(len(s))), s...)
}

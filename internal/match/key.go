// SPDX-License-Identifier: Apache-2.0

package match

import (
	"encoding/binary"
	"net/http"
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
)

// message is what names a counter: room for a seed, and then the tuple of the key. Every value in it
// follows its length, so that no two tuples give the same bytes.
type message []byte

// newMessage writes the tuple of a request's values for a key into buf. In the order of the sources, the
// first value that is missing and isn't shared ends it, and missing says what becomes of the request.
func newMessage(buf []byte, key []source, v *view) (m message, missing string) {
	buf = append(buf, make([]byte, seedSize)...)
	for i := range key {
		s := &key[i]
		with, ok := s.append(buf, v)
		if !ok && (s.onMissing == onMissingSkip || s.onMissing == onMissingDeny) {
			return nil, s.onMissing
		}
		buf = with
	}
	return buf, ""
}

// source is a [KeySource], ready to be read.
type source struct {
	kind byte
	// name of the header, in canonical form.
	name string
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
		s.kind, s.name = kindHeader, http.CanonicalHeaderKey(k.Header)
	case k.ClientIP != nil:
		s.kind, s.bits = kindClientIP, k.ClientIP.IPv6PrefixLength
	case k.Method:
		s.kind = kindMethod
	case k.Host:
		s.kind = kindHost
	}
	s.definition = binary.AppendVarint(appendString([]byte{s.kind}, s.name), int64(s.bits))
	return s
}

// append appends the source and its value in a request, which follows a 1. It says whether there is a
// value. A 0 stands for a missing one, and so no value that a client can send equals it.
func (s *source) append(b []byte, v *view) ([]byte, bool) {
	b = append(b, s.definition...)
	switch s.kind {
	case kindHeader:
		return appendLines(b, v.header(s.name))
	case kindClientIP:
		return appendAddr(b, v.Client, s.bits)
	case kindMethod:
		// In upper case, for some applications take get for GET.
		return appendValue(b, strings.ToUpper(v.Method))
	case kindHost:
		return appendValue(b, v.host)
	}
	return append(b, 0), false
}

// appendLines appends the lines of a header, joined by commas. An empty line is a value, no line is none.
func appendLines(b []byte, lines []string) ([]byte, bool) {
	if len(lines) == 0 {
		return append(b, 0), false
	}
	size := len(lines) - 1
	for _, l := range lines {
		size += len(l)
	}
	b = binary.AppendVarint(append(b, 1), int64(size))
	for i, l := range lines {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, l...)
	}
	return b, true
}

// appendAddr appends the network of an address: 4 bytes of IPv4, also where it comes mapped into IPv6, or
// the first bits of IPv6.
func appendAddr(b []byte, a netip.Addr, bits int) ([]byte, bool) {
	a = a.Unmap().WithZone("")
	if a.Is4() {
		bits = a.BitLen()
	}
	network, err := a.Prefix(bits)
	if err != nil || !a.IsValid() {
		return append(b, 0), false
	}
	b = binary.AppendVarint(append(b, 1), int64(a.BitLen()/8))
	if a.Is4() {
		ip := network.Addr().As4()
		return append(b, ip[:]...), true
	}
	ip := network.Addr().As16()
	return append(b, ip[:]...), true
}

// appendValue appends a value; the empty one is missing.
func appendValue(b []byte, value string) ([]byte, bool) {
	if value == "" {
		return append(b, 0), false
	}
	return appendString(append(b, 1), value), true
}

// appendString appends a string after its length.
func appendString(b []byte, s string) []byte {
	return append(binary.AppendVarint(b, int64(len(s))), s...)
}

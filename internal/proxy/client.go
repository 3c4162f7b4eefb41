// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// TrustedProxies are the networks of the proxies in front of us: what they append to X-Forwarded-For is
// believed. An IPv4 network also stands for its IPv4-mapped form.
type TrustedProxies []netip.Prefix

// client gives the address of the client: the last one, seen from us, that no trusted proxy has. Every
// entry of X-Forwarded-For was appended by the one to its right, so one is read only while all to its
// right are trusted: what a client writes there itself never counts. An entry that is no address ends the
// walk at the last good one.
func (t TrustedProxies) client(peer netip.Addr, forwardedFor []string) netip.Addr {
	client := peer
	for _, line := range slices.Backward(forwardedFor) {
		for more := true; more; {
			if !t.trust(client) {
				return client
			}
			var entry string
			line, entry, more = cutLast(line)
			addr, ok := parseHop(entry)
			if !ok {
				return client
			}
			client = addr
		}
	}
	return client
}

func (t TrustedProxies) trust(a netip.Addr) bool {
	return slices.ContainsFunc(t, func(p netip.Prefix) bool { return p.Contains(a) })
}

// cutLast cuts the last element off a list, and says whether there are more.
func cutLast(list string) (rest, last string, more bool) {
	i := strings.LastIndexByte(list, ',')
	if i < 0 {
		return "", list, false
	}
	return list[:i], list[i+1:], true
}

// parseHop reads an address as proxies write them: with or without a port, IPv6 with or without brackets.
func parseHop(s string) (netip.Addr, bool) {
	s = strings.Trim(s, " \t")
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return canonical(ap.Addr()), true
	}
	if inner, ok := strings.CutPrefix(s, "["); ok {
		if s, ok = strings.CutSuffix(inner, "]"); !ok {
			return netip.Addr{}, false
		}
	}
	a, err := netip.ParseAddr(s)
	return canonical(a), err == nil
}

// canonical gives the one form of an address that counters know: no IPv4 in IPv6, no zone.
func canonical(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// peer gives the address at the other end of the connection.
func peer(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return canonical(ap.Addr())
}

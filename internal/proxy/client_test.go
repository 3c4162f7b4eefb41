// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var private = TrustedProxies{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("fd00::/8"),
}

func TestClientAddress(t *testing.T) {
	tests := []struct {
		name         string
		trusted      TrustedProxies
		peer         string
		forwardedFor []string
		want         string
	}{
		{"without a header it is the peer", private, "10.0.0.1", nil, "10.0.0.1"},
		{"nobody is believed by default", nil, "10.0.0.1", []string{"198.51.100.7"}, "10.0.0.1"},
		{"an untrusted peer is not believed", private, "203.0.113.9", []string{"198.51.100.7"}, "203.0.113.9"},
		{"a trusted peer is believed", private, "10.0.0.1", []string{"198.51.100.7"}, "198.51.100.7"},
		{"what the client wrote itself does not count", private, "10.0.0.1", []string{"1.1.1.1, 2.2.2.2, 198.51.100.7"}, "198.51.100.7"},
		{"trusted proxies in a row are walked", private, "10.0.0.1", []string{"1.1.1.1, 198.51.100.7, 10.9.9.9,10.8.8.8"}, "198.51.100.7"},
		{"all lines are one list", private, "10.0.0.1", []string{"1.1.1.1", "198.51.100.7", "10.9.9.9"}, "198.51.100.7"},
		{"where all are trusted it is the first", private, "10.0.0.1", []string{"10.3.3.3, 10.2.2.2"}, "10.3.3.3"},
		{"a malformed entry ends the walk at the last good one", private, "10.0.0.1", []string{"198.51.100.7, unknown, 10.2.2.2"}, "10.2.2.2"},
		{"a malformed first entry leaves the peer", private, "10.0.0.1", []string{"198.51.100.7, "}, "10.0.0.1"},
		{"an empty line leaves the peer", private, "10.0.0.1", []string{"198.51.100.7", ""}, "10.0.0.1"},
		{"a port is left out", private, "10.0.0.1", []string{"198.51.100.7:4711"}, "198.51.100.7"},
		{"IPv6 with a port", private, "fd00::1", []string{"[2001:db8::7]:4711"}, "2001:db8::7"},
		{"IPv6 in brackets", private, "fd00::1", []string{"[2001:db8::7]"}, "2001:db8::7"},
		{"half a bracket is malformed", private, "fd00::1", []string{"[2001:db8::7"}, "fd00::1"},
		{"IPv6 in any spelling is one address", private, "fd00::1", []string{"2001:0DB8:0:0::0007"}, "2001:db8::7"},
		{"mapped IPv4 is IPv4", private, "fd00::1", []string{"198.51.100.7, ::ffff:10.2.2.2"}, "198.51.100.7"},
		{"a zone is dropped", private, "fd00::1", []string{"fe80::7%eth0"}, "fe80::7"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.trusted.client(netip.MustParseAddr(tt.peer), tt.forwardedFor)
			if diff := cmp.Diff(tt.want, got.String()); diff != "" {
				t.Errorf("client address (-want +got):\n%s", diff)
			}
		})
	}
}

// FuzzClientAddress holds that nothing to the left of an untrusted address counts, and that counters only
// ever see canonical addresses.
func FuzzClientAddress(f *testing.F) {
	f.Add("1.1.1.1", "10.2.2.2")
	f.Add("a,,b", "unknown, [::1]:80")
	f.Add("\x00", "::ffff:10.0.0.1%lo, fe80::1%eth0")
	f.Fuzz(func(t *testing.T, forged, line string) {
		peer := netip.MustParseAddr("10.0.0.1")
		got := private.client(peer, strings.Split(line, "\n"))
		if !got.IsValid() || got.Zone() != "" || got.Is4In6() {
			t.Errorf("client address of %q is %v, which is not canonical", line, got)
		}
		honest := private.client(peer, []string{"198.51.100.7," + line})
		if lied := private.client(peer, []string{forged, forged + ",198.51.100.7," + line}); lied != honest {
			t.Errorf("with %q to the left the client address is %v, not %v", forged, lied, honest)
		}
	})
}

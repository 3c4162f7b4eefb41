// SPDX-License-Identifier: Apache-2.0

// Package redirect sends connections that arrive at ports of this network namespace to other ports of it.
package redirect

import (
	"fmt"
	"strconv"
	"strings"
)

// Port is a TCP port whose connections go to another.
type Port struct{ From, To uint16 }

// ParsePort reads FROM:TO, like 8080:15101.
func ParsePort(s string) (Port, error) {
	from, to, _ := strings.Cut(s, ":")
	f, errFrom := strconv.ParseUint(from, 10, 16)
	t, errTo := strconv.ParseUint(to, 10, 16)
	if errFrom != nil || errTo != nil || f == 0 || t == 0 {
		return Port{}, fmt.Errorf("%s: must be two ports, like 8080:15101", s)
	}
	return Port{From: uint16(f), To: uint16(t)}, nil
}

// String writes the port as [ParsePort] reads it.
func (p Port) String() string { return fmt.Sprintf("%d:%d", p.From, p.To) }

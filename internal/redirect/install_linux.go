// SPDX-License-Identifier: Apache-2.0

package redirect

import (
	"encoding/binary"
	"fmt"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// table is ours alone, so that it can be replaced as a whole.
const table = "weir"

// register is what a rule keeps values in, one after the other.
const register = 1

// Install redirects new connections over IPv4 and IPv6 that come in by any interface but loopback. Those within this
// host stay as they are: the sidecar's to the application are among them.
//
// It replaces what it installed before, at once: no connection finds neither. It needs the capability NET_ADMIN,
// and Linux 5.2.
func Install(ports []Port) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("talking to nftables: %w", err)
	}
	t := &nftables.Table{Name: table, Family: nftables.TableFamilyINet}
	// One that isn't there can't be deleted.
	c.AddTable(t)
	c.DelTable(t)
	c.AddTable(t)
	chain := c.AddChain(&nftables.Chain{
		Name: "inbound", Table: t, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: acceptLoopback()})
	for _, p := range ports {
		c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: redirection(p)})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("installing nftables rules, which takes the capability NET_ADMIN and Linux 5.2: %w", err)
	}
	return nil
}

// acceptLoopback is: iifname "lo" accept.
func acceptLoopback() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte("lo\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}
}

// redirection is: tcp dport FROM redirect to :TO.
func redirection(p Port) []expr.Any {
	const (
		destination = 2 // where a TCP header has the destination's port
		size        = 2
	)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{syscall.IPPROTO_TCP}},
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: destination, Len: size},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: bigEndian(p.From)},
		&expr.Immediate{Register: register, Data: bigEndian(p.To)},
		&expr.Redir{RegisterProtoMin: register},
	}
}

// bigEndian is how ports are in packets.
func bigEndian(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

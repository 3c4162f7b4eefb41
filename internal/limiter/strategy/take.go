// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"cmp"
	_ "embed"
	"fmt"
	"slices"
	"strings"
)

// Script decides a batch of requests inside Redis, on Redis's clock. A [Call] gives its keys and arguments, and reads
// its reply. It is the same text in every process of one version.
var Script = assemble()

// Apart decides requests that have no counter in common as [Script] does, in less time. [Call.Apart] says which calls
// are of such.
var Apart = assembleApart()

var (
	//go:embed prelude.lua
	prelude string
	//go:embed take.lua
	take string
	//go:embed apart.lua
	apart string
)

// mode is what a request of a [Call] is for. The numbers are those on the wire.
type mode byte

const (
	modeTake mode = iota + 1
	modeTry
	modeRefund
	modeRenew
)

// assemble puts the rules of the strategies before the loop over the requests. Redis runs the whole text at every
// call, and to make a function takes longer than to skip it: so none is made but for a strategy that is hit.
func assemble() string {
	var b strings.Builder
	writePrelude(&b)
	assembleFunction(&b, "rule", func(s *Strategy) string { return s.lua })
	assembleFunction(&b, "amendment", func(s *Strategy) string { return s.amendLua })
	assembleFunction(&b, "open", func(s *Strategy) string { return s.openLua })
	b.WriteString(take)
	return b.String()
}

func assembleApart() string {
	var b strings.Builder
	writePrelude(&b)
	assembleFunction(&b, "rule", func(s *Strategy) string { return s.lua })
	assembleFunction(&b, "open", func(s *Strategy) string { return s.openLua })
	b.WriteString(apart)
	return b.String()
}

// assembleFunction writes a function of a strategy's code and what follows. It gives nothing for a strategy without
// a body.
func assembleFunction(b *strings.Builder, name string, body func(*Strategy) string) {
	fmt.Fprintf(b, "local function %s(code, ...)\n", name)
	word := "if"
	for _, s := range byCode() {
		if lua := body(s); lua != "" {
			fmt.Fprintf(b, "%s code == %d then\nlocal LAYOUT = %d\n%s\n", word, s.code, s.layout, lua)
			word = "elseif"
		}
	}
	b.WriteString("end\nend\n")
}

func writePrelude(b *strings.Builder) {
	fmt.Fprintf(b, "local LONGEST, GRACE, SLACK, TOLERANCE, WIDTH, HEADER = %d, %d, %d, %g, %d, %d\n",
		int64(longest), int64(grace), int64(slack), tolerance, width, header)
	fmt.Fprintf(b, "local TAKE, TRY, REFUND, RENEW, TIMES = %d, %d, %d, %d, %d\n", modeTake, modeTry, modeRefund, modeRenew, maxTimes)
	b.WriteString(prelude)
}

// byCode gives the strategies in an order that is always the same.
func byCode() []*Strategy {
	var all []*Strategy
	for _, s := range strategies {
		all = append(all, s.strategy)
	}
	slices.SortFunc(all, func(s, t *Strategy) int { return cmp.Compare(s.code, t.code) })
	return all
}

// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	_ "embed"
	"fmt"
	"strings"

	"github.com/weir-dev/weir/internal/limiter"
)

// GiveBack undoes, inside Redis, what [Lend] has charged. [Return] gives its keys and arguments. It never gives
// more than was taken, and nothing that would let more through than if it had not been taken.
var GiveBack = assembleGiveBack()

//go:embed giveback.lua
var giveBack string

func assembleGiveBack() string {
	var b strings.Builder
	b.WriteString(constants)
	b.WriteString("local widths, layouts, givers = {}, {}, {}\n")
	for _, s := range byCode() {
		fmt.Fprintf(&b, "widths[%d], layouts[%d], givers[%d] = %d, %d, %s\n", s.code, s.code, s.code, s.width(), s.layout, s.giveBackLua)
	}
	b.WriteString(giveBack)
	return b.String()
}

// Loan is a hit that was charged, and the receipt for it.
type Loan struct {
	Hit     limiter.Hit
	Receipt string
}

// Return gives the keys and the arguments with which [GiveBack] gives back loans of different counters. Now is
// the caller's time, in microseconds since the Unix epoch.
func Return(now int64, loans ...Loan) (keys []string, args []any) {
	for _, l := range loans {
		s := strategies[l.Hit.Limit.Algorithm]
		keys = append(keys, l.Hit.Key)
		args = append(args, int64(s.code), l.Hit.Cost, l.Receipt)
		for _, p := range s.params(now, l.Hit.Limit) {
			args = append(args, p)
		}
	}
	return keys, args
}

// Receipts reads the reply to a [Call] of [Lend] with so many hits in all. A receipt is empty where nothing was
// charged.
func Receipts(reply []any, hits int) ([]limiter.Verdict, []string, error) {
	if len(reply) != 5*hits {
		return nil, nil, fmt.Errorf("reading the receipts of %d hits: the reply has %d parts, not %d", hits, len(reply), 5*hits)
	}
	numbers, receipts := make([]int64, 4*hits), make([]string, hits)
	for i := range numbers {
		n, ok := reply[i].(int64)
		if !ok {
			return nil, nil, fmt.Errorf("reading the receipts: %v is no number", reply[i])
		}
		numbers[i] = n
	}
	for i := range receipts {
		text, ok := reply[4*hits+i].(string)
		if !ok {
			return nil, nil, fmt.Errorf("reading the receipts: %v is no text", reply[4*hits+i])
		}
		receipts[i] = text
	}
	verdicts, err := Verdicts(numbers, hits)
	return verdicts, receipts, err
}

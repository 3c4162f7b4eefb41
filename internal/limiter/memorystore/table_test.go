// SPDX-License-Identifier: Apache-2.0

package memorystore

import (
	"fmt"
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// held is what a table holds for a name.
type held struct {
	Limit   uint32
	Layout  byte
	State   string
	Expires int64
}

func TestTableIsAMap(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		table, want := newTable(), map[name]held{}
		few := rapid.Bool().Draw(rt, "few hashes")
		for range rapid.IntRange(1, 400).Draw(rt, "steps") {
			n := name{rapid.Uint32Range(0, 500).Draw(rt, "name")}
			if few {
				// Names that differ only in what no bucket goes by.
				n[0], n[2] = n[0]%4, n[0]/4
			}
			if i := table.find(n); i != 0 && rapid.IntRange(0, 2).Draw(rt, "remove") == 0 {
				table.remove(i)
				delete(want, n)
				continue
			}
			h := held{
				Limit:   n[0] % 3,
				Layout:  rapid.Byte().Draw(rt, "layout"),
				State:   string(make([]byte, rapid.SampledFrom([]int{0, 1, 16, 28, 29, 30, 100}).Draw(rt, "size"))) + "end",
				Expires: rapid.Int64().Draw(rt, "expires"),
			}
			put(&table, n, h)
			want[n] = h
		}
		if diff := cmp.Diff(want, contents(&table)); diff != "" {
			rt.Fatalf("the table is no map of what was put there (-want +got):\n%s", diff)
		}
		for n := range want {
			table.remove(table.find(n))
		}
		if got := contents(&table); len(got) > 0 || len(table.heads) != 1 || len(table.chunks) > 1 {
			rt.Errorf("an emptied table has %d slots, %d buckets and %d chunks", len(got), len(table.heads), len(table.chunks))
		}
		if len(table.free) != len(table.states) {
			rt.Errorf("of %d long states of nobody %d are free", len(table.states), len(table.free))
		}
	})
}

func TestTableGrowsBitByBit(t *testing.T) {
	t.Run("a counter that comes adds two buckets, and one that goes takes four", func(t *testing.T) {
		table := newTable()
		for i := range uint32(10_000) {
			before := len(table.heads)
			table.add(name{i * 2654435761}, 0, 1)
			if more := len(table.heads) - before; more > minBuckets {
				t.Fatalf("counter %d added %d buckets", i, more)
			}
		}
		for table.length > 0 {
			before := len(table.heads)
			table.remove(table.length/2 + 1)
			if fewer := before - len(table.heads); fewer > maxBuckets {
				t.Fatalf("with %d counters left one took %d buckets", table.length, fewer)
			}
		}
	})
	t.Run("most counters are alone in their bucket", func(t *testing.T) {
		table := newTable()
		for i := range uint32(10_000) {
			table.add(name{i * 2654435761}, 0, 1)
		}
		looks := 0
		for i := range uint32(10_000) {
			for j := *table.bucket(table.at(i + 1).name); j != 0; j = table.at(j).next {
				looks++
				if j == i+1 {
					break
				}
			}
		}
		if looks > 15_000 {
			t.Errorf("to find 10000 counters takes %d looks", looks)
		}
	})
}

// BenchmarkTableGrows gives the longest that one of many counters takes to add. Of what an addition took in five tables
// that grow alike the least counts, so that it is nobody else's work.
func BenchmarkTableGrows(b *testing.B) {
	for _, n := range []int{1_000_000 / maxShards, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			least := make([]time.Duration, n)
			for b.Loop() {
				for run := range 5 {
					table := newTable()
					for i := range least {
						start := time.Now()
						table.add(name{uint32(i) * 2654435761}, 0, 1)
						if took := time.Since(start); run == 0 || took < least[i] {
							least[i] = took
						}
					}
				}
			}
			b.ReportMetric(float64(slices.Max(least).Nanoseconds())/1000, "worst-us")
		})
	}
}

func TestSlotIsACacheLine(t *testing.T) {
	if size := unsafe.Sizeof(slot{}); size != 64 {
		t.Errorf("a slot has %d bytes", size)
	}
}

func put(t *table, n name, h held) {
	i := t.find(n)
	if i == 0 {
		i = t.add(n, h.Limit, 1)
	}
	var c strategy.Counter
	t.load(i, &c)
	c.Layout, c.State, c.Expires = h.Layout, append(c.State[:0], h.State...), h.Expires
	t.keep(i, &c)
}

// contents gives all that a table holds, as its slots and its buckets have it.
func contents(t *table) map[name]held {
	all := map[name]held{}
	for i := range t.length {
		s := t.at(i + 1)
		var c strategy.Counter
		t.load(t.find(s.name), &c)
		all[s.name] = held{s.limit, c.Layout, string(c.State), c.Expires}
	}
	return all
}

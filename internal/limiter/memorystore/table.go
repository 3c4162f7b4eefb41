// SPDX-License-Identifier: Apache-2.0

package memorystore

import (
	"encoding/binary"
	"math/bits"
	"slices"

	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// name stands for a key in less room: a hash of 96 bits that nobody outside can foresee. That any two of a million
// keys have the same has odds of 1 to 10^17.
type name [3]uint32

// slot holds one counter. It is a line of the processor's cache, and holds no pointers, which the garbage
// collector would follow.
type slot struct {
	expires int64
	name    name
	// next is the number of the next slot of the same bucket, or 0.
	next uint32
	// limit is its index among the limits.
	limit uint32
	// weight is as how many counters it counts for its limit.
	weight uint16
	layout byte
	// size is the length of state, or long.
	size  byte
	state [32]byte
}

// long is the size of a state that was too long for its slot once: the slot has its index among the long ones.
const long = 255

// table finds counters by name. It is a linear hash table (W. Litwin, "Linear hashing: a new tool for file and
// table addressing", 1980): each counter that comes or goes has it split or join a few of its buckets, and so it is
// never rehashed as a whole.
//
// The slots are numbered from 1, without gaps: the last one moves to where one is removed.
type table struct {
	length uint32
	chunks []*[chunkSize]slot
	// states are the long ones, and free the indexes that none of them has.
	states [][]byte
	free   []uint32
	// heads has the first slot of each bucket, or 0.
	heads []uint32
	// mask is the least 2^n-1 that is not below the number of the last bucket.
	mask uint32
}

// chunkSize is how many slots get their memory at once: a page of 4 KiB.
const chunkSize = 64

// There are two to four buckets for each slot, or five when one was just removed: most slots are the only ones in
// theirs, and a counter that comes and goes splits and joins none.
const (
	minBuckets = 2
	maxBuckets = 4
)

func newTable() table { return table{heads: make([]uint32, 1)} }

// at gives a slot. It stays where it is until one is removed.
func (t *table) at(i uint32) *slot { return &t.chunks[(i-1)/chunkSize][(i-1)%chunkSize] }

// bucket gives the head of the bucket that a name belongs to: while there is none for all bits of the mask, the one
// that it will be split from.
func (t *table) bucket(n name) *uint32 {
	b := n[0] & t.mask
	if b >= uint32(len(t.heads)) {
		b &= t.mask >> 1
	}
	return &t.heads[b]
}

// find gives the number of the slot of a name, or 0.
func (t *table) find(n name) uint32 {
	i := *t.bucket(n)
	for i != 0 {
		s := t.at(i)
		if s.name == n {
			break
		}
		i = s.next
	}
	return i
}

// add gives the number of a new slot, for a name that has none.
func (t *table) add(n name, limit uint32, weight uint16) uint32 {
	if t.length == uint32(len(t.chunks))*chunkSize {
		t.chunks = append(t.chunks, new([chunkSize]slot))
	}
	t.length++
	*t.at(t.length) = slot{name: n, limit: limit, weight: weight}
	t.link(t.length)
	for len(t.heads) < minBuckets*int(t.length) {
		t.split()
	}
	return t.length
}

// remove forgets a slot, and moves the last one there.
func (t *table) remove(i uint32) {
	s := t.at(i)
	*t.linkTo(i) = s.next
	if s.size == long {
		t.states[s.index()] = nil
		t.free = append(t.free, s.index())
	}
	if last := t.length; i != last {
		*t.linkTo(last) = i
		*s = *t.at(last)
	}
	t.length--
	t.trim()
	for len(t.heads) > 1 && len(t.heads) > maxBuckets*int(t.length) {
		t.join()
	}
}

// trim gives back the chunks without slots, but for one.
func (t *table) trim() {
	keep := int(t.length+chunkSize-1)/chunkSize + 1
	if keep < len(t.chunks) {
		t.chunks = slices.Delete(t.chunks, keep, len(t.chunks))
	}
}

// link puts a slot into its bucket.
func (t *table) link(i uint32) {
	head := t.bucket(t.at(i).name)
	t.at(i).next, *head = *head, i
}

// linkTo gives what leads to a slot: the head of its bucket, or the slot before it.
func (t *table) linkTo(i uint32) *uint32 {
	link := t.bucket(t.at(i).name)
	for *link != i {
		link = &t.at(*link).next
	}
	return link
}

// split adds a bucket, and moves there what belongs there now.
func (t *table) split() {
	last := uint32(len(t.heads))
	t.heads = append(t.heads, 0)
	t.setMask()
	from := &t.heads[last&(t.mask>>1)]
	chain := *from
	*from = 0
	t.relink(chain)
}

// join takes the last bucket away, and moves what was in it to the one that it was split from.
func (t *table) join() {
	last := len(t.heads) - 1
	chain := t.heads[last]
	t.heads = t.heads[:last]
	if 4*last < cap(t.heads) {
		t.heads = slices.Clone(t.heads)
	}
	t.setMask()
	t.relink(chain)
}

func (t *table) setMask() { t.mask = 1<<bits.Len32(uint32(len(t.heads)-1)) - 1 }

// relink puts all slots of a chain into their buckets.
func (t *table) relink(chain uint32) {
	for chain != 0 {
		next := t.at(chain).next
		t.link(chain)
		chain = next
	}
}

// load fills in what a slot holds. A state that isn't long is in the slot itself, until a slot is removed.
func (t *table) load(i uint32, c *strategy.Counter) {
	s := t.at(i)
	c.Layout, c.Expires = s.layout, s.expires
	if s.size == long {
		c.State = t.states[s.index()]
	} else {
		c.State = s.state[:s.size]
	}
}

// keep has a slot hold what has become of its counter.
func (t *table) keep(i uint32, c *strategy.Counter) {
	s := t.at(i)
	s.layout, s.expires = c.Layout, c.Expires
	if s.size != long && len(c.State) <= len(s.state) {
		s.size = byte(copy(s.state[:], c.State))
		return
	}
	if s.size != long {
		s.size = long
		s.setIndex(t.freeIndex())
	}
	t.states[s.index()] = c.State
}

func (t *table) freeIndex() uint32 {
	last := len(t.free) - 1
	if last < 0 {
		t.states = append(t.states, nil)
		return uint32(len(t.states) - 1)
	}
	i := t.free[last]
	t.free = t.free[:last]
	return i
}

func (s *slot) index() uint32 { return binary.LittleEndian.Uint32(s.state[:]) }

func (s *slot) setIndex(i uint32) { binary.LittleEndian.PutUint32(s.state[:], i) }

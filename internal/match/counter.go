// SPDX-License-Identifier: Apache-2.0

package match

import (
	"crypto/sha256"
	"encoding/base64"
	"strconv"

	"github.com/weir-dev/weir/internal/limiter"
)

// stateVersion is the version of what stores keep under a key. A new one starts every counter anew.
const stateVersion = 1

// seedSize is the size of the seeds that hashes begin with.
const seedSize = sha256.Size

// hashSize is how many bytes of a hash name a counter.
const hashSize = 16

// namer names the counters of an installation:
//
//	weir:<instance>:{<namespace>/<partition>}:<hash>
//
// Redis keeps the keys of one partition in one slot. The partition follows from the key's tuple alone, so
// that all limits on one key meet, or from the target where there is no key; the hash follows from the
// counter's whole identity. Both are seeded with the instance and the namespace. The seed is no secret to
// those who know these; it is there so that one client has another name in every installation and
// namespace, and no list of hashed addresses fits them all.
type namer struct {
	instance string
	seen     map[[seedSize]byte]bool
}

func newNamer(instance string) *namer {
	return &namer{instance: instance, seen: map[[seedSize]byte]bool{}}
}

// counter gives the counters of a limit and a target; keyed says whether the limit has a key. It is false
// for those that were given already.
func (n *namer) counter(h limiter.Hit, t Target, keyed bool) (counter, bool) {
	names := n.seed(h.ID.Namespace, "counter",
		strconv.Itoa(stateVersion), string(h.Limit.Algorithm), h.ID.Policy, h.ID.Limit, t.ID)
	if n.seen[names] {
		return counter{}, false
	}
	n.seen[names] = true
	c := counter{
		target:  t.ID,
		section: t.Section,
		prefix:  "weir:" + n.instance + ":{" + h.ID.Namespace + "/",
		places:  n.seed(h.ID.Namespace, "partition"),
		names:   names,
	}
	if keyed {
		c.overflow = c.key(about(kindOverflow, t))
	} else {
		c.only = c.key(about(kindTarget, t))
	}
	return c, true
}

// about is the message of a counter that is for a target as a whole. No tuple of a key gives it: those begin with
// other kinds.
func about(kind byte, t Target) message {
	return appendString(append(make(message, seedSize), kind), t.ID)
}

// seed gives a seed for a purpose within a namespace.
func (n *namer) seed(namespace, purpose string, facts ...string) [seedSize]byte {
	b := appendString(nil, n.instance)
	b = appendString(b, namespace)
	b = appendString(b, purpose)
	for _, f := range facts {
		b = appendString(b, f)
	}
	return sha256.Sum256(b)
}

// counter names the counters of one limit under one target.
type counter struct {
	target string
	// section is the name of the listener that counts, or the port behind it, or empty for all.
	section string
	// only is the key of the only counter of a limit without a key, and overflow that of the one that other limits have
	// for keys without one.
	only, overflow string
	prefix         string
	// places seeds the partitions, and names the hashes.
	places, names [seedSize]byte
}

// serves says whether the target is behind this listener, and this port of the application.
func (c *counter) serves(listener, port string) bool {
	return c.section == "" || listener == "" || c.section == listener || c.section == port
}

// key gives the key of the counter for a message. It overwrites the message's seed.
func (c *counter) key(m message) string {
	if c.only != "" {
		return c.only
	}
	copy(m, c.places[:])
	place := sha256.Sum256(m)
	copy(m, c.names[:])
	name := sha256.Sum256(m)

	var scratch [128]byte
	b := append(scratch[:0], c.prefix...)
	b = strconv.AppendUint(b, uint64(place[0]), 10)
	b = append(b, "}:"...)
	b = base64.RawURLEncoding.AppendEncode(b, name[:hashSize])
	return string(b)
}

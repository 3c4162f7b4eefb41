// SPDX-License-Identifier: Apache-2.0

// Package redisusers keeps the users of the Redis that the chart brings, and knows what rights each needs.
package redisusers

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// The users. Nobody else can log in: the default user is off.
const (
	// Manager publishes policies and reads reports. It sees no counter.
	Manager = "weir-manager"
	// Sidecar counts, reads policies and writes reports.
	Sidecar = "weir-sidecar"
)

// rights are rules of Redis's ACL. A script runs with the rights of whoever calls it, so that commands which are sent
// in scripts only are among them. They name no installation: a Redis is to be one's own.
var rights = map[string]string{
	Manager: "~weir:*:{config}* ~weir:*:{report/*} &weir:*:{config}:* " +
		"+ping +info|memory +cluster|slots +eval +evalsha +time +type +get +set +del +hmget +hset +hgetall +hdel +persist +pexpire +publish",
	Sidecar: "~weir:*:{*/*}:* ~weir:*:{report/*} %R~weir:*:{config}:* &weir:*:{config}:* " +
		"+ping +cluster|slots +eval +evalsha +time +mget +set +setex +setrange +del +expire +pexpire +llen +lindex +lset +ltrim +rpush " +
		"+hget +hgetall +hset +hdel +hmget +hstrlen +exists +zadd +zcard +zrangebyscore +zrem +subscribe",
}

// Rights gives what a user may do, as rules of ACL SETUSER. Whoever brings a Redis gives them to two users of theirs.
func Rights(user string) []string { return strings.Fields(rights[user]) }

// users are the passwords of the users, by name.
type users map[string]string

// generate makes new passwords.
func generate() users { return users{Manager: rand.Text(), Sidecar: rand.Text()} }

// The keys of the Secret.
const (
	// keyACL is the file that Redis reads. It has the passwords' hashes only.
	keyACL            = "users.acl"
	keyManager        = "manager-password"
	keySidecar        = "sidecar-password"
	firstLineOfTheACL = "user default reset off"
)

// encode gives what the Secret is to hold.
func (u users) encode() map[string][]byte {
	lines := []string{firstLineOfTheACL}
	for _, name := range []string{Manager, Sidecar} {
		hash := sha256.Sum256([]byte(u[name]))
		lines = append(lines, fmt.Sprintf("user %s on #%s %s", name, hex.EncodeToString(hash[:]), rights[name]))
	}
	return map[string][]byte{
		keyACL:     []byte(strings.Join(lines, "\n") + "\n"),
		keyManager: []byte(u[Manager]),
		keySidecar: []byte(u[Sidecar]),
	}
}

// decode reads what the Secret holds.
func decode(data map[string][]byte) (users, error) {
	u := users{Manager: string(data[keyManager]), Sidecar: string(data[keySidecar])}
	if u[Manager] == "" || u[Sidecar] == "" {
		return nil, errors.New("it lacks a password: delete it to have it made anew")
	}
	return u, nil
}

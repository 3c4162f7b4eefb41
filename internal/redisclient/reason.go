// SPDX-License-Identifier: Apache-2.0

package redisclient

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"syscall"

	"github.com/redis/go-redis/v9"
)

// Reasons why Redis couldn't answer.
const (
	Timeout = "timeout"
	// Unreachable is nobody who can be talked to, or who talks as Redis does.
	Unreachable = "unreachable"
	// Auth is a user or password that is not, or no longer, the right one, or a right that the user lacks.
	Auth = "auth"
	// ReadOnly is a server that takes no writes: a replica, or a primary that waits for its replicas or its disk.
	ReadOnly = "readonly"
	// Full is a server that has no memory left to write to.
	Full = "oom"
	// Other is what none of the words is for.
	Other = "other"
)

// replies are the errors that Redis itself gives, by how they start.
var replies = []struct{ prefix, reason string }{
	{"NOAUTH", Auth},
	{"WRONGPASS", Auth},
	{"NOPERM", Auth},
	{"READONLY", ReadOnly},
	{"NOREPLICAS", ReadOnly},
	{"MISCONF", ReadOnly},
	{"MASTERDOWN", Unreachable},
	{"CLUSTERDOWN", Unreachable},
	{"max number of clients", Unreachable},
	{"OOM", Full},
	{"LOADING", "loading"},
	{"BUSY", "busy"},
	{"NOSCRIPT", "noscript"},
}

// Reason says in a word why Redis couldn't answer: one of [Reasons]. It is empty when err is nil.
func Reason(err error) string {
	if err == nil {
		return ""
	}
	for _, r := range replies {
		if redis.HasErrorPrefix(err, r.prefix) {
			return r.reason
		}
	}
	switch {
	case timedOut(err):
		return Timeout
	case unreachable(err):
		return Unreachable
	}
	return Other
}

// Reasons gives every word of [Reason] for an error, so that a metric can have them all from the start.
func Reasons() []string {
	reasons := []string{Timeout, Unreachable, Other}
	for _, r := range replies {
		if !slices.Contains(reasons, r.reason) {
			reasons = append(reasons, r.reason)
		}
	}
	return reasons
}

// LoggedOut says whether Redis refuses the user or password of a connection, and so all that would be sent on it.
func LoggedOut(err error) bool {
	return redis.HasErrorPrefix(err, "NOAUTH") || redis.HasErrorPrefix(err, "WRONGPASS")
}

func timedOut(err error) bool {
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, redis.ErrPoolTimeout) ||
		errors.As(err, &timeout) && timeout.Timeout()
}

func unreachable(err error) bool {
	var op *net.OpError
	return errors.Is(err, errGarbled) || errors.As(err, &op) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, redis.ErrClosed)
}

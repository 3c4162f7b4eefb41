// SPDX-License-Identifier: Apache-2.0

package redisstore

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"syscall"

	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/limiter"
)

// Reason says in a word why Redis couldn't answer, for the reason label of weir_store_errors_total: invalid,
// open, canceled, timeout, unreachable, auth, readonly, oom, loading, busy, noscript or other. It is empty when
// err is nil.
func Reason(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, limiter.ErrInvalid):
		return "invalid"
	case errors.Is(err, limiter.ErrNotAsked):
		return "open"
	case errors.Is(err, context.Canceled):
		return "canceled"
	}
	if reason := replied(err); reason != "" {
		return reason
	}
	switch {
	case timedOut(err):
		return "timeout"
	case unreachable(err):
		return "unreachable"
	}
	return "other"
}

// Unanswered says whether an error means that Redis gave no answer at all, so that others who ask it now would
// most likely wait in vain.
func Unanswered(err error) bool {
	reason := Reason(err)
	return reason == "timeout" || reason == "unreachable"
}

// replies are the errors that Redis itself gives, by how they start.
var replies = []struct{ prefix, reason string }{
	{"NOAUTH", "auth"},
	{"WRONGPASS", "auth"},
	{"NOPERM", "auth"},
	{"READONLY", "readonly"},
	{"NOREPLICAS", "readonly"},
	{"MASTERDOWN", "unreachable"},
	{"CLUSTERDOWN", "unreachable"},
	{"max number of clients", "unreachable"},
	{"OOM", "oom"},
	{"LOADING", "loading"},
	{"BUSY", "busy"},
	{"NOSCRIPT", "noscript"},
}

// Reasons gives every word of [Reason] for an error, so that a metric can have them all from the start.
func Reasons() []string {
	reasons := []string{"invalid", "open", "canceled", "timeout", "unreachable", "other"}
	for _, r := range replies {
		if !slices.Contains(reasons, r.reason) {
			reasons = append(reasons, r.reason)
		}
	}
	return reasons
}

func replied(err error) string {
	for _, r := range replies {
		if redis.HasErrorPrefix(err, r.prefix) {
			return r.reason
		}
	}
	return ""
}

func timedOut(err error) bool {
	var timeout net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, redis.ErrPoolTimeout) ||
		errors.As(err, &timeout) && timeout.Timeout()
}

func unreachable(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, redis.ErrClosed)
}

// SPDX-License-Identifier: Apache-2.0

package redisstore

import (
	"context"
	"errors"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/redisclient"
)

// Reason says in a word why Redis couldn't answer, for the reason label of weir_store_errors_total: invalid, open,
// canceled, or a [Cause]. It is empty when err is nil.
func Reason(err error) string {
	switch {
	case errors.Is(err, limiter.ErrInvalid):
		return "invalid"
	case errors.Is(err, limiter.ErrNotAsked):
		return "open"
	case errors.Is(err, context.Canceled):
		return "canceled"
	}
	return Cause(err)
}

// Cause is [Reason] for a store that need not have been asked: it says why others who did ask had no answer. Its words
// are those of [redisclient.Reason].
func Cause(err error) string { return redisclient.Reason(err) }

// Unanswered says whether an error means that Redis gave no answer at all, or let nobody in, so that others who ask
// it now would most likely ask in vain.
func Unanswered(err error) bool {
	reason := Reason(err)
	return reason == redisclient.Timeout || reason == redisclient.Unreachable ||
		reason == redisclient.Auth && redisclient.LoggedOut(err)
}

// Reasons gives every word of [Reason] for an error, so that a metric can have them all from the start.
func Reasons() []string {
	return append([]string{"invalid", "open", "canceled"}, redisclient.Reasons()...)
}

// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/weir-dev/weir/api/v1alpha1"
)

// Refusal says why a policy can't be enforced as it is written.
type Refusal struct {
	// Reason is that of the Accepted condition: Invalid, Unsupported or TargetNotFound. With Invalid,
	// Errors may hold what is unsupported as well.
	Reason string
	Errors field.ErrorList
}

// messageSize is enough for some errors and little for a condition, which many people read in a terminal.
const messageSize = 1000

// Error is the message of the Accepted condition. It is the same for the same policy, and under 1 KiB.
func (r *Refusal) Error() string {
	parts := make([]string, len(r.Errors))
	for i, e := range r.Errors {
		parts[i] = e.Field + ": " + e.Detail
	}
	return short(parts, "; ", messageSize)
}

// check says whether a policy holds by itself, whatever its targets. Its error is a [*Refusal] or nil.
func check(p *v1alpha1.RateLimitPolicy) error {
	invalid, unsupported := Validate(p), Unsupported(p)
	if len(invalid) > 0 {
		return &Refusal{Reason: v1alpha1.ReasonInvalid, Errors: append(invalid, unsupported...)}
	}
	if len(unsupported) > 0 {
		return &Refusal{Reason: v1alpha1.ReasonUnsupported, Errors: unsupported}
	}
	return nil
}

// short joins the parts if that fits into so many bytes, else as many as do, and says how many more there
// are. It cuts a part that is too long by itself.
func short(parts []string, separator string, size int) string {
	if all := strings.Join(parts, separator); len(all) <= size {
		return all
	}
	size -= len(separator) + len("and 999 more")
	var b strings.Builder
	for i, part := range parts {
		if len(part) > size {
			part = strings.ToValidUTF8(part[:size-len("...")], "") + "..."
		}
		if i > 0 && b.Len()+len(separator)+len(part) > size {
			fmt.Fprintf(&b, "%sand %d more", separator, len(parts)-i)
			break
		}
		if i > 0 {
			b.WriteString(separator)
		}
		b.WriteString(part)
	}
	return b.String()
}

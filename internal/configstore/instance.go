// SPDX-License-Identifier: Apache-2.0

package configstore

import (
	"fmt"
	"regexp"
)

// instancePattern keeps braces and colons out: an instance is in the keys of Redis, between colons and before a
// hash tag.
var instancePattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,63}$`)

// CheckInstance says what is wrong with the name of an installation, which the manager and its sidecars have in
// common and which is a part of every key in Redis.
func CheckInstance(name string) error {
	if !instancePattern.MatchString(name) {
		return fmt.Errorf("must be 1 to 63 letters, digits, dots, underscores or hyphens, not %q", name)
	}
	return nil
}

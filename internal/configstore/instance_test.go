// SPDX-License-Identifier: Apache-2.0

package configstore_test

import (
	"strings"
	"testing"

	"github.com/weir-dev/weir/internal/configstore"
)

func TestAnInstanceCanBeAPartOfAKey(t *testing.T) {
	for name, ok := range map[string]bool{
		"default":               true,
		"a1B2._-":               true,
		strings.Repeat("a", 63): true,
		strings.Repeat("a", 64): false,
		"":                      false,
		"{a}":                   false,
		"a:b":                   false,
		"a b":                   false,
		"a\n":                   false,
		"é":                     false,
	} {
		if err := configstore.CheckInstance(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

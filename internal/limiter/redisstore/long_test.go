// SPDX-License-Identifier: Apache-2.0

package redisstore_test

import "os"

// times is how often a random test is repeated: in the long run, which WEIR_TEST_LONG asks for, more often.
func times(usual, long int) int {
	if os.Getenv("WEIR_TEST_LONG") != "" {
		return long
	}
	return usual
}

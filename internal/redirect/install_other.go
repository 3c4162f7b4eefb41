// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package redirect

import "errors"

// Install fails: only Linux has nftables.
func Install([]Port) error { return errors.New("installing nftables rules: this is not Linux") }

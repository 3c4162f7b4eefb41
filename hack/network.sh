#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs the programs that tests make networks and their faults with, ip and nft, where there are none.
set -euo pipefail
hack=$(dirname "$0")

command -v ip >/dev/null || "$hack/apt.sh" iproute2
command -v nft >/dev/null || "$hack/apt.sh" nftables

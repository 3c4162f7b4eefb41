#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Prints the path of a redis-server, installed first from Debian where there is none. REDIS_SERVER names
# another binary, like valkey-server's.
set -euo pipefail

say() { echo "$*" >&2; }

if [ -n "${REDIS_SERVER:-}" ]; then
  command -v "$REDIS_SERVER" && exit
  say "REDIS_SERVER is $REDIS_SERVER, which can't be run: correct it, or unset it to have Debian's installed"
  exit 1
fi
command -v redis-server && exit

"$(dirname "$0")/apt.sh" redis-server
command -v redis-server

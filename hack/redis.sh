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

if ! command -v apt-get >/dev/null; then
  say "there is no redis-server, and no apt-get to install it with: install Redis 7 or Valkey 7, or set REDIS_SERVER"
  exit 1
fi
as_root=
if [ "$(id -u)" != 0 ]; then
  as_root=sudo
  command -v sudo >/dev/null || { say "there is no redis-server: install it as root with apt-get install redis-server"; exit 1; }
fi
say "installing redis-server"
start=$SECONDS
install() { $as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq "$@" </dev/null >&2; }
install update
# RUNLEVEL=1 keeps the package from starting a server of its own.
install install -y --no-install-recommends redis-server
say "redis-server: installed in $((SECONDS - start)) s"
command -v redis-server

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# usage: hack/apt.sh PACKAGE...
#
# Installs Debian packages, and says how long that took. Standard output is left to the caller's answer.
set -euo pipefail

say() { echo "$*" >&2; }

if ! command -v apt-get >/dev/null; then
  say "there is no apt-get to install $* with: install it as your system does"
  exit 1
fi
as_root=
if [ "$(id -u)" != 0 ]; then
  as_root=sudo
  command -v sudo >/dev/null || { say "as root, do this first: apt-get install $*"; exit 1; }
fi
say "installing $*"
start=$SECONDS
# RUNLEVEL=1 keeps a package from starting a server of its own.
apt() { $as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq "$@" </dev/null >&2; }
apt update
apt install -y --no-install-recommends "$@"
say "$*: installed in $((SECONDS - start)) s"

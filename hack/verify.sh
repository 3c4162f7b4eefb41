#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Generates, formats and tidies anew, and fails if that changed a file, showing what differs.
set -euo pipefail
cd "$(dirname "$0")/.."

# The folder may belong to someone whom git has not been told to trust, as in CI.
git() { command git -c safe.directory='*' "$@"; }

# What the work tree holds beyond the last commit: nothing in CI, and work in progress elsewhere.
changes() {
  git --no-pager diff HEAD
  git ls-files --others --exclude-standard -z | xargs -0 --no-run-if-empty sha256sum
}

before=$(changes)
make generate manifests fmt tidy
"$(hack/tool.sh golangci-lint)" config verify
after=$(changes)
if [ "$before" != "$after" ]; then
  diff <(echo "$before") <(echo "$after") || true
  echo "make generate manifests fmt tidy changed the files above: commit them as they are now" >&2
  exit 1
fi
echo "nothing changed"

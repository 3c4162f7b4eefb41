#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Generates, formats and tidies anew, and fails if the tree isn't clean then, showing what differs.
set -euo pipefail
cd "$(dirname "$0")/.."

make generate manifests fmt tidy
"$(hack/tool.sh golangci-lint)" config verify

# The folder may belong to someone whom git has not been told to trust, as in CI.
git() { command git -c safe.directory='*' "$@"; }
if [ -n "$(git status --porcelain)" ]; then
  git status --short
  git --no-pager diff
  echo "the tree is not clean after make generate manifests fmt tidy: commit what differs" >&2
  exit 1
fi
echo "the tree is clean"

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Everything that must hold of a commit, in stages, with the time of each. A stage that fails doesn't keep the
# next ones from running, but fails the whole; so does a skipped test.
set -uo pipefail
cd "$(dirname "$0")/.."

out=.ci/out
rm -rf $out && mkdir -p $out
table=()
failed=0

# stage NAME LIMIT COMMAND... runs the command, no longer than the limit, so that the whole ends by itself.
stage() {
  local name=$1 limit=$2 start=$SECONDS verdict=passed
  shift 2
  echo "=== $name: $*"
  timeout --kill-after=30 "$limit" "$@" || { verdict="FAILED ($?)"; failed=1; }
  table+=("$(printf '%-10s %5d s  %s' "$name" $((SECONDS - start)) "$verdict")")
  echo "=== $name $verdict after $((SECONDS - start)) s"
}

stage tools 40m make tools
stage verify 10m make verify
stage lint 15m make lint
stage unit 20m make test-unit
stage e2e 35m make test-e2e
stage demo 10m make demo

echo
printf '%s\n' "${table[@]}"
echo
go run ./hack/testsum -total $out/unit.json $out/e2e.json || failed=1
exit $failed

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# usage: hack/test-long.sh [PART...]
#
# What is random, for longer than make test has time for, the faults of the store, and those that the tests have to
# find. Without an argument it runs all parts, one after the other. A part that fails doesn't keep the next ones from
# running, but fails the whole; so does a skipped test.
set -uo pipefail
cd "$(dirname "$0")/.."

redis=$(hack/redis.sh) || exit 1
export REDIS_SERVER=$redis WEIR_TEST_LONG=1
out=.ci/out
mkdir -p $out

# tests FLAGS... runs go test, with its output summed up, and kept beside that of make test.
tests() {
  go test -count=1 -timeout 60m -json "$@" | tee "$out/long-$part.json" | go run ./hack/testsum "$part"
}

# Neither the differential nor the ladder has two goroutines at once: the race detector would only take longer.
differential() { tests -run 'TestRedisAndGoAgree|TestRefundsAlike' ./internal/limiter/redisstore; }
linearizable() { CGO_ENABLED=1 tests -race -run 'TestLinearizable' ./internal/limiter/redisstore; }
exact() { CGO_ENABLED=1 tests -race -run 'TestExactAcrossProcesses' ./internal/limiter/redisstore; }
outages() { CGO_ENABLED=1 tests -race -run 'TestOutages' ./internal/limiter/guard; }
c14() { tests -run 'TestC14' ./internal/limiter/guard; }
ladder() { tests -run 'TestEveryPathOfTheLadder' ./internal/limiter/guard; }
faults() { hack/network.sh && tests ./test/faults; }
bench() { go -C hack/bench test -count=1 ./...; }
mutation() { go run ./hack/mutate; }

all=(differential linearizable exact outages c14 ladder faults bench mutation)
for part in "$@"; do
  [[ " ${all[*]} " == *" $part "* ]] || { echo "there is no part $part: they are ${all[*]}" >&2; exit 1; }
done
[ $# -gt 0 ] || set -- "${all[@]}"

table=()
failed=0
for part in "$@"; do
  start=$SECONDS verdict=passed
  echo "=== $part"
  "$part" || { verdict=FAILED; failed=1; }
  table+=("$(printf '%-12s %5d s  %s' "$part" $((SECONDS - start)) "$verdict")")
done

echo
printf '%s\n' "${table[@]}"
exit $failed

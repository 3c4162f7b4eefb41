#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What is random, for longer than make test has time for, and the faults that the tests have to find.
set -euo pipefail
cd "$(dirname "$0")/.."

redis=$(hack/redis.sh)
export REDIS_SERVER=$redis WEIR_TEST_LONG=1

set -x
CGO_ENABLED=1 go test -race -count=1 -timeout 30m -run 'TestRedisAndGoAgree|TestLinearizable|TestExactAcrossProcesses' -v ./internal/limiter/redisstore |
  grep -v '^=== RUN'
CGO_ENABLED=1 go test -race -count=1 -timeout 30m -run 'TestOutages|TestEveryPathOfTheLadder' -v ./internal/limiter/guard | grep -v '^=== RUN'
go test -count=1 -timeout 60m -run TestC14 -v ./internal/limiter/guard | grep -v '^=== '
go test -count=1 -timeout 30m -v ./test/faults | grep -v '^=== '
go -C hack/bench test -count=1 ./...
make mutation

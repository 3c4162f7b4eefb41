#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# usage: hack/tool.sh NAME
#
# Prints the path of a tool, built first from its pinned module where that hasn't been done:
# controller-gen, golangci-lint, helm, kubectl, kube-apiserver or etcd. Any kubectl on the PATH will do.
set -euo pipefail
. "$(dirname "$0")/toolcache.sh"

name=${1:?usage: hack/tool.sh NAME}
if [ "$name" = kubectl ] && command -v kubectl; then
  exit
fi
cached "$name"

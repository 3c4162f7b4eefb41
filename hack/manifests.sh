#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Generates the CRD and the manager's role into config, and from there into the chart, so that both ways of
# installing Weir give the same.
set -euo pipefail
cd "$(dirname "$0")/.."

controller_gen=$(hack/tool.sh controller-gen)
"$controller_gen" crd paths=./api/... output:crd:dir=config/crd/bases
"$controller_gen" rbac:roleName=weir-manager paths=./internal/... output:rbac:dir=config/rbac

mkdir -p charts/weir/files/crds
cp config/crd/bases/*.yaml charts/weir/files/crds/
cp config/rbac/role.yaml charts/weir/files/role.yaml

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Prints the folder with all that a Kubernetes node and its control plane run, built first from pinned
# modules where that hasn't been done (about 10 minutes on 2 cores). Of Debian come ip, nft, which kube-proxy
# calls, and the library that runc is linked with.
set -euo pipefail
. "$(dirname "$0")/toolcache.sh"

if ! grep -q ':[a-z,]*memory' /proc/self/cgroup; then
  say "the node needs cgroups of version 1, which this machine doesn't have: see docs/testing.md"
  exit 1
fi
"$hack/network.sh"
apiserver=$(cached kube-apiserver)
folder=$(dirname "$apiserver")
[ -x "$folder/runc" ] || [ -e /usr/include/seccomp.h ] || "$hack/apt.sh" libseccomp-dev
# After the API server the rest of Kubernetes is little more than linking.
for tool in kube-controller-manager kube-scheduler kubelet kube-proxy kubectl etcd coredns pause \
  containerd containerd-shim-runc-v2 ctr runc host-local loopback ptp; do
  cached "$tool" >/dev/null
done
echo "$folder"

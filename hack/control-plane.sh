#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Prints the folder with kube-apiserver and etcd, and kubectl where the PATH has none, built first from
# their pinned modules where that hasn't been done (about 4 minutes on 2 cores). KUBEBUILDER_ASSETS names
# another folder.
set -euo pipefail
. "$(dirname "$0")/toolcache.sh"

if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
  for binary in kube-apiserver etcd; do
    if [ ! -x "$KUBEBUILDER_ASSETS/$binary" ]; then
      say "KUBEBUILDER_ASSETS is $KUBEBUILDER_ASSETS, but there is no $binary: correct it, or unset it to have both built"
      exit 1
    fi
  done
  echo "$KUBEBUILDER_ASSETS"
  exit
fi

cached etcd >/dev/null
command -v kubectl >/dev/null || cached kubectl >/dev/null
apiserver=$(cached kube-apiserver)
dirname "$apiserver"

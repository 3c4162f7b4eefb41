# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Builds tools from the pinned modules of hack/tools and keeps them in the user's cache folder. To be
# sourced; standard output is left to the caller, all talk goes to standard error.

hack=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# The flags of the project's own builds, so that the compiler's cache serves both.
export CGO_ENABLED=0 GOFLAGS="-mod=readonly -trimpath -buildvcs=false" GOWORK=off

# package_of TOOL prints the module folder, the package and the linker flags of a tool.
package_of() {
  local version=k8s.io/component-base/version
  # An API server that doesn't know its version can't tell which features it has.
  local kubernetes="-s -w -X $version.gitVersion=v1.37.2 -X $version.gitMajor=1 -X $version.gitMinor=37"
  case $1 in
    kube-* | kubectl | kubelet) echo "cluster k8s.io/kubernetes/cmd/$1 $kubernetes" ;;
    etcd) echo "cluster go.etcd.io/etcd/server/v3 -s -w" ;;
    containerd | containerd-shim-runc-v2 | ctr) echo "cluster github.com/containerd/containerd/v2/cmd/$1 -s -w" ;;
    runc) echo "cluster github.com/opencontainers/runc -s -w -extldflags -static" ;;
    host-local) echo "cluster github.com/containernetworking/plugins/plugins/ipam/$1 -s -w" ;;
    loopback | ptp) echo "cluster github.com/containernetworking/plugins/plugins/main/$1 -s -w" ;;
    coredns | pause) echo "cluster ./$1 -s -w" ;;
    controller-gen) echo "generate sigs.k8s.io/controller-tools/cmd/controller-gen -s -w" ;;
    golangci-lint) echo "lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint -s -w" ;;
    helm) echo "helm helm.sh/helm/v4/cmd/helm -s -w" ;;
    *) say "no tool is called $1" && return 1 ;;
  esac
}

# cached TOOL prints where a tool is, after building it where that hasn't been done. The tools of a module
# share a folder, whose name changes with everything that can change the binaries.
cached() {
  local tool=$1 recipe module package ldflags dir
  recipe=$(package_of "$tool") || return
  read -r module package ldflags <<<"$recipe"
  local hash
  hash=$({ go version && echo "$GOFLAGS" && declare -f package_of build && find "$hack/tools/$module" -type f -print0 | sort -z | xargs -0 cat; } | sha256sum)
  dir=${XDG_CACHE_HOME:-$HOME/.cache}/weir/tools/$module-${hash:0:16}
  if [ ! -x "$dir/$tool" ]; then
    mkdir -p "$dir"
    # The subshell holds the lock until it ends, however it ends.
    (await_lock "$dir" && build "$tool" "$hack/tools/$module" "$package" "$ldflags" "$dir/$tool") || return
  fi
  echo "$dir/$tool"
}

# await_lock DIR waits until no other run builds in the folder.
await_lock() {
  exec 9>"$1/.lock"
  flock -n 9 && return
  say "waiting for another build in $1"
  flock 9
}

# build TOOL MODULE PACKAGE LDFLAGS OUT builds under another name and renames, so that a build that is
# interrupted leaves nothing that looks finished.
build() {
  local tool=$1 module=$2 package=$3 ldflags=$4 out=$5
  [ -x "$out" ] && return # Built by whoever held the lock.
  local work start=$SECONDS
  work=$(mktemp -d "$out.XXXXXX")
  # shellcheck disable=SC2064 # $work is local, so it is expanded now.
  trap "rm -rf '$work'; kill \$(jobs -p) 2>/dev/null || true" EXIT
  cd "$module"
  # What runs first in a container's namespaces is in C, and so is libseccomp.
  [ "$tool" != runc ] || export CGO_ENABLED=1 GOFLAGS="$GOFLAGS -tags=seccomp,netgo,osusergo"
  say "$tool: building it from its module; this is done once"
  touch "$work/all" "$work/compiled"
  {
    go list -deps "$package" >"$work/packages" && mv "$work/packages" "$work/all" &&
      go build -v -ldflags "$ldflags" -o "$work/$tool" "$package" 2>"$work/compiled"
  } 9>&- &
  local pid=$!
  progress "$tool" $pid "$work"
  if ! wait $pid; then
    tail -n 20 "$work/compiled" >&2
    say "$tool: the build failed"
    return 1
  fi
  mv "$work/$tool" "$out"
  say "$tool: built in $((SECONDS - start)) s"
}

# progress TOOL PID WORK tells how far the build is, every 10 s, or every second on a terminal.
progress() {
  local tool=$1 pid=$2 work=$3 start=$SECONDS every=10 end='\n'
  [ -t 2 ] && every=1 end='\033[K\r'
  while kill -0 "$pid" 2>/dev/null; do
    sleep 1
    [ $(((SECONDS - start) % every)) = 0 ] || continue
    local state="fetching modules"
    [ -s "$work/all" ] && state="$(wc -l <"$work/compiled") of at most $(wc -l <"$work/all") packages compiled"
    # shellcheck disable=SC2059 # The end of the line is ours.
    printf "$tool: $state, $((SECONDS - start)) s$end" >&2
  done
}

say() { echo "$*" >&2; }

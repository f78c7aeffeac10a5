# Sourced by the scripts of this folder: where the tools are, and how to become root.
# What Heddle's own scripts install for a developer lies in $CACHE, outside the tree.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT=$PWD

HOME=${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}
export HOME
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/heddle
export GOFLAGS=${GOFLAGS:--buildvcs=false}

PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# The go command: the caller's, the usual places, the one that build/setup fetched.
for dir in /usr/local/go/bin "$HOME/go/bin" "$HOME"/sdk/go*/bin /usr/lib/go-1.*/bin /snap/bin; do
	if [ -x "$dir/go" ]; then PATH=$PATH:$dir; fi
done
if [ -x "$CACHE/go/bin/go" ]; then PATH=$CACHE/go/bin:$PATH; fi
PATH=$PATH:$CACHE/etcd/usr/bin
export PATH

# need_go is the version that go.mod asks for: 1.26.0
need_go=$(awk '$1 == "go" { print $2; exit }' go.mod)

# at_least A B: version A is not below version B.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n1)" = "$2" ]; }

# go_version prints the version of the go command as it is installed, before any switch of toolchain.
go_version() { (cd / && GOTOOLCHAIN=local go env GOVERSION 2>/dev/null | sed 's/^go//'); }

# An older go command from 1.21 on fetches the toolchain that go.mod names by itself.
if command -v go >/dev/null && ! at_least "$(go_version)" "$need_go"; then
	export GOTOOLCHAIN=${GOTOOLCHAIN:-auto}
fi

say() { printf '==> %s\n' "$*" >&2; }
die() {
	printf 'heddle: %s\n' "$*" >&2
	exit 1
}

# as_root runs a command as root, with this PATH.
as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo env PATH="$PATH" "$@"
	else
		die "'$*' needs root: run it as root, or install sudo"
	fi
}

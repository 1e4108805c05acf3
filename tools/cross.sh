#!/bin/sh
# cross.sh - makes the musl that dlm is cross-compiled against: build/cross/ARCH, for aarch64 or riscv64.
#
#     tools/cross.sh ARCH
#
# The C library is Debian's own package for ARCH, of the suite named below whatever Debian this machine runs
# (bookworm has no riscv64): asked for with the mirrors and keys that apt uses here, but from a package state
# of its own, so that nothing of the machine's changes and no root is needed. Where there is no network,
# DLM_OFFLINE=DIR names a folder that holds musl-dev_*.deb. Compile with Debian's cross compiler:
#
#     ARCH-linux-gnu-gcc -specs=$PWD/build/cross/ARCH/musl.specs -static ...
set -eu
cd -- "$(dirname -- "$0")/.."

SUITE=trixie

say() { printf '%s\n' "$*" >&2; }
die() {
    say "cross.sh: $*"
    exit 1
}

arch=${1:-}
case $arch in
aarch64) debian=arm64 ;;
riscv64) debian=riscv64 ;;
*) die "usage: tools/cross.sh aarch64|riscv64" ;;
esac
out=$PWD/build/cross/$arch
case $out in *[[:space:]]*) die "gcc's specs cannot name a folder with a blank in its name: $out" ;; esac
[ "$(cat "$out/made" 2>/dev/null)" != "$SUITE $out" ] || exit 0

fetch() { # into the folder $1, by apt
    mkdir -p "$1/lists/partial" "$1/cache/archives/partial" "$1/state"
    : >"$1/status"
    # shellcheck source=/dev/null
    here=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    apt-get indextargets --no-release-info --format "\$(COMPONENT) \$(REPO_URI) \$(RELEASE)" |
        awk -v here="$here" -v there=$SUITE '
            $1 == "main" && $3 == here && !seen[$2]++ {
                print "Types: deb\nURIs: " $2 "\nSuites: " there "\nComponents: main"
                print "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
            }' >"$1/deb.sources"
    [ -s "$1/deb.sources" ] || die "apt knows no Debian mirror here"
    cat >"$1/apt.conf" <<Y
APT::Architecture "$debian"; APT::Architectures { "$debian"; };
APT::Sandbox::User ""; Acquire::Languages "none"; Acquire::GzipIndexes "true";
Dir::Etc::sourcelist "$1/deb.sources"; Dir::Etc::sourceparts "/dev/null"; Dir::Etc::preferencesparts "/dev/null";
Dir::State "$1/state"; Dir::State::lists "$1/lists"; Dir::State::status "$1/status"; Dir::Cache "$1/cache";
Y
    APT_CONFIG=$1/apt.conf apt-get -qq update >&2 || die "apt cannot read the package lists of $SUITE for $debian"
    (cd "$1" && APT_CONFIG=$1/apt.conf apt-get -qq download musl-dev >&2) || die "apt cannot fetch musl-dev:$debian"
}

state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
if [ -n "${DLM_OFFLINE:-}" ]; then
    cp "$DLM_OFFLINE"/musl-dev_*_$debian.deb "$state" || die "$DLM_OFFLINE has no musl-dev_*_$debian.deb"
else
    command -v apt-get >/dev/null 2>&1 || die "no apt here to fetch musl-dev:$debian with"
    say "+ fetching musl-dev for $debian"
    fetch "$state"
fi
rm -rf "$out"
mkdir -p "$out"
dpkg-deb -x "$state"/musl-dev_*_$debian.deb "$out"
lib=/usr/lib/$arch-linux-musl include=/usr/include/$arch-linux-musl
sed "s|$lib|$out$lib|g; s|$include|$out$include|g" "$out$lib/musl-gcc.specs" >"$out/musl.specs"
echo "$SUITE $out" >"$out/made"

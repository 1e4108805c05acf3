#!/bin/sh
# mbedtls.sh - makes the TLS library that dlm links: build/FOLDER/libmbedtls.a and build/FOLDER/include.
#
#     tools/mbedtls.sh FOLDER COMPILER [FLAGS...]
#
# The source is Debian's, of the suite named below whatever Debian this machine runs: asked for with apt's
# own configuration and keys from a package state of its own, so that nothing of the machine's changes and
# no root is needed. Where there is no network, DLM_OFFLINE=DIR names a folder that holds the archive.
# Alpine has no source packages: there its static library is taken as it is.
set -eu
export LC_ALL=C # the order of files is the same everywhere
cd -- "$(dirname -- "$0")/.."

SUITE=trixie
VERSION=3.6.6
ARCHIVE=mbedtls_$VERSION.orig.tar.bz2
SHA256=8fb65fae8dcae5840f793c0a334860a411f884cc537ea290ce1c52bb64ca007a

say() { printf '%s\n' "$*" >&2; }
die() {
    say "mbedtls.sh: $*"
    say "DLM_TLS=0 builds dlm without TLS; DLM_OFFLINE=DIR takes $ARCHIVE from a folder."
    exit 1
}
good() { [ -e "$1" ] && echo "$SHA256  $1" | sha256sum -c --status 2>/dev/null; }

[ $# -ge 2 ] || die "usage: tools/mbedtls.sh FOLDER COMPILER [FLAGS...]"
out=build/$1
shift
stamp="$VERSION $* $(cksum <src/mbedtls_config.h)"
[ "$(cat "$out/made" 2>/dev/null)" != "$stamp" ] || exit 0
mkdir -p build

# ---- Alpine ----

if command -v apk >/dev/null 2>&1; then
    for name in mbedtls3 mbedtls; do # its 3.6 branch is called mbedtls3 from 3.24 on
        apk info -e $name-static >/dev/null 2>&1 || continue
        lib=$(apk info -qL $name-static | sed -n 's|^|/|; s|\(.*\)/libmbedtls\.a$|\1|p')
        header=$(apk info -qL $name-dev | sed -n 's|^|/|; s|\(.*\)/mbedtls/ssl\.h$|\1|p')
        rm -rf "$out"
        mkdir -p "$out/include"
        ln -s "$header/mbedtls" "$header/psa" "$out/include/"
        printf 'CREATE %s\nADDLIB %s\nADDLIB %s\nADDLIB %s\nSAVE\nEND\n' "$out/libmbedtls.a" \
            "$lib/libmbedtls.a" "$lib/libmbedx509.a" "$lib/libmbedcrypto.a" | ar -M
        echo "$stamp" >"$out/made"
        exit 0
    done
    die "install mbedtls3-dev and mbedtls3-static, or mbedtls-dev and mbedtls-static"
fi

# ---- the source ----

fetch() { # into the folder $1, by apt, from $SUITE of the mirrors that this machine uses
    mkdir -p "$1/lists/partial" "$1/cache/archives/partial" "$1/state"
    : >"$1/status"
    # shellcheck source=/dev/null
    here=$(. /etc/os-release && echo "$VERSION_CODENAME")
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    apt-get indextargets --no-release-info --format "\$(COMPONENT) \$(REPO_URI) \$(RELEASE)" |
        awk -v here="$here" -v there=$SUITE -v keys=$keys '
            $1 == "main" && ($3 == here || $3 == here "-updates" || $3 == here "-security") && !seen[$2, $3]++ {
                sub("^" here, there, $3)
                printf "Types: deb-src\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n\n", $2, $3, keys
            }' >"$1/src.sources"
    [ -s "$1/src.sources" ] || die "apt knows no Debian mirror here"
    cat >"$1/apt.conf" <<Y
APT::Sandbox::User ""; Acquire::Languages "none"; Acquire::GzipIndexes "true";
Dir::Etc::sourcelist "$1/src.sources"; Dir::Etc::sourceparts "/dev/null"; Dir::Etc::preferencesparts "/dev/null";
Dir::State "$1/state"; Dir::State::lists "$1/lists"; Dir::State::status "$1/status"; Dir::Cache "$1/cache";
Y
    export APT_CONFIG="$1/apt.conf"
    # one list of several may be in the middle of a mirror's update: what is asked for may be there all the same
    apt-get -qq update >&2 || say "apt could not read all package lists of $SUITE; going on with the others"
    revision=$(apt-cache showsrc mbedtls | awk -v v="$VERSION-" '$1 == "Version:" && index($2, v) == 1 { print $2; exit }')
    [ -n "$revision" ] || die "$SUITE has another mbedTLS than $VERSION by now: put its version and checksum in tools/mbedtls.sh"
    (cd "$1" && apt-get -qq source --download-only --tar-only "mbedtls=$revision" >&2) || die "apt cannot fetch mbedTLS"
    unset APT_CONFIG
    mv "$1/$ARCHIVE" build/
}

if ! good "build/$ARCHIVE"; then
    rm -f "build/$ARCHIVE"
    if [ -n "${DLM_OFFLINE:-}" ]; then
        [ -e "$DLM_OFFLINE/$ARCHIVE" ] || die "$DLM_OFFLINE has no $ARCHIVE"
        cp "$DLM_OFFLINE/$ARCHIVE" build/
    else
        command -v apt-get >/dev/null 2>&1 || die "no apt here to fetch the source with"
        state=$(mktemp -d)
        trap 'rm -rf "$state"' EXIT
        say "+ fetching $ARCHIVE"
        fetch "$state"
    fi
    good "build/$ARCHIVE" || die "build/$ARCHIVE is not the file whose checksum is known"
fi

# ---- compiling ----

say "+ compiling mbedTLS $VERSION in $out with $*"
rm -rf "$out"
mkdir -p "$out"
tar xf "build/$ARCHIVE" -C "$out" --strip-components=1 "mbedtls-$VERSION/include" "mbedtls-$VERSION/library"
cp src/mbedtls_config.h "$out/include/mbedtls/mbedtls_config.h"
cpus=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
# shellcheck disable=SC2016 # the inner shell expands
(cd "$out/library" && printf '%s\n' ./*.c | xargs -P "$cpus" -n 6 sh -c '
    flags=$0
    $flags -Os -fPIE -ffunction-sections -fdata-sections -fno-asynchronous-unwind-tables -I../include -I. -c "$@"' "$*") ||
    die "mbedTLS does not compile"
(cd "$out" && ar rcD libmbedtls.a library/*.o && rm -rf library)
echo "$stamp" >"$out/made"

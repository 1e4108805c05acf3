#!/bin/sh
# static.sh - what ./dlm promises as a file: static, small, at home in an empty room, made the same twice.
set -u
passed=0 failed=0

check() { # check WORDS COMMAND...
    words=$1
    shift
    if "$@" >"$tmp/out" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "static.sh: FAILED: $words"
        sed 's/^/    /' "$tmp/out" | tail -n 20
    fi
}

lacks() { # lacks PATTERN COMMAND...: the command runs, and prints nothing that matches
    pattern=$1
    shift
    "$@" >"$tmp/list" && [ -s "$tmp/list" ] && ! grep "$pattern" "$tmp/list"
}

at_most() { # at_most BYTES FILE
    size=$(wc -c <"$2") && echo "$2 has $size bytes" && [ "$size" -le "$1" ]
}

alone() { # alone ARGS...: dlm in a root that holds nothing else, by whichever way this user may
    if [ "$(id -u)" = 0 ] && chroot "$tmp/root" /dlm version >/dev/null 2>&1; then
        chroot "$tmp/root" /dlm "$@"
    elif unshare -Ur true 2>/dev/null; then
        unshare -Ur -R "$tmp/root" /dlm "$@"
    else
        echo "this user may neither chroot nor make a user namespace" && return 1
    fi </dev/null
}

says_something() {
    alone -p "$1" -n 16 >"$tmp/answer" && [ -s "$tmp/answer" ]
}

same_twice() { # the same sources in another folder give the same bytes
    mkdir -p "$tmp/again/tests/golden" "$tmp/again/tools" && cp -R dlm.c dlm_kernels.h build.sh src "$tmp/again" &&
        cp tools/mbedtls.sh "$tmp/again/tools" &&
        cp tests/run.sh "$tmp/again/tests" && cp tests/golden/tiny-dlm.gguf "$tmp/again/tests/golden" &&
        (here=$PWD/build && cd "$tmp/again" && DLM_DEMO=1 ./build.sh --offline "$here" release) && cmp dlm "$tmp/again/dlm"
}

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir "$tmp/root"
cp dlm "$tmp/root/dlm"

for binary in dlm build/dlm-nodemo; do
    check "$binary names an interpreter" lacks INTERP readelf -lW $binary
    check "$binary needs a shared library" lacks NEEDED readelf -dW $binary
    check "$binary has memory that is both writable and executable" lacks ' RWE ' readelf -lW $binary
    check "$binary keeps its symbols" lacks '\.symtab' readelf -SW $binary
done
check "dlm with the demo model is over 2.5 MB" at_most 2500000 dlm
check "dlm without a model is over 1 MB" at_most 1000000 build/dlm-nodemo
check "dlm does not run in an empty root" alone version
check "dlm does not answer in an empty root" says_something "What is 2+2?"
check "the build is not reproducible" same_twice
echo "static: $passed passed, $failed failed"
[ $failed = 0 ]

#!/bin/sh
# cross.sh - the programs for other machines, emulated by qemu-user: each picks the best level of its
# processor, and each answers what this machine answers, to the byte.
set -u
passed=0 failed=0

check() { # check WORDS COMMAND...
    words=$1
    shift
    if "$@" >"$tmp/out" 2>&1 </dev/null; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "cross.sh: FAILED: $words"
        sed 's/^/    /' "$tmp/out" | tail -n 20
    fi
}

level_is() { # level_is LEVEL COMMAND...
    level=$1
    shift
    "$@" version && "$@" version | grep -q "level $level of"
}

same_answer() { # the tokens do not depend on the machine, for the sums do not
    for question in "What is 2+2?" "What is the capital of France?"; do
        ./dlm -p "$question" -n 32 >"$tmp/want" 2>/dev/null || return 1
        "$@" -p "$question" -n 32 >"$tmp/got" 2>"$tmp/err" || { cat "$tmp/err" && return 1; }
        cmp "$tmp/want" "$tmp/got" || return 1
    done
}

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
while read -r level qemu; do
    arch=${qemu%% *}
    # shellcheck disable=SC2086 # a command with its arguments
    set -- qemu-$qemu ./dlm-$arch
    check "dlm-$arch does not pick level $level under $*" level_is "$level" "$@"
    check "dlm-$arch answers otherwise at level $level" same_answer "$@"
done <<Y
i8mm aarch64 -cpu max
dotprod aarch64 -cpu cortex-a76
neon aarch64 -cpu cortex-a53
ref riscv64
Y
echo "cross: $passed passed, $failed failed"
[ $failed = 0 ]

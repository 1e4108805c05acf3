#!/bin/sh
# cuda.sh - what dlm-cuda says and does without a GPU, and with one that is too small.
#
#     tests/cuda.sh PROGRAM [emulated]      in the project's root; ./dlm is there to compare with
set -u
PROGRAM=$1 EMULATED=${2:-} DLM=${DLM:-./dlm}
passed=0 failed=0
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

check() { # check WHAT COMMAND...
    what=$1
    shift
    if "$@"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $what"
        sed 's/^/  stderr: /' "$tmp/err" | tail -n 5
    fi
}

ask() { # ask PROGRAM ARGS...: the answer, what went to stderr, the exit status
    "$@" -p 'What is the capital of Spain?' --temp 0 -n 24 >"$tmp/out" 2>"$tmp/err"
    echo $? >"$tmp/status"
}

is() { [ "$(cat "$tmp/$1")" = "$2" ]; }
says() { grep -q "$1" "$tmp/err"; }
silent() { ! grep -q "running on the CPU\|GPU" "$tmp/err"; }
one_line() { [ "$(grep -c "GPU" "$tmp/err")" = 1 ] && grep -q "$1" "$tmp/err"; }
once() { [ "$(grep -c "running on the CPU" "$tmp/err")" = 1 ]; }

ask "$DLM"
answer=$(cat "$tmp/out")
[ -n "$answer" ] || { echo "cuda: 0 passed, 1 failed"; exit 1; }

ask "$DLM" --device cuda
check 'dlm --device cuda is a wrong command line' is status 2
check 'dlm --device cuda says how to get dlm-cuda' says 'build.sh cuda'
ask "$DLM" --device cpu
check 'dlm --device cpu answers' is out "$answer"
ask "$DLM" --gpu-layers 3
check 'dlm --gpu-layers is a wrong command line' is status 2

without() { # without LABEL PROGRAM...: there is no GPU
    label=$1
    shift
    for device in auto cuda; do
        ask "$@" "$PROGRAM" --device $device
        check "$label, $device: the job's exit status" is status 0
        check "$label, $device: the CPU's answer" is out "$answer"
        check "$label, $device: one line" once
    done
    ask "$@" "$PROGRAM" --device cpu
    check "$label, cpu: the CPU's answer" is out "$answer"
    check "$label, cpu: no word about it" silent
    "$@" "$PROGRAM" info >"$tmp/out" 2>"$tmp/err"
    check "$label: info" grep -q '^GPU ' "$tmp/out"
    ask "$@" "$PROGRAM" -m /dev/null
    check "$label: a job that fails keeps its exit status" is status 3
}

if [ -n "$EMULATED" ]; then
    without 'no driver' env DLM_EMU=off
    without 'a small GPU' env DLM_EMU_MEMORY=50000000
    ask env DLM_EMU_MEMORY=50000000 "$PROGRAM"
    cp "$tmp/err" "$tmp/small"
    check 'a small GPU: the numbers' says 'need [0-9.]* MiB on the GPU, where 47.7 are free'
    "$PROGRAM" info >"$tmp/out" 2>"$tmp/err"
    check 'info lists the GPU' grep -q 'emulated GPU, compute capability 8.0' "$tmp/out"
    "$PROGRAM" info --json >"$tmp/out" 2>"$tmp/err"
    check 'info --json lists the GPU' grep -q '"gpus":\[{"name":"emulated GPU","capability":"8.0"' "$tmp/out"
    need=$(sed -n 's/.* need \([0-9.]*\) MiB on the GPU.*/\1/p' "$tmp/small" | head -n 1)
    most=$(awk "BEGIN { printf \"%.0f\", ($need - 0.15) * 1048576 }")
    ask env DLM_EMU_MEMORY="$most" "$PROGRAM"
    check 'a GPU for some of the layers: exit status' is status 0
    check 'a GPU for some of the layers: the answer' is out "$answer"
    check 'a GPU for some of the layers: one line with the numbers' one_line \
        'the GPU has [1-3] of 4 layers ([0-9.]* MiB: weights [0-9.]*, cache [0-9.]*, .* are free), the CPU the others'
    ask env DLM_EMU_MEMORY=50000000 "$PROGRAM" --gpu-layers 2
    check 'more layers than fit: exit status' is status 4
    check 'more layers than fit: one line with the numbers' one_line '2 of 4 layers on the GPU need [0-9.]* MiB: .*; 0 would fit'
    ask "$PROGRAM" -ngl 0
    check 'no layers: the answer' is out "$answer"
    check 'no layers: no word about it' silent
    ask "$PROGRAM"
    check 'on the GPU: exit status' is status 0
    check 'on the GPU: the answer' is out "$answer"
    check 'on the GPU: no word about the CPU' silent
else
    without 'no device' env CUDA_VISIBLE_DEVICES=
    check 'no C++ library is needed' sh -c "! readelf -dW '$PROGRAM' | grep -q 'NEEDED.*stdc++'"
    check 'no library of CUDA is needed' sh -c "! readelf -dW '$PROGRAM' | grep -q 'NEEDED.*cuda'"
fi
echo "cuda: $passed passed, $failed failed"
[ $failed = 0 ]

#!/bin/sh
# bench.sh - every number of SPEED.md that one machine can give, as Markdown on standard output.
#
#   tools/bench.sh [--level LEVEL] [--device DEVICE] [--reps N] [--depth N]...
#
# Wants ./dlm (./build.sh), or the program that DLM names, and a compiler for tools/mkbench.c; the
# models of the 2B shape (2.3 GB) are made under build/models once. --device goes to the program as
# it is. The demo model's questions are those beside its checkpoint, if that is there.
set -eu
cd "$(dirname "$0")/.."
dlm=${DLM:-./dlm} reps=5 level='' device='' depths=''

while [ $# -gt 0 ]; do
    case $1 in
    --level) level="--cpu $2" ;;
    --device) device="--device $2" ;;
    --reps) reps=$2 ;;
    --depth) depths="$depths $2" ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
    esac
    shift 2
done

bench() { # bench TITLE OPTION...
    echo "## $1"
    shift
    # shellcheck disable=SC2086
    "$dlm" bench -r "$reps" $level $device "$@"
    echo
}

echo "$(nproc) processors: $(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1)"
"$dlm" version
echo
questions=../shared/models/tiny-dlm/questions.json
[ ! -e $questions ] || set -- --questions $questions
bench "The built-in model" "$@"

mkdir -p build/models
cc -std=c11 -D_GNU_SOURCE -O2 -o build/mkbench tools/mkbench.c
for type in tq2_0 tq1_0 i2_s; do
    model=build/models/2b-$type.gguf
    if ! [ -e $model ]; then
        build/mkbench $model.part $type
        mv $model.part $model
    fi
    bench "The 2B shape, $type" -m $model
done
for depth in $depths; do
    bench "The 2B shape, tq2_0, $depth positions in the cache" -m build/models/2b-tq2_0.gguf -d "$depth" -p 1 -n 1
done

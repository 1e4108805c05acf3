#!/bin/sh
# gpu.sh - everything that only a machine with an NVIDIA GPU can show, in one command: with the CUDA
# Toolkit and a C compiler, without a network.
#
#     tests/gpu.sh [FOLDER]        in the project's root; logs go to FOLDER (build/gpu)
#
# Builds dlm-cuda for this GPU; the operations and the engine against the CPU's; the same under
# compute-sanitizer's four tools; what the program says with and without a GPU; then the numbers:
# ceilings, matrices of the 2B shape, forwards, prefill and decoding, beside the CPU's. The table comes
# last. SECONDS of each part are printed, so that a short lease can be planned.
# shellcheck disable=SC2086
set -u
cd "$(dirname "$0")/.." || exit 1
out=${1:-build/gpu} failed=''
mkdir -p "$out" build/models
export DLM_TLS=0

part() { # part NAME COMMAND...
    name=$1 from=$(date +%s)
    shift
    if "$@" >"$out/$name.txt" 2>&1; then state=passed; else state=FAILED failed="$failed $name"; fi
    echo "$name: $state, $(($(date +%s) - from)) s"
    [ $state = passed ] || tail -n 15 "$out/$name.txt"
}

arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
[ "${arch:-0}" != 90 ] || arch=90a
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
part build ./build.sh cuda ${arch:-90}
part build-cpu gcc -std=c11 -D_GNU_SOURCE -O2 -ffp-contract=off dlm.c -o build/gpu-dlm-cpu -lpthread -lm
CUDA=$(dirname "$(dirname "$(readlink -f "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")")")
part build-check gcc -std=c11 -D_GNU_SOURCE -O2 -g -ffp-contract=off -DDLM_CUDA tests/cuda_check.c \
    build/cuda/dlm_cuda.o -o build/cuda/cuda_check -L"$CUDA/lib64" -lcudart_static -ldl -lpthread -lrt -lm
part check build/cuda/cuda_check
sanitizer=$(command -v compute-sanitizer || echo "$CUDA/bin/compute-sanitizer")
for tool in memcheck racecheck initcheck synccheck; do
    if [ -x "$sanitizer" ]; then
        part $tool timeout 240 "$sanitizer" --tool $tool --error-exitcode 9 build/cuda/cuda_check --quick
    else
        echo "$tool: compute-sanitizer is not here" && failed="$failed $tool"
    fi
done
part without env DLM=build/gpu-dlm-cpu sh tests/cuda.sh ./dlm-cuda
part bench-matrices build/cuda/cuda_check --bench
part mkbench sh -c 'gcc -std=c11 -D_GNU_SOURCE -O2 -o build/mkbench tools/mkbench.c &&
    { [ -e build/models/2b-tq2_0.gguf ] || build/mkbench build/models/2b-tq2_0.gguf tq2_0; }'
part bench-gpu ./dlm-cuda bench --device cuda -m build/models/2b-tq2_0.gguf -c 4096 -p 4000 -n 64
part bench-demo ./dlm-cuda bench --device cuda
part bench-cpu ./dlm-cuda bench --device cpu -m build/models/2b-tq2_0.gguf -c 4096 -p 512 -n 16
grep -h 'cuda_check: [0-9]* passed' "$out"/*.txt
for table in bench-matrices bench-gpu bench-demo bench-cpu; do
    echo "== $table" && cat "$out/$table.txt"
done
[ -z "$failed" ] || echo "FAILED:$failed"
[ -z "$failed" ]

#!/bin/sh
# gpu.sh - everything that only a machine with an NVIDIA GPU can show, in one command: with the CUDA
# Toolkit and a C compiler, without a network, in ten minutes.
#
#     tests/gpu.sh [FOLDER]        in the project's root. FOLDER ($OUT, else build/gpu) gets summary.txt
#                                  and logs.txt, which at any moment hold what is known so far
#
# Builds dlm-cuda for this GPU; the operations, the families and the engine against the CPU's and the
# goldens; what the program says without a GPU; ceilings, and beside them matrices of the 2B shape,
# forwards, prefill and decoding, on the GPU and on the CPU; compute-sanitizer's four tools, side by side
# and late, for nothing is timed then. A part that fails or takes too long does not keep the others from
# running. LIMIT: seconds for all of it; SANITIZE=0 leaves those tools out. Where the models are in
# shared and not in ../shared, a link is made.
# shellcheck disable=SC2086
set -u
cd "$(dirname "$0")/.." || exit 1
out=${1:-${OUT:-build/gpu}} failed='' began=$(date +%s)
logs=build/gpu-logs big=build/models/2b-tq2_0.gguf
rm -rf $logs
mkdir -p "$out" $logs build/models
: >"$out/summary.txt"
: >"$out/logs.txt"
export DLM_TLS=0
unset DLM_MODEL
[ -e ../shared ] || [ ! -d shared ] || ln -s "$PWD/shared" ../shared

say() { echo "$*" | tee -a "$out/summary.txt"; }
left() { echo $((${LIMIT:-560} - $(date +%s) + began)); }

begin() { # begin NAME SECONDS COMMAND...: at most so long, and not beyond the end of all
    name=$1 most=$2 from=$(date +%s)
    shift 2
    [ "$(left)" -gt "$most" ] || most=$(left)
    if [ "$most" -lt 3 ]; then
        echo 'no time is left for it' >$logs/$name.txt
        echo "124 0" >$logs/$name.state
        return
    fi
    timeout "$most" "$@" >$logs/$name.txt 2>&1
    echo "$? $(($(date +%s) - from))" >$logs/$name.state
}

end() { # end NAME: how it went
    read -r status seconds <$logs/$1.state
    { echo "== $1" && cat $logs/$1.txt; } >>"$out/logs.txt"
    if [ "$status" = 0 ]; then
        say "$1: passed, $seconds s"
    else
        say "$1: FAILED with $status, $seconds s"
        failed="$failed $1"
        tail -n 12 $logs/$1.txt | tee -a "$out/summary.txt"
    fi
}

part() { begin "$@" && end $1; }

# ---- build; what needs no nvcc is made meanwhile ----

arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .)
[ "${arch:-0}" != 90 ] || arch=90a
nvcc=$(command -v nvcc || echo "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc")
CUDA=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
say "$(nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem --format=csv,noheader 2>&1)"
say "$("$nvcc" --version 2>&1 | tail -n 2 | head -n 1), $(getconf _NPROCESSORS_ONLN) processors"
cc='gcc -std=c11 -D_GNU_SOURCE -O2 -ffp-contract=off'
cuda="-DDLM_CUDA build/cuda/dlm_cuda.o -L$CUDA/lib64 -L$CUDA/lib -lcudart_static -ldl -lpthread -lrt -lm"
begin host 240 sh -c "$cc dlm.c -o build/gpu-dlm-cpu -lpthread -lm && $cc tools/mkbench.c -o build/mkbench -lpthread -lm &&
    { [ -e $big ] || { build/mkbench $big.new tq2_0 && mv $big.new $big; }; }" &
part build 240 ./build.sh cuda ${arch:-90}
wait
end host
part build-check 60 $cc tests/cuda_check.c -o build/cuda/cuda_check $cuda
part build-families 60 $cc tests/t_families.c -o build/cuda/t_families $cuda

# ---- is it right? ----

part check 150 build/cuda/cuda_check
part families 60 build/cuda/t_families
part without 60 env DLM=build/gpu-dlm-cpu sh tests/cuda.sh ./dlm-cuda
part layers 60 ./dlm-cuda run -p 'What is 2+2?' --temp 0 --gpu-layers 2
if [ -d ../shared/models ] && command -v python3 >/dev/null; then
    part accuracy 90 env DLM=dlm-cuda python3 tests/py/accuracy.py
    part traces 60 env DLM=dlm-cuda python3 tests/py/traces.py
fi

# ---- how fast is it? ----

# The chip's own ceilings, where PyTorch is there to tell them: the measured ones beside which the ratios
# stand are those of mma.sync, which is not the quickest instruction that Hopper has.
cat >$logs/peak.py <<'END'
import torch


def rate(run, n):
    best = 1e9
    for _ in range(12):
        a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        a.record()
        run()
        b.record()
        torch.cuda.synchronize()
        best = min(best, a.elapsed_time(b))
    return n / best / 1e6


n, gib = 8192, 1 << 30
i = torch.randint(-127, 127, (n, n), dtype=torch.int8, device="cuda")
h = torch.randn(n, n, dtype=torch.bfloat16, device="cuda")
x, y = (torch.empty(gib, dtype=torch.uint8, device="cuda") for _ in range(2))
print(f"PyTorch's ceilings: int8 {rate(lambda: torch._int_mm(i, i.t()), n**3):.0f}, bf16 {rate(lambda: h @ h, n**3):.0f} "
      f"G multiply-adds/s, copy {rate(lambda: y.copy_(x), 2 * gib):.1f} GB/s (read and written)")
END
! python3 -c 'import torch' 2>/dev/null || part peak 60 python3 $logs/peak.py
part bench-matrices 60 build/cuda/cuda_check --bench
part bench-gpu 60 ./dlm-cuda bench --device cuda -m $big -c 4352 -p 4096 -n 64
part bench-depth 60 ./dlm-cuda bench --device cuda -m $big -c 4352 -p 32 -n 32 -r 3 -d 4096
questions=../shared/models/tiny-dlm/questions.json
if [ ! -e $questions ]; then
    questions=$logs/questions.json
    echo '[{"question": "What is 2+2?", "answer": null}, {"question": "Count from 8 to 20.", "answer": null}]' >$questions
fi
# The 2B shape's words mean nothing, and all of its tokens are unsure; what a forward costs is meant.
cat >$logs/answers.sh <<'END'
device=$1 model=$2
for how in '--decode-mode ar' '--decode-mode iterative' '--decode-mode iterative --cache none' '--decode-mode greedy'; do
    ./dlm-cuda run --device $device -m $model --raw -p 'a b c d e f g h' --temp 0 -n 96 --no-early-stop $how >/dev/null 2>answer.err
    status=$?
    echo "$device, $how: $(grep -a 'tok/s' answer.err || cat answer.err)"
    [ $status = 0 ] || exit $status
done
rm answer.err
END
for device in cuda cpu; do
    part questions-$device 60 ./dlm-cuda bench --device $device -p 64 -n 64 -r 3 --questions $questions
    part answers-$device 90 sh $logs/answers.sh $device $big
done
part bench-cpu 60 ./dlm-cuda bench --device cpu -m $big -c 4096 -p 512 -n 16 -r 3

# ---- compute-sanitizer ----

sanitizer=$(command -v compute-sanitizer || echo "$CUDA/bin/compute-sanitizer")
if [ "${SANITIZE:-1}" != 0 ] && [ -x "$sanitizer" ]; then
    for tool in memcheck racecheck initcheck synccheck; do
        begin $tool 240 "$sanitizer" --tool $tool --error-exitcode 9 build/cuda/cuda_check --quick --kernels &
    done
    wait
    for tool in memcheck racecheck initcheck synccheck; do end $tool; done
else
    say "compute-sanitizer is not here, or was not wanted"
fi

# ---- the numbers ----

say ''
say 'What it shows, each beside a ceiling of the same run:'
awk -F'|' '
    function told(what, ms, bound) { printf "%s: %.3f ms, bound %.3f ms: %.2f times, %.0f %% of the bound\n", what, ms, bound, ms / bound, 100 * bound / ms }
    match($0, /read [0-9.]+ GB\/s, [0-9]+ G int8/) { split(substr($0, RSTART), w, " "); peak = w[4]; print "copy " w[2] " GB/s (read and written), int8 " peak " G multiply-adds/s" }
    $2 == " rows " && $3 == " 1 " { one = $5; told("a forward of 1 row", $4, $5) }
    $2 == " rows " && $3 == " 32 " { told("block step of 32 rows (wanted: 1.6 times)", $4, $5) }
    $2 == " tg " { told("ar decoding, a token (wanted: 60 %)", $4 / $3, one) }
    $2 == " pp " { printf "prefill of %d tokens: %.1f ms, %.0f G multiply-adds/s, %.1f %% of the int8 peak (wanted: 35 %%)\n", $3, $4, $7, 100 * $7 / peak }
' $logs/bench-gpu.txt | tee -a "$out/summary.txt"
awk -F'|' '$2 == " 1024 " { printf "32 x 32 rows, linear layers: %s ms, %s G multiply-adds/s, %.1f %% of the int8 peak (wanted: 45 %%)\n", $3, $6, 100 * $7 }
    /^ceilings/ { print }' $logs/bench-matrices.txt | tee -a "$out/summary.txt"
grep -h 'ceilings: int8\|device memory over\|answers are the CPU\|golden logits:' $logs/peak.txt $logs/check.txt 2>/dev/null | tee -a "$out/summary.txt"
for name in bench-matrices bench-gpu bench-depth questions-cuda questions-cpu answers-cuda answers-cpu bench-cpu; do
    say "== $name" && tee -a "$out/summary.txt" <$logs/$name.txt
done
grep -h '[0-9]* passed, [0-9]* failed' $logs/*.txt | tee -a "$out/summary.txt"
say "$(($(date +%s) - began)) s in all; FAILED:${failed:- nothing}"
[ -z "$failed" ]

#!/bin/sh
# run.sh - how build.sh tests dlm; build.sh reads this file, which runs nothing by itself.
#
# Every test program prints `N passed, N failed`, and the last line of all is their sum. A program that
# crashes, runs too long or prints no count is a failure.
# shellcheck disable=SC2086,SC2119,SC2120,SC2153,SC2154

CPUS=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
passed=0 failed=0 broken='' only=''


try() { # try NAME COMMAND...: runs one test program under a time limit and adds up its count
    name=$1 status=0 began=$(date +%s) log=build/log/$(echo "$1" | tr ' /' '__').txt
    shift
    mkdir -p build/log
    run timeout "${LIMIT:-250}" "$@" >"$log" 2>&1 </dev/null || status=$?
    tail -n 60 "$log"
    say "  $name: $(($(date +%s) - began)) s"
    count=$(awk 'match($0, /[0-9]+ passed, [0-9]+ failed/) { split(substr($0, RSTART), w, " ") }
        END { if (w[1] != "") print w[1], w[3] }' "$log")
    good=${count% *} bad=${count#* }
    case $count:$status in
    :*) good=0 bad=1 && echo "$name: FAILED: no count, exit status $status" ;;
    *' 0:0') ;;
    *' 0:'*) bad=1 && echo "$name: FAILED: exit status $status after its count" ;;
    esac
    passed=$((passed + good)) failed=$((failed + bad))
    [ "$bad" = 0 ] || broken="$broken [$name]"
}

# These want heavy packages, or minutes: `check` runs them, and `test` when they are named.
LONG_SCRIPTS='browser load abuse buildah deploy proxies'

finish() { # the closing line
    [ -z "$broken" ] || echo "failed in:$broken"
    [ $((passed + failed)) != 0 ] || failed=1
    echo "$passed passed, $failed failed"
    [ $failed = 0 ]
}

chosen() { # chosen FILE: is it one that `test NAME...` names?
    base=$(basename "${1%.*}")
    case " $only " in
    '  ' | *" $base "* | *" ${base#t_} "*) ;;
    *) return 1 ;;
    esac
}

# The chosen unit tests, $CPUS at a time. TLS for: the machine they are for, and its compiler.
compile_tests() { # compile_tests FOLDER COMPILER-AND-FLAGS [TLS-FOR TLS-COMPILER]
    mkdir -p "build/$1"
    tls mbedtls-${3:-host} ${4:-gcc} # for tests/t_tls.c: sets TLS and TLS_LIB
    n=0
    for source in tests/t_*.c tests/kern_check.c; do
        chosen "$source" || continue
        stale "build/$1/$base" $SOURCES tests/test.h "$source" || continue
        rm -f "build/$1/$base" # a test that no longer compiles must not pass
        run $2 $TLS "$source" -o "build/$1/$base" $TLS_LIB ${ATOMIC:-} -lpthread -lm &
        n=$((n + 1))
        [ $((n % CPUS)) != 0 ] || wait
    done
    wait
}

units() { # units FOLDER [LABEL COMMAND...]: runs what compile_tests made, under COMMAND
    folder=$1 label=${2:-$1}
    shift $(($# > 1 ? 2 : 1))
    for source in tests/t_*.c tests/kern_check.c; do
        ! chosen "$source" || try "$label $base" "$@" "build/$folder/$base"
    done
}

scripts() { # scripts LABEL DLM [ALL-BUT]: the scripts that drive the program DLM; who is named runs anyway
    export DLM="$2"
    for script in tests/py/*.py tests/e2e/*.py tests/e2e/*.sh; do
        if ! [ -e "$script" ] || ! chosen "$script"; then continue; fi
        case "$only: ${3:-} " in :*" $base "*) continue ;; esac
        case $script in
        */_* | */ref_* | */*_golden.py) ;; # what scripts share; references, and makers of goldens
        *.py) try "$1 $base" "$PYTHON" "$script" ;;
        *.sh) try "$1 $base" sh "$script" ;;
        esac
    done
}

models() { # the trained checkpoint in every ternary type
    from=../shared/models/tiny-dlm
    [ -e $from/model.safetensors ] || die "the tests need $from, beside this folder"
    mkdir -p build/models
    for type in tq1_0 tq2_0 i2_s q2_0 f16 f32; do
        to=build/models/tiny-$type.gguf
        stale $to tools/mkgguf.py $from || continue
        run "$PYTHON" tools/mkgguf.py $from -o $to --type $type >&2 &
    done
    wait
}

prepare() { # what every test stands on
    want curl curl curl
    want openssl openssl openssl
    want_host
    want_python
    release dlm
    release build/dlm-nodemo -DDLM_NO_DEMO
    models
}

# The CUDA backend: on an emulated GPU; and, where nvcc is, compiled for every GPU and run without one, or
# with the one that is here.
cuda_tests() {
    cuda_emulated build/cuda/emulated.o
    stale build/cuda/emulated_check $SOURCES tests/test.h tests/t_golden.c tests/cuda_check.c build/cuda/emulated.o &&
        run gcc $CFLAGS -O1 -g -DDLM_CUDA tests/cuda_check.c build/cuda/emulated.o -o build/cuda/emulated_check \
            -lpthread -lm
    ! chosen tests/cuda_check || try "emulated cuda_check" build/cuda/emulated_check --quick
    ! chosen tests/cuda_check || try "emulated Turing cuda_check" env DLM_EMU_CAPABILITY=75 DLM_EMU_SMS=132 \
        build/cuda/emulated_check --quick --kernels
    stale build/cuda/dlm-emulated $SOURCES build/cuda/emulated.o &&
        run gcc $CFLAGS -O1 -DDLM_CUDA dlm.c build/cuda/emulated.o -o build/cuda/dlm-emulated -lpthread -lm
    ! chosen tests/cuda || try "emulated cuda" sh tests/cuda.sh build/cuda/dlm-emulated emulated
    if ! find_nvcc; then
        say "nvcc is not here: dlm-cuda was neither compiled nor tested"
        return
    fi
    cuda_object build/cuda/quick.o '-Ofc max' $CUDA_ARCHS
    cuda_program build/cuda/dlm-quick build/cuda/quick.o -O1
    ! chosen tests/cuda || try cuda sh tests/cuda.sh build/cuda/dlm-quick
}

run_test() { # run_test [NAME...]
    only=$*
    prepare
    compile_tests test "gcc $CFLAGS -O1 -g -DDLM_TEST_ALLOC="
    units test
    ! chosen tools/mkgguf.py || try mkgguf "$PYTHON" tools/mkgguf.py --selftest
    ! chosen tests/static.sh || try static sh tests/static.sh
    case " $only " in '  ' | *' cuda '* | *' cuda_check '*) cuda_tests ;; esac
    scripts e2e ./dlm "$LONG_SCRIPTS"
    [ -z "$only" ] || [ $((passed + failed)) != 0 ] || die "no test is called $only"
}

fuzz() { # fuzz NAME SECONDS: what it finds stays in build/fuzz
    want_clang
    [ -e "tests/fuzz/fuzz_$1.c" ] || die "there is no tests/fuzz/fuzz_$1.c"
    mkdir -p "build/fuzz/$1"
    ! stale "build/fuzz/fuzz_$1" $SOURCES "tests/fuzz/fuzz_$1.c" ||
        run clang $CFLAGS -O1 -g -fsanitize=fuzzer $SANITIZE "tests/fuzz/fuzz_$1.c" -o "build/fuzz/fuzz_$1"
    run "build/fuzz/fuzz_$1" -max_total_time="$2" -timeout=10 -rss_limit_mb=2048 -verbosity=0 \
        -print_final_stats=1 -artifact_prefix="build/fuzz/$1-" "build/fuzz/$1" "tests/fuzz/corpus/$1" &&
        echo "fuzz_$1: 1 passed, 0 failed"
}

# Runs the kernel checks on an emulated CPU, where Bochs is installed and this machine lacks the level.
# Bochs 2.7 rounds the ties of VCVTPS2PH up instead of to even, so what it says of to_f16 is left out.
emulate() { # emulate LEVEL CPU-FLAG BOCHS-MODEL
    ! grep -qw "$2" /proc/cpuinfo || return 0
    command -v bochs-bin >/dev/null && [ -d ../shared/tools/bochs ] || return 0
    mkdir -p build/bochs && cp ../shared/tools/bochs/* build/bochs && chmod u+w build/bochs/*
    run musl-gcc $CFLAGS -O2 -static tests/kern_check.c -o build/bochs/kern_check
    (cd build/bochs && run sh mkimg.sh kern_check "kern_check --level $1" image)
    export T="$LIMIT"
    try "bochs $1" sh -c "cd build/bochs && sh go.sh $3 image |
        awk '/FAILED: $1 to_f16/ { known++; next } / failed/ { \$4 -= known } { print } / 0 failed/ { ok = 1 } END { exit !ok }'"
}

levels() { # the kernel levels of this machine, each with the CPU flag that tells, but not the best one
    {
        echo ref
        for level in avx2 avxvnni:avx_vnni avx512:avx512_vnni; do
            ! grep -qw "${level#*:}" /proc/cpuinfo || echo "${level%:*}"
        done
    } | sed '$d'
}

# The unit tests on other machines, as qemu-user emulates them, 20 to 70 times slower than here: without the
# engine's 200 refused allocations, and without the sandbox, for qemu-user has no Landlock.
# Bookworm's ld for riscv64 crashes on the debugging information of newer packages, hence -s.
run_cross() { # run_cross [NAME...]
    export LIMIT=2400
    units=$*
    [ -n "$units" ] || units=$(basename -a -s .c tests/t_*.c tests/kern_check.c | grep -vx t_sandbox | tr '\n' ' ')
    want qemu-aarch64 qemu-user -
    prepare
    for arch in aarch64 riscv64; do
        release dlm-$arch '' $arch
        cc="$CC $CFLAGS -O2 -static -s"
        only=engine
        compile_tests $arch "$cc" $arch "$CC"
        only=$(printf '%s\n' $units | grep -vxE '(t_)?engine' | tr '\n' ' ')
        [ -z "$only" ] || compile_tests $arch "$cc -DDLM_TEST_ALLOC=" $arch "$CC"
    done
    only=$units
    units aarch64 i8mm qemu-aarch64 -cpu max # kern_check and t_engine go through the lower levels, too
    [ -n "$*" ] || only=$(printf '%s\n' $units | grep -vxE 't_batch|t_engine|t_golden' | tr '\n' ' ') # too slow at ref
    units riscv64 ref qemu-riscv64
    for only in golden kern_check; do # on processors that have no better level
        case " $units " in *" $only "* | *" t_$only "*) ;; *) continue ;; esac
        units aarch64 dotprod qemu-aarch64 -cpu neoverse-n1
        units aarch64 neon qemu-aarch64 -cpu cortex-a72
    done
    only=$*
    ! chosen tests/cross.sh || try cross sh tests/cross.sh
}

run_check() {
    export LIMIT=1200 TEXTS=5000 # TEXTS: of tests/py/tok_diff.py, for each vocabulary
    run_test # at the best level
    want chromium-headless-shell chromium-headless-shell chromium
    want buildah buildah buildah
    want systemd-analyze systemd -
    want nginx nginx-light nginx
    want haproxy haproxy haproxy
    get
    only=$LONG_SCRIPTS
    scripts e2e ./dlm
    only=''
    try lint tools/lint.sh
    for level in $(levels); do
        export DLM_CPU=$level
        only='traces accuracy'
        [ $level != ref ] || only=traces # the scalar law takes its time
        scripts $level ./dlm
        unset DLM_CPU
    done
    only=''
    want_clang
    compile_tests asan "clang $CFLAGS -O1 -g $SANITIZE -DDLM_TEST_ALLOC="
    units asan
    debug
    scripts asan build/dlm-debug "tok_diff dequant quantize gguf_write accuracy $LONG_SCRIPTS"
    only='pool engine batch'
    compile_tests tsan "clang $CFLAGS -O1 -g -fsanitize=thread"
    units tsan
    run clang $CFLAGS -O1 -g -fsanitize=thread $TLS dlm.c -o build/dlm-tsan $TLS_LIB -lpthread -lm
    only='serve abuse'
    scripts tsan build/dlm-tsan
    only=''
    for target in tests/fuzz/fuzz_*.c; do
        room=$(basename "$target" .c) && room=${room#fuzz_}
        try "fuzz $room" ./build.sh fuzz "$room" 30
    done
    emulate avx512 avx512_vnni corei7_icelake_u
    [ $PM != apt ] || run_cross
}


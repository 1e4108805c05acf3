#!/bin/sh
# build.sh - builds, runs and tests dlm. `./build.sh help` lists the verbs.
# shellcheck disable=SC2086 # lists of flags and packages are split on purpose
set -eu
CALLER=$PWD
cd -- "$(dirname -- "$0")"

SOURCES='dlm.c dlm_kernels.h src tests/golden/tiny-dlm.gguf build.sh'
CFLAGS='-std=c11 -D_GNU_SOURCE -Wall -Wextra -Wno-unused-function -ffp-contract=off'
RELEASE="$CFLAGS -O2 -fPIE -ffunction-sections -fdata-sections -fno-asynchronous-unwind-tables"
SANITIZE='-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer'
PYTHON=python3

say() { printf '%s\n' "$*" >&2; }
die() { say "build.sh: $*"; exit 1; }
run() { say "+ $*"; "$@"; }

help() {
    cat <<'X'
./build.sh [release]         ./dlm: one static binary, the demo model inside (DLM_DEMO=0 leaves it out)
./build.sh --target ARCH     the same for another machine, aarch64 or riscv64: ./dlm-ARCH
./build.sh run ARGS...       builds ./dlm when it is out of date, then runs it
./build.sh cuda [ARCH...]    ./dlm-cuda: the same for NVIDIA's GPUs; ARCH: of these alone, such as 90a
./build.sh debug             build/dlm-debug: host libc, AddressSanitizer and UBSan
./build.sh test [NAME...]    all tests, or the named ones; ends with `N passed, N failed`
./build.sh check             lint, tests at every CPU level of this machine, sanitizers, fuzzing (long)
./build.sh cross [NAME...]   the unit tests, or the named ones, on those machines as qemu-user emulates them
./build.sh fuzz NAME SECONDS fuzzes one room: tests/fuzz/fuzz_NAME.c
./build.sh compdb            compile_commands.json for editors
./build.sh size              where the bytes of ./dlm are
./build.sh clean             removes everything that this script made
DLM_TLS=0 leaves TLS out. --offline DIR before the verb takes the source of mbedTLS from a folder.
Missing packages are installed when this is root or may sudo; otherwise they are named.
X
}

# ---- packages: a verb wants commands or files; what is missing is installed, or named ----

if command -v apk >/dev/null 2>&1; then PM=apk; else PM=apt; fi
missing=

want() { # want COMMAND|/FILE DEBIAN-PACKAGE ALPINE-PACKAGE
    case $1 in
    /*) ! [ -e "$1" ] || return 0 ;;
    *) ! command -v "$1" >/dev/null 2>&1 || return 0 ;;
    esac
    if [ $PM = apk ]; then missing="$missing $3"; else missing="$missing $2"; fi
}

get() {
    [ -n "$missing" ] || return 0
    sudo=
    if [ "$(id -u)" != 0 ]; then
        sudo=sudo
        { sudo -n true || { [ -t 0 ] && sudo true; }; } 2>/dev/null || die "please install:$missing"
    fi
    if [ $PM = apk ]; then
        run $sudo apk add --no-cache $missing >&2 || die "please install:$missing"
    elif command -v apt-get >/dev/null 2>&1; then
        run $sudo apt-get update -q >&2 || say "going on with the package lists that are here"
        run $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing >&2 ||
            die "please install:$missing"
    else
        die "please install what Debian calls:$missing"
    fi
    missing=
}

want_host() { # this machine's own compiler and libc: tests and debug builds
    want gcc gcc gcc
    want /usr/include/stdio.h libc6-dev musl-dev
    get
}

want_clang() { # sanitizers and fuzzing; Alpine's clang has neither AddressSanitizer nor libFuzzer
    [ $PM = apt ] || die "sanitizers and fuzzing need a glibc machine, such as Debian"
    want clang clang -
    want /usr/include/stdio.h libc6-dev -
    [ -n "$(find -L /usr/lib/clang /usr/lib/llvm-* -name 'libclang_rt.fuzzer*' 2>/dev/null)" ] ||
        missing="$missing libclang-rt-dev"
    get
}

want_python() { # the Python of the tests: a venv when packages are pinned
    want python3 python3 python3
    get
    python3 -c 'import ensurepip, venv' 2>/dev/null || want /no/venv python3-venv py3-pip
    get
    PYTHON=build/venv/bin/python
    stale build/venv/ready tests/py/requirements.txt || return 0
    if run python3 -m venv --clear build/venv &&
        run $PYTHON -m pip install -q --disable-pip-version-check --no-deps -r tests/py/requirements.txt; then
        : >build/venv/ready
    else
        say "going on without the packages of tests/py/requirements.txt: the tests that need them will fail"
        PYTHON=python3
    fi
}

# ---- building ----

# TLS is mbedTLS, compiled by the compiler of the program that links it. Sets TLS and TLS_LIB.
tls() { # tls FOLDER COMPILER...
    TLS='' TLS_LIB=''
    [ "${DLM_TLS:-1}" != 0 ] || return 0
    if [ $PM = apk ]; then
        mbedtls=mbedtls # from Alpine 3.24 on, its 3.6 branch is called mbedtls3
        [ -z "$(apk search --no-cache -qe mbedtls3-static 2>/dev/null)" ] || mbedtls=mbedtls3
        apk info -e $mbedtls-static $mbedtls-dev >/dev/null 2>&1 || missing="$missing $mbedtls-static $mbedtls-dev"
    else
        want bzip2 bzip2 -
    fi
    get
    tools/mbedtls.sh "$@" || exit 1
    TLS="-DDLM_TLS -isystem build/$1/include" TLS_LIB=build/$1/libmbedtls.a
}

stale() { # stale OUT SOURCE...: OUT is missing, or older than a source (a folder: than a file in it)
    newer_than=$1
    shift
    ! [ -e "$newer_than" ] || [ -n "$(find "$@" -newer "$newer_than" -type f 2>/dev/null)" ]
}

is_static() { # no interpreter, no shared library
    ! readelf -lW "$1" | grep -q INTERP && ! readelf -dW "$1" | grep -q NEEDED
}

# Links a static position-independent executable. musl-gcc's own -static-pie quietly makes a dynamic one,
# so its start files are named by hand; where there are none, a plain static executable is as good.
link_static() { # link_static OUT OBJECT
    small='-Wl,--gc-sections -Wl,--build-id=none -s'
    if [ "$CC" = gcc ]; then
        ! { run gcc -static-pie "$2" $TLS_LIB -o "$1" $small && is_static "$1"; } || return 0
    elif [ -e "$MUSL/rcrt1.o" ]; then
        ! { run $CC -nostartfiles -nostdlib -static -Wl,-pie,--no-dynamic-linker,-z,text,-z,relro,-z,now $small \
            -o "$1" "$MUSL/rcrt1.o" "$MUSL/crti.o" "$($CC -print-file-name=crtbeginS.o)" "$2" $TLS_LIB \
            -Wl,--start-group -lc -lgcc -lgcc_eh $ATOMIC -Wl,--end-group \
            "$($CC -print-file-name=crtendS.o)" "$MUSL/crtn.o" && is_static "$1"; } || return 0
    fi
    run $CC -static "$2" $TLS_LIB -o "$1" $ATOMIC $small
    is_static "$1" || die "$1 is not static: $CC finds only shared libraries here"
}

want_musl() { # CC, MUSL: the compiler of the release and its C library
    MUSL=/usr/lib/$(uname -m)-linux-musl
    want gcc gcc gcc
    if [ $PM = apk ]; then
        CC=gcc
        want /usr/include/stdio.h - musl-dev
    else
        CC=musl-gcc
        want musl-gcc musl-tools -
    fi
    want readelf binutils binutils
    get
}

want_cross() { # want_cross ARCH: the same for another machine
    case $1 in aarch64 | riscv64) ;; *) die "--target takes aarch64 or riscv64" ;; esac
    [ $PM = apt ] || die "cross-compiling needs Debian's packages"
    want $1-linux-gnu-gcc gcc-$1-linux-gnu -
    want readelf binutils -
    get
    tools/cross.sh $1 || exit 1
    MUSL=$PWD/build/cross/$1/usr/lib/$1-linux-musl
    CC="$1-linux-gnu-gcc -specs=$PWD/build/cross/$1/musl.specs"
    ATOMIC=-latomic # riscv64 has no instructions for atomic bytes
}

release() { # release OUT FLAGS [ARCH]: made anew when a source or a flag changed, and put in place in one step
    ATOMIC=''
    if [ -n "${3:-}" ]; then want_cross $3; else want_musl; fi
    tls mbedtls-${3:-musl} $CC
    name=$(basename "$1") flags="$CC $RELEASE $TLS ${2:-}"
    mkdir -p build
    stale "$1" $SOURCES || [ "$(cat "build/$name.flags" 2>/dev/null)" != "$flags" ] || return 0
    run $flags -c dlm.c -o "build/$name.o"
    link_static "build/$name.$$" "build/$name.o"
    run mv "build/$name.$$" "$1"
    echo "$flags" >"build/$name.flags"
}

demo_flag() { [ "${DLM_DEMO:-1}" != 0 ] || echo -DDLM_NO_DEMO; }

debug() {
    want_host
    mkdir -p build
    # Alpine has no AddressSanitizer: there undefined behaviour traps, and that is all.
    [ $PM != apk ] || SANITIZE='-fsanitize=undefined -fsanitize-undefined-trap-on-error'
    tls mbedtls-host gcc
    ! stale build/dlm-debug $SOURCES ||
        run gcc $CFLAGS $TLS -O1 -g $SANITIZE dlm.c -o build/dlm-debug $TLS_LIB -lpthread -lm
}

# ---- dlm-cuda: dynamic, for NVIDIA's runtime cannot live in a static program ----

# From Turing on; later GPUs compile the last one's PTX.
CUDA_ARCHS='75 80 86 89 90'
CUDA_HOST='-fPIC,-fno-strict-aliasing,-fno-exceptions,-fno-threadsafe-statics,-fno-rtti' # the last three: no C++ library

find_nvcc() { # sets NVCC, CUDA
    NVCC=$(command -v nvcc || echo "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc")
    [ -x "$NVCC" ] || return 1
    CUDA=$(dirname "$(dirname "$(readlink -f "$NVCC")")")
}

cuda_object() { # cuda_object OUT FLAGS ARCH...
    out=$1 flags="-std=c++17 -fmad=false -DDLM_CUDA -Xcompiler $CUDA_HOST $2"
    shift 2
    for arch in "$@"; do flags="$flags -gencode arch=compute_$arch,code=sm_$arch"; done
    [ "$*" != "$CUDA_ARCHS" ] || flags="$flags -gencode arch=compute_$arch,code=compute_$arch"
    mkdir -p "$(dirname "$out")"
    stale "$out" dlm_cuda.cu dlm_kernels.h || [ "$(cat "$out.flags" 2>/dev/null)" != "$flags" ] || return 0
    run "$NVCC" -t "$CPUS" $flags -c dlm_cuda.cu -o "$out"
    echo "$flags" >"$out.flags"
}

cuda_program() { # cuda_program OUT OBJECT C-FLAGS
    want_host
    want g++ g++ g++
    tls mbedtls-host gcc
    ! stale "$1" $SOURCES "$2" ||
        run gcc $CFLAGS $TLS $3 -DDLM_CUDA dlm.c "$2" -o "$1" $TLS_LIB -L"$CUDA/lib64" -L"$CUDA/lib" -lcudart_static \
            -ldl -lpthread -lrt -lm -Wl,--gc-sections
}

cuda() { # cuda [ARCH...]
    find_nvcc || die "dlm-cuda needs nvcc, which is not here: install NVIDIA's CUDA Toolkit 13, or set CUDA_HOME to where it is"
    [ $# != 0 ] || set -- $CUDA_ARCHS
    cuda_object build/cuda/dlm_cuda.o -O3 "$@"
    cuda_program dlm-cuda build/cuda/dlm_cuda.o "-O2 -s $(demo_flag)"
    ls -l dlm-cuda
}

# The same source on an emulated GPU, for the tests: OBJECT.
cuda_emulated() {
    want g++ g++ g++
    get
    mkdir -p "$(dirname "$1")"
    ! stale "$1" dlm_cuda.cu dlm_kernels.h tests/cuda_emu.h ||
        run g++ -std=c++17 -O2 -g -DDLM_CUDA -ffp-contract=off -fno-strict-aliasing -fno-exceptions -fno-rtti \
            -fno-threadsafe-statics -Wall -Wextra -Wno-unused-function -Wno-unknown-pragmas -x c++ \
            -c dlm_cuda.cu -o "$1"
}

# ---- the rest of the verbs ----

# shellcheck source=tests/run.sh
. tests/run.sh

compdb() {
    for f in dlm.c src/*.c tests/*.c tests/fuzz/*.c; do
        ! [ -e "$f" ] || printf '{"directory": "%s", "file": "%s", "command": "gcc %s -c %s"},\n' "$PWD" "$f" "$CFLAGS" "$f"
    done | sed '1s/^/[/; $s/,$/]/' >compile_commands.json
}

size() {
    release dlm "$(demo_flag)"
    ls -l dlm
    run size build/dlm.o
    nm -S --size-sort build/dlm.o | tail -n 25
}

if [ "${1:-}" = --offline ]; then
    DLM_OFFLINE=$(cd -- "$CALLER" && cd -- "${2:?--offline names a folder}" && pwd) && export DLM_OFFLINE
    shift 2
fi
verb=${1:-release}
[ $# = 0 ] || shift
case $verb in
--target)
    release "dlm-${1:-}" "$(demo_flag)" "${1:-none}"
    ls -l "dlm-$1"
    ;;
release)
    release dlm "$(demo_flag)"
    ls -l dlm
    ;;
run)
    release dlm "$(demo_flag)" >&2
    program=$PWD/dlm
    cd -- "$CALLER"
    exec "$program" "$@"
    ;;
test | check | cross)
    run_$verb "$@"
    finish
    ;;
cuda | debug | fuzz | compdb | size) $verb "$@" ;;
clean) run rm -rf build dlm dlm-cuda compile_commands.json ;;
help | -h | --help) help ;;
*)
    help >&2
    exit 2
    ;;
esac

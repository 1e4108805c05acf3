/* cuda_emu.h - plays a GPU on the CPU, so that dlm_cuda.cu can be compiled by any C++ compiler and its
 * kernels run, slowly, where there is none.
 *
 * Each thread of a block is a fiber with its own stack; blocks run one after the other. It is strict
 * where a GPU is merely fast: shared memory begins as garbage in every block; threads and blocks take
 * turns in orders that change from launch to launch; an asynchronous copy arrives at the last moment
 * that its wait allows; a barrier or a warp's instruction that not all threads reach ends the program;
 * so does a thread that never waits for the kernel before its own, and an allocation, a copy or a wait
 * while a pass is recorded. What it cannot show: how a GPU
 * rounds inside a matrix instruction, what its memory model permits within a warp, and any time.
 *
 *     DLM_EMU=off            there is no GPU
 *     DLM_EMU_MEMORY=BYTES   of this GPU (1 GiB)
 *     DLM_EMU_CAPABILITY=75  its compute capability (80); below 80 it has Turing's instructions alone
 *     DLM_EMU_SMS=N          its multiprocessors (2): how finely work is split among them */
#ifndef DLM_CUDA_EMU_H
#define DLM_CUDA_EMU_H

#include <math.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct dim3 {
    u32 x, y, z;
    dim3(u32 x = 1, u32 y = 1, u32 z = 1) : x(x), y(y), z(z) {
    }
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    u32 x, y;
};
struct alignas(16) uint4 {
    u32 x, y, z, w;
};

static inline float4 make_float4(float x, float y, float z, float w) {
    return float4{x, y, z, w};
}

static inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) {
    return uint4{x, y, z, w};
}

static inline float __uint_as_float(u32 bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline u32 __float_as_uint(float x) {
    u32 bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* ---- fibers ---- */

#define EMU_THREADS_MAX 256
#define EMU_STACK (256 << 10)
#define EMU_SHARED (48 << 10)
#define EMU_COPIES_MAX 64

/* Written by the scheduler behind the compiler's back: external, so that no call keeps them. */
dim3 threadIdx, blockIdx;

struct EmuGate { /* opens when all have come */
    int n, turn;
};

struct EmuCopy {
    void *to;
    const void *from;
    int group;
};

struct EmuFiber {
    jmp_buf at;
    bool started, done;
    bool waited; /* for the kernel before */
    EmuGate *gate; /* it waits for this one to leave `turn` */
    int turn;
    EmuCopy copies[EMU_COPIES_MAX];
    int n_copies, group;
};

struct EmuWarp {
    EmuGate gate;
    void (*op)(void *args[32]);
    void *args[32];
};

static struct {
    EmuFiber fibers[EMU_THREADS_MAX];
    EmuWarp warps[EMU_THREADS_MAX / 32];
    EmuGate block;
    int n_threads, self;
    u8 *stacks;
    jmp_buf scheduler;
    void (*kernel)(void *);
    void *args;
    u64 progress, launches;
    alignas(64) u8 shared[EMU_SHARED];
} emu;

static void emu_die(const char *what) {
    fprintf(stderr, "cuda_emu: %s (block %u %u %u, thread %u)\n", what, blockIdx.x, blockIdx.y,
            blockIdx.z, threadIdx.x);
    abort();
}

static void emu_fiber_main(void) { /* lives forever: one kernel after the other */
    for (;;) {
        emu.kernel(emu.args);
        emu.fibers[emu.self].done = true;
        emu.progress++;
        if (_setjmp(emu.fibers[emu.self].at) == 0) _longjmp(emu.scheduler, 1);
    }
}

static void emu_wait(EmuGate *gate) {
    EmuFiber *f = &emu.fibers[emu.self];
    f->gate = gate, f->turn = gate->turn;
    if (_setjmp(f->at) == 0) _longjmp(emu.scheduler, 1);
}

static void emu_resume(int i) {
    EmuFiber *f = &emu.fibers[i];
    emu.self = i;
    threadIdx.x = (u32)i;
    f->gate = NULL;
    if (_setjmp(emu.scheduler)) return;
    if (f->started) _longjmp(f->at, 1);
    f->started = true;
    static ucontext_t first;
    getcontext(&first);
    first.uc_stack.ss_sp = emu.stacks + (size_t)i * EMU_STACK;
    first.uc_stack.ss_size = EMU_STACK;
    makecontext(&first, emu_fiber_main, 0);
    setcontext(&first);
}

/* Place k of n in one of four orders: forwards, backwards, and the same from the middle on. */
static u32 emu_order(u32 k, u32 n, u64 how) {
    u32 i = how & 2 ? (k + n / 2) % n : k;
    return how & 1 ? n - 1 - i : i;
}

static void emu_run_block(u64 how) {
    memset(emu.shared, 0xa5, sizeof emu.shared);
    for (int i = 0; i < emu.n_threads; i++) {
        EmuFiber *f = &emu.fibers[i];
        f->done = f->waited = false, f->group = 0;
    }
    for (u64 before = emu.progress - 1; before != emu.progress;) {
        before = emu.progress;
        for (int k = 0; k < emu.n_threads; k++) {
            int i = (int)emu_order((u32)k, (u32)emu.n_threads, how);
            EmuFiber *f = &emu.fibers[i];
            if (!f->done && (!f->gate || f->gate->turn != f->turn)) emu_resume(i);
        }
    }
    for (int i = 0; i < emu.n_threads; i++) {
        if (!emu.fibers[i].done) emu_die("not all threads reach a barrier");
        if (!emu.fibers[i].waited) emu_die("a thread never waits for the kernel before");
        if (emu.fibers[i].n_copies) emu_die("a copy to shared memory is never waited for");
    }
}

static void emu_run(void (*kernel)(void *), void *args, dim3 grid, u32 n_threads) {
    u64 how = emu.launches++, n = (u64)grid.x * grid.y * grid.z;
    if (n == 0 || n_threads == 0 || n_threads > EMU_THREADS_MAX || n_threads % 32)
        emu_die("a launch of no blocks, or of too many threads");
    if (grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535)
        emu_die("a launch of more blocks than a grid may have");
    if (!emu.stacks)
        emu.stacks = (u8 *)mmap(NULL, (size_t)EMU_STACK * EMU_THREADS_MAX, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    emu.kernel = kernel, emu.args = args, emu.n_threads = (int)n_threads;
    for (u32 k = 0; k < n; k++) {
        u32 i = emu_order(k, (u32)n, how / 4);
        blockIdx = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
        emu_run_block(how);
    }
}

/* ---- what threads do together ---- */

static void __syncthreads() {
    if (++emu.block.n < emu.n_threads) {
        emu_wait(&emu.block);
        return;
    }
    emu.block.n = 0, emu.block.turn++, emu.progress++;
}

/* All lanes of a warp bring an argument; the last to come does the work of all. */
static void emu_together(void (*op)(void *args[32]), void *arg) {
    EmuWarp *w = &emu.warps[emu.self / 32];
    if (w->gate.n && w->op != op) emu_die("the lanes of a warp part ways");
    w->op = op, w->args[emu.self % 32] = arg;
    if (++w->gate.n < 32) {
        emu_wait(&w->gate);
        return;
    }
    op(w->args);
    w->gate.n = 0, w->gate.turn++, emu.progress++;
}

static void let_next_begin() {
}

static void wait_for_last() {
    emu.fibers[emu.self].waited = true;
}

static void emu_nothing(void *args[32]) {
    (void)args;
}

static void __syncwarp() {
    emu_together(emu_nothing, NULL);
}

struct EmuShuffle {
    u32 v, got;
    int apart;
};

static void emu_shuffle(void *args[32]) {
    EmuShuffle **s = (EmuShuffle **)args;
    for (int i = 0; i < 32; i++) s[i]->got = s[i ^ s[i]->apart]->v;
}

template <typename T> static T __shfl_xor_sync(u32 lanes, T v, int apart) {
    static_assert(sizeof(T) == 4, "words only");
    EmuShuffle s = {0, 0, apart};
    if (lanes != 0xffffffffu) emu_die("a shuffle of less than a warp");
    memcpy(&s.v, &v, 4);
    emu_together(emu_shuffle, &s);
    memcpy(&v, &s.got, 4);
    return v;
}

static i32 atomicAdd(i32 *p, i32 v) {
    i32 old = *p;
    *p += v;
    return old;
}

/* ---- matrix instructions. Lane 4 g + t: see dlm_cuda.cu. ---- */

static int emu_number(const char *variable, int otherwise) {
    const char *text = getenv(variable);
    return text ? atoi(text) : otherwise;
}

static int emu_capability() {
    static const int n = emu_number("DLM_EMU_CAPABILITY", 80);
    return n;
}

#define AMPERE (emu_capability() >= 80)

struct EmuMma {
    void *d;
    u32 a[4], b[2];
};

/* n_k: 16-byte parts of the inputs. The operands are laid out plainly first, so that the compiler makes
 * vectors of the sums. */
__attribute__((optimize("O3"))) static void emu_mma_s8(EmuMma *const *m, int n_k) {
    i8 a[16][32] = {}, b[8][32] = {};
    for (int lane = 0; lane < 32; lane++)
        for (int k = 0; k < n_k; k++) {
            int g = lane / 4, at = 4 * (lane % 4) + 16 * k;
            memcpy(&a[g][at], &m[lane]->a[2 * k], 4);
            memcpy(&a[g + 8][at], &m[lane]->a[2 * k + 1], 4);
            memcpy(&b[g][at], &m[lane]->b[k], 4);
        }
    for (int o = 0; o < 16; o++)
        for (int r = 0; r < 8; r++) {
            i32 sum = 0;
            for (int i = 0; i < 32; i++) sum += a[o][i] * b[r][i];
            ((i32 *)m[4 * (o % 8) + r / 2]->d)[o / 8 * 2 + r % 2] += sum;
        }
}

static void emu_mma_s8_k32(void *args[32]) {
    emu_mma_s8((EmuMma **)args, 2);
}

static void emu_mma_s8_k16(void *args[32]) {
    emu_mma_s8((EmuMma **)args, 1);
}

/* Turing's: 8 outputs by 8 rows, lane 4 g + t has of both operands bytes 4 t.. of row g. */
static void emu_mma_s8_8(void *args[32]) {
    EmuMma **m = (EmuMma **)args;
    for (int o = 0; o < 8; o++)
        for (int r = 0; r < 8; r++) {
            i32 sum = 0;
            for (int i = 0; i < 16; i++) {
                i8 a = (i8)(m[4 * o + i / 4]->a[0] >> 8 * (i % 4));
                i8 b = (i8)(m[4 * r + i / 4]->b[0] >> 8 * (i % 4));
                sum += a * b;
            }
            ((i32 *)m[4 * o + r / 2]->d)[r % 2] += sum;
        }
}

static void mma_s8_16x8x32(i32 d[4], const u32 a[4], u32 b0, u32 b1) {
    EmuMma m = {d, {a[0], a[1], a[2], a[3]}, {b0, b1}};
    emu_together(emu_mma_s8_k32, &m);
}

static void mma_s8_16x8x16(i32 d[4], u32 a0, u32 a1, u32 b) {
    EmuMma m = {d, {a0, a1, 0, 0}, {b, 0}};
    emu_together(emu_mma_s8_k16, &m);
}

static void mma_s8_8x8x16(i32 d[2], u32 a, u32 b) {
    EmuMma m = {d, {a, 0, 0, 0}, {b, 0}};
    emu_together(emu_mma_s8_8, &m);
}

static float from_f16(u16 h) {
    u32 sign = (u32)(h & 0x8000u) << 16, exp = h >> 10 & 31, man = h & 0x3ffu;
    if (exp == 31) return __uint_as_float(sign | 0x7f800000u | man << 13);
    if (exp) return __uint_as_float(sign | (exp + 112) << 23 | man << 13);
    return __uint_as_float(sign | __float_as_uint((float)man * 0x1p-24f));
}

static u16 to_f16(float x) {
    u32 bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, mag = bits & 0x7fffffffu;
    if (mag > 0x7f800000u) return 0x7fffu; /* the GPU's one NaN */
    if (mag >= 0x477ff000u) return (u16)(sign | 0x7c00u);
    if (mag < 0x38800000u)
        return (u16)(sign | (__float_as_uint(__uint_as_float(mag) + 0.5f) - 0x3f000000u));
    mag += 0xfffu + (mag >> 13 & 1u);
    return (u16)(sign | ((mag >> 13) - (112u << 10)));
}

template <bool BF16> static float emu_half(u32 word, int i) {
    u16 h = (u16)(word >> 16 * i);
    return BF16 ? __uint_as_float((u32)h << 16) : from_f16(h);
}

template <bool BF16> static void emu_mma_f16(void *args[32]) {
    EmuMma **m = (EmuMma **)args;
    float a[16][16], b[8][16];
    for (int lane = 0; lane < 32; lane++)
        for (int k = 0; k < 2; k++)
            for (int i = 0; i < 2; i++) {
                int g = lane / 4, at = 2 * (lane % 4) + 8 * k + i;
                a[g][at] = emu_half<BF16>(m[lane]->a[2 * k], i);
                a[g + 8][at] = emu_half<BF16>(m[lane]->a[2 * k + 1], i);
                b[g][at] = emu_half<BF16>(m[lane]->b[k], i);
            }
    for (int o = 0; o < 16; o++)
        for (int r = 0; r < 8; r++) {
            float *d = (float *)m[4 * (o % 8) + r / 2]->d + o / 8 * 2 + r % 2;
            for (int i = 0; i < 16; i++) *d += a[o][i] * b[r][i];
        }
}

/* Turing's: lane 4 g + t has inputs 2 t and 2 t + 1 of outputs g and g + 8, and of row g. */
static void emu_mma_f16_8(void *args[32]) {
    EmuMma **m = (EmuMma **)args;
    for (int o = 0; o < 16; o++)
        for (int r = 0; r < 8; r++) {
            float *d = (float *)m[4 * (o % 8) + r / 2]->d + o / 8 * 2 + r % 2;
            for (int i = 0; i < 8; i++)
                *d += emu_half<false>(m[4 * (o % 8) + i / 2]->a[o / 8], i % 2) *
                      emu_half<false>(m[4 * r + i / 2]->b[0], i % 2);
        }
}

template <bool BF16>
static void mma_f16_16x8x16(float d[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    EmuMma m = {d, {a0, a1, a2, a3}, {b0, b1}};
    emu_together(emu_mma_f16<BF16>, &m);
}

static void mma_f16_16x8x8(float d[4], u32 a0, u32 a1, u32 b) {
    EmuMma m = {d, {a0, a1, 0, 0}, {b, 0}};
    emu_together(emu_mma_f16_8, &m);
}

struct EmuTranspose {
    u32 *d;
    const u16 *row;
};

static void emu_transpose(void *args[32]) {
    EmuTranspose **m = (EmuTranspose **)args;
    for (int lane = 0; lane < 32; lane++) {
        if ((uintptr_t)m[lane]->row % 16) emu_die("ldmatrix of a row that is not aligned");
        for (int i = 0; i < 4; i++) {
            int g = lane / 4, t = lane % 4;
            u32 low = m[8 * i + 2 * t]->row[g], high = m[8 * i + 2 * t + 1]->row[g];
            m[lane]->d[i] = high << 16 | low;
        }
    }
}

static void load_transposed(u32 d[4], const u16 *row) {
    EmuTranspose m = {d, row};
    emu_together(emu_transpose, &m);
}

/* ---- asynchronous copies ---- */

static void copy_16_async(void *shared, const void *global) {
    EmuFiber *f = &emu.fibers[emu.self];
    if (((uintptr_t)shared | (uintptr_t)global) % 16) emu_die("a copy that is not aligned");
    if (f->n_copies == EMU_COPIES_MAX) emu_die("too many copies under way");
    f->copies[f->n_copies++] = EmuCopy{shared, global, f->group};
}

static void copies_commit_async() {
    emu.fibers[emu.self].group++;
}

template <int N> static void copies_wait_async() {
    EmuFiber *f = &emu.fibers[emu.self];
    int left = 0;
    for (int i = 0; i < f->n_copies; i++) {
        if (f->copies[i].group < f->group - N)
            memcpy(f->copies[i].to, f->copies[i].from, 16);
        else
            f->copies[left++] = f->copies[i];
    }
    f->n_copies = left;
}

/* ---- the host's side ---- */

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35
};
enum { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum {
    cudaStreamNonBlocking = 1,
    cudaEventDisableTiming = 2,
    cudaStreamCaptureModeThreadLocal = 1
};

struct EmuNode { /* a recorded launch */
    void (*kernel)(void *);
    void *args;
    dim3 grid;
    u32 n_threads;
    EmuNode *next;
};

struct EmuGraph {
    EmuNode *first, **end;
};

typedef EmuGraph *cudaGraph_t;
typedef EmuGraph *cudaGraphExec_t;
typedef int cudaStream_t;
typedef double *cudaEvent_t;

struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount;
    size_t totalGlobalMem;
};

static struct {
    EmuGraph *recording;
    size_t used, total;
    struct {
        void *p;
        size_t n;
    } blocks[4096];
} emu_host;

static cudaError_t emu_quiet(const char *what) { /* not while recording */
    if (emu_host.recording) emu_die(what);
    return cudaSuccess;
}

static const char *cudaGetErrorString(cudaError_t e) {
    return e == cudaSuccess                 ? "no error"
           : e == cudaErrorMemoryAllocation ? "out of memory"
                                            : "no GPU";
}

static cudaError_t cudaPeekAtLastError() {
    return cudaSuccess;
}

static cudaError_t cudaGetLastError() {
    return cudaSuccess;
}

static cudaError_t cudaGetDeviceCount(int *n) {
    const char *how = getenv("DLM_EMU"), *memory = getenv("DLM_EMU_MEMORY");
    emu_host.total = memory ? strtoull(memory, NULL, 10) : (size_t)1 << 30;
    *n = how && strcmp(how, "off") == 0 ? 0 : 1;
    return *n ? cudaSuccess : cudaErrorInsufficientDriver;
}

static cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
    *p = cudaDeviceProp{"emulated GPU", emu_capability() / 10, emu_capability() % 10,
                        emu_number("DLM_EMU_SMS", 2), emu_host.total};
    return cudaSuccess;
}

static cudaError_t cudaSetDevice(int) {
    return cudaSuccess;
}

static cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    *free = emu_host.total - emu_host.used, *total = emu_host.total;
    return cudaSuccess;
}

static cudaError_t cudaMalloc(void **p, size_t n) {
    emu_quiet("an allocation while a pass is recorded");
    size_t i = 0;
    while (i < 4096 && emu_host.blocks[i].p) i++;
    if (i == 4096 || n > emu_host.total - emu_host.used || posix_memalign(p, 256, n))
        return cudaErrorMemoryAllocation;
    memset(*p, 0xa5, n);
    emu_host.blocks[i].p = *p, emu_host.blocks[i].n = n, emu_host.used += n;
    return cudaSuccess;
}

static cudaError_t cudaFree(void *p) {
    emu_quiet("a release while a pass is recorded");
    size_t i = 0;
    while (i < 4096 && emu_host.blocks[i].p != p) i++;
    if (i == 4096) emu_die("a release of what was not allocated");
    emu_host.used -= emu_host.blocks[i].n;
    emu_host.blocks[i].p = NULL;
    free(p);
    return cudaSuccess;
}

static cudaError_t cudaMallocHost(void **p, size_t n) {
    *p = malloc(n);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}

static cudaError_t cudaFreeHost(void *p) {
    free(p);
    return cudaSuccess;
}

static cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t) {
    memset(p, v, n);
    return emu_quiet("memory cleared while a pass is recorded");
}

static cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, int, cudaStream_t) {
    memcpy(to, from, n);
    return emu_quiet("a copy while a pass is recorded");
}

static cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                                     size_t width, size_t height, int, cudaStream_t) {
    for (size_t i = 0; i < height; i++)
        memcpy((u8 *)to + i * to_pitch, (const u8 *)from + i * from_pitch, width);
    return emu_quiet("a copy while a pass is recorded");
}

static cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, int) {
    *s = 1;
    return cudaSuccess;
}

static cudaError_t cudaStreamDestroy(cudaStream_t) {
    return cudaSuccess;
}

static cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return emu_quiet("a wait while a pass is recorded");
}

static cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, int) {
    *e = (double *)calloc(1, sizeof **e);
    return *e ? cudaSuccess : cudaErrorMemoryAllocation;
}

static cudaError_t cudaEventCreate(cudaEvent_t *e) {
    return cudaEventCreateWithFlags(e, 0);
}

static cudaError_t cudaEventDestroy(cudaEvent_t e) {
    free(e);
    return cudaSuccess;
}

static cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    *e = (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
    return cudaSuccess;
}

static cudaError_t cudaEventSynchronize(cudaEvent_t) {
    return emu_quiet("a wait while a pass is recorded");
}

static cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    *ms = (float)(*to - *from);
    return cudaSuccess;
}

static cudaError_t cudaStreamBeginCapture(cudaStream_t, int) {
    emu_quiet("a recording inside another");
    EmuGraph *g = (EmuGraph *)calloc(1, sizeof *g);
    g->end = &g->first;
    emu_host.recording = g;
    return cudaSuccess;
}

static cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *g) {
    *g = emu_host.recording;
    emu_host.recording = NULL;
    return cudaSuccess;
}

static cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t g, int) {
    *exec = (EmuGraph *)calloc(1, sizeof **exec);
    (*exec)->first = g->first;
    return cudaSuccess;
}

static cudaError_t cudaGraphDestroy(cudaGraph_t g) {
    free(g);
    return cudaSuccess;
}

static cudaError_t cudaGraphExecDestroy(cudaGraphExec_t g) {
    for (EmuNode *n = g->first, *next; n; n = next) {
        next = n->next;
        free(n->args);
        free(n);
    }
    free(g);
    return cudaSuccess;
}

static cudaError_t cudaGraphLaunch(cudaGraphExec_t g, cudaStream_t) {
    for (EmuNode *n = g->first; n; n = n->next) emu_run(n->kernel, n->args, n->grid, n->n_threads);
    return cudaSuccess;
}

template <typename F> static void emu_call(void *f) {
    (*(F *)f)();
}

/* Runs f on every thread, or keeps a copy of it for later. */
template <typename F> static void emu_launch(F f, dim3 grid, u32 n_threads) {
    if (!emu_host.recording) {
        emu_run(emu_call<F>, &f, grid, n_threads);
        return;
    }
    EmuNode *n = (EmuNode *)malloc(sizeof *n);
    F *copy = (F *)malloc(sizeof f);
    memcpy((void *)copy, (void *)&f, sizeof f);
    *n = EmuNode{emu_call<F>, copy, grid, n_threads, NULL};
    *emu_host.recording->end = n;
    emu_host.recording->end = &n->next;
}

template <typename K, typename... A> static auto emu_bind(K kernel, A... args) {
    return [=] { kernel(args...); };
}

#define SHARED(type, name)                                               \
    static_assert(sizeof(type) <= EMU_SHARED, "too much shared memory"); \
    type &name = *(type *)emu.shared
static bool takes_turns_(const void *) {
    return true;
}

#define LAUNCH(c, kernel, grid, n_threads, ...) \
    ((void)(c), emu_launch(emu_bind(kernel, __VA_ARGS__), grid, n_threads))

#endif

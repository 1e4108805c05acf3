/* dlm_cuda.cu - the CUDA backend: the operations of dlm_kernels.h on an NVIDIA GPU.
 *
 * Owns:      the device's memory that it hands out, one stream, scratch, recordings of passes.
 * Stands on: dlm_kernels.h; the CPU's backend, which reads and checks the weights, and multiplies by
 *            those of layers that stay with it, is lent to it.
 * Promises:  products of 8-bit activations with ternary weights and with scaled blocks equal the CPU's
 *            bit for bit; a row's result does not depend on the other rows; nothing is allocated
 *            between `reserve` and `close`; a GPU that fails ends the program with one sentence, for no
 *            operation has a way to report it.
 *
 * The one idea of the matrix kernels: the order in which a tensor-core instruction sums its inputs is
 * free as long as weights and activations agree on it. So each lane takes consecutive bytes of a row,
 * and weights and activations go from memory to the instruction's registers in 16-byte loads, with no
 * shuffling in between. In an instruction's registers lane 4 g + t holds, of the 16 x k weights, outputs
 * g and g + 8, and of the k x 8 activations, row g; of the 16 x 8 sums outputs g and g + 8 of rows 2 t
 * and 2 t + 1.
 *
 * The file compiles in two ways: by nvcc for GPUs, and by any C++ compiler with tests/cuda_emu.h, which
 * plays a GPU on the CPU, slowly and strictly, for the tests. Built with -fmad=false: what is fused says
 * fmaf. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dlm_kernels.h"

typedef uint8_t u8;
typedef int8_t i8;
typedef uint16_t u16;
typedef int16_t i16;
typedef uint32_t u32;
typedef int32_t i32;
typedef uint64_t u64;
typedef int64_t i64;

#define WARP 32
#define ALL_LANES 0xffffffffu
#define MINUS_INF (-__builtin_inff())

/* ---- the machine's own instructions ---- */

#ifdef __CUDACC__

#include <cuda_runtime.h>

#define SHARED(type, name) __shared__ type name
#define LAUNCH(c, kernel, grid, n_threads, ...) \
    check_(launch_((c)->stream, (c)->overlaps, kernel, grid, n_threads, __VA_ARGS__), #kernel)

/* overlaps: the kernel may begin before the one before has ended; see take_turn. */
template <typename... Wanted, typename... Given>
static cudaError_t launch_(cudaStream_t stream, bool overlaps, void (*kernel)(Wanted...), dim3 grid,
                           u32 n_threads, Given &&...args) {
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid, config.blockDim = dim3(n_threads), config.stream = stream;
    config.attrs = &early, config.numAttrs = overlaps;
    return cudaLaunchKernelEx(&config, kernel, (Wanted)args...);
}

/* Was this kernel compiled to wait for the one before? A GPU of today runs also what was compiled for
 * those of yesterday. */
static bool takes_turns_(const void *kernel) {
    cudaFuncAttributes a;
    return cudaFuncGetAttributes(&a, kernel) == cudaSuccess && a.ptxVersion >= 90;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define DO_90(...) asm volatile(__VA_ARGS__)
#else
#define DO_90(...)
#endif

static __device__ __forceinline__ void let_next_begin() {
    DO_90("griddepcontrol.launch_dependents;" ::: "memory");
}

static __device__ __forceinline__ void wait_for_last() {
    DO_90("griddepcontrol.wait;" ::: "memory");
}

/* Is this compiled for Ampere or later? Turing lacks half of what follows, which is nothing there. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define AMPERE false
#define ASM_80(...)
#define DO_80(...)
#else
#define AMPERE true
#define ASM_80(...) asm(__VA_ARGS__)
#define DO_80(...) asm volatile(__VA_ARGS__)
#endif

/* The instructions themselves, outputs x rows x inputs. */
static __device__ __forceinline__ void mma_s8_16x8x32(i32 d[4], const u32 a[4], u32 b0, u32 b1) {
    ASM_80("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
           "{%0,%1,%2,%3};"
           : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
           : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ void mma_s8_16x8x16(i32 d[4], u32 a0, u32 a1, u32 b) {
    ASM_80("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
           "{%0,%1,%2,%3};"
           : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
           : "r"(a0), "r"(a1), "r"(b));
}

static __device__ __forceinline__ void mma_s8_8x8x16(i32 d[2], u32 a, u32 b) {
    asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
        : "+r"(d[0]), "+r"(d[1])
        : "r"(a), "r"(b));
}

template <bool BF16>
static __device__ __forceinline__ void mma_f16_16x8x16(float d[4], u32 a0, u32 a1, u32 a2, u32 a3,
                                                       u32 b0, u32 b1) {
    if (BF16)
        ASM_80("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
               "{%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    else
        ASM_80("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
               "{%8,%9}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

static __device__ __forceinline__ void mma_f16_16x8x8(float d[4], u32 a0, u32 a1, u32 b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(b));
}

/* Four 8 x 8 tiles of 16-bit values, transposed: lane 8 i + j gives the address of row j of tile i; of
 * tile i lane 4 g + t gets column g of rows 2 t and 2 t + 1. */
static __device__ __forceinline__ void load_transposed(u32 d[4], const u16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"((u32)__cvta_generic_to_shared(row))
                 : "memory");
}

static __device__ __forceinline__ void copy_16_async(void *shared, const void *global) {
    DO_80("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((u32)__cvta_generic_to_shared(shared)),
          "l"(__cvta_generic_to_global(global))
          : "memory");
}

static __device__ __forceinline__ void copies_commit_async() {
    DO_80("cp.async.commit_group;" ::: "memory");
}

template <int N> static __device__ __forceinline__ void copies_wait_async() {
    DO_80("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

static __device__ __forceinline__ u16 to_f16(float x) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
}

static __device__ __forceinline__ float from_f16(u16 h) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
}

#else
#include "tests/cuda_emu.h"
#endif

/* Programmatic dependent launch, from compute capability 9.0 on: a kernel's blocks take their places
 * while those of the kernel before still run, and wait there, so that the pause between two kernels is
 * short. Every kernel calls this, or its two halves, before it reads what another kernel writes, or
 * writes at all. The wait is for the end of all kernels before: the last one has waited itself. */
static __device__ __forceinline__ void take_turn() {
    let_next_begin();
    wait_for_last();
}

/* d += a b: 16 outputs x 32 inputs by 32 inputs x 8 rows. Turing has the instruction in quarters. */
static __device__ __forceinline__ void mma_s8_k32(i32 d[4], const u32 a[4], u32 b0, u32 b1) {
    if (AMPERE) {
        mma_s8_16x8x32(d, a, b0, b1);
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) mma_s8_8x8x16(d + 2 * (i % 2), a[i], i < 2 ? b0 : b1);
    }
}

/* d = a b with 16 inputs. */
static __device__ __forceinline__ void mma_s8_k16(i32 d[4], u32 a0, u32 a1, u32 b) {
    d[0] = d[1] = d[2] = d[3] = 0;
    if (AMPERE)
        mma_s8_16x8x16(d, a0, a1, b);
    else
        mma_s8_8x8x16(d, a0, b), mma_s8_8x8x16(d + 2, a1, b);
}

/* d += a b with 16 inputs of F16 or BF16. Turing has halves of the first and not the second
 * (widens_). */
template <bool BF16>
static __device__ __forceinline__ void mma_f16(float d[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0,
                                               u32 b1) {
    if (AMPERE)
        mma_f16_16x8x16<BF16>(d, a0, a1, a2, a3, b0, b1);
    else
        mma_f16_16x8x8(d, a0, a1, b0), mma_f16_16x8x8(d, a2, a3, b1);
}

/* 16 bytes from device to shared memory. They are there once copies_wait and a barrier have passed; on
 * Turing, which copies through registers, at once. */
static __device__ __forceinline__ void copy_16(void *shared, const void *global) {
    if (AMPERE)
        copy_16_async(shared, global);
    else
        *(uint4 *)shared = *(const uint4 *)global;
}

static __device__ __forceinline__ void copies_commit() { /* ends a group of copies */
    if (AMPERE) copies_commit_async();
}

template <int N> static __device__ __forceinline__ void copies_wait() { /* for all but N groups */
    if (AMPERE) copies_wait_async<N>();
}

static __device__ __forceinline__ float from_bf16(u16 h) {
    return __uint_as_float((u32)h << 16);
}

static __device__ __forceinline__ u16 to_bf16(float x) { /* to nearest even, as quant.c does */
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)(bits >> 16 | 64u);
    return (u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static __device__ __forceinline__ u32 pair_of(u16 low, u16 high) {
    return (u32)high << 16 | low;
}

static __host__ __device__ __forceinline__ i64 round_up(i64 n, i64 to) {
    return (n + to - 1) / to * to;
}

/* ---- sums over lanes and blocks, in an order that is always the same ---- */

static __device__ __forceinline__ float lanes_sum(float v) {
    for (int lane = WARP / 2; lane > 0; lane /= 2) v += __shfl_xor_sync(ALL_LANES, v, lane);
    return v;
}

static __device__ __forceinline__ i32 lanes_sum(i32 v) {
    for (int lane = WARP / 2; lane > 0; lane /= 2) v += __shfl_xor_sync(ALL_LANES, v, lane);
    return v;
}

static __device__ __forceinline__ float lanes_max(float v) { /* passes over NaNs, as the CPU does */
    for (int lane = WARP / 2; lane > 0; lane /= 2)
        v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, lane));
    return v;
}

#define ROW_THREADS 256 /* of the kernels that have a block for each row */

struct RowShared {
    float sums[ROW_THREADS / WARP], maxima[ROW_THREADS / WARP];
    i32 counts[ROW_THREADS / WARP];
};

static __device__ float block_sum(float v, float *shared) {
    v = lanes_sum(v);
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = v;
    __syncthreads();
    v = 0;
    for (int w = 0; w < ROW_THREADS / WARP; w++) v += shared[w];
    return v;
}

static __device__ float block_max(float v, float *shared) {
    v = lanes_max(v);
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = v;
    __syncthreads();
    for (int w = 0; w < ROW_THREADS / WARP; w++) v = fmaxf(v, shared[w]);
    return v;
}

/* ---- rows in: the norm, and activations in the forms that the matrix kernels take ---- */

#define CHUNK 128 /* inputs of a ternary tile; 8-bit rows are padded to it with zeros */

/* Rows quantized to 8 bits for ternary weights, as kern_ref's quantize_row does. */
struct Int8Rows {
    i8 *q;      /* [rows][stride] */
    float *inv; /* [rows] 1 / scale */
    i32 *sum;   /* [rows] of all q */
    i32 *sums;  /* [rows][stride / 64] of 64 q each */
    i32 stride; /* n_in rounded up to CHUNK */
};

/* Four values from i on; a row's end is filled with zeros. Rows whose length divides by 4 are read in
 * one piece. */
static __device__ __forceinline__ void load_4(float v[4], const float *x, i32 i, i32 n) {
    if (n % 4 == 0 && i < n) {
        float4 f = *(const float4 *)(x + i);
        v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
    } else {
        for (int k = 0; k < 4; k++) v[k] = i + k < n ? x[i + k] : 0.0f;
    }
}

static __device__ __forceinline__ void store_4(float *x, i32 i, i32 n, const float v[4]) {
    if (n % 4 == 0 && i < n)
        *(float4 *)(x + i) = make_float4(v[0], v[1], v[2], v[3]);
    else
        for (int k = 0; k < 4; k++)
            if (i + k < n) x[i + k] = v[k];
}

static __device__ __forceinline__ float activate(float g, i32 act) {
    if (act == DLM_ACT_RELU2) {
        g = g > 0 ? g : 0;
        return g * g;
    }
    return g / (1.0f + expf(-g));
}

enum Before { BEFORE_NONE, BEFORE_ADD, BEFORE_GATE };

/* One row of: a += b, or a = act(a) * b, if asked; y = norm(a) with a gain, or y = a without; q = y in
 * 8 bits, if asked. Each thread reads only what it wrote itself. */
template <int BEFORE>
__global__ void __launch_bounds__(ROW_THREADS)
    norm_rows(float *y, float *a, const float *b, const float *gain, i32 n, float eps, i32 act,
              Int8Rows out) {
    SHARED(RowShared, shared);
    take_turn();
    i64 row = blockIdx.x;
    y += row * n, a += row * n, b += BEFORE ? row * n : 0;
    float squares = 0, max = 1e-5f, v[4], w[4];
    for (i32 i = 4 * threadIdx.x; i < n; i += 4 * ROW_THREADS) {
        load_4(v, a, i, n);
        if (BEFORE) {
            load_4(w, b, i, n);
            for (int k = 0; k < 4; k++)
                v[k] = BEFORE == BEFORE_ADD ? v[k] + w[k] : activate(v[k], act) * w[k];
            store_4(a, i, n, v);
        }
        for (int k = 0; k < 4; k++)
            squares = fmaf(v[k], v[k], squares), max = fmaxf(max, fabsf(v[k]));
    }
    if (gain) {
        float r = 1.0f / sqrtf(block_sum(squares, shared.sums) / (float)n + eps);
        max = 1e-5f;
        for (i32 i = 4 * threadIdx.x; i < n; i += 4 * ROW_THREADS) {
            load_4(v, a, i, n);
            load_4(w, gain, i, n);
            for (int k = 0; k < 4; k++) v[k] = v[k] * r * w[k], max = fmaxf(max, fabsf(v[k]));
            store_4(y, i, n, v);
        }
    }
    if (!out.q) return;
    float s = 127.0f / block_max(max, shared.maxima);
    i32 total = 0;
    for (i32 i = 4 * threadIdx.x; i < out.stride; i += 4 * ROW_THREADS) { /* whole warps */
        load_4(v, gain ? y : a, i, n);
        u32 four = 0;
        i32 sum = 0;
        for (int k = 0; k < 4; k++) {
            float scaled = v[k] * s;
            if (!(scaled >= -128.0f)) scaled = -128.0f; /* NaN too */
            if (scaled > 127.0f) scaled = 127.0f;
            i32 q = i + k < n ? (i32)rintf(scaled) : 0;
            four |= (u32)(q & 255) << 8 * k;
            sum += q;
        }
        *(u32 *)(out.q + row * out.stride + i) = four;
        total += sum;
        for (int lane = 8; lane > 0; lane /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, lane);
        if (i % 64 == 0) out.sums[row * (out.stride / 64) + i / 64] = sum;
    }
    total = lanes_sum(total);
    if (threadIdx.x % WARP == 0) shared.counts[threadIdx.x / WARP] = total;
    __syncthreads();
    if (threadIdx.x > 0) return;
    total = 0;
    for (int w8 = 0; w8 < ROW_THREADS / WARP; w8++) total += shared.counts[w8];
    out.sum[row] = total;
    out.inv[row] = 1.0f / s;
}

/* Rows quantized in blocks of 32 or 256 inputs, as kern_ref's quantize_blocks does. In each run of 64
 * the four words of a 16 are spread: element 16 s + 4 t + i lies at 16 t + 4 s + i, so that 16 bytes of
 * lane t are its part of four products of 16 inputs. */
struct BlockRows {
    i8 *q;      /* [rows][stride] */
    float *d;   /* [rows][stride / block] */
    i16 *sums;  /* [rows][stride / 16] */
    i32 stride; /* n_in rounded up to 256 */
};

static __host__ __device__ __forceinline__ i32 spread(i32 i) { /* an element's place in its run */
    return (i & ~63) + (i % 16 / 4) * 16 + i % 64 / 16 * 4 + i % 4;
}

/* A warp takes 256 inputs, a lane 8 of them. */
template <int BLOCK> __global__ void quantize_blocks(BlockRows out, const float *x, i32 n) {
    take_turn();
    i64 row = blockIdx.x;
    i32 lane = threadIdx.x, from = blockIdx.y * 256 + 8 * lane;
    x += row * n;
    float v[8], max = 0;
    load_4(v, x, from, n), load_4(v + 4, x, from + 4, n);
    for (int k = 0; k < 8; k++) max = fmaxf(max, fabsf(v[k]));
    for (int apart = BLOCK / 16; apart > 0; apart /= 2)
        max = fmaxf(max, __shfl_xor_sync(ALL_LANES, max, apart));
    float inv = max > 0 ? 127.0f / max : 0;
    i32 sum = 0;
    for (int half = 0; half < 2; half++) {
        u32 four = 0;
        for (int k = 0; k < 4; k++) {
            float scaled = v[4 * half + k] * inv;
            if (!(scaled >= -127.0f)) scaled = -127.0f;
            i32 q = (i32)rintf(scaled < 127.0f ? scaled : 127.0f);
            four |= (u32)(q & 255) << 8 * k;
            sum += q;
        }
        *(u32 *)(out.q + row * out.stride + spread(from + 4 * half)) = four;
    }
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    if (lane % 2 == 0) out.sums[row * (out.stride / 16) + from / 16] = (i16)sum;
    if (from % BLOCK == 0) out.d[row * (out.stride / BLOCK) + from / BLOCK] = max / 127.0f;
}

/* Rows as sums of 16-bit floats, so that 16-bit matrix instructions lose nothing: two F16 (22 bits, of a
 * row scaled by a power of two to fit) or three BF16 (24 bits). */
struct HalfRows {
    u16 *planes;   /* [2 or 3][rows_max][stride] */
    float *factor; /* [rows] undoes the row's scale */
    i32 stride;    /* n_in rounded up to 32 */
    i64 plane;     /* elements from one plane to the next */
};

template <bool BF16>
__global__ void __launch_bounds__(ROW_THREADS) split_rows(HalfRows out, const float *x, i32 n) {
    SHARED(RowShared, shared);
    take_turn();
    i64 row = blockIdx.x;
    x += row * n;
    u16 *to = out.planes + row * out.stride;
    float scale = 1;
    if (!BF16) {
        float max = 0;
        for (i32 i = threadIdx.x; i < n; i += ROW_THREADS) max = fmaxf(max, fabsf(x[i]));
        max = block_max(max, shared.maxima);
        i32 exponent = (i32)(__float_as_uint(max) >> 23) - 127; /* max is in [2^e, 2^(e+1)) */
        if (max > 1e-30f && exponent < 127)
            scale = __uint_as_float((u32)(127 + 13 - exponent) << 23);
    }
    for (i32 i = threadIdx.x; i < out.stride; i += ROW_THREADS) {
        float rest = i < n ? x[i] * scale : 0;
        for (int p = 0; p < (BF16 ? 3 : 2); p++) {
            u16 h = BF16 ? to_bf16(rest) : to_f16(rest);
            to[p * out.plane + i] = h;
            rest -= BF16 ? from_bf16(h) : from_f16(h);
        }
    }
    if (threadIdx.x == 0) out.factor[row] = 1.0f / scale;
}

/* ---- matrices: which outputs a block of threads makes ---- */

struct Job {
    const u8 *w; /* in the layout of its kernel */
    float *y;    /* [n_rows][n_out] */
    const float *bias, *scales;
    float scale;
    i32 scale_block, n_out, first; /* first: the number of its first unit */
};

#define JOBS_MAX 4
struct Jobs { /* matrices of one kind that share their input */
    Job job[JOBS_MAX];
    i32 n, n_in, n_units;
};

/* The job that unit `*unit` belongs to; *unit becomes its number in that job. */
static __device__ __forceinline__ Job job_of(const Jobs &jobs, i32 *unit) {
    Job job = jobs.job[0];
#pragma unroll
    for (int j = 1; j < JOBS_MAX; j++)
        if (j < jobs.n && *unit >= jobs.job[j].first) job = jobs.job[j];
    *unit -= job.first;
    return job;
}

static __device__ __forceinline__ void put_output(const Job &job, i32 row, i32 out, float v) {
    if (job.bias) v += job.bias[out];
    job.y[(i64)row * job.n_out + out] = v;
}

/* ---- ternary weights ----
 *
 * A tile is 16 outputs by 128 inputs in 512 bytes, 16 for each lane: word 2 p + h of lane 4 g + t holds
 * inputs 64 p + 16 t + 8 h + 0..7 of outputs g and g + 8. Register r of an instruction, outputs g +
 * 8 (r % 2) and inputs 4 (r / 2) + i, is bits 2 r of byte i: a shift and a mask. Tiles of 16 outputs lie
 * one after the other along the inputs. Codes are value + 1; the sum of the row's activations goes off
 * at the end. Padding holds code 1, and the activations there are zeros. */

#define TILE_BYTES 512

struct TernaryPlace {
    i32 byte, shift;
};

static __host__ __device__ __forceinline__ TernaryPlace ternary_place(i32 out, i32 in) {
    i32 p = in / 64, t = in % 64 / 16, h = in % 16 / 8, r = out / 8 + 2 * (in % 8 / 4);
    TernaryPlace at = {16 * (4 * (out % 8) + t) + 4 * (2 * p + h) + in % 4, 2 * r};
    return at;
}

static __host__ __device__ __forceinline__ i64 ternary_bytes(i32 n_out, i32 n_in) {
    return round_up(n_out, 16) / 16 * (round_up(n_in, CHUNK) / CHUNK) * TILE_BYTES;
}

static __device__ __forceinline__ i32 ternary_code(const u8 *w, i32 n_in, i32 out, i32 in) {
    TernaryPlace at = ternary_place(out % 16, in % CHUNK);
    i64 tile = (i64)(out / 16) * (round_up(n_in, CHUNK) / CHUNK) + in / CHUNK;
    return w[tile * TILE_BYTES + at.byte] >> at.shift & 3;
}

/* From the CPU's tiles, [n_out / 16][n_in / 16][64], to these. A thread makes a byte. */
__global__ void ternary_repack(u8 *to, const u8 *from, i32 n_in, i64 n_bytes) {
    take_turn();
    i64 at = (i64)blockIdx.x * ROW_THREADS + threadIdx.x;
    if (at >= n_bytes) return;
    i64 tile = at / TILE_BYTES, n_chunks = round_up(n_in, CHUNK) / CHUNK;
    i32 lane = at % TILE_BYTES / 16, word = at % 16 / 4, i = at % 4, n_cpu = (n_in + 15) / 16;
    u32 byte = 0;
    for (int r = 0; r < 4; r++) {
        i32 out = lane / 4 + 8 * (r % 2);
        i32 in = tile % n_chunks * CHUNK + 64 * (word / 2) + 16 * (lane % 4) + 8 * (word % 2) +
                 4 * (r / 2) + i;
        const u8 *cpu = from + (tile / n_chunks * n_cpu + in / 16) * DLM_TILE_BYTES;
        u32 code = in < 16 * n_cpu ? cpu[4 * out + in % 4] >> 2 * (in % 16 / 4) & 3 : 1;
        byte |= code << 2 * r;
    }
    to[at] = (u8)byte;
}

static __device__ __forceinline__ void ternary_unpack(u32 a[4], u32 word) {
#pragma unroll
    for (int r = 0; r < 4; r++) a[r] = word >> 2 * r & 0x03030303u;
}

/* The state of a warp that makes 32 outputs of 8 NT rows. */
template <int NT, bool SCALED> struct TernarySums {
    i32 acc[2][NT][4];
    float blocks[2][SCALED ? NT : 1][4]; /* of the blocks of inputs that are done, scaled */
};

static __device__ __forceinline__ u32 word_of(const uint4 &v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* 64 inputs: half p of a tile. b[nt]: 16 bytes of row 8 nt + g. */
template <int NT, bool SCALED, typename LoadRow>
static __device__ __forceinline__ void ternary_half(TernarySums<NT, SCALED> &s, const uint4 w[2],
                                                    int p, LoadRow load_row) {
    u32 a[2][2][4];
#pragma unroll
    for (int u = 0; u < 2; u++)
#pragma unroll
        for (int h = 0; h < 2; h++) ternary_unpack(a[u][h], word_of(w[u], 2 * p + h));
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        uint4 b = load_row(nt);
#pragma unroll
        for (int u = 0; u < 2; u++) {
            mma_s8_k32(s.acc[u][nt], a[u][0], b.x, b.y);
            mma_s8_k32(s.acc[u][nt], a[u][1], b.z, b.w);
        }
    }
}

/* Ends a block of inputs that has a scale of its own. `in`: the number of inputs that are done. */
template <int NT, bool SCALED>
static __device__ __forceinline__ void ternary_end_block(TernarySums<NT, SCALED> &s, const Job &job,
                                                         const Int8Rows &rows, i32 n_in, i32 in,
                                                         i32 group, i32 row) {
    if (!SCALED || in % job.scale_block != 0 || in > n_in) return;
    i32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4, block = in / job.scale_block - 1,
        n_blocks = n_in / job.scale_block, n_runs = job.scale_block / 64;
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const i32 *run = rows.sums + (i64)(row + 8 * nt + 2 * t + j % 2) * (rows.stride / 64) +
                             (i64)block * n_runs;
            i32 sum = 0;
            for (int k = 0; k < n_runs; k++) sum += run[k];
#pragma unroll
            for (int u = 0; u < 2; u++) {
                if (16 * (group + u) >= job.n_out) continue;
                float scale =
                    job.scales[((i64)(group + u) * n_blocks + block) * 16 + g + j / 2 * 8];
                s.blocks[u][SCALED ? nt : 0][j] += (float)(s.acc[u][nt][j] - sum) * scale;
                s.acc[u][nt][j] = 0;
            }
        }
}

static __device__ __forceinline__ float ternary_value(const Job &job, const Int8Rows &rows, i32 row,
                                                      i32 acc) {
    return (float)(acc - rows.sum[row]) * (job.scale * rows.inv[row]);
}

template <int NT, bool SCALED>
static __device__ __forceinline__ void ternary_put(const TernarySums<NT, SCALED> &s, const Job &job,
                                                   const Int8Rows &rows, i32 group, i32 row,
                                                   i32 n_rows) {
    i32 g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int u = 0; u < 2; u++)
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                i32 o = 16 * (group + u) + g + j / 2 * 8, m = row + 8 * nt + 2 * t + j % 2;
                if (o >= job.n_out || m >= n_rows) continue;
                put_output(job, m, o,
                           SCALED ? s.blocks[u][SCALED ? nt : 0][j] * rows.inv[m]
                                  : ternary_value(job, rows, m, s.acc[u][nt][j]));
            }
}

/* The two tiles of a unit of 32 outputs; of an odd last one twice the same. */
static __device__ __forceinline__ void ternary_tiles(const uint4 *tile[2], const Job &job,
                                                     i32 group, i32 n_chunks) {
    i32 last = (job.n_out - 1) / 16;
    for (int u = 0; u < 2; u++)
        tile[u] = (const uint4 *)(job.w + (i64)(group + u < last ? group + u : last) * n_chunks *
                                              TILE_BYTES) +
                  threadIdx.x % WARP;
}

#define STREAM_WARPS 8
#define STREAM_AHEAD 4 /* tiles that a warp has under way: what hides the memory's latency */

template <int NT> struct StreamShared { i32 sums[STREAM_WARPS / 2][8 * NT][33]; };

/* Up to 8 NT rows: the weights stream past once. A unit is 32 outputs; `split` warps share its inputs
 * and add up their integers, which is exact in any order. With a scale per block one warp goes through
 * all, in the CPU's order. */
template <int NT, bool SCALED>
__global__ void __launch_bounds__(STREAM_WARPS *WARP)
    ternary_stream(Jobs jobs, Int8Rows rows, i32 n_rows, i32 split) {
    SHARED(StreamShared<NT>, shared);
    let_next_begin();
    i32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    i32 part = warp % split, n_chunks = rows.stride / CHUNK;
    i32 unit = blockIdx.x * (STREAM_WARPS / split) + warp / split;
    bool active = unit < jobs.n_units;
    if (!active) unit = 0;
    Job job = job_of(jobs, &unit);
    i32 group = 2 * unit;
    TernarySums<NT, SCALED> s = {};
    const uint4 *tile[2];
    uint4 w[STREAM_AHEAD][2];
    ternary_tiles(tile, job, group, n_chunks);
#pragma unroll
    for (int k = 0; k < STREAM_AHEAD; k++)
        for (int u = 0; u < 2; u++)
            if (part + k * split < n_chunks) w[k][u] = tile[u][(i64)(part + k * split) * WARP];
    wait_for_last(); /* weights were there before */
    for (i32 first = part; first < n_chunks; first += STREAM_AHEAD * split) {
#pragma unroll
        for (int k = 0; k < STREAM_AHEAD; k++) {
            i32 chunk = first + k * split, next = chunk + STREAM_AHEAD * split;
            if (chunk >= n_chunks) break;
            uint4 now[2] = {w[k][0], w[k][1]};
            for (int u = 0; u < 2; u++)
                if (next < n_chunks) w[k][u] = tile[u][(i64)next * WARP];
#pragma unroll
            for (int p = 0; p < 2; p++) {
                const i8 *q = rows.q + (i64)g * rows.stride + chunk * CHUNK + 64 * p + 16 * t;
                ternary_half<NT, SCALED>(s, now, p, [&](int nt) {
                    return *(const uint4 *)(q + (i64)(8 * nt) * rows.stride);
                });
                ternary_end_block<NT, SCALED>(s, job, rows, jobs.n_in, chunk * CHUNK + 64 * (p + 1),
                                              group, 0);
            }
        }
    }
    if (split == 1) {
        if (active) ternary_put<NT, SCALED>(s, job, rows, group, 0, n_rows);
        return;
    }
    i32 *sums = &shared.sums[0][0][0];
    for (i32 i = threadIdx.x; i < STREAM_WARPS / split * 8 * NT * 33; i += STREAM_WARPS * WARP)
        sums[i] = 0;
    __syncthreads();
#pragma unroll
    for (int u = 0; u < 2; u++)
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                atomicAdd(
                    &shared.sums[warp / split][8 * nt + 2 * t + j % 2][16 * u + g + j / 2 * 8],
                    s.acc[u][nt][j]);
    __syncthreads();
    i32 o = 32 * unit + lane;
    for (i32 m = part; active && o < job.n_out && m < n_rows; m += split)
        put_output(job, m, o, ternary_value(job, rows, m, shared.sums[warp / split][m][lane]));
}

#define TILED_OUT 128
#define TILED_ROWS 128

struct TiledShared {
    alignas(16) i8 q[2][2][TILED_ROWS][64]; /* [stage][half of a chunk][row] */
};

/* Many rows: 128 outputs by 128 rows, 32 by 64 a warp. The rows' next chunk is copied while this one is
 * multiplied. */
template <bool SCALED>
__global__ void __launch_bounds__(256) ternary_tiled(Jobs jobs, Int8Rows rows, i32 n_rows) {
    SHARED(TiledShared, shared);
    let_next_begin();
    i32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    i32 n_chunks = rows.stride / CHUNK, row = blockIdx.x * TILED_ROWS, unit = blockIdx.y;
    Job job = job_of(jobs, &unit);
    i32 group = unit * (TILED_OUT / 16) + warp % 4 * 2, warp_row = warp / 4 * 64;
    TernarySums<8, SCALED> s = {};
    const uint4 *tile[2];
    ternary_tiles(tile, job, group, n_chunks);
    auto copy_chunk = [&](i32 chunk) { /* row r, piece k: lanes write 16 bytes after 16 bytes */
                                       for (i32 i = threadIdx.x; i < TILED_ROWS * 8; i += 256) {
                                           i32 half = i / (TILED_ROWS * 4), r = i / 4 % TILED_ROWS,
                                               k = i % 4;
                                           copy_16(&shared.q[chunk % 2][half][r][16 * k],
                                                   rows.q + (i64)(row + r) * rows.stride +
                                                       chunk * CHUNK + 64 * half + 16 * k);
                                       }
                                       copies_commit();
    };
    uint4 w[2] = {tile[0][0], tile[1][0]};
    wait_for_last(); /* weights were there before */
    copy_chunk(0);
    for (i32 chunk = 0; chunk < n_chunks; chunk++) {
        uint4 now[2] = {w[0], w[1]};
        if (chunk + 1 < n_chunks) {
            copy_chunk(chunk + 1);
            for (int u = 0; u < 2; u++) w[u] = tile[u][(i64)(chunk + 1) * WARP];
            copies_wait<1>();
        } else {
            copies_wait<0>();
        }
        __syncthreads();
#pragma unroll
        for (int p = 0; p < 2; p++) {
            ternary_half<8, SCALED>(s, now, p, [&](int nt) {
                return *(const uint4 *)&shared.q[chunk % 2][p][warp_row + 8 * nt + g][16 * t];
            });
            ternary_end_block<8, SCALED>(s, job, rows, jobs.n_in, chunk * CHUNK + 64 * (p + 1),
                                         group, row + warp_row);
        }
        __syncthreads();
    }
    ternary_put<8, SCALED>(s, job, rows, group, row + warp_row, n_rows);
}

/* ---- scaled blocks: Q4_0 to MXFP4, unpacked to 8 bits and scales ----
 *
 * One allocation: q [n_out 16][stride], spread as the activations are; scales and minima, a byte for
 * each 16 inputs; {d, dmin} for each block. */

struct BlockMat {
    i8 *q;
    i8 *scale;
    u8 *minimum;
    float2 *d;
};

static __host__ __device__ __forceinline__ BlockMat block_mat(u8 *base, i64 n_out, i64 stride) {
    i64 n = round_up(n_out, 16) * stride;
    BlockMat m = {(i8 *)base, (i8 *)base + n, base + n + n / 16, (float2 *)(base + n + n / 8)};
    return m;
}

static __host__ __device__ __forceinline__ i64 block_mat_bytes(i64 n_out, i64 n_in, i64 block) {
    i64 n = round_up(n_out, 16) * round_up(n_in, 256);
    return n + n / 8 + n / block * (i64)sizeof(float2);
}

#define BLOCK_WARPS 8

template <int LANES> struct BlockShared { float sums[BLOCK_WARPS][LANES == 1 ? 1 : 2][WARP][4]; };

/* 16 outputs by 8 NT rows a warp. LANES is 1 for blocks of 256, which add in rising order; and 8 for
 * blocks of 32, where block b adds to sum b % 8: four warps have two of these sums each, and they are
 * folded as kern_ref does. */
template <int NT, int LANES>
__global__ void __launch_bounds__(BLOCK_WARPS *WARP)
    blocks_linear(Jobs jobs, BlockRows rows, i32 n_rows, bool minima) {
    enum { SUMS = LANES == 1 ? 1 : 2, SPLIT = LANES == 1 ? 1 : 4, BLOCK = LANES == 1 ? 256 : 32 };
    SHARED(BlockShared<LANES>, shared);
    take_turn();
    i32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    i32 row = blockIdx.x * 8 * NT, unit = blockIdx.y * (BLOCK_WARPS / SPLIT) + warp / SPLIT;
    bool active = unit < jobs.n_units;
    if (!active) unit = 0;
    Job job = job_of(jobs, &unit);
    i64 n_runs = rows.stride / 64, n_blocks = rows.stride / BLOCK;
    BlockMat w = block_mat((u8 *)job.w, job.n_out, rows.stride);
    i64 out[2] = {16 * (i64)unit + g, 16 * (i64)unit + g + 8};
    float total[SUMS][NT][4] = {};
    i32 dot[SUMS][NT][4] = {}, low[SUMS][NT][4] = {};
    for (i64 run = warp % SPLIT; run < n_runs; run += SPLIT) {
        uint4 a[2];
        u32 scales[2], mins[2] = {0, 0};
        for (int h = 0; h < 2; h++) {
            a[h] = *(const uint4 *)(w.q + out[h] * rows.stride + run * 64 + 16 * t);
            scales[h] = *(const u32 *)(w.scale + (out[h] * n_runs + run) * 4);
            if (minima) mins[h] = *(const u32 *)(w.minimum + (out[h] * n_runs + run) * 4);
        }
#pragma unroll
        for (int nt = 0; nt < NT; nt++) {
            i64 m = row + 8 * nt;
            uint4 b = *(const uint4 *)(rows.q + (m + g) * rows.stride + run * 64 + 16 * t);
            uint2 sums[2];
            for (int j = 0; minima && j < 2; j++)
                sums[j] = *(const uint2 *)(rows.sums + ((m + 2 * t + j) * n_runs + run) * 4);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                i32 d[4];
                mma_s8_k16(d, word_of(a[0], k), word_of(a[1], k), word_of(b, k));
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    int f = SUMS == 1 ? 0 : k / 2;
                    dot[f][nt][j] += (i8)(scales[j / 2] >> 8 * k) * d[j];
                    if (minima)
                        low[f][nt][j] +=
                            (i32)(mins[j / 2] >> 8 * k & 255) *
                            (i16)((k < 2 ? sums[j % 2].x : sums[j % 2].y) >> 16 * (k % 2));
                }
            }
        }
        if (LANES == 1 && run % 4 != 3) continue;
#pragma unroll
        for (int f = 0; f < SUMS; f++) { /* a block ends */
            i64 block = LANES == 1 ? run / 4 : 2 * run + f;
#pragma unroll
            for (int nt = 0; nt < NT; nt++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    float2 dw = w.d[out[j / 2] * n_blocks + block];
                    float dx = rows.d[(i64)(row + 8 * nt + 2 * t + j % 2) * n_blocks + block];
                    total[f][nt][j] +=
                        (float)dot[f][nt][j] * (dw.x * dx) - (float)low[f][nt][j] * (dw.y * dx);
                    dot[f][nt][j] = low[f][nt][j] = 0;
                }
        }
    }
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        float v[4] = {total[0][nt][0], total[0][nt][1], total[0][nt][2], total[0][nt][3]};
        if (LANES == 8) { /* warp w has sums 2 w and 2 w + 1 of 8 */
            __syncthreads();
#pragma unroll
            for (int f = 0; f < SUMS; f++)
#pragma unroll
                for (int j = 0; j < 4; j++) shared.sums[warp][f][lane][j] = total[f][nt][j];
            __syncthreads();
            i32 first = warp / SPLIT * SPLIT;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float s[2][SPLIT];
#pragma unroll
                for (int f = 0; f < SUMS; f++)
#pragma unroll
                    for (int k = 0; k < SPLIT; k++) s[f][k] = shared.sums[first + k][f][lane][j];
                if (LANES == 8) /* 0..3 += 4..7, then 0, 1 += 2, 3, then 0 += 1 */
                    v[j] = ((s[0][0] + s[0][SPLIT / 2]) + (s[0][SPLIT / 4] + s[0][SPLIT - 1])) +
                           ((s[1][0] + s[1][SPLIT / 2]) + (s[1][SPLIT / 4] + s[1][SPLIT - 1]));
            }
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            i32 m = row + 8 * nt + 2 * t + j % 2;
            if (active && warp % SPLIT == 0 && out[j / 2] < job.n_out && m < n_rows)
                put_output(job, m, (i32)out[j / 2], v[j]);
        }
    }
}

/* ---- F16, BF16, F32 ----
 *
 * Rows as in the file, padded to 32 inputs and 16 outputs with zeros. */

#define DENSE_WARPS 8

template <int NT> struct DenseShared { float sums[DENSE_WARPS][8 * NT][17]; };

/* 16 outputs by 8 NT rows a block of threads, whose warps share the inputs; their sums are added in a
 * fixed order. */
template <int NT, bool BF16>
__global__ void __launch_bounds__(DENSE_WARPS *WARP)
    dense_linear(Jobs jobs, HalfRows rows, i32 n_rows) {
    SHARED(DenseShared<NT>, shared);
    take_turn();
    i32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    i32 row = blockIdx.x * 8 * NT, unit = blockIdx.y, n_chunks = rows.stride / 32;
    Job job = job_of(jobs, &unit);
    const u16 *w = (const u16 *)job.w + (16 * (i64)unit + g) * rows.stride + 8 * t;
    const u16 *x = rows.planes + (i64)(row + g) * rows.stride + 8 * t;
    float acc[NT][4] = {};
    for (i32 chunk = warp; chunk < n_chunks; chunk += DENSE_WARPS) {
        uint4 low = *(const uint4 *)(w + 32 * (i64)chunk);
        uint4 high = *(const uint4 *)(w + 8 * (i64)rows.stride + 32 * (i64)chunk);
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int p = 0; p < (BF16 ? 3 : 2); p++) {
                uint4 b = *(const uint4 *)(x + p * rows.plane + 8 * nt * (i64)rows.stride +
                                           32 * (i64)chunk);
                mma_f16<BF16>(acc[nt], low.x, high.x, low.y, high.y, b.x, b.y);
                mma_f16<BF16>(acc[nt], low.z, high.z, low.w, high.w, b.z, b.w);
            }
    }
#pragma unroll
    for (int nt = 0; nt < NT; nt++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            shared.sums[warp][8 * nt + 2 * t + j % 2][g + j / 2 * 8] = acc[nt][j];
    __syncthreads();
    for (i32 i = threadIdx.x; i < 16 * 8 * NT; i += DENSE_WARPS * WARP) {
        i32 o = 16 * unit + i % 16, m = row + i / 16;
        float v = 0;
        for (int k = 0; k < DENSE_WARPS; k++) v += shared.sums[k][i / 16][i % 16];
        if (o < job.n_out && m < n_rows) put_output(job, m, o, v * rows.factor[m]);
    }
}

#define F32_ROWS 8

/* F32 weights are for comparisons: a warp makes one output of 8 rows. */
__global__ void __launch_bounds__(ROW_THREADS)
    f32_linear(Jobs jobs, const float *x, i32 stride, i32 n_rows) {
    take_turn();
    i32 lane = threadIdx.x % WARP, row = blockIdx.x * F32_ROWS;
    i32 unit = blockIdx.y * (ROW_THREADS / WARP) + threadIdx.x / WARP;
    if (unit >= jobs.n_units) return;
    Job job = job_of(jobs, &unit);
    const float *w = (const float *)job.w + (i64)unit * stride;
    float acc[F32_ROWS] = {};
    for (i32 i = lane; i < jobs.n_in; i += WARP)
        for (int r = 0; r < F32_ROWS; r++)
            if (row + r < n_rows) acc[r] = fmaf(w[i], x[(i64)(row + r) * jobs.n_in + i], acc[r]);
    for (int r = 0; r < F32_ROWS; r++) {
        float v = lanes_sum(acc[r]);
        if (lane == 0 && row + r < n_rows) put_output(job, row + r, unit, v);
    }
}

/* ---- rows of a matrix, and rows by number ---- */

struct EmbedMat {
    const u8 *w;
    const float *scales;
    float scale;
    DlmMatKind kind;
    i32 n_in, n_out, scale_block, block;
};

/* Weight i of output o, with the CPU's roundings. */
static __device__ float weight_of(const EmbedMat &m, i64 o, i32 i) {
    if (m.kind == DLM_MAT_F32) return ((const float *)m.w)[o * round_up(m.n_in, 32) + i];
    if (m.kind == DLM_MAT_TERNARY) {
        float s = m.scale;
        if (m.scales)
            s = m.scales[(o / 16 * (m.n_in / m.scale_block) + i / m.scale_block) * 16 + o % 16];
        return ((float)ternary_code(m.w, m.n_in, (i32)o, i) - 1.0f) * s;
    }
    if (m.kind == DLM_MAT_BLOCKS) {
        i64 stride = round_up(m.n_in, 256);
        BlockMat b = block_mat((u8 *)m.w, m.n_out, stride);
        i64 at = (o * stride + i) / 16;
        float2 d = b.d[(o * stride + i) / m.block];
        float v = d.x * (float)b.scale[at] * (float)b.q[o * stride + spread(i)];
        return v - d.y * (float)b.minimum[at];
    }
    u16 h = ((const u16 *)m.w)[o * round_up(m.n_in, 32) + i];
    return m.kind == DLM_MAT_F16 ? from_f16(h) : from_bf16(h);
}

__global__ void embed_rows(float *y, EmbedMat m, const DlmRow *rows) {
    take_turn();
    i64 row = blockIdx.x;
    i32 i = blockIdx.y * ROW_THREADS + threadIdx.x;
    if (i < m.n_in) y[row * m.n_in + i] = weight_of(m, rows[row].token, i);
}

__global__ void gather_rows(float *y, const float *x, const DlmRow *rows, i32 n) {
    take_turn();
    i64 row = blockIdx.x, to = rows[row].logits;
    i32 i = blockIdx.y * ROW_THREADS + threadIdx.x;
    if (i < n && to >= 0) y[to * n + i] = x[row * n + i];
}

template <int BEFORE> __global__ void add_or_gate(float *y, const float *x, i64 n, i32 act) {
    take_turn();
    i64 i = (i64)blockIdx.x * ROW_THREADS + threadIdx.x;
    if (i < n) y[i] = BEFORE == BEFORE_ADD ? y[i] + x[i] : activate(y[i], act) * x[i];
}

/* ---- rotary embedding and the cache ---- */

struct Turn {
    float *x; /* [n_rows][n_head][head_dim], or NULL */
    const float *turns;
    i32 n_head, head_dim, n_rot, step, apart; /* the pair i is elements i step and i step + apart */
};

struct Store {
    void *k_cells, *v_cells; /* of the layer in slot 0 */
    const float *k, *v;      /* [n_rows][n_head][head_dim] */
    i64 slot_stride;         /* elements */
    i32 n_head, head_dim;    /* n_head is 0 when nothing is stored */
    bool f16;
};

static __device__ void turn_head(const Turn &turn, float *x, i32 pos) {
    for (i32 i = threadIdx.x; i < turn.n_rot / 2; i += WARP) {
        float *v = x + i * turn.step, a = v[0], b = v[turn.apart];
        float cos = turn.turns[(i64)pos * turn.n_rot + 2 * i];
        float sin = turn.turns[(i64)pos * turn.n_rot + 2 * i + 1];
        v[0] = a * cos - b * sin;
        v[turn.apart] = b * cos + a * sin;
    }
    __syncwarp();
}

static __device__ void store_head(const Store &s, void *cells, const float *x, const DlmRow &row,
                                  i32 head) {
    i64 at = row.slot * s.slot_stride + ((i64)row.cell * s.n_head + head) * s.head_dim;
    for (i32 i = threadIdx.x; i < s.head_dim; i += WARP) {
        if (s.f16)
            ((u16 *)cells)[at + i] = to_f16(x[i]);
        else
            ((float *)cells)[at + i] = x[i];
    }
}

/* A warp for each head of a row: queries turn; keys turn and are stored; values are stored. */
__global__ void turn_and_store(Turn q, Turn k, Store store, const DlmRow *rows) {
    take_turn();
    DlmRow row = rows[blockIdx.x];
    i64 r = blockIdx.x;
    i32 head = blockIdx.y, n_q = q.x ? q.n_head : 0, n_k = k.x ? k.n_head : store.n_head;
    if (head < n_q) {
        turn_head(q, q.x + (r * n_q + head) * q.head_dim, row.pos);
    } else if (head < n_q + n_k) {
        head -= n_q;
        if (k.x) turn_head(k, k.x + (r * n_k + head) * k.head_dim, row.pos);
        if (store.n_head)
            store_head(store, store.k_cells, store.k + (r * n_k + head) * store.head_dim, row,
                       head);
    } else {
        head -= n_q + n_k;
        store_head(store, store.v_cells, store.v + (r * store.n_head + head) * store.head_dim, row,
                   head);
    }
}

/* ---- attention ---- */

struct Attend {
    float *out;
    const float *q;    /* [n_rows][n_head][head_dim] */
    const void *k, *v; /* of the layer in slot 0 */
    i64 slot_stride;
    i32 n_head, n_head_kv, head_dim;
    bool f16;
    float scale;
    i32 segment; /* cells whose sums are made on their own, then joined: a multiple of ATTEND_CELLS */
    i32 n_split; /* segments of a cache, each by a block of its own; or 1, one block for all */
    float *part; /* [rows][n_head][n_split][head_dim + 2]: a segment's sums, its maximum, its sum */
};

/* Any size, any cache: a warp for each head of a row goes through the cells one by one. Softmax with a
 * running maximum (Milakov and Gimelshein 2018). */
#define ATTEND_LANE_MAX 32 /* elements of a head that a lane has: heads of up to 1024 */

static __device__ __forceinline__ float cell_value(const Attend &a, const void *p, i64 i) {
    return a.f16 ? from_f16(((const u16 *)p)[i]) : ((const float *)p)[i];
}

__global__ void attend_any(Attend a, const DlmRow *rows) {
    take_turn();
    DlmRow row = rows[blockIdx.x];
    i32 lane = threadIdx.x, dim = a.head_dim, n = (dim + WARP - 1) / WARP;
    i32 head_kv = blockIdx.y / (a.n_head / a.n_head_kv);
    i64 at = ((i64)blockIdx.x * a.n_head + blockIdx.y) * dim;
    float q[ATTEND_LANE_MAX], acc[ATTEND_LANE_MAX], max = MINUS_INF, sum = 0;
    for (i32 j = 0; j < n; j++) {
        q[j] = lane + WARP * j < dim ? a.q[at + lane + WARP * j] : 0;
        acc[j] = 0;
    }
    for (i32 c = row.kv_lo; c < row.kv_hi; c++) {
        i64 cell = row.slot * a.slot_stride + ((i64)c * a.n_head_kv + head_kv) * dim;
        float dot = 0;
        for (i32 j = 0; j < n; j++)
            if (lane + WARP * j < dim)
                dot = fmaf(q[j], cell_value(a, a.k, cell + lane + WARP * j), dot);
        float score = lanes_sum(dot) * a.scale, more = fmaxf(max, score);
        float shrink = expf(max - more), p = expf(score - more);
        sum = sum * shrink + p, max = more;
        for (i32 j = 0; j < n; j++)
            if (lane + WARP * j < dim)
                acc[j] = fmaf(p, cell_value(a, a.v, cell + lane + WARP * j), acc[j] * shrink);
    }
    for (i32 j = 0; j < n; j++)
        if (lane + WARP * j < dim) a.out[at + lane + WARP * j] = acc[j] / sum;
}

/* The usual case, on tensor cores: an F16 cache and heads of up to 128. A tile is a run of rows of one
 * slot; with the heads that share their keys they make up to 64 queries, 16 a warp. Cells go by in tiles
 * of 64 (Dao 2023). Queries and probabilities are split into two F16 each, so that only the cache's own
 * rounding remains.
 *
 * A row's result must not depend on the rows beside it. So tiles of cells begin at multiples of 64, and
 * sums at multiples of a segment, whatever the tile of rows sees: cells that a row does not see add
 * exact zeros. The sums of the segments are joined in rising order, by the block itself or, where few
 * rows would leave multiprocessors idle, by attend_join after blocks that took a segment each. */
#define ATTEND_QUERIES 64
#define ATTEND_CELLS 64
#define ATTEND_DIM_MAX 128
#define ATTEND_SEGMENT 256 /* cells, at least */
#define ATTEND_SPLITS 16   /* segments of a slot's cache, at most */

struct AttendTile { /* rows [first, first + n), all of one slot; the cells that any of them sees */
    i32 first, n, slot, lo, hi;
};

template <int D>
struct AttendShared { /* the paddings keep the lanes of a load in different banks */
    alignas(16) u16 k[ATTEND_CELLS][D + 32];
    alignas(16) u16 v[ATTEND_CELLS][D + 8];
};

/* Cells [from, from + 64) of one head; beyond `end`, and beyond the head's own length, zeros. */
template <int D, int PITCH>
static __device__ __forceinline__ void load_cells(u16 (*to)[PITCH], const u16 *from_head,
                                                  i64 stride, i32 from, i32 end, i32 dim) {
    for (i32 i = threadIdx.x; i < ATTEND_CELLS * D / 8; i += 128) {
        i32 c = i / (D / 8), at = i % (D / 8) * 8;
        if (from + c < end && at < dim)
            copy_16(&to[c][at], from_head + (from + c) * stride + at);
        else
            *(uint4 *)&to[c][at] = make_uint4(0, 0, 0, 0);
    }
    copies_commit();
}

/* x and y as two F16 each: sums of a pair and what it misses. */
static __device__ __forceinline__ void split_pair(u32 *high, u32 *low, float x, float y) {
    u16 hx = to_f16(x), hy = to_f16(y);
    *high = pair_of(hx, hy);
    *low = pair_of(to_f16(x - from_f16(hx)), to_f16(y - from_f16(hy)));
}

/* Queries g and g + 8 of the warp, scaled so that exp2 gives the softmax, in the instructions' order. */
template <int D>
static __device__ __forceinline__ void load_queries(u32 (*high)[4], u32 (*low)[4], const Attend &a,
                                                    const float *const x[2]) {
    i32 t = threadIdx.x % 4;
    float scale = a.scale * 1.44269504088896341f;
#pragma unroll
    for (int j = 0; j < D / 16; j++)
#pragma unroll
        for (int r = 0; r < 4; r++) {
            i32 at = j / 2 * 32 + 8 * t + j % 2 * 4 + r / 2 * 2;
            bool in = at < a.head_dim;
            float v0 = in ? x[r % 2][at] * scale : 0, v1 = in ? x[r % 2][at + 1] * scale : 0;
            split_pair(&high[j][r], &low[j][r], v0, v1);
        }
}

/* What the cells so far found, and then those of one more segment: factors for the sums of both. */
struct Join {
    float max, sum, keep, take;
};

static __device__ __forceinline__ void join(Join &j, float max, float sum) {
    j.keep = 1, j.take = 0;
    if (max == MINUS_INF) return; /* the row sees none of these */
    float more = fmaxf(j.max, max);
    j.keep = exp2f(j.max - more), j.take = exp2f(max - more);
    j.sum = fmaf(sum, j.take, j.sum * j.keep), j.max = more;
}

/* long: one pass over the cells, its state in registers throughout */
template <int D>
__global__ void __launch_bounds__(128)
    attend_tiles(Attend a, const DlmRow *rows, const AttendTile *tiles) {
    SHARED(AttendShared<D>, shared);
    take_turn();
    AttendTile tile = tiles[blockIdx.x];
    i32 lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, dim = a.head_dim;
    i32 head_kv = blockIdx.y, group = a.n_head / a.n_head_kv, n_queries = tile.n * group;
    i64 stride = (i64)a.n_head_kv * dim, slot = tile.slot * a.slot_stride + (i64)head_kv * dim;
    const u16 *k = (const u16 *)a.k + slot, *v = (const u16 *)a.v + slot;
    bool split = a.n_split > 1;
    i32 first = split ? blockIdx.z : tile.lo / a.segment,
        last = split ? first : (tile.hi - 1) / a.segment;
    i32 query[2], lo[2], hi[2];
    const float *x[2];
    for (int h = 0; h < 2; h++) { /* a query past the last repeats it */
        query[h] = threadIdx.x / WARP * 16 + g + 8 * h;
        i32 i = query[h] < n_queries ? query[h] : n_queries - 1;
        const DlmRow &row = rows[tile.first + i / group];
        lo[h] = row.kv_lo, hi[h] = row.kv_hi;
        x[h] = a.q + ((i64)(tile.first + i / group) * a.n_head + head_kv * group + i % group) * dim;
    }
    u32 q_high[D / 16][4], q_low[D / 16][4];
    load_queries<D>(q_high, q_low, a, x);
    Join all[2] = {{MINUS_INF, 0, 1, 0}, {MINUS_INF, 0, 1, 0}};
    for (i32 segment = first; segment <= last; segment++) {
        float out[D / 8][4] = {}, max[2] = {MINUS_INF, MINUS_INF}, sum[2] = {0, 0};
        i32 begin = segment * a.segment, end = begin + a.segment;
        begin = begin < tile.lo ? tile.lo / ATTEND_CELLS * ATTEND_CELLS : begin;
        end = end < tile.hi ? end : tile.hi;
        if (begin < end) load_cells<D>(shared.k, k, stride, begin, end, dim);
        for (i32 from = begin; from < end; from += ATTEND_CELLS) {
            load_cells<D>(shared.v, v, stride, from, end, dim);
            copies_wait<1>();
            __syncthreads(); /* the keys are there */
            float p[8][4];
#pragma unroll
            for (int n = 0; n < 8; n++) { /* scores of 8 cells */
                p[n][0] = p[n][1] = p[n][2] = p[n][3] = 0;
#pragma unroll
                for (int j = 0; j < D / 32; j++) {
                    uint4 b = *(const uint4 *)&shared.k[8 * n + g][32 * j + 8 * t];
                    u32(*qh)[4] = q_high + 2 * j, (*ql)[4] = q_low + 2 * j;
                    mma_f16<false>(p[n], ql[0][0], ql[0][1], ql[0][2], ql[0][3], b.x, b.y);
                    mma_f16<false>(p[n], ql[1][0], ql[1][1], ql[1][2], ql[1][3], b.z, b.w);
                    mma_f16<false>(p[n], qh[0][0], qh[0][1], qh[0][2], qh[0][3], b.x, b.y);
                    mma_f16<false>(p[n], qh[1][0], qh[1][1], qh[1][2], qh[1][3], b.z, b.w);
                }
            }
            float more[2] = {max[0], max[1]};
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    i32 cell = from + 8 * n + 2 * t + j % 2;
                    if (cell < lo[j / 2] || cell >= hi[j / 2]) p[n][j] = MINUS_INF;
                    more[j / 2] = fmaxf(more[j / 2], p[n][j]);
                }
            float shrink[2];
#pragma unroll
            for (int h = 0; h < 2; h++) { /* the four lanes of a query agree on the maximum */
                more[h] = fmaxf(more[h], __shfl_xor_sync(ALL_LANES, more[h], 1));
                more[h] = fmaxf(more[h], __shfl_xor_sync(ALL_LANES, more[h], 2));
                float base = more[h] == MINUS_INF ? 0 : more[h]; /* no cell seen yet */
                shrink[h] = exp2f(max[h] - base);
                max[h] = more[h], more[h] = base, sum[h] *= shrink[h];
            }
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    p[n][j] = exp2f(p[n][j] - more[j / 2]);
                    sum[j / 2] += p[n][j];
                }
#pragma unroll
            for (int n = 0; n < D / 8; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) out[n][j] *= shrink[j / 2];
            __syncthreads(); /* the keys have been read */
            if (from + ATTEND_CELLS < end) {
                load_cells<D>(shared.k, k, stride, from + ATTEND_CELLS, end, dim);
                copies_wait<1>();
            } else {
                copies_wait<0>();
            }
            __syncthreads(); /* the values are there */
#pragma unroll
            for (int c = 0; c < ATTEND_CELLS / 16; c++) {
                u32 ph[4], pl[4];
#pragma unroll
                for (int r = 0; r < 4; r++)
                    split_pair(&ph[r], &pl[r], p[2 * c + r / 2][r % 2 * 2],
                               p[2 * c + r / 2][r % 2 * 2 + 1]);
#pragma unroll
                for (int n = 0; n < D / 16; n++) {
                    u32 b[4];
                    load_transposed(
                        b, &shared.v[16 * c + lane / 8 % 2 * 8 + lane % 8][16 * n + lane / 16 * 8]);
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        mma_f16<false>(out[2 * n + h], pl[0], pl[1], pl[2], pl[3], b[2 * h],
                                       b[2 * h + 1]);
                        mma_f16<false>(out[2 * n + h], ph[0], ph[1], ph[2], ph[3], b[2 * h],
                                       b[2 * h + 1]);
                    }
                }
            }
            __syncthreads(); /* the values have been read */
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            sum[h] += __shfl_xor_sync(ALL_LANES, sum[h], 1);
            sum[h] += __shfl_xor_sync(ALL_LANES, sum[h], 2);
            join(all[h], max[h], sum[h]);
            if (query[h] >= n_queries) continue;
            i64 at = (x[h] - a.q) / dim;
            float *part = a.part + (at * a.n_split + (split ? segment : 0)) * (dim + 2);
            if (split && t == 0) part[dim] = max[h], part[dim + 1] = sum[h];
            if (split && begin >= end) continue;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    i32 i = 8 * n + 2 * t + j;
                    float v = out[n][2 * h + j];
                    if (i >= dim) continue;
                    if (!split)
                        v = fmaf(v, all[h].take, segment > first ? part[i] * all[h].keep : 0);
                    if (split || segment < last)
                        part[i] = v;
                    else
                        a.out[at * dim + i] = v / all[h].sum;
                }
        }
    }
}

/* A warp for each head of a row: joins its segments, as attend_tiles does where it takes them all. */
__global__ void attend_join(Attend a) {
    take_turn();
    i64 at = (i64)blockIdx.x * a.n_head + blockIdx.y;
    i32 dim = a.head_dim;
    const float *part = a.part + at * a.n_split * (dim + 2);
    Join all = {MINUS_INF, 0, 1, 0};
    float out[ATTEND_DIM_MAX / WARP] = {};
    for (i32 s = 0; s < a.n_split; s++, part += dim + 2) {
        join(all, part[dim], part[dim + 1]);
        if (part[dim] == MINUS_INF) continue;
#pragma unroll
        for (int j = 0; j < ATTEND_DIM_MAX / WARP; j++) {
            i32 i = (i32)threadIdx.x + WARP * j;
            if (i < dim) out[j] = fmaf(part[i], all.take, out[j] * all.keep);
        }
    }
#pragma unroll
    for (int j = 0; j < ATTEND_DIM_MAX / WARP; j++) {
        i32 i = (i32)threadIdx.x + WARP * j;
        if (i < dim) a.out[at * dim + i] = out[j] / all.sum;
    }
}

/* ---- choice ---- */

struct Choice {
    i32 id;
    float prob; /* of the likeliest; else the logit */
};

struct ChoiceShared {
    float best[ROW_THREADS / WARP], sums[ROW_THREADS / WARP];
    i32 ids[ROW_THREADS / WARP];
};

/* The larger logit, then the lower id; a NaN never wins. */
static __device__ __forceinline__ void choose(float *best, i32 *id, float other, i32 other_id) {
    if (other > *best || (other == *best && other_id < *id)) *best = other, *id = other_id;
}

__global__ void __launch_bounds__(ROW_THREADS)
    top1_rows(Choice *choices, float *logits, i32 n, i32 banned) {
    SHARED(ChoiceShared, shared);
    take_turn();
    float *row = logits + (i64)blockIdx.x * n, best = MINUS_INF, sum = 0;
    i32 id = INT32_MAX;
    if (threadIdx.x == 0 && banned >= 0) row[banned] = MINUS_INF;
    __syncthreads();
    for (i32 i = threadIdx.x; i < n; i += ROW_THREADS) choose(&best, &id, row[i], i);
    for (int lane = WARP / 2; lane > 0; lane /= 2)
        choose(&best, &id, __shfl_xor_sync(ALL_LANES, best, lane),
               __shfl_xor_sync(ALL_LANES, id, lane));
    if (threadIdx.x % WARP == 0)
        shared.best[threadIdx.x / WARP] = best, shared.ids[threadIdx.x / WARP] = id;
    __syncthreads();
    for (int w = 0; w < ROW_THREADS / WARP; w++) choose(&best, &id, shared.best[w], shared.ids[w]);
    for (i32 i = threadIdx.x; i < n; i += ROW_THREADS) {
        float x = row[i] - best;
        sum += x >= -87.3f ? expf(x) : 0; /* a NaN counts nothing, as on the CPU */
    }
    sum = block_sum(sum, shared.sums);
    if (threadIdx.x == 0) {
        choices[blockIdx.x].id = id == INT32_MAX ? 0 : id;
        choices[blockIdx.x].prob = 1.0f / sum;
    }
}

/* The k largest of each row. A logit's key orders as the logits do, -0 with 0, NaNs last. The key of the
 * k-th largest is found eight bits at a time, by counting; what is above it belongs, and of those that
 * equal it the lowest ids. */
struct TopShared {
    i32 counts[256];
    u32 key;     /* of the k-th largest, as far as it is known */
    i32 left, n; /* of k: those that equal it as far; those that are found */
    i32 lowest[ROW_THREADS / WARP];
    Choice found[DLM_TOP_K_MAX];
};

static __device__ __forceinline__ u32 key_of(float x) {
    u32 bits = __float_as_uint(x + 0.0f);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* Learns the eight bits of the key from `shift` on. */
static __device__ void top_digit(TopShared &s, const float *row, i32 n, i32 shift) {
    s.counts[threadIdx.x] = 0;
    __syncthreads();
    u32 known = s.key;
    for (i32 i = threadIdx.x; i < n; i += ROW_THREADS) {
        u32 key = key_of(row[i]);
        if (shift == 24 || key >> (shift + 8) == known >> (shift + 8))
            atomicAdd(&s.counts[key >> shift & 255], 1);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        i32 digit = 255, left = s.left;
        for (; digit > 0 && s.counts[digit] < left; digit--) left -= s.counts[digit];
        s.key = known | (u32)digit << shift, s.left = left;
    }
    __syncthreads();
}

/* The lowest id above `last` whose key is the k-th largest's. */
static __device__ i32 top_equal(TopShared &s, const float *row, i32 n, i32 last) {
    i32 lowest = INT32_MAX;
    for (i32 i = threadIdx.x; i < n && lowest == INT32_MAX; i += ROW_THREADS)
        if (i > last && key_of(row[i]) == s.key) lowest = i;
    for (int lane = WARP / 2; lane > 0; lane /= 2) {
        i32 other = __shfl_xor_sync(ALL_LANES, lowest, lane);
        lowest = other < lowest ? other : lowest;
    }
    __syncthreads(); /* who came late has read the last round's */
    if (threadIdx.x % WARP == 0) s.lowest[threadIdx.x / WARP] = lowest;
    __syncthreads();
    for (int w = 0; w < ROW_THREADS / WARP; w++)
        lowest = s.lowest[w] < lowest ? s.lowest[w] : lowest;
    return lowest;
}

__global__ void __launch_bounds__(ROW_THREADS)
    top_rows(Choice *tops, const float *logits, i32 n, i32 k) {
    SHARED(TopShared, s);
    take_turn();
    const float *row = logits + (i64)blockIdx.x * n;
    if (threadIdx.x == 0) s.key = 0, s.left = k, s.n = 0;
    for (i32 shift = 24; shift >= 0; shift -= 8) top_digit(s, row, n, shift);
    for (i32 i = threadIdx.x; i < n; i += ROW_THREADS)
        if (key_of(row[i]) > s.key) {
            Choice c = {i, row[i]};
            s.found[atomicAdd(&s.n, 1)] = c;
        }
    for (i32 j = 0, last = -1; j < s.left; j++) {
        last = top_equal(s, row, n, last);
        if (threadIdx.x > 0) continue;
        Choice c = {last, row[last]};
        s.found[k - s.left + j] = c;
    }
    __syncthreads();
    if ((i32)threadIdx.x >= k) return;
    Choice mine = s.found[threadIdx.x];
    u32 key = key_of(mine.prob);
    i32 place = 0;
    for (i32 i = 0; i < k; i++) {
        u32 other = key_of(s.found[i].prob);
        place += other > key || (other == key && s.found[i].id < mine.id);
    }
    tops[(i64)blockIdx.x * k + place] = mine;
}

/* ---- ceilings ---- */

#define PEAK_STEPS 4096
#define PEAK_SUMS 8 /* independent, so that an instruction does not wait for the one before */

/* Nothing but matrix instructions. Writes what nobody reads, so that they are not optimized away. */
template <bool FLOATS> __global__ void __launch_bounds__(256) peak_mma(i32 *to, u32 seed) {
    take_turn();
    u32 a[4], lane = threadIdx.x;
    for (int r = 0; r < 4; r++) a[r] = (seed ^ (lane * 2654435761u + r * 40503u)) & 0x3b3b3b3bu;
    i32 d[PEAK_SUMS][4] = {};
    float f[PEAK_SUMS][4] = {};
    for (int i = 0; i < PEAK_STEPS; i++)
#pragma unroll
        for (int s = 0; s < PEAK_SUMS; s++) {
            if (FLOATS)
                mma_f16<false>(f[s], a[0], a[1], a[2], a[3], a[s % 4], a[(s + 1) % 4]);
            else
                mma_s8_k32(d[s], a, a[s % 4], a[(s + 1) % 4]);
        }
    i32 sum = 0;
    for (int s = 0; s < PEAK_SUMS; s++)
        for (int j = 0; j < 4; j++) sum += d[s][j] + (i32)f[s][j];
    to[blockIdx.x * 256 + threadIdx.x] = sum;
}

/* ---- the backend ---- */

#define PASSES_MAX 64 /* shapes of which a recording is kept */
#define TILED_FROM 65 /* rows from which the tiled kernel takes over */
#define STAGE_BYTES ((u64)32 << 20)

/* The rows of a pass on the device, and the tiles that attention makes of them. */
struct RowSet {
    const DlmRow *from; /* where they lay on the host, while a pass runs */
    i32 n, n_tiles;
    DlmRow *rows, *host_rows; /* [n_rows_max] on the device; pinned */
    AttendTile *tiles, *host_tiles;
    cudaEvent_t uploaded;
};

/* One operation may wait for the next, which perhaps takes it along: what is pending is launched at
 * the latest before the first operation that does not. */
enum PendingKind { PENDING_NONE, PENDING_ADD, PENDING_GATE, PENDING_TURN };
struct Pending {
    PendingKind kind;
    float *y;
    const float *x;
    i64 n;
    i32 act;
    Turn turns[2];
    i32 n_turns, n_rows;
    const DlmRow *rows; /* on the device */
};

/* A recorded pass, replayed when its shape returns: the same kernels with the same arguments, for all
 * that differs from step to step lies in the row sets. */
struct Pass {
    i32 n_rows, n_logits, n_tiles[2];
    u64 used;              /* 0: free */
    cudaGraphExec_t graph; /* NULL: seen once, not recorded */
    float *logits;         /* what the last linear operation made */
    i32 n_out;
};

enum { NEEDS_INT8 = 1, NEEDS_BLOCKS = 2, NEEDS_F16 = 4, NEEDS_BF16 = 8 };

struct Cuda {
    const DlmCudaHost *host;
    cudaStream_t stream;
    i32 n_sm, compute; /* compute: 75, 80, ... */
    bool overlaps;     /* kernels: see take_turn */
    i32 needs;         /* forms of activations that the loaded matrices take */
    i32 n_rows_max, n_in_max;
    i32 host_out;           /* outputs of the widest matrix that the CPU keeps; 0: it keeps none */
    float *host_x, *host_y; /* pinned: its rows, and what it makes of them */
    Int8Rows int8;
    BlockRows blocks;
    HalfRows halves;
    float *part;   /* [part_rows][5 / 4 n_in_max] */
    i64 part_rows; /* rows times segments that attention finds room for */
    RowSet sets[2];
    i32 tile_rows; /* rows of an attention tile at most; 0: not known yet */
    Pending pending;
    const float *int8_of; /* the buffer whose rows int8 holds, and their number and length */
    i32 int8_rows, int8_n;
    const float *last; /* what the last linear operation made: [last_rows][last_n] */
    i32 last_rows, last_n;
    Choice *choices, *host_choices; /* [n_rows_max], of the logits in `last` */
    i32 n_choices, choices_banned;  /* how many are there already */
    Choice *tops, *host_tops;       /* [n_rows_max][k] */
    i32 n_tops, tops_k;             /* likewise */
    Pass passes[PASSES_MAX];
    Pass *recording;
    bool in_pass;
    u64 clock;
    char error[640];
};

/* What cannot fail has failed: a broken driver or card, or our own bug. */
static void check_(cudaError_t e, const char *what) {
    if (e == cudaSuccess) return;
    fprintf(stderr, "dlm: the GPU failed in %s: %s; --device cpu does without it\n", what,
            cudaGetErrorString(e));
    fflush(stderr);
    _Exit(1);
}

/* Blocks for n things, `each` of them a block. In grids rows come first: of x there may be 2^31 blocks,
 * of y and z 65535. */
static u32 blocks_of_(i64 n, i64 each) {
    return (u32)((n + each - 1) / each);
}

static void *device_alloc_(u64 n) {
    void *p = NULL;
    if (cudaMalloc(&p, n ? n : 1) == cudaSuccess) return p;
    cudaGetLastError(); /* a refusal is no fault */
    return NULL;
}

/* ---- what is pending ---- */

static u32 turn_heads_(const Turn &turn) {
    return turn.x ? (u32)turn.n_head : 0;
}

static void launch_turns_(Cuda *c, const Turn &q, const Turn &k, const Store &store,
                          const DlmRow *rows, i32 n_rows) {
    u32 n_k = store.n_head ? (u32)store.n_head : turn_heads_(k);
    dim3 grid((u32)n_rows, turn_heads_(q) + n_k + (u32)store.n_head);
    LAUNCH(c, turn_and_store, grid, WARP, q, k, store, rows);
}

/* Launches what is pending. */
static void settle_(Cuda *c) {
    Pending p = c->pending;
    c->pending.kind = PENDING_NONE;
    Store nothing = {};
    if (p.kind == PENDING_ADD)
        LAUNCH(c, add_or_gate<BEFORE_ADD>, blocks_of_(p.n, ROW_THREADS), ROW_THREADS, p.y, p.x, p.n,
               0);
    if (p.kind == PENDING_GATE)
        LAUNCH(c, add_or_gate<BEFORE_GATE>, blocks_of_(p.n, ROW_THREADS), ROW_THREADS, p.y, p.x,
               p.n, p.act);
    for (i32 i = 0; p.kind == PENDING_TURN && i < p.n_turns; i++)
        launch_turns_(c, p.turns[i], Turn(), nothing, p.rows, p.n_rows);
}

/* The operation writes y: what was derived from its old content is void. */
static void writes_(Cuda *c, const void *y) {
    if (y == c->int8_of) c->int8_of = NULL;
}

/* ---- memory ---- */

static void forget_passes_(Cuda *c) { /* they hold addresses */
    for (i32 i = 0; i < PASSES_MAX; i++) {
        if (c->passes[i].graph)
            check_(cudaGraphExecDestroy(c->passes[i].graph), "forgetting a pass");
        c->passes[i] = Pass();
    }
}

static void cuda_sync(void *self) {
    Cuda *c = (Cuda *)self;
    settle_(c);
    check_(cudaStreamSynchronize(c->stream), "waiting");
}

static void *cuda_alloc(void *self, u64 n_bytes) {
    Cuda *c = (Cuda *)self;
    forget_passes_(c);
    void *p = device_alloc_(n_bytes);
    if (p) check_(cudaMemsetAsync(p, 0, n_bytes, c->stream), "clearing memory");
    return p;
}

static void cuda_free(void *self, void *p) {
    if (!p) return;
    cuda_sync(self);
    forget_passes_((Cuda *)self);
    check_(cudaFree(p), "freeing memory");
}

static void cuda_upload(void *self, void *dst, const void *src, u64 n_bytes) {
    Cuda *c = (Cuda *)self;
    settle_(c);
    writes_(c, dst);
    check_(cudaMemcpyAsync(dst, src, n_bytes, cudaMemcpyHostToDevice, c->stream), "an upload");
    check_(cudaStreamSynchronize(c->stream), "an upload"); /* src is the caller's again */
}

static void cuda_download(void *self, void *dst, const void *src, u64 n_bytes) {
    Cuda *c = (Cuda *)self;
    settle_(c);
    check_(cudaMemcpyAsync(dst, src, n_bytes, cudaMemcpyDeviceToHost, c->stream), "a download");
    check_(cudaStreamSynchronize(c->stream), "a download");
}

static const char *refused_(Cuda *c, const char *what, u64 n_bytes) {
    size_t free = 0, total = 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) cudaGetLastError();
    snprintf(c->error, sizeof c->error,
             "out of memory on the GPU for %s: %.1f MiB were refused, %.1f of %.1f MiB are free",
             what, (double)n_bytes / 1048576.0, (double)free / 1048576.0,
             (double)total / 1048576.0);
    return c->error;
}

/* What cudaMalloc takes for n bytes: beyond a MiB, pages of 2 MiB. */
static u64 taken_(u64 n) {
    return (u64)round_up((i64)n, n >= (u64)1 << 20 ? (i64)2 << 20 : 512);
}

/* The scratch of a backend, as data: where it is kept, rows, bytes each; 0 rows: not needed. Zeroed, so
 * that rows past the last are finite. */
struct Scratch {
    void *at; /* of a pointer to device memory */
    i64 n_rows, each;
};

#define SCRATCH_MAX 14

static void scratch_plan_(Cuda *c, i64 n_rows_max, i64 n_in_max, Scratch plan[SCRATCH_MAX]) {
    i64 rows = round_up(n_rows_max, TILED_ROWS), in = round_up(n_in_max, 256);
    i64 int8 = c->needs & NEEDS_INT8 ? rows : 0, blocks = c->needs & NEEDS_BLOCKS ? rows : 0;
    i64 halves = c->needs & (NEEDS_F16 | NEEDS_BF16) ? rows : 0;
    i64 part = rows > 64 * ATTEND_SPLITS ? rows : 64 * ATTEND_SPLITS;
    i64 set = rows * (i64)(sizeof(DlmRow) + sizeof(AttendTile));
    const Scratch all[SCRATCH_MAX] = {
        {&c->int8.q, int8, in},
        {&c->int8.inv, int8, 4},
        {&c->int8.sum, int8, 4},
        {&c->int8.sums, int8, in / 64 * 4},
        {&c->blocks.q, blocks, in},
        {&c->blocks.d, blocks, in / 32 * 4},
        {&c->blocks.sums, blocks, in / 16 * 2},
        {&c->halves.planes, halves, (c->needs & NEEDS_BF16 ? 3 : 2) * in * 2},
        {&c->halves.factor, halves, 4},
        {&c->part, part,
         5 * in}, /* 4 bytes, times (8 + 2) / 8: heads have 8 elements or more, and 2 */
        {&c->choices, rows, sizeof(Choice)},
        {&c->tops, rows, DLM_TOP_K_MAX * sizeof(Choice)},
        {&c->sets[0].rows, 1, set},
        {&c->sets[1].rows, 1, set},
    };
    c->part_rows = part, c->halves.plane = rows * in;
    memcpy(plan, all, sizeof all);
}

static u64 cuda_scratch_bytes(void *self, i32 n_rows_max, i32 n_in_max) {
    Scratch plan[SCRATCH_MAX];
    u64 n = 0;
    scratch_plan_((Cuda *)self, n_rows_max, n_in_max, plan);
    for (int i = 0; i < SCRATCH_MAX; i++) n += taken_((u64)(plan[i].n_rows * plan[i].each));
    return n;
}

static const char *pinned_(Cuda *c, void *pointer, u64 n_bytes) {
    if (cudaMallocHost((void **)pointer, n_bytes) == cudaSuccess) return NULL;
    cudaGetLastError();
    *(void **)pointer = NULL;
    snprintf(c->error, sizeof c->error,
             "out of memory: %.1f MiB of the host's were refused to the GPU",
             (double)n_bytes / 1048576.0);
    return c->error;
}

static const char *cuda_reserve(void *self, i32 n_rows_max, i32 n_in_max, i32 n_cell_max) {
    Cuda *c = (Cuda *)self;
    const DlmOps *cpu = c->host->cpu;
    u64 rows = (u64)round_up(n_rows_max, TILED_ROWS), y = (u64)(n_rows_max + 1) * sizeof(float);
    Scratch plan[SCRATCH_MAX];
    const char *why = NULL;
    (void)n_cell_max;
    c->n_rows_max = n_rows_max, c->n_in_max = n_in_max;
    scratch_plan_(c, n_rows_max, n_in_max, plan);
    for (int i = 0; !why && i < SCRATCH_MAX; i++) {
        u64 n = (u64)(plan[i].n_rows * plan[i].each);
        void *p = n ? cuda_alloc(c, n) : NULL;
        *(void **)plan[i].at = p;
        if (n && !p) why = refused_(c, "scratch", n);
    }
    if (!why) why = pinned_(c, &c->host_choices, rows * sizeof(Choice));
    if (!why) why = pinned_(c, &c->host_tops, rows * DLM_TOP_K_MAX * sizeof(Choice));
    for (int i = 0; !why && i < 2; i++) {
        RowSet *s = &c->sets[i];
        why = pinned_(c, &s->host_rows, rows * (sizeof(DlmRow) + sizeof(AttendTile)));
        s->tiles = (AttendTile *)(s->rows + rows);
        s->host_tiles = (AttendTile *)(s->host_rows + rows);
    }
    if (why || !c->host_out) return why;
    why = cpu->reserve(cpu->self, n_rows_max, n_in_max, 1); /* a cell: it attends to nothing */
    if (!why) why = pinned_(c, &c->host_x, y * (u64)n_in_max);
    return why ? why : pinned_(c, &c->host_y, y * JOBS_MAX * (u64)c->host_out);
}

static u64 cuda_memory_free(void *self) {
    size_t free = 0, total = 0;
    (void)self;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) cudaGetLastError();
    return free;
}

/* ---- weights ---- */

static const DlmTypeInfo *type_info_(DlmType type) {
    for (size_t i = 0; i < sizeof DLM_TYPES / sizeof *DLM_TYPES; i++)
        if (DLM_TYPES[i].type == type) return &DLM_TYPES[i];
    return DLM_TYPES;
}

/* Turing multiplies no BF16: there such weights become F32. */
static bool widens_(const Cuda *c, DlmType type) {
    return type == DLM_F32 || (type == DLM_BF16 && c->compute < 80);
}

static DlmMatKind kind_of_(const Cuda *c, DlmType type) {
    switch (type) {
    case DLM_F16: return DLM_MAT_F16;
    case DLM_F32:
    case DLM_BF16: return widens_(c, type) ? DLM_MAT_F32 : DLM_MAT_BF16;
    case DLM_TQ1_0:
    case DLM_TQ2_0:
    case DLM_I2_S:
    case DLM_TL1:
    case DLM_TL2:
    case DLM_Q2_0: return DLM_MAT_TERNARY;
    default: return DLM_MAT_BLOCKS;
    }
}

static i32 needs_of_(DlmMatKind kind) {
    static const i32 needs[] = {0, NEEDS_F16, NEEDS_BF16, NEEDS_BLOCKS, NEEDS_INT8};
    return needs[kind];
}

/* Bytes of the device's layout. */
static u64 layout_bytes_(const Cuda *c, DlmType type, i64 n_out, i64 n_in) {
    switch (kind_of_(c, type)) {
    case DLM_MAT_TERNARY: return (u64)ternary_bytes((i32)n_out, (i32)n_in);
    case DLM_MAT_BLOCKS: return (u64)block_mat_bytes(n_out, n_in, type_info_(type)->block);
    case DLM_MAT_F32: return (u64)(round_up(n_out, 16) * round_up(n_in, 32)) * 4;
    default: return (u64)(round_up(n_out, 16) * round_up(n_in, 32)) * 2;
    }
}

/* Ternary blocks may turn out to have a scale each; their number is that of the file's blocks. */
static u64 cuda_mat_bytes(void *self, const DlmTensor *t) {
    Cuda *c = (Cuda *)self;
    DlmMatKind kind = kind_of_(c, t->type);
    i32 block = (i32)type_info_(t->type)->block;
    u64 n = taken_(layout_bytes_(c, t->type, t->n_out, t->n_in));
    if (kind == DLM_MAT_TERNARY && block >= DLM_QK2_0)
        n += taken_((u64)(round_up(t->n_out, 16) * (t->n_in / block)) * sizeof(float));
    c->needs |= needs_of_(kind);
    return n;
}

/* The CPU's tiles, once on the device, are put in our order there. */
static bool load_ternary_(Cuda *c, u8 *to, const DlmMat *cpu) {
    i64 n = round_up(cpu->n_out, 16) * ((cpu->n_in + 15) / 16) * 4;
    i64 n_to = ternary_bytes(cpu->n_out, cpu->n_in);
    u8 *from = (u8 *)device_alloc_((u64)n);
    if (!from) return false;
    cuda_upload(c, from, cpu->data, (u64)n);
    LAUNCH(c, ternary_repack, blocks_of_(n_to, ROW_THREADS), ROW_THREADS, to, from, cpu->n_in,
           n_to);
    cuda_sync(c);
    check_(cudaFree(from), "freeing memory");
    return true;
}

/* Scales of ternary blocks keep the CPU's layout. */
static bool load_scales_(Cuda *c, DlmMat *m, const DlmMat *cpu) {
    if (!cpu->scales) return true;
    u64 n = (u64)round_up(cpu->n_out, 16) * (u64)(cpu->n_in / cpu->scale_block) * sizeof(float);
    m->scales = (const float *)device_alloc_(n);
    if (!m->scales) return false;
    m->owned_scales = (void *)m->scales;
    m->owned_bytes += n;
    cuda_upload(c, m->owned_scales, cpu->scales, n);
    return true;
}

/* A run of rows of scaled blocks, unpacked on the host by all threads. */
struct Unpack {
    const Cuda *c;
    const u8 *data;
    DlmType type;
    i32 block, block_bytes, n_blocks;
    i64 stride, first, n_out;
    u8 *stage; /* as a block_mat of `rows` outputs */
    i64 rows;
};

static void unpack_rows_(void *arg, i32 begin, i32 end, i32 thread) {
    const Unpack *u = (const Unpack *)arg;
    BlockMat m = block_mat(u->stage, u->rows, u->stride);
    (void)thread;
    for (i64 r = begin; r < end; r++) {
        const u8 *row = u->data + (u->first + r) * u->n_blocks * u->block_bytes;
        for (i32 b = 0; u->first + r < u->n_out && b < u->n_blocks; b++) {
            DlmUnpacked v;
            u->c->host->unpack(u->type, row + (i64)b * u->block_bytes, &v);
            i64 at = r * u->stride + (i64)b * u->block;
            for (i32 i = 0; i < u->block; i++)
                m.q[r * u->stride + spread(b * u->block + i)] = v.q[i];
            for (i32 i = 0; i < u->block / 16; i++)
                m.scale[at / 16 + i] = (i8)v.scale[i], m.minimum[at / 16 + i] = (u8)v.minimum[i];
            m.d[at / u->block].x = v.d, m.d[at / u->block].y = v.dmin;
        }
    }
}

static bool load_blocks_(Cuda *c, u8 *to, const DlmMat *cpu) {
    const DlmTypeInfo *info = type_info_(cpu->type);
    i64 stride = round_up(cpu->n_in, 256), n_out = round_up(cpu->n_out, 16);
    i64 rows = round_up((i64)(STAGE_BYTES / (u64)stride) + 1, 16);
    Unpack u = {c,
                (const u8 *)cpu->data,
                cpu->type,
                (i32)info->block,
                (i32)info->bytes,
                cpu->n_in / (i32)info->block,
                stride,
                0,
                cpu->n_out,
                NULL,
                rows < n_out ? rows : n_out};
    u64 n_stage = (u64)block_mat_bytes(u.rows, stride, info->block);
    u.stage = (u8 *)malloc(n_stage);
    BlockMat m = block_mat(to, cpu->n_out, stride), s = block_mat(u.stage, u.rows, stride);
    for (; u.stage && u.first < n_out; u.first += u.rows) {
        i64 n = u.rows < n_out - u.first ? u.rows : n_out - u.first, at = u.first * stride;
        memset(u.stage, 0, n_stage);
        c->host->parallel(c->host->pool, (i32)n, 16, unpack_rows_, &u);
        cuda_upload(c, m.q + at, s.q, (u64)(n * stride));
        cuda_upload(c, m.scale + at / 16, s.scale, (u64)(n * stride / 16));
        cuda_upload(c, m.minimum + at / 16, s.minimum, (u64)(n * stride / 16));
        cuda_upload(c, m.d + at / info->block, s.d, (u64)(n * stride / info->block) * sizeof *s.d);
    }
    bool ok = u.stage != NULL;
    free(u.stage);
    return ok;
}

static bool load_dense_(Cuda *c, u8 *to, const DlmMat *cpu, bool widen) {
    u64 each = cpu->kind == DLM_MAT_F32 ? 4 : 2, row = (u64)cpu->n_in * each;
    u64 pitch = (u64)round_up(cpu->n_in, 32) * (widen ? 4 : each), n = (u64)cpu->n_out;
    u8 *wide = NULL;
    const void *from = cpu->data;
    if (widen && cpu->kind == DLM_MAT_BF16) {
        wide = (u8 *)malloc(n * (u64)cpu->n_in * 4);
        if (!wide) return false;
        for (u64 i = 0; i < n * (u64)cpu->n_in; i++) {
            memset(wide + 4 * i, 0, 2);
            memcpy(wide + 4 * i + 2, (const u8 *)from + 2 * i, 2);
        }
        from = wide, row *= 2;
    }
    if (pitch == row) { /* the usual case, and the quickest from memory that is not pinned */
        cuda_upload(c, to, from, n * row);
    } else {
        check_(cudaMemcpy2DAsync(to, pitch, from, row, row, n, cudaMemcpyHostToDevice, c->stream),
               "an upload");
        check_(cudaStreamSynchronize(c->stream), "an upload");
    }
    free(wide);
    return true;
}

static void cuda_mat_free(void *self, DlmMat *m) {
    const DlmOps *cpu = ((Cuda *)self)->host->cpu;
    if (m->on_host) {
        cpu->mat_free(cpu->self, m);
        return;
    }
    cuda_free(self, m->owned);
    cuda_free(self, m->owned_scales);
    *m = DlmMat();
}

#define OUTPUTS_MAX (8 * 65535) /* what the narrowest grid holds */

/* The CPU's backend reads the tensor and finds what is wrong with it; the result moves over, unless the
 * layer stays there. */
static const char *cuda_mat_load(void *self, DlmMat *m, const DlmTensor *t) {
    Cuda *c = (Cuda *)self;
    DlmOps *cpu = c->host->cpu;
    DlmMat from = {};
    DlmTensor asked = *t;
    bool on_host = t->layer >= 0 && t->layer < c->host->n_layers_host;
    asked.rows_only |= !on_host; /* the CPU need not arrange what it will not multiply by */
    const char *why = cpu->mat_load(cpu->self, &from, &asked);
    if (why) {
        cpu->mat_free(cpu->self, &from);
        return why;
    }
    *m = from;
    if (on_host) {
        m->on_host = true;
        if (m->n_out > c->host_out) c->host_out = m->n_out;
        return NULL;
    }
    if (t->n_out > OUTPUTS_MAX) {
        snprintf(c->error, sizeof c->error,
                 "tensor %s has %lld outputs; on the GPU a matrix has up to %d", t->name,
                 (long long)t->n_out, OUTPUTS_MAX);
        cpu->mat_free(cpu->self, m);
        return c->error;
    }
    u64 n = layout_bytes_(c, t->type, t->n_out, t->n_in);
    u8 *to = (u8 *)cuda_alloc(c, n);
    m->kind = kind_of_(c, t->type);
    m->data = m->owned = to;
    m->owned_bytes = n;
    m->scales = NULL, m->owned_scales = NULL;
    bool ok = to != NULL;
    if (ok && m->kind == DLM_MAT_TERNARY)
        ok = load_ternary_(c, to, &from) && load_scales_(c, m, &from);
    else if (ok && m->kind == DLM_MAT_BLOCKS)
        ok = load_blocks_(c, to, &from);
    else if (ok)
        ok = load_dense_(c, to, &from, m->kind == DLM_MAT_F32);
    cpu->mat_free(cpu->self, &from);
    c->needs |= needs_of_(m->kind);
    if (ok) return NULL;
    cuda_mat_free(c, m);
    return refused_(c, t->name, n);
}

/* ---- rows ---- */

/* Runs of rows of one slot, cut so that a tile's queries fit. */
static void plan_tiles_(RowSet *s, i32 tile_rows) {
    s->n_tiles = 0;
    for (i32 r = 0; tile_rows && r < s->n;) {
        AttendTile t = {r, 0, s->host_rows[r].slot, INT32_MAX, 0};
        for (; t.n < tile_rows && r < s->n && s->host_rows[r].slot == t.slot; r++, t.n++) {
            t.lo = s->host_rows[r].kv_lo < t.lo ? s->host_rows[r].kv_lo : t.lo;
            t.hi = s->host_rows[r].kv_hi > t.hi ? s->host_rows[r].kv_hi : t.hi;
        }
        s->host_tiles[s->n_tiles++] = t;
    }
}

/* Sends the set's rows, and the tiles that attention makes of them. */
static void send_rows_(Cuda *c, RowSet *s) {
    plan_tiles_(s, c->tile_rows);
    u64 bytes = (u64)((u8 *)(s->host_tiles + s->n_tiles) - (u8 *)s->host_rows);
    check_(cudaMemcpyAsync(s->rows, s->host_rows, bytes, cudaMemcpyHostToDevice, c->stream),
           "an upload");
    check_(cudaEventRecord(s->uploaded, c->stream), "an upload");
}

static void upload_rows_(Cuda *c, RowSet *s, const DlmRow *rows, i32 n) {
    check_(cudaEventSynchronize(s->uploaded), "an upload"); /* the pinned copy is free again */
    memcpy(s->host_rows, rows, (size_t)n * sizeof *rows);
    s->n = n;
    send_rows_(c, s);
}

/* The set that holds these rows; uploads them when none does. */
static RowSet *rows_(Cuda *c, const DlmRow *rows, i32 n) {
    for (int i = 0; c->in_pass && i < 2; i++)
        if (c->sets[i].from == rows) return &c->sets[i];
    for (int i = 0; i < 2; i++)
        if (c->sets[i].n == n && !memcmp(c->sets[i].host_rows, rows, (size_t)n * sizeof *rows))
            return &c->sets[i];
    upload_rows_(c, &c->sets[0], rows, n);
    return &c->sets[0];
}

/* ---- passes ---- */

/* The recording of a pass of this shape; else a free place for one, or the least recently used. */
static Pass *find_pass_(Cuda *c, i32 n_rows, i32 n_logits) {
    Pass *oldest = &c->passes[0];
    for (Pass *p = c->passes; p < c->passes + PASSES_MAX; p++) {
        if (p->used && p->n_rows == n_rows && p->n_logits == n_logits &&
            p->n_tiles[0] == c->sets[0].n_tiles && p->n_tiles[1] == c->sets[1].n_tiles)
            return p;
        if (p->used < oldest->used) oldest = p;
    }
    if (oldest->graph) check_(cudaGraphExecDestroy(oldest->graph), "forgetting a pass");
    *oldest = Pass();
    oldest->n_rows = n_rows, oldest->n_logits = n_logits;
    for (int i = 0; i < 2; i++) oldest->n_tiles[i] = c->sets[i].n_tiles;
    return oldest;
}

/* The first pass of a shape runs as it is called, the second is recorded, later ones are replayed;
 * where the CPU has a part, all run as they are called. */
static bool cuda_begin(void *self, const DlmRow *rows, const DlmRow *near, i32 n_rows,
                       i32 n_logits) {
    Cuda *c = (Cuda *)self;
    const DlmRow *from[2] = {rows, near == rows ? NULL : near};
    settle_(c);
    for (int i = 0; i < 2; i++) {
        RowSet *s = &c->sets[i];
        s->from = from[i];
        if (from[i] &&
            (s->n != n_rows || memcmp(s->host_rows, from[i], (size_t)n_rows * sizeof *rows) != 0))
            upload_rows_(c, s, from[i], n_rows);
        if (!from[i]) s->n = s->n_tiles = 0;
    }
    Pass *p = find_pass_(c, n_rows, n_logits);
    bool seen = p->used != 0 && c->tile_rows != 0 && !c->host_out;
    p->used = ++c->clock;
    if (p->graph) {
        check_(cudaGraphLaunch(p->graph, c->stream), "a recorded pass");
        c->last = p->logits, c->last_rows = n_logits, c->last_n = p->n_out;
        c->n_choices = c->n_tops = 0, c->int8_of = NULL;
        return true;
    }
    c->in_pass = true;
    if (seen) {
        c->recording = p;
        c->int8_of = NULL; /* a replay finds nothing ready */
        check_(cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal), "recording");
    }
    return false;
}

static void cuda_end(void *self) {
    Cuda *c = (Cuda *)self;
    Pass *p = c->recording;
    settle_(c);
    c->in_pass = false;
    c->recording = NULL;
    if (!p) return;
    cudaGraph_t graph;
    check_(cudaStreamEndCapture(c->stream, &graph), "recording");
    check_(cudaGraphInstantiate(&p->graph, graph, 0), "recording");
    check_(cudaGraphDestroy(graph), "recording");
    p->logits = (float *)c->last, p->n_out = c->last_n;
    check_(cudaGraphLaunch(p->graph, c->stream), "a recorded pass");
}

/* ---- operations ---- */

static void cuda_embed(void *self, float *y, const DlmMat *w, const DlmRow *rows, i32 n_rows) {
    Cuda *c = (Cuda *)self;
    settle_(c);
    writes_(c, y);
    EmbedMat m = {(const u8 *)w->data,
                  w->scales,
                  w->scale,
                  w->kind,
                  w->n_in,
                  w->n_out,
                  w->scale_block,
                  (i32)type_info_(w->type)->block};
    dim3 grid((u32)n_rows, blocks_of_(w->n_in, ROW_THREADS));
    LAUNCH(c, embed_rows, grid, ROW_THREADS, y, m, rows_(c, rows, n_rows)->rows);
}

static Int8Rows int8_for_(const Cuda *c, i32 n) {
    Int8Rows r = c->int8;
    r.stride = (i32)round_up(n, CHUNK);
    return r;
}

/* norm_rows with what is pending on its input taken along. */
static void launch_norm_(Cuda *c, float *y, const float *x, const float *gain, i32 n_rows, i32 n,
                         float eps, const Int8Rows &out) {
    static void (*const kernels[])(float *, float *, const float *, const float *, i32, float, i32,
                                   Int8Rows) = {norm_rows<BEFORE_NONE>, norm_rows<BEFORE_ADD>,
                                                norm_rows<BEFORE_GATE>};
    Pending p = c->pending;
    bool takes =
        p.y == x && p.n == (i64)n_rows * n && (p.kind == PENDING_ADD || p.kind == PENDING_GATE);
    if (takes)
        c->pending.kind = PENDING_NONE;
    else
        settle_(c);
    void (*kernel)(float *, float *, const float *, const float *, i32, float, i32, Int8Rows) =
        kernels[takes ? (p.kind == PENDING_ADD ? BEFORE_ADD : BEFORE_GATE) : BEFORE_NONE];
    LAUNCH(c, kernel, (u32)n_rows, ROW_THREADS, y, (float *)x, takes ? p.x : x, gain, n, eps, p.act,
           out);
}

/* A norm's result is likely to be multiplied by ternary weights: it is quantized on the way. */
static void cuda_rms_norm(void *self, float *y, const float *x, const float *gain, i32 n_rows,
                          i32 n, float eps) {
    Cuda *c = (Cuda *)self;
    Int8Rows out = {};
    bool quantizes = (c->needs & NEEDS_INT8) && n_rows <= c->n_rows_max && n <= c->n_in_max;
    if (quantizes) out = int8_for_(c, n);
    launch_norm_(c, y, x, gain, n_rows, n, eps, out);
    writes_(c, y);
    if (quantizes) c->int8_of = y, c->int8_rows = n_rows, c->int8_n = n;
}

static void linear_ternary_(Cuda *c, const Jobs &jobs, i32 n_rows, bool scaled) {
    static void (*const stream[][2])(Jobs, Int8Rows, i32,
                                     i32) = {{ternary_stream<1, false>, ternary_stream<1, true>},
                                             {ternary_stream<2, false>, ternary_stream<2, true>},
                                             {ternary_stream<4, false>, ternary_stream<4, true>},
                                             {ternary_stream<8, false>, ternary_stream<8, true>}};
    Int8Rows rows = int8_for_(c, jobs.n_in);
    if (n_rows >= TILED_FROM) {
        dim3 grid(blocks_of_(n_rows, TILED_ROWS), (u32)jobs.n_units);
        void (*kernel)(Jobs, Int8Rows, i32) = scaled ? ternary_tiled<true> : ternary_tiled<false>;
        LAUNCH(c, kernel, grid, 256, jobs, rows, n_rows);
        return;
    }
    i32 split = scaled ? 1 : 2, size = 0;
    while (!scaled && split < STREAM_WARPS && jobs.n_units * split < 16 * c->n_sm) split *= 2;
    while (8 << size < n_rows) size++;
    void (*kernel)(Jobs, Int8Rows, i32, i32) = stream[size][scaled];
    LAUNCH(c, kernel, blocks_of_(jobs.n_units, STREAM_WARPS / split), STREAM_WARPS * WARP, jobs,
           rows, n_rows, split);
}

/* These blocks have minima; the others are symmetric. */
static bool has_minima_(DlmType type) {
    return type == DLM_Q4_1 || type == DLM_Q5_1 || type == DLM_Q2_K || type == DLM_Q4_K ||
           type == DLM_Q5_K;
}

static void linear_blocks_(Cuda *c, const Jobs &jobs, DlmType type, const float *x, i32 n_rows) {
    static void (*const kernels[][2])(Jobs, BlockRows, i32, bool) = {
        {blocks_linear<1, 8>, blocks_linear<1, 1>}, {blocks_linear<4, 8>, blocks_linear<4, 1>}};
    bool large = type_info_(type)->block == 256, many = n_rows > 8;
    BlockRows rows = c->blocks;
    rows.stride = (i32)round_up(jobs.n_in, 256);
    dim3 quantize((u32)n_rows, (u32)rows.stride / 256);
    void (*quantizer)(BlockRows, const float *, i32) =
        large ? quantize_blocks<256> : quantize_blocks<32>;
    LAUNCH(c, quantizer, quantize, WARP, rows, x, jobs.n_in);
    dim3 grid(blocks_of_(n_rows, many ? 32 : 8), blocks_of_(jobs.n_units, large ? BLOCK_WARPS : 2));
    void (*kernel)(Jobs, BlockRows, i32, bool) = kernels[many][large];
    LAUNCH(c, kernel, grid, BLOCK_WARPS * WARP, jobs, rows, n_rows, has_minima_(type));
}

static void linear_halves_(Cuda *c, const Jobs &jobs, bool bf16, const float *x, i32 n_rows) {
    static void (*const kernels[][2])(Jobs, HalfRows,
                                      i32) = {{dense_linear<1, false>, dense_linear<1, true>},
                                              {dense_linear<4, false>, dense_linear<4, true>}};
    HalfRows rows = c->halves;
    rows.stride = (i32)round_up(jobs.n_in, 32);
    void (*splitter)(HalfRows, const float *, i32) = bf16 ? split_rows<true> : split_rows<false>;
    LAUNCH(c, splitter, (u32)n_rows, ROW_THREADS, rows, x, jobs.n_in);
    bool many = n_rows > 8;
    dim3 grid(blocks_of_(n_rows, many ? 32 : 8), (u32)jobs.n_units);
    void (*kernel)(Jobs, HalfRows, i32) = kernels[many][bf16];
    LAUNCH(c, kernel, grid, DENSE_WARPS * WARP, jobs, rows, n_rows);
}

/* Outputs of a unit of work of the kernel that multiplies by w. */
static i32 unit_of_(const DlmMat *w, i32 n_rows) {
    if (w->kind == DLM_MAT_TERNARY) return n_rows >= TILED_FROM ? TILED_OUT : 32;
    return w->kind == DLM_MAT_F32 ? 1 : 16;
}

/* Can one launch make both? */
static bool alike_(const DlmMat *a, const DlmMat *b) {
    if (a->on_host || b->on_host) return a->on_host == b->on_host;
    if (a->kind == DLM_MAT_BLOCKS) return b->type == a->type;
    return a->kind == b->kind && !a->scales == !b->scales;
}

/* Matrices that stayed with the CPU: the rows cross the bus, and return multiplied. What it costs is
 * the CPU's own time, for the rows are few bytes beside the weights; keys, values and attention are the
 * GPU's in all layers, so that they have one home and one law. */
static void linear_on_host_(Cuda *c, const DlmLinear *jobs, i32 n, const float *x, i32 n_rows) {
    const DlmOps *cpu = c->host->cpu;
    DlmLinear host[JOBS_MAX];
    float *at = c->host_y;
    cuda_download(c, c->host_x, x, (u64)n_rows * (u64)jobs[0].w->n_in * sizeof *x);
    for (i32 j = 0; j < n; j++) {
        u64 n_out = (u64)jobs[j].w->n_out;
        host[j] = jobs[j], host[j].y = at;
        at += (u64)n_rows * n_out;
        if (!jobs[j].bias) continue;
        cuda_download(c, at, jobs[j].bias, n_out * sizeof *at);
        host[j].bias = at;
        at += n_out;
    }
    cpu->linear(cpu->self, host, n, c->host_x, n_rows);
    if (cpu->sync) cpu->sync(cpu->self);
    for (i32 j = 0; j < n; j++)
        cuda_upload(c, jobs[j].y, host[j].y, (u64)n_rows * (u64)jobs[j].w->n_out * sizeof *at);
}

static void linear_on_device_(Cuda *c, const DlmLinear *jobs, i32 n, const float *x, i32 n_rows) {
    const DlmMat *w = jobs[0].w;
    Jobs all = {};
    all.n_in = w->n_in, all.n = n;
    for (i32 i = 0; i < n; i++) {
        const DlmLinear *j = &jobs[i];
        Job job = {(const u8 *)j->w->data, j->y,        j->bias,    j->w->scales, j->w->scale,
                   j->w->scale_block,      j->w->n_out, all.n_units};
        all.job[i] = job;
        all.n_units += (i32)blocks_of_(job.n_out, unit_of_(w, n_rows));
    }
    bool ready = c->int8_of == x && c->int8_rows == n_rows && c->int8_n == w->n_in;
    if (w->kind == DLM_MAT_TERNARY && !ready) {
        launch_norm_(c, NULL, x, NULL, n_rows, w->n_in, 0, int8_for_(c, w->n_in));
        c->int8_of = x, c->int8_rows = n_rows, c->int8_n = w->n_in;
    }
    settle_(c);
    if (w->kind == DLM_MAT_TERNARY)
        linear_ternary_(c, all, n_rows, w->scales != NULL);
    else if (w->kind == DLM_MAT_BLOCKS)
        linear_blocks_(c, all, w->type, x, n_rows);
    else if (w->kind == DLM_MAT_F32) {
        dim3 grid(blocks_of_(n_rows, F32_ROWS), blocks_of_(all.n_units, ROW_THREADS / WARP));
        LAUNCH(c, f32_linear, grid, ROW_THREADS, all, x, (i32)round_up(w->n_in, 32), n_rows);
    } else
        linear_halves_(c, all, w->kind == DLM_MAT_BF16, x, n_rows);
}

static void cuda_linear(void *self, const DlmLinear *jobs, i32 n_jobs, const float *x, i32 n_rows) {
    Cuda *c = (Cuda *)self;
    i32 n = 1;
    while (n < n_jobs && n < JOBS_MAX && alike_(jobs[0].w, jobs[n].w)) n++;
    if (jobs[0].w->on_host)
        linear_on_host_(c, jobs, n, x, n_rows);
    else
        linear_on_device_(c, jobs, n, x, n_rows);
    for (i32 j = 0; j < n; j++) writes_(c, jobs[j].y);
    const DlmLinear *last = &jobs[n - 1];
    c->last = last->y, c->last_rows = n_rows, c->last_n = last->w->n_out;
    c->n_choices = c->n_tops = 0;
    if (n < n_jobs) cuda_linear(c, jobs + n, n_jobs - n, x, n_rows);
}

static void wait_for_next_(Cuda *c, PendingKind kind, float *y, const float *x, i64 n, i32 act) {
    settle_(c);
    writes_(c, y);
    Pending p = {};
    p.kind = kind, p.y = y, p.x = x, p.n = n, p.act = act;
    c->pending = p;
}

static void cuda_add(void *self, float *y, const float *x, i64 n) {
    wait_for_next_((Cuda *)self, PENDING_ADD, y, x, n, 0);
}

static void cuda_gate(void *self, float *gate, const float *up, i64 n, DlmAct act) {
    wait_for_next_((Cuda *)self, PENDING_GATE, gate, up, n, act);
}

static void cuda_rope(void *self, float *x, const DlmRow *rows, i32 n_rows, i32 n_head,
                      i32 head_dim, i32 n_rot, const float *turns, DlmRope kind) {
    Cuda *c = (Cuda *)self;
    const DlmRow *on_device = rows_(c, rows, n_rows)->rows;
    Pending *p = &c->pending;
    bool joins =
        p->kind == PENDING_TURN && p->n_turns == 1 && p->rows == on_device && p->turns[0].x != x;
    if (!joins) {
        wait_for_next_(c, PENDING_TURN, x, NULL, 0, 0);
        p->rows = on_device, p->n_rows = n_rows;
    }
    writes_(c, x);
    Turn turn = {x,
                 turns,
                 n_head,
                 head_dim,
                 n_rot,
                 kind == DLM_ROPE_NORM ? 2 : 1,
                 kind == DLM_ROPE_NORM ? 1 : n_rot / 2};
    p->turns[p->n_turns++] = turn;
}

/* First byte of a layer's cells in slot 0, and elements from slot to slot. */
static void *cells_of_(const DlmKv *kv, void *cells, i32 layer, i64 *slot_stride) {
    i64 n = (i64)kv->n_cell * kv->n_head_kv * kv->head_dim;
    *slot_stride = n * kv->n_layer;
    return (u8 *)cells + n * layer * (kv->type == DLM_F32 ? 4 : 2);
}

static void cuda_kv_store(void *self, DlmKv *kv, i32 layer, const float *k, const float *v,
                          const DlmRow *rows, i32 n_rows) {
    Cuda *c = (Cuda *)self;
    const DlmRow *on_device = rows_(c, rows, n_rows)->rows;
    Store s = {};
    s.k_cells = cells_of_(kv, kv->k, layer, &s.slot_stride);
    s.v_cells = cells_of_(kv, kv->v, layer, &s.slot_stride);
    s.k = k, s.v = v, s.n_head = kv->n_head_kv, s.head_dim = kv->head_dim,
    s.f16 = kv->type == DLM_F16;
    Pending p = c->pending;
    bool takes = p.kind == PENDING_TURN && p.rows == on_device;
    Turn q = Turn(), key = Turn();
    for (i32 i = 0; takes && i < p.n_turns; i++) {
        if (p.turns[i].x == k && p.turns[i].n_head == s.n_head)
            key = p.turns[i];
        else if (!q.x)
            q = p.turns[i];
        else
            takes = false;
    }
    if (takes)
        c->pending.kind = PENDING_NONE;
    else
        settle_(c), q = key = Turn();
    launch_turns_(c, q, key, s, on_device, n_rows);
}

static void cuda_attend(void *self, float *out, const float *q, const DlmKv *kv, i32 layer,
                        const DlmRow *rows, i32 n_rows, i32 n_head, float scale) {
    Cuda *c = (Cuda *)self;
    settle_(c);
    writes_(c, out);
    i32 group = n_head / kv->n_head_kv, dim = kv->head_dim;
    Attend a = {};
    a.out = out, a.q = q, a.n_head = n_head, a.n_head_kv = kv->n_head_kv, a.head_dim = dim;
    a.k = cells_of_(kv, kv->k, layer, &a.slot_stride);
    a.v = cells_of_(kv, kv->v, layer, &a.slot_stride);
    a.f16 = kv->type == DLM_F16, a.scale = scale;
    if (!a.f16 || dim % 8 != 0 || dim > ATTEND_DIM_MAX || group > ATTEND_QUERIES) {
        dim3 grid((u32)n_rows, (u32)n_head);
        if (c->tile_rows == 0) c->tile_rows = 1;
        LAUNCH(c, attend_any, grid, WARP, a, rows_(c, rows, n_rows)->rows);
        return;
    }
    RowSet *s = rows_(c, rows, n_rows);
    if (c->tile_rows != ATTEND_QUERIES / group) { /* the first attention of a model */
        c->tile_rows = ATTEND_QUERIES / group;
        forget_passes_(c);
        cuda_sync(c);
        for (int i = 0; i < 2; i++)
            if (c->sets[i].n) send_rows_(c, &c->sets[i]);
    }
    static void (*const kernels[])(Attend, const DlmRow *, const AttendTile *) = {
        attend_tiles<32>, attend_tiles<64>, attend_tiles<96>, attend_tiles<128>};
    void (*kernel)(Attend, const DlmRow *, const AttendTile *) = kernels[(dim - 1) / 32];
    i64 each = round_up(blocks_of_(kv->n_cell, ATTEND_SPLITS), ATTEND_CELLS);
    a.segment = (i32)(each > ATTEND_SEGMENT ? each : ATTEND_SEGMENT);
    i32 n_segments = (i32)blocks_of_(kv->n_cell, a.segment);
    bool split = s->n_tiles * a.n_head_kv < 2 * c->n_sm && (i64)n_rows * n_segments <= c->part_rows;
    a.n_split = split ? n_segments : 1;
    a.part = c->part;
    dim3 grid((u32)s->n_tiles, (u32)a.n_head_kv, (u32)a.n_split), heads((u32)n_rows, (u32)n_head);
    LAUNCH(c, kernel, grid, 128, a, s->rows, s->tiles);
    if (a.n_split > 1) LAUNCH(c, attend_join, heads, WARP, a);
}

static void cuda_gather(void *self, float *y, const float *x, const DlmRow *rows, i32 n_rows,
                        i32 n) {
    Cuda *c = (Cuda *)self;
    settle_(c);
    writes_(c, y);
    dim3 grid((u32)n_rows, blocks_of_(n, ROW_THREADS));
    LAUNCH(c, gather_rows, grid, ROW_THREADS, y, x, rows_(c, rows, n_rows)->rows, n);
}

/* Many slots ask for their rows of one pass's logits, one after the other: the first question is
 * answered for all of them at once, and only these pairs cross the bus. Here: which of the rows that the
 * last product made are these? When they are none of them, they are taken for what it made. */
static i32 row_of_last_(Cuda *c, const float *logits, i32 n_rows, i32 n) {
    i64 first = logits - c->last;
    if (c->last && n == c->last_n && first >= 0 && first % n == 0 &&
        first / n + n_rows <= c->last_rows && c->last_rows <= c->n_rows_max)
        return (i32)(first / n);
    c->last = logits, c->last_rows = n_rows, c->last_n = n, c->n_choices = c->n_tops = 0;
    return 0;
}

static void cuda_top1(void *self, float *logits, i32 n_rows, i32 n, i32 banned, i32 *ids,
                      float *probs) {
    Cuda *c = (Cuda *)self;
    i32 first = row_of_last_(c, logits, n_rows, n);
    if (c->n_choices == 0 || c->choices_banned != banned) {
        settle_(c);
        c->n_tops = 0; /* bans are written */
        LAUNCH(c, top1_rows, (u32)c->last_rows, ROW_THREADS, c->choices, (float *)c->last, n,
               banned);
        cuda_download(c, c->host_choices, c->choices, (u64)c->last_rows * sizeof(Choice));
        c->n_choices = c->last_rows, c->choices_banned = banned;
    }
    for (i32 r = 0; r < n_rows; r++) {
        ids[r] = c->host_choices[first + r].id;
        probs[r] = c->host_choices[first + r].prob;
    }
}

static void cuda_top_k(void *self, const float *logits, i32 n, i32 k, i32 *ids, float *largest) {
    Cuda *c = (Cuda *)self;
    i32 first = row_of_last_(c, logits, 1, n);
    if (c->n_tops == 0 || c->tops_k != k) {
        settle_(c);
        LAUNCH(c, top_rows, (u32)c->last_rows, ROW_THREADS, c->tops, c->last, n, k);
        cuda_download(c, c->host_tops, c->tops, (u64)c->last_rows * (u64)k * sizeof(Choice));
        c->n_tops = c->last_rows, c->tops_k = k;
    }
    for (i32 i = 0; i < k; i++) {
        ids[i] = c->host_tops[(i64)first * k + i].id;
        largest[i] = c->host_tops[(i64)first * k + i].prob;
    }
}

/* ---- ceilings ---- */

static float ms_between_(Cuda *c, cudaEvent_t from, cudaEvent_t to) {
    float ms = 0;
    check_(cudaStreamSynchronize(c->stream), "a measurement");
    check_(cudaEventElapsedTime(&ms, from, to), "a measurement");
    return ms;
}

#define CEILING_TRIES 20

static const char *cuda_ceilings(void *self, double *copy_gbs, double *int8_gmacs,
                                 double *f16_gmacs) {
    Cuda *c = (Cuda *)self;
    u64 n = cuda_memory_free(c) / 4;
    if (n > (u64)1 << 30) n = (u64)1 << 30;
    u8 *from = (u8 *)cuda_alloc(c, n), *to = (u8 *)cuda_alloc(c, n);
    u32 blocks = 8 * (u32)c->n_sm;
    i32 *sink = (i32 *)cuda_alloc(c, (u64)blocks * 256 * 4);
    cudaEvent_t at[4];
    for (int i = 0; i < 4; i++) check_(cudaEventCreate(&at[i]), "a measurement");
    *copy_gbs = *int8_gmacs = *f16_gmacs = 0;
    double macs = (double)blocks * 8 * PEAK_STEPS * PEAK_SUMS * 16 * 8;
    for (int i = 0; from && to && sink && i < CEILING_TRIES; i++) { /* the best that was seen */
        check_(cudaEventRecord(at[0], c->stream), "a measurement");
        check_(cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToDevice, c->stream), "a measurement");
        check_(cudaEventRecord(at[1], c->stream), "a measurement");
        LAUNCH(c, peak_mma<false>, blocks, 256, sink, (u32)i);
        check_(cudaEventRecord(at[2], c->stream), "a measurement");
        LAUNCH(c, peak_mma<true>, blocks, 256, sink, (u32)i);
        check_(cudaEventRecord(at[3], c->stream), "a measurement");
        double gbs = 2 * (double)n / ms_between_(c, at[0], at[1]) / 1e6;
        double int8 = macs * 32 / ms_between_(c, at[1], at[2]) / 1e6;
        double f16 = macs * 16 / ms_between_(c, at[2], at[3]) / 1e6;
        if (gbs > *copy_gbs) *copy_gbs = gbs;
        if (int8 > *int8_gmacs) *int8_gmacs = int8;
        if (f16 > *f16_gmacs) *f16_gmacs = f16;
    }
    for (int i = 0; i < 4; i++) check_(cudaEventDestroy(at[i]), "a measurement");
    bool ok = from && to && sink;
    cuda_free(c, from), cuda_free(c, to), cuda_free(c, sink);
    return ok ? NULL : refused_(c, "the measurement of ceilings", 2 * n);
}

/* ---- door ---- */

static void cuda_close(DlmOps *ops) {
    Cuda *c = (Cuda *)ops->self;
    cuda_sync(c);
    forget_passes_(c);
    Scratch plan[SCRATCH_MAX];
    void *pinned[] = {c->sets[0].host_rows,
                      c->sets[1].host_rows,
                      c->host_choices,
                      c->host_tops,
                      c->host_x,
                      c->host_y};
    scratch_plan_(c, 1, 1, plan);
    for (int i = 0; i < SCRATCH_MAX; i++) cuda_free(c, *(void **)plan[i].at);
    for (size_t i = 0; i < sizeof pinned / sizeof *pinned; i++)
        if (pinned[i]) check_(cudaFreeHost(pinned[i]), "freeing memory");
    for (int i = 0; i < 2; i++) check_(cudaEventDestroy(c->sets[i].uploaded), "closing");
    check_(cudaStreamDestroy(c->stream), "closing");
    free(c);
    *ops = DlmOps();
}

extern "C" const char *dlm_cuda_devices(DlmCudaDevice *devices, int n_max, int *n) {
    *n = 0;
    cudaError_t e = cudaGetDeviceCount(n);
    if (e == cudaErrorInsufficientDriver)
        return "no NVIDIA driver that this program can use is here";
    if (e != cudaSuccess) return cudaGetErrorString(e);
    for (int i = 0; i < *n && i < n_max; i++) {
        cudaDeviceProp p;
        size_t free = 0, total = 0;
        if ((e = cudaGetDeviceProperties(&p, i)) != cudaSuccess) return cudaGetErrorString(e);
        if (cudaSetDevice(i) != cudaSuccess || cudaMemGetInfo(&free, &total) != cudaSuccess)
            cudaGetLastError();
        DlmCudaDevice *d = &devices[i];
        snprintf(d->name, sizeof d->name, "%s", p.name);
        d->major = p.major, d->minor = p.minor, d->n_sm = p.multiProcessorCount;
        d->memory = p.totalGlobalMem, d->memory_free = free;
    }
    if (*n > n_max) *n = n_max;
    return *n ? NULL : "no NVIDIA GPU is here";
}

extern "C" const char *dlm_cuda_open(DlmOps *ops, const DlmCudaHost *host) {
    static char too_old[400];
    DlmCudaDevice d = {};
    int n = 0;
    const char *why = dlm_cuda_devices(&d, 1, &n);
    if (why) return why;
    if (10 * d.major + d.minor < 75) {
        snprintf(too_old, sizeof too_old,
                 "%s is of compute capability %d.%d; 7.5 or later is needed", d.name, d.major,
                 d.minor);
        return too_old;
    }
    Cuda *c = (Cuda *)calloc(1, sizeof *c);
    if (!c) return "out of memory";
    c->host = host, c->n_sm = d.n_sm, c->compute = 10 * d.major + d.minor;
    cudaError_t e = cudaSetDevice(0);
    c->overlaps = e == cudaSuccess && c->compute >= 90 && takes_turns_((const void *)embed_rows);
    if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking);
    for (int i = 0; i < 2 && e == cudaSuccess; i++)
        e = cudaEventCreateWithFlags(&c->sets[i].uploaded, cudaEventDisableTiming);
    if (e != cudaSuccess) {
        free(c);
        return cudaGetErrorString(e);
    }
    DlmOps all = {};
    all.name = "cuda", all.self = c, all.close = cuda_close, all.reserve = cuda_reserve;
    all.alloc = cuda_alloc, all.free = cuda_free, all.upload = cuda_upload;
    all.download = cuda_download, all.mat_load = cuda_mat_load, all.mat_free = cuda_mat_free;
    all.embed = cuda_embed, all.rms_norm = cuda_rms_norm, all.linear = cuda_linear;
    all.add = cuda_add, all.gate = cuda_gate, all.rope = cuda_rope, all.kv_store = cuda_kv_store;
    all.attend = cuda_attend, all.gather = cuda_gather, all.top1 = cuda_top1;
    all.top_k = cuda_top_k;
    all.exps = host->cpu->exps; /* in host memory */
    all.begin = cuda_begin, all.end = cuda_end, all.sync = cuda_sync;
    all.memory_free = cuda_memory_free, all.mat_bytes = cuda_mat_bytes;
    all.scratch_bytes = cuda_scratch_bytes, all.ceilings = cuda_ceilings;
    *ops = all;
    return NULL;
}

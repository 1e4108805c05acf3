/* dlm_kernels.h - the engine-room contract: block layouts, matrices in memory, the two op tables.
 *
 * Shared by C (dlm.c), CUDA (dlm_cuda.cu) and the tests. Types, asserts and one table of constants:
 * no code. Layout sources: the GGUF specification and ggml's published block structures; I2_S from
 * BitNet.cpp. */
#ifndef DLM_KERNELS_H
#define DLM_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define DLM_STATIC_ASSERT(cond, text) static_assert(cond, text)
extern "C" {
#else
#define DLM_STATIC_ASSERT(cond, text) _Static_assert(cond, text)
#endif

/* ---- tensor types, by their GGUF id ---- */

typedef enum {
    DLM_F32 = 0,
    DLM_F16 = 1,
    DLM_Q4_0 = 2,
    DLM_Q4_1 = 3,
    DLM_Q5_0 = 6,
    DLM_Q5_1 = 7,
    DLM_Q8_0 = 8,
    DLM_Q2_K = 10,
    DLM_Q3_K = 11,
    DLM_Q4_K = 12,
    DLM_Q5_K = 13,
    DLM_Q6_K = 14,
    DLM_IQ4_NL = 20,
    DLM_IQ4_XS = 23,
    DLM_BF16 = 30,
    DLM_TQ1_0 = 34,
    DLM_TQ2_0 = 35,
    /* Mainline and the BitNet fork gave 36 to 39 away each for its own: told apart by exact size. */
    DLM_I2_S = 36,
    DLM_TL1 = 38,
    DLM_MXFP4 = 39,
    DLM_Q2_0 = 42,
    DLM_TL2 = 139 /* 39 in the file, as MXFP4 */
} DlmType;

/* How the 2-bit codes of an I2_S tensor lie in its bytes; the file does not record it. */
typedef enum {
    DLM_I2S_128,  /* x86 and official files: 128 elements in 32 bytes, element p + 32 j in bits
                     7-2j..6-2j */
    DLM_I2S_64,   /* the ARM quantizer: 64 elements in 16 bytes, element p + 16 j likewise */
    DLM_I2S_ROW4, /* four rows in a byte: row r of the group in bits 7-2r..6-2r, one byte per column
                   */
    DLM_I2S_SEQ   /* sequential: element 4 i + j of the tensor in bits 2j..2j+1 of byte i */
} DlmI2sLayout;

/* How a TL1 or TL2 matrix was cut up for BitNet.cpp's kernels; the file does not record it either. */
typedef struct {
    int32_t bm, bk; /* outputs and inputs of a tile */
    int32_t bmm;    /* outputs that a kernel takes together; 32 for TL2 */
} DlmTlTiling;

/* ---- block layouts in the file. d is an IEEE binary16 scale. ---- */

#define DLM_QK8_0 32
typedef struct {
    uint16_t d;
    int8_t q[DLM_QK8_0]; /* value = d * q */
} DlmBlockQ8_0;
DLM_STATIC_ASSERT(sizeof(DlmBlockQ8_0) == 34, "Q8_0 is 34 bytes per 32 weights");

typedef struct {
    uint16_t d;
    uint8_t qs[16]; /* elements j and j + 16 in the low and high half of byte j; value = d * (code -
                       8) */
} DlmBlockQ4_0;
DLM_STATIC_ASSERT(sizeof(DlmBlockQ4_0) == 18, "Q4_0 is 18 bytes per 32 weights");

typedef struct {
    uint16_t d, m; /* value = d * code + m */
    uint8_t qs[16];
} DlmBlockQ4_1;
DLM_STATIC_ASSERT(sizeof(DlmBlockQ4_1) == 20, "Q4_1 is 20 bytes per 32 weights");

typedef struct {
    uint16_t d;
    uint8_t qh[4]; /* bit j is bit 4 of element j; value = d * (code - 16) */
    uint8_t qs[16];
} DlmBlockQ5_0;
DLM_STATIC_ASSERT(sizeof(DlmBlockQ5_0) == 22, "Q5_0 is 22 bytes per 32 weights");

typedef struct {
    uint16_t d, m;
    uint8_t qh[4];
    uint8_t qs[16]; /* value = d * code + m */
} DlmBlockQ5_1;
DLM_STATIC_ASSERT(sizeof(DlmBlockQ5_1) == 24, "Q5_1 is 24 bytes per 32 weights");

/* The K types: 256 weights, a scale (and minimum) for each 16 or 32 of them, all times d (and
 * dmin). */
#define DLM_QK_K 256
typedef struct {
    uint8_t scales[16]; /* per 16 weights: scale in the low half, minimum in the high half */
    uint8_t qs[64];     /* element 128 n + 32 j + l in bits 2j.. of byte 32 n + l */
    uint16_t d, dmin;   /* value = d * scale * code - dmin * minimum */
} DlmBlockQ2_K;
DLM_STATIC_ASSERT(sizeof(DlmBlockQ2_K) == 84, "Q2_K is 84 bytes per 256 weights");

typedef struct {
    uint8_t hmask[32];  /* bit 4 n + j of byte l: element 128 n + 32 j + l is not lowered by 4 */
    uint8_t qs[64];     /* as in Q2_K */
    uint8_t scales[12]; /* 16 scales of 6 bits, offset 32 */
    uint16_t d;
} DlmBlockQ3_K;
DLM_STATIC_ASSERT(sizeof(DlmBlockQ3_K) == 110, "Q3_K is 110 bytes per 256 weights");

typedef struct {
    uint16_t d, dmin;
    uint8_t scales[12]; /* 8 scales and 8 minima of 6 bits, per 32 weights */
    uint8_t qs[128];    /* elements 64 k + l and 64 k + 32 + l in the halves of byte 32 k + l */
} DlmBlockQ4_K;
DLM_STATIC_ASSERT(sizeof(DlmBlockQ4_K) == 144, "Q4_K is 144 bytes per 256 weights");

typedef struct {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qh[32]; /* bit 2 k (2 k + 1) of byte l: bit 4 of element 64 k + l (64 k + 32 + l) */
    uint8_t qs[128];
} DlmBlockQ5_K;
DLM_STATIC_ASSERT(sizeof(DlmBlockQ5_K) == 176, "Q5_K is 176 bytes per 256 weights");

typedef struct {
    uint8_t ql[128];   /* low 4 bits: elements 128 n + l, +32, and in the high halves +64, +96 */
    uint8_t qh[64];    /* high 2 bits of the same four, from the low bits up */
    int8_t scales[16]; /* per 16 weights */
    uint16_t d;        /* value = d * scale * (code - 32) */
} DlmBlockQ6_K;
DLM_STATIC_ASSERT(sizeof(DlmBlockQ6_K) == 210, "Q6_K is 210 bytes per 256 weights");

typedef struct {
    uint16_t d;
    uint8_t qs[16]; /* indexes into a table of 16 levels, placed as in Q4_0 */
} DlmBlockIQ4_NL;
DLM_STATIC_ASSERT(sizeof(DlmBlockIQ4_NL) == 18, "IQ4_NL is 18 bytes per 32 weights");

typedef struct {
    uint16_t d;
    uint16_t scales_h;   /* high 2 bits of 8 scales, offset 32, per 32 weights */
    uint8_t scales_l[4]; /* their low 4 bits */
    uint8_t qs[128];     /* 8 runs of 32 weights, placed as in IQ4_NL */
} DlmBlockIQ4_XS;
DLM_STATIC_ASSERT(sizeof(DlmBlockIQ4_XS) == 136, "IQ4_XS is 136 bytes per 256 weights");

typedef struct {
    uint8_t e;      /* value = 2^(e - 128) * level */
    uint8_t qs[16]; /* indexes into a table of 16 levels, placed as in Q4_0 */
} DlmBlockMXFP4;
DLM_STATIC_ASSERT(sizeof(DlmBlockMXFP4) == 17, "MXFP4 is 17 bytes per 32 weights");

#define DLM_QK_T 256
typedef struct {
    uint8_t qs[48]; /* 5 trits a byte: elements 32 n + m (m < 32), then 160 + 16 n + m (m < 16) */
    uint8_t qh[4];  /* 4 trits a byte: elements 240 + 4 n + j */
    uint16_t d;     /* value = d * (trit - 1) */
} DlmBlockTQ1_0;
DLM_STATIC_ASSERT(sizeof(DlmBlockTQ1_0) == 54, "TQ1_0 is 54 bytes per 256 weights");

typedef struct {
    uint8_t
        qs[64]; /* group g of 128: byte 32 g + m holds element 128 g + 32 l + m in bits 2l..2l+1 */
    uint16_t d; /* value = d * (code - 1) */
} DlmBlockTQ2_0;
DLM_STATIC_ASSERT(sizeof(DlmBlockTQ2_0) == 66, "TQ2_0 is 66 bytes per 256 weights");

#define DLM_QK2_0 64
typedef struct {
    uint16_t d;
    uint8_t qs[16]; /* element j in bits 2(j%4).. of byte j/4; value = d * (code - 1), codes 0..3 */
} DlmBlockQ2_0;
DLM_STATIC_ASSERT(sizeof(DlmBlockQ2_0) == 18, "Q2_0 is 18 bytes per 64 weights");

/* I2_S: n/4 bytes of codes (0 = -1, 1 = 0, 2 = +1), then 32 bytes that begin with one f32 scale. TL1
 * has the same size and tail; TL2 less (gguf.c) and the same tail; their codes are in quant.c. */
#define DLM_I2S_TAIL 32

typedef struct {
    DlmType type;
    const char *name;
    uint32_t block; /* weights per block */
    uint32_t bytes; /* bytes per block */
} DlmTypeInfo;

/* Every type that dlm reads. I2_S, TL1 and TL2 have no blocks: gguf.c computes their sizes. */
static const DlmTypeInfo DLM_TYPES[] = {
    {DLM_F32, "F32", 1, 4},       {DLM_F16, "F16", 1, 2},         {DLM_BF16, "BF16", 1, 2},
    {DLM_Q4_0, "Q4_0", 32, 18},   {DLM_Q4_1, "Q4_1", 32, 20},     {DLM_Q5_0, "Q5_0", 32, 22},
    {DLM_Q5_1, "Q5_1", 32, 24},   {DLM_Q8_0, "Q8_0", 32, 34},     {DLM_Q2_K, "Q2_K", 256, 84},
    {DLM_Q3_K, "Q3_K", 256, 110}, {DLM_Q4_K, "Q4_K", 256, 144},   {DLM_Q5_K, "Q5_K", 256, 176},
    {DLM_Q6_K, "Q6_K", 256, 210}, {DLM_IQ4_NL, "IQ4_NL", 32, 18}, {DLM_IQ4_XS, "IQ4_XS", 256, 136},
    {DLM_MXFP4, "MXFP4", 32, 17}, {DLM_TQ1_0, "TQ1_0", 256, 54},  {DLM_TQ2_0, "TQ2_0", 256, 66},
    {DLM_Q2_0, "Q2_0", 64, 18},   {DLM_I2_S, "I2_S", 4, 1},       {DLM_TL1, "TL1", 4, 1},
    {DLM_TL2, "TL2", 32, 8},
};

/* A block of any of the types Q4_0 to MXFP4, unpacked: value i = d * scale[i/16] * q[i] - dmin *
 * minimum[i/16]. The common form that the integer kernels multiply by; blocks of 32 use its first
 * part. */
typedef struct {
    int8_t q[DLM_QK_K];
    int16_t scale[DLM_QK_K / 16], minimum[DLM_QK_K / 16];
    float d, dmin;
} DlmUnpacked;

/* ---- a matrix ready for the engine ---- */

/* A weight as it lies in the file: [n_out][n_in], n_in contiguous. */
typedef struct {
    const char *name; /* NUL-terminated, for messages */
    int32_t layer;    /* -1: of none; only a GPU that holds some of them asks */
    DlmType type;
    DlmI2sLayout i2s_layout; /* for DLM_I2_S */
    DlmTlTiling tl;          /* for DLM_TL1 and DLM_TL2 */
    int64_t n_in, n_out;
    const uint8_t *data;
    uint64_t n_bytes;
    float extra_scale; /* the optional `.scale` tensor's value, else 1 */
    bool rows_only;    /* its rows are looked up, nothing is multiplied by it */
} DlmTensor;

/* The in-memory ternary layout. A tile is DLM_TILE_OUT outputs by DLM_TILE_IN inputs in 64 bytes:
 * byte 4 o + k holds the codes of output o, inputs 4 l + k, in bits 2l..2l+1 (o < 16, k < 4, l <
 * 4). So one 64-byte load, shifted by 2 l and masked, is 16 outputs by 4 consecutive inputs: the
 * operand of one 8-bit dot-product instruction whose other operand is 4 activations, broadcast.
 * Tiles of one group of 16 outputs are contiguous along the inputs. Codes are 0, 1, 2 (value + 1), in
 * Q2_0 files also 3; padding holds code 1, a zero. */
#define DLM_TILE_OUT 16
#define DLM_TILE_IN 16
#define DLM_TILE_BYTES 64

typedef enum {
    DLM_MAT_F32,
    DLM_MAT_F16,
    DLM_MAT_BF16,
    DLM_MAT_BLOCKS, /* Q4_0 to MXFP4, in place; strips of them may lie in `owned` */
    DLM_MAT_TERNARY
} DlmMatKind;

typedef struct {
    DlmMatKind kind;
    DlmType type; /* of the file */
    int32_t n_in, n_out;
    const void *data;    /* rows as in the file; TERNARY: tiles as above */
    float scale;         /* TERNARY with one scale for the matrix (the usual case) */
    const float *scales; /* TERNARY with a scale per block of inputs, else NULL:
                            [n_out/16 rounded up][n_blocks][16] f32 */
    int32_t scale_block; /* inputs per entry of scales: 64 or 256 */
    bool twos;           /* TERNARY: some code is 3 */
    void *owned; /* what mat_free gives back, or NULL when data lies in the file's mapping */
    void *owned_scales;
    uint64_t owned_bytes; /* of both */
    bool on_host;         /* a GPU's backend left it to the CPU's */
} DlmMat;

/* ---- what a row of a forward pass is ---- */

/* One row of a batch: one token at one place of one slot. It writes its key and value to `cell`,
 * then attends to the cells [kv_lo, kv_hi) of its slot: every mask the house knows (causal, block,
 * full, window, DualCache) is such a range. */
typedef struct {
    int32_t token;  /* vocabulary id */
    int32_t pos;    /* RoPE position */
    int32_t slot;   /* which KV cache */
    int32_t cell;   /* where in that cache this row's key and value go */
    int32_t kv_lo;  /* first visible cell */
    int32_t kv_hi;  /* one past the last visible cell */
    int32_t logits; /* index of this row's logits in the output, or -1 */
} DlmRow;

/* The KV cache, keys and values apart. How the cells lie is the backend's own affair; CPU:
 * [n_slot][n_layer][n_head_kv][n_cell][head_dim], so that the cells that a head reads are one run. */
typedef struct {
    DlmType type; /* DLM_F16, DLM_Q8_0 on the CPU, or DLM_F32 for comparisons with f32 references */
    void *k, *v;
    int32_t n_slot, n_layer, n_cell;
    int32_t n_head_kv, head_dim;
} DlmKv;

typedef enum {
    DLM_ROPE_NORM, /* rotates elements 2i and 2i+1: GGUF `llama`, whose q and k rows are permuted to
                      suit */
    DLM_ROPE_NEOX /* rotates elements i and i + n/2: qwen2, bitnet, every Hugging Face checkpoint */
} DlmRope;
typedef enum { DLM_ACT_SILU /* x / (1 + exp(-x)) */, DLM_ACT_RELU2 /* max(x, 0)^2 */ } DlmAct;

/* ---- the kernel table: one CPU level. Shapes are row-major; strides are in elements. ----
 *
 * Law: kern_ref.c. Integer parts equal it bit for bit at every level. The float kernels of this house
 * add in a fixed order of 16 lanes, with fused multiply-adds where the law has them, so they equal it
 * bit for bit too, and each output row depends on its own input row alone: not on the batch, the
 * level or the thread count. */
#define DLM_ATTEND_Q 16
#define DLM_STRIP_OUT 32  /* outputs of a strip; see strip_bytes */
#define DLM_TABLE_ROWS 16 /* see ternary_tables */
typedef struct {
    const char *name;
    /* q[n] = clamp(rint(x * s), -128, 127), s = 127 / max(max|x|, 1e-5); *inv_scale = 1 / s; *sum =
     * sum of q */
    void (*quantize_row)(int8_t *q, float *inv_scale, int32_t *sum, const float *x, int32_t n);
    /* y[m][o] for m < n_rows, o in [out_lo, out_hi) (out_lo a multiple of 16); q is
     * [n_rows][q_stride] int8, zero-padded to q_stride, a multiple of 16 */
    void (*ternary)(float *y, int64_t y_stride, const DlmMat *w, int32_t out_lo, int32_t out_hi,
                    const int8_t *q, int64_t q_stride, const float *inv_scale, const int32_t *sum,
                    int32_t n_rows);
    /* The same for at most DLM_TABLE_ROWS rows, through tables of what the activations can make: for
     * whole ranges of hundreds of outputs, of a matrix with one scale and no twos. scratch: tables_bytes
     * of the thread, 64-byte aligned. NULL: `ternary` is as fast for any number of rows */
    void (*ternary_tables)(float *y, int64_t y_stride, const DlmMat *w, int32_t out_lo,
                           int32_t out_hi, const int8_t *q, int64_t q_stride,
                           const float *inv_scale, int32_t n_rows, void *scratch);
    int64_t tables_bytes; /* a multiple of 64 */
    /* Activations for DLM_MAT_BLOCKS, in blocks of `block` inputs (32 or 256): d = max|x| / 127, q
     * = rint(x / d), sums[i] = sum of q over inputs 16 i .. 16 i + 15, of blocks of 256 over 8 i ..
     * 8 i + 7. Zeros follow up to a whole run of 256 inputs, n_run in all; within a run, q lies in
     * an order of the level's own */
    void (*quantize_blocks)(int8_t *q, float *d, int16_t *sums, const float *x, int32_t n,
                            int32_t block);
    /* y[m][o] = sum over blocks b, rising, of dw_b * d[m][b] * (sum of scale * q_w * q) - dmin_b *
     * d[m][b] * (sum of minimum * sums), both sums exact integers; q: [n_rows][n_run], d:
     * [n_rows][n_run / block], sums: [n_rows][n_run / 16] or [n_rows][n_run / 8] */
    void (*blocks)(float *y, int64_t y_stride, const DlmMat *w, int32_t out_lo, int32_t out_hi,
                   const int8_t *q, const float *d, const int16_t *sums, int32_t n_rows);
    /* How the level wants a matrix of blocks: bytes of DLM_STRIP_OUT outputs as `blocks` multiplies
     * by them when they lie in w->owned (64-byte aligned), 0: as in the file. `strip` puts outputs
     * out .. out + 31 there, out a multiple of 32. NULL: no type */
    int64_t (*strip_bytes)(const DlmMat *w);
    void (*strip)(uint8_t *to, const DlmMat *w, int32_t out);
    /* y[m][o] = dot(w row o, x row m) in f32, for w of kind F32, F16, BF16 */
    void (*dense)(float *y, int64_t y_stride, const DlmMat *w, int32_t out_lo, int32_t out_hi,
                  const float *x, int64_t x_stride, int32_t n_rows);
    /* y = x / sqrt(mean(x^2) + eps) * gain */
    void (*rms_norm)(float *y, const float *x, const float *gain, int32_t n, float eps);
    /* quantize_row and rms_norm of four rows that follow each other, side by side; NULL: row by row */
    void (*quantize_row4)(int8_t *q, int64_t q_stride, float *inv_scale, int32_t *sum, const float *x,
                          int32_t n);
    void (*rms_norm4)(float *y, const float *x, const float *gain, int32_t n, float eps);
    /* gate[i] = act(gate[i]) * up[i] */
    void (*gate)(float *gate, const float *up, int32_t n, DlmAct act);
    /* y[i] += x[i] */
    void (*add)(float *y, const float *x, int32_t n);
    /* rotates the heads of one row, as DlmOps.rope; turn: [n_rot/2][2] of its position */
    void (*rope)(float *x, int32_t n_head, int32_t head_dim, int32_t n_rot, const float *turn,
                 DlmRope kind);
    void (*to_f16)(uint16_t *h, const float *x, int32_t n);
    void (*from_f16)(float *x, const uint16_t *h, int32_t n);
    /* n a multiple of 32: d = max|x| / 127 as F16, q = clamp(rint(x * (127 / max|x|)), -127, 127) */
    void (*to_q8_0)(DlmBlockQ8_0 *b, const float *x, int32_t n);
    /* Attention of n_q <= DLM_ATTEND_Q queries to one head's cells, query i to [lo[i], hi[i]):
     * out[i][head_dim] = sum over c of softmax_c(q[i] . k_c * scale) v_c. k, v: [cells][head_dim] F16,
     * F32, or Q8_0 of whole blocks. scores: scratch, n_q rows of scores_stride floats, each with room
     * for the cells from the lowest lo to the highest hi. next: the keys that the next call begins
     * with, asked for early, or NULL */
    void (*attend)(float *const *out, const float *const *q, const int32_t *lo, const int32_t *hi,
                   int32_t n_q, const void *k, const void *v, DlmType type, int32_t head_dim,
                   float scale, float *scores, int64_t scores_stride, const void *next);
    /* index of the largest logit (lowest on ties) and sum over i of exp(logit_i - that logit) */
    int32_t (*top1)(const float *logits, int32_t n, float *sum_exp);
    /* y[i] = exp((x[i] - max) * scale), 0 below -87.3; y may be x */
    void (*exps)(float *y, const float *x, float max, float scale, int32_t n);
    /* The level's ceiling: runs n steps of nothing but its 8-bit multiply-adds, in registers.
     * Returns the number of multiply-adds in one step. NULL where it was not written. */
    int64_t (*peak)(int64_t n);
} DlmKernels;

/* ---- the backend op table: what graph.c is written against. CPU: kern.c. CUDA: dlm_cuda.cu. ----
 *
 * Pointers named x, y, q, k, v, out are buffers of the backend (`alloc`), f32, [n_rows][n]. Calls
 * are ordered: each sees the results of the ones before. A call cannot fail once its buffers exist,
 * except where it returns an error text (static or owned by the backend; NULL means success). */
typedef struct {
    const DlmMat *w;
    const float *bias; /* [w->n_out] or NULL */
    float *y;          /* [n_rows][w->n_out] */
} DlmLinear;

#define DLM_TOP_K_MAX 256
typedef struct DlmOps {
    const char *name;
    void *self;
    /* scratch for the largest forward: rows, the widest linear input, cells of one slot's cache */
    const char *(*reserve)(void *self, int32_t n_rows_max, int32_t n_in_max, int32_t n_cell_max);
    void *(*alloc)(void *self, uint64_t n_bytes); /* zeroed; NULL when refused */
    void (*free)(void *self, void *p);
    void (*upload)(void *self, void *dst, const void *src, uint64_t n_bytes);
    void (*download)(void *self, void *dst, const void *src, uint64_t n_bytes);
    bool on_host; /* buffers are host memory: logits may be read and written in place */
    const char *(*mat_load)(void *self, DlmMat *m, const DlmTensor *t);
    void (*mat_free)(void *self, DlmMat *m);
    /* y[r] = row rows[r].token of the embedding matrix, f32 */
    void (*embed)(void *self, float *y, const DlmMat *w, const DlmRow *rows, int32_t n_rows);
    void (*rms_norm)(void *self, float *y, const float *x, const float *gain, int32_t n_rows,
                     int32_t n, float eps);
    /* all jobs share the input x [n_rows][n_in]; ternary weights see it quantized to int8, once for
     * all jobs */
    void (*linear)(void *self, const DlmLinear *jobs, int32_t n_jobs, const float *x,
                   int32_t n_rows);
    void (*add)(void *self, float *y, const float *x, int64_t n); /* y += x */
    void (*gate)(void *self, float *gate, const float *up, int64_t n, DlmAct act);
    /* rotates the first n_rot of each head in place by the row's position; turns:
     * [n_pos][n_rot/2][2] f32, the cosine and sine of pos * inv_freq[i], a buffer of the backend */
    void (*rope)(void *self, float *x, const DlmRow *rows, int32_t n_rows, int32_t n_head,
                 int32_t head_dim, int32_t n_rot, const float *turns, DlmRope kind);
    void (*kv_store)(void *self, DlmKv *kv, int32_t layer, const float *k, const float *v,
                     const DlmRow *rows, int32_t n_rows);
    void (*attend)(void *self, float *out, const float *q, const DlmKv *kv, int32_t layer,
                   const DlmRow *rows, int32_t n_rows, int32_t n_head, float scale);
    /* y[i] = x[r] for each row r with rows[r].logits == i */
    void (*gather)(void *self, float *y, const float *x, const DlmRow *rows, int32_t n_rows,
                   int32_t n);
    /* per row of logits [n_rows][n]: the likeliest id and its softmax probability, to host memory.
     * `banned` (or -1) never wins: its logit is overwritten with minus infinity, here and for
     * whoever downloads the row */
    void (*top1)(void *self, float *logits, int32_t n_rows, int32_t n, int32_t banned, int32_t *ids,
                 float *probs);
    /* in host memory, as the kernels have it; NULL: the scalar one */
    void (*exps)(float *y, const float *x, float max, float scale, int32_t n);

    /* Calls fn for each lane in a thread of its own, with ops that run in that thread alone and have
     * scratch of their own: the rows from first[lane] on to those of the next. n_lanes: at most the
     * threads there are. Lanes must not look at each other's rows. NULL: there are no lanes. */
    void (*apart)(struct DlmOps *ops, int32_t n_lanes, const int32_t *first,
                  void (*fn)(void *arg, struct DlmOps *ops, int32_t lane), void *arg);

    /* What follows may be NULL. */

    void (*close)(struct DlmOps *ops); /* gives back what the door that filled the table took */
    /* Around the ops of one forward pass. `near`: the same rows as layers that slide a window see
     * them. True: the pass has run from a recording of an earlier one of its shape, and the ops in
     * between, and end, are not to be called. */
    bool (*begin)(void *self, const DlmRow *rows, const DlmRow *near, int32_t n_rows,
                  int32_t n_logits);
    void (*end)(void *self);
    void (*sync)(void *self); /* returns when all calls have run */
    /* to host memory: the k <= DLM_TOP_K_MAX largest of a row of n logits, n >= k, that top1 has seen;
     * the largest first, of equals the lower id */
    void (*top_k)(void *self, const float *logits, int32_t n, int32_t k, int32_t *ids,
                  float *largest);
    /* bytes of the backend's own memory: free now; the most that mat_load takes for this tensor; what
     * `reserve` takes, once mat_bytes was asked for every tensor */
    uint64_t (*memory_free)(void *self);
    uint64_t (*mat_bytes)(void *self, const DlmTensor *t);
    uint64_t (*scratch_bytes)(void *self, int32_t n_rows_max, int32_t n_in_max);
    /* measured ceilings, in billions a second: bytes copied (read and written), and multiply-adds of
     * the 8-bit and 16-bit matrix instructions */
    const char *(*ceilings)(void *self, double *copy_gbs, double *int8_gmacs, double *f16_gmacs);
} DlmOps;

#ifdef DLM_CUDA
/* What the CUDA backend borrows: the CPU's checks and readers of every format, and its threads. */
typedef struct {
    DlmOps *cpu;
    void (*unpack)(DlmType type, const uint8_t *block, DlmUnpacked *u);
    void *pool;
    void (*parallel)(void *pool, int32_t n, int32_t grain,
                     void (*fn)(void *arg, int32_t begin, int32_t end, int32_t thread), void *arg);
    int32_t n_layers_host; /* matrices of layers below this stay with the CPU */
} DlmCudaHost;

typedef struct {
    char name[256];
    int major, minor; /* compute capability */
    int n_sm;
    uint64_t memory, memory_free;
} DlmCudaDevice;

/* The one door to CUDA: fills `ops` or returns the reason why there is no usable GPU. `host` must
 * outlive it. */
const char *dlm_cuda_open(DlmOps *ops, const DlmCudaHost *host);
/* The devices that this machine shows, of which dlm_cuda_open takes the first; NULL or the reason. */
const char *dlm_cuda_devices(DlmCudaDevice *devices, int n_max, int *n);
#endif

#ifdef __cplusplus
}
#endif
#endif

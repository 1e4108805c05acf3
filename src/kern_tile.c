/* kern_tile.c - what the SIMD levels have in common: the loops around a ternary register tile, and a
 * dense kernel's choice by the kind of its weights.
 *
 * Owns:      nothing.
 * Stands on: base kern_ref
 * Promises:  equal to ref_ternary bit for bit when the level's tiles are: their sums are exact
 *            integers, and the float steps here are the law's, in its order.
 *
 * A level brings only its tiles: the product of one column of weight tiles (16 outputs) and up to 8
 * rows of activations, in registers from the first input to the last, so that one unpack of a
 * weight vector serves all the rows. Tiles work on codes 0..3; what turns codes into values
 * -1..2 is the sum of the activations: sum of (code - 1) q = sum of code q - sum of q. */
#ifndef DLM_KERN_TILE_C
#define DLM_KERN_TILE_C

#include "base.c"
#include "kern_ref.c"

#define INLINE static inline __attribute__((always_inline))

/* Loops over register tiles: unrolled whole, or the tiles would live in memory. */
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* LEVEL_dense from LEVEL_dense_kind_, whose always-inlined body becomes a loop for each kind. */
#define KERN_DENSE(FN, level)                                                                      \
    FN static void level##_dense(f32 *y, i64 y_stride, const DlmMat *w, i32 out_lo, i32 out_hi,    \
                                 const f32 *x, i64 x_stride, i32 n_rows) {                         \
        switch (w->kind) {                                                                         \
        case DLM_MAT_F32:                                                                          \
            level##_dense_kind_(DLM_MAT_F32, y, y_stride, w, out_lo, out_hi, x, x_stride, n_rows); \
            return;                                                                                \
        case DLM_MAT_F16:                                                                          \
            level##_dense_kind_(DLM_MAT_F16, y, y_stride, w, out_lo, out_hi, x, x_stride, n_rows); \
            return;                                                                                \
        case DLM_MAT_BF16:                                                                         \
            level##_dense_kind_(DLM_MAT_BF16, y, y_stride, w, out_lo, out_hi, x, x_stride,         \
                                n_rows);                                                           \
            return;                                                                                \
        default: ASSERT(!"an integer matrix reached the dense kernel");                            \
        }                                                                                          \
    }

/* Bytes ahead of the tile at hand that are asked for early. The hardware's own prefetching does not
 * keep up with a forward that reads every weight once: 30 layers of 2B weights at 8 rows took 109 ms
 * without and 50 ms with this (one core, AVX-512). Past a matrix's end it asks for nothing useful. */
#define TILE_AHEAD 8192

#define TILE_ROWS_MAX 8
typedef i32 TileSums[DLM_TILE_OUT]; /* of a row; aligned to 64 bytes */
typedef TileSums TileAcc[TILE_ROWS_MAX];

/* acc[m][o] = sum over n_tiles tiles of code * q[m], for rows of q that lie q_stride apart. */
typedef void TileFn(TileAcc acc, const u8 *tiles, i32 n_tiles, const i8 *q, i64 q_stride);
/* The same for two columns of tiles that lie n_tiles tiles apart. */
typedef void TilePairFn(TileAcc acc[2], const u8 *tiles, i32 n_tiles, const i8 *q, i64 q_stride);

/* What a column of tiles or two make: 16 outputs each, n_out in all, of the rows from q on. */
typedef struct {
    i32 n_out;
    f32 *y; /* [rows][n_out], y_stride apart */
    i64 y_stride;
    const i8 *q;
    i64 q_stride;
    f32 scale; /* of the matrix, where it has but one */
    const f32 *inv_scale;
    const i32 *sum;
} TileStrip;

/* A strip of one column and many rows, more than TILE_ROWS_MAX. */
#define TILE_MANY 32
typedef void TileManyFn(const TileStrip *s, const u8 *tiles, i32 n_tiles, i32 n_rows);

/* Outputs from sums, the column'th 16 of the strip. */
typedef void TileFinishFn(const TileStrip *s, const TileSums *sums, i32 n_rows, i32 column);

/* By the rows, less one; NULL where the level has no tile of so many. */
typedef struct {
    TileFn *rows[TILE_ROWS_MAX];
    TilePairFn *pairs[TILE_ROWS_MAX]; /* as rows, or none */
    TileManyFn *many;                 /* not beside pairs; NULL: many rows are many strips */
    TileFinishFn *finish;             /* tile_finish */
    i32 (*sum)(const i8 *q, i32 n);   /* of n activations, a multiple of 16 */
} TileLevel;

INLINE void tile_finish(const TileStrip *s, const TileSums *sums, i32 n_rows, i32 column) {
    i32 n_out = MIN_OF(DLM_TILE_OUT, s->n_out - column * DLM_TILE_OUT);
    for (i32 m = 0; m < n_rows; m++) {
        f32 out[DLM_TILE_OUT], scale = s->scale * s->inv_scale[m];
        f32 *y = s->y + m * s->y_stride + column * DLM_TILE_OUT;
        i32 sum = s->sum[m];
        for (int o = 0; o < DLM_TILE_OUT; o++) out[o] = (f32)(sums[m][o] - sum) * scale;
        if (n_out == DLM_TILE_OUT) /* a size that the compiler knows: no call */
            memcpy(y, out, sizeof out);
        else
            memcpy(y, out, (size_t)n_out * sizeof *out);
    }
}

/* One scale; of one column of tiles, or of two. */
static void tile_strip_(const TileLevel *level, i32 n_rows, const TileStrip *s, const u8 *tiles,
                        i32 n_tiles, bool pair) {
    _Alignas(64) TileAcc acc[2];
    if (pair)
        level->pairs[n_rows - 1](acc, tiles, n_tiles, s->q, s->q_stride);
    else
        level->rows[n_rows - 1](acc[0], tiles, n_tiles, s->q, s->q_stride);
    for (i32 c = 0; c <= pair; c++) level->finish(s, acc[c], n_rows, c);
}

/* A scale per block of inputs: blocks add in floats, in rising order. scales: [n_blocks][16] */
static void tile_strip_blocks_(const TileLevel *level, i32 n_rows, const TileStrip *s,
                               const DlmMat *w, const u8 *tiles, const f32 *scales) {
    _Alignas(64) TileAcc acc;
    f32 out[TILE_ROWS_MAX][DLM_TILE_OUT] = {{0}};
    i32 block = w->scale_block, per_block = block / DLM_TILE_IN;
    for (i32 b = 0; b < w->n_in / block;
         b++, scales += DLM_TILE_OUT, tiles += (i64)per_block * DLM_TILE_BYTES) {
        const i8 *q = s->q + (i64)b * block;
        level->rows[n_rows - 1](acc, tiles, per_block, q, s->q_stride);
        for (i32 m = 0; m < n_rows; m++) {
            i32 sum = level->sum(q + m * s->q_stride, block);
            for (int o = 0; o < DLM_TILE_OUT; o++) out[m][o] += (f32)(acc[m][o] - sum) * scales[o];
        }
    }
    for (i32 m = 0; m < n_rows; m++) {
        for (int o = 0; o < DLM_TILE_OUT; o++) out[m][o] *= s->inv_scale[m];
        memcpy(s->y + m * s->y_stride, out[m], (size_t)s->n_out * sizeof *out[m]);
    }
}

/* The rows of the level's tallest tile that n_rows rows fill. */
static i32 tile_rows_(const TileLevel *level, i32 n_rows) {
    i32 n = MIN_OF(n_rows, TILE_ROWS_MAX);
    while (!level->rows[n - 1]) n--;
    return n;
}

/* The `ternary` kernel of dlm_kernels.h, by the tiles of a level. */
static void tile_ternary(const TileLevel *level, f32 *y, i64 y_stride, const DlmMat *w, i32 out_lo,
                         i32 out_hi, const i8 *q, i64 q_stride, const f32 *inv_scale,
                         const i32 *sum, i32 n_rows) {
    i32 n_tiles = (w->n_in + DLM_TILE_IN - 1) / DLM_TILE_IN;
    for (i32 o = out_lo, n_out; o < out_hi; o += n_out) {
        i64 group = o / DLM_TILE_OUT;
        const u8 *tiles = (const u8 *)w->data + group * n_tiles * DLM_TILE_BYTES;
        bool pair = level->pairs[0] && !w->scales && out_hi - o > DLM_TILE_OUT;
        n_out = MIN_OF(pair ? 2 * DLM_TILE_OUT : DLM_TILE_OUT, out_hi - o);
        for (i32 m = 0, n; m < n_rows; m += n) {
            i32 left = MIN_OF(n_rows - m, TILE_MANY);
            n = tile_rows_(level, left);
            bool many = level->many && !w->scales && left > TILE_ROWS_MAX;
            if (many) n = left;
            TileStrip s = {.n_out = n_out,
                           .y = y + m * y_stride + o,
                           .y_stride = y_stride,
                           .q = q + m * q_stride,
                           .q_stride = q_stride,
                           .scale = w->scale,
                           .inv_scale = inv_scale + m,
                           .sum = sum + m};
            if (w->scales)
                tile_strip_blocks_(level, n, &s, w, tiles,
                                   w->scales + group * (w->n_in / w->scale_block) * DLM_TILE_OUT);
            else if (many)
                level->many(&s, tiles, n_tiles, n);
            else
                tile_strip_(level, n, &s, tiles, n_tiles, pair);
        }
    }
}

/* LEVEL_accN from LEVEL_acc_, the always-inlined body of all of a level's tiles: with N a constant
 * its loops over rows unroll. FN: the level's attributes. */
#define TILE_ROWS(level, FN, n_rows)                                                           \
    FN static void level##_acc##n_rows(TileAcc acc, const u8 *tiles, i32 n_tiles, const i8 *q, \
                                       i64 q_stride) {                                         \
        level##_acc_(acc, tiles, n_tiles, q, q_stride, n_rows);                                \
    }

/* LEVEL_pairN, likewise, from LEVEL_pair_. */
#define TILE_PAIR(level, FN, n_rows)                                                               \
    FN static void level##_pair##n_rows(TileAcc acc[2], const u8 *tiles, i32 n_tiles, const i8 *q, \
                                        i64 q_stride) {                                            \
        level##_pair_(acc, tiles, n_tiles, q, q_stride, n_rows);                                   \
    }

/* LEVEL_ternary from LEVEL_tiles. */
#define TILE_TERNARY(level)                                                                       \
    static void level##_ternary(f32 *y, i64 y_stride, const DlmMat *w, i32 out_lo, i32 out_hi,    \
                                const i8 *q, i64 q_stride, const f32 *inv_scale, const i32 *sum,  \
                                i32 n_rows) {                                                     \
        tile_ternary(&level##_tiles, y, y_stride, w, out_lo, out_hi, q, q_stride, inv_scale, sum, \
                     n_rows);                                                                     \
    }

#endif

/* kern_tile.c - the loops around a ternary register tile, the same at every SIMD level.
 *
 * Owns:      nothing.
 * Stands on: base kern_ref
 * Promises:  equal to ref_ternary bit for bit when the level's tiles are: their sums are exact
 *            integers, and the float steps here are the law's, in its order.
 *
 * A level brings only its tiles: the product of one column of weight tiles (16 outputs) and 1, 2,
 * 4 or 8 rows of activations, in registers from the first input to the last, so that one unpack of
 * a weight vector serves all the rows. Tiles work on codes 0..3; what turns codes into values
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

/* Bytes ahead of the tile at hand that are asked for early. The hardware's own prefetching does not
 * keep up with a forward that reads every weight once: 30 layers of 2B weights at 8 rows took 109 ms
 * without and 50 ms with this (one core, AVX-512). Past a matrix's end it asks for nothing useful. */
#define TILE_AHEAD 8192

#define TILE_ROWS_MAX 8
typedef i32 TileAcc[TILE_ROWS_MAX][DLM_TILE_OUT]; /* aligned to 64 bytes */

/* acc[m][o] = sum over n_tiles tiles of code * q[m], for rows of q that lie q_stride apart. */
typedef void TileFn(TileAcc acc, const u8 *tiles, i32 n_tiles, const i8 *q, i64 q_stride);

typedef struct {
    TileFn *rows[4]; /* tiles of 1, 2, 4 and 8 rows; NULL where the level has none so tall */
    i32 (*sum)(const i8 *q, i32 n); /* of n activations, a multiple of 16 */
} TileLevel;

/* What one tile makes: 16 outputs, or the n_out that remain, of the n_rows rows from q on. */
typedef struct {
    const TileLevel *level;
    TileFn *tile; /* the level's for n_rows */
    i32 n_rows, n_out;
    f32 *y; /* [n_rows][n_out], y_stride apart */
    i64 y_stride;
    const i8 *q;
    i64 q_stride;
    const f32 *inv_scale;
    const i32 *sum;
} TileStrip;

/* One scale for the matrix. */
static void tile_strip_(const TileStrip *s, const DlmMat *w, const u8 *tiles, i32 n_tiles) {
    _Alignas(64) TileAcc acc;
    s->tile(acc, tiles, n_tiles, s->q, s->q_stride);
    for (i32 m = 0; m < s->n_rows; m++) {
        f32 out[DLM_TILE_OUT], scale = w->scale * s->inv_scale[m];
        for (int o = 0; o < DLM_TILE_OUT; o++) out[o] = (f32)(acc[m][o] - s->sum[m]) * scale;
        memcpy(s->y + m * s->y_stride, out, (size_t)s->n_out * sizeof *out);
    }
}

/* A scale per block of inputs: blocks add in floats, in rising order. scales: [n_blocks][16] */
static void tile_strip_blocks_(const TileStrip *s, const DlmMat *w, const u8 *tiles,
                               const f32 *scales) {
    _Alignas(64) TileAcc acc;
    f32 out[TILE_ROWS_MAX][DLM_TILE_OUT] = {{0}};
    i32 block = w->scale_block, per_block = block / DLM_TILE_IN;
    for (i32 b = 0; b < w->n_in / block;
         b++, scales += DLM_TILE_OUT, tiles += (i64)per_block * DLM_TILE_BYTES) {
        const i8 *q = s->q + (i64)b * block;
        s->tile(acc, tiles, per_block, q, s->q_stride);
        for (i32 m = 0; m < s->n_rows; m++) {
            i32 sum = s->level->sum(q + m * s->q_stride, block);
            for (int o = 0; o < DLM_TILE_OUT; o++) out[m][o] += (f32)(acc[m][o] - sum) * scales[o];
        }
    }
    for (i32 m = 0; m < s->n_rows; m++) {
        for (int o = 0; o < DLM_TILE_OUT; o++) out[m][o] *= s->inv_scale[m];
        memcpy(s->y + m * s->y_stride, out[m], (size_t)s->n_out * sizeof *out[m]);
    }
}

/* The tallest tile of the level that n_rows rows fill: log2 of its rows. */
static int tile_size_(const TileLevel *level, i32 n_rows) {
    int size = COUNT_OF(level->rows) - 1;
    while (!level->rows[size] || 1 << size > n_rows) size--;
    return size;
}

/* The `ternary` kernel of dlm_kernels.h, by the tiles of a level. */
static void tile_ternary(const TileLevel *level, f32 *y, i64 y_stride, const DlmMat *w, i32 out_lo,
                         i32 out_hi, const i8 *q, i64 q_stride, const f32 *inv_scale,
                         const i32 *sum, i32 n_rows) {
    i32 n_tiles = (w->n_in + DLM_TILE_IN - 1) / DLM_TILE_IN;
    for (i32 o = out_lo; o < out_hi; o += DLM_TILE_OUT) {
        i64 group = o / DLM_TILE_OUT;
        const u8 *tiles = (const u8 *)w->data + group * n_tiles * DLM_TILE_BYTES;
        for (i32 m = 0, step; m < n_rows; m += step) {
            int size = tile_size_(level, n_rows - m);
            step = 1 << size;
            TileStrip s = {.level = level,
                           .tile = level->rows[size],
                           .n_rows = step,
                           .n_out = MIN_OF(DLM_TILE_OUT, out_hi - o),
                           .y = y + m * y_stride + o,
                           .y_stride = y_stride,
                           .q = q + m * q_stride,
                           .q_stride = q_stride,
                           .inv_scale = inv_scale + m,
                           .sum = sum + m};
            if (w->scales)
                tile_strip_blocks_(&s, w, tiles,
                                   w->scales + group * (w->n_in / w->scale_block) * DLM_TILE_OUT);
            else
                tile_strip_(&s, w, tiles, n_tiles);
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

/* LEVEL_ternary from its tiles of 1, 2 and perhaps 4 and 8 rows. */
#define TILE_TERNARY(level, sum_fn, ...)                                                          \
    static const TileLevel level##_tiles = {{__VA_ARGS__}, sum_fn};                               \
    static void level##_ternary(f32 *y, i64 y_stride, const DlmMat *w, i32 out_lo, i32 out_hi,    \
                                const i8 *q, i64 q_stride, const f32 *inv_scale, const i32 *sum,  \
                                i32 n_rows) {                                                     \
        tile_ternary(&level##_tiles, y, y_stride, w, out_lo, out_hi, q, q_stride, inv_scale, sum, \
                     n_rows);                                                                     \
    }

#endif

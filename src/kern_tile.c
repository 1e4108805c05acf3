/* kern_tile.c - what the SIMD levels have in common: the loops around a ternary register tile and
 * around a step of attention, and a dense kernel's choice by the kind of its weights.
 *
 * Owns:      nothing.
 * Stands on: base kern_ref
 * Promises:  equal to ref_ternary bit for bit when the level's tiles are: their sums are exact
 *            integers, and the float steps here are the law's, in its order. Equal to ref_attend
 *            when the level's steps add a score's products and a value's terms in its order.
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

/* A strip of two columns of tiles that lie n_tiles tiles apart. */
typedef void TilePairFn(const TileStrip *s, const u8 *tiles, i32 n_tiles);

/* A strip of one column and many rows, more than TILE_ROWS_MAX. */
#define TILE_MANY 32
typedef void TileManyFn(const TileStrip *s, const u8 *tiles, i32 n_tiles, i32 n_rows);

/* The outputs of a strip of one column from its sums. */
typedef void TileFinishFn(const TileStrip *s, const TileSums *sums, i32 n_rows);

/* By the rows, less one; NULL where the level has no tile of so many. */
typedef struct {
    TileFn *rows[TILE_ROWS_MAX];
    TilePairFn *pairs[TILE_ROWS_MAX]; /* as rows, or none */
    TileManyFn *many;                 /* not beside pairs; NULL: many rows are many strips */
    TileFinishFn *finish;             /* tile_finish */
    i32 (*sum)(const i8 *q, i32 n);   /* of n activations, a multiple of 16 */
} TileLevel;

INLINE void tile_finish(const TileStrip *s, const TileSums *sums, i32 n_rows) {
    i32 n_out = s->n_out;
    for (i32 m = 0; m < n_rows; m++) {
        f32 out[DLM_TILE_OUT], scale = s->scale * s->inv_scale[m];
        f32 *y = s->y + m * s->y_stride;
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
    _Alignas(64) TileAcc acc;
    if (pair) {
        level->pairs[n_rows - 1](s, tiles, n_tiles);
        return;
    }
    level->rows[n_rows - 1](acc, tiles, n_tiles, s->q, s->q_stride);
    level->finish(s, acc, n_rows);
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
#define TILE_PAIR(level, FN, n_rows)                                                          \
    FN static void level##_pair##n_rows(const TileStrip *s, const u8 *tiles, i32 n_tiles) {   \
        level##_pair_(s, tiles, n_tiles, n_rows);                                             \
    }

/* LEVEL_ternary from LEVEL_tiles. */
#define TILE_TERNARY(level)                                                                       \
    static void level##_ternary(f32 *y, i64 y_stride, const DlmMat *w, i32 out_lo, i32 out_hi,    \
                                const i8 *q, i64 q_stride, const f32 *inv_scale, const i32 *sum,  \
                                i32 n_rows) {                                                     \
        tile_ternary(&level##_tiles, y, y_stride, w, out_lo, out_hi, q, q_stride, inv_scale, sum, \
                     n_rows);                                                                     \
    }

/* ---- attention ----
 *
 * Three passes over queries that share the keys and values of one head: scores, softmax, values.
 * The first and the last walk the cells in bites that stay in the first cache level while the
 * queries take turns at them, 4, 2 or 1 at a time. A level brings the steps: scores and values of so
 * many queries at a few cells, in registers, and the softmax. */

#define TILE_BITE 64 /* cells */
/* Bytes ahead that keys or values are asked for: several cells are read side by side, which the hardware's
 * own prefetching takes for no stream. */
#define TILE_KV_AHEAD 8192

typedef struct {
    f32 *const *out;
    const f32 *const *q;
    const i32 *lo, *hi; /* cells that each query sees, of those from k and v on */
    i32 n_q, head_dim;
    const u8 *k, *v;
    i32 base;       /* the cell at k and v */
    i64 stride;     /* bytes between cells */
    const u8 *next; /* keys that the next call begins with, or NULL */
    i64 ahead;      /* bytes from an element to one that will be wanted soon, to ask for it early */
    f32 scale;
    f32 *scores; /* [n_q][scores_stride] */
    i64 scores_stride;
    f32 inv[DLM_ATTEND_Q]; /* 1 / the sum of a query's exponentials */
} TileAttend;

/* Scores or values of 1, 2 and 4 queries, from `first`, at the cells [c, end). */
typedef void TileAttendFn(const TileAttend *a, i32 first, i32 c, i32 end);
typedef struct {
    TileAttendFn *scores[3], *values[3];
    f32 (*softmax)(f32 *s, i32 n); /* s[c] = exp(s[c] - the largest); returns their sum */
    /* Q8_0: n elements, whole blocks, as the F32 that the steps take. Else NULL */
    void (*widen)(f32 *to, const u8 *blocks, i64 n, i64 ahead);
} TileAttendSteps;

#define TILE_WIDE 4096 /* floats: what is widened at a time stays in the first cache level */
typedef struct {
    TileAttend a;
    _Alignas(64) f32 cells[TILE_WIDE];
} TileWide;

/* The keys, or the values, of the cells [c, end) as the steps take them. */
static const TileAttend *tile_widen_(const TileAttendSteps *steps, const TileAttend *a, TileWide *w,
                                     const u8 *kv, i32 c, i32 end) {
    if (!steps->widen) return a;
    i64 dim = a->head_dim;
    steps->widen(w->cells, kv + c * a->stride, (end - c) * dim, a->ahead);
    w->a = *a;
    w->a.k = w->a.v = (const u8 *)w->cells;
    w->a.base = c, w->a.stride = dim * (i64)sizeof(f32);
    return &w->a;
}

/* The largest step for n queries, as an index of the above. */
static int tile_step_(i32 n) {
    return n >= 4 ? 2 : n >= 2 ? 1 : 0;
}

/* The values of one query at those of the cells [c, end) that it sees. */
static void tile_values_alone_(const TileAttendSteps *steps, const TileAttend *a, i32 m, i32 c,
                               i32 end) {
    c = MAX_OF(c, a->lo[m]), end = MIN_OF(end, a->hi[m]);
    if (c < end) steps->values[0](a, m, c, end);
}

/* The values of a step's queries at the cells [c, end): together where all of them see the cells,
 * before and behind that each query alone. */
static void tile_values_(const TileAttendSteps *steps, const TileAttend *a, i32 first, int size,
                         i32 c, i32 end) {
    i32 from = c, to = end, n = 1 << size;
    for (i32 m = first; m < first + n; m++)
        from = MAX_OF(from, a->lo[m]), to = MIN_OF(to, a->hi[m]);
    if (from >= to) from = to = end;
    for (i32 m = first; from > c && m < first + n; m++) tile_values_alone_(steps, a, m, c, from);
    if (from < to) steps->values[size](a, first, from, to);
    for (i32 m = first; to < end && m < first + n; m++) tile_values_alone_(steps, a, m, to, end);
}

/* Bytes from one place to another, of another array as a rule. */
static inline i64 tile_way_(const u8 *from, const u8 *to) {
    return (i64)((uintptr_t)to - (uintptr_t)from);
}

/* Scores of cells that a query does not see are left unused. */
static void tile_attend_(const TileAttendSteps *steps, TileAttend *a) {
    TileWide wide;
    i32 n = 0, bite = TILE_BITE;
    if (steps->widen) bite = MIN_OF(bite, TILE_WIDE / a->head_dim);
    for (i32 m = 0; m < a->n_q; m++) n = MAX_OF(n, a->hi[m]);
    for (i32 c = 0, end; c < n; c = end) {
        end = MIN_OF(c + bite, n);
        /* behind the last keys come the first values */
        a->ahead = end < n ? TILE_KV_AHEAD : tile_way_(a->k + c * a->stride, a->v);
        const TileAttend *at = tile_widen_(steps, a, &wide, a->k, c, end);
        for (i32 m = 0; m < a->n_q; m += 1 << tile_step_(a->n_q - m))
            steps->scores[tile_step_(a->n_q - m)](at, m, c, end);
    }
    for (i32 m = 0; m < a->n_q; m++)
        a->inv[m] =
            1.0f / steps->softmax(a->scores + m * a->scores_stride + a->lo[m], a->hi[m] - a->lo[m]);
    for (i32 c = 0, end; c < n; c = end) {
        end = MIN_OF(c + bite, n);
        a->ahead = end < n ? TILE_KV_AHEAD : a->next ? tile_way_(a->v + c * a->stride, a->next) : 0;
        const TileAttend *at = tile_widen_(steps, a, &wide, a->v, c, end);
        for (i32 m = 0; m < a->n_q; m += 1 << tile_step_(a->n_q - m))
            tile_values_(steps, at, m, tile_step_(a->n_q - m), c, end);
    }
}

/* Keys or values of a cell on. */
static inline const u8 *tile_cell_(const TileAttend *a, const u8 *kv, i32 c) {
    return kv + (c - a->base) * a->stride;
}

static inline i64 tile_kv_size_(DlmType type) { /* bytes of an element that the steps take */
    return type == DLM_F32 ? 4 : 2;
}

/* The `attend` kernel of dlm_kernels.h, by the steps of a level for keys and values of the type. */
static void tile_attend(const TileAttendSteps *steps, f32 *const *out, const f32 *const *q,
                        const i32 *lo, const i32 *hi, i32 n_q, const void *k, const void *v,
                        DlmType type, i32 head_dim, f32 scale, f32 *scores, i64 scores_stride,
                        const void *next) {
    if (head_dim % 8 || head_dim > TILE_WIDE) { /* no model has such heads */
        ref_attend(out, q, lo, hi, n_q, k, v, type, head_dim, scale, scores, scores_stride, next);
        return;
    }
    i32 from[DLM_ATTEND_Q], to[DLM_ATTEND_Q], first = lo[0];
    i64 stride = (i64)quant_row_bytes(type, head_dim);
    for (i32 m = 1; m < n_q; m++) first = MIN_OF(first, lo[m]);
    for (i32 m = 0; m < n_q; m++) from[m] = lo[m] - first, to[m] = hi[m] - first;
    TileAttend a = {.out = out,
                    .q = q,
                    .lo = from,
                    .hi = to,
                    .n_q = n_q,
                    .head_dim = head_dim,
                    .k = (const u8 *)k + first * stride,
                    .v = (const u8 *)v + first * stride,
                    .stride = stride,
                    .next = next,
                    .scale = scale,
                    .scores = scores,
                    .scores_stride = scores_stride};
    tile_attend_(steps, &a);
}

/* LEVEL_attend from LEVEL_scores_, LEVEL_values_, LEVEL_widen and LEVEL_softmax, whose always-inlined bodies
 * unroll where the number of queries is a constant. */
#define TILE_ATTEND_STEP(level, FN, type, n_q)                                             \
    FN static void level##_scores_##type##_##n_q##_(const TileAttend *a, i32 first, i32 c, \
                                                    i32 end) {                             \
        level##_scores_(a, DLM_##type, first, n_q, c, end);                                \
    }                                                                                      \
    FN static void level##_values_##type##_##n_q##_(const TileAttend *a, i32 first, i32 c, \
                                                    i32 end) {                             \
        level##_values_(a, DLM_##type, first, n_q, c, end);                                \
    }
#define TILE_ATTEND_TYPE(level, FN, type)                                                     \
    TILE_ATTEND_STEP(level, FN, type, 1)                                                      \
    TILE_ATTEND_STEP(level, FN, type, 2)                                                      \
    TILE_ATTEND_STEP(level, FN, type, 4)                                                      \
    static const TileAttendSteps level##_attend_##type##_ = {                                 \
        {level##_scores_##type##_1_, level##_scores_##type##_2_, level##_scores_##type##_4_}, \
        {level##_values_##type##_1_, level##_values_##type##_2_, level##_values_##type##_4_}, \
        level##_softmax,                                                                      \
        NULL};
#define TILE_ATTEND(level, FN)                                                                     \
    TILE_ATTEND_TYPE(level, FN, F16)                                                               \
    TILE_ATTEND_TYPE(level, FN, F32)                                                               \
    static const TileAttendSteps level##_attend_Q8_0_ = {                                          \
        {level##_scores_F32_1_, level##_scores_F32_2_, level##_scores_F32_4_},                     \
        {level##_values_F32_1_, level##_values_F32_2_, level##_values_F32_4_},                     \
        level##_softmax,                                                                           \
        level##_widen};                                                                            \
    static void level##_attend(f32 *const *out, const f32 *const *q, const i32 *lo, const i32 *hi, \
                               i32 n_q, const void *k, const void *v, DlmType type, i32 head_dim,  \
                               f32 scale, f32 *scores, i64 scores_stride, const void *next) {      \
        const TileAttendSteps *steps = type == DLM_F32   ? &level##_attend_F32_                    \
                                       : type == DLM_F16 ? &level##_attend_F16_                    \
                                                         : &level##_attend_Q8_0_;                  \
        tile_attend(steps, out, q, lo, hi, n_q, k, v, type, head_dim, scale, scores,               \
                    scores_stride, next);                                                          \
    }

#endif

/* kern_ref.c - the scalar kernels and the house's own math functions: the law of every SIMD level.
 *
 * Owns:      nothing.
 * Stands on: base quant
 * Promises:  the same bits on every machine: no libm, one fixed order of additions, products fused
 *            into sums exactly where it says so.
 *
 * The order: a sum over i runs in 16 lanes, lane i mod 16, each lane adding in rising i; the lanes
 * are then folded 16 -> 8 -> 4 -> 2 -> 1, lane j taking lane j + half. One AVX-512 register, two
 * AVX2 registers or four NEON registers hold the lanes, so every level can keep the law at full
 * width. Sums of products are fused (one rounding), which every level has as one instruction;
 * -ffp-contract=off keeps the compiler from fusing anything else. A result therefore depends on its
 * own inputs only, never on the batch, the thread count or the CPU. */
#ifndef DLM_KERN_REF_C
#define DLM_KERN_REF_C

#include "base.c"
#include "quant.c"

#define KERN_LANES 16
#define KERN_MINUS_INF (-__builtin_inff())

/* ---- math. Double versions are good to about 1e-14 relative; they feed tables, not inner loops.
 * ---- */

static f32 kern_sqrtf(f32 x) {
    return __builtin_sqrtf(
        x); /* one correctly rounded instruction (the build passes -fno-math-errno) */
}

/* a * b + c with one rounding. The product is exact in f64; the sum is rounded to odd there, so that
 * the second rounding, to f32, is that of the exact value (Boldo and Melquiond 2008). */
static f32 kern_fmaf(f32 a, f32 b, f32 c) {
    f64 product = (f64)a * (f64)b, sum = product + (f64)c;
    f64 back = sum - product, rest = (product - (sum - back)) + ((f64)c - back);
    u64 bits;
    memcpy(&bits, &sum, sizeof bits);
    if (rest != 0 && !(bits & 1) && rest == rest) {
        bits += (rest > 0) == (sum > 0) ? 1 : -1ull;
        memcpy(&sum, &bits, sizeof sum);
    }
    return (f32)sum;
}

/* exp(x) in f32, about 1 ulp; 0 below -87.3, saturates above 88.3. exp(x) = 2^n * exp(r), |r| <=
 * ln2/2, the polynomial is the degree-6 minimax of Cephes' expf. The SIMD versions do the same
 * operations in this order. */
#define KERN_EXP_LO (-87.3f)
#define KERN_EXP_HI 88.3f
#define KERN_LOG2E 1.44269504088896341f
#define KERN_LN2_HI 0.693359375f      /* 9 bits: n * LN2_HI is exact */
#define KERN_LN2_LO (-2.12194440e-4f) /* ln2 - LN2_HI */
static const f32 KERN_EXP_C[6] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                  4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};

static f32 kern_expf(f32 x) {
    if (!(x >= KERN_EXP_LO))
        return 0; /* also NaN: a broken row must not poison a softmax silently twice */
    if (x > KERN_EXP_HI) x = KERN_EXP_HI;
    f32 n = f32_rint_(x * KERN_LOG2E);
    f32 r = (x - n * KERN_LN2_HI) - n * KERN_LN2_LO;
    f32 p = KERN_EXP_C[0];
    for (int i = 1; i < 6; i++) p = kern_fmaf(p, r, KERN_EXP_C[i]);
    p = kern_fmaf(p, r * r, r + 1.0f);
    u32 bits = (u32)((i32)n + 127) << 23;
    f32 scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

/* exp(x) in f64 for |x| < 700, by Taylor's series on |r| <= ln2/2. */
static f64 kern_exp(f64 x) {
    f64 t = x * 1.4426950408889634;
    i64 n = (i64)(t < 0 ? t - 0.5 : t + 0.5);
    f64 r = (x - (f64)n * 0.693147180369123816490) - (f64)n * 1.90821492927058770002e-10;
    f64 sum = 1, term = 1;
    for (int i = 1; i <= 16; i++) {
        term *= r / i;
        sum += term;
    }
    u64 bits = (u64)(n + 1023) << 52;
    f64 scale;
    memcpy(&scale, &bits, sizeof scale);
    return sum * scale;
}

/* ln(x) for positive normal x: x = 2^e * m, ln m = 2 atanh((m - 1)/(m + 1)), m in [sqrt(1/2),
 * sqrt(2)). */
static f64 kern_log(f64 x) {
    u64 bits;
    memcpy(&bits, &x, sizeof bits);
    i64 e = (i64)(bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffffu) | 0x3ff0000000000000u;
    f64 m;
    memcpy(&m, &bits, sizeof m);
    if (m > 1.4142135623730951) m *= 0.5, e++;
    f64 s = (m - 1) / (m + 1), s2 = s * s, sum = 0;
    for (int k = 27; k >= 1; k -= 2) sum = sum * s2 + 1.0 / k;
    return 2 * s * sum + (f64)e * 0.693147180559945309417;
}

/* sin and cos of x for |x| < 1e9: reduce by pi/2 in two parts, then Taylor on |r| <= pi/4. */
static void kern_sincos(f64 x, f64 *sin_out, f64 *cos_out) {
    f64 t = x * 0.63661977236758134308;
    i64 n = (i64)(t < 0 ? t - 0.5 : t + 0.5);
    f64 r = (x - (f64)n * 1.57079632673412561417) - (f64)n * 6.07710050650619224932e-11;
    f64 r2 = r * r, s = 0, c = 0;
    for (int k = 10; k >= 1; k--) { /* Horner over 1/(2k (2k+1)) and 1/((2k-1) 2k) */
        s = (1 + s) * (-r2 / (f64)(2 * k * (2 * k + 1)));
        c = (1 + c) * (-r2 / (f64)(2 * k * (2 * k - 1)));
    }
    s = (1 + s) * r, c = 1 + c;
    switch (n & 3) {
    case 0: *sin_out = s, *cos_out = c; break;
    case 1: *sin_out = c, *cos_out = -s; break;
    case 2: *sin_out = -s, *cos_out = -c; break;
    default: *sin_out = -c, *cos_out = s; break;
    }
}

/* ---- lanes ---- */

static f32 ref_fold_(f32 lane[KERN_LANES]) {
    for (int half = KERN_LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++) lane[j] += lane[j + half];
    return lane[0];
}

static f32 ref_dot_(const f32 *a, const f32 *b, i32 n) {
    f32 lane[KERN_LANES] = {0};
    for (i32 i = 0; i < n; i++) lane[i % KERN_LANES] = kern_fmaf(a[i], b[i], lane[i % KERN_LANES]);
    return ref_fold_(lane);
}

/* Adds the products of a last run of n < 16 elements to the lanes and folds them. */
static f32 ref_fold_tail_(f32 lane[KERN_LANES], const f32 *a, const f32 *b, i32 n) {
    for (i32 i = 0; i < n; i++) lane[i] = kern_fmaf(a[i], b[i], lane[i]);
    return ref_fold_(lane);
}

/* ---- kernels; contracts in dlm_kernels.h ---- */

/* BitNet b1.58 activation quantization, per row: facts of the published model code (ActQuant):
 * s = 127 / max(max|x|, 1e-5), q = clamp(round_half_even(x s), -128, 127). */
static void ref_quantize_row(i8 *q, f32 *inv_scale, i32 *sum, const f32 *x, i32 n) {
    f32 m = 1e-5f;
    for (i32 i = 0; i < n; i++)
        m = MAX_OF(f32_abs_(x[i]), m); /* a NaN is passed over, as maxps does */
    f32 s = 127.0f / m;
    i32 total = 0;
    for (i32 i = 0; i < n; i++) {
        f32 v = x[i] * s;
        if (!(v >= -128.0f)) v = -128.0f;
        if (v > 127.0f) v = 127.0f;
        q[i] = (i8)f32_rint_(v);
        total += q[i];
    }
    *inv_scale = 1.0f / s;
    *sum = total;
}

/* The code (0..3) of output o, input i of a tiled matrix. */
static u8 ref_tile_code(const DlmMat *w, i32 o, i32 i) {
    i64 n_tiles = (w->n_in + DLM_TILE_IN - 1) / DLM_TILE_IN;
    const u8 *tile = (const u8 *)w->data +
                     ((i64)(o / DLM_TILE_OUT) * n_tiles + i / DLM_TILE_IN) * DLM_TILE_BYTES;
    return tile[4 * (o % DLM_TILE_OUT) + i % 4] >> 2 * (i % DLM_TILE_IN / 4) & 3;
}

/* Inputs whose weights are unpacked at a time: whole tiles, and it divides every block of scales. */
#define REF_RUN 64

/* Values -1..2 of output o, inputs [lo, lo + n), n <= REF_RUN; lo a multiple of a tile. */
static void ref_tile_values_(const DlmMat *w, i32 o, i32 lo, i32 n, i8 *v) {
    i64 n_tiles = (w->n_in + DLM_TILE_IN - 1) / DLM_TILE_IN;
    const u8 *tile = (const u8 *)w->data +
                     ((i64)(o / DLM_TILE_OUT) * n_tiles + lo / DLM_TILE_IN) * DLM_TILE_BYTES +
                     4 * (o % DLM_TILE_OUT);
    for (i32 i = 0; i < n; i++)
        v[i] =
            (i8)((tile[i / DLM_TILE_IN * DLM_TILE_BYTES + i % 4] >> 2 * (i % DLM_TILE_IN / 4) & 3) -
                 1);
}

/* acc[m] += sum of value * q[m] over inputs [lo, hi), for up to REF_ROWS rows: one unpacking serves
 * them all. |each| <= 2 * 128, so an i32 holds 2^23 of them. */
#define REF_ROWS 8
static void ref_ternary_dots_(const DlmMat *w, i32 o, const i8 *q, i64 q_stride, i32 n_rows, i32 lo,
                              i32 hi, i32 *acc) {
    i8 v[REF_RUN];
    for (i32 at = lo; at < hi; at += REF_RUN) {
        i32 n = MIN_OF(REF_RUN, hi - at);
        ref_tile_values_(w, o, at, n, v);
        for (i32 m = 0; m < n_rows; m++) {
            const i8 *row = q + m * q_stride + at;
            i32 sum = 0;
            for (i32 i = 0; i < n; i++) sum += v[i] * row[i];
            acc[m] += sum;
        }
    }
}

/* The scale of output o, input block b, of a matrix that has a scale per block. */
static f32 ref_tile_scale(const DlmMat *w, i32 o, i32 b) {
    i64 n_blocks = w->n_in / w->scale_block;
    return w->scales[((i64)(o / DLM_TILE_OUT) * n_blocks + b) * DLM_TILE_OUT + o % DLM_TILE_OUT];
}

/* One output of up to REF_ROWS rows. Blocks that have their own scale add in rising order. */
static void ref_ternary_output_(f32 *y, i64 y_stride, const DlmMat *w, i32 o, const i8 *q,
                                i64 q_stride, const f32 *inv_scale, i32 n_rows) {
    i32 acc[REF_ROWS] = {0};
    f32 blocks[REF_ROWS] = {0};
    if (!w->scales) ref_ternary_dots_(w, o, q, q_stride, n_rows, 0, w->n_in, acc);
    for (i32 b = 0; w->scales && b < w->n_in / w->scale_block; b++) {
        memset(acc, 0, sizeof acc);
        ref_ternary_dots_(w, o, q, q_stride, n_rows, b * w->scale_block, (b + 1) * w->scale_block,
                          acc);
        for (i32 m = 0; m < n_rows; m++) blocks[m] += (f32)acc[m] * ref_tile_scale(w, o, b);
    }
    for (i32 m = 0; m < n_rows; m++)
        y[m * y_stride] =
            w->scales ? blocks[m] * inv_scale[m] : (f32)acc[m] * (w->scale * inv_scale[m]);
}

static void ref_ternary(f32 *y, i64 y_stride, const DlmMat *w, i32 out_lo, i32 out_hi, const i8 *q,
                        i64 q_stride, const f32 *inv_scale, const i32 *sum, i32 n_rows) {
    (void)sum; /* the SIMD levels use it to turn codes 0..3 into values -1..2 */
    for (i32 m = 0; m < n_rows; m += REF_ROWS)
        for (i32 o = out_lo; o < out_hi; o++)
            ref_ternary_output_(y + m * y_stride + o, y_stride, w, o, q + m * q_stride, q_stride,
                                inv_scale + m, MIN_OF(REF_ROWS, n_rows - m));
}

/* Weight i of row p of a dense matrix; exact in every format. */
static f32 ref_weight_(DlmMatKind kind, const u8 *p, i32 i) {
    switch (kind) {
    case DLM_MAT_F32: return load_f32(p + 4 * (i64)i);
    case DLM_MAT_F16: return f16_to_f32(load_u16(p + 2 * (i64)i));
    default: return bf16_to_f32(load_u16(p + 2 * (i64)i));
    }
}

/* Inputs of a row of block activations: whole runs of 256. */
#define KERN_RUN 256
static i32 kern_padded(i32 n_in) {
    return (n_in + KERN_RUN - 1) / KERN_RUN * KERN_RUN;
}

/* Inputs of one of the sums that go with block activations. */
static i32 kern_sum_run(i32 block) {
    return block == 32 ? 16 : 8;
}

/* Bytes of one row of a matrix that is not ternary. */
static i64 kern_row_bytes(const DlmMat *w) {
    return (i64)quant_row_bytes(w->type, w->n_in);
}

static void ref_dense(f32 *y, i64 y_stride, const DlmMat *w, i32 out_lo, i32 out_hi, const f32 *x,
                      i64 x_stride, i32 n_rows) {
    i64 bytes = kern_row_bytes(w);
    for (i32 o = out_lo; o < out_hi; o++) {
        const u8 *row = (const u8 *)w->data + o * bytes;
        for (i32 m = 0; m < n_rows; m++) {
            f32 lane[KERN_LANES] = {0};
            for (i32 i = 0; i < w->n_in; i++)
                lane[i % KERN_LANES] = kern_fmaf(ref_weight_(w->kind, row, i), x[m * x_stride + i],
                                                 lane[i % KERN_LANES]);
            y[m * y_stride + o] = ref_fold_(lane);
        }
    }
}

/* As ref_quantize_row, block by block; zeros fill the last run. llama.cpp's Q8_0 and Q8_K activations
 * differ in details only. */
static void ref_quantize_blocks(i8 *q, f32 *d, i16 *sums, const f32 *x, i32 n, i32 block) {
    i32 padded = kern_padded(n);
    memset(q + n, 0, (size_t)(padded - n));
    for (i32 b = 0; b < padded / block; b++) {
        f32 max = 0;
        d[b] = 0;
        if (b >= n / block) continue;
        for (i32 i = b * block; i < (b + 1) * block; i++) max = MAX_OF(f32_abs_(x[i]), max);
        f32 inv = max > 0 ? 127.0f / max : 0;
        d[b] = max / 127.0f;
        for (i32 i = b * block; i < (b + 1) * block; i++) {
            f32 v = x[i] * inv;
            if (!(v >= -127.0f)) v = -127.0f;
            q[i] = (i8)f32_rint_(MIN_OF(v, 127.0f));
        }
    }
    for (i32 s = 0, run = kern_sum_run(block); s < padded / run; s++) {
        sums[s] = 0;
        for (i32 i = run * s; i < run * s + run; i++) sums[s] = (i16)(sums[s] + q[i]);
    }
}

/* The integer sums of one block: |scale * q_w * q| <= 128 * 128 * 127, 256 of them stay below 2^30.
 */
static f32 ref_block_dot_(const DlmUnpacked *u, const i8 *q, const i16 *sums, i32 block, f32 d) {
    i32 dot = 0, low = 0;
    for (i32 i = 0; i < block; i++) dot += u->scale[i / 16] * u->q[i] * q[i];
    for (i32 s = 0, run = kern_sum_run(block); s < block / run; s++)
        low += u->minimum[s * run / 16] * sums[s];
    return (f32)dot * (u->d * d) - (f32)low * (u->dmin * d);
}

/* Blocks of 256 add in rising order; blocks of 32 in 8 lanes, block b in lane b mod 8, folded as
 * above. */
#define KERN_BLOCK_LANES 8
static void ref_blocks(f32 *y, i64 y_stride, const DlmMat *w, i32 out_lo, i32 out_hi, const i8 *q,
                       const f32 *d, const i16 *sums, i32 n_rows) {
    const DlmTypeInfo *info = quant_info(w->type);
    i32 block = (i32)info->block, n_blocks = w->n_in / block,
        n_lanes = block == 32 ? KERN_BLOCK_LANES : 1, stride = kern_padded(w->n_in);
    for (i32 o = out_lo; o < out_hi; o++) {
        const u8 *row = (const u8 *)w->data + o * kern_row_bytes(w);
        for (i32 m = 0; m < n_rows; m++) {
            f32 lane[KERN_BLOCK_LANES] = {0};
            for (i32 b = 0; b < n_blocks; b++) {
                DlmUnpacked u;
                i64 at = (i64)m * stride + b * block;
                quant_unpack(w->type, row + (i64)b * info->bytes, &u);
                lane[b % n_lanes] += ref_block_dot_(&u, q + at, sums + at / kern_sum_run(block),
                                                    block, d[at / block]);
            }
            for (i32 half = n_lanes / 2; half > 0; half /= 2)
                for (i32 j = 0; j < half; j++) lane[j] += lane[j + half];
            y[m * y_stride + o] = lane[0];
        }
    }
}

static void ref_rms_norm(f32 *y, const f32 *x, const f32 *gain, i32 n, f32 eps) {
    f32 r = 1.0f / kern_sqrtf(ref_dot_(x, x, n) / (f32)n + eps);
    for (i32 i = 0; i < n; i++) y[i] = x[i] * r * gain[i];
}

static void ref_gate(f32 *gate, const f32 *up, i32 n, DlmAct act) {
    for (i32 i = 0; i < n; i++) {
        f32 g = gate[i];
        if (act == DLM_ACT_RELU2) {
            g = g > 0 ? g : 0;
            gate[i] = g * g * up[i];
        } else {
            gate[i] = g / (1.0f + kern_expf(-g)) * up[i];
        }
    }
}

static void ref_add(f32 *y, const f32 *x, i32 n) {
    for (i32 i = 0; i < n; i++) y[i] += x[i];
}

/* Su et al. 2021, eq. 34: each pair turns by pos * inv_freq. From pair `first` on. */
static void ref_rope_from_(f32 *x, i32 n_head, i32 head_dim, i32 n_rot, const f32 *turn,
                           DlmRope kind, i32 first) {
    i32 half = n_rot / 2, step = kind == DLM_ROPE_NORM ? 2 : 1,
        apart = kind == DLM_ROPE_NORM ? 1 : half;
    for (i32 h = 0; h < n_head; h++, x += head_dim)
        for (i32 i = first; i < half; i++) {
            f32 a = x[i * step], b = x[i * step + apart], cos = turn[2 * i], sin = turn[2 * i + 1];
            x[i * step] = a * cos - b * sin;
            x[i * step + apart] = b * cos + a * sin;
        }
}

static void ref_rope(f32 *x, i32 n_head, i32 head_dim, i32 n_rot, const f32 *turn, DlmRope kind) {
    ref_rope_from_(x, n_head, head_dim, n_rot, turn, kind, 0);
}

static void ref_to_f16(u16 *h, const f32 *x, i32 n) {
    for (i32 i = 0; i < n; i++) h[i] = f32_to_f16(x[i]);
}

static void ref_from_f16(f32 *x, const u16 *h, i32 n) {
    for (i32 i = 0; i < n; i++) x[i] = f16_to_f32(h[i]);
}

static void ref_to_q8_0(DlmBlockQ8_0 *b, const f32 *x, i32 n) {
    for (; n > 0; n -= DLM_QK8_0, x += DLM_QK8_0, b++) {
        f32 max = 0;
        for (i32 i = 0; i < DLM_QK8_0; i++) max = MAX_OF(f32_abs_(x[i]), max);
        f32 inv = max > 0 ? 127.0f / max : 0;
        b->d = f32_to_f16(max / 127.0f);
        for (i32 i = 0; i < DLM_QK8_0; i++) {
            f32 v = x[i] * inv;
            if (!(v >= -127.0f)) v = -127.0f; /* NaN too */
            b->q[i] = (i8)f32_rint_(MIN_OF(v, 127.0f));
        }
    }
}

/* Element i of a key or value. */
static f32 ref_kv_(const void *p, DlmType type, i64 i) {
    if (type == DLM_F32) return ((const f32 *)p)[i];
    if (type == DLM_F16) return f16_to_f32(((const u16 *)p)[i]);
    const DlmBlockQ8_0 *b = (const DlmBlockQ8_0 *)p + i / DLM_QK8_0;
    return (f32)b->q[i % DLM_QK8_0] * f16_to_f32(b->d);
}

/* One query. Softmax attention over a contiguous range of cells: Vaswani et al. 2017, eq. 1, with the
 * maximum taken out. */
static void ref_attend_one_(f32 *out, const f32 *q, i32 lo, i32 hi, const void *k, const void *v,
                            DlmType type, i32 head_dim, f32 scale, f32 *scores) {
    i64 dim = head_dim;
    f32 max = KERN_MINUS_INF;
    for (i32 c = lo; c < hi; c++) {
        f32 lane[KERN_LANES] = {0};
        for (i32 i = 0; i < head_dim; i++)
            lane[i % KERN_LANES] =
                kern_fmaf(q[i], ref_kv_(k, type, c * dim + i), lane[i % KERN_LANES]);
        scores[c - lo] = ref_fold_(lane) * scale;
        max = MAX_OF(scores[c - lo], max);
    }
    f32 lane[KERN_LANES] = {0};
    for (i32 c = 0; c < hi - lo; c++)
        lane[c % KERN_LANES] += scores[c] = kern_expf(scores[c] - max);
    f32 inv = 1.0f / ref_fold_(lane);
    for (i32 i = 0; i < head_dim; i++) {
        f32 acc = 0;
        for (i32 c = lo; c < hi; c++)
            acc = kern_fmaf(scores[c - lo], ref_kv_(v, type, c * dim + i), acc);
        out[i] = acc * inv;
    }
}

static void ref_attend(f32 *const *out, const f32 *const *q, const i32 *lo, const i32 *hi, i32 n_q,
                       const void *k, const void *v, DlmType type, i32 head_dim, f32 scale,
                       f32 *scores, i64 scores_stride, const void *next) {
    (void)next;
    for (i32 i = 0; i < n_q; i++)
        ref_attend_one_(out[i], q[i], lo[i], hi[i], k, v, type, head_dim, scale,
                        scores + i * scores_stride);
}

static i32 ref_top1(const f32 *logits, i32 n, f32 *sum_exp) {
    i32 best = 0;
    for (i32 i = 1; i < n; i++) /* a NaN never wins; one in first place is passed over */
        if (logits[i] > logits[best] || (logits[best] != logits[best] && logits[i] == logits[i]))
            best = i;
    f32 lane[KERN_LANES] = {0};
    for (i32 i = 0; i < n; i++) lane[i % KERN_LANES] += kern_expf(logits[i] - logits[best]);
    *sum_exp = ref_fold_(lane);
    return best;
}

static void ref_exps(f32 *y, const f32 *x, f32 max, f32 scale, i32 n) {
    for (i32 i = 0; i < n; i++) y[i] = kern_expf((x[i] - max) * scale);
}

static i64 ref_peak(i64 n) {
    i32 acc = 0;
    for (i64 i = 0; i < n; i++) {
        acc += (i32)(i & 3) * (i8)i;
        __asm__ volatile("" : "+r"(acc));
    }
    return 1;
}

static const DlmKernels KERN_REF = {
    .name = "ref",
    .quantize_row = ref_quantize_row,
    .ternary = ref_ternary,
    .quantize_blocks = ref_quantize_blocks,
    .blocks = ref_blocks,
    .dense = ref_dense,
    .rms_norm = ref_rms_norm,
    .gate = ref_gate,
    .add = ref_add,
    .rope = ref_rope,
    .to_f16 = ref_to_f16,
    .from_f16 = ref_from_f16,
    .to_q8_0 = ref_to_q8_0,
    .attend = ref_attend,
    .top1 = ref_top1,
    .exps = ref_exps,
    .peak = ref_peak,
};

#endif

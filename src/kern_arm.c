/* kern_arm.c - the aarch64 kernels: neon, and above it dotprod and i8mm, which differ in the
 * ternary product.
 *
 * Owns:      nothing.
 * Stands on: base quant kern_ref kern_tile
 * Promises:  equal to kern_ref bit for bit; runs an instruction of dotprod or i8mm only where the
 *            kernel says that every core has it.
 *
 * The only room with arm_neon.h. The 16 lanes of the law are 4 registers, lanes 4j..4j+3 in
 * register j; products are fused into sums (vfmaq) where the law fuses them. NEON is part of every
 * aarch64; the functions of the other levels carry their target attribute, so the one translation
 * unit needs no -m flags. */
#ifndef DLM_KERN_ARM_C
#define DLM_KERN_ARM_C

#include "base.c"
#include "kern_ref.c"
#include "kern_tile.c"
#include "quant.c"

#if defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>

/* clang before 16 hides an extension's intrinsics unless the whole file is compiled for it. */
#if !defined(__clang__) || __clang_major__ >= 16
#define ARM_EXTENSIONS
#define DOTPROD_FN __attribute__((target("arch=armv8.2-a+dotprod")))
#define I8MM_FN __attribute__((target("arch=armv8.2-a+dotprod+i8mm")))
#endif

/* gcc's scheduler before register allocation spreads a register tile over more registers than
 * there are: without it the loop over an i8mm tile has 74 instructions instead of 89 (gcc 12). */
#if defined(__clang__)
#define TILE_FN
#else
#define TILE_FN __attribute__((optimize("no-schedule-insns")))
#endif

/* ---- float helpers ---- */

/* a > m ? a : m, so that a NaN in a is passed over; vmaxq would hand it on. */
INLINE float32x4_t neon_max_(float32x4_t a, float32x4_t m) {
    return vbslq_f32(vcgtq_f32(a, m), a, m);
}

INLINE float32x4_t neon_mul_add_(float32x4_t sum, float32x4_t a, float32x4_t b) {
    return vfmaq_f32(sum, a, b);
}

INLINE f32 neon_fold_(const float32x4_t lane[4]) {
    float32x4_t s4 = vaddq_f32(vaddq_f32(lane[0], lane[2]), vaddq_f32(lane[1], lane[3]));
    float32x2_t s2 = vadd_f32(vget_low_f32(s4), vget_high_f32(s4));
    return vget_lane_f32(s2, 0) + vget_lane_f32(s2, 1);
}

/* Adds the terms t[0..n_tail), the last of a sum, to the lanes and folds. */
INLINE f32 neon_fold_tail_(const float32x4_t lane[4], const f32 *t, i32 n_tail) {
    if (n_tail == 0) return neon_fold_(lane);
    f32 all[KERN_LANES];
    for (int j = 0; j < 4; j++) vst1q_f32(all + 4 * j, lane[j]);
    for (i32 i = 0; i < n_tail; i++) all[i] += t[i];
    return ref_fold_(all);
}

/* The same for the products of two tails. */
INLINE f32 neon_fold_products_(const float32x4_t lane[4], const f32 *a, const f32 *b, i32 n_tail) {
    if (n_tail == 0) return neon_fold_(lane);
    f32 all[KERN_LANES];
    for (int j = 0; j < 4; j++) vst1q_f32(all + 4 * j, lane[j]);
    return ref_fold_tail_(all, a, b, n_tail);
}

INLINE float32x4_t neon_exp_(float32x4_t x) { /* kern_expf, operation by operation */
    uint32x4_t keep = vcgeq_f32(x, vdupq_n_f32(KERN_EXP_LO));
    x = vminq_f32(x, vdupq_n_f32(KERN_EXP_HI));
    float32x4_t n = vrndnq_f32(vmulq_f32(x, vdupq_n_f32(KERN_LOG2E)));
    float32x4_t r = vsubq_f32(x, vmulq_f32(n, vdupq_n_f32(KERN_LN2_HI)));
    r = vsubq_f32(r, vmulq_f32(n, vdupq_n_f32(KERN_LN2_LO)));
    float32x4_t p = vdupq_n_f32(KERN_EXP_C[0]);
    UNROLL
    for (int i = 1; i < 6; i++) p = neon_mul_add_(vdupq_n_f32(KERN_EXP_C[i]), p, r);
    p = neon_mul_add_(vaddq_f32(r, vdupq_n_f32(1.0f)), p, vmulq_f32(r, r));
    int32x4_t bits = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    uint32x4_t e = vreinterpretq_u32_f32(vmulq_f32(p, vreinterpretq_f32_s32(bits)));
    return vreinterpretq_f32_u32(vandq_u32(e, keep));
}

/* ---- float kernels ---- */

static void neon_quantize_row(i8 *q, f32 *inv_scale, i32 *sum, const f32 *x, i32 n) {
    float32x4_t max4 = vdupq_n_f32(1e-5f);
    i32 i = 0;
    for (; i + 4 <= n; i += 4) max4 = neon_max_(vabsq_f32(vld1q_f32(x + i)), max4);
    f32 m = vmaxvq_f32(max4);
    for (; i < n; i++) m = MAX_OF(f32_abs_(x[i]), m);
    f32 s = 127.0f / m;
    float32x4_t lo4 = vdupq_n_f32(-128.0f), hi4 = vdupq_n_f32(127.0f);
    int32x4_t sum4 = vdupq_n_s32(0);
    for (i = 0; i + 8 <= n; i += 8) {
        int32x4_t c[2];
        UNROLL
        for (int j = 0; j < 2; j++) { /* vcvtnq rounds half to even */
            float32x4_t v = vmulq_n_f32(vld1q_f32(x + i + 4 * j), s);
            c[j] = vcvtnq_s32_f32(vminq_f32(neon_max_(v, lo4), hi4));
            sum4 = vaddq_s32(sum4, c[j]);
        }
        vst1_s8(q + i, vmovn_s16(vcombine_s16(vmovn_s32(c[0]), vmovn_s32(c[1]))));
    }
    i32 total = vaddvq_s32(sum4);
    for (; i < n; i++) {
        f32 v = x[i] * s;
        if (!(v >= -128.0f)) v = -128.0f;
        q[i] = (i8)f32_rint_(MIN_OF(v, 127.0f));
        total += q[i];
    }
    *inv_scale = 1.0f / s;
    *sum = total;
}

static void neon_rms_norm(f32 *y, const f32 *x, const f32 *gain, i32 n, f32 eps) {
    float32x4_t lane[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    i32 i = 0;
    for (; i + 16 <= n; i += 16) {
        UNROLL
        for (int j = 0; j < 4; j++) {
            float32x4_t v = vld1q_f32(x + i + 4 * j);
            lane[j] = neon_mul_add_(lane[j], v, v);
        }
    }
    f32 r = 1.0f / kern_sqrtf(neon_fold_products_(lane, x + i, x + i, n - i) / (f32)n + eps);
    for (i = 0; i + 4 <= n; i += 4)
        vst1q_f32(y + i, vmulq_f32(vmulq_n_f32(vld1q_f32(x + i), r), vld1q_f32(gain + i)));
    for (; i < n; i++) y[i] = x[i] * r * gain[i];
}

static void neon_gate(f32 *gate, const f32 *up, i32 n, DlmAct act) {
    const float32x4_t zero = vdupq_n_f32(0), one = vdupq_n_f32(1.0f);
    i32 i = 0;
    for (; i + 4 <= n; i += 4) {
        float32x4_t g = vld1q_f32(gate + i), u = vld1q_f32(up + i);
        if (act == DLM_ACT_RELU2) {
            g = neon_max_(g, zero);
            g = vmulq_f32(g, g);
        } else {
            g = vdivq_f32(g, vaddq_f32(one, neon_exp_(vnegq_f32(g))));
        }
        vst1q_f32(gate + i, vmulq_f32(g, u));
    }
    ref_gate(gate + i, up + i, n - i, act);
}

static void neon_add(f32 *y, const f32 *x, i32 n) {
    i32 i = 0;
    for (; i + 4 <= n; i += 4) vst1q_f32(y + i, vaddq_f32(vld1q_f32(y + i), vld1q_f32(x + i)));
    ref_add(y + i, x + i, n - i);
}

static void neon_to_f16(u16 *h, const f32 *x, i32 n) {
    i32 i = 0;
    for (; i + 4 <= n; i += 4)
        vst1_u16(h + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(x + i))));
    ref_to_f16(h + i, x + i, n - i);
}

static void neon_from_f16(f32 *x, const u16 *h, i32 n) {
    i32 i = 0;
    for (; i + 4 <= n; i += 4)
        vst1q_f32(x + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(h + i))));
    ref_from_f16(x + i, h + i, n - i);
}

static void neon_to_q8_0(DlmBlockQ8_0 *b, const f32 *x, i32 n) {
    const float32x4_t lo4 = vdupq_n_f32(-127.0f), hi4 = vdupq_n_f32(127.0f);
    for (; n > 0; n -= DLM_QK8_0, x += DLM_QK8_0, b++) {
        float32x4_t max4 = vdupq_n_f32(0);
        for (i32 i = 0; i < DLM_QK8_0; i += 4) max4 = neon_max_(vabsq_f32(vld1q_f32(x + i)), max4);
        f32 max = vmaxvq_f32(max4), inv = max > 0 ? 127.0f / max : 0;
        b->d = f32_to_f16(max / 127.0f);
        for (i32 i = 0; i < DLM_QK8_0; i += 8) {
            int32x4_t c[2];
            UNROLL
            for (int j = 0; j < 2; j++) {
                float32x4_t v = vmulq_n_f32(vld1q_f32(x + i + 4 * j), inv);
                c[j] = vcvtnq_s32_f32(vminq_f32(neon_max_(v, lo4), hi4));
            }
            vst1_s8(b->q + i, vmovn_s16(vcombine_s16(vmovn_s32(c[0]), vmovn_s32(c[1]))));
        }
    }
}

INLINE float32x4_t neon_load_f16_(const u16 *p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}

/* ---- attention: the steps of kern_tile.c ---- */

/* 4 elements of a key or value. */
INLINE float32x4_t neon_load_kv_(const u8 *p, DlmType type) {
    return type == DLM_F32 ? vld1q_f32((const f32 *)(const void *)p)
                           : neon_load_f16_((const u16 *)(const void *)p);
}

/* lane[m] += query m times the key, for 4 n_reg elements from i. */
INLINE void neon_products_(float32x4_t lane[4][4], const f32 *const *q, const u8 *k, DlmType type,
                           int n_q, i32 i, int n_reg) {
    UNROLL
    for (int j = 0; j < n_reg; j++) {
        float32x4_t key = neon_load_kv_(k + (i + 4 * j) * tile_kv_size_(type), type);
        UNROLL
        for (int m = 0; m < n_q; m++)
            lane[m][j] = neon_mul_add_(lane[m][j], vld1q_f32(q[m] + i + 4 * j), key);
    }
}

INLINE void neon_scores_(const TileAttend *a, DlmType type, i32 first, int n_q, i32 c, i32 end) {
    const f32 *const *q = a->q + first;
    f32 *to = a->scores + first * a->scores_stride;
    for (; c < end; c++) {
        const u8 *k = tile_cell_(a, a->k, c);
        float32x4_t lane[4][4];
        UNROLL
        for (int j = 0; j < 4 * n_q; j++) lane[j / 4][j % 4] = vdupq_n_f32(0);
        i32 i = 0;
        for (; i + 16 <= a->head_dim; i += 16) neon_products_(lane, q, k, type, n_q, i, 4);
        if (i < a->head_dim) neon_products_(lane, q, k, type, n_q, i, 2);
        UNROLL
        for (int m = 0; m < n_q; m++) to[m * a->scores_stride + c] = neon_fold_(lane[m]) * a->scale;
    }
}

/* out[m] += score * value for 4 n_v elements from i; out[m] begins at 0 and ends times inv[m]. */
INLINE void neon_values_some_(const TileAttend *a, DlmType type, i32 first, int n_q, i32 c, i32 end,
                              i32 i, int n_v) {
    float32x4_t acc[16];
    UNROLL
    for (int j = 0; j < n_q * n_v; j++)
        acc[j] = c == a->lo[first + j / n_v]
                     ? vdupq_n_f32(0)
                     : vld1q_f32(a->out[first + j / n_v] + i + 4 * (j % n_v));
    const f32 *s = a->scores + first * a->scores_stride;
    const u8 *v = tile_cell_(a, a->v, c) + i * tile_kv_size_(type);
    for (; c < end; c++, v += a->stride) {
        float32x4_t value[8];
        UNROLL
        for (int j = 0; j < n_v; j++)
            value[j] = neon_load_kv_(v + 4 * j * tile_kv_size_(type), type);
        UNROLL
        for (int m = 0; m < n_q; m++) {
            float32x4_t score = vdupq_n_f32(s[m * a->scores_stride + c]);
            UNROLL
            for (int j = 0; j < n_v; j++)
                acc[m * n_v + j] = neon_mul_add_(acc[m * n_v + j], score, value[j]);
        }
    }
    UNROLL
    for (int j = 0; j < n_q * n_v; j++) {
        i32 m = first + j / n_v;
        if (end == a->hi[m]) acc[j] = vmulq_n_f32(acc[j], a->inv[m]);
        vst1q_f32(a->out[m] + i + 4 * (j % n_v), acc[j]);
    }
}

INLINE void neon_values_(const TileAttend *a, DlmType type, i32 first, int n_q, i32 c, i32 end) {
    const int n_v = n_q == 4 ? 4 : 8;
    i32 i = 0;
    for (; i + 4 * n_v <= a->head_dim; i += 4 * n_v)
        neon_values_some_(a, type, first, n_q, c, end, i, n_v);
    for (; i < a->head_dim; i += 8) neon_values_some_(a, type, first, n_q, c, end, i, 2);
}

static void neon_widen(f32 *to, const u8 *blocks, i64 n, i64 ahead) {
    (void)ahead;
    for (; n > 0; n -= DLM_QK8_0, to += DLM_QK8_0, blocks += sizeof(DlmBlockQ8_0)) {
        f32 d = f16_to_f32(load_u16(blocks));
        UNROLL
        for (int i = 0; i < DLM_QK8_0; i += 8) {
            int16x8_t q = vmovl_s8(vld1_s8((const i8 *)blocks + 2 + i));
            vst1q_f32(to + i, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(q))), d));
            vst1q_f32(to + i + 4, vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_high_s16(q))), d));
        }
    }
}

static f32 neon_softmax(f32 *s, i32 n) {
    float32x4_t lane[4], max4 = vdupq_n_f32(KERN_MINUS_INF);
    i32 c = 0;
    for (; c + 4 <= n; c += 4) max4 = neon_max_(vld1q_f32(s + c), max4);
    f32 max = vmaxvq_f32(max4);
    for (; c < n; c++) max = MAX_OF(s[c], max);
    UNROLL
    for (int j = 0; j < 4; j++) lane[j] = vdupq_n_f32(0);
    for (c = 0; c + 16 <= n; c += 16) {
        UNROLL
        for (int j = 0; j < 4; j++) {
            float32x4_t e = neon_exp_(vsubq_f32(vld1q_f32(s + c + 4 * j), vdupq_n_f32(max)));
            vst1q_f32(s + c + 4 * j, e);
            lane[j] = vaddq_f32(lane[j], e);
        }
    }
    for (i32 j = c; j < n; j++) s[j] = kern_expf(s[j] - max);
    return neon_fold_tail_(lane, s + c, n - c);
}

TILE_ATTEND(neon, TILE_FN)

static i32 neon_top1(const f32 *logits, i32 n, f32 *sum_exp) {
    float32x4_t max4 = vdupq_n_f32(KERN_MINUS_INF);
    i32 i = 0;
    for (; i + 4 <= n; i += 4) max4 = neon_max_(vld1q_f32(logits + i), max4);
    f32 max = vmaxvq_f32(max4);
    for (; i < n; i++) max = MAX_OF(logits[i], max);
    i32 best = 0;
    while (best < n && logits[best] != max) best++;
    if (best == n) return ref_top1(logits, n, sum_exp); /* nothing but NaN: let the law decide */
    float32x4_t lane[4] = {vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0), vdupq_n_f32(0)};
    max4 = vdupq_n_f32(max);
    for (i = 0; i + 16 <= n; i += 16) {
        UNROLL
        for (int j = 0; j < 4; j++)
            lane[j] = vaddq_f32(lane[j], neon_exp_(vsubq_f32(vld1q_f32(logits + i + 4 * j), max4)));
    }
    f32 t[KERN_LANES];
    for (i32 j = i; j < n; j++) t[j - i] = kern_expf(logits[j] - max);
    *sum_exp = neon_fold_tail_(lane, t, n - i);
    return best;
}

static void neon_exps(f32 *y, const f32 *x, f32 max, f32 scale, i32 n) {
    i32 i = 0;
    for (; i + 4 <= n; i += 4) {
        float32x4_t v = vsubq_f32(vld1q_f32(x + i), vdupq_n_f32(max));
        vst1q_f32(y + i, neon_exp_(vmulq_f32(v, vdupq_n_f32(scale))));
    }
    ref_exps(y + i, x + i, max, scale, n - i);
}

/* ---- dense matrices: one conversion of 16 weights serves up to 4 rows ---- */

INLINE void neon_load_weights_(DlmMatKind kind, const u8 *row, i32 i, float32x4_t w[4]) {
    UNROLL
    for (int j = 0; j < 4; j++) {
        if (kind == DLM_MAT_F32)
            w[j] = vld1q_f32((const f32 *)(const void *)row + i + 4 * j);
        else if (kind == DLM_MAT_F16)
            w[j] = neon_load_f16_((const u16 *)(const void *)row + i + 4 * j);
        else
            w[j] = vreinterpretq_f32_u32(
                vshll_n_u16(vld1_u16((const u16 *)(const void *)row + i + 4 * j), 16));
    }
}

INLINE void neon_dense_rows_(DlmMatKind kind, f32 *y, i64 y_stride, const u8 *row, i32 n_in,
                             const f32 *x, i64 x_stride, int n_rows) {
    float32x4_t lane[4][4]; /* [row][register] */
    UNROLL
    for (int m = 0; m < n_rows; m++) {
        UNROLL
        for (int j = 0; j < 4; j++) lane[m][j] = vdupq_n_f32(0);
    }
    i32 i = 0;
    for (; i + 16 <= n_in; i += 16) {
        float32x4_t w[4];
        neon_load_weights_(kind, row, i, w);
        UNROLL
        for (int m = 0; m < n_rows; m++) {
            UNROLL
            for (int j = 0; j < 4; j++)
                lane[m][j] =
                    neon_mul_add_(lane[m][j], w[j], vld1q_f32(x + m * x_stride + i + 4 * j));
        }
    }
    f32 tail[KERN_LANES];
    for (i32 j = i; j < n_in; j++) tail[j - i] = ref_weight_(kind, row, j);
    UNROLL
    for (int m = 0; m < n_rows; m++)
        y[m * y_stride] = neon_fold_products_(lane[m], tail, x + m * x_stride + i, n_in - i);
}

INLINE void neon_dense_kind_(DlmMatKind kind, f32 *y, i64 y_stride, const DlmMat *w, i32 out_lo,
                             i32 out_hi, const f32 *x, i64 x_stride, i32 n_rows) {
    i64 bytes = kern_row_bytes(w);
    for (i32 m = 0; m < n_rows;
         m += 4) /* rows outside: 4 rows of x stay in the first cache level */
        for (i32 o = out_lo; o < out_hi; o++) {
            const u8 *row = (const u8 *)w->data + o * bytes;
            f32 *out = y + m * y_stride + o;
            const f32 *in = x + m * x_stride;
            switch (MIN_OF(4, n_rows - m)) {
            case 4: neon_dense_rows_(kind, out, y_stride, row, w->n_in, in, x_stride, 4); break;
            case 3: neon_dense_rows_(kind, out, y_stride, row, w->n_in, in, x_stride, 3); break;
            case 2: neon_dense_rows_(kind, out, y_stride, row, w->n_in, in, x_stride, 2); break;
            default: neon_dense_rows_(kind, out, y_stride, row, w->n_in, in, x_stride, 1); break;
            }
        }
}

KERN_DENSE(, neon)

/* ---- scaled blocks: unpack a block once, multiply it with every row ---- */

static void neon_quantize_blocks(i8 *q, f32 *d, i16 *sums, const f32 *x, i32 n, i32 block) {
    i32 rest = kern_padded(n) - n; /* zeros */
    memset(q + n, 0, (size_t)rest);
    memset(d + n / block, 0, (size_t)(rest / block) * sizeof *d);
    i32 run = kern_sum_run(block);
    memset(sums + n / run, 0, (size_t)(rest / run) * sizeof *sums);
    for (i32 b = 0; b < n / block; b++, x += block, q += block) {
        float32x4_t max4 = vdupq_n_f32(0);
        for (i32 i = 0; i < block; i += 4) max4 = neon_max_(vabsq_f32(vld1q_f32(x + i)), max4);
        f32 max = vmaxvq_f32(max4), inv = max > 0 ? 127.0f / max : 0;
        d[b] = max / 127.0f;
        for (i32 i = 0; i < block; i += 16) {
            int32x4_t c[4];
            UNROLL
            for (int j = 0; j < 4; j++) {
                float32x4_t v =
                    neon_max_(vmulq_n_f32(vld1q_f32(x + i + 4 * j), inv), vdupq_n_f32(-127.0f));
                c[j] = vcvtnq_s32_f32(vminq_f32(v, vdupq_n_f32(127.0f)));
            }
            int16x8_t lo = vcombine_s16(vmovn_s32(c[0]), vmovn_s32(c[1]));
            int16x8_t hi = vcombine_s16(vmovn_s32(c[2]), vmovn_s32(c[3]));
            vst1q_s8(q + i, vcombine_s8(vmovn_s16(lo), vmovn_s16(hi)));
            if (run == 8)
                *sums++ = vaddvq_s16(lo), *sums++ = vaddvq_s16(hi);
            else
                *sums++ = vaddvq_s16(vaddq_s16(lo, hi));
        }
    }
}

static void neon_unpack_q6_K_(const DlmBlockQ6_K *b, DlmUnpacked *u) {
    for (int i = 0; i < 128;
         i += 16) { /* byte i of ql: elements 128 half + i % 64, and 64 further on */
        int half = i / 64, at = i % 64;
        uint8x16_t low = vld1q_u8(b->ql + i), high = vld1q_u8(b->qh + 32 * half + at % 32);
        i8 *to = u->q + 128 * half + at;
        if (at >= 32) high = vshrq_n_u8(high, 2);
        uint8x16_t h0 = vshlq_n_u8(vandq_u8(high, vdupq_n_u8(3)), 4),
                   h1 = vandq_u8(high, vdupq_n_u8(0x30));
        uint8x16_t c0 = vorrq_u8(vandq_u8(low, vdupq_n_u8(15)), h0),
                   c1 = vorrq_u8(vshrq_n_u8(low, 4), h1);
        vst1q_s8(to, vsubq_s8(vreinterpretq_s8_u8(c0), vdupq_n_s8(32)));
        vst1q_s8(to + 64, vsubq_s8(vreinterpretq_s8_u8(c1), vdupq_n_s8(32)));
    }
    int8x16_t scales = vld1q_s8(b->scales);
    vst1q_s16(u->scale, vmovl_s8(vget_low_s8(scales)));
    vst1q_s16(u->scale + 8, vmovl_high_s8(scales));
    u->d = f16_to_f32(b->d), u->dmin = 0;
}

static void neon_unpack_q4_K_(const DlmBlockQ4_K *b, DlmUnpacked *u) {
    for (int i = 0; i < 128; i += 16) {
        uint8x16_t v = vld1q_u8(b->qs + i);
        i8 *to = u->q + 64 * (i / 32) + i % 32;
        vst1q_s8(to, vreinterpretq_s8_u8(vandq_u8(v, vdupq_n_u8(15))));
        vst1q_s8(to + 32, vreinterpretq_s8_u8(vshrq_n_u8(v, 4)));
    }
    k_scales_(b->scales, u);
    u->d = f16_to_f32(b->d), u->dmin = f16_to_f32(b->dmin);
}

/* Sum of minimum * sums over the block's runs of 16. */
static i32 neon_block_low_(const DlmUnpacked *u, const i16 *sums, i32 block) {
    if (u->dmin == 0) return 0;
    if (block == 32) return u->minimum[0] * sums[0] + u->minimum[1] * sums[1];
    int32x4_t low = vdupq_n_s32(0);
    UNROLL
    for (int i = 0; i < DLM_QK_K / 16; i += 4)
        low = vmlal_s16(low, vld1_s16(u->minimum + i),
                        vpadd_s16(vld1_s16(sums + 2 * i), vld1_s16(sums + 2 * i + 4)));
    return vaddvq_s32(low);
}

/* The activations of n_rows rows at one block, and where to add the products. */
#define NEON_BLOCK_ROWS 16
typedef struct {
    f32 *acc;    /* [n_rows], KERN_BLOCK_LANES apart */
    const i8 *q; /* [n_rows][stride] */
    const i16 *sums;
    const f32 *d;
    i32 stride, n_rows, block;
} NeonBlock;

INLINE void neon_block_add_(const NeonBlock *b, const DlmUnpacked *u, i32 m, int32x4_t dot) {
    f32 d = b->d[(i64)m * b->stride / b->block];
    i32 low = neon_block_low_(u, b->sums + (i64)m * b->stride / kern_sum_run(b->block), b->block);
    b->acc[m * KERN_BLOCK_LANES] += (f32)vaddvq_s32(dot) * (u->d * d) - (f32)low * (u->dmin * d);
}

/* 16-bit range: |w| <= 128 and |q| <= 127, so a lane that takes two products stays within
 * 2 * 16256 = 32512. */
static void neon_block_(const NeonBlock *b, const DlmUnpacked *u) {
    for (i32 m = 0; m < b->n_rows; m++) {
        int32x4_t dot = vdupq_n_s32(0);
        for (i32 i = 0; i < b->block; i += 16) {
            int8x16_t w = vld1q_s8(u->q + i), a = vld1q_s8(b->q + (i64)m * b->stride + i);
            int16x8_t p = vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(a)), w, a);
            dot = vmlal_n_s16(dot, vget_low_s16(p), u->scale[i / 16]);
            dot = vmlal_high_n_s16(dot, p, u->scale[i / 16]);
        }
        neon_block_add_(b, u, m, dot);
    }
}

#ifdef ARM_EXTENSIONS
DOTPROD_FN static void dotprod_block_(const NeonBlock *b, const DlmUnpacked *u) {
    for (i32 m = 0; m < b->n_rows; m++) {
        int32x4_t dot = vdupq_n_s32(0);
        for (i32 i = 0; i < b->block; i += 16) {
            int8x16_t w = vld1q_s8(u->q + i), a = vld1q_s8(b->q + (i64)m * b->stride + i);
            dot = vmlaq_n_s32(dot, vdotq_s32(vdupq_n_s32(0), w, a), u->scale[i / 16]);
        }
        neon_block_add_(b, u, m, dot);
    }
}
#endif

typedef void NeonBlockFn(const NeonBlock *b, const DlmUnpacked *u);

/* Output o of n_rows <= NEON_BLOCK_ROWS rows. */
INLINE void neon_blocks_out_(NeonBlockFn *block_fn, f32 *y, i64 y_stride, const DlmMat *w, i32 o,
                             NeonBlock at) {
    f32 lane[NEON_BLOCK_ROWS][KERN_BLOCK_LANES] = {{0}};
    const DlmTypeInfo *info = quant_info(w->type);
    const u8 *p = (const u8 *)w->data + o * kern_row_bytes(w);
    for (i32 b = 0; b < w->n_in / at.block; b++, p += info->bytes) {
        DlmUnpacked u;
        if (w->type == DLM_Q6_K)
            neon_unpack_q6_K_((const DlmBlockQ6_K *)(const void *)p, &u);
        else if (w->type == DLM_Q4_K)
            neon_unpack_q4_K_((const DlmBlockQ4_K *)(const void *)p, &u);
        else
            quant_unpack(w->type, p, &u);
        at.acc = &lane[0][at.block == 32 ? b % KERN_BLOCK_LANES : 0];
        block_fn(&at, &u);
        at.q += at.block, at.sums += at.block / kern_sum_run(at.block), at.d++;
    }
    for (i32 m = 0; m < at.n_rows; m++) {
        for (int half = KERN_BLOCK_LANES / 2; half > 0; half /= 2) /* lanes of 256-blocks are 0 */
            for (int j = 0; j < half; j++) lane[m][j] += lane[m][j + half];
        y[m * y_stride + o] = lane[m][0];
    }
}

INLINE void neon_blocks_by_(NeonBlockFn *block_fn, f32 *y, i64 y_stride, const DlmMat *w,
                            i32 out_lo, i32 out_hi, const i8 *q, const f32 *d, const i16 *sums,
                            i32 n_rows) {
    i32 block = (i32)quant_info(w->type)->block, stride = kern_padded(w->n_in);
    for (i32 o = out_lo; o < out_hi; o++)
        for (i32 m = 0; m < n_rows; m += NEON_BLOCK_ROWS) {
            i64 at = (i64)m * stride;
            NeonBlock rows = {.q = q + at,
                              .sums = sums + at / kern_sum_run(block),
                              .d = d + at / block,
                              .stride = stride,
                              .block = block,
                              .n_rows = MIN_OF(NEON_BLOCK_ROWS, n_rows - m)};
            neon_blocks_out_(block_fn, y + m * y_stride, y_stride, w, o, rows);
        }
}

static void neon_blocks(f32 *y, i64 y_stride, const DlmMat *w, i32 out_lo, i32 out_hi, const i8 *q,
                        const f32 *d, const i16 *sums, i32 n_rows) {
    neon_blocks_by_(neon_block_, y, y_stride, w, out_lo, out_hi, q, d, sums, n_rows);
}

#ifdef ARM_EXTENSIONS
static void dotprod_blocks(f32 *y, i64 y_stride, const DlmMat *w, i32 out_lo, i32 out_hi,
                           const i8 *q, const f32 *d, const i16 *sums, i32 n_rows) {
    neon_blocks_by_(dotprod_block_, y, y_stride, w, out_lo, out_hi, q, d, sums, n_rows);
}
#endif

/* ---- ternary tiles ----
 *
 * Register v of a tile holds outputs 4v..4v+3, four bytes each; shifted by 2l and masked it holds
 * their codes for inputs 4l..4l+3. Instructions per tile and row, all counted, in the inner loops
 * of 1, 2, 4 and 8 rows that gcc 12 makes:
 *     neon    76   59.5               smlal: 8 multiply-adds
 *     dotprod 48   33    25    22.8   sdot: 16
 *     i8mm    48   32    21.3  18.5   smmla: 32, less the zips that feed it */

static i32 neon_sum(const i8 *q, i32 n) {
    int32x4_t sum = vdupq_n_s32(0);
    for (i32 i = 0; i < n; i += 16) sum = vpadalq_s16(sum, vpaddlq_s8(vld1q_s8(q + i)));
    return vaddvq_s32(sum);
}

/* 16-bit range proof: |code * q| <= 3 * 128 = 384. A lane takes 4 products per tile;
 * NEON_FLUSH = 21 tiles make 84 * 384 = 32256 < 32768. */
#define NEON_FLUSH 21

/* Sums of 2 rows fill 16 registers; 4 rows by half of the outputs measure no better, for each then
 * repeats the broadcasts of its activations. */
INLINE void neon_acc_(TileAcc acc, const u8 *tiles, i32 n_tiles, const i8 *q, i64 q_stride,
                      int n_rows) {
    const uint8x16_t mask = vdupq_n_u8(3);
    int32x4_t wide[16]; /* [row][v][outputs 4v, 4v + 1; 4v + 2, 4v + 3]; two lanes an output */
    for (int j = 0; j < 8 * n_rows; j++) wide[j] = vdupq_n_s32(0);
    for (i32 t = 0; t < n_tiles;) {
        int16x8_t part[16]; /* the same; four lanes an output */
        UNROLL
        for (int j = 0; j < 8 * n_rows; j++) part[j] = vdupq_n_s16(0);
        for (i32 end = MIN_OF(t + NEON_FLUSH, n_tiles); t < end; t++) {
            uint8x16_t w[4];
            int32x4_t a[2];
            UNROLL
            for (int v = 0; v < 4; v++) w[v] = vld1q_u8(tiles + (i64)t * DLM_TILE_BYTES + 16 * v);
            UNROLL
            for (int m = 0; m < n_rows; m++)
                a[m] = vreinterpretq_s32_s8(vld1q_s8(q + m * q_stride + (i64)t * DLM_TILE_IN));
            UNROLL
            for (int l = 0; l < 4; l++) {
                int8x16_t c[4];
                UNROLL
                for (int v = 0; v < 4; v++) {
                    c[v] = vreinterpretq_s8_u8(vandq_u8(w[v], mask));
                    w[v] = vshrq_n_u8(w[v], 2);
                }
                UNROLL
                for (int m = 0; m < n_rows; m++) {
                    int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(a[m][l]));
                    int16x8_t *sums = part + 8 * m;
                    UNROLL
                    for (int v = 0; v < 4; v++) {
                        sums[2 * v] = vmlal_s8(sums[2 * v], vget_low_s8(c[v]), vget_low_s8(four));
                        sums[2 * v + 1] = vmlal_high_s8(sums[2 * v + 1], c[v], four);
                    }
                }
            }
        }
        UNROLL
        for (int j = 0; j < 8 * n_rows; j++) wide[j] = vpadalq_s16(wide[j], part[j]);
    }
    for (int j = 0; j < 4 * n_rows; j++)
        vst1q_s32(acc[j / 4] + 4 * (j % 4), vpaddq_s32(wide[2 * j], wide[2 * j + 1]));
}

TILE_ROWS(neon, TILE_FN, 1)
TILE_ROWS(neon, TILE_FN, 2)
static const TileLevel neon_tiles = {
    .rows = {neon_acc1, neon_acc2}, .finish = tile_finish, .sum = neon_sum};
TILE_TERNARY(neon)

#ifdef ARM_EXTENSIONS
/* One sdot multiplies 4 outputs by 4 inputs and adds to 32-bit lanes, an output each. Tiles of 8
 * rows take half of the outputs at a time. */
DOTPROD_FN INLINE void dotprod_part_(TileAcc acc, const u8 *tiles, i32 n_tiles, const i8 *q,
                                     i64 q_stride, int n_rows, int v0, int n_vec) {
    const uint8x16_t mask = vdupq_n_u8(3);
    int32x4_t part[16]; /* [row][v] */
    UNROLL
    for (int j = 0; j < n_rows * n_vec; j++) part[j] = vdupq_n_s32(0);
    for (i32 t = 0; t < n_tiles; t++) {
        int8x16_t a[8];
        UNROLL
        for (int m = 0; m < n_rows; m++) a[m] = vld1q_s8(q + m * q_stride + (i64)t * DLM_TILE_IN);
        UNROLL
        for (int v = 0; v < n_vec; v++) {
            uint8x16_t w = vld1q_u8(tiles + (i64)t * DLM_TILE_BYTES + 16 * (v0 + v));
            int8x16_t c0 = vreinterpretq_s8_u8(vandq_u8(w, mask));
            int8x16_t c1 = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(w, 2), mask));
            int8x16_t c2 = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(w, 4), mask));
            int8x16_t c3 = vreinterpretq_s8_u8(vshrq_n_u8(w, 6));
            UNROLL
            for (int m = 0; m < n_rows; m++) {
                int32x4_t *sums = part + m * n_vec + v;
                *sums = vdotq_laneq_s32(*sums, c0, a[m], 0);
                *sums = vdotq_laneq_s32(*sums, c1, a[m], 1);
                *sums = vdotq_laneq_s32(*sums, c2, a[m], 2);
                *sums = vdotq_laneq_s32(*sums, c3, a[m], 3);
            }
        }
    }
    UNROLL
    for (int j = 0; j < n_rows * n_vec; j++)
        vst1q_s32(acc[j / n_vec] + 4 * (v0 + j % n_vec), part[j]);
}

DOTPROD_FN INLINE void dotprod_acc_(TileAcc acc, const u8 *tiles, i32 n_tiles, const i8 *q,
                                    i64 q_stride, int n_rows) {
    const int n_vec = n_rows == 8 ? 2 : 4;
    for (int v0 = 0; v0 < 4; v0 += n_vec)
        dotprod_part_(acc, tiles, n_tiles, q, q_stride, n_rows, v0, n_vec);
}

TILE_ROWS(dotprod, DOTPROD_FN TILE_FN, 1)
TILE_ROWS(dotprod, DOTPROD_FN TILE_FN, 2)
TILE_ROWS(dotprod, DOTPROD_FN TILE_FN, 4)
TILE_ROWS(dotprod, DOTPROD_FN TILE_FN, 8)
static const TileLevel dotprod_tiles = {
    .rows = {[0] = dotprod_acc1, [1] = dotprod_acc2, [3] = dotprod_acc4, [7] = dotprod_acc8},
    .finish = tile_finish,
    .sum = neon_sum};
TILE_TERNARY(dotprod)

/* One smmla multiplies 2 outputs by 2 rows, over 8 inputs each: twice an sdot. Zipping a tile
 * register with itself shifted by 2 puts inputs 0..7 of an output side by side, in bits 0..1, and
 * inputs 8..15 in bits 4..5; zipping two rows of activations does the same for them. A single row
 * gains nothing and is left to sdot. */
I8MM_FN INLINE void i8mm_part_(TileAcc acc, const u8 *tiles, i32 n_tiles, const i8 *q, i64 q_stride,
                               int n_rows, int v0, int n_vec) {
    const uint8x16_t mask = vdupq_n_u8(3);
    const int n_pairs = n_rows / 2;
    int32x4_t part[16]; /* [pair of rows][v][2]: two outputs, each by two rows */
    UNROLL
    for (int j = 0; j < 2 * n_pairs * n_vec; j++) part[j] = vdupq_n_s32(0);
    for (i32 t = 0; t < n_tiles; t++) {
        int8x16_t a[8]; /* [pair of rows][inputs 0..7, 8..15] */
        UNROLL
        for (int p = 0; p < n_pairs; p++) {
            const i8 *q0 = q + 2 * p * q_stride + (i64)t * DLM_TILE_IN;
            int64x2_t r0 = vreinterpretq_s64_s8(vld1q_s8(q0)),
                      r1 = vreinterpretq_s64_s8(vld1q_s8(q0 + q_stride));
            a[2 * p] = vreinterpretq_s8_s64(vzip1q_s64(r0, r1));
            a[2 * p + 1] = vreinterpretq_s8_s64(vzip2q_s64(r0, r1));
        }
        UNROLL
        for (int v = 0; v < n_vec; v++) {
            uint8x16_t w = vld1q_u8(tiles + (i64)t * DLM_TILE_BYTES + 16 * (v0 + v));
            uint32x4_t even = vreinterpretq_u32_u8(w), odd = vreinterpretq_u32_u8(vshrq_n_u8(w, 2));
            uint8x16_t z[2] = {vreinterpretq_u8_u32(vzip1q_u32(even, odd)),
                               vreinterpretq_u8_u32(vzip2q_u32(even, odd))};
            UNROLL
            for (int h = 0; h < 2; h++) { /* outputs 4v, 4v + 1, then 4v + 2, 4v + 3 */
                int8x16_t c0 = vreinterpretq_s8_u8(vandq_u8(z[h], mask));
                int8x16_t c1 = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(z[h], 4), mask));
                UNROLL
                for (int p = 0; p < n_pairs; p++) {
                    int32x4_t *sums = part + 2 * (p * n_vec + v) + h;
                    *sums = vmmlaq_s32(*sums, c0, a[2 * p]);
                    *sums = vmmlaq_s32(*sums, c1, a[2 * p + 1]);
                }
            }
        }
    }
    UNROLL
    for (int j = 0; j < n_pairs * n_vec; j++) {
        int p = j / n_vec, o = 4 * (v0 + j % n_vec);
        vst1q_s32(acc[2 * p] + o, vuzp1q_s32(part[2 * j], part[2 * j + 1]));
        vst1q_s32(acc[2 * p + 1] + o, vuzp2q_s32(part[2 * j], part[2 * j + 1]));
    }
}

I8MM_FN INLINE void i8mm_acc_(TileAcc acc, const u8 *tiles, i32 n_tiles, const i8 *q, i64 q_stride,
                              int n_rows) {
    const int n_vec = n_rows == 8 ? 2 : 4;
    for (int v0 = 0; v0 < 4; v0 += n_vec)
        i8mm_part_(acc, tiles, n_tiles, q, q_stride, n_rows, v0, n_vec);
}

TILE_ROWS(i8mm, I8MM_FN TILE_FN, 2)
TILE_ROWS(i8mm, I8MM_FN TILE_FN, 4)
TILE_ROWS(i8mm, I8MM_FN TILE_FN, 8)
static const TileLevel i8mm_tiles = {
    .rows = {[0] = dotprod_acc1, [1] = i8mm_acc2, [3] = i8mm_acc4, [7] = i8mm_acc8},
    .finish = tile_finish,
    .sum = neon_sum};
TILE_TERNARY(i8mm)
#endif

/* ---- levels ---- */

#define ARM_LEVEL(level_name, ternary_fn, blocks_fn)                                              \
    {                                                                                             \
        .name = level_name, .quantize_row = neon_quantize_row, .ternary = ternary_fn,             \
        .quantize_blocks = neon_quantize_blocks, .blocks = blocks_fn, .dense = neon_dense,        \
        .rms_norm = neon_rms_norm, .gate = neon_gate, .add = neon_add, .rope = ref_rope,          \
        .to_f16 = neon_to_f16, .from_f16 = neon_from_f16, .to_q8_0 = neon_to_q8_0,                \
        .attend = neon_attend, .top1 = neon_top1, .exps = neon_exps                               \
    }
static const DlmKernels KERN_NEON = ARM_LEVEL("neon", neon_ternary, neon_blocks);
#ifdef ARM_EXTENSIONS
static const DlmKernels KERN_DOTPROD = ARM_LEVEL("dotprod", dotprod_ternary, dotprod_blocks);
static const DlmKernels KERN_I8MM = ARM_LEVEL("i8mm", i8mm_ternary, dotprod_blocks);
#endif

/* The levels that this machine can run, best first; NULL past the last. The kernel reports what
 * all cores have. */
static const DlmKernels *kern_arm_level(int i) {
#ifdef ARM_EXTENSIONS
    bool dotprod = getauxval(AT_HWCAP) & HWCAP_ASIMDDP,
         i8mm = dotprod && getauxval(AT_HWCAP2) & HWCAP2_I8MM;
    if (i8mm && i-- == 0) return &KERN_I8MM;
    if (dotprod && i-- == 0) return &KERN_DOTPROD;
#endif
    return i == 0 ? &KERN_NEON : NULL;
}

#else

static const DlmKernels *kern_arm_level(int i) {
    (void)i;
    return NULL;
}

#endif
#endif

/* kern_x86.c - the x86-64 kernels: avx2 (with fma and f16c), and its siblings avxvnni and avx512.
 *
 * Owns:      nothing.
 * Stands on: base quant kern_ref kern_tile
 * Promises:  equal to kern_ref bit for bit; runs an instruction only after kern_x86_probe saw the
 *            CPU and the operating system offer it.
 *
 * The only room with immintrin.h. Each function carries its target attribute, so the one translation
 * unit needs no -m flags; helpers carry the attribute of a subset of their callers' and are
 * therefore inlined. */
#ifndef DLM_KERN_X86_C
#define DLM_KERN_X86_C

#include "base.c"
#include "kern_ref.c"
#include "kern_tile.c"
#include "quant.c"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

#define AVX2_FN __attribute__((target("avx2,fma,f16c")))
#define AVXVNNI_FN __attribute__((target("avx2,fma,f16c,avxvnni")))
/* Functions with large bodies and few callers that differ in one argument: one copy. */
#define NOINLINE __attribute__((noinline))
#define AVX512_FN __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")))

/* ---- which levels this machine has: Intel SDM vol. 2, CPUID leaves 1 and 7, and XCR0 ---- */

typedef struct {
    bool avx2, avxvnni, avx512;
} KernX86;

static u64 x86_xcr0_(void) {
    u32 lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (u64)hi << 32 | lo;
}

static KernX86 kern_x86_probe(void) {
    KernX86 has = {0};
    u32 a, b, c, d, b7, c7, d7;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return has;
    bool osxsave = c >> 27 & 1, avx = c >> 28 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1;
    if (!osxsave || !avx || !fma || !f16c) return has;
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return has;
    u64 xcr0 = x86_xcr0_();
    has.avx2 = (xcr0 & 6) == 6 && (b7 >> 5 & 1);
    bool zmm = (xcr0 & 0xe6) == 0xe6;
    has.avx512 =
        has.avx2 && zmm && (b7 >> 16 & 1) && (b7 >> 30 & 1) && (b7 >> 31 & 1) && (c7 >> 11 & 1);
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) has.avxvnni = has.avx2 && (a >> 4 & 1);
    return has;
}

/* ---- float helpers: lanes 0..7 in the first register of a pair, 8..15 in the second ---- */

AVX2_FN INLINE f32 avx2_fold_(__m256 lo, __m256 hi) {
    __m256 s8 = _mm256_add_ps(lo, hi);
    __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}

AVX2_FN INLINE __m256 avx2_exp_(__m256 x) { /* kern_expf, operation by operation */
    __m256 keep = _mm256_cmp_ps(x, _mm256_set1_ps(KERN_EXP_LO), _CMP_GE_OQ);
    x = _mm256_min_ps(x, _mm256_set1_ps(KERN_EXP_HI));
    __m256 magic = _mm256_set1_ps(12582912.0f);
    __m256 n =
        _mm256_sub_ps(_mm256_add_ps(_mm256_mul_ps(x, _mm256_set1_ps(KERN_LOG2E)), magic), magic);
    __m256 r = _mm256_sub_ps(_mm256_sub_ps(x, _mm256_mul_ps(n, _mm256_set1_ps(KERN_LN2_HI))),
                             _mm256_mul_ps(n, _mm256_set1_ps(KERN_LN2_LO)));
    __m256 p = _mm256_set1_ps(KERN_EXP_C[0]);
    for (int i = 1; i < 6; i++) p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(KERN_EXP_C[i]));
    p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1.0f)));
    __m256i bits =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(bits)), keep);
}

/* Adds the products of two tails to the lanes and folds them. */
AVX2_FN INLINE f32 avx2_fold_products_(__m256 lo, __m256 hi, const f32 *a, const f32 *b,
                                       i32 n_tail) {
    if (n_tail == 0) return avx2_fold_(lo, hi);
    f32 lane[KERN_LANES];
    _mm256_storeu_ps(lane, lo);
    _mm256_storeu_ps(lane + 8, hi);
    return ref_fold_tail_(lane, a, b, n_tail);
}

/* ---- float kernels ---- */

AVX2_FN static void avx2_quantize_row(i8 *q, f32 *inv_scale, i32 *sum, const f32 *x, i32 n) {
    const __m256 abs_mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 max8 = _mm256_set1_ps(1e-5f);
    i32 i = 0;
    for (; i + 8 <= n; i += 8)
        max8 = _mm256_max_ps(_mm256_and_ps(_mm256_loadu_ps(x + i), abs_mask), max8);
    f32 lane[8], m = 1e-5f;
    _mm256_storeu_ps(lane, max8);
    for (int j = 0; j < 8; j++) m = MAX_OF(lane[j], m);
    for (; i < n; i++) m = MAX_OF(f32_abs_(x[i]), m);
    f32 s = 127.0f / m;
    __m256 s8 = _mm256_set1_ps(s), lo8 = _mm256_set1_ps(-128.0f), hi8 = _mm256_set1_ps(127.0f);
    __m256i sum8 = _mm256_setzero_si256();
    for (i = 0; i + 8 <= n; i += 8) {
        __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + i), s8);
        __m256i c = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(v, lo8), hi8));
        sum8 = _mm256_add_epi32(sum8, c);
        __m128i w = _mm_packs_epi32(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1));
        _mm_storel_epi64((__m128i *)(void *)(q + i), _mm_packs_epi16(w, w));
    }
    i32 lanes[8], total = 0;
    _mm256_storeu_si256((__m256i *)(void *)lanes, sum8);
    for (int j = 0; j < 8; j++) total += lanes[j];
    for (; i < n; i++) {
        f32 v = x[i] * s;
        if (!(v >= -128.0f)) v = -128.0f;
        q[i] = (i8)f32_rint_(MIN_OF(v, 127.0f));
        total += q[i];
    }
    *inv_scale = 1.0f / s;
    *sum = total;
}

AVX2_FN static void avx2_rms_norm(f32 *y, const f32 *x, const f32 *gain, i32 n, f32 eps) {
    __m256 lo = _mm256_setzero_ps(), hi = lo;
    i32 i = 0;
    for (; i + 16 <= n; i += 16) {
        __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 8);
        lo = _mm256_fmadd_ps(a, a, lo);
        hi = _mm256_fmadd_ps(b, b, hi);
    }
    f32 r = 1.0f / kern_sqrtf(avx2_fold_products_(lo, hi, x + i, x + i, n - i) / (f32)n + eps);
    __m256 r8 = _mm256_set1_ps(r);
    for (i = 0; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), r8),
                                              _mm256_loadu_ps(gain + i)));
    for (; i < n; i++) y[i] = x[i] * r * gain[i];
}

AVX2_FN static void avx2_gate(f32 *gate, const f32 *up, i32 n, DlmAct act) {
    const __m256 zero = _mm256_setzero_ps(), one = _mm256_set1_ps(1.0f);
    i32 i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 g = _mm256_loadu_ps(gate + i), u = _mm256_loadu_ps(up + i);
        if (act == DLM_ACT_RELU2) {
            g = _mm256_max_ps(g, zero);
            g = _mm256_mul_ps(g, g);
        } else {
            __m256 minus = _mm256_xor_ps(g, _mm256_set1_ps(-0.0f));
            g = _mm256_div_ps(g, _mm256_add_ps(one, avx2_exp_(minus)));
        }
        _mm256_storeu_ps(gate + i, _mm256_mul_ps(g, u));
    }
    ref_gate(gate + i, up + i, n - i, act);
}

AVX2_FN static void avx2_add(f32 *y, const f32 *x, i32 n) {
    i32 i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_add_ps(_mm256_loadu_ps(y + i), _mm256_loadu_ps(x + i)));
    ref_add(y + i, x + i, n - i);
}

/* Pairs that lie side by side, 4 at a time, or n_rot / 2 apart, 8 at a time. */
AVX2_FN static void avx2_rope(f32 *x, i32 n_head, i32 head_dim, i32 n_rot, const f32 *turn,
                              DlmRope kind) {
    i32 half = n_rot / 2, i = 0;
    for (; kind == DLM_ROPE_NORM && i + 4 <= half; i += 4) {
        __m256 t = _mm256_loadu_ps(turn + 2 * i), cos = _mm256_moveldup_ps(t),
               sin = _mm256_movehdup_ps(t);
        for (i32 h = 0; h < n_head; h++) {
            f32 *at = x + h * head_dim + 2 * i;
            __m256 v = _mm256_loadu_ps(at), swapped = _mm256_permute_ps(v, 0xb1);
            _mm256_storeu_ps(at,
                             _mm256_addsub_ps(_mm256_mul_ps(v, cos), _mm256_mul_ps(swapped, sin)));
        }
    }
    for (; kind != DLM_ROPE_NORM && i + 8 <= half; i += 8) {
        __m256 t0 = _mm256_loadu_ps(turn + 2 * i), t1 = _mm256_loadu_ps(turn + 2 * i + 8);
        __m256d c = _mm256_castps_pd(_mm256_shuffle_ps(t0, t1, 0x88)),
                s = _mm256_castps_pd(_mm256_shuffle_ps(t0, t1, 0xdd));
        __m256 cos = _mm256_castpd_ps(_mm256_permute4x64_pd(c, 0xd8)),
               sin = _mm256_castpd_ps(_mm256_permute4x64_pd(s, 0xd8));
        for (i32 h = 0; h < n_head; h++) {
            f32 *at = x + h * head_dim + i;
            __m256 a = _mm256_loadu_ps(at), b = _mm256_loadu_ps(at + half);
            _mm256_storeu_ps(at, _mm256_sub_ps(_mm256_mul_ps(a, cos), _mm256_mul_ps(b, sin)));
            _mm256_storeu_ps(at + half,
                             _mm256_add_ps(_mm256_mul_ps(b, cos), _mm256_mul_ps(a, sin)));
        }
    }
    ref_rope_from_(x, n_head, head_dim, n_rot, turn, kind, i);
}

AVX2_FN static void avx2_to_f16(u16 *h, const f32 *x, i32 n) {
    i32 i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(void *)(h + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
    ref_to_f16(h + i, x + i, n - i);
}

AVX2_FN INLINE __m256 avx2_load_f16_(const u16 *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

AVX2_FN static void avx2_from_f16(f32 *x, const u16 *h, i32 n) {
    i32 i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_ps(x + i, avx2_load_f16_(h + i));
    ref_from_f16(x + i, h + i, n - i);
}

AVX2_FN static void avx2_to_q8_0(DlmBlockQ8_0 *b, const f32 *x, i32 n) {
    const __m256 abs_mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    const __m256 lo8 = _mm256_set1_ps(-127.0f), hi8 = _mm256_set1_ps(127.0f);
    for (; n > 0; n -= DLM_QK8_0, x += DLM_QK8_0, b++) {
        __m256 v[4], max8 = _mm256_setzero_ps();
        UNROLL
        for (int j = 0; j < 4; j++) {
            v[j] = _mm256_loadu_ps(x + 8 * j);
            max8 = _mm256_max_ps(_mm256_and_ps(v[j], abs_mask), max8);
        }
        __m128 max4 = _mm_max_ps(_mm256_castps256_ps128(max8), _mm256_extractf128_ps(max8, 1));
        max4 = _mm_max_ps(max4, _mm_movehl_ps(max4, max4));
        f32 max = _mm_cvtss_f32(_mm_max_ss(max4, _mm_shuffle_ps(max4, max4, 1)));
        __m256 inv = _mm256_set1_ps(max > 0 ? 127.0f / max : 0);
        b->d = (u16)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(max / 127.0f), 0));
        UNROLL
        for (int j = 0; j < 4; j++) {
            __m256 to = _mm256_min_ps(_mm256_max_ps(_mm256_mul_ps(v[j], inv), lo8), hi8);
            __m256i c = _mm256_cvtps_epi32(to);
            __m128i w = _mm_packs_epi32(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1));
            _mm_storel_epi64((__m128i *)(void *)(b->q + 8 * j), _mm_packs_epi16(w, w));
        }
    }
}

/* ---- attention: the steps of kern_tile.c ----
 *
 * Each score has its own 16 lanes; as many scores as a register has lanes are folded at once, by a
 * transposing tree of the law's additions. */

AVX2_FN INLINE void x86_ask_(const u8 *at, i64 ahead) { /* which may lie in another array */
    _mm_prefetch((const char *)((uintptr_t)at + (uintptr_t)ahead), _MM_HINT_T0);
}

AVX2_FN INLINE void x86_ask_kv_(const TileAttend *a, const u8 *at, DlmType type) {
    if (type == DLM_F16) x86_ask_(at, a->ahead); /* F32 was just widened, or is for comparisons */
}

/* n <= n_max scores; n_max, the usual number, is a constant. */
INLINE void avx2_put_scores_(f32 *to, const f32 *from, i32 n, int n_max) {
    if (n == n_max)
        memcpy(to, from, (size_t)n_max * sizeof *to);
    else
        for (i32 j = 0; j < n; j++) to[j] = from[j];
}

/* 8 elements of a key or value. */
AVX2_FN INLINE __m256 avx2_load_kv_(const u8 *p, DlmType type) {
    return type == DLM_F32 ? _mm256_loadu_ps((const f32 *)(const void *)p)
                           : avx2_load_f16_((const u16 *)(const void *)p);
}

/* Lane j: the sum of s[j]'s 8 lanes, in the law's order. */
AVX2_FN INLINE __m256 avx2_fold8_(const __m256 s[8]) {
    __m256 t[4], u[2];
    UNROLL
    for (int i = 0; i < 4; i++) /* 4 lanes each of s[i], s[i + 4] */
        t[i] = _mm256_add_ps(_mm256_permute2f128_ps(s[i], s[i + 4], 0x20),
                             _mm256_permute2f128_ps(s[i], s[i + 4], 0x31));
    UNROLL
    for (int i = 0; i < 2; i++) /* 2 lanes each of s[2 i], s[2 i + 1], and of those + 4 */
        u[i] = _mm256_add_ps(_mm256_shuffle_ps(t[2 * i], t[2 * i + 1], 0x44),
                             _mm256_shuffle_ps(t[2 * i], t[2 * i + 1], 0xee));
    return _mm256_add_ps(_mm256_shuffle_ps(u[0], u[1], 0x88), _mm256_shuffle_ps(u[0], u[1], 0xdd));
}

/* Scores of n_q queries at n <= 8 / n_q cells. */
AVX2_FN INLINE void avx2_scores8_(const TileAttend *a, DlmType type, i32 first, int n_q, i32 c,
                                  i32 n) {
    const int n_c = 8 / n_q;
    const u8 *k[8];
    __m256 sums[8];
    UNROLL
    for (int j = 0; j < n_c; j++) k[j] = tile_cell_(a, a->k, c + MIN_OF(j, n - 1));
    UNROLL
    for (int half = 0; half < 2; half++) { /* lanes 0..7, then 8..15: registers hold one half */
        __m256 acc[8];
        UNROLL
        for (int j = 0; j < 8; j++) acc[j] = _mm256_setzero_ps();
        for (i32 i = 8 * half; i < a->head_dim; i += 16) {
            __m256 key[8];
            UNROLL
            for (int j = 0; j < n_c; j++)
                key[j] = avx2_load_kv_(k[j] + i * tile_kv_size_(type), type);
            if (half == 0) {
                UNROLL
                for (int j = 0; j < n_c; j++)
                    x86_ask_kv_(a, k[j] + i * tile_kv_size_(type), type);
            }
            UNROLL
            for (int m = 0; m < n_q; m++) {
                __m256 q = _mm256_loadu_ps(a->q[first + m] + i);
                UNROLL
                for (int j = 0; j < n_c; j++)
                    acc[m * n_c + j] = _mm256_fmadd_ps(q, key[j], acc[m * n_c + j]);
            }
        }
        UNROLL
        for (int j = 0; j < 8; j++) sums[j] = half ? _mm256_add_ps(sums[j], acc[j]) : acc[j];
    }
    f32 out[8];
    _mm256_storeu_ps(out, _mm256_mul_ps(avx2_fold8_(sums), _mm256_set1_ps(a->scale)));
    UNROLL
    for (int m = 0; m < n_q; m++)
        avx2_put_scores_(a->scores + (first + m) * a->scores_stride + c, out + m * n_c, n, n_c);
}

AVX2_FN INLINE void avx2_scores_(const TileAttend *a, DlmType type, i32 first, int n_q, i32 c,
                                 i32 end) {
    for (; c < end; c += 8 / n_q) avx2_scores8_(a, type, first, n_q, c, MIN_OF(8 / n_q, end - c));
}

/* out[m] += score * value for 8 n_v elements from i; out[m] begins at 0 and ends times inv[m]. */
AVX2_FN INLINE void avx2_values8_(const TileAttend *a, DlmType type, i32 first, int n_q, i32 c,
                                  i32 end, i32 i, int n_v) {
    __m256 acc[8];
    UNROLL
    for (int j = 0; j < n_q * n_v; j++)
        acc[j] = c == a->lo[first + j / n_v]
                     ? _mm256_setzero_ps()
                     : _mm256_loadu_ps(a->out[first + j / n_v] + i + 8 * (j % n_v));
    const f32 *s = a->scores + first * a->scores_stride;
    const u8 *v = tile_cell_(a, a->v, c) + i * tile_kv_size_(type);
    for (; c < end; c++, v += a->stride) {
        __m256 value[8];
        UNROLL
        for (int j = 0; j < n_v; j++)
            value[j] = avx2_load_kv_(v + 8 * j * tile_kv_size_(type), type);
        x86_ask_kv_(a, v, type);
        UNROLL
        for (int m = 0; m < n_q; m++) {
            __m256 score = _mm256_broadcast_ss(s + m * a->scores_stride + c);
            UNROLL
            for (int j = 0; j < n_v; j++)
                acc[m * n_v + j] = _mm256_fmadd_ps(score, value[j], acc[m * n_v + j]);
        }
    }
    UNROLL
    for (int j = 0; j < n_q * n_v; j++) {
        i32 m = first + j / n_v;
        if (end == a->hi[m]) acc[j] = _mm256_mul_ps(acc[j], _mm256_set1_ps(a->inv[m]));
        _mm256_storeu_ps(a->out[m] + i + 8 * (j % n_v), acc[j]);
    }
}

AVX2_FN INLINE void avx2_values_(const TileAttend *a, DlmType type, i32 first, int n_q, i32 c,
                                 i32 end) {
    const int n_v = n_q == 4 ? 2 : 4;
    i32 i = 0;
    for (; i + 8 * n_v <= a->head_dim; i += 8 * n_v)
        avx2_values8_(a, type, first, n_q, c, end, i, n_v);
    for (; i < a->head_dim; i += 8) avx2_values8_(a, type, first, n_q, c, end, i, 1);
}

AVX2_FN static void avx2_widen(f32 *to, const u8 *blocks, i64 n, i64 ahead) {
    for (; n > 0; n -= DLM_QK8_0, to += DLM_QK8_0, blocks += sizeof(DlmBlockQ8_0)) {
        const i8 *q = (const i8 *)blocks + 2;
        __m256 d = _mm256_cvtph_ps(_mm_set1_epi16((i16)load_u16(blocks)));
        x86_ask_(blocks, ahead);
        UNROLL
        for (int i = 0; i < DLM_QK8_0; i += 8) {
            __m128i eight = _mm_loadl_epi64((const __m128i *)(const void *)(q + i));
            __m256 v = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight));
            _mm256_storeu_ps(to + i, _mm256_mul_ps(v, d));
        }
    }
}

AVX2_FN INLINE f32 avx2_max_(const f32 *x, i32 n) { /* passes over NaN, as the law does */
    __m256 max8 = _mm256_set1_ps(KERN_MINUS_INF);
    i32 i = 0;
    for (; i + 8 <= n; i += 8) max8 = _mm256_max_ps(_mm256_loadu_ps(x + i), max8);
    f32 lane[8], max = KERN_MINUS_INF;
    _mm256_storeu_ps(lane, max8);
    for (int j = 0; j < 8; j++) max = MAX_OF(lane[j], max);
    for (; i < n; i++) max = MAX_OF(x[i], max);
    return max;
}

/* e[0..n) = exp(x[i] - max) of n <= 16 floats; 0 for the others. */
AVX2_FN INLINE void avx2_exp16_(__m256 e[2], const f32 *x, i32 n, f32 max) {
    f32 some[KERN_LANES];
    if (n < KERN_LANES) {
        for (i32 j = 0; j < KERN_LANES; j++) some[j] = j < n ? x[j] : KERN_MINUS_INF;
        x = some;
    }
    for (int j = 0; j < 2; j++)
        e[j] = avx2_exp_(_mm256_sub_ps(_mm256_loadu_ps(x + 8 * j), _mm256_set1_ps(max)));
}

AVX2_FN static f32 avx2_softmax(f32 *s, i32 n) {
    __m256 lo = _mm256_setzero_ps(), hi = lo, e[2];
    f32 max = avx2_max_(s, n);
    for (i32 c = 0; c < n; c += KERN_LANES) {
        f32 some[KERN_LANES], *to = n - c < KERN_LANES ? some : s + c;
        avx2_exp16_(e, s + c, n - c, max);
        _mm256_storeu_ps(to, e[0]);
        _mm256_storeu_ps(to + 8, e[1]);
        for (i32 j = 0; to == some && j < n - c; j++) s[c + j] = some[j];
        lo = _mm256_add_ps(lo, e[0]);
        hi = _mm256_add_ps(hi, e[1]);
    }
    return avx2_fold_(lo, hi);
}

/* The same in registers of 16 lanes, the last of which the last 8 elements of a head may half
 * fill. */
AVX512_FN INLINE __mmask16 avx512_mask_(i32 n) {
    return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
}

/* Runs the statements for 16 elements of a row of n after the other; mask: those that there are. Whole
 * registers in a loop of their own, without masks, take 3/4 of the time. */
#define AVX512_ROW(i, n, mask, ...)                       \
    do {                                                  \
        i32 i = 0;                                        \
        for (; i + 16 <= (n); i += 16) {                  \
            const __mmask16 mask = 0xffff;                \
            __VA_ARGS__                                   \
        }                                                 \
        if (i < (n)) {                                    \
            const __mmask16 mask = avx512_mask_((n) - i); \
            __VA_ARGS__                                   \
        }                                                 \
    } while (0)

AVX512_FN INLINE __m512 avx512_load_kv_(const u8 *p, DlmType type, __mmask16 mask) {
    return type == DLM_F32 ? _mm512_maskz_loadu_ps(mask, p)
                           : _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p));
}

AVX512_FN INLINE __m512 avx512_fold16_(const __m512 s[16]) {
    __m512 t[8], u[4], v[2];
    UNROLL
    for (int i = 0; i < 8; i++) { /* 8 lanes each of s[k], s[k + 4], k in 0..3 and 8..11 */
        int k = i % 4 + i / 4 * 8;
        t[i] = _mm512_add_ps(_mm512_shuffle_f32x4(s[k], s[k + 4], 0x44),
                             _mm512_shuffle_f32x4(s[k], s[k + 4], 0xee));
    }
    UNROLL
    for (int i = 0; i < 4; i++) /* 4 lanes each of s[i], s[i + 4], s[i + 8], s[i + 12] */
        u[i] = _mm512_add_ps(_mm512_shuffle_f32x4(t[i], t[i + 4], 0x88),
                             _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd));
    UNROLL
    for (int i = 0; i < 2; i++)
        v[i] = _mm512_add_ps(_mm512_shuffle_ps(u[2 * i], u[2 * i + 1], 0x44),
                             _mm512_shuffle_ps(u[2 * i], u[2 * i + 1], 0xee));
    return _mm512_add_ps(_mm512_shuffle_ps(v[0], v[1], 0x88), _mm512_shuffle_ps(v[0], v[1], 0xdd));
}

/* to[m stride + j] = lane m n_c + j of v, for j < n <= n_c = 16 / n_rows. */
AVX512_FN INLINE void avx512_put_(f32 *to, i64 stride, __m512 v, int n_rows, i32 n) {
    const int n_c = 16 / n_rows;
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    UNROLL
    for (int m = 0; m < n_rows; m++, to += stride) {
        __m512 own = _mm512_permutexvar_ps(_mm512_add_epi32(lanes, _mm512_set1_epi32(m * n_c)), v);
        if (n < n_c)
            _mm512_mask_storeu_ps(to, avx512_mask_(n), own);
        else if (n_c == 16)
            _mm512_storeu_ps(to, own);
        else if (n_c == 8)
            _mm256_storeu_ps(to, _mm512_castps512_ps256(own));
        else
            _mm_storeu_ps(to, _mm512_castps512_ps128(own));
    }
}

/* Scores of n_q queries at n <= 16 / n_q cells. Where n and dim are constants the keys lie at constant
 * distances, and one register tells where. */
AVX512_FN INLINE void avx512_scores16_(const TileAttend *a, DlmType type, i32 first, int n_q, i32 c,
                                       i32 n, i32 dim) {
    const int n_c = 16 / n_q;
    const i64 size = tile_kv_size_(type);
    const u8 *k = tile_cell_(a, a->k, c);
    const f32 *q[4];
    __m512 acc[16];
    UNROLL
    for (int m = 0; m < n_q; m++) q[m] = a->q[first + m];
    UNROLL
    for (int j = 0; j < 16; j++) acc[j] = _mm512_setzero_ps();
    AVX512_ROW(i, dim, mask, {
        UNROLL
        for (int j = 0; j < n_c; j++) {
            const u8 *at = k + (MIN_OF(j, n - 1) * (i64)dim + i) * size;
            __m512 key = avx512_load_kv_(at, type, mask);
            x86_ask_kv_(a, at, type);
            UNROLL
            for (int m = 0; m < n_q; m++)
                acc[m * n_c + j] =
                    _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, q[m] + i), key, acc[m * n_c + j]);
        }
    });
    avx512_put_(a->scores + first * a->scores_stride + c, a->scores_stride,
                _mm512_mul_ps(avx512_fold16_(acc), _mm512_set1_ps(a->scale)), n_q, n);
}

/* Several cells at a time; the last of them may have been done before. */
AVX512_FN INLINE void avx512_scores_dim_(const TileAttend *a, DlmType type, i32 first, int n_q,
                                         i32 c, i32 end, i32 dim) {
    const int n_c = 16 / n_q;
    if (end - c < n_c)
        avx512_scores16_(a, type, first, n_q, c, end - c, dim);
    else
        for (; c < end; c += n_c)
            avx512_scores16_(a, type, first, n_q, MIN_OF(c, end - n_c), n_c, dim);
}

AVX512_FN INLINE void avx512_scores_(const TileAttend *a, DlmType type, i32 first, int n_q, i32 c,
                                     i32 end) {
    if (type == DLM_F16 && a->head_dim == 64) /* the usual cases */
        avx512_scores_dim_(a, type, first, n_q, c, end, 64);
    else if (type == DLM_F16 && a->head_dim == 128)
        avx512_scores_dim_(a, type, first, n_q, c, end, 128);
    else
        avx512_scores_dim_(a, type, first, n_q, c, end, a->head_dim);
}

AVX512_FN INLINE void avx512_values16_(const TileAttend *a, DlmType type, i32 first, int n_q, i32 c,
                                       i32 end, i32 i, int n_v) {
    const __mmask16 mask = n_v > 1 ? 0xffff : avx512_mask_(a->head_dim - i);
    __m512 acc[16];
    UNROLL
    for (int j = 0; j < n_q * n_v; j++)
        acc[j] = c == a->lo[first + j / n_v]
                     ? _mm512_setzero_ps()
                     : _mm512_maskz_loadu_ps(mask, a->out[first + j / n_v] + i + 16 * (j % n_v));
    const f32 *s = a->scores + first * a->scores_stride;
    const u8 *v = tile_cell_(a, a->v, c) + i * tile_kv_size_(type);
    for (; c < end; c++, v += a->stride) {
        __m512 value[8];
        UNROLL
        for (int j = 0; j < n_v; j++) {
            const u8 *at = v + 16 * j * tile_kv_size_(type);
            value[j] = avx512_load_kv_(at, type, mask);
            x86_ask_kv_(a, at, type);
        }
        UNROLL
        for (int m = 0; m < n_q; m++) {
            __m512 score = _mm512_set1_ps(s[m * a->scores_stride + c]);
            UNROLL
            for (int j = 0; j < n_v; j++)
                acc[m * n_v + j] = _mm512_fmadd_ps(score, value[j], acc[m * n_v + j]);
        }
    }
    UNROLL
    for (int j = 0; j < n_q * n_v; j++) {
        i32 m = first + j / n_v;
        if (end == a->hi[m]) acc[j] = _mm512_mul_ps(acc[j], _mm512_set1_ps(a->inv[m]));
        _mm512_mask_storeu_ps(a->out[m] + i + 16 * (j % n_v), mask, acc[j]);
    }
}

AVX512_FN INLINE void avx512_values_(const TileAttend *a, DlmType type, i32 first, int n_q, i32 c,
                                     i32 end) {
    i32 i = 0;
    for (; n_q < 4 && i + 128 <= a->head_dim; i += 128)
        avx512_values16_(a, type, first, n_q, c, end, i, 8);
    for (; i + 64 <= a->head_dim; i += 64) avx512_values16_(a, type, first, n_q, c, end, i, 4);
    for (; i < a->head_dim; i += 16) avx512_values16_(a, type, first, n_q, c, end, i, 1);
}

AVX512_FN INLINE __m512 avx512_exp_(__m512 x) {
    __mmask16 keep = _mm512_cmp_ps_mask(x, _mm512_set1_ps(KERN_EXP_LO), _CMP_GE_OQ);
    x = _mm512_min_ps(x, _mm512_set1_ps(KERN_EXP_HI));
    __m512 magic = _mm512_set1_ps(12582912.0f);
    __m512 n =
        _mm512_sub_ps(_mm512_add_ps(_mm512_mul_ps(x, _mm512_set1_ps(KERN_LOG2E)), magic), magic);
    __m512 r = _mm512_sub_ps(_mm512_sub_ps(x, _mm512_mul_ps(n, _mm512_set1_ps(KERN_LN2_HI))),
                             _mm512_mul_ps(n, _mm512_set1_ps(KERN_LN2_LO)));
    __m512 p = _mm512_set1_ps(KERN_EXP_C[0]);
    for (int i = 1; i < 6; i++) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(KERN_EXP_C[i]));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    __m512i bits =
        _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
    return _mm512_maskz_mul_ps(keep, p, _mm512_castsi512_ps(bits));
}

AVX512_FN INLINE f32 avx512_fold_(__m512 v) {
    __m256d hi = _mm512_extractf64x4_pd(_mm512_castps_pd(v), 1);
    return avx2_fold_(_mm512_castps512_ps256(v), _mm256_castpd_ps(hi));
}

AVX512_FN static void avx512_widen(f32 *to, const u8 *blocks, i64 n, i64 ahead) {
    for (; n > 0; n -= DLM_QK8_0, to += DLM_QK8_0, blocks += sizeof(DlmBlockQ8_0)) {
        const i8 *q = (const i8 *)blocks + 2;
        __m512 d = _mm512_cvtph_ps(_mm256_set1_epi16((i16)load_u16(blocks)));
        x86_ask_(blocks, ahead);
        UNROLL
        for (int i = 0; i < DLM_QK8_0; i += 16) {
            __m128i some = _mm_loadu_si128((const __m128i *)(const void *)(q + i));
            __m512 v = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(some));
            _mm512_storeu_ps(to + i, _mm512_mul_ps(v, d));
        }
    }
}

/* The largest of a row and `least`; passes over NaN, as the law does. */
AVX512_FN INLINE __m512 avx512_max_(const f32 *x, i32 n, __m512 least) {
    __m512 max = least;
    AVX512_ROW(i, n, mask, max = _mm512_max_ps(_mm512_mask_loadu_ps(least, mask, x + i), max););
    return _mm512_set1_ps(_mm512_reduce_max_ps(max));
}

AVX512_FN static f32 avx512_softmax(f32 *s, i32 n) {
    const __m512 none = _mm512_set1_ps(KERN_MINUS_INF), max = avx512_max_(s, n, none);
    __m512 sum = _mm512_setzero_ps();
    AVX512_ROW(i, n, mask, {
        __m512 e = avx512_exp_(_mm512_sub_ps(_mm512_mask_loadu_ps(none, mask, s + i), max));
        _mm512_mask_storeu_ps(s + i, mask, e);
        sum = _mm512_add_ps(sum, e); /* 0 where there is no score */
    });
    return avx512_fold_(sum);
}

TILE_ATTEND(avx2, AVX2_FN)
TILE_ATTEND(avx512, AVX512_FN)

/* ---- AVX-512: floats of a row, 16 at a time ---- */

/* Several rows side by side: what a row's next step waits for, another's does not. */
AVX512_FN INLINE void avx512_quantize_rows_(i8 *q, i64 q_stride, f32 *inv_scale, i32 *sum, const f32 *x,
                                            i32 n, int n_rows) {
    const __m512 lo = _mm512_set1_ps(-128.0f), hi = _mm512_set1_ps(127.0f);
    __m512 max[4], scale[4];
    __m512i total[4];
    UNROLL
    for (int m = 0; m < n_rows; m++)
        max[m] = _mm512_set1_ps(1e-5f), total[m] = _mm512_setzero_si512();
    AVX512_ROW(i, n, mask, {
        UNROLL
        for (int m = 0; m < n_rows; m++)
            max[m] = _mm512_max_ps(
                _mm512_abs_ps(_mm512_maskz_loadu_ps(mask, x + m * (i64)n + i)), max[m]);
    });
    UNROLL
    for (int m = 0; m < n_rows; m++) {
        f32 s = 127.0f / _mm512_reduce_max_ps(max[m]);
        scale[m] = _mm512_set1_ps(s);
        inv_scale[m] = 1.0f / s;
    }
    AVX512_ROW(i, n, mask, {
        UNROLL
        for (int m = 0; m < n_rows; m++) {
            __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + m * (i64)n + i), scale[m]);
            __m512i c = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(v, lo), hi));
            total[m] = _mm512_add_epi32(total[m], c);
            _mm_mask_storeu_epi8(q + m * q_stride + i, mask, _mm512_cvtepi32_epi8(c));
        }
    });
    UNROLL
    for (int m = 0; m < n_rows; m++) sum[m] = _mm512_reduce_add_epi32(total[m]);
}

AVX512_FN static void avx512_quantize_row(i8 *q, f32 *inv_scale, i32 *sum, const f32 *x, i32 n) {
    avx512_quantize_rows_(q, 0, inv_scale, sum, x, n, 1);
}

AVX512_FN static void avx512_quantize_row4(i8 *q, i64 q_stride, f32 *inv_scale, i32 *sum, const f32 *x,
                                           i32 n) {
    avx512_quantize_rows_(q, q_stride, inv_scale, sum, x, n, 4);
}

AVX512_FN INLINE void avx512_rms_norms_(f32 *y, const f32 *x, const f32 *gain, i32 n, f32 eps,
                                        int n_rows) {
    __m512 sum[4], r[4];
    UNROLL
    for (int m = 0; m < n_rows; m++) sum[m] = _mm512_setzero_ps();
    AVX512_ROW(i, n, mask, {
        UNROLL
        for (int m = 0; m < n_rows; m++) {
            __m512 v = _mm512_maskz_loadu_ps(mask, x + m * (i64)n + i);
            sum[m] = _mm512_fmadd_ps(v, v, sum[m]);
        }
    });
    UNROLL
    for (int m = 0; m < n_rows; m++)
        r[m] = _mm512_set1_ps(1.0f / kern_sqrtf(avx512_fold_(sum[m]) / (f32)n + eps));
    AVX512_ROW(i, n, mask, {
        const __m512 g = _mm512_maskz_loadu_ps(mask, gain + i);
        UNROLL
        for (int m = 0; m < n_rows; m++) {
            __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, x + m * (i64)n + i), r[m]);
            _mm512_mask_storeu_ps(y + m * (i64)n + i, mask, _mm512_mul_ps(v, g));
        }
    });
}

AVX512_FN static void avx512_rms_norm(f32 *y, const f32 *x, const f32 *gain, i32 n, f32 eps) {
    avx512_rms_norms_(y, x, gain, n, eps, 1);
}

AVX512_FN static void avx512_rms_norm4(f32 *y, const f32 *x, const f32 *gain, i32 n, f32 eps) {
    avx512_rms_norms_(y, x, gain, n, eps, 4);
}

AVX512_FN static i32 avx512_top1(const f32 *logits, i32 n, f32 *sum_exp) {
    const __m512 none = _mm512_set1_ps(KERN_MINUS_INF), max = avx512_max_(logits, n, none);
    __m512 sum = _mm512_setzero_ps();
    i32 best = n;
    for (i32 i = 0; i < n && best == n; i += 16) {
        __mmask16 mask = avx512_mask_(n - i);
        u32 same = _mm512_mask_cmp_ps_mask(mask, _mm512_maskz_loadu_ps(mask, logits + i), max,
                                           _CMP_EQ_OQ);
        if (same) best = i + __builtin_ctz(same);
    }
    if (best == n) return ref_top1(logits, n, sum_exp); /* nothing but NaN: let the law decide */
    AVX512_ROW(i, n, mask, {
        __m512 v = _mm512_mask_loadu_ps(none, mask, logits + i);
        sum = _mm512_add_ps(sum, avx512_exp_(_mm512_sub_ps(v, max)));
    });
    *sum_exp = avx512_fold_(sum);
    return best;
}

AVX512_FN static void avx512_exps(f32 *y, const f32 *x, f32 max, f32 scale, i32 n) {
    const __m512 max16 = _mm512_set1_ps(max), scale16 = _mm512_set1_ps(scale);
    AVX512_ROW(i, n, mask, {
        __m512 v = _mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + i), max16);
        _mm512_mask_storeu_ps(y + i, mask, avx512_exp_(_mm512_mul_ps(v, scale16)));
    });
}

AVX512_FN static void avx512_gate(f32 *gate, const f32 *up, i32 n, DlmAct act) {
    const __m512 zero = _mm512_setzero_ps();
    if (act != DLM_ACT_RELU2) { /* the exponential takes the time */
        avx2_gate(gate, up, n, act);
        return;
    }
    AVX512_ROW(i, n, mask, {
        __m512 g = _mm512_max_ps(_mm512_maskz_loadu_ps(mask, gate + i), zero);
        g = _mm512_mul_ps(_mm512_mul_ps(g, g), _mm512_maskz_loadu_ps(mask, up + i));
        _mm512_mask_storeu_ps(gate + i, mask, g);
    });
}

AVX512_FN static void avx512_add(f32 *y, const f32 *x, i32 n) {
    AVX512_ROW(i, n, mask, {
        __m512 v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y + i),
                                 _mm512_maskz_loadu_ps(mask, x + i));
        _mm512_mask_storeu_ps(y + i, mask, v);
    });
}

AVX2_FN static i32 avx2_top1(const f32 *logits, i32 n, f32 *sum_exp) {
    f32 max = avx2_max_(logits, n);
    i32 best = 0;
    while (best < n && logits[best] != max) best++;
    if (best == n) return ref_top1(logits, n, sum_exp); /* nothing but NaN: let the law decide */
    __m256 lo = _mm256_setzero_ps(), hi = lo, e[2];
    for (i32 i = 0; i < n; i += KERN_LANES) {
        avx2_exp16_(e, logits + i, n - i, max);
        lo = _mm256_add_ps(lo, e[0]);
        hi = _mm256_add_ps(hi, e[1]);
    }
    *sum_exp = avx2_fold_(lo, hi);
    return best;
}

AVX2_FN static void avx2_exps(f32 *y, const f32 *x, f32 max, f32 scale, i32 n) {
    i32 i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 v = _mm256_sub_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(max));
        _mm256_storeu_ps(y + i, avx2_exp_(_mm256_mul_ps(v, _mm256_set1_ps(scale))));
    }
    ref_exps(y + i, x + i, max, scale, n - i);
}

/* ---- dense matrices: one conversion of 16 weights serves up to 4 rows ---- */

AVX2_FN INLINE void avx2_load_weights_(DlmMatKind kind, const u8 *row, i32 i, __m256 *lo,
                                       __m256 *hi) {
    if (kind == DLM_MAT_F32) {
        *lo = _mm256_loadu_ps((const f32 *)(const void *)row + i);
        *hi = _mm256_loadu_ps((const f32 *)(const void *)row + i + 8);
    } else if (kind == DLM_MAT_F16) {
        *lo = avx2_load_f16_((const u16 *)(const void *)row + i);
        *hi = avx2_load_f16_((const u16 *)(const void *)row + i + 8);
    } else {
        const __m128i *p = (const __m128i *)(const void *)(row + 2 * (i64)i);
        *lo = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
        *hi = _mm256_castsi256_ps(
            _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p + 1)), 16));
    }
}

AVX2_FN INLINE void avx2_dense_rows_(DlmMatKind kind, f32 *y, i64 y_stride, const u8 *row, i32 n_in,
                                     const f32 *x, i64 x_stride, int n_rows) {
    __m256 lo[4], hi[4];
    UNROLL
    for (int m = 0; m < n_rows; m++) lo[m] = hi[m] = _mm256_setzero_ps();
    i32 i = 0;
    for (; i + 16 <= n_in; i += 16) {
        __m256 a, b;
        avx2_load_weights_(kind, row, i, &a, &b);
        UNROLL
        for (int m = 0; m < n_rows; m++) {
            const f32 *xm = x + m * x_stride + i;
            lo[m] = _mm256_fmadd_ps(a, _mm256_loadu_ps(xm), lo[m]);
            hi[m] = _mm256_fmadd_ps(b, _mm256_loadu_ps(xm + 8), hi[m]);
        }
    }
    f32 tail[KERN_LANES];
    for (i32 j = i; j < n_in; j++) tail[j - i] = ref_weight_(kind, row, j);
    UNROLL
    for (int m = 0; m < n_rows; m++)
        y[m * y_stride] = avx2_fold_products_(lo[m], hi[m], tail, x + m * x_stride + i, n_in - i);
}

AVX2_FN INLINE void avx2_dense_kind_(DlmMatKind kind, f32 *y, i64 y_stride, const DlmMat *w,
                                     i32 out_lo, i32 out_hi, const f32 *x, i64 x_stride,
                                     i32 n_rows) {
    i64 bytes = kern_row_bytes(w);
    for (i32 m = 0; m < n_rows;
         m += 4) /* rows outside: 4 rows of x stay in the first cache level */
        for (i32 o = out_lo; o < out_hi; o++) {
            const u8 *row = (const u8 *)w->data + o * bytes;
            f32 *out = y + m * y_stride + o;
            const f32 *in = x + m * x_stride;
            switch (MIN_OF(4, n_rows - m)) {
            case 4: avx2_dense_rows_(kind, out, y_stride, row, w->n_in, in, x_stride, 4); break;
            case 3: avx2_dense_rows_(kind, out, y_stride, row, w->n_in, in, x_stride, 3); break;
            case 2: avx2_dense_rows_(kind, out, y_stride, row, w->n_in, in, x_stride, 2); break;
            default: avx2_dense_rows_(kind, out, y_stride, row, w->n_in, in, x_stride, 1); break;
            }
        }
}

KERN_DENSE(AVX2_FN, avx2)

/* AVX-512: 4 outputs by 4 rows, 8 by 2 or 16 by 1, folded at once as scores are. */
AVX512_FN INLINE __m512 avx512_load_weights_(DlmMatKind kind, const u8 *p, __mmask16 mask) {
    if (kind == DLM_MAT_F32) return _mm512_maskz_loadu_ps(mask, p);
    __m256i half = _mm256_maskz_loadu_epi16(mask, p);
    if (kind == DLM_MAT_F16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

AVX512_FN INLINE void avx512_dense_rows_(DlmMatKind kind, f32 *y, i64 y_stride, const DlmMat *w,
                                         i32 o, i32 n_out, const f32 *x, i64 x_stride, int n_rows) {
    const int n_c = 16 / n_rows, size = kind == DLM_MAT_F32 ? 4 : 2;
    const i32 n_in = w->n_in, whole = n_in / 16 * 16;
    const u8 *row[16];
    __m512 acc[16], v[4];
    UNROLL
    for (int j = 0; j < n_c; j++)
        row[j] = (const u8 *)w->data + (i64)(o + MIN_OF(j, n_out - 1)) * n_in * size;
    UNROLL
    for (int j = 0; j < 16; j++) acc[j] = _mm512_setzero_ps();
    for (i32 i = 0; i < whole; i += 16) {
        UNROLL
        for (int m = 0; m < n_rows; m++) v[m] = _mm512_loadu_ps(x + m * x_stride + i);
        UNROLL
        for (int j = 0; j < n_c; j++) {
            __m512 weights = avx512_load_weights_(kind, row[j] + (i64)i * size, 0xffff);
            UNROLL
            for (int m = 0; m < n_rows; m++)
                acc[m * n_c + j] = _mm512_fmadd_ps(weights, v[m], acc[m * n_c + j]);
        }
    }
    const __mmask16 tail = (__mmask16)((1u << (n_in - whole)) - 1);
    if (tail) { /* the other lanes stay as they are */
        UNROLL
        for (int j = 0; j < 16; j++)
            acc[j] = _mm512_mask3_fmadd_ps(
                avx512_load_weights_(kind, row[j % n_c] + (i64)whole * size, tail),
                _mm512_maskz_loadu_ps(tail, x + j / n_c * x_stride + whole), acc[j], tail);
    }
    avx512_put_(y + o, y_stride, avx512_fold16_(acc), n_rows, n_out);
}

AVX512_FN INLINE void avx512_dense_kind_(DlmMatKind kind, f32 *y, i64 y_stride, const DlmMat *w,
                                         i32 out_lo, i32 out_hi, const f32 *x, i64 x_stride,
                                         i32 n_rows) {
    for (i32 first = out_lo; first < out_hi; first += 16) /* whose weights all rows share */
        for (i32 m = 0, step; m < n_rows; m += step) {
            i32 end = MIN_OF(first + 16, out_hi), left = n_rows - m;
            if (left == 3 && m > 0) m--, left++; /* one row again costs less than 2 and 1 */
            const f32 *xm = x + m * x_stride;
            f32 *ym = y + m * y_stride;
            step = left >= 4 ? 4 : left >= 2 ? 2 : 1;
            for (i32 o = first, n_c = 16 / step; o < end; o += n_c) {
                i32 n = MIN_OF(n_c, end - o);
                if (step == 4)
                    avx512_dense_rows_(kind, ym, y_stride, w, o, n, xm, x_stride, 4);
                else if (step == 2)
                    avx512_dense_rows_(kind, ym, y_stride, w, o, n, xm, x_stride, 2);
                else
                    avx512_dense_rows_(kind, ym, y_stride, w, o, n, xm, x_stride, 1);
            }
        }
}

KERN_DENSE(AVX512_FN, avx512)

/* ---- scaled blocks: activations ---- */

AVX2_FN INLINE __m256i avx2_load_(const void *p) {
    return _mm256_loadu_si256((const __m256i *)p);
}

AVX2_FN INLINE void avx2_store_(void *p, __m256i v) {
    _mm256_storeu_si256((__m256i *)p, v);
}

AVX2_FN INLINE i32 avx2_sum_i32_(__m256i v) {
    __m128i t = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1)));
}

/* 8 groups of 32 bytes, transposed: 4 bytes of each, the next 4 of each, and so on. */
AVX2_FN INLINE void avx2_transpose_(i8 *to, const __m256i v[8]) {
    __m256i a[8], b[8];
    UNROLL
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
    }
    UNROLL
    for (int i = 0; i < 8; i += 4) { /* bytes 4 k.. and 16 + 4 k.. of groups i..i + 3 */
        b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    UNROLL
    for (int k = 0; k < 4; k++) {
        avx2_store_(to + 32 * k, _mm256_permute2x128_si256(b[k], b[k + 4], 0x20));
        avx2_store_(to + 32 * k + 128, _mm256_permute2x128_si256(b[k], b[k + 4], 0x31));
    }
}

/* The order of each 16 bytes: 0 1 8 9, 2 3 10 11, 4 5 12 13, 6 7 14 15. */
AVX2_FN INLINE __m128i x86_order_(void) {
    return _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
}

AVX2_FN INLINE __m256i avx2_order_(__m256i v) {
    return _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(x86_order_()));
}

/* A run of 256 inputs lies transposed for the types whose blocks are 32 inputs long, and in the order
 * of avx2_order_ for the others; see there. */
AVX2_FN static void avx2_quantize_blocks(i8 *q, f32 *d, i16 *sums, const f32 *x, i32 n, i32 block) {
    const __m256 abs_mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256 inv = _mm256_setzero_ps();
    for (i32 run = 0; run < n; run += KERN_RUN, q += KERN_RUN) {
        __m256i group[8];
        for (i32 g = 0; g < 8; g++, sums += 32 / kern_sum_run(block)) {
            i32 at = run + 32 * g;
            if (at % block == 0) {
                __m256 max8 = _mm256_setzero_ps();
                for (i32 i = at; i < at + block && i < n; i += 8)
                    max8 = _mm256_max_ps(_mm256_and_ps(_mm256_loadu_ps(x + i), abs_mask), max8);
                f32 lane[8], max = 0;
                _mm256_storeu_ps(lane, max8);
                for (int j = 0; j < 8; j++) max = MAX_OF(lane[j], max);
                *d++ = max / 127.0f;
                inv = _mm256_set1_ps(max > 0 ? 127.0f / max : 0);
            }
            group[g] = _mm256_setzero_si256();
            memset(sums, 0, (size_t)(32 / kern_sum_run(block)) * sizeof *sums);
            if (at >= n) continue;
            __m256i c[4];
            for (int j = 0; j < 4; j++) {
                __m256 v = _mm256_max_ps(_mm256_mul_ps(_mm256_loadu_ps(x + at + 8 * j), inv),
                                         _mm256_set1_ps(-127.0f));
                c[j] = _mm256_cvtps_epi32(_mm256_min_ps(v, _mm256_set1_ps(127.0f)));
            }
            __m256i lo = _mm256_packs_epi32(c[0], c[1]), hi = _mm256_packs_epi32(c[2], c[3]);
            __m256i eights =
                _mm256_hadd_epi32(_mm256_hadd_epi32(c[0], c[1]), _mm256_hadd_epi32(c[2], c[3]));
            __m128i sum =
                _mm_add_epi32(_mm256_castsi256_si128(eights), _mm256_extracti128_si256(eights, 1));
            if (block == 32) sum = _mm_hadd_epi32(sum, sum);
            sum = _mm_packs_epi32(sum, sum);
            memcpy(sums, &sum, (size_t)(32 / kern_sum_run(block)) * sizeof *sums);
            group[g] = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(lo, hi), order);
        }
        if (block == 32)
            avx2_transpose_(q, group);
        else
            for (int g = 0; g < 8; g++) avx2_store_(q + 32 * g, avx2_order_(group[g]));
    }
}

/* A compiler may add integers in another order. gcc makes all products of a tile first, which then
 * live in memory; clang does not, and with this would leave loops rolled up. */
#if defined(__clang__)
#define IN_ORDER(sum) ((void)0)
#else
#define IN_ORDER(sum) __asm__("" : "+x"(sum))
#endif

/* ---- K types: blocks of 256 ----
 *
 * Each 16 activations lie in the order 0 1 8 9, 2 3 10 11, 4 5 12 13, 6 7 14 15: what vpmaddubsw adds
 * up to 16-bit lanes are then sums over 8 inputs, of which `sums` has the activations' own. */

/* Q4_K and Q6_K are rearranged at load, 32 outputs at a time, so that a lane belongs to an output and
 * nothing is summed across lanes. A group of codes is 4 inputs, in the order above, of all the
 * outputs. Two groups of Q4_K lie in the halves of the same bytes. Of four of Q6_K the first three
 * lie in the low 6 bits of bytes of their own, whose bits above are the fourth's. */
typedef struct {
    u8 code[DLM_QK_K / 16][2][4 * DLM_STRIP_OUT];
    u8 scale[DLM_QK_K / 32][DLM_STRIP_OUT], minimum[DLM_QK_K / 32][DLM_STRIP_OUT];
    u16 d[DLM_STRIP_OUT], dmin[DLM_STRIP_OUT];
} X86StripQ4K;

typedef struct {
    u8 code[DLM_QK_K / 16][3][4 * DLM_STRIP_OUT];
    i8 scale[DLM_QK_K / 16][DLM_STRIP_OUT];
    u16 d[DLM_STRIP_OUT];
} X86StripQ6K;
DLM_STATIC_ASSERT(sizeof(X86StripQ4K) % 64 == 0 && sizeof(X86StripQ6K) % 64 == 0,
                  "strips follow each other, aligned");

static i64 x86_strip_block_(DlmType type) {
    return type == DLM_Q4_K   ? (i64)sizeof(X86StripQ4K)
           : type == DLM_Q6_K ? (i64)sizeof(X86StripQ6K)
                              : 0;
}

static i64 x86_strip_bytes(const DlmMat *w) {
    return x86_strip_block_(w->type) * (w->n_in / DLM_QK_K);
}

AVX2_FN INLINE __m128i x86_load16_(const u8 *p) {
    return _mm_loadu_si128((const __m128i *)(const void *)p);
}

/* 16 codes of 0..15, or of 0..3, from the bits `shift`.. of 16 bytes. */
AVX2_FN INLINE __m128i x86_bits_(const u8 *p, int shift, int mask) {
    return _mm_and_si128(_mm_srl_epi16(x86_load16_(p), _mm_cvtsi32_si128(shift)),
                         _mm_set1_epi8((char)mask));
}

AVX2_FN INLINE void x86_strip_q4_K_(X86StripQ4K *s, const DlmBlockQ4_K *b, i32 o) {
    DlmUnpacked u;
    k_scales_(b->scales, &u);
    for (int i = 0; i < DLM_QK_K / 16; i++) { /* inputs 64 (i / 4) + 32 (i / 2 % 2) + 16 (i % 2) */
        __m128i c = x86_bits_(b->qs + 32 * (i / 4) + 16 * (i % 2), i / 2 % 2 * 4, 15);
        c = _mm_shuffle_epi8(c, x86_order_());
        c = _mm_or_si128(c, _mm_slli_epi64(_mm_srli_epi64(c, 32), 4)); /* groups 0 1, 2 3 */
        for (int j = 0; j < 2; j++) {
            u32 both = (u32)(j ? _mm_extract_epi32(c, 2) : _mm_cvtsi128_si32(c));
            memcpy(s->code[i][j] + 4 * o, &both, sizeof both);
        }
        s->scale[i / 2][o] = (u8)u.scale[i], s->minimum[i / 2][o] = (u8)u.minimum[i];
    }
    s->d[o] = b->d, s->dmin[o] = b->dmin;
}

AVX2_FN INLINE void x86_strip_q6_K_(X86StripQ6K *s, const DlmBlockQ6_K *b, i32 o) {
    for (int i = 0; i < DLM_QK_K / 16; i++) { /* inputs 128 (i / 8) + 32 quarter + 16 (i % 2) */
        int half = i / 8, quarter = i / 2 % 4, at = 16 * (i % 2);
        __m128i low = x86_bits_(b->ql + 64 * half + 32 * (quarter % 2) + at, quarter / 2 * 4, 15),
                high = x86_bits_(b->qh + 32 * half + at, 2 * quarter, 3);
        __m128i c = _mm_shuffle_epi8(_mm_or_si128(low, _mm_slli_epi16(high, 4)), x86_order_());
        __m128i fourth = _mm_srlv_epi32(_mm_shuffle_epi32(c, 0xff), _mm_setr_epi32(0, 2, 4, 6));
        fourth = _mm_slli_epi16(_mm_and_si128(fourth, _mm_set1_epi8(3)), 6);
        u32 groups[4];
        _mm_storeu_si128((__m128i *)(void *)groups, _mm_or_si128(c, fourth));
        for (int j = 0; j < 3; j++) memcpy(s->code[i][j] + 4 * o, &groups[j], sizeof *groups);
        s->scale[i][o] = b->scales[i];
    }
    s->d[o] = b->d;
}

/* Outputs out.. of w, zeros past the last. */
AVX2_FN static void x86_strip(u8 *to, const DlmMat *w, i32 out) {
    const i64 step = x86_strip_block_(w->type), bytes = kern_row_bytes(w);
    const u8 *first = (const u8 *)w->data + out * bytes;
    i32 n_out = MIN_OF(DLM_STRIP_OUT, w->n_out - out);
    memset(to, 0, (size_t)x86_strip_bytes(w));
    for (i32 b = 0; b < w->n_in / DLM_QK_K; b++, to += step)
        for (i32 o = 0; o < n_out; o++) {
            const void *p = first + o * bytes + b * (i64)quant_info(w->type)->bytes;
            if (w->type == DLM_Q6_K)
                x86_strip_q6_K_((X86StripQ6K *)(void *)to, p, o);
            else
                x86_strip_q4_K_((X86StripQ4K *)(void *)to, p, o);
        }
}

/* A block of a strip as its rows are multiplied: unpacked once for all of them. */
typedef struct {
    _Alignas(64) u8 code[DLM_QK_K / 4][4 * DLM_STRIP_OUT];
    i32 scale[DLM_QK_K / 16][DLM_STRIP_OUT];   /* in both 16-bit halves */
    i32 minimum[DLM_QK_K / 32][DLM_STRIP_OUT]; /* likewise; Q4_K */
    f32 d[DLM_STRIP_OUT], dmin[DLM_STRIP_OUT];
} X86Strip;

/* Rows of activations from a block on, and where they add. */
typedef struct {
    f32 (*acc)[DLM_STRIP_OUT]; /* [rows], aligned to 64 bytes */
    const i8 *q;               /* [rows][n_in] */
    const f32 *d;              /* [rows][n_in / 256] */
    const i16 *sums;           /* [rows][n_in / 8] */
    i64 n_in;
} X86StripRows;

/* 4 bytes, or two 16-bit numbers, in every lane. */
AVX2_FN INLINE __m256i avx2_four_(const void *p) {
    return _mm256_set1_epi32((i32)load_u32(p));
}

AVX512_FN INLINE __m512i avx512_four_(const void *p) {
    return _mm512_set1_epi32((i32)load_u32(p));
}

/* 32 signed bytes, each in both halves of a lane. */
AVX2_FN INLINE void avx2_pairs_(i32 *to, const void *from) {
    UNROLL
    for (int o = 0; o < DLM_STRIP_OUT; o += 8) {
        __m128i v = _mm_loadl_epi64((const __m128i *)(const void *)((const u8 *)from + o));
        avx2_store_(to + o, _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(v, v)));
    }
}

AVX2_FN INLINE void avx2_f16s_(f32 *to, const u16 *from) {
    UNROLL
    for (int o = 0; o < DLM_STRIP_OUT; o += 8) _mm256_store_ps(to + o, avx2_load_f16_(from + o));
}

AVX2_FN INLINE void avx2_strip_scales_(X86Strip *s, const void *p, DlmType type) {
    if (type == DLM_Q6_K) {
        const X86StripQ6K *b = p;
        for (int i = 0; i < DLM_QK_K / 16; i++) avx2_pairs_(s->scale[i], b->scale[i]);
        avx2_f16s_(s->d, b->d);
        return;
    }
    const X86StripQ4K *b = p;
    for (int i = 0; i < DLM_QK_K / 32; i++) {
        avx2_pairs_(s->scale[2 * i], b->scale[i]);
        avx2_pairs_(s->scale[2 * i + 1], b->scale[i]);
        avx2_pairs_(s->minimum[i], b->minimum[i]);
    }
    avx2_f16s_(s->d, b->d);
    avx2_f16s_(s->dmin, b->dmin);
}

/* Asks for a sixteenth of what lies ahead: all of it at once would hold up the loads behind. */
INLINE void x86_strip_ahead_(const void *p, int i, DlmType type) {
    const i64 part = x86_strip_block_(type) / (DLM_QK_K / 16);
    const u8 *at = (const u8 *)p + TILE_AHEAD + i * part;
    for (i64 j = 0; j < part; j += 64) __builtin_prefetch(at + j, 0, 3);
}

AVX2_FN INLINE void avx2_strip_unpack_(X86Strip *s, const void *p, DlmType type) {
    const __m256i four = _mm256_set1_epi8(15), six = _mm256_set1_epi8(63);
    const X86StripQ4K *q4 = p;
    const X86StripQ6K *q6 = p;
    for (int i = 0; i < DLM_QK_K / 16; i++) {
        x86_strip_ahead_(p, i, type);
        UNROLL
        for (int o = 0; o < 4 * DLM_STRIP_OUT; o += 32) {
            __m256i c[4];
            if (type == DLM_Q4_K) {
                UNROLL
                for (int j = 0; j < 2; j++) {
                    __m256i v = avx2_load_(q4->code[i][j] + o);
                    c[2 * j] = _mm256_and_si256(v, four);
                    c[2 * j + 1] = _mm256_and_si256(_mm256_srli_epi16(v, 4), four);
                }
            } else {
                c[3] = _mm256_setzero_si256();
                UNROLL
                for (int j = 0; j < 3; j++) {
                    __m256i v = avx2_load_(q6->code[i][j] + o);
                    c[j] = _mm256_and_si256(v, six);
                    c[3] = _mm256_or_si256(c[3],
                                           _mm256_and_si256(_mm256_srli_epi16(v, 6 - 2 * j),
                                                            _mm256_set1_epi8((char)(3 << 2 * j))));
                }
            }
            UNROLL
            for (int l = 0; l < 4; l++) avx2_store_(s->code[4 * i + l] + o, c[l]);
        }
    }
    avx2_strip_scales_(s, p, type);
}

AVX512_FN INLINE void avx512_strip_unpack_(X86Strip *s, const void *p, DlmType type) {
    const __m512i four = _mm512_set1_epi8(15), six = _mm512_set1_epi8(63);
    const X86StripQ4K *q4 = p;
    const X86StripQ6K *q6 = p;
    for (int i = 0; i < DLM_QK_K / 16; i++) {
        x86_strip_ahead_(p, i, type);
        UNROLL
        for (int o = 0; o < 4 * DLM_STRIP_OUT; o += 64) {
            __m512i c[4];
            if (type == DLM_Q4_K) {
                UNROLL
                for (int j = 0; j < 2; j++) {
                    __m512i v = _mm512_load_si512(q4->code[i][j] + o);
                    c[2 * j] = _mm512_and_si512(v, four);
                    c[2 * j + 1] = _mm512_and_si512(_mm512_srli_epi16(v, 4), four);
                }
            } else {
                c[3] = _mm512_setzero_si512();
                UNROLL
                for (int j = 0; j < 3; j++) {
                    __m512i v = _mm512_load_si512(q6->code[i][j] + o);
                    c[j] = _mm512_and_si512(v, six);
                    c[3] = _mm512_or_si512(c[3],
                                           _mm512_and_si512(_mm512_srli_epi16(v, 6 - 2 * j),
                                                            _mm512_set1_epi8((char)(3 << 2 * j))));
                }
            }
            UNROLL
            for (int l = 0; l < 4; l++) _mm512_store_si512(s->code[4 * i + l] + o, c[l]);
        }
    }
    avx2_strip_scales_(s, p, type);
}

/* acc += dot * (d * d_row) - low * (dmin * d_row), lane by lane as the law has it. */
AVX2_FN INLINE void avx2_strip_end_(f32 *acc, __m256i dot, __m256i low, const f32 *d,
                                    const f32 *dmin, f32 d_row, bool minima) {
    __m256 row = _mm256_set1_ps(d_row);
    __m256 v = _mm256_mul_ps(_mm256_cvtepi32_ps(dot), _mm256_mul_ps(_mm256_load_ps(d), row));
    if (minima)
        v = _mm256_sub_ps(
            v, _mm256_mul_ps(_mm256_cvtepi32_ps(low), _mm256_mul_ps(_mm256_load_ps(dmin), row)));
    _mm256_store_ps(acc, _mm256_add_ps(_mm256_load_ps(acc), v));
}

/* 16 outputs from `out` on. 16-bit range: a lane sums 8 products of values within -32..31 (15 for
 * Q4_K) and 127, which stay within 32512. Q6_K's codes are 32 too large: their sums run over, and
 * come back as 32 times the activations' sum is taken off. */
AVX2_FN INLINE void avx2_strip_16_(const X86Strip *s, const X86StripRows *r, int out, int n_rows,
                                   bool minima) {
    __m256i dot[2][2], low[2][2];
    UNROLL
    for (int m = 0; m < n_rows; m++)
        dot[m][0] = dot[m][1] = low[m][0] = low[m][1] = _mm256_setzero_si256();
    for (int i = 0; i < DLM_QK_K / 16; i++) {
        __m256i part[2][2], sums[2];
        UNROLL
        for (int m = 0; m < n_rows; m++) sums[m] = avx2_four_(r->sums + m * r->n_in / 8 + 2 * i);
        UNROLL
        for (int l = 0; l < 4; l++) UNROLL
        for (int m = 0; m < n_rows; m++) {
            __m256i a = avx2_four_(r->q + m * r->n_in + 16 * i + 4 * l);
            __m256i back = minima ? _mm256_setzero_si256() : _mm256_slli_epi16(sums[m], 5);
            UNROLL
            for (int g = 0; g < 2; g++) {
                __m256i c = avx2_load_(s->code[4 * i + l] + 4 * out + 32 * g);
                __m256i p = _mm256_maddubs_epi16(c, a);
                part[m][g] = l > 0    ? _mm256_add_epi16(part[m][g], p)
                             : minima ? p
                                      : _mm256_sub_epi16(p, back);
                IN_ORDER(part[m][g]);
            }
        }
        UNROLL
        for (int g = 0; g < 2; g++) {
            __m256i scale = avx2_load_(s->scale[i] + out + 8 * g);
            UNROLL
            for (int m = 0; m < n_rows; m++)
                dot[m][g] = _mm256_add_epi32(dot[m][g], _mm256_madd_epi16(part[m][g], scale));
            if (!minima) continue;
            __m256i minimum = avx2_load_(s->minimum[i / 2] + out + 8 * g);
            UNROLL
            for (int m = 0; m < n_rows; m++)
                low[m][g] = _mm256_add_epi32(low[m][g], _mm256_madd_epi16(sums[m], minimum));
        }
    }
    UNROLL
    for (int m = 0; m < n_rows; m++) UNROLL
    for (int o = out, g = 0; g < 2; o += 8, g++)
        avx2_strip_end_(r->acc[m] + o, dot[m][g], low[m][g], s->d + o, s->dmin + o,
                        r->d[m * r->n_in / DLM_QK_K], minima);
}

AVX2_FN INLINE void avx2_strip_rows_(const X86Strip *s, const X86StripRows *r, int n_rows,
                                     bool minima) {
    for (int out = 0; out < DLM_STRIP_OUT; out += 16) avx2_strip_16_(s, r, out, n_rows, minima);
}

AVX512_FN INLINE void avx512_strip_rows_(const X86Strip *s, const X86StripRows *r, int n_rows,
                                         bool minima) {
    const __m512i offset = _mm512_set1_epi16(-32);
    __m512i dot[4][2], low[4][2];
    UNROLL
    for (int m = 0; m < n_rows; m++)
        dot[m][0] = dot[m][1] = low[m][0] = low[m][1] = _mm512_setzero_si512();
    for (int i = 0; i < DLM_QK_K / 16; i++) {
        __m512i part[4][2];
        UNROLL
        for (int m = 0; m < n_rows; m++) {
            __m512i sums = avx512_four_(r->sums + m * r->n_in / 8 + 2 * i);
            part[m][0] = _mm512_setzero_si512();
            if (!minima) part[m][0] = _mm512_dpwssd_epi32(part[m][0], sums, offset);
            part[m][1] = part[m][0];
            if (!minima) continue;
            UNROLL
            for (int g = 0; g < 2; g++)
                low[m][g] = _mm512_dpwssd_epi32(low[m][g], sums,
                                                _mm512_load_si512(s->minimum[i / 2] + 16 * g));
        }
        UNROLL
        for (int l = 0; l < 4; l++) UNROLL
        for (int m = 0; m < n_rows; m++) {
            __m512i a = avx512_four_(r->q + m * r->n_in + 16 * i + 4 * l);
            UNROLL
            for (int g = 0; g < 2; g++)
                part[m][g] = _mm512_dpbusd_epi32(part[m][g],
                                                 _mm512_load_si512(s->code[4 * i + l] + 64 * g), a);
        }
        UNROLL
        for (int g = 0; g < 2; g++) {
            __m512i scale = _mm512_srai_epi32(_mm512_load_si512(s->scale[i] + 16 * g), 16);
            UNROLL
            for (int m = 0; m < n_rows; m++)
                dot[m][g] = _mm512_add_epi32(dot[m][g], _mm512_mullo_epi32(part[m][g], scale));
        }
    }
    UNROLL
    for (int m = 0; m < n_rows; m++) UNROLL
    for (int o = 0, g = 0; g < 2; o += 16, g++) UNROLL
    for (int half = 0; half < 2; half++)
        avx2_strip_end_(
            r->acc[m] + o + 8 * half,
            half ? _mm512_extracti64x4_epi64(dot[m][g], 1) : _mm512_castsi512_si256(dot[m][g]),
            half ? _mm512_extracti64x4_epi64(low[m][g], 1) : _mm512_castsi512_si256(low[m][g]),
            s->d + o + 8 * half, s->dmin + o + 8 * half, r->d[m * r->n_in / DLM_QK_K], minima);
}

/* One of a level's types. rows: 1, 2 and 4 at once, NULL where the level has none so many. */
typedef struct {
    DlmType type;
    void (*unpack)(X86Strip *s, const void *p);
    void (*rows[3])(const X86Strip *s, const X86StripRows *r);
} X86StripType;

#define STRIP_UNPACK(level, FN, name, type)                           \
    FN static void level##_strip_##name(X86Strip *s, const void *p) { \
        level##_strip_unpack_(s, p, type);                            \
    }
#define STRIP_ROWS(level, FN, n_rows)                                                       \
    FN static void level##_strip##n_rows(const X86Strip *s, const X86StripRows *r) {        \
        level##_strip_rows_(s, r, n_rows, false);                                           \
    }                                                                                       \
    FN static void level##_strip_minima##n_rows(const X86Strip *s, const X86StripRows *r) { \
        level##_strip_rows_(s, r, n_rows, true);                                            \
    }
STRIP_UNPACK(avx2, AVX2_FN, q4_K, DLM_Q4_K)
STRIP_UNPACK(avx2, AVX2_FN, q6_K, DLM_Q6_K)
STRIP_UNPACK(avx512, AVX512_FN, q4_K, DLM_Q4_K)
STRIP_UNPACK(avx512, AVX512_FN, q6_K, DLM_Q6_K)
STRIP_ROWS(avx2, AVX2_FN, 1)
STRIP_ROWS(avx2, AVX2_FN, 2)
STRIP_ROWS(avx512, AVX512_FN, 1)
STRIP_ROWS(avx512, AVX512_FN, 2)
STRIP_ROWS(avx512, AVX512_FN, 4)

static const X86StripType avx2_strips[2] = {
    {DLM_Q4_K, avx2_strip_q4_K, {avx2_strip_minima1, avx2_strip_minima2}},
    {DLM_Q6_K, avx2_strip_q6_K, {avx2_strip1, avx2_strip2}}};
static const X86StripType avx512_strips[2] = {
    {DLM_Q4_K,
     avx512_strip_q4_K,
     {avx512_strip_minima1, avx512_strip_minima2, avx512_strip_minima4}},
    {DLM_Q6_K, avx512_strip_q6_K, {avx512_strip1, avx512_strip2, avx512_strip4}}};

#define X86_STRIP_ROWS 32 /* that share an unpacked block */

/* At most X86_STRIP_ROWS rows of outputs out.., of which there are n_out. */
static void x86_strip_outs_(const X86StripType *t, f32 *y, i64 y_stride, const DlmMat *w, i32 out,
                            i32 n_out, X86StripRows r, i32 n_rows) {
    const i64 step = x86_strip_block_(w->type);
    const u8 *p = (const u8 *)w->owned + out / DLM_STRIP_OUT * x86_strip_bytes(w);
    _Alignas(64) f32 acc[X86_STRIP_ROWS][DLM_STRIP_OUT];
    X86Strip strip;
    memset(acc, 0, (size_t)n_rows * sizeof *acc);
    for (i32 b = 0; b < w->n_in / DLM_QK_K; b++, p += step) {
        t->unpack(&strip, p);
        for (i32 m = 0, size; m < n_rows; m += 1 << size) {
            for (size = 2; !t->rows[size] || 1 << size > n_rows - m;) size--;
            X86StripRows at = {acc + m, r.q + m * r.n_in, r.d + m * r.n_in / DLM_QK_K,
                               r.sums + m * r.n_in / 8, r.n_in};
            t->rows[size](&strip, &at);
        }
        r.q += DLM_QK_K, r.d++, r.sums += DLM_QK_K / 8;
    }
    for (i32 m = 0; m < n_rows; m++)
        memcpy(y + m * y_stride + out, &acc[m][out % DLM_STRIP_OUT], (size_t)n_out * sizeof(f32));
}

/* The outputs of a matrix that was rearranged: those of a strip together. */
static void x86_strips_(const X86StripType types[2], f32 *y, i64 y_stride, const DlmMat *w,
                        i32 out_lo, i32 out_hi, const i8 *q, const f32 *d, const i16 *sums,
                        i32 n_rows) {
    const X86StripType *t = &types[w->type == DLM_Q6_K];
    for (i32 o = out_lo, n_out; o < out_hi; o += n_out) {
        n_out = MIN_OF(DLM_STRIP_OUT - o % DLM_STRIP_OUT, out_hi - o);
        for (i32 m = 0; m < n_rows; m += X86_STRIP_ROWS) {
            X86StripRows r = {.q = q + (i64)m * w->n_in,
                              .d = d + (i64)m * w->n_in / DLM_QK_K,
                              .sums = sums + (i64)m * w->n_in / 8,
                              .n_in = w->n_in};
            x86_strip_outs_(t, y + m * y_stride, y_stride, w, o, n_out, r,
                            MIN_OF(X86_STRIP_ROWS, n_rows - m));
        }
    }
}

/* The other K types, by the law's own unpacking. What the rows share: |w|, w for its signs, and each
 * 16 weights' scale spread over 8 16-bit lanes. 16-bit range: |w| <= 128 and |a| <= 127, so a
 * vpmaddubsw lane stays within 2 * 16256 = 32512. */
typedef struct {
    __m256i abs[8], w[8], scale[8], minimum[2]; /* minimum: each twice */
    f32 d, dmin;
} Avx2Block;

AVX2_FN INLINE void avx2_spread_(const DlmUnpacked *u, Avx2Block *s) {
    for (int k = 0; k < 8; k++) {
        s->w[k] = avx2_order_(avx2_load_(u->q + 32 * k));
        s->abs[k] = _mm256_abs_epi8(s->w[k]);
        s->scale[k] =
            _mm256_set_m128i(_mm_set1_epi16(u->scale[2 * k + 1]), _mm_set1_epi16(u->scale[2 * k]));
    }
    __m256i minima = _mm256_permute4x64_epi64(avx2_load_(u->minimum), 0xd8);
    s->minimum[0] = _mm256_unpacklo_epi16(minima, minima);
    s->minimum[1] = _mm256_unpackhi_epi16(minima, minima);
    s->d = u->d, s->dmin = u->dmin;
}

AVX2_FN INLINE f32 avx2_block_dot_(const Avx2Block *s, const i8 *q, const i16 *sums, f32 d) {
    __m256i acc = _mm256_setzero_si256();
    UNROLL
    for (int k = 0; k < 8; k++) {
        __m256i p =
            _mm256_maddubs_epi16(s->abs[k], _mm256_sign_epi8(avx2_load_(q + 32 * k), s->w[k]));
        acc = _mm256_add_epi32(acc, _mm256_madd_epi16(p, s->scale[k]));
    }
    __m256i low = _mm256_add_epi32(_mm256_madd_epi16(s->minimum[0], avx2_load_(sums)),
                                   _mm256_madd_epi16(s->minimum[1], avx2_load_(sums + 16)));
    return (f32)avx2_sum_i32_(acc) * (s->d * d) - (f32)avx2_sum_i32_(low) * (s->dmin * d);
}

#define AVX2_K_ROWS 32 /* that share an unpacked block */

AVX2_FN static void avx2_any_K(f32 *y, i64 y_stride, const DlmMat *w, i32 out_lo, i32 out_hi,
                               const i8 *q, const f32 *d, const i16 *sums, i32 n_rows) {
    const DlmTypeInfo *info = quant_info(w->type);
    i32 n_blocks = w->n_in / DLM_QK_K;
    for (i32 o = out_lo; o < out_hi; o++)
        for (i32 m0 = 0; m0 < n_rows; m0 += AVX2_K_ROWS) {
            const u8 *row = (const u8 *)w->data + o * kern_row_bytes(w);
            i32 n = MIN_OF(AVX2_K_ROWS, n_rows - m0);
            f32 acc[AVX2_K_ROWS] = {0};
            for (i32 b = 0; b < n_blocks; b++, row += info->bytes) {
                DlmUnpacked u;
                Avx2Block s;
                quant_unpack(w->type, row, &u);
                avx2_spread_(&u, &s);
                for (i32 m = 0; m < n; m++) {
                    i64 at = (i64)(m0 + m) * w->n_in + b * DLM_QK_K;
                    acc[m] += avx2_block_dot_(&s, q + at, sums + at / 8, d[at / DLM_QK_K]);
                }
            }
            for (i32 m = 0; m < n; m++) y[(m0 + m) * y_stride + o] = acc[m];
        }
}

/* ---- types whose blocks are 32 inputs long ----
 *
 * Activations lie transposed in runs of 256: 4 bytes of each of the 8 blocks, then the next 4 of
 * each; weights are unpacked into the same order. So a lane belongs to a block, as the law's 8 float
 * lanes do, and nothing is summed across lanes before a row's end. A batch of unpacked runs serves
 * all the rows; the blocks that are missing in a last run are zeros. */

typedef struct {
    _Alignas(64) i8 w[KERN_RUN]; /* transposed */
    f32 d[8];                    /* by block */
    f32 dmin[8];                 /* Q4_1, Q5_1: times the sum of a block's activations */
} X86Run;

#define X86_BATCH 16 /* runs */

/* Rows of activations from a batch's first input on, and where they add. */
typedef struct {
    f32 (*acc)[8];   /* [rows] */
    const i8 *q;     /* [rows][stride] */
    const f32 *d;    /* [rows][stride / 32] */
    const i16 *sums; /* [rows][stride / 16] */
    i64 stride;
} X86Rows;

typedef void X86UnpackFn(X86Run *run, const u8 *p, i32 n_blocks);
typedef void X86RowsFn(const X86Rows *r, const X86Run *run, i32 n_runs);

/* The weights of a block as signed bytes. */
AVX2_FN INLINE __m256i avx2_bytes_(DlmType type, const u8 *block) {
    if (type == DLM_Q8_0) return avx2_load_(block + 2);
    __m128i qs =
        _mm_loadu_si128((const __m128i *)(const void *)(block + (type == DLM_Q5_0 ? 6 : 2)));
    __m256i v = _mm256_set_m128i(_mm_srli_epi16(qs, 4), qs);
    v = _mm256_and_si256(v, _mm256_set1_epi8(15));
    if (type == DLM_Q4_0) return _mm256_sub_epi8(v, _mm256_set1_epi8(8));
    if (type == DLM_IQ4_NL) {
        __m128i table = _mm_loadu_si128((const __m128i *)(const void *)QUANT_IQ4_LEVELS);
        return _mm256_shuffle_epi8(_mm256_set_m128i(table, table), v);
    }
    /* Q5_0: bit j of qh selects 16 for byte j; those without it are lowered by 16 */
    const __m256i which =
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    __m256i bits = _mm256_shuffle_epi8(_mm256_set1_epi32((i32)load_u32(block + 2)), which);
    bits = _mm256_or_si256(bits, _mm256_set1_epi64x(0x7fbfdfeff7fbfdfe));
    __m256i set = _mm256_cmpeq_epi8(bits, _mm256_set1_epi8(-1));
    return _mm256_or_si256(v, _mm256_andnot_si256(set, _mm256_set1_epi8((char)0xf0)));
}

AVX2_FN INLINE void avx2_unpack_(X86Run *run, DlmType type, const u8 *p, i32 n_blocks) {
    const i64 bytes = type == DLM_Q8_0 ? 34 : type == DLM_Q5_0 ? 22 : 18;
    __m256i block[8];
    UNROLL
    for (int g = 0; g < 8; g++) {
        const u8 *from = p + (g < n_blocks ? g : 0) * bytes;
        block[g] = avx2_bytes_(type, from);
        run->d[g] = g < n_blocks ? _cvtsh_ss(load_u16(from)) : 0;
    }
    avx2_transpose_(run->w, block);
}

/* Any other type, by the law's own unpacking. */
AVX2_FN INLINE void avx2_unpack_any_(X86Run *run, DlmType type, const u8 *p, i32 n_blocks) {
    __m256i block[8];
    for (i32 g = 0; g < 8; g++) {
        DlmUnpacked u = {.d = 0};
        if (g < n_blocks) quant_unpack(type, p + g * (i64)quant_info(type)->bytes, &u);
        block[g] = avx2_load_(u.q);
        run->d[g] = u.d, run->dmin[g] = u.dmin;
    }
    avx2_transpose_(run->w, block);
}

#define DEFINE_UNPACK(name, unpack, type)                                            \
    AVX2_FN static void avx2_unpack_##name(X86Run *run, const u8 *p, i32 n_blocks) { \
        unpack(run, type, p, n_blocks);                                              \
    }
DEFINE_UNPACK(q8_0, avx2_unpack_, DLM_Q8_0)
DEFINE_UNPACK(q4_0, avx2_unpack_, DLM_Q4_0)
DEFINE_UNPACK(q5_0, avx2_unpack_, DLM_Q5_0)
DEFINE_UNPACK(iq4_nl, avx2_unpack_, DLM_IQ4_NL)
DEFINE_UNPACK(q4_1, avx2_unpack_any_, DLM_Q4_1)
DEFINE_UNPACK(q5_1, avx2_unpack_any_, DLM_Q5_1)
DEFINE_UNPACK(mxfp4, avx2_unpack_any_, DLM_MXFP4)

/* acc += dot * (d * d_row) - sum * (dmin * d_row), lane by lane as the law has it. sums: two a
 * block */
AVX2_FN INLINE __m256 avx2_run_end_(__m256 acc, __m256i dot, const X86Run *run, const f32 *d,
                                    const i16 *sums, bool minima) {
    __m256 d_row = _mm256_loadu_ps(d);
    __m256 v =
        _mm256_mul_ps(_mm256_cvtepi32_ps(dot), _mm256_mul_ps(_mm256_loadu_ps(run->d), d_row));
    if (minima) {
        __m256i sum = _mm256_madd_epi16(_mm256_set1_epi16(1), avx2_load_(sums));
        v = _mm256_sub_ps(v, _mm256_mul_ps(_mm256_cvtepi32_ps(sum),
                                           _mm256_mul_ps(_mm256_loadu_ps(run->dmin), d_row)));
    }
    return _mm256_add_ps(acc, v);
}

/* 16-bit range: |w| <= 128 and |a| <= 127, so a vpmaddubsw lane stays within 2 * 16256 = 32512. */
AVX2_FN INLINE void avx2_rows_(const X86Rows *r, const X86Run *run, i32 n_runs, int n_rows,
                               bool minima) {
    const i64 stride = r->stride;
    const i8 *q = r->q;
    const f32 *d = r->d;
    const i16 *sums = r->sums;
    __m256 acc[4];
    UNROLL
    for (int m = 0; m < n_rows; m++) acc[m] = _mm256_loadu_ps(r->acc[m]);
    for (i32 i = 0; i < n_runs; i++, run++) {
        __m256i dot[4];
        UNROLL
        for (int m = 0; m < n_rows; m++) dot[m] = _mm256_setzero_si256();
        UNROLL
        for (int j = 0; j < 8; j++) {
            __m256i w = avx2_load_(run->w + 32 * j), abs = _mm256_abs_epi8(w);
            UNROLL
            for (int m = 0; m < n_rows; m++) {
                __m256i a = avx2_load_(q + m * stride + 32 * j);
                __m256i p = _mm256_maddubs_epi16(abs, _mm256_sign_epi8(a, w));
                dot[m] = _mm256_add_epi32(dot[m], _mm256_madd_epi16(p, _mm256_set1_epi16(1)));
            }
        }
        UNROLL
        for (int m = 0; m < n_rows; m++)
            acc[m] = avx2_run_end_(acc[m], dot[m], run, d + m * stride / 32, sums + m * stride / 16,
                                   minima);
        q += KERN_RUN, d += KERN_RUN / 32, sums += KERN_RUN / 16;
    }
    UNROLL
    for (int m = 0; m < n_rows; m++) _mm256_storeu_ps(r->acc[m], acc[m]);
}

AVX512_FN INLINE __m256i avx512_halve_(__m512i v) {
    return _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
}

/* AVX-512 multiplies codes w + 128, which are not negative, and takes 128 times the activations'
 * sums off again: the integers are those of the law. */
AVX512_FN INLINE void avx512_rows_(const X86Rows *r, const X86Run *run, i32 n_runs, int n_rows,
                                   bool minima) {
    const i64 stride = r->stride;
    const i8 *q = r->q;
    const f32 *d = r->d;
    const i16 *sums = r->sums;
    __m256 acc[8];
    UNROLL
    for (int m = 0; m < n_rows; m++) acc[m] = _mm256_loadu_ps(r->acc[m]);
    for (i32 i = 0; i < n_runs; i++, run++) {
        __m512i w[4];
        UNROLL
        for (int j = 0; j < 4; j++)
            w[j] = _mm512_xor_si512(_mm512_load_si512(run->w + 64 * j), _mm512_set1_epi8(-128));
        UNROLL
        for (int m = 0; m < n_rows; m++) {
            __m512i sum[2] = {_mm512_zextsi256_si512(_mm256_madd_epi16(
                                  _mm256_set1_epi16(-128), avx2_load_(sums + m * stride / 16))),
                              _mm512_setzero_si512()};
            UNROLL
            for (int j = 0; j < 4; j++)
                sum[j % 2] = _mm512_dpbusd_epi32(sum[j % 2], w[j],
                                                 _mm512_loadu_si512(q + m * stride + 64 * j));
            acc[m] = avx2_run_end_(acc[m], avx512_halve_(_mm512_add_epi32(sum[0], sum[1])), run,
                                   d + m * stride / 32, sums + m * stride / 16, minima);
        }
        q += KERN_RUN, d += KERN_RUN / 32, sums += KERN_RUN / 16;
    }
    UNROLL
    for (int m = 0; m < n_rows; m++) _mm256_storeu_ps(r->acc[m], acc[m]);
}

/* By log2 of the rows: 1, 2, 4 and 8; NULL where the level has none so many. */
typedef struct {
    X86RowsFn *plain[4], *minima[4];
} X86Block32;

#define BLOCK32_ROWS(level, FN, n_rows)                                                      \
    FN static void level##_rows##n_rows(const X86Rows *r, const X86Run *run, i32 n_runs) {   \
        level##_rows_(r, run, n_runs, n_rows, false);                                        \
    }                                                                                        \
    FN static void level##_minima##n_rows(const X86Rows *r, const X86Run *run, i32 n_runs) { \
        level##_rows_(r, run, n_runs, n_rows, true);                                         \
    }

BLOCK32_ROWS(avx2, AVX2_FN, 1)
BLOCK32_ROWS(avx2, AVX2_FN, 2)
BLOCK32_ROWS(avx2, AVX2_FN, 4)
static const X86Block32 avx2_block32 = {{avx2_rows1, avx2_rows2, avx2_rows4},
                                        {avx2_minima1, avx2_minima2, avx2_minima4}};

BLOCK32_ROWS(avx512, AVX512_FN, 1)
BLOCK32_ROWS(avx512, AVX512_FN, 2)
BLOCK32_ROWS(avx512, AVX512_FN, 4)
BLOCK32_ROWS(avx512, AVX512_FN, 8)
static const X86Block32 avx512_block32 = {
    {avx512_rows1, avx512_rows2, avx512_rows4, avx512_rows8},
    {avx512_minima1, avx512_minima2, avx512_minima4, avx512_minima8}};

#define X86_BLOCK_ROWS 64

/* The rows of one output, at most X86_BLOCK_ROWS. p: its weights; r: the rows from the first on */
static void x86_block32_out_(X86RowsFn *const rows[4], X86UnpackFn *unpack, f32 *y, i64 y_stride,
                             const DlmMat *w, const u8 *p, X86Rows r, i32 n_rows) {
    const i32 bytes = (i32)quant_info(w->type)->bytes, n_blocks = w->n_in / 32;
    f32 acc[X86_BLOCK_ROWS][8];
    X86Run runs[X86_BATCH];
    memset(acc, 0, (size_t)n_rows * sizeof *acc);
    for (i32 b = 0, n_runs; b < n_blocks; b += 8 * n_runs) {
        for (n_runs = 0; n_runs < X86_BATCH && b + 8 * n_runs < n_blocks; n_runs++, p += 8 * bytes)
            unpack(&runs[n_runs], p, n_blocks - b - 8 * n_runs);
        for (i32 m = 0, size; m < n_rows; m += 1 << size) {
            for (size = 3; !rows[size] || 1 << size > n_rows - m;) size--;
            X86Rows at = {acc + m, r.q + m * r.stride, r.d + m * r.stride / 32,
                          r.sums + m * r.stride / 16, r.stride};
            rows[size](&at, runs, n_runs);
        }
        r.q += n_runs * KERN_RUN, r.d += n_runs * 8, r.sums += n_runs * 16;
    }
    for (i32 m = 0; m < n_rows; m++) {
        const f32 *a = acc[m];
        y[m * y_stride] = ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
    }
}

static void x86_block32_(X86RowsFn *const rows[4], X86UnpackFn *unpack, f32 *y, i64 y_stride,
                         const DlmMat *w, i32 out_lo, i32 out_hi, const i8 *q, const f32 *d,
                         const i16 *sums, i32 n_rows) {
    i64 bytes = kern_row_bytes(w), stride = kern_padded(w->n_in);
    for (i32 m = 0; m < n_rows; m += X86_BLOCK_ROWS)
        for (i32 o = out_lo; o < out_hi; o++) {
            X86Rows r = {.q = q + m * stride,
                         .d = d + m * stride / 32,
                         .sums = sums + m * stride / 16,
                         .stride = stride};
            x86_block32_out_(rows, unpack, y + m * y_stride + o, y_stride, w,
                             (const u8 *)w->data + o * bytes, r,
                             MIN_OF(X86_BLOCK_ROWS, n_rows - m));
        }
}

/* ---- the `blocks` kernel, by type ---- */

static void x86_blocks(const X86Block32 *level, f32 *y, i64 y_stride, const DlmMat *w, i32 out_lo,
                       i32 out_hi, const i8 *q, const f32 *d, const i16 *sums, i32 n_rows) {
    static const struct {
        DlmType type;
        X86UnpackFn *unpack;
        bool minima;
    } types[] = {
        {DLM_Q8_0, avx2_unpack_q8_0, false},     {DLM_Q4_0, avx2_unpack_q4_0, false},
        {DLM_Q5_0, avx2_unpack_q5_0, false},     {DLM_Q4_1, avx2_unpack_q4_1, true},
        {DLM_IQ4_NL, avx2_unpack_iq4_nl, false}, {DLM_Q5_1, avx2_unpack_q5_1, true},
        {DLM_MXFP4, avx2_unpack_mxfp4, false},
    };
    for (size_t i = 0; i < COUNT_OF(types); i++)
        if (types[i].type == w->type) {
            x86_block32_(types[i].minima ? level->minima : level->plain, types[i].unpack, y,
                         y_stride, w, out_lo, out_hi, q, d, sums, n_rows);
            return;
        }
    avx2_any_K(y, y_stride, w, out_lo, out_hi, q, d, sums, n_rows);
}

static void avx2_blocks(f32 *y, i64 y_stride, const DlmMat *w, i32 out_lo, i32 out_hi, const i8 *q,
                        const f32 *d, const i16 *sums, i32 n_rows) {
    if (w->owned)
        x86_strips_(avx2_strips, y, y_stride, w, out_lo, out_hi, q, d, sums, n_rows);
    else
        x86_blocks(&avx2_block32, y, y_stride, w, out_lo, out_hi, q, d, sums, n_rows);
}

static void avx512_blocks(f32 *y, i64 y_stride, const DlmMat *w, i32 out_lo, i32 out_hi,
                          const i8 *q, const f32 *d, const i16 *sums, i32 n_rows) {
    if (w->owned)
        x86_strips_(avx512_strips, y, y_stride, w, out_lo, out_hi, q, d, sums, n_rows);
    else
        x86_blocks(&avx512_block32, y, y_stride, w, out_lo, out_hi, q, d, sums, n_rows);
}

/* ---- ternary tiles: the loops around them are in kern_tile.c ---- */

AVX2_FN static i32 avx2_sum(const i8 *q, i32 n) {
    __m256i sum = _mm256_setzero_si256();
    for (i32 i = 0; i < n; i += 16) {
        __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(q + i)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(v, _mm256_set1_epi16(1)));
    }
    return avx2_sum_i32_(sum);
}

AVX2_FN static void avx2_finish(const TileStrip *s, const TileSums *sums, i32 n_rows) {
    tile_finish(s, sums, n_rows);
}

/* 16-bit range proof: |code * q| <= 3 * 128, so one vpmaddubsw lane (two products) is within 768 in
 * magnitude. A lane takes 4 of them per tile; AVX2_FLUSH = 10 tiles make 40 * 768 = 30720 < 32768.
 */
#define AVX2_FLUSH 10

/* Codes of the 8 outputs at w, inputs 4 l .. 4 l + 3. */
AVX2_FN INLINE __m256i avx2_codes_(__m256i w, int l) {
    return _mm256_and_si256(_mm256_srli_epi16(w, 2 * l), _mm256_set1_epi8(3));
}

/* Adds to the rows' sums those of at most AVX2_FLUSH tiles; `unpacked`: given as their codes, 8
 * registers a tile. */
AVX2_FN INLINE void avx2_run_(TileSums *sums, const void *tiles, i32 n_tiles, const i8 *q,
                              i64 q_stride, int n_rows, bool unpacked) {
    const __m256i *at = tiles, one16 = _mm256_set1_epi16(1);
    __m256i part[4][2];
    UNROLL
    for (int m = 0; m < n_rows; m++) part[m][0] = part[m][1] = _mm256_setzero_si256();
    for (i32 t = 0; t < n_tiles; t++, at += unpacked ? 8 : 2) {
        if (!unpacked) _mm_prefetch((const char *)at + TILE_AHEAD, _MM_HINT_T0);
        UNROLL
        for (int l = 0; l < 4; l++) {
            __m256i c0 = unpacked ? at[2 * l] : avx2_codes_(at[0], l);
            __m256i c1 = unpacked ? at[2 * l + 1] : avx2_codes_(at[1], l);
            UNROLL
            for (int m = 0; m < n_rows; m++) {
                i32 four;
                memcpy(&four, q + m * q_stride + 16 * (i64)t + 4 * l, sizeof four);
                __m256i a = _mm256_set1_epi32(four);
                part[m][0] = _mm256_add_epi16(part[m][0], _mm256_maddubs_epi16(c0, a));
                part[m][1] = _mm256_add_epi16(part[m][1], _mm256_maddubs_epi16(c1, a));
                if (n_rows == 1) continue; /* whose products have the room */
                IN_ORDER(part[m][0]);
                IN_ORDER(part[m][1]);
            }
        }
    }
    UNROLL
    for (int m = 0; m < n_rows; m++) {
        __m256i *wide = (__m256i *)(void *)sums[m];
        wide[0] = _mm256_add_epi32(wide[0], _mm256_madd_epi16(part[m][0], one16));
        wide[1] = _mm256_add_epi32(wide[1], _mm256_madd_epi16(part[m][1], one16));
    }
}

AVX2_FN INLINE void avx2_acc_(TileAcc acc, const u8 *tiles, i32 n_tiles, const i8 *q, i64 q_stride,
                              int n_rows) {
    memset(acc, 0, (size_t)n_rows * sizeof *acc);
    for (i32 t = 0; t < n_tiles; t += AVX2_FLUSH)
        avx2_run_(acc, tiles + (i64)t * DLM_TILE_BYTES, MIN_OF(AVX2_FLUSH, n_tiles - t),
                  q + (i64)t * DLM_TILE_IN, q_stride, n_rows, false);
}

typedef void Avx2RunFn(TileSums *sums, const void *codes, i32 n_tiles, const i8 *q, i64 q_stride);
#define AVX2_RUN(n_rows)                                                                 \
    AVX2_FN static void avx2_run##n_rows(TileSums *sums, const void *codes, i32 n_tiles, \
                                         const i8 *q, i64 q_stride) {                    \
        avx2_run_(sums, codes, n_tiles, q, q_stride, n_rows, true);                      \
    }
AVX2_RUN(1)
AVX2_RUN(2)
AVX2_RUN(3)
AVX2_RUN(4)

/* Of the instructions that multiply a tile by 4 rows, unpacking it is a fifth. Here each run of tiles
 * is unpacked once for all the rows; 8 are too few to gain by it. */
AVX2_FN static void avx2_many(const TileStrip *s, const u8 *tiles, i32 n_tiles, i32 n_rows) {
    static Avx2RunFn *const runs[] = {avx2_run1, avx2_run2, avx2_run3, avx2_run4};
    _Alignas(64) TileSums sums[TILE_MANY];
    __m256i codes[AVX2_FLUSH][4][2];
    memset(sums, 0, (size_t)n_rows * sizeof *sums);
    for (i32 t = 0, n; t < n_tiles; t += n) {
        n = MIN_OF(AVX2_FLUSH, n_tiles - t);
        for (i32 i = 0; i < n; i++, tiles += DLM_TILE_BYTES) {
            const __m256i *w = (const __m256i *)(const void *)tiles;
            _mm_prefetch((const char *)tiles + TILE_AHEAD, _MM_HINT_T0);
            UNROLL
            for (int l = 0; l < 4; l++) UNROLL
            for (int g = 0; g < 2; g++) codes[i][l][g] = avx2_codes_(w[g], l);
        }
        for (i32 m = 0; m < n_rows; m += 4)
            runs[MIN_OF(4, n_rows - m) - 1](
                sums + m, codes, n, s->q + m * s->q_stride + (i64)t * DLM_TILE_IN, s->q_stride);
    }
    avx2_finish(s, sums, n_rows);
}

/* Each sum runs in as many chains as 12 registers hold: vpdpbusd has a latency of 4 to 5. */
AVXVNNI_FN INLINE void avxvnni_acc_(TileAcc acc, const u8 *tiles, i32 n_tiles, const i8 *q,
                                    i64 q_stride, int n_rows) {
    const int n_chains = n_rows == 1 ? 4 : n_rows <= 3 ? 2 : 1;
    const __m256i *w = (const __m256i *)(const void *)tiles;
    __m256i part[4][6][2];
    UNROLL
    for (int j = 0; j < n_chains; j++) UNROLL
    for (int m = 0; m < n_rows; m++) part[j][m][0] = part[j][m][1] = _mm256_setzero_si256();
    for (i32 t = 0; t < n_tiles; t++, w += 2) {
        _mm_prefetch((const char *)w + TILE_AHEAD, _MM_HINT_T0);
        UNROLL
        for (int l = 0; l < 4; l++) {
            __m256i c0 = avx2_codes_(w[0], l), c1 = avx2_codes_(w[1], l);
            UNROLL
            for (int m = 0; m < n_rows; m++) {
                __m256i *sum = part[l % n_chains][m];
                i32 four;
                memcpy(&four, q + m * q_stride + 16 * (i64)t + 4 * l, sizeof four);
                __m256i a = _mm256_set1_epi32(four);
                sum[0] = _mm256_dpbusd_avx_epi32(sum[0], c0, a);
                sum[1] = _mm256_dpbusd_avx_epi32(sum[1], c1, a);
                IN_ORDER(sum[0]);
                IN_ORDER(sum[1]);
            }
        }
    }
    UNROLL
    for (int m = 0; m < n_rows; m++) UNROLL
    for (int g = 0; g < 2; g++) {
        __m256i sum = part[0][m][g];
        UNROLL
        for (int j = 1; j < n_chains; j++) sum = _mm256_add_epi32(sum, part[j][m][g]);
        _mm256_store_si256((__m256i *)(void *)acc[m] + g, sum);
    }
}

/* The outputs of row m of a strip from the sums of its columns; last: those that the last one has. */
AVX512_FN INLINE void avx512_finish_(const TileStrip *s, const __m512i *sums, i32 m, int n_columns,
                                     __mmask16 last) {
    f32 *y = s->y + m * s->y_stride;
    const __m512 scale = _mm512_set1_ps(s->scale * s->inv_scale[m]);
    const __m512i sum = _mm512_set1_epi32(s->sum[m]);
    __m512 out[2];
    UNROLL
    for (int g = 0; g < n_columns; g++)
        out[g] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(sums[g], sum)), scale);
    if (n_columns == 2) _mm512_storeu_ps(y, out[0]);
    _mm512_mask_storeu_ps(y + (n_columns - 1) * DLM_TILE_OUT, last, out[n_columns - 1]);
}

AVX512_FN static void avx512_finish(const TileStrip *s, const TileSums *sums, i32 n_rows) {
    for (i32 m = 0; m < n_rows; m++) {
        __m512i own = _mm512_load_si512(sums[m]);
        avx512_finish_(s, &own, m, 1, avx512_mask_(s->n_out));
    }
}

/* sums[m][g]: of row m in one of one or two columns of tiles. Each runs in two chains where that takes
 * no more than 16 registers: vpdpbusd has a latency of 4 to 5. */
AVX512_FN INLINE void avx512_columns_(__m512i sums[8][2], const u8 *tiles, i32 n_tiles, const i8 *q,
                                      i64 q_stride, int n_rows, int n_columns) {
    const __m512i mask = _mm512_set1_epi8(3);
    const i64 next = (i64)n_tiles * DLM_TILE_BYTES;
    const int n_chains = n_rows * n_columns > 8 ? 1 : 2;
    /* of a pair's columns, the second begins where the first ends: what comes after their ends are
     * the beginnings of the next pair's, a column further on */
    const i64 ahead = TILE_AHEAD / n_columns, past = n_columns == 2 ? next : 0;
    const i32 turn = n_tiles - (i32)(ahead / DLM_TILE_BYTES);
    __m512i part[8][2][2];
    UNROLL
    for (int m = 0; m < n_rows; m++)
        part[m][0][0] = part[m][0][1] = part[m][1][0] = part[m][1][1] = _mm512_setzero_si512();
    for (i32 t = 0; t < n_tiles; t++, tiles += DLM_TILE_BYTES) {
        __m512i w[2];
        UNROLL
        for (int g = 0; g < n_columns; g++) {
            w[g] = _mm512_load_si512(tiles + g * next);
            _mm_prefetch((const char *)tiles + g * next + (t < turn ? ahead : ahead + past),
                         _MM_HINT_T0);
        }
        UNROLL
        for (int l = 0; l < 4; l++) {
            __m512i c[2];
            UNROLL
            for (int g = 0; g < n_columns; g++)
                c[g] = _mm512_and_si512(_mm512_srli_epi16(w[g], 2 * l), mask);
            UNROLL
            for (int m = 0; m < n_rows; m++) {
                i32 four;
                memcpy(&four, q + m * q_stride + 16 * (i64)t + 4 * l, sizeof four);
                __m512i a = _mm512_set1_epi32(four);
                UNROLL
                for (int g = 0; g < n_columns; g++) {
                    __m512i *sum = &part[m][g][n_chains == 2 ? l & 1 : 0];
                    *sum = _mm512_dpbusd_epi32(*sum, c[g], a);
                }
            }
        }
    }
    UNROLL
    for (int m = 0; m < n_rows; m++) UNROLL
    for (int g = 0; g < n_columns; g++)
        sums[m][g] = _mm512_add_epi32(part[m][g][0], part[m][g][1]);
}

AVX512_FN INLINE void avx512_acc_(TileAcc acc, const u8 *tiles, i32 n_tiles, const i8 *q,
                                  i64 q_stride, int n_rows) {
    __m512i sums[8][2];
    avx512_columns_(sums, tiles, n_tiles, q, q_stride, n_rows, 1);
    UNROLL
    for (int m = 0; m < n_rows; m++) _mm512_store_si512(acc[m], sums[m][0]);
}

AVX512_FN INLINE void avx512_pair_(const TileStrip *s, const u8 *tiles, i32 n_tiles, int n_rows) {
    __m512i sums[8][2];
    avx512_columns_(sums, tiles, n_tiles, s->q, s->q_stride, n_rows, 2);
    UNROLL
    for (int m = 0; m < n_rows; m++)
        avx512_finish_(s, sums[m], m, 2, avx512_mask_(s->n_out - DLM_TILE_OUT));
}

TILE_ROWS(avx2, AVX2_FN, 1)
TILE_ROWS(avx2, AVX2_FN, 2)
TILE_ROWS(avx2, AVX2_FN, 3)
TILE_ROWS(avx2, AVX2_FN, 4)
static const TileLevel avx2_tiles = {.rows = {avx2_acc1, avx2_acc2, avx2_acc3, avx2_acc4},
                                     .many = avx2_many,
                                     .finish = avx2_finish,
                                     .sum = avx2_sum};
TILE_TERNARY(avx2)

TILE_ROWS(avxvnni, AVXVNNI_FN, 1)
TILE_ROWS(avxvnni, AVXVNNI_FN, 2)
TILE_ROWS(avxvnni, AVXVNNI_FN, 3)
TILE_ROWS(avxvnni, AVXVNNI_FN, 4)
TILE_ROWS(avxvnni, AVXVNNI_FN, 5)
TILE_ROWS(avxvnni, AVXVNNI_FN, 6)
static const TileLevel avxvnni_tiles = {
    .rows = {avxvnni_acc1, avxvnni_acc2, avxvnni_acc3, avxvnni_acc4, avxvnni_acc5, avxvnni_acc6},
    .finish = avx2_finish,
    .sum = avx2_sum};
TILE_TERNARY(avxvnni)

TILE_ROWS(avx512, AVX512_FN, 1)
TILE_ROWS(avx512, AVX512_FN, 2)
TILE_ROWS(avx512, AVX512_FN, 3)
TILE_ROWS(avx512, AVX512_FN, 4)
TILE_ROWS(avx512, AVX512_FN, 5)
TILE_ROWS(avx512, AVX512_FN, 6)
TILE_ROWS(avx512, AVX512_FN, 7)
TILE_ROWS(avx512, AVX512_FN, 8)
TILE_PAIR(avx512, AVX512_FN, 1)
TILE_PAIR(avx512, AVX512_FN, 2)
TILE_PAIR(avx512, AVX512_FN, 3)
TILE_PAIR(avx512, AVX512_FN, 4)
TILE_PAIR(avx512, AVX512_FN, 5)
TILE_PAIR(avx512, AVX512_FN, 6)
TILE_PAIR(avx512, AVX512_FN, 7)
TILE_PAIR(avx512, AVX512_FN, 8)
static const TileLevel avx512_tiles = {.rows = {avx512_acc1, avx512_acc2, avx512_acc3, avx512_acc4,
                                                avx512_acc5, avx512_acc6, avx512_acc7, avx512_acc8},
                                       .pairs = {avx512_pair1, avx512_pair2, avx512_pair3,
                                                 avx512_pair4, avx512_pair5, avx512_pair6,
                                                 avx512_pair7, avx512_pair8},
                                       .finish = avx512_finish,
                                       .sum = avx2_sum};
TILE_TERNARY(avx512)

/* ---- ternary, through tables ----
 *
 * Four activations, each times -1, 0 or 1, make one of 81 sums. For many outputs it pays to write all
 * of them down, 16 rows to a register, and to look up what an output's four weights make: one addition
 * from memory then does 64 multiply-adds, where vpmaddubsw and vpaddw together do 32. (This is the
 * method of the four Russians.) A byte of a tile holds four codes of one output: read to the base 3
 * instead of 4, it is the number of its entry.
 *
 * The tables of two tiles of inputs stay in the first cache level while all outputs of a strip take
 * their sums from them. 16-bit range proof: |sum of four| <= 4 * 128; 7 passes of 8 such sums make
 * 7 * 8 * 512 = 28672 < 32768. */
#define TABLE_ENTRIES 81
#define TABLE_TILES 2
#define TABLE_PASSES 7
#define TABLE_OUT 2048 /* outputs of a strip at most; its sums stay in the second cache level */

typedef struct {
    __m256i sums[TABLE_ENTRIES]; /* number d0 + 3 d1 + 9 d2 + 27 d3: weights d - 1 */
} Avx2Table;

typedef struct {
    Avx2Table tables[TABLE_TILES][4]; /* for byte k of an output's four in a tile */
    __m256i sums[TABLE_OUT];          /* 16 rows of 16 bits, of the passes since the last flush */
    __m256i wide[TABLE_OUT][2];       /* 8 rows of 32 bits, and 8 more */
} Avx2Tables;

/* The activations of a tile's 16 inputs, by input: 16 rows of 16 bits, the last row repeated. */
AVX2_FN INLINE void avx2_by_input_(__m256i in[16], const i8 *q, i64 q_stride, i32 n_rows) {
    __m128i v[16], t[16];
    UNROLL
    for (int m = 0; m < 16; m++)
        v[m] =
            _mm_loadu_si128((const __m128i *)(const void *)(q + MIN_OF(m, n_rows - 1) * q_stride));
    for (int step = 0; step < 4; step++) { /* halves interleaved four times: transposed */
        UNROLL
        for (int m = 0; m < 8; m++) {
            t[2 * m] = _mm_unpacklo_epi8(v[m], v[m + 8]);
            t[2 * m + 1] = _mm_unpackhi_epi8(v[m], v[m + 8]);
        }
        UNROLL
        for (int m = 0; m < 16; m++) v[m] = t[m];
    }
    UNROLL
    for (int i = 0; i < 16; i++) in[i] = _mm256_cvtepi8_epi16(v[i]);
}

/* sums[3 i + j] = (i - 1) * b + (j - 1) * a */
AVX2_FN INLINE void avx2_table9_(__m256i sums[9], __m256i a, __m256i b) {
    const __m256i zero = _mm256_setzero_si256(), minus_b = _mm256_sub_epi16(zero, b);
    const __m256i at[3] = {minus_b, zero, b};
    UNROLL
    for (int i = 0; i < 3; i++) {
        sums[3 * i] = _mm256_sub_epi16(at[i], a);
        sums[3 * i + 1] = at[i];
        sums[3 * i + 2] = _mm256_add_epi16(at[i], a);
    }
}

/* A tile's four tables; the byte k of an output holds the codes of inputs k, 4 + k, 8 + k, 12 + k. */
AVX2_FN static void avx2_tables_of_(Avx2Table tables[4], const i8 *q, i64 q_stride, i32 n_rows) {
    __m256i in[16], low[9], high[9];
    avx2_by_input_(in, q, q_stride, n_rows);
    for (int k = 0; k < 4; k++) {
        avx2_table9_(low, in[k], in[4 + k]);
        avx2_table9_(high, in[8 + k], in[12 + k]);
        for (int j = 0; j < 9; j++) UNROLL
        for (int i = 0; i < 9; i++) tables[k].sums[9 * j + i] = _mm256_add_epi16(low[i], high[j]);
    }
}

/* Where the entries of a tile's 64 bytes lie in their tables, in units of 8 bytes. */
AVX2_FN INLINE void avx2_entries_(u16 to[DLM_TILE_BYTES], const u8 *tile) {
    const __m256i nine =
        _mm256_broadcastsi128_si256(/* d0 + 4 d1 to d0 + 3 d1 */
                                    _mm_setr_epi8(0, 1, 2, 0, 3, 4, 5, 0, 6, 7, 8, 0, 0, 0, 0, 0));
    const __m256i low4 = _mm256_set1_epi8(15), place = _mm256_set1_epi16(9 * 4 << 8 | 4);
    UNROLL
    for (int g = 0; g < 2; g++) {
        __m256i v = avx2_load_(tile + 32 * g);
        __m256i a = _mm256_shuffle_epi8(nine, _mm256_and_si256(v, low4));
        __m256i b = _mm256_shuffle_epi8(nine, _mm256_and_si256(_mm256_srli_epi16(v, 4), low4));
        __m256i lo = _mm256_maddubs_epi16(place, _mm256_unpacklo_epi8(a, b));
        __m256i hi = _mm256_maddubs_epi16(place, _mm256_unpackhi_epi8(a, b));
        avx2_store_(to + 32 * g, _mm256_permute2x128_si256(lo, hi, 0x20));
        avx2_store_(to + 32 * g + 16, _mm256_permute2x128_si256(lo, hi, 0x31));
    }
}

/* Adds to the sums of n columns of 16 outputs, whose tiles lie `stride` bytes apart, what two tiles of
 * each make: the second lies `second` bytes behind the first. The entries of a column are found while
 * the one before is summed. */
AVX2_FN static void avx2_table_pass_(Avx2Tables *s, const u8 *tiles, i64 stride, i64 second,
                                     i32 n) {
    _Alignas(64) u16 entries[2][TABLE_TILES][DLM_TILE_BYTES];
    __m256i *sums = s->sums;
    avx2_entries_(entries[0][0], tiles);
    avx2_entries_(entries[0][1], tiles + second);
    for (i32 c = 0; c < n; c++, tiles += stride, sums += DLM_TILE_OUT) {
        const u8 *next = c + 1 < n ? tiles + stride : tiles;
        avx2_entries_(entries[~c & 1][0], next);
        avx2_entries_(entries[~c & 1][1], next + second);
        _mm_prefetch((const char *)tiles + 2 * DLM_TILE_BYTES, _MM_HINT_T0);
        _mm_prefetch((const char *)tiles + 3 * DLM_TILE_BYTES, _MM_HINT_T0);
        UNROLL
        for (int o = 0; o < DLM_TILE_OUT; o++) {
            __m256i sum = sums[o];
            UNROLL
            for (int t = 0; t < TABLE_TILES; t++) {
                u64 four; /* one load instead of four: loads are what this waits for */
                memcpy(&four, entries[c & 1][t] + 4 * o, sizeof four);
                UNROLL
                for (int k = 0; k < 4; k++) {
                    const u8 *entry = (const u8 *)&s->tables[t][k] + 8 * (four >> 16 * k & 0xffff);
                    sum = _mm256_add_epi16(sum, *(const __m256i *)(const void *)entry);
                }
            }
            sums[o] = sum;
        }
    }
}

/* 32-bit sums of n outputs take in the 16-bit ones, which begin anew. */
AVX2_FN static void avx2_table_flush_(Avx2Tables *s, i32 n) {
    for (i32 o = 0; o < n; o++) {
        __m256i v = s->sums[o];
        s->sums[o] = _mm256_setzero_si256();
        s->wide[o][0] =
            _mm256_add_epi32(s->wide[o][0], _mm256_cvtepi16_epi32(_mm256_castsi256_si128(v)));
        s->wide[o][1] =
            _mm256_add_epi32(s->wide[o][1], _mm256_cvtepi16_epi32(_mm256_extracti128_si256(v, 1)));
    }
}

/* y[m][j] = wide[j][half] row m, times the scales, of at most 8 rows and 8 outputs. */
AVX2_FN static void avx2_table_finish_(f32 *y, i64 y_stride, const __m256i (*wide)[2], int half,
                                       f32 scale, const f32 *inv_scale, i32 n_rows, i32 n_out) {
    __m256i a[8], b[8];
    UNROLL
    for (int j = 0; j < 4; j++) {
        a[2 * j] = _mm256_unpacklo_epi32(wide[2 * j][half], wide[2 * j + 1][half]);
        a[2 * j + 1] = _mm256_unpackhi_epi32(wide[2 * j][half], wide[2 * j + 1][half]);
    }
    UNROLL
    for (int j = 0; j < 8; j++) { /* b[i], b[4 + i]: rows i and 4 + i of outputs 0..3 and 4..7 */
        int i = j / 4 * 4 + j % 4 / 2;
        b[j] =
            j % 2 ? _mm256_unpackhi_epi64(a[i], a[i + 2]) : _mm256_unpacklo_epi64(a[i], a[i + 2]);
    }
    UNROLL
    for (int m = 0; m < 8; m++) {
        if (m >= n_rows) continue;
        __m256i row = m < 4 ? _mm256_permute2x128_si256(b[m], b[4 + m], 0x20)
                            : _mm256_permute2x128_si256(b[m - 4], b[m], 0x31);
        f32 out[8];
        _mm256_storeu_ps(
            out, _mm256_mul_ps(_mm256_cvtepi32_ps(row), _mm256_set1_ps(scale * inv_scale[m])));
        if (n_out == 8)
            memcpy(y + m * y_stride, out, sizeof out);
        else
            memcpy(y + m * y_stride, out, (size_t)n_out * sizeof *out);
    }
}

/* Outputs [lo, hi), at most TABLE_OUT of them. */
AVX2_FN static void avx2_table_strip_(f32 *y, i64 y_stride, const DlmMat *w, i32 lo, i32 hi,
                                      const i8 *q, i64 q_stride, const f32 *inv_scale, i32 n_rows,
                                      Avx2Tables *s) {
    const i32 n_tiles = (w->n_in + DLM_TILE_IN - 1) / DLM_TILE_IN;
    const i32 columns = (hi - lo + DLM_TILE_OUT - 1) / DLM_TILE_OUT, n = columns * DLM_TILE_OUT;
    const i64 stride = (i64)n_tiles * DLM_TILE_BYTES;
    const u8 *tiles = (const u8 *)w->data + lo / DLM_TILE_OUT * stride;
    memset(s->sums, 0, (size_t)n * sizeof *s->sums);
    memset(s->wide, 0, (size_t)n * sizeof *s->wide);
    for (i32 t = 0, passes = 1; t < n_tiles; t += TABLE_TILES, passes++) {
        bool two = t + 1 < n_tiles, last = t + TABLE_TILES >= n_tiles;
        avx2_tables_of_(s->tables[0], q + t * DLM_TILE_IN, q_stride, n_rows);
        if (two)
            avx2_tables_of_(s->tables[1], q + (t + 1) * DLM_TILE_IN, q_stride, n_rows);
        else
            memset(s->tables[1], 0, sizeof s->tables[1]);
        avx2_table_pass_(s, tiles + (i64)t * DLM_TILE_BYTES, stride, two ? DLM_TILE_BYTES : 0,
                         columns);
        if (passes % TABLE_PASSES == 0 || last) avx2_table_flush_(s, n);
    }
    for (i32 o = 0; o < hi - lo; o += 8)
        for (i32 m = 0; m < n_rows; m += 8)
            avx2_table_finish_(y + m * y_stride + lo + o, y_stride, s->wide + o, m / 8, w->scale,
                               inv_scale + m, n_rows - m, MIN_OF(8, hi - lo - o));
}

static void avx2_ternary_tables(f32 *y, i64 y_stride, const DlmMat *w, i32 out_lo, i32 out_hi,
                                const i8 *q, i64 q_stride, const f32 *inv_scale, i32 n_rows,
                                void *scratch) {
    i32 n_strips = (out_hi - out_lo + TABLE_OUT - 1) / TABLE_OUT;
    for (i32 i = 0, lo = out_lo, hi; i < n_strips; i++, lo = hi) { /* equal ones, in whole tiles */
        hi = lo + ((out_hi - lo) / (n_strips - i) + DLM_TILE_OUT - 1) / DLM_TILE_OUT * DLM_TILE_OUT;
        hi = MIN_OF(hi, out_hi);
        avx2_table_strip_(y, y_stride, w, lo, hi, q, q_stride, inv_scale, n_rows, scratch);
    }
}

/* ---- ceilings: independent chains of the level's 8-bit multiply-add, enough for its latency ---- */

AVX2_FN static i64 avx2_peak(i64 n) {
    __m256i acc[8], w = _mm256_set1_epi8(1), a = _mm256_set1_epi8((char)(n | 1));
    UNROLL
    for (int j = 0; j < 8; j++) acc[j] = _mm256_setzero_si256();
    for (i64 i = 0; i < n; i++) {
        UNROLL
        for (int j = 0; j < 8; j++) {
            acc[j] = _mm256_add_epi16(acc[j], _mm256_maddubs_epi16(w, a));
            __asm__ volatile("" : "+x"(acc[j]), "+x"(a)); /* neither hoisted nor folded */
        }
    }
    return 8 * 32;
}

AVXVNNI_FN static i64 avxvnni_peak(i64 n) {
    __m256i acc[12], w = _mm256_set1_epi8(1), a = _mm256_set1_epi8((char)(n | 1));
    UNROLL
    for (int j = 0; j < 12; j++) acc[j] = _mm256_setzero_si256();
    for (i64 i = 0; i < n; i++) {
        UNROLL
        for (int j = 0; j < 12; j++) {
            acc[j] = _mm256_dpbusd_avx_epi32(acc[j], w, a);
            __asm__ volatile("" : "+x"(acc[j]));
        }
    }
    return 12 * 32;
}

AVX512_FN static i64 avx512_peak(i64 n) {
    __m512i acc[16], w = _mm512_set1_epi8(1), a = _mm512_set1_epi8((char)(n | 1));
    UNROLL
    for (int j = 0; j < 16; j++) acc[j] = _mm512_setzero_si512();
    for (i64 i = 0; i < n; i++) {
        UNROLL
        for (int j = 0; j < 16; j++) {
            acc[j] = _mm512_dpbusd_epi32(acc[j], w, a);
            __asm__ volatile("" : "+v"(acc[j]));
        }
    }
    return 16 * 64;
}

/* A level over avx2, with the float kernels of `wide`. */
#define X86_LEVEL(level, wide, ...)                                           \
    static const DlmKernels level = {.quantize_row = wide##_quantize_row,     \
                                     .quantize_blocks = avx2_quantize_blocks, \
                                     .rms_norm = wide##_rms_norm,             \
                                     .gate = wide##_gate,                     \
                                     .add = wide##_add,                       \
                                     .rope = avx2_rope,                       \
                                     .to_f16 = avx2_to_f16,                   \
                                     .from_f16 = avx2_from_f16,               \
                                     .to_q8_0 = avx2_to_q8_0,                 \
                                     .top1 = wide##_top1,                     \
                                     .exps = wide##_exps,                     \
                                     .dense = wide##_dense,                   \
                                     .attend = wide##_attend,                 \
                                     .strip_bytes = x86_strip_bytes,          \
                                     .strip = x86_strip,                      \
                                     __VA_ARGS__};
#define AVX2_TABLES .ternary_tables = avx2_ternary_tables, .tables_bytes = sizeof(Avx2Tables)
X86_LEVEL(KERN_AVX2, avx2, .name = "avx2", .ternary = avx2_ternary, AVX2_TABLES,
          .blocks = avx2_blocks, .peak = avx2_peak)
X86_LEVEL(KERN_AVXVNNI, avx2, .name = "avxvnni", .ternary = avxvnni_ternary, AVX2_TABLES,
          .blocks = avx2_blocks, .peak = avxvnni_peak)
X86_LEVEL(KERN_AVX512, avx512, .name = "avx512", .ternary = avx512_ternary,
          .blocks = avx512_blocks, .quantize_row4 = avx512_quantize_row4,
          .rms_norm4 = avx512_rms_norm4, .peak = avx512_peak)

/* The levels that this machine can run, best first; NULL past the last. */
static const DlmKernels *kern_x86_level(int i) {
    KernX86 has = kern_x86_probe();
    if (has.avx512 && i-- == 0) return &KERN_AVX512;
    if (has.avxvnni && i-- == 0) return &KERN_AVXVNNI;
    return has.avx2 && i == 0 ? &KERN_AVX2 : NULL;
}

#else

static const DlmKernels *kern_x86_level(int i) {
    (void)i;
    return NULL;
}

#endif
#endif

/* kern_check.c - every kernel at every level of this machine against the scalar law, bit for bit.
 *
 * In the manner of dav1d's checkasm: sizes around each lane count, extreme and random inputs,
 * buffers that end at an unmapped page, and the benchmark in the same program. One thread and no
 * files, so that it also runs on an emulated CPU.
 *
 *     kern_check [--level NAME] [--bench] */
#include "../src/kern.c"
#include "test.h"

static const i32 SIZES[] = {1,  2,  7,  8,   9,   15,  16,  17,  31,  32,  33,
                            63, 64, 65, 100, 255, 256, 257, 512, 576, 1000};
#define N_MAX 4096
static u64 rng = 12345;

/* Fills with one of several distributions: the interesting inputs of float kernels. */
static void fill(f32 *x, i32 n, int how) {
    for (i32 i = 0; i < n; i++) switch (how % 6) {
        case 0: x[i] = test_rng_f32(&rng); break;
        case 1: x[i] = test_rng_f32(&rng) * 100.0f; break;
        case 2: x[i] = 0; break;
        case 3: x[i] = (f32)(i % 255) * 0.5f - 63.5f; break; /* ties of the int8 rounding */
        case 4: x[i] = test_rng_f32(&rng) * 1e-8f; break;
        default: x[i] = i == n / 2 ? 1e30f : test_rng_f32(&rng); break;
        }
}

static f32 *guarded_f32(i32 n, int how) {
    f32 *x = (f32 *)(void *)test_guard_alloc((size_t)n * sizeof *x);
    fill(x, n, how);
    return x;
}

/* NaN equals NaN here; everything else by bits, except that the sign of a zero may differ in max().
 */
static bool same_floats(const f32 *a, const f32 *b, i32 n) {
    for (i32 i = 0; i < n; i++)
        if (memcmp(a + i, b + i, sizeof *a) != 0 && !(a[i] != a[i] && b[i] != b[i])) return false;
    return true;
}

/* Four rows at once are four rows. */
static void check_rows4(const DlmKernels *k, i32 n, int how) {
    static f32 want[4 * N_MAX], got[4 * N_MAX];
    static i8 q_want[4 * N_MAX], q_got[4 * N_MAX];
    f32 inv_want[4], inv_got[4], *x = guarded_f32(4 * n, how), *gain = guarded_f32(n, 0);
    i32 sum_want[4], sum_got[4];
    i64 stride = n + 7;
    memset(q_want, 0, sizeof q_want);
    memset(q_got, 0, sizeof q_got);
    for (i32 m = 0; m < 4; m++) {
        KERN_REF.quantize_row(q_want + m * stride, inv_want + m, sum_want + m, x + m * n, n);
        KERN_REF.rms_norm(want + m * n, x + m * n, gain, n, 1e-5f);
    }
    k->quantize_row4(q_got, stride, inv_got, sum_got, x, n);
    k->rms_norm4(got, x, gain, n, 1e-5f);
    CHECK_MSG(memcmp(q_want, q_got, (size_t)(4 * stride)) == 0 &&
                  memcmp(sum_want, sum_got, sizeof sum_got) == 0 && same_floats(inv_want, inv_got, 4),
              "%s quantize_row4 n=%d input %d", k->name, n, how);
    CHECK_MSG(same_floats(want, got, 4 * n), "%s rms_norm4 n=%d input %d", k->name, n, how);
    k->rms_norm4(x, x, gain, n, 1e-5f);
    CHECK_MSG(same_floats(want, x, 4 * n), "%s rms_norm4 n=%d input %d in place", k->name, n, how);
    test_guard_free(x);
    test_guard_free(gain);
}

static void check_rows(const DlmKernels *k) {
    static f32 want[N_MAX], got[N_MAX];
    static i8 q_want[N_MAX], q_got[N_MAX];
    static u16 h_want[N_MAX], h_got[N_MAX];
    for (size_t s = 0; s < COUNT_OF(SIZES); s++)
        for (int how = 0; how < 6; how++) {
            i32 n = SIZES[s], sum_want, sum_got;
            f32 inv_want, inv_got, *x = guarded_f32(n, how), *gain = guarded_f32(n, 0);
            KERN_REF.quantize_row(q_want, &inv_want, &sum_want, x, n);
            k->quantize_row(q_got, &inv_got, &sum_got, x, n);
            CHECK_MSG(memcmp(q_want, q_got, (size_t)n) == 0 && sum_want == sum_got &&
                          same_floats(&inv_want, &inv_got, 1),
                      "%s quantize_row n=%d input %d", k->name, n, how);
            KERN_REF.rms_norm(want, x, gain, n, 1e-5f);
            k->rms_norm(got, x, gain, n, 1e-5f);
            CHECK_MSG(same_floats(want, got, n), "%s rms_norm n=%d input %d", k->name, n, how);
            KERN_REF.to_f16(h_want, x, n);
            k->to_f16(h_got, x, n);
            CHECK_MSG(memcmp(h_want, h_got, (size_t)n * 2) == 0, "%s to_f16 n=%d input %d", k->name,
                      n, how);
            KERN_REF.from_f16(want, h_want, n);
            k->from_f16(got, h_want, n);
            CHECK_MSG(same_floats(want, got, n), "%s from_f16 n=%d input %d", k->name, n, how);
            static DlmBlockQ8_0 b_want[N_MAX / DLM_QK8_0], b_got[N_MAX / DLM_QK8_0];
            i32 whole = n / DLM_QK8_0 * DLM_QK8_0;
            KERN_REF.to_q8_0(b_want, x, whole);
            k->to_q8_0(b_got, x, whole);
            CHECK_MSG(memcmp(b_want, b_got, (size_t)(whole / DLM_QK8_0) * sizeof *b_want) == 0,
                      "%s to_q8_0 n=%d input %d", k->name, whole, how);
            for (int act = 0; act < 2; act++) {
                memcpy(want, x, (size_t)n * sizeof *x);
                memcpy(got, x, (size_t)n * sizeof *x);
                KERN_REF.gate(want, gain, n, (DlmAct)act);
                k->gate(got, gain, n, (DlmAct)act);
                CHECK_MSG(same_floats(want, got, n), "%s gate %d n=%d input %d", k->name, act, n,
                          how);
            }
            memcpy(want, x, (size_t)n * sizeof *x);
            memcpy(got, x, (size_t)n * sizeof *x);
            KERN_REF.add(want, gain, n);
            k->add(got, gain, n);
            CHECK_MSG(same_floats(want, got, n), "%s add n=%d input %d", k->name, n, how);
            i32 best_want = KERN_REF.top1(x, n, &inv_want), best_got = k->top1(x, n, &inv_got);
            CHECK_MSG(best_want == best_got && same_floats(&inv_want, &inv_got, 1),
                      "%s top1 n=%d input %d: %d %d", k->name, n, how, best_want, best_got);
            KERN_REF.exps(want, x, 0.5f, 0.7f, n);
            k->exps(got, x, 0.5f, 0.7f, n);
            CHECK_MSG(same_floats(want, got, n), "%s exps n=%d input %d", k->name, n, how);
            memcpy(got, x, (size_t)n * sizeof *x);
            k->exps(got, got, 0.5f, 0.7f, n);
            CHECK_MSG(same_floats(want, got, n), "%s exps n=%d input %d in place", k->name, n, how);
            test_guard_free(x);
            test_guard_free(gain);
            if (k->rms_norm4) check_rows4(k, n, how);
        }
}

static void check_rope(const DlmKernels *k) {
    static const i32 n_rots[] = {2, 6, 8, 14, 16, 18, 32, 64, 96, 128};
    for (size_t i = 0; i < COUNT_OF(n_rots); i++)
        for (int kind = DLM_ROPE_NORM; kind <= DLM_ROPE_NEOX; kind++)
            for (i32 rest = 0; rest <= 8; rest += 8) {
                i32 n_rot = n_rots[i], dim = n_rot + rest, n = 3 * dim;
                f32 *want = guarded_f32(n, 0), *got = guarded_f32(n, 0), *t = guarded_f32(n_rot, 0);
                memcpy(got, want, (size_t)n * sizeof *got);
                KERN_REF.rope(want, 3, dim, n_rot, t, (DlmRope)kind);
                k->rope(got, 3, dim, n_rot, t, (DlmRope)kind);
                CHECK_MSG(same_floats(want, got, n), "%s rope %d of %d, kind %d", k->name, n_rot,
                          dim, kind);
                test_guard_free(want);
                test_guard_free(got);
                test_guard_free(t);
            }
}

static void check_nans(const DlmKernels *k) {
    f32 x[40], sum_want, sum_got, nan = __builtin_nanf("");
    for (int at = 0; at < 40; at++) {
        fill(x, 40, 0);
        x[at] = nan;
        CHECK_INT(k->top1(x, 40, &sum_got), KERN_REF.top1(x, 40, &sum_want));
        x[(at + 7) % 40] = KERN_MINUS_INF;
        CHECK_INT(k->top1(x, 40, &sum_got), KERN_REF.top1(x, 40, &sum_want));
        CHECK(same_floats(&sum_want, &sum_got, 1));
        i8 q_want[40], q_got[40];
        i32 a, b;
        x[(at + 7) % 40] = 1;
        KERN_REF.quantize_row(q_want, &sum_want, &a, x, 40);
        k->quantize_row(q_got, &sum_got, &b, x, 40);
        CHECK(memcmp(q_want, q_got, 40) == 0 && a == b);
        DlmBlockQ8_0 b_want, b_got;
        KERN_REF.to_q8_0(&b_want, x, DLM_QK8_0);
        k->to_q8_0(&b_got, x, DLM_QK8_0);
        CHECK(memcmp(&b_want, &b_got, sizeof b_want) == 0);
    }
    for (int i = 0; i < 40; i++) x[i] = nan;
    CHECK_INT(k->top1(x, 40, &sum_got), 0);
}

/* The law's fused multiply-add is the hardware's. */
static void check_fma(void) {
    int bad = 0;
    for (int i = 0; i < 200000; i++) {
        f32 x[3];
        for (int j = 0; j < 3; j++) {
            u32 bits = (u32)test_rng(&rng);
            if (i % 2) bits = (bits & 0x807fffffu) | (120u + bits % 16) << 23; /* of one size */
            memcpy(&x[j], &bits, sizeof x[j]);
        }
        f32 want = __builtin_fmaf(x[0], x[1], x[2]), got = kern_fmaf(x[0], x[1], x[2]);
        bad += !same_floats(&want, &got, 1);
    }
    CHECK_INT(bad, 0);
}

/* lo_step, hi_step: how far each query's range begins and ends behind its neighbour's. */
static void check_attend_case(const DlmKernels *k, i32 dim, i32 n, DlmType type, i32 n_q,
                              i32 lo_step, i32 hi_step) {
    static f32 want[DLM_ATTEND_Q][256], got[DLM_ATTEND_Q][256], scores[DLM_ATTEND_Q][256];
    i32 lo[DLM_ATTEND_Q], hi[DLM_ATTEND_Q];
    f32 *q = guarded_f32(n_q * dim, 0), *kv = guarded_f32(2 * n * dim, 1);
    i64 half = (i64)quant_row_bytes(type, (i64)n * dim);
    u8 *cells = test_guard_alloc((size_t)(2 * half));
    f32 *out_want[DLM_ATTEND_Q], *out_got[DLM_ATTEND_Q];
    const f32 *queries[DLM_ATTEND_Q];
    for (i32 c = 0; c < 2; c++) quant_row(type, kv + c * n * dim, (i64)n * dim, cells + c * half);
    for (i32 m = 0; m < n_q; m++) {
        out_want[m] = want[m], out_got[m] = got[m], queries[m] = q + m * dim;
        lo[m] = MIN_OF((n > 4 ? 3 : 0) + m * lo_step, n - 1);
        hi[m] = MAX_OF(lo[m] + 1, n - (n_q - 1 - m) * hi_step);
    }
    /* the law, of what the cells hold as floats */
    for (i32 c = 0; c < 2; c++)
        quant_values(type, cells + c * half, (i64)n * dim, kv + c * n * dim);
    KERN_REF.attend(out_want, queries, lo, hi, n_q, kv, kv + n * dim, DLM_F32, dim, 0.125f,
                    scores[0], 256, NULL);
    k->attend(out_got, queries, lo, hi, n_q, cells, cells + half, type, dim, 0.125f, scores[0],
              256, cells);
    for (i32 m = 0; m < n_q; m++)
        CHECK_MSG(same_floats(want[m], got[m], dim),
                  "%s attend dim=%d cells=%d type=%d query %d of %d, steps %d and %d", k->name, dim,
                  n, (int)type, m, n_q, lo_step, hi_step);
    test_guard_free(q);
    test_guard_free(kv);
    test_guard_free(cells);
}

static void check_attend(const DlmKernels *k) {
    static const i32 dims[] = {2, 8, 16, 17, 32, 48, 64, 80, 96, 128},
                     cells[] = {1, 2, 15, 16, 17, 33, 100};
    static const i32 lo_steps[] = {0, 1, 17}; /* ranges begin as one, a cell apart, far apart */
    for (i32 d = 0; d < (i32)COUNT_OF(dims); d++)
        for (i32 c = 0; c < (i32)COUNT_OF(cells); c++)
            for (i32 n_q = 1; n_q <= DLM_ATTEND_Q; n_q++)
                for (i32 hi_step = 0; hi_step < 2; hi_step++) {
                    i32 lo_step = lo_steps[(d + c + n_q) % 3];
                    check_attend_case(k, dims[d], cells[c], DLM_F16, n_q, lo_step, hi_step);
                    check_attend_case(k, dims[d], cells[c], DLM_F32, n_q, lo_step, hi_step);
                    if (dims[d] % DLM_QK8_0 == 0)
                        check_attend_case(k, dims[d], cells[c], DLM_Q8_0, n_q, lo_step, hi_step);
                }
}

/* A matrix of random weights, in guarded memory: values of F32, F16, BF16; any bytes of the block
 * types, whose scales are kept from being infinite. */
static DlmMat random_matrix(const DlmTypeInfo *info, i32 n_out, i32 n_in) {
    static const DlmMatKind kinds[] = {
        [DLM_F32] = DLM_MAT_F32, [DLM_F16] = DLM_MAT_F16, [DLM_BF16] = DLM_MAT_BF16};
    DlmMat m = {.kind = quant_is_blocks(info->type) ? DLM_MAT_BLOCKS : kinds[info->type],
                .type = info->type,
                .n_in = n_in,
                .n_out = n_out};
    i64 bytes = kern_row_bytes(&m);
    u8 *data = test_guard_alloc((size_t)(bytes * n_out));
    static f32 row[N_MAX];
    for (i32 o = 0; o < n_out; o++) {
        fill(row, n_in, o % 2);
        if (m.kind != DLM_MAT_BLOCKS) quant_row(info->type, row, n_in, data + o * bytes);
        for (i64 i = 0; m.kind == DLM_MAT_BLOCKS && i < bytes; i++)
            data[o * bytes + i] = (u8)test_rng(&rng);
        for (i64 b = 0; m.kind == DLM_MAT_BLOCKS && b < n_in / (i64)info->block; b++)
            for (u32 i = 0; i + 1 < info->bytes;
                 i += 2) { /* wherever the f16 scales are: no exponent of 31 */
                u8 *p = data + o * bytes + b * info->bytes + i + 1;
                if ((*p & 0x7c) == 0x7c) *p ^= 0x40;
            }
    }
    m.data = data;
    return m;
}

/* The strips of a matrix as a level wants them, in guarded memory; false where it wants none. */
static bool strips(const DlmKernels *k, DlmMat *m) {
    i64 bytes = k->strip_bytes ? k->strip_bytes(m) : 0;
    i32 n = (m->n_out + DLM_STRIP_OUT - 1) / DLM_STRIP_OUT;
    if (!bytes) return false;
    m->owned = test_guard_alloc((size_t)(n * bytes));
    for (i32 i = 0; i < n; i++) k->strip((u8 *)m->owned + i * bytes, m, i * DLM_STRIP_OUT);
    return true;
}

/* Each level multiplies the activations that it quantized itself. */
static void check_blocks(const DlmKernels *k, const DlmMat *w, const f32 *x, f32 *want, f32 *got,
                         i32 rows) {
    i32 block = (i32)quant_info(w->type)->block, n_run = kern_padded(w->n_in),
        run = kern_sum_run(block);
    i8 *q = (i8 *)test_guard_alloc((size_t)(rows * n_run));
    f32 *d = guarded_f32(rows * n_run / block, 0);
    i16 *sums = (i16 *)(void *)test_guard_alloc((size_t)(rows * n_run / run) * sizeof *sums);
    const DlmKernels *levels[] = {&KERN_REF, k};
    for (int l = 0; l < 2; l++) {
        for (i32 r = 0; r < rows; r++)
            levels[l]->quantize_blocks(q + r * n_run, d + r * n_run / block, sums + r * n_run / run,
                                       x + r * w->n_in, w->n_in, block);
        levels[l]->blocks(l ? got : want, 24, w, 0, 16, q, d, sums, rows);
        levels[l]->blocks(l ? got : want, 24, w, 16, w->n_out, q, d, sums, rows);
    }
    test_guard_free(q);
    test_guard_free(d);
    test_guard_free(sums);
}

static void check_dense(const DlmKernels *k) {
    static const i32 widths[] = {1, 8, 16, 17, 32, 64, 96, 100, 256, 288, 512};
    static f32 want[19 * 24], got[19 * 24];
    for (size_t t = 0; t < COUNT_OF(DLM_TYPES); t++)
        for (size_t w = 0; w < COUNT_OF(widths); w++)
            for (i32 rows = 1; rows <= 19; rows += rows < 9 ? 1 : 5) {
                const DlmTypeInfo *info = &DLM_TYPES[t];
                i32 n_in = widths[w], n_out = 19;
                if (quant_is_ternary(info->type) || n_in % (i32)info->block) continue;
                DlmMat m = random_matrix(info, n_out, n_in);
                f32 *x = guarded_f32(rows * n_in, rows % 2);
                memset(got, 0x7f, sizeof got);
                if (m.kind == DLM_MAT_BLOCKS) {
                    check_blocks(k, &m, x, want, got, rows);
                    CHECK_MSG(same_floats(want, got, n_out), "%s %s in place, n_in=%d rows=%d",
                              k->name, info->name, n_in, rows);
                    if (strips(k, &m)) check_blocks(k, &m, x, want, got, rows);
                    test_guard_free(m.owned);
                } else {
                    KERN_REF.dense(want, 24, &m, 0, n_out, x, n_in, rows);
                    k->dense(got, 24, &m, 0, n_out, x, n_in, rows);
                }
                for (i32 r = 0; r < rows; r++)
                    CHECK_MSG(same_floats(want + 24 * r, got + 24 * r, n_out),
                              "%s %s n_in=%d rows=%d", k->name, info->name, n_in, rows);
                test_guard_free((void *)(uintptr_t)m.data);
                test_guard_free(x);
            }
}

/* Values, scales and sums; of the order within a run, that nothing is lost. */
static void check_quantize_blocks(const DlmKernels *k) {
    for (i32 block = 32; block <= 256; block += 224)
        for (i32 n = block; n <= 512; n += block)
            for (int how = 0; how < 6; how++) {
                f32 *x = guarded_f32(n, how), d_want[16], d_got[16];
                i8 q_want[512], q_got[512];
                i16 s_want[64], s_got[64];
                i32 n_run = kern_padded(n), counts[2][256] = {{0}};
                KERN_REF.quantize_blocks(q_want, d_want, s_want, x, n, block);
                k->quantize_blocks(q_got, d_got, s_got, x, n, block);
                for (i32 run = 0; run < n_run; run += KERN_RUN) {
                    for (i32 i = run; i < run + KERN_RUN; i++)
                        counts[0][q_want[i] + 128]++, counts[1][q_got[i] + 128]++;
                    CHECK(memcmp(counts[0], counts[1], sizeof counts[0]) == 0);
                }
                CHECK_MSG(memcmp(s_want, s_got,
                                 (size_t)(n_run / kern_sum_run(block)) * sizeof *s_want) == 0 &&
                              same_floats(d_want, d_got, n_run / block),
                          "%s quantize_blocks of %d, n=%d, input %d", k->name, block, n, how);
                test_guard_free(x);
            }
}

/* A tiled matrix of random codes 0..code_max; scale_block 0: one scale. */
static DlmMat ternary_matrix(i32 n_out, i32 n_in, int code_max, i32 scale_block) {
    i32 groups = (n_out + 15) / 16, tiles = (n_in + 15) / 16;
    DlmMat m = {.kind = DLM_MAT_TERNARY,
                .n_in = n_in,
                .n_out = n_out,
                .scale = 0.037f,
                .scale_block = scale_block};
    u8 *data = mem_alloc_n((u64)groups * (u64)tiles, DLM_TILE_BYTES, NULL);
    static u8 codes[N_MAX];
    for (i32 o = 0; o < groups * 16; o++) {
        for (i32 i = 0; i < tiles * 16; i++)
            codes[i] = i < n_in && o < n_out ? (u8)test_rng_below(&rng, (u64)code_max + 1) : 1;
        m.twos |=
            cpu_tile_row_(data + (i64)(o / 16) * tiles * DLM_TILE_BYTES, codes, tiles, o % 16);
    }
    m.data = m.owned = data;
    if (!scale_block) return m;
    i64 n_scales = (i64)groups * (n_in / scale_block) * 16;
    f32 *scales = mem_alloc_n((u64)n_scales, sizeof *scales, NULL);
    for (i64 i = 0; i < n_scales; i++) scales[i] = test_rng_f32(&rng);
    m.scales = m.owned_scales = scales;
    return m;
}

/* `ternary`, or with scratch `ternary_tables` in bites of rows. */
static void run_ternary(const DlmKernels *k, void *scratch, f32 *y, i64 y_stride, const DlmMat *m,
                        i32 out_lo, const i8 *q, i64 stride, const f32 *inv, const i32 *sum,
                        i32 rows) {
    if (!scratch) {
        k->ternary(y, y_stride, m, out_lo, m->n_out, q, stride, inv, sum, rows);
        return;
    }
    for (i32 r = 0; r < rows; r += DLM_TABLE_ROWS)
        k->ternary_tables(y + r * y_stride, y_stride, m, out_lo, m->n_out, q + r * stride, stride,
                          inv + r, MIN_OF(DLM_TABLE_ROWS, rows - r), scratch);
}

static void check_ternary_case(const DlmKernels *k, bool tables, const DlmMat *m, i32 rows,
                               bool extreme) {
    static f32 want[40 * 64], got[40 * 64];
    static f32 inv[40];
    static i32 sum[40];
    i64 stride = (m->n_in + 15) / 16 * 16;
    i8 *q = (i8 *)test_guard_alloc((size_t)(stride * rows));
    for (i32 r = 0; r < rows; r++) {
        sum[r] = 0;
        inv[r] = test_rng_f32(&rng);
        for (i32 i = 0; i < stride; i++) {
            i8 v = extreme ? (r % 2 ? 127 : -128) : (i8)(test_rng_below(&rng, 256) - 128);
            q[r * stride + i] = i < m->n_in ? v : 0;
            sum[r] += q[r * stride + i];
        }
    }
    KERN_REF.ternary(want, 64, m, 0, m->n_out, q, stride, inv, sum, rows);
    memset(got, 0x7f, sizeof got);
    void *scratch = tables ? test_guard_alloc((size_t)k->tables_bytes) : NULL;
    run_ternary(k, scratch, got, 64, m, 0, q, stride, inv, sum, rows);
    test_guard_free(scratch);
    for (i32 r = 0; r < rows; r++)
        CHECK_MSG(same_floats(want + 64 * r, got + 64 * r, m->n_out),
                  "%s ternary%s %d x %d, rows=%d, row %d, scales per %d", k->name,
                  tables ? " by tables" : "", m->n_out, m->n_in, rows, r, m->scale_block);
    f32 beyond = got[m->n_out]; /* the kernel must not write past its outputs */
    u32 bits;
    memcpy(&bits, &beyond, sizeof bits);
    CHECK(m->n_out == 64 || bits == 0x7f7f7f7fu);
    test_guard_free(q);
}

static void check_ternary(const DlmKernels *k) {
    static const i32 widths[] = {1, 15, 16, 17, 64, 160, 161, 256, 576, 2560},
                     outs[] = {1, 15, 16, 17, 33, 48};
    static const i32 row_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 14, 15, 16, 17, 32, 33};
    for (size_t w = 0; w < COUNT_OF(widths); w++)
        for (size_t o = 0; o < COUNT_OF(outs); o++)
            for (int code_max = 2; code_max <= 3; code_max++) {
                DlmMat m = ternary_matrix(outs[o], widths[w], code_max, 0);
                for (size_t r = 0; r < COUNT_OF(row_counts); r++) {
                    check_ternary_case(k, false, &m, row_counts[r], r % 3 == 0);
                    if (k->ternary_tables && !m.twos)
                        check_ternary_case(k, true, &m, row_counts[r], r % 3 == 0);
                }
                cpu_mat_free(NULL, &m);
            }
    for (i32 block = 64; block <= 256; block += 192)
        for (i32 rows = 1; rows <= 9; rows++) {
            DlmMat m = ternary_matrix(33, 512, 3, block);
            check_ternary_case(k, false, &m, rows, rows % 3 == 0);
            cpu_mat_free(NULL, &m);
        }
}

/* Sums of whole extreme rows: the 16-bit range proofs at their edge. */
static void check_range(const DlmKernels *k) {
    for (int code = 0; code <= 3; code += 3) {
        DlmMat m = ternary_matrix(16, 4096, 0, 0);
        memset((void *)(uintptr_t)m.data, code * 0x55, 4096 / 16 * DLM_TILE_BYTES);
        for (i32 rows = 1; rows <= 13; rows++) check_ternary_case(k, false, &m, rows, true);
        for (i32 rows = 1; rows <= 17 && k->ternary_tables && code < 3; rows++)
            check_ternary_case(k, true, &m, rows, true);
        cpu_mat_free(NULL, &m);
    }
}

/* More outputs than a strip of tables has, and a range that begins between. */
static void check_tables_range(const DlmKernels *k) {
    enum { OUT = 2048 + 2048 + 40, IN = 48, ROWS = 16 };
    static f32 want[(i64)OUT * ROWS], got[(i64)OUT * ROWS], inv[ROWS];
    static i32 sum[ROWS];
    static i8 q[IN * ROWS];
    if (!k->ternary_tables) return;
    DlmMat m = ternary_matrix(OUT, IN, 2, 0);
    void *scratch = test_guard_alloc((size_t)k->tables_bytes);
    for (i32 i = 0; i < IN * ROWS; i++) q[i] = (i8)(test_rng_below(&rng, 256) - 128);
    for (i32 r = 0; r < ROWS; r++) inv[r] = test_rng_f32(&rng);
    for (i32 lo = 0; lo <= 32; lo += 16) {
        memset(got, 0x7f, sizeof got);
        memset(want, 0x7f, sizeof want);
        run_ternary(&KERN_REF, NULL, want, OUT, &m, lo, q, IN, inv, sum, ROWS);
        run_ternary(k, scratch, got, OUT, &m, lo, q, IN, inv, sum, ROWS);
        CHECK_MSG(memcmp(want, got, sizeof want) == 0, "%s tables from output %d", k->name, lo);
    }
    test_guard_free(scratch);
    cpu_mat_free(NULL, &m);
}

/* The backend's linear op, which deals out rows and outputs: two ternary matrices at once, one of them
 * with a bias, of as many rows as make one bite, several, and bites that are all but empty. */
static void check_linear(const DlmKernels *k) {
    enum { IN = 96, OUT = 300, ROWS = 45 };
    static const i32 row_counts[] = {1, 11, 12, 13, 16, 17, 27, 28, 33, 45};
    static f32 x[IN * ROWS], want[OUT * ROWS], y[2][OUT * ROWS], bias[OUT], inv[ROWS];
    static i8 q[IN * ROWS];
    static i32 sum[ROWS];
    Pool *pool = NULL;
    DlmOps ops = {0};
    if (!CHECK(pool_open(&pool, 1, NULL) && kern_open_cpu(&ops, pool, k->name, NULL))) return;
    CHECK(!ops.reserve(ops.self, ROWS, IN, 64));
    fill(x, IN * ROWS, 0), fill(bias, OUT, 0);
    for (i32 r = 0; r < ROWS; r++)
        KERN_REF.quantize_row(q + r * IN, inv + r, sum + r, x + r * IN, IN);
    for (int code_max = 2; code_max <= 3; code_max++) {
        DlmMat m[2] = {ternary_matrix(OUT, IN, code_max, 0), ternary_matrix(OUT - 41, IN, 2, 0)};
        const DlmLinear jobs[2] = {{&m[0], NULL, y[0]}, {&m[1], bias, y[1]}};
        for (size_t i = 0; i < COUNT_OF(row_counts); i++) {
            i32 rows = row_counts[i];
            ops.linear(ops.self, jobs, 2, x, rows);
            for (int j = 0; j < 2; j++) {
                i32 n_out = m[j].n_out;
                KERN_REF.ternary(want, n_out, &m[j], 0, n_out, q, IN, inv, sum, rows);
                for (i32 o = 0; j == 1 && o < n_out * rows; o++) want[o] += bias[o % n_out];
                CHECK_MSG(same_floats(want, y[j], n_out * rows), "%s linear, %d rows, matrix %d",
                          k->name, rows, j);
            }
        }
        cpu_mat_free(NULL, &m[0]);
        cpu_mat_free(NULL, &m[1]);
    }
    kern_close_cpu(&ops);
    pool_close(pool);
}

static void bench_ternary(const DlmKernels *k, bool tables, i32 n_out, i32 rows) {
    enum { IN = 2560, ROWS = 64 };
    static f32 inv[ROWS];
    static i32 sum[ROWS];
    static i8 q[IN * ROWS];
    DlmMat m = ternary_matrix(n_out, IN, 2, 0);
    f32 *y = mem_alloc_n((u64)n_out * ROWS, sizeof *y, NULL);
    void *scratch = tables ? mem_alloc((u64)k->tables_bytes, NULL) : NULL;
    for (i32 i = 0; i < IN * ROWS; i++) q[i] = (i8)(test_rng_below(&rng, 256) - 128);
    f64 best = 1e30;
    for (int i = 0; i < 7; i++) {
        f64 from = os_now_ms();
        run_ternary(k, scratch, y, n_out, &m, 0, q, IN, inv, sum, rows);
        best = MIN_OF(best, os_now_ms() - from);
    }
    printf("%-8s ternary%s %d x %d, %2d rows: %8.3f ms, %7.1f G multiply-adds/s\n", k->name,
           tables ? " by tables" : "", n_out, IN, rows, best, (f64)n_out * IN * rows / best / 1e6);
    cpu_mat_free(NULL, &m);
    mem_free(scratch);
    mem_free(y);
}

static void bench(const DlmKernels *k) {
    enum { OUT = 2560, IN = 2560, ROWS = 64 };
    static f32 y[(i64)OUT * ROWS];
    static i8 q[IN * ROWS];
    static const i32 rows[] = {1, 2, 4, 8, 16, 32, 64};
    for (size_t r = 0; r < COUNT_OF(rows); r++) bench_ternary(k, false, OUT, rows[r]);
    for (i32 n_out = 160; n_out <= 2560 && k->ternary_tables; n_out *= 2)
        bench_ternary(k, true, n_out, 16);
    for (i32 i = 0; i < IN * ROWS; i++) q[i] = (i8)(test_rng_below(&rng, 256) - 128);
    static const DlmType types[] = {DLM_Q8_0, DLM_Q4_0, DLM_Q4_K, DLM_Q6_K};
    static const i32 block_rows[] = {1, 2, 4, 8, 32};
    static f32 d[IN / 32 * ROWS];
    static i16 sums[IN / 8 * ROWS];
    for (size_t t = 0; t < COUNT_OF(types); t++) {
        DlmMat w = random_matrix(quant_info(types[t]), OUT, IN);
        strips(k, &w);
        for (size_t i = 0; i < COUNT_OF(block_rows); i++) {
            i32 r = block_rows[i];
            f64 best = 1e30;
            for (int i = 0; i < 5; i++) {
                f64 from = os_now_ms();
                k->blocks(y, OUT, &w, 0, OUT, q, d, sums, r);
                best = MIN_OF(best, os_now_ms() - from);
            }
            printf("%-8s %s %d x %d, %2d rows: %8.3f ms, %7.1f G multiply-adds/s, %5.1f GB/s\n",
                   k->name, quant_info(types[t])->name, OUT, IN, r, best,
                   (f64)OUT * IN * r / best / 1e6, (f64)kern_row_bytes(&w) * OUT / best / 1e6);
        }
        test_guard_free((void *)(uintptr_t)w.data);
        test_guard_free(w.owned);
    }
}

/* One head of keys and values, F16, 128 wide: queries of one row's group, and as many as go at once. */
static void bench_attend(const DlmKernels *k) {
    enum { DIM = 128, CELLS = 32768, STRIDE = CELLS + 16 };
    static const DlmType types[] = {DLM_F16, DLM_Q8_0};
    static f32 scores[DLM_ATTEND_Q * STRIDE], out[DLM_ATTEND_Q * DIM], q[DLM_ATTEND_Q * DIM];
    static u8 kv[2][CELLS * DIM * 2];
    f32 *outs[DLM_ATTEND_Q];
    const f32 *queries[DLM_ATTEND_Q];
    i32 lo[DLM_ATTEND_Q] = {0}, hi[DLM_ATTEND_Q];
    fill(q, DLM_ATTEND_Q * DIM, 0);
    for (size_t t = 0; t < COUNT_OF(types); t++) {
        i64 bytes = (i64)quant_row_bytes(types[t], DIM);
        for (i32 c = 0; c < 2 * CELLS; c++) {
            f32 cell[DIM];
            for (i32 i = 0; i < DIM; i++) cell[i] = test_rng_f32(&rng);
            quant_row(types[t], cell, DIM, kv[c % 2] + c / 2 * bytes);
        }
        for (i32 n_q = 1; n_q <= DLM_ATTEND_Q; n_q *= 4)
            for (i32 cells = 512; cells <= CELLS; cells *= 8) {
                f64 best = 1e30;
                for (i32 m = 0; m < n_q; m++)
                    outs[m] = out + m * DIM, queries[m] = q + m * DIM, hi[m] = cells;
                for (int i = 0; i < 7; i++) {
                    f64 from = os_now_ms();
                    k->attend(outs, queries, lo, hi, n_q, kv[0], kv[1], types[t], DIM, 0.088f,
                              scores, STRIDE, NULL);
                    best = MIN_OF(best, os_now_ms() - from);
                }
                printf("%-8s attend %s %2d queries, %5d cells: %8.3f ms, %7.1f G multiply-adds/s\n",
                       k->name, quant_info(types[t])->name, n_q, cells, best,
                       2.0 * n_q * cells * DIM / best / 1e6);
            }
    }
}

int main(int argc, char **argv) {
    const char *only = NULL;
    bool want_bench = false, found = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--bench") == 0)
            want_bench = true;
        else if (strcmp(argv[i], "--level") == 0 && i + 1 < argc)
            only = argv[++i];
    }
    for (int i = 0; kern_level(i); i++) {
        const DlmKernels *k = kern_level(i);
        if (only && strcmp(only, k->name) != 0) continue;
        found = true;
        printf("kern_check: level %s\n", k->name);
        check_rows(k);
        check_nans(k);
        check_rope(k);
        check_attend(k);
        check_dense(k);
        check_quantize_blocks(k);
        check_ternary(k);
        check_tables_range(k);
        check_linear(k);
        check_range(k);
        if (want_bench) bench(k), bench_attend(k);
    }
    check_fma();
    CHECK_MSG(found, "this machine does not have level %s", only ? only : "ref");
    return test_end();
}

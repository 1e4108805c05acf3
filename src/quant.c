/* quant.c - every block format, one row at a time: sizes, codes, values, and back.
 *
 * Owns:      nothing.
 * Stands on: base, dlm_kernels.h
 * Promises:  reads and writes only the row asked for; never allocates; the same bits on every
 *            machine.
 *
 * Block layouts: dlm_kernels.h. The encoders of the simple types round as ggml's do, so that a file
 * written here equals one written there; those of the K types have a search of their own. */
#ifndef DLM_QUANT_C
#define DLM_QUANT_C

#include "../dlm_kernels.h"
#include "base.c"

/* ---- 16-bit floats ---- */

/* IEEE 754 binary16 to binary32, exact for every input: the fields move into place, and the product
 * mends the exponent, of subnormals too. */
static f32 f16_to_f32(u16 h) {
    u32 bits = (u32)(h & 0x7fffu) << 13, sign = (u32)(h & 0x8000u) << 16;
    f32 v;
    memcpy(&v, &bits, sizeof v);
    v *= 0x1p112f;
    memcpy(&bits, &v, sizeof bits);
    bits |= sign | ((h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0);
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* binary32 to binary16, round to nearest even, as vcvtps2ph does. */
static u16 f32_to_f16(f32 x) {
    u32 bits;
    memcpy(&bits, &x, sizeof bits);
    u32 sign = bits >> 16 & 0x8000u, mag = bits & 0x7fffffffu;
    if (mag > 0x7f800000u)
        return (u16)(sign | 0x7e00u | (mag >> 13 & 0x3ffu)); /* NaN, made quiet */
    if (mag >= 0x477ff000u) return (u16)(sign | 0x7c00u);    /* 65520 and above */
    if (mag < 0x38800000u) { /* below 2^-14: the result is a multiple of 2^-24 */
        f32 a;
        memcpy(&a, &mag, sizeof a);
        a += 0.5f; /* ulp(0.5) is 2^-24: the addition rounds to nearest even for us */
        memcpy(&mag, &a, sizeof mag);
        return (u16)(sign | (mag - 0x3f000000u));
    }
    mag += 0xfffu + (mag >> 13 & 1u);
    return (u16)(sign | ((mag >> 13) - (112u << 10)));
}

static f32 bf16_to_f32(u16 h) {
    u32 bits = (u32)h << 16;
    f32 out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

static u16 f32_to_bf16(f32 x) {
    u32 bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)(bits >> 16 | 64u);
    return (u16)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static f32 f32_abs_(f32 x) {
    return x < 0 ? -x : x;
}

/* Round half to even for |x| < 2^22. The sum forces the rounding; volatile is not needed without
 * -ffast-math. */
static f32 f32_rint_(f32 x) {
    const f32 magic = 12582912.0f; /* 1.5 * 2^23 */
    return (x + magic) - magic;
}

/* ---- sizes ---- */

static bool quant_is_ternary(DlmType type) {
    return type == DLM_TQ1_0 || type == DLM_TQ2_0 || type == DLM_Q2_0 || type == DLM_I2_S ||
           type == DLM_TL1 || type == DLM_TL2;
}

/* Do a row's weights have bytes of their own? Those of I2_S, TL1 and TL2 share them with other rows,
 * and the whole tensor has one scale. */
static bool quant_has_rows(DlmType type) {
    return type != DLM_I2_S && type != DLM_TL1 && type != DLM_TL2;
}

/* NULL for a type that dlm does not read. */
static const DlmTypeInfo *quant_info(DlmType type) {
    for (size_t i = 0; i < COUNT_OF(DLM_TYPES); i++)
        if (DLM_TYPES[i].type == type) return &DLM_TYPES[i];
    return NULL;
}

/* Bytes of one row of n weights; n must divide by the block size, and the type must have rows. */
static u64 quant_row_bytes(DlmType type, i64 n) {
    const DlmTypeInfo *info = quant_info(type);
    ASSERT(info && quant_has_rows(type) && n > 0);
    if (info->block == 1) return (u64)n * info->bytes; /* a division is slow where rows are short */
    ASSERT(n % info->block == 0);
    return (u64)n / info->block * info->bytes;
}

/* ---- ternary codes: value = (code - 1) * scale ---- */

/* Loading a model decodes every weight once, so the two common formats decode several codes in one
 * u64. */

/* Trit n of four TQ1_0 bytes, which lie in the 16-bit lanes of x, to four codes. A byte is
 * ceil(value * 256 / 3^5): multiplying by 3^n shifts trit n to the top of its low 8 bits, and times
 * 3, over 256, it is the trit. */
static void tq1_four_(u64 x, int n, u8 *codes) {
    static const u8 pow3[5] = {1, 3, 9, 27, 81};
    u64 t = (x * pow3[n] & 0x00ff00ff00ff00ffu) * 3 >> 8 & 0x0003000300030003u;
    u32 four = (u32)((t & 0x3) | (t >> 8 & 0x300) | (t >> 16 & 0x30000) | (t >> 24 & 0x3000000));
    memcpy(codes, &four, sizeof four);
}

/* The n_trits trits of n bytes (a multiple of 4): trit j of byte m goes to codes[stride * j + m].
 */
static void tq1_run_(const u8 *bytes, int n, int n_trits, int stride, u8 *codes) {
    for (int m = 0; m < n; m += 4) {
        u64 x =
            bytes[m] | (u64)bytes[m + 1] << 16 | (u64)bytes[m + 2] << 32 | (u64)bytes[m + 3] << 48;
        for (int j = 0; j < n_trits; j++) tq1_four_(x, j, codes + stride * j + m);
    }
}

static void tq1_codes_(const DlmBlockTQ1_0 *b, u8 *codes /* [256] */) {
    tq1_run_(b->qs, 32, 5, 32, codes);
    tq1_run_(b->qs + 32, 16, 5, 16, codes + 160);
    tq1_run_(b->qh, 4, 4, 4, codes + 240);
}

/* 32 bytes of 2-bit codes to 128 codes: field l (shift[l] bits up) of byte m goes to codes[32 l +
 * m]. */
static void four_fields_(const u8 *bytes, const u8 shift[4], u8 *codes) {
    for (int m = 0; m < 32; m += 8) {
        u64 x = load_u64(bytes + m);
        for (int l = 0; l < 4; l++) {
            u64 field = x >> shift[l] & 0x0303030303030303u;
            memcpy(codes + 32 * l + m, &field, sizeof field);
        }
    }
}

static void tq2_codes_(const DlmBlockTQ2_0 *b, u8 *codes /* [256] */) {
    static const u8 rising[4] = {0, 2, 4, 6};
    four_fields_(b->qs, rising, codes);
    four_fields_(b->qs + 32, rising, codes + 128);
}

static void q2_codes_(const DlmBlockQ2_0 *b, u8 *codes /* [64] */) {
    for (int j = 0; j < DLM_QK2_0; j++) codes[j] = b->qs[j / 4] >> 2 * (j % 4) & 3;
}

/* Codes of row `row` of an I2_S tensor. The flat layouts run over row ends, so elements are found
 * one by one. */
static void i2s_codes_(const DlmTensor *t, i64 row, u8 *codes /* [n_in] */) {
    static const u8 falling[4] = {6, 4, 2, 0};
    if (t->i2s_layout == DLM_I2S_128 &&
        t->n_in % 128 == 0) { /* rows of whole groups: every official file */
        for (i64 i = 0; i < t->n_in; i += 128)
            four_fields_(t->data + (row * t->n_in + i) / 4, falling, codes + i);
        return;
    }
    for (i64 i = 0; i < t->n_in; i++) {
        i64 e = row * t->n_in + i, byte = 0;
        int shift = 0;
        switch (t->i2s_layout) {
        case DLM_I2S_128: byte = e / 128 * 32 + e % 32, shift = 6 - 2 * (int)(e % 128 / 32); break;
        case DLM_I2S_64: byte = e / 64 * 16 + e % 16, shift = 6 - 2 * (int)(e % 64 / 16); break;
        case DLM_I2S_ROW4: byte = row / 4 * t->n_in + i, shift = 6 - 2 * (int)(row % 4); break;
        case DLM_I2S_SEQ: byte = e / 4, shift = 2 * (int)(e % 4); break;
        }
        codes[i] = t->data[byte] >> shift & 3;
    }
}

/* True when the whole tensor fills whole groups of its I2_S layout; else the layout cannot be the
 * right one. */
static bool quant_i2s_fits(const DlmTensor *t) {
    i64 n = t->n_in * t->n_out;
    switch (t->i2s_layout) {
    case DLM_I2S_128: return n % 128 == 0;
    case DLM_I2S_64: return n % 64 == 0;
    case DLM_I2S_ROW4: return t->n_out % 4 == 0;
    case DLM_I2S_SEQ: return n % 4 == 0;
    }
    return false;
}

/* TL1: a nibble is a pair of weights, c = 3 (w0 + 1) + w1 + 1. Nibbles that no pair has are zeros. */
static const u8 TL_PAIRS_[16][2] = {{0, 0}, {0, 1}, {0, 2}, {1, 0}, {1, 1}, {1, 2}, {2, 0}, {2, 1},
                                    {2, 2}, {1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}, {1, 1}};

static void tl_two_pairs_(u8 byte, u8 *codes /* [4] */) {
    memcpy(codes, TL_PAIRS_[byte >> 4], 2);
    memcpy(codes + 2, TL_PAIRS_[byte & 15], 2);
}

/* Row `row` of a TL1 matrix: tiles of bm outputs by bk inputs, in them runs of bmm outputs by `by`
 * inputs, in those 16 outputs side by side, 4 inputs to a byte. */
static void tl1_codes_(const DlmTensor *t, i64 row, u8 *codes /* [n_in] */) {
    i64 k = t->n_in, bm = t->tl.bm, bk = t->tl.bk, bmm = t->tl.bmm, by = 256 / bmm;
    for (i64 i = 0; i < k; i += 4) {
        i64 at = row / bm * (k / bk) + i / bk;
        at = at * (bm / bmm) + row % bm / bmm;
        at = at * (bk / by) + i % bk / by;
        at = at * (bmm / 16) + row % bmm / 16;
        at = at * (by / 4) + i % by / 4;
        tl_two_pairs_(t->data[at * 16 + row % 16], codes + i);
    }
}

/* TL2: a nibble and a sign are three weights, 9 w0 + 3 w1 + w2 of -13 to 13. */
static void tl2_three_(int nibble, int negative, u8 *codes /* [3] */) {
    int c = nibble > 13 ? 13 : 13 + (negative ? -nibble : nibble);
    codes[0] = (u8)(c / 9), codes[1] = (u8)(c / 3 % 3), codes[2] = (u8)(c % 3);
}

/* Row `row` of a TL2 matrix. The inputs that whole tiles of bk hold are in threes: first all their
 * nibbles, 6 inputs to a byte, then all their signs, 8 threes of 32 rows in 16 words; the other inputs
 * follow in pairs. Rows of 32 lie in quarters of 8, the middle two swapped, but for the signs. */
static void tl2_codes_(const DlmTensor *t, i64 row, u8 *codes /* [n_in] */) {
    static const u8 quarters[4] = {0, 16, 8, 24};
    i64 bm = t->tl.bm, bk = t->tl.bk, n_pairs = t->n_in % bk, k = t->n_in - n_pairs, m = t->n_out;
    i64 run = row % bm / 32, j = row % 32, place = quarters[j / 8] + j % 8;
    const u8 *signs = t->data + m * k / 6, *pairs = signs + m * k / 24;
    for (i64 i = 0; i < k; i += 6) {
        i64 tile = (row / bm * (k / bk) + i / bk) * (bm / 32) + run, x = i % bk;
        u8 byte = t->data[(tile * (bk / 6) + x / 6) * 32 + place];
        u16 word = load_u16(signs + 2 * ((tile * (bk / 24) + x / 24) * 16 + j % 16));
        int bit = 15 - (int)(2 * (x % 24 / 3) + j / 16);
        tl2_three_(byte >> 4, word >> bit & 1, codes + i);
        tl2_three_(byte & 15, word >> (bit - 2) & 1, codes + i + 3);
    }
    for (i64 i = 0; i < n_pairs; i += 4) {
        i64 tile = (row / bm * (n_pairs / 32) + i / 32) * (bm / 32) + run;
        tl_two_pairs_(pairs[(tile * 8 + i % 32 / 4) * 32 + place], codes + k + i);
    }
}

/* True when the tiling is one that such a matrix can have: the bytes it reads lie in the tensor. */
static bool quant_tl_fits(const DlmTensor *t) {
    i64 bm = t->tl.bm, bk = t->tl.bk, bmm = t->tl.bmm, m = t->n_out, k = t->n_in;
    if (bm <= 0 || bk <= 0 || bmm <= 0 || m % bm || bm % bmm || t->n_bytes < DLM_I2S_TAIL)
        return false;
    u64 room = t->n_bytes - DLM_I2S_TAIL;
    if (t->type == DLM_TL1)
        return (bmm == 16 || bmm == 32 || bmm == 64) && k % bk == 0 && bk % (256 / bmm) == 0 &&
               (u64)(m * k) / 4 <= room;
    i64 n_pairs = k % bk, threes = k - n_pairs;
    return bmm == 32 && bk % 24 == 0 && n_pairs % 32 == 0 &&
           (u64)(m * threes / 6 + m * threes / 24 + m * n_pairs / 4) <= room;
}

/* Inputs that share one scale: 256 for TQ*, 64 for Q2_0, the whole row (n_in) for I2_S, TL1, TL2. */
static i32 quant_scale_block(const DlmTensor *t) {
    return quant_has_rows(t->type) ? (i32)quant_info(t->type)->block : (i32)t->n_in;
}

/* Row `row` of a ternary tensor: codes [n_in], scales [n_in / quant_scale_block]. */
static void quant_codes_row(const DlmTensor *t, i64 row, u8 *codes, f32 *scales) {
    ASSERT(quant_is_ternary(t->type) && row >= 0 && row < t->n_out);
    if (t->type == DLM_I2_S) {
        i2s_codes_(t, row, codes);
        scales[0] = load_f32(t->data + (u64)(t->n_in * t->n_out) / 4);
        return;
    }
    if (!quant_has_rows(t->type)) {
        (t->type == DLM_TL1 ? tl1_codes_ : tl2_codes_)(t, row, codes);
        scales[0] = load_f32(t->data + t->n_bytes - DLM_I2S_TAIL);
        return;
    }
    const u8 *p = t->data + (u64)row * quant_row_bytes(t->type, t->n_in);
    i64 block = quant_info(t->type)->block;
    for (i64 b = 0; b < t->n_in / block; b++) {
        if (t->type == DLM_TQ1_0) {
            const DlmBlockTQ1_0 *q = (const DlmBlockTQ1_0 *)p + b;
            tq1_codes_(q, codes + b * block);
            scales[b] = f16_to_f32(q->d);
        } else if (t->type == DLM_TQ2_0) {
            const DlmBlockTQ2_0 *q = (const DlmBlockTQ2_0 *)p + b;
            tq2_codes_(q, codes + b * block);
            scales[b] = f16_to_f32(q->d);
        } else {
            const DlmBlockQ2_0 *q = (const DlmBlockQ2_0 *)p + b;
            q2_codes_(q, codes + b * block);
            scales[b] = f16_to_f32(q->d);
        }
    }
}

/* ---- scaled blocks: Q4_0 to MXFP4 ---- */

static bool quant_is_float_(DlmType type) {
    return type == DLM_F32 || type == DLM_F16 || type == DLM_BF16;
}

static bool quant_is_blocks(DlmType type) {
    return !quant_is_float_(type) && !quant_is_ternary(type);
}

/* The 16 levels of IQ4_NL and IQ4_XS: ggml's non-linear 4-bit table. */
static const i8 QUANT_IQ4_LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                        1,    13,   25,  38,  53,  69,  89,  113};

/* Those of MXFP4, the 4-bit floats of the Open Compute Project, doubled. */
static const i8 QUANT_MXFP4_LEVELS[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static void nibbles_(i8 *q, const u8 *qs) { /* 32 codes: the low halves, then the high ones */
    for (int j = 0; j < 16; j++) q[j] = qs[j] & 15, q[j + 16] = qs[j] >> 4;
}

static void fifth_bits_(i8 *q, const u8 qh[4]) {
    u32 bits = load_u32(qh);
    for (int j = 0; j < 32; j++) q[j] = (i8)(q[j] | (bits >> j & 1) << 4);
}

static void one_scale_(DlmUnpacked *u, u16 d, int offset, int n) {
    u->d = f16_to_f32(d), u->dmin = 0;
    for (int i = 0; i < n / 16; i++) u->scale[i] = 1, u->minimum[i] = 0;
    for (int i = 0; offset && i < n; i++) u->q[i] = (i8)(u->q[i] - offset);
}

/* d * code + m is d * code - dmin * 1 with dmin = -m. */
static void scale_and_offset_(DlmUnpacked *u, u16 d, u16 m) {
    u->d = f16_to_f32(d), u->dmin = -f16_to_f32(m);
    u->scale[0] = u->scale[1] = u->minimum[0] = u->minimum[1] = 1;
}

static void q4_0_unpack_(const u8 *p, DlmUnpacked *u) {
    const DlmBlockQ4_0 *b = (const DlmBlockQ4_0 *)p;
    nibbles_(u->q, b->qs);
    one_scale_(u, b->d, 8, 32);
}

static void q4_1_unpack_(const u8 *p, DlmUnpacked *u) {
    const DlmBlockQ4_1 *b = (const DlmBlockQ4_1 *)p;
    nibbles_(u->q, b->qs);
    scale_and_offset_(u, b->d, b->m);
}

static void q5_0_unpack_(const u8 *p, DlmUnpacked *u) {
    const DlmBlockQ5_0 *b = (const DlmBlockQ5_0 *)p;
    nibbles_(u->q, b->qs);
    fifth_bits_(u->q, b->qh);
    one_scale_(u, b->d, 16, 32);
}

static void q5_1_unpack_(const u8 *p, DlmUnpacked *u) {
    const DlmBlockQ5_1 *b = (const DlmBlockQ5_1 *)p;
    nibbles_(u->q, b->qs);
    fifth_bits_(u->q, b->qh);
    scale_and_offset_(u, b->d, b->m);
}

static void q8_0_unpack_(const u8 *p, DlmUnpacked *u) {
    const DlmBlockQ8_0 *b = (const DlmBlockQ8_0 *)p;
    memcpy(u->q, b->q, sizeof b->q);
    one_scale_(u, b->d, 0, 32);
}

static void iq4_nl_unpack_(const u8 *p, DlmUnpacked *u) {
    const DlmBlockIQ4_NL *b = (const DlmBlockIQ4_NL *)p;
    nibbles_(u->q, b->qs);
    for (int i = 0; i < 32; i++) u->q[i] = QUANT_IQ4_LEVELS[u->q[i]];
    one_scale_(u, b->d, 0, 32);
}

static void mxfp4_unpack_(const u8 *p, DlmUnpacked *u) {
    const DlmBlockMXFP4 *b = (const DlmBlockMXFP4 *)p;
    nibbles_(u->q, b->qs);
    for (int i = 0; i < 32; i++) u->q[i] = QUANT_MXFP4_LEVELS[u->q[i]];
    one_scale_(u, 0, 0, 32);
    u32 bits = b->e < 2 ? 0x00200000u << b->e : (u32)(b->e - 1) << 23; /* 2^(e - 128) */
    memcpy(&u->d, &bits, sizeof bits);
}

static void q2_K_unpack_(const u8 *p, DlmUnpacked *u) {
    const DlmBlockQ2_K *b = (const DlmBlockQ2_K *)p;
    for (int i = 0; i < 256; i++) u->q[i] = b->qs[i / 128 * 32 + i % 32] >> 2 * (i % 128 / 32) & 3;
    for (int i = 0; i < 16; i++) u->scale[i] = b->scales[i] & 15, u->minimum[i] = b->scales[i] >> 4;
    u->d = f16_to_f32(b->d), u->dmin = f16_to_f32(b->dmin);
}

static void q3_K_unpack_(const u8 *p, DlmUnpacked *u) {
    const DlmBlockQ3_K *b = (const DlmBlockQ3_K *)p;
    for (int i = 0; i < 256; i++) {
        int high = b->hmask[i % 32] >> (i / 32) & 1;
        u->q[i] = (i8)((b->qs[i / 128 * 32 + i % 32] >> 2 * (i % 128 / 32) & 3) - (high ? 0 : 4));
    }
    for (int i = 0; i < 16; i++) { /* low 4 bits in bytes 0..7, high 2 bits in bytes 8..11 */
        int low = i < 8 ? b->scales[i] & 15 : b->scales[i - 8] >> 4;
        u->scale[i] = (i16)((low | (b->scales[8 + i % 4] >> 2 * (i / 4) & 3) << 4) - 32);
        u->minimum[i] = 0;
    }
    u->d = f16_to_f32(b->d), u->dmin = 0;
}

/* The 8 scales and 8 minima of Q4_K and Q5_K, 6 bits each in 12 bytes: the first four of both lie
 * in the low bits of bytes 0..7, the last four's low halves in bytes 8..11, their high 2 bits on
 * top of bytes 0..7. */
static void k_scales_(const u8 s[12], DlmUnpacked *u) {
    u32 a = load_u32(s), b = load_u32(s + 4), c = load_u32(s + 8);
    const u32 scale[2] = {a & 0x3f3f3f3fu, (c & 0x0f0f0f0fu) | (a >> 2 & 0x30303030u)};
    const u32 minimum[2] = {b & 0x3f3f3f3fu, (c >> 4 & 0x0f0f0f0fu) | (b >> 2 & 0x30303030u)};
    for (int k = 0; k < 8; k++) {
        u->scale[2 * k] = u->scale[2 * k + 1] = (i16)(scale[k / 4] >> 8 * (k % 4) & 255);
        u->minimum[2 * k] = u->minimum[2 * k + 1] = (i16)(minimum[k / 4] >> 8 * (k % 4) & 255);
    }
}

static void k_nibbles_(i8 *q, const u8 qs[128]) {
    for (int k = 0; k < 4; k++)
        for (int l = 0; l < 32; l++)
            q[64 * k + l] = qs[32 * k + l] & 15, q[64 * k + 32 + l] = qs[32 * k + l] >> 4;
}

static void q4_K_unpack_(const u8 *p, DlmUnpacked *u) {
    const DlmBlockQ4_K *b = (const DlmBlockQ4_K *)p;
    k_nibbles_(u->q, b->qs);
    k_scales_(b->scales, u);
    u->d = f16_to_f32(b->d), u->dmin = f16_to_f32(b->dmin);
}

static void q5_K_unpack_(const u8 *p, DlmUnpacked *u) {
    const DlmBlockQ5_K *b = (const DlmBlockQ5_K *)p;
    k_nibbles_(u->q, b->qs);
    for (int i = 0; i < 256; i++) u->q[i] = (i8)(u->q[i] | (b->qh[i % 32] >> (i / 32) & 1) << 4);
    k_scales_(b->scales, u);
    u->d = f16_to_f32(b->d), u->dmin = f16_to_f32(b->dmin);
}

static void q6_K_unpack_(const u8 *p, DlmUnpacked *u) {
    const DlmBlockQ6_K *b = (const DlmBlockQ6_K *)p;
    for (int i = 0; i < 256; i++) {
        int half = i / 128, quarter = i % 128 / 32, l = i % 32;
        int low = b->ql[64 * half + 32 * (quarter % 2) + l] >> 4 * (quarter / 2) & 15;
        u->q[i] = (i8)((low | (b->qh[32 * half + l] >> 2 * quarter & 3) << 4) - 32);
    }
    for (int i = 0; i < 16; i++) u->scale[i] = b->scales[i], u->minimum[i] = 0;
    u->d = f16_to_f32(b->d), u->dmin = 0;
}

static void iq4_xs_unpack_(const u8 *p, DlmUnpacked *u) {
    const DlmBlockIQ4_XS *b = (const DlmBlockIQ4_XS *)p;
    for (int k = 0; k < 8; k++) {
        nibbles_(u->q + 32 * k, b->qs + 16 * k);
        int scale = (b->scales_l[k / 2] >> 4 * (k % 2) & 15) | (b->scales_h >> 2 * k & 3) << 4;
        u->scale[2 * k] = u->scale[2 * k + 1] = (i16)(scale - 32);
        u->minimum[2 * k] = u->minimum[2 * k + 1] = 0;
    }
    for (int i = 0; i < 256; i++) u->q[i] = QUANT_IQ4_LEVELS[u->q[i]];
    u->d = f16_to_f32(b->d), u->dmin = 0;
}

/* Unpacks one block at p into the common form. One copy, whoever calls: it is large. */
#if defined(__GNUC__)
__attribute__((noinline))
#endif
static void
quant_unpack(DlmType type, const u8 *p, DlmUnpacked *u) {
    switch (type) {
    case DLM_Q4_0: q4_0_unpack_(p, u); return;
    case DLM_Q4_1: q4_1_unpack_(p, u); return;
    case DLM_Q5_0: q5_0_unpack_(p, u); return;
    case DLM_Q5_1: q5_1_unpack_(p, u); return;
    case DLM_Q8_0: q8_0_unpack_(p, u); return;
    case DLM_Q2_K: q2_K_unpack_(p, u); return;
    case DLM_Q3_K: q3_K_unpack_(p, u); return;
    case DLM_Q4_K: q4_K_unpack_(p, u); return;
    case DLM_Q5_K: q5_K_unpack_(p, u); return;
    case DLM_Q6_K: q6_K_unpack_(p, u); return;
    case DLM_IQ4_NL: iq4_nl_unpack_(p, u); return;
    case DLM_IQ4_XS: iq4_xs_unpack_(p, u); return;
    case DLM_MXFP4: mxfp4_unpack_(p, u); return;
    default: ASSERT(!"quant_unpack: not a block type");
    }
}

/* ---- values ---- */

/* Row of a tensor that is not ternary: p is the row's first byte, out [n] f32. */
static void quant_values(DlmType type, const u8 *p, i64 n, f32 *out) {
    switch (type) {
    case DLM_F32: memcpy(out, p, (size_t)n * 4); return;
    case DLM_F16:
        for (i64 i = 0; i < n; i++) out[i] = f16_to_f32(load_u16(p + 2 * i));
        return;
    case DLM_BF16:
        for (i64 i = 0; i < n; i++) out[i] = bf16_to_f32(load_u16(p + 2 * i));
        return;
    default: break;
    }
    ASSERT(quant_is_blocks(type));
    i64 block = quant_info(type)->block, bytes = quant_info(type)->bytes;
    DlmUnpacked u;
    for (i64 b = 0; b < n / block; b++) { /* the multiplications in ggml's order: the same bits */
        quant_unpack(type, p + b * bytes, &u);
        for (i64 i = 0; i < block; i++) {
            f32 v = u.d * (f32)u.scale[i / 16] * (f32)u.q[i];
            out[b * block + i] = v - u.dmin * (f32)u.minimum[i / 16];
        }
    }
}

/* ---- encoders: x [n] f32 to one row, n a multiple of the block size ---- */

/* The largest |x|. The bits of a positive float order as it does, and integers are compared many at a
 * time. */
static f32 max_abs_(const f32 *x, int n) {
    u32 top = 0;
    for (int i = 0; i < n; i++) {
        u32 bits;
        memcpy(&bits, x + i, sizeof bits);
        bits &= 0x7fffffffu;
        top = MAX_OF((i32)bits, (i32)top);
    }
    f32 out;
    memcpy(&out, &top, sizeof out);
    return out;
}

static bool is_finite_(f32 x) {
    return x - x == 0;
}

/* False when the scale is beyond the range of a 16-bit float. */
static bool put_scale_(u16 *h, f32 scale) {
    *h = f32_to_f16(scale);
    return (*h & 0x7c00) != 0x7c00;
}

/* What weights are multiplied by to become codes. A block of zeros, or of numbers so small that this is
 * infinite, decodes to zeros whatever its codes are. */
static f32 inverse_(f32 scale) {
    return scale != 0 ? 1.0f / scale : 0;
}

/* Half away from zero, as C's roundf, for |v| < 2^22. */
static i32 round_code_(f32 v) {
    f32 even = f32_rint_(v), rest = v - even; /* exact */
    return (i32)even + (v > 0 && rest == 0.5f) - (v < 0 && rest == -0.5f);
}

/* codes[i] = floor((x[i] - low) * inverse + offset), at most top; zeros when the inverse is infinite. */
static void floor_codes_(const f32 *x, f32 inverse, f32 low, f32 offset, int top,
                         u8 *codes /* [32] */) {
    if (!is_finite_(inverse)) {
        memset(codes, 0, 32);
        return;
    }
    for (int i = 0; i < 32; i++) {
        int code = (int)((x[i] - low) * inverse + offset);
        codes[i] = (u8)MIN_OF(code, top);
    }
}

/* Q4_0 and Q5_0: the weight of largest magnitude, which keeps its sign, becomes code 0; zero is `half`. */
static bool signed_codes_(const f32 *x, int half, u16 *d16, u8 *codes /* [32] */) {
    f32 top = x[0];
    for (int i = 1; i < 32; i++)
        if (f32_abs_(x[i]) > f32_abs_(top)) top = x[i];
    f32 d = top / (f32)-half, id = inverse_(d);
    floor_codes_(x, id, 0, (f32)half + 0.5f, 2 * half - 1, codes);
    return put_scale_(d16, d);
}

/* Q4_1 and Q5_1: codes 0 to top from the smallest weight to the largest. */
static bool range_codes_(const f32 *x, int top, u16 *d16, u16 *m16, u8 *codes /* [32] */) {
    f32 low = x[0], high = x[0];
    for (int i = 1; i < 32; i++) {
        low = MIN_OF(x[i], low);
        high = MAX_OF(x[i], high);
    }
    f32 d = (high - low) / (f32)top;
    memset(codes, 0, 32);
    if (!put_scale_(d16, d) || !put_scale_(m16, low)) return false;
    floor_codes_(x, inverse_(d), low, 0.5f, top, codes);
    return true;
}

static void put_nibbles_(const u8 *codes /* [32] */, u8 *qs /* [16] */) {
    for (int j = 0; j < 16; j++) qs[j] = (u8)((codes[j] & 15) | (codes[j + 16] & 15) << 4);
}

static void put_fifth_bits_(const u8 *codes /* [32] */, u8 qh[4]) {
    u32 bits = 0;
    for (int j = 0; j < 32; j++) bits |= (u32)(codes[j] >> 4) << j;
    memcpy(qh, &bits, sizeof bits);
}

static bool q4_0_encode_(const f32 *x, u8 *p) {
    DlmBlockQ4_0 *b = (DlmBlockQ4_0 *)p;
    u8 codes[32];
    bool ok = signed_codes_(x, 8, &b->d, codes);
    put_nibbles_(codes, b->qs);
    return ok;
}

static bool q4_1_encode_(const f32 *x, u8 *p) {
    DlmBlockQ4_1 *b = (DlmBlockQ4_1 *)p;
    u8 codes[32];
    bool ok = range_codes_(x, 15, &b->d, &b->m, codes);
    put_nibbles_(codes, b->qs);
    return ok;
}

static bool q5_0_encode_(const f32 *x, u8 *p) {
    DlmBlockQ5_0 *b = (DlmBlockQ5_0 *)p;
    u8 codes[32];
    bool ok = signed_codes_(x, 16, &b->d, codes);
    put_nibbles_(codes, b->qs);
    put_fifth_bits_(codes, b->qh);
    return ok;
}

static bool q5_1_encode_(const f32 *x, u8 *p) {
    DlmBlockQ5_1 *b = (DlmBlockQ5_1 *)p;
    u8 codes[32];
    bool ok = range_codes_(x, 31, &b->d, &b->m, codes);
    put_nibbles_(codes, b->qs);
    put_fifth_bits_(codes, b->qh);
    return ok;
}

static bool q8_0_encode_(const f32 *x, u8 *p) {
    DlmBlockQ8_0 *b = (DlmBlockQ8_0 *)p;
    f32 d = max_abs_(x, DLM_QK8_0) / 127.0f, id = inverse_(d);
    if (!is_finite_(id)) id = 0;
    for (int j = 0; j < DLM_QK8_0; j++) b->q[j] = (i8)round_code_(x[j] * id);
    return put_scale_(&b->d, d);
}

/* The largest |x| is the scale; what is half of it or more becomes -1 or +1. */
static bool ternary_codes_of_(const f32 *x, int n, u8 *codes, u16 *d16) {
    f32 d = max_abs_(x, n), id = inverse_(d);
    if (!is_finite_(id)) id = 0;
    for (int i = 0; i < n; i++) {
        f32 v = x[i] * id;
        codes[i] = (u8)(1 + (v >= 0.5f) - (v <= -0.5f));
    }
    return put_scale_(d16, d);
}

static u8 tq1_byte_(const u8 *codes, int stride, int n_trits) {
    u32 v = 0;
    for (int n = 0; n < 5; n++) v = v * 3 + (n < n_trits ? codes[n * stride] : 0);
    return (u8)((v * 256 + 242) /
                243); /* ceil(v * 256 / 3^5): decoding by multiplication then is exact */
}

static void tq1_pack_(const u8 *c /* [256] */, u16 d, u8 *p) {
    DlmBlockTQ1_0 *b = (DlmBlockTQ1_0 *)p;
    for (int m = 0; m < 32; m++) b->qs[m] = tq1_byte_(c + m, 32, 5);
    for (int m = 0; m < 16; m++) b->qs[32 + m] = tq1_byte_(c + 160 + m, 16, 5);
    for (int j = 0; j < 4; j++) b->qh[j] = tq1_byte_(c + 240 + j, 4, 4);
    b->d = d;
}

static void tq2_pack_(const u8 *c /* [256] */, u16 d, u8 *p) {
    DlmBlockTQ2_0 *b = (DlmBlockTQ2_0 *)p;
    for (int i = 0; i < 64; i += 8) { /* eight bytes at once: a field never carries into the next */
        const u8 *group = c + i / 32 * 128 + i % 32;
        u64 eight = load_u64(group) | load_u64(group + 32) << 2 | load_u64(group + 64) << 4 |
                    load_u64(group + 96) << 6;
        memcpy(b->qs + i, &eight, sizeof eight);
    }
    b->d = d;
}

static void q2_pack_(const u8 *c /* [64] */, u16 d, u8 *p) {
    DlmBlockQ2_0 *b = (DlmBlockQ2_0 *)p;
    for (int i = 0; i < 16; i++)
        b->qs[i] = (u8)(c[4 * i] | c[4 * i + 1] << 2 | c[4 * i + 2] << 4 | c[4 * i + 3] << 6);
    b->d = d;
}

typedef void TernaryPack_(const u8 *codes, u16 d, u8 *p);

/* Always inlined: its loops are half as fast again when the compiler sees their lengths. */
static inline __attribute__((always_inline)) bool ternary_encode_(const f32 *x, int n,
                                                                  TernaryPack_ *pack, u8 *p) {
    u8 codes[DLM_QK_T];
    u16 d;
    bool ok = ternary_codes_of_(x, n, codes, &d);
    pack(codes, d, p);
    return ok;
}

static bool tq1_encode_(const f32 *x, u8 *p) {
    return ternary_encode_(x, DLM_QK_T, tq1_pack_, p);
}

static bool tq2_encode_(const f32 *x, u8 *p) {
    return ternary_encode_(x, DLM_QK_T, tq2_pack_, p);
}

static bool q2_encode_(const f32 *x, u8 *p) {
    return ternary_encode_(x, DLM_QK2_0, q2_pack_, p);
}

/* A row of codes (0, 1, 2; n of them, whole blocks) with one scale as TQ1_0, TQ2_0 or Q2_0: the bytes that
 * quant_row makes of the values. A block of zeros has scale 0. */
static void quant_codes_to_row(DlmType type, const u8 *codes, i64 n, f32 scale, u8 *dst) {
    const DlmTypeInfo *info = quant_info(type);
    const u64 zeros = 0x0101010101010101u;
    u16 d = f32_to_f16(scale);
    ASSERT(type == DLM_TQ1_0 || type == DLM_TQ2_0 || type == DLM_Q2_0);
    for (; n > 0; n -= info->block, codes += info->block, dst += info->bytes) {
        u32 i = 0;
        while (i < info->block && load_u64(codes + i) == zeros) i += 8;
        u16 own = i == info->block ? 0 : d;
        if (type == DLM_TQ2_0)
            tq2_pack_(codes, own, dst);
        else
            (type == DLM_TQ1_0 ? tq1_pack_ : q2_pack_)(codes, own, dst);
    }
}

/* ---- encoders of the K types: 256 weights in runs of 16 or 32, each with an integer scale ----
 *
 * weight = d * scale * code - dmin * minimum. Every run first finds the real scale and minimum it would
 * like; the largest of all runs set d and dmin; then each run tries the integers around its wish, with
 * the codes that those imply, and keeps the ones of least error. Errors are squared and weighted by
 * |w| + mean |w|: the few large weights carry most of what a matrix does. */

typedef struct {
    int n_runs, run;          /* n_runs * run == 256 */
    f32 code_min, code_max;   /* symmetric types: no minima, code_min < 0 */
    int scale_min, scale_max; /* minima, where there are any, go from 0 to scale_max */
    int reach;                /* how far from its wish a run tries the integers */
} KShape_;

static const KShape_ Q2_K_SHAPE_ = {16, 16, 0, 3, 0, 15, 2};
static const KShape_ Q4_K_SHAPE_ = {8, 32, 0, 15, 0, 63, 1};
static const KShape_ Q5_K_SHAPE_ = {8, 32, 0, 31, 0, 63, 1};
static const KShape_ Q6_K_SHAPE_ = {16, 16, -32, 31, -128, 127, 1};

typedef struct {
    i8 codes[DLM_QK_K];
    i32 scale[DLM_QK_K / 16], minimum[DLM_QK_K / 16];
    u16 d, dmin;
} KBlock_;

/* A run's scale and the value of its code 0. */
typedef struct {
    f32 scale, low;
} KWish_;

/* Weighted sums over a run of its codes q and weights x. */
typedef struct {
    f32 q, qq, qx;
} KSums_;

static f32 k_code_(const KShape_ *s, f32 v) {
    v = v > s->code_min ? v : s->code_min;
    return f32_rint_(v < s->code_max ? v : s->code_max);
}

static f32 fold_lanes_(const f32 a[4]) {
    return (a[0] + a[2]) + (a[1] + a[3]);
}

/* Four lanes: an order of additions that vector instructions can keep. */
static KSums_ k_sums_(const KShape_ *s, const f32 *x, const f32 *weight, f32 low, f32 inverse) {
    f32 q[4] = {0}, qq[4] = {0}, qx[4] = {0};
    for (int i = 0; i < s->run; i += 4)
        for (int l = 0; l < 4; l++) {
            f32 code = k_code_(s, (x[i + l] - low) * inverse), wq = weight[i + l] * code;
            q[l] += wq;
            qq[l] += wq * code;
            qx[l] += wq * x[i + l];
        }
    return (KSums_){fold_lanes_(q), fold_lanes_(qq), fold_lanes_(qx)};
}

static f32 k_error_(const KShape_ *s, const f32 *x, const f32 *weight, KWish_ at) {
    f32 sum[4] = {0}, inverse = inverse_(at.scale);
    for (int i = 0; i < s->run; i += 4)
        for (int l = 0; l < 4; l++) {
            f32 code = k_code_(s, (x[i + l] - at.low) * inverse);
            f32 off = at.scale * code + at.low - x[i + l];
            sum[l] += weight[i + l] * off * off;
        }
    return fold_lanes_(sum);
}

#define K_STEPS 12 /* inverse scales tried, from one code less than the run spans to one more */

static KWish_ k_wish_symmetric_(const KShape_ *s, const f32 *x, const f32 *weight) {
    f32 top = x[0], best = 0;
    for (int i = 1; i < s->run; i++)
        if (f32_abs_(x[i]) > f32_abs_(top)) top = x[i];
    KWish_ wish = {0, 0};
    for (int k = 0; k <= K_STEPS && top != 0; k++) {
        f32 codes = s->code_min + 1 - 2.0f * (f32)k / K_STEPS;
        KSums_ sum = k_sums_(s, x, weight, 0, codes / top);
        f32 gain = sum.qq > 0 ? sum.qx * (sum.qx / sum.qq)
                              : 0; /* what the best scale takes off the error */
        if (gain > best) best = gain, wish.scale = sum.qx / sum.qq;
    }
    return wish;
}

static KWish_ k_wish_range_(const KShape_ *s, const f32 *x, const f32 *weight) {
    f32 low = 0, high = x[0], best = 0;
    f64 w = 0, wx = 0;
    for (int i = 0; i < s->run; i++) {
        low = MIN_OF(x[i], low);
        high = MAX_OF(x[i], high);
        w += weight[i];
        wx += weight[i] * x[i];
    }
    KWish_ wish = {0, low};
    for (int k = 0; k <= K_STEPS && high > low; k++) {
        f32 codes = s->code_max - 1 + 2.0f * (f32)k / K_STEPS;
        KSums_ sum = k_sums_(s, x, weight, low, codes / (high - low));
        if (!(sum.qq > 0)) continue;
        f64 q = sum.q, qq = sum.qq, qx = sum.qx, det = w * qq - q * q;
        f64 scale = (w * qx - wx * q) / det, offset = (qq * wx - q * qx) / det;
        if (!(det > 1e-6 * w * qq) || offset > 0) /* all codes alike; or a minimum below 0 */
            offset = 0, scale = qx / qq;
        f64 gain = scale * (2 * qx - scale * qq - 2 * offset * q) + offset * (2 * wx - offset * w);
        if (gain > best) best = (f32)gain, wish = (KWish_){(f32)scale, (f32)offset};
    }
    return wish;
}

/* The nearest integer to v, kept in [low, high]. */
static int k_integer_(f32 v, int low, int high) {
    v = v > (f32)low ? v : (f32)low;
    return (int)f32_rint_(v < (f32)high ? v : (f32)high);
}

/* The integers around its wish that serve run r best, and its codes. */
static void k_settle_run_(const KShape_ *s, int r, const f32 *x, const f32 *weight, KWish_ wish,
                          KBlock_ *b) {
    f32 d = f16_to_f32(b->d), dmin = f16_to_f32(b->dmin), best = -1;
    int scale = k_integer_(wish.scale * inverse_(d), s->scale_min, s->scale_max);
    int minimum = k_integer_(-wish.low * inverse_(dmin), 0, s->scale_max);
    int reach_minimum = dmin != 0 ? s->reach : 0;
    KWish_ got = {0};
    for (int i = MAX_OF(scale - s->reach, s->scale_min);
         i <= MIN_OF(scale + s->reach, s->scale_max); i++)
        for (int k = MAX_OF(minimum - reach_minimum, 0);
             k <= MIN_OF(minimum + reach_minimum, s->scale_max); k++) {
            KWish_ at = {d * (f32)i, -(dmin * (f32)k)};
            f32 error = k_error_(s, x, weight, at);
            if (best >= 0 && error >= best) continue;
            best = error, got = at;
            b->scale[r] = i, b->minimum[r] = k;
        }
    f32 inverse = inverse_(got.scale);
    for (int i = 0; i < s->run; i++)
        b->codes[s->run * r + i] = (i8)k_code_(s, (x[i] - got.low) * inverse);
}

/* The scale of the scales. Below 2^-14 a 16-bit float loses bits, down to none: there it is rounded away
 * from zero, and the integers become smaller instead. */
static bool put_k_scale_(u16 *h, f32 d) {
    bool ok = put_scale_(h, d);
    if (f32_abs_(d) < 0x1p-14f && f32_abs_(f16_to_f32(*h)) < f32_abs_(d)) ++*h;
    return ok;
}

/* Everything about a block but its packing. False when its scales are beyond a 16-bit float. */
static bool k_settle_(const KShape_ *s, const f32 *x, KBlock_ *b) {
    f32 weight[DLM_QK_K], mean = 0, top = 0, deepest = 0;
    KWish_ wishes[DLM_QK_K / 16];
    if (max_abs_(x, DLM_QK_K) > 1e9f) return false; /* beyond it; and sums of squares stay in f32 */
    for (int i = 0; i < DLM_QK_K; i++) mean += f32_abs_(x[i]) / DLM_QK_K;
    for (int i = 0; i < DLM_QK_K; i++) weight[i] = mean + f32_abs_(x[i]);
    for (int r = 0; r < s->n_runs; r++) {
        const f32 *x_run = x + s->run * r, *w_run = weight + s->run * r;
        wishes[r] =
            s->code_min < 0 ? k_wish_symmetric_(s, x_run, w_run) : k_wish_range_(s, x_run, w_run);
        if (f32_abs_(wishes[r].scale) > f32_abs_(top)) top = wishes[r].scale;
        deepest = MIN_OF(wishes[r].low, deepest);
    }
    int widest = s->scale_min < 0 ? s->scale_min : s->scale_max;
    f32 d = top != 0 ? top / (f32)widest : 0, dmin = (0 - deepest) / (f32)s->scale_max;
    if (!put_k_scale_(&b->d, d) || !put_k_scale_(&b->dmin, dmin)) return false;
    for (int r = 0; r < s->n_runs; r++)
        k_settle_run_(s, r, x + s->run * r, weight + s->run * r, wishes[r], b);
    return true;
}

static bool q2_K_encode_(const f32 *x, u8 *p) {
    DlmBlockQ2_K *b = (DlmBlockQ2_K *)p;
    KBlock_ k;
    if (!k_settle_(&Q2_K_SHAPE_, x, &k)) return false;
    b->d = k.d, b->dmin = k.dmin;
    for (int r = 0; r < 16; r++) b->scales[r] = (u8)(k.scale[r] | k.minimum[r] << 4);
    for (int i = 0; i < 64; i++) {
        const i8 *c = k.codes + i / 32 * 128 + i % 32;
        b->qs[i] = (u8)(c[0] | c[32] << 2 | c[64] << 4 | c[96] << 6);
    }
    return true;
}

/* The opposites of k_scales_ and k_nibbles_. */
static void put_k_scales_(const KBlock_ *k, u8 s[12]) {
    for (int r = 0; r < 4; r++) {
        s[r] = (u8)(k->scale[r] | k->scale[r + 4] >> 4 << 6);
        s[r + 4] = (u8)(k->minimum[r] | k->minimum[r + 4] >> 4 << 6);
        s[r + 8] = (u8)((k->scale[r + 4] & 15) | (k->minimum[r + 4] & 15) << 4);
    }
}

static void put_k_nibbles_(const i8 *codes, u8 qs[128]) {
    for (int i = 0; i < 128; i++) {
        const i8 *c = codes + i / 32 * 64 + i % 32;
        qs[i] = (u8)((c[0] & 15) | (c[32] & 15) << 4);
    }
}

static bool q4_K_encode_(const f32 *x, u8 *p) {
    DlmBlockQ4_K *b = (DlmBlockQ4_K *)p;
    KBlock_ k;
    if (!k_settle_(&Q4_K_SHAPE_, x, &k)) return false;
    b->d = k.d, b->dmin = k.dmin;
    put_k_scales_(&k, b->scales);
    put_k_nibbles_(k.codes, b->qs);
    return true;
}

static bool q5_K_encode_(const f32 *x, u8 *p) {
    DlmBlockQ5_K *b = (DlmBlockQ5_K *)p;
    KBlock_ k;
    if (!k_settle_(&Q5_K_SHAPE_, x, &k)) return false;
    b->d = k.d, b->dmin = k.dmin;
    put_k_scales_(&k, b->scales);
    put_k_nibbles_(k.codes, b->qs);
    for (int l = 0; l < 32; l++) {
        int bits = 0;
        for (int i = 0; i < 8; i++) bits |= k.codes[32 * i + l] >> 4 << i;
        b->qh[l] = (u8)bits;
    }
    return true;
}

static bool q6_K_encode_(const f32 *x, u8 *p) {
    DlmBlockQ6_K *b = (DlmBlockQ6_K *)p;
    KBlock_ k;
    if (!k_settle_(&Q6_K_SHAPE_, x, &k)) return false;
    b->d = k.d;
    for (int r = 0; r < 16; r++) b->scales[r] = (i8)k.scale[r];
    for (int i = 0; i < 64; i++) {
        const i8 *codes = k.codes + i / 32 * 128 + i % 32;
        int c[4];
        for (int l = 0; l < 4; l++) c[l] = codes[32 * l] + 32;
        u8 *ql = b->ql + i / 32 * 64 + i % 32;
        ql[0] = (u8)((c[0] & 15) | (c[2] & 15) << 4);
        ql[32] = (u8)((c[1] & 15) | (c[3] & 15) << 4);
        b->qh[i] = (u8)(c[0] >> 4 | c[1] >> 4 << 2 | c[2] >> 4 << 4 | c[3] >> 4 << 6);
    }
    return true;
}

/* ---- encoding a row ---- */

/* One block each; false when a scale is beyond the range of a 16-bit float. */
static const struct {
    DlmType type;
    bool (*encode)(const f32 *x, u8 *p);
} QUANT_ENCODERS_[] = {
    {DLM_Q8_0, q8_0_encode_}, {DLM_Q4_0, q4_0_encode_}, {DLM_Q4_1, q4_1_encode_},
    {DLM_Q5_0, q5_0_encode_}, {DLM_Q5_1, q5_1_encode_}, {DLM_TQ1_0, tq1_encode_},
    {DLM_TQ2_0, tq2_encode_}, {DLM_Q2_0, q2_encode_},   {DLM_Q2_K, q2_K_encode_},
    {DLM_Q4_K, q4_K_encode_}, {DLM_Q5_K, q5_K_encode_}, {DLM_Q6_K, q6_K_encode_},
};

/* Can weights be turned into this type? I2_S comes from quant_i2_s, the others from quant_row. */
static bool quant_can_make(DlmType type) {
    for (size_t i = 0; i < COUNT_OF(QUANT_ENCODERS_); i++)
        if (QUANT_ENCODERS_[i].type == type) return true;
    return quant_is_float_(type) || type == DLM_I2_S;
}

static bool all_finite_(const f32 *x, i64 n) {
    for (; n >= 32; x += 32, n -= 32)
        if (!is_finite_(max_abs_(x, 32))) return false;
    return is_finite_(max_abs_(x, (int)n));
}

/* False when a weight is beyond the range of the type. */
static bool float_row_(DlmType type, const f32 *x, i64 n, u8 *dst) {
    const u16 infinite = type == DLM_F16 ? 0x7c00 : 0x7f80;
    bool ok = true;
    if (type == DLM_F32) memcpy(dst, x, (size_t)n * sizeof *x);
    for (i64 i = 0; type != DLM_F32 && i < n; i++) {
        u16 h = type == DLM_F16 ? f32_to_f16(x[i]) : f32_to_bf16(x[i]);
        ok &= (h & infinite) != infinite;
        memcpy(dst + 2 * i, &h, sizeof h);
    }
    return ok;
}

/* Encodes a row of a type that quant_can_make and that has rows of their own (not I2_S); dst has
 * quant_row_bytes(type, n) bytes. Returns NULL, or what is wrong with the weights. */
static const char *quant_row(DlmType type, const f32 *x, i64 n, void *dst) {
    static const char too_large[] = "a weight is too large for a 16-bit float, or its scale is";
    if (!all_finite_(x, n)) return "a weight is NaN or infinite";
    if (quant_is_float_(type)) return float_row_(type, x, n, dst) ? NULL : too_large;
    const DlmTypeInfo *info = quant_info(type);
    bool ok = true;
    size_t k = 0;
    while (k < COUNT_OF(QUANT_ENCODERS_) && QUANT_ENCODERS_[k].type != type) k++;
    ASSERT(k < COUNT_OF(QUANT_ENCODERS_) && n % info->block == 0);
    for (i64 i = 0; i < n / info->block; i++)
        ok &= QUANT_ENCODERS_[k].encode(x + i * info->block, (u8 *)dst + i * info->bytes);
    return ok ? NULL : too_large;
}

/* Codes of an I2_S tensor (0 = -1, 1 = 0, 2 = +1), any run of them whose length is a multiple of 128, to
 * n/4 bytes of the official layout. */
static void quant_i2s_codes(const u8 *codes, i64 n, u8 *dst) {
    ASSERT(n % 128 == 0);
    for (i64 i = 0; i < n / 4; i++) {
        const u8 *c = codes + i / 32 * 128 + i % 32;
        dst[i] = (u8)(c[0] << 6 | c[32] << 4 | c[64] << 2 | c[96]);
    }
}

/* What follows an I2_S tensor's codes. */
static void quant_i2s_tail(f32 scale, u8 dst[DLM_I2S_TAIL]) {
    memset(dst, 0, DLM_I2S_TAIL);
    memcpy(dst, &scale, sizeof scale);
}

/* A whole I2_S tensor; n_in * n_out is a multiple of 128, dst has n_in * n_out / 4 + DLM_I2S_TAIL bytes. */
static void quant_i2_s(const u8 *codes, i64 n_in, i64 n_out, f32 scale, void *dst) {
    quant_i2s_codes(codes, n_in * n_out, dst);
    quant_i2s_tail(scale, (u8 *)dst + n_in * n_out / 4);
}

#endif

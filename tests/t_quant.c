/* t_quant.c - block formats: published test vectors, round trips, 16-bit floats over their whole
 * range. */
#include "../src/quant.c"
#include "test.h"

/* w[i] = (((i^2 + 3i) mod 7) mod 3 - 1) * 0.5, i = 0..255; the encodings were computed by another
 * implementation. */
static void vector_weights(f32 *w) {
    for (int i = 0; i < 256; i++) w[i] = (f32)((i * i + 3 * i) % 7 % 3 - 1) * 0.5f;
}

static size_t from_hex(const char *hex, u8 *out) {
    size_t n = strlen(hex) / 2;
    for (size_t i = 0; i < n; i++) {
        unsigned v = 0;
        sscanf(hex + 2 * i, "%2x", &v);
        out[i] = (u8)v;
    }
    return n;
}

static const struct {
    DlmType type;
    const char *hex;
} VECTORS[] = {
    {DLM_TQ1_0, "1096435b32c1c91096435b32c1c91096435b32c1c91096435b32c1c91096435bd70885188f48add7"
                "0885188f48add708435930c10038"},
    {DLM_TQ2_0, "90891841246206908918412462069089184124620690891841246206908918411841246206908918"
                "4124620690891841246206908918412462069089184124620038"},
    {DLM_Q2_0, "00384428114a8412a14428114a8412a144280038114a8412a14428114a8412a14428114a00388412"
               "a14428114a8412a14428114a84120038a14428114a8412a14428114a8412a144"},
};

static const struct {
    DlmI2sLayout layout;
    const char *hex;
} I2S_VECTORS[] = {
    {DLM_I2S_128, "06622441188990066224411889900662244118899006622441188990066224412441188990066224"
                  "411889900662244118899006622441188990066224411889"},
    {DLM_I2S_64, "02580960258096025809602580960258580960258096025809602580960258090960258096025809"
                 "602580960258096060258096025809602580960258096025"},
    {DLM_I2S_SEQ, "4428114a8412a14428114a8412a14428114a8412a14428114a8412a14428114a8412a14428114a84"
                  "12a14428114a8412a14428114a8412a14428114a8412a144"},
};

static void check_values(const u8 *codes, const f32 *scales, i32 scale_block, const f32 *w,
                         const char *what) {
    bool same = true;
    for (int i = 0; i < 256; i++)
        same = same && (f32)(codes[i] - 1) * scales[i / scale_block] == w[i];
    CHECK_MSG(same, "%s decodes to other weights", what);
}

static void check_vectors(void) {
    f32 w[256], scales[256];
    u8 bytes[512], out[512], codes[256];
    vector_weights(w);
    for (size_t v = 0; v < COUNT_OF(VECTORS); v++) {
        size_t n = from_hex(VECTORS[v].hex, bytes);
        CHECK_U64(quant_row_bytes(VECTORS[v].type, 256), n);
        CHECK(!quant_row(VECTORS[v].type, w, 256, out));
        CHECK_MEM(out, bytes, n);
        DlmTensor t = {.type = VECTORS[v].type, .n_in = 256, .n_out = 1, .data = bytes};
        quant_codes_row(&t, 0, codes, scales);
        check_values(codes, scales, quant_scale_block(&t), w, quant_info(t.type)->name);
    }
    for (size_t v = 0; v < COUNT_OF(I2S_VECTORS); v++) {
        f32 half = 0.5f;
        size_t n = from_hex(I2S_VECTORS[v].hex, bytes);
        CHECK_U64(n, 64);
        memcpy(bytes + n, &half, sizeof half);
        for (int rows = 1; rows <= 4; rows *= 2) { /* the flat layouts do not care where rows end */
            DlmTensor t = {.type = DLM_I2_S,
                           .i2s_layout = I2S_VECTORS[v].layout,
                           .n_in = 256 / rows,
                           .n_out = rows,
                           .data = bytes};
            for (int r = 0; r < rows; r++) quant_codes_row(&t, r, codes + r * (256 / rows), scales);
            scales[0] = load_f32(bytes + 64);
            check_values(codes, scales, 256, w, "I2_S");
        }
    }
    for (int i = 0; i < 256; i++) codes[i] = (u8)(w[i] * 2 + 1);
    size_t n = from_hex(I2S_VECTORS[0].hex, bytes);
    quant_i2_s(codes, 64, 4, 0.5f, out);
    CHECK_MEM(out, bytes, n);
    CHECK_NEAR(load_f32(out + 64), 0.5, 0);
    for (int i = 68; i < 96; i++) CHECK_INT(out[i], 0);
}

static void check_row4(void) {
    u8 bytes[8 + DLM_I2S_TAIL] = {0}, codes[4];
    f32 scale = 2;
    for (int c = 0; c < 4; c++)
        bytes[c] = 0x06 << c; /* rows of column 0: 0 0 1 2, and so on, shifted by columns */
    memcpy(bytes + 4, &scale, sizeof scale);
    DlmTensor t = {
        .type = DLM_I2_S, .i2s_layout = DLM_I2S_ROW4, .n_in = 4, .n_out = 4, .data = bytes};
    for (int r = 0; r < 4; r++) {
        quant_codes_row(&t, r, codes, &scale);
        for (int c = 0; c < 4; c++) CHECK_INT(codes[c], (0x06 << c) >> (6 - 2 * r) & 3);
        CHECK_NEAR(scale, 2, 0);
    }
    CHECK(quant_i2s_fits(&t));
    t.n_out = 3;
    CHECK(!quant_i2s_fits(&t));
}

/* Every binary16 goes to binary32 and back; rounding is to nearest even at each midpoint. */
static void check_f16(void) {
    int bad = 0, bad_mid = 0;
    for (u32 h = 0; h < 65536; h++) {
        f32 v = f16_to_f32((u16)h);
        bool nan = (h & 0x7c00) == 0x7c00 && (h & 0x3ff);
        bad += nan ? v == v : f32_to_f16(v) != h;
        if ((h & 0x7fff) >= 0x7bff) continue;
        f32 next = f16_to_f32((u16)(h + 1)), mid = (v + next) * 0.5f;
        bad_mid += f32_to_f16(mid) != (u16)(h & 1 ? h + 1 : h);
    }
    CHECK_INT(bad, 0);
    CHECK_INT(bad_mid, 0);
    CHECK_INT(f32_to_f16(65519.0f), 0x7bff);
    CHECK_INT(f32_to_f16(65520.0f), 0x7c00);
    CHECK_INT(f32_to_f16(-1e30f), 0xfc00);
    CHECK_INT(f32_to_bf16(1.00390625f), 0x3f80); /* 1 + 2^-8: halfway, goes to even */
    CHECK_INT(f32_to_bf16(1.01171875f), 0x3f82);
    CHECK_NEAR(bf16_to_f32(0xc040), -3, 0);
}

/* Random ternary rows survive every format; Q8_0 stays within half a step. */
static void check_round_trips(void) {
    u64 rng = 7;
    f32 w[512], back[512], scales[8];
    u8 bytes[2048], codes[512];
    for (int round = 0; round < 200; round++) {
        f32 scale = f16_to_f32(f32_to_f16(test_rng_f32(&rng) + 1.5f));
        for (int i = 0; i < 512; i++) w[i] = (f32)((i64)test_rng_below(&rng, 3) - 1) * scale;
        if (round % 10 == 0) memset(w + 256, 0, 256 * sizeof *w); /* a block of zeros has scale 0 */
        for (size_t v = 0; v < COUNT_OF(VECTORS); v++) {
            DlmTensor t = {.type = VECTORS[v].type, .n_in = 512, .n_out = 1, .data = bytes};
            quant_row(t.type, w, 512, bytes);
            quant_codes_row(&t, 0, codes, scales);
            int bad = 0;
            for (int i = 0; i < 512; i++)
                bad += (f32)(codes[i] - 1) * scales[i / quant_scale_block(&t)] != w[i];
            CHECK_INT(bad, 0);
        }
        for (int i = 0; i < 512; i++) w[i] = test_rng_f32(&rng) * 3;
        quant_row(DLM_Q8_0, w, 512, bytes);
        quant_values(DLM_Q8_0, bytes, 512, back);
        f64 worst = 0;
        for (int i = 0; i < 512; i++) worst = MAX_OF(worst, (f64)f32_abs_(w[i] - back[i]));
        CHECK_MSG(worst <= 3.0 / 127 / 2 + 3.0 / 1024, "Q8_0 is off by %g", worst);
    }
}

/* What cannot be encoded is refused: tests/py/quantize.py has the other limits. */
static void check_refusals(void) {
    static const u32 bad[] = {0x7f800000u, 0xff800000u, 0x7fc00000u, 0x7f800001u, 0xffffffffu};
    f32 x[256];
    u8 out[1024];
    for (size_t t = 0; t < COUNT_OF(DLM_TYPES); t++) {
        DlmType type = DLM_TYPES[t].type;
        if (!quant_can_make(type) || type == DLM_I2_S) continue;
        for (size_t i = 0; i < COUNT_OF(bad) * 256; i++) {
            for (int k = 0; k < 256; k++) x[k] = 1;
            memcpy(x + i % 256, &bad[i / 256], sizeof *x);
            const char *why = quant_row(type, x, 256, out);
            if (!why || !strstr(why, "NaN"))
                CHECK_MSG(false, "%s takes %08x", DLM_TYPES[t].name, bad[i / 256]);
        }
        x[255] = type == DLM_BF16 ? 3.4e38f : 1e20f;
        const char *why = quant_row(type, x, 256, out);
        CHECK_MSG((why != NULL) == (type != DLM_F32), "%s: %s", DLM_TYPES[t].name, why ? why : "");
        memset(x, 0, sizeof x);
        CHECK(!quant_row(type, x, 256, out));
    }
    CHECK(quant_can_make(DLM_I2_S) && !quant_can_make(DLM_Q3_K) && !quant_can_make(DLM_IQ4_XS));
}

int main(void) {
    check_vectors();
    check_row4();
    check_f16();
    check_round_trips();
    check_refusals();
    return test_end();
}

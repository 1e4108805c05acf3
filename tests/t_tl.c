/* t_tl.c - kernel_config.ini, and TL1 and TL2 tensors packed here in the order of their bytes. */
#include "../src/tl.c"
#include "test.h"

#define K_MAX 512
#define M_MAX 128

static u8 codes[M_MAX][K_MAX], packed[M_MAX * K_MAX / 4 + 4096];

static void random_codes(i32 m, i32 k) {
    static u64 rng = 5;
    for (i32 r = 0; r < m; r++)
        for (i32 i = 0; i < k; i++) codes[r][i] = (u8)test_rng_below(&rng, 3);
}

static u8 pair(i32 row, i32 at) {
    return (u8)(3 * codes[row][at] + codes[row][at + 1]);
}

/* The bytes in their order: every loop is one level of the layout. */
static u64 pack_tl1(i32 m, i32 k, DlmTlTiling t) {
    u64 n = 0;
    i32 by = 256 / t.bmm;
    for (i32 m0 = 0; m0 < m; m0 += t.bm)
        for (i32 k0 = 0; k0 < k; k0 += t.bk)
            for (i32 m1 = m0; m1 < m0 + t.bm; m1 += t.bmm)
                for (i32 k1 = k0; k1 < k0 + t.bk; k1 += by)
                    for (i32 m2 = m1; m2 < m1 + t.bmm; m2 += 16)
                        for (i32 k2 = k1; k2 < k1 + by; k2 += 4)
                            for (i32 row = m2; row < m2 + 16; row++)
                                packed[n++] = (u8)(pair(row, k2) << 4 | pair(row, k2 + 2));
    return n;
}

static i32 three(i32 row, i32 at) {
    const u8 *c = codes[row] + at;
    return 9 * (c[0] - 1) + 3 * (c[1] - 1) + c[2] - 1;
}

/* The rows of a kernel in the order of its bytes. */
static i32 row_at(i32 i) {
    static const i32 first[4] = {0, 16, 8, 24};
    return first[i / 8] + i % 8;
}

static u64 pack_tl2(i32 m, i32 k, DlmTlTiling t) {
    u64 n = 0;
    i32 threes = k - k % t.bk;
    for (i32 m0 = 0; m0 < m; m0 += t.bm)
        for (i32 k0 = 0; k0 < threes; k0 += t.bk)
            for (i32 m1 = m0; m1 < m0 + t.bm; m1 += 32)
                for (i32 at = k0; at < k0 + t.bk; at += 6)
                    for (i32 i = 0; i < 32; i++) {
                        i32 a = three(m1 + row_at(i), at), b = three(m1 + row_at(i), at + 3);
                        packed[n++] = (u8)((a < 0 ? -a : a) << 4 | (b < 0 ? -b : b));
                    }
    for (i32 m0 = 0; m0 < m; m0 += t.bm)
        for (i32 k0 = 0; k0 < threes; k0 += t.bk)
            for (i32 m1 = m0; m1 < m0 + t.bm; m1 += 32)
                for (i32 at = k0; at < k0 + t.bk; at += 24)
                    for (i32 col = 0; col < 16; col++, n += 2) {
                        u16 word = 0; /* from the top: rows col and col + 16 of each three */
                        for (i32 i = 0; i < 16; i++)
                            word = (u16)(word << 1 |
                                         (three(m1 + i % 2 * 16 + col, at + i / 2 * 3) < 0));
                        memcpy(packed + n, &word, sizeof word);
                    }
    for (i32 m0 = 0; m0 < m; m0 += t.bm)
        for (i32 k0 = threes; k0 < k; k0 += 32)
            for (i32 m1 = m0; m1 < m0 + t.bm; m1 += 32)
                for (i32 at = k0; at < k0 + 32; at += 4)
                    for (i32 i = 0; i < 32; i++)
                        packed[n++] =
                            (u8)(pair(m1 + row_at(i), at) << 4 | pair(m1 + row_at(i), at + 2));
    return n;
}

static void test_layouts(void) {
    static const struct {
        DlmType type;
        i32 m, k;
        DlmTlTiling tiling;
    } cases[] = {
        {DLM_TL1, 64, 128, {64, 64, 16}},   {DLM_TL1, 128, 256, {32, 256, 32}},
        {DLM_TL1, 128, 64, {64, 16, 64}},   {DLM_TL2, 64, 288, {32, 96, 32}},
        {DLM_TL2, 128, 512, {128, 96, 32}}, {DLM_TL2, 64, 320, {64, 144, 32}},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        i32 m = cases[i].m, k = cases[i].k;
        Err e = {0};
        TlConfig c = {.kernels = {{m, k, cases[i].tiling}}, .n = 1};
        random_codes(m, k);
        u64 n = (cases[i].type == DLM_TL1 ? pack_tl1 : pack_tl2)(m, k, cases[i].tiling);
        memset(packed + n, 0, DLM_I2S_TAIL);
        memcpy(packed + n, &(f32){0.25f}, sizeof(f32));
        u8 *data = test_guard_alloc(n + DLM_I2S_TAIL);
        memcpy(data, packed, n + DLM_I2S_TAIL);
        DlmTensor t = {.name = "t",
                       .type = cases[i].type,
                       .n_in = k,
                       .n_out = m,
                       .data = data,
                       .n_bytes = n + DLM_I2S_TAIL};
        if (!CHECK_OK(tl_find(&c, "file", &t, &e), e)) continue;
        for (i32 row = 0; row < m; row++) {
            u8 got[K_MAX];
            f32 scale = 0;
            quant_codes_row(&t, row, got, &scale);
            CHECK(scale == 0.25f && quant_scale_block(&t) == k);
            CHECK_MEM(got, codes[row], (size_t)k);
        }
        t.n_bytes--; /* a byte less, and it cannot be */
        CHECK(!tl_find(&c, "file", &t, &e));
        CHECK_ERR(e, ERR_MODEL, "file: tensor t");
        test_guard_free(data);
    }
}

static void test_find(void) {
    Err e = {0};
    TlConfig none = {.n = 0};
    DlmTensor t = {.name = "t", .type = DLM_TL1, .n_in = 8640, .n_out = 3200};
    t.n_bytes = (u64)(t.n_in * t.n_out) / 4 + DLM_I2S_TAIL;
    CHECK_OK(tl_find(&none, "file", &t, &e) && t.tl.bm == 160 && t.tl.bk == 64 && t.tl.bmm == 32,
             e);
    t.n_in = 6912;
    CHECK(!tl_find(&none, "file", &t, &e));
    CHECK_ERR(e, ERR_MODEL, "give BitNet.cpp's kernel_config.ini with --tl-config");
    e = (Err){0};
    t = (DlmTensor){.name = "t", .type = DLM_I2_S, .n_in = 33, .n_out = 4};
    CHECK(!tl_find(&none, "file", &t, &e));
    CHECK_ERR(e, ERR_MODEL, "try another --i2s-layout");
    e = (Err){0};
    t.type = DLM_F32;
    CHECK_OK(tl_find(&none, "file", &t, &e), e);
}

/* Every preset cuts its shape into whole tiles. */
static void test_presets(void) {
    const TlKernel *presets[2] = {TL1_PRESETS_, TL2_PRESETS_};
    const size_t n[2] = {COUNT_OF(TL1_PRESETS_), COUNT_OF(TL2_PRESETS_)};
    TlConfig none = {.n = 0};
    for (int type = 0; type < 2; type++)
        for (size_t i = 0; i < n[type]; i++) {
            const TlKernel *k = &presets[type][i];
            Err e = {0};
            DlmTensor t = {.name = "t",
                           .type = type ? DLM_TL2 : DLM_TL1,
                           .n_in = k->k,
                           .n_out = k->m,
                           .n_bytes = (u64)k->m * (u64)k->k / 4 + DLM_I2S_TAIL};
            CHECK_OK(tl_find(&none, "file", &t, &e), e);
            CHECK_MEM(&t.tl, &k->tiling, sizeof t.tl);
        }
}

static void test_parse(void) {
    static const struct {
        const char *text, *wrong;
    } bad[] = {
        {"m = 1\n", "f.ini, line 1: this key comes before the first section"},
        {"[a]\nm = x\n", "line 2: a number of 1 or more"},
        {"[a]\nm = 0\n", "line 2: a number of 1 or more"},
        {"[a]\nm =\n", "line 2: a number of 1 or more"},
        {"[a]\nm = 99999999999\n", "line 2: a number of 1 or more"},
        {"[a]\nm = 1\nM : 2\n", "line 3: this key comes twice"},
        {"[a\n", "line 1: a section begins"},
        {"[a]\nnonsense", "line 2: this is no section"},
        {"[a]\nm=1\nk=2\nbm=3\nbk=4\n", "section 1 lacks one of"},
        {"; nothing\n\n# at all", "there is no kernel in it"},
        {"", "there is no kernel in it"},
    };
    static TlConfig c;
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        Err e = {0};
        CHECK_MSG(!tl_parse(&c, str_of(bad[i].text), "f.ini", &e), "%s", bad[i].text);
        CHECK_ERR(e, ERR_MODEL, bad[i].wrong);
    }
    Err e = {0};
    const char *good =
        "# by hand\r\n[a]\r\n M : 128\r\nk=512\nBM = 64\nbk =32\nbmm= 16\nother = x\n[b]\n"
        "m=1\nk=2\nbm=3\nbk=4\nbmm=5";
    if (!CHECK_OK(tl_parse(&c, str_of(good), "f.ini", &e), e)) return;
    CHECK_INT(c.n, 2);
    const TlKernel *a = &c.kernels[0], *b = &c.kernels[1];
    CHECK(a->m == 128 && a->k == 512 && a->tiling.bm == 64 && a->tiling.bk == 32);
    CHECK(a->tiling.bmm == 16 && b->m == 1 && b->tiling.bmm == 5);
    char many[TL_KERNELS_MAX * 4 + 8] = "";
    for (int i = 0; i <= TL_KERNELS_MAX; i++) memcpy(many + 4 * i, "[a]\n", 5);
    CHECK(!tl_parse(&c, str_of(many), "f.ini", &e));
    CHECK_ERR(e, ERR_MODEL, "more than 64 kernels");
}

int main(void) {
    test_layouts();
    test_find();
    test_presets();
    test_parse();
    return test_end();
}

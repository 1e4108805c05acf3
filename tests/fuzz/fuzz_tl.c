/* fuzz_tl.c - any text as kernel_config.ini: refused, or tilings that read no byte outside a matrix. */
#include "../../src/mem.c"
#include "../../src/tl.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static const i64 shapes[][2] = {{128, 512}, {64, 96}, {32, 1024}};
    static TlConfig c;
    Err e = {0};
    if (!tl_parse(&c, (Str){(const char *)data, n}, "fuzz", &e)) {
        ASSERT(e.code != ERR_NONE && e.msg[0]);
        return 0;
    }
    for (size_t i = 0; i < COUNT_OF(shapes); i++)
        for (int type = 0; type < 2; type++) {
            u64 size = (u64)(shapes[i][0] * shapes[i][1]) / 4 + DLM_I2S_TAIL;
            u8 *p = malloc(size), codes[1024]; /* exactly: the sanitizer sees what is beyond */
            f32 scale;
            DlmTensor t = {.name = "t",
                           .type = type ? DLM_TL2 : DLM_TL1,
                           .n_out = shapes[i][0],
                           .n_in = shapes[i][1],
                           .data = p,
                           .n_bytes = size};
            memset(p, data[n / 2], size);
            for (i64 row = 0; tl_find(&c, "fuzz", &t, NULL) && row < t.n_out; row++)
                quant_codes_row(&t, row, codes, &scale);
            free(p);
        }
    return 0;
}

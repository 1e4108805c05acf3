/* dequant_driver.c - the block formats as a filter, for tests/py/dequant.py.
 *
 *     dequant_driver                       lists the types: name, id, weights and bytes of a block
 *     dequant_driver TYPE <blocks >values  f32 values of whole blocks of the type with that id */
#include "../src/os.c"
#include "../src/quant.c"

static void fail(const char *why) {
    fprintf(stderr, "dequant_driver: %s\n", why);
    exit(1);
}

/* One block as a row of its own. */
static void values_of(const DlmTypeInfo *info, const u8 *p, f32 *out) {
    DlmTensor t = {.type = info->type, .n_in = info->block, .n_out = 1, .data = p};
    u8 codes[DLM_QK_K];
    f32 scale = 0;
    if (!quant_is_ternary(info->type)) {
        quant_values(info->type, p, info->block, out);
        return;
    }
    quant_codes_row(&t, 0, codes, &scale);
    for (i64 i = 0; i < info->block; i++) out[i] = scale * (f32)(codes[i] - 1);
}

int main(int argc, char **argv) {
    Err e = {0};
    Buf in = {.max = (size_t)1 << 30};
    f32 out[DLM_QK_K];
    const DlmTypeInfo *info = argc == 2 ? quant_info((DlmType)strtol(argv[1], NULL, 10)) : NULL;
    for (size_t i = 0; argc == 1 && i < COUNT_OF(DLM_TYPES); i++)
        printf("%s %d %d %d\n", DLM_TYPES[i].name, (int)DLM_TYPES[i].type, (int)DLM_TYPES[i].block,
               (int)DLM_TYPES[i].bytes);
    if (argc == 1) return 0;
    if (!info || info->type == DLM_I2_S) fail("usage: dequant_driver [TYPE <blocks >values]");
    if (!os_read_stdin(&in, &e)) fail(e.msg);
    size_t bytes = info->bytes, n = (size_t)info->block;
    if (in.n % bytes) fail("half a block");
    for (size_t i = 0; i < in.n; i += bytes) {
        values_of(info, (const u8 *)in.p + i, out);
        if (fwrite(out, sizeof *out, n, stdout) != n) fail("the values cannot be written");
    }
    buf_free(&in);
    return 0;
}

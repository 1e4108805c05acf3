/* quant_driver.c - the block formats as filters, for tests/py/dequant.py and tests/py/quantize.py.
 *
 *     quant_driver                             lists the types: name, id, weights and bytes of a block
 *     quant_driver decode TYPE <blocks >values   whole blocks of the type with that id to f32 values
 *     quant_driver encode TYPE <values >blocks   the opposite; a refused block becomes zeros, and its
 *                                                number and the reason go to stderr */
#include "../src/os.c"
#include "../src/quant.c"

static void fail(const char *why) {
    fprintf(stderr, "quant_driver: %s\n", why);
    exit(1);
}

static void put(const void *p, size_t n) {
    if (fwrite(p, 1, n, stdout) != n) fail("the output cannot be written");
}

static void list(void) {
    for (size_t i = 0; i < COUNT_OF(DLM_TYPES); i++)
        printf("%s %d %d %d\n", DLM_TYPES[i].name, (int)DLM_TYPES[i].type, (int)DLM_TYPES[i].block,
               (int)DLM_TYPES[i].bytes);
}

/* One block as a row of its own. */
static void decode(const DlmTypeInfo *info, const Buf *in) {
    f32 out[DLM_QK_K], scale = 0;
    u8 codes[DLM_QK_K];
    for (size_t i = 0; i + info->bytes <= in->n; i += info->bytes) {
        const u8 *p = (const u8 *)in->p + i;
        DlmTensor t = {.type = info->type, .n_in = info->block, .n_out = 1, .data = p};
        if (!quant_is_ternary(info->type)) {
            quant_values(info->type, p, info->block, out);
        } else {
            quant_codes_row(&t, 0, codes, &scale);
            for (u32 k = 0; k < info->block; k++) out[k] = scale * (f32)(codes[k] - 1);
        }
        put(out, info->block * sizeof *out);
    }
}

static void encode(const DlmTypeInfo *info, const Buf *in) {
    f32 x[DLM_QK_K];
    u8 block[DLM_QK_K * sizeof *x];
    for (size_t i = 0; (i + 1) * info->block * sizeof *x <= in->n; i++) {
        memcpy(x, in->p + i * info->block * sizeof *x, info->block * sizeof *x);
        const char *why = quant_row(info->type, x, info->block, block);
        if (why) {
            fprintf(stderr, "%zu %s\n", i, why);
            memset(block, 0, info->bytes);
        }
        put(block, info->bytes);
    }
}

int main(int argc, char **argv) {
    Err e = {0};
    Buf in = {.max = (size_t)1 << 30};
    const DlmTypeInfo *info = argc == 3 ? quant_info((DlmType)strtol(argv[2], NULL, 10)) : NULL;
    if (argc == 1) {
        list();
        return 0;
    }
    bool decodes = argc == 3 && strcmp(argv[1], "decode") == 0;
    if (!info || !quant_has_rows(info->type) || (!decodes && strcmp(argv[1], "encode") != 0))
        fail("usage: quant_driver [decode|encode TYPE]");
    if (!os_read_stdin(&in, &e)) fail(e.msg);
    if (in.n % (decodes ? info->bytes : info->block * sizeof(f32))) fail("half a block");
    (decodes ? decode : encode)(info, &in);
    buf_free(&in);
    return 0;
}

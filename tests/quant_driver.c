/* quant_driver.c - the block formats as filters, for tests/py/dequant.py, quantize.py and tl.py.
 *
 *     quant_driver                             lists the types: name, id, weights and bytes of a block
 *     quant_driver decode TYPE <blocks >values   whole blocks of the type with that id to f32 values
 *     quant_driver encode TYPE <values >blocks   the opposite; a refused block becomes zeros, and its
 *                                                number and the reason go to stderr
 *     quant_driver TL1|TL2 M K FILE|- STEP <tensor >codes   each STEP-th row of a matrix of M x K, of
 *                                                scale 0.5; FILE: kernel_config.ini */
#include "../src/os.c"
#include "../src/quant.c"
#include "../src/tl.c"

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

/* argv: the type's name, outputs, inputs, kernel_config.ini or "-", which rows. */
static void decode_tl(char **argv, const Buf *in, Err *e) {
    TlConfig config = {.n = 0};
    Buf text = {0};
    DlmTensor t = {.name = "t",
                   .type = strcmp(argv[0], "TL1") == 0 ? DLM_TL1 : DLM_TL2,
                   .n_out = strtol(argv[1], NULL, 10),
                   .n_in = strtol(argv[2], NULL, 10),
                   .data = (const u8 *)in->p,
                   .n_bytes = in->n};
    bool given = strcmp(argv[3], "-") != 0;
    if (given &&
        (!os_read_file(argv[3], &text, e) || !tl_parse(&config, buf_view(&text), "config", e)))
        fail(e->msg);
    if (!tl_find(&config, "file", &t, e)) fail(e->msg);
    u8 *codes = mem_alloc((u64)t.n_in, e);
    if (!codes) fail(e->msg);
    f32 scale = 0;
    for (i64 row = 0; row < t.n_out; row += MAX_OF(strtol(argv[4], NULL, 10), 1)) {
        quant_codes_row(&t, row, codes, &scale);
        if (scale != 0.5f) fail("the scale is another");
        put(codes, (size_t)t.n_in);
    }
    mem_free(codes);
    buf_free(&text);
}

int main(int argc, char **argv) {
    Err e = {0};
    Buf in = {.max = (size_t)1 << 30};
    const DlmTypeInfo *info = argc == 3 ? quant_info((DlmType)strtol(argv[2], NULL, 10)) : NULL;
    if (argc == 1) {
        list();
        return 0;
    }
    if (argc == 6) {
        if (!os_read_stdin(&in, &e)) fail(e.msg);
        decode_tl(argv + 1, &in, &e);
        buf_free(&in);
        return 0;
    }
    bool decodes = argc == 3 && strcmp(argv[1], "decode") == 0;
    if (!info || !quant_has_rows(info->type) || (!decodes && strcmp(argv[1], "encode") != 0))
        fail("usage: quant_driver [decode|encode TYPE] [TL1|TL2 M K FILE|- STEP]");
    if (!os_read_stdin(&in, &e)) fail(e.msg);
    if (in.n % (decodes ? info->bytes : info->block * sizeof(f32))) fail("half a block");
    (decodes ? decode : encode)(info, &in);
    buf_free(&in);
    return 0;
}

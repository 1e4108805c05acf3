/* gguf_driver.c - copies a GGUF file through the reader and the writer, for tests/py/gguf_write.py.
 *
 *     gguf_driver IN OUT
 *
 * Keys of the types that the writer has a call for go through it, the others as they are. */
#include "../src/gguf.c"
#include "../src/os.c"

static void fail(const char *why) {
    fprintf(stderr, "gguf_driver: %s\n", why);
    exit(1);
}

static void copy_strings(GgufWriter *w, const char *key, const GgufKv *kv, Err *e) {
    GgufStrIter it = {.a = {kv->count, kv->elem, kv->data, kv->n_bytes}};
    Str *strs = mem_alloc_n(kv->count, sizeof *strs, e);
    if (!strs) fail(e->msg);
    for (u64 i = 0; i < kv->count; i++) gguf_str_next(&it, &strs[i]);
    gguf_put_strs(w, key, strs, kv->count);
    mem_free(strs);
}

static void copy_key(GgufWriter *w, const GgufKv *kv, Err *e) {
    char key[256];
    snprintf(key, sizeof key, "%.*s", STR_ARG(kv->key));
    u32 aligned[1024]; /* the file's numbers lie anywhere */
    bool array = kv->type == GGUF_ARRAY, fits = kv->n_bytes <= sizeof aligned;
    if (fits) memcpy(aligned, kv->data, kv->n_bytes);
    if (kv->type == GGUF_U32)
        gguf_put_u32(w, key, aligned[0]);
    else if (kv->type == GGUF_F32)
        gguf_put_f32(w, key, load_f32(kv->data));
    else if (kv->type == GGUF_BOOL)
        gguf_put_bool(w, key, kv->data[0]);
    else if (kv->type == GGUF_STRING)
        gguf_put_str(w, key, (Str){(const char *)kv->data, kv->n_bytes});
    else if (array && kv->elem == GGUF_STRING)
        copy_strings(w, key, kv, e);
    else if (array && fits && kv->elem == GGUF_U32)
        gguf_put_u32s(w, key, aligned, kv->count);
    else if (array && fits && kv->elem == GGUF_I32)
        gguf_put_i32s(w, key, (const i32 *)aligned, kv->count);
    else if (array && fits && kv->elem == GGUF_F32)
        gguf_put_f32s(w, key, (const f32 *)(const void *)aligned, kv->count);
    else
        gguf_put_raw_kv(w, kv);
}

int main(int argc, char **argv) {
    Err e = {0};
    OsMap m;
    Gguf g;
    GgufWriter w;
    Buf head = {0};
    static const char zeros[GGUF_ALIGN_DEFAULT];
    if (argc != 3) fail("usage: gguf_driver IN OUT");
    if (!os_map_file(&m, argv[1], &e) || !gguf_open(&g, m.p, m.n, argv[1], &e)) fail(e.msg);
    gguf_writer_open(&w, &e);
    for (u32 i = 0; i < g.n_kv; i++) copy_key(&w, &g.kv[i], &e);
    for (u32 i = 0; i < g.n_tensors; i++) {
        const GgufTensor *t = &g.tensors[i];
        gguf_put_tensor(&w, t->name, t->type, t->n_dims, t->ne);
    }
    if (!gguf_writer_head(&w, &head)) fail(e.msg);
    FILE *out = fopen(argv[2], "wb");
    if (!out || fwrite(head.p, 1, head.n, out) != head.n) fail("cannot write");
    for (u32 i = 0; i < g.n_tensors; i++) {
        const GgufTensor *t = &g.tensors[i];
        u64 pad = gguf_padding(t->n_bytes);
        if (fwrite(t->data, 1, t->n_bytes, out) != t->n_bytes || fwrite(zeros, 1, pad, out) != pad)
            fail("cannot write");
    }
    if (fclose(out) != 0) fail("cannot write");
    gguf_writer_close(&w);
    gguf_close(&g);
    buf_free(&head);
    os_unmap(&m);
    return 0;
}

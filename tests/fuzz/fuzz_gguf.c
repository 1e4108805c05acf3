/* fuzz_gguf.c - any bytes: the reader refuses them or keeps its promises; what it takes, the writer
 * writes again. */
#include "../../src/gguf.c"

static void copy(const Gguf *g) {
    GgufWriter w;
    Buf out = {0};
    Err e = {0};
    Gguf again;
    gguf_writer_open(&w, &e);
    for (u32 i = 0; i < g->n_kv; i++) gguf_put_raw_kv(&w, &g->kv[i]);
    ASSERT(gguf_writer_head(&w, &out) && gguf_open(&again, (const u8 *)out.p, out.n, "copy", &e));
    for (u32 i = 0; i < g->n_kv; i++) {
        const GgufKv *a = &g->kv[i], *b = gguf_find(&again, a->key);
        if (str_eq(a->key, STR("general.alignment"))) continue;
        ASSERT(b && a->type == b->type && a->n_bytes == b->n_bytes);
        ASSERT(a->n_bytes == 0 || memcmp(a->data, b->data, a->n_bytes) == 0);
    }
    gguf_close(&again);
    for (u32 i = 0; i < g->n_tensors; i++) {
        const GgufTensor *t = &g->tensors[i];
        u64 n = gguf_put_tensor(&w, t->name, t->type, t->n_dims, t->ne);
        ASSERT(n == t->n_bytes || t->type == DLM_TL2);
    }
    buf_clear(&out);
    ASSERT(gguf_writer_head(&w, &out));
    gguf_writer_close(&w);
    buf_free(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    Gguf g;
    Err e = {0};
    if (!gguf_open(&g, data, n, "fuzz", &e)) {
        ASSERT(e.code != ERR_NONE && e.msg[0]);
        return 0;
    }
    u64 sum = 0;
    for (u32 i = 0; i < g.n_tensors; i++) {
        const GgufTensor *t = &g.tensors[i];
        ASSERT(t->offset <= n && t->n_bytes <= n - t->offset && gguf_tensor(&g, t->name) == t);
        sum += t->data[0] + t->data[t->n_bytes - 1];
    }
    for (u32 i = 0; i < g.n_kv; i++) {
        const GgufKv *kv = &g.kv[i];
        GgufArray a = {kv->count, kv->elem, kv->data, kv->n_bytes};
        GgufStrIter it = {.a = a};
        Str s;
        if (kv->elem == GGUF_STRING && kv->type == GGUF_ARRAY)
            while (gguf_str_next(&it, &s)) sum += str_hash(s);
        else if (gguf_is_int_(kv->elem) && kv->count)
            sum += (u64)gguf_array_int(&a, kv->count - 1);
        ASSERT(gguf_find(&g, kv->key) == kv);
    }
    copy(&g);
    volatile u64 keep = sum;
    (void)keep;
    gguf_close(&g);
    return 0;
}

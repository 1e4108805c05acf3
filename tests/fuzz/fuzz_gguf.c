/* fuzz_gguf.c - any bytes: the reader refuses them or keeps its promises. */
#include "../../src/gguf.c"

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
    volatile u64 keep = sum;
    (void)keep;
    gguf_close(&g);
    return 0;
}

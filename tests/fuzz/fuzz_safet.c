/* fuzz_safet.c - any bytes: the reader refuses them or keeps its promises. */
#include "../../src/safet.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    Safet s;
    Err e = {0};
    if (!safet_open(&s, data, n, "fuzz", &e)) {
        ASSERT(e.code != ERR_NONE && e.msg[0]);
        return 0;
    }
    u64 sum = 0;
    for (u32 i = 0; i < s.n_tensors; i++) {
        const SafetTensor *t = &s.tensors[i];
        ASSERT(t->offset <= n && t->n_bytes <= n - t->offset && safet_find(&s, t->name) == t);
        if (t->n_bytes) sum += t->data[0] + t->data[t->n_bytes - 1];
    }
    volatile u64 keep = sum;
    (void)keep;
    safet_close(&s);
    return 0;
}

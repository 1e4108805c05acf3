/* fuzz_json.c - any bytes: refused, or every node can be walked, read and written again. */
#include "../../src/json.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    JsonDoc d = {.nodes_max = 1 << 16};
    Err e = {0};
    Buf b = {0};
    json_put_str(&b, (Str){(const char *)data, n});
    JsonDoc written = {0};
    ASSERT(json_parse(&written, buf_view(&b), NULL) && written.n == 1);
    json_free(&written);
    bool ok = json_parse(&d, (Str){(const char *)data, n}, &e);
    ASSERT(ok || e.code != ERR_NONE);
    for (u32 i = 0; i < d.n; i++) {
        Str s;
        f64 f;
        i64 v;
        ASSERT(d.nodes[i].next > i && d.nodes[i].next <= d.n);
        buf_clear(&b);
        if (json_str(&d, i, &s)) json_put_str(&b, s);
        if (json_f64(&d, i, &f)) json_put_f64(&b, f);
        json_i64(&d, i, &v);
        ASSERT(json_get(&d, i, "") == JSON_NONE || json_type(&d, i) == JSON_OBJECT);
    }
    json_free(&d);
    buf_free(&b);
    return 0;
}

/* fuzz_utf8.c - any bytes: steps add up to the text, what is valid writes back as it was. */
#include "../../src/utf8.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    Str s = {(const char *)data, n};
    size_t valid = utf8_valid(s), i = 0;
    ASSERT(valid <= n);
    while (i < n) {
        u32 cp, same;
        size_t len, at = i;
        char b[UTF8_MAX];
        Utf8State state = utf8_read(s, i, &cp, &len);
        ASSERT(len >= 1 && len <= UTF8_MAX && len <= n - i);
        ASSERT(state != UTF8_SHORT || i + len == n);
        ASSERT((state == UTF8_OK) == (i < valid) || i > valid);
        same = utf8_next(s, &i);
        ASSERT(same == cp && i - at == (state == UTF8_OK ? len : 1) && utf8_class(cp));
        if (state == UTF8_OK) ASSERT(utf8_put(cp, b) == len && memcmp(b, s.p + at, len) == 0);
    }
    return 0;
}

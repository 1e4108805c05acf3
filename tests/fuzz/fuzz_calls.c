/* fuzz_calls.c - any answer: wholly calls behind a text, or wholly text; what a stream lets go is text. */
#include "../../src/calls.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    Str answer = {(const char *)data, n};
    Calls c;
    calls_read(&c, answer);
    ASSERT(c.text.p == answer.p && (c.n || c.text.n == n));
    for (i32 i = 0; i < c.n; i++) ASSERT(c.calls[i].name.n > 0 && c.calls[i].arguments.p != NULL);
    size_t sent = 0;
    for (size_t have = 0; have <= n; have += 1 + have % 7) {
        Str rest = str_cut(answer, sent, have);
        size_t held = calls_held(rest);
        ASSERT(held <= rest.n);
        sent += rest.n - held;
    }
    ASSERT(sent <= c.text.n);
    calls_free(&c);
    return 0;
}

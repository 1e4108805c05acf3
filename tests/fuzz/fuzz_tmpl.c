/* fuzz_tmpl.c - any template over a fixed conversation: it renders within its limits or is refused, and no
 * byte of a message is ever marked as the template's. */
#include "../../src/tmpl.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    /* 0xff is no byte of UTF-8 and no escape makes it: where it shows, it came from a message. */
    static const TmplMsg msgs[] = {{STR("system"), STR("\xff\xff s")},
                                   {STR("user"), STR(" \xff\xff\xff\n")},
                                   {STR("assistant"), STR("")},
                                   {STR("\xff\xff"), STR("{{ \xff }}")}};
    TmplVars v = {.bos_token = STR("<s>"),
                  .eos_token = STR("</s>"),
                  .add_generation_prompt = true,
                  .now_unix = 1721815425};
    TmplOut out = {0};
    Err e = {0};
    bool ok = !memchr(n ? (const char *)data : "", 0xff, n) &&
              tmpl_render((Str){(const char *)data, n}, msgs, COUNT_OF(msgs), &v, &out, &e);
    ASSERT(out.text.n == out.trust.n && (ok || out.text.n == 0));
    for (size_t i = 0; i < out.text.n; i++) ASSERT((u8)out.text.p[i] != 0xff || !out.trust.p[i]);
    tmpl_out_free(&out);
    return 0;
}

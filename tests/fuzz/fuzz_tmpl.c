/* fuzz_tmpl.c - any template over a fixed conversation with tools: it renders within its limits or is
 * refused, and no byte of a message or of a tool is ever marked as the template's. */
#include "../../src/tmpl.c"

/* U+10FFFF is in every string of it: a byte 0xf4 in the output that neither the template nor one of its
 * escapes can have written came from here. */
#define MARK "\xf4\x8f\xbf\xbf"
static const char DATA[] =
    "{\"tools\":[{\"name" MARK "\":\"" MARK
    "\",\"n\":[1,-2.5,true,null,{}]}],\"more\":{\"kind\":\"" MARK "\"},"
    "\"content\":[{\"type\":\"text\",\"text\":\"" MARK
    "\"}],\"message\":{\"tool_calls\":[{\"function\":"
    "{\"name\":\"" MARK "\",\"arguments\":\"{\\\"a\\\":[\\\"" MARK "\\\"]}\"}}]}}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static JsonDoc d;
    if (!d.n) ASSERT(json_parse(&d, str_of(DATA), NULL));
    /* 0xff is no byte of UTF-8 and no escape makes it: where it shows, it came from a message. */
    TmplMsg msgs[] = {
        tmpl_msg(STR("system"), STR("\xff\xff s")), tmpl_msg(STR("user"), STR(" \xff\xff\xff\n")),
        tmpl_msg(STR("assistant"), STR("")), tmpl_msg(STR("\xff\xff"), STR("{{ \xff }}"))};
    msgs[1].content_data = (TmplData){n % 2 ? &d : NULL, json_get(&d, 0, "content")};
    msgs[2].more = (TmplData){&d, json_get(&d, 0, "message")};
    TmplVars v = {.bos_token = STR("<s>"),
                  .eos_token = STR("</s>"),
                  .add_generation_prompt = true,
                  .now_unix = 1721815425,
                  .tools = {&d, json_get(&d, 0, "tools")},
                  .more = {&d, json_get(&d, 0, "more")}};
    TmplOut out = {0};
    Err e = {0};
    const char *source = n ? (const char *)data : "";
    bool marked = memchr(source, 0xf4, n) || memchr(source, '\\', n);
    bool ok = !memchr(source, 0xff, n) &&
              tmpl_render((Str){source, n}, msgs, COUNT_OF(msgs), &v, &out, &e);
    ASSERT(out.text.n == out.trust.n && (ok || out.text.n == 0));
    for (size_t i = 0; i < out.text.n; i++) {
        u8 c = (u8)out.text.p[i];
        ASSERT((c != 0xff && (c != 0xf4 || marked)) || !out.trust.p[i]);
    }
    tmpl_out_free(&out);
    return 0;
}

/* fuzz_api.c - any body for any route: refused with a 400, or a request within its limits, whose
 * prompts hold no special token from a message, and whose replies are valid JSON. */
#include "../../src/api.c"
#include "../tok_make.h"

static const ApiModel *our_model(void) {
    static Buf file;
    static Gguf g;
    static Tok t;
    static Model m;
    static ApiModel served;
    if (served.model) return &served;
    make_chat(&file, "qwen2");
    ASSERT(gguf_open(&g, (const u8 *)file.p, file.n, "ours", NULL) && tok_open(&t, &g, NULL, NULL));
    m = (Model){.file = &g,
                .tok = &t,
                .n_vocab = (i32)t.n_vocab,
                .decode = {.mask_id = 0, .block_size = 32, .sub_block_size = 8, .threshold = 0.9f}};
    served = (ApiModel){.model = &m,
                        .name = STR("m"),
                        .chat_template = STR(
                            "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ m.tool_calls }}"
                            "\n{% endfor %}{{ tools | tojson }}{{ v }}"),
                        .n_ctx = 4096,
                        .block_max = 64,
                        .decode = decode_params_default()};
    return &served;
}

static void check_json(Buf *b) {
    JsonDoc d = {0};
    ASSERT(!b->failed && json_parse(&d, buf_view(b), NULL));
    json_free(&d);
    buf_free(b);
}

static void check_replies(const ApiRequest *r, const ApiModel *m) {
    static const u64 random[2] = {1, 2};
    ApiReply a = api_reply(r, m, 0, random);
    static char call[] = "a <tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>";
    DecodeResult result = {.finish = "stop", .text = {.p = call, .n = sizeof call - 1}};
    ApiAnswer answers[API_CHOICES_MAX];
    Buf out = {0}, events = {0};
    for (i32 i = 0; i < api_n_choices(r); i++) answers[i] = (ApiAnswer){.r = &result};
    api_put_answer(&out, &a, answers);
    check_json(&out);
    api_put_stream_begin(&events, &a, 0, 5, 1);
    api_put_stream_text(&events, &a, 0, m->name, (Str){0});
    api_put_stream_finish(&events, &a, 0, &answers[0]);
    api_put_stream_end(&events, &a, answers);
    ASSERT(!events.failed && str_ends(buf_view(&events), STR("\n\n")));
    buf_free(&events);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (n == 0 || n > 1 << 16) return 0;
    const ApiModel *m = our_model();
    ApiRoute route = (ApiRoute)(API_CHAT + data[0] % (API_MODELS - API_CHAT));
    ApiRequest r;
    ApiError x = {0};
    TokIds ids = {0};
    Buf out = {0};
    bool ok = api_parse(&r, route, (Str){(const char *)data + 1, n - 1}, m, &x);
    ASSERT(ok == (x.status == 0) && (ok || x.status == 400));
    if (ok && (api_generates(route) || route == API_COUNT_TOKENS)) {
        ASSERT(r.n >= 1 && r.n <= API_N_MAX && api_n_choices(&r) >= 1 &&
               api_n_choices(&r) <= API_CHOICES_MAX);
        ASSERT(r.decode.max_tokens >= 1 && r.decode.sample.temperature >= 0 &&
               r.decode.n_top <= DECODE_TOP_MAX);
        bool fits = api_prompt(&r, r.n_prompts - 1, m, 0, &ids, &x);
        for (size_t i = 0; fits && r.n_messages && i < ids.n; i++)
            ASSERT(!tok_is_special(m->model->tok, ids.p[i]));
    }
    if (ok && api_generates(route))
        check_replies(&r, m);
    else if (ok && api_put_text_answer(&out, &r, m, 0, &x))
        check_json(&out);
    buf_free(&out);
    if (x.status) {
        api_put_error(&out, route, &x, STR("req"));
        check_json(&out);
    }
    tok_ids_free(&ids);
    api_request_free(&r);
    return 0;
}

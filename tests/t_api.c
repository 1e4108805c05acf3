/* t_api.c - requests are read to the letter; bodies and events are what strict clients want. */
#define DLM_TEST_ALLOC
#include "../src/api.c"
#include "test.h"

static Gguf gguf;
static Tok tok;
static Model model;
static ApiModel served;

static void open_model(void) {
    Err e = {0};
    static Str file;
    file = test_file("tests/golden/tiny-dlm.gguf");
    const ModelOptions o = {.mask_id = -1};
    bool ok = gguf_open(&gguf, (const u8 *)file.p, file.n, "tiny-dlm.gguf", &e) &&
              tok_open(&tok, &gguf, NULL, &e) && model_read(&model, &gguf, &tok, &o, &e);
    ASSERT(CHECK_OK(ok, e));
    served = (ApiModel){.model = &model,
                        .name = STR("tiny/dlm"),
                        .file = STR("tiny-dlm.gguf"),
                        .chat_template = tok.chat_template,
                        .version = STR("1.2.3"),
                        .created_unix = 1700000000,
                        .n_ctx = 256,
                        .n_slots = 4,
                        .block_max = 64,
                        .decode = decode_params_default()};
}

/* A body in a block of exactly its size, so that ASan sees a read past it, and what it became. */
typedef struct {
    char *text;
    ApiRequest r;
    ApiError x;
    bool ok;
} Parsed;

static Parsed *parse(ApiRoute route, const char *body) {
    Parsed *p = calloc(1, sizeof *p);
    size_t n = strlen(body);
    ASSERT(p && (p->text = malloc(n ? n : 1)));
    memcpy(p->text, body, n);
    p->ok = api_parse(&p->r, route, (Str){p->text, n}, &served, &p->x);
    return p;
}

static void done(Parsed *p) {
    api_request_free(&p->r);
    free(p->text);
    free(p);
}

static void refused(ApiRoute route, const char *body, const char *param, const char *part) {
    Parsed *p = parse(route, body);
    CHECK_MSG(!p->ok && p->x.status == 400, "%s: status %d", body, p->x.status);
    CHECK_MSG(strcmp(p->x.param, param) == 0, "%s: param '%s', want '%s'", body, p->x.param, param);
    CHECK_MSG(strstr(p->x.err.msg, part) != NULL, "%s: \"%s\", want \"%s\"", body, p->x.err.msg,
              part);
    done(p);
}

static void accepted(ApiRoute route, const char *body) {
    Parsed *p = parse(route, body);
    CHECK_MSG(p->ok && p->x.status == 0, "%s: %d %s", body, p->x.status, p->x.err.msg);
    done(p);
}

/* ---- routes ---- */

static void route(const char *method, const char *path, ApiRoute want, i32 status) {
    ApiError x = {0};
    ApiRoute found;
    Str id;
    bool ok = api_find_route(str_of(method), str_of(path), &found, &id, &x);
    CHECK_MSG(ok == (status == 200) && found == want && x.status == (ok ? 0 : status),
              "%s %s: route %d, status %d", method, path, (int)found, x.status);
}

static void test_routes(void) {
    route("POST", "/v1/chat/completions", API_CHAT, 200);
    route("POST", "/completion", API_LLAMA, 200);
    route("GET", "/health", API_HEALTH, 200);
    route("HEAD", "/health", API_HEALTH, 200);
    route("GET", "/", API_PAGE, 200);
    route("GET", "/v1/models/a%2Fb", API_MODEL, 200);
    route("GET", "/v1/chat/completions", API_CHAT, 405);
    route("POST", "/health", API_HEALTH, 405);
    route("DELETE", "/v1/messages", API_MESSAGES, 405);
    route("GET", "/v1/chat", API_NONE, 404);
    route("POST", "/v1/embeddings", API_NONE, 404);
    route("POST", "", API_NONE, 404);
    CHECK(api_is_public(API_HEALTH) && !api_is_public(API_METRICS) && !api_is_public(API_CHAT));
    CHECK_CSTR(api_route_name(API_LLAMA), "/completion");
}

/* ---- the table of fields ---- */

/* What a body needs beside the field under test. */
static const char *rest_of(ApiRoute r) {
    switch (r) {
    case API_COMPLETIONS:
    case API_LLAMA: return "\"prompt\":\"x\"";
    case API_TOKENIZE: return "\"model\":\"x\"";
    case API_DETOKENIZE: return "\"model\":\"x\"";
    default: return "\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]";
    }
}

static void field(ApiRoute r, const char *name, const char *value, bool good) {
    char body[256];
    snprintf(body, sizeof body, "{%s,\"%s\":%s}", rest_of(r), name, value);
    if (good)
        accepted(r, body);
    else
        refused(r, body, name, name);
}

static void numeric_field(ApiRoute r, const ApiField *f) {
    char z[64];
    const f64 step = f->kind == API_INT ? 1 : 0.001;
    bool pairs = strcmp(f->name, "sub_block_size") == 0 || strcmp(f->name, "block_size") == 0 ||
                 strcmp(f->name, "best_of") == 0 || strcmp(f->name, "cfg_scale") == 0 ||
                 strcmp(f->name, "top_logprobs") == 0 ||
                 (r == API_LLAMA && f->at == offsetof(ApiRequest, n));
    const struct {
        f64 v;
        bool good;
    } tries[] = {{f->min, true},
                 {f->max, true},
                 {f->min - step, false},
                 {f->max + step, false},
                 {1e300, false}};
    for (size_t i = 0; i < COUNT_OF(tries); i++) {
        snprintf(z, sizeof z, "%.17g", tries[i].v);
        if (!tries[i].good || !pairs)
            field(r, f->name, z, tries[i].good); /* pairs: see test_together */
    }
    static const char *const wrong[] = {"\"1\"", "true", "[]", "{}", "1e999", "-1e400"};
    for (size_t i = 0; i < COUNT_OF(wrong); i++) field(r, f->name, wrong[i], false);
    if (f->kind == API_INT) field(r, f->name, "1.5", false);
    field(r, f->name, "null", true);
}

static void words_field(ApiRoute r, const ApiField *f) {
    char z[64];
    for (i32 i = 0; i <= (i32)f->max; i++) {
        snprintf(z, sizeof z, "\"%s\"", f->names[i]);
        field(r, f->name, z, true);
        z[1] = 'X';
        field(r, f->name, z, false);
    }
    static const char *const wrong[] = {"0", "true", "[]", "{}", "\"\"", "[\"none\"]"};
    for (size_t i = 0; i < COUNT_OF(wrong); i++) field(r, f->name, wrong[i], false);
    field(r, f->name, "null", true);
}

static void test_table(void) {
    for (size_t i = 0; i < COUNT_OF(API_FIELDS); i++)
        for (u32 r = API_CHAT; r < API_MODELS; r++) {
            const ApiField *f = &API_FIELDS[i];
            if (!(f->in & 1u << r) || r == API_TOKENIZE || r == API_DETOKENIZE) continue;
            if (f->kind == API_INT || f->kind == API_REAL) numeric_field((ApiRoute)r, f);
            if (f->kind == API_BOOL) {
                field((ApiRoute)r, f->name, "false", true);
                field((ApiRoute)r, f->name, "1", false);
                field((ApiRoute)r, f->name, "\"true\"", false);
            }
            if (f->kind == API_TEXT) field((ApiRoute)r, f->name, "7", false);
            if (f->kind == API_WORD) words_field((ApiRoute)r, f);
            if (f->kind == API_REFUSED) {
                char z[32];
                snprintf(z, sizeof z, "%g", f->min);
                field((ApiRoute)r, f->name, z, true);
                snprintf(z, sizeof z, "%g", f->min + 1);
                field((ApiRoute)r, f->name, z, false);
            }
        }
    field(API_CHAT, "no_such_field", "1", false);
    field(API_CHAT, "", "1", false);
    field(API_CHAT, "metadata service_tier", "1", false); /* two names as one */
    field(API_COMPLETIONS, "messages", "[]", false);
    refused(API_CHAT, "{\"a\\u0000b\\n\":1}", "a", "unknown");
}

static void test_names(void) {
    static const char *const neutral[] = {"null", "false", "\"\"", "[]", "{}", "0"};
    static const char *const asks[] = {"true", "\"x\"", "[1]", "{\"a\":1}", "2"};
    static const char *const refused_names[] = {"web_search_options", "audio", "grammar",
                                                "ignore_eos"};
    for (size_t i = 0; i < COUNT_OF(refused_names); i++) {
        for (size_t k = 0; k < COUNT_OF(neutral); k++)
            field(API_CHAT, refused_names[i], neutral[k], true);
        for (size_t k = 0; k < COUNT_OF(asks); k++)
            field(API_CHAT, refused_names[i], asks[k], false);
    }
    for (size_t k = 0; k < COUNT_OF(asks); k++) field(API_CHAT, "user", asks[k], true);
    field(API_CHAT, "response_format", "{\"type\":\"text\"}", true);
    field(API_CHAT, "response_format", "{\"type\":\"json_object\"}", false);
    field(API_CHAT, "modalities", "[\"text\"]", true);
    field(API_CHAT, "modalities", "[\"text\",\"audio\"]", false);
    field(API_CHAT, "tools", "[]", true);
    field(API_CHAT, "tools", "[{\"type\":\"function\"}]", false);
    field(API_CHAT, "tool_choice", "\"auto\"", true);
    field(API_CHAT, "tool_choice", "\"required\"", false);
    field(API_CHAT, "tool_choice", "{\"type\":\"function\"}", false);
    field(API_MESSAGES, "tool_choice", "{\"type\":\"auto\"}", true);
    field(API_MESSAGES, "thinking", "{\"type\":\"disabled\"}", true);
    field(API_MESSAGES, "thinking", "{\"type\":\"enabled\",\"budget_tokens\":9}", false);
    accepted(
        API_CHAT,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tools\":[{\"type\":\"function\"}],"
        "\"tool_choice\":\"none\"}");
    refused(API_CHAT,
            "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"stream_options\":{\"x\":1}}",
            "stream_options.x", "unknown");
    field(API_CHAT, "stream_options", "{\"include_usage\":true,\"include_obfuscation\":false}",
          true);
    field(API_CHAT, "stream_options", "true", false);
    field(API_CHAT, "decode_mode", "\"greedy\"", true);
    field(API_CHAT, "decode_mode", "\"Greedy\"", false);
    refused(
        API_MESSAGES,
        "{\"max_tokens\":1,\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"cache\":\"no\"}",
        "cache", "'cache' must be \"model\", \"none\", \"dual\" or \"masked\"; it is a string");
    field(API_CHAT, "dual_cache", "true", true);
    field(API_CHAT, "dual_cache", "1", false);
    field(API_CHAT, "steps", "-1", false);
    field(API_COUNT_TOKENS, "rule", "\"entropy\"", false);
    field(API_CHAT, "decode_mode", "3", false);
    field(API_CHAT, "seed", "-1", true);
    field(API_CHAT, "seed", "9223372036854775807", true);
    field(API_CHAT, "seed", "9223372036854775808", false);
    field(API_CHAT, "seed", "0.5", false);
    field(API_LLAMA, "n_predict", "-1", true);
    field(API_LLAMA, "n_predict", "0", false);
    field(API_LLAMA, "n_predict", "-2", false);
}

/* Rules about several fields. */
static void test_together(void) {
#define CHAT(more) "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]," more "}"
    refused(API_CHAT, CHAT("\"top_logprobs\":3"), "top_logprobs", "logprobs");
    accepted(API_CHAT, CHAT("\"top_logprobs\":3,\"logprobs\":true"));
    accepted(API_CHAT, CHAT("\"block_size\":64"));
    refused(API_CHAT, CHAT("\"block_size\":128"), "block_size", "room for 64");
    refused(API_CHAT, CHAT("\"block_size\":33"), "block_size", "sub-blocks of 8");
    refused(API_CHAT, CHAT("\"sub_block_size\":7"), "sub_block_size", "sub-blocks of 7");
    accepted(API_CHAT, CHAT("\"block_size\":4"));
    i32 sub = model.decode.sub_block_size; /* a model whose blocks are open as a whole */
    model.decode.sub_block_size = model.decode.block_size;
    accepted(API_CHAT, CHAT("\"block_size\":48"));
    model.decode.sub_block_size = sub;
    Parsed *p = parse(API_CHAT, CHAT("\"max_tokens\":9,\"max_completion_tokens\":5"));
    CHECK(p->ok && p->r.decode.max_tokens == 5);
    done(p);
    p = parse(API_CHAT, CHAT("\"max_tokens\":3,\"max_completion_tokens\":5,\"n\":2,\"seed\":7"));
    CHECK(p->ok && p->r.decode.max_tokens == 3 && api_n_choices(&p->r) == 2);
    CHECK_U64(api_decode_params(&p->r, 0, 99).sample.seed, 7);
    CHECK_U64(api_decode_params(&p->r, 1, 99).sample.seed, 8);
    done(p);
    p = parse(API_CHAT,
              CHAT("\"seed\":-1,\"temperature\":0.5,\"threshold\":0.8,\"dual_cache\":false"));
    CHECK(p->ok && !p->r.seed_given && p->r.decode.sample.temperature == 0.5f);
    CHECK(p->r.decode.threshold == 0.8f && p->r.decode.cache == CACHE_NONE);
    CHECK_U64(api_decode_params(&p->r, 0, 99).sample.seed, 99);
    done(p);
    p = parse(API_CHAT, CHAT("\"rule\":\"low_confidence\",\"steps\":4,\"cache\":\"masked\""));
    CHECK(p->ok && p->r.decode.rule == RULE_LOW_CONFIDENCE && p->r.decode.steps == 4);
    CHECK(p->r.decode.cache == CACHE_MASKED && p->r.decode.mode == DECODE_ITERATIVE);
    done(p);
    static const struct {
        const char *body;
        i32 cache; /* -1: refused */
    } both[] = {{CHAT("\"dual_cache\":true"), CACHE_DUAL},
                {CHAT("\"dual_cache\":null,\"cache\":\"dual\""), CACHE_DUAL},
                {CHAT("\"dual_cache\":true,\"cache\":\"masked\""), CACHE_MASKED},
                {CHAT("\"cache\":\"masked\",\"dual_cache\":true"), CACHE_MASKED},
                {CHAT("\"cache\":\"none\",\"dual_cache\":false"), CACHE_NONE},
                {CHAT("\"cache\":null,\"dual_cache\":false"), CACHE_NONE},
                {CHAT("\"cache\":\"model\",\"dual_cache\":false"), -1},
                {CHAT("\"dual_cache\":false,\"cache\":\"dual\""), -1},
                {CHAT("\"cache\":\"none\",\"dual_cache\":true"), -1}};
    for (size_t i = 0; i < COUNT_OF(both); i++) {
        p = parse(API_CHAT, both[i].body);
        CHECK_MSG(p->ok == (both[i].cache >= 0), "%s", both[i].body);
        if (p->ok) CHECK_INT(p->r.decode.cache, both[i].cache);
        if (!p->ok) CHECK_CSTR(p->x.param, "dual_cache");
        done(p);
    }
    refused(API_CHAT, CHAT("\"decode_mode\":\"adaptive\",\"rule\":\"entropy\""), "rule",
            "the rule entropy has none");
    accepted(API_CHAT, CHAT("\"decode_mode\":\"adaptive\",\"rule\":\"threshold\""));
    i32 rule = model.decode.rule;
    model.decode.rule = RULE_SEQUENTIAL;
    refused(API_CHAT, CHAT("\"decode_mode\":\"adaptive\""), "decode_mode", "sequential");
    model.decode.rule = rule;
    refused(API_COMPLETIONS, "{\"prompt\":\"x\",\"best_of\":2}", "best_of", "'n'");
    accepted(API_COMPLETIONS, "{\"prompt\":\"x\",\"best_of\":2,\"n\":2}");
    refused(API_COMPLETIONS, "{\"prompt\":\"x\",\"echo\":true,\"logprobs\":0}", "echo", "logprobs");
    refused(API_COMPLETIONS, "{\"prompt\":[\"a\",\"b\",\"c\",\"d\",\"e\"],\"n\":8}", "n", "32");
    refused(API_COMPLETIONS, "{\"prompt\":\"x\",\"suffix\":\"y\"}", "suffix", "full attention");
    refused(API_CHAT, CHAT("\"cfg_scale\":0.5"), "cfg_scale", "here it is block");
    accepted(API_CHAT, CHAT("\"cfg_scale\":0"));
    i32 attention = model.decode.attention;
    model.decode.attention = ATTEND_FULL;
    p = parse(API_COMPLETIONS, "{\"prompt\":\"x\",\"suffix\":\" the end\"}");
    const DecodeParams infill = api_decode_params(&p->r, 0, 1);
    CHECK(p->ok && infill.n_suffix > 0 && infill.suffix == p->r.suffix_ids.p);
    done(p);
    refused(API_COMPLETIONS, "{\"prompt\":\"x\",\"suffix\":\"y\",\"decode_mode\":\"ar\"}", "suffix",
            "full attention");
    p = parse(API_LLAMA, "{\"prompt\":\"x\",\"cfg_scale\":1.5}");
    CHECK(p->ok && p->r.decode.cfg_scale == 1.5f);
    TokIds ids = {0};
    ApiError too_long = {0};
    served.n_ctx =
        4; /* of which guidance leaves two: a token of the prompt, and one of the answer */
    CHECK(api_prompt(&p->r, 0, &served, 0, &ids, &too_long) && ids.n == 1);
    served.n_ctx = 3;
    ids.n = 0;
    CHECK(!api_prompt(&p->r, 0, &served, 0, &ids, &too_long));
    CHECK_CSTR(too_long.code, "context_length_exceeded");
    served.n_ctx = 256;
    tok_ids_free(&ids);
    done(p);
    accepted(API_MESSAGES, CHAT("\"max_tokens\":9,\"cfg_scale\":100"));
    refused(API_CHAT, CHAT("\"cfg_scale\":1,\"decode_mode\":\"ar\""), "cfg_scale",
            "here it is causal");
    model.decode.attention = attention;
    refused(API_LLAMA, "{\"prompt\":\"x\",\"n\":2}", "n", "/v1/completions");
    refused(API_CHAT, "", "", "invalid JSON");
    refused(API_CHAT, "{", "", "invalid JSON");
    refused(API_CHAT, "[]", "", "JSON object");
    refused(API_CHAT, "{\"stream\":true,\"stream\":false}", "", "twice");
    i32 mask = model.decode.mask_id;
    model.decode.mask_id = -1;
    refused(API_CHAT, CHAT("\"n\":1"), "decode_mode", "mask token");
    accepted(API_CHAT, CHAT("\"decode_mode\":\"ar\""));
    model.decode.mask_id = mask;
}

static void test_stops_and_biases(void) {
    Parsed *p =
        parse(API_CHAT, CHAT("\"stop\":[\"a\",\"\\n\"],\"logit_bias\":{\"5\":-100,\"7\":1.5}"));
    CHECK(p->ok && p->r.decode.n_stops == 2 && p->r.decode.n_biases == 2);
    CHECK(p->r.decode.stops == p->r.stops && p->r.decode.biases == p->r.biases);
    CHECK_STR(p->r.stops[1], STR("\n"));
    CHECK(p->r.biases[1].token == 7 && p->r.biases[1].bias == 1.5f);
    done(p);
    accepted(API_CHAT, CHAT("\"stop\":[]"));
    accepted(API_CHAT, CHAT("\"stop\":\"x\",\"logit_bias\":{}"));
    refused(API_CHAT, CHAT("\"stop\":\"\""), "stop", "1 to 1024");
    refused(API_CHAT, CHAT("\"stop\":[1]"), "stop", "string");
    refused(
        API_CHAT,
        CHAT("\"stop\":[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"10\",\"11\",\"12\","
             "\"13\",\"14\",\"15\",\"16\",\"17\"]"),
        "stop", "16");
    refused(API_CHAT, CHAT("\"logit_bias\":{\"5\":101}"), "logit_bias", "-100 to 100");
    refused(API_CHAT, CHAT("\"logit_bias\":{\"1024\":1}"), "logit_bias", "1023");
    refused(API_CHAT, CHAT("\"logit_bias\":{\"-1\":1}"), "logit_bias", "1023");
    refused(API_CHAT, CHAT("\"logit_bias\":{\"99999999999999999999\":1}"), "logit_bias", "1023");
    refused(API_CHAT, CHAT("\"logit_bias\":{\"\":1}"), "logit_bias", "1023");
    refused(API_CHAT, CHAT("\"logit_bias\":[[1]]"), "logit_bias", "pairs");
    refused(API_CHAT, CHAT("\"logit_bias\":7"), "logit_bias", "object");
    p = parse(API_LLAMA, "{\"prompt\":\"x\",\"logit_bias\":[[5,false],[\"the\",-1],[6,2]]}");
    CHECK(p->ok && p->r.decode.n_biases >= 3 && p->r.biases[0].bias < -1e8f);
    CHECK(p->r.biases[p->r.decode.n_biases - 1].token == 6);
    done(p);
}

/* ---- messages and prompts ---- */

static void test_messages(void) {
    Parsed *p = parse(
        API_CHAT, "{\"messages\":[{\"role\":\"developer\",\"content\":\"be \\\"kind\\\"\"},"
                  "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"one\"},"
                  "{\"type\":\"text\",\"text\":\"t\\u0077o\"}],\"name\":\"n\"},"
                  "{\"role\":\"assistant\",\"content\":[{\"type\":\"text\",\"text\":\"alone\"}],"
                  "\"refusal\":null},"
                  "{\"role\":\"tool\",\"content\":[],\"tool_call_id\":\"1\"}]}");
    CHECK_MSG(p->ok && p->r.n_messages == 4 && p->r.n_prompts == 1, "%s", p->x.err.msg);
    CHECK_STR(p->r.messages[0].role, STR("system"));
    CHECK_STR(p->r.messages[0].content, STR("be \"kind\""));
    CHECK_STR(p->r.messages[1].content, STR("one\ntwo"));
    CHECK_STR(p->r.messages[2].content, STR("alone"));
    CHECK_STR(p->r.messages[3].content, STR(""));
    done(p);
    p = parse(API_MESSAGES,
              "{\"messages\":[{\"role\":\"user\",\"content\":\"q\"}],\"max_tokens\":5,"
              "\"system\":[{\"type\":\"text\",\"text\":\"s\",\"cache_control\":{}},"
              "{\"type\":\"text\",\"text\":\"t\"}]}");
    CHECK_MSG(p->ok && p->r.n_messages == 2, "%s", p->x.err.msg);
    CHECK_STR(p->r.messages[0].role, STR("system"));
    CHECK_STR(p->r.messages[0].content, STR("s\nt"));
    done(p);
    refused(API_CHAT, "{}", "messages", "missing");
    refused(API_CHAT, "{\"messages\":null}", "messages", "null");
    refused(API_CHAT, "{\"messages\":[]}", "messages", "one message");
    refused(API_CHAT, "{\"messages\":[1]}", "messages[0]", "an object; it is 1");
    refused(API_CHAT, "{\"messages\":[{\"content\":\"x\"}]}", "messages[0].role", "missing");
    refused(API_CHAT, "{\"messages\":[{\"role\":\"root\",\"content\":\"x\"}]}", "messages[0].role",
            "user");
    refused(API_CHAT, "{\"messages\":[{\"role\":\"user\"}]}", "messages[0].content", "missing");
    refused(API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":null}]}",
            "messages[0].content", "null");
    refused(API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}",
            "messages[0].content[0].type", "text");
    refused(API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}",
            "messages[0].content[0].text", "missing");
    refused(API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[\"x\"]}]}",
            "messages[0].content[0]", "object");
    refused(API_CHAT,
            "{\"messages\":[{\"role\":\"assistant\",\"content\":\"x\",\"tool_calls\":[{}]}]}",
            "messages[0].tool_calls", "name and arguments");
    refused(API_CHAT,
            "{\"messages\":[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[]}]}",
            "messages[0].content", "null");
    refused(API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\",\"mood\":1}]}",
            "messages[0].mood", "unknown");
    refused(API_MESSAGES, "{\"messages\":[{\"role\":\"system\",\"content\":\"x\"}]}",
            "messages[0].role", "\"user\" or");
    refused(API_MESSAGES,
            "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"},"
            "{\"role\":\"assistant\",\"content\":\"y\"}]}",
            "messages", "continue");
    refused(API_MESSAGES, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"system\":7}",
            "system", "string");
}

static void prompt_ids(ApiRoute route, const char *body, TokIds *ids) {
    Parsed *p = parse(route, body);
    CHECK_MSG(p->ok && api_prompt(&p->r, 0, &served, 0, ids, &p->x), "%s: %s", body, p->x.err.msg);
    done(p);
}

static size_t n_special(const TokIds *ids) {
    size_t n = 0;
    for (size_t i = 0; i < ids->n; i++) n += tok_is_special(&tok, ids->p[i]);
    return n;
}

/* Text that spells a special token stays text, whichever way it comes in. */
static void test_trust(void) {
    Buf body = {0};
    TokIds plain = {0}, sly = {0};
    Str eos = tok_text(&tok, tok.eos), mask = tok_text(&tok, model.decode.mask_id);
    prompt_ids(API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", &plain);
    CHECK(n_special(&plain) > 0);
    buf_printf(
        &body,
        "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"%.*s\"},"
        "{\"type\":\"text\",\"text\":\"%.*s\"}]}]}",
        STR_ARG(eos), STR_ARG(mask));
    prompt_ids(API_CHAT, body.p, &sly);
    CHECK_U64(n_special(&sly), n_special(&plain));
    static const ApiRoute raw[] = {API_COMPLETIONS, API_LLAMA};
    for (size_t i = 0; i < COUNT_OF(raw); i++) {
        tok_ids_free(&sly);
        buf_clear(&body);
        buf_printf(&body, "{\"prompt\":\"%.*s%.*s\"}", STR_ARG(eos), STR_ARG(mask));
        prompt_ids(raw[i], body.p, &sly);
        CHECK(sly.n > 2);
        CHECK_U64(n_special(&sly), tok.add_bos ? 1 : 0);
    }
    tok_ids_free(&sly);
    buf_clear(&body);
    buf_printf(&body, "{\"prompt\":[5,\"%.*s\",6]}", STR_ARG(eos));
    prompt_ids(API_LLAMA, body.p, &sly);
    CHECK(sly.n > 3 && sly.p[0] == 5 && sly.p[sly.n - 1] == 6 && n_special(&sly) == 0);
    tok_ids_free(&sly);
    tok_ids_free(&plain);
    buf_free(&body);
}

static void test_prompts(void) {
    TokIds ids = {0};
    prompt_ids(API_COMPLETIONS, "{\"prompt\":[3,1,2]}", &ids);
    CHECK(ids.n == 3 && ids.p[0] == 3 && ids.p[2] == 2);
    Parsed *p = parse(API_COMPLETIONS, "{\"prompt\":[\"a\",\"b\"],\"n\":2}");
    CHECK(p->ok && p->r.n_prompts == 2 && api_n_choices(&p->r) == 4);
    done(p);
    p = parse(API_COMPLETIONS, "{\"prompt\":[[1,2],[3]]}");
    CHECK(p->ok && p->r.n_prompts == 2);
    tok_ids_free(&ids);
    CHECK(api_prompt(&p->r, 1, &served, 0, &ids, &p->x) && ids.n == 1 && ids.p[0] == 3);
    done(p);
    refused(API_COMPLETIONS, "{}", "prompt", "missing");
    refused(API_COMPLETIONS, "{\"prompt\":[]}", "prompt", "array");
    refused(API_COMPLETIONS, "{\"prompt\":[1,\"x\"]}", "prompt", "token id");
    refused(API_COMPLETIONS, "{\"prompt\":[1024]}", "prompt", "1023");
    refused(API_COMPLETIONS, "{\"prompt\":[-1]}", "prompt", "1023");
    refused(API_COMPLETIONS, "{\"prompt\":[[]]}", "prompt", "token ids");
    refused(API_COMPLETIONS, "{\"prompt\":{\"a\":1}}", "prompt", "an object");
    refused(API_LLAMA, "{\"prompt\":[\"a\",\"b\"]}", "prompt", "one at a time");
    accepted(API_LLAMA, "{\"prompt\":[\"a\"]}");
    refused(API_TOKENIZE, "{}", "content", "missing");
    refused(API_DETOKENIZE, "{}", "tokens", "missing");
    refused(API_DETOKENIZE, "{\"tokens\":[5000]}", "tokens", "1023");
    p = parse(API_COMPLETIONS, "{\"prompt\":\"\"}");
    tok_ids_free(&ids);
    CHECK(p->ok && !api_prompt(&p->r, 0, &served, 0, &ids, &p->x) && p->x.status == 400);
    done(p);
    tok_ids_free(&ids);
}

static void test_too_long(void) {
    static const ApiRoute routes[] = {API_CHAT, API_MESSAGES};
    Buf body = {0};
    buf_str(&body, STR("{\"messages\":[{\"role\":\"user\",\"content\":\""));
    for (int i = 0; i < 300; i++) buf_str(&body, STR("1 "));
    buf_str(&body, STR("\"}]}"));
    for (size_t i = 0; i < COUNT_OF(routes); i++) {
        TokIds ids = {0};
        Parsed *p = parse(routes[i], body.p);
        CHECK(p->ok && !api_prompt(&p->r, 0, &served, 0, &ids, &p->x) && p->x.status == 400);
        CHECK(strstr(p->x.err.msg,
                     i ? "prompt is too long" : "maximum context length is 256 tokens"));
        if (i == 0) CHECK_CSTR(p->x.code, "context_length_exceeded");
        if (i == 0) CHECK_CSTR(p->x.param, "messages");
        char n[32];
        snprintf(n, sizeof n, "%zu tokens", ids.n);
        CHECK(strstr(p->x.err.msg, n));
        done(p);
        tok_ids_free(&ids);
    }
    buf_free(&body);
}

/* ---- errors ---- */

static void test_errors(void) {
    ApiError x = {0};
    Buf out = {0};
    api_bad_(&x, "n", "'n' is \"bad\"");
    api_fail(&x, 500, NULL, "dropped: the first one wins");
    api_put_error(&out, API_CHAT, &x, STR("req_1"));
    CHECK_STR(
        buf_view(&out),
        STR("{\"error\":{\"message\":\"'n' is \\\"bad\\\"\",\"type\":\"invalid_request_error\","
            "\"param\":\"n\",\"code\":null}}"));
    buf_clear(&out);
    api_put_error(&out, API_MESSAGES, &x, STR("req_1"));
    CHECK_STR(buf_view(&out),
              STR("{\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\","
                  "\"message\":\"'n' is \\\"bad\\\"\"},\"request_id\":\"req_1\"}"));
    buf_clear(&out);
    x = (ApiError){0};
    api_fail(&x, 429, "rate_limit_exceeded", "full");
    api_put_stream_error(&out, API_CHAT, &x, STR(""));
    CHECK_STR(
        buf_view(&out),
        STR("data: {\"error\":{\"message\":\"full\",\"type\":\"rate_limit_error\",\"param\":null,"
            "\"code\":\"rate_limit_exceeded\"}}\n\n"));
    buf_clear(&out);
    api_put_stream_error(&out, API_MESSAGES, &x, STR(""));
    CHECK(str_starts(buf_view(&out), STR("event: error\ndata: {\"type\":\"error\"")));
    buf_free(&out);
    CHECK_CSTR(api_error_type_(422, false), "invalid_request_error");
    CHECK_CSTR(api_error_type_(502, false), "server_error");
    CHECK_CSTR(api_error_type_(503, true), "overloaded_error");
    Err e = {0};
    err_set(&e, ERR_MEMORY, "none left");
    x = (ApiError){0};
    CHECK(!api_take_err(&x, &e) && x.status == 503);
}

/* ---- replies ---- */

/* An answer that spells text, then ends with eos, a stop string or at its length. */
static DecodeResult result(const char *text, const char *spelled, bool eos, const char *finish) {
    DecodeResult r = {.finish = finish,
                      .n_prompt = 10,
                      .n_cached = 4,
                      .n_forwards_prefill = 1,
                      .n_forwards_denoise = 3,
                      .n_forwards_commit = 1,
                      .ms_prefill = 2,
                      .ms_decode = 10,
                      .ms_first_token = 5};
    buf_str(&r.text, str_of(text));
    ASSERT(tok_encode(&tok, str_of(spelled), NULL, &r.ids, NULL));
    if (eos) tok_ids_push(&r.ids, tok.eos, NULL);
    return r;
}

static const u64 RANDOM[2] = {0x0123456789abcdef, 1};

/* Parses what was written: it must be JSON; then looks up a path of keys and [0]. */
static bool json_has(Str text, const char *path, const char *want) {
    JsonDoc d = {0};
    Err e = {0};
    char got[256] = "(absent)", key[64];
    if (!json_parse(&d, text, &e)) return CHECK_MSG(false, "%s in %.*s", e.msg, STR_ARG(text));
    u32 node = 0;
    while (*path) {
        size_t n = strcspn(path, ".");
        snprintf(key, sizeof key, "%.*s", (int)n, path);
        if (key[0] >= '0' && key[0] <= '9') {
            u32 i = (u32)strtoul(key, NULL, 10), at = json_first(&d, node);
            for (; i > 0 && at != JSON_NONE; i--) at = json_next(&d, at);
            node = at;
        } else
            node = json_get(&d, node, key);
        path += n + (path[n] == '.');
    }
    Str s;
    if (json_str(&d, node, &s) || json_type(&d, node) == JSON_NUMBER)
        snprintf(got, sizeof got, "%.*s", STR_ARG(d.nodes[node].text));
    else if (json_type(&d, node) == JSON_NULL)
        snprintf(got, sizeof got, "null");
    else if (json_type(&d, node) == JSON_BOOL)
        snprintf(got, sizeof got, d.nodes[node].count ? "true" : "false");
    else if (json_type(&d, node) >= JSON_ARRAY)
        snprintf(got, sizeof got, "%u of them", json_count(&d, node));
    json_free(&d);
    return CHECK_MSG(strcmp(got, want) == 0, "got %s, want %s, in %.*s", got, want, STR_ARG(text));
}

static void whole(Buf *out, const Parsed *p, const ApiAnswer *answers) {
    ApiReply a = api_reply(&p->r, &served, 1700000001, RANDOM);
    buf_clear(out);
    api_put_answer(out, &a, answers);
    CHECK(!out->failed);
}

static void test_whole_chat(void) {
    Buf out = {0};
    DecodeResult r[2] = {result("Hi \"x\"\n", "Hi \"x\"\n", true, "stop"),
                         result("abc", "abc", false, "length")};
    ApiAnswer answers[2] = {{.r = &r[0], .ms_queue = 1}, {.r = &r[1]}};
    Parsed *p = parse(API_CHAT, CHAT("\"n\":2"));
    whole(&out, p, answers);
    Str s = buf_view(&out);
    json_has(s, "id", "chatcmpl-0123456789abcdef0000000000000001");
    json_has(s, "object", "chat.completion");
    json_has(s, "created", "1700000001");
    json_has(s, "model", "tiny/dlm");
    json_has(s, "system_fingerprint", "dlm-1.2.3");
    json_has(s, "choices", "2 of them");
    json_has(s, "choices.0.index", "0");
    json_has(s, "choices.0.message.role", "assistant");
    json_has(s, "choices.0.message.content", "Hi \"x\"\n");
    json_has(s, "choices.0.message.refusal", "null");
    json_has(s, "choices.0.logprobs", "null");
    json_has(s, "choices.0.finish_reason", "stop");
    json_has(s, "choices.1.index", "1");
    json_has(s, "choices.1.finish_reason", "length");
    char n[32];
    snprintf(n, sizeof n, "%zu", r[0].ids.n + r[1].ids.n);
    json_has(s, "usage.prompt_tokens", "10");
    json_has(s, "usage.completion_tokens", n);
    json_has(s, "usage.prompt_tokens_details.cached_tokens", "4");
    json_has(s, "timings.forwards.denoise", "6");
    json_has(s, "timings.prompt_n", "6");
    json_has(s, "timings.queue_ms", "1");
    done(p);
    for (int i = 0; i < 2; i++) decode_result_free(&r[i]);
    buf_free(&out);
}

static void test_whole_others(void) {
    Buf out = {0};
    DecodeResult r = result("abc", "abcSTOP", false, "stop");
    ApiAnswer answer = {.r = &r};
    Parsed *p = parse(API_COMPLETIONS, "{\"prompt\":\"say \\\"\",\"echo\":true,\"stop\":\"STOP\"}");
    whole(&out, p, &answer);
    json_has(buf_view(&out), "object", "text_completion");
    json_has(buf_view(&out), "choices.0.text", "say \"abc");
    done(p);
    p = parse(
        API_LLAMA,
        "{\"prompt\":\"2+2=\",\"n_predict\":10,\"stop\":[\"X\",\"STOP\"],\"return_tokens\":true}");
    whole(&out, p, &answer);
    json_has(buf_view(&out), "content", "abc");
    json_has(buf_view(&out), "stop", "true");
    json_has(buf_view(&out), "stop_type", "word");
    json_has(buf_view(&out), "stopping_word", "STOP");
    json_has(buf_view(&out), "prompt", "2+2=");
    json_has(buf_view(&out), "tokens_evaluated", "10");
    json_has(buf_view(&out), "generation_settings.n_predict", "10");
    json_has(buf_view(&out), "generation_settings.block_size", "32");
    json_has(buf_view(&out), "generation_settings.stop", "2 of them");
    json_has(buf_view(&out), "truncated", "false");
    done(p);
    p = parse(
        API_MESSAGES,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"stop_sequences\":[\"STOP\"]}");
    whole(&out, p, &answer);
    json_has(buf_view(&out), "type", "message");
    json_has(buf_view(&out), "id", "msg_0123456789abcdef0000000000000001");
    json_has(buf_view(&out), "content.0.text", "abc");
    json_has(buf_view(&out), "stop_reason", "stop_sequence");
    json_has(buf_view(&out), "stop_sequence", "STOP");
    json_has(buf_view(&out), "usage.input_tokens", "6");
    json_has(buf_view(&out), "usage.cache_read_input_tokens", "4");
    decode_result_free(&r);
    r = result("abc", "abc", true, "stop");
    whole(&out, p, &answer);
    json_has(buf_view(&out), "stop_reason", "end_turn");
    json_has(buf_view(&out), "stop_sequence", "null");
    r.finish = "cancelled";
    whole(&out, p, &answer);
    json_has(buf_view(&out), "stop_reason", "max_tokens");
    done(p);
    decode_result_free(&r);
    buf_free(&out);
}

/* The next event's data; checks that the framing is exact. */
static Str event(Str *rest, const char *name) {
    size_t end = str_find(*rest, STR("\n\n"), 0);
    if (!CHECK_MSG(end != SIZE_MAX, "no event where %s is wanted", name ? name : "one"))
        return (Str){"", 0};
    Str one = str_cut(*rest, 0, end);
    *rest = str_cut(*rest, end + 2, rest->n);
    if (name) {
        char head[64];
        snprintf(head, sizeof head, "event: %s\n", name);
        CHECK_MSG(str_starts(one, str_of(head)), "%.*s is not %s", STR_ARG(one), name);
        one = str_cut(one, strlen(head), one.n);
    }
    CHECK(str_starts(one, STR("data: ")));
    return str_cut(one, 6, one.n);
}

static void stream(Buf *out, const Parsed *p, DecodeResult *r) {
    ApiReply a = api_reply(&p->r, &served, 1700000001, RANDOM);
    ApiAnswer answer = {.r = r};
    const i32 tokens[] = {5, 6, 7, 8};
    const u8 masked[] = {0, 0, 1, 0};
    const f32 probs[] = {1, 0.5f, 0, 0.25f};
    const DecodeReveal reveals[] = {{11, 8, 0.25f}};
    const DecodeStep s = {.kind = "denoise",
                          .block = 0,
                          .step = 2,
                          .n_rows = 8,
                          .ms = 1.5,
                          .reveals = reveals,
                          .n_reveals = 1,
                          .block_begin = 8,
                          .block_end = 12,
                          .tokens = tokens,
                          .masked = masked,
                          .probs = probs,
                          .n_prompt = 9};
    buf_clear(out);
    api_put_stream_begin(out, &a, 0, 10, 4);
    api_put_stream_step(out, &a, 0, &s);
    api_put_stream_text(out, &a, 0, STR("a\"\n"), (Str){0});
    api_put_stream_text(out, &a, 0, STR("bc"), (Str){0});
    api_put_stream_ping(out, p->r.route);
    api_put_stream_finish(out, &a, 0, &answer);
    api_put_stream_end(out, &a, &answer);
    CHECK(!out->failed);
}

static void cells(Str data) {
    json_has(data, "dlm.kind", "denoise");
    json_has(data, "dlm.cells", "3 of them");
    json_has(data, "dlm.cells.0.pos", "0");
    json_has(data, "dlm.cells.0.id", "6");
    json_has(data, "dlm.cells.0.confidence", "0.5");
    json_has(data, "dlm.cells.0.new", "false");
    json_has(data, "dlm.cells.1.revealed", "false");
    json_has(data, "dlm.cells.1.id", "null");
    json_has(data, "dlm.cells.2.new", "true");
}

static void test_stream_chat(void) {
    Buf out = {0};
    DecodeResult r = result("a\"\nbc", "a\"\nbc", true, "stop");
    Parsed *p =
        parse(API_CHAT, CHAT("\"stream\":true,\"stream_options\":{\"include_usage\":true}"));
    stream(&out, p, &r);
    Str rest = buf_view(&out), data = event(&rest, NULL);
    json_has(data, "object", "chat.completion.chunk");
    json_has(data, "id", "chatcmpl-0123456789abcdef0000000000000001");
    json_has(data, "choices.0.delta.role", "assistant");
    json_has(data, "choices.0.delta.content", "");
    json_has(data, "choices.0.finish_reason", "null");
    json_has(data, "usage", "null");
    data = event(&rest, NULL);
    json_has(data, "choices.0.delta", "0 of them");
    cells(data);
    data = event(&rest, NULL);
    json_has(data, "choices.0.delta", "1 of them");
    json_has(data, "choices.0.delta.content", "a\"\n");
    json_has(data, "choices.0.finish_reason", "null");
    json_has(data, "choices.0.logprobs", "null");
    event(&rest, NULL);
    CHECK(str_starts(rest, STR(": ping\n\n")));
    rest = str_cut(rest, 8, rest.n);
    data = event(&rest, NULL);
    json_has(data, "choices.0.delta", "0 of them");
    json_has(data, "choices.0.finish_reason", "stop");
    json_has(data, "usage", "null");
    data = event(&rest, NULL);
    json_has(data, "choices", "0 of them");
    json_has(data, "usage.prompt_tokens", "10");
    CHECK_STR(rest, STR("data: [DONE]\n\n"));
    done(p);
    p = parse(API_COMPLETIONS, "{\"prompt\":\"say: \",\"stream\":true,\"echo\":true}");
    stream(&out, p, &r);
    rest = buf_view(&out), data = event(&rest, NULL);
    json_has(data, "object", "text_completion");
    json_has(data, "choices.0.text", "say: ");
    json_has(data, "usage", "(absent)");
    json_has(event(&rest, NULL), "choices.0.text", "");
    json_has(event(&rest, NULL), "choices.0.text", "a\"\n");
    CHECK(str_ends(rest, STR("data: [DONE]\n\n")));
    done(p);
    decode_result_free(&r);
    buf_free(&out);
}

/* ---- tools ---- */

#define TOOL "{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{}}}"
#define CALL "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>"

static void test_tool_requests(void) {
    const Str before = served.chat_template;
    refused(API_CHAT, CHAT("\"tools\":[" TOOL "]"), "tools", "template");
    served.chat_template = STR(
        "{%- for t in tools or [] %}[{{ t.function.name }}]{% endfor %}{% for m in messages %}"
        "{{ m.role }}:{{ m.content if m.content is string else 'nothing' }}"
        "{% for c in m.tool_calls %}!{{ c.function.name }}({{ c.function.arguments.a }}){% endfor %}"
        "{{ m.tool_call_id }};{% endfor %}");
    refused(API_CHAT, CHAT("\"tools\":[{\"type\":\"function\"}]"), "tools", "with names");
    refused(API_CHAT, CHAT("\"tools\":[{\"type\":\"web\",\"function\":{\"name\":\"f\"}}]"), "tools",
            "functions");
    refused(API_CHAT, CHAT("\"tools\":" TOOL), "tools", "an array");
    refused(API_CHAT, CHAT("\"tools\":[" TOOL "],\"tool_choice\":\"required\""), "tool_choice",
            "cannot make");
    refused(API_MESSAGES, CHAT("\"tools\":[" TOOL "]"), "tools", "not supported");
    static const struct {
        const char *body, *prompt;
    } cases[] = {
        {CHAT("\"tools\":[" TOOL "]"), "[f]user:x;"},
        {CHAT("\"tools\":[" TOOL "," TOOL "],\"tool_choice\":\"auto\""), "[f][f]user:x;"},
        {CHAT("\"tools\":[" TOOL "],\"tool_choice\":\"none\""), "user:x;"},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"c\","
         "\"type\":\"function\",\"function\":{\"name\":\"f\",\"arguments\":\"{\\\"a\\\":7}\"}}]},"
         "{\"role\":\"tool\",\"content\":\"42\",\"tool_call_id\":\"c\"}]}",
         "assistant:nothing!f(7);tool:42c;"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Parsed *p = parse(API_CHAT, cases[i].body);
        TmplOut text = {0};
        CHECK_MSG(p->ok && api_render_(&p->r, &served, 0, &text, &p->x), "%zu: %s", i,
                  p->x.err.msg);
        CHECK_STR(buf_view(&text.text), str_of(cases[i].prompt));
        tmpl_out_free(&text);
        done(p);
    }
    served.chat_template = before;
}

/* Variables for the template: those of its own hold before them, and what is no object is refused. */
static void test_template_vars(void) {
    const Str before = served.chat_template;
    served.chat_template =
        STR("{{ think }}{{ bos_token }}{{ messages[0].content }}{{ tools is none }}");
    static const ApiRoute routes[] = {API_CHAT, API_TEMPLATE};
    for (size_t i = 0; i < COUNT_OF(routes); i++) {
        Parsed *p = parse(routes[i], CHAT("\"chat_template_kwargs\":{\"think\":[1,{\"a\":null}],"
                                          "\"messages\":1,\"bos_token\":\"!\",\"tools\":[]}"));
        TmplOut text = {0};
        Buf want = {0};
        buf_printf(&want, "[1, {'a': None}]%.*sxTrue", STR_ARG(tok_text(&tok, tok.bos)));
        CHECK_MSG(p->ok && api_render_(&p->r, &served, 0, &text, &p->x), "%s", p->x.err.msg);
        CHECK_STR(buf_view(&text.text), buf_view(&want));
        buf_free(&want);
        tmpl_out_free(&text);
        done(p);
    }
    Buf many = {0};
    buf_str(&many, STR("{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],"
                       "\"chat_template_kwargs\":{\"v\":0"));
    for (u32 i = 0; i < API_TEMPLATE_VARS_MAX; i++) buf_printf(&many, ",\"v%u\":0", i);
    buf_str(&many, STR("}}"));
    refused(API_CHAT, many.p, "chat_template_kwargs", "at most 32");
    refused(API_CHAT, CHAT("\"chat_template_kwargs\":[]"), "chat_template_kwargs", "an object");
    buf_free(&many);
    served.chat_template = before;
}

static void test_tool_answers(void) {
    const Str before = served.chat_template;
    const char *answer = "So.\n" CALL "\n" CALL;
    DecodeResult r = result(answer, answer, true, "stop");
    ApiAnswer one = {.r = &r};
    Buf out = {0};
    served.chat_template = STR("{{ tools }}");
    Parsed *p = parse(API_CHAT, CHAT("\"tools\":[" TOOL "]"));
    whole(&out, p, &one);
    json_has(buf_view(&out), "choices.0.message.content", "So.");
    json_has(buf_view(&out), "choices.0.message.tool_calls", "2 of them");
    json_has(buf_view(&out), "choices.0.message.tool_calls.1.id", "call_0123456789abcdef_0_1");
    json_has(buf_view(&out), "choices.0.message.tool_calls.1.function.name", "f");
    json_has(buf_view(&out), "choices.0.message.tool_calls.1.function.arguments", "{\"a\": 1}");
    json_has(buf_view(&out), "choices.0.finish_reason", "tool_calls");
    done(p);
    p = parse(API_CHAT, CHAT("\"tools\":[" TOOL "],\"parallel_tool_calls\":false"));
    whole(&out, p, &one);
    json_has(buf_view(&out), "choices.0.message.tool_calls", "1 of them");
    done(p);
    p = parse(API_CHAT, CHAT("\"n\":1")); /* who gave no tools gets what was written */
    whole(&out, p, &one);
    json_has(buf_view(&out), "choices.0.message.content", answer);
    json_has(buf_view(&out), "choices.0.finish_reason", "stop");
    done(p);
    buf_free(&out);
    decode_result_free(&r);
    served.chat_template = before;
}

/* A stream in pieces of every length: its text, its calls and its end are those of the whole answer. */
static void test_tool_streams(void) {
    static const struct {
        const char *answer, *text, *finish;
        i32 n;
    } cases[] = {{"So.\n" CALL, "So.", "tool_calls", 1},
                 {"\n \n" CALL, "", "tool_calls", 1},
                 {"So. \n\n", "So. \n\n", "stop", 0},
                 {CALL "\n" CALL, "", "tool_calls", 2},
                 {"a <tool_call> b", "a <tool_call> b", "stop", 0},
                 {"a <tool", "a <tool", "stop", 0}};
    const Str before = served.chat_template;
    served.chat_template = STR("{{ tools }}");
    Parsed *p = parse(API_CHAT, CHAT("\"tools\":[" TOOL "],\"stream\":true"));
    ApiReply a = api_reply(&p->r, &served, 1700000001, RANDOM);
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        for (size_t step = 1; step < 20; step++) {
            Buf out = {0}, text = {0};
            ApiHeld held = {0};
            Str whole_text = str_of(cases[i].answer);
            DecodeResult r = result(cases[i].answer, cases[i].answer, true, "stop");
            for (size_t at = 0; at < whole_text.n; at += step) {
                Str now = api_release(&held, &a, str_cut(whole_text, at, at + step));
                buf_str(&text, now);
            }
            const ApiAnswer answer = {.r = &r, .n_sent = held.n_sent};
            CHECK(held.n_sent == text.n);
            api_put_stream_finish(&out, &a, 0, &answer);
            Str rest = buf_view(&out), data = event(&rest, NULL);
            if (str_find(data, STR("\"content\""), 0) != SIZE_MAX) {
                buf_str(&text, str_cut(whole_text, held.n_sent, strlen(cases[i].text)));
                data = event(&rest, NULL);
            }
            CHECK_STR(buf_view(&text), str_of(cases[i].text));
            if (cases[i].n) {
                json_has(data, "choices.0.delta.tool_calls",
                         cases[i].n == 1 ? "1 of them" : "2 of them");
                json_has(data, "choices.0.delta.tool_calls.0.index", "0");
                json_has(data, "choices.0.finish_reason", "null");
                data = event(&rest, NULL);
            }
            json_has(data, "choices.0.finish_reason", cases[i].finish);
            CHECK_U64(rest.n, 0);
            decode_result_free(&r);
            buf_free(&held.text);
            buf_free(&text);
            buf_free(&out);
        }
    done(p);
    served.chat_template = before;
}

static void test_stream_others(void) {
    Buf out = {0};
    DecodeResult r = result("a\"\nbc", "a\"\nbc", true, "stop");
    Parsed *p = parse(API_MESSAGES,
                      "{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"stream\":true}");
    stream(&out, p, &r);
    Str rest = buf_view(&out), data = event(&rest, "message_start");
    json_has(data, "message.content", "0 of them");
    json_has(data, "message.stop_reason", "null");
    json_has(data, "message.usage.input_tokens", "6");
    json_has(event(&rest, "content_block_start"), "content_block.text", "");
    data = event(&rest, "dlm");
    cells(data);
    json_has(event(&rest, "content_block_delta"), "delta.text", "a\"\n");
    json_has(event(&rest, "content_block_delta"), "delta.type", "text_delta");
    json_has(event(&rest, "ping"), "type", "ping");
    json_has(event(&rest, "content_block_stop"), "index", "0");
    data = event(&rest, "message_delta");
    json_has(data, "delta.stop_reason", "end_turn");
    json_has(data, "usage.output_tokens", r.ids.n == 6 ? "6" : r.ids.n == 5 ? "5" : "4");
    json_has(event(&rest, "message_stop"), "type", "message_stop");
    CHECK_U64(rest.n, 0);
    done(p);
    p = parse(API_LLAMA, "{\"prompt\":\"x\",\"stream\":true}");
    stream(&out, p, &r);
    rest = buf_view(&out);
    cells(event(&rest, NULL));
    data = event(&rest, NULL);
    json_has(data, "content", "a\"\n");
    json_has(data, "stop", "false");
    event(&rest, NULL);
    rest = str_cut(rest, 8, rest.n);
    data = event(&rest, NULL);
    json_has(data, "content", "");
    json_has(data, "stop", "true");
    json_has(data, "stop_type", "eos");
    CHECK_U64(rest.n, 0);
    done(p);
    decode_result_free(&r);
    buf_free(&out);
}

static void test_logprobs(void) {
    for (f64 p = 1; p > 1e-30;
         p *= 0.37) { /* against the series of ln itself: ln(p) = -ln(1/p) by halves */
        f64 x = api_ln_(p), half = api_ln_(p * 0.5);
        CHECK_NEAR(x - half, 0.69314718055994531, 1e-12);
    }
    CHECK_NEAR(api_ln_(0.1), -2.302585092994046, 1e-12);
    CHECK_NEAR(api_ln_(1), 0, 1e-15);
    const DecodeTop top[] = {{5, 0.5f}, {6, 0.25f}, {5, 0.1f}};
    const DecodeToken t = {.index = 0, .token = 5, .prob = 0.5f, .top = top, .n_top = 3};
    const DecodeToken never = {.index = 1, .token = 6, .prob = 0};
    static const ApiRoute routes[] = {API_CHAT, API_COMPLETIONS, API_LLAMA};
    static const char *const bodies[] = {CHAT("\"logprobs\":true"),
                                         "{\"prompt\":\"x\",\"logprobs\":3}",
                                         "{\"prompt\":\"x\",\"n_probs\":3}"};
    for (size_t i = 0; i < COUNT_OF(routes); i++) {
        Buf out = {0};
        ApiLogprobs l = {0};
        Parsed *p = parse(routes[i], bodies[i]);
        ApiReply a = api_reply(&p->r, &served, 0, RANDOM);
        CHECK_MSG(p->ok && p->r.logprobs, "%s", p->x.err.msg);
        api_logprobs_add(&l, &a, &t);
        api_logprobs_add(&l, &a, &never);
        api_put_logprobs(&out, &a, &l);
        if (i == 0) {
            json_has(buf_view(&out), "content", "2 of them");
            json_has(buf_view(&out), "refusal", "null");
            json_has(buf_view(&out), "content.0.top_logprobs", "3 of them");
            json_has(buf_view(&out), "content.1.logprob", "-9999");
        } else if (i == 1) {
            json_has(buf_view(&out), "tokens", "2 of them");
            json_has(buf_view(&out), "token_logprobs.1", "-9999");
            json_has(buf_view(&out), "top_logprobs.0", "2 of them"); /* the twin is left out */
            json_has(buf_view(&out), "text_offset.0", "0");
        } else {
            json_has(buf_view(&out), "0.id", "5");
            json_has(buf_view(&out), "0.top_logprobs.1.id", "6");
        }
        api_logprobs_clear(&l);
        buf_clear(&out);
        api_put_logprobs(&out, &a, &l);
        json_has(buf_view(&out), i == 0 ? "content" : i == 1 ? "tokens" : "", "0 of them");
        api_logprobs_free(&l);
        done(p);
        buf_free(&out);
    }
}

/* Lists that are one longer than their limit. */
static void too_many(ApiRoute route, const char *before, const char *item, u32 n, const char *after,
                     const char *param) {
    Buf body = {0};
    buf_str(&body, str_of(before));
    for (u32 i = 0; i < n; i++) buf_printf(&body, "%s%s", i ? "," : "", item);
    buf_str(&body, str_of(after));
    refused(route, body.p, param, "");
    buf_free(&body);
}

static void test_limits(void) {
    too_many(API_CHAT, "{\"messages\":[", "{\"role\":\"user\",\"content\":\"\"}",
             API_MESSAGES_MAX + 1, "]}", "messages");
    too_many(API_COMPLETIONS, "{\"prompt\":[", "\"x\"", API_CHOICES_MAX + 1, "]}", "prompt");
    too_many(API_LLAMA, "{\"prompt\":\"x\",\"logit_bias\":[", "[5,1]", API_BIASES_MAX + 1, "]}",
             "logit_bias");
    too_many(API_DETOKENIZE, "{\"tokens\":[", "1", API_NODES_MAX, "]}", "");
}

static void test_llama_extras(void) {
    Buf out = {0};
    DecodeResult r = result("abc", "abc", true, "stop");
    const ApiAnswer answer = {.r = &r, .logprobs = STR("[{}]")};
    Parsed *p = parse(API_LLAMA, "{\"prompt\":[5,\"7\"],\"n_probs\":1}");
    ApiReply a = api_reply(&p->r, &served, 0, RANDOM);
    whole(&out, p, &answer);
    json_has(buf_view(&out), "prompt", "&7");
    json_has(buf_view(&out), "completion_probabilities", "1 of them");
    buf_clear(&out);
    api_put_stream_text(&out, &a, 0, STR("x"), STR("[{}]"));
    Str rest = buf_view(&out);
    json_has(event(&rest, NULL), "completion_probabilities", "1 of them");
    done(p);
    decode_result_free(&r);
    buf_free(&out);
}

/* ---- the rest ---- */

static void text_answer(ApiRoute route, const char *body, const char *path, const char *want) {
    Buf out = {0};
    Parsed *p = parse(route, body);
    CHECK_MSG(p->ok && api_put_text_answer(&out, &p->r, &served, 0, &p->x), "%s: %s", body,
              p->x.err.msg);
    json_has(buf_view(&out), path, want);
    done(p);
    buf_free(&out);
}

static void test_text_answers(void) {
    Buf body = {0};
    TokIds ids = {0};
    char id[16], piece[16];
    CHECK(tok_encode(&tok, STR("7"), NULL, &ids, NULL) && ids.n == 1);
    snprintf(id, sizeof id, "%d", ids.p[0]);
    tok_ids_free(&ids);
    text_answer(API_TOKENIZE, "{\"content\":\"7\"}", "tokens.0", id);
    text_answer(API_TOKENIZE, "{\"content\":\"7\",\"with_pieces\":true}", "tokens.0.piece", "7");
    text_answer(API_TOKENIZE, "{\"content\":\"\",\"with_pieces\":true}", "tokens", "0 of them");
    text_answer(API_TOKENIZE, "{\"content\":\"\",\"add_special\":true}", "tokens",
                tok.add_bos + tok.add_eos ? "1 of them" : "0 of them");
    i32 byte = tok_find(&tok, STR("\xc3\x83")); /* how the vocabulary spells the byte 0xC3 */
    CHECK(byte >= 0);
    text_answer(API_TOKENIZE, "{\"content\":\"\\u00c3\",\"with_pieces\":true}", "tokens.0.piece.0",
                "195");
    snprintf(piece, sizeof piece, "%d", tok.eos);
    buf_printf(&body, "{\"content\":\"%.*s\",\"parse_special\":true}",
               STR_ARG(tok_text(&tok, tok.eos)));
    text_answer(API_TOKENIZE, body.p, "tokens.0", piece);
    text_answer(API_TOKENIZE, body.p, "tokens", "1 of them");
    buf_clear(&body);
    buf_printf(&body, "{\"tokens\":[%s]}", id);
    text_answer(API_DETOKENIZE, body.p, "content", "7");
    text_answer(API_DETOKENIZE, "{\"tokens\":[]}", "content", "");
    buf_free(&body);
    Parsed *p = parse(API_COUNT_TOKENS,
                      "{\"model\":\"x\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}");
    TokIds prompt = {0};
    CHECK(p->ok && api_prompt(&p->r, 0, &served, 0, &prompt, &p->x));
    snprintf(id, sizeof id, "%zu", prompt.n);
    text_answer(API_COUNT_TOKENS,
                "{\"model\":\"x\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}",
                "input_tokens", id);
    tok_ids_free(&prompt);
    done(p);
    Buf out = {0};
    p = parse(API_TEMPLATE, "{\"messages\":[{\"role\":\"user\",\"content\":\"needle\"}]}");
    CHECK(p->ok && api_put_text_answer(&out, &p->r, &served, 0, &p->x) && strstr(out.p, "needle"));
    ApiModel bare = served;
    bare.chat_template = (Str){"", 0};
    CHECK(!api_put_text_answer(&out, &p->r, &bare, 0, &p->x) && p->x.status == 400);
    done(p);
    buf_free(&out);
}

static void test_models(void) {
    Buf out = {0};
    ApiError x = {0};
    api_put_models(&out, &served);
    json_has(buf_view(&out), "object", "list");
    json_has(buf_view(&out), "data.0.id", "tiny/dlm");
    json_has(buf_view(&out), "data.0.object", "model");
    json_has(buf_view(&out), "data.0.meta.n_vocab", "1024");
    buf_clear(&out);
    CHECK(api_put_one_model(&out, &served, STR("tiny%2Fdlm"), &x));
    json_has(buf_view(&out), "owned_by", "dlm");
    CHECK(!api_put_one_model(&out, &served, STR("gpt%zz"), &x) && x.status == 404);
    CHECK_CSTR(x.code, "model_not_found");
    buf_clear(&out);
    api_put_props(&out, &served);
    json_has(buf_view(&out), "total_slots", "4");
    json_has(buf_view(&out), "default_generation_settings.n_ctx", "256");
    json_has(buf_view(&out), "default_generation_settings.params.decode_mode", "iterative");
    json_has(buf_view(&out), "default_generation_settings.params.rule", "threshold");
    json_has(buf_view(&out), "default_generation_settings.params.steps", "0");
    json_has(buf_view(&out), "default_generation_settings.params.cache", "dual");
    json_has(buf_view(&out), "diffusion.modes", "5 of them");
    json_has(buf_view(&out), "diffusion.block_size", "32");
    buf_clear(&out);
    api_put_health(&out);
    CHECK_STR(buf_view(&out), STR("{\"status\":\"ok\"}"));
    buf_free(&out);
}

static void test_metrics(void) {
    static ApiMetrics m;
    Buf out = {0};
    DecodeResult r = result("abc", "abc", true, "stop");
    const ApiAnswer answer = {.r = &r, .ms_queue = 3};
    const ApiGauges g = {.n_slots = 4,
                         .n_busy = 1,
                         .rss_bytes = 1 << 20,
                         .start_unix = 1.5e9,
                         .cpu_level = STR("ref")};
    api_count_answer(&m, &answer);
    api_count_request(&m, API_CHAT, 200, 700);
    api_count_request(&m, API_CHAT, 200, 1e9);
    api_count_request(&m, API_NONE, 418, 1);
    api_count_connection(&m);
    api_put_metrics(&out, &m, &g, &served);
    static const char *const wants[] = {
        "dlm_build_info{version=\"1.2.3\",cpu=\"ref\",model=\"tiny/dlm\"} 1\n",
        "\ndlm_http_requests_total{route=\"/v1/chat/completions\",code=\"200\"} 2\n",
        "\ndlm_http_requests_total{route=\"other\",code=\"other\"} 1\n",
        "\n# TYPE dlm_request_duration_seconds histogram\n",
        "\ndlm_request_duration_seconds_bucket{le=\"0.5\"} 0\n",
        "\ndlm_request_duration_seconds_bucket{le=\"1\"} 1\n",
        "\ndlm_request_duration_seconds_bucket{le=\"+Inf\"} 2\n",
        "\ndlm_request_duration_seconds_sum 1000000.7\n",
        "\ndlm_request_duration_seconds_count 2\n",
        "\ndlm_time_to_first_token_seconds_bucket{le=\"0.01\"} 1\n",
        "\ndlm_answers_total{finish=\"stop\"} 1\n",
        "\ndlm_forwards_total{kind=\"denoise\"} 3\n",
        "\ndlm_prompt_tokens_total 10\n",
        "\ndlm_cached_prompt_tokens_total 4\n",
        "\ndlm_tokens_per_forward ",
        "\nprocess_resident_memory_bytes 1048576\n",
    };
    for (size_t i = 0; i < COUNT_OF(wants); i++)
        CHECK_MSG(strstr(out.p, wants[i]), "missing: %s", wants[i]);
    decode_result_free(&r);
    buf_free(&out);
}

/* ---- refused memory ---- */

static bool everything(void *arg, Err *e) {
    static const Str body =
        STR("{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"one\"},"
            "{\"type\":\"text\",\"text\":\"tw\\no\"}]}],\"logit_bias\":{\"5\":1}}");
    ApiRequest r;
    ApiError x = {0};
    TokIds ids = {0};
    Buf out = {0};
    DecodeResult *answer = arg;
    bool ok = api_parse(&r, API_CHAT, body, &served, &x) && api_prompt(&r, 0, &served, 0, &ids, &x);
    if (ok) {
        ApiReply a = api_reply(&r, &served, 0, RANDOM);
        ApiLogprobs l = {0};
        const DecodeToken t = {.token = 5, .prob = 0.5f};
        api_logprobs_add(&l, &a, &t);
        api_put_logprobs(&out, &a, &l);
        const ApiAnswer one = {.r = answer};
        api_put_answer(&out, &a, &one);
        api_put_stream_begin(&out, &a, 0, 1, 0);
        api_put_stream_text(&out, &a, 0, STR("x"), (Str){0});
        api_put_stream_finish(&out, &a, 0, &one);
        api_put_stream_end(&out, &a, &one);
        api_logprobs_free(&l);
        ok = buf_ok(&out, "the reply", e);
    } else {
        err_set(e, x.status == 503 ? ERR_MEMORY : ERR_RUNTIME, "%s", x.err.msg);
    }
    api_request_free(&r);
    tok_ids_free(&ids);
    buf_free(&out);
    return ok;
}

static void test_memory(void) {
    DecodeResult r = result("abc", "abc", true, "stop");
    CHECK(test_alloc_failures(everything, &r) > 10);
    decode_result_free(&r);
}

int main(void) {
    open_model();
    test_routes();
    test_table();
    test_names();
    test_together();
    test_stops_and_biases();
    test_messages();
    test_trust();
    test_prompts();
    test_too_long();
    test_errors();
    test_whole_chat();
    test_whole_others();
    test_stream_chat();
    test_stream_others();
    test_tool_requests();
    test_template_vars();
    test_tool_answers();
    test_tool_streams();
    test_logprobs();
    test_limits();
    test_llama_extras();
    test_text_answers();
    test_models();
    test_metrics();
    test_memory();
    tok_close(&tok);
    gguf_close(&gguf);
    return test_end();
}

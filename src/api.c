/* api.c - the shapes of HTTP APIs: requests in, replies, stream events, errors and metrics out.
 *
 * Owns:      what an ApiRequest holds (parsed body, messages, biases), and an ApiLogprobs.
 * Stands on: base mem gguf json http tok tmpl calls model decode
 * Promises:  bytes in, bytes out: no sockets, threads or clocks; one table says what every field
 *            may be; what changes the meaning of a request and is not understood is refused by
 *            name; text that a client sent never becomes a special token of a prompt.
 *
 * Three dialects: OpenAI's, llama.cpp's own and Anthropic's. The way of a request:
 *
 *     api_find_route   method and path to a route
 *     api_parse        the body to an ApiRequest; everything is checked here
 *     api_prompt       one of its prompts as token ids
 *     api_put_answer   the body that answers it when all its choices are complete; or, as a stream,
 *                      api_put_stream_begin, _text and _finish for each choice, _step for the
 *                      provisional states where they are wanted, and _end */
#ifndef DLM_API_C
#define DLM_API_C

#include "base.c"
#include "calls.c"
#include "decode.c"
#include "gguf.c"
#include "http.c"
#include "json.c"
#include "mem.c"
#include "model.c"
#include "tmpl.c"
#include "tok.c"

#include <stdatomic.h>

#define API_TEMPLATE_VARS_MAX 32u
#define API_NODES_MAX ((u32)1 << 18) /* JSON values of one body: 8 MiB of nodes */
#define API_MESSAGES_MAX 4096u
#define API_CHOICES_MAX 32 /* prompts times n of one request */
#define API_N_MAX 8
#define API_STOP_MAX ((size_t)1024) /* bytes of one stop string */
#define API_BIASES_MAX 1024
#define API_PATH_MAX 64 /* bytes of the name of a field in an error */
#define API_REPLY_MAX ((size_t)256 << 20)

/* ---- routes ---- */

typedef enum {
    API_NONE, /* no such place */
    API_CHAT,
    API_COMPLETIONS,
    API_LLAMA,
    API_MESSAGES,
    API_COUNT_TOKENS,
    API_TOKENIZE,
    API_DETOKENIZE,
    API_TEMPLATE,
    API_MODELS,
    API_MODEL,
    API_HEALTH,
    API_LIVE,
    API_READY,
    API_METRICS,
    API_PROPS,
    API_PAGE,
    API_ROUTES
} ApiRoute;

/* The first path of a route is also its name in metrics and logs. */
static const struct {
    const char *method, *path;
    ApiRoute route;
} API_PATHS[] = {
    {"POST", "/v1/chat/completions", API_CHAT},
    {"POST", "/chat/completions", API_CHAT},
    {"POST", "/v1/completions", API_COMPLETIONS},
    {"POST", "/completion", API_LLAMA},
    {"POST", "/completions", API_LLAMA},
    {"POST", "/v1/messages", API_MESSAGES},
    {"POST", "/v1/messages/count_tokens", API_COUNT_TOKENS},
    {"POST", "/tokenize", API_TOKENIZE},
    {"POST", "/detokenize", API_DETOKENIZE},
    {"POST", "/apply-template", API_TEMPLATE},
    {"GET", "/v1/models", API_MODELS},
    {"GET", "/models", API_MODELS},
    {"GET", "/v1/models/", API_MODEL}, /* and an id behind it */
    {"GET", "/health", API_HEALTH},
    {"GET", "/v1/health", API_HEALTH},
    {"GET", "/livez", API_LIVE},
    {"GET", "/readyz", API_READY},
    {"GET", "/metrics", API_METRICS},
    {"GET", "/props", API_PROPS},
    {"GET", "/", API_PAGE},
};

static const char *api_route_name(ApiRoute route) {
    for (size_t i = 0; i < COUNT_OF(API_PATHS); i++)
        if (API_PATHS[i].route == route) return API_PATHS[i].path;
    return "other";
}

/* Probes ask without a key; the page holds no secret, and what it calls asks for one. */
static bool api_is_public(ApiRoute route) {
    return route == API_HEALTH || route == API_LIVE || route == API_READY || route == API_PAGE;
}

/* Does this route generate, so that the request belongs in the queue? */
static bool api_generates(ApiRoute route) {
    return route == API_CHAT || route == API_COMPLETIONS || route == API_LLAMA ||
           route == API_MESSAGES;
}

static bool api_is_anthropic_(ApiRoute route) {
    return route == API_MESSAGES || route == API_COUNT_TOKENS;
}

/* ---- errors ---- */

typedef struct {
    i32 status;               /* of HTTP; 0: none */
    const char *code;         /* what a program may look at, or NULL */
    char param[API_PATH_MAX]; /* the field at fault, as "messages[0].role"; empty: none */
    Err err;                  /* its message */
} ApiError;

/* What the SDKs turn into exceptions: by status, and by these words. */
static const struct {
    i32 status;
    const char *openai, *anthropic;
} API_ERROR_TYPES[] = {
    {400, "invalid_request_error", "invalid_request_error"},
    {401, "authentication_error", "authentication_error"},
    {403, "permission_error", "permission_error"},
    {404, "not_found_error", "not_found_error"},
    {408, "timeout_error", "timeout_error"},
    {413, "invalid_request_error", "request_too_large"},
    {429, "rate_limit_error", "rate_limit_error"},
    {501, "not_supported_error", "api_error"},
    {503, "unavailable_error", "overloaded_error"},
    {504, "timeout_error", "timeout_error"},
};

static const char *api_error_type_(i32 status, bool anthropic) {
    for (size_t i = 0; i < COUNT_OF(API_ERROR_TYPES); i++)
        if (API_ERROR_TYPES[i].status == status)
            return anthropic ? API_ERROR_TYPES[i].anthropic : API_ERROR_TYPES[i].openai;
    if (status < 500) return "invalid_request_error";
    return anthropic ? "api_error" : "server_error";
}

/* Records an error and returns false; the first one wins. code may be NULL. */
PRINTF_LIKE(4, 5)
static bool api_fail(ApiError *x, i32 status, const char *code, const char *fmt, ...) {
    if (x->status) return false;
    char text[ERR_MSG_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    x->status = status;
    x->code = code;
    err_clear(&x->err);
    return err_set(&x->err, status < 500 ? ERR_USAGE : ERR_RUNTIME, "%s", text);
}

/* The same for a fault of one field of the request: a 400 that names it. */
PRINTF_LIKE(3, 4)
static bool api_bad_(ApiError *x, const char *param, const char *fmt, ...) {
    if (x->status) return false;
    char text[ERR_MSG_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    snprintf(x->param, sizeof x->param, "%s", param);
    return api_fail(x, 400, NULL, "%s", text);
}

/* Makes an error of another room an answer: what the request asked for is a 400, memory that is
 * not there now a 503, all else our own 500. */
static bool api_take_err(ApiError *x, const Err *e) {
    i32 status = e->code == ERR_USAGE ? 400 : e->code == ERR_MEMORY ? 503 : 500;
    if (x->status) return false;
    api_fail(x, status, NULL, "%s", e->msg);
    return false;
}

static void api_put_or_null_(Buf *out, const char *before, const char *z) {
    buf_printf(out, "%s", before);
    if (z && *z)
        json_put_str(out, str_of(z));
    else
        buf_str(out, STR("null"));
}

static void api_put_text_(Buf *out, const char *before, Str s) {
    buf_str(out, str_of(before));
    json_put_str(out, s);
}

static void api_put_real_(Buf *out, const char *before, f64 v) {
    buf_str(out, str_of(before));
    json_put_f64(out, v);
}

/* A time or a rate >= 0, to the sixth digit behind the point: what a clock knows. */
static void api_put_time_(Buf *out, const char *before, f64 v) {
    if (!(v >= 1e-6 && v < 1e12)) {
        api_put_real_(out, before, v);
        return;
    }
    unsigned long long n = (unsigned long long)(v * 1e6 + 0.5), unit = 1000000; /* v is n / unit */
    int digits = 6;
    for (; digits > 0 && n % 10 == 0; digits--) n /= 10, unit /= 10;
    buf_printf(out, "%s%llu", before, n / unit);
    if (digits) buf_printf(out, ".%0*llu", digits, n % unit);
}

/* The body of an error. request_id: the x-request-id of the answer. */
static void api_put_error(Buf *out, ApiRoute route, const ApiError *x, Str request_id) {
    bool anthropic = api_is_anthropic_(route);
    Str type = str_of(api_error_type_(x->status, anthropic));
    if (anthropic) {
        api_put_text_(out, "{\"type\":\"error\",\"error\":{\"type\":", type);
        api_put_text_(out, ",\"message\":", str_of(x->err.msg));
        api_put_text_(out, "},\"request_id\":", request_id);
        buf_char(out, '}');
        return;
    }
    api_put_text_(out, "{\"error\":{\"message\":", str_of(x->err.msg));
    api_put_text_(out, ",\"type\":", type);
    api_put_or_null_(out, ",\"param\":", x->param);
    api_put_or_null_(out, ",\"code\":", x->code);
    buf_str(out, STR("}}"));
}

/* Finds the route of a request. path: of the target, without its query; HEAD is as good as GET.
 * *id receives what follows "/v1/models/", still escaped. False, with a 404 or 405, when there
 * is none. */
static bool api_find_route(Str method, Str path, ApiRoute *route, Str *id, ApiError *x) {
    const char *allowed = NULL;
    bool get = str_eq(method, STR("GET")) || str_eq(method, STR("HEAD"));
    *route = API_NONE;
    *id = (Str){"", 0};
    for (size_t i = 0; i < COUNT_OF(API_PATHS); i++) {
        Str known = str_of(API_PATHS[i].path);
        bool with_id =
            API_PATHS[i].route == API_MODEL && path.n > known.n && str_starts(path, known);
        if (!with_id && !str_eq(path, known)) continue;
        allowed = API_PATHS[i].method;
        *route = API_PATHS[i].route; /* also for a wrong method: the error is told in its dialect */
        if (str_eq(method, str_of(allowed)) || (get && allowed[0] == 'G')) {
            if (with_id) *id = str_cut(path, known.n, path.n);
            return true;
        }
    }
    if (allowed)
        return api_fail(x, 405, "method_not_allowed", "%.*s takes %s, not %.*s", STR_ARG(path),
                        allowed, STR_ARG(method));
    return api_fail(
        x, 404, "not_found",
        "there is no %.*s here; dlm serves /v1/chat/completions, /v1/completions, /v1/messages, "
        "/completion, /v1/models, /tokenize, /detokenize, /apply-template, /props, /health and "
        "/metrics",
        STR_ARG(path));
}

/* ---- what is served ---- */

typedef struct {
    const Model *model; /* and its tokenizer */
    Str name, file;     /* what clients call it; its file's name, without folders */
    Str chat_template;  /* the model's, or the one given instead; may be empty */
    Str version;        /* of dlm */
    i64 created_unix;   /* when it was loaded */
    i32 n_ctx, n_slots;
    i32 block_max;       /* the largest block that memory was reserved for */
    DecodeParams decode; /* what holds where a request says nothing */
} ApiModel;

/* ---- requests ---- */

typedef struct {
    ApiRoute route;
    JsonDoc doc; /* the body, whose text must live as long as the request */
    Str model;
    TmplMsg *messages; /* [n_messages] */
    size_t n_messages;
    char *joined; /* [n_joined] texts of messages that came in parts */
    size_t n_joined;
    u32 prompts[API_CHOICES_MAX]; /* [n_prompts] nodes: a string, or an array of ids and strings */
    i32 n_prompts;                /* 1 where there are messages */
    i32 n, best_of;               /* choices for each prompt; best_of: 0 or n */
    /* How to decode. The stop strings and biases lie in this struct: do not copy it. seed is
     * meaningful when seed_given; else the server draws one. Choice k of a prompt adds k to it. */
    DecodeParams decode;
    bool seed_given;
    i32 max_tokens, max_completion_tokens; /* 0: not given */
    Str stops[DECODE_STOPS_MAX];
    DecodeBias *biases; /* [decode.n_biases] */
    bool logprobs;      /* wanted, with decode.n_top alternatives each */
    Str suffix, content;
    TokIds suffix_ids; /* of suffix */
    u32 tools;         /* a node: what the model is told that it may call; 0: nothing */
    u32 template_vars; /* a node: an object of further variables of the chat template; 0: none */
    bool parallel_tool_calls;
    bool stream, include_usage, include_diffusion, echo, return_tokens;
    bool add_special, parse_special, with_pieces;
    TokIds ids; /* of /detokenize */
} ApiRequest;

static void api_request_free(ApiRequest *r) {
    json_free(&r->doc);
    mem_free(r->messages);
    mem_free(r->joined);
    mem_free(r->biases);
    tok_ids_free(&r->ids);
    tok_ids_free(&r->suffix_ids);
    *r = (ApiRequest){0};
}

/* Choices of the whole request: choice i is the (i % n)-th for prompt i / n. */
static i32 api_n_choices(const ApiRequest *r) {
    return r->n_prompts * r->n;
}

/* How to decode choice i; seed: what to begin with when the request has none. */
static DecodeParams api_decode_params(const ApiRequest *r, i32 i, u64 seed) {
    DecodeParams p = r->decode;
    p.sample.seed = (r->seed_given ? p.sample.seed : seed) + (u64)(i % r->n);
    return p;
}

/* ---- fields: what a body may hold, and how one value is read ---- */

typedef enum {
    API_BOOL,
    API_INT,       /* i32 */
    API_REAL,      /* f32 */
    API_TEXT,      /* Str */
    API_WORD,      /* i32, the place of a word in names */
    API_READ,      /* has a function of its own */
    API_ELSEWHERE, /* read by whoever walks this object */
    API_ACCEPTED,  /* harmless: dlm would not answer differently */
    API_REFUSED    /* asks for what dlm does not do: only its neutral value is taken, which is null,
                      false, "", [], {} or the number `min` */
} ApiKind;

/* Where a field may stand: a route's body, or an object inside one. */
enum {
    IN_CHAT = 1 << API_CHAT,
    IN_COMPLETIONS = 1 << API_COMPLETIONS,
    IN_LLAMA = 1 << API_LLAMA,
    IN_MESSAGES = 1 << API_MESSAGES,
    IN_COUNT = 1 << API_COUNT_TOKENS,
    IN_TOKENIZE = 1 << API_TOKENIZE,
    IN_DETOKENIZE = 1 << API_DETOKENIZE,
    IN_TEMPLATE = 1 << API_TEMPLATE,
    IN_STREAM_OPTIONS = 1 << API_ROUTES,
    IN_MESSAGE = 1 << (API_ROUTES + 1),
    IN_PART = 1 << (API_ROUTES + 2),
    IN_OPENAI = IN_CHAT | IN_COMPLETIONS | IN_LLAMA,
    IN_RAW = IN_COMPLETIONS | IN_LLAMA,
    IN_ANTHROPIC = IN_MESSAGES | IN_COUNT,
    IN_ANSWERED = IN_OPENAI | IN_MESSAGES, /* routes that generate */
    IN_ROUTES = (1 << API_ROUTES) - 1
};

typedef struct {
    ApiRequest *r;
    const ApiModel *m;
    const JsonDoc *d;
    size_t n_body; /* bytes */
    ApiError *x;
} ApiParser_;

typedef struct ApiField ApiField;

typedef struct {
    u32 node;
    const char *path;  /* what errors call it */
    const ApiField *f; /* or NULL */
} ApiValue_;

struct ApiField {
    const char *name;
    u32 in;
    ApiKind kind;
    size_t at;    /* offset in ApiRequest */
    f64 min, max; /* of numbers; words: names [max + 1] */
    const char *const *names;
    bool (*read)(ApiParser_ *p, ApiValue_ v);
};

/* What errors call a field; the end of a long one is cut. */
PRINTF_LIKE(2, 3)
static void api_path_(char out[API_PATH_MAX], const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(out, API_PATH_MAX, fmt, args);
    va_end(args);
}

/* How an error calls what it found. */
static Str api_found_(const ApiParser_ *p, u32 node) {
    static const char *const names[] = {"missing",  "null",     "a boolean", "",
                                        "a string", "an array", "an object"};
    JsonType type = json_type(p->d, node);
    return type == JSON_NUMBER ? str_cut(p->d->nodes[node].text, 0, 40) : str_of(names[type]);
}

static bool api_want_(ApiParser_ *p, ApiValue_ v, const char *wanted) {
    Str found = api_found_(p, v.node);
    return api_bad_(p->x, v.path, "'%s' must be %s; it is %.*s", v.path, wanted, STR_ARG(found));
}

static bool api_unsupported_(ApiParser_ *p, ApiValue_ v) {
    return api_bad_(p->x, v.path, "'%s' is not supported here: leave it out", v.path);
}

/* Is this what a client writes who wants nothing of it? */
static bool api_is_neutral_(const ApiParser_ *p, ApiValue_ v) {
    Str s;
    bool b;
    f64 number;
    if (json_str(p->d, v.node, &s)) return s.n == 0;
    if (json_bool(p->d, v.node, &b)) return !b;
    if (json_f64(p->d, v.node, &number)) return v.f && number == v.f->min;
    return json_type(p->d, v.node) != JSON_NUMBER && json_count(p->d, v.node) == 0;
}

static bool api_read_int_(ApiParser_ *p, ApiValue_ v, i32 *out) {
    i64 i;
    char wanted[80];
    snprintf(wanted, sizeof wanted, "an integer from %.0f to %.0f", v.f->min, v.f->max);
    if (!json_i64(p->d, v.node, &i) || (f64)i < v.f->min || (f64)i > v.f->max)
        return api_want_(p, v, wanted);
    *out = (i32)i;
    return true;
}

static bool api_read_real_(ApiParser_ *p, ApiValue_ v, f32 *out) {
    f64 f;
    char wanted[80];
    snprintf(wanted, sizeof wanted, "a number from %g to %g", v.f->min, v.f->max);
    if (!json_f64(p->d, v.node, &f) || f < v.f->min || f > v.f->max) return api_want_(p, v, wanted);
    *out = (f32)f;
    return true;
}

/* Finds the word in f's names. */
static bool api_read_word_(ApiParser_ *p, ApiValue_ v, i32 *out) {
    i32 last = (i32)v.f->max, n = 0;
    char wanted[256];
    Str s = {"", 0};
    json_str(p->d, v.node, &s);
    for (i32 i = 0; i <= last; i++) {
        const char *before = i == 0 ? "" : i < last ? ", " : " or ";
        n += snprintf(wanted + n, sizeof wanted - (size_t)n, "%s\"%s\"", before, v.f->names[i]);
        ASSERT(n < (i32)sizeof wanted);
        if (!str_eq(s, str_of(v.f->names[i]))) continue;
        *out = i;
        return true;
    }
    return api_want_(p, v, wanted);
}

static bool api_read_field_(ApiParser_ *p, ApiValue_ v) {
    void *at = (char *)p->r + v.f->at;
    if (json_type(p->d, v.node) == JSON_NULL) return true; /* as good as left out */
    switch (v.f->kind) {
    case API_BOOL: return json_bool(p->d, v.node, at) || api_want_(p, v, "true or false");
    case API_INT: return api_read_int_(p, v, at);
    case API_REAL: return api_read_real_(p, v, at);
    case API_TEXT: return json_str(p->d, v.node, at) || api_want_(p, v, "a string");
    case API_WORD: return api_read_word_(p, v, at);
    case API_READ: return v.f->read(p, v);
    case API_REFUSED: return api_is_neutral_(p, v) || api_unsupported_(p, v);
    case API_ELSEWHERE:
    case API_ACCEPTED: break;
    }
    return true;
}

static bool api_read_object_(ApiParser_ *p, u32 object, u32 in, const char *prefix);

/* -1 is random, as in llama.cpp. */
static bool api_read_seed_(ApiParser_ *p, ApiValue_ v) {
    i64 seed;
    if (!json_i64(p->d, v.node, &seed)) return api_want_(p, v, "an integer");
    p->r->seed_given = seed != -1;
    p->r->decode.sample.seed = (u64)seed;
    return true;
}

static bool api_read_n_predict_(ApiParser_ *p, ApiValue_ v) {
    i32 n = 0;
    if (!api_read_int_(p, v, &n)) return false;
    if (n == 0) return api_want_(p, v, "at least 1, or -1 to go on until the context is full");
    p->r->max_tokens = n < 0 ? INT32_MAX : n;
    return true;
}

static bool api_add_stop_(ApiParser_ *p, ApiValue_ v) {
    Str s;
    DecodeParams *d = &p->r->decode;
    if (!json_str(p->d, v.node, &s)) return api_want_(p, v, "a string or an array of strings");
    if (s.n == 0 || s.n > API_STOP_MAX)
        return api_bad_(p->x, v.path, "'%s': a stop string has 1 to %zu bytes, not %zu", v.path,
                        API_STOP_MAX, s.n);
    if (d->n_stops == DECODE_STOPS_MAX)
        return api_bad_(p->x, v.path, "'%s' has more than %d stop strings", v.path,
                        DECODE_STOPS_MAX);
    p->r->stops[d->n_stops++] = s;
    return true;
}

static bool api_read_stops_(ApiParser_ *p, ApiValue_ v) {
    p->r->decode.n_stops = 0;
    if (json_type(p->d, v.node) != JSON_ARRAY) return api_add_stop_(p, v);
    u32 i = json_first(p->d, v.node);
    for (u32 n = json_count(p->d, v.node); n > 0; n--, i = json_next(p->d, i))
        if (!api_add_stop_(p, (ApiValue_){i, v.path, v.f})) return false;
    return true;
}

/* Another word for two of the caches; one that is named by "cache" may stand beside it. */
static bool api_read_dual_cache_(ApiParser_ *p, ApiValue_ v) {
    bool on;
    u32 cache = json_get(p->d, 0, "cache");
    Str name;
    if (!json_bool(p->d, v.node, &on)) return api_want_(p, v, "true or false");
    if (json_type(p->d, cache) <= JSON_NULL || !json_str(p->d, cache, &name))
        p->r->decode.cache = on ? CACHE_DUAL : CACHE_NONE;
    else if (str_eq(name, STR("model")) || on == str_eq(name, STR("none")))
        return api_bad_(p->x, v.path, "'dual_cache' is %s and 'cache' is \"%.*s\": leave one out",
                        on ? "true" : "false", STR_ARG(str_cut(name, 0, 40)));
    return true;
}

/* A number that asks for log probabilities, with so many alternatives. */
static bool api_read_top_(ApiParser_ *p, ApiValue_ v) {
    if (!api_read_int_(p, v, &p->r->decode.n_top)) return false;
    p->r->logprobs = p->r->route == API_COMPLETIONS || p->r->decode.n_top > 0;
    return true;
}

static bool api_read_stream_options_(ApiParser_ *p, ApiValue_ v) {
    if (json_type(p->d, v.node) != JSON_OBJECT) return api_want_(p, v, "an object");
    return api_read_object_(p, v.node, IN_STREAM_OPTIONS, "stream_options.");
}

/* The string itself, or its "type" if it is an object. */
static Str api_type_(const ApiParser_ *p, u32 node) {
    Str s = {"", 0};
    if (!json_str(p->d, node, &s)) json_str(p->d, json_get(p->d, node, "type"), &s);
    return s;
}

static bool api_read_text_format_(ApiParser_ *p, ApiValue_ v) {
    if (str_eq(api_type_(p, v.node), STR("text")) || api_is_neutral_(p, v)) return true;
    return api_bad_(
        p->x, v.path,
        "'%s' other than {\"type\": \"text\"} is not supported: dlm holds no answer to a format",
        v.path);
}

static bool api_read_modalities_(ApiParser_ *p, ApiValue_ v) {
    Str s = {"", 0};
    json_str(p->d, json_first(p->d, v.node), &s);
    if ((json_count(p->d, v.node) == 1 && str_eq(s, STR("text"))) || api_is_neutral_(p, v))
        return true;
    return api_bad_(p->x, v.path, "'%s' other than [\"text\"] is not supported", v.path);
}

static bool api_read_thinking_(ApiParser_ *p, ApiValue_ v) {
    return str_eq(api_type_(p, v.node), STR("disabled")) || api_unsupported_(p, v);
}

/* {"type": "function", "function": {"name": ..., ...}}; in a call also with "arguments". */
static bool api_is_function_(const ApiParser_ *p, u32 node, bool call) {
    u32 function = json_get(p->d, node, "function");
    Str s;
    return str_eq(api_type_(p, node), STR("function")) &&
           json_str(p->d, json_get(p->d, function, "name"), &s) && s.n &&
           (!call || json_str(p->d, json_get(p->d, function, "arguments"), &s));
}

static bool api_are_functions_(ApiParser_ *p, ApiValue_ v, bool calls) {
    u32 n = json_count(p->d, v.node), i = json_first(p->d, v.node);
    bool ok = json_type(p->d, v.node) == JSON_ARRAY;
    for (; ok && n > 0; n--, i = json_next(p->d, i)) ok = api_is_function_(p, i, calls);
    return ok || api_want_(p, v,
                           calls ? "an array of calls of functions, with name and arguments"
                                 : "an array of functions, with names");
}

/* Tools that the model may not call are not shown to it. */
static bool api_read_tools_(ApiParser_ *p, ApiValue_ v) {
    if (api_is_neutral_(p, v) ||
        str_eq(api_type_(p, json_get(p->d, 0, "tool_choice")), STR("none")))
        return true;
    if (api_is_anthropic_(p->r->route))
        return api_bad_(p->x, v.path,
                        "'%s' are not supported here, but in /v1/chat/completions: leave them "
                        "out, or set tool_choice to \"none\"",
                        v.path);
    if (!api_are_functions_(p, v, false)) return false;
    if (str_find(p->m->chat_template, STR("tools"), 0) == SIZE_MAX)
        return api_bad_(p->x, v.path,
                        "'%s' are not supported: the chat template of this model shows it none",
                        v.path);
    p->r->tools = v.node;
    return true;
}

/* What some templates ask for, as {"enable_thinking": false}. */
static bool api_read_template_vars_(ApiParser_ *p, ApiValue_ v) {
    if (json_type(p->d, v.node) != JSON_OBJECT || json_count(p->d, v.node) > API_TEMPLATE_VARS_MAX)
        return api_want_(p, v, "an object of at most 32 variables of the chat template");
    p->r->template_vars = v.node;
    return true;
}

/* Calls that were made earlier in the conversation. */
static bool api_read_calls_(ApiParser_ *p, ApiValue_ v) {
    return api_are_functions_(p, v, true);
}

/* "auto" leaves it to the model. */
static bool api_read_tool_choice_(ApiParser_ *p, ApiValue_ v) {
    Str type = api_type_(p, v.node);
    if (str_eq(type, STR("none")) || str_eq(type, STR("auto"))) return true;
    return api_bad_(
        p->x, v.path,
        "'%s' other than \"none\" and \"auto\" is not supported: dlm cannot make a model "
        "call a tool",
        v.path);
}

static bool api_is_id_(const ApiParser_ *p, u32 node, i32 *out) {
    i64 id;
    if (!json_i64(p->d, node, &id) || id < 0 || id >= p->m->model->n_vocab) return false;
    *out = (i32)id;
    return true;
}

static bool api_bad_id_(ApiParser_ *p, const char *path) {
    return api_bad_(p->x, path, "'%s' holds something that is no token id from 0 to %d", path,
                    p->m->model->n_vocab - 1);
}

static bool api_read_ids_(ApiParser_ *p, ApiValue_ v) {
    if (json_type(p->d, v.node) != JSON_ARRAY) return api_want_(p, v, "an array of token ids");
    u32 i = json_first(p->d, v.node);
    for (u32 n = json_count(p->d, v.node); n > 0; n--, i = json_next(p->d, i)) {
        i32 id;
        Err e = {0};
        if (!api_is_id_(p, i, &id)) return api_bad_id_(p, v.path);
        if (!tok_ids_push(&p->r->ids, id, &e)) return api_take_err(p->x, &e);
    }
    return true;
}

/* ---- logit_bias: {"id": bias} (OpenAI), or [[id or text, bias or false]] (llama.cpp) ---- */

static bool api_add_bias_(ApiParser_ *p, ApiValue_ v, i32 token, f32 bias) {
    DecodeParams *d = &p->r->decode;
    Err e = {0};
    if (!p->r->biases && !(p->r->biases = mem_alloc_n(API_BIASES_MAX, sizeof *p->r->biases, &e)))
        return api_take_err(p->x, &e);
    if (d->n_biases == API_BIASES_MAX)
        return api_bad_(p->x, v.path, "'%s' biases more than %d tokens", v.path, API_BIASES_MAX);
    p->r->biases[d->n_biases++] = (DecodeBias){token, bias};
    return true;
}

/* Every token of a text. */
static bool api_add_text_bias_(ApiParser_ *p, ApiValue_ v, Str text, f32 bias) {
    TokIds ids = {.max = API_BIASES_MAX};
    Err e = {0};
    bool ok = tok_encode(p->m->model->tok, text, NULL, &ids, &e) || api_take_err(p->x, &e);
    for (size_t i = 0; ok && i < ids.n; i++) ok = api_add_bias_(p, v, ids.p[i], bias);
    tok_ids_free(&ids);
    return ok;
}

/* A token id as the key of an object spells it. */
static bool api_is_id_text_(const ApiParser_ *p, Str s, i32 *out) {
    i64 id = 0;
    for (size_t i = 0; i < s.n; i++) {
        if (s.p[i] < '0' || s.p[i] > '9' || i == 9) return false;
        id = id * 10 + (s.p[i] - '0');
    }
    *out = (i32)id;
    return s.n > 0 && id < p->m->model->n_vocab;
}

/* key: an id, a string that spells one, or in llama.cpp's dialect a text. */
static bool api_read_one_bias_(ApiParser_ *p, ApiValue_ v, u32 key, u32 value, bool in_object) {
    const f32 never = -1e9f;
    bool allowed;
    i32 id;
    f32 bias = never;
    Str text;
    if (!(json_bool(p->d, value, &allowed) && !allowed) &&
        !api_read_real_(p, (ApiValue_){value, v.path, v.f}, &bias))
        return false;
    if (!json_str(p->d, key, &text))
        return api_is_id_(p, key, &id) ? api_add_bias_(p, v, id, bias) : api_bad_id_(p, v.path);
    if (in_object && api_is_id_text_(p, text, &id)) return api_add_bias_(p, v, id, bias);
    return p->r->route == API_LLAMA ? api_add_text_bias_(p, v, text, bias) : api_bad_id_(p, v.path);
}

static bool api_read_bias_(ApiParser_ *p, ApiValue_ v) {
    bool object = json_type(p->d, v.node) == JSON_OBJECT;
    if (!object && json_type(p->d, v.node) != JSON_ARRAY)
        return api_want_(p, v, "an object of token ids and numbers");
    p->r->decode.n_biases = 0;
    u32 i = json_first(p->d, v.node);
    for (u32 n = json_count(p->d, v.node); n > 0; n--) {
        bool pair = json_type(p->d, i) == JSON_ARRAY && json_count(p->d, i) == 2;
        if (!object && !pair) return api_want_(p, v, "an array of pairs");
        u32 key = object ? i : json_first(p->d, i), value = json_next(p->d, key);
        if (!api_read_one_bias_(p, v, key, value, object)) return false;
        i = json_next(p->d, object ? value : i);
    }
    return true;
}

/* ---- the table of fields ---- */

#define API_AT(field) .at = offsetof(ApiRequest, field)
#define API_INT_MAX 2147483647.0
#define API_WORDS(list) .names = (list), .max = COUNT_OF(list) - 1
_Static_assert(sizeof(DecodeMode) == sizeof(i32), "an API_WORD is written as an i32");

static const ApiField API_FIELDS[] = {
    {"model", IN_ROUTES, API_TEXT, API_AT(model)},
    {"suffix", IN_COMPLETIONS, API_TEXT, API_AT(suffix)},
    {"content", IN_TOKENIZE, API_TEXT, API_AT(content)},
    {"tokens", IN_DETOKENIZE, API_READ, .read = api_read_ids_},
    {"add_special", IN_TOKENIZE, API_BOOL, API_AT(add_special)},
    {"parse_special", IN_TOKENIZE, API_BOOL, API_AT(parse_special)},
    {"with_pieces", IN_TOKENIZE, API_BOOL, API_AT(with_pieces)},

    /* length and number */
    {"max_tokens", IN_ANSWERED, API_INT, API_AT(max_tokens), 1, API_INT_MAX},
    {"max_completion_tokens", IN_CHAT | IN_LLAMA, API_INT, API_AT(max_completion_tokens), 1,
     API_INT_MAX},
    {"n_predict", IN_OPENAI, API_READ, .min = -1, .max = API_INT_MAX, .read = api_read_n_predict_},
    {"n", IN_OPENAI, API_INT, API_AT(n), 1, API_N_MAX},
    {"n_cmpl", IN_LLAMA, API_INT, API_AT(n), 1, API_N_MAX},
    {"best_of", IN_COMPLETIONS, API_INT, API_AT(best_of), 1, API_N_MAX},
    {"stop", IN_OPENAI, API_READ, .read = api_read_stops_},
    {"stop_sequences", IN_MESSAGES, API_READ, .read = api_read_stops_},

    /* diffusion: dlm's own */
    {"decode_mode", IN_ANSWERED, API_WORD, API_AT(decode.mode), API_WORDS(DECODE_MODE_NAMES)},
    {"rule", IN_ANSWERED, API_WORD, API_AT(decode.rule), API_WORDS(MODEL_RULE_NAMES)},
    {"threshold", IN_ANSWERED, API_REAL, API_AT(decode.threshold), 0, 2},
    {"steps", IN_ANSWERED, API_INT, API_AT(decode.steps), 0, MODEL_STEPS_MAX},
    {"block_size", IN_ANSWERED, API_INT, API_AT(decode.block_size), 1, MODEL_BLOCK_MAX},
    {"sub_block_size", IN_ANSWERED, API_INT, API_AT(decode.sub_block_size), 1, MODEL_BLOCK_MAX},
    {"cache", IN_ANSWERED, API_WORD, API_AT(decode.cache), API_WORDS(MODEL_CACHE_NAMES)},
    {"dual_cache", IN_ANSWERED, API_READ, .read = api_read_dual_cache_},
    {"cfg_scale", IN_ANSWERED, API_REAL, API_AT(decode.cfg_scale), 0, DECODE_CFG_MAX},
    {"early_stop", IN_ANSWERED, API_BOOL, API_AT(decode.early_stop)},

    /* sampling */
    {"temperature", IN_ANSWERED, API_REAL, API_AT(decode.sample.temperature), 0, 2},
    {"top_k", IN_ANSWERED, API_INT, API_AT(decode.sample.top_k), 0, 1048576},
    {"top_p", IN_ANSWERED, API_REAL, API_AT(decode.sample.top_p), 0, 1},
    {"min_p", IN_ANSWERED, API_REAL, API_AT(decode.sample.min_p), 0, 1},
    {"seed", IN_ANSWERED, API_READ, .read = api_read_seed_},
    {"presence_penalty", IN_OPENAI, API_REAL, API_AT(decode.presence_penalty), -2, 2},
    {"frequency_penalty", IN_OPENAI, API_REAL, API_AT(decode.frequency_penalty), -2, 2},
    {"repetition_penalty", IN_OPENAI, API_REAL, API_AT(decode.repetition_penalty), 0.01, 10},
    {"repeat_penalty", IN_OPENAI, API_REAL, API_AT(decode.repetition_penalty), 0.01, 10},
    {"logit_bias", IN_OPENAI, API_READ, .min = -100, .max = 100, .read = api_read_bias_},

    /* what the answer tells */
    {"logprobs", IN_CHAT, API_BOOL, API_AT(logprobs)},
    {"top_logprobs", IN_CHAT, API_INT, API_AT(decode.n_top), 0, DECODE_TOP_MAX},
    {"logprobs", IN_COMPLETIONS, API_READ, .min = 0, .max = DECODE_TOP_MAX, .read = api_read_top_},
    {"n_probs", IN_LLAMA, API_READ, .min = 0, .max = DECODE_TOP_MAX, .read = api_read_top_},
    {"stream", IN_ANSWERED, API_BOOL, API_AT(stream)},
    {"stream_options", IN_OPENAI, API_READ, .read = api_read_stream_options_},
    {"include_usage", IN_STREAM_OPTIONS, API_BOOL, API_AT(include_usage)},
    {"include_diffusion", IN_STREAM_OPTIONS | IN_MESSAGES, API_BOOL, API_AT(include_diffusion)},
    {"echo", IN_COMPLETIONS, API_BOOL, API_AT(echo)},
    {"return_tokens", IN_LLAMA, API_BOOL, API_AT(return_tokens)},

    /* what dlm does in one way only */
    {"tools", IN_CHAT | IN_ANTHROPIC | IN_TEMPLATE, API_READ, .read = api_read_tools_},
    {"tool_choice", IN_CHAT | IN_ANTHROPIC, API_READ, .read = api_read_tool_choice_},
    {"function_call", IN_CHAT, API_READ, .read = api_read_tool_choice_},
    {"chat_template_kwargs", IN_CHAT | IN_TEMPLATE, API_READ, .read = api_read_template_vars_},
    {"parallel_tool_calls", IN_CHAT, API_BOOL, API_AT(parallel_tool_calls)},
    {"tool_calls", IN_MESSAGE, API_READ, .read = api_read_calls_},
    {"response_format", IN_OPENAI, API_READ, .read = api_read_text_format_},
    {"modalities", IN_CHAT, API_READ, .read = api_read_modalities_},
    {"thinking", IN_ANTHROPIC, API_READ, .read = api_read_thinking_},
    {"repeat_last_n", IN_OPENAI, API_REFUSED, .min = -1}, /* the penalties count the whole answer */
    {"typical_p", IN_OPENAI, API_REFUSED, .min = 1},
    {"top_n_sigma", IN_OPENAI, API_REFUSED, .min = -1},
    {"length_penalty", IN_OPENAI, API_REFUSED, .min = 1},
};

/* Names without more to say about them, separated by one space. */
static const struct {
    u32 in;
    ApiKind kind;
    const char *names;
} API_NAMES[] = {
    {IN_CHAT | IN_ANTHROPIC | IN_TEMPLATE, API_ELSEWHERE, "messages"},
    {IN_ANTHROPIC, API_ELSEWHERE, "system"},
    {IN_RAW, API_ELSEWHERE, "prompt"},
    {IN_MESSAGE, API_ELSEWHERE, "role content"},
    {IN_PART, API_ELSEWHERE, "type text"},
    /* whose request it is, what is kept of it, how soon and at what cost it is answered */
    {IN_OPENAI, API_ACCEPTED, "user"},
    {IN_CHAT | IN_MESSAGES, API_ACCEPTED, "metadata service_tier"},
    {IN_CHAT, API_ACCEPTED,
     "store safety_identifier prompt_cache_key prompt_cache_retention prompt_cache_options"},
    {IN_ANTHROPIC, API_ACCEPTED, "inference_geo user_profile_id"},
    {IN_STREAM_OPTIONS, API_ACCEPTED, "include_obfuscation"},
    /* hints; prediction may make the same answer come sooner */
    {IN_CHAT, API_ACCEPTED, "prediction reasoning_effort verbosity"},
    /* shown to templates, which leave out all thoughts but the last themselves */
    {IN_MESSAGE, API_ACCEPTED, "name tool_call_id refusal reasoning_content annotations"},
    /* prefixes are reused always, and do not change the answer */
    {IN_PART | IN_MESSAGE | IN_ANTHROPIC, API_ACCEPTED, "cache_control prompt_cache_breakpoint"},
    {IN_OPENAI, API_ACCEPTED, "cache_prompt id_slot n_cache_reuse"},
    /* nothing without the fields that are refused below */
    {IN_OPENAI, API_ACCEPTED,
     "dynatemp_exponent dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers "
     "xtc_threshold mirostat_tau mirostat_eta n_keep"},
    {IN_OPENAI, API_ACCEPTED, "timings_per_token sse_ping_interval"},
    {IN_TEMPLATE, API_ACCEPTED, "add_generation_prompt"},

    {IN_MESSAGE, API_REFUSED, "function_call audio"},
    {IN_PART, API_REFUSED, "citations"},
    {IN_CHAT, API_REFUSED, "functions audio web_search_options moderation"},
    {IN_ANTHROPIC, API_REFUSED, "container output_config mcp_servers context_management"},
    {IN_OPENAI, API_REFUSED,
     "dynatemp_range dry_multiplier xtc_probability mirostat min_keep min_tokens n_indent "
     "n_discard t_max_predict_ms ignore_eos samplers grammar json_schema lora post_sampling_probs "
     "return_progress response_fields"},
};

/* Is name one of the words of list? */
static bool api_is_listed_(const char *list, Str name) {
    Str all = str_of(list);
    for (size_t at = 0, end; at < all.n; at = end + 1) {
        end = MIN_OF(str_find(all, STR(" "), at), all.n);
        if (str_eq(name, str_cut(all, at, end))) return true;
    }
    return false;
}

/* Fills *f for a field that may stand in `in`; false when there is none of this name. */
static bool api_find_field_(Str name, u32 in, ApiField *f) {
    for (size_t i = 0; i < COUNT_OF(API_FIELDS); i++)
        if (API_FIELDS[i].in & in && str_eq(name, str_of(API_FIELDS[i].name))) {
            *f = API_FIELDS[i];
            return true;
        }
    for (size_t i = 0; i < COUNT_OF(API_NAMES); i++)
        if (API_NAMES[i].in & in && api_is_listed_(API_NAMES[i].names, name)) {
            *f = (ApiField){.in = API_NAMES[i].in, .kind = API_NAMES[i].kind};
            return true;
        }
    return false;
}

/* Reads every field of an object that stands in `in`; prefix: what errors put before their
 * names. */
static bool api_read_object_(ApiParser_ *p, u32 object, u32 in, const char *prefix) {
    u32 key = json_first(p->d, object);
    for (u32 n = json_count(p->d, object); n > 0; n--) {
        ApiField f;
        Str name = p->d->nodes[key].text;
        char path[API_PATH_MAX];
        api_path_(path, "%s%.*s", prefix, STR_ARG(name));
        u32 value = json_next(p->d, key);
        if (!api_find_field_(name, in, &f))
            return api_bad_(p->x, path, "unknown field '%s': dlm does not know what it asks for",
                            path);
        if (!api_read_field_(p, (ApiValue_){value, path, &f})) return false;
        key = json_next(p->d, value);
    }
    return true;
}

/* ---- messages ---- */

/* Adds text to a message whose text comes in parts, a line each. All joined texts together are
 * shorter than the body they are taken from: every part costs it more than its line end. */
static bool api_join_(ApiParser_ *p, Str *whole, Str part) {
    ApiRequest *r = p->r;
    Err e = {0};
    if (!r->joined && !(r->joined = mem_alloc(p->n_body, &e))) return api_take_err(p->x, &e);
    if (!whole->p)
        whole->p = r->joined + r->n_joined;
    else
        r->joined[r->n_joined++] = '\n';
    ASSERT(part.n <= p->n_body - r->n_joined);
    if (part.n) memcpy(r->joined + r->n_joined, part.p, part.n);
    r->n_joined += part.n;
    whole->n = (size_t)(r->joined + r->n_joined - whole->p);
    return true;
}

/* One {"type": "text", "text": ...}. */
static bool api_read_part_(ApiParser_ *p, ApiValue_ v, Str *text) {
    char path[API_PATH_MAX];
    u32 type = json_get(p->d, v.node, "type"), value = json_get(p->d, v.node, "text");
    if (json_type(p->d, v.node) != JSON_OBJECT) return api_want_(p, v, "an object");
    api_path_(path, "%s.type", v.path);
    if (json_type(p->d, type) != JSON_STRING || !str_eq(api_type_(p, type), STR("text")))
        return api_bad_(p->x, path, "'%s' must be \"text\": dlm reads no other parts", path);
    api_path_(path, "%s.", v.path);
    if (!api_read_object_(p, v.node, IN_PART, path)) return false;
    api_path_(path, "%s.text", v.path);
    return json_str(p->d, value, text) || api_want_(p, (ApiValue_){value, path, NULL}, "a string");
}

/* A string, or an array of text parts. */
static bool api_read_content_(ApiParser_ *p, ApiValue_ v, Str *out) {
    if (json_str(p->d, v.node, out)) return true;
    if (json_type(p->d, v.node) != JSON_ARRAY)
        return api_want_(p, v, "a string or an array of text parts");
    *out = (Str){NULL, 0};
    u32 i = json_first(p->d, v.node);
    for (u32 k = 0, n = json_count(p->d, v.node); k < n; k++, i = json_next(p->d, i)) {
        Str text;
        char path[API_PATH_MAX];
        api_path_(path, "%s[%u]", v.path, k);
        if (!api_read_part_(p, (ApiValue_){i, path, NULL}, &text)) return false;
        if (n == 1)
            *out = text;
        else if (!api_join_(p, out, text))
            return false;
    }
    if (!out->p) *out = (Str){"", 0};
    return true;
}

/* The roles that templates know; developer is OpenAI's newer name for the system. */
static bool api_read_role_(ApiParser_ *p, ApiValue_ v, Str *out) {
    static const char *const roles[] = {"user", "assistant", "system", "tool"};
    bool anthropic = api_is_anthropic_(p->r->route);
    Str s = {"", 0};
    json_str(p->d, v.node, &s);
    if (!anthropic && str_eq(s, STR("developer"))) s = STR("system");
    for (size_t i = 0; i < (anthropic ? 2 : COUNT_OF(roles)); i++)
        if (str_eq(s, str_of(roles[i]))) {
            *out = str_of(roles[i]);
            return true;
        }
    return api_want_(p, v,
                     anthropic ? "\"user\" or \"assistant\""
                               : "\"system\", \"developer\", \"user\", \"assistant\" or \"tool\"");
}

static bool api_read_message_(ApiParser_ *p, u32 node, u32 at, TmplMsg *out) {
    char path[API_PATH_MAX], prefix[API_PATH_MAX];
    api_path_(path, "messages[%u]", at);
    if (json_type(p->d, node) != JSON_OBJECT)
        return api_want_(p, (ApiValue_){node, path, NULL}, "an object");
    api_path_(prefix, "messages[%u].", at);
    if (!api_read_object_(p, node, IN_MESSAGE, prefix)) return false;
    api_path_(path, "messages[%u].role", at);
    if (!api_read_role_(p, (ApiValue_){json_get(p->d, node, "role"), path, NULL}, &out->role))
        return false;
    api_path_(path, "messages[%u].content", at);
    u32 content = json_get(p->d, node, "content");
    if (json_count(p->d, node) > 2) out->more = (TmplData){p->d, node};
    if (json_type(p->d, content) <= JSON_NULL &&
        json_count(p->d, json_get(p->d, node, "tool_calls"))) { /* calls need no words */
        if (content != JSON_NONE) out->content_data = (TmplData){p->d, content};
        return true;
    }
    return api_read_content_(p, (ApiValue_){content, path, NULL}, &out->content);
}

static bool api_read_messages_(ApiParser_ *p) {
    ApiRequest *r = p->r;
    ApiValue_ list = {json_get(p->d, 0, "messages"), "messages", NULL};
    ApiValue_ system = {json_get(p->d, 0, "system"), "system", NULL};
    u32 n = json_count(p->d, list.node);
    bool anthropic = api_is_anthropic_(r->route);
    Err e = {0};
    if (json_type(p->d, list.node) != JSON_ARRAY || n == 0)
        return api_want_(p, list, "an array of one message or more");
    if (n > API_MESSAGES_MAX)
        return api_bad_(p->x, list.path, "there are %u 'messages'; %u is the limit", n,
                        API_MESSAGES_MAX);
    if (!(r->messages = mem_alloc_n(n + 1, sizeof *r->messages, &e))) return api_take_err(p->x, &e);
    if (anthropic && json_type(p->d, system.node) > JSON_NULL) {
        TmplMsg *m = &r->messages[r->n_messages++];
        m->role = STR("system");
        if (!api_read_content_(p, system, &m->content)) return false;
    }
    u32 i = json_first(p->d, list.node);
    for (u32 k = 0; k < n; k++, i = json_next(p->d, i))
        if (!api_read_message_(p, i, k, &r->messages[r->n_messages++])) return false;
    if (anthropic && str_eq(r->messages[r->n_messages - 1].role, STR("assistant")))
        return api_bad_(p->x, list.path,
                        "the last of 'messages' is the assistant's, which dlm does not continue: "
                        "end with the user's");
    r->n_prompts = 1;
    return true;
}

/* ---- raw prompts ---- */

static bool api_add_prompt_(ApiParser_ *p, ApiValue_ v) {
    JsonType type = json_type(p->d, v.node);
    if (p->r->n_prompts == API_CHOICES_MAX)
        return api_bad_(p->x, v.path, "there are more than %d prompts: send several requests",
                        API_CHOICES_MAX);
    if (type != JSON_STRING && (type != JSON_ARRAY || json_count(p->d, v.node) == 0))
        return api_want_(p, v, "a string, an array of strings, or token ids");
    p->r->prompts[p->r->n_prompts++] = v.node;
    u32 i = json_first(p->d, v.node);
    for (u32 n = json_count(p->d, v.node); n > 0; n--, i = json_next(p->d, i)) {
        i32 id;
        bool text = p->r->route == API_LLAMA && json_type(p->d, i) == JSON_STRING;
        if (!text && !api_is_id_(p, i, &id)) return api_bad_id_(p, v.path);
    }
    return true;
}

/* An array that holds ids is one prompt, any other is several; llama.cpp's dialect, which mixes
 * ids and texts in one prompt, is served one at a time. */
static bool api_read_prompt_(ApiParser_ *p) {
    ApiValue_ v = {json_get(p->d, 0, "prompt"), "prompt", NULL};
    u32 first = json_first(p->d, v.node), i = first, n = json_count(p->d, v.node);
    bool one = json_type(p->d, v.node) != JSON_ARRAY || n == 0;
    for (u32 k = 0; k < n && !one; k++, i = json_next(p->d, i))
        one = json_type(p->d, i) == JSON_NUMBER;
    if (one) return api_add_prompt_(p, v);
    if (p->r->route == API_LLAMA && n > 1)
        return api_bad_(p->x, v.path, "there are several prompts: send one at a time to this path");
    for (i = first; n > 0; n--, i = json_next(p->d, i))
        if (!api_add_prompt_(p, (ApiValue_){i, v.path, NULL})) return false;
    return true;
}

/* ---- whole requests ---- */

static bool api_check_blocks_(ApiParser_ *p) {
    const DecodeParams d = decode_resolved(&p->m->model->decode, &p->r->decode);
    i32 block = d.block_size, sub = d.sub_block_size;
    if (block > p->m->block_max)
        return api_bad_(p->x, "block_size", "'block_size' is %d; this server has room for %d",
                        block, p->m->block_max);
    if (sub >= 1 && block % sub == 0) return true;
    return api_bad_(p->x, p->r->decode.sub_block_size ? "sub_block_size" : "block_size",
                    "a block of %d tokens does not consist of whole sub-blocks of %d", block, sub);
}

static bool api_check_rule_(ApiParser_ *p) {
    const DecodeParams *asked = &p->r->decode;
    i32 rule = decode_resolved(&p->m->model->decode, asked).rule;
    if (asked->mode != DECODE_ADAPTIVE || decode_can_adapt(rule)) return true;
    return api_bad_(p->x, asked->rule == RULE_MODEL ? "decode_mode" : "rule",
                    "'decode_mode' adaptive loosens a threshold of probability, and the rule %s "
                    "has none: use iterative",
                    MODEL_RULE_NAMES[rule]);
}

/* The answer is to fit in before this text: full attention alone sees it. */
static bool api_read_suffix_(ApiParser_ *p) {
    ApiRequest *r = p->r;
    const Model *m = p->m->model;
    Err e = {0};
    if (m->decode.attention != ATTEND_FULL || r->decode.mode == DECODE_AR)
        return api_bad_(p->x, "suffix",
                        "'suffix' wants a model with full attention, and a decode mode other than "
                        "ar: others do not see what comes later");
    if (!tok_encode(m->tok, r->suffix, NULL, &r->suffix_ids, &e)) return api_take_err(p->x, &e);
    r->decode.suffix = r->suffix_ids.p;
    r->decode.n_suffix = (i32)r->suffix_ids.n;
    return true;
}

/* What one field alone cannot tell. */
static bool api_check_(ApiParser_ *p) {
    ApiRequest *r = p->r;
    DecodeParams *d = &r->decode;
    Err e = {0};
    if (r->max_tokens) d->max_tokens = r->max_tokens;
    if (r->max_completion_tokens && (!r->max_tokens || r->max_completion_tokens < r->max_tokens))
        d->max_tokens = r->max_completion_tokens;
    if (r->route == API_CHAT && d->n_top && !r->logprobs)
        return api_bad_(p->x, "top_logprobs", "'top_logprobs' goes with 'logprobs': true");
    if (r->best_of && r->best_of != r->n)
        return api_bad_(p->x, "best_of", "'best_of' other than 'n' is not supported");
    if (r->n_prompts * r->n > API_CHOICES_MAX)
        return api_bad_(p->x, "n", "%d prompts with 'n' %d make more than %d answers", r->n_prompts,
                        r->n, API_CHOICES_MAX);
    if (r->n > 1 && r->route == API_LLAMA)
        return api_bad_(p->x, "n",
                        "'n' above 1 is not supported on this path; /v1/completions has it");
    if (r->echo && r->logprobs)
        return api_bad_(p->x, "echo",
                        "'echo' with 'logprobs' is not supported: the prompt has none");
    if (r->suffix.n && !api_read_suffix_(p)) return false;
    if (d->mode != DECODE_AR && d->mode != DECODE_AUTO && p->m->model->decode.mask_id < 0)
        return api_bad_(p->x, "decode_mode",
                        "this model has no mask token: 'decode_mode' must be \"ar\"");
    if (!decode_can_guide(&p->m->model->decode, d, &e))
        return api_bad_(p->x, "cfg_scale", "%s", e.msg);
    return api_check_rule_(p) && api_check_blocks_(p);
}

static bool api_parse_(ApiParser_ *p) {
    ApiRequest *r = p->r;
    if (json_type(p->d, 0) != JSON_OBJECT)
        return api_fail(p->x, 400, NULL, "the body must be a JSON object");
    if (!api_read_object_(p, 0, 1u << r->route, "")) return false;
    bool raw = r->route == API_COMPLETIONS || r->route == API_LLAMA;
    if (r->route == API_TOKENIZE)
        return r->content.p || api_want_(p, (ApiValue_){JSON_NONE, "content", NULL}, "a string");
    if (r->route == API_DETOKENIZE)
        return json_type(p->d, json_get(p->d, 0, "tokens")) == JSON_ARRAY ||
               api_want_(p, (ApiValue_){JSON_NONE, "tokens", NULL}, "an array of token ids");
    if (!(raw ? api_read_prompt_(p) : api_read_messages_(p))) return false;
    return !api_generates(r->route) || api_check_(p);
}

/* Reads the body of a POST to this route. body must live as long as r; api_request_free frees r
 * in any case. */
static bool api_parse(ApiRequest *r, ApiRoute route, Str body, const ApiModel *m, ApiError *x) {
    Err e = {0};
    *r = (ApiRequest){.route = route,
                      .n = 1,
                      .parallel_tool_calls = true,
                      .decode = m->decode,
                      .doc = {.nodes_max = API_NODES_MAX}};
    r->decode.stops = r->stops;
    if (!json_parse(&r->doc, body, &e)) return api_take_err(x, &e);
    ApiParser_ p = {.r = r, .m = m, .d = &r->doc, .n_body = body.n, .x = x};
    if (!api_parse_(&p)) return false;
    r->decode.biases = r->biases;
    return true;
}

/* ---- prompts ---- */

/* The messages through the chat template. */
static bool api_render_(const ApiRequest *r, const ApiModel *m, i64 now_unix, TmplOut *out,
                        ApiError *x) {
    const Tok *t = m->model->tok;
    Err e = {0};
    if (m->chat_template.n == 0)
        return api_fail(x, 400, NULL,
                        "this model has no chat template; send a raw prompt to /v1/completions");
    TmplVars v = {.bos_token = tok_text(t, t->bos),
                  .eos_token = tok_text(t, t->eos),
                  .add_generation_prompt = true,
                  .now_unix = now_unix};
    if (r->tools) v.tools = (TmplData){&r->doc, r->tools};
    if (r->template_vars) v.more = (TmplData){&r->doc, r->template_vars};
    return tmpl_render(m->chat_template, r->messages, r->n_messages, &v, out, &e) ||
           api_take_err(x, &e);
}

/* A string, or an array of ids and strings; what a client wrote is text throughout. The tokens
 * that the model wants around a prompt are added unless it begins with an id. */
static bool api_encode_(const ApiRequest *r, const Tok *t, u32 node, TokIds *out, Err *e) {
    Str s;
    if (json_str(&r->doc, node, &s)) return tok_encode_prompt(t, s, NULL, out, e);
    u32 i = json_first(&r->doc, node);
    for (u32 k = 0, n = json_count(&r->doc, node); k < n; k++, i = json_next(&r->doc, i)) {
        i64 id = 0;
        bool ok = json_str(&r->doc, i, &s)
                      ? (k == 0 && t->add_bos ? tok_ids_push(out, t->bos, e) : true) &&
                            tok_encode(t, s, NULL, out, e)
                      : json_i64(&r->doc, i, &id) && tok_ids_push(out, (i32)id, e);
        if (!ok) return false;
    }
    return true;
}

/* In the words that clients look for when they want to know whether to shorten a conversation. */
static bool api_too_long_(const ApiRequest *r, i32 room, size_t n, ApiError *x) {
    if (api_is_anthropic_(r->route))
        return api_fail(x, 400, NULL, "prompt is too long: %zu tokens > %d maximum", n, room - 1);
    snprintf(x->param, sizeof x->param, "%s", r->n_messages ? "messages" : "prompt");
    return api_fail(
        x, 400, "context_length_exceeded",
        "This model's maximum context length is %d tokens. However, your %s resulted in %zu "
        "tokens. "
        "Please reduce the length of the %s.",
        room, x->param, n, x->param);
}

/* Prompt `which` of the request as ids, appended to out; it fits the context with room for a
 * token to spare. */
static bool api_prompt(const ApiRequest *r, i32 which, const ApiModel *m, i64 now_unix, TokIds *out,
                       ApiError *x) {
    const Tok *t = m->model->tok;
    TmplOut text = {0};
    Err e = {0};
    ASSERT(which >= 0 && which < r->n_prompts);
    if (r->n_messages) {
        if (!api_render_(r, m, now_unix, &text, x)) return false;
        tok_encode_prompt(t, buf_view(&text.text), (const u8 *)text.trust.p, out, &e);
        tmpl_out_free(&text);
    } else {
        api_encode_(r, t, r->prompts[which], out, &e);
    }
    if (e.code) return api_take_err(x, &e);
    if (out->n == 0) return api_bad_(x, "prompt", "the prompt is empty: give at least one token");
    size_t n = out->n + r->suffix_ids.n;
    i32 room = decode_room(&r->decode, m->n_ctx);
    return n < (size_t)room || r->route == API_COUNT_TOKENS || api_too_long_(r, room, n, x);
}

/* ---- replies: what all parts of one have in common ---- */

#define API_ID_MAX 48

typedef struct {
    const ApiRequest *req;
    const ApiModel *m;
    char id[API_ID_MAX];
    i64 created_unix;
} ApiReply;

/* random: any 16 bytes that no other reply has. */
static ApiReply api_reply(const ApiRequest *r, const ApiModel *m, i64 now_unix,
                          const u64 random[2]) {
    ApiReply a = {.req = r, .m = m, .created_unix = now_unix};
    const char *prefix = r->route == API_CHAT       ? "chatcmpl-"
                         : r->route == API_MESSAGES ? "msg_"
                                                    : "cmpl-";
    snprintf(a.id, sizeof a.id, "%s%016llx%016llx", prefix, (unsigned long long)random[0],
             (unsigned long long)random[1]);
    return a;
}

/* An answer that is complete: one choice of a reply. */
typedef struct {
    const DecodeResult *r;
    Str logprobs;  /* JSON, from ApiLogprobs; empty: none were wanted */
    f64 ms_queue;  /* waiting for a slot */
    size_t n_sent; /* bytes of its text that the stream has carried */
} ApiAnswer;

/* ---- log probabilities: of the token in the forward that revealed it ---- */

/* ln(p) of 0 < p <= 1: p = m * 2^k with m in [sqrt(1/2), sqrt(2)), and ln m = 2 artanh((m - 1) /
 * (m + 1)), whose series in z^2 < 0.0295 has an error below 1e-13 after 8 terms. */
static f64 api_ln_(f64 p) {
    u64 bits;
    memcpy(&bits, &p, sizeof bits);
    i32 k = (i32)(bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffffu) | (u64)1023 << 52;
    f64 m, sum = 0;
    memcpy(&m, &bits, sizeof m);
    if (m > 1.4142135623730951) m /= 2, k++;
    f64 z = (m - 1) / (m + 1), power = z;
    for (i32 i = 1; i <= 15; i += 2, power *= z * z) sum += power / i;
    return 2 * sum + k * 0.6931471805599453;
}

/* The number that stands for "never" where a client wants a number. */
#define API_NEVER (-9999.0)

static void api_put_logprob_(Buf *out, const char *before, f32 prob) {
    api_put_real_(out, before, prob >= 1e-37f ? api_ln_(prob < 1 ? prob : 1) : API_NEVER);
}

/* Collects the log probabilities of a choice, or of the piece of it that the next chunk carries. */
typedef struct {
    Buf part[4]; /* elements: of four arrays in OpenAI's completions, else of one, of objects */
    u64 n_chars; /* code points of the tokens so far: text_offset */
    i32 n;
} ApiLogprobs;

static void api_logprobs_free(ApiLogprobs *l) {
    for (size_t i = 0; i < COUNT_OF(l->part); i++) buf_free(&l->part[i]);
}

/* Forgets what a chunk has carried. */
static void api_logprobs_clear(ApiLogprobs *l) {
    for (size_t i = 0; i < COUNT_OF(l->part); i++) buf_clear(&l->part[i]);
    l->n = 0;
}

/* "token": text, "bytes": [...] as OpenAI has them. */
static void api_put_token_(Buf *out, const Tok *t, i32 id, bool with_id) {
    Buf bytes = {0};
    if (!tok_bytes(t, id, true, &bytes)) out->failed = true;
    if (with_id) buf_printf(out, "\"id\":%d,", id);
    api_put_text_(out, "\"token\":", buf_view(&bytes));
    buf_str(out, STR(",\"bytes\":["));
    for (size_t i = 0; i < bytes.n; i++) buf_printf(out, "%s%u", i ? "," : "", (u8)bytes.p[i]);
    buf_char(out, ']');
    buf_free(&bytes);
}

static void api_put_token_text_(Buf *out, const Tok *t, i32 id) {
    Buf bytes = {0};
    if (!tok_bytes(t, id, true, &bytes)) out->failed = true;
    json_put_str(out, buf_view(&bytes));
    buf_free(&bytes);
}

/* {token: logprob, ...}: of tokens that are spelled alike the likeliest stands. */
static void api_put_top_map_(Buf *out, const Tok *t, const DecodeToken *token) {
    buf_char(out, '{');
    for (i32 i = 0, n = 0; i < token->n_top; i++) {
        Buf key = {0};
        api_put_token_text_(&key, t, token->top[i].token);
        bool twin = key.failed;
        for (i32 k = 0; k < i && !twin; k++) {
            Buf other = {0};
            api_put_token_text_(&other, t, token->top[k].token);
            twin = str_eq(buf_view(&key), buf_view(&other));
            buf_free(&other);
        }
        if (!twin) {
            if (n++) buf_char(out, ',');
            buf_str(out, buf_view(&key));
            api_put_logprob_(out, ":", token->top[i].prob);
        }
        out->failed |= key.failed;
        buf_free(&key);
    }
    buf_char(out, '}');
}

static u64 api_count_chars_(const Tok *t, i32 id) {
    Buf bytes = {0};
    u64 n = 0;
    tok_bytes(t, id, false, &bytes);
    for (size_t i = 0; i < bytes.n; n++) utf8_next(buf_view(&bytes), &i);
    buf_free(&bytes);
    return n;
}

/* Takes the next token of the answer: to be called for each DecodeEvents.token when the request
 * wants them. */
static void api_logprobs_add(ApiLogprobs *l, const ApiReply *a, const DecodeToken *token) {
    const Tok *t = a->m->model->tok;
    Buf *out = l->part;
    bool llama = a->req->route == API_LLAMA;
    for (size_t i = 0; l->n && i < COUNT_OF(l->part); i++) buf_char(&out[i], ',');
    l->n++;
    if (a->req->route == API_COMPLETIONS) {
        api_put_token_text_(&out[0], t, token->token);
        api_put_logprob_(&out[1], "", token->prob);
        api_put_top_map_(&out[2], t, token);
        buf_printf(&out[3], "%llu", (unsigned long long)l->n_chars);
        l->n_chars += api_count_chars_(t, token->token);
        return;
    }
    buf_char(out, '{');
    api_put_token_(out, t, token->token, llama);
    api_put_logprob_(out, ",\"logprob\":", token->prob);
    buf_str(out, STR(",\"top_logprobs\":["));
    for (i32 i = 0; i < token->n_top; i++) {
        buf_str(out, i ? STR(",{") : STR("{"));
        api_put_token_(out, t, token->top[i].token, llama);
        api_put_logprob_(out, ",\"logprob\":", token->top[i].prob);
        buf_char(out, '}');
    }
    buf_str(out, STR("]}"));
}

/* What was collected, as the value that the dialect wants. */
static void api_put_logprobs(Buf *out, const ApiReply *a, const ApiLogprobs *l) {
    static const char *const names[] = {"{\"tokens\":[", "],\"token_logprobs\":[",
                                        "],\"top_logprobs\":[", "],\"text_offset\":["};
    if (a->req->route == API_COMPLETIONS) {
        for (size_t i = 0; i < COUNT_OF(names); i++) {
            buf_printf(out, "%s", names[i]);
            buf_str(out, buf_view(&l->part[i]));
        }
        buf_str(out, STR("]}"));
    } else if (a->req->route == API_LLAMA) {
        buf_printf(out, "[%s]", l->part[0].p ? l->part[0].p : "");
    } else {
        buf_printf(out, "{\"content\":[%s],\"refusal\":null}", l->part[0].p ? l->part[0].p : "");
    }
    for (size_t i = 0; i < COUNT_OF(l->part); i++) out->failed |= l->part[i].failed;
}

/* ---- what is told of finished answers ---- */

/* Answers added up: prompts count once, however many choices were made for them. */
typedef struct {
    i64 n_prompt, n_cached, n_out, n_prefill, n_denoise, n_commit, n_ar, n_forwards;
    f64 ms_prefill, ms_decode, ms_first, ms_queue;
} ApiTotal_;

static ApiTotal_ api_total_(const ApiReply *a, const ApiAnswer *answers, i32 n) {
    ApiTotal_ t = {0};
    for (i32 i = 0; i < n; i++) {
        const DecodeResult *r = answers[i].r;
        bool first = i % a->req->n == 0;
        t.n_prompt += first ? r->n_prompt : 0;
        t.n_cached += first ? r->n_cached : 0;
        t.n_out += (i64)r->ids.n;
        t.n_prefill += r->n_forwards_prefill, t.n_denoise += r->n_forwards_denoise;
        t.n_commit += r->n_forwards_commit, t.n_ar += r->n_forwards_ar;
        t.n_forwards += decode_forwards(r);
        t.ms_prefill += r->ms_prefill, t.ms_decode += r->ms_decode;
        t.ms_first = MAX_OF(t.ms_first, r->ms_first_token);
        t.ms_queue = MAX_OF(t.ms_queue, answers[i].ms_queue);
    }
    return t;
}

static f64 api_ratio_(f64 a, f64 b) {
    return b > 0 ? a / b : 0;
}

static void api_put_usage_(Buf *out, const ApiTotal_ *t) {
    buf_printf(out,
               "{\"prompt_tokens\":%lld,\"completion_tokens\":%lld,\"total_tokens\":%lld,"
               "\"prompt_tokens_details\":{\"cached_tokens\":%lld}}",
               (long long)t->n_prompt, (long long)t->n_out, (long long)(t->n_prompt + t->n_out),
               (long long)t->n_cached);
}

/* llama.cpp's names, and what a diffusion model has beside them. */
static void api_put_timings_(Buf *out, const ApiTotal_ *t) {
    f64 n_new = (f64)(t->n_prompt - t->n_cached), n_out = (f64)t->n_out;
    buf_printf(out, "{\"cache_n\":%lld,\"prompt_n\":%lld", (long long)t->n_cached,
               (long long)(t->n_prompt - t->n_cached));
    api_put_time_(out, ",\"prompt_ms\":", t->ms_prefill);
    api_put_time_(out, ",\"prompt_per_token_ms\":", api_ratio_(t->ms_prefill, n_new));
    api_put_time_(out, ",\"prompt_per_second\":", api_ratio_(n_new * 1e3, t->ms_prefill));
    buf_printf(out, ",\"predicted_n\":%lld", (long long)t->n_out);
    api_put_time_(out, ",\"predicted_ms\":", t->ms_decode);
    api_put_time_(out, ",\"predicted_per_token_ms\":", api_ratio_(t->ms_decode, n_out));
    api_put_time_(out, ",\"predicted_per_second\":", api_ratio_(n_out * 1e3, t->ms_decode));
    api_put_time_(out, ",\"queue_ms\":", t->ms_queue);
    api_put_time_(out, ",\"first_token_ms\":", t->ms_first);
    buf_printf(out, ",\"forwards\":{\"prefill\":%lld,\"denoise\":%lld,\"commit\":%lld,\"ar\":%lld}",
               (long long)t->n_prefill, (long long)t->n_denoise, (long long)t->n_commit,
               (long long)t->n_ar);
    api_put_time_(out, ",\"tokens_per_forward\":", api_ratio_(n_out, (f64)t->n_forwards));
    buf_char(out, '}');
}

/* The stop string before which the answer was cut; .p is NULL when it was not. The answer's
 * tokens spell more than its text then, and the stop string is what comes next. */
static Str api_stop_word_(const ApiReply *a, const DecodeResult *r) {
    const Tok *t = a->m->model->tok;
    const DecodeParams *d = &a->req->decode;
    Str word = {NULL, 0};
    bool by_token = r->ids.n && tok_is_eog(t, r->ids.p[r->ids.n - 1]);
    if (strcmp(r->finish, "stop") != 0 || by_token) return word;
    Buf bytes = {.max = DECODE_TEXT_MAX}, text = {.max = DECODE_TEXT_MAX};
    TokUtf8 utf8 = {0};
    for (size_t i = 0; i < r->ids.n; i++) tok_bytes(t, r->ids.p[i], false, &bytes);
    tok_utf8_put(&utf8, buf_view(&bytes), &text);
    Str rest = str_cut(buf_view(&text), r->text.n, text.n);
    for (i32 i = 0; i < d->n_stops && !word.p; i++)
        if (str_starts(rest, d->stops[i])) word = d->stops[i];
    buf_free(&bytes);
    buf_free(&text);
    return word;
}

/* An answer that was cut off from outside is as good as one that became too long. */
static const char *api_finish_(const DecodeResult *r) {
    return strcmp(r->finish, "stop") == 0 ? "stop" : "length";
}

/* The text of a raw prompt: as it was sent, ids as what they spell. */
static void api_put_prompt_text_(Buf *out, const ApiReply *a, i32 which) {
    const JsonDoc *d = &a->req->doc;
    u32 node = a->req->prompts[which], i = json_first(d, node);
    Buf text = {0};
    Str s;
    i64 id;
    if (json_str(d, node, &s)) buf_str(&text, s);
    for (u32 n = json_count(d, node); n > 0; n--, i = json_next(d, i)) {
        if (json_str(d, i, &s))
            buf_str(&text, s);
        else if (json_i64(d, i, &id))
            tok_bytes(a->m->model->tok, (i32)id, true, &text);
    }
    json_put_str(out, buf_view(&text));
    out->failed |= text.failed;
    buf_free(&text);
}

/* The answer's text as a JSON string; echo puts the prompt before it. */
static void api_put_answer_text_(Buf *out, const ApiReply *a, i32 index, const DecodeResult *r) {
    if (a->req->echo) {
        api_put_prompt_text_(out, a, index / a->req->n);
        if (!out->failed)
            out->n--; /* one string of two: the answer's opening quote goes with this closing one */
        Buf answer = {0};
        json_put_str(&answer, buf_view(&r->text));
        buf_str(out, str_cut(buf_view(&answer), 1, answer.n));
        out->failed |= answer.failed;
        buf_free(&answer);
        return;
    }
    json_put_str(out, buf_view(&r->text));
}

static void api_put_ids_(Buf *out, const i32 *ids, size_t n) {
    buf_char(out, '[');
    for (size_t i = 0; i < n; i++) buf_printf(out, "%s%d", i ? "," : "", ids[i]);
    buf_char(out, ']');
}

/* {"id": ..., and the rest that every OpenAI body begins with. */
static void api_put_head_(Buf *out, const ApiReply *a, const char *object) {
    api_put_text_(out, "{\"id\":", str_of(a->id));
    api_put_text_(out, ",\"object\":", str_of(object));
    buf_printf(out, ",\"created\":%lld", (long long)a->created_unix);
    api_put_text_(out, ",\"model\":", a->m->name);
    buf_str(out, STR(",\"system_fingerprint\":\"dlm-"));
    buf_str(out, a->m->version);
    buf_char(out, '"');
}

/* {"index": ..., up to the finish reason, which may be NULL; body: the member that tells the
 * text. */
static void api_put_choice_(Buf *out, i32 index, Str body, Str logprobs, const char *finish) {
    buf_printf(out, "{\"index\":%d,", index);
    buf_str(out, body);
    buf_str(out, STR(",\"logprobs\":"));
    buf_str(out, logprobs.n ? logprobs : STR("null"));
    api_put_or_null_(out, ",\"finish_reason\":", finish);
    buf_char(out, '}');
}

/* ---- calls of tools ---- */

/* The calls in a complete answer to a request with tools; to others all is text. */
static void api_read_answer_(const ApiReply *a, const DecodeResult *r, Calls *c) {
    Str text = buf_view(&r->text);
    *c = (Calls){.text = text};
    if (!a->req->tools || a->req->route != API_CHAT) return;
    calls_read(c, text);
    if (!a->req->parallel_tool_calls) c->n = MIN_OF(c->n, 1);
}

/* "tool_calls": [...]; streamed ones are numbered. */
static void api_put_calls_(Buf *out, const ApiReply *a, i32 index, const Calls *c, bool numbered) {
    buf_str(out, STR("\"tool_calls\":["));
    for (i32 i = 0; i < c->n; i++) {
        buf_str(out, i ? STR(",{") : STR("{"));
        if (numbered) buf_printf(out, "\"index\":%d,", i);
        buf_printf(out, "\"id\":\"call_%.16s_%d_%d\",\"type\":\"function\"",
                   a->id + sizeof "chatcmpl-" - 1, index, i);
        api_put_text_(out, ",\"function\":{\"name\":", c->calls[i].name);
        api_put_text_(out, ",\"arguments\":", c->calls[i].arguments);
        buf_str(out, STR("}}"));
    }
    buf_char(out, ']');
}

static const char *api_call_finish_(const DecodeResult *r, const Calls *c) {
    const char *finish = api_finish_(r);
    return c->n && strcmp(finish, "stop") == 0 ? "tool_calls" : finish;
}

/* A choice of a chat: the message, with text or calls or both. */
static void api_put_message_choice_(Buf *out, const ApiReply *a, i32 index,
                                    const ApiAnswer *answer) {
    Buf body = {.max = API_REPLY_MAX};
    Calls c;
    api_read_answer_(a, answer->r, &c);
    buf_str(&body, STR("\"message\":{\"role\":\"assistant\",\"content\":"));
    if (c.n && !c.text.n)
        buf_str(&body, STR("null"));
    else
        json_put_str(&body, c.text);
    buf_str(&body, STR(",\"refusal\":null"));
    if (c.n) {
        buf_char(&body, ',');
        api_put_calls_(&body, a, index, &c, false);
    }
    buf_char(&body, '}');
    api_put_choice_(out, index, buf_view(&body), answer->logprobs, api_call_finish_(answer->r, &c));
    out->failed |= body.failed;
    buf_free(&body);
    calls_free(&c);
}

static void api_put_openai_(Buf *out, const ApiReply *a, const ApiAnswer *answers, i32 n) {
    bool chat = a->req->route == API_CHAT;
    ApiTotal_ total = api_total_(a, answers, n);
    api_put_head_(out, a, chat ? "chat.completion" : "text_completion");
    buf_str(out, STR(",\"choices\":["));
    for (i32 i = 0; i < n; i++) {
        Buf body = {.max = API_REPLY_MAX};
        if (i) buf_char(out, ',');
        if (chat) {
            api_put_message_choice_(out, a, i, &answers[i]);
            continue;
        }
        buf_str(&body, STR("\"text\":"));
        api_put_answer_text_(&body, a, i, answers[i].r);
        api_put_choice_(out, i, buf_view(&body), answers[i].logprobs, api_finish_(answers[i].r));
        out->failed |= body.failed;
        buf_free(&body);
    }
    buf_str(out, STR("],\"usage\":"));
    api_put_usage_(out, &total);
    buf_str(out, STR(",\"timings\":"));
    api_put_timings_(out, &total);
    buf_char(out, '}');
}

/* How the request is decoded, with the model's values where it left them open. */
static void api_put_settings_(Buf *out, const ApiModel *m, const DecodeParams *asked) {
    const DecodeParams use = decode_resolved(&m->model->decode, asked), *d = &use;
    buf_printf(out, "{\"n_ctx\":%d,\"n_predict\":%d", m->n_ctx,
               d->max_tokens == INT32_MAX ? -1 : d->max_tokens);
    api_put_real_(out, ",\"temperature\":", (f64)d->sample.temperature);
    buf_printf(out, ",\"top_k\":%d", d->sample.top_k);
    api_put_real_(out, ",\"top_p\":", (f64)d->sample.top_p);
    api_put_real_(out, ",\"min_p\":", (f64)d->sample.min_p);
    api_put_real_(out, ",\"presence_penalty\":", (f64)d->presence_penalty);
    api_put_real_(out, ",\"frequency_penalty\":", (f64)d->frequency_penalty);
    api_put_real_(out, ",\"repeat_penalty\":", (f64)d->repetition_penalty);
    api_put_text_(out, ",\"decode_mode\":", str_of(DECODE_MODE_NAMES[d->mode]));
    api_put_text_(out, ",\"rule\":", str_of(MODEL_RULE_NAMES[d->rule]));
    api_put_real_(out, ",\"threshold\":", (f64)d->threshold);
    buf_printf(out, ",\"steps\":%d,\"block_size\":%d,\"sub_block_size\":%d", d->steps,
               d->block_size, d->sub_block_size);
    api_put_text_(out, ",\"cache\":", str_of(MODEL_CACHE_NAMES[d->cache]));
    buf_printf(out, ",\"dual_cache\":%s", d->cache != CACHE_NONE ? "true" : "false");
    api_put_real_(out, ",\"cfg_scale\":", (f64)d->cfg_scale);
    buf_printf(out, ",\"early_stop\":%s", d->early_stop ? "true" : "false");
    buf_str(out, STR(",\"stop\":["));
    for (i32 i = 0; i < d->n_stops; i++) {
        if (i) buf_char(out, ',');
        json_put_str(out, d->stops[i]);
    }
    buf_str(out, STR("]}"));
}

/* llama.cpp's own shape; the last event of its stream is the same without the text. */
static void api_put_llama_(Buf *out, const ApiReply *a, const ApiAnswer *answer, bool stream) {
    const DecodeResult *r = answer->r;
    const ApiRequest *req = a->req;
    ApiTotal_ total = api_total_(a, answer, 1);
    Str word = api_stop_word_(a, r);
    bool length = strcmp(api_finish_(r), "length") == 0;
    bool full = length && (i64)r->ids.n < req->decode.max_tokens;
    buf_str(out, STR("{\"index\":0,\"content\":"));
    json_put_str(out, stream ? STR("") : buf_view(&r->text));
    buf_str(out, STR(",\"tokens\":"));
    api_put_ids_(out, r->ids.p, req->return_tokens ? r->ids.n : 0);
    buf_str(out, STR(",\"id_slot\":-1,\"stop\":true"));
    api_put_text_(out, ",\"model\":", a->m->name);
    buf_printf(out, ",\"tokens_predicted\":%zu,\"tokens_evaluated\":%d", r->ids.n, r->n_prompt);
    buf_str(out, STR(",\"generation_settings\":"));
    api_put_settings_(out, a->m, &req->decode);
    buf_str(out, STR(",\"prompt\":"));
    api_put_prompt_text_(out, a, 0);
    buf_printf(out, ",\"truncated\":%s", full ? "true" : "false");
    api_put_text_(out, ",\"stop_type\":",
                  length   ? STR("limit")
                  : word.p ? STR("word")
                           : STR("eos"));
    api_put_text_(out, ",\"stopping_word\":", word);
    buf_printf(out, ",\"tokens_cached\":%d,\"timings\":", r->n_cached);
    api_put_timings_(out, &total);
    if (answer->logprobs.n) {
        buf_str(out, STR(",\"completion_probabilities\":"));
        buf_str(out, answer->logprobs);
    }
    buf_char(out, '}');
}

/* ---- Anthropic's messages ---- */

/* input_tokens are those that were not in the cache: the parts add up to the prompt. */
static void api_put_message_usage_(Buf *out, i32 n_prompt, i32 n_cached, size_t n_out) {
    buf_printf(
        out,
        "{\"input_tokens\":%d,\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":%d,"
        "\"output_tokens\":%zu}",
        n_prompt - n_cached, n_cached, n_out);
}

static void api_put_stop_reason_(Buf *out, const ApiReply *a, const DecodeResult *r) {
    Str word = api_stop_word_(a, r);
    bool length = strcmp(api_finish_(r), "length") == 0;
    buf_printf(out, "\"stop_reason\":\"%s\",\"stop_sequence\":",
               length   ? "max_tokens"
               : word.p ? "stop_sequence"
                        : "end_turn");
    if (word.p)
        json_put_str(out, word);
    else
        buf_str(out, STR("null"));
}

/* A message up to its usage; r: NULL while it has not been answered. */
static void api_put_message_(Buf *out, const ApiReply *a, const DecodeResult *r) {
    api_put_text_(out, "{\"id\":", str_of(a->id));
    api_put_text_(out, ",\"type\":\"message\",\"role\":\"assistant\",\"model\":", a->m->name);
    buf_str(out, STR(",\"content\":["));
    if (r) {
        api_put_text_(out, "{\"type\":\"text\",\"text\":", buf_view(&r->text));
        buf_char(out, '}');
    }
    buf_str(out, STR("],"));
    if (r)
        api_put_stop_reason_(out, a, r);
    else
        buf_str(out, STR("\"stop_reason\":null,\"stop_sequence\":null"));
}

/* The body of a request that is answered whole. answers: [api_n_choices] */
static void api_put_answer(Buf *out, const ApiReply *a, const ApiAnswer *answers) {
    const DecodeResult *r = answers[0].r;
    if (a->req->route == API_LLAMA) {
        api_put_llama_(out, a, &answers[0], false);
    } else if (a->req->route == API_MESSAGES) {
        ApiTotal_ total = api_total_(a, answers, 1);
        api_put_message_(out, a, r);
        buf_str(out, STR(",\"usage\":"));
        api_put_message_usage_(out, r->n_prompt, r->n_cached, r->ids.n);
        buf_str(out, STR(",\"timings\":"));
        api_put_timings_(out, &total);
        buf_char(out, '}');
    } else {
        api_put_openai_(out, a, answers, api_n_choices(a->req));
    }
}

/* ---- streams: server-sent events. Each call appends whole events ---- */

static void api_send_(Buf *out, const char *event, Buf *data) {
    if (data->failed)
        out->failed = true;
    else
        http_put_event(out, event, buf_view(data));
    buf_free(data);
}

/* One chunk of OpenAI's dialects, with one choice. text: NULL for none. tail: members after the
 * choices, or empty. */
static void api_send_chunk_(Buf *out, const ApiReply *a, i32 index, const Str *text, Str logprobs,
                            const char *finish, Str tail) {
    bool chat = a->req->route == API_CHAT;
    Buf line = {0}, body = {0};
    if (chat) buf_str(&body, STR("\"delta\":{"));
    if (text)
        api_put_text_(&body, chat ? "\"content\":" : "\"text\":", *text);
    else if (!chat)
        buf_str(&body, STR("\"text\":\"\""));
    if (chat) buf_char(&body, '}');
    api_put_head_(&line, a, chat ? "chat.completion.chunk" : "text_completion");
    buf_str(&line, STR(",\"choices\":["));
    api_put_choice_(&line, index, buf_view(&body), logprobs, finish);
    buf_char(&line, ']');
    if (a->req->include_usage) buf_str(&line, STR(",\"usage\":null"));
    buf_str(&line, tail);
    buf_char(&line, '}');
    line.failed |= body.failed;
    buf_free(&body);
    api_send_(out, NULL, &line);
}

/* Before the first text of choice `index`, when its prompt's length is known. */
static void api_put_stream_begin(Buf *out, const ApiReply *a, i32 index, i32 n_prompt,
                                 i32 n_cached) {
    Buf line = {0};
    if (a->req->route == API_CHAT) {
        api_put_head_(&line, a, "chat.completion.chunk");
        buf_printf(
            &line,
            ",\"choices\":[{\"index\":%d,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
            "\"logprobs\":null,\"finish_reason\":null}]%s}",
            index, a->req->include_usage ? ",\"usage\":null" : "");
        api_send_(out, NULL, &line);
    } else if (a->req->route == API_MESSAGES) {
        buf_str(&line, STR("{\"type\":\"message_start\",\"message\":"));
        api_put_message_(&line, a, NULL);
        buf_str(&line, STR(",\"usage\":"));
        api_put_message_usage_(&line, n_prompt, n_cached, 0);
        buf_str(&line, STR("}}"));
        api_send_(out, "message_start", &line);
        http_put_event(out, "content_block_start",
                       STR("{\"type\":\"content_block_start\",\"index\":0,"
                           "\"content_block\":{\"type\":\"text\",\"text\":\"\"}}"));
    } else if (a->req->echo) {
        DecodeResult nothing = {0};
        Buf body = {0};
        buf_str(&body, STR("\"text\":"));
        api_put_answer_text_(&body, a, index, &nothing);
        api_put_head_(&line, a, "text_completion");
        buf_str(&line, STR(",\"choices\":["));
        api_put_choice_(&line, index, buf_view(&body), (Str){0}, NULL);
        buf_printf(&line, "]%s}", a->req->include_usage ? ",\"usage\":null" : "");
        line.failed |= body.failed;
        buf_free(&body);
        api_send_(out, NULL, &line);
    }
}

/* The next text of choice `index`. logprobs: JSON of the tokens that came with it, or empty. */
static void api_put_stream_text(Buf *out, const ApiReply *a, i32 index, Str text, Str logprobs) {
    Buf line = {0};
    if (a->req->route == API_MESSAGES) {
        api_put_text_(&line,
                      "{\"type\":\"content_block_delta\",\"index\":0,"
                      "\"delta\":{\"type\":\"text_delta\",\"text\":",
                      text);
        buf_str(&line, STR("}}"));
        api_send_(out, "content_block_delta", &line);
    } else if (a->req->route == API_LLAMA) {
        api_put_text_(&line, "{\"index\":0,\"content\":", text);
        buf_str(&line, STR(",\"tokens\":[],\"stop\":false,\"id_slot\":-1"));
        if (logprobs.n) {
            buf_str(&line, STR(",\"completion_probabilities\":"));
            buf_str(&line, logprobs);
        }
        buf_char(&line, '}');
        api_send_(out, NULL, &line);
    } else {
        api_send_chunk_(out, a, index, &text, logprobs, NULL, (Str){"", 0});
    }
}

/* A stream whose end may be calls of tools: what they may begin with waits. */
typedef struct {
    Buf text;
    size_t n_sent; /* bytes of it */
} ApiHeld;

/* What can be sent now that `text` has come. */
static Str api_release(ApiHeld *h, const ApiReply *a, Str text) {
    if (!a->req->tools || a->req->route != API_CHAT) return text;
    buf_str(&h->text, text);
    Str rest = str_cut(buf_view(&h->text), h->n_sent, h->text.n);
    rest.n -= calls_held(rest);
    h->n_sent += rest.n;
    return rest;
}

/* What was held back to the end: the calls, or text. */
static const char *api_put_stream_calls_(Buf *out, const ApiReply *a, i32 index,
                                         const ApiAnswer *answer) {
    Buf line = {0}, body = {0};
    Calls c;
    if (!a->req->tools || a->req->route != API_CHAT) return api_finish_(answer->r);
    api_read_answer_(a, answer->r, &c);
    Str all = buf_view(&answer->r->text);
    Str rest = str_cut(all, answer->n_sent, c.text.n);
    if (rest.n) api_send_chunk_(out, a, index, &rest, (Str){0}, NULL, (Str){"", 0});
    if (c.n) {
        buf_str(&body, STR("\"delta\":{"));
        api_put_calls_(&body, a, index, &c, true);
        buf_char(&body, '}');
        api_put_head_(&line, a, "chat.completion.chunk");
        buf_str(&line, STR(",\"choices\":["));
        api_put_choice_(&line, index, buf_view(&body), (Str){0}, NULL);
        buf_str(&line, a->req->include_usage ? STR("],\"usage\":null}") : STR("]}"));
        line.failed |= body.failed;
        api_send_(out, NULL, &line);
    }
    const char *finish = api_call_finish_(answer->r, &c);
    buf_free(&body);
    calls_free(&c);
    return finish;
}

/* A block as it stands, in the member "dlm". Positions count from the answer's first token; the
 * prompt's are left out. Masked positions have neither token nor confidence yet. */
static void api_put_diffusion_(Buf *out, const ApiReply *a, const DecodeStep *s) {
    i32 begin = MAX_OF(s->block_begin, s->n_prompt), next = 0;
    buf_printf(out, "{\"kind\":\"%s\",\"block\":%d,\"step\":%d,\"rows\":%d", s->kind, s->block,
               s->step, s->n_rows);
    api_put_real_(out, ",\"ms\":", s->ms);
    buf_str(out, STR(",\"cells\":["));
    for (i32 pos = begin; pos < s->block_end; pos++) {
        i32 at = pos - s->block_begin;
        while (next < s->n_reveals && s->reveals[next].pos < pos) next++;
        bool now = next < s->n_reveals && s->reveals[next].pos == pos;
        buf_printf(out, "%s{\"pos\":%d,", pos > begin ? "," : "", pos - s->n_prompt);
        if (s->masked[at]) {
            buf_str(out, STR("\"id\":null,\"text\":null,\"confidence\":null,"
                             "\"revealed\":false,\"new\":false}"));
            continue;
        }
        buf_printf(out, "\"id\":%d,\"text\":", s->tokens[at]);
        api_put_token_text_(out, a->m->model->tok, s->tokens[at]);
        api_put_real_(out, ",\"confidence\":", (f64)s->probs[at]);
        buf_printf(out, ",\"revealed\":true,\"new\":%s}", now ? "true" : "false");
    }
    buf_str(out, STR("]}"));
}

/* What a forward made of the block of choice `index`; for requests with include_diffusion. SDKs
 * see an empty delta, or an event that they do not know. */
static void api_put_stream_step(Buf *out, const ApiReply *a, i32 index, const DecodeStep *s) {
    Buf state = {0}, line = {0};
    api_put_diffusion_(&state, a, s);
    if (a->req->route == API_MESSAGES) {
        buf_str(&line, STR("{\"type\":\"dlm\",\"dlm\":"));
        buf_str(&line, buf_view(&state));
        buf_char(&line, '}');
        line.failed |= state.failed;
        api_send_(out, "dlm", &line);
    } else if (a->req->route == API_LLAMA) {
        buf_str(&line, STR("{\"index\":0,\"content\":\"\",\"tokens\":[],\"stop\":false,"
                           "\"id_slot\":-1,\"dlm\":"));
        buf_str(&line, buf_view(&state));
        buf_char(&line, '}');
        line.failed |= state.failed;
        api_send_(out, NULL, &line);
    } else {
        buf_str(&line, STR(",\"dlm\":"));
        buf_str(&line, buf_view(&state));
        line.failed |= state.failed;
        if (line.failed)
            out->failed = true;
        else
            api_send_chunk_(out, a, index, NULL, (Str){0}, NULL, buf_view(&line));
        buf_free(&line);
    }
    buf_free(&state);
}

/* Choice `index` is complete. answer->logprobs: of tokens that no text chunk has carried, or
 * empty. */
static void api_put_stream_finish(Buf *out, const ApiReply *a, i32 index, const ApiAnswer *answer) {
    Buf line = {0};
    if (a->req->route == API_MESSAGES) {
        http_put_event(out, "content_block_stop",
                       STR("{\"type\":\"content_block_stop\",\"index\":0}"));
        buf_str(&line, STR("{\"type\":\"message_delta\",\"delta\":{"));
        api_put_stop_reason_(&line, a, answer->r);
        buf_str(&line, STR("},\"usage\":"));
        api_put_message_usage_(&line, answer->r->n_prompt, answer->r->n_cached, answer->r->ids.n);
        buf_char(&line, '}');
        api_send_(out, "message_delta", &line);
    } else if (a->req->route == API_LLAMA) {
        api_put_llama_(&line, a, answer, true);
        api_send_(out, NULL, &line);
    } else {
        ApiTotal_ total = api_total_(a, answer, 1);
        const char *finish = api_put_stream_calls_(out, a, index, answer);
        buf_str(&line, STR(",\"timings\":"));
        api_put_timings_(&line, &total);
        if (line.failed)
            out->failed = true;
        else
            api_send_chunk_(out, a, index, NULL, answer->logprobs, finish, buf_view(&line));
        buf_free(&line);
    }
}

/* All choices are complete. answers: [api_n_choices] */
static void api_put_stream_end(Buf *out, const ApiReply *a, const ApiAnswer *answers) {
    Buf line = {0};
    if (a->req->route == API_MESSAGES) {
        http_put_event(out, "message_stop", STR("{\"type\":\"message_stop\"}"));
        return;
    }
    if (a->req->route == API_LLAMA) return;
    if (a->req->include_usage) {
        ApiTotal_ total = api_total_(a, answers, api_n_choices(a->req));
        api_put_head_(&line, a,
                      a->req->route == API_CHAT ? "chat.completion.chunk" : "text_completion");
        buf_str(&line, STR(",\"choices\":[],\"usage\":"));
        api_put_usage_(&line, &total);
        buf_str(&line, STR(",\"timings\":"));
        api_put_timings_(&line, &total);
        buf_char(&line, '}');
        api_send_(out, NULL, &line);
    }
    http_put_event(out, NULL, STR("[DONE]"));
}

/* The stream breaks off: after this nothing follows, not even [DONE]. */
static void api_put_stream_error(Buf *out, ApiRoute route, const ApiError *x, Str request_id) {
    Buf line = {0};
    api_put_error(&line, route, x, request_id);
    api_send_(out, api_is_anthropic_(route) ? "error" : NULL, &line);
}

/* Shows that the connection lives while a prompt is prefilled or waits. */
static void api_put_stream_ping(Buf *out, ApiRoute route) {
    if (api_is_anthropic_(route))
        http_put_event(out, "ping", STR("{\"type\":\"ping\"}"));
    else
        http_put_ping(out);
}

/* ---- what is answered without generating ---- */

static void api_put_piece_(Buf *out, const Tok *t, i32 id) {
    Buf bytes = {0};
    if (!tok_bytes(t, id, true, &bytes)) out->failed = true;
    buf_printf(out, "{\"id\":%d,\"piece\":", id);
    if (utf8_valid(buf_view(&bytes)) == bytes.n) {
        json_put_str(out, buf_view(&bytes));
    } else {
        for (size_t i = 0; i < bytes.n; i++) buf_printf(out, "%c%u", i ? ',' : '[', (u8)bytes.p[i]);
        buf_char(out, ']');
    }
    buf_char(out, '}');
    buf_free(&bytes);
}

static bool api_tokenize_(const ApiRequest *r, const Tok *t, TokIds *ids, Err *e) {
    u8 *trusted = NULL;
    if (r->parse_special) {
        if (!(trusted = mem_alloc(r->content.n, e))) return false;
        memset(trusted, 1, r->content.n);
    }
    bool ok = r->add_special ? tok_encode_prompt(t, r->content, trusted, ids, e)
                             : tok_encode(t, r->content, trusted, ids, e);
    mem_free(trusted);
    return ok;
}

static bool api_put_tokens_(Buf *out, const ApiRequest *r, const Tok *t, ApiError *x) {
    TokIds ids = {0};
    Err e = {0};
    bool ok = api_tokenize_(r, t, &ids, &e) || api_take_err(x, &e);
    buf_str(out, STR("{\"tokens\":"));
    if (!r->with_pieces) api_put_ids_(out, ids.p, ids.n);
    for (size_t i = 0; r->with_pieces && i < ids.n; i++) {
        buf_char(out, i ? ',' : '[');
        api_put_piece_(out, t, ids.p[i]);
    }
    if (r->with_pieces) buf_str(out, ids.n ? STR("]") : STR("[]"));
    buf_char(out, '}');
    tok_ids_free(&ids);
    return ok;
}

static void api_put_detokenized_(Buf *out, const ApiRequest *r, const Tok *t) {
    Buf bytes = {.max = API_REPLY_MAX};
    for (size_t i = 0; i < r->ids.n; i++)
        if (!tok_bytes(t, r->ids.p[i], true, &bytes)) out->failed = true;
    api_put_text_(out, "{\"content\":", tok_without_blank(t, buf_view(&bytes)));
    buf_char(out, '}');
    buf_free(&bytes);
}

/* Answers /tokenize, /detokenize, /apply-template and /v1/messages/count_tokens. */
static bool api_put_text_answer(Buf *out, const ApiRequest *r, const ApiModel *m, i64 now_unix,
                                ApiError *x) {
    if (r->route == API_TOKENIZE) return api_put_tokens_(out, r, m->model->tok, x);
    if (r->route == API_DETOKENIZE) {
        api_put_detokenized_(out, r, m->model->tok);
        return true;
    }
    if (r->route == API_TEMPLATE) {
        TmplOut text = {0};
        if (!api_render_(r, m, now_unix, &text, x)) return false;
        api_put_text_(out, "{\"prompt\":", buf_view(&text.text));
        buf_char(out, '}');
        tmpl_out_free(&text);
        return true;
    }
    ASSERT(r->route == API_COUNT_TOKENS);
    TokIds ids = {0};
    bool ok = api_prompt(r, 0, m, now_unix, &ids, x);
    buf_printf(out, "{\"input_tokens\":%zu}", ids.n);
    tok_ids_free(&ids);
    return ok;
}

static void api_put_health(Buf *out) {
    buf_str(out, STR("{\"status\":\"ok\"}"));
}

static u64 api_count_params_(const Gguf *g) {
    u64 sum = 0;
    for (u32 i = 0; i < g->n_tensors; i++) {
        u64 n = 1;
        for (u32 k = 0; k < g->tensors[i].n_dims; k++)
            n *= g->tensors[i].ne[k]; /* gguf_open checked the product */
        sum += n;
    }
    return sum;
}

static void api_put_model_(Buf *out, const ApiModel *m) {
    const Model *w = m->model;
    api_put_text_(out, "{\"id\":", m->name);
    buf_printf(out, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"dlm\",\"meta\":{",
               (long long)m->created_unix);
    buf_printf(out, "\"n_vocab\":%d,\"n_ctx\":%d,\"n_ctx_train\":%d,\"n_embd\":%d", w->n_vocab,
               m->n_ctx, w->n_ctx_train, w->n_embd);
    buf_printf(out, ",\"n_params\":%llu,\"size\":%llu}}",
               (unsigned long long)api_count_params_(w->file), (unsigned long long)w->file->n);
}

static void api_put_models(Buf *out, const ApiModel *m) {
    buf_str(out, STR("{\"object\":\"list\",\"data\":["));
    api_put_model_(out, m);
    buf_str(out, STR("]}"));
}

/* The model whose id, as it stands in the path, was asked for. */
static bool api_put_one_model(Buf *out, const ApiModel *m, Str id, ApiError *x) {
    Buf plain = {.max = 4096};
    bool found = http_unescape(&plain, id) && str_eq(buf_view(&plain), m->name);
    if (found)
        api_put_model_(out, m);
    else
        api_fail(x, 404, "model_not_found", "there is no model '%.*s' here; '%.*s' is served",
                 STR_ARG(buf_view(&plain)), STR_ARG(m->name));
    buf_free(&plain);
    return found;
}

static void api_put_props(Buf *out, const ApiModel *m) {
    const DecodeRecord *d = &m->model->decode;
    const Tok *t = m->model->tok;
    buf_str(
        out,
        STR("{\"default_generation_settings\":{\"id\":0,\"id_task\":-1,\"is_processing\":false"));
    buf_printf(out, ",\"n_ctx\":%d,\"params\":", m->n_ctx);
    api_put_settings_(out, m, &m->decode);
    buf_printf(out, "},\"total_slots\":%d", m->n_slots);
    api_put_text_(out, ",\"model_alias\":", m->name);
    api_put_text_(out, ",\"model_path\":", m->file);
    api_put_text_(out, ",\"chat_template\":", m->chat_template);
    api_put_text_(out, ",\"bos_token\":", tok_text(t, t->bos));
    api_put_text_(out, ",\"eos_token\":", tok_text(t, t->eos));
    api_put_text_(out, ",\"build_info\":", m->version);
    buf_str(out, STR(",\"modalities\":{\"vision\":false,\"audio\":false},\"is_sleeping\":false"));
    buf_printf(out,
               ",\"diffusion\":{\"can_diffuse\":%s,\"block_size\":%d,\"sub_block_size\":%d,"
               "\"block_size_max\":%d",
               d->mask_id >= 0 ? "true" : "false", d->block_size, d->sub_block_size, m->block_max);
    api_put_real_(out, ",\"threshold\":", (f64)d->threshold);
    api_put_text_(out, ",\"attention\":", str_of(MODEL_ATTENTION_NAMES[d->attention]));
    buf_str(out, STR(",\"modes\":["));
    for (size_t i = 0; i < COUNT_OF(DECODE_MODE_NAMES); i++)
        if (i == DECODE_AR || i == DECODE_AUTO || d->mask_id >= 0)
            buf_printf(out, "%s\"%s\"", i ? "," : "", DECODE_MODE_NAMES[i]);
    buf_str(out, STR("]}}"));
}

/* ---- metrics: counters that any thread may raise, and Prometheus' text of them ---- */

static const f64 API_BUCKETS[] = {0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1,
                                  2.5,  5,     10,   30,  60,   120, 300};
#define API_BUCKETS_N COUNT_OF(API_BUCKETS)
static const i32 API_STATUSES[] = {
    200, 204, 400, 401, 403, 404, 405, 408, 411, 413, 414, 415,
    417, 421, 429, 431, 499, 500, 501, 503, 504, 505, 0}; /* 0: any other */
static const char *const API_FINISHES[] = {"stop", "length", "cancelled"};
static const char *const API_FORWARDS[] = {"prefill", "denoise", "commit", "ar"};

typedef struct {
    _Atomic u64 in_bucket[API_BUCKETS_N + 1]; /* the last: beyond all */
    _Atomic u64 sum_us;
} ApiHistogram;

typedef struct {
    _Atomic u64 requests[API_ROUTES][COUNT_OF(API_STATUSES)];
    _Atomic u64 finished[COUNT_OF(API_FINISHES)];
    _Atomic u64 forwards[COUNT_OF(API_FORWARDS)];
    _Atomic u64 answer_forwards; /* decode_forwards of all answers */
    _Atomic u64 prompt_tokens, cached_tokens, generated_tokens, connections;
    ApiHistogram first_token, request, queue; /* seconds */
} ApiMetrics;

/* What is so now; the server fills it when metrics are asked for. */
typedef struct {
    i32 n_slots, n_busy, n_queued, n_connections;
    u64 rss_bytes;
    f64 start_unix;
    Str cpu_level;
} ApiGauges;

static void api_count_(_Atomic u64 *counter, u64 n) {
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static void api_observe_(ApiHistogram *h, f64 ms) {
    size_t i = 0;
    while (i < API_BUCKETS_N && ms > API_BUCKETS[i] * 1e3) i++;
    api_count_(&h->in_bucket[i], 1);
    api_count_(&h->sum_us, ms > 0 ? (u64)(ms * 1e3) : 0);
}

static void api_count_connection(ApiMetrics *m) {
    api_count_(&m->connections, 1);
}

/* A request was answered. ms: from its first byte to the last of the answer. */
static void api_count_request(ApiMetrics *m, ApiRoute route, i32 status, f64 ms) {
    size_t i = 0;
    while (API_STATUSES[i] && API_STATUSES[i] != status) i++;
    api_count_(&m->requests[route][i], 1);
    if (api_generates(route) && status == 200) api_observe_(&m->request, ms);
}

/* A choice was generated. */
static void api_count_answer(ApiMetrics *m, const ApiAnswer *answer) {
    const DecodeResult *r = answer->r;
    const i32 forwards[] = {r->n_forwards_prefill, r->n_forwards_denoise, r->n_forwards_commit,
                            r->n_forwards_ar};
    for (size_t i = 0; i < COUNT_OF(API_FINISHES); i++)
        if (strcmp(r->finish, API_FINISHES[i]) == 0) api_count_(&m->finished[i], 1);
    for (size_t i = 0; i < COUNT_OF(forwards); i++) api_count_(&m->forwards[i], (u64)forwards[i]);
    api_count_(&m->answer_forwards, (u64)decode_forwards(r));
    api_count_(&m->prompt_tokens, (u64)r->n_prompt);
    api_count_(&m->cached_tokens, (u64)r->n_cached);
    api_count_(&m->generated_tokens, r->ids.n);
    api_observe_(&m->queue, answer->ms_queue);
    if (r->ms_first_token > 0) api_observe_(&m->first_token, answer->ms_queue + r->ms_first_token);
}

static u64 api_load_(const _Atomic u64 *counter) {
    return atomic_load_explicit(counter, memory_order_relaxed);
}

static void api_put_help_(Buf *out, const char *name, const char *type, const char *help) {
    buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void api_put_sample_(Buf *out, const char *name, const char *type, const char *help, f64 v) {
    api_put_help_(out, name, type, help);
    buf_printf(out, "%s ", name);
    json_put_f64(out, v);
    buf_char(out, '\n');
}

static void api_put_histogram_(Buf *out, const char *name, const char *help,
                               const ApiHistogram *h) {
    u64 sum = 0;
    api_put_help_(out, name, "histogram", help);
    for (size_t i = 0; i < API_BUCKETS_N; i++) {
        sum += api_load_(&h->in_bucket[i]);
        buf_printf(out, "%s_bucket{le=\"%g\"} %llu\n", name, API_BUCKETS[i],
                   (unsigned long long)sum);
    }
    sum += api_load_(&h->in_bucket[API_BUCKETS_N]);
    buf_printf(out, "%s_bucket{le=\"+Inf\"} %llu\n%s_sum ", name, (unsigned long long)sum, name);
    json_put_f64(out, (f64)api_load_(&h->sum_us) / 1e6);
    buf_printf(out, "\n%s_count %llu\n", name, (unsigned long long)sum);
}

/* name{label="value"} n, for each value. */
static void api_put_labelled_(Buf *out, const char *name, const char *help, const char *label,
                              const char *const *values, const _Atomic u64 *counters, size_t n) {
    api_put_help_(out, name, "counter", help);
    for (size_t i = 0; i < n; i++)
        buf_printf(out, "%s{%s=\"%s\"} %llu\n", name, label, values[i],
                   (unsigned long long)api_load_(&counters[i]));
}

static void api_put_requests_(Buf *out, const ApiMetrics *m) {
    api_put_help_(out, "dlm_http_requests_total", "counter",
                  "Requests answered, by route and status.");
    for (size_t r = 0; r < API_ROUTES; r++)
        for (size_t s = 0; s < COUNT_OF(API_STATUSES); s++) {
            u64 n = api_load_(&m->requests[r][s]);
            if (n && API_STATUSES[s])
                buf_printf(out, "dlm_http_requests_total{route=\"%s\",code=\"%d\"} %llu\n",
                           api_route_name((ApiRoute)r), API_STATUSES[s], (unsigned long long)n);
            else if (n)
                buf_printf(out, "dlm_http_requests_total{route=\"%s\",code=\"other\"} %llu\n",
                           api_route_name((ApiRoute)r), (unsigned long long)n);
        }
}

/* Prometheus' text format 0.0.4. */
static void api_put_metrics(Buf *out, const ApiMetrics *m, const ApiGauges *g,
                            const ApiModel *served) {
    f64 generated = (f64)api_load_(&m->generated_tokens);
    api_put_help_(out, "dlm_build_info", "gauge", "Always 1; tells what runs.");
    api_put_text_(out, "dlm_build_info{version=", served->version);
    api_put_text_(out, ",cpu=", g->cpu_level);
    api_put_text_(out, ",model=", served->name);
    buf_str(out, STR("} 1\n"));
    api_put_requests_(out, m);
    api_put_sample_(out, "dlm_connections_accepted_total", "counter", "Connections accepted.",
                    (f64)api_load_(&m->connections));
    api_put_sample_(out, "dlm_connections_open", "gauge", "Connections open.", g->n_connections);
    api_put_sample_(out, "dlm_slots", "gauge", "Answers that can be generated at once.",
                    g->n_slots);
    api_put_sample_(out, "dlm_slots_busy", "gauge", "Answers being generated.", g->n_busy);
    api_put_sample_(out, "dlm_queue_length", "gauge", "Answers waiting for a slot.", g->n_queued);
    api_put_histogram_(out, "dlm_time_to_first_token_seconds", "From queueing to the first text.",
                       &m->first_token);
    api_put_histogram_(out, "dlm_request_duration_seconds",
                       "Of requests that were answered with text.", &m->request);
    api_put_histogram_(out, "dlm_queue_seconds", "Waiting for a slot.", &m->queue);
    api_put_labelled_(out, "dlm_answers_total", "Answers, by how they ended.", "finish",
                      API_FINISHES, m->finished, COUNT_OF(API_FINISHES));
    api_put_sample_(out, "dlm_prompt_tokens_total", "counter", "Tokens of prompts.",
                    (f64)api_load_(&m->prompt_tokens));
    api_put_sample_(out, "dlm_cached_prompt_tokens_total", "counter",
                    "Of these, found in a slot's cache.", (f64)api_load_(&m->cached_tokens));
    api_put_sample_(out, "dlm_generated_tokens_total", "counter", "Tokens of answers.", generated);
    api_put_labelled_(out, "dlm_forwards_total",
                      "Forward passes that answers took part in, by kind.", "kind", API_FORWARDS,
                      m->forwards, COUNT_OF(API_FORWARDS));
    api_put_sample_(out, "dlm_tokens_per_forward", "gauge",
                    "Generated tokens per forward pass that made them.",
                    api_ratio_(generated, (f64)api_load_(&m->answer_forwards)));
    api_put_sample_(out, "process_resident_memory_bytes", "gauge", "Memory in use.",
                    (f64)g->rss_bytes);
    api_put_sample_(out, "process_start_time_seconds", "gauge",
                    "Start of the process since the epoch.", g->start_unix);
}

#endif

/* t_families.c - a tiny random model of every family against PyTorch: logits of prefill, of a block
 * step with a cache and of its commit, in each attention mode; and text one token at a time. The
 * goldens, and the versions that made them, come from tools/mkgolden.py. */
#define DLM_NO_DEMO
#include "../src/engine.c"
#include "../src/json.c"
#include "test.h"

#define GOLDEN "tests/golden/families.json"
#define TOLERANCE 1e-3
#define TIE_TOLERANCE 0.3 /* on a GPU, whose norms add in another order: see cuda_check.c */
#define ROWS_MAX 64
#define BLOCK 8

typedef struct {
    const JsonDoc *d;
    Engine *engine;
    Str mode;
    i32 n;              /* tokens */
    i32 ids[ROWS_MAX];  /* [n] */
    u32 kept[ROWS_MAX]; /* [n] each row's golden logits, 0 where none were kept */
    f64 worst;          /* difference */
    i32 n_compared;     /* rows */
} Case;

static i32 read_ids(const JsonDoc *d, u32 array, i32 ids[ROWS_MAX]) {
    i32 n = (i32)json_count(d, array);
    u32 at = json_first(d, array);
    CHECK(n <= ROWS_MAX);
    for (i32 i = 0; i < n; i++, at = json_next(d, at)) {
        i64 v = -1;
        CHECK(json_i64(d, at, &v));
        ids[i] = (i32)v;
    }
    return n;
}

/* Which cells position i sees when the sequence has n: [0, end). */
static i32 visible_end(const Case *c, i32 i, i32 n) {
    if (str_eq(c->mode, STR("causal"))) return i + 1;
    if (str_eq(c->mode, STR("full"))) return n;
    return MIN_OF((i / BLOCK + 1) * BLOCK, n);
}

static void compare_row(Case *c, const f32 *logits, u32 golden) {
    i32 n = c->engine->model.n_vocab;
    CHECK_INT(json_count(c->d, golden), n);
    u32 cell = json_first(c->d, golden);
    for (i32 v = 0; v < n; v++, cell = json_next(c->d, cell)) {
        f64 want = 0;
        json_f64(c->d, cell, &want);
        f64 diff = want - (f64)logits[v];
        diff = diff < 0 ? -diff : diff;
        if (!(diff <= c->worst)) c->worst = diff; /* a NaN too */
    }
    c->n_compared++;
}

/* Runs positions [begin, end) of a sequence that then has n in one forward. golden: [n] rows to
 * compare with, 0 for none. */
static void run(Case *c, const i32 *ids, i32 begin, i32 end, i32 n, const u32 *golden) {
    DlmRow rows[ROWS_MAX] = {0};
    for (i32 i = begin; i < end; i++)
        rows[i - begin] = (DlmRow){.token = ids[i],
                                   .pos = i,
                                   .cell = i,
                                   .logits = i - begin,
                                   .kv_hi = visible_end(c, i, n)};
    graph_forward(&c->engine->graph, rows, end - begin, end - begin);
    for (i32 i = begin; i < end; i++)
        if (golden[i])
            compare_row(c, c->engine->graph.logits + (i64)(i - begin) * c->engine->model.n_vocab,
                        golden[i]);
}

/* The block at `draft` as it was before its masks were filled, over what the cache holds. Under full
 * attention every step runs the whole sequence. */
static void run_draft(Case *c, u32 draft) {
    i32 ids[ROWS_MAX], block[ROWS_MAX];
    u32 golden[ROWS_MAX] = {0};
    i64 begin = 0;
    json_i64(c->d, json_get(c->d, draft, "begin"), &begin);
    i32 n = read_ids(c->d, json_get(c->d, draft, "ids"), block);
    u32 row = json_first(c->d, json_get(c->d, draft, "logits"));
    memcpy(ids, c->ids, sizeof ids);
    for (i32 i = 0; i < n; i++, row = json_next(c->d, row))
        ids[begin + i] = block[i], golden[begin + i] = row;
    bool full = str_eq(c->mode, STR("full"));
    i32 end = (i32)begin + n;
    run(c, ids, full ? 0 : (i32)begin, full ? c->n : end, full ? c->n : end, golden);
}

static void check_pieces(Case *c, u32 draft) {
    if (str_eq(c->mode, STR("full"))) {
        run_draft(c, draft);
        run(c, c->ids, 0, c->n, c->n, c->kept);
        return;
    }
    for (i32 begin = 0; begin < c->n; begin += BLOCK) {
        i64 at = -1;
        if (draft != JSON_NONE) json_i64(c->d, json_get(c->d, draft, "begin"), &at);
        if (at == begin) run_draft(c, draft);
        run(c, c->ids, begin, MIN_OF(begin + BLOCK, c->n), c->n, c->kept);
    }
}

/* path: room for the file's name, which the options point to. */
static EngineOptions family_options(char path[128], const char *name, i32 n_ctx) {
    EngineOptions o = engine_options_default();
    snprintf(path, 128, "tests/golden/family-%s.gguf", name);
    o.path = path;
    o.n_ctx = n_ctx;
    o.n_threads = 1;
    o.kv_type = DLM_F32;
    o.block_size_max = ROWS_MAX; /* rows of logits */
    return o;
}

static Engine *open_family(const char *name, i32 n_ctx) {
    char path[128];
    EngineOptions o = family_options(path, name, n_ctx);
    Engine *g = NULL;
    Err e = {0};
    CHECK_OK(engine_open(&g, &o, &e), e);
    return g;
}

static void check_case(const JsonDoc *d, u32 at, const char *name) {
    Case c = {.d = d};
    i64 n_ctx = 0;
    i32 rows[ROWS_MAX];
    json_str(d, json_get(d, at, "mode"), &c.mode);
    json_i64(d, json_get(d, at, "n_ctx"), &n_ctx);
    c.n = read_ids(d, json_get(d, at, "ids"), c.ids);
    i32 n_rows = read_ids(d, json_get(d, at, "rows"), rows);
    u32 row = json_first(d, json_get(d, at, "logits")), draft = json_get(d, at, "draft");
    for (i32 i = 0; i < n_rows; i++, row = json_next(d, row)) c.kept[rows[i]] = row;
    c.engine = open_family(name, (i32)n_ctx);
    if (c.engine) {
        run(&c, c.ids, 0, c.n, c.n, c.kept); /* all at once */
        check_pieces(&c, draft);
        printf("%-20s %-6.*s %2d tokens, %2d rows compared, largest difference %.2g\n", name,
               STR_ARG(c.mode), c.n, c.n_compared, c.worst);
        bool gpu = strcmp(c.engine->ops.name, "cuda") == 0;
        bool ties = gpu && c.engine->model.layers[0].q.kind == DLM_MAT_TERNARY;
        CHECK_MSG(c.worst <= (ties ? TIE_TOLERANCE : TOLERANCE), "%s %.*s differs by %g", name,
                  STR_ARG(c.mode), c.worst);
        CHECK_INT(c.n_compared, 2 * n_rows + (draft == JSON_NONE ? 0 : BLOCK));
    }
    engine_close(c.engine);
}

/* One token at a time, through the engine. */
static void check_ar(const JsonDoc *d, u32 ar, const char *name) {
    i32 ids[ROWS_MAX], n = read_ids(d, json_get(d, ar, "ids"), ids);
    i64 n_prompt = 0;
    Engine *g = open_family(name, 0);
    DecodeParams p = decode_params_default();
    DecodeResult r = {0};
    Err e = {0};
    CHECK(json_i64(d, json_get(d, ar, "n_prompt"), &n_prompt));
    p.mode = DECODE_AR;
    p.max_tokens = n - (i32)n_prompt;
    if (g && CHECK_OK(engine_generate(g, 0, ids, (i32)n_prompt, &p, NULL, &r, &e), e)) {
        CHECK_INT(r.ids.n, p.max_tokens);
        for (i32 i = 0; i < (i32)r.ids.n && i < p.max_tokens; i++)
            CHECK_MSG(r.ids.p[i] == ids[n_prompt + i], "%s: token %d is %d, not %d", name, i,
                      r.ids.p[i], ids[n_prompt + i]);
    }
    decode_result_free(&r);
    engine_close(g);
}

#ifdef DLM_TEST_ALLOC
static bool open_and_close(void *name, Err *e) {
    char path[128];
    EngineOptions o = family_options(path, name, 0);
    Engine *g = NULL;
    bool ok = engine_open(&g, &o, e);
    engine_close(g);
    return ok;
}

/* The models with the most parts: the n-th allocation of opening one is refused, for all n. */
static void check_allocations(void) {
    char names[][24] = {"smollm2-subln-every", "ministral3", "phi3", "qwen3"};
    base_log_level = LOG_QUIET;
    for (size_t i = 0; i < COUNT_OF(names); i++)
        CHECK(test_alloc_failures(open_and_close, names[i]) > 50);
}
#endif

int main(void) {
    JsonDoc d = {0};
    Err e = {0};
    Str text = test_file(GOLDEN);
    if (CHECK_OK(json_parse(&d, text, &e), e)) {
        u32 families = json_get(&d, 0, "families");
        u32 f = json_first(&d, families);
        for (u32 left = json_count(&d, families); left > 0; left--, f = json_next(&d, f)) {
            Str name = {0};
            char path[64];
            json_str(&d, json_get(&d, f, "name"), &name);
            snprintf(path, sizeof path, "%.*s", STR_ARG(name));
            u32 cases = json_get(&d, f, "cases"), c = json_first(&d, cases);
            for (u32 k = json_count(&d, cases); k > 0; k--, c = json_next(&d, c))
                check_case(&d, c, path);
            check_ar(&d, json_get(&d, f, "ar"), path);
        }
    }
    json_free(&d);
    test_file_free(text);
#ifdef DLM_TEST_ALLOC
    check_allocations();
#endif
    return test_end();
}

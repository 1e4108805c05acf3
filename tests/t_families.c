/* t_families.c - tiny random models of other families against transformers: every row's logits, in
 * each attention mode. The goldens, and the versions that made them, come from tools/mkgolden.py.
 */
#define DLM_NO_DEMO
#include "../src/engine.c"
#include "../src/json.c"
#include "test.h"

#define TOLERANCE 1e-3
#define ROWS_MAX 64

/* Which cells position i sees in a golden case: [0, hi). */
static i32 visible_end(Str mode, i32 block, i32 i, i32 n) {
    if (str_eq(mode, STR("causal"))) return i + 1;
    if (str_eq(mode, STR("full"))) return n;
    return MIN_OF((i / block + 1) * block, n);
}

/* Runs rows [begin, end) in one forward and returns the largest difference from the golden logits.
 */
static f64 difference(Engine *g, const JsonDoc *d, u32 golden_row, const DlmRow *rows, i32 n) {
    f64 worst = 0;
    graph_forward(&g->graph, rows, n, n);
    for (i32 r = 0; r < n; r++, golden_row = json_next(d, golden_row)) {
        const f32 *logits = g->graph.logits + (i64)r * g->model.n_vocab;
        CHECK_INT(json_count(d, golden_row), g->model.n_vocab);
        u32 cell = json_first(d, golden_row);
        for (i32 v = 0; v < g->model.n_vocab; v++, cell = json_next(d, cell)) {
            f64 want = 0;
            json_f64(d, cell, &want);
            f64 diff = want - (f64)logits[v];
            worst = MAX_OF(worst, diff < 0 ? -diff : diff);
        }
    }
    return worst;
}

static void check_case(Engine *g, const JsonDoc *d, u32 c, const char *name) {
    Str mode = {0};
    i64 block = 0;
    DlmRow rows[ROWS_MAX];
    json_str(d, json_get(d, c, "mode"), &mode);
    json_i64(d, json_get(d, c, "block"), &block);
    u32 ids = json_get(d, c, "ids"), id = json_first(d, ids), logits = json_get(d, c, "logits");
    i32 n = (i32)json_count(d, ids);
    for (i32 i = 0; i < n && i < ROWS_MAX; i++, id = json_next(d, id)) {
        i64 token = 0;
        json_i64(d, id, &token);
        rows[i] = (DlmRow){.token = (i32)token,
                           .pos = i,
                           .cell = i,
                           .logits = i,
                           .kv_hi = visible_end(mode, (i32)block, i, n)};
    }
    f64 worst = difference(g, d, json_first(d, logits), rows, n);
    printf("%s, %.*s: %d rows, largest difference %.2g\n", name, STR_ARG(mode), n, worst);
    CHECK_MSG(worst <= TOLERANCE, "%s %.*s differs by %g", name, STR_ARG(mode), worst);
    if (str_eq(mode, STR("full"))) return;
    /* again in two forwards: the second finds the first's keys and values in the cache */
    i32 cut = str_eq(mode, STR("causal")) ? n / 2 : (i32)block;
    u32 second = json_first(d, logits);
    for (i32 i = 0; i < cut; i++) second = json_next(d, second);
    graph_forward(&g->graph, rows, cut, cut);
    for (i32 i = cut; i < n; i++) rows[i].logits = i - cut;
    worst = difference(g, d, second, rows + cut, n - cut);
    CHECK_MSG(worst <= TOLERANCE, "%s %.*s with a cache differs by %g", name, STR_ARG(mode), worst);
}

static void check_family(const char *name, const char *gguf, const char *json) {
    EngineOptions o = engine_options_default();
    Engine *g = NULL;
    Err e = {0};
    JsonDoc d = {0};
    Str text = test_file(json);
    o.path = gguf;
    o.kv_type = DLM_F32;
    o.block_size_max = ROWS_MAX; /* rows of logits */
    if (CHECK_OK(engine_open(&g, &o, &e), e) && CHECK_OK(json_parse(&d, text, &e), e)) {
        u32 cases = json_get(&d, 0, "cases");
        for (u32 c = json_first(&d, cases), left = json_count(&d, cases); left > 0;
             left--, c = json_next(&d, c))
            check_case(g, &d, c, name);
    }
    engine_close(g);
    json_free(&d);
    test_file_free(text);
}

int main(void) {
    check_family("llama", "tests/golden/llama-tiny.gguf", "tests/golden/llama-tiny.json");
    check_family("qwen2", "tests/golden/qwen2-tiny.gguf", "tests/golden/qwen2-tiny.json");
    return test_end();
}

/* t_conventions.c - every convention of decoding against its published loop: which tokens each
 * forward reveals, alone and beside other answers, and how a suffix is filled in before.
 *
 * tests/golden/traces.json comes from tools/mktraces.py, which has the loops written out in
 * PyTorch. A trace must be equal step by step up to where the reference stood at a near-tie. */
#define DLM_NO_DEMO
#include "../src/engine.c"
#include "../src/json.c"
#include "test.h"

#define GOLDEN "tests/golden/traces.json"
#define PROB_TOLERANCE 1e-3
#define IDS_MAX 64
#define CASES_MAX 32
#define SLOTS 5

/* What dlm is told for a set of cases. */
typedef struct {
    const JsonDoc *d;
    char name[64], convention[32];
    DecodeParams p;
    u32 cases[CASES_MAX];
    i32 n_cases;
} Set;

/* One answer beside its golden trace. */
typedef struct {
    const JsonDoc *d;
    u32 step;
    i32 n_left, n_same, near;
    bool parted;
    f64 worst_prob;
} Trace;

static i32 int_of(const JsonDoc *d, u32 node) {
    i64 v = -1;
    CHECK(json_i64(d, node, &v));
    return (i32)v;
}

static i32 field(const JsonDoc *d, u32 object, const char *name) {
    return int_of(d, json_get(d, object, name));
}

static i32 name_index(const JsonDoc *d, u32 object, const char *key, const char *const *names,
                      i32 n) {
    Str s = {0};
    CHECK(json_str(d, json_get(d, object, key), &s));
    for (i32 i = 0; i < n; i++)
        if (str_eq(s, str_of(names[i]))) return i;
    CHECK_MSG(false, "%s: '%.*s'", key, STR_ARG(s));
    return 0;
}

static void read_text(const JsonDoc *d, u32 object, const char *key, char *out, size_t n) {
    Str s = {0};
    CHECK(json_str(d, json_get(d, object, key), &s));
    snprintf(out, n, "%.*s", STR_ARG(s));
}

static Set read_set(const JsonDoc *d, u32 node, u64 seed) {
    Set s = {.d = d, .p = decode_params_default()};
    f64 threshold = 0, cfg = 0;
    read_text(d, node, "name", s.name, sizeof s.name);
    read_text(d, node, "convention", s.convention, sizeof s.convention);
    json_f64(d, json_get(d, node, "threshold"), &threshold);
    s.p.threshold = (f32)threshold;
    json_f64(d, json_get(d, node, "cfg"), &cfg);
    s.p.cfg_scale = (f32)cfg;
    s.p.rule = name_index(d, node, "rule", MODEL_RULE_NAMES, COUNT_OF(MODEL_RULE_NAMES));
    s.p.cache = name_index(d, node, "cache", MODEL_CACHE_NAMES, COUNT_OF(MODEL_CACHE_NAMES));
    s.p.block_size = field(d, node, "block");
    s.p.sub_block_size = field(d, node, "sub");
    s.p.steps = field(d, node, "steps");
    s.p.max_tokens = field(d, node, "max_tokens");
    s.p.early_stop = false;
    s.p.sample.seed = seed;
    u32 cases = json_get(d, node, "cases");
    for (u32 c = json_first(d, cases), left = json_count(d, cases); left > 0;
         left--, c = json_next(d, c))
        if (s.n_cases < CASES_MAX) s.cases[s.n_cases++] = c;
    return s;
}

static i32 read_ids(const JsonDoc *d, u32 array, i32 *ids) {
    i32 n = 0;
    for (u32 i = json_first(d, array), left = json_count(d, array); left > 0 && n < IDS_MAX;
         left--, i = json_next(d, i))
        ids[n++] = int_of(d, i);
    return n;
}

static void on_step(void *arg, const DecodeStep *s) {
    Trace *t = arg;
    if (s->n_reveals == 0 || t->parted) return;
    bool same = t->n_left > 0 && (i32)json_count(t->d, t->step) == s->n_reveals;
    u32 want = same ? json_first(t->d, t->step) : 0;
    for (i32 i = 0; same && i < s->n_reveals; i++, want = json_next(t->d, want)) {
        u32 pos = json_first(t->d, want), id = json_next(t->d, pos);
        f64 prob = 0;
        json_f64(t->d, json_next(t->d, id), &prob);
        prob -= (f64)s->reveals[i].prob;
        same = int_of(t->d, pos) == s->reveals[i].pos && int_of(t->d, id) == s->reveals[i].token;
        if (same) t->worst_prob = MAX_OF(t->worst_prob, prob < 0 ? -prob : prob);
    }
    t->parted = !same;
    if (!same) return;
    t->n_same++, t->n_left--;
    t->step = json_next(t->d, t->step);
}

static Trace open_trace(const Set *s, i32 i) {
    u32 steps = json_get(s->d, s->cases[i], "trace");
    return (Trace){.d = s->d,
                   .step = json_first(s->d, steps),
                   .n_left = (i32)json_count(s->d, steps),
                   .near = field(s->d, s->cases[i], "near")};
}

/* Is it the golden trace, or the same up to a near-tie? */
static void check_trace(const Set *s, i32 i, const Trace *t, const char *how) {
    bool tie = t->near >= 0 && t->n_same >= t->near;
    CHECK_MSG((!t->parted && t->n_left == 0) || tie,
              "%s, case %d, %s: %d steps are equal, %d left; a near-tie at %d", s->name, i, how,
              t->n_same, t->n_left, t->near);
    CHECK_MSG(t->worst_prob <= PROB_TOLERANCE, "%s, case %d: a probability differs by %g", s->name,
              i, t->worst_prob);
    if (t->parted) printf("%s, case %d parts at the near-tie of step %d\n", s->name, i, t->near);
}

static Engine *open_engine(const char *model, const char *convention, i32 block, i32 n_slots) {
    EngineOptions o = engine_options_default();
    Engine *g = NULL;
    Err e = {0};
    o.path = model;
    o.convention = convention;
    o.kv_type = DLM_F32;
    o.n_threads = 1;
    o.block_size_max = block;
    o.n_slots = n_slots;
    CHECK_OK(engine_open(&g, &o, &e), e);
    return g;
}

/* One answer after the other. Each step tells the rows that it had, and the counters agree. */
static void check_alone(Engine *g, const Set *s) {
    i32 n_equal = 0;
    for (i32 i = 0; i < s->n_cases; i++) {
        i32 ids[IDS_MAX], n = read_ids(s->d, json_get(s->d, s->cases[i], "ids"), ids);
        Trace t = open_trace(s, i);
        DecodeEvents ev = {.arg = &t, .step = on_step};
        DecodeResult r;
        Err e = {0};
        CHECK_OK(engine_generate(g, 0, ids, n, &s->p, &ev, &r, &e), e);
        CHECK_INT(r.ids.n, s->p.max_tokens);
        CHECK_CSTR(r.finish, "length");
        check_trace(s, i, &t, "alone");
        n_equal += !t.parted;
        decode_result_free(&r);
    }
    printf("%s: %d of %d traces equal\n", s->name, n_equal, s->n_cases);
}

/* SLOTS answers in one forward, begun one after the other, every other one with its commits in
 * forwards of their own. */
static void check_together(Engine *g, const Set *s, const char *how) {
    for (i32 base = 0; base + SLOTS <= s->n_cases; base += SLOTS) {
        Trace t[SLOTS];
        i32 n_started = 0;
        Err e = {0};
        for (bool busy = true; busy || n_started < SLOTS;) {
            if (n_started < SLOTS) {
                i32 i = n_started++, ids[IDS_MAX],
                    n = read_ids(s->d, json_get(s->d, s->cases[base + i], "ids"), ids);
                t[i] = open_trace(s, base + i);
                DecodeEvents ev = {.arg = &t[i], .step = on_step};
                DecodeParams p = s->p;
                p.lone_commit = i % 2;
                CHECK_OK(engine_start(g, i, ids, n, &p, &ev, &e), e);
            }
            if (!CHECK_OK(engine_step(g, &e), e)) return;
            busy = false;
            for (i32 i = 0; i < n_started; i++) busy = busy || engine_busy(g, i);
        }
        for (i32 i = 0; i < SLOTS; i++) {
            DecodeResult r;
            CHECK_OK(engine_finish(g, i, &r, &e), e);
            check_trace(s, base + i, &t[i], how);
            if (i % 2) CHECK_INT(r.n_joined, 0);
            decode_result_free(&r);
        }
    }
}

/* ---- a suffix ---- */

typedef struct {
    i32 n_rows, n_steps;
} Rows;

static void count_rows(void *arg, const DecodeStep *s) {
    Rows *r = arg;
    r->n_rows = MAX_OF(r->n_rows, s->n_rows);
    r->n_steps++;
}

/* The canvas is prompt, masks and suffix: the suffix is seen, and stays. */
static void check_suffix(const char *model) {
    const i32 prompt[] = {3, 5, 8, 2}, suffix[] = {1, 9, 4};
    Engine *g = open_engine(model, "llada", 0, 1);
    DecodeParams p = decode_params_default();
    i32 other = 0;
    for (i32 max_tokens = 1; g && max_tokens <= 40; max_tokens += 13) {
        DecodeResult with, without;
        Rows rows = {0};
        DecodeEvents ev = {.arg = &rows, .step = count_rows};
        Err e = {0};
        p.max_tokens = max_tokens;
        p.suffix = suffix, p.n_suffix = COUNT_OF(suffix);
        CHECK_OK(engine_generate(g, 0, prompt, 4, &p, &ev, &with, &e), e);
        CHECK_INT(rows.n_rows, 4 + max_tokens + 3);
        for (i32 i = 0; i < 3; i++)
            CHECK_INT(g->slots[0].decode.tokens[4 + max_tokens + i], suffix[i]);
        p.n_suffix = 0;
        CHECK_OK(engine_generate(g, 0, prompt, 4, &p, NULL, &without, &e), e);
        other += with.ids.n != without.ids.n ||
                 memcmp(with.ids.p, without.ids.p, with.ids.n * sizeof(i32)) != 0;
        CHECK(with.ids.n <= (size_t)max_tokens);
        decode_result_free(&with);
        decode_result_free(&without);
    }
    CHECK_MSG(other > 0, "no answer depends on its suffix");
    DecodeResult r;
    Err e = {0};
    i32 many[IDS_MAX] = {0};
    p.suffix = many, p.n_suffix = 60;
    CHECK(!engine_generate(g, 0, prompt, 4, &p, NULL, &r, &e));
    CHECK_ERR(e, ERR_RUNTIME, "the context holds");
    err_clear(&e);
    p.n_suffix = 1, many[0] = 999;
    CHECK(!engine_generate(g, 0, prompt, 4, &p, NULL, &r, &e));
    CHECK_ERR(e, ERR_USAGE, "suffix token 0 is 999");
    err_clear(&e);
    many[0] = 1, p.mode = DECODE_AR;
    CHECK(!engine_generate(g, 0, prompt, 4, &p, NULL, &r, &e));
    CHECK_ERR(e, ERR_USAGE, "a suffix wants full attention");
    err_clear(&e);
    engine_close(g);
    EngineOptions o = engine_options_default();
    o.path = model, o.convention = "klingon";
    CHECK(!engine_open(&g, &o, &e));
    CHECK_ERR(e, ERR_USAGE, "fast-dllm-v2");
}

/* ---- guidance ---- */

static TokIds said(Engine *g, const i32 *prompt, i32 n_prompt, const DecodeParams *p, i32 n_rows) {
    Rows rows = {0};
    DecodeEvents ev = {.arg = &rows, .step = count_rows};
    DecodeResult r;
    Err e = {0};
    CHECK_OK(engine_generate(g, 0, prompt, n_prompt, p, &ev, &r, &e), e);
    if (n_rows) CHECK_INT(rows.n_rows, n_rows);
    TokIds ids = r.ids;
    r.ids = (TokIds){0};
    decode_result_free(&r);
    return ids;
}

static void check_same(TokIds a, TokIds b, bool same) {
    CHECK_INT(a.n == b.n && memcmp(a.p, b.p, a.n * sizeof *a.p) == 0, same);
    tok_ids_free(&a);
    tok_ids_free(&b);
}

/* The canvas lies in the slot twice, so half the context is the most; what was given is hidden in the
 * second, a suffix too. */
static void check_guidance(const char *model) {
    const i32 prompt[32] = {3, 5, 8, 2}, suffix[] = {1, 9, 4};
    Engine *g = open_engine(model, "llada", 0, 1);
    DecodeParams none = decode_params_default(), p = none;
    DecodeResult r;
    Err e = {0};
    i32 room = g->graph_options.n_ctx / 2;
    CHECK_INT(room, 32);
    none.max_tokens = 20, none.early_stop = false;
    p = none, p.cfg_scale = 1e-6f; /* next to nothing: what is said without */
    check_same(said(g, prompt, 4, &none, 24), said(g, prompt, 4, &p, 48), true);
    p.cfg_scale = 5;
    check_same(said(g, prompt, 4, &none, 24), said(g, prompt, 4, &p, 48), false);
    p.max_tokens = INT32_MAX;
    TokIds all = said(g, prompt, 4, &p, 2 * room);
    CHECK((i32)all.n <= room - 4);
    tok_ids_free(&all);
    p.max_tokens = 20, p.suffix = suffix, p.n_suffix = 3;
    all = said(g, prompt, 4, &p, 2 * (4 + 20 + 3));
    const DlmRow *blind = g->rows + 27; /* the last forward's rows */
    for (i32 i = 0; i < 27; i++) {
        CHECK_INT(blind[i].pos, i);
        CHECK_INT(blind[i].cell, 27 + i);
        CHECK_INT(blind[i].kv_lo, 27);
        CHECK_INT(blind[i].kv_hi, 54);
        if (i < 4 || i >= 24) CHECK_INT(blind[i].token, g->model.decode.mask_id);
    }
    tok_ids_free(&all);
    p.n_suffix = 0, p.sample.temperature = 0.8f, p.sample.seed = 11, p.n_top = 3;
    p.frequency_penalty = 0.5f;
    TokIds drawn = said(g, prompt, 4, &p, 48);
    g->graph.n_logits_max = 2;
    check_same(drawn, said(g, prompt, 4, &p, 48), true);
    CHECK(!engine_generate(g, 0, prompt, room, &p, NULL, &r, &e));
    CHECK_ERR(e, ERR_RUNTIME, "holds 32 when guidance keeps it twice");
    err_clear(&e);
    p.mode = DECODE_AR;
    CHECK(!engine_generate(g, 0, prompt, 4, &p, NULL, &r, &e));
    CHECK_ERR(e, ERR_USAGE, "wants full attention, and here it is causal");
    err_clear(&e);
    engine_close(g);
    g = open_engine(model, "sdar", 0, 1);
    p.mode = DECODE_ITERATIVE;
    CHECK(!engine_generate(g, 0, prompt, 4, &p, NULL, &r, &e));
    CHECK_ERR(e, ERR_USAGE, "wants full attention, and here it is block");
    engine_close(g);
}

/* ---- a long canvas ---- */

typedef struct {
    i32 counts[8], n, n_rows;
} Counts;

static void count_reveals(void *arg, const DecodeStep *s) {
    Counts *c = arg;
    if (c->n < (i32)COUNT_OF(c->counts)) c->counts[c->n] = s->n_reveals;
    c->n++;
    c->n_rows = s->n_rows;
}

/* Dream's schedule runs over the whole answer, with logits for more rows than are in memory at a time;
 * guided it has two of each. */
static void check_long_canvas(void) {
    const i32 prompt[] = {300, 5, 8, 2};
    EngineOptions o = engine_options_default();
    Engine *g = NULL;
    Err e = {0};
    o.path = "tests/golden/tiny-dlm.gguf", o.convention = "dream", o.n_ctx = 1024;
    if (!CHECK_OK(engine_open(&g, &o, &e), e)) return;
    CHECK_INT(g->graph.n_logits_max, ENGINE_LOGITS_MAX);
    for (int guided = 0; guided < 2; guided++) {
        DecodeParams p = decode_params_default();
        Counts c = {0};
        DecodeEvents ev = {.arg = &c, .step = count_reveals};
        DecodeResult r;
        p.max_tokens = 400, p.steps = 4, p.early_stop = false, p.cfg_scale = (f32)guided;
        CHECK_OK(engine_generate(g, 0, prompt, 4, &p, &ev, &r, &e), e);
        CHECK_INT(c.n, 4);
        CHECK_INT(c.n_rows, 404 * (1 + guided));
        for (i32 i = 0, left = 400; i < 4; left -= c.counts[i++])
            CHECK_INT(c.counts[i], (i32)(left * decode_share_(i, 4)));
        decode_result_free(&r);
    }
    engine_close(g);
}

/* ---- a block of one, whose token the commit before it gives ---- */

static void check_lone_tokens(const char *model) {
    const i32 prompt[] = {3, 5, 8, 2};
    Engine *g = open_engine(model, "fast-dllm-v2", 0, 1);
    DecodeResult ar, blocks;
    Err e = {0};
    DecodeParams p = decode_params_default();
    p.max_tokens = 40, p.early_stop = false, p.mode = DECODE_AR;
    if (!g || !CHECK_OK(engine_generate(g, 0, prompt, 4, &p, NULL, &ar, &e), e)) return;
    p.mode = DECODE_ITERATIVE, p.block_size = 1;
    CHECK_OK(engine_generate(g, 0, prompt, 4, &p, NULL, &blocks, &e), e);
    CHECK_INT(blocks.ids.n, ar.ids.n);
    CHECK_MEM(blocks.ids.p, ar.ids.p, ar.ids.n * sizeof(i32));
    CHECK_INT(blocks.n_forwards_denoise, 0);
    decode_result_free(&ar);
    decode_result_free(&blocks);
    i32 n_ctx = g->graph_options.n_ctx; /* the last block has room for one token */
    p.max_tokens = INT32_MAX, p.block_size = p.sub_block_size = 7;
    CHECK_INT(n_ctx % p.block_size, 1);
    CHECK_OK(engine_generate(g, 0, prompt, 4, &p, NULL, &blocks, &e), e);
    CHECK((i32)blocks.ids.n == n_ctx - 4 || strcmp(blocks.finish, "stop") == 0);
    decode_result_free(&blocks);
    engine_close(g);
}

/* ---- the rule itself ---- */

static void check_rule(void) {
    DecodeCandidate c[] = {{.score = 0.5}, {.score = 0.9}, {.score = 0.5}, {.score = 0.1}};
    static const struct {
        i32 quota;
        f64 limit;
        const char *chosen;
    } want[] = {{1, 0.95, "0100"}, {1, 0.9, "0100"},          {1, 0.4, "1110"},
                {2, 0.95, "1100"}, {0, 0.95, "0000"},         {3, 0.95, "1110"},
                {9, 0.95, "1111"}, {1, -DECODE_NEVER, "1111"}};
    for (size_t i = 0; i < COUNT_OF(want); i++) {
        i32 n = decode_pick_(c, 4, want[i].quota, want[i].limit);
        for (i32 k = 0; k < 4; k++) {
            CHECK_INT(c[k].chosen, want[i].chosen[k] == '1');
            n -= c[k].chosen;
        }
        CHECK_INT(n, 0);
    }
    for (i32 n = 1; n <= 70; n++)
        for (i32 steps = 1; steps <= 40; steps++) {
            i32 even = 0, left = n;
            for (i32 k = 0; k < steps; k++) {
                even += decode_quota_(QUOTA_EVEN, k, steps, n, n);
                left -= decode_quota_(QUOTA_TIME, k, steps, n, left);
                CHECK(left >= 0);
            }
            CHECK_INT(even, n);
            CHECK_INT(left, 0);
        }
}

int main(void) {
    Str text = test_file(GOLDEN);
    JsonDoc d = {.nodes_max = 1 << 20};
    Err e = {0};
    char model[128];
    check_rule();
    if (!CHECK_OK(json_parse(&d, text, &e), e)) return test_end();
    read_text(&d, 0, "model", model, sizeof model);
    u32 sets = json_get(&d, 0, "sets");
    for (u32 s = json_first(&d, sets), left = json_count(&d, sets); left > 0;
         left--, s = json_next(&d, s)) {
        const Set set = read_set(&d, s, (u64)field(&d, 0, "seed"));
        Engine *g = open_engine(model, set.convention, set.p.block_size, SLOTS);
        if (!g) continue;
        check_alone(g, &set);
        check_together(g, &set, "beside others");
        g->graph.n_logits_max = 2; /* as if there were no memory for more */
        check_together(g, &set, "two rows of logits at a time");
        engine_close(g);
    }
    check_suffix(model);
    check_guidance(model);
    check_long_canvas();
    check_lone_tokens(model);
    json_free(&d);
    test_file_free(text);
    return test_end();
}

/* t_engine.c - the promises of the engine: the same answer for any thread count, level, file
 * format, cache state and stream; limits honoured inside a block; no allocation whose refusal is
 * not survived. */
#define DLM_NO_DEMO
#include "../src/engine.c"
#include "test.h"

#define MODEL_PATH "tests/golden/tiny-dlm.gguf"
#define MODELS "build/models/tiny-"

static const char *const QUESTIONS[] = {"What is 2+2?", "Write a C function that adds two ints.",
                                        "Please count from 3 to 14.",
                                        "Tell me a story about a cat named Tom."};

static EngineOptions options(const char *path, i32 n_threads, const char *level) {
    EngineOptions o = engine_options_default();
    o.path = path;
    o.n_threads = n_threads;
    o.cpu_level = level;
    return o;
}

static Engine *open_with(const EngineOptions *o) {
    Engine *g = NULL;
    Err e = {0};
    CHECK_OK(engine_open(&g, o, &e), e);
    return g;
}

static TokIds prompt_of(const Engine *g, const char *question) {
    TokIds ids = {0};
    Err e = {0};
    TmplMsg msg = tmpl_msg(STR("user"), str_of(question));
    CHECK_OK(engine_render(g, &msg, 1, &ids, &e), e);
    return ids;
}

/* What a run is compared by: its text, its ids and the forwards it took. */
typedef struct {
    Buf text;
    i32 n_ids, n_forwards;
    char finish[16];
} Answer;

static Answer ask(Engine *g, const char *question, const DecodeParams *p) {
    TokIds ids = prompt_of(g, question);
    DecodeResult r;
    Err e = {0};
    Answer a = {0};
    CHECK_OK(engine_generate(g, 0, ids.p, (i32)ids.n, p, NULL, &r, &e), e);
    buf_str(&a.text, buf_view(&r.text));
    a.n_ids = (i32)r.ids.n;
    a.n_forwards = r.n_forwards_denoise + r.n_forwards_commit + r.n_forwards_ar;
    snprintf(a.finish, sizeof a.finish, "%s", r.finish ? r.finish : "error");
    decode_result_free(&r);
    tok_ids_free(&ids);
    return a;
}

static void same_answer(Answer *want, Answer got, const char *what) {
    CHECK_MSG(str_eq(buf_view(&want->text), buf_view(&got.text)) && want->n_ids == got.n_ids &&
                  want->n_forwards == got.n_forwards,
              "%s: '%.*s' (%d tokens, %d forwards), want '%.*s' (%d, %d)", what,
              STR_ARG(buf_view(&got.text)), got.n_ids, got.n_forwards,
              STR_ARG(buf_view(&want->text)), want->n_ids, want->n_forwards);
    buf_free(&got.text);
}

static DecodeParams params(DecodeMode mode, f32 temperature) {
    DecodeParams p = decode_params_default();
    p.mode = mode;
    p.max_tokens = 100;
    p.sample.temperature = temperature;
    p.sample.seed = 42;
    p.sample.top_k = temperature > 0 ? 20 : 0;
    return p;
}

/* Threads 1..4, every CPU level, every ternary format: the same answers, greedy and sampled. */
static void check_same_everywhere(void) {
    static const char *const files[] = {"tq1_0.gguf", "tq2_0.gguf", "i2_s.gguf", "q2_0.gguf"};
    EngineOptions o = options(MODEL_PATH, 1, NULL);
    Engine *base = open_with(&o);
    for (int mode = DECODE_AR; base && mode <= DECODE_ADAPTIVE; mode++)
        for (int hot = 0; hot < 2; hot++) {
            const char *q = QUESTIONS[(mode + hot) % 4];
            DecodeParams p = params((DecodeMode)mode, (f32)hot * 0.8f);
            Answer want = ask(base, q, &p);
            char what[64];
            for (i32 t = 2; t <= 4; t++) {
                EngineOptions ot = options(MODEL_PATH, t, NULL);
                Engine *g = open_with(&ot);
                snprintf(what, sizeof what, "%d threads, mode %d", t, mode);
                same_answer(&want, ask(g, q, &p), what);
                engine_close(g);
            }
            for (int l = 1; kern_level(l); l++) {
                /* the scalar level is some hundred times slower: it answers shortly, and not always */
                bool slow = kern_level(l) == &KERN_REF;
                if (slow && (mode + hot) % 4 != DECODE_ITERATIVE) continue;
                DecodeParams pl = p;
                if (slow) pl.max_tokens = 8;
                Answer want_l = ask(base, q, &pl);
                EngineOptions ol = options(MODEL_PATH, 2, kern_level(l)->name);
                Engine *g = open_with(&ol);
                snprintf(what, sizeof what, "level %s, mode %d", kern_level(l)->name, mode);
                same_answer(&want_l, ask(g, q, &pl), what);
                buf_free(&want_l.text);
                engine_close(g);
            }
            for (size_t f = 0; f < COUNT_OF(files); f++) {
                char path[128];
                snprintf(path, sizeof path, MODELS "%s", files[f]);
                EngineOptions of = options(path, 2, NULL);
                Engine *g = open_with(&of);
                snprintf(what, sizeof what, "%s, mode %d", files[f], mode);
                if (g) same_answer(&want, ask(g, q, &p), what);
                engine_close(g);
            }
            buf_free(&want.text);
        }
    engine_close(base);
}

/* A cache of each type: the same answers at every level and on any number of threads, and for easy
 * questions the same ones at all. */
static void check_kv_types(void) {
    static const DlmType types[] = {DLM_F16, DLM_F32, DLM_Q8_0};
    DecodeParams p = params(DECODE_ITERATIVE, 0);
    for (size_t q = 0; q < 3; q++)
        for (size_t t = 0; t < COUNT_OF(types); t++) {
            static char f16[512];
            Answer want = {0};
            for (int l = 0; kern_level(l) && kern_level(l) != &KERN_REF; l++) {
                EngineOptions o = options(MODEL_PATH, 1 + l % 3, kern_level(l)->name);
                o.kv_type = types[t];
                Engine *g = open_with(&o);
                if (!g) continue;
                Answer got = ask(g, QUESTIONS[q], &p);
                char what[64];
                snprintf(what, sizeof what, "cache of %s, level %s", quant_info(types[t])->name,
                         kern_level(l)->name);
                if (l == 0)
                    want = got;
                else
                    same_answer(&want, got, what);
                engine_close(g);
            }
            Str text = buf_view(&want.text);
            if (t == 0) snprintf(f16, sizeof f16, "%.*s", STR_ARG(text));
            CHECK_STR(text, str_of(f16));
            buf_free(&want.text);
        }
    EngineOptions o = options("tests/golden/family-llada.gguf", 1, NULL);
    o.kv_type = DLM_Q8_0;
    Engine *g = NULL;
    Err e = {0};
    CHECK(!engine_open(&g, &o, &e));
    CHECK_ERR(e, ERR_USAGE, "heads have");
}

/* ---- streaming, limits, stops ---- */

static void on_text(void *arg, Str s) {
    buf_str(arg, s);
    i32 at = 0;
    for (size_t i = 0; i < s.n; i++)
        at += ((u8)s.p[i] & 0xc0) == 0x80; /* continuation bytes never lead a piece */
    CHECK(s.n == 0 || ((u8)s.p[0] & 0xc0) != 0x80);
}

static void check_streaming(void) {
    EngineOptions o = options(MODEL_PATH, 2, NULL);
    Engine *g = open_with(&o);
    for (int mode = DECODE_AR; g && mode <= DECODE_ADAPTIVE; mode++)
        for (size_t q = 0; q < COUNT_OF(QUESTIONS); q++) {
            static const Str stops[] = {
                {"red", 3}, {", 9", 3}, {"return a", 8}, {"equals 4 nonsense", 17}};
            DecodeParams p = params((DecodeMode)mode, q % 2 ? 0.7f : 0);
            p.stops = stops;
            p.n_stops = mode % 2 ? 4 : 0;
            TokIds ids = prompt_of(g, QUESTIONS[q]);
            Buf streamed = {0};
            DecodeEvents ev = {.arg = &streamed, .text = on_text};
            DecodeResult r;
            Err e = {0};
            CHECK_OK(engine_generate(g, 0, ids.p, (i32)ids.n, &p, &ev, &r, &e), e);
            CHECK_STR(buf_view(&streamed), buf_view(&r.text));
            for (i32 s = 0; s < p.n_stops; s++)
                CHECK(str_find(buf_view(&r.text), stops[s], 0) == SIZE_MAX);
            for (size_t i = 0; i < r.ids.n; i++) CHECK(r.ids.p[i] != g->model.decode.mask_id);
            buf_free(&streamed);
            decode_result_free(&r);
            tok_ids_free(&ids);
        }
    engine_close(g);
}

/* max_tokens = n gives the first n tokens of the long answer, in the middle of a block too. */
static void check_limits(void) {
    EngineOptions o = options(MODEL_PATH, 2, NULL);
    Engine *g = open_with(&o);
    TokIds ids = prompt_of(g, QUESTIONS[2]);
    DecodeParams p = params(DECODE_ITERATIVE, 0);
    DecodeResult whole;
    Err e = {0};
    CHECK_OK(engine_generate(g, 0, ids.p, (i32)ids.n, &p, NULL, &whole, &e), e);
    CHECK_CSTR(whole.finish, "stop");
    for (i32 n = 1; n <= (i32)whole.ids.n; n++) {
        DecodeResult r;
        p.max_tokens = n;
        CHECK_OK(engine_generate(g, 0, ids.p, (i32)ids.n, &p, NULL, &r, &e), e);
        CHECK_INT(r.ids.n, n);
        CHECK_CSTR(r.finish, n < (i32)whole.ids.n ? "length" : "stop");
        CHECK_MEM(r.ids.p, whole.ids.p, (size_t)n * sizeof(i32));
        CHECK(str_starts(buf_view(&whole.text), buf_view(&r.text)));
        decode_result_free(&r);
    }
    p.max_tokens = 0;
    DecodeResult r;
    CHECK(!engine_generate(g, 0, ids.p, (i32)ids.n, &p, NULL, &r, &e));
    CHECK_ERR(e, ERR_USAGE, "at least 1");
    decode_result_free(&whole);
    tok_ids_free(&ids);
    engine_close(g);
}

/* A small context ends the answer at its last cell; a prompt that fills it is refused with both
 * numbers. */
static void check_context(void) {
    for (i32 n_ctx = 2; n_ctx <= 80; n_ctx += 13) {
        EngineOptions o = options(MODEL_PATH, 1, NULL);
        o.n_ctx = n_ctx;
        Engine *g = open_with(&o);
        TokIds ids = prompt_of(g, QUESTIONS[2]);
        for (int mode = DECODE_AR; mode <= DECODE_AUTO; mode++) { /* auto measures, too */
            DecodeParams p = params((DecodeMode)mode, 0);
            DecodeResult r;
            Err e = {0};
            bool ok = engine_generate(g, 0, ids.p, (i32)ids.n, &p, NULL, &r, &e);
            if ((i32)ids.n >= n_ctx)
                CHECK_ERR(e, ERR_RUNTIME, "the context holds");
            else
                CHECK_OK(ok && (i32)r.ids.n <= n_ctx - (i32)ids.n, e);
            decode_result_free(&r);
        }
        tok_ids_free(&ids);
        engine_close(g);
    }
}

/* Under full attention the rows of a forward are as many as the context has. */
static void check_wide_context(void) {
    static Engine g = {.model = {.n_ctx_train = MODEL_CTX_MAX, .n_head = MODEL_HEAD_MAX}};
    EngineOptions o = engine_options_default();
    i32 n_ctx = 0;
    Err e = {0};
    o.n_ctx = MODEL_CTX_MAX;
    CHECK_OK(engine_context_(&g, &o, &n_ctx, &e), e);
    g.model.decode.attention = ATTEND_FULL;
    CHECK(!engine_context_(&g, &o, &n_ctx, &e));
    CHECK_ERR(e, ERR_USAGE, "all are run at once");
}

/* ---- the cache between requests ---- */

/* Long prompts that share a prefix: what is kept must not change the answer, and is reported
 * honestly. */
static void check_reuse(void) {
    EngineOptions o = options(MODEL_PATH, 2, NULL);
    Engine *fresh = open_with(&o), *used = open_with(&o);
    i32 prompt[400];
    u64 rng = 99;
    for (int i = 0; i < 400; i++) prompt[i] = (i32)test_rng_below(&rng, 1020);
    for (int mode = DECODE_AR; mode <= DECODE_ADAPTIVE; mode++)
        for (int round = 0; round < 12; round++) {
            static const i32 lengths[] = {1, 31, 32, 33, 64, 65, 300, 320, 321, 64, 33, 32};
            DecodeParams p = params((DecodeMode)mode, 0);
            p.max_tokens = 40;
            i32 n = lengths[round];
            if (round % 3 == 2)
                prompt[n / 2] ^= 1; /* the middle changes: only what is before it can be kept */
            DecodeResult a, b;
            Err e = {0};
            fresh->slots[0].decode.n_cached = 0;
            CHECK_OK(engine_generate(fresh, 0, prompt, n, &p, NULL, &a, &e), e);
            CHECK_OK(engine_generate(used, 0, prompt, n, &p, NULL, &b, &e), e);
            CHECK_INT(a.n_cached, 0);
            CHECK(b.n_cached < n || (b.n_cached == n && n % 32 != 0));
            CHECK_STR(buf_view(&b.text), buf_view(&a.text));
            CHECK(a.ids.n == b.ids.n && memcmp(a.ids.p, b.ids.p, a.ids.n * sizeof(i32)) == 0);
            decode_result_free(&a);
            decode_result_free(&b);
            DecodeResult again;
            CHECK_OK(engine_generate(used, 0, prompt, n, &p, NULL, &again, &e), e);
            i32 least = mode == DECODE_AR ? n - 1 : (n - 1) / 32 * 32;
            CHECK_INT(again.n_cached, least);
            decode_result_free(&again);
        }
    engine_close(fresh);
    engine_close(used);
}

/* ---- many slots in one forward ---- */

#define SLOTS 5

/* Every slot's answer, started at different times beside others of other modes, is its solo answer,
 * whatever the number of threads. */
static void check_slots(void) {
    EngineOptions o = options(MODEL_PATH, 2, NULL), alone = o;
    o.n_slots = SLOTS;
    Engine *g = NULL, *solo = open_with(&alone);
    for (int round = 0; solo && round < 4; round++) {
        o.n_threads = 1 + round;
        engine_close(g);
        g = open_with(&o);
        if (!g) break;
        TokIds ids[SLOTS];
        DecodeParams p[SLOTS];
        i32 started = 0, steps = 0;
        Err e = {0};
        for (i32 i = 0; i < SLOTS; i++) {
            ids[i] = prompt_of(g, QUESTIONS[(i + round) % 4]);
            p[i] = params((DecodeMode)((i + round) % 4), (f32)(i % 2) * 0.8f);
            p[i].sample.seed = (u64)(100 * round + i);
            p[i].cache = (i + round) % (CACHE_MASKED + 1);
            p[i].lone_commit = (i + round) % 3 == 0;
            if (p[i].mode == DECODE_ITERATIVE) p[i].rule = (5 * i + round) % (RULE_ENTROPY + 1);
        }
        bool busy = true;
        while (busy || started < SLOTS) {
            if (steps++ % 3 == 0 && started < SLOTS) {
                CHECK_OK(engine_start(g, started, ids[started].p, (i32)ids[started].n, &p[started],
                                      NULL, &e),
                         e);
                started++;
            }
            CHECK_OK(engine_step(g, &e), e);
            busy = false;
            for (i32 i = 0; i < started; i++) busy = busy || engine_busy(g, i);
        }
        for (i32 i = 0; i < SLOTS; i++) {
            DecodeResult got, want;
            CHECK_OK(engine_finish(g, i, &got, &e), e);
            solo->slots[0].decode.n_cached = 0;
            CHECK_OK(engine_generate(solo, 0, ids[i].p, (i32)ids[i].n, &p[i], NULL, &want, &e), e);
            CHECK_STR(buf_view(&got.text), buf_view(&want.text));
            CHECK(got.ids.n == want.ids.n &&
                  memcmp(got.ids.p, want.ids.p, got.ids.n * sizeof(i32)) == 0);
            decode_result_free(&got);
            decode_result_free(&want);
            tok_ids_free(&ids[i]);
        }
        CHECK(engine_pick_slot(g, (i32[]){1}, 1) >= 0);
    }
    engine_close(g);
    engine_close(solo);
}

/* What lanes do: each thread a forward of a slot's rows, over and over, while the others do so too. */
typedef struct {
    const Buf *want; /* [SLOTS] the logits that the slot's rows give alone */
    i32 n_runs[SLOTS], n_wrong[SLOTS]; /* of each lane */
} Apart;

#define APART_ROWS 24

static i32 apart_rows(DlmRow *rows, i32 slot) {
    i32 n = 1 + 5 * slot, n_logits = 0;
    for (i32 pos = 0; pos < n; pos++)
        rows[pos] = (DlmRow){.token = (37 * pos + 100 * slot) % 1000,
                             .pos = pos,
                             .slot = slot,
                             .cell = pos,
                             .kv_hi = pos + 1,
                             .logits = pos % 3 == 1 ? -1 : n_logits++};
    return n;
}

static i32 apart_logits(const DlmRow *rows, i32 n) {
    i32 n_logits = 0;
    for (i32 r = 0; r < n; r++) n_logits += rows[r].logits >= 0;
    return n_logits;
}

static void run_apart(void *arg, EngineLane *lane, i32 index) {
    Apart *a = arg;
    Graph *g = lane->graph;
    for (i32 run = 0; run < 30; run++) {
        i32 n = apart_rows(lane->rows, index), n_logits = apart_logits(lane->rows, n);
        graph_forward(g, lane->rows, n, n_logits);
        a->n_runs[index]++;
        for (i32 at = 0, each = MIN_OF(n_logits, g->n_logits_max); at < n_logits; at += each) {
            u64 size = (u64)g->m->n_vocab * sizeof(f32);
            each = MIN_OF(each, n_logits - at);
            if (n_logits > g->n_logits_max) graph_logits(g, at, each);
            a->n_wrong[index] +=
                memcmp(g->logits, a->want[index].p + (u64)at * size, (u64)each * size) != 0;
        }
    }
}

/* Threads that run forwards apart give the logits, to the bit, that each slot's rows give alone. */
static void check_apart(void) {
    for (i32 threads = 1; threads <= SLOTS + 1; threads++) {
        DlmRow rows[APART_ROWS];
        EngineOptions o = options(MODEL_PATH, threads, NULL);
        o.n_slots = SLOTS;
        Engine *e = open_with(&o);
        Buf want[SLOTS] = {{0}};
        Apart a = {.want = want};
        if (!e) return;
        CHECK_INT(e->n_lanes, MIN_OF(threads, SLOTS));
        for (i32 slot = 0; slot < SLOTS; slot++) {
            i32 n = apart_rows(rows, slot), n_logits = apart_logits(rows, n);
            graph_forward(&e->graph, rows, n, n_logits);
            buf_put(&want[slot], e->graph.logits,
                    (size_t)n_logits * (size_t)e->model.n_vocab * sizeof(f32));
        }
        if (threads > 1) engine_apart(e, run_apart, &a);
        for (i32 i = 0; i < e->n_lanes && threads > 1; i++) {
            CHECK_INT(a.n_runs[i], 30);
            CHECK_INT(a.n_wrong[i], 0);
        }
        for (i32 slot = 0; slot < SLOTS; slot++) buf_free(&want[slot]);
        engine_close(e);
    }
}

static void keep_reveals(void *arg, const DecodeStep *s) {
    for (i32 i = 0; i < s->n_reveals; i++)
        buf_put(arg, &s->reveals[i].pos, sizeof(i32)),
            buf_put(arg, &s->reveals[i].token, sizeof(i32));
}

/* A commit that rides in the next block's first forward changes nothing but the number of forwards:
 * the same tokens in the same order, sampled and with penalties too. */
static void check_commits(void) {
    EngineOptions o = options(MODEL_PATH, 2, NULL);
    Engine *g = open_with(&o);
    i32 n_joined = 0;
    for (int mode = DECODE_GREEDY; g && mode <= DECODE_ADAPTIVE; mode++)
        for (size_t q = 0; q < 2 * COUNT_OF(QUESTIONS); q++) {
            DecodeParams p = params((DecodeMode)mode, (f32)(q % 2) * 0.9f);
            TokIds ids = prompt_of(g, QUESTIONS[q / 2]);
            Buf order[2] = {{0}};
            DecodeResult r[2];
            p.frequency_penalty = q % 3 ? 0.5f : 0;
            p.cache = CACHE_NONE + (i32)q % 3;
            for (int lone = 0; lone < 2; lone++) {
                DecodeEvents ev = {.arg = &order[lone], .step = keep_reveals};
                Err e = {0};
                p.lone_commit = lone;
                CHECK_OK(engine_generate(g, 0, ids.p, (i32)ids.n, &p, &ev, &r[lone], &e), e);
            }
            CHECK_STR(buf_view(&order[0]), buf_view(&order[1]));
            CHECK_STR(buf_view(&r[0].text), buf_view(&r[1].text));
            CHECK_INT(r[0].n_forwards_commit, 0);
            CHECK_INT(r[1].n_joined, 0);
            CHECK_INT(r[0].n_joined, r[1].n_forwards_commit);
            CHECK_INT(r[0].n_forwards_denoise, r[1].n_forwards_denoise);
            CHECK_U64((u64)r[0].n_rows, (u64)r[1].n_rows);
            n_joined += r[0].n_joined;
            for (int lone = 0; lone < 2; lone++)
                buf_free(&order[lone]), decode_result_free(&r[lone]);
            tok_ids_free(&ids);
        }
    CHECK(n_joined > 20);
    engine_close(g);
}

/* --cache masked runs fewer rows than dual cache, and here it answers as well. */
static void check_masked_cache(void) {
    EngineOptions o = options(MODEL_PATH, 2, NULL);
    Engine *g = open_with(&o);
    i64 rows[CACHE_MASKED + 1] = {0};
    for (i32 cache = CACHE_NONE; g && cache <= CACHE_MASKED; cache++)
        for (size_t q = 0; q < 3; q++) {
            DecodeParams p = params(DECODE_ITERATIVE, 0);
            TokIds ids = prompt_of(g, QUESTIONS[q]);
            DecodeResult r;
            Err e = {0};
            p.cache = cache;
            CHECK_OK(engine_generate(g, 0, ids.p, (i32)ids.n, &p, NULL, &r, &e), e);
            CHECK_CSTR(r.finish, "stop");
            rows[cache] += r.n_rows;
            decode_result_free(&r);
            tok_ids_free(&ids);
        }
    CHECK(rows[CACHE_MASKED] < rows[CACHE_DUAL] && rows[CACHE_DUAL] < rows[CACHE_NONE]);
    engine_close(g);
}

/* Penalties and biases act, alternatives come sorted and hold what was chosen. */
static void on_token(void *arg, const DecodeToken *t) {
    f64 sum = 0;
    CHECK_INT(t->n_top, 5);
    for (i32 i = 0; i < t->n_top; i++) {
        CHECK(i == 0 || t->top[i].prob <= t->top[i - 1].prob);
        for (i32 k = 0; k < i; k++) CHECK(t->top[i].token != t->top[k].token);
        sum += (f64)t->top[i].prob;
    }
    CHECK(sum <= 1.0001);
    CHECK_INT(t->top[0].token, t->token); /* at temperature 0 */
    CHECK_NEAR(t->top[0].prob, t->prob, 1e-6);
    CHECK_INT(t->index, (*(i32 *)arg)++);
}

static void check_changed_logits(void) {
    EngineOptions o = options(MODEL_PATH, 1, NULL);
    Engine *g = open_with(&o);
    TokIds ids = prompt_of(g, QUESTIONS[2]);
    for (int mode = DECODE_AR; mode <= DECODE_ADAPTIVE; mode++) {
        DecodeParams p = params((DecodeMode)mode, 0);
        DecodeResult plain, r;
        Err e = {0};
        i32 n = 0;
        DecodeEvents ev = {.arg = &n, .token = on_token};
        p.n_top = 5;
        CHECK_OK(engine_generate(g, 0, ids.p, (i32)ids.n, &p, &ev, &plain, &e), e);
        CHECK_INT(n, plain.ids.n);
        DecodeBias certain = {.token = plain.ids.p[0], .bias = 60}; /* of probability 1 */
        p.biases = &certain, p.n_biases = 1, p.max_tokens = 4, n = 0;
        CHECK_OK(engine_generate(g, 0, ids.p, (i32)ids.n, &p, &ev, &r, &e), e);
        decode_result_free(&r);
        p.max_tokens = 100;
        DecodeBias never = {.token = plain.ids.p[1], .bias = -100};
        p.biases = &never, p.n_biases = 1, p.n_top = 0;
        CHECK_OK(engine_generate(g, 0, ids.p, (i32)ids.n, &p, NULL, &r, &e), e);
        for (size_t i = 0; i < r.ids.n; i++) CHECK(r.ids.p[i] != never.token);
        decode_result_free(&r);
        p.n_biases = 0, p.frequency_penalty = 10;
        CHECK_OK(engine_generate(g, 0, ids.p, (i32)ids.n, &p, NULL, &r, &e), e);
        CHECK(!str_eq(buf_view(&r.text), buf_view(&plain.text)));
        decode_result_free(&r);
        decode_result_free(&plain);
    }
    tok_ids_free(&ids);
    engine_close(g);
}

static bool cancel_soon(void *arg) {
    return --*(int *)arg < 0;
}

static void check_cancel(void) {
    EngineOptions o = options(MODEL_PATH, 2, NULL);
    Engine *g = open_with(&o);
    TokIds ids = prompt_of(g, QUESTIONS[3]);
    DecodeParams p = params(DECODE_ITERATIVE, 0);
    Answer want = ask(g, QUESTIONS[3], &p);
    for (int forwards = 0; forwards < 8; forwards++) {
        int left = forwards;
        DecodeEvents ev = {.arg = &left, .cancelled = cancel_soon};
        DecodeResult r;
        Err e = {0};
        CHECK_OK(engine_generate(g, 0, ids.p, (i32)ids.n, &p, &ev, &r, &e), e);
        CHECK_CSTR(r.finish, "cancelled");
        CHECK(str_starts(buf_view(&want.text), buf_view(&r.text)));
        decode_result_free(&r);
        same_answer(&want, ask(g, QUESTIONS[3], &p), "after a cancelled answer");
    }
    buf_free(&want.text);
    tok_ids_free(&ids);
    engine_close(g);
}

/* ---- parameters ---- */

static void check_modes(void) {
    EngineOptions o = options(MODEL_PATH, 1, NULL);
    Engine *g = open_with(&o);
    TokIds ids = prompt_of(g, QUESTIONS[1]);
    DecodeResult r;
    Err e = {0};
    DecodeParams p = params(DECODE_GREEDY, 0);
    CHECK_OK(engine_generate(g, 0, ids.p, (i32)ids.n, &p, NULL, &r, &e), e);
    CHECK_INT(r.n_forwards_denoise, r.n_joined + 1); /* one look at each block */
    CHECK_INT(r.n_forwards_commit, 0);
    decode_result_free(&r);
    p = params(DECODE_ITERATIVE, 0);
    p.threshold = 1; /* no probability is above 1: one token per forward */
    p.early_stop = false;
    p.max_tokens = 32;
    CHECK_OK(engine_generate(g, 0, ids.p, (i32)ids.n, &p, NULL, &r, &e), e);
    CHECK(r.n_forwards_denoise % 32 == (32 - (i32)ids.n % 32) % 32);
    decode_result_free(&r);
    p.mode = DECODE_ADAPTIVE, p.rule = RULE_ENTROPY;
    CHECK(!engine_generate(g, 0, ids.p, (i32)ids.n, &p, NULL, &r, &e));
    CHECK_ERR(e, ERR_USAGE, "the rule entropy has none");
    err_clear(&e);
    p.mode = DECODE_ITERATIVE, p.rule = RULE_MODEL;
    p.sub_block_size = 5;
    CHECK(!engine_generate(g, 0, ids.p, (i32)ids.n, &p, NULL, &r, &e));
    CHECK_ERR(e, ERR_USAGE, "does not divide");
    err_clear(&e);
    ids.p[0] = 1024;
    CHECK(!engine_generate(g, 0, ids.p, (i32)ids.n, &p, NULL, &r, &e));
    CHECK_ERR(e, ERR_USAGE, "outside the vocabulary");
    tok_ids_free(&ids);
    engine_close(g);
}

#ifdef DLM_TEST_ALLOC
static bool open_and_generate(void *arg, Err *e) {
    const DecodeParams *p = arg;
    EngineOptions o = options(MODEL_PATH, 2, NULL);
    o.n_ctx = 96;
    Engine *g = NULL;
    TokIds ids = {0};
    DecodeResult r = {0};
    TmplMsg msg = tmpl_msg(STR("user"), STR("What is 2+2?"));
    bool ok = engine_open(&g, &o, e) && engine_render(g, &msg, 1, &ids, e) &&
              engine_generate(g, 0, ids.p, (i32)ids.n, p, NULL, &r, e);
    decode_result_free(&r);
    tok_ids_free(&ids);
    engine_close(g);
    return ok;
}

/* The n-th allocation is refused, for all n of open + render + generate + close. */
static void check_allocations(void) {
    DecodeParams p = params(DECODE_ITERATIVE, 0);
    p.max_tokens = 16;
    base_log_level = LOG_QUIET; /* a smaller thread pool is worth a warning each time */
    i64 n = test_alloc_failures(open_and_generate, &p);
    printf("open and generate: %lld allocations, each refused once\n", (long long)n);
}
#endif

int main(void) {
    check_same_everywhere();
    check_kv_types();
    check_streaming();
    check_limits();
    check_context();
    check_wide_context();
    check_reuse();
    check_slots();
    check_apart();
    check_commits();
    check_masked_cache();
    check_changed_logits();
    check_cancel();
    check_modes();
#ifdef DLM_TEST_ALLOC
    check_allocations();
#endif
    return test_end();
}

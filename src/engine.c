/* engine.c - a loaded model and the slots that generate with it.
 *
 * Owns:      the file's mapping, tokenizer, model, thread pool, backend, graph and one decoder per slot.
 * Stands on: base mem os pool gguf tok tmpl kern model graph decode
 * Promises:  immutable after engine_open except for the slots; what a slot generates does not depend on what it
 *            or another slot generated before. */
#ifndef DLM_ENGINE_C
#define DLM_ENGINE_C

#include "../dlm_kernels.h"
#include "base.c"
#include "decode.c"
#include "gguf.c"
#include "graph.c"
#include "kern.c"
#include "mem.c"
#include "model.c"
#include "os.c"
#include "pool.c"
#include "tmpl.c"
#include "tok.c"

#define ENGINE_CTX_DEFAULT 4096
#define ENGINE_ROWS_MAX 256 /* rows of one prefill chunk */
#define ENGINE_DEMO_LABEL "built-in demo model"

typedef struct {
    const char *path;      /* NULL: the built-in demo model */
    i32 n_ctx;             /* tokens a slot holds; 0: the model's, at most ENGINE_CTX_DEFAULT */
    i32 n_threads;         /* 0: os_cpu_count() */
    const char *cpu_level; /* NULL: the best this machine has */
    i32 mask_token_id;     /* -1: from the model */
    DlmI2sLayout i2s_layout;
    const char *pre;       /* NULL, or a pre-tokenizer to use instead of the file's */
    DlmType kv_type;       /* DLM_F16; DLM_F32 for comparisons */
    i32 block_size_max;    /* largest block that requests may ask for; 0: the model's */
    i32 n_slots;
} EngineOptions;

static EngineOptions engine_options_default(void) {
    return (EngineOptions){.mask_token_id = -1, .kv_type = DLM_F16, .n_slots = 1};
}

typedef struct {
    OsMap map;
    Gguf file;
    Tok tok;
    Model model;
    Pool *pool;
    DlmOps ops;
    Graph graph;
    GraphOptions graph_options;
    Decode *slots; /* [n_slots] */
    DlmRow *rows;  /* [n_rows_max] */
    i32 n_slots;
    f64 load_ms;
    bool tok_open, model_open;
} Engine;

/* ---- the built-in model: bytes that dlm.c places in the binary's read-only data ---- */

#ifndef DLM_NO_DEMO
extern const u8 dlm_demo_begin[], dlm_demo_end[];
static Str engine_demo(void) {
    return (Str){(const char *)dlm_demo_begin, (size_t)(dlm_demo_end - dlm_demo_begin)};
}
#else
static Str engine_demo(void) {
    return (Str){0};
}
#endif

static bool engine_map_(Engine *g, const char *path, Err *e) {
    if (path) {
        if (!os_map_file(&g->map, path, e)) return false;
        return gguf_open(&g->file, g->map.p, g->map.n, path, e);
    }
    Str demo = engine_demo();
    if (demo.n == 0)
        return err_set(e, ERR_USAGE, "no model: this build has no built-in one; give a GGUF file with -m FILE");
    return gguf_open(&g->file, (const u8 *)demo.p, demo.n, ENGINE_DEMO_LABEL, e);
}

/* ---- opening and closing ---- */

static void engine_close(Engine *g) {
    if (!g) return;
    for (i32 i = 0; g->slots && i < g->n_slots; i++) decode_close(&g->slots[i]);
    mem_free(g->slots);
    mem_free(g->rows);
    graph_close(&g->graph);
    model_unload(&g->model);
    kern_close_cpu(&g->ops);
    pool_close(g->pool);
    if (g->tok_open) tok_close(&g->tok);
    gguf_close(&g->file);
    os_unmap(&g->map);
    mem_free(g);
}

static bool engine_context_(const Engine *g, const EngineOptions *o, i32 *n_ctx, Err *e) {
    i32 most = g->model.n_ctx_train;
    *n_ctx = o->n_ctx ? o->n_ctx : MIN_OF(most, ENGINE_CTX_DEFAULT);
    if (*n_ctx < 2 || *n_ctx > most)
        return err_set(e, ERR_USAGE, "context of %d tokens: this model was trained for 2 to %d", *n_ctx, most);
    return true;
}

static bool engine_open_slots_(Engine *g, const EngineOptions *o, Err *e) {
    i32 n_ctx = 0;
    if (!engine_context_(g, o, &n_ctx, e)) return false;
    /* under full attention every step runs the whole canvas; else the largest forward is a prefill chunk */
    i32 rows = g->model.decode.attention == ATTEND_FULL ? MAX_OF(n_ctx, ENGINE_ROWS_MAX) : ENGINE_ROWS_MAX;
    g->graph_options = (GraphOptions){.n_slots = o->n_slots, .n_ctx = n_ctx, .n_rows_max = rows,
                                      .n_logits_max = MAX_OF(g->model.decode.block_size, o->block_size_max),
                                      .kv_type = o->kv_type};
    if (!graph_open(&g->graph, &g->model, &g->graph_options, e)) return false;
    g->rows = mem_alloc_n((u64)rows, sizeof *g->rows, e);
    g->slots = g->rows ? mem_alloc_n((u64)o->n_slots, sizeof *g->slots, e) : NULL;
    if (!g->slots) return false;
    for (; g->n_slots < o->n_slots; g->n_slots++)
        if (!decode_open(&g->slots[g->n_slots], &g->model, g->n_slots, n_ctx, e)) {
            g->n_slots++; /* half open: engine_close frees it */
            return false;
        }
    return true;
}

static bool engine_open_(Engine *g, const EngineOptions *o, Err *e) {
    const ModelOptions mo = {.mask_id = o->mask_token_id, .i2s_layout = o->i2s_layout};
    if (!engine_map_(g, o->path, e)) return false;
    if (!tok_open(&g->tok, &g->file, o->pre, e)) return false;
    g->tok_open = true;
    if (!model_read(&g->model, &g->file, &g->tok, &mo, e)) return false;
    if (!pool_open(&g->pool, o->n_threads ? o->n_threads : os_cpu_count(), e)) return false;
    if (!kern_open_cpu(&g->ops, g->pool, o->cpu_level, e)) return false;
    return model_load(&g->model, &mo, &g->ops, e) && engine_open_slots_(g, o, e);
}

/* Opens the model file (or the built-in one), loads it and prepares the slots. */
static bool engine_open(Engine **out, const EngineOptions *o, Err *e) {
    f64 from = os_now_ms();
    *out = NULL;
    Engine *g = mem_alloc(sizeof *g, e);
    if (!g) return false;
    if (!engine_open_(g, o, e)) {
        engine_close(g);
        return false;
    }
    g->load_ms = os_now_ms() - from;
    *out = g;
    return true;
}

static const Tok *engine_tok(const Engine *g) {
    return &g->tok;
}

static const Model *engine_model(const Engine *g) {
    return &g->model;
}

/* Can this model fill masks at all? If not, *why says what is missing and what to do. */
static bool engine_can_diffuse(const Engine *g, Err *why) {
    return model_can_diffuse(&g->model, why);
}

/* ---- prompts ---- */

/* Renders messages with the model's chat template and tokenizes the result; appends to out. Text that came from a
 * message never becomes a special token. */
static bool engine_render(const Engine *g, const TmplMsg *msgs, size_t n_msgs, TokIds *out, Err *e) {
    const Tok *t = &g->tok;
    if (t->chat_template.n == 0)
        return err_set(e, ERR_MODEL, "%s has no chat template; use --raw to send the prompt as it is", g->file.label);
    TmplVars v = {.bos_token = t->bos >= 0 ? tok_text(t, t->bos) : STR(""),
                  .eos_token = t->eos >= 0 ? tok_text(t, t->eos) : STR(""),
                  .add_generation_prompt = true, .now_unix = os_now_unix()};
    TmplOut r = {0};
    bool ok = tmpl_render(t->chat_template, msgs, n_msgs, &v, &r, e) &&
              tok_encode_prompt(t, buf_view(&r.text), (const u8 *)r.trust.p, out, e);
    tmpl_out_free(&r);
    return ok;
}

/* ---- generating ---- */

static void engine_tell_step_(const Decode *d, DecodePhase phase, i32 n_rows, f64 ms, const DecodeEvents *ev, i32 begin,
                              i32 end, i32 block, i32 step) {
    if (!ev->step) return;
    DecodeStep s = {.kind = DECODE_PHASE_NAMES[phase], .block = block, .step = step, .n_rows = n_rows, .ms = ms,
                    .reveals = d->reveals, .n_reveals = d->n_reveals, .block_begin = begin, .block_end = end,
                    .tokens = d->tokens + begin, .masked = d->masked + begin, .probs = d->probs + begin,
                    .n_prompt = d->n_prompt};
    ev->step(ev->arg, &s);
}

/* One forward of one slot. */
static bool engine_step_(Engine *g, Decode *d, const DecodeEvents *ev, Err *e) {
    f64 from = os_now_ms();
    i32 n_logits = 0, block = d->block;
    DecodePhase phase = d->phase;
    i32 n_rows = decode_plan(d, g->rows, g->graph.n_rows_max, &n_logits);
    i32 begin = d->block_begin, end = d->block_end, step = d->step;
    graph_forward(&g->graph, g->rows, n_rows, n_logits);
    if (!decode_absorb(d, g->graph.logits, ev, e)) return false;
    if (phase == PHASE_AR || (phase == PHASE_PREFILL && d->n_reveals)) begin = d->reveals[0].pos, end = begin + 1;
    engine_tell_step_(d, phase, n_rows, os_now_ms() - from, ev, begin, end, block, step);
    return true;
}

static bool engine_result_(const Decode *d, DecodeResult *r, Err *e) {
    const i32 *n = d->n_forwards;
    r->finish = d->finish ? d->finish : "cancelled";
    r->n_prompt = d->n_prompt;
    r->n_forwards_prefill = n[PHASE_PREFILL], r->n_forwards_denoise = n[PHASE_DENOISE];
    r->n_forwards_commit = n[PHASE_COMMIT], r->n_forwards_ar = n[PHASE_AR];
    for (i32 i = 0; i < d->n_out; i++)
        if (!tok_ids_push(&r->ids, d->tokens[d->n_prompt + i], e)) return false;
    buf_put(&r->text, d->text.p, d->finish ? d->text.n : d->n_sent);
    return buf_ok(&r->text, "the answer", e);
}

typedef struct {
    const DecodeEvents *user;
    f64 from;
    f64 first_ms; /* 0 until the first text */
} EngineClock_;

static void engine_on_text_(void *arg, Str text) {
    EngineClock_ *c = arg;
    if (c->first_ms == 0) c->first_ms = os_now_ms() - c->from;
    if (c->user->text) c->user->text(c->user->arg, text);
}

static void engine_on_step_(void *arg, const DecodeStep *s) {
    EngineClock_ *c = arg;
    if (c->user->step) c->user->step(c->user->arg, s);
}

/* Generates an answer in a slot. prompt: [n_prompt] ids. Events may be NULL. On success *r holds the answer (also
 * when it was cancelled); the caller frees it with decode_result_free in any case. */
static bool engine_generate(Engine *g, i32 slot, const i32 *prompt, i32 n_prompt, const DecodeParams *p,
                            const DecodeEvents *ev, DecodeResult *r, Err *e) {
    static const DecodeEvents none = {0};
    *r = (DecodeResult){.text.max = DECODE_TEXT_MAX};
    EngineClock_ clock = {.user = ev ? ev : &none, .from = os_now_ms()};
    const DecodeEvents timed = {.arg = &clock, .text = engine_on_text_, .step = engine_on_step_};
    Decode *d = &g->slots[slot];
    for (i32 i = 0; i < n_prompt; i++)
        if (prompt[i] < 0 || prompt[i] >= g->model.n_vocab)
            return err_set(e, ERR_USAGE, "prompt token %d is %d, outside the vocabulary of %d", i, prompt[i], g->model.n_vocab);
    if (p->block_size > g->graph.n_logits_max)
        return err_set(e, ERR_USAGE, "block size %d is larger than %d, for which memory was reserved when the model was loaded",
                       p->block_size, g->graph.n_logits_max);
    if (!decode_begin(d, prompt, n_prompt, p, e)) return false;
    i32 n_cached = d->n_cached;
    while (d->phase != PHASE_DONE) {
        if (ev && ev->cancelled && ev->cancelled(ev->arg)) break;
        bool prefill = d->phase == PHASE_PREFILL;
        if (!engine_step_(g, d, &timed, e)) return false;
        if (prefill) r->ms_prefill = os_now_ms() - clock.from;
    }
    r->n_cached = n_cached;
    r->ms_decode = os_now_ms() - clock.from - r->ms_prefill;
    r->ms_first_token = clock.first_ms;
    return engine_result_(d, r, e);
}

#endif

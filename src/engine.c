/* engine.c - a loaded model and the slots that generate with it.
 *
 * Owns:      the file's mapping, tokenizer, model, thread pool, backend, graph and one decoder per
 *            slot.
 * Stands on: base mem os pool gguf tok tmpl kern model graph decode tempo tl
 * Promises:  immutable after engine_open except for the slots; what a slot generates does not depend
 *            on what it or another slot generated before, or generates beside it. */
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
#include "tempo.c"
#include "tl.c"
#include "tmpl.c"
#include "tok.c"

#define ENGINE_CTX_DEFAULT 4096
#define ENGINE_ROWS_MAX 256   /* rows of one forward */
#define ENGINE_LOGITS_MAX 128 /* rows of logits in memory at a time */
#define ENGINE_PREFILL_SHARE \
    128 /* rows of prefill beside other slots' steps: a long prompt must not stall them */
#define ENGINE_DEMO_LABEL "built-in demo model"

typedef enum { ENGINE_DEVICE_AUTO, ENGINE_DEVICE_CPU, ENGINE_DEVICE_CUDA } EngineDevice;

typedef struct {
    const char *path;      /* NULL: the built-in demo model */
    i32 n_ctx;             /* tokens a slot holds; 0: the model's, at most ENGINE_CTX_DEFAULT */
    i32 n_threads;         /* 0: os_cpu_count() */
    const char *cpu_level; /* NULL: the best this machine has */
    i32 device;            /* EngineDevice */
    i32 gpu_layers;        /* layers that a GPU has: its last ones; -1: as many as fit */
    i32 mask_token_id;     /* -1: from the model */
    DlmI2sLayout i2s_layout;
    const char *tl_config; /* NULL, or the file that says how TL1 and TL2 lie */
    const char *pre;       /* NULL, or a pre-tokenizer to use instead of the file's */
    DlmType kv_type;       /* DLM_F16; DLM_Q8_0 for long contexts, DLM_F32 for comparisons */
    i32 n_rows_max;        /* rows of one forward at least; 0: ENGINE_ROWS_MAX */
    i32 block_size_max;    /* largest block that requests may ask for; 0: the model's */
    i32 n_slots;
    bool automatic; /* requests will be DECODE_AUTO: measure now what that needs */
    int notes; /* a file open for reading and appending that remembers what was measured, or -1 */
    const char *convention; /* NULL, or a name of MODEL_CONVENTIONS to decode by */
} EngineOptions;

static EngineOptions engine_options_default(void) {
    return (EngineOptions){
        .mask_token_id = -1, .kv_type = DLM_F16, .n_slots = 1, .notes = -1, .gpu_layers = -1};
}

/* One generation at a time, and the cache that it leaves behind for the next. */
typedef struct {
    Decode decode;
    DecodeEvents events; /* the caller's */
    bool busy;           /* started and not finished */
    i32 way;             /* of decoding, as tempo chose it; -1: as the request said */
    u64 used;            /* Engine.clock when it was last started */
    i32 n_cached;        /* prompt tokens found in the cache */
    f64 from_ms, first_ms,
        prefill_ms; /* clock at the start; then durations, 0 until they are over */
} EngineSlot;

/* What a step is run with: all of the engine, or the part of a thread. */
typedef struct {
    Graph *graph;
    DlmRow *rows; /* [graph->n_rows_max] */
    i32 turn;     /* whoever of the slots is served first in the next step */
} EngineLane;

typedef struct {
    OsMap map;
    Gguf file;
    Tok tok;
    Model model;
    Pool *pool;
    DlmOps cpu, ops; /* ops: what the model runs on, the CPU or a GPU that borrows from it */
#ifdef DLM_CUDA
    DlmCudaHost cuda_host;
#endif
    Graph graph;
    GraphOptions graph_options;
    Tempo tempo;       /* for DECODE_AUTO */
    EngineSlot *slots; /* [n_slots] */
    DlmRow *rows;      /* [n_rows_max] */
    EngineLane whole;
    i32 n_slots;
    i32 n_lanes;        /* how many threads can step slots apart from each other; 1: none */
    i32 block_size_max; /* the largest block that memory was reserved for */
    u64 clock;          /* counts requests: the least recently used slot has the lowest */
    f64 load_ms;
    bool tok_open, model_open;
} Engine;

/* ---- the built-in model: bytes that dlm.c places in the binary's read-only data ---- */

#ifndef DLM_NO_DEMO
/* Hidden, so that the compiler reaches these local labels directly: through the global offset table
 * binutils 2.40 for aarch64 loses their offsets, and the model is empty. */
#define HIDDEN __attribute__((visibility("hidden")))
HIDDEN extern const u8 dlm_demo_begin[], dlm_demo_end[];
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
        return err_set(e, ERR_USAGE,
                       "no model: this build has no built-in one; give a GGUF file with -m FILE");
    return gguf_open(&g->file, (const u8 *)demo.p, demo.n, ENGINE_DEMO_LABEL, e);
}

/* ---- opening and closing ---- */

static void engine_close(Engine *g) {
    if (!g) return;
    if (g->slots) tempo_write_notes(&g->tempo);
    for (i32 i = 0; g->slots && i < g->n_slots; i++) decode_close(&g->slots[i].decode);
    mem_free(g->slots);
    mem_free(g->rows);
    graph_close(&g->graph);
    model_unload(&g->model);
    if (g->ops.self && g->ops.self != g->cpu.self) g->ops.close(&g->ops);
    kern_close_cpu(&g->cpu);
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
        return err_set(e, ERR_USAGE, "context of %d tokens: this model was trained for 2 to %d",
                       *n_ctx, most);
    most = INT32_MAX / g->model.n_head; /* rows of a forward times heads are counted in an i32 */
    if (g->model.decode.attention == ATTEND_FULL && *n_ctx > most)
        return err_set(e, ERR_USAGE,
                       "context of %d tokens: under full attention all are run at once, which with "
                       "%d heads goes up to %d",
                       *n_ctx, g->model.n_head, most);
    return true;
}

#define ENGINE_LANES_MAX 32

/* A lane has room for whatever one of its slots may want: the rows of a block and the one before, and the
 * logits of a block. */
static void engine_plan_lanes_(Engine *g, const EngineOptions *o) {
    GraphOptions *p = &g->graph_options;
    i32 n = MIN_OF(MIN_OF(pool_threads(g->pool), o->n_slots), ENGINE_LANES_MAX);
    i32 block = MIN_OF(g->block_size_max, p->n_ctx);
    g->n_lanes = 1;
    if (n < 2 || !graph_has_lanes(&g->model, &g->cpu)) return;
    g->n_lanes = n;
    p->n_rows_max = MAX_OF(p->n_rows_max, n * 2 * block);
    p->n_targets_max = MAX_OF(p->n_targets_max, n * block);
    p->n_logits_max = MAX_OF(p->n_logits_max, MIN_OF(n * block, ENGINE_LOGITS_MAX));
}

static bool engine_plan_graph_(Engine *g, const EngineOptions *o, Err *e) {
    i32 n_ctx = 0;
    if (!engine_context_(g, o, &n_ctx, e)) return false;
    bool full = g->model.decode.attention == ATTEND_FULL;
    g->block_size_max = MAX_OF(g->model.decode.block_size, o->block_size_max);
    i32 block = MIN_OF(g->block_size_max, n_ctx);
    i32 two = MIN_OF(2 * block, n_ctx); /* with the commit of the one before, or with blind rows */
    i32 all = MIN_OF((i64)o->n_slots * g->model.decode.sub_block_size, ENGINE_LOGITS_MAX);
    i32 logits = MIN_OF(MAX_OF(block, all), ENGINE_LOGITS_MAX);
    /* under full attention every step runs the whole canvas; else the largest forward is a prefill
     * chunk */
    g->graph_options = (GraphOptions){
        .n_slots = o->n_slots,
        .n_ctx = n_ctx,
        .n_rows_max = MAX_OF(MAX_OF(o->n_rows_max, ENGINE_ROWS_MAX), full ? n_ctx : two),
        .n_logits_max = full ? MAX_OF(logits & ~1, 2) : logits, /* pairs */
        .n_targets_max = MAX_OF(full ? two : block, all),
        .kv_type = o->kv_type};
    engine_plan_lanes_(g, o);
    return true;
}

static bool engine_open_slots_(Engine *g, const EngineOptions *o, Err *e) {
    const GraphOptions *p = &g->graph_options;
    if (!graph_open(&g->graph, &g->model, p, e)) return false;
    g->rows = mem_alloc_n((u64)p->n_rows_max, sizeof *g->rows, e);
    g->whole = (EngineLane){.graph = &g->graph, .rows = g->rows};
    g->slots = g->rows ? mem_alloc_n((u64)o->n_slots, sizeof *g->slots, e) : NULL;
    if (!g->slots) return false;
    for (; g->n_slots < o->n_slots; g->n_slots++)
        if (!decode_open(&g->slots[g->n_slots].decode, &g->model, g->n_slots, p->n_ctx, e)) {
            g->n_slots++; /* half open: engine_close frees it */
            return false;
        }
    return true;
}

/* ---- the device: a GPU that holds the whole model or its last layers, or the CPU ---- */

#ifdef DLM_CUDA
#define ENGINE_CUDA_SPARE ((u64)256 << 20) /* recorded passes, and what the driver takes */
#define ENGINE_CUDA_ROWS 1024              /* of one forward, where there is room: a GPU wants */
#define ENGINE_CUDA_LOGITS 512             /* many at a time */
#define ENGINE_MIB(n) ((f64)(n) / 1048576.0)

/* What a model takes of a GPU. The cache of all layers is there, and attention, also where the CPU
 * multiplies by a layer's matrices: so only those matrices are a matter of choice. */
typedef struct {
    u64 weights; /* embedding, output, vectors */
    u64 cache;
    u64 scratch; /* and what is spared */
    u64 *layers; /* [n_layer] matrices */
    u64 all, free;
} EngineCudaPlan_;

static void engine_parallel_(void *pool, i32 n, i32 grain, PoolFn fn, void *arg) {
    pool_for(pool, n, grain, fn, arg);
}

/* The layer of a tensor by its name, blk.N.*, or -1. */
static i32 engine_layer_of_(const Engine *g, Str name) {
    i64 n = 0;
    if (!str_starts(name, STR("blk."))) return -1;
    for (size_t i = 4; i < name.n && name.p[i] >= '0' && name.p[i] <= '9' && n <= INT32_MAX; i++)
        n = 10 * n + (name.p[i] - '0');
    return n < g->model.n_layer ? (i32)n : -1;
}

/* plan->layers is the caller's, zeroed. */
static void engine_plan_cuda_(const Engine *g, const GraphOptions *o, const DlmOps *ops,
                              EngineCudaPlan_ *plan) {
    const Model *m = &g->model;
    for (u32 i = 0; i < g->file.n_tensors; i++) {
        const GgufTensor *t = &g->file.tensors[i];
        const DlmTensor d = {.type = t->type, .n_in = (i64)t->ne[0], .n_out = (i64)t->ne[1]};
        i32 layer = t->n_dims < 2 ? -1 : engine_layer_of_(g, t->name);
        u64 *sum = layer < 0 ? &plan->weights : &plan->layers[layer];
        *sum += t->n_dims < 2 ? t->ne[0] * sizeof(f32) : ops->mat_bytes(ops->self, &d);
    }
    i32 n_in = MAX_OF(MAX_OF(m->n_embd, m->n_head * m->head_dim), m->n_ff);
    plan->cache = graph_kv_bytes(m, o);
    plan->scratch = graph_scratch_bytes(m, o) + ENGINE_CUDA_SPARE +
                    ops->scratch_bytes(ops->self, o->n_rows_max, n_in);
    plan->all = plan->weights + plan->cache + plan->scratch;
    for (i32 i = 0; i < m->n_layer; i++) plan->all += plan->layers[i];
    plan->free = ops->memory_free(ops->self);
}

/* Bytes with the last n layers. */
static u64 engine_cuda_bytes_(const Engine *g, const EngineCudaPlan_ *plan, i32 n) {
    u64 sum = plan->weights + plan->cache + plan->scratch;
    for (i32 i = g->model.n_layer - n; i < g->model.n_layer; i++) sum += plan->layers[i];
    return sum;
}

static i32 engine_cuda_fits_(const Engine *g, const EngineCudaPlan_ *plan) {
    i32 n = -1;
    while (n < g->model.n_layer && engine_cuda_bytes_(g, plan, n + 1) <= plan->free) n++;
    return n;
}

/* Decides how many layers the GPU has, and says so when it is not all of them. False: none. */
static bool engine_cuda_layers_(Engine *g, const EngineOptions *o, const EngineCudaPlan_ *plan,
                                i32 *n, Err *why) {
    i32 all = g->model.n_layer, fits = engine_cuda_fits_(g, plan);
    *n = o->gpu_layers < 0 ? fits : MIN_OF(o->gpu_layers, all);
    u64 need = engine_cuda_bytes_(g, plan, MAX_OF(*n, 0));
    char parts[160];
    snprintf(parts, sizeof parts,
             "%.1f MiB: weights %.1f, cache %.1f, scratch and reserve %.1f, where %.1f are free",
             ENGINE_MIB(need), ENGINE_MIB(need - plan->cache - plan->scratch),
             ENGINE_MIB(plan->cache), ENGINE_MIB(plan->scratch), ENGINE_MIB(plan->free));
    if (*n > fits)
        return err_set(why, ERR_MEMORY,
                       "%d of %d layers on the GPU need %s; %d would fit: ask for fewer with "
                       "--gpu-layers, or for a smaller context with -c",
                       *n, all, parts, MAX_OF(fits, 0));
    if (*n < 1)
        return err_set(why, ERR_RUNTIME,
                       "the model and its cache need %.1f MiB on the GPU, where %.1f are free, too "
                       "few for a part of it",
                       ENGINE_MIB(plan->all), ENGINE_MIB(plan->free));
    log_line(*n < all ? LOG_INFO : LOG_DEBUG, "the GPU has %d of %d layers (%s)%s", *n, all, parts,
             *n < all ? ", the CPU the others" : "");
    return true;
}

/* Forwards as wide as a GPU likes them. */
static GraphOptions engine_wide_(const Engine *g) {
    GraphOptions o = g->graph_options;
    i64 cells = (i64)o.n_slots * o.n_ctx, logits = (i64)o.n_slots * g->model.decode.sub_block_size;
    o.n_rows_max = MAX_OF(o.n_rows_max, (i32)MIN_OF(cells, ENGINE_CUDA_ROWS));
    o.n_logits_max = MAX_OF(o.n_logits_max, (i32)MIN_OF(logits, ENGINE_CUDA_LOGITS) & ~1);
    o.n_targets_max = MAX_OF(o.n_targets_max, o.n_logits_max);
    return o;
}

/* Wide forwards where the whole model fits with them, else forwards as the CPU has them. */
static bool engine_place_(Engine *g, const EngineOptions *o, const DlmOps *ops, u64 *layers,
                          Err *why) {
    const GraphOptions wide = engine_wide_(g), *try[] = {&wide, &g->graph_options};
    for (int i = 0; i < 2; i++) {
        EngineCudaPlan_ plan = {.layers = layers};
        memset(layers, 0, (size_t)g->model.n_layer * sizeof *layers);
        engine_plan_cuda_(g, try[i], ops, &plan);
        bool whole =
            plan.all <= plan.free && (o->gpu_layers < 0 || o->gpu_layers >= g->model.n_layer);
        i32 n = 0;
        if (i == 0 && !whole) continue;
        if (!engine_cuda_layers_(g, o, &plan, &n, why)) return false;
        g->cuda_host.n_layers_host = g->model.n_layer - n;
        g->graph_options = *try[i];
        return true;
    }
    return false;
}

static bool engine_open_cuda_(Engine *g, const EngineOptions *o, Err *why) {
    DlmOps ops = {0};
    if (o->kv_type == DLM_Q8_0)
        return err_set(
            why, ERR_RUNTIME,
            "keys and values of type q8_0 are for the CPU; a GPU has them as f16 or f32");
    g->cuda_host = (DlmCudaHost){
        .cpu = &g->cpu, .unpack = quant_unpack, .pool = g->pool, .parallel = engine_parallel_};
    const char *refusal = dlm_cuda_open(&ops, &g->cuda_host);
    if (refusal) return err_set(why, ERR_RUNTIME, "%s", refusal);
    u64 *layers = mem_alloc_n((u64)g->model.n_layer, sizeof *layers, why);
    bool ok = layers && engine_place_(g, o, &ops, layers, why);
    mem_free(layers);
    if (ok)
        g->ops = ops;
    else
        ops.close(&ops);
    return ok;
}
#else
static bool engine_open_cuda_(Engine *g, const EngineOptions *o, Err *why) {
    (void)g, (void)o;
    return err_set(
        why, ERR_USAGE,
        "this program was built for the CPU alone; `./build.sh cuda` makes dlm-cuda, which "
        "uses an NVIDIA GPU");
}
#endif

/* May the model run on a GPU? */
static bool engine_wants_gpu(const EngineOptions *o) {
#ifdef DLM_CUDA
    return o->device != ENGINE_DEVICE_CPU && o->gpu_layers != 0;
#else
    return o->device == ENGINE_DEVICE_CUDA ||
           (o->device == ENGINE_DEVICE_AUTO && o->gpu_layers > 0);
#endif
}

static bool engine_choose_device_(Engine *g, const EngineOptions *o, Err *e) {
    Err why = {0};
    g->ops = g->cpu;
    if (!engine_wants_gpu(o) || engine_open_cuda_(g, o, &why)) return true;
    if (why.code != ERR_RUNTIME) return err_set(e, why.code, "%s", why.msg);
    log_line(LOG_INFO, "%s; running on the CPU", why.msg);
    return true;
}

/* What of the options concerns the reading of a model. */
static bool engine_model_options(const EngineOptions *o, ModelOptions *mo, Err *e) {
    *mo = (ModelOptions){.mask_id = o->mask_token_id,
                         .convention = o->convention,
                         .i2s_layout = o->i2s_layout,
                         .mapped = o->path != NULL};
    Buf text = {.max = 1 << 20};
    bool ok = !o->tl_config || (os_read_file(o->tl_config, &text, e) &&
                                tl_parse(&mo->tl, buf_view(&text), o->tl_config, e));
    buf_free(&text);
    return ok;
}

static bool engine_open_(Engine *g, const EngineOptions *o, Err *e) {
    ModelOptions mo;
    if (!engine_model_options(o, &mo, e) || !engine_map_(g, o->path, e)) return false;
    if (!tok_open(&g->tok, &g->file, o->pre, e)) return false;
    g->tok_open = true;
    if (!model_read(&g->model, &g->file, &g->tok, &mo, e)) return false;
    if (!pool_open(&g->pool, o->n_threads ? o->n_threads : os_cpu_count(), e)) return false;
    if (!kern_open_cpu(&g->cpu, g->pool, o->cpu_level, e)) return false;
    if (!engine_plan_graph_(g, o, e) || !engine_choose_device_(g, o, e)) return false;
    if (!g->ops.apart) g->n_lanes = 1;
    if (!model_load(&g->model, &mo, &g->ops, e)) return false;
    tempo_open(&g->tempo, &g->model, pool_threads(g->pool), g->graph_options.n_ctx, o->notes);
    return engine_open_slots_(g, o, e);
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
    if (o->automatic) tempo_prepare(&g->tempo, &g->graph, g->rows, 0);
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

/* Renders messages with a chat template and tokenizes the result; appends to out. Text that came
 * from a message never becomes a special token. */
static bool engine_render_with(const Engine *g, Str chat_template, const TmplMsg *msgs,
                               size_t n_msgs, TokIds *out, Err *e) {
    const Tok *t = &g->tok;
    TmplVars v = {.bos_token = tok_text(t, t->bos),
                  .eos_token = tok_text(t, t->eos),
                  .add_generation_prompt = true,
                  .now_unix = os_now_unix()};
    TmplOut r = {0};
    bool ok = tmpl_render(chat_template, msgs, n_msgs, &v, &r, e) &&
              tok_encode_prompt(t, buf_view(&r.text), (const u8 *)r.trust.p, out, e);
    tmpl_out_free(&r);
    return ok;
}

/* The same with the model's own template. */
static bool engine_render(const Engine *g, const TmplMsg *msgs, size_t n_msgs, TokIds *out,
                          Err *e) {
    if (g->tok.chat_template.n == 0)
        return err_set(e, ERR_MODEL,
                       "%s has no chat template; use --raw to send the prompt as it is",
                       g->file.label);
    return engine_render_with(g, g->tok.chat_template, msgs, n_msgs, out, e);
}

/* ---- generating ----
 *
 * A step is one forward that carries the rows of every busy slot, so that the weights are read once
 * for all. */

static void engine_on_text_(void *arg, Str text) {
    EngineSlot *s = arg;
    if (s->first_ms == 0) s->first_ms = os_now_ms() - s->from_ms;
    if (s->events.text) s->events.text(s->events.arg, text);
}

static void engine_on_token_(void *arg, const DecodeToken *t) {
    EngineSlot *s = arg;
    if (s->events.token) s->events.token(s->events.arg, t);
}

/* Is the slot still generating? False too for a finished answer that engine_finish has not
 * collected. */
static bool engine_busy(const Engine *g, i32 slot) {
    return g->slots[slot].busy && g->slots[slot].decode.phase != PHASE_DONE;
}

/* *p with DECODE_AUTO turned into the way that is fastest here and now. */
static DecodeParams engine_params_(Engine *g, i32 slot, const DecodeParams *p) {
    DecodeParams use = *p;
    g->slots[slot].way = -1;
    if (p->mode != DECODE_AUTO) return use;
    i32 n_streams = 1;
    for (i32 i = 0; i < g->n_slots; i++) n_streams += g->slots[i].busy;
    if (tempo_prepare(&g->tempo, &g->graph, g->rows, slot)) g->slots[slot].decode.n_cached = 0;
    g->slots[slot].way = tempo_choose(&g->tempo, &g->model, n_streams, &use);
    return use;
}

static bool engine_check_ids_(const Engine *g, const char *what, const i32 *ids, i32 n, Err *e) {
    for (i32 i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= g->model.n_vocab)
            return err_set(e, ERR_USAGE, "%s token %d is %d, outside the vocabulary of %d", what, i,
                           ids[i], g->model.n_vocab);
    return true;
}

/* Begins a request in a free slot. prompt: [n_prompt] ids; the stop strings and biases of p must
 * live until the slot is finished. events may be NULL. */
static bool engine_start(Engine *g, i32 slot, const i32 *prompt, i32 n_prompt,
                         const DecodeParams *p, const DecodeEvents *events, Err *e) {
    static const DecodeEvents none = {0};
    EngineSlot *s = &g->slots[slot];
    ASSERT(slot >= 0 && slot < g->n_slots && !s->busy);
    if (!engine_check_ids_(g, "prompt", prompt, n_prompt, e) ||
        !engine_check_ids_(g, "suffix", p->suffix, p->n_suffix, e))
        return false;
    if (p->block_size > g->block_size_max)
        return err_set(
            e, ERR_USAGE,
            "block size %d is larger than %d, for which memory was reserved when the model was loaded",
            p->block_size, g->block_size_max);
    s->from_ms = os_now_ms();
    const DecodeParams use = engine_params_(g, slot, p);
    if (!decode_begin(&s->decode, prompt, n_prompt, &use, e)) return false;
    s->events = events ? *events : none;
    s->n_cached = s->decode.n_cached;
    s->first_ms = s->prefill_ms = 0;
    s->used = ++g->clock;
    s->busy = true;
    return true;
}

/* Ends a slot's generation at once; engine_finish then returns what was sent so far. */
static void engine_cancel(Engine *g, i32 slot) {
    g->slots[slot].decode.phase = PHASE_DONE;
}

/* A slot's part of one forward. */
typedef struct {
    i32 slot, n_rows, first_logits, n_logits;
    DecodePhase phase;
    i32 begin, end, block, step,
        n_commit; /* of the decoder, as they were when the rows were planned */
    bool taken;   /* it has its logits */
} EnginePart_;

#define ENGINE_SLOTS_MAX 256

/* Plans slot i into what is left of the forward; false when it does not fit or has nothing to do.
 */
static bool engine_plan_slot_(Engine *g, const EngineLane *lane, i32 i, bool prefill, i32 *n_rows,
                              i32 *n_logits, EnginePart_ *part) {
    Decode *d = &g->slots[i].decode;
    i32 rows_left = lane->graph->n_rows_max - *n_rows,
        logits_left = lane->graph->n_targets_max - *n_logits;
    if (!engine_busy(g, i) || (d->phase == PHASE_PREFILL) != prefill) return false;
    if (prefill && *n_rows > 0)
        rows_left = MIN_OF(rows_left, MAX_OF(ENGINE_PREFILL_SHARE - *n_rows, d->p.block_size));
    if (decode_rows_needed(d) > rows_left || decode_logits_needed(d) > logits_left) return false;
    *part =
        (EnginePart_){.slot = i, .first_logits = *n_logits, .phase = d->phase, .block = d->block};
    DlmRow *rows = lane->rows + *n_rows;
    part->n_rows = decode_plan(d, rows, rows_left, &part->n_logits);
    part->begin = d->block_begin, part->end = d->block_end, part->step = d->step;
    part->n_commit = d->n_commit;
    for (i32 r = 0; r < part->n_rows; r++)
        if (rows[r].logits >= 0) rows[r].logits += *n_logits;
    *n_rows += part->n_rows;
    *n_logits += part->n_logits;
    return true;
}

static void engine_tell_step_(EngineSlot *s, const EnginePart_ *part, f64 ms) {
    const Decode *d = &s->decode;
    if (!s->events.step) return;
    i32 begin = part->begin, end = part->end;
    bool one = part->phase == PHASE_AR || (part->phase == PHASE_PREFILL && d->n_reveals);
    if (one) begin = d->reveals[0].pos, end = begin + 1;
    DecodeStep step = {.kind = DECODE_PHASE_NAMES[part->phase],
                       .block = part->block,
                       .step = part->step,
                       .n_rows = part->n_rows,
                       .n_commit = part->n_commit,
                       .ms = ms,
                       .reveals = d->reveals,
                       .n_reveals = d->n_reveals,
                       .block_begin = begin,
                       .block_end = end,
                       .tokens = d->tokens + begin,
                       .masked = d->masked + begin,
                       .probs = d->probs + begin,
                       .n_prompt = d->n_prompt};
    s->events.step(s->events.arg, &step);
}

/* Gives a slot its logits. When those of the forward do not fit in memory together, they are made
 * here, some at a time. */
static bool engine_take_(Engine *g, Graph *graph, const EnginePart_ *part, bool together, Err *e) {
    i32 first = part->first_logits, n = together ? part->n_logits : graph->n_logits_max;
    for (i32 at = 0; at < part->n_logits; at += n) {
        n = MIN_OF(n, part->n_logits - at);
        if (!together) graph_logits(graph, first + at, n);
        f32 *logits = graph->logits + (together ? (i64)first * g->model.n_vocab : 0);
        if (!decode_take(&g->slots[part->slot].decode, logits, at, n, e)) return false;
    }
    return true;
}

typedef struct {
    Engine *g;
    Graph *graph;
    EnginePart_ *parts;
} EngineTake_;

static void engine_take_some_(void *arg, i32 begin, i32 end, i32 thread) {
    const EngineTake_ *t = arg;
    (void)thread;
    for (i32 i = begin; i < end; i++)
        t->parts[i].taken = engine_take_(t->g, t->graph, &t->parts[i], true, NULL);
}

static bool engine_absorb_(Engine *g, const EnginePart_ *part, f64 from_ms, Err *e) {
    EngineSlot *s = &g->slots[part->slot];
    const DecodeEvents timed = {.arg = s, .text = engine_on_text_, .token = engine_on_token_};
    if (!decode_absorb(&s->decode, &timed, e)) return false;
    f64 now = os_now_ms();
    if (part->phase == PHASE_PREFILL) s->prefill_ms = now - s->from_ms;
    engine_tell_step_(s, part, now - from_ms);
    return true;
}

/* Runs one forward for those of the slots [n] that are busy, as many as fit, and fires their events.
 * True when none is. */
static bool engine_step_slots(Engine *g, EngineLane *lane, const i32 *slots, i32 n, Err *e) {
    EnginePart_ parts[ENGINE_SLOTS_MAX];
    Graph *graph = lane->graph;
    i32 n_parts = 0, n_rows = 0, n_logits = 0, last = 0;
    f64 from_ms = os_now_ms();
    for (int prefill = 0; prefill < 2;
         prefill++) /* short steps first, then prompts in what is left */
        for (i32 k = 0; k < n; k++) {
            i32 at = (lane->turn + k) % n;
            if (!engine_plan_slot_(g, lane, slots[at], prefill, &n_rows, &n_logits,
                                   &parts[n_parts]))
                continue;
            n_parts++;
            last = at;
        }
    if (n_parts == 0) return true;
    lane->turn = last + 1; /* whoever did not fit comes first next time */
    graph_forward(graph, lane->rows, n_rows, n_logits);
    bool together = n_logits <= graph->n_logits_max;
    EngineTake_ take = {g, graph, parts};
    if (together && g->ops.apart) pool_for(g->pool, n_parts, 1, engine_take_some_, &take);
    for (i32 i = 0; i < n_parts; i++) /* what could not be taken says why when it is tried again */
        if ((!parts[i].taken && !engine_take_(g, graph, &parts[i], together, e)) ||
            !engine_absorb_(g, &parts[i], from_ms, e)) {
            engine_cancel(g, parts[i].slot);
            return false;
        }
    return true;
}

/* The same for all slots. */
static bool engine_step(Engine *g, Err *e) {
    i32 slots[ENGINE_SLOTS_MAX];
    for (i32 i = 0; i < g->n_slots; i++) slots[i] = i;
    return engine_step_slots(g, &g->whole, slots, g->n_slots, e);
}

typedef struct {
    Engine *g;
    void (*fn)(void *arg, EngineLane *lane, i32 index);
    void *arg;
} EngineApart_;

static void engine_lane_(void *arg, DlmOps *ops, i32 index) {
    const EngineApart_ *a = arg;
    Engine *g = a->g;
    Graph graph = graph_lane(&g->graph, ops, index, g->n_lanes);
    EngineLane lane = {.graph = &graph,
                       .rows = g->rows + graph_lane_row(&g->graph, index, g->n_lanes)};
    a->fn(a->arg, &lane, index);
}

/* Calls fn in n_lanes threads at once, each with a lane to step slots of its own with. Meanwhile nothing
 * else may be stepped; engine_pick_slot, engine_start and engine_finish want one thread at a time. */
static void engine_apart(Engine *g, void (*fn)(void *arg, EngineLane *lane, i32 index), void *arg) {
    i32 first[ENGINE_LANES_MAX];
    EngineApart_ a = {g, fn, arg};
    for (i32 i = 0; i < g->n_lanes; i++) first[i] = graph_lane_row(&g->graph, i, g->n_lanes);
    g->ops.apart(&g->ops, g->n_lanes, first, engine_lane_, &a);
}

/* Will beginning this request measure how long forwards take? All threads are needed for that. */
static bool engine_will_measure(const Engine *g, const DecodeParams *p) {
    return p->mode == DECODE_AUTO && !tempo_is_prepared(&g->tempo);
}

/* The free slot whose cache holds the longest prefix of the prompt, else the least recently used;
 * -1 when all are busy. */
static i32 engine_pick_slot(const Engine *g, const i32 *prompt, i32 n_prompt) {
    i32 best = -1, best_common = -1;
    for (i32 i = 0; i < g->n_slots; i++) {
        const EngineSlot *s = &g->slots[i];
        if (s->busy) continue;
        i32 common = 0, n = MIN_OF(s->decode.n_cached, n_prompt);
        while (common < n && s->decode.tokens[common] == prompt[common]) common++;
        common -= common % MAX_OF(g->model.decode.block_size, 1);
        if (common > best_common || (common == best_common && s->used < g->slots[best].used))
            best = i, best_common = common;
    }
    return best;
}

/* Collects the answer of a slot that is no longer generating and frees the slot. *r is filled in
 * any case; free it with decode_result_free. */
static bool engine_finish(Engine *g, i32 slot, DecodeResult *r, Err *e) {
    EngineSlot *s = &g->slots[slot];
    const Decode *d = &s->decode;
    const i32 *n = d->n_forwards;
    ASSERT(s->busy && d->phase == PHASE_DONE);
    s->busy = false;
    *r = (DecodeResult){.text.max = DECODE_TEXT_MAX,
                        .finish = d->finish ? d->finish : "cancelled",
                        .n_prompt = d->n_prompt,
                        .n_cached = s->n_cached,
                        .n_forwards_prefill = n[PHASE_PREFILL],
                        .n_forwards_denoise = n[PHASE_DENOISE],
                        .n_forwards_commit = n[PHASE_COMMIT],
                        .n_forwards_ar = n[PHASE_AR],
                        .n_joined = d->n_joined,
                        .n_from_prefill = d->n_from_prefill,
                        .n_rows = d->n_rows,
                        .mode = d->p.mode,
                        .ms_prefill = s->prefill_ms,
                        .ms_first_token = s->first_ms};
    r->ms_decode = os_now_ms() - s->from_ms - s->prefill_ms;
    for (i32 i = 0; i < d->n_out; i++)
        if (!tok_ids_push(&r->ids, d->tokens[d->n_prompt + i], e)) return false;
    if (s->way >= 0 && d->finish) tempo_note(&g->tempo, s->way, r);
    buf_put(&r->text, d->text.p, d->finish ? d->text.n : d->n_sent);
    return buf_ok(&r->text, "the answer", e);
}

/* Generates one answer in a free slot, alone. On success *r holds it (also when it was cancelled);
 * the caller frees *r with decode_result_free in any case. */
static bool engine_generate(Engine *g, i32 slot, const i32 *prompt, i32 n_prompt,
                            const DecodeParams *p, const DecodeEvents *events, DecodeResult *r,
                            Err *e) {
    *r = (DecodeResult){0};
    if (!engine_start(g, slot, prompt, n_prompt, p, events, e)) return false;
    bool ok = true;
    while (ok && engine_busy(g, slot)) {
        if (events && events->cancelled && events->cancelled(events->arg))
            engine_cancel(g, slot);
        else
            ok = engine_step(g, e);
    }
    if (!ok) {
        engine_cancel(g, slot);
        engine_finish(g, slot, r, NULL);
        return false;
    }
    return engine_finish(g, slot, r, e);
}

#endif

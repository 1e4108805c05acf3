/* graph.c - one forward pass over a batch of rows, written once against DlmOps, and its KV cache.
 *
 * Owns:      the activation buffers and the KV cache, in the backend's memory.
 * Stands on: base mem quant kern_ref model
 * Promises:  a row's result depends on its token, its position and the cells it sees, not on the
 *            other rows; never allocates after graph_open. */
#ifndef DLM_GRAPH_C
#define DLM_GRAPH_C

#include "../dlm_kernels.h"
#include "base.c"
#include "kern_ref.c"
#include "mem.c"
#include "model.c"
#include "quant.c"

typedef struct {
    const Model *m;
    DlmOps *ops;
    DlmKv kv;
    i32 n_rows_max, n_targets_max, n_logits_max;
    f32 *x;         /* [n_rows_max][n_embd] the residual stream */
    f32 *h;         /* [n_rows_max][max(n_embd, n_head * head_dim)] the input of a linear layer */
    f32 *q;         /* [n_rows_max][n_head * head_dim] */
    f32 *att;       /* as h: attention's output, and a projection's own input */
    f32 *k, *v;     /* [n_rows_max][n_head_kv * head_dim] */
    f32 *gate, *up; /* [n_rows_max][n_ff] */
    f32 *rows;      /* [n_targets_max][n_embd] those of the last forward that ask for logits */
    f32 *logits;    /* [n_logits_max][n_vocab] */
    f32 *turns;     /* [n_ctx][n_rot/2][2] cosines and sines of the rotary embedding */
    f32 *q_turns;   /* those of queries, where they are others; else NULL */
    DlmRow *near;   /* [n_rows_max] the rows as layers that slide a window see them */
} Graph;

typedef struct {
    i32 n_slots, n_ctx; /* cells per slot */
    i32 n_rows_max;
    i32 n_logits_max;  /* rows of logits in memory at a time */
    i32 n_targets_max; /* rows of a forward that may ask for logits; at least n_logits_max */
    DlmType kv_type;   /* DLM_F16, DLM_Q8_0 or DLM_F32 */
} GraphOptions;

/* Bytes of KV cache that graph_open will take. */
static u64 graph_kv_bytes(const Model *m, const GraphOptions *o) {
    const DlmTypeInfo *info = quant_info(o->kv_type);
    u64 cell = (u64)m->n_layer * (u64)m->n_head_kv * (u64)m->head_dim * info->bytes / info->block;
    return 2 * cell * (u64)o->n_ctx * (u64)o->n_slots;
}

static i32 graph_targets_(const GraphOptions *o) {
    return MAX_OF(o->n_targets_max, o->n_logits_max);
}

/* Bytes of activations and tables that graph_open will take. */
static u64 graph_scratch_bytes(const Model *m, const GraphOptions *o) {
    u64 q = (u64)m->n_head * (u64)m->head_dim, kv = (u64)m->n_head_kv * (u64)m->head_dim,
        embd = (u64)m->n_embd;
    u64 row = embd + 2 * MAX_OF(embd, q) + q + 2 * kv + 2 * (u64)m->n_ff;
    return 4 * (row * (u64)o->n_rows_max + embd * (u64)graph_targets_(o) +
                (u64)m->n_vocab * (u64)o->n_logits_max +
                (u64)o->n_ctx * (u64)m->n_rot * (m->rope.query_growth > 0 ? 2 : 1));
}

static f32 *graph_floats_(Graph *g, i64 n, i64 each, Err *e) {
    f32 *p = g->ops->alloc(g->ops->self, (u64)n * (u64)each * sizeof(f32));
    if (!p)
        err_set(e, ERR_MEMORY, "out of memory for the activations: %.1f MiB were refused",
                (f64)n * (f64)each * sizeof(f32) / 1048576.0);
    return p;
}

/* YaRN (Peng et al. 2023): frequency i is as trained when it turns more than beta_fast times in the
 * original context, divided by the factor when less than beta_slow times, and mixed in between. */
static f32 graph_yarn_(const Model *m, i32 i, f32 freq) {
    const ModelRope *r = &m->rope;
    f64 span = (f64)m->n_rot / (2 * kern_log(r->theta)), two_pi = 6.283185307179586;
    f64 low = span * kern_log(r->n_ctx_orig / (r->beta_fast * two_pi));
    f64 high = span * kern_log(r->n_ctx_orig / (r->beta_slow * two_pi));
    i32 first = (i32)MIN_OF(MAX_OF(low, 0), m->n_rot),
        last = (i32)MIN_OF(MAX_OF(high, 0), m->n_rot);
    last = MIN_OF(last + (high > last), m->n_rot - 1);
    f64 slow = ((f64)i - first) / (last > first ? last - first : 0.001);
    slow = MIN_OF(MAX_OF(slow, 0), 1);
    return (f32)((f64)freq / r->factor * slow + (f64)freq * (1 - slow));
}

/* The angle by which pair i turns from one position to the next. The products are rounded to f32 as
 * the reference implementations do. */
static f32 graph_frequency_(const Model *m, i32 n_ctx, i32 i) {
    const ModelRope *r = &m->rope;
    f32 freq = (f32)(1.0 / (f64)(f32)kern_exp(kern_log(r->theta) * (2.0 * i / m->n_rot)));
    if (r->stretch == STRETCH_LINEAR) freq /= r->factor;
    if (r->stretch == STRETCH_YARN) freq = graph_yarn_(m, i, freq);
    if (r->divisors) freq /= r->divisors[i];
    if (r->short_divisors)
        freq /= n_ctx > r->n_ctx_orig ? r->long_divisors[i] : r->short_divisors[i];
    return freq;
}

/* Cosines and sines for every position that a slot can hold. What stretches attention multiplies
 * them: a query's and a key's each, or with query_growth those of queries alone. */
static bool graph_turns_(Graph *g, f32 *turns, i32 n_ctx, f32 query_growth, Err *e) {
    const Model *m = g->m;
    i64 n = (i64)n_ctx * m->n_rot;
    f32 *host = mem_alloc_n((u64)n, sizeof(f32), e);
    if (!host) return false;
    const ModelRope *r = &m->rope;
    f64 grow = r->attn_factor, log_factor = 0.1 * kern_log(r->factor);
    if (r->stretch == STRETCH_YARN) grow *= (log_factor + 1) / (r->yarn_log_mul * log_factor + 1);
    for (i32 i = 0; i < m->n_rot / 2; i++) {
        f32 freq = graph_frequency_(m, n_ctx, i);
        if (!(freq * (f32)n_ctx < 1e9f)) { /* kern_sincos */
            mem_free(host);
            return err_set(
                e, ERR_MODEL,
                "%s: its rope.freq_base and scaling turn pair %d by %g a token, which no "
                "model was trained with; convert it again",
                m->file->label, i, (f64)freq);
        }
        for (i32 pos = 0; pos < n_ctx; pos++) {
            f64 sin, cos;
            kern_sincos((f64)((f32)pos * freq), &sin, &cos);
            f64 more = query_growth > 0 ? query_growth * kern_log(1 + pos / r->n_ctx_orig) + 1 : 1;
            host[(i64)pos * m->n_rot + 2 * i] = (f32)(cos * grow * more);
            host[(i64)pos * m->n_rot + 2 * i + 1] = (f32)(sin * grow * more);
        }
    }
    g->ops->upload(g->ops->self, turns, host, (u64)n * sizeof(f32));
    mem_free(host);
    return true;
}

static void graph_close(Graph *g) {
    if (!g->ops) return;
    void *all[] = {g->kv.k, g->kv.v, g->x,  g->h,    g->q,      g->att,   g->k,
                   g->v,    g->gate, g->up, g->rows, g->logits, g->turns, g->q_turns};
    for (size_t i = 0; i < COUNT_OF(all); i++) g->ops->free(g->ops->self, all[i]);
    mem_free(g->near);
    *g = (Graph){0};
}

static bool graph_open(Graph *g, const Model *m, const GraphOptions *o, Err *e) {
    if (o->kv_type == DLM_Q8_0 && m->head_dim % DLM_QK8_0)
        return err_set(
            e, ERR_USAGE,
            "keys and values of type q8_0 lie in blocks of %d, and this model's heads have "
            "%d elements; use f16",
            DLM_QK8_0, m->head_dim);
    *g = (Graph){.m = m,
                 .ops = m->ops,
                 .n_rows_max = o->n_rows_max,
                 .n_targets_max = graph_targets_(o),
                 .n_logits_max = o->n_logits_max};
    i32 n_q = m->n_head * m->head_dim, n_kv = m->n_head_kv * m->head_dim;
    g->kv = (DlmKv){.type = o->kv_type,
                    .n_slot = o->n_slots,
                    .n_layer = m->n_layer,
                    .n_cell = o->n_ctx,
                    .n_head_kv = m->n_head_kv,
                    .head_dim = m->head_dim};
    u64 half = graph_kv_bytes(m, o) / 2;
    g->kv.k = g->ops->alloc(g->ops->self, half);
    g->kv.v = g->kv.k ? g->ops->alloc(g->ops->self, half) : NULL;
    if (!g->kv.v)
        err_set(
            e, ERR_MEMORY,
            "out of memory for the KV cache: %.1f MiB for %d tokens were refused; try a smaller -c",
            (f64)(2 * half) / 1048576.0, o->n_ctx);
    const struct {
        f32 **p;
        i64 n, each;
    } wants[] = {
        {&g->x, o->n_rows_max, m->n_embd},
        {&g->h, o->n_rows_max, MAX_OF(m->n_embd, n_q)},
        {&g->q, o->n_rows_max, n_q},
        {&g->att, o->n_rows_max, MAX_OF(m->n_embd, n_q)},
        {&g->k, o->n_rows_max, n_kv},
        {&g->v, o->n_rows_max, n_kv},
        {&g->gate, o->n_rows_max, m->n_ff},
        {&g->up, o->n_rows_max, m->n_ff},
        {&g->rows, graph_targets_(o), m->n_embd},
        {&g->logits, o->n_logits_max, m->n_vocab},
        {&g->q_turns, m->rope.query_growth > 0 ? o->n_ctx : 0, m->n_rot},
        {&g->turns, o->n_ctx, m->n_rot},
    };
    for (size_t i = 0; i < COUNT_OF(wants) && (!e || e->code == ERR_NONE) && g->kv.v; i++)
        if (wants[i].n && !(*wants[i].p = graph_floats_(g, wants[i].n, wants[i].each, e))) break;
    i32 n_in_max = MAX_OF(MAX_OF(m->n_embd, n_q), m->n_ff);
    const char *why =
        g->turns ? g->ops->reserve(g->ops->self, o->n_rows_max, n_in_max, o->n_ctx) : NULL;
    if (why) err_set(e, ERR_MEMORY, "%s", why);
    g->near = g->turns && !why ? mem_alloc_n((u64)o->n_rows_max, sizeof *g->near, e) : NULL;
    if (g->near && graph_turns_(g, g->turns, o->n_ctx, 0, e) &&
        (!g->q_turns || graph_turns_(g, g->q_turns, o->n_ctx, m->rope.query_growth, e)))
        return true;
    graph_close(g);
    return false;
}

/* Projections that share the input g->h. Under SubLN before every projection each has its own norm
 * of it. */
static void graph_project_(Graph *g, const DlmLinear *jobs, f32 *const *norms, i32 n_jobs,
                           i32 n_rows) {
    const Model *m = g->m;
    DlmOps *ops = g->ops;
    if (!norms[0]) {
        ops->linear(ops->self, jobs, n_jobs, g->h, n_rows);
        return;
    }
    for (i32 i = 0; i < n_jobs; i++) {
        ops->rms_norm(ops->self, g->att, g->h, norms[i], n_rows, m->n_embd, m->sub_norm_eps);
        ops->linear(ops->self, &jobs[i], 1, g->att, n_rows);
    }
}

/* Heads of queries or keys: normed each where the model does so, then turned. */
static void graph_turn_(Graph *g, f32 *x, const f32 *norm, const f32 *turns, const DlmRow *rows,
                        i32 n_rows, i32 n_head) {
    const Model *m = g->m;
    DlmOps *ops = g->ops;
    if (norm) ops->rms_norm(ops->self, x, x, norm, n_rows * n_head, m->head_dim, m->norm_eps);
    if (turns)
        ops->rope(ops->self, x, rows, n_rows, n_head, m->head_dim, m->n_rot, turns,
                  m->family->rope);
}

static void graph_attention_(Graph *g, i32 index, const DlmRow *rows, i32 n_rows) {
    const Model *m = g->m;
    const ModelLayer *w = &m->layers[index];
    DlmOps *ops = g->ops;
    void *self = ops->self;
    const f32 *turns = model_rotates(m, index) ? g->turns : NULL;
    ops->rms_norm(self, g->h, g->x, w->norm_attn, n_rows, m->n_embd, m->norm_eps);
    const DlmLinear qkv[3] = {
        {&w->q, w->bias_q, g->q}, {&w->k, w->bias_k, g->k}, {&w->v, w->bias_v, g->v}};
    graph_project_(g, qkv, w->norm_in, 3, n_rows);
    graph_turn_(g, g->q, w->norm_q, g->q_turns ? g->q_turns : turns, rows, n_rows, m->n_head);
    graph_turn_(g, g->k, w->norm_k, turns, rows, n_rows, m->n_head_kv);
    ops->kv_store(self, &g->kv, index, g->k, g->v, rows, n_rows);
    ops->attend(self, g->att, g->q, &g->kv, index, rows, n_rows, m->n_head,
                1.0f / kern_sqrtf((f32)m->head_dim));
    i32 n_q = m->n_head * m->head_dim;
    const f32 *o_in = g->att;
    if (w->norm_attn_sub) {
        ops->rms_norm(self, g->q, g->att, w->norm_attn_sub, n_rows, n_q, m->sub_norm_eps);
        o_in = g->q;
    }
    const DlmLinear o = {&w->o, w->bias_o, g->h};
    ops->linear(self, &o, 1, o_in, n_rows);
    ops->add(self, g->x, g->h, (i64)n_rows * m->n_embd);
}

static void graph_feed_forward_(Graph *g, i32 index, i32 n_rows) {
    const Model *m = g->m;
    const ModelLayer *w = &m->layers[index];
    DlmOps *ops = g->ops;
    void *self = ops->self;
    ops->rms_norm(self, g->h, g->x, w->norm_ffn, n_rows, m->n_embd, m->norm_eps);
    const DlmLinear gate_up[2] = {{&w->gate, NULL, g->gate}, {&w->up, NULL, g->up}};
    graph_project_(g, gate_up, w->norm_in + 3, 2, n_rows);
    ops->gate(self, g->gate, g->up, (i64)n_rows * m->n_ff, m->act);
    const f32 *down_in = g->gate;
    if (w->norm_ffn_sub) {
        ops->rms_norm(self, g->up, g->gate, w->norm_ffn_sub, n_rows, m->n_ff, m->sub_norm_eps);
        down_in = g->up;
    }
    const DlmLinear down = {&w->down, NULL, g->h};
    ops->linear(self, &down, 1, down_in, n_rows);
    ops->add(self, g->x, g->h, (i64)n_rows * m->n_embd);
}

/* The rows with a window over the cells up to their own: it bounds what lies before a row, never
 * what its block shows it after. */
static const DlmRow *graph_near_(Graph *g, const DlmRow *rows, i32 n_rows) {
    for (i32 r = 0; r < n_rows; r++) {
        g->near[r] = rows[r];
        g->near[r].kv_lo = MAX_OF(rows[r].kv_lo, rows[r].cell - g->m->window + 1);
    }
    return g->near;
}

/* Writes the logits of n of the rows that the last forward gathered, from row `first` on, to g->logits
 * [n][n_vocab]. */
static void graph_logits(Graph *g, i32 first, i32 n) {
    const DlmLinear head = {&g->m->output, NULL, g->logits};
    ASSERT(n <= g->n_logits_max && first + n <= g->n_targets_max);
    g->ops->linear(g->ops->self, &head, 1, g->rows + (i64)first * g->m->n_embd, n);
}

static void graph_pass_(Graph *g, const DlmRow *rows, const DlmRow *near, i32 n_rows,
                        i32 n_logits) {
    const Model *m = g->m;
    DlmOps *ops = g->ops;
    ops->embed(ops->self, g->x, &m->embed, rows, n_rows);
    for (i32 i = 0; i < m->n_layer; i++) {
        graph_attention_(g, i, model_slides(m, i) ? near : rows, n_rows);
        graph_feed_forward_(g, i, n_rows);
    }
    if (n_logits == 0) return;
    ops->gather(ops->self, g->rows, g->x, rows, n_rows, m->n_embd);
    ops->rms_norm(ops->self, g->rows, g->rows, m->norm_out, n_logits, m->n_embd, m->norm_eps);
    if (n_logits <= g->n_logits_max) graph_logits(g, 0, n_logits);
}

/* Runs the rows through the model: writes their keys and values to the cache and the logits of the
 * rows that ask for them to g->logits [n_logits][n_vocab]. n_logits is the number of rows with
 * logits >= 0, numbered from 0. Where it is above n_logits_max no logits are written: graph_logits
 * does so then, for some of them at a time. */
static void graph_forward(Graph *g, const DlmRow *rows, i32 n_rows, i32 n_logits) {
    DlmOps *ops = g->ops;
    ASSERT(n_rows >= 1 && n_rows <= g->n_rows_max && n_logits <= g->n_targets_max);
    const DlmRow *near = g->m->window ? graph_near_(g, rows, n_rows) : rows;
    if (ops->begin && ops->begin(ops->self, rows, near, n_rows, n_logits)) return;
    graph_pass_(g, rows, near, n_rows, n_logits);
    if (ops->end) ops->end(ops->self);
}

/* Waits for a forward that was timed to be over. */
static void graph_wait(Graph *g) {
    if (g->ops->sync) g->ops->sync(g->ops->self);
}

/* ---- lanes ----
 *
 * Between two ops all threads wait for each other, dozens of times in a forward. Where a model is so
 * small that this costs more than reading its weights, threads run forwards of their own instead, for
 * different slots, whose rows never look at each other. */

#define GRAPH_LANE_BYTES (4 << 20) /* of weights: what every thread can read out of its caches */

/* Can this model be run in lanes? Where a forward is the whole canvas it has rows enough for all threads. */
static bool graph_has_lanes(const Model *m, const DlmOps *ops) {
    return ops->apart && m->file->n <= GRAPH_LANE_BYTES && m->decode.attention != ATTEND_FULL;
}

/* The first row of scratch that lane i of n_lanes has. */
static i32 graph_lane_row(const Graph *g, i32 i, i32 n_lanes) {
    return g->n_rows_max / n_lanes * i;
}

/* Lane i of n_lanes: the same model and cache, a part of the scratch, and the ops of its thread. */
static Graph graph_lane(const Graph *g, DlmOps *ops, i32 i, i32 n_lanes) {
    const Model *m = g->m;
    Graph lane = *g;
    i64 row = graph_lane_row(g, i, n_lanes), n_q = m->n_head * m->head_dim,
        n_kv = m->n_head_kv * m->head_dim;
    lane.ops = ops;
    lane.n_rows_max = g->n_rows_max / n_lanes;
    lane.n_targets_max = g->n_targets_max / n_lanes;
    lane.n_logits_max = g->n_logits_max / n_lanes;
    lane.x += row * m->n_embd;
    lane.h += row * MAX_OF(m->n_embd, n_q);
    lane.q += row * n_q;
    lane.att += row * MAX_OF(m->n_embd, n_q);
    lane.k += row * n_kv;
    lane.v += row * n_kv;
    lane.gate += row * m->n_ff;
    lane.up += row * m->n_ff;
    lane.near += row;
    lane.rows += (i64)i * lane.n_targets_max * m->n_embd;
    lane.logits += (i64)i * lane.n_logits_max * m->n_vocab;
    return lane;
}

#endif

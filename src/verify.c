/* verify.c - is a model file what it should be: against what it was made from, or against another one.
 *
 * Owns:      nothing beyond a call.
 * Stands on: base mem os pool gguf quant tok kern model graph plan convert
 * Promises:  compares every weight and every key; changes no file. */
#ifndef DLM_VERIFY_C
#define DLM_VERIFY_C

#include "../dlm_kernels.h"
#include "base.c"
#include "convert.c"
#include "gguf.c"
#include "graph.c"
#include "kern.c"
#include "mem.c"
#include "model.c"
#include "os.c"
#include "plan.c"
#include "pool.c"
#include "quant.c"
#include "tok.c"

#define VERIFY_ROWS 32 /* of the forward pass that is compared */

/* ---- rows of any tensor, as the engine multiplies by them ---- */

typedef struct {
    DlmTensor t;
    bool ternary;
    f32 extra;   /* the .scale beside it */
    f32 *values; /* [n_in] */
    f32 *scales; /* [n_in] */
    u8 *codes;   /* [n_in] */
    u64 row_bytes;
} VerifyRows_;

static void verify_rows_close_(VerifyRows_ *r) {
    mem_free(r->values);
    mem_free(r->scales);
    mem_free(r->codes);
}

/* X.scale beside X.weight. */
static f32 verify_extra_(const Gguf *g, Str name) {
    char key[GGUF_NAME_MAX + 1];
    if (!str_ends(name, STR(".weight"))) return 1;
    snprintf(key, sizeof key, "%.*s.scale", (int)(name.n - strlen(".weight")), name.p);
    const GgufTensor *t = gguf_tensor(g, str_of(key));
    return t && t->type == DLM_F32 && t->n_bytes == 4 ? load_f32(t->data) : 1;
}

static bool verify_rows_open_(VerifyRows_ *r, const Gguf *g, const GgufTensor *t, Err *e) {
    u64 n_out = t->ne[1] * t->ne[2] * t->ne[3];
    *r = (VerifyRows_){.ternary = quant_is_ternary(t->type), .extra = 1};
    r->t = (DlmTensor){.name = "",
                       .type = t->type,
                       .i2s_layout = DLM_I2S_128,
                       .n_in = (i64)t->ne[0],
                       .n_out = (i64)n_out,
                       .data = t->data,
                       .n_bytes = t->n_bytes,
                       .extra_scale = 1};
    r->row_bytes = t->n_bytes / n_out;
    if (r->ternary) r->extra = verify_extra_(g, t->name);
    r->values = mem_alloc_n(t->ne[0], sizeof *r->values, e);
    r->scales = mem_alloc_n(t->ne[0], sizeof *r->scales, e);
    r->codes = mem_alloc(t->ne[0], e);
    if (r->values && r->scales && r->codes) return true;
    verify_rows_close_(r);
    return false;
}

static void verify_row_(VerifyRows_ *r, i64 row) {
    if (!r->ternary) {
        quant_values(r->t.type, r->t.data + r->row_bytes * (u64)row, r->t.n_in, r->values);
        return;
    }
    quant_codes_row(&r->t, row, r->codes, r->scales);
    i64 block = quant_scale_block(&r->t);
    for (i64 i = 0; i < r->t.n_in; i++)
        r->values[i] = ((f32)r->codes[i] - 1) * r->scales[i / block] * r->extra;
}

/* ---- one file against another ---- */

typedef struct {
    Buf *out;
    const Gguf *a, *b;
    u32 n_keys, n_tensors; /* that differ */
} VerifyDiff_;

static void verify_put_value_(Buf *out, const GgufKv *kv) {
    if (!kv)
        buf_str(out, STR("absent"));
    else if (kv->type == GGUF_ARRAY)
        buf_printf(out, "%llu x %s", (unsigned long long)kv->count, GGUF_VALUES_[kv->elem].name);
    else if (kv->type == GGUF_STRING)
        buf_printf(out, "\"%.*s\"", (int)MIN_OF(kv->n_bytes, 40), (const char *)kv->data);
    else if (kv->type == GGUF_F32)
        buf_printf(out, "%.9g", (f64)load_f32(kv->data));
    else if (kv->type == GGUF_F64)
        buf_printf(out, "%.17g", load_f64(kv->data));
    else if (kv->type == GGUF_BOOL)
        buf_str(out, kv->data[0] ? STR("true") : STR("false"));
    else
        buf_printf(out, "%lld", (long long)gguf_load_int_(kv->type, kv->data));
}

static void verify_diff_key_(VerifyDiff_ *d, const GgufKv *a, const GgufKv *b) {
    if (a && b && a->type == b->type && a->elem == b->elem && a->n_bytes == b->n_bytes &&
        memcmp(a->data, b->data, a->n_bytes) == 0)
        return;
    Str key = a ? a->key : b->key;
    d->n_keys++;
    buf_printf(d->out, "key %.*s: ", STR_ARG(key));
    verify_put_value_(d->out, a);
    buf_str(d->out, STR(" | "));
    verify_put_value_(d->out, b);
    buf_char(d->out, '\n');
}

/* A scale is compared with the matrix that it belongs to. */
static bool verify_is_scale_(const Gguf *g, const GgufTensor *t) {
    char name[GGUF_NAME_MAX + 1];
    if (!str_ends(t->name, STR(".scale"))) return false;
    snprintf(name, sizeof name, "%.*s.weight", (int)(t->name.n - strlen(".scale")), t->name.p);
    const GgufTensor *w = gguf_tensor(g, str_of(name));
    return w && quant_is_ternary(w->type);
}

static bool verify_diff_values_(VerifyDiff_ *d, const GgufTensor *a, const GgufTensor *b, Err *e) {
    VerifyRows_ x, y;
    if (!verify_rows_open_(&x, d->a, a, e)) return false;
    if (!verify_rows_open_(&y, d->b, b, e)) {
        verify_rows_close_(&x);
        return false;
    }
    f64 worst = 0, rest = 0, all = 0;
    i64 at_row = 0, at_col = 0;
    for (i64 row = 0; row < x.t.n_out; row++) {
        verify_row_(&x, row), verify_row_(&y, row);
        for (i64 i = 0; i < x.t.n_in; i++) {
            f64 diff = (f64)x.values[i] - (f64)y.values[i], size = diff < 0 ? -diff : diff;
            rest += diff * diff, all += (f64)x.values[i] * (f64)x.values[i];
            if (!(size <= worst)) worst = size, at_row = row, at_col = i; /* NaN counts */
        }
    }
    verify_rows_close_(&x);
    verify_rows_close_(&y);
    if (worst == 0 && a->type == b->type) return true;
    d->n_tensors++;
    buf_printf(d->out, "tensor %.*s: %s | %s, ", STR_ARG(a->name), gguf_type_name((u32)a->type),
               gguf_type_name((u32)b->type));
    if (worst == 0)
        buf_str(d->out, STR("the same values\n"));
    else
        buf_printf(d->out, "largest difference %.6g at [%lld, %lld], %.3g%% of the square\n", worst,
                   (long long)at_row, (long long)at_col, 100 * rest / (all > 0 ? all : 1));
    return true;
}

/* Types whose layout no file records: only their bytes can be compared. */
static bool verify_is_tl_(DlmType type) {
    return type == DLM_TL1 || type == DLM_TL2;
}

static bool verify_diff_tensor_(VerifyDiff_ *d, const GgufTensor *a, const GgufTensor *b, Err *e) {
    const GgufTensor *t = a ? a : b;
    if (!(a && b) || memcmp(a->ne, b->ne, sizeof a->ne) != 0) {
        d->n_tensors++;
        buf_printf(d->out, "tensor %.*s: %s\n", STR_ARG(t->name),
                   !a   ? "only in the second"
                   : !b ? "only in the first"
                        : "of another shape");
        return true;
    }
    if (a->type == b->type && a->n_bytes == b->n_bytes &&
        memcmp(a->data, b->data, a->n_bytes) == 0 &&
        verify_extra_(d->a, a->name) == verify_extra_(d->b, b->name))
        return true;
    if (verify_is_tl_(a->type) || verify_is_tl_(b->type)) {
        d->n_tensors++;
        buf_printf(d->out, "tensor %.*s: %s | %s, other bytes\n", STR_ARG(t->name),
                   gguf_type_name((u32)a->type), gguf_type_name((u32)b->type));
        return true;
    }
    return verify_diff_values_(d, a, b, e);
}

static bool verify_diff_all_(VerifyDiff_ *d, Err *e) {
    for (u32 i = 0; i < d->a->n_kv; i++)
        verify_diff_key_(d, &d->a->kv[i], gguf_find(d->b, d->a->kv[i].key));
    for (u32 i = 0; i < d->b->n_kv; i++)
        if (!gguf_find(d->a, d->b->kv[i].key)) verify_diff_key_(d, NULL, &d->b->kv[i]);
    for (u32 i = 0; i < d->a->n_tensors; i++) {
        const GgufTensor *t = &d->a->tensors[i];
        if (!verify_is_scale_(d->a, t) && !verify_diff_tensor_(d, t, gguf_tensor(d->b, t->name), e))
            return false;
    }
    for (u32 i = 0; i < d->b->n_tensors; i++) {
        const GgufTensor *t = &d->b->tensors[i];
        if (!verify_is_scale_(d->b, t) && !gguf_tensor(d->a, t->name) &&
            !verify_diff_tensor_(d, NULL, t, e))
            return false;
    }
    return true;
}

/* Writes a line for each key and tensor that differs. */
static bool verify_diff(const char *path_a, const char *path_b, Buf *out, u32 *n_keys,
                        u32 *n_tensors, Err *e) {
    OsMap map_a = {0}, map_b = {0};
    Gguf a = {0}, b = {0};
    VerifyDiff_ d = {.out = out, .a = &a, .b = &b};
    bool ok = os_map_file(&map_a, path_a, e) && gguf_open(&a, map_a.p, map_a.n, path_a, e) &&
              os_map_file(&map_b, path_b, e) && gguf_open(&b, map_b.p, map_b.n, path_b, e) &&
              verify_diff_all_(&d, e) && buf_ok(out, "the list of differences", e);
    *n_keys = d.n_keys, *n_tensors = d.n_tensors;
    gguf_close(&a);
    gguf_close(&b);
    os_unmap(&map_a);
    os_unmap(&map_b);
    return ok;
}

/* ---- a new file against what it was made from ---- */

/* The largest error that a type may make, as a part of the largest weight of the row. */
static const struct {
    DlmType type;
    f32 bound;
    f32 agree; /* the least share of tokens that must stay the likeliest */
} VERIFY_TYPES[] = {
    {DLM_F32, 0, 1},          {DLM_F16, 0.0005f, 0.9f}, {DLM_BF16, 0.004f, 0.8f},
    {DLM_Q8_0, 0.005f, 0.7f}, {DLM_Q6_K, 0.06f, 0.6f},  {DLM_Q5_K, 0.12f, 0.5f},
    {DLM_Q5_0, 0.08f, 0.5f},  {DLM_Q5_1, 0.08f, 0.5f},  {DLM_Q4_K, 0.25f, 0.4f},
    {DLM_Q4_0, 0.14f, 0.4f},  {DLM_Q4_1, 0.14f, 0.4f},  {DLM_Q2_K, 1.0f, 0.1f},
};
#define VERIFY_AGREE_TERNARY 0.5f /* activations are rounded to 8 bits, which floats' are not */

typedef struct {
    const PlanOptions *o;
    const PlanEvents *events;
    struct VerifyForward_ *file,
        *floats; /* of the new file, and of the same model in plain floats */
} Verify;

static f32 verify_bound_(DlmType type) {
    for (size_t i = 0; i < COUNT_OF(VERIFY_TYPES); i++)
        if (VERIFY_TYPES[i].type == type) return VERIFY_TYPES[i].bound;
    return 0;
}

static bool verify_wrong_(const PlanItem *it, i64 row, const char *what, Err *e) {
    return err_set(
        e, ERR_RUNTIME,
        "validation: tensor %s, row %lld: %s; the file is dropped. This is a bug in dlm, or "
        "of the disk; please report it",
        it->name, (long long)row, what);
}

/* Codes and scale are exactly those of the source. */
static bool verify_codes_(VerifyRows_ *r, const PlanItem *it, i64 row, f32 scale, u8 *want,
                          f32 *scratch, Err *e) {
    plan_codes_row(it, row, scratch, want);
    i64 block = quant_scale_block(&r->t);
    for (i64 i = 0; i < it->n_in; i++) {
        f32 s = r->scales[i / block];
        if ((s == 0 ? 1 : r->codes[i]) != want[i]) return verify_wrong_(it, row, "wrong codes", e);
        if (s != 0 && s * r->extra != scale) return verify_wrong_(it, row, "wrong scale", e);
    }
    return true;
}

static bool verify_item_rows_(VerifyRows_ *r, const PlanItem *it, bool block_scale, u8 *codes,
                              f32 *source, Err *e) {
    f32 scale = it->scale;
    if (block_scale && it->type != DLM_I2_S) scale = f16_to_f32(f32_to_f16(scale));
    for (i64 row = 0; row < it->n_out; row++) {
        verify_row_(r, row);
        if (plan_is_ternary(it) && r->ternary) {
            if (!verify_codes_(r, it, row, scale, codes, source, e)) return false;
            continue;
        }
        f32 most = 0, worst = 0;
        if (plan_is_ternary(it)) {
            plan_codes_row(it, row, source, codes);
            for (i64 i = 0; i < it->n_in; i++) source[i] = ((f32)codes[i] - 1) * it->scale;
        } else {
            plan_values_row(it, row, source);
        }
        for (i64 i = 0; i < it->n_in; i++) {
            f32 size = f32_abs_(source[i]), diff = f32_abs_(source[i] - r->values[i]);
            most = MAX_OF(most, size);
            if (!(diff <= worst)) worst = diff;
        }
        if (!(worst <= most * verify_bound_(it->type) + 1e-7f))
            return verify_wrong_(it, row, "larger errors than the type makes", e);
    }
    return true;
}

static bool verify_item_(const Plan *plan, const Gguf *g, const PlanItem *it, bool block_scale,
                         Err *e) {
    const GgufTensor *t = gguf_tensor(g, str_of(it->name));
    if (!t || t->type != it->type || memcmp(t->ne, it->ne, sizeof t->ne) != 0)
        return verify_wrong_(it, 0, "it is not there, or not as planned", e);
    if (it->form == FORM_SCALE) return true; /* with its matrix */
    if (it->form == FORM_RAW)
        return memcmp(t->data, it->src, it->src_bytes) == 0 ||
               verify_wrong_(it, 0, "other bytes", e);
    VerifyRows_ r;
    u8 *codes = mem_alloc((u64)it->n_in, e);
    f32 *source = codes ? mem_alloc_n((u64)it->n_in, sizeof *source, e) : NULL;
    bool ok = source && verify_rows_open_(&r, g, t, e);
    if (ok) {
        ok = verify_item_rows_(&r, it, block_scale, codes, source, e);
        verify_rows_close_(&r);
    }
    mem_free(codes);
    mem_free(source);
    f64 n = (f64)(it->n_in * it->n_out) / 100;
    if (ok && plan_is_ternary(it))
        plan_say(plan, false, "%s: %.1f%% are -1, %.1f%% 0, %.1f%% +1; rounding took %.1f%%",
                 it->name, (f64)it->counts[0] / n, (f64)it->counts[1] / n, (f64)it->counts[2] / n,
                 100 * it->error);
    os_forget(t->data, t->n_bytes);
    if (it->form != FORM_MADE) os_forget(it->src, it->src_bytes);
    return ok;
}

static bool verify_size_(const Plan *plan, const Gguf *g, Err *e) {
    u64 want = g->data_start;
    for (u32 i = 0; i < g->n_tensors; i++)
        if (!add_ok(want, g->tensors[i].n_bytes + gguf_padding(g->tensors[i].n_bytes), &want))
            break;
    if (want != g->n)
        return err_set(
            e, ERR_RUNTIME,
            "validation: the file has %llu bytes, but its tensors make %llu; it is dropped",
            (unsigned long long)g->n, (unsigned long long)want);
    plan_say(plan, false, "validation: %llu bytes, as many as its %u tensors make",
             (unsigned long long)want, g->n_tensors);
    return true;
}

static const char VERIFY_TEXT[] =
    "Hello, world! In 2024, 3.14159 is \xcf\x80's first part; na\xc3\xafve caf\xc3\xa9s cost "
    "\xe2\x82\xac"
    "12.\n\tif (x != 0) { y = 1/x; }  \xe4\xbd\xa0\xe5\xa5\xbd";

/* Tokens of the probe; *back: it comes back from them as it was. */
static bool verify_probe_(const Tok *tok, TokIds *ids, bool *back, Err *e) {
    Buf out = {0};
    Str text = str_of(VERIFY_TEXT);
    bool ok = tok_encode(tok, text, NULL, ids, e);
    for (size_t i = 0; ok && i < ids->n; i++) ok = tok_bytes(tok, ids->p[i], true, &out);
    Str got = buf_view(&out);
    if (got.n == text.n + 1 && got.p[0] == ' ') got = str_cut(got, 1, got.n); /* SentencePiece's */
    *back = str_eq(got, text);
    ok = ok && buf_ok(&out, "the probe", e);
    buf_free(&out);
    return ok && (ids->n > 1 || err_set(e, ERR_MODEL, "validation: the probe text has no tokens"));
}

/* What one forward pass over the probe showed. */
typedef struct VerifyForward_ {
    i32 top[VERIFY_ROWS]; /* [n_rows] the likeliest tokens */
    i32 n_rows;
    size_t n_ids;
    bool back;
} VerifyForward_;

static void verify_rows_of_(const Model *m, const TokIds *ids, DlmRow *rows, i32 n) {
    i32 block = m->decode.attention == ATTEND_BLOCK  ? m->decode.block_size
                : m->decode.attention == ATTEND_FULL ? n
                                                     : 1;
    for (i32 i = 0; i < n; i++)
        rows[i] = (DlmRow){.token = ids->p[i],
                           .pos = i,
                           .cell = i,
                           .kv_hi = MIN_OF((i / block + 1) * block, n),
                           .logits = i};
}

static bool verify_forward_(const Gguf *g, Pool *pool, VerifyForward_ *f, Err *e) {
    Tok tok;
    Model m = {0};
    DlmOps ops = {0};
    Graph graph = {0};
    TokIds ids = {0};
    DlmRow rows[VERIFY_ROWS];
    f32 probs[VERIFY_ROWS];
    const ModelOptions mo = {.mask_id = -1, .mapped = true};
    if (!tok_open(&tok, g, NULL, e)) return false;
    bool ok = verify_probe_(&tok, &ids, &f->back, e) && model_read(&m, g, &tok, &mo, e) &&
              kern_open_cpu(&ops, pool, NULL, e) && model_load(&m, &mo, &ops, e);
    i32 n = (i32)MIN_OF(MIN_OF(ids.n, VERIFY_ROWS), (size_t)MAX_OF(m.n_ctx_train, 0));
    const GraphOptions go = {
        .n_slots = 1, .n_ctx = n, .n_rows_max = n, .n_logits_max = n, .kv_type = DLM_F32};
    ok = ok && graph_open(&graph, &m, &go, e);
    if (ok) {
        verify_rows_of_(&m, &ids, rows, n);
        graph_forward(&graph, rows, n, n);
        ops.top1(ops.self, graph.logits, n, m.n_vocab, -1, f->top, probs);
    }
    f->n_rows = n;
    f->n_ids = ids.n;
    graph_close(&graph);
    model_unload(&m);
    kern_close_cpu(&ops);
    tok_ids_free(&ids);
    tok_close(&tok);
    return ok;
}

static void verify_no_note_(void *arg, bool warning, const char *line) {
    (void)arg, (void)warning, (void)line;
}

/* The same model in plain floats, for one forward pass; its file is dropped. */
static bool verify_reference_(void *arg, const Convert *c, Err *e) {
    Verify *v = arg;
    OsMap map;
    Gguf g;
    if (!os_new_map(&c->out, &map, e)) return false;
    bool ok = gguf_open(&g, map.p, map.n, "the file of plain floats", e) &&
              verify_forward_(&g, c->pool, v->floats, e);
    gguf_close(&g);
    os_unmap(&map);
    return ok;
}

static bool verify_agreement_(Verify *v, const Convert *c, Err *e) {
    PlanOptions o = *v->o;
    const PlanEvents quiet = {
        .on_note = verify_no_note_, .arg = v->events->arg, .on_cancelled = v->events->on_cancelled};
    bool ternary = false;
    f32 agree = VERIFY_AGREE_TERNARY;
    for (u32 i = 0; i < c->plan.n_items; i++) ternary |= plan_is_ternary(&c->plan.items[i]);
    for (size_t i = 0; i < COUNT_OF(VERIFY_TYPES); i++)
        if (VERIFY_TYPES[i].type == c->plan.main_type && !ternary) agree = VERIFY_TYPES[i].agree;
    o.type = ternary ? (i32)DLM_F32 : PLAN_AS_IS;
    o.embed_type = o.output_type = PLAN_AS_IS;
    const ConvertHook hook = {.arg = v, .on_written = verify_reference_, .drop = true};
    if (!convert_run(&o, &quiet, &hook, e)) return false;
    i32 same = 0, n = v->file->n_rows, least = (i32)(agree * (f32)n);
    for (i32 i = 0; i < n; i++) same += v->file->top[i] == v->floats->top[i];
    plan_say(&c->plan, !v->file->back, "validation: the probe text is %zu tokens, and %s",
             v->file->n_ids,
             v->file->back ? "comes back from them" : "does not come back from them as it was");
    plan_say(
        &c->plan, false,
        "validation: the likeliest next token is that of plain floats at %d of %d places (%d are "
        "wanted)",
        same, n, least);
    return same >= least ||
           err_set(e, ERR_RUNTIME, "validation: the new file answers differently; it is dropped");
}

/* Looks at the complete file before it gets its name: a hook of convert_run. */
static bool verify_written_(void *arg, const Convert *c, Err *e) {
    Verify *v = arg;
    OsMap map;
    Gguf g;
    if (!os_new_map(&c->out, &map, e)) return false;
    bool ok = gguf_open(&g, map.p, map.n, v->o->to, e) && verify_size_(&c->plan, &g, e);
    for (u32 i = 0; ok && i < c->plan.n_items; i++) {
        bool beside = i + 1 < c->plan.n_items && c->plan.items[i + 1].form == FORM_SCALE;
        ok = verify_item_(&c->plan, &g, &c->plan.items[i], !beside, e);
    }
    if (ok) plan_say(&c->plan, false, "validation: every tensor is what its source says");
    ok = ok && verify_forward_(&g, c->pool, v->file, e) && verify_agreement_(v, c, e);
    gguf_close(&g);
    os_unmap(&map);
    return ok;
}

/* convert_run, and the result compared with the source before it takes its place. */
static bool verify_convert(const PlanOptions *o, const PlanEvents *events, Err *e) {
    VerifyForward_ file = {0}, floats = {0};
    Verify v = {o, events, &file, &floats};
    const ConvertHook hook = {.arg = &v, .on_written = verify_written_};
    return convert_run(o, events, &hook, e);
}

#endif

/* plan.c - what a converted file will hold: every tensor, what it is made of, and in which type.
 *
 * Owns:      the mappings of the input, and the list of tensors.
 * Stands on: base mem os gguf json safet quant tl model hf vocab
 * Promises:  every tensor of the input has its place in the output, or is named in an error; every shape
 *            is checked; nothing is written. */
#ifndef DLM_PLAN_C
#define DLM_PLAN_C

#include "../dlm_kernels.h"
#include "base.c"
#include "gguf.c"
#include "hf.c"
#include "json.c"
#include "mem.c"
#include "model.c"
#include "os.c"
#include "quant.c"
#include "safet.c"
#include "tl.c"
#include "vocab.c"

#define PLAN_NAME_MAX 128
#define PLAN_BASE_MAX (PLAN_NAME_MAX - 24) /* room for the suffixes below */
#define PLAN_SHARDS_MAX 4096u
#define PLAN_AS_IS (-1) /* a type: what the checkpoint has */

typedef enum { PLAN_AUTO, PLAN_TERNARY, PLAN_DENSE } PlanTernary;

typedef struct {
    const char *from, *to;
    i32 type, embed_type, output_type; /* DlmType or PLAN_AS_IS */
    i32 ternary;                       /* PlanTernary: are the linear weights to be ternary? */
    i32 block_scale; /* not 0: the scale of ternary weights goes into the blocks, in 16 bits */
    const char *pre;
    HfDecode decode;
    i32 n_threads;           /* 0: one for each processor */
    DlmI2sLayout i2s_layout; /* how the codes of a GGUF that is read lie */
    TlConfig tl;
} PlanOptions;

/* What is told meanwhile; any of it may be NULL. */
typedef struct {
    void *arg;
    void (*on_note)(void *arg, bool warning, const char *line);
    void (*on_progress)(void *arg, u64 done, u64 total); /* bytes of input */
    bool (*on_cancelled)(void *arg);
} PlanEvents;

/* ---- the plan: every tensor of the output, and what it is made of ---- */

typedef enum {
    FORM_RAW,    /* the bytes as they are */
    FORM_DENSE,  /* rows of numbers */
    FORM_MADE,   /* numbers computed here */
    FORM_SCALE,  /* the scale of the item before */
    FORM_ONLINE, /* numbers that become ternary: t = round(W / mean |W|), or that are -a, 0 and a */
    FORM_PACKED, /* four codes in a byte, their rows n_out / 4 apart */
    FORM_CODES   /* a ternary type of GGUF with one scale */
} PlanForm;

/* Which option chooses the type. */
typedef enum { ROLE_VECTOR, ROLE_LINEAR, ROLE_EMBED, ROLE_OUTPUT } PlanRole;

typedef struct {
    char name[PLAN_NAME_MAX];
    PlanForm form;
    PlanRole role;
    DlmType type; /* in the output */
    u32 n_dims;
    u64 ne[4]; /* as GGUF has it */
    i64 n_in, n_out;
    const char *file; /* where it comes from, and its name there: for messages */
    Str from;
    DlmType src_type;
    const u8 *src; /* [src_bytes], or FORM_MADE: [n_in] f32, owned */
    u64 src_bytes;
    DlmI2sLayout i2s_layout; /* FORM_CODES: how they lie */
    DlmTlTiling tl;
    i32 n_permute; /* heads whose rows are interleaved; 0: none */
    bool exact;    /* FORM_ONLINE: nothing but -a, 0 and a is right */
    f32 scale;     /* of ternary forms: value = (code - 1) * scale */
    u64 counts[4]; /* of ternary forms: how many codes of each kind were written */
    f64 error;     /* FORM_ONLINE: |W - t m|^2 / |W|^2 */
} PlanItem;

typedef struct {
    char path[OS_NEW_PATH_MAX];
    OsMap map;
    Safet dir;
    u8 *used; /* [dir.n_tensors] */
} PlanShard;

typedef struct {
    const PlanOptions *o;
    const PlanEvents *events;
    /* the input: a checkpoint, or a GGUF file */
    Hf hf;
    Vocab vocab;
    bool has_hf, has_vocab;
    PlanShard *shards; /* [n_shards] */
    u32 n_shards;
    OsMap map;
    Gguf gguf;
    Str arch;
    /* the plan */
    PlanItem *items; /* [n_items] */
    u32 n_items, cap_items;
    bool norm_in;      /* SubLN before every matrix */
    DlmType main_type; /* of most linear weights */
    u64 total, done;   /* bytes of input */
} Plan;

PRINTF_LIKE(3, 4)
static void plan_say(const Plan *p, bool warning, const char *fmt, ...) {
    char line[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    if (p->events->on_note) p->events->on_note(p->events->arg, warning, line);
}

static bool plan_is_ternary(const PlanItem *it) {
    return it->form == FORM_ONLINE || it->form == FORM_PACKED || it->form == FORM_CODES;
}

static const char *plan_type_name(DlmType type) {
    return gguf_type_name((u32)type);
}

static PlanItem *plan_add_(Plan *p, const char *name, Err *e) {
    if (p->n_items == p->cap_items) {
        u32 cap = p->cap_items ? 2 * p->cap_items : 256;
        PlanItem *items = mem_alloc_n(cap, sizeof *items, e);
        if (!items) return NULL;
        if (p->n_items) memcpy(items, p->items, p->n_items * sizeof *items);
        mem_free(p->items);
        p->items = items;
        p->cap_items = cap;
    }
    PlanItem *it = &p->items[p->n_items++];
    *it = (PlanItem){.ne = {1, 1, 1, 1}, .n_dims = 1, .n_out = 1, .file = p->o->from};
    snprintf(it->name, sizeof it->name, "%s", name);
    it->from = str_of(it->name);
    return it;
}

/* A vector of numbers that is computed; the caller fills it. */
static f32 *plan_add_made_(Plan *p, const char *name, i64 n, Err *e) {
    PlanItem *it = plan_add_(p, name, e);
    f32 *values = it ? mem_alloc_n((u64)n, sizeof *values, e) : NULL;
    if (!values) return NULL;
    it->form = FORM_MADE;
    it->type = it->src_type = DLM_F32;
    it->src = (const u8 *)values;
    it->src_bytes = (u64)n * sizeof *values;
    it->ne[0] = (u64)n;
    it->n_in = n;
    return values;
}

/* ---- the input: shards of a checkpoint ---- */

static bool plan_open_shard_(Plan *p, const char *name, Err *e) {
    PlanShard *s = &p->shards[p->n_shards];
    *s = (PlanShard){.map = {0}};
    if (!hf_path(s->path, p->o->from, name, e) || !os_map_file(&s->map, s->path, e)) return false;
    p->n_shards++;
    if (!safet_open(&s->dir, s->map.p, s->map.n, s->path, e)) return false;
    s->used = mem_alloc(s->dir.n_tensors, e);
    return s->used != NULL;
}

/* Opens each file that the index names, once, and checks that each tensor lies where it says. */
static bool plan_open_index_(Plan *p, const HfJson *index, Err *e) {
    const JsonDoc *d = &index->doc;
    u32 map = json_get(d, 0, "weight_map"), key = json_first(d, map);
    if (json_count(d, map) == 0)
        return err_set(e, ERR_MODEL, "%s: it has no weight_map", index->path);
    for (u32 n = json_count(d, map); n > 0; n--) {
        u32 value = json_next(d, key), i = 0;
        Str file = {"", 0}, tensor = d->nodes[key].text;
        json_str(d, value, &file);
        if (file.n == 0 || file.n > 255 || memchr(file.p, '/', file.n) || memchr(file.p, 0, file.n))
            return err_set(e, ERR_MODEL, "%s: tensor %.*s lies in '%.*s', which is no file's name",
                           index->path, STR_ARG(tensor), STR_ARG(file));
        while (i < p->n_shards && !str_ends(str_of(p->shards[i].path), file)) i++;
        if (i == PLAN_SHARDS_MAX)
            return err_set(e, ERR_MODEL, "%s: more than %u files", index->path, PLAN_SHARDS_MAX);
        char name[256];
        snprintf(name, sizeof name, "%.*s", (int)file.n, file.p);
        if (i == p->n_shards && !plan_open_shard_(p, name, e)) return false;
        if (!safet_find(&p->shards[i].dir, tensor))
            return err_set(e, ERR_MODEL, "%s: tensor %.*s is missing, but %s says that it is there",
                           p->shards[i].path, STR_ARG(tensor), index->path);
        key = json_next(d, value);
    }
    return true;
}

/* No tensor may come from two places. */
static bool plan_check_shards_(Plan *p, Err *e) {
    for (u32 i = 0; i < p->n_shards; i++)
        for (u32 t = 0; t < p->shards[i].dir.n_tensors; t++)
            for (u32 j = 0; j < i; j++) {
                Str name = p->shards[i].dir.tensors[t].name;
                if (safet_find(&p->shards[j].dir, name))
                    return err_set(e, ERR_MODEL, "tensor %.*s is in both %s and %s", STR_ARG(name),
                                   p->shards[j].path, p->shards[i].path);
            }
    return true;
}

static bool plan_open_shards_(Plan *p, Err *e) {
    static const char one[] = "model.safetensors", many[] = "model.safetensors.index.json";
    char path[OS_NEW_PATH_MAX];
    HfJson index;
    p->shards = mem_alloc_n(PLAN_SHARDS_MAX, sizeof *p->shards, e);
    if (!p->shards || !hf_json_open(&index, p->o->from, many, false, e)) return false;
    bool ok = hf_path(path, p->o->from, one, e);
    if (ok && index.doc.n)
        ok = plan_open_index_(p, &index, e);
    else if (ok && os_is_file(path))
        ok = plan_open_shard_(p, one, e);
    else if (ok)
        ok = err_set(
            e, ERR_MODEL,
            "%s: no weights: neither %s nor %s is there (pytorch_model.bin is a program that "
            "runs when it is read: save the model with safe_serialization=True)",
            p->o->from, one, many);
    hf_json_close(&index);
    return ok && plan_check_shards_(p, e);
}

typedef struct {
    const SafetTensor *tensor; /* NULL: there is none */
    PlanShard *shard;
} PlanSource;

/* The tensor of this name, marked as used. */
static PlanSource plan_take_(Plan *p, const char *name) {
    for (u32 i = 0; i < p->n_shards; i++) {
        const SafetTensor *t = safet_find(&p->shards[i].dir, str_of(name));
        if (!t) continue;
        p->shards[i].used[t - p->shards[i].dir.tensors] = 1;
        return (PlanSource){t, &p->shards[i]};
    }
    return (PlanSource){NULL, NULL};
}

static bool plan_has_(const Plan *p, const char *name) {
    for (u32 i = 0; i < p->n_shards; i++)
        if (safet_find(&p->shards[i].dir, str_of(name))) return true;
    return false;
}

/* Tries every prefix of a layer (layer < 0: none) and every spelling. */
static PlanSource plan_find_(Plan *p, i32 layer, const char *spellings, const char *suffix) {
    PlanSource s = {NULL, NULL};
    const char *prefixes = layer < 0 ? "-" : HF_LAYER_PREFIXES;
    for (const char *x = prefixes; *x && !s.tensor; x += strcspn(x, " "), x += strspn(x, " "))
        for (const char *n = spellings; *n && !s.tensor;
             n += strcspn(n, " "), n += strspn(n, " ")) {
            char pattern[64], prefix[64] = "", name[PLAN_NAME_MAX];
            snprintf(pattern, sizeof pattern, "%.*s", (int)strcspn(x, " "), x);
            char *number = strstr(pattern, "%d");
            if (number)
                snprintf(prefix, sizeof prefix, "%.*s%d%s", (int)(number - pattern), pattern, layer,
                         number + 2);
            snprintf(name, sizeof name, "%s%.*s%s", prefix, (int)strcspn(n, " "), n, suffix);
            s = plan_take_(p, name);
        }
    return s;
}

/* ---- the plan of a checkpoint ---- */

static const struct {
    SafetType theirs;
    DlmType ours;
} PLAN_TYPES[] = {{SAFET_F32, DLM_F32}, {SAFET_F16, DLM_F16}, {SAFET_BF16, DLM_BF16}};

static bool plan_float_type_(const PlanSource *s, DlmType *type, Err *e) {
    for (size_t i = 0; i < COUNT_OF(PLAN_TYPES); i++)
        if (s->tensor->type == PLAN_TYPES[i].theirs) {
            *type = PLAN_TYPES[i].ours;
            return true;
        }
    return err_set(e, ERR_MODEL, "%s: tensor %.*s is of type %s; F32, F16 or BF16 is wanted",
                   s->shard->path, STR_ARG(s->tensor->name), s->tensor->type_name);
}

static bool plan_shape_(const PlanSource *s, i64 n_out, i64 n_in, const Hf *h, Err *e) {
    const SafetTensor *t = s->tensor;
    bool vector = n_out == 1;
    if (vector && t->n_dims == 1 && t->shape[0] == (u64)n_in) return true;
    if (!vector && t->n_dims == 2 && t->shape[0] == (u64)n_out && t->shape[1] == (u64)n_in)
        return true;
    char have[96] = "", want[48];
    for (u32 i = 0; i < t->n_dims; i++)
        snprintf(have + strlen(have), sizeof have - strlen(have), "%s%llu", i ? ", " : "",
                 (unsigned long long)t->shape[i]);
    size_t at = vector ? 0 : (size_t)snprintf(want, sizeof want, "%lld, ", (long long)n_out);
    snprintf(want + at, sizeof want - at, "%lld", (long long)n_in);
    return err_set(e, ERR_MODEL, "%s: tensor %.*s is [%s], but %s wants [%s]", s->shard->path,
                   STR_ARG(t->name), have, h->config.path, want);
}

static PlanItem *plan_add_source_(Plan *p, const char *name, const PlanSource *s, Err *e) {
    PlanItem *it = plan_add_(p, name, e);
    if (!it) return NULL;
    it->file = s->shard->path;
    it->from = s->tensor->name;
    it->src = s->tensor->data;
    it->src_bytes = s->tensor->n_bytes;
    return it;
}

/* A vector: kept in F32. */
static bool plan_add_vector_(Plan *p, const char *name, const PlanSource *s, i64 n, Err *e) {
    DlmType type;
    if (!plan_float_type_(s, &type, e) || !plan_shape_(s, 1, n, &p->hf, e)) return false;
    PlanItem *it = plan_add_source_(p, name, s, e);
    if (!it) return false;
    it->form = FORM_DENSE;
    it->src_type = type;
    it->type = DLM_F32;
    it->ne[0] = (u64)n;
    it->n_in = n;
    return true;
}

/* The scale of a packed tensor: one number, by which codes are multiplied or divided. */
static bool plan_packed_scale_(Plan *p, PlanItem *it, const PlanSource *s, Err *e) {
    DlmType type;
    if (!s->tensor)
        return err_set(e, ERR_MODEL, "%s: tensor %.*s is packed, but has no weight_scale beside it",
                       it->file, STR_ARG(it->from));
    if (!plan_float_type_(s, &type, e)) return false;
    u64 one[4] = {1, 1, 1, 1}, bytes = 0;
    gguf_tensor_bytes(type, one, &bytes);
    if (s->tensor->n_bytes != bytes)
        return err_set(e, ERR_MODEL, "%s: tensor %.*s is not one number", s->shard->path,
                       STR_ARG(s->tensor->name));
    if (p->hf.scale_undecided)
        return err_set(
            e, ERR_MODEL,
            "%s: tensor %.*s is packed, but %s has no quantization_config, so nothing says "
            "whether weight_scale multiplies (autobitlinear) or divides (bitlinear)",
            it->file, STR_ARG(it->from), p->hf.config.path);
    quant_values(type, s->tensor->data, 1, &it->scale);
    if (p->hf.divides) it->scale = 1.0f / it->scale;
    return (it->scale > 0 && it->scale < 1e30f) ||
           err_set(e, ERR_MODEL, "%s: tensor %.*s is not a positive number", s->shard->path,
                   STR_ARG(s->tensor->name));
}

/* Where codes go whose scale does not fit the type's own. */
static bool plan_add_scale_(Plan *p, Str ours, Err *e) {
    char name[PLAN_NAME_MAX];
    snprintf(name, sizeof name, "%.*s.scale", (int)MIN_OF(ours.n, PLAN_BASE_MAX), ours.p);
    PlanItem *it = plan_add_(p, name, e);
    if (!it) return false;
    it->form = FORM_SCALE;
    it->type = DLM_F32;
    it->ne[0] = 1;
    it->n_in = 1;
    return true;
}

static bool plan_add_matrix_(Plan *p, const char *ours, const PlanSource *s, HfName n,
                             PlanRole role, Err *e) {
    char name[PLAN_NAME_MAX];
    i64 n_in = hf_size(&p->hf, n.n_in), n_out = hf_size(&p->hf, n.n_out);
    snprintf(name, sizeof name, "%s.weight", ours);
    bool packed = role == ROLE_LINEAR && s->tensor->type == SAFET_U8;
    DlmType type = DLM_F32;
    if (!packed && !plan_float_type_(s, &type, e)) return false;
    if (packed && n_out % 4)
        return err_set(e, ERR_MODEL, "%s: tensor %.*s is packed, but its %lld rows are not fours",
                       s->shard->path, STR_ARG(s->tensor->name), (long long)n_out);
    if (!plan_shape_(s, packed ? n_out / 4 : n_out, n_in, &p->hf, e)) return false;
    PlanItem *it = plan_add_source_(p, name, s, e);
    if (!it) return false;
    bool ternary = role == ROLE_LINEAR &&
                   (p->o->ternary == PLAN_AUTO ? p->hf.ternary : p->o->ternary == PLAN_TERNARY);
    it->role = role;
    it->form = packed ? FORM_PACKED : ternary ? FORM_ONLINE : FORM_DENSE;
    it->src_type = type;
    it->n_dims = 2;
    it->ne[0] = (u64)n_in, it->ne[1] = (u64)n_out;
    it->n_in = n_in, it->n_out = n_out;
    if (n.rotated && p->hf.family->rope == DLM_ROPE_NORM)
        it->n_permute = (i32)(n_out / p->hf.head_dim);
    return true;
}

/* A linear layer with all that may lie beside it. SubLN before it, spelled as the first of two modules or
 * as a norm of its own, is the sub-norm of o and down, or belongs to every matrix. */
static bool plan_add_linear_(Plan *p, i32 layer, HfName n, bool *found, Err *e) {
    static const char *const norms[] = {".0.weight", ".rms_norm.weight"};
    char ours[PLAN_BASE_MAX], name[PLAN_NAME_MAX];
    snprintf(ours, sizeof ours, "blk.%d.%s", layer, n.ours);
    PlanSource norm = {NULL, NULL}, w = plan_find_(p, layer, n.theirs, ".weight");
    bool second = !w.tensor; /* of two modules */
    if (second) w = plan_find_(p, layer, n.theirs, ".1.weight");
    *found = w.tensor != NULL;
    if (!w.tensor) return true;
    for (size_t i = 0; i < COUNT_OF(norms) && !norm.tensor; i++)
        norm = plan_find_(p, layer, n.theirs, norms[i]);
    if (norm.tensor) {
        bool down = strcmp(n.ours, "ffn_down") == 0;
        if (second) p->hf.sub_eps = HF_SUB_EPS;
        if (p->norm_in)
            snprintf(name, sizeof name, "%s_norm_in.weight", ours);
        else
            snprintf(name, sizeof name, "blk.%d.%s_sub_norm.weight", layer, down ? "ffn" : "attn");
        if (!plan_add_vector_(p, name, &norm, hf_size(&p->hf, n.n_in), e)) return false;
    }
    if (!plan_add_matrix_(p, ours, &w, n, ROLE_LINEAR, e)) return false;
    PlanItem *it = &p->items[p->n_items - 1];
    PlanSource scale = plan_find_(p, layer, n.theirs, second ? ".1.weight_scale" : ".weight_scale");
    if (it->form == FORM_PACKED && !plan_packed_scale_(p, it, &scale, e)) return false;
    if (plan_is_ternary(it) && !plan_add_scale_(p, str_of(ours), e)) return false;
    PlanSource bias = plan_find_(p, layer, n.theirs, second ? ".1.bias" : ".bias");
    if (!bias.tensor) return true;
    snprintf(name, sizeof name, "%s.bias", ours);
    i32 heads = p->items[p->n_items - 1 - (p->items[p->n_items - 1].form == FORM_SCALE)].n_permute;
    if (!plan_add_vector_(p, name, &bias, hf_size(&p->hf, n.n_out), e)) return false;
    p->items[p->n_items - 1].n_permute = heads;
    return true;
}

static bool plan_missing_(Plan *p, i32 layer, HfName n, Err *e) {
    char at[32] = "";
    if (layer >= 0) snprintf(at, sizeof at, "layer %d: ", layer);
    return err_set(e, ERR_MODEL, "%s: %stensor %.*s.weight is missing; %s cannot run without it",
                   p->n_shards == 1 ? p->shards[0].path : p->o->from, at,
                   (int)strcspn(n.theirs, " "), n.theirs, p->hf.class->name);
}

static bool plan_layer_(Plan *p, i32 layer, Err *e) {
    char name[PLAN_NAME_MAX];
    for (size_t i = 0; i < COUNT_OF(HF_LAYER_VECTORS); i++) {
        HfName n = HF_LAYER_VECTORS[i];
        PlanSource s = plan_find_(p, layer, n.theirs, ".weight");
        if (!s.tensor && n.needed) return plan_missing_(p, layer, n, e);
        snprintf(name, sizeof name, "blk.%d.%s.weight", layer, n.ours);
        if (s.tensor && !plan_add_vector_(p, name, &s, hf_size(&p->hf, n.n_in), e)) return false;
    }
    u32 have = 0; /* bit i: HF_LAYER_MATRICES[i] */
    for (size_t i = 0; i < COUNT_OF(HF_LAYER_MATRICES); i++) {
        bool found;
        if (!plan_add_linear_(p, layer, HF_LAYER_MATRICES[i], &found, e)) return false;
        if (!found && HF_LAYER_MATRICES[i].needed)
            return plan_missing_(p, layer, HF_LAYER_MATRICES[i], e);
        have |= (u32)found << i;
    }
    for (size_t i = 0; i < COUNT_OF(HF_SETS); i++) {
        u32 single = have & HF_SETS[i].single, fused = have & HF_SETS[i].fused;
        if (single == HF_SETS[i].single ? fused == 0 : single == 0 && fused) continue;
        return err_set(e, ERR_MODEL, "%s: layer %d has neither all of %s nor these as one tensor",
                       p->o->from, layer, HF_SETS[i].what);
    }
    return true;
}

/* The output matrix. Tied to the embedding it is not written a second time. */
static bool plan_output_(Plan *p, Err *e) {
    HfName n = HF_LAST[1];
    PlanSource s = plan_find_(p, -1, n.theirs, ".weight");
    if (s.tensor && p->hf.tied) {
        const PlanItem *embed = &p->items[0];
        bool same = s.tensor->n_bytes == embed->src_bytes &&
                    memcmp(s.tensor->data, embed->src, embed->src_bytes) == 0;
        plan_say(p, !same, "%.*s is left out: tie_word_embeddings says that %s",
                 STR_ARG(s.tensor->name),
                 same ? "it is the embedding, and it is"
                      : "the embedding takes its place, though the two differ");
        return true;
    }
    if (s.tensor) return plan_add_matrix_(p, n.ours, &s, n, ROLE_OUTPUT, e);
    bool says = json_get(&p->hf.config.doc, 0, "tie_word_embeddings") != JSON_NONE && !p->hf.tied;
    return !says || plan_missing_(p, -1, n, e);
}

static bool plan_rope_(Plan *p, Err *e) {
    static const char *const lists[] = {"long_factor", "short_factor"};
    HfRope rope;
    if (!hf_rope(&p->hf, &rope, e)) return false;
    i64 n = p->hf.n_rot / 2;
    if (rope == HF_ROPE_LLAMA3) {
        f32 *out = plan_add_made_(p, "rope_freqs.weight", n, e);
        return out && hf_llama3_factors(&p->hf, out, e);
    }
    for (size_t i = 0; rope == HF_ROPE_LONG && i < COUNT_OF(lists); i++) {
        f32 *out =
            plan_add_made_(p, i ? "rope_factors_short.weight" : "rope_factors_long.weight", n, e);
        if (!out || !hf_long_factors(&p->hf, lists[i], out, e)) return false;
    }
    return true;
}

/* A tensor that the family has no place for would change the function if it were dropped. */
static bool plan_all_used_(Plan *p, Err *e) {
    for (u32 i = 0; i < p->n_shards; i++)
        for (u32 t = 0; t < p->shards[i].dir.n_tensors; t++) {
            Str name = p->shards[i].dir.tensors[t].name;
            if (!p->shards[i].used[t] && !hf_is_buffer(name))
                return err_set(
                    e, ERR_MODEL,
                    "%s: tensor %.*s has no place in a %s of %lld layers; without it the "
                    "model would be another one",
                    p->shards[i].path, STR_ARG(name), p->hf.class->name, (long long)p->hf.n_layer);
        }
    return true;
}

/* BitNet without SubLN is llama's graph, whatever its class is called. */
static void plan_settle_family_(Plan *p) {
    static const char *const marks[] = {"model.layers.0.self_attn.attn_sub_norm.weight",
                                        "model.layers.0.self_attn.inner_attn_ln.weight",
                                        "model.layers.0.self_attn.o_proj.0.weight",
                                        "model.layers.0.self_attn.o_proj.rms_norm.weight"};
    if (!str_starts(str_of(p->hf.family->arch), STR("bitnet"))) return;
    for (size_t i = 0; i < COUNT_OF(marks); i++)
        if (plan_has_(p, marks[i])) return;
    if (p->hf.act == DLM_ACT_SILU) p->hf.family = hf_family_("llama");
}

static bool plan_of_hf_(Plan *p, Err *e) {
    plan_settle_family_(p);
    PlanSource s = plan_find_(p, -1, HF_FIRST.theirs, ".weight");
    if (!s.tensor) return plan_missing_(p, -1, HF_FIRST, e);
    if (!plan_add_matrix_(p, HF_FIRST.ours, &s, HF_FIRST, ROLE_EMBED, e)) return false;
    p->norm_in = plan_has_(p, "model.layers.0.self_attn.q_proj.0.weight") ||
                 plan_has_(p, "model.layers.0.self_attn.q_proj.rms_norm.weight");
    for (i32 layer = 0; layer < (i32)p->hf.n_layer; layer++)
        if (!plan_layer_(p, layer, e)) return false;
    s = plan_find_(p, -1, HF_LAST[0].theirs, ".weight");
    if (!s.tensor) return plan_missing_(p, -1, HF_LAST[0], e);
    return plan_add_vector_(p, "output_norm.weight", &s, p->hf.n_embd, e) && plan_output_(p, e) &&
           plan_rope_(p, e) && plan_all_used_(p, e);
}

/* ---- the plan of a GGUF file ---- */

/* Do the first weights hold nothing but -a, 0 and a? The whole tensor is looked at later. */
static bool plan_looks_ternary_(const PlanItem *it) {
    f32 x[256], a = 0;
    i64 n = MIN_OF(it->n_in, 256);
    if (it->src_type != DLM_F32 && it->src_type != DLM_F16 && it->src_type != DLM_BF16)
        return false;
    for (i64 row = 0; row < MIN_OF(it->n_out, 4); row++) {
        quant_values(it->src_type, it->src + it->src_bytes / (u64)it->n_out * (u64)row, n, x);
        for (i64 i = 0; i < n; i++) {
            f32 v = f32_abs_(x[i]);
            if (v != 0 && a != 0 && v != a) return false;
            if (v != 0) a = v;
        }
    }
    return a != 0;
}

static DlmTensor plan_tensor_(const PlanItem *it) {
    return (DlmTensor){.name = it->name,
                       .type = it->src_type,
                       .i2s_layout = it->i2s_layout,
                       .tl = it->tl,
                       .n_in = it->n_in,
                       .n_out = it->n_out,
                       .data = it->src,
                       .n_bytes = it->src_bytes};
}

/* The one scale of a tensor in a ternary type. False: its blocks have several. */
static bool plan_one_scale_(const PlanItem *it, f32 *scale) {
    const DlmTypeInfo *info = quant_info(it->src_type);
    *scale = 0;
    if (!quant_has_rows(it->src_type)) {
        *scale = load_f32(it->src + it->src_bytes - DLM_I2S_TAIL);
        return true;
    }
    size_t at = it->src_type == DLM_TQ1_0   ? offsetof(DlmBlockTQ1_0, d)
                : it->src_type == DLM_TQ2_0 ? offsetof(DlmBlockTQ2_0, d)
                                            : offsetof(DlmBlockQ2_0, d);
    for (u64 b = 0; b < it->src_bytes; b += info->bytes) {
        f32 d = f16_to_f32(load_u16(it->src + b + at));
        if (d == 0 || d == *scale) continue;
        if (*scale != 0) return false;
        *scale = d;
    }
    return true;
}

static PlanRole plan_role_(const GgufTensor *t) {
    if (t->n_dims < 2) return ROLE_VECTOR;
    if (str_eq(t->name, STR("token_embd.weight"))) return ROLE_EMBED;
    if (str_eq(t->name, STR("output.weight"))) return ROLE_OUTPUT;
    return str_starts(t->name, STR("blk.")) && str_ends(t->name, STR(".weight")) ? ROLE_LINEAR
                                                                                 : ROLE_VECTOR;
}

/* What `dlm convert` may turn into another type. Everything else is copied. */
static i32 plan_wanted_(const PlanOptions *o, PlanRole role) {
    switch (role) {
    case ROLE_LINEAR: return o->type;
    case ROLE_EMBED: return o->embed_type;
    case ROLE_OUTPUT: return o->output_type;
    case ROLE_VECTOR: break;
    }
    return PLAN_AS_IS;
}

/* Are the bytes of a tensor of this type what is wanted? I2_S is written in one layout only. */
static bool plan_copies_(const PlanOptions *o, i32 want, DlmType type) {
    if (want == PLAN_AS_IS) return true;
    return want == (i32)type && (type != DLM_I2_S || o->i2s_layout == DLM_I2S_128);
}

/* A ternary tensor in a ternary type, with the number that may lie beside it. */
static bool plan_codes_(Plan *p, PlanItem *it, Str base, Err *e) {
    char name[PLAN_NAME_MAX];
    snprintf(name, sizeof name, "%.*s.scale", STR_ARG(base));
    const GgufTensor *beside = gguf_tensor(&p->gguf, str_of(name));
    it->form = FORM_CODES;
    it->i2s_layout = p->o->i2s_layout;
    DlmTensor t = plan_tensor_(it);
    if (!tl_find(&p->o->tl, it->file, &t, e)) return false;
    it->tl = t.tl;
    if (!plan_one_scale_(it, &it->scale))
        return err_set(e, ERR_MODEL,
                       "%s: tensor %s has blocks of several scales; it can only be copied as %s",
                       it->file, it->name, plan_type_name(it->src_type));
    if (beside && beside->type == DLM_F32 && beside->n_bytes == 4)
        it->scale *= load_f32(beside->data);
    return true;
}

static bool plan_gguf_tensor_(Plan *p, const GgufTensor *t, Err *e) {
    static const char suffix[] = ".weight";
    char name[PLAN_NAME_MAX];
    Str base = str_cut(t->name, 0, t->name.n - MIN_OF(t->name.n, strlen(suffix)));
    if (t->name.n >= PLAN_BASE_MAX)
        return err_set(e, ERR_MODEL, "%s: tensor %.*s has too long a name", p->o->from,
                       STR_ARG(t->name));
    if (str_ends(t->name, STR(".scale"))) { /* goes with the matrix that it scales */
        snprintf(name, sizeof name, "%.*s.weight", (int)(t->name.n - 6), t->name.p);
        const GgufTensor *w = gguf_tensor(&p->gguf, str_of(name));
        if (w && quant_is_ternary(w->type) && !plan_copies_(p->o, p->o->type, w->type)) return true;
    }
    snprintf(name, sizeof name, "%.*s", STR_ARG(t->name));
    PlanItem *it = plan_add_(p, name, e);
    if (!it) return false;
    *it = (PlanItem){.role = plan_role_(t),
                     .type = t->type,
                     .src_type = t->type,
                     .n_dims = t->n_dims,
                     .n_in = (i64)t->ne[0],
                     .n_out = (i64)(t->ne[1] * t->ne[2] * t->ne[3]),
                     .file = p->o->from,
                     .from = t->name,
                     .src = t->data,
                     .src_bytes = t->n_bytes};
    memcpy(it->name, name, sizeof name);
    memcpy(it->ne, t->ne, sizeof it->ne);
    i32 want = plan_wanted_(p->o, it->role);
    if (plan_copies_(p->o, want, t->type)) return true; /* FORM_RAW */
    it->form = FORM_DENSE;
    bool to_ternary = it->role == ROLE_LINEAR && quant_is_ternary((DlmType)want);
    if (quant_is_ternary(t->type)) {
        if (!plan_codes_(p, it, base, e)) return false;
    } else if (to_ternary && p->o->ternary != PLAN_DENSE) {
        bool made = str_starts(p->arch, STR("bitnet")) || p->o->ternary == PLAN_TERNARY;
        it->exact = plan_looks_ternary_(it);
        if (it->exact || made) it->form = FORM_ONLINE;
    }
    if (!plan_is_ternary(it) || !to_ternary) return true;
    return plan_add_scale_(p, base, e);
}

static bool plan_of_gguf_(Plan *p, Err *e) {
    if (!gguf_get_str(&p->gguf, "general.architecture", &p->arch, e)) return false;
    for (u32 i = 0; i < p->gguf.n_tensors; i++)
        if (!plan_gguf_tensor_(p, &p->gguf.tensors[i], e)) return false;
    return true;
}

/* ---- types ---- */

/* general.file_type, and what stands in for a type whose blocks the rows do not fill. Ternary weights
 * keep their values in any ternary type. */
static const struct {
    DlmType type, instead;
    u32 file_type;
} PLAN_KINDS[] = {
    {DLM_F32, DLM_F32, 0},     {DLM_F16, DLM_F16, 1},     {DLM_BF16, DLM_BF16, 32},
    {DLM_Q4_0, DLM_F16, 2},    {DLM_Q4_1, DLM_F16, 3},    {DLM_Q5_0, DLM_F16, 8},
    {DLM_Q5_1, DLM_F16, 9},    {DLM_Q8_0, DLM_F16, 7},    {DLM_Q2_K, DLM_Q4_0, 10},
    {DLM_Q4_K, DLM_Q5_0, 15},  {DLM_Q5_K, DLM_Q5_1, 17},  {DLM_Q6_K, DLM_Q8_0, 18},
    {DLM_TQ1_0, DLM_Q2_0, 36}, {DLM_TQ2_0, DLM_Q2_0, 37}, {DLM_Q2_0, DLM_F32, 41},
    {DLM_I2_S, DLM_Q2_0, 40},
};

static bool plan_fits_(DlmType type, const PlanItem *it) {
    if (type == DLM_I2_S) return it->n_in % 128 == 0;
    return it->n_in % quant_info(type)->block == 0;
}

static DlmType plan_instead_(DlmType type) {
    for (size_t i = 0; i < COUNT_OF(PLAN_KINDS); i++)
        if (PLAN_KINDS[i].type == type) return PLAN_KINDS[i].instead;
    return DLM_F16;
}

static u32 plan_file_type(DlmType type) {
    for (size_t i = 0; i < COUNT_OF(PLAN_KINDS); i++)
        if (PLAN_KINDS[i].type == type) return PLAN_KINDS[i].file_type;
    return 1024; /* "guessed", to those who read it */
}

/* Chooses the type of one tensor and says when it is not the one that was asked for. */
static bool plan_choose_(Plan *p, PlanItem *it, u64 told[64], Err *e) {
    i32 want = plan_wanted_(p->o, it->role);
    bool ternary = plan_is_ternary(it);
    if (want == PLAN_AS_IS && ternary) want = DLM_TQ2_0;
    if (want == PLAN_AS_IS) want = (i32)it->src_type;
    it->type = (DlmType)want;
    if (quant_is_ternary(it->type) && !ternary)
        return err_set(
            e, ERR_MODEL,
            "%s: tensor %.*s is not ternary, and as %s it would be destroyed; take q4_0 or "
            "q8_0, or --ternary yes where the model was trained for it",
            it->file, STR_ARG(it->from), plan_type_name(it->type));
    while (!plan_fits_(it->type, it)) {
        DlmType instead = plan_instead_(it->type);
        u64 bit = (u64)1 << (it->type & 63);
        if (!(told[instead & 63] & bit))
            plan_say(p, false, "rows of %lld weights are not whole blocks of %s: %s instead%s",
                     (long long)it->n_in, plan_type_name(it->type), plan_type_name(instead),
                     ternary ? ", which holds the same values" : "");
        told[instead & 63] |= bit;
        it->type = instead;
    }
    if (quant_can_make(it->type)) return true;
    return err_set(e, ERR_USAGE, "dlm does not make tensors of type %s", plan_type_name(it->type));
}

/* Drops the scales that turned out not to be needed, and counts the linear weights of each type. */
static void plan_settle_scales_(Plan *p) {
    u32 n = 0;
    for (u32 i = 0; i < p->n_items; i++) {
        const PlanItem *w = n ? &p->items[n - 1] : NULL;
        bool keep = p->items[i].form != FORM_SCALE ||
                    (w && quant_is_ternary(w->type) && w->type != DLM_I2_S && !p->o->block_scale &&
                     (w->form == FORM_ONLINE || f16_to_f32(f32_to_f16(w->scale)) != w->scale));
        if (keep) p->items[n++] = p->items[i];
    }
    p->n_items = n;
}

static bool plan_choose_all_(Plan *p, Err *e) {
    u64 told[64] = {0}, weights[64] = {0};
    for (u32 i = 0; i < p->n_items; i++) {
        PlanItem *it = &p->items[i];
        bool chosen = it->role != ROLE_VECTOR && it->form != FORM_RAW;
        if (chosen && !plan_choose_(p, it, told, e)) return false;
        if (it->role == ROLE_LINEAR) weights[it->type & 63] += (u64)(it->n_in * it->n_out);
        p->total += it->form == FORM_MADE || it->form == FORM_SCALE ? 0 : it->src_bytes;
    }
    for (u32 t = 0; t < 64; t++)
        if (weights[t] > weights[p->main_type & 63]) p->main_type = (DlmType)t;
    plan_settle_scales_(p);
    return true;
}

/* ---- rows of the input ---- */

/* The row of the input that becomes row `row` of the output. Rotation turns the two halves of a head; where
 * GGUF wants neighbours turned instead, the halves are interleaved. */
static i64 plan_source_row(const PlanItem *it, i64 row) {
    if (!it->n_permute) return row;
    i64 head = it->n_out > 1 ? it->n_out / it->n_permute : it->n_in / it->n_permute, j = row % head;
    return row - j + j % 2 * (head / 2) + j / 2;
}

/* t = round half to even (W / m): above a half of m it is 1, at a half and below it is 0. */
static u8 plan_code(f32 w, f32 m) {
    f32 t = w / m;
    return (u8)(1 + (t > 0.5f) - (t < -0.5f));
}

/* Row `row` of the output as numbers, for forms that are not ternary. */
static void plan_values_row(const PlanItem *it, i64 row, f32 *values /* [n_in] */) {
    u64 row_bytes = it->src_bytes / (u64)it->n_out, one = row_bytes / (u64)it->n_in;
    if (it->n_out > 1 || !it->n_permute) {
        quant_values(it->src_type, it->src + row_bytes * (u64)plan_source_row(it, row), it->n_in,
                     values);
        return;
    }
    for (i64 i = 0; i < it->n_in; i++) /* a bias goes with its rows */
        quant_values(it->src_type, it->src + one * (u64)plan_source_row(it, i), 1, values + i);
}

/* Row `row` of the output as codes, once the scale is known; `values` is scratch. */
static void plan_codes_row(const PlanItem *it, i64 row, f32 *values /* [n_in] */,
                           u8 *codes /* [n_in] */) {
    i64 n = it->n_in, from = plan_source_row(it, row), quarter = it->n_out / 4;
    if (it->form == FORM_PACKED) {
        const u8 *p = it->src + from % quarter * n;
        for (i64 i = 0; i < n; i++) codes[i] = p[i] >> 2 * (from / quarter) & 3;
    } else if (it->form == FORM_CODES) {
        DlmTensor t = plan_tensor_(it);
        quant_codes_row(&t, from, codes, values);
        i64 block = quant_scale_block(&t);
        for (i64 b = 0; b < n / block; b++)
            if (values[b] == 0) memset(codes + b * block, 1, (size_t)block);
    } else {
        plan_values_row(it, row, values);
        for (i64 i = 0; i < n; i++) codes[i] = plan_code(values[i], it->scale);
    }
}

/* ---- the whole plan ---- */

static bool plan_read_(Plan *p, Err *e) {
    if (!os_is_folder(p->o->from)) {
        if (os_is_same_file(p->o->from, p->o->to))
            return err_set(e, ERR_USAGE, "'%s' is the input; name another file with -o", p->o->to);
        return os_map_file(&p->map, p->o->from, e) &&
               gguf_open(&p->gguf, p->map.p, p->map.n, p->o->from, e) && plan_of_gguf_(p, e);
    }
    p->has_hf = hf_open(&p->hf, p->o->from, e);
    if (!p->has_hf) return false;
    p->has_vocab = vocab_open(&p->vocab, &p->hf, p->o->pre, p->o->decode.mask_id, e);
    return p->has_vocab && plan_open_shards_(p, e) && plan_of_hf_(p, e);
}

static void plan_close(Plan *p) {
    for (u32 i = 0; i < p->n_items; i++)
        if (p->items[i].form == FORM_MADE) mem_free((void *)(uintptr_t)p->items[i].src);
    mem_free(p->items);
    if (p->has_vocab) vocab_close(&p->vocab);
    if (p->has_hf) hf_close(&p->hf);
    for (u32 i = 0; i < p->n_shards; i++) {
        safet_close(&p->shards[i].dir);
        os_unmap(&p->shards[i].map);
        mem_free(p->shards[i].used);
    }
    mem_free(p->shards);
    gguf_close(&p->gguf);
    os_unmap(&p->map);
    *p = (Plan){0};
}

/* Reads all of the input but the weights. The options and events must outlive p. */
static bool plan_open(Plan *p, const PlanOptions *o, const PlanEvents *events, Err *e) {
    *p = (Plan){.o = o, .events = events};
    if (plan_read_(p, e) && plan_choose_all_(p, e)) return true;
    plan_close(p);
    return false;
}

#endif

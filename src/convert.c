/* convert.c - a checkpoint, or a GGUF file, into a GGUF file.
 *
 * Owns:      the mappings of the input, the plan, and the unfinished output.
 * Stands on: base mem os pool gguf json safet quant model hf vocab
 * Promises:  every tensor of the input is used, or named in an error; the output appears whole or not
 *            at all; memory does not grow with the model; the same bytes for any number of threads. */
#ifndef DLM_CONVERT_C
#define DLM_CONVERT_C

#include "../dlm_kernels.h"
#include "base.c"
#include "gguf.c"
#include "hf.c"
#include "json.c"
#include "mem.c"
#include "model.c"
#include "os.c"
#include "pool.c"
#include "quant.c"
#include "safet.c"
#include "vocab.c"

#define CONVERT_NAME_MAX 128
#define CONVERT_BASE_MAX (CONVERT_NAME_MAX - 24) /* room for the suffixes below */
#define CONVERT_SHARDS_MAX 4096u
#define CONVERT_CHUNK ((u64)8 << 20) /* bytes of output that are made at a time */
#define CONVERT_AS_IS (-1)           /* a type: what the checkpoint has */

typedef enum { CONVERT_AUTO, CONVERT_TERNARY, CONVERT_DENSE } ConvertTernary;

typedef struct {
    const char *from, *to;
    i32 type, embed_type, output_type; /* DlmType or CONVERT_AS_IS */
    i32 ternary;                       /* ConvertTernary: are the linear weights to be ternary? */
    i32 block_scale; /* not 0: the scale of ternary weights goes into the blocks, in 16 bits */
    const char *pre;
    HfDecode decode;
    i32 n_threads; /* 0: one for each processor */
} ConvertOptions;

/* What is told meanwhile; any of it may be NULL. */
typedef struct {
    void *arg;
    void (*on_note)(void *arg, bool warning, const char *line);
    void (*on_progress)(void *arg, u64 done, u64 total); /* bytes of input */
    bool (*on_cancelled)(void *arg);
} ConvertEvents;

/* ---- the plan: every tensor of the output, and what it is made of ---- */

typedef enum {
    FORM_RAW,    /* the bytes as they are */
    FORM_DENSE,  /* rows of numbers */
    FORM_MADE,   /* numbers computed here */
    FORM_SCALE,  /* the scale of the item before */
    FORM_ONLINE, /* numbers that become ternary: t = round(W / mean |W|), or that are -a, 0 and a */
    FORM_PACKED, /* four codes in a byte, their rows n_out / 4 apart */
    FORM_CODES   /* a ternary type of GGUF with one scale */
} ConvertForm;

/* Which option chooses the type. */
typedef enum { ROLE_VECTOR, ROLE_LINEAR, ROLE_EMBED, ROLE_OUTPUT } ConvertRole;

typedef struct {
    char name[CONVERT_NAME_MAX];
    ConvertForm form;
    ConvertRole role;
    DlmType type; /* in the output */
    u32 n_dims;
    u64 ne[4]; /* as GGUF has it */
    i64 n_in, n_out;
    const char *file; /* where it comes from, and its name there: for messages */
    Str from;
    DlmType src_type;
    const u8 *src; /* [src_bytes], or FORM_MADE: [n_in] f32, owned */
    u64 src_bytes;
    i32 n_permute; /* heads whose rows are interleaved; 0: none */
    bool exact;    /* FORM_ONLINE: nothing but -a, 0 and a is right */
    f32 scale;     /* of ternary forms: value = (code - 1) * scale */
    u64 counts[4]; /* of ternary forms: how many codes of each kind were written */
    f64 error;     /* FORM_ONLINE: |W - t m|^2 / |W|^2 */
} ConvertItem;

typedef struct {
    char path[OS_NEW_PATH_MAX];
    OsMap map;
    Safet dir;
    u8 *used; /* [dir.n_tensors] */
} ConvertShard;

typedef struct {
    const ConvertOptions *o;
    const ConvertEvents *events;
    /* the input: a checkpoint, or a GGUF file */
    Hf hf;
    Vocab vocab;
    bool has_hf, has_vocab;
    ConvertShard *shards; /* [n_shards] */
    u32 n_shards;
    OsMap map;
    Gguf gguf;
    Str arch;
    /* the plan */
    ConvertItem *items; /* [n_items] */
    u32 n_items, cap_items;
    bool norm_in;      /* SubLN before every matrix */
    DlmType main_type; /* of most linear weights */
    u64 total, done;   /* bytes of input */
    /* the work */
    Pool *pool;
    GgufWriter writer;
    OsNewFile out;
    u64 n_out; /* bytes written */
    u8 *chunk; /* [chunk_bytes] */
    u64 chunk_bytes;
    i64 n_in_max;
    f32 *values;    /* [threads][n_in_max] */
    u8 *codes;      /* [threads][n_in_max] */
    u32 *histogram; /* [threads][2][CONVERT_BINS] */
    u64 *bins;      /* [CONVERT_BINS] */
    u8 *code_of;    /* [2 * CONVERT_BINS] by the bits of a 16-bit weight */
    struct ConvertJob_ *job;
} Convert;

PRINTF_LIKE(3, 4)
static void convert_say_(Convert *c, bool warning, const char *fmt, ...) {
    char line[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    if (c->events->on_note) c->events->on_note(c->events->arg, warning, line);
}

static bool convert_is_ternary_(const ConvertItem *it) {
    return it->form == FORM_ONLINE || it->form == FORM_PACKED || it->form == FORM_CODES;
}

static const char *convert_type_name_(DlmType type) {
    return gguf_type_name((u32)type);
}

static ConvertItem *convert_add_(Convert *c, const char *name, Err *e) {
    if (c->n_items == c->cap_items) {
        u32 cap = c->cap_items ? 2 * c->cap_items : 256;
        ConvertItem *items = mem_alloc_n(cap, sizeof *items, e);
        if (!items) return NULL;
        if (c->n_items) memcpy(items, c->items, c->n_items * sizeof *items);
        mem_free(c->items);
        c->items = items;
        c->cap_items = cap;
    }
    ConvertItem *it = &c->items[c->n_items++];
    *it = (ConvertItem){.ne = {1, 1, 1, 1}, .n_dims = 1, .n_out = 1, .file = c->o->from};
    snprintf(it->name, sizeof it->name, "%s", name);
    it->from = str_of(it->name);
    return it;
}

/* A vector of numbers that is computed; the caller fills it. */
static f32 *convert_add_made_(Convert *c, const char *name, i64 n, Err *e) {
    ConvertItem *it = convert_add_(c, name, e);
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

static bool convert_open_shard_(Convert *c, const char *name, Err *e) {
    ConvertShard *s = &c->shards[c->n_shards];
    *s = (ConvertShard){.map = {0}};
    if (!hf_path(s->path, c->o->from, name, e) || !os_map_file(&s->map, s->path, e)) return false;
    c->n_shards++;
    if (!safet_open(&s->dir, s->map.p, s->map.n, s->path, e)) return false;
    s->used = mem_alloc(s->dir.n_tensors, e);
    return s->used != NULL;
}

/* Opens each file that the index names, once, and checks that each tensor lies where it says. */
static bool convert_open_index_(Convert *c, const HfJson *index, Err *e) {
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
        while (i < c->n_shards && !str_ends(str_of(c->shards[i].path), file)) i++;
        if (i == CONVERT_SHARDS_MAX)
            return err_set(e, ERR_MODEL, "%s: more than %u files", index->path, CONVERT_SHARDS_MAX);
        char name[256];
        snprintf(name, sizeof name, "%.*s", (int)file.n, file.p);
        if (i == c->n_shards && !convert_open_shard_(c, name, e)) return false;
        if (!safet_find(&c->shards[i].dir, tensor))
            return err_set(e, ERR_MODEL, "%s: tensor %.*s is missing, but %s says that it is there",
                           c->shards[i].path, STR_ARG(tensor), index->path);
        key = json_next(d, value);
    }
    return true;
}

/* No tensor may come from two places. */
static bool convert_check_shards_(Convert *c, Err *e) {
    for (u32 i = 0; i < c->n_shards; i++)
        for (u32 t = 0; t < c->shards[i].dir.n_tensors; t++)
            for (u32 j = 0; j < i; j++) {
                Str name = c->shards[i].dir.tensors[t].name;
                if (safet_find(&c->shards[j].dir, name))
                    return err_set(e, ERR_MODEL, "tensor %.*s is in both %s and %s", STR_ARG(name),
                                   c->shards[j].path, c->shards[i].path);
            }
    return true;
}

static bool convert_open_shards_(Convert *c, Err *e) {
    static const char one[] = "model.safetensors", many[] = "model.safetensors.index.json";
    char path[OS_NEW_PATH_MAX];
    HfJson index;
    c->shards = mem_alloc_n(CONVERT_SHARDS_MAX, sizeof *c->shards, e);
    if (!c->shards || !hf_json_open(&index, c->o->from, many, false, e)) return false;
    bool ok = hf_path(path, c->o->from, one, e);
    if (ok && index.doc.n)
        ok = convert_open_index_(c, &index, e);
    else if (ok && os_is_file(path))
        ok = convert_open_shard_(c, one, e);
    else if (ok)
        ok = err_set(
            e, ERR_MODEL,
            "%s: no weights: neither %s nor %s is there (pytorch_model.bin is a program that "
            "runs when it is read: save the model with safe_serialization=True)",
            c->o->from, one, many);
    hf_json_close(&index);
    return ok && convert_check_shards_(c, e);
}

typedef struct {
    const SafetTensor *tensor; /* NULL: there is none */
    ConvertShard *shard;
} ConvertSource;

/* The tensor of this name, marked as used. */
static ConvertSource convert_take_(Convert *c, const char *name) {
    for (u32 i = 0; i < c->n_shards; i++) {
        const SafetTensor *t = safet_find(&c->shards[i].dir, str_of(name));
        if (!t) continue;
        c->shards[i].used[t - c->shards[i].dir.tensors] = 1;
        return (ConvertSource){t, &c->shards[i]};
    }
    return (ConvertSource){NULL, NULL};
}

static bool convert_has_(const Convert *c, const char *name) {
    for (u32 i = 0; i < c->n_shards; i++)
        if (safet_find(&c->shards[i].dir, str_of(name))) return true;
    return false;
}

/* Tries every prefix of a layer (layer < 0: none) and every spelling. */
static ConvertSource convert_find_(Convert *c, i32 layer, const char *spellings,
                                   const char *suffix) {
    ConvertSource s = {NULL, NULL};
    const char *prefixes = layer < 0 ? "-" : HF_LAYER_PREFIXES;
    for (const char *p = prefixes; *p && !s.tensor; p += strcspn(p, " "), p += strspn(p, " "))
        for (const char *n = spellings; *n && !s.tensor;
             n += strcspn(n, " "), n += strspn(n, " ")) {
            char pattern[64], prefix[64] = "", name[CONVERT_NAME_MAX];
            snprintf(pattern, sizeof pattern, "%.*s", (int)strcspn(p, " "), p);
            char *number = strstr(pattern, "%d");
            if (number)
                snprintf(prefix, sizeof prefix, "%.*s%d%s", (int)(number - pattern), pattern, layer,
                         number + 2);
            snprintf(name, sizeof name, "%s%.*s%s", prefix, (int)strcspn(n, " "), n, suffix);
            s = convert_take_(c, name);
        }
    return s;
}

/* ---- the plan of a checkpoint ---- */

static const struct {
    SafetType theirs;
    DlmType ours;
} CONVERT_TYPES[] = {{SAFET_F32, DLM_F32}, {SAFET_F16, DLM_F16}, {SAFET_BF16, DLM_BF16}};

static bool convert_float_type_(const ConvertSource *s, DlmType *type, Err *e) {
    for (size_t i = 0; i < COUNT_OF(CONVERT_TYPES); i++)
        if (s->tensor->type == CONVERT_TYPES[i].theirs) {
            *type = CONVERT_TYPES[i].ours;
            return true;
        }
    return err_set(e, ERR_MODEL, "%s: tensor %.*s is of type %s; F32, F16 or BF16 is wanted",
                   s->shard->path, STR_ARG(s->tensor->name), s->tensor->type_name);
}

static bool convert_shape_(const ConvertSource *s, i64 n_out, i64 n_in, const Hf *h, Err *e) {
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

static ConvertItem *convert_add_source_(Convert *c, const char *name, const ConvertSource *s,
                                        Err *e) {
    ConvertItem *it = convert_add_(c, name, e);
    if (!it) return NULL;
    it->file = s->shard->path;
    it->from = s->tensor->name;
    it->src = s->tensor->data;
    it->src_bytes = s->tensor->n_bytes;
    return it;
}

/* A vector: kept in F32. */
static bool convert_add_vector_(Convert *c, const char *name, const ConvertSource *s, i64 n,
                                Err *e) {
    DlmType type;
    if (!convert_float_type_(s, &type, e) || !convert_shape_(s, 1, n, &c->hf, e)) return false;
    ConvertItem *it = convert_add_source_(c, name, s, e);
    if (!it) return false;
    it->form = FORM_DENSE;
    it->src_type = type;
    it->type = DLM_F32;
    it->ne[0] = (u64)n;
    it->n_in = n;
    return true;
}

/* The scale of a packed tensor: one number, by which codes are multiplied or divided. */
static bool convert_packed_scale_(Convert *c, ConvertItem *it, const ConvertSource *s, Err *e) {
    DlmType type;
    if (!s->tensor)
        return err_set(e, ERR_MODEL, "%s: tensor %.*s is packed, but has no weight_scale beside it",
                       it->file, STR_ARG(it->from));
    if (!convert_float_type_(s, &type, e)) return false;
    u64 one[4] = {1, 1, 1, 1}, bytes = 0;
    gguf_tensor_bytes(type, one, &bytes);
    if (s->tensor->n_bytes != bytes)
        return err_set(e, ERR_MODEL, "%s: tensor %.*s is not one number", s->shard->path,
                       STR_ARG(s->tensor->name));
    if (c->hf.scale_undecided)
        return err_set(
            e, ERR_MODEL,
            "%s: tensor %.*s is packed, but %s has no quantization_config, so nothing says "
            "whether weight_scale multiplies (autobitlinear) or divides (bitlinear)",
            it->file, STR_ARG(it->from), c->hf.config.path);
    quant_values(type, s->tensor->data, 1, &it->scale);
    if (c->hf.divides) it->scale = 1.0f / it->scale;
    return (it->scale > 0 && it->scale < 1e30f) ||
           err_set(e, ERR_MODEL, "%s: tensor %.*s is not a positive number", s->shard->path,
                   STR_ARG(s->tensor->name));
}

/* Where codes go whose scale does not fit the type's own. */
static bool convert_add_scale_(Convert *c, Str ours, Err *e) {
    char name[CONVERT_NAME_MAX];
    snprintf(name, sizeof name, "%.*s.scale", (int)MIN_OF(ours.n, CONVERT_BASE_MAX), ours.p);
    ConvertItem *it = convert_add_(c, name, e);
    if (!it) return false;
    it->form = FORM_SCALE;
    it->type = DLM_F32;
    it->ne[0] = 1;
    it->n_in = 1;
    return true;
}

static bool convert_add_matrix_(Convert *c, const char *ours, const ConvertSource *s, HfName n,
                                ConvertRole role, Err *e) {
    char name[CONVERT_NAME_MAX];
    i64 n_in = hf_size(&c->hf, n.n_in), n_out = hf_size(&c->hf, n.n_out);
    snprintf(name, sizeof name, "%s.weight", ours);
    bool packed = role == ROLE_LINEAR && s->tensor->type == SAFET_U8;
    DlmType type = DLM_F32;
    if (!packed && !convert_float_type_(s, &type, e)) return false;
    if (packed && n_out % 4)
        return err_set(e, ERR_MODEL, "%s: tensor %.*s is packed, but its %lld rows are not fours",
                       s->shard->path, STR_ARG(s->tensor->name), (long long)n_out);
    if (!convert_shape_(s, packed ? n_out / 4 : n_out, n_in, &c->hf, e)) return false;
    ConvertItem *it = convert_add_source_(c, name, s, e);
    if (!it) return false;
    bool ternary =
        role == ROLE_LINEAR &&
        (c->o->ternary == CONVERT_AUTO ? c->hf.ternary : c->o->ternary == CONVERT_TERNARY);
    it->role = role;
    it->form = packed ? FORM_PACKED : ternary ? FORM_ONLINE : FORM_DENSE;
    it->src_type = type;
    it->n_dims = 2;
    it->ne[0] = (u64)n_in, it->ne[1] = (u64)n_out;
    it->n_in = n_in, it->n_out = n_out;
    if (n.rotated && c->hf.family->rope == DLM_ROPE_NORM)
        it->n_permute = (i32)(n_out / c->hf.head_dim);
    return true;
}

/* A linear layer with all that may lie beside it. SubLN before it, spelled as the first of two modules or
 * as a norm of its own, is the sub-norm of o and down, or belongs to every matrix. */
static bool convert_add_linear_(Convert *c, i32 layer, HfName n, bool *found, Err *e) {
    static const char *const norms[] = {".0.weight", ".rms_norm.weight"};
    char ours[CONVERT_BASE_MAX], name[CONVERT_NAME_MAX];
    snprintf(ours, sizeof ours, "blk.%d.%s", layer, n.ours);
    ConvertSource norm = {NULL, NULL}, w = convert_find_(c, layer, n.theirs, ".weight");
    bool second = !w.tensor; /* of two modules */
    if (second) w = convert_find_(c, layer, n.theirs, ".1.weight");
    *found = w.tensor != NULL;
    if (!w.tensor) return true;
    for (size_t i = 0; i < COUNT_OF(norms) && !norm.tensor; i++)
        norm = convert_find_(c, layer, n.theirs, norms[i]);
    if (norm.tensor) {
        bool down = strcmp(n.ours, "ffn_down") == 0;
        if (second) c->hf.sub_eps = HF_SUB_EPS;
        if (c->norm_in)
            snprintf(name, sizeof name, "%s_norm_in.weight", ours);
        else
            snprintf(name, sizeof name, "blk.%d.%s_sub_norm.weight", layer, down ? "ffn" : "attn");
        if (!convert_add_vector_(c, name, &norm, hf_size(&c->hf, n.n_in), e)) return false;
    }
    if (!convert_add_matrix_(c, ours, &w, n, ROLE_LINEAR, e)) return false;
    ConvertItem *it = &c->items[c->n_items - 1];
    ConvertSource scale =
        convert_find_(c, layer, n.theirs, second ? ".1.weight_scale" : ".weight_scale");
    if (it->form == FORM_PACKED && !convert_packed_scale_(c, it, &scale, e)) return false;
    if (convert_is_ternary_(it) && !convert_add_scale_(c, str_of(ours), e)) return false;
    ConvertSource bias = convert_find_(c, layer, n.theirs, second ? ".1.bias" : ".bias");
    if (!bias.tensor) return true;
    snprintf(name, sizeof name, "%s.bias", ours);
    i32 heads = c->items[c->n_items - 1 - (c->items[c->n_items - 1].form == FORM_SCALE)].n_permute;
    if (!convert_add_vector_(c, name, &bias, hf_size(&c->hf, n.n_out), e)) return false;
    c->items[c->n_items - 1].n_permute = heads;
    return true;
}

static bool convert_missing_(Convert *c, i32 layer, HfName n, Err *e) {
    char at[32] = "";
    if (layer >= 0) snprintf(at, sizeof at, "layer %d: ", layer);
    return err_set(e, ERR_MODEL, "%s: %stensor %.*s.weight is missing; %s cannot run without it",
                   c->n_shards == 1 ? c->shards[0].path : c->o->from, at,
                   (int)strcspn(n.theirs, " "), n.theirs, c->hf.class->name);
}

static bool convert_plan_layer_(Convert *c, i32 layer, Err *e) {
    char name[CONVERT_NAME_MAX];
    for (size_t i = 0; i < COUNT_OF(HF_LAYER_VECTORS); i++) {
        HfName n = HF_LAYER_VECTORS[i];
        ConvertSource s = convert_find_(c, layer, n.theirs, ".weight");
        if (!s.tensor && n.needed) return convert_missing_(c, layer, n, e);
        snprintf(name, sizeof name, "blk.%d.%s.weight", layer, n.ours);
        if (s.tensor && !convert_add_vector_(c, name, &s, hf_size(&c->hf, n.n_in), e)) return false;
    }
    u32 have = 0; /* bit i: HF_LAYER_MATRICES[i] */
    for (size_t i = 0; i < COUNT_OF(HF_LAYER_MATRICES); i++) {
        bool found;
        if (!convert_add_linear_(c, layer, HF_LAYER_MATRICES[i], &found, e)) return false;
        if (!found && HF_LAYER_MATRICES[i].needed)
            return convert_missing_(c, layer, HF_LAYER_MATRICES[i], e);
        have |= (u32)found << i;
    }
    for (size_t i = 0; i < COUNT_OF(HF_SETS); i++) {
        u32 single = have & HF_SETS[i].single, fused = have & HF_SETS[i].fused;
        if (single == HF_SETS[i].single ? fused == 0 : single == 0 && fused) continue;
        return err_set(e, ERR_MODEL, "%s: layer %d has neither all of %s nor these as one tensor",
                       c->o->from, layer, HF_SETS[i].what);
    }
    return true;
}

/* The output matrix. Tied to the embedding it is not written a second time. */
static bool convert_plan_output_(Convert *c, Err *e) {
    HfName n = HF_LAST[1];
    ConvertSource s = convert_find_(c, -1, n.theirs, ".weight");
    if (s.tensor && c->hf.tied) {
        const ConvertItem *embed = &c->items[0];
        bool same = s.tensor->n_bytes == embed->src_bytes &&
                    memcmp(s.tensor->data, embed->src, embed->src_bytes) == 0;
        convert_say_(c, !same, "%.*s is left out: tie_word_embeddings says that %s",
                     STR_ARG(s.tensor->name),
                     same ? "it is the embedding, and it is"
                          : "the embedding takes its place, though the two differ");
        return true;
    }
    if (s.tensor) return convert_add_matrix_(c, n.ours, &s, n, ROLE_OUTPUT, e);
    bool says = json_get(&c->hf.config.doc, 0, "tie_word_embeddings") != JSON_NONE && !c->hf.tied;
    return !says || convert_missing_(c, -1, n, e);
}

static bool convert_plan_rope_(Convert *c, Err *e) {
    static const char *const lists[] = {"long_factor", "short_factor"};
    HfRope rope;
    if (!hf_rope(&c->hf, &rope, e)) return false;
    i64 n = c->hf.n_rot / 2;
    if (rope == HF_ROPE_LLAMA3) {
        f32 *out = convert_add_made_(c, "rope_freqs.weight", n, e);
        return out && hf_llama3_factors(&c->hf, out, e);
    }
    for (size_t i = 0; rope == HF_ROPE_LONG && i < COUNT_OF(lists); i++) {
        f32 *out = convert_add_made_(
            c, i ? "rope_factors_short.weight" : "rope_factors_long.weight", n, e);
        if (!out || !hf_long_factors(&c->hf, lists[i], out, e)) return false;
    }
    return true;
}

/* A tensor that the family has no place for would change the function if it were dropped. */
static bool convert_all_used_(Convert *c, Err *e) {
    for (u32 i = 0; i < c->n_shards; i++)
        for (u32 t = 0; t < c->shards[i].dir.n_tensors; t++) {
            Str name = c->shards[i].dir.tensors[t].name;
            if (!c->shards[i].used[t] && !hf_is_buffer(name))
                return err_set(
                    e, ERR_MODEL,
                    "%s: tensor %.*s has no place in a %s of %lld layers; without it the "
                    "model would be another one",
                    c->shards[i].path, STR_ARG(name), c->hf.class->name, (long long)c->hf.n_layer);
        }
    return true;
}

/* BitNet without SubLN is llama's graph, whatever its class is called. */
static void convert_settle_family_(Convert *c) {
    static const char *const marks[] = {"model.layers.0.self_attn.attn_sub_norm.weight",
                                        "model.layers.0.self_attn.inner_attn_ln.weight",
                                        "model.layers.0.self_attn.o_proj.0.weight",
                                        "model.layers.0.self_attn.o_proj.rms_norm.weight"};
    if (!str_starts(str_of(c->hf.family->arch), STR("bitnet"))) return;
    for (size_t i = 0; i < COUNT_OF(marks); i++)
        if (convert_has_(c, marks[i])) return;
    if (c->hf.act == DLM_ACT_SILU) c->hf.family = hf_family_("llama");
}

static bool convert_plan_hf_(Convert *c, Err *e) {
    convert_settle_family_(c);
    ConvertSource s = convert_find_(c, -1, HF_FIRST.theirs, ".weight");
    if (!s.tensor) return convert_missing_(c, -1, HF_FIRST, e);
    if (!convert_add_matrix_(c, HF_FIRST.ours, &s, HF_FIRST, ROLE_EMBED, e)) return false;
    c->norm_in = convert_has_(c, "model.layers.0.self_attn.q_proj.0.weight") ||
                 convert_has_(c, "model.layers.0.self_attn.q_proj.rms_norm.weight");
    for (i32 layer = 0; layer < (i32)c->hf.n_layer; layer++)
        if (!convert_plan_layer_(c, layer, e)) return false;
    s = convert_find_(c, -1, HF_LAST[0].theirs, ".weight");
    if (!s.tensor) return convert_missing_(c, -1, HF_LAST[0], e);
    return convert_add_vector_(c, "output_norm.weight", &s, c->hf.n_embd, e) &&
           convert_plan_output_(c, e) && convert_plan_rope_(c, e) && convert_all_used_(c, e);
}

/* ---- the plan of a GGUF file ---- */

/* Do the first weights hold nothing but -a, 0 and a? The whole tensor is looked at later. */
static bool convert_looks_ternary_(const ConvertItem *it) {
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

static DlmTensor convert_tensor_(const ConvertItem *it) {
    return (DlmTensor){.type = it->src_type,
                       .i2s_layout = DLM_I2S_128,
                       .n_in = it->n_in,
                       .n_out = it->n_out,
                       .data = it->src};
}

/* The one scale of a tensor in a ternary type. False: its blocks have several. */
static bool convert_one_scale_(const ConvertItem *it, f32 *scale) {
    const DlmTypeInfo *info = quant_info(it->src_type);
    *scale = 0;
    if (it->src_type == DLM_I2_S) {
        *scale = load_f32(it->src + it->n_in * it->n_out / 4);
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

static ConvertRole convert_role_(const GgufTensor *t) {
    if (t->n_dims < 2) return ROLE_VECTOR;
    if (str_eq(t->name, STR("token_embd.weight"))) return ROLE_EMBED;
    if (str_eq(t->name, STR("output.weight"))) return ROLE_OUTPUT;
    return str_starts(t->name, STR("blk.")) && str_ends(t->name, STR(".weight")) ? ROLE_LINEAR
                                                                                 : ROLE_VECTOR;
}

/* What `dlm convert` may turn into another type. Everything else is copied. */
static i32 convert_wanted_(const ConvertOptions *o, ConvertRole role) {
    switch (role) {
    case ROLE_LINEAR: return o->type;
    case ROLE_EMBED: return o->embed_type;
    case ROLE_OUTPUT: return o->output_type;
    case ROLE_VECTOR: break;
    }
    return CONVERT_AS_IS;
}

/* A ternary tensor in a ternary type, with the number that may lie beside it. */
static bool convert_plan_codes_(Convert *c, ConvertItem *it, Str base, Err *e) {
    char name[CONVERT_NAME_MAX];
    snprintf(name, sizeof name, "%.*s.scale", STR_ARG(base));
    const GgufTensor *beside = gguf_tensor(&c->gguf, str_of(name));
    it->form = FORM_CODES;
    if (!convert_one_scale_(it, &it->scale))
        return err_set(e, ERR_MODEL,
                       "%s: tensor %s has blocks of several scales; it can only be copied as %s",
                       it->file, it->name, convert_type_name_(it->src_type));
    if (beside && beside->type == DLM_F32 && beside->n_bytes == 4)
        it->scale *= load_f32(beside->data);
    return true;
}

static bool convert_plan_tensor_(Convert *c, const GgufTensor *t, Err *e) {
    static const char suffix[] = ".weight";
    char name[CONVERT_NAME_MAX];
    Str base = str_cut(t->name, 0, t->name.n - MIN_OF(t->name.n, strlen(suffix)));
    if (t->name.n >= CONVERT_BASE_MAX)
        return err_set(e, ERR_MODEL, "%s: tensor %.*s has too long a name", c->o->from,
                       STR_ARG(t->name));
    if (str_ends(t->name, STR(".scale"))) { /* goes with the matrix that it scales */
        snprintf(name, sizeof name, "%.*s.weight", (int)(t->name.n - 6), t->name.p);
        const GgufTensor *w = gguf_tensor(&c->gguf, str_of(name));
        if (w && quant_is_ternary(w->type) && c->o->type != CONVERT_AS_IS &&
            (i32)w->type != c->o->type)
            return true;
    }
    snprintf(name, sizeof name, "%.*s", STR_ARG(t->name));
    ConvertItem *it = convert_add_(c, name, e);
    if (!it) return false;
    *it = (ConvertItem){.role = convert_role_(t),
                        .type = t->type,
                        .src_type = t->type,
                        .n_dims = t->n_dims,
                        .n_in = (i64)t->ne[0],
                        .n_out = (i64)(t->ne[1] * t->ne[2] * t->ne[3]),
                        .file = c->o->from,
                        .from = t->name,
                        .src = t->data,
                        .src_bytes = t->n_bytes};
    memcpy(it->name, name, sizeof name);
    memcpy(it->ne, t->ne, sizeof it->ne);
    i32 want = convert_wanted_(c->o, it->role);
    if (want == CONVERT_AS_IS || want == (i32)t->type) return true; /* FORM_RAW */
    it->form = FORM_DENSE;
    bool to_ternary = it->role == ROLE_LINEAR && quant_is_ternary((DlmType)want);
    if (quant_is_ternary(t->type)) {
        if (!convert_plan_codes_(c, it, base, e)) return false;
    } else if (to_ternary && c->o->ternary != CONVERT_DENSE) {
        bool made = str_starts(c->arch, STR("bitnet")) || c->o->ternary == CONVERT_TERNARY;
        it->exact = convert_looks_ternary_(it);
        if (it->exact || made) it->form = FORM_ONLINE;
    }
    if (!convert_is_ternary_(it) || !to_ternary) return true;
    return convert_add_scale_(c, base, e);
}

static bool convert_plan_gguf_(Convert *c, Err *e) {
    if (!gguf_get_str(&c->gguf, "general.architecture", &c->arch, e)) return false;
    for (u32 i = 0; i < c->gguf.n_tensors; i++)
        if (!convert_plan_tensor_(c, &c->gguf.tensors[i], e)) return false;
    return true;
}

/* ---- types ---- */

/* general.file_type, and what stands in for a type whose blocks the rows do not fill. Ternary weights
 * keep their values in any ternary type. */
static const struct {
    DlmType type, instead;
    u32 file_type;
} CONVERT_KINDS[] = {
    {DLM_F32, DLM_F32, 0},     {DLM_F16, DLM_F16, 1},     {DLM_BF16, DLM_BF16, 32},
    {DLM_Q4_0, DLM_F16, 2},    {DLM_Q4_1, DLM_F16, 3},    {DLM_Q5_0, DLM_F16, 8},
    {DLM_Q5_1, DLM_F16, 9},    {DLM_Q8_0, DLM_F16, 7},    {DLM_Q2_K, DLM_Q4_0, 10},
    {DLM_Q4_K, DLM_Q5_0, 15},  {DLM_Q5_K, DLM_Q5_1, 17},  {DLM_Q6_K, DLM_Q8_0, 18},
    {DLM_TQ1_0, DLM_Q2_0, 36}, {DLM_TQ2_0, DLM_Q2_0, 37}, {DLM_Q2_0, DLM_F32, 41},
    {DLM_I2_S, DLM_Q2_0, 40},
};

static bool convert_fits_(DlmType type, const ConvertItem *it) {
    if (type == DLM_I2_S) return it->n_in % 128 == 0;
    return it->n_in % quant_info(type)->block == 0;
}

static DlmType convert_instead_(DlmType type) {
    for (size_t i = 0; i < COUNT_OF(CONVERT_KINDS); i++)
        if (CONVERT_KINDS[i].type == type) return CONVERT_KINDS[i].instead;
    return DLM_F16;
}

static u32 convert_file_type_(DlmType type) {
    for (size_t i = 0; i < COUNT_OF(CONVERT_KINDS); i++)
        if (CONVERT_KINDS[i].type == type) return CONVERT_KINDS[i].file_type;
    return 1024; /* "guessed", to those who read it */
}

/* Chooses the type of one tensor and says when it is not the one that was asked for. */
static bool convert_choose_(Convert *c, ConvertItem *it, u64 told[64], Err *e) {
    i32 want = convert_wanted_(c->o, it->role);
    bool ternary = convert_is_ternary_(it);
    if (want == CONVERT_AS_IS && ternary) want = DLM_TQ2_0;
    if (want == CONVERT_AS_IS) want = (i32)it->src_type;
    it->type = (DlmType)want;
    if (quant_is_ternary(it->type) && !ternary)
        return err_set(
            e, ERR_MODEL,
            "%s: tensor %.*s is not ternary, and as %s it would be destroyed; take q4_0 or "
            "q8_0, or --ternary yes where the model was trained for it",
            it->file, STR_ARG(it->from), convert_type_name_(it->type));
    while (!convert_fits_(it->type, it)) {
        DlmType instead = convert_instead_(it->type);
        u64 bit = (u64)1 << (it->type & 63);
        if (!(told[instead & 63] & bit))
            convert_say_(c, false, "rows of %lld weights are not whole blocks of %s: %s instead%s",
                         (long long)it->n_in, convert_type_name_(it->type),
                         convert_type_name_(instead),
                         ternary ? ", which holds the same values" : "");
        told[instead & 63] |= bit;
        it->type = instead;
    }
    if (quant_can_make(it->type)) return true;
    return err_set(e, ERR_USAGE, "dlm does not make tensors of type %s",
                   convert_type_name_(it->type));
}

/* Drops the scales that turned out not to be needed, and counts the linear weights of each type. */
static void convert_settle_scales_(Convert *c) {
    u32 n = 0;
    for (u32 i = 0; i < c->n_items; i++) {
        const ConvertItem *w = n ? &c->items[n - 1] : NULL;
        bool keep = c->items[i].form != FORM_SCALE ||
                    (w && quant_is_ternary(w->type) && w->type != DLM_I2_S && !c->o->block_scale &&
                     (w->form == FORM_ONLINE || f16_to_f32(f32_to_f16(w->scale)) != w->scale));
        if (keep) c->items[n++] = c->items[i];
    }
    c->n_items = n;
}

static bool convert_choose_all_(Convert *c, Err *e) {
    u64 told[64] = {0}, weights[64] = {0};
    for (u32 i = 0; i < c->n_items; i++) {
        ConvertItem *it = &c->items[i];
        bool chosen = it->role != ROLE_VECTOR && it->form != FORM_RAW;
        if (chosen && !convert_choose_(c, it, told, e)) return false;
        if (it->role == ROLE_LINEAR) weights[it->type & 63] += (u64)(it->n_in * it->n_out);
        c->total += it->form == FORM_MADE || it->form == FORM_SCALE ? 0 : it->src_bytes;
    }
    for (u32 t = 0; t < 64; t++)
        if (weights[t] > weights[c->main_type & 63]) c->main_type = (DlmType)t;
    convert_settle_scales_(c);
    return true;
}

/* ---- ternary weights: what scale, which codes ---- */

#define CONVERT_BINS 32768 /* magnitudes of a 16-bit float */

typedef struct ConvertJob_ {
    Convert *c;
    ConvertItem *it;
    i64 row0;        /* the first row of the chunk */
    u64 row_bytes;   /* of the output */
    f32 block_scale; /* of ternary types */
    f64 *row_sum;    /* [n_out] of |W|, or NULL */
    struct {
        _Alignas(64) u64 counts[4];
        const char *wrong; /* NULL: all is well */
        i64 wrong_row;
        f32 least, most; /* magnitudes above zero */
    } thread[POOL_THREADS_MAX];
} ConvertJob_;

/* The row of the input that becomes row `row` of the output. Rotation turns the two halves of a head; where
 * GGUF wants neighbours turned instead, the halves are interleaved. */
static i64 convert_source_row_(const ConvertItem *it, i64 row) {
    if (!it->n_permute) return row;
    i64 head = it->n_out > 1 ? it->n_out / it->n_permute : it->n_in / it->n_permute, j = row % head;
    return row - j + j % 2 * (head / 2) + j / 2;
}

static void convert_histogram_rows_(void *arg, i32 begin, i32 end, i32 thread) {
    ConvertJob_ *job = arg;
    i64 n = job->it->n_in;
    const u8 *p = job->it->src + (i64)begin * n * 2;
    /* Two tables, so that a run of equal weights does not wait for its own last count. */
    u32 *a = job->c->histogram + (i64)thread * 2 * CONVERT_BINS, *b = a + CONVERT_BINS;
    i64 total = (i64)(end - begin) * n, i = 0;
    for (; i + 4 <= total; i += 4) {
        u64 four = load_u64(p + 2 * i);
        a[four & 0x7fff]++, b[four >> 16 & 0x7fff]++;
        a[four >> 32 & 0x7fff]++, b[four >> 48 & 0x7fff]++;
    }
    for (; i < total; i++) a[load_u16(p + 2 * i) & 0x7fff]++;
}

static void convert_sum_rows_(void *arg, i32 begin, i32 end, i32 thread) {
    ConvertJob_ *job = arg;
    i64 n = job->it->n_in;
    f32 least = job->thread[thread].least, most = job->thread[thread].most;
    for (i32 row = begin; row < end; row++) {
        f64 sum = 0;
        for (i64 i = 0; i < n; i++) {
            f32 v = f32_abs_(load_f32(job->it->src + 4 * ((i64)row * n + i)));
            sum += (f64)v;
            if (v > most) most = v;
            if (v != 0 && (least == 0 || v < least)) least = v;
        }
        job->row_sum[row] = sum;
    }
    job->thread[thread].least = least, job->thread[thread].most = most;
}

static bool convert_not_exact_(const ConvertItem *it, Err *e) {
    return err_set(
        e, ERR_MODEL,
        "%s: tensor %.*s begins with three values and goes on with others; it is not ternary",
        it->file, STR_ARG(it->from));
}

static bool convert_not_finite_(const ConvertItem *it, Err *e) {
    return err_set(e, ERR_MODEL, "%s: tensor %.*s holds a weight that is NaN or infinite", it->file,
                   STR_ARG(it->from));
}

/* t = round half to even (W / m): above a half of m it is 1, at a half and below it is 0. */
static u8 convert_code_(f32 w, f32 m) {
    f32 t = w / m;
    return (u8)(1 + (t > 0.5f) - (t < -0.5f));
}

static f32 convert_value_of_(DlmType type, u32 bits) {
    return type == DLM_F16 ? f16_to_f32((u16)bits) : bf16_to_f32((u16)bits);
}

/* The scale of a tensor of 16-bit weights from how often each magnitude occurs: exact, and the same for any
 * number of threads. Then a table from the bits of a weight to its code. */
static bool convert_scale_16_(Convert *c, ConvertItem *it, ConvertJob_ *job, Err *e) {
    u64 n_tables = 2 * (u64)pool_threads(c->pool), n_kinds = 0;
    f64 sum = 0, squares = 0, rest = 0;
    f32 only = 0;
    memset(c->histogram, 0, n_tables * CONVERT_BINS * sizeof *c->histogram);
    pool_for(c->pool, (i32)it->n_out, (i32)MAX_OF(1, 65536 / it->n_in), convert_histogram_rows_,
             job);
    for (u32 bin = 0; bin < CONVERT_BINS; bin++) {
        c->bins[bin] = 0;
        for (u64 t = 0; t < n_tables; t++) c->bins[bin] += c->histogram[t * CONVERT_BINS + bin];
        f32 v = convert_value_of_(it->src_type, bin);
        f64 n = (f64)c->bins[bin];
        if (n == 0) continue;
        if (!(v < 3.4e38f)) return convert_not_finite_(it, e);
        sum += (f64)v * n, squares += (f64)v * (f64)v * n;
        if (v != 0) only = v, n_kinds++;
    }
    it->scale = n_kinds == 1 ? only : MAX_OF((f32)(sum / (f64)(it->n_in * it->n_out)), 1e-5f);
    for (u32 bits = 0; bits < 2 * CONVERT_BINS; bits++) {
        f32 v = convert_value_of_(it->src_type, bits);
        c->code_of[bits] = convert_code_(v, it->scale);
        f64 left = (f64)v - ((f64)c->code_of[bits] - 1) * (f64)it->scale;
        if (bits < CONVERT_BINS && c->bins[bits]) rest += left * left * (f64)c->bins[bits];
    }
    it->error = squares > 0 ? rest / squares : 0;
    return it->exact ? n_kinds <= 1 || convert_not_exact_(it, e) : true;
}

/* The same of 32-bit weights: sums of rows, added in the order of the rows. */
static bool convert_scale_32_(Convert *c, ConvertItem *it, ConvertJob_ *job, Err *e) {
    f64 sum = 0;
    f32 least = 0, most = 0;
    job->row_sum = mem_alloc_n((u64)it->n_out, sizeof *job->row_sum, e);
    if (!job->row_sum) return false;
    pool_for(c->pool, (i32)it->n_out, (i32)MAX_OF(1, 65536 / it->n_in), convert_sum_rows_, job);
    for (i64 row = 0; row < it->n_out; row++) sum += job->row_sum[row];
    mem_free(job->row_sum);
    if (!(sum < 1e300)) return convert_not_finite_(it, e);
    for (i32 t = 0; t < pool_threads(c->pool); t++) {
        f32 l = job->thread[t].least;
        most = MAX_OF(most, job->thread[t].most);
        if (l != 0 && (least == 0 || l < least)) least = l;
    }
    it->scale =
        least == most && most > 0 ? most : MAX_OF((f32)(sum / (f64)(it->n_in * it->n_out)), 1e-5f);
    return !it->exact || least == most || convert_not_exact_(it, e);
}

/* ---- rows of the output ---- */

static void convert_codes_row_(const ConvertJob_ *job, i64 row, f32 *values, u8 *codes) {
    const ConvertItem *it = job->it;
    i64 n = it->n_in, from = convert_source_row_(it, row), quarter = it->n_out / 4;
    const u8 *p = it->src;
    if (it->form == FORM_PACKED) {
        p += from % quarter * n;
        for (i64 i = 0; i < n; i++) codes[i] = p[i] >> 2 * (from / quarter) & 3;
    } else if (it->form == FORM_CODES) {
        DlmTensor t = convert_tensor_(it);
        quant_codes_row(&t, from, codes, values);
        i64 block = quant_scale_block(&t);
        for (i64 b = 0; b < n / block; b++)
            if (values[b] == 0) memset(codes + b * block, 1, (size_t)block);
    } else if (it->src_type == DLM_F32) {
        p += 4 * from * n;
        for (i64 i = 0; i < n; i++) codes[i] = convert_code_(load_f32(p + 4 * i), it->scale);
    } else {
        p += 2 * from * n;
        for (i64 i = 0; i < n; i++) codes[i] = job->c->code_of[load_u16(p + 2 * i)];
    }
}

/* How often each code occurs, eight at a time: in a sum of up to 255 words no byte overflows. */
static void convert_count_(const u8 *codes, i64 n, u64 counts[4]) {
    const u64 ones = 0x0101010101010101u, pairs = 0x00ff00ff00ff00ffu;
    i64 i = 0;
    while (n - i >= 8) {
        u64 low = 0, high = 0, both = 0, sums[3];
        for (i64 end = MIN_OF(i + 8 * 255, i + (n - i) / 8 * 8); i < end; i += 8) {
            u64 x = load_u64(codes + i), h = x >> 1 & ones;
            low += x & ones, high += h, both += x & h;
        }
        const u64 words[3] = {low, high, both};
        for (int k = 0; k < 3; k++)
            sums[k] = ((words[k] & pairs) + (words[k] >> 8 & pairs)) * 0x0001000100010001u >> 48;
        counts[1] += sums[0] - sums[2], counts[2] += sums[1] - sums[2], counts[3] += sums[2];
    }
    for (; i < n; i++) counts[codes[i]] += codes[i] != 0;
}

static void convert_wrong_(ConvertJob_ *job, i32 thread, i64 row, const char *wrong) {
    if (!job->thread[thread].wrong || row < job->thread[thread].wrong_row)
        job->thread[thread].wrong = wrong, job->thread[thread].wrong_row = row;
}

static void convert_ternary_row_(ConvertJob_ *job, i64 row, i32 thread, f32 *values, u8 *codes,
                                 u8 *dst) {
    const ConvertItem *it = job->it;
    const char *wrong = NULL;
    convert_codes_row_(job, row, values, codes);
    convert_count_(codes, it->n_in, job->thread[thread].counts);
    if (it->type == DLM_I2_S) {
        quant_i2s_codes(codes, it->n_in, dst);
        return;
    }
    const f32 value[4] = {-job->block_scale, 0, job->block_scale, 0};
    for (i64 i = 0; i < it->n_in; i++) values[i] = value[codes[i] & 3];
    wrong = quant_row(it->type, values, it->n_in, dst);
    if (wrong) convert_wrong_(job, thread, row, wrong);
}

/* Rows [begin, end) of the chunk. */
static void convert_rows_(void *arg, i32 begin, i32 end, i32 thread) {
    ConvertJob_ *job = arg;
    const ConvertItem *it = job->it;
    f32 *values = job->c->values + thread * job->c->n_in_max;
    u8 *codes = job->c->codes + thread * job->c->n_in_max;
    for (i64 row = job->row0 + begin; row < job->row0 + end; row++) {
        u8 *dst = job->c->chunk + (u64)(row - job->row0) * job->row_bytes;
        if (convert_is_ternary_(it)) {
            convert_ternary_row_(job, row, thread, values, codes, dst);
            continue;
        }
        u64 src_row = it->src_bytes / (u64)it->n_out;
        if (it->n_out == 1 && it->n_permute) /* a bias goes with its rows */
            for (i64 i = 0; i < it->n_in; i++)
                quant_values(it->src_type,
                             it->src + src_row / (u64)it->n_in * (u64)convert_source_row_(it, i), 1,
                             values + i);
        else
            quant_values(it->src_type, it->src + src_row * (u64)convert_source_row_(it, row),
                         it->n_in, values);
        const char *wrong = quant_row(it->type, values, it->n_in, dst);
        if (wrong) convert_wrong_(job, thread, row, wrong);
    }
}

/* ---- writing ---- */

static bool convert_write_(Convert *c, const void *p, u64 n, Err *e) {
    Err why = {0};
    if (os_write_all(c->out.fd, p, n, &why)) {
        c->n_out += n;
        return true;
    }
    return err_set(e, ERR_RUNTIME, "%s: %s after %llu bytes", c->o->to,
                   why.msg[0] ? why.msg : "cannot write", (unsigned long long)c->n_out);
}

static bool convert_progress_(Convert *c, u64 n, Err *e) {
    c->done += n;
    if (c->events->on_progress) c->events->on_progress(c->events->arg, c->done, c->total);
    if (c->events->on_cancelled && c->events->on_cancelled(c->events->arg))
        return err_set(e, ERR_INTERRUPTED, "interrupted");
    return true;
}

static bool convert_write_raw_(Convert *c, const ConvertItem *it, Err *e) {
    for (u64 at = 0, n; at < it->src_bytes; at += n) {
        n = MIN_OF(it->src_bytes - at, CONVERT_CHUNK);
        if (!convert_write_(c, it->src + at, n, e) || !convert_progress_(c, n, e)) return false;
        os_forget(it->src + at, n);
    }
    return true;
}

static bool convert_check_rows_(const ConvertJob_ *job, Err *e) {
    const char *wrong = NULL;
    i64 row = 0;
    u64 threes = 0;
    for (i32 t = 0; t < pool_threads(job->c->pool); t++) {
        threes += job->thread[t].counts[3];
        if (!job->thread[t].wrong || (wrong && job->thread[t].wrong_row > row)) continue;
        wrong = job->thread[t].wrong, row = job->thread[t].wrong_row;
    }
    if (wrong)
        return err_set(e, ERR_MODEL, "%s: tensor %.*s, row %lld: %s", job->it->file,
                       STR_ARG(job->it->from), (long long)row, wrong);
    return threes == 0 || err_set(e, ERR_MODEL, "%s: tensor %.*s has codes that are not ternary",
                                  job->it->file, STR_ARG(job->it->from));
}

/* One tensor, a chunk of rows at a time. */
static bool convert_write_rows_(Convert *c, ConvertItem *it, ConvertJob_ *job, Err *e) {
    bool i2s = it->type == DLM_I2_S;
    u64 src_row = it->src_bytes / (u64)it->n_out;
    job->row_bytes = i2s ? (u64)it->n_in / 4 : quant_row_bytes(it->type, it->n_in);
    i64 rows = (i64)MAX_OF(c->chunk_bytes / job->row_bytes, 1);
    i32 grain = (i32)MAX_OF(1, 16384 / it->n_in);
    for (job->row0 = 0; job->row0 < it->n_out; job->row0 += rows) {
        i64 n = MIN_OF(rows, it->n_out - job->row0);
        pool_for(c->pool, (i32)n, grain, convert_rows_, job);
        if (!convert_check_rows_(job, e) ||
            !convert_write_(c, c->chunk, (u64)n * job->row_bytes, e))
            return false;
        if (!it->n_permute && it->form != FORM_PACKED && it->form != FORM_MADE)
            os_forget(it->src + (u64)job->row0 * src_row, (u64)n * src_row);
        if (!convert_progress_(c, it->form == FORM_MADE ? 0 : (u64)n * src_row, e)) return false;
    }
    for (i32 t = 0; t < pool_threads(c->pool); t++)
        for (int k = 0; k < 4; k++) it->counts[k] += job->thread[t].counts[k];
    it->counts[0] = (u64)(it->n_in * it->n_out) - it->counts[1] - it->counts[2];
    u8 tail[DLM_I2S_TAIL];
    quant_i2s_tail(it->scale, tail);
    return !i2s || convert_write_(c, tail, sizeof tail, e);
}

static bool convert_write_item_(Convert *c, u32 index, Err *e) {
    ConvertItem *it = &c->items[index];
    if (it->form == FORM_RAW) return convert_write_raw_(c, it, e);
    if (it->form == FORM_SCALE) return convert_write_(c, &it[-1].scale, sizeof(f32), e);
    ConvertJob_ *job = c->job;
    memset(job, 0, sizeof *job);
    job->c = c;
    job->it = it;
    bool wide = it->src_type == DLM_F32;
    if (it->form == FORM_ONLINE &&
        !(wide ? convert_scale_32_(c, it, job, e) : convert_scale_16_(c, it, job, e)))
        return false;
    bool beside = index + 1 < c->n_items && it[1].form == FORM_SCALE;
    job->block_scale = beside                       ? 1
                       : quant_is_ternary(it->type) ? f16_to_f32(f32_to_f16(it->scale))
                                                    : it->scale;
    bool ok = convert_write_rows_(c, it, job, e);
    if (it->form != FORM_MADE) os_forget(it->src, it->src_bytes);
    return ok;
}

static bool convert_write_all_(Convert *c, Err *e) {
    static const u8 zeros[GGUF_ALIGN_DEFAULT] = {0};
    Buf head = {.max = (size_t)1 << 30};
    bool ok = gguf_writer_head(&c->writer, &head) && convert_write_(c, head.p, head.n, e);
    buf_free(&head);
    for (u32 i = 0; ok && i < c->n_items; i++)
        ok = convert_write_item_(c, i, e) && convert_write_(c, zeros, gguf_padding(c->n_out), e);
    return ok;
}

static bool convert_take_memory_(Convert *c, Err *e) {
    u64 threads = (u64)pool_threads(c->pool);
    c->chunk_bytes = CONVERT_CHUNK;
    for (u32 i = 0; i < c->n_items; i++) {
        const ConvertItem *it = &c->items[i];
        if (it->form == FORM_RAW) continue;
        c->n_in_max = MAX_OF(c->n_in_max, it->n_in);
    }
    c->n_in_max = (c->n_in_max + 63) / 64 * 64;
    c->chunk_bytes = MAX_OF(c->chunk_bytes, 4 * (u64)c->n_in_max);
    c->chunk = mem_alloc(c->chunk_bytes, e);
    c->values = mem_alloc_n(threads * (u64)c->n_in_max, sizeof *c->values, e);
    c->codes = mem_alloc_n(threads, (u64)c->n_in_max, e);
    c->histogram = mem_alloc_n(threads * 2 * CONVERT_BINS, sizeof *c->histogram, e);
    c->bins = mem_alloc_n(CONVERT_BINS, sizeof *c->bins, e);
    c->code_of = mem_alloc(2 * CONVERT_BINS, e);
    c->job = mem_alloc(sizeof(ConvertJob_), e);
    return c->chunk && c->values && c->codes && c->histogram && c->bins && c->code_of && c->job;
}

/* ---- keys ---- */

static void convert_put_tensors_(Convert *c) {
    for (u32 i = 0; i < c->n_items; i++)
        gguf_put_tensor(&c->writer, str_of(c->items[i].name), c->items[i].type, c->items[i].n_dims,
                        c->items[i].ne);
}

static void convert_put_gguf_keys_(Convert *c) {
    for (u32 i = 0; i < c->gguf.n_kv; i++) {
        const GgufKv *kv = &c->gguf.kv[i];
        if (!str_eq(kv->key, STR("general.file_type"))) gguf_put_raw_kv(&c->writer, kv);
    }
}

/* The last part of a path. */
static Str convert_base_name_(const char *path) {
    Str s = str_of(path);
    while (s.n > 1 && s.p[s.n - 1] == '/') s.n--;
    for (size_t i = s.n; i-- > 0;)
        if (s.p[i] == '/') return str_cut(s, i + 1, s.n);
    return s;
}

static bool convert_put_keys_(Convert *c, Err *e) {
    if (c->has_hf) {
        if (!hf_put_keys(&c->hf, &c->writer, convert_base_name_(c->o->from), e)) return false;
        if (c->vocab.mask >= 0) {
            DecodeRecord d = hf_decode(&c->hf, &c->o->decode);
            hf_put_decode(&d, &c->writer);
        }
        vocab_put_keys(&c->vocab, &c->writer);
    } else {
        convert_put_gguf_keys_(c);
    }
    gguf_put_u32(&c->writer, "general.file_type", convert_file_type_(c->main_type));
    convert_put_tensors_(c);
    return true;
}

/* ---- what is said ---- */

static u64 convert_count_form_(const Convert *c, ConvertForm form) {
    u64 n = 0;
    for (u32 i = 0; i < c->n_items; i++) n += c->items[i].form == form;
    return n;
}

static const ConvertItem *convert_first_(const Convert *c, ConvertRole role) {
    for (u32 i = 0; i < c->n_items; i++)
        if (c->items[i].role == role) return &c->items[i];
    return NULL;
}

static void convert_say_plan_(Convert *c) {
    const ConvertItem *embed = convert_first_(c, ROLE_EMBED), *out = convert_first_(c, ROLE_OUTPUT),
                      *linear = convert_first_(c, ROLE_LINEAR);
    u64 packed = convert_count_form_(c, FORM_PACKED), online = convert_count_form_(c, FORM_ONLINE);
    if (c->has_hf) {
        convert_say_(c, false, "%s: %s, %lld layers; tokenizer %s", c->hf.class->name,
                     c->hf.family->arch, (long long)c->hf.n_layer,
                     c->vocab.spm_style ? "llama (SentencePiece)" : c->vocab.pre_name);
        if (c->vocab.mask >= 0) {
            DecodeRecord d = hf_decode(&c->hf, &c->o->decode);
            convert_say_(
                c, false,
                "mask token %d '%.*s'; blocks of %d, parts of %d, %s attention, threshold %g",
                c->vocab.mask, STR_ARG(c->vocab.text[c->vocab.mask]), d.block_size,
                d.sub_block_size, MODEL_ATTENTION_NAMES[d.attention], (f64)d.threshold);
        } else {
            convert_say_(c, true, "no mask token: the model writes one token at a time");
        }
    }
    if (packed)
        convert_say_(c, false, "%llu ternary matrices, packed; weight_scale %s",
                     (unsigned long long)packed,
                     c->hf.divides ? "divides (bitlinear)" : "multiplies (autobitlinear)");
    if (online)
        convert_say_(c, false, "%llu matrices are made ternary: round(W / mean |W|), one mean each",
                     (unsigned long long)online);
    if (linear)
        convert_say_(c, false, "linear weights %s, embedding %s, output %s",
                     convert_type_name_(c->main_type),
                     embed ? convert_type_name_(embed->type) : "none",
                     out ? convert_type_name_(out->type) : "tied to it");
    if (online + packed && linear && !quant_is_ternary(c->main_type))
        convert_say_(
            c, true,
            "in %s the weights keep their three values, but activations are no longer rounded to "
            "8 bits, as the model was trained with: expect other answers",
            convert_type_name_(c->main_type));
}

/* Shares that no trained ternary model has are worth a warning. */
static void convert_say_shares_(Convert *c) {
    for (u32 i = 0; i < c->n_items; i++) {
        const ConvertItem *it = &c->items[i];
        f64 n = (f64)(it->n_in * it->n_out);
        if (!convert_is_ternary_(it)) continue;
        f64 minus = 100 * (f64)it->counts[0] / n, zero = 100 * (f64)it->counts[1] / n,
            plus = 100 * (f64)it->counts[2] / n;
        const char *why = zero < 1    ? "no zeros: these are signs, not absmean's codes"
                          : zero > 80 ? "hardly anything but zeros: scaled by a maximum, not a mean"
                          : zero < 15 || zero > 60 || minus - plus > 10 || plus - minus > 10
                              ? "not what training with ternary weights gives"
                              : NULL;
        if (why)
            convert_say_(c, true, "%s: %.1f%% are -1, %.1f%% 0, %.1f%% +1: %s", it->name, minus,
                         zero, plus, why);
    }
}

/* ---- the whole way ---- */

static void convert_close_(Convert *c) {
    os_new_drop(&c->out);
    gguf_writer_close(&c->writer);
    for (u32 i = 0; i < c->n_items; i++)
        if (c->items[i].form == FORM_MADE) mem_free((void *)(uintptr_t)c->items[i].src);
    void *blocks[] = {c->items,     c->chunk, c->values,  c->codes,
                      c->histogram, c->bins,  c->code_of, c->job};
    for (size_t i = 0; i < COUNT_OF(blocks); i++) mem_free(blocks[i]);
    pool_close(c->pool);
    if (c->has_vocab) vocab_close(&c->vocab);
    if (c->has_hf) hf_close(&c->hf);
    for (u32 i = 0; i < c->n_shards; i++) {
        safet_close(&c->shards[i].dir);
        os_unmap(&c->shards[i].map);
        mem_free(c->shards[i].used);
    }
    mem_free(c->shards);
    gguf_close(&c->gguf);
    os_unmap(&c->map);
    mem_free(c);
}

static bool convert_open_(Convert *c, Err *e) {
    if (!os_is_folder(c->o->from)) {
        if (os_is_same_file(c->o->from, c->o->to))
            return err_set(e, ERR_USAGE, "'%s' is the input; name another file with -o", c->o->to);
        return os_map_file(&c->map, c->o->from, e) &&
               gguf_open(&c->gguf, c->map.p, c->map.n, c->o->from, e) && convert_plan_gguf_(c, e);
    }
    c->has_hf = hf_open(&c->hf, c->o->from, e);
    if (!c->has_hf) return false;
    c->has_vocab = vocab_open(&c->vocab, &c->hf, c->o->pre, c->o->decode.mask_id, e);
    return c->has_vocab && convert_open_shards_(c, e) && convert_plan_hf_(c, e);
}

static bool convert_all_(Convert *c, Err *e) {
    i32 threads = c->o->n_threads ? c->o->n_threads : os_cpu_count();
    gguf_writer_open(&c->writer, e);
    if (!convert_open_(c, e) || !convert_choose_all_(c, e) || !convert_put_keys_(c, e))
        return false;
    convert_say_plan_(c);
    if (!pool_open(&c->pool, threads, e) || !convert_take_memory_(c, e)) return false;
    if (!os_new_open(&c->out, c->o->to, e) || !convert_write_all_(c, e)) return false;
    convert_say_shares_(c);
    return os_new_finish(&c->out, e);
}

/* Converts o->from, a folder or a GGUF file, to the GGUF file o->to. */
static bool convert_run(const ConvertOptions *o, const ConvertEvents *events, Err *e) {
    Convert *c = mem_alloc(sizeof *c, e);
    if (!c) return false;
    c->o = o;
    c->events = events;
    c->out.fd = -1;
    bool ok = convert_all_(c, e);
    convert_close_(c);
    return ok;
}

#endif

/* safet.c - the directory of a safetensors file, read in place.
 *
 * Owns:      the directory; names and data are views of the caller's bytes or of the parsed header.
 * Stands on: base mem json
 * Promises:  after a successful open every tensor's bytes lie inside the file, as many as its type and
 *            shape say, and apart from every other tensor's; the first error names the file, the tensor
 *            and the place. */
#ifndef DLM_SAFET_C
#define DLM_SAFET_C

#include "base.c"
#include "json.c"
#include "mem.c"

#define SAFET_HEADER_MAX ((u64)100 << 20) /* bytes; the format's own limit */
#define SAFET_TENSORS_MAX 65536u
#define SAFET_NAME_MAX 255u /* bytes */
#define SAFET_DIMS_MAX 4u
#define SAFET_NODES_MAX ((u32)1 << 21)

typedef enum { SAFET_F32, SAFET_F16, SAFET_BF16, SAFET_U8, SAFET_OTHER } SafetType;

/* Every type of the format. Those that no weight of dlm's comes in are only measured. */
static const struct {
    const char *name;
    SafetType type;
    u32 bits;
} SAFET_TYPES[] = {
    {"F32", SAFET_F32, 32},      {"F16", SAFET_F16, 16},      {"BF16", SAFET_BF16, 16},
    {"U8", SAFET_U8, 8},         {"BOOL", SAFET_OTHER, 8},    {"I8", SAFET_OTHER, 8},
    {"I16", SAFET_OTHER, 16},    {"U16", SAFET_OTHER, 16},    {"I32", SAFET_OTHER, 32},
    {"U32", SAFET_OTHER, 32},    {"I64", SAFET_OTHER, 64},    {"U64", SAFET_OTHER, 64},
    {"F64", SAFET_OTHER, 64},    {"C64", SAFET_OTHER, 64},    {"F8_E4M3", SAFET_OTHER, 8},
    {"F8_E5M2", SAFET_OTHER, 8}, {"F8_E8M0", SAFET_OTHER, 8}, {"F6_E2M3", SAFET_OTHER, 6},
    {"F6_E3M2", SAFET_OTHER, 6}, {"F4", SAFET_OTHER, 4},
};

typedef struct {
    Str name;
    SafetType type;
    const char *type_name;
    u32 n_dims;
    u64 shape[SAFET_DIMS_MAX]; /* the last is contiguous, as the file has it; 1 beyond n_dims */
    u64 offset, n_bytes;       /* of the file */
    const u8 *data;            /* [n_bytes], unaligned */
} SafetTensor;

typedef struct {
    const char *label; /* the file's name, for messages */
    const u8 *p;       /* [n] */
    u64 n;
    u64 data_start;
    JsonDoc header;
    SafetTensor *tensors; /* [n_tensors] by name */
    u32 n_tensors;
} Safet;

static bool safet_fail_(const Safet *s, Str tensor, const char *what, Err *e) {
    return err_set(e, ERR_MODEL, "%s: tensor %.*s %s", s->label, STR_ARG(tensor), what);
}

/* The length, then that many bytes of JSON. */
static bool safet_read_header_(Safet *s, Err *e) {
    if (str_starts((Str){(const char *)s->p, MIN_OF(s->n, 64)}, STR("version https://git-lfs")))
        return err_set(
            e, ERR_MODEL,
            "%s: this is a Git LFS pointer, not the weights; fetch them with `git lfs pull`",
            s->label);
    u64 n = s->n >= 8 ? load_u64(s->p) : 0;
    if (s->n < 8 || n > s->n - 8 || n > SAFET_HEADER_MAX || n < 2)
        return err_set(
            e, ERR_MODEL,
            "%s: its first 8 bytes promise a header of %llu bytes, but the file has %llu; it "
            "is truncated or no safetensors file",
            s->label, (unsigned long long)n, (unsigned long long)s->n);
    s->data_start = 8 + n;
    s->header.nodes_max = SAFET_NODES_MAX;
    Err why = {0};
    if (json_parse(&s->header, (Str){(const char *)s->p + 8, n}, &why)) {
        if (json_type(&s->header, 0) == JSON_OBJECT) return true;
        return err_set(e, ERR_MODEL, "%s: its header is no JSON object", s->label);
    }
    return err_set(e, why.code == ERR_MEMORY ? ERR_MEMORY : ERR_MODEL,
                   "%s: its header cannot be read: %s", s->label, why.msg);
}

/* Two bytes of the data, [begin, end), from the first byte after the header. */
static bool safet_read_extent_(const Safet *s, SafetTensor *t, u32 node, Err *e) {
    const JsonDoc *d = &s->header;
    i64 begin = -1, end = -1;
    u32 first = json_first(d, node);
    if (json_type(d, node) != JSON_ARRAY || json_count(d, node) != 2 ||
        !json_i64(d, first, &begin) || !json_i64(d, json_next(d, first), &end) || begin < 0 ||
        end < begin)
        return safet_fail_(s, t->name, "has data_offsets that are not [begin, end]", e);
    u64 left = s->n - s->data_start;
    if ((u64)end > left)
        return err_set(e, ERR_MODEL,
                       "%s: tensor %.*s ends at byte %lld of the data, which has %llu; the file is "
                       "truncated: download it again",
                       s->label, STR_ARG(t->name), (long long)end, (unsigned long long)left);
    t->offset = s->data_start + (u64)begin;
    t->n_bytes = (u64)(end - begin);
    t->data = s->p + t->offset;
    return true;
}

static bool safet_read_shape_(const Safet *s, SafetTensor *t, u32 node, u32 bits, Err *e) {
    const JsonDoc *d = &s->header;
    u64 n = bits;
    t->n_dims = json_count(d, node);
    if (json_type(d, node) != JSON_ARRAY || t->n_dims > SAFET_DIMS_MAX)
        return safet_fail_(s, t->name, "has a shape that is not a list of at most 4 numbers", e);
    for (u32 i = 0; i < SAFET_DIMS_MAX; i++) t->shape[i] = 1;
    u32 at = json_first(d, node);
    for (u32 i = 0; i < t->n_dims; i++, at = json_next(d, at)) {
        i64 v = -1;
        if (!json_i64(d, at, &v) || v < 0 || !mul_ok(n, (u64)v, &n))
            return safet_fail_(s, t->name, "has a shape that is no shape", e);
        t->shape[i] = (u64)v;
    }
    if (n % 8 == 0 && n / 8 == t->n_bytes) return true;
    return err_set(e, ERR_MODEL,
                   "%s: tensor %.*s has %llu bytes, but its shape and type %s want %llu", s->label,
                   STR_ARG(t->name), (unsigned long long)t->n_bytes, t->type_name,
                   (unsigned long long)(n / 8));
}

static bool safet_read_tensor_(const Safet *s, SafetTensor *t, Str name, u32 node, Err *e) {
    const JsonDoc *d = &s->header;
    Str type = {0};
    *t = (SafetTensor){.name = name};
    if (name.n == 0 || name.n > SAFET_NAME_MAX)
        return safet_fail_(s, name, "has an empty name, or one of more than 255 bytes", e);
    if (!json_str(d, json_get(d, node, "dtype"), &type))
        return safet_fail_(s, name, "has no dtype", e);
    for (size_t i = 0; i < COUNT_OF(SAFET_TYPES); i++) {
        if (!str_eq(type, str_of(SAFET_TYPES[i].name))) continue;
        t->type = SAFET_TYPES[i].type;
        t->type_name = SAFET_TYPES[i].name;
        return safet_read_extent_(s, t, json_get(d, node, "data_offsets"), e) &&
               safet_read_shape_(s, t, json_get(d, node, "shape"), SAFET_TYPES[i].bits, e);
    }
    return err_set(e, ERR_MODEL, "%s: tensor %.*s has the unknown dtype '%.*s'", s->label,
                   STR_ARG(name), STR_ARG(type));
}

static int safet_by_name_(const void *a, const void *b) {
    Str x = ((const SafetTensor *)a)->name, y = ((const SafetTensor *)b)->name;
    int order = memcmp(x.p, y.p, MIN_OF(x.n, y.n));
    return order ? order : (x.n > y.n) - (x.n < y.n);
}

static int safet_by_offset_(const void *a, const void *b) {
    const SafetTensor *x = *(const SafetTensor *const *)a, *y = *(const SafetTensor *const *)b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes);
}

static bool safet_check_apart_(const Safet *s, Err *e) {
    const SafetTensor **order = mem_alloc_n(s->n_tensors, sizeof *order, e);
    if (!order) return false;
    for (u32 i = 0; i < s->n_tensors; i++) order[i] = &s->tensors[i];
    if (s->n_tensors) qsort(order, s->n_tensors, sizeof *order, safet_by_offset_);
    bool ok = true;
    for (u32 i = 1; ok && i < s->n_tensors; i++)
        if (order[i]->offset < order[i - 1]->offset + order[i - 1]->n_bytes)
            ok = err_set(e, ERR_MODEL, "%s: tensors %.*s and %.*s overlap at byte %llu", s->label,
                         STR_ARG(order[i - 1]->name), STR_ARG(order[i]->name),
                         (unsigned long long)order[i]->offset);
    mem_free(order);
    return ok;
}

static bool safet_read_(Safet *s, Err *e) {
    if (!safet_read_header_(s, e)) return false;
    const JsonDoc *d = &s->header;
    u32 n = json_count(d, 0);
    if (n > SAFET_TENSORS_MAX)
        return err_set(e, ERR_MODEL, "%s: its header has %u entries; dlm takes at most %u",
                       s->label, n, SAFET_TENSORS_MAX);
    s->tensors = mem_alloc_n(n, sizeof *s->tensors, e);
    if (!s->tensors) return false;
    for (u32 key = json_first(d, 0); n > 0; n--) {
        u32 value = json_next(d, key);
        Str name = d->nodes[key].text;
        if (!str_eq(name, STR("__metadata__")) &&
            !safet_read_tensor_(s, &s->tensors[s->n_tensors++], name, value, e))
            return false;
        key = json_next(d, value);
    }
    if (s->n_tensors) qsort(s->tensors, s->n_tensors, sizeof *s->tensors, safet_by_name_);
    return safet_check_apart_(s, e);
}

static void safet_close(Safet *s) {
    mem_free(s->tensors);
    json_free(&s->header);
    *s = (Safet){0};
}

/* Reads the directory of the file p[n]; `p` and `label` must outlive s. On failure s holds nothing. */
static bool safet_open(Safet *s, const u8 *p, u64 n, const char *label, Err *e) {
    *s = (Safet){.label = label, .p = p, .n = n};
    if (safet_read_(s, e)) return true;
    safet_close(s);
    return false;
}

static const SafetTensor *safet_find(const Safet *s, Str name) {
    const SafetTensor want = {.name = name};
    if (!s->n_tensors) return NULL;
    return bsearch(&want, s->tensors, s->n_tensors, sizeof *s->tensors, safet_by_name_);
}

#endif

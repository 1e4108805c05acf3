/* gguf.c - read a GGUF file (version 2 and 3) in place; write the directory of a new one.
 *
 * Owns:      the directory (keys, tensors, their hash index); the values stay in the caller's bytes.
 * Stands on: base mem dlm_kernels.h
 * Promises:  never reads outside [p, p+n); every size from the file passes one checked function; after a
 *            successful open every string, array and tensor extent lies inside the file and no two
 *            tensors overlap; the first error wins and names the key or tensor and its place. What the
 *            writer writes, the reader opens. */
#ifndef DLM_GGUF_C
#define DLM_GGUF_C

#include "../dlm_kernels.h"
#include "base.c"
#include "mem.c"

/* Published models stay far below all of these. The counts bound the work that a file whose names all
 * collide in the hash index can cause. */
#define GGUF_KV_MAX 16384u
#define GGUF_TENSORS_MAX 16384u
#define GGUF_KEY_MAX 65535u            /* bytes; the format's own limit */
#define GGUF_NAME_MAX 255u             /* bytes of a tensor name */
#define GGUF_STRING_MAX ((u64)1 << 20) /* bytes of a string value */
#define GGUF_ELEM_MAX ((u64)64 << 10)  /* bytes of a string in an array: token texts, merges */
#define GGUF_ARRAY_MAX ((u64)1 << 28)  /* elements */
#define GGUF_DIMS_MAX 4u
#define GGUF_NE_MAX ((u64)INT32_MAX) /* one dimension; the engine counts rows and columns in i32 */
#define GGUF_ALIGN_DEFAULT 32u
#define GGUF_ALIGN_MIN 8u /* the format wants a multiple of 8; floats are read in place */
#define GGUF_ALIGN_MAX 65536u

/* The least that a key with its value, or a tensor's record, can take: counts are checked against the
 * bytes left. */
#define GGUF_KV_BYTES_MIN (8 + 1 + 4 + 1)
#define GGUF_TENSOR_BYTES_MIN (8 + 1 + 4 + 8 + 4 + 8)

/* clang-format off */
typedef enum {
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32,
    GGUF_BOOL, GGUF_STRING, GGUF_ARRAY, GGUF_U64, GGUF_I64, GGUF_F64
} GgufValueType;
/* clang-format on */

static const struct {
    const char *name;
    u32 size; /* bytes; 0: variable */
} GGUF_VALUES_[] = {
    [GGUF_U8] = {"u8", 1},       [GGUF_I8] = {"i8", 1},     [GGUF_U16] = {"u16", 2},
    [GGUF_I16] = {"i16", 2},     [GGUF_U32] = {"u32", 4},   [GGUF_I32] = {"i32", 4},
    [GGUF_F32] = {"f32", 4},     [GGUF_BOOL] = {"bool", 1}, [GGUF_STRING] = {"string", 0},
    [GGUF_ARRAY] = {"array", 0}, [GGUF_U64] = {"u64", 8},   [GGUF_I64] = {"i64", 8},
    [GGUF_F64] = {"f64", 8},
};

/* A key and its value. `key` comes first: the hash index reads it through the directory's stride. */
typedef struct {
    Str key;
    GgufValueType type, elem; /* elem: the elements' type of an array, else type */
    u64 count;                /* elements of an array, else 1 */
    const u8 *data;           /* unaligned; a string's bytes without its length */
    u64 n_bytes;
} GgufKv;

typedef struct {
    Str name; /* first, as in GgufKv */
    DlmType type;
    u32 n_dims;
    u64 ne[4];  /* ne[0] is contiguous; 1 beyond n_dims */
    u64 offset; /* bytes from the beginning of the file */
    u64 n_bytes;
    const u8 *data; /* [n_bytes] */
} GgufTensor;

/* Open addressing over the Str that begins each record. */
typedef struct {
    u32 *slots; /* [mask + 1]: record number + 1, 0 for empty */
    u32 mask;
    const void *records;
    size_t stride; /* bytes */
} GgufIndex;

typedef struct {
    const char *label; /* the file's name, for messages */
    const u8 *p;       /* [n] */
    u64 n;
    u32 version;
    u64 alignment;
    u64 data_start; /* where tensor data begins */
    GgufKv *kv;
    u32 n_kv;
    GgufTensor *tensors;
    u32 n_tensors;
    GgufIndex kv_index_, tensor_index_;
} Gguf;

/* ---- tensor types and sizes ---- */

/* clang-format off */
static const char *const GGUF_TYPE_NAMES_[] = {
    "F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1",
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S",
    "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32", "I64", "F64", "IQ1_M",
    "BF16", "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "TQ1_0", "TQ2_0", "I2_S",
    "I8_S (or IQ4_NL_4_8)", "TL1", "MXFP4", "NVFP4", "Q1_0", "Q2_0",
};
/* clang-format on */

/* The name of a ggml type id, readable here or not, or of a DlmType. */
static const char *gguf_type_name(u32 id) {
    if (id == DLM_TL2) return "TL2";
    return id < COUNT_OF(GGUF_TYPE_NAMES_) ? GGUF_TYPE_NAMES_[id] : "unknown";
}

static const DlmTypeInfo *gguf_type_info_(u32 id) {
    for (size_t i = 0; i < COUNT_OF(DLM_TYPES); i++)
        if ((u32)DLM_TYPES[i].type == id) return &DLM_TYPES[i];
    return NULL;
}

/* BitNet.cpp's formula, in its order: 256 columns in pairs, the others in threes. */
static bool gguf_tl2_bytes_(const u64 ne[4], u64 *out) {
    u64 rows = 1, threes = 0, pairs = 0;
    for (int i = 1; i < 4; i++)
        if (!mul_ok(rows, ne[i], &rows)) return false;
    if (rows == 0 || ne[0] < 256 || ne[0] % 32 || !mul_ok(ne[0] - 256, rows, &threes) ||
        !mul_ok(threes / 3, 5, &threes) || !mul_ok(256, rows, &pairs) ||
        !mul_ok(pairs / 2, 4, &pairs))
        return false;
    u64 n = 0;
    return add_ok(threes / 8, pairs / 8, &n) && align_ok(n, 32, &n) && add_ok(n, DLM_I2S_TAIL, out);
}

/* THE size function: the bytes of a tensor. False for a type that dlm does not read, an empty
 * dimension, rows that are not whole blocks, and a product that does not fit. */
static bool gguf_tensor_bytes(DlmType type, const u64 ne[4], u64 *out) {
    const DlmTypeInfo *info = gguf_type_info_((u32)type);
    if (type == DLM_TL2) return gguf_tl2_bytes_(ne, out);
    if (!info || ne[0] % info->block) return false;
    u64 n = ne[0] / info->block;
    for (int i = 1; i < 4; i++)
        if (!mul_ok(n, ne[i], &n)) return false;
    if (n == 0 || !mul_ok(n, info->bytes, &n)) return false;
    if ((type == DLM_I2_S || type == DLM_TL1) && !add_ok(n, DLM_I2S_TAIL, &n)) return false;
    *out = n;
    return true;
}

/* ---- the sticky cursor: after a read past the end it stays failed and yields zeros ---- */

typedef struct {
    const u8 *p; /* [n] */
    u64 n, at;
    bool failed;
} GgufCursor_;

static const u8 *gguf_take_(GgufCursor_ *c, u64 n) {
    if (c->failed || n > c->n - c->at) {
        c->failed = true;
        return NULL;
    }
    c->at += n;
    return c->p + (c->at - n);
}

static u32 gguf_take_u32_(GgufCursor_ *c) {
    const u8 *p = gguf_take_(c, 4);
    return p ? load_u32(p) : 0;
}

static u64 gguf_take_u64_(GgufCursor_ *c) {
    const u8 *p = gguf_take_(c, 8);
    return p ? load_u64(p) : 0;
}

/* A length and that many bytes. A length above `max` fails too, so *too_long tells the two apart. */
static Str gguf_take_str_(GgufCursor_ *c, u64 max, bool *too_long) {
    u64 n = gguf_take_u64_(c);
    if (!c->failed && n > max) {
        *too_long = true;
        c->failed = true;
    }
    const u8 *p = gguf_take_(c, n);
    return p ? (Str){(const char *)p, (size_t)n} : (Str){"", 0};
}

/* ---- the hash index ---- */

static bool gguf_index_open_(GgufIndex *ix, const void *records, size_t stride, u32 n, Err *e) {
    u32 cap = 16;
    while (cap / 2 < n) cap *= 2; /* at most half full; n <= 16384 */
    ix->slots = mem_alloc_n(cap, sizeof *ix->slots, e);
    ix->mask = cap - 1;
    ix->records = records;
    ix->stride = stride;
    return ix->slots != NULL;
}

static const void *gguf_record_(const GgufIndex *ix, u32 i) {
    return (const u8 *)ix->records + i * ix->stride;
}

/* The slot that holds `name`, or the empty one where it belongs. */
static u32 *gguf_probe_(const GgufIndex *ix, Str name) {
    u32 at = (u32)str_hash(name) & ix->mask;
    while (ix->slots[at] && !str_eq(*(const Str *)gguf_record_(ix, ix->slots[at] - 1), name))
        at = (at + 1) & ix->mask;
    return &ix->slots[at];
}

static const void *gguf_lookup_(const GgufIndex *ix, Str name) {
    if (!ix->slots) return NULL;
    u32 slot = *gguf_probe_(ix, name);
    return slot ? gguf_record_(ix, slot - 1) : NULL;
}

/* Records number i under its name; false when the name is taken. */
static bool gguf_index_add_(GgufIndex *ix, Str name, u32 i) {
    u32 *slot = gguf_probe_(ix, name);
    if (*slot) return false;
    *slot = i + 1;
    return true;
}

static const GgufKv *gguf_find(const Gguf *g, Str key) {
    return gguf_lookup_(&g->kv_index_, key);
}

static const GgufTensor *gguf_tensor(const Gguf *g, Str name) {
    return gguf_lookup_(&g->tensor_index_, name);
}

/* ---- opening: header, keys, tensor records, extents ---- */

typedef unsigned long long Ull_; /* what %llu takes; u64 is a plain long here */

static bool gguf_check_magic_(const Gguf *g, Err *e) {
    Str head = {(const char *)g->p, (size_t)MIN_OF(g->n, 64)};
    if (str_starts(head, STR("GGUF"))) return true;
    if (str_starts(head, STR("version https://git-lfs")))
        return err_set(e, ERR_MODEL,
                       "%s: this is a Git LFS pointer, not the model; fetch it with `git lfs pull`",
                       g->label);
    if (g->n < 4)
        return err_set(e, ERR_MODEL,
                       "%s: %llu bytes are too few for a GGUF file; download it again", g->label,
                       (Ull_)g->n);
    return err_set(e, ERR_MODEL,
                   "%s: not a GGUF file: it begins with bytes %02x %02x %02x %02x, not \"GGUF\"",
                   g->label, g->p[0], g->p[1], g->p[2], g->p[3]);
}

static bool gguf_check_version_(const Gguf *g, Err *e) {
    u32 v = g->version;
    if (v == 2 || v == 3) return true;
    if (v == 1)
        return err_set(e, ERR_MODEL,
                       "%s: GGUF version 1 (2023) is not supported; convert the model again with a "
                       "current converter",
                       g->label);
    if (v != 0 && (v & 0xffffu) == 0)
        return err_set(e, ERR_MODEL,
                       "%s: this is a big-endian GGUF file; dlm reads little-endian ones: convert "
                       "the model again for little-endian",
                       g->label);
    return err_set(e, ERR_MODEL, "%s: GGUF version %u is not supported; dlm reads versions 2 and 3",
                   g->label, v);
}

static bool gguf_read_header_(Gguf *g, GgufCursor_ *c, Err *e) {
    if (!gguf_check_magic_(g, e)) return false;
    gguf_take_(c, 4);
    g->version = gguf_take_u32_(c);
    if (!c->failed && !gguf_check_version_(g, e)) return false;
    u64 n_tensors = gguf_take_u64_(c), n_kv = gguf_take_u64_(c);
    if (c->failed)
        return err_set(e, ERR_MODEL,
                       "%s: the file ends at byte %llu, inside its header; download it again",
                       g->label, (Ull_)g->n);
    u64 left = c->n - c->at;
    if (n_kv > GGUF_KV_MAX || n_kv > left / GGUF_KV_BYTES_MIN)
        return err_set(
            e, ERR_MODEL,
            "%s: the header (byte 16) claims %llu keys; %llu bytes follow and dlm takes at "
            "most %u keys",
            g->label, (Ull_)n_kv, (Ull_)left, GGUF_KV_MAX);
    if (n_tensors > GGUF_TENSORS_MAX || n_tensors > left / GGUF_TENSOR_BYTES_MIN)
        return err_set(
            e, ERR_MODEL,
            "%s: the header (byte 8) claims %llu tensors; %llu bytes follow and dlm takes "
            "at most %u tensors",
            g->label, (Ull_)n_tensors, (Ull_)left, GGUF_TENSORS_MAX);
    g->n_kv = (u32)n_kv;
    g->n_tensors = (u32)n_tensors;
    return true;
}

/* Names end in messages and in NUL-terminated copies: a control byte in one is damage or malice. */
static bool gguf_clean_name_(Str s) {
    for (size_t i = 0; i < s.n; i++)
        if ((u8)s.p[i] < 0x20 || s.p[i] == 0x7f) return false;
    return s.n > 0;
}

static bool gguf_bools_ok_(const u8 *p, u64 n) {
    for (u64 i = 0; i < n; i++)
        if (p[i] > 1) return false;
    return true;
}

/* Reads the value of a key whose type is known. NULL: read (the cursor may still have run off the end);
 * otherwise what is wrong. */
static const char *gguf_read_value_(GgufKv *kv, GgufCursor_ *c) {
    bool too_long = false;
    kv->elem = kv->type;
    kv->count = 1;
    if (kv->type == GGUF_STRING) {
        Str s = gguf_take_str_(c, GGUF_STRING_MAX, &too_long);
        kv->data = (const u8 *)s.p;
        kv->n_bytes = s.n;
        return too_long ? "a string longer than 1 MiB" : NULL;
    }
    if (kv->type == GGUF_ARRAY) {
        u32 elem = gguf_take_u32_(c);
        kv->count = gguf_take_u64_(c);
        if (c->failed) return NULL;
        if (elem == GGUF_ARRAY) return "an array of arrays, which dlm does not read";
        if (elem >= COUNT_OF(GGUF_VALUES_)) return "an array of an unknown element type";
        if (kv->count > GGUF_ARRAY_MAX) return "an array of more than 2^28 elements";
        kv->elem = (GgufValueType)elem;
    }
    u64 begin = c->at, n_bytes = 0;
    if (kv->elem == GGUF_STRING) {
        for (u64 i = 0; i < kv->count && !c->failed; i++)
            gguf_take_str_(c, GGUF_ELEM_MAX, &too_long);
        if (too_long) return "an array with a string longer than 64 KiB";
    } else {
        if (!mul_ok(kv->count, GGUF_VALUES_[kv->elem].size, &n_bytes))
            return "an array that is too large";
        gguf_take_(c, n_bytes);
    }
    if (c->failed) return NULL;
    kv->data = c->p + begin;
    kv->n_bytes = c->at - begin;
    if (kv->elem == GGUF_BOOL && !gguf_bools_ok_(kv->data, kv->count))
        return "a bool that is neither 0 nor 1";
    return NULL;
}

static bool gguf_read_kv_(Gguf *g, GgufCursor_ *c, u32 i, Err *e) {
    GgufKv *kv = &g->kv[i];
    u64 at = c->at;
    bool too_long = false;
    kv->key = gguf_take_str_(c, GGUF_KEY_MAX, &too_long);
    if (too_long)
        return err_set(e, ERR_MODEL, "%s: key %u of %u (byte %llu) is longer than %u bytes",
                       g->label, i + 1, g->n_kv, (Ull_)at, GGUF_KEY_MAX);
    if (!c->failed && !gguf_clean_name_(kv->key))
        return err_set(e, ERR_MODEL, "%s: key %u of %u (byte %llu) is empty or holds control bytes",
                       g->label, i + 1, g->n_kv, (Ull_)at);
    u32 type = gguf_take_u32_(c);
    if (!c->failed && type >= COUNT_OF(GGUF_VALUES_))
        return err_set(e, ERR_MODEL, "%s: key '%.*s' (byte %llu) has unknown value type %u",
                       g->label, STR_ARG(kv->key), (Ull_)at, type);
    kv->type = (GgufValueType)(c->failed ? 0 : type);
    const char *wrong = c->failed ? NULL : gguf_read_value_(kv, c);
    if (wrong)
        return err_set(e, ERR_MODEL, "%s: key '%.*s' (byte %llu) holds %s", g->label,
                       STR_ARG(kv->key), (Ull_)at, wrong);
    if (c->failed)
        return err_set(
            e, ERR_MODEL,
            "%s: the file ends at byte %llu, inside key %u of %u '%.*s' (byte %llu); it is "
            "truncated or damaged",
            g->label, (Ull_)g->n, i + 1, g->n_kv, STR_ARG(kv->key), (Ull_)at);
    if (!gguf_index_add_(&g->kv_index_, kv->key, i))
        return err_set(e, ERR_MODEL, "%s: key '%.*s' (byte %llu) appears twice", g->label,
                       STR_ARG(kv->key), (Ull_)at);
    return true;
}

static bool gguf_read_kvs_(Gguf *g, GgufCursor_ *c, Err *e) {
    g->kv = mem_alloc_n(g->n_kv, sizeof *g->kv, e);
    if (!g->kv || !gguf_index_open_(&g->kv_index_, g->kv, sizeof *g->kv, g->n_kv, e)) return false;
    for (u32 i = 0; i < g->n_kv; i++)
        if (!gguf_read_kv_(g, c, i, e)) return false;
    g->alignment = GGUF_ALIGN_DEFAULT;
    const GgufKv *kv = gguf_find(g, STR("general.alignment"));
    if (!kv) return true;
    if (kv->type != GGUF_U32)
        return err_set(e, ERR_MODEL, "%s: key 'general.alignment' is of type %s; it has to be u32",
                       g->label, GGUF_VALUES_[kv->type].name);
    u32 align = load_u32(kv->data);
    if (align < GGUF_ALIGN_MIN || align > GGUF_ALIGN_MAX || (align & (align - 1)))
        return err_set(
            e, ERR_MODEL,
            "%s: key 'general.alignment' is %u; it has to be a power of two from %u to %u",
            g->label, align, GGUF_ALIGN_MIN, GGUF_ALIGN_MAX);
    g->alignment = align;
    return true;
}

/* What to do about a tensor type that dlm does not read. */
static bool gguf_refuse_type_(const Gguf *g, const GgufTensor *t, u32 type, Err *e) {
    if (type >= COUNT_OF(GGUF_TYPE_NAMES_))
        return err_set(
            e, ERR_MODEL,
            "%s: tensor '%.*s' has unknown type %u; re-quantize the model to TQ2_0, Q8_0 or "
            "F16",
            g->label, STR_ARG(t->name), type);
    return err_set(
        e, ERR_MODEL,
        "%s: tensor '%.*s' is of type %s (id %u), which dlm does not read; re-quantize the "
        "model to TQ2_0, TQ1_0 or I2_S (ternary models), Q8_0 or F16",
        g->label, STR_ARG(t->name), gguf_type_name(type), type);
}

/* The shape and size of tensor t, whose record began at byte `at`. */
static bool gguf_check_shape_(const Gguf *g, GgufTensor *t, u32 type, u64 at, Err *e) {
    for (u32 d = 0; d < t->n_dims; d++)
        if (t->ne[d] == 0 || t->ne[d] > GGUF_NE_MAX)
            return err_set(
                e, ERR_MODEL,
                "%s: tensor '%.*s' (byte %llu): dimension %u is %llu; it has to be 1 to %llu",
                g->label, STR_ARG(t->name), (Ull_)at, d, (Ull_)t->ne[d], (Ull_)GGUF_NE_MAX);
    const DlmTypeInfo *info = gguf_type_info_(type);
    if (!info || type == DLM_TL2) return gguf_refuse_type_(g, t, type, e);
    t->type = info->type;
    if (t->ne[0] % info->block)
        return err_set(
            e, ERR_MODEL,
            "%s: tensor '%.*s' (byte %llu): rows of %llu weights are not whole %s blocks of "
            "%u",
            g->label, STR_ARG(t->name), (Ull_)at, (Ull_)t->ne[0], info->name, info->block);
    if (!gguf_tensor_bytes(t->type, t->ne, &t->n_bytes))
        return err_set(e, ERR_MODEL,
                       "%s: tensor '%.*s' (byte %llu): its dimensions %llu x %llu x %llu x %llu "
                       "overflow",
                       g->label, STR_ARG(t->name), (Ull_)at, (Ull_)t->ne[0], (Ull_)t->ne[1],
                       (Ull_)t->ne[2], (Ull_)t->ne[3]);
    return true;
}

static bool gguf_read_tensor_(Gguf *g, GgufCursor_ *c, u32 i, Err *e) {
    GgufTensor *t = &g->tensors[i];
    u64 at = c->at;
    bool too_long = false;
    t->name = gguf_take_str_(c, GGUF_NAME_MAX, &too_long);
    if (too_long)
        return err_set(e, ERR_MODEL,
                       "%s: the name of tensor %u of %u (byte %llu) is longer than %u bytes",
                       g->label, i + 1, g->n_tensors, (Ull_)at, GGUF_NAME_MAX);
    if (!c->failed && !gguf_clean_name_(t->name))
        return err_set(
            e, ERR_MODEL,
            "%s: the name of tensor %u of %u (byte %llu) is empty or holds control bytes", g->label,
            i + 1, g->n_tensors, (Ull_)at);
    t->n_dims = gguf_take_u32_(c);
    if (!c->failed && (t->n_dims < 1 || t->n_dims > GGUF_DIMS_MAX))
        return err_set(e, ERR_MODEL,
                       "%s: tensor '%.*s' (byte %llu) has %u dimensions; dlm reads 1 to %u",
                       g->label, STR_ARG(t->name), (Ull_)at, t->n_dims, GGUF_DIMS_MAX);
    for (u32 d = 0; d < GGUF_DIMS_MAX; d++)
        t->ne[d] = d < t->n_dims && !c->failed ? gguf_take_u64_(c) : 1;
    u32 type = gguf_take_u32_(c);
    t->offset = gguf_take_u64_(c); /* relative to data_start until gguf_place_tensors_ */
    if (c->failed)
        return err_set(
            e, ERR_MODEL,
            "%s: the file ends at byte %llu, inside the record of tensor %u of %u '%.*s' "
            "(byte %llu); it is truncated or damaged",
            g->label, (Ull_)g->n, i + 1, g->n_tensors, STR_ARG(t->name), (Ull_)at);
    if (!gguf_check_shape_(g, t, type, at, e)) return false;
    if (t->offset % g->alignment)
        return err_set(
            e, ERR_MODEL,
            "%s: tensor '%.*s' (byte %llu): its data offset %llu is not a multiple of the "
            "alignment %llu",
            g->label, STR_ARG(t->name), (Ull_)at, (Ull_)t->offset, (Ull_)g->alignment);
    if (!gguf_index_add_(&g->tensor_index_, t->name, i))
        return err_set(e, ERR_MODEL, "%s: tensor '%.*s' (byte %llu) appears twice", g->label,
                       STR_ARG(t->name), (Ull_)at);
    return true;
}

static int gguf_by_offset_(const void *a, const void *b) {
    u64 x = (*(GgufTensor *const *)a)->offset, y = (*(GgufTensor *const *)b)->offset;
    return (x > y) - (x < y);
}

/* Ids that several projects gave away, each for a type of its own: only the exact size tells. */
static const struct {
    DlmType type; /* read here; its id is the ambiguous one */
    const char *other;
    u32 block, bytes; /* of the other one, where that is refused */
} GGUF_SHARED_IDS_[] = {
    {DLM_I2_S, "IQ4_NL_4_4", 32, 18},
    {DLM_TL1, "IQ4_NL_8_8", 32, 18},
    {DLM_MXFP4, "TL2", 0, 0},
    {DLM_Q2_0, "a type of another project", 0, 0},
};

/* Do n bytes, with or without padding, fill the `extent` up to the next tensor or the file's end? */
static bool gguf_fills_(const Gguf *g, u64 n, u64 extent) {
    u64 padded = 0;
    return extent >= n && align_ok(n, g->alignment, &padded) && extent <= padded;
}

/* MXFP4 by its id, but of another size: TL2 as BitNet.cpp's converter writes it, or as its preset
 * kernels read it, with the scale where it is in TL1. */
static bool gguf_is_tl2_(const Gguf *g, GgufTensor *t, u64 extent) {
    u64 sizes[2] = {0};
    if (!gguf_tl2_bytes_(t->ne, &sizes[0]) || !gguf_tensor_bytes(DLM_TL1, t->ne, &sizes[1]))
        return false;
    for (int i = 0; i < 2; i++) {
        if (!gguf_fills_(g, sizes[i], extent)) continue;
        t->type = DLM_TL2;
        t->n_bytes = sizes[i];
        return true;
    }
    return false;
}

/* Settles what t is from its `extent`. What is merely too short is left to the caller. */
static bool gguf_check_shared_id_(const Gguf *g, GgufTensor *t, u64 extent, bool last, Err *e) {
    for (size_t i = 0; i < COUNT_OF(GGUF_SHARED_IDS_); i++) {
        if (GGUF_SHARED_IDS_[i].type != t->type) continue;
        u32 id = (u32)t->type, block = GGUF_SHARED_IDS_[i].block;
        const char *name = gguf_type_name(id), *other = GGUF_SHARED_IDS_[i].other;
        if (gguf_fills_(g, t->n_bytes, extent)) return true;
        if (t->type == DLM_MXFP4 && gguf_is_tl2_(g, t, extent)) return true;
        if (last && extent < t->n_bytes) return true;
        u64 n = 0;
        if (block && t->ne[0] % block == 0 && gguf_tensor_bytes(DLM_F32, t->ne, &n) &&
            gguf_fills_(g, n / 4 / block * GGUF_SHARED_IDS_[i].bytes, extent))
            return err_set(e, ERR_MODEL,
                           "%s: tensor '%.*s' is of type %s by its size (%llu bytes), not %s which "
                           "shares the id %u; re-quantize the model to TQ2_0, Q8_0 or F16",
                           g->label, STR_ARG(t->name), other, (Ull_)extent, name, id);
        return err_set(
            e, ERR_MODEL,
            "%s: tensor '%.*s' has type id %u (%s of %llu bytes, or %s) but %llu bytes of "
            "data; the file is damaged or of another format: re-quantize the model to "
            "TQ2_0, Q8_0 or F16",
            g->label, STR_ARG(t->name), id, name, (Ull_)t->n_bytes, other, (Ull_)extent);
    }
    return true;
}

static bool gguf_beyond_end_(const Gguf *g, const GgufTensor *t, Err *e) {
    return err_set(e, ERR_MODEL,
                   "%s: tensor '%.*s' needs %llu bytes at offset %llu of the data, but the file "
                   "ends at byte %llu; it is truncated or damaged: download it again",
                   g->label, STR_ARG(t->name), (Ull_)t->n_bytes, (Ull_)(t->offset - g->data_start),
                   (Ull_)g->n);
}

/* Turns relative offsets into absolute ones; every extent lies in the file and apart from the others. */
static bool gguf_check_extents_(Gguf *g, GgufTensor **order, Err *e) {
    for (u32 i = 0; i < g->n_tensors; i++) {
        GgufTensor *t = order[i] = &g->tensors[i];
        if (!add_ok(g->data_start, t->offset, &t->offset) || t->offset > g->n)
            return gguf_beyond_end_(g, t, e);
        t->data = g->p + t->offset;
    }
    if (g->n_tensors) qsort(order, g->n_tensors, sizeof *order, gguf_by_offset_);
    for (u32 i = 0; i < g->n_tensors; i++) {
        GgufTensor *t = order[i], *next = i + 1 < g->n_tensors ? order[i + 1] : NULL;
        u64 extent = (next ? next->offset : g->n) - t->offset;
        if (!gguf_check_shared_id_(g, t, extent, !next, e)) return false;
        if (t->n_bytes > g->n - t->offset) return gguf_beyond_end_(g, t, e);
        if (t->n_bytes > extent)
            return err_set(e, ERR_MODEL, "%s: tensors '%.*s' and '%.*s' overlap at byte %llu",
                           g->label, STR_ARG(t->name), STR_ARG(next->name), (Ull_)next->offset);
    }
    return true;
}

static bool gguf_read_tensors_(Gguf *g, GgufCursor_ *c, Err *e) {
    g->tensors = mem_alloc_n(g->n_tensors, sizeof *g->tensors, e);
    if (!g->tensors ||
        !gguf_index_open_(&g->tensor_index_, g->tensors, sizeof *g->tensors, g->n_tensors, e))
        return false;
    for (u32 i = 0; i < g->n_tensors; i++)
        if (!gguf_read_tensor_(g, c, i, e)) return false;
    if (!align_ok(c->at, g->alignment, &g->data_start))
        return false; /* cannot be: c->at <= n, a mapping's size */
    GgufTensor **order = mem_alloc_n(g->n_tensors, sizeof *order, e);
    bool ok = order && gguf_check_extents_(g, order, e);
    mem_free(order);
    return ok;
}

static void gguf_close(Gguf *g) {
    mem_free(g->kv);
    mem_free(g->tensors);
    mem_free(g->kv_index_.slots);
    mem_free(g->tensor_index_.slots);
    *g = (Gguf){0};
}

/* Reads the directory of the file p[n]; `p` and `label` must outlive g. On failure g holds nothing. */
static bool gguf_open(Gguf *g, const u8 *p, u64 n, const char *label, Err *e) {
    *g = (Gguf){.label = label, .p = p, .n = n};
    GgufCursor_ c = {.p = p, .n = n};
    if (gguf_read_header_(g, &c, e) && gguf_read_kvs_(g, &c, e) && gguf_read_tensors_(g, &c, e))
        return true;
    gguf_close(g);
    return false;
}

/* ---- typed getters: an absent key leaves the caller's default ---- */

static bool gguf_wrong_type_(const Gguf *g, const GgufKv *kv, const char *want, Err *e) {
    return err_set(e, ERR_MODEL, "%s: key '%.*s' is of type %s%s; %s is wanted", g->label,
                   STR_ARG(kv->key), kv->type == GGUF_ARRAY ? "array of " : "",
                   GGUF_VALUES_[kv->elem].name, want);
}

static bool gguf_is_int_(GgufValueType t) {
    return t != GGUF_F32 && t != GGUF_F64 && t != GGUF_BOOL && t != GGUF_STRING && t != GGUF_ARRAY;
}

/* An integer of type t at p. A u64 above INT64_MAX comes out as INT64_MAX: it fits nowhere anyway. */
static i64 gguf_load_int_(GgufValueType t, const u8 *p) {
    switch (t) {
    case GGUF_U8: return p[0];
    case GGUF_I8: return (i8)p[0];
    case GGUF_U16: return load_u16(p);
    case GGUF_I16: return (i16)load_u16(p);
    case GGUF_U32: return load_u32(p);
    case GGUF_I32: return (i32)load_u32(p);
    case GGUF_U64: return (i64)MIN_OF(load_u64(p), (u64)INT64_MAX);
    default: ASSERT(t == GGUF_I64); return (i64)load_u64(p);
    }
}

/* Any integer type whose value fits. */
static bool gguf_get_u32(const Gguf *g, const char *key, u32 *out, Err *e) {
    const GgufKv *kv = gguf_find(g, str_of(key));
    if (!kv) return true;
    if (!gguf_is_int_(kv->type)) return gguf_wrong_type_(g, kv, "an unsigned integer", e);
    i64 v = gguf_load_int_(kv->type, kv->data);
    if (v < 0 || v > (i64)UINT32_MAX)
        return err_set(e, ERR_MODEL, "%s: key '%s' (%s) is %lld, out of the range 0 to %u",
                       g->label, key, GGUF_VALUES_[kv->type].name, (long long)v, UINT32_MAX);
    *out = (u32)v;
    return true;
}

/* f32 or f64; finite. */
static bool gguf_get_f32(const Gguf *g, const char *key, f32 *out, Err *e) {
    const GgufKv *kv = gguf_find(g, str_of(key));
    if (!kv) return true;
    if (kv->type != GGUF_F32 && kv->type != GGUF_F64) return gguf_wrong_type_(g, kv, "f32", e);
    f64 v = kv->type == GGUF_F32 ? (f64)load_f32(kv->data) : load_f64(kv->data);
    const f64 f32_max = 3.4028234663852886e38;
    if (!(v >= -f32_max && v <= f32_max)) /* also refuses a NaN */
        return err_set(e, ERR_MODEL, "%s: key '%s' (%s) is %g, which is not a finite f32", g->label,
                       key, GGUF_VALUES_[kv->type].name, v);
    *out = (f32)v;
    return true;
}

static bool gguf_get_bool(const Gguf *g, const char *key, bool *out, Err *e) {
    const GgufKv *kv = gguf_find(g, str_of(key));
    if (!kv) return true;
    if (kv->type != GGUF_BOOL) return gguf_wrong_type_(g, kv, "bool", e);
    *out = kv->data[0] != 0;
    return true;
}

/* The string's bytes in the file: not NUL-terminated, any bytes. */
static bool gguf_get_str(const Gguf *g, const char *key, Str *out, Err *e) {
    const GgufKv *kv = gguf_find(g, str_of(key));
    if (!kv) return true;
    if (kv->type != GGUF_STRING) return gguf_wrong_type_(g, kv, "string", e);
    *out = (Str){(const char *)kv->data, (size_t)kv->n_bytes};
    return true;
}

/* A special token's id, which has to be in the vocabulary. */
static bool gguf_get_token_id(const Gguf *g, const char *key, u32 n_vocab, i32 *out, Err *e) {
    const GgufKv *kv = gguf_find(g, str_of(key));
    if (!kv) return true;
    if (!gguf_is_int_(kv->type)) return gguf_wrong_type_(g, kv, "an unsigned integer", e);
    i64 v = gguf_load_int_(kv->type, kv->data);
    if (v < 0 || v >= (i64)n_vocab || v > INT32_MAX)
        return err_set(e, ERR_MODEL,
                       "%s: key '%s' is token id %lld, but the vocabulary has %u tokens", g->label,
                       key, (long long)v, n_vocab);
    *out = (i32)v;
    return true;
}

/* ---- arrays ---- */

typedef struct {
    u64 count;
    GgufValueType elem;
    const u8 *data; /* [n_bytes], unaligned */
    u64 n_bytes;
} GgufArray;

/* An array whose elements are exactly of type elem. Absent: *found = false and *out is left alone. */
static bool gguf_get_array(const Gguf *g, const char *key, GgufValueType elem, GgufArray *out,
                           bool *found, Err *e) {
    const GgufKv *kv = gguf_find(g, str_of(key));
    *found = kv != NULL;
    if (!kv) return true;
    if (kv->type != GGUF_ARRAY || kv->elem != elem) {
        char want[32];
        snprintf(want, sizeof want, "array of %s", GGUF_VALUES_[elem].name);
        return gguf_wrong_type_(g, kv, want, e);
    }
    *out = (GgufArray){kv->count, kv->elem, kv->data, kv->n_bytes};
    return true;
}

/* Walks a string array in order: GgufStrIter it = {.a = array}; while (gguf_str_next(&it, &s)) ... */
typedef struct {
    GgufArray a;
    const u8 *at; /* the next element's length; NULL before the first call */
    u64 i;        /* elements delivered */
} GgufStrIter;

static bool gguf_str_next(GgufStrIter *it, Str *out) {
    ASSERT(it->a.elem == GGUF_STRING || it->a.count == 0);
    if (it->i >= it->a.count) return false;
    if (!it->at) it->at = it->a.data;
    u64 left = (u64)(it->a.data + it->a.n_bytes - it->at);
    ASSERT(left >= 8 && load_u64(it->at) <= left - 8); /* gguf_open walked it */
    *out = (Str){(const char *)it->at + 8, (size_t)load_u64(it->at)};
    it->at += 8 + out->n;
    it->i++;
    return true;
}

static f32 gguf_array_f32(const GgufArray *a, u64 i) {
    ASSERT(a->elem == GGUF_F32 && i < a->count);
    return load_f32(a->data + 4 * i);
}

/* Element i of an array of any integer type or of bools. */
static i64 gguf_array_int(const GgufArray *a, u64 i) {
    ASSERT((gguf_is_int_(a->elem) || a->elem == GGUF_BOOL) && i < a->count);
    if (a->elem == GGUF_BOOL) return a->data[i];
    return gguf_load_int_(a->elem, a->data + GGUF_VALUES_[a->elem].size * i);
}

/* ---- writing: the directory of a version 3 file. The tensors' bytes never pass through here:
 *
 *     GgufWriter w;
 *     gguf_writer_open(&w, e);
 *     gguf_put_str(&w, "general.architecture", STR("llama"));        and the other keys
 *     u64 n = gguf_put_tensor(&w, name, DLM_TQ2_0, 2, ne);           for every tensor
 *     bool ok = gguf_writer_head(&w, &head);
 *     gguf_writer_close(&w);
 *
 * then the caller writes head, and in the same order each tensor's n bytes and gguf_padding(n) zeros. The
 * first error sticks: later puts do nothing, and gguf_writer_head returns false. ---- */

typedef struct {
    Buf bytes; /* the records as they will lie in the file */
    Buf at;    /* [n] u64: where in bytes each one begins */
    u32 n;
} GgufRecords_;

typedef struct {
    GgufRecords_ kvs_, tensors_;
    u64 n_bytes; /* of all tensors so far, with the padding behind each */
    Err *e;      /* gets the first error */
    bool failed;
} GgufWriter;

static void gguf_writer_open(GgufWriter *w, Err *e) {
    *w = (GgufWriter){.e = e};
}

static void gguf_writer_close(GgufWriter *w) {
    GgufRecords_ *both[2] = {&w->kvs_, &w->tensors_};
    for (int i = 0; i < 2; i++) buf_free(&both[i]->bytes), buf_free(&both[i]->at);
    *w = (GgufWriter){0};
}

/* The zeros that follow n bytes of a tensor's data. */
static u64 gguf_padding(u64 n) {
    return -n % GGUF_ALIGN_DEFAULT;
}

static bool gguf_cannot_write_(GgufWriter *w, const char *what, Str name, const char *why) {
    w->failed = true;
    return err_set(w->e, ERR_MODEL, "%s '%.*s' cannot be written: %s", what, STR_ARG(name), why);
}

static void gguf_put_u32_(Buf *b, u32 v) {
    buf_put(b, &v, sizeof v);
}

static void gguf_put_u64_(Buf *b, u64 v) {
    buf_put(b, &v, sizeof v);
}

static void gguf_put_str_(Buf *b, Str s) {
    gguf_put_u64_(b, s.n);
    buf_str(b, s);
}

/* Begins a record with its name. */
static bool gguf_begin_record_(GgufWriter *w, GgufRecords_ *r, Str name) {
    bool key = r == &w->kvs_;
    const char *what = key ? "key" : "tensor";
    if (w->failed) return false;
    if (!gguf_clean_name_(name) || name.n > (key ? GGUF_KEY_MAX : GGUF_NAME_MAX))
        return gguf_cannot_write_(w, what, name,
                                  "its name is empty, too long or holds control bytes");
    if (r->n == (key ? GGUF_KV_MAX : GGUF_TENSORS_MAX))
        return gguf_cannot_write_(w, what, name, "dlm takes at most 16384 keys and 16384 tensors");
    gguf_put_u64_(&r->at, r->bytes.n);
    gguf_put_str_(&r->bytes, name);
    r->n++;
    return true;
}

static Buf *gguf_begin_kv_(GgufWriter *w, const char *key, GgufValueType type) {
    if (!gguf_begin_record_(w, &w->kvs_, str_of(key))) return NULL;
    gguf_put_u32_(&w->kvs_.bytes, type);
    return &w->kvs_.bytes;
}

static void gguf_put_u32(GgufWriter *w, const char *key, u32 v) {
    Buf *b = gguf_begin_kv_(w, key, GGUF_U32);
    if (b) gguf_put_u32_(b, v);
}

static void gguf_put_f32(GgufWriter *w, const char *key, f32 v) {
    Buf *b = gguf_begin_kv_(w, key, GGUF_F32);
    if (b) buf_put(b, &v, sizeof v);
}

static void gguf_put_bool(GgufWriter *w, const char *key, bool v) {
    Buf *b = gguf_begin_kv_(w, key, GGUF_BOOL);
    if (b) buf_char(b, v);
}

static void gguf_put_str(GgufWriter *w, const char *key, Str v) {
    Buf *b = gguf_begin_kv_(w, key, GGUF_STRING);
    if (b && v.n > GGUF_STRING_MAX)
        gguf_cannot_write_(w, "key", str_of(key), "its string is longer than 1 MiB");
    else if (b)
        gguf_put_str_(b, v);
}

static Buf *gguf_begin_array_(GgufWriter *w, const char *key, GgufValueType elem, u64 n) {
    Buf *b = gguf_begin_kv_(w, key, GGUF_ARRAY);
    if (!b) return NULL;
    if (n > GGUF_ARRAY_MAX) {
        gguf_cannot_write_(w, "key", str_of(key), "its array has more than 2^28 elements");
        return NULL;
    }
    gguf_put_u32_(b, elem);
    gguf_put_u64_(b, n);
    return b;
}

static void gguf_put_u32s(GgufWriter *w, const char *key, const u32 *v, u64 n) {
    Buf *b = gguf_begin_array_(w, key, GGUF_U32, n);
    if (b) buf_put(b, v, n * sizeof *v);
}

static void gguf_put_i32s(GgufWriter *w, const char *key, const i32 *v, u64 n) {
    Buf *b = gguf_begin_array_(w, key, GGUF_I32, n);
    if (b) buf_put(b, v, n * sizeof *v);
}

static void gguf_put_f32s(GgufWriter *w, const char *key, const f32 *v, u64 n) {
    Buf *b = gguf_begin_array_(w, key, GGUF_F32, n);
    if (b) buf_put(b, v, n * sizeof *v);
}

static void gguf_put_strs(GgufWriter *w, const char *key, const Str *v, u64 n) {
    Buf *b = gguf_begin_array_(w, key, GGUF_STRING, n);
    for (u64 i = 0; b && i < n && !w->failed; i++) {
        if (v[i].n > GGUF_ELEM_MAX)
            gguf_cannot_write_(w, "key", str_of(key), "it has a string longer than 64 KiB");
        gguf_put_str_(b, v[i]);
    }
}

/* Copies a key of an open file as it is. Its alignment stays behind: that is the file's, not the model's. */
static void gguf_put_raw_kv(GgufWriter *w, const GgufKv *kv) {
    Buf *b = &w->kvs_.bytes;
    if (str_eq(kv->key, STR("general.alignment")) || !gguf_begin_record_(w, &w->kvs_, kv->key))
        return;
    gguf_put_u32_(b, kv->type);
    if (kv->type == GGUF_STRING) gguf_put_u64_(b, kv->n_bytes);
    if (kv->type == GGUF_ARRAY) gguf_put_u32_(b, kv->elem), gguf_put_u64_(b, kv->count);
    buf_put(b, kv->data, kv->n_bytes);
}

/* Adds a tensor of n_dims dimensions, ne[0] the contiguous one. Returns the bytes of its data, 0 after an
 * error. */
static u64 gguf_put_tensor(GgufWriter *w, Str name, DlmType type, u32 n_dims, const u64 *ne) {
    GgufRecords_ *r = &w->tensors_;
    u64 dims[GGUF_DIMS_MAX] = {1, 1, 1, 1}, n = 0, end = 0;
    bool fits = n_dims >= 1 && n_dims <= GGUF_DIMS_MAX;
    for (u32 d = 0; fits && d < n_dims; d++) {
        dims[d] = ne[d];
        fits = ne[d] <= GGUF_NE_MAX;
    }
    if (!gguf_begin_record_(w, r, name)) return 0;
    if (!fits || !gguf_tensor_bytes(type, dims, &n) || !add_ok(w->n_bytes, n, &end) ||
        !align_ok(end, GGUF_ALIGN_DEFAULT, &end))
        return gguf_cannot_write_(w, "tensor", name,
                                  "no tensor of its type can have its dimensions");
    gguf_put_u32_(&r->bytes, n_dims);
    buf_put(&r->bytes, dims, n_dims * sizeof *dims);
    gguf_put_u32_(&r->bytes, type == DLM_TL2 ? DLM_MXFP4 : type);
    gguf_put_u64_(&r->bytes, w->n_bytes);
    w->n_bytes = end;
    return n;
}

/* No name may come twice: the reader's index tells. */
static bool gguf_check_unique_(GgufWriter *w, const GgufRecords_ *r, const char *what) {
    Str *names = mem_alloc_n(r->n, sizeof *names, w->e);
    GgufIndex ix = {0};
    bool ok = names && gguf_index_open_(&ix, names, sizeof *names, r->n, w->e);
    for (u32 i = 0; ok && i < r->n; i++) {
        const u8 *at = (const u8 *)r->bytes.p + load_u64((const u8 *)r->at.p + 8 * i);
        names[i] = (Str){(const char *)at + 8, load_u64(at)};
        ok = gguf_index_add_(&ix, names[i], i) ||
             gguf_cannot_write_(w, what, names[i], "there are two of that name");
    }
    mem_free(ix.slots);
    mem_free(names);
    return ok;
}

/* Appends all that comes before the tensors' data. */
static bool gguf_writer_head(GgufWriter *w, Buf *out) {
    const Buf *parts[4] = {&w->kvs_.bytes, &w->kvs_.at, &w->tensors_.bytes, &w->tensors_.at};
    for (int i = 0; i < 4; i++)
        if (w->failed || !buf_ok(parts[i], "the directory of the GGUF file", w->e)) return false;
    if (!gguf_check_unique_(w, &w->kvs_, "key") || !gguf_check_unique_(w, &w->tensors_, "tensor"))
        return false;
    size_t begin = out->n;
    buf_str(out, STR("GGUF"));
    gguf_put_u32_(out, 3);
    gguf_put_u64_(out, w->tensors_.n);
    gguf_put_u64_(out, w->kvs_.n);
    buf_str(out, buf_view(&w->kvs_.bytes));
    buf_str(out, buf_view(&w->tensors_.bytes));
    for (u64 n = gguf_padding(out->n - begin); n > 0; n--) buf_char(out, 0);
    return buf_ok(out, "the directory of the GGUF file", w->e);
}

#endif

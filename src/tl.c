/* tl.c - how TL1 and TL2 matrices were cut up: BitNet.cpp's kernel_config.ini, and its presets.
 *
 * Owns:      nothing.
 * Stands on: base dlm_kernels.h quant
 * Promises:  never allocates; a tiling that is found reads no byte outside its tensor.
 *
 * The files of these types do not record the tiling, which BitNet.cpp fixes, per shape of a matrix,
 * when it is compiled. */
#ifndef DLM_TL_C
#define DLM_TL_C

#include "../dlm_kernels.h"
#include "base.c"
#include "quant.c"

typedef struct {
    i32 m, k; /* outputs and inputs of the matrices that are cut up so */
    DlmTlTiling tiling;
} TlKernel;

#define TL_KERNELS_MAX 64
typedef struct {
    TlKernel kernels[TL_KERNELS_MAX];
    i32 n;
} TlConfig;

/* bitnet_b1_58-3B, bitnet_b1_58-large; TL2 also Llama3-8B-1.58. */
static const TlKernel TL1_PRESETS_[] = {
    {3200, 8640, {160, 64, 32}},  {3200, 3200, {320, 128, 64}}, {8640, 3200, {320, 64, 32}},
    {1536, 4096, {256, 128, 32}}, {1536, 1536, {128, 64, 64}},  {4096, 1536, {256, 128, 32}},
};
static const TlKernel TL2_PRESETS_[] = {
    {3200, 8640, {160, 96, 32}},  {3200, 3200, {320, 96, 32}},  {8640, 3200, {320, 96, 32}},
    {1536, 4096, {256, 96, 32}},  {1536, 1536, {128, 192, 32}}, {4096, 1536, {256, 96, 32}},
    {14336, 4096, {256, 96, 32}}, {4096, 14336, {128, 96, 32}}, {1024, 4096, {256, 96, 32}},
    {4096, 4096, {128, 96, 32}},
};

/* ---- kernel_config.ini: sections of m, k, bm, bk, bmm ---- */

static const Str TL_BLANKS_ = {" \t\r", 3};

/* Where a key's value goes; NULL for a key that does not matter here. */
static i32 *tl_field_(TlKernel *k, Str key) {
    const struct {
        const char *name;
        i32 *to;
    } fields[] = {{"m", &k->m},
                  {"k", &k->k},
                  {"bm", &k->tiling.bm},
                  {"bk", &k->tiling.bk},
                  {"bmm", &k->tiling.bmm}};
    char low[4] = {0};
    if (key.n >= sizeof low) return NULL;
    for (size_t i = 0; i < key.n; i++) /* the ini's keys do not care about case */
        low[i] = key.p[i] >= 'A' && key.p[i] <= 'Z' ? (char)(key.p[i] + 32) : key.p[i];
    for (size_t i = 0; i < COUNT_OF(fields); i++)
        if (strcmp(low, fields[i].name) == 0) return fields[i].to;
    return NULL;
}

static bool tl_number_(Str s, i32 *out) {
    i64 v = 0;
    for (size_t i = 0; i < s.n; i++) {
        if (s.p[i] < '0' || s.p[i] > '9' || (v = v * 10 + (s.p[i] - '0')) > INT32_MAX) return false;
    }
    *out = (i32)v;
    return v > 0;
}

/* One line of the file; NULL, or what is wrong with it. */
static const char *tl_line_(TlConfig *c, Str line) {
    if (line.n == 0 || line.p[0] == '#' || line.p[0] == ';') return NULL;
    if (line.p[0] == '[') {
        if (line.p[line.n - 1] != ']') return "a section begins and does not end";
        if (c->n == TL_KERNELS_MAX) return "these are more than 64 kernels";
        c->n++;
        return NULL;
    }
    size_t equals = str_find(line, STR("="), 0), colon = str_find(line, STR(":"), 0);
    size_t at = MIN_OF(equals, colon);
    if (at == SIZE_MAX) return "this is no section, key or comment";
    if (c->n == 0) return "this key comes before the first section";
    i32 *to = tl_field_(&c->kernels[c->n - 1], str_trim(str_cut(line, 0, at), TL_BLANKS_));
    if (to && *to) return "this key comes twice in its section";
    if (to && !tl_number_(str_trim(str_cut(line, at + 1, line.n), TL_BLANKS_), to))
        return "a number of 1 or more is wanted";
    return NULL;
}

/* Reads kernel_config.ini, as BitNet.cpp's code generators write it. label: the file's name. */
static bool tl_parse(TlConfig *c, Str text, const char *label, Err *e) {
    *c = (TlConfig){0};
    for (u32 number = 1; text.n > 0; number++) {
        size_t end = MIN_OF(str_find(text, STR("\n"), 0), text.n);
        const char *wrong = tl_line_(c, str_trim(str_cut(text, 0, end), TL_BLANKS_));
        if (wrong) return err_set(e, ERR_MODEL, "%s, line %u: %s", label, number, wrong);
        text = str_cut(text, end + 1, text.n);
    }
    for (i32 i = 0; i < c->n; i++) {
        const TlKernel *k = &c->kernels[i];
        if (!k->m || !k->k || !k->tiling.bm || !k->tiling.bk || !k->tiling.bmm)
            return err_set(e, ERR_MODEL, "%s: section %d lacks one of m, k, bm, bk and bmm", label,
                           i + 1);
    }
    if (c->n == 0) return err_set(e, ERR_MODEL, "%s: there is no kernel in it", label);
    return true;
}

/* ---- finding a tensor's tiling ---- */

/* Fills in t->tl, from `c` or, where that has no kernels, from the presets, and checks that a layout the
 * file does not record can be this tensor's; other types need none. label: the model file's name. */
static bool tl_find(const TlConfig *c, const char *label, DlmTensor *t, Err *e) {
    if (t->type == DLM_I2_S && !quant_i2s_fits(t))
        return err_set(
            e, ERR_MODEL,
            "%s: tensor %s has %lld x %lld weights, which do not fill whole groups of this "
            "I2_S layout; try another --i2s-layout",
            label, t->name, (long long)t->n_out, (long long)t->n_in);
    if (t->type != DLM_TL1 && t->type != DLM_TL2) return true;
    const char *type = quant_info(t->type)->name;
    const TlKernel *k = t->type == DLM_TL1 ? TL1_PRESETS_ : TL2_PRESETS_;
    size_t n = t->type == DLM_TL1 ? COUNT_OF(TL1_PRESETS_) : COUNT_OF(TL2_PRESETS_);
    if (c->n) k = c->kernels, n = (size_t)c->n;
    for (size_t i = 0; i < n; i++) {
        if (k[i].m != t->n_out || k[i].k != t->n_in) continue;
        t->tl = k[i].tiling;
        if (quant_tl_fits(t)) return true;
        return err_set(
            e, ERR_MODEL,
            "%s: tensor %s is a %s matrix of %lld x %lld in %llu bytes, which a kernel of "
            "bm %d, bk %d, bmm %d cannot have made; give the kernel_config.ini that "
            "belongs to the model with --tl-config",
            label, t->name, type, (long long)t->n_out, (long long)t->n_in,
            (unsigned long long)t->n_bytes, t->tl.bm, t->tl.bk, t->tl.bmm);
    }
    return err_set(
        e, ERR_MODEL,
        "%s: tensor %s is a %s matrix of %lld x %lld, and how %s lies in a file depends on a "
        "kernel configuration that the file does not hold; %s has no kernel of this "
        "shape: give BitNet.cpp's kernel_config.ini with --tl-config",
        label, t->name, type, (long long)t->n_out, (long long)t->n_in, type,
        c->n ? "the one given" : "dlm's list of presets");
}

#endif

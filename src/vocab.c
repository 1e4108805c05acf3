/* vocab.c - a checkpoint's tokenizer as GGUF keys: tokenizer.json, or SentencePiece's tokenizer.model.
 *
 * Owns:      the texts of the files, and the lists made of them.
 * Stands on: base mem os gguf json pre spm model hf
 * Promises:  the pre-tokenizer is recognized exactly or not at all; every id is inside the vocabulary;
 *            an error names the file. */
#ifndef DLM_VOCAB_C
#define DLM_VOCAB_C

#include "base.c"
#include "gguf.c"
#include "hf.c"
#include "json.c"
#include "mem.c"
#include "model.c"
#include "os.c"
#include "pre.c"
#include "spm.c"

typedef struct {
    const Hf *hf;
    const char *pre; /* given on the command line, or NULL */
    HfJson tokenizer, config, specials, added, template_json;
    OsMap spm_map, template_map;
    Spm spm;
    char spm_path[OS_NEW_PATH_MAX], template_path[OS_NEW_PATH_MAX];
    const char *label; /* the file with the vocabulary */
    bool spm_style;    /* GGUF's `llama` tokenizer, else `gpt2` */
    bool space_prefix;
    u32 n;
    Str *text;  /* [n] */
    i32 *type;  /* [n] SpmType, which are GGUF's token types */
    f32 *score; /* [n], for spm_style */
    u32 n_merges;
    Str *merges; /* [n_merges] */
    Buf pads,
        joined; /* texts that stand in no file: of unused ids, and of merges given in halves */
    i32 bos, eos, unk, pad, mask; /* -1: none */
    bool add_bos, add_eos;
    const char *pre_name;
    Str chat_template;
} Vocab;

static void vocab_close(Vocab *v) {
    HfJson *all[] = {&v->tokenizer, &v->config, &v->specials, &v->added, &v->template_json};
    for (size_t i = 0; i < COUNT_OF(all); i++) hf_json_close(all[i]);
    spm_close(&v->spm);
    os_unmap(&v->spm_map);
    os_unmap(&v->template_map);
    mem_free(v->text);
    mem_free(v->type);
    mem_free(v->score);
    mem_free(v->merges);
    buf_free(&v->pads);
    buf_free(&v->joined);
}

/* ---- tokens ---- */

static bool vocab_set_(Vocab *v, i64 id, Str text, i32 type, Err *e) {
    if (id < 0 || id >= (i64)v->n)
        return err_set(e, ERR_MODEL,
                       "%s: token '%.*s' has the id %lld, but %s says that there are %u tokens",
                       v->label, STR_ARG(text), (long long)id, v->hf->config.path, v->n);
    v->text[id] = text;
    v->type[id] = type;
    return true;
}

/* The id of a token, or -1. */
static i32 vocab_find(const Vocab *v, Str text) {
    for (u32 i = 0; text.n && i < v->n; i++)
        if (str_eq(v->text[i], text)) return (i32)i;
    return -1;
}

/* Ids that the embedding has and the vocabulary has not. */
static bool vocab_fill_(Vocab *v, Err *e) {
    for (u32 i = 0; i < v->n; i++)
        if (!v->text[i].p) buf_printf(&v->pads, "[PAD%u]", i);
    if (!buf_ok(&v->pads, "the vocabulary", e)) return false;
    const char *at = v->pads.p;
    for (u32 i = 0; i < v->n; i++) {
        if (v->text[i].p) continue;
        v->text[i] = (Str){at, strcspn(at, "]") + 1};
        v->type[i] = SPM_UNUSED;
        at += v->text[i].n;
    }
    return true;
}

/* added_tokens: what the vocabulary proper does not hold, or holds as ordinary text. */
static bool vocab_add_(Vocab *v, Err *e) {
    const JsonDoc *d = &v->tokenizer.doc;
    u32 list = json_get(d, 0, "added_tokens"), at = json_first(d, list);
    for (u32 n = json_count(d, list); n > 0; n--, at = json_next(d, at)) {
        i64 id = -1;
        Str text = {"", 0};
        bool special = false;
        json_i64(d, json_get(d, at, "id"), &id);
        json_str(d, json_get(d, at, "content"), &text);
        json_bool(d, json_get(d, at, "special"), &special);
        bool is_unknown = id >= 0 && id < (i64)v->n && v->type[id] == SPM_UNKNOWN;
        if (!vocab_set_(v, id, text, special ? SPM_CONTROL : SPM_USER, e)) return false;
        if (is_unknown) v->type[id] = SPM_UNKNOWN;
    }
    return true;
}

/* <0x00> to <0xFF>. */
static bool vocab_is_byte_(Str s) {
    return s.n == 6 && str_starts(s, STR("<0x")) && s.p[5] == '>';
}

static bool vocab_read_words_(Vocab *v, u32 model, Err *e) {
    const JsonDoc *d = &v->tokenizer.doc;
    u32 words = json_get(d, model, "vocab"), key = json_first(d, words);
    Str unk = {"", 0};
    json_str(d, json_get(d, model, "unk_token"), &unk);
    if (json_type(d, words) != JSON_OBJECT)
        return err_set(e, ERR_MODEL, "%s: its model has no vocab", v->label);
    for (u32 n = json_count(d, words); n > 0; n--) {
        u32 value = json_next(d, key);
        Str text = d->nodes[key].text;
        i64 id = -1;
        i32 type = !v->spm_style          ? SPM_NORMAL
                   : vocab_is_byte_(text) ? SPM_BYTE
                   : str_eq(text, unk)    ? SPM_UNKNOWN
                                          : SPM_NORMAL;
        if (!json_i64(d, value, &id)) id = -1;
        if (id >= 0 && id < (i64)v->n && v->text[id].p)
            return err_set(e, ERR_MODEL, "%s: tokens '%.*s' and '%.*s' have the same id %lld",
                           v->label, STR_ARG(v->text[id]), STR_ARG(text), (long long)id);
        if (!vocab_set_(v, id, text, type, e)) return false;
        key = json_next(d, value);
    }
    return true;
}

/* Merges are written "a b", or since 2024 ["a", "b"]. */
static bool vocab_read_merges_(Vocab *v, u32 model, Err *e) {
    const JsonDoc *d = &v->tokenizer.doc;
    u32 list = json_get(d, model, "merges"), at = json_first(d, list);
    v->merges = mem_alloc_n(json_count(d, list), sizeof *v->merges, e);
    if (!v->merges) return false;
    for (u32 n = json_count(d, list); n > 0; n--, at = json_next(d, at)) {
        u32 first = json_first(d, at);
        Str whole = {NULL, 0}, left, right;
        bool halves = json_count(d, at) == 2 && json_str(d, first, &left) &&
                      json_str(d, json_next(d, first), &right);
        if (!halves && !json_str(d, at, &whole))
            return err_set(e, ERR_MODEL, "%s: merge %u is neither a text nor two", v->label,
                           v->n_merges);
        if (halves) {
            whole.n = left.n + 1 + right.n; /* its place is known when all are there */
            buf_str(&v->joined, left), buf_char(&v->joined, ' '), buf_str(&v->joined, right);
        }
        v->merges[v->n_merges++] = whole;
    }
    if (!buf_ok(&v->joined, "the list of merges", e)) return false;
    const char *text = v->joined.p;
    for (u32 i = 0; i < v->n_merges; i++) {
        if (v->merges[i].p) continue;
        v->merges[i].p = text;
        text += v->merges[i].n;
    }
    return true;
}

typedef struct {
    Str text;
    u32 id;
} VocabWord_;

static int vocab_by_text_(const void *a, const void *b) {
    Str x = ((const VocabWord_ *)a)->text, y = ((const VocabWord_ *)b)->text;
    int order = memcmp(x.p, y.p, MIN_OF(x.n, y.n));
    return order ? order : (x.n > y.n) - (x.n < y.n);
}

/* What GGUF's `llama` tokenizer goes by: the earlier a merge, the higher the score of what it makes. */
static bool vocab_score_(Vocab *v, Err *e) {
    VocabWord_ *words = mem_alloc_n(v->n, sizeof *words, e);
    if (!words) return false;
    for (u32 i = 0; i < v->n; i++) {
        words[i] = (VocabWord_){v->text[i], i};
        v->score[i] = v->type[i] == SPM_NORMAL ? -1e6f : 0;
    }
    qsort(words, v->n, sizeof *words, vocab_by_text_);
    bool ok = true;
    char both[1024];
    for (u32 i = v->n_merges; ok && i-- > 0;) { /* backwards: the first that makes a token counts */
        Str m = v->merges[i];
        size_t space = str_find(m, STR(" "), 1);
        ok = m.n <= sizeof both && space != SIZE_MAX;
        if (!ok) break;
        memcpy(both, m.p, space);
        memcpy(both + space, m.p + space + 1, m.n - space - 1);
        VocabWord_ want = {{both, m.n - 1}, 0},
                   *word = bsearch(&want, words, v->n, sizeof *words, vocab_by_text_);
        ok = word != NULL;
        if (ok) v->score[word->id] = -(f32)i;
        if (!ok)
            err_set(e, ERR_MODEL, "%s: merge %u ('%.*s') makes no token", v->label, i, STR_ARG(m));
    }
    mem_free(words);
    return ok || err_set(e, ERR_MODEL, "%s: a merge is not two texts", v->label);
}

/* ---- the pre-tokenizer: tokenizer.json's expressions against those of pre.c ---- */

typedef struct {
    Str regex[PRE_SPLITS_MAX + 1]; /* one more than any has */
    u32 n;
    bool bytes; /* there is a ByteLevel: the vocabulary is spelled in byte characters */
    bool other; /* there is something that is no expression */
} VocabSplits_;

/* One step of tokenizer.json's `pre_tokenizer`. */
static void vocab_split_(const JsonDoc *d, u32 node, VocabSplits_ *s) {
    Str type = {"", 0}, regex = {"", 0};
    bool own = true, each = false, prefix = false;
    json_str(d, json_get(d, node, "type"), &type);
    json_bool(d, json_get(d, node, "use_regex"), &own);
    json_bool(d, json_get(d, node, "individual_digits"), &each);
    json_bool(d, json_get(d, node, "add_prefix_space"), &prefix);
    if (str_eq(type, STR("ByteLevel"))) {
        s->bytes = true;
        s->other |= prefix;
        regex = own ? STR(PRE_GPT2) : regex;
    } else if (str_eq(type, STR("Split"))) {
        s->other |= !json_str(d, json_get(d, json_get(d, node, "pattern"), "Regex"), &regex);
    } else if (str_eq(type, STR("Digits"))) {
        regex = each ? STR("\\p{N}") : regex; /* runs of digits are cut by the others */
    } else if (str_eq(type, STR("Punctuation"))) {
        regex = str_of(pre_row(pre_find(STR("falcon")))->regex[0]);
    } else {
        s->other = true;
    }
    if (regex.n) s->regex[MIN_OF(s->n, PRE_SPLITS_MAX)] = regex, s->n++;
}

static VocabSplits_ vocab_splits_(const JsonDoc *d) {
    VocabSplits_ s = {.n = 0};
    u32 node = json_get(d, 0, "pre_tokenizer"), list = json_get(d, node, "pretokenizers"),
        at = json_first(d, list);
    if (json_type(d, node) == JSON_OBJECT && list == JSON_NONE) vocab_split_(d, node, &s);
    for (u32 n = json_count(d, list); n > 0; n--, at = json_next(d, at)) vocab_split_(d, at, &s);
    return s;
}

static bool vocab_is_row_(const VocabSplits_ *s, const PreRow *row) {
    u32 n = 0;
    while (n < PRE_SPLITS_MAX && row->regex[n]) n++;
    if (s->other || s->n != n) return false;
    for (u32 i = 0; i < n; i++)
        if (!str_eq(s->regex[i], str_of(row->regex[i]))) return false;
    return true;
}

/* normalizer: nothing, or NFC. */
static bool vocab_normalizer_(const JsonDoc *d, bool *nfc) {
    Str type = {"", 0};
    u32 node = json_get(d, 0, "normalizer"), list = json_get(d, node, "normalizers");
    *nfc = false;
    if (json_type(d, node) != JSON_OBJECT || (list != JSON_NONE && json_count(d, list) == 0))
        return true;
    json_str(d, json_get(d, node, "type"), &type);
    if (str_eq(type, STR("Sequence")) && json_count(d, list) == 1)
        json_str(d, json_get(d, json_first(d, list), "type"), &type);
    *nfc = str_eq(type, STR("NFC"));
    return *nfc;
}

static bool vocab_pre_(Vocab *v, u32 model, const VocabSplits_ *s, Err *e) {
    const JsonDoc *d = &v->tokenizer.doc;
    bool nfc, ignore = false;
    bool known = vocab_normalizer_(d, &nfc);
    json_bool(d, json_get(d, model, "ignore_merges"), &ignore);
    if (v->pre) {
        const PreName *name = pre_find(str_of(v->pre));
        v->pre_name = name ? name->name : NULL;
        return name || err_set(e, ERR_USAGE, "--pre %s: no such pre-tokenizer; there are " PRE_LIST,
                               v->pre);
    }
    for (size_t i = 0; known && !v->pre_name && i < COUNT_OF(PRE_NAMES); i++) {
        const PreRow *row = pre_row(&PRE_NAMES[i]);
        if (PRE_NAMES[i].nfc == nfc && row->ignore_merges == ignore && vocab_is_row_(s, row))
            v->pre_name = PRE_NAMES[i].name;
    }
    if (v->pre_name) return true;
    return err_set(e, ERR_MODEL,
                   "%s: its %s is none that dlm knows%s%.*s; if one of " PRE_LIST
                   " does the same, give it with --pre NAME",
                   v->label, known ? "pre-tokenizer" : "normalizer", known && s->n ? ": " : "",
                   STR_ARG(s->regex[0]));
}

/* ---- tokenizer.json ---- */

/* Does a text begin as if it had a space before it? */
static bool vocab_space_prefix_(const JsonDoc *d) {
    u32 norm = json_get(d, 0, "normalizer"), list = json_get(d, norm, "normalizers"),
        pre = json_get(d, 0, "pre_tokenizer"), at = json_first(d, list);
    Str scheme = {"", 0}, type = {"", 0};
    for (u32 n = json_count(d, list); n > 0; n--, at = json_next(d, at))
        if (json_str(d, json_get(d, at, "type"), &type) && str_eq(type, STR("Prepend")))
            return true;
    bool prefix = false;
    json_bool(d, json_get(d, pre, "add_prefix_space"), &prefix);
    if (json_str(d, json_get(d, pre, "prepend_scheme"), &scheme))
        return !str_eq(scheme, STR("never"));
    return prefix;
}

static bool vocab_read_json_(Vocab *v, Err *e) {
    const JsonDoc *d = &v->tokenizer.doc;
    u32 model = json_get(d, 0, "model");
    Str type = {"BPE", 3}; /* of files that are too old to say */
    json_str(d, json_get(d, model, "type"), &type);
    if (json_type(d, model) != JSON_OBJECT || !str_eq(type, STR("BPE")))
        return err_set(e, ERR_MODEL, "%s: a tokenizer of type '%.*s'; dlm takes BPE", v->label,
                       STR_ARG(type));
    VocabSplits_ splits = vocab_splits_(d);
    bool byte_fallback = false;
    json_bool(d, json_get(d, model, "byte_fallback"), &byte_fallback);
    v->spm_style = byte_fallback && !splits.bytes;
    if (!v->spm_style && !splits.bytes)
        return err_set(
            e, ERR_MODEL,
            "%s: neither a byte-level vocabulary nor one with byte fallback; dlm knows no "
            "other",
            v->label);
    v->space_prefix = v->spm_style && vocab_space_prefix_(d);
    if (!vocab_read_words_(v, model, e) || !vocab_read_merges_(v, model, e) || !vocab_add_(v, e) ||
        !vocab_fill_(v, e))
        return false;
    if (v->spm_style) return vocab_score_(v, e);
    return vocab_pre_(v, model, &splits, e);
}

/* ---- tokenizer.model ---- */

static bool vocab_read_spm_(Vocab *v, Err *e) {
    if (!os_map_file(&v->spm_map, v->spm_path, e) ||
        !spm_open(&v->spm, v->spm_map.p, v->spm_map.n, v->spm_path, e))
        return false;
    if (v->spm.kind != SPM_BPE)
        return err_set(e, ERR_MODEL,
                       "%s: a SentencePiece model that is not BPE; dlm knows no other", v->label);
    v->spm_style = true;
    v->space_prefix = v->spm.space_prefix;
    for (u32 i = 0; i < v->spm.n; i++) {
        const SpmPiece *p = &v->spm.pieces[i];
        if (!vocab_set_(v, i, p->text, (i32)p->type, e)) return false;
        v->score[i] = p->score;
    }
    const JsonDoc *d = &v->added.doc; /* added_tokens.json: {"text": id} */
    u32 key = json_first(d, json_type(d, 0) == JSON_OBJECT ? 0 : JSON_NONE);
    for (u32 n = json_count(d, 0); key != JSON_NONE && n > 0; n--) {
        u32 value = json_next(d, key);
        i64 id = -1;
        json_i64(d, value, &id);
        if (!vocab_set_(v, id, d->nodes[key].text, SPM_CONTROL, e)) return false;
        key = json_next(d, value);
    }
    return vocab_fill_(v, e);
}

/* ---- ids, template, and what is put around a prompt ---- */

/* The text of a special token: "<s>" or {"content": "<s>"}. */
static Str vocab_special_text_(const JsonDoc *d, const char *name) {
    Str s = {"", 0};
    u32 node = json_get(d, 0, name);
    if (!json_str(d, node, &s)) json_str(d, json_get(d, node, "content"), &s);
    return s;
}

/* The tokenizer's settings name a text, SentencePiece's file and the model's settings an id. The first that
 * says so wins. own: SentencePiece's, or -1. */
static bool vocab_id_(Vocab *v, const char *name, i32 own, i32 *out, Err *e) {
    char key[64];
    snprintf(key, sizeof key, "%s_token", name);
    *out = vocab_find(v, vocab_special_text_(&v->config.doc, key));
    if (*out < 0) *out = vocab_find(v, vocab_special_text_(&v->specials.doc, key));
    if (*out < 0) *out = own;
    if (*out >= 0) return true;
    snprintf(key, sizeof key, "%s_token_id", name);
    const HfJson *both[] = {&v->hf->config, &v->hf->generation};
    for (size_t i = 0; i < COUNT_OF(both); i++) {
        const JsonDoc *d = &both[i]->doc;
        i64 id = 0;
        u32 node = json_get(d, 0, key);
        if (json_type(d, node) == JSON_ARRAY) node = json_first(d, node);
        if (!json_i64(d, node, &id)) continue;
        if (id < 0 || id >= (i64)v->n)
            return err_set(e, ERR_MODEL, "%s: %s is %lld, but the vocabulary has %u tokens",
                           both[i]->path, key, (long long)id, v->n);
        *out = (i32)id;
        break;
    }
    return true;
}

/* The mask: as told, else named by the files, else by its spelling, else where its class has it. */
static bool vocab_mask_(Vocab *v, i32 given, Err *e) {
    if (given >= 0) {
        v->mask = given;
        if (given < (i32)v->n) return true;
        return err_set(e, ERR_USAGE, "--mask-token-id %d is outside the vocabulary of %u tokens",
                       given, v->n);
    }
    if (!vocab_id_(v, "mask", -1, &v->mask, e)) return false;
    for (size_t i = 0; i < COUNT_OF(MODEL_MASK_SPELLINGS) && v->mask < 0; i++)
        v->mask = vocab_find(v, str_of(MODEL_MASK_SPELLINGS[i]));
    if (v->mask >= 0 || v->hf->class->mask_id < 0) return true;
    v->mask = v->hf->class->mask_id;
    return v->mask < (i32)v->n ||
           err_set(e, ERR_MODEL,
                   "%s: no mask token in the vocabulary; %s has it at %d, but there are %u tokens",
                   v->label, v->hf->class->name, v->mask, v->n);
}

/* Does tokenizer.json's post-processor put this token first? */
static bool vocab_processor_adds_(const Vocab *v, i32 id, bool at_end) {
    const JsonDoc *d = &v->tokenizer.doc;
    u32 node = json_get(d, 0, "post_processor"), list = json_get(d, node, "processors"),
        at = json_first(d, list);
    for (u32 n = json_count(d, list); n > 0; n--, at = json_next(d, at))
        if (json_get(d, at, "single") != JSON_NONE) node = at;
    u32 single = json_get(d, node, "single"), n = json_count(d, single);
    u32 item = json_first(d, single);
    for (; at_end && n > 1; n--) item = json_next(d, item);
    Str text = {"", 0};
    return id >= 0 && json_str(d, json_get(d, json_get(d, item, "SpecialToken"), "id"), &text) &&
           str_eq(text, v->text[id]);
}

/* Two spellings of the setting: the tokenizer's class reads the first, its file does the second. */
static bool vocab_adds_(const Vocab *v, const char *key, i32 id, bool at_end) {
    bool adds = v->tokenizer.doc.n ? vocab_processor_adds_(v, id, at_end) : v->spm_style && !at_end;
    json_bool(&v->config.doc, json_get(&v->config.doc, 0, key), &adds);
    return adds && id >= 0;
}

/* chat_template.jinja, chat_template.json, or tokenizer_config.json: a text, or a list with a default. */
static bool vocab_template_(Vocab *v, Err *e) {
    const char *dir = v->hf->dir;
    if (!hf_path(v->template_path, dir, "chat_template.jinja", e)) return false;
    if (os_is_file(v->template_path)) {
        if (!os_map_file(&v->template_map, v->template_path, e)) return false;
        v->chat_template = (Str){(const char *)v->template_map.p, v->template_map.n};
        return true;
    }
    if (!hf_json_open(&v->template_json, dir, "chat_template.json", false, e)) return false;
    const JsonDoc *d = v->template_json.doc.n ? &v->template_json.doc : &v->config.doc;
    u32 node = json_get(d, 0, "chat_template"), at = json_first(d, node);
    if (json_str(d, node, &v->chat_template)) return true;
    for (u32 n = json_count(d, node); n > 0; n--, at = json_next(d, at)) {
        Str name = {"", 0};
        json_str(d, json_get(d, at, "name"), &name);
        if (str_eq(name, STR("default")))
            json_str(d, json_get(d, at, "template"), &v->chat_template);
    }
    return true;
}

static bool vocab_read_(Vocab *v, i32 mask_id, Err *e) {
    const char *dir = v->hf->dir;
    if (!hf_json_open(&v->tokenizer, dir, "tokenizer.json", false, e) ||
        !hf_json_open(&v->config, dir, "tokenizer_config.json", false, e) ||
        !hf_json_open(&v->specials, dir, "special_tokens_map.json", false, e) ||
        !hf_json_open(&v->added, dir, "added_tokens.json", false, e) ||
        !hf_path(v->spm_path, dir, "tokenizer.model", e))
        return false;
    v->n = (u32)v->hf->n_vocab;
    v->text = mem_alloc_n(v->n, sizeof *v->text, e);
    v->type = mem_alloc_n(v->n, sizeof *v->type, e);
    v->score = mem_alloc_n(v->n, sizeof *v->score, e);
    if (!v->text || !v->type || !v->score) return false;
    bool has_json = v->tokenizer.doc.n != 0;
    v->label = has_json ? v->tokenizer.path : v->spm_path;
    if (!has_json && !os_is_file(v->spm_path))
        return err_set(e, ERR_MODEL,
                       "%s: no tokenizer: neither tokenizer.json nor tokenizer.model is there",
                       dir);
    if (!(has_json ? vocab_read_json_(v, e) : vocab_read_spm_(v, e))) return false;
    bool spm = !has_json;
    if (!vocab_id_(v, "bos", spm ? v->spm.bos : -1, &v->bos, e) ||
        !vocab_id_(v, "eos", spm ? v->spm.eos : -1, &v->eos, e) ||
        !vocab_id_(v, "unk", spm ? v->spm.unk : -1, &v->unk, e) ||
        !vocab_id_(v, "pad", -1, &v->pad, e) || !vocab_mask_(v, mask_id, e))
        return false;
    v->add_bos = vocab_adds_(v, "add_bos_token", v->bos, false);
    v->add_eos = vocab_adds_(v, "add_eos_token", v->eos, true);
    return vocab_template_(v, e);
}

/* Reads the tokenizer of the checkpoint h, which must outlive v. */
static bool vocab_open(Vocab *v, const Hf *h, const char *pre, i32 mask_id, Err *e) {
    *v = (Vocab){.hf = h, .pre = pre};
    if (vocab_read_(v, mask_id, e)) return true;
    vocab_close(v);
    return false;
}

static void vocab_put_keys(const Vocab *v, GgufWriter *w) {
    const struct {
        const char *key;
        i32 id;
    } ids[] = {
        {"tokenizer.ggml.bos_token_id", v->bos},     {"tokenizer.ggml.eos_token_id", v->eos},
        {"tokenizer.ggml.unknown_token_id", v->unk}, {"tokenizer.ggml.padding_token_id", v->pad},
        {"tokenizer.ggml.mask_token_id", v->mask},
    };
    gguf_put_str(w, "tokenizer.ggml.model", v->spm_style ? STR("llama") : STR("gpt2"));
    gguf_put_str(w, "tokenizer.ggml.pre", v->spm_style ? STR("default") : str_of(v->pre_name));
    gguf_put_strs(w, "tokenizer.ggml.tokens", v->text, v->n);
    if (v->spm_style) gguf_put_f32s(w, "tokenizer.ggml.scores", v->score, v->n);
    gguf_put_i32s(w, "tokenizer.ggml.token_type", v->type, v->n);
    if (!v->spm_style) gguf_put_strs(w, "tokenizer.ggml.merges", v->merges, v->n_merges);
    for (size_t i = 0; i < COUNT_OF(ids); i++)
        if (ids[i].id >= 0) gguf_put_u32(w, ids[i].key, (u32)ids[i].id);
    gguf_put_bool(w, "tokenizer.ggml.add_bos_token", v->add_bos);
    gguf_put_bool(w, "tokenizer.ggml.add_eos_token", v->add_eos);
    if (v->spm_style) gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", v->space_prefix);
    if (v->chat_template.n) gguf_put_str(w, "tokenizer.chat_template", v->chat_template);
}

#endif

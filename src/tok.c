/* tok.c - BPE over bytes or over SentencePiece's pieces: text to token ids and back, as the vocabulary
 * in a GGUF file says.
 *
 * Owns:      its tables; token texts stay in the GGUF mapping, which must outlive the Tok.
 * Stands on: base mem utf8 pre gguf
 * Promises:  immutable once open, so any number of threads may encode; no text, however long or broken,
 *            takes more than O(n log n) time; untrusted text never becomes a control token. */
#ifndef DLM_TOK_C
#define DLM_TOK_C

#include "base.c"
#include "gguf.c"
#include "mem.c"
#include "pre.c"
#include "utf8.c"

#define TOK_VOCAB_MAX (1u << 22)        /* tokens */
#define TOK_MERGES_MAX (1u << 23)       /* merges */
#define TOK_TEXT_MAX ((size_t)64 << 10) /* bytes of one token's text */
#define TOK_SPECIAL_MAX ((size_t)256)   /* bytes of a token that is looked for in the text */
#define TOK_INPUT_MAX ((size_t)1 << 30) /* bytes of text in one call */
#define TOK_IDS_MAX_DEFAULT ((size_t)1 << 28)
/* Slots that a look-up may visit. Tables are at most 2/3 full, where honest rows stay under a
 * hundred; a longer one was made on purpose, and is refused when the table is filled. */
#define TOK_PROBE_MAX 1024u

/* ---- growing lists of ids ---- */

typedef struct {
    i32 *p;     /* [n] token ids */
    size_t n;   /* ids in use */
    size_t cap; /* ids held */
    size_t max; /* the lid; 0 means TOK_IDS_MAX_DEFAULT */
} TokIds;

static void tok_ids_free(TokIds *ids) {
    mem_free(ids->p);
    *ids = (TokIds){.max = ids->max};
}

static bool tok_ids_push(TokIds *ids, i32 id, Err *e) {
    size_t max = ids->max ? ids->max : TOK_IDS_MAX_DEFAULT;
    if (ids->n >= max)
        return err_set(e, ERR_RUNTIME, "the text is longer than %zu tokens; shorten it", max);
    if (ids->n == ids->cap) {
        size_t cap = ids->cap ? MIN_OF(ids->cap * 2, max) : MIN_OF((size_t)256, max);
        i32 *p = mem_alloc_n(cap, sizeof *p, e);
        if (!p) return false;
        if (ids->n) memcpy(p, ids->p, ids->n * sizeof *p);
        mem_free(ids->p);
        ids->p = p;
        ids->cap = cap;
    }
    ids->p[ids->n++] = id;
    return true;
}

/* ---- the tokenizer ---- */

/* tokenizer.ggml.token_type */
enum {
    TOK_UNDEFINED,
    TOK_NORMAL, /* spelled in byte characters, built by merges */
    TOK_UNKNOWN,
    TOK_CONTROL, /* spelled as is; made by trusted text only; not shown */
    TOK_USER,    /* spelled as is; shown */
    TOK_UNUSED,
    TOK_BYTE /* <0x00> .. <0xFF> */
};
#define TOK_TYPE_BITS 7u
#define TOK_EOG 8u /* flag beside the type: ends the generation */

/* GPT-2 spells a byte by a printable character: itself, or U+0100 + k for the k-th other byte. */
#define TOK_BYTE_CHARS (256u + 68u)

/* SentencePiece spells a blank by U+2581. */
#define TOK_BLANK "\xE2\x96\x81"

typedef struct {
    u32 id_1; /* token id + 1; 0: empty */
    u32 hash; /* the other half of the hash: most misses end here, without a look at the text */
} TokSlot_;

typedef struct {
    i32 left, right; /* the pair of token ids */
    u32 rank_1;      /* its place in the list of merges + 1; 0: empty */
    i32 id;          /* what it becomes */
} TokMerge_;

typedef struct {
    Str text;
    i32 id;
    bool plain; /* ordinary text that happens to be one token: matches trusted or not */
    bool strip; /* the white space after it goes with it */
} TokSpecial_;

typedef struct {
    u32 n_vocab;
    i32 bos, eos, eot, unk, pad, mask; /* token ids; -1: none */
    bool add_bos, add_eos;
    bool spm;       /* SentencePiece's BPE; else GPT-2's, over bytes */
    bool nfc;       /* text is brought to Unicode's form NFC first */
    bool add_blank; /* SentencePiece: a text begins with a blank that nobody wrote */
    const char *pre_name;
    Str chat_template; /* empty: none */

    Pre pre;
    bool ignore_merges; /* of the pre-tokenizer's row */
    Str *text;          /* [n_vocab] in the mapping */
    u8 *kind;           /* [n_vocab] type | TOK_EOG */
    u32 *order;         /* [n_vocab] SentencePiece: a lower one is merged first */
    bool blank_first;   /* no piece has a blank behind another character */
    TokSlot_ *slots;    /* [slots_mask + 1] by hash of the text */
    u32 slots_mask;
    TokMerge_ *merges; /* [merges_mask + 1] by hash of the pair */
    u32 merges_mask;
    TokSpecial_ *special; /* [n_special] in byte order */
    u32 n_special;
    u32 special_first[257];           /* byte b begins [special_first[b], special_first[b + 1]) */
    i32 byte_id[256];                 /* the token that is this one byte; -1: none */
    u16 char_of_byte[256];            /* code points */
    i16 byte_of_char[TOK_BYTE_CHARS]; /* -1: not such a character */
    size_t longest;                   /* bytes of the longest token text */
} Tok;

static bool tok_has_(const Tok *t, i32 id) {
    return id >= 0 && (u32)id < t->n_vocab;
}

static u32 tok_type_(const Tok *t, i32 id) {
    return t->kind[id] & TOK_TYPE_BITS;
}

/* The vocabulary's spelling; empty for an id beyond it (a model may have more rows than tokens). */
static Str tok_text(const Tok *t, i32 id) {
    return tok_has_(t, id) ? t->text[id] : (Str){"", 0};
}

/* Not part of the answer's text. */
static bool tok_is_special(const Tok *t, i32 id) {
    return tok_has_(t, id) && (tok_type_(t, id) == TOK_CONTROL || tok_type_(t, id) == TOK_UNKNOWN);
}

static bool tok_is_eog(const Tok *t, i32 id) {
    return tok_has_(t, id) && t->kind[id] & TOK_EOG;
}

/* ---- hash tables: open addressing, filled once ---- */

/* FNV-1a of a and b as one string. */
static u64 tok_hash_(Str a, Str b) {
    u64 h = str_hash(a);
    for (size_t i = 0; i < b.n; i++) h = (h ^ (u8)b.p[i]) * 0x100000001b3u;
    return h ^ h >> 32;
}

/* The slot of the token spelled a + b, or the empty one where it belongs; NULL: the row is full. */
static TokSlot_ *tok_slot_(const Tok *t, Str a, Str b) {
    u64 h = tok_hash_(a, b);
    for (u32 k = 0; k < TOK_PROBE_MAX; k++) {
        TokSlot_ *slot = &t->slots[((u32)h + k) & t->slots_mask];
        if (!slot->id_1) return slot;
        if (slot->hash != (u32)(h >> 32)) continue;
        Str text = t->text[slot->id_1 - 1];
        if (text.n == a.n + b.n && str_starts(text, a) && str_ends(text, b)) return slot;
    }
    return NULL;
}

static i32 tok_find_pair_(const Tok *t, Str a, Str b) {
    const TokSlot_ *slot = tok_slot_(t, a, b);
    return slot ? (i32)slot->id_1 - 1 : -1;
}

/* The token with exactly this spelling, or -1. */
static i32 tok_find(const Tok *t, Str text) {
    return tok_find_pair_(t, text, (Str){"", 0});
}

/* Likewise for the merge of a pair. */
static TokMerge_ *tok_merge_(const Tok *t, i32 left, i32 right) {
    u64 h = ((u64)(u32)left << 32 | (u32)right) * 0x9E3779B97F4A7C15u;
    for (u32 k = 0; k < TOK_PROBE_MAX; k++) {
        TokMerge_ *m = &t->merges[((u32)(h >> 32) + k) & t->merges_mask];
        if (!m->rank_1 || (m->left == left && m->right == right)) return m;
    }
    return NULL;
}

/* Slots for n entries: a power of two, at most 2/3 full. */
static u32 tok_table_size_(u32 n) {
    u32 size = 16;
    while (size / 3 * 2 <= n) size *= 2;
    return size;
}

/* The end of the blanks that begin at i, or of what is none. */
static size_t tok_blanks_(Str s, size_t i, bool blanks) {
    Str blank = STR(TOK_BLANK);
    if (!blanks) return MIN_OF(str_find(s, blank, i), s.n);
    while (str_starts(str_cut(s, i, s.n), blank)) i += blank.n;
    return i;
}

/* ---- opening ---- */

/* <...>, [...] and |...|: how tokens that steer a model are spelled. A user who types one gets text. */
static bool tok_is_markup_(Str s) {
    if (s.n < 3) return false;
    char a = s.p[0], b = s.p[s.n - 1];
    return (a == '<' && b == '>') || (a == '[' && b == ']') || (a == '|' && b == '|');
}

static void tok_close(Tok *t) {
    mem_free(t->text);
    mem_free(t->kind);
    mem_free(t->slots);
    mem_free(t->merges);
    mem_free(t->order);
    mem_free(t->special);
    *t = (Tok){0};
}

static bool tok_open_model_(Tok *t, const Gguf *g, Err *e) {
    Str model = {0};
    if (!gguf_get_str(g, "tokenizer.ggml.model", &model, e)) return false;
    if (!model.p)
        return err_set(e, ERR_MODEL,
                       "%s: no tokenizer in the file (key tokenizer.ggml.model); convert the model "
                       "again, with its tokenizer",
                       g->label);
    t->spm = str_eq(model, STR("llama"));
    if (!t->spm && !str_eq(model, STR("gpt2")))
        return err_set(e, ERR_MODEL,
                       "%s: tokenizer '%.*s' is not supported; dlm reads 'gpt2' "
                       "(byte-level BPE) and 'llama' (SentencePiece's BPE)",
                       g->label, STR_ARG(model));
    return true;
}

/* tokenizer.ggml.normalizer, which dlm's converter writes, holds before what the name of the
 * pre-tokenizer implies. */
static bool tok_open_normalizer_(Tok *t, const Gguf *g, Err *e) {
    Str name = {0};
    if (!gguf_get_str(g, "tokenizer.ggml.normalizer", &name, e)) return false;
    if (!name.p) return true;
    t->nfc = str_eq(name, STR("nfc"));
    if (t->nfc || str_eq(name, STR("none"))) return true;
    return err_set(e, ERR_MODEL,
                   "%s: key 'tokenizer.ggml.normalizer' is '%.*s'; 'nfc' and 'none' are supported",
                   g->label, STR_ARG(name));
}

/* How the text is made ready: normalized, and cut into words or begun with a blank. */
static bool tok_open_pre_(Tok *t, const Gguf *g, const char *override, Err *e) {
    Str name = {0};
    if (t->spm) {
        if (override)
            return err_set(e, ERR_USAGE,
                           "--pre %s: this model's tokenizer is SentencePiece's, which has none",
                           override);
        t->pre_name = "default";
        t->add_bos = t->add_blank = true;
        return gguf_get_bool(g, "tokenizer.ggml.add_space_prefix", &t->add_blank, e);
    }
    if (!gguf_get_str(g, "tokenizer.ggml.pre", &name, e)) return false;
    if (override) name = str_of(override);
    if (!name.p)
        return err_set(e, ERR_MODEL,
                       "%s: the file does not name its pre-tokenizer (key "
                       "tokenizer.ggml.pre); give it with --pre NAME: " PRE_LIST,
                       g->label);
    const PreName *known = pre_find(name);
    if (known) {
        const PreRow *row = pre_row(known);
        pre_compile(&t->pre, row);
        t->pre_name = known->name;
        t->ignore_merges = row->ignore_merges;
        t->add_bos = row->add_bos;
        t->nfc = known->nfc;
        return tok_open_normalizer_(t, g, e);
    }
    if (override)
        return err_set(e, ERR_USAGE, "--pre %.*s: no such pre-tokenizer; there are " PRE_LIST,
                       STR_ARG(name));
    return err_set(
        e, ERR_MODEL,
        "%s: pre-tokenizer '%.*s' is not supported; if it is the same as one of " PRE_LIST
        ", give that with --pre NAME",
        g->label, STR_ARG(name));
}

static void tok_open_bytes_(Tok *t) {
    memset(t->byte_of_char, 0xFF, sizeof t->byte_of_char);
    u32 other = 256;
    for (u32 b = 0; b < 256; b++) {
        bool printable = (b > 0x20 && b < 0x7F) || (b > 0xA0 && b != 0xAD);
        t->char_of_byte[b] = (u16)(printable ? b : other++);
        t->byte_of_char[t->char_of_byte[b]] = (i16)b;
    }
    ASSERT(other == TOK_BYTE_CHARS);
}

/* Token texts and their index. Of equal texts the first is found; the others only decode. */
static bool tok_open_texts_(Tok *t, const Gguf *g, Err *e) {
    GgufStrIter it = {0};
    bool found;
    if (!gguf_get_array(g, "tokenizer.ggml.tokens", GGUF_STRING, &it.a, &found, e)) return false;
    if (!found || it.a.count == 0 || it.a.count > TOK_VOCAB_MAX)
        return err_set(e, ERR_MODEL,
                       "%s: key 'tokenizer.ggml.tokens' has %llu tokens; 1 to %u are wanted",
                       g->label, (unsigned long long)it.a.count, TOK_VOCAB_MAX);
    t->n_vocab = (u32)it.a.count;
    u32 size = tok_table_size_(t->n_vocab);
    t->slots_mask = size - 1;
    t->text = mem_alloc_n(t->n_vocab, sizeof *t->text, e);
    t->kind = mem_alloc_n(t->n_vocab, sizeof *t->kind, e);
    t->slots = mem_alloc_n(size, sizeof *t->slots, e);
    if (!t->text || !t->kind || !t->slots) return false;
    for (u32 id = 0; id < t->n_vocab; id++) {
        Str s;
        ASSERT(gguf_str_next(&it, &s));
        if (s.n > TOK_TEXT_MAX)
            return err_set(e, ERR_MODEL, "%s: token %u is %zu bytes long; %zu is the limit",
                           g->label, id, s.n, TOK_TEXT_MAX);
        t->text[id] = s;
        t->kind[id] = TOK_NORMAL;
        t->longest = MAX_OF(t->longest, s.n);
        TokSlot_ *slot = tok_slot_(t, s, (Str){"", 0});
        if (!slot)
            return err_set(e, ERR_MODEL,
                           "%s: the vocabulary is made to be slow: token %u and over %u "
                           "others have the same hash",
                           g->label, id, TOK_PROBE_MAX);
        if (!slot->id_1) *slot = (TokSlot_){id + 1, (u32)(tok_hash_(s, (Str){"", 0}) >> 32)};
    }
    return true;
}

static bool tok_open_types_(Tok *t, const Gguf *g, Err *e) {
    GgufArray types;
    bool found;
    if (!gguf_get_array(g, "tokenizer.ggml.token_type", GGUF_I32, &types, &found, e)) return false;
    if (!found) return true;
    if (types.count != t->n_vocab)
        return err_set(e, ERR_MODEL,
                       "%s: key 'tokenizer.ggml.token_type' has %llu entries for %u tokens",
                       g->label, (unsigned long long)types.count, t->n_vocab);
    for (u32 id = 0; id < t->n_vocab; id++) {
        i64 type = gguf_array_int(&types, id);
        if (type < TOK_UNDEFINED || type > TOK_BYTE)
            return err_set(e, ERR_MODEL,
                           "%s: key 'tokenizer.ggml.token_type': token %u has type %lld; 0 "
                           "to %d are known",
                           g->label, id, (long long)type, TOK_BYTE);
        t->kind[id] = (u8)type;
    }
    return true;
}

/* Tokens that end an answer, by name: files name one of them by id, and models emit the others as
 * well. The first that the vocabulary has is the end of a turn, when no key says. */
static const char *const TOK_EOG_NAMES[] = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|role_end|>",
    "<|EOT|>",
    "<EOT>",
    "[EOT]",
    "<|eom_id|>",
    "<end_of_utterance>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<\357\275\234end\342\226\201of\342\226\201sentence\357\275\234>", /* DeepSeek's */
    "</s>",
};

/* A token that a key names and that is spelled like markup is a control token, whatever its type. */
static bool tok_open_id_(Tok *t, const Gguf *g, const char *key, i32 *id, Err *e) {
    if (!gguf_get_token_id(g, key, t->n_vocab, id, e)) return false;
    if (*id >= 0 && tok_is_markup_(t->text[*id])) t->kind[*id] = TOK_CONTROL;
    return true;
}

static bool tok_open_ids_(Tok *t, const Gguf *g, Err *e) {
    i32 eom = -1;
    t->bos = t->eos = t->eot = t->unk = t->pad = t->mask = -1;
    if (t->spm) { /* SentencePiece's own names */
        t->bos = tok_find(t, STR("<s>"));
        t->eos = tok_find(t, STR("</s>"));
        t->unk = tok_find(t, STR("<unk>"));
    }
    bool ok = tok_open_id_(t, g, "tokenizer.ggml.bos_token_id", &t->bos, e) &&
              tok_open_id_(t, g, "tokenizer.ggml.eos_token_id", &t->eos, e) &&
              tok_open_id_(t, g, "tokenizer.ggml.eot_token_id", &t->eot, e) &&
              tok_open_id_(t, g, "tokenizer.ggml.eom_token_id", &eom, e) &&
              tok_open_id_(t, g, "tokenizer.ggml.unknown_token_id", &t->unk, e) &&
              tok_open_id_(t, g, "tokenizer.ggml.padding_token_id", &t->pad, e) &&
              tok_open_id_(t, g, "tokenizer.ggml.mask_token_id", &t->mask, e);
    if (!ok) return false;
    for (size_t i = 0; i < COUNT_OF(TOK_EOG_NAMES); i++) {
        Str name = str_of(TOK_EOG_NAMES[i]);
        i32 id = tok_find(t, name);
        /* "</s>" may be an ordinary word of HTML; "<|...|>" is nobody's word. */
        if (id < 0 || (tok_type_(t, id) == TOK_NORMAL && !str_starts(name, STR("<|")))) continue;
        t->kind[id] = TOK_CONTROL | TOK_EOG;
        if (t->eot < 0) t->eot = id;
    }
    if (t->eos >= 0) t->kind[t->eos] |= TOK_EOG;
    if (t->eot >= 0) t->kind[t->eot] |= TOK_EOG;
    if (eom >= 0) t->kind[eom] |= TOK_EOG;

    const GgufKv *says = gguf_find(g, STR("tokenizer.ggml.add_bos_token"));
    t->add_bos = !says && t->add_bos && t->bos >= 0;
    if (!gguf_get_bool(g, "tokenizer.ggml.add_bos_token", &t->add_bos, e) ||
        !gguf_get_bool(g, "tokenizer.ggml.add_eos_token", &t->add_eos, e) ||
        !gguf_get_str(g, "tokenizer.chat_template", &t->chat_template, e))
        return false;
    if ((t->add_bos && t->bos < 0) || (t->add_eos && t->eos < 0))
        return err_set(e, ERR_MODEL,
                       "%s: key 'tokenizer.ggml.add_%s_token' is true, but there is no such token",
                       g->label, t->bos < 0 && t->add_bos ? "bos" : "eos");
    return true;
}

/* A byte's token: in byte-level BPE its one-character spelling, else <0xHH>. Only tokens of those two
 * types qualify: a user token may be spelled by the same character and mean the character. */
static void tok_open_byte_ids_(Tok *t) {
    for (u32 b = 0; b < 256; b++) {
        char s[8];
        size_t n = utf8_put(t->char_of_byte[b], s);
        i32 id = t->spm ? -1 : tok_find(t, (Str){s, n});
        if (id < 0 || tok_type_(t, id) != TOK_NORMAL) {
            snprintf(s, sizeof s, "<0x%02X>", b);
            id = tok_find(t, str_of(s));
            if (id >= 0 && tok_type_(t, id) != TOK_BYTE) id = -1;
        }
        t->byte_id[b] = id;
    }
}

static bool tok_open_merges_(Tok *t, const Gguf *g, Err *e) {
    GgufStrIter it = {0};
    bool found;
    if (!gguf_get_array(g, "tokenizer.ggml.merges", GGUF_STRING, &it.a, &found, e)) return false;
    if (!found || it.a.count > TOK_MERGES_MAX)
        return err_set(e, ERR_MODEL,
                       "%s: key 'tokenizer.ggml.merges' has %llu merges; at most %u, and the "
                       "key itself, are wanted",
                       g->label, (unsigned long long)it.a.count, TOK_MERGES_MAX);
    u32 n = (u32)it.a.count, size = tok_table_size_(n);
    t->merges_mask = size - 1;
    t->merges = mem_alloc_n(size, sizeof *t->merges, e);
    if (!t->merges) return false;
    for (u32 rank = 0; rank < n; rank++) {
        Str s;
        ASSERT(gguf_str_next(&it, &s));
        size_t space = str_find(s, STR(" "), 1);
        Str a = str_cut(s, 0, space), b = str_cut(s, space == SIZE_MAX ? space : space + 1, s.n);
        i32 left = tok_find(t, a), right = tok_find(t, b), id = tok_find_pair_(t, a, b);
        if (space == SIZE_MAX || left < 0 || right < 0 || id < 0)
            return err_set(e, ERR_MODEL,
                           "%s: merge %u ('%.*s') is not two tokens whose union is a token",
                           g->label, rank, STR_ARG(s));
        if (tok_is_special(t, id)) continue; /* text must not add up to a control token */
        TokMerge_ *m = tok_merge_(t, left, right);
        if (!m)
            return err_set(e, ERR_MODEL,
                           "%s: the merges are made to be slow: merge %u and over %u others "
                           "have the same hash",
                           g->label, rank, TOK_PROBE_MAX);
        if (m->rank_1) continue; /* listed twice: the first rank holds */
        *m = (TokMerge_){left, right, rank + 1, id};
    }
    return true;
}

/* The order of f as unsigned integers, the greatest first. */
static u32 tok_order_(f32 f) {
    u32 bits;
    f += 0.0f; /* no negative zero */
    memcpy(&bits, &f, sizeof bits);
    return bits >> 31 ? bits : ~bits & 0x7FFFFFFFu;
}

static bool tok_open_scores_(Tok *t, const Gguf *g, Err *e) {
    GgufArray scores;
    bool found;
    if (!gguf_get_array(g, "tokenizer.ggml.scores", GGUF_F32, &scores, &found, e)) return false;
    if (!found || scores.count != t->n_vocab)
        return err_set(e, ERR_MODEL,
                       "%s: key 'tokenizer.ggml.scores' has %llu entries for %u tokens", g->label,
                       (unsigned long long)(found ? scores.count : 0), t->n_vocab);
    t->order = mem_alloc_n(t->n_vocab, sizeof *t->order, e);
    if (!t->order) return false;
    t->blank_first = true;
    for (u32 id = 0; id < t->n_vocab; id++) {
        f32 score = gguf_array_f32(&scores, id);
        if (score != score)
            return err_set(e, ERR_MODEL, "%s: the score of token %u is not a number", g->label, id);
        t->order[id] = tok_order_(score);
        Str text = t->text[id];
        for (size_t at = 0; tok_type_(t, (i32)id) == TOK_NORMAL && at < text.n;) {
            at = tok_blanks_(text, at, true);
            at = tok_blanks_(text, at, false);
            if (at < text.n) t->blank_first = false;
        }
    }
    return true;
}

static int tok_by_bytes_(const void *pa, const void *pb) {
    const TokSpecial_ *a = pa, *b = pb;
    int order = memcmp(a->text.p, b->text.p, MIN_OF(a->text.n, b->text.n));
    if (order) return order;
    if (a->text.n != b->text.n) return a->text.n < b->text.n ? -1 : 1;
    return a->id < b->id ? -1 : a->id > b->id;
}

/* Phi-3's tokenizer takes the white space after its own tokens with them, which GGUF has no key for. */
static bool tok_strips_(const Tok *t, Str arch, Str text) {
    return t->spm && str_eq(arch, STR("phi3")) && !str_eq(text, STR("<unk>")) &&
           !str_eq(text, STR("<s>")) && !str_eq(text, STR("<|endoftext|>"));
}

/* The tokens that are looked for in the text before it is cut into words. */
static bool tok_open_special_(Tok *t, const Gguf *g, Err *e) {
    Str arch = {0};
    u32 n = 0;
    if (!gguf_get_str(g, "general.architecture", &arch, e)) return false;
    for (u32 id = 0; id < t->n_vocab; id++)
        n += tok_is_special(t, (i32)id) || tok_type_(t, (i32)id) == TOK_USER;
    t->special = mem_alloc_n(n, sizeof *t->special, e);
    if (!t->special) return false;
    for (u32 id = 0; id < t->n_vocab; id++) {
        bool user = tok_type_(t, (i32)id) == TOK_USER;
        Str text = t->text[id];
        if ((!user && !tok_is_special(t, (i32)id)) || text.n == 0) continue;
        if (text.n > TOK_SPECIAL_MAX)
            return err_set(e, ERR_MODEL, "%s: special token %u is %zu bytes long; %zu is the limit",
                           g->label, id, text.n, TOK_SPECIAL_MAX);
        t->special[t->n_special++] =
            (TokSpecial_){text, (i32)id, user && !tok_is_markup_(text), tok_strips_(t, arch, text)};
    }
    qsort(t->special, t->n_special, sizeof *t->special, tok_by_bytes_);
    for (u32 byte = 0, at = 0; byte <= 256; byte++) {
        while (at < t->n_special && (u8)t->special[at].text.p[0] < byte) at++;
        t->special_first[byte] = at;
    }
    return true;
}

/* pre_override: the name of a pre-tokenizer that replaces the file's, or NULL. */
static bool tok_open(Tok *t, const Gguf *g, const char *pre_override, Err *e) {
    *t = (Tok){0};
    tok_open_bytes_(t);
    if (tok_open_model_(t, g, e) && tok_open_pre_(t, g, pre_override, e) &&
        tok_open_texts_(t, g, e) && tok_open_types_(t, g, e) && tok_open_ids_(t, g, e) &&
        (t->spm ? tok_open_scores_(t, g, e) : tok_open_merges_(t, g, e)) &&
        tok_open_special_(t, g, e)) {
        tok_open_byte_ids_(t);
        return true;
    }
    tok_close(t);
    return false;
}

/* ---- BPE of one word ----
 *
 * Symbols are a doubly linked list; a heap holds, for every pair that can merge, its rank and its
 * place, so that the lowest rank, and of equal ranks the leftmost, comes out first. Each merge adds
 * at most two pairs: n log n, where the textbook's rescan of the word is n^2. */

#define TOK_NONE UINT32_MAX /* no neighbour; no rank */

typedef struct {
    u32 prev, next; /* neighbours, or TOK_NONE */
    i32 id;         /* token id */
    u32 rank;       /* of the merge with next; TOK_NONE: none, or this symbol is gone */
    i32 merged;     /* the id that merge makes */
    u32 at;         /* byte of the word */
} TokSym_;

typedef struct {
    TokSym_ *sym; /* [cap] */
    u64 *heap;    /* [2 * cap] rank << 32 | index of the left symbol */
    size_t n_heap, cap;
    Str word; /* that is being merged */
    Buf spelling;
    Buf text;     /* normalized, or with SentencePiece's blanks */
    bool unknown; /* the last id was the unknown token */
    u32 *run;     /* [2 * run_cap] what normalization holds back, and room to sort it */
    size_t n_run, run_cap;
} TokWork_;

static void tok_work_free_(TokWork_ *w) {
    mem_free(w->sym);
    mem_free(w->heap);
    mem_free(w->run);
    buf_free(&w->spelling);
    buf_free(&w->text);
    *w = (TokWork_){0};
}

static bool tok_work_reserve_(TokWork_ *w, size_t n, Err *e) {
    if (n <= w->cap) return true;
    size_t cap = w->cap ? w->cap : 32; /* bytes: most words are shorter */
    while (cap < n) cap *= 2;
    mem_free(w->sym);
    mem_free(w->heap);
    w->heap = NULL;
    w->cap = 0;
    w->sym = mem_alloc_n(cap, sizeof *w->sym, e);
    w->heap = mem_alloc_n(cap, 2 * sizeof *w->heap, e);
    if (!w->sym || !w->heap) return false;
    w->cap = cap;
    return true;
}

static void tok_heap_push_(TokWork_ *w, u64 key) {
    ASSERT(w->n_heap < 2 * w->cap);
    size_t i = w->n_heap++;
    for (; i > 0 && w->heap[(i - 1) / 2] > key; i = (i - 1) / 2) w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = key;
}

static u64 tok_heap_pop_(TokWork_ *w) {
    u64 top = w->heap[0], key = w->heap[--w->n_heap];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < w->n_heap; i = child) {
        if (child + 1 < w->n_heap && w->heap[child + 1] < w->heap[child]) child++;
        if (w->heap[child] >= key) break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = key;
    return top;
}

/* The piece with this text that text may add up to, or -1. */
static i32 tok_find_piece_(const Tok *t, Str text) {
    i32 id = text.n > t->longest ? -1 : tok_find(t, text);
    return id >= 0 && tok_type_(t, id) == TOK_NORMAL ? id : -1;
}

/* Looks up the merge of symbol i with its right neighbour. */
static void tok_pair_(const Tok *t, TokWork_ *w, u32 i) {
    TokSym_ *s = &w->sym[i];
    s->rank = TOK_NONE;
    if (s->next == TOK_NONE) return;
    const TokSym_ *right = &w->sym[s->next];
    if (t->spm) {
        size_t end = right->next == TOK_NONE ? w->word.n : w->sym[right->next].at;
        s->merged = tok_find_piece_(t, str_cut(w->word, s->at, end));
        if (s->merged < 0) return;
        s->rank = t->order[s->merged];
    } else {
        const TokMerge_ *m = tok_merge_(t, s->id, right->id);
        if (!m || !m->rank_1) return;
        s->rank = m->rank_1 - 1;
        s->merged = m->id;
    }
    tok_heap_push_(w, (u64)s->rank << 32 | i);
}

/* Merges the n > 0 symbols of a word until nothing more can be. */
static void tok_merge_all_(const Tok *t, TokWork_ *w, u32 n) {
    w->sym[n - 1].next = TOK_NONE; /* and sym[0].prev is 0 - 1 = TOK_NONE */
    w->n_heap = 0;
    for (u32 i = 0; i + 1 < n; i++) tok_pair_(t, w, i);
    while (w->n_heap) {
        u64 key = tok_heap_pop_(w);
        u32 i = (u32)key;
        TokSym_ *s = &w->sym[i];
        if (s->rank != key >> 32) continue; /* a neighbour was faster; an equal rank is as good */
        TokSym_ *gone = &w->sym[s->next];
        gone->rank = TOK_NONE;
        s->id = s->merged;
        s->next = gone->next;
        if (s->next != TOK_NONE) w->sym[s->next].prev = i;
        tok_pair_(t, w, i);
        if (s->prev != TOK_NONE) tok_pair_(t, w, s->prev);
    }
}

/* The word as the vocabulary would spell it: one character per byte. */
static i32 tok_find_word_(const Tok *t, TokWork_ *w, Str word) {
    if (word.n > t->longest) return -1;
    buf_clear(&w->spelling);
    for (size_t i = 0; i < word.n; i++) {
        char c[UTF8_MAX];
        buf_put(&w->spelling, c, utf8_put(t->char_of_byte[(u8)word.p[i]], c));
    }
    i32 id = w->spelling.failed ? -1 : tok_find(t, buf_view(&w->spelling));
    return id >= 0 && tok_type_(t, id) == TOK_NORMAL ? id : -1;
}

/* A byte without a token is dropped before the merging, as the reference does: vocabularies leave
 * out bytes that UTF-8 never has, and some a few control characters. */
static bool tok_encode_word_(const Tok *t, TokWork_ *w, Str word, TokIds *out, Err *e) {
    if (t->ignore_merges) {
        i32 id = tok_find_word_(t, w, word);
        if (w->spelling.failed) return buf_ok(&w->spelling, "a word's spelling", e);
        if (id >= 0) return tok_ids_push(out, id, e);
    }
    if (!tok_work_reserve_(w, word.n, e)) return false;
    u32 n = 0;
    for (size_t i = 0; i < word.n; i++) {
        i32 id = t->byte_id[(u8)word.p[i]];
        if (id < 0) continue;
        w->sym[n] = (TokSym_){n - 1, n + 1, id, TOK_NONE, 0, (u32)i};
        n++;
    }
    if (n == 0) return true;
    tok_merge_all_(t, w, n);
    for (u32 i = 0; i != TOK_NONE; i = w->sym[i].next)
        if (!tok_ids_push(out, w->sym[i].id, e)) return false;
    return true;
}

/* ---- SentencePiece's BPE ---- */

/* A character that is no piece: as bytes, else as the unknown token, once for a row of them. */
static bool tok_encode_unknown_(const Tok *t, TokWork_ *w, Str bytes, TokIds *out, Err *e) {
    for (size_t i = 0; i < bytes.n; i++) {
        i32 id = t->byte_id[(u8)bytes.p[i]];
        bool again = id < 0 && (w->unknown || t->unk < 0);
        w->unknown = id < 0;
        if (!again && !tok_ids_push(out, id < 0 ? t->unk : id, e)) return false;
    }
    return true;
}

static bool tok_encode_pieces_(const Tok *t, TokWork_ *w, Str word, TokIds *out, Err *e) {
    if (!tok_work_reserve_(w, word.n, e)) return false;
    u32 n = 0;
    for (size_t i = 0, from; i < word.n; n++) {
        from = i;
        utf8_next(word, &i);
        i32 id = tok_find_piece_(t, str_cut(word, from, i));
        w->sym[n] = (TokSym_){n - 1, n + 1, id, TOK_NONE, 0, (u32)from};
    }
    w->word = word;
    tok_merge_all_(t, w, n);
    for (u32 i = 0, next; i != TOK_NONE; i = next) {
        const TokSym_ *s = &w->sym[i];
        next = s->next;
        Str text = str_cut(word, s->at, next == TOK_NONE ? word.n : w->sym[next].at);
        if (s->id < 0 && !tok_encode_unknown_(t, w, text, out, e)) return false;
        if (s->id < 0) continue;
        w->unknown = false;
        if (!tok_ids_push(out, s->id, e)) return false;
    }
    return true;
}

/* Where no piece has a blank behind another character, the words can be merged one by one: the same
 * pieces, in less memory. */
static bool tok_encode_blanks_(const Tok *t, TokWork_ *w, Str text, TokIds *out, Err *e) {
    if (text.n == 0) return true;
    buf_clear(&w->text);
    if (t->add_blank) buf_str(&w->text, STR(TOK_BLANK));
    for (size_t i = 0, blank; i < text.n; i = blank + 1) {
        blank = MIN_OF(str_find(text, STR(" "), i), text.n);
        buf_str(&w->text, str_cut(text, i, blank));
        if (blank < text.n) buf_str(&w->text, STR(TOK_BLANK));
    }
    if (!buf_ok(&w->text, "the text", e)) return false;
    text = buf_view(&w->text);
    w->unknown = false;
    for (size_t i = 0, end; i < text.n; i = end) {
        end = t->blank_first ? tok_blanks_(text, tok_blanks_(text, i, true), false) : text.n;
        if (!tok_encode_pieces_(t, w, str_cut(text, i, end), out, e)) return false;
    }
    return true;
}

/* ---- normalization form C ----
 *
 * Characters are taken apart, and held back until one begins that nothing can join: then the marks that
 * were held back are sorted by their classes and put together again. Bytes that are not UTF-8 pass. */

#define TOK_RUN_CP 0x1FFFFFu /* of an entry: the code point; above it, its combining class */
#define TOK_RUN_CLASS 24u

static bool tok_run_add_(TokWork_ *w, u32 cp, u32 class, Err *e) {
    if (w->n_run == w->run_cap) {
        size_t cap = w->run_cap ? w->run_cap * 2 : 64;
        u32 *run = mem_alloc_n(cap, 2 * sizeof *run, e);
        if (!run) return false;
        if (w->n_run) memcpy(run, w->run, w->n_run * sizeof *run);
        mem_free(w->run);
        w->run = run;
        w->run_cap = cap;
    }
    w->run[w->n_run++] = class << TOK_RUN_CLASS | cp;
    return true;
}

/* Sorts v[0 .. n), marks all, by class; equal classes stay in their order. */
static void tok_run_sort_(u32 *v, size_t n, u32 *spare) {
    size_t at[256] = {0}, sum = 0, i = 1;
    while (i < n && v[i - 1] >> TOK_RUN_CLASS <= v[i] >> TOK_RUN_CLASS) i++;
    if (i >= n) return;
    for (i = 0; i < n; i++) at[v[i] >> TOK_RUN_CLASS]++;
    for (i = 0; i < 256; i++) {
        size_t count = at[i];
        at[i] = sum;
        sum += count;
    }
    for (i = 0; i < n; i++) spare[at[v[i] >> TOK_RUN_CLASS]++] = v[i];
    memcpy(v, spare, n * sizeof *v);
}

/* Writes what was held back, put together. A mark joins what begins the character unless a mark of its
 * own class or a higher one stands between. */
static void tok_run_flush_(TokWork_ *w) {
    u32 *v = w->run;
    size_t n = 0, begin = SIZE_MAX;
    for (size_t i = 0, end; i < w->n_run; i = end + 1) {
        for (end = i; end < w->n_run && v[end] >> TOK_RUN_CLASS; end++) {}
        tok_run_sort_(v + i, end - i, v + w->run_cap);
    }
    for (size_t i = 0; i < w->n_run; i++) {
        u32 class = v[i] >> TOK_RUN_CLASS, cp = v[i] & TOK_RUN_CP, joined = 0;
        bool near = begin != SIZE_MAX && (begin + 1 == n || v[n - 1] >> TOK_RUN_CLASS < class);
        if (near) joined = utf8_compose(v[begin], cp);
        if (joined) {
            v[begin] = joined;
            continue;
        }
        if (class == 0) begin = n;
        v[n++] = v[i];
    }
    for (size_t i = 0; i < n; i++) {
        char c[UTF8_MAX];
        buf_put(&w->text, c, utf8_put(v[i] & TOK_RUN_CP, c));
    }
    w->n_run = 0;
}

/* Below U+0300 nothing changes, and nothing changes what is before it. */
static bool tok_needs_nfc_(Str s) {
    for (size_t i = 0; i < s.n; i++)
        if ((u8)s.p[i] >= 0xCC) return true;
    return false;
}

static bool tok_normalize_(TokWork_ *w, Str s, Err *e) {
    buf_clear(&w->text);
    for (size_t i = 0, n; i < s.n; i += n) {
        u32 cp, part[UTF8_PARTS_MAX];
        bool ok = utf8_read(s, i, &cp, &n) == UTF8_OK;
        if (!ok || cp < 0x80 ||
            cp - 0x3400u < 0x6C00u) { /* bytes; ideographs: nothing joins them */
            n = ok ? n : 1;
            tok_run_flush_(w);
            if (!ok)
                buf_put(&w->text, s.p + i, n);
            else if (!tok_run_add_(w, cp, 0, e))
                return false;
            continue;
        }
        u32 n_parts = utf8_decompose(cp, part);
        for (u32 k = 0; k < n_parts; k++) {
            u32 class = utf8_combining_class(part[k]);
            if (class == 0 && !utf8_joins(part[k])) tok_run_flush_(w);
            if (!tok_run_add_(w, part[k], class, e)) return false;
        }
    }
    tok_run_flush_(w);
    return buf_ok(&w->text, "the text", e);
}

/* ---- encode ---- */

/* Text without special tokens. */
static bool tok_encode_text_(const Tok *t, TokWork_ *w, Str text, TokIds *out, Err *e) {
    if (t->spm) return tok_encode_blanks_(t, w, text, out, e);
    if (t->nfc && tok_needs_nfc_(text)) {
        if (!tok_normalize_(w, text, e)) return false;
        text = buf_view(&w->text);
    }
    size_t end[PRE_SPLITS_MAX] = {0};
    for (size_t i = 0, next; i < text.n; i = next) {
        next = pre_word_end(&t->pre, text, i, end);
        if (!tok_encode_word_(t, w, str_cut(text, i, next), out, e)) return false;
    }
    return true;
}

/* The first of special[lo, hi), which agree on `depth` bytes, whose next byte is at least
 * `byte`. */
static u32 tok_special_bound_(const Tok *t, u32 lo, u32 hi, size_t depth, u32 byte) {
    while (lo < hi) {
        u32 mid = lo + (hi - lo) / 2;
        if ((u8)t->special[mid].text.p[depth] < byte)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* The longest special token at text.p[i] that may stand there, and its length; or NULL. */
static const TokSpecial_ *tok_special_at_(const Tok *t, Str text, const u8 *trusted, size_t i) {
    const TokSpecial_ *best = NULL;
    u8 byte = (u8)text.p[i];
    u32 lo = t->special_first[byte], hi = t->special_first[byte + 1];
    bool trust = trusted && trusted[i];
    for (size_t depth = 1; lo < hi; depth++) {
        /* Shorter texts sort first: those that end here lead the range. */
        for (; lo < hi && t->special[lo].text.n == depth; lo++)
            if ((trust || t->special[lo].plain) && (!best || best->text.n < depth))
                best = &t->special[lo];
        if (depth >= text.n - i) break;
        byte = (u8)text.p[i + depth];
        trust = trust && trusted[i + depth];
        lo = tok_special_bound_(t, lo, hi, depth, byte);
        hi = tok_special_bound_(t, lo, hi, depth, byte + 1u);
    }
    return best;
}

static bool tok_encode_(const Tok *t, TokWork_ *w, Str text, const u8 *trusted, TokIds *out,
                        Err *e) {
    size_t from = 0;
    for (size_t i = 0; i < text.n && t->n_special;) {
        const TokSpecial_ *found = tok_special_at_(t, text, trusted, i);
        if (!found) {
            i++;
            continue;
        }
        if (!tok_encode_text_(t, w, str_cut(text, from, i), out, e)) return false;
        if (!tok_ids_push(out, found->id, e)) return false;
        i += found->text.n;
        while (found->strip && i < text.n) {
            size_t next = i;
            if (!(utf8_class(utf8_next(text, &next)) & UTF8_SPACE)) break;
            i = next;
        }
        from = i;
    }
    return tok_encode_text_(t, w, str_cut(text, from, text.n), out, e);
}

/* Appends the ids of text. trusted: NULL when a user wrote all of it; else [text.n] bytes, 1 where
 * the template wrote it: a control token's text is that token only where every byte of it is
 * trusted. User tokens that are plain text (runs of blanks, rare letters) are part of the ordinary
 * vocabulary and match anywhere. Adds no BOS or EOS. */
static bool tok_encode(const Tok *t, Str text, const u8 *trusted, TokIds *out, Err *e) {
    if (text.n > TOK_INPUT_MAX)
        return err_set(e, ERR_RUNTIME, "the text is %zu bytes long; %zu is the limit", text.n,
                       TOK_INPUT_MAX);
    TokWork_ w = {.text.max = 3 * TOK_INPUT_MAX + 3};
    bool ok = tok_encode_(t, &w, text, trusted, out, e);
    tok_work_free_(&w);
    return ok;
}

/* tok_encode between BOS and EOS as the file asks for them, never twice: templates write them as
 * well. */
static bool tok_encode_prompt(const Tok *t, Str text, const u8 *trusted, TokIds *out, Err *e) {
    size_t first = out->n;
    if (t->add_bos && !tok_ids_push(out, t->bos, e)) return false;
    size_t body = out->n;
    if (!tok_encode(t, text, trusted, out, e)) return false;
    if (body > first && out->n > body && out->p[body] == t->bos) {
        memmove(out->p + first, out->p + body, (out->n - body) * sizeof *out->p);
        out->n--;
        body--;
    }
    if (t->add_eos && (out->n == body || out->p[out->n - 1] != t->eos))
        return tok_ids_push(out, t->eos, e);
    return true;
}

/* ---- decode ---- */

static int tok_hex_(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* A piece's text: U+2581 is a blank. */
static bool tok_put_blanks_(Str s, Buf *out) {
    for (size_t i = 0, end; i < s.n; i = end) {
        bool blank = str_starts(str_cut(s, i, s.n), STR(TOK_BLANK));
        end = blank ? i + strlen(TOK_BLANK) : tok_blanks_(s, i, false);
        buf_str(out, blank ? STR(" ") : str_cut(s, i, end));
    }
    return !out->failed;
}

/* Appends the token's bytes: any part of UTF-8, so stream them through TokUtf8. Control tokens have
 * none unless `special`. An id outside the vocabulary has none. False when the buffer is full. */
static bool tok_bytes(const Tok *t, i32 id, bool special, Buf *out) {
    if (!tok_has_(t, id)) return true;
    Str s = t->text[id];
    switch (tok_type_(t, id)) {
    case TOK_UNKNOWN:
    case TOK_CONTROL: return special ? buf_str(out, s) : true;
    case TOK_USER: return t->spm ? tok_put_blanks_(s, out) : buf_str(out, s);
    case TOK_UNUSED: return true;
    case TOK_BYTE:
        if (s.n == 6 && str_starts(s, STR("<0x")) && s.p[5] == '>' && tok_hex_(s.p[3]) >= 0 &&
            tok_hex_(s.p[4]) >= 0)
            return buf_char(out, (char)(tok_hex_(s.p[3]) << 4 | tok_hex_(s.p[4])));
        return buf_str(out, s); /* not a byte after all: show the spelling */
    default: break;
    }
    if (t->spm) return tok_put_blanks_(s, out);
    if (!buf_reserve(out, s.n)) return false;
    for (size_t i = 0, from; i < s.n;) {
        from = i;
        u32 c = utf8_next(s, &i);
        if (c < TOK_BYTE_CHARS && t->byte_of_char[c] >= 0)
            out->p[out->n++] = (char)t->byte_of_char[c];
        else /* spelled as is */
            while (from < i) out->p[out->n++] = s.p[from++];
    }
    out->p[out->n] = 0;
    return true;
}

/* A whole text that was decoded, without the blank that encoding puts before it. */
static Str tok_without_blank(const Tok *t, Str text) {
    return str_cut(text, t->add_blank && str_starts(text, STR(" ")), text.n);
}

/* Bytes to text, a piece at a time: keeps back what may still become a code point. */
typedef struct {
    u8 hold[UTF8_MAX]; /* [n] the beginning of a code point */
    u8 n;
} TokUtf8;

/* Appends what is certain; bytes that are not UTF-8 become U+FFFD, as with Python's
 * errors="replace". */
static void tok_utf8_put(TokUtf8 *s, Str bytes, Buf *out) {
    for (size_t i = 0; i < bytes.n;) {
        if (s->n == 0) {
            size_t valid = utf8_valid(str_cut(bytes, i, bytes.n));
            buf_put(out, bytes.p + i, valid);
            i += valid;
            if (i == bytes.n) return;
        }
        ASSERT(s->n < sizeof s->hold);
        s->hold[s->n] = (u8)bytes.p[i];
        u32 cp;
        size_t len;
        Utf8State state = utf8_read((Str){(char *)s->hold, s->n + 1u}, 0, &cp, &len);
        if (state == UTF8_OK) buf_put(out, s->hold, len);
        if (state == UTF8_BAD) buf_str(out, STR("\xEF\xBF\xBD"));
        /* Of a broken sequence the new byte is looked at again, unless it is the sequence. */
        i += state != UTF8_BAD || s->n == 0;
        s->n = state == UTF8_SHORT ? (u8)len : 0;
    }
}

/* The end of the text: what is still held back will not be completed. */
static void tok_utf8_end(TokUtf8 *s, Buf *out) {
    if (s->n) buf_str(out, STR("\xEF\xBF\xBD"));
    s->n = 0;
}

#endif

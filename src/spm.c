/* spm.c - a SentencePiece model (tokenizer.model): the pieces of its vocabulary, read in place.
 *
 * Owns:      the list of pieces; their texts stay in the caller's bytes.
 * Stands on: base mem
 * Promises:  never reads outside [p, p+n); the work is linear in n; the first error names the file and
 *            the place. */
#ifndef DLM_SPM_C
#define DLM_SPM_C

#include "base.c"
#include "mem.c"

#define SPM_PIECES_MAX (1u << 22)

typedef enum {
    SPM_NORMAL = 1, /* the numbers of GGUF's token types, too */
    SPM_UNKNOWN,
    SPM_CONTROL,
    SPM_USER,
    SPM_UNUSED,
    SPM_BYTE
} SpmType;

typedef enum { SPM_UNIGRAM = 1, SPM_BPE, SPM_WORD, SPM_CHAR } SpmKind;

typedef struct {
    Str text;
    f32 score;
    u32 type; /* SpmType */
} SpmPiece;

typedef struct {
    SpmPiece *pieces; /* [n] by id */
    u32 n;
    u32 kind; /* SpmKind */
    i32 unk, bos, eos, pad;
    bool space_prefix; /* a text is read as if it began with a space */
} Spm;

/* ---- protocol buffers: fields of a number and a wire type. A failed cursor yields no more. ---- */

typedef struct {
    const u8 *p; /* [n] */
    u64 n, at;
    bool failed;
    u32 field;
    u64 number; /* of a varint, or the bits of a fixed one */
    Str bytes;  /* of a field with a length */
} SpmCursor_;

static u64 spm_varint_(SpmCursor_ *c) {
    u64 v = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        if (c->at == c->n) break;
        u8 b = c->p[c->at++];
        v |= (u64)(b & 127) << shift;
        if (b < 128) return v;
    }
    c->failed = true;
    return 0;
}

static const u8 *spm_take_(SpmCursor_ *c, u64 n) {
    if (c->failed || n > c->n - c->at) {
        c->failed = true;
        return NULL;
    }
    c->at += n;
    return c->p + (c->at - n);
}

/* Reads the next field; false at the end, and after a failure. */
static bool spm_next_(SpmCursor_ *c) {
    if (c->failed || c->at == c->n) return false;
    u64 tag = spm_varint_(c);
    const u8 *p = NULL;
    c->field = (u32)MIN_OF(tag >> 3, (u64)UINT32_MAX);
    c->number = 0;
    c->bytes = (Str){"", 0};
    switch (tag & 7) {
    case 0: c->number = spm_varint_(c); break;
    case 1:
        if ((p = spm_take_(c, 8))) c->number = load_u64(p);
        break;
    case 2: {
        u64 n = spm_varint_(c);
        if ((p = spm_take_(c, n))) c->bytes = (Str){(const char *)p, (size_t)n};
        break;
    }
    case 5:
        if ((p = spm_take_(c, 4))) c->number = load_u32(p);
        break;
    default: c->failed = true;
    }
    return !c->failed;
}

static SpmCursor_ spm_inside_(Str bytes) {
    return (SpmCursor_){.p = (const u8 *)bytes.p, .n = bytes.n};
}

/* ---- the messages: field numbers are those of sentencepiece_model.proto ---- */

static bool spm_read_piece_(SpmPiece *piece, Str bytes) {
    SpmCursor_ c = spm_inside_(bytes);
    *piece = (SpmPiece){.text = {"", 0}, .type = SPM_NORMAL};
    while (spm_next_(&c)) {
        u32 bits = (u32)c.number;
        if (c.field == 1) piece->text = c.bytes;
        if (c.field == 2) memcpy(&piece->score, &bits, sizeof bits);
        if (c.field == 3) piece->type = (u32)MIN_OF(c.number, (u64)UINT32_MAX);
    }
    return !c.failed && piece->type >= SPM_NORMAL && piece->type <= SPM_BYTE &&
           piece->score - piece->score == 0;
}

static bool spm_read_trainer_(Spm *s, Str bytes) {
    SpmCursor_ c = spm_inside_(bytes);
    while (spm_next_(&c)) {
        i32 id = (i32)(u32)c.number;
        switch (c.field) {
        case 3: s->kind = (u32)c.number; break;
        case 40: s->unk = id; break;
        case 41: s->bos = id; break;
        case 42: s->eos = id; break;
        case 43: s->pad = id; break;
        default: break;
        }
    }
    return !c.failed;
}

static bool spm_read_normalizer_(Spm *s, Str bytes) {
    SpmCursor_ c = spm_inside_(bytes);
    while (spm_next_(&c))
        if (c.field == 3) s->space_prefix = c.number != 0;
    return !c.failed;
}

static void spm_close(Spm *s) {
    mem_free(s->pieces);
    *s = (Spm){0};
}

/* Reads the model p[n], whose file is called `label`; `p` must outlive s. */
static bool spm_open(Spm *s, const u8 *p, u64 n, const char *label, Err *e) {
    *s = (Spm){.kind = SPM_UNIGRAM, .unk = 0, .bos = 1, .eos = 2, .pad = -1, .space_prefix = true};
    SpmCursor_ c = {.p = p, .n = n};
    u32 count = 0;
    while (spm_next_(&c)) count += c.field == 1;
    if (c.failed || count == 0 || count > SPM_PIECES_MAX)
        return err_set(e, ERR_MODEL, "%s: no SentencePiece model, or a damaged one (byte %llu)",
                       label, (unsigned long long)c.at);
    s->pieces = mem_alloc_n(count, sizeof *s->pieces, e);
    if (!s->pieces) return false;
    bool ok = true;
    for (c = (SpmCursor_){.p = p, .n = n}; ok && spm_next_(&c);) {
        if (c.field == 1) ok = spm_read_piece_(&s->pieces[s->n++], c.bytes);
        if (c.field == 2) ok = spm_read_trainer_(s, c.bytes);
        if (c.field == 3) ok = spm_read_normalizer_(s, c.bytes);
    }
    if (ok) return true;
    u32 at = s->n;
    spm_close(s);
    return err_set(e, ERR_MODEL, "%s: damaged near piece %u (byte %llu)", label, at,
                   (unsigned long long)c.at);
}

#endif

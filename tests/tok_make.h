/* tok_make.h - vocabularies made in memory, honest and hostile, for t_tok.c and fuzz_tok.c.
 *
 * A made file is a GGUF without tensors. Keys are put one after the other; the header counts. */
#ifndef DLM_TOK_MAKE_H
#define DLM_TOK_MAKE_H

#include "../src/tok.c"

typedef struct {
    const char *text;
    i32 type;
} MakeToken;

static void make_u32(Buf *b, u32 v) {
    buf_put(b, &v, sizeof v);
}

static void make_u64(Buf *b, u64 v) {
    buf_put(b, &v, sizeof v);
}

static void make_str(Buf *b, Str s) {
    make_u64(b, s.n);
    buf_str(b, s);
}

static void make_begin(Buf *b) {
    buf_clear(b);
    buf_str(b, STR("GGUF"));
    make_u32(b, 3);
    make_u64(b, 0); /* tensors */
    make_u64(b, 0); /* keys, counted by make_key */
}

static void make_key(Buf *b, const char *key, GgufValueType type) {
    u64 n = load_u64((u8 *)b->p + 16) + 1;
    memcpy(b->p + 16, &n, sizeof n);
    make_str(b, str_of(key));
    make_u32(b, type);
}

static void make_key_str(Buf *b, const char *key, const char *value) {
    make_key(b, key, GGUF_STRING);
    make_str(b, str_of(value));
}

static void make_key_u32(Buf *b, const char *key, u32 value) {
    make_key(b, key, GGUF_U32);
    make_u32(b, value);
}

static void make_key_bool(Buf *b, const char *key, bool value) {
    make_key(b, key, GGUF_BOOL);
    buf_char(b, value);
}

static void make_array(Buf *b, const char *key, GgufValueType elem, u64 count) {
    make_key(b, key, GGUF_ARRAY);
    make_u32(b, elem);
    make_u64(b, count);
}

/* The byte's character, as GPT-2 spells it. */
static Str make_byte(u32 byte, char out[UTF8_MAX]) {
    Tok t = {0};
    tok_open_bytes_(&t);
    return (Str){out, utf8_put(t.char_of_byte[byte], out)};
}

/* Appends to a started file: the 256 byte tokens (ids 0 to 255), the unions of the merges (256
 * ...), then `extra`; a NULL text ends that list. */
static void make_vocab(Buf *b, const char *pre, const char *const *merges, u32 n_merges,
                       const MakeToken *extra) {
    u32 n_extra = 0;
    while (extra && extra[n_extra].text) n_extra++;
    make_key_str(b, "tokenizer.ggml.model", "gpt2");
    if (pre) make_key_str(b, "tokenizer.ggml.pre", pre);
    make_array(b, "tokenizer.ggml.tokens", GGUF_STRING, 256u + n_merges + n_extra);
    for (u32 byte = 0; byte < 256; byte++) {
        char c[UTF8_MAX];
        make_str(b, make_byte(byte, c));
    }
    for (u32 i = 0; i < n_merges; i++) {
        const char *space = strchr(merges[i], ' ');
        make_u64(b, strlen(merges[i]) - 1);
        buf_put(b, merges[i], (size_t)(space - merges[i]));
        buf_str(b, str_of(space + 1));
    }
    for (u32 i = 0; i < n_extra; i++) make_str(b, str_of(extra[i].text));
    make_array(b, "tokenizer.ggml.token_type", GGUF_I32, 256u + n_merges + n_extra);
    for (u32 i = 0; i < 256 + n_merges; i++) make_u32(b, TOK_NORMAL);
    for (u32 i = 0; i < n_extra; i++) make_u32(b, (u32)extra[i].type);
    make_array(b, "tokenizer.ggml.merges", GGUF_STRING, n_merges);
    for (u32 i = 0; i < n_merges; i++) make_str(b, str_of(merges[i]));
}

/* A SentencePiece vocabulary: the pieces in the order of their merging, the last `n_bytes` bytes as byte
 * tokens, then `extra`. Its first ids are <unk>, <s> and </s>. */
enum { MAKE_PIECE = 3 };
static void make_pieces(Buf *b, const char *const *pieces, u32 n_pieces, u32 n_bytes,
                        const MakeToken *extra) {
    u32 n_extra = 0, n = MAKE_PIECE + n_pieces + n_bytes;
    while (extra && extra[n_extra].text) n_extra++;
    make_key_str(b, "tokenizer.ggml.model", "llama");
    make_array(b, "tokenizer.ggml.tokens", GGUF_STRING, n + n_extra);
    make_str(b, STR("<unk>"));
    make_str(b, STR("<s>"));
    make_str(b, STR("</s>"));
    for (u32 i = 0; i < n_pieces; i++) make_str(b, str_of(pieces[i]));
    for (u32 i = 0; i < n_bytes; i++) {
        char s[8];
        snprintf(s, sizeof s, "<0x%02X>", 256 - n_bytes + i);
        make_str(b, str_of(s));
    }
    for (u32 i = 0; i < n_extra; i++) make_str(b, str_of(extra[i].text));
    make_array(b, "tokenizer.ggml.token_type", GGUF_I32, n + n_extra);
    for (u32 i = 0; i < n; i++)
        make_u32(b, i == 0            ? TOK_UNKNOWN
                    : i < MAKE_PIECE  ? TOK_CONTROL
                    : i < n - n_bytes ? TOK_NORMAL
                                      : TOK_BYTE);
    for (u32 i = 0; i < n_extra; i++) make_u32(b, (u32)extra[i].type);
    make_array(b, "tokenizer.ggml.scores", GGUF_F32, n + n_extra);
    for (u32 i = 0; i < n + n_extra; i++) {
        f32 score = -(f32)i;
        buf_put(b, &score, sizeof score);
    }
}

/* What a chat model has, in small. Ids below 256 are bytes. */
static const char *const MAKE_MERGES[] = {"h e", "l l", "he ll", "hell o", "a b", "b c", "ab c"};
#define MAKE_N_MERGES COUNT_OF(MAKE_MERGES)
enum { MAKE_HELLO = 256 + 3, MAKE_EXTRA = 256 + (int)MAKE_N_MERGES };
enum {
    MAKE_BOS = MAKE_EXTRA,
    MAKE_EOS,
    MAKE_IM,
    MAKE_IM_LONG,
    MAKE_TOOL,
    MAKE_BLANKS,
    MAKE_MASK,
    MAKE_UNUSED,
    MAKE_BYTE
};
static const MakeToken MAKE_TOKENS[] = {
    {"<s>", TOK_CONTROL},   {"<|im_end|>", TOK_CONTROL},
    {"<|im", TOK_CONTROL},  {"<|im_end|>!", TOK_CONTROL},
    {"<tool>", TOK_USER},   {"   ", TOK_USER},
    {"|<MASK>|", TOK_USER}, {"[PAD7]", TOK_UNUSED},
    {"<0xC3>", TOK_BYTE},   {NULL, 0},
};

static void make_chat(Buf *b, const char *pre) {
    make_begin(b);
    make_vocab(b, pre, MAKE_MERGES, MAKE_N_MERGES, MAKE_TOKENS);
    make_key_u32(b, "tokenizer.ggml.bos_token_id", MAKE_BOS);
    make_key_u32(b, "tokenizer.ggml.eos_token_id", MAKE_EOS);
    make_key_u32(b, "tokenizer.ggml.mask_token_id", MAKE_MASK);
}

#define MAKE_BLANK "\xE2\x96\x81"
static const char *const MAKE_PIECES[] = {MAKE_BLANK,
                                          "a",
                                          "b",
                                          "c",
                                          "ab",
                                          "bc",
                                          MAKE_BLANK "a",
                                          MAKE_BLANK MAKE_BLANK,
                                          "cab",
                                          MAKE_BLANK "abca",
                                          "\xC3\xA9"};
#define MAKE_N_PIECES COUNT_OF(MAKE_PIECES)
static const MakeToken MAKE_PIECE_TOKENS[] = {
    {"<|user|>", TOK_CONTROL}, {"xyz", TOK_USER}, {"[PAD9]", TOK_UNUSED}, {NULL, 0}};

#endif

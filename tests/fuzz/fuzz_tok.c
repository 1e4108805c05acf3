/* fuzz_tok.c - a vocabulary from the fuzzer, or ours with a text and a trust mask from it. */
#include "../tok_make.h"

static void check_encode(const Tok *t, Str text, const u8 *trusted, bool all_bytes) {
    TokIds ids = {.max = 1u << 20};
    Buf back = {0}, shown = {0};
    TokUtf8 stream = {0};
    ASSERT(tok_encode(t, text, trusted, &ids, NULL));
    for (size_t i = 0; i < ids.n; i++) {
        size_t from = back.n;
        ASSERT(ids.p[i] >= 0 && (u32)ids.p[i] < t->n_vocab);
        ASSERT(trusted || !tok_is_special(t, ids.p[i]) || (t->spm && ids.p[i] == t->unk));
        tok_bytes(t, ids.p[i], true, &back);
        tok_utf8_put(&stream, str_cut(buf_view(&back), from, back.n), &shown);
    }
    tok_utf8_end(&stream, &shown);
    ASSERT(utf8_valid(buf_view(&shown)) == shown.n);
    if (all_bytes) ASSERT(str_eq(buf_view(&back), text));
    tok_ids_free(&ids);
    buf_free(&back);
    buf_free(&shown);
}

/* Our vocabulary under each pre-tokenizer, and one of pieces, opened once. */
static const Tok *our_tok(u8 choice) {
    static Tok toks[COUNT_OF(PRE_ROWS) + 2];
    static Gguf ggufs[COUNT_OF(PRE_ROWS) + 2];
    static Buf files[COUNT_OF(PRE_ROWS) + 2];
    size_t i = choice % COUNT_OF(toks);
    if (!toks[i].n_vocab) {
        if (i < COUNT_OF(PRE_ROWS))
            make_chat(&files[i], PRE_ROWS[i].name);
        else
            make_begin(&files[i]);
        if (i >= COUNT_OF(PRE_ROWS))
            make_pieces(&files[i], MAKE_PIECES, MAKE_N_PIECES, i % 2 ? 256 : 0, MAKE_PIECE_TOKENS);
        else
            make_key_str(&files[i], "tokenizer.ggml.normalizer", i == 2 ? "nfc" : "none");
        ASSERT(gguf_open(&ggufs[i], (const u8 *)files[i].p, files[i].n, "ours", NULL));
        ASSERT(tok_open(&toks[i], &ggufs[i], NULL, NULL));
    }
    return &toks[i];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    Gguf g;
    Tok t;
    if (n == 0 || n > 1u << 16) return 0;
    if (data[0] !=
        'G') { /* the first byte picks the pre-tokenizer; the rest is text, then its mask */
        Str text = {(const char *)data + 1, (n - 1) / 2};
        const Tok *t = our_tok(data[0]);
        bool all_bytes =
            !t->nfc && !t->spm; /* else what comes back is its normal form, or has blanks */
        check_encode(t, text, NULL, all_bytes);
        check_encode(t, text, data + 1 + text.n, all_bytes);
        return 0;
    }
    if (!gguf_open(&g, data, n, "fuzz", NULL)) return 0;
    if (tok_open(&t, &g, NULL, NULL)) {
        check_encode(&t, (Str){(const char *)data, n}, NULL, false);
        tok_close(&t);
    }
    gguf_close(&g);
    return 0;
}

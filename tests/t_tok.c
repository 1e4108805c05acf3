/* t_tok.c - the tokenizer against published vectors, against the textbook's algorithm, and against
 * vocabularies and texts made to break it. */
#define DLM_TEST_ALLOC
#include "../src/os.c"
#include "test.h"
#include "tok_make.h"

#include <pthread.h>

#define VOCAB "../shared/vocab/ggml-vocab-"

/* ---- opening and comparing ---- */

typedef struct {
    Str file;
    Gguf g;
    Tok t;
} Vocab;

static void vocab_open(Vocab *v, const char *name) {
    char path[256];
    Err e = {0};
    snprintf(path, sizeof path, VOCAB "%s.gguf", name);
    v->file = test_file(path);
    bool ok = gguf_open(&v->g, (const u8 *)v->file.p, v->file.n, name, &e) &&
              tok_open(&v->t, &v->g, NULL, &e);
    if (!CHECK_OK(ok, e)) exit(test_end());
}

static void vocab_close(Vocab *v) {
    tok_close(&v->t);
    gguf_close(&v->g);
    test_file_free(v->file);
}

/* Opens a made file; b must live as long. */
static bool made_open(Vocab *v, const Buf *b, const char *pre, Err *e) {
    CHECK(!b->failed);
    if (!gguf_open(&v->g, (const u8 *)b->p, b->n, "made.gguf", e)) return false;
    if (tok_open(&v->t, &v->g, pre, e)) return true;
    gguf_close(&v->g);
    return false;
}

static void made_close(Vocab *v) {
    tok_close(&v->t);
    gguf_close(&v->g);
}

/* The ids of text, as a line "1 2 3". */
static const char *ids_of(const Tok *t, Str text, const u8 *trusted) {
    static char line[8192];
    TokIds ids = {0};
    Err e = {0};
    size_t n = 0;
    line[0] = 0;
    CHECK_OK(tok_encode(t, text, trusted, &ids, &e), e);
    for (size_t i = 0; i < ids.n && n < sizeof line - 16; i++)
        n += (size_t)snprintf(line + n, sizeof line - n, i ? " %d" : "%d", ids.p[i]);
    tok_ids_free(&ids);
    return line;
}

static void decode_all(const Tok *t, const TokIds *ids, bool special, Buf *out) {
    buf_clear(out);
    for (size_t i = 0; i < ids->n; i++) tok_bytes(t, ids->p[i], special, out);
}

/* ---- published vectors ---- */

static Str next_part(Str *rest, Str separator) {
    size_t at = str_find(*rest, separator, 0);
    Str part = str_cut(*rest, 0, at);
    *rest = at == SIZE_MAX ? (Str){rest->p, 0} : str_cut(*rest, at + separator.n, rest->n);
    return part;
}

static void vectors_pass(const char *name) {
    Vocab v;
    char path[256];
    vocab_open(&v, name);
    snprintf(path, sizeof path, VOCAB "%s.gguf.inp", name);
    Str texts_file = test_file(path), texts = texts_file;
    snprintf(path, sizeof path, VOCAB "%s.gguf.out", name);
    Str lines_file = test_file(path), lines = lines_file;
    int n = 0;
    for (; lines.n; n++) {
        Str text = next_part(&texts, STR("\n__ggml_vocab_test__\n")),
            want = next_part(&lines, STR("\n"));
        if (want.n && want.p[0] == ' ') want = str_cut(want, 1, want.n);
        const char *got = ids_of(&v.t, text, NULL);
        CHECK_MSG(str_eq(str_of(got), want), "%s, text %d '%.*s': %s, want %.*s", name, n,
                  STR_ARG(text), got, STR_ARG(want));
    }
    CHECK_MSG(n == 46 && texts.n == 0, "%s has %d vectors", name, n);
    test_file_free(texts_file);
    test_file_free(lines_file);
    vocab_close(&v);
}

static void published_vectors_pass(void) {
    static const char *const names[] = {"gpt-2",        "llama-bpe", "qwen2",  "starcoder",
                                        "refact",       "mpt",       "falcon", "deepseek-coder",
                                        "deepseek-llm", "llama-spm", "phi-3"};
    for (size_t i = 0; i < COUNT_OF(names); i++) vectors_pass(names[i]);
}

static void other_kinds_are_refused(void) {
    static const char *const names[][2] = {{"bert-bge", "tokenizer 'bert' is not supported"}};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        char path[256];
        Err e = {0};
        Gguf g;
        Tok t;
        snprintf(path, sizeof path, VOCAB "%s.gguf", names[i][0]);
        Str file = test_file(path);
        if (CHECK_OK(gguf_open(&g, (const u8 *)file.p, file.n, path, &e), e)) {
            CHECK(!tok_open(&t, &g, NULL, &e));
            CHECK_ERR(e, ERR_MODEL, names[i][1]);
            gguf_close(&g);
        }
        test_file_free(file);
    }
}

/* ---- pre-tokenizers: what the `tokenizers` package 0.23.3 makes of these (tests/py/tok_diff.py
 * has more) ---- */

static void words_are_cut_as_published(void) {
    static const char *const cases[][3] = {
        {"gpt-2", "I've I'VE a'\xC5\xBF 'll 'Ll", "I#'ve# I#'#VE# a#'#\xC5\xBF# '#ll# '#Ll"},
        {"qwen2", "I've I'VE a'\xC5\xBF 'll 'Ll", "I#'ve# I#'VE# a#'\xC5\xBF# '#ll# '#Ll"},
        {"falcon", "I've I'VE 'S '", "I#'#ve# I#'#VE# #'#S# #'"},
        {"deepseek-coder", "I've I'VE 'S '", "I#'#ve# I#'#VE# '#S# '"},
        {"gpt-2", "  two  spaces\t\ttabs \n\n  next\r\n end  ",
         " # two# # spaces#\t#\t#tabs# \n\n # next#\r\n# end#  "},
        {"llama-bpe", "  two  spaces\t\ttabs \n\n  next\r\n end  ",
         " # two# # spaces#\t#\ttabs# \n\n# # next#\r\n# end#  "},
        {"deepseek-coder", "  two  spaces\t\ttabs \n\n  next\r\n end  ",
         " # two# # spaces#\t#\ttabs# #\n#\n# # next#\r#\n# end#  "},
        {"gpt-2", "12345 \xC2\xBD\xE2\x85\xA7\xC2\xB2x \xD9\xA1\xD9\xA2\xD9\xA3",
         "12345# \xC2\xBD\xE2\x85\xA7\xC2\xB2#x# \xD9\xA1\xD9\xA2\xD9\xA3"},
        {"smollm", "12345 \xC2\xBD\xE2\x85\xA7\xC2\xB2x",
         "1#2#3#4#5# #\xC2\xBD#\xE2\x85\xA7#\xC2\xB2#x"},
        {"qwen2", "12345 67", "1#2#3#4#5# #6#7"},
        {"llama-bpe", "12345 \xC2\xBD\xE2\x85\xA7\xC2\xB2x",
         "123#45# #\xC2\xBD\xE2\x85\xA7\xC2\xB2#x"},
        {"falcon", "12345 6789 \xD9\xA1\xD9\xA2\xD9\xA3",
         "123#45# #678#9# \xD9\xA1\xD9\xA2\xD9\xA3"},
        {"smollm", "a.b ...!\n\n?? \n!x -y", "a#.#b# ...!#\n#\n#??# #\n#!#x# -#y"},
        {"qwen2", "a.b ...!\n\n?? \n!x -y", "a#.b# ...!\n\n#??# \n#!x# -#y"},
        {"falcon", "a.b ...!\n\n?? \n!x -y", "a#.#b# #...!#\n\n#??# \n#!#x# #-#y"},
        {"deepseek-coder",
         "\xE6\x97\xA5 \xED\x95\x9C"
         "ab 1\xE4\xB8\xAD",
         "\xE6\x97\xA5# #\xED\x95\x9C#ab# #1#\xE4\xB8\xAD"},
        {"gpt-2", "\xC2\xA0nbsp\xE3\x80\x80ideo\xC2\x85x",
         "\xC2\xA0#nbsp#\xE3\x80\x80#ideo#\xC2\x85#x"},
        {"qwen2", "\xC2\xA0nbsp\xE3\x80\x80ideo\xC2\x85x",
         "\xC2\xA0nbsp#\xE3\x80\x80ideo#\xC2\x85x"},
        {"qwen2", "e\xCC\x81 'd'D d'", "e#\xCC\x81# '#d#'D# d#'"},
        {"falcon", "$1+2=<3>^~|` (x)", "$#1#+#2#=<#3#>^~|`# #(#x#)"},
        {"qwen2", "'", "'"},
        {"llama-bpe", "'re're'", "'re#'re#'"},
        {"qwen2", "", ""},
        {"gpt-4o", "HelloWORLD don'T XMLHttp's 12345\n a/b//\n",
         "Hello#WORLD# don'T# XMLHttp's# #123#45#\n# a#/b#//\n"},
        {"tekken",
         "HelloWORLD don'T 12 e\xCC\x81\xCC\x81"
         "A ==/\n",
         "Hello#WORLD# don#'T# #1#2# e\xCC\x81\xCC\x81#A# ==/\n"},
        {"bailingmoe", "I'LL x\n\n\n y '\xC5\xBF 12", "I#'LL# x#\n\n\n# y# '#\xC5\xBF# #1#2"},
        {"deepseek-v3",
         "\xE6\x97\xA5\xE6\x9C\xAC\xE3\x82\xAB\xE3\x83\x8A abc.de(f) x1234\x01y #ab !!\n",
         "\xE6\x97\xA5\xE6\x9C\xAC\xE3\x82\xAB\xE3\x83\x8A# abc#.de#(f#)# x#123#4#\x01y# ##ab# !!\n"},
        {"deepseek-llm",
         "\xE2\x85\xA7\xC3\xA9 \xC3\x9F\xE6\x97\xA5\xE6\x9C\xAC  \n"
         " \xEF\xBC\xA1\xEF\xBC\xA2\xE3\x80\x82\xEF\xBC\x8Cx   ",
         "\xE2\x85\xA7#\xC3\xA9# \xC3\x9F#\xE6\x97\xA5\xE6\x9C\xAC#  #\n#"
         " \xEF\xBC\xA1\xEF\xBC\xA2#\xE3\x80\x82#\xEF\xBC\x8C#x#   "},
        {"qwen35", "e\xCC\x81 \xE0\xA4\xA8\xE0\xA4\xAE \xCC\x81x !\xCC\x81",
         "e\xCC\x81# \xE0\xA4\xA8\xE0\xA4\xAE# \xCC\x81x# !#\xCC\x81"},
        {"seed-coder", "a !!\n\n b\r\n12", "a# !!#\n\n# b#\r\n#1#2"},
        {"bloom", "a,b (c) d. e\n\nf", "a#,#b# (#c#)# d#.# e#\n\n#f"},
        {"viking", "x 12,3", "x# #1#2#,#3"},
        {"minicpm5", "ab1234567 x", "ab#123#456#7# x"},
        {"qwen2", "\xFF\xE2\x82 a", "\xFF\xE2\x82# a"}, /* not UTF-8: each byte is "other" */
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        size_t at = 0, n = 0;
        char got[256];
        Pre pre;
        pre_compile(&pre, pre_row(pre_find(str_of(cases[i][0]))));
        size_t end[PRE_SPLITS_MAX] = {0};
        for (Str text = str_of(cases[i][1]); at < text.n;) {
            size_t next = pre_word_end(&pre, text, at, end);
            n += (size_t)snprintf(got + n, sizeof got - n, at ? "#%.*s" : "%.*s", (int)(next - at),
                                  text.p + at);
            at = next;
        }
        got[n] = 0;
        CHECK_MSG(str_eq((Str){got, n}, str_of(cases[i][2])), "%s of '%s': %s, want %s",
                  cases[i][0], cases[i][1], got, cases[i][2]);
    }
}

static void names_have_rows(void) {
    for (size_t i = 0; i < COUNT_OF(PRE_NAMES); i++) {
        CHECK(pre_row(&PRE_NAMES[i]) != NULL);
        CHECK(pre_find(str_of(PRE_NAMES[i].name)) == &PRE_NAMES[i]);
    }
    for (size_t i = 0; i < COUNT_OF(PRE_ROWS); i++) {
        CHECK(pre_find(str_of(PRE_ROWS[i].name)) != NULL);
        CHECK_MSG(strstr(PRE_LIST, PRE_ROWS[i].name), "%s is not in the list", PRE_ROWS[i].name);
    }
}

/* Twice the time for twice the text, under every pre-tokenizer: what is not linear takes minutes. */
static void cutting_is_linear(void) {
    static const char *const repeats[] = {
        "A",         "Aa",   " ", " \n",          " x",       "'", "\n", "7", "\xE6\x97\xA5",
        "a\xCC\x81", "\xFF", "=", "\xE2\x80\x83", "<\xC2\xA0"};
    static char text[64 << 10];
    f64 start = os_now_ms();
    for (size_t row = 0; row < COUNT_OF(PRE_ROWS); row++) {
        Pre pre;
        pre_compile(&pre, &PRE_ROWS[row]);
        for (size_t k = 0; k < COUNT_OF(repeats); k++) {
            size_t n = strlen(repeats[k]), end[PRE_SPLITS_MAX] = {0};
            for (size_t i = 0; i < sizeof text; i++) text[i] = repeats[k][i % n];
            text[sizeof text - 1] = 'x';
            for (size_t i = 0; i < sizeof text;)
                i = pre_word_end(&pre, (Str){text, sizeof text}, i, end);
        }
    }
    f64 ms = os_now_ms() - start;
    CHECK_MSG(ms < 20000, "cutting took %.0f ms", ms);
    printf("  %zu pre-tokenizers cut %zu texts of 64 KiB each in %.0f ms\n", COUNT_OF(PRE_ROWS),
           COUNT_OF(repeats), ms);
}

/* ---- merging: the heap against a rescan of the whole word for every merge ---- */

static size_t merge_slowly(const Tok *t, i32 *ids, size_t n) {
    for (;;) {
        size_t best = SIZE_MAX;
        u32 rank = UINT32_MAX;
        for (size_t i = 0; i + 1 < n; i++) {
            const TokMerge_ *m = tok_merge_(t, ids[i], ids[i + 1]);
            if (m && m->rank_1 && m->rank_1 < rank) {
                rank = m->rank_1;
                best = i;
            }
        }
        if (best == SIZE_MAX) return n;
        ids[best] = tok_merge_(t, ids[best], ids[best + 1])->id;
        memmove(ids + best + 1, ids + best + 2, (n - best - 2) * sizeof *ids);
        n--;
    }
}

static void random_merges(u64 *rng) {
    enum { N_MERGES = 60 };
    static char made[N_MERGES + 3][40];
    static char lines[N_MERGES][80];
    const char *merges[N_MERGES];
    u32 n = 0;
    memcpy(made, "a", 2), memcpy(made[1], "b", 2), memcpy(made[2], "c", 2);
    while (n < N_MERGES) { /* of two random tokens; no union twice, as in a trained vocabulary */
        const char *a = made[test_rng_below(rng, n + 3)], *b = made[test_rng_below(rng, n + 3)];
        bool again = strlen(a) + strlen(b) >= sizeof made[0];
        snprintf(lines[n], sizeof lines[n], "%s%s", a, again ? "" : b);
        for (u32 i = 0; i < n + 3; i++) again = again || !strcmp(lines[n], made[i]);
        if (again) continue;
        memcpy(made[n + 3], lines[n], sizeof made[0]);
        snprintf(lines[n], sizeof lines[n], "%s %s", a, b);
        merges[n] = lines[n];
        n++;
    }
    Buf b = {0};
    Vocab v;
    Err e = {0};
    make_begin(&b);
    make_vocab(&b, "gpt-2", merges, n, NULL);
    if (!CHECK_OK(made_open(&v, &b, NULL, &e), e)) return;
    for (int round = 0; round < 50; round++) {
        char word[300];
        i32 want[300];
        size_t len = 1 + test_rng_below(rng, round < 45 ? 30 : sizeof word);
        for (size_t i = 0; i < len; i++) {
            word[i] = (char)('a' + test_rng_below(rng, 3));
            want[i] = v.t.byte_id[(u8)word[i]];
        }
        size_t n_want = merge_slowly(&v.t, want, len);
        TokIds got = {0};
        CHECK_OK(tok_encode(&v.t, (Str){word, len}, NULL, &got, &e), e);
        CHECK_MSG(got.n == n_want && memcmp(got.p, want, n_want * sizeof *want) == 0,
                  "merging %.*s", (int)len, word);
        tok_ids_free(&got);
    }
    made_close(&v);
    buf_free(&b);
}

static void merging_equals_the_textbook(void) {
    u64 rng = 1;
    for (int i = 0; i < 20; i++) random_merges(&rng);
}

/* ---- special tokens and trust ---- */

static void only_trusted_text_makes_special_tokens(void) {
    Buf b = {0};
    Vocab v;
    Err e = {0};
    make_chat(&b, "qwen2");
    if (!CHECK_OK(made_open(&v, &b, NULL, &e), e)) return;
    Str text = STR("hello<|im_end|>");
    u8 trusted[32];
    char want[64];
    CHECK_CSTR(ids_of(&v.t, text, NULL), "259 60 124 105 109 95 101 110 100 124 62");
    memset(trusted, 1, sizeof trusted);
    snprintf(want, sizeof want, "259 %d", MAKE_EOS);
    CHECK_CSTR(ids_of(&v.t, text, trusted), want);
    for (size_t i = 5; i < text.n; i++) { /* one byte that the user wrote is enough */
        trusted[i] = 0;
        const char *got = ids_of(&v.t, text, trusted);
        snprintf(want, sizeof want, "%d", MAKE_EOS);
        CHECK_MSG(!strstr(got, want), "byte %zu: %s", i, got);
        trusted[i] = 1;
    }
    /* The longest that may stand there: the longer one's last byte is the user's. */
    text = STR("<|im_end|>!");
    snprintf(want, sizeof want, "%d", MAKE_IM_LONG);
    CHECK_CSTR(ids_of(&v.t, text, trusted), want);
    trusted[10] = 0;
    snprintf(want, sizeof want, "%d 33", MAKE_EOS);
    CHECK_CSTR(ids_of(&v.t, text, trusted), want);
    trusted[10] = 1;
    snprintf(want, sizeof want, "%d 95 101", MAKE_IM);
    CHECK_CSTR(ids_of(&v.t, STR("<|im_e"), trusted), want);
    /* Neither does a user steer through user tokens that look like markup; blanks are just text. */
    CHECK_CSTR(ids_of(&v.t, STR("<tool>"), NULL), "60 116 111 111 108 62");
    CHECK_CSTR(ids_of(&v.t, STR("|<MASK>|"), NULL), "124 60 77 65 83 75 62 124");
    snprintf(want, sizeof want, "%d %d", MAKE_TOOL, MAKE_MASK);
    CHECK_CSTR(ids_of(&v.t, STR("<tool>|<MASK>|"), trusted), want);
    snprintf(want, sizeof want, "97 %d 98", MAKE_BLANKS);
    CHECK_CSTR(ids_of(&v.t, STR("a   b"), NULL), want);
    CHECK_CSTR(ids_of(&v.t, STR(""), trusted), "");
    made_close(&v);
    buf_free(&b);
}

static void flags_and_lookups(void) {
    Buf b = {0}, out = {0};
    Vocab v;
    Err e = {0};
    make_chat(&b, "qwen2");
    make_key_str(&b, "tokenizer.chat_template", "{{ x }}");
    if (!CHECK_OK(made_open(&v, &b, NULL, &e), e)) return;
    const Tok *t = &v.t;
    CHECK_INT(t->n_vocab, MAKE_BYTE + 1);
    CHECK_INT(t->bos, MAKE_BOS);
    CHECK_INT(t->eos, MAKE_EOS);
    CHECK_INT(t->eot, MAKE_EOS); /* by its name */
    CHECK_INT(t->mask, MAKE_MASK);
    CHECK_INT(t->unk, -1);
    CHECK_INT(t->pad, -1);
    CHECK_CSTR(t->pre_name, "qwen2");
    CHECK_STR(t->chat_template, STR("{{ x }}"));
    CHECK(tok_is_eog(t, MAKE_EOS) && !tok_is_eog(t, MAKE_BOS) && !tok_is_eog(t, -1) &&
          !tok_is_eog(t, INT32_MAX));
    CHECK(tok_is_special(t, MAKE_EOS) && tok_is_special(t, MAKE_BOS) &&
          tok_is_special(t, MAKE_MASK));
    CHECK(!tok_is_special(t, MAKE_TOOL) && !tok_is_special(t, 0) &&
          !tok_is_special(t, (i32)t->n_vocab));
    CHECK_INT(tok_find(t, STR("hello")), MAKE_HELLO);
    CHECK_INT(tok_find(t, STR("hellp")), -1);
    CHECK_INT(tok_find(t, STR("")), -1);
    CHECK_STR(tok_text(t, MAKE_MASK), STR("|<MASK>|"));
    CHECK_STR(tok_text(t, -5), STR(""));
    TokIds ids = {0};
    for (i32 id = MAKE_HELLO; id <= MAKE_BYTE + 1; id++) CHECK_OK(tok_ids_push(&ids, id, &e), e);
    decode_all(t, &ids, false, &out);
    CHECK_STR(buf_view(&out), STR("helloabbcabc<tool>   \xC3"));
    decode_all(t, &ids, true, &out);
    CHECK_STR(buf_view(&out), STR("helloabbcabc<s><|im_end|><|im<|im_end|>!<tool>   |<MASK>|\xC3"));
    out.max = out.n; /* full */
    CHECK(!tok_bytes(t, MAKE_HELLO, false, &out));
    tok_ids_free(&ids);
    made_close(&v);
    buf_free(&b);
    buf_free(&out);
}

static const char *prompt_of(const char *pre, int bos, int eos, const char *text) {
    static char line[256];
    Buf b = {0};
    Vocab v;
    Err e = {0};
    TokIds ids = {0};
    u8 trusted[64];
    size_t n = 0;
    memset(trusted, 1, sizeof trusted);
    make_chat(&b, pre);
    if (bos >= 0) make_key_bool(&b, "tokenizer.ggml.add_bos_token", bos);
    if (eos >= 0) make_key_bool(&b, "tokenizer.ggml.add_eos_token", eos);
    if (!CHECK_OK(made_open(&v, &b, NULL, &e), e)) return "";
    CHECK_OK(tok_ids_push(&ids, 7, &e), e); /* what was there stays */
    CHECK_OK(tok_encode_prompt(&v.t, str_of(text), trusted, &ids, &e), e);
    CHECK(ids.n >= 1 && ids.p[0] == 7);
    line[0] = 0;
    for (size_t i = 1; i < ids.n; i++) {
        i32 id = ids.p[i];
        n += (size_t)snprintf(line + n, sizeof line - n, "%s ",
                              id == MAKE_BOS     ? "bos"
                              : id == MAKE_EOS   ? "eos"
                              : id == MAKE_HELLO ? "hello"
                                                 : "?");
    }
    tok_ids_free(&ids);
    made_close(&v);
    buf_free(&b);
    return line;
}

static void bos_and_eos_are_added_once(void) {
    CHECK_CSTR(prompt_of("qwen2", -1, -1, "hello"), "hello ");
    CHECK_CSTR(prompt_of("qwen2", 1, -1, "hello"), "bos hello ");
    CHECK_CSTR(prompt_of("qwen2", 1, 1, "hello"), "bos hello eos ");
    CHECK_CSTR(prompt_of("qwen2", 1, 1, "<s>hello<|im_end|>"), "bos hello eos ");
    CHECK_CSTR(prompt_of("qwen2", 1, 1, "<s><s>hello"), "bos bos hello eos ");
    CHECK_CSTR(prompt_of("qwen2", 0, 0, "<s>hello"), "bos hello ");
    CHECK_CSTR(prompt_of("qwen2", 1, 1, ""), "bos eos ");
    CHECK_CSTR(prompt_of("qwen2", 1, 1, "<s>"), "bos eos ");
    CHECK_CSTR(prompt_of("llama-bpe", -1, -1, "hello"),
               "bos hello "); /* Llama 3 wants it unasked */
    CHECK_CSTR(prompt_of("llama-bpe", 0, -1, "hello"), "hello ");
}

/* ---- words as tokens, bytes without tokens ---- */

static void ignore_merges_takes_whole_words(void) {
    static const MakeToken extra[] = {
        {"xyz", TOK_NORMAL}, {"\xC4\xA0xyz", TOK_NORMAL}, {"ctl", TOK_CONTROL}, {0}};
    for (int llama = 0; llama < 2; llama++) {
        Buf b = {0};
        Vocab v;
        Err e = {0};
        make_begin(&b);
        make_vocab(&b, llama ? "llama-bpe" : "dbrx", MAKE_MERGES, 1, extra);
        if (!CHECK_OK(made_open(&v, &b, NULL, &e), e)) return;
        CHECK_CSTR(ids_of(&v.t, STR("xyz xyz"), NULL),
                   llama ? "257 258" : "120 121 122 32 120 121 122");
        CHECK_CSTR(ids_of(&v.t, STR("ctl"), NULL), "99 116 108");
        made_close(&v);
        buf_free(&b);
    }
}

/* Byte 0x80 is spelled otherwise, byte 0x81 not at all. */
static void bytes_without_a_token(void) {
    Buf b = {0}, out = {0};
    Vocab v;
    Err e = {0};
    make_begin(&b);
    make_key_str(&b, "tokenizer.ggml.model", "gpt2");
    make_key_str(&b, "tokenizer.ggml.pre", "gpt-2");
    make_array(&b, "tokenizer.ggml.tokens", GGUF_STRING, 257);
    for (u32 i = 0; i < 256; i++) {
        char c[UTF8_MAX];
        make_str(&b, i == 0x80 ? STR("<0x80>") : i == 0x81 ? STR("<0x-1>") : make_byte(i, c));
    }
    make_str(&b, STR("bc"));
    make_array(&b, "tokenizer.ggml.token_type", GGUF_I32, 257);
    for (u32 i = 0; i < 257; i++) make_u32(&b, i == 0x80 || i == 0x81 ? TOK_BYTE : TOK_NORMAL);
    make_array(&b, "tokenizer.ggml.merges", GGUF_STRING, 1);
    make_str(&b, STR("b c"));
    if (!CHECK_OK(made_open(&v, &b, NULL, &e), e)) return;
    CHECK_CSTR(ids_of(&v.t, STR("\x80"), NULL), "128");
    CHECK_CSTR(ids_of(&v.t, STR("\x81"), NULL), "");
    CHECK(tok_bytes(&v.t, 0x80, false, &out) && tok_bytes(&v.t, 0x81, false, &out));
    CHECK_STR(buf_view(&out), STR("\x80<0x-1>"));
    made_close(&v);
    buf_free(&b);
    buf_free(&out);
}

/* ---- streaming ---- */

static void streaming_equals_one_shot(void) {
    /* The right-hand sides are Python 3.11's: bytes.decode("utf-8", "replace"). */
    static const struct {
        Str in, out;
    } cases[] = {
        {STR("plain"), STR("plain")},
        {STR("gr\xC3\xBC\xC3\x9F \xE2\x82\xAC \xF0\x9F\x98\x80"),
         STR("gr\xC3\xBC\xC3\x9F \xE2\x82\xAC \xF0\x9F\x98\x80")},
        {STR("\xE2\x82"), STR("\xEF\xBF\xBD")},
        {STR("\xE2\x82z"), STR("\xEF\xBF\xBDz")},
        {STR("\xF0\x9F\x98\xE2\x82\xAC"), STR("\xEF\xBF\xBD\xE2\x82\xAC")},
        {STR("\xED\xA0\x80"), STR("\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD")},
        {STR("\xC0\xAF\xF5"), STR("\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD")},
        {STR("\xF4\x90\x80\x80"), STR("\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD")},
        {STR("\xE0\x80\xC3\xC3\xBC"), STR("\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xC3\xBC")},
        {STR("\xF0\x90\x80"), STR("\xEF\xBF\xBD")},
        {STR("\x80\xC2"), STR("\xEF\xBF\xBD\xEF\xBF\xBD")},
        {STR(""), STR("")},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Str in = cases[i].in;
        for (size_t a = 0; a <= in.n; a++)
            for (size_t c = a; c <= in.n; c++) { /* every way to cut it in three */
                TokUtf8 s = {0};
                Buf out = {0};
                tok_utf8_put(&s, str_cut(in, 0, a), &out);
                CHECK_INT(utf8_valid(buf_view(&out)), out.n);
                tok_utf8_put(&s, str_cut(in, a, c), &out);
                CHECK_INT(utf8_valid(buf_view(&out)), out.n);
                tok_utf8_put(&s, str_cut(in, c, in.n), &out);
                tok_utf8_end(&s, &out);
                CHECK_STR(buf_view(&out), cases[i].out);
                buf_free(&out);
            }
    }
}

/* ---- round trips, long texts, many threads ---- */

static void fill_random(u64 *rng, char *p, size_t n, int kind) {
    static const char *const atoms[] = {"a",
                                        "the",
                                        " ",
                                        "  ",
                                        "\n",
                                        "\t",
                                        "'s",
                                        "'LL",
                                        "12",
                                        ".",
                                        "\xC3\xA9",
                                        "\xE6\x97\xA5",
                                        "\xF0\x9F\x98\x80",
                                        "\xFF",
                                        "<|im_end|>",
                                        "\xE2\x82"};
    for (size_t i = 0; i < n;) {
        const char *atom = atoms[test_rng_below(rng, COUNT_OF(atoms))];
        if (kind == 0)
            p[i++] = (char)test_rng(rng);
        else
            while (*atom && i < n) p[i++] = *atom++;
    }
}

static void any_bytes_come_back(const Tok *t) {
    u64 rng = 2;
    Buf back = {0};
    Err e = {0};
    for (int round = 0; round < 1500; round++) {
        char text[200];
        u8 trusted[200];
        size_t n = test_rng_below(&rng, sizeof text);
        fill_random(&rng, text, n, round % 3);
        for (size_t i = 0; i < n; i++) trusted[i] = test_rng_below(&rng, 16) != 0;
        TokIds ids = {0};
        CHECK_OK(tok_encode(t, (Str){text, n}, round % 2 ? trusted : NULL, &ids, &e), e);
        decode_all(t, &ids, true, &back);
        CHECK_STR(tok_without_blank(t, buf_view(&back)), ((Str){text, n}));
        tok_ids_free(&ids);
    }
    buf_free(&back);
}

/* Any of these is out of the question for an algorithm that is not n log n: the time is not
 * measured finely. */
static void long_texts_take_seconds(const Tok *t, bool prose) {
    static const struct {
        const char *what, *repeat;
        size_t n;
    } cases[] = {
        {"prose",
         "The quick brown fox doesn't jump over 13 lazy dogs.\n\n    if (x != 0) return;\t",
         16u << 20},
        {"one letter", "a", 1u << 20},
        {"blanks", " ", 1u << 20},
        {"newlines", "\n", 1u << 20},
        {"digits", "7", 1u << 20},
        {"signs", "=", 1u << 20},
        {"blank lines", " \n", 1u << 20},
        {"markup", "<|im_e", 1u << 20},
        {"no UTF-8", "\xE2\x82", 1u << 20},
        {"quotes", "'", 1u << 20},
        {"ideographs", "\xE6\x97\xA5\xE6\x9C\xAC", 1u << 20},
    };
    for (size_t i = !prose; i < COUNT_OF(cases); i++) {
        Err e = {0};
        TokIds ids = {0};
        Buf back = {0};
        size_t n = cases[i].n, step = strlen(cases[i].repeat);
        char *text = mem_alloc(n, &e);
        ASSERT(text);
        for (size_t k = 0; k < n; k++) text[k] = cases[i].repeat[k % step];
        f64 start = os_now_ms();
        CHECK_OK(tok_encode(t, (Str){text, n}, NULL, &ids, &e), e);
        f64 ms = os_now_ms() - start;
        printf("  %zu KiB of %s: %zu tokens, %.0f ms\n", n >> 10, cases[i].what, ids.n, ms);
        CHECK_MSG(ms < 30000, "%s took %.0f ms", cases[i].what, ms);
        decode_all(t, &ids, true, &back);
        CHECK(str_eq(tok_without_blank(t, buf_view(&back)), (Str){text, n}));
        buf_free(&back);
        tok_ids_free(&ids);
        mem_free(text);
    }
}

static void vocabularies_of_real_size(void) {
    static const char *const names[] = {"qwen2", "llama-spm", "llama-bpe", "gpt-2"};
    for (size_t i = 0; i < COUNT_OF(names); i++) {
        Vocab v;
        f64 start = os_now_ms();
        vocab_open(&v, names[i]);
        printf("  %s: %u tokens opened in %.0f ms\n", names[i], v.t.n_vocab, os_now_ms() - start);
        v.t.nfc = false; /* else some come back as their normal form */
        any_bytes_come_back(&v.t);
        if (i < 2) long_texts_take_seconds(&v.t, i == 0);
        vocab_close(&v);
    }
}

typedef struct {
    const Tok *t;
    Str text;
    u64 hash;
} Job;

static void *encode_often(void *arg) {
    Job *job = arg;
    for (int round = 0; round < 20; round++) {
        TokIds ids = {0};
        if (!tok_encode(job->t, job->text, NULL, &ids, NULL)) return NULL;
        job->hash = str_hash((Str){(char *)ids.p, ids.n * sizeof *ids.p}) + (u64)round;
        tok_ids_free(&ids);
    }
    return NULL;
}

static void threads_agree(void) {
    Buf b = {0};
    Vocab v;
    Err e = {0};
    pthread_t threads[4];
    Job jobs[4];
    char text[3000];
    u64 rng = 3;
    fill_random(&rng, text, sizeof text, 1);
    make_chat(&b, "llama-bpe");
    if (!CHECK_OK(made_open(&v, &b, NULL, &e), e)) return;
    for (size_t i = 0; i < COUNT_OF(jobs); i++) {
        jobs[i] = (Job){&v.t, {text, sizeof text}, i};
        CHECK(pthread_create(&threads[i], NULL, encode_often, &jobs[i]) == 0);
    }
    for (size_t i = 0; i < COUNT_OF(jobs); i++) pthread_join(threads[i], NULL);
    for (size_t i = 1; i < COUNT_OF(jobs); i++) CHECK_U64(jobs[i].hash, jobs[0].hash);
    made_close(&v);
    buf_free(&b);
}

/* ---- hostile vocabularies: each is an Err with a sentence, never a crash ---- */

static void refused_as(const Buf *b, const char *pre, ErrCode code, const char *part) {
    Vocab v;
    Err e = {0};
    if (made_open(&v, b, pre, &e)) {
        CHECK_MSG(false, "accepted; want \"%s\"", part);
        made_close(&v);
    }
    CHECK_ERR(e, code, part);
}

static void make_tokens(Buf *b, const Str *tokens, u32 n) {
    make_begin(b);
    make_key_str(b, "tokenizer.ggml.model", "gpt2");
    make_key_str(b, "tokenizer.ggml.pre", "gpt-2");
    make_array(b, "tokenizer.ggml.tokens", GGUF_STRING, n);
    for (u32 i = 0; i < n; i++) make_str(b, tokens[i]);
}

static void keys_that_are_missing_or_wrong(Buf *b) {
    make_begin(b);
    refused_as(b, NULL, ERR_MODEL, "no tokenizer in the file");
    make_key_u32(b, "tokenizer.ggml.model", 1);
    refused_as(b, NULL, ERR_MODEL, "tokenizer.ggml.model");
    make_begin(b);
    make_vocab(b, NULL, MAKE_MERGES, 1, NULL);
    refused_as(b, NULL, ERR_MODEL, "--pre NAME");
    refused_as(b, "gpt-3", ERR_USAGE, "--pre gpt-3: no such pre-tokenizer");
    Vocab v;
    Err e = {0};
    if (CHECK_OK(made_open(&v, b, "smollm", &e), e)) {
        CHECK_CSTR(v.t.pre_name, "smollm");
        made_close(&v);
    }
    make_chat(b, "default");
    refused_as(b, NULL, ERR_MODEL, "pre-tokenizer 'default' is not supported");
    make_tokens(b, NULL, 0);
    refused_as(b, NULL, ERR_MODEL, "has 0 tokens");
    make_begin(b);
    make_key_str(b, "tokenizer.ggml.model", "gpt2");
    make_key_str(b, "tokenizer.ggml.pre", "gpt-2");
    refused_as(b, NULL, ERR_MODEL, "tokenizer.ggml.tokens");
    make_array(b, "tokenizer.ggml.tokens", GGUF_U8, 4);
    make_u32(b, 0);
    refused_as(b, NULL, ERR_MODEL, "tokenizer.ggml.tokens");
    make_tokens(b, &STR("a"), 1);
    refused_as(b, NULL, ERR_MODEL, "tokenizer.ggml.merges");
    make_array(b, "tokenizer.ggml.merges", GGUF_I32, 1);
    make_u32(b, 0);
    refused_as(b, NULL, ERR_MODEL, "tokenizer.ggml.merges");
    make_tokens(b, &STR("a"), 1);
    make_array(b, "tokenizer.ggml.merges", GGUF_STRING, 0);
    if (CHECK_OK(made_open(&v, b, NULL, &e), e)) { /* tiny, but honest */
        CHECK_CSTR(ids_of(&v.t, STR("abba"), NULL), "0 0");
        made_close(&v);
    }
}

static void token_types_that_lie(Buf *b) {
    Str ab[2] = {STR("a"), STR("b")};
    make_tokens(b, ab, 2);
    make_array(b, "tokenizer.ggml.token_type", GGUF_U8, 2);
    buf_put(b, "\1\1", 2);
    refused_as(b, NULL, ERR_MODEL, "tokenizer.ggml.token_type");
    make_tokens(b, ab, 2);
    make_array(b, "tokenizer.ggml.token_type", GGUF_I32, 1);
    make_u32(b, 1);
    refused_as(b, NULL, ERR_MODEL, "has 1 entries for 2 tokens");
    for (i32 bad = -1; bad < 8; bad += 8) {
        make_tokens(b, ab, 2);
        make_array(b, "tokenizer.ggml.token_type", GGUF_I32, 2);
        make_u32(b, 1);
        make_u32(b, (u32)bad);
        refused_as(b, NULL, ERR_MODEL, "token 1 has type");
    }
}

static void ids_out_of_range(Buf *b) {
    static const char *const keys[] = {"bos", "eos", "eot", "eom", "unknown", "padding", "mask"};
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        char key[64];
        snprintf(key, sizeof key, "tokenizer.ggml.%s_token_id", keys[i]);
        for (u32 far = 0; far < 2; far++) {
            make_begin(b);
            make_vocab(b, "gpt-2", MAKE_MERGES, 1, NULL);
            make_key_u32(b, key, far ? UINT32_MAX : 257);
            refused_as(b, NULL, ERR_MODEL, key);
        }
    }
    make_begin(b);
    make_vocab(b, "gpt-2", MAKE_MERGES, 1, NULL);
    make_key_bool(b, "tokenizer.ggml.add_bos_token", true);
    refused_as(b, NULL, ERR_MODEL, "add_bos_token' is true, but");
}

static void merges_that_lie(Buf *b) {
    static const char *const bad[] = {"a",    "a ",   " a",  "",     " ",
                                      "a zz", "zz a", "b a", "a  b", "\xFF \xFF"};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        Str tokens[3] = {STR("a"), STR("b"), STR("ab")};
        make_tokens(b, tokens, 3);
        make_array(b, "tokenizer.ggml.merges", GGUF_STRING, 2);
        make_str(b, STR("a b"));
        make_str(b, str_of(bad[i]));
        refused_as(b, NULL, ERR_MODEL, "merge 1");
    }
    /* Listed twice, the first rank holds; a control token is never the sum of its parts. */
    static const char *const twice[] = {"a b", "b c", "a b"};
    static const char *const sum[] = {"a b", "ab c"};
    static const MakeToken control[] = {{"abc", TOK_CONTROL}, {NULL, 0}};
    Vocab v;
    Err e = {0};
    make_begin(b);
    make_vocab(b, "gpt-2", twice, 3, NULL);
    if (CHECK_OK(made_open(&v, b, NULL, &e), e)) {
        CHECK_CSTR(ids_of(&v.t, STR("abc"), NULL), "256 99");
        made_close(&v);
    }
    make_begin(b);
    make_vocab(b, "gpt-2", sum, 1, control);
    make_key_str(b, "note", "");
    size_t at = str_find(buf_view(b), STR("tokenizer.ggml.merges"), 0);
    b->n = at - 8; /* replace the merges, and the note's count */
    u64 n_kv = 4;
    memcpy(b->p + 16, &n_kv, sizeof n_kv);
    make_array(b, "tokenizer.ggml.merges", GGUF_STRING, 2);
    make_str(b, str_of(sum[0]));
    make_str(b, str_of(sum[1]));
    if (CHECK_OK(made_open(&v, b, NULL, &e), e)) {
        CHECK_CSTR(ids_of(&v.t, STR("abc"), NULL), "256 99");
        made_close(&v);
    }
}

static void texts_too_long_or_equal(Buf *b) {
    static char huge[70000];
    memset(huge, 'x', sizeof huge);
    Str tokens[3] = {STR("a"), {huge, sizeof huge}, STR("a")};
    make_tokens(b, tokens, 2);
    refused_as(b, NULL, ERR_MODEL, "made.gguf");
    MakeToken special[] = {{huge, TOK_CONTROL}, {NULL, 0}};
    huge[TOK_SPECIAL_MAX + 1] = 0;
    make_begin(b);
    make_vocab(b, "gpt-2", MAKE_MERGES, 1, special);
    refused_as(b, NULL, ERR_MODEL, "special token 257 is 257 bytes long");
    /* Equal texts: the first is the one that is found; empty texts match nowhere. */
    static const MakeToken same[] = {
        {"<x>", TOK_CONTROL}, {"<x>", TOK_CONTROL}, {"<x>", TOK_USER}, {"", TOK_CONTROL},
        {"", TOK_USER},       {"a", TOK_NORMAL},    {NULL, 0}};
    Vocab v;
    Err e = {0};
    u8 trusted[3] = {1, 1, 1};
    make_begin(b);
    make_vocab(b, "gpt-2", MAKE_MERGES, 1, same);
    if (!CHECK_OK(made_open(&v, b, NULL, &e), e)) return;
    CHECK_INT(tok_find(&v.t, STR("<x>")), 257);
    CHECK_CSTR(ids_of(&v.t, STR("<x>"), trusted), "257");
    CHECK_CSTR(ids_of(&v.t, STR("aaa"), trusted), "97 97 97");
    made_close(&v);
}

/* Over a thousand tokens that want the same slot: refused in an instant, not filled in quadratic
 * time. */
static void vocabulary_made_to_collide(Buf *b) {
    enum { N = 1100 };
    static char text[N][12];
    static Str tokens[N];
    u32 n = 0;
    for (u32 k = 0; n < N; k++) {
        snprintf(text[n], sizeof text[n], "%u", k);
        tokens[n] = str_of(text[n]);
        n += ((u32)tok_hash_(tokens[n], (Str){"", 0}) & 2047) == 5;
    }
    CHECK_INT(tok_table_size_(N), 2048);
    make_tokens(b, tokens, N);
    refused_as(b, NULL, ERR_MODEL, "made to be slow");
}

static void hostile_vocabularies(void) {
    Buf b = {0};
    keys_that_are_missing_or_wrong(&b);
    token_types_that_lie(&b);
    ids_out_of_range(&b);
    merges_that_lie(&b);
    texts_too_long_or_equal(&b);
    vocabulary_made_to_collide(&b);
    buf_free(&b);
}

/* ---- SentencePiece ---- */

/* The ids of a text as the pieces that they are, between bars. */
static const char *pieces_of(const Tok *t, const char *text, const u8 *trusted) {
    static char line[512];
    TokIds ids = {0};
    Err e = {0};
    size_t n = 0;
    line[0] = 0;
    CHECK_OK(tok_encode(t, str_of(text), trusted, &ids, &e), e);
    for (size_t i = 0; i < ids.n; i++) {
        Str piece = tok_text(t, ids.p[i]);
        n += (size_t)snprintf(line + n, sizeof line - n, i ? "|%.*s" : "%.*s", STR_ARG(piece));
    }
    tok_ids_free(&ids);
    return line;
}

static void make_spm(Buf *b, u32 n_bytes, const char *arch) {
    make_begin(b);
    if (arch) make_key_str(b, "general.architecture", arch);
    make_pieces(b, MAKE_PIECES, MAKE_N_PIECES, n_bytes, MAKE_PIECE_TOKENS);
}

static void pieces_merge_by_score(void) {
#define B MAKE_BLANK
    Buf b = {0}, out = {0};
    Vocab v;
    Err e = {0};
    TokIds ids = {0};
    make_spm(&b, 256, NULL);
    if (!CHECK_OK(made_open(&v, &b, NULL, &e), e)) return;
    const Tok *t = &v.t;
    CHECK(t->spm && t->add_bos && t->add_blank && t->blank_first && !t->nfc);
    CHECK_INT(t->unk, 0);
    CHECK_INT(t->bos, 1);
    CHECK_INT(t->eos, 2);
    CHECK(tok_is_eog(t, 2) && tok_is_special(t, 1));
    CHECK_CSTR(pieces_of(t, "abc", NULL), B "|ab|c"); /* before "bc", and before the blank and a */
    CHECK_CSTR(pieces_of(t, "bcab", NULL), B "|bc|ab");
    CHECK_CSTR(pieces_of(t, "a", NULL), B "a");
    CHECK_CSTR(pieces_of(t, "  a  b", NULL), B B "|" B "a|" B B "|b");
    CHECK_CSTR(pieces_of(t, "abca", NULL), B "|ab|c|a");
    CHECK_CSTR(pieces_of(t, "", NULL), "");
    CHECK_CSTR(pieces_of(t, "b\xC3\xA9\xC3\xBC\xFF", NULL), B "|b|\xC3\xA9|<0xC3>|<0xBC>|<0xFF>");
    CHECK_CSTR(pieces_of(t, "<s>", NULL), B "|<0x3C>|<0x73>|<0x3E>");
    CHECK_CSTR(pieces_of(t, "[PAD9]", NULL),
               B "|<0x5B>|<0x50>|<0x41>|<0x44>|<0x39>|<0x5D>"); /* unused */
    CHECK_CSTR(pieces_of(t, "axyzb", NULL), B "a|xyz|" B "|b"); /* each text has its blank */
    u8 trusted[32];
    memset(trusted, 1, sizeof trusted);
    CHECK_CSTR(pieces_of(t, "<s>a<|user|>\n b", trusted),
               "<s>|" B "a|<|user|>|" B "|<0x0A>|" B "|b");
    CHECK_OK(tok_encode_prompt(t, STR(" a  \xC3\xBC"), NULL, &ids, &e), e);
    CHECK_INT(ids.p[0], 1);
    decode_all(t, &ids, false, &out);
    CHECK_STR(buf_view(&out), STR("  a  \xC3\xBC"));
    CHECK_STR(tok_without_blank(t, buf_view(&out)), STR(" a  \xC3\xBC"));
    CHECK_STR(tok_without_blank(t, STR("a")), STR("a"));
    tok_ids_free(&ids);
    made_close(&v);
    make_key_bool(&b, "tokenizer.ggml.add_space_prefix", false);
    make_key_bool(&b, "tokenizer.ggml.add_bos_token", false);
    if (!CHECK_OK(made_open(&v, &b, NULL, &e), e)) return;
    CHECK(!v.t.add_bos);
    CHECK_CSTR(pieces_of(&v.t, "a a", NULL), "a|" B "a");
    CHECK_STR(tok_without_blank(&v.t, STR(" a")), STR(" a"));
    made_close(&v);
    buf_free(&b);
    buf_free(&out);
}

static void pieces_without_bytes(void) {
    Buf b = {0};
    Vocab v;
    Err e = {0};
    make_spm(&b, 1, NULL); /* <0xFF> */
    if (CHECK_OK(made_open(&v, &b, NULL, &e), e)) {
        CHECK_CSTR(pieces_of(&v.t, "axxb x", NULL), B "a|<unk>|b|" B "|<unk>");
        CHECK_CSTR(pieces_of(&v.t, "\xC3\xBC\xFFx", NULL), B "|<unk>|<0xFF>|<unk>");
        made_close(&v);
    }
    make_spm(&b, 256, "phi3"); /* what follows Phi-3's tokens goes with them */
    if (CHECK_OK(made_open(&v, &b, NULL, &e), e)) {
        u8 trusted[32];
        memset(trusted, 1, sizeof trusted);
        CHECK_CSTR(pieces_of(&v.t, "<|user|>\n\xC2\xA0 a<s> a", trusted),
                   "<|user|>|" B "a|<s>|" B "|" B "a");
        made_close(&v);
    }
    /* A piece with a blank behind another character: the text is merged as a whole. */
    static const char *const across[] = {B, "a", B "a", "a" B "a"};
    make_begin(&b);
    make_pieces(&b, across, COUNT_OF(across), 256, NULL);
    if (CHECK_OK(made_open(&v, &b, NULL, &e), e)) {
        CHECK(!v.t.blank_first);
        CHECK_CSTR(pieces_of(&v.t, "a a a", NULL), B "a|" B "a|" B "a");
        CHECK_CSTR(pieces_of(&v.t, "aa a", NULL), B "a|a" B "a");
        made_close(&v);
    }
    buf_free(&b);
#undef B
}

static void hostile_pieces(void) {
    Buf b = {0};
    f32 nan = 0;
    make_begin(&b);
    make_key_str(&b, "tokenizer.ggml.model", "llama");
    make_array(&b, "tokenizer.ggml.tokens", GGUF_STRING, 1);
    make_str(&b, STR("a"));
    refused_as(&b, NULL, ERR_MODEL, "tokenizer.ggml.scores' has 0 entries for 1 tokens");
    Buf more = {0};
    buf_put(&more, b.p, b.n);
    make_array(&b, "tokenizer.ggml.scores", GGUF_F32, 2);
    make_u64(&b, 0);
    refused_as(&b, NULL, ERR_MODEL, "has 2 entries for 1 tokens");
    make_array(&more, "tokenizer.ggml.scores", GGUF_F32, 1);
    make_u32(&more, 0x7FC00000);
    refused_as(&more, NULL, ERR_MODEL, "the score of token 0 is not a number");
    memcpy(more.p + more.n - 4, &nan, 4);
    Vocab v;
    Err e = {0};
    if (CHECK_OK(made_open(&v, &more, NULL, &e),
                 e)) { /* no unknown token, no bytes: nothing is left */
        CHECK_CSTR(ids_of(&v.t, STR("ba b"), NULL), "0");
        CHECK(!v.t.add_bos);
        made_close(&v);
    }
    refused_as(&more, "qwen2", ERR_USAGE, "SentencePiece's, which has none");
    buf_free(&more);
    buf_free(&b);
}

static void scores_are_ordered(void) {
    static const f32 down[] = {1e30f, 2, 1, 1e-40f, 0, -1e-40f, -1, -2, -1e30f};
    for (size_t i = 1; i < COUNT_OF(down); i++)
        CHECK(tok_order_(down[i - 1]) < tok_order_(down[i]));
    CHECK_INT(tok_order_(0.0f), tok_order_(-0.0f));
}

/* ---- normalization form C ---- */

static void check_nfc(const char *text, const char *want) {
    TokWork_ w = {0};
    Err e = {0};
    CHECK_OK(tok_normalize_(&w, str_of(text), &e), e);
    CHECK_STR(buf_view(&w.text), str_of(want));
    tok_work_free_(&w);
}

static void text_is_normalized(void) {
    check_nfc("", "");
    check_nfc("plain", "plain");
    check_nfc("e\xCC\x81.", "\xC3\xA9."); /* e + acute */
    check_nfc("\xC3\xA9", "\xC3\xA9");
    check_nfc("a\xCC\x82\xCC\xA3", "\xE1\xBA\xAD"); /* marks in the wrong order */
    check_nfc("a\xCC\x81\xCC\x81", "\xC3\xA1\xCC\x81");
    check_nfc("\xCC\x81", "\xCC\x81");                                 /* a mark alone */
    check_nfc("\xE2\x84\xAB", "\xC3\x85");                             /* the angstrom sign */
    check_nfc("\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB", "\xED\x95\x9C"); /* Hangul */
    check_nfc("\xED\x95\x98\xE1\x86\xAB", "\xED\x95\x9C");
    check_nfc("\xE1\x84\x92\xE1\x86\xAB", "\xE1\x84\x92\xE1\x86\xAB");
    check_nfc("\xE0\xA5\x98", "\xE0\xA4\x95\xE0\xA4\xBC"); /* stays apart */
    check_nfc("\xF0\xAF\xA0\x80", "\xE4\xB8\xBD");         /* a compatibility ideograph */
    check_nfc("\xE4\xB8\xBD\xCC\x81", "\xE4\xB8\xBD\xCC\x81");
    check_nfc("e\xFF\xCC\x81\xE2\x82", "e\xFF\xCC\x81\xE2\x82"); /* not UTF-8: a wall */
    /* A million marks of two classes, the wrong way round, are sorted in an instant. */
    size_t n = (size_t)4 << 20;
    char *text = mem_alloc(n, NULL);
    ASSERT(text);
    for (size_t i = 0; i < n; i += 4) memcpy(text + i, "\xCC\x8D\xCC\xA9", 4);
    TokWork_ w = {0};
    Err e = {0};
    CHECK_OK(tok_normalize_(&w, (Str){text, n}, &e), e);
    CHECK(w.text.n == n && !memcmp(w.text.p + n / 2 - 2, "\xCC\xA9\xCC\x8D", 4));
    tok_work_free_(&w);
    mem_free(text);
}

static void models_say_whether_to_normalize(void) {
    static const struct {
        const char *pre, *key;
        bool nfc;
    } cases[] = {{"qwen2", NULL, true},      {"llama-bpe", NULL, false}, {"qwen2", "none", false},
                 {"llama-bpe", "nfc", true}, {"mpt", NULL, true},        {"gpt-2", NULL, false}};
    Buf b = {0};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Vocab v;
        Err e = {0};
        u8 trusted[16];
        memset(trusted, 1, sizeof trusted);
        make_chat(&b, cases[i].pre);
        if (cases[i].key) make_key_str(&b, "tokenizer.ggml.normalizer", cases[i].key);
        if (!CHECK_OK(made_open(&v, &b, NULL, &e), e)) continue;
        CHECK_CSTR(ids_of(&v.t, STR("e\xCC\x81"), NULL), cases[i].nfc ? "195 169" : "101 204 129");
        const char *want = cases[i].nfc ? "195 169 263 204 129" : "101 204 129 263 204 129";
        CHECK_CSTR(ids_of(&v.t, STR("e\xCC\x81<s>\xCC\x81"), trusted), want); /* tokens first */
        made_close(&v);
    }
    make_chat(&b, "qwen2");
    make_key_str(&b, "tokenizer.ggml.normalizer", "nfkc");
    refused_as(&b, NULL, ERR_MODEL, "'tokenizer.ggml.normalizer' is 'nfkc'; 'nfc' and 'none'");
    buf_free(&b);
}

/* ---- the end of a generation, by name ---- */

static void names_end_a_generation(void) {
    static const MakeToken extra[] = {{"</s>", TOK_NORMAL},       {"<|eot_id|>", TOK_NORMAL},
                                      {"<EOT>", TOK_CONTROL},     {"<|role_end|>", TOK_USER},
                                      {"<|other|>", TOK_CONTROL}, {NULL, 0}};
    Buf b = {0};
    Vocab v;
    Err e = {0};
    make_begin(&b);
    make_vocab(&b, "gpt-2", MAKE_MERGES, 1, extra);
    if (!CHECK_OK(made_open(&v, &b, NULL, &e), e)) return;
    CHECK(!tok_is_eog(&v.t, 257)); /* a word of HTML, as far as the file says */
    CHECK(tok_is_eog(&v.t, 258) && tok_is_special(&v.t, 258));
    CHECK(tok_is_eog(&v.t, 259));
    CHECK(tok_is_eog(&v.t, 260));
    CHECK(!tok_is_eog(&v.t, 261));
    CHECK_INT(v.t.eot, 258);
    CHECK_INT(v.t.eos, -1);
    made_close(&v);
    buf_free(&b);
}

/* ---- lids and refused memory ---- */

static void lids_hold(void) {
    Buf b = {0};
    Vocab v;
    Err e = {0};
    TokIds ids = {.max = 3};
    make_chat(&b, "qwen2");
    if (!CHECK_OK(made_open(&v, &b, NULL, &e), e)) return;
    CHECK(tok_encode(&v.t, STR("xyz"), NULL, &ids, &e));
    CHECK(!tok_encode(&v.t, STR("x"), NULL, &ids, &e));
    CHECK_ERR(e, ERR_RUNTIME, "longer than 3 tokens");
    err_clear(&e);
    CHECK(!tok_encode(&v.t, (Str){"", TOK_INPUT_MAX + 1}, NULL, &ids, &e));
    CHECK_ERR(e, ERR_RUNTIME, "the limit");
    tok_ids_free(&ids);
    CHECK_INT(ids.max, 3);
    made_close(&v);
    buf_free(&b);
}

static bool open_encode_close(void *arg, Err *e) {
    const Buf *file = arg;
    Gguf g;
    Tok t;
    TokIds ids = {0};
    char text[2000];
    memset(text, 'x', sizeof text);
    memcpy(text, "hello e\xCC\x81\xCC\xA3<s>", 14);
    if (!gguf_open(&g, (const u8 *)file->p, file->n, "made.gguf", e)) return false;
    bool ok = tok_open(&t, &g, NULL, e);
    if (ok) {
        ok = tok_encode_prompt(&t, (Str){text, sizeof text}, NULL, &ids, e);
        tok_ids_free(&ids);
        tok_close(&t);
    }
    gguf_close(&g);
    return ok;
}

static void refused_memory_is_an_error(void) {
    Buf b = {0};
    make_chat(&b, "llama-bpe");
    CHECK(test_alloc_failures(open_encode_close, &b) > 10);
    make_chat(&b, "qwen2");
    CHECK(test_alloc_failures(open_encode_close, &b) > 10);
    make_spm(&b, 256, NULL);
    CHECK(test_alloc_failures(open_encode_close, &b) > 8);
    buf_free(&b);
}

int main(void) {
    published_vectors_pass();
    other_kinds_are_refused();
    words_are_cut_as_published();
    names_have_rows();
    cutting_is_linear();
    merging_equals_the_textbook();
    only_trusted_text_makes_special_tokens();
    flags_and_lookups();
    bos_and_eos_are_added_once();
    ignore_merges_takes_whole_words();
    bytes_without_a_token();
    streaming_equals_one_shot();
    vocabularies_of_real_size();
    hostile_vocabularies();
    pieces_merge_by_score();
    pieces_without_bytes();
    hostile_pieces();
    scores_are_ordered();
    text_is_normalized();
    models_say_whether_to_normalize();
    names_end_a_generation();
    lids_hold();
    refused_memory_is_an_error();
    CHECK_INT(mem_test_live, 0);
    threads_agree(); /* last: the count of blocks is not atomic */
    return test_end();
}

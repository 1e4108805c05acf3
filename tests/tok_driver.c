/* tok_driver.c - the tokenizer as a filter, for tests/py/tok_diff.py.
 *
 *     tok_driver VOCAB.gguf < texts > ids
 *     tok_driver --words PRE < texts > ends
 *
 * A text is a u32 length (little-endian), a byte (1: trusted, so that special tokens are recognized)
 * and the bytes; for each, one line of ids. They are then decoded: "!" if that is another text. Or one
 * line of the places where the pre-tokenizer PRE ends a word. */
#include "../src/os.c"
#include "../src/tok.c"

static void fail(const char *why) {
    fprintf(stderr, "tok_driver: %s\n", why);
    exit(1);
}

static void encode_line(const Tok *t, Str text, bool trust, TokIds *ids, Buf *back) {
    Err e = {0};
    u8 *trusted = mem_alloc(text.n, &e);
    if (!trusted) fail(e.msg);
    memset(trusted, 1, text.n);
    ids->n = 0;
    buf_clear(back);
    if (!tok_encode(t, text, trust ? trusted : NULL, ids, &e)) fail(e.msg);
    mem_free(trusted);
    for (size_t k = 0; k < ids->n; k++) {
        printf(k ? " %d" : "%d", ids->p[k]);
        if (!tok_bytes(t, ids->p[k], true, back)) fail("the decoded text does not fit");
    }
    puts(str_eq(tok_without_blank(t, buf_view(back)), text) ? "" : " !");
}

static void words_line(const Pre *p, Str text) {
    size_t end[PRE_SPLITS_MAX] = {0};
    for (size_t i = 0, from = 0; i < text.n; from = i) {
        i = pre_word_end(p, text, i, end);
        printf(from ? " %zu" : "%zu", i);
    }
    puts("");
}

int main(int argc, char **argv) {
    OsMap map;
    Gguf g;
    Tok t;
    Pre pre;
    Err e = {0};
    TokIds ids = {0};
    Buf in = {.max = (size_t)1 << 30}, back = {0};
    bool words = argc == 3 && !strcmp(argv[1], "--words");
    if (argc != 2 && !words) fail("usage: tok_driver VOCAB.gguf < texts");
    if (words && !pre_find(str_of(argv[2]))) fail("no such pre-tokenizer");
    if (words)
        pre_compile(&pre, pre_row(pre_find(str_of(argv[2]))));
    else if (!os_map_file(&map, argv[1], &e) || !gguf_open(&g, map.p, map.n, argv[1], &e) ||
             !tok_open(&t, &g, NULL, &e))
        fail(e.msg);
    if (!os_read_stdin(&in, &e)) fail(e.msg);
    for (size_t i = 0; i < in.n;) {
        if (in.n - i < 5) fail("half a record");
        size_t n = load_u32((const u8 *)in.p + i);
        bool trust = in.p[i + 4] != 0;
        i += 5;
        if (n > in.n - i) fail("half a text");
        if (words)
            words_line(&pre, (Str){in.p + i, n});
        else
            encode_line(&t, (Str){in.p + i, n}, trust, &ids, &back);
        i += n;
    }
    buf_free(&in);
    buf_free(&back);
    tok_ids_free(&ids);
    if (words) return 0;
    tok_close(&t);
    gguf_close(&g);
    os_unmap(&map);
    return 0;
}

/* tok_driver.c - the tokenizer as a filter, for tests/py/tok_diff.py.
 *
 *     tok_driver VOCAB.gguf < texts > ids
 *
 * A text is a u32 length (little-endian), a byte (1: trusted, so that special tokens are recognized)
 * and the bytes; for each, one line of ids. They are then decoded: "!" if that is another text. */
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
    puts(str_eq(buf_view(back), text) ? "" : " !");
}

int main(int argc, char **argv) {
    OsMap map;
    Gguf g;
    Tok t;
    Err e = {0};
    TokIds ids = {0};
    Buf in = {.max = (size_t)1 << 30}, back = {0};
    if (argc != 2) fail("usage: tok_driver VOCAB.gguf < texts");
    if (!os_map_file(&map, argv[1], &e) || !gguf_open(&g, map.p, map.n, argv[1], &e) ||
        !tok_open(&t, &g, NULL, &e) || !os_read_stdin(&in, &e))
        fail(e.msg);
    for (size_t i = 0; i < in.n;) {
        if (in.n - i < 5) fail("half a record");
        size_t n = load_u32((const u8 *)in.p + i);
        bool trust = in.p[i + 4] != 0;
        i += 5;
        if (n > in.n - i) fail("half a text");
        encode_line(&t, (Str){in.p + i, n}, trust, &ids, &back);
        i += n;
    }
    buf_free(&in);
    buf_free(&back);
    tok_ids_free(&ids);
    tok_close(&t);
    gguf_close(&g);
    os_unmap(&map);
    return 0;
}

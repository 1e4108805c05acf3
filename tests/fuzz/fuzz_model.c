/* fuzz_model.c - a model file from the fuzzer: refused with a sentence, or bound within its bytes.
 * The backend only looks at the ends of what it is given. */
#include "../../src/model.c"

static u64 seen;

static void *fake_alloc(void *self, u64 n_bytes) {
    (void)self;
    return mem_alloc(n_bytes, NULL);
}

static void fake_free(void *self, void *p) {
    (void)self;
    mem_free(p);
}

static void fake_upload(void *self, void *dst, const void *src, u64 n_bytes) {
    (void)self;
    memcpy(dst, src, n_bytes);
}

static const char *fake_mat_load(void *self, DlmMat *m, const DlmTensor *t) {
    (void)self;
    ASSERT(t->n_in > 0 && t->n_out > 0 && t->n_bytes > 0);
    seen += t->data[0] + t->data[t->n_bytes - 1];
    *m = (DlmMat){.type = t->type, .n_in = (i32)t->n_in, .n_out = (i32)t->n_out};
    return NULL;
}

static void fake_mat_free(void *self, DlmMat *m) {
    (void)self;
    (void)m;
}

static void check(const Gguf *file, const Tok *tok) {
    const ModelOptions o = {.mask_id = -1};
    DlmOps ops = {.alloc = fake_alloc,
                  .free = fake_free,
                  .upload = fake_upload,
                  .mat_load = fake_mat_load,
                  .mat_free = fake_mat_free};
    Model m = {0};
    Buf said = {0};
    Err e = {0};
    bool ok = model_read(&m, file, tok, &o, &e);
    if (ok) {
        model_put_rotation(&said, &m);
        model_put_parts(&said, &m);
        ok = model_load(&m, &o, &ops, &e);
        model_unload(&m);
    }
    ASSERT(ok || (e.code != ERR_NONE && e.msg[0]));
    buf_free(&said);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    Gguf file;
    Tok tok;
    base_log_level = LOG_QUIET;
    if (n > 1u << 16 || !gguf_open(&file, data, n, "fuzz", NULL)) return 0;
    if (tok_open(&tok, &file, NULL, NULL)) {
        check(&file, &tok);
        tok_close(&tok);
    }
    gguf_close(&file);
    return 0;
}

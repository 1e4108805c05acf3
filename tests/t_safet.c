/* t_safet.c - the safetensors directory: a good file, each crime, refused memory. */
#include "../src/safet.c"
#include "test.h"

#define CHECKPOINT "../shared/models/tiny-dlm/model.safetensors"

/* A file of this header and n_data bytes of zeros, exactly as long as that. */
static u8 *file_of(const char *header, u64 n_data, u64 *n) {
    u64 n_header = strlen(header);
    *n = 8 + n_header + n_data;
    u8 *p = test_guard_alloc(*n);
    memset(p, 0, *n);
    memcpy(p, &n_header, 8);
    memcpy(p + 8, header, n_header);
    return p;
}

static bool try_header(const char *header, u64 n_data, Err *e) {
    u64 n;
    u8 *p = file_of(header, n_data, &n);
    Safet s;
    *e = (Err){0};
    bool ok = safet_open(&s, p, n, "t.safetensors", e);
    if (ok) safet_close(&s);
    test_guard_free(p);
    return ok;
}

static void test_good(void) {
    u64 n;
    Err e = {0};
    Safet s;
    u8 *p =
        file_of("{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],"
                "\"data_offsets\":[4,16]},\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":"
                "[0,4]},\"c\":{\"dtype\":\"I64\",\"shape\":[0],\"data_offsets\":[16,16]}}  ",
                16, &n);
    if (!CHECK_OK(safet_open(&s, p, n, "t.safetensors", &e), e)) return;
    const SafetTensor *a = safet_find(&s, STR("a")), *b = safet_find(&s, STR("b"));
    CHECK_INT(s.n_tensors, 3);
    CHECK(a && a->type == SAFET_F32 && a->n_dims == 0 && a->n_bytes == 4);
    CHECK(b && b->type == SAFET_BF16 && b->shape[0] == 2 && b->shape[1] == 3 && b->shape[2] == 1);
    CHECK(b && b->data == p + n - 12 && b->n_bytes == 12);
    CHECK(!safet_find(&s, STR("__metadata__")) && !safet_find(&s, STR("ab")));
    safet_close(&s);
    test_guard_free(p);
}

#define T(name, dtype, shape, offsets) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static void test_crimes(void) {
    static const struct {
        const char *header;
        u64 n_data;
        const char *says;
    } crimes[] = {
        {"{" T("a", "F32", "[2]", "[0,8]") "}", 7,
         "tensor a ends at byte 8 of the data, which has 7"},
        {"{" T("a", "F32", "[2]", "[0,9]") "}", 9,
         "tensor a has 9 bytes, but its shape and type F32 want 8"},
        {"{" T("a", "F32", "[2]", "[8,0]") "}", 8, "tensor a has data_offsets"},
        {"{" T("a", "F32", "[2]", "[0]") "}", 8, "tensor a has data_offsets"},
        {"{" T("a", "F32", "[2]", "[-8,0]") "}", 8, "tensor a has data_offsets"},
        {"{" T("a", "F32", "[2]", "\"x\"") "}", 8, "tensor a has data_offsets"},
        {"{" T("a", "F31", "[2]", "[0,8]") "}", 8, "tensor a has the unknown dtype 'F31'"},
        {"{" T("a", "F32", "[-2]", "[0,8]") "}", 8, "tensor a has a shape that is no shape"},
        {"{" T("a", "F32", "[1,1,1,1,2]", "[0,8]") "}", 8, "tensor a has a shape that is not"},
        {"{" T("a", "F32", "[4294967296,4294967296,4294967296]", "[0,8]") "}", 8, "no shape"},
        {"{" T("a", "F4", "[1]", "[0,0]") "}", 8, "tensor a has 0 bytes"},
        {"{" T("a", "F32", "[2]", "[0,8]") "," T("b", "F32", "[2]", "[4,12]") "}", 12,
         "a and b overlap"},
        {"{" T("a", "F32", "[2]", "[0,8]") "," T("a", "F32", "[2]", "[8,16]") "}", 16,
         "\"a\" appears twice"},
        {"{\"a\":{\"shape\":[2]}}", 0, "tensor a has no dtype"},
        {"{\"a\":7}", 0, "tensor a has no dtype"},
        {"{" T("", "F32", "[2]", "[0,8]") "}", 8, "empty name"},
        {"[1]", 0, "no JSON object"},
        {"{\"a\"", 0, "its header cannot be read"},
        {"", 16, "promise a header of 0 bytes"},
    };
    for (size_t i = 0; i < COUNT_OF(crimes); i++) {
        Err e;
        CHECK_MSG(!try_header(crimes[i].header, crimes[i].n_data, &e), "taken: %s",
                  crimes[i].header);
        CHECK_ERR(e, ERR_MODEL, crimes[i].says);
        CHECK_ERR(e, ERR_MODEL, "t.safetensors");
    }
}

static void test_lengths(void) {
    u8 long_header[16] = {9}, huge[8];
    memset(huge, 0xff, sizeof huge);
    Err e = {0};
    Safet s;
    CHECK(!safet_open(&s, long_header, 16, "t", &e));
    CHECK_ERR(e, ERR_MODEL, "promise a header of 9 bytes, but the file has 16");
    e = (Err){0};
    CHECK(!safet_open(&s, huge, 8, "t", &e) && !safet_open(&s, huge, 3, "t", &e));
    CHECK_ERR(e, ERR_MODEL, "18446744073709551615");
    static const u8 lfs[] = "version https://git-lfs.github.com/spec/v1\n";
    e = (Err){0};
    CHECK(!safet_open(&s, lfs, sizeof lfs - 1, "t", &e));
    CHECK_ERR(e, ERR_MODEL, "git lfs pull");
}

/* A checkpoint that somebody else's program wrote; every shorter file of it is refused. */
static void test_checkpoint(void) {
    Str f = test_file(CHECKPOINT);
    Err e = {0};
    Safet s;
    if (CHECK_OK(safet_open(&s, (const u8 *)f.p, f.n, "m", &e), e)) {
        const SafetTensor *t = safet_find(&s, STR("model.embed_tokens.weight"));
        CHECK_INT(s.n_tensors, 46);
        CHECK(t && t->type == SAFET_BF16 && t->shape[0] == 1024 && t->shape[1] == 256);
        safet_close(&s);
    }
    for (size_t n = 0; n < f.n; n = n < 5000 ? n + 61 : n + 700001)
        CHECK_MSG(!safet_open(&s, (const u8 *)f.p, n, "m", &(Err){0}), "%zu bytes are enough", n);
    test_file_free(f);
}

#ifdef DLM_TEST_ALLOC
static bool open_and_close(void *arg, Err *e) {
    const Str *f = arg;
    Safet s;
    if (!safet_open(&s, (const u8 *)f->p, f->n, "m", e)) return false;
    safet_close(&s);
    return true;
}
#endif

int main(void) {
    test_good();
    test_crimes();
    test_lengths();
    test_checkpoint();
#ifdef DLM_TEST_ALLOC
    Str f = test_file(CHECKPOINT);
    CHECK(test_alloc_failures(open_and_close, &f) > 3);
    test_file_free(f);
#endif
    return test_end();
}

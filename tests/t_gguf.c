/* t_gguf.c - the GGUF reader against files made here, byte by byte: good ones, and one per crime; the
 * writer against the reader. */
#define DLM_TEST_ALLOC
#include "../src/gguf.c"
#include "test.h"

/* ---- a small writer, which can lie ---- */

typedef struct {
    u8 p[8192];
    size_t n;
} File;

static void put(File *f, const void *p, size_t n) {
    ASSERT(n <= sizeof f->p - f->n);
    memcpy(f->p + f->n, p, n);
    f->n += n;
}

static void put_u32(File *f, u32 v) {
    put(f, &v, 4);
}

static void put_u64(File *f, u64 v) {
    put(f, &v, 8);
}

static void put_str(File *f, const char *s) {
    put_u64(f, strlen(s));
    put(f, s, strlen(s));
}

static void put_pad(File *f, size_t align) {
    while (f->n % align) put(f, "", 1);
}

static void put_header(File *f, u32 version, u64 n_tensors, u64 n_kv) {
    f->n = 0;
    put(f, "GGUF", 4);
    put_u32(f, version);
    put_u64(f, n_tensors);
    put_u64(f, n_kv);
}

static void put_key(File *f, const char *key, u32 type) {
    put_str(f, key);
    put_u32(f, type);
}

static void put_kv_u32(File *f, const char *key, u32 v) {
    put_key(f, key, GGUF_U32);
    put_u32(f, v);
}

static void put_array(File *f, const char *key, u32 elem, u64 count) {
    put_key(f, key, GGUF_ARRAY);
    put_u32(f, elem);
    put_u64(f, count);
}

static void put_tensor(File *f, const char *name, u32 n_dims, const u64 *ne, u32 type, u64 offset) {
    put_str(f, name);
    put_u32(f, n_dims);
    for (u32 i = 0; i < n_dims; i++) put_u64(f, ne[i]);
    put_u32(f, type);
    put_u64(f, offset);
}

static void put_zeros(File *f, size_t n) {
    while (n--) put(f, "", 1);
}

/* Two tensors, every value type, arrays of numbers, bools and strings; no padding at the end. */
static void put_good(File *f, u32 version) {
    put_header(f, version, 2, 17);
    put_key(f, "u8", GGUF_U8), put(f, "\xff", 1);
    put_key(f, "i8", GGUF_I8), put(f, "\xff", 1);
    put_key(f, "u16", GGUF_U16), put(f, "\xfe\xff", 2);
    put_key(f, "i16", GGUF_I16), put(f, "\xfe\xff", 2);
    put_kv_u32(f, "u32", 4000000000u);
    put_key(f, "i32", GGUF_I32), put_u32(f, (u32)-5);
    put_key(f, "f32", GGUF_F32), put(f, &(f32){0.25f}, 4);
    put_key(f, "nan", GGUF_F32), put_u32(f, 0x7fc00000u);
    put_key(f, "bool", GGUF_BOOL), put(f, "\1", 1);
    put_key(f, "str", GGUF_STRING), put_str(f, "hello");
    put_key(f, "u64", GGUF_U64), put_u64(f, (u64)1 << 40);
    put_key(f, "i64", GGUF_I64), put_u64(f, 7);
    put_key(f, "f64", GGUF_F64), put(f, &(f64){-2.5}, 8);
    put_array(f, "ints", GGUF_I16, 3), put(f, "\1\0\xff\xff\3\0", 6);
    put_array(f, "floats", GGUF_F32, 2), put(f, &(f32){1}, 4), put(f, &(f32){2}, 4);
    put_array(f, "strs", GGUF_STRING, 3), put_str(f, "a"), put_str(f, ""), put_str(f, "bcd");
    put_array(f, "bools", GGUF_BOOL, 2), put(f, "\0\1", 2);
    put_tensor(f, "w", 2, (u64[]){4, 3}, DLM_F32, 0);
    put_tensor(f, "q", 1, (u64[]){64}, DLM_Q8_0, 64);
    put_pad(f, 32);
    put_zeros(f, 64 + 68);
}

/* Opens a copy of exactly f->n bytes (ASan sees every byte beyond) and closes it again. */
static bool open_only(const File *f, Err *e) {
    u8 *p = malloc(f->n ? f->n : 1);
    ASSERT(p);
    memcpy(p, f->p, f->n);
    Gguf g;
    *e = (Err){0};
    bool ok = gguf_open(&g, p, f->n, "t.gguf", e);
    gguf_close(&g);
    free(p);
    return ok;
}

#define REFUSED(f, part)                    \
    do {                                    \
        Err e_;                             \
        CHECK(!open_only((f), &e_));        \
        CHECK_ERR(e_, ERR_MODEL, part);     \
        CHECK_ERR(e_, ERR_MODEL, "t.gguf"); \
    } while (0)

/* ---- what a good file yields ---- */

static void test_values(const Gguf *g) {
    Err e = {0};
    u32 u = 1;
    f32 x = 1;
    bool b = false;
    Str s = STR("default");
    CHECK_OK(gguf_get_u32(g, "absent", &u, &e) && u == 1, e);
    CHECK_OK(gguf_get_f32(g, "absent", &x, &e) && x == 1, e);
    CHECK_OK(gguf_get_str(g, "absent", &s, &e) && s.n == 7, e);
    CHECK_OK(gguf_get_u32(g, "u8", &u, &e) && u == 255, e);
    CHECK_OK(gguf_get_u32(g, "u16", &u, &e) && u == 0xfffe, e);
    CHECK_OK(gguf_get_u32(g, "u32", &u, &e) && u == 4000000000u, e);
    CHECK_OK(gguf_get_u32(g, "i64", &u, &e) && u == 7, e);
    CHECK_OK(gguf_get_f32(g, "f32", &x, &e) && x == 0.25f, e);
    CHECK_OK(gguf_get_f32(g, "f64", &x, &e) && x == -2.5f, e);
    CHECK_OK(gguf_get_bool(g, "bool", &b, &e) && b, e);
    CHECK_OK(gguf_get_str(g, "str", &s, &e), e);
    CHECK_STR(s, STR("hello"));
    static const char *const bad_u32[] = {"i8", "i16", "i32", "u64", "f32", "bool", "str", "ints"};
    for (size_t i = 0; i < COUNT_OF(bad_u32); i++) {
        u = 42, e = (Err){0};
        CHECK_MSG(!gguf_get_u32(g, bad_u32[i], &u, &e) && u == 42, "%s taken as u32", bad_u32[i]);
        CHECK_ERR(e, ERR_MODEL, bad_u32[i]);
    }
    e = (Err){0};
    CHECK(!gguf_get_f32(g, "nan", &x, &e));
    CHECK_ERR(e, ERR_MODEL, "not a finite");
    e = (Err){0};
    CHECK(!gguf_get_f32(g, "u32", &x, &e));
    CHECK_ERR(e, ERR_MODEL, "'u32' is of type u32; f32 is wanted");
    e = (Err){0};
    CHECK(!gguf_get_bool(g, "u8", &b, &e));
    CHECK_ERR(e, ERR_MODEL, "bool is wanted");
    e = (Err){0};
    CHECK(!gguf_get_str(g, "strs", &s, &e));
    CHECK_ERR(e, ERR_MODEL, "array of string; string is wanted");
}

static void test_token_ids(const Gguf *g) {
    Err e = {0};
    i32 id = -1;
    CHECK_OK(gguf_get_token_id(g, "absent", 10, &id, &e) && id == -1, e);
    CHECK_OK(gguf_get_token_id(g, "i64", 8, &id, &e) && id == 7, e);
    static const char *const bad[] = {"i64", "i32", "u32", "u64", "str"};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        id = -1, e = (Err){0};
        CHECK(!gguf_get_token_id(g, bad[i], 7, &id, &e) && id == -1);
        CHECK_ERR(e, ERR_MODEL, bad[i]);
    }
    e = (Err){0};
    CHECK(!gguf_get_token_id(g, "u32", UINT32_MAX, &id, &e)); /* would not fit i32 */
}

static void test_arrays(const Gguf *g) {
    Err e = {0};
    bool found = true;
    GgufArray a = {.count = 99};
    CHECK_OK(gguf_get_array(g, "absent", GGUF_I16, &a, &found, &e) && !found && a.count == 99, e);
    CHECK_OK(gguf_get_array(g, "ints", GGUF_I16, &a, &found, &e) && found && a.count == 3, e);
    CHECK_INT(gguf_array_int(&a, 0), 1);
    CHECK_INT(gguf_array_int(&a, 1), -1);
    CHECK_INT(gguf_array_int(&a, 2), 3);
    CHECK_OK(gguf_get_array(g, "floats", GGUF_F32, &a, &found, &e) && a.count == 2, e);
    CHECK(gguf_array_f32(&a, 1) == 2.0f);
    CHECK_OK(gguf_get_array(g, "bools", GGUF_BOOL, &a, &found, &e) && a.count == 2, e);
    CHECK_INT(gguf_array_int(&a, 1), 1);
    CHECK_OK(gguf_get_array(g, "strs", GGUF_STRING, &a, &found, &e) && a.count == 3, e);
    GgufStrIter it = {.a = a};
    Str s, want[] = {STR("a"), STR(""), STR("bcd")};
    for (int i = 0; i < 3; i++)
        if (CHECK(gguf_str_next(&it, &s))) CHECK_STR(s, want[i]);
    CHECK(!gguf_str_next(&it, &s));
    CHECK(!gguf_get_array(g, "ints", GGUF_U8, &a, &found, &e)); /* scores as bytes: a classic */
    CHECK_ERR(e, ERR_MODEL, "'ints' is of type array of i16; array of u8 is wanted");
    e = (Err){0};
    CHECK(!gguf_get_array(g, "u32", GGUF_U32, &a, &found, &e));
    CHECK_ERR(e, ERR_MODEL, "'u32' is of type u32; array of u32 is wanted");
}

static void test_good(u32 version) {
    static File f;
    put_good(&f, version);
    Gguf g;
    Err e = {0};
    if (!CHECK_OK(gguf_open(&g, f.p, f.n, "t.gguf", &e), e)) return;
    CHECK_INT(g.version, version);
    CHECK_INT(g.n_kv, 17);
    CHECK_INT(g.n_tensors, 2);
    CHECK_U64(g.data_start, f.n - 132);
    test_values(&g);
    test_token_ids(&g);
    test_arrays(&g);
    const GgufTensor *w = gguf_tensor(&g, STR("w")), *q = gguf_tensor(&g, STR("q"));
    CHECK(!gguf_tensor(&g, STR("")) && !gguf_tensor(&g, STR("ww")));
    if (CHECK(w && q)) {
        CHECK_U64(w->n_bytes, 48);
        CHECK_U64(w->offset, g.data_start);
        CHECK(w->data == f.p + w->offset && w->n_dims == 2 && w->ne[1] == 3 && w->ne[3] == 1);
        CHECK_U64(q->n_bytes, 68);
        CHECK_U64(q->offset, g.data_start + 64);
    }
    gguf_close(&g);
    CHECK(!gguf_find(&g, STR("u32")) && !gguf_tensor(&g, STR("w")));
}

/* A file cut anywhere is refused, and the sentence says something about it. */
static void test_truncation(void) {
    File f;
    put_good(&f, 3);
    size_t n = f.n;
    int wrong = 0;
    for (f.n = 0; f.n < n; f.n++) {
        Err e;
        if (open_only(&f, &e) || e.code != ERR_MODEL || !e.msg[0]) wrong++;
    }
    CHECK_INT(wrong, 0);
    Err e;
    CHECK_OK(open_only(&f, &e), e);
}

/* ---- crimes ---- */

static void test_header_crimes(void) {
    File f;
    put_good(&f, 3), memcpy(f.p, "FUGG", 4);
    REFUSED(&f, "not a GGUF file: it begins with bytes 46 55 47 47");
    f.n = 3;
    REFUSED(&f, "3 bytes are too few");
    f.n = 0, put(&f, "version https://git-lfs.github.com/spec/v1\n", 43);
    REFUSED(&f, "git lfs pull");
    static const struct {
        u32 version;
        const char *part;
    } versions[] = {{0, "version 0"},           {1, "version 1 (2023)"},    {4, "version 4"},
                    {0x01000000, "big-endian"}, {0x03000000, "big-endian"}, {0x10003, "65539"}};
    for (size_t i = 0; i < COUNT_OF(versions); i++) {
        put_good(&f, versions[i].version);
        REFUSED(&f, versions[i].part);
    }
    static const u64 counts[] = {1000, 65537, (u64)1 << 32, (u64)1 << 61, UINT64_MAX};
    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        put_good(&f, 3), memcpy(f.p + 8, &counts[i], 8);
        REFUSED(&f, "tensors;");
        put_good(&f, 3), memcpy(f.p + 16, &counts[i], 8);
        REFUSED(&f, "keys;");
    }
}

static void test_key_crimes(void) {
    File f;
    put_header(&f, 3, 0, 1), put_u64(&f, UINT64_MAX), put_zeros(&f, 16);
    REFUSED(&f, "longer than 65535 bytes");
    put_header(&f, 3, 0, 1), put_u64(&f, 60000), put_zeros(&f, 16);
    REFUSED(&f, "inside key 1 of 1");
    put_header(&f, 3, 0, 1), put_kv_u32(&f, "", 1), put_zeros(&f, 4);
    REFUSED(&f, "key 1 of 1 (byte 24) is empty");
    put_header(&f, 3, 0, 1), put_kv_u32(&f, "a\nb", 1);
    REFUSED(&f, "control bytes");
    put_header(&f, 3, 0, 2), put_kv_u32(&f, "twin", 1), put_kv_u32(&f, "twin", 1);
    REFUSED(&f, "key 'twin' (byte 44) appears twice");
    put_header(&f, 3, 0, 1), put_key(&f, "k", 13), put_zeros(&f, 8);
    REFUSED(&f, "key 'k' (byte 24) has unknown value type 13");
    put_header(&f, 3, 0, 1), put_key(&f, "k", UINT32_MAX), put_zeros(&f, 8);
    REFUSED(&f, "unknown value type 4294967295");
    put_header(&f, 3, 0, 1), put_key(&f, "k", GGUF_BOOL), put(&f, "\2", 1);
    REFUSED(&f, "neither 0 nor 1");
    put_header(&f, 3, 0, 1), put_key(&f, "k", GGUF_STRING), put_u64(&f, ((u64)1 << 20) + 1);
    REFUSED(&f, "longer than 1 MiB");
    put_header(&f, 3, 0, 1), put_key(&f, "k", GGUF_STRING), put_u64(&f, 100), put_zeros(&f, 99);
    REFUSED(&f, "truncated");
}

static void test_array_crimes(void) {
    File f;
    put_header(&f, 3, 0, 1), put_array(&f, "k", GGUF_ARRAY, 1), put_zeros(&f, 32);
    REFUSED(&f, "array of arrays");
    put_header(&f, 3, 0, 1), put_array(&f, "k", 13, 1), put_zeros(&f, 32);
    REFUSED(&f, "unknown element type");
    static const u64 counts[] = {((u64)1 << 28) + 1, (u64)1 << 61, (u64)1 << 62, UINT64_MAX};
    for (size_t i = 0; i < COUNT_OF(counts); i++) {
        put_header(&f, 3, 0, 1), put_array(&f, "k", GGUF_U64, counts[i]), put_zeros(&f, 32);
        REFUSED(&f, "more than 2^28");
    }
    put_header(&f, 3, 0, 1), put_array(&f, "k", GGUF_U64, 5), put_zeros(&f, 39);
    REFUSED(&f, "truncated");
    put_header(&f, 3, 0, 1), put_array(&f, "k", GGUF_STRING, 1 << 28), put_zeros(&f, 32);
    REFUSED(&f, "truncated");
    put_header(&f, 3, 0, 1), put_array(&f, "k", GGUF_STRING, 1), put_u64(&f, 65537),
        put_zeros(&f, 32);
    REFUSED(&f, "longer than 64 KiB");
    put_header(&f, 3, 0, 1), put_array(&f, "k", GGUF_STRING, 1), put_u64(&f, UINT64_MAX);
    REFUSED(&f, "longer than 64 KiB");
    put_header(&f, 3, 0, 1), put_array(&f, "k", GGUF_BOOL, 3), put(&f, "\0\1\2", 3);
    REFUSED(&f, "neither 0 nor 1");
}

static void test_alignment_crimes(void) {
    File f;
    static const u32 bad[] = {0, 1, 4, 3, 33, 1u << 17, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        put_header(&f, 3, 0, 1), put_kv_u32(&f, "general.alignment", bad[i]);
        REFUSED(&f, "power of two from 8 to 65536");
    }
    put_header(&f, 3, 0, 1), put_key(&f, "general.alignment", GGUF_U64), put_u64(&f, 32);
    REFUSED(&f, "of type u64; it has to be u32");
    put_header(&f, 3, 1, 1), put_kv_u32(&f, "general.alignment", 64);
    put_tensor(&f, "w", 1, (u64[]){4}, DLM_F32, 32), put_pad(&f, 64), put_zeros(&f, 64);
    REFUSED(&f, "not a multiple of the alignment 64");
    put_header(&f, 3, 1, 1), put_kv_u32(&f, "general.alignment", 64);
    put_tensor(&f, "w", 1, (u64[]){4}, DLM_F32, 64), put_pad(&f, 64), put_zeros(&f, 80);
    Err e;
    CHECK_OK(open_only(&f, &e), e);
}

/* One tensor record and `data` bytes behind it. */
static void put_one(File *f, u32 n_dims, const u64 *ne, u32 type, u64 offset, size_t data) {
    put_header(f, 3, 1, 0);
    put_tensor(f, "blk.0.w", n_dims, ne, type, offset);
    put_pad(f, 32);
    put_zeros(f, data);
}

static void test_tensor_crimes(void) {
    File f;
    put_one(&f, 0, NULL, DLM_F32, 0, 64);
    REFUSED(&f, "has 0 dimensions");
    put_one(&f, 5, (u64[]){1, 1, 1, 1, 1}, DLM_F32, 0, 64);
    REFUSED(&f, "has 5 dimensions");
    put_header(&f, 3, 1, 0), put_str(&f, "w"), put_u32(&f, UINT32_MAX), put_zeros(&f, 64);
    REFUSED(&f, "4294967295 dimensions");
    put_one(&f, 2, (u64[]){4, 0}, DLM_F32, 0, 64);
    REFUSED(&f, "dimension 1 is 0");
    put_one(&f, 2, (u64[]){4, (u64)1 << 31}, DLM_F32, 0, 64);
    REFUSED(&f, "dimension 1 is 2147483648");
    put_one(&f, 1, (u64[]){UINT64_MAX}, DLM_F32, 0, 64);
    REFUSED(&f, "dimension 0 is 18446744073709551615");
    put_one(&f, 4, (u64[]){0x7ffffffe, 0x7ffffffe, 0x7ffffffe, 4}, DLM_F32, 0, 64);
    REFUSED(&f, "overflow");
    put_one(&f, 2, (u64[]){1u << 30, 1u << 30}, DLM_F32, 0,
            64); /* 2^62 bytes: fits u64, not the file */
    REFUSED(&f, "truncated or damaged");
    put_one(&f, 2, (u64[]){33, 2}, DLM_Q8_0, 0, 128);
    REFUSED(&f, "rows of 33 weights are not whole Q8_0 blocks of 32");
    put_one(&f, 2, (u64[]){128, 2}, DLM_TQ2_0, 0, 128);
    REFUSED(&f, "TQ2_0 blocks of 256");
    put_one(&f, 1, (u64[]){8}, DLM_F32, 16, 64);
    REFUSED(&f, "offset 16 is not a multiple");
    put_one(&f, 1, (u64[]){8}, DLM_F32, 64, 64);
    REFUSED(&f, "needs 32 bytes at offset 64");
    put_one(&f, 1, (u64[]){8}, DLM_F32, (u64)-32, 64);
    REFUSED(&f, "truncated or damaged");
    put_one(&f, 1, (u64[]){8}, DLM_F32, (u64)1 << 63, 64);
    REFUSED(&f, "truncated or damaged");
    put_header(&f, 3, 1, 0), put_u64(&f, 256), put_zeros(&f, 512);
    REFUSED(&f, "longer than 255 bytes");
    put_header(&f, 3, 1, 0), put_tensor(&f, "", 1, (u64[]){8}, 0, 0), put_zeros(&f, 512);
    REFUSED(&f, "name of tensor 1 of 1 (byte 24) is empty");
}

static void put_two(File *f, const char *a, u64 at_a, const char *b, u64 at_b) {
    put_header(f, 2, 2, 0);
    put_tensor(f, a, 1, (u64[]){16}, DLM_F32, at_a);
    put_tensor(f, b, 1, (u64[]){16}, DLM_F32, at_b);
    put_pad(f, 32);
    put_zeros(f, 128);
}

static void test_extents(void) {
    File f;
    Err e;
    put_two(&f, "a", 0, "b", 64);
    CHECK_OK(open_only(&f, &e), e);
    put_two(&f, "a", 64, "b", 0);
    CHECK_OK(open_only(&f, &e), e);
    put_two(&f, "a", 0, "a", 64);
    REFUSED(&f, "tensor 'a' (byte 57) appears twice");
    put_two(&f, "a", 0, "b", 0);
    REFUSED(&f, "overlap");
    put_two(&f, "a", 0, "b", 32);
    REFUSED(&f, "tensors 'a' and 'b' overlap");
    put_two(&f, "a", 32, "b", 0);
    REFUSED(&f, "tensors 'b' and 'a' overlap");
}

static void test_types(void) {
    File f;
    Err e;
    CHECK(strcmp(gguf_type_name(12), "Q4_K") == 0 && strcmp(gguf_type_name(42), "Q2_0") == 0);
    CHECK(strcmp(gguf_type_name(43), "unknown") == 0 &&
          strcmp(gguf_type_name(UINT32_MAX), "unknown") == 0);
    for (u32 id = 0; id < 64; id++) {
        put_one(&f, 2, (u64[]){256, 4}, id, 0, 4096);
        bool readable = gguf_type_info_(id) != NULL;
        if (id == DLM_I2_S || id == DLM_TL1) f.n -= 4096 - 288;
        if (id == DLM_MXFP4) f.n -= 4096 - 544;
        if (id == DLM_Q2_0) f.n -= 4096 - 288;
        CHECK_MSG(open_only(&f, &e) == readable, "type %u (%s): %s", id, gguf_type_name(id), e.msg);
        if (readable) continue;
        CHECK_ERR(e, ERR_MODEL, gguf_type_name(id));
        CHECK_ERR(e, ERR_MODEL, "re-quantize the model to TQ2_0");
        CHECK_ERR(e, ERR_MODEL, "blk.0.w");
    }
    for (size_t i = 0; i < COUNT_OF(DLM_TYPES); i++)
        CHECK(strcmp(DLM_TYPES[i].name, gguf_type_name((u32)DLM_TYPES[i].type)) == 0);
}

/* One tensor of type `id`, [k][m], whose data end after `data` bytes: at the file's end, or, if `next`,
 * at another tensor. */
static void put_sized(File *f, u32 id, u64 k, u64 m, size_t data, bool next) {
    put_header(f, 3, next ? 2 : 1, 0);
    put_tensor(f, "blk.0.w", 2, (u64[]){k, m}, id, 0);
    if (next) put_tensor(f, "next", 1, (u64[]){8}, DLM_F32, data);
    put_pad(f, 32), put_zeros(f, data + (next ? 32 : 0));
}

/* Ids with two meanings: what the bytes up to the next tensor say, wins. */
static void test_shared_ids(void) {
    static const struct {
        u32 id;
        u64 k, m;
        size_t data;
        DlmType type;     /* of a file that opens */
        const char *part; /* else NULL: what the refusal says */
    } sizes[] = {
        {36, 256, 4, 288, DLM_I2_S, NULL},
        {36, 256, 4, 576, 0, "is of type IQ4_NL_4_4 by its size (576 bytes), not I2_S"},
        {36, 256, 4, 256, 0, "id 36 (I2_S of 288 bytes, or IQ4_NL_4_4) but 256"},
        {36, 256, 4, 544, 0, "id 36"},
        {37, 256, 4, 288, 0, "type I8_S (or IQ4_NL_4_8) (id 37)"},
        {38, 256, 4, 288, DLM_TL1, NULL},
        {38, 256, 4, 576, 0, "is of type IQ4_NL_8_8 by its size (576 bytes), not TL1"},
        {38, 256, 4, 320, 0, "id 38 (TL1 of 288 bytes, or IQ4_NL_8_8) but 320"},
        {39, 256, 4, 544, DLM_MXFP4, NULL},
        {39, 256, 32, 2048 + 32, DLM_TL2, NULL},       /* 256 columns in pairs */
        {39, 352, 32, 2048 + 640 + 32, DLM_TL2, NULL}, /* 96 more in threes */
        {39, 352, 32, 2816 + 32, DLM_TL2, NULL},       /* its scale where TL1 has it */
        {39, 352, 32, 2048 + 640, 0, "id 39 (MXFP4 of 5984 bytes, or TL2) but 2688"},
        {39, 352, 32, 2752, 0, "id 39"},
        {39, 128, 4, 160, 0, "id 39 (MXFP4 of 272 bytes, or TL2) but 160"},
        {40, 256, 4, 576, 0, "NVFP4 (id 40)"},
        {41, 256, 4, 160, 0, "Q1_0 (id 41)"},
        {42, 256, 4, 288, DLM_Q2_0, NULL},
        {42, 256, 4, 320, 0, "id 42 (Q2_0 of 288 bytes, or a type of another project) but 320"},
        {139, 352, 32, 2720, 0, "unknown type 139"},
    };
    for (size_t i = 0; i < COUNT_OF(sizes); i++)
        for (int next = 0; next < 2; next++) {
            static File f;
            Gguf g;
            Err e = {0};
            put_sized(&f, sizes[i].id, sizes[i].k, sizes[i].m, sizes[i].data, next);
            bool ok = gguf_open(&g, f.p, f.n, "t.gguf", &e);
            bool cut = !next && strstr(e.msg, "truncated"); /* too short, at the file's end */
            if (sizes[i].part && !cut) CHECK_ERR(e, ERR_MODEL, sizes[i].part);
            if (!sizes[i].part && CHECK_OK(ok, e)) {
                CHECK_INT(g.tensors[0].type, sizes[i].type);
                CHECK_U64(g.tensors[0].n_bytes, sizes[i].data);
            }
            CHECK(ok == !sizes[i].part);
            gguf_close(&g);
        }
}

/* The last tensor may be padded, as the others are, or not. */
static void test_shared_id_at_end(void) {
    File f;
    Err e;
    static const struct {
        size_t data;
        const char *part; /* NULL: opens */
    } last[] = {{48, NULL},        {64, NULL},    {49, NULL},
                {47, "truncated"}, {65, "id 36"}, {36, "truncated"}};
    for (size_t i = 0; i < COUNT_OF(last); i++) { /* 64 weights: 16 + 32 bytes */
        put_one(&f, 2, (u64[]){32, 2}, DLM_I2_S, 0, last[i].data);
        if (last[i].part)
            REFUSED(&f, last[i].part);
        else
            CHECK_OK(open_only(&f, &e), e);
    }
    put_one(&f, 1, (u64[]){6}, DLM_I2_S, 0, 64);
    REFUSED(&f, "not whole I2_S blocks of 4");
}

/* ---- the size function against an independent computation in 128 bits ---- */

static bool bytes_slowly(u32 type, const u64 ne[4], u64 *out) {
    static const u32 known[][3] = {{0, 1, 4},      {1, 1, 2},      {30, 1, 2},     {2, 32, 18},
                                   {3, 32, 20},    {6, 32, 22},    {7, 32, 24},    {8, 32, 34},
                                   {10, 256, 84},  {11, 256, 110}, {12, 256, 144}, {13, 256, 176},
                                   {14, 256, 210}, {20, 32, 18},   {23, 256, 136}, {34, 256, 54},
                                   {35, 256, 66},  {42, 64, 18},   {36, 4, 1},     {38, 4, 1},
                                   {39, 32, 17}};
    const u32 *k = NULL;
    for (size_t i = 0; i < COUNT_OF(known); i++)
        if (known[i][0] == type) k = known[i];
    __extension__ typedef unsigned __int128 Wide;
    const Wide top = UINT64_MAX;
    bool tl2 = type == DLM_TL2;
    if (tl2 ? ne[0] < 256 || ne[0] % 32 : !gguf_type_info_(type) || !k || ne[0] % k[1])
        return false;
    Wide n = tl2 ? 1 : ne[0] / k[1];
    for (int i = 1; i < 4; i++) {
        if (ne[i] != 0 && n > top) return false; /* 128 bits hold one more factor, not three */
        n *= ne[i];
    }
    if (n > top) return false;
    if (tl2) {
        Wide threes = (ne[0] - 256) * n, pairs = 256 * n / 2 * 4 / 8;
        if (threes > top || threes / 3 * 5 > top || 128 * n * 4 > top) return false;
        n = ((threes / 3 * 5 / 8 + pairs + 31) & ~(Wide)31) + 32;
    } else
        n = n * k[2] + (type == 36 || type == 38 ? 32 : 0);
    if (n > top || n == 0 || ne[0] == 0 || ne[1] == 0 || ne[2] == 0 || ne[3] == 0) return false;
    *out = (u64)n;
    return true;
}

static u64 random_dim(u64 *rng) {
    u64 bits = test_rng_below(rng, 65);
    u64 v = bits == 64 ? test_rng(rng) : test_rng(rng) & (((u64)1 << bits) - 1);
    switch (test_rng_below(rng, 5)) {
    case 0: return v & ~(u64)255;
    case 1: return 1;
    case 2: return v - 1;
    case 3: return (u64)1 << (bits % 64);
    default: return v;
    }
}

static void test_sizes(void) {
    u64 rng = 1, accepted = 0, wrong = 0;
    for (int i = 0; i < 400000; i++) {
        u64 ne[4], got = 0, want = 0;
        for (int d = 0; d < 4; d++) ne[d] = random_dim(&rng);
        u32 type = i % 50 ? DLM_TYPES[test_rng_below(&rng, COUNT_OF(DLM_TYPES))].type
                          : (u32)test_rng_below(&rng, 64);
        bool ok = gguf_tensor_bytes((DlmType)type, ne, &got);
        accepted += ok;
        wrong += ok != bytes_slowly(type, ne, &want) || got != want;
    }
    CHECK_U64(wrong, 0);
    CHECK_MSG(accepted > 10000, "only %llu sizes accepted: the test tests nothing",
              (unsigned long long)accepted);
}

/* ---- damage at random: never a crash, and what opens keeps the reader's promises ---- */

static void check_promises(const Gguf *g) {
    bool ok = true;
    for (u32 i = 0; i < g->n_tensors; i++) {
        const GgufTensor *t = &g->tensors[i];
        u64 n = 0;
        ok &= gguf_tensor_bytes(t->type, t->ne, &n) && (n == t->n_bytes || t->type == DLM_TL2);
        n = t->n_bytes;
        ok &= t->offset >= g->data_start && t->offset <= g->n && n <= g->n - t->offset;
        ok &= t->data == g->p + t->offset && gguf_tensor(g, t->name) == t;
    }
    for (u32 i = 0; i < g->n_kv; i++) {
        const GgufKv *kv = &g->kv[i];
        ok &= kv->data >= g->p && kv->n_bytes <= (u64)(g->p + g->n - kv->data);
        ok &= gguf_find(g, kv->key) == kv;
        GgufStrIter it = {.a = {kv->count, kv->elem, kv->data, kv->n_bytes}};
        Str s;
        u64 n = 0;
        while (kv->type == GGUF_ARRAY && kv->elem == GGUF_STRING && gguf_str_next(&it, &s))
            n += s.n + 8;
        ok &= n == 0 || n == kv->n_bytes;
    }
    if (!ok) CHECK(ok);
}

static void test_damage(void) {
    static File good, f;
    put_good(&good, 3);
    u64 rng = 7;
    int opened = 0;
    for (int i = 0; i < 20000; i++) {
        f = good;
        for (u64 k = 1 + test_rng_below(&rng, 3); k > 0; k--) {
            u64 at = test_rng_below(&rng, f.n - 132); /* the directory, not the weights */
            f.p[at] =
                test_rng_below(&rng, 2) ? (u8)test_rng(&rng) : (u8)(f.p[at] ^ (1u << (i % 8)));
        }
        u8 *p = malloc(f.n);
        memcpy(p, f.p, f.n);
        Gguf g;
        Err e = {0};
        if (gguf_open(&g, p, f.n, "t.gguf", &e)) {
            check_promises(&g);
            opened++;
        } else if (e.code != ERR_MODEL) {
            CHECK_ERR(e, ERR_MODEL, "");
        }
        gguf_close(&g);
        free(p);
    }
    CHECK_MSG(opened > 100 && opened < 19000, "%d of 20000 damaged files open", opened);
}

/* ---- scale: many names are found at once, and refused memory is an error ---- */

static void test_many(void) {
    Buf b = {0};
    u32 n = GGUF_KV_MAX;
    File f;
    put_header(&f, 3, 0, n);
    buf_put(&b, f.p, f.n);
    for (u32 i = 0; i < n; i++) {
        char key[16];
        snprintf(key, sizeof key, "key.%u", i);
        f.n = 0, put_kv_u32(&f, key, i);
        buf_put(&b, f.p, f.n);
    }
    Gguf g;
    Err e = {0};
    if (CHECK_OK(gguf_open(&g, (const u8 *)b.p, b.n, "t.gguf", &e), e)) {
        u32 wrong = 0;
        for (u32 i = 0; i < n; i++) {
            char key[16];
            u32 v = 0;
            snprintf(key, sizeof key, "key.%u", i);
            wrong += !gguf_get_u32(&g, key, &v, &e) || v != i;
        }
        CHECK_INT(wrong, 0);
    }
    gguf_close(&g);
    b.p[16]++; /* one key more than the limit and than the file holds */
    CHECK(!gguf_open(&g, (const u8 *)b.p, b.n, "t.gguf", &e));
    CHECK_ERR(e, ERR_MODEL, "at most 16384 keys");
    buf_free(&b);
}

static bool open_and_close(void *arg, Err *e) {
    const File *f = arg;
    Gguf g;
    bool ok = gguf_open(&g, f->p, f->n, "t.gguf", e);
    gguf_close(&g);
    return ok;
}

/* The published vocabularies open, and their tokens can be walked. */
static void test_published(void) {
    static const struct {
        const char *path;
        u64 n_tokens;
    } files[] = {{"../shared/vocab/ggml-vocab-gpt-2.gguf", 50257},
                 {"../shared/vocab/ggml-vocab-qwen2.gguf", 151646},
                 {"../shared/vocab/ggml-vocab-llama-spm.gguf", 32000}};
    for (size_t i = 0; i < COUNT_OF(files); i++) {
        Str s = test_file(files[i].path);
        Gguf g;
        Err e = {0};
        GgufArray a = {0};
        bool found = false;
        if (CHECK_OK(gguf_open(&g, (const u8 *)s.p, s.n, files[i].path, &e), e) &&
            CHECK_OK(gguf_get_array(&g, "tokenizer.ggml.tokens", GGUF_STRING, &a, &found, &e), e)) {
            CHECK_U64(a.count, files[i].n_tokens);
            check_promises(&g);
        }
        gguf_close(&g);
        test_file_free(s);
    }
}

/* ---- the writer: what it writes, the reader opens and finds again ---- */

/* Head and data of what w holds, every tensor's bytes being its number. */
static bool write_out(GgufWriter *w, const u64 *n_bytes, Buf *out) {
    if (!gguf_writer_head(w, out)) return false;
    for (u32 i = 0; i < w->tensors_.n; i++) {
        for (u64 k = 0; k < n_bytes[i]; k++) buf_char(out, (char)i);
        for (u64 k = gguf_padding(n_bytes[i]); k > 0; k--) buf_char(out, 0);
    }
    return buf_ok(out, "the file", w->e);
}

static bool write_all(Buf *out, Err *e) {
    GgufWriter w;
    u64 n[3];
    gguf_writer_open(&w, e);
    gguf_put_str(&w, "str", STR("hello"));
    gguf_put_u32(&w, "u32", 4000000000u);
    gguf_put_f32(&w, "f32", 0.25f);
    gguf_put_bool(&w, "bool", true);
    gguf_put_u32s(&w, "u32s", (u32[]){1, UINT32_MAX}, 2);
    gguf_put_i32s(&w, "i32s", (i32[]){-1, 7, INT32_MIN}, 3);
    gguf_put_f32s(&w, "f32s", (f32[]){-0.5f}, 1);
    gguf_put_strs(&w, "strs", (Str[]){STR("a"), STR(""), STR("bcd")}, 3);
    gguf_put_strs(&w, "none", NULL, 0);
    n[0] = gguf_put_tensor(&w, STR("w"), DLM_F32, 2, (u64[]){4, 3});
    n[1] = gguf_put_tensor(&w, STR("i2s"), DLM_I2_S, 2, (u64[]){256, 4});
    n[2] = gguf_put_tensor(&w, STR("q"), DLM_Q8_0, 1, (u64[]){64});
    bool ok = write_out(&w, n, out);
    if (ok) CHECK(n[0] == 48 && n[1] == 288 && n[2] == 68 && w.n_bytes == 64 + 288 + 96);
    gguf_writer_close(&w);
    return ok;
}

static void check_written(const Gguf *g) {
    Err e = {0};
    Str s = {0};
    u32 u = 0;
    f32 x = 0;
    bool b = false, found = false;
    GgufArray a = {0};
    CHECK_INT(g->version, 3);
    CHECK_INT(g->n_kv, 9);
    CHECK_OK(gguf_get_str(g, "str", &s, &e) && str_eq(s, STR("hello")), e);
    CHECK_OK(gguf_get_u32(g, "u32", &u, &e) && u == 4000000000u, e);
    CHECK_OK(gguf_get_f32(g, "f32", &x, &e) && x == 0.25f, e);
    CHECK_OK(gguf_get_bool(g, "bool", &b, &e) && b, e);
    CHECK_OK(gguf_get_array(g, "u32s", GGUF_U32, &a, &found, &e) && a.count == 2, e);
    CHECK_INT(gguf_array_int(&a, 1), UINT32_MAX);
    CHECK_OK(gguf_get_array(g, "i32s", GGUF_I32, &a, &found, &e) && a.count == 3, e);
    CHECK_INT(gguf_array_int(&a, 2), INT32_MIN);
    CHECK_OK(gguf_get_array(g, "f32s", GGUF_F32, &a, &found, &e) && a.count == 1, e);
    CHECK(gguf_array_f32(&a, 0) == -0.5f);
    CHECK_OK(gguf_get_array(g, "none", GGUF_STRING, &a, &found, &e) && found && a.count == 0, e);
    CHECK_OK(gguf_get_array(g, "strs", GGUF_STRING, &a, &found, &e) && a.count == 3, e);
    GgufStrIter it = {.a = a};
    Str want[] = {STR("a"), STR(""), STR("bcd")};
    for (int i = 0; i < 3; i++)
        if (CHECK(gguf_str_next(&it, &s))) CHECK_STR(s, want[i]);
    static const char *const names[] = {"w", "i2s", "q"};
    for (u32 i = 0; i < g->n_tensors; i++) {
        const GgufTensor *t = &g->tensors[i];
        CHECK_STR(t->name, str_of(names[i]));
        CHECK(t->data[0] == i && t->data[t->n_bytes - 1] == i);
    }
}

static void test_writer(void) {
    Buf out = {0}, copy = {0};
    Err e = {0};
    Gguf g = {0};
    if (CHECK_OK(write_all(&out, &e), e) &&
        CHECK_OK(gguf_open(&g, (const u8 *)out.p, out.n, "t.gguf", &e), e)) {
        check_written(&g);
        GgufWriter w; /* key by key and tensor by tensor, the copy has the same bytes */
        u64 n[3] = {0};
        gguf_writer_open(&w, &e);
        for (u32 i = 0; i < g.n_kv; i++) gguf_put_raw_kv(&w, &g.kv[i]);
        for (u32 i = 0; i < g.n_tensors; i++) {
            const GgufTensor *t = &g.tensors[i];
            n[i] = gguf_put_tensor(&w, t->name, t->type, t->n_dims, t->ne);
        }
        CHECK_OK(write_out(&w, n, &copy), e);
        CHECK_STR(buf_view(&copy), buf_view(&out));
        gguf_writer_close(&w);
    }
    gguf_close(&g);
    buf_free(&out);
    buf_free(&copy);
}

/* Every value type comes through gguf_put_raw_kv; the alignment key does not. */
static void test_raw_kv(void) {
    static File f;
    Buf out = {0};
    Err e = {0};
    Gguf g, h = {0};
    put_good(&f, 3);
    f.p[16]++; /* one key more, in front */
    File more = {.n = 0};
    put_kv_u32(&more, "general.alignment", 32);
    memmove(f.p + 24 + more.n, f.p + 24, f.n - 24), memcpy(f.p + 24, more.p, more.n);
    f.n += more.n; /* the data are now misplaced, but stay inside */
    if (!CHECK_OK(gguf_open(&g, f.p, f.n + 32, "t.gguf", &e), e)) return;
    GgufWriter w;
    gguf_writer_open(&w, &e);
    for (u32 i = 0; i < g.n_kv; i++) gguf_put_raw_kv(&w, &g.kv[i]);
    if (CHECK_OK(gguf_writer_head(&w, &out), e) &&
        CHECK_OK(gguf_open(&h, (const u8 *)out.p, out.n, "copy", &e), e)) {
        CHECK_INT(h.n_kv, g.n_kv - 1);
        for (u32 i = 0; i < h.n_kv; i++) {
            const GgufKv *a = &h.kv[i], *b = &g.kv[i + 1];
            CHECK_STR(a->key, b->key);
            CHECK(a->type == b->type && a->elem == b->elem && a->count == b->count);
            CHECK_U64(a->n_bytes, b->n_bytes);
            CHECK_MEM(a->data, b->data, MIN_OF(a->n_bytes, b->n_bytes));
        }
    }
    gguf_writer_close(&w);
    gguf_close(&g);
    gguf_close(&h);
    buf_free(&out);
}

/* Runs `puts_` on a writer; its head must be refused with `part`, and nothing be appended. */
#define CANNOT_WRITE(part, puts_)               \
    do {                                        \
        Err e_ = {0};                           \
        Buf out_ = {0};                         \
        GgufWriter w;                           \
        gguf_writer_open(&w, &e_);              \
        puts_;                                  \
        CHECK(!gguf_writer_head(&w, &out_));    \
        CHECK_ERR(e_, ERR_MODEL, part);         \
        CHECK_U64(out_.n, 0);                   \
        gguf_writer_close(&w), buf_free(&out_); \
    } while (0)

static void test_writer_crimes(void) {
    static char long_text[(1 << 20) + 2];
    memset(long_text, 'x', sizeof long_text - 1);
    Str text = str_of(long_text);
    u64 ne[5] = {256, 4, 1, 1, 1};
    CANNOT_WRITE("key 'k' cannot be written: there are two",
                 (gguf_put_u32(&w, "k", 1), gguf_put_bool(&w, "k", 1)));
    CANNOT_WRITE("tensor 't' cannot be written: there are two",
                 (gguf_put_tensor(&w, STR("t"), DLM_F32, 1, ne),
                  gguf_put_tensor(&w, STR("t"), DLM_F32, 1, ne)));
    CANNOT_WRITE("key '' cannot be written: its name", gguf_put_u32(&w, "", 1));
    CANNOT_WRITE("its name", gguf_put_u32(&w, "a\nb", 1));
    CANNOT_WRITE("its name", gguf_put_u32(&w, long_text, 1));
    CANNOT_WRITE("its name", gguf_put_tensor(&w, str_cut(text, 0, 256), DLM_F32, 1, ne));
    CANNOT_WRITE("longer than 1 MiB", gguf_put_str(&w, "k", text));
    CANNOT_WRITE("longer than 64 KiB", gguf_put_strs(&w, "k", &text, 1));
    CANNOT_WRITE("more than 2^28 elements", gguf_put_u32s(&w, "k", NULL, GGUF_ARRAY_MAX + 1));
    CANNOT_WRITE("dimensions", gguf_put_tensor(&w, STR("t"), DLM_F32, 0, ne));
    CANNOT_WRITE("dimensions", gguf_put_tensor(&w, STR("t"), DLM_F32, 5, ne));
    CANNOT_WRITE("dimensions", gguf_put_tensor(&w, STR("t"), DLM_TQ2_0, 1, (u64[]){64}));
    CANNOT_WRITE("dimensions", gguf_put_tensor(&w, STR("t"), (DlmType)9, 1, ne));
    CANNOT_WRITE("dimensions", gguf_put_tensor(&w, STR("t"), DLM_F32, 2, (u64[]){1, 0}));
    CANNOT_WRITE("dimensions", gguf_put_tensor(&w, STR("t"), DLM_F32, 1, (u64[]){1u << 31}));
    CANNOT_WRITE(
        "at most 16384 keys", for (u32 i = 0; i <= GGUF_KV_MAX; i++) {
            char key[16];
            snprintf(key, sizeof key, "%u", i);
            gguf_put_bool(&w, key, true);
        });
}

static bool write_and_drop(void *arg, Err *e) {
    (void)arg;
    Buf out = {0};
    bool ok = write_all(&out, e);
    buf_free(&out);
    return ok;
}

int main(int argc, char **argv) {
    File f;
    if (argc == 2) { /* writes the fuzz seed */
        put_good(&f, 3);
        FILE *out = fopen(argv[1], "wb");
        return !out || fwrite(f.p, 1, f.n, out) != f.n || fclose(out) != 0;
    }
    test_good(2);
    test_good(3);
    test_truncation();
    test_header_crimes();
    test_key_crimes();
    test_array_crimes();
    test_alignment_crimes();
    test_tensor_crimes();
    test_extents();
    test_types();
    test_shared_ids();
    test_shared_id_at_end();
    test_sizes();
    test_damage();
    test_many();
    put_good(&f, 3);
    CHECK_INT(test_alloc_failures(open_and_close, &f), 5);
    test_published();
    test_writer();
    test_raw_kv();
    test_writer_crimes();
    CHECK_INT(test_alloc_failures(write_and_drop, NULL), 12);
    return test_end();
}

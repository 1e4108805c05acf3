/* t_base.c - slices, the first error, checked arithmetic, loads. */
#include "../src/base.c"
#include "test.h"

static void test_slices(void) {
    Str s = STR("block diffusion");
    CHECK_STR(str_of(NULL), STR(""));
    CHECK_STR(str_of("abc"), STR("abc"));
    CHECK(str_eq((Str){NULL, 0}, STR("")));
    CHECK(!str_eq(STR("ab"), STR("ac")));
    CHECK(!str_eq(STR("ab"), STR("abc")));
    CHECK(str_starts(s, STR("block")) && str_starts(s, STR("")) && str_starts(s, s));
    CHECK(!str_starts(STR("blo"), STR("block")));
    CHECK(str_ends(s, STR("sion")) && str_ends(s, STR("")) && str_ends(s, s));
    CHECK(!str_ends(STR("ion"), STR("sion")));

    CHECK_STR(str_cut(s, 6, 10), STR("diff"));
    CHECK_STR(str_cut(s, 6, SIZE_MAX), STR("diffusion"));
    CHECK_STR(str_cut(s, 10, 6), STR(""));
    CHECK_STR(str_trim(STR("\t a b \0 "), STR(" \t")), STR("a b \0"));
    CHECK_STR(str_trim(STR("  "), STR(" ")), STR(""));
    CHECK_STR(str_cut(s, SIZE_MAX, SIZE_MAX), STR(""));

    CHECK_U64(str_find(s, STR("i"), 0), 7);
    CHECK_U64(str_find(s, STR("i"), 8), 12);
    CHECK_U64(str_find(s, STR("i"), 13), SIZE_MAX);
    CHECK_U64(str_find(s, STR("n"), 14), 14);
    CHECK_U64(str_find(s, STR(""), 15), 15);
    CHECK_U64(str_find(s, STR(""), 16), SIZE_MAX);
    CHECK_U64(str_find(STR("ab"), STR("abc"), 0), SIZE_MAX);
    CHECK_U64(str_find(s, s, 0), 0);

    /* The published vectors of 64-bit FNV-1a. */
    CHECK_U64(str_hash(STR("")), 0xcbf29ce484222325u);
    CHECK_U64(str_hash(STR("a")), 0xaf63dc4c8601ec8cu);
    CHECK_U64(str_hash(STR("foobar")), 0x85944171f73967e8u);
}

static void test_errors(void) {
    Err e = {0};
    CHECK(!err_set(&e, ERR_MODEL, "tensor %s: %d", "a\nb\x7f\x1b", 7));
    CHECK_ERR(e, ERR_MODEL, "tensor a?b??: 7");
    CHECK(!err_set(&e, ERR_USAGE, "later"));
    CHECK_ERR(e, ERR_MODEL, "tensor");
    err_clear(&e);
    CHECK(e.code == ERR_NONE && e.msg[0] == 0);
    CHECK(!err_set(NULL, ERR_USAGE, "nobody listens"));

    char longer[2 * ERR_MSG_MAX];
    memset(longer, 'x', sizeof longer);
    longer[sizeof longer - 1] = 0;
    CHECK(!err_set(&e, ERR_RUNTIME, "%s", longer));
    CHECK_U64(strlen(e.msg), ERR_MSG_MAX - 1);
}

static void test_arithmetic(void) {
    u64 n = 0;
    CHECK(add_ok(UINT64_MAX - 1, 1, &n) && n == UINT64_MAX);
    CHECK(!add_ok(UINT64_MAX, 1, &n));
    CHECK(mul_ok(UINT64_MAX / 3, 3, &n) && n == UINT64_MAX);
    CHECK(!mul_ok(UINT64_MAX / 3 + 1, 3, &n));
    CHECK(mul_ok(UINT64_MAX, 0, &n) && n == 0);
    CHECK(align_ok(0, 64, &n) && n == 0);
    CHECK(align_ok(1, 64, &n) && n == 64);
    CHECK(align_ok(64, 64, &n) && n == 64);
    CHECK(align_ok(65, 64, &n) && n == 128);
    CHECK(align_ok(UINT64_MAX - 63, 64, &n) && n == UINT64_MAX - 63);
    CHECK(!align_ok(UINT64_MAX - 62, 64, &n));
    CHECK(align_ok(UINT64_MAX, 1, &n) && n == UINT64_MAX);
}

static void test_loads(void) {
    u8 *p = test_guard_alloc(9); /* so that p + 1 is never aligned, and byte 9 does not exist */
    for (int i = 0; i < 9; i++) p[i] = (u8)(0x10 + i);
    CHECK_U64(load_u16(p + 7), 0x1817);
    CHECK_U64(load_u32(p + 5), 0x18171615);
    CHECK_U64(load_u64(p + 1), 0x1817161514131211u);
    memcpy(p + 5, "\x00\x00\x20\xc1", 4);
    CHECK(load_f32(p + 5) == -10.0f);
    memcpy(p + 1, "\x00\x00\x00\x00\x00\x00\xf8\x3f", 8);
    CHECK(load_f64(p + 1) == 1.5);
    test_guard_free(p);
}

int main(void) {
    test_slices();
    test_errors();
    test_arithmetic();
    test_loads();
    return test_end();
}

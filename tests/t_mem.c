/* t_mem.c - blocks, arenas and buffers: what they promise, at the lid and when memory is refused. */
#include "../src/mem.c"
#include "test.h"

static void test_blocks(void) {
    static const u64 sizes[] = {0, 1, 63, 64, 65, 4096, 1000003};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        Err e = {0};
        u8 *p = mem_alloc(sizes[i], &e);
        if (!CHECK_OK(p, e)) continue;
        CHECK_U64((uintptr_t)p % MEM_ALIGN, 0);
        u8 any = 0;
        for (u64 j = 0; j < sizes[i]; j++) any |= p[j];
        CHECK_INT(any, 0);
        memset(p, 0xff, sizes[i]); /* the next block must be zeroed again */
        mem_free(p);
    }
    mem_free(NULL);
    CHECK_INT(mem_test_live, 0);
}

static void test_refused_sizes(void) {
    Err e = {0};
    CHECK(!mem_alloc(MEM_BLOCK_MAX + 1, &e));
    CHECK_ERR(e, ERR_MEMORY, "refusing to allocate 1099511627777 bytes");
    err_clear(&e);
    CHECK(!mem_alloc(UINT64_MAX, &e));
    CHECK_ERR(e, ERR_MEMORY, "refusing");
    err_clear(&e);
    CHECK(!mem_alloc_n(UINT64_MAX / 8 + 1, 8, &e)); /* the product wraps to 0 */
    CHECK_ERR(e, ERR_MEMORY, "refusing");
    CHECK(!mem_alloc(UINT64_MAX, NULL));

    err_clear(&e);
    void *p = mem_alloc_n(3, 5, &e);
    CHECK_OK(p, e);
    mem_free(p);
    CHECK_INT(mem_test_live, 0);
}

static void test_arena(void) {
    Err e = {0};
    Arena a;
    u64 need = arena_need(1) + arena_need(64) + arena_need(0) + arena_need(100);
    CHECK_U64(need, 64 + 64 + 0 + 128);
    CHECK_U64(arena_need(UINT64_MAX), UINT64_MAX);
    if (!CHECK_OK(arena_open(&a, need, &e), e)) return;
    u8 *one = arena_take(&a, 1), *line = arena_take(&a, 64), *none = arena_take(&a, 0);
    u8 *last = arena_take(&a, 100);
    CHECK(line == one + 64 && none == line + 64 && last == none);
    CHECK_U64((uintptr_t)last % MEM_ALIGN, 0);
    CHECK_U64(a.used, a.cap);
    memset(last, 1, 128);
    arena_close(&a);
    CHECK(!a.base && !a.cap && !a.used);
    CHECK(!arena_open(&a, MEM_BLOCK_MAX + 1, &e));
    CHECK(!a.base);
    CHECK_INT(mem_test_live, 0);
}

static void test_buffer(void) {
    Buf b = {0};
    Err e = {0};
    CHECK_STR(buf_view(&b), STR(""));
    CHECK(buf_str(&b, STR("")) && buf_str(&b, STR("tokens ")) && buf_char(&b, 'x'));
    CHECK(buf_printf(&b, "=%d%s", 42, ""));
    CHECK_STR(buf_view(&b), STR("tokens x=42"));
    CHECK_U64(strlen(b.p), b.n);

    buf_clear(&b);
    CHECK_STR(buf_view(&b), STR(""));
    char longer[3000];
    memset(longer, 'y', sizeof longer);
    longer[sizeof longer - 1] = 0;
    CHECK(buf_printf(&b, "<%s>", longer)); /* longer than the stack line that printf tries first */
    CHECK_U64(b.n, sizeof longer + 1);
    CHECK(b.p[0] == '<' && b.p[b.n - 1] == '>' && b.p[b.n] == 0);
    CHECK_OK(buf_ok(&b, "the text", &e), e);
    buf_free(&b);
    CHECK_INT(mem_test_live, 0);
}

static void test_buffer_lid(void) {
    Buf b = {.max = 10};
    Err e = {0};
    CHECK(buf_str(&b, STR("0123456789")));
    CHECK(buf_put(&b, NULL, 0)); /* full is not over */
    CHECK(!buf_char(&b, 'x'));
    CHECK(b.failed && !buf_put(&b, "", 0)); /* the first refusal sticks */
    CHECK_STR(buf_view(&b), STR("0123456789"));
    CHECK(!buf_ok(&b, "the prompt", &e));
    CHECK_ERR(e, ERR_MEMORY, "the prompt does not fit: over 10 bytes");
    buf_clear(&b);
    CHECK(!b.failed && buf_char(&b, 'x'));
    CHECK(!buf_reserve(&b, SIZE_MAX));
    buf_clear(&b);
    CHECK(!buf_printf(&b, "%s", "0123456789a"));
    buf_free(&b);
    CHECK_U64(b.max, 10); /* the lid outlives the contents */
    CHECK_INT(mem_test_live, 0);
}

static bool fill_and_close(void *arg, Err *e) {
    (void)arg;
    Buf b = {0};
    Arena a = {0};
    void *p = mem_alloc(10, e);
    bool ok = p && arena_open(&a, 1000, e);
    for (int i = 0; ok && i < 1000; i++) buf_printf(&b, "%d ", i); /* grows several times */
    ok = ok && buf_ok(&b, "the list", e);
    buf_free(&b);
    arena_close(&a);
    mem_free(p);
    return ok;
}

int main(void) {
    test_blocks();
    test_refused_sizes();
    test_arena();
    test_buffer();
    test_buffer_lid();
    CHECK_INT(test_alloc_failures(fill_and_close, NULL), 2 + 5); /* 256, 512, 1024, 2048, 4096 */
    return test_end();
}

/* t_convert.c - conversions with every allocation refused once, and what is counted on the way. The files
 * that come out are compared in tests/e2e/convert.py. */
#include "../src/verify.c"
#include "test.h"

#define ONLINE "../shared/models/tiny-dlm"
#define PACKED "../shared/models/tiny-dlm-packed"

static char out_path[64];

static bool convert(void *arg, Err *e) {
    const PlanEvents none = {0};
    const PlanOptions o = {.from = arg,
                           .to = out_path,
                           .type = PLAN_AS_IS,
                           .embed_type = PLAN_AS_IS,
                           .output_type = PLAN_AS_IS,
                           .decode = {.mask_id = -1},
                           .n_threads = 1};
    unlink(out_path);
    bool ok = convert_run(&o, &none, NULL, e);
    CHECK_MSG(os_is_file(out_path) == ok, "%s: a file is there: %d, success: %d", (char *)arg,
              os_is_file(out_path), ok);
    return ok;
}

static bool compare(void *arg, Err *e) {
    Buf out = {0};
    u32 n_keys, n_tensors;
    bool ok = verify_diff(out_path, arg, &out, &n_keys, &n_tensors, e);
    buf_free(&out);
    return ok;
}

/* Codes at all lengths, against counting one by one. */
static void test_counts(void) {
    static u8 codes[8192];
    u64 state = 7;
    for (size_t i = 0; i < sizeof codes; i++) codes[i] = (u8)test_rng_below(&state, 4);
    for (i64 n = 0; n < (i64)sizeof codes; n = n < 70 ? n + 1 : n * 2 + 3) {
        u64 counts[4] = {0}, want[4] = {0};
        convert_count_(codes, n, counts);
        for (i64 i = 0; i < n; i++) want[codes[i]] += codes[i] != 0;
        CHECK_MSG(memcmp(counts, want, sizeof want) == 0, "the counts of %lld codes", (long long)n);
    }
}

/* Halves go to the even side: 0.5 is 0, what is above is 1. */
static void test_codes(void) {
    static const struct {
        f32 w, m;
        u8 code;
    } cases[] = {{0.5f, 1, 1},        {-0.5f, 1, 1}, {0.50000006f, 1, 2}, {-0.50000006f, 1, 0},
                 {0.0999f, 0.2f, 1},  {7, 0.1f, 2},  {-7, 0.1f, 0},       {0, 1e-5f, 1},
                 {5.1e-6f, 1e-5f, 2}, {-0.0f, 1, 1}};
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        CHECK_INT(plan_code(cases[i].w, cases[i].m), cases[i].code);
}

/* GGUF's order of a head's rows, and back. */
static void test_permutation(void) {
    PlanItem it = {.n_out = 16, .n_in = 4, .n_permute = 2};
    static const i64 want[16] = {0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15};
    for (i64 row = 0; row < 16; row++) CHECK_INT(plan_source_row(&it, row), want[row]);
    it.n_permute = 0;
    CHECK_INT(plan_source_row(&it, 5), 5);
}

int main(void) {
    snprintf(out_path, sizeof out_path, "/tmp/t_convert.%d.gguf", (int)getpid());
    test_counts();
    test_codes();
    test_permutation();
    Err e = {0};
    CHECK_OK(convert(ONLINE, &e), e);
#ifdef DLM_TEST_ALLOC
    char packed[] = PACKED, demo[] = "tests/golden/tiny-dlm.gguf";
    printf("packed checkpoint: %lld allocations, each refused once\n",
           (long long)test_alloc_failures(convert, packed));
    printf("another type: %lld allocations, each refused once\n",
           (long long)test_alloc_failures(convert, demo));
    CHECK(test_alloc_failures(compare, demo) > 8);
#else
    CHECK_OK(compare("tests/golden/tiny-dlm.gguf", &e), e);
#endif
    unlink(out_path);
    return test_end();
}

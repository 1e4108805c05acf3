/* t_bench.c - what bench makes of its measurements: medians, the curve between its points, the
 * picture. */
#define DLM_NO_DEMO
#include "../src/bench.c"
#include "test.h"

static void check_numbers(void) {
    f64 odd[] = {5, 1, 3}, even[] = {4, 1, 2, 8};
    CHECK(bench_median_(odd, 3) == 3 && bench_median_(even, 4) == 3);
    static BenchResult r = {.read_gbs = 1, .peak_gmacs = 1};
    bench_add_(&r, "rows", 1, 10, 1000, 0);
    bench_add_(&r, "rows", 8, 24, 8000, 0);
    bench_add_(&r, "pp", 4, 1, 4000, 4);
    CHECK(bench_ms_of_(&r, 1) == 10 && bench_ms_of_(&r, 4.5) == 17 && bench_ms_of_(&r, 8) == 24);
    CHECK(bench_ms_of_(&r, 9) == 0);
    while (r.n_rows < (i32)COUNT_OF(r.rows)) bench_add_(&r, "rows", 9, 1, 1, 0);
    bench_add_(&r, "rows", 10, 1, 1, 0); /* one too many is left out */
    CHECK_INT(r.n_rows, COUNT_OF(r.rows));
}

static void check_even(void) {
    static BenchResult r = {.read_gbs = 1, .peak_gmacs = 1};
    DecodeRecord d = {.block_size = 8, .sub_block_size = 4};
    static const i32 rows[] = {1, 4, 8, 16};
    static const f64 ms[] = {10, 15, 20, 60};
    for (size_t i = 0; i < COUNT_OF(rows); i++) bench_add_(&r, "rows", rows[i], ms[i], 1, 0);
    Buf out = {0};
    bench_print_even_(&d, &r, &out); /* the commit: 40 ms for 8 tokens */
    CHECK(str_find(buf_view(&out), STR("more than 4.0 tokens (whole"), 0) != SIZE_MAX);
    CHECK(str_find(buf_view(&out), STR("or 3.0 (sub"), 0) != SIZE_MAX);
    d.first = FIRST_COMMIT; /* in a forward of its own: 20 ms */
    buf_clear(&out);
    bench_print_even_(&d, &r, &out);
    CHECK(str_find(buf_view(&out), STR("or 2.0 (sub"), 0) != SIZE_MAX);
    buf_free(&out);
}

/* A curve of one point has a place too, and a name from a file stays a text. */
static void check_plot(void) {
    static Engine g = {.ops.name = "test", .model.name = STR("<script>a & b\n")};
    static BenchResult r = {.bytes = 1000000, .read_gbs = 1, .peak_gmacs = 1};
    Buf out = {0};
    Err e = {0};
    if (!CHECK_OK(pool_open(&g.pool, 1, &e), e)) return;
    bench_add_(&r, "rows", 1, 10, 1000, 0);
    bench_plot(&g, &r, &out);
    Str svg = buf_view(&out);
    CHECK(str_find(svg, STR("&#60;script&#62;a &#38; b :"), 0) != SIZE_MAX);
    CHECK(str_find(svg, STR("<script"), 0) == SIZE_MAX);
    CHECK(str_find(svg, STR("nan"), 0) == SIZE_MAX);
    CHECK(str_find(svg, STR("</svg>"), 0) != SIZE_MAX);
    buf_free(&out);
    pool_close(g.pool);
}

int main(void) {
    check_numbers();
    check_even();
    check_plot();
    return test_end();
}

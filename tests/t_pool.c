/* t_pool.c - every row once, the same split every time, no thread too many or too late.
 * Also run under ThreadSanitizer. */
#include "../src/pool.c"
#include "test.h"

#define ROWS_MAX 4096

typedef struct {
    i32 n, grain;
    u8 visits[ROWS_MAX]; /* plain bytes: ThreadSanitizer sees two threads on one row */
    i32 end[ROWS_MAX];   /* where the range that begins here ends; 0: none begins */
    u8 crooked;          /* a range that is empty, out of bounds or cut inside a grain */
    i32 n_threads;
} Rows;

static void visit(void *arg, i32 begin, i32 end, i32 thread) {
    Rows *r = arg;
    bool aligned = begin % r->grain == 0 && (end % r->grain == 0 || end == r->n);
    bool bad =
        begin >= end || begin < 0 || end > r->n || !aligned || thread < 0 || thread >= r->n_threads;
    if (bad) {
        r->crooked = 1;
        return;
    }
    r->end[begin] = end;
    for (i32 i = begin; i < end; i++) r->visits[i]++;
}

static void check_split(Pool *p, i32 n, i32 grain) {
    static Rows r, again;
    memset(&r, 0, sizeof r);
    r.n = n;
    r.grain = grain;
    r.n_threads = pool_threads(p);
    again = r;
    pool_for(p, n, grain, visit, &r);
    pool_for(p, n, grain, visit, &again);
    bool once = true;
    i32 n_ranges = 0, n_chunks = n / grain + (n % grain != 0);
    for (i32 i = 0; i < n; i++) {
        once = once && r.visits[i] == 1;
        n_ranges += r.end[i] > 0;
    }
    CHECK_MSG(once && !r.crooked, "n %d, grain %d, threads %d", n, grain, pool_threads(p));
    i32 n_parts = MIN_OF(n_chunks, pool_threads(p)), n_want = n_parts;
    for (i32 t = 0; n_parts > 1 && t < n_parts; t++) {
        i64 chunks = (i64)n_chunks * (t + 1) / n_parts - (i64)n_chunks * t / n_parts;
        n_want += (i32)MIN_OF(chunks, POOL_PIECES) - 1;
    }
    CHECK_INT(n_ranges, n_want);
    CHECK_MSG(memcmp(&r, &again, sizeof r) == 0, "n %d, grain %d: two runs differ", n, grain);
}

typedef struct {
    Pool *pool;
    Rows rows[8];
} Nest;

static void visit_inside(void *arg, i32 begin, i32 end, i32 thread) {
    Nest *n = arg;
    (void)thread;
    for (i32 i = begin; i < end; i++) pool_for(n->pool, 5, 1, visit, &n->rows[i]);
}

/* A loop within a loop runs in its own thread, all of it. */
static void check_nesting(Pool *p) {
    static Nest n;
    memset(&n, 0, sizeof n);
    n.pool = p;
    for (i32 i = 0; i < 8; i++) n.rows[i] = (Rows){.n = 5, .grain = 1, .n_threads = 1};
    pool_for(p, 8, 1, visit_inside, &n);
    for (i32 i = 0; i < 8; i++)
        for (i32 k = 0; k < 5; k++)
            CHECK(n.rows[i].visits[k] == 1 && (pool_threads(p) == 1 || n.rows[i].end[k] == 5 * !k));
}

typedef struct {
    i64 sums[POOL_THREADS_MAX][8]; /* one cache line each */
} Sums;

static void add_rows(void *arg, i32 begin, i32 end, i32 thread) {
    Sums *s = arg;
    for (i32 i = begin; i < end; i++) s->sums[thread][0] += i;
}

/* Many tiny loops back to back: what a forward pass of a small model looks like. */
static f64 us_per_loop(Pool *p, i32 loops) {
    static Sums s;
    memset(&s, 0, sizeof s);
    f64 from = os_now_ms();
    for (i32 i = 0; i < loops; i++) pool_for(p, 64, 1, add_rows, &s);
    f64 us = (os_now_ms() - from) * 1e3 / loops;
    i64 sum = 0;
    for (i32 t = 0; t < POOL_THREADS_MAX; t++) sum += s.sums[t][0];
    CHECK_INT(sum, (i64)loops * (63 * 64 / 2));
    return us;
}

/* With pauses between the loops the workers have gone to sleep and must be woken. */
static void check_sleepers(Pool *p) {
    static Sums s;
    memset(&s, 0, sizeof s);
    for (i32 i = 0; i < 20; i++) {
        poll(NULL, 0, 1);
        pool_for(p, 64, 1, add_rows, &s);
    }
    i64 sum = 0;
    for (i32 t = 0; t < POOL_THREADS_MAX; t++) sum += s.sums[t][0];
    CHECK_INT(sum, 20 * (63 * 64 / 2));
}

#ifdef DLM_TEST_ALLOC
static bool open_close(void *arg, Err *e) {
    (void)arg;
    Pool *p;
    bool ok = pool_open(&p, 3, e);
    if (ok) pool_close(p);
    return ok;
}
#endif

int main(void) {
    static const i32 sizes[] = {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 100, 1023, ROWS_MAX};
    static const i32 grains[] = {1, 2, 3, 16, 17, 5000, 1 << 30};
    const i32 loops = 10000;
    for (i32 n_threads = 1; n_threads <= 8; n_threads++) {
        Err e = {0};
        Pool *p;
        if (!CHECK_OK(pool_open(&p, n_threads, &e), e)) break;
        CHECK_INT(pool_threads(p), n_threads);
        for (size_t i = 0; i < COUNT_OF(sizes); i++)
            for (size_t g = 0; g < COUNT_OF(grains); g++) check_split(p, sizes[i], grains[g]);
        check_nesting(p);
        check_sleepers(p);
        f64 us = us_per_loop(p, n_threads <= os_cpu_count() ? loops : loops / 20);
        printf("t_pool: %d threads, %d looks: %.2f us per loop\n", n_threads, p->spins, us);
        pool_close(p);
    }
    /* the largest row count does not overflow the split */
    i32 begin, end;
    PoolJob_ job = {.n = INT32_MAX, .grain = 1, .n_chunks = INT32_MAX, .n_parts = POOL_THREADS_MAX};
    pool_piece_(&job, POOL_THREADS_MAX - 1, 1, &begin, &end);
    CHECK(begin > 0 && begin < end && end == INT32_MAX);
    pool_close(NULL);
#ifdef DLM_TEST_ALLOC
    CHECK_INT(test_alloc_failures(open_close, NULL), 3);
#endif
    return test_end();
}

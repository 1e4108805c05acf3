/* test.h - what every unit test stands on: checks, guarded buffers, files, random numbers.
 *
 * A test includes the room it tests and this header, in either order, and its main ends with
 * `return test_end();`. Checks count and go on; only a missing file ends the program early. */
#ifndef DLM_TEST_H
#define DLM_TEST_H

#include "../src/base.c"
#include "../src/mem.c"

#include <sys/mman.h>
#include <unistd.h>

/* ---- counting ---- */

#define TEST_SHOWN_MAX 40 /* failures printed in full; the rest are only counted */

static int test_passed, test_failed;

PRINTF_LIKE(4, 5)
static bool test_note(bool ok, const char *file, int line, const char *fmt, ...) {
    if (ok) {
        test_passed++;
        return true;
    }
    if (test_failed++ < TEST_SHOWN_MAX) {
        printf("%s:%d: FAILED: ", file, line);
        va_list args;
        va_start(args, fmt);
        vprintf(fmt, args);
        va_end(args);
        printf("\n");
        fflush(stdout); /* what is known must not be lost in a crash that follows */
    }
    return false;
}

/* Prints the line that build.sh adds up, `t_gguf: 12 passed, 0 failed`, and returns the exit status. */
static int test_end_named(const char *base_file) {
    const char *name = strrchr(base_file, '/');
    name = name ? name + 1 : base_file;
    const char *dot = strrchr(name, '.');
    int n = dot ? (int)(dot - name) : (int)strlen(name);
    if (test_passed + test_failed == 0) test_failed = 1; /* a test that checks nothing has failed */
    printf("%.*s: %d passed, %d failed\n", n, name, test_passed, test_failed);
    fflush(stdout);
    return test_failed != 0;
}
#define test_end() test_end_named(__BASE_FILE__)

/* ---- checks. Each is an expression: true when it held, so that a test can stop where the rest
 * makes no sense: `if (!CHECK(open(...))) return;` ---- */

#define CHECK(cond) test_note((cond), __FILE__, __LINE__, "%s", #cond)
/* CHECK with the state that explains the failure: CHECK_MSG(n == 3, "row %d: n = %d", row, n). */
#define CHECK_MSG(cond, ...) test_note((cond), __FILE__, __LINE__, __VA_ARGS__)
#define CHECK_INT(got, want) test_int_((i64)(got), (i64)(want), __FILE__, __LINE__, #got)
#define CHECK_EQ_INT(got, want) CHECK_INT(got, want)
#define CHECK_U64(got, want) test_u64_((u64)(got), (u64)(want), __FILE__, __LINE__, #got)
#define CHECK_STR(got, want) test_str_((got), (want), __FILE__, __LINE__, #got)
#define CHECK_CSTR(got, want) test_str_(str_of(got), str_of(want), __FILE__, __LINE__, #got)
#define CHECK_NEAR(got, want, tol) \
    test_near_((f64)(got), (f64)(want), (f64)(tol), __FILE__, __LINE__, #got)
#define CHECK_MEM(got, want, n) test_mem_((got), (want), (n), __FILE__, __LINE__, #got)
/* The Err has this code and its sentence contains `part`. */
#define CHECK_ERR(e, want_code, part) test_err_(&(e), (want_code), (part), __FILE__, __LINE__)
/* A call that takes `&e` succeeded; prints the sentence when it did not. */
#define CHECK_OK(cond, e) test_note((cond), __FILE__, __LINE__, "%s: %s", #cond, (e).msg)

static bool test_int_(i64 got, i64 want, const char *file, int line, const char *what) {
    return test_note(got == want, file, line, "%s is %lld, want %lld", what, (long long)got,
                     (long long)want);
}

static bool test_u64_(u64 got, u64 want, const char *file, int line, const char *what) {
    return test_note(got == want, file, line, "%s is %llu, want %llu", what,
                     (unsigned long long)got, (unsigned long long)want);
}

static bool test_str_(Str got, Str want, const char *file, int line, const char *what) {
    return test_note(str_eq(got, want), file, line, "%s is [%zu] \"%.*s\", want [%zu] \"%.*s\"", what,
                     got.n, STR_ARG(got), want.n, STR_ARG(want));
}

/* NaN is near nothing; equal infinities are near each other. */
static bool test_near_(f64 got, f64 want, f64 tol, const char *file, int line, const char *what) {
    f64 diff = got > want ? got - want : want - got;
    return test_note(got == want || diff <= tol, file, line, "%s is %.9g, want %.9g within %.3g", what,
                     got, want, tol);
}

static bool test_mem_(const void *got, const void *want, size_t n, const char *file, int line,
                      const char *what) {
    const u8 *a = got, *b = want;
    size_t i = 0;
    while (i < n && a[i] == b[i]) i++;
    return test_note(i == n, file, line, "%s: byte %zu of %zu is 0x%02x, want 0x%02x", what, i, n,
                     i < n ? a[i] : 0u, i < n ? b[i] : 0u);
}

static bool test_err_(const Err *e, ErrCode code, const char *part, const char *file, int line) {
    bool ok = e->code == code && strstr(e->msg, part);
    return test_note(ok, file, line, "error %d \"%s\", want %d with \"%s\"", (int)e->code, e->msg,
                     (int)code, part);
}

/* ---- files: a missing one is a failure that ends the test, never a skip ---- */

/* The whole file in a block of exactly its size (64-byte aligned), so that ASan sees a read past it. */
static Str test_file_named(const char *path, const char *base_file) {
    FILE *f = fopen(path, "rb");
    long n = -1;
    char *p = NULL;
    if (f && fseek(f, 0, SEEK_END) == 0 && (n = ftell(f)) >= 0 && fseek(f, 0, SEEK_SET) == 0 &&
        posix_memalign((void **)&p, 64, n ? (size_t)n : 1) == 0 &&
        fread(p, 1, (size_t)n, f) == (size_t)n) {
        fclose(f);
        return (Str){p, (size_t)n};
    }
    CHECK_MSG(false, "cannot read %s (tests run from the project root)", path);
    exit(test_end_named(base_file));
}
#define test_file(path) test_file_named((path), __BASE_FILE__)

static void test_file_free(Str s) {
    free((void *)(uintptr_t)s.p);
}

/* ---- guarded buffers: one byte too far is a SIGSEGV, with or without a sanitizer ---- */

#define TEST_GUARDS_MAX 256

static struct {
    u8 *p, *map;
    size_t n_map;
} test_guards[TEST_GUARDS_MAX];

static u8 *test_guard_new_(size_t n, bool at_end) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), body = (n + page - 1) / page * page;
    size_t n_map = body + 2 * page, i = 0;
    u8 *map = mmap(NULL, n_map, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT(map != MAP_FAILED && (!body || mprotect(map + page, body, PROT_READ | PROT_WRITE) == 0));
    if (body) memset(map + page, 0xa5, body); /* never the zeros that hide a missing store */
    while (i < TEST_GUARDS_MAX && test_guards[i].map) i++;
    ASSERT(i < TEST_GUARDS_MAX);
    test_guards[i].map = map;
    test_guards[i].n_map = n_map;
    test_guards[i].p = map + page + (at_end ? body - n : 0);
    return test_guards[i].p;
}

/* n bytes that end right before an unmapped page (aligned as n is). */
static u8 *test_guard_alloc(size_t n) {
    return test_guard_new_(n, true);
}

/* n bytes that begin right after an unmapped page (page aligned). */
static u8 *test_guard_alloc_front(size_t n) {
    return test_guard_new_(n, false);
}

static void test_guard_free(void *p) {
    for (size_t i = 0; p && i < TEST_GUARDS_MAX; i++)
        if (test_guards[i].map && test_guards[i].p == p) {
            munmap(test_guards[i].map, test_guards[i].n_map);
            test_guards[i].map = NULL;
            return;
        }
    ASSERT(!p);
}

/* ---- random numbers: splitmix64, the same on every machine. The state is any u64 seed. ---- */

static u64 test_rng(u64 *state) {
    u64 z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* [0, n); n > 0. The bias of the remainder does not matter to a test. */
static u64 test_rng_below(u64 *state, u64 n) {
    return test_rng(state) % n;
}

/* [-1, 1) */
static f32 test_rng_f32(u64 *state) {
    return (f32)(test_rng(state) >> 40) * (1.0f / 8388608.0f) - 1.0f;
}

/* ---- refused memory ---- */

#ifdef DLM_TEST_ALLOC
/* Runs fn with the 1st, 2nd, 3rd ... allocation refused until a run asks for fewer than that. Every run
 * with a refusal must return false with ERR_MEMORY, the last must succeed, and none may keep a block:
 * fn opens, works and closes. Returns the number of allocations that one run makes. */
static i64 test_alloc_failures(bool (*fn)(void *arg, Err *e), void *arg) {
    i64 live = mem_test_live;
    for (i64 n = 1;; n++) {
        Err e = {0};
        mem_test_calls = 0;
        mem_test_fail_at = n;
        bool ok = fn(arg, &e);
        bool refused = mem_test_calls >= n;
        mem_test_fail_at = 0;
        CHECK_MSG(mem_test_live == live, "allocation %lld refused: %lld blocks leaked", (long long)n,
                  (long long)(mem_test_live - live));
        live = mem_test_live; /* report each leak once */
        if (!refused) {
            CHECK_MSG(ok, "no allocation refused, and yet: %s", e.msg);
            return n - 1;
        }
        CHECK_MSG(!ok && e.code == ERR_MEMORY, "allocation %lld refused: returned %d, error %d \"%s\"",
                  (long long)n, ok, (int)e.code, e.msg);
    }
}
#endif

#endif

/* base.c - the ground stone: integer names, string slices, errors, assertions, checked arithmetic.
 *
 * Owns:      the log level (one of the three mutable globals of the house).
 * Stands on: the C library only.
 * Promises:  never allocates; every function is total; the first error wins. */
#ifndef DLM_BASE_C
#define DLM_BASE_C

#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t i8;
typedef int16_t i16;
typedef int32_t i32;
typedef int64_t i64;
typedef float f32;
typedef double f64;

#define COUNT_OF(a) (sizeof(a) / sizeof((a)[0]))
#define MIN_OF(a, b) ((a) < (b) ? (a) : (b))
#define MAX_OF(a, b) ((a) > (b) ? (a) : (b))

#if defined(__GNUC__)
#define PRINTF_LIKE(fmt_at, args_at) __attribute__((format(printf, fmt_at, args_at)))
#define NORETURN __attribute__((noreturn))
#else
#define PRINTF_LIKE(fmt_at, args_at)
#define NORETURN
#endif

/* Everything read in place (GGUF, safetensors) is little-endian and so is every host we build for. */
_Static_assert(sizeof(void *) == 8, "dlm maps model files whole: it needs a 64-bit address space");
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "dlm reads GGUF files in place and supports little-endian machines only"
#endif

/* ---- assertions: our own bugs. On in release: a wrong answer is worse than no answer. ---- */

static NORETURN void base_assert_failed_(const char *what, const char *file, int line) {
    fprintf(stderr, "dlm: internal error: %s (%s:%d). This is a bug in dlm; please report it.\n",
            what, file, line);
    abort();
}
#define ASSERT(cond) ((cond) ? (void)0 : base_assert_failed_(#cond, __FILE__, __LINE__))

/* ---- errors: the world's faults. Codes are the process exit codes of the README. ---- */

typedef enum {
    ERR_NONE = 0,
    ERR_RUNTIME = 1,      /* I/O failed, a limit was hit, a request cannot be served */
    ERR_USAGE = 2,        /* the command line or a request field is wrong */
    ERR_MODEL = 3,        /* a model file, tokenizer or template is unusable */
    ERR_MEMORY = 4,       /* the machine said no */
    ERR_INTERRUPTED = 130 /* SIGINT, as the shell spells it */
} ErrCode;

#define ERR_MSG_MAX 640

typedef struct {
    ErrCode code;
    char msg[ERR_MSG_MAX]; /* one sentence: what, where, what to do; no trailing newline */
} Err;

/* Records the first error and returns false, so that callers can `return err_set(e, ...)`.
 * Later errors are consequences of the first and are dropped. `e` may be NULL. */
PRINTF_LIKE(3, 4) static bool err_set(Err *e, ErrCode code, const char *fmt, ...) {
    if (!e || e->code != ERR_NONE) return false;
    e->code = code;
    va_list args;
    va_start(args, fmt);
    vsnprintf(e->msg, sizeof e->msg, fmt, args);
    va_end(args);
    for (char *c = e->msg; *c; c++) /* names from files may carry control bytes: keep one clean line */
        if ((u8)*c < 0x20 || *c == 0x7f) *c = '?';
    return false;
}

static void err_clear(Err *e) {
    e->code = ERR_NONE;
    e->msg[0] = 0;
}

/* ---- logging: one line to stderr, by level, or to whoever took the log over ---- */

typedef enum { LOG_QUIET, LOG_WARN, LOG_INFO, LOG_DEBUG } LogLevel;
static LogLevel base_log_level = LOG_INFO;
static void (*base_log_sink)(LogLevel level, const char *line); /* NULL: stderr, as text */

PRINTF_LIKE(2, 3) static void log_line(LogLevel level, const char *fmt, ...) {
    if (level > base_log_level) return;
    char line[1024];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    if (n < 0) return;
    if (base_log_sink)
        base_log_sink(level, line);
    else
        fprintf(stderr, "dlm: %s%s\n", level == LOG_WARN ? "warning: " : "", line);
}

/* ---- string slices: bytes with a length, not owned, not NUL-terminated ---- */

typedef struct {
    const char *p;
    size_t n;
} Str;

#define STR(literal) ((Str){"" literal, sizeof(literal) - 1})
/* For printf("%.*s"): a slice longer than a log line is cut, never a negative precision. */
#define STR_ARG(s) (int)((s).n < 200 ? (s).n : 200), (s).p

static Str str_of(const char *z) {
    return (Str){z, z ? strlen(z) : 0};
}

static bool str_eq(Str a, Str b) {
    return a.n == b.n && (a.n == 0 || memcmp(a.p, b.p, a.n) == 0);
}

static bool str_starts(Str s, Str prefix) {
    return s.n >= prefix.n && (prefix.n == 0 || memcmp(s.p, prefix.p, prefix.n) == 0);
}

static bool str_ends(Str s, Str suffix) {
    return s.n >= suffix.n &&
           (suffix.n == 0 || memcmp(s.p + s.n - suffix.n, suffix.p, suffix.n) == 0);
}

/* The slice [from, to) of s; both are clamped to its length. */
static Str str_cut(Str s, size_t from, size_t to) {
    if (to > s.n) to = s.n;
    if (from > to) from = to;
    return (Str){from ? s.p + from : s.p, to - from}; /* NULL + 0 is undefined */
}

/* Byte offset of the first `needle` at or after `from`, or SIZE_MAX. An empty needle is found at once. */
static size_t str_find(Str hay, Str needle, size_t from) {
    for (size_t i = from; i <= hay.n && needle.n <= hay.n - i; i++)
        if (needle.n == 0 || memcmp(hay.p + i, needle.p, needle.n) == 0) return i;
    return SIZE_MAX;
}

/* s without the bytes of `set` at either end. */
static Str str_trim(Str s, Str set) {
    while (s.n && memchr(set.p, s.p[0], set.n)) s = str_cut(s, 1, s.n);
    while (s.n && memchr(set.p, s.p[s.n - 1], set.n)) s.n--;
    return s;
}

/* FNV-1a: the hash of every string table in the house. */
static u64 str_hash(Str s) {
    u64 h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < s.n; i++) h = (h ^ (u8)s.p[i]) * 0x100000001b3u;
    return h;
}

/* ---- checked arithmetic: every size that came from outside goes through these ---- */

static bool add_ok(u64 a, u64 b, u64 *out) {
    return !__builtin_add_overflow(a, b, out);
}

static bool mul_ok(u64 a, u64 b, u64 *out) {
    return !__builtin_mul_overflow(a, b, out);
}

/* Rounds n up to a multiple of align, a power of two. */
static bool align_ok(u64 n, u64 align, u64 *out) {
    ASSERT(align && (align & (align - 1)) == 0);
    if (!add_ok(n, align - 1, out)) return false;
    *out &= ~(align - 1);
    return true;
}

/* ---- little-endian loads from unaligned bytes ---- */

static u16 load_u16(const u8 *p) {
    u16 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static u32 load_u32(const u8 *p) {
    u32 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static u64 load_u64(const u8 *p) {
    u64 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static f32 load_f32(const u8 *p) {
    f32 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static f64 load_f64(const u8 *p) {
    f64 v;
    memcpy(&v, p, sizeof v);
    return v;
}

#endif

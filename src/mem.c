/* mem.c - where memory comes from: one allocator, arenas with a lid, bounded buffers.
 *
 * Owns:      nothing; whoever takes a block frees it, in the same room.
 * Stands on: base
 * Promises:  every block is zeroed and 64-byte aligned; a refusal is an Err (code 4), never NULL unsaid;
 *            a buffer never grows past its lid. */
#ifndef DLM_MEM_C
#define DLM_MEM_C

#include "base.c"

#define MEM_ALIGN 64u
/* A single block above this is a corrupt size, not a wish (1 TiB). */
#define MEM_BLOCK_MAX ((u64)1 << 40)

#ifdef DLM_TEST_ALLOC
/* Tests only: the n-th call from now fails (0: none); counts the calls and the blocks still held. */
static i64 mem_test_fail_at, mem_test_calls, mem_test_live;
#endif

/* Takes n bytes, zeroed, 64-byte aligned. NULL with an Err of code ERR_MEMORY when refused.
 * n may be 0 (the block is then one alignment unit long). */
static void *mem_alloc(u64 n, Err *e) {
    u64 size = 0;
    if (n > MEM_BLOCK_MAX || !align_ok(n ? n : 1, MEM_ALIGN, &size)) {
        err_set(e, ERR_MEMORY, "refusing to allocate %llu bytes: more than one block may have",
                (unsigned long long)n);
        return NULL;
    }
#ifdef DLM_TEST_ALLOC
    if (++mem_test_calls == mem_test_fail_at) size = 0;
#endif
    /* calloc, not aligned_alloc and memset: large blocks come as zero pages that cost nothing until
     * they are touched. What calloc returned is kept right before the block. */
    u8 *raw = size ? calloc(1, size + MEM_ALIGN) : NULL;
    if (!raw) {
        err_set(e, ERR_MEMORY, "out of memory: %llu bytes (%.1f MiB) were refused by the system",
                (unsigned long long)n, (f64)n / 1048576.0);
        return NULL;
    }
#ifdef DLM_TEST_ALLOC
    mem_test_live++;
#endif
    u8 *p = raw + (MEM_ALIGN - (uintptr_t)raw % MEM_ALIGN); /* calloc aligns to 16: room for raw */
    memcpy(p - sizeof raw, &raw, sizeof raw);
    return p;
}

/* Takes count * size bytes; the product is checked. */
static void *mem_alloc_n(u64 count, u64 size, Err *e) {
    u64 n = 0;
    if (!mul_ok(count, size, &n)) n = UINT64_MAX; /* refused by mem_alloc with the right words */
    return mem_alloc(n, e);
}

static void mem_free(void *p) {
#ifdef DLM_TEST_ALLOC
    if (p) mem_test_live--;
#endif
    u8 *raw = NULL;
    if (p) memcpy(&raw, (u8 *)p - sizeof raw, sizeof raw);
    free(raw);
}

/* ---- arena: one block whose size is computed before it is taken ---- */

typedef struct {
    u8 *base;
    u64 cap;  /* bytes; the lid */
    u64 used; /* bytes */
} Arena;

static bool arena_open(Arena *a, u64 cap, Err *e) {
    *a = (Arena){0};
    a->base = mem_alloc(cap, e);
    if (!a->base) return false;
    a->cap = cap;
    return true;
}

static void arena_close(Arena *a) {
    mem_free(a->base);
    *a = (Arena){0};
}

/* The bytes that arena_take will use for n bytes: callers sum these to size an arena. */
static u64 arena_need(u64 n) {
    u64 size = 0;
    return align_ok(n, MEM_ALIGN, &size) ? size : UINT64_MAX;
}

/* Takes n zeroed bytes, 64-byte aligned. Overrunning the lid is our bug: the size was planned. */
static void *arena_take(Arena *a, u64 n) {
    u64 size = arena_need(n);
    ASSERT(size <= a->cap - a->used);
    void *p = a->base + a->used;
    a->used += size;
    return p;
}

/* ---- buffer: grows by doubling up to its lid; the first refusal sticks ---- */

typedef struct {
    char *p;     /* [n] bytes; also NUL-terminated whenever p is not NULL */
    size_t n;    /* bytes in use */
    size_t cap;  /* bytes held */
    size_t max;  /* the lid in bytes; 0 means BUF_MAX_DEFAULT */
    bool failed; /* a put was refused (lid or memory); later puts do nothing */
} Buf;

#define BUF_MAX_DEFAULT ((size_t)256 << 20)

static void buf_free(Buf *b) {
    mem_free(b->p);
    *b = (Buf){.max = b->max};
}

static void buf_clear(Buf *b) {
    b->n = 0;
    b->failed = false;
    if (b->p) b->p[0] = 0;
}

/* Makes room for n more bytes and a terminator. */
static bool buf_reserve(Buf *b, size_t n) {
    size_t max = b->max ? b->max : BUF_MAX_DEFAULT;
    if (b->failed || n > max || b->n > max - n) {
        b->failed = true;
        return false;
    }
    size_t need = b->n + n + 1;
    if (need <= b->cap) return true;
    size_t cap = b->cap ? b->cap : 256;
    while (cap < need) cap *= 2;
    char *p = mem_alloc(cap, NULL);
    if (!p) {
        b->failed = true;
        return false;
    }
    if (b->n) memcpy(p, b->p, b->n);
    mem_free(b->p);
    b->p = p;
    b->cap = cap;
    return true;
}

/* memcpy, but quick for a few bytes, which musl's begins to copy late: the first and the last 8 or 4. */
static void mem_put_(char *to, const char *from, size_t n) {
    if (n > 16) {
        memcpy(to, from, n);
    } else if (n >= 8) {
        u64 first, last;
        memcpy(&first, from, 8), memcpy(&last, from + n - 8, 8);
        memcpy(to, &first, 8), memcpy(to + n - 8, &last, 8);
    } else if (n >= 4) {
        u32 first, last;
        memcpy(&first, from, 4), memcpy(&last, from + n - 4, 4);
        memcpy(to, &first, 4), memcpy(to + n - 4, &last, 4);
    } else if (n) {
        to[0] = from[0], to[n / 2] = from[n / 2], to[n - 1] = from[n - 1];
    }
}

static bool buf_put(Buf *b, const void *p, size_t n) {
    if (!buf_reserve(b, n)) return false;
    mem_put_(b->p + b->n, p, n);
    b->n += n;
    b->p[b->n] = 0;
    return true;
}

static bool buf_str(Buf *b, Str s) {
    return buf_put(b, s.p, s.n);
}

static bool buf_char(Buf *b, char c) {
    return buf_put(b, &c, 1);
}

PRINTF_LIKE(2, 3) static bool buf_printf(Buf *b, const char *fmt, ...) {
    char line[1024];
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    bool ok = n >= 0;
    if (ok && (size_t)n < sizeof line) {
        ok = buf_put(b, line, (size_t)n);
    } else if (ok && (ok = buf_reserve(b, (size_t)n))) {
        vsnprintf(b->p + b->n, (size_t)n + 1, fmt, again);
        b->n += (size_t)n;
    }
    va_end(again);
    return ok;
}

/* The contents as a slice; valid until the next put. */
static Str buf_view(const Buf *b) {
    return (Str){b->p ? b->p : "", b->n};
}

/* Turns a sticky failure into an Err that says which text did not fit. */
static bool buf_ok(const Buf *b, const char *what, Err *e) {
    if (!b->failed) return true;
    size_t max = b->max ? b->max : BUF_MAX_DEFAULT;
    return err_set(e, ERR_MEMORY, "%s does not fit: over %zu bytes, or no memory for it", what, max);
}

#endif

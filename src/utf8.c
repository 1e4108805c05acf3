/* utf8.c - UTF-8 and the Unicode classes that text is cut by.
 *
 * Owns:      nothing.
 * Stands on: base
 * Promises:  never reads outside the slice; never allocates; every byte sequence is accepted, and what
 *            is not UTF-8 is reported as such, never skipped over in silence. */
#ifndef DLM_UTF8_C
#define DLM_UTF8_C

#include "base.c"
#include "utf8_tables.h"

#define UTF8_MAX 4u             /* bytes of the longest code point */
#define UTF8_REPLACEMENT 0xFFFDu /* stands for bytes that are not UTF-8 */

/* ---- decode and encode ---- */

typedef enum {
    UTF8_OK,   /* *n bytes are the code point *cp */
    UTF8_BAD,  /* *n bytes can begin no code point: one U+FFFD, as Python's errors="replace" counts
                  them (Unicode 16 section 3.9, "maximal subpart") */
    UTF8_SHORT /* the text ends after *n bytes that may yet become a code point */
} Utf8State;

/* Reads at s.p[i], i < s.n. Always sets 1 <= *n <= s.n - i; sets *cp to UTF8_REPLACEMENT unless
 * UTF8_OK. */
static Utf8State utf8_read(Str s, size_t i, u32 *cp, size_t *n) {
    const u8 *p = (const u8 *)s.p + i;
    size_t left = s.n - i;
    u8 lead = p[0];
    *n = 1;
    *cp = lead;
    if (lead < 0x80) return UTF8_OK;
    *cp = UTF8_REPLACEMENT;
    if (lead < 0xC2 || lead > 0xF4) return UTF8_BAD;
    size_t want = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    /* The second byte's range excludes overlong forms, surrogates and what lies above U+10FFFF. */
    u8 low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    u8 high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    u32 v = lead & (0x7Fu >> want);
    for (; *n < want; ++*n, low = 0x80, high = 0xBF) {
        if (*n == left) return UTF8_SHORT;
        u8 c = p[*n];
        if (c < low || c > high) return UTF8_BAD;
        v = v << 6 | (c & 0x3Fu);
    }
    *cp = v;
    return UTF8_OK;
}

/* The code point at s.p[*i], *i < s.n, and steps over it. A byte that is not UTF-8 counts alone, as
 * U+FFFD: cuts may then fall anywhere between such bytes and still add up to the text. */
static u32 utf8_next(Str s, size_t *i) {
    u8 first = (u8)s.p[*i];
    if (first < 0x80) {
        ++*i;
        return first;
    }
    u32 cp;
    size_t n;
    *i += utf8_read(s, *i, &cp, &n) == UTF8_OK ? n : 1;
    return cp;
}

/* Writes cp and returns its length; what is no code point is written as U+FFFD. */
static size_t utf8_put(u32 cp, char out[UTF8_MAX]) {
    if (cp > 0x10FFFF || (cp >= 0xD800 && cp < 0xE000)) cp = UTF8_REPLACEMENT;
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    size_t n = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (size_t k = n - 1; k > 0; k--, cp >>= 6) out[k] = (char)(0x80 | (cp & 0x3F));
    out[0] = (char)((0xF00u >> n & 0xFF) | cp); /* 110xxxxx, 1110xxxx, 11110xxx */
    return n;
}

/* Length of the longest prefix that is UTF-8 throughout; s.n when all of it is. */
static size_t utf8_valid(Str s) {
    size_t i = 0, n;
    u32 cp;
    while (i < s.n && utf8_read(s, i, &cp, &n) == UTF8_OK) i += n;
    return i;
}

/* ---- classes: sets of general categories, one bit each ---- */

/* The order is that of CATEGORIES in tools/mktables.py. */
enum {
    UTF8_CN,
    UTF8_LU,
    UTF8_LL,
    UTF8_LT,
    UTF8_LM,
    UTF8_LO,
    UTF8_MN,
    UTF8_MC,
    UTF8_ME,
    UTF8_ND,
    UTF8_NL,
    UTF8_NO,
    UTF8_PC,
    UTF8_PD,
    UTF8_PS,
    UTF8_PE,
    UTF8_PI,
    UTF8_PF,
    UTF8_PO,
    UTF8_SM,
    UTF8_SC,
    UTF8_SK,
    UTF8_SO,
    UTF8_ZS,
    UTF8_ZL,
    UTF8_ZP,
    UTF8_CC,
    UTF8_CF,
    UTF8_CS,
    UTF8_CO,
    UTF8_CW /* a control that is White_Space: U+0009..U+000D and U+0085 */
};

#define UTF8_BITS(first, last) ((2u << (last)) - (1u << (first)))
#define UTF8_LETTER UTF8_BITS(UTF8_LU, UTF8_LO)      /* \p{L} */
#define UTF8_MARK UTF8_BITS(UTF8_MN, UTF8_ME)        /* \p{M} */
#define UTF8_NUMBER UTF8_BITS(UTF8_ND, UTF8_NO)      /* \p{N} */
#define UTF8_PUNCTUATION UTF8_BITS(UTF8_PC, UTF8_PO) /* \p{P} */
#define UTF8_SYMBOL UTF8_BITS(UTF8_SM, UTF8_SO)      /* \p{S} */
/* \s: White_Space, which is not what isspace() says. */
#define UTF8_SPACE (UTF8_BITS(UTF8_ZS, UTF8_ZP) | 1u << UTF8_CW)

/* The class of cp as a one-bit set: `utf8_class(cp) & (UTF8_LETTER | UTF8_NUMBER)`. */
static u32 utf8_class(u32 cp) {
    if (cp > 0x10FFFF) return 1u << UTF8_CN;
    u32 in_leaf = cp & ((1u << UTF8_LEAF_SHIFT) - 1), leaf = cp >> UTF8_LEAF_SHIFT;
    u32 in_run = leaf & ((1u << UTF8_RUN_SHIFT) - 1), run = utf8_table_top[leaf >> UTF8_RUN_SHIFT];
    leaf = utf8_table_runs[run << UTF8_RUN_SHIFT | in_run];
    return 1u << utf8_table_leaves[leaf << UTF8_LEAF_SHIFT | in_leaf];
}

/* Simple case folding, as far as it ends in an ASCII letter: all that a case-insensitive ASCII
 * pattern can match. U+017F and U+212A are the two that come from outside ASCII. */
static u32 utf8_fold_ascii(u32 cp) {
    if (cp >= 'A' && cp <= 'Z') return cp + ('a' - 'A');
    return cp == 0x17F ? 's' : cp == 0x212A ? 'k' : cp;
}

#endif

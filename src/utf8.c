/* utf8.c - UTF-8, the Unicode classes that text is cut by, and what normalization form C is made of.
 *
 * Owns:      nothing.
 * Stands on: base
 * Promises:  never reads outside the slice; never allocates; every byte sequence is accepted, and what
 *            is not UTF-8 is reported as such, never skipped over in silence. */
#ifndef DLM_UTF8_C
#define DLM_UTF8_C

#include "base.c"
#include "utf8_tables.h"

#define UTF8_MAX 4u              /* bytes of the longest code point */
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

/* ---- normalization form C: what a code point comes apart into, and what two are as one ---- */

#define UTF8_PARTS_MAX 4u /* code points that one comes apart into */

enum { /* Hangul syllables: arithmetic, not tables; Unicode 16, section 3.12 */
       UTF8_HANGUL_S = 0xAC00,
       UTF8_HANGUL_L = 0x1100,
       UTF8_HANGUL_V = 0x1161,
       UTF8_HANGUL_T = 0x11A7,
       UTF8_HANGUL_NL = 19,
       UTF8_HANGUL_NV = 21,
       UTF8_HANGUL_NT = 28,
       UTF8_HANGUL_NS = UTF8_HANGUL_NL * UTF8_HANGUL_NV * UTF8_HANGUL_NT
};

typedef struct {
    const u16 *second, *start; /* [n_second], [n_second + 1]: where the pairs of each begin */
    const u16 *first, *whole;  /* [n] */
    const u16 *by_whole;       /* [n] the pairs in the order of `whole` */
    u32 n_second, n_composing, n;
} Utf8Pairs_;

#define UTF8_PAIRS_(k)                                                                           \
    {                                                                                            \
        utf8_pair##k##_second, utf8_pair##k##_start, utf8_pair##k##_first, utf8_pair##k##_whole, \
            utf8_pair##k##_by_whole, COUNT_OF(utf8_pair##k##_second), UTF8_PAIR##k##_COMPOSING,  \
            COUNT_OF(utf8_pair##k##_first)                                                       \
    }
static const Utf8Pairs_ utf8_pairs_[2] = {UTF8_PAIRS_(0), UTF8_PAIRS_(1)}; /* by plane */

/* The last of a[0 .. n), ascending, that is at most v; n when there is none. */
static u32 utf8_last_(const u16 *a, u32 n, u32 v) {
    u32 low = 0, high = n;
    while (low < high) {
        u32 mid = low + (high - low) / 2;
        if (a[mid] <= v)
            low = mid + 1;
        else
            high = mid;
    }
    return low ? low - 1 : n;
}

/* The canonical combining class: 0 for what begins a character. */
static u32 utf8_combining_class(u32 cp) {
    if (!(utf8_class(cp) & UTF8_MARK) || cp > 0x1FFFF) return 0;
    const u16 *run = cp > 0xFFFF ? utf8_ccc1_run : utf8_ccc0_run;
    u32 n = cp > 0xFFFF ? COUNT_OF(utf8_ccc1_run) : COUNT_OF(utf8_ccc0_run);
    u32 k = utf8_last_(run, n, cp & 0xFFFF);
    if (k == n) return 0;
    u32 into = (cp & 0xFFFF) - run[k];
    if (cp > 0xFFFF) return into < utf8_ccc1_n[k] ? utf8_ccc1_class[k] : 0;
    return into < utf8_ccc0_n[k] ? utf8_ccc0_class[k] : 0;
}

/* What cp is canonically one other code point for; cp itself when it is not. */
static u32 utf8_single_(u32 cp) {
    u32 at = 0;
    for (u32 k = 0; k < COUNT_OF(utf8_single_run) && cp >= utf8_single_run[k]; k++) {
        u32 into = cp - utf8_single_run[k];
        if (into < utf8_single_n[k]) {
            at += into;
            return utf8_single_to[at] | (u32)(utf8_single_far[at / 8] >> at % 8 & 1) << 17;
        }
        at += utf8_single_n[k];
    }
    return cp;
}

/* Takes cp apart into two, once; false when it is not a pair. */
static bool utf8_pair_(u32 cp, u32 *first, u32 *second) {
    if (cp > 0x1FFFF) return false;
    const Utf8Pairs_ *t = &utf8_pairs_[cp >> 16];
    u32 low = 0, high = t->n, plane = cp & 0x10000;
    while (low < high) {
        u32 mid = low + (high - low) / 2;
        if (t->whole[t->by_whole[mid]] < (cp & 0xFFFF))
            low = mid + 1;
        else
            high = mid;
    }
    if (low == t->n || t->whole[t->by_whole[low]] != (cp & 0xFFFF)) return false;
    u32 at = t->by_whole[low], k = utf8_last_(t->start, t->n_second, at);
    *first = t->first[at] | plane;
    *second = t->second[k] | (t->second[k] < 0x1000 ? 0 : plane);
    return true;
}

/* The full canonical decomposition: its length, cp itself and 1 when it has none. */
static u32 utf8_decompose(u32 cp, u32 out[UTF8_PARTS_MAX]) {
    u32 s = cp - UTF8_HANGUL_S;
    if (s < UTF8_HANGUL_NS) {
        out[0] = UTF8_HANGUL_L + s / (UTF8_HANGUL_NV * UTF8_HANGUL_NT);
        out[1] = UTF8_HANGUL_V + s / UTF8_HANGUL_NT % UTF8_HANGUL_NV;
        out[2] = UTF8_HANGUL_T + s % UTF8_HANGUL_NT;
        return s % UTF8_HANGUL_NT ? 3 : 2;
    }
    u32 tail[UTF8_PARTS_MAX], n = 0, k = 0;
    cp = utf8_single_(cp);
    while (n < UTF8_PARTS_MAX - 1 && utf8_pair_(cp, &cp, &tail[n])) n++; /* only the first again */
    out[k++] = cp;
    while (n) out[k++] = tail[--n];
    return k;
}

/* May cp, without a combining class, become one with what stands before it? */
static bool utf8_joins(u32 cp) {
    if (cp - UTF8_HANGUL_V < UTF8_HANGUL_NV || cp - UTF8_HANGUL_T - 1 < UTF8_HANGUL_NT - 1)
        return true;
    if (cp > 0x1FFFF) return false;
    const Utf8Pairs_ *t = &utf8_pairs_[cp >> 16];
    u32 k = utf8_last_(t->second, t->n_composing, cp & 0xFFFF);
    return k < t->n_composing && t->second[k] == (cp & 0xFFFF);
}

/* The code point that a and b are as one, or 0. */
static u32 utf8_compose(u32 a, u32 b) {
    if (a - UTF8_HANGUL_L < UTF8_HANGUL_NL && b - UTF8_HANGUL_V < UTF8_HANGUL_NV)
        return UTF8_HANGUL_S +
               ((a - UTF8_HANGUL_L) * UTF8_HANGUL_NV + b - UTF8_HANGUL_V) * UTF8_HANGUL_NT;
    if (a - UTF8_HANGUL_S < UTF8_HANGUL_NS && (a - UTF8_HANGUL_S) % UTF8_HANGUL_NT == 0 &&
        b - UTF8_HANGUL_T - 1 < UTF8_HANGUL_NT - 1)
        return a + b - UTF8_HANGUL_T;
    u32 plane = a & 0x10000;
    if (a > 0x1FFFF || (b & ~0xFFFFu) != (b < 0x1000 ? 0 : plane)) return 0;
    const Utf8Pairs_ *t = &utf8_pairs_[a >> 16];
    u32 k = utf8_last_(t->second, t->n_composing, b & 0xFFFF);
    if (k == t->n_composing || t->second[k] != (b & 0xFFFF)) return 0;
    u32 from = t->start[k], n = t->start[k + 1] - from,
        at = utf8_last_(t->first + from, n, a & 0xFFFF);
    if (at == n || t->first[from + at] != (a & 0xFFFF)) return 0;
    return t->whole[from + at] | plane;
}

#endif

/* t_utf8.c - decoding against a reading of the standard's table 3-7, classes against counts taken
 * from the `tokenizers` package 0.23.3 (its regular expressions run over every code point). */
#include "../src/utf8.c"
#include "test.h"

/* Table 3-7 of the Unicode standard, well-formed byte sequences, row by row: the other way to say
 * it. */
static const u8 table_3_7[][8] = {
    {0x00, 0x7F},
    {0xC2, 0xDF, 0x80, 0xBF},
    {0xE0, 0xE0, 0xA0, 0xBF, 0x80, 0xBF},
    {0xE1, 0xEC, 0x80, 0xBF, 0x80, 0xBF},
    {0xED, 0xED, 0x80, 0x9F, 0x80, 0xBF},
    {0xEE, 0xEF, 0x80, 0xBF, 0x80, 0xBF},
    {0xF0, 0xF0, 0x90, 0xBF, 0x80, 0xBF, 0x80, 0xBF},
    {0xF1, 0xF3, 0x80, 0xBF, 0x80, 0xBF, 0x80, 0xBF},
    {0xF4, 0xF4, 0x80, 0x8F, 0x80, 0xBF, 0x80, 0xBF},
};

static Utf8State reference(const u8 *p, size_t left, size_t *n) {
    for (size_t row = 0; row < COUNT_OF(table_3_7); row++) {
        const u8 *r = table_3_7[row];
        if (p[0] < r[0] || p[0] > r[1]) continue;
        for (*n = 1; *n < 4 && r[2 * *n + 1]; ++*n) {
            if (*n == left) return UTF8_SHORT;
            if (p[*n] < r[2 * *n] || p[*n] > r[2 * *n + 1]) return UTF8_BAD;
        }
        return UTF8_OK;
    }
    *n = 1;
    return UTF8_BAD;
}

static void every_code_point_round_trips(void) {
    size_t wrong = 0;
    for (u32 cp = 0; cp < 0x110000; cp++) {
        char b[UTF8_MAX];
        size_t n = utf8_put(cp, b), m, i = 0;
        u32 back, want = cp >= 0xD800 && cp < 0xE000 ? UTF8_REPLACEMENT : cp;
        Str s = {b, n};
        wrong += utf8_read(s, 0, &back, &m) != UTF8_OK || back != want || m != n;
        wrong += utf8_next(s, &i) != want || i != n || utf8_valid(s) != n;
    }
    CHECK_INT(wrong, 0);
    char b[UTF8_MAX];
    CHECK_STR(((Str){b, utf8_put(0x110000, b)}), STR("\xEF\xBF\xBD"));
    CHECK_STR(((Str){b, utf8_put(UINT32_MAX, b)}), STR("\xEF\xBF\xBD"));
}

/* All sequences of up to three bytes, and of four over the bytes at the borders of the table's
 * ranges. */
static void every_sequence_reads_as_the_standard_says(void) {
    static const u8 border[] = {0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF,
                                0xC0, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE,
                                0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF};
    size_t wrong = 0, nb = COUNT_OF(border);
    for (u32 v = 0; v < 1u << 24; v++) {
        u8 b[3] = {(u8)(v >> 16), (u8)(v >> 8), (u8)v};
        size_t len = (v & 0xFFFF) == 0 ? 1 : (v & 0xFF) == 0 ? 2 : 3, n, m;
        u32 cp;
        Utf8State got = utf8_read((Str){(char *)b, len}, 0, &cp, &n);
        wrong +=
            got != reference(b, len, &m) || n != m || (got != UTF8_OK && cp != UTF8_REPLACEMENT);
    }
    for (size_t v = 0; v < nb * nb * nb * nb; v++) {
        u8 b[4] = {border[v / nb / nb / nb], border[v / nb / nb % nb], border[v / nb % nb],
                   border[v % nb]};
        size_t n, m;
        u32 cp;
        wrong += utf8_read((Str){(char *)b, 4}, 0, &cp, &n) != reference(b, 4, &m) || n != m;
    }
    CHECK_INT(wrong, 0);
}

static void invalid_bytes_step_one_by_one(void) {
    Str s = STR("a\xE2\x82z\xFF");
    size_t i = 0;
    CHECK_INT(utf8_next(s, &i), 'a');
    CHECK_INT(utf8_next(s, &i), UTF8_REPLACEMENT);
    CHECK_INT(i, 2);
    CHECK_INT(utf8_next(s, &i), UTF8_REPLACEMENT);
    CHECK_INT(utf8_next(s, &i), 'z');
    CHECK_INT(utf8_next(s, &i), UTF8_REPLACEMENT);
    CHECK_INT(i, s.n);
    CHECK_INT(utf8_valid(s), 1);
    CHECK_INT(utf8_valid(STR("")), 0);
    CHECK_INT(utf8_valid(STR("gr\xC3\xBC\xC3")), 4);
    u8 *guarded = test_guard_alloc(3); /* a lead byte at the very end must not look ahead */
    memcpy(guarded, "ab\xF0", 3);
    i = 2;
    CHECK_INT(utf8_next((Str){(char *)guarded, 3}, &i), UTF8_REPLACEMENT);
    CHECK_INT(i, 3);
    test_guard_free(guarded);
}

static u32 count_class(u32 set) {
    u32 n = 0;
    for (u32 cp = 0; cp < 0x110000; cp++) n += (utf8_class(cp) & set) != 0;
    return n;
}

static void classes_have_the_reference_counts(void) {
    CHECK_INT(count_class(UTF8_LETTER), 141028);
    CHECK_INT(count_class(UTF8_NUMBER), 1911);
    CHECK_INT(count_class(UTF8_MARK), 2501);
    CHECK_INT(count_class(UTF8_PUNCTUATION), 855);
    CHECK_INT(count_class(UTF8_SYMBOL), 8514);
    CHECK_INT(count_class(UTF8_SPACE), 25);
    CHECK_INT(count_class(1u << UTF8_LU), 1858);
    CHECK_INT(count_class(1u << UTF8_LL), 2258);
    CHECK_INT(count_class(1u << UTF8_LT), 31);
    CHECK_INT(count_class(1u << UTF8_LM), 404);
    CHECK_INT(count_class(1u << UTF8_LO), 136477);
    CHECK_INT(count_class(1u << UTF8_CS), 2048);
    CHECK_INT(count_class(UTF8_BITS(UTF8_CN, UTF8_CW)), 0x110000);
    CHECK_INT(utf8_class(UINT32_MAX), 1u << UTF8_CN);

    static const u32 spaces[] = {0x9,    0xA,    0xB,    0xC,    0xD,    0x20,   0x85,   0xA0,
                                 0x1680, 0x2000, 0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000};
    static const u32 not_spaces[] = {0x0,    0x8,    0xE,    0x1C,   0x1F,
                                     0x180E, 0x200B, 0x2060, 0xFEFF, 0xFFFD};
    for (size_t i = 0; i < COUNT_OF(spaces); i++)
        CHECK_MSG(utf8_class(spaces[i]) & UTF8_SPACE, "U+%04X", spaces[i]);
    for (size_t i = 0; i < COUNT_OF(not_spaces); i++)
        CHECK_MSG(!(utf8_class(not_spaces[i]) & UTF8_SPACE), "U+%04X", not_spaces[i]);
    CHECK(utf8_class(0x1C89) & UTF8_LETTER); /* new in Unicode 16 */
    CHECK(utf8_class(0x2160) & UTF8_NUMBER); /* a Roman numeral is a number, not a letter */
    CHECK(utf8_class(0x4E00) & UTF8_LETTER);
}

static void folding_reaches_ascii(void) {
    u32 from_outside = 0;
    for (u32 cp = 0x80; cp < 0x110000; cp++) from_outside += utf8_fold_ascii(cp) < 0x80;
    CHECK_INT(from_outside, 2);
    CHECK_INT(utf8_fold_ascii('S'), 's');
    CHECK_INT(utf8_fold_ascii('['), '[');
    CHECK_INT(utf8_fold_ascii('@'), '@');
    CHECK_INT(utf8_fold_ascii(0x17F), 's');
    CHECK_INT(utf8_fold_ascii(0x212A), 'k');
}

/* Counts taken from the unicodedata2 package 16.0.0; that each is right, tests/py/tok_diff.py sees. */
static void normalization_has_the_reference_counts(void) {
    u32 apart = 0, again = 0, marks = 0, sum = 0, longest = 0;
    for (u32 cp = 0; cp < 0x110000; cp++) {
        u32 part[UTF8_PARTS_MAX], whole;
        u32 n = utf8_decompose(cp, part), class = utf8_combining_class(cp);
        whole = part[0];
        for (u32 k = 1; k < n; k++) whole = utf8_compose(whole, part[k]);
        apart += n > 1 || part[0] != cp;
        again += n > 1 && whole == cp;
        longest = MAX_OF(longest, n);
        marks += class != 0;
        sum += class;
    }
    CHECK_INT(apart, 13253);
    CHECK_INT(again, 12133);
    CHECK_INT(longest, UTF8_PARTS_MAX);
    CHECK_INT(marks, 934);
    CHECK_INT(sum, 173501);
    CHECK_INT(utf8_compose('e', 0x301), 0xE9);
    CHECK_INT(utf8_compose('e', 'e'), 0);
    CHECK_INT(utf8_compose(UINT32_MAX, 0x301), 0);
    CHECK_INT(utf8_compose('e', UINT32_MAX), 0);
    CHECK_INT(utf8_compose(0x10000 + 'e', 0x301), 0);
    CHECK_INT(utf8_compose(0x105D2, 0x307), 0x105C9); /* across planes */
    CHECK(utf8_joins(0x1161) && utf8_joins(0x9BE) && !utf8_joins('e') && !utf8_joins(UINT32_MAX));
}

int main(void) {
    every_code_point_round_trips();
    every_sequence_reads_as_the_standard_says();
    invalid_bytes_step_one_by_one();
    classes_have_the_reference_counts();
    folding_reaches_ascii();
    normalization_has_the_reference_counts();
    return test_end();
}

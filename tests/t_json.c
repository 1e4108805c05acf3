/* t_json.c - the JSON reader and writer: what the grammar has, what it has not, and round trips. */
#define DLM_TEST_ALLOC
#include "../src/json.c"
#include "test.h"

/* Parses a copy of exactly the text's size, so that ASan sees a read past it. */
static bool parses(Str text, Err *e) {
    char *p = malloc(text.n ? text.n : 1);
    ASSERT(p);
    if (text.n) memcpy(p, text.p, text.n);
    JsonDoc d = {0};
    *e = (Err){0};
    bool ok = json_parse(&d, (Str){p, text.n}, e);
    json_free(&d);
    free(p);
    return ok;
}

static void test_grammar(void) {
    static const Str good[] = {
        STR("0"),
        STR("-0"),
        STR(" \t\r\n1 "),
        STR("-1.5e+30"),
        STR("1E5"),
        STR("1e-5"),
        STR("true"),
        STR("false"),
        STR("null"),
        STR("\"\""),
        STR("[]"),
        STR("{}"),
        STR("[ ]"),
        STR("{ }"),
        STR("[1,2,[3,{}],[[]]]"),
        STR("{\"a\":{\"a\":{}},\"b\":[{\"a\":1},{\"a\":2}]}"),
        STR("{\"\":0}"),
        STR("\"\\u0000\\ud83d\\ude00\\\"\\/\\b\\f\\n\\r\\t\\\\\""),
        STR("\"\x7f\""),
        STR("\"\xc2\x80 \xe0\xa0\x80 \xed\x9f\xbf \xef\xbf\xbf \xf0\x90\x80\x80 \xf4\x8f\xbf\xbf\""),
    };
    static const Str bad[] = {
        STR(""),
        STR(" "),
        STR("-"),
        STR("+1"),
        STR("01"),
        STR("-01"),
        STR("1."),
        STR(".5"),
        STR("1e"),
        STR("1e+"),
        STR("0x10"),
        STR("1 2"),
        STR("NaN"),
        STR("Infinity"),
        STR("-Infinity"),
        STR("tru"),
        STR("True"),
        STR("nul"),
        STR("nullx"),
        STR("["),
        STR("]"),
        STR("[1"),
        STR("[1,"),
        STR("[1,]"),
        STR("[,1]"),
        STR("[1 2]"),
        STR("[1}"),
        STR("{"),
        STR("}"),
        STR("{\"a\"}"),
        STR("{\"a\":}"),
        STR("{\"a\":1,}"),
        STR("{,\"a\":1}"),
        STR("{a:1}"),
        STR("{'a':1}"),
        STR("{\"a\" 1}"),
        STR("{\"a\":1]"),
        STR("{1:1}"),
        STR("{\"a\":1 \"b\":2}"),
        STR("{\"a\":1}}"),
        STR("\""),
        STR("\"a"),
        STR("\"\\"),
        STR("\"\\\""),
        STR("\"\\x41\""),
        STR("\"\\u12\""),
        STR("\"\\u12G4\""),
        STR("\"\\ud800\""),
        STR("\"\\ud800\\u0041\""),
        STR("\"\\udc00\""),
        STR("\"\\ud800\\ud800\""),
        STR("\"\\ud83d\\n\""),
        STR("\"\n\""),
        STR("\"\0\""),
        STR("\"\x1f\""),
        STR("\"\x80\""),
        STR("\"\xc0\x80\""),
        STR("\"\xc1\xbf\""),
        STR("\"\xe0\x9f\xbf\""),
        STR("\"\xed\xa0\x80\""),
        STR("\"\xf0\x8f\xbf\xbf\""),
        STR("\"\xf4\x90\x80\x80\""),
        STR("\"\xf5\x80\x80\x80\""),
        STR("\"\xff\""),
        STR("\"\xe2\x82\""),
        STR("\"\xe2\x82"),
        STR("\xef\xbb\xbf{}"),
        STR("1\0"),
        STR("\0"),
        STR("/**/1"),
        STR("[1]//"),
        STR("\v1"),
        STR("\f1"),
        STR("{\"a\":1,\"a\":1}"),
        STR("{\"a\":1,\"\\u0061\":1}"),
        STR("[{\"b\":{\"a\":1,\"c\":2,\"a\":3}}]"),
    };
    Err e;
    for (size_t i = 0; i < COUNT_OF(good); i++)
        CHECK_MSG(parses(good[i], &e), "refused: %s: %s", good[i].p, e.msg);
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        CHECK_MSG(!parses(bad[i], &e), "taken: [%zu] %s", bad[i].n, bad[i].p);
        CHECK_ERR(e, ERR_USAGE, "invalid JSON");
    }
    CHECK(!parses(STR("{\"k\": [1, 2 3]}"), &e));
    CHECK_ERR(e, ERR_USAGE, "at byte 12: a comma or ] is wanted");
    CHECK(!parses(STR("{\"twin\":1,\"twin\":2}"), &e));
    CHECK_ERR(e, ERR_USAGE, "key \"twin\" appears twice in the object that ends at byte 18");
}

static void test_limits(void) {
    Buf b = {0};
    Err e;
    for (u32 depth = JSON_DEPTH_MAX; depth <= JSON_DEPTH_MAX + 1; depth++) {
        buf_clear(&b);
        for (u32 i = 0; i < depth; i++) buf_str(&b, i % 2 ? STR("[") : STR("{\"k\":"));
        buf_str(&b, STR("1"));
        for (u32 i = depth; i-- > 0;) buf_str(&b, i % 2 ? STR("]") : STR("}"));
        CHECK_MSG(parses(buf_view(&b), &e) == (depth == JSON_DEPTH_MAX), "depth %u: %s", depth,
                  e.msg);
    }
    CHECK_ERR(e, ERR_USAGE, "nested too deeply");
    JsonDoc d = {.nodes_max = 5};
    e = (Err){0};
    CHECK_OK(json_parse(&d, STR("[1,2,3,4]"), &e) && json_count(&d, 0) == 4, e);
    json_free(&d);
    CHECK(!json_parse(&d, STR("[1,2,3,4,5]"), &e) && !d.nodes);
    CHECK_ERR(e, ERR_USAGE, "too many values");
    buf_clear(&b);
    for (u32 i = 0; i < JSON_NUMBER_MAX; i++) buf_str(&b, STR("9"));
    CHECK(parses(buf_view(&b), &e));
    buf_str(&b, STR("9"));
    CHECK(!parses(buf_view(&b), &e));
    CHECK_ERR(e, ERR_USAGE, "this long");
    for (int twin = 0; twin < 2; twin++) { /* many keys: the sorted way */
        buf_clear(&b);
        buf_str(&b, STR("{\"first\":0"));
        for (int i = 0; i < 20000; i++) buf_printf(&b, ",\"k%d\":%d", i, i);
        buf_str(&b, twin ? STR(",\"k77\":1}") : STR("}"));
        CHECK(parses(buf_view(&b), &e) == !twin);
    }
    CHECK_ERR(e, ERR_USAGE, "key \"k77\" appears twice");
    buf_free(&b);
}

static void test_access(void) {
    static const Str text = STR(
        "{\"model\":\"dlm\",\"n\":12,\"big\":9223372036854775807,\"small\":-9223372036854775808,"
        "\"over\":9223372036854775808,\"f\":0.5,\"e\":1e3,\"whole\":100.0,\"huge\":1e999,\"neg\":-0,"
        "\"yes\":true,\"no\":false,\"nil\":null,\"esc\":\"a\\n\\u00e9\\ud83d\\ude00\","
        "\"list\":[{\"role\":\"user\"},[],\"x\"]}");
    JsonDoc d = {0};
    Err e = {0};
    if (!CHECK_OK(json_parse(&d, text, &e), e)) return;
    Str s = {0};
    bool b = false;
    i64 i = 0;
    f64 f = 0;
    CHECK_INT(json_count(&d, 0), 15);
    CHECK(json_str(&d, json_get(&d, 0, "model"), &s));
    CHECK_STR(s, STR("dlm"));
    CHECK(json_str(&d, json_get(&d, 0, "esc"), &s));
    CHECK_STR(s, STR("a\n\xc3\xa9\xf0\x9f\x98\x80"));
    static const struct {
        const char *key;
        i64 want;
        bool ok;
    } ints[] = {{"n", 12, true},     {"big", INT64_MAX, true}, {"small", INT64_MIN, true},
                {"e", 1000, true},   {"whole", 100, true},     {"neg", 0, true},
                {"over", 0, false},  {"f", 0, false},          {"huge", 0, false},
                {"model", 0, false}, {"nil", 0, false},        {"absent", 0, false}};
    for (size_t k = 0; k < COUNT_OF(ints); k++) {
        i = 0;
        CHECK_MSG(json_i64(&d, json_get(&d, 0, ints[k].key), &i) == ints[k].ok && i == ints[k].want,
                  "%s as an integer: %lld", ints[k].key, (long long)i);
    }
    CHECK(json_f64(&d, json_get(&d, 0, "f"), &f) && f == 0.5);
    CHECK(!json_f64(&d, json_get(&d, 0, "huge"), &f) && f == 0.5);
    CHECK(json_bool(&d, json_get(&d, 0, "yes"), &b) && b);
    CHECK(json_bool(&d, json_get(&d, 0, "no"), &b) && !b);
    CHECK(!json_bool(&d, json_get(&d, 0, "n"), &b) && !json_str(&d, 0, &s));
    CHECK_INT(json_type(&d, json_get(&d, 0, "nil")), JSON_NULL);
    u32 list = json_get(&d, 0, "list"), at = json_first(&d, list);
    CHECK_INT(json_count(&d, list), 3);
    CHECK(json_str(&d, json_get(&d, at, "role"), &s) && str_eq(s, STR("user")));
    at = json_next(&d, at);
    CHECK(json_type(&d, at) == JSON_ARRAY && json_count(&d, at) == 0 &&
          json_first(&d, at) == JSON_NONE);
    at = json_next(&d, at);
    CHECK(json_str(&d, at, &s) && str_eq(s, STR("x")));
    CHECK_U64(json_next(&d, at), JSON_NONE);
    CHECK_U64(json_get(&d, json_get(&d, 0, "absent"), "x"), JSON_NONE);
    CHECK_INT(json_type(&d, JSON_NONE), JSON_ABSENT);
    json_free(&d);
}

/* ---- the writer ---- */

static void check_spelling(Str s, Str want) {
    Buf b = {0};
    json_put_str(&b, s);
    CHECK_STR(buf_view(&b), want);
    buf_free(&b);
}

static void test_strings(void) {
    check_spelling(STR(""), STR("\"\""));
    check_spelling(STR("a\"b\\c/\n\t\r\b\f\1\x1f\x7f"),
                   STR("\"a\\\"b\\\\c/\\n\\t\\r\\b\\f\\u0001\\u001f\x7f\""));
    check_spelling(STR("a\0b"), STR("\"a\\u0000b\""));
    check_spelling(STR("\xe2\x82\xac\xf0\x9f\x98\x80"), STR("\"\xe2\x82\xac\xf0\x9f\x98\x80\""));
    /* what bytes.decode(errors="replace") of Python gives */
    check_spelling(STR("\xff"), STR("\"\xef\xbf\xbd\""));
    check_spelling(STR("\xe2\x82"), STR("\"\xef\xbf\xbd\""));
    check_spelling(STR("\xe2\x82x"), STR("\"\xef\xbf\xbdx\""));
    check_spelling(STR("\xc0\x80"), STR("\"\xef\xbf\xbd\xef\xbf\xbd\""));
    check_spelling(STR("\xed\xa0\x80"), STR("\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""));
    check_spelling(STR("\xf0\x9f\x98"), STR("\"\xef\xbf\xbd\""));
    u64 rng = 3;
    int wrong = 0;
    for (int i = 0; i < 20000; i++) { /* any bytes make JSON; valid UTF-8 comes back as it was */
        char bytes[24];
        size_t n = (size_t)test_rng_below(&rng, sizeof bytes);
        for (size_t k = 0; k < n; k++) bytes[k] = (char)(test_rng(&rng) >> (i % 3 ? 57 : 56));
        Buf b = {0}, again = {0};
        json_put_str(&b, (Str){bytes, n});
        JsonDoc d = {0};
        Str s = {0};
        bool ok = json_parse(&d, buf_view(&b), NULL) && json_str(&d, 0, &s);
        if (ok && i % 3) ok = str_eq(s, (Str){bytes, n});
        if (ok) json_put_str(&again, s);
        wrong += !ok || !str_eq(buf_view(&b), buf_view(&again));
        json_free(&d);
        buf_free(&b);
        buf_free(&again);
    }
    CHECK_INT(wrong, 0);
}

static void test_numbers(void) {
    static const struct {
        f64 v;
        const char *want;
    } known[] = {{0, "0"},
                 {-0.0, "-0"},
                 {1, "1"},
                 {0.1, "0.1"},
                 {1e21, "1e+21"},
                 {-2.5, "-2.5"},
                 {1.0 / 3, "0.3333333333333333"}};
    for (size_t i = 0; i < COUNT_OF(known); i++) {
        Buf b = {0};
        json_put_f64(&b, known[i].v);
        CHECK_STR(buf_view(&b), str_of(known[i].want));
        buf_free(&b);
    }
    u64 rng = 5;
    int wrong = 0;
    for (int i = 0; i < 50000; i++) {
        u64 bits = test_rng(&rng);
        f64 v, back = 0;
        memcpy(&v, &bits, sizeof v);
        bool finite = v - v == 0;
        Buf b = {0};
        json_put_f64(&b, v);
        JsonDoc d = {0};
        if (!json_parse(&d, buf_view(&b), NULL))
            wrong++;
        else if (!finite)
            wrong += json_type(&d, 0) != JSON_NULL;
        else
            wrong += !json_f64(&d, 0, &back) || memcmp(&v, &back, sizeof v) != 0;
        json_free(&d);
        buf_free(&b);
    }
    CHECK_INT(wrong, 0);
    Buf b = {0};
    json_put_f64(&b, strtod("inf", NULL));
    json_put_f64(&b, strtod("nan", NULL));
    CHECK_STR(buf_view(&b), STR("nullnull"));
    buf_free(&b);
}

/* ---- damage ---- */

static void test_damage(void) {
    static const Str good =
        STR("{\"a\":[1,2.5e3,\"x\\u00e9\\ud83d\\ude00\xc3\xa9\",true,null],\"b\":{\"c\":[{}]}}");
    Err e;
    for (size_t n = 0; n < good.n; n++) CHECK(!parses((Str){good.p, n}, &e));
    CHECK(parses(good, &e));
    u64 rng = 11;
    int taken = 0;
    for (int i = 0; i < 20000; i++) {
        char p[96];
        memcpy(p, good.p, good.n);
        for (u64 k = test_rng_below(&rng, 3) + 1; k > 0; k--) {
            static const char likely[] = "{}[]\",:\\u0123eE+-.\xed\xa0\0 \n";
            p[test_rng_below(&rng, good.n)] = likely[test_rng_below(&rng, sizeof likely)];
        }
        taken += parses((Str){p, good.n}, &e);
    }
    CHECK_MSG(taken > 20 && taken < 10000, "%d of 20000 damaged texts are taken", taken);
}

static bool parse_all(void *arg, Err *e) {
    JsonDoc d = {0};
    bool ok = json_parse(&d, *(Str *)arg, e);
    json_free(&d);
    return ok;
}

int main(void) {
    test_grammar();
    test_limits();
    test_access();
    test_strings();
    test_numbers();
    test_damage();
    Buf b = {0};
    buf_str(&b, STR("{\"a\\n\":0"));
    for (int i = 0; i < 40; i++) buf_printf(&b, ",\"k%d\":[]", i);
    buf_str(&b, STR("}"));
    Str text = buf_view(&b);
    CHECK_INT(test_alloc_failures(parse_all, &text),
              4); /* nodes, more nodes, unescaped, sorted keys */
    buf_free(&b);
    return test_end();
}

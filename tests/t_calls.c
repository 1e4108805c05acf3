/* t_calls.c - calls of tools in answers: what is one, what only looks like one, and what must wait. */
#include "../src/calls.c"
#include "test.h"

#define ONE \
    "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, {}], \"b\":\"\\\"\"}}\n</tool_call>"
#define TWO "<tool_call>{\"name\":\"g\",\"arguments\":{}}</tool_call>"

static void check_read(void) {
    static const struct {
        const char *answer, *text;
        i32 n;
        const char *name, *arguments; /* of the first */
    } cases[] = {
        {"", "", 0, NULL, NULL},
        {"just text", "just text", 0, NULL, NULL},
        {ONE, "", 1, "f", "{\"a\": [1, {}], \"b\":\"\\\"\"}"},
        {"Let me see.\n" ONE "\n" TWO "\n", "Let me see.", 2, "f",
         "{\"a\": [1, {}], \"b\":\"\\\"\"}"},
        {"\n\n" TWO TWO, "", 2, "g", "{}"},
        {"  a                 " TWO, "  a ", 1, "g", "{}"}, /* 17 blanks: one is text */
        {"<tool_call>{\"name\":\"g\",\"arguments\":{}}", "", 1, "g", "{}"}, /* ended by the end */
        {"<tool_call>{\"name\":\"g\",\"arguments\":\"{\\\"x\\\":1}\"}</tool_call>", "", 1, "g",
         "{\"x\":1}"},
        {"<tool_call>{\"arguments\":{},\"name\":\"\\u0067\"}</tool_call>", "", 1, "g", "{}"},
    };
    static const char *const texts[] = {
        "<tool_call>",
        "<tool_call></tool_call>",
        "<tool_call>{\"name\":\"g\"}</tool_call>",
        "<tool_call>{\"name\":\"\",\"arguments\":{}}</tool_call>",
        "<tool_call>{\"name\":1,\"arguments\":{}}</tool_call>",
        "<tool_call>{\"name\":\"g\",\"arguments\":[]}</tool_call>",
        "<tool_call>{\"name\":\"g\",\"arguments\":{}</tool_call>",
        "<tool_call>[]</tool_call>",
        TWO " and more text",
        TWO "<tool_call>",
        "<tool_call> \v{\"name\":\"g\",\"arguments\":{}}</tool_call>",
        "</tool_call>" TWO "<",
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Calls c;
        calls_read(&c, str_of(cases[i].answer));
        CHECK_MSG(c.n == cases[i].n, "case %zu: %d calls", i, c.n);
        CHECK_STR(c.text, str_of(cases[i].text));
        if (c.n && cases[i].n) {
            CHECK_STR(c.calls[0].name, str_of(cases[i].name));
            CHECK_STR(c.calls[0].arguments, str_of(cases[i].arguments));
        }
        calls_free(&c);
    }
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        Calls c;
        calls_read(&c, str_of(texts[i]));
        CHECK_MSG(c.n == 0 && str_eq(c.text, str_of(texts[i])), "text %zu", i);
        calls_free(&c);
    }
}

static void check_many(void) {
    Buf text = {0};
    for (int i = 0; i <= CALLS_MAX; i++) {
        Calls c;
        buf_str(&text, STR(TWO));
        calls_read(&c, buf_view(&text));
        CHECK_INT(c.n, i < CALLS_MAX ? i + 1 : 0);
        calls_free(&c);
    }
    buf_free(&text);
}

static void check_held(void) {
    static const struct {
        const char *text;
        size_t held;
    } cases[] = {{"", 0},
                 {"abc", 0},
                 {"abc<", 1},
                 {"abc \n", 2},
                 {"a                 ", 16},
                 {"a <tool", 6},
                 {"a <tool_call", 11},
                 {"a <tool_call>", 12},
                 {"<tool_call>x", 12},
                 {"<tool>", 0},
                 {"<<", 1},
                 {"<tool_<tool_", 6}};
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        CHECK_MSG(calls_held(str_of(cases[i].text)) == cases[i].held, "%s", cases[i].text);
}

/* A zero byte is no white space, and nothing to pass over. */
static void check_zero(void) {
    Str answer = STR(TWO "\0");
    Calls c;
    calls_read(&c, answer);
    CHECK(c.n == 0 && str_eq(c.text, answer));
    calls_free(&c);
}

/* The n-th allocation fails: all is text then, and nothing is kept. */
static void check_memory(void) {
#ifdef DLM_TEST_ALLOC
    for (i64 n = 1; n < 20; n++) {
        Calls c;
        mem_test_calls = 0, mem_test_fail_at = n;
        calls_read(&c, STR("x" ONE TWO));
        mem_test_fail_at = 0;
        CHECK((c.n == 2 && str_eq(c.text, STR("x"))) || (c.n == 0 && c.text.n > 1));
        calls_free(&c);
        CHECK_INT(mem_test_live, 0);
    }
#endif
}

int main(void) {
    check_read();
    check_many();
    check_held();
    check_zero();
    check_memory();
    return test_end();
}

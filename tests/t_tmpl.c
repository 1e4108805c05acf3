/* t_tmpl.c - chat templates against the jinja2 package's renderings, the trust of every byte, limits.
 *
 * The renderings are in tests/golden/templates.json, made by tests/py/tmpl_golden.py. */
#define DLM_TEST_ALLOC
#include "../src/tmpl.c"
#include "test.h"

#define MSGS_MAX 16

typedef struct {
    TmplMsg m[MSGS_MAX];
    size_t n;
    TmplData tools, more;
} Talk;

static void put_times(Buf *b, const char *part, int n) {
    while (n-- > 0) buf_str(b, str_of(part));
}

static TmplVars vars_of(Str bos, Str eos, bool generate, i64 now) {
    return (TmplVars){
        .bos_token = bos, .eos_token = eos, .add_generation_prompt = generate, .now_unix = now};
}

static Str str_at(const JsonDoc *d, u32 node) {
    Str s = {NULL, 0};
    json_str(d, node, &s);
    return s;
}

static TmplData data_at(const JsonDoc *d, u32 node) {
    return (TmplData){json_type(d, node) == JSON_ABSENT ? NULL : d, node};
}

static Talk talk_at(const JsonDoc *d, u32 list, u32 index) {
    Talk t = {.n = 0};
    u32 node = json_first(d, list);
    while (index-- > 0) node = json_next(d, node);
    u32 msgs = json_get(d, node, "messages"), m = json_first(d, msgs);
    ASSERT(json_count(d, msgs) <= MSGS_MAX);
    for (t.n = 0; t.n < json_count(d, msgs); t.n++, m = json_next(d, m)) {
        u32 content = json_get(d, m, "content");
        t.m[t.n] = tmpl_msg(str_at(d, json_get(d, m, "role")), str_at(d, content));
        t.m[t.n].more = data_at(d, m);
        if (json_type(d, content) != JSON_STRING) t.m[t.n].content_data = data_at(d, content);
    }
    t.tools = data_at(d, json_get(d, node, "tools"));
    t.more = data_at(d, json_get(d, node, "vars"));
    return t;
}

/* Renders and compares; `want` of type null: an error is wanted. */
static void check_render(const char *what, Str source, const Talk *t, const TmplVars *v,
                         const JsonDoc *d, u32 want) {
    TmplOut out = {0};
    Err e = {0};
    TmplVars all = *v;
    all.tools = t->tools;
    all.more = t->more;
    bool ok = tmpl_render(source, t->m, t->n, &all, &out, &e);
    Str text = buf_view(&out.text);
    if (json_type(d, want) == JSON_NULL) {
        CHECK_MSG(!ok && e.code != ERR_NONE && !out.text.p, "%s: renders '%.*s', jinja2 refuses",
                  what, STR_ARG(text));
    } else if (CHECK_MSG(ok, "%s: %s", what, e.msg)) {
        CHECK_MSG(str_eq(text, str_at(d, want)), "%s:\n got '%.*s'\nwant '%.*s'", what, (int)text.n,
                  text.p, (int)str_at(d, want).n, str_at(d, want).p);
        CHECK_INT(out.trust.n, out.text.n);
    }
    tmpl_out_free(&out);
}

static void test_golden(const JsonDoc *d, i64 now) {
    u32 talks = json_get(d, 0, "conversations"), list = json_get(d, 0, "templates");
    CHECK(json_count(d, list) >= 10 && json_count(d, talks) >= 10);
    u32 t = json_first(d, list);
    for (u32 n = json_count(d, list); n > 0; n--, t = json_next(d, t)) {
        u32 want = json_first(d, json_get(d, t, "want"));
        for (u32 i = 0; i < 2 * json_count(d, talks); i++, want = json_next(d, want)) {
            Talk talk = talk_at(d, talks, i / 2);
            TmplVars v = vars_of(str_at(d, json_get(d, t, "bos")), str_at(d, json_get(d, t, "eos")),
                                 i % 2, now);
            char what[160];
            snprintf(what, sizeof what, "%.*s, conversation %u, add_generation_prompt %u",
                     STR_ARG(str_at(d, json_get(d, t, "name"))), i / 2, i % 2);
            check_render(what, str_at(d, json_get(d, t, "source")), &talk, &v, d, want);
        }
    }
}

static void test_snippets(const JsonDoc *d, i64 now) {
    u32 list = json_get(d, 0, "snippets"), pair = json_first(d, list);
    Talk talk = talk_at(d, json_get(d, 0, "conversations"), 2);
    TmplVars v = vars_of(STR("<s>"), STR("</s>"), true, now);
    CHECK(json_count(d, list) > 100);
    for (u32 n = json_count(d, list); n > 0; n--, pair = json_next(d, pair)) {
        u32 source = json_first(d, pair);
        char what[400];
        snprintf(what, sizeof what, "%.*s", (int)MIN_OF(str_at(d, source).n, 390),
                 str_at(d, source).p);
        check_render(what, str_at(d, source), &talk, &v, d, json_next(d, source));
    }
}

/* ---- trust: a byte is the template's exactly when it is no message's ---- */

/* Messages made of one character that no template has: its bytes, and only they, are untrusted. */
static void test_trust_of_templates(const JsonDoc *d, i64 now) {
    const Talk talk = {.m = {tmpl_msg(STR("system"), STR("\xc2\xa7")),
                             tmpl_msg(STR("user"), STR("\xc2\xa7\xc2\xa7 ")),
                             tmpl_msg(STR("assistant"), STR("\xc2\xa7")),
                             tmpl_msg(STR("user"), STR("\xc2\xa7\xc2\xa7\xc2\xa7"))},
                       .n = 4};
    u32 list = json_get(d, 0, "templates"), t = json_first(d, list);
    for (u32 n = json_count(d, list); n > 0; n--, t = json_next(d, t)) {
        TmplVars v =
            vars_of(str_at(d, json_get(d, t, "bos")), str_at(d, json_get(d, t, "eos")), true, now);
        Str source = str_at(d, json_get(d, t, "source")), name = str_at(d, json_get(d, t, "name"));
        size_t system = str_find(source, STR("ystem"), 0) == SIZE_MAX ? 1 : 0, marks = 0, wrong = 0;
        TmplOut out = {0};
        Err e = {0};
        if (!tmpl_render(source, talk.m + system, talk.n - system, &v, &out, &e)) {
            err_clear(&e); /* those that take no system message */
            CHECK_OK(tmpl_render(source, talk.m + 1, talk.n - 1, &v, &out, &e), e);
        }
        for (size_t i = 0; i < out.text.n; i++) {
            bool mark = out.text.p[i] == '\xc2' || out.text.p[i] == '\xa7',
                 space = out.text.p[i] == ' ';
            marks += mark;
            wrong += out.trust.p[i] != !mark && !(space && !out.trust.p[i]);
        }
        CHECK_MSG(marks >= 12 && wrong == 0, "%.*s: %zu marks, %zu bytes of the wrong trust",
                  STR_ARG(name), marks, wrong);
        tmpl_out_free(&out);
    }
}

/* Renders over one user message and compares the trust, spelled with T and u. */
static void check_trust(const char *source, const char *content, const char *want_text,
                        const char *want_trust) {
    TmplMsg m = {.role = STR("user"), .content = str_of(content)};
    TmplVars v = vars_of(STR("<s>"), STR("</s>"), true, 0);
    TmplOut out = {0};
    Err e = {0};
    if (CHECK_MSG(tmpl_render(str_of(source), &m, 1, &v, &out, &e), "%s: %s", source, e.msg)) {
        for (size_t i = 0; i < out.trust.n; i++) out.trust.p[i] = out.trust.p[i] ? 'T' : 'u';
        CHECK_STR(buf_view(&out.text), str_of(want_text));
        CHECK_MSG(str_eq(buf_view(&out.trust), str_of(want_trust)), "%s: trust is %s, want %s",
                  source, out.trust.p, want_trust);
    }
    tmpl_out_free(&out);
}

static void test_trust_of_operations(void) {
#define C "messages[0].content"
    check_trust("a{{ " C " }}b", "xy", "axyb", "TuuT");
    check_trust("{{ bos_token + " C " ~ eos_token }}", "x", "<s>x</s>", "TTTuTTTT");
    check_trust("{{ messages[0].role }}{{ messages[0]['content'] }}", "x", "userx", "TTTTu");
    check_trust("{{ ('[' + " C " + ']') | trim | upper }}", "ab", "[AB]", "TuuT");
    check_trust("{{ ('[' + " C " + ']')[1:-1] }}{{ ('[' + " C ")[::-1] }}", "ab", "abba[", "uuuuT");
    check_trust("{{ ('ab' + " C ") | replace('b', 'BB') }}", "bc", "aBBBBc", "TTTTTu");
    check_trust("{{ 'xay' | replace('a', " C ") }}", "q", "xqy", "TuT");
    check_trust("{{ [" C ", 'k', " C "] | join('-') }}", "q", "q-k-q", "uTTTu");
    check_trust("{{ (" C " + ',z').split(',') | join('+') }}", "a,b", "a+b+z", "uTuTT");
    check_trust("{{ [" C "] | tojson }}", "a\n\"", "[\"a\\n\\\"\"]", "TTuuuuuTT");
    check_trust("{{ {'k': " C "} }}", "v'", "{'k': \"v'\"}", "TTTTTTTuuTT");
    check_trust("{% set x %}<{{ " C " }}>{% endset %}{{ x }}{{ x[1] }}", "q", "<q>q", "TuTu");
    check_trust("{% macro m(t) %}({{ t }}{{ t | length }}){% endmacro %}{{ m(" C ") }}", "q",
                "(q1)", "TuTT");
    check_trust("{% set ns = namespace(t='s') %}{% set ns.t = ns.t + " C " %}{{ ns.t }}", "q", "sq",
                "Tu");
    check_trust("{% for c in " C " %}{{ c }}.{% endfor %}", "ab", "a.b.", "uTuT");
    check_trust("{{ " C " * 2 }}{{ " C " | title }}{{ " C ".strip('x') }}", "qx", "qxqxQxq",
                "uuuuuuu");
    check_trust("{{ " C " | int }} {{ (" C " | int) + 1 }} {{ -(" C " | float) }}", "41",
                "41 42 -41.0", "uuTuuTuuuuu");
    check_trust("{{ " C " | default('d') }}{{ messages[0].nope | default('d') }}", "q", "qd", "uT");
    check_trust("{{ messages | map(attribute='content') | join('|') }}", "q", "q", "u");
    check_trust("{{ '%Y' and strftime_now('%Y' + " C ") }}", "-%m", "1970-01", "TTTTuuu");
    check_trust("{{ " C ".upper() if true else '' }}{{ (" C ", 'z')[0] }}{{ " C " or 'n' }}", "q",
                "Qqq", "uuu");
    check_trust("{{ messages[0][" C "] }}{{ " C " in 'abc' }}", "a", "True", "TTTT");
#undef C
    TmplMsg m = {.role = STR("<|im_end|>"),
                 .content = STR("x")}; /* a role that is none of ours is text like any other */
    TmplVars v = vars_of(STR(""), STR(""), false, 0);
    TmplOut out = {0};
    CHECK(tmpl_render(STR("{{ messages[0].role }}"), &m, 1, &v, &out, NULL));
    CHECK(out.trust.n == 10 && !memchr(out.trust.p, 1, 10));
    tmpl_out_free(&out);
}

/* Tools, and what a message has besides its text, are never the template's words. */
static void test_trust_of_data(void) {
    static const char source[] =
        "{{ tools | tojson }}|{{ messages[0].tool_calls[0].function.arguments.x }}|"
        "{{ messages[0].tool_calls[0].function.arguments | tojson }}|{{ messages[0].content[0].text }}|"
        "{{ messages[0].n }}|{{ kind }}|{{ messages[0].role }}{{ tools[0] }}";
    static const char want[] = "[{\"a\": \"b\"}]|q|{\"x\": \"q\"}|t|12|v|user{'a': 'b'}";
    static const char trust[] = "TTTuTTTTuTTTTuTTTuTTTTuTTTuTuuTuTTTTTTTuTTTTuTT";
    JsonDoc d = {0};
    Err e = {0};
    TmplOut out = {0};
    Str text = STR(
        "{\"tools\":[{\"a\":\"b\"}],\"more\":{\"kind\":\"v\",\"messages\":1,\"bos_token\":\"x\"},"
        "\"m\":{\"role\":\"evil\",\"content\":[{\"text\":\"t\"}],\"n\":12,\"tool_calls\":"
        "[{\"function\":{\"arguments\":\"{\\\"x\\\":\\\"q\\\"}\"}}]}}");
    if (!CHECK_OK(json_parse(&d, text, &e), e)) return;
    u32 m = json_get(&d, 0, "m");
    TmplMsg msg = {
        .role = STR("user"), .content_data = {&d, json_get(&d, m, "content")}, .more = {&d, m}};
    TmplVars v = vars_of(STR(""), STR(""), true, 0);
    v.tools = (TmplData){&d, json_get(&d, 0, "tools")};
    v.more = (TmplData){&d, json_get(&d, 0, "more")};
    if (CHECK_OK(tmpl_render(str_of(source), &msg, 1, &v, &out, &e), e)) {
        for (size_t i = 0; i < out.trust.n; i++) out.trust.p[i] = out.trust.p[i] ? 'T' : 'u';
        CHECK_STR(buf_view(&out.text), str_of(want));
        CHECK_STR(buf_view(&out.trust), str_of(trust));
    }
    tmpl_out_free(&out);
    /* A document as deep as JSON goes, and one with a number that is too long. */
    Buf deep = {0};
    put_times(&deep, "[", 64);
    put_times(&deep, "]", 64);
    json_free(&d);
    d = (JsonDoc){0};
    CHECK_OK(json_parse(&d, buf_view(&deep), &e), e);
    v.more = (TmplData){0};
    v.tools = (TmplData){&d, 0};
    msg = tmpl_msg(STR("user"), STR("x"));
    CHECK_OK(tmpl_render(STR("{{ tools | length }}"), &msg, 1, &v, &out, &e), e);
    tmpl_out_free(&out);
    json_free(&d);
    d = (JsonDoc){0};
    CHECK_OK(json_parse(&d, STR("[99999999999999999999]"), &e), e);
    CHECK(!tmpl_render(STR("{{ tools }}"), &msg, 1, &v, &out, &e));
    CHECK_ERR(e, ERR_MODEL, "does not fit 64 bits: 99999999999999999999");
    json_free(&d);
    buf_free(&deep);
}

/* ---- errors say where and what ---- */

static void check_error(const char *source, ErrCode code, const char *part) {
    TmplMsg m = {.role = STR("user"), .content = STR("text")};
    TmplVars v = vars_of(STR("<s>"), STR("</s>"), true, 0);
    TmplOut out = {0};
    Err e = {0};
    CHECK_MSG(!tmpl_render(str_of(source), &m, 1, &v, &out, &e), "%s renders", source);
    CHECK_ERR(e, code, part);
    CHECK(!out.text.p && !out.trust.p);
}

static void test_errors(void) {
    check_error("a\nb\n{{ x.y }}", ERR_MODEL, "chat template, line 3: 'x' is undefined");
    check_error("\n\n{% include 'x' %}", ERR_MODEL,
                "line 3: the statement 'include' is not supported");
    check_error("{{ 1|unique }}", ERR_MODEL, "line 1: the filter 'unique' is not supported");
    check_error("{{ 'a'|map('map') }}", ERR_MODEL, "map with a filter that dlm does not know");
    check_error("{{ messages.append(1) }}", ERR_MODEL, "a list has no method 'append' in dlm");
    check_error("{{ 'x'.__class__.__mro__ }}", ERR_MODEL, "'__class__' is undefined");
    check_error("{{ cycler('a') }}", ERR_MODEL,
                "'cycler' is undefined, or a function that dlm does not have");
    check_error("{{ 1 < 2 < 3 }}", ERR_MODEL, "chain of comparisons");
    check_error("{% for x in messages recursive %}{% endfor %}", ERR_MODEL, "recursive loops");
    check_error("{% for x in messages %}\n", ERR_MODEL, "line 1: a statement that does not end");
    check_error("{{ 'a' + 1 }}", ERR_MODEL, "a string + an int is not supported");
    check_error("{{ raise_exception('alternate, please') }}", ERR_USAGE,
                "refuses this conversation: alternate, please");
    check_error("{{ 9223372036854775807 + 1 }}", ERR_MODEL, "does not fit 64 bits");
    check_error("{{ 99999999999999999999 }}", ERR_MODEL, "a number that does not fit");
}

/* ---- limits ---- */

/* What looks at much and makes little is work as well. */
static void test_work(void) {
    static const char *const looks[] = {"r | select('string')", "s.strip('a')",
                                        "(' ' * 300000) | int", "s.count('')"};
    for (size_t i = 0; i < COUNT_OF(looks); i++) {
        char source[200];
        snprintf(source, sizeof source,
                 "{%% set r = range(100000) %%}{%% set s = 'a' * 300000 %%}"
                 "{%% for i in range(400000) %%}{%% set x = %s %%}{%% endfor %%}",
                 looks[i]);
        check_error(source, ERR_MODEL, "too");
    }
}

static void test_limits(void) {
    check_error(
        "{% set r = range(100000) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
        ERR_MODEL, "runs too long");
    check_error("{{ 'aaaaaaaaaaaaaaaa' * 1000000000 }}", ERR_MEMORY, "does not fit");
    check_error("{{ range(2000000) }}", ERR_MODEL, "grows beyond");
    check_error("{{ range(300000) | map(attribute='a' * 1000000) | list }}", ERR_MODEL,
                "runs too long");
    check_error("{% set ns = namespace(t='aaaaaaaa') %}"
                "{% for i in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}",
                ERR_MODEL, "too");
    check_error(
        "{% set ns = namespace(t=[]) %}{% for i in range(99) %}{% set ns.t = [ns.t] %}{% endfor %}{{ ns.t }}",
        ERR_MODEL, "nested more than");
    check_error(
        "{% set ns = namespace(t=[], u=[]) %}{% for i in range(99) %}{% set ns.t = [ns.t] %}"
        "{% set ns.u = [ns.u] %}{% endfor %}{{ ns.t == ns.u }}",
        ERR_MODEL, "nested more than");
    check_error(
        "{% set ns = namespace(t=[]) %}{% for i in range(99) %}{% set ns.t = [ns.t] %}{% endfor %}"
        "{{ ns.t | tojson }}",
        ERR_MODEL, "nested more than");
    check_error("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", ERR_MODEL,
                "macros call macros more than 32 deep");
    static const struct {
        const char *open, *middle, *close;
    } deep[] = {
        {"(", "1", ")"},        {"[", "", "]"},   {"-", "1", ""},   {"not ", "1", ""},
        {"{1:", "1", "}"},      {"x[", "1", "]"}, {"f(", "1", ")"}, {"1 if 1 else ", "1", ""},
        {"1 + (2 * ", "1", ")"}};
    for (size_t i = 0; i < COUNT_OF(deep); i++) {
        Buf b = {0};
        buf_str(&b, STR("{{ "));
        put_times(&b, deep[i].open, 20000);
        buf_str(&b, str_of(deep[i].middle));
        put_times(&b, deep[i].close, 20000);
        buf_str(&b, STR(" }}"));
        check_error(b.p, ERR_MODEL, "nested more than 64 deep");
        buf_free(&b);
    }
    Buf b = {0};
    put_times(&b, "{% if true %}", 60);
    check_error(b.p, ERR_MODEL, "statements nested more than");
    buf_clear(&b);
    put_times(&b, "{% for i in [1] %}", 30);
    put_times(&b, "{% endfor %}", 30);
    TmplVars v = {0};
    TmplOut out = {0};
    Err e = {0};
    CHECK_OK(tmpl_render(buf_view(&b), NULL, 0, &v, &out, &e), e);
    tmpl_out_free(&out);
    buf_clear(&b);
    buf_str(&b, STR("{{ ["));
    put_times(&b, "1,", 600);
    buf_str(&b, STR("] }}"));
    check_error(b.p, ERR_MODEL, "more than 512 values");
    buf_free(&b);
}

/* A prompt of 16 MiB passes through the usual filters, in linear time. */
static void test_large(void) {
    size_t n = (size_t)16 << 20;
    char *p = malloc(n);
    ASSERT(p);
    memset(p, 'a', n);
    p[0] = p[n - 1] = ' ';
    TmplMsg m = {.role = STR("user"), .content = {p, n}};
    TmplVars v = {0};
    TmplOut out = {0};
    Err e = {0};
    Str source = STR("{% for m in messages %}{{ '<' + m.role + '>' + m['content'] | trim + '</>' }}"
                     "{% if 'aab' in m.content %}!{% endif %}{{ m.content | length }}{% endfor %}");
    if (CHECK_OK(tmpl_render(source, &m, 1, &v, &out, &e), e)) {
        CHECK_INT(out.text.n, n - 2 + 6 + 3 + 8);
        CHECK(out.trust.p[5] == 1 && out.trust.p[6] == 0 && out.trust.p[out.trust.n - 1] == 1);
    }
    tmpl_out_free(&out);
    /* text that almost matches itself everywhere is refused, not searched for a day */
    TmplMsg two[] = {m, tmpl_msg(STR("user"), (Str){p + 1, n / 2})};
    p[n / 2] = 'b';
    CHECK(!tmpl_render(STR("{{ messages[1].content in messages[0].content[5:] ~ 'b' }}"), two, 2,
                       &v, &out, &e));
    CHECK_ERR(e, ERR_MODEL, "runs too long");
    free(p);
}

/* ---- damage, and refused memory ---- */

static void test_damage(const JsonDoc *d, i64 now) {
    static const char *const parts[] = {
        "{{",   "}}",    "{%",     "%}",   "{#",       "-",  "+",  "'",    "(",
        ")",    "[",     "]",      "|",    ":",        ",",  "\n", " if ", " else ",
        " in ", " not ", "endfor", "loop", "messages", "\\", "0"};
    u32 list = json_get(d, 0, "templates"), t = json_first(d, list);
    Talk talk = talk_at(d, json_get(d, 0, "conversations"), 7);
    u64 rng = 17;
    int rendered = 0, tried = 0;
    for (u32 n = json_count(d, list); n > 0; n--, t = json_next(d, t)) {
        Str source = str_at(d, json_get(d, t, "source"));
        for (int i = 0; i < 300; i++) {
            Buf b = {0};
            size_t at = (size_t)test_rng_below(&rng, source.n),
                   skip = (size_t)test_rng_below(&rng, 6);
            buf_str(&b, str_cut(source, 0, at));
            buf_str(&b, str_of(parts[test_rng_below(&rng, COUNT_OF(parts))]));
            buf_str(&b, str_cut(source, at + skip, i % 4 ? source.n : at + 40));
            TmplVars v = vars_of(STR("<s>"), STR("</s>"), true, now);
            TmplOut out = {0};
            Err e = {0};
            bool ok = tmpl_render(buf_view(&b), talk.m, talk.n, &v, &out, &e);
            tried++;
            rendered += ok;
            if (ok != (e.code == ERR_NONE) || out.text.n != out.trust.n) CHECK_ERR(e, ERR_NONE, "");
            tmpl_out_free(&out);
            buf_free(&b);
        }
    }
    CHECK_MSG(rendered > tried / 20 && rendered < tried, "%d of %d damaged templates render",
              rendered, tried);
}

static bool render_all(void *arg, Err *e) {
    const Talk *t = arg;
    TmplVars v = vars_of(STR("<s>"), STR("</s>"), true, 0);
    v.tools = t->tools;
    TmplOut out = {0};
    Str source = STR(
        "{% macro f(x) %}{{ x | upper }}{% endmacro %}{% for m in messages %}{{ m.role ~ m.content }}"
        "{{ tools | tojson(sort_keys=true) }}{% set ns = namespace(a=[1, 2]) %}{{ m | tojson }}"
        "{{ f(m.content) * 900 }}{{ range(3000) }}"
        "{% endfor %}");
    bool ok = tmpl_render(source, t->m, t->n, &v, &out, e);
    tmpl_out_free(&out);
    return ok;
}

static void test_file_of_templates(const char *path, bool ours) {
    Str text = test_file(path);
    JsonDoc d = {0};
    Err e = {0};
    i64 now = 0;
    if (CHECK_OK(json_parse(&d, text, &e), e) &&
        CHECK(json_i64(&d, json_get(&d, 0, "now"), &now))) {
        Talk talk = talk_at(&d, json_get(&d, 0, "conversations"), 2);
        test_golden(&d, now);
        if (ours) test_damage(&d, now);
        if (ours) CHECK(test_alloc_failures(render_all, &talk) > 10);
        if (ours && json_count(&d, json_get(&d, 0, "snippets"))) {
            test_snippets(&d, now);
            test_trust_of_templates(&d, now);
        }
    }
    json_free(&d);
    test_file_free(text);
}

/* A file that tests/py/tmpl_golden.py made of other templates can be given instead. */
int main(int argc, char **argv) {
    if (argc > 1) {
        test_file_of_templates(argv[1], false);
        return test_end();
    }
    test_file_of_templates("tests/golden/templates.json", true);
    test_file_of_templates("tests/golden/templates-tools.json", true);
    test_trust_of_operations();
    test_trust_of_data();
    test_errors();
    test_work();
    test_limits();
    test_large();
    return test_end();
}

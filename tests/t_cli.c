/* t_cli.c - the parts of the command line that are functions: numbers, names, the table, pictures. */
#include "../src/cli.c"
#include "test.h"

static void test_numbers(void) {
    static const struct {
        const char *text;
        bool ok;
        i64 value;
    } ints[] = {{"0", true, 0},    {"-1", true, -1},
                {"007", true, 7},  {"9223372036854775807", true, INT64_MAX},
                {"", false, 0},    {"-", false, 0},
                {"+1", false, 0},  {" 1", false, 0},
                {"1 ", false, 0},  {"0x10", false, 0},
                {"1e3", false, 0}, {"9223372036854775808", false, 0},
                {"--1", false, 0}, {"000000000000000000000000001", false, 0}};
    for (size_t i = 0; i < COUNT_OF(ints); i++) {
        i64 v = 0;
        bool ok = cli_integer_(str_of(ints[i].text), &v);
        CHECK_MSG(ok == ints[i].ok && (!ok || v == ints[i].value), "'%s': %d, %lld", ints[i].text,
                  ok, (long long)v);
    }
    static const struct {
        const char *text;
        bool ok;
        f64 value;
    } reals[] = {
        {"0", true, 0},       {"0.9", true, 0.9},   {".5", true, 0.5},   {"1.", true, 1},
        {"1e-3", true, 1e-3}, {"-2.5", true, -2.5}, {"", false, 0},      {".", false, 0},
        {"1,5", false, 0},    {"nan", false, 0},    {"inf", false, 0},   {"0x1p3", false, 0},
        {"1e999", false, 0},  {" 1", false, 0},     {"1.2.3", false, 0}, {"e5", false, 0}};
    for (size_t i = 0; i < COUNT_OF(reals); i++) {
        f64 v = 0;
        bool ok = cli_real_(reals[i].text, &v);
        CHECK_MSG(ok == reals[i].ok && (!ok || v == reals[i].value), "'%s': %d, %g", reals[i].text,
                  ok, v);
    }
}

static const char *guess(const char *typed) {
    CliGuess g = {.typed = str_of(typed)};
    for (size_t i = 0; i < COUNT_OF(CLI_VERBS); i++) cli_guess_(&g, str_of(CLI_VERBS[i].name));
    static char best[CLI_NAME_MAX];
    snprintf(best, sizeof best, "%.*s", STR_ARG(g.best));
    return best;
}

static void test_guesses(void) {
    CHECK_INT(cli_distance_(STR("kitten"), STR("sitting")), 3);
    CHECK_INT(cli_distance_(STR(""), STR("abc")), 3);
    CHECK_INT(cli_distance_(STR("abc"), STR("")), 3);
    CHECK_INT(cli_distance_(STR("ab"), STR("ba")), 1);
    CHECK_INT(cli_distance_(STR("same"), STR("same")), 0);
    CHECK(cli_distance_(STR("x"), STR("a name that is far too long to be one of ours")) > 1000);
    CHECK_CSTR(guess("rnu"), "run");
    CHECK_CSTR(guess("inof"), "info");
    CHECK_CSTR(guess("tok"), "tokenize");
    CHECK_CSTR(guess("detokenise"), "detokenize");
    CHECK_CSTR(guess("weather"), "");
    CHECK_CSTR(guess(""), "");
}

/* Does `arg` name an option of these verbs, and which? */
static const CliOpt *match(const char *arg, u32 verbs) {
    CliArg a;
    return cli_match_(arg, verbs, &a) ? a.opt : NULL;
}

static void test_table(void) {
    Cli defaults = cli_defaults_();
    for (size_t i = 0; i < COUNT_OF(CLI_OPTS); i++) {
        const CliOpt *o = &CLI_OPTS[i];
        char arg[CLI_NAME_MAX * 2];
        snprintf(arg, sizeof arg, "--%s", o->name);
        CHECK_MSG(match(arg, o->verbs) == o, "%s is found as another option", arg);
        CHECK_MSG(strlen(o->name) < CLI_NAME_MAX && o->verbs && o->help, "--%s", o->name);
        CHECK_MSG((o->arg == NULL) == (o->kind == CLI_SWITCH || o->kind == CLI_EITHER),
                  "--%s: value or none", o->name);
        CHECK_MSG((o->words != NULL) == (o->kind == CLI_WORD), "--%s: words", o->name);
        CHECK_MSG(o->help[strlen(o->help) - 1] == '.', "--%s: help ends in a full stop", o->name);
        if (o->letter) {
            snprintf(arg, sizeof arg, "-%c", o->letter);
            CHECK_MSG(match(arg, o->verbs) == o, "%s is found as another option", arg);
        }
        for (const char *a = o->alias; a; a = strchr(a, ' ') ? strchr(a, ' ') + 1 : NULL) {
            snprintf(arg, sizeof arg, "%.*s", (int)strcspn(a, " "), a);
            CHECK_MSG(match(arg, o->verbs) == o, "%s is found as another option", arg);
        }
        const void *field = (const char *)&defaults + o->at;
        if (o->kind == CLI_INT)
            CHECK_MSG(*(const i32 *)field >= o->min && *(const i32 *)field <= o->max, "--%s",
                      o->name);
        if (o->kind == CLI_REAL)
            CHECK_MSG(*(const f32 *)field >= (f32)o->min && *(const f32 *)field <= (f32)o->max,
                      "--%s", o->name);
    }
    CHECK(match("--no-dual-cache", CLI_RUN) != NULL && match("--no-threshold", CLI_RUN) == NULL);
    CHECK(match("-n5", CLI_RUN) == match("-n", CLI_RUN) &&
          match("-n=5", CLI_RUN) == match("-n", CLI_RUN) && match("-vq", CLI_RUN) == NULL);
    CHECK(match("-", CLI_RUN) == NULL && match("--", CLI_RUN) == NULL &&
          match("---n", CLI_RUN) == NULL && match("-=", CLI_RUN) == NULL);
}

/* Parses a command line of up to 7 words. */
static bool parse(Cli *c, const CliVerb **verb, Err *e, const char *line) {
    static char copy[256], *argv[9];
    int argc = 1;
    argv[0] = copy;
    snprintf(copy, sizeof copy, "dlm %s", line);
    for (char *p = copy; *p; p++)
        if (*p == ' ') {
            *p = 0;
            argv[argc++] = p + 1;
        }
    *c = cli_defaults_();
    *e = (Err){0};
    return cli_parse_(c, verb, argc, argv, e);
}

static void test_parse(void) {
    Cli c;
    Err e;
    const CliVerb *verb;
    CHECK_OK(parse(&c, &verb, &e, "-p hi -n 5 --temp=0.5 --no-dual-cache --decode-mode ar"), e);
    CHECK(verb->bit == CLI_RUN && strcmp(c.prompt, "hi") == 0 && c.decode.max_tokens == 5);
    CHECK(c.decode.sample.temperature == 0.5f && c.decode.cache == CACHE_NONE &&
          c.decode.mode == DECODE_AR);
    CHECK_OK(parse(&c, &verb, &e, "-p hi --cache masked --dual-cache"),
             e); /* the last one counts */
    CHECK_EQ_INT(c.decode.cache, CACHE_DUAL);
    CHECK_OK(parse(&c, &verb, &e, "-p hi --no-dual-cache --cache model"), e);
    CHECK_EQ_INT(c.decode.cache, CACHE_MODEL);
    CHECK(!parse(&c, &verb, &e, "-p hi --rule best"));
    CHECK_ERR(e, ERR_USAGE, "topk_margin, entropy, not 'best'");
    CHECK(!parse(&c, &verb, &e, "-p hi --dual-cache=1"));
    CHECK_ERR(e, ERR_USAGE, "--dual-cache takes no value");
    CHECK_OK(parse(&c, &verb, &e, "run -p -n -n 1"), e); /* a value may look like an option */
    CHECK(strcmp(c.prompt, "-n") == 0 && c.decode.max_tokens == 1);
    CHECK_OK(parse(&c, &verb, &e, "detokenize 1 -q 2 -- -3"), e);
    CHECK(c.n_args == 3 && c.quiet && strcmp(c.args[0], "1") == 0 && strcmp(c.args[1], "2") == 0 &&
          strcmp(c.args[2], "-3") == 0);
    CHECK_OK(parse(&c, &verb, &e, "-p x -s 9223372036854775807 --stop a --stop b"), e);
    CHECK(c.seed == INT64_MAX && c.seed_given && c.n_stops == 2);
    CHECK(!parse(&c, &verb, &e, "info a b"));
    CHECK_ERR(e, ERR_USAGE, "unexpected argument 'b'");
    CHECK(!parse(&c, &verb, &e, "chat -p x"));
    CHECK_ERR(e, ERR_USAGE, "does not apply to 'dlm chat'");
}

static void test_visible(void) {
    Buf out = {0};
    cli_put_visible_(&out, STR("a\tb\n\x1b[2J\r\x7f\xc2\x9b\xc3\xa9\xc2"));
    CHECK_STR(buf_view(&out), STR("a\tb\n^[[2J^M^?\xef\xbf\xbd\xc3\xa9\xc2"));
    buf_free(&out);
}

static void test_pictures(void) {
    Buf out = {0};
    i32 column = 0;
    cli_put_cell_(&out, STR("abcd"), "", 3, &column);
    cli_put_cell_(&out, STR("e\nf"), "", 3, &column);
    CHECK_STR(buf_view(&out), STR("abc\nde\nf"));
    CHECK_INT(column, 1);
    buf_clear(&out);
    column = 0;
    cli_put_cell_(&out, STR("a\xe6\xbc\xa2"), "<", 2, &column); /* a wide character does not fit */
    CHECK_STR(buf_view(&out), STR("<a\x1b[0m\n<\xe6\xbc\xa2\x1b[0m"));
    CHECK_INT(cli_last_lines_(STR("a\nb\nc"), 2), 2);
    CHECK_INT(cli_last_lines_(STR("a\nb\nc"), 9), 0);
    CHECK_INT(cli_last_lines_(STR(""), 2), 0);
    buf_free(&out);

    /* a step's cells: prompt tokens are left out, masks and reveals are told apart */
    const i32 tokens[] = {5, 6, 7, 8};
    const u8 masked[] = {0, 0, 1, 1};
    const f32 probs[] = {1, 0.5f, 0, 0};
    const DecodeReveal reveal = {.pos = 31, .token = 6, .prob = 0.5f};
    const DecodeStep step = {.block_begin = 30,
                             .block_end = 34,
                             .tokens = tokens,
                             .masked = masked,
                             .probs = probs,
                             .reveals = &reveal,
                             .n_reveals = 1,
                             .n_prompt = 31};
    CliWatch w = {0};
    CHECK(cli_watch_update_(&w, &step));
    const CliCell *cells = (const CliCell *)(const void *)w.cells.p;
    CHECK_U64(w.cells.n, 3 * sizeof(CliCell));
    CHECK(cells[0].state == CLI_CELL_NEW && cells[0].token == 6);
    CHECK(cells[1].state == CLI_CELL_MASK && cells[2].state == CLI_CELL_MASK);
    buf_free(&w.cells);
}

static void test_ids(void) {
    TokIds ids = {0};
    Err e = {0};
    CHECK_OK(cli_read_ids_(STR("[1, 2]\n3\t4,,5 "), 6, &ids, &e), e);
    CHECK_U64(ids.n, 5);
    for (i32 i = 0; i < 5 && ids.n == 5; i++) CHECK_INT(ids.p[i], i + 1);
    CHECK(!cli_read_ids_(STR("6"), 6, &ids, &e));
    CHECK_ERR(e, ERR_USAGE, "outside the vocabulary of 6");
    e = (Err){0};
    CHECK(!cli_read_ids_(STR("1 -2"), 6, &ids, &e));
    CHECK_ERR(e, ERR_USAGE, "outside the vocabulary");
    e = (Err){0};
    CHECK(!cli_read_ids_((Str){"1\0002", 3}, 6, &ids, &e)); /* a NUL is no blank */
    tok_ids_free(&ids);
}

static void test_stats(void) {
    Buf out = {0};
    DecodeResult r = {
        .n_forwards_denoise = 2, .n_forwards_commit = 1, .ms_decode = 10, .ms_first_token = 3.14};
    for (i32 i = 0; i < 12; i++) tok_ids_push(&r.ids, i, NULL);
    cli_put_stats_(&out, &r);
    CHECK(str_starts(
        buf_view(&out),
        STR("12 tokens \xc2\xb7 3 forwards (2 denoise + 1 commit) \xc2\xb7 4.0 tokens/forward "
            "(6.0 per denoise) \xc2\xb7 1200 tok/s \xc2\xb7 first token 3.1 ms \xc2\xb7 peak ")));
    buf_clear(&out);
    r.n_forwards_commit = 0, r.n_joined = 1;
    cli_put_stats_(&out, &r);
    CHECK(str_starts(buf_view(&out),
                     STR("12 tokens \xc2\xb7 2 forwards (2 denoise, 1 of them with a commit)")));
    buf_clear(&out);
    r.n_forwards_denoise = r.n_joined = 0;
    r.n_forwards_ar = 11;
    r.n_from_prefill = 1;
    cli_put_stats_(&out, &r);
    CHECK(str_starts(
        buf_view(&out),
        STR("12 tokens \xc2\xb7 12 forwards \xc2\xb7 1.0 tokens/forward \xc2\xb7 1100 tok/s")));
    tok_ids_free(&r.ids);
    buf_free(&out);
}

int main(void) {
    test_numbers();
    test_guesses();
    test_table();
    test_parse();
    test_visible();
    test_pictures();
    test_ids();
    test_stats();
    return test_end();
}

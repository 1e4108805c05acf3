/* calls.c - the calls of tools in what a model wrote.
 *
 * Owns:      what a Calls holds.
 * Stands on: base mem json
 * Promises:  what is not wholly calls, well formed to the last byte, is text; a text that comes in
 *            pieces is held back only where a call may begin.
 *
 * Models that were taught to call tools by Qwen's, Hermes' and most other templates write
 *
 *     <tool_call>
 *     {"name": "weather", "arguments": {"city": "Rome"}}
 *     </tool_call>
 *
 * once for each call, after their text if there is any. */
#ifndef DLM_CALLS_C
#define DLM_CALLS_C

#include "base.c"
#include "json.c"
#include "mem.c"

#define CALLS_MAX 32
#define CALLS_NODES_MAX 65536u
#define CALLS_BLANKS_MAX 16u /* of white space before the first call; more is text */
static const Str CALLS_BEGIN = {"<tool_call>", 11}, CALLS_END = {"</tool_call>", 12};
static const Str CALLS_BLANKS = {" \t\r\n", 4};

typedef struct {
    JsonDoc doc;
    Str name, arguments; /* arguments: an object of JSON as the model spelled it */
} Call;

typedef struct {
    Str text; /* before the first call; all of it when there is none */
    i32 n;
    Call calls[CALLS_MAX];
} Calls;

static void calls_free(Calls *c) {
    for (i32 i = 0; i < CALLS_MAX; i++) json_free(&c->calls[i].doc);
    *c = (Calls){0};
}

/* The text before a call that begins at `at`. */
static Str calls_before_(Str s, size_t at) {
    size_t n = at;
    while (n && at - n < CALLS_BLANKS_MAX && memchr(CALLS_BLANKS.p, s.p[n - 1], CALLS_BLANKS.n))
        n--;
    return str_cut(s, 0, n);
}

static bool calls_read_one_(Call *c, Str body) {
    c->doc.nodes_max = CALLS_NODES_MAX;
    if (!json_parse(&c->doc, body, NULL)) return false;
    u32 arguments = json_get(&c->doc, 0, "arguments");
    if (json_type(&c->doc, arguments) == JSON_OBJECT)
        c->arguments = c->doc.nodes[arguments].text;
    else if (!json_str(&c->doc, arguments, &c->arguments)) /* spelled in a string, as in replies */
        return false;
    return json_str(&c->doc, json_get(&c->doc, 0, "name"), &c->name) && c->name.n > 0;
}

static bool calls_read_(Calls *c, Str rest) {
    while (rest.n) {
        if (!str_starts(rest, CALLS_BEGIN) || c->n == CALLS_MAX) return false;
        size_t end = str_find(rest, CALLS_END, CALLS_BEGIN.n);
        size_t after = end == SIZE_MAX ? rest.n : end + CALLS_END.n; /* the last may go unclosed */
        if (!calls_read_one_(&c->calls[c->n++], str_cut(rest, CALLS_BEGIN.n, end))) return false;
        rest = str_trim(str_cut(rest, after, rest.n), CALLS_BLANKS);
    }
    return true;
}

/* Reads the calls of a whole answer; its text and the calls are views into it and into *c, which
 * calls_free frees. */
static void calls_read(Calls *c, Str answer) {
    size_t at = str_find(answer, CALLS_BEGIN, 0);
    *c = (Calls){.text = answer};
    if (at == SIZE_MAX) return;
    if (calls_read_(c, str_cut(answer, at, answer.n))) {
        c->text = calls_before_(answer, at);
    } else {
        calls_free(c);
        c->text = answer;
    }
}

/* How many bytes of a text that goes on may belong to a call, or be the white space before it: they
 * must wait. */
static size_t calls_held(Str text) {
    size_t at = str_find(text, CALLS_BEGIN, 0);
    if (at == SIZE_MAX) { /* then at what may become one */
        at = text.n - MIN_OF(CALLS_BEGIN.n - 1, text.n);
        while (!str_starts(CALLS_BEGIN, str_cut(text, at, text.n))) at++;
    }
    return text.n - calls_before_(text, at).n;
}

#endif

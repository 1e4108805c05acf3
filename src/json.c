/* json.c - a bounded reader of JSON text (RFC 8259, strictly), and an escaping writer.
 *
 * Owns:      a document's nodes and its unescaped strings; other strings are views of the caller's
 *            text.
 * Stands on: base mem utf8
 * Promises:  no recursion; depth and number of nodes are bounded; text that is not valid UTF-8,
 *            duplicate keys and lone surrogates are refused with their byte offset; what is written
 *            is always valid JSON. */
#ifndef DLM_JSON_C
#define DLM_JSON_C

#include "base.c"
#include "mem.c"
#include "utf8.c"

#define JSON_DEPTH_MAX 64u
#define JSON_NODES_MAX_DEFAULT ((u32)1 << 20) /* 32 MiB of nodes */
#define JSON_TEXT_MAX ((size_t)1 << 30)       /* bytes */
#define JSON_NUMBER_MAX 128u                  /* bytes of one number's spelling */
#define JSON_NONE UINT32_MAX                  /* no such node */
#define JSON_FEW_KEYS_ 16u /* up to here every pair of keys is compared, beyond they are sorted */

typedef enum {
    JSON_ABSENT, /* the type of JSON_NONE */
    JSON_NULL,
    JSON_BOOL,
    JSON_NUMBER,
    JSON_STRING,
    JSON_ARRAY,
    JSON_OBJECT
} JsonType;

/* Nodes lie in document order, the root first. A container's children follow it: of an object key,
 * value, key, value ... */
typedef struct {
    JsonType type;
    u32 count; /* array: elements; object: pairs; bool: 0 or 1 */
    u32 next;  /* the node after this one and all that is inside it */
    Str text;  /* string: its characters; number, array, object: its spelling */
} JsonNode;

/* Begin with {0}, or {.nodes_max = N} for another lid. */
typedef struct {
    JsonNode *nodes; /* [n] */
    u32 n, cap;
    u32 nodes_max;   /* 0: JSON_NODES_MAX_DEFAULT */
    char *unescaped; /* strings that had escapes; no longer than the text */
    size_t n_unescaped;
} JsonDoc;

/* ---- the reader ---- */

typedef struct {
    JsonDoc *d;
    const u8 *p; /* [n] */
    size_t n, at;
    u32 open[JSON_DEPTH_MAX]; /* the containers around the cursor */
    u32 depth;
    Err *e;
} JsonParser_;

static bool json_fail_(JsonParser_ *s, size_t at, const char *what) {
    return err_set(s->e, ERR_USAGE, "invalid JSON at byte %zu: %s", at, what);
}

/* The byte after white space, or 0 at the end of the text (a NUL in the text is an error anyway). */
static u8 json_peek_(JsonParser_ *s) {
    while (s->at < s->n && s->p[s->at] && strchr(" \t\n\r", s->p[s->at])) s->at++;
    return s->at < s->n ? s->p[s->at] : 0;
}

static JsonNode *json_add_(JsonParser_ *s, JsonType type) {
    JsonDoc *d = s->d;
    if (d->n == d->cap) {
        u32 max = d->nodes_max ? d->nodes_max : JSON_NODES_MAX_DEFAULT;
        if (d->n >= max) {
            json_fail_(s, s->at, "too many values");
            return NULL;
        }
        u32 cap = d->cap ? MIN_OF(d->cap * 2, max) : MIN_OF(64, max);
        JsonNode *nodes = mem_alloc_n(cap, sizeof *nodes, s->e);
        if (!nodes) return NULL;
        if (d->n) memcpy(nodes, d->nodes, d->n * sizeof *nodes);
        mem_free(d->nodes);
        d->nodes = nodes;
        d->cap = cap;
    }
    JsonNode *node = &d->nodes[d->n++];
    *node = (JsonNode){.type = type, .next = d->n};
    return node;
}

/* Four hex digits at the cursor, or -1. */
static i32 json_hex4_(JsonParser_ *s) {
    if (s->n - s->at < 4) return -1;
    i32 v = 0;
    for (int i = 0; i < 4; i++) {
        u8 c = s->p[s->at + (size_t)i];
        int digit = c >= '0' && c <= '9'                 ? c - '0'
                    : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                         : -1;
        if (digit < 0) return -1;
        v = v * 16 + digit;
    }
    s->at += 4;
    return v;
}

/* The cursor is behind "\u". */
static bool json_unicode_escape_(JsonParser_ *s, char *out, size_t *n_out) {
    size_t at = s->at - 2;
    i32 c = json_hex4_(s);
    if (c < 0) return json_fail_(s, at, "\\u wants four hex digits");
    if (c >= 0xdc00 && c <= 0xdfff) return json_fail_(s, at, "a low surrogate without a high one");
    if (c >= 0xd800 && c <= 0xdbff) {
        i32 low = -1;
        if (s->n - s->at >= 6 && s->p[s->at] == '\\' && s->p[s->at + 1] == 'u') {
            s->at += 2;
            low = json_hex4_(s);
        }
        if (low < 0xdc00 || low > 0xdfff)
            return json_fail_(s, at, "a high surrogate without a low one");
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
    }
    *n_out += utf8_put((u32)c, out + *n_out);
    return true;
}

/* The cursor is at a backslash. */
static bool json_escape_(JsonParser_ *s, char *out, size_t *n_out) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    s->at++;
    u8 c = s->at < s->n ? s->p[s->at] : 0;
    s->at++;
    if (c == 'u') return json_unicode_escape_(s, out, n_out);
    const char *found = c ? strchr(from, c) : NULL;
    if (!found) return json_fail_(s, s->at - 2, "unknown escape");
    out[(*n_out)++] = to[found - from];
    return true;
}

/* The cursor is behind the opening quote. Strings without escapes stay where they are; the others
 * are written to the block of unescaped strings, which the text's own length bounds: no escape is
 * shorter than what it means. */
static bool json_string_(JsonParser_ *s, Str *out) {
    size_t begin = s->at;
    char *copy = NULL;
    size_t n = 0;
    while (s->at < s->n && s->p[s->at] != '"') {
        u8 c = s->p[s->at];
        size_t len;
        u32 cp;
        if (c < 0x20) return json_fail_(s, s->at, "a control byte in a string has to be escaped");
        if (utf8_read((Str){(const char *)s->p, s->n}, s->at, &cp, &len) != UTF8_OK)
            return json_fail_(s, s->at, "the text is not valid UTF-8");
        if (c == '\\' && !copy) {
            if (!s->d->unescaped && !(s->d->unescaped = mem_alloc(s->n, s->e))) return false;
            copy = s->d->unescaped + s->d->n_unescaped;
            n = s->at - begin;
            memcpy(copy, s->p + begin, n);
        }
        if (c == '\\') {
            if (!json_escape_(s, copy, &n)) return false;
            continue;
        }
        if (copy) memcpy(copy + n, s->p + s->at, len), n += len;
        s->at += len;
    }
    if (s->at >= s->n) return json_fail_(s, begin - 1, "the string does not end");
    *out = copy ? (Str){copy, n} : (Str){(const char *)s->p + begin, s->at - begin};
    s->at++;
    s->d->n_unescaped += copy ? n : 0;
    return true;
}

static size_t json_digits_(const JsonParser_ *s, size_t at) {
    size_t n = 0;
    while (at + n < s->n && s->p[at + n] >= '0' && s->p[at + n] <= '9') n++;
    return n;
}

static bool json_number_(JsonParser_ *s) {
    size_t begin = s->at, at = begin + (s->p[begin] == '-');
    size_t n = json_digits_(s, at);
    bool ok = n == 1 || (n > 1 && s->p[at] != '0');
    at += n;
    if (ok && at < s->n && s->p[at] == '.') {
        n = json_digits_(s, at + 1);
        ok = n > 0;
        at += 1 + n;
    }
    if (ok && at < s->n && (s->p[at] | 32) == 'e') {
        at++;
        if (at < s->n && (s->p[at] == '+' || s->p[at] == '-')) at++;
        n = json_digits_(s, at);
        ok = n > 0;
        at += n;
    }
    if (!ok) return json_fail_(s, begin, "not a number");
    if (at - begin > JSON_NUMBER_MAX)
        return json_fail_(s, begin, "a number this long is not taken");
    JsonNode *node = json_add_(s, JSON_NUMBER);
    if (!node) return false;
    node->text = (Str){(const char *)s->p + begin, at - begin};
    s->at = at;
    return true;
}

static bool json_word_(JsonParser_ *s, Str word, JsonType type, u32 value) {
    Str left = {(const char *)s->p + s->at, s->n - s->at};
    if (!str_starts(left, word)) return json_fail_(s, s->at, "a value is wanted");
    JsonNode *node = json_add_(s, type);
    if (!node) return false;
    node->count = value;
    s->at += word.n;
    return true;
}

/* Reads a scalar, or opens a container. */
static bool json_value_(JsonParser_ *s) {
    u8 c = json_peek_(s);
    if (c == '"') {
        s->at++;
        Str text;
        if (!json_string_(s, &text)) return false;
        JsonNode *node = json_add_(s, JSON_STRING);
        if (node) node->text = text;
        return node != NULL;
    }
    if (c == '{' || c == '[') {
        if (s->depth == JSON_DEPTH_MAX) return json_fail_(s, s->at, "nested too deeply");
        JsonNode *node = json_add_(s, c == '{' ? JSON_OBJECT : JSON_ARRAY);
        if (!node) return false;
        node->text.p = (const char *)s->p + s->at;
        s->open[s->depth++] = s->d->n - 1;
        s->at++;
        return true;
    }
    if (c == 't') return json_word_(s, STR("true"), JSON_BOOL, 1);
    if (c == 'f') return json_word_(s, STR("false"), JSON_BOOL, 0);
    if (c == 'n') return json_word_(s, STR("null"), JSON_NULL, 0);
    if (c == '-' || (c >= '0' && c <= '9')) return json_number_(s);
    return json_fail_(s, s->at,
                      s->at < s->n ? "a value is wanted" : "the text ends where a value is wanted");
}

/* "key": of the innermost object. */
static bool json_key_(JsonParser_ *s) {
    if (json_peek_(s) != '"') return json_fail_(s, s->at, "a key in quotes is wanted");
    if (!json_value_(s)) return false;
    if (json_peek_(s) != ':') return json_fail_(s, s->at, "a colon is wanted after a key");
    s->at++;
    return true;
}

static int json_by_text_(const void *a, const void *b) {
    Str x = *(const Str *)a, y = *(const Str *)b;
    if (x.n != y.n) return x.n < y.n ? -1 : 1;
    return x.n ? memcmp(x.p, y.p, x.n) : 0;
}

/* Two readers that disagree on which of two equal keys counts are a way to smuggle: refuse. Sorting
 * makes an object with a million keys cost n log n, whatever the keys are. */
static bool json_check_keys_(JsonParser_ *s, u32 object) {
    const JsonNode *nodes = s->d->nodes;
    u32 count = nodes[object].count, n = 0;
    Str few[JSON_FEW_KEYS_], *keys = few;
    if (count > JSON_FEW_KEYS_ && !(keys = mem_alloc_n(count, sizeof *keys, s->e))) return false;
    for (u32 i = object + 1; n < count; i = nodes[nodes[i].next].next) keys[n++] = nodes[i].text;
    Str twin = {NULL, 0};
    if (keys == few) {
        for (u32 i = 1; i < n; i++)
            for (u32 j = 0; j < i; j++)
                if (str_eq(keys[i], keys[j])) twin = keys[i];
    } else {
        qsort(keys, n, sizeof *keys, json_by_text_);
        for (u32 i = 1; i < n; i++)
            if (str_eq(keys[i], keys[i - 1])) twin = keys[i];
        mem_free(keys);
    }
    if (!twin.p) return true;
    return err_set(s->e, ERR_USAGE,
                   "invalid JSON: key \"%.*s\" appears twice in the object that ends at byte %zu",
                   STR_ARG(twin), s->at - 1);
}

/* The cursor stands behind the container's bracket. */
static void json_close_(JsonParser_ *s, u32 container) {
    JsonNode *node = &s->d->nodes[container];
    node->next = s->d->n;
    node->text.n = (size_t)((const char *)s->p + s->at - node->text.p);
    s->depth--;
}

/* Behind a value: closes containers that end here and passes one comma. *done: all text is read. */
static bool json_after_value_(JsonParser_ *s, bool *done) {
    while (s->depth) {
        u32 top = s->open[s->depth - 1];
        bool object = s->d->nodes[top].type == JSON_OBJECT;
        s->d->nodes[top].count++;
        u8 c = json_peek_(s);
        if (c == ',') {
            s->at++;
            return !object || json_key_(s);
        }
        if (c != (object ? '}' : ']'))
            return json_fail_(s, s->at,
                              object ? "a comma or } is wanted" : "a comma or ] is wanted");
        s->at++;
        json_close_(s, top);
        if (object && !json_check_keys_(s, top)) return false;
    }
    json_peek_(s);
    if (s->at < s->n) return json_fail_(s, s->at, "text after the value");
    *done = true;
    return true;
}

static bool json_parse_(JsonParser_ *s) {
    for (bool done = false; !done;) {
        u32 depth = s->depth;
        if (!json_value_(s)) return false;
        if (s->depth >
            depth) { /* a container was opened: it is empty, or its first value follows */
            bool object = s->d->nodes[s->d->n - 1].type == JSON_OBJECT;
            if (json_peek_(s) != (object ? '}' : ']')) {
                if (object && !json_key_(s)) return false;
                continue;
            }
            s->at++;
            json_close_(s, s->d->n - 1);
        }
        if (!json_after_value_(s, &done)) return false;
    }
    return true;
}

static void json_free(JsonDoc *d) {
    mem_free(d->nodes);
    mem_free(d->unescaped);
    *d = (JsonDoc){.nodes_max = d->nodes_max};
}

/* Reads text, which must outlive d. Node 0 is the value. On failure d holds nothing. */
static bool json_parse(JsonDoc *d, Str text, Err *e) {
    *d = (JsonDoc){.nodes_max = d->nodes_max};
    JsonParser_ s = {.d = d, .p = (const u8 *)text.p, .n = text.n, .e = e};
    bool ok = text.n <= JSON_TEXT_MAX ? json_parse_(&s)
                                      : json_fail_(&s, JSON_TEXT_MAX, "the text is too long");
    if (!ok) json_free(d);
    return ok;
}

/* ---- looking at a document: any node number may be JSON_NONE, which has nothing ---- */

static JsonType json_type(const JsonDoc *d, u32 node) {
    return node < d->n ? d->nodes[node].type : JSON_ABSENT;
}

/* Elements of an array, pairs of an object, else 0. */
static u32 json_count(const JsonDoc *d, u32 node) {
    JsonType t = json_type(d, node);
    return t == JSON_ARRAY || t == JSON_OBJECT ? d->nodes[node].count : 0;
}

/* The first element of an array or first key of an object; the one behind a key is its value:
 * `for (u32 i = json_first(d, a), n = json_count(d, a); n > 0; n--, i = json_next(d, i))`. */
static u32 json_first(const JsonDoc *d, u32 node) {
    return json_count(d, node) ? node + 1 : JSON_NONE;
}

static u32 json_next(const JsonDoc *d, u32 node) {
    return node < d->n && d->nodes[node].next < d->n ? d->nodes[node].next : JSON_NONE;
}

/* The value of a key of an object, or JSON_NONE. */
static u32 json_get(const JsonDoc *d, u32 node, const char *key) {
    if (json_type(d, node) != JSON_OBJECT) return JSON_NONE;
    Str want = str_of(key);
    u32 i = node + 1;
    for (u32 n = d->nodes[node].count; n > 0; n--) {
        u32 value = d->nodes[i].next;
        if (str_eq(d->nodes[i].text, want)) return value;
        i = d->nodes[value].next;
    }
    return JSON_NONE;
}

/* Typed getters: false, and *out untouched, when the node is of another type or does not fit. */
static bool json_str(const JsonDoc *d, u32 node, Str *out) {
    if (json_type(d, node) != JSON_STRING) return false;
    *out = d->nodes[node].text;
    return true;
}

static bool json_bool(const JsonDoc *d, u32 node, bool *out) {
    if (json_type(d, node) != JSON_BOOL) return false;
    *out = d->nodes[node].count != 0;
    return true;
}

/* Finite numbers only: 1e999 is refused. */
static bool json_f64(const JsonDoc *d, u32 node, f64 *out) {
    if (json_type(d, node) != JSON_NUMBER) return false;
    char z[JSON_NUMBER_MAX + 1];
    Str text = d->nodes[node].text;
    memcpy(z, text.p, text.n);
    z[text.n] = 0;
    f64 v = strtod(z, NULL);
    if (!(v - v == 0)) return false;
    *out = v;
    return true;
}

/* Integers, also when spelled 1e3 or 5.0 (those up to 2^53, where f64 is exact). */
static bool json_i64(const JsonDoc *d, u32 node, i64 *out) {
    if (json_type(d, node) != JSON_NUMBER) return false;
    Str text = d->nodes[node].text;
    bool negative = text.p[0] == '-';
    u64 v = 0, max = negative ? (u64)1 << 63 : (u64)INT64_MAX;
    for (size_t i = negative; i < text.n; i++) {
        u8 c = (u8)text.p[i];
        if (c < '0' || c > '9') { /* a fraction or an exponent */
            f64 f;
            const f64 exact = 9007199254740992.0;
            if (!json_f64(d, node, &f) || !(f >= -exact && f <= exact) || f != (f64)(i64)f)
                return false;
            *out = (i64)f;
            return true;
        }
        if (!mul_ok(v, 10, &v) || !add_ok(v, c - '0', &v) || v > max) return false;
    }
    *out = negative ? (v ? -(i64)(v - 1) - 1 : 0) : (i64)v;
    return true;
}

/* ---- the writer: failures stay in the Buf ---- */

static bool json_is_plain_(u8 c) {
    return c >= 0x20 && c < 0x80 && c != '"' && c != '\\';
}

/* s in quotes. Any bytes make valid JSON: what is not UTF-8 becomes U+FFFD. */
static bool json_put_str(Buf *b, Str s) {
    static const char letters[] = "\b\f\n\r\t\"\\", spelled[] = "bfnrt\"\\";
    const u8 *p = (const u8 *)s.p;
    buf_char(b, '"');
    for (size_t i = 0, len; i < s.n; i += len) {
        u32 cp;
        for (len = 0; i + len < s.n && json_is_plain_(p[i + len]); len++) {}
        if (len) {
            buf_put(b, p + i, len);
            continue;
        }
        bool valid = utf8_read(s, i, &cp, &len) == UTF8_OK;
        const char *letter = p[i] ? strchr(letters, p[i]) : NULL;
        if (!valid) {
            buf_str(b, STR("\xef\xbf\xbd"));
        } else if (letter) {
            buf_char(b, '\\');
            buf_char(b, spelled[letter - letters]);
        } else if (p[i] < 0x20) {
            buf_printf(b, "\\u%04x", p[i]);
        } else {
            buf_put(b, p + i, len);
        }
    }
    return buf_char(b, '"');
}

/* The shortest of %.15g, %.16g, %.17g that reads back as v; null for what JSON cannot say. */
static bool json_put_f64(Buf *b, f64 v) {
    if (!(v - v == 0)) return buf_str(b, STR("null"));
    char z[40];
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(z, sizeof z, "%.*g", digits, v);
        if (strtod(z, NULL) == v) break;
    }
    return buf_str(b, str_of(z));
}

#endif

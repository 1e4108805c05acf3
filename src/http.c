/* http.c - HTTP/1.1 as a server sees it: requests read byte by byte, replies and events written.
 *
 * Owns:      nothing; a request's fields are views into its own head, its body is its own buffer.
 * Stands on: base mem
 * Promises:  every way of cutting the same bytes gives the same request or the same refusal; what two
 *            readers could understand differently is refused; no field that is written splits a head. */
#ifndef DLM_HTTP_C
#define DLM_HTTP_C

#include "base.c"
#include "mem.c"

#define HTTP_HEAD_MAX ((size_t)16 << 10) /* request line and fields, bytes */
#define HTTP_FIELDS_MAX 100
#define HTTP_TARGET_MAX ((size_t)8 << 10)
#define HTTP_METHOD_MAX 16
#define HTTP_CHUNK_LINE_MAX 1024 /* a chunk's size and extensions, or one trailer field */
#define HTTP_CHUNK_EXTRA_MAX ((size_t)16 << 10) /* extensions and trailers of one body, bytes */
#define HTTP_BODY_KEPT ((size_t)64 << 10) /* a larger body buffer is not kept for the next one */

typedef struct {
    Str name, value; /* as sent; blanks around the value are cut */
} HttpField;

typedef enum {
    HTTP_IN_HEAD, /* feed more */
    HTTP_HEAD,    /* the head is complete: decide, then call http_read_body or refuse */
    HTTP_IN_BODY, /* feed more */
    HTTP_DONE,    /* the request is complete; bytes not consumed belong to the next one */
    HTTP_REFUSED  /* answer with `status`, then close */
} HttpState;

typedef enum {
    HTTP_SIZED_,      /* Content-Length: `left` bytes to come */
    HTTP_CHUNK_SIZE_, /* the line with a chunk's size */
    HTTP_CHUNK_DATA_, /* `left` bytes of a chunk */
    HTTP_CHUNK_END_,  /* the empty line behind them */
    HTTP_TRAILERS_    /* fields after the last chunk: checked and dropped */
} HttpBodyState_;

typedef struct {
    HttpState state;
    int status;         /* HTTP_REFUSED: the status to answer with */
    const char *reason; /* HTTP_REFUSED: one sentence */
    Str method, target, path, query, host;
    int minor; /* HTTP/1.minor */
    HttpField fields[HTTP_FIELDS_MAX];
    int n_fields;
    bool keep_alive;      /* what the client wants */
    bool expect_continue; /* it waits for http_put_continue before it sends the body */
    bool chunked, has_length;
    u64 length; /* Content-Length */
    Buf body;
    /* private */
    HttpBodyState_ body_state;
    u64 left, body_max;
    size_t n_head, line; /* bytes of head; where the current line starts */
    size_t n_extra;      /* bytes of chunk extensions and trailers */
    bool skipped_empty;  /* an empty line before the request line was forgiven */
    char head[HTTP_HEAD_MAX + HTTP_CHUNK_LINE_MAX];
} HttpRequest;

/* ---- characters ---- */

static char http_lower_(char c) {
    return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
}

/* Equal but for the case of ASCII letters: names of fields, hosts and codings. */
static bool http_same(Str a, Str b) {
    if (a.n != b.n) return false;
    for (size_t i = 0; i < a.n; i++)
        if (http_lower_(a.p[i]) != http_lower_(b.p[i])) return false;
    return true;
}

static bool http_is_digit_(char c) {
    return c >= '0' && c <= '9';
}

static bool http_is_alnum_(char c) {
    return http_is_digit_(c) || (http_lower_(c) >= 'a' && http_lower_(c) <= 'z');
}

static int http_hex_(char c) {
    if (http_is_digit_(c)) return c - '0';
    c = http_lower_(c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* RFC 9110's token: what methods and field names are made of. */
static bool http_is_token_(Str s) {
    for (size_t i = 0; i < s.n; i++)
        if (!http_is_alnum_(s.p[i]) && (!s.p[i] || !strchr("!#$%&'*+-.^_`|~", s.p[i])))
            return false;
    return s.n > 0;
}

static Str http_trim_(Str s) {
    return str_trim(s, STR(" \t"));
}

/* ---- refusing ---- */

static void http_refuse(HttpRequest *r, int status, const char *reason) {
    if (r->state == HTTP_REFUSED) return;
    r->state = HTTP_REFUSED;
    r->status = status;
    r->reason = reason;
    r->keep_alive = false; /* where the next request would begin is not known */
}

/* ---- fields ---- */

/* The first field of that name; .p is NULL when there is none. */
static Str http_field(const HttpRequest *r, const char *name) {
    for (int i = 0; i < r->n_fields; i++)
        if (http_same(r->fields[i].name, str_of(name))) return r->fields[i].value;
    return (Str){NULL, 0};
}

static int http_count_(const HttpRequest *r, const char *name) {
    int n = 0;
    for (int i = 0; i < r->n_fields; i++) n += http_same(r->fields[i].name, str_of(name));
    return n;
}

/* Takes the next element of a comma-separated list; false at its end. Empty elements are skipped. */
static bool http_next_element(Str *list, Str *element) {
    while (list->n) {
        size_t end = MIN_OF(str_find(*list, STR(","), 0), list->n);
        *element = http_trim_(str_cut(*list, 0, end));
        *list = str_cut(*list, end + 1, list->n);
        if (element->n) return true;
    }
    return false;
}

/* Does any field of that name list the element? */
static bool http_lists_(const HttpRequest *r, const char *name, Str element) {
    for (int i = 0; i < r->n_fields; i++) {
        Str list = r->fields[i].value, each;
        if (!http_same(r->fields[i].name, str_of(name))) continue;
        while (http_next_element(&list, &each))
            if (http_same(each, element)) return true;
    }
    return false;
}

/* The part of a Host (or an authority) before the port, without the brackets of IPv6. */
static Str http_host_name(Str host) {
    if (host.n && host.p[0] == '[') {
        size_t end = str_find(host, STR("]"), 0);
        return end == SIZE_MAX ? host : str_cut(host, 1, end);
    }
    return str_cut(host, 0, MIN_OF(str_find(host, STR(":"), 0), host.n));
}

/* name, name:port, [v6], [v6]:port; nothing else, so that a log or a comparison cannot be fooled. */
static bool http_is_host_(Str s) {
    size_t i = 0;
    if (s.n && s.p[0] == '[') {
        for (i = 1; i < s.n && (http_hex_(s.p[i]) >= 0 || s.p[i] == ':' || s.p[i] == '.'); i++) {}
        if (i == 1 || i == s.n || s.p[i++] != ']') return false;
    } else {
        while (i < s.n &&
               (http_is_alnum_(s.p[i]) || s.p[i] == '.' || s.p[i] == '-' || s.p[i] == '_'))
            i++;
        if (i == 0) return false;
    }
    if (i == s.n) return true;
    Str port = str_cut(s, i + 1, s.n);
    for (size_t k = 0; k < port.n; k++)
        if (!http_is_digit_(port.p[k])) return false;
    return s.p[i] == ':' && port.n > 0 && port.n <= 5;
}

/* ---- the head ---- */

static void http_take_version_(HttpRequest *r, Str v) {
    if (v.n != 8 || !str_starts(v, STR("HTTP/")) || !http_is_digit_(v.p[5]) || v.p[6] != '.' ||
        !http_is_digit_(v.p[7])) {
        http_refuse(r, 400, "the request line does not end with HTTP/1.1");
    } else if (v.p[5] != '1' || v.p[7] > '1') {
        http_refuse(r, 505, "only HTTP/1.1 and HTTP/1.0 are spoken here");
    } else {
        r->minor = v.p[7] - '0';
    }
}

static void http_take_method_(HttpRequest *r, Str method) {
    static const char *const known[] = {"GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH"};
    r->method = method;
    if (!http_is_token_(method)) {
        http_refuse(r, 400, "the request line does not begin with a method");
        return;
    }
    for (size_t i = 0; i < COUNT_OF(known); i++)
        if (str_eq(method, str_of(known[i]))) return;
    http_refuse(r, 501, "this method is not implemented");
}

/* /path?query, * for OPTIONS, or a whole URL, whose authority must then be the Host. */
static void http_take_target_(HttpRequest *r, Str target) {
    r->target = target;
    if (target.n > HTTP_TARGET_MAX) {
        http_refuse(r, 414, "the request target is longer than 8192 bytes");
        return;
    }
    for (size_t i = 0; i < target.n; i++)
        if ((u8)target.p[i] <= 0x20 || (u8)target.p[i] >= 0x7f || target.p[i] == '#') {
            http_refuse(r, 400, "the request target has a byte that a URL may not have");
            return;
        }
    Str rest = target;
    size_t scheme = str_starts(rest, STR("http://")) ? 7 : 0;
    if (str_starts(rest, STR("https://"))) scheme = 8;
    if (scheme) {
        size_t slash = str_find(rest, STR("/"), scheme);
        r->host = str_cut(rest, scheme, slash);
        rest = slash == SIZE_MAX ? STR("/") : str_cut(rest, slash, rest.n);
        if (!http_is_host_(r->host)) http_refuse(r, 400, "the URL's host is not a host name");
    }
    size_t mark = MIN_OF(str_find(rest, STR("?"), 0), rest.n);
    r->path = str_cut(rest, 0, mark);
    r->query = str_cut(rest, mark + 1, rest.n);
    bool star = str_eq(rest, STR("*")) && str_eq(r->method, STR("OPTIONS"));
    if (!star && (r->path.n == 0 || r->path.p[0] != '/'))
        http_refuse(r, 400, "the request target does not begin with /");
}

static void http_take_request_line_(HttpRequest *r, Str line) {
    size_t a = str_find(line, STR(" "), 0);
    size_t b = a == SIZE_MAX ? SIZE_MAX : str_find(line, STR(" "), a + 1);
    if (b == SIZE_MAX) {
        http_refuse(r, 400, "the request line is not METHOD TARGET HTTP/1.1");
        return;
    }
    http_take_version_(r, str_cut(line, b + 1, line.n));
    if (r->state != HTTP_REFUSED) http_take_method_(r, str_cut(line, 0, a));
    if (r->state != HTTP_REFUSED) http_take_target_(r, str_cut(line, a + 1, b));
}

static bool http_split_field_(HttpRequest *r, Str line, HttpField *out) {
    size_t colon = str_find(line, STR(":"), 0);
    if (line.p[0] == ' ' || line.p[0] == '\t') {
        http_refuse(r, 400, "a header field is folded over two lines");
    } else if (colon == SIZE_MAX || !http_is_token_(str_cut(line, 0, colon))) {
        http_refuse(r, 400, "a header field is not Name: value");
    } else {
        *out = (HttpField){str_cut(line, 0, colon), http_trim_(str_cut(line, colon + 1, line.n))};
        return true;
    }
    return false;
}

static void http_take_field_(HttpRequest *r, Str line) {
    HttpField f;
    if (!http_split_field_(r, line, &f)) return;
    if (r->n_fields == HTTP_FIELDS_MAX)
        http_refuse(r, 431, "there are more than 100 header fields");
    else
        r->fields[r->n_fields++] = f;
}

static void http_take_host_(HttpRequest *r) {
    Str host = http_field(r, "Host");
    if (!host.p) {
        if (r->minor == 1) http_refuse(r, 400, "there is no Host field");
    } else if (!http_is_host_(host)) {
        http_refuse(r, 400, "the Host field is not a host name with an optional port");
    } else if (r->host.n && !http_same(r->host, host)) {
        http_refuse(r, 400, "the URL and the Host field name different hosts");
    } else {
        r->host = host;
    }
}

/* How long the body is: exactly one statement, in exactly one spelling (RFC 9112, 6.3). */
static void http_take_framing_(HttpRequest *r) {
    Str coding = http_field(r, "Transfer-Encoding"), length = http_field(r, "Content-Length");
    r->chunked = coding.p != NULL;
    r->has_length = length.p != NULL;
    if (r->chunked && r->has_length) {
        http_refuse(r, 400, "Content-Length and Transfer-Encoding contradict each other");
    } else if (r->chunked && r->minor == 0) {
        http_refuse(r, 400, "HTTP/1.0 has no Transfer-Encoding");
    } else if (r->chunked && !http_same(coding, STR("chunked"))) {
        http_refuse(r, 501, "no Transfer-Encoding but chunked is implemented");
    } else if (r->has_length) {
        for (size_t i = 0; i < length.n; i++)
            if (!http_is_digit_(length.p[i])) length.n = 0;
        if (length.n == 0) http_refuse(r, 400, "Content-Length is not a number");
        for (size_t i = 0; i < length.n; i++)
            if (!mul_ok(r->length, 10, &r->length) ||
                !add_ok(r->length, (u64)(length.p[i] - '0'), &r->length))
                r->length = UINT64_MAX; /* sticks: more than any limit */
    }
}

static void http_end_head_(HttpRequest *r) {
    static const char *const once[] = {"Host",      "Content-Length", "Transfer-Encoding",
                                       "Expect",    "Content-Type",   "Authorization",
                                       "X-Api-Key", "Origin"};
    for (size_t i = 0; i < COUNT_OF(once); i++)
        if (http_count_(r, once[i]) > 1) {
            http_refuse(r, 400, "a header field that must be unique is there twice");
            return;
        }
    http_take_host_(r);
    if (r->state != HTTP_REFUSED) http_take_framing_(r);
    if (r->state == HTTP_REFUSED) return;
    bool close = http_lists_(r, "Connection", STR("close"));
    r->keep_alive = !close && (r->minor == 1 || http_lists_(r, "Connection", STR("keep-alive")));
    Str expect = http_field(r, "Expect"), coding = http_field(r, "Content-Encoding");
    if (expect.p && !http_same(expect, STR("100-continue"))) {
        http_refuse(r, 417, "no expectation but 100-continue can be met");
    } else if (coding.p && !http_same(coding, STR("identity"))) {
        http_refuse(r, 415, "compressed request bodies are not accepted");
    } else {
        r->expect_continue = expect.p && r->minor == 1;
        r->state = HTTP_HEAD;
    }
}

/* ---- lines, shared by head, chunk sizes and trailers ---- */

/* Takes one byte of a line that starts at head[line]. True when a line is complete: it is head[line ..
 * n_head - 2), then. Control bytes, and CR and LF alone, end the request. */
static bool http_take_byte_(HttpRequest *r, char c) {
    bool after_cr = r->n_head > r->line && r->head[r->n_head - 1] == '\r';
    if (after_cr != (c == '\n')) {
        http_refuse(r, 400, "a line does not end with CR LF");
    } else if (((u8)c < 0x20 && c != '\t' && c != '\r' && c != '\n') || c == 0x7f) {
        bool tls = r->n_head == 0 && c == 0x16;
        http_refuse(r, 400,
                    tls ? "this port speaks plain HTTP, and a TLS handshake arrived: use http://"
                        : "there is a control byte in the head");
    } else {
        r->head[r->n_head++] = c;
        return c == '\n';
    }
    return false;
}

/* What a line may not become, told before it is complete. */
static void http_check_line_(HttpRequest *r) {
    size_t n = r->n_head - r->line;
    bool first = r->method.p == NULL;
    if (first && n == HTTP_METHOD_MAX + 1 && !memchr(r->head + r->line, ' ', n))
        http_refuse(r, 400, "the request line does not begin with a method");
    else if (first && n > HTTP_METHOD_MAX + HTTP_TARGET_MAX + 12)
        http_refuse(r, 414, "the request target is longer than 8192 bytes");
    else if (r->n_head == HTTP_HEAD_MAX)
        http_refuse(r, 431, "the request's head is longer than 16384 bytes");
}

static void http_feed_head_(HttpRequest *r, char c) {
    if (!http_take_byte_(r, c)) {
        if (r->state == HTTP_IN_HEAD) http_check_line_(r);
        return;
    }
    Str line = {r->head + r->line, r->n_head - r->line - 2};
    r->line = r->n_head;
    if (r->method.p) {
        if (line.n)
            http_take_field_(r, line);
        else
            http_end_head_(r);
    } else if (line.n) {
        http_take_request_line_(r, line);
    } else if (r->skipped_empty) { /* RFC 9112, 2.2: one empty line before a request is ignored */
        http_refuse(r, 400, "empty lines came instead of a request");
    } else {
        r->skipped_empty = true;
        r->n_head = r->line = 0;
    }
    if (r->state == HTTP_IN_HEAD) http_check_line_(r);
}

/* ---- the body ---- */

/* Lets the body come, of at most max bytes, once the head has been found good. */
static void http_read_body(HttpRequest *r, u64 max) {
    ASSERT(r->state == HTTP_HEAD);
    r->body_max = max;
    r->body.max = (size_t)MIN_OF(max, BUF_MAX_DEFAULT);
    bool wants = str_eq(r->method, STR("POST")) || str_eq(r->method, STR("PUT")) ||
                 str_eq(r->method, STR("PATCH"));
    if (r->has_length && r->length > max) {
        http_refuse(r, 413, "the request body is larger than this server accepts");
    } else if (wants && !r->has_length && !r->chunked) {
        http_refuse(r, 411, "a Content-Length is needed");
    } else if (r->chunked) {
        r->body_state = HTTP_CHUNK_SIZE_;
        r->state = HTTP_IN_BODY;
    } else {
        r->body_state = HTTP_SIZED_;
        r->left = r->length;
        r->state = r->left ? HTTP_IN_BODY : HTTP_DONE;
    }
}

/* size[;extension], the size in hexadecimal. Extensions are skipped, as they must be. */
static void http_take_chunk_size_(HttpRequest *r, Str line) {
    u64 size = 0;
    size_t i = 0;
    for (; i < line.n && http_hex_(line.p[i]) >= 0; i++)
        size = size * 16 + (u64)http_hex_(line.p[i]);
    if (i == 0 || i > 15 || (i < line.n && line.p[i] != ';')) {
        http_refuse(r, 400, "a chunk does not begin with its size");
    } else if (size > r->body_max - r->body.n) {
        http_refuse(r, 413, "the request body is larger than this server accepts");
    } else {
        r->left = size;
        r->body_state = size ? HTTP_CHUNK_DATA_ : HTTP_TRAILERS_;
    }
    r->n_extra += line.n - i;
}

/* One byte of what is not data in a chunked body. Lines are gathered behind the head. */
static void http_feed_chunk_line_(HttpRequest *r, char c) {
    if (r->n_head - r->line == HTTP_CHUNK_LINE_MAX || r->n_extra > HTTP_CHUNK_EXTRA_MAX) {
        http_refuse(r, 431, "the chunks' extensions or trailers are too long");
        return;
    }
    if (!http_take_byte_(r, c)) return;
    Str line = {r->head + r->line, r->n_head - r->line - 2};
    r->n_head = r->line;
    HttpField dropped;
    if (r->body_state == HTTP_CHUNK_SIZE_) {
        http_take_chunk_size_(r, line);
    } else if (r->body_state == HTTP_CHUNK_END_) {
        if (line.n)
            http_refuse(r, 400, "a chunk is longer than its size");
        else
            r->body_state = HTTP_CHUNK_SIZE_;
    } else if (line.n == 0) {
        r->state = HTTP_DONE;
    } else if (http_split_field_(r, line, &dropped)) {
        r->n_extra += line.n;
    }
}

static size_t http_feed_data_(HttpRequest *r, const char *p, size_t n) {
    if (n > r->left) n = (size_t)r->left;
    if (!buf_put(&r->body, p, n)) {
        http_refuse(r, 503, "there is no memory for the request body");
        return n;
    }
    r->left -= n;
    if (r->left == 0 && r->body_state == HTTP_CHUNK_DATA_)
        r->body_state = HTTP_CHUNK_END_;
    else if (r->left == 0)
        r->state = HTTP_DONE;
    return n;
}

/* ---- feeding ---- */

/* Takes bytes from the connection; returns how many belong to this request so far. It stops where
 * the state changes to HTTP_HEAD, HTTP_DONE or HTTP_REFUSED, and takes nothing in those states. */
static size_t http_feed(HttpRequest *r, const char *p, size_t n) {
    size_t i = 0;
    while (i < n && (r->state == HTTP_IN_HEAD || r->state == HTTP_IN_BODY)) {
        if (r->state == HTTP_IN_HEAD)
            http_feed_head_(r, p[i++]);
        else if (r->body_state == HTTP_SIZED_ || r->body_state == HTTP_CHUNK_DATA_)
            i += http_feed_data_(r, p + i, n - i);
        else
            http_feed_chunk_line_(r, p[i++]);
    }
    return i;
}

/* Has anything of a request arrived? Between requests a client may leave without an answer. */
static bool http_begun(const HttpRequest *r) {
    return r->state != HTTP_IN_HEAD || r->n_head > 0 || r->skipped_empty;
}

/* Makes r ready for the next request (a zeroed one is ready for its first). */
static void http_reset(HttpRequest *r) {
    if (r->body.cap > HTTP_BODY_KEPT) buf_free(&r->body);
    Buf body = r->body;
    memset(r, 0, offsetof(HttpRequest, head));
    r->body = body;
    buf_clear(&r->body);
}

static void http_free(HttpRequest *r) {
    buf_free(&r->body);
}

/* ---- reading a target ---- */

/* Appends s with %xx decoded; false for a broken escape or a NUL. */
static bool http_unescape(Buf *out, Str s) {
    for (size_t i = 0; i < s.n; i++) {
        int c = (u8)s.p[i];
        if (c == '%') {
            int high = s.n - i > 2 ? http_hex_(s.p[i + 1]) : -1;
            int low = s.n - i > 2 ? http_hex_(s.p[i + 2]) : -1;
            if (high < 0 || low < 0) return false;
            c = high * 16 + low;
            i += 2;
        }
        if (c == 0 || !buf_char(out, (char)c)) return false;
    }
    return true;
}

/* The raw value of name in a query of name=value pairs; .p is NULL when it is not there. */
static Str http_query(Str query, Str name) {
    while (query.n) {
        size_t end = MIN_OF(str_find(query, STR("&"), 0), query.n);
        Str pair = str_cut(query, 0, end);
        size_t eq = MIN_OF(str_find(pair, STR("="), 0), pair.n);
        if (str_eq(str_cut(pair, 0, eq), name)) return str_cut(pair, eq + 1, pair.n);
        query = str_cut(query, end + 1, query.n);
    }
    return (Str){NULL, 0};
}

/* ---- replies ---- */

typedef struct {
    int status;
    bool keep_alive; /* may another request follow? */
    bool chunked;    /* a stream's framing; HTTP/1.0 gets a stream until the connection closes */
    bool old;        /* HTTP/1.0 */
    bool head_only;  /* the answer to HEAD */
} HttpReply;

static const char *http_status_text(int status) {
    static const struct {
        int status;
        const char *text;
    } known[] = {{100, "Continue"},
                 {200, "OK"},
                 {204, "No Content"},
                 {304, "Not Modified"},
                 {400, "Bad Request"},
                 {401, "Unauthorized"},
                 {403, "Forbidden"},
                 {404, "Not Found"},
                 {405, "Method Not Allowed"},
                 {408, "Request Timeout"},
                 {409, "Conflict"},
                 {411, "Length Required"},
                 {413, "Content Too Large"},
                 {414, "URI Too Long"},
                 {415, "Unsupported Media Type"},
                 {417, "Expectation Failed"},
                 {421, "Misdirected Request"},
                 {422, "Unprocessable Content"},
                 {429, "Too Many Requests"},
                 {431, "Request Header Fields Too Large"},
                 {500, "Internal Server Error"},
                 {501, "Not Implemented"},
                 {503, "Service Unavailable"},
                 {504, "Gateway Timeout"},
                 {505, "HTTP Version Not Supported"}};
    for (size_t i = 0; i < COUNT_OF(known); i++)
        if (known[i].status == status) return known[i].text;
    return "Unknown";
}

/* Sun, 06 Nov 1994 08:49:37 GMT. Days to a date as Howard Hinnant's civil_from_days counts them:
 * years begin in March, so that the leap day is the last. */
static void http_put_date_(Buf *out, i64 now_unix) {
    static const char days[] = "ThuFriSatSunMonTueWed",
                      months[] = "MarAprMayJunJulAugSepOctNovDecJanFeb";
    u64 now = now_unix > 0 ? (u64)now_unix : 0;
    u64 day = now / 86400, second = now % 86400;
    u64 z = day + 719468, era = z / 146097, doe = z % 146097;
    u64 yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
    u64 doy = doe - (365 * yoe + yoe / 4 - yoe / 100), month = (5 * doy + 2) / 153; /* March is 0 */
    u64 year = yoe + era * 400 + (month >= 10), mday = doy - (153 * month + 2) / 5 + 1;
    buf_printf(out, "%.3s, %02d %.3s %04d %02d:%02d:%02d GMT", days + day % 7 * 3, (int)mday,
               months + month * 3, (int)year, (int)(second / 3600), (int)(second / 60 % 60),
               (int)(second % 60));
}

/* What can be answered to this request; a refused one is also the last of its connection. */
static HttpReply http_reply(const HttpRequest *r, int status) {
    return (HttpReply){.status = status,
                       .keep_alive = r->keep_alive && r->state == HTTP_DONE,
                       .old = r->method.p && r->minor == 0,
                       .head_only = str_eq(r->method, STR("HEAD"))};
}

static void http_put_continue(Buf *out) {
    buf_str(out, STR("HTTP/1.1 100 Continue\r\n\r\n"));
}

/* Name: value. A byte that would end or break the line becomes a question mark. */
static void http_put_field(Buf *out, const char *name, Str value) {
    buf_printf(out, "%s: ", name);
    for (size_t i = 0; i < value.n; i++) {
        u8 c = (u8)value.p[i];
        buf_char(out, (c < 0x20 && c != '\t') || c == 0x7f ? '?' : (char)c);
    }
    buf_str(out, STR("\r\n"));
}

/* The status line and the fields that every answer has; more fields may follow, then the framing. */
static void http_put_head(Buf *out, const HttpReply *a, i64 now_unix) {
    buf_printf(out, "HTTP/1.1 %d %s\r\nDate: ", a->status, http_status_text(a->status));
    http_put_date_(out, now_unix);
    buf_str(out, STR("\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"));
    if (!a->keep_alive)
        buf_str(out, STR("Connection: close\r\n"));
    else if (a->old)
        buf_str(out, STR("Connection: keep-alive\r\n"));
}

/* Ends the head of an answer whose body has n bytes. */
static void http_put_length(Buf *out, const HttpReply *a, size_t n) {
    if (a->status != 204 && a->status != 304) buf_printf(out, "Content-Length: %zu\r\n", n);
    buf_str(out, STR("\r\n"));
}

/* Makes the reply one of unknown length; before its head is written, for HTTP/1.0 cannot keep the
 * connection then. */
static void http_stream(HttpReply *a) {
    a->chunked = !a->old;
    if (a->old) a->keep_alive = false;
}

/* Ends the head of an answer of unknown length. */
static void http_put_stream(Buf *out, const HttpReply *a) {
    if (a->chunked) buf_str(out, STR("Transfer-Encoding: chunked\r\n"));
    buf_str(out, STR("\r\n"));
}

/* A piece of the body. An empty one is nothing: an empty chunk would end the stream. */
static void http_put_body(Buf *out, const HttpReply *a, Str piece) {
    if (a->head_only || piece.n == 0) return;
    if (a->chunked) buf_printf(out, "%zx\r\n", piece.n);
    buf_str(out, piece);
    if (a->chunked) buf_str(out, STR("\r\n"));
}

/* The end of a body of unknown length. A stream that failed leaves it out: then the client knows. */
static void http_put_end(Buf *out, const HttpReply *a) {
    if (a->chunked && !a->head_only) buf_str(out, STR("0\r\n\r\n"));
}

/* ---- server-sent events ---- */

/* One event; `event` may be NULL. Every line of the data is a line of its own. */
static void http_put_event(Buf *out, const char *event, Str data) {
    if (event) buf_printf(out, "event: %s\n", event);
    size_t from = 0;
    do {
        size_t to = from;
        while (to < data.n && data.p[to] != '\n' && data.p[to] != '\r') to++;
        buf_str(out, STR("data: "));
        buf_str(out, str_cut(data, from, to));
        buf_char(out, '\n');
        from = to + (to + 1 < data.n && data.p[to] == '\r' && data.p[to + 1] == '\n') + 1;
    } while (from <= data.n);
    buf_char(out, '\n');
}

/* A line that clients ignore; it keeps the connection from looking dead. */
static void http_put_ping(Buf *out) {
    buf_str(out, STR(": ping\n\n"));
}

/* ---- the other side, for `dlm health` ---- */

/* The status of a response that begins with s; 0 when that is not HTTP/1. */
static int http_read_status(Str s) {
    if (s.n < 13 || !str_starts(s, STR("HTTP/1.")) || !http_is_digit_(s.p[7]) || s.p[8] != ' ')
        return 0;
    int status = 0;
    for (size_t i = 9; i < 12; i++) {
        if (!http_is_digit_(s.p[i])) return 0;
        status = status * 10 + s.p[i] - '0';
    }
    return (s.p[12] == ' ' || s.p[12] == '\r') && status >= 100 ? status : 0;
}

#endif

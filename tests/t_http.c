/* t_http.c - requests in every cut, what must be refused and why, replies, events. */
#include "../src/http.c"
#include "test.h"

#define OK_ 0 /* in the tables: not refused */
#define BODY_MAX 64

static HttpRequest r; /* 20 KiB: not for the stack of a test */

/* Feeds text in pieces of `step` bytes (0: at once), reading bodies. Returns the bytes consumed. */
static size_t feed(Str text, size_t step) {
    size_t used = 0;
    http_reset(&r);
    while (used < text.n && r.state != HTTP_DONE && r.state != HTTP_REFUSED) {
        size_t n = step && step < text.n - used ? step : text.n - used;
        char piece[64]; /* a copy, so that nothing can look beyond the piece */
        if (step) memcpy(piece, text.p + used, n);
        used += http_feed(&r, step ? piece : text.p + used, n);
        if (r.state == HTTP_HEAD) http_read_body(&r, BODY_MAX);
    }
    return used;
}

#define HOST "Host: h\r\n"

static void test_refusals(void) {
    static const struct {
        int status;
        const char *text;
    } cases[] = {
        {OK_, "GET / HTTP/1.1\r\n" HOST "\r\n"},
        {OK_, "\r\nGET / HTTP/1.1\r\n" HOST "\r\n"},
        {400, "\r\n\r\nGET / HTTP/1.1\r\n" HOST "\r\n"},
        {400, "GET / HTTP/1.1\n" HOST "\r\n"},
        {400, "GET / HTTP/1.1\r\nHost: h\n\r\n"},
        {400, "GET / HTTP/1.1\r\n" HOST "\n"},
        {400, "GET / HTTP/1.1\r\n" HOST "A: b\rC: d\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\r\n" HOST "\r\n"},
        {400, "\n"},
        {400, "\rx"},
        {400, "\x16\x03\x01\x02"},
        {400, "GET /\r\n" HOST "\r\n"}, /* HTTP/0.9 */
        {400, "GET\r\n"},
        {400, "GET / HTTP/1.1 \r\n" HOST "\r\n"},
        {400, "GET  / HTTP/1.1\r\n" HOST "\r\n"},
        {400, "GET / / HTTP/1.1\r\n" HOST "\r\n"},
        {400, " GET / HTTP/1.1\r\n" HOST "\r\n"},
        {400, "GET\t/ HTTP/1.1\r\n" HOST "\r\n"},
        {400, "GET / http/1.1\r\n" HOST "\r\n"},
        {400, "GET / HTTP/1.10\r\n" HOST "\r\n"},
        {400, "GET / HTTP/11\r\n" HOST "\r\n"},
        {400, "GET / XTTP/1.1\r\n" HOST "\r\n"},
        {505, "GET / HTTP/2.0\r\n" HOST "\r\n"},
        {505, "PRI * HTTP/2.0\r\n\r\n"},
        {505, "GET / HTTP/1.2\r\n" HOST "\r\n"},
        {505, "GET / HTTP/0.9\r\n" HOST "\r\n"},
        {501, "BREW / HTTP/1.1\r\n" HOST "\r\n"},
        {501, "CONNECT h:80 HTTP/1.1\r\n" HOST "\r\n"},
        {501, "TRACE / HTTP/1.1\r\n" HOST "\r\n"},
        {501, "get / HTTP/1.1\r\n" HOST "\r\n"},
        {400, "G(T / HTTP/1.1\r\n" HOST "\r\n"},
        {400, "AAAAAAAAAAAAAAAAAAAAAAAAA"},
        /* targets */
        {400, "GET x HTTP/1.1\r\n" HOST "\r\n"},
        {400, "GET * HTTP/1.1\r\n" HOST "\r\n"},
        {OK_, "OPTIONS * HTTP/1.1\r\n" HOST "\r\n"},
        {400, "GET /#f HTTP/1.1\r\n" HOST "\r\n"},
        {400, "GET /\xc3\xa9 HTTP/1.1\r\n" HOST "\r\n"},
        {400, "GET /\x7f HTTP/1.1\r\n" HOST "\r\n"},
        {OK_, "GET http://h/a?b HTTP/1.1\r\n" HOST "\r\n"},
        {OK_, "GET http://H HTTP/1.1\r\n" HOST "\r\n"},
        {400, "GET http://other/a HTTP/1.1\r\n" HOST "\r\n"},
        {400, "GET http:///a HTTP/1.1\r\n" HOST "\r\n"},
        {400, "GET http://u@h/a HTTP/1.1\r\n" HOST "\r\n"},
        {400, "GET ftp://h/a HTTP/1.1\r\n" HOST "\r\n"},
        /* hosts */
        {400, "GET / HTTP/1.1\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\n" HOST HOST "\r\n"},
        {400, "GET / HTTP/1.0\r\n" HOST "hOST: x\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nHost:\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nHost: a b\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nHost: a:\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nHost: a:x\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nHost: a:123456\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nHost: []\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n"},
        {OK_, "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n"},
        {OK_, "GET / HTTP/1.0\r\n\r\n"},
        /* fields */
        {400, "GET / HTTP/1.1\r\n" HOST "A : b\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\n" HOST "A\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\n" HOST ": b\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\n" HOST "A: b\r\n c\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\n" HOST "A: b\r\n\tc\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\n " HOST "\r\n"},
        {400, "GET / HTTP/1.1\r\n" HOST "A: \x01\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\n" HOST "A\x80: b\r\n\r\n"},
        {OK_, "GET / HTTP/1.1\r\n" HOST "A: \x80\xff\tb\r\n\r\n"},
        {400, "GET / HTTP/1.1\r\n" HOST "Authorization: a\r\nAuthorization: b\r\n\r\n"},
        {417, "POST / HTTP/1.1\r\n" HOST "Expect: 200-ok\r\nContent-Length: 1\r\n\r\n"},
        {415, "POST / HTTP/1.1\r\n" HOST "Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\n"},
        /* framing: the smuggler's kit */
        {OK_, "POST / HTTP/1.1\r\n" HOST "Content-Length: 0\r\n\r\n"},
        {OK_, "POST / HTTP/1.1\r\n" HOST "Content-Length: 002\r\n\r\nab"},
        {411, "POST / HTTP/1.1\r\n" HOST "\r\n"},
        {400, "POST / HTTP/1.1\r\n" HOST "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"},
        {400, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n"},
        {400, "POST / HTTP/1.1\r\n" HOST "Content-Length: 1\r\nContent-Length: 1\r\n\r\nx"},
        {400, "POST / HTTP/1.1\r\n" HOST "Content-Length: 1, 1\r\n\r\nx"},
        {400, "POST / HTTP/1.1\r\n" HOST "Content-Length: +1\r\n\r\nx"},
        {400, "POST / HTTP/1.1\r\n" HOST "Content-Length: -1\r\n\r\nx"},
        {400, "POST / HTTP/1.1\r\n" HOST "Content-Length: 0x1\r\n\r\nx"},
        {400, "POST / HTTP/1.1\r\n" HOST "Content-Length: 1 1\r\n\r\nx"},
        {400, "POST / HTTP/1.1\r\n" HOST "Content-Length:\r\n\r\nx"},
        {400, "POST / HTTP/1.1\r\n" HOST "Content-Length : 1\r\n\r\nx"},
        {400, "POST / HTTP/1.1\r\n" HOST "X: y\r\n Content-Length: 1\r\n\r\nx"},
        {413, "POST / HTTP/1.1\r\n" HOST "Content-Length: 65\r\n\r\n"},
        {413, "POST / HTTP/1.1\r\n" HOST "Content-Length: 18446744073709551617\r\n\r\n"},
        {413, "POST / HTTP/1.1\r\n" HOST "Content-Length: 99999999999999999999999999999\r\n\r\n"},
        {501, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: xchunked\r\n\r\n"},
        {501, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: gzip, chunked\r\n\r\n"},
        {501, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked, chunked\r\n\r\n"},
        {501, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: identity\r\n\r\n"},
        {501, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding:\r\n\r\n"},
        {400, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n"},
        {400, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: \x0b" "chunked\r\n\r\n"},
        {400, "POST / HTTP/1.0\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
#define CHUNKED "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: Chunked\r\n\r\n"
        {OK_, CHUNKED "0\r\n\r\n"},
        {OK_, CHUNKED "2\r\nab\r\n0000\r\n\r\n"},
        {OK_, CHUNKED "2;x=\"y\"\r\nab\r\n0\r\nT: v\r\nU: w\r\n\r\n"},
        {400, CHUNKED "2\r\nabc\r\n0\r\n\r\n"},
        {400, CHUNKED "2\r\nab0\r\n\r\n"},
        {400, CHUNKED "2\nab\r\n0\r\n\r\n"},
        {400, CHUNKED "2\r\nab\n0\r\n\r\n"},
        {400, CHUNKED "2;a\nb\r\nab\r\n0\r\n\r\n"},
        {400, CHUNKED "\r\n"},
        {400, CHUNKED ";x\r\n"},
        {400, CHUNKED "0x2\r\nab\r\n"},
        {400, CHUNKED "-2\r\n"},
        {400, CHUNKED " 2\r\nab\r\n"},
        {400, CHUNKED "2 \r\nab\r\n"},
        {400, CHUNKED "0000000000000002\r\nab\r\n0\r\n\r\n"},
        {400, CHUNKED "fffffffffffffffff\r\n"},
        {413, CHUNKED "fffffffffffffff\r\n"},
        {413, CHUNKED "41\r\n"},
        {413, CHUNKED "1\r\na\r\n40\r\n"},
        {400, CHUNKED "0\r\nbad trailer\r\n\r\n"},
        {400, CHUNKED "0\r\n folded: x\r\n\r\n"},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Str text = str_of(cases[i].text);
        for (size_t step = 0; step <= 3; step++) {
            size_t used = feed(text, step);
            int got = r.state == HTTP_DONE ? OK_ : r.state == HTTP_REFUSED ? r.status : -1;
            CHECK_MSG(got == cases[i].status, "case %zu by %zu: %d, want %d: %s", i, step, got,
                      cases[i].status, r.reason ? r.reason : "");
            CHECK_MSG(got != OK_ || used == text.n, "case %zu by %zu: %zu of %zu bytes", i, step,
                      used, text.n);
            CHECK_MSG(got == OK_ || (r.reason && !r.keep_alive), "case %zu: no reason", i);
            CHECK(http_feed(&r, "x", 1) == 0); /* neither done nor refused takes more */
        }
    }
    feed(STR("\x16"), 0);
    CHECK(r.reason && strstr(r.reason, "TLS"));
}

static void test_fields(void) {
    const Str text = STR("POST /v1/x%20y?a=1&b=%26&c HTTP/1.1\r\nHost: Example.org:8080\r\n"
                         "X-Empty:\r\nx-pad: \t v w \t\r\nConnection: Upgrade , Close\r\n"
                         "Expect: 100-Continue\r\nTransfer-Encoding: chunked\r\n\r\n"
                         "5;e\r\nhello\r\n1\r\n \r\n00006\r\nworld!\r\n0\r\nT: v\r\n\r\nGET / HTTP/1.1\r\n");
    for (size_t step = 0; step < 40; step++) {
        CHECK_U64(text.n - feed(text, step), strlen("GET / HTTP/1.1\r\n"));
        CHECK_INT(r.state, HTTP_DONE);
        CHECK_STR(r.method, STR("POST"));
        CHECK_STR(r.path, STR("/v1/x%20y"));
        CHECK_STR(r.query, STR("a=1&b=%26&c"));
        CHECK_STR(r.host, STR("Example.org:8080"));
        CHECK_STR(http_host_name(r.host), STR("Example.org"));
        CHECK_INT(r.n_fields, 6);
        CHECK_STR(http_field(&r, "X-PAD"), STR("v w"));
        CHECK(http_field(&r, "x-empty").p && http_field(&r, "x-empty").n == 0);
        CHECK(!http_field(&r, "x-none").p);
        CHECK(!r.keep_alive && r.expect_continue);
        CHECK_STR(buf_view(&r.body), STR("hello world!"));
    }
    CHECK_STR(http_query(r.query, STR("a")), STR("1"));
    CHECK_STR(http_query(r.query, STR("b")), STR("%26"));
    CHECK(http_query(r.query, STR("c")).p && !http_query(r.query, STR("d")).p);
    CHECK_STR(http_host_name(STR("[::1]:80")), STR("::1"));
    CHECK_STR(http_host_name(STR("h")), STR("h"));
    Buf b = {0};
    CHECK(http_unescape(&b, STR("/x%20y%e2%9C%93")));
    CHECK_STR(buf_view(&b), STR("/x y\xe2\x9c\x93"));
    CHECK(!http_unescape(&b, STR("%")) && !http_unescape(&b, STR("%4")) && !http_unescape(&b, STR("%4g")));
    CHECK(!http_unescape(&b, STR("%00")));
    buf_free(&b);
}

static void test_keep_alive(void) {
    static const struct {
        const char *text;
        bool keep;
    } cases[] = {{"GET / HTTP/1.1\r\n" HOST "\r\n", true},
                 {"GET / HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n", false},
                 {"GET / HTTP/1.1\r\n" HOST "Connection: x\r\nconnection: keep-alive,CLOSE\r\n\r\n", false},
                 {"GET / HTTP/1.1\r\n" HOST "Connection: closed\r\n\r\n", true},
                 {"GET / HTTP/1.0\r\n\r\n", false},
                 {"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        feed(str_of(cases[i].text), 0);
        CHECK_MSG(r.keep_alive == cases[i].keep, "case %zu", i);
    }
    /* three requests in one read come out one by one */
    Str text = STR("GET /1 HTTP/1.1\r\n" HOST "\r\nPOST /2 HTTP/1.1\r\n" HOST "Content-Length: 3\r\n\r\n"
                   "abcGET /3 HTTP/1.1\r\n" HOST "\r\n");
    static const char *const paths[] = {"/1", "/2", "/3"};
    for (size_t i = 0; i < 3; i++) {
        size_t used = feed(text, 0);
        CHECK_INT(r.state, HTTP_DONE);
        CHECK_STR(r.path, str_of(paths[i]));
        CHECK_STR(buf_view(&r.body), i == 1 ? STR("abc") : STR(""));
        text = str_cut(text, used, text.n);
    }
    CHECK_U64(text.n, 0);
    http_reset(&r);
    CHECK(!http_begun(&r));
    http_feed(&r, "G", 1);
    CHECK(http_begun(&r));
}

static void test_limits(void) {
    Buf b = {0};
    for (int over = 0; over < 2; over++) { /* the target: 8192 bytes, then one more */
        buf_clear(&b);
        buf_str(&b, STR("GET /"));
        for (size_t i = 0; i < HTTP_TARGET_MAX - 1 + (size_t)over; i++) buf_char(&b, 'x');
        buf_str(&b, STR(" HTTP/1.1\r\n" HOST "\r\n"));
        feed(buf_view(&b), 0);
        CHECK_INT(over ? r.status : (int)r.state, over ? 414 : (int)HTTP_DONE);
    }
    for (int over = 0; over < 2; over++) { /* the head: 16384 bytes, then one more */
        buf_clear(&b);
        buf_str(&b, STR("GET / HTTP/1.1\r\n" HOST "X: "));
        while (b.n < HTTP_HEAD_MAX - 4 + (size_t)over) buf_char(&b, 'x');
        buf_str(&b, STR("\r\n\r\n"));
        size_t used = feed(buf_view(&b), 0);
        CHECK_INT(over ? r.status : (int)r.state, over ? 431 : (int)HTTP_DONE);
        CHECK_U64(used, HTTP_HEAD_MAX);
    }
    for (int over = 0; over < 2; over++) { /* 100 fields, then one more */
        buf_clear(&b);
        buf_str(&b, STR("GET / HTTP/1.1\r\n" HOST));
        for (int i = 1; i < HTTP_FIELDS_MAX + over; i++) buf_str(&b, STR("a:b\r\n"));
        buf_str(&b, STR("\r\n"));
        feed(buf_view(&b), 0);
        CHECK_INT(over ? r.status : (int)r.state, over ? 431 : (int)HTTP_DONE);
    }
    buf_clear(&b); /* a target that never ends is told at once, not after 16 KiB */
    buf_str(&b, STR("GET /"));
    while (b.n < HTTP_HEAD_MAX) buf_char(&b, 'x');
    CHECK(feed(buf_view(&b), 0) < HTTP_TARGET_MAX + 64);
    CHECK_INT(r.status, 414);
    buf_clear(&b); /* a chunk's line that never ends; extensions without end */
    buf_str(&b, STR(CHUNKED "1;"));
    for (size_t i = 0; i < HTTP_CHUNK_LINE_MAX; i++) buf_char(&b, 'x');
    feed(buf_view(&b), 0);
    CHECK_INT(r.status, 431);
    buf_clear(&b);
    buf_str(&b, STR(CHUNKED "0\r\n"));
    while (b.n < 2 * HTTP_CHUNK_EXTRA_MAX) buf_str(&b, STR("trailer: of some length\r\n"));
    CHECK(feed(buf_view(&b), 0) < b.n);
    CHECK_INT(r.status, 431);
    buf_clear(&b); /* the longest head and the longest chunk line together stay in their buffer */
    buf_str(&b, STR("POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\nX: "));
    while (b.n < HTTP_HEAD_MAX - 4) buf_char(&b, 'x');
    buf_str(&b, STR("\r\n\r\n1;"));
    for (size_t i = 0; i < HTTP_CHUNK_LINE_MAX - 4; i++) buf_char(&b, 'x');
    buf_str(&b, STR("\r\nx\r\n0\r\n\r\n"));
    feed(buf_view(&b), 0);
    CHECK_INT(r.state, HTTP_DONE);
    CHECK_STR(buf_view(&r.body), STR("x"));
    buf_free(&b);
}

static bool body_of_64(void *arg, Err *e) {
    (void)arg;
    feed(STR("POST / HTTP/1.1\r\n" HOST "Content-Length: 3\r\n\r\nabc"), 0);
    bool ok = r.state == HTTP_DONE;
    if (!ok) err_set(e, r.status == 503 ? ERR_MEMORY : ERR_RUNTIME, "%s", r.reason);
    http_free(&r);
    return ok;
}

static void test_replies(void) {
    Buf b = {0};
    feed(STR("GET / HTTP/1.1\r\n" HOST "\r\n"), 0);
    HttpReply a = http_reply(&r, 200);
    http_put_head(&b, &a, 784111777);
    http_put_field(&b, "Content-Type", STR("text/plain\r\nX: y\x7f"));
    http_put_length(&b, &a, 2);
    http_put_body(&b, &a, STR("ok"));
    CHECK_STR(buf_view(&b),
              STR("HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
                  "X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"
                  "Content-Type: text/plain??X: y?\r\nContent-Length: 2\r\n\r\nok"));
    buf_clear(&b);
    http_stream(&a);
    http_put_stream(&b, &a);
    http_put_body(&b, &a, STR(""));
    http_put_body(&b, &a, STR("sixteen  letters"));
    http_put_end(&b, &a);
    CHECK_STR(buf_view(&b), STR("Transfer-Encoding: chunked\r\n\r\n10\r\nsixteen  letters\r\n0\r\n\r\n"));
    feed(STR("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"), 0);
    a = http_reply(&r, 404);
    buf_clear(&b);
    http_put_head(&b, &a, 0);
    CHECK(str_find(buf_view(&b), STR("Connection: keep-alive\r\n"), 0) != SIZE_MAX);
    CHECK(str_find(buf_view(&b), STR("Thu, 01 Jan 1970 00:00:00 GMT"), 0) != SIZE_MAX);
    http_stream(&a);
    CHECK(!a.keep_alive && !a.chunked);
    feed(STR("HEAD / HTTP/1.1\r\n" HOST "\r\n"), 0);
    a = http_reply(&r, 200);
    buf_clear(&b);
    http_put_body(&b, &a, STR("not for HEAD"));
    http_stream(&a);
    http_put_end(&b, &a);
    CHECK_U64(b.n, 0);
    feed(STR("BREW"), 0);
    http_refuse(&r, 408, "the request did not come in time");
    a = http_reply(&r, r.status);
    http_put_head(&b, &a, 951782400);
    CHECK(str_starts(buf_view(&b), STR("HTTP/1.1 408 Request Timeout\r\nDate: Tue, 29 Feb 2000 00:00:00")));
    CHECK(str_ends(buf_view(&b), STR("Connection: close\r\n")));
    buf_clear(&b);
    http_put_continue(&b);
    http_put_ping(&b);
    http_put_event(&b, NULL, STR("{}"));
    http_put_event(&b, "error", STR("a\nb\r\nc\rd\n"));
    http_put_event(&b, NULL, STR(""));
    CHECK_STR(buf_view(&b), STR("HTTP/1.1 100 Continue\r\n\r\n: ping\n\ndata: {}\n\nevent: error\ndata: a\n"
                                "data: b\ndata: c\ndata: d\ndata: \n\ndata: \n\n"));
    buf_free(&b);
    CHECK_INT(http_read_status(STR("HTTP/1.1 503 Service Unavailable\r\n")), 503);
    CHECK_INT(http_read_status(STR("HTTP/1.0 200\r\n")), 200);
    CHECK_INT(http_read_status(STR("HTTP/2.0 200 OK\r\n")), 0);
    CHECK_INT(http_read_status(STR("HTTP/1.1 20x OK\r\n")), 0);
    CHECK_INT(http_read_status(STR("HTTP/1.1 200")), 0);
}

int main(void) {
    test_refusals();
    test_fields();
    test_keep_alive();
    test_limits();
    test_replies();
    http_free(&r);
    CHECK(test_alloc_failures(body_of_64, NULL) == 1);
    return test_end();
}

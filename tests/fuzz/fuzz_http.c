/* fuzz_http.c - any bytes, at once and in pieces: the same requests, the same refusal, one clean reply. */
#include "../../src/http.c"

#define N_MAX 64 /* requests */

typedef struct {
    HttpState state;
    int status, n_fields;
    size_t used, n_body;
    u64 hash; /* of everything that a request's fields view */
} Seen;

static HttpRequest request;

static Seen look(size_t used) {
    const HttpRequest *r = &request;
    Seen s = {r->state, r->status, r->n_fields, used, r->body.n, str_hash(buf_view(&r->body))};
    const Str texts[] = {r->method, r->target, r->path, r->query, r->host};
    for (size_t i = 0; i < COUNT_OF(texts); i++) s.hash = s.hash * 31 + str_hash(texts[i]);
    for (int i = 0; i < r->n_fields; i++)
        s.hash = s.hash * 31 + str_hash(r->fields[i].name) * 7 + str_hash(r->fields[i].value);
    return s;
}

static size_t read_all(Str text, size_t step, Seen seen[N_MAX]) {
    size_t used = 0, n = 0;
    while (used < text.n && n < N_MAX) {
        http_reset(&request);
        while (used < text.n && request.state < HTTP_DONE) {
            size_t most = step ? MIN_OF(step, text.n - used) : text.n - used;
            used += http_feed(&request, text.p + used, most);
            if (request.state == HTTP_HEAD) http_read_body(&request, 1000);
        }
        ASSERT(request.body.n <= 1000 &&
               (request.state == HTTP_REFUSED) == (request.reason != NULL));
        seen[n++] = look(used);
        if (request.state == HTTP_REFUSED) break;
    }
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static Seen whole[N_MAX], cut[N_MAX];
    if (n < 1) return 0;
    Str text = {(const char *)data + 1, n - 1};
    size_t n_whole = read_all(text, 0, whole), n_cut = read_all(text, 1 + data[0] % 32, cut);
    ASSERT(n_whole == n_cut);
    for (size_t i = 0; i < n_whole; i++)
        ASSERT(whole[i].state == cut[i].state && whole[i].status == cut[i].status &&
               whole[i].n_fields == cut[i].n_fields && whole[i].used == cut[i].used &&
               whole[i].n_body == cut[i].n_body && whole[i].hash == cut[i].hash);
    Buf out = {0};
    HttpReply a = http_reply(&request, 200);
    http_put_field(&out, "X", text);
    ASSERT(str_find(buf_view(&out), STR("\n"), 0) == out.n - 1);
    buf_clear(&out);
    http_put_event(&out, NULL, text);
    ASSERT(str_find(buf_view(&out), STR("\n\n"), 0) == out.n - 2);
    ASSERT(http_unescape(&out, request.path) || request.path.n);
    ASSERT(http_query(request.query, STR("a")).n <= request.query.n && a.status == 200);
    http_read_status(text);
    buf_free(&out);
    http_free(&request);
    return 0;
}

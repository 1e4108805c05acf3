/* t_server.c - what the server decides without a socket: keys, hosts, origins, exposure, whose turn it is. */
#define DLM_NO_DEMO
#include "../src/server.c"
#include "test.h"

static Server s;
static ServerWorker workers[4];

static ServerWorker *fresh(const ServerOptions *o) {
    s = (Server){.o = *o, .workers = workers, .n_workers = 4};
    memset(workers, 0, sizeof workers);
    for (i32 i = 0; i < 4; i++) workers[i].server = &s;
    os_lock_open(&s.lock);
    return &workers[0];
}

static void field(ServerWorker *w, const char *name, const char *value) {
    w->http.fields[w->http.n_fields++] = (HttpField){str_of(name), str_of(value)};
}

/* ---- keys ---- */

static void check_key_files(void) {
    static const struct {
        const char *text, *names; /* of the keys, or part of the error */
        bool ok;
    } cases[] = {
        {"", "", true},
        {"# nothing\n\n   \n", "", true},
        {"long-enough", "key1 ", true},
        {"a-first-key\r\nalice another-key # hers\n\tbob\tthird--key", "key1 alice bob ", true},
        {"seven77\n", "key 1 has 7 bytes", false},
        {"a name and-a-key\n", "a name and a key", false},
        {"a-name-that-is-longer-than-31-bytes long-enough\n", "names up to 31", false},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        Err e = {0};
        ServerKeys_ keys = {.p = mem_alloc_n(SERVER_KEYS_MAX, sizeof *keys.p, &e)};
        Buf names = {0};
        bool ok = server_parse_keys_(&keys, str_of(cases[i].text), "keys", &e);
        for (i32 k = 0; k < keys.n; k++) buf_printf(&names, "%s ", keys.p[k].name);
        CHECK_MSG(ok == cases[i].ok, "case %zu: %s", i, e.msg);
        if (cases[i].ok)
            CHECK_STR(buf_view(&names), str_of(cases[i].names));
        else
            CHECK_ERR(e, ERR_USAGE, cases[i].names);
        buf_free(&names);
        mem_free(keys.p);
    }
    Buf many = {0};
    Err e = {0};
    ServerKeys_ keys = {.p = mem_alloc_n(SERVER_KEYS_MAX, sizeof *keys.p, &e)};
    for (int i = 0; i <= SERVER_KEYS_MAX; i++) buf_printf(&many, "key-number-%d\n", i);
    CHECK(!server_parse_keys_(&keys, buf_view(&many), "keys", &e));
    CHECK_ERR(e, ERR_USAGE, "more than 256 keys");
    buf_free(&many);
    mem_free(keys.p);
}

static void check_keys(void) {
    const ServerOptions o = {.per_key_max = 3};
    ServerWorker *w = fresh(&o);
    Err e = {0};
    s.keys.p = mem_alloc_n(SERVER_KEYS_MAX, sizeof *s.keys.p, &e);
    CHECK(server_parse_keys_(&s.keys, STR("alice first-key\nbob second-key\n"), "keys", &e));
    static const struct {
        const char *name, *value, *who;
    } cases[] = {
        {"Authorization", "Bearer first-key", "alice"},
        {"authorization", "bEARER second-key", "bob"},
        {"X-Api-Key", "second-key", "bob"},
        {"Authorization", "Bearer first-ke", NULL},
        {"Authorization", "Bearer first-key2", NULL},
        {"Authorization", "Bearer ", NULL},
        {"Authorization", "Basic first-key", NULL},
        {"X-Api-Key", "", NULL},
        {"Cookie", "first-key", NULL},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        ApiError x = {0};
        w->http.n_fields = 0;
        w->note = (ServerNote_){0};
        field(w, cases[i].name, cases[i].value);
        bool ok = server_check_key_(w, &x);
        CHECK_MSG(ok == (cases[i].who != NULL) && x.status == (ok ? 0 : 401), "case %zu", i);
        CHECK_CSTR(w->note.key, cases[i].who ? cases[i].who : "");
    }
    ApiError x = {0};
    snprintf(w->note.key, sizeof w->note.key, "alice");
    CHECK(server_enter_key_(w, 2, &x) && server_enter_key_(w, 1, &x));
    CHECK(!server_enter_key_(w, 1, &x) && x.status == 429);
    server_leave_key_(w, 2);
    x = (ApiError){0};
    CHECK(!server_enter_key_(w, 3, &x) && x.status == 429);
    x = (ApiError){0};
    CHECK(server_enter_key_(w, 2, &x));
    snprintf(w->note.key, sizeof w->note.key, "bob"); /* others have a share of their own */
    CHECK(server_enter_key_(w, 3, &x));
    server_leave_key_(w, 100); /* after a reload that forgot some: never below none */
    CHECK_INT(server_named_key_(&s, "bob")->n_answers, 0);
    snprintf(w->note.key, sizeof w->note.key, "carol"); /* whom a reload has removed meanwhile */
    CHECK(server_enter_key_(w, 99, &x));
    server_leave_key_(w, 99);
    mem_free(s.keys.p);
    s.keys = (ServerKeys_){0};
    w->http.n_fields = 0;
    CHECK(server_check_key_(w, &x)); /* without keys nobody is asked */
    os_lock_close(&s.lock);
}

/* ---- hosts and origins ---- */

static void check_hosts(void) {
    static const struct {
        const char *host, *listed, *place;
        bool tls, ok;
    } cases[] = {
        {"localhost", NULL, "127.0.0.1", false, true},
        {"LOCALHOST:8080", NULL, "127.0.0.1", false, true},
        {"10.0.0.7:1", NULL, "0.0.0.0", false, true},
        {"[::1]:8080", NULL, "::", false, true},
        {"", NULL, "127.0.0.1", false, true}, /* HTTP/1.0 */
        {"evil.example", NULL, "127.0.0.1", false, false},
        {"evil.example", NULL, "dlm.sock", false, true}, /* no browser comes this way */
        {"evil.example", NULL, "0.0.0.0", true, true},   /* the certificate guards */
        {"evil.example", "dlm.example", "0.0.0.0", true, false},
        {"dlm.example", "other.example, DLM.example", "0.0.0.0", false, true},
        {"dlm.example.evil.example", "dlm.example", "0.0.0.0", false, false},
        {"evil.example", "*", "0.0.0.0", false, true},
        {"deadbeef", NULL, "127.0.0.1", false, false}, /* hex digits are a name without a colon */
        {"1.2.3.4.evil", NULL, "127.0.0.1", false, false},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const ServerOptions o = {.host = cases[i].place, .hosts = cases[i].listed};
        ServerWorker *w = fresh(&o);
        ApiError x = {0};
        s.has_tls = cases[i].tls;
        w->http.host = str_of(cases[i].host);
        bool ok = server_check_host_(w, &x);
        CHECK_MSG(ok == cases[i].ok && x.status == (ok ? 0 : 421), "host %zu", i);
        os_lock_close(&s.lock);
    }
}

static void check_origins(void) {
    static const struct {
        const char *origin, *listed; /* origin NULL: there is no such field */
        bool ok, told;               /* may read; is told so */
    } cases[] = {
        {NULL, NULL, true, false},
        {"http://dlm.example", NULL, true, false}, /* our own page */
        {"https://DLM.example", NULL, true, false},
        {"http://dlm.example:81", NULL, false, false},
        {"null", NULL, false, false},
        {"", NULL, false, false},
        {"http://page.example", NULL, false, false},
        {"http://page.example", "http://a.example,http://page.example", true, true},
        {"https://page.example", "http://page.example", false, false},
        {"http://page.example", "*", true, true},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const ServerOptions o = {.origins = cases[i].listed};
        ServerWorker *w = fresh(&o);
        ApiError x = {0};
        w->http.host = STR("dlm.example");
        if (cases[i].origin) field(w, "Origin", cases[i].origin);
        bool ok = server_check_origin_(w, &x);
        CHECK_MSG(ok == cases[i].ok && x.status == (ok ? 0 : 403), "origin %zu", i);
        CHECK_MSG((w->origin.n > 0) == cases[i].told, "origin %zu", i);
        os_lock_close(&s.lock);
    }
}

/* Beyond this machine: with a key and TLS, or not at all. */
static void check_exposure(void) {
    static const char *const places[] = {"127.0.0.1", "::1", "localhost", "/run/dlm.sock",
                                         "0.0.0.0",   "::",  "10.0.0.7"};
    ServerKey_ key = {.n = 8};
    for (size_t i = 0; i < COUNT_OF(places); i++)
        for (int mask = 0; mask < 8; mask++) {
            const ServerOptions o = {.host = places[i], .insecure = mask & 4};
            Err e = {0};
            fresh(&o);
            s.keys.p = mask & 1 ? &key : NULL;
            s.has_tls = mask & 2;
            bool want = i < 4 || (mask & 3) == 3 || (mask & 4);
            CHECK_MSG(server_check_exposure_(&s, &e) == want, "%s, %d", places[i], mask);
            if (!want)
                CHECK_ERR(e, ERR_USAGE,
                          mask & 1   ? "without TLS"
                          : mask & 2 ? "without a key:"
                                     : "without a key and TLS");
            os_lock_close(&s.lock);
        }
}

static void check_urls(void) {
    static const struct {
        const char *host, *url;
        i32 port;
        bool tls;
    } cases[] = {
        {"127.0.0.1", "http://127.0.0.1:8080", 8080, false},
        {"::1", "https://[::1]:443", 443, true},
        {"[::1]", "http://[::1]:1", 1, false},
        {"/run/dlm.sock", "http on the socket /run/dlm.sock", 0, false},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const ServerOptions o = {.host = cases[i].host};
        char url[100];
        fresh(&o);
        s.has_tls = cases[i].tls;
        s.listener.port = (u16)cases[i].port;
        CHECK_CSTR(server_url(&s, url, sizeof url), cases[i].url);
        os_lock_close(&s.lock);
    }
}

/* ---- whose turn it is ---- */

static void check_workers(void) {
    ServerOptions o = {.per_address_max = 0};
    fresh(&o);
    Err e = {0};
    NetConn c = {.fd = -1, .address = 7};
    for (i32 i = 0; i < 4; i++) CHECK_OK(net_waker_open(&workers[i].waker, &e), e);
    CHECK(server_free_worker_(&s) == &workers[0] && !server_is_crowded_(&s, &c));
    workers[0].phase = SERVER_BUSY_;
    workers[0].conn.address = 7;
    CHECK(server_free_worker_(&s) == &workers[1] && server_count_busy_(&s) == 1);
    CHECK(server_is_crowded_(&s, &c)); /* a stranger gets a quarter: one of four */
    c.loopback = true;                 /* proxies are not strangers, */
    CHECK(!server_is_crowded_(&s, &c));
    s.o.per_address_max = 1; /* unless that was asked for */
    CHECK(server_is_crowded_(&s, &c));
    c.address = 8;
    CHECK(!server_is_crowded_(&s, &c));
    workers[1].phase = SERVER_IDLE_;
    workers[1].idle_ms = 20;
    workers[2].phase = SERVER_IDLE_;
    workers[2].idle_ms = 10;
    workers[3].phase = SERVER_FRESH_;
    workers[3].idle_ms = 5; /* may be about to speak */
    CHECK(!server_free_worker_(&s) && server_count_busy_(&s) == 4);
    server_drop_idle_(&s);
    for (i32 i = 0; i < 4; i++) /* the one that has been idle longest */
        CHECK_INT(net_wait_waker(&workers[i].waker, 0), i == 2 ? NET_WOKEN : NET_TIMEOUT);
    for (i32 i = 0; i < 4; i++) net_waker_close(&workers[i].waker);
    os_lock_close(&s.lock);
}

/* Ready until it stops; the rest goes on being answered, but for the last time. */
static void check_states(void) {
    static const struct {
        ServerState_ state;
        const char *method, *path;
        i32 status; /* 0: it is answered */
    } cases[] = {
        {SERVER_OPEN_, "GET", "/readyz", 0},
        {SERVER_DRAINING_, "GET", "/livez", 0},
        {SERVER_DRAINING_, "POST", "/v1/chat/completions", 0},
        {SERVER_OPEN_, "GET", "/v1/chat/completions", 405},
        {SERVER_OPEN_, "GET", "/nowhere", 404},
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const ServerOptions o = server_options_default();
        ServerWorker *w = fresh(&o);
        ApiError x = {0};
        Str id;
        s.state = cases[i].state;
        w->http.method = str_of(cases[i].method);
        w->http.path = str_of(cases[i].path);
        w->http.minor = 1;
        w->http.keep_alive = true;
        w->http.state = HTTP_DONE;
        CHECK_MSG(server_admit_(w, &id, &x) == !cases[i].status, "case %zu", i);
        CHECK_INT(x.status, cases[i].status);
        HttpReply a = http_reply(&w->http, 200);
        server_put_head_(w, &a, NULL);
        CHECK(a.keep_alive == (cases[i].state == SERVER_OPEN_));
        CHECK(w->http.keep_alive == a.keep_alive);
        buf_free(&w->out);
        os_lock_close(&s.lock);
    }
}

/* Every line of the log is JSON, whatever it says. */
static void check_log(void) {
    char path[] = "/tmp/dlm-log-XXXXXX";
    int fd = mkstemp(path), out = dup(OS_STDERR);
    Buf text = {0};
    JsonDoc d = {0};
    Err e = {0};
    Str said;
    dup2(fd, OS_STDERR);
    base_log_sink = server_log_line_;
    log_line(LOG_WARN, "a \"quote\", a \\ and a \n line");
    base_log_sink = NULL;
    dup2(out, OS_STDERR);
    close(out);
    close(fd);
    CHECK_OK(os_read_file(path, &text, &e), e);
    unlink(path);
    CHECK_OK(json_parse(&d, buf_view(&text), &e), e);
    CHECK(json_str(&d, json_get(&d, 0, "level"), &said) && str_eq(said, STR("warning")));
    CHECK(json_str(&d, json_get(&d, 0, "message"), &said) &&
          str_eq(said, STR("a \"quote\", a \\ and a \n line")));
    json_free(&d);
    buf_free(&text);
}

/* ---- a stream's events ---- */

static void check_events(ServerCall_ *c, const char *what, i32 n_events, Str holds) {
    i32 n = 0;
    server_put_text_(c);
    Str all = buf_view(&c->events);
    for (size_t at = 0; (at = str_find(all, STR("data: "), at)) != SIZE_MAX; at++) n++;
    CHECK_MSG(n == n_events && str_find(all, holds, 0) != SIZE_MAX, "%s: %.*s", what, STR_ARG(all));
    buf_clear(&c->events);
}

/* Text that comes at once becomes one event, of its own choice and no longer than is good. */
static void check_texts(void) {
    static char piece[SERVER_CHUNK / 2 + 1];
    Err e = {0};
    ServerWorker w = {0};
    ServerCall_ *c = mem_alloc(sizeof *c, &e);
    memset(piece, 'x', sizeof piece);
    c->w = &w;
    c->req = (ApiRequest){.route = API_LLAMA, .stream = true};
    c->reply = (ApiReply){.req = &c->req};
    c->req.n_prompts = 1, c->req.n = 2;
    CHECK_OK(server_alloc_choices_(c, &e), e);
    check_events(c, "nothing", 0, STR(""));
    server_take_event_(c, &(BatchEvent){.kind = BATCH_TEXT, .text = STR("one ")});
    server_take_event_(c, &(BatchEvent){.kind = BATCH_TEXT, .text = STR("two")});
    check_events(c, "two pieces", 1, STR("\"one two\""));
    server_take_event_(c, &(BatchEvent){.kind = BATCH_TEXT, .text = STR("mine")});
    server_take_event_(c, &(BatchEvent){.kind = BATCH_TEXT, .text = STR("yours"), .job = 1});
    check_events(c, "two choices", 2, STR("\"yours\""));
    server_take_event_(c, &(BatchEvent){.kind = BATCH_TEXT, .text = STR("before")});
    server_take_event_(c, &(BatchEvent){.kind = BATCH_STEP, .step = {.kind = "ar"}});
    server_take_event_(c, &(BatchEvent){.kind = BATCH_TEXT, .text = STR("after")});
    check_events(c, "a step between", 3, STR("\"before\""));
    for (i32 i = 0; i < 3; i++)
        server_take_event_(c, &(BatchEvent){.kind = BATCH_TEXT, .text = {piece, sizeof piece}});
    check_events(c, "much", 3, STR("x\""));
    CHECK(!w.broken);
    server_free_call_(c);
}

int main(void) {
    check_key_files();
    check_keys();
    check_hosts();
    check_origins();
    check_exposure();
    check_urls();
    check_workers();
    check_states();
    check_log();
    check_texts();
#ifdef DLM_TEST_ALLOC
    CHECK_INT(mem_test_live, 0);
#endif
    return test_end();
}

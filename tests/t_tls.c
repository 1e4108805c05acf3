/* t_tls.c - handshakes of every kind against ourselves, the files a server is given, reloading, certificates
 * of our own making. (That others understand us is for tests/e2e: openssl, curl, a browser.) */
#include "../src/tls.c"
#include "test.h"

#ifdef DLM_TLS

static char dir[64];
static f64 soon(void) {
    return os_now_ms() + 20000;
}

/* The path of a name in our folder; it stays where it is. */
static const char *at(const char *name) {
    static char path[16][128];
    char want[128];
    snprintf(want, sizeof want, "%s/%s", dir, name);
    size_t i = 0;
    while (i < COUNT_OF(path) && path[i][0] && strcmp(path[i], want) != 0) i++;
    ASSERT(i < COUNT_OF(path));
    memcpy(path[i], want, sizeof want);
    return path[i];
}

static void put(const char *name, Str text) {
    Err e = {0};
    int fd = os_create_file(at(name), &e);
    CHECK_OK(fd >= 0 && os_write_all(fd, text.p, text.n, &e) && os_close_file(fd, name, &e), e);
    CHECK(chmod(at(name), 0600) == 0);
}

/* An authority of our own for the tests, and a certificate that it signed. */
static void make_pair(const char *cert_name, const char *key_name) {
    static const char *const names[] = {"localhost", "127.0.0.1", "::1", "*.example.org"};
    TlsCertOptions o = {names, COUNT_OF(names), 30};
    Buf cert = {0}, key = {0};
    Err e = {0};
    if (CHECK_OK(tls_make_cert(&o, &cert, &key, &e), e)) {
        put(cert_name, buf_view(&cert));
        put(key_name, buf_view(&key));
    }
    buf_free(&cert);
    buf_free(&key);
}

/* ---- one connection: a server in a thread, a client here ---- */

typedef struct {
    TlsServer *tls;
    NetConn conn;
    Err err;
    bool ok;
    f64 deadline_ms;
} Serving;

/* Says back what it hears, until the client leaves. */
static void serve(void *arg) {
    Serving *s = arg;
    NetTransport t;
    char text[3000];
    size_t n = 0;
    s->ok = tls_accept(s->tls, &s->conn, &t, s->deadline_ms, &s->err);
    if (!s->ok) {
        net_close_gently(&s->conn, s->deadline_ms);
        return;
    }
    while (t.read(&t, text, sizeof text, &n, soon()) == NET_OK)
        if (t.write(&t, text, n, soon()) != NET_OK) break;
    t.close(&t, soon());
}

typedef struct {
    NetListener listener;
    NetConn client;
    Serving serving;
    OsThread thread;
} Meeting;

static bool meet(Meeting *m, TlsServer *tls) {
    Err e = {0};
    m->serving = (Serving){.tls = tls, .deadline_ms = soon()};
    bool ok = CHECK_OK(net_listen(&m->listener, "127.0.0.1", 0, &e), e) &&
              CHECK_OK(net_connect(&m->client, "127.0.0.1", m->listener.port, soon(), &e), e) &&
              CHECK(net_accept(&m->listener, &m->serving.conn, NULL, soon()) == NET_OK) &&
              CHECK_OK(os_thread_start(&m->thread, serve, &m->serving, &e), e);
    net_listener_close(&m->listener);
    return ok;
}

/* Whole texts come back whole, in whatever records they travel. */
static void echo(NetTransport *t) {
    static char sent[100000], back[sizeof sent];
    for (size_t i = 0; i < sizeof sent; i++) sent[i] = (char)(i * 7);
    static const size_t sizes[] = {1, 100, 16384, 16385, 2999};
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        size_t n = 0, got = 0;
        if (!CHECK(t->write(t, sent, sizes[i], soon()) == NET_OK)) return;
        while (n < sizes[i] && t->read(t, back + n, sizes[i] - n, &got, soon()) == NET_OK) n += got;
        CHECK_U64(n, sizes[i]);
        CHECK_MEM(back, sent, n);
    }
}

typedef struct {
    const char *host, *ca;
    int most;                /* the highest version the client offers, or 0 */
    const char *cert, *key;  /* the client's, or NULL */
    const char *server_says; /* part of its error, or NULL for success */
    const char *client_says; /* the same on the other side */
    const char *version;     /* what was agreed, or NULL */
} Case;

/* tls_connect, with the client's option that dlm has no use for. */
static bool client_connect(NetConn *c, const Case *k, NetTransport *t, Err *e) {
    const TlsClient client = {k->ca, k->cert, k->key};
    if (!k->most) return tls_connect(c, k->host, &client, t, soon(), e);
    TlsConfig_ *config = tls_config_new_(e);
    CHECK(tls_config_common_(config, MBEDTLS_SSL_IS_CLIENT, false, e));
    mbedtls_ssl_conf_authmode(&config->conf, MBEDTLS_SSL_VERIFY_NONE);
    mbedtls_ssl_conf_max_tls_version(&config->conf, (mbedtls_ssl_protocol_version)k->most);
    CHECK(!k->cert || tls_config_own_(config, k->cert, k->key, e));
    TlsSession_ *s = tls_session_new_(config, c, soon(), e);
    CHECK(mbedtls_ssl_set_hostname(&s->ssl, k->host) == 0);
    return tls_handshake_(s, t, e);
}

static void run(TlsServer *tls, const Case *k) {
    Meeting m;
    NetTransport t = {.secret = NULL};
    Err e = {0};
    if (!meet(&m, tls)) return;
    bool ok = client_connect(&m.client, k, &t, &e);
    if (ok) {
        if (k->version)
            CHECK_CSTR(mbedtls_ssl_get_version(&((TlsSession_ *)t.secret)->ssl), k->version);
        if (!k->server_says)
            echo(&t);
        else {
            char c;
            size_t n;
            CHECK(t.read(&t, &c, 1, &n, soon()) == NET_END);
        }
        t.close(&t, soon());
    } else {
        net_close(&m.client);
    }
    os_thread_join(&m.thread);
    CHECK_MSG(m.serving.ok == !k->server_says, "server: %s", m.serving.err.msg);
    if (k->server_says) CHECK_ERR(m.serving.err, ERR_RUNTIME, k->server_says);
    CHECK_MSG(ok == !k->client_says, "client: %s", e.msg);
    if (k->client_says) CHECK_ERR(e, ERR_RUNTIME, k->client_says);
}

static void test_handshakes(void) {
    const int tls12 = MBEDTLS_SSL_VERSION_TLS1_2;
    const char *own = at("cert"), *other = at("other-cert");
    const Case cases[] = {
        {.host = "localhost", .ca = own, .version = "TLSv1.3"},
        {.host = "127.0.0.1", .ca = own, .version = "TLSv1.3"},
        {.host = "::1", .ca = own},
        {.host = "a.example.org", .ca = own},
        {.host = "anything", .version = "TLSv1.3"}, /* nobody to trust: only that there is TLS */
        {.host = "localhost", .most = tls12, .version = "TLSv1.2"},
        {.host = "elsewhere",
         .ca = own,
         .server_says = "no TLS with",
         .client_says = "another host"},
        {.host = "10.0.0.1",
         .ca = own,
         .server_says = "no TLS with",
         .client_says = "another host"},
        {.host = "localhost",
         .ca = other,
         .server_says = "no TLS with",
         .client_says = "not signed by"},
    };
    TlsServer tls;
    Err e = {0};
    TlsOptions o = {.cert = own, .key = at("key")};
    if (!CHECK_OK(tls_open(&tls, &o, &e), e)) return;
    for (size_t i = 0; i < COUNT_OF(cases); i++) run(&tls, &cases[i]);
    tls_close(&tls);
    o.only_13 = true;
    if (!CHECK_OK(tls_open(&tls, &o, &e), e)) return;
    run(&tls, &(Case){.host = "localhost", .ca = own, .version = "TLSv1.3"});
    run(&tls, &(Case){.host = "localhost",
                      .most = tls12,
                      .server_says = "no common version",
                      .client_says = "no TLS with"});
    tls_close(&tls);
}

/* RSA keys sign as PSS in 1.3 and as either in 1.2. */
static void test_rsa(void) {
    TlsServer tls;
    Err e = {0};
    TlsOptions o = {.cert = "tests/golden/tls-rsa-cert.pem", .key = at("rsa-key")};
    Str key = test_file("tests/golden/tls-rsa-key.pem");
    put("rsa-key", key);
    test_file_free(key);
    if (!CHECK_OK(tls_open(&tls, &o, &e), e)) return;
    run(&tls, &(Case){.host = "localhost", .ca = o.cert, .version = "TLSv1.3"});
    run(&tls,
        &(Case){.host = "localhost", .most = MBEDTLS_SSL_VERSION_TLS1_2, .version = "TLSv1.2"});
    tls_close(&tls);
}

static void test_client_certs(void) {
    TlsServer tls;
    Err e = {0};
    TlsOptions o = {.cert = at("cert"), .key = at("key"), .client_ca = at("other-cert")};
    if (!CHECK_OK(tls_open(&tls, &o, &e), e)) return;
    for (int most = MBEDTLS_SSL_VERSION_TLS1_2; most <= MBEDTLS_SSL_VERSION_TLS1_3; most++) {
        /* in 1.3 the client is done before the server has judged its certificate */
        const char *late = most == MBEDTLS_SSL_VERSION_TLS1_2 ? "no TLS with" : NULL;
        run(&tls, &(Case){.host = "x",
                          .most = most,
                          .server_says = "showed no certificate",
                          .client_says = late});
        run(&tls, &(Case){.host = "x",
                          .most = most,
                          .cert = at("cert"),
                          .key = at("key"),
                          .server_says = "is not good",
                          .client_says = late});
    }
    tls_close(&tls);
}

/* ---- peers that do not play ---- */

static void test_rude_peers(void) {
    static const struct {
        const char *sends, *says;
    } cases[] = {{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "plain text"},
                 {"\x16\x03\x01\xff\xff", "no TLS with 127.0.0.1:"},
                 {"\x16\x03\x01", "the peer left"},
                 {"", "the peer left"}};
    TlsServer tls;
    Err e = {0};
    Meeting m;
    TlsOptions o = {.cert = at("cert"), .key = at("key")};
    if (!CHECK_OK(tls_open(&tls, &o, &e), e)) return;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        size_t put_n = 0, n = strlen(cases[i].sends);
        if (!meet(&m, &tls)) return;
        if (n) CHECK(net_write_some(&m.client, cases[i].sends, n, &put_n, soon()) == NET_OK);
        shutdown(m.client.fd, SHUT_WR);
        os_thread_join(&m.thread);
        CHECK_ERR(m.serving.err, ERR_RUNTIME, cases[i].says);
        net_close(&m.client);
    }
    tls_close(&tls);
}

/* A byte now and then does not push the deadline away. */
static void test_slow_peer(void) {
    TlsServer tls;
    Err e = {0};
    NetListener l;
    NetConn client;
    Serving s = {.tls = &tls};
    OsThread t;
    size_t n;
    TlsOptions o = {.cert = at("cert"), .key = at("key")};
    if (!CHECK_OK(tls_open(&tls, &o, &e), e) || !CHECK(net_listen(&l, "127.0.0.1", 0, &e))) return;
    CHECK(net_connect(&client, "127.0.0.1", l.port, soon(), &e));
    CHECK(net_accept(&l, &s.conn, NULL, soon()) == NET_OK);
    f64 from = os_now_ms();
    s.deadline_ms = from + 150;
    CHECK(os_thread_start(&t, serve, &s, &e));
    for (const char *byte = "\x16\x03\x01\x00\x40"; byte[0] || byte[-1] == 1; byte++) {
        net_write_some(&client, byte, 1, &n, soon());
        os_sleep_ms(40);
    }
    os_thread_join(&t);
    CHECK(os_now_ms() - from >= 149 && os_now_ms() - from < 5000);
    CHECK_ERR(s.err, ERR_RUNTIME, "too slow");
    net_close(&client);
    net_listener_close(&l);
    tls_close(&tls);
}

/* ---- files ---- */

static bool opens(const char *cert, const char *key, const char *ca, Err *e) {
    TlsServer tls;
    TlsOptions o = {.cert = cert, .key = key, .client_ca = ca};
    *e = (Err){0};
    bool ok = tls_open(&tls, &o, e);
    tls_close(&tls);
    return ok;
}

static void test_files(void) {
    Err e;
    const char *cert = at("cert"), *key = at("key");
    put("garbage", STR("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"));
    put("empty", STR(""));
    put("locked",
        STR("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n"));
    Buf half = {0};
    CHECK(os_read_file(cert, &half, &e) && os_read_file(at("garbage"), &half, &e));
    put("half", buf_view(&half));
    buf_free(&half);
    CHECK(opens(cert, key, cert, &e));
    CHECK(!opens(at("nosuch"), key, NULL, &e));
    CHECK_ERR(e, ERR_RUNTIME, "No such file");
    CHECK(!opens(cert, at("nosuch"), NULL, &e));
    CHECK_ERR(e, ERR_RUNTIME, "No such file");
    CHECK(!opens(cert, at("other-key"), NULL, &e));
    CHECK_ERR(e, ERR_RUNTIME, "does not belong to");
    CHECK(!opens(cert, at("rsa-key"), NULL, &e));
    CHECK_ERR(e, ERR_RUNTIME, "does not belong to");
    CHECK(!opens(key, cert, NULL, &e)); /* the wrong way round */
    CHECK_ERR(e, ERR_RUNTIME, "holds no certificate");
    CHECK(!opens(cert, cert, NULL, &e));
    CHECK_ERR(e, ERR_RUNTIME, "holds no private key");
    CHECK(!opens(at("empty"), key, NULL, &e));
    CHECK_ERR(e, ERR_RUNTIME, "holds no certificate");
    CHECK(!opens(at("garbage"), key, NULL, &e));
    CHECK_ERR(e, ERR_RUNTIME, "holds no certificate");
    CHECK(!opens(cert, key, at("half"), &e)); /* an authority that is silently left out is worse */
    CHECK_ERR(e, ERR_RUNTIME, "1 certificates in");
    CHECK(!opens(cert, at("locked"), NULL, &e));
    CHECK_ERR(e, ERR_RUNTIME, "encrypted");
    CHECK(!opens(cert, key, at("nosuch"), &e));
    CHECK_ERR(e, ERR_RUNTIME, "No such file");
}

/* A connection that is open while the pair is replaced goes on; the next one sees the new pair. */
static void test_reload(void) {
    TlsServer tls;
    Meeting m;
    NetTransport t;
    Err e = {0};
    TlsOptions o = {.cert = at("live-cert"), .key = at("live-key")};
    TlsClient client = {.ca = o.cert};
    make_pair("live-cert", "live-key");
    CHECK_OK(tls_open(&tls, &o, &e), e);
    if (!meet(&m, &tls) ||
        !CHECK_OK(tls_connect(&m.client, "localhost", &client, &t, soon(), &e), e))
        return;
    CHECK(rename(at("live-cert"), at("old-cert")) == 0);
    CHECK(!tls_reload(&tls, &e)); /* half of a pair: the old one stays */
    CHECK_ERR(e, ERR_RUNTIME, "No such file");
    run(&tls, &(Case){.host = "localhost", .ca = at("old-cert")});
    make_pair("live-cert", "live-key");
    e = (Err){0};
    CHECK_OK(tls_reload(&tls, &e), e);
    run(&tls, &(Case){.host = "localhost", .ca = at("live-cert")});
    run(&tls, &(Case){.host = "localhost",
                      .ca = at("old-cert"),
                      .server_says = "no TLS with",
                      .client_says = "not signed by"});
    echo(&t);
    t.close(&t, soon());
    os_thread_join(&m.thread);
    CHECK(m.serving.ok);
    tls_close(&tls);
}

/* ---- certificates of our own making ---- */

static void test_make_cert(void) {
    static const char *const good[] = {"h"};
    static const char *bad[] = {"", "a b", "a/b", "h,CN=x", "*", "a.*", "::g", "\xc3\xa9"};
    static const char *many[TLS_NAMES_MAX + 1];
    static char longest[TLS_NAME_MAX + 2];
    Buf cert = {0}, key = {0};
    Err e = {0};
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        TlsCertOptions o = {&bad[i], 1, 30};
        e = (Err){0};
        CHECK_MSG(!tls_make_cert(&o, &cert, &key, &e), "'%s'", bad[i]);
        CHECK_ERR(e, ERR_USAGE, "neither a host name");
    }
    memset(longest, 'x', TLS_NAME_MAX);
    for (size_t i = 0; i < COUNT_OF(many); i++) many[i] = longest;
    TlsCertOptions o = {many, TLS_NAMES_MAX, 3650};
    e = (Err){0};
    CHECK_OK(tls_make_cert(&o, &cert, &key, &e), e); /* the most there can be */
    o.n_names++;
    CHECK(!tls_make_cert(&o, &cert, &key, &e));
    longest[TLS_NAME_MAX] = 'x';
    o.n_names = 1;
    CHECK(!tls_make_cert(&o, &cert, &key, NULL));
    const TlsCertOptions days[] = {{good, 0, 30}, {good, 1, 0}, {good, 1, 3651}};
    for (size_t i = 0; i < COUNT_OF(days); i++) CHECK(!tls_make_cert(&days[i], &cert, &key, NULL));
    buf_free(&cert);
    buf_free(&key);
}

static bool open_and_close(void) {
    Err e;
    return opens(at("cert"), at("key"), at("other-cert"), &e);
}

static bool make_one(void) {
    static const char *const names[] = {"localhost", "127.0.0.1"};
    TlsCertOptions o = {names, 2, 30};
    Buf cert = {0}, key = {0};
    bool ok = tls_make_cert(&o, &cert, &key, NULL);
    buf_free(&cert);
    buf_free(&key);
    return ok;
}

/* Refuses the 1st, 2nd, 3rd ... block: a clean failure each time, and nothing is kept. */
static void test_no_memory(bool (*fn)(void)) {
#if defined(MBEDTLS_PLATFORM_MEMORY) && defined(DLM_TEST_ALLOC)
    CHECK(fn());
    i64 live = mem_test_live, n = 1;
    for (bool refused = true; refused && n < 5000; n++) {
        mem_test_calls = 0;
        mem_test_fail_at = n;
        bool ok = fn();
        refused = mem_test_calls >= n;
        mem_test_fail_at = 0;
        if (ok == refused) CHECK_MSG(false, "block %lld refused: returned %d", (long long)n, ok);
        if (mem_test_live != live) CHECK_MSG(false, "block %lld refused: a leak", (long long)n);
        live = mem_test_live;
    }
    CHECK_MSG(n > 10 && n < 5000, "%lld blocks", (long long)n);
#else
    (void)fn;
#endif
}

/* ---- many at once ---- */

static TlsServer shared;

static void one_of_many(void *arg) {
    Meeting m;
    NetTransport t;
    int *good = arg;
    for (int i = 0; i < 5; i++) {
        Err e = {0};
        m.serving = (Serving){.tls = &shared, .deadline_ms = soon()};
        if (!net_listen(&m.listener, "127.0.0.1", 0, &e) ||
            !net_connect(&m.client, "127.0.0.1", m.listener.port, soon(), &e) ||
            net_accept(&m.listener, &m.serving.conn, NULL, soon()) != NET_OK ||
            !os_thread_start(&m.thread, serve, &m.serving, &e))
            return;
        net_listener_close(&m.listener);
        if (tls_connect(&m.client, "localhost", &(TlsClient){0}, &t, soon(), &e)) {
            char back[3];
            size_t n;
            *good += t.write(&t, "abc", 3, soon()) == NET_OK &&
                     t.read(&t, back, 3, &n, soon()) == NET_OK && n == 3 &&
                     memcmp(back, "abc", 3) == 0;
            t.close(&t, soon());
        }
        os_thread_join(&m.thread);
    }
}

static void test_many(void) {
    OsThread t[8];
    int good[8] = {0}, sum = 0;
    Err e = {0};
    TlsOptions o = {.cert = at("cert"), .key = at("key")};
    if (!CHECK_OK(tls_open(&shared, &o, &e), e)) return;
    for (int i = 0; i < 8; i++) CHECK(os_thread_start(&t[i], one_of_many, &good[i], &e));
    for (int i = 0; i < 20; i++) CHECK_OK(tls_reload(&shared, &e), e);
    for (int i = 0; i < 8; i++) os_thread_join(&t[i]);
    for (int i = 0; i < 8; i++) sum += good[i];
    CHECK_INT(sum, 40);
    tls_close(&shared);
}

int main(void) {
    snprintf(dir, sizeof dir, "/tmp/t_tls.XXXXXX");
    if (!CHECK(mkdtemp(dir) != NULL)) return test_end();
    make_pair("cert", "key");
    make_pair("other-cert", "other-key");
    test_handshakes();
    test_rsa();
    test_client_certs();
    test_rude_peers();
    test_slow_peer();
    test_files();
    test_reload();
    test_make_cert();
    test_no_memory(open_and_close);
    test_no_memory(make_one);
    test_many();
    static const char *const made[] = {"cert",     "key",     "other-cert", "other-key",
                                       "rsa-key",  "garbage", "live-cert",  "live-key",
                                       "old-cert", "empty",   "locked",     "half"};
    for (size_t i = 0; i < COUNT_OF(made); i++) CHECK(unlink(at(made[i])) == 0);
    CHECK(rmdir(dir) == 0);
    return test_end();
}

#else /* DLM_TLS=0: everything says so, and nothing else */

int main(void) {
    TlsServer s;
    TlsOptions o = {.cert = "cert", .key = "key"};
    TlsCertOptions c = {0};
    NetConn conn = {.fd = -1};
    NetTransport t;
    Buf cert = {0}, key = {0};
    Err e[5] = {{0}};
    CHECK(!tls_open(&s, &o, &e[0]) && !tls_reload(&s, &e[1]) &&
          !tls_accept(&s, &conn, &t, 0, &e[2]));
    CHECK(!tls_connect(&conn, "h", &(TlsClient){0}, &t, 0, &e[3]) &&
          !tls_make_cert(&c, &cert, &key, &e[4]));
    for (size_t i = 0; i < COUNT_OF(e); i++) CHECK_ERR(e[i], ERR_USAGE, "without TLS");
    CHECK_CSTR(tls_library(), "none");
    tls_close(&s);
    return test_end();
}

#endif

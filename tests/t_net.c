/* t_net.c - addresses, listeners, deadlines, hang-ups, full tables of descriptors. */
#include "../src/net.c"
#include "test.h"

static char dir[64], path[128];

static void test_addresses(void) {
    static const struct {
        const char *host;
        bool valid, loopback;
    } cases[] = {{"127.0.0.1", true, true},
                 {"127.8.9.10", true, true},
                 {"localhost", true, true},
                 {"::1", true, true},
                 {"[::1]", true, true},
                 {"::ffff:127.0.0.1", true, true},
                 {"::ffff:1.2.3.4", true, false},
                 {"/tmp/x", true, true},
                 {"dlm.sock", true, true},
                 {"0.0.0.0", true, false},
                 {"::", true, false},
                 {"192.168.1.1", true, false},
                 {"fe80::1", true, false},
                 {"", false, false},
                 {"[]", false, false},
                 {"[::1", false, false},
                 {"127.1", false, false},
                 {"0x7f.0.0.1", false, false},
                 {"127.0.0.1 ", false, false},
                 {"localhost.", false, false},
                 {"example.org", false, false},
                 {"1:2:3:4:5:6:7:8:9:0:1:2:3:4:5:6:7:8:9:0:1:2:3:4:5:6:7:8", false, false}};
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        NetAddress_ a;
        socklen_t n;
        Err e = {0};
        bool ok = net_parse_(cases[i].host, 80, &a, &n, &e);
        CHECK_MSG(ok == cases[i].valid, "'%s': %s", cases[i].host, e.msg);
        CHECK_MSG(net_is_loopback(cases[i].host) == cases[i].loopback, "'%s'", cases[i].host);
        if (!ok) CHECK_ERR(e, ERR_USAGE, "numeric");
    }
    char path_too_long[200];
    memset(path_too_long, '/', sizeof path_too_long);
    path_too_long[sizeof path_too_long - 1] = 0;
    NetListener l;
    Err e = {0};
    CHECK(!net_listen(&l, path_too_long, 0, &e));
    CHECK_ERR(e, ERR_USAGE, "longer than");
}

static void test_names(void) {
    static const struct {
        const char *host, *name;
    } cases[] = {{"1.2.3.4", "1.2.3.4:99"},
                 {"::ffff:1.2.3.4", "1.2.3.4:99"},
                 {"2001:db8::1", "[2001:db8::1]:99"}};
    NetAddress_ a;
    socklen_t n;
    NetConn c[3], other;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        CHECK(net_parse_(cases[i].host, 99, &a, &n, NULL));
        net_describe_(&c[i], &a);
        CHECK_CSTR(c[i].name, cases[i].name);
        CHECK(!c[i].loopback);
    }
    CHECK(c[0].address == c[1].address && c[0].address != c[2].address);
    net_parse_("2001:db8::ffff:2", 1, &a, &n, NULL); /* the same /64 */
    net_describe_(&other, &a);
    CHECK(other.address == c[2].address);
    net_parse_("2001:db8:0:1::1", 1, &a, &n, NULL);
    net_describe_(&other, &a);
    CHECK(other.address != c[2].address);
}

typedef struct {
    NetListener l;
    NetConn client, server;
} Pair;

static bool pair_open(Pair *p, const char *host) {
    Err e = {0};
    f64 soon = os_now_ms() + 5000;
    return CHECK_OK(net_listen(&p->l, host, 0, &e), e) &&
           CHECK_OK(net_connect(&p->client, host, p->l.port, soon, &e), e) &&
           CHECK(net_accept(&p->l, &p->server, NULL, soon) == NET_OK);
}

static void pair_close(Pair *p) {
    net_close(&p->client);
    net_close(&p->server);
    net_listener_close(&p->l);
}

static bool has_v6(void) {
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    bool ok = fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof a) == 0;
    if (fd >= 0) close(fd);
    return ok;
}

static void test_talk(const char *host) {
    Pair p;
    char text[16];
    size_t n = 0;
    f64 from = os_now_ms();
    if (!pair_open(&p, host)) return;
    CHECK(p.server.loopback);
    NetTransport a = net_plain(&p.client), b = net_plain(&p.server);
    CHECK(a.write(&a, "hello", 5, from + 5000) == NET_OK);
    CHECK(b.read(&b, text, sizeof text, &n, from + 5000) == NET_OK);
    CHECK_STR(((Str){text, n}), STR("hello"));
    f64 now = os_now_ms(); /* silence ends at the deadline, and a deadline in the past at once */
    CHECK(b.read(&b, text, sizeof text, &n, now + 30) == NET_TIMEOUT);
    CHECK(os_now_ms() - now >= 29 && os_now_ms() - now < 5000);
    CHECK(b.read(&b, text, sizeof text, &n, now - 1) == NET_TIMEOUT && n == 0);
    CHECK(net_wait(&p.server, NULL, os_now_ms() + 10) == NET_TIMEOUT);
    CHECK(a.write(&a, "x", 1, now + 5000) == NET_OK); /* bytes of a next request are no hang-up */
    CHECK(net_wait(&p.server, NULL, os_now_ms() + 10) == NET_TIMEOUT);
    net_close(&p.client);
    CHECK(net_wait(&p.server, NULL, NET_NEVER) == NET_END);
    CHECK(b.read(&b, text, sizeof text, &n, now + 5000) == NET_OK &&
          n == 1); /* what came before is read */
    CHECK(b.read(&b, text, sizeof text, &n, now + 5000) == NET_END);
    b.write(&b, "x", 1, now + 5000);
    CHECK(b.write(&b, "x", 1, now + 5000) == NET_END); /* and no SIGPIPE */
    pair_close(&p);
}

/* A reader that does not read: the writer leaves at its deadline. */
static void test_stalled(void) {
    static char bytes[1 << 20];
    Pair p;
    if (!pair_open(&p, "127.0.0.1")) return;
    NetTransport t = net_plain(&p.server);
    NetResult r = NET_OK;
    f64 from = os_now_ms();
    for (int i = 0; i < 64 && r == NET_OK; i++) r = t.write(&t, bytes, sizeof bytes, from + 200);
    CHECK_INT(r, NET_TIMEOUT);
    CHECK(os_now_ms() - from < 5000);
    pair_close(&p);
}

static NetWaker waker;

static void pull(void *arg) {
    os_sleep_ms(20);
    net_wake(arg);
}

static void test_waker(void) {
    Pair p;
    OsThread t;
    Err e = {0};
    if (!pair_open(&p, "127.0.0.1") || !CHECK_OK(net_waker_open(&waker, &e), e)) return;
    net_wake(&waker); /* before the wait: not lost */
    net_wake(&waker);
    CHECK(net_wait(&p.server, &waker, NET_NEVER) == NET_WOKEN);
    CHECK(net_wait(&p.server, &waker, NET_NEVER) == NET_WOKEN);
    net_waker_clear(&waker);
    net_waker_clear(&waker); /* nothing to forget: does not wait */
    CHECK(net_wait(&p.server, &waker, os_now_ms() + 1) == NET_TIMEOUT);
    CHECK(os_thread_start(&t, pull, &waker, &e));
    CHECK(net_wait(&p.server, &waker, NET_NEVER) == NET_WOKEN);
    os_thread_join(&t);
    CHECK(net_accept(&p.l, &p.server, &waker, NET_NEVER) == NET_WOKEN);
    net_waker_close(&waker);
    net_close(&p.client);
    net_listener_close(&p.l);
}

static void test_accept(void) {
    NetListener l, again;
    NetConn c, client;
    Err e = {0};
    CHECK(net_listen(&l, "localhost", 0, &e) && l.port > 0);
    CHECK(!net_listen(&again, "127.0.0.1", l.port, &e));
    CHECK_ERR(e, ERR_RUNTIME, "in use");
    e = (Err){0};
    CHECK(!net_listen(&again, "192.0.2.1", 0, &e)); /* TEST-NET-1: not ours */
    CHECK_ERR(e, ERR_RUNTIME, "cannot listen on 192.0.2.1");
    CHECK(net_accept(&l, &c, NULL, os_now_ms() + 10) == NET_TIMEOUT);
    e = (Err){0};
    CHECK(net_connect(&client, "127.0.0.1", l.port, os_now_ms() + 5000, &e));
    struct rlimit before,
        none; /* no descriptor left: told apart, and the connection is still there */
    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    none = before;
    none.rlim_cur = 0;
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    CHECK_INT(net_accept(&l, &c, NULL, os_now_ms() + 1000), NET_BUSY);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    CHECK_INT(net_accept(&l, &c, NULL, os_now_ms() + 1000), NET_OK);
    net_close(&c);
    net_close(&client);
    u16 port = l.port;
    net_listener_close(&l);
    CHECK_INT(net_accept(&l, &c, NULL, os_now_ms() + 1000), NET_END);
    CHECK(!net_connect(&client, "127.0.0.1", port, os_now_ms() + 5000, &e));
    CHECK_ERR(e, ERR_RUNTIME, "cannot connect to 127.0.0.1:");
    CHECK(
        net_listen(&l, "127.0.0.1", port, NULL)); /* at once after closing, in spite of TIME_WAIT */
    net_listener_close(&l);
}

static void test_unix(void) {
    NetListener l, other;
    Err e = {0};
    struct stat st;
    snprintf(path, sizeof path, "%s/dlm.sock", dir);
    CHECK_OK(net_listen(&l, path, 0, &e), e);
    CHECK(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600);
    CHECK(!net_listen(&other, path, 0, &e)); /* someone is there */
    CHECK_ERR(e, ERR_RUNTIME, "in use");
    net_listener_close(&l);
    e = (Err){0};
    CHECK_OK(net_listen(&l, path, 0, &e), e); /* a leftover */
    net_listener_close(&l);
    CHECK(unlink(path) == 0);
    FILE *f = fopen(path, "w");
    CHECK(f && fclose(f) == 0);
    CHECK(!net_listen(&l, path, 0, &e)); /* not a socket: never removed */
    CHECK(stat(path, &st) == 0);
    CHECK(unlink(path) == 0);
}

/* The answer survives, although the request was not read to its end. */
static void test_gentle_close(void) {
    static char request[200000];
    Pair p;
    char text[16];
    size_t n = 0, put = 0;
    f64 soon = os_now_ms() + 5000;
    if (!pair_open(&p, "127.0.0.1")) return;
    CHECK(net_write_some(&p.client, request, sizeof request, &put, soon) == NET_OK && put > 0);
    CHECK(net_write_some(&p.server, "413", 3, &put, soon) == NET_OK);
    CHECK(shutdown(p.client.fd, SHUT_WR) == 0);
    net_close_gently(&p.server, soon);
    CHECK(p.server.fd == -1);
    CHECK(net_read(&p.client, text, sizeof text, &n, soon) == NET_OK && n == 3);
    CHECK(net_read(&p.client, text, sizeof text, &n, soon) == NET_END);
    net_close_gently(&p.server, soon); /* twice is harmless */
    pair_close(&p);
    if (!pair_open(&p, "127.0.0.1")) return;
    f64 from = os_now_ms(); /* a peer that keeps its end open does not keep us */
    net_close_gently(&p.server, from + 30);
    CHECK(os_now_ms() - from < 4000);
    pair_close(&p);
}

int main(void) {
    snprintf(dir, sizeof dir, "/tmp/t_net.XXXXXX");
    if (!CHECK(mkdtemp(dir) != NULL)) return test_end();
    test_addresses();
    test_names();
    test_talk("127.0.0.1");
    if (has_v6()) test_talk("::1");
    snprintf(path, sizeof path, "%s/talk.sock", dir);
    test_talk(path);
    CHECK(unlink(path) == 0);
    test_stalled();
    test_waker();
    test_accept();
    test_unix();
    test_gentle_close();
    CHECK(rmdir(dir) == 0);
    return test_end();
}

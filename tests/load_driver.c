/* load_driver.c - many clients of `dlm serve` in one thread, for tests/e2e/load.py.
 *
 *     load_driver PLACE STREAMS N <bodies >answers
 *
 * PLACE is a port of this machine or the path of a unix socket; stdin has a chat request on each line. N
 * requests, line after line and again from the first, are asked over STREAMS connections that are kept. One
 * that is told 429 asks again after as many seconds as Retry-After says. A line for each that is done:
 *
 *     LINE STATUS RETRIES FIRST_MS MS TOKENS TEXT
 *
 * STATUS is 0 where the answer broke off; FIRST_MS is from the request to its first text; TEXT is spelled as
 * in JSON. The last line is `SECONDS CPU_SECONDS`: what all of it took, and what this program itself used. */
#include "../src/os.c"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>

#define STREAMS_MAX 1024
#define ANSWER_MAX ((size_t)16 << 20)

typedef struct {
    int fd;
    i32 request, n_retries;         /* request -1: it has nothing more to ask */
    f64 from_ms, first_ms, wait_ms; /* wait_ms: not before */
    Buf in;
    size_t scanned; /* bytes of in that hold no text */
    bool sent;
} Client;

static Str bodies[4096]; /* [n_bodies] */
static i32 n_bodies, n_requests, n_asked, n_done;
static const char *place;
static int ready; /* epoll: which clients have something to hear; poll would look at each of them anew */

static void fail(const char *what) {
    fprintf(stderr, "load_driver: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int connect_to(const char *to) {
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    struct sockaddr_in port = {.sin_family = AF_INET, .sin_port = htons((u16)atoi(to))};
    bool is_path = strchr(to, '/') != NULL;
    int on = 1, fd = socket(is_path ? AF_UNIX : AF_INET, SOCK_STREAM, 0);
    port.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    snprintf(path.sun_path, sizeof path.sun_path, "%s", to);
    if (fd < 0 || (is_path ? connect(fd, (void *)&path, sizeof path)
                           : connect(fd, (void *)&port, sizeof port)) != 0)
        fail(to);
    if (!is_path) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static void open_client(Client *c) {
    struct epoll_event in = {.events = EPOLLIN, .data.ptr = c};
    c->fd = connect_to(place);
    if (epoll_ctl(ready, EPOLL_CTL_ADD, c->fd, &in) != 0) fail("epoll_ctl");
}

static void ask(Client *c) {
    Buf out = {0};
    Str body = bodies[c->request % n_bodies];
    buf_printf(
        &out,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %zu\r\n\r\n",
        body.n);
    buf_str(&out, body);
    buf_clear(&c->in);
    c->scanned = 0;
    c->first_ms = 0;
    c->from_ms = os_now_ms();
    c->sent = true;
    if (send(c->fd, out.p, out.n, MSG_NOSIGNAL) != (ssize_t)out.n) fail("sending");
    buf_free(&out);
}

/* The next request is this client's. */
static void take(Client *c) {
    c->request = n_asked < n_requests ? n_asked++ : -1;
    c->n_retries = 0;
    c->wait_ms = 0;
    c->sent = false;
    if (c->request >= 0) ask(c);
}

static i32 number_after(Str s, Str key) {
    size_t at = str_find(s, key, 0);
    return at == SIZE_MAX ? 0 : atoi(s.p + at + key.n);
}

/* Takes the chunks of the stream apart, in place. */
static Str dechunk(char *p, size_t n) {
    size_t from = 0, to = 0;
    while (from < n) {
        char *end;
        size_t size = strtoul(p + from, &end, 16), at = (size_t)(end - p) + 2;
        if (size > n || at > n - size) break;
        memmove(p + to, p + at, size);
        to += size;
        from = at + size + 2;
    }
    return (Str){p, to};
}

static const Str CONTENT = {"\"content\":\"", 11};

static void put_text(Buf *out, Str stream) {
    for (size_t at = 0; (at = str_find(stream, CONTENT, at)) != SIZE_MAX;) {
        size_t end = at += CONTENT.n;
        while (end < stream.n && stream.p[end] != '"') end += stream.p[end] == '\\' ? 2 : 1;
        buf_str(out, str_cut(stream, at, end));
    }
}

static void tell(Client *c, i32 status, Str stream) {
    Buf line = {0};
    buf_printf(&line, "%d %d %d %.3f %.3f %d ", c->request % n_bodies, status, c->n_retries,
               c->first_ms, os_now_ms() - c->from_ms,
               number_after(stream, STR("\"predicted_n\":")));
    put_text(&line, stream);
    printf("%s\n", line.p);
    buf_free(&line);
    n_done++;
}

/* Is the answer complete? *head: bytes of its head. */
static bool is_whole(const Buf *in, size_t *head) {
    Str all = buf_view(in);
    *head = str_find(all, STR("\r\n\r\n"), 0);
    if (*head == SIZE_MAX) return false;
    *head += 4;
    if (str_find(str_cut(all, 0, *head), STR("chunked"), 0) != SIZE_MAX)
        return str_ends(all, STR("\r\n0\r\n\r\n"));
    return all.n - *head == (size_t)number_after(all, STR("Content-Length: "));
}

static void finish(Client *c, size_t head) {
    Str all = buf_view(&c->in);
    i32 status = all.n > 12 ? atoi(all.p + 9) : 0;
    if (status == 429) {
        c->n_retries++;
        c->sent = false;
        c->wait_ms = os_now_ms() + 1e3 * number_after(str_cut(all, 0, head), STR("Retry-After: "));
        return;
    }
    Str stream = status == 200 ? dechunk(c->in.p + head, c->in.n - head) : (Str){"", 0};
    if (status == 200 && !str_ends(stream, STR("data: [DONE]\n\n"))) status = 0;
    tell(c, status, stream);
    take(c);
}

static void hear(Client *c) {
    char piece[65536];
    size_t head;
    ssize_t n = recv(c->fd, piece, sizeof piece, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) { /* the server left: an answer that it owed is lost */
        close(c->fd);
        open_client(c);
        if (!c->sent) return;
        tell(c, 0, (Str){"", 0});
        take(c);
        return;
    }
    if (!buf_put(&c->in, piece, (size_t)n)) fail("an answer of more than 16 MiB");
    for (size_t at; c->first_ms == 0; c->scanned = at + CONTENT.n) {
        at = str_find(buf_view(&c->in), CONTENT, c->scanned);
        if (at == SIZE_MAX || at + CONTENT.n >= c->in.n) break;
        if (c->in.p[at + CONTENT.n] != '"') c->first_ms = os_now_ms() - c->from_ms;
    }
    if (is_whole(&c->in, &head)) finish(c, head);
}

static void run(Client *clients, i32 n) {
    struct epoll_event events[64];
    while (n_done < n_requests) {
        f64 now = os_now_ms(), next = now + 1000;
        for (i32 i = 0; i < n; i++) {
            Client *c = &clients[i];
            if (c->request >= 0 && !c->sent && c->wait_ms <= now) ask(c);
            if (c->request >= 0 && !c->sent) next = MIN_OF(next, c->wait_ms);
        }
        int n_ready = epoll_wait(ready, events, COUNT_OF(events), (int)(next - now) + 1);
        if (n_ready < 0 && errno != EINTR) fail("waiting");
        for (int i = 0; i < n_ready; i++) hear(events[i].data.ptr);
    }
}

int main(int argc, char **argv) {
    static Client clients[STREAMS_MAX];
    Buf in = {.max = ANSWER_MAX};
    Err e = {0};
    i32 n = argc == 4 ? atoi(argv[2]) : 0;
    if (n < 1 || n > STREAMS_MAX || !os_read_stdin(&in, &e)) {
        fprintf(stderr, "usage: load_driver PLACE STREAMS N <bodies >answers\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOFBF, ANSWER_MAX); /* who reads the answers shall not wake up in between */
    place = argv[1];
    n_requests = atoi(argv[3]);
    for (Str rest = buf_view(&in); rest.n && n_bodies < (i32)COUNT_OF(bodies);) {
        size_t end = MIN_OF(str_find(rest, STR("\n"), 0), rest.n);
        bodies[n_bodies++] = str_cut(rest, 0, end);
        rest = str_cut(rest, end + 1, rest.n);
    }
    if ((ready = epoll_create1(0)) < 0) fail("epoll");
    for (i32 i = 0; i < n; i++) {
        clients[i].in.max = ANSWER_MAX;
        open_client(&clients[i]);
    }
    f64 from_ms = os_now_ms();
    for (i32 i = 0; i < n; i++) take(&clients[i]);
    run(clients, n);
    printf("%.6f %.6f\n", (os_now_ms() - from_ms) / 1e3, (f64)clock() / CLOCKS_PER_SEC);
    return 0;
}

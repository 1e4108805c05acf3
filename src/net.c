/* net.c - sockets with deadlines: listening, accepting, reading, writing, noticing who left.
 *
 * Owns:      the descriptors it opens; whoever holds a NetListener, NetConn or NetWaker closes it.
 * Stands on: base mem os; the only room with socket headers.
 * Promises:  no call outlasts its deadline (os_now_ms; absolute, so that a byte now and then does not
 *            extend it); no name is ever looked up; no signal is raised by a peer that left. */
#ifndef DLM_NET_C
#define DLM_NET_C

#include "base.c"
#include "mem.c"
#include "os.c"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>

typedef enum {
    NET_OK,
    NET_END,     /* the peer closed, or the connection broke: nobody is there */
    NET_TIMEOUT, /* the deadline passed */
    NET_WOKEN,   /* the waker was pulled */
    NET_BUSY     /* accepting: out of descriptors or memory; wait a little, then go on */
} NetResult;

#define NET_NAME_MAX 64
#define NET_NEVER 1e300 /* a deadline that does not come */

typedef struct {
    int fd;
    u16 port; /* 0 for a unix socket */
} NetListener;

typedef struct {
    int fd;
    u64 address;   /* the same for connections of one address (IPv6: of one /64 network) */
    bool loopback; /* from this machine */
    char name[NET_NAME_MAX]; /* for the log: 10.0.0.7:41234, [::1]:41234, unix */
} NetConn;

/* Wakes one waiting thread from any other, or from a signal handler. */
typedef struct {
    int fd;
} NetWaker;

/* ---- addresses ---- */

typedef union {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_un unix_;
    struct sockaddr_storage storage;
} NetAddress_;

/* A path, not an address: it has a slash, or ends as socket files do. */
static bool net_is_unix(const char *host) {
    return strchr(host, '/') || str_ends(str_of(host), STR(".sock"));
}

static bool net_is_loopback_(const NetAddress_ *a) {
    static const u8 mapped[13] = {[10] = 0xff, [11] = 0xff, [12] = 127}; /* ::ffff:127.0.0.0/104 */
    if (a->any.sa_family == AF_INET) return ntohl(a->v4.sin_addr.s_addr) >> 24 == 127;
    if (a->any.sa_family != AF_INET6) return a->any.sa_family == AF_UNIX;
    return IN6_IS_ADDR_LOOPBACK(&a->v6.sin6_addr) ||
           memcmp(&a->v6.sin6_addr, mapped, sizeof mapped) == 0;
}

static bool net_parse_(const char *host, u16 port, NetAddress_ *a, socklen_t *n, Err *e) {
    char text[INET6_ADDRSTRLEN];
    Str s = str_of(host);
    memset(a, 0, sizeof *a);
    if (net_is_unix(host)) {
        if (s.n >= sizeof a->unix_.sun_path)
            return err_set(e, ERR_USAGE, "the socket path '%.80s...' is longer than %zu bytes",
                           host, sizeof a->unix_.sun_path - 1);
        a->unix_.sun_family = AF_UNIX;
        memcpy(a->unix_.sun_path, host, s.n + 1);
        *n = sizeof a->unix_;
        return true;
    }
    if (str_eq(s, STR("localhost"))) s = STR("127.0.0.1");
    if (s.n > 2 && s.p[0] == '[' && s.p[s.n - 1] == ']') s = str_cut(s, 1, s.n - 1);
    if (s.n < sizeof text) {
        memcpy(text, s.p, s.n);
        text[s.n] = 0;
        if (inet_pton(AF_INET, text, &a->v4.sin_addr) == 1) {
            a->v4.sin_family = AF_INET;
            a->v4.sin_port = htons(port);
            *n = sizeof a->v4;
            return true;
        }
        if (inet_pton(AF_INET6, text, &a->v6.sin6_addr) == 1) {
            a->v6.sin6_family = AF_INET6;
            a->v6.sin6_port = htons(port);
            *n = sizeof a->v6;
            return true;
        }
    }
    return err_set(
        e, ERR_USAGE,
        "'%.80s' is not a numeric address: use 127.0.0.1, 0.0.0.0, ::, localhost or the path of "
        "a socket (names are never looked up)",
        host);
}

/* May only this machine reach what listens there? False for what is no address at all. */
static bool net_is_loopback(const char *host) {
    NetAddress_ a;
    socklen_t n;
    return net_parse_(host, 0, &a, &n, NULL) && net_is_loopback_(&a);
}

static void net_describe_(NetConn *c, const NetAddress_ *a) {
    char text[INET6_ADDRSTRLEN] = "?";
    c->loopback = net_is_loopback_(a);
    if (a->any.sa_family == AF_INET) {
        inet_ntop(AF_INET, &a->v4.sin_addr, text, sizeof text);
        snprintf(c->name, sizeof c->name, "%s:%d", text, ntohs(a->v4.sin_port));
        c->address = str_hash((Str){(const char *)&a->v4.sin_addr, 4});
    } else if (a->any.sa_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&a->v6.sin6_addr)) {
        NetAddress_ v4 = {.v4 = {.sin_family = AF_INET, .sin_port = a->v6.sin6_port}};
        memcpy(&v4.v4.sin_addr, a->v6.sin6_addr.s6_addr + 12, 4);
        inet_ntop(AF_INET, &v4.v4.sin_addr, text, sizeof text);
        snprintf(c->name, sizeof c->name, "%s:%d", text, ntohs(v4.v4.sin_port));
        c->address = str_hash((Str){(const char *)&v4.v4.sin_addr, 4});
    } else if (a->any.sa_family == AF_INET6) {
        inet_ntop(AF_INET6, &a->v6.sin6_addr, text, sizeof text);
        snprintf(c->name, sizeof c->name, "[%s]:%d", text, ntohs(a->v6.sin6_port));
        c->address = str_hash((Str){(const char *)&a->v6.sin6_addr, 8});
    } else {
        snprintf(c->name, sizeof c->name, "unix");
        c->address = 0;
    }
}

/* ---- listening ---- */

static void net_close_fd_(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

/* A socket file that nobody listens on is a leftover: it is removed. One that answers is in use. */
static bool net_clear_leftover_(const NetAddress_ *a, socklen_t n) {
    struct stat st;
    if (lstat(a->unix_.sun_path, &st) != 0 || !S_ISSOCK(st.st_mode)) return false;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool dead = fd >= 0 && connect(fd, &a->any, n) != 0 && errno == ECONNREFUSED;
    net_close_fd_(&fd);
    return dead && unlink(a->unix_.sun_path) == 0;
}

static bool net_bind_(int fd, const NetAddress_ *a, socklen_t n) {
    int on = 1, off = 0;
    if (a->any.sa_family == AF_UNIX) {
        fchmod(fd, 0600); /* the file's mode: whoever may connect is decided by its owner */
        return bind(fd, &a->any, n) == 0 ||
               (errno == EADDRINUSE && net_clear_leftover_(a, n) && bind(fd, &a->any, n) == 0);
    }
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (a->any.sa_family == AF_INET6) /* :: serves IPv4 as well */
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    return bind(fd, &a->any, n) == 0;
}

/* Listens on a numeric address, localhost, or the path of a unix socket. Port 0 takes a free one. */
static bool net_listen(NetListener *l, const char *host, u16 port, Err *e) {
    NetAddress_ a;
    socklen_t n;
    l->fd = -1;
    l->port = 0;
    if (!net_parse_(host, port, &a, &n, e)) return false;
    l->fd = socket(a.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (l->fd < 0 || !net_bind_(l->fd, &a, n) || listen(l->fd, SOMAXCONN) != 0) {
        const char *why = strerror(errno);
        if (net_is_unix(host))
            err_set(e, ERR_RUNTIME, "cannot listen on '%.200s': %s", host, why);
        else
            err_set(e, ERR_RUNTIME, "cannot listen on %s port %d: %s", host, port, why);
        net_close_fd_(&l->fd);
        return false;
    }
    if (a.any.sa_family != AF_UNIX && getsockname(l->fd, &a.any, &n) == 0)
        l->port = ntohs(a.any.sa_family == AF_INET ? a.v4.sin_port : a.v6.sin6_port);
    return true;
}

static void net_listener_close(NetListener *l) {
    net_close_fd_(&l->fd);
}

/* ---- waiting ---- */

static bool net_waker_open(NetWaker *w, Err *e) {
    w->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return w->fd >= 0 || err_set(e, ERR_RUNTIME, "cannot make an event: %s", strerror(errno));
}

static void net_waker_close(NetWaker *w) {
    net_close_fd_(&w->fd);
}

/* Whoever waits, or waits next, is woken. */
static void net_wake(const NetWaker *w) {
    const u64 one = 1;
    ssize_t n = write(w->fd, &one, sizeof one);
    (void)n; /* it can only fail when it is full of wakes already */
}

/* Forgets the wakes so far; look at what they announced after this, not before. */
static void net_waker_clear(const NetWaker *w) {
    u64 count;
    ssize_t n = read(w->fd, &count, sizeof count);
    (void)n;
}

/* Waits until `events` on fd, the waker (may be NULL), or the deadline. */
static NetResult net_poll_(int fd, short events, const NetWaker *w, f64 deadline_ms) {
    struct pollfd f[2] = {{.fd = fd, .events = events}, {.fd = w ? w->fd : -1, .events = POLLIN}};
    for (;;) {
        f64 left = deadline_ms - os_now_ms();
        int ms = left <= 0 ? 0 : left < 60000 ? (int)left + 1 : 60000;
        int n = poll(f, 2, ms);
        if (n > 0 && f[1].revents) return NET_WOKEN;
        if (n > 0) return NET_OK;
        if (n < 0 && errno != EINTR) return NET_END; /* no memory in the kernel: give the peer up */
        if (left <= 0) return NET_TIMEOUT;
    }
}

/* Sleeps until the peer hangs up (NET_END), the waker is pulled, or the deadline. A peer that closed
 * only its sending half counts as gone: no client of ours does that before the answer. */
static NetResult net_wait(const NetConn *c, const NetWaker *w, f64 deadline_ms) {
    NetResult r = net_poll_(c->fd, POLLRDHUP, w, deadline_ms);
    return r == NET_OK ? NET_END : r;
}

/* Sleeps until there is something to read, the end included, the waker is pulled, or the deadline. */
static NetResult net_wait_input(const NetConn *c, const NetWaker *w, f64 deadline_ms) {
    return net_poll_(c->fd, POLLIN, w, deadline_ms);
}

/* Sleeps until the waker is pulled, or the deadline. */
static NetResult net_wait_waker(const NetWaker *w, f64 deadline_ms) {
    return net_poll_(-1, 0, w, deadline_ms);
}

/* ---- connections ---- */

static void net_tune_(const NetConn *c) {
    int on = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on,
               sizeof on); /* events leave at once; not for unix */
    setsockopt(c->fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
}

/* Takes the next connection. NET_END: the listener broke. */
static NetResult net_accept(const NetListener *l, NetConn *c, const NetWaker *w, f64 deadline_ms) {
    for (;;) {
        NetAddress_ a = {.storage = {.ss_family = AF_UNSPEC}};
        socklen_t n = sizeof a;
        c->fd = accept4(l->fd, &a.any, &n, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (c->fd >= 0) {
            net_describe_(c, &a);
            net_tune_(c);
            return NET_OK;
        }
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
            return NET_BUSY;
        if (errno == EBADF || errno == EINVAL || errno == ENOTSOCK) return NET_END;
        if (errno == EAGAIN) { /* everything else is one connection's trouble: it is skipped */
            NetResult r = net_poll_(l->fd, POLLIN, w, deadline_ms);
            if (r != NET_OK) return r;
        }
    }
}

/* Connects, for `dlm health`: the one call that goes out, and only where the sandbox is not. */
static bool net_connect(NetConn *c, const char *host, u16 port, f64 deadline_ms, Err *e) {
    NetAddress_ a;
    socklen_t n, n_why = sizeof(int);
    int why = 0;
    c->fd = -1;
    if (!net_parse_(host, port, &a, &n, e)) return false;
    net_describe_(c, &a);
    c->fd = socket(a.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->fd < 0 || connect(c->fd, &a.any, n) != 0) why = errno;
    if (why == EINPROGRESS) {
        if (net_poll_(c->fd, POLLOUT, NULL, deadline_ms) != NET_OK)
            why = ETIMEDOUT;
        else if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &why, &n_why) != 0)
            why = errno;
    }
    if (why == 0) {
        net_tune_(c);
        return true;
    }
    net_close_fd_(&c->fd);
    return err_set(e, ERR_RUNTIME, "cannot connect to %.200s: %s",
                   net_is_unix(host) ? host : c->name, strerror(why));
}

/* Reads what is there, at least one byte, at most n > 0. */
static NetResult net_read(const NetConn *c, void *p, size_t n, size_t *got, f64 deadline_ms) {
    *got = 0;
    for (;;) {
        ssize_t r = recv(c->fd, p, n, 0);
        if (r > 0) {
            *got = (size_t)r;
            return NET_OK;
        }
        if (r == 0 || (errno != EAGAIN && errno != EINTR)) return NET_END;
        NetResult w = errno == EAGAIN ? net_poll_(c->fd, POLLIN, NULL, deadline_ms) : NET_OK;
        if (w != NET_OK) return w;
    }
}

/* Writes a part of [n] bytes, at least one. */
static NetResult net_write_some(const NetConn *c, const void *p, size_t n, size_t *put,
                                f64 deadline_ms) {
    *put = 0;
    for (;;) {
        ssize_t r = send(c->fd, p, n, MSG_NOSIGNAL);
        if (r >= 0) {
            *put = (size_t)r;
            return NET_OK;
        }
        if (errno != EAGAIN && errno != EINTR) return NET_END;
        NetResult w = errno == EAGAIN ? net_poll_(c->fd, POLLOUT, NULL, deadline_ms) : NET_OK;
        if (w != NET_OK) return w;
    }
}

static void net_close(NetConn *c) {
    net_close_fd_(&c->fd);
}

/* Ends a connection that another thread reads or writes: its calls return NET_END. */
static void net_break(const NetConn *c) {
    shutdown(c->fd, SHUT_RDWR);
}

#define NET_DRAIN_MAX ((size_t)1 << 20) /* bytes of a refused request that are read away */

/* Closes so that the peer can still read the answer: a close with unread input would reset the
 * connection and throw the answer away. */
static void net_close_gently(NetConn *c, f64 deadline_ms) {
    char dropped[4096];
    size_t total = 0, n = 0;
    if (c->fd >= 0 && shutdown(c->fd, SHUT_WR) == 0)
        while (total < NET_DRAIN_MAX &&
               net_read(c, dropped, sizeof dropped, &n, deadline_ms) == NET_OK)
            total += n;
    net_close(c);
}

/* ---- a transport: bytes both ways, with or without TLS; the server does not care which ---- */

typedef struct NetTransport NetTransport;
struct NetTransport {
    NetConn *conn;
    void *secret; /* the TLS session, owned by tls.c */
    NetResult (*read)(NetTransport *t, void *p, size_t n, size_t *got, f64 deadline_ms);
    NetResult (*write)(NetTransport *t, const void *p, size_t n, f64 deadline_ms); /* all n bytes */
    void (*close)(NetTransport *t, f64 deadline_ms); /* says goodbye, then net_close_gently */
};

static NetResult net_plain_read_(NetTransport *t, void *p, size_t n, size_t *got, f64 deadline_ms) {
    return net_read(t->conn, p, n, got, deadline_ms);
}

static NetResult net_plain_write_(NetTransport *t, const void *p, size_t n, f64 deadline_ms) {
    for (size_t done = 0, put; done < n; done += put) {
        NetResult r = net_write_some(t->conn, (const char *)p + done, n - done, &put, deadline_ms);
        if (r != NET_OK) return r;
    }
    return NET_OK;
}

static void net_plain_close_(NetTransport *t, f64 deadline_ms) {
    net_close_gently(t->conn, deadline_ms);
}

static NetTransport net_plain(NetConn *c) {
    return (NetTransport){
        .conn = c, .read = net_plain_read_, .write = net_plain_write_, .close = net_plain_close_};
}

#endif

/* t_sandbox.c - from inside: what must fail fails, what must work works, in every thread. Each case
 * runs in a child, for what the sandbox takes away does not come back. */
#define DLM_SANITIZER 0 /* the children do nothing that a sanitizer minds */
#include "../src/sandbox.c"
#include "test.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/wait.h>

static char dir[64];
static SandboxKind kind;
static bool has_landlock;

static const char *at(const char *name) {
    static char path[4][128];
    static int next;
    next = (next + 1) % 4;
    snprintf(path[next], sizeof path[next], "%s/%s", dir, name);
    return path[next];
}

static void put(const char *name, const char *text) {
    FILE *f = fopen(at(name), "w");
    CHECK(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

static bool opens(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) close(fd);
    return fd >= 0;
}

/* Runs fn in a child and adds its counts to ours. Returns its wait status. */
static int in_child(void (*fn)(void)) {
    int p[2], counts[2] = {0, 0}, status = 0;
    fflush(stdout);
    CHECK(pipe(p) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        test_passed = test_failed = 0;
        alarm(60); /* a call that should have been denied may block */
        fn();
        fflush(stdout);
        counts[0] = test_passed;
        counts[1] = test_failed;
        if (write(p[1], counts, sizeof counts) != sizeof counts) _exit(9);
        _exit(0);
    }
    close(p[1]);
    if (read(p[0], counts, sizeof counts) == (ssize_t)sizeof counts) {
        test_passed += counts[0];
        test_failed += counts[1];
    }
    close(p[0]);
    CHECK(waitpid(pid, &status, 0) == pid);
    return status;
}

static Sandbox enter(void) {
    const SandboxPath paths[] = {{at("model"), false}, {at("live/cert"), true}, {NULL, true}};
    SandboxOptions o = {
        .mode = SANDBOX_AUTO, .kind = kind, .paths = paths, .n_paths = COUNT_OF(paths)};
    Sandbox s;
    Err e = {0};
    CHECK_OK(sandbox_enter(&s, &o, &e), e);
    CHECK(s.seccomp);
    CHECK((s.landlock > 0) == has_landlock);
    return s;
}

/* ---- what must fail ---- */

#define DENIED(call)                                                                        \
    do {                                                                                    \
        errno = 0;                                                                          \
        long rc_ = (long)(call);                                                            \
        CHECK_MSG(rc_ == -1 && errno == EPERM, "%s: %ld, %s", #call, rc_, strerror(errno)); \
    } while (0)

static void forbidden(void) {
    int pair[2], listener = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(listener >= 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    char *argv[] = {"true", NULL};
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pid_t parent = getppid();
    enter();
    DENIED(socket(AF_INET, SOCK_STREAM, 0));
    DENIED(socket(AF_UNIX, SOCK_DGRAM, 0));
    DENIED(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    DENIED(connect(listener, (struct sockaddr *)&a, sizeof a));
    DENIED(bind(listener, (struct sockaddr *)&a, sizeof a));
    DENIED(listen(listener, 1));
    DENIED(syscall(SYS_sendmsg, pair[0], NULL, 0));
    if (kind == SANDBOX_RUN) {
        DENIED(accept4(listener, NULL, NULL, 0));
        DENIED(send(pair[0], "x", 1, 0));
        DENIED(recv(pair[0], &a, 1, 0));
    }
    DENIED(execve("/bin/true", argv, argv));
    DENIED(syscall(SYS_execveat, AT_FDCWD, "/bin/true", argv, argv, 0));
    DENIED(fork());
#ifdef SYS_fork
    DENIED(syscall(SYS_fork));
    DENIED(syscall(SYS_vfork));
#endif
    DENIED(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
    DENIED(syscall(SYS_clone, SANDBOX_CLONE_THREAD_ | 0x20000000u /* NEWPID */, 0, 0, 0, 0));
    errno = 0;
    CHECK(syscall(435, NULL, 0) == -1 && errno == ENOSYS); /* clone3 */
    DENIED(open(at("model"), O_RDWR));
    DENIED(open(at("model"), O_WRONLY | O_TRUNC));
    DENIED(open(at("model"), O_RDONLY | O_TRUNC));
    DENIED(open(at("new"), O_RDONLY | O_CREAT, 0600));
    DENIED(open(dir, O_RDWR | 020000000 | O_DIRECTORY, 0600)); /* O_TMPFILE */
    DENIED(unlink(at("model")));
    DENIED(rename(at("model"), at("other")));
    DENIED(link(at("model"), at("other")));
    DENIED(symlink("/", at("other")));
    DENIED(mkdir(at("other"), 0700));
    DENIED(truncate(at("model"), 0));
    DENIED(chmod(at("model"), 0777));
    DENIED(chdir("/"));
    DENIED(chroot("/"));
    DENIED(ptrace(PTRACE_TRACEME, 0, 0, 0));
    DENIED(kill(parent, 0));
    DENIED(syscall(SYS_tgkill, parent, parent, 0));
    DENIED(syscall(SYS_tkill, parent, SIGTERM));
    DENIED(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
    DENIED(setuid(0));
    DENIED(setrlimit(RLIMIT_NOFILE, &(struct rlimit){1, 1}));
    DENIED(syscall(SYS_unshare, 0));
    DENIED(syscall(SYS_mount, NULL, "/", NULL, 0, NULL));
    DENIED(syscall(SYS_bpf, 0, NULL, 0));
    DENIED(syscall(SYS_memfd_create, "x", 0));
    DENIED(syscall(SYS_process_vm_readv, parent, NULL, 0, NULL, 0, 0));
    DENIED(syscall(SYS_pidfd_open, parent, 0));
    DENIED(syscall(425, 1, NULL)); /* io_uring_setup */
    DENIED(syscall(SYS_keyctl, 0, 0));
    DENIED(syscall(SYS_personality, 0xffffffff));
    DENIED(ioctl(0, 0x5412 /* TIOCSTI */, "x"));
    DENIED(fcntl(0, F_SETOWN, parent));
    DENIED(dup(0));
    DENIED(
        syscall(SYS_mmap, NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    DENIED(mprotect(page, 4096, PROT_READ | PROT_EXEC));
}

/* ---- what must work ---- */

static void thread_main(void *arg) {
    *(int *)arg = (int)syscall(SYS_gettid);
}

static void test_files(const Sandbox *s) {
    Buf b = {0};
    Err e = {0};
    CHECK_OK(os_read_file(at("model"), &b, &e), e);
    CHECK_STR(buf_view(&b), STR("weights"));
    buf_free(&b);
    OsMap m;
    if (CHECK_OK(os_map_file(&m, at("model"), &e), e)) CHECK_MEM(m.p, "weights", 7);
    os_unmap(&m);
    CHECK(!os_map_file(&m, at("absent"), &e)); /* what is not there is said to be not there */
    CHECK_ERR(e, ERR_MODEL, "No such file");
    CHECK(opens(at("live/cert")) && opens(at("archive/1")));
    CHECK(opens(at("archive/2"))); /* the version that the link will name next */
    CHECK_MSG(opens(at("secret")) == !s->landlock, "a file that was not named");
    CHECK(opens("/etc/passwd") == !s->landlock);
    CHECK(os_peak_rss() > 0 && os_memory_total() > 0 && os_cpu_count() > 0);
}

static void allowed(void) {
    Sandbox s = enter();
    Err e = {0};
    OsThread t;
    int tid = 0;
    if (CHECK_OK(os_thread_start(&t, thread_main, &tid, &e), e)) os_thread_join(&t);
    CHECK(tid > 0);
    test_files(&s);
    u8 bytes[8];
    CHECK(os_random(bytes, sizeof bytes, NULL));
    os_sleep_ms(1);
    CHECK(os_now_ms() > 0 && os_now_unix() > 0);
    (void)os_tty_width(1);
    Buf b = {0};
    for (int i = 0; i < 1000; i++) CHECK(buf_printf(&b, "%0200d", i));
    buf_free(&b);
    CHECK(os_wait_input(-1, 0, 0) == OS_INPUT_NOT_YET);
    CHECK_OK(sandbox_seal(&s, &e), e);
    CHECK(!os_thread_start(&t, thread_main, &tid, &e)); /* no more of them */
    e = (Err){0};
    if (s.landlock)
        test_files(&s);
    else
        CHECK(!opens(at("model")));
}

/* A connection that came before and one that comes after the sandbox has closed are both served. */
static void accepted(void) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    char said[5] = "";
    CHECK(bind(listener, (struct sockaddr *)&a, n) == 0 && listen(listener, 5) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&a, &n) == 0);
    pid_t client = fork();
    if (client == 0) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        bool ok = connect(fd, (struct sockaddr *)&a, n) == 0 && send(fd, "ping", 4, 0) == 4 &&
                  recv(fd, said, 4, 0) == 4 && memcmp(said, "pong", 4) == 0;
        _exit(ok ? 0 : 1);
    }
    enter();
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (!CHECK(fd >= 0)) return;
    CHECK(setsockopt(fd, IPPROTO_TCP, 1, &on, sizeof on) == 0); /* TCP_NODELAY */
    CHECK(recv(fd, said, 4, 0) == 4 && memcmp(said, "ping", 4) == 0);
    CHECK(send(fd, "pong", 4, MSG_NOSIGNAL) == 4 && shutdown(fd, SHUT_WR) == 0);
    CHECK(recv(fd, said, 1, 0) == 0 && close(fd) == 0);
}

/* ---- every thread ---- */

static int to_parent[2], to_child[2];

static void wait_for_parent(void *arg) {
    char c;
    (void)arg;
    CHECK(read(to_child[0], &c, 1) == 1);
}

static void with_threads(void) {
    OsThread t[3];
    CHECK(os_thread_start(&t[0], wait_for_parent, NULL, NULL)); /* before: TSYNC reaches it */
    Sandbox s = enter();
    CHECK(os_thread_start(&t[1], wait_for_parent, NULL, NULL));
    CHECK(os_thread_start(&t[2], wait_for_parent, NULL, NULL));
    CHECK(sandbox_seal(&s, NULL));
    CHECK(write(to_parent[1], "r", 1) == 1);
    for (int i = 0; i < 3; i++) os_thread_join(&t[i]);
}

/* What `grep Seccomp /proc/PID/task/X/status` prints. */
static void look_at_threads(pid_t pid) {
    char path[300], c;
    int n = 0;
    CHECK(read(to_parent[0], &c, 1) == 1);
    snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    DIR *d = opendir(path);
    for (struct dirent *t; d && (t = readdir(d));) {
        if (t->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/proc/%d/task/%.20s/status", (int)pid, t->d_name);
        Buf b = {0};
        CHECK(os_read_file(path, &b, NULL));
        CHECK_U64(os_field_(buf_view(&b), STR("Seccomp:")), 2);
        CHECK_U64(os_field_(buf_view(&b), STR("NoNewPrivs:")), 1);
        buf_free(&b);
        n++;
    }
    if (d) closedir(d);
    CHECK_INT(n, 4);
    CHECK(write(to_child[1], "ggg", 3) == 3);
}

static void test_threads(void) {
    int status = 0;
    CHECK(pipe(to_parent) == 0 && pipe(to_child) == 0);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        test_failed = 0;
        alarm(60);
        with_threads();
        _exit(test_failed != 0);
    }
    look_at_threads(pid);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

/* ---- degrees ---- */

/* As on a kernel without Landlock (many a Raspberry Pi's). */
static void hide_landlock(void) {
    SandboxCode_ c = {.n = 0};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    sandbox_emit_arch_(&c);
    sandbox_emit_call_(&c, SYS_landlock_create_ruleset, SANDBOX_RET_ERRNO_ | ENOSYS);
    sandbox_emit_(&c, SANDBOX_RET_, SANDBOX_RET_ALLOW_, 0, 0);
    CHECK(sandbox_install_(&c));
    has_landlock = false;
    base_log_level = LOG_QUIET;
}

static void auto_without_landlock(void) {
    hide_landlock();
    allowed();
}

static void forbidden_without_landlock(void) {
    hide_landlock();
    forbidden();
}

static void strict_without_landlock(void) {
    SandboxOptions o = {.mode = SANDBOX_STRICT, .kind = kind};
    Sandbox s;
    Err e = {0};
    hide_landlock();
    CHECK(!sandbox_enter(&s, &o, &e));
    CHECK_ERR(e, ERR_RUNTIME, "no Landlock");
    CHECK(opens("/etc/passwd") && !s.seccomp); /* nothing half done */
}

static void strict(void) {
    SandboxOptions o = {.mode = SANDBOX_STRICT, .kind = kind};
    Sandbox s;
    Err e = {0};
    CHECK(sandbox_enter(&s, &o, &e) == has_landlock);
}

static void off(void) {
    SandboxOptions o = {.mode = SANDBOX_OFF, .kind = kind};
    Sandbox s;
    Err e = {0};
    CHECK_OK(sandbox_enter(&s, &o, &e), e);
    CHECK(!s.seccomp && !s.landlock);
    CHECK_OK(sandbox_seal(&s, &e), e);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(fd >= 0 && close(fd) == 0);
}

static void aborts(void) {
    enter();
    abort();
}

#if defined(__x86_64__)
static void calls_x32(void) {
    enter();
    syscall(0x40000000 | SYS_getpid);
}

static void calls_i386(void) {
    long rc = 20; /* getpid there, writev here */
    enter();
    __asm__ volatile("int $0x80" : "+a"(rc) : : "memory", "r8", "r9", "r10", "r11");
}
#endif

static void test_deaths(void) {
    int status = in_child(aborts);
    CHECK_MSG(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "abort: status %x", status);
#if defined(__x86_64__)
    status = in_child(calls_x32);
    CHECK_MSG(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS, "x32: status %x", status);
    status = in_child(calls_i386);
    CHECK_MSG(WIFSIGNALED(status), "i386: status %x", status);
#endif
}

int main(void) {
    snprintf(dir, sizeof dir, "/tmp/t_sandbox.XXXXXX");
    if (!CHECK(mkdtemp(dir) != NULL)) return test_end();
    CHECK(mkdir(at("live"), 0700) == 0 && mkdir(at("archive"), 0700) == 0);
    put("model", "weights");
    put("secret", "secret");
    put("archive/1", "old");
    put("archive/2", "new");
    CHECK(symlink("../archive/1", at("live/cert")) == 0);
    has_landlock = sandbox_landlock_abi_() > 0;
    printf("Landlock ABI %d\n", (int)sandbox_landlock_abi_());
    for (kind = SANDBOX_RUN; kind <= SANDBOX_SERVE; kind++) {
        CHECK_INT(in_child(forbidden), 0);
        CHECK_INT(in_child(allowed), 0);
        CHECK_INT(in_child(auto_without_landlock), 0);
        CHECK_INT(in_child(forbidden_without_landlock), 0);
        CHECK_INT(in_child(strict_without_landlock), 0);
        CHECK_INT(in_child(strict), 0);
        CHECK_INT(in_child(off), 0);
        test_threads();
        test_deaths();
    }
    kind = SANDBOX_SERVE;
    CHECK_INT(in_child(accepted), 0);
    static const char *const made[] = {"model", "secret", "archive/1", "archive/2", "live/cert"};
    for (size_t i = 0; i < COUNT_OF(made); i++) CHECK(unlink(at(made[i])) == 0);
    CHECK(rmdir(at("live")) == 0 && rmdir(at("archive")) == 0 && rmdir(dir) == 0);
    return test_end();
}

/* os.c - what is the operating system's: files, clock, random, processors, threads, signals.
 *
 * Owns:      the count of interrupts (one of the three mutable globals of the house).
 * Stands on: base mem; the only room with POSIX headers.
 * Promises:  no call hangs on a FIFO named as a model; EINTR and short transfers stay in here;
 *            nothing is read past its lid. */
#ifndef DLM_OS_C
#define DLM_OS_C

#include "base.c"
#include "mem.c"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define OS_STDIN 0
#define OS_STDOUT 1
#define OS_STDERR 2

/* ---- signals ---- */

static atomic_int os_interrupts_;

/* The first interrupt asks: whoever is busy looks at os_interrupts and stops cleanly. The
 * second, before anyone cleared the first, leaves on the spot. Everything written so far went
 * out by write(2): nothing is lost. */
static void os_on_interrupt_(int sig) {
    (void)sig;
    if (atomic_fetch_add(&os_interrupts_, 1) >= 1) _exit(ERR_INTERRUPTED);
}

static void os_on_bus_error_(int sig) {
    (void)sig;
    static const char text[] =
        "dlm: the model file changed, or its disk failed, while it was in use\n";
    ssize_t n = write(OS_STDERR, text, sizeof text - 1);
    (void)n;
    _exit(ERR_MODEL);
}

/* No SA_RESTART: an interrupt must end a read of the terminal. One that the shell told us to
 * ignore (a job in the background) stays ignored. A closed pipe comes back as EPIPE instead of
 * ending the process. A mapped file that shrinks under us raises SIGBUS. */
static void os_catch_signals(void) {
    struct sigaction a = {.sa_handler = os_on_interrupt_}, before = {.sa_handler = SIG_DFL};
    sigemptyset(&a.sa_mask);
    sigaction(SIGINT, NULL, &before);
    if (before.sa_handler != SIG_IGN) sigaction(SIGINT, &a, NULL);
    a.sa_handler = os_on_bus_error_;
    sigaction(SIGBUS, &a, NULL);
    a.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &a, NULL);
}

static int os_interrupts(void) {
    return atomic_load(&os_interrupts_);
}

static void os_interrupts_clear(void) {
    atomic_store(&os_interrupts_, 0);
}

/* For a server: from now on SIGTERM, SIGINT and SIGHUP are read from the descriptor that this returns,
 * which can be waited on beside others. Call it before the first thread starts. */
static int os_open_signals(Err *e) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    if (fd < 0)
        err_set(e, ERR_RUNTIME, "cannot wait for signals: %s", strerror(errno));
    else
        pthread_sigmask(SIG_BLOCK, &set, NULL);
    return fd;
}

typedef enum { OS_NO_SIGNAL, OS_STOP, OS_RELOAD } OsSignal;

/* The next signal that has arrived: SIGTERM and SIGINT stop, SIGHUP reloads. */
static OsSignal os_next_signal(int fd) {
    struct signalfd_siginfo info;
    if (read(fd, &info, sizeof info) != (ssize_t)sizeof info) return OS_NO_SIGNAL;
    return info.ssi_signo == SIGHUP ? OS_RELOAD : OS_STOP;
}

/* ---- files ---- */

/* Occupies what the caller left closed of 0, 1 and 2, so that no file we open takes such a number and
 * receives what was meant for it. Opened the wrong way round: using it still fails. */
static void os_hold_standard_files(void) {
    for (int fd = OS_STDIN; fd <= OS_STDERR; fd++)
        if (fcntl(fd, F_GETFD) < 0 && errno == EBADF &&
            open("/dev/null", fd == OS_STDIN ? O_WRONLY : O_RDONLY) < 0)
            return; /* no /dev: there is nothing to hold them with */
}

typedef struct {
    const u8 *p; /* [n] bytes, read-only */
    u64 n;
} OsMap;

static bool os_map_fd_(OsMap *m, int fd, const char *path, Err *e) {
    struct stat st;
    if (fstat(fd, &st) != 0)
        return err_set(e, ERR_MODEL, "cannot examine '%s': %s", path, strerror(errno));
    if (S_ISDIR(st.st_mode))
        return err_set(e, ERR_MODEL, "'%s' is a directory; name the .gguf file inside it", path);
    if (!S_ISREG(st.st_mode))
        return err_set(e, ERR_MODEL, "'%s' is a pipe or a device; a model must be a regular file",
                       path);
    if (st.st_size <= 0)
        return err_set(e, ERR_MODEL, "'%s' is empty; the download may have failed", path);
    void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (p == MAP_FAILED)
        return err_set(e, errno == ENOMEM ? ERR_MEMORY : ERR_MODEL, "cannot map '%s': %s", path,
                       strerror(errno));
    m->p = p;
    m->n = (u64)st.st_size;
    return true;
}

/* Maps a whole file. Regular and not empty, or an Err of code ERR_MODEL that names it.
 * O_NONBLOCK: opening a FIFO nobody writes to returns at once. */
static bool os_map_file(OsMap *m, const char *path, Err *e) {
    *m = (OsMap){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return err_set(e, ERR_MODEL, "cannot open '%s': %s", path, strerror(errno));
    bool ok = os_map_fd_(m, fd, path, e);
    close(fd);
    return ok;
}

static void os_unmap(OsMap *m) {
    if (m->p) munmap((void *)(uintptr_t)m->p, (size_t)m->n);
    *m = (OsMap){0};
}

/* Asks for large pages under a block that will be filled and then read over and over: fewer page
 * faults while it is filled, fewer misses of the address cache after. A hint; refused silently. */
static void os_want_huge_pages(void *p, u64 n) {
    const uintptr_t huge = 2u << 20;
    uintptr_t from = ((uintptr_t)p + huge - 1) / huge * huge, to = ((uintptr_t)p + n) / huge * huge;
    if (from < to) madvise((void *)from, to - from, MADV_HUGEPAGE);
}

/* Gives back the pages that lie wholly inside [p, p + n) of a file mapping; touched again, they are
 * read again. Never for memory that was written to: its contents would be lost. */
static void os_forget(const void *p, u64 n) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE),
              from = ((uintptr_t)p + page - 1) / page * page;
    uintptr_t to = ((uintptr_t)p + n) / page * page;
    if (from < to) madvise((void *)from, to - from, MADV_DONTNEED);
}

/* ---- reading ---- */

typedef enum { OS_INPUT, OS_INPUT_NOT_YET, OS_INPUT_INTERRUPTED } OsWait;

/* Waits until fd can be read, its end included, at most ms (-1: for ever), or until there are other
 * than `seen` interrupts. The signal is let in by ppoll alone: one that comes between a look at the
 * count and a plain read would leave the read waiting. */
static OsWait os_wait_input(int fd, int ms, int seen) {
    struct pollfd f = {.fd = fd, .events = POLLIN};
    const struct timespec limit = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    sigset_t block, before;
    sigemptyset(&block);
    sigaddset(&block, SIGINT);
    pthread_sigmask(SIG_BLOCK, &block, &before);
    int n = 0;
    do {
        if (os_interrupts() != seen) break;
        n = ppoll(&f, 1, ms < 0 ? NULL : &limit, &before);
    } while (n < 0 && errno == EINTR);
    bool interrupted = os_interrupts() != seen;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return interrupted ? OS_INPUT_INTERRUPTED : n == 0 ? OS_INPUT_NOT_YET : OS_INPUT;
}

#define OS_READ_CHUNK ((size_t)64 << 10)

/* Appends everything that is left in fd. */
static bool os_read_fd(int fd, const char *name, Buf *out, Err *e) {
    size_t max = out->max ? out->max : BUF_MAX_DEFAULT;
    for (;;) {
        /* At the lid one byte more is asked for, to tell "exactly full" from "too long". */
        char last;
        size_t want = MIN_OF(OS_READ_CHUNK, max - out->n);
        if (want && !buf_reserve(out, want)) return buf_ok(out, name, e);
        if (os_wait_input(fd, -1, 0) == OS_INPUT_INTERRUPTED)
            return err_set(e, ERR_INTERRUPTED, "interrupted");
        ssize_t got = want ? read(fd, out->p + out->n, want) : read(fd, &last, 1);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return err_set(e, ERR_RUNTIME, "cannot read %s: %s", name, strerror(errno));
        if (got == 0) return true;
        if (want == 0) return err_set(e, ERR_RUNTIME, "%s is too long: over %zu bytes", name, max);
        out->n += (size_t)got;
        out->p[out->n] = 0;
    }
}

/* Appends the whole of a file or pipe to `out`, up to its lid. */
static bool os_read_file(const char *path, Buf *out, Err *e) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
    if (fd < 0) return err_set(e, ERR_RUNTIME, "cannot open '%s': %s", path, strerror(errno));
    bool ok = os_read_fd(fd, path, out, e);
    close(fd);
    return ok;
}

static bool os_read_stdin(Buf *out, Err *e) {
    return os_read_fd(OS_STDIN, "standard input", out, e);
}

/* Was something piped into us, as opposed to a terminal, /dev/null or nothing at all? */
static bool os_stdin_is_piped(void) {
    struct stat st;
    return fstat(OS_STDIN, &st) == 0 &&
           (S_ISFIFO(st.st_mode) || S_ISREG(st.st_mode) || S_ISSOCK(st.st_mode));
}

/* Lines of standard input, as a conversation reads them. */
typedef struct {
    char held[4096];
    size_t at, n; /* held[at .. n) is not yet taken */
} OsLines;

typedef enum { OS_LINE, OS_LINE_END, OS_LINE_INTERRUPTED, OS_LINE_FAILED } OsLineResult;

/* Reads one line into `out`, without its newline. A last line without a newline counts. Returns
 * early when there are other than `seen` interrupts. */
static OsLineResult os_read_line(OsLines *l, Buf *out, int seen, Err *e) {
    buf_clear(out);
    bool some = false;
    for (;;) {
        const char *from = l->held + l->at;
        const char *end = memchr(from, '\n', l->n - l->at);
        size_t n = end ? (size_t)(end - from) : l->n - l->at;
        if (!buf_put(out, from, n)) {
            buf_ok(out, "the line", e);
            return OS_LINE_FAILED;
        }
        some = some || n > 0;
        l->at += n + (end != NULL);
        if (end) return OS_LINE;
        l->at = l->n = 0;
        if (os_wait_input(OS_STDIN, -1, seen) == OS_INPUT_INTERRUPTED) return OS_LINE_INTERRUPTED;
        ssize_t got = read(OS_STDIN, l->held, sizeof l->held);
        if (got > 0) l->n = (size_t)got;
        if (got == 0) return some ? OS_LINE : OS_LINE_END;
        if (got < 0 && errno != EINTR) {
            err_set(e, ERR_RUNTIME, "cannot read standard input: %s", strerror(errno));
            return OS_LINE_FAILED;
        }
    }
}

/* Writes all n bytes. When the reader of a pipe has gone (EPIPE) it returns false and leaves *e
 * clean: there is nobody to tell, and the caller ends quietly. */
static bool os_write_all(int fd, const void *p, size_t n, Err *e) {
    const char *at = p;
    while (n > 0) {
        ssize_t put = write(fd, at, n);
        if (put >= 0) {
            at += put;
            n -= (size_t)put;
        } else if (errno == EAGAIN) { /* someone else made it non-blocking */
            struct pollfd f = {.fd = fd, .events = POLLOUT};
            poll(&f, 1, -1);
        } else if (errno == EPIPE) {
            return false;
        } else if (errno != EINTR) {
            return err_set(e, ERR_RUNTIME, "cannot write: %s", strerror(errno));
        }
    }
    return true;
}

/* Creates or empties a file for writing. Returns its descriptor, or -1 with an Err. */
static int os_create_file(const char *path, Err *e) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0666);
    if (fd < 0) err_set(e, ERR_RUNTIME, "cannot write '%s': %s", path, strerror(errno));
    return fd;
}

/* Writes a file that was not there before; a secret one is for its owner alone. */
static bool os_write_new_file(const char *path, Str content, bool secret, Err *e) {
    mode_t mode = secret ? 0600 : 0644;
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, mode);
    if (fd < 0) return err_set(e, ERR_RUNTIME, "cannot create '%s': %s", path, strerror(errno));
    bool ok = os_write_all(fd, content.p, content.n, e);
    if (close(fd) == 0) return ok;
    return ok && err_set(e, ERR_RUNTIME, "cannot finish '%s': %s", path, strerror(errno));
}

/* Closing can be where a full disk or a lost server is first told of. */
static bool os_close_file(int fd, const char *path, Err *e) {
    if (close(fd) == 0) return true;
    return err_set(e, ERR_RUNTIME, "cannot finish '%s': %s", path, strerror(errno));
}

static void os_close(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

#define OS_NOTES_PATH_MAX 4096

/* Opens DIR/dlm/NAME for reading, and for appending to; a file of more than max bytes begins anew.
 * Returns its descriptor, or -1: notes are a convenience. */
static int os_open_notes(const char *dir, const char *name, u64 max) {
    char path[OS_NOTES_PATH_MAX];
    struct stat st;
    if (snprintf(path, sizeof path, "%s/dlm", dir) >= (int)sizeof path) return -1;
    if (mkdir(path, 0700) != 0 && errno != EEXIST) return -1;
    if (snprintf(path, sizeof path, "%s/dlm/%s", dir, name) >= (int)sizeof path) return -1;
    int fd = open(path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NOFOLLOW, 0600);
    if (fd < 0) return -1;
    bool fits = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) &&
                ((u64)st.st_size <= max || ftruncate(fd, 0) == 0);
    if (!fits) os_close(&fd);
    return fd;
}

/* ---- a file that appears whole or not at all ---- */

#define OS_NEW_PATH_MAX 4096

typedef struct {
    const char *path; /* where it will be */
    int fd;
    bool named; /* it lies at temp already: the file system has no files without names */
    char temp[OS_NEW_PATH_MAX];
} OsNewFile;

/* Is there a file, or a folder, of this name? */
static bool os_is_file(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

static bool os_is_folder(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static bool os_is_same_file(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Begins a file that os_new_finish puts at `path`. Until then it has no name where the file system can
 * do that: whatever ends this process, nothing is left behind. Elsewhere it is path.PID.N.tmp. */
static bool os_new_open(OsNewFile *f, const char *path, Err *e) {
    *f = (OsNewFile){.path = path, .fd = -1};
    struct stat st;
    if (strlen(path) > sizeof f->temp - 32)
        return err_set(e, ERR_USAGE, "the name of the new file is too long");
    for (int n = 0; n == 0 || access(f->temp, F_OK) == 0; n++) /* one process may have several */
        snprintf(f->temp, sizeof f->temp, "%s.%d.%d.tmp", path, (int)getpid(), n);
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return err_set(e, ERR_USAGE, "'%s' is there and is not a file; name another one", path);
    char folder[OS_NEW_PATH_MAX];
    const char *slash = strrchr(path, '/');
    snprintf(folder, sizeof folder, "%.*s", slash ? (int)(slash - path + 1) : 1,
             slash ? path : ".");
    if (access("/proc/self/fd", X_OK) == 0)
        f->fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
    f->named = f->fd < 0;
    if (f->named) f->fd = open(f->temp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOCTTY, 0666);
    if (f->fd >= 0) return true;
    return err_set(e, ERR_RUNTIME, "cannot create '%s': %s", path, strerror(errno));
}

/* Drops an unfinished file; does nothing for one that is finished or was never begun. */
static void os_new_drop(OsNewFile *f) {
    if (f->fd >= 0 && f->named) unlink(f->temp);
    os_close(&f->fd);
}

/* Puts the file in its place, over one that was there, once all of it is on the disk. */
static bool os_new_finish(OsNewFile *f, Err *e) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", f->fd);
    bool ok = fsync(f->fd) == 0;
    if (ok && !f->named) {
        ok = linkat(AT_FDCWD, link, AT_FDCWD, f->temp, AT_SYMLINK_FOLLOW) == 0;
        f->named = ok;
    }
    ok = ok && rename(f->temp, f->path) == 0;
    if (!ok) err_set(e, ERR_RUNTIME, "cannot finish '%s': %s", f->path, strerror(errno));
    if (ok) f->named = false;
    os_new_drop(f);
    return ok;
}

/* Maps what was written so far, for reading. */
static bool os_new_map(const OsNewFile *f, OsMap *m, Err *e) {
    *m = (OsMap){0};
    return os_map_fd_(m, f->fd, f->path, e);
}

/* Can others read this secret than those who need to? What is somebody else's, as the secrets are that a
 * container is given, we can read through its group alone. */
static bool os_is_shared_file(const char *path) {
    struct stat st;
    if (stat(path, &st) != 0) return false;
    return (st.st_mode & S_IROTH) || ((st.st_mode & S_IRGRP) && st.st_uid == geteuid());
}

/* Raises the limit of open files to n where that is allowed; returns the limit. */
static u64 os_want_files(u64 n) {
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) != 0 || r.rlim_cur >= n) return n;
    rlim_t before = r.rlim_cur;
    r.rlim_cur = MIN_OF((rlim_t)n, r.rlim_max);
    return setrlimit(RLIMIT_NOFILE, &r) == 0 ? r.rlim_cur : before;
}

static bool os_isatty(int fd) {
    return isatty(fd) == 1;
}

/* Columns of the terminal behind fd; 80 where it does not say. */
static int os_tty_width(int fd) {
    struct winsize w = {0};
    return ioctl(fd, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 ? w.ws_col : 80;
}

/* ---- clock and random ---- */

static f64 os_now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (f64)t.tv_sec * 1e3 + (f64)t.tv_nsec / 1e6;
}

static i64 os_now_unix(void) {
    return (i64)time(NULL);
}

#define OS_TIME_MAX 24

/* 2026-11-21T18:37:54Z */
static const char *os_time_text(i64 unix_time, char out[OS_TIME_MAX]) {
    time_t t = (time_t)unix_time;
    struct tm tm;
    out[0] = 0;
    if (gmtime_r(&t, &tm)) strftime(out, OS_TIME_MAX, "%Y-%m-%dT%H:%M:%SZ", &tm);
    return out;
}

/* An interrupt ends the nap early. */
static void os_sleep_ms(f64 ms) {
    if (ms > 0) poll(NULL, 0, (int)MIN_OF(ms, 60000.0));
}

static bool os_random(void *p, size_t n, Err *e) {
    u8 *at = p;
    while (n > 0) {
        ssize_t got = getrandom(at, n, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return err_set(e, ERR_RUNTIME, "no random numbers: %s", strerror(errno));
        at += got;
        n -= (size_t)got;
    }
    return true;
}

/* ---- what the machine allows: processors and memory, within the control group ---- */

#define OS_PATH_MAX 1024
#define OS_SMALL_FILE_MAX 8191

/* Reads a small text file of /proc or /sys; NUL-terminated. Empty when it is absent. */
static Str os_small_file_(const char *path, char text[OS_SMALL_FILE_MAX + 1]) {
    size_t n = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && n < OS_SMALL_FILE_MAX) {
        ssize_t got = read(fd, text + n, OS_SMALL_FILE_MAX - n);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        n += (size_t)got;
    }
    if (fd >= 0) close(fd);
    text[n] = 0;
    return (Str){text, n};
}

/* Reads a decimal at s[*i], after blanks. False when there is none ("max", "-1") or it
 * overflows. */
static bool os_number_(Str s, size_t *i, u64 *out) {
    while (*i < s.n && (s.p[*i] == ' ' || s.p[*i] == '\t')) (*i)++;
    size_t from = *i;
    for (*out = 0; *i < s.n && s.p[*i] >= '0' && s.p[*i] <= '9'; (*i)++)
        if (!mul_ok(*out, 10, out) || !add_ok(*out, (u64)(s.p[*i] - '0'), out)) return false;
    return *i > from;
}

/* The number after `key` in a text of "key: number" lines, else 0. */
static u64 os_field_(Str text, Str key) {
    size_t at = str_find(text, key, 0);
    u64 value = 0;
    if (at == SIZE_MAX) return 0;
    at += key.n;
    return os_number_(text, &at, &value) ? value : 0;
}

/* The path of this process in the hierarchy that holds `controller` ("" for the unified one,
 * v2), cut from the text of /proc/self/cgroup, whose lines read "number:controllers:/path". */
static bool os_cgroup_path_(Str text, Str controller, Str *path) {
    for (size_t i = 0; i < text.n;) {
        size_t end = MIN_OF(str_find(text, STR("\n"), i), text.n);
        size_t c1 = str_find(text, STR(":"), i);
        size_t c2 = c1 < end ? str_find(text, STR(":"), c1 + 1) : SIZE_MAX;
        i = end + 1;
        if (c2 >= end) continue;
        bool found = controller.n == 0 && c2 == c1 + 1;
        for (size_t a = c1 + 1; a < c2 && controller.n;) { /* a comma-separated list */
            size_t b = MIN_OF(str_find(text, STR(","), a), c2);
            found = found || str_eq(str_cut(text, a, b), controller);
            a = b + 1;
        }
        *path = str_cut(text, c2 + 1, end);
        if (found) return true;
    }
    return false;
}

/* Where control groups are mounted; tests put a tree of their own here. */
typedef struct {
    const char *self;  /* the file that names our groups */
    const char *mount; /* the hierarchy, or the directory of hierarchies */
} OsCgroups;

static const OsCgroups OS_CGROUPS = {"/proc/self/cgroup", "/sys/fs/cgroup"};

/* Processors that one group directory grants: quota / period rounded up, or UINT64_MAX for no
 * limit. */
static u64 os_group_cpus_(const char *dir, bool v2) {
    char name[OS_PATH_MAX + 32], text[OS_SMALL_FILE_MAX + 1];
    u64 quota = 0, period = 0;
    size_t i = 0;
    snprintf(name, sizeof name, "%s/%s", dir, v2 ? "cpu.max" : "cpu.cfs_quota_us");
    Str s = os_small_file_(name, text);
    if (!os_number_(s, &i, &quota)) return UINT64_MAX;
    if (!v2) {
        snprintf(name, sizeof name, "%s/cpu.cfs_period_us", dir);
        s = os_small_file_(name, text);
        i = 0;
    }
    if (!os_number_(s, &i, &period) || period == 0) return UINT64_MAX;
    return quota / period + (quota % period != 0);
}

/* Bytes that one group directory grants, or UINT64_MAX for no limit. */
static u64 os_group_memory_(const char *dir, bool v2) {
    char name[OS_PATH_MAX + 32], text[OS_SMALL_FILE_MAX + 1];
    snprintf(name, sizeof name, "%s/%s", dir, v2 ? "memory.max" : "memory.limit_in_bytes");
    u64 bytes = 0;
    size_t i = 0;
    return os_number_(os_small_file_(name, text), &i, &bytes) ? bytes : UINT64_MAX;
}

/* The smallest grant from our group up to the root of the hierarchy. Inside a container the path
 * may name a place that is not visible; then only the root is, and it is ours. */
static u64 os_cgroup_limit_(OsCgroups where, Str controller,
                            u64 (*grant)(const char *dir, bool v2)) {
    char text[OS_SMALL_FILE_MAX + 1], dir[OS_PATH_MAX];
    Str self = os_small_file_(where.self, text), path = {0};
    bool v2 = false;
    if (!os_cgroup_path_(self, controller, &path)) {
        if (!os_cgroup_path_(self, STR(""), &path)) return UINT64_MAX;
        v2 = true;
    }
    u64 least = UINT64_MAX;
    for (;;) {
        while (path.n && path.p[path.n - 1] == '/') path.n--;
        int n =
            snprintf(dir, sizeof dir, "%s%s%.*s%.*s", where.mount, v2 ? "" : "/", (int)controller.n,
                     v2 ? "" : controller.p, (int)MIN_OF(path.n, OS_PATH_MAX), path.p);
        if (n > 0 && (size_t)n < sizeof dir) least = MIN_OF(least, grant(dir, v2));
        if (path.n == 0) return least;
        while (path.n && path.p[path.n - 1] != '/') path.n--;
    }
}

/* Processors that this process may keep busy: its affinity mask, capped by the quota of its
 * control group. */
static int os_cpu_count(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    bool known = sched_getaffinity(0, sizeof set, &set) == 0;
    i64 n = known ? CPU_COUNT(&set) : sysconf(_SC_NPROCESSORS_ONLN);
    u64 quota = os_cgroup_limit_(OS_CGROUPS, STR("cpu"), os_group_cpus_);
    if (n < 1) n = 1;
    return quota < (u64)n ? (int)MAX_OF(quota, 1u) : (int)n;
}

/* Bytes that can still be taken without swapping: MemAvailable, capped by the limit of the
 * control group. */
static u64 os_memory_total(void) {
    char text[OS_SMALL_FILE_MAX + 1];
    u64 free_kib = os_field_(os_small_file_("/proc/meminfo", text), STR("MemAvailable:"));
    u64 machine = free_kib ? free_kib * 1024 : UINT64_MAX;
    return MIN_OF(machine, os_cgroup_limit_(OS_CGROUPS, STR("memory"), os_group_memory_));
}

/* The most memory this process held at once, in bytes. VmHWM first: ru_maxrss survives execve,
 * so a large parent would be counted as us. */
static u64 os_peak_rss(void) {
    char text[OS_SMALL_FILE_MAX + 1];
    u64 kib = os_field_(os_small_file_("/proc/self/status", text), STR("VmHWM:"));
    struct rusage u = {0};
    if (!kib && getrusage(RUSAGE_SELF, &u) == 0) kib = (u64)u.ru_maxrss;
    return kib * 1024;
}

/* Where os_rss looks: opened early, for a sandbox may forbid it later. -1: there is no /proc. */
static int os_open_rss(void) {
    return open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
}

/* Bytes of memory that this process holds now; 0 when it cannot be told. */
static u64 os_rss(int fd) {
    char text[128];
    ssize_t n = pread(fd, text, sizeof text, 0);
    u64 pages = 0;
    size_t at = 0;
    Str s = {text, n > 0 ? (size_t)n : 0};
    if (!os_number_(s, &at, &pages) || !os_number_(s, &at, &pages))
        return 0; /* size resident ... */
    return pages * (u64)sysconf(_SC_PAGESIZE);
}

/* ---- threads ---- */

/* musl's default of 128 KiB is tight for kernels with scratch rows on the stack. */
#define OS_THREAD_STACK ((size_t)512 << 10)

typedef struct OsThread {
    pthread_t id;
    void (*fn)(void *arg);
    void *arg;
} OsThread;

static void *os_thread_main_(void *p) {
    OsThread *t = p;
    t->fn(t->arg);
    return NULL;
}

/* Starts fn(arg). `t` must stay where it is until os_thread_join. Interrupts go to the caller's
 * thread, which is the one that waits for input. */
static bool os_thread_start(OsThread *t, void (*fn)(void *), void *arg, Err *e) {
    *t = (OsThread){.fn = fn, .arg = arg};
    sigset_t block, before;
    sigemptyset(&block);
    sigaddset(&block, SIGINT);
    sigaddset(&block, SIGTERM);
    sigaddset(&block, SIGHUP);
    pthread_attr_t attr;
    int rc = pthread_attr_init(&attr);
    if (rc == 0) {
        pthread_attr_setstacksize(&attr, OS_THREAD_STACK);
        pthread_sigmask(SIG_BLOCK, &block, &before);
        rc = pthread_create(&t->id, &attr, os_thread_main_, t);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        pthread_attr_destroy(&attr);
    }
    return rc == 0 || err_set(e, ERR_RUNTIME, "cannot start a thread: %s", strerror(rc));
}

static void os_thread_join(OsThread *t) {
    pthread_join(t->id, NULL);
}

typedef struct OsLock {
    pthread_mutex_t mutex;
} OsLock;

static void os_lock_open(OsLock *l) {
    pthread_mutex_init(&l->mutex, NULL);
}

static void os_lock_close(OsLock *l) {
    pthread_mutex_destroy(&l->mutex);
}

static void os_lock(OsLock *l) {
    pthread_mutex_lock(&l->mutex);
}

static void os_unlock(OsLock *l) {
    pthread_mutex_unlock(&l->mutex);
}

/* A word to sleep on (a futex). */
typedef struct OsGate {
    _Atomic u32 word;
} OsGate;
_Static_assert(sizeof(OsGate) == 4, "the kernel looks at 32 bits");

/* <linux/futex.h> is not among musl's headers. */
#define OS_FUTEX_WAIT_PRIVATE 128
#define OS_FUTEX_WAKE_PRIVATE 129

/* Sleeps while the word equals `old`. May return early: the caller looks again. */
static void os_gate_wait(OsGate *g, u32 old) {
    syscall(SYS_futex, &g->word, OS_FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
}

/* Wakes everyone; the word was changed before. */
static void os_gate_wake_all(OsGate *g) {
    syscall(SYS_futex, &g->word, OS_FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

/* Tells the processor that this is a loop that waits. */
static void os_cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif

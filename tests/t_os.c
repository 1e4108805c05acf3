/* t_os.c - files that are not models, lids, lines, interrupts, control groups, threads. */
#include "../src/os.c"
#include "test.h"

#include <sys/wait.h>

static char dir[64]; /* a fresh temporary directory */
static char path[128];

static const char *at(const char *name) {
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void put(const char *name, const char *text) {
    Err e = {0};
    int fd = os_create_file(at(name), &e);
    CHECK_OK(fd >= 0 && os_write_all(fd, text, strlen(text), &e) && os_close_file(fd, name, &e), e);
}

/* Runs fn in a child and returns its exit status; what it says on stderr goes to *said. */
static int child_status(void (*fn)(void), Buf *said) {
    int out[2];
    CHECK(pipe(out) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(out[1], OS_STDERR);
        close(out[0]);
        close(out[1]);
        fn();
        _exit(99);
    }
    close(out[1]);
    Err e = {0};
    CHECK_OK(os_read_fd(out[0], "the child", said, &e), e);
    close(out[0]);
    int status = 0;
    CHECK(waitpid(pid, &status, 0) == pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_map(void) {
    OsMap m;
    Err e = {0};
    put("model", "GGUF");
    if (CHECK_OK(os_map_file(&m, at("model"), &e), e)) {
        CHECK_U64(m.n, 4);
        CHECK_MEM(m.p, "GGUF", 4);
    }
    os_unmap(&m);
    CHECK(m.p == NULL && m.n == 0);
    os_unmap(&m); /* twice is harmless */
    const struct {
        const char *name, *says;
    } bad[] = {{"nosuch.gguf", "No such file"}, {".", "is a directory"}, {"empty", "is empty"},
               {"fifo", "is a pipe or a device"}, {"model/x", "Not a directory"}};
    put("empty", "");
    CHECK(mkfifo(at("fifo"), 0600) == 0);
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        e = (Err){0};
        CHECK(!os_map_file(&m, at(bad[i].name), &e));
        CHECK_ERR(e, ERR_MODEL, bad[i].says);
        CHECK(strstr(e.msg, path) != NULL);
    }
    e = (Err){0};
    CHECK(!os_map_file(&m, "/dev/zero", &e));
    CHECK_ERR(e, ERR_MODEL, "is a pipe or a device");
}

static void shrink_under_us(void) {
    OsMap m;
    os_catch_signals();
    if (!os_map_file(&m, at("shrinks"), NULL) || truncate(path, 0) != 0) _exit(98);
    volatile u8 first = m.p[0];
    _exit(first ? 97 : 96);
}

static void interrupt_twice(void) {
    os_catch_signals();
    raise(SIGINT);
    raise(SIGINT);
}

static void interrupt_cleared(void) {
    os_catch_signals();
    raise(SIGINT);
    if (os_interrupts() != 1) _exit(1);
    os_interrupts_clear();
    raise(SIGINT);
    _exit(os_interrupts() == 1 ? 0 : 1);
}

static OsGate asked; /* opened when the reader is about to wait */

static void interrupt_reader(void *arg) {
    (void)arg;
    while (atomic_load(&asked.word) == 0) os_gate_wait(&asked, 0);
    kill(getpid(), SIGINT);
}

static void interrupt_reading(void) {
    int in[2];
    OsThread t;
    Buf b = {0};
    Err e = {0};
    os_catch_signals();
    if (pipe(in) != 0 || !os_thread_start(&t, interrupt_reader, NULL, &e)) _exit(98);
    atomic_store(&asked.word, 1);
    os_gate_wake_all(&asked);
    bool ok = os_read_fd(in[0], "a silent pipe", &b, &e); /* ends whenever the signal comes */
    os_thread_join(&t);
    _exit(ok ? 97 : (int)e.code);
}

static void interrupt_ignored(void) {
    signal(SIGINT, SIG_IGN);
    os_catch_signals();
    raise(SIGINT);
    raise(SIGINT);
    _exit(os_interrupts());
}

static void test_signals(void) {
    Buf said = {0};
    put("shrinks", "some bytes");
    CHECK_INT(child_status(shrink_under_us, &said), ERR_MODEL);
    CHECK(str_find(buf_view(&said), STR("changed"), 0) != SIZE_MAX);
    buf_clear(&said);
    CHECK_INT(child_status(interrupt_twice, &said), ERR_INTERRUPTED);
    CHECK_INT(child_status(interrupt_cleared, &said), 0);
    CHECK_INT(child_status(interrupt_ignored, &said), 0);
    for (int i = 0; i < 50; i++) CHECK_INT(child_status(interrupt_reading, &said), ERR_INTERRUPTED);
    CHECK_U64(said.n, 0);
    buf_free(&said);
}

static void test_read(void) {
    put("five", "12345");
    for (size_t max = 4; max <= 6; max++) {
        Err e = {0};
        Buf b = {.max = max};
        bool ok = os_read_file(at("five"), &b, &e);
        CHECK_MSG(ok == (max >= 5), "lid of %zu: %s", max, e.msg);
        if (ok) CHECK_STR(buf_view(&b), STR("12345"));
        else CHECK_ERR(e, ERR_RUNTIME, "too long");
        buf_free(&b);
    }
    Err e = {0};
    Buf b = {0};
    CHECK(!os_read_file(at("nosuch"), &b, &e));
    CHECK_ERR(e, ERR_RUNTIME, "No such file");
    e = (Err){0};
    CHECK(!os_read_file(dir, &b, &e));
    CHECK_ERR(e, ERR_RUNTIME, "directory");
    e = (Err){0};
    CHECK(os_create_file(at("nosuch/x"), &e) < 0);
    CHECK_ERR(e, ERR_RUNTIME, "cannot write");
    buf_free(&b);
}

/* Standard input becomes a pipe that holds `text` and then ends. */
static void feed(const char *text, size_t n) {
    int in[2];
    CHECK(pipe(in) == 0);
    CHECK(os_write_all(in[1], text, n, NULL));
    close(in[1]);
    dup2(in[0], OS_STDIN);
    close(in[0]);
}

static void test_lines(void) {
    static char big[3 * 4096];
    memset(big, 'x', sizeof big);
    big[9999] = '\n';
    Err e = {0};
    OsLines l = {0};
    Buf b = {0};
    feed("one\n\ntwo\r\nlast", 14);
    const char *want[] = {"one", "", "two\r", "last"};
    for (size_t i = 0; i < COUNT_OF(want); i++) {
        CHECK_INT(os_read_line(&l, &b, 0, &e), OS_LINE);
        CHECK_STR(buf_view(&b), str_of(want[i]));
    }
    CHECK_INT(os_read_line(&l, &b, 0, &e), OS_LINE_END);
    feed(big, sizeof big);
    l = (OsLines){0};
    CHECK_INT(os_read_line(&l, &b, 0, &e), OS_LINE);
    CHECK_U64(b.n, 9999);
    CHECK_INT(os_read_line(&l, &b, 0, &e), OS_LINE);
    CHECK_U64(b.n, sizeof big - 10000);
    CHECK_INT(os_read_line(&l, &b, 0, &e), OS_LINE_END);
    buf_free(&b);
    b.max = 10;
    feed("0123456789a\n", 12);
    l = (OsLines){0};
    CHECK_INT(os_read_line(&l, &b, 0, &e), OS_LINE_FAILED);
    CHECK_ERR(e, ERR_MEMORY, "the line");
    CHECK(os_stdin_is_piped());
    int null = open("/dev/null", O_RDONLY);
    dup2(null, OS_STDIN);
    close(null);
    CHECK(!os_stdin_is_piped());
    CHECK_INT(os_wait_input(OS_STDIN, 0, 0), OS_INPUT); /* its end is something to read */
    CHECK_INT(os_wait_input(OS_STDIN, 0, 1), OS_INPUT_INTERRUPTED); /* there were other than 1 */
    int quiet[2];
    CHECK(pipe(quiet) == 0);
    CHECK_INT(os_wait_input(quiet[0], 1, 0), OS_INPUT_NOT_YET);
    close(quiet[0]);
    close(quiet[1]);
    feed("whole", 5);
    buf_clear(&b);
    e = (Err){0};
    CHECK_OK(os_read_stdin(&b, &e), e);
    CHECK_STR(buf_view(&b), STR("whole"));
    buf_free(&b);
}

static void test_write(void) {
    Err e = {0};
    int p[2];
    CHECK(pipe(p) == 0);
    close(p[0]);
    CHECK(!os_write_all(p[1], "x", 1, &e));
    CHECK_INT(e.code, ERR_NONE); /* the reader has gone: quiet */
    close(p[1]);
    CHECK(!os_write_all(p[1], "x", 1, &e));
    CHECK_ERR(e, ERR_RUNTIME, "cannot write");
    e = (Err){0};
    int fd = os_create_file("/dev/full", &e);
    CHECK(!os_write_all(fd, "x", 1, &e));
    CHECK_ERR(e, ERR_RUNTIME, "No space");
    close(fd);
    CHECK(os_write_all(-1, "", 0, NULL)); /* nothing to write is always written */
}

static void test_cgroups(void) {
    const Str text = STR("12:cpuset:/a\n4:cpu,cpuacct:/b/c\n1:name=systemd:/d\n0::/e/f\n");
    Str got = {0};
    CHECK(os_cgroup_path_(text, STR("cpu"), &got));
    CHECK_STR(got, STR("/b/c"));
    CHECK(os_cgroup_path_(text, STR("cpuacct"), &got));
    CHECK_STR(got, STR("/b/c"));
    CHECK(!os_cgroup_path_(text, STR("memory"), &got));
    CHECK(os_cgroup_path_(text, STR(""), &got));
    CHECK_STR(got, STR("/e/f"));
    CHECK(!os_cgroup_path_(STR("garbage\n::\n1:x"), STR("cpu"), &got));
    CHECK(!os_cgroup_path_(STR(""), STR(""), &got));

    /* v2: the parent grants 1.5 processors, the group itself has no limit of its own */
    char self[128], mount[128];
    snprintf(self, sizeof self, "%s/self", dir);
    snprintf(mount, sizeof mount, "%s/v2", dir);
    const OsCgroups v2 = {self, mount};
    put("self", "0::/pod/box\n");
    CHECK_U64(os_cgroup_limit_(v2, STR("cpu"), os_group_cpus_), UINT64_MAX); /* no such tree */
    CHECK(mkdir(at("v2"), 0700) == 0 && mkdir(at("v2/pod"), 0700) == 0 &&
          mkdir(at("v2/pod/box"), 0700) == 0);
    put("v2/pod/box/cpu.max", "max 100000\n");
    put("v2/pod/cpu.max", "150000 100000\n");
    put("v2/memory.max", "1048576\n");
    CHECK_U64(os_cgroup_limit_(v2, STR("cpu"), os_group_cpus_), 2);
    CHECK_U64(os_cgroup_limit_(v2, STR("memory"), os_group_memory_), 1048576);
    put("v2/pod/box/cpu.max", "20000 100000\n");
    CHECK_U64(os_cgroup_limit_(v2, STR("cpu"), os_group_cpus_), 1);
    put("v2/pod/box/cpu.max", "99999999999999999999999 0\n"); /* overflow: no limit, no crash */
    CHECK_U64(os_cgroup_limit_(v2, STR("cpu"), os_group_cpus_), 2);

    /* v1: only the root of the hierarchy is visible, as in a container */
    snprintf(mount, sizeof mount, "%s/v1", dir);
    put("self", "3:cpu,cpuacct:/docker/0123\n0::/\n");
    CHECK(mkdir(at("v1"), 0700) == 0 && mkdir(at("v1/cpu"), 0700) == 0);
    put("v1/cpu/cpu.cfs_quota_us", "-1\n");
    put("v1/cpu/cpu.cfs_period_us", "100000\n");
    CHECK_U64(os_cgroup_limit_(v2, STR("cpu"), os_group_cpus_), UINT64_MAX);
    put("v1/cpu/cpu.cfs_quota_us", "300000\n");
    CHECK_U64(os_cgroup_limit_(v2, STR("cpu"), os_group_cpus_), 3);
}

static void test_machine(void) {
    CHECK(os_cpu_count() >= 1);
    cpu_set_t all, one;
    CPU_ZERO(&all);
    CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; i++)
        if (CPU_ISSET(i, &all)) CPU_SET(i, &one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
    CHECK_INT(os_cpu_count(), 1);
    CHECK(sched_setaffinity(0, sizeof all, &all) == 0);

    CHECK(os_peak_rss() > 65536);
    CHECK(os_memory_total() > 1048576);
    CHECK_U64(os_field_(STR("A: 1\nVmHWM:\t  42 kB\n"), STR("VmHWM:")), 42);
    CHECK_U64(os_field_(STR("A: 1\n"), STR("VmHWM:")), 0);
    f64 from = os_now_ms();
    os_sleep_ms(5);
    os_sleep_ms(-1);
    CHECK(os_now_ms() - from >= 4.9 && os_now_ms() - from < 5000);
    CHECK(os_now_unix() > 1700000000);
    u8 a[32] = {0}, b[32] = {0};
    CHECK(os_random(a, sizeof a, NULL) && os_random(b, sizeof b, NULL));
    CHECK(memcmp(a, b, sizeof a) != 0);
    int p[2];
    CHECK(pipe(p) == 0);
    CHECK(!os_isatty(p[0]));
    CHECK_INT(os_tty_width(p[0]), 80);
    close(p[0]);
    close(p[1]);
}

static OsGate gate;
static int told; /* plain: the gate's word publishes it */

static void teller(void *arg) {
    told = *(int *)arg;
    atomic_store(&gate.word, 1);
    os_gate_wake_all(&gate);
}

static void test_threads(void) {
    Err e = {0};
    OsThread t;
    int value = 42;
    CHECK_OK(os_thread_start(&t, teller, &value, &e), e);
    while (atomic_load(&gate.word) == 0) os_gate_wait(&gate, 0);
    CHECK_INT(told, 42);
    os_thread_join(&t);
    os_gate_wait(&gate, 0); /* the word has changed: returns at once */
}

static void test_new_file(void) {
    Err e = {0};
    OsNewFile f;
    OsMap m;
    if (!CHECK_OK(os_new_open(&f, at("new"), &e), e)) return;
    CHECK_OK(os_write_all(f.fd, "half", 4, &e), e);
    CHECK(!os_is_file(at("new")));
    os_new_drop(&f);
    os_new_drop(&f);
    CHECK(!os_is_file(at("new")) && !os_is_file(f.temp));
    for (int again = 0; again < 2; again++) { /* the second replaces the first */
        if (!CHECK_OK(os_new_open(&f, at("new"), &e), e)) return;
        CHECK_OK(os_write_all(f.fd, "whole", 5, &e) && os_new_map(&f, &m, &e), e);
        CHECK(m.n == 5 && memcmp(m.p, "whole", 5) == 0);
        os_unmap(&m);
        CHECK_OK(os_new_finish(&f, &e), e);
        CHECK(os_is_file(at("new")) && !os_is_file(f.temp) && f.fd == -1);
    }
    char other[128];
    snprintf(other, sizeof other, "%s", at("new"));
    CHECK(os_is_same_file(at("new"), other) && !os_is_same_file(other, at("five")));
    CHECK(os_is_folder(dir) && !os_is_folder(other) && !os_is_file(dir));
    CHECK(!os_new_open(&f, dir, &e));
    CHECK_ERR(e, ERR_USAGE, "is not a file");
    e = (Err){0};
    CHECK(!os_new_open(&f, at("nowhere/new"), &e));
    CHECK_ERR(e, ERR_RUNTIME, "cannot create");
    CHECK(unlink(other) == 0);
}

int main(void) {
    snprintf(dir, sizeof dir, "/tmp/t_os.XXXXXX");
    if (!CHECK(mkdtemp(dir) != NULL)) return test_end();
    signal(SIGPIPE, SIG_IGN);
    test_map();
    test_signals();
    test_read();
    test_lines();
    test_write();
    test_new_file();
    test_cgroups();
    test_machine();
    test_threads();
    static const char *const made[] = {
        "model", "empty", "fifo", "shrinks", "five", "self", "v2/pod/box/cpu.max", "v2/pod/cpu.max",
        "v2/memory.max", "v1/cpu/cpu.cfs_quota_us", "v1/cpu/cpu.cfs_period_us"};
    static const char *const dirs[] = {"v2/pod/box", "v2/pod", "v2", "v1/cpu", "v1"};
    for (size_t i = 0; i < COUNT_OF(made); i++) CHECK(unlink(at(made[i])) == 0);
    for (size_t i = 0; i < COUNT_OF(dirs); i++) CHECK(rmdir(at(dirs[i])) == 0);
    CHECK(rmdir(dir) == 0);
    return test_end();
}

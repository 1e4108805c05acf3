/* sandbox.c - what the process may still ask of the kernel once it reads what strangers wrote.
 *
 * Owns:      nothing; what it takes away never comes back.
 * Stands on: base mem os
 * Promises:  after sandbox_enter no exec, no fork, no socket is made (a server can only accept), files
 *            open for reading alone, and with Landlock only those named; strict means all or nothing. */
#ifndef DLM_SANDBOX_C
#define DLM_SANDBOX_C

#include "base.c"
#include "mem.c"
#include "os.c"

#include <sys/prctl.h>

/* Sanitizers do at run time what no program should (ptrace, clone, prctl): there is no sandbox in such
 * a build, and it says so. Tests of the sandbox itself define this as 0. */
#ifndef DLM_SANITIZER
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define DLM_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define DLM_SANITIZER 1
#endif
#endif
#endif
#ifndef DLM_SANITIZER
#define DLM_SANITIZER 0
#endif

typedef enum { SANDBOX_AUTO, SANDBOX_STRICT, SANDBOX_OFF } SandboxMode;
typedef enum {
    SANDBOX_RUN = 1,  /* run, chat: no network at all */
    SANDBOX_SERVE = 2 /* serve: what is accepted from sockets that already listen */
} SandboxKind;

typedef struct {
    const char *path; /* a file to read; NULL is skipped */
    bool replaced;    /* it may be replaced by a new file (reload): its folder is readable too */
} SandboxPath;

typedef struct {
    SandboxMode mode;
    SandboxKind kind;
    const SandboxPath *paths; /* [n_paths] */
    i32 n_paths;
} SandboxOptions;

typedef struct {
    bool seccomp;
    i32 landlock; /* the ABI in force, 0: none */
} Sandbox;

/* ---- the kernel's words: musl has no <linux/...> ---- */

#define SANDBOX_RET_ALLOW_ 0x7fff0000u
#define SANDBOX_RET_KILL_ 0x80000000u /* the process */
#define SANDBOX_RET_ERRNO_ 0x00050000u
#define SANDBOX_SET_FILTER_ 1 /* seccomp(2): SECCOMP_SET_MODE_FILTER */
#define SANDBOX_TSYNC_ 1u     /* all threads, or none */
/* Without it kernels before 5.16 turn speculation off in every filtered thread, which costs matrix
 * products dearly and guards against code of strangers, which does not run here. */
#define SANDBOX_SPEC_ALLOW_ 4u

#if defined(__x86_64__)
#define SANDBOX_ARCH_ 0xc000003eu /* AUDIT_ARCH_X86_64 */
#define SANDBOX_X32_ 0x40000000u  /* numbers from here on are another ABI of the same arch */
#elif defined(__aarch64__)
#define SANDBOX_ARCH_ 0xc00000b7u /* AUDIT_ARCH_AARCH64 */
#define SANDBOX_X32_ 0u           /* none */
#elif defined(__riscv) && __riscv_xlen == 64
#define SANDBOX_ARCH_ 0xc00000f3u /* AUDIT_ARCH_RISCV64 */
#define SANDBOX_X32_ 0u
#else
#define SANDBOX_ARCH_ 0u /* a machine whose filters nobody has tried: none are installed */
#define SANDBOX_X32_ 0u
#endif

typedef struct {
    u16 code;
    u8 yes, no; /* instructions to skip */
    u32 k;
} SandboxInsn_;

typedef struct {
    u16 n;
    const SandboxInsn_ *p;
} SandboxProgram_;

#define SANDBOX_LOAD_ 0x20 /* A = the 32 bits at k of {i32 nr; u32 arch; u64 ip; u64 args[6]} */
#define SANDBOX_AND_ 0x54  /* A &= k */
#define SANDBOX_IS_ 0x15   /* A == k? */
#define SANDBOX_FROM_ 0x35 /* A >= k? */
#define SANDBOX_RET_ 0x06
#define SANDBOX_AT_NR_ 0
#define SANDBOX_AT_ARCH_ 4
#define SANDBOX_AT_ARG_ 16 /* the low half of the first; the house is little-endian */

/* ---- what is allowed ---- */

typedef struct {
    i32 nr;
    u8 kinds; /* of SandboxKind */
    i8 arg;   /* the argument that decides, or -1 */
    u32 mask; /* allowed when (argument & mask) == want */
    u32 want;
} SandboxRule_;

#define BOTH_ (SANDBOX_RUN | SANDBOX_SERVE)
#define ALWAYS_(name, kinds) {SYS_##name, kinds, -1, 0, 0}
#define WHEN_(name, kinds, arg, mask, want) {SYS_##name, kinds, arg, mask, want}

#define SANDBOX_ALL_BITS_ 0xffffffffu
#define SANDBOX_CLONE_THREAD_ 0x10900u /* CLONE_VM | CLONE_SIGHAND | CLONE_THREAD */
#define SANDBOX_CLONE_JUDGED_ (0x7e020080u | SANDBOX_CLONE_THREAD_) /* and no new namespace */
/* Opening for reading creates, truncates and writes nothing. */
#define SANDBOX_OPEN_JUDGED_ (u32)(O_ACCMODE | O_CREAT | O_TRUNC | O_APPEND)
#define SANDBOX_SELF_ SANDBOX_ALL_BITS_ /* as `want` of SYS_tgkill: this process */

/* The frequent ones first: the kernel reads from the top. Each is there because dlm, musl or glibc
 * calls it after the sandbox has closed; strace tells. */
/* clang-format off */
static const SandboxRule_ SANDBOX_RULES_[] = {
    ALWAYS_(futex, BOTH_),
    ALWAYS_(read, BOTH_),
    ALWAYS_(write, BOTH_),
    ALWAYS_(ppoll, BOTH_),
#ifdef SYS_poll
    ALWAYS_(poll, BOTH_),
#endif
    ALWAYS_(recvfrom, SANDBOX_SERVE),
    ALWAYS_(sendto, SANDBOX_SERVE),
    ALWAYS_(accept4, SANDBOX_SERVE),
    ALWAYS_(close, BOTH_),
    ALWAYS_(shutdown, SANDBOX_SERVE),
    ALWAYS_(setsockopt, SANDBOX_SERVE),
    ALWAYS_(getsockopt, SANDBOX_SERVE),
    ALWAYS_(getsockname, SANDBOX_SERVE),
    ALWAYS_(clock_gettime, BOTH_), /* where the vDSO cannot tell the time */
    ALWAYS_(clock_nanosleep, BOTH_),
    ALWAYS_(nanosleep, BOTH_),
    ALWAYS_(gettimeofday, BOTH_),
    ALWAYS_(sched_yield, BOTH_),
    ALWAYS_(getrandom, BOTH_),
    /* memory, never executable */
    WHEN_(mmap, BOTH_, 2, PROT_EXEC, 0),
    WHEN_(mprotect, BOTH_, 2, PROT_EXEC, 0),
    ALWAYS_(munmap, BOTH_),
    ALWAYS_(mremap, BOTH_),
    ALWAYS_(madvise, BOTH_),
    ALWAYS_(brk, BOTH_),
    /* files, for reading */
#ifdef SYS_open
    WHEN_(open, BOTH_, 1, SANDBOX_OPEN_JUDGED_, O_RDONLY),
#endif
    WHEN_(openat, BOTH_, 2, SANDBOX_OPEN_JUDGED_, O_RDONLY),
    ALWAYS_(readv, BOTH_),
    ALWAYS_(writev, BOTH_), /* musl's stdio */
    ALWAYS_(pread64, BOTH_),
    ALWAYS_(lseek, BOTH_),
    ALWAYS_(fstat, BOTH_),
#ifdef SYS_stat
    ALWAYS_(stat, BOTH_),
#endif
    ALWAYS_(newfstatat, BOTH_), /* fstat of glibc, and of musl on aarch64 */
    ALWAYS_(statx, BOTH_),
    WHEN_(fcntl, BOTH_, 1, SANDBOX_ALL_BITS_, F_SETFD), /* musl after open with O_CLOEXEC */
    WHEN_(fcntl, BOTH_, 1, SANDBOX_ALL_BITS_, F_GETFL),
    WHEN_(fcntl, BOTH_, 1, SANDBOX_ALL_BITS_, F_SETFL),
    WHEN_(ioctl, BOTH_, 1, SANDBOX_ALL_BITS_, TIOCGWINSZ), /* how wide is the terminal, is it one? */
    WHEN_(ioctl, BOTH_, 1, SANDBOX_ALL_BITS_, 0x5401),     /* TCGETS: glibc's isatty */
    /* threads */
    WHEN_(clone, BOTH_, 0, SANDBOX_CLONE_JUDGED_, SANDBOX_CLONE_THREAD_),
    ALWAYS_(set_robust_list, BOTH_),
#ifdef SYS_rseq
    ALWAYS_(rseq, BOTH_), /* a new thread of glibc; musl's header does not have it, nor calls it */
#endif
    WHEN_(seccomp, BOTH_, 0, SANDBOX_ALL_BITS_, SANDBOX_SET_FILTER_), /* sandbox_seal */
    ALWAYS_(sched_getaffinity, BOTH_),
    WHEN_(prlimit64, BOTH_, 2, SANDBOX_ALL_BITS_, 0), /* looking at limits, not setting them */
    ALWAYS_(gettid, BOTH_),
    ALWAYS_(getpid, BOTH_),
    ALWAYS_(getrusage, BOTH_),
    ALWAYS_(exit, BOTH_),
    ALWAYS_(exit_group, BOTH_),
    /* signals: handlers, and abort() of this process alone */
    ALWAYS_(rt_sigprocmask, BOTH_),
    ALWAYS_(rt_sigaction, BOTH_),
    ALWAYS_(rt_sigreturn, BOTH_),
    ALWAYS_(restart_syscall, BOTH_),
    ALWAYS_(sigaltstack, BOTH_),
    WHEN_(tgkill, BOTH_, 0, SANDBOX_ALL_BITS_, SANDBOX_SELF_),
    WHEN_(tkill, BOTH_, 1, SANDBOX_ALL_BITS_, SIGABRT), /* musl's raise */
};
/* clang-format on */

#undef BOTH_
#undef ALWAYS_
#undef WHEN_

/* ---- assembling ---- */

#define SANDBOX_INSNS_MAX_ 512

typedef struct {
    SandboxInsn_ p[SANDBOX_INSNS_MAX_];
    u16 n;
} SandboxCode_;

static void sandbox_emit_(SandboxCode_ *c, u16 code, u32 k, u8 yes, u8 no) {
    ASSERT(c->n < SANDBOX_INSNS_MAX_);
    c->p[c->n++] = (SandboxInsn_){code, yes, no, k};
}

/* Calls by another ABI's numbers end the process: they would mean something else. */
static void sandbox_emit_arch_(SandboxCode_ *c) {
    sandbox_emit_(c, SANDBOX_LOAD_, SANDBOX_AT_ARCH_, 0, 0);
    sandbox_emit_(c, SANDBOX_IS_, SANDBOX_ARCH_, 1, 0);
    sandbox_emit_(c, SANDBOX_RET_, SANDBOX_RET_KILL_, 0, 0);
    sandbox_emit_(c, SANDBOX_LOAD_, SANDBOX_AT_NR_, 0, 0);
    if (SANDBOX_X32_) {
        sandbox_emit_(c, SANDBOX_FROM_, SANDBOX_X32_, 0, 1);
        sandbox_emit_(c, SANDBOX_RET_, SANDBOX_RET_KILL_, 0, 0);
    }
}

static void sandbox_emit_call_(SandboxCode_ *c, i32 nr, u32 ret) {
    sandbox_emit_(c, SANDBOX_IS_, (u32)nr, 0, 1);
    sandbox_emit_(c, SANDBOX_RET_, ret, 0, 0);
}

static void sandbox_emit_rule_(SandboxCode_ *c, const SandboxRule_ *rule) {
    if (rule->arg < 0) {
        sandbox_emit_call_(c, rule->nr, SANDBOX_RET_ALLOW_);
        return;
    }
    u32 want = rule->nr == SYS_tgkill ? (u32)getpid() : rule->want;
    sandbox_emit_(c, SANDBOX_IS_, (u32)rule->nr, 0, 5);
    sandbox_emit_(c, SANDBOX_LOAD_, SANDBOX_AT_ARG_ + 8 * (u32)rule->arg, 0, 0);
    sandbox_emit_(c, SANDBOX_AND_, rule->mask, 0, 0);
    sandbox_emit_(c, SANDBOX_IS_, want, 0, 1);
    sandbox_emit_(c, SANDBOX_RET_, SANDBOX_RET_ALLOW_, 0, 0);
    sandbox_emit_(c, SANDBOX_LOAD_, SANDBOX_AT_NR_, 0,
                  0); /* the next rule looks at the number again */
}

/* Filters add up: the strictest answer of all of them counts. */
static bool sandbox_install_(const SandboxCode_ *c) {
    SandboxProgram_ program = {c->n, c->p};
    return SANDBOX_ARCH_ && syscall(SYS_seccomp, SANDBOX_SET_FILTER_,
                                    SANDBOX_TSYNC_ | SANDBOX_SPEC_ALLOW_, &program) == 0;
}

/* ---- Landlock: which files ---- */

typedef struct {
    u64 fs, net, scoped; /* what is denied unless a rule allows it */
} SandboxRuleset_;

typedef struct {
    u64 allowed;
    i32 fd;
} __attribute__((packed)) SandboxBeneath_;

#define SANDBOX_FS_READ_FILE_ ((u64)1 << 2)
#define SANDBOX_FS_READ_DIR_ ((u64)1 << 3)
#define SANDBOX_PATH_MAX 4096

static i32 sandbox_landlock_abi_(void) {
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, 1);
    return abi < 0 ? 0 : (i32)abi;
}

/* What an ABI can deny; a bit it does not know would be refused. */
static SandboxRuleset_ sandbox_ruleset_(i32 abi) {
    SandboxRuleset_ r = {0};
    r.fs = abi >= 5 ? 0xffff : abi >= 3 ? 0x7fff : abi == 2 ? 0x3fff : 0x1fff;
    if (abi >= 4) r.net = 3;    /* bind and connect of TCP */
    if (abi >= 6) r.scoped = 3; /* abstract sockets, and signals to others */
    return r;
}

/* Lets files at or beneath path be read. What is not there needs no rule. */
static bool sandbox_allow_(i32 ruleset, const char *path, Err *e) {
    int fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0) return true;
    struct stat st;
    bool folder = fstat(fd, &st) == 0 && S_ISDIR(st.st_mode);
    SandboxBeneath_ rule = {SANDBOX_FS_READ_FILE_ | (folder ? SANDBOX_FS_READ_DIR_ : 0), fd};
    bool ok = syscall(SYS_landlock_add_rule, ruleset, 1, &rule, 0) == 0 ||
              err_set(e, ERR_RUNTIME, "cannot confine reading to '%s': %s", path, strerror(errno));
    close(fd);
    return ok;
}

static bool sandbox_allow_folder_(i32 ruleset, const char *path, Err *e) {
    char folder[SANDBOX_PATH_MAX];
    const char *slash = strrchr(path, '/');
    size_t n = slash ? (size_t)(slash - path) + (slash == path) : 1;
    if (n >= sizeof folder)
        return err_set(e, ERR_RUNTIME, "the path '%.200s...' is too long", path);
    memcpy(folder, slash ? path : ".", n);
    folder[n] = 0;
    return sandbox_allow_(ruleset, folder, e);
}

/* The file; and where a new one may appear: the folder it is named in, and the one it really is in,
 * for certificates are commonly links into a folder of versions. */
static bool sandbox_allow_path_(i32 ruleset, const SandboxPath *path, Err *e) {
    char real[SANDBOX_PATH_MAX];
    if (!path->path) return true;
    if (!sandbox_allow_(ruleset, path->path, e)) return false;
    if (!path->replaced) return true;
    return sandbox_allow_folder_(ruleset, path->path, e) &&
           (!realpath(path->path, real) || sandbox_allow_folder_(ruleset, real, e));
}

static bool sandbox_confine_(const SandboxOptions *o, i32 abi, Err *e) {
    /* memory, processors and their limits (os.c) */
    static const SandboxPath always[] = {{"/proc/self", false},
                                         {"/proc/meminfo", false},
                                         {"/proc/cpuinfo", false},
                                         {"/sys/fs/cgroup", false}};
    SandboxRuleset_ r = sandbox_ruleset_(abi);
    size_t size = abi >= 6 ? sizeof r : abi >= 4 ? 16 : 8;
    i32 ruleset = (i32)syscall(SYS_landlock_create_ruleset, &r, size, 0);
    if (ruleset < 0) return err_set(e, ERR_RUNTIME, "Landlock: %s", strerror(errno));
    bool ok = true;
    for (size_t i = 0; ok && i < COUNT_OF(always); i++)
        ok = sandbox_allow_path_(ruleset, &always[i], e);
    for (i32 i = 0; ok && i < o->n_paths; i++) ok = sandbox_allow_path_(ruleset, &o->paths[i], e);
    if (ok && syscall(SYS_landlock_restrict_self, ruleset, 0) != 0)
        ok = err_set(e, ERR_RUNTIME, "Landlock: %s", strerror(errno));
    close(ruleset);
    return ok;
}

/* ---- entering ---- */

static bool sandbox_filter_(SandboxKind kind) {
    SandboxCode_ c = {.n = 0};
    sandbox_emit_arch_(&c);
    for (size_t i = 0; i < COUNT_OF(SANDBOX_RULES_); i++)
        if (SANDBOX_RULES_[i].kinds & kind) sandbox_emit_rule_(&c, &SANDBOX_RULES_[i]);
    /* clone3 hides its flags in memory, where a filter cannot look: "not there" makes libc use clone */
    sandbox_emit_call_(&c, 435, SANDBOX_RET_ERRNO_ | ENOSYS);
    sandbox_emit_(&c, SANDBOX_RET_, SANDBOX_RET_ERRNO_ | EPERM, 0, 0);
    return sandbox_install_(&c);
}

/* Something is missing: strict refuses to go on, auto says it loudly. */
static bool sandbox_degrade_(const SandboxOptions *o, const char *what, Err *e) {
    if (o->mode == SANDBOX_STRICT)
        return err_set(e, ERR_RUNTIME, "no sandbox: %s. --sandbox=auto goes on with what there is",
                       what);
    /* a program that speaks to nobody does not frighten with it */
    log_line(o->kind == SANDBOX_RUN ? LOG_DEBUG : LOG_WARN, "weaker sandbox: %s", what);
    return true;
}

/* Closes what is never needed again. Call it when all listening sockets and files to write are open,
 * before the first thread starts (Landlock binds only the thread that asks, and those it starts) and
 * before a byte of strangers is read. Threads can still start, until sandbox_seal. */
static bool sandbox_enter(Sandbox *s, const SandboxOptions *o, Err *e) {
    *s = (Sandbox){0};
    if (o->mode == SANDBOX_OFF) return true;
    if (DLM_SANITIZER)
        return sandbox_degrade_(o, "this build carries sanitizers, which need more", e);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return sandbox_degrade_(o, "this kernel has no PR_SET_NO_NEW_PRIVS", e);
    i32 abi = sandbox_landlock_abi_();
    if (abi == 0) {
        const char *what =
            "this kernel has no Landlock, so that reading is not confined to given files";
        if (!sandbox_degrade_(o, what, e)) return false;
    } else if (!sandbox_confine_(o, abi, e)) {
        return false;
    }
    s->landlock = abi;
    s->seccomp = sandbox_filter_(o->kind);
    return s->seccomp || sandbox_degrade_(o, "this kernel or machine has no seccomp filters", e);
}

/* After the last thread has started: no more threads; and where Landlock does not say which, no more
 * files (a server cannot reload certificates then). */
static bool sandbox_seal(const Sandbox *s, Err *e) {
    if (!s->seccomp) return true;
    SandboxCode_ c = {.n = 0};
    sandbox_emit_arch_(&c);
    sandbox_emit_call_(&c, SYS_clone, SANDBOX_RET_ERRNO_ | EPERM);
    sandbox_emit_call_(&c, SYS_seccomp, SANDBOX_RET_ERRNO_ | EPERM);
    if (!s->landlock) {
#ifdef SYS_open
        sandbox_emit_call_(&c, SYS_open, SANDBOX_RET_ERRNO_ | EPERM);
#endif
        sandbox_emit_call_(&c, SYS_openat, SANDBOX_RET_ERRNO_ | EPERM);
    }
    sandbox_emit_(&c, SANDBOX_RET_, SANDBOX_RET_ALLOW_, 0, 0);
    return sandbox_install_(&c) ||
           err_set(e, ERR_RUNTIME, "cannot close the sandbox: %s", strerror(errno));
}

#endif

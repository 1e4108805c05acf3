/* pool.c - worker threads that share a range of rows.
 *
 * Owns:      the threads it starts.
 * Stands on: base mem os
 * Promises:  the same split for the same (n, grain, threads); returns when every row is done; a
 *            worker that gets no processor holds nothing up; asleep when idle. */
#ifndef DLM_POOL_C
#define DLM_POOL_C

#include "base.c"
#include "mem.c"
#include "os.c"

#define POOL_THREADS_MAX 256
/* A forward pass issues a parallel loop every few tens of microseconds: waiting that long awake is
 * cheaper than a sleep and a wake-up, which cost tens of microseconds themselves. */
#define POOL_SPIN_US 25.0

typedef void (*PoolFn)(void *arg, i32 begin, i32 end, i32 thread);

typedef struct {
    PoolFn fn;
    void *arg;
    i32 n, grain;
    i32 n_chunks; /* n / grain rounded up */
    i32 n_parts;  /* one for each thread that has a chunk */
} PoolJob_;

/* Each worker has a cache line of its own, so that waking one does not disturb the others. */
typedef struct {
    _Alignas(64) OsGate start; /* counts the jobs given to this worker; the top bit says "leave" */
    atomic_bool asleep;
    atomic_bool todo; /* this worker's part of the job is there for the taking */
    i32 index;
    struct Pool *pool;
    OsThread thread;
} PoolWorker_;

typedef struct Pool {
    _Alignas(64) OsGate pending; /* parts that are not done */
    atomic_bool caller_asleep;
    PoolJob_ job; /* written by the caller before it opens the gates, constant until pending is 0 */
    i32 n_threads;
    i32 spins;            /* looks at a gate before sleeping; 0 when threads outnumber processors */
    bool busy;            /* a loop is running */
    PoolWorker_ *workers; /* [n_threads - 1] */
} Pool;

#define POOL_LEAVE_ 0x80000000u

static i32 pool_threads(const Pool *p) {
    return p->n_threads;
}

/* Part t of the job: whole chunks, as even as they divide. */
static void pool_part_(const PoolJob_ *job, i32 t, i32 *begin, i32 *end) {
    i64 lo = (i64)job->n_chunks * t / job->n_parts * job->grain;
    i64 hi = (i64)job->n_chunks * (t + 1) / job->n_parts * job->grain;
    *begin = (i32)MIN_OF(lo, (i64)job->n);
    *end = (i32)MIN_OF(hi, (i64)job->n);
}

static void pool_run_part_(const PoolJob_ *job, i32 t, i32 thread) {
    i32 begin, end;
    pool_part_(job, t, &begin, &end);
    job->fn(job->arg, begin, end, thread);
}

/* Waits until the word differs from `old`, awake at first. The sleeper raises its flag before it
 * looks a last time and the waker changes the word before it looks at the flag (both
 * sequentially consistent), so one of the two always sees the other. */
static u32 pool_wait_(OsGate *g, atomic_bool *asleep, u32 old, i32 spins) {
    for (i32 i = 0; i < spins; i++) {
        u32 now = atomic_load_explicit(&g->word, memory_order_acquire);
        if (now != old) return now;
        os_cpu_relax();
    }
    u32 now;
    atomic_store(asleep, true);
    while ((now = atomic_load(&g->word)) == old) os_gate_wait(g, old);
    atomic_store(asleep, false);
    return now;
}

static void pool_worker_main_(void *arg) {
    PoolWorker_ *w = arg;
    Pool *p = w->pool;
    for (u32 seen = 0;;) {
        seen = pool_wait_(&w->start, &w->asleep, seen, p->spins);
        if (seen & POOL_LEAVE_) return;
        if (!atomic_exchange(&w->todo, false)) continue; /* too late: the caller took it */
        pool_run_part_(&p->job, w->index, w->index);
        if (atomic_fetch_sub(&p->pending.word, 1) == 1 && atomic_load(&p->caller_asleep))
            os_gate_wake_all(&p->pending);
    }
}

static void pool_open_gate_(PoolWorker_ *w, u32 word) {
    atomic_store(&w->start.word, word);
    if (atomic_load(&w->asleep)) os_gate_wake_all(&w->start);
}

/* Looks at a gate that fit into POOL_SPIN_US: a pause takes 10 to 140 cycles, by processor. */
static i32 pool_measure_spins_(void) {
    enum { TRIES = 256 };
    f64 from = os_now_ms();
    for (i32 i = 0; i < TRIES; i++) os_cpu_relax();
    f64 us = (os_now_ms() - from) * 1e3 / TRIES;
    f64 spins = us > 0 ? POOL_SPIN_US / us : 1000;
    return spins < 50 ? 50 : spins > 20000 ? 20000 : (i32)spins;
}

static void pool_close(Pool *p) {
    if (!p) return;
    for (i32 i = 0; i < p->n_threads - 1; i++) pool_open_gate_(&p->workers[i], POOL_LEAVE_);
    for (i32 i = 0; i < p->n_threads - 1; i++) os_thread_join(&p->workers[i].thread);
    mem_free(p->workers);
    mem_free(p);
}

/* Starts n_threads - 1 workers; the caller of pool_for is the n-th. Where the system grants
 * fewer threads the pool is smaller, which changes the speed and nothing else. */
static bool pool_open(Pool **out, i32 n_threads, Err *e) {
    ASSERT(n_threads >= 1);
    *out = NULL;
    if (n_threads > POOL_THREADS_MAX) n_threads = POOL_THREADS_MAX;
    Pool *p = mem_alloc(sizeof *p, e);
    if (!p) return false;
    p->n_threads = 1;
    p->workers = mem_alloc_n((u64)n_threads, sizeof *p->workers, e);
    if (!p->workers) {
        pool_close(p);
        return false;
    }
    p->spins = n_threads > 1 && n_threads <= os_cpu_count() ? pool_measure_spins_() : 0;
    for (; p->n_threads < n_threads; p->n_threads++) {
        PoolWorker_ *w = &p->workers[p->n_threads - 1];
        w->index = p->n_threads;
        w->pool = p;
        Err why = {0};
        if (!os_thread_start(&w->thread, pool_worker_main_, w, &why)) {
            log_line(LOG_WARN, "%s; going on with %d of %d threads", why.msg, p->n_threads,
                     n_threads);
            break;
        }
    }
    *out = p;
    return true;
}

/* Splits [0, n) into contiguous ranges whose ends are multiples of `grain` (except n) and runs
 * fn on all threads, the caller among them. Runs inline when there is one chunk or one thread, and
 * within a loop, whose threads all have work already; inline, as thread 0. */
static void pool_for(Pool *p, i32 n, i32 grain, PoolFn fn, void *arg) {
    ASSERT(n >= 0 && grain >= 1);
    if (n == 0) return;
    i32 n_chunks = n / grain + (n % grain != 0);
    i32 n_parts = MIN_OF(p->n_threads, n_chunks);
    if (n_parts == 1 || p->busy) {
        fn(arg, 0, n, 0);
        return;
    }
    p->busy = true;
    p->job = (PoolJob_){fn, arg, n, grain, n_chunks, n_parts};
    atomic_store_explicit(&p->pending.word, (u32)n_parts - 1, memory_order_relaxed);
    for (i32 i = 0; i < n_parts - 1; i++) {
        PoolWorker_ *w = &p->workers[i];
        u32 next = (atomic_load_explicit(&w->start.word, memory_order_relaxed) + 1) & ~POOL_LEAVE_;
        atomic_store(&w->todo, true); /* whoever takes it sees the job */
        pool_open_gate_(w, next);
    }
    pool_run_part_(&p->job, 0, 0);
    for (i32 i = 0; i < n_parts - 1;
         i++) { /* what no worker has begun is quicker done than awaited */
        if (!atomic_load(&p->workers[i].todo) || !atomic_exchange(&p->workers[i].todo, false))
            continue;
        pool_run_part_(&p->job, i + 1, 0);
        atomic_fetch_sub(&p->pending.word, 1);
    }
    for (u32 left; (left = atomic_load(&p->pending.word)) != 0;)
        pool_wait_(&p->pending, &p->caller_asleep, left, p->spins);
    p->busy = false;
}

#endif

/* pool.c - worker threads that share a range of rows.
 *
 * Owns:      the threads it starts.
 * Stands on: base mem os
 * Promises:  the same pieces for the same (n, grain, threads), whoever runs them; returns when every
 *            row is done; a worker that is slow or gets no processor holds nothing up but the piece it
 *            is at; asleep when idle. */
#ifndef DLM_POOL_C
#define DLM_POOL_C

#include "base.c"
#include "mem.c"
#include "os.c"

#define POOL_THREADS_MAX 256
/* A forward pass issues a parallel loop every few tens of microseconds: waiting that long awake is
 * cheaper than a sleep and a wake-up, which cost tens of microseconds themselves. */
#define POOL_SPIN_US 25.0
/* Each thread has a part of a loop, the same one as long as the loop's size is the same, so that what
 * it reads stays in its own cache; who is done with it helps others with theirs. Not all processors
 * are equally fast, and some are shared. */
#define POOL_PIECES 4 /* of a part at most */

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
    i32 index;
    struct Pool *pool;
    OsThread thread;
} PoolWorker_;

typedef struct {
    _Alignas(64) atomic_int left; /* pieces of this part that nobody has begun; none: 0 or less */
} PoolPart_;

typedef struct Pool {
    _Alignas(64) OsGate pending; /* pieces that are not done */
    atomic_bool caller_asleep;
    PoolJob_ job; /* written before there are pieces to take, constant until pending is 0 */
    i32 n_threads;
    i32 spins;            /* looks at a gate before sleeping; 0 when threads outnumber processors */
    bool busy;            /* a loop is running */
    PoolWorker_ *workers; /* [n_threads - 1] */
    PoolPart_ *parts;     /* [n_threads] */
} Pool;

#define POOL_LEAVE_ 0x80000000u

static i32 pool_threads(const Pool *p) {
    return p->n_threads;
}

/* Part t of the job: whole chunks, as even as they divide. */
static void pool_part_(const PoolJob_ *job, i32 t, i64 *lo, i64 *hi) {
    *lo = (i64)job->n_chunks * t / job->n_parts;
    *hi = (i64)job->n_chunks * (t + 1) / job->n_parts;
}

/* The pieces that part t is run in. */
static i32 pool_pieces_(const PoolJob_ *job, i32 t) {
    i64 lo, hi;
    pool_part_(job, t, &lo, &hi);
    return (i32)MIN_OF(hi - lo, POOL_PIECES);
}

/* The rows of the piece of part t behind which `left - 1` are left. */
static void pool_piece_(const PoolJob_ *job, i32 t, i32 left, i32 *begin, i32 *end) {
    i64 lo, hi, pieces = pool_pieces_(job, t), k = pieces - left;
    pool_part_(job, t, &lo, &hi);
    *begin = (i32)MIN_OF((lo + (hi - lo) * k / pieces) * job->grain, (i64)job->n);
    *end = (i32)MIN_OF((lo + (hi - lo) * (k + 1) / pieces) * job->grain, (i64)job->n);
}

/* Takes pieces, the thread's own ones first, until there are none; returns how many. Whoever has taken
 * one keeps the job from changing. */
static i32 pool_work_(Pool *p, i32 thread) {
    i32 done = 0;
    for (i32 i = 0; i < p->n_threads; i++) {
        i32 t = (thread + i) % p->n_threads, left, begin, end;
        while (atomic_load_explicit(&p->parts[t].left, memory_order_relaxed) > 0 &&
               (left = atomic_fetch_sub(&p->parts[t].left, 1)) > 0) {
            pool_piece_(&p->job, t, left, &begin, &end);
            p->job.fn(p->job.arg, begin, end, thread);
            done++;
        }
    }
    return done;
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
        u32 done = (u32)pool_work_(p, w->index);
        if (done && atomic_fetch_sub(&p->pending.word, done) == done &&
            atomic_load(&p->caller_asleep))
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
    mem_free(p->parts);
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
    p->parts = mem_alloc_n((u64)n_threads, sizeof *p->parts, e);
    if (!p->workers || !p->parts) {
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

/* Splits [0, n) into contiguous ranges whose ends are multiples of `grain` (except n) and runs fn for
 * each of them on all threads, the caller among them. Runs inline, as thread 0, when there is one chunk
 * or one thread, and within a loop, whose threads all have work already. */
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
    u32 n_pieces = 0;
    for (i32 t = 0; t < n_parts; t++) n_pieces += (u32)pool_pieces_(&p->job, t);
    atomic_store_explicit(&p->pending.word, n_pieces, memory_order_relaxed);
    for (i32 t = 0; t < n_parts; t++) /* whoever takes a piece sees the job */
        atomic_store_explicit(&p->parts[t].left, pool_pieces_(&p->job, t), memory_order_release);
    for (i32 i = 0; i < n_parts - 1; i++) {
        PoolWorker_ *w = &p->workers[i];
        u32 next = (atomic_load_explicit(&w->start.word, memory_order_relaxed) + 1) & ~POOL_LEAVE_;
        pool_open_gate_(w, next);
    }
    atomic_fetch_sub(&p->pending.word, (u32)pool_work_(p, 0));
    for (u32 left; (left = atomic_load(&p->pending.word)) != 0;)
        pool_wait_(&p->pending, &p->caller_asleep, left, p->spins);
    p->busy = false;
}

#endif

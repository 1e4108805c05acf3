/* batch.c - many askers, one engine: a bounded queue before its slots, and the thread that steps them.
 *
 * Owns:      the engine's thread; the mail of a call while the call is in here.
 * Stands on: base mem os net tok decode engine
 * Promises:  first come, first served; every step is one forward for all running jobs, or, where the
 *            engine has lanes, one for the jobs of each; a job that is cancelled gives its slot back
 *            within one forward; nobody's slowness delays a step.
 *
 * An asker fills a BatchCall with one job for each answer that it wants and submits it. What happens is
 * written into the call's mail, and the call's waker is pulled when a job ends, and when there is mail for
 * an asker that found none when it looked last: one that found some is expected to look again soon. The
 * asker takes the mail away whole, whenever it likes, and reads the events from it. When no job is left the
 * call is its own again. */
#ifndef DLM_BATCH_C
#define DLM_BATCH_C

#include "base.c"
#include "decode.c"
#include "engine.c"
#include "mem.c"
#include "net.c"
#include "os.c"
#include "tok.c"

#define BATCH_MAIL_MAX ((size_t)4 << 20) /* bytes that an asker may leave unread */

typedef enum {
    BATCH_BEGIN, /* the job has a slot */
    BATCH_TOKEN,
    BATCH_TEXT,
    BATCH_STEP,
    BATCH_DONE /* the last of its job: result and err are there */
} BatchEventKind;

typedef struct {
    BatchEventKind kind;
    i32 job;                /* of its call */
    i32 n_prompt, n_cached; /* BEGIN */
    Str text;               /* TEXT */
    DecodeToken token;      /* TOKEN; views into the mail, as those of step */
    DecodeStep step;        /* STEP */
} BatchEvent;

enum { BATCH_WANT_TOKENS = 1, BATCH_WANT_TEXT = 2, BATCH_WANT_STEPS = 4 };

typedef struct BatchCall BatchCall;
typedef struct BatchJob BatchJob;

struct BatchJob {
    const i32 *prompt; /* [n_prompt] */
    i32 n_prompt;
    DecodeParams params;
    /* when it is done: */
    DecodeResult result; /* freed by batch_call_free */
    Err err;
    f64 ms_queue;
    /* private */
    BatchCall *call;
    BatchJob *next; /* in the queue */
    atomic_bool cancelled;
    Buf fresh; /* events of the current step; the engine's thread alone touches it */
    f64 queued_ms;
    i32 index;
};

struct BatchCall {
    BatchJob *jobs; /* [n_jobs] */
    i32 n_jobs;
    u32 wants;             /* BATCH_WANT_... */
    const NetWaker *waker; /* outlives the call */
    atomic_bool overflow;  /* the mail was not taken away: its jobs were cancelled */
    /* private, under the lock */
    Buf mail;
    bool coming; /* the asker took mail, and looks again without being woken */
    i32 n_left;  /* jobs that are not done */
};

/* The slots whose jobs are stepped together. */
typedef struct {
    i32 n, slots[ENGINE_SLOTS_MAX];
} BatchLane_;

typedef struct {
    Engine *engine;
    OsThread thread;
    OsGate work; /* counts what the engine's thread has to look at */
    atomic_bool leaving;
    i32 queue_max;
    BatchJob **slots;    /* [engine->n_slots] the running jobs; each is its lane's affair alone */
    BatchLane_ *lanes;   /* [engine->n_lanes]; while all threads step together the first has all */
    atomic_bool meeting; /* lanes come to their end: jobs are to be dealt out anew */
    OsLock desk; /* held where jobs get slots and leave them, and lanes change; before `lock` */
    OsLock lock; /* guards all below, and the private parts of calls */
    BatchJob *first, *last;
    i32 n_queued, n_running;
    f64 ms_answer; /* a recent average of how long an answer holds its slot */
} Batch;

/* ---- events as bytes: a header, a struct, and the arrays it points to, each rounded up to 8 ---- */

typedef struct {
    i32 kind, job;
    u64 n; /* bytes that follow */
} BatchHead_;

typedef struct {
    i32 n_prompt, n_cached;
} BatchBegin_;

static size_t batch_round_(size_t n) {
    return (n + 7) & ~(size_t)7;
}

static void batch_put_(Buf *out, const void *p, size_t n) {
    static const char zeros[8];
    buf_put(out, p, n);
    buf_put(out, zeros, batch_round_(n) - n);
}

static void batch_put_head_(Buf *out, BatchEventKind kind, i32 job, size_t n) {
    BatchHead_ h = {.kind = (i32)kind, .job = job, .n = n};
    batch_put_(out, &h, sizeof h);
}

static void batch_put_text_(void *arg, Str text) {
    BatchJob *j = arg;
    batch_put_head_(&j->fresh, BATCH_TEXT, j->index, text.n);
    batch_put_(&j->fresh, text.p, text.n);
}

static void batch_put_token_(void *arg, const DecodeToken *t) {
    BatchJob *j = arg;
    size_t n_top = (size_t)t->n_top * sizeof *t->top;
    batch_put_head_(&j->fresh, BATCH_TOKEN, j->index, sizeof *t + batch_round_(n_top));
    batch_put_(&j->fresh, t, sizeof *t);
    batch_put_(&j->fresh, t->top, n_top);
}

static void batch_put_step_(void *arg, const DecodeStep *s) {
    BatchJob *j = arg;
    size_t n = (size_t)(s->block_end - s->block_begin), n_reveals = (size_t)s->n_reveals;
    size_t size = sizeof *s + batch_round_(n_reveals * sizeof *s->reveals) +
                  2 * batch_round_(n * 4) + batch_round_(n);
    batch_put_head_(&j->fresh, BATCH_STEP, j->index, size);
    batch_put_(&j->fresh, s, sizeof *s);
    batch_put_(&j->fresh, s->reveals, n_reveals * sizeof *s->reveals);
    batch_put_(&j->fresh, s->tokens, n * sizeof *s->tokens);
    batch_put_(&j->fresh, s->probs, n * sizeof *s->probs);
    batch_put_(&j->fresh, s->masked, n);
}

_Static_assert(sizeof(BatchHead_) % 8 == 0 && sizeof(DecodeToken) % 8 == 0 &&
                   sizeof(DecodeStep) % 8 == 0 && sizeof(i32) == 4 && sizeof(f32) == 4,
               "events lie in the mail one behind the other, and each must be aligned");

/* The array of n bytes that lies at *at. */
static const void *batch_array_(const char **at, size_t n) {
    const char *p = *at;
    *at += batch_round_(n);
    return p;
}

/* Takes the next event from mail that batch_take gave; false at its end. */
static bool batch_next(Str *mail, BatchEvent *out) {
    if (mail->n == 0) return false;
    const BatchHead_ *h = (const void *)mail->p;
    const char *at = mail->p + sizeof *h;
    *out = (BatchEvent){.kind = (BatchEventKind)h->kind, .job = h->job};
    if (h->kind == BATCH_BEGIN) {
        const BatchBegin_ *b = (const void *)at;
        out->n_prompt = b->n_prompt;
        out->n_cached = b->n_cached;
    } else if (h->kind == BATCH_TEXT) {
        out->text = (Str){at, h->n};
    } else if (h->kind == BATCH_TOKEN) {
        memcpy(&out->token, batch_array_(&at, sizeof out->token), sizeof out->token);
        out->token.top = (const void *)at;
    } else if (h->kind == BATCH_STEP) {
        DecodeStep *s = &out->step;
        memcpy(s, batch_array_(&at, sizeof *s), sizeof *s);
        size_t n = (size_t)(s->block_end - s->block_begin);
        s->reveals = batch_array_(&at, (size_t)s->n_reveals * sizeof *s->reveals);
        s->tokens = batch_array_(&at, n * sizeof *s->tokens);
        s->probs = batch_array_(&at, n * sizeof *s->probs);
        s->masked = batch_array_(&at, n);
    }
    *mail = str_cut(*mail, sizeof *h + batch_round_(h->n), mail->n);
    return true;
}

/* ---- the engine's side ---- */

static void batch_poke_(Batch *b) {
    atomic_fetch_add(&b->work.word, 1);
    os_gate_wake_all(&b->work);
}

/* Moves what the step brought into the call's mail. An asker that does not read it loses its jobs.
 * Under the lock. True when the asker has to be told that there is mail. */
static bool batch_deliver_(BatchJob *j) {
    BatchCall *c = j->call;
    bool first = !c->mail.n && !c->coming;
    if (!c->mail.n && !c->mail.failed && !j->fresh.failed) {
        Buf empty = c->mail;
        c->mail = j->fresh;
        j->fresh = empty;
    } else if (j->fresh.failed || !buf_put(&c->mail, j->fresh.p, j->fresh.n)) {
        atomic_store(&c->overflow, true);
        for (i32 i = 0; i < c->n_jobs; i++) atomic_store(&c->jobs[i].cancelled, true);
    }
    buf_clear(&j->fresh);
    return first;
}

/* The job is over. The call may be gone as soon as the lock is open. */
static void batch_end_(Batch *b, BatchJob *j) {
    BatchCall *c = j->call;
    const NetWaker *waker = c->waker;
    batch_put_head_(&j->fresh, BATCH_DONE, j->index, 0);
    os_lock(&b->lock);
    batch_deliver_(j);
    buf_free(&j->fresh);
    c->n_left--;
    b->n_running--;
    os_unlock(&b->lock);
    net_wake(waker);
}

/* Takes the job that has waited longest out of the queue; NULL when none can begin now. */
static BatchJob *batch_pop_(Batch *b, bool apart) {
    os_lock(&b->lock);
    BatchJob *j = b->n_running < b->engine->n_slots ? b->first : NULL;
    bool together = j && apart && engine_will_measure(b->engine, &j->params);
    if (together) j = NULL;
    if (j) {
        b->first = j->next;
        if (!b->first) b->last = NULL;
        b->n_queued--;
        b->n_running++;
    }
    os_unlock(&b->lock);
    if (together) atomic_store(&b->meeting, true);
    return j;
}

/* Gives a job a free slot. At the desk. */
static void batch_seat_(Batch *b, BatchLane_ *lane, BatchJob *j) {
    Engine *g = b->engine;
    u32 wants = j->call->wants;
    DecodeEvents events = {.arg = j,
                           .text = wants & BATCH_WANT_TEXT ? batch_put_text_ : NULL,
                           .token = wants & BATCH_WANT_TOKENS ? batch_put_token_ : NULL,
                           .step = wants & BATCH_WANT_STEPS ? batch_put_step_ : NULL};
    i32 slot = engine_pick_slot(g, j->prompt, j->n_prompt);
    ASSERT(slot >= 0);
    j->ms_queue = os_now_ms() - j->queued_ms;
    if (!engine_start(g, slot, j->prompt, j->n_prompt, &j->params, &events, &j->err)) {
        batch_end_(b, j);
        return;
    }
    BatchBegin_ begin = {j->n_prompt, g->slots[slot].n_cached};
    batch_put_head_(&j->fresh, BATCH_BEGIN, j->index, sizeof begin);
    batch_put_(&j->fresh, &begin, sizeof begin);
    b->slots[slot] = j;
    lane->slots[lane->n++] = slot;
}

/* Has another lane fewer jobs? At the desk. */
static bool batch_has_emptier_(const Batch *b, const BatchLane_ *lane) {
    for (i32 i = 0; i < b->engine->n_lanes; i++)
        if (b->lanes[i].n < lane->n) return true;
    return false;
}

/* Begins what waits, as long as there are slots. Lanes that run apart leave it to whoever of them has the
 * fewest. */
static void batch_start_(Batch *b, BatchLane_ *lane, bool apart) {
    os_lock(&b->lock);
    bool none = !b->first || b->n_running == b->engine->n_slots;
    os_unlock(&b->lock);
    if (none) return;
    os_lock(&b->desk);
    for (BatchJob *j; !(apart && batch_has_emptier_(b, lane)) && (j = batch_pop_(b, apart));)
        batch_seat_(b, lane, j);
    os_unlock(&b->desk);
}

/* The answer of the lane's slot k is complete, was cancelled, or failed in the step that *failure tells
 * of. */
static void batch_finish_(Batch *b, BatchLane_ *lane, i32 k, const Err *failure) {
    i32 slot = lane->slots[k], n_all = 0;
    BatchJob *j = b->slots[slot];
    os_lock(&b->desk);
    b->slots[slot] = NULL;
    engine_finish(b->engine, slot, &j->result, &j->err);
    lane->n--;
    memmove(&lane->slots[k], &lane->slots[k + 1], (size_t)(lane->n - k) * sizeof *lane->slots);
    for (i32 i = 0; i < b->engine->n_lanes; i++) n_all += b->lanes[i].n;
    if (2 * lane->n * b->engine->n_lanes < n_all) atomic_store(&b->meeting, true);
    os_unlock(&b->desk);
    bool cut = strcmp(j->result.finish, "cancelled") == 0;
    if (cut && failure->code && !atomic_load(&j->cancelled)) j->err = *failure;
    f64 ms = j->result.ms_prefill + j->result.ms_decode;
    os_lock(&b->lock);
    b->ms_answer += ((cut ? b->ms_answer : ms) - b->ms_answer) / 8;
    os_unlock(&b->lock);
    batch_end_(b, j);
}

/* After a step: what it brought goes out, finished jobs leave. */
static void batch_collect_(Batch *b, BatchLane_ *lane, const Err *failure) {
    const NetWaker *wake[ENGINE_SLOTS_MAX];
    i32 n_wake = 0;
    os_lock(&b->lock);
    for (i32 k = 0; k < lane->n; k++) {
        BatchJob *j = b->slots[lane->slots[k]];
        bool news = engine_busy(b->engine, lane->slots[k]) && (j->fresh.n || j->fresh.failed);
        if (news && batch_deliver_(j)) wake[n_wake++] = j->call->waker;
    }
    os_unlock(&b->lock);
    for (i32 i = 0; i < n_wake; i++) net_wake(wake[i]);
    for (i32 k = lane->n - 1; k >= 0; k--)
        if (!engine_busy(b->engine, lane->slots[k])) batch_finish_(b, lane, k, failure);
}

/* One forward for the jobs of a lane. */
static void batch_step_(Batch *b, EngineLane *with, BatchLane_ *lane) {
    Err failure = {0};
    for (i32 k = 0; k < lane->n; k++)
        if (atomic_load(&b->slots[lane->slots[k]]->cancelled))
            engine_cancel(b->engine, lane->slots[k]);
    engine_step_slots(b->engine, with, lane->slots, lane->n, &failure);
    batch_collect_(b, lane, &failure);
}

static void batch_lane_main_(void *arg, EngineLane *with, i32 index) {
    Batch *b = arg;
    BatchLane_ *lane = &b->lanes[index];
    while (!atomic_load(&b->meeting)) {
        batch_start_(b, lane, true);
        if (lane->n)
            batch_step_(b, with, lane);
        else
            atomic_store(&b->meeting, true); /* others may have work for this thread */
    }
}

/* Deals the jobs out to lanes, and takes them back when one has too few of them. */
static void batch_run_apart_(Batch *b) {
    i32 n_lanes = b->engine->n_lanes;
    BatchLane_ all = b->lanes[0], *each = b->lanes;
    each[0].n = 0;
    for (i32 i = 0; i < all.n; i++) {
        BatchLane_ *lane = &each[i % n_lanes];
        lane->slots[lane->n++] = all.slots[i];
    }
    atomic_store(&b->meeting, false);
    engine_apart(b->engine, batch_lane_main_, b);
    for (i32 i = 1; i < n_lanes; each[i++].n = 0)
        for (i32 k = 0; k < each[i].n; k++) each[0].slots[each[0].n++] = each[i].slots[k];
}

static void batch_main_(void *arg) {
    Batch *b = arg;
    Engine *g = b->engine;
    BatchLane_ *all = &b->lanes[0];
    for (;;) {
        u32 seen = atomic_load(&b->work.word);
        batch_start_(b, all, false);
        if (g->n_lanes > 1 && all->n >= g->n_lanes) {
            batch_run_apart_(b);
        } else if (all->n > 0) {
            batch_step_(b, &g->whole, all);
        } else if (atomic_load(&b->leaving)) {
            return;
        } else {
            os_gate_wait(&b->work, seen);
        }
    }
}

/* ---- the askers' side ---- */

static void batch_free_(Batch *b) {
    os_lock_close(&b->lock);
    os_lock_close(&b->desk);
    mem_free(b->lanes);
    mem_free(b->slots);
}

/* Takes the engine over until batch_close. At most queue_max jobs wait. */
static bool batch_open(Batch *b, Engine *engine, i32 queue_max, Err *e) {
    *b = (Batch){.engine = engine, .queue_max = queue_max, .ms_answer = 1000};
    b->slots = mem_alloc_n((u64)engine->n_slots, sizeof *b->slots, e);
    b->lanes = b->slots ? mem_alloc_n((u64)engine->n_lanes, sizeof *b->lanes, e) : NULL;
    os_lock_open(&b->desk);
    os_lock_open(&b->lock);
    if (b->lanes && os_thread_start(&b->thread, batch_main_, b, e)) return true;
    batch_free_(b);
    return false;
}

/* When no call is in here any more. */
static void batch_close(Batch *b) {
    atomic_store(&b->leaving, true);
    batch_poke_(b);
    os_thread_join(&b->thread);
    batch_free_(b);
}

/* Queues all jobs of the call, or none: false when there is no room for them now. */
static bool batch_submit(Batch *b, BatchCall *c) {
    f64 now = os_now_ms();
    c->n_left = c->n_jobs;
    c->mail.max = BATCH_MAIL_MAX;
    os_lock(&b->lock);
    bool room = b->n_running + b->n_queued + c->n_jobs <= b->engine->n_slots + b->queue_max;
    for (i32 i = 0; i < c->n_jobs && room; i++) {
        BatchJob *j = &c->jobs[i];
        j->call = c;
        j->index = i;
        j->fresh.max = BATCH_MAIL_MAX;
        j->queued_ms = now;
        j->next = NULL;
        if (b->last)
            b->last->next = j;
        else
            b->first = j;
        b->last = j;
        b->n_queued++;
    }
    os_unlock(&b->lock);
    if (room) batch_poke_(b);
    return room;
}

/* Exchanges the mail that has come for `mail`, which is emptied. True when it is the last. Who got some
 * has to come again within a moment; who got none is woken by the next. */
static bool batch_take(Batch *b, BatchCall *c, Buf *mail) {
    buf_clear(mail);
    mail->max = BATCH_MAIL_MAX;
    os_lock(&b->lock);
    Buf came = c->mail;
    c->mail = *mail;
    c->coming = came.n > 0;
    bool last = c->n_left == 0;
    os_unlock(&b->lock);
    *mail = came;
    return last;
}

/* Under the lock: what of the call still waits leaves the queue. */
static void batch_leave_queue_(Batch *b, BatchCall *c) {
    BatchJob *before = NULL;
    for (BatchJob *j = b->first; j; j = j->next) {
        if (j->call != c) {
            before = j;
            continue;
        }
        if (before)
            before->next = j->next;
        else
            b->first = j->next;
        if (b->last == j) b->last = before;
        b->n_queued--;
        c->n_left--;
    }
}

/* Ends all jobs of the call, and returns when they have ended. */
static void batch_cancel(Batch *b, BatchCall *c) {
    os_lock(&b->lock);
    batch_leave_queue_(b, c);
    bool left = c->n_left > 0;
    os_unlock(&b->lock);
    for (i32 i = 0; i < c->n_jobs; i++) atomic_store(&c->jobs[i].cancelled, true);
    if (left) batch_poke_(b);
    while (left) {
        net_wait_waker(c->waker, NET_NEVER);
        net_waker_clear(c->waker);
        os_lock(&b->lock);
        left = c->n_left > 0;
        os_unlock(&b->lock);
    }
}

/* Frees what the finished jobs hold, not the jobs. */
static void batch_call_free(BatchCall *c) {
    for (i32 i = 0; i < c->n_jobs; i++) {
        decode_result_free(&c->jobs[i].result);
        buf_free(&c->jobs[i].fresh);
    }
    buf_free(&c->mail);
}

/* How many jobs run and wait now; the return value: seconds until it may be worth to ask again. */
static i32 batch_look(Batch *b, i32 *n_running, i32 *n_queued) {
    os_lock(&b->lock);
    *n_running = b->n_running;
    *n_queued = b->n_queued;
    f64 ms = b->ms_answer * (b->n_queued + 1) / b->engine->n_slots;
    os_unlock(&b->lock);
    return ms < 1000 ? 1 : ms > 60000 ? 60 : (i32)(ms / 1000);
}

#endif

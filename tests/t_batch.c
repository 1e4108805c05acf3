/* t_batch.c - the queue before the engine's slots, the mail that comes out, and the thread between. */
#define DLM_NO_DEMO
#include "../src/batch.c"
#include "test.h"

#define MODEL_PATH "tests/golden/tiny-dlm.gguf"

typedef struct {
    NetWaker waker;
    BatchJob jobs[4];
    BatchCall call;
} Asker;

static void asker_open(Asker *a, i32 n_jobs) {
    Err e = {0};
    *a = (Asker){0};
    CHECK_OK(net_waker_open(&a->waker, &e), e);
    a->call = (BatchCall){.jobs = a->jobs, .n_jobs = n_jobs, .waker = &a->waker};
}

static void asker_close(Asker *a) {
    batch_call_free(&a->call);
    net_waker_close(&a->waker);
}

static bool was_woken(const Asker *a) {
    bool woken = net_wait_waker(&a->waker, 0) == NET_WOKEN;
    net_waker_clear(&a->waker);
    return woken;
}

/* ---- the queue, without a thread that empties it ---- */

static void check_order(const Batch *b, const BatchJob *const *want, i32 n) {
    const BatchJob *j = b->first, *last = NULL;
    for (i32 i = 0; i < n; i++, last = j, j = j ? j->next : NULL)
        CHECK_MSG(j == want[i], "place %d", i);
    CHECK(!j && b->last == last && b->n_queued == n);
}

static void check_queue(void) {
    Engine engine = {.n_slots = 2};
    Batch b = {.engine = &engine, .queue_max = 3, .ms_answer = 4000};
    Asker one, two, many, late;
    i32 n_running, n_queued;
    os_lock_open(&b.lock);
    asker_open(&one, 1), asker_open(&two, 2), asker_open(&many, 3), asker_open(&late, 2);
    CHECK_INT(batch_look(&b, &n_running, &n_queued), 2); /* a turn of 4 s on two slots */
    CHECK(batch_submit(&b, &one.call) && batch_submit(&b, &two.call));
    CHECK(!batch_submit(&b, &many.call)); /* all or none: 5 have room, 3 are here */
    check_order(&b, (const BatchJob *const[]){one.jobs, two.jobs, two.jobs + 1}, 3);
    CHECK(batch_submit(&b, &late.call));
    check_order(
        &b, (const BatchJob *const[]){one.jobs, two.jobs, two.jobs + 1, late.jobs, late.jobs + 1},
        5);
    CHECK_INT(batch_look(&b, &n_running, &n_queued), 12);
    CHECK(n_running == 0 && n_queued == 5);
    batch_cancel(&b, &two.call); /* from the middle, */
    check_order(&b, (const BatchJob *const[]){one.jobs, late.jobs, late.jobs + 1}, 3);
    batch_cancel(&b, &late.call); /* the end, */
    check_order(&b, (const BatchJob *const[]){one.jobs}, 1);
    CHECK(batch_submit(&b, &many.call));
    batch_cancel(&b, &one.call); /* and the beginning */
    check_order(&b, (const BatchJob *const[]){many.jobs, many.jobs + 1, many.jobs + 2}, 3);
    batch_cancel(&b, &many.call);
    check_order(&b, NULL, 0);
    b.ms_answer = 1e9;
    CHECK_INT(batch_look(&b, &n_running, &n_queued), 60);
    b.n_running = 2; /* slots that are busy leave room in the queue alone */
    CHECK(batch_submit(&b, &many.call) && !batch_submit(&b, &one.call));
    batch_cancel(&b, &many.call);
    asker_close(&one), asker_close(&two), asker_close(&many), asker_close(&late);
    os_lock_close(&b.lock);
}

/* ---- the mail ---- */

static void check_mail(void) {
    enum { N = 5, REVEALS = 3, TOP = 2 };
    const DecodeReveal reveals[REVEALS] = {{11, 1, 0.5f}, {12, 2, 0.25f}, {13, 3, 1}};
    const i32 tokens[N] = {1, 2, 3, 4, 5};
    const f32 probs[N] = {0.1f, 0.2f, 0.3f, 0.4f, 0.5f};
    const u8 masked[N] = {1, 0, 1, 0, 1};
    const DecodeTop top[TOP] = {{7, 0.75f}, {8, 0.125f}};
    const DecodeToken token = {.index = 3, .token = 7, .prob = 0.75f, .n_top = TOP, .top = top};
    const DecodeStep step = {.kind = "denoise",
                             .reveals = reveals,
                             .n_reveals = REVEALS,
                             .block_begin = 10,
                             .block_end = 10 + N,
                             .tokens = tokens,
                             .probs = probs,
                             .masked = masked};
    Batch b = {0};
    Asker a;
    Buf mail = {0};
    BatchEvent ev;
    os_lock_open(&b.lock);
    asker_open(&a, 1);
    BatchJob *j = a.jobs;
    j->call = &a.call;
    a.call.n_left = 1;
    batch_put_text_(j, STR("abc")); /* odd lengths: what follows is aligned all the same */
    batch_put_token_(j, &token);
    CHECK(batch_deliver_(j));
    batch_put_text_(j, STR(""));
    batch_put_step_(j, &step);
    CHECK(!batch_deliver_(j)); /* there is mail already: nobody needs to be told again */
    CHECK(!batch_take(&b, &a.call, &mail));
    Str rest = buf_view(&mail);
    CHECK(batch_next(&rest, &ev) && ev.kind == BATCH_TEXT && str_eq(ev.text, STR("abc")));
    CHECK(batch_next(&rest, &ev) && ev.kind == BATCH_TOKEN && ev.token.index == 3);
    CHECK(ev.token.n_top == TOP && memcmp(ev.token.top, top, sizeof top) == 0);
    CHECK(batch_next(&rest, &ev) && ev.kind == BATCH_TEXT && ev.text.n == 0);
    CHECK(batch_next(&rest, &ev) && ev.kind == BATCH_STEP && ev.step.block_end == 10 + N);
    CHECK(memcmp(ev.step.reveals, reveals, sizeof reveals) == 0);
    CHECK(memcmp(ev.step.tokens, tokens, sizeof tokens) == 0);
    CHECK(memcmp(ev.step.probs, probs, sizeof probs) == 0);
    CHECK(memcmp(ev.step.masked, masked, sizeof masked) == 0);
    CHECK(!batch_next(&rest, &ev));
    batch_put_text_(j, STR("x"));
    CHECK(!batch_deliver_(j)); /* who got some comes again */
    CHECK(!batch_take(&b, &a.call, &mail) && mail.n > 0);
    CHECK(!batch_take(&b, &a.call, &mail) && mail.n == 0);
    batch_put_text_(j, STR("y"));
    CHECK(batch_deliver_(j)); /* who got none waits */
    a.call.n_left = 0;
    CHECK(batch_take(&b, &a.call, &mail) && mail.n > 0);
    buf_free(&mail);
    asker_close(&a);
    os_lock_close(&b.lock);
}

/* Who does not take the mail away loses all jobs. */
static void check_overflow(void) {
    Asker a;
    asker_open(&a, 2);
    a.call.mail.max = a.jobs[0].fresh.max = 100;
    for (i32 i = 0; i < 2; i++) a.jobs[i].call = &a.call;
    for (i32 i = 0; i < 10; i++) {
        batch_put_text_(&a.jobs[0], STR("0123456789"));
        batch_deliver_(&a.jobs[0]);
    }
    CHECK(atomic_load(&a.call.overflow) && atomic_load(&a.jobs[1].cancelled));
    asker_close(&a);
}

/* ---- the thread ---- */

static void prepare(Asker *a, const Engine *g, TokIds *prompt, i32 max_tokens) {
    static const char *const questions[] = {"What is 2+2?",
                                            "Tell me a story about a cat named Tom."};
    Err e = {0};
    for (i32 i = 0; i < a->call.n_jobs; i++) {
        TmplMsg msg = tmpl_msg(STR("user"), str_of(questions[i % 2]));
        if (!prompt[i].n) CHECK_OK(engine_render(g, &msg, 1, &prompt[i], &e), e);
        a->jobs[i].prompt = prompt[i].p;
        a->jobs[i].n_prompt = (i32)prompt[i].n;
        a->jobs[i].params = decode_params_default();
        a->jobs[i].params.max_tokens = max_tokens;
        a->jobs[i].params.sample = (SampleParams){.temperature = 1, .top_p = 1, .seed = (u64)i};
    }
}

/* Takes mail until the last; the order in which jobs began and ended. */
static i32 follow(Batch *b, Asker *a, i32 begun[4], i32 done[4]) {
    Buf mail = {0};
    BatchEvent ev;
    i32 n_begun = 0, n_done = 0;
    for (bool last = false; !last;) {
        CHECK(net_wait_waker(&a->waker, os_now_ms() + 60000) == NET_WOKEN);
        net_waker_clear(&a->waker);
        last = batch_take(b, &a->call, &mail);
        for (Str rest = buf_view(&mail); batch_next(&rest, &ev);) {
            if (ev.kind == BATCH_BEGIN && n_begun < 4) begun[n_begun++] = ev.job;
            if (ev.kind == BATCH_DONE && n_done < 4) done[n_done++] = ev.job;
        }
    }
    buf_free(&mail);
    return n_begun == n_done ? n_done : -1;
}

static void check_thread(i32 n_slots) {
    EngineOptions o = engine_options_default();
    Engine *g = NULL;
    Batch b;
    Asker a;
    TokIds prompts[4] = {0};
    Buf texts[4] = {0};
    i32 begun[4], done[4];
    Err e = {0};
    o.path = MODEL_PATH;
    o.n_slots = n_slots;
    CHECK_OK(engine_open(&g, &o, &e), e);
    asker_open(&a, 4);
    prepare(&a, g, prompts, 40);
    for (i32 i = 0; i < 4; i++) { /* what each says alone */
        DecodeResult r;
        CHECK_OK(
            engine_generate(g, 0, prompts[i].p, (i32)prompts[i].n, &a.jobs[i].params, NULL, &r, &e),
            e);
        buf_str(&texts[i], buf_view(&r.text));
        decode_result_free(&r);
    }
    CHECK_OK(batch_open(&b, g, 4, &e), e);
    CHECK(batch_submit(&b, &a.call));
    CHECK_INT(follow(&b, &a, begun, done), 4);
    for (i32 i = 0; i < 4; i++) {
        CHECK(n_slots > 1 || (begun[i] == i && done[i] == i)); /* first come, first served */
        CHECK_OK(a.jobs[i].err.code == ERR_NONE, a.jobs[i].err);
        CHECK(str_eq(buf_view(&a.jobs[i].result.text), buf_view(&texts[i])));
        buf_free(&texts[i]);
    }
    batch_call_free(&a.call);
    was_woken(&a);
    for (i32 i = 0; i < 4; i++) a.jobs[i] = (BatchJob){0};
    prepare(&a, g, prompts, 100000); /* some run, some wait, all are cancelled */
    CHECK(batch_submit(&b, &a.call));
    batch_cancel(&b, &a.call);
    i32 n_running, n_queued;
    batch_look(&b, &n_running, &n_queued);
    CHECK(n_running == 0 && n_queued == 0);
    batch_close(&b);
    asker_close(&a);
    for (i32 i = 0; i < 4; i++) tok_ids_free(&prompts[i]);
    engine_close(g);
}

#define CROWD 6

/* Lanes: answers of many lengths and ways come and go, some are cancelled, and each is its own. A way that
 * wants T(M) measured first is among them: for that the lanes have to stop. */
static void check_crowd(i32 n_threads) {
    EngineOptions o = engine_options_default();
    Engine *g = NULL;
    Batch b;
    static Asker a[CROWD];
    TokIds prompts[CROWD][4] = {{{0}}};
    Buf texts[CROWD][4] = {{{0}}};
    i32 begun[4], done[4];
    Err e = {0};
    o.path = MODEL_PATH;
    o.n_slots = 7;
    o.n_threads = n_threads;
    CHECK_OK(engine_open(&g, &o, &e), e);
    CHECK_INT(g->n_lanes, MIN_OF(n_threads, 7));
    for (i32 k = 0; k < CROWD; k++) {
        asker_open(&a[k], 4);
        prepare(&a[k], g, prompts[k], 1);
        for (i32 i = 0; i < 4; i++) {
            DecodeResult r;
            DecodeParams *p = &a[k].jobs[i].params;
            p->max_tokens = 10 + (37 * k + 11 * i) % 80;
            p->mode = k % 2 ? DECODE_AR : (DecodeMode)i;
            p->sample.seed = (u64)(4 * k + i);
            CHECK_OK(
                engine_generate(g, 0, prompts[k][i].p, (i32)prompts[k][i].n, p, NULL, &r, &e), e);
            buf_str(&texts[k][i], buf_view(&r.text));
            decode_result_free(&r);
        }
    }
    a[2].jobs[1].params.mode = DECODE_AUTO;
    CHECK(engine_will_measure(g, &a[2].jobs[1].params));
    CHECK_OK(batch_open(&b, g, 4 * CROWD, &e), e);
    for (i32 k = 0; k < CROWD; k++) CHECK(batch_submit(&b, &a[k].call));
    batch_cancel(&b, &a[4].call);
    for (i32 k = 0; k < CROWD; k++) {
        if (k != 4) CHECK_INT(follow(&b, &a[k], begun, done), 4);
        for (i32 i = 0; i < 4; i++) {
            CHECK_OK(a[k].jobs[i].err.code == ERR_NONE, a[k].jobs[i].err);
            if (k != 4 && (k != 2 || i != 1))
                CHECK_STR(buf_view(&a[k].jobs[i].result.text), buf_view(&texts[k][i]));
            buf_free(&texts[k][i]);
        }
    }
    CHECK(tempo_is_prepared(&g->tempo));
    batch_close(&b);
    for (i32 k = 0; k < CROWD; k++) {
        asker_close(&a[k]);
        for (i32 i = 0; i < 4; i++) tok_ids_free(&prompts[k][i]);
    }
    engine_close(g);
}

int main(void) {
    check_queue();
    check_mail();
    check_overflow();
    check_thread(1);
    check_thread(3);
    for (i32 n_threads = 1; n_threads <= 4; n_threads++) check_crowd(n_threads);
#ifdef DLM_TEST_ALLOC
    CHECK_INT(mem_test_live, 0);
#endif
    return test_end();
}

/* bench.c - what a forward costs as its rows grow, next to what the machine could do at best.
 *
 * Owns:      nothing beyond one run.
 * Stands on: base mem os pool kern graph decode tempo engine json
 * Promises:  ceilings and costs are measured in the same run; costs are medians, ceilings the best
 *            that was seen, so that noise makes the ratios worse, never better.
 *
 * The question that decides how to decode: T(M), the time of a forward over M rows. Autoregression
 * pays T(1) a token. Block diffusion pays T(sub-block or block) / (tokens revealed per forward) plus
 * its commits, whose rows ride along in other forwards or make one of their own. bound_ms is the
 * larger of two times: reading the weights and the cache once at the measured bandwidth, and the linear
 * layers' multiply-adds at the measured peak of the CPU level's own instructions. Only what looks its
 * sums up instead of multiplying (ternary_tables) can be faster than the second. */
#ifndef DLM_BENCH_C
#define DLM_BENCH_C

#include "base.c"
#include "decode.c"
#include "engine.c"
#include "graph.c"
#include "json.c"
#include "kern.c"
#include "mem.c"
#include "os.c"
#include "pool.c"
#include "tempo.c"

#define BENCH_REPS_MAX 101
#define BENCH_STREAM_BYTES ((u64)256 << 20) /* far beyond any cache */

typedef enum { BENCH_MD, BENCH_CSV, BENCH_JSON } BenchFormat;

typedef struct {
    i32 n_prompt, n_gen,
        reps;  /* as llama-bench: tokens of prefill, tokens of ar decoding, repetitions */
    i32 depth; /* positions before those of the curve's forwards */
    BenchFormat format;
} BenchOptions;

typedef struct {
    const char *test; /* "rows", "pp", "tg" */
    i32 rows;         /* of a forward; tokens of pp and tg */
    f64 ms, bound_ms; /* median; 0 where there is no bound */
    f64 gmacs, gbs;   /* reached: multiply-adds and weight bytes per second, in billions */
    f64 tokens_per_s; /* pp and tg */
} BenchRow;

/* A way of decoding, and what it made of the questions. */
typedef struct {
    const char *name;
    DecodeMode mode;
    i32 cache;     /* ModelCache */
    bool auto_may; /* auto chooses between these: the threshold is the model's in all of them */
} BenchWay;

static const BenchWay BENCH_WAYS[] = {
    {"ar", DECODE_AR, CACHE_MODEL, true},
    {"greedy", DECODE_GREEDY, CACHE_MODEL, false},
    {"iterative", DECODE_ITERATIVE, CACHE_MODEL, true},
    {"iterative, no dual cache", DECODE_ITERATIVE, CACHE_NONE, true},
    {"adaptive", DECODE_ADAPTIVE, CACHE_MODEL, false},
    {"auto", DECODE_AUTO, CACHE_MODEL, false},
};
#define BENCH_ITERATIVE 2 /* the way whose gain is projected */

typedef struct {
    i64 right, tokens, forwards, commits, rows; /* rows: of denoising and committing forwards */
    f64 ms; /* of prefill and decoding: the sum of each question's median */
} BenchAnswers;

typedef struct {
    f64 read_gbs, peak_gmacs; /* ceilings, all threads */
    u64 bytes;       /* of weights that a forward with logits reads, as they lie in memory */
    u64 bytes_cache; /* of keys and values that the curve's forwards find and read */
    u64 macs_row, macs_logits; /* multiply-adds per row, and per row of logits */
    BenchRow rows[32];
    i32 n_rows, depth;
    BenchAnswers answers[COUNT_OF(BENCH_WAYS)];
    i64 n_questions, n_judged; /* asked, and those that have one right answer */
} BenchResult;

/* ---- what one forward moves and multiplies ---- */

static u64 bench_mat_bytes_(const DlmMat *w) {
    if (w->owned) return w->owned_bytes;
    return (u64)kern_row_bytes(w) * (u64)w->n_out;
}

static void bench_sizes_(const Model *m, BenchResult *r) {
    for (i32 l = 0; l < m->n_layer; l++)
        for (size_t i = 0; i < COUNT_OF(MODEL_MATRICES); i++) {
            const DlmMat *w =
                (const DlmMat *)(const void *)((const u8 *)&m->layers[l] + MODEL_MATRICES[i].at);
            r->bytes += bench_mat_bytes_(w);
            r->macs_row += (u64)w->n_in * (u64)w->n_out;
        }
    r->bytes += bench_mat_bytes_(&m->output);
    r->macs_logits = (u64)m->output.n_in * (u64)m->output.n_out;
}

/* ---- ceilings ---- */

typedef struct {
    const u64 *words;
    u64 sums[POOL_THREADS_MAX * 8]; /* a cache line each */
    const DlmKernels *k;
} BenchCeiling;

/* Items are MiB. */
static void bench_read_(void *arg, i32 begin, i32 end, i32 thread) {
    BenchCeiling *c = arg;
    u64 sum[4] = {0};
    const u64 *p = c->words + (u64)begin * 131072, *last = c->words + (u64)end * 131072;
    for (; p < last; p += 8) { /* one load a half line keeps the loads from being the limit */
        sum[0] ^= p[0], sum[1] ^= p[2];
        sum[2] ^= p[4], sum[3] ^= p[6];
    }
    c->sums[thread * 8] = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
}

#define BENCH_PEAK_STEPS 400000 /* about a millisecond */
#define BENCH_CEILING_TRIES 40

static void bench_peak_(void *arg, i32 begin, i32 end, i32 thread) {
    BenchCeiling *c = arg;
    for (i32 i = begin; i < end; i++) c->sums[thread * 8] += (u64)c->k->peak(BENCH_PEAK_STEPS);
}

/* ---- medians ---- */

static int bench_by_value_(const void *a, const void *b) {
    f64 x = *(const f64 *)a, y = *(const f64 *)b;
    return x < y ? -1 : x > y;
}

static f64 bench_median_(f64 *v, i32 n) {
    qsort(v, (size_t)n, sizeof *v, bench_by_value_);
    return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

static bool bench_gpu_ceilings_(Engine *g, BenchResult *r, Err *e) {
    f64 f16_gmacs;
    const char *why = g->ops.ceilings(g->ops.self, &r->read_gbs, &r->peak_gmacs, &f16_gmacs);
    return !why || err_set(e, ERR_MEMORY, "%s", why);
}

static bool bench_ceilings_(Engine *g, BenchResult *r, Err *e) {
    if (g->ops.ceilings) return bench_gpu_ceilings_(g, r, e);
    BenchCeiling *c = mem_alloc(sizeof *c, e);
    u64 *words = c ? mem_alloc(BENCH_STREAM_BYTES, e) : NULL;
    if (words) {
        memset(words, 1, BENCH_STREAM_BYTES);
        c->words = words;
        c->k = ((const Cpu *)g->ops.self)->k;
        f64 macs = (f64)c->k->peak(0) * BENCH_PEAK_STEPS * pool_threads(g->pool);
        for (i32 i = 0; i < BENCH_CEILING_TRIES;
             i++) { /* short and many: a ceiling is the best seen */
            f64 from = os_now_ms();
            pool_for(g->pool, (i32)(BENCH_STREAM_BYTES >> 20), 1, bench_read_, c);
            f64 mid = os_now_ms();
            pool_for(g->pool, pool_threads(g->pool), 1, bench_peak_, c);
            r->read_gbs = MAX_OF(r->read_gbs, (f64)BENCH_STREAM_BYTES / (mid - from) / 1e6);
            r->peak_gmacs = MAX_OF(r->peak_gmacs, macs / (os_now_ms() - mid) / 1e6);
        }
    }
    mem_free(words);
    mem_free(c);
    return words != NULL;
}

/* ---- forwards ---- */

/* Rows of logits that a step of n rows asks for: each row of a small step, a sub-block's of a
 * block's. */
static i32 bench_logits_(const Engine *g, i32 n) {
    i32 most = MIN_OF(g->model.decode.sub_block_size, g->graph.n_logits_max);
    return n > g->model.decode.block_size ? 1 : MIN_OF(n, most);
}

static void bench_add_(BenchResult *r, const char *test, i32 rows, f64 ms, u64 macs, f64 tokens) {
    u64 bytes = r->bytes + r->bytes_cache;
    f64 read_ms = (f64)bytes / r->read_gbs / 1e6, peak_ms = (f64)macs / r->peak_gmacs / 1e6;
    bool bound = strcmp(test, "rows") == 0;
    if (r->n_rows == (i32)COUNT_OF(r->rows)) return;
    r->rows[r->n_rows++] = (BenchRow){.test = test,
                                      .rows = rows,
                                      .ms = ms,
                                      .bound_ms = bound ? MAX_OF(read_ms, peak_ms) : 0,
                                      .gmacs = (f64)macs / ms / 1e6,
                                      .gbs = bound ? (f64)bytes / ms / 1e6 : 0,
                                      .tokens_per_s = tokens * 1e3 / ms};
}

static const i32 BENCH_ROWS[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512};

#define BENCH_WARM_ROWS \
    32 /* up to these, a forward runs once unmeasured: its weights may fit a cache */

/* T(M), the sizes in turns so that a slow moment of the machine hits them all. */
static void bench_curve_(Engine *g, i32 reps, BenchResult *r) {
    f64 ms[COUNT_OF(BENCH_ROWS)][BENCH_REPS_MAX];
    i32 most = MIN_OF(g->graph.n_rows_max, g->graph.kv.n_cell - r->depth), n_sizes = 0;
    while (n_sizes < (i32)COUNT_OF(BENCH_ROWS) && BENCH_ROWS[n_sizes] <= most) n_sizes++;
    for (i32 i = 0; i < reps; i++)
        for (i32 s = 0; s < n_sizes; s++) {
            i32 n = BENCH_ROWS[s], n_logits = bench_logits_(g, n);
            for (i32 k = n > BENCH_WARM_ROWS; k < 2; k++)
                ms[s][i] = tempo_forward(&g->graph, g->rows, 0, r->depth, n, n_logits);
        }
    for (i32 s = 0; s < n_sizes; s++) {
        i32 n = BENCH_ROWS[s];
        u64 macs = r->macs_row * (u64)n + r->macs_logits * (u64)bench_logits_(g, n);
        bench_add_(r, "rows", n, bench_median_(ms[s], reps), macs, 0);
    }
}

/* Prefill of n_prompt tokens and ar decoding of n_gen, through the engine as a user would. */
static bool bench_generate_(Engine *g, const BenchOptions *o, BenchResult *r, Err *e) {
    f64 pp[BENCH_REPS_MAX], tg[BENCH_REPS_MAX];
    i32 n_ctx = g->graph.kv.n_cell, n_prompt = MAX_OF(MIN_OF(o->n_prompt, n_ctx - 2), 1),
        n_gen = MIN_OF(o->n_gen, n_ctx - n_prompt);
    i32 *prompt = mem_alloc_n((u64)n_ctx, sizeof *prompt, e);
    if (!prompt) return false;
    bool ok = true;
    for (i32 i = 0; ok && i < o->reps; i++) {
        for (i32 k = 0; k < n_prompt; k++) prompt[k] = (k * 7 + i * 13 + 1) % g->model.n_vocab;
        DecodeParams p = decode_params_default();
        DecodeResult a;
        p.mode = DECODE_AR;
        p.max_tokens = n_gen;
        ok = engine_generate(g, 0, prompt, n_prompt, &p, NULL, &a, e);
        pp[i] = a.ms_prefill;
        tg[i] = a.n_forwards_ar > 0 ? a.ms_decode / a.n_forwards_ar : 0;
        decode_result_free(&a);
    }
    mem_free(prompt);
    if (!ok) return false;
    f64 each = bench_median_(tg, o->reps);
    bench_add_(r, "pp", n_prompt, bench_median_(pp, o->reps), r->macs_row * (u64)n_prompt,
               n_prompt);
    if (each > 0)
        bench_add_(r, "tg", n_gen, each * n_gen, (r->macs_row + r->macs_logits) * (u64)n_gen,
                   n_gen);
    return true;
}

/* Gives every cell of the cache a key and a value of its own memory: cells that nobody wrote would all
 * be read from one page of zeros. */
static bool bench_fill_cache_(Engine *g, Err *e) {
    const u64 chunk = 1 << 20, n = graph_kv_bytes(&g->model, &g->graph_options) / 2;
    u8 *some = mem_alloc(chunk, e);
    if (!some) return false;
    memset(some, 0x2c, chunk); /* 0.07 as F16 */
    for (u64 at = 0; at < n; at += chunk) {
        g->ops.upload(g->ops.self, (u8 *)g->graph.kv.k + at, some, MIN_OF(chunk, n - at));
        g->ops.upload(g->ops.self, (u8 *)g->graph.kv.v + at, some, MIN_OF(chunk, n - at));
    }
    mem_free(some);
    return true;
}

/* Measures the ceilings, the curve, and the engine's prefill and ar decoding. */
static bool bench_run(Engine *g, const BenchOptions *o, BenchResult *r, Err *e) {
    *r = (BenchResult){.depth = o->depth};
    if (o->depth >= g->graph.kv.n_cell)
        return err_set(e, ERR_USAGE,
                       "a depth of %d leaves no room in a context of %d tokens; raise -c", o->depth,
                       g->graph.kv.n_cell);
    bench_sizes_(&g->model, r);
    r->bytes_cache =
        graph_kv_bytes(&g->model, &g->graph_options) / (u64)g->graph.kv.n_cell * (u64)o->depth;
    if (!g->ops.ceilings && !((const Cpu *)g->ops.self)->k->peak)
        return err_set(e, ERR_RUNTIME, "level %s has no measure of its peak", g->ops.name);
    if (o->depth && !bench_fill_cache_(g, e)) return false;
    tempo_forward(&g->graph, g->rows, 0, 0, 1, 1); /* touches every page */
    if (!bench_ceilings_(g, r, e)) return false;
    bench_curve_(g, o->reps, r);
    g->slots[0].decode.n_cached = 0;
    return bench_generate_(g, o, r, e);
}

/* ---- questions: what each way of decoding makes of them, end to end ---- */

/* One question in one way, from an empty cache: *ms that it took. answer: what is right, or NULL. a: where
 * it is counted, or NULL when it was before. */
static bool bench_ask_one_(Engine *g, const BenchWay *way, const TokIds *prompt, const Str *answer,
                           BenchAnswers *a, f64 *ms, Err *e) {
    DecodeParams p = decode_params_default();
    DecodeResult r;
    p.mode = way->mode;
    p.cache = way->cache;
    g->slots[0].decode.n_cached = 0;
    bool ok = engine_generate(g, 0, prompt->p, (i32)prompt->n, &p, NULL, &r, e);
    *ms = r.ms_prefill + r.ms_decode;
    if (ok && a) {
        a->right += answer && strcmp(r.finish, "stop") == 0 && str_eq(buf_view(&r.text), *answer);
        a->tokens += (i64)r.ids.n;
        a->forwards += decode_forwards(&r);
        a->commits += r.n_forwards_commit + r.n_joined;
        a->rows += r.n_rows;
    }
    decode_result_free(&r);
    return ok;
}

/* One question in every way, in turns, beginning with another one each time. */
static bool bench_ask_ways_(Engine *g, const TokIds *prompt, const Str *answer, i32 reps,
                            BenchResult *r, Err *e) {
    f64 ms[COUNT_OF(BENCH_WAYS)][BENCH_REPS_MAX];
    bool ok = true;
    for (i32 rep = 0; ok && rep < reps; rep++)
        for (size_t i = 0; ok && i < COUNT_OF(BENCH_WAYS); i++) {
            size_t way = (i + (size_t)(r->n_questions + rep)) % COUNT_OF(BENCH_WAYS);
            bool mask = g->model.decode.mask_id >= 0 || BENCH_WAYS[way].mode == DECODE_AR;
            BenchAnswers *a = rep == 0 ? &r->answers[way] : NULL;
            ms[way][rep] = 0;
            ok = !mask ||
                 bench_ask_one_(g, &BENCH_WAYS[way], prompt, answer, a, &ms[way][rep], e);
        }
    for (size_t way = 0; ok && way < COUNT_OF(BENCH_WAYS); way++)
        r->answers[way].ms += bench_median_(ms[way], reps);
    return ok;
}

static bool bench_ask_entry_(Engine *g, const BenchOptions *o, const JsonDoc *d, u32 node,
                             const char *label, BenchResult *r, Err *e) {
    Str question = {0}, answer = {0};
    TokIds prompt = {0};
    if (json_type(d, node) != JSON_OBJECT || !json_str(d, json_get(d, node, "question"), &question))
        return err_set(e, ERR_USAGE, "%s: entry %lld is not an object with a text 'question'",
                       label, (long long)r->n_questions);
    bool judged = json_str(d, json_get(d, node, "answer"), &answer);
    const TmplMsg ask = {.role = STR("user"), .content = question};
    bool ok = engine_render(g, &ask, 1, &prompt, e) &&
              bench_ask_ways_(g, &prompt, judged ? &answer : NULL, o->reps, r, e);
    r->n_questions++;
    r->n_judged += judged;
    tok_ids_free(&prompt);
    return ok;
}

/* Reads text, which must outlive d: a JSON array of {"question": text, "answer": text or null}. label
 * names it in errors. The caller frees d. */
static bool bench_read_questions(JsonDoc *d, const char *label, Str text, Err *e) {
    Err why = {0};
    if (!json_parse(d, text, &why)) return err_set(e, ERR_USAGE, "%s: %s", label, why.msg);
    if (json_type(d, 0) == JSON_ARRAY && json_count(d, 0) > 0) return true;
    return err_set(e, ERR_USAGE, "%s is not an array of questions", label);
}

/* Asks them all, each as often as the options say, after bench_run. */
static bool bench_ask(Engine *g, const BenchOptions *o, const char *label, const JsonDoc *d,
                      BenchResult *r, Err *e) {
    tempo_prepare(&g->tempo, &g->graph, g->rows, 0);
    bool ok = true;
    u32 node = json_first(d, 0);
    for (u32 n = json_count(d, 0); ok && n > 0; n--, node = json_next(d, node))
        ok = bench_ask_entry_(g, o, d, node, label, r, e);
    return ok;
}

static f64 bench_rate_(const BenchAnswers *a) {
    return a->ms > 0 ? (f64)a->tokens * 1e3 / a->ms : 0;
}

static f64 bench_best_rate_(const BenchResult *r) {
    f64 best = 0;
    for (size_t i = 0; i < COUNT_OF(BENCH_WAYS); i++)
        if (BENCH_WAYS[i].auto_may) best = MAX_OF(best, bench_rate_(&r->answers[i]));
    return best;
}

/* T(rows) of the curve, linear between what was measured; 0 when there are no such rows. */
static f64 bench_ms_of_(const BenchResult *r, f64 rows) {
    const BenchRow *last = NULL;
    for (i32 i = 0; i < r->n_rows; i++) {
        const BenchRow *b = &r->rows[i];
        if (strcmp(b->test, "rows") != 0) continue;
        if (b->rows >= rows && !last) return b->ms;
        if (b->rows >= rows)
            return last->ms + (b->ms - last->ms) * (rows - last->rows) / (b->rows - last->rows);
        last = b;
    }
    return 0;
}

/* T(rows) on another number of processors, if reading takes as long as here and arithmetic is
 * shared by all. */
static f64 bench_project_ms_(const Engine *g, const BenchResult *r, f64 rows, i32 n_cores) {
    f64 read_ms = (f64)r->bytes / r->read_gbs / 1e6;
    return MAX_OF(read_ms, bench_ms_of_(r, rows) * pool_threads(g->pool) / n_cores);
}

/* How many times as fast as ar the iterative way would be; 0 when that was not measured. */
static f64 bench_project_(const Engine *g, const BenchResult *r, i32 n_cores) {
    const BenchAnswers *a = &r->answers[BENCH_ITERATIVE];
    if (a->forwards == 0 || a->tokens == 0) return 0;
    f64 block = bench_project_ms_(g, r, (f64)a->rows / (f64)a->forwards, n_cores);
    return bench_project_ms_(g, r, 1, n_cores) * (f64)a->tokens / (block * (f64)a->forwards);
}

static const i32 BENCH_CORES[] = {2, 4, 8, 16};

/* ---- printing ---- */

static void bench_print_answers_(const Engine *g, const BenchResult *r, Buf *out) {
    f64 best = bench_best_rate_(r);
    buf_printf(
        out,
        "\n%lld questions, %lld with one right answer:\n\n"
        "| mode | right | tok/s | of auto's best | tokens/forward | forwards with a commit |\n"
        "|---|---|---|---|---|---|\n",
        (long long)r->n_questions, (long long)r->n_judged);
    for (size_t i = 0; i < COUNT_OF(BENCH_WAYS); i++) {
        const BenchAnswers *a = &r->answers[i];
        if (a->forwards)
            buf_printf(out, "| %s | %lld | %.1f | %.1f %% | %.2f | %.1f %% |\n", BENCH_WAYS[i].name,
                       (long long)a->right, bench_rate_(a), 100 * bench_rate_(a) / best,
                       (f64)a->tokens / (f64)a->forwards, 100 * (f64)a->commits / (f64)a->forwards);
    }
    if (bench_project_(g, r, 2) == 0) return;
    buf_str(out, STR("\nProjected speed of iterative over ar, if memory stays as fast and the "
                     "arithmetic scales:"));
    for (size_t i = 0; i < COUNT_OF(BENCH_CORES); i++)
        buf_printf(out, "%s %d processors %.2f", i ? "," : "", BENCH_CORES[i],
                   bench_project_(g, r, BENCH_CORES[i]));
    buf_str(out, STR(".\n"));
}

/* How many tokens a forward must reveal for block diffusion to be faster than ar. A block's commit
 * costs the rows that it adds to the next block's first forward, or a forward of its own. */
static void bench_print_even_(const DecodeRecord *d, const BenchResult *r, Buf *out) {
    f64 one = bench_ms_of_(r, 1), block = bench_ms_of_(r, d->block_size),
        sub = bench_ms_of_(r, d->sub_block_size), joined = bench_ms_of_(r, 2 * d->block_size);
    f64 commit = d->first == FIRST_COMMIT || joined == 0 ? block : MAX_OF(joined - block, 0);
    f64 left = one - commit / d->block_size; /* of a token's ar time, after its share of that */
    if (!(one > 0 && block > 0 && sub > 0)) return;
    buf_printf(out, "\nT(%d)/T(1) = %.2f, T(%d)/T(1) = %.2f: ", d->block_size, block / one,
               d->sub_block_size, sub / one);
    if (left <= 0)
        buf_str(out, STR("on this machine the commit of a block alone costs more than decoding it "
                         "one token at a time.\n"));
    else
        buf_printf(out,
                   "block diffusion is faster than ar when a forward reveals more than %.1f tokens "
                   "(whole block each step) or %.1f (sub-blocks), the commit included.\n",
                   block / left, sub / left);
}

static void bench_print_md_(const Engine *g, const BenchResult *r, Buf *out) {
    buf_printf(
        out,
        "level %s, %d threads; measured ceilings: read %.1f GB/s, %.0f G int8 multiply-adds/s; "
        "a forward reads %.1f MB of weights and %.1f MB of cache\n\n"
        "| test | rows | ms | bound ms | ratio | G mul-adds/s | GB/s | tok/s |\n"
        "|---|---|---|---|---|---|---|---|\n",
        g->ops.name, pool_threads(g->pool), r->read_gbs, r->peak_gmacs, (f64)r->bytes / 1e6,
        (f64)r->bytes_cache / 1e6);
    for (i32 i = 0; i < r->n_rows; i++) {
        const BenchRow *b = &r->rows[i];
        buf_printf(out, "| %s | %d | %.2f | ", b->test, b->rows, b->ms);
        if (b->bound_ms > 0)
            buf_printf(out, "%.2f | %.2f | %.1f | %.1f | |\n", b->bound_ms, b->ms / b->bound_ms,
                       b->gmacs, b->gbs);
        else
            buf_printf(out, "| | %.1f | | %.2f |\n", b->gmacs, b->tokens_per_s);
    }
    bench_print_even_(&g->model.decode, r, out);
}

static void bench_print_csv_(const BenchResult *r, Buf *out) {
    buf_str(out, STR("test,rows,ms,bound_ms,gmacs,gbs,tokens_per_s\n"));
    for (i32 i = 0; i < r->n_rows; i++) {
        const BenchRow *b = &r->rows[i];
        buf_printf(out, "%s,%d,%.4f,%.4f,%.2f,%.2f,%.3f\n", b->test, b->rows, b->ms, b->bound_ms,
                   b->gmacs, b->gbs, b->tokens_per_s);
    }
}

static void bench_put_(Buf *out, const char *name, f64 v) {
    buf_str(out, str_of(name));
    json_put_f64(out, v);
}

static void bench_print_json_(const Engine *g, const BenchResult *r, Buf *out) {
    buf_str(out, STR("{\"model\":"));
    json_put_str(out, g->model.name);
    buf_printf(out, ",\"level\":\"%s\",\"threads\":%d", g->ops.name, pool_threads(g->pool));
    bench_put_(out, ",\"load_ms\":", g->load_ms);
    buf_printf(out, ",\"bytes\":%llu,\"peak_rss_bytes\":%llu", (unsigned long long)r->bytes,
               (unsigned long long)os_peak_rss());
    bench_put_(out, ",\"read_gbs\":", r->read_gbs);
    bench_put_(out, ",\"peak_gmacs\":", r->peak_gmacs);
    buf_str(out, STR(",\"rows\":["));
    for (i32 i = 0; i < r->n_rows; i++) {
        const BenchRow *b = &r->rows[i];
        buf_printf(out, "%s{\"test\":\"%s\",\"rows\":%d", i ? "," : "", b->test, b->rows);
        bench_put_(out, ",\"ms\":", b->ms);
        bench_put_(out, ",\"bound_ms\":", b->bound_ms);
        bench_put_(out, ",\"gmacs\":", b->gmacs);
        bench_put_(out, ",\"gbs\":", b->gbs);
        bench_put_(out, ",\"tokens_per_s\":", b->tokens_per_s);
        buf_char(out, '}');
    }
    buf_char(out, ']');
    for (size_t i = 0; r->n_questions && i < COUNT_OF(BENCH_WAYS); i++) {
        const BenchAnswers *a = &r->answers[i];
        buf_printf(out, "%s{\"mode\":\"%s\",\"right\":%lld,\"tokens\":%lld,\"forwards\":%lld",
                   i ? "," : ",\"answers\":[", BENCH_WAYS[i].name, (long long)a->right,
                   (long long)a->tokens, (long long)a->forwards);
        buf_printf(out, ",\"commits\":%lld,\"rows\":%lld", (long long)a->commits,
                   (long long)a->rows);
        bench_put_(out, ",\"tokens_per_s\":", bench_rate_(a));
        buf_str(out, i + 1 < COUNT_OF(BENCH_WAYS) ? STR("}") : STR("}]"));
    }
    buf_str(out, STR("}\n"));
}

/* ---- the curve as a picture: rows and milliseconds, both logarithmic ---- */

#define BENCH_PLOT_WIDTH 720
#define BENCH_PLOT_HEIGHT 480
#define BENCH_PLOT_MARGIN 60

typedef struct {
    f64 rows_log, ms_low_log, ms_log; /* spans, as natural logarithms */
} BenchScale;

static f64 bench_x_(const BenchScale *s, f64 rows) {
    return BENCH_PLOT_MARGIN +
           (BENCH_PLOT_WIDTH - 2 * BENCH_PLOT_MARGIN) * kern_log(rows) / s->rows_log;
}

static f64 bench_y_(const BenchScale *s, f64 ms) {
    return BENCH_PLOT_HEIGHT - BENCH_PLOT_MARGIN -
           (BENCH_PLOT_HEIGHT - 2 * BENCH_PLOT_MARGIN) * (kern_log(ms) - s->ms_low_log) / s->ms_log;
}

static void bench_plot_line_(const BenchResult *r, const BenchScale *s, bool bound,
                             const char *style, Buf *out) {
    buf_printf(out, "<polyline fill=\"none\" %s points=\"", style);
    for (i32 i = 0; i < r->n_rows; i++)
        if (r->rows[i].bound_ms > 0)
            buf_printf(out, "%.1f,%.1f ", bench_x_(s, r->rows[i].rows),
                       bench_y_(s, bound ? r->rows[i].bound_ms : r->rows[i].ms));
    buf_str(out, STR("\"/>\n"));
}

/* A text that anybody may have written, where SVG expects one. */
static void bench_put_xml_(Buf *out, Str s) {
    for (size_t i = 0; i < s.n; i++) {
        u8 c = (u8)s.p[i];
        if (c == '<' || c == '>' || c == '&')
            buf_printf(out, "&#%d;", c);
        else
            buf_char(out, c < ' ' ? ' ' : s.p[i]);
    }
}

/* Writes T(rows) and its bound as an SVG picture. */
static void bench_plot(const Engine *g, const BenchResult *r, Buf *out) {
    f64 low = 1e300, high = 0, most = 2;
    for (i32 i = 0; i < r->n_rows; i++) {
        const BenchRow *b = &r->rows[i];
        if (b->bound_ms > 0)
            low = MIN_OF(low, b->bound_ms), high = MAX_OF(high, b->ms),
            most = MAX_OF(most, b->rows);
    }
    const BenchScale s = {kern_log(most), kern_log(low), kern_log(high / low * 1.2)};
    buf_printf(out,
               "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
               "font-family=\"sans-serif\" font-size=\"13\">\n"
               "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n"
               "<text x=\"%d\" y=\"24\">",
               BENCH_PLOT_WIDTH, BENCH_PLOT_HEIGHT, BENCH_PLOT_MARGIN);
    bench_put_xml_(out, g->model.name);
    buf_printf(out,
               ": milliseconds of a forward by its rows; level %s, %d "
               "threads</text>\n"
               "<text x=\"%d\" y=\"42\" fill=\"#888\">dashed: %.1f GB/s of weights, or %.0f G "
               "multiply-adds/s</text>\n",
               g->ops.name, pool_threads(g->pool), BENCH_PLOT_MARGIN, r->read_gbs, r->peak_gmacs);
    for (i32 i = 0; i < r->n_rows; i++) {
        const BenchRow *b = &r->rows[i];
        if (!(b->bound_ms > 0)) continue;
        f64 x = bench_x_(&s, b->rows), y = bench_y_(&s, b->ms);
        buf_printf(out,
                   "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\" stroke=\"#eee\"/>\n"
                   "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%d</text>\n"
                   "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"#06c\"/>\n"
                   "<text x=\"%.1f\" y=\"%.1f\" fill=\"#06c\">%.3g</text>\n",
                   x, x, BENCH_PLOT_MARGIN, BENCH_PLOT_HEIGHT - BENCH_PLOT_MARGIN, x,
                   BENCH_PLOT_HEIGHT - BENCH_PLOT_MARGIN + 20, b->rows, x, y, x - 24, y - 8, b->ms);
    }
    bench_plot_line_(r, &s, true, "stroke=\"#888\" stroke-dasharray=\"5 4\"", out);
    bench_plot_line_(r, &s, false, "stroke=\"#06c\" stroke-width=\"2\"", out);
    buf_str(out, STR("</svg>\n"));
}

static void bench_print(const Engine *g, const BenchOptions *o, const BenchResult *r, Buf *out) {
    if (o->format == BENCH_JSON)
        bench_print_json_(g, r, out);
    else if (o->format == BENCH_CSV)
        bench_print_csv_(r, out);
    else
        bench_print_md_(g, r, out);
    if (o->format == BENCH_MD && r->n_questions) bench_print_answers_(g, r, out);
}

#endif

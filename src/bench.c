/* bench.c - what a forward costs as its rows grow, next to what the machine could do at best.
 *
 * Owns:      nothing beyond one run.
 * Stands on: base mem os pool kern graph decode tempo engine json
 * Promises:  ceilings and costs are measured in the same run; costs are medians, ceilings the best
 *            that was seen, so that noise makes the ratios worse, never better.
 *
 * The question that decides how to decode: T(M), the time of a forward over M rows. Autoregression
 * pays T(1) a token. Block diffusion pays T(sub-block or block) / (tokens revealed per forward) plus
 * T(block) / block for the commit. bound_ms is the larger of two times that no program can beat:
 * reading the weights once at the measured bandwidth, and the multiply-adds at the measured peak of
 * the CPU level's own instructions. */
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
        reps; /* as llama-bench: tokens of prefill, tokens of ar decoding, repetitions */
    BenchFormat format;
} BenchOptions;

typedef struct {
    const char *test; /* "rows", "pp", "tg" */
    i32 rows;         /* of a forward; tokens of pp and tg */
    f64 ms, bound_ms; /* median; 0 where there is no bound */
    f64 gmacs, gbs;   /* reached: multiply-adds and weight bytes per second, in billions */
    f64 tokens_per_s; /* pp and tg */
} BenchRow;

typedef struct {
    f64 read_gbs, peak_gmacs; /* ceilings, all threads */
    u64 bytes; /* of weights that a forward with logits reads, as they lie in memory */
    u64 macs_row, macs_logits; /* multiply-adds per row, and per row of logits */
    BenchRow rows[32];
    i32 n_rows;
} BenchResult;

/* ---- what one forward moves and multiplies ---- */

static u64 bench_mat_bytes_(const DlmMat *w) {
    if (w->kind == DLM_MAT_TERNARY)
        return (u64)cpu_groups_(w) * (u64)((w->n_in + DLM_TILE_IN - 1) / DLM_TILE_IN) *
               DLM_TILE_BYTES;
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

static bool bench_ceilings_(Engine *g, BenchResult *r, Err *e) {
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

static f64 bench_forward_(Engine *g, i32 n, i32 n_logits) {
    return tempo_forward(&g->graph, g->rows, 0, n, n_logits);
}

/* Rows of logits that a step of n rows asks for: each row of a small step, a sub-block's of a
 * block's. */
static i32 bench_logits_(const Engine *g, i32 n) {
    i32 most = MIN_OF(g->model.decode.sub_block_size, g->graph.n_logits_max);
    return n > g->model.decode.block_size ? 1 : MIN_OF(n, most);
}

static void bench_add_(BenchResult *r, const char *test, i32 rows, f64 ms, u64 macs, f64 tokens) {
    f64 read_ms = (f64)r->bytes / r->read_gbs / 1e6, peak_ms = (f64)macs / r->peak_gmacs / 1e6;
    bool bound = strcmp(test, "rows") == 0;
    if (r->n_rows == (i32)COUNT_OF(r->rows)) return;
    r->rows[r->n_rows++] = (BenchRow){.test = test,
                                      .rows = rows,
                                      .ms = ms,
                                      .bound_ms = bound ? MAX_OF(read_ms, peak_ms) : 0,
                                      .gmacs = (f64)macs / ms / 1e6,
                                      .gbs = bound ? (f64)r->bytes / ms / 1e6 : 0,
                                      .tokens_per_s = tokens * 1e3 / ms};
}

static const i32 BENCH_ROWS[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512};

/* T(M), the sizes in turns so that a slow moment of the machine hits them all. */
static void bench_curve_(Engine *g, i32 reps, BenchResult *r) {
    f64 ms[COUNT_OF(BENCH_ROWS)][BENCH_REPS_MAX];
    i32 most = MIN_OF(g->graph.n_rows_max, g->graph.kv.n_cell), n_sizes = 0;
    while (n_sizes < (i32)COUNT_OF(BENCH_ROWS) && BENCH_ROWS[n_sizes] <= most) n_sizes++;
    for (i32 i = 0; i < reps; i++)
        for (i32 s = 0; s < n_sizes; s++)
            ms[s][i] = bench_forward_(g, BENCH_ROWS[s], bench_logits_(g, BENCH_ROWS[s]));
    for (i32 s = 0; s < n_sizes; s++) {
        i32 n = BENCH_ROWS[s];
        u64 macs = r->macs_row * (u64)n + r->macs_logits * (u64)bench_logits_(g, n);
        bench_add_(r, "rows", n, bench_median_(ms[s], reps), macs, 0);
    }
}

/* Prefill of n_prompt tokens and ar decoding of n_gen, through the engine as a user would. */
static bool bench_generate_(Engine *g, const BenchOptions *o, BenchResult *r, Err *e) {
    f64 pp[BENCH_REPS_MAX], tg[BENCH_REPS_MAX];
    i32 n_ctx = g->graph.kv.n_cell, n_prompt = MIN_OF(o->n_prompt, n_ctx - 2),
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
        p.early_stop = true;
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

static bool bench_run(Engine *g, const BenchOptions *o, BenchResult *r, Err *e) {
    *r = (BenchResult){0};
    bench_sizes_(&g->model, r);
    if (!((const Cpu *)g->ops.self)->k->peak)
        return err_set(e, ERR_RUNTIME, "level %s has no measure of its peak", g->ops.name);
    bench_forward_(g, 1, 1); /* touches every page */
    if (!bench_ceilings_(g, r, e)) return false;
    bench_curve_(g, o->reps, r);
    return bench_generate_(g, o, r, e);
}

/* ---- printing ---- */

static f64 bench_ms_of_(const BenchResult *r, i32 rows) {
    for (i32 i = 0; i < r->n_rows; i++)
        if (strcmp(r->rows[i].test, "rows") == 0 && r->rows[i].rows == rows) return r->rows[i].ms;
    return 0;
}

static void bench_print_md_(const Engine *g, const BenchResult *r, Buf *out) {
    buf_printf(
        out,
        "level %s, %d threads; measured ceilings: read %.1f GB/s, %.0f G int8 multiply-adds/s; "
        "a forward reads %.1f MB\n\n"
        "| test | rows | ms | bound ms | ratio | G mul-adds/s | GB/s | tok/s |\n"
        "|---|---|---|---|---|---|---|---|\n",
        g->ops.name, pool_threads(g->pool), r->read_gbs, r->peak_gmacs, (f64)r->bytes / 1e6);
    for (i32 i = 0; i < r->n_rows; i++) {
        const BenchRow *b = &r->rows[i];
        buf_printf(out, "| %s | %d | %.2f | ", b->test, b->rows, b->ms);
        if (b->bound_ms > 0)
            buf_printf(out, "%.2f | %.2f | %.1f | %.1f | |\n", b->bound_ms, b->ms / b->bound_ms,
                       b->gmacs, b->gbs);
        else
            buf_printf(out, "| | %.1f | | %.2f |\n", b->gmacs, b->tokens_per_s);
    }
    const DecodeRecord *d = &g->model.decode;
    f64 one = bench_ms_of_(r, 1), block = bench_ms_of_(r, d->block_size),
        sub = bench_ms_of_(r, d->sub_block_size);
    f64 left =
        one - block / d->block_size; /* of a token's ar time, after its share of the commit */
    if (!(one > 0 && block > 0 && sub > 0)) return;
    buf_printf(out, "\nT(%d)/T(1) = %.2f, T(%d)/T(1) = %.2f: ", d->block_size, block / one,
               d->sub_block_size, sub / one);
    if (left <= 0)
        buf_str(out, STR("on this machine the commit of a block alone costs more than decoding it "
                         "one token at a time.\n"));
    else
        buf_printf(out,
                   "block diffusion is faster than ar when a forward reveals more than %.1f tokens "
                   "(whole block each "
                   "step) or %.1f (sub-blocks), the commit included.\n",
                   block / left, sub / left);
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
    buf_str(out, STR("]}\n"));
}

static void bench_print(const Engine *g, const BenchOptions *o, const BenchResult *r, Buf *out) {
    if (o->format == BENCH_JSON)
        bench_print_json_(g, r, out);
    else if (o->format == BENCH_CSV)
        bench_print_csv_(r, out);
    else
        bench_print_md_(g, r, out);
}

#endif

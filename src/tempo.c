/* tempo.c - which way of decoding gives the most tokens a second on this machine.
 *
 * Owns:      nothing; the file descriptor of its notes is the caller's.
 * Stands on: base mem os decode graph model
 * Promises:  at most TEMPO_BUDGET_MS of measuring, once per engine; without notes of an earlier run
 *            the choice is made from what was measured and from a stated guess; what a request asks
 *            for by name is never changed.
 *
 * The arithmetic: a forward over M rows takes T(M). One token at a time costs T(1) each. A way of
 * block diffusion that needs F forwards over R rows in all for N tokens costs F * T(R / F) / N. On a
 * machine with much bandwidth and few cores T grows with the rows and one token at a time wins; with
 * many cores T is flat and blocks win. F, R and N are counted as answers are made; until then they
 * are guessed, generously to diffusion, since only what is tried is counted. */
#ifndef DLM_TEMPO_C
#define DLM_TEMPO_C

#include "../dlm_kernels.h"
#include "base.c"
#include "decode.c"
#include "graph.c"
#include "mem.c"
#include "model.c"
#include "os.c"

#define TEMPO_BUDGET_MS 300.0
#define TEMPO_REPS 9
#define TEMPO_POINTS 3       /* rows of T(M): one, a sub-block, a block */
#define TEMPO_GUESS 3.0      /* tokens that a denoising forward reveals in sub-blocks, unseen */
#define TEMPO_GUESS_WIDE 3.5 /* the same when the whole block is open at once */
#define TEMPO_FADE 0.95      /* weight of what was counted before, at each new answer */
#define TEMPO_NOTES_MAX 65536

typedef struct {
    const char *name; /* as the one line that says what was chosen names it */
    bool ar, wide, dual;
} TempoWay;

static const TempoWay TEMPO_WAYS[] = {
    {"ar", true, false, false},
    {"iterative", false, false, true},
    {"iterative without dual cache", false, false, false},
    {"iterative with whole blocks open", false, true, false},
};

typedef struct {
    f64 tokens, forwards, rows;
} TempoSeen;

typedef struct {
    i32 n_points, rows[TEMPO_POINTS]; /* rising, at most a slot's context */
    f64 ms[TEMPO_POINTS];             /* T(rows) */
    TempoSeen seen[COUNT_OF(TEMPO_WAYS)];
    u64 key;    /* of the machine and the model, in the notes */
    i32 chosen; /* the way that was said last; -1 none */
    int notes;  /* open for reading and appending, or -1 */
    bool fresh; /* holds more than the notes do */
} Tempo;

/* ---- notes: one line a run, "dlm1 KEY T T T, then tokens forwards rows per way"; the last of a key
 * counts ---- */

static u64 tempo_hash_(u64 h, const void *p, size_t n) { /* FNV-1a */
    for (size_t i = 0; i < n; i++) h = (h ^ ((const u8 *)p)[i]) * 1099511628211u;
    return h;
}

static u64 tempo_key_(const Tempo *t, const Model *m, i32 n_threads) {
    const i32 shape[] = {m->n_vocab,
                         m->n_embd,
                         m->n_layer,
                         m->n_head,
                         m->n_head_kv,
                         m->head_dim,
                         m->n_ff,
                         (i32)m->output.type,
                         (i32)m->layers[0].gate.type,
                         n_threads,
                         m->decode.block_size,
                         m->decode.sub_block_size};
    u64 h = tempo_hash_(14695981039346656037u, shape, sizeof shape);
    h = tempo_hash_(h, t->rows, sizeof t->rows);
    h = tempo_hash_(h, m->name.p, m->name.n);
    return tempo_hash_(h, m->ops->name, strlen(m->ops->name));
}

/* The next number of a line of notes, above 0; false at its end or at anything else. */
static bool tempo_number_(const char **at, f64 *out) {
    char *end;
    *out = strtod(*at, &end);
    bool ok = end != *at && *out > 0 && *out < 1e12;
    *at = end;
    return ok;
}

/* One line [line, line + its NUL) of notes, if it is about this machine and model and whole. */
static void tempo_read_line_(Tempo *t, const char *line) {
    Tempo read = *t;
    char head[32];
    int n = snprintf(head, sizeof head, "dlm1 %016llx", (unsigned long long)t->key);
    if (strncmp(line, head, (size_t)n) != 0) return;
    const char *at = line + n;
    bool ok = true;
    for (i32 i = 0; ok && i < t->n_points; i++) ok = tempo_number_(&at, &read.ms[i]);
    for (size_t i = 0; ok && i < COUNT_OF(TEMPO_WAYS); i++)
        ok = tempo_number_(&at, &read.seen[i].tokens) &&
             tempo_number_(&at, &read.seen[i].forwards) && tempo_number_(&at, &read.seen[i].rows);
    if (ok) *t = read;
}

/* Damaged notes are as good as none. */
static void tempo_read_notes_(Tempo *t) {
    Buf text = {.max = TEMPO_NOTES_MAX};
    if (t->notes < 0) return;
    if (!os_read_fd(t->notes, "notes", &text, NULL)) text.n = 0;
    buf_char(&text, 0);
    for (char *line = text.p, *end; !text.failed && *line; line = end + 1) {
        if (!(end = strchr(line, '\n'))) break;
        *end = 0;
        tempo_read_line_(t, line);
    }
    buf_free(&text);
}

/* Appends what this run has learned. The notes are a convenience: if they cannot be written, the
 * next run measures again. */
static void tempo_write_notes(Tempo *t) {
    Buf line = {0};
    if (t->notes < 0 || !t->fresh) return;
    buf_printf(&line, "dlm1 %016llx", (unsigned long long)t->key);
    for (i32 i = 0; i < t->n_points; i++) buf_printf(&line, " %.4f", t->ms[i]);
    for (size_t i = 0; i < COUNT_OF(TEMPO_WAYS); i++)
        buf_printf(&line, " %.1f %.1f %.1f", t->seen[i].tokens, t->seen[i].forwards,
                   t->seen[i].rows);
    buf_char(&line, '\n');
    if (!line.failed) os_write_all(t->notes, line.p, line.n, NULL);
    buf_free(&line);
    t->fresh = false;
}

/* ---- T(M) ---- */

/* One forward over n rows of a slot that nobody is using, causal from position at; the last n_logits
 * rows ask for logits. Returns milliseconds. Clobbers the slot's cache. rows: [n] scratch. */
static f64 tempo_forward(Graph *g, DlmRow *rows, i32 slot, i32 at, i32 n, i32 n_logits) {
    for (i32 i = 0; i < n; i++)
        rows[i] = (DlmRow){.token = i % g->m->n_vocab,
                           .pos = at + i,
                           .slot = slot,
                           .cell = at + i,
                           .kv_hi = at + i + 1,
                           .logits = i < n - n_logits ? -1 : i - (n - n_logits)};
    f64 from = os_now_ms();
    graph_forward(g, rows, n, n_logits);
    graph_wait(g);
    return os_now_ms() - from;
}

static bool tempo_is_prepared(const Tempo *t) {
    return t->ms[0] > 0;
}

/* Measures T, unless that is known: at each of the points the shortest of what the budget allows; a
 * point that it does not allow is taken as proportional to the one before. slot: free; its cache is
 * lost when this returns true. */
static bool tempo_prepare(Tempo *t, Graph *g, DlmRow *rows, i32 slot) {
    if (tempo_is_prepared(t)) return false;
    f64 from = os_now_ms();
    i32 n_logits = MIN_OF(g->m->decode.sub_block_size, g->n_logits_max);
    for (i32 rep = 0; rep < TEMPO_REPS; rep++)
        for (i32 i = 0; i < t->n_points; i++) {
            i32 n = t->rows[i];
            f64 more = i ? t->ms[i - 1] * n / t->rows[i - 1] : 0;
            bool late = os_now_ms() - from + (t->ms[i] > 0 ? t->ms[i] : more) > TEMPO_BUDGET_MS;
            if (late && t->ms[i] == 0 && i) t->ms[i] = more;
            if (late && t->ms[i] > 0) continue;
            f64 ms = tempo_forward(g, rows, slot, 0, n, MIN_OF(n, n_logits));
            if (rep == 0 || ms < t->ms[i]) t->ms[i] = ms;
        }
    t->fresh = true;
    return true;
}

/* T(rows), linear between the points that were measured and beyond the last. */
static f64 tempo_time_(const Tempo *t, f64 rows) {
    if (t->n_points == 1) return t->ms[0] * rows;
    i32 i = 1;
    while (i + 1 < t->n_points && rows > t->rows[i]) i++;
    f64 slope = (t->ms[i] - t->ms[i - 1]) / (t->rows[i] - t->rows[i - 1]);
    return MAX_OF(t->ms[0], t->ms[i] + (rows - t->rows[i]) * MAX_OF(slope, 0));
}

/* ---- the choice ---- */

/* Milliseconds per token of one way when n_streams answers are made at once. */
static f64 tempo_cost_(const Tempo *t, size_t way, i32 n_streams) {
    const TempoSeen *s = &t->seen[way];
    if (TEMPO_WAYS[way].ar) return tempo_time_(t, n_streams) / n_streams;
    return s->forwards * tempo_time_(t, n_streams * s->rows / s->forwards) /
           (s->tokens * n_streams);
}

/* What a block is expected to cost before any was seen: its denoising forwards, of which those that
 * open a sub-block run the whole block, and the rows of the commit, which ride along. */
static TempoSeen tempo_guess_(const TempoWay *way, i32 block, i32 sub) {
    f64 looks = block / (way->wide ? TEMPO_GUESS_WIDE : TEMPO_GUESS);
    f64 whole = way->dual ? MIN_OF(looks, (f64)block / sub) : looks;
    return (TempoSeen){
        .tokens = block, .forwards = looks, .rows = (whole + 1) * block + (looks - whole) * sub};
}

/* Prepares a choice for this model in slots of n_ctx tokens; notes: a file open for reading and
 * appending, or -1. */
static void tempo_open(Tempo *t, const Model *m, i32 n_threads, i32 n_ctx, int notes) {
    const i32 wanted[TEMPO_POINTS] = {1, m->decode.sub_block_size, m->decode.block_size};
    *t = (Tempo){.chosen = -1, .notes = notes};
    for (i32 i = 0; i < TEMPO_POINTS; i++) {
        i32 n = MIN_OF(wanted[i], n_ctx);
        if (t->n_points == 0 || n > t->rows[t->n_points - 1]) t->rows[t->n_points++] = n;
    }
    t->key = tempo_key_(t, m, n_threads);
    for (size_t i = 0; i < COUNT_OF(TEMPO_WAYS); i++)
        t->seen[i] = tempo_guess_(&TEMPO_WAYS[i], m->decode.block_size, m->decode.sub_block_size);
    tempo_read_notes_(t);
}

/* May this way serve this request? Models with shifted logits under a causal or block mask descend
 * from next-token prediction and can do one token at a time; of the others the forward is the whole
 * canvas, whatever the way. A cache that the request names stays. */
static bool tempo_allows_(const Model *m, const DecodeParams *p, const TempoWay *way) {
    const DecodeRecord *d = &m->decode;
    if (way->ar) return d->mask_id < 0 || (d->shift && d->attention != ATTEND_FULL);
    if (d->mask_id < 0) return false;
    if (way->wide && (p->sub_block_size || d->sub_block_size == d->block_size)) return false;
    bool cached = p->cache != CACHE_NONE;
    return way->dual ? cached : cached ? p->cache == CACHE_MODEL : !way->wide;
}

static void tempo_say_(const Tempo *t, size_t way, size_t next, i32 n_streams) {
    char curve[96] = "";
    for (i32 i = 0, n = 0; i < t->n_points; i++, n = (i32)strlen(curve))
        snprintf(curve + n, sizeof curve - (size_t)n, "%sT(%d) %.2f ms", i ? ", " : "", t->rows[i],
                 t->ms[i]);
    char than[96] = "";
    if (next < COUNT_OF(TEMPO_WAYS))
        snprintf(than, sizeof than, ", %s %.0f", TEMPO_WAYS[next].name,
                 1e3 / tempo_cost_(t, next, n_streams));
    log_line(LOG_INFO, "auto: %s, at %.0f tokens/s expected%s (%s)", TEMPO_WAYS[way].name,
             1e3 / tempo_cost_(t, way, n_streams), than, curve);
}

/* Turns DECODE_AUTO in p into the fastest way, and returns which that is; says so in one line when it
 * is another one than before. n_streams: answers made at the same time, this one included. After
 * tempo_prepare. */
static i32 tempo_choose(Tempo *t, const Model *m, i32 n_streams, DecodeParams *p) {
    size_t best = COUNT_OF(TEMPO_WAYS), next = best;
    for (size_t i = 0; i < COUNT_OF(TEMPO_WAYS); i++) {
        if (!tempo_allows_(m, p, &TEMPO_WAYS[i])) continue;
        f64 cost = tempo_cost_(t, i, n_streams);
        if (best == COUNT_OF(TEMPO_WAYS) || cost < tempo_cost_(t, best, n_streams))
            next = best, best = i;
        else if (next == COUNT_OF(TEMPO_WAYS) || cost < tempo_cost_(t, next, n_streams))
            next = i;
    }
    ASSERT(best < COUNT_OF(TEMPO_WAYS)); /* a model without a mask token has ar */
    if ((i32)best != t->chosen) tempo_say_(t, best, next, n_streams);
    t->chosen = (i32)best;
    const TempoWay *way = &TEMPO_WAYS[best];
    p->mode = way->ar ? DECODE_AR : DECODE_ITERATIVE;
    if (!way->ar && !way->dual) p->cache = CACHE_NONE;
    if (way->wide) p->sub_block_size = p->block_size ? p->block_size : m->decode.block_size;
    return t->chosen;
}

/* Counts a finished answer that was made in a way that tempo_choose chose. */
static void tempo_note(Tempo *t, i32 way, const DecodeResult *r) {
    if (TEMPO_WAYS[way].ar || r->ids.n == 0) return;
    TempoSeen *s = &t->seen[way];
    s->tokens = TEMPO_FADE * s->tokens + (f64)r->ids.n;
    s->forwards = TEMPO_FADE * s->forwards + r->n_forwards_denoise + r->n_forwards_commit;
    s->rows = TEMPO_FADE * s->rows + (f64)r->n_rows;
    t->fresh = true;
}

#endif

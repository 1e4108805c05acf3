/* decode.c - the block-diffusion decoder: which rows the next forward needs, what its logits reveal.
 *
 * Owns:      one sequence: its tokens, mask bitmap, text, and which cache cells are final.
 * Stands on: base mem gguf tok model sample
 * Promises:  progress at every step; the mask token never leaves; the streamed text is a prefix of
 *            the final text at every moment; never allocates in the loop, except for the text and
 *            ids it returns.
 *
 * A decoder is a machine with two strokes. decode_plan writes the rows of the next forward; the
 * caller runs them, alone or together with other slots' rows; decode_absorb takes the logits.
 * Phases:
 *
 *     PREFILL  the prompt's whole blocks (all of the prompt for ar), in chunks
 *     DENOISE  one step: predict the masked positions of the active sub-block, reveal some
 *     COMMIT   a finished block's rows once more with its final tokens: their keys and values
 *              become final, and in shifted models the last row predicts the next block's first
 *              token
 *     AR       one token per forward
 *
 * Reveal rule (Fast-dLLM, Wu et al. 2025, confidence-aware parallel decoding): every masked position
 * of the sub-block whose best token has softmax probability p > threshold, and always the most
 * probable one. */
#ifndef DLM_DECODE_C
#define DLM_DECODE_C

#include "../dlm_kernels.h"
#include "base.c"
#include "gguf.c"
#include "mem.c"
#include "model.c"
#include "sample.c"
#include "tok.c"

/* DECODE_AUTO is a wish: the engine turns it into one of the others before a request begins. */
typedef enum {
    DECODE_AR,
    DECODE_GREEDY,
    DECODE_ITERATIVE,
    DECODE_ADAPTIVE,
    DECODE_AUTO
} DecodeMode;
static const char *const DECODE_MODE_NAMES[] = {"ar", "greedy", "iterative", "adaptive", "auto"};

#define DECODE_STOPS_MAX 16
#define DECODE_TEXT_MAX ((size_t)64 << 20)

typedef struct {
    i32 token;
    f32 bias;
} DecodeBias;

typedef struct {
    DecodeMode mode;
    i32 block_size, sub_block_size; /* 0: the model's */
    f32 threshold;                  /* <= 0: the model's */
    bool dual_cache; /* keep the block's keys and values while a sub-block is denoised, recompute
                        only its rows */
    bool early_stop; /* end at the stop token; false finishes denoising its block first, as the
                        references do */
    i32 max_tokens;
    SampleParams sample;
    const Str *stops; /* [n_stops] the text ends before the first of these */
    i32 n_stops;
    /* Changes to the model's own distribution, made before confidence, filters and temperature. The
     * penalties count the tokens of the answer that were revealed in earlier forwards, wherever
     * they stand: a block knows both sides. presence and frequency subtract from the logit once,
     * and per occurrence (OpenAI); repetition divides a positive logit and multiplies a negative
     * one (Keskar et al. 2019). Neutral: 0, 0, 1. */
    f32 presence_penalty, frequency_penalty, repetition_penalty;
    const DecodeBias *biases; /* [n_biases] added to the logits of these tokens */
    i32 n_biases;
    i32 n_top; /* DecodeToken.top: this many alternatives, at most DECODE_TOP_MAX */
} DecodeParams;

static DecodeParams decode_params_default(void) {
    return (DecodeParams){
        .mode = DECODE_ITERATIVE,
        .dual_cache = true,
        .early_stop = true,
        .max_tokens = 256,
        .repetition_penalty = 1,
        .sample = {.temperature = 0, .top_k = 0, .top_p = 1, .min_p = 0, .seed = 0}};
}

typedef struct {
    i32 pos, token;
    f32 prob; /* softmax probability of token when it was revealed */
} DecodeReveal;

/* One forward, as --watch, --trace and the server see it. Valid during the callback. */
typedef struct {
    const char *kind; /* "prefill", "denoise", "commit" or "ar" */
    i32 block, step;  /* block of the generation, from 0; step within its sub-block */
    i32 n_rows;
    f64 ms;
    const DecodeReveal *reveals; /* [n_reveals], by rising position */
    i32 n_reveals;
    i32 block_begin, block_end; /* positions */
    const i32 *tokens;          /* [block_end - block_begin]; meaningless where masked */
    const u8 *masked;           /* likewise */
    const f32 *probs;           /* likewise; 1 for the prompt's tokens */
    i32 n_prompt;
} DecodeStep;

#define DECODE_TOP_MAX 20

typedef struct {
    i32 token;
    f32 prob;
} DecodeTop;

/* A token that has become part of the answer, before its text is sent. Probabilities are of the
 * forward that revealed it. Valid during the callback. */
typedef struct {
    i32 index, token; /* index: 0 is the first of the answer */
    f32 prob;
    const DecodeTop *top; /* [n_top] the likeliest tokens at that place, likeliest first */
    i32 n_top;
} DecodeToken;

typedef struct {
    void *arg;
    void (*text)(void *arg, Str utf8);              /* the next piece of the answer */
    void (*token)(void *arg, const DecodeToken *t); /* its next token */
    void (*step)(void *arg, const DecodeStep *s);   /* after each forward */
    bool (*cancelled)(void *arg);                   /* asked before each forward */
} DecodeEvents;

typedef struct {
    Buf text;
    TokIds ids;             /* generated, up to and including the stop token */
    const char *finish;     /* "stop", "length" or "cancelled" */
    DecodeMode mode;        /* that was used */
    i32 n_prompt, n_cached; /* prompt tokens, and how many of them were in the cache */
    i32 n_forwards_prefill, n_forwards_denoise, n_forwards_commit, n_forwards_ar;
    i64 n_rows;         /* of the denoising and committing forwards together */
    i32 n_from_prefill; /* tokens of the answer that reading the prompt gave: 0 or 1 */
    f64 ms_prefill, ms_decode, ms_first_token;
} DecodeResult;

/* The forwards that the answer's tokens are counted against: a prefill is one of them when it gave a
 * token, else it only read the prompt. */
static i32 decode_forwards(const DecodeResult *r) {
    return r->n_from_prefill + r->n_forwards_denoise + r->n_forwards_commit + r->n_forwards_ar;
}

static void decode_result_free(DecodeResult *r) {
    buf_free(&r->text);
    tok_ids_free(&r->ids);
}

typedef enum { PHASE_PREFILL, PHASE_DENOISE, PHASE_COMMIT, PHASE_AR, PHASE_DONE } DecodePhase;
static const char *const DECODE_PHASE_NAMES[] = {"prefill", "denoise", "commit", "ar", "done"};

typedef struct {
    const Model *m;
    i32 slot, n_ctx;
    /* the sequence; arrays have n_ctx entries and live as long as the slot */
    i32 *tokens;
    u8 *masked; /* 1: not revealed yet. A bitmap, since the mask token may equal a real one */
    f32 *probs;
    DecodeReveal *reveals; /* [n_ctx] of the last forward */
    i32 *targets;          /* [n_ctx] position that logits row i of this forward predicts */
    i32 *best;             /* [n_ctx] */
    f32 *best_prob;        /* [n_ctx] */
    i32 *heap;             /* [n_vocab] sampling scratch */
    f32 *row;        /* [n_vocab] one row of logits, when more than its best token is wanted */
    u16 *counts;     /* [n_vocab] occurrences in the answer, for the penalties */
    DecodeTop *tops; /* [n_ctx][DECODE_TOP_MAX], by position; taken when first wanted */
    i32 n_targets, n_reveals;
    /* this request */
    DecodeParams p; /* resolved: no zeros left */
    ModelAttention attention;
    i32 origin; /* blocks begin at origin + k * block_size (and at 0) */
    /* positions: the end of the prompt, of the answer, of the canvas (full attention) */
    i32 n_prompt, n_limit, n_total;
    DecodePhase phase;
    i32 prefill_to;             /* cells that the planned prefill chunk will make final */
    i32 n_cached;               /* cells [0, n_cached) are final for tokens [0, n_cached) */
    i32 block_begin, block_end; /* the active block */
    i32 block, sub_begin, step;
    bool block_in_cache; /* every row of the active block has been computed since it began */
    i32 next_token;      /* prediction for block_begin, made by the row before it; -1 none */
    f32 next_prob;
    i32 n_forwards[PHASE_DONE];
    i64 n_rows;         /* of the denoising and committing forwards so far */
    i32 n_from_prefill; /* tokens that the prefill revealed */
    /* what has come out */
    i32 n_out; /* tokens of the answer that are out: positions [n_prompt, n_prompt + n_out) */
    Buf text;
    size_t n_sent; /* bytes of text given to the text event */
    TokUtf8 utf8;
    const char *finish; /* NULL until the answer has ended */
    /* how the cells were computed, for reuse by the next request */
    ModelAttention cached_attention;
    i32 cached_block, cached_origin;
} Decode;

static bool decode_open(Decode *d, const Model *m, i32 slot, i32 n_ctx, Err *e) {
    *d = (Decode){.m = m, .slot = slot, .n_ctx = n_ctx, .phase = PHASE_DONE};
    d->text.max = DECODE_TEXT_MAX;
    u64 n = (u64)n_ctx;
    d->tokens = mem_alloc_n(n, sizeof *d->tokens, e);
    d->masked = mem_alloc_n(n, sizeof *d->masked, e);
    d->probs = mem_alloc_n(n, sizeof *d->probs, e);
    d->reveals = mem_alloc_n(n, sizeof *d->reveals, e);
    d->targets = mem_alloc_n(n, sizeof *d->targets, e);
    d->best = mem_alloc_n(n, sizeof *d->best, e);
    d->best_prob = mem_alloc_n(n, sizeof *d->best_prob, e);
    d->heap = mem_alloc_n((u64)m->n_vocab, sizeof *d->heap, e);
    d->row = mem_alloc_n((u64)m->n_vocab, sizeof *d->row, e);
    d->counts = mem_alloc_n((u64)m->n_vocab, sizeof *d->counts, e);
    return d->tokens && d->masked && d->probs && d->reveals && d->targets && d->best &&
           d->best_prob && d->heap && d->row && d->counts;
}

static void decode_close(Decode *d) {
    void *all[] = {d->tokens,    d->masked, d->probs, d->reveals, d->targets, d->best,
                   d->best_prob, d->heap,   d->row,   d->counts,  d->tops};
    for (size_t i = 0; i < COUNT_OF(all); i++) mem_free(all[i]);
    buf_free(&d->text);
    *d = (Decode){0};
}

/* ---- blocks ---- */

/* End of the block that holds pos; the stretch before the origin is a block of its own. */
static i32 decode_block_end_(const Decode *d, i32 pos) {
    if (pos < d->origin) return d->origin;
    return d->origin + ((pos - d->origin) / d->p.block_size + 1) * d->p.block_size;
}

static i32 decode_block_begin_(const Decode *d, i32 pos) {
    return pos < d->origin ? 0 : decode_block_end_(d, pos) - d->p.block_size;
}

static void decode_enter_block_(Decode *d, i32 begin) {
    d->block_begin = begin;
    d->block_end =
        MIN_OF(decode_block_end_(d, begin), d->attention == ATTEND_FULL ? d->n_total : d->n_ctx);
    d->sub_begin = begin;
    d->step = 0;
    d->block_in_cache = false;
    d->phase = PHASE_DENOISE;
}

static bool decode_has_masks_(const Decode *d, i32 begin, i32 end) {
    for (i32 i = begin; i < end; i++)
        if (d->masked[i]) return true;
    return false;
}

/* Moves sub_begin to the first sub-block with a masked position; false when the block has none. */
static bool decode_seek_sub_block_(Decode *d) {
    for (i32 s = d->block_begin; s < d->block_end; s += d->p.sub_block_size)
        if (decode_has_masks_(d, s, MIN_OF(s + d->p.sub_block_size, d->block_end))) {
            if (s != d->sub_begin) d->step = 0;
            d->sub_begin = s;
            return true;
        }
    return false;
}

/* ---- beginning ---- */

static bool decode_resolve_(Decode *d, const DecodeParams *p, Err *e) {
    const DecodeRecord *r = &d->m->decode;
    d->p = *p;
    ASSERT(p->mode != DECODE_AUTO);
    if (d->p.block_size == 0) d->p.block_size = r->block_size;
    if (d->p.sub_block_size == 0) d->p.sub_block_size = MIN_OF(r->sub_block_size, d->p.block_size);
    if (!(d->p.threshold > 0)) d->p.threshold = r->threshold;
    if (d->p.mode == DECODE_GREEDY) d->p.sub_block_size = d->p.block_size, d->p.threshold = -1;
    if (d->p.block_size < 1 || d->p.block_size > MODEL_BLOCK_MAX)
        return err_set(e, ERR_USAGE, "block size %d is outside 1 to %d", d->p.block_size,
                       MODEL_BLOCK_MAX);
    if (d->p.sub_block_size < 1 || d->p.block_size % d->p.sub_block_size)
        return err_set(e, ERR_USAGE, "sub-block size %d does not divide block size %d",
                       d->p.sub_block_size, d->p.block_size);
    if (d->p.n_top < 0 || d->p.n_top > DECODE_TOP_MAX)
        return err_set(e, ERR_USAGE,
                       "%d alternatives per token were asked for; at most %d are kept", d->p.n_top,
                       DECODE_TOP_MAX);
    for (i32 i = 0; i < d->p.n_biases; i++)
        if (d->p.biases[i].token < 0 || d->p.biases[i].token >= d->m->n_vocab)
            return err_set(e, ERR_USAGE, "bias for token %d, outside the vocabulary of %d",
                           d->p.biases[i].token, d->m->n_vocab);
    if (d->p.n_top && !d->tops &&
        !(d->tops = mem_alloc_n((u64)d->n_ctx * DECODE_TOP_MAX, sizeof *d->tops, e)))
        return false;
    d->attention = p->mode == DECODE_AR ? ATTEND_CAUSAL : (ModelAttention)r->attention;
    if (p->mode != DECODE_AR && !model_can_diffuse(d->m, e)) return false;
    return true;
}

/* How much of the cache the new prompt can keep: whole blocks under the block mask, and never so
 * much that no row is left to predict what follows the prompt. */
static i32 decode_reusable_(const Decode *d, const i32 *prompt, i32 n_prompt, i32 prefill_end) {
    bool same = d->attention == d->cached_attention && d->attention != ATTEND_FULL &&
                (d->attention == ATTEND_CAUSAL ||
                 (d->p.block_size == d->cached_block && d->origin == d->cached_origin));
    i32 n = 0, n_max = MIN_OF(d->n_cached, prefill_end);
    while (same && n < n_max && d->tokens[n] == prompt[n]) n++;
    bool needs_last = d->p.mode == DECODE_AR || (d->m->decode.shift && prefill_end == n_prompt);
    if (needs_last && n == prefill_end) n = MAX_OF(n - 1, 0);
    if (d->attention == ATTEND_BLOCK && n > 0) n = decode_block_begin_(d, n);
    return n;
}

/* Begins a request: prompt [n_prompt] token ids, 1 <= n_prompt < n_ctx. Reuses what the cache still
 * holds. */
static bool decode_begin(Decode *d, const i32 *prompt, i32 n_prompt, const DecodeParams *p,
                         Err *e) {
    if (n_prompt < 1) return err_set(e, ERR_USAGE, "the prompt is empty: give at least one token");
    if (n_prompt >= d->n_ctx)
        return err_set(e, ERR_RUNTIME,
                       "the prompt has %d tokens but the context holds %d; shorten it or raise -c",
                       n_prompt, d->n_ctx);
    if (p->max_tokens < 1)
        return err_set(e, ERR_USAGE, "the number of tokens to generate must be at least 1");
    if (!decode_resolve_(d, p, e)) return false;
    bool ar = p->mode == DECODE_AR, full = d->attention == ATTEND_FULL;
    bool from_prompt = full || (!ar && d->m->decode.align == ALIGN_PROMPT_END);
    d->origin = from_prompt ? n_prompt % d->p.block_size : 0;
    i32 prefill_end = full                ? 0
                      : ar || from_prompt ? n_prompt
                                          : n_prompt / d->p.block_size * d->p.block_size;
    d->n_cached = decode_reusable_(d, prompt, n_prompt, prefill_end);
    d->cached_attention = d->attention, d->cached_block = d->p.block_size,
    d->cached_origin = d->origin;
    memcpy(d->tokens, prompt, (size_t)n_prompt * sizeof *prompt);
    memset(d->masked, 0, (size_t)n_prompt);
    memset(d->masked + n_prompt, 1, (size_t)(d->n_ctx - n_prompt));
    for (i32 i = 0; i < d->n_ctx; i++) d->probs[i] = i < n_prompt;
    d->n_prompt = n_prompt;
    d->n_limit = p->max_tokens < d->n_ctx - n_prompt ? n_prompt + p->max_tokens : d->n_ctx;
    i32 whole = (d->n_limit - n_prompt + d->p.block_size - 1) / d->p.block_size * d->p.block_size;
    d->n_total = MIN_OF(n_prompt + whole, d->n_ctx);
    d->block = 0, d->n_out = 0, d->n_sent = 0, d->next_token = -1;
    d->n_targets = d->n_reveals = d->n_from_prefill = 0;
    d->n_rows = 0;
    memset(d->n_forwards, 0, sizeof d->n_forwards);
    buf_clear(&d->text);
    d->utf8 = (TokUtf8){0};
    d->finish = NULL;
    d->block_begin = d->block_end = prefill_end;
    d->phase = PHASE_PREFILL; /* ar always has a row left to run: decode_reusable_ */
    if (prefill_end == d->n_cached) decode_enter_block_(d, full ? n_prompt : prefill_end);
    return true;
}

/* ---- first stroke: the rows of the next forward ---- */

/* The least that decode_plan must be given room for, in rows and in rows of logits. */
static i32 decode_rows_needed(const Decode *d) {
    if (d->phase == PHASE_AR) return 1;
    return d->attention == ATTEND_FULL ? d->n_total : d->p.block_size;
}

static i32 decode_logits_needed(const Decode *d) {
    return d->phase == PHASE_DENOISE ? d->p.sub_block_size : 1;
}

static DlmRow decode_row_(const Decode *d, i32 pos) {
    i32 hi = pos + 1;
    if (d->attention == ATTEND_BLOCK) hi = MIN_OF(decode_block_end_(d, pos), d->n_ctx);
    if (d->attention == ATTEND_FULL) hi = d->n_total;
    i32 token = d->masked[pos] ? d->m->decode.mask_id : d->tokens[pos];
    return (DlmRow){.token = token,
                    .pos = pos,
                    .slot = d->slot,
                    .cell = pos,
                    .kv_lo = 0,
                    .kv_hi = hi,
                    .logits = -1};
}

static i32 decode_plan_range_(const Decode *d, DlmRow *rows, i32 begin, i32 end) {
    for (i32 pos = begin; pos < end; pos++) rows[pos - begin] = decode_row_(d, pos);
    return end - begin;
}

/* The row of this plan that predicts position pos: its own, or the one before it in shifted models.
 */
static void decode_want_(Decode *d, DlmRow *rows, i32 begin, i32 pos) {
    i32 at = (d->m->decode.shift || d->p.mode == DECODE_AR ? pos - 1 : pos) - begin;
    ASSERT(at >= 0);
    rows[at].logits = d->n_targets;
    d->targets[d->n_targets++] = pos;
}

static i32 decode_plan_prefill_(Decode *d, DlmRow *rows, i32 n_rows_max) {
    i32 begin = d->n_cached, end = d->block_begin;
    if (end - begin > n_rows_max) {
        end = begin + n_rows_max;
        if (d->attention == ATTEND_BLOCK)
            end = decode_block_begin_(d, end); /* a block's rows see each other */
    }
    ASSERT(end > begin);
    d->prefill_to = end;
    i32 n = decode_plan_range_(d, rows, begin, end);
    bool last = end == d->block_begin;
    if (last && (d->p.mode == DECODE_AR || (d->m->decode.shift && end == d->n_prompt)))
        decode_want_(d, rows, begin, end);
    return n;
}

static i32 decode_plan_denoise_(Decode *d, DlmRow *rows) {
    bool more = decode_seek_sub_block_(d);
    ASSERT(more);
    i32 sub_end = MIN_OF(d->sub_begin + d->p.sub_block_size, d->block_end);
    i32 begin = d->block_begin, end = d->block_end;
    if (d->attention == ATTEND_FULL) begin = 0, end = d->n_total;
    /* DualCache: once the whole block is in the cache, the sub-block's rows suffice, unless its
     * first token is still masked, which only the row before the sub-block can predict. */
    else if (d->p.dual_cache && d->block_in_cache && !d->masked[d->sub_begin])
        begin = d->sub_begin, end = sub_end;
    i32 n = decode_plan_range_(d, rows, begin, end);
    for (i32 pos = d->sub_begin; pos < sub_end; pos++)
        if (d->masked[pos] && !(pos == d->block_begin && d->next_token >= 0))
            decode_want_(d, rows, begin, pos);
    return n;
}

/* Writes the rows of the next forward; returns their number, 0 when the answer is complete.
 * n_rows_max is at least the block size (the canvas, under full attention). Rows that want logits
 * are numbered from 0; *n_logits says how many there are. */
static i32 decode_plan(Decode *d, DlmRow *rows, i32 n_rows_max, i32 *n_logits) {
    i32 n = 0;
    d->n_targets = 0;
    switch (d->phase) {
    case PHASE_PREFILL: n = decode_plan_prefill_(d, rows, n_rows_max); break;
    case PHASE_DENOISE: n = decode_plan_denoise_(d, rows); break;
    case PHASE_COMMIT:
        n = decode_plan_range_(d, rows, d->block_begin, d->block_end);
        ASSERT(d->block_end < d->n_ctx); /* a block that fills the context ends the answer */
        if (d->m->decode.shift) decode_want_(d, rows, d->block_begin, d->block_end);
        break;
    case PHASE_AR:
        n = decode_plan_range_(d, rows, d->n_cached, d->n_cached + 1);
        decode_want_(d, rows, d->n_cached, d->n_cached + 1);
        break;
    case PHASE_DONE: break;
    }
    ASSERT(n <= n_rows_max);
    if (d->phase == PHASE_DENOISE || d->phase == PHASE_COMMIT) d->n_rows += n;
    *n_logits = d->n_targets;
    return n;
}

/* ---- what comes out: the contiguous revealed prefix, as text ---- */

/* Bytes at the end of text that may be the beginning of a stop string, and must wait. */
static size_t decode_held_back_(const Decode *d, Str text) {
    size_t held = 0;
    for (i32 s = 0; s < d->p.n_stops; s++) {
        size_t most = MIN_OF(d->p.stops[s].n ? d->p.stops[s].n - 1 : 0, text.n);
        for (size_t n = most; n > held; n--)
            if (memcmp(text.p + text.n - n, d->p.stops[s].p, n) == 0) held = n;
    }
    return held;
}

/* Cuts the text at the earliest stop string; true when there is one. Nothing sent can be part of
 * it. */
static bool decode_cut_at_stop_(Decode *d) {
    size_t at = SIZE_MAX;
    for (i32 s = 0; s < d->p.n_stops; s++) {
        size_t found =
            d->p.stops[s].n ? str_find(buf_view(&d->text), d->p.stops[s], d->n_sent) : SIZE_MAX;
        at = MIN_OF(at, found);
    }
    if (at == SIZE_MAX) return false;
    d->text.n = at;
    d->text.p[at] = 0;
    d->utf8 =
        (TokUtf8){0}; /* the beginning of a character after the stop string is not wanted either */
    return true;
}

static bool decode_put_token_(Decode *d, i32 token, Err *e) {
    Buf piece = {0};
    bool ok = tok_bytes(d->m->tok, token, false, &piece);
    if (ok) tok_utf8_put(&d->utf8, buf_view(&piece), &d->text);
    buf_free(&piece);
    if (ok && !d->text.failed) return true;
    return err_set(e, ERR_MEMORY, "out of memory for the answer's text");
}

/* Takes every token that has become part of the contiguous revealed prefix. */
static bool decode_advance_(Decode *d, const DecodeEvents *ev, Err *e) {
    for (i32 pos; !d->finish && (pos = d->n_prompt + d->n_out) < d->n_limit && !d->masked[pos];) {
        DecodeToken token = {.index = d->n_out++,
                             .token = d->tokens[pos],
                             .prob = d->probs[pos],
                             .n_top = d->p.n_top,
                             .top = d->p.n_top ? d->tops + (i64)pos * DECODE_TOP_MAX : NULL};
        if (ev->token) ev->token(ev->arg, &token);
        if (tok_is_eog(d->m->tok, d->tokens[pos]))
            d->finish = "stop";
        else if (!decode_put_token_(d, d->tokens[pos], e))
            return false;
        else if (decode_cut_at_stop_(d))
            d->finish = "stop";
        else if (pos + 1 == d->n_limit)
            d->finish = "length";
    }
    return true;
}

/* Gives the text event what is certain to stay. */
static void decode_send_(Decode *d, const DecodeEvents *ev, bool all) {
    if (all) tok_utf8_end(&d->utf8, &d->text);
    Str rest = str_cut(buf_view(&d->text), d->n_sent, d->text.n);
    rest.n -= all ? 0 : decode_held_back_(d, rest);
    if (rest.n && ev->text) ev->text(ev->arg, rest);
    d->n_sent += rest.n;
}

/* ---- second stroke: what the logits reveal ---- */

static void decode_reveal_(Decode *d, i32 pos, i32 token, f32 prob) {
    ASSERT(d->masked[pos]);
    d->tokens[pos] = token;
    d->masked[pos] = 0;
    d->probs[pos] = prob;
    d->reveals[d->n_reveals++] = (DecodeReveal){pos, token, prob};
}

/* The threshold of this step. Adaptive relaxes early, when a mistake can still be seen in context,
 * and never goes above the plain threshold. */
static f32 decode_threshold_(const Decode *d) {
    f32 t = d->p.threshold;
    if (d->p.mode != DECODE_ADAPTIVE || d->step > 1) return t;
    return MIN_OF(t, d->step == 0 ? MAX_OF(0.5f, t - 0.4f) : MAX_OF(0.7f, t - 0.2f));
}

/* The candidates of this step are next_token for the block's first position, where it is masked,
 * and the targets. */
static void decode_absorb_denoise_(Decode *d) {
    i32 n = 0;
    DecodeReveal *c =
        d->reveals; /* candidates first, then the chosen ones, in place: both by rising position */
    if (d->sub_begin == d->block_begin && d->masked[d->block_begin] && d->next_token >= 0)
        c[n++] = (DecodeReveal){d->block_begin, d->next_token, d->next_prob};
    for (i32 i = 0; i < d->n_targets; i++)
        c[n++] = (DecodeReveal){d->targets[i], d->best[i], d->best_prob[i]};
    ASSERT(n > 0);
    i32 best = 0;
    for (i32 i = 1; i < n; i++)
        if (c[i].prob > c[best].prob) best = i; /* a tie goes to the lowest position */
    f32 threshold = decode_threshold_(d);
    for (i32 i = 0; i < n; i++)
        if (c[i].prob > threshold || i == best) decode_reveal_(d, c[i].pos, c[i].token, c[i].prob);
    d->step++;
    d->block_in_cache = d->attention != ATTEND_FULL;
}

/* The prompt's whole blocks, or a finished block, are in the cache: on to the next block. */
static void decode_next_block_(Decode *d, i32 begin) {
    d->next_token = d->n_targets ? d->best[0] : -1;
    d->next_prob = d->n_targets ? d->best_prob[0] : 0;
    decode_enter_block_(d, begin);
    if (d->m->decode.first == FIRST_COMMIT && d->next_token >= 0 && d->masked[begin])
        decode_reveal_(d, begin, d->next_token, d->next_prob);
}

static void decode_after_denoise_(Decode *d) {
    if (decode_has_masks_(d, d->block_begin, d->block_end)) return;
    if (d->finish) {
        d->phase = PHASE_DONE;
    } else if (d->attention == ATTEND_FULL) {
        d->block++;
        decode_enter_block_(d, d->block_end);
    } else {
        d->phase = PHASE_COMMIT;
    }
}

static bool decode_changes_logits_(const DecodeParams *p) {
    return p->presence_penalty != 0 || p->frequency_penalty != 0 || p->repetition_penalty != 1 ||
           p->n_biases > 0;
}

/* Applies biases and penalties to d->row and finds its best token anew. */
static void decode_change_row_(Decode *d, i32 *best, f32 *prob) {
    const DecodeParams *p = &d->p;
    i32 end = MIN_OF(MAX_OF(d->block_end, d->n_prompt), d->n_ctx);
    for (i32 i = 0; i < p->n_biases; i++) d->row[p->biases[i].token] += p->biases[i].bias;
    for (i32 i = d->n_prompt; i < end; i++)
        if (!d->masked[i])
            d->counts[d->tokens[i]] = (u16)MIN_OF(d->counts[d->tokens[i]] + 1, UINT16_MAX);
    for (i32 i = d->n_prompt; i < end; i++) {
        i32 t = d->tokens[i];
        if (d->masked[i] || d->counts[t] == 0) continue;
        f32 l = d->row[t];
        if (p->repetition_penalty != 1)
            l = l > 0 ? l / p->repetition_penalty : l * p->repetition_penalty;
        d->row[t] = l - p->presence_penalty - p->frequency_penalty * (f32)d->counts[t];
        d->counts[t] = 0; /* once per token, and the table is clean again */
    }
    f32 sum = 1;
    *best = ref_top1(d->row, d->m->n_vocab, &sum);
    *prob = 1.0f / sum;
}

/* The likeliest tokens of d->row, whose best has probability best_prob. */
static void decode_keep_top_(Decode *d, i32 pos, i32 best, f32 best_prob) {
    const SampleParams all = {.top_k = d->p.n_top, .top_p = 1};
    i32 n = sample_filter_(d->row, d->m->n_vocab, &all, d->row[best], 1.0f / best_prob, d->heap);
    for (i32 i = 0; i < d->p.n_top; i++) {
        i32 id = i < n ? d->heap[d->m->n_vocab - 1 - i] : best;
        d->tops[(i64)pos * DECODE_TOP_MAX + i] =
            (DecodeTop){id, kern_expf(d->row[id] - d->row[best]) * best_prob};
    }
}

/* Chooses a token for each target: best[], best_prob[]. logits: [n_targets][n_vocab], the
 * backend's. */
static bool decode_choose_(Decode *d, f32 *logits, Err *e) {
    const Model *m = d->m;
    i32 mask = m->decode.mask_id, banned = mask >= 0 && !tok_is_eog(m->tok, mask) ? mask : -1,
        forward = 0;
    if (d->n_targets == 0) return true;
    m->ops->top1(m->ops->self, logits, d->n_targets, m->n_vocab, banned, d->best, d->best_prob);
    for (i32 i = 0; i < d->n_targets;
         i++) /* the best logit's own term makes the softmax sum at least 1 */
        if (!(d->best_prob[i] > 0 && d->best_prob[i] <= 1))
            return err_set(
                e, ERR_MODEL,
                "%s: the model's output at position %d is not a number; its weights are damaged",
                m->file->label, d->targets[i]);
    bool changes = decode_changes_logits_(&d->p);
    if (d->p.sample.temperature <= 0 && !changes && d->p.n_top == 0) return true;
    const SampleTools tools = {d->heap, m->ops->exps ? m->ops->exps : ref_exps};
    for (i32 i = 0; i < PHASE_DONE; i++) forward += d->n_forwards[i];
    for (i32 i = 0; i < d->n_targets; i++) {
        m->ops->download(m->ops->self, d->row, logits + (i64)i * m->n_vocab,
                         (u64)m->n_vocab * sizeof(f32));
        if (changes) decode_change_row_(d, &d->best[i], &d->best_prob[i]);
        if (d->p.n_top) decode_keep_top_(d, d->targets[i], d->best[i], d->best_prob[i]);
        f64 u = sample_uniform(d->p.sample.seed, d->targets[i], forward);
        d->best[i] = sample_token(d->row, m->n_vocab, &d->p.sample, d->best[i], d->best_prob[i], u,
                                  &tools, &d->best_prob[i]);
    }
    return true;
}

/* Takes the logits of the rows that decode_plan asked for and moves on. */
static bool decode_absorb(Decode *d, f32 *logits, const DecodeEvents *ev, Err *e) {
    DecodePhase phase = d->phase;
    d->n_reveals = 0;
    if (!decode_choose_(d, logits, e)) return false;
    d->n_forwards[phase]++;
    bool ar = d->p.mode == DECODE_AR;
    if (phase == PHASE_PREFILL) {
        d->n_cached = d->prefill_to;
        if (d->n_cached < d->block_begin) return true;
        if (!ar) decode_next_block_(d, d->block_begin);
    } else if (phase == PHASE_DENOISE) {
        decode_absorb_denoise_(d);
    } else if (phase == PHASE_COMMIT) {
        d->n_cached = d->block_end;
        d->block++;
        decode_next_block_(d, d->block_end);
    } else {
        d->n_cached++;
    }
    if (ar) {
        d->phase = PHASE_AR;
        decode_reveal_(d, d->targets[0], d->best[0], d->best_prob[0]);
        d->block_begin = d->targets[0], d->block_end = d->block_begin + 1;
    }
    if (phase == PHASE_PREFILL) d->n_from_prefill = d->n_reveals;
    if (!decode_advance_(d, ev, e)) return false;
    if (phase == PHASE_DENOISE) decode_after_denoise_(d);
    if (d->finish && (d->p.early_stop || ar)) d->phase = PHASE_DONE;
    decode_send_(d, ev, d->phase == PHASE_DONE);
    return true;
}

#endif

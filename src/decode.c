/* decode.c - the block-diffusion decoder: which rows the next forward needs, what its logits reveal.
 *
 * Owns:      one sequence: its tokens, mask bitmap, text, and which cache cells are final.
 * Stands on: base mem gguf tok model sample
 * Promises:  progress at every step; the mask token never leaves; the streamed text is a prefix of
 *            the final text at every moment; never allocates in the loop, except for the text and
 *            ids it returns.
 *
 * A decoder is a machine with two strokes. decode_plan writes the rows of the next forward; the
 * caller runs them, alone or together with other slots' rows; decode_take takes the logits, as many
 * at a time as there are, and decode_absorb reveals.
 * Phases:
 *
 *     PREFILL  the prompt's whole blocks (all of the prompt for ar), in chunks
 *     DENOISE  one step: predict the masked positions of the active sub-block, reveal some. The first
 *              step of a block carries the rows of the block before once more, with their final
 *              tokens: their keys and values become final, and in shifted models the last of them
 *              predicts the new block's first token. That is the commit
 *     COMMIT   the same rows alone, for models whose new block begins with that first token known
 *     AR       one token per forward
 *
 * How a model wants to be decoded is its DecodeRecord: data from the file, the family's row or flags.
 * What a step reveals is a rule, and a rule is a row of DECODE_RULES: a score, how many of the best
 * are revealed in any case, and a limit above which the others are revealed too.
 *
 * Under full attention there is no cache to fill: a step runs the canvas, which is the prompt, the
 * masks and what may come after them. With revealed_first order (WeDLM) a window slides over the
 * answer: its revealed tokens come first in the cache and its masks last, each at its own position,
 * so that causal attention shows every mask what is known; the revealed ones that no mask precedes
 * are final as they are. */
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
#define DECODE_CFG_MAX 100
#define DECODE_TEXT_MAX ((size_t)64 << 20)

typedef struct {
    i32 token;
    f32 bias;
} DecodeBias;

typedef struct {
    DecodeMode mode;
    i32 block_size, sub_block_size; /* 0: the model's */
    i32 rule, steps;                /* RULE_MODEL, 0: the model's */
    f32 threshold;                  /* <= 0: the model's */
    i32 cache;                      /* ModelCache; CACHE_MODEL: the model's */
    f32 cfg_scale;                  /* guidance: see decode_mix_; 0: none */
    bool lone_commit; /* commit a block in a forward of its own: the same tokens, more forwards */
    bool early_stop;  /* end at the stop token; false finishes denoising its block first, as the
                        references do */
    i32 max_tokens;
    SampleParams sample;
    const Str *stops; /* [n_stops] the text ends before the first of these */
    i32 n_stops;
    const i32 *suffix; /* [n_suffix] what stands behind max_tokens masks; under full attention */
    i32 n_suffix;
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
    const char *kind;     /* "prefill", "denoise", "commit" or "ar" */
    i32 block, step;      /* block of the generation, from 0; step within its sub-block */
    i32 n_rows, n_commit; /* n_commit: of them, the rows that commit a finished block */
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
    i32 n_joined;       /* of the denoising forwards: those that committed the block before */
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

/* A masked position and what could be revealed there. */
typedef struct {
    i32 pos, token;
    f32 prob;
    f64 score;
    bool chosen;
} DecodeCandidate;

typedef enum { PHASE_PREFILL, PHASE_DENOISE, PHASE_COMMIT, PHASE_AR, PHASE_DONE } DecodePhase;
static const char *const DECODE_PHASE_NAMES[] = {"prefill", "denoise", "commit", "ar", "done"};

typedef struct {
    const Model *m;
    i32 slot, n_ctx;
    /* the sequence; arrays have n_ctx entries and live as long as the slot */
    i32 *tokens;
    u8 *masked; /* 1: not revealed yet. A bitmap, since the mask token may equal a real one */
    u8 *fresh;  /* 1: revealed, and its cell holds the keys and values of its token */
    f32 *probs;
    DecodeReveal *reveals;       /* [n_ctx] of the last forward */
    DecodeCandidate *candidates; /* [n_ctx] scratch of a step */
    i32 *targets;                /* [n_ctx] position that logits row i of this forward predicts */
    i32 *best;                   /* [n_ctx] */
    f32 *best_prob;              /* [n_ctx] */
    f64 *scores;                 /* [n_ctx] */
    i32 *heap;                   /* [n_vocab] sampling scratch */
    f32 *row;        /* [n_vocab] one row of logits, when more than its best token is wanted */
    f32 *copy;       /* [2][n_vocab] where it and a blind one are, if logits are not in host memory */
    u16 *counts;     /* [n_vocab] occurrences in the answer, for the penalties */
    DecodeTop *tops; /* [n_ctx][DECODE_TOP_MAX], by position; taken when first wanted */
    i32 n_targets, n_reveals;
    /* this request */
    DecodeParams p; /* resolved: no zeros left */
    ModelAttention attention;
    bool shift, window; /* logits row i predicts position i + 1; revealed_first order */
    bool guided;        /* each row comes with a blind one, which does not see the prompt */
    i32 origin;         /* blocks begin at origin + k * block_size (and at 0) */
    /* positions: the end of the prompt, of the answer, of the canvas (full attention) */
    i32 n_prompt, n_limit, n_total;
    DecodePhase phase;
    i32 prefill_to;             /* cells that the planned prefill chunk will make final */
    i32 n_cached;               /* cells [0, n_cached) are final for tokens [0, n_cached) */
    i32 block_begin, block_end; /* the active block */
    i32 block, sub_begin, step;
    bool block_in_cache; /* every row of the active block has been computed since it began */
    /* for block_begin, from the row before it, which is final: good until it is revealed; pos -1: none */
    DecodeCandidate next;
    i32 n_forwards[PHASE_DONE];
    i32 n_commit;       /* rows of the planned forward that commit a block */
    i32 n_joined;       /* denoising forwards that also committed */
    i64 n_rows;         /* of the denoising and committing forwards so far */
    i32 n_from_prefill; /* tokens that the prefill revealed */
    /* what has come out */
    i32 n_out; /* tokens of the answer that are out: positions [n_prompt, n_prompt + n_out) */
    Buf text;
    Buf piece;     /* the bytes of one token */
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
    d->fresh = mem_alloc_n(n, sizeof *d->fresh, e);
    d->probs = mem_alloc_n(n, sizeof *d->probs, e);
    d->reveals = mem_alloc_n(n, sizeof *d->reveals, e);
    d->candidates = mem_alloc_n(n, sizeof *d->candidates, e);
    d->targets = mem_alloc_n(n, sizeof *d->targets, e);
    d->best = mem_alloc_n(n, sizeof *d->best, e);
    d->best_prob = mem_alloc_n(n, sizeof *d->best_prob, e);
    d->scores = mem_alloc_n(n, sizeof *d->scores, e);
    d->heap = mem_alloc_n((u64)m->n_vocab, sizeof *d->heap, e);
    if (!m->ops->on_host && !(d->copy = mem_alloc_n(2 * (u64)m->n_vocab, sizeof *d->copy, e)))
        return false;
    d->counts = mem_alloc_n((u64)m->n_vocab, sizeof *d->counts, e);
    return d->tokens && d->masked && d->fresh && d->probs && d->reveals && d->candidates &&
           d->targets && d->best && d->best_prob && d->scores && d->heap && d->counts;
}

static void decode_close(Decode *d) {
    void *all[] = {d->tokens,     d->masked,  d->fresh,  d->probs,     d->reveals,
                   d->candidates, d->targets, d->best,   d->best_prob, d->scores,
                   d->heap,       d->copy,    d->counts, d->tops};
    for (size_t i = 0; i < COUNT_OF(all); i++) mem_free(all[i]);
    buf_free(&d->text);
    buf_free(&d->piece);
    *d = (Decode){0};
}

/* ---- rules: which candidates a step reveals ----
 *
 * A step reveals the `quota` candidates with the highest scores, and every other one whose score is
 * above the limit. The published rules are choices of score, quota and limit:
 *
 *     threshold               Fast-dLLM (Wu et al. 2025): p > threshold, and always the best
 *     low_confidence_dynamic  SDAR, LLaDA2: an even share, or all with p > threshold if these are more
 *     low_confidence, random  LLaDA (Nie et al. 2025), SDAR (static): an even share
 *     sequential              SDAR: an even share, left to right
 *     entropy_bound           WeDLM: entropy + 0.02 per place < threshold, and always the best
 *     origin                  Dream (Ye et al. 2025): each with the share of its timestep as chance
 *     maskgit_plus, topk_margin, entropy  Dream: the best of them, as many as the timestep says
 *
 * where p is the plain softmax probability, whatever the temperature. */

typedef enum {
    SCORE_PROB,
    SCORE_MARGIN,       /* p of the likeliest token - p of the next */
    SCORE_ENTROPY,      /* negative */
    SCORE_ENTROPY_NEAR, /* the same, less a price for the distance from the first mask */
    SCORE_POSITION,     /* the first is the best */
    SCORE_RANDOM        /* drawn anew at each step */
} DecodeScore;

typedef enum { QUOTA_NONE, QUOTA_ONE, QUOTA_EVEN, QUOTA_TIME } DecodeQuota;
typedef enum { LIMIT_NONE, LIMIT_THRESHOLD, LIMIT_ENTROPY, LIMIT_TIME } DecodeLimit;

typedef struct {
    DecodeScore score;
    DecodeQuota quota;
    DecodeLimit limit;
} DecodeRule;

static const DecodeRule DECODE_RULES[] = {
    [RULE_THRESHOLD] = {SCORE_PROB, QUOTA_ONE, LIMIT_THRESHOLD},
    [RULE_LOW_CONFIDENCE_DYNAMIC] = {SCORE_PROB, QUOTA_EVEN, LIMIT_THRESHOLD},
    [RULE_LOW_CONFIDENCE] = {SCORE_PROB, QUOTA_EVEN, LIMIT_NONE},
    [RULE_SEQUENTIAL] = {SCORE_POSITION, QUOTA_EVEN, LIMIT_NONE},
    [RULE_RANDOM] = {SCORE_RANDOM, QUOTA_EVEN, LIMIT_NONE},
    [RULE_ENTROPY_BOUND] = {SCORE_ENTROPY_NEAR, QUOTA_ONE, LIMIT_ENTROPY},
    [RULE_ORIGIN] = {SCORE_RANDOM, QUOTA_NONE, LIMIT_TIME},
    [RULE_MASKGIT_PLUS] = {SCORE_PROB, QUOTA_TIME, LIMIT_NONE},
    [RULE_TOPK_MARGIN] = {SCORE_MARGIN, QUOTA_TIME, LIMIT_NONE},
    [RULE_ENTROPY] = {SCORE_ENTROPY, QUOTA_TIME, LIMIT_NONE},
};

/* Has the rule a threshold of probability that DECODE_ADAPTIVE can loosen? */
static bool decode_can_adapt(i32 rule) {
    return DECODE_RULES[rule].limit == LIMIT_THRESHOLD;
}

#define DECODE_NEAR_PRICE 0.02 /* WeDLM's pos_penalty_factor */
#define DECODE_TIME_END 1e-3   /* Dream's eps: time runs from 1 to here in equal steps */
#define DECODE_NEVER 1e30      /* no score is above it, and all are above its negative */

/* The share of the masks that a step of Dream's schedule reveals: 1 - s/t for the step from t to s. */
static f64 decode_share_(i32 step, i32 steps) {
    f64 each = (1 - DECODE_TIME_END) / steps;
    return step + 1 >= steps ? 1 : each / (1 - each * step);
}

/* How many candidates a step reveals at least. n_places: of the sub-block; n: masked ones. */
static i32 decode_quota_(DecodeQuota kind, i32 step, i32 steps, i32 n_places, i32 n) {
    switch (kind) {
    case QUOTA_NONE: return 0;
    case QUOTA_ONE: return 1;
    case QUOTA_EVEN: return n_places / steps + (step < n_places % steps);
    case QUOTA_TIME: return (i32)((f64)n * decode_share_(step, steps));
    }
    return 0;
}

/* Marks what is revealed of c [n], by rising position, and returns how many: see above. Of equal
 * scores the first is the higher. What is above the limit is the best there is: only what the quota
 * wants beyond it has to be looked for. */
static i32 decode_pick_(DecodeCandidate *c, i32 n, i32 quota, f64 limit) {
    i32 n_chosen = 0;
    for (i32 i = 0; i < n; i++) {
        c[i].chosen = quota >= n || c[i].score > limit;
        n_chosen += c[i].chosen;
    }
    for (; n_chosen < quota && n_chosen < n; n_chosen++) {
        i32 best = -1;
        for (i32 i = 0; i < n; i++)
            if (!c[i].chosen && (best < 0 || c[i].score > c[best].score)) best = i;
        c[best].chosen = true;
    }
    return n_chosen;
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

/* Moves the window to where the answer is not final yet. */
static void decode_slide_(Decode *d) {
    i32 first = d->block_begin = d->n_cached;
    while (first < d->n_limit && !d->masked[first]) first++;
    d->sub_begin = first;
    d->block_end = MIN_OF(first + d->p.block_size, d->n_limit);
}

static void decode_enter_block_(Decode *d, i32 begin) {
    d->block_begin = begin;
    d->block_end =
        MIN_OF(decode_block_end_(d, begin), d->attention == ATTEND_FULL ? d->n_limit : d->n_ctx);
    d->sub_begin = begin;
    d->step = 0;
    d->block_in_cache = false;
    d->next.pos = -1;
    d->phase = PHASE_DENOISE;
    if (d->window) decode_slide_(d);
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

/* *p with the model's values where it leaves the choice. */
static DecodeParams decode_resolved(const DecodeRecord *r, const DecodeParams *p) {
    DecodeParams d = *p;
    if (d.block_size == 0) d.block_size = r->block_size;
    if (d.sub_block_size == 0)
        d.sub_block_size = r->sub_block_size == r->block_size
                               ? d.block_size
                               : MIN_OF(r->sub_block_size, d.block_size);
    if (d.rule == RULE_MODEL) d.rule = r->rule;
    if (d.steps == 0) d.steps = r->steps;
    if (!(d.threshold > 0)) d.threshold = r->threshold;
    if (d.cache == CACHE_MODEL) d.cache = r->cache;
    return d;
}

/* Cells of a slot that one canvas may have: guidance keeps two. */
static i32 decode_room(const DecodeParams *p, i32 n_ctx) {
    return p->cfg_scale > 0 ? n_ctx / 2 : n_ctx;
}

/* Can this model be decoded with the guidance that p asks for? */
static bool decode_can_guide(const DecodeRecord *r, const DecodeParams *p, Err *e) {
    i32 attention = p->mode == DECODE_AR ? ATTEND_CAUSAL : r->attention;
    if (!(p->cfg_scale > 0) || attention == ATTEND_FULL) return true;
    return err_set(
        e, ERR_USAGE,
        "guidance (cfg_scale) compares with a forward that does not see the prompt, which "
        "wants full attention, and here it is %s: leave it out",
        MODEL_ATTENTION_NAMES[attention]);
}

static bool decode_resolve_(Decode *d, const DecodeParams *p, Err *e) {
    const DecodeRecord *r = &d->m->decode;
    ASSERT(p->mode != DECODE_AUTO);
    d->p = decode_resolved(r, p);
    d->attention = p->mode == DECODE_AR ? ATTEND_CAUSAL : (ModelAttention)r->attention;
    d->shift = p->mode == DECODE_AR || r->shift;
    d->window = p->mode != DECODE_AR && r->order == ORDER_REVEALED;
    d->guided = p->cfg_scale > 0;
    if (p->mode == DECODE_AR) d->p.rule = RULE_THRESHOLD; /* none decides, and this one is cheap */
    if (d->p.mode == DECODE_GREEDY || d->window) d->p.sub_block_size = d->p.block_size;
    if (d->p.mode == DECODE_ADAPTIVE && !decode_can_adapt(d->p.rule))
        return err_set(e, ERR_USAGE,
                       "adaptive decoding loosens a threshold of probability, and the rule %s has "
                       "none: use iterative",
                       MODEL_RULE_NAMES[d->p.rule]);
    if (!decode_can_guide(r, p, e)) return false;
    if (p->n_suffix > 0 && d->attention != ATTEND_FULL)
        return err_set(e, ERR_USAGE,
                       "a suffix wants full attention, and here it is %s: what comes later cannot "
                       "be seen",
                       MODEL_ATTENTION_NAMES[d->attention]);
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
    return p->mode == DECODE_AR || model_can_diffuse(d->m, e);
}

/* How much of the cache the new prompt can keep: whole blocks under the block mask, and never so
 * much that no row is left to predict what follows the prompt. */
static i32 decode_reusable_(const Decode *d, const i32 *prompt, i32 n_prompt, i32 prefill_end) {
    bool same = d->attention == d->cached_attention && d->attention != ATTEND_FULL &&
                (d->attention == ATTEND_CAUSAL ||
                 (d->p.block_size == d->cached_block && d->origin == d->cached_origin));
    i32 n = 0, n_max = MIN_OF(d->n_cached, prefill_end);
    while (same && n < n_max && d->tokens[n] == prompt[n]) n++;
    bool needs_last = d->shift && prefill_end == n_prompt;
    if (needs_last && n == prefill_end) n = MAX_OF(n - 1, 0);
    if (d->attention == ATTEND_BLOCK && n > 0) n = decode_block_begin_(d, n);
    return n;
}

/* Lays out the canvas: the prompt, the masks of the answer, under full attention the suffix. */
static void decode_lay_out_(Decode *d, const i32 *prompt, i32 n_prompt) {
    const DecodeParams *p = &d->p;
    i32 n_free = decode_room(p, d->n_ctx) - n_prompt - p->n_suffix;
    d->n_prompt = n_prompt;
    d->n_limit = n_prompt + MIN_OF(p->max_tokens, n_free);
    d->n_total = d->n_limit + p->n_suffix;
    memcpy(d->tokens, prompt, (size_t)n_prompt * sizeof *prompt);
    if (p->n_suffix) memcpy(d->tokens + d->n_limit, p->suffix, (size_t)p->n_suffix * sizeof(i32));
    size_t n = (size_t)d->n_ctx;
    memset(d->masked, 1, n * sizeof *d->masked);
    memset(d->masked, 0, (size_t)n_prompt * sizeof *d->masked);
    memset(d->masked + d->n_limit, 0, (size_t)p->n_suffix * sizeof *d->masked);
    memset(d->probs, 0, n * sizeof *d->probs);
    memset(d->fresh, 0, n * sizeof *d->fresh);
    for (i32 i = 0; i < d->n_total; i++) d->probs[i] = !d->masked[i];
}

/* Begins a request: prompt [n_prompt] token ids, 1 <= n_prompt < n_ctx. Reuses what the cache still
 * holds. */
static bool decode_begin(Decode *d, const i32 *prompt, i32 n_prompt, const DecodeParams *p,
                         Err *e) {
    if (n_prompt < 1) return err_set(e, ERR_USAGE, "the prompt is empty: give at least one token");
    i32 room = decode_room(p, d->n_ctx);
    if (n_prompt >= room - p->n_suffix)
        return err_set(
            e, ERR_RUNTIME,
            "the prompt has %d tokens but the context holds %d%s; shorten it or raise -c",
            n_prompt + p->n_suffix, room, room < d->n_ctx ? " when guidance keeps it twice" : "");
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
    decode_lay_out_(d, prompt, n_prompt);
    d->block = 0, d->step = 0, d->n_out = 0, d->n_sent = 0;
    d->n_targets = d->n_reveals = d->n_from_prefill = 0;
    d->n_rows = 0, d->n_commit = d->n_joined = 0;
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
    if (d->attention == ATTEND_FULL) return d->n_total * (1 + d->guided);
    if (d->phase == PHASE_PREFILL) return MIN_OF(d->p.block_size, d->block_begin - d->n_cached);
    return d->block_end - d->n_cached;
}

static i32 decode_logits_needed(const Decode *d) {
    if (d->phase != PHASE_DENOISE) return 1;
    return MIN_OF(d->p.sub_block_size, d->block_end - d->block_begin) * (1 + d->guided);
}

/* Adds the row of a position to the plan; target: the position whose logits it shall give, or -1. */
static DlmRow *decode_put_row_(Decode *d, DlmRow *rows, i32 *n, i32 pos, i32 target) {
    DlmRow *row = &rows[(*n)++];
    i32 hi = pos + 1;
    if (d->attention == ATTEND_BLOCK) hi = MIN_OF(decode_block_end_(d, pos), d->n_ctx);
    if (d->attention == ATTEND_FULL) hi = d->n_total;
    *row = (DlmRow){.token = d->masked[pos] ? d->m->decode.mask_id : d->tokens[pos],
                    .pos = pos,
                    .slot = d->slot,
                    .cell = pos,
                    .kv_lo = 0,
                    .kv_hi = hi,
                    .logits = target < 0 ? -1 : d->n_targets};
    if (target >= 0) d->targets[d->n_targets++] = target;
    d->fresh[pos] = !d->masked[pos];
    return row;
}

/* The rows [begin, end); the last one predicts position end, if that is wanted. */
static i32 decode_plan_range_(Decode *d, DlmRow *rows, i32 begin, i32 end, bool wants_next) {
    i32 n = 0;
    for (i32 pos = begin; pos < end; pos++)
        decode_put_row_(d, rows, &n, pos, wants_next && pos + 1 == end ? end : -1);
    return n;
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
    return decode_plan_range_(d, rows, begin, end,
                              d->shift && end == d->block_begin && end == d->n_prompt);
}

/* A window's rows: the revealed ones, then the masks, in cells that follow each other. */
static i32 decode_plan_window_(Decode *d, DlmRow *rows) {
    i32 n = 0;
    for (int masked = 0; masked < 2; masked++)
        for (i32 pos = d->block_begin; pos < d->block_end; pos++)
            if (d->masked[pos] == masked) {
                DlmRow *row = decode_put_row_(d, rows, &n, pos, masked ? pos : -1);
                row->cell = d->block_begin + n - 1;
                row->kv_hi = row->cell + 1;
            }
    return n;
}

/* Adds to the n rows of a guided plan their blind ones, which lie in the cells behind the canvas and see
 * masks in place of what was given. The logits of the two are neighbours. */
static i32 decode_put_blind_(const Decode *d, DlmRow *rows, i32 n) {
    for (i32 i = 0; i < n; i++) {
        DlmRow *row = &rows[i], *blind = &rows[n + i];
        if (row->logits >= 0) row->logits *= 2;
        *blind = *row;
        if (row->logits >= 0) blind->logits++;
        if (row->pos < d->n_prompt || row->pos >= d->n_limit) blind->token = d->m->decode.mask_id;
        blind->cell += d->n_total;
        blind->kv_lo += d->n_total;
        blind->kv_hi += d->n_total;
    }
    return 2 * n;
}

static i32 decode_plan_denoise_(Decode *d, DlmRow *rows) {
    if (d->window) return decode_plan_window_(d, rows);
    bool more = decode_seek_sub_block_(d), full = d->attention == ATTEND_FULL;
    ASSERT(more);
    i32 n = 0, sub_end = MIN_OF(d->sub_begin + d->p.sub_block_size, d->block_end);
    i32 begin = full ? 0 : d->n_cached, end = full ? d->n_total : d->block_end, want_end = sub_end;
    /* DualCache: once the whole block is in the cache, the sub-block's rows suffice, unless its
     * first token is still masked and the row before the sub-block has to predict it. */
    bool part =
        d->p.cache != CACHE_NONE && d->block_in_cache && !(d->shift && d->masked[d->sub_begin]);
    if (part) begin = d->sub_begin, end = sub_end;
    /* Fast-dLLM's Dream: the forward that fills the cache gives a block its first token alone */
    if (full && d->m->decode.first == FIRST_COMMIT && !d->block_in_cache)
        want_end = d->block_begin + 1;
    for (i32 pos = begin; pos < end; pos++) {
        i32 target = pos + d->shift;
        bool wants = target >= d->sub_begin && target < want_end && d->masked[target] &&
                     target != d->next.pos;
        if (part && d->p.cache == CACHE_MASKED && !wants && (d->masked[pos] || d->fresh[pos]))
            continue;
        decode_put_row_(d, rows, &n, pos, wants ? target : -1);
    }
    if (!full) d->n_commit = d->block_begin - d->n_cached;
    return d->guided ? decode_put_blind_(d, rows, n) : n;
}

/* Writes the rows of the next forward; returns their number, 0 when the answer is complete.
 * n_rows_max is at least decode_rows_needed. Rows that want logits are numbered from 0; *n_logits
 * says how many there are. */
static i32 decode_plan(Decode *d, DlmRow *rows, i32 n_rows_max, i32 *n_logits) {
    i32 n = 0;
    d->n_targets = d->n_commit = 0;
    switch (d->phase) {
    case PHASE_PREFILL: n = decode_plan_prefill_(d, rows, n_rows_max); break;
    case PHASE_DENOISE: n = decode_plan_denoise_(d, rows); break;
    case PHASE_COMMIT:
        ASSERT(d->block_end < d->n_ctx); /* a block that fills the context ends the answer */
        n = decode_plan_range_(d, rows, d->block_begin, d->block_end, d->shift);
        d->n_commit = n;
        break;
    case PHASE_AR: n = decode_plan_range_(d, rows, d->n_cached, d->n_cached + 1, true); break;
    case PHASE_DONE: break;
    }
    ASSERT(n <= n_rows_max);
    if (d->phase == PHASE_DENOISE || d->phase == PHASE_COMMIT) d->n_rows += n;
    *n_logits = d->n_targets * (1 + d->guided);
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
    const Tok *tok = d->m->tok;
    buf_clear(&d->piece);
    bool ok = tok_bytes(tok, token, false, &d->piece);
    Str bytes = buf_view(&d->piece);
    /* Behind a special token a text of its own begins, with the blank that encoding would put there. */
    if (d->n_out == 1 && tok_is_special(tok, d->tokens[d->n_prompt - 1]))
        bytes = tok_without_blank(tok, bytes);
    if (ok) tok_utf8_put(&d->utf8, bytes, &d->text);
    if (ok && !d->text.failed) return true;
    return err_set(e, ERR_MEMORY, "out of memory for the answer's text");
}

/* Takes every token that has become part of the contiguous revealed prefix. */
static bool decode_advance_(Decode *d, const DecodeEvents *ev, Err *e) {
    for (i32 pos; !d->finish && (pos = d->n_prompt + d->n_out) < d->n_limit && !d->masked[pos];) {
        DecodeToken token = {.index = d->n_out++,
                             .token = d->tokens[pos],
                             .prob = d->probs[pos],
                             .top = d->p.n_top ? d->tops + (i64)pos * DECODE_TOP_MAX : NULL};
        while (token.n_top < d->p.n_top && token.top[token.n_top].token >= 0) token.n_top++;
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
    d->fresh[pos] = 0;
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

static f64 decode_limit_(const Decode *d, DecodeLimit kind, i32 steps) {
    if (d->p.mode == DECODE_GREEDY) return -DECODE_NEVER;
    switch (kind) {
    case LIMIT_NONE: break;
    case LIMIT_THRESHOLD: return (f64)decode_threshold_(d);
    case LIMIT_ENTROPY: return -(f64)d->p.threshold;
    case LIMIT_TIME: return -decode_share_(d->step, steps);
    }
    return DECODE_NEVER;
}

#define DECODE_DICE 0x646963656469u /* keeps these draws apart from those of tokens */

/* Chooses among c [n] by the rule. A step that reveals nothing would be followed by one that sees
 * the same logits: the schedule goes on at once. */
static void decode_choose_places_(Decode *d, DecodeCandidate *c, i32 n) {
    const DecodeRule *rule = &DECODE_RULES[d->p.rule];
    i32 places = MIN_OF(d->p.sub_block_size, d->block_end - d->sub_begin);
    i32 steps = d->p.steps ? d->p.steps : places;
    for (bool done = false; !done; d->step++) {
        for (i32 i = 0; i < n; i++) {
            if (rule->score == SCORE_RANDOM)
                c[i].score = -sample_uniform(d->p.sample.seed ^ DECODE_DICE, c[i].pos, d->step);
            if (rule->score == SCORE_POSITION) c[i].score = -c[i].pos;
        }
        i32 quota = decode_quota_(rule->quota, d->step, steps, places, n);
        if (d->step + 1 >= steps) quota = MAX_OF(quota, 1);
        done = decode_pick_(c, n, quota, decode_limit_(d, rule->limit, steps)) > 0;
    }
}

/* The candidates of this step are the next token for the block's first position, where that is known
 * and still masked, and the targets. */
static void decode_absorb_denoise_(Decode *d) {
    i32 n = 0;
    DecodeCandidate *c = d->candidates;
    if (d->next.pos >= d->sub_begin) c[n++] = d->next;
    for (i32 i = 0; i < d->n_targets; i++)
        c[n++] = (DecodeCandidate){.pos = d->targets[i],
                                   .token = d->best[i],
                                   .prob = d->best_prob[i],
                                   .score = d->scores[i]};
    ASSERT(n > 0);
    if (DECODE_RULES[d->p.rule].score == SCORE_ENTROPY_NEAR)
        for (i32 i = n - 1; i >= 0; i--) c[i].score -= DECODE_NEAR_PRICE * (c[i].pos - c[0].pos);
    decode_choose_places_(d, c, n);
    for (i32 i = 0; i < n; i++)
        if (c[i].chosen) decode_reveal_(d, c[i].pos, c[i].token, c[i].prob);
    d->block_in_cache = true;
    if (d->attention == ATTEND_FULL) return;
    /* what this forward found before the first mask is final now */
    d->n_joined += d->n_commit > 0;
    d->n_cached = d->window ? d->sub_begin : d->block_begin;
    bool first = d->shift && c[0].pos == d->block_begin;
    if (first) d->next = c[0];
    if (first && c[0].chosen) d->next.pos = -1;
}

/* The prompt's whole blocks, or a finished block, are in the cache: on to the next block. */
static void decode_next_block_(Decode *d, i32 begin) {
    decode_enter_block_(d, begin);
    if (d->n_targets == 0 || !d->masked[begin]) return;
    d->next = (DecodeCandidate){
        .pos = begin, .token = d->best[0], .prob = d->best_prob[0], .score = d->scores[0]};
    if (d->m->decode.first != FIRST_COMMIT) return;
    d->next.pos = -1;
    decode_reveal_(d, begin, d->best[0], d->best_prob[0]);
}

/* Where the active block has nothing left to reveal: on to its commit, the next block or the end. */
static void decode_leave_block_(Decode *d) {
    bool open = d->window ? !d->finish : decode_has_masks_(d, d->block_begin, d->block_end);
    if (d->window) decode_slide_(d);
    if (open) return;
    if (d->finish) {
        d->phase = PHASE_DONE;
    } else if (d->attention != ATTEND_FULL &&
               (d->p.lone_commit || d->m->decode.first == FIRST_COMMIT)) {
        d->phase = PHASE_COMMIT;
    } else { /* the next block's first forward makes this one final */
        d->block++;
        decode_enter_block_(d, d->block_end);
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

/* The likeliest tokens of d->row, whose best has probability best_prob; those of no probability are
 * left out, as token -1. */
static void decode_keep_top_(Decode *d, i32 pos, i32 best, f32 best_prob) {
    const SampleParams all = {.top_k = d->p.n_top, .top_p = 2}; /* beyond where f32 reaches 1 */
    i32 n = sample_filter_(d->row, d->m->n_vocab, &all, d->row[best], 1.0f / best_prob, d->heap);
    for (i32 i = 0; i < d->p.n_top; i++) {
        i32 id = i < n ? d->heap[d->m->n_vocab - 1 - i] : -1;
        f32 prob = id < 0 ? 0 : kern_expf(d->row[id] - d->row[best]) * best_prob;
        d->tops[(i64)pos * DECODE_TOP_MAX + i] = (DecodeTop){id, prob};
    }
}

/* Does the score look at more of a row than the token chosen? */
static bool decode_scores_spread_(DecodeScore score) {
    return score == SCORE_MARGIN || score == SCORE_ENTROPY || score == SCORE_ENTROPY_NEAR;
}

static f64 decode_spread_(const Decode *d, DecodeScore score, i32 i, const SampleTools *tools) {
    i32 n = d->m->n_vocab, best = d->best[i];
    if (score == SCORE_MARGIN) return sample_margin(d->row, n, best, d->best_prob[i]);
    return -sample_entropy(d->row, n, best, d->best_prob[i], tools);
}

/* Classifier-free guidance, as LLaDA has it (Nie et al. 2025): blind + (scale + 1) * (row - blind).
 * Finds the best token of what that makes of d->row. */
static void decode_mix_(Decode *d, const f32 *blind, i32 banned, i32 *best, f32 *prob) {
    f32 sum = 1, grow = d->p.cfg_scale + 1;
    for (i32 i = 0; i < d->m->n_vocab; i++)
        d->row[i] = blind[i] + grow * (d->row[i] - blind[i]);
    if (banned >= 0) d->row[banned] = KERN_MINUS_INF;
    *best = ref_top1(d->row, d->m->n_vocab, &sum);
    *prob = 1.0f / sum;
}

/* A target's row of the backend's logits as d->row; if it is guided, mixed with its blind one. */
static void decode_fetch_(Decode *d, i32 i, f32 *logits, i32 banned) {
    const DlmOps *ops = d->m->ops;
    u64 n_vocab = (u64)d->m->n_vocab;
    d->row = ops->on_host ? logits : d->copy;
    if (!ops->on_host)
        ops->download(ops->self, d->copy, logits, n_vocab * (1 + d->guided) * sizeof *logits);
    if (d->guided) decode_mix_(d, d->row + n_vocab, banned, &d->best[i], &d->best_prob[i]);
}

static SampleTools decode_tools_(const Decode *d) {
    const DlmOps *ops = d->m->ops;
    return (SampleTools){d->heap, ops->exps ? ops->exps : ref_exps};
}

/* The random number of target i: the same in whichever forwards the prompt and finished blocks were
 * run. */
static f64 decode_uniform_(const Decode *d, i32 i) {
    i32 draw = d->n_forwards[PHASE_DENOISE] + d->n_forwards[PHASE_AR];
    return sample_uniform(d->p.sample.seed, d->targets[i], draw);
}

/* The number of likeliest tokens that may do in place of a row; 0: all of it is wanted. */
static i32 decode_few_(const Decode *d) {
    const SampleParams *p = &d->p.sample;
    bool filters = p->top_k > 0 || p->top_p < 1 || p->min_p > 0;
    i32 n = MIN_OF(p->top_k > 0 ? p->top_k : DLM_TOP_K_MAX, DLM_TOP_K_MAX);
    if (!d->m->ops->top_k || !filters || p->temperature <= 0 || d->guided || d->p.n_top > 0 ||
        decode_changes_logits_(&d->p) || decode_scores_spread_(DECODE_RULES[d->p.rule].score))
        return 0;
    return n <= d->m->n_vocab ? n : 0;
}

/* As decode_choose_ from the n likeliest tokens alone, which the backend finds. False when they do not
 * hold all that the filters let through. */
static bool decode_choose_few_(Decode *d, i32 i, const f32 *logits, i32 n) {
    const Model *m = d->m;
    const SampleTools tools = decode_tools_(d);
    i32 ids[DLM_TOP_K_MAX];
    if (n == 0) return false;
    m->ops->top_k(m->ops->self, logits, m->n_vocab, n, ids, d->copy);
    if (!sample_enough(d->copy, n, &d->p.sample, d->best_prob[i])) return false;
    i32 at = sample_token(d->copy, n, &d->p.sample, 0, d->best_prob[i], decode_uniform_(d, i),
                          &tools, &d->best_prob[i]);
    d->best[i] = ids[at];
    d->scores[i] = (f64)d->best_prob[i];
    return true;
}

/* Chooses the token of target i, whose likeliest one is known, from all of its row. */
static void decode_choose_(Decode *d, i32 i) {
    const Model *m = d->m;
    const DecodeScore score = DECODE_RULES[d->p.rule].score;
    bool spread = decode_scores_spread_(score);
    const SampleTools tools = decode_tools_(d);
    if (decode_changes_logits_(&d->p)) decode_change_row_(d, &d->best[i], &d->best_prob[i]);
    if (d->p.n_top) decode_keep_top_(d, d->targets[i], d->best[i], d->best_prob[i]);
    f64 width = spread ? decode_spread_(d, score, i, &tools) : 0;
    d->best[i] = sample_token(d->row, m->n_vocab, &d->p.sample, d->best[i], d->best_prob[i],
                              decode_uniform_(d, i), &tools, &d->best_prob[i]);
    d->scores[i] = spread ? width : (f64)d->best_prob[i];
}

/* Takes n rows of logits [n][n_vocab], the backend's, from row `first` of the plan on, and chooses a
 * token for the target of each: best[], best_prob[], and its score. A guided target has two rows, which
 * come together. Each row of a plan comes once, then decode_absorb follows. */
static bool decode_take(Decode *d, f32 *logits, i32 first, i32 n, Err *e) {
    const Model *m = d->m;
    i32 mask = m->decode.mask_id, banned = mask >= 0 && !tok_is_eog(m->tok, mask) ? mask : -1;
    i32 each = 1 + d->guided, begin = first / each, end = begin + n / each, few = decode_few_(d);
    ASSERT(first % each == 0 && n % each == 0 && end <= d->n_targets);
    bool whole = d->guided || d->p.sample.temperature > 0 || d->p.n_top > 0 ||
                 decode_changes_logits_(&d->p) ||
                 decode_scores_spread_(DECODE_RULES[d->p.rule].score);
    if (!d->guided)
        m->ops->top1(m->ops->self, logits, n, m->n_vocab, banned, d->best + begin,
                     d->best_prob + begin);
    for (i32 i = begin; i < end; i++) {
        f32 *row = logits + (i64)(i - begin) * each * m->n_vocab;
        if (whole && !few) decode_fetch_(d, i, row, banned);
        /* the best logit's own term makes the softmax sum at least 1 */
        if (!(d->best_prob[i] > 0 && d->best_prob[i] <= 1))
            return err_set(
                e, ERR_MODEL,
                "%s: the model's output at position %d is not a number; its weights are damaged",
                m->file->label, d->targets[i]);
        d->scores[i] = (f64)d->best_prob[i];
        if (!whole || decode_choose_few_(d, i, row, few)) continue;
        if (few) decode_fetch_(d, i, row, banned);
        decode_choose_(d, i);
    }
    return true;
}

/* Moves on, when all targets of the plan have been taken. */
static bool decode_absorb(Decode *d, const DecodeEvents *ev, Err *e) {
    DecodePhase phase = d->phase;
    d->n_reveals = 0;
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
    if (d->phase == PHASE_DENOISE) decode_leave_block_(d); /* a commit can fill a block of one */
    if (d->finish && (d->p.early_stop || ar)) d->phase = PHASE_DONE;
    decode_send_(d, ev, d->phase == PHASE_DONE);
    return true;
}

#endif

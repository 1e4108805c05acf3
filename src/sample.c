/* sample.c - choosing a token from a row of logits.
 *
 * Owns:      nothing; the candidate heap is the caller's.
 * Stands on: base kern_ref
 * Promises:  the same (logits, parameters, seed, position, step) give the same token, whatever else
 *            runs.
 *
 * Filters apply in llama.cpp's order: top-k, top-p, min-p on the plain softmax, then temperature on
 * what is left. The confidence of a token is always its plain probability (temperature 1,
 * unfiltered): a tempered one would flood the reveal threshold. */
#ifndef DLM_SAMPLE_C
#define DLM_SAMPLE_C

#include "base.c"
#include "kern_ref.c"

typedef struct {
    f32 temperature; /* 0: the likeliest token */
    i32 top_k;       /* 0: off */
    f32 top_p;       /* 1: off */
    f32 min_p;       /* 0: off */
    u64 seed;
} SampleParams;

/* splitmix64 (Steele, Lea, Flood 2014): one call, one well-mixed 64-bit value. */
static u64 sample_mix_(u64 z) {
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* A number in [0, 1) that depends on the seed, the position and the step alone. */
static f64 sample_uniform(u64 seed, i32 pos, i32 step) {
    u64 z = sample_mix_(sample_mix_(seed) ^ ((u64)(u32)pos << 32 | (u32)step));
    return (f64)(z >> 11) * 0x1p-53;
}

/* True when a comes before b: higher logit first, then lower id. */
static bool sample_before_(const f32 *logits, i32 a, i32 b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
}

static void sample_sift_(const f32 *logits, i32 *heap, i32 n, i32 at) {
    for (;;) {
        i32 child = 2 * at + 1;
        if (child >= n) return;
        if (child + 1 < n && sample_before_(logits, heap[child + 1], heap[child])) child++;
        if (!sample_before_(logits, heap[child], heap[at])) return;
        i32 swap = heap[at];
        heap[at] = heap[child];
        heap[child] = swap;
        at = child;
    }
}

/* Does a filter stop before the next likeliest token, of exp(logit - max) e, when those before it have
 * `mass`? */
static bool sample_stops_(const SampleParams *p, f32 mass, f32 sum_exp, f32 e) {
    return mass >= p->top_p * sum_exp || e < p->min_p || e == 0;
}

/* Are the n largest logits of a row, largest first, all that the filters let through? They are then as
 * good as the row. */
static bool sample_enough(const f32 *largest, i32 n, const SampleParams *p, f32 best_prob) {
    f32 mass = 1, sum_exp = 1.0f / best_prob;
    bool enough = p->top_k > 0 && p->top_k <= n;
    for (i32 i = 1; i < n && !enough; i++) {
        f32 e = kern_expf(largest[i] - largest[0]);
        enough = sample_stops_(p, mass, sum_exp, e);
        mass += e;
    }
    return enough;
}

/* Makes a heap of the ids whose logits are in (low, high]; returns how many. */
static i32 sample_band_(const f32 *logits, i32 n, f32 low, f32 high, i32 *heap) {
    i32 m = 0;
    for (i32 i = 0; i < n; i++)
        if (logits[i] > low && logits[i] <= high) heap[m++] = i;
    for (i32 i = m / 2 - 1; i >= 0; i--) sample_sift_(logits, heap, m, i);
    return m;
}

/* Pops the likeliest ids off a heap until a filter says enough; they end up, likeliest first, at the end
 * of `heap`, which has room for n. As a rule few are wanted, and their logits are near the largest: the
 * heap is of a band below that one, and where these were not enough, of the next. Returns their number;
 * none where all logits are minus infinity. */
#define SAMPLE_BAND 2.0f       /* nats */
#define SAMPLE_BAND_MAX 128.0f /* beyond, exp is 0 */
static i32 sample_filter_(const f32 *logits, i32 n, const SampleParams *p, f32 max, f32 sum_exp,
                          i32 *heap) {
    i32 k_max = p->top_k > 0 ? MIN_OF(p->top_k, n) : n, kept = 0;
    f32 mass = 0, high = max, low;
    for (f32 depth = SAMPLE_BAND;; depth *= 2, high = low) {
        low = depth > SAMPLE_BAND_MAX ? KERN_MINUS_INF : max - depth;
        for (i32 m = sample_band_(logits, n, low, high, heap); m > 0;) {
            f32 e = kern_expf(logits[heap[0]] - max);
            if (kept == k_max || (kept > 0 && sample_stops_(p, mass, sum_exp, e))) return kept;
            mass += e;
            i32 id = heap[0];
            heap[0] = heap[--m];
            sample_sift_(logits, heap, m, 0);
            heap[n - 1 - kept++] = id;
        }
        if (low == KERN_MINUS_INF) return kept;
    }
}

typedef struct {
    i32 *heap; /* scratch for n ids */
    void (*exps)(f32 *y, const f32 *x, f32 max, f32 scale, i32 n); /* DlmOps.exps */
} SampleTools;

#define SAMPLE_BITE 256
#define SAMPLE_STRIDE 16
#define SAMPLE_RUNS 256 /* of bites: their sums tell in which of them a drawn token is */

/* Candidates of a tempered softmax: those of ids, downwards from there, or all where ids is NULL. */
typedef struct {
    const f32 *logits;
    const i32 *ids;
    i32 n;
    f32 max, inv_t;
    const SampleTools *tools;
    f32 *terms; /* [SAMPLE_BITE] */
} SampleSoftmax_;

static i32 sample_id_(const SampleSoftmax_ *s, i32 i) {
    return s->ids ? s->ids[-i] : i;
}

/* Computes the terms from candidate `at` on; returns how many. */
static i32 sample_terms_(SampleSoftmax_ *s, i32 at) {
    i32 n = MIN_OF(s->n - at, SAMPLE_BITE);
    const f32 *x = s->ids ? s->terms : s->logits + at;
    for (i32 i = 0; s->ids && i < n; i++) s->terms[i] = s->logits[sample_id_(s, at + i)];
    s->tools->exps(s->terms, x, s->max, s->inv_t, n);
    return n;
}

/* Their sum, in four chains: one addition need not wait for the one before. */
static f64 sample_sum_(const f32 *terms, i32 n) {
    f64 a = 0, b = 0, c = 0, d = 0;
    i32 i = 0;
    for (; i + 4 <= n; i += 4)
        a += terms[i], b += terms[i + 1], c += terms[i + 2], d += terms[i + 3];
    for (; i < n; i++) a += terms[i];
    return (a + b) + (c + d);
}

/* Draws a token. `best` and `best_prob` are the likeliest token and its softmax probability
 * (DlmOps.top1). *prob receives the plain softmax probability of the token drawn. */
static i32 sample_token(const f32 *logits, i32 n, const SampleParams *p, i32 best, f32 best_prob,
                        f64 uniform, const SampleTools *tools, f32 *prob) {
    *prob = best_prob;
    if (p->temperature <= 0) return best;
    f32 max = logits[best];
    f32 terms[SAMPLE_BITE];
    SampleSoftmax_ s = {.logits = logits,
                        .n = n,
                        .max = max,
                        .inv_t = 1.0f / p->temperature,
                        .tools = tools,
                        .terms = terms};
    if (p->top_k > 0 || p->top_p < 1 || p->min_p > 0) {
        s.n = sample_filter_(logits, n, p, max, 1.0f / best_prob, tools->heap);
        s.ids = tools->heap + n - 1;
    }
    f64 total = 0, sums[SAMPLE_RUNS];
    i32 n_bites = (s.n + SAMPLE_BITE - 1) / SAMPLE_BITE;
    i32 run = (n_bites + SAMPLE_RUNS - 1) / SAMPLE_RUNS * SAMPLE_BITE; /* candidates of a run */
    for (i32 at = 0; at < s.n; at += SAMPLE_BITE) {
        f64 sum = sample_sum_(s.terms, sample_terms_(&s, at));
        sums[at / run] = at % run ? sums[at / run] + sum : sum;
        total += sum;
    }
    f64 left = uniform * total;
    i32 chosen = best, at = 0;
    for (; at + run < s.n && left >= sums[at / run]; at += run) left -= sums[at / run];
    for (; at < s.n && left >= 0; at += SAMPLE_BITE) { /* from the run that the token is in */
        i32 m = sample_terms_(&s, at), i = 0;
        for (f64 sum; i + SAMPLE_STRIDE < m; i += SAMPLE_STRIDE, left -= sum)
            if (left < (sum = sample_sum_(terms + i, SAMPLE_STRIDE))) break;
        for (; i < m && left >= 0; i++) {
            if (terms[i] > 0) /* rounding may leave a crumb past the last: it is the last's */
                chosen = sample_id_(&s, at + i);
            left -= terms[i];
        }
    }
    *prob = kern_expf(logits[chosen] - max) * best_prob;
    return chosen;
}

/* How far the likeliest token's probability is above the next one's. */
static f64 sample_margin(const f32 *logits, i32 n, i32 best, f32 best_prob) {
    f32 next = KERN_MINUS_INF;
    for (i32 i = 0; i < n; i++)
        if (i != best) next = MAX_OF(next, logits[i]);
    return (f64)best_prob * (1 - (f64)kern_expf(next - logits[best]));
}

/* The entropy of a row's softmax, in nats: log of the sum of exponentials, less their mean logit;
 * both with the best logit as zero. */
static f64 sample_entropy(const f32 *logits, i32 n, i32 best, f32 best_prob,
                          const SampleTools *tools) {
    f64 mean = 0;
    f32 terms[SAMPLE_BITE];
    for (i32 at = 0; at < n; at += SAMPLE_BITE) {
        i32 n_terms = MIN_OF(n - at, SAMPLE_BITE);
        tools->exps(terms, logits + at, logits[best], 1, n_terms);
        for (i32 i = 0; i < n_terms; i++) /* the mask's logit is minus infinity */
            if (terms[i] > 0) mean += (f64)terms[i] * (f64)(logits[at + i] - logits[best]);
    }
    return -kern_log((f64)best_prob) - mean * (f64)best_prob;
}

#endif

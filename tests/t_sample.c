/* t_sample.c - drawing tokens: the filters against a sorted textbook version, the frequencies against
 * the distribution, and the promise that a draw depends on nothing but its arguments. */
#include "../src/sample.c"
#include "test.h"

#define N 50
static u64 rng = 3;
static i32 heap[N];
static const SampleTools tools = {heap, ref_exps};

static f64 plain_probs(const f32 *logits, f64 *p) {
    f64 max = -1e30, sum = 0;
    for (int i = 0; i < N; i++) max = MAX_OF(max, (f64)logits[i]);
    for (int i = 0; i < N; i++) sum += p[i] = kern_exp((f64)logits[i] - max);
    for (int i = 0; i < N; i++) p[i] /= sum;
    return sum;
}

static i32 best_of(const f32 *logits, f32 *prob) {
    f32 sum = 1;
    i32 best = ref_top1(logits, N, &sum);
    *prob = 1.0f / sum;
    return best;
}

/* Which tokens the filters keep, by sorting everything: top-k, then top-p, then min-p. */
static void textbook_filter(const f64 *p, const SampleParams *s, bool *keep) {
    i32 order[N];
    for (i32 i = 0; i < N; i++) order[i] = i, keep[i] = false;
    for (i32 i = 0; i < N; i++)
        for (i32 j = i + 1; j < N; j++)
            if (p[order[j]] > p[order[i]]) {
                i32 swap = order[i];
                order[i] = order[j];
                order[j] = swap;
            }
    f64 mass = 0;
    for (i32 i = 0; i < N; i++) {
        if (s->top_k > 0 && i >= s->top_k) break;
        if (i > 0 && mass >= (f64)s->top_p) break;
        if (i > 0 && p[order[i]] < (f64)s->min_p * p[order[0]]) break;
        keep[order[i]] = true;
        mass += p[order[i]];
    }
}

/* Draws many times: only kept tokens come, as often as the tempered distribution over them says, and
 * each with its plain probability. */
static void check_draws(const f32 *logits, const SampleParams *s) {
    enum { DRAWS = 20000 };
    f64 p[N], tempered[N], total = 0;
    bool keep[N];
    i32 seen[N] = {0};
    f32 best_prob, prob;
    plain_probs(logits, p);
    textbook_filter(p, s, keep);
    i32 best = best_of(logits, &best_prob);
    for (int i = 0; i < N; i++) {
        tempered[i] =
            keep[i] ? kern_exp(((f64)logits[i] - (f64)logits[best]) / (f64)s->temperature) : 0;
        total += tempered[i];
    }
    for (i32 d = 0; d < DRAWS; d++) {
        i32 t = sample_token(logits, N, s, best, best_prob, sample_uniform(s->seed, d, 0), &tools,
                             &prob);
        seen[t]++;
        if (!keep[t]) {
            CHECK_MSG(false, "token %d was filtered out and drawn", t);
            return;
        }
        if (d < 50) CHECK_NEAR(prob, p[t], 1e-5);
    }
    f64 worst = 0;
    for (int i = 0; i < N; i++) {
        f64 want = tempered[i] / total, diff = (f64)seen[i] / DRAWS - want;
        worst = MAX_OF(worst, diff < 0 ? -diff : diff);
    }
    CHECK_MSG(worst < 0.02, "a token's frequency is off by %g (k %d, p %g, min-p %g, T %g)", worst,
              s->top_k, (f64)s->top_p, (f64)s->min_p, (f64)s->temperature);
}

static void check_filters(void) {
    static const SampleParams cases[] = {
        {.temperature = 1, .top_p = 1},
        {.temperature = 0.5f, .top_p = 1},
        {.temperature = 2, .top_p = 1},
        {.temperature = 1, .top_k = 1, .top_p = 1},
        {.temperature = 1, .top_k = 5, .top_p = 1},
        {.temperature = 1, .top_k = 1000, .top_p = 1},
        {.temperature = 1, .top_p = 0.5f},
        {.temperature = 1.5f, .top_p = 0.9f, .min_p = 0.1f},
        {.temperature = 0.7f, .top_k = 8, .top_p = 0.95f, .min_p = 0.05f},
        {.temperature = 1, .top_p = 0, .seed = 9},
    };
    for (int round = 0; round < 3; round++) {
        f32 logits[N];
        for (int i = 0; i < N; i++) logits[i] = test_rng_f32(&rng) * (f32)(2 + 2 * round);
        for (size_t c = 0; c < COUNT_OF(cases); c++) check_draws(logits, &cases[c]);
    }
}

static void check_edges(void) {
    f32 logits[N], prob, best_prob;
    const SampleParams cold = {.temperature = 0, .top_p = 1}, hot = {.temperature = 1, .top_p = 1};
    for (int i = 0; i < N; i++) logits[i] = KERN_MINUS_INF;
    logits[7] = 3; /* one token is possible, whatever is drawn */
    i32 best = best_of(logits, &best_prob);
    CHECK_INT(best, 7);
    for (i32 d = 0; d < 100; d++)
        CHECK_INT(
            sample_token(logits, N, &hot, best, best_prob, sample_uniform(1, d, 2), &tools, &prob),
            7);
    CHECK_NEAR(prob, 1, 1e-6);
    CHECK_INT(sample_token(logits, N, &hot, best, best_prob, 0.9999999999999999, &tools, &prob), 7);
    for (int i = 0; i < N; i++) logits[i] = 1; /* ties: the lowest id at temperature 0 */
    best = best_of(logits, &best_prob);
    CHECK_INT(sample_token(logits, N, &cold, best, best_prob, 0.5, &tools, &prob), 0);
    CHECK_NEAR(prob, 1.0 / N, 1e-6);
    SampleParams three = {.temperature = 1, .top_k = 3, .top_p = 1};
    for (i32 d = 0; d < 200; d++) /* and the lowest ids are the top k */
        CHECK(sample_token(logits, N, &three, best, best_prob, sample_uniform(5, d, 0), &tools,
                           &prob) < 3);
}

/* Vocabularies of more than a bite: the draw is where the sum of the terms, one after another, passes u. */
static void check_bites(void) {
    enum { LONG = 3 * SAMPLE_BITE + 5 };
    static f32 logits[LONG], terms[LONG];
    static i32 ids[LONG];
    const SampleTools wide = {ids, ref_exps};
    const SampleParams warm = {.temperature = 0.8f, .top_p = 1};
    const i32 sizes[] = {1, SAMPLE_BITE - 1, SAMPLE_BITE, SAMPLE_BITE + 1, LONG};
    for (size_t k = 0; k < COUNT_OF(sizes); k++)
        for (i32 d = 0; d < 50; d++) {
            i32 n = sizes[k], want = 0;
            f32 sum, prob;
            f64 total = 0, u = sample_uniform(9, d, n), left;
            for (i32 i = 0; i < n; i++) logits[i] = (f32)(5 * sample_uniform(7, i, d));
            i32 best = ref_top1(logits, n, &sum);
            for (i32 i = 0; i < n; i++)
                total += terms[i] = kern_expf((logits[i] - logits[best]) * (1.0f / 0.8f));
            for (left = u * total; (left -= terms[want]) >= 0;) want++;
            CHECK_INT(sample_token(logits, n, &warm, best, 1 / sum, u, &wide, &prob), want);
            CHECK_NEAR(prob, (f64)(kern_expf(logits[want] - logits[best]) / sum), 1e-7);
        }
}

/* The same arguments give the same number; other ones another; all of it is in [0, 1) and even. */
static void check_uniform(void) {
    f64 sum = 0;
    i32 bins[10] = {0};
    for (i32 pos = 0; pos < 10000; pos++) {
        f64 u = sample_uniform(42, pos, 3);
        CHECK(u >= 0 && u < 1 && u == sample_uniform(42, pos, 3));
        sum += u;
        bins[(int)(u * 10)]++;
    }
    CHECK_NEAR(sum / 10000, 0.5, 0.01);
    for (int b = 0; b < 10; b++) CHECK(bins[b] > 850 && bins[b] < 1150);
    CHECK(sample_uniform(42, 1, 3) != sample_uniform(43, 1, 3));
    CHECK(sample_uniform(42, 1, 3) != sample_uniform(42, 3, 1));
}

int main(void) {
    check_filters();
    check_edges();
    check_bites();
    check_uniform();
    return test_end();
}

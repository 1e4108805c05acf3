/* t_tempo.c - the choice of auto: from made-up curves, from counted answers, from notes. */
#include "../src/tempo.c"

#include "test.h"

static Model model_(bool shift, ModelAttention attention, i32 mask_id) {
    static ModelLayer layer;
    static DlmOps ops = {.name = "test"};
    return (Model){.ops = &ops,
                   .layers = &layer,
                   .n_vocab = 100,
                   .name = STR("made up"),
                   .decode = {.mask_id = mask_id,
                              .block_size = 32,
                              .sub_block_size = 8,
                              .attention = attention,
                              .shift = shift}};
}

static Tempo curve_(const Model *m, f64 one, f64 sub, f64 block) {
    Tempo t;
    tempo_open(&t, m, 2, 512, -1);
    CHECK_EQ_INT(t.n_points, 3);
    t.ms[0] = one, t.ms[1] = sub, t.ms[2] = block;
    return t;
}

static DecodeParams choose_(Tempo *t, const Model *m, i32 n_streams) {
    DecodeParams p = decode_params_default();
    p.mode = DECODE_AUTO;
    tempo_choose(t, m, n_streams, &p);
    return p;
}

static void test_times(void) {
    const Model m = model_(true, ATTEND_BLOCK, 5);
    const Tempo t = curve_(&m, 10, 24, 96);
    CHECK(tempo_time_(&t, 1) == 10 && tempo_time_(&t, 8) == 24 && tempo_time_(&t, 32) == 96);
    CHECK(tempo_time_(&t, 4.5) == 17); /* half way */
    CHECK(tempo_time_(&t, 64) == 192); /* beyond, as steep as the last stretch */
    Model whole = m;
    whole.decode.sub_block_size = 32;
    Tempo two;
    tempo_open(&two, &whole, 2, 512, -1);
    CHECK_EQ_INT(two.n_points, 2);
    tempo_open(&two, &m, 2, 20, -1); /* a context too small for a block */
    CHECK(two.n_points == 3 && two.rows[2] == 20);
    tempo_open(&two, &m, 2, 2, -1);
    CHECK(two.n_points == 2 && two.rows[1] == 2);
}

static void test_machines(void) {
    const Model m = model_(true, ATTEND_BLOCK, 5);
    Tempo few = curve_(&m, 20, 60, 240); /* arithmetic is dear: few cores */
    CHECK_EQ_INT(choose_(&few, &m, 1).mode, DECODE_AR);
    Tempo many = curve_(&m, 20, 21, 24); /* memory is dear: many cores */
    DecodeParams p = choose_(&many, &m, 1);
    CHECK_EQ_INT(p.mode, DECODE_ITERATIVE);
    CHECK_EQ_INT(p.sub_block_size, 32);
    Tempo between = curve_(&m, 20, 22, 60); /* a block is dear, a sub-block is not */
    p = choose_(&between, &m, 1);
    CHECK_EQ_INT(p.mode, DECODE_ITERATIVE);
    CHECK(p.cache == CACHE_MODEL && p.sub_block_size == 0);
    /* eight answers at once fill a forward already: one token each is the cheaper way */
    Tempo busy = curve_(&m, 20, 22, 88);
    CHECK_EQ_INT(choose_(&busy, &m, 1).mode, DECODE_ITERATIVE);
    CHECK_EQ_INT(choose_(&busy, &m, 8).mode, DECODE_AR);
}

static void test_wishes(void) {
    Model m = model_(true, ATTEND_BLOCK, 5);
    Tempo t = curve_(&m, 20, 21, 24);
    DecodeParams p = decode_params_default();
    p.mode = DECODE_AUTO, p.sub_block_size = 8;
    tempo_choose(&t, &m, 1, &p);
    CHECK_EQ_INT(p.sub_block_size, 8);
    p = decode_params_default();
    for (i32 cache = CACHE_NONE; cache <= CACHE_MASKED; cache++) { /* what is named stays */
        p = decode_params_default();
        p.mode = DECODE_AUTO, p.cache = cache;
        tempo_choose(&t, &m, 1, &p);
        CHECK_EQ_INT(p.mode, DECODE_ITERATIVE);
        CHECK_EQ_INT(p.cache, cache);
    }
    Tempo keen = curve_(&m, 20, 21, 22); /* whole blocks were seen to need fewer forwards */
    keen.seen[2].forwards /= 2;
    p = decode_params_default();
    p.mode = DECODE_AUTO, p.sub_block_size = 8;
    tempo_choose(&keen, &m, 1, &p);
    CHECK(p.mode == DECODE_ITERATIVE && p.cache == CACHE_NONE);
    /* not made for next tokens: never ar, however slow blocks are */
    m = model_(false, ATTEND_FULL, 5);
    Tempo full = curve_(&m, 1, 100, 1000);
    CHECK_EQ_INT(choose_(&full, &m, 1).mode, DECODE_ITERATIVE);
    m = model_(true, ATTEND_CAUSAL, -1); /* made for nothing else */
    Tempo causal = curve_(&m, 20, 20, 20);
    CHECK_EQ_INT(choose_(&causal, &m, 1).mode, DECODE_AR);
}

/* What was counted replaces the guess: a model that reveals little at a time turns auto to ar. */
static void test_learning(void) {
    const Model m = model_(true, ATTEND_BLOCK, 5);
    Tempo t = curve_(&m, 20, 22, 60);
    i32 answers = 0;
    while (choose_(&t, &m, 1).mode != DECODE_AR && answers < 100) {
        DecodeResult r = {.n_forwards_denoise = 28, .n_forwards_commit = 1};
        r.n_rows = r.n_forwards_denoise * 8 + 5 * 24 + 32;
        r.ids.n = 32;
        tempo_note(&t, t.chosen, &r);
        answers++;
    }
    CHECK(answers >= 1 && answers < 20);
    /* an answer counts for its own way, whatever another one chose since */
    const TempoSeen before = t.seen[1];
    DecodeResult one_each = {.ids.n = 32, .n_forwards_ar = 31};
    tempo_note(&t, 0, &one_each);
    CHECK(t.seen[1].tokens == before.tokens && t.seen[1].forwards == before.forwards);
}

static void test_notes(void) {
    const Model m = model_(true, ATTEND_BLOCK, 5);
    const char *dir = "build/t_tempo";
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s && mkdir -p %s", dir, dir);
    CHECK_EQ_INT(system(command), 0);
    int fd = os_open_notes(dir, "tempo", TEMPO_NOTES_MAX);
    CHECK(fd >= 0);
    Tempo t = curve_(&m, 20, 22, 60);
    t.notes = fd;
    t.fresh = true;
    t.seen[1] = (TempoSeen){640, 200, 3200};
    tempo_write_notes(&t);
    tempo_write_notes(&t); /* nothing new: nothing written */
    os_close(&fd);

    fd = os_open_notes(dir, "tempo", TEMPO_NOTES_MAX);
    Tempo again;
    tempo_open(&again, &m, 2, 512, fd);
    CHECK(again.ms[0] == 20 && again.ms[1] == 22 && again.ms[2] == 60);
    CHECK(again.seen[1].tokens == 640 && again.seen[1].rows == 3200);
    os_close(&fd);

    fd = os_open_notes(dir, "tempo", TEMPO_NOTES_MAX); /* of another machine */
    tempo_open(&again, &m, 3, 512, fd);
    CHECK(again.ms[0] == 0);
    char zeros[96]; /* no counts to divide by */
    int n_zeros = snprintf(zeros, sizeof zeros, "dlm1 %016llx 9 9 9 0 0 0 0 0 0 0 0 0 0 0 0\n",
                           (unsigned long long)t.key);
    CHECK(write(fd, zeros, (size_t)n_zeros) == n_zeros);
    const char bad[] = "dlm1 x\n\n\xff\xff dlm1\ndlm1 0000000000000000 1 2";
    CHECK(write(fd, bad, sizeof bad) == sizeof bad);
    os_close(&fd);
    fd = os_open_notes(dir, "tempo", TEMPO_NOTES_MAX); /* damage is passed over */
    tempo_open(&again, &m, 2, 512, fd);
    CHECK(again.ms[0] == 20);
    os_close(&fd);

    fd = os_open_notes(dir, "tempo", 10); /* too long: anew */
    tempo_open(&again, &m, 2, 512, fd);
    CHECK(again.ms[0] == 0);
    os_close(&fd);
    CHECK(os_open_notes("build/t_tempo/absent/deep", "tempo", 10) < 0);
    fd = os_open_notes(dir, "/dev/null", 10); /* not a regular file */
    CHECK(fd < 0);
}

int main(void) {
    base_log_level = LOG_QUIET;
    test_times();
    test_machines();
    test_wishes();
    test_learning();
    test_notes();
    return test_end();
}

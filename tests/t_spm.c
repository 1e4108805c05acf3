/* t_spm.c - SentencePiece models: the fields that count, damage at every byte, refused memory. */
#include "../src/spm.c"
#include "test.h"

/* Two pieces, a trainer and a normalizer, as protocol buffers spell them. */
static const u8
    MODEL[] =
        {
            0x0a, 0x0c, 0x0a, 0x05, '<',  'u',  'n',  'k',  '>',
            0x15, 0,    0,    0,    0, /* no type yet */
            0x0a, 0x0c, 0x0a, 0x03, 0xe2, 0x96, 0x81, 0x15, 0,
            0,    0x80, 0xbf, 0x18, 0x04, 0x12, 0x0a, 0x18, 0x02,
            0xc0, 0x02, 0x07, 0xc8, 0x02, 0x08, 0xd0, 0x02, /* trainer, cut below */
};

static void test_good(void) {
    u8 model[64];
    size_t n = sizeof MODEL - 12;
    memcpy(model, MODEL, n);
    static const u8 rest[] = {0x12, 0x0b, 0x18, 0x02, 0xc0, 0x02, 0x07, 0xc8, 0x02,
                              0x08, 0xd0, 0x02, 0x09, 0x1a, 0x02, 0x18, 0x00};
    memcpy(model + n, rest, sizeof rest);
    n += sizeof rest;
    Spm s;
    Err e = {0};
    if (!CHECK_OK(spm_open(&s, model, n, "t.model", &e), e)) return;
    CHECK_INT(s.n, 2);
    CHECK_STR(s.pieces[0].text, STR("<unk>"));
    CHECK_INT(s.pieces[0].type, SPM_NORMAL);
    CHECK_STR(s.pieces[1].text, STR("\xe2\x96\x81"));
    CHECK_INT(s.pieces[1].type, SPM_USER);
    CHECK_NEAR(s.pieces[1].score, -1, 0);
    CHECK(s.kind == SPM_BPE && s.unk == 7 && s.bos == 8 && s.eos == 9 && s.pad == -1);
    CHECK(!s.space_prefix);
    spm_close(&s);
    for (size_t cut = 0; cut < n;
         cut++) { /* a shorter file is refused, or ends between two fields */
        u8 *p = test_guard_alloc(cut);
        memcpy(p, model, cut);
        bool ok = spm_open(&s, p, cut, "t.model", &(Err){0});
        CHECK_MSG(!ok || cut == 14 || cut == 28 || cut == n - 4, "%zu bytes are taken", cut);
        if (ok) spm_close(&s);
        test_guard_free(p);
    }
}

static void test_crimes(void) {
    static const struct {
        const char *p;
        size_t n;
    } bad[] = {
        {"", 0},
        {"\x0b\x00", 2},                                      /* a group */
        {"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11}, /* a length without end */
        {"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80", 12},
        {"\x0a\x02\x18\x07", 4},             /* a type that is none */
        {"\x0a\x05\x15\x00\x00\xc0\x7f", 7}, /* a score that is no number */
        {"\x0a\x02\x0a\x05", 4},             /* a text beyond its piece */
    };
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        Spm s;
        Err e = {0};
        CHECK_MSG(!spm_open(&s, (const u8 *)bad[i].p, bad[i].n, "t.model", &e), "taken: %zu", i);
        CHECK_ERR(e, ERR_MODEL, "t.model");
    }
}

#ifdef DLM_TEST_ALLOC
static bool open_and_close(void *arg, Err *e) {
    (void)arg;
    Spm s;
    if (!spm_open(&s, MODEL, 28, "t.model", e)) return false;
    spm_close(&s);
    return true;
}
#endif

int main(void) {
    test_good();
    test_crimes();
#ifdef DLM_TEST_ALLOC
    CHECK_INT(test_alloc_failures(open_and_close, NULL), 1);
#endif
    return test_end();
}

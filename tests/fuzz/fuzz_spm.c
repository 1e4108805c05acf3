/* fuzz_spm.c - any bytes: the reader refuses them or keeps its promises. */
#include "../../src/spm.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    Spm s;
    Err e = {0};
    if (!spm_open(&s, data, n, "fuzz", &e)) {
        ASSERT(e.code != ERR_NONE && e.msg[0]);
        return 0;
    }
    u64 sum = 0;
    for (u32 i = 0; i < s.n; i++) {
        const SpmPiece *p = &s.pieces[i];
        ASSERT(p->type >= SPM_NORMAL && p->type <= SPM_BYTE);
        sum += str_hash(p->text);
    }
    volatile u64 keep = sum;
    (void)keep;
    spm_close(&s);
    return 0;
}

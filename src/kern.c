/* kern.c - the CPU backend: picks a kernel level, brings weights into shape, runs ops over the pool.
 *
 * Owns:      the backend's scratch buffers and the matrices it repacked.
 * Stands on: base mem os pool quant kern_ref kern_x86 kern_arm
 * Promises:  threads split outputs, rows or heads, never one sum: results do not depend on the
 *            thread count; no op allocates once `reserve` has succeeded. */
#ifndef DLM_KERN_C
#define DLM_KERN_C

#include "base.c"
#include "kern_arm.c"
#include "kern_ref.c"
#include "kern_x86.c"
#include "mem.c"
#include "os.c"
#include "pool.c"
#include "quant.c"

/* ---- levels ---- */

static const DlmKernels *
kern_simd_level_(int i) { /* on each machine one of the two rooms is empty */
    const DlmKernels *level = kern_x86_level(i);
    return level ? level : kern_arm_level(i);
}

/* The i-th level of this machine, best first and "ref" last; NULL past the end. */
static const DlmKernels *kern_level(int i) {
    const DlmKernels *level = kern_simd_level_(i);
    if (level) return level;
    return i == 0 || kern_simd_level_(i - 1) ? &KERN_REF : NULL;
}

/* The named level, or the best one for NULL. */
static const DlmKernels *kern_choose(const char *name, Err *e) {
    char have[128] = "";
    for (int i = 0; kern_level(i); i++) {
        if (!name || strcmp(name, kern_level(i)->name) == 0) return kern_level(i);
        size_t n = strlen(have);
        snprintf(have + n, sizeof have - n, "%s%s", i ? ", " : "", kern_level(i)->name);
    }
    err_set(e, ERR_USAGE, "CPU level '%s' is unknown or not available on this machine; it has: %s",
            name ? name : "", have);
    return NULL;
}

/* ---- the backend ---- */

typedef struct Cpu Cpu;

/* An op that waits; see "ops over rows". */
typedef struct CpuRowOp CpuRowOp;
struct CpuRowOp {
    void (*fn)(const Cpu *c, const CpuRowOp *op, i32 begin, i32 end); /* of the rows */
    f32 *y;
    const f32 *x;
    i32 n;     /* elements of a row */
    i64 total; /* of all rows, where they are elements one by one */
    i64 cost;  /* of a row, in multiply-adds */
    union {
        struct {
            const f32 *gain;
            f32 eps;
        } norm;
        DlmAct act;
        i32 block; /* quantize: inputs per scale */
        struct {
            const DlmRow *rows;
            i32 n_head, head_dim, n_rot;
            const f32 *turns;
            DlmRope kind;
        } rope;
        struct {
            const DlmRow *rows;
            DlmKv *kv;
            i32 layer;
            const f32 *v;
        } store;
    } as;
};

#define CPU_CHAIN_MAX 4
typedef struct {
    CpuRowOp ops[CPU_CHAIN_MAX];
    i32 n, n_rows;
    bool chunks; /* the rows are but pieces of a lone op on elements */
} CpuChain;

struct Cpu {
    Pool *pool;
    const DlmKernels *k;
    CpuChain chain;
    i32 n_rows_max, q_stride_max, n_cell_max;
    i8 *q;           /* [n_rows_max][q_stride_max] quantized activations */
    f32 *inv_scale;  /* [n_rows_max] */
    i32 *sum;        /* [n_rows_max] */
    f32 *block_d;    /* [n_rows_max][q_stride_max / 32] scales of block activations */
    i16 *block_sums; /* [n_rows_max][q_stride_max / 8] */
    f32 *scores;     /* [threads][DLM_ATTEND_Q][n_cell_max] */
    u8 *tables;      /* [threads][k->tables_bytes] */
    char error[ERR_MSG_MAX];
};

/* Work below this many multiply-adds is not worth waking a thread for (a wake costs a few
 * microseconds). */
#define CPU_MACS_PER_SPLIT 200000

static i32 cpu_grain_(i64 macs_per_item) {
    i64 grain = CPU_MACS_PER_SPLIT / MAX_OF(macs_per_item, 1);
    return (i32)MIN_OF(MAX_OF(grain, 1), 1 << 20);
}

/* ---- ops over rows ----
 *
 * What is done to each row by itself waits for an op that looks at rows in another way, and then runs
 * as one loop, a few rows from their first op to their last while they lie in the cache: the threads
 * wait for each other once, and memory is passed over once. Rows do not wait for each other's results,
 * as a row's ops do, and a processor works at several of them at once. */

#define CPU_CHAIN_FLOATS 2048 /* of the rows that go from op to op together */

static void cpu_chain_rows_(void *arg, i32 begin, i32 end, i32 thread) {
    const Cpu *c = arg;
    (void)thread;
    i32 few = MAX_OF(CPU_CHAIN_FLOATS / c->chain.ops[0].n, 1);
    for (i32 r = begin; r < end; r += few)
        for (i32 i = 0; i < c->chain.n; i++)
            c->chain.ops[i].fn(c, &c->chain.ops[i], r, MIN_OF(r + few, end));
}

/* Runs what waits. Where nothing does it only looks, so that threads may do so at the same time. */
static void cpu_flush(void *self) {
    Cpu *c = self;
    CpuChain *chain = &c->chain;
    i64 cost = 0;
    if (chain->n == 0) return;
    for (i32 i = 0; i < chain->n; i++) cost += chain->ops[i].cost;
    pool_for(c->pool, chain->n_rows, cpu_grain_(cost), cpu_chain_rows_, c);
    chain->n = 0;
}

/* Lets op wait, behind what it can follow row by row: rows of x, which op reads. */
static void cpu_wait_(Cpu *c, i32 n_rows, const CpuRowOp *op) {
    CpuChain *chain = &c->chain;
    CpuRowOp *first = &chain->ops[0];
    if (chain->n && chain->chunks && first->y == op->x && first->total == (i64)n_rows * op->n) {
        first->cost = first->cost / first->n * op->n;
        first->n = op->n;
        chain->n_rows = n_rows;
        chain->chunks = false;
    }
    if (chain->n && (chain->chunks || chain->n_rows != n_rows || chain->n == CPU_CHAIN_MAX))
        cpu_flush(c);
    chain->chunks = false;
    chain->n_rows = n_rows;
    chain->ops[chain->n++] = *op;
}

/* The same for elements one by one: rows of any length may follow. */
#define CPU_CHUNK 1024
static void cpu_wait_elements_(Cpu *c, CpuRowOp op) {
    cpu_flush(c);
    op.n = CPU_CHUNK;
    op.cost *= CPU_CHUNK;
    c->chain = (CpuChain){{op}, 1, (i32)((op.total + CPU_CHUNK - 1) / CPU_CHUNK), .chunks = true};
}

/* ---- memory ---- */

static void *cpu_alloc(void *self, u64 n_bytes) {
    (void)self;
    return mem_alloc(n_bytes, NULL);
}

static void cpu_free(void *self, void *p) {
    (void)self;
    mem_free(p);
}

static void cpu_copy(void *self, void *dst, const void *src, u64 n_bytes) {
    cpu_flush(self);
    memcpy(dst, src, n_bytes);
}

static const char *cpu_reserve(void *self, i32 n_rows_max, i32 n_in_max, i32 n_cell_max) {
    Cpu *c = self;
    Err e = {0};
    c->n_rows_max = n_rows_max;
    c->q_stride_max = kern_padded(n_in_max);
    /* whole cache lines, an odd number of them: threads share none, and the scores of a cell do not
     * all fall into one set of the cache */
    c->n_cell_max = ((n_cell_max + 31) & ~31) + 16;
    c->q = mem_alloc_n((u64)n_rows_max, (u64)c->q_stride_max, &e);
    c->inv_scale = mem_alloc_n((u64)n_rows_max, sizeof(f32), &e);
    c->sum = mem_alloc_n((u64)n_rows_max, sizeof(i32), &e);
    c->block_d = mem_alloc_n((u64)n_rows_max * (u64)c->q_stride_max / 32, sizeof(f32), &e);
    c->block_sums = mem_alloc_n((u64)n_rows_max * (u64)c->q_stride_max / 8, sizeof(i16), &e);
    c->scores = mem_alloc_n((u64)pool_threads(c->pool) * DLM_ATTEND_Q * (u64)c->n_cell_max,
                            sizeof(f32), &e);
    if (c->k->tables_bytes)
        c->tables = mem_alloc_n((u64)pool_threads(c->pool), (u64)c->k->tables_bytes, &e);
    if (e.code == ERR_NONE) return NULL;
    memcpy(c->error, e.msg, sizeof c->error);
    return c->error;
}

/* ---- weights ---- */

typedef struct {
    const DlmTensor *t;
    u8 *tiles;
    f32 *scales;    /* [groups][n_blocks][16] */
    u8 *codes;      /* [threads][padded n_in] */
    f32 *row_scale; /* [threads][n_blocks] */
    i32 n_blocks, n_tiles;
    atomic_bool twos; /* some code is 3 */
} Repack;

/* Spreads one row's codes over its tiles: input 16 t + 4 l + k goes to byte 4 o + k, bits 2l. Four
 * at a time. Returns whether one of them is 3. */
static bool cpu_tile_row_(u8 *tiles, const u8 *codes, i32 n_tiles, i32 o) {
    u32 both = 0;
    for (i32 t = 0; t < n_tiles; t++) {
        const u8 *c = codes + 16 * t;
        u32 four =
            load_u32(c) | load_u32(c + 4) << 2 | load_u32(c + 8) << 4 | load_u32(c + 12) << 6;
        both |= four & four >> 1;
        memcpy(tiles + (i64)t * DLM_TILE_BYTES + 4 * o, &four, sizeof four);
    }
    return (both & 0x55555555) != 0;
}

static void cpu_repack_groups_(void *arg, i32 begin, i32 end, i32 thread) {
    Repack *r = arg;
    i64 n_in = r->t->n_in, padded = (i64)r->n_tiles * DLM_TILE_IN;
    u8 *codes = r->codes + thread * padded;
    f32 *row_scale = r->row_scale + (i64)thread * r->n_blocks;
    for (i32 g = begin; g < end; g++)
        for (i32 o = 0; o < DLM_TILE_OUT; o++) {
            i64 row = (i64)g * DLM_TILE_OUT + o;
            memset(codes, 1, (size_t)padded);
            if (row < r->t->n_out)
                quant_codes_row(r->t, row, codes, row_scale);
            else
                memset(row_scale, 0, (size_t)r->n_blocks * sizeof *row_scale);
            for (i32 b = 0; b < r->n_blocks; b++) {
                f32 s = row_scale[b] * r->t->extra_scale;
                if (s == 0)
                    memset(codes + b * (n_in / r->n_blocks), 1, (size_t)(n_in / r->n_blocks));
                r->scales[((i64)g * r->n_blocks + b) * DLM_TILE_OUT + o] = s;
            }
            if (cpu_tile_row_(r->tiles + (i64)g * r->n_tiles * DLM_TILE_BYTES, codes, r->n_tiles,
                              o))
                atomic_store_explicit(&r->twos, true, memory_order_relaxed);
        }
}

/* One scale for the whole matrix? Blocks of zeros have scale 0 and fit any. */
static bool cpu_one_scale_(const f32 *scales, i64 n, f32 *scale) {
    *scale = 0;
    for (i64 i = 0; i < n; i++) {
        if (scales[i] == 0 || scales[i] == *scale) continue;
        if (*scale != 0) return false;
        *scale = scales[i];
    }
    return true;
}

static bool cpu_scales_finite_(const f32 *scales, i64 n) {
    for (i64 i = 0; i < n; i++)
        if (!(f32_abs_(scales[i]) < 1e30f)) return false;
    return true;
}

static bool cpu_repack_(Cpu *c, DlmMat *m, const DlmTensor *t, Err *e) {
    i32 groups = (i32)((t->n_out + DLM_TILE_OUT - 1) / DLM_TILE_OUT);
    Repack r = {.t = t};
    r.n_tiles = (i32)((t->n_in + DLM_TILE_IN - 1) / DLM_TILE_IN);
    r.n_blocks = (i32)(t->n_in / quant_scale_block(t));
    i64 n_scales = (i64)groups * r.n_blocks * DLM_TILE_OUT;
    u64 threads = (u64)pool_threads(c->pool);
    r.tiles = mem_alloc_n((u64)groups * (u64)r.n_tiles, DLM_TILE_BYTES, e);
    r.scales = mem_alloc_n((u64)n_scales, sizeof(f32), e);
    r.codes = mem_alloc_n(threads, (u64)r.n_tiles * DLM_TILE_IN, e);
    r.row_scale = mem_alloc_n(threads, (u64)r.n_blocks * sizeof(f32), e);
    bool ok = r.tiles && r.scales && r.codes && r.row_scale;
    if (ok) os_want_huge_pages(r.tiles, (u64)groups * (u64)r.n_tiles * DLM_TILE_BYTES);
    if (ok) {
        pool_for(c->pool, groups, cpu_grain_(16 * t->n_in * 8), cpu_repack_groups_, &r);
        if (!cpu_scales_finite_(r.scales, n_scales))
            ok = err_set(e, ERR_MODEL,
                         "tensor %s has a scale that is not a finite number: the file is damaged",
                         t->name);
    }
    *m = (DlmMat){.kind = DLM_MAT_TERNARY,
                  .type = t->type,
                  .n_in = (i32)t->n_in,
                  .n_out = (i32)t->n_out,
                  .data = r.tiles,
                  .owned = r.tiles,
                  .scales = r.scales,
                  .owned_scales = r.scales,
                  .scale_block = quant_scale_block(t),
                  .twos = atomic_load(&r.twos)};
    m->owned_bytes = (u64)groups * (u64)r.n_tiles * DLM_TILE_BYTES;
    if (ok && cpu_one_scale_(r.scales, n_scales, &m->scale)) {
        mem_free(r.scales);
        m->scales = m->owned_scales = NULL;
    } else {
        m->owned_bytes += (u64)n_scales * sizeof(f32);
    }
    mem_free(r.codes);
    mem_free(r.row_scale);
    return ok;
}

typedef struct {
    const DlmKernels *k;
    const DlmMat *m;
    u8 *to;
} Strips;

static void cpu_strips_(void *arg, i32 begin, i32 end, i32 thread) {
    const Strips *s = arg;
    (void)thread;
    i64 bytes = s->k->strip_bytes(s->m);
    for (i32 i = begin; i < end; i++) s->k->strip(s->to + i * bytes, s->m, i * DLM_STRIP_OUT);
}

/* Blocks as the level wants them, beside those of the file, whose rows can still be read. */
static bool cpu_strip_(Cpu *c, DlmMat *m, Err *e) {
    i32 n = (m->n_out + DLM_STRIP_OUT - 1) / DLM_STRIP_OUT;
    Strips s = {.k = c->k, .m = m};
    u64 bytes = c->k->strip_bytes ? (u64)n * (u64)c->k->strip_bytes(m) : 0;
    if (!bytes) return true;
    s.to = mem_alloc(bytes, e);
    if (!s.to) return false;
    os_want_huge_pages(s.to, bytes);
    pool_for(c->pool, n, 1, cpu_strips_, &s);
    m->owned = s.to;
    m->owned_bytes = bytes;
    return true;
}

/* Dense weights stay where they lie; ternary ones are repacked into tiles, and blocks into strips
 * where the level has them. */
static const char *cpu_mat_load(void *self, DlmMat *m, const DlmTensor *t) {
    Cpu *c = self;
    Err e = {0};
    *m = (DlmMat){
        .type = t->type, .n_in = (i32)t->n_in, .n_out = (i32)t->n_out, .data = t->data, .scale = 1};
    if (t->type == DLM_F32)
        m->kind = DLM_MAT_F32;
    else if (t->type == DLM_F16)
        m->kind = DLM_MAT_F16;
    else if (t->type == DLM_BF16)
        m->kind = DLM_MAT_BF16;
    else if (quant_is_blocks(t->type))
        m->kind = DLM_MAT_BLOCKS;
    else if (t->type == DLM_I2_S && !quant_i2s_fits(t))
        err_set(
            &e, ERR_MODEL,
            "tensor %s has %lld x %lld weights, which do not fill whole groups of this I2_S layout; "
            "try another --i2s-layout",
            t->name, (long long)t->n_out, (long long)t->n_in);
    else if ((t->type == DLM_TL1 || t->type == DLM_TL2) && !quant_tl_fits(t))
        err_set(&e, ERR_MODEL, "tensor %s is of type %s, and nothing says how it was cut up",
                t->name, quant_info(t->type)->name);
    else if (!cpu_repack_(c, m, t, &e) && e.code == ERR_NONE)
        err_set(&e, ERR_MEMORY, "out of memory");
    if (m->kind == DLM_MAT_BLOCKS && !t->rows_only) cpu_strip_(c, m, &e);
    if (e.code == ERR_NONE) return NULL;
    memcpy(c->error, e.msg, sizeof c->error);
    return c->error;
}

static void cpu_mat_free(void *self, DlmMat *m) {
    (void)self;
    mem_free(m->owned);
    mem_free(m->owned_scales);
    *m = (DlmMat){0};
}

/* Row o of a matrix as f32. */
static void cpu_mat_row_(const Cpu *c, f32 *y, const DlmMat *w, i32 o) {
    if (w->kind != DLM_MAT_TERNARY) {
        const u8 *row = (const u8 *)w->data + o * kern_row_bytes(w);
        if (w->kind == DLM_MAT_F16)
            c->k->from_f16(y, (const u16 *)(const void *)row, w->n_in);
        else
            quant_values(w->type, row, w->n_in, y);
        return;
    }
    for (i32 i = 0; i < w->n_in; i++) {
        f32 s = w->scales ? ref_tile_scale(w, o, i / w->scale_block) : w->scale;
        y[i] = ((f32)ref_tile_code(w, o, i) - 1) * s;
    }
}

static void cpu_embed(void *self, f32 *y, const DlmMat *w, const DlmRow *rows, i32 n_rows) {
    cpu_flush(self);
    for (i32 r = 0; r < n_rows; r++) cpu_mat_row_(self, y + (i64)r * w->n_in, w, rows[r].token);
}

/* ---- the ops over rows ---- */

static i32 cpu_elements_(const CpuRowOp *op, i32 begin, i32 end) {
    return (i32)(MIN_OF((i64)end * op->n, op->total) - (i64)begin * op->n);
}

static void cpu_add_rows_(const Cpu *c, const CpuRowOp *op, i32 begin, i32 end) {
    i64 at = (i64)begin * op->n;
    c->k->add(op->y + at, op->x + at, cpu_elements_(op, begin, end));
}

static void cpu_add(void *self, f32 *y, const f32 *x, i64 n) {
    cpu_wait_elements_(self, (CpuRowOp){cpu_add_rows_, .y = y, .x = x, .total = n, .cost = 2});
}

static void cpu_gate_rows_(const Cpu *c, const CpuRowOp *op, i32 begin, i32 end) {
    i64 at = (i64)begin * op->n;
    c->k->gate(op->y + at, op->x + at, cpu_elements_(op, begin, end), op->as.act);
}

static void cpu_gate(void *self, f32 *gate, const f32 *up, i64 n, DlmAct act) {
    cpu_wait_elements_(self, (CpuRowOp){cpu_gate_rows_, .y = gate, .x = up, .total = n,
                                        .cost = act == DLM_ACT_RELU2 ? 2 : 16, .as.act = act});
}

static void cpu_rms_norm_rows_(const Cpu *c, const CpuRowOp *op, i32 begin, i32 end) {
    f32 *y = op->y + (i64)begin * op->n;
    const f32 *x = op->x + (i64)begin * op->n, *gain = op->as.norm.gain;
    f32 eps = op->as.norm.eps;
    for (i32 r = begin, step; r < end; r += step, y += step * (i64)op->n, x += step * (i64)op->n) {
        step = c->k->rms_norm4 && r + 4 <= end ? 4 : 1;
        (step == 4 ? c->k->rms_norm4 : c->k->rms_norm)(y, x, gain, op->n, eps);
    }
}

static void cpu_rms_norm(void *self, f32 *y, const f32 *x, const f32 *gain, i32 n_rows, i32 n,
                         f32 eps) {
    CpuRowOp op = {cpu_rms_norm_rows_, .y = y, .x = x, .n = n, .cost = 8 * (i64)n};
    op.as.norm.gain = gain;
    op.as.norm.eps = eps;
    cpu_wait_(self, n_rows, &op);
}

static void cpu_quantize_rows_(const Cpu *c, const CpuRowOp *op, i32 begin, i32 end) {
    i64 n = op->n, stride = (n + DLM_TILE_IN - 1) / DLM_TILE_IN * DLM_TILE_IN;
    for (i32 r = begin, step; r < end; r += step) {
        step = c->k->quantize_row4 && r + 4 <= end ? 4 : 1;
        i8 *q = c->q + r * stride;
        if (step == 4)
            c->k->quantize_row4(q, stride, c->inv_scale + r, c->sum + r, op->x + r * n, op->n);
        else
            c->k->quantize_row(q, c->inv_scale + r, c->sum + r, op->x + r * n, op->n);
        for (i32 m = 0; n < stride && m < step; m++)
            memset(q + m * stride + n, 0, (size_t)(stride - n));
    }
}

/* The same for scaled blocks, whose activations have a scale per block. */
static void cpu_quantize_blocks_rows_(const Cpu *c, const CpuRowOp *op, i32 begin, i32 end) {
    i32 block = op->as.block;
    for (i32 r = begin; r < end; r++) {
        i64 at = (i64)r * kern_padded(op->n);
        c->k->quantize_blocks(c->q + at, c->block_d + at / block,
                              c->block_sums + at / kern_sum_run(block), op->x + (i64)r * op->n,
                              op->n, block);
    }
}

typedef struct {
    Cpu *c;
    const DlmLinear *jobs; /* [n_jobs] all of one kind of activations */
    const f32 *x;
    i32 n_jobs, n_rows;
    i32 n_groups; /* of all jobs; see cpu_groups_ */
    i32 bite;     /* rows of an item */
    bool tables;  /* ternary, through tables where the bite is full enough */
} LinearJob;

/* Rows in bites of so many bytes stay in the second cache level while the weights stream past; 8 rows
 * are what one register tile takes. */
#define CPU_BITE_BYTES (256 << 10)
/* Fewer rows are multiplied as fast as tables of 16 rows are looked up, and tables that serve less than
 * so many groups of outputs take longer to write than they save. */
#define CPU_TABLE_ROWS_MIN 12
#define CPU_TABLE_GROUPS_MIN 8

/* Outputs [lo, hi) of rows [row, end) of one job. */
static void cpu_linear_part_(const LinearJob *l, const DlmLinear *job, i32 row, i32 end, i32 lo,
                             i32 hi, i32 thread) {
    const DlmMat *w = job->w;
    const Cpu *c = l->c;
    i64 n_out = w->n_out, n_in = w->n_in;
    i64 q_stride = (n_in + DLM_TILE_IN - 1) / DLM_TILE_IN * DLM_TILE_IN;
    i64 bytes = w->kind == DLM_MAT_TERNARY || w->kind == DLM_MAT_BLOCKS ? q_stride : 4 * n_in;
    i32 bite = MAX_OF(8, (i32)(CPU_BITE_BYTES / bytes) / 8 * 8);
    if (l->tables) bite = l->bite;
    for (i32 m = row; m < end; m += bite) {
        i32 n = MIN_OF(bite, end - m);
        f32 *y = job->y + m * n_out;
        if (l->tables && n >= CPU_TABLE_ROWS_MIN) {
            c->k->ternary_tables(y, n_out, w, lo, hi, c->q + m * q_stride, q_stride,
                                 c->inv_scale + m, n, c->tables + thread * c->k->tables_bytes);
        } else if (w->kind == DLM_MAT_TERNARY) {
            c->k->ternary(y, n_out, w, lo, hi, c->q + m * q_stride, q_stride, c->inv_scale + m,
                          c->sum + m, n);
        } else if (w->kind == DLM_MAT_BLOCKS) {
            i64 at = (i64)m * kern_padded(w->n_in);
            i32 block = (i32)quant_info(w->type)->block;
            c->k->blocks(y, n_out, w, lo, hi, c->q + at, c->block_d + at / block,
                         c->block_sums + at / kern_sum_run(block), n);
        } else {
            c->k->dense(y, n_out, w, lo, hi, l->x + m * n_in, n_in, n);
        }
        for (i32 r = 0; job->bias && r < n; r++)
            for (i32 o = lo; o < hi; o++) y[r * n_out + o] += job->bias[o];
    }
}

/* Two tiles wide, so that no kernel that takes two at once is left with one. */
static i32 cpu_groups_(const DlmMat *w) {
    return (w->n_out + DLM_STRIP_OUT - 1) / DLM_STRIP_OUT;
}

/* Groups [begin, end), numbered through all the jobs, of rows [row, row_end). */
static void cpu_linear_groups_(const LinearJob *l, i32 row, i32 row_end, i32 begin, i32 end,
                               i32 thread) {
    i32 first = 0;
    for (i32 j = 0; j < l->n_jobs; first += cpu_groups_(l->jobs[j].w), j++) {
        const DlmMat *w = l->jobs[j].w;
        i32 lo = MAX_OF(begin - first, 0), hi = MIN_OF(end - first, cpu_groups_(w));
        if (lo < hi)
            cpu_linear_part_(l, &l->jobs[j], row, row_end, lo * DLM_STRIP_OUT,
                             MIN_OF(hi * DLM_STRIP_OUT, w->n_out), thread);
    }
}

/* Items are groups of 32 outputs of a bite of rows, bite by bite. */
static void cpu_linear_items_(void *arg, i32 begin, i32 end, i32 thread) {
    const LinearJob *l = arg;
    for (i32 at = begin, to; at < end; at = to) {
        i32 bite = at / l->n_groups, first = bite * l->n_groups, row = bite * l->bite;
        to = MIN_OF(end, first + l->n_groups);
        cpu_linear_groups_(l, row, MIN_OF(row + l->bite, l->n_rows), at - first, to - first,
                           thread);
    }
}

/* Where tables pay: cuts the rows into bites for them and returns the items of a piece, long enough
 * for tables to be worth it and as even as they come. Otherwise 0. */
static i32 cpu_tables_(LinearJob *l) {
    const Cpu *c = l->c;
    bool fit = c->k->ternary_tables && l->n_rows >= CPU_TABLE_ROWS_MIN;
    for (i32 j = 0; j < l->n_jobs && fit; j++) {
        const DlmMat *w = l->jobs[j].w;
        fit = w->kind == DLM_MAT_TERNARY && !w->scales && !w->twos;
    }
    i32 threads = pool_threads(c->pool);
    i32 n = (l->n_rows + DLM_TABLE_ROWS - 1) / DLM_TABLE_ROWS * l->n_groups;
    if (!fit || n < threads * CPU_TABLE_GROUPS_MIN) return 0;
    l->tables = true;
    l->bite = DLM_TABLE_ROWS;
    i32 pieces = n / (threads * 4 * CPU_TABLE_GROUPS_MIN);
    pieces = MIN_OF(MAX_OF(pieces, 1), POOL_PIECES) * threads;
    return (n + pieces - 1) / pieces;
}

/* How a matrix wants its input: 0 as f32, 1 quantized by rows, else quantized in blocks of that
 * many. */
static i32 cpu_input_(const DlmMat *w) {
    if (w->kind == DLM_MAT_TERNARY) return 1;
    return w->kind == DLM_MAT_BLOCKS ? (i32)quant_info(w->type)->block : 0;
}

/* Jobs that want their input in the same form run as one parallel loop; a mixture runs as several.
 */
static void cpu_linear(void *self, const DlmLinear *jobs, i32 n_jobs, const f32 *x, i32 n_rows) {
    Cpu *c = self;
    i32 n_in = jobs[0].w->n_in, same = 0, groups = 0, input = cpu_input_(jobs[0].w);
    for (; same < n_jobs && cpu_input_(jobs[same].w) == input; same++) {
        ASSERT(jobs[same].w->n_in == n_in);
        groups += cpu_groups_(jobs[same].w);
    }
    ASSERT(n_rows <= c->n_rows_max && n_in <= c->q_stride_max);
    if (input) {
        CpuRowOp q = {.fn = input == 1 ? cpu_quantize_rows_ : cpu_quantize_blocks_rows_,
                      .x = x,
                      .n = n_in,
                      .cost = 8 * (i64)n_in,
                      .as.block = input};
        cpu_wait_(c, n_rows, &q);
    }
    cpu_flush(c);
    LinearJob l = {c, jobs, x, same, n_rows, groups, .bite = n_rows};
    i32 grain = cpu_tables_(&l);
    if (!grain) grain = cpu_grain_((i64)n_in * DLM_STRIP_OUT * n_rows);
    pool_for(c->pool, (n_rows + l.bite - 1) / l.bite * groups, grain, cpu_linear_items_, &l);
    if (same < n_jobs) cpu_linear(self, jobs + same, n_jobs - same, x, n_rows);
}

static void cpu_rope_rows_(const Cpu *c, const CpuRowOp *op, i32 begin, i32 end) {
    for (i32 r = begin; r < end; r++)
        c->k->rope(op->y + (i64)r * op->n, op->as.rope.n_head, op->as.rope.head_dim,
                   op->as.rope.n_rot,
                   op->as.rope.turns + (i64)op->as.rope.rows[r].pos * op->as.rope.n_rot,
                   op->as.rope.kind);
}

static void cpu_rope(void *self, f32 *x, const DlmRow *rows, i32 n_rows, i32 n_head, i32 head_dim,
                     i32 n_rot, const f32 *turns, DlmRope kind) {
    CpuRowOp op = {cpu_rope_rows_, .y = x, .x = x, .n = n_head * head_dim};
    op.cost = 2 * (i64)n_head * n_rot;
    op.as.rope.rows = rows;
    op.as.rope.n_head = n_head;
    op.as.rope.head_dim = head_dim;
    op.as.rope.n_rot = n_rot;
    op.as.rope.turns = turns;
    op.as.rope.kind = kind;
    cpu_wait_(self, n_rows, &op);
}

/* ---- attention ---- */

/* Bytes of a key or value, and how many of them lie before the one of a head in a cell. */
static i64 cpu_kv_bytes_(const DlmKv *kv) {
    return (i64)quant_row_bytes(kv->type, kv->head_dim);
}

static i64 cpu_kv_at_(const DlmKv *kv, i32 slot, i32 layer, i32 head_kv, i32 cell) {
    return (((i64)slot * kv->n_layer + layer) * kv->n_head_kv + head_kv) * kv->n_cell + cell;
}

static void cpu_kv_put_(const Cpu *c, u8 *to, DlmType type, const f32 *x, i32 n) {
    if (type == DLM_F32)
        memcpy(to, x, (size_t)n * sizeof *x);
    else if (type == DLM_F16)
        c->k->to_f16((u16 *)(void *)to, x, n);
    else
        c->k->to_q8_0((DlmBlockQ8_0 *)(void *)to, x, n);
}

static void cpu_kv_store_row_(const Cpu *c, const CpuRowOp *op, i32 r, i64 each) {
    const DlmRow *row = &op->as.store.rows[r];
    DlmKv *kv = op->as.store.kv;
    const f32 *k = op->x + (i64)r * op->n, *v = op->as.store.v + (i64)r * op->n;
    ASSERT(row->cell >= 0 && row->cell < kv->n_cell && row->slot < kv->n_slot);
    for (i32 h = 0; h < kv->n_head_kv; h++, k += kv->head_dim, v += kv->head_dim) {
        i64 at = cpu_kv_at_(kv, row->slot, op->as.store.layer, h, row->cell) * each;
        cpu_kv_put_(c, (u8 *)kv->k + at, kv->type, k, kv->head_dim);
        cpu_kv_put_(c, (u8 *)kv->v + at, kv->type, v, kv->head_dim);
    }
}

static void cpu_kv_store_rows_(const Cpu *c, const CpuRowOp *op, i32 begin, i32 end) {
    i64 each = cpu_kv_bytes_(op->as.store.kv);
    for (i32 r = begin; r < end; r++) cpu_kv_store_row_(c, op, r, each);
}

static void cpu_kv_store(void *self, DlmKv *kv, i32 layer, const f32 *k, const f32 *v,
                         const DlmRow *rows, i32 n_rows) {
    CpuRowOp op = {cpu_kv_store_rows_, .x = k, .n = kv->n_head_kv * kv->head_dim};
    op.cost = 2 * (i64)op.n;
    op.as.store.rows = rows;
    op.as.store.kv = kv;
    op.as.store.layer = layer;
    op.as.store.v = v;
    cpu_wait_(self, n_rows, &op);
}

typedef struct {
    Cpu *c;
    f32 *out;
    const f32 *q;
    const DlmKv *kv;
    const DlmRow *rows;
    i32 layer, n_rows, n_head;
    f32 scale;
} AttendJob;

/* The work is cut into queries (a row's head each), counted tile by tile: first those of a tile's
 * rows in one group of heads, which share keys and values, then the other groups, then the next
 * tile. A tile's queries in a group fill one kernel call, if they are of one slot. */
static i32 cpu_attend_rows_(const DlmKv *kv, i32 n_head) {
    return MAX_OF(1, DLM_ATTEND_Q / (n_head / kv->n_head_kv));
}

/* The queries [first, last) of a group of heads, counted from the tile's row on. */
static void cpu_attend_group_(const AttendJob *j, i32 row, i32 head_kv, i32 first, i32 last,
                              f32 *scores) {
    const DlmKv *kv = j->kv;
    i32 group = j->n_head / kv->n_head_kv, member = first % group;
    const DlmRow *r = &j->rows[row + first / group];
    const u8 *k = kv->k, *v = kv->v;
    i64 each = cpu_kv_bytes_(kv);
    last = MIN_OF(last, (j->n_rows - row) * group);
    while (first < last) {
        f32 *out[DLM_ATTEND_Q];
        const f32 *q[DLM_ATTEND_Q];
        i32 lo[DLM_ATTEND_Q], hi[DLM_ATTEND_Q], n = 0, slot = r->slot;
        for (; n < DLM_ATTEND_Q && first < last && r->slot == slot; n++, first++) {
            i64 to = ((r - j->rows) * j->n_head + head_kv * group + member) * kv->head_dim;
            out[n] = j->out + to, q[n] = j->q + to, lo[n] = r->kv_lo, hi[n] = r->kv_hi;
            ASSERT(lo[n] < hi[n] && hi[n] <= kv->n_cell);
            if (++member == group) member = 0, r++;
        }
        i64 at = cpu_kv_at_(kv, slot, j->layer, head_kv, 0) * each;
        const u8 *next = NULL;
        if (first < last) next = k + cpu_kv_at_(kv, r->slot, j->layer, head_kv, r->kv_lo) * each;
        j->c->k->attend(out, q, lo, hi, n, k + at, v + at, kv->type, kv->head_dim, j->scale, scores,
                        j->c->n_cell_max, next);
    }
}

/* Tiles go in the order first, last, second, last but one: later rows see more cells, and each
 * thread shall have as much to do. */
static void cpu_attend_queries_(void *arg, i32 begin, i32 end, i32 thread) {
    AttendJob *j = arg;
    i32 n_kv = j->kv->n_head_kv, tile = cpu_attend_rows_(j->kv, j->n_head);
    i32 n_tiles = (j->n_rows + tile - 1) / tile, each = tile * (j->n_head / n_kv);
    f32 *scores = j->c->scores + (i64)thread * DLM_ATTEND_Q * j->c->n_cell_max;
    for (i32 at = begin, n; at < end; at += n) {
        i32 first = at % each, t = at / each / n_kv;
        n = MIN_OF(each - first, end - at);
        t = t % 2 ? n_tiles - 1 - t / 2 : t / 2;
        cpu_attend_group_(j, t * tile, at / each % n_kv, first, first + n, scores);
    }
}

static void cpu_attend(void *self, f32 *out, const f32 *q, const DlmKv *kv, i32 layer,
                       const DlmRow *rows, i32 n_rows, i32 n_head, f32 scale) {
    cpu_flush(self);
    AttendJob j = {self, out, q, kv, rows, layer, n_rows, n_head, scale};
    i32 tile = cpu_attend_rows_(kv, n_head), n_tiles = (n_rows + tile - 1) / tile;
    i64 cells = 0;
    for (i32 r = 0; r < n_rows; r++) cells += rows[r].kv_hi - rows[r].kv_lo;
    pool_for(j.c->pool, n_tiles * tile * n_head, cpu_grain_(4 * cells / n_rows * kv->head_dim),
             cpu_attend_queries_, &j);
}

static void cpu_gather(void *self, f32 *y, const f32 *x, const DlmRow *rows, i32 n_rows, i32 n) {
    cpu_flush(self);
    for (i32 r = 0; r < n_rows; r++)
        if (rows[r].logits >= 0)
            memcpy(y + (i64)rows[r].logits * n, x + (i64)r * n, (size_t)n * sizeof *y);
}

/* ---- choice ---- */

typedef struct {
    Cpu *c;
    f32 *logits;
    i32 n, banned;
    i32 *ids;
    f32 *probs;
} Top1Job;

static void cpu_top1_rows_(void *arg, i32 begin, i32 end, i32 thread) {
    Top1Job *j = arg;
    (void)thread;
    for (i32 r = begin; r < end; r++) {
        f32 *row = j->logits + (i64)r * j->n, sum = 1;
        if (j->banned >= 0) row[j->banned] = KERN_MINUS_INF;
        j->ids[r] = j->c->k->top1(row, j->n, &sum);
        j->probs[r] = 1.0f / sum;
    }
}

static void cpu_top1(void *self, f32 *logits, i32 n_rows, i32 n, i32 banned, i32 *ids, f32 *probs) {
    cpu_flush(self);
    Top1Job j = {self, logits, n, banned, ids, probs};
    pool_for(j.c->pool, n_rows, cpu_grain_(16 * (i64)n), cpu_top1_rows_, &j);
}

/* ---- lanes: forwards of one thread each ---- */

typedef struct {
    DlmOps *ops;
    const i32 *first;
    void (*fn)(void *arg, DlmOps *ops, i32 lane);
    void *arg;
} ApartJob;

static void cpu_apart_lanes_(void *arg, i32 begin, i32 end, i32 thread) {
    const ApartJob *j = arg;
    const Cpu *c = j->ops->self;
    Cpu lane = *c;
    DlmOps ops = *j->ops;
    ops.self = &lane;
    /* loops within this one are thread 0's */
    lane.scores += (i64)thread * DLM_ATTEND_Q * c->n_cell_max;
    if (c->tables) lane.tables += thread * c->k->tables_bytes;
    for (i32 i = begin; i < end; i++) {
        i64 row = j->first[i], at = row * c->q_stride_max;
        lane.n_rows_max = c->n_rows_max - (i32)row;
        lane.q = c->q + at;
        lane.inv_scale = c->inv_scale + row;
        lane.sum = c->sum + row;
        lane.block_d = c->block_d + at / 32;
        lane.block_sums = c->block_sums + at / 8;
        j->fn(j->arg, &ops, i);
        cpu_flush(&lane);
    }
}

static void cpu_apart(DlmOps *ops, i32 n_lanes, const i32 *first,
                      void (*fn)(void *arg, DlmOps *ops, i32 lane), void *arg) {
    Cpu *c = ops->self;
    ApartJob j = {ops, first, fn, arg};
    pool_for(c->pool, n_lanes, 1, cpu_apart_lanes_, &j);
}

/* ---- door ---- */

/* Fills ops with the CPU backend at the named level (NULL: the best). The pool must outlive it. */
static bool kern_open_cpu(DlmOps *ops, Pool *pool, const char *level, Err *e) {
    const DlmKernels *k = kern_choose(level, e);
    Cpu *c = k ? mem_alloc(sizeof *c, e) : NULL;
    if (!c) return false;
    c->pool = pool;
    c->k = k;
    *ops = (DlmOps){.name = k->name,
                    .self = c,
                    .reserve = cpu_reserve,
                    .alloc = cpu_alloc,
                    .free = cpu_free,
                    .upload = cpu_copy,
                    .download = cpu_copy,
                    .on_host = true,
                    .mat_load = cpu_mat_load,
                    .mat_free = cpu_mat_free,
                    .embed = cpu_embed,
                    .rms_norm = cpu_rms_norm,
                    .linear = cpu_linear,
                    .add = cpu_add,
                    .gate = cpu_gate,
                    .rope = cpu_rope,
                    .kv_store = cpu_kv_store,
                    .attend = cpu_attend,
                    .gather = cpu_gather,
                    .top1 = cpu_top1,
                    .exps = k->exps,
                    .end = cpu_flush,
                    .sync = cpu_flush,
                    .apart = cpu_apart};
    return true;
}

static void kern_close_cpu(DlmOps *ops) {
    Cpu *c = ops->self;
    if (!c) return;
    mem_free(c->q);
    mem_free(c->inv_scale);
    mem_free(c->sum);
    mem_free(c->block_d);
    mem_free(c->block_sums);
    mem_free(c->scores);
    mem_free(c->tables);
    mem_free(c);
    *ops = (DlmOps){0};
}

#endif

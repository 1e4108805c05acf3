/* cuda_check.c - the operations of the CUDA backend against the CPU's, and the engine on both.
 *
 * Linked with dlm_cuda.o as nvcc made it, this needs a GPU; linked with the same source compiled for
 * tests/cuda_emu.h, it needs none, and is slow: --quick leaves the long parts out. Products of ternary
 * weights and of scaled blocks must be equal bit for bit, choices and copies too; what sums floats in
 * another order than the CPU stays within a tolerance that is stated where it is checked.
 *
 *     cuda_check [--quick] [--kernels | --bench]        in the project's root */
#define main golden_main
#include "t_golden.c"
#undef main

static u64 rng = 7;
static DlmOps cpu, gpu;
static Pool *pool;

#define ROWS_MAX 200
#define IN_MAX 2048

/* ---- both sides ---- */

static void parallel(void *p, i32 n, i32 grain, PoolFn fn, void *arg) {
    pool_for(p, n, grain, fn, arg);
}

static void must(const char *why, const char *what) {
    if (!why) return;
    CHECK_MSG(false, "%s: %s", what, why);
    exit(test_end());
}

/* False when there is no GPU. */
static bool open_both(void) {
    static DlmCudaHost host;
    DlmCudaDevice d[8];
    int n = 0;
    Err e = {0};
    if (!CHECK_OK(pool_open(&pool, os_cpu_count(), &e), e)) return false;
    if (!CHECK_OK(kern_open_cpu(&cpu, pool, NULL, &e), e)) return false;
    host = (DlmCudaHost){.cpu = &cpu, .unpack = quant_unpack, .pool = pool, .parallel = parallel};
    const char *why = dlm_cuda_devices(d, 8, &n);
    for (int i = 0; !why && i < n; i++)
        printf("cuda_check: %s, %d.%d, %d multiprocessors, %.1f of %.1f GiB free\n", d[i].name,
               d[i].major, d[i].minor, d[i].n_sm, (f64)d[i].memory_free / (1 << 30),
               (f64)d[i].memory / (1 << 30));
    why = dlm_cuda_open(&gpu, &host);
    if (why) return CHECK_MSG(false, "no GPU: %s", why);
    return true;
}

static f32 *on_gpu(const f32 *x, i64 n) {
    f32 *p = gpu.alloc(gpu.self, (u64)n * sizeof *x);
    ASSERT(p);
    gpu.upload(gpu.self, p, x, (u64)n * sizeof *x);
    return p;
}

static f32 *floats(i64 n, f32 scale) {
    f32 *x = mem_alloc_n((u64)n, sizeof *x, NULL);
    ASSERT(x);
    for (i64 i = 0; i < n; i++) x[i] = test_rng_f32(&rng) * scale;
    return x;
}

/* The largest |got - want| / (1 + |want|) ; infinite for a NaN. got lies on the GPU. */
static f64 distance(const f32 *gpu_got, const f32 *want, i64 n) {
    f32 *got = floats(n, 1);
    f64 worst = 0;
    cpu.sync(cpu.self);
    gpu.download(gpu.self, got, gpu_got, (u64)n * sizeof *got);
    for (i64 i = 0; i < n; i++) {
        f64 size = want[i] < 0 ? -want[i] : want[i], diff = (f64)got[i] - want[i];
        if (memcmp(&got[i], &want[i], 4) == 0) continue;
        diff = (diff < 0 ? -diff : diff) / (1 + size);
        if (!(diff <= worst)) worst = diff == diff ? diff : 1e30;
    }
    mem_free(got);
    return worst;
}

/* ---- matrices ---- */

typedef struct {
    u8 *data;
    DlmTensor t;
    DlmMat cpu, gpu;
} Matrix;

/* Ternary codes with one scale for all, or with one for each block. */
static void fill_ternary(Matrix *m, bool scaled) {
    i64 n_in = m->t.n_in, n_out = m->t.n_out;
    f32 *row = floats(n_in, 1);
    if (m->t.type == DLM_I2_S) {
        for (i64 i = 0; i < n_in * n_out / 4; i++) {
            u64 r = test_rng(&rng);
            m->data[i] = (u8)(r % 3 | r / 3 % 3 << 2 | r / 9 % 3 << 4 | r / 27 % 3 << 6);
        }
        f32 scale = 0.37f;
        memcpy(m->data + n_in * n_out / 4, &scale, sizeof scale);
    } else {
        i32 block = (i32)quant_info(m->t.type)->block;
        u64 bytes = quant_row_bytes(m->t.type, n_in);
        for (i64 o = 0; o < n_out; o++) {
            for (i64 i = 0; i < n_in; i++) {
                f32 scale = scaled ? 0.1f + (f32)((o * 31 + i / block * 7) % 23) : 0.37f;
                row[i] = (f32)((i32)test_rng_below(&rng, 3) - 1) * scale;
                if (i % block == 0) row[i] = scale;
            }
            must(quant_row(m->t.type, row, n_in, m->data + (u64)o * bytes), "quant_row");
        }
    }
    mem_free(row);
}

/* Any bytes are a block; scales are kept from being infinite. */
static void fill_blocks(Matrix *m) {
    const DlmTypeInfo *info = quant_info(m->t.type);
    for (u64 i = 0; i < m->t.n_bytes; i++) m->data[i] = (u8)test_rng(&rng);
    for (u64 b = 0; b < m->t.n_bytes; b += info->bytes)
        for (u32 i = 0; i + 1 < info->bytes; i += 2)
            if ((m->data[b + i + 1] & 0x7c) == 0x7c) m->data[b + i + 1] ^= 0x40;
    for (u64 b = 0; m->t.type == DLM_MXFP4 && b < m->t.n_bytes; b += info->bytes)
        m->data[b] = (u8)(118 + test_rng_below(&rng, 20));
}

static Matrix random_matrix(DlmType type, i32 n_in, i32 n_out, bool scaled) {
    Matrix m = {.t = {.name = "random",
                      .type = type,
                      .i2s_layout = DLM_I2S_128,
                      .n_in = n_in,
                      .n_out = n_out,
                      .extra_scale = 1}};
    m.t.n_bytes = type == DLM_I2_S ? (u64)n_in * (u64)n_out / 4 + DLM_I2S_TAIL
                                   : quant_row_bytes(type, n_in) * (u64)n_out;
    m.data = mem_alloc(m.t.n_bytes, NULL);
    ASSERT(m.data);
    m.t.data = m.data;
    if (quant_is_ternary(type))
        fill_ternary(&m, scaled);
    else if (quant_is_blocks(type))
        fill_blocks(&m);
    else
        for (i32 o = 0; o < n_out; o++) {
            f32 *row = floats(n_in, 1);
            must(quant_row(type, row, n_in, m.data + (u64)o * quant_row_bytes(type, n_in)),
                 "quant_row");
            mem_free(row);
        }
    must(cpu.mat_load(cpu.self, &m.cpu, &m.t), "cpu mat_load");
    must(gpu.mat_load(gpu.self, &m.gpu, &m.t), "gpu mat_load");
    CHECK_U64(m.gpu.owned_bytes <= gpu.mat_bytes(gpu.self, &m.t), 1);
    return m;
}

static void free_matrix(Matrix *m) {
    cpu.mat_free(cpu.self, &m->cpu);
    gpu.mat_free(gpu.self, &m->gpu);
    mem_free(m->data);
}

/* ---- linear, embed ---- */

/* What 22 bits of an activation, and sums of a thousand products of up to 3 in another order, may
 * change. */
#define DENSE_TOLERANCE 1e-4

static void check_linear(Matrix *m, i32 n, i32 rows, bool bias) {
    i32 n_in = m[0].cpu.n_in;
    f32 *x = floats((i64)rows * n_in, 3), *x_gpu = on_gpu(x, (i64)rows * n_in);
    DlmLinear a[3], b[3];
    for (i32 i = 0; i < n; i++) {
        i64 n_out = m[i].cpu.n_out;
        f32 *host_bias = floats(n_out, 1);
        a[i] = (DlmLinear){&m[i].cpu, bias ? host_bias : NULL, floats(rows * n_out, 1)};
        b[i] = (DlmLinear){&m[i].gpu, bias ? on_gpu(host_bias, n_out) : NULL,
                           on_gpu(a[i].y, rows * n_out)}; /* not zeros: each must be written */
        if (!bias) mem_free(host_bias);
    }
    cpu.linear(cpu.self, a, n, x, rows);
    gpu.linear(gpu.self, b, n, x_gpu, rows);
    for (i32 i = 0; i < n; i++) {
        i64 n_out = m[i].cpu.n_out;
        bool exact = m[i].cpu.kind == DLM_MAT_TERNARY || m[i].cpu.kind == DLM_MAT_BLOCKS;
        f64 far = distance(b[i].y, a[i].y, rows * n_out);
        CHECK_MSG(exact ? far == 0 : far < DENSE_TOLERANCE,
                  "linear %s%s [%lld][%d], %d rows, bias %d, job %d of %d: differs by %g",
                  quant_info(m[i].cpu.type)->name, m[i].cpu.scales ? " scaled" : "",
                  (long long)n_out, n_in, rows, bias, i, n, far);
        mem_free(a[i].y);
        mem_free((void *)(uintptr_t)a[i].bias);
        gpu.free(gpu.self, b[i].y);
        gpu.free(gpu.self, (void *)(uintptr_t)b[i].bias);
    }
    mem_free(x);
    gpu.free(gpu.self, x_gpu);
}

static void check_embed(Matrix *m) {
    i32 n_in = m->cpu.n_in, n = 5;
    DlmRow rows[5];
    f32 *want = floats((i64)n * n_in, 1), *y = on_gpu(want, (i64)n * n_in);
    for (i32 r = 0; r < n; r++)
        rows[r] = (DlmRow){.token = (i32)test_rng_below(&rng, (u64)m->cpu.n_out), .kv_hi = 1};
    cpu.embed(cpu.self, want, &m->cpu, rows, n);
    gpu.embed(gpu.self, y, &m->gpu, rows, n);
    CHECK_MSG(distance(y, want, (i64)n * n_in) == 0, "embed %s [%d][%d]",
              quant_info(m->cpu.type)->name, m->cpu.n_out, n_in);
    mem_free(want);
    gpu.free(gpu.self, y);
}

/* Scratch is reserved for the forms of weights that were loaded before: each, here. */
static void reserve(void) {
    static const DlmType types[] = {DLM_TQ2_0, DLM_Q8_0, DLM_F16, DLM_BF16};
    for (size_t i = 0; i < COUNT_OF(types); i++) {
        Matrix m = random_matrix(types[i], 256, 16, false);
        free_matrix(&m);
    }
    must(cpu.reserve(cpu.self, ROWS_MAX, IN_MAX, 1024), "cpu reserve");
    must(gpu.reserve(gpu.self, ROWS_MAX, IN_MAX, 1024), "gpu reserve");
}

static void check_matrices(bool quick) {
    static const i32 outs[] = {1, 16, 33, 150}, rows[] = {1, 3, 8, 9, 17, 40, 64, 65, 130};
    static const i32 ins[] = {1, 8, 100, 128, 256, 320, 512, 1024};
    for (size_t t = 0; t < COUNT_OF(DLM_TYPES); t++) {
        const DlmTypeInfo *info = &DLM_TYPES[t];
        if (info->type == DLM_TL1 || info->type == DLM_TL2) continue; /* the CPU's tiles by then */
        for (size_t i = 0; i < COUNT_OF(ins); i++)
            for (int scaled = 0; scaled < 2; scaled++) {
                bool ternary = quant_is_ternary(info->type);
                i32 n_in = ins[i], n_out = outs[(i + t) % COUNT_OF(outs)];
                if (n_in % (i32)info->block || (info->type == DLM_I2_S && n_in % 128)) continue;
                if (scaled && (!ternary || info->type == DLM_I2_S)) continue;
                Matrix m[3] = {random_matrix(info->type, n_in, n_out, scaled),
                               random_matrix(info->type, n_in, 20, scaled),
                               random_matrix(info->type, n_in, 64, scaled)};
                for (size_t r = 0; r < COUNT_OF(rows); r++)
                    if (!quick || (r + i + t) % 6 == 0)
                        check_linear(m, 1 + (i32)r % 3, rows[r], r % 2);
                check_embed(&m[0]);
                for (int j = 0; j < 3; j++) free_matrix(&m[j]);
            }
    }
    Matrix mixed[3] = {random_matrix(DLM_TQ2_0, 512, 48, false),
                       random_matrix(DLM_Q6_K, 512, 20, false),
                       random_matrix(DLM_F16, 512, 30, false)};
    check_linear(mixed, 3, 9, true);
    for (int j = 0; j < 3; j++) free_matrix(&mixed[j]);
}

/* ---- rows ---- */

#define ROW_TOLERANCE 2e-6 /* a sum of squares in another order, and expf's last bit */

/* Norm alone and after what it may take along; then a product, whose 8-bit input the norm may have
 * made on the way: equal to the CPU's product of the GPU's own norm, bit for bit. */
static void check_norm(i32 n, i32 rows, int before, DlmAct act) {
    Matrix m = random_matrix(DLM_I2_S, (n + 127) / 128 * 128, 32, false);
    i64 all = (i64)rows * n;
    f32 *x = floats(all, 2), *b = floats(all, 2), *gain = floats(n, 1), *want = floats(all, 1);
    f32 *xg = on_gpu(x, all), *bg = on_gpu(b, all), *gg = on_gpu(gain, n), *yg = on_gpu(want, all);
    if (before == 1) cpu.add(cpu.self, x, b, all), gpu.add(gpu.self, xg, bg, all);
    if (before == 2) cpu.gate(cpu.self, x, b, all, act), gpu.gate(gpu.self, xg, bg, all, act);
    cpu.rms_norm(cpu.self, want, x, gain, rows, n, 1e-5f);
    gpu.rms_norm(gpu.self, yg, xg, gg, rows, n, 1e-5f);
    bool near = distance(xg, x, all) < ROW_TOLERANCE && distance(yg, want, all) < ROW_TOLERANCE;
    CHECK_MSG(near, "norm of %d x %d after %d: differs by %g and %g", rows, n, before,
              distance(xg, x, all), distance(yg, want, all));
    if (n == m.cpu.n_in) {
        f32 *product = floats(rows * 32, 1), *pg = on_gpu(product, rows * 32);
        gpu.download(gpu.self, want, yg, (u64)all * sizeof *want);
        cpu.linear(cpu.self, &(DlmLinear){&m.cpu, NULL, product}, 1, want, rows);
        gpu.linear(gpu.self, &(DlmLinear){&m.gpu, NULL, pg}, 1, yg, rows);
        CHECK_MSG(distance(pg, product, rows * 32) == 0, "product after a norm of %d x %d", rows,
                  n);
        gpu.gate(gpu.self, xg, bg, all, act); /* and of what a gate made, without a norm */
        gpu.linear(gpu.self, &(DlmLinear){&m.gpu, NULL, pg}, 1, xg, rows);
        gpu.download(gpu.self, want, xg, (u64)all * sizeof *want);
        cpu.linear(cpu.self, &(DlmLinear){&m.cpu, NULL, product}, 1, want, rows);
        CHECK_MSG(distance(pg, product, rows * 32) == 0, "product after a gate of %d x %d", rows,
                  n);
        mem_free(product);
        gpu.free(gpu.self, pg);
    }
    f32 *host[] = {x, b, gain, want}, *device[] = {xg, bg, gg, yg};
    for (int i = 0; i < 4; i++) mem_free(host[i]), gpu.free(gpu.self, device[i]);
    free_matrix(&m);
}

static void check_rows(void) {
    static const i32 sizes[] = {1, 3, 64, 100, 128, 256, 1024, 1536};
    for (size_t i = 0; i < COUNT_OF(sizes); i++)
        for (int before = 0; before < 3; before++)
            check_norm(sizes[i], 1 + (i32)i * 2, before, i % 2 ? DLM_ACT_SILU : DLM_ACT_RELU2);
    i64 n = 1000; /* what nothing takes along */
    f32 *x = floats(n, 2), *b = floats(n, 2), *xg = on_gpu(x, n), *bg = on_gpu(b, n);
    for (int i = 0; i < 3; i++) {
        if (i == 0) cpu.add(cpu.self, x, b, n), gpu.add(gpu.self, xg, bg, n);
        if (i == 1)
            cpu.gate(cpu.self, x, b, n, DLM_ACT_SILU), gpu.gate(gpu.self, xg, bg, n, DLM_ACT_SILU);
        if (i == 2)
            cpu.gate(cpu.self, x, b, n, DLM_ACT_RELU2),
                gpu.gate(gpu.self, xg, bg, n, DLM_ACT_RELU2);
        CHECK_MSG(distance(xg, x, n) < ROW_TOLERANCE, "elementwise %d", i);
    }
    mem_free(x), mem_free(b), gpu.free(gpu.self, xg), gpu.free(gpu.self, bg);
}

/* ---- rotation, cache, attention ---- */

/* What remains is the order of sums and exp's last bits; the CPU reads the same F16 cache. */
#define ATTEND_TOLERANCE 4e-6

typedef struct {
    i32 n_head, n_head_kv, dim, n_rot, rows, n_cell, n_slot;
    DlmType type;
    DlmRope rope;
} Heads;

static DlmKv open_cache(const DlmOps *ops, const Heads *h) {
    u64 n = (u64)h->n_slot * 2 * (u64)h->n_cell * (u64)h->n_head_kv * (u64)h->dim;
    n *= h->type == DLM_F32 ? 4 : 2;
    return (DlmKv){.type = h->type,
                   .k = ops->alloc(ops->self, n),
                   .v = ops->alloc(ops->self, n),
                   .n_slot = h->n_slot,
                   .n_layer = 2,
                   .n_cell = h->n_cell,
                   .n_head_kv = h->n_head_kv,
                   .head_dim = h->dim};
}

/* Fills the cache by stores, each time turning queries and keys first, then attends. */
static void check_heads(const Heads *h) {
    i64 n_q = (i64)h->rows * h->n_head * h->dim, n_kv = (i64)h->rows * h->n_head_kv * h->dim;
    i64 n_turns = (i64)h->n_cell * h->n_rot;
    f32 *turns = floats(n_turns, 1), *turns_gpu = on_gpu(turns, n_turns);
    DlmKv a = open_cache(&cpu, h), b = open_cache(&gpu, h);
    DlmRow rows[ROWS_MAX];
    f64 far = 0, far_q = 0;
    for (i32 from = 0; from < h->n_cell; from += h->rows) {
        f32 *q = floats(n_q, 4), *k = floats(n_kv, 1), *v = floats(n_kv, 1), *out = floats(n_q, 1);
        f32 *qg = on_gpu(q, n_q), *kg = on_gpu(k, n_kv), *vg = on_gpu(v, n_kv),
            *og = on_gpu(out, n_q);
        i32 n = MIN_OF(h->rows, h->n_cell - from);
        for (i32 r = 0; r < n;
             r++) { /* slots by turns or in runs; a window, or all that is there */
            i32 slot = h->rows % 2 ? r % h->n_slot : r * h->n_slot / n, cell = from + r;
            rows[r] = (DlmRow){.pos = cell, .slot = slot, .cell = cell, .kv_hi = from + n};
            if (r % 3 == 0) rows[r].kv_hi = cell + 1;
            if (r % 4 == 1) rows[r].kv_lo = cell / 2;
        }
        for (i32 s = 0; s < h->n_slot; s++) { /* every slot gets every cell */
            DlmRow all[ROWS_MAX];
            for (i32 r = 0; r < n; r++) all[r] = rows[r], all[r].slot = s;
            cpu.kv_store(cpu.self, &a, 1, k, v, all, n);
            gpu.kv_store(gpu.self, &b, 1, kg, vg, all, n);
            cpu.sync(cpu.self); /* the rows are written anew */
        }
        cpu.rope(cpu.self, q, rows, n, h->n_head, h->dim, h->n_rot, turns, h->rope);
        cpu.rope(cpu.self, k, rows, n, h->n_head_kv, h->dim, h->n_rot, turns, h->rope);
        gpu.rope(gpu.self, qg, rows, n, h->n_head, h->dim, h->n_rot, turns_gpu, h->rope);
        gpu.rope(gpu.self, kg, rows, n, h->n_head_kv, h->dim, h->n_rot, turns_gpu, h->rope);
        cpu.kv_store(cpu.self, &a, 1, k, v, rows, n);
        gpu.kv_store(gpu.self, &b, 1, kg, vg, rows, n);
        far_q = MAX_OF(far_q, distance(qg, q, (i64)n * h->n_head * h->dim));
        far_q = MAX_OF(far_q, distance(kg, k, (i64)n * h->n_head_kv * h->dim));
        cpu.attend(cpu.self, out, q, &a, 1, rows, n, h->n_head, 0.125f);
        gpu.attend(gpu.self, og, qg, &b, 1, rows, n, h->n_head, 0.125f);
        far = MAX_OF(far, distance(og, out, (i64)n * h->n_head * h->dim));
        f32 *host[] = {q, k, v, out}, *device[] = {qg, kg, vg, og};
        for (int i = 0; i < 4; i++) mem_free(host[i]), gpu.free(gpu.self, device[i]);
    }
    CHECK_MSG(far_q == 0, "rope %d of %d turned: differs by %g", h->n_rot, h->dim, far_q);
    CHECK_MSG(far < ATTEND_TOLERANCE,
              "attend %d/%d heads of %d, %d rows, %d cells, %d slots, %s: %g", h->n_head,
              h->n_head_kv, h->dim, h->rows, h->n_cell, h->n_slot,
              h->type == DLM_F32 ? "f32" : "f16", far);
    mem_free(turns), gpu.free(gpu.self, turns_gpu);
    cpu.free(cpu.self, a.k), cpu.free(cpu.self, a.v);
    gpu.free(gpu.self, b.k), gpu.free(gpu.self, b.v);
}

/* A row attends as it would alone, to the bit, whatever lies beside it: rows of slots in turns or in
 * runs, which blocks take whole or split among them. */
static void check_alone(i32 n_rows, bool turns) {
    const Heads h = {8, 2, 64, 64, n_rows, 700, 2, DLM_F16, DLM_ROPE_NEOX};
    i64 n_kv = (i64)h.n_head_kv * h.dim, n_q = (i64)h.n_head * h.dim, all = n_rows * n_q;
    DlmKv a = open_cache(&cpu, &h), b = open_cache(&gpu, &h);
    DlmRow rows[ROWS_MAX];
    f32 *k = floats(100 * n_kv, 1), *v = floats(100 * n_kv, 1), *q = floats(all, 4),
        *out = floats(all, 1);
    f32 *kg = on_gpu(k, 100 * n_kv), *vg = on_gpu(v, 100 * n_kv), *qg = on_gpu(q, all),
        *og = on_gpu(out, all), *one = on_gpu(out, n_q);
    for (i32 from = 0; from < h.n_cell * h.n_slot; from += 100) {
        for (i32 r = 0; r < 100; r++)
            rows[r] = (DlmRow){.slot = (from + r) / h.n_cell, .cell = (from + r) % h.n_cell};
        cpu.kv_store(cpu.self, &a, 1, k, v, rows, 100);
        gpu.kv_store(gpu.self, &b, 1, kg, vg, rows, 100);
        cpu.sync(cpu.self);
    }
    for (i32 r = 0; r < n_rows; r++) {
        i32 hi = 1 + (i32)test_rng_below(&rng, 700),
            lo = r % 3 ? 0 : (i32)test_rng_below(&rng, (u64)hi);
        rows[r] = (DlmRow){.slot = turns ? r % 2 : 2 * r / n_rows, .kv_lo = lo, .kv_hi = hi};
    }
    cpu.attend(cpu.self, out, q, &a, 1, rows, n_rows, h.n_head, 0.125f);
    gpu.attend(gpu.self, og, qg, &b, 1, rows, n_rows, h.n_head, 0.125f);
    f64 far = distance(og, out, all);
    CHECK_MSG(far < ATTEND_TOLERANCE, "%d rows of 700 cells differ by %g", n_rows, far);
    gpu.download(gpu.self, out, og, (u64)all * sizeof *out);
    for (i32 r = 0; r < n_rows; r += 1 + n_rows / 30) {
        gpu.attend(gpu.self, one, qg + r * n_q, &b, 1, rows + r, 1, h.n_head, 0.125f);
        CHECK_MSG(distance(one, out + r * n_q, n_q) == 0, "row %d of %d attends otherwise alone", r,
                  n_rows);
    }
    f32 *host[] = {k, v, q, out}, *device[] = {kg, vg, qg, og, one, b.k, b.v};
    for (size_t i = 0; i < COUNT_OF(host); i++) mem_free(host[i]);
    for (size_t i = 0; i < COUNT_OF(device); i++) gpu.free(gpu.self, device[i]);
    cpu.free(cpu.self, a.k), cpu.free(cpu.self, a.v);
}

static void check_attend(bool quick) {
    static const Heads cases[] = {{4, 1, 128, 128, 9, 150, 1, DLM_F16, DLM_ROPE_NEOX},
                                  {8, 2, 64, 64, 40, 130, 3, DLM_F16, DLM_ROPE_NORM},
                                  {7, 1, 96, 48, 20, 70, 2, DLM_F16, DLM_ROPE_NEOX},
                                  {2, 2, 80, 80, 65, 200, 1, DLM_F16, DLM_ROPE_NEOX},
                                  {4, 2, 48, 48, 1, 5, 1, DLM_F16, DLM_ROPE_NORM},
                                  {3, 3, 32, 16, 33, 66, 4, DLM_F16, DLM_ROPE_NEOX},
                                  {4, 4, 16, 16, 16, 33, 2, DLM_F16, DLM_ROPE_NEOX},
                                  {4, 2, 18, 18, 7, 20, 2, DLM_F16, DLM_ROPE_NORM},
                                  {4, 2, 64, 64, 10, 70, 3, DLM_F32, DLM_ROPE_NEOX},
                                  {2, 1, 256, 64, 5, 40, 1, DLM_F16, DLM_ROPE_NEOX},
                                  {20, 5, 128, 128, 32, 96, 1, DLM_F16, DLM_ROPE_NEOX}};
    for (size_t i = 0; i < COUNT_OF(cases) - (quick ? 1 : 0); i++) check_heads(&cases[i]);
    check_alone(1, false);
    check_alone(quick ? 10 : 40, false);
    check_alone(quick ? 6 : 200, true); /* more tiles than any GPU has multiprocessors */
}

/* ---- gather, choice ---- */

/* The largest logits of a row, in the order in which a sampler takes them. NaNs come last, anyhow. */
static void check_top_k(const f32 *x, const f32 *xg, i32 n) {
    static const i32 ks[] = {1, 2, 40, DLM_TOP_K_MAX};
    i32 ids[DLM_TOP_K_MAX];
    f32 largest[DLM_TOP_K_MAX];
    for (size_t c = 0; c < COUNT_OF(ks); c++) {
        gpu.top_k(gpu.self, xg, n, ks[c], ids, largest);
        for (i32 i = 0, last = -1; i < ks[c]; i++) {
            i32 want = -1; /* the next after `last` */
            for (i32 j = 0; j < n; j++) {
                bool after = last < 0 || x[j] < x[last] || (x[j] == x[last] && j > last);
                if (after && x[j] == x[j] && (want < 0 || x[j] > x[want])) want = j;
            }
            if (want < 0) break;
            if (!CHECK_INT(ids[i], want)) return;
            CHECK_MSG(memcmp(&largest[i], &x[want], sizeof *x) == 0, "top %d: its logit", i);
            last = want;
        }
    }
}

static void check_choice(void) {
    i32 n = 1111, rows = 9, ids[9], want_ids[9];
    f32 probs[9], want_probs[9], nan = __builtin_nanf("");
    f32 *x = floats((i64)rows * n, 8);
    x[3 * n + 5] = x[3 * n + 700] = 50; /* a tie goes to the first */
    x[4 * n] = nan, x[4 * n + 9] = nan;
    for (i32 i = 0; i < n; i++) x[5 * n + i] = nan;
    for (i32 i = 0; i < n; i++) x[6 * n + i] = i ? KERN_MINUS_INF : nan;
    x[7 * n + 77] = 90; /* banned below */
    for (i32 i = 0; i < n; i++)
        x[8 * n + i] = (f32)(i % 7) * (i % 2 ? 1.0f : -0.0f); /* many ties */
    f32 *xg = on_gpu(x, (i64)rows * n);
    cpu.top1(cpu.self, x, rows, n, 77, want_ids, want_probs);
    gpu.top1(gpu.self, xg, rows, n, 77, ids, probs);
    for (i32 r = 0; r < rows; r++) {
        CHECK_INT(ids[r], want_ids[r]);
        CHECK_NEAR(probs[r], want_probs[r], 2e-6);
    }
    CHECK_MSG(distance(xg, x, 5 * n) == 0, "top1 leaves the logits, and the banned one at -inf");
    for (i32 r = 0; r < rows; r++) check_top_k(x + (i64)r * n, xg + (i64)r * n, n);
    mem_free(x), gpu.free(gpu.self, xg);
    DlmRow list[6] = {{.logits = 2},  {.logits = -1}, {.logits = 0},
                      {.logits = -1}, {.logits = 1},  {.logits = -1}};
    f32 *from = floats(6 * 300, 1), *want = floats(3 * 300, 1), *fg = on_gpu(from, 1800),
        *tg = on_gpu(want, 900);
    cpu.gather(cpu.self, want, from, list, 6, 300);
    gpu.gather(gpu.self, tg, fg, list, 6, 300);
    CHECK_MSG(distance(tg, want, 900) == 0, "gather");
    mem_free(from), mem_free(want), gpu.free(gpu.self, fg), gpu.free(gpu.self, tg);
}

/* ---- the engine on both ---- */

static i32 gpu_layers = -1;

static Engine *open_on(i32 device, const char *path, DlmType kv_type, i32 n_slots) {
    EngineOptions o = engine_options_default();
    Err e = {0};
    Engine *g = NULL;
    o.path = path, o.kv_type = kv_type, o.device = device, o.n_slots = n_slots;
    o.gpu_layers = gpu_layers;
    CHECK_OK(engine_open(&g, &o, &e), e);
    if (g) CHECK_CSTR(g->ops.name, device == ENGINE_DEVICE_CUDA ? "cuda" : g->cpu.name);
    return g;
}

static DecodeResult answer(Engine *g, i32 slot, u64 number, DecodeMode mode, bool dual, i32 n) {
    i32 prompt[40];
    u64 seed = number;
    DecodeParams p = decode_params_default();
    DecodeResult r;
    Err e = {0};
    for (i32 i = 0; i < 40; i++)
        prompt[i] = (i32)test_rng_below(&seed, (u64)MIN_OF(g->model.n_vocab, 1000));
    p.mode = mode, p.cache = dual ? CACHE_MODEL : CACHE_NONE, p.max_tokens = n;
    CHECK_OK(engine_generate(g, slot, prompt, 20 + (i32)number % 20, &p, NULL, &r, &e), e);
    return r;
}

static bool same_answer(const DecodeResult *a, const DecodeResult *b) {
    return a->ids.n == b->ids.n && memcmp(a->ids.p, b->ids.p, a->ids.n * sizeof(i32)) == 0;
}

/* The same answers from both devices; a near-tie may part them, so most must be equal, not all. */
static void check_answers(const char *path, i32 n_cases, i32 n_tokens) {
    Engine *a = open_on(ENGINE_DEVICE_CPU, path, DLM_F16, 1);
    Engine *b = open_on(ENGINE_DEVICE_CUDA, path, DLM_F16, 1);
    i32 same = 0;
    for (i32 i = 0; a && b && i < n_cases; i++) {
        DecodeMode mode = i % 3 == 0 ? DECODE_AR : DECODE_ITERATIVE;
        DecodeResult ra = answer(a, 0, (u64)i, mode, i % 2, n_tokens);
        DecodeResult rb = answer(b, 0, (u64)i, mode, i % 2, n_tokens);
        DecodeResult again = answer(b, 0, (u64)i, mode, i % 2, n_tokens);
        same += same_answer(&ra, &rb);
        CHECK_MSG(same_answer(&again, &rb), "%s: the GPU gives two answers to one question", path);
        decode_result_free(&ra), decode_result_free(&rb), decode_result_free(&again);
    }
    printf("%s: %d of %d answers are the CPU's\n", path, same, n_cases);
    CHECK_MSG(4 * same >= 3 * n_cases, "%s: %d of %d answers are the CPU's", path, same, n_cases);
    engine_close(a);
    engine_close(b);
}

/* Products of the layers that stay with the CPU are the GPU's bit for bit, so answers are the same. */
static void check_layers(i32 step, i32 n_cases, i32 n_tokens) {
    Engine *whole = open_on(ENGINE_DEVICE_CUDA, MODEL_PATH, DLM_F16, 1);
    for (gpu_layers = 1; gpu_layers < 4; gpu_layers += step) {
        Engine *part = open_on(ENGINE_DEVICE_CUDA, MODEL_PATH, DLM_F16, 1);
        for (i32 i = 0; whole && part && i < n_cases; i++) {
            DecodeMode mode = i % 2 ? DECODE_AR : DECODE_ITERATIVE;
            DecodeResult a = answer(whole, 0, (u64)i, mode, i % 2, n_tokens);
            DecodeResult b = answer(part, 0, (u64)i, mode, i % 2, n_tokens);
            CHECK_MSG(same_answer(&a, &b), "%d layers on the GPU answer otherwise than all",
                      gpu_layers);
            decode_result_free(&a), decode_result_free(&b);
        }
        engine_close(part);
    }
    gpu_layers = -1;
    engine_close(whole);
}

/* What is drawn from the likeliest tokens is what is drawn from whole rows. */
static void check_draws(i32 n_cases, i32 n_tokens) {
    static const SampleParams ways[] = {{.temperature = 1.5f, .top_k = 40, .top_p = 1},
                                        {.temperature = 1, .top_p = 0.9f},
                                        {.temperature = 2, .top_p = 1, .min_p = 0.05f},
                                        {.temperature = 3, .top_p = 0.9999f, .top_k = 300}};
    Engine *g = open_on(ENGINE_DEVICE_CUDA, MODEL_PATH, DLM_F16, 1);
    void (*top_k)(void *, const f32 *, i32, i32, i32 *, f32 *) = g ? g->ops.top_k : NULL;
    for (i32 i = 0; g && i < n_cases; i++) {
        DecodeResult few, whole;
        DecodeParams p = decode_params_default();
        Err e = {0};
        i32 prompt[] = {5 + i, 17, 40, 300};
        p.sample = ways[i % (i32)COUNT_OF(ways)], p.sample.seed = (u64)i, p.max_tokens = n_tokens;
        CHECK_OK(engine_generate(g, 0, prompt, 4, &p, NULL, &few, &e), e);
        g->ops.top_k = NULL;
        CHECK_OK(engine_generate(g, 0, prompt, 4, &p, NULL, &whole, &e), e);
        g->ops.top_k = top_k;
        CHECK_MSG(same_answer(&few, &whole), "case %d draws otherwise from whole rows", i);
        decode_result_free(&few), decode_result_free(&whole);
    }
    engine_close(g);
}

/* Answers made together are those made alone. */
static void check_slots(i32 n_slots, i32 n_tokens) {
    Engine *g = open_on(ENGINE_DEVICE_CUDA, MODEL_PATH, DLM_F16, n_slots);
    i32 prompt[40], n = 12;
    Err e = {0};
    DecodeResult alone[8], together;
    DecodeParams p = decode_params_default();
    p.max_tokens = n_tokens;
    for (i32 s = 0; g && s < n_slots; s++) {
        for (i32 i = 0; i < n; i++) prompt[i] = 10 + s * 7 + i * 3;
        CHECK_OK(engine_generate(g, s, prompt, n, &p, NULL, &alone[s], &e), e);
        CHECK_OK(engine_start(g, s, prompt, n, &p, NULL, &e), e);
        engine_cancel(g, s);
        engine_finish(g, s, &together, &e);
        decode_result_free(&together);
    }
    for (i32 s = 0; g && s < n_slots; s++) {
        for (i32 i = 0; i < n; i++) prompt[i] = 10 + s * 7 + i * 3;
        CHECK_OK(engine_start(g, s, prompt, n, &p, NULL, &e), e);
    }
    bool idle = false;
    while (g && !idle && e.code == ERR_NONE) {
        idle = true;
        for (i32 s = 0; s < n_slots; s++) idle = idle && !engine_busy(g, s);
        if (!idle) CHECK_OK(engine_step(g, &e), e);
        if (e.code) break;
    }
    for (i32 s = 0; g && s < n_slots; s++) {
        CHECK_OK(engine_finish(g, s, &together, &e), e);
        CHECK_MSG(same_answer(&together, &alone[s]),
                  "slot %d of %d answers differently beside others", s, n_slots);
        decode_result_free(&together), decode_result_free(&alone[s]);
    }
    engine_close(g);
}

/* Logits of the golden passes. The GPU adds the squares of a norm in another order, so that a rounding
 * tie may fall to the other side: one such flip moves logits by up to 0.2 (t_golden.c). */
#define TIE_TOLERANCE 0.3

static void check_golden(bool quick) {
    Str text;
    JsonDoc d;
    Engine *g = open_on(ENGINE_DEVICE_CUDA, MODEL_PATH, DLM_F32, 1);
    if (g && parse_golden(GOLDEN "logits.json", &text, &d)) {
        u32 cases = json_get(&d, 0, "cases");
        i32 n = 0, close = 0;
        for (u32 c = json_first(&d, cases), left = json_count(&d, cases);
             left > 0 && (!quick || n < 1); left--, c = json_next(&d, c), n++) {
            f64 worst = logits_difference(g, &d, c, false);
            close += worst <= LOGIT_TOLERANCE;
            CHECK_MSG(worst <= TIE_TOLERANCE, "golden case %d differs by %g", n, worst);
        }
        printf("golden logits: %d of %d within %g, all within %g\n", close, n, LOGIT_TOLERANCE,
               TIE_TOLERANCE);
        json_free(&d);
        test_file_free(text);
    }
    engine_close(g);
}

/* Nothing of the device's memory is lost, whatever is asked. */
static void check_memory(i32 n) {
    Engine *g = open_on(ENGINE_DEVICE_CUDA, MODEL_PATH, DLM_F16, 1);
    u64 before = 0;
    for (i32 i = 0; g && i < n; i++) {
        DecodeResult r =
            answer(g, 0, (u64)i, i % 4 ? DECODE_ITERATIVE : DECODE_AR, i % 2, 8 + i % 32);
        decode_result_free(&r);
        if (i == n / 10) before = g->ops.memory_free(g->ops.self); /* passes are recorded by then */
    }
    if (g) {
        u64 after = g->ops.memory_free(g->ops.self);
        printf("device memory over %d generations: %.1f MiB free, then %.1f\n", n,
               (f64)before / 1048576.0, (f64)after / 1048576.0);
        CHECK_MSG(after + (32 << 20) >= before, "%llu bytes of device memory are gone",
                  (unsigned long long)(before - after));
    }
    engine_close(g);
}

/* ---- how fast, beside ceilings measured in the same run ---- */

enum { BENCH_EMBD = 2560, BENCH_FF = 6912, BENCH_KV = 640, BENCH_ROWS_MOST = 1024 };

/* The norms and products of one pass of the 2B shape, without attention and output. */
typedef struct {
    Matrix q, k, v, o, gate, up, down;
} BenchLayer;

typedef struct {
    BenchLayer *layers;
    i32 n_layers;
    f32 *x, *h, *wide, *wide2, *gain;
} BenchPass;

static void bench_pass(const BenchPass *p, i32 n) {
    for (i32 l = 0; l < p->n_layers; l++) {
        BenchLayer *w = &p->layers[l];
        f32 *k = p->wide + (i64)n * BENCH_EMBD, *v = k + (i64)n * BENCH_KV;
        const DlmLinear qkv[3] = {
            {&w->q.gpu, NULL, p->wide}, {&w->k.gpu, NULL, k}, {&w->v.gpu, NULL, v}};
        const DlmLinear o = {&w->o.gpu, NULL, p->h}, down = {&w->down.gpu, NULL, p->h};
        const DlmLinear both[2] = {{&w->gate.gpu, NULL, p->wide}, {&w->up.gpu, NULL, p->wide2}};
        gpu.rms_norm(gpu.self, p->h, p->x, p->gain, n, BENCH_EMBD, 1e-5f);
        gpu.linear(gpu.self, qkv, 3, p->h, n);
        gpu.rms_norm(gpu.self, p->wide2, p->wide, p->gain, n, BENCH_EMBD, 1e-5f);
        gpu.linear(gpu.self, &o, 1, p->wide2, n);
        gpu.rms_norm(gpu.self, p->h, p->x, p->gain, n, BENCH_EMBD, 1e-5f);
        gpu.linear(gpu.self, both, 2, p->h, n);
        gpu.gate(gpu.self, p->wide, p->wide2, (i64)n * BENCH_FF, DLM_ACT_RELU2);
        gpu.rms_norm(gpu.self, p->wide2, p->wide, p->gain, n, BENCH_FF, 1e-5f);
        gpu.linear(gpu.self, &down, 1, p->wide2, n);
    }
}

/* Replays of a recorded pass, as the engine's are. */
static f64 bench_ms(const BenchPass *p, i32 n) {
    static DlmRow rows[BENCH_ROWS_MOST];
    f64 best = 1e30;
    for (int i = 0; i < 12; i++) {
        f64 from = os_now_ms();
        if (!gpu.begin(gpu.self, rows, rows, n, 0)) {
            bench_pass(p, n);
            gpu.end(gpu.self);
        }
        gpu.sync(gpu.self);
        if (i >= 2) best = MIN_OF(best, os_now_ms() - from);
    }
    return best;
}

static void bench(i32 n_layers) {
    static const i32 rows[] = {1, 2, 4, 8, 16, 32, 64, 65, 128, 256, 512, 1024};
    f64 copy, int8, f16;
    must(gpu.ceilings(gpu.self, &copy, &int8, &f16), "ceilings");
    printf(
        "ceilings: copy %.1f GB/s (read and written), int8 %.0f and f16 %.0f G multiply-adds/s\n\n",
        copy, int8, f16);
    BenchPass p = {.n_layers = n_layers,
                   .layers = mem_alloc_n((u64)n_layers, sizeof(BenchLayer), NULL)};
    ASSERT(p.layers);
    u64 bytes = 0, macs = 0;
    for (i32 l = 0; l < n_layers; l++) {
        BenchLayer *w = &p.layers[l];
        const struct {
            Matrix *m;
            i32 n_in, n_out;
        } shapes[] = {{&w->q, BENCH_EMBD, BENCH_EMBD},  {&w->k, BENCH_EMBD, BENCH_KV},
                      {&w->v, BENCH_EMBD, BENCH_KV},    {&w->o, BENCH_EMBD, BENCH_EMBD},
                      {&w->gate, BENCH_EMBD, BENCH_FF}, {&w->up, BENCH_EMBD, BENCH_FF},
                      {&w->down, BENCH_FF, BENCH_EMBD}};
        for (size_t i = 0; i < COUNT_OF(shapes); i++) {
            *shapes[i].m = random_matrix(DLM_I2_S, shapes[i].n_in, shapes[i].n_out, false);
            cpu.mat_free(cpu.self, &shapes[i].m->cpu);
            bytes += shapes[i].m->gpu.owned_bytes;
            macs += (u64)shapes[i].n_in * (u64)shapes[i].n_out;
        }
    }
    must(cpu.reserve(cpu.self, ROWS_MAX, IN_MAX, 512), "cpu reserve");
    must(gpu.reserve(gpu.self, BENCH_ROWS_MOST, BENCH_FF, 1024), "gpu reserve");
    f32 *some = floats((i64)BENCH_ROWS_MOST * BENCH_FF, 1);
    f32 **buffers[] = {&p.x, &p.h, &p.wide, &p.wide2, &p.gain};
    for (size_t i = 0; i < COUNT_OF(buffers); i++)
        *buffers[i] = on_gpu(some, (i64)BENCH_ROWS_MOST * BENCH_FF);
    check_heads(&(Heads){4, 1, 128, 128, 9, 150, 1, DLM_F16,
                         DLM_ROPE_NEOX}); /* so that passes are recorded */
    printf("| rows | ms | GB/s of weights | of copy | G multiply-adds/s | of int8 |\n"
           "|---|---|---|---|---|---|\n");
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        f64 ms = bench_ms(&p, rows[i]), gbs = (f64)bytes / ms / 1e6,
            g = (f64)macs * rows[i] / ms / 1e6;
        printf("| %d | %.3f | %.1f | %.2f | %.0f | %.2f |\n", rows[i], ms, gbs, gbs / copy, g,
               g / int8);
    }
    mem_free(some);
    mem_free(p.layers);
}

static void done(const char *what) { /* says how long a part took */
    static f64 from;
    f64 now = os_now_ms();
    if (from > 0) printf("cuda_check: %s: %.1f s\n", what, (now - from) / 1e3);
    from = now;
}

int main(int argc, char **argv) {
    bool quick = false, only_bench = false, only_kernels = false;
    for (int i = 1; i < argc; i++) {
        quick = quick || strcmp(argv[i], "--quick") == 0;
        only_bench = only_bench || strcmp(argv[i], "--bench") == 0;
        only_kernels = only_kernels || strcmp(argv[i], "--kernels") == 0;
    }
    done("");
    if (!open_both()) return test_end();
    if (only_bench) {
        bench(quick ? 1 : 30);
        return test_end();
    }
    reserve();
    check_rows();
    check_choice();
    done("rows");
    check_matrices(quick);
    done("matrices");
    check_attend(quick);
    done("attention");
    gpu.close(&gpu);
    kern_close_cpu(&cpu);
    pool_close(pool);
    if (only_kernels) return test_end();
    check_golden(quick);
    done("golden logits");
    check_answers(MODEL_PATH, quick ? 2 : 24, quick ? 8 : 96);
    done("answers");
    check_layers(quick ? 3 : 1, quick ? 1 : 8, quick ? 4 : 64);
    done("layers");
    check_draws(quick ? 4 : 40, quick ? 2 : 40);
    done("draws");
    check_slots(quick ? 2 : 8, quick ? 4 : 40);
    done("slots");
    if (!quick) check_memory(1000);
    done("memory");
    return test_end();
}

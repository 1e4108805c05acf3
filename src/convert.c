/* convert.c - a checkpoint, or a GGUF file, into a GGUF file.
 *
 * Owns:      the unfinished output.
 * Stands on: base mem os pool gguf quant model hf vocab plan
 * Promises:  the output appears whole or not at all; memory does not grow with the model; the same bytes
 *            for any number of threads. */
#ifndef DLM_CONVERT_C
#define DLM_CONVERT_C

#include "../dlm_kernels.h"
#include "base.c"
#include "gguf.c"
#include "hf.c"
#include "mem.c"
#include "model.c"
#include "os.c"
#include "plan.c"
#include "pool.c"
#include "quant.c"
#include "vocab.c"

#define CONVERT_CHUNK ((u64)8 << 20) /* bytes of output that are made at a time */
#define CONVERT_BINS 32768           /* magnitudes of a 16-bit float */

typedef struct {
    Plan plan;
    Pool *pool;
    GgufWriter writer;
    OsNewFile out;
    u64 n_out; /* bytes written */
    u8 *chunk; /* [chunk_bytes] */
    u64 chunk_bytes;
    i64 n_in_max;
    f32 *values;    /* [threads][n_in_max] */
    u8 *codes;      /* [threads][n_in_max] */
    u32 *histogram; /* [threads][2][CONVERT_BINS] */
    u64 *bins;      /* [CONVERT_BINS] */
    u8 *code_of;    /* [2 * CONVERT_BINS] by the bits of a 16-bit weight */
    struct ConvertJob_ *job;
} Convert;

/* ---- ternary weights: what scale, which codes ---- */

typedef struct ConvertJob_ {
    Convert *c;
    PlanItem *it;
    i64 row0;        /* the first row of the chunk */
    u64 row_bytes;   /* of the output */
    f32 block_scale; /* of ternary types */
    f64 *row_sum;    /* [n_out] of |W|, or NULL */
    struct {
        _Alignas(64) u64 counts[4];
        const char *wrong; /* NULL: all is well */
        i64 wrong_row;
        f32 least, most; /* magnitudes above zero */
    } thread[POOL_THREADS_MAX];
} ConvertJob_;

static void convert_histogram_rows_(void *arg, i32 begin, i32 end, i32 thread) {
    ConvertJob_ *job = arg;
    i64 n = job->it->n_in;
    const u8 *p = job->it->src + (i64)begin * n * 2;
    /* Two tables, so that a run of equal weights does not wait for its own last count. */
    u32 *a = job->c->histogram + (i64)thread * 2 * CONVERT_BINS, *b = a + CONVERT_BINS;
    i64 total = (i64)(end - begin) * n, i = 0;
    for (; i + 4 <= total; i += 4) {
        u64 four = load_u64(p + 2 * i);
        a[four & 0x7fff]++, b[four >> 16 & 0x7fff]++;
        a[four >> 32 & 0x7fff]++, b[four >> 48 & 0x7fff]++;
    }
    for (; i < total; i++) a[load_u16(p + 2 * i) & 0x7fff]++;
}

static void convert_sum_rows_(void *arg, i32 begin, i32 end, i32 thread) {
    ConvertJob_ *job = arg;
    i64 n = job->it->n_in;
    f32 least = job->thread[thread].least, most = job->thread[thread].most;
    for (i32 row = begin; row < end; row++) {
        f64 sum = 0;
        for (i64 i = 0; i < n; i++) {
            f32 v = f32_abs_(load_f32(job->it->src + 4 * ((i64)row * n + i)));
            sum += (f64)v;
            if (v > most) most = v;
            if (v != 0 && (least == 0 || v < least)) least = v;
        }
        job->row_sum[row] = sum;
    }
    job->thread[thread].least = least, job->thread[thread].most = most;
}

static bool convert_not_exact_(const PlanItem *it, Err *e) {
    return err_set(
        e, ERR_MODEL,
        "%s: tensor %.*s begins with three values and goes on with others; it is not ternary",
        it->file, STR_ARG(it->from));
}

static bool convert_not_finite_(const PlanItem *it, Err *e) {
    return err_set(e, ERR_MODEL, "%s: tensor %.*s holds a weight that is NaN or infinite", it->file,
                   STR_ARG(it->from));
}

static f32 convert_value_of_(DlmType type, u32 bits) {
    return type == DLM_F16 ? f16_to_f32((u16)bits) : bf16_to_f32((u16)bits);
}

/* The scale of a tensor of 16-bit weights from how often each magnitude occurs: exact, and the same for any
 * number of threads. Then a table from the bits of a weight to its code. */
static bool convert_scale_16_(Convert *c, PlanItem *it, ConvertJob_ *job, Err *e) {
    u64 n_tables = 2 * (u64)pool_threads(c->pool), n_kinds = 0;
    f64 sum = 0, squares = 0, rest = 0;
    f32 only = 0;
    memset(c->histogram, 0, n_tables * CONVERT_BINS * sizeof *c->histogram);
    pool_for(c->pool, (i32)it->n_out, (i32)MAX_OF(1, 65536 / it->n_in), convert_histogram_rows_,
             job);
    for (u32 bin = 0; bin < CONVERT_BINS; bin++) {
        c->bins[bin] = 0;
        for (u64 t = 0; t < n_tables; t++) c->bins[bin] += c->histogram[t * CONVERT_BINS + bin];
        f32 v = convert_value_of_(it->src_type, bin);
        f64 n = (f64)c->bins[bin];
        if (n == 0) continue;
        if (!(v < 3.4e38f)) return convert_not_finite_(it, e);
        sum += (f64)v * n, squares += (f64)v * (f64)v * n;
        if (v != 0) only = v, n_kinds++;
    }
    it->scale = n_kinds == 1 ? only : MAX_OF((f32)(sum / (f64)(it->n_in * it->n_out)), 1e-5f);
    for (u32 bits = 0; bits < 2 * CONVERT_BINS; bits++) {
        f32 v = convert_value_of_(it->src_type, bits);
        c->code_of[bits] = plan_code(v, it->scale);
        f64 left = (f64)v - ((f64)c->code_of[bits] - 1) * (f64)it->scale;
        if (bits < CONVERT_BINS && c->bins[bits]) rest += left * left * (f64)c->bins[bits];
    }
    it->error = squares > 0 ? rest / squares : 0;
    return it->exact ? n_kinds <= 1 || convert_not_exact_(it, e) : true;
}

/* The same of 32-bit weights: sums of rows, added in the order of the rows. */
static bool convert_scale_32_(Convert *c, PlanItem *it, ConvertJob_ *job, Err *e) {
    f64 sum = 0;
    f32 least = 0, most = 0;
    job->row_sum = mem_alloc_n((u64)it->n_out, sizeof *job->row_sum, e);
    if (!job->row_sum) return false;
    pool_for(c->pool, (i32)it->n_out, (i32)MAX_OF(1, 65536 / it->n_in), convert_sum_rows_, job);
    for (i64 row = 0; row < it->n_out; row++) sum += job->row_sum[row];
    mem_free(job->row_sum);
    if (!(sum < 1e300)) return convert_not_finite_(it, e);
    for (i32 t = 0; t < pool_threads(c->pool); t++) {
        f32 l = job->thread[t].least;
        most = MAX_OF(most, job->thread[t].most);
        if (l != 0 && (least == 0 || l < least)) least = l;
    }
    it->scale =
        least == most && most > 0 ? most : MAX_OF((f32)(sum / (f64)(it->n_in * it->n_out)), 1e-5f);
    return !it->exact || least == most || convert_not_exact_(it, e);
}

/* ---- rows of the output ---- */

static void convert_codes_row_(const ConvertJob_ *job, i64 row, f32 *values, u8 *codes) {
    const PlanItem *it = job->it;
    if (it->form != FORM_ONLINE || it->src_type == DLM_F32) {
        plan_codes_row(it, row, values, codes);
        return;
    }
    const u8 *p = it->src + 2 * plan_source_row(it, row) * it->n_in;
    for (i64 i = 0; i < it->n_in; i++) codes[i] = job->c->code_of[load_u16(p + 2 * i)];
}

/* How often each code occurs, eight at a time: in a sum of up to 255 words no byte overflows. */
static void convert_count_(const u8 *codes, i64 n, u64 counts[4]) {
    const u64 ones = 0x0101010101010101u, pairs = 0x00ff00ff00ff00ffu;
    i64 i = 0;
    while (n - i >= 8) {
        u64 low = 0, high = 0, both = 0, sums[3];
        for (i64 end = MIN_OF(i + 8 * 255, i + (n - i) / 8 * 8); i < end; i += 8) {
            u64 x = load_u64(codes + i), h = x >> 1 & ones;
            low += x & ones, high += h, both += x & h;
        }
        const u64 words[3] = {low, high, both};
        for (int k = 0; k < 3; k++)
            sums[k] = ((words[k] & pairs) + (words[k] >> 8 & pairs)) * 0x0001000100010001u >> 48;
        counts[1] += sums[0] - sums[2], counts[2] += sums[1] - sums[2], counts[3] += sums[2];
    }
    for (; i < n; i++) counts[codes[i]] += codes[i] != 0;
}

static void convert_wrong_(ConvertJob_ *job, i32 thread, i64 row, const char *wrong) {
    if (!job->thread[thread].wrong || row < job->thread[thread].wrong_row)
        job->thread[thread].wrong = wrong, job->thread[thread].wrong_row = row;
}

static void convert_ternary_row_(ConvertJob_ *job, i64 row, i32 thread, f32 *values, u8 *codes,
                                 u8 *dst) {
    const PlanItem *it = job->it;
    convert_codes_row_(job, row, values, codes);
    convert_count_(codes, it->n_in, job->thread[thread].counts);
    if (it->type == DLM_I2_S) {
        quant_i2s_codes(codes, it->n_in, dst);
        return;
    }
    if (quant_is_ternary(it->type)) {
        quant_codes_to_row(it->type, codes, it->n_in, job->block_scale, dst);
        return;
    }
    const f32 value[4] = {-job->block_scale, 0, job->block_scale, 0};
    for (i64 i = 0; i < it->n_in; i++) values[i] = value[codes[i] & 3];
    const char *wrong = quant_row(it->type, values, it->n_in, dst);
    if (wrong) convert_wrong_(job, thread, row, wrong);
}

/* A row of 16-bit numbers that stay what they are: no exponent of ones is a NaN or an infinity. */
static void convert_same_row_(ConvertJob_ *job, i64 row, i32 thread, u8 *dst) {
    const PlanItem *it = job->it;
    const u8 *p = it->src + 2 * plan_source_row(it, row) * it->n_in;
    u16 ones = it->type == DLM_F16 ? 0x7c00 : 0x7f80, bad = 0;
    for (i64 i = 0; i < it->n_in; i++) bad |= (load_u16(p + 2 * i) & ones) == ones;
    memcpy(dst, p, 2 * (size_t)it->n_in);
    if (bad) convert_wrong_(job, thread, row, "a weight is NaN or infinite");
}

/* Rows [begin, end) of the chunk. */
static void convert_rows_(void *arg, i32 begin, i32 end, i32 thread) {
    ConvertJob_ *job = arg;
    const PlanItem *it = job->it;
    f32 *values = job->c->values + thread * job->c->n_in_max;
    u8 *codes = job->c->codes + thread * job->c->n_in_max;
    for (i64 row = job->row0 + begin; row < job->row0 + end; row++) {
        u8 *dst = job->c->chunk + (u64)(row - job->row0) * job->row_bytes;
        if (plan_is_ternary(it)) {
            convert_ternary_row_(job, row, thread, values, codes, dst);
            continue;
        }
        if (it->type == it->src_type && it->n_out > 1 && quant_info(it->type)->bytes == 2) {
            convert_same_row_(job, row, thread, dst);
            continue;
        }
        plan_values_row(it, row, values);
        const char *wrong = quant_row(it->type, values, it->n_in, dst);
        if (wrong) convert_wrong_(job, thread, row, wrong);
    }
}

/* ---- writing ---- */

static bool convert_write_(Convert *c, const void *p, u64 n, Err *e) {
    Err why = {0};
    if (os_write_all(c->out.fd, p, n, &why)) {
        c->n_out += n;
        return true;
    }
    return err_set(e, ERR_RUNTIME, "%s: %s after %llu bytes", c->plan.o->to,
                   why.msg[0] ? why.msg : "cannot write", (unsigned long long)c->n_out);
}

static bool convert_progress_(Convert *c, u64 n, Err *e) {
    c->plan.done += n;
    if (c->plan.events->on_progress)
        c->plan.events->on_progress(c->plan.events->arg, c->plan.done, c->plan.total);
    if (c->plan.events->on_cancelled && c->plan.events->on_cancelled(c->plan.events->arg))
        return err_set(e, ERR_INTERRUPTED, "interrupted");
    return true;
}

static bool convert_write_raw_(Convert *c, const PlanItem *it, Err *e) {
    for (u64 at = 0, n; at < it->src_bytes; at += n) {
        n = MIN_OF(it->src_bytes - at, CONVERT_CHUNK);
        if (!convert_write_(c, it->src + at, n, e) || !convert_progress_(c, n, e)) return false;
        os_forget(it->src + at, n);
    }
    return true;
}

static bool convert_check_rows_(const ConvertJob_ *job, Err *e) {
    const char *wrong = NULL;
    i64 row = 0;
    u64 threes = 0;
    for (i32 t = 0; t < pool_threads(job->c->pool); t++) {
        threes += job->thread[t].counts[3];
        if (!job->thread[t].wrong || (wrong && job->thread[t].wrong_row > row)) continue;
        wrong = job->thread[t].wrong, row = job->thread[t].wrong_row;
    }
    if (wrong)
        return err_set(e, ERR_MODEL, "%s: tensor %.*s, row %lld: %s", job->it->file,
                       STR_ARG(job->it->from), (long long)row, wrong);
    return threes == 0 || err_set(e, ERR_MODEL, "%s: tensor %.*s has codes that are not ternary",
                                  job->it->file, STR_ARG(job->it->from));
}

/* One tensor, a chunk of rows at a time. */
static bool convert_write_rows_(Convert *c, PlanItem *it, ConvertJob_ *job, Err *e) {
    bool i2s = it->type == DLM_I2_S;
    u64 src_row = it->src_bytes / (u64)it->n_out;
    job->row_bytes = i2s ? (u64)it->n_in / 4 : quant_row_bytes(it->type, it->n_in);
    i64 rows = (i64)MAX_OF(c->chunk_bytes / job->row_bytes, 1);
    i32 grain = (i32)MAX_OF(1, 16384 / it->n_in);
    for (job->row0 = 0; job->row0 < it->n_out; job->row0 += rows) {
        i64 n = MIN_OF(rows, it->n_out - job->row0);
        pool_for(c->pool, (i32)n, grain, convert_rows_, job);
        if (!convert_check_rows_(job, e) ||
            !convert_write_(c, c->chunk, (u64)n * job->row_bytes, e))
            return false;
        if (!it->n_permute && it->form != FORM_PACKED && it->form != FORM_MADE)
            os_forget(it->src + (u64)job->row0 * src_row, (u64)n * src_row);
        if (!convert_progress_(c, it->form == FORM_MADE ? 0 : (u64)n * src_row, e)) return false;
    }
    for (i32 t = 0; t < pool_threads(c->pool); t++)
        for (int k = 0; k < 4; k++) it->counts[k] += job->thread[t].counts[k];
    it->counts[0] = (u64)(it->n_in * it->n_out) - it->counts[1] - it->counts[2];
    u8 tail[DLM_I2S_TAIL];
    quant_i2s_tail(it->scale, tail);
    return !i2s || convert_write_(c, tail, sizeof tail, e);
}

static bool convert_write_item_(Convert *c, u32 index, Err *e) {
    PlanItem *it = &c->plan.items[index];
    if (it->form == FORM_RAW) return convert_write_raw_(c, it, e);
    if (it->form == FORM_SCALE) return convert_write_(c, &it[-1].scale, sizeof(f32), e);
    ConvertJob_ *job = c->job;
    memset(job, 0, sizeof *job);
    job->c = c;
    job->it = it;
    bool wide = it->src_type == DLM_F32;
    if (it->form == FORM_ONLINE &&
        !(wide ? convert_scale_32_(c, it, job, e) : convert_scale_16_(c, it, job, e)))
        return false;
    bool beside = index + 1 < c->plan.n_items && it[1].form == FORM_SCALE;
    job->block_scale = beside                       ? 1
                       : quant_is_ternary(it->type) ? f16_to_f32(f32_to_f16(it->scale))
                                                    : it->scale;
    bool ok = convert_write_rows_(c, it, job, e);
    if (it->form != FORM_MADE) os_forget(it->src, it->src_bytes);
    return ok;
}

static bool convert_write_all_(Convert *c, Err *e) {
    static const u8 zeros[GGUF_ALIGN_DEFAULT] = {0};
    Buf head = {.max = (size_t)1 << 30};
    bool ok = gguf_writer_head(&c->writer, &head) && convert_write_(c, head.p, head.n, e);
    buf_free(&head);
    for (u32 i = 0; ok && i < c->plan.n_items; i++)
        ok = convert_write_item_(c, i, e) && convert_write_(c, zeros, gguf_padding(c->n_out), e);
    return ok;
}

static bool convert_take_memory_(Convert *c, Err *e) {
    u64 threads = (u64)pool_threads(c->pool);
    c->chunk_bytes = CONVERT_CHUNK;
    for (u32 i = 0; i < c->plan.n_items; i++) {
        const PlanItem *it = &c->plan.items[i];
        if (it->form == FORM_RAW) continue;
        c->n_in_max = MAX_OF(c->n_in_max, it->n_in);
    }
    c->n_in_max = (c->n_in_max + 63) / 64 * 64;
    c->chunk_bytes = MAX_OF(c->chunk_bytes, 4 * (u64)c->n_in_max);
    c->chunk = mem_alloc(c->chunk_bytes, e);
    c->values = mem_alloc_n(threads * (u64)c->n_in_max, sizeof *c->values, e);
    c->codes = mem_alloc_n(threads, (u64)c->n_in_max, e);
    c->histogram = mem_alloc_n(threads * 2 * CONVERT_BINS, sizeof *c->histogram, e);
    c->bins = mem_alloc_n(CONVERT_BINS, sizeof *c->bins, e);
    c->code_of = mem_alloc(2 * CONVERT_BINS, e);
    c->job = mem_alloc(sizeof(ConvertJob_), e);
    return c->chunk && c->values && c->codes && c->histogram && c->bins && c->code_of && c->job;
}

/* ---- keys ---- */

static void convert_put_tensors_(Convert *c) {
    for (u32 i = 0; i < c->plan.n_items; i++)
        gguf_put_tensor(&c->writer, str_of(c->plan.items[i].name), c->plan.items[i].type,
                        c->plan.items[i].n_dims, c->plan.items[i].ne);
}

static void convert_put_gguf_keys_(Convert *c) {
    for (u32 i = 0; i < c->plan.gguf.n_kv; i++) {
        const GgufKv *kv = &c->plan.gguf.kv[i];
        if (!str_eq(kv->key, STR("general.file_type"))) gguf_put_raw_kv(&c->writer, kv);
    }
}

/* The last part of a path. */
static Str convert_base_name_(const char *path) {
    Str s = str_of(path);
    while (s.n > 1 && s.p[s.n - 1] == '/') s.n--;
    for (size_t i = s.n; i-- > 0;)
        if (s.p[i] == '/') return str_cut(s, i + 1, s.n);
    return s;
}

static bool convert_put_keys_(Convert *c, Err *e) {
    if (c->plan.has_hf) {
        if (!hf_put_keys(&c->plan.hf, &c->writer, convert_base_name_(c->plan.o->from), e))
            return false;
        if (c->plan.vocab.mask >= 0) {
            DecodeRecord d = hf_decode(&c->plan.hf, &c->plan.o->decode);
            hf_put_decode(&d, &c->writer);
        }
        vocab_put_keys(&c->plan.vocab, &c->writer);
    } else {
        convert_put_gguf_keys_(c);
    }
    gguf_put_u32(&c->writer, "general.file_type", plan_file_type(c->plan.main_type));
    convert_put_tensors_(c);
    return true;
}

/* ---- what is said ---- */

static u64 convert_count_form_(const Convert *c, PlanForm form) {
    u64 n = 0;
    for (u32 i = 0; i < c->plan.n_items; i++) n += c->plan.items[i].form == form;
    return n;
}

static const PlanItem *convert_first_(const Convert *c, PlanRole role) {
    for (u32 i = 0; i < c->plan.n_items; i++)
        if (c->plan.items[i].role == role) return &c->plan.items[i];
    return NULL;
}

static void convert_say_plan_(Convert *c) {
    const PlanItem *embed = convert_first_(c, ROLE_EMBED), *out = convert_first_(c, ROLE_OUTPUT),
                   *linear = convert_first_(c, ROLE_LINEAR);
    u64 packed = convert_count_form_(c, FORM_PACKED), online = convert_count_form_(c, FORM_ONLINE);
    if (c->plan.has_hf) {
        plan_say(&c->plan, false, "%s: %s, %lld layers; tokenizer %s", c->plan.hf.class->name,
                 c->plan.hf.family->arch, (long long)c->plan.hf.n_layer,
                 c->plan.vocab.spm_style ? "llama (SentencePiece)" : c->plan.vocab.pre_name);
        if (c->plan.vocab.mask >= 0) {
            DecodeRecord d = hf_decode(&c->plan.hf, &c->plan.o->decode);
            plan_say(&c->plan, false,
                     "mask token %d '%.*s'; blocks of %d, parts of %d, %s attention, threshold %g",
                     c->plan.vocab.mask, STR_ARG(c->plan.vocab.text[c->plan.vocab.mask]),
                     d.block_size, d.sub_block_size, MODEL_ATTENTION_NAMES[d.attention],
                     (f64)d.threshold);
        } else {
            plan_say(&c->plan, true, "no mask token: the model writes one token at a time");
        }
    }
    if (packed)
        plan_say(&c->plan, false, "%llu ternary matrices, packed; weight_scale %s",
                 (unsigned long long)packed,
                 c->plan.hf.divides ? "divides (bitlinear)" : "multiplies (autobitlinear)");
    if (online)
        plan_say(&c->plan, false,
                 "%llu matrices are made ternary: round(W / mean |W|), one mean each",
                 (unsigned long long)online);
    if (linear)
        plan_say(&c->plan, false, "linear weights %s, embedding %s, output %s",
                 plan_type_name(c->plan.main_type), embed ? plan_type_name(embed->type) : "none",
                 out ? plan_type_name(out->type) : "tied to it");
    if (online + packed && linear && !quant_is_ternary(c->plan.main_type))
        plan_say(
            &c->plan, true,
            "in %s the weights keep their three values, but activations are no longer rounded to "
            "8 bits, as the model was trained with: expect other answers",
            plan_type_name(c->plan.main_type));
}

/* Shares that no trained ternary model has are worth a warning. */
static void convert_say_shares_(Convert *c) {
    for (u32 i = 0; i < c->plan.n_items; i++) {
        const PlanItem *it = &c->plan.items[i];
        f64 n = (f64)(it->n_in * it->n_out);
        if (!plan_is_ternary(it)) continue;
        f64 minus = 100 * (f64)it->counts[0] / n, zero = 100 * (f64)it->counts[1] / n,
            plus = 100 * (f64)it->counts[2] / n;
        const char *why = NULL;
        if (zero < 1)
            why = "no zeros: these are signs, not absmean's codes";
        else if (zero > 80)
            why = "hardly anything but zeros: scaled by a maximum, not a mean";
        else if (zero < 15 || zero > 60 || minus - plus > 10 || plus - minus > 10 ||
                 it->error > 0.6)
            why =
                "not what training with ternary weights gives; was it finished, warm-up included?";
        if (why)
            plan_say(&c->plan, true,
                     "%s: %.1f%% are -1, %.1f%% 0, %.1f%% +1, rounding took %.1f%%: %s", it->name,
                     minus, zero, plus, 100 * it->error, why);
    }
}

/* ---- the whole way ---- */

static void convert_close_(Convert *c) {
    os_new_drop(&c->out);
    gguf_writer_close(&c->writer);
    void *blocks[] = {c->chunk, c->values, c->codes, c->histogram, c->bins, c->code_of, c->job};
    for (size_t i = 0; i < COUNT_OF(blocks); i++) mem_free(blocks[i]);
    pool_close(c->pool);
    plan_close(&c->plan);
    mem_free(c);
}

/* Somebody who looks at the complete file before it takes its place. */
typedef struct {
    void *arg;
    bool (*on_written)(void *arg, const Convert *c, Err *e); /* false: the file is dropped */
    bool drop;                                               /* it is dropped in any case */
} ConvertHook;

static bool convert_all_(Convert *c, const PlanOptions *o, const PlanEvents *events,
                         const ConvertHook *hook, Err *e) {
    i32 threads = o->n_threads ? o->n_threads : os_cpu_count();
    gguf_writer_open(&c->writer, e);
    if (!plan_open(&c->plan, o, events, e) || !convert_put_keys_(c, e)) return false;
    convert_say_plan_(c);
    if (!pool_open(&c->pool, threads, e) || !convert_take_memory_(c, e)) return false;
    if (!os_new_open(&c->out, o->to, e) || !convert_write_all_(c, e)) return false;
    convert_say_shares_(c);
    if (hook && !hook->on_written(hook->arg, c, e)) return false;
    return (hook && hook->drop) || os_new_finish(&c->out, e);
}

/* Converts o->from, a folder or a GGUF file, to the GGUF file o->to. hook: NULL, or one. */
static bool convert_run(const PlanOptions *o, const PlanEvents *events, const ConvertHook *hook,
                        Err *e) {
    Convert *c = mem_alloc(sizeof *c, e);
    if (!c) return false;
    c->out.fd = -1;
    bool ok = convert_all_(c, o, events, hook, e);
    convert_close_(c);
    return ok;
}

#endif

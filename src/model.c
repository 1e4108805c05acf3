/* model.c - what a model is: its family, its sizes, its decode record, its weights bound and checked.
 *
 * Owns:      the repacked matrices and norm vectors; not the file's mapping, which must outlive it.
 * Stands on: base mem os gguf tok quant tl kern_ref
 * Promises:  every shape is checked against the metadata before a forward pass can run; a tensor or
 *            setting that would change the function and is not understood is an error, never
 *            dropped. */
#ifndef DLM_MODEL_C
#define DLM_MODEL_C

#include "../dlm_kernels.h"
#include "base.c"
#include "gguf.c"
#include "kern_ref.c"
#include "mem.c"
#include "os.c"
#include "quant.c"
#include "tl.c"
#include "tok.c"

#define MODEL_LAYER_MAX 1024
#define MODEL_EMBD_MAX 65536
#define MODEL_FF_MAX (1 << 20)
#define MODEL_HEAD_MAX 1024
#define MODEL_HEAD_DIM_MAX 1024
#define MODEL_CTX_MAX (1 << 24)
#define MODEL_BLOCK_MAX 65536 /* tokens in a diffusion block; as a block size: the whole answer */

/* ---- the decode record: how this checkpoint was trained to be decoded ---- */

typedef enum { ATTEND_CAUSAL, ATTEND_BLOCK, ATTEND_FULL } ModelAttention;
static const char *const MODEL_ATTENTION_NAMES[] = {"causal", "block", "full"};

/* Where a field of the record came from; printed by `dlm info`. */
typedef enum { FROM_DEFAULT, FROM_FAMILY, FROM_FILE, FROM_VOCABULARY, FROM_FLAG } ModelSource;
static const char *const MODEL_SOURCE_NAMES[] = {"default", "family", "file", "vocabulary", "flag"};

typedef enum { ORDER_POSITION, ORDER_REVEALED } ModelOrder;
static const char *const MODEL_ORDER_NAMES[] = {"position", "revealed_first"};

typedef enum { ALIGN_ABSOLUTE, ALIGN_PROMPT_END } ModelAlign;
static const char *const MODEL_ALIGN_NAMES[] = {"absolute", "prompt_end"};

typedef enum { FIRST_MASKED, FIRST_COMMIT } ModelFirst;
static const char *const MODEL_FIRST_NAMES[] = {"masked", "commit"};

/* What a rule does is a row of DECODE_RULES; names are those of the published code. */
typedef enum {
    RULE_MODEL, /* only in requests: the record's */
    RULE_THRESHOLD,
    RULE_LOW_CONFIDENCE_DYNAMIC,
    RULE_LOW_CONFIDENCE,
    RULE_SEQUENTIAL,
    RULE_RANDOM,
    RULE_ENTROPY_BOUND,
    RULE_ORIGIN,
    RULE_MASKGIT_PLUS,
    RULE_TOPK_MARGIN,
    RULE_ENTROPY
} ModelRule;
static const char *const MODEL_RULE_NAMES[] = {
    "model",          "threshold",  "low_confidence_dynamic",
    "low_confidence", "sequential", "random",
    "entropy_bound",  "origin",     "maskgit_plus",
    "topk_margin",    "entropy"};

/* Which rows a denoising step computes again. */
typedef enum {
    CACHE_MODEL,  /* only in requests: the record's */
    CACHE_NONE,   /* the whole block; under full attention the whole canvas */
    CACHE_DUAL,   /* the sub-block at hand; under full attention the block */
    CACHE_MASKED, /* of those, the rows that predict a mask or were revealed since they were run */
} ModelCache;
static const char *const MODEL_CACHE_NAMES[] = {"model", "none", "dual", "masked"};

/* One field of the record: the key `diffusion.NAME`, and where its value lies. */
typedef enum { FIELD_WORD, FIELD_BOOL, FIELD_INT, FIELD_REAL } ModelFieldKind;

enum {
    RECORD_ATTENTION,
    RECORD_ORDER,
    RECORD_SHIFT,
    RECORD_ALIGN,
    RECORD_BLOCK,
    RECORD_SUB_BLOCK,
    RECORD_FIRST,
    RECORD_RULE,
    RECORD_THRESHOLD,
    RECORD_STEPS,
    RECORD_CACHE,
    RECORD_FIELDS
};

typedef struct {
    i32 mask_id;   /* -1: this model cannot diffuse */
    i32 attention; /* ModelAttention */
    i32 order;     /* ModelOrder: revealed_first is WeDLM's sliding window of block_size */
    bool shift;    /* logits row i predicts token i + 1 */
    i32 align; /* ModelAlign: blocks begin at multiples from position 0, or at the prompt's end */
    i32 block_size, sub_block_size;
    i32 first; /* ModelFirst: a block's first token is a candidate like any other (masked), or taken
                  outright from the forward that makes what is before it final (Fast-dLLM) */
    i32 rule;  /* ModelRule, not RULE_MODEL */
    f32 threshold;
    i32 steps; /* that a sub-block is given, by rules with a schedule; 0: one per token */
    i32 cache; /* ModelCache, not CACHE_MODEL */
    ModelSource from_mask, from[RECORD_FIELDS];
} DecodeRecord;

typedef struct {
    const char *name;
    ModelFieldKind kind;
    size_t at;                /* in DecodeRecord */
    i32 lo, hi;               /* of words and numbers; a real may not be lo */
    const char *const *names; /* of words */
} ModelField;

#define RECORD_AT(field) offsetof(DecodeRecord, field)
#define MODEL_STEPS_MAX 4096

static const ModelField MODEL_FIELDS[RECORD_FIELDS] = {
    [RECORD_ATTENTION] = {"attention", FIELD_WORD, RECORD_AT(attention), ATTEND_CAUSAL, ATTEND_FULL,
                          MODEL_ATTENTION_NAMES},
    [RECORD_ORDER] = {"order", FIELD_WORD, RECORD_AT(order), ORDER_POSITION, ORDER_REVEALED,
                      MODEL_ORDER_NAMES},
    [RECORD_SHIFT] = {"shift_logits", FIELD_BOOL, RECORD_AT(shift), 0, 1, NULL},
    [RECORD_ALIGN] = {"align", FIELD_WORD, RECORD_AT(align), ALIGN_ABSOLUTE, ALIGN_PROMPT_END,
                      MODEL_ALIGN_NAMES},
    [RECORD_BLOCK] = {"block_size", FIELD_INT, RECORD_AT(block_size), 1, MODEL_BLOCK_MAX, NULL},
    [RECORD_SUB_BLOCK] = {"sub_block_size", FIELD_INT, RECORD_AT(sub_block_size), 1,
                          MODEL_BLOCK_MAX, NULL},
    [RECORD_FIRST] = {"first_token", FIELD_WORD, RECORD_AT(first), FIRST_MASKED, FIRST_COMMIT,
                      MODEL_FIRST_NAMES},
    [RECORD_RULE] = {"rule", FIELD_WORD, RECORD_AT(rule), RULE_THRESHOLD, RULE_ENTROPY,
                     MODEL_RULE_NAMES},
    [RECORD_THRESHOLD] = {"threshold", FIELD_REAL, RECORD_AT(threshold), 0, 1, NULL},
    [RECORD_STEPS] = {"steps", FIELD_INT, RECORD_AT(steps), 0, MODEL_STEPS_MAX, NULL},
    [RECORD_CACHE] = {"cache", FIELD_WORD, RECORD_AT(cache), CACHE_NONE, CACHE_MASKED,
                      MODEL_CACHE_NAMES},
};

/* ---- conventions: how the published checkpoints of each line of models are decoded. A row is what
 * a file's family says when its own keys do not, and what --convention puts in their place. ---- */

enum {
    CONVENTION_UNIFIED, /* models made for both ways, as WrinkleFree's: also the common default */
    CONVENTION_FAST_DLLM,
    CONVENTION_SDAR,
    CONVENTION_LLADA,
    CONVENTION_LLADA_BLOCK, /* Fast-dLLM's way with LLaDA and Dream: a threshold, and a cache */
    CONVENTION_DREAM,
    CONVENTION_DREAM_BLOCK,
    CONVENTION_WEDLM,
    CONVENTIONS
};

typedef struct {
    const char *name;
    DecodeRecord record;
} ModelConvention;

static const ModelConvention MODEL_CONVENTIONS[CONVENTIONS] = {
    [CONVENTION_UNIFIED] = {"unified",
                            {.attention = ATTEND_CAUSAL,
                             .shift = true,
                             .align = ALIGN_PROMPT_END,
                             .block_size = 32,
                             .sub_block_size = 32,
                             .rule = RULE_THRESHOLD,
                             .threshold = 0.9f,
                             .cache = CACHE_DUAL}},
    [CONVENTION_FAST_DLLM] = {"fast-dllm-v2",
                              {.attention = ATTEND_BLOCK,
                               .shift = true,
                               .block_size = 32,
                               .sub_block_size = 8,
                               .first = FIRST_COMMIT,
                               .rule = RULE_THRESHOLD,
                               .threshold = 0.9f,
                               .cache = CACHE_DUAL}},
    [CONVENTION_SDAR] = {"sdar",
                         {.attention = ATTEND_BLOCK,
                          .block_size = 4,
                          .sub_block_size = 4,
                          .rule = RULE_LOW_CONFIDENCE_DYNAMIC,
                          .threshold = 0.85f,
                          .cache = CACHE_DUAL}},
    [CONVENTION_LLADA] = {"llada",
                          {.attention = ATTEND_FULL,
                           .align = ALIGN_PROMPT_END,
                           .block_size = 32,
                           .sub_block_size = 32,
                           .rule = RULE_LOW_CONFIDENCE,
                           .threshold = 0.9f,
                           .cache = CACHE_NONE}},
    [CONVENTION_LLADA_BLOCK] = {"llada-block",
                                {.attention = ATTEND_FULL,
                                 .align = ALIGN_PROMPT_END,
                                 .block_size = 32,
                                 .sub_block_size = 32,
                                 .rule = RULE_THRESHOLD,
                                 .threshold = 0.9f,
                                 .cache = CACHE_DUAL}},
    [CONVENTION_DREAM] = {"dream",
                          {.attention = ATTEND_FULL,
                           .shift = true,
                           .align = ALIGN_PROMPT_END,
                           .block_size = MODEL_BLOCK_MAX,
                           .sub_block_size = MODEL_BLOCK_MAX,
                           .rule = RULE_ENTROPY,
                           .threshold = 0.9f,
                           .cache = CACHE_NONE}},
    [CONVENTION_DREAM_BLOCK] = {"dream-block",
                                {.attention = ATTEND_FULL,
                                 .shift = true,
                                 .align = ALIGN_PROMPT_END,
                                 .block_size = 32,
                                 .sub_block_size = 32,
                                 .first = FIRST_COMMIT,
                                 .rule = RULE_THRESHOLD,
                                 .threshold = 0.9f,
                                 .cache = CACHE_DUAL}},
    [CONVENTION_WEDLM] = {"wedlm",
                          {.attention = ATTEND_CAUSAL,
                           .order = ORDER_REVEALED,
                           .align = ALIGN_PROMPT_END,
                           .block_size = 16,
                           .sub_block_size = 16,
                           .rule = RULE_ENTROPY_BOUND,
                           .threshold = 0.4f,
                           .cache = CACHE_NONE}},
};

/* ---- families: each a row of data. Sources: the GGUF architecture names and tensor lists of
 * llama.cpp and of the BitNet fork, and the published model code.
 *
 * The tensors of blk.N beside attn_norm, ffn_norm and the seven matrices attn_q, attn_k, attn_v,
 * attn_output, ffn_gate, ffn_up, ffn_down, where a family or a file has them:
 *   attn_{q,k,v,output}.bias
 *   attn_{q,k}_norm.weight  [head_dim]    norms of each head's query and key, before the rotation
 *   {attn,ffn}_sub_norm.weight            SubLN before the output and down projections, or
 *   X_norm_in.weight        [n_in of X]   SubLN before every matrix X
 *   attn_qkv.weight                       q, k and v as one matrix, their rows in that order
 *   ffn_up.weight of 2 n_ff rows          gate and up as one matrix, the gate's rows first
 *   X.scale                               one f32 beside a ternary X.weight, which it multiplies
 * The file's: token_embd, output_norm, output (absent: tied), rope_freqs.weight (Llama 3's
 * divisors), rope_factors_long.weight and rope_factors_short.weight (longrope). Under
 * DLM_ROPE_NORM the rows of q and k are permuted from Hugging Face's order; sub-norms never are.
 * Keys of the architecture that only dlm knows: attention.sub_norm_rms_epsilon (absent: that of
 * the other norms) and no_rope_layer_interval (of so many layers the last does not rotate).
 * attention.sliding_window_pattern is an array of bool, or a period whose last layer does not
 * slide. ---- */

/* The parts of a layer that not every family has. */
typedef enum {
    PART_ALWAYS,
    PART_QKV_BIAS,
    PART_O_BIAS,
    PART_QK_NORM,
    PART_SUB_NORM,
    PART_NORM_IN,
    PART_FUSED_QKV,
    PART_FUSED_GATE_UP,
    MODEL_PARTS
} ModelPart;

/* The tensor that shows that a file has the part, and what `dlm info` calls it. */
static const struct {
    const char *probe, *title;
} MODEL_PART[MODEL_PARTS] = {
    [PART_ALWAYS] = {"token_embd.weight", NULL},
    [PART_QKV_BIAS] = {"blk.0.attn_q.bias", "q/k/v biases"},
    [PART_O_BIAS] = {"blk.0.attn_output.bias", "output bias"},
    [PART_QK_NORM] = {"blk.0.attn_q_norm.weight", "q/k norms"},
    [PART_SUB_NORM] = {"blk.0.attn_sub_norm.weight",
                       "SubLN before the output and down projections"},
    [PART_NORM_IN] = {"blk.0.attn_q_norm_in.weight", "SubLN before every projection"},
    [PART_FUSED_QKV] = {"blk.0.attn_qkv.weight", "q, k and v in one matrix"},
    [PART_FUSED_GATE_UP] = {"blk.0.ffn_up.weight", "gate and up in one matrix"},
};

typedef enum { NEED_NO, NEED_MAYBE, NEED_YES } ModelNeed;

typedef struct {
    const char *arch; /* general.architecture, and the prefix of its keys */
    DlmRope rope;
    DlmAct act;
    bool act_key;         /* `{arch}.hidden_act` may override act */
    i32 no_rope_interval; /* of so many layers the last does not rotate; 0: all rotate */
    ModelNeed need[MODEL_PARTS];
    i32 convention; /* how its models are decoded; 0: the common default */
} ModelFamily;

/* Mistral, Ministral, SmolLM2 and the ternary Falcon3 and Llama 3 come as llama, Ministral 3 as
 * mistral3, DiffuCoder as dream, and what was made to diffuse later as the family that it was made
 * from. */
#define BITNET_PARTS .need[PART_SUB_NORM] = NEED_YES, .need[PART_NORM_IN] = NEED_MAYBE
#define SUB_NORM_PARTS .need[PART_SUB_NORM] = NEED_MAYBE, .need[PART_NORM_IN] = NEED_MAYBE
#define BIAS_PARTS .need[PART_QKV_BIAS] = NEED_MAYBE, .need[PART_O_BIAS] = NEED_MAYBE
#define FUSED_PARTS .need[PART_FUSED_QKV] = NEED_YES, .need[PART_FUSED_GATE_UP] = NEED_YES
/* clang-format off */
static const ModelFamily MODEL_FAMILIES[] = {
    {.arch = "bitnet-b1.58", .rope = DLM_ROPE_NEOX, .act = DLM_ACT_RELU2, .act_key = true,
     BITNET_PARTS, BIAS_PARTS},
    {.arch = "bitnet-25", .rope = DLM_ROPE_NEOX, .act = DLM_ACT_RELU2, .act_key = true,
     BITNET_PARTS},
    {.arch = "bitnet", .rope = DLM_ROPE_NEOX, .act_key = true, BITNET_PARTS},
    {.arch = "llama", .rope = DLM_ROPE_NORM, SUB_NORM_PARTS, BIAS_PARTS},
    {.arch = "mistral3", .rope = DLM_ROPE_NORM},
    {.arch = "smollm3", .rope = DLM_ROPE_NORM, .no_rope_interval = 4, SUB_NORM_PARTS},
    {.arch = "qwen2", .rope = DLM_ROPE_NEOX, .need[PART_QKV_BIAS] = NEED_YES, SUB_NORM_PARTS},
    {.arch = "qwen3", .rope = DLM_ROPE_NEOX, .need[PART_QK_NORM] = NEED_YES, SUB_NORM_PARTS},
    {.arch = "phi3", .rope = DLM_ROPE_NEOX, FUSED_PARTS},
    {.arch = "dream", .rope = DLM_ROPE_NEOX, .need[PART_QKV_BIAS] = NEED_YES,
     .convention = CONVENTION_DREAM},
    {.arch = "llada", .rope = DLM_ROPE_NORM, .convention = CONVENTION_LLADA},
    {.arch = "fast-dllm", .rope = DLM_ROPE_NEOX, .need[PART_QKV_BIAS] = NEED_YES,
     .convention = CONVENTION_FAST_DLLM},
    {.arch = "sdar", .rope = DLM_ROPE_NEOX, .need[PART_QK_NORM] = NEED_YES,
     .convention = CONVENTION_SDAR},
    {.arch = "wedlm", .rope = DLM_ROPE_NEOX, .need[PART_QKV_BIAS] = NEED_MAYBE,
     .need[PART_QK_NORM] = NEED_MAYBE, .convention = CONVENTION_WEDLM},
};
/* clang-format on */

/* ---- the model ---- */

typedef struct {
    DlmMat q, k, v, o, gate, up, down;
    f32 *norm_attn;       /* [n_embd] */
    f32 *norm_attn_sub;   /* [n_head * head_dim] or NULL */
    f32 *norm_ffn;        /* [n_embd] */
    f32 *norm_ffn_sub;    /* [n_ff] or NULL */
    f32 *norm_in[5];      /* [n_embd] each or NULL: of q, k, v, gate and up */
    f32 *norm_q, *norm_k; /* [head_dim] or NULL */
    f32 *bias_q;          /* [n_head * head_dim] or NULL */
    f32 *bias_k, *bias_v; /* [n_head_kv * head_dim] or NULL */
    f32 *bias_o;          /* [n_embd] or NULL */
} ModelLayer;

/* How frequencies are stretched for contexts beyond those of the first training. */
typedef enum { STRETCH_NONE, STRETCH_LINEAR, STRETCH_YARN, STRETCH_LONGROPE } ModelStretch;
static const char *const MODEL_STRETCH_NAMES[] = {"none", "linear", "yarn", "longrope"};

typedef struct {
    f32 theta;
    ModelStretch stretch;
    f32 factor;               /* linear: divides all frequencies; yarn: the slow ones */
    f32 beta_fast, beta_slow; /* yarn: turns in n_ctx_orig tokens above which, and below which */
    f32 attn_factor;          /* multiplies cosines and sines */
    f32 yarn_log_mul;         /* takes YaRN's own growth of them back, in part or, at 1, whole */
    f32 query_growth;         /* queries times 1 + this * ln(1 + floor(position / n_ctx_orig)) */
    i32 n_ctx_orig;           /* the context of the first training */
    const f32 *divisors;      /* [n_rot / 2] or NULL: Llama 3's, per frequency */
    const f32 *short_divisors, *long_divisors; /* the same for longrope: up to n_ctx_orig, beyond */
} ModelRope;

typedef struct {
    const Gguf *file;
    const Tok *tok;
    const ModelFamily *family;
    Str name; /* general.name, may be empty */
    i32 n_vocab, n_embd, n_layer, n_head, n_head_kv, head_dim, n_ff, n_rot, n_ctx_train;
    f32 norm_eps, sub_norm_eps;
    DlmAct act;
    bool has[MODEL_PARTS];
    ModelRope rope;
    i32 no_rope_interval; /* of so many layers the last does not rotate; 0: all rotate */
    i32 window;           /* a token sees so many cells, its own included; 0: all */
    i32 window_period;    /* of so many layers the last does not slide; 0: all slide */
    const u8 *windowed;   /* [n_layer] which layers slide, or NULL: as window_period says */
    DecodeRecord decode;
    /* weights; bound by model_load */
    DlmOps *ops;
    DlmMat embed, output; /* output: a copy of embed when tied */
    bool tied;
    f32 *norm_out; /* [n_embd] */
    ModelLayer *layers;
    u64 weight_bytes; /* held in memory beside the file */
} Model;

/* What the command line may override; -1 or NULL means "as the file says". */
typedef struct {
    i32 mask_id;
    const char *convention; /* a name of MODEL_CONVENTIONS */
    DlmI2sLayout i2s_layout;
    TlConfig tl; /* no kernels: the presets */
    bool mapped; /* the file is a mapping: pages of repacked tensors may be given back to the system
                  */
} ModelOptions;

/* ---- metadata ---- */

/* "{arch}.{suffix}", in a buffer of the caller. */
static const char *model_key_(const Model *m, char buf[128], const char *suffix) {
    snprintf(buf, 128, "%s.%s", m->family->arch, suffix);
    return buf;
}

/* Reads {arch}.{suffix} into *out and checks lo <= value <= hi. `*out` holds the default; a default
 * below lo makes the key mandatory. */
static bool model_dim_(const Model *m, const char *suffix, i32 lo, i32 hi, i32 *out, Err *e) {
    char key[128];
    u32 v = *out < 0 ? UINT32_MAX : (u32)*out;
    if (!gguf_get_u32(m->file, model_key_(m, key, suffix), &v, e)) return false;
    if (v == UINT32_MAX && *out < 0)
        return err_set(e, ERR_MODEL, "%s: the key %s is missing; the file cannot be run without it",
                       m->file->label, key);
    if (v < (u32)lo || v > (u32)hi)
        return err_set(e, ERR_MODEL, "%s: %s is %u; dlm accepts %d to %d", m->file->label, key, v,
                       lo, hi);
    *out = (i32)v;
    return true;
}

static bool model_positive_(const Model *m, const char *suffix, f32 *out, Err *e) {
    char key[128];
    if (!gguf_get_f32(m->file, model_key_(m, key, suffix), out, e)) return false;
    if (*out < 0 && !gguf_find(m->file, str_of(key)))
        return err_set(e, ERR_MODEL, "%s: the key %s is missing; the file cannot be run without it",
                       m->file->label, key);
    if (!(*out > 0 && *out < 1e12f))
        return err_set(e, ERR_MODEL, "%s: %s must be a positive finite number, found %g",
                       m->file->label, key, (f64)*out);
    return true;
}

static bool model_family_(Model *m, Err *e) {
    Str arch = {0};
    if (!gguf_get_str(m->file, "general.architecture", &arch, e)) return false;
    for (size_t i = 0; i < COUNT_OF(MODEL_FAMILIES); i++)
        if (str_eq(arch, str_of(MODEL_FAMILIES[i].arch))) m->family = &MODEL_FAMILIES[i];
    if (m->family) return true;
    if (!gguf_find(m->file, STR("general.architecture")))
        return err_set(e, ERR_MODEL,
                       "%s: the key general.architecture is missing, and without it nothing says "
                       "which family of models this is; convert the file anew",
                       m->file->label);
    char known[256] = "";
    for (size_t i = 0, n = 0; i < COUNT_OF(MODEL_FAMILIES); i++, n = strlen(known))
        snprintf(known + n, sizeof known - n, "%s%s", i ? ", " : "", MODEL_FAMILIES[i].arch);
    return err_set(e, ERR_MODEL, "%s: architecture '%.*s' is not one that dlm runs (%s)",
                   m->file->label, STR_ARG(arch), known);
}

static bool model_activation_(Model *m, Err *e) {
    char key[128];
    Str act = {0};
    m->act = m->family->act;
    if (!m->family->act_key) return true;
    if (!gguf_get_str(m->file, model_key_(m, key, "hidden_act"), &act, e)) return false;
    if (act.n == 0) return true;
    if (str_eq(act, STR("relu2")))
        m->act = DLM_ACT_RELU2;
    else if (str_eq(act, STR("silu")))
        m->act = DLM_ACT_SILU;
    else
        return err_set(e, ERR_MODEL, "%s: %s is '%.*s'; dlm knows relu2 and silu", m->file->label,
                       key, STR_ARG(act));
    return true;
}

/* Like model_positive_, where 0 means that the feature is not used. */
static bool model_positive_or_0_(const Model *m, const char *suffix, f32 *out, Err *e) {
    char key[128];
    f32 value = 0;
    if (!gguf_get_f32(m->file, model_key_(m, key, suffix), &value, e)) return false;
    return value == 0 || model_positive_(m, suffix, out, e);
}

/* Frequencies and their stretching. The per-frequency divisors are tensors: model_divisors_. */
static bool model_rope_(Model *m, Err *e) {
    char key[128];
    Str name = {0};
    ModelRope *r = &m->rope;
    *r = (ModelRope){.theta = 10000,
                     .stretch = STRETCH_LINEAR,
                     .factor = 1,
                     .beta_fast = 32,
                     .beta_slow = 1,
                     .attn_factor = 1,
                     .n_ctx_orig = m->n_ctx_train};
    m->no_rope_interval = m->family->no_rope_interval;
    if (!model_positive_(m, "rope.freq_base", &r->theta, e)) return false;
    if (!gguf_get_str(m->file, model_key_(m, key, "rope.scaling.type"), &name, e)) return false;
    size_t type = 0;
    while (type < COUNT_OF(MODEL_STRETCH_NAMES) && !str_eq(name, str_of(MODEL_STRETCH_NAMES[type])))
        type++;
    if (type < COUNT_OF(MODEL_STRETCH_NAMES))
        r->stretch = (ModelStretch)type;
    else if (name.n)
        return err_set(e, ERR_MODEL, "%s: %s is '%.*s'; dlm knows none, linear, yarn and longrope",
                       m->file->label, key, STR_ARG(name));
    if (r->stretch == STRETCH_LINEAR || r->stretch == STRETCH_YARN)
        if (!model_positive_(m, "rope.scaling.factor", &r->factor, e)) return false;
    return model_positive_(m, "rope.scaling.attn_factor", &r->attn_factor, e) &&
           model_positive_(m, "rope.scaling.yarn_beta_fast", &r->beta_fast, e) &&
           model_positive_(m, "rope.scaling.yarn_beta_slow", &r->beta_slow, e) &&
           model_positive_or_0_(m, "rope.scaling.yarn_log_multiplier", &r->yarn_log_mul, e) &&
           model_positive_or_0_(m, "attention.temperature_scale", &r->query_growth, e) &&
           model_dim_(m, "rope.scaling.original_context_length", 2, MODEL_CTX_MAX, &r->n_ctx_orig,
                      e) &&
           model_dim_(m, "no_rope_layer_interval", 0, MODEL_LAYER_MAX, &m->no_rope_interval, e);
}

/* The window, and which layers slide it. */
static bool model_window_(Model *m, Err *e) {
    char key[128];
    const GgufKv *pattern =
        gguf_find(m->file, str_of(model_key_(m, key, "attention.sliding_window_pattern")));
    if (!model_dim_(m, "attention.sliding_window", 0, INT_MAX, &m->window, e)) return false;
    if (!pattern || pattern->type != GGUF_ARRAY)
        return model_dim_(m, "attention.sliding_window_pattern", 0, MODEL_LAYER_MAX,
                          &m->window_period, e);
    GgufArray layers;
    bool found;
    if (!gguf_get_array(m->file, key, GGUF_BOOL, &layers, &found, e)) return false;
    if (layers.count != (u64)m->n_layer)
        return err_set(e, ERR_MODEL, "%s: %s has %llu entries for %d layers", m->file->label, key,
                       (unsigned long long)layers.count, m->n_layer);
    m->windowed = layers.data;
    return true;
}

static bool model_slides(const Model *m, i32 layer) {
    if (m->window == 0) return false;
    if (m->windowed) return m->windowed[layer];
    return m->window_period == 0 || layer % m->window_period < m->window_period - 1;
}

static bool model_rotates(const Model *m, i32 layer) {
    return m->no_rope_interval == 0 || (layer + 1) % m->no_rope_interval != 0;
}

/* Settings of other models that would change the function, and the values at which they do not. */
static const struct {
    const char *suffix;
    f64 neutral;
} MODEL_NEUTRAL[] = {
    {"attention.clamp_kqv", 0},
    {"attention.max_alibi_bias", 0},
    {"attention.scale", 0},
    {"attention.temperature_length", 0},
    {"attn_logit_softcapping", 0},
    {"embedding_scale", 1},
    {"expert_count", 0},
    {"final_logit_softcapping", 0},
    {"logit_scale", 1},
    {"residual_scale", 1},
    {"rope.scale_linear", 1},
    {"rope.scaling.yarn_attn_factor", 1},
    {"rope.scaling.yarn_ext_factor", 1},
};

static bool model_neutral_(const Model *m, Err *e) {
    char key[128];
    for (size_t i = 0; i < COUNT_OF(MODEL_NEUTRAL); i++) {
        const GgufKv *kv = gguf_find(m->file, str_of(model_key_(m, key, MODEL_NEUTRAL[i].suffix)));
        f32 value = 0;
        u32 count = 0;
        if (!kv) continue;
        bool real = kv->type == GGUF_F32 || kv->type == GGUF_F64;
        if (real ? !gguf_get_f32(m->file, key, &value, e) : !gguf_get_u32(m->file, key, &count, e))
            return false;
        f64 v = real ? (f64)value : (f64)count;
        if (v != MODEL_NEUTRAL[i].neutral)
            return err_set(
                e, ERR_MODEL,
                "%s: %s is %g; dlm does not know what to do with it, and running without it "
                "would give wrong text",
                m->file->label, key, v);
    }
    return true;
}

/* Which of the optional parts the file has, and whether its family may have them. */
static void model_parts_(Model *m) {
    for (size_t i = 0; i < MODEL_PARTS; i++) {
        bool there = gguf_tensor(m->file, str_of(MODEL_PART[i].probe)) != NULL;
        ModelNeed need = m->family->need[i];
        m->has[i] = need == NEED_YES || (need == NEED_MAYBE && there);
    }
    m->has[PART_ALWAYS] = true;
    if (m->has[PART_NORM_IN]) m->has[PART_SUB_NORM] = false;
}

static bool model_sizes_(Model *m, Err *e) {
    m->n_embd = m->n_layer = m->n_head = m->n_ff = m->n_ctx_train = -1;
    if (!model_dim_(m, "embedding_length", 1, MODEL_EMBD_MAX, &m->n_embd, e)) return false;
    if (!model_dim_(m, "block_count", 1, MODEL_LAYER_MAX, &m->n_layer, e)) return false;
    if (!model_dim_(m, "feed_forward_length", 1, MODEL_FF_MAX, &m->n_ff, e)) return false;
    if (!model_dim_(m, "context_length", 1, MODEL_CTX_MAX, &m->n_ctx_train, e)) return false;
    if (!model_dim_(m, "attention.head_count", 1, MODEL_HEAD_MAX, &m->n_head, e)) return false;
    m->n_head_kv = m->n_head;
    if (!model_dim_(m, "attention.head_count_kv", 1, m->n_head, &m->n_head_kv, e)) return false;
    if (m->n_head % m->n_head_kv)
        return err_set(e, ERR_MODEL, "%s: %d key/value heads do not divide %d query heads",
                       m->file->label, m->n_head_kv, m->n_head);
    m->head_dim = m->n_embd / m->n_head;
    if (!model_dim_(m, "attention.key_length", 2, MODEL_HEAD_DIM_MAX, &m->head_dim, e))
        return false;
    i32 v_dim = m->head_dim;
    if (!model_dim_(m, "attention.value_length", m->head_dim, m->head_dim, &v_dim, e)) return false;
    m->n_rot = m->head_dim;
    if (!model_dim_(m, "rope.dimension_count", 2, m->head_dim, &m->n_rot, e)) return false;
    if (m->n_rot % 2)
        return err_set(e, ERR_MODEL,
                       "%s: rope.dimension_count is %d; rotation turns pairs, so it must be even",
                       m->file->label, m->n_rot);
    m->norm_eps = -1;
    if (!model_positive_(m, "attention.layer_norm_rms_epsilon", &m->norm_eps, e)) return false;
    m->sub_norm_eps = m->norm_eps;
    return model_positive_(m, "attention.sub_norm_rms_epsilon", &m->sub_norm_eps, e);
}

/* ---- the decode record ---- */

/* Spellings under which published checkpoints carry their mask token, as one vocabulary entry. */
static const char *const MODEL_MASK_SPELLINGS[] = {"|<MASK>|", "<|mask|>", "<|MASK|>",
                                                   "[MASK]",   "<mask>",   "<|mdm_mask|>"};

static bool model_mask_(Model *m, const ModelOptions *o, Err *e) {
    DecodeRecord *d = &m->decode;
    d->mask_id = -1;
    if (o->mask_id >= 0) {
        if (o->mask_id >= m->n_vocab)
            return err_set(e, ERR_USAGE,
                           "--mask-token-id %d is outside the vocabulary of %d tokens", o->mask_id,
                           m->n_vocab);
        d->mask_id = o->mask_id, d->from_mask = FROM_FLAG;
    } else if (m->tok->mask >= 0) {
        d->mask_id = m->tok->mask, d->from_mask = FROM_FILE;
    } else {
        for (size_t i = 0; i < COUNT_OF(MODEL_MASK_SPELLINGS) && d->mask_id < 0; i++)
            d->mask_id = tok_find(m->tok, str_of(MODEL_MASK_SPELLINGS[i]));
        d->from_mask = FROM_VOCABULARY;
    }
    return true;
}

/* Reads one field of the record from the file, if it has it. */
static bool model_field_(Model *m, const ModelField *f, ModelSource *from, Err *e) {
    char key[64];
    u8 *at = (u8 *)&m->decode + f->at;
    i32 *value = (i32 *)(void *)at;
    snprintf(key, sizeof key, "diffusion.%s", f->name);
    if (!gguf_find(m->file, str_of(key))) return true;
    *from = FROM_FILE;
    if (f->kind == FIELD_BOOL) return gguf_get_bool(m->file, key, (bool *)at, e);
    if (f->kind == FIELD_REAL) {
        f32 v = 0;
        if (!gguf_get_f32(m->file, key, &v, e)) return false;
        *(f32 *)(void *)at = v;
        return (v > (f32)f->lo && v <= (f32)f->hi) ||
               err_set(e, ERR_MODEL, "%s: %s is %g; it must be above %d and at most %d",
                       m->file->label, key, (f64)v, f->lo, f->hi);
    }
    if (f->kind == FIELD_INT) {
        u32 v = 0;
        if (!gguf_get_u32(m->file, key, &v, e)) return false;
        *value = (i32)v;
        return (v >= (u32)f->lo && v <= (u32)f->hi) ||
               err_set(e, ERR_MODEL, "%s: %s is %u; dlm accepts %d to %d", m->file->label, key, v,
                       f->lo, f->hi);
    }
    Str word = {0};
    if (!gguf_get_str(m->file, key, &word, e)) return false;
    for (*value = f->lo; *value <= f->hi; ++*value)
        if (str_eq(word, str_of(f->names[*value]))) return true;
    return err_set(e, ERR_MODEL, "%s: %s is '%.*s', which dlm does not know", m->file->label, key,
                   STR_ARG(word));
}

/* The row that --convention names. */
static bool model_named_convention_(const char *name, i32 *row, Err *e) {
    char known[160] = "";
    for (i32 i = 0, n = 0; i < CONVENTIONS; i++, n = (i32)strlen(known)) {
        if (strcmp(name, MODEL_CONVENTIONS[i].name) == 0) return *row = i, true;
        snprintf(known + n, sizeof known - (size_t)n, "%s%s", i ? ", " : "",
                 MODEL_CONVENTIONS[i].name);
    }
    return err_set(e, ERR_USAGE, "'%s' is not a convention of decoding; those are %s", name, known);
}

/* The record before the file's keys: a convention, as the flag or else the family names it. */
static bool model_convention_(Model *m, const char *name, Err *e) {
    i32 row = m->family->convention;
    ModelSource from = name ? FROM_FLAG : row ? FROM_FAMILY : FROM_DEFAULT;
    if (name && !model_named_convention_(name, &row, e)) return false;
    m->decode = MODEL_CONVENTIONS[row].record;
    for (i32 i = 0; i < RECORD_FIELDS; i++) m->decode.from[i] = from;
    return true;
}

/* The file's keys, and what follows from them where they leave something open. */
static bool model_record_keys_(Model *m, Err *e) {
    DecodeRecord *d = &m->decode;
    char key[128];
    bool causal = true;
    i32 sub = d->sub_block_size < d->block_size ? d->sub_block_size : 0;
    if (!gguf_get_bool(m->file, model_key_(m, key, "attention.causal"), &causal, e)) return false;
    if (!causal && d->attention == ATTEND_CAUSAL)
        d->attention = ATTEND_FULL, d->from[RECORD_ATTENTION] = FROM_FILE;
    for (i32 i = 0; i < RECORD_FIELDS; i++)
        if (!model_field_(m, &MODEL_FIELDS[i], &d->from[i], e)) return false;
    if (d->from[RECORD_ALIGN] != FROM_FILE) /* only the block mask ties blocks to position 0 */
        d->align = d->attention == ATTEND_BLOCK ? ALIGN_ABSOLUTE : ALIGN_PROMPT_END;
    if (d->from[RECORD_SUB_BLOCK] != FROM_FILE)
        d->sub_block_size = sub && d->block_size % sub == 0 ? sub : d->block_size;
    if (d->from[RECORD_CACHE] != FROM_FILE && d->from[RECORD_ATTENTION] == FROM_FILE &&
        d->attention == ATTEND_FULL)
        d->cache = CACHE_NONE; /* under full attention a cache is an approximation */
    return true;
}

/* What no single field can tell. */
static bool model_record_check_(const Model *m, Err *e) {
    const DecodeRecord *d = &m->decode;
    if (d->sub_block_size > d->block_size || d->block_size % d->sub_block_size)
        return err_set(e, ERR_MODEL,
                       "%s: diffusion.sub_block_size %d does not divide diffusion.block_size %d",
                       m->file->label, d->sub_block_size, d->block_size);
    if (d->order == ORDER_REVEALED && (d->attention != ATTEND_CAUSAL || d->shift))
        return err_set(e, ERR_MODEL,
                       "%s: diffusion.order revealed_first goes with causal attention and "
                       "diffusion.shift_logits false",
                       m->file->label);
    return true;
}

static bool model_record_(Model *m, const ModelOptions *o, Err *e) {
    return model_convention_(m, o->convention, e) && (o->convention || model_record_keys_(m, e)) &&
           model_record_check_(m, e) && model_mask_(m, o, e);
}

/* Reads the metadata of an open file. The file and tokenizer must outlive the model. */
static bool model_read(Model *m, const Gguf *file, const Tok *tok, const ModelOptions *o, Err *e) {
    *m = (Model){.file = file, .tok = tok, .n_vocab = (i32)tok->n_vocab};
    if (!gguf_get_str(file, "general.name", &m->name, e)) return false;
    if (!model_family_(m, e) || !model_neutral_(m, e) || !model_sizes_(m, e) ||
        !model_activation_(m, e) || !model_rope_(m, e) || !model_window_(m, e) ||
        !model_record_(m, o, e))
        return false;
    model_parts_(m);
    if (m->rope.query_growth && (m->n_rot < m->head_dim || m->no_rope_interval))
        return err_set(e, ERR_MODEL,
                       "%s: queries that grow with their position, in a model that does not rotate "
                       "all of them, are not known to dlm",
                       file->label);
    bool ranges = m->decode.attention != ATTEND_FULL && m->decode.order == ORDER_POSITION;
    if (ranges || m->window == 0 || m->window >= m->n_ctx_train) return true;
    return err_set(e, ERR_MODEL,
                   "%s: a sliding window of %d tokens is not defined where tokens see what comes "
                   "after their block, or lie in another order; dlm slides it under causal and "
                   "block attention",
                   file->label, m->window);
}

/* Can this model fill masks at all? If not, *why says what is missing and what to do. */
static bool model_can_diffuse(const Model *m, Err *why) {
    if (m->decode.mask_id >= 0) return true;
    return err_set(
        why, ERR_MODEL,
        "Model does not appear to be DLM-trained: %s has no tokenizer.ggml.mask_token_id and no "
        "mask token in its vocabulary; give its id with --mask-token-id ID, or decode one token at a time "
        "with --decode-mode ar",
        m->file->label);
}

/* ---- weights ---- */

typedef struct {
    Model *m;
    const ModelOptions *o;
    u8 *used;  /* [n_tensors] which tensors of the file the graph takes */
    i32 layer; /* being bound, or -1 */
    Err *e;
} ModelBinder;

static const GgufTensor *model_find_(ModelBinder *b, const char *name) {
    const GgufTensor *t = gguf_tensor(b->m->file, str_of(name));
    if (t) b->used[t - b->m->file->tensors] = 1;
    return t;
}

static bool model_shape_(ModelBinder *b, const GgufTensor *t, const char *name, u64 ne0, u64 ne1) {
    if (t->ne[0] == ne0 && t->ne[1] == ne1 && t->ne[2] == 1 && t->ne[3] == 1) return true;
    return err_set(
        b->e, ERR_MODEL,
        "%s: tensor %s is [%llu, %llu, %llu, %llu] but the metadata says [%llu, %llu]; the file was written "
        "wrongly, convert it again",
        b->m->file->label, name, (unsigned long long)t->ne[0], (unsigned long long)t->ne[1],
        (unsigned long long)t->ne[2], (unsigned long long)t->ne[3], (unsigned long long)ne0,
        (unsigned long long)ne1);
}

static bool model_absent_(ModelBinder *b, const char *name) {
    return err_set(b->e, ERR_MODEL,
                   "%s: tensor %s is missing; architecture %s cannot run without it",
                   b->m->file->label, name, b->m->family->arch);
}

/* Gives back the pages of a tensor that lies elsewhere now, and what is around them: to touch a page of a
 * mapping brings in all of the large page that the system keeps it in, parts of which belong to tensors
 * that were given back before. What is still wanted comes again when it is touched. */
#define MODEL_AROUND ((u64)2 << 20)
static void model_forget_(const ModelBinder *b, const u8 *data, u64 n_bytes) {
    const Gguf *f = b->m->file;
    u64 at = (u64)(data - f->p), from = at - MIN_OF(at, MODEL_AROUND);
    if (b->o->mapped) os_forget(f->p + from, MIN_OF(at + n_bytes + MODEL_AROUND, f->n) - from);
}

/* A vector of n f32 values in a backend buffer. */
static bool model_vector_(ModelBinder *b, const char *name, i32 n, f32 **out) {
    const GgufTensor *t = model_find_(b, name);
    if (!t) return model_absent_(b, name);
    if (!model_shape_(b, t, name, (u64)n, 1)) return false;
    if (quant_is_ternary(t->type))
        return err_set(b->e, ERR_MODEL,
                       "%s: tensor %s is a vector in a ternary type; it must be F32 or F16",
                       b->m->file->label, name);
    f32 *host = mem_alloc_n((u64)n, sizeof(f32), b->e);
    if (host) quant_values(t->type, t->data, n, host);
    for (i32 i = 0; host && i < n; i++)
        if (!(f32_abs_(host[i]) < 1e30f)) {
            mem_free(host);
            return err_set(
                b->e, ERR_MODEL,
                "%s: tensor %s holds a value that is not a finite number, at element %d: the file "
                "is damaged",
                b->m->file->label, name, i);
        }
    *out = host ? b->m->ops->alloc(b->m->ops->self, (u64)n * sizeof(f32)) : NULL;
    if (!*out) err_set(b->e, ERR_MEMORY, "out of memory for tensor %s", name);
    if (*out) {
        b->m->ops->upload(b->m->ops->self, *out, host, (u64)n * sizeof(f32));
        b->m->weight_bytes += (u64)n * sizeof(f32);
    }
    mem_free(host);
    model_forget_(b, t->data, t->n_bytes);
    return *out != NULL;
}

/* The optional scalar beside a matrix: BitNet files of the `bitnet` family may keep the weight
 * scale there. */
static bool model_extra_scale_(ModelBinder *b, const char *name, f32 *scale) {
    char full[128];
    snprintf(full, sizeof full, "%s.scale", name);
    const GgufTensor *t = model_find_(b, full);
    *scale = 1;
    if (!t) return true;
    if (!model_shape_(b, t, full, 1, 1)) return false;
    if (t->type != DLM_F32)
        return err_set(b->e, ERR_MODEL, "%s: tensor %s must be F32, found %s", b->m->file->label,
                       full, gguf_type_name((u32)t->type));
    *scale = load_f32(t->data);
    return true;
}

/* Rows [row, row + n_out) of `{base}.weight` as a matrix [n_out][n_in], scaled by `{base}.scale`
 * where there is one. n_rows: of the whole tensor. */
static bool model_matrix_(ModelBinder *b, const char *base, i32 n_in, i32 n_out, i32 row,
                          i32 n_rows, DlmMat *out) {
    char name[128];
    snprintf(name, sizeof name, "%s.weight", base);
    const GgufTensor *g = model_find_(b, name);
    if (!g) return model_absent_(b, name);
    if (!model_shape_(b, g, name, (u64)n_in, (u64)n_rows)) return false;
    DlmTensor t = {.name = name,
                   .layer = b->layer,
                   .type = g->type,
                   .i2s_layout = b->o->i2s_layout,
                   .n_in = n_in,
                   .n_out = n_out,
                   .data = g->data,
                   .n_bytes = g->n_bytes,
                   .extra_scale = 1,
                   .rows_only = out == &b->m->embed && !b->m->tied};
    if (n_out < n_rows && !quant_has_rows(g->type))
        return err_set(b->e, ERR_MODEL,
                       "%s: tensor %s is several matrices in one, which cannot be taken apart in "
                       "%s; convert the model to another type",
                       b->m->file->label, name, gguf_type_name((u32)g->type));
    if (!tl_find(&b->o->tl, b->m->file->label, &t, b->e)) return false;
    if (n_out < n_rows) {
        t.n_bytes = quant_row_bytes(g->type, n_in) * (u64)n_out;
        t.data += quant_row_bytes(g->type, n_in) * (u64)row;
    }
    if (!model_extra_scale_(b, base, &t.extra_scale)) return false;
    if (t.extra_scale != 1 && !quant_is_ternary(t.type))
        return err_set(
            b->e, ERR_MODEL,
            "%s: tensor %s has a .scale beside it but is %s; dlm scales ternary weights only",
            b->m->file->label, name, gguf_type_name((u32)t.type));
    DlmOps *ops = b->m->ops;
    const char *why = ops->mat_load(ops->self, out, &t);
    if (why)
        return err_set(b->e, strncmp(why, "out of memory", 13) ? ERR_MODEL : ERR_MEMORY, "%s: %s",
                       b->m->file->label, why);
    if (out->owned) model_forget_(b, t.data, t.n_bytes);
    b->m->weight_bytes += out->owned_bytes;
    return true;
}

/* The tensors of a layer, as data: name, where it goes, and which of the model's sizes it must
 * have. */
typedef enum { SIZE_EMBD, SIZE_Q, SIZE_KV, SIZE_FF, SIZE_HEAD } ModelSize;

static i32 model_size_(const Model *m, ModelSize s) {
    switch (s) {
    case SIZE_EMBD: return m->n_embd;
    case SIZE_Q: return m->n_head * m->head_dim;
    case SIZE_KV: return m->n_head_kv * m->head_dim;
    case SIZE_FF: return m->n_ff;
    case SIZE_HEAD: return m->head_dim;
    }
    return 0;
}

/* Matrices that a file may hold as one, in the order of their rows there. */
static const struct {
    const char *name;
    size_t at;
    ModelSize n_in, n_out;
    ModelPart part; /* the part under which it lies in the matrix `fused` */
    const char *fused;
} MODEL_MATRICES[] = {
    {"attn_q", offsetof(ModelLayer, q), SIZE_EMBD, SIZE_Q, PART_FUSED_QKV, "attn_qkv"},
    {"attn_k", offsetof(ModelLayer, k), SIZE_EMBD, SIZE_KV, PART_FUSED_QKV, "attn_qkv"},
    {"attn_v", offsetof(ModelLayer, v), SIZE_EMBD, SIZE_KV, PART_FUSED_QKV, "attn_qkv"},
    {"attn_output", offsetof(ModelLayer, o), SIZE_Q, SIZE_EMBD, PART_ALWAYS, NULL},
    {"ffn_gate", offsetof(ModelLayer, gate), SIZE_EMBD, SIZE_FF, PART_FUSED_GATE_UP, "ffn_up"},
    {"ffn_up", offsetof(ModelLayer, up), SIZE_EMBD, SIZE_FF, PART_FUSED_GATE_UP, "ffn_up"},
    {"ffn_down", offsetof(ModelLayer, down), SIZE_FF, SIZE_EMBD, PART_ALWAYS, NULL},
};

#define MODEL_NORM_IN(i) (offsetof(ModelLayer, norm_in) + (i) * sizeof(f32 *))

static const struct {
    const char *name;
    size_t at;
    ModelSize n;
    ModelPart part;
} MODEL_VECTORS[] = {
    {"attn_norm.weight", offsetof(ModelLayer, norm_attn), SIZE_EMBD, PART_ALWAYS},
    {"ffn_norm.weight", offsetof(ModelLayer, norm_ffn), SIZE_EMBD, PART_ALWAYS},
    {"attn_sub_norm.weight", offsetof(ModelLayer, norm_attn_sub), SIZE_Q, PART_SUB_NORM},
    {"ffn_sub_norm.weight", offsetof(ModelLayer, norm_ffn_sub), SIZE_FF, PART_SUB_NORM},
    {"attn_q_norm_in.weight", MODEL_NORM_IN(0), SIZE_EMBD, PART_NORM_IN},
    {"attn_k_norm_in.weight", MODEL_NORM_IN(1), SIZE_EMBD, PART_NORM_IN},
    {"attn_v_norm_in.weight", MODEL_NORM_IN(2), SIZE_EMBD, PART_NORM_IN},
    {"attn_output_norm_in.weight", offsetof(ModelLayer, norm_attn_sub), SIZE_Q, PART_NORM_IN},
    {"ffn_gate_norm_in.weight", MODEL_NORM_IN(3), SIZE_EMBD, PART_NORM_IN},
    {"ffn_up_norm_in.weight", MODEL_NORM_IN(4), SIZE_EMBD, PART_NORM_IN},
    {"ffn_down_norm_in.weight", offsetof(ModelLayer, norm_ffn_sub), SIZE_FF, PART_NORM_IN},
    {"attn_q_norm.weight", offsetof(ModelLayer, norm_q), SIZE_HEAD, PART_QK_NORM},
    {"attn_k_norm.weight", offsetof(ModelLayer, norm_k), SIZE_HEAD, PART_QK_NORM},
    {"attn_q.bias", offsetof(ModelLayer, bias_q), SIZE_Q, PART_QKV_BIAS},
    {"attn_k.bias", offsetof(ModelLayer, bias_k), SIZE_KV, PART_QKV_BIAS},
    {"attn_v.bias", offsetof(ModelLayer, bias_v), SIZE_KV, PART_QKV_BIAS},
    {"attn_output.bias", offsetof(ModelLayer, bias_o), SIZE_EMBD, PART_O_BIAS},
};

/* Matrix i of a layer: a tensor of its own, or the rows after those of its neighbours in one. */
static bool model_layer_matrix_(ModelBinder *b, i32 index, size_t i) {
    const Model *m = b->m;
    bool fused = MODEL_MATRICES[i].fused && m->has[MODEL_MATRICES[i].part];
    i32 n_out = model_size_(m, MODEL_MATRICES[i].n_out), row = 0, n_rows = fused ? 0 : n_out;
    for (size_t j = 0; fused && j < COUNT_OF(MODEL_MATRICES); j++) {
        if (MODEL_MATRICES[j].part != MODEL_MATRICES[i].part) continue;
        if (j < i) row += model_size_(m, MODEL_MATRICES[j].n_out);
        n_rows += model_size_(m, MODEL_MATRICES[j].n_out);
    }
    char name[96];
    snprintf(name, sizeof name, "blk.%d.%s", index,
             fused ? MODEL_MATRICES[i].fused : MODEL_MATRICES[i].name);
    return model_matrix_(b, name, model_size_(m, MODEL_MATRICES[i].n_in), n_out, row, n_rows,
                         (DlmMat *)(void *)((u8 *)&m->layers[index] + MODEL_MATRICES[i].at));
}

static bool model_layer_(ModelBinder *b, i32 index) {
    const Model *m = b->m;
    char name[96];
    b->layer = index;
    for (size_t i = 0; i < COUNT_OF(MODEL_MATRICES); i++)
        if (!model_layer_matrix_(b, index, i)) return false;
    for (size_t i = 0; i < COUNT_OF(MODEL_VECTORS); i++) {
        if (!m->has[MODEL_VECTORS[i].part]) continue;
        snprintf(name, sizeof name, "blk.%d.%s", index, MODEL_VECTORS[i].name);
        if (!model_vector_(b, name, model_size_(m, MODEL_VECTORS[i].n),
                           (f32 **)(void *)((u8 *)&m->layers[index] + MODEL_VECTORS[i].at)))
            return false;
    }
    return true;
}

/* Tensors of one positive f32 per rotated pair, which divide the frequencies. */
static const struct {
    const char *name;
    size_t at;
} MODEL_DIVISORS[] = {
    {"rope_freqs.weight", offsetof(ModelRope, divisors)},
    {"rope_factors_short.weight", offsetof(ModelRope, short_divisors)},
    {"rope_factors_long.weight", offsetof(ModelRope, long_divisors)},
};

static bool model_divisors_(ModelBinder *b, const char *name, const f32 **out) {
    const GgufTensor *t = model_find_(b, name);
    if (!t) return true;
    if (!model_shape_(b, t, name, (u64)b->m->n_rot / 2, 1)) return false;
    if (t->type != DLM_F32)
        return err_set(b->e, ERR_MODEL, "%s: %s must be F32, found %s", b->m->file->label, name,
                       gguf_type_name((u32)t->type));
    *out = (const f32 *)(const void *)t->data;
    for (i32 i = 0; i < b->m->n_rot / 2; i++)
        if (!((*out)[i] > 0 && (*out)[i] < 1e30f))
            return err_set(b->e, ERR_MODEL, "%s: %s[%d] is not a positive number",
                           b->m->file->label, name, i);
    return true;
}

static bool model_bind_rope_(ModelBinder *b) {
    ModelRope *r = &b->m->rope;
    for (size_t i = 0; i < COUNT_OF(MODEL_DIVISORS); i++)
        if (!model_divisors_(b, MODEL_DIVISORS[i].name,
                             (const f32 **)(void *)((u8 *)r + MODEL_DIVISORS[i].at)))
            return false;
    if (!r->short_divisors != !r->long_divisors)
        return err_set(b->e, ERR_MODEL,
                       "%s: only one of rope_factors_short.weight and rope_factors_long.weight is "
                       "there; longrope needs both",
                       b->m->file->label);
    if (r->stretch != STRETCH_LONGROPE || r->short_divisors) return true;
    return err_set(
        b->e, ERR_MODEL,
        "%s: its rope scaling is longrope, but the tensors rope_factors_short.weight and "
        "rope_factors_long.weight are missing",
        b->m->file->label);
}

/* A tensor that no part of the graph takes would change the result if it were dropped. */
static bool model_all_used_(ModelBinder *b) {
    const Gguf *f = b->m->file;
    for (u32 i = 0; i < f->n_tensors; i++)
        if (!b->used[i])
            return err_set(
                b->e, ERR_MODEL,
                "%s: tensor %.*s is not part of architecture %s as dlm knows it; running "
                "without it would give "
                "wrong text",
                f->label, STR_ARG(f->tensors[i].name), b->m->family->arch);
    return true;
}

static bool model_bind_(ModelBinder *b) {
    Model *m = b->m;
    i32 n = m->n_vocab;
    m->tied = gguf_tensor(m->file, STR("output.weight")) == NULL;
    if (!model_matrix_(b, "token_embd", m->n_embd, n, 0, n, &m->embed)) return false;
    if (!model_vector_(b, "output_norm.weight", m->n_embd, &m->norm_out)) return false;
    if (m->tied)
        m->output = m->embed;
    else if (!model_matrix_(b, "output", m->n_embd, n, 0, n, &m->output))
        return false;
    for (i32 i = 0; i < m->n_layer; i++)
        if (!model_layer_(b, i)) return false;
    return model_bind_rope_(b) && model_all_used_(b);
}

/* Frees what model_load bound; safe on a half-loaded model. */
static void model_unload(Model *m) {
    DlmOps *ops = m->ops;
    if (!ops) return;
    for (i32 i = 0; m->layers && i < m->n_layer; i++) {
        u8 *layer = (u8 *)&m->layers[i];
        for (size_t j = 0; j < COUNT_OF(MODEL_MATRICES); j++)
            ops->mat_free(ops->self, (DlmMat *)(void *)(layer + MODEL_MATRICES[j].at));
        for (size_t j = 0; j < COUNT_OF(MODEL_VECTORS); j++) {
            f32 **v = (f32 **)(void *)(layer + MODEL_VECTORS[j].at);
            ops->free(ops->self, *v);
            *v = NULL; /* two names may stand for one place */
        }
    }
    if (!m->tied) ops->mat_free(ops->self, &m->output);
    ops->mat_free(ops->self, &m->embed);
    ops->free(ops->self, m->norm_out);
    mem_free(m->layers);
    m->layers = NULL;
    m->ops = NULL;
}

/* Binds and checks every weight through the backend. */
static bool model_load(Model *m, const ModelOptions *o, DlmOps *ops, Err *e) {
    ModelBinder b = {.m = m, .o = o, .layer = -1, .e = e};
    m->ops = ops;
    m->layers = mem_alloc_n((u64)m->n_layer, sizeof *m->layers, e);
    b.used = m->layers ? mem_alloc(m->file->n_tensors, e) : NULL;
    bool ok = b.used && model_bind_(&b);
    mem_free(b.used);
    if (!ok) model_unload(m);
    return ok;
}

/* ---- what `dlm info` says and counts ---- */

static bool model_file_has_(const Model *m, const char *name) {
    return gguf_tensor(m->file, str_of(name)) != NULL;
}

/* Appends how the model turns queries and keys: "neox, base 10000, YaRN by 4 beyond 4096 tokens". */
static void model_put_rotation(Buf *out, const Model *m) {
    const ModelRope *r = &m->rope;
    buf_printf(out, "%s, base %g", m->family->rope == DLM_ROPE_NEOX ? "neox" : "norm",
               (f64)r->theta);
    if (m->n_rot < m->head_dim) buf_printf(out, ", %d of %d dimensions", m->n_rot, m->head_dim);
    if (r->stretch == STRETCH_LINEAR && r->factor != 1)
        buf_printf(out, ", positions divided by %g", (f64)r->factor);
    if (r->stretch == STRETCH_YARN)
        buf_printf(out, ", YaRN by %g beyond %d tokens", (f64)r->factor, r->n_ctx_orig);
    if (r->query_growth) buf_printf(out, ", queries grow beyond %d tokens", r->n_ctx_orig);
    if (model_file_has_(m, "rope_factors_long.weight"))
        buf_printf(out, ", longrope in contexts beyond %d tokens", r->n_ctx_orig);
    if (model_file_has_(m, "rope_freqs.weight")) buf_printf(out, ", Llama 3's divisors");
    if (m->no_rope_interval)
        buf_printf(out, ", in all but one of every %d layers", m->no_rope_interval);
}

/* Appends what else a layer has that not every model's has: "silu, q/k norms, tied output". */
static void model_put_parts(Buf *out, const Model *m) {
    i32 n_slide = 0;
    for (i32 i = 0; i < m->n_layer; i++) n_slide += model_slides(m, i);
    buf_printf(out, "%s", m->act == DLM_ACT_RELU2 ? "relu2" : "silu");
    for (size_t i = 0; i < MODEL_PARTS; i++)
        if (m->has[i] && MODEL_PART[i].title) buf_printf(out, ", %s", MODEL_PART[i].title);
    if (m->sub_norm_eps != m->norm_eps)
        buf_printf(out, ", sub-norm epsilon %g", (f64)m->sub_norm_eps);
    if (n_slide) buf_printf(out, ", a window of %d tokens", m->window);
    if (n_slide && n_slide < m->n_layer) buf_printf(out, " in %d of the layers", n_slide);
    if (!model_file_has_(m, "output.weight")) buf_printf(out, ", tied output");
}

/* How often each 2-bit code occurs in a ternary tensor: counts[0..3] are values -1, 0, +1, +2. */
static bool model_count_codes(const Gguf *g, const GgufTensor *t, const ModelOptions *o,
                              u64 counts[4], Err *e) {
    char name[GGUF_NAME_MAX + 1];
    snprintf(name, sizeof name, "%.*s", STR_ARG(t->name));
    DlmTensor d = {.name = name,
                   .type = t->type,
                   .i2s_layout = o->i2s_layout,
                   .n_in = (i64)t->ne[0],
                   .n_out = (i64)t->ne[1],
                   .data = t->data,
                   .n_bytes = t->n_bytes};
    memset(counts, 0, 4 * sizeof *counts);
    if (!tl_find(&o->tl, g->label, &d, e)) return false;
    u8 *codes = mem_alloc(t->ne[0], e);
    f32 *scales = codes ? mem_alloc_n(t->ne[0], sizeof(f32), e) : NULL;
    for (i64 row = 0; scales && row < d.n_out; row++) {
        quant_codes_row(&d, row, codes, scales);
        for (u64 i = 0; i < t->ne[0]; i++) counts[codes[i]]++;
    }
    bool ok = scales != NULL;
    mem_free(codes);
    mem_free(scales);
    return ok;
}

#endif

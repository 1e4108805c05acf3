/* hf.c - what a checkpoint in Hugging Face's layout says of its model: config.json as GGUF keys.
 *
 * Owns:      the texts of config.json and generation_config.json.
 * Stands on: base mem os gguf json quant kern_ref model
 * Promises:  never writes to the checkpoint; a setting that would change the function and is not
 *            understood is an error that names the file and the setting. */
#ifndef DLM_HF_C
#define DLM_HF_C

#include "base.c"
#include "gguf.c"
#include "json.c"
#include "kern_ref.c"
#include "mem.c"
#include "model.c"
#include "os.c"
#include "quant.c"

/* ---- the files ---- */

typedef struct {
    char path[OS_NEW_PATH_MAX];
    OsMap map;
    JsonDoc doc; /* empty when the file is not there */
} HfJson;

static void hf_json_close(HfJson *j) {
    json_free(&j->doc);
    os_unmap(&j->map);
}

static bool hf_path(char path[OS_NEW_PATH_MAX], const char *dir, const char *name, Err *e) {
    int n = snprintf(path, OS_NEW_PATH_MAX, "%s/%s", dir, name);
    return (n > 0 && n < OS_NEW_PATH_MAX) || err_set(e, ERR_USAGE, "'%s' is too long a name", dir);
}

/* A file of a checkpoint; one that is not `needed` may be absent. */
static bool hf_json_open(HfJson *j, const char *dir, const char *name, bool needed, Err *e) {
    *j = (HfJson){.doc = {.nodes_max = (u32)1 << 23}};
    Err why = {0};
    if (!hf_path(j->path, dir, name, e)) return false;
    if (!needed && !os_is_file(j->path)) return true;
    if (!os_map_file(&j->map, j->path, e)) return false;
    if (json_parse(&j->doc, (Str){(const char *)j->map.p, j->map.n}, &why)) return true;
    hf_json_close(j);
    return err_set(e, why.code == ERR_MEMORY ? ERR_MEMORY : ERR_MODEL, "%s: %s", j->path, why.msg);
}

/* ---- classes: what `architectures` says, and the family of model.c that it is ---- */

typedef struct {
    const char *name, *arch;
    i32 mask_id; /* of the published checkpoints, which do not all say; -1: none */
} HfClass;

static const HfClass HF_CLASSES[] = {
    {"LlamaForCausalLM", "llama", -1},
    {"MistralForCausalLM", "llama", -1},
    {"MinistralForCausalLM", "llama", -1},
    {"Ministral3ForCausalLM", "mistral3", -1},
    {"SmolLM3ForCausalLM", "smollm3", -1},
    {"Qwen2ForCausalLM", "qwen2", -1},
    {"Qwen3ForCausalLM", "qwen3", -1},
    {"Phi3ForCausalLM", "phi3", -1},
    {"BitNetForCausalLM", "bitnet-b1.58", -1},
    {"BitnetForCausalLM", "bitnet-b1.58", -1},
    {"Fast_dLLM_QwenForCausalLM", "fast-dllm", 151665},
    {"DreamModel", "dream", 151666},
    {"LLaDAModelLM", "llada", 126336},
    {"SDARForCausalLM", "sdar", 151669},
    {"WeDLMForCausalLM", "wedlm", 151665},
};

/* SubLN as the first of two modules (X.0, X.1) always has this epsilon. */
#define HF_SUB_EPS 1e-6

typedef struct {
    const char *dir;
    HfJson config, generation;
    const HfClass *class;
    const ModelFamily *family;
    i64 n_vocab, n_embd, n_layer, n_head, n_head_kv, head_dim, n_ff, n_ctx, n_rot;
    f64 eps, theta;
    f64 sub_eps; /* of SubLN, where it differs; else 0 */
    DlmAct act;
    bool tied;
    bool ternary;         /* the linear weights are ternary, or are to be made so */
    bool offline;         /* they lie packed in U8 */
    bool divides;         /* W = code / weight_scale instead of code * weight_scale */
    bool scale_undecided; /* nothing says which */
    u32 rope;             /* the node with the scaling of positions, or JSON_NONE */
} Hf;

static void hf_close(Hf *h) {
    hf_json_close(&h->config);
    hf_json_close(&h->generation);
}

/* The node of the first of these keys (separated by spaces) that config.json has and that is not null. */
static u32 hf_find_(const JsonDoc *d, u32 object, const char *names) {
    char name[64];
    for (const char *at = names; *at; at += strspn(at, " ")) {
        size_t n = strcspn(at, " ");
        snprintf(name, sizeof name, "%.*s", (int)n, at);
        u32 node = json_get(d, object, name);
        if (node != JSON_NONE && json_type(d, node) != JSON_NULL) return node;
        at += n;
    }
    return JSON_NONE;
}

static bool hf_wrong_(const Hf *h, const char *names, const char *want, Err *e) {
    return err_set(e, ERR_MODEL, "%s: %.*s has to be %s", h->config.path, (int)strcspn(names, " "),
                   names, want);
}

/* An integer of config.json; *out keeps its default, and one below lo makes the key mandatory. */
static bool hf_int_(const Hf *h, const char *names, i64 lo, i64 hi, i64 *out, Err *e) {
    const JsonDoc *d = &h->config.doc;
    u32 node = hf_find_(d, 0, names);
    char want[64];
    snprintf(want, sizeof want, "a whole number from %lld to %lld", (long long)lo, (long long)hi);
    if (node != JSON_NONE && !json_i64(d, node, out)) return hf_wrong_(h, names, want, e);
    return (*out >= lo && *out <= hi) || hf_wrong_(h, names, want, e);
}

static bool hf_positive_(const Hf *h, u32 object, const char *names, f64 *out, Err *e) {
    const JsonDoc *d = &h->config.doc;
    u32 node = hf_find_(d, object, names);
    if (node != JSON_NONE && !json_f64(d, node, out)) *out = 0;
    return (*out > 0 && *out < 1e12) || hf_wrong_(h, names, "a positive number", e);
}

static bool hf_flag_(const Hf *h, const char *names, bool otherwise) {
    bool v = otherwise;
    json_bool(&h->config.doc, hf_find_(&h->config.doc, 0, names), &v);
    return v;
}

static Str hf_text_(const Hf *h, u32 object, const char *names) {
    Str s = {"", 0};
    json_str(&h->config.doc, hf_find_(&h->config.doc, object, names), &s);
    return s;
}

static const ModelFamily *hf_family_(const char *arch) {
    for (size_t i = 0; i < COUNT_OF(MODEL_FAMILIES); i++)
        if (strcmp(MODEL_FAMILIES[i].arch, arch) == 0) return &MODEL_FAMILIES[i];
    ASSERT(!"a class without a family");
    return NULL;
}

static bool hf_read_class_(Hf *h, Err *e) {
    const JsonDoc *d = &h->config.doc;
    u32 list = json_get(d, 0, "architectures");
    Str name = {"", 0};
    json_str(d, json_first(d, list), &name);
    for (size_t i = 0; i < COUNT_OF(HF_CLASSES); i++)
        if (str_eq(name, str_of(HF_CLASSES[i].name))) h->class = &HF_CLASSES[i];
    if (h->class) {
        h->family = hf_family_(h->class->arch);
        return true;
    }
    Buf known = {.max = 512};
    for (size_t i = 0; i < COUNT_OF(HF_CLASSES); i++)
        buf_printf(&known, "%s%s", i ? ", " : "", HF_CLASSES[i].name);
    err_set(e, ERR_MODEL, "%s: architectures says '%.*s', which dlm does not know; it knows %.*s",
            h->config.path, STR_ARG(name), (int)known.n, known.p ? known.p : "");
    buf_free(&known);
    return false;
}

static bool hf_read_act_(Hf *h, Err *e) {
    Str act = hf_text_(h, 0, "hidden_act activation_type");
    h->act = h->family->act;
    if (str_eq(act, STR("relu2")) || str_eq(act, STR("relu_squared")))
        h->act = DLM_ACT_RELU2;
    else if (str_eq(act, STR("silu")) || str_eq(act, STR("swish")))
        h->act = DLM_ACT_SILU;
    else if (act.n)
        return err_set(e, ERR_MODEL, "%s: hidden_act is '%.*s'; dlm knows silu and relu2",
                       h->config.path, STR_ARG(act));
    if (h->act != h->family->act && strcmp(h->family->arch, "bitnet-b1.58") == 0)
        h->family = hf_family_("bitnet"); /* the same, but for the activation */
    if (h->act == h->family->act) return true;
    return err_set(e, ERR_MODEL, "%s: hidden_act is '%.*s', but %s has another one", h->config.path,
                   STR_ARG(act), h->class->name);
}

static bool hf_read_sizes_(Hf *h, Err *e) {
    h->n_vocab = h->n_embd = h->n_layer = h->n_head = h->n_ff = -1;
    if (!hf_int_(h, "embedding_size vocab_size", 1, TOK_VOCAB_MAX, &h->n_vocab, e) ||
        !hf_int_(h, "hidden_size d_model", 1, MODEL_EMBD_MAX, &h->n_embd, e) ||
        !hf_int_(h, "num_hidden_layers n_layers", 1, MODEL_LAYER_MAX, &h->n_layer, e) ||
        !hf_int_(h, "num_attention_heads n_heads", 1, MODEL_HEAD_MAX, &h->n_head, e) ||
        !hf_int_(h, "intermediate_size mlp_hidden_size", 1, MODEL_FF_MAX, &h->n_ff, e))
        return false;
    h->n_head_kv = h->n_head;
    h->head_dim = h->n_embd / h->n_head;
    h->n_ctx = 4096; /* LLaDA's, which does not say */
    if (!hf_int_(h, "num_key_value_heads n_kv_heads", 1, h->n_head, &h->n_head_kv, e) ||
        !hf_int_(h, "head_dim", 2, MODEL_HEAD_DIM_MAX, &h->head_dim, e) ||
        !hf_int_(h, "max_position_embeddings max_sequence_length", 1, MODEL_CTX_MAX, &h->n_ctx, e))
        return false;
    f64 part = 1;
    h->eps = 1e-6; /* what the classes assume when config.json does not say */
    if (!hf_positive_(h, h->rope, "partial_rotary_factor", &part, e) ||
        !hf_positive_(h, 0, "partial_rotary_factor", &part, e) ||
        !hf_positive_(h, 0, "rms_norm_eps layer_norm_eps", &h->eps, e))
        return false;
    h->n_rot = (i64)((f64)h->head_dim * part + 0.5);
    h->theta = 10000;
    if (!hf_positive_(h, h->rope, "rope_theta", &h->theta, e)) return false;
    return hf_positive_(h, 0, "rope_theta", &h->theta, e);
}

/* quantization_config: BitNet's, or none. */
static bool hf_read_ternary_(Hf *h, Err *e) {
    const JsonDoc *d = &h->config.doc;
    u32 q = hf_find_(d, 0, "quantization_config");
    Str method = hf_text_(h, q, "quant_method"), mode = hf_text_(h, q, "quantization_mode"),
        class = hf_text_(h, q, "linear_class");
    h->ternary = str_starts(str_of(h->family->arch), STR("bitnet"));
    h->scale_undecided = q == JSON_NONE;
    if (q == JSON_NONE) return true;
    if (!str_eq(method, STR("bitnet")))
        return err_set(e, ERR_MODEL,
                       "%s: quant_method is '%.*s'; dlm reads bitnet, and weights that are not "
                       "quantized",
                       h->config.path, STR_ARG(method));
    if (class.n && !str_eq(class, STR("bitlinear")) && !str_eq(class, STR("autobitlinear")))
        return err_set(e, ERR_MODEL,
                       "%s: linear_class is '%.*s'; dlm knows bitlinear and autobitlinear",
                       h->config.path, STR_ARG(class));
    h->ternary = true;
    h->divides = !str_eq(class, STR("autobitlinear")); /* bitlinear is transformers' default */
    h->offline = !str_eq(mode, STR("online"));         /* offline is */
    return true;
}

static bool hf_read_(Hf *h, Err *e) {
    if (!hf_json_open(&h->config, h->dir, "config.json", true, e) ||
        !hf_json_open(&h->generation, h->dir, "generation_config.json", false, e))
        return false;
    if (!hf_read_class_(h, e) || !hf_read_act_(h, e)) return false;
    h->rope = hf_find_(&h->config.doc, 0, "rope_parameters rope_scaling");
    h->tied = hf_flag_(h, "tie_word_embeddings weight_tying", false);
    return hf_read_sizes_(h, e) && hf_read_ternary_(h, e);
}

static bool hf_open(Hf *h, const char *dir, Err *e) {
    *h = (Hf){.dir = dir};
    if (hf_read_(h, e)) return true;
    hf_close(h);
    return false;
}

/* ---- the tensors, by both names ---- */

typedef enum { HF_ONE, HF_EMBD, HF_Q, HF_KV, HF_FF, HF_QKV, HF_TWO_FF, HF_HEAD, HF_VOCAB } HfSize;

static i64 hf_size(const Hf *h, HfSize s) {
    switch (s) {
    case HF_ONE: return 1;
    case HF_EMBD: return h->n_embd;
    case HF_Q: return h->n_head * h->head_dim;
    case HF_KV: return h->n_head_kv * h->head_dim;
    case HF_FF: return h->n_ff;
    case HF_QKV: return (h->n_head + 2 * h->n_head_kv) * h->head_dim;
    case HF_TWO_FF: return 2 * h->n_ff;
    case HF_HEAD: return h->head_dim;
    case HF_VOCAB: return h->n_vocab;
    }
    return 0;
}

typedef struct {
    const char *ours;   /* without .weight; of a layer: without blk.N. */
    const char *theirs; /* all spellings, separated by spaces; of a layer: without its prefix */
    HfSize n_in, n_out; /* n_out HF_ONE: a vector */
    bool needed;
    bool rotated; /* its rows are permuted where rotation turns neighbours */
} HfName;

#define HF_LAYER_PREFIXES "model.layers.%d. model.transformer.blocks.%d. layers.%d."

static const HfName HF_LAYER_VECTORS[] = {
    {"attn_norm", "input_layernorm attn_norm", HF_EMBD, HF_ONE, true, false},
    {"attn_q_norm", "self_attn.q_norm", HF_HEAD, HF_ONE, false, false},
    {"attn_k_norm", "self_attn.k_norm", HF_HEAD, HF_ONE, false, false},
    {"attn_sub_norm", "self_attn.attn_sub_norm self_attn.inner_attn_ln", HF_Q, HF_ONE, false,
     false},
    {"ffn_norm", "post_attention_layernorm ff_norm", HF_EMBD, HF_ONE, true, false},
    {"ffn_sub_norm", "mlp.ffn_sub_norm mlp.ffn_layernorm", HF_FF, HF_ONE, false, false},
};

/* Of the fused and the single ones, one set is there. */
static const HfName HF_LAYER_MATRICES[] = {
    {"attn_qkv", "self_attn.qkv_proj", HF_EMBD, HF_QKV, false, false},
    {"attn_q", "self_attn.q_proj q_proj", HF_EMBD, HF_Q, false, true},
    {"attn_k", "self_attn.k_proj k_proj", HF_EMBD, HF_KV, false, true},
    {"attn_v", "self_attn.v_proj v_proj", HF_EMBD, HF_KV, false, false},
    {"attn_output", "self_attn.o_proj attn_out", HF_Q, HF_EMBD, true, false},
    {"ffn_gate", "mlp.gate_proj ff_proj", HF_EMBD, HF_FF, false, false},
    {"ffn_up", "mlp.up_proj up_proj", HF_EMBD, HF_FF, false, false},
    {"ffn_up", "mlp.gate_up_proj", HF_EMBD, HF_TWO_FF, false, false},
    {"ffn_down", "mlp.down_proj ff_out", HF_FF, HF_EMBD, true, false},
};

/* Bits by the rows of HF_LAYER_MATRICES: all of the single ones are there, or the fused one. */
static const struct {
    const char *what;
    u32 single, fused;
} HF_SETS[] = {{"q_proj, k_proj and v_proj", 0x0e, 0x01}, {"gate_proj and up_proj", 0x60, 0x80}};

static const HfName HF_FIRST = {
    "token_embd", "model.embed_tokens model.transformer.wte embed_tokens", HF_EMBD, HF_VOCAB, true,
    false};
static const HfName HF_LAST[] = {
    {"output_norm", "model.norm model.transformer.ln_f norm", HF_EMBD, HF_ONE, true, false},
    {"output", "lm_head model.transformer.ff_out", HF_EMBD, HF_VOCAB, false, false},
};

/* Buffers of old checkpoints that hold nothing learned. */
static bool hf_is_buffer(Str name) {
    return str_ends(name, STR(".rotary_emb.inv_freq")) || str_ends(name, STR(".masked_bias"));
}

/* ---- positions ---- */

typedef enum { HF_ROPE_PLAIN, HF_ROPE_LINEAR, HF_ROPE_LLAMA3, HF_ROPE_LONG, HF_ROPE_YARN } HfRope;

static const struct {
    const char *name;
    HfRope rope;
} HF_ROPES[] = {
    {"default", HF_ROPE_PLAIN}, {"linear", HF_ROPE_LINEAR}, {"llama3", HF_ROPE_LLAMA3},
    {"longrope", HF_ROPE_LONG}, {"su", HF_ROPE_LONG},       {"yarn", HF_ROPE_YARN},
};

static bool hf_rope(const Hf *h, HfRope *rope, Err *e) {
    Str type = hf_text_(h, h->rope, "rope_type type");
    *rope = HF_ROPE_PLAIN;
    if (type.n == 0) return true;
    for (size_t i = 0; i < COUNT_OF(HF_ROPES); i++)
        if (str_eq(type, str_of(HF_ROPES[i].name))) {
            *rope = HF_ROPES[i].rope;
            return true;
        }
    return err_set(e, ERR_MODEL,
                   "%s: rope_type is '%.*s'; dlm knows default, linear, llama3, longrope and yarn",
                   h->config.path, STR_ARG(type));
}

/* Llama 3's divisors of the n_rot/2 frequencies: slow turns are slowed down by `factor`, fast ones are
 * left alone, and between them it is blended. */
static bool hf_llama3_factors(const Hf *h, f32 *out /* [n_rot / 2] */, Err *e) {
    f64 factor = 8, low = 1, high = 4, old = 8192;
    if (!hf_positive_(h, h->rope, "factor", &factor, e) ||
        !hf_positive_(h, h->rope, "low_freq_factor", &low, e) ||
        !hf_positive_(h, h->rope, "high_freq_factor", &high, e) ||
        !hf_positive_(h, h->rope, "original_max_position_embeddings", &old, e))
        return false;
    if (!(high > low)) return hf_wrong_(h, "high_freq_factor", "above low_freq_factor", e);
    const f64 two_pi = 6.283185307179586;
    for (i64 i = 0; i < h->n_rot / 2; i++) {
        f64 length = two_pi * kern_exp(kern_log(h->theta) * 2 * (f64)i / (f64)h->n_rot);
        f64 smooth = (old / length - low) / (high - low);
        out[i] = (f32)(smooth >= 1   ? 1
                       : smooth <= 0 ? factor
                                     : 1 / ((1 - smooth) / factor + smooth));
    }
    return true;
}

/* longrope's list of n_rot/2 divisors. */
static bool hf_long_factors(const Hf *h, const char *name, f32 *out /* [n_rot / 2] */, Err *e) {
    const JsonDoc *d = &h->config.doc;
    u32 list = json_get(d, h->rope, name), at = json_first(d, list);
    if ((i64)json_count(d, list) != h->n_rot / 2)
        return err_set(e, ERR_MODEL, "%s: %s has to be a list of %lld numbers", h->config.path,
                       name, (long long)(h->n_rot / 2));
    for (i64 i = 0; i < h->n_rot / 2; i++, at = json_next(d, at)) {
        f64 v = 0;
        if (!json_f64(d, at, &v) || !(v > 0 && v < 1e12))
            return err_set(e, ERR_MODEL, "%s: %s has to hold positive numbers", h->config.path,
                           name);
        out[i] = (f32)v;
    }
    return true;
}

/* ---- keys ---- */

/* The name of a key of the architecture, in a buffer of the caller. */
static const char *hf_key_(const Hf *h, char key[128], const char *suffix) {
    snprintf(key, 128, "%s.%s", h->family->arch, suffix);
    return key;
}

/* How much attention is sharpened for a longer text: sqrt(1 + ln(ratio) / ln(original)). */
static f64 hf_long_attention_(f64 ratio, f64 original) {
    return ratio <= 1 ? 1 : kern_exp(0.5 * kern_log(1 + kern_log(ratio) / kern_log(original)));
}

/* YaRN's further settings, as they are; what is absent stays so. */
static bool hf_put_yarn_(const Hf *h, GgufWriter *w, Err *e) {
    static const struct {
        const char *theirs, *ours;
    } keys[] = {{"beta_fast", "rope.scaling.yarn_beta_fast"},
                {"beta_slow", "rope.scaling.yarn_beta_slow"},
                {"mscale_all_dim", "rope.scaling.yarn_log_multiplier"},
                {"llama_4_scaling_beta", "attention.temperature_scale"}};
    char key[128];
    f64 mscale = 1, all = 1, v = 1;
    if (!hf_positive_(h, h->rope, "mscale", &mscale, e) ||
        !hf_positive_(h, h->rope, "mscale_all_dim", &all, e))
        return false;
    if (mscale != all) return hf_wrong_(h, "mscale", "the same as mscale_all_dim", e);
    for (size_t i = 0; i < COUNT_OF(keys); i++) {
        if (hf_find_(&h->config.doc, h->rope, keys[i].theirs) == JSON_NONE) continue;
        if (!hf_positive_(h, h->rope, keys[i].theirs, &v, e)) return false;
        gguf_put_f32(w, hf_key_(h, key, keys[i].ours), (f32)v);
    }
    return true;
}

static bool hf_put_stretch_(const Hf *h, GgufWriter *w, HfRope rope, Err *e) {
    static const char *const names[] = {
        [HF_ROPE_LINEAR] = "linear", [HF_ROPE_LONG] = "longrope", [HF_ROPE_YARN] = "yarn"};
    char key[128];
    gguf_put_str(w, hf_key_(h, key, "rope.scaling.type"), str_of(names[rope]));
    f64 factor = 1, old = (f64)h->n_ctx;
    if (!hf_positive_(h, h->rope, "factor", &factor, e) ||
        !hf_positive_(h, 0, "original_max_position_embeddings", &old, e) ||
        !hf_positive_(h, h->rope, "original_max_position_embeddings", &old, e))
        return false;
    if (rope != HF_ROPE_LONG) gguf_put_f32(w, hf_key_(h, key, "rope.scaling.factor"), (f32)factor);
    if (rope == HF_ROPE_LINEAR) return true;
    if (!(old >= 2 && old <= MODEL_CTX_MAX))
        return hf_wrong_(h, "original_max_position_embeddings", "a context length", e);
    gguf_put_u32(w, hf_key_(h, key, "rope.scaling.original_context_length"), (u32)old);
    if (rope == HF_ROPE_LONG) {
        f64 attention = hf_long_attention_((f64)h->n_ctx / old, old);
        if (!hf_positive_(h, h->rope, "attention_factor", &attention, e)) return false;
        gguf_put_f32(w, hf_key_(h, key, "rope.scaling.attn_factor"), (f32)attention);
        return true;
    }
    return hf_put_yarn_(h, w, e);
}

static bool hf_put_rope_(const Hf *h, GgufWriter *w, Err *e) {
    char key[128];
    HfRope rope;
    if (!hf_rope(h, &rope, e)) return false;
    gguf_put_u32(w, hf_key_(h, key, "rope.dimension_count"), (u32)h->n_rot);
    gguf_put_f32(w, hf_key_(h, key, "rope.freq_base"), (f32)h->theta);
    return rope == HF_ROPE_PLAIN || rope == HF_ROPE_LLAMA3 || hf_put_stretch_(h, w, rope, e);
}

/* Which layers slide their window: all, none, or as layer_types lists. */
static bool hf_put_window_(const Hf *h, GgufWriter *w, Err *e) {
    const JsonDoc *d = &h->config.doc;
    i64 window = 0, first = h->n_layer;
    char key[128];
    if (!hf_int_(h, "sliding_window", 0, INT_MAX, &window, e)) return false;
    if (window == 0 || !hf_flag_(h, "use_sliding_window", true)) return true;
    u32 types = json_get(d, 0, "layer_types"), at = json_first(d, types);
    if (json_count(d, types) == 0) {
        if (json_get(d, 0, "use_sliding_window") != JSON_NONE &&
            (!hf_int_(h, "max_window_layers", 0, INT_MAX, &first, e) || first > 0))
            return first >= h->n_layer ||
                   hf_wrong_(h, "max_window_layers", "0 or the number of layers", e);
        gguf_put_u32(w, hf_key_(h, key, "attention.sliding_window"), (u32)window);
        return true;
    }
    u8 slides[MODEL_LAYER_MAX];
    i64 n = 0, sliding = 0;
    if ((i64)json_count(d, types) != h->n_layer)
        return hf_wrong_(h, "layer_types", "a list with an entry for each layer", e);
    for (; n < h->n_layer; n++, at = json_next(d, at)) {
        Str type = {"", 0};
        json_str(d, at, &type);
        slides[n] = str_eq(type, STR("sliding_attention"));
        sliding += slides[n];
        if (!slides[n] && !str_eq(type, STR("full_attention")))
            return hf_wrong_(h, "layer_types", "a list of sliding_attention and full_attention", e);
    }
    if (sliding == 0) return true;
    gguf_put_u32(w, hf_key_(h, key, "attention.sliding_window"), (u32)window);
    const GgufKv pattern = {.key = str_of(hf_key_(h, key, "attention.sliding_window_pattern")),
                            .type = GGUF_ARRAY,
                            .elem = GGUF_BOOL,
                            .count = (u64)n,
                            .data = slides,
                            .n_bytes = (u64)n};
    if (sliding < n) gguf_put_raw_kv(w, &pattern);
    return true;
}

static bool hf_put_sizes_(const Hf *h, GgufWriter *w, Err *e) {
    const struct {
        const char *suffix;
        i64 value;
    } sizes[] = {
        {"context_length", h->n_ctx},
        {"embedding_length", h->n_embd},
        {"block_count", h->n_layer},
        {"feed_forward_length", h->n_ff},
        {"attention.head_count", h->n_head},
        {"attention.head_count_kv", h->n_head_kv},
        {"attention.key_length", h->head_dim},
        {"attention.value_length", h->head_dim},
        {"vocab_size", h->n_vocab},
    };
    char key[128];
    for (size_t i = 0; i < COUNT_OF(sizes); i++)
        gguf_put_u32(w, hf_key_(h, key, sizes[i].suffix), (u32)sizes[i].value);
    gguf_put_f32(w, hf_key_(h, key, "attention.layer_norm_rms_epsilon"), (f32)h->eps);
    if (h->sub_eps > 0)
        gguf_put_f32(w, hf_key_(h, key, "attention.sub_norm_rms_epsilon"), (f32)h->sub_eps);
    return hf_put_rope_(h, w, e) && hf_put_window_(h, w, e);
}

/* ---- the decode record ---- */

/* What command line options may say of it; negative: nothing. */
typedef struct {
    i32 mask_id, block_size, sub_block_size;
    f32 threshold;
} HfDecode;

/* A number of generation_config.json, else of config.json. */
static bool hf_decode_number_(const Hf *h, const char *names, f64 *out) {
    const JsonDoc *d = &h->generation.doc;
    u32 node = json_type(d, 0) == JSON_OBJECT ? hf_find_(d, 0, names) : JSON_NONE;
    if (json_f64(d, node, out)) return true;
    return json_f64(&h->config.doc, hf_find_(&h->config.doc, 0, names), out);
}

/* Models that were made to diffuse later say so by bd_size: blocks, as Fast-dLLM's. Without it, a mask
 * token means masks filled under the causal attention that the model had. */
static DecodeRecord hf_decode(const Hf *h, const HfDecode *o) {
    f64 v;
    DecodeRecord d = MODEL_CONVENTIONS[h->family->convention].record;
    if (!h->family->convention && hf_find_(&h->config.doc, 0, "bd_size") != JSON_NONE) {
        d = MODEL_CONVENTIONS[CONVENTION_FAST_DLLM].record;
        d.first = FIRST_MASKED;
    }
    bool same = d.sub_block_size == d.block_size;
    if (hf_decode_number_(h, "bd_size block_size block_length", &v) && v >= 1 &&
        v <= MODEL_BLOCK_MAX)
        d.block_size = (i32)v;
    if (o->block_size > 0) d.block_size = o->block_size;
    if (same || d.block_size % d.sub_block_size) d.sub_block_size = d.block_size;
    if (hf_decode_number_(h, "small_block_length small_block_size", &v) && v >= 1 &&
        v <= d.block_size && d.block_size % (i32)v == 0)
        d.sub_block_size = (i32)v;
    if (o->sub_block_size > 0) d.sub_block_size = o->sub_block_size;
    if (hf_decode_number_(h, "threshold confidence_threshold", &v) && v > 0 && v <= 1)
        d.threshold = (f32)v;
    if (o->threshold > 0) d.threshold = o->threshold;
    return d;
}

static void hf_put_decode(const DecodeRecord *d, GgufWriter *w) {
    for (size_t i = 0; i < COUNT_OF(MODEL_FIELDS); i++) {
        const ModelField *f = &MODEL_FIELDS[i];
        const u8 *at = (const u8 *)d + f->at;
        i32 v = 0;
        char key[64];
        snprintf(key, sizeof key, "diffusion.%s", f->name);
        if (f->kind == FIELD_WORD || f->kind == FIELD_INT) memcpy(&v, at, sizeof v);
        switch (f->kind) {
        case FIELD_WORD: gguf_put_str(w, key, str_of(f->names[v])); break;
        case FIELD_INT: gguf_put_u32(w, key, (u32)v); break;
        case FIELD_BOOL: gguf_put_bool(w, key, *at != 0); break;
        case FIELD_REAL: gguf_put_f32(w, key, load_f32(at)); break;
        }
    }
}

/* All keys of the model but general.file_type and those of the tokenizer. */
static bool hf_put_keys(const Hf *h, GgufWriter *w, Str name, Err *e) {
    gguf_put_str(w, "general.architecture", str_of(h->family->arch));
    gguf_put_str(w, "general.name", name);
    char key[128];
    if (!hf_put_sizes_(h, w, e)) return false;
    if (MODEL_CONVENTIONS[h->family->convention].record.attention == ATTEND_FULL)
        gguf_put_bool(w, hf_key_(h, key, "attention.causal"), false);
    return true;
}

#endif

/* mkbench.c - writes a GGUF of BitNet b1.58 2B-4T's shape with random weights, to measure speed
 * with.
 *
 *     cc -std=c11 -D_GNU_SOURCE -O2 -o build/mkbench tools/mkbench.c
 *     build/mkbench OUT.gguf {tq1_0|tq2_0|i2_s|f16} [LAYERS]
 *
 * Architecture `bitnet` (SubLN, tied Q6_K embedding), so that other engines open the same file. The
 * text it makes is noise; the time it takes is that of a trained model. */
#include "../src/quant.c"

enum { EMBD = 2560, FF = 6912, HEADS = 20, HEADS_KV = 5, VOCAB = 128256, ALIGN = 32 };

static FILE *out;
static u64 offset, seed = 1;

static u64 random64(void) {
    u64 z = (seed += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static void put(const void *p, size_t n) {
    if (fwrite(p, 1, n, out) != n) {
        perror("mkbench: write");
        exit(1);
    }
}

static void put_u32(u32 v) {
    put(&v, 4);
}

static void put_u64(u64 v) {
    put(&v, 8);
}

static void put_str(const char *s) {
    put_u64(strlen(s));
    put(s, strlen(s));
}

static void kv_u32(const char *key, u32 v) {
    put_str(key);
    put_u32(4);
    put_u32(v);
}

static void kv_f32(const char *key, f32 v) {
    put_str(key);
    put_u32(6);
    put(&v, 4);
}

static void kv_bool(const char *key, u8 v) {
    put_str(key);
    put_u32(7);
    put(&v, 1);
}

static void kv_str(const char *key, const char *v) {
    put_str(key);
    put_u32(8);
    put_str(v);
}

static void kv_array(const char *key, u32 type, u64 n) {
    put_str(key);
    put_u32(9);
    put_u32(type);
    put_u64(n);
}

/* A byte of GPT-2's byte-level alphabet, as UTF-8. */
static int byte_text(int byte, char *s) {
    static int map[256], ready;
    for (int b = 0, next = 256; !ready && b < 256; b++)
        map[b] = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174 ? b : next++;
    ready = 1;
    int c = map[byte];
    if (c < 128) return s[0] = (char)c, s[1] = 0, 1;
    s[0] = (char)(0xc0 | c >> 6), s[1] = (char)(0x80 | (c & 63)), s[2] = 0;
    return 2;
}

/* 256 bytes, pairs of letters with their merges, filler, and four special tokens. */
static void put_tokenizer(void) {
    char s[32];
    kv_str("tokenizer.ggml.model", "gpt2");
    kv_str("tokenizer.ggml.pre", "llama-bpe");
    kv_array("tokenizer.ggml.tokens", 8, VOCAB);
    for (int i = 0; i < VOCAB; i++) {
        if (i < 256)
            byte_text(i, s);
        else if (i < 256 + 676)
            snprintf(s, sizeof s, "%c%c", 'a' + (i - 256) / 26, 'a' + (i - 256) % 26);
        else if (i == VOCAB - 1)
            snprintf(s, sizeof s, "|<MASK>|");
        else if (i == VOCAB - 2)
            snprintf(s, sizeof s, "<|eot_id|>");
        else if (i == VOCAB - 3)
            snprintf(s, sizeof s, "<|end_of_text|>");
        else if (i == VOCAB - 4)
            snprintf(s, sizeof s, "<|begin_of_text|>");
        else
            snprintf(s, sizeof s, "zz%dzz", i);
        put_str(s);
    }
    kv_array("tokenizer.ggml.token_type", 5, VOCAB);
    for (int i = 0; i < VOCAB; i++) put_u32(i >= VOCAB - 4 ? 3 : 1);
    kv_array("tokenizer.ggml.merges", 8, 676);
    for (int i = 0; i < 676; i++) {
        snprintf(s, sizeof s, "%c %c", 'a' + i / 26, 'a' + i % 26);
        put_str(s);
    }
    kv_u32("tokenizer.ggml.bos_token_id", VOCAB - 4);
    kv_u32("tokenizer.ggml.eos_token_id", VOCAB - 2);
    kv_u32("tokenizer.ggml.mask_token_id", VOCAB - 1);
    kv_bool("tokenizer.ggml.add_bos_token", 0);
}

typedef struct {
    const char *name;
    int in, out; /* out 0: a vector */
} Shape;

static const Shape LAYER[] = {
    {"attn_norm", EMBD, 0},
    {"attn_q", EMBD, EMBD},
    {"attn_k", EMBD, 128 * HEADS_KV},
    {"attn_v", EMBD, 128 * HEADS_KV},
    {"attn_sub_norm", EMBD, 0},
    {"attn_output", EMBD, EMBD},
    {"ffn_norm", EMBD, 0},
    {"ffn_gate", EMBD, FF},
    {"ffn_up", EMBD, FF},
    {"ffn_sub_norm", FF, 0},
    {"ffn_down", FF, EMBD},
};
enum { N_LAYER_TENSORS = sizeof LAYER / sizeof *LAYER };

static u64 tensor_bytes(DlmType type, u64 in, u64 n_out) {
    if (type == DLM_I2_S) return in * n_out / 4 + DLM_I2S_TAIL;
    return quant_row_bytes(type, (i64)in) * n_out;
}

static void put_info(const char *name, DlmType type, u64 in, u64 n_out) {
    put_str(name);
    put_u32(n_out ? 2 : 1);
    put_u64(in);
    if (n_out) put_u64(n_out);
    put_u32((u32)type);
    put_u64(offset);
    offset += (tensor_bytes(type, in, n_out ? n_out : 1) + ALIGN - 1) / ALIGN * ALIGN;
}

/* 2-bit codes 0..2, four in a byte. */
static u8 random_codes(u64 r) {
    return (u8)(r % 3 | (r >> 8) % 3 << 2 | (r >> 16) % 3 << 4 | (r >> 24) % 3 << 6);
}

static void fill_row(DlmType type, u8 *row, u64 bytes) {
    const u16 d = f32_to_f16(0.02f), values[3] = {d | 0x8000, 0, d};
    for (u64 i = 0; type == DLM_F16 && i < bytes; i += 2)
        memcpy(row + i, &values[random64() % 3], 2);
    if (type == DLM_F16) return;
    for (u64 i = 0; i < bytes; i++) {
        u64 r = random64();
        row[i] = type == DLM_TQ1_0  ? (u8)((r % 243 * 256 + 242) / 243)
                 : type == DLM_Q6_K ? (u8)r
                                    : random_codes(r);
    }
    u64 block = type == DLM_TQ1_0 ? 54 : type == DLM_TQ2_0 ? 66 : 210;
    for (u64 i = 0; type != DLM_I2_S && i < bytes; i += block) {
        memcpy(row + i + block - 2, type == DLM_Q6_K ? &(u16){f32_to_f16(2e-5f)} : &d, 2);
        for (int q = 48; type == DLM_TQ1_0 && q < 52; q++)
            row[i + (u64)q] = (u8)(((u64)row[i + (u64)q] % 81 * 3 * 256 + 242) / 243);
    }
}

static void put_data(DlmType type, u64 in, u64 n_out) {
    static u8 row[1 << 16], zero[ALIGN];
    u64 total = tensor_bytes(type, in, n_out ? n_out : 1),
        row_bytes = type == DLM_I2_S ? in / 4 : quant_row_bytes(type, (i64)in);
    if (!n_out) {
        f32 one = 1;
        for (u64 i = 0; i < in; i++) put(&one, 4);
    }
    for (u64 o = 0; o < n_out; o++) {
        if (o < 64 || type == DLM_I2_S)
            fill_row(type, row, row_bytes); /* 64 random rows, again and again */
        put(row, row_bytes);
    }
    if (type == DLM_I2_S) {
        f32 tail[8] = {0.02f};
        put(tail, sizeof tail);
    }
    put(zero, (ALIGN - total % ALIGN) % ALIGN);
}

int main(int argc, char **argv) {
    DlmType type = argc < 3                        ? DLM_F32
                   : strcmp(argv[2], "tq1_0") == 0 ? DLM_TQ1_0
                   : strcmp(argv[2], "i2_s") == 0  ? DLM_I2_S
                   : strcmp(argv[2], "f16") == 0   ? DLM_F16
                                                   : DLM_TQ2_0;
    int layers = argc > 3 ? (int)strtol(argv[3], NULL, 10) : 30;
    char name[64];
    if (argc < 3 || layers < 1 || !(out = fopen(argv[1], "wb"))) {
        fprintf(stderr, "usage: mkbench OUT.gguf {tq1_0|tq2_0|i2_s|f16} [LAYERS]\n");
        return 2;
    }
    put("GGUF", 4);
    put_u32(3);
    put_u64((u64)layers * N_LAYER_TENSORS + 2);
    put_u64(11 + 9 + 3);
    kv_str("general.architecture", "bitnet");
    kv_str("general.name", "random weights, BitNet b1.58 2B-4T shape");
    kv_u32("bitnet.block_count", (u32)layers);
    kv_u32("bitnet.context_length", 32768);
    kv_u32("bitnet.embedding_length", EMBD);
    kv_u32("bitnet.feed_forward_length", FF);
    kv_u32("bitnet.attention.head_count", HEADS);
    kv_u32("bitnet.attention.head_count_kv", HEADS_KV);
    kv_f32("bitnet.attention.layer_norm_rms_epsilon", 1e-5f);
    kv_f32("bitnet.rope.freq_base", 500000);
    kv_u32("bitnet.vocab_size", VOCAB);
    kv_str("diffusion.attention", "block"); /* decoded as Fast-dLLM v2 is */
    kv_u32("diffusion.block_size", 32);
    kv_u32("diffusion.sub_block_size", 8);
    put_tokenizer();
    put_info("token_embd.weight", DLM_Q6_K, EMBD, VOCAB);
    for (int l = 0; l < layers; l++)
        for (int t = 0; t < N_LAYER_TENSORS; t++) {
            snprintf(name, sizeof name, "blk.%d.%s.weight", l, LAYER[t].name);
            put_info(name, LAYER[t].out ? type : DLM_F32, (u64)LAYER[t].in, (u64)LAYER[t].out);
        }
    put_info("output_norm.weight", DLM_F32, EMBD, 0);
    for (long at = ftell(out); at % ALIGN; at++) put("", 1);
    put_data(DLM_Q6_K, EMBD, VOCAB);
    for (int l = 0; l < layers; l++)
        for (int t = 0; t < N_LAYER_TENSORS; t++)
            put_data(LAYER[t].out ? type : DLM_F32, (u64)LAYER[t].in, (u64)LAYER[t].out);
    put_data(DLM_F32, EMBD, 0);
    return fclose(out) != 0;
}

/* mkbench.c - writes a GGUF of BitNet b1.58 2B-4T's shape with random weights, to measure speed
 * with.
 *
 *     cc -std=c11 -D_GNU_SOURCE -O2 -o build/mkbench tools/mkbench.c
 *     build/mkbench OUT.gguf {tq1_0|tq2_0|i2_s|f16} [LAYERS]
 *
 * Architecture `bitnet` (SubLN, tied Q6_K embedding), so that other engines open the same file. The
 * text it makes is noise; the time it takes is that of a trained model. */
#include "../src/gguf.c"
#include "../src/quant.c"

enum { EMBD = 2560, FF = 6912, HEADS = 20, HEADS_KV = 5, VOCAB = 128256 };

static FILE *out;
static u64 seed = 1;

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
static void put_tokenizer(GgufWriter *w) {
    static char texts[VOCAB][16];
    static Str tokens[VOCAB], merges[676];
    static i32 types[VOCAB];
    static const char *const specials[] = {"<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>",
                                           "|<MASK>|"};
    for (int i = 0; i < VOCAB; i++) {
        char *s = texts[i];
        if (i < 256)
            byte_text(i, s);
        else if (i < 256 + 676)
            snprintf(s, sizeof texts[i], "%c%c", 'a' + (i - 256) / 26, 'a' + (i - 256) % 26);
        else
            snprintf(s, sizeof texts[i], "zz%dzz", i);
        bool special = i >= VOCAB - 4;
        tokens[i] = str_of(special ? specials[i - (VOCAB - 4)] : s);
        types[i] = special ? 3 : 1;
    }
    static char pairs[676][4];
    for (int i = 0; i < 676; i++) {
        snprintf(pairs[i], sizeof pairs[i], "%c %c", 'a' + i / 26, 'a' + i % 26);
        merges[i] = str_of(pairs[i]);
    }
    gguf_put_str(w, "tokenizer.ggml.model", STR("gpt2"));
    gguf_put_str(w, "tokenizer.ggml.pre", STR("llama-bpe"));
    gguf_put_strs(w, "tokenizer.ggml.tokens", tokens, VOCAB);
    gguf_put_i32s(w, "tokenizer.ggml.token_type", types, VOCAB);
    gguf_put_strs(w, "tokenizer.ggml.merges", merges, 676);
    gguf_put_u32(w, "tokenizer.ggml.bos_token_id", VOCAB - 4);
    gguf_put_u32(w, "tokenizer.ggml.eos_token_id", VOCAB - 2);
    gguf_put_u32(w, "tokenizer.ggml.mask_token_id", VOCAB - 1);
    gguf_put_bool(w, "tokenizer.ggml.add_bos_token", false);
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

/* n_out 0: a vector. */
static void put_info(GgufWriter *w, const char *name, DlmType type, u64 in, u64 n_out) {
    const u64 ne[2] = {in, n_out};
    gguf_put_tensor(w, str_of(name), type, n_out ? 2 : 1, ne);
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
    static u8 row[1 << 16];
    static const u8 zero[GGUF_ALIGN_DEFAULT];
    const u64 ne[4] = {in, n_out ? n_out : 1, 1, 1},
              row_bytes = type == DLM_I2_S ? in / 4 : quant_row_bytes(type, (i64)in);
    u64 total = 0;
    gguf_tensor_bytes(type, ne, &total);
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
    put(zero, gguf_padding(total));
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
    Err e = {0};
    GgufWriter w;
    gguf_writer_open(&w, &e);
    gguf_put_str(&w, "general.architecture", STR("bitnet"));
    gguf_put_str(&w, "general.name", STR("random weights, BitNet b1.58 2B-4T shape"));
    gguf_put_u32(&w, "bitnet.block_count", (u32)layers);
    gguf_put_u32(&w, "bitnet.context_length", 32768);
    gguf_put_u32(&w, "bitnet.embedding_length", EMBD);
    gguf_put_u32(&w, "bitnet.feed_forward_length", FF);
    gguf_put_u32(&w, "bitnet.attention.head_count", HEADS);
    gguf_put_u32(&w, "bitnet.attention.head_count_kv", HEADS_KV);
    gguf_put_f32(&w, "bitnet.attention.layer_norm_rms_epsilon", 1e-5f);
    gguf_put_f32(&w, "bitnet.rope.freq_base", 500000);
    gguf_put_u32(&w, "bitnet.vocab_size", VOCAB);
    gguf_put_str(&w, "diffusion.attention", STR("block")); /* decoded as Fast-dLLM v2 is */
    gguf_put_u32(&w, "diffusion.block_size", 32);
    gguf_put_u32(&w, "diffusion.sub_block_size", 8);
    put_tokenizer(&w);
    put_info(&w, "token_embd.weight", DLM_Q6_K, EMBD, VOCAB);
    for (int l = 0; l < layers; l++)
        for (int t = 0; t < N_LAYER_TENSORS; t++) {
            snprintf(name, sizeof name, "blk.%d.%s.weight", l, LAYER[t].name);
            put_info(&w, name, LAYER[t].out ? type : DLM_F32, (u64)LAYER[t].in, (u64)LAYER[t].out);
        }
    put_info(&w, "output_norm.weight", DLM_F32, EMBD, 0);
    Buf head = {0};
    if (!gguf_writer_head(&w, &head)) {
        fprintf(stderr, "mkbench: %s\n", e.msg);
        return 1;
    }
    put(head.p, head.n);
    buf_free(&head);
    gguf_writer_close(&w);
    put_data(DLM_Q6_K, EMBD, VOCAB);
    for (int l = 0; l < layers; l++)
        for (int t = 0; t < N_LAYER_TENSORS; t++)
            put_data(LAYER[t].out ? type : DLM_F32, (u64)LAYER[t].in, (u64)LAYER[t].out);
    put_data(DLM_F32, EMBD, 0);
    return fclose(out) != 0;
}

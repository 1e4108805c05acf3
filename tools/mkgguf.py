#!/usr/bin/env python3
"""mkgguf.py - write GGUF files for the tests, independently of dlm's own reader and writer.

  tools/mkgguf.py CHECKPOINT_DIR -o OUT.gguf --type tq2_0     convert a BitNet b1.58 checkpoint
  tools/mkgguf.py --hostile OUT_DIR                           one broken file per crime
  tools/mkgguf.py --selftest                                  encoders against known vectors

Standard library only. The layouts come from ggml's published block structures and, for I2_S, from
BitNet.cpp; --selftest holds them against vectors computed elsewhere.

Linear weights become t * m with t = clamp(round_half_even(W / m), -1, 1) and m = mean |W| over the
whole tensor. With `--scale tensor`, m stands in full precision in a tensor `X.scale` beside
`X.weight` (llama.cpp's optional BitNet scales) and the blocks' own scale is 1. With `--scale f16`,
the blocks hold m rounded to binary16, the f32 scale of I2_S included. Either way all files of one
checkpoint hold identical weights. The rounding looks harmless and is not: it moves activations
across int8 rounding boundaries and so moves logits by up to 0.2.
"""

import argparse
import collections
import hashlib
import json
import math
import os
import struct
import sys

# ---- numbers ------------------------------------------------------------------------------------


def f32(x):
    """The nearest binary32 value."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def f16(x):
    """The nearest binary16 value."""
    return struct.unpack("<e", struct.pack("<e", x))[0]


def floats_of(dtype, raw):
    """The values of a safetensors tensor, as exact floats."""
    n = len(raw) // {"BF16": 2, "F16": 2, "F32": 4}[dtype]
    if dtype == "BF16":
        raw = b"".join(b"\0\0" + raw[2 * i : 2 * i + 2] for i in range(n))
    return struct.unpack(f"<{n}{'e' if dtype == 'F16' else 'f'}", raw)


# ---- tensor types: id, weights per block, bytes per block ---------------------------------------

Type = collections.namedtuple("Type", "id block bytes")
TYPES = {
    "f32": Type(0, 1, 4),
    "f16": Type(1, 1, 2),
    "q8_0": Type(8, 32, 34),
    "bf16": Type(30, 1, 2),
    "tq1_0": Type(34, 256, 54),
    "tq2_0": Type(35, 256, 66),
    "i2_s": Type(36, 4, 1),
    "q2_0": Type(42, 64, 18),
}
# general.file_type. 40 is I2_S in the BitNet fork only; no reader should trust this key.
FILE_TYPES = {"f32": 0, "f16": 1, "tq1_0": 36, "tq2_0": 37, "i2_s": 40, "q2_0": 41}
I2S_LAYOUTS = ("128", "64", "row4", "seq")


# ---- ternary encoders: codes are 0, 1, 2 for -1, 0, +1, row-major -------------------------------


def pack2(lanes, shifts):
    """Bytes whose two-bit fields at `shifts` come from equally long lanes of codes."""
    a, b, c, d = shifts
    return bytes(w << a | x << b | y << c | z << d for w, x, y, z in zip(*lanes))


def quarters(codes, at, step):
    """Four consecutive runs of `step` codes."""
    return [codes[at + i * step : at + (i + 1) * step] for i in range(4)]


def encode_tq1_0(codes, scale):
    d, out = struct.pack("<e", scale), []
    for at in range(0, len(codes), 256):
        for run, lanes, n in ((0, 32, 5), (160, 16, 5), (240, 4, 4)):
            for m in range(lanes):
                number = 0
                for i in range(n):
                    number = number * 3 + codes[at + run + i * lanes + m]
                number *= 3 ** (5 - n)
                out.append((number * 256 + 242) // 243)
        out += d
    return bytes(out)


def encode_tq2_0(codes, scale):
    d = struct.pack("<e", scale)
    return b"".join(
        pack2(quarters(codes, at, 32), (0, 2, 4, 6))
        + pack2(quarters(codes, at + 128, 32), (0, 2, 4, 6))
        + d
        for at in range(0, len(codes), 256)
    )


def encode_q2_0(codes, scale):
    d, seq = struct.pack("<e", scale), encode_i2s_codes(codes, 0, "seq")
    return b"".join(d + seq[at : at + 16] for at in range(0, len(seq), 16))


def encode_i2s_codes(codes, n_cols, layout):
    if layout == "seq":
        return pack2([codes[i::4] for i in range(4)], (0, 2, 4, 6))
    if layout == "row4":
        return b"".join(
            pack2(quarters(codes, at, n_cols), (6, 4, 2, 0))
            for at in range(0, len(codes), 4 * n_cols)
        )
    step = int(layout) // 4
    return b"".join(
        pack2(quarters(codes, at, step), (6, 4, 2, 0)) for at in range(0, len(codes), 4 * step)
    )


def encode_i2_s(codes, n_cols, scale, layout):
    return encode_i2s_codes(codes, n_cols, layout) + struct.pack("<f28x", scale)


def encode_linear(kind, codes, n_cols, scale, layout):
    """The bytes of a ternary matrix in any type. `scale` has to fit the type: see Checkpoint."""
    unit = {"i2_s": 4 * n_cols if layout == "row4" else 4 if layout == "seq" else int(layout)}
    if len(codes) % unit.get(kind, 1) or (kind != "i2_s" and n_cols % TYPES[kind].block):
        sys.exit(f"mkgguf: {len(codes)} weights in rows of {n_cols} do not fit {kind} blocks")
    if kind == "i2_s":
        return encode_i2_s(codes, n_cols, scale, layout)
    if kind in ("f16", "f32"):
        table = [struct.pack("<e" if kind == "f16" else "<f", (c - 1) * scale) for c in range(3)]
        return b"".join(table[c] for c in codes)
    return {"tq1_0": encode_tq1_0, "tq2_0": encode_tq2_0, "q2_0": encode_q2_0}[kind](codes, scale)


def encode_dense(kind, values):
    """The bytes of an ordinary tensor."""
    if kind == "f32":
        return struct.pack(f"<{len(values)}f", *values)
    if kind == "f16":
        return struct.pack(f"<{len(values)}e", *values)
    if kind == "bf16":
        out = []
        for bits in struct.unpack(f"<{len(values)}I", struct.pack(f"<{len(values)}f", *values)):
            out.append((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)  # round half to even
        return struct.pack(f"<{len(out)}H", *out)
    out = []
    for at in range(
        0, len(values), 32
    ):  # q8_0: d = max|x| / 127, q = round half away from zero, as ggml's
        block = values[at : at + 32]
        d = f32(max(abs(v) for v in block) / 127)
        inverse = f32(1 / d) if d else 0.0
        q = [f32(v * inverse) for v in block]
        out.append(
            struct.pack("<e32b", d, *(int(math.copysign(math.floor(abs(v) + 0.5), v)) for v in q))
        )
    return b"".join(out)


# ---- the container ------------------------------------------------------------------------------

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
SCALARS = {
    U8: "B",
    I8: "b",
    U16: "H",
    I16: "h",
    U32: "I",
    I32: "i",
    F32: "f",
    BOOL: "?",
    U64: "Q",
    I64: "q",
    F64: "d",
}


def pack_str(text):
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def pack_value(kind, value):
    if kind == STRING:
        return pack_str(value)
    if kind == ARRAY:
        elem, items = value
        return struct.pack("<IQ", elem, len(items)) + b"".join(pack_value(elem, v) for v in items)
    return struct.pack("<" + SCALARS[kind], value)


def pack_kv(key, kind, value):
    return pack_str(key) + struct.pack("<I", kind) + pack_value(kind, value)


class Tensor:
    """A tensor to be written. `ne` is in GGUF order: the contiguous dimension first."""

    def __init__(self, name, ne, kind, data):
        self.name, self.ne, self.kind, self.data = name, list(ne), kind, data
        self.n_dims = self.offset = None  # None: as they should be; the hostile files say otherwise

    def pack_info(self, offset):
        at = offset if self.offset is None else self.offset
        n_dims = len(self.ne) if self.n_dims is None else self.n_dims
        return (
            pack_str(self.name)
            + struct.pack("<I", n_dims)
            + struct.pack(f"<{len(self.ne)}Q", *self.ne)
            + struct.pack("<IQ", self.kind, at)
        )


class Gguf:
    """A GGUF file to be written. A field that is None is computed; hostile files set it to a lie."""

    def __init__(self, version=3):
        self.magic, self.version, self.alignment = b"GGUF", version, 32
        self.n_kv = self.n_tensors = None
        self.kv = {}  # key -> (kind, value), in file order
        self.raw_kv = []  # further entries as bytes
        self.tensors = []

    def put(self, key, kind, value):
        self.kv[key] = (kind, value)

    def add(self, name, ne, kind, data):
        self.tensors.append(Tensor(name, ne, TYPES[kind].id, data))

    def tensor(self, name):
        return next(t for t in self.tensors if t.name == name)

    def directory(self):
        """Everything before the tensor data."""
        entries = [pack_kv(k, *v) for k, v in self.kv.items()] + self.raw_kv
        n_kv = len(entries) if self.n_kv is None else self.n_kv
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        out = [self.magic, struct.pack("<IQQ", self.version, n_tensors, n_kv), *entries]
        offset = 0
        for t in self.tensors:
            out.append(t.pack_info(offset))
            offset += len(t.data) + -len(t.data) % self.alignment
        return b"".join(out)

    def pack(self):
        head = self.directory()
        out = [head, bytes(-len(head) % self.alignment)]
        for t in self.tensors:
            out += [t.data, bytes(-len(t.data) % self.alignment)]
        return b"".join(out)


# ---- a BitNet checkpoint in Hugging Face's layout -----------------------------------------------

BLOCK_NORMS = {
    "input_layernorm": "attn_norm",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
}
BLOCK_LINEARS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# tokenizer.json's Split pattern -> tokenizer.ggml.pre
PRE_TOKENIZERS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+": "qwen2",
}


class Checkpoint:
    """config.json and friends, and one model.safetensors."""

    def __init__(self, folder):
        def load(name):
            with open(os.path.join(folder, name), encoding="utf-8") as f:
                return json.load(f)

        self.config, self.generation = load("config.json"), load("generation_config.json")
        self.tokenizer, self.tokenizer_config = load("tokenizer.json"), load(
            "tokenizer_config.json"
        )
        with open(os.path.join(folder, "model.safetensors"), "rb") as f:
            self.blob = f.read()
        (n,) = struct.unpack_from("<Q", self.blob)
        self.directory, self.start = json.loads(self.blob[8 : 8 + n]), 8 + n

    def raw(self, name):
        entry = self.directory[name]
        begin, end = entry["data_offsets"]
        return entry["dtype"], entry["shape"], self.blob[self.start + begin : self.start + end]

    def dense(self, name):
        dtype, shape, raw = self.raw(name)
        return shape, floats_of(dtype, raw)

    def ternary(self, name):
        """Shape [n_out, n_in], codes and scale of a linear layer, packed or not."""
        dtype, shape, raw = self.raw(name)
        if dtype == "U8":
            # Row r + i * n_out / 4 lies in bits 2 i, 2 i + 1 of packed row r.
            codes = b"".join(bytes(b >> 2 * i & 3 for b in raw) for i in range(4))
            _, scale = self.dense(name + "_scale")
            return [4 * shape[0], shape[1]], codes, scale[0]
        # A bf16 tensor has few distinct values: the mean is exact, and each value is divided once.
        values = floats_of(dtype, raw)
        counts = collections.Counter(values)
        mean = f32(math.fsum(abs(v) * n for v, n in counts.items()) / len(values))
        mean = max(mean, f32(1e-5))
        code = {v: max(-1, min(1, round(f32(v / mean)))) + 1 for v in counts}
        return shape, bytes(code[v] for v in values), mean


def put_model(g, name, c, arch, file_type):
    heads = c["num_attention_heads"]
    head_dim = c.get("head_dim") or c["hidden_size"] // heads
    g.put("general.architecture", STRING, arch)
    g.put("general.name", STRING, name)
    g.put("general.file_type", U32, file_type)
    for key, value in (
        ("context_length", c["max_position_embeddings"]),
        ("embedding_length", c["hidden_size"]),
        ("block_count", c["num_hidden_layers"]),
        ("feed_forward_length", c["intermediate_size"]),
        ("attention.head_count", heads),
        ("attention.head_count_kv", c["num_key_value_heads"]),
        ("attention.key_length", head_dim),
        ("attention.value_length", head_dim),
        ("rope.dimension_count", head_dim),
        ("vocab_size", c["vocab_size"]),
    ):
        g.put(f"{arch}.{key}", U32, value)
    g.put(f"{arch}.attention.layer_norm_rms_epsilon", F32, c["rms_norm_eps"])
    g.put(f"{arch}.rope.freq_base", F32, c["rope_theta"])


def put_diffusion(g, block_size, sub_block_size, threshold):
    """How the model was trained to be decoded: dlm's decode record."""
    g.put("diffusion.block_size", U32, block_size)
    g.put("diffusion.sub_block_size", U32, sub_block_size)
    g.put("diffusion.shift_logits", BOOL, True)
    g.put("diffusion.attention", STRING, "block")
    g.put("diffusion.align", STRING, "absolute")
    g.put("diffusion.threshold", F32, threshold)
    g.put("diffusion.rule", STRING, "threshold")
    g.put("diffusion.first_token", STRING, "masked")


def put_tokenizer(g, ck):
    t, n_vocab = ck.tokenizer, ck.config["vocab_size"]
    split = t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    if split not in PRE_TOKENIZERS:
        sys.exit(f"mkgguf: no tokenizer.ggml.pre is known for the pattern {split}")
    tokens, types = [f"[PAD{i}]" for i in range(n_vocab)], [5] * n_vocab  # 5: unused
    for text, i in t["model"]["vocab"].items():
        tokens[i], types[i] = text, 1
    for entry in t["added_tokens"]:
        tokens[entry["id"]], types[entry["id"]] = entry["content"], 3 if entry["special"] else 4
    merges = [m if isinstance(m, str) else " ".join(m) for m in t["model"]["merges"]]
    g.put("tokenizer.ggml.model", STRING, "gpt2")
    g.put("tokenizer.ggml.pre", STRING, PRE_TOKENIZERS[split])
    g.put("tokenizer.ggml.tokens", ARRAY, (STRING, tokens))
    g.put("tokenizer.ggml.token_type", ARRAY, (I32, types))
    g.put("tokenizer.ggml.merges", ARRAY, (STRING, merges))
    for key, name in (("bos", "bos"), ("eos", "eos"), ("padding", "pad"), ("mask", "mask")):
        if ck.config.get(name + "_token_id") is not None:
            g.put(f"tokenizer.ggml.{key}_token_id", U32, ck.config[name + "_token_id"])
    g.put("tokenizer.ggml.add_bos_token", BOOL, ck.tokenizer_config.get("add_bos_token", False))
    g.put("tokenizer.chat_template", STRING, ck.tokenizer_config["chat_template"])


def put_tensors(g, ck, args):
    def add_dense(gguf_name, name, dense_kind):
        shape, values = ck.dense(name)
        g.add(gguf_name, shape[::-1], dense_kind, encode_dense(dense_kind, values))

    def add_linear(gguf_name, name):
        shape, codes, scale = ck.ternary(name)
        if args.type in ("f16", "f32"):
            scale = scale if args.type == "f32" else f16(scale)
        elif args.scale == "tensor":
            g.add(gguf_name + ".scale", [1], "f32", encode_dense("f32", [scale]))
            scale = 1.0
        else:
            scale = f16(scale)
        g.add(
            gguf_name + ".weight",
            shape[::-1],
            args.type,
            encode_linear(args.type, codes, shape[1], scale, args.i2s_layout),
        )

    add_dense("token_embd.weight", "model.embed_tokens.weight", args.embed_type)
    for i in range(ck.config["num_hidden_layers"]):
        for theirs, ours in BLOCK_NORMS.items():
            add_dense(f"blk.{i}.{ours}.weight", f"model.layers.{i}.{theirs}.weight", "f32")
        for theirs, ours in BLOCK_LINEARS.items():
            add_linear(f"blk.{i}.{ours}", f"model.layers.{i}.{theirs}.weight")
    add_dense("output_norm.weight", "model.norm.weight", "f32")


def convert(args):
    ck = Checkpoint(args.checkpoint)
    g = Gguf(args.version)
    name = os.path.basename(os.path.normpath(args.checkpoint))
    put_model(g, name, ck.config, args.arch, FILE_TYPES[args.type])
    put_diffusion(g, ck.config["bd_size"], ck.generation["small_block_length"], args.threshold)
    put_tokenizer(g, ck)
    put_tensors(g, ck, args)
    return g.pack()


# ---- hostile files: a small model that works, and one crime at a time ---------------------------

ARCH = "bitnet-b1.58"
MINI_TOKENS = [
    "a",
    "b",
    "c",
    "d",
    "e",
    "f",
    "!",
    "Ġ",
    "Ċ",
    "ab",
    "cd",
    "abcd",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "|<MASK>|",
]
MINI_CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": len(MINI_TOKENS),
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}


def mini():
    """Two layers of 64, 16 tokens: about 20 kB, and every check of a reader applies to it."""
    g, state, width = Gguf(), 7, 64

    def noise(n):
        nonlocal state
        for _ in range(n):
            state = (state * 1103515245 + 12345) & 0x7FFFFFFF
            yield state >> 16

    put_model(g, "mini", MINI_CONFIG, ARCH, FILE_TYPES["q2_0"])
    put_diffusion(g, 8, 4, 0.9)
    g.put("tokenizer.ggml.model", STRING, "gpt2")
    g.put("tokenizer.ggml.pre", STRING, "qwen2")
    g.put("tokenizer.ggml.tokens", ARRAY, (STRING, MINI_TOKENS))
    g.put("tokenizer.ggml.token_type", ARRAY, (I32, [1] * 12 + [3] * 4))
    g.put("tokenizer.ggml.merges", ARRAY, (STRING, ["a b", "c d", "ab cd"]))
    for key, value in (("padding", 12), ("bos", 13), ("eos", 14), ("mask", 15)):
        g.put(f"tokenizer.ggml.{key}_token_id", U32, value)
    g.put("tokenizer.ggml.add_bos_token", BOOL, False)
    g.put("tokenizer.chat_template", STRING, "{{ messages[-1]['content'] }}")
    g.add(
        "token_embd.weight",
        [width, len(MINI_TOKENS)],
        "f16",
        encode_dense("f16", [(x % 201 - 100) / 100 for x in noise(width * len(MINI_TOKENS))]),
    )
    ones = encode_dense("f32", [1.0] * width)
    for i in range(MINI_CONFIG["num_hidden_layers"]):
        for name in BLOCK_NORMS.values():
            g.add(f"blk.{i}.{name}.weight", [width], "f32", ones)
        for name in BLOCK_LINEARS.values():
            n_out = width // 2 if name in ("attn_k", "attn_v") else width
            codes = bytes(x % 3 for x in noise(width * n_out))
            g.add(f"blk.{i}.{name}.scale", [1], "f32", encode_dense("f32", [0.1]))
            g.add(f"blk.{i}.{name}.weight", [width, n_out], "q2_0", encode_q2_0(codes, 1.0))
    g.add("output_norm.weight", [width], "f32", ones)
    return g


CRIMES = {}  # name -> function that spoils the mini model, or returns the whole file as bytes


def crime(name, *args):
    """Registers a crime; with args, one for each: {} in `name` filled in, the function given the arg."""

    def register(function):
        for arg in args or [None]:
            spoil = (lambda g, a=arg: function(g, a)) if args else function
            title = str(arg).removeprefix(ARCH + ".").replace(".", "-").replace("_", "-")
            CRIMES[name.format(title)] = spoil
        return function

    return register


def crime_key(name, key, kind, value):
    """The crime of one key with a bad value; a key without dots is one of the architecture."""
    key = key if key.startswith(("general", "tokenizer", "diffusion")) else f"{ARCH}.{key}"
    CRIMES[name] = lambda g: g.put(key, kind, value)


def crime_tensor(name, tensor, /, **fields):
    """The crime of one tensor whose record or data is wrong."""

    def spoil(g):
        for field, value in fields.items():
            setattr(g.tensor(tensor), field, value)

    CRIMES[name] = spoil


def set_field(field, value):
    return lambda g: setattr(g, field, value)


def define_crimes():
    # Not crimes: the same model in other clothes, to show that the rest fail for their own reason.
    CRIMES["fine"] = lambda g: None
    CRIMES["fine-v2"] = set_field("version", 2)

    @crime("fine-alignment-4096")
    def _(g):
        g.alignment = 4096
        g.put("general.alignment", U32, 4096)

    # The header.
    CRIMES["not-gguf"] = set_field("magic", b"GGML")
    CRIMES["git-lfs-pointer"] = lambda g: (
        b"version https://git-lfs.github.com/spec/v1\n"
        b"oid sha256:" + b"0" * 64 + b"\nsize 1187680\n"
    )
    for version in (0, 1, 4, 0x03000000, 0xFFFFFFFF):
        CRIMES[f"version-{version:x}"] = set_field("version", version)
    for count in (2**20, 2**32, 2**63, 2**64 - 1):
        CRIMES[f"n-tensors-{count:x}"] = set_field("n_tensors", count)
        CRIMES[f"n-kv-{count:x}"] = set_field("n_kv", count)

    @crime("n-tensors-one-too-many")
    def _(g):
        g.n_tensors = len(g.tensors) + 1

    @crime("n-kv-one-too-many")
    def _(g):
        g.n_kv = len(g.kv) + 1

    @crime("n-kv-one-too-few")
    def _(g):
        g.n_kv = len(g.kv) - 1

    # Truncation, at every stage.
    @crime("truncated-at-{}", 0, 1, 4, 7, 8, 16, 23, 24, 31, 60)
    def _(g, at):
        return g.pack()[:at]

    @crime("truncated-in-tokens")
    def _(g):
        data = g.pack()
        return data[: data.index(b"<|im_start|>") + 3]

    @crime("truncated-in-tensor-record")
    def _(g):
        data = g.pack()
        return data[: data.index(b"output_norm.weight") + 20]

    @crime("truncated-before-data")
    def _(g):
        return g.directory()

    @crime("truncated-in-data")
    def _(g):
        return g.pack()[:-10000]

    @crime("truncated-by-one-byte")
    def _(g):
        return g.pack()[:-1]

    # Keys.
    def raw(name, data):
        CRIMES[name] = lambda g: g.raw_kv.append(data)

    u32_key = pack_kv("general.quantization_version", U32, 2)
    for length in (2**17, 2**31, 2**63, 2**64 - 8):
        raw(f"key-length-{length:x}", struct.pack("<Q", length) + u32_key)
        raw(
            f"string-length-{length:x}", pack_str("k") + struct.pack("<IQ", STRING, length) + b"abc"
        )
        raw(
            f"array-count-{length:x}",
            pack_str("k") + struct.pack("<IIQ", ARRAY, U32, length) + bytes(64),
        )
        raw(
            f"string-array-count-{length:x}",
            pack_str("k") + struct.pack("<IIQ", ARRAY, STRING, length) + bytes(64),
        )
    raw(
        "array-count-4-overflows",
        pack_str("k") + struct.pack("<IIQ", ARRAY, U32, 2**62 + 1) + bytes(64),
    )
    raw("key-empty", pack_kv("", U32, 2))
    raw("key-with-nul", pack_kv("general.\0name", U32, 2))
    raw("key-with-newline", pack_kv("general.\nname", U32, 2))
    CRIMES["key-duplicate"] = lambda g: g.raw_kv.extend([u32_key, u32_key])
    for kind in (13, 255, 0xFFFFFFFF):
        raw(f"value-type-{kind:x}", pack_str("k") + struct.pack("<IQ", kind, 0))
        raw(
            f"array-of-type-{kind:x}",
            pack_str("k") + struct.pack("<IIQ", ARRAY, kind, 1) + bytes(8),
        )
    raw(
        "array-of-arrays",
        pack_str("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1) + struct.pack("<IQI", U32, 1, 0),
    )
    raw("bool-2", pack_str("k") + struct.pack("<IB", BOOL, 2))
    for align in (0, 1, 3, 48, 2**31):
        crime_key(f"alignment-{align}", "general.alignment", U32, align)
    crime_key("alignment-string", "general.alignment", STRING, "32")

    # Tensor records.
    q = "blk.0.attn_q.weight"
    crime_tensor("tensor-name-300-bytes", q, name="n" * 300)
    crime_tensor("tensor-name-empty", q, name="")
    crime_tensor("tensor-name-nul", q, name="blk.0\0.attn_q.weight")
    crime_tensor("tensor-duplicate", "blk.1.attn_q.weight", name=q)
    crime_tensor("dims-0", q, ne=[])
    crime_tensor("dims-5", q, ne=[64, 64, 1, 1, 1])
    crime_tensor("dims-4294967295", q, n_dims=2**32 - 1)
    crime_tensor("dim-zero", q, ne=[64, 0])
    crime_tensor("dim-negative", q, ne=[64, 2**64 - 64])
    crime_tensor("dims-overflow", q, ne=[2**32, 2**32, 2**32, 2**32])
    crime_tensor("dims-overflow-to-zero", q, ne=[2**16, 2**16, 2**16, 2**16])
    crime_tensor("bytes-overflow", q, kind=TYPES["f32"].id, ne=[2**31 - 64, 2**31 - 64, 4])
    crime_tensor("row-of-half-a-block", q, ne=[96, 64])
    crime_tensor("bytes-beyond-file", "output_norm.weight", ne=[65])
    crime_tensor("offset-unaligned", q, offset=4100)
    crime_tensor("offset-beyond-file", q, offset=2**30)
    crime_tensor("offset-wraps", q, offset=2**64 - 32)
    crime_tensor("offset-overlaps", "blk.0.attn_k.weight", offset=0)
    crime_tensor("type-iq2-xxs", q, kind=16, ne=[256, 16])
    crime_tensor("type-tl1", q, kind=38)
    crime_tensor("type-removed-q4-2", q, kind=4)
    crime_tensor("type-99", q, kind=99)
    crime_tensor("type-4294967295", q, kind=2**32 - 1)

    @crime("type-36-iq4-nl-4-4")
    def _(g):
        t = g.tensor(q)
        t.kind, t.data = 36, bytes(64 * 64 // 32 * 18)

    @crime("type-36-without-tail")
    def _(g):
        t = g.tensor(q)
        t.kind, t.data = 36, bytes(64 * 64 // 4)

    # The tokenizer.
    tok, n = "tokenizer.ggml.", len(MINI_TOKENS)

    @crime(
        "no-{}",
        tok + "model",
        tok + "tokens",
        tok + "merges",
        tok + "pre",
        "general.architecture",
        *(
            f"{ARCH}.{key}"
            for key in (
                "embedding_length",
                "block_count",
                "feed_forward_length",
                "attention.head_count",
                "attention.layer_norm_rms_epsilon",
                "context_length",
            )
        ),
    )
    def _(g, key):
        del g.kv[key]

    crime_key("tokens-empty", tok + "tokens", ARRAY, (STRING, []))
    crime_key("tokens-of-u8", tok + "tokens", ARRAY, (U8, [0] * n))
    crime_key("tokens-not-an-array", tok + "tokens", STRING, "abc")
    crime_key("tokens-too-few", tok + "tokens", ARRAY, (STRING, MINI_TOKENS[:-1]))
    crime_key("tokens-too-many", tok + "tokens", ARRAY, (STRING, MINI_TOKENS + ["z"]))
    crime_key(
        "token-of-70000-bytes", tok + "tokens", ARRAY, (STRING, ["a" * 70000] + MINI_TOKENS[1:])
    )
    crime_key("token-type-of-u8", tok + "token_type", ARRAY, (U8, [1] * n))
    crime_key("token-type-of-strings", tok + "token_type", ARRAY, (STRING, ["1"] * n))
    crime_key("token-type-too-few", tok + "token_type", ARRAY, (I32, [1] * 3))
    crime_key("scores-of-u8", tok + "scores", ARRAY, (U8, [1] * n))
    crime_key("merges-of-u32", tok + "merges", ARRAY, (U32, [1, 2, 3]))
    crime_key("merge-of-unknown-tokens", tok + "merges", ARRAY, (STRING, ["a b", "x y"]))
    crime_key("merge-to-unknown-token", tok + "merges", ARRAY, (STRING, ["a b", "a c"]))
    crime_key("merge-without-space", tok + "merges", ARRAY, (STRING, ["a b", "cd"]))
    for key in ("bos", "eos", "padding", "mask", "eot", "unknown"):
        crime_key(f"{key}-id-is-n-vocab", f"{tok}{key}_token_id", U32, n)
    crime_key("eos-id-huge", tok + "eos_token_id", U32, 2**32 - 1)
    crime_key("eos-id-negative", tok + "eos_token_id", I32, -2)
    crime_key("mask-id-string", tok + "mask_token_id", STRING, "|<MASK>|")
    crime_key("tokenizer-unknown", tok + "model", STRING, "klingon")
    crime_key("pre-unknown", tok + "pre", STRING, "klingon")
    crime_key("add-bos-string", tok + "add_bos_token", STRING, "false")

    @crime("no-mask-token")
    def _(g):
        del g.kv[tok + "mask_token_id"]
        g.put(tok + "tokens", ARRAY, (STRING, MINI_TOKENS[:-1] + ["<|unused|>"]))

    # The chat template.
    for name, text in {
        "unclosed-tag": "{% if messages",
        "unclosed-block": "{% for m in messages %}{{ m['content'] }}",
        "unknown-statement": "{% import os %}",
        "unknown-filter": "{{ messages[0]['content'] | system }}",
        "attribute-walk": "{{ messages.__class__.__mro__ }}",
        "endless": "{% for i in range(1000000000) %}a{% endfor %}",
        "nested-loops": "{% for i in range(9999) %}" * 8 + "a" + "{% endfor %}" * 8,
        "deep": "{{" + "(" * 100000,
        "doubling": "{% set x = 'aaaaaaaa' %}" + "{% set x = x + x %}" * 60 + "{{ x }}",
        "raises": "{{ raise_exception('no') }}",
    }.items():
        crime_key(f"template-{name}", "tokenizer.chat_template", STRING, text)

    # The model.
    crime_key("architecture-unknown", "general.architecture", STRING, "clip")
    crime_key("architecture-number", "general.architecture", U32, 1)
    for name, key, value in (
        ("head-count-0", "attention.head_count", 0),
        ("head-count-5", "attention.head_count", 5),
        ("head-count-huge", "attention.head_count", 2**31),
        ("head-count-kv-0", "attention.head_count_kv", 0),
        ("head-count-kv-3", "attention.head_count_kv", 3),
        ("block-count-0", "block_count", 0),
        ("block-count-3", "block_count", 3),
        ("block-count-4000000000", "block_count", 4000000000),
        ("context-length-0", "context_length", 0),
        ("embedding-length-0", "embedding_length", 0),
        ("embedding-length-128", "embedding_length", 128),
        ("embedding-length-huge", "embedding_length", 2**31),
        ("feed-forward-length-0", "feed_forward_length", 0),
        ("feed-forward-length-128", "feed_forward_length", 128),
        ("vocab-size-17", "vocab_size", 17),
        ("key-length-0", "attention.key_length", 0),
        ("key-length-48", "attention.key_length", 48),
        ("rope-dimensions-31", "rope.dimension_count", 31),
        ("rope-dimensions-64", "rope.dimension_count", 64),
        ("sub-block-size-0", "diffusion.sub_block_size", 0),
        ("sub-block-size-3", "diffusion.sub_block_size", 3),
        ("sub-block-size-9", "diffusion.sub_block_size", 9),
        ("block-size-0", "diffusion.block_size", 0),
        ("block-size-huge", "diffusion.block_size", 2**31),
        ("steps-huge", "diffusion.steps", 2**31),
        ("rule-number", "diffusion.rule", 1),
    ):
        crime_key(name, key, U32, value)
    crime_key("embedding-length-string", "embedding_length", STRING, "64")
    crime_key("embedding-length-negative", "embedding_length", I32, -64)
    crime_key("embedding-length-float", "embedding_length", F32, 64.0)
    for value in (math.nan, math.inf, -1.0):
        crime_key(f"eps-{value:g}", "attention.layer_norm_rms_epsilon", F32, value)
        crime_key(f"rope-base-{value:g}", "rope.freq_base", F32, value)
    crime_key("rope-base-0", "rope.freq_base", F32, 0.0)
    crime_key("rope-base-tiny", "rope.freq_base", F32, 1e-30)
    crime_key("threshold-nan", "diffusion.threshold", F32, math.nan)
    for key in ("attention", "align", "rule", "first_token", "order", "cache"):
        crime_key(
            f"diffusion-{key.replace('_', '-')}-unknown", f"diffusion.{key}", STRING, "klingon"
        )
    crime_key("shift-logits-string", "diffusion.shift_logits", STRING, "true")
    crime_key("rule-of-a-request", "diffusion.rule", STRING, "model")
    crime_key("order-under-block-attention", "diffusion.order", STRING, "revealed_first")
    for name, key, kind, value in (
        ("window-of-4", "attention.sliding_window", U32, 4),
        ("window-negative", "attention.sliding_window", I32, -4),
        ("window-pattern-short", "attention.sliding_window_pattern", ARRAY, (BOOL, [True])),
        ("window-pattern-of-u32", "attention.sliding_window_pattern", ARRAY, (U32, [1, 0])),
        ("rope-scaling-unknown", "rope.scaling.type", STRING, "klingon"),
        ("rope-longrope-without-factors", "rope.scaling.type", STRING, "longrope"),
        ("rope-factor-0", "rope.scaling.factor", F32, 0.0),
        ("rope-original-context-0", "rope.scaling.original_context_length", U32, 0),
        ("sub-norm-eps-0", "attention.sub_norm_rms_epsilon", F32, 0.0),
        ("no-rope-interval-huge", "no_rope_layer_interval", U32, 2**31),
        ("experts", "expert_count", U32, 8),
        ("logit-softcapping", "final_logit_softcapping", F32, 30.0),
    ):
        crime_key(name, key, kind, value)

    @crime("window-under-full-attention")
    def _(g):
        g.put(f"{ARCH}.attention.sliding_window", U32, 4)
        g.put("diffusion.attention", STRING, "full")

    def crime_extra(name, tensor, values):
        def spoil(g):
            g.add(tensor, [len(values)], "f32", encode_dense("f32", values))

        CRIMES[name] = spoil

    crime_extra("rope-factors-long-alone", "rope_factors_long.weight", [1.0] * 16)
    crime_extra("rope-freqs-nan", "rope_freqs.weight", [math.nan] * 16)
    crime_extra("rope-freqs-of-8", "rope_freqs.weight", [1.0] * 8)
    crime_extra("norm-in-alone", "blk.0.attn_q_norm_in.weight", [1.0] * 64)
    crime_extra("q-norm-not-of-this-family", "blk.0.attn_q_norm.weight", [1.0] * 32)

    @crime(
        "no-tensor-{}",
        "token_embd.weight",
        "output_norm.weight",
        "blk.1.ffn_down.weight",
        "blk.1.attn_norm.weight",
        "blk.0.attn_sub_norm.weight",
    )
    def _(g, name):
        g.tensors.remove(g.tensor(name))

    crime_tensor("norm-of-32", "blk.0.attn_norm.weight", ne=[32])
    crime_tensor("norm-of-two-dimensions", "blk.0.attn_norm.weight", ne=[8, 8])
    crime_tensor("linear-half", "blk.0.attn_output.weight", ne=[64, 32])
    crime_tensor("linear-one-dimension", "blk.0.attn_output.weight", ne=[4096])
    crime_tensor("linear-three-dimensions", "blk.0.attn_output.weight", ne=[64, 32, 2])
    crime_tensor("embedding-of-15-tokens", "token_embd.weight", ne=[64, 15])
    crime_tensor("norm-quantized", "blk.0.attn_norm.weight", kind=TYPES["q2_0"].id)
    crime_tensor("scale-of-two", "blk.0.attn_q.scale", ne=[2])
    crime_tensor("scale-nan", "blk.0.attn_q.scale", data=struct.pack("<f", math.nan))
    crime_tensor("scale-inf", "blk.0.attn_q.scale", data=struct.pack("<f", math.inf))
    crime_tensor("block-scale-nan", q, data=b"\xff\x7f" * (64 * 18 // 2))
    crime_tensor("norm-nan", "output_norm.weight", data=struct.pack("<64f", *[math.nan] * 64))
    crime_tensor("embedding-inf", "token_embd.weight", data=b"\x00\x7c" * 64 * n)


def hostile_files():
    """Name -> bytes of every hostile file, and of the fine ones."""
    if not CRIMES:
        define_crimes()
    files = {}
    for name, spoil in CRIMES.items():
        g = mini()
        data = spoil(g)
        files[name] = g.pack() if data is None else data
    return files


def write_hostile(folder):
    os.makedirs(folder, exist_ok=True)
    files = hostile_files()
    for name, data in files.items():
        with open(os.path.join(folder, name + ".gguf"), "wb") as f:
            f.write(data)
    print(f"{folder}: {len(files)} files")


# ---- selftest -----------------------------------------------------------------------------------

# w[i] = (((i^2 + 3i) mod 7) mod 3 - 1) / 2 for i < 256, as each format stores it: sha256 of the bytes.
VECTOR_DIGESTS = {
    "tq1_0": "d1710409aac838a1",
    "tq2_0": "c969d786dd48a076",
    "q2_0": "434994d25ca7d125",
    "128": "b8f98f97e5f9d585",
    "64": "60e27a729c7fc60e",
    "seq": "f8ee0068a7b6a21a",
}


def decode_ternary(kind, data, n, n_cols, layout):
    """Codes back from bytes, element by element: shares nothing with the encoders."""
    out = bytearray(n)
    for i in range(n):
        b, j = divmod(i, {"tq1_0": 256, "tq2_0": 256, "q2_0": 64}.get(kind, n))
        if kind == "tq1_0":
            if j < 160:
                at, trit = j % 32, j // 32
            elif j < 240:
                at, trit = 32 + (j - 160) % 16, (j - 160) // 16
            else:
                at, trit = 48 + (j - 240) % 4, (j - 240) // 4
            out[i] = (data[54 * b + at] * 3**trit & 255) * 3 >> 8
        elif kind == "tq2_0":
            out[i] = data[66 * b + 32 * (j // 128) + j % 32] >> 2 * (j % 128 // 32) & 3
        elif kind == "q2_0":
            out[i] = data[18 * b + 2 + j // 4] >> 2 * (j % 4) & 3
        elif layout == "seq":
            out[i] = data[i // 4] >> 2 * (i % 4) & 3
        elif layout == "row4":
            row, col = divmod(i, n_cols)
            out[i] = data[row // 4 * n_cols + col] >> 6 - 2 * (row % 4) & 3
        else:
            q = int(layout) // 4
            out[i] = data[i // (4 * q) * q + i % q] >> 6 - 2 * (i % (4 * q) // q) & 3
    return bytes(out)


def selftest():
    passed = failed = 0

    def check(what, ok):
        nonlocal passed, failed
        passed, failed = passed + ok, failed + (not ok)
        if not ok:
            print(f"FAIL {what}")

    codes = bytes((i * i + 3 * i) % 7 % 3 for i in range(256))
    for name, digest in VECTOR_DIGESTS.items():
        data = (
            encode_i2s_codes(codes, 64, name)
            if name in I2S_LAYOUTS
            else encode_linear(name, codes, 256, 0.5, "128")
        )
        check(f"vector {name}", hashlib.sha256(data).hexdigest()[:16] == digest)

    state, noise = 1, bytearray()
    for _ in range(8 * 256):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        noise.append((state >> 16) % 3)
    for kind in ("tq1_0", "tq2_0", "q2_0", "i2_s"):
        for layout in I2S_LAYOUTS if kind == "i2_s" else ("128",):
            data = encode_linear(kind, bytes(noise), 256, 0.5, layout)
            check(
                f"round trip {kind} {layout}",
                decode_ternary(kind, data, len(noise), 256, layout) == bytes(noise),
            )
            t = TYPES[kind]
            check(
                f"size {kind}",
                len(data) == len(noise) // t.block * t.bytes + (32 if kind == "i2_s" else 0),
            )
    check(
        "bf16 rounds half to even",
        encode_dense("bf16", [1 + 2**-8, 1 + 3 * 2**-8]) == b"\x80\x3f\x82\x3f",
    )
    check(
        "q8_0",
        encode_dense("q8_0", [127.0] + [-63.5] * 31) == struct.pack("<e32b", 1, 127, *[-64] * 31),
    )
    print(f"{passed} passed, {failed} failed")
    return failed != 0


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "checkpoint", nargs="?", help="folder with config.json, tokenizer.json, model.safetensors"
    )
    p.add_argument("-o", "--out", metavar="OUT.gguf")
    p.add_argument(
        "--type",
        choices=FILE_TYPES,
        default="tq2_0",
        help="type of the linear weights; f16 and f32 hold the ternary values {-m, 0, m}",
    )
    p.add_argument("--embed-type", choices=("f16", "q8_0", "f32", "bf16"), default="f16")
    p.add_argument(
        "--scale", choices=("tensor", "f16"), default="tensor", help="where m is kept, see above"
    )
    p.add_argument("--i2s-layout", choices=I2S_LAYOUTS, default="128")
    p.add_argument("--arch", default="bitnet-b1.58")
    p.add_argument("--threshold", type=float, default=0.9, help="diffusion.threshold, default 0.9")
    p.add_argument("--version", type=int, choices=(2, 3), default=3, help="of the GGUF container")
    p.add_argument("--hostile", metavar="OUT_DIR", help="write one broken file per crime")
    p.add_argument("--selftest", action="store_true")
    args = p.parse_args()
    if args.selftest:
        return selftest()
    if args.hostile:
        return write_hostile(args.hostile)
    if not args.checkpoint or not args.out:
        p.error("give a checkpoint folder and -o OUT.gguf")
    data = convert(args)
    with open(args.out, "wb") as f:
        f.write(data)
    print(f"{args.out}: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()[:16]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""mkgolden.py - a tiny random model of every family, and what PyTorch makes of it.

  python3 -m venv build/torch && build/torch/bin/pip install torch transformers
  build/torch/bin/python tools/mkgolden.py tests/golden [NAME...]

Writes family-NAME.gguf for each row of FAMILIES, and families.json:
  {"made_by", "versions", "families": [{"name", "arch", "about", "cases": [{
     "mode": "causal" | "block" | "full",   block: bidirectional inside blocks of BLOCK tokens
                                            aligned to position 0, causal across them
     "n_ctx",                               the context to run with; 0: the model's own
     "ids", "rows", "logits",               logits [n_vocab] at these rows
     "draft": {"begin", "ids", "logits"}}], what one block's rows were before its masks were filled
   "ar": {"n_prompt", "ids"}}]}             the likeliest token, one at a time
The models are transformers' own, with ternary linears and sub-norms put in where the checkpoints
have them; LLaDA, which transformers lacks, is written out below.
"""

import json
import math
import os
import sys

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # the ternary layers want to be compiled

import torch
import transformers
from torch import nn
from transformers.integrations.bitnet import AutoBitLinear

import mkgguf
from mkgguf import ARRAY, BOOL, F32, I32, STRING, U32

BLOCK = 8
N_IDS = 40
N_ROTATED = 16  # original_max_position_embeddings of stretched rotations
N_PROMPT = N_ROTATED + 1
DRAFT = 2 * BLOCK  # the block that is also run with masks in it
ROWS = [0, 7, 8, 17, 23, 31, 38, 39]
MARGIN = 0.02  # between the likeliest token and the next, wherever a token is chosen

TOKENS = list("abcdefghijklmnopqrstuvwxyz!") + ["\u0120", "ab", "cd", "abcd"]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "|<MASK>|"]
N_VOCAB = len(TOKENS) + len(SPECIALS)
EOS, MASK = N_VOCAB - 2, N_VOCAB - 1

SHAPE = dict(
    vocab_size=N_VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-3,  # both large enough to be seen in the logits
    tie_word_embeddings=True,
    rope_theta=10000.0,
    pad_token_id=len(TOKENS),
    bos_token_id=len(TOKENS) + 1,
    eos_token_id=EOS,
)
TERNARY = dict(hidden_size=64, intermediate_size=128)
LONGROPE = dict(
    rope_type="longrope",
    original_max_position_embeddings=N_ROTATED,
    short_factor=[1.0, 1.05, 1.1, 1.2, 1.3, 1.5],
    long_factor=[1.1, 1.4, 2.0, 2.5, 3.0, 4.0],
    partial_rotary_factor=0.75,
)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=N_ROTATED)
YARN_GROWTH = dict(YARN, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.5)
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=N_ROTATED,
)

# name: (architecture, model class of transformers, about, and what is special:
#   shape       over SHAPE
#   rope        rope_parameters beside the base
#   modes       beside causal
#   linears     type of ternary linears, which round their input to int8
#   sub_norm    "two" (before the output and down projections) or "every"
#   mask        False: the file names no mask token
#   seed        of the weights; 1 unless an activation of the ternary layers lies so close to a half
#               that the order of a sum decides to which side it is rounded)
FAMILIES = {
    "llama3": dict(
        arch="llama",
        model="Llama",
        about="rope_freqs, tied, longer than the original context",
        shape=dict(head_dim=16, rope_theta=500000.0),
        rope=LLAMA3,
        modes=["block"],
    ),
    "tinyllama": dict(
        arch="llama",
        model="Llama",
        about="untied, no mask token: autoregressive only",
        shape=dict(tie_word_embeddings=False),
        mask=False,
    ),
    "smollm2": dict(
        arch="llama",
        model="Llama",
        about="a width of 72 = 9 x 8, which no block size divides",
        shape=dict(
            hidden_size=72, num_attention_heads=9, num_key_value_heads=3, rope_theta=100000.0
        ),
        modes=["block"],
    ),
    "smollm2-subln": dict(
        arch="llama",
        model="Llama",
        about="SubLN before the output and down projections, its own epsilon",
        sub_norm="two",
        modes=["block"],
    ),
    "smollm2-subln-every": dict(
        arch="llama",
        model="Llama",
        about="SubLN before every projection, its own epsilon",
        sub_norm="every",
        modes=["block"],
    ),
    "smollm3": dict(
        arch="smollm3",
        model="SmolLM3",
        about="every fourth layer does not rotate",
        shape=dict(num_hidden_layers=4),
        mask=False,
    ),
    "mistral": dict(
        arch="llama",
        model="Mistral",
        about="a sliding window of 8, head_dim 16",
        shape=dict(head_dim=16, sliding_window=8, tie_word_embeddings=False),
        modes=["block"],
    ),
    "ministral": dict(
        arch="llama",
        model="Ministral",
        about="a window in two layers of three",
        shape=dict(
            head_dim=16,
            num_hidden_layers=3,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        mask=False,
    ),
    "ministral3": dict(
        arch="mistral3",
        model="Ministral3",
        about="YaRN without its growth of keys, queries that grow with their position",
        shape=dict(head_dim=16, num_attention_heads=2, num_key_value_heads=1),
        rope=YARN_GROWTH,
        mask=False,
    ),
    "qwen2": dict(
        arch="qwen2",
        model="Qwen2",
        about="q/k/v biases",
        shape=dict(rope_theta=1000000.0),
        modes=["block", "full"],
    ),
    "qwen2-yarn": dict(
        arch="qwen2",
        model="Qwen2",
        about="YaRN, longer than the original context",
        shape=dict(head_dim=16, num_attention_heads=2, num_key_value_heads=1),
        rope=YARN,
    ),
    "qwen3": dict(
        arch="qwen3",
        model="Qwen3",
        about="q/k norms, head_dim 16",
        shape=dict(head_dim=16, rope_theta=1000000.0),
        modes=["block"],
    ),
    "phi3": dict(
        arch="phi3",
        model="Phi3",
        about="fused matrices, three quarters of each head rotate, longrope on both sides of the "
        "original context, a window of 24",
        shape=dict(
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=24,
            original_max_position_embeddings=N_ROTATED,
            tie_word_embeddings=False,
        ),
        rope=LONGROPE,
        mask=False,
    ),
    "bitnet-b158": dict(
        arch="bitnet-b1.58",
        model="BitNet",
        about="ternary, sub-norms, squared ReLU, scales in tensors of their own",
        shape=TERNARY,
        linears="q2_0",
        modes=["block"],
    ),
    "bitnet-25": dict(
        arch="bitnet-25", model="BitNet", about="the same in I2_S", shape=TERNARY, linears="i2_s"
    ),
    "bitnet": dict(
        arch="bitnet",
        model="BitNet",
        about="ternary, sub-norms, SiLU",
        shape=dict(TERNARY, hidden_act="silu"),
        linears="q2_0",
        modes=["block"],
    ),
    "falcon3-158": dict(
        arch="llama",
        model="Llama",
        about="ternary linears under llama, rows permuted",
        shape=dict(TERNARY, head_dim=32, tie_word_embeddings=False),
        linears="q2_0",
        mask=False,
        seed=2,
    ),
    "subln-158": dict(
        arch="bitnet",
        model="Llama",
        about="ternary, SubLN before every projection, its own epsilon",
        shape=TERNARY,
        linears="q2_0",
        sub_norm="every",
        modes=["block"],
        seed=3,
    ),
    "dream": dict(
        arch="dream",
        model="Qwen2",
        about="the qwen2 graph under full attention",
        shape=dict(rope_theta=1000000.0, tie_word_embeddings=False),
        modes=["full"],
    ),
    "llada": dict(
        arch="llada",
        model="Llada",
        about="as many key heads as query heads, under full attention",
        shape=dict(num_key_value_heads=4, tie_word_embeddings=False, rope_theta=500000.0),
        modes=["full"],
    ),
    "fast-dllm": dict(
        arch="fast-dllm",
        model="Qwen2",
        about="the qwen2 graph under block attention",
        shape=dict(num_attention_heads=2, num_key_value_heads=1),
        modes=["block"],
    ),
    "sdar": dict(
        arch="sdar",
        model="Qwen3",
        about="the qwen3 graph under block attention",
        shape=dict(head_dim=16, num_attention_heads=2, num_key_value_heads=1),
        modes=["block"],
    ),
    "wedlm": dict(
        arch="wedlm",
        model="Qwen3",
        about="the qwen3 graph, causal",
        shape=dict(head_dim=16, num_attention_heads=2, num_key_value_heads=1),
    ),
}
SUB_NORM_EPS = 1e-2

# ---- LLaDA, from its published description: LLaMA without a mask, every pair i, i + head_dim / 2
# turned, weights named as in its checkpoints ----


class Rms(nn.Module):
    def __init__(self, n, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(n)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class LladaBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        n, ff = c.hidden_size, c.intermediate_size
        self.attn_norm, self.ff_norm = Rms(n, c.rms_norm_eps), Rms(n, c.rms_norm_eps)
        self.q_proj, self.k_proj, self.v_proj, self.attn_out = (
            nn.Linear(n, n, bias=False) for _ in range(4)
        )
        self.ff_proj, self.up_proj = nn.Linear(n, ff, bias=False), nn.Linear(n, ff, bias=False)
        self.ff_out = nn.Linear(ff, n, bias=False)
        self.n_head, self.theta = c.num_attention_heads, c.rope_parameters["rope_theta"]

    def turn(self, x):
        half = x.shape[-1] // 2
        angle = torch.arange(x.shape[1])[:, None] * self.theta ** (-torch.arange(half) / half)
        a, b, cos, sin = x[..., :half], x[..., half:], angle.cos(), angle.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(self, x, mask):
        h = self.attn_norm(x)
        q, k, v = (
            f(h).view(len(x), self.n_head, -1).transpose(0, 1)
            for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        scores = self.turn(q) @ self.turn(k).transpose(1, 2) / math.sqrt(q.shape[-1]) + mask
        x = x + self.attn_out((scores.softmax(-1) @ v).transpose(0, 1).reshape(x.shape))
        h = self.ff_norm(x)
        return x + self.ff_out(nn.functional.silu(self.ff_proj(h)) * self.up_proj(h))


class LladaForCausalLM(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.config = c
        self.transformer = nn.ModuleDict(
            dict(
                wte=nn.Embedding(c.vocab_size, c.hidden_size),
                blocks=nn.ModuleList(LladaBlock(c) for _ in range(c.num_hidden_layers)),
                ln_f=Rms(c.hidden_size, c.rms_norm_eps),
                ff_out=nn.Linear(c.hidden_size, c.vocab_size, bias=False),
            )
        )

    def forward(self, ids, attention_mask, **_):
        if attention_mask is None:
            attention_mask = additive(visible(ids.shape[1], "causal", None))
        x = self.transformer.wte(ids[0])
        for block in self.transformer.blocks:
            x = block(x, attention_mask[0])
        x = self.transformer.ff_out(self.transformer.ln_f(x))
        return transformers.modeling_outputs.CausalLMOutput(logits=x[None])


# ---- models -------------------------------------------------------------------------------------


def replace_linears(model, make, names):
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name in names:
                setattr(module, name, make(child))


def ternary(linear):
    return AutoBitLinear(linear.in_features, linear.out_features, False, online_quant=True)


def make_model(f, seed):
    shape = dict(SHAPE, **f.get("shape", {}))
    rope = dict(rope_type="default", rope_theta=shape.pop("rope_theta"), **{})
    shape["rope_parameters"] = rope | f.get("rope", {})
    shape["attn_implementation"] = "eager"
    if f["model"] == "Llada":
        model = LladaForCausalLM(transformers.LlamaConfig(**shape))
    else:
        config = getattr(transformers, f["model"] + "Config")(**shape)
        model = getattr(transformers, f["model"] + "ForCausalLM")(config)
    every = [name.rsplit(".", 1)[-1] for name in mkgguf.BLOCK_LINEARS]
    if f.get("linears"):
        replace_linears(model, ternary, every)
    if f.get("sub_norm"):
        names = every if f["sub_norm"] == "every" else ["o_proj", "down_proj"]
        replace_linears(
            model, lambda x: nn.Sequential(Rms(x.in_features, SUB_NORM_EPS), x), names
        )
    model = model.float().eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2:  # large enough that a wrong rotation or mask is seen at once
                p.normal_(0, 0.3 if "embed" in name or "wte" in name else 1.5 / p.shape[1] ** 0.5)
                p.copy_(p.half().float())
            else:
                p.normal_(0 if "bias" in name else 1, 0.3)
    return model


# ---- answers ------------------------------------------------------------------------------------


def visible(n, mode, window):
    """[n][n]: does row i see cell j?"""
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    seen = {"causal": j <= i, "block": j // BLOCK <= i // BLOCK, "full": (i + j) >= 0}[mode]
    return seen & (j > i - window) if window else seen


def additive(seen):
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]


def logits_of(model, ids, mode):
    """[n][n_vocab]. Causal masks are transformers' own."""
    window = getattr(model.config, "sliding_window", None)
    mask = None if mode == "causal" else additive(visible(len(ids), mode, window))
    with torch.no_grad():
        return model(torch.tensor([ids]), attention_mask=mask, use_cache=False).logits[0]


def rounded(rows):
    return [[round(v, 4) for v in row] for row in rows.tolist()]


def make_case(model, mode, ids, n_ctx=0):
    rows = [r for r in ROWS if r < len(ids)]
    case = {"mode": mode, "n_ctx": n_ctx, "ids": ids, "rows": rows}
    case["logits"] = rounded(logits_of(model, ids, mode)[rows])
    if len(ids) > DRAFT + BLOCK:
        draft = [MASK if i % 3 != 1 else t for i, t in enumerate(ids[DRAFT : DRAFT + BLOCK])]
        rest = ids[DRAFT + BLOCK :] if mode == "full" else []
        logits = logits_of(model, ids[:DRAFT] + draft + rest, mode)
        case["draft"] = {
            "begin": DRAFT,
            "ids": draft,
            "logits": rounded(logits[DRAFT : DRAFT + BLOCK]),
        }
    return case


def one_at_a_time(model, prompt, n, has_mask):
    """The likeliest tokens; None where two are too close to call or the text would end."""
    ids = list(prompt)
    for _ in range(n):
        logits = logits_of(model, ids, "causal")[-1]
        if has_mask:
            logits[MASK] = -math.inf
        best = logits.topk(2)
        if best.values[0] - best.values[1] < MARGIN or best.indices[0] in range(
            len(TOKENS), MASK if has_mask else N_VOCAB
        ):
            return None
        ids.append(int(best.indices[0]))
    return {"n_prompt": len(prompt), "ids": ids}


def random_ids(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, len(TOKENS), (N_IDS,), generator=generator).tolist()


def make_family(name, f, model):
    has_mask = f.get("mask", True)
    ar = None
    for seed in range(1000):
        ids = random_ids(seed)
        ar = one_at_a_time(model, ids[:N_PROMPT], 16, has_mask)
        if ar:
            break
    cases = [make_case(model, mode, ids) for mode in ["causal"] + f.get("modes", [])]
    if f.get("rope") is LONGROPE:
        cases.append(make_case(model, "causal", ids[:N_ROTATED], N_ROTATED))
    return {"name": name, "arch": f["arch"], "about": f["about"], "cases": cases, "ar": ar}


# ---- files --------------------------------------------------------------------------------------


def rows_for_interleaved_pairs(w, n_head):
    """Where a GGUF rotates pairs 2i, 2i + 1; Hugging Face rotates pairs i, i + head_dim / 2."""
    return w.reshape(n_head, 2, w.shape[0] // n_head // 2, -1).swapaxes(1, 2).reshape(w.shape)


FILE_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "transformer.wte": "token_embd",
    "transformer.ln_f": "output_norm",
    "transformer.ff_out": "output",
}
LAYER_NAMES = dict(
    mkgguf.BLOCK_NORMS | mkgguf.BLOCK_LINEARS,
    **{
        "self_attn.qkv_proj": "attn_qkv",
        "mlp.gate_up_proj": "ffn_up",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "attn_norm": "attn_norm",
        "ff_norm": "ffn_norm",
        "q_proj": "attn_q",
        "k_proj": "attn_k",
        "v_proj": "attn_v",
        "attn_out": "attn_output",
        "ff_proj": "ffn_gate",
        "up_proj": "ffn_up",
        "ff_out": "ffn_down",
    },
)
TWO_NORMS = {"attn_output": "attn_sub_norm", "ffn_down": "ffn_sub_norm"}


def gguf_name(theirs, sub_norm):
    """The name in a GGUF of a checkpoint's module."""
    if theirs in FILE_NAMES:
        return FILE_NAMES[theirs]
    _, _, rest = theirs.partition("layers." if "layers." in theirs else "blocks.")
    layer, _, rest = rest.partition(".")
    inner, _, index = rest.rpartition(".")
    if index not in ("0", "1"):
        return f"blk.{layer}.{LAYER_NAMES[rest]}"
    ours = LAYER_NAMES[inner]
    if index == "0":
        ours = TWO_NORMS[ours] if sub_norm == "two" else ours + "_norm_in"
    return f"blk.{layer}.{ours}"


def put_tensor(g, name, w, kind):
    g.add(name, list(w.shape)[::-1], kind, mkgguf.encode_dense(kind, w.flatten().tolist()))


def put_ternary(g, base, w, kind):
    scale = w.abs().mean().clamp(min=1e-5)
    codes = bytes(((w / scale).round().clamp(-1, 1) + 1).to(torch.uint8).flatten().tolist())
    n_cols = w.shape[1]
    if kind != "i2_s":  # whose own scale is an f32
        put_tensor(g, base + ".scale", scale[None], "f32")
        scale = 1.0
    data = mkgguf.encode_linear(kind, codes, n_cols, float(scale), "128")
    g.add(base + ".weight", list(w.shape)[::-1], kind, data)


def put_rope(g, f, arch, model):
    """Keys and tensors of the rotation, beside its base."""
    rope = f.get("rope", {})
    kind = rope.get("rope_type")
    key = arch + ".rope.scaling."
    if kind in ("yarn", "longrope"):
        g.put(key + "type", STRING, kind)
        g.put(key + "original_context_length", U32, N_ROTATED)
    if kind == "yarn":
        g.put(key + "factor", F32, rope["factor"])
    if "mscale_all_dim" in rope:
        g.put(key + "yarn_log_multiplier", F32, rope["mscale_all_dim"])
        g.put(arch + ".attention.temperature_scale", F32, rope["llama_4_scaling_beta"])
    if kind == "longrope":
        g.put(key + "attn_factor", F32, model.model.rotary_emb.attention_scaling)
        for name in ("short", "long"):
            put_tensor(
                g, f"rope_factors_{name}.weight", torch.tensor(rope[f"{name}_factor"]), "f32"
            )
        g.put(f"{arch}.rope.dimension_count", U32, 2 * len(rope["long_factor"]))
    if kind == "llama3":
        got = model.model.rotary_emb.inv_freq
        plain = SHAPE | f["shape"]
        n = len(got)
        base = 1.0 / plain["rope_theta"] ** (torch.arange(n, dtype=torch.float32) / n)
        put_tensor(g, "rope_freqs.weight", base / got, "f32")


def put_keys(g, f, arch, shape):
    if shape.get("sliding_window"):
        g.put(f"{arch}.attention.sliding_window", U32, shape["sliding_window"])
    if "layer_types" in shape:
        slides = [t == "sliding_attention" for t in shape["layer_types"]]
        g.put(f"{arch}.attention.sliding_window_pattern", ARRAY, (BOOL, slides))
    if f.get("sub_norm"):
        g.put(f"{arch}.attention.sub_norm_rms_epsilon", F32, SUB_NORM_EPS)
    if "full" in f.get("modes", []):
        g.put(f"{arch}.attention.causal", BOOL, False)
    if "block" in f.get("modes", []):
        g.put("diffusion.block_size", U32, BLOCK)
        g.put("diffusion.attention", STRING, "block")


def put_tokens(g, has_mask):
    texts = TOKENS + SPECIALS
    if not has_mask:
        texts = texts[:-1] + ["<|unused|>"]
    g.put("tokenizer.ggml.model", STRING, "gpt2")
    g.put("tokenizer.ggml.pre", STRING, "qwen2")
    g.put("tokenizer.ggml.tokens", ARRAY, (STRING, texts))
    g.put("tokenizer.ggml.token_type", ARRAY, (I32, [1] * len(TOKENS) + [3] * len(SPECIALS)))
    g.put("tokenizer.ggml.merges", ARRAY, (STRING, ["a b", "c d", "ab cd"]))
    g.put("tokenizer.ggml.eos_token_id", U32, EOS)
    if has_mask:
        g.put("tokenizer.ggml.mask_token_id", U32, MASK)
    g.put("tokenizer.ggml.add_bos_token", BOOL, False)


def write_gguf(path, name, f, model):
    g, arch = mkgguf.Gguf(), f["arch"]
    shape = dict(SHAPE, **f.get("shape", {}))
    linears = f.get("linears")
    mkgguf.put_model(g, name, shape, arch, mkgguf.FILE_TYPES[linears or "f16"])
    put_keys(g, f, arch, shape)
    put_tokens(g, f.get("mask", True))
    put_rope(g, f, arch, model)
    heads = {"attn_q": shape["num_attention_heads"], "attn_k": shape["num_key_value_heads"]}
    for full, p in model.named_parameters():
        theirs, suffix = full.rsplit(".", 1)
        base, w = gguf_name(theirs, f.get("sub_norm")), p.detach()
        part = base.rsplit(".", 1)[-1]
        if arch in ("llama", "llada", "smollm3", "mistral3") and part in heads:
            w = rows_for_interleaved_pairs(w, heads[part])
        if linears and part in mkgguf.BLOCK_LINEARS.values():
            put_ternary(g, base, w, linears)
        else:
            put_tensor(g, f"{base}.{suffix}", w, "f16" if w.dim() == 2 else "f32")
    with open(path, "wb") as out:
        out.write(g.pack())


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folder, names = sys.argv[1], sys.argv[2:] or list(FAMILIES)
    torch.set_num_threads(1)
    families = []
    for name in names:
        f = FAMILIES[name]
        model = make_model(f, f.get("seed", 1))
        write_gguf(os.path.join(folder, f"family-{name}.gguf"), name, f, model)
        families.append(json.dumps(make_family(name, f, model), separators=(",", ":")))
    versions = {m.__name__: m.__version__ for m in (torch, transformers)}
    head = json.dumps({"made_by": "tools/mkgolden.py", "versions": versions})
    with open(os.path.join(folder, "families.json"), "w", encoding="utf-8") as out:
        out.write(f'{head[:-1]}, "families": [\n' + ",\n".join(families) + "\n]}\n")


if __name__ == "__main__":
    main()

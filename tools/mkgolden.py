#!/usr/bin/env python3
"""mkgolden.py - tiny random llama and qwen2 models and their logits, from PyTorch and transformers.

  python3 -m venv build/torch && build/torch/bin/pip install torch transformers
  build/torch/bin/python tools/mkgolden.py tests/golden

Writes NAME.gguf and NAME.json for each model below; the versions used stand in the JSON:
  {"made_by", "versions", "model",
   "tokenizer": [{"text", "ids"}],                     # of Hugging Face's tokenizers library
   "cases": [{"mode": "causal" | "block" | "full", "block", "ids", "logits": [row of n_vocab] per id}]}
The causal case is transformers' own forward pass; the others give it a 4-D mask. block:
bidirectional inside blocks of that size aligned to position 0, causal across them.
"""

import json
import os
import sys

import tokenizers
import torch
import transformers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

import mkgguf
from mkgguf import ARRAY, BOOL, I32, STRING, U32

BLOCK = 8
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "|<MASK>|"]
N_VOCAB = 256 + 20 + len(SPECIALS)

# The pre-tokenizers' published patterns, by their GGUF name.
PATTERNS = {
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": next(iter(mkgguf.PRE_TOKENIZERS)),
}
CORPUS = """The quick brown fox jumps over the lazy dog. She sells sea shells by the sea shore; the shells that
she sells are sea shells, I'm sure. There was an old man with a beard, who said: it is just as I feared!
for (int i = 0; i < 100; i++) { printf("%d\\n", i); }  1234567890 the then there these those"""
TEXTS = [
    "",
    "the sea",
    "  two  spaces\n\n\tand 12345 numbers!?",
    "I'm SURE you'LL there's",
    "naïve café — Straße",
    "日本語のテキスト",
    "emoji 👩‍👩‍👧 🇯🇵",
    "<|im_end|> typed by hand is text",
    "x" * 40,
    "\r\n \r\n  end ",
]
PROMPT = "The fox jumps over 12 shells."

SHAPES = {
    "llama-tiny": dict(
        arch="llama",
        pre="llama-bpe",
        kind="f16",
        hidden_size=64,
        intermediate_size=80,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_theta=500000.0,
        tied=False,
        seed=1,
    ),
    "qwen2-tiny": dict(
        arch="qwen2",
        pre="qwen2",
        kind="f32",
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_theta=1000000.0,
        tied=True,
        seed=2,
    ),
}


def make_tokenizer(pre):
    tok = tokenizers.Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERNS[pre]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(
        [CORPUS],
        trainers.BpeTrainer(
            vocab_size=N_VOCAB - len(SPECIALS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return tok


def make_model(shape):
    config_class, model_class = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    }[shape["arch"]]
    rope = {"rope_type": "default", "rope_theta": shape["rope_theta"]}
    config = config_class(
        vocab_size=N_VOCAB,
        num_hidden_layers=2,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        tie_word_embeddings=shape["tied"],
        rope_parameters=rope,
        attn_implementation="eager",
        **{
            k: shape[k]
            for k in (
                "hidden_size",
                "intermediate_size",
                "num_attention_heads",
                "num_key_value_heads",
            )
        },
    )
    model = model_class(config).float().eval()
    torch.manual_seed(shape["seed"])
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2:  # large enough that a wrong rotation or mask is seen at once
                p.normal_(0, 0.3 if shape["tied"] and "embed" in name else 1.5 / p.shape[1] ** 0.5)
                p.copy_(p.half().float() if shape["kind"] == "f16" else p)
            else:
                p.normal_(0 if "bias" in name else 1, 0.3)
    return model


def masks(n):
    """Mode -> (block, additive mask [1][1][n][n] or None)."""
    at = torch.arange(n) // BLOCK
    hide = torch.where(at[:, None] >= at[None, :], 0.0, torch.finfo(torch.float32).min)
    return {
        "causal": (1, None),
        "block": (BLOCK, hide[None, None]),
        "full": (0, torch.zeros(1, 1, n, n)),
    }


def rows_for_interleaved_pairs(w, n_head):
    """A llama GGUF rotates q and k in pairs 2i, 2i+1; Hugging Face in pairs i, i + head_dim / 2."""
    return w.reshape(n_head, 2, w.shape[0] // n_head // 2, -1).swapaxes(1, 2).reshape(w.shape)


def write_gguf(path, name, shape, tok, model):
    g, arch, kind = mkgguf.Gguf(), shape["arch"], shape["kind"]
    c = dict(
        shape,
        num_hidden_layers=2,
        vocab_size=N_VOCAB,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
    )
    mkgguf.put_model(g, name, c, arch, mkgguf.FILE_TYPES[kind])
    mkgguf.put_diffusion(g, BLOCK, BLOCK // 2, 0.9)
    texts = sorted(tok.get_vocab(), key=tok.get_vocab().get) + SPECIALS
    merges = json.loads(tok.to_str())["model"]["merges"]
    g.put("tokenizer.ggml.model", STRING, "gpt2")
    g.put("tokenizer.ggml.pre", STRING, shape["pre"])
    g.put("tokenizer.ggml.tokens", ARRAY, (STRING, texts))
    g.put("tokenizer.ggml.token_type", ARRAY, (I32, [1] * (N_VOCAB - 4) + [3] * 4))
    g.put("tokenizer.ggml.merges", ARRAY, (STRING, [" ".join(m) for m in merges]))
    for key, text in (("padding", "<|endoftext|>"), ("eos", "<|im_end|>"), ("mask", "|<MASK>|")):
        g.put(f"tokenizer.ggml.{key}_token_id", U32, texts.index(text))
    g.put("tokenizer.ggml.add_bos_token", BOOL, False)

    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for i in range(2):
        block = dict(
            mkgguf.BLOCK_LINEARS, input_layernorm="attn_norm", post_attention_layernorm="ffn_norm"
        )
        names |= {f"model.layers.{i}.{theirs}": f"blk.{i}.{ours}" for theirs, ours in block.items()}
    for full, p in model.named_parameters():
        theirs, suffix = full.rsplit(".", 1)
        w = p.detach()
        if arch == "llama" and theirs.endswith(("q_proj", "k_proj")):
            w = rows_for_interleaved_pairs(
                w, shape["num_attention_heads" if "q_proj" in theirs else "num_key_value_heads"]
            )
        dense = kind if w.dim() == 2 else "f32"
        g.add(
            f"{names[theirs]}.{suffix}",
            list(w.shape)[::-1],
            dense,
            mkgguf.encode_dense(dense, w.flatten().tolist()),
        )
    with open(path, "wb") as f:
        f.write(g.pack())


def write_golden(path, name, tok, model):
    ids = tok.encode(PROMPT).ids
    cases = []
    for mode, (block, mask) in masks(len(ids)).items():
        with torch.no_grad():
            logits = model(torch.tensor([ids]), attention_mask=mask, use_cache=False).logits[0]
        cases.append(
            {
                "mode": mode,
                "block": block,
                "ids": ids,
                "logits": [[round(v, 5) for v in row] for row in logits.tolist()],
            }
        )
    golden = {
        "made_by": "tools/mkgolden.py",
        "model": name,
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, tokenizers)},
        "tokenizer": [{"text": t, "ids": tok.encode(t).ids} for t in TEXTS],
        "cases": cases,
    }
    with open(path, "w", encoding="utf-8") as f:
        json.dump(golden, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    for name, shape in SHAPES.items():
        tok, model = make_tokenizer(shape["pre"]), make_model(shape)
        write_gguf(os.path.join(sys.argv[1], name + ".gguf"), name, shape, tok, model)
        write_golden(os.path.join(sys.argv[1], name + ".json"), name, tok, model)


if __name__ == "__main__":
    main()

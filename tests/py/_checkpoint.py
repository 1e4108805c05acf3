"""_checkpoint.py - GGUF files taken apart, and checkpoints in Hugging Face's layout put together: what
the tests of `dlm convert` share. Independent of dlm's own readers and writers."""

import json
import os
import struct

import gguf
import numpy
from _dlm import ROOT, load
import mkgguf

GOLDEN = os.path.join(ROOT, "tests", "golden")
KINDS = {t.id: (name, t) for name, t in mkgguf.TYPES.items()}
INTERLEAVED = ("llama", "llada", "smollm3", "mistral3")  # q and k have their rows permuted


class Tensor:
    def __init__(self, kind, ne, data):
        self.kind, self.ne, self.data = kind, ne, data

    def values(self, scale=1.0):
        """As the engine multiplies by them, in rows."""
        n, shape = int(numpy.prod(self.ne)), self.ne[::-1]
        if self.kind in ("f32", "f16"):
            return (
                numpy.frombuffer(self.data, "<f4" if self.kind == "f32" else "<f2")
                .astype("f4")
                .reshape(shape)
            )
        if self.kind in ("tq1_0", "tq2_0"):
            raw = numpy.frombuffer(self.data, "u1").reshape(shape[0], -1)
            unit = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[self.kind.upper()])
            return (unit * numpy.float32(scale)).reshape(shape)
        codes = mkgguf.decode_ternary(self.kind, self.data, n, self.ne[0], "128")
        if self.kind == "i2_s":
            scale = struct.unpack_from("<f", self.data, n // 4)[0]
        return ((numpy.frombuffer(codes, "u1").astype("f4") - 1) * numpy.float32(scale)).reshape(
            shape
        )


def read_gguf(path):
    """(keys, tensors) of a GGUF file."""
    with open(path, "rb") as f:
        blob = f.read()
    at = 24

    def take(spec):
        nonlocal at
        value = struct.unpack_from("<" + spec, blob, at)[0]
        at += struct.calcsize("<" + spec)
        return value

    def take_str():
        nonlocal at
        n = take("Q")
        at += n
        return blob[at - n : at].decode()

    def take_value(kind):
        if kind == mkgguf.STRING:
            return take_str()
        if kind == mkgguf.ARRAY:
            elem, n = take("I"), take("Q")
            return [take_value(elem) for _ in range(n)]
        return take(mkgguf.SCALARS[kind])

    n_tensors, n_kv = struct.unpack_from("<QQ", blob, 8)
    keys, places = {}, []
    for _ in range(n_kv):
        name = take_str()
        keys[name] = take_value(take("I"))
    for _ in range(n_tensors):
        name, ne = take_str(), [0] * take("I")
        ne = [take("Q") for _ in ne]
        places.append((name, ne, *KINDS[take("I")], take("Q")))
    start = at + -at % 32
    tensors = {}
    for name, ne, kind, t, offset in places:
        n = int(numpy.prod(ne)) // t.block * t.bytes + (32 if kind == "i2_s" else 0)
        tensors[name] = Tensor(kind, ne, blob[start + offset : start + offset + n])
    return keys, tensors


# ---- SentencePiece ----


def proto(field, value):
    """One field of a protocol buffer: a message or a text, a float, or a number."""

    def varint(n):
        out = b""
        while n > 127:
            out, n = out + bytes([n & 127 | 128]), n >> 7
        return out + bytes([n])

    if isinstance(value, bytes):
        return varint(field << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(field << 3 | 5) + struct.pack("<f", value)
    return varint(field << 3) + varint(value)


def sentencepiece_pieces(tokens, scores, types):
    """The vocabulary as tokenizer.model begins with it."""
    return b"".join(
        proto(1, proto(1, text.encode()) + proto(2, score) + proto(3, kind))
        for text, score, kind in zip(tokens, scores, types)
    )


def sentencepiece_merges(vocab, scores, types):
    """Every way to make a normal piece of two others, in the order of the scores, as transformers has it.
    vocab: text -> id."""
    merges = []
    for piece, i in vocab.items():
        cuts = [(piece[:k], piece[k:]) for k in range(1, len(piece))] if types[i] == 1 else []
        merges += [
            (-scores[i], vocab[a], vocab[b], a, b) for a, b in cuts if a in vocab and b in vocab
        ]
    return [m[3:] for m in sorted(merges)]


# ---- checkpoints ----


def write_safetensors(path, tensors):
    """tensors: name -> (dtype, shape, bytes)."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            f.write(data)


def separated_pairs(w, n_head):
    """The inverse of the permutation that GGUF's llama wants."""
    return w.reshape(n_head, w.shape[0] // n_head // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)


def tokenizer_json(keys):
    """tokenizer.json as its package writes it, for the vocabulary of a GGUF."""
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    split = next(
        p for p, name in mkgguf.PRE_TOKENIZERS.items() if name == keys["tokenizer.ggml.pre"]
    )
    bytelevel = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    steps = [{"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated"}, bytelevel]
    return {
        "added_tokens": [
            {"id": i, "content": t, "special": types[i] == 3}
            for i, t in enumerate(tokens)
            if types[i] != 1
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": bytelevel,
        "model": {
            "type": "BPE",
            "vocab": {t: i for i, t in enumerate(tokens) if types[i] == 1},
            "merges": [m.split(" ") for m in keys["tokenizer.ggml.merges"]],
        },
    }


def family_tensors(family, keys, tensors):
    """The weights of tests/golden/family-*.gguf under the names, and in the order, of a checkpoint."""
    arch, out = keys["general.architecture"], {}
    heads = {
        "attn_q": keys[f"{arch}.attention.head_count"],
        "attn_k": keys[f"{arch}.attention.head_count_kv"],
    }
    for theirs, ours in family["names"].items():
        scale = tensors.get(ours.replace(".weight", ".scale"))
        w = tensors[ours].values(scale.values()[0] if scale else 1.0)
        part = ours.split(".")[2] if ours.startswith("blk.") else ""
        if arch in INTERLEAVED and part in heads:
            w = separated_pairs(w, heads[part])
        exact = w.ndim == 1 or tensors[ours].kind != "f16"
        out[theirs] = (
            ("F32", w.shape, w.tobytes()) if exact else ("F16", w.shape, w.astype("<f2").tobytes())
        )
    return out


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(value, f)


def write_family(folder, name):
    """A checkpoint of one of the tiny models; returns (keys, tensors) of its GGUF."""
    family = load(os.path.join(GOLDEN, "checkpoints.json"))["families"][name]
    keys, tensors = read_gguf(os.path.join(GOLDEN, f"family-{name}.gguf"))
    os.makedirs(folder, exist_ok=True)
    write_json(os.path.join(folder, "config.json"), family["config"])
    write_json(os.path.join(folder, "tokenizer.json"), tokenizer_json(keys))
    write_json(os.path.join(folder, "tokenizer_config.json"), {"eos_token": "<|im_end|>"})
    path = os.path.join(folder, "model.safetensors")
    write_safetensors(path, family_tensors(family, keys, tensors))
    return keys, tensors

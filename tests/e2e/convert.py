#!/usr/bin/env python3
"""convert.py - `dlm convert` and `dlm diff`: checkpoints of every family, every type, every crime.

The trained checkpoint in ../shared, online and packed, becomes the demo model; tiny checkpoints of all
families become the files that tests/t_families.c holds against PyTorch's numbers; quantized tensors
equal those of the `gguf` package byte for byte.
"""

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import tempfile
import time

import gguf
import numpy

from _run import DLM, MODEL_LESS, ROOT, TINY, Count, Terminal, run
import _checkpoint as ck

t = Count()
MODELS = os.path.join(ROOT, "..", "shared", "models")
ONLINE, PACKED = os.path.join(MODELS, "tiny-dlm"), os.path.join(MODELS, "tiny-dlm-packed")
VOCAB = os.path.join(ROOT, "..", "shared", "vocab", "ggml-vocab-llama-spm.gguf")
DEMO = ["--embed-type", "f16", "--threshold", "0.9"]  # how tests/golden/tiny-dlm.gguf is made
FAMILIES = ck.load(os.path.join(ck.GOLDEN, "checkpoints.json"))["families"]


def convert(source, out, *args, status=0, **more):
    done = run("convert", source, "-o", out, *args, **more)
    said = done.stderr.decode()
    t.check(done.returncode == status, f"convert {source} {args}: exit {done.returncode}: {said}")
    t.check(done.stdout == b"", f"convert {source} {args}: something on standard output")
    return said


def same(a, b, name):
    """The tensors of two files, their types apart; keys are compared elsewhere."""
    done = run("diff", a, b)
    lines = [x for x in done.stdout.decode().splitlines() if x.startswith("tensor")]
    bad = [x for x in lines if "the same values" not in x]
    t.check(done.returncode in (0, 1) and not bad, f"{name}: {bad} {done.stderr.decode()}")


def read_bytes(path):
    with open(path, "rb") as f:
        return f.read()


def tensors_of_family(name):
    """As they lie in its checkpoint."""
    path = os.path.join(ck.GOLDEN, f"family-{name}.gguf")
    return ck.family_tensors(FAMILIES[name], *ck.read_gguf(path))


def test_demo(folder):
    """The demo model is what dlm makes of the trained checkpoint, and the packed one has its codes."""
    out, packed = os.path.join(folder, "tiny-dlm.gguf"), os.path.join(folder, "packed.gguf")
    said = convert(ONLINE, out, *DEMO, "--validate")
    t.check(
        read_bytes(out) == read_bytes(TINY),
        "tests/golden/tiny-dlm.gguf is made by: " + " ".join(DEMO),
    )
    t.check("28 matrices are made ternary" in said and said.count("% 0, ") == 28, said)
    t.check("every tensor is what its source says" in said, said)
    convert(ONLINE, packed, *DEMO, "-t", "1")
    t.check(read_bytes(packed) == read_bytes(TINY), "one thread makes another file")
    said = convert(PACKED, packed, *DEMO, "--validate")
    t.check("packed; weight_scale multiplies (autobitlinear)" in said, said)
    a, b = ck.read_gguf(out)[1], ck.read_gguf(packed)[1]
    for name, w in a.items():
        if name.endswith(".scale"):  # the packed checkpoint has it in bf16
            base = name[: -len("scale")] + "weight"
            blocks = [numpy.frombuffer(x[base].data, "u1").reshape(-1, 66)[:, :64] for x in (a, b)]
            t.check((blocks[0] == blocks[1]).all(), f"{name}: other codes in the packed checkpoint")
            (bits,) = struct.unpack("<I", w.data)
            rounded = struct.pack("<I", (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000)
            (d,) = struct.unpack_from("<e", b[base].data, 64)
            t.check(struct.pack("<f", d) == rounded, f"{name}: another scale in the packed one")
    text = run("-m", packed, "-p", "What is 2+2?").stdout
    t.check(text == run("-m", TINY, "-p", "What is 2+2?").stdout, text)


def test_ternary_types(folder):
    """Every type holds the weights that another program made; and so from one type to another."""
    made = {}
    for kind in "tq1_0", "tq2_0", "q2_0", "i2_s", "f16", "f32":
        made[kind] = os.path.join(folder, kind + ".gguf")
        convert(ONLINE, made[kind], "--type", kind, "--embed-type", "f16")
        same(made[kind], os.path.join(ROOT, "build", "models", f"tiny-{kind}.gguf"), kind)
    again = os.path.join(folder, "again.gguf")
    for a, b in (
        ("tq2_0", "i2_s"),
        ("i2_s", "tq1_0"),
        ("tq1_0", "q2_0"),
        ("q2_0", "tq2_0"),
        ("f16", "tq2_0"),
    ):
        convert(made[a], again, "--type", b, "--validate")
        same(again, made[a], f"{a} to {b}")
    convert(made["tq2_0"], again)
    t.check(read_bytes(again) == read_bytes(made["tq2_0"]), "a copy is not a copy")
    said = convert(ONLINE, again, "--type", "f16")
    t.check("warning" in said and "expect other answers" in said, said)
    raw = os.path.join(folder, "raw.gguf")
    convert(ONLINE, raw, "--ternary", "no", "--type", "bf16", "--embed-type", "f16")
    said = convert(
        raw, again, "--type", "tq2_0"
    )  # the architecture says that it was trained for it
    same(again, made["tq2_0"], "raw bf16 to tq2_0")


def test_gguf_package(folder):
    """Bytes equal the quantizers of the gguf package, and its reader opens the files."""
    source, out = os.path.join(folder, "dense"), os.path.join(folder, "dense.gguf")
    ck.write_family(source, "qwen2")
    for kind in "q8_0", "q4_0", "bf16", "f32", "f16":
        convert(source, out, "--type", kind, "--embed-type", kind, "--validate")
        whole = {x.name: x for x in gguf.GGUFReader(out).tensors}
        names = {v: k for k, v in FAMILIES["qwen2"]["names"].items()}
        tensors = tensors_of_family("qwen2")
        for name, x in whole.items():
            dtype, shape, data = tensors[names[name]]
            w = (
                numpy.frombuffer(data, "<f4" if dtype == "F32" else "<f2")
                .astype("f4")
                .reshape(shape)
            )
            qtype = gguf.GGMLQuantizationType[kind.upper()]
            # rows of the feed-forward are 48 wide: not whole blocks
            fits = w.ndim == 2 and w.shape[1] % gguf.GGML_QUANT_SIZES[qtype][0] == 0
            want = qtype if fits else gguf.GGMLQuantizationType["F16" if w.ndim == 2 else "F32"]
            t.check(x.tensor_type == want, f"{kind}: {name} is {x.tensor_type}, want {want}")
            data = gguf.quants.quantize(w, want)
            t.check(x.data.tobytes() == data.tobytes(), f"{kind}: the bytes of {name}")
    for kind in "tq1_0", "tq2_0":
        convert(ONLINE, out, "--type", kind, "--scale", "block")
        reader = gguf.GGUFReader(out)
        exact = ck.read_gguf(TINY)[1]
        t.check(
            not any(x.name.endswith(".scale") for x in reader.tensors), "--scale block has scales"
        )
        for x in reader.tensors:
            if x.name.replace("weight", "scale") in exact:
                m = numpy.float32(exact[x.name.replace("weight", "scale")].values()[0])
                w = exact[x.name].values(m)
                want = gguf.quants.quantize(w, gguf.GGMLQuantizationType[kind.upper()])
                t.check(x.data.tobytes() == want.tobytes(), f"{kind}: the bytes of {x.name}")


def test_families(folder):
    """The weights and keys of each family, through a checkpoint as transformers writes it."""
    ours = {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.padding_token_id", "general.name"}
    for name, family in FAMILIES.items():
        source, out = os.path.join(folder, name), os.path.join(folder, name + ".gguf")
        keys, tensors = ck.write_family(source, name)
        ternary = any(x.kind in ("q2_0", "i2_s") for x in tensors.values())
        said = convert(source, out, "--validate", *(["--type", "q2_0"] if ternary else []))
        t.check("warning" not in said or "mask" in said or "probe" in said, said)
        got_keys, got = ck.read_gguf(out)
        for x in got.keys() | tensors.keys():
            if x.endswith(".scale"):
                continue
            a, b = got.get(x), tensors.get(x)
            if not t.check(a and b and a.ne == b.ne, f"{name}: {x} in one of two only"):
                continue
            scales = [
                (
                    s[x.replace("weight", "scale")].values()[0]
                    if x.replace("weight", "scale") in s and x.endswith("weight")
                    else 1.0
                )
                for s in (got, tensors)
            ]
            va, vb = a.values(scales[0]), b.values(scales[1])
            near = 3e-7 if x == "rope_freqs.weight" else 0
            t.check(numpy.abs(va - vb).max() <= near, f"{name}: {x} differs")
        arch = keys["general.architecture"]
        if (
            name == "bitnet-25"
        ):  # the class of its checkpoint is b1.58's; so are its graph and weights
            keys = {k.replace(arch, "bitnet-b1.58"): v for k, v in keys.items()}
            keys["general.architecture"], arch = "bitnet-b1.58", "bitnet-b1.58"
        for key, value in keys.items():
            if key.startswith("diffusion.") or key in ours | {"general.file_type"}:
                continue
            if name == "qwen2" and key == "qwen2.attention.causal":
                continue  # tests/t_families.c runs this one under full attention, too
            if key.endswith("sub_norm_rms_epsilon"):  # no config says so: X.0 has always this one
                value = float(numpy.float32(1e-6))
            t.check(
                got_keys.get(key) == value, f"{name}: {key} is {got_keys.get(key)}, want {value}"
            )
        t.check(got_keys.get("general.name") == name, got_keys.get("general.name"))


def test_record(folder):
    """Diffusion keys by family, class and options."""
    out = os.path.join(folder, "out.gguf")

    def record(name):
        convert(os.path.join(folder, name), out)
        return {k[10:]: v for k, v in ck.read_gguf(out)[0].items() if k.startswith("diffusion.")}

    for name, want in (
        ("llada", ("full", False, 32, "low_confidence")),
        ("fast-dllm", ("block", True, 32, "threshold")),
        ("sdar", ("block", False, 4, "low_confidence_dynamic")),
        ("dream", ("full", True, 65536, "entropy")),
        ("wedlm", ("causal", False, 16, "entropy_bound")),
        ("smollm2", ("causal", True, 32, "threshold")),
    ):
        r = record(name)
        got = r["attention"], r["shift_logits"], r["block_size"], r["rule"]
        t.check(got == want, f"{name}: {got}, want {want}")
    t.check(record("tinyllama") == {}, "a model without a mask has a decode record")
    convert(os.path.join(folder, "sdar"), out, "--block-size", "16", "--threshold", "0.5")
    keys = ck.read_gguf(out)[0]
    t.check(keys["diffusion.block_size"] == 16 and keys["diffusion.threshold"] == 0.5, "options")


def test_layouts(folder):
    """Shards; packed codes that are divided by their scale; scales of several blocks."""
    source, out, again = (os.path.join(folder, x) for x in ("falcon3-158", "a.gguf", "b.gguf"))
    convert(source, out, "--type", "q2_0")
    shards = os.path.join(folder, "shards")
    shutil.copytree(source, shards)
    tensors = tensors_of_family("falcon3-158")
    os.remove(os.path.join(shards, "model.safetensors"))
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    names = sorted(tensors)
    for i, name in enumerate(files):
        ck.write_safetensors(os.path.join(shards, name), {n: tensors[n] for n in names[i::2]})
    weight_map = {n: files[i % 2] for i, n in enumerate(names)}
    ck.write_json(os.path.join(shards, "model.safetensors.index.json"), {"weight_map": weight_map})
    convert(shards, again, "--type", "q2_0")
    same(out, again, "shards")
    packed = os.path.join(folder, "packed")
    shutil.copytree(source, packed)
    for name in list(tensors):
        dtype, shape, data = tensors[name]
        if "proj" not in name:
            continue
        w = numpy.frombuffer(data, "<f4").reshape(shape)
        m = numpy.abs(w).max()
        codes = (numpy.sign(w) + 1).astype("u1").reshape(4, shape[0] // 4, shape[1])
        bits = codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6
        tensors[name] = ("U8", bits.shape, bits.tobytes())
        tensors[name + "_scale"] = ("F32", [1], struct.pack("<f", 1 / m))
    ck.write_safetensors(os.path.join(packed, "model.safetensors"), tensors)
    said = convert(packed, again, "--type", "q2_0")
    t.check("divides (bitlinear)" in said, said)
    done = run("diff", out, again).stdout.decode()
    t.check("largest difference 0." not in done, f"bitlinear: {done}")


def test_statistics(folder):
    """Shares of -1, 0 and +1 that training does not give are worth a warning with the numbers."""
    source, out = os.path.join(folder, "strange"), os.path.join(folder, "strange.gguf")
    random = numpy.random.default_rng(1)
    for what, make, says in (
        ("gaussian", lambda n: random.standard_normal(n), None),
        ("signs", lambda n: random.choice([-1.0, 1.0], n), "0.0% 0, "),
        (
            "block maximum",
            lambda n: random.choice([-1.0, 0.0, 1.0], n, p=[0.07, 0.86, 0.07]),
            "zeros",
        ),
        ("outliers", lambda n: random.standard_cauchy(n), "rounding took"),
    ):
        ck.write_family(source, "bitnet-b158")
        tensors = tensors_of_family("bitnet-b158")
        for name, (_, shape, _) in list(tensors.items()):
            if "proj" in name:
                w = make(int(numpy.prod(shape))).clip(-6e4, 6e4).astype("<f2")
                tensors[name] = ("F16", shape, w.tobytes())
        ck.write_safetensors(os.path.join(source, "model.safetensors"), tensors)
        said = convert(source, out, "--type", "q2_0")
        warned = [x for x in said.splitlines() if "warning" in x and "% are -1" in x]
        t.check(bool(warned) == bool(says), f"{what}: {said}")
        t.check(not says or all(says in x for x in warned), f"{what}: {warned}")


def test_sentencepiece(folder):
    """tokenizer.model alone, and tokenizer.json of the same kind: the ids that the vocabulary gives."""
    vocab = ck.read_gguf(VOCAB)[0]
    tokens, scores, types = (
        vocab["tokenizer.ggml." + x] for x in ("tokens", "scores", "token_type")
    )
    source, out = os.path.join(folder, "spm"), os.path.join(folder, "spm.gguf")
    ck.write_family(source, "tinyllama")
    config = dict(FAMILIES["tinyllama"]["config"], vocab_size=len(tokens), tie_word_embeddings=True)
    ck.write_json(os.path.join(source, "config.json"), config)
    weights = tensors_of_family("tinyllama")
    del weights["lm_head.weight"]
    weights["model.embed_tokens.weight"] = ("F16", [len(tokens), 32], bytes(64 * len(tokens)))
    ck.write_safetensors(os.path.join(source, "model.safetensors"), weights)
    os.remove(os.path.join(source, "tokenizer.json"))
    os.remove(os.path.join(source, "tokenizer_config.json"))
    with open(os.path.join(source, "tokenizer.model"), "wb") as f:
        f.write(ck.sentencepiece_pieces(tokens, scores, types) + ck.proto(2, ck.proto(3, 2)))
    said = convert(source, out)
    t.check("tokenizer llama (SentencePiece)" in said, said)
    keys = ck.read_gguf(out)[0]
    for key, want in (("tokens", tokens), ("scores", scores), ("token_type", types)):
        t.check(keys["tokenizer.ggml." + key] == want, f"tokenizer.model: {key}")
    t.check(
        keys["tokenizer.ggml.add_bos_token"] and keys["tokenizer.ggml.bos_token_id"] == 1, "bos"
    )
    texts = [
        "Hello world",
        " caf\u00e9 \u4f60\u597d 3.14\n\n\tx",
        "\U0001f600",
        "www.example.org   y",
    ]
    os.remove(os.path.join(source, "tokenizer.model"))
    ck.write_json(os.path.join(source, "tokenizer.json"), sentencepiece_json(tokens, scores, types))
    as_json = os.path.join(folder, "spm-json.gguf")
    said = convert(source, as_json)
    t.check("tokenizer llama (SentencePiece)" in said, said)
    for text in texts:
        ids = [run("tokenize", "-m", m, text).stdout for m in (out, as_json, VOCAB)]
        t.check(ids[0] and len(set(ids)) == 1, f"{text!r}: {ids}")


def sentencepiece_json(tokens, scores, types):
    """The same vocabulary as the tokenizers library writes it: every way to make a piece, best first."""
    ids = {text: i for i, text in enumerate(tokens)}
    steps = [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": tokens[i], "special": True, **special} for i in range(3)],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": ids,
            "merges": ck.sentencepiece_merges(ids, scores, types),
        },
    }


def crimes(folder):
    """(what, function that commits it in a fresh copy, words of the error)."""
    name = "model.safetensors"

    def tensors_of(where):
        blob = read_bytes(os.path.join(where, name))
        (n,) = struct.unpack_from("<Q", blob)
        header = json.loads(blob[8 : 8 + n])
        return {
            k: (
                v["dtype"],
                v["shape"],
                blob[8 + n + v["data_offsets"][0] : 8 + n + v["data_offsets"][1]],
            )
            for k, v in header.items()
            if k != "__metadata__"
        }

    def weights(change):
        def commit(where):
            tensors = tensors_of(where)
            change(tensors)
            ck.write_safetensors(os.path.join(where, name), tensors)

        return commit

    def header(change):
        def commit(where):
            blob = bytearray(read_bytes(os.path.join(where, name)))
            blob = change(blob)
            with open(os.path.join(where, name), "wb") as f:
                f.write(blob)

        return commit

    def config(file="config.json", **new):
        def commit(where):
            path = os.path.join(where, file)
            value = ck.load(path)
            for key, v in new.items():
                if v is None:
                    value.pop(key, None)
                else:
                    value[key] = v
            ck.write_json(path, value)

        return commit

    def drop(*files):
        return lambda where: [os.remove(os.path.join(where, f)) for f in files]

    def text(file, content):
        def commit(where):
            with open(os.path.join(where, file), "w", encoding="utf-8") as f:
                f.write(content)

        return commit

    def index(weight_map):
        return lambda where: ck.write_json(
            os.path.join(where, "model.safetensors.index.json"), {"weight_map": weight_map}
        )

    def swap_first_two(blob):
        (n,) = struct.unpack_from("<Q", blob)
        h = json.loads(blob[8 : 8 + n])
        a, b = [k for k in h if k != "__metadata__" and len(h[k]["shape"]) == 1][:2]
        h[b]["data_offsets"] = h[a]["data_offsets"]
        new = json.dumps(h).encode()
        return struct.pack("<Q", len(new)) + new + blob[8 + n :]

    def twice(blob):
        (n,) = struct.unpack_from("<Q", blob)
        old = bytes(blob[8 : 8 + n])
        norm = json.dumps({"model.norm.weight": json.loads(old)["model.norm.weight"]}).encode()
        new = old[:-1] + b"," + norm[1:]
        return struct.pack("<Q", len(new)) + new + blob[8 + n :]

    q = "model.layers.0.self_attn.q_proj.weight"

    def nan(tensors):
        dtype, shape, data = tensors[q]
        tensors[q] = (dtype, shape, data[:-2] + b"\x00\x7e")

    return [
        ("missing shard", index({q: "model-7.safetensors"}), ["model-7.safetensors"]),
        ("shard with a path", index({q: "../model.safetensors"}), ["'../model.safetensors'", q]),
        ("tensor not in its shard", index({"x": name}), [name, "tensor x is missing"]),
        (
            "wrong dtype",
            weights(lambda w: w.update({q: ("I32", [32, 16], bytes(2048))})),
            [name, q, "I32"],
        ),
        (
            "packed without scale",
            weights(lambda w: w.update({q: ("U8", [16, 32], bytes(512))})),
            [name, q, "weight_scale"],
        ),
        ("truncated", header(lambda b: b[:-100]), [name, "truncated"]),
        (
            "header beyond the file",
            header(lambda b: struct.pack("<Q", 1 << 40) + b[8:]),
            [name, "promise a header"],
        ),
        ("no safetensors", header(lambda b: b"PK\x03\x04 this is a zip file"), [name]),
        ("overlapping", header(swap_first_two), [name, "overlap"]),
        ("duplicate", header(twice), [name, "model.norm.weight", "twice"]),
        ("NaN", weights(nan), [name, q, "NaN"]),
        ("shape", config(hidden_size=64), ["config.json wants", "model.embed_tokens.weight"]),
        (
            "another shape",
            weights(lambda w: w.update({q: ("F16", [64, 16], bytes(2048))})),
            [name, q, "[64, 16]", "[64, 32]"],
        ),
        (
            "more layers",
            config(num_hidden_layers=3),
            [name, "layer 2", "input_layernorm.weight is missing"],
        ),
        ("fewer layers", config(num_hidden_layers=1), [name, "model.layers.1", "has no place"]),
        (
            "unknown tensor",
            weights(lambda w: w.update({"model.gadget": ("F32", [1], bytes(4))})),
            [name, "model.gadget"],
        ),
        (
            "missing tensor",
            weights(lambda w: w.pop("model.norm.weight")),
            [name, "model.norm.weight is missing"],
        ),
        (
            "missing one of three",
            weights(lambda w: w.pop(q)),
            ["layer 0", "q_proj, k_proj and v_proj"],
        ),
        (
            "unknown architecture",
            config(architectures=["GPT9"]),
            ["config.json", "'GPT9'", "LlamaForCausalLM"],
        ),
        ("no architecture", config(architectures=None), ["config.json", "architectures"]),
        ("activation", config(hidden_act="gelu"), ["config.json", "gelu"]),
        (
            "rope",
            config(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}),
            ["config.json", "spiral"],
        ),
        (
            "quantized by others",
            config(quantization_config={"quant_method": "gptq"}),
            ["config.json", "gptq"],
        ),
        ("no config", drop("config.json"), ["config.json"]),
        ("broken config", text("config.json", "{"), ["config.json", "invalid JSON"]),
        ("no weights", drop(name), ["no weights", name]),
        ("no tokenizer", drop("tokenizer.json"), ["no tokenizer"]),
        (
            "unknown pre-tokenizer",
            config(
                "tokenizer.json",
                pre_tokenizer={
                    "type": "Sequence",
                    "pretokenizers": [
                        {"type": "Split", "pattern": {"Regex": "x+"}},
                        {"type": "ByteLevel", "use_regex": False},
                    ],
                },
            ),
            ["tokenizer.json", "x+", "--pre NAME"],
        ),
        (
            "normalizer",
            config("tokenizer.json", normalizer={"type": "Lowercase"}),
            ["tokenizer.json", "normalizer"],
        ),
        (
            "WordPiece",
            config("tokenizer.json", model={"type": "WordPiece", "vocab": {}}),
            ["tokenizer.json", "WordPiece"],
        ),
        (
            "mask outside",
            config(mask_token_id=99),
            ["config.json", "mask_token_id is 99", "35 tokens"],
        ),
        (
            "token outside",
            config("tokenizer.json", added_tokens=[{"id": 99, "content": "<x>", "special": True}]),
            ["tokenizer.json", "<x>", "99"],
        ),
        ("a model that is ternary by force", None, ["is not ternary", q]),
    ]


def test_crimes(folder):
    """One clear line that names the file and the tensor, exit 3, and nothing new anywhere."""
    good, where = os.path.join(folder, "good"), os.path.join(folder, "crime")
    ck.write_family(good, "qwen3")
    out = os.path.join(folder, "crime.gguf")
    for what, commit, words in crimes(folder):
        shutil.rmtree(where, ignore_errors=True)
        shutil.copytree(good, where)
        if commit:
            commit(where)
        before = sorted(os.listdir(folder)), sorted(os.listdir(where))
        said = convert(where, out, *([] if commit else ["--type", "tq2_0"]), "-q", status=3)
        t.check(
            said.startswith("dlm: ") and said.count("\n") == 1, f"{what}: not one line: {said!r}"
        )
        for word in words:
            t.check(word in said, f"{what}: {word!r} is not in {said!r}")
        t.check(
            before == (sorted(os.listdir(folder)), sorted(os.listdir(where))),
            f"{what}: left something",
        )
    convert(good, out, "--pre", "llama-bpe")
    t.check(ck.read_gguf(out)[0]["tokenizer.ggml.pre"] == "llama-bpe", "--pre")
    for args, status, words in (
        (["--pre", "nonsense"], 2, ["nonsense"]),
        (["--mask-token-id", "35"], 2, ["35"]),
        (["--type", "q9"], 2, ["--type"]),
    ):
        said = convert(good, out, *args, "-q", status=status)
        t.check(all(w in said for w in words), said)
    for args in (["convert"], ["convert", good], ["diff", TINY]):
        t.check(run(*args).returncode == 2, args)
    t.check(run("convert", out, "-o", out).returncode == 2, "the input is overwritten")
    t.check(run("convert", good, "-o", folder).returncode == 2, "a folder is overwritten")
    t.check(run("convert", good, "-o", "/dev/null").returncode == 2, "a device is overwritten")
    t.check(run("convert", folder, "-o", out).returncode == 3, "a folder without a checkpoint")


def big_checkpoint(folder):
    """A hundred megabytes of zeros that take no room."""
    where, n = os.path.join(folder, "big"), 1 << 20
    ck.write_family(where, "tinyllama")
    config = dict(FAMILIES["tinyllama"]["config"], vocab_size=n, tie_word_embeddings=True)
    ck.write_json(os.path.join(where, "config.json"), config)
    weights = tensors_of_family("tinyllama")
    del weights["lm_head.weight"], weights["model.embed_tokens.weight"]
    path = os.path.join(where, "model.safetensors")
    start = sum(len(data) for _, _, data in weights.values())
    ck.write_safetensors(path, {**weights, "model.embed_tokens.weight": ("F32", [n, 32], b"")})
    blob = read_bytes(path)
    old = b'"data_offsets": [%d, %d]' % (start, start)
    head = blob[8 : len(blob) - start].replace(
        old, b'"data_offsets": [%d, %d]' % (start, start + 128 * n)
    )
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head + blob[len(blob) - start :])
        f.truncate(8 + len(head) + start + 128 * n)
    return where


def has_begun(child, target):
    """Has it opened its output? That has no name, or one that ends in .tmp."""
    for _ in range(20000):
        folder = f"/proc/{child.pid}/fd"
        for fd in os.listdir(folder) if os.path.isdir(folder) else []:
            try:
                if os.readlink(os.path.join(folder, fd)).startswith(target + "/"):
                    return True
            except OSError:
                pass
        if child.poll() is not None:
            return False
        time.sleep(0.001)
    return False


def test_interrupted(folder):
    """Ctrl-C, SIGKILL, and a disk that is full leave nothing behind."""
    where, target = big_checkpoint(folder), os.path.join(folder, "target")
    os.makedirs(target)
    out = os.path.join(target, "out.gguf")
    args = [DLM, "convert", where, "-o", out, "-q"]
    for number, want in (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL):
        child = subprocess.Popen(
            args, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=MODEL_LESS
        )
        t.check(has_begun(child, target), "the output is never opened")
        child.send_signal(number)
        said = child.communicate()[1]
        t.check(child.returncode == want and said == b"", f"{number}: {child.returncode} {said}")
        t.check(os.listdir(target) == [], f"{number}: {os.listdir(target)} is left")

    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50 << 20, 50 << 20))

    done = subprocess.run(
        args, capture_output=True, preexec_fn=small_files, env=MODEL_LESS, check=False
    )
    said = done.stderr.decode()
    t.check(done.returncode == 1 and "cannot write: File too large" in said and out in said, said)
    t.check(os.listdir(target) == [], f"full: {os.listdir(target)} is left")
    small = os.path.join(folder, "good")
    term = Terminal("convert", small, "-o", out)
    t.check(term.wait_for(b"wrote ") and term.end() == 0, term.seen)
    t.check(os.listdir(target) == ["out.gguf"], os.listdir(target))
    os.chmod(target, 0o555)
    if os.geteuid() != 0:
        said = convert(small, out, "-q", status=1)
        t.check("cannot create" in said, said)
    os.chmod(target, 0o755)


def main():
    with tempfile.TemporaryDirectory() as folder:
        for test in (
            test_demo,
            test_ternary_types,
            test_gguf_package,
            test_families,
            test_record,
            test_layouts,
            test_statistics,
            test_sentencepiece,
            test_crimes,
            test_interrupted,
        ):
            begin = time.monotonic()
            test(folder)
            if "TIMES" in os.environ:
                print(f"{test.__name__}: {time.monotonic() - begin:.1f} s")
    t.end()


if __name__ == "__main__":
    main()

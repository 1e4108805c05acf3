#!/usr/bin/env python3
"""The tokenizer against the `tokenizers` package (0.23.3), on random and adversarial text.

    python3 tests/py/tok_diff.py [TEXTS-PER-VOCABULARY]

For each vocabulary a reference is built from its tokens, its merges and the published regular
expressions, and both sides encode the same texts: as a user's (special tokens are text) and as a
template's (special tokens are recognized). The texts have a fixed seed. tests/tok_driver.c is our side.
"""
import json
import os
import random
import struct
import subprocess
import sys

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers as pre

VOCABS = "../shared/vocab/ggml-vocab-%s.gguf"
TINY = "../shared/models/tiny-dlm/tokenizer.json"
DRIVER = "build/tok_driver"
SEED = 20240

# ---- GGUF: as much as a vocabulary needs ----

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY, INT32 = 8, 9, 5


def read_gguf(path):
    with open(path, "rb") as f:
        data = f.read()
    at = 24

    def take(fmt):
        nonlocal at
        value, = struct.unpack_from("<" + fmt, data, at)
        at += struct.calcsize("<" + fmt)
        return value

    def string():
        nonlocal at
        n = take("Q")
        at += n
        return data[at - n:at].decode("utf-8", "surrogateescape")

    def value(kind):
        return string() if kind == STRING else take(SCALARS[kind])

    keys = {}
    for _ in range(struct.unpack_from("<Q", data, 16)[0]):
        key, kind = string(), take("I")
        if kind == ARRAY:
            elem, count = take("I"), take("Q")
            keys[key] = [value(elem) for _ in range(count)]
        else:
            keys[key] = value(kind)
    return {k.removeprefix("tokenizer.ggml."): v for k, v in keys.items()}


def write_gguf(path, keys):
    def string(s):
        b = s.encode()
        return struct.pack("<Q", len(b)) + b

    out = b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys))
    for key, value in keys.items():
        out += string("tokenizer.ggml." + key)
        if isinstance(value, str):
            out += struct.pack("<I", STRING) + string(value)
        elif isinstance(value[0], str):
            out += struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(string, value))
        else:
            out += struct.pack("<IIQ", ARRAY, INT32, len(value)) + struct.pack(f"<{len(value)}i", *value)
    with open(path, "wb") as f:
        f.write(out)


# ---- the reference ----

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|"
          r"\s*[\r\n]+|\s+(?!\S)|\s+")


def split(pattern):
    return pre.Split(Regex(pattern), "isolated")


def splits(name):
    return {
        "gpt-2": [split(GPT2)],
        "smollm": [pre.Digits(individual_digits=True), split(GPT2)],
        "qwen2": [split(CL100K % "")],
        "llama-bpe": [split(CL100K % "{1,3}")],
        # Its own Punctuation class is that of an older Unicode; this is the expression for it.
        "falcon": [split(r"[\p{P}\$\+<=>\^~\|`]+"), split(GPT2), split("[0-9][0-9][0-9]")],
        "deepseek-coder": [split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"),
                           split("[一-龥ࠀ-一가-퟿]+"), pre.Digits(individual_digits=True)],
    }[{"mpt": "gpt-2", "starcoder": "smollm", "refact": "smollm"}.get(name, name)]


NORMAL, UNKNOWN, CONTROL, USER, UNUSED = 1, 2, 3, 4, 5


def is_markup(s):
    return len(s.encode()) >= 3 and (s[0] + s[-1]) in ("<>", "[]", "||")


def reference(keys, trusted):
    tokens, types = keys["tokens"], keys["token_type"]
    last = len(tokens)  # the special tokens at the end are not words: ignore_merges must not find them
    while types[last - 1] != NORMAL:
        last -= 1
    vocab = {t: i for i, t in enumerate(tokens[:last])}
    merges = []
    for line in keys["merges"]:
        space = line.index(" ", 1)
        merges.append((line[:space], line[space + 1:]))
    t = Tokenizer(models.BPE(vocab, merges, ignore_merges=keys["pre"] == "llama-bpe"))
    t.pre_tokenizer = pre.Sequence(splits(keys["pre"]) + [pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    ids = {}  # of the added tokens: the package numbers those that the vocabulary lacks
    added = [(i, s) for i, s in enumerate(tokens)
             if types[i] in (CONTROL, USER) and (trusted or (types[i] == USER and not is_markup(s)))]
    for i, s in added:
        t.add_tokens([AddedToken(s, normalized=False)])
        ids[t.token_to_id(s)] = i
    return lambda texts: [[ids.get(i, i) for i in e.ids] for e in t.encode_batch(texts, add_special_tokens=False)]


def tiny_reference(trusted):
    with open(TINY, encoding="utf-8") as f:
        spec = json.load(f)
    if not trusted:
        spec["added_tokens"] = []
    t = Tokenizer.from_str(json.dumps(spec))
    return lambda texts: [e.ids for e in t.encode_batch(texts, add_special_tokens=False)]


def tiny_keys():
    with open(TINY, encoding="utf-8") as f:
        spec = json.load(f)
    added = {a["id"]: a["content"] for a in spec["added_tokens"]}
    tokens = {i: s for s, i in spec["model"]["vocab"].items()} | added
    merges = [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]
    return {"model": "gpt2", "pre": "qwen2", "tokens": [tokens[i] for i in range(len(tokens))],
            "token_type": [CONTROL if i in added else NORMAL for i in range(len(tokens))], "merges": merges}


# ---- texts ----

RANGES = [(0x20, 0x7F)] * 6 + [(0, 0x20), (0x80, 0x250), (0x300, 0x370), (0x370, 0x600), (0x600, 0x700),
          (0x900, 0xE00), (0x1680, 0x1681), (0x2000, 0x2070), (0x2070, 0x2200), (0x3000, 0x3100),
          (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0xD7B0, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000),
          (0x1F300, 0x1FB00), (0x20000, 0x32400), (0, 0xD800), (0xE000, 0x110000)]
ATOMS = ["'s", "'S", "'ll", "'LL", "'Ll", "'re", "'RE", "'ve", "'d", "'m", "'T", "'ſ", "ſ", "K", " ", "  ",
         "   ", "\t", "\n", "\n\n", "\r\n", " \n", "\n ", "\u00a0", "\u3000", "\u2028", "\x85", "\x1c", "0",
         "12", "123", "1234", "٣", "½", "Ⅷ", "²", "the", " the", "Hello", " World", "ab", "e\u0301", "नमस्ते",
         "日本", "한국", "😀", "👩‍👩‍👧", "...", "!?", "==", "--", "<|", "|>", "$", "+", "`", "_", "^", "(", ")",
         "http://", "\ufeff", "\u200b", "\ufffd", "\0"]


def random_text(rng, special):
    out = []
    for _ in range(rng.randrange(1, 13)):
        kind = rng.random()
        if kind < 0.6:
            out.append(rng.choice(ATOMS))
        elif kind < 0.66:
            token = rng.choice(special)
            out.append(token if rng.random() < 0.6 else token[:rng.randrange(len(token) + 1)])
        elif kind < 0.7:
            out.append(rng.choice(ATOMS) * rng.randrange(2, 40))
        else:
            low, high = rng.choice(RANGES)
            out += [chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 6))]
    return "".join(c for c in "".join(out) if not "\ud800" <= c < "\ue000")


def every_code_point():
    """Each behind a letter, behind a blank, before a digit: its class shows in the cuts. Of the planes
    that are empty or private, one in 251."""
    points = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000
              and (c < 0x32400 or 0xE0000 <= c < 0xE0200 or c % 251 == 0)]
    return ["".join(f"a{c} {c}1" for c in points[i:i + 128]) for i in range(0, len(points), 128)]


# ---- the comparison ----

def ours(path, texts, trusted):
    data = b"".join(struct.pack("<IB", len(b), trusted) + b for b in (t.encode() for t in texts))
    lines = subprocess.run([DRIVER, path], input=data, stdout=subprocess.PIPE, check=True).stdout.decode()
    return lines.split("\n")[:-1]


def compare(name, path, keys, references, n_texts, all_points):
    """Returns the numbers of equal and of different texts."""
    rng = random.Random(SEED)
    special = [t for t, k in zip(keys["tokens"], keys["token_type"]) if k in (CONTROL, USER)]
    random_texts = [random_text(rng, special) for _ in range(n_texts)]
    whole = len({b for b in keys["tokens"] if len(b) == 1}) >= 256
    same = different = 0
    for trusted in (0, 1):
        texts = random_texts + (every_code_point() if all_points and not trusted else [])
        if name == "tiny-dlm":  # its tokenizer normalizes to NFC first; dlm does not
            nfc = Tokenizer.from_file(TINY).normalizer
            texts = [nfc.normalize_str(t) for t in texts]
        wants, gots = references(trusted)(texts), ours(path, texts, trusted)
        if len(gots) != len(texts):
            sys.exit(f"tok_diff: {len(gots)} answers to {len(texts)} texts")
        for text, want, got in zip(texts, wants, gots):
            want = " ".join(map(str, want))
            ids, _, broken = got.partition(" !")  # the driver: decoded, it is another text
            if ids == want and not (broken and whole):
                same += 1
                continue
            different += 1
            if different <= 5:
                print(f"{name}, trusted {trusted}: {text[:80]!r}\n   want {want[:300]}\n   got  {got[:300]}")
    print(f"  {name}: {same} equal, {different} different")
    return same, different


def main():
    n_texts = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    os.makedirs("build", exist_ok=True)
    subprocess.run(["gcc", "-std=c11", "-D_GNU_SOURCE", "-O2", "tests/tok_driver.c", "-o", DRIVER, "-lpthread"],
                   check=True)
    write_gguf("build/tiny-vocab.gguf", tiny_keys())
    passed, failed = compare("tiny-dlm", "build/tiny-vocab.gguf", tiny_keys(), tiny_reference, 3 * n_texts, True)
    for name in ("gpt-2", "qwen2", "llama-bpe", "starcoder", "refact", "mpt", "falcon", "deepseek-coder"):
        keys = read_gguf(VOCABS % name)
        a, b = compare(name, VOCABS % name, keys, lambda trusted: reference(keys, trusted), n_texts,
                       name in ("starcoder", "falcon", "deepseek-coder"))
        passed, failed = passed + a, failed + b
    print(f"tok_diff: {passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())

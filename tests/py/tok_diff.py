#!/usr/bin/env python3
"""The tokenizer against the packages `tokenizers` (0.23.3) and `sentencepiece` (0.2.3), on random and
adversarial text.

    python3 tests/py/tok_diff.py [TEXTS-PER-VOCABULARY [SEED]]

For each vocabulary a reference is built from its tokens, its merges or scores and the published regular
expressions, and both sides encode the same texts: as a user's (special tokens are text) and as a
template's (special tokens are recognized). Each pre-tokenizer is compared by where it cuts, on texts
that need not be UTF-8; and what is brought to normalization form C, with Python's unicodedata.
tests/tok_driver.c is our side. The environment variable TEXTS sets the number as well.
"""
import json
import os
import random
import struct
import subprocess
import sys
import unicodedata

import sentencepiece
from _checkpoint import proto, read_gguf, sentencepiece_merges, sentencepiece_pieces
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers as pre

VOCABS = "../shared/vocab/ggml-vocab-%s.gguf"
TINY = "../shared/models/tiny-dlm/tokenizer.json"
DRIVER = "build/tok_driver"

# ---- GGUF: as much as a vocabulary needs ----

STRING, ARRAY, INT32, FLOAT32 = 8, 9, 5, 6


def read_keys(path):
    keys = read_gguf(path)[0]
    keys["architecture"] = keys.get("general.architecture")
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
        elif value and isinstance(value[0], float):
            out += struct.pack("<IIQ", ARRAY, FLOAT32, len(value)) + struct.pack(f"<{len(value)}f", *value)
        elif not value or isinstance(value[0], str):
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


CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]%s[\p{Ll}\p{Lm}\p{Lo}\p{M}]%s"
UPPER_LOWER = (CASED % ("*", "+") + "%s|" + CASED % ("+", "*") + r"%s|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
               r"\s*[\r\n]+|\s+(?!\S)|\s+")
CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SENTENCES = " ?[^(\\s|.,!?…。，、।۔،)]+"
LETTERS = ("A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ\u1f5f-"
           "\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭ"
           "Ꚁ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃")
DIGITS = split(r"\p{N}")  # its own Digits class is that of a newer Unicode

SPLITS = {
    "gpt-2": [split(GPT2)],
    "smollm": [DIGITS, split(GPT2)],
    "qwen2": [split(CL100K % "")],
    "qwen35": [split(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+"
                     r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")],
    "llama-bpe": [split(CL100K % "{1,3}")],
    "minicpm5": [split(r"\p{N}{1,3}"), split(CL100K % "+")],
    "tekken": [split(UPPER_LOWER % ("", "", ""))],
    "gpt-4o": [split(UPPER_LOWER % (CONTRACTION, CONTRACTION, "{1,3}"))],
    "bailingmoe": [split(r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|"
                         r"\s*[\r\n]|\s+(?!\S)|\s+")],
    "seed-coder": [split("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|"
                         "\\s*[\r\n]+|\\s+(?!\\S)|\\s+")],
    # Its own Punctuation class is that of an older Unicode; this is the expression for it.
    "falcon": [split(r"[\p{P}\$\+<=>\^~\|`]+"), split(GPT2), split("[0-9][0-9][0-9]")],
    "deepseek-llm": [split("[\r\n]"), split(r"\s?[%s]+" % LETTERS), split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
                     split(r"\s+$"), split("[一-龥ࠀ-一가-퟿]+"), DIGITS],
    "deepseek-coder": [split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"), DIGITS],
    "deepseek-v3": [split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"),
                    split("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?"
                          "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+")],
    "bloom": [split(SENTENCES)],
    "viking": [split(SENTENCES), DIGITS],
}
ROWS = {"mpt": "gpt-2", "starcoder": "smollm", "refact": "smollm"}
NFC = {"qwen2", "mpt"}
# What Unicode 10 to 16 added to normalization: the package has the tables of Unicode 9, dlm those of 16.
# Left out where the package normalizes; compare_nfc has what Python knows of it.
NEWER = """7FD 897-89F 8CA-8D3 9FE C3C D3B-D3C EBA 1715 1ABF-1ACE 1DF6-1DFA A82C 105C9 105E4 10D24-10D27
    10D69-10D6D 10EAB-10EAC 10EFD-10EFF 10F46-10F50 10F82-10F85 11070 1133B 11383 11385 1138E 11391 113C5
    113C7-113C8 113CE-113D0 1145E 11839-1183A 11938 1193D-1193E 11943 119E0 11A34 11A47 11A99 11D42 11D44-11D45
    11D97 11F41-11F42 16121-16128 1612F 16D68-16D6A 16FF0-16FF1 1E08F 1E130-1E136 1E2AE 1E2EC-1E2EF 1E4EC-1E4EF
    1E5EE-1E5EF"""
NEWER = {c: None for r in NEWER.split() for c in range(int(r.split("-")[0], 16), int(r.split("-")[-1], 16) + 1)}


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
    if keys["pre"] in NFC:
        t.normalizer = normalizers.NFC()
    t.pre_tokenizer = pre.Sequence(SPLITS[ROWS.get(keys["pre"], keys["pre"])] + [pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    ids = {}  # of the added tokens: the package numbers those that the vocabulary lacks
    added = [(i, s) for i, s in enumerate(tokens)
             if types[i] in (CONTROL, USER) and (trusted or (types[i] == USER and not is_markup(s)))]
    for i, s in added:
        t.add_tokens([AddedToken(s, normalized=False)])
        ids[t.token_to_id(s)] = i
    return lambda texts: [[ids.get(i, i) for i in e.ids] for e in t.encode_batch(texts, add_special_tokens=False)]


def pieces_reference(keys, trusted):
    """SentencePiece's vocabulary as transformers converts it: merges in the order of the scores."""
    tokens, types = keys["tokens"], keys["token_type"]
    vocab = {t: i for i, t in enumerate(tokens) if types[i] not in (CONTROL, USER) or t in ("<s>", "</s>")}
    merges = sentencepiece_merges(vocab, keys["scores"], types)
    t = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ids = {}
    for i, s in enumerate(tokens):
        if trusted and types[i] in (CONTROL, USER):
            strip = keys["architecture"] == "phi3" and s not in ("<unk>", "<s>", "<|endoftext|>")
            t.add_tokens([AddedToken(s, normalized=False, special=True, rstrip=strip)])
            ids[t.token_to_id(s)] = i
    return lambda texts: [[ids.get(i, i) for i in e.ids] for e in t.encode_batch(texts, add_special_tokens=False)]


def sentencepiece_reference(keys, _trusted):
    """The package itself, over a model file that is made of the vocabulary."""
    model = sentencepiece_pieces(keys["tokens"], keys["scores"], keys["token_type"])
    bpe, byte_fallback = proto(3, 2), proto(35, 1)
    model += proto(2, bpe + byte_fallback)
    identity, add_blank, keep_blanks, escape_blanks = proto(1, b"identity"), proto(3, 1), proto(4, 0), proto(5, 1)
    model += proto(3, identity + add_blank + keep_blanks + escape_blanks)
    return sentencepiece.SentencePieceProcessor(model_proto=model).encode


def tiny_reference(_keys, trusted):
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


def scrambled(rng, text):
    """Bytes that are the text, but for some."""
    b = bytearray(text.encode())
    for _ in range(rng.randrange(4) and len(b) // 6):
        at = rng.randrange(len(b))
        b[at:at + rng.randrange(2)] = rng.choice([b"", b"\x80", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xff",
                                                b"\xed\xa0\x80", bytes([rng.randrange(256)])])
    return bytes(b)


def marked_text(rng):
    """Letters with marks in any order and any form, as normalization meets them."""
    out = []
    for _ in range(rng.randrange(1, 12)):
        kind = rng.randrange(5)
        if kind == 0:
            out.append(unicodedata.normalize(rng.choice(["NFC", "NFD"]), chr(rng.choice(NORMALIZED))))
        elif kind == 1:
            out += [chr(rng.choice(MARKS)) for _ in range(rng.choice([1, 2, 3, 4, 40]))]
        elif kind == 2:
            out.append(chr(rng.choice([0x1100, 0x1112, 0xAC00, 0xAC01, 0xD7A3])))
            out += [chr(rng.choice([0x1160, 0x1161, 0x1175, 0x1176, 0x11A7, 0x11A8, 0x11C2, 0x11C3]))
                    for _ in range(rng.randrange(3))]
        elif kind == 3:
            out.append(rng.choice(ATOMS))
        else:
            out += rng.sample(unicodedata.normalize("NFD", chr(rng.choice(NORMALIZED))), 1)
    return "".join(out)


POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000 and unicodedata.category(chr(c)) != "Cn"]
NORMALIZED = [c for c in POINTS if unicodedata.normalize("NFD", chr(c)) != chr(c)]
MARKS = [c for c in POINTS if unicodedata.combining(chr(c))]


# ---- the comparison ----

def ours(arguments, texts, trusted=0):
    data = b"".join(struct.pack("<IB", len(b), trusted) + b for b in texts)
    lines = subprocess.run([DRIVER, *arguments], input=data, stdout=subprocess.PIPE, check=True).stdout.decode()
    lines = lines.split("\n")[:-1]
    if len(lines) != len(texts):
        sys.exit(f"tok_diff: {len(lines)} answers to {len(texts)} texts")
    return lines


def count(name, texts, wants, gots):
    """The numbers of equal and of different answers; the first different ones are shown."""
    wrong = [(t, w, g) for t, w, g in zip(texts, wants, gots) if w != g]
    for text, want, got in wrong[:5]:
        print(f"{name}: {text[:80]!r}\n   want {want[:300]}\n   got  {got[:300]}")
    return len(texts) - len(wrong), len(wrong)


def compare_words(rng, n_texts):
    """Where each pre-tokenizer cuts. A byte that is not UTF-8 counts as one U+FFFD."""
    same = different = 0
    for name, splits in SPLITS.items():
        texts = [scrambled(rng, random_text(rng, ["<|x|>"])) for _ in range(n_texts)]
        wants = []
        for text in texts:
            points = text.decode("utf-8", "surrogateescape")
            ends, at = [0], 0
            for c in points:
                at += 1 if "\udc80" <= c < "\udd00" else len(c.encode())
                ends.append(at)
            seen = "".join("\ufffd" if "\udc80" <= c < "\udd00" else c for c in points)
            words = pre.Sequence(splits).pre_tokenize_str(seen)
            wants.append(" ".join(str(ends[end]) for _, (_, end) in words))
        a, b = count("words of " + name, texts, wants, ours(["--words", name], texts))
        same, different = same + a, different + b
    print(f"  words: {same} equal, {different} different")
    return same, different


def compare_nfc(rng, n_texts):
    """A vocabulary of bytes: its ids are the normalized text. unicodedata may be of an older Unicode, so
    only what it knows is asked."""
    text_of_byte = [chr(b) if 0x20 < b < 0x7F or 0xA0 < b != 0xAD else None for b in range(256)]
    others = iter(range(256, 512))
    text_of_byte = [t or chr(next(others)) for t in text_of_byte]
    write_gguf("build/bytes-vocab.gguf", {"model": "gpt2", "pre": "gpt-2", "normalizer": "nfc",
                                          "tokens": text_of_byte, "merges": []})
    texts = [marked_text(rng) for _ in range(n_texts)] + [f"a{chr(c)}{unicodedata.normalize('NFD', chr(c))}b"
                                                          for c in NORMALIZED + MARKS]
    gots = [bytes(map(int, line.removesuffix(" !").split())).decode()
            for line in ours(["build/bytes-vocab.gguf"], [t.encode() for t in texts])]
    result = count("normalization", texts, [unicodedata.normalize("NFC", t) for t in texts], gots)
    print("  normalization: %d equal, %d different" % result)
    return result


def compare(name, path, keys, references, rng, n_texts, all_points):
    special = [t for t, k in zip(keys["tokens"], keys["token_type"]) if k in (CONTROL, USER)]
    random_texts = [random_text(rng, special) for _ in range(n_texts)]
    whole = len({b for b in keys["tokens"] if len(b) == 1}) >= 256 and keys["pre"] not in NFC
    same = different = 0
    for trusted in (0, 1) if references is not sentencepiece_reference else (0,):
        texts = random_texts + (every_code_point() if all_points and not trusted else [])
        if keys["pre"] in NFC:
            texts = [t.translate(NEWER) for t in texts]
        if keys["model"] == "llama":
            texts = [t.replace("\0", "") for t in texts]  # ends a text of the sentencepiece package
        wants = [" ".join(map(str, ids)) for ids in references(keys, trusted)(texts)]
        gots = ours([path], [t.encode() for t in texts], trusted)
        if not whole or (keys["model"] == "llama" and trusted):
            gots = [g.removesuffix(" !") for g in gots]  # the driver: decoded, it is another text
        if keys["model"] == "llama":
            gots = [g.removesuffix(" !") if "▁" in t else g for t, g in zip(texts, gots)]  # it is a blank
        a, b = count(f"{name}, trusted {trusted}", texts, wants, gots)
        same, different = same + a, different + b
    print(f"  {name}: {same} equal, {different} different")
    return same, different


def main():
    n_texts = int(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("TEXTS", 600))
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 20240
    rng = random.Random(seed)
    os.makedirs("build", exist_ok=True)
    subprocess.run(["gcc", "-std=c11", "-D_GNU_SOURCE", "-O2", "tests/tok_driver.c", "-o", DRIVER, "-lpthread"],
                   check=True)
    write_gguf("build/tiny-vocab.gguf", tiny_keys())
    results = [compare_words(rng, n_texts), compare_nfc(rng, n_texts),
               compare("tiny-dlm", "build/tiny-vocab.gguf", tiny_keys(), tiny_reference, rng, 3 * n_texts, True)]
    for name in ("gpt-2", "qwen2", "llama-bpe", "starcoder", "refact", "mpt", "falcon", "deepseek-coder",
                 "deepseek-llm", "llama-spm", "phi-3"):
        keys = read_keys(VOCABS % name)
        results.append(compare(name, VOCABS % name, keys,
                               reference if keys["model"] == "gpt2" else pieces_reference, rng, n_texts,
                               name in ("starcoder", "falcon", "deepseek-coder", "llama-spm")))
        if name == "llama-spm":
            results.append(compare("llama-spm and sentencepiece", VOCABS % name, keys, sentencepiece_reference,
                                   rng, n_texts, True))
    passed, failed = (sum(r[i] for r in results) for i in (0, 1))
    print(f"tok_diff: seed {seed}, {passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())

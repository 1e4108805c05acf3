#!/usr/bin/env python3
"""quantize.py - weights to blocks: the same bytes as the `gguf` package's quantizers, or no more error.

The plain types have to equal the package byte for byte, on random and on extreme blocks; a block whose
scale is beyond a 16-bit float, or that holds a NaN or an infinity, has to be refused, and no other. The
K types, which the package only reads, are held to the error of ggml's own quantizers.
"""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

from _dlm import Count
from _quant import quant, quant_types

SAME = "F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 TQ1_0 TQ2_0".split()
FLOATS = "F16 BF16".split()
# 16-bit scales at the beginning of a block; negative: at its end
SCALES = {"Q8_0": 1, "Q4_0": 1, "Q4_1": 2, "Q5_0": 1, "Q5_1": 2, "TQ1_0": -1, "TQ2_0": -1}
N = 1 << 17
SEED = 42

# sqrt(mean (x - x')^2 / mean x^2) of ggml's quantizers without an importance matrix, as ggml-python 0.0.45
# has them, on 2^20 values; a sample of an eighth is within 1 % of these. Ours may be 3 % worse.
GGML_ERROR = {
    "Q2_K": {"normal": 0.2967, "laplace": 0.3441, "uniform": 0.2330, "shifted": 0.1640},
    "Q4_K": {"normal": 0.07137, "laplace": 0.08466, "uniform": 0.05458, "shifted": 0.03945},
    "Q5_K": {"normal": 0.03613, "laplace": 0.04284, "uniform": 0.02760, "shifted": 0.01981},
    "Q6_K": {"normal": 0.01775, "laplace": 0.02166, "uniform": 0.01326, "shifted": 0.01495},
}
LEEWAY = 1.03
# of each: the codes, and how many times its 16-bit scale the largest weight may be
K_RANGES = {"Q2_K": (3, 15), "Q4_K": (15, 63), "Q5_K": (31, 63), "Q6_K": (31, 31 * 128)}


def random_blocks(rng, size):
    """[rows][size]: every distribution that a checkpoint may have, at magnitudes from 2^-40 to 2^20."""
    n = N // size
    kinds = [
        rng.standard_normal((n, size)),
        rng.laplace(size=(n, size)),
        rng.uniform(-1, 1, (n, size)),
        rng.integers(-1, 2, (n, size)),
        rng.integers(-32, 33, (n, size)) / 2,
        np.where(rng.uniform(size=(n, size)) < 0.05, rng.standard_normal((n, size)), 0.0),
    ]
    magnitudes = [2.0 ** rng.integers(-40, 21, (n, 1)) * rng.uniform(1, 2, (n, 1)) for _ in kinds]
    magnitudes[4][:] = 1
    return np.concatenate([k * m for k, m in zip(kinds, magnitudes)]).astype("<f4")


def tie_blocks(size):
    """Blocks whose codes fall exactly between two, for each number of steps that a type may have."""
    rows = []
    for top in (8, 15, 16, 31, 127, 1):
        ties = np.arange(-2 * top - 1, 2 * top + 2) / 2
        for begin in range(0, len(ties), size - 2):
            row = np.zeros(size)
            part = ties[begin : begin + size - 2]
            row[: len(part)], row[-2:] = part, (top, -top)
            rows += [row, -row, np.abs(row), row * 2.0**-20, row[::-1] * 3]
    return np.array(rows, "<f4")


def extreme_blocks(rng, size):
    """Zeros of both signs, one weight alone, equal weights, denormals, the edge of the 16-bit range."""
    tiny, least, huge = np.float32(1e-40), np.float32(1e-45), np.float32(3.4e38)
    powers = [2.0**k for k in (-149, -140, -127, -126, -30, -24, -14, 0, 15, 16, 20, 24, 60, 127)]
    values = [0.0, -0.0, 1.0, tiny, least, huge, 65504.0, 65519.9, 65520.0, *powers]
    edge = [65520.0 * k * (1 + d * 2.0**-23) for k in (1, 8, 15, 16, 31, 127) for d in (-2, -1, 0, 1)]
    rows = []
    for v in [*values, *edge]:
        alone = np.zeros(size)
        alone[rng.integers(size)] = v
        signs = v * rng.choice([-1, 1], size)
        rows += [alone, -alone, np.full(size, v), np.full(size, -v), signs, v * rng.uniform(-1, 1, size)]
    for v in (np.nan, np.inf, -np.inf):
        row = rng.standard_normal(size)
        row[rng.integers(size)] = v
        rows.append(row)
    return np.array(rows, "<f4")


def float_values(rng):
    """Every 16-bit float, the middle between each and the next, their neighbours, and any bits."""
    halves = np.arange(0x10000, dtype="<u2")
    rows = []
    for values in (halves.view("<f2").astype("<f4"), (halves.astype("<u4") << 16).view("<f4")):
        with np.errstate(all="ignore"):
            middle = ((values[:-1].astype("f8") + values[1:]) / 2).astype("<f4")
        for part in (values, middle):
            bits = part.view("<u4")
            rows += [bits, bits + 1, bits - 1]
    rows.append(rng.integers(0, 1 << 32, N, "<u4"))
    rows = np.concatenate(rows)
    return rows[: len(rows) // 256 * 256].view("<f4").reshape(-1, 256)


def refused_by_rule(kind, x, blocks):
    """Which blocks hold something that is not finite, in the weights or in the package's scales."""
    halves = blocks.copy().view("<u2").reshape(len(x), -1)
    if kind.name in FLOATS:
        scales, infinite = halves, 0x7F80 if kind.name == "BF16" else 0x7C00
    else:
        n, infinite = SCALES[kind.name], 0x7C00
        scales = halves[:, :n] if n > 0 else halves[:, n:]
    bad = ((scales & infinite) == infinite).any(axis=1)
    return bad | ~np.isfinite(x).all(axis=1)


def same_bytes(count, kind, x):
    """Which of two zeros is the smaller numpy leaves open, so that Q4_1 and Q5_1 see positive ones only."""
    size, n_bytes = GGML_QUANT_SIZES[kind]
    if kind.name in ("Q4_1", "Q5_1"):
        x = np.where(x == 0, np.float32(0), x)
    with np.errstate(all="ignore"):
        want = quantize(x, kind).view(np.uint8).reshape(-1, n_bytes)
    data, refused = quant("encode", kind.value, x)
    x = x.reshape(-1, size)
    got = np.frombuffer(data, np.uint8).reshape(len(x), n_bytes)
    rule = np.flatnonzero(refused_by_rule(kind, x, want))
    count.check(
        list(rule) == refused, f"{kind.name}: refused {refused[:9]}..., want {list(rule)[:9]}..."
    )
    differ = (got != want).any(axis=1)
    differ[rule] = False
    where = np.flatnonzero(differ)
    at = where[0] if where.size else 0
    count.check(
        where.size == 0,
        f"{kind.name}: {where.size} of {len(x)} blocks differ; the first: {list(x[at])}\n"
        f"{got[at].tobytes().hex()}, want {want[at].tobytes().hex()}",
    )
    equal = len(x) - len(rule) - where.size
    print(f"{kind.name}: {equal} blocks equal, {len(rule)} refused as they should")


def samples(rng):
    yield "normal", rng.standard_normal(N)
    yield "laplace", rng.laplace(size=N) * 0.02
    yield "uniform", rng.uniform(-1, 1, N) * 300
    yield "shifted", rng.standard_normal(N) + 1.5


def errors(count, kind):
    """The error on each distribution; and what becomes of extreme blocks."""
    size, n_bytes = GGML_QUANT_SIZES[kind]

    def back(x):
        data, refused = quant("encode", kind.value, x)
        blocks = np.frombuffer(data, np.uint8).reshape(-1, n_bytes)
        values, _ = quant("decode", kind.value, blocks)
        theirs = dequantize(blocks, kind).reshape(-1)
        ours = np.frombuffer(values, "<f4")
        count.check((ours == theirs).all(), f"{kind.name}: the package decodes it to other values")
        return ours, refused

    for name, x in samples(np.random.default_rng(SEED)):
        y, _ = back(x.astype("<f4"))
        error, ggml = np.sqrt(np.mean((y - x) ** 2) / np.mean(x**2)), GGML_ERROR[kind.name][name]
        count.check(error <= ggml * LEEWAY, f"{kind.name} {name}: error {error}, ggml {ggml}")
        print(f"{kind.name} {name}: error {error:.5f}, ggml {ggml}")
    x = np.concatenate([extreme_blocks(np.random.default_rng(SEED), size), tie_blocks(size)])
    y, refused = back(x)
    y = y.reshape(x.shape)
    with np.errstate(all="ignore"):
        top = np.abs(x).max(axis=1)
        off = np.abs(x - y).max(axis=1)
    refuse = np.zeros(len(x), bool)
    refuse[refused] = True
    codes, scales = K_RANGES[kind.name]
    for i in range(len(x)):
        label = f"{kind.name}: extreme block {i}, {top[i]} at most,"
        if refuse[i]:
            count.check(not top[i] < 0.9 * 65504 * scales, f"{label} is refused")
        else:  # half a step of a range from -top to top; and a step of the smallest 16-bit float
            count.check(off[i] <= top[i] * 2 / codes + 2.0**-24, f"{label} is off by {off[i]}")
    count.check(refuse[~np.isfinite(top)].all(), f"{kind.name}: a block with a NaN or infinity is accepted")


def main():
    count = Count()
    quant_types()
    for name in SAME:
        kind = GGMLQuantizationType[name]
        rng = np.random.default_rng(SEED)
        if name in FLOATS:
            same_bytes(count, kind, float_values(rng))
            continue
        size = GGML_QUANT_SIZES[kind][0]
        same_bytes(count, kind, random_blocks(rng, size))
        same_bytes(count, kind, np.concatenate([tie_blocks(size), extreme_blocks(rng, size)]))
    for name in GGML_ERROR:
        errors(count, GGMLQuantizationType[name])
    count.end()


if __name__ == "__main__":
    main()

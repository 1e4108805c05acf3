#!/usr/bin/env python3
"""dequant.py - every block format against the `gguf` package: the same bits for the same bytes.

Each type that both sides know is given random blocks and extreme ones: all bits clear or set, every
16-bit pattern that is special as a float, and scales that are zero, subnormal, huge or infinite.
NaNs count as equal, whatever their payload. tests/quant_driver.c is our side.
"""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from _dlm import Count
from _quant import quant, quant_types

TYPES = set(
    "F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS MXFP4 TQ1_0 TQ2_0".split()
)
# exact, or unknown to the package: tests/t_quant.c and tests/py/tl.py have these
ELSEWHERE = {"F32", "Q2_0", "I2_S", "TL1", "TL2"}
VALUES = 1 << 20  # of a type's random blocks
SEED = 42
# zeros, the smallest and largest subnormals, 1, the largest finite, infinity, NaN; then their negatives
SPECIAL = [0x0000, 0x0001, 0x03FF, 0x0400, 0x3C00, 0x7BFF, 0x7C00, 0x7C01, 0x7FFF]
SPECIAL += [0x8000 | x for x in SPECIAL]


def blocks_of(rng, n, size):
    """[rows][size] bytes: n random blocks, then extreme ones."""
    parts = [rng.integers(0, 256, (n, size), np.uint8)]
    parts += [np.full((1, size), byte, np.uint8) for byte in (0x00, 0x55, 0x7F, 0x80, 0xAA, 0xFF)]
    for pattern in SPECIAL:
        pair = np.array([pattern], "<u2").view(np.uint8)
        parts.append(np.resize(pair, (1, size)))
        for at in range(0, size - 1, 2):  # wherever a type keeps its scales, one lands there
            block = rng.integers(0, 256, (1, size), np.uint8)
            block[0, at : at + 2] = pair
            parts.append(block)
    return np.concatenate(parts)


def ours(kind, blocks):
    values, _ = quant("decode", kind.value, blocks)
    return np.frombuffer(values, "<f4")


def theirs(kind, blocks):
    with np.errstate(all="ignore"):
        return dequantize(blocks, kind).reshape(-1).astype("<f4")


def compare(count, kind, blocks):
    a, b = ours(kind, blocks), theirs(kind, blocks)
    if not count.check(a.shape == b.shape, f"{kind.name}: {a.size} values, want {b.size}"):
        return
    differ = (a.view(np.uint32) != b.view(np.uint32)) & ~(np.isnan(a) & np.isnan(b))
    where = np.flatnonzero(differ)
    at = where[0] if where.size else 0
    count.check(
        where.size == 0,
        f"{kind.name}: {where.size} of {a.size} values differ; value {at}: {a[at]!r}, want {b[at]!r}",
    )
    print(f"{kind.name}: {a.size - where.size} of {a.size} values equal")


def main():
    count = Count()
    rows = quant_types()
    names = {row[0] for row in rows}
    count.check(names == TYPES | ELSEWHERE, f"types: {sorted(names ^ (TYPES | ELSEWHERE))}")
    for name, value, block, size in rows:
        if name in ELSEWHERE:
            continue
        kind = GGMLQuantizationType(int(value))
        want = (kind.name, *GGML_QUANT_SIZES[kind])
        count.check(want == (name, int(block), int(size)), f"{name}: {block} {size}, want {want}")
        if int(block) == 1:
            blocks = np.arange(65536, dtype="<u2").view(np.uint8).reshape(-1, 2)
        else:
            blocks = blocks_of(np.random.default_rng(SEED), VALUES // int(block), int(size))
        compare(count, kind, blocks)
    count.end()


if __name__ == "__main__":
    main()

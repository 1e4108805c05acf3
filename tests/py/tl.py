#!/usr/bin/env python3
"""tl.py - the layouts that files do not record: TL1 and TL2 against a packing of their own, written from
the published layout with reshapes; every layout of I2_S through dlm convert.

Random ternary matrices are packed for every preset and for other configurations, and have to come back
through tests/quant_driver.c; the trained checkpoint, packed so, has to answer as it does in I2_S; and
every configuration that a file cannot have been made with has to be refused.
"""

import copy
import os
import struct
import subprocess
import tempfile
from types import SimpleNamespace

import numpy as np

from _dlm import ROOT, SHARED, Count, dlm
from _quant import DRIVER, quant_types

import mkgguf  # found through _dlm

# m, k, bm, bk, bmm: some of BitNet.cpp's presets
TL1 = [(3200, 3200, 320, 128, 64), (1536, 4096, 256, 128, 32), (1536, 1536, 128, 64, 64)]
TL2 = [(3200, 3200, 320, 96, 32), (1536, 1536, 128, 192, 32), (1024, 4096, 256, 96, 32)]
OTHER = {
    "TL1": [(64, 128, 64, 64, 16), (128, 256, 32, 256, 32), (192, 64, 64, 16, 64)],
    "TL2": [(64, 288, 32, 96, 32), (128, 512, 128, 96, 32), (64, 320, 64, 144, 32)],
}
SEED = 42


def tl1_bytes(codes, bm, bk, bmm):
    """codes: [m][k] of 0, 1, 2"""
    m, k = codes.shape
    by = 256 // bmm
    pairs = 3 * codes[:, 0::2] + codes[:, 1::2]
    grid = pairs.reshape(m // bm, bm // bmm, bmm // 16, 16, k // bk, bk // by, by // 4, 2)
    grid = grid.transpose(0, 4, 1, 5, 2, 6, 3, 7)
    return (grid[..., 0] << 4 | grid[..., 1]).astype(np.uint8).tobytes()


def swapped(rows):
    """[...][32] rows of a kernel, in quarters of 8: the second and the third change places"""
    return rows.reshape(*rows.shape[:-1], 4, 8)[..., [0, 2, 1, 3], :].reshape(rows.shape)


def tl2_bytes(codes, bm, bk):
    m, k = codes.shape
    n_pairs = k % bk
    threes = codes[:, : k - n_pairs].astype(np.int8) - 1
    values = 9 * threes[:, 0::3] + 3 * threes[:, 1::3] + threes[:, 2::3]
    tiles = (m // bm, bm // 32, 32, (k - n_pairs) // bk)
    nibbles = np.abs(values).reshape(*tiles, bk // 6, 2).transpose(0, 3, 1, 4, 5, 2)
    nibbles = swapped(nibbles)
    data = (nibbles[..., 0, :] << 4 | nibbles[..., 1, :]).astype(np.uint8).tobytes()
    signs = (values < 0).reshape(m // bm, bm // 32, 2, 16, tiles[3], bk // 24, 8)
    signs = signs.transpose(0, 4, 1, 5, 3, 6, 2).reshape(-1, 16)  # one word: 8 threes of two rows
    data += np.packbits(signs, axis=1).view(">u2").astype("<u2").tobytes()
    if n_pairs:
        last = codes[:, k - n_pairs :]
        pairs = 3 * last[:, 0::2] + last[:, 1::2]
        grid = pairs.reshape(m // bm, bm // 32, 32, n_pairs // 32, 8, 2).transpose(0, 3, 1, 4, 5, 2)
        grid = swapped(grid)
        data += (grid[..., 0, :] << 4 | grid[..., 1, :]).astype(np.uint8).tobytes()
    return data


def tensor_bytes(kind, codes, scale, bm, bk, bmm):
    m, k = codes.shape
    tail = struct.pack("<f28x", scale)
    if kind == "TL1":
        return tl1_bytes(codes, bm, bk, bmm) + tail
    size = (k - 256) * m // 3 * 5 // 8 + 256 * m // 2 * 4 // 8
    return tl2_bytes(codes, bm, bk).ljust(size + -size % 32, b"\0") + tail


def write_config(path, *rows):
    with open(path, "w", encoding="ascii") as f:
        for i, row in enumerate(rows):
            names = ("m", "k", "bm", "bk", "bmm")
            f.write(f"[Kernels_{i}]\n" + "".join(f"{n} = {v}\n" for n, v in zip(names, row)) + "\n")
    return path


def codes_of(kind, shape, data, config, step=1):
    """Every step-th row as the driver reads it, and what it has to say."""
    command = [DRIVER, kind, *map(str, shape), config, str(step)]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, shape[1]), done.stderr.decode()


def matrices(count, folder):
    rng = np.random.default_rng(SEED)
    for kind, presets in (("TL1", TL1), ("TL2", TL2)):
        for preset, rows in ((True, presets), (False, OTHER[kind])):
            for m, k, bm, bk, bmm in rows:
                codes = rng.integers(0, 3, (m, k), np.uint8)
                data = tensor_bytes(kind, codes, 0.5, bm, bk, bmm)
                label = f"{kind} {m} x {k} in {bm} x {bk}, {bmm}"
                path = write_config(f"{folder}/config.ini", (m, k, bm, bk, bmm))
                step = 61 if preset else 1
                got, why = codes_of(kind, (m, k), data, "-" if preset else path, step)
                count.check(np.array_equal(got, codes[::step]), f"{label}: {why}")


def refusals(count, folder):
    codes = np.ones((128, 512), np.uint8)
    tilings = {"TL1": (128, 64, 32), "TL2": (128, 96, 32)}
    data = {kind: tensor_bytes(kind, codes, 0.5, *tiling) for kind, tiling in tilings.items()}
    path = f"{folder}/config.ini"
    cases = [
        ("TL1", None, "presets has no kernel"),
        ("TL2", None, "presets has no kernel"),
        ("TL1", (128, 256, 128, 64, 32), "the one given has no kernel"),
        ("TL1", (128, 512, 96, 64, 32), "cannot have made"),
        ("TL1", (128, 512, 128, 96, 32), "cannot have made"),
        ("TL1", (128, 512, 128, 64, 48), "cannot have made"),
        ("TL1", (128, 512, 128, 4, 32), "cannot have made"),
        ("TL2", (128, 512, 128, 96, 64), "cannot have made"),
        ("TL2", (128, 512, 48, 96, 32), "cannot have made"),
        ("TL2", (128, 512, 128, 36, 32), "cannot have made"),
        ("TL2", (128, 512, 128, 168, 32), "cannot have made"),
    ]
    for kind, row, words in cases:
        config = write_config(path, row) if row else "-"
        _, why = codes_of(kind, codes.shape, data[kind], config)
        count.check(words in why, f"{kind} {row}: {why}")
    for kind in data:  # a byte less than it has to be
        row = (128, 512, 128, 64 if kind == "TL1" else 96, 32)
        short = data[kind][: (128 * 512 // 4 if kind == "TL1" else 128 * 108) + 31]
        _, why = codes_of(kind, codes.shape, short, write_config(path, row))
        count.check("cannot have made" in why, f"{kind} cut short: {why}")


def checkpoint_in(layout):
    """The trained checkpoint in I2_S, as an unwritten file."""
    args = SimpleNamespace(
        type="i2_s", i2s_layout=layout, embed_type="f16", scale="block", arch="bitnet-b1.58"
    )
    checkpoint, g = mkgguf.Checkpoint(SHARED), mkgguf.Gguf()
    mkgguf.put_model(g, "tl", checkpoint.config, args.arch, 0)
    mkgguf.put_diffusion(
        g, checkpoint.config["bd_size"], checkpoint.generation["small_block_length"], 0.9
    )
    mkgguf.put_tokenizer(g, checkpoint)
    mkgguf.put_tensors(g, checkpoint, args)
    return g


def model(g, kind, bm, bk, bmm):
    """The bytes of g, which is in sequential I2_S, in another type; and the rows of kernel_config.ini."""
    rows = set()
    for t in g.tensors:
        if t.kind != 36:
            continue
        (k, m), t.kind = t.ne, 38 if kind == "TL1" else 39
        packed = np.frombuffer(t.data, np.uint8, m * k // 4)
        codes = (packed[:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(m, k)
        (scale,) = struct.unpack_from("<f", t.data, m * k // 4)
        t.data = tensor_bytes(kind, codes, scale, bm, bk, bmm)
        rows.add((m, k, bm, bk, bmm))
    return g.pack(), sorted(rows)


def answers(count, folder):
    def ask(path, *more):
        return dlm("run", "-m", path, "-p", "What is 3 plus 4?", "--temp", "0", "-n", "64", *more)

    want = ask(os.path.join(ROOT, "build", "models", "tiny-i2_s.gguf"))
    count.check(want.returncode == 0 and want.stdout.strip(), want.stderr)
    sequential = checkpoint_in("seq")
    for kind, tiling in (("TL1", (128, 64, 32)), ("TL2", (128, 96, 32))):
        data, rows = model(copy.deepcopy(sequential), kind, *tiling)
        path, config = f"{folder}/{kind}.gguf", write_config(f"{folder}/{kind}.ini", *rows)
        with open(path, "wb") as f:
            f.write(data)
        got = ask(path, "--tl-config", config)
        count.check(got.stdout == want.stdout, f"{kind}: {got.stdout!r}, want {want.stdout!r} {got.stderr}")
        info = dlm("info", path, "--tl-config", config)
        count.check(info.returncode == 0 and kind in info.stdout, f"{kind}: {info.stdout} {info.stderr}")
        made = f"{folder}/{kind}-tq2.gguf"
        done = dlm("convert", path, "-o", made, "--type", "tq2_0", "--tl-config", config)
        count.check(done.returncode == 0 and ask(made).stdout == want.stdout, f"{kind}: {done.stderr}")
        for done in (ask(path), dlm("info", path), dlm("convert", path, "-o", made, "--type", "i2_s")):
            ok = done.returncode == 3 and "--tl-config" in done.stderr and path in done.stderr
            count.check(ok, f"{kind}: {done.returncode} {done.stderr}")
        missing = ask(path, "--tl-config", f"{folder}/missing.ini")
        count.check(missing.returncode == 1 and "missing.ini" in missing.stderr, missing.stderr)


def layouts(count, folder):
    made = [f"{folder}/{layout}-made.gguf" for layout in ("128", "64", "row4")]
    for path in made:
        layout = os.path.basename(path).split("-")[0]
        with open(f"{folder}/{layout}.gguf", "wb") as f:
            f.write(checkpoint_in(layout).pack())
        done = dlm("convert", f"{folder}/{layout}.gguf", "-o", path, "--type", "i2_s", "--i2s-layout", layout)
        count.check(done.returncode == 0, f"{layout}: {done.stderr}")
    for path in made[1:]:
        done = dlm("diff", made[0], path)
        count.check(done.returncode == 0, f"{path}: {done.stdout} {done.stderr}")


def main():
    count = Count()
    quant_types()
    with tempfile.TemporaryDirectory() as folder:
        matrices(count, folder)
        refusals(count, folder)
        answers(count, folder)
        layouts(count, folder)
    count.end()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""gguf_write.py - files of our writer against those of the `gguf` package: the same bytes.

The package writes files with keys of every type and tensors of every type that both know;
tests/gguf_driver.c copies them through our reader and our writer. The copies have to be equal byte for
byte, and the package's reader has to find in them what was put in.
"""

import os
import subprocess
import tempfile

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

from _dlm import ROOT, Count
from _quant import quant_types

DRIVER = os.path.join(ROOT, "build", "gguf_driver")
CFLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-ffp-contract=off"]
FILES = 20
SEED = 42
TEXTS = ["", "a", "h\u00e9llo", "\u6f22\u5b57", "\U0001f600", "x" * 5000, "line\nline", "{{ bos_token }}"]
BITS = {"INT8": 8, "INT16": 16, "INT32": 32, "INT64": 64}
NUMBERS = {name: (-(1 << n - 1), (1 << n - 1) - 1) for name, n in BITS.items()}
NUMBERS |= {"U" + name: (0, (1 << min(n, 63)) - 1) for name, n in BITS.items()}


def value_of(rng, kind):
    if kind.name in NUMBERS:
        low, high = NUMBERS[kind.name]
        return int(rng.choice([low, high, 0, int(rng.integers(low, high))]))
    if kind is GGUFValueType.BOOL:
        return bool(rng.integers(2))
    if kind is GGUFValueType.STRING:
        return TEXTS[rng.integers(len(TEXTS))]
    return float(np.float32(rng.standard_normal()))


def keys_of(rng):
    """[key, value, type, element type]"""
    scalars = [k for k in GGUFValueType if k is not GGUFValueType.ARRAY]
    keys = [[f"k.{k.name}.{i}", value_of(rng, k), k, None] for k in scalars for i in range(2)]
    for k in scalars:
        values = [value_of(rng, k) for _ in range(rng.integers(1, 300))]
        keys.append([f"a.{k.name}", values, GGUFValueType.ARRAY, k])
    rng.shuffle(keys)
    return keys


def tensors_of(rng, types):
    """[name, type, blocks as an array of bytes]"""
    tensors = []
    for i in range(rng.integers(1, 30)):
        kind = types[rng.integers(len(types))]
        size = GGML_QUANT_SIZES[kind][1]
        shape = [int(n) for n in rng.integers(1, 5, rng.integers(1, 5))]
        shape[-1] *= size
        tensors.append([f"blk.{i}.{kind.name}.weight", kind, rng.integers(0, 256, shape, np.uint8)])
    return tensors


def write(path, keys, tensors):
    out = GGUFWriter(path, "test")
    for key, value, kind, elem in keys:
        out.add_key_value(key, value, kind, elem)
    for name, kind, data in tensors:
        out.add_tensor(name, data, raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def check_file(count, path, keys, tensors):
    found = GGUFReader(path)
    for key, value, _, _ in keys:
        count.check(found.get_field(key).contents() == value, f"{path}: {key}")
    count.check(len(found.tensors) == len(tensors), f"{path}: {len(found.tensors)} tensors")
    for tensor, (name, kind, data) in zip(found.tensors, tensors):
        same = tensor.data.tobytes() == data.tobytes()
        count.check(tensor.name == name and tensor.tensor_type == kind and same, f"{path}: {name}")


def main():
    count = Count()
    known = {k.name for k in GGMLQuantizationType}
    types = [GGMLQuantizationType[name] for name, *_ in quant_types() if name in known]
    source = os.path.join(ROOT, "tests", "gguf_driver.c")
    subprocess.run(["gcc", *CFLAGS, source, "-o", DRIVER, "-lpthread"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(SEED, SEED + FILES):
            rng = np.random.default_rng(seed)
            keys, tensors = keys_of(rng), tensors_of(rng, types)
            theirs, ours = (os.path.join(folder, name) for name in ("theirs.gguf", "ours.gguf"))
            write(theirs, keys, tensors)
            subprocess.run([DRIVER, theirs, ours], check=True)
            with open(theirs, "rb") as a, open(ours, "rb") as b:
                count.check(a.read() == b.read(), f"seed {seed}: the copy has other bytes")
            check_file(count, ours, keys, tensors)
    count.end()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""families.py - `dlm info` says what is special about the tiny model of each family, and each decodes
one token at a time; tests/t_families.c holds their numbers against PyTorch's."""

import json
import os

from _dlm import ROOT, Count, dlm

GOLDEN = os.path.join(ROOT, "tests", "golden")
# name: what `rotation` and `layers` of `dlm info --json` begin with or contain
SPECIAL = {
    "llama3": ("norm, base 500000, Llama 3's divisors", "silu, tied output"),
    "tinyllama": ("norm, base 10000", "silu"),
    "smollm2": ("norm, base 100000", "silu, tied output"),
    "smollm2-subln": (
        "norm",
        "SubLN before the output and down projections, sub-norm epsilon 0.01",
    ),
    "smollm2-subln-every": ("norm", "SubLN before every projection, sub-norm epsilon 0.01"),
    "smollm3": ("in all but one of every 4 layers", "silu"),
    "mistral": ("norm", "a window of 8 tokens"),
    "ministral": ("norm", "a window of 8 tokens in 2 of the layers"),
    "ministral3": ("YaRN by 4 beyond 16 tokens, queries grow beyond 16 tokens", "silu"),
    "qwen2": ("neox, base 1e+06", "q/k/v biases"),
    "qwen2-yarn": ("YaRN by 4 beyond 16 tokens", "q/k/v biases"),
    "qwen3": ("neox, base 1e+06", "q/k norms"),
    "phi3": (
        "12 of 16 dimensions, longrope in contexts beyond 16 tokens",
        "q, k and v in one matrix, gate and up in one matrix, a window of 24 tokens",
    ),
    "bitnet-b158": ("neox", "relu2, SubLN before the output and down projections"),
    "bitnet-25": ("neox", "relu2, SubLN before the output and down projections"),
    "bitnet": ("neox", "silu, SubLN before the output and down projections"),
    "falcon3-158": ("norm", "silu"),
    "subln-158": ("neox", "SubLN before every projection, sub-norm epsilon 0.01"),
    "dream": ("neox", "q/k/v biases"),
    "llada": ("norm, base 500000", "silu"),
    "fast-dllm": ("neox", "q/k/v biases"),
    "sdar": ("neox", "q/k norms"),
    "wedlm": ("neox", "q/k norms"),
}
AUTOREGRESSIVE = {"tinyllama", "smollm3", "ministral", "ministral3", "phi3", "falcon3-158"}


def main():
    t = Count()
    files = {f[7:-5] for f in os.listdir(GOLDEN) if f.startswith("family-")}
    t.check(files == SPECIAL.keys(), f"{files ^ SPECIAL.keys()} in one of two places only")
    for name, (rotation, layers) in SPECIAL.items():
        path = os.path.join(GOLDEN, f"family-{name}.gguf")
        model = json.loads(dlm("info", "-q", path, "--json").stdout)
        said = model["model"]
        t.check(rotation in said["rotation"] and layers in said["layers"], f"info {name}: {said}")
        text = dlm("info", "-q", path).stdout
        t.check(said["rotation"] in text and said["layers"] in text, f"info {name}: {text}")
        only = name in AUTOREGRESSIVE
        t.check(model["diffusion"]["can"] is not only, f"info {name}: {model['diffusion']}")
        t.check(("no, autoregressive only: " in text) == only, f"info {name}: {text}")
        args = ["run", "-q", "-m", path, "--raw", "-p", "abcd", "-n", "8", "--decode-mode", "ar"]
        done = dlm(*args)
        t.check(done.returncode == 0, f"run {name}: {done.stderr}")
        done = dlm(*args[:-2])
        t.check((done.returncode != 0) == only, f"run {name}: {done.stderr}")
    t.end()


if __name__ == "__main__":
    main()

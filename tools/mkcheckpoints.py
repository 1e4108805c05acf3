#!/usr/bin/env python3
"""mkcheckpoints.py - what transformers writes for the models of mkgolden.py: settings and names.

  build/torch/bin/python tools/mkcheckpoints.py tests/golden/checkpoints.json

For each family: its config.json as transformers saves it, and for each parameter the name that it has
there and in the family's GGUF. tests/e2e/convert.py makes checkpoints of these and of the weights in
tests/golden/family-*.gguf, so that no weight is stored twice.
"""

import json
import sys

import torch
import transformers

import mkgolden

# The classes of published checkpoints whose code is not part of transformers.
CLASSES = {
    "dream": "DreamModel",
    "llada": "LLaDAModelLM",
    "fast-dllm": "Fast_dLLM_QwenForCausalLM",
    "sdar": "SDARForCausalLM",
    "wedlm": "WeDLMForCausalLM",
    "bitnet": "BitnetForCausalLM",
    "subln-158": "BitnetForCausalLM",
}
BITLINEAR = {"quant_method": "bitnet", "linear_class": "bitlinear", "quantization_mode": "online"}


def settings(name, f, model):
    config = json.loads(model.config.to_json_string())
    config["architectures"] = [CLASSES.get(name, f["model"] + "ForCausalLM")]
    if f.get("mask", True):
        config["mask_token_id"] = mkgolden.MASK
    if name == "falcon3-158":
        config["quantization_config"] = BITLINEAR
    return config


def names(f, model):
    out = {}
    for full, _ in model.named_parameters():
        theirs, suffix = full.rsplit(".", 1)
        prefix = "model." if f["model"] == "Llada" else ""
        out[prefix + full] = f"{mkgolden.gguf_name(theirs, f.get('sub_norm'))}.{suffix}"
    return out


def main():
    families = []
    for name, f in mkgolden.FAMILIES.items():
        model = mkgolden.make_model(f, f.get("seed", 1))
        family = {"config": settings(name, f, model), "names": names(f, model)}
        families.append(f"{json.dumps(name)}: {json.dumps(family, separators=(',', ':'))}")
    versions = {m.__name__: m.__version__ for m in (torch, transformers)}
    head = json.dumps({"made_by": "tools/mkcheckpoints.py", "versions": versions})
    with open(sys.argv[1], "w", encoding="utf-8") as out:
        out.write(f'{head[:-1]}, "families": {{\n' + ",\n".join(families) + "\n}}\n")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""mktraces.py - what the published decoding loops reveal, step by step, on a tiny random model.

  python3 -m venv build/torch && build/torch/bin/pip install torch gguf
  build/torch/bin/python tools/mktraces.py tests/golden/family-qwen2.gguf tests/golden/traces.json

Each loop is written out below as its authors describe it, in PyTorch, at temperature 0: without a
cache where the loop has none or its cache changes nothing, with explicit keys and values where a
stale cache is part of the method (Fast-dLLM's dual cache). Three things differ from the published
code, as they do in dlm: the mask token is never predicted, confidence is always the plain softmax
probability, and random draws come from dlm's generator. Prompts whose answer holds a stop token
are passed over, so that every loop runs to its end.

Writes {"made_by", "versions", "model", "seed", "sets": [{
   "name", "convention", "rule", "block", "sub", "steps", "threshold", "cache", "cfg",   for dlm
   "max_tokens", "cases": [{"ids", "trace", "near"}]}]}
trace: the steps, each a list of [position, token, probability]; near: the first step that hangs on
a difference below NEAR, after which another rounding may go another way, or -1.
"""

import json
import sys

import gguf
import numpy as np
import torch

PROMPTS = 20
MAX_TOKENS = 24
NEAR = 1e-4
SEED = 7
INF = float("inf")


class Model:
    """Qwen2 in plain PyTorch, from a GGUF file; rows, positions and what they see are free."""

    def __init__(self, path):
        r = gguf.GGUFReader(path)
        wanted = ("qwen2", "tokenizer.ggml")
        key = {k: f.contents() for k, f in r.fields.items() if k.startswith(wanted)}
        self.w = {t.name: torch.tensor(np.array(t.data, dtype=np.float32)) for t in r.tensors}
        self.n_layer = key["qwen2.block_count"]
        self.n_head = key["qwen2.attention.head_count"]
        self.n_kv = key["qwen2.attention.head_count_kv"]
        self.dim = key["qwen2.attention.key_length"]
        self.eps = key["qwen2.attention.layer_norm_rms_epsilon"]
        self.theta = key["qwen2.rope.freq_base"]
        self.mask = key["tokenizer.ggml.mask_token_id"]
        tokens = key["tokenizer.ggml.tokens"]
        self.stops = {tokens.index(t) for t in ("<|endoftext|>", "<|im_end|>")}
        self.n_vocab = len(self.w["token_embd.weight"])

    def norm(self, x, name):
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.w[name]

    def rotate(self, x, at):
        half = self.dim // 2
        freq = 1.0 / self.theta ** (torch.arange(half, dtype=torch.float32) / half)
        angle = at[:, None, None].float() * freq
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def forward(self, ids, at, sees, kv=None, cells=None):
        """Logits of the rows ids at positions at. sees [rows][cells]: bool. kv: keys and values to
        store the rows' own in, at cells, and to attend to; without them the rows see themselves."""
        n, w, at = len(ids), self.w, torch.tensor(at)
        x = w["token_embd.weight"][torch.tensor(ids)]
        hide = torch.where(torch.as_tensor(sees), 0.0, -INF)
        for i in range(self.n_layer):
            b = f"blk.{i}."
            h = self.norm(x, b + "attn_norm.weight")
            q, k, v = (
                (h @ w[f"{b}attn_{c}.weight"].T + w[f"{b}attn_{c}.bias"]).view(n, -1, self.dim)
                for c in "qkv"
            )
            q, k = self.rotate(q, at), self.rotate(k, at)
            if kv is not None:
                kv[i][0][cells], kv[i][1][cells] = k, v
                k, v = kv[i]
            k, v = (c.repeat_interleave(self.n_head // self.n_kv, 1) for c in (k, v))
            score = torch.einsum("qhd,khd->hqk", q, k) / self.dim**0.5 + hide
            h = torch.einsum("hqk,khd->qhd", score.softmax(-1), v).reshape(n, -1)
            x = x + h @ w[b + "attn_output.weight"].T
            h = self.norm(x, b + "ffn_norm.weight")
            g = torch.nn.functional.silu(h @ w[b + "ffn_gate.weight"].T)
            x = x + (g * (h @ w[b + "ffn_up.weight"].T)) @ w[b + "ffn_down.weight"].T
        return self.norm(x, "output_norm.weight") @ w["token_embd.weight"].T

    def cache(self, n):
        one = lambda: tuple(torch.zeros(n, self.n_kv, self.dim) for _ in "kv")
        return [one() for _ in range(self.n_layer)]


def uniform(pos, step):
    """dlm's draw in [0, 1) for a place of a step: splitmix64 of splitmix64 of the seed."""
    full = (1 << 64) - 1

    def mix(z):
        z = (z + 0x9E3779B97F4A7C15) & full
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & full
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & full
        return z ^ z >> 31

    return (mix(mix(SEED ^ 0x646963656469) ^ (pos << 32 | step)) >> 11) * 2.0**-53


class Run:
    """One answer: the tokens, which are masked, and the steps so far."""

    def __init__(self, model, prompt):
        self.m, self.x, self.masked = model, list(prompt), set()
        self.trace, self.near = [], -1

    def add_masks(self, n):
        self.masked |= set(range(len(self.x), len(self.x) + n))
        self.x += [self.m.mask] * n

    def full(self, sees=None):
        """Logits of the whole sequence; row i sees j where sees(i, j)."""
        n = len(self.x)
        grid = [[sees is None or sees(i, j) for j in range(n)] for i in range(n)]
        return self.m.forward(self.x, list(range(n)), grid)

    def guided(self, n_prompt, cfg):
        """The same with classifier-free guidance, against a forward whose prompt is all masks."""
        logits, seen = self.full(), self.x
        if cfg == 0:
            return logits
        self.x = [self.m.mask] * n_prompt + seen[n_prompt:]
        blind, self.x = self.full(), seen
        return blind + (cfg + 1) * (logits - blind)

    def guess(self, rows):
        """Of each row: token, probability, margin, entropy. rows: {position: logits}."""
        out = {}
        for pos, row in rows.items():
            row = row.clone()
            row[self.m.mask] = -INF
            p = row.softmax(-1)
            top = p.topk(2)
            out[pos] = (
                int(top.indices[0]),
                float(top.values[0]),
                float(top.values[0] - top.values[1]),
                float(-(p * torch.log(p + 1e-30)).sum()),
            )
        return out

    def is_near(self, *gaps):
        if self.near < 0 and any(abs(g) < NEAR for g in gaps):
            self.near = len(self.trace)

    def reveal(self, guesses, places):
        """One step of the trace."""
        places = sorted(places)
        if not places:
            return
        self.is_near(*(guesses[pos][2] for pos in places))
        self.trace.append([[pos, guesses[pos][0], round(guesses[pos][1], 5)] for pos in places])
        for pos in places:
            self.x[pos] = guesses[pos][0]
            self.masked.discard(pos)

    def top(self, scores, n):
        """The n places with the highest scores."""
        order = sorted(scores, key=lambda pos: (-scores[pos], pos))
        if 0 < n < len(order):
            self.is_near(scores[order[n - 1]] - scores[order[n]])
        return order[:n]

    def above(self, scores, limit):
        self.is_near(*(s - limit for s in scores.values()))
        return [pos for pos in scores if scores[pos] > limit]

    def above_or_best(self, scores, limit):
        places = self.above(scores, limit)
        return places or self.top(scores, 1)


def probs(guesses):
    return {pos: g[1] for pos, g in guesses.items()}


def even(n, steps):
    return [n // steps + (k < n % steps) for k in range(steps)]


# ---- the loops ----


def fast_dllm_v2(model, prompt, block, sub, threshold, **_):
    """Blocks that see themselves and what is before; logits row i predicts i + 1; a finished
    block's forward gives the next block its first token."""
    run = Run(model, prompt)
    sees = lambda i, j: i // block >= j // block

    def first():
        guess = run.guess({len(run.x): run.full(sees)[-1]})
        run.x.append(model.mask)
        run.reveal(guess, guess)

    if len(run.x) % block == 0:
        first()
    while True:
        run.add_masks(-len(run.x) % block)
        for at in range(len(run.x) - block, len(run.x), sub):
            while todo := sorted(run.masked & set(range(at, at + sub))):
                logits = run.full(sees)
                guess = run.guess({pos: logits[pos - 1] for pos in todo})
                run.reveal(guess, run.above_or_best(probs(guess), threshold))
        if len(run.x) >= len(prompt) + MAX_TOKENS:
            return run
        first()


def fast_dllm_v2_dual(model, prompt, block, sub, threshold, **_):
    """The same with its block cache: once the block has been run, a sub-block whose first token is
    known is run alone, against what the cache holds of the rest of the block."""
    run, kv = Run(model, prompt), model.cache(len(prompt) + MAX_TOKENS + 2 * block)

    def forward(begin, end):
        cells, n = list(range(begin, end)), len(kv[0][0])
        sees = [[j < (i // block + 1) * block for j in range(n)] for i in cells]
        return model.forward(run.x[begin:end], cells, sees, kv, cells)

    def first(logits):
        guess = run.guess({len(run.x): logits[-1]})
        run.x.append(model.mask)
        run.reveal(guess, guess)

    start = len(run.x) // block * block
    if start:
        logits = forward(0, start)
        if start == len(run.x):
            first(logits)
    while True:
        run.add_masks(-len(run.x) % block)
        start, end, whole = len(run.x) - block, len(run.x), False
        for at in range(start, end, sub):
            while todo := sorted(run.masked & set(range(at, at + sub))):
                begin = at if whole and at not in run.masked else start
                logits = forward(begin, at + sub if begin == at and whole else end)
                whole = True
                guess = run.guess({pos: logits[pos - 1 - begin] for pos in todo})
                run.reveal(guess, run.above_or_best(probs(guess), threshold))
        if len(run.x) >= len(prompt) + MAX_TOKENS:
            return run
        first(forward(start, end))


def unified(model, prompt, block, threshold, **_):
    """A causal model whose logits row i predicts i + 1; blocks from the end of the prompt."""
    run = Run(model, prompt)
    while len(run.x) < len(prompt) + MAX_TOKENS:
        run.add_masks(block)
        while run.masked:
            logits = run.full(lambda i, j: j <= i)
            guess = run.guess({pos: logits[pos - 1] for pos in run.masked})
            run.reveal(guess, run.above_or_best(probs(guess), threshold))
    return run


def sdar(model, prompt, block, steps, threshold, rule, **_):
    """Blocks that see themselves and what is before, the prompt's tail in the first; no shift."""
    run = Run(model, prompt)
    while len(run.x) < len(prompt) + MAX_TOKENS:
        run.add_masks(block - len(run.x) % block)
        for n in even(block, steps):
            if not run.masked:
                break
            logits = run.full(lambda i, j: i // block >= j // block)
            guess = run.guess({pos: logits[pos] for pos in run.masked})
            if rule == "sequential":
                places = sorted(guess)[:n]
            elif rule == "low_confidence":
                places = run.top(probs(guess), n)
            else:
                places = run.above(probs(guess), threshold)
                if len(places) < n:
                    places = run.top(probs(guess), n)
            run.reveal(guess, places)
    return run


def llada(model, prompt, block, steps, threshold, rule, cfg, **_):
    """All see all; blocks of masks from left to right; no shift."""
    run = Run(model, prompt)
    run.add_masks(MAX_TOKENS)
    for at in range(len(prompt), len(run.x), block):
        counts = even(block, steps) if rule != "threshold" else [0] * block
        for step, n in enumerate(counts):
            todo = run.masked & set(range(at, at + block))
            if not todo:
                break
            logits = run.guided(len(prompt), cfg)
            guess = run.guess({pos: logits[pos] for pos in todo})
            if rule == "threshold":
                places = run.above_or_best(probs(guess), threshold)
            elif rule == "random":
                places = run.top({pos: 1 - uniform(pos, step) for pos in guess}, n)
            else:
                places = run.top(probs(guess), n)
            run.reveal(guess, places)
    return run


def llada_block(model, prompt, block, threshold, cfg, **_):
    """Fast-dLLM's dual cache: a block's first forward runs everything, and reveals; the later ones
    run the block alone, against what the first left of the rest. Guidance, which Fast-dLLM leaves
    out here, has a second cache."""
    run = Run(model, prompt)
    run.add_masks(MAX_TOKENS)
    n, kv, blind_kv = len(run.x), model.cache(len(run.x)), model.cache(len(run.x))
    for at in range(len(prompt), n, block):
        cells = list(range(n))
        while todo := sorted(run.masked & set(range(at, at + block))):
            all_seen = [[True] * n] * len(cells)
            logits = model.forward([run.x[i] for i in cells], cells, all_seen, kv, cells)
            if cfg:
                hidden = [model.mask if i < len(prompt) else run.x[i] for i in cells]
                blind = model.forward(hidden, cells, all_seen, blind_kv, cells)
                logits = blind + (cfg + 1) * (logits - blind)
            guess = run.guess({pos: logits[cells.index(pos)] for pos in todo})
            run.reveal(guess, run.above_or_best(probs(guess), threshold))
            cells = list(range(at, at + block))
    return run


def dream(model, prompt, steps, rule, cfg, **_):
    """All see all; logits row i predicts i + 1; time runs from 1 to eps, and a step from t to s
    reveals the share 1 - s/t of the masks."""
    run, eps = Run(model, prompt), 1e-3
    run.add_masks(MAX_TOKENS)
    times = torch.linspace(1, eps, steps + 1)
    for i in range(steps):
        if not run.masked:
            break
        logits = run.guided(len(prompt), cfg)
        guess = run.guess({pos: logits[pos - 1] for pos in run.masked})
        share = float(1 - times[i + 1] / times[i]) if i < steps - 1 else 1.0
        if rule == "origin":
            places = [pos for pos in guess if uniform(pos, i) < share]
        else:
            column = {"maskgit_plus": 1, "topk_margin": 2, "entropy": 3}[rule]
            sign = -1 if rule == "entropy" else 1
            scores = {pos: sign * g[column] for pos, g in guess.items()}
            places = run.top(scores, int(len(run.masked) * share))
        run.reveal(guess, places)
    return run


def dream_block(model, prompt, block, threshold, **_):
    """The same model in blocks (Fast-dLLM): a full forward fills the cache and gives the block's
    first token; the others come from forwards of the block alone."""
    run = Run(model, prompt)
    run.add_masks(MAX_TOKENS)
    n, kv = len(run.x), model.cache(len(run.x))
    for at in range(len(prompt), n, block):
        cells = list(range(n))
        logits = model.forward(run.x, cells, [[True] * n] * n, kv, cells)
        guess = run.guess({at: logits[at - 1]})
        run.reveal(guess, guess)
        cells = list(range(at, at + block))
        while todo := sorted(run.masked & set(cells)):
            all_seen = [[True] * n] * block
            logits = model.forward([run.x[i] for i in cells], cells, all_seen, kv, cells)
            guess = run.guess({pos: logits[pos - 1 - at] for pos in todo})
            run.reveal(guess, run.above_or_best(probs(guess), threshold))
    return run


def wedlm(model, prompt, block, threshold, **_):
    """A causal model; a window whose revealed tokens are run first and its masks last, each at its
    own position; no shift. What is revealed and follows the prompt without a gap leaves it."""
    run, price = Run(model, prompt), 0.02
    run.add_masks(MAX_TOKENS)
    while run.masked:
        first = min(run.masked)
        window = range(len(prompt), min(first + block, len(run.x)))
        known = list(range(len(prompt))) + [pos for pos in window if pos not in run.masked]
        todo = [pos for pos in window if pos in run.masked]
        order = known + todo
        causal = [[j <= i for j in range(len(order))] for i in range(len(order))]
        logits = model.forward([run.x[pos] for pos in order], order, causal)
        guess = run.guess({pos: logits[order.index(pos)] for pos in todo})
        cost = {pos: -(guess[pos][3] + price * (pos - first)) for pos in todo}
        run.reveal(guess, run.above_or_best(cost, -threshold))
    return run


SETS = [
    (fast_dllm_v2, "fast-dllm-v2", dict(rule="threshold", block=16, sub=4, threshold=0.3)),
    (
        fast_dllm_v2_dual,
        "fast-dllm-v2",
        dict(rule="threshold", block=16, sub=4, threshold=0.3, cache="dual"),
    ),
    (unified, "unified", dict(rule="threshold", block=12, threshold=0.3)),
    (sdar, "sdar", dict(rule="low_confidence_dynamic", block=4, steps=4, threshold=0.3)),
    (sdar, "sdar", dict(rule="low_confidence_dynamic", block=16, steps=5, threshold=0.35)),
    (sdar, "sdar", dict(rule="low_confidence", block=8, steps=3)),
    (sdar, "sdar", dict(rule="sequential", block=8, steps=4)),
    (llada, "llada", dict(rule="low_confidence", block=12, steps=5)),
    (llada, "llada", dict(rule="random", block=8, steps=4)),
    (llada, "llada", dict(rule="threshold", block=8, threshold=0.3)),
    (llada_block, "llada-block", dict(rule="threshold", block=8, threshold=0.3, cache="dual")),
    (dream, "dream", dict(rule="origin", steps=10)),
    (dream, "dream", dict(rule="maskgit_plus", steps=10)),
    (dream, "dream", dict(rule="topk_margin", steps=30)),
    (dream, "dream", dict(rule="entropy", steps=24)),
    (llada, "llada", dict(rule="low_confidence", block=12, steps=5, cfg=1.5)),
    (llada, "llada", dict(rule="threshold", block=8, threshold=0.3, cfg=0.5)),
    (
        llada_block,
        "llada-block",
        dict(rule="threshold", block=8, threshold=0.3, cache="dual", cfg=1),
    ),
    (dream, "dream", dict(rule="entropy", steps=12, cfg=2)),
    (dream_block, "dream-block", dict(rule="threshold", block=8, threshold=0.3, cache="dual")),
    (wedlm, "wedlm", dict(rule="entropy_bound", block=8, threshold=2.0)),
]


def make_set(model, loop, convention, options):
    o = dict(block=0, sub=0, steps=0, threshold=0, cache="none", cfg=0) | options
    if not o["sub"]:
        o["sub"] = o["block"]
    rng, cases, width = np.random.default_rng(SEED), [], []
    longest, count = (8, PROMPTS // 2) if o["cfg"] else (24, PROMPTS)  # two canvases, one context
    while len(cases) < count:
        prompt = [int(t) for t in rng.integers(0, min(model.stops), rng.integers(3, longest + 1))]
        run = loop(model, prompt, **o)
        if any(token in model.stops for step in run.trace for _, token, _ in step):
            continue
        cases.append({"ids": prompt, "trace": run.trace, "near": run.near})
        width += [len(step) for step in run.trace]
    tied = sum(c["near"] >= 0 for c in cases)
    mean = sum(width) / len(width)
    print(f"{convention} {o}: {len(width)} steps, {mean:.2f} a step, {tied} near")
    name = f"{convention} {o['rule']}"
    return {"name": name, "convention": convention} | o | {"max_tokens": MAX_TOKENS, "cases": cases}


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    model = Model(sys.argv[1])
    out = {
        "made_by": "tools/mktraces.py",
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "model": sys.argv[1],
        "seed": SEED,
        "sets": [make_set(model, *s) for s in SETS],
    }
    with open(sys.argv[2], "w", encoding="utf-8") as f:
        json.dump(out, f, separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()

#!/usr/bin/env python3
"""traces.py - compares what each denoising forward reveals with the PyTorch reference's traces.

For 24 prompts at thresholds 0.9 and 0.95: the prompt's ids, and for every forward the positions
and ids it reveals, in order. Without DualCache, without early stop and with f32 keys and values,
as the reference has them. At least 22 of 24 have to be equal, and one that is not may part only at
a near-tie: where a confidence is within 1e-3 of the threshold, of another candidate for the best
one, or of another token.
"""

import json
import os
import tempfile

from _dlm import SHARED, Count, answer, in_parallel, load

NEAR = 1e-3
EQUAL_MIN = 22


def run(case, threshold):
    """The prompt ids, output ids and trace of one case, in the golden's shape."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace")
        got = answer(
            case["question"],
            "--threshold",
            str(threshold),
            "--no-dual-cache",
            "--no-early-stop",
            "--kv-type",
            "f32",
            "--trace",
            path,
        )
        with open(path, encoding="utf-8") as f:
            steps = [json.loads(line) for line in f]
    trace = [sorted(zip(s["pos"], s["ids"], s["probs"])) for s in steps if s["kind"] == "denoise"]
    return got["prompt_ids"], got["ids"], trace


def near_tie(ours, theirs, threshold):
    """Do two versions of one forward differ only where a confidence is about as good as another?"""
    a, b = ({pos: (token, p) for pos, token, p in side} for side in (ours, theirs))
    for pos in a.keys() & b.keys():
        if a[pos][0] != b[pos][0] and abs(a[pos][1] - b[pos][1]) > NEAR:
            return False
    only = [a[pos][1] for pos in a.keys() - b.keys()] + [b[pos][1] for pos in b.keys() - a.keys()]
    if all(abs(p - threshold) <= NEAR for p in only):
        return True
    # Below the threshold only the best candidate is revealed: the two sides chose different ones.
    return len(a) == len(b) == 1 and max(only) - min(only) <= NEAR


def compare(count, case, got, threshold):
    """Is the trace equal? If not, it has to part from the golden at a near-tie."""
    label = f"{case['question']!r} at {threshold}"
    prompt_ids, ids, trace = got
    count.check(prompt_ids == case["prompt_ids"], f"{label}: prompt ids {prompt_ids}")
    wanted = [sorted(map(tuple, step)) for step in case["trace"]]
    bare = [[[r[:2] for r in step] for step in side] for side in (trace, wanted)]
    if bare[0] == bare[1] and ids == case["output_ids"] and len(trace) == case["forwards"]:
        return True
    at = next((i for i, (x, y) in enumerate(zip(*bare)) if x != y), None)
    if count.check(at is not None, f"{label}: {len(trace)} forwards, output {ids}"):
        tie = near_tie(trace[at], wanted[at], threshold)
        print(f"{label}: parts at forward {at} of {len(wanted)}:")
        print(f"  here {trace[at]}\n  reference {wanted[at]}")
        count.check(tie, f"{label}: parts without a near-tie")
    return False


def main():
    count = Count()
    for name in ("traces_t90.json", "traces_t95.json"):
        golden = load(f"{SHARED}/golden/{name}")
        cases, threshold = golden["cases"], golden["threshold"]
        results = in_parallel(lambda case, t=threshold: run(case, t), cases)
        equal = sum(compare(count, case, got, threshold) for case, got in zip(cases, results))
        print(f"threshold {threshold}: {equal} of {len(cases)} traces equal")
        count.check(equal >= EQUAL_MIN, f"fewer than {EQUAL_MIN} equal")
    count.end()


if __name__ == "__main__":
    main()

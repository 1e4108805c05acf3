#!/usr/bin/env python3
"""accuracy.py - asks the demo model its 300 questions and compares with the trained checkpoint's
evaluation.

  tests/py/accuracy.py [--all]

Exact match of the whole answer, the stop token included, and tokens per forward, for each task.
`story` has no single answer: it is not asked, and counts as wrong in the evaluation's percentages.
A mode passes when its percentage is within one point of EVAL.md's column for the training
distribution at threshold 0.9. --all adds the modes for which EVAL.md has no figure; they are
printed only.
"""

import sys
from collections import Counter

from _dlm import SHARED, Count, answer, in_parallel, load

EVAL_RIGHT = {"iterative": 218, "iterative --no-dual-cache": 218, "ar": 200}  # EVAL.md, of 300
OTHERS = ("iterative --cache masked", "greedy", "adaptive")


def ask(question, mode):
    got = answer(question["question"], "--threshold", "0.9", "--decode-mode", *mode.split())
    forwards = got["forwards"]  # the prefill too: it predicts the first token of ar
    return (
        question["task"],
        got["finish_reason"] == "stop" and got["text"] == question["answer"],
        got["usage"]["completion_tokens"],
        sum(forwards.values()),
    )


def run_mode(mode, questions):
    """Prints one mode's table and returns the number of right answers."""
    asked, right, tokens, forwards = Counter(), Counter(), Counter(), Counter()
    for task, ok, n_tokens, n_forwards in in_parallel(lambda q: ask(q, mode), questions):
        for key in (task, "all"):
            asked[key] += 1
            right[key] += ok
            tokens[key] += n_tokens
            forwards[key] += n_forwards
    print(f"\n{mode}\n{'task':8}{'right':>9}  tokens/forward")
    for key in sorted(asked, key=lambda k: (k == "all", k)):
        print(f"{key:8}{right[key]:>4}/{asked[key]:<4}  {tokens[key] / forwards[key]:.2f}")
    return right["all"]


def main():
    every = load(f"{SHARED}/questions.json")
    questions = [q for q in every if q["answer"] is not None]
    count = Count()
    for mode in [*EVAL_RIGHT, *(OTHERS if "--all" in sys.argv else ())]:
        right = run_mode(mode, questions)
        percent = 100 * right / len(every)
        if mode in EVAL_RIGHT:
            wanted = 100 * EVAL_RIGHT[mode] / len(every)
            print(f"{percent:.1f} % of all {len(every)}; the evaluation has {wanted:.1f} %")
            count.check(abs(percent - wanted) <= 1, f"{mode} is more than one point off")
    count.end()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""load.py - total throughput of `dlm serve` with 1, 4, 16 and 64 streams, and a queue that overflows.

Every answer is compared with what its seed says alone. tests/load_driver.c asks, because a client in
Python would take more of the processors than the server. Prints a table for each way to decode.
"""

import json
import statistics
import subprocess
import sys

from _run import Count
from _serve import Server

t = Count()
DRIVER = "build/load_driver"
STORY = "Tell me a story about a cat named Tom."
SEEDS = 64
STREAMS = {1: 64, 4: 128, 16: 256, 64: 256}  # and how many requests take about as long with each
# So many times the throughput of one stream have 16 together, at least, also on a busy machine of two cores.
# Many streams keep both busy to the end, which one does not; beyond that, rows of blocks fill the kernels'
# tiles already and gain nothing by company (SPEED.md).
GAINS = {"iterative": 0.9, "ar": 1.5}
ROUNDS = 9  # the streams take turns, and the median of each counts


class Answer:
    """A line of the driver's."""

    def __init__(self, line):
        seed, status, retries, first, took, tokens, self.text = line.split(" ", 6)
        self.seed, self.status, self.retries = int(seed), int(status), int(retries)
        self.first, self.took, self.tokens = float(first), float(took), int(tokens)


def ask(s, mode, streams, n, first=0):
    """n requests over so many streams, beginning with a seed: answers, seconds, the client's seconds."""
    bodies = [
        json.dumps(
            {
                "messages": [{"role": "user", "content": STORY}],
                "decode_mode": mode,
                "seed": (first + i) % SEEDS,
                "temperature": 0.8,
                "max_tokens": 96,
                "stream": True,
            }
        )
        for i in range(min(n, SEEDS))
    ]
    done = subprocess.run(
        [DRIVER, str(s.port), str(streams), str(n)],
        input="\n".join(bodies).encode(),
        capture_output=True,
        timeout=300,
        check=True,
    )
    *lines, last = done.stdout.decode().splitlines()
    seconds, own = map(float, last.split())
    answers = [Answer(line) for line in lines]
    for a in answers:
        a.seed = (first + a.seed) % SEEDS
    return answers, seconds, own


def compare(answers, n, alone, what):
    """Nothing lost, nothing mixed up."""
    t.check(len(answers) == n, f"{what}: {len(answers)} answers to {n} requests")
    for a in answers:
        t.check(
            a.status == 200 and a.text == alone[a.seed],
            f"{what}: seed {a.seed} is not itself: {a.status} {a.text[:80]}",
        )


def table(s, mode, alone):
    """Asks with every number of streams in turn; returns the throughputs."""
    seen, cpu, firsts = ({n: [] for n in STREAMS} for _ in range(3))
    for r in range(ROUNDS):
        for n, count in STREAMS.items():
            answers, took, own = ask(s, mode, n, count, r * 16)
            compare(answers, count, alone, f"{mode}, {n} streams")
            seen[n].append(sum(a.tokens for a in answers) / took)
            cpu[n].append(own / took)
            firsts[n] += [a.first for a in answers]
    rates = {n: statistics.median(seen[n]) for n in STREAMS}
    print(f"{mode}\nstreams  tok/s  of 1 stream    best  first token p50  p95 ms  client's CPU")
    for n in STREAMS:
        print(
            f"{n:7} {rates[n]:6.0f} {rates[n] / rates[1]:11.2f}x {max(seen[n]):7.0f} "
            f"{statistics.median(firsts[n]):16.1f} {statistics.quantiles(firsts[n], n=20)[18]:7.1f} "
            f"{statistics.median(cpu[n]):12.1%}"
        )
    return rates


def load(mode):
    with Server("-np", "16", "--queue", "64") as s:
        answers, _, _ = ask(s, mode, 1, SEEDS)
        alone = {a.seed: a.text for a in answers}
        t.check(len(set(alone.values())) > SEEDS / 2, "the seeds change nothing")
        compare(answers, SEEDS, alone, f"{mode}, alone")
        rates = table(s, mode, alone)
        gain = rates[16] / rates[1]
        t.check(gain >= GAINS[mode], f"{mode}: 16 streams are {gain:.2f} times as fast as one")
        t.check(s.metric("dlm_slots_busy") == 0, "a slot stays busy")
    with Server("-np", "4", "--queue", "8") as s:
        answers, seconds, _ = ask(s, mode, 64, SEEDS)
        compare(answers, SEEDS, alone, f"{mode}, a queue that is too short")
        refused = sum(a.retries for a in answers)
        t.check(refused > 0 and s.metric("dlm_slots_busy") == 0, f"{refused} refused")
        print(f"64 streams, 4 slots, queue of 8: {refused} times 429, all answered in {seconds:.1f} s")


def main():
    subprocess.run(
        ["gcc", "-std=c11", "-D_GNU_SOURCE", "-O2", "tests/load_driver.c", "-o", DRIVER, "-lpthread"],
        check=True,
    )
    for mode in sys.argv[1:] or GAINS:
        load(mode)
    t.end()


if __name__ == "__main__":
    main()

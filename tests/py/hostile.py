#!/usr/bin/env python3
"""hostile.py - every hostile file ends in one clear line and the right exit status.

The files come from tools/mkgguf.py --hostile; tests/hostile/MANIFEST says what dlm has to answer
to each.
"""

import os
import re

from _dlm import ROOT, Count, dlm, in_parallel
import mkgguf

FOLDER = os.path.join(ROOT, "build", "hostile")
MANIFEST = os.path.join(ROOT, "tests", "hostile", "MANIFEST")


def read_manifest():
    """Name -> (exit statuses, pattern)."""
    out = {}
    with open(MANIFEST, encoding="utf-8") as f:
        for line in f:
            if not line.startswith("#"):
                name, status, pattern = (line.rstrip("\n").split("\t") + [""])[:3]
                out[name] = {int(s) for s in status.split(",")}, pattern
    return out


def one_clean_line(text):
    return text.endswith("\n") and all(c.isprintable() for c in text[:-1])


def try_file(count, name, expected):
    """Runs and inspects one file."""
    path = os.path.join(FOLDER, name + ".gguf")
    statuses, pattern = expected
    for args in (
        ["run", "-q", "-m", path, "-p", "abcd", "-n", "8", "-s", "1"],
        ["info", "-q", path],
    ):
        done = dlm(*args)
        label = f"{args[0]} {name}: exit {done.returncode}, {done.stderr[:300]!r}"
        allowed = statuses if args[0] == "run" else statuses | {0}  # info describes what cannot run
        count.check(done.returncode in allowed, label)
        if done.returncode:
            count.check(one_clean_line(done.stderr), f"{label}: not one clean line")
            if (
                args[0] == "run"
            ):  # the file's own name says what is wrong with it: it does not count
                said = done.stderr.replace(path, "").replace(name, "")
                count.check(re.search(pattern, said, re.I), f"{label}: does not match {pattern!r}")
        elif args[0] == "run":
            count.check(done.stderr == "", f"{label}: says something on success")


def main():
    count = Count()
    mkgguf.write_hostile(FOLDER)
    manifest, files = read_manifest(), {name[:-5] for name in os.listdir(FOLDER)}
    for name in sorted(manifest.keys() ^ mkgguf.CRIMES.keys()):
        count.check(False, f"{name} is in one of MANIFEST and tools/mkgguf.py only")
    in_parallel(lambda item: try_file(count, *item), sorted(manifest.items()))
    count.check(manifest.keys() <= files, "a file of the MANIFEST is missing")
    count.end()


if __name__ == "__main__":
    main()

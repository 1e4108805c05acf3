"""_quant.py - tests/quant_driver.c, built once and run."""

import os
import subprocess

from _dlm import ROOT

DRIVER = os.path.join(ROOT, "build", "quant_driver")
CFLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-ffp-contract=off"]


def quant_types():
    """Builds the driver; the types it knows: [name, id, weights of a block, bytes of a block]."""
    os.makedirs(os.path.dirname(DRIVER), exist_ok=True)
    source = os.path.join(ROOT, "tests", "quant_driver.c")
    subprocess.run(["gcc", *CFLAGS, source, "-o", DRIVER, "-lpthread"], check=True)
    listed = subprocess.run([DRIVER], capture_output=True, check=True, text=True).stdout
    rows = [line.split() for line in listed.splitlines()]
    return [[name, *map(int, numbers)] for name, *numbers in rows]


def quant(verb, kind, data):
    """What the driver makes of an array: bytes, and the numbers of the blocks that it refused."""
    command = [DRIVER, verb, str(int(kind))]
    done = subprocess.run(command, input=data.tobytes(), capture_output=True, check=True)
    return done.stdout, [int(line.split()[0]) for line in done.stderr.splitlines()]

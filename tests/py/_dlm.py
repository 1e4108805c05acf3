"""_dlm.py - what the test scripts share: where things are, running dlm, counting."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DLM = os.path.join(ROOT, os.environ.get("DLM", "dlm"))
TINY = os.path.join(ROOT, "tests", "golden", "tiny-dlm.gguf")
SHARED = os.path.join(ROOT, "..", "shared", "models", "tiny-dlm")
JOBS = 2

sys.path.insert(0, os.path.join(ROOT, "tools"))


def load(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def dlm(*args, timeout=240):
    """Runs dlm; the result has returncode (negative: a signal), stdout and stderr as text."""
    return subprocess.run(
        [DLM, *args],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=timeout,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def answer(question, *args):
    """The JSON object of `dlm run` for one question, greedily."""
    done = dlm(
        "run", "-m", TINY, "-p", question, "-n", "128", "--temp", "0", "-t", "1", "--json", *args
    )
    if done.returncode != 0:
        command = " ".join(done.args)
        raise RuntimeError(f"{command}: exit {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def in_parallel(function, items):
    with ThreadPoolExecutor(JOBS) as pool:
        return list(pool.map(function, items))


class Count:
    def __init__(self):
        self.passed = self.failed = 0

    def check(self, ok, what):
        self.passed += bool(ok)
        self.failed += not ok
        if not ok:
            print(f"FAILED: {what}")
        return ok

    def end(self):
        print(f"{self.passed} passed, {self.failed} failed")
        sys.exit(self.failed != 0)

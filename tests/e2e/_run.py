"""_run.py - how the end-to-end scripts drive the program: with any stdin, and behind a terminal."""

import os
import pty
import select
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "py"))
from _dlm import DLM, ROOT, TINY, Count  # noqa: E402,F401 (for the scripts)

MODEL_LESS = {k: v for k, v in os.environ.items() if not k.startswith("DLM_") or k == "DLM_CPU"}


def run(*args, stdin=None, env=None, **more):
    """Runs dlm on bytes, with `stdin` piped in when it is given; returns the finished process."""
    feed = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    return subprocess.run(
        [DLM, *args],
        capture_output=True,
        timeout=120,
        check=False,
        env={**MODEL_LESS, **(env or {})},
        **feed,
        **more
    )


class Terminal:
    """dlm behind a pseudo-terminal: what a person sees and types."""

    def __init__(self, *args, env=None):
        self.seen = b""
        self.status = None
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(DLM, ["dlm", *args], {**MODEL_LESS, "TERM": "xterm", **(env or {})})

    def read(self, seconds=0.05):
        """What comes within `seconds`; False at the end."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # Linux: the other side has closed
            data = b""
        self.seen += data
        return bool(data)

    def wait_for(self, text, seconds=30):
        """Reads until `text` is seen, and drops what came before it. False when it never comes."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            if time.monotonic() > end or (not self.read() and text not in self.seen):
                return False
        self.seen = self.seen[self.seen.index(text) + len(text) :]
        return True

    def type(self, text):
        os.write(self.fd, text)

    def interrupt(self):
        os.kill(self.pid, signal.SIGINT)

    def end(self, seconds=30):
        """Waits for the exit status; kills a program that hangs (status -9)."""
        end = time.monotonic() + seconds
        while self.read() and time.monotonic() < end:
            pass
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                end += 5
            else:
                time.sleep(0.01)
        os.close(self.fd)
        return self.status

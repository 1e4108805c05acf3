#!/usr/bin/env python3
"""terminal.py - what a person at a terminal sees and types: pictures, a conversation, Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import tempfile
import time

from _run import DLM, MODEL_LESS, Count, Terminal, run

t = Count()
LONG = "Count from 1 to 9."
SLOW = [
    "--threshold",
    "2",
    "--watch",
    "--watch-ms",
    "100",
]  # seconds of pictures: time to interrupt


def after(term, *words):
    """Everything until the program ends, and its status."""
    for word in words:
        t.check(term.wait_for(word), f"the terminal never showed {word!r}: {term.seen[-300:]}")
    status = term.end()
    return status, term.seen


def test_watch():
    answer = run("-q", "-p", LONG).stdout.decode().strip()
    status, seen = after(Terminal("-p", LONG, "--watch", "--watch-ms", "0"))
    text = seen.decode()
    t.check(status == 0 and "\x1b[J" in text and "▒" in text and "\x1b[1;32m" in text, text[:300])
    t.check(
        text.split("\x1b[J")[-1].startswith(answer + "\r\n"),
        "the last picture gives way to the answer",
    )
    ups = [int(n) for n in re.findall(r"\x1b\[(\d+)A", text)]
    frames = text.split("demo model (-m names another)\r\n")[-1].split("\x1b[J")[:-1]
    t.check(
        len(ups) == len(frames) and all(f.count("\r\n") == n for f, n in zip(frames, ups)),
        "each picture is erased by as many lines as it has",
    )
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        text = after(Terminal("-p", LONG, "--watch", "--watch-ms", "0", env=env))[1].decode()
        t.check(not re.search(r"\x1b\[[\d;]*m", text) and "▒" in text, f"{env}: colour")
        t.check(("\x1b" in text) == ("NO_COLOR" in env), f"{env}: redrawing")
    forced = after(
        Terminal(
            "-p", LONG, "--watch", "--watch-ms", "0", "--color", "always", env={"NO_COLOR": "1"}
        )
    )[1]
    t.check(b"\x1b[32m" in forced, "--color always")
    never = after(Terminal("-p", LONG, "--watch", "--watch-ms", "0", "--color", "never"))[1]
    t.check(b"\x1b[32m" not in never, "--color never")
    piped = run("-p", LONG, "--watch")
    t.check(
        piped.stdout.decode().strip() == answer and b"\x1b" not in piped.stderr,
        "--watch without a terminal",
    )
    lines = [x for x in piped.stderr.decode().splitlines() if x.startswith("block ")]
    n = json.loads(run("-p", LONG, "--json").stdout)["forwards"]
    t.check(len(lines) == sum(n.values()), "a plain line for each forward")
    plain = after(Terminal("-p", LONG))[1].decode()
    t.check("\x1b" not in plain and answer + "\r\n" in plain, "without --watch nothing is drawn")


def test_interrupt_run():
    term = Terminal("-p", LONG, *SLOW)
    t.check(term.wait_for(b"denoise"), "it began")
    time.sleep(0.3)
    begun = time.monotonic()
    term.interrupt()
    status, seen = after(term)
    t.check(status == 130 and time.monotonic() - begun < 5, f"Ctrl-C: status {status}")
    t.check(b"tokens/forward" in seen, "what was done is still accounted for")
    term = Terminal("-p", LONG, *SLOW)
    term.wait_for(b"denoise")
    term.type(b"\x03")  # through the terminal, as a person does
    t.check(after(term)[0] == 130, "^C typed")
    term = Terminal("-p", "-")
    time.sleep(0.3)
    term.interrupt()
    t.check(after(term)[0] == 130, "Ctrl-C while the prompt is typed")
    ignored = subprocess.run(
        ["sh", "-c", f'trap "" INT; "{DLM}" -q -p "What is 2+2?" & p=$!; kill -INT $p; wait $p'],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=MODEL_LESS,
        check=False,
    )
    t.check(ignored.returncode == 0 and ignored.stdout, "an ignored SIGINT stays ignored")


def test_interrupt_json():
    """A cancelled answer is still one JSON object."""
    with tempfile.TemporaryDirectory() as d:
        fifo = os.path.join(
            d, "trace"
        )  # nobody reads it: the program waits in its first trace line
        os.mkfifo(fifo)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        child = subprocess.Popen(
            [DLM, "-p", LONG, "--threshold", "2", "--json", "--trace", fifo],
            env=MODEL_LESS,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        while not os.stat(fifo) or child.poll() is None:
            try:
                if os.read(reader, 1):
                    break
            except BlockingIOError:
                time.sleep(0.001)
        child.send_signal(signal.SIGINT)
        os.set_blocking(reader, True)
        out, _ = child.communicate(timeout=60)
        os.close(reader)
    o = json.loads(out)
    t.check(child.returncode in (0, 130), child.returncode)
    t.check((o["finish_reason"] == "cancelled") == (child.returncode == 130), o["finish_reason"])


def test_chat():
    term = Terminal("chat")
    t.check(term.wait_for(b"/help lists commands"), "a hint")
    t.check(term.wait_for(b"> "), "a prompt")
    term.type(b"What is 2+2?\n")
    t.check(
        term.wait_for(b"What is 2+2?\r\n") and term.wait_for(b"4") and term.wait_for(b"> "),
        "an answer",
    )
    term.type(b"/help\n")
    t.check(term.wait_for(b"/clear") and term.wait_for(b"> "), "/help")
    term.type(b"\x04")
    t.check(after(term)[0] == 0, "Ctrl-D leaves with 0")
    term = Terminal("chat")
    term.wait_for(b"> ")
    term.type(b"/quit\n")
    t.check(after(term)[0] == 0, "/quit leaves with 0")


def test_interrupt_chat():
    term = Terminal("chat", *SLOW)
    term.wait_for(b"> ")
    term.type(LONG.encode() + b"\n")
    t.check(term.wait_for(b"denoise"), "it began")
    time.sleep(0.2)
    term.interrupt()
    t.check(
        term.wait_for(b"stopped") and term.wait_for(b"> "), "Ctrl-C stops the answer and comes back"
    )
    term.type(b"/stats\n")
    t.check(term.wait_for(b"tokens/forward") and term.wait_for(b"> "), "the conversation goes on")
    term.interrupt()
    t.check(
        term.wait_for(b"again leaves") and term.wait_for(b"> "),
        "the first Ctrl-C at the prompt warns",
    )
    term.interrupt()
    t.check(after(term)[0] == 130, "the second leaves")
    term = Terminal("chat", *SLOW)
    term.wait_for(b"> ")
    term.type(LONG.encode() + b"\n")
    term.wait_for(b"denoise")
    term.interrupt()
    t.check(term.wait_for(b"stopped") and term.wait_for(b"> "), "stopped again")
    term.interrupt()
    t.check(after(term)[0] == 130, "a second Ctrl-C, at the prompt, leaves")
    term = Terminal("chat", *SLOW, "--watch-ms", "3000")
    term.wait_for(b"> ")
    term.type(LONG.encode() + b"\n")
    term.wait_for(b"denoise")
    term.interrupt()
    time.sleep(0.02)  # two at the same moment are one signal
    term.interrupt()
    t.check(after(term)[0] == 130, "two in a row leave")


def test_control_bytes():
    """A model cannot drive the terminal: an escape sequence it says is shown, not obeyed."""
    esc = run("tokenize", "\x1b[31m\x07").stdout.split()
    shown = after(Terminal("detokenize", *[i.decode() for i in esc]))[1]
    t.check(b"^[[31m^G" in shown and b"\x1b" not in shown, shown)
    t.check(
        run("detokenize", *[i.decode() for i in esc]).stdout == b"\x1b[31m\x07\n",
        "a pipe gets the bytes",
    )


for test in [f for name, f in sorted(globals().items()) if name.startswith("test_")]:
    test()
t.end()

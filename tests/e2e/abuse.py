#!/usr/bin/env python3
"""abuse.py - `dlm serve` under attack: good clients are served throughout, memory comes back.

DLM_ABUSE_S: seconds of random cancels (default 15). Everything stays on this machine.
"""

import json
import os
import random
import resource
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time

from _run import DLM, Count, run
from _serve import Server, read_all

t = Count()
SECONDS = float(os.environ.get("DLM_ABUSE_S", "15"))
QUESTION = "What is 2+2?"
STORY = "Tell me a story about a cat named Tom."
SLOW = {
    "threshold": 2,
    "dual_cache": False,
    "logit_bias": {"1020": -100, "1021": -100, "1022": -100},
}
CHECKED = os.path.basename(DLM) != "dlm"  # sanitizers keep what is freed for a while
FOLDER = tempfile.TemporaryDirectory()
CERT, KEY = os.path.join(FOLDER.name, "cert.pem"), os.path.join(FOLDER.name, "key.pem")


def request(body, key="none"):
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Authorization: Bearer {key}-{key}\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def chat(question, **more):
    return {"messages": [{"role": "user", "content": question}], **more}


class Good:
    """A client that goes on asking and wants the right answer each time."""

    def __init__(self, s):
        self.s, self.want = s, run("-q", "-p", QUESTION).stdout.decode().removesuffix("\n")
        self.served, self.failed, self.worst = 0, [], 0.0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.work)

    def work(self):
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                _, _, body = self.s.ask("POST", "/v1/chat/completions", chat(QUESTION))
                if body["choices"][0]["message"]["content"] != self.want:
                    self.failed.append(body)
            except Exception as e:  # pylint: disable=broad-except
                self.failed.append(repr(e))
            self.served += 1
            self.worst = max(self.worst, time.monotonic() - began)
            time.sleep(0.05)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def crowd(s, n, act):
    """n threads that each do act(s, random) once; what is thrown is expected."""

    def one(i):
        try:
            act(s, random.Random(i))
        except (OSError, ssl.SSLError):
            pass

    threads = [threading.Thread(target=one, args=(i,)) for i in range(n)]
    for x in threads:
        x.start()
    return threads


class Enemy:
    """The server as seen from another address."""

    def __init__(self, s):
        self.s, self.port, self.context = s, s.port, s.context

    def connect(self, timeout=20, tls=None):
        return self.s.connect(timeout, tls, "127.0.0.2")


def slowloris(s, _):
    """A head, a byte a second: closed when its time is over, however lively it looks."""
    began = time.monotonic()
    with s.connect(30) as c:
        for b in b"GET /health HTTP/1.1\r\nX: " + b"a" * 60:
            c.sendall(bytes([b]))
            time.sleep(0.5)
    t.check(False, f"a slow head was read for {time.monotonic() - began:.0f} s")


def slow_body(s, _):
    with s.connect(60) as c:
        c.sendall(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        for _ in range(120):
            c.sendall(b"a")
            time.sleep(0.5)
    t.check(False, "a slow body was read for a minute")


def half_open(s, rnd):
    """A part of a ClientHello, or of a record, and silence."""
    with s.connect(30, tls=False) as c:
        c.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[: rnd.randint(1, 11)])
        t.check(read_all(c)[:5].find(b"HTTP") < 0, "HTTP without a handshake")


def garbage(s, rnd):
    with s.connect(30, tls=rnd.random() < 0.5) as c:
        c.sendall(rnd.randbytes(rnd.choice((1, 100, 20000))))
        read_all(c)


def cancel(s, rnd, until):
    """Asks and leaves at any moment, for as long as it takes."""
    while time.monotonic() < until:
        try:
            stream = rnd.random() < 0.7
            more = {"stream_options": {"include_diffusion": True}} if stream else {}
            body = chat(
                STORY, stream=stream, seed=rnd.randint(0, 9), temperature=1, max_tokens=64, **more
            )
            c = s.connect(10)
            data = request(body, "cancels")
            c.sendall(data[: rnd.choice((len(data), len(data), rnd.randint(1, len(data))))])
            c.settimeout(rnd.choice((0.001, 0.02, 0.1, 1)))
            try:
                while rnd.random() < 0.9 and c.recv(rnd.choice((1, 1000, 65536))):
                    pass
            except socket.timeout:
                pass
            if rnd.random() < 0.3:  # with a reset instead of a goodbye
                c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            c.close()
        except (OSError, ssl.SSLError):
            pass


def slow_reader(s, _):
    """Asks for megabytes and reads none of them."""
    c = socket.socket()
    c.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    c.bind(("127.0.0.2", 0))
    c.connect(("127.0.0.1", s.port))
    with s.context().wrap_socket(c, server_hostname="localhost") as x:
        more = {"stream": True, "stream_options": {"include_diffusion": True}, "n": 2}
        x.sendall(request(chat(STORY, max_tokens=2000, **SLOW, **more), "slow"))
        time.sleep(25)


def settled(s, before, seconds=20):
    """Memory returns to within 2 % of where it was."""
    end = time.monotonic() + seconds
    while s.rss() > before * 1.02 and time.monotonic() < end:
        time.sleep(0.2)
    return s.rss()


def warm(s, slots):
    """Every worker has answered, and every slot's context has been full: its pages count from then on."""
    streams = [s.connect(source=f"127.0.0.{1 + i % 4}") for i in range(128)]
    for i, c in enumerate(streams):
        c.sendall(request(chat(STORY, max_tokens=8), f"warm{i % 8}"))
    for c in streams:
        read_all(c)
    for i in range(slots):  # each prompt is new, and takes the slot that has waited longest
        full = {"prompt": [10 + i] * 2040, "n_predict": 8, "logprobs": 5}
        t.check(s.ask("POST", "/v1/completions", full)[0] == 200, "a full context")


def assault(s):
    """Every kind of enemy at once, for SECONDS; the good client is served throughout."""
    with Good(s) as good:
        e = Enemy(s)
        threads = crowd(e, 40, slowloris) + crowd(e, 10, slow_body) + crowd(e, 20, half_open)
        threads += crowd(e, 4, slow_reader) + crowd(e, 100, garbage)
        until = time.monotonic() + SECONDS
        threads += crowd(e, 16, lambda s, r: cancel(s, r, until))
        for x in threads:
            x.join()
    t.check(
        not good.failed and good.served > 20, f"{good.served} served, not {good.failed[:3]}"
    )
    print(f"under attack: {good.served} good requests, the slowest {good.worst * 1e3:.0f} ms")
    end = time.monotonic() + 20
    while s.metric("dlm_slots_busy") and time.monotonic() < end:
        time.sleep(0.1)
    t.check(
        s.metric("dlm_slots_busy") == 0 and s.metric("dlm_queue_length") == 0, "left behind"
    )


def attack():
    args = ("-np", "8", "--queue", "200", "--max-per-address", "120", "--max-per-key", "4")
    keys = [k + "-" + k for k in ["good", "slow", "cancels"] + [f"warm{i}" for i in range(8)]]
    tls = ("--tls-cert", CERT, "--tls-key", KEY)
    with Server(*args, *tls, tls=CERT, env={"DLM_API_KEY": ",".join(keys)}) as s:
        s.key = {"Authorization": "Bearer good-good"}
        warm(s, 8)
        before = s.rss()
        assault(s)
        after = settled(s, before)
        print(f"memory: {before / 2**20:.2f} MiB before, {after / 2**20:.2f} MiB after")
        t.check(CHECKED or after <= before * 1.02, f"memory grew from {before} to {after}")
        t.check(s.stop() == 0, "exit status")


def in_turn():
    """10,000 connections one after another."""
    with Server("-np", "1") as s:
        ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        for i in range(500):
            s.raw(ask)
        before, began, good = s.rss(), time.monotonic(), 0
        for i in range(10000):
            good += s.raw(ask).endswith(b'{"status":"ok"}')
        print(f"10000 connections in turn: {time.monotonic() - began:.1f} s")
        t.check(good == 10000, f"{10000 - good} of 10000 failed")
        t.check(
            CHECKED or settled(s, before) <= before * 1.02,
            f"memory grew from {before} to {s.rss()}",
        )


def shortages():
    """No descriptors, and no room for the log."""
    with Server("-np", "2") as s:
        resource.prlimit(
            s.pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{s.pid}/fd")) + 6,) * 2
        )
        idle = []
        for _ in range(30):
            try:
                idle.append(s.connect(1))
            except OSError:
                pass
        time.sleep(0.5)
        t.check(s.wait_for("out of file descriptors"), "EMFILE is not told")
        for c in idle:
            c.close()
        t.check(s.ask("POST", "/v1/chat/completions", chat(QUESTION))[0] == 200, "after EMFILE")
        t.check(s.stop() == 0, "exit status")
    with open("/dev/full", "wb") as full:
        path = os.path.join(FOLDER.name, "s.sock")
        p = subprocess.Popen([DLM, "serve", "-np", "1", "--host", path], stderr=full)
        ok = False
        for _ in range(100):
            ok = ok or run("health", path).returncode == 0
            if not ok:
                time.sleep(0.05)
        t.check(ok, "a full disk for the log")
        p.terminate()
        t.check(p.wait(20) == 0, "exit status with a full disk")


def main():
    run("cert", "localhost", "127.0.0.1", "--tls-cert", CERT, "--tls-key", KEY)
    parts = in_turn, shortages, attack
    for part in parts if len(sys.argv) < 2 else [globals()[a] for a in sys.argv[1:]]:
        began = time.monotonic()
        part()
        print(f"{part.__name__}: {time.monotonic() - began:.1f} s", flush=True)
    t.end()


if __name__ == "__main__":
    main()

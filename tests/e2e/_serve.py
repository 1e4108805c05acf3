"""_serve.py - a `dlm serve` for the tests: starts it on a free port, speaks raw HTTP, stops it."""

import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import time

from _run import DLM, MODEL_LESS


class Server:
    """dlm serve with these options. Use as a context; .port is what it listens on."""

    def __init__(self, *args, env=None, tls=False, wrapper=(), wait=True, **more):
        self.args = args
        self.key = {}  # headers that .ask sends with every request
        self.tls = tls
        self.stderr = tempfile.TemporaryFile()  # a pipe's reader would take time from the server
        options = [] if "--port" in args else ["--port", "0"]
        self.process = subprocess.Popen(
            [*wrapper, DLM, "serve", *options, *args],
            stdin=subprocess.DEVNULL,
            stderr=self.stderr,
            env={**MODEL_LESS, **(env or {})},
            **more,
        )
        self.pid = self.process.pid
        self.port = None
        if wait:
            line = self.wait_for("serving ")
            if not line:
                raise RuntimeError(f"dlm serve did not start: {self.log}")
            found = re.search(r" at https?://\S*:(\d+):", line)
            self.port = found and int(found.group(1))

    @property
    def log(self):
        """What it wrote so far, line by line."""
        fd = self.stderr.fileno()  # whose place in the file is the server's too
        text = os.pread(fd, os.fstat(fd).st_size, 0)
        return text[: text.rfind(b"\n") + 1].decode("utf-8", "replace").splitlines()

    def wait_for(self, text, seconds=20):
        """Waits for a line of the log that has this text; returns it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ended = self.process.poll() is not None
            for line in self.log:
                if text in line:
                    return line
            if ended:
                break
            time.sleep(0.01)
        return None

    @property
    def url(self):
        return f"http{'s' if self.tls else ''}://localhost:{self.port}"

    def context(self):
        return ssl.create_default_context(cafile=self.tls)

    def connect(self, timeout=20, tls=None, source=""):
        """A raw connection, of another address of this machine when `source` is one."""
        s = socket.create_connection(("127.0.0.1", self.port), timeout, (source, 0))
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls if tls is None else tls:
            s = self.context().wrap_socket(s, server_hostname="localhost")
        return s

    def ask(self, method, path, body=None, headers=None, timeout=60):
        """One request on a connection of its own: status, headers, body (JSON where it is)."""
        c = http.client.HTTPConnection("localhost", self.port, timeout=timeout)
        if self.tls:
            c = http.client.HTTPSConnection(
                "localhost", self.port, timeout=timeout, context=self.context()
            )
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        c.request(
            method, path, body, {"Content-Type": "application/json", **self.key, **(headers or {})}
        )
        r = c.getresponse()
        data = r.read()
        c.close()
        if "json" in r.headers.get("Content-Type", ""):
            data = json.loads(data)
        return r.status, r.headers, data

    def raw(self, data, timeout=20):
        """Sends bytes and reads until the server closes."""
        with self.connect(timeout) as s:
            s.sendall(data)
            return read_all(s)

    def metric(self, name):
        """The sum of a metric's samples."""
        text = self.ask("GET", "/metrics")[2].decode()
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if re.match(re.escape(name) + r"[ {]", line)
        )

    def rss(self):
        with open(f"/proc/{self.pid}/statm", encoding="ascii") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def stop(self, seconds=20):
        """SIGTERM; the exit status."""
        if self.process.poll() is None:
            self.terminate()
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        if any("Sanitizer" in line for line in self.log):
            print("\n".join(self.log), flush=True)
            return -1
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.stop() == -1:
            raise RuntimeError("a sanitizer found something: see above")


def read_all(s):
    """Everything until the other side closes."""
    data = b""
    try:
        while True:
            piece = s.recv(65536)
            if not piece:
                return data
            data += piece
    except ConnectionResetError:
        return data


def events(data):
    """The events of a stream: (name or None, data) for each, comments left out."""
    found = []
    for block in data.decode().split("\n\n"):
        name, lines = None, []
        for line in block.split("\n"):
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                lines.append(line[6:])
        if lines:
            found.append((name, "\n".join(lines)))
    return found


def dechunk(data):
    """The body of a reply in chunks; None when it has no end."""
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        n = int(size, 16)
        if n == 0:
            return body
        body += data[:n]
        data = data[n + 2 :]
    return None

#!/usr/bin/env python3
"""proxies.py - nginx and HAProxy, with the files of tools/deploy as they are, before three replicas.

Under load one replica is killed and comes back, another is told to stop: no request may fail but those that
were in flight on the one that was killed, or under way to the one that stopped. All of it in namespaces of its own, with the proxies' real ports.
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import threading
import time

from _image import bind, isolate, loopback_up, make_certificate
from _run import ROOT, Count
from _serve import Server, events

t = Count()
KEY = "a-key-of-the-replicas"
NAME = "dlm.example"
PORTS = 8081, 8082, 8083
CLIENTS = 8
QUESTION, ANSWER = "What is 2+2?", "2 + 2 equals 4."
HEADERS = {"Host": NAME, "Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


def replica(port):
    args = ["--port", str(port), "--allowed-hosts", NAME, "-t", "1", "-q"]
    s = Server(*args, env={"DLM_API_KEY": KEY}, wait=False)
    s.port = port
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            s.connect().close()
            return s
        time.sleep(0.01)
    raise RuntimeError(f"no replica on port {port}: {s.log}")


def answered(s):
    """How many questions this replica has answered."""
    text = s.ask("GET", "/metrics", headers=HEADERS)[2].decode()
    lines = [ln for ln in text.splitlines() if ln.startswith("dlm_http_requests_total{")]
    return sum(float(ln.rsplit(" ", 1)[1]) for ln in lines if "/v1/chat/completions" in ln)


def open_connections(port):
    """Connections at this port that the kernel has for somebody."""
    with open("/proc/net/tcp", encoding="ascii") as f:
        rows = [line.split() for line in f.read().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


class Client:
    """Asks the proxy, each time on a connection of its own."""

    def __init__(self, context):
        self.context = context

    def ask(self, body, headers=None):
        """(status, body) of one question, or (None, what broke)."""
        c = http.client.HTTPSConnection("localhost", 443, timeout=15, context=self.context)
        try:
            path = "/v1/chat/completions"
            c.request("POST", path, json.dumps(body), {**HEADERS, **(headers or {})})
            reply = c.getresponse()
            return reply.status, reply.read()
        except (OSError, http.client.HTTPException) as e:
            return None, repr(e)
        finally:
            c.close()

    def wrong(self, i):
        """What is wrong with the answer to question i; None when all is well. Every other one is a stream."""
        body = {"messages": [{"role": "user", "content": QUESTION}], "stream": i % 2 == 1}
        status, data = self.ask(body)
        if status != 200:
            return f"{status}: {data}"
        if not body["stream"]:
            text = json.loads(data)["choices"][0]["message"]["content"]
        else:
            found = [d for _, d in events(data)]
            if not found or found[-1] != "[DONE]":
                return f"a stream without an end: {data}"
            deltas = [json.loads(d)["choices"][0]["delta"] for d in found[:-1]]
            text = "".join(delta.get("content", "") for delta in deltas)
        return None if text == ANSWER else text


class Load:
    """CLIENTS that ask on and on. Use as a context; then .done counts, .failures lists (begun, what)."""

    def __init__(self, client):
        self.client, self.done, self.failures = client, 0, []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.work, args=(i,)) for i in range(CLIENTS)]

    def work(self, i):
        while not self.over.is_set():
            begun = time.monotonic()
            wrong = self.client.wrong(i)
            if wrong:
                self.failures.append((begun, wrong))
            self.done += 1
            i += 1

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        time.sleep(0.3)
        return self

    def __exit__(self, *_):
        time.sleep(0.5)
        self.over.set()
        for thread in self.threads:
            thread.join(30)


def check_stream(client, name):
    """Words go out as they come in."""
    c = http.client.HTTPSConnection("localhost", 443, timeout=15, context=client.context)
    body = {"prompt": "Tell me a story.", "max_tokens": 1500, "stream": True, "threshold": 2}
    body["logit_bias"] = {"1020": -100, "1021": -100, "1022": -100}
    c.request("POST", "/v1/completions", json.dumps(body), HEADERS)
    reply = c.getresponse()
    at = [time.monotonic()]
    while reply.readline():
        at.append(time.monotonic())
    c.close()
    t.check(reply.status == 200 and len(at) > 100, f"{name}: {reply.status}, {len(at)} lines")
    before, total = at[1] - at[0], at[-1] - at[0]
    t.check(before < total / 3, f"{name}: nothing for {before:.3f} of {total:.3f} s")


def check_page(client, name):
    body = {"messages": [{"role": "user", "content": QUESTION}]}
    for origin, want in (f"https://{NAME}", 200), ("https://evil.example", 403):
        status, data = client.ask(body, {"Origin": origin})
        t.check(status == want, f"{name}: a page of {origin}: {status} {data}")
    t.check(client.ask(body, {"Host": "evil.example"})[0] == 421, f"{name}: another host's name")


def check_kill(client, name, replicas, proxy):
    with Load(client) as load:
        victim = replicas[1]
        os.kill(victim.pid, signal.SIGSTOP)
        time.sleep(0.1)
        os.killpg(proxy.pid, signal.SIGSTOP)  # nobody connects while we count
        time.sleep(0.1)
        in_flight = open_connections(PORTS[1])
        victim.process.kill()
        killed = time.monotonic()
        os.killpg(proxy.pid, signal.SIGCONT)
        victim.stop()
        time.sleep(1)
        replicas[1] = replica(PORTS[1])
        end = time.monotonic() + 6
        while answered(replicas[1]) == 0 and time.monotonic() < end:
            time.sleep(0.1)
        t.check(answered(replicas[1]) > 0, f"{name}: the new replica is not asked")
    late = [what for begun, what in load.failures if begun > killed]
    t.check(not late, f"{name}: {len(late)} failed after the replica was gone, such as {late[:2]}")
    failed = len(load.failures)
    t.check(0 < failed <= in_flight, f"{name}: {failed} failed, {in_flight} were in flight")
    t.check(load.done > 100, f"{name}: {load.done} questions are no load")
    print(f"{name}: {load.done} questions, {failed} failed of {in_flight} on the killed replica")


def check_stop(client, name, replicas):
    with Load(client) as load:
        told = time.monotonic()
        status = replicas[2].stop()
        time.sleep(0.5)
        replicas[2] = replica(PORTS[2])
    t.check(status == 0, f"{name}: a replica told to stop exits with {status}")
    late = [what for begun, what in load.failures if begun > told]
    t.check(not late, f"{name}: {len(late)} failed after a replica was told to stop: {late[:2]}")
    t.check(load.done > 100, f"{name}: {load.done} questions are no load")


def check_proxy(name, config, command, client, replicas):
    """The proxy with its file where its package looks for it."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as mounts:
        make_certificate(folder + "/tls", (0, 0))
        etc = os.path.join(folder, "tls")
        with open(etc + "/tls.pem", "wb") as pem:
            for part in "tls.crt", "tls.key":
                with open(os.path.join(etc, part), "rb") as f:
                    pem.write(f.read())
        shutil.copy(os.path.join(ROOT, "tools", "deploy", config), etc)
        mounts.enter_context(bind(etc, f"/etc/{name}"))
        client.context = ssl.create_default_context(cafile=etc + "/tls.crt")
        log = os.path.join(folder, "log")
        with open(log, "wb") as err:
            process = subprocess.Popen(command, stdout=err, stderr=err, start_new_session=True)
        try:
            end = time.monotonic() + 10
            while client.wrong(0) and process.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            if not t.check(process.poll() is None, f"{name} does not start: {open(log).read()}"):
                return
            check_stream(client, name)
            check_page(client, name)
            check_kill(client, name, replicas, process)
            check_stop(client, name, replicas)
        finally:
            process.terminate()
            process.wait(10)


def main():
    isolate((65532, 65532))
    loopback_up()
    with tempfile.TemporaryDirectory() as folder, bind(folder, "/run"):
        replicas = [replica(port) for port in PORTS]
        nginx = ["nginx", "-g", "daemon off;"]
        haproxy = ["haproxy", "-db", "-f", "/etc/haproxy/haproxy.cfg"]
        check_proxy("nginx", "nginx.conf", nginx, Client(None), replicas)
        check_proxy("haproxy", "haproxy.cfg", haproxy, Client(None), replicas)
        for s in replicas:
            t.check(s.stop() == 0, f"port {s.port}: exit status")
    t.end()


main()

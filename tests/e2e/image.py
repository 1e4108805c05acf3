#!/usr/bin/env python3
"""image.py - the container image, made from the Dockerfile's last stage and run with nothing but its files.

image.py [FOLDER]: the root file system is FOLDER instead, as an image builder made it.
"""

import json
import os
import signal
import ssl
import sys
import tempfile
import time
import urllib.request

from _image import Container, Image, isolate, loopback_up, make_certificate, read_only, stages
from _run import ROOT, Count

t = Count()
KEY = "a-key-of-the-image"
TLS = "/tls"  # where CMD looks for tls.crt and tls.key


def check_dockerfile(image):
    t.check(image.base == "scratch", f"FROM {image.base}")
    t.check([c[2] for c in image.copies] == ["/dlm"], f"the image holds {image.copies}")
    t.check(image.user == (65532, 65532), f"USER {image.user}")
    t.check(image.entrypoint == ["/dlm"], f"ENTRYPOINT {image.entrypoint}")
    t.check(image.ports == [int(image.env["DLM_PORT"])], f"EXPOSE {image.ports}")
    t.check(image.health[:2] == ["/dlm", "health"], f"HEALTHCHECK {image.health}")
    with open(os.path.join(ROOT, ".dockerignore"), encoding="utf-8") as f:
        sent = {line[1:].strip() for line in f if line.startswith("!")}
    copied = [word for name, rest in stages()[0] if name == "COPY" for word in rest.split()[:-1]]
    t.check(sent == set(copied), f".dockerignore lets {sent} through, COPY takes {copied}")
    for path in copied:
        t.check(os.path.exists(os.path.join(ROOT, path)), f"COPY {path}: there is none")


def request(context, path, body=None, key=KEY):
    url = f"https://127.0.0.1:{Image().ports[0]}{path}"
    ask = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    if body is not None:
        ask.data = json.dumps(body).encode()
        ask.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(ask, timeout=30, context=context) as reply:
        return reply.status, json.load(reply)


def wait_until_healthy(box, process):
    end = time.monotonic() + 10
    while time.monotonic() < end and process.poll() is None:
        status, _, err = box.run(box.image.health)
        if status == 0:
            return True
        time.sleep(0.05)
    return t.check(False, f"HEALTHCHECK never exits with 0: {err}")


def check_status(process, user):
    """What the kernel says of the server: its user, its process number inside, its filter."""
    with open(f"/proc/{process.pid}/status", encoding="ascii") as f:
        status = dict(line.split(":\t", 1) for line in f.read().splitlines())
    t.check(status["Uid"].split() == [str(user[0])] * 4, f"Uid {status['Uid']}")
    t.check(int(status["CapEff"], 16) == 0, f"CapEff {status['CapEff']}")
    t.check(status["NSpid"].split()[-1] == "1", f"NSpid {status['NSpid']}")
    t.check(status["Seccomp"] == "2", f"Seccomp {status['Seccomp']}")


def check_serving(box, context):
    box.boot()
    process = box.start([*box.image.entrypoint, *box.image.cmd], {"DLM_API_KEY": KEY})
    if wait_until_healthy(box, process):
        check_status(process, box.image.user)
        ask = {"model": "dlm", "messages": [{"role": "user", "content": "What is 2+2?"}]}
        status, answer = request(context, "/v1/chat/completions", ask)
        text = answer["choices"][0]["message"]["content"]
        t.check(status == 200 and text == "2 + 2 equals 4.", answer)
        t.check(request(context, "/readyz")[0] == 200, "/readyz")
        try:
            t.check(request(context, "/v1/models", key="wrong") is None, "a wrong key is taken")
        except urllib.error.HTTPError as e:
            t.check(e.code == 401, f"a wrong key: {e.code}")
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=40)
    t.check(process.returncode == 0, f"SIGTERM: exit {process.returncode}: {err.decode()}")
    t.check(out == b"" and b"stopped" in err, f"{out} {err}")


def check_container(box, context):
    image = box.image
    status, out, err = box.run([*image.entrypoint, "run", "-q", "-p", "What is 2+2?"])
    t.check((status, out, err) == (0, "2 + 2 equals 4.\n", ""), f"run: {status} {out} {err}")
    status, out, err = box.run([*image.entrypoint, *image.cmd])
    t.check(status == 2 and "key" in err, f"without a key: {status} {err}")
    status, _, err = box.run([*image.entrypoint, "cert", "localhost"])
    t.check(status == 1 and "Read-only" in err, f"the root can be written: {status} {err}")
    t.check(box.run(image.health)[0] == 1, "HEALTHCHECK without a server")
    check_serving(box, context)


def main():
    image = Image()
    check_dockerfile(image)
    isolate(image.user)
    loopback_up()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(folder, "root")
        if len(sys.argv) == 1:
            image.unpack(root)
        files = {os.path.join(at, name) for at, _, names in os.walk(root) for name in names}
        t.check(files == {root + c[2] for c in image.copies}, f"the image holds {files}")
        ca = make_certificate(root + TLS, image.user)
        with read_only(root):
            check_container(Container(image, root), ssl.create_default_context(cadata=ca))
    t.end()


main()

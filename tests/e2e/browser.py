#!/usr/bin/env python3
"""browser.py - the page in a real browser over TLS: a block unmasks in several looks, then there is text.

Drives Debian's chromium-headless-shell over the DevTools protocol. Screenshots stay in build/page-*.png
for a person to look at.
"""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time

from websockets.sync.client import connect

from _run import ROOT, Count, run
from _serve import Server

t = Count()
QUESTION = "Tell me a story about a cat named Tom."
CHROMIUM = next(
    (p for p in map(shutil.which, ("chromium-headless-shell", "chromium")) if p), "chromium"
)


class Browser:
    """One tab of a headless browser with a profile of its own."""

    def __init__(self):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--ignore-certificate-errors",
                "--remote-debugging-port=0",
                f"--user-data-dir={self.profile.name}",
                "about:blank",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
        )
        for line in self.process.stderr:
            found = re.search(r"DevTools listening on (ws://\S+)", line)
            if found:
                break
        else:
            raise RuntimeError("the browser does not start")
        self.opened = connect(found.group(1), max_size=None)
        self.socket = self.opened.__enter__()
        self.last = 0
        self.session = None
        self.faults = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in "Page", "Runtime", "Log", "Network":
            self.call(domain + ".enable")

    def note(self, message):
        """Whatever a person would see in red in the console."""
        params = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.faults.append(params["exceptionDetails"].get("text", "exception"))
        if message.get("method") == "Runtime.consoleAPICalled" and params["type"] in (
            "error",
            "warning",
        ):
            self.faults.append(str(params["args"]))
        if message.get("method") == "Log.entryAdded" and params["entry"]["level"] in (
            "error",
            "warning",
        ):
            self.faults.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    requests: list = []

    def call(self, method, **params):
        self.last += 1
        message = {"id": self.last, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.recv(timeout=60))
            if answer.get("id") == self.last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.note(answer)

    def js(self, expression):
        r = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in r:
            raise RuntimeError(f"{expression}: {r['exceptionDetails']}")
        return r["result"].get("value")

    def wait(self, expression, seconds=30):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.js(expression):
                return True
            time.sleep(0.02)
        return False

    def type(self, text):
        self.call("Input.insertText", text=text)

    def key(self, name, code):
        for kind in "keyDown", "keyUp":
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=name,
                code=name,
                windowsVirtualKeyCode=code,
                text="\r" if name == "Enter" and kind == "keyDown" else "",
            )

    def shot(self, name):
        path = os.path.join(ROOT, "build", f"page-{name}.png")
        data = self.call("Page.captureScreenshot", format="png")["data"]
        with open(path, "wb") as f:
            f.write(base64.b64decode(data))

    def look(self, width, height, dark):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )

    def close(self):
        self.opened.__exit__(None, None, None)
        os.killpg(self.process.pid, signal.SIGTERM)  # what was started is a script around it
        self.process.wait(10)
        self.process.stderr.close()
        self.profile.cleanup()


MASKED = "document.querySelectorAll('#log .answer:last-child .cell.masked').length"
TEXT = "document.querySelector('#log .answer:last-child .cells').textContent"
DONE = "!!document.querySelector('#log .answer:last-child[data-done]')"


def watch(b, question):
    """Asks by keyboard; how many masks were seen, look after look."""
    b.js("document.getElementById('prompt').focus()")
    b.type(question)
    b.key("Enter", 13)
    seen = []
    shot = False
    end = time.monotonic() + 60
    while time.monotonic() < end and not b.js(DONE):
        n = b.js(MASKED)
        if not seen or seen[-1] != n:
            seen.append(n)
        if not shot and n and len(seen) > 3:
            shot = b.shot("denoising") is None
        time.sleep(0.01)
    return seen


def main():
    with tempfile.TemporaryDirectory() as folder:
        cert, key = os.path.join(folder, "c.pem"), os.path.join(folder, "k.pem")
        run("cert", "localhost", "127.0.0.1", "--tls-cert", cert, "--tls-key", key)
        with Server("-np", "2", "--tls-cert", cert, "--tls-key", key, tls=cert) as s:
            b = Browser()
            try:
                drive(b, s)
            finally:
                b.close()
    t.end()


def drive(b, s):
    b.look(1100, 800, False)
    b.call("Page.navigate", url=s.url + "/")
    t.check(
        b.wait("document.querySelectorAll('#mode option').length > 1"), "the page does not load"
    )
    want = run("-q", "-p", QUESTION).stdout.decode().removesuffix("\n")
    seen = watch(b, QUESTION)
    t.check(b.js(DONE), "the answer does not end")
    drops = sum(a > b for a, b in zip(seen, seen[1:]))
    t.check(drops >= 3, f"masks went {seen}: no denoising to be seen")
    t.check(b.js(TEXT) == want, f"{b.js(TEXT)!r} is not {want!r}")
    t.check(
        "tokens per forward" in b.js("document.querySelector('.stats').textContent"),
        "no statistics",
    )
    t.check(
        b.js(
            "new Set([...document.querySelectorAll('.answer .cell.sure')].map("
            "c => c.style.getPropertyValue('--hue'))).size > 1"
        ),
        "confidence has no colour",
    )
    b.shot("light")
    b.js("document.getElementById('pace').value = 0")
    b.look(390, 844, True)
    b.js("document.getElementById('numbers').click()")
    watch(b, "What is 2+2?")
    t.check(b.js("document.querySelectorAll('.answer').length") == 2, "no second answer")
    t.check(b.js("document.documentElement.scrollWidth <= innerWidth"), "too wide for a phone")
    b.shot("phone-dark")
    b.js("document.getElementById('pace').value = 1000")
    b.js("document.getElementById('prompt').focus()")
    b.type(QUESTION)
    b.key("Enter", 13)
    b.wait("document.getElementById('go').textContent === 'Stop'")
    b.key("Escape", 27)
    t.check(b.wait("document.getElementById('go').textContent === 'Send'"), "Escape does not stop")
    t.check(not b.faults, f"the console says {b.faults}")
    outside = [u for u in b.requests if not u.startswith((s.url, "data:", "about:"))]
    t.check(not outside, f"asked elsewhere: {outside}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""deploy.py - tools/deploy by its schemas, and by running what the Kubernetes manifest and the unit start."""

import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from _image import Container, Image, isolate, loopback_up, make_certificate, read_only
from _run import ROOT, TINY, Count
from _serve import Server

HERE = os.path.dirname(os.path.abspath(__file__))
DEPLOY = os.path.join(ROOT, "tools", "deploy")
KEY = "a-key-of-the-cluster"
t = Count()


def tools():
    """Packages of this test alone, in a folder of their own."""
    wanted = os.path.join(HERE, "deploy-requirements.txt")
    folder = os.path.join(ROOT, "build", "deploy-py")
    ready = os.path.join(folder, "ready")
    if not os.path.exists(ready) or os.path.getmtime(ready) < os.path.getmtime(wanted):
        shutil.rmtree(folder, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", "--target", folder, "-r", wanted], check=True)
        with open(ready, "w", encoding="ascii"):
            pass
    sys.path.insert(0, folder)


def resources():
    """The manifest's objects by their kind, once the schemas of oldest and newest versions accept them."""
    import kubernetes_validate  # pylint: disable=import-outside-toplevel
    import yaml  # pylint: disable=import-outside-toplevel

    with open(os.path.join(DEPLOY, "kubernetes.yaml"), encoding="utf-8") as f:
        found = list(yaml.safe_load_all(f))
    for version in "1.30", kubernetes_validate.latest_version():
        for resource in found:
            try:
                kubernetes_validate.validate(resource, version, strict=True)
                t.check(True, version)
            except kubernetes_validate.ValidationError as e:
                t.check(False, f"{resource['kind']} in {version}: {e}")
    return {resource["kind"]: resource for resource in found}


def check_manifest(found, image):
    """What no schema knows: that names meet, and that the pod may do no more than it must."""
    deployment, service = found["Deployment"]["spec"], found["Service"]["spec"]
    pod = deployment["template"]["spec"]
    box = pod["containers"][0]
    labels = deployment["template"]["metadata"]["labels"]
    t.check(deployment["selector"]["matchLabels"] == service["selector"] == labels, labels)
    ports = {p["name"]: p["containerPort"] for p in box["ports"]}
    t.check(list(ports.values()) == image.ports, f"{ports}, the image has {image.ports}")
    t.check({p["targetPort"] for p in service["ports"]} <= set(ports), service["ports"])
    t.check({m["name"] for m in box["volumeMounts"]} == {v["name"] for v in pod["volumes"]}, box)
    user = pod["securityContext"]
    t.check((user["runAsUser"], user["runAsGroup"]) == image.user and user["runAsNonRoot"], user)
    t.check(box["securityContext"]["readOnlyRootFilesystem"], box["securityContext"])
    t.check(not pod["enableServiceLinks"], "DLM_PORT of a service would hide the image's")
    for probe, path in ("startup", "/livez"), ("liveness", "/livez"), ("readiness", "/readyz"):
        want = {"path": path, "port": "https", "scheme": "HTTPS"}
        t.check(box[probe + "Probe"]["httpGet"] == want, box[probe + "Probe"])
    return pod


def probe(context, url, key=None):
    ask = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(ask, timeout=10, context=context) as reply:
            return reply.status
    except urllib.error.HTTPError as e:
        return e.code
    except OSError:
        return None


def check_pod(pod, image, folder):
    """The pod's container, with its volumes filled, answers its own probes and ends when it is told to."""
    spec = pod["containers"][0]
    at = {m["name"]: folder + m["mountPath"] for m in spec["volumeMounts"]}
    image.unpack(folder)
    ca = make_certificate(at["tls"], image.user)
    env = {e["name"]: e.get("value", KEY) for e in spec["env"]}
    os.makedirs(at["models"])
    shutil.copy(TINY, folder + env["DLM_MODEL"])
    context = ssl.create_default_context(cadata=ca)
    url = f"https://127.0.0.1:{spec['ports'][0]['containerPort']}"
    with read_only(folder):
        process = Container(image, folder).start([*image.entrypoint, *spec["args"]], env)
        end = time.monotonic() + 10
        while time.monotonic() < end and process.poll() is None:
            if probe(context, url + spec["startupProbe"]["httpGet"]["path"]) == 200:
                break
            time.sleep(0.05)
        for name in "livenessProbe", "readinessProbe":
            t.check(probe(context, url + spec[name]["httpGet"]["path"]) == 200, name)
        t.check(probe(context, url + "/v1/models", KEY) == 200, "with the secret's key")
        t.check(probe(context, url + "/v1/models") == 401, "without a key")
        process.send_signal(signal.SIGTERM)
        err = process.communicate(timeout=40)[1].decode()
    t.check(process.returncode == 0, f"SIGTERM: exit {process.returncode}: {err}")


def check_unit(folder):
    """systemd takes every line of the unit, and dlm its command."""
    with open(os.path.join(DEPLOY, "dlm@.service"), encoding="utf-8") as f:
        text = f.read()
    path = os.path.join(folder, "dlm@8081.service")
    with open(path, "w", encoding="utf-8") as f:
        f.write(text.replace("/usr/local/bin/dlm", os.path.join(ROOT, "dlm")))
    verify = ["systemd-analyze", "verify", "--man=no", path]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    t.check(done.returncode == 0 and not done.stderr, f"systemd-analyze: {done.stderr}")
    keys = os.path.join(folder, "keys")
    with open(keys, "w", encoding="ascii") as f:
        f.write(KEY + "\n")
    os.chmod(keys, 0o600)
    command = re.search(r"^ExecStart=\S+ serve (.*)$", text, re.M).group(1)
    options = command.replace("%i", "8081").replace("$DLM_OPTIONS", "--allowed-hosts a.example")
    env = dict(re.findall(r"(DLM_\w+)=(\S+)", re.search(r"^Environment=.*$", text, re.M).group(0)))
    t.check(set(env) == {"DLM_MODEL", "DLM_API_KEY_FILE"}, env)
    env = {"DLM_MODEL": TINY, "DLM_API_KEY_FILE": keys}
    with Server(*options.split(), env=env) as s:
        for host, key, want in (
            ("a.example", KEY, 200),
            ("b.example", KEY, 421),
            ("a.example", "", 401),
        ):
            headers = {"Host": host, "Authorization": f"Bearer {key}"}
            got = s.ask("GET", "/v1/models", headers=headers)[0]
            t.check(got == want, f"Host {host}: {got}")
        t.check(s.stop() == 0, "the unit's exit status")


def main():
    tools()
    image = Image()
    pod = check_manifest(resources(), image)
    isolate(image.user)
    loopback_up()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        check_pod(pod, image, os.path.join(folder, "root"))
        check_unit(folder)
    t.end()


main()

#!/usr/bin/env python3
"""buildah.py - the last stage of the Dockerfile as buildah builds it: its configuration, and image.py on its files.

The first stage, which needs Alpine's registry, gives way to one that holds the ./dlm that is here.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

from _image import DOCKERFILE, Image
from _run import ROOT, Count

t = Count()


def derived():
    """The Dockerfile with another first stage, and its last one word for word."""
    with open(DOCKERFILE, encoding="utf-8") as f:
        text = f.read()
    made = next(source for _, source, target in Image().copies if target == "/dlm")
    return f"FROM scratch AS build\nCOPY dlm {made}\n\n" + text[text.rindex("\nFROM ") + 1 :]


def check_config(image, config):
    wanted = {
        "User": ":".join(map(str, image.user)),
        "ExposedPorts": {f"{port}/tcp": {} for port in image.ports},
        "Entrypoint": image.entrypoint,
        "Cmd": image.cmd,
    }
    for key, value in wanted.items():
        t.check(config[key] == value, f"{key} is {config[key]}, the test reads {value}")
    env = {f"{k}={v}" for k, v in image.env.items()}
    t.check(env <= set(config["Env"]), f"Env is {config['Env']}")
    t.check(config["Healthcheck"]["Test"] == ["CMD", *image.health], config["Healthcheck"])


def main():
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(BUILDAH_ISOLATION="chroot", STORAGE_DRIVER="vfs", XDG_RUNTIME_DIR=folder)
        storage = ["--root", folder + "/root", "--runroot", folder + "/run"]

        def buildah(*args):
            command = ["buildah", *storage, *args]
            return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

        shutil.copy(os.path.join(ROOT, "dlm"), folder)
        with open(os.path.join(folder, "Dockerfile"), "w", encoding="utf-8") as f:
            f.write(derived())
        buildah("bud", "--pull-never", "--format", "docker", "-t", "dlm", folder)
        docker = json.loads(buildah("inspect", "--type", "image", "dlm"))["Docker"]
        check_config(Image(), docker["config"])
        container = buildah("from", "--pull-never", "dlm").strip()
        answer = buildah("run", container, "--", "/dlm", "run", "-q", "-p", "What is 2+2?")
        t.check(answer == "2 + 2 equals 4.\n", f"buildah run: {answer}")
        image = os.path.join(ROOT, "tests", "e2e", "image.py")
        container = buildah("from", "--pull-never", "dlm").strip()  # one that has not run
        done = subprocess.run(
            [sys.executable, image, buildah("mount", container).strip()],
            capture_output=True,
            text=True,
            check=False,
        )
        t.check(done.returncode == 0, done.stdout + done.stderr)
        t.passed += int(re.search(r"(\d+) passed", done.stdout).group(1))
        buildah("umount", container)
    t.end()


main()

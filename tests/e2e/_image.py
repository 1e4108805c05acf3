"""_image.py - the image that the Dockerfile's last stage describes, and a container of it without an engine."""

import contextlib
import ctypes
import fcntl
import json
import os
import re
import shutil
import socket
import struct
import subprocess

from _run import DLM, ROOT

DOCKERFILE = os.path.join(ROOT, "Dockerfile")
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
)  # fmt: skip
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1, 2, 4, 32, 4096, 16384, 1 << 18
)  # fmt: skip
MNT_DETACH = 2
libc = ctypes.CDLL(None, use_errno=True)


def stages():
    """The stages of the Dockerfile: lists of (instruction, its words)."""
    with open(DOCKERFILE, encoding="utf-8") as f:
        text = re.sub(r"^#.*\n", "", f.read(), flags=re.M).replace("\\\n", " ")
    found = []
    for line in filter(str.strip, text.splitlines()):
        name, rest = line.split(None, 1)
        if name == "FROM":
            found.append([])
        found[-1].append((name, rest.strip()))
    return found


class Image:
    """What the last stage says. Anything but the instructions known here is an error."""

    def __init__(self):
        self.env, self.copies, self.health, self.user, self.base = {}, [], [], None, None
        self.entrypoint, self.cmd, self.ports = [], [], []
        for name, rest in stages()[-1]:
            if name == "FROM":
                self.base = rest
            elif name == "COPY":
                self.copies.append(re.fullmatch(r"--from=(\w+) (\S+) (/\S+)", rest).groups())
            elif name == "ENV":
                self.env.update(word.split("=", 1) for word in rest.split())
            elif name == "USER":
                self.user = tuple(int(n) for n in rest.split(":"))
            elif name == "EXPOSE":
                self.ports.append(int(rest))
            elif name == "HEALTHCHECK":
                self.health = json.loads(rest.split("CMD", 1)[1])
            elif name == "ENTRYPOINT":
                self.entrypoint = json.loads(rest)
            elif name == "CMD":
                self.cmd = json.loads(rest)
            else:
                raise ValueError(f"the last stage has {name}, which this test does not know")

    def unpack(self, root):
        """Its root file system; ./dlm stands in for what the first stage builds."""
        for _, source, target in self.copies:
            to = root + target
            os.makedirs(os.path.dirname(to), exist_ok=True)
            shutil.copy(os.path.join(ROOT, os.path.basename(source)), to)


def must(status):
    if status != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def isolate(user):
    """Namespaces of this process's own, with a network that is only loopback.

    Whoever is not root becomes `user` in a user namespace.
    """
    ids = os.getuid(), os.getgid()
    must(libc.unshare(NEWNS | NEWNET | NEWIPC | NEWUTS | (NEWUSER if ids[0] else 0)))
    if ids[0]:
        maps = {"setgroups": "deny"}
        maps.update(
            (f"{name}_map", f"{user[i]} {ids[i]} 1") for i, name in ((0, "uid"), (1, "gid"))
        )
        for name, text in maps.items():
            with open(f"/proc/self/{name}", "w", encoding="ascii") as f:
                f.write(text)
    must(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))


def loopback_up():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        SIOCSIFFLAGS, UP = 0x8914, 1
        fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", UP))


def make_certificate(folder, user):
    """tls.crt and tls.key in a new folder, for this machine; returns the certificate."""
    os.makedirs(folder)
    crt, key = os.path.join(folder, "tls.crt"), os.path.join(folder, "tls.key")
    made = [DLM, "cert", "localhost", "127.0.0.1", "--tls-cert", crt, "--tls-key", key]
    subprocess.run(made, check=True, capture_output=True)
    if os.getuid() == 0:
        os.chown(key, *user)
    with open(crt, encoding="ascii") as f:
        return f.read()


@contextlib.contextmanager
def bind(folder, at, flags=0):
    """`folder` in the place of `at`."""
    source, target = os.fsencode(folder), os.fsencode(at)
    must(libc.mount(source, target, None, MS_BIND, None))
    try:
        if flags:
            must(libc.mount(None, target, None, MS_REMOUNT | MS_BIND | flags, None))
        yield
    finally:
        must(libc.umount2(target, MNT_DETACH))


def read_only(root):
    """Nothing under `root` can be written inside."""
    return bind(root, root, MS_RDONLY | MS_NOSUID | MS_NODEV)


class Container:
    """Runs programs of the image at `root`; after boot() the next one is process 1 of its own."""

    def __init__(self, image, root):
        self.image, self.root = image, root

    def boot(self):
        must(libc.unshare(NEWPID))

    def enter(self):
        os.chroot(self.root)
        os.chdir("/")
        if os.getuid() == 0:
            os.setgroups([])
            os.setresgid(*[self.image.user[1]] * 3)
            os.setresuid(*[self.image.user[0]] * 3)

    def start(self, command, env=None):
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**self.image.env, **(env or {})},
            preexec_fn=self.enter,
        )

    def run(self, command, env=None):
        """(exit status, standard output, standard error)"""
        with self.start(command, env) as process:
            out, err = process.communicate(timeout=30)
        return process.returncode, out.decode(), err.decode()

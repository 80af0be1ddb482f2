"""How names are resolved in a network whose only name server does not answer."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evershell.features.webhooks.process import RESOLVER

# Starts a process that resolves a name, and then one that does so with the options of RESOLVER.
# Prints whether the second process has given up first.
_PROGRAM = """
import os, socket, subprocess, sys
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
subprocess.run(["mount", "--bind", sys.argv[1], "/etc/resolv.conf"], check=True)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
resolve = [sys.executable, "-c", "import socket; socket.getaddrinfo('silent.example', 443)"]
plain = {name: value for name, value in os.environ.items() if name != "RES_OPTIONS"}
usual = subprocess.Popen(resolve, env=plain, stderr=-3)
assert server.recv(512)
ours = subprocess.Popen(resolve, stderr=-3)
assert ours.wait() == 1
print(usual.poll() is None)
usual.kill()
usual.wait()
"""


def test_the_process_gives_up_sooner_than_others(tmp_path: Path) -> None:
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("needs unshare and ip")
    servers = tmp_path / "resolv.conf"
    servers.write_text("nameserver 127.0.0.1\n")
    network = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    probe = subprocess.run([*network, "true"], check=False)
    if probe.returncode:
        pytest.skip("needs user namespaces")
    program = [sys.executable, "-c", _PROGRAM, str(servers)]
    found = subprocess.run(
        [*network, *program], env={**os.environ, **RESOLVER}, check=True, capture_output=True
    )
    assert found.stdout == b"True\n"

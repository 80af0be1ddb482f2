"""`evershell edge --drain`."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx

from tests.support.ports import free_ports
from tests.support.waiting import eventually

LIMIT_SECONDS = 30


def edge(folder: Path, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "evershell.commands", "edge", *arguments],
        env={**os.environ, "TMPDIR": str(folder), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def get(url: str, **headers: str) -> httpx.Response:
    return httpx.get(url, headers=headers, trust_env=False, timeout=LIMIT_SECONDS)


def said_by(process: "subprocess.Popen[str]") -> str:
    """Waits until the command ends. Returns what it has printed."""
    try:
        return process.communicate(timeout=LIMIT_SECONDS)[0]
    finally:
        process.kill()


def test_a_drain_closes_each_connection_with_its_next_answer(tmp_path: Path) -> None:
    """The edge must be drained before it gets SIGTERM, because Envoy ends at once on SIGTERM."""
    rest_port, grpc_port, closed = free_ports(3)
    options = ("--admin-socket", str(tmp_path / "admin.sock"))
    process = edge(
        tmp_path,
        *options,
        f"127.0.0.1:{closed}",
        REST_PORT=str(rest_port),
        GRPC_PORT=str(grpc_port),
    )
    url = f"http://127.0.0.1:{rest_port}/healthz"
    try:
        with httpx.Client(trust_env=False, timeout=LIMIT_SECONDS) as client:

            def answer() -> httpx.Response | None:
                with suppress(httpx.TransportError):
                    return client.get(url)
                return None

            eventually(lambda: answer() is not None)
            assert "connection" not in client.get(url).headers
            began = time.monotonic()
            drain = edge(tmp_path, *options, "--drain", "2s")
            eventually(lambda: client.get(url).headers.get("connection") == "close")
        # The edge still answers on new connections.
        assert get(url).headers["connection"] == "close"
        said = said_by(drain)
        assert (drain.returncode, said) == (0, "")
        assert time.monotonic() - began > 2
        assert process.poll() is None
    finally:
        process.terminate()
        said_by(process)

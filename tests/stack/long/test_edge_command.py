"""`evershell edge`: Envoy in front of workers that are found by a name."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.support.ports import free_ports
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

LIMIT_SECONDS = 30


def edge(folder: Path, *options: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "evershell.commands", "edge", *options],
        env={**os.environ, "TMPDIR": str(folder), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def get(url: str, **headers: str) -> httpx.Response:
    return httpx.get(url, headers=headers, trust_env=False, timeout=LIMIT_SECONDS)


def said_by(process: "subprocess.Popen[str]") -> str:
    """What the command says until it ends."""
    try:
        return process.communicate(timeout=LIMIT_SECONDS)[0]
    finally:
        process.kill()


def test_it_serves_in_front_of_the_workers_behind_a_name(
    stack: Stack, workspace: Workspace, tmp_path: Path
) -> None:
    rest_port, grpc_port, metrics_port = free_ports(3)
    names = [each.replace("127.0.0.1", "localhost") for each in stack.worker_addresses()]
    process = edge(
        tmp_path,
        EDGE_WORKERS=", ".join(names),
        REST_PORT=str(rest_port),
        GRPC_PORT=str(grpc_port),
        METRICS_PORT=str(metrics_port),
    )
    try:
        url = f"http://127.0.0.1:{rest_port}"

        def answer() -> httpx.Response | None:
            try:
                found = get(
                    f"{url}/v1/workspaces/{workspace.id}",
                    authorization=f"Bearer {stack.tokens['full_access']}",
                )
            except httpx.TransportError:
                return None
            return found if found.status_code == 200 else None

        found = eventually(answer)
        assert found is not None and found.json()["id"] == workspace.id
        assert get(f"{url}/healthz").status_code == 200
        assert (
            "envoy_cluster_membership_healthy"
            in get(f"http://127.0.0.1:{metrics_port}/metrics").text
        )
    finally:
        process.terminate()
        said_by(process)


def test_a_drain_closes_each_connection_with_its_next_answer(tmp_path: Path) -> None:
    """It comes before SIGTERM, at which Envoy ends at once."""
    rest_port, grpc_port, closed = free_ports(3)
    options = ("--admin-socket", str(tmp_path / "admin.sock"))
    process = edge(
        tmp_path,
        *options,
        EDGE_WORKERS=f"127.0.0.1:{closed}",
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
        # It still answers on new connections.
        assert get(url).headers["connection"] == "close"
        said = said_by(drain)
        assert (drain.returncode, said) == (0, "")
        assert time.monotonic() - began > 2
        assert process.poll() is None
    finally:
        process.terminate()
        said_by(process)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--drain", "1s"], "--drain needs --admin-socket."),
        (
            ["--admin-socket", "none.sock", "--drain", "1s"],
            "Run it with `evershell edge --admin-socket none.sock`.",
        ),
    ],
)
def test_a_drain_without_an_envoy_fails(tmp_path: Path, options: list[str], problem: str) -> None:
    process = edge(tmp_path, *options)
    said = said_by(process)
    assert process.returncode != 0
    assert problem in said


def test_it_says_what_is_missing(tmp_path: Path) -> None:
    process = edge(tmp_path, EDGE_WORKERS="")
    said = said_by(process)
    assert process.returncode == 1
    assert "Set EDGE_WORKERS to host:port of the workers." in said


def test_it_says_what_is_wrong_with_the_collector(tmp_path: Path) -> None:
    process = edge(
        tmp_path, EDGE_WORKERS="127.0.0.1:1", OTEL_EXPORTER_OTLP_ENDPOINT="collector:4318"
    )
    said = said_by(process)
    assert process.returncode == 1
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is a URL of OTLP over HTTP" in said

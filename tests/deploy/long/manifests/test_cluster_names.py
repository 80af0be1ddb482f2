"""`.ci/cluster_names.py`, which takes the place of a cluster's DNS on the node of CI."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support.stack import ROOT
from tests.support.waiting import eventually

PROGRAM = ROOT / ".ci" / "cluster_names.py"
NAME = "workers.evershell.svc.cluster.local"


class ApiServer(ThreadingHTTPServer):
    """Answers with one headless Service and its addresses; with 503 while there are none."""

    addresses: tuple[str, ...] = ()

    def answer(self, kind: str) -> dict[str, Any]:
        metadata = {"name": "workers", "namespace": "evershell"}
        subsets = [{"addresses": [{"ip": each} for each in self.addresses]}]
        items = {
            "services": {"metadata": metadata, "spec": {"clusterIP": "None"}},
            "endpoints": {"metadata": metadata, "subsets": subsets},
        }
        return {"items": [items[kind]]}


class Handler(BaseHTTPRequestHandler):
    """A call to the API server."""

    def do_GET(self) -> None:
        assert isinstance(self.server, ApiServer)
        found = self.server.answer(self.path.rpartition("/")[2])
        self.send_response(200 if self.server.addresses else 503)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode())

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def api() -> Iterator[ApiServer]:
    server = ApiServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def dnsmasq() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that ignores SIGHUP, in its place."""
    command = ["/bin/sh", "-c", "trap '' HUP; echo ready; exec sleep 600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline()
            yield process
        finally:
            process.kill()


def test_the_names_follow_the_api_server_over_its_restart_until_dnsmasq_ends(
    api: ApiServer, dnsmasq: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    config = {
        "clusters": [{"cluster": {"server": f"http://127.0.0.1:{api.server_port}"}}],
        "users": [{"user": {"token": "test"}}],
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    names = tmp_path / "names"
    names.touch()
    program = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(names), str(dnsmasq.pid), "0"],
        env=os.environ | {"KUBECONFIG": str(tmp_path / "kubeconfig")},
    )
    calls = 0

    def count(kind: str, answer: Any = api.answer) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        found: dict[str, Any] = answer(kind)
        return found

    api.answer = count  # type: ignore[method-assign]
    try:
        # It starts before the API server does.
        eventually(lambda: calls > 1)
        api.addresses = ("10.0.0.1",)
        eventually(lambda: names.read_text() == f"10.0.0.1 {NAME}\n")
        before, api.addresses = calls, ()
        eventually(lambda: calls > before + 1)
        assert names.read_text() == f"10.0.0.1 {NAME}\n"
        api.addresses = ("10.0.0.1", "10.0.0.2")
        eventually(lambda: names.read_text() == f"10.0.0.1 {NAME}\n10.0.0.2 {NAME}\n")
        dnsmasq.kill()
        dnsmasq.wait()
        assert program.wait(10) == 0
    finally:
        program.kill()
        program.wait()

"""The example in docs/authentication.md: a stack with an external identity provider."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import grpc
import pytest

from tests.support.documents import blocks
from tests.support.stack import ROOT, Stack
from tests.support.waiting import eventually

DOCUMENT = (ROOT / "docs" / "authentication.md").read_text()
ISSUER = "https://login.acme.example"
# The time limit for a worker to find a new key. A worker looks for new keys at most every 10 s.
ROTATED_SECONDS = 40.0


class Provider:
    """The identity provider of the example.

    Runs the script of the example for each new key, and serves the keys.
    """

    def __init__(self, folder: Path) -> None:
        (self._script,) = [each.text for each in blocks(DOCUMENT) if each.title == "issue.py"]
        self._folder = folder
        handler = partial(_Handler, directory=str(folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/jwks.json"
        Thread(target=self._server.serve_forever).start()

    def issue(self, kid: str) -> str:
        """Publishes a new key in place of the old one. Returns a token that the new key signed."""
        script = self._script.replace("2026-01", kid)
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=self._folder, capture_output=True, check=True
        )
        return done.stdout.decode().strip()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Prints nothing."""


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Provider]:
    running = Provider(tmp_path)
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.soak
def test_the_example_of_the_document_and_the_rotation_of_its_key(
    provider: Provider, tmp_path: Path
) -> None:
    first = provider.issue("2026-01")
    with Stack(tmp_path / "state", JWKS=provider.url, JWT_ISSUER=ISSUER).started() as stack:
        assert stack.rest(first).get("/v1/workspaces")["workspaces"] == []
        created = stack.rest(first).post("/v1/workspaces", {}, status=201)
        assert created["created_by_user_id"] == "alice"

        second = provider.issue("2026-02")
        for address in stack.worker_addresses():
            eventually(lambda: _accepts(stack, second, address), ROTATED_SECONDS)

        provider.stop()
        unknown = provider.issue("2026-03")
        for address in stack.worker_addresses():
            assert not _accepts(stack, unknown, address)
            assert _accepts(stack, second, address)


def _accepts(stack: Stack, token: str, address: str) -> bool:
    try:
        stack.grpc(token, address).call("ListWorkspaces")
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED, error
        return False
    return True

"""The example of docs/authentication.md: a stack with an identity provider of its own.

Its workers cache tokens and keys for less time than the document says.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import grpc
import pytest

from evershell.auth import session_tokens
from tests.support.checkout import Edit, copied_checkout
from tests.support.documents import blocks
from tests.support.stack import ROOT, Stack
from tests.support.waiting import eventually

DOCUMENT = (ROOT / "docs" / "authentication.md").read_text()
ISSUER = "https://login.acme.example"
# What the document says, and the workers of this test.
DOCUMENTED = (
    f"is cached for at most {session_tokens.CACHE_SECONDS:g} s",
    f"at most\n  every {session_tokens._REFRESH_SECONDS:g} s",
)
CACHE_SECONDS, REFRESH_SECONDS = 4.0, 1.0
# How long programs may take on a busy machine.
SPARE_SECONDS = 15.0


class Provider:
    """The provider of the example: its script, run again for each new key, and its HTTP server."""

    def __init__(self, folder: Path) -> None:
        (self._script,) = [each.text for each in blocks(DOCUMENT) if each.title == "issue.py"]
        self._folder = folder
        handler = partial(_Handler, directory=str(folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/jwks.json"
        Thread(target=self._server.serve_forever).start()

    def issue(self, kid: str) -> str:
        """Replaces the published key by a new one, and returns a token that it signed."""
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
def checkout(tmp_path: Path) -> Path:
    def replaced(name: str, seconds: float) -> Edit:
        path = "server/evershell/auth/session_tokens.py"
        now = getattr(session_tokens, name)
        return Edit(path, f"\n{name} = {now}\n", f"\n{name} = {seconds}\n")

    return copied_checkout(
        tmp_path / "checkout",
        replaced("CACHE_SECONDS", CACHE_SECONDS),
        replaced("_REFRESH_SECONDS", REFRESH_SECONDS),
    )


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Provider]:
    running = Provider(tmp_path)
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.soak
def test_the_example_of_the_document_and_the_rotation_of_its_key(
    provider: Provider, checkout: Path, tmp_path: Path
) -> None:
    assert all(promise in DOCUMENT for promise in DOCUMENTED)
    first = provider.issue("2026-01")
    # In a sandbox, agents do not see the changed checkout.
    stack = Stack(tmp_path / "state", JWKS=provider.url, JWT_ISSUER=ISSUER, POD_ISOLATION="none")
    stack.checkout = checkout
    try:
        stack.start()
        assert stack.rest(first).get("/v1/workspaces")["workspaces"] == []
        made = stack.rest(first).post("/v1/workspaces", {}, status=201)
        assert made["created_by_user_id"] == "alice"

        second = provider.issue("2026-02")
        eventually(lambda: _is_accepted(stack, second), REFRESH_SECONDS + SPARE_SECONDS)
        accepted = time.monotonic()
        eventually(lambda: not _is_accepted(stack, first), CACHE_SECONDS + SPARE_SECONDS)

        provider.stop()
        # No worker has the token cached any more, and all know the key that signed it.
        eventually(lambda: time.monotonic() - accepted > CACHE_SECONDS)
        assert _is_accepted(stack, second)
        unknown = provider.issue("2026-03")
        assert not _is_accepted(stack, unknown)
        assert _is_accepted(stack, second)
    finally:
        stack.kill_if_running()


def _is_accepted(stack: Stack, token: str) -> bool:
    """Whether every worker accepts the token."""
    return all(_accepts(stack, token, address) for address in stack.worker_addresses())


def _accepts(stack: Stack, token: str, address: str) -> bool:
    try:
        stack.grpc(token, address).call("ListWorkspaces")
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED, error
        return False
    return True

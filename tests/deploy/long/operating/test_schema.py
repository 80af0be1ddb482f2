"""Programs that are started before the schema of the database exists."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from evershell.auth.signing_keys import new_key
from evershell.store.migrate import migrate
from tests.support.faults import health_of
from tests.support.ports import free_ports
from tests.support.waiting import eventually

# How long a program may take to start on a busy machine.
START_SECONDS = 60.0


@contextmanager
def programs(state_dir: Path, database_url: str) -> Iterator[str]:
    """A worker and a controller. Yields the address of the worker."""
    (state_dir / "control-plane.jwk").write_text(new_key())
    (port,) = free_ports(1)
    environment = os.environ | {
        "STATE_DIR": str(state_dir),
        "DATABASE_URL": database_url,
        "POD_ISOLATION": "none",
    }
    with (state_dir / "log").open("wb") as log:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "evershell.commands", *arguments],
                env=environment,
                stdout=log,
                stderr=log,
            )
            for arguments in (("serve", "--port", str(port)), ("fleet",))
        ]
    try:
        yield f"127.0.0.1:{port}"
        assert [process.poll() for process in started] == [None, None]
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(15)


def leads(database_url: str) -> bool:
    """Whether a controller holds the leader's lock."""
    with psycopg.connect(database_url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database())"
        ).fetchone()
    return row is not None and row[0] > 0


def test_programs_wait_for_their_schema(empty_database_url: str, tmp_path: Path) -> None:
    with programs(tmp_path, empty_database_url) as worker:
        log = tmp_path / "log"
        eventually(lambda: log.read_text().count("schema_outdated") == 2, START_SECONDS)
        eventually(lambda: health_of(worker) == "NOT_SERVING", START_SECONDS)
        assert not leads(empty_database_url)
        migrate(empty_database_url)
        eventually(lambda: health_of(worker) == "SERVING", START_SECONDS)
        eventually(lambda: leads(empty_database_url), START_SECONDS)

"""Collects everything that a running stack shows or leaves. Each item has the name of a place."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import httpx
import psutil
from psycopg import sql

from tests.support.secrets import files_of
from tests.support.stack import Stack

Evidence = Iterator[tuple[str, bytes]]

_POLL_SECONDS = 0.02
_TABLES = """
    SELECT schemaname, relname FROM pg_stat_user_tables
    UNION ALL SELECT 'pg_catalog', 'pg_stat_activity'
"""
_ADMIN_PAGES = (
    "stats",
    "stats?format=prometheus",
    "config_dump",
    "clusters?format=json",
    "listeners",
)


def files(stack: Stack) -> Evidence:
    """Yields the files of the state folder and of the temporary folder of the test run."""
    for name, data in files_of(stack.state_dir):
        yield f"file {name}", data
    # os.walk() ignores a folder that is removed while it runs.
    for folder, _, names in os.walk(tempfile.gettempdir()):
        for path in (Path(folder) / name for name in names):
            with suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    yield f"temporary file {path}", path.read_bytes()


def database(stack: Stack) -> Evidence:
    """Yields all rows of all tables, and the statements that PostgreSQL shows."""
    with stack.database() as connection:
        for schema, name in connection.execute(_TABLES).fetchall():
            table = sql.Identifier(schema, name)
            rows = connection.execute(sql.SQL("SELECT t::text FROM {} t").format(table)).fetchall()
            yield f"table {name}", "\n".join(str(row) for (row,) in rows).encode()


def metrics(stack: Stack, programs: int, admin_socket: Path) -> Evidence:
    """Yields the metrics of workers and controller, and the pages of Envoy's admin interface."""
    for index in range(programs):
        url = f"http://127.0.0.1:{stack.metrics_port + index}/metrics"
        yield f"metrics {index}", httpx.get(url, trust_env=False).content
    transport = httpx.HTTPTransport(uds=str(admin_socket))
    with httpx.Client(transport=transport, base_url="http://envoy") as admin:
        for page in _ADMIN_PAGES:
            yield f"envoy {page}", admin.get(f"/{page}").raise_for_status().content


class Processes:
    """Watches the command lines and environments of a stack's processes, even short-lived ones."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._seen: dict[tuple[str, bytes], None] = {}
        self._stopped = Event()
        self._thread = Thread(target=self._watch)

    def __enter__(self) -> "Processes":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def seen(self) -> Evidence:
        """Yields what was seen so far. The name of the place contains the name of the program."""
        yield from list(self._seen)

    def _running(self) -> list[psutil.Process]:
        with suppress(psutil.Error):
            root = psutil.Process(self._stack.pid)
            return [root, *root.children(recursive=True)]
        return []

    def _watch(self) -> None:
        while not self._stopped.wait(_POLL_SECONDS):
            for process in self._running():
                with suppress(OSError):
                    folder = Path(f"/proc/{process.pid}")
                    command = (folder / "cmdline").read_bytes()
                    program = _program(command)
                    self._seen[f"cmdline of {program}", command] = None
                    self._seen[f"environ of {program}", (folder / "environ").read_bytes()] = None


def _program(command: bytes) -> str:
    """Returns a short name, such as `evershell.commands serve`, `envoy` or `sh`."""
    words = command.decode(errors="replace").split("\0")
    if "-m" in words:
        after = words[words.index("-m") + 1 :]
        return " ".join(word for word in after[:2] if not word.startswith("-")).strip()
    return Path(words[0]).name

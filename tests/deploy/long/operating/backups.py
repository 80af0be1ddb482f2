"""Backs up and restores databases with the programs of the embedded PostgreSQL."""

import subprocess
from pathlib import Path

from evershell.stack import postgres

_SECONDS = 60.0


def dump(database_url: str, path: Path) -> None:
    _run("pg_dump", "--format=custom", f"--file={path}", f"--dbname={database_url}")


def restore(path: Path, database_url: str) -> None:
    """Restores the dump into an empty database."""
    _run("pg_restore", "--exit-on-error", "--no-owner", f"--dbname={database_url}", str(path))


def _run(program: str, *arguments: str) -> None:
    done = subprocess.run(
        [postgres._installation() / "bin" / program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
    )
    assert done.returncode == 0, done.stderr

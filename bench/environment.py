"""The environment of a run of the bench, and the options of the run."""

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg

from tests.support.stack import ROOT


def describe(database: psycopg.Connection[Any]) -> dict[str, Any]:
    """The environment of the run, as bench.json contains it."""
    row = database.execute("SHOW server_version").fetchone()
    assert row is not None
    return {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "grpcio": version("grpcio"),
        "postgresql": row[0],
        "commit": commit(ROOT),
    }


def commit(checkout: Path) -> str:
    """The commit of a checkout, followed by `+` if tracked files differ from it.

    Empty if git is not installed, or if the folder is not a checkout.
    """
    command = ["git", "-C", str(checkout), "describe"]
    options = ["--always", "--abbrev=7", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a run, from environment variables."""

    quick: bool
    # Selects blocks and rows whose names contain this text, ignoring case. Empty selects all.
    rows: str
    # The number of rounds of every block; None to use the number that each block defines.
    rounds: int | None
    # A checkout to compare this one with.
    compare: Path | None

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Options":
        """Reads the options. Raises ValueError with a message for the user."""
        rounds = environment.get("ROUNDS", "")
        if rounds and not (rounds.isdigit() and int(rounds) > 0):
            raise ValueError(f"ROUNDS is {rounds!r}, not a positive number.")
        compare = Path(environment["COMPARE"]).resolve() if environment.get("COMPARE") else None
        if compare is not None and not (compare / ".venv" / ".ready").exists():
            raise ValueError(f"COMPARE: run `make .venv/.ready` in {compare} first.")
        return cls(
            quick=environment.get("QUICK", "") not in ("", "0"),
            rows=environment.get("ROWS", "").lower(),
            rounds=int(rounds) if rounds else None,
            compare=compare,
        )

    @property
    def is_partial(self) -> bool:
        """Whether the run measures something other than what bench.json contains."""
        return bool(self.rows) or self.compare is not None

"""The wall clocks of real programs, which a test sets one by one, with libfaketime.

The monotonic clocks go on. A program reads its file each time it looks at its clock, so a clock can
also be set while the program runs.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

_LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
# Python runs this at its start. A program of the service starts itself again with the library, and
# a controller starts its agents with it.
_SITECUSTOMIZE = """
import os, sys
name = sys.orig_argv[3] if sys.orig_argv[1:3] == ["-m", "evershell.commands"] else ""
if name in ("serve", "fleet"):
    if "LD_PRELOAD" not in os.environ:
        own = {own}
        own["FAKETIME_TIMESTAMP_FILE"] = {folder!r} + "/" + name
        os.execve(sys.executable, sys.orig_argv, os.environ | own)
    sys.executable = {folder!r} + "/python"
"""


def refusal() -> str:
    """Why this machine can have no wrong clocks. Empty if it can."""
    return "" if _LIBRARIES else "libfaketime is not installed (Debian: apt-get install faketime)"


class Clocks:
    """How far the clock of each program is ahead: `serve`, `fleet`, `agent` and databases."""

    def __init__(self, folder: Path, cached: bool = False) -> None:
        """Creates the folder. Skips the test if libfaketime is not installed.

        If `cached`, a process reads its file only once a second. Programs are faster then, and the
        processes of a database do not see a step at the same moment.
        """
        if reason := refusal():
            pytest.skip(reason)
        folder.mkdir()
        self._folder = folder
        self._cached = cached
        own = repr(self._preload())
        code = _SITECUSTOMIZE.format(own=own, folder=str(folder))
        (folder / "sitecustomize.py").write_text(code)
        for name in ("serve", "fleet", "agent"):
            self.set(name, 0)
        settings = " ".join(f"{name}={value}" for name, value in self.of("agent").items())
        agent = folder / "python"
        agent.write_text(f'#!/bin/sh\nexec env {settings} {sys.executable} "$@"\n')
        agent.chmod(0o755)
        folder.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        """For a stack. A sandbox would hide the files from the agents."""
        return {"PYTHONPATH": str(self._folder), "POD_ISOLATION": "none"}

    def of(self, name: str) -> Mapping[str, str]:
        """For the environment of a program that follows the clock of this name."""
        return self._preload() | {"FAKETIME_TIMESTAMP_FILE": str(self._folder / name)}

    def set(self, name: str, ahead_seconds: int) -> None:
        """Sets the clock of a program, which may be running."""
        written = self._folder / f"{name}.new"
        written.write_text(f"{ahead_seconds:+d}")
        written.replace(self._folder / name)

    def _preload(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(_LIBRARIES[0]),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # The shared memory would outlive a process that is killed.
            "FAKETIME_DISABLE_SHM": "1",
            # Without a cache, the processes of a database see a step at the same moment, as on a
            # real host.
            **({"FAKETIME_CACHE_DURATION": "1"} if self._cached else {"FAKETIME_NO_CACHE": "1"}),
        }

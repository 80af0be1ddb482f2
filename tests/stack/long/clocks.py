"""Sets the wall clocks of real programs one by one, with libfaketime.

The monotonic clocks are not affected. A program reads a file each time it looks at its wall clock,
so a test can also set the clock while the program runs.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

_LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
# Python runs this code when it starts. A program of the service then starts itself again with
# libfaketime, and a controller starts its agents with libfaketime.
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
    """Returns why clocks cannot be set wrong on this machine; empty if they can."""
    return "" if _LIBRARIES else "libfaketime is not installed (Debian: apt-get install faketime)"


class Clocks:
    """How far each clock is ahead, by name: `serve`, `fleet`, `agent`, and names of databases."""

    def __init__(self, folder: Path, cached: bool = False) -> None:
        """Creates the folder. Skips the test if libfaketime is not installed.

        If `cached`, a process reads its file only once a second. This makes programs faster, but
        the processes of a database do not all see a step at the same moment.
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
        """The variables for a stack.

        They turn the sandbox off, because it would hide the files of the clocks from the agents.
        """
        return {"PYTHONPATH": str(self._folder), "POD_ISOLATION": "none"}

    def of(self, name: str) -> Mapping[str, str]:
        """The variables for a program that follows the clock with this name."""
        return self._preload() | {"FAKETIME_TIMESTAMP_FILE": str(self._folder / name)}

    def set(self, name: str, ahead_seconds: int) -> None:
        """Sets how far the clock of a program is ahead. The program may be running."""
        written = self._folder / f"{name}.new"
        written.write_text(f"{ahead_seconds:+d}")
        written.replace(self._folder / name)

    def _preload(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(_LIBRARIES[0]),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Without this, the library's shared memory would remain after a process is killed.
            "FAKETIME_DISABLE_SHM": "1",
            # Without a cache, all processes of a database see a step at the same moment, as on a
            # real host.
            **({"FAKETIME_CACHE_DURATION": "1"} if self._cached else {"FAKETIME_NO_CACHE": "1"}),
        }

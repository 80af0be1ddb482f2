"""Fails the run if it leaves something behind: a process, shared memory or a temporary file.

Every run has a temporary folder of its own (TMPDIR), which its programs inherit: so processes and
temporary files of another run on this machine are not taken for those of this one. What Envoy and
PostgreSQL make in shared places does not name its run. It is left out while another run is going.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.stack import processes_of
from tests.support.waiting import eventually

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
# Envoy, PostgreSQL and the stack's folders for sockets do not follow TMPDIR.
_SHARED_PLACES = (
    (SHARED_MEMORY, re.compile(r"envoy_shared_memory_.*|PostgreSQL\..*")),
    (Path("/tmp"), re.compile(r"evershell-\d+-.*")),  # noqa: S108
    (Path("/var/tmp"), re.compile(r"evershell-\d+-.*")),  # noqa: S108
)
# A process that was told to end needs a moment.
_SETTLE_SECONDS = 5.0


class Leftovers:
    """What this run has made and not removed."""

    def __init__(self) -> None:
        self._before = set(_shared_files())
        self._inherited = os.environ.get("TMPDIR")
        self.folder = Path(tempfile.mkdtemp(prefix="tests-"))
        # PostgreSQL runs as another user when the tests run as root.
        self.folder.chmod(0o711)
        # pytest's own folders stay where the next run finds and removes those of a failed one.
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.folder)

    def found(self, pytest_folder: Path) -> list[str]:
        """Waits until there is nothing; returns what is still there."""
        try:
            eventually(lambda: not list(self._look(pytest_folder)), _SETTLE_SECONDS)
        except TimeoutError:
            return list(self._look(pytest_folder))
        return []

    def _look(self, pytest_folder: Path) -> Iterator[str]:
        started = set(_running_children())
        for folder in (self.folder, pytest_folder):
            started |= set(processes_of(folder))
        yield from (f"process {process}" for process in sorted(started))
        yield from map(str, self.folder.iterdir())
        new = [path for path in _shared_files() if path not in self._before]
        if new and not _runs_another():
            in_use = mapped() | _listened_to()
            yield from (str(path) for path in new if not {path, *_content(path)} & in_use)

    def remove(self) -> None:
        """Removes the run's temporary folder, and restores the one of before."""
        shutil.rmtree(self.folder, ignore_errors=True)
        tempfile.tempdir = None
        os.environ.pop("TMPDIR")
        if self._inherited is not None:
            os.environ["TMPDIR"] = self._inherited


def _shared_files() -> Iterator[Path]:
    for folder, name in _SHARED_PLACES:
        if folder.exists():
            yield from (path for path in folder.iterdir() if name.fullmatch(path.name))


def _running_children() -> Iterator[str]:
    """All descendants of this process that have not ended. A zombie has ended."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                yield f"{child.pid} {child.name()}"


def _runs_another() -> bool:
    """Whether another run of tests is going on this machine."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return any(
        process.pid not in own and any("pytest" in word for word in process.info["cmdline"] or [])
        for process in psutil.process_iter(["cmdline"])
    )


def _content(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError:
        return []


def mapped() -> set[Path]:
    """Shared memory of all processes that run."""
    found: set[Path] = set()
    for process in psutil.process_iter():
        try:
            maps = Path(f"/proc/{process.pid}/maps").read_text()
        except OSError:
            continue
        found |= {Path(path) for path in re.findall(rf"{SHARED_MEMORY}/\S+", maps)}
    return found


def _listened_to() -> set[Path]:
    """Unix sockets of all processes that run."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    return {Path(columns[7]) for line in lines if len(columns := line.split()) > 7}


_key = pytest.StashKey[Leftovers]()
_found_key = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[_key] = Leftovers()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Runs after pytest has removed its own folders, which it keeps if a test has failed."""
    leftovers = session.config.stash[_key]
    factory: pytest.TempPathFactory = session.config._tmp_path_factory  # type: ignore[attr-defined]
    folder = factory.getbasetemp() if factory._basetemp is not None else leftovers.folder
    found = leftovers.found(folder)
    if exitstatus == pytest.ExitCode.OK and folder != leftovers.folder and folder.exists():
        found.append(str(folder))
    session.config.stash[_found_key] = found
    if found and exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if found := config.stash.get(_found_key, []):
        terminalreporter.section("left behind", red=True)
        for line in found:
            terminalreporter.line(line, red=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_key].remove()

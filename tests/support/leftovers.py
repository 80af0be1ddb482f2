"""Fails the test run if it leaves a process, shared memory or a temporary file behind.

Every test run has its own temporary folder (TMPDIR), which its programs inherit. So the check can
tell the processes and files of this run from the processes and files of another run on the same
machine.
The files that Envoy and PostgreSQL create in shared folders do not name their test run, so they are
not checked while another test run is active.

Each worker of pytest-xdist has a temporary folder inside the run's folder, and checks this folder.
At the end, the run reports what its workers have left behind, and checks the shared folders.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.alive import is_alive
from tests.support.stack import processes_of
from tests.support.waiting import eventually

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
# Envoy, PostgreSQL and the stack's socket folders ignore TMPDIR.
_SHARED_FILES = (
    (SHARED_MEMORY, re.compile(r"envoy_shared_memory_.*|PostgreSQL\..*")),
    (Path("/tmp"), re.compile(r"evershell-\d+-.*")),  # noqa: S108
    (Path("/var/tmp"), re.compile(r"evershell-\d+-.*")),  # noqa: S108
)
# The pytest setting that says how many seconds processes may take to exit, and its default.
_OPTION, _SETTLE_SECONDS = "settle_seconds", "10"


class Leftovers:
    """Finds what this test run created and did not remove."""

    def __init__(self, is_worker: bool) -> None:
        self._is_worker = is_worker
        self._before = set(_shared_files())
        self._inherited = os.environ.get("TMPDIR")
        self.folder = Path(tempfile.mkdtemp(prefix="tests-"))
        # If root runs the tests, PostgreSQL runs as another user, who needs access to the folder.
        self.folder.chmod(0o711)
        # pytest keeps the folders of a failed test run. They are outside this run's temporary
        # folder, so that the next test run finds and removes them.
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.folder)

    def found(self, pytest_folder: Path, settle_seconds: float) -> list[str]:
        """Waits for at most `settle_seconds` until nothing is left. Returns what is still left."""
        try:
            eventually(lambda: not list(self._leftovers(pytest_folder)), settle_seconds)
        except TimeoutError:
            return list(self._leftovers(pytest_folder))
        return []

    def _leftovers(self, pytest_folder: Path) -> Iterator[str]:
        started = set(_running_children())
        for folder in (self.folder, pytest_folder):
            started |= set(processes_of(folder))
        yield from (f"process {process}" for process in sorted(started))
        yield from map(str, self.folder.iterdir())
        if self._is_worker:
            return
        new = [path for path in _shared_files() if path not in self._before]
        if new and not _another_run_is_active():
            in_use = mapped() | _unix_sockets()
            yield from (str(path) for path in new if not {path, *_entries(path)} & in_use)

    def remove(self) -> None:
        """Removes the temporary folder and restores the previous TMPDIR."""
        shutil.rmtree(self.folder, ignore_errors=True)
        tempfile.tempdir = None
        os.environ.pop("TMPDIR")
        if self._inherited is not None:
            os.environ["TMPDIR"] = self._inherited


def _shared_files() -> Iterator[Path]:
    for folder, name in _SHARED_FILES:
        if folder.exists():
            yield from (path for path in folder.iterdir() if name.fullmatch(path.name))


def _running_children() -> Iterator[str]:
    """Yields the id and name of each descendant that has not ended. A zombie counts as ended."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if is_alive(child):
                yield f"{child.pid} {child.name()}"


def _another_run_is_active() -> bool:
    """Whether pytest runs in a process that is neither this one nor one of its ancestors."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return any(
        process.pid not in own and any("pytest" in word for word in process.info["cmdline"] or [])
        for process in psutil.process_iter(["cmdline"])
    )


def _entries(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError:
        return []


def mapped() -> set[Path]:
    """Returns the shared memory files that running processes have mapped."""
    found: set[Path] = set()
    for process in psutil.process_iter():
        try:
            maps = Path(f"/proc/{process.pid}/maps").read_text()
        except OSError:
            continue
        found |= {Path(path) for path in re.findall(rf"{SHARED_MEMORY}/\S+", maps)}
    return found


def _unix_sockets() -> set[Path]:
    """Returns the paths of all open Unix sockets."""
    lines = Path("/proc/net/unix").read_text().splitlines()[1:]
    return {Path(columns[7]) for line in lines if len(columns := line.split()) > 7}


_key = pytest.StashKey[Leftovers]()
_found_key = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(_OPTION, "how long processes may take to exit", default=_SETTLE_SECONDS)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    is_worker = hasattr(config, "workerinput")
    config.stash[_key] = Leftovers(is_worker)
    config.stash[_found_key] = []


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Receives the report of a worker on what it has left behind."""
    node.config.stash[_found_key] += getattr(node, "workeroutput", {}).get("left_behind", [])


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Runs after pytest has removed its own folders. If a test has failed, pytest keeps them."""
    leftovers = session.config.stash[_key]
    factory: pytest.TempPathFactory = session.config._tmp_path_factory  # type: ignore[attr-defined]
    folder = factory.getbasetemp() if factory._basetemp is not None else leftovers.folder
    found = session.config.stash[_found_key]
    settle_seconds = float(session.config.getini(_OPTION))
    found += leftovers.found(folder, settle_seconds)
    if hasattr(session.config, "workeroutput"):
        # The run itself will remove the folder that pytest has made for this worker.
        session.config.workeroutput["left_behind"] = found
        return
    if exitstatus == pytest.ExitCode.OK and folder != leftovers.folder:
        try:
            # Another test run may be removing the same folder.
            eventually(lambda: not folder.exists(), settle_seconds)
        except TimeoutError:
            found.append(str(folder))
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

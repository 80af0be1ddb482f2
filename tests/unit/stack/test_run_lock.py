"""A state folder has one run at a time, and records the run's process id."""

import fcntl
import os
import subprocess
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from evershell.core.errors import OperatorError
from evershell.stack import run_lock
from tests.support.programs import run


def test_the_pid_of_a_run_is_reported_while_it_holds_the_lock(tmp_path: Path) -> None:
    assert run_lock.running_pid(tmp_path) is None
    with run_lock.exclusive(tmp_path):
        # A run writes its id only once it can handle SIGHUP.
        assert run_lock.running_pid(tmp_path) is None
        run_lock.write_pid(tmp_path)
        assert run_lock.running_pid(tmp_path) == os.getpid()
        with pytest.raises(OperatorError), run_lock.exclusive(tmp_path):
            pass
        assert run_lock.running_pid(tmp_path) == os.getpid()
    assert run_lock.running_pid(tmp_path) is None
    assert not (tmp_path / "up.pid").exists()


def test_the_pid_of_a_killed_run_is_not_signalled(tmp_path: Path) -> None:
    with run_lock.exclusive(tmp_path):
        pass
    # The recorded pid is the pid of this process, which SIGHUP would end.
    run_lock.write_pid(tmp_path)
    assert run_lock.running_pid(tmp_path) is None
    refused = run("restart", tmp_path)
    assert refused.returncode == 1
    assert refused.stderr == f"Error: No stack runs on {tmp_path}.\n"


def test_a_process_that_a_killed_run_has_named_is_not_taken_for_a_run_that_starts(
    tmp_path: Path,
) -> None:
    other = subprocess.Popen(["/bin/sleep", "600"])
    try:
        with (tmp_path / "lock").open("w") as lock:
            # A new run has just started, and has not yet removed the file of the killed run.
            fcntl.flock(lock, fcntl.LOCK_EX)
            (tmp_path / "up.pid").write_text(f"{other.pid}\n")
            assert run_lock.running_pid(tmp_path) is None
    finally:
        other.kill()
        other.wait()


def test_looking_for_the_run_does_not_keep_another_from_starting(tmp_path: Path) -> None:
    has_ended = threading.Event()

    def look() -> None:
        while not has_ended.is_set():
            run_lock.running_pid(tmp_path)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(2_000):
            with run_lock.exclusive(tmp_path):
                run_lock.write_pid(tmp_path)
    finally:
        has_ended.set()
        looking.join()


def test_a_copy_of_the_open_file_does_not_keep_the_folder(tmp_path: Path) -> None:
    """A child that was forked at the end of a run has such a copy."""
    with ExitStack() as copies:
        with run_lock.exclusive(tmp_path):
            lock = (tmp_path / "lock").stat()
            for entry in list(Path("/proc/self/fd").iterdir()):
                with suppress(OSError):
                    if os.path.samestat(entry.stat(), lock):
                        copies.callback(os.close, os.dup(int(entry.name)))
        with run_lock.exclusive(tmp_path):
            pass

"""A state folder has one run at a time, and records its process."""

import os
from pathlib import Path

import pytest

from server.stack import run_lock
from tests.support.programs import run


def test_the_pid_of_a_run_is_reported_while_it_holds_the_lock(tmp_path: Path) -> None:
    assert run_lock.running_pid(tmp_path) is None
    with run_lock.exclusive(tmp_path):
        # The run is not reported before it handles signals.
        assert run_lock.running_pid(tmp_path) is None
        run_lock.write_pid(tmp_path)
        assert run_lock.running_pid(tmp_path) == os.getpid()
        with pytest.raises(run_lock.TakenError), run_lock.exclusive(tmp_path):
            pass
        assert run_lock.running_pid(tmp_path) == os.getpid()
    assert run_lock.running_pid(tmp_path) is None
    assert not (tmp_path / "up.pid").exists()


def test_the_pid_of_a_killed_run_is_not_signalled(tmp_path: Path) -> None:
    with run_lock.exclusive(tmp_path):
        pass
    # The recorded pid is that of this process, which a SIGHUP would end.
    run_lock.write_pid(tmp_path)
    assert run_lock.running_pid(tmp_path) is None
    refused = run("restart", tmp_path)
    assert refused.returncode == 1
    assert refused.stderr == f"Error: No stack runs on {tmp_path}.\n"

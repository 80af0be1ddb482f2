"""One run at a time for a state folder, and which process it is."""

import os
from pathlib import Path

import pytest

from server.stack import run_lock
from tests.support.programs import run


def test_the_run_is_named_while_it_holds_the_folder(tmp_path: Path) -> None:
    assert run_lock.running_pid(tmp_path) is None
    with run_lock.exclusive(tmp_path):
        # It handles no signals yet.
        assert run_lock.running_pid(tmp_path) is None
        run_lock.write_pid(tmp_path)
        assert run_lock.running_pid(tmp_path) == os.getpid()
        with pytest.raises(run_lock.TakenError), run_lock.exclusive(tmp_path):
            pass
        assert run_lock.running_pid(tmp_path) == os.getpid()
    assert run_lock.running_pid(tmp_path) is None
    assert not (tmp_path / "up.pid").exists()


def test_what_a_killed_run_has_left_is_not_signalled(tmp_path: Path) -> None:
    with run_lock.exclusive(tmp_path):
        pass
    # SIGHUP would end this process.
    run_lock.write_pid(tmp_path)
    assert run_lock.running_pid(tmp_path) is None
    refused = run("restart", tmp_path)
    assert refused.returncode == 1
    assert refused.stderr == f"Error: No stack runs on {tmp_path}.\n"

"""A stop of the stack has a time limit, which is less than the sum of its programs' limits."""

from pathlib import Path

import psutil
import pytest

from tests.support.stack import Stack, Workspace, processes_of


@pytest.mark.soak
def test_a_stack_whose_programs_are_all_frozen_is_stopped_and_finds_its_data(
    tmp_path: Path,
) -> None:
    stack = Stack(tmp_path / "state")
    try:
        stack.start()
        workspace = Workspace(stack)
        task_id = workspace.begin("sleep 600")
        assert workspace.cancel()["outcome"] == "accepted"
        for program in psutil.Process(stack.pid).children():
            program.suspend()
        assert stack.stop() == 0
        said = stack.output.read_text()
        assert "programs_killed" in said
        # The stop ends before the limits of the other programs have passed.
        late = [line for line in said.splitlines() if "program_stop_timed_out" in line]
        assert len(late) == 3 and "envoy" in late[2]
        assert all("fleet" in line for line in late[:2])
        assert processes_of(stack.state_dir) == []

        stack.start()
        assert workspace.await_end(task_id)["status"] == "cancelled"
        assert stack.stop() == 0
        assert stack.output.read_text().count("programs_killed") == 1
    finally:
        stack.kill_if_running()

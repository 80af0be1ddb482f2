"""Kills the controller at each step of a deletion. The next controller continues the deletion.

`server/evershell/app/fleet.py` arms the crash points of the controller.
"""

from pathlib import Path

import pytest

from tests.stack.test_deletion import await_removal
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually

POINTS = [
    f"{moment}_{step}"
    for step in ("pod_end", "file_removal", "row_removal")
    for moment in ("before", "after")
]


@pytest.mark.parametrize("point", POINTS)
def test_a_deletion_is_continued(fragile_stack: Stack, crash_points: Path, point: str) -> None:
    workspace = Workspace(fragile_stack)
    gate = Gate(workspace)
    workspace.begin(gate.command)
    armed = crash_points / point
    armed.touch()
    first = workspace.rest.call("DELETE", workspace.path)
    assert first.status_code == 202
    gate.open()
    eventually(lambda: not armed.exists(), 60)
    await_removal(workspace)
    again = workspace.rest.call("DELETE", workspace.path)
    assert (again.status_code, again.json()["status"]) == (202, "deleting")

"""Workspaces of the other organization, which tests may put on hold or cancel as a whole."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.stack import Gate, Stack, Workspace

# The credential of the other organization's owner.
OTHER_ORG = "other_org"


@pytest.fixture
def others(stack: Stack) -> Iterator[list[Workspace]]:
    """Two workspaces of the other organization. At the end, its hold is released."""
    workspaces = [Workspace(stack, OTHER_ORG) for _ in range(2)]
    yield workspaces
    workspaces[0].rest.post("/v1/hold/release", status=200)
    for workspace in workspaces:
        workspace.rest.post(f"{workspace.path}/stop")


def begin(workspaces: list[Workspace], **fields: Any) -> list[tuple[Gate, str]]:
    """Begins a task in each workspace. Returns the tasks, each with the gate of its iteration."""
    begun = []
    for workspace in workspaces:
        gate = Gate(workspace)
        begun.append((gate, workspace.submit(gate.command, "touch never", **fields)))
    for workspace, (_, task_id) in zip(workspaces, begun, strict=True):
        workspace.await_phase(task_id, "tool_call")
    return begun

"""Workspaces of a second organization. Tests may put it on hold, or cancel all its tasks."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.stack import Gate, Stack, Workspace

# The name of a demo credential, which belongs to the owner of the other organization.
OTHER_ORG = "other_org"


@pytest.fixture
def others(stack: Stack) -> Iterator[list[Workspace]]:
    """Two workspaces of the other organization.

    At the end, the fixture releases a hold of the organization, and stops the workspaces.
    """
    workspaces = [Workspace(stack, OTHER_ORG) for _ in range(2)]
    yield workspaces
    workspaces[0].rest.post("/v1/hold/release", status=200)
    for workspace in workspaces:
        workspace.rest.post(f"{workspace.path}/stop")


def begin(workspaces: list[Workspace], **fields: Any) -> list[tuple[Gate, str]]:
    """Begins a task in each workspace.

    Returns the gate and the id of each task. The first iteration ends when the gate is opened.
    """
    begun = []
    for workspace in workspaces:
        gate = Gate(workspace)
        begun.append((gate, workspace.submit(gate.command, "touch never", **fields)))
    for workspace, (_, task_id) in zip(workspaces, begun, strict=True):
        workspace.await_phase(task_id, "tool_call")
    return begun

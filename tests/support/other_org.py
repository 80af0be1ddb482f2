"""Workspaces of the other organization, which a test may put on hold or cancel as a whole."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.stack import Gate, Stack, Workspace

# The credential of its owner.
OTHER_ORG = "other_org"


@pytest.fixture
def others(stack: Stack) -> Iterator[list[Workspace]]:
    """Two workspaces of the other organization, which is released at the end."""
    workspaces = [Workspace(stack, OTHER_ORG) for _ in range(2)]
    yield workspaces
    workspaces[0].rest.post("/v1/hold/release", status=200)
    for workspace in workspaces:
        workspace.rest.post(f"{workspace.path}/stop")


def begin(workspaces: list[Workspace], **fields: Any) -> list[tuple[Gate, str]]:
    """Each workspace's task, and the gate that ends its iteration."""
    begun = []
    for workspace in workspaces:
        gate = Gate(workspace)
        begun.append((gate, workspace.submit(gate.command, "touch never", **fields)))
    for workspace, (_, task_id) in zip(workspaces, begun, strict=True):
        workspace.await_phase(task_id, "tool_call")
    return begun

"""What an agent may do with the children of its task: see core/children.py."""

from dataclasses import replace
from typing import Any

import pytest

from evershell.core import task_lifecycle
from evershell.core.caller import CredentialKind
from evershell.core.cancel_task import CancelTask
from evershell.core.change import IdempotencyKey
from evershell.core.children import Children
from evershell.core.errors import Failure
from evershell.core.event import Origin
from evershell.core.runtime import AgentIdentity
from evershell.core.task import Task, TaskStatus
from evershell.core.tasks import SubmitTask
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.core.workspace_lifecycle import record_breach, request_delete
from tests.support.world import World, intent


@pytest.fixture
def world() -> World:
    return World()


def children(world: World) -> Children:
    return Children(world.store, world.agents, world.subscriptions, world.clock)


async def submit(
    world: World, at: Workspace, parent: Task, epoch: int = 1, key: str = "", **fields: Any
) -> Task:
    """Submits a child as the agent of the workspace `at`."""
    into = fields.pop("into", None) or await world.add(created_by_user_id=at.created_by_user_id)
    by = await children(world).enter(AgentIdentity(at.id, epoch), parent.id)
    request = SubmitTask(
        workspace_id=into.id,
        description="ls",
        parent_task_id=parent.id,
        origin=Origin("req_s"),
        key=IdempotencyKey(key, b"") if key else None,
    )
    return await children(world).submit(by, request)


async def refused(call: Any) -> str:
    with pytest.raises(Failure) as raised:
        await call
    return str(raised.value.slug)


@pytest.mark.parametrize("creator", ["user_7", None])
async def test_an_agent_submits_a_child_to_a_workspace_of_the_same_creator(
    world: World, creator: str | None
) -> None:
    at, parent = await world.add_busy(created_by_user_id=creator)
    child = await submit(world, at, parent)
    assert (child.ancestor_ids, child.status) == ((parent.id,), TaskStatus.DELIVERED)
    assert child.submitted_by == f"agent:{at.id}"


@pytest.mark.parametrize("creators", [("user_7", "user_8"), ("user_7", None), (None, "user_7")])
async def test_a_workspace_of_another_creator_is_refused(
    world: World, creators: tuple[str | None, str | None]
) -> None:
    at, parent = await world.add_busy(created_by_user_id=creators[0])
    other = await world.add(created_by_user_id=creators[1])
    assert await refused(submit(world, at, parent, into=other)) == "permission_denied"
    assert (await world.workspace(other.id)).current_task_id is None


async def test_a_workspace_of_another_organization_looks_like_none(world: World) -> None:
    at, parent = await world.add_busy()
    foreign = await world.add(org_id="org_b")
    assert await refused(submit(world, at, parent, into=foreign)) == "workspace_not_found"
    missing = replace(foreign, id="ws_none")
    assert await refused(submit(world, at, parent, into=missing)) == "workspace_not_found"
    by = await children(world).enter(AgentIdentity(at.id, 1), parent.id)
    for each in (foreign, missing):
        read = children(world).read(by, each.id, "task_x")
        assert await refused(read) == "workspace_not_found"


async def test_only_the_agent_of_the_current_task_submits(world: World) -> None:
    at, parent = await world.add_busy()
    other, _ = await world.add_busy()
    # Refuses, in this order: the task of another agent, no task, an earlier epoch, and an agent
    # that broke a rule.
    assert await refused(submit(world, other, parent)) == "task_not_found"
    assert await refused(children(world).enter(AgentIdentity(at.id, 1), "")) == "validation_error"
    assert await refused(submit(world, at, parent, epoch=0)) == "parent_not_running"
    await world.change(at.id, lambda locked: record_breach(locked, 1, "its agent lied"))
    assert await refused(submit(world, at, parent)) == "parent_not_running"


async def test_nothing_is_submitted_after_the_parent_has_ended_or_is_cancelled(
    world: World,
) -> None:
    at, parent = await world.add_busy()
    into = await world.add()
    by = await children(world).enter(AgentIdentity(at.id, 1), parent.id)
    request = SubmitTask(
        workspace_id=into.id, description="ls", parent_task_id=parent.id, origin=Origin("r")
    )
    # The cancellation is recorded after the check of the agent and before the submission.
    await world.change(at.id, lambda locked: task_lifecycle.request_cancel(locked, intent()))
    assert await refused(children(world).submit(by, request)) == "parent_not_running"
    await world.end(at.id, parent.id)
    assert await refused(children(world).submit(by, request)) == "parent_not_running"
    # The agent can make no other call about children either.
    agent = AgentIdentity(at.id, 1)
    assert await refused(children(world).enter(agent, parent.id)) == "parent_not_running"


async def test_a_repeat_with_the_key_submits_nothing(world: World) -> None:
    at, parent = await world.add_busy()
    into = await world.add()
    first = await submit(world, at, parent, key="k", into=into)
    assert await submit(world, at, parent, key="k", into=into) == first


async def test_a_child_that_cannot_be_delivered_is_answered_as_it_has_ended(world: World) -> None:
    at, parent = await world.add_busy()
    world.agents.reachable = False
    assert (await submit(world, at, parent)).status is TaskStatus.DELIVERY_FAILED


async def test_an_agent_reads_and_cancels_its_children_and_no_other_task(world: World) -> None:
    at, parent = await world.add_busy()
    into = await world.add()
    child = await submit(world, at, parent, into=into)
    stranger, unrelated = await world.add_busy()
    foreign, of_foreign = await world.add_busy(created_by_user_id="user_8")
    by = await children(world).enter(AgentIdentity(at.id, 1), parent.id)
    assert (await children(world).read(by, into.id, child.id)).id == child.id
    for workspace, task, slug in (
        (stranger, unrelated, "task_not_found"),
        (foreign, of_foreign, "permission_denied"),
        (at, parent, "task_not_found"),
    ):
        cancel = CancelTask(workspace_id=workspace.id, task_id=task.id, origin=Origin("r"))
        assert await refused(children(world).read(by, workspace.id, task.id)) == slug
        assert await refused(children(world).cancel(by, cancel)) == slug
        assert (await world.task(workspace.id, task.id)).cancel is None
    cancel = CancelTask(workspace_id=into.id, task_id=child.id, reason="r", origin=Origin("r"))
    # The cancellation is recorded even if the child's agent does not answer.
    for world.agents.reachable in (True, False):
        cancelled = await children(world).cancel(by, cancel)
        assert cancelled.cancel is not None
        assert cancelled.cancel.requested_by == f"agent:{at.id}"
        assert cancelled.cancel.credential_kind == CredentialKind.AGENT
    assert (await world.workspace(into.id)).status is WorkspaceStatus.BUSY


async def test_a_child_whose_workspace_is_removed_meanwhile_is_not_found(world: World) -> None:
    at, parent = await world.add_busy()
    into = await world.add()
    child = await submit(world, at, parent, into=into)
    by = await children(world).enter(AgentIdentity(at.id, 1), parent.id)

    async def remove(workspace: Workspace, task: Task) -> None:
        await world.change(into.id, lambda locked: request_delete(locked, intent()))
        await world.store.remove_workspace(into.id)

    world.agents.meanwhile, world.agents.reachable = remove, False
    cancel = CancelTask(workspace_id=into.id, task_id=child.id, origin=Origin("r"))
    assert await refused(children(world).cancel(by, cancel)) == "task_not_found"

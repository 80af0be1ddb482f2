"""Trees of tasks: how children are submitted, and what a cancellation of a tree does."""

from dataclasses import replace
from typing import Any

import pytest

from evershell.core import tasks
from evershell.core.caller import Caller
from evershell.core.cancel_task import CancelTask, cancel_task
from evershell.core.change import IdempotencyKey
from evershell.core.errors import Failure
from evershell.core.event import Origin
from evershell.core.task import Task, TaskStatus
from evershell.core.task_filter import OrgListFilter
from evershell.core.task_tree import (
    MAX_LEVELS,
    MAX_OPEN_DESCENDANTS,
    Parent,
    child,
)
from evershell.core.tasks import SubmitTask
from evershell.core.validation import Page
from evershell.core.workspace import WorkspaceStatus
from tests.support.world import World, caller, intent, task, workspace


async def submit(
    world: World,
    parent_id: str | None,
    by: Caller | None = None,
    key: IdempotencyKey | None = None,
    status: WorkspaceStatus = WorkspaceStatus.IDLE,
    workspace_id: str | None = None,
) -> Task:
    request = SubmitTask(
        workspace_id=workspace_id or (await world.add(status)).id,
        description="ls",
        parent_task_id=parent_id,
        origin=Origin("req_s"),
        key=key,
    )
    return await tasks.submit_task(
        by or caller(), request, world.store, world.agents, world.subscriptions, world.clock
    )


async def refusal(world: World, parent_id: str | None, **fields: object) -> Failure:
    with pytest.raises(Failure) as raised:
        await submit(world, parent_id, **fields)  # type: ignore[arg-type]
    return raised.value


def parent(open_descendants: int = 0, **fields: object) -> Parent:
    at = workspace(WorkspaceStatus.BUSY)
    return Parent(at, task(at.id, **fields), open_descendants)


@pytest.mark.parametrize("status", [each for each in TaskStatus if each.is_terminal])
def test_a_task_that_has_ended_gets_no_child(status: TaskStatus) -> None:
    ended = parent(status=status)
    with pytest.raises(Failure) as raised:
        child(ended, task("ws_1"))
    assert raised.value.slug == "parent_not_running"
    assert raised.value.details["task_id"] == ended.task.id


def test_a_task_that_is_being_cancelled_gets_no_child() -> None:
    with pytest.raises(Failure, match="is being cancelled") as raised:
        child(parent(status=TaskStatus.RUNNING, cancel=intent()), task("ws_1"))
    assert raised.value.slug == "parent_not_running"


@pytest.mark.parametrize("status", [each for each in TaskStatus if not each.is_terminal])
def test_a_task_that_has_not_ended_gets_children_up_to_the_limits(status: TaskStatus) -> None:
    ancestors = tuple(f"task_{n}" for n in range(MAX_LEVELS - 2))
    last = parent(MAX_OPEN_DESCENDANTS - 1, status=status, ancestor_ids=ancestors)
    attached = child(last, task("ws_1"))
    assert attached.ancestor_ids == (*ancestors, last.task.id)
    assert (attached.parent_id, attached.root_id) == (last.task.id, "task_0")
    with pytest.raises(Failure) as raised:
        child(replace(last, task=attached), task("ws_1"))
    assert raised.value.slug == "tree_limit_reached"
    assert raised.value.details == {"task_id": attached.id, "limit": MAX_LEVELS}
    with pytest.raises(Failure) as raised:
        child(replace(last, open_descendants=MAX_OPEN_DESCENDANTS), task("ws_1"))
    assert raised.value.slug == "tree_limit_reached"
    assert raised.value.details == {"task_id": "task_0", "limit": MAX_OPEN_DESCENDANTS}


async def test_submitting_a_child_checks_in_order(world: World) -> None:
    _, running = await world.add_busy()
    failed = (await world.add(WorkspaceStatus.FAILED)).id
    assert (await refusal(world, "", by=caller("?"))).slug == "validation_error"
    only_submit = await refusal(world, "task_unknown", by=caller("tasks:write"))
    assert only_submit.slug == "permission_denied"
    assert only_submit.details["required"] == ["workspace:write", "workspace:write:own"]
    missing = await refusal(world, "task_unknown", workspace_id="ws_unknown")
    assert missing.slug == "workspace_not_found"
    unknown = await refusal(world, "task_unknown", workspace_id=failed)
    assert (unknown.slug, unknown.details["resource_name"]) == ("task_not_found", "task_unknown")
    someone = caller("tasks:write", "workspace:write:own", actor_id="user_2")
    denied = await refusal(world, running.id, by=someone, workspace_id=failed)
    assert denied.slug == "permission_denied"
    assert (await refusal(world, running.id, workspace_id=failed)).slug == "workspace_failed"
    await world.end(running.workspace_id, running.id)
    assert (await refusal(world, running.id, workspace_id=failed)).slug == "parent_not_running"


async def test_a_task_of_another_organization_is_no_parent(world: World) -> None:
    _, running = await world.add_busy()
    elsewhere = await world.add(org_id="org_b")
    by = caller(org_id="org_b")
    failure = await refusal(world, running.id, by=by, workspace_id=elsewhere.id)
    assert failure.slug == "task_not_found"


async def test_the_child_is_delivered_and_answered_with_its_parent(world: World) -> None:
    _, running = await world.add_busy()
    submitted = await submit(world, running.id)
    assert (submitted.parent_id, submitted.status) == (running.id, TaskStatus.DELIVERED)
    assert submitted == await world.task(submitted.workspace_id, submitted.id)


async def test_a_repeat_gets_the_first_answer_after_the_parent_has_ended(world: World) -> None:
    _, running = await world.add_busy()
    key, at = IdempotencyKey("key", b"1"), (await world.add()).id
    first = await submit(world, running.id, key=key, workspace_id=at)
    await world.end(running.workspace_id, running.id)
    assert (await submit(world, running.id, key=key, workspace_id=at)).id == first.id


async def test_a_cancelled_tree_signals_the_named_task_alone(world: World) -> None:
    """The fleet controller signals the agents of the other tasks."""
    busy, running = await world.add_busy()
    submitted = await submit(world, running.id)
    request = CancelTask(
        workspace_id=busy.id, task_id=running.id, include_descendants=True, origin=Origin("req_c")
    )
    result = await cancel_task(
        caller(), request, world.store, world.agents, world.subscriptions, world.clock
    )
    assert (result.outcome, result.descendants_cancelled) == ("accepted", 1)
    assert world.agents.cancelled == [running.id]
    assert (await world.task(submitted.workspace_id, submitted.id)).cancel is not None
    assert (await refusal(world, submitted.id)).slug == "parent_not_running"


async def test_listing_a_tree_needs_no_workspace(world: World) -> None:
    _, running = await world.add_busy()
    submitted = await submit(world, running.id)
    wanted = OrgListFilter(root_task_id=running.id)
    page, _ = await tasks.list_org_tasks(caller(), wanted, Page.of(0, ""), world.store)
    assert {each.id for each in page} == {submitted.id, running.id}
    within = OrgListFilter(root_task_id=running.id, workspace_id="ws_unknown")
    with pytest.raises(Failure, match="ws_unknown"):
        await tasks.list_org_tasks(caller(), within, Page.of(0, ""), world.store)
    invalid: list[dict[str, Any]] = [
        {"root_task_id": "?"},
        {"parent_task_id": "?"},
        {"workspace_ids": ("ws_1",)},
        {"workspace_ids": ("ws_1",), "workspace_id": "ws_1"},
        {"workspace_ids": ("?",), "active": True},
        {"workspace_ids": ("ws_1",) * 201, "active": True},
    ]
    for fields in invalid:
        with pytest.raises(Failure) as raised:
            OrgListFilter(**fields)
        assert raised.value.slug == "validation_error"

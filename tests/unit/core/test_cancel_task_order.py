"""The order of a cancellation's checks.

When several checks would fail, the call reports the first one and records nothing.
"""

from collections.abc import Iterator

import pytest

from evershell.core.caller import Caller
from evershell.core.cancel_task import CancelTask
from evershell.core.errors import Failure
from evershell.core.event import Origin
from evershell.core.workspace import WorkspaceStatus
from tests.support.world import World, caller

STRANGER = caller("workspace:write:own", actor_id="user_2")
ELSEWHERE = caller(org_id="org_b")
NO_SCOPE = caller("workspace:read", "tasks:write")
DOWN = {
    WorkspaceStatus.PROVISIONING: "workspace_provisioning",
    WorkspaceStatus.STOPPING: "workspace_stopped",
    WorkspaceStatus.STOPPED: "workspace_stopped",
    WorkspaceStatus.FAILED: "workspace_failed",
}


async def refusal(
    world: World, workspace_id: str, by: Caller | None = None, *, task_id: str | None = None
) -> Failure:
    """Cancels, checks that no agent was signalled, and returns the failure."""
    with pytest.raises(Failure) as raised:
        await world.cancel(workspace_id, by, task_id=task_id)
    assert world.agents.cancelled == []
    return raised.value


@pytest.fixture(params=WorkspaceStatus)
def status(request: pytest.FixtureRequest) -> Iterator[WorkspaceStatus]:
    yield request.param


def test_an_invalid_request_cannot_be_constructed() -> None:
    with pytest.raises(Failure) as raised:
        CancelTask(workspace_id="a b", task_id="/", reason="x" * 501, origin=Origin("req"))
    assert raised.value.slug == "validation_error"
    assert set(raised.value.details["fields"]) == {"workspace_id", "task_id", "reason"}


def test_an_empty_task_id_does_not_mean_the_task_that_runs() -> None:
    with pytest.raises(Failure, match="task_id"):
        CancelTask(workspace_id="ws_1", task_id="", origin=Origin("req"))


async def test_the_scope_is_checked_before_the_workspace_exists(world: World) -> None:
    failure = await refusal(world, "ws_unknown", NO_SCOPE, task_id="task_unknown")
    assert failure.slug == "permission_denied"
    assert failure.details["required"] == ["workspace:write", "workspace:write:own"]


async def test_the_scope_is_checked_before_the_status(
    world: World, status: WorkspaceStatus
) -> None:
    down = await world.add(status)
    assert (await refusal(world, down.id, NO_SCOPE)).slug == "permission_denied"


async def test_the_organization_is_checked_before_the_creator(world: World) -> None:
    busy, running = await world.add_busy()
    stranger = caller("workspace:write:own", org_id="org_b", actor_id="user_2")
    for by in (ELSEWHERE, stranger):
        failure = await refusal(world, busy.id, by, task_id=running.id)
        assert failure.slug == "workspace_not_found"
    assert (await world.task(busy.id, running.id)).cancel is None


async def test_a_foreign_workspace_and_a_missing_one_look_the_same(world: World) -> None:
    busy, _ = await world.add_busy()
    foreign = await refusal(world, busy.id, ELSEWHERE)
    missing = await refusal(world, "ws_unknown", ELSEWHERE)
    assert foreign.message.replace(busy.id, "ws_unknown") == missing.message
    assert set(foreign.details) == set(missing.details)


async def test_the_creator_is_checked_before_the_task_exists(world: World) -> None:
    busy, _ = await world.add_busy()
    failure = await refusal(world, busy.id, STRANGER, task_id="task_unknown")
    assert failure.slug == "permission_denied"
    assert failure.details["required"] == ["workspace:write"]


async def test_the_creator_is_checked_before_the_status(
    world: World, status: WorkspaceStatus
) -> None:
    down = await world.add(status)
    assert (await refusal(world, down.id, STRANGER)).slug == "permission_denied"


async def test_the_task_is_looked_up_before_the_status_is_checked(
    world: World, status: WorkspaceStatus
) -> None:
    down = await world.add(status)
    failure = await refusal(world, down.id, task_id="task_unknown")
    assert failure.slug == "task_not_found"
    assert (failure.details["resource_name"], failure.details["workspace_id"]) == (
        "task_unknown",
        down.id,
    )


async def test_a_task_of_another_workspace_is_not_found(world: World) -> None:
    busy, running = await world.add_busy()
    _, foreign = await world.add_busy()
    assert (await refusal(world, busy.id, task_id=foreign.id)).slug == "task_not_found"
    for at, each in ((busy.id, running.id), (foreign.workspace_id, foreign.id)):
        assert (await world.task(at, each)).cancel is None


@pytest.mark.parametrize(("down", "slug"), DOWN.items())
async def test_a_workspace_that_is_not_up_refuses_with_its_status(
    world: World, down: WorkspaceStatus, slug: str
) -> None:
    """Its open task is not changed."""
    busy, running = await world.add_busy()
    await world.set_status(busy.id, down)
    before = await world.events(busy.id)
    for task_id in (None, running.id):
        failure = await refusal(world, busy.id, task_id=task_id)
        assert (failure.slug, failure.details["status"], failure.details["workspace_id"]) == (
            slug,
            down,
            busy.id,
        )
        assert busy.id in failure.message
    assert (await world.task(busy.id, running.id)).cancel is None
    assert await world.events(busy.id) == before

"""The order of a cancellation's checks: when several would fail, the earlier one is told, and
nothing is recorded.
"""

from collections.abc import Iterator

import pytest

from server.core.caller import Caller, CredentialKind
from server.core.cancel_task import CancelTask
from server.core.errors import Failure
from server.core.event import Origin
from server.core.workspace import WorkspaceStatus
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
    world: World, workspace_id: str, by: Caller | None = None, *, task_id: str = ""
) -> Failure:
    """The failure of a call that signals no one."""
    with pytest.raises(Failure) as raised:
        await world.cancel(workspace_id, by, task_id=task_id)
    assert world.agents.cancelled == []
    return raised.value


@pytest.fixture(params=WorkspaceStatus)
def status(request: pytest.FixtureRequest) -> Iterator[WorkspaceStatus]:
    yield request.param


def test_a_request_that_is_not_valid_cannot_be_made() -> None:
    with pytest.raises(Failure) as raised:
        CancelTask(workspace_id="a b", task_id="/", reason="x" * 501, origin=Origin("req"))
    assert raised.value.slug == "validation_error"
    assert set(raised.value.details["fields"]) == {"workspace_id", "task_id", "reason"}


@pytest.mark.parametrize("workspace_id", ["", "ws 1", "ws_1\n", "ü", "x" * 129, "ws/1"])
def test_a_workspace_id_that_cannot_exist_is_not_valid(workspace_id: str) -> None:
    with pytest.raises(Failure, match="workspace_id"):
        CancelTask(workspace_id=workspace_id, origin=Origin("req"))


def test_a_reason_of_500_characters_is_valid_and_one_of_nul_is_not() -> None:
    CancelTask(workspace_id="w", reason="ü" * 500, origin=Origin("req"))
    with pytest.raises(Failure, match="NUL"):
        CancelTask(workspace_id="w", reason="a\0b", origin=Origin("req"))


async def test_the_scope_comes_before_whether_the_workspace_exists(world: World) -> None:
    failure = await refusal(world, "ws_unknown", NO_SCOPE, task_id="task_unknown")
    assert failure.slug == "permission_denied"
    assert failure.details["required"] == ["workspace:write", "workspace:write:own"]


async def test_the_scope_comes_before_the_state(world: World, status: WorkspaceStatus) -> None:
    down = await world.add(status)
    assert (await refusal(world, down.id, NO_SCOPE)).slug == "permission_denied"


async def test_another_organization_sees_none_before_the_creator_is_asked(world: World) -> None:
    busy, running = await world.add_busy()
    stranger = caller("workspace:write:own", org_id="org_b", actor_id="user_2")
    for by in (ELSEWHERE, stranger):
        failure = await refusal(world, busy.id, by, task_id=running.id)
        assert failure.slug == "workspace_not_found"
    assert (await world.task(busy.id, running.id)).cancel is None


async def test_anothers_workspace_and_none_at_all_look_the_same(world: World) -> None:
    busy, _ = await world.add_busy()
    theirs = await refusal(world, busy.id, ELSEWHERE)
    none = await refusal(world, "ws_unknown", ELSEWHERE)
    assert theirs.message.replace(busy.id, "ws_unknown") == none.message
    assert set(theirs.details) == set(none.details)


async def test_the_creator_comes_before_whether_the_task_exists(world: World) -> None:
    busy, _ = await world.add_busy()
    failure = await refusal(world, busy.id, STRANGER, task_id="task_unknown")
    assert failure.slug == "permission_denied"
    assert failure.details["required"] == ["workspace:write"]


async def test_the_creator_comes_before_the_state(world: World, status: WorkspaceStatus) -> None:
    down = await world.add(status)
    assert (await refusal(world, down.id, STRANGER)).slug == "permission_denied"


async def test_the_creator_comes_before_a_task_that_has_ended(world: World) -> None:
    busy, finished = await world.add_busy()
    await world.end(busy.id, finished.id)
    assert (
        await refusal(world, busy.id, STRANGER, task_id=finished.id)
    ).slug == "permission_denied"


async def test_a_task_that_is_not_known_comes_before_the_state(
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


@pytest.mark.parametrize(("down", "code"), DOWN.items())
async def test_a_workspace_that_is_not_up_is_told_by_its_state(
    world: World, down: WorkspaceStatus, code: str
) -> None:
    """Its open task, if it has one, is not touched."""
    busy, running = await world.add_busy()
    await world.set_status(busy.id, down)
    before = await world.events(busy.id)
    for task_id in ("", running.id):
        failure = await refusal(world, busy.id, task_id=task_id)
        assert (failure.slug, failure.details["status"], failure.details["workspace_id"]) == (
            code,
            down,
            busy.id,
        )
        assert busy.id in failure.message
    assert (await world.task(busy.id, running.id)).cancel is None
    assert await world.events(busy.id) == before


async def test_a_refused_call_records_nothing(world: World) -> None:
    busy, running = await world.add_busy()
    before = await world.events(busy.id)
    for by in (NO_SCOPE, ELSEWHERE, STRANGER):
        await refusal(world, busy.id, by)
    assert (await world.task(busy.id, running.id)).cancel is None
    assert await world.events(busy.id) == before


async def test_the_creator_with_their_own_scope_is_accepted(world: World) -> None:
    busy, _ = await world.add_busy()
    assert (await world.cancel(busy.id, caller("workspace:write:own"))).outcome == "accepted"


@pytest.mark.parametrize("creator", [None, "key_1"])
async def test_an_api_key_owns_nothing(world: World, creator: str | None) -> None:
    busy, _ = await world.add_busy(created_by_user_id=creator)
    key = caller("workspace:write:own", actor_id="key_1", kind=CredentialKind.API_KEY)
    assert (await refusal(world, busy.id, key)).slug == "permission_denied"

"""How workspaces are created, read, stopped, resumed and deleted."""

from collections.abc import Coroutine
from typing import Any

import pytest

from evershell.core import workspaces
from evershell.core.caller import Caller, CredentialKind
from evershell.core.errors import Failure
from evershell.core.event import Origin
from evershell.core.validation import Page
from evershell.core.workspace import Workspace, WorkspaceStatus
from tests.support.world import ORG, USER, World, caller


async def stop(world: World, workspace_id: str, by: Caller | None = None) -> Workspace:
    return await workspaces.stop_workspace(
        by or caller(), workspace_id, Origin("req_t"), world.store, world.agents, world.clock
    )


async def resume(world: World, workspace_id: str, by: Caller | None = None) -> Workspace:
    return await workspaces.resume_workspace(
        by or caller(), workspace_id, Origin("req_t"), world.store, world.clock
    )


async def delete(world: World, workspace_id: str, by: Caller | None = None) -> Workspace:
    return await workspaces.delete_workspace(
        by or caller(), workspace_id, Origin("req_t"), world.store, world.agents, world.clock
    )


async def slug_of(call: Coroutine[Any, Any, object]) -> str:
    with pytest.raises(Failure) as raised:
        await call
    return raised.value.slug


async def test_a_new_workspace_records_its_creator(world: World) -> None:
    made = await workspaces.create_workspace(
        caller("workspace:write:own"), "mine", Origin(), world.store, world.clock
    )
    assert made.id.startswith("ws_")
    assert (made.org_id, made.name, made.created_by_user_id) == (ORG, "mine", USER)
    assert (made.status, made.epoch, made.run_id) == (WorkspaceStatus.PROVISIONING, 1, None)
    assert await world.workspace(made.id) == made


async def test_a_workspace_of_an_api_key_has_no_creator(world: World) -> None:
    key = caller("workspace:write", actor_id="key_1", kind=CredentialKind.API_KEY)
    made = await workspaces.create_workspace(key, "", Origin(), world.store, world.clock)
    assert made.created_by_user_id is None


async def test_a_list_has_the_workspaces_that_the_caller_may_read(world: World) -> None:
    mine = await world.add()
    theirs = await world.add(created_by_user_id="user_2")
    await world.add(org_id="org_b")
    found, token = await workspaces.list_workspaces(caller(), Page.of(0, ""), world.store)
    assert ({each.id for each in found}, token) == ({mine.id, theirs.id}, "")
    found, _ = await workspaces.list_workspaces(
        caller("workspace:read:own"), Page.of(0, ""), world.store
    )
    assert [each.id for each in found] == [mine.id]
    named = [theirs.id, "ws_unknown"]
    found, _ = await workspaces.list_workspaces(caller(), Page.of(0, ""), world.store, named)
    assert [each.id for each in found] == [theirs.id]
    for wrong, problem in ((["?"], "must be 1 to 128"), (["ws_1"] * 201, "has 201 entries")):
        with pytest.raises(Failure, match=problem) as raised:
            await workspaces.list_workspaces(caller(), Page.of(0, ""), world.store, wrong)
        assert raised.value.slug == "validation_error"
    with pytest.raises(Failure, match="workspace:read"):
        await workspaces.list_workspaces(caller("tasks:write"), Page.of(0, ""), world.store)


@pytest.mark.parametrize("scope", ["workspace:write", "workspace:read"])
async def test_each_call_on_a_workspace_checks_in_order(world: World, scope: str) -> None:
    async def use(workspace_id: str, by: Caller) -> list[str]:
        if scope == "workspace:read":
            return [await slug_of(workspaces.get_workspace(by, workspace_id, world.store))]
        return [
            await slug_of(stop(world, workspace_id, by)),
            await slug_of(resume(world, workspace_id, by)),
            await slug_of(delete(world, workspace_id, by)),
        ]

    down = await world.add(WorkspaceStatus.FAILED)
    other = caller("audit:read")
    assert set(await use("a b", other)) == {"validation_error"}
    assert set(await use("ws_unknown", other)) == {"permission_denied"}
    assert set(await use("ws_unknown", caller(scope))) == {"workspace_not_found"}
    assert set(await use(down.id, caller(f"{scope}:own", org_id="org_b", actor_id="user_2"))) == {
        "workspace_not_found"
    }
    assert set(await use(down.id, caller(f"{scope}:own", actor_id="user_2"))) == {
        "permission_denied"
    }
    assert await world.workspace(down.id) == down


async def test_a_name_instead_of_an_id_is_recognized(world: World) -> None:
    with pytest.raises(Failure, match="ListWorkspaces has the id for each name") as raised:
        await workspaces.get_workspace(caller("workspace:read"), "nightly", world.store)
    assert raised.value.slug == "workspace_not_found"


async def test_a_stop_cancels_the_task_and_signals_the_agent(world: World) -> None:
    busy, running = await world.add_busy()
    stopping = await stop(world, busy.id)
    assert stopping.status is WorkspaceStatus.STOPPING
    assert world.agents.cancelled == [running.id]
    cancelled = await world.task(busy.id, running.id)
    assert cancelled.cancel is not None
    assert (cancelled.cancel.reason, cancelled.cancel.request_id) == ("workspace stopped", "req_t")


async def test_a_stop_succeeds_though_the_agent_is_unreachable(world: World) -> None:
    busy, running = await world.add_busy()
    world.agents.reachable = False
    assert (await stop(world, busy.id)).status is WorkspaceStatus.STOPPING
    assert (await world.task(busy.id, running.id)).cancel is not None


async def test_a_deletion_cancels_the_task_and_signals_the_agent(world: World) -> None:
    busy, running = await world.add_busy()
    world.agents.reachable = False
    deleting = await delete(world, busy.id)
    assert deleting.status is WorkspaceStatus.DELETING
    cancelled = await world.task(busy.id, running.id)
    assert cancelled.cancel is not None and cancelled.cancel.reason == "workspace deleted"
    world.agents.reachable = True
    assert await delete(world, busy.id) == deleting
    assert world.agents.cancelled[-1] == running.id


async def test_the_deletion_of_a_workspace_that_is_gone_is_answered_as_before(
    world: World,
) -> None:
    made = await world.add(WorkspaceStatus.STOPPED)
    deleting = await delete(world, made.id)
    await world.store.remove_workspace(made.id)
    assert await delete(world, made.id) == deleting
    mine, theirs = caller("workspace:write:own"), caller("workspace:write:own", actor_id="user_2")
    assert await delete(world, made.id, mine) == deleting
    assert await slug_of(delete(world, made.id, theirs)) == "permission_denied"
    elsewhere = caller("workspace:write", org_id="org_b")
    assert await slug_of(delete(world, made.id, elsewhere)) == "workspace_not_found"
    for call in (
        stop(world, made.id),
        resume(world, made.id),
        workspaces.get_workspace(caller(), made.id, world.store),
    ):
        assert await slug_of(call) == "workspace_not_found"


async def test_who_may_submit_tasks_may_resume(world: World) -> None:
    """SubmitTask's scopes are enough for ResumeWorkspace. The caller's widest permission counts."""
    failed = await world.add(WorkspaceStatus.FAILED)
    both = caller("workspace:write:own", "tasks:write", actor_id="user_2")
    assert (await resume(world, failed.id, both)).epoch == failed.epoch + 1
    failed = await world.add(WorkspaceStatus.FAILED)
    assert await slug_of(
        resume(world, failed.id, caller("tasks:write:own", actor_id="user_2"))
    ) == ("permission_denied")
    assert (await resume(world, failed.id, caller("tasks:write:own"))).epoch == failed.epoch + 1
    with pytest.raises(Failure) as raised:
        await resume(world, failed.id, caller("workspace:read"))
    assert raised.value.details["required"] == [
        "workspace:write",
        "workspace:write:own",
        "tasks:write",
        "tasks:write:own",
    ]

"""ResumeWorkspaces: which workspaces a call resumes, and its repeats."""

from typing import Any

import pytest

from evershell.core import resume_workspaces as use_case
from evershell.core.bulk import BulkResult
from evershell.core.caller import Caller, CredentialKind
from evershell.core.change import Hold, IdempotencyKey
from evershell.core.errors import Failure
from evershell.core.event import AuditFilter, Origin
from evershell.core.resume_workspaces import ResumeWorkspaces, resume_workspaces
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.core.workspace_filter import AllWorkspaces, WorkspaceFilter, WorkspaceSelection
from tests.support.store.audit import audit_entry
from tests.support.store.examples import permission
from tests.support.world import NOW, ORG, World, caller

ALL = AllWorkspaces()


async def resume(
    world: World, by: Caller | None = None, wanted: WorkspaceSelection = ALL, **fields: Any
) -> BulkResult:
    origin = Origin(audit=audit_entry(rpc="ResumeWorkspaces"))
    request = ResumeWorkspaces(wanted=wanted, origin=origin, **fields)
    return await resume_workspaces(by or caller(), request, world.store, world.clock)


def counts(result: BulkResult) -> tuple[int, int, int]:
    return result.matched, result.accepted, result.remaining


async def failed(world: World, **fields: Any) -> Workspace:
    added = await world.add(**fields)
    await world.set_status(added.id, WorkspaceStatus.FAILED)
    return await world.workspace(added.id)


async def test_only_failed_workspaces_are_resumed(world: World) -> None:
    gone = [await failed(world) for _ in range(2)]
    others = {}
    for status in set(WorkspaceStatus) - {WorkspaceStatus.FAILED}:
        added = await world.add()
        await world.set_status(added.id, status)
        others[added.id] = status
    foreign = await failed(world, org_id="org_b")
    result = await resume(world)
    assert counts(result) == (2, 2, 0)
    assert [(each.workspace_id, each.outcome) for each in result.results] == [
        (each.id, "accepted") for each in gone
    ]
    for each in gone:
        resumed = await world.workspace(each.id)
        assert resumed == each.in_new_epoch("", world.clock())
        assert resumed.status is WorkspaceStatus.PROVISIONING
    assert {id_: (await world.workspace(id_)).status for id_ in others} == others
    assert await world.workspace(foreign.id) == foreign
    assert counts(await resume(world)) == (0, 0, 0)


async def test_a_dry_run_resumes_nothing(world: World) -> None:
    gone = await failed(world)
    result = await resume(world, dry_run=True)
    assert counts(result) == (1, 0, 1)
    assert [(each.workspace_id, each.outcome) for each in result.results] == [(gone.id, "matched")]
    assert await world.workspace(gone.id) == gone
    (entry,) = await world.store.list_audit_entries(permission(), AuditFilter(), None, 10)
    assert (entry.rpc, entry.outcome) == ("ResumeWorkspaces", "dry_run")


async def test_a_call_resumes_the_oldest_workspaces(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(use_case, "MAX_WORKSPACES", 2)
    gone = [await failed(world) for _ in range(3)]
    assert counts(await resume(world)) == (3, 2, 1)
    assert (await world.workspace(gone[2].id)).status is WorkspaceStatus.FAILED
    assert counts(await resume(world)) == (1, 1, 0)


@pytest.mark.parametrize("dry_run", [False, True])
async def test_a_hold_refuses(world: World, *, dry_run: bool) -> None:
    gone = await failed(world)
    await world.store.hold_org(Hold(org_id=ORG, held_by="u", held_since=NOW, reason=""))
    for wanted in (ALL, WorkspaceFilter(workspace_ids=("ws_unknown",))):
        with pytest.raises(Failure) as raised:
            await resume(world, wanted=wanted, dry_run=dry_run)
        assert raised.value.slug == "org_on_hold"
    assert await world.workspace(gone.id) == gone


async def test_own_scopes_cover_own_workspaces(world: World) -> None:
    mine, other = await failed(world), await failed(world, created_by_user_id="user_2")
    own = caller("tasks:write:own")
    assert [each.workspace_id for each in (await resume(world, own)).results] == [mine.id]
    assert await world.workspace(other.id) == other
    key = caller("tasks:write:own", kind=CredentialKind.API_KEY)
    assert counts(await resume(world, key)) == (0, 0, 0)
    with pytest.raises(Failure) as raised:
        await resume(world, caller("workspace:write"))
    assert raised.value.slug == "permission_denied"


async def test_a_repeat_gets_the_first_counts(world: World) -> None:
    """Even if the organization is on hold now, or further workspaces have failed."""
    key = IdempotencyKey("key", b"request")
    await failed(world)
    await resume(world, key=key, dry_run=True)
    first = await resume(world, key=key)
    assert counts(first) == (1, 1, 0)
    later = await failed(world)
    assert await resume(world, key=key) == first
    assert await world.workspace(later.id) == later
    await world.store.hold_org(Hold(org_id=ORG, held_by="u", held_since=NOW, reason=""))
    assert await resume(world, key=key) == first
    with pytest.raises(Failure) as raised:
        await resume(world, key=IdempotencyKey("key", b"another request"))
    assert raised.value.slug == "idempotency_conflict"


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("filter", {}),
        *(
            ("filter.workspace_ids", {"workspace_ids": ids})
            for ids in ((), ("",), ("ws_1", "ws 1"), ("ws_1",) * 1001)
        ),
        *(
            ("filter.created_by_user_id", {"created_by_user_id": value})
            for value in ("", "x" * 256, "\0")
        ),
    ],
)
def test_a_filter_that_is_empty_or_not_valid_cannot_be_made(
    field: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(Failure) as raised:
        WorkspaceFilter(**fields)
    assert list(raised.value.details["fields"]) == [field]

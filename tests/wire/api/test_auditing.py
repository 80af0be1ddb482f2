"""Every call that changes something leaves one entry in the audit log, on a real server."""

import asyncio
import time
from typing import Any

import grpc
import pytest
from evershell.workspace.v1 import event_pb2
from evershell.workspace.v1 import workspace_service_pb2 as messages

from evershell.api.method_options import WORKSPACE_SERVICE, public_methods
from evershell.core.errors import UnavailableError
from evershell.core.event import AuditEntry, AuditFilter
from evershell.core.workspace import WorkspaceStatus
from tests.support.faulty_store import FaultyStore
from tests.support.store.examples import permission
from tests.support.waiting import eventually_async
from tests.support.world import NOW, ORG, World
from tests.wire.api.running import HOLDER, PUBLIC, READER, Running, bearer

CHANGING = sorted(
    path.removeprefix(PUBLIC)
    for path in public_methods(with_effect=True, services=[WORKSPACE_SERVICE])
)


async def stored(world: World) -> list[AuditEntry]:
    """The entries that the store committed as a part of the calls themselves, oldest first."""
    found = await world.store.list_audit_entries(permission(org_id=ORG), AuditFilter(), None, 100)
    return list(reversed(found))


async def entry_of(server: Running) -> AuditEntry:
    """The audit entry of the call that was made. There is only one."""
    # A call that fails is recorded after its reply.
    await eventually_async(lambda: server.audit.entries)
    (entry,) = server.audit.entries
    assert await stored(server.world) == []
    return entry


async def test_every_allowed_call_leaves_an_entry_with_its_change(
    server: Running, world: World
) -> None:
    """The test fails if a new method is not added here."""
    metadata = bearer(x_request_id="req_9", x_forwarded_for="203.0.113.7, 192.0.2.1")
    made = await server.stub.CreateWorkspace(messages.CreateWorkspaceRequest(), metadata=metadata)
    idle = await world.add()
    task = await server.stub.SubmitTask(
        messages.SubmitTaskRequest(workspace_id=idle.id, description="true"), metadata=metadata
    )
    await server.stub.CancelTask(
        messages.CancelTaskRequest(workspace_id=idle.id, reason="enough"), metadata=metadata
    )
    await server.stub.StopWorkspace(
        messages.StopWorkspaceRequest(workspace_id=idle.id), metadata=metadata
    )
    failed = await world.add(WorkspaceStatus.FAILED)
    await server.stub.ResumeWorkspace(
        messages.ResumeWorkspaceRequest(workspace_id=failed.id), metadata=metadata
    )
    await server.stub.DeleteWorkspace(
        messages.DeleteWorkspaceRequest(workspace_id=failed.id), metadata=metadata
    )
    await server.stub.CancelTasks(
        messages.CancelTasksRequest(all=True, reason="all"), metadata=metadata
    )
    await server.stub.ResumeWorkspaces(
        messages.ResumeWorkspacesRequest(all=True), metadata=metadata
    )
    by_holder = bearer(HOLDER, x_request_id="req_9", x_forwarded_for="203.0.113.7, 192.0.2.1")
    await server.stub.HoldOrg(messages.HoldOrgRequest(reason="stop"), metadata=by_holder)
    await server.stub.ReleaseOrg(messages.ReleaseOrgRequest(), metadata=by_holder)
    created = await server.stub.CreateWebhook(
        messages.CreateWebhookRequest(
            url="https://a.example/", event_types=[event_pb2.EventType.task_completed]
        ),
        metadata=metadata,
    )
    named = {"webhook_id": created.webhook.id}
    await server.stub.RotateWebhookSecret(
        messages.RotateWebhookSecretRequest(**named), metadata=metadata
    )
    await server.stub.ReplayWebhook(messages.ReplayWebhookRequest(**named), metadata=metadata)
    await server.stub.DeleteWebhook(messages.DeleteWebhookRequest(**named), metadata=metadata)
    # The clock stands still, so the calls have the same time and no order.
    entries = [*await stored(world), *filter(None, server.webhooks.audit)]
    found = sorted(entries, key=lambda each: CHANGING.index(each.rpc))
    assert [(each.rpc, each.outcome, each.workspace_id, each.task_id) for each in found] == [
        ("CancelTask", "accepted", idle.id, task.task_id),
        ("CancelTasks", "ok", "", ""),
        ("CreateWebhook", "ok", "", ""),
        ("CreateWorkspace", "ok", made.id, ""),
        ("DeleteWebhook", "ok", "", ""),
        ("DeleteWorkspace", "ok", failed.id, ""),
        ("HoldOrg", "ok", "", ""),
        ("ReleaseOrg", "ok", "", ""),
        ("ReplayWebhook", "ok", "", ""),
        ("ResumeWorkspace", "ok", failed.id, ""),
        ("ResumeWorkspaces", "ok", "", ""),
        ("RotateWebhookSecret", "ok", "", ""),
        ("StopWorkspace", "ok", idle.id, task.task_id),
        ("SubmitTask", "ok", idle.id, task.task_id),
    ]
    assert [each.rpc for each in found] == CHANGING
    cancel = found[0]
    assert cancel.id.startswith("aud_")
    assert (cancel.time, cancel.org_id, cancel.reason) == (NOW, ORG, "enough")
    assert (cancel.actor_id, cancel.credential_kind, cancel.credential_id) == (
        "key_full_access",
        "api_key",
        "key_full_access",
    )
    assert (cancel.request_id, cancel.client_address) == ("req_9", "192.0.2.1")
    assert server.audit.entries == []


async def test_a_call_without_a_credential_leaves_an_entry(server: Running) -> None:
    await server.raw(PUBLIC + "CancelTask", request=b"\x0a\x04ws_1")
    entry = await entry_of(server)
    assert (entry.rpc, entry.outcome) == ("CancelTask", "unauthenticated")
    assert (entry.org_id, entry.actor_id, entry.credential_kind) == ("", "", "")
    # The service does not read the request of an unknown caller.
    assert entry.workspace_id == ""
    assert entry.client_address == "127.0.0.1"


async def test_invalid_fields_are_left_out(server: Running) -> None:
    request = messages.CancelTaskRequest(workspace_id="ws 1\n", task_id="x" * 129, reason="a\0b")
    await server.raw(PUBLIC + "CancelTask", bearer(), request.SerializeToString())
    entry = await entry_of(server)
    assert entry.outcome == "validation_error"
    assert (entry.workspace_id, entry.task_id, entry.reason) == ("", "", "")


async def test_an_unreachable_agent_does_not_change_the_entry(
    server: Running, world: World
) -> None:
    busy, _ = await world.add_busy()
    world.agents.reachable = False
    seen = await server.fails(
        server.stub.CancelTask(messages.CancelTaskRequest(workspace_id=busy.id), metadata=bearer())
    )
    assert seen.slug == "agent_unreachable"
    assert [each.outcome for each in await stored(world)] == ["accepted"]
    assert server.audit.entries == []


@pytest.mark.parametrize(
    ("error", "outcome"), [(UnavailableError, "unavailable"), (KeyError, "internal")]
)
async def test_after_a_failure_the_entry_is_uncertain(
    store: FaultyStore, server: Running, error: type[Exception], outcome: str
) -> None:
    """The change and its entry may be committed in spite of the failure."""
    store.error = error
    await server.raw(PUBLIC + "CancelTask", bearer(), b"\x0a\x04ws_1")
    store.error = None
    entry = await entry_of(server)
    assert (entry.outcome, server.audit.uncertain) == (outcome, {entry.id})


async def test_a_caller_who_goes_away_leaves_an_uncertain_entry(
    server: Running, world: World
) -> None:
    busy, _ = await world.add_busy()
    arrived = asyncio.Event()

    async def never(*_: Any) -> None:
        arrived.set()
        await asyncio.Event().wait()

    world.agents.meanwhile = never
    call = server.stub.CancelTask(
        messages.CancelTaskRequest(workspace_id=busy.id), metadata=bearer()
    )
    waiting = asyncio.ensure_future(call)
    await arrived.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await eventually_async(lambda: server.audit.entries)
    (entry,) = server.audit.entries
    # The store already has an entry with the same id.
    (accepted,) = await stored(world)
    assert (entry.id, entry.outcome) == (accepted.id, "caller_gone")
    assert (accepted.outcome, server.audit.uncertain) == ("accepted", {entry.id})


async def test_a_flood_of_unauthenticated_calls_leaves_few_entries(server: Running) -> None:
    began = time.monotonic()
    calls = [server.raw(PUBLIC + "CancelTask", bearer("sk_unknown")) for _ in range(200)]
    await asyncio.gather(*calls)
    await eventually_async(lambda: len(server.audit.entries) + server.audit.lost == 200)
    # The limit is a burst of 20, and then 20 a second.
    assert 20 <= len(server.audit.entries) <= 20 * (1 + time.monotonic() - began)


async def test_the_log_is_listed_with_all_fields(server: Running, world: World) -> None:
    busy, task = await world.add_busy()
    await server.stub.CancelTask(
        messages.CancelTaskRequest(workspace_id=busy.id, reason="enough"),
        metadata=bearer(x_request_id="req_9", x_forwarded_for="192.0.2.1"),
    )
    page = await server.stub.ListAuditEntries(
        messages.ListAuditEntriesRequest(workspace_id=busy.id), metadata=bearer(READER)
    )
    (shown,) = page.entries
    (entry,) = await stored(world)
    assert (shown.id, shown.time.ToDatetime(entry.time.tzinfo)) == (entry.id, entry.time)
    for name in ("org_id", "actor_id", "credential_kind", "credential_id", "rpc", "workspace_id"):
        assert getattr(shown, name) == getattr(entry, name) != ""
    assert (shown.task_id, shown.outcome, shown.reason) == (task.id, "accepted", "enough")
    assert (shown.request_id, shown.trace_id, shown.client_address) == ("req_9", "", "192.0.2.1")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"workspace_id": "a b"}, "workspace_id"),
        ({"task_id": "a b"}, "task_id"),
        ({"rpc": "x" * 256}, "rpc"),
        ({"outcome": "\0"}, "outcome"),
        ({"start_time": {"seconds": 2}, "end_time": {"seconds": 1}}, "end_time"),
        ({"start_time": {"seconds": -1}}, "start_time"),
        ({"end_time": {"seconds": 253_402_300_800}}, "end_time"),
        ({"page_size": 201}, "page_size"),
    ],
)
async def test_an_invalid_filter_is_refused(
    server: Running, fields: dict[str, Any], problem: str
) -> None:
    seen = await server.fails(
        server.stub.ListAuditEntries(messages.ListAuditEntriesRequest(**fields), metadata=bearer())
    )
    assert seen.code is grpc.StatusCode.INVALID_ARGUMENT
    assert [each.field for each in seen.details["BadRequest"].field_violations] == [problem]


async def test_a_forged_address_cannot_fill_the_log(server: Running) -> None:
    await server.raw(PUBLIC + "CancelTask", bearer(x_forwarded_for="x" * 4000), b"\x0a\x01/")
    assert (await entry_of(server)).client_address == "x" * 45

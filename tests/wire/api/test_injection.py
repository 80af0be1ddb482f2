"""Text of callers is data: in answers, in the audit log, in log lines and in headers."""

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from evershell.workspace.v1 import workspace_service_pb2 as messages

from evershell.core.event import AuditFilter
from evershell.telemetry import logs
from tests.support.injections import INJECTIONS, PRINTABLE
from tests.support.store.examples import permission
from tests.support.waiting import eventually_async
from tests.support.world import ORG, World
from tests.wire.api.running import PUBLIC, Failed, Running, bearer

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(capfd: pytest.CaptureFixture[str]) -> Iterator[Lines]:
    """All lines of the real log so far. Each is one JSON object."""
    seen: list[str] = []

    def read() -> list[dict[str, Any]]:
        seen.extend(capfd.readouterr().err.splitlines())
        return [json.loads(line) for line in seen]

    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    logs.configure("serve", "INFO")
    # Otherwise the server's modules would keep this log for the tests of other files.
    structlog.configure(cache_logger_on_first_use=False)
    yield read
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


async def calls(lines: Lines, count: int) -> list[dict[str, Any]]:
    """The lines of calls, once there are `count`."""

    def found() -> list[dict[str, Any]]:
        return [line for line in lines() if line["event"] == "rpc_completed"]

    await eventually_async(lambda: len(found()) >= count)
    completed = found()
    assert len(completed) == count
    return completed


@pytest.mark.parametrize("name", INJECTIONS)
async def test_a_text_comes_back_as_it_was_sent(
    server: Running, world: World, lines: Lines, name: str
) -> None:
    text, metadata = INJECTIONS[name], bearer()
    created = await server.stub.CreateWorkspace(
        messages.CreateWorkspaceRequest(name=text), metadata=metadata
    )
    assert created.name == text
    idle = await world.add()
    submitted = await server.stub.SubmitTask(
        messages.SubmitTaskRequest(
            workspace_id=idle.id, description=text, metadata={text[:64]: text}
        ),
        metadata=metadata,
    )
    await server.stub.CancelTask(
        messages.CancelTaskRequest(workspace_id=idle.id, reason=text), metadata=metadata
    )
    task = await server.stub.GetTask(
        messages.GetTaskRequest(workspace_id=idle.id, task_id=submitted.task_id), metadata=metadata
    )
    assert (task.description, dict(task.metadata)) == (text, {text[:64]: text})
    assert task.cancel_reason == text
    audit = await server.stub.ListAuditEntries(
        messages.ListAuditEntriesRequest(workspace_id=idle.id, rpc="CancelTask"), metadata=metadata
    )
    assert [each.reason for each in audit.entries] == [text]
    # There is one line for each call; the text has not added a line.
    assert {line["outcome"] for line in await calls(lines, 5)} == {"ok"}


@pytest.mark.parametrize("name", INJECTIONS)
async def test_a_text_in_place_of_an_id_is_refused_and_repeated_nowhere(
    server: Running, world: World, lines: Lines, name: str
) -> None:
    text = INJECTIONS[name]
    requests = {
        "CancelTask": messages.CancelTaskRequest(workspace_id=text, task_id=text),
        "SubmitTask": messages.SubmitTaskRequest(workspace_id=text, description="true"),
        "GetTask": messages.GetTaskRequest(workspace_id=text, task_id=text),
        "ListTasks": messages.ListTasksRequest(workspace_id=text, page_token=text),
        "WatchEvents": messages.WatchEventsRequest(workspace_id=text),
        "ListEvents": messages.ListEventsRequest(workspace_id=text),
        "GetWorkspace": messages.GetWorkspaceRequest(workspace_id=text),
        "ListWorkspaces": messages.ListWorkspacesRequest(page_token=text),
        "StopWorkspace": messages.StopWorkspaceRequest(workspace_id=text),
        "ResumeWorkspace": messages.ResumeWorkspaceRequest(workspace_id=text),
        "DeleteWorkspace": messages.DeleteWorkspaceRequest(workspace_id=text),
        "ListAuditEntries": messages.ListAuditEntriesRequest(workspace_id=text, task_id=text),
    }
    for method, request in requests.items():
        metadata = bearer(x_evershell_edge="rest")
        seen = await server.raw(PUBLIC + method, metadata, request.SerializeToString())
        assert isinstance(seen, Failed) and seen.slug == "validation_error", method
        assert text not in seen.message and text not in json.dumps(seen.envelope)
    completed = await calls(lines, len(requests))
    assert {line["outcome"] for line in completed} == {"validation_error"}
    await eventually_async(lambda: len(server.audit.entries) == 5)
    assert {each.workspace_id + each.task_id for each in server.audit.entries} == {""}


@pytest.mark.parametrize("name", PRINTABLE)
async def test_a_text_in_a_header_is_one_value(
    server: Running, world: World, lines: Lines, name: str
) -> None:
    idle, text = await world.add(), PRINTABLE[name].strip()
    metadata = bearer(x_request_id=text, user_agent=text, x_forwarded_for=text, traceparent=text)
    call = server.stub.CancelTask(
        messages.CancelTaskRequest(workspace_id=idle.id), metadata=metadata
    )
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == text
    (line,) = await calls(lines, 1)
    assert (line["request_id"], line["org_id"], line["outcome"]) == (text, ORG, "ok")
    (entry,) = await world.store.list_audit_entries(permission(), AuditFilter(), None, 9)
    assert (entry.request_id, entry.trace_id) == (text, "")
    assert (entry.org_id, entry.outcome) == (ORG, "no_active_task")
    # The entry has only the part after the last comma, which the edge adds.
    assert entry.client_address == text.rpartition(",")[2].strip()

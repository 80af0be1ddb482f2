"""The codec between the messages of callers and the core's objects keeps every field."""

import dataclasses
from datetime import timedelta
from typing import Any

import pytest
from a2a.types import a2a_pb2
from evershell.workspace.v1 import event_pb2, task_pb2, workspace_pb2
from evershell.workspace.v1 import workspace_service_pb2 as messages
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.type.money_pb2 import Money

from evershell.api import codec, event_codec
from evershell.core import event
from evershell.core.cancel_task import CancelResult, Outcome
from evershell.core.errors import Failure
from evershell.core.event import Event, EventType, NewEvent, Origin
from evershell.core.event_feeds import Heartbeat
from evershell.core.task import Limit, Phase, TaskStatus
from evershell.core.task_filter import AllTasks, TaskFilter
from evershell.core.task_limits import Budget
from evershell.core.workspace import Workspace, WorkspaceStatus
from evershell.features.a2a.encode import encode_updates
from tests.support.world import NOW
from tests.wire.api.full_task import INTENT, PARALLEL, TASK

ORIGIN = Origin("req_1")


def as_dict(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return found


def names(message: type[Message]) -> set[str]:
    return {field.name for field in message.DESCRIPTOR.fields}


def test_every_field_of_a_task_is_encoded() -> None:
    seen = as_dict(codec.encode_task(TASK))
    assert set(seen) == names(task_pb2.Task)
    assert seen == {
        "id": "task_1",
        "workspace_id": "ws_1",
        "description": "ls",
        "status": "running",
        "phase": "tool_call",
        "iterations": 5,
        "created_at": "2026-01-02T03:04:05Z",
        "started_at": "2026-01-02T03:04:06Z",
        "completed_at": "2026-01-02T03:04:07Z",
        "cancel_requested_at": "2026-01-02T03:04:06Z",
        "cancel_requested_by": "user_9",
        "cancel_reason": "enough",
        "cancel_force_at": "2026-01-02T03:04:09Z",
        "reason": "why",
        "result": "what",
        "usage": {
            "input_tokens": "1099511627776",
            "output_tokens": "2",
            "model_calls": "3",
            "tool_calls": "4",
            "cost": {"currency_code": "USD", "units": "1", "nanos": 500_000_000},
        },
        "forced": True,
        "iteration_lost": True,
        "metadata": {"k": "v"},
        "max_iterations": 7,
        "submitted_by": "user_7",
        "limits": {
            "max_duration": "90.500s",
            "max_total_tokens": "1099511627776",
            "max_cost": {"currency_code": "USD", "units": "2"},
            "force_after": "0s",
        },
        "parent_task_id": "task_parent",
        "root_task_id": "task_root",
    }


def test_every_field_of_a_workspace_is_encoded() -> None:
    workspace = Workspace(
        id="ws_1",
        org_id="org_a",
        name="n",
        status=WorkspaceStatus.FAILED,
        status_reason="why",
        created_by_user_id="user_1",
        created_at=NOW,
        updated_at=NOW + timedelta(seconds=1),
        current_task_id="task_1",
        epoch=2**40,
    )
    seen = as_dict(codec.encode_workspace(workspace))
    assert set(seen) == names(workspace_pb2.Workspace)
    assert (seen["status"], seen["epoch"], seen["updated_at"]) == (
        "failed",
        "1099511627776",
        "2026-01-02T03:04:06Z",
    )


@pytest.mark.parametrize(
    ("values", "enum"),
    [
        (list(TaskStatus), task_pb2.Task.Status),
        (list(WorkspaceStatus), workspace_pb2.Workspace.Status),
        ([phase for phase in Phase if phase], task_pb2.Task.Phase),
        (list(Outcome), messages.CancelTaskResponse.Outcome),
    ],
)
def test_the_values_of_each_enum_are_those_of_the_protos(values: list[str], enum: Any) -> None:
    assert [str(value) for value in values] == enum.keys()[1:]
    assert enum.keys()[0].endswith("_unspecified")


BUDGET = Budget(Limit.MAX_COST, 2_000_000_000, 1_600_000_000)
PAYLOADS: dict[EventType, NewEvent] = {
    EventType.WORKSPACE_PROVISIONED: event.workspace_event(
        EventType.WORKSPACE_PROVISIONED, NOW, epoch=1
    ),
    EventType.WORKSPACE_STOPPED: event.workspace_event(
        EventType.WORKSPACE_STOPPED, NOW, reason="r"
    ),
    EventType.WORKSPACE_FAILED: event.workspace_event(EventType.WORKSPACE_FAILED, NOW, reason="r"),
    EventType.WORKSPACE_RESUMED: event.workspace_event(EventType.WORKSPACE_RESUMED, NOW, epoch=2),
    EventType.TASK_SUBMITTED: event.task_submitted(TASK, "user_1"),
    EventType.TASK_STARTED: event.task_started(TASK, 2, NOW),
    EventType.ITERATION_COMPLETED: event.iteration_completed(TASK, PARALLEL, NOW),
    EventType.TASK_CANCEL_REQUESTED: event.task_cancel_requested(TASK, INTENT),
    EventType.TASK_LIMIT_APPROACHED: event.task_limit_approached(TASK, BUDGET, NOW),
    EventType.TASK_COMPLETED: event.task_completed(TASK, NOW, work_stopped=False),
}


def test_each_type_of_event_has_an_example() -> None:
    assert {EventType.UNSPECIFIED, *PAYLOADS} == {*EventType}
    of_tasks = {type_ for type_, new in PAYLOADS.items() if new.task_id}
    assert of_tasks == {*event.TASK_EVENT_TYPES}


@pytest.mark.parametrize("type_", PAYLOADS)
def test_every_field_of_every_event_is_encoded(type_: EventType) -> None:
    new = PAYLOADS[type_]
    entry = Event(
        workspace_id="ws_1",
        seq=9,
        type=type_,
        time=NOW,
        payload=new.payload,
        task_id=new.task_id,
        origin=Origin("req_1"),
    )
    seen = event_codec.encode_event(entry).event
    assert (seen.seq, seen.workspace_id, seen.task_id, seen.request_id) == (
        9,
        "ws_1",
        new.task_id or "",
        "req_1",
    )
    assert event_pb2.EventType.Type.Name(seen.type) == type_ == seen.WhichOneof("payload")
    payload = getattr(seen, type_)
    assert set(as_dict(payload)) == names(type(payload))


def test_a_heartbeat_has_the_last_sequence_number() -> None:
    seen = event_codec.encode_heartbeat(Heartbeat(NOW, 7))
    assert (seen.heartbeat.seq, seen.heartbeat.time.ToDatetime(NOW.tzinfo)) == (7, NOW)


def test_each_event_of_a_batch_is_encoded_and_serialized() -> None:
    batch = [
        Event(workspace_id="ws_1", seq=seq, type=new.type, time=NOW, payload=new.payload)
        for seq, new in enumerate(PAYLOADS.values(), 1)
    ]
    assert [
        messages.WatchEventsResponse.FromString(each) for each in event_codec.encode_events(batch)
    ] == [event_codec.encode_event(event) for event in batch]


def test_an_event_of_a_type_of_a_later_version_has_no_payload() -> None:
    unknown = Event(
        workspace_id="ws_1",
        seq=7,
        type=EventType("of_a_later_version"),
        time=NOW,
        payload={"a": 1},
        task_id="task_1",
    )
    seen = event_codec.encode_event(unknown).event
    assert (seen.seq, seen.task_id, seen.type) == (7, "task_1", 0)
    assert seen.WhichOneof("payload") is None
    (update,) = encode_updates([unknown])
    status = a2a_pb2.StreamResponse.FromString(update.messages[0]).status_update
    assert (update.is_end, status.status.state) == (False, a2a_pb2.TASK_STATE_WORKING)


def test_streams_of_a2a_have_an_update_for_each_event_of_a_task() -> None:
    events = [
        Event(workspace_id="ws_1", seq=7, type=new.type, time=NOW, payload=new.payload, task_id=id_)
        for new in PAYLOADS.values()
        if (id_ := new.task_id)
    ]
    updates = encode_updates(events)
    assert [update.task_id for update in updates] == [item.task_id for item in events]
    assert {EventType.TASK_LIMIT_APPROACHED, EventType.TASK_COMPLETED} <= {
        item.type for item in events
    }
    for item, update in zip(events, updates, strict=True):
        status = a2a_pb2.StreamResponse.FromString(update.messages[-1]).status_update
        assert item.type in MessageToDict(status.metadata)


def test_the_reply_to_a_cancellation_names_the_first_requester() -> None:
    seen = as_dict(codec.encode_cancel(CancelResult("ws_1", Outcome.ALREADY_REQUESTED, TASK, 3)))
    assert set(seen) == names(messages.CancelTaskResponse)
    assert (seen["outcome"], seen["requested_by"], seen["reason"]) == (
        "already_requested",
        "user_9",
        "enough",
    )
    assert seen["descendants_cancelled"] == 3


def test_every_field_of_a_filter_is_decoded() -> None:
    """If a field were lost, the call would cancel more tasks."""
    filled = TaskFilter(
        task_ids=("task_1", "task_2"),
        workspace_ids=("ws_1",),
        created_by_user_id="user_1",
        submitted_by="key_1",
        submitted_before=NOW,
        metadata={"team": "a"},
    )
    fields = {each.name: getattr(filled, each.name) for each in dataclasses.fields(TaskFilter)}
    assert set(fields) == names(messages.TaskFilter)
    for name, value in fields.items():
        one = messages.TaskFilter(**{name: value})
        request = messages.CancelTasksRequest(filter=one)
        assert codec.decode_cancel_tasks(request, ORIGIN).wanted == TaskFilter(**{name: value})
    whole = messages.CancelTasksRequest(filter=messages.TaskFilter(**fields))
    assert codec.decode_cancel_tasks(whole, ORIGIN).wanted == filled


def test_all_tasks_are_selected_by_all_alone() -> None:
    request = messages.CancelTasksRequest(all=True)
    assert codec.decode_cancel_tasks(request, ORIGIN).wanted == AllTasks()


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, "filter"),
        ({"all": False, "dry_run": True}, "filter"),
        ({"filter": {}}, "filter"),
        ({"filter": {}, "all": True}, "all"),
        ({"filter": {"task_ids": ["task_1"]}, "all": True}, "all"),
        ({"filter": {"task_ids": []}}, "filter"),
        ({"filter": {"task_ids": [""]}}, "filter.task_ids"),
        ({"filter": {"submitted_by": ""}}, "filter.submitted_by"),
        ({"filter": {"created_by_user_id": "", "submitted_by": "u"}}, "filter.created_by_user_id"),
    ],
)
def test_a_request_that_names_no_tasks_is_refused(request_: dict[str, Any], field: str) -> None:
    with pytest.raises(Failure) as raised:
        codec.decode_cancel_tasks(messages.CancelTasksRequest(**request_), ORIGIN)
    assert set(raised.value.details["fields"]) == {field}


@pytest.mark.parametrize("field", ["wait", "force_after"])
def test_a_duration_of_zero_differs_from_no_duration(field: str) -> None:
    def decoded(**fields: Any) -> float | None:
        request = messages.CancelTaskRequest(workspace_id="ws_1", **fields)
        cancellation = codec.decode_cancel(request, Origin("req_1"))
        seconds: float | None = getattr(cancellation, f"{field}_seconds")
        return seconds

    assert decoded() is None
    assert decoded(**{field: Duration()}) == 0
    assert decoded(**{field: Duration(seconds=2, nanos=500_000_000)}) == 2.5


@pytest.mark.parametrize(
    ("currency", "units", "nanos"),
    [("EUR", 1, 0), ("", 1, 0), ("usd", 1, 0), ("USD", -1, 0), ("USD", 0, -1), ("USD", 0, 10**9)],
)
def test_an_amount_must_be_in_dollars_and_not_negative(
    currency: str, units: int, nanos: int
) -> None:
    amount = Money(currency_code=currency, units=units, nanos=nanos)
    with pytest.raises(Failure) as raised:
        codec.decode_limits(task_pb2.TaskLimits(max_cost=amount))
    assert list(raised.value.details["fields"]) == ["limits.max_cost"]


def test_an_amount_is_decoded_in_nano_dollars() -> None:
    amount = Money(currency_code="USD", units=2, nanos=1)
    limits = codec.decode_limits(task_pb2.TaskLimits(max_cost=amount))
    assert limits.max_cost_nanos == 2_000_000_001

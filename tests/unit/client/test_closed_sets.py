"""The client has all calls, fields and values that the protos have."""

import dataclasses
import inspect
import json
import re
from decimal import Decimal
from enum import StrEnum
from typing import Any

import pytest
from evershell.workspace.v1 import (
    event_pb2,
    task_pb2,
    webhook_pb2,
    workspace_pb2,
    workspace_service_pb2,
)
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.type.money_pb2 import Money

from evershell.client import Client, events, types, webhooks
from evershell.client._messages import Result, name_in_message
from evershell.client._sync.webhooks import Webhooks

SERVICE = workspace_service_pb2.DESCRIPTOR.services_by_name["WorkspaceService"]
# The methods of the client whose names differ from the names of their RPCs.
RENAMED = {
    "CancelTask": "cancel",
    "WatchEvents": "watch",
    "HoldOrg": "hold",
    "ReleaseOrg": "release",
    "CreateWebhook": "webhooks.create",
    "ListWebhooks": "webhooks.list",
    "DeleteWebhook": "webhooks.delete",
    "RotateWebhookSecret": "webhooks.rotate",
    "ReplayWebhook": "webhooks.replay",
    "ListWebhookDeliveries": "webhooks.deliveries",
}
# The client's method for each RPC. The streams for REST are left out.
METHODS = {
    rpc.name: RENAMED.get(rpc.name) or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", rpc.name).lower()
    for rpc in SERVICE.methods
    if not rpc.name.startswith("Stream")
}


def method_of(rpc: str) -> Any:
    """Returns the client's function for an RPC."""
    owner, _, name = METHODS[rpc].rpartition(".")
    return getattr({"": Client, "webhooks": Webhooks}[owner], name)


def results() -> list[Any]:
    return [
        value
        for module in (types, events, webhooks)
        for value in vars(module).values()
        if dataclasses.is_dataclass(value) and value.__module__ == module.__name__
    ]


def enums() -> dict[StrEnum, Any]:
    """Returns the enums of the client, each with the proto enum that it stands for."""
    found: dict[Any, Any] = {}
    for result in results():
        descriptor = result._message_type.DESCRIPTOR
        for field in dataclasses.fields(result):
            hints = inspect.get_annotations(result)[field.name]
            kind = next(
                (
                    each
                    for each in getattr(hints, "__args__", (hints,))
                    if isinstance(each, type) and issubclass(each, StrEnum)
                ),
                None,
            )
            if kind is not None:
                found[kind] = descriptor.fields_by_name[field.name].enum_type
    return found


def test_each_rpc_has_a_method() -> None:
    assert all(callable(method_of(rpc)) for rpc in METHODS)


@pytest.mark.parametrize("rpc", METHODS)
def test_each_field_of_a_request_is_an_argument(rpc: str) -> None:
    fields = set(SERVICE.methods_by_name[rpc].input_type.fields_by_name)
    assert fields <= set(inspect.signature(method_of(rpc)).parameters)


@pytest.mark.parametrize("result", results(), ids=lambda result: result.__name__)
def test_a_result_has_each_field_of_its_message(result: Any) -> None:
    descriptor = result._message_type.DESCRIPTOR
    # An optional field is in a oneof that is named after it, with an underscore.
    oneofs = {name for name in descriptor.oneofs_by_name if not name.startswith("_")}
    in_oneofs = {field.name for name in oneofs for field in descriptor.oneofs_by_name[name].fields}
    names = ({field.name for field in descriptor.fields} - in_oneofs) | oneofs
    own = {name_in_message(field) for field in dataclasses.fields(result)}
    # An answer also has the request id, which comes from the metadata.
    from_metadata = {"request_id"} if descriptor.name.endswith("Response") else set()
    assert own - from_metadata == names


@pytest.mark.parametrize("kind", enums(), ids=lambda kind: str(kind.__name__))
def test_an_enum_has_each_value_of_the_proto(kind: Any) -> None:
    values = {value.name for value in enums()[kind].values if value.number}
    assert {member.value for member in kind} == values | {"unspecified"}


def test_each_payload_has_a_class() -> None:
    oneof = event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"]
    for field in oneof.fields:
        message = event_pb2.Event(type=event_pb2.EventType.Type.Value(field.name))
        getattr(message, field.name).SetInParent()
        event = events.event_of(message)
        assert field.message_type is not None
        assert type(event.payload).__name__ == field.message_type.name
        assert event.type.value == field.name
        assert event.to_dict()[field.name] is not None


def test_a_value_that_only_a_newer_service_has_is_unspecified() -> None:
    task = types.Task._from_message(
        task_pb2.Task(id="task_1", status=99, phase=99)  # type: ignore[arg-type]
    )
    assert (task.status, task.phase) == (types.TaskStatus.UNSPECIFIED, None)
    unknown = events.event_of(event_pb2.Event(seq=1, type=99))  # type: ignore[arg-type]
    assert (unknown.type, unknown.payload) == (events.EventType.UNSPECIFIED, None)


STAMP = Timestamp(seconds=1_700_000_000, nanos=123_000)
IDLE = workspace_pb2.Workspace(id="ws_1", status=workspace_pb2.Workspace.idle, epoch=2**40)
TOOL_CALL = event_pb2.ToolCall(id="t", result=event_pb2.ToolResult(exit_code=-9, truncated_bytes=1))
TASK = task_pb2.Task(
    id="task_1",
    phase=task_pb2.Task.model_call,
    usage=task_pb2.Usage(cost=Money(currency_code="USD", nanos=1)),
    limits=task_pb2.TaskLimits(max_cost=Money(currency_code="USD", units=2, nanos=500_000_000)),
    metadata={"a": "b"},
)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (types.Workspace, IDLE),
        (
            types.CancelResult,
            workspace_service_pb2.CancelTaskResponse(
                workspace_id="ws_1",
                outcome=workspace_service_pb2.CancelTaskResponse.accepted,
                requested_at=STAMP,
                task=TASK,
            ),
        ),
        (
            webhooks.Webhook,
            webhook_pb2.Webhook(id="wh_1", event_types=[event_pb2.EventType.task_completed]),
        ),
        (
            events.EventOf,
            event_pb2.Event(
                seq=7,
                type=event_pb2.EventType.iteration_completed,
                time=STAMP,
                iteration_completed=event_pb2.IterationCompleted(
                    number=1,
                    model_call=event_pb2.ModelCall(
                        model="m", status=event_pb2.ModelCall.completed
                    ),
                    tool_call=TOOL_CALL,
                    tool_calls=[TOOL_CALL, TOOL_CALL],
                ),
            ),
        ),
    ],
)  # fmt: skip
def test_a_result_can_be_shown_as_the_rest_api_shows_it(
    result: type[Result], message: Message
) -> None:
    expected = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    shown = result._from_message(message).to_dict()
    assert shown == expected
    assert json.loads(json.dumps(shown)) == expected


def test_a_text_may_be_the_word_for_an_unknown_value() -> None:
    message = task_pb2.Task()
    message.CopyFrom(TASK)
    message.description = "unspecified"
    assert types.Task._from_message(message).to_dict()["description"] == "unspecified"


def test_amounts_are_exact() -> None:
    read = types.Task._from_message(TASK)
    assert read.usage.cost == Decimal("0.000000001")
    assert read.limits is not None and read.limits.max_cost == Decimal("2.5")
    nothing = types.Usage._from_message(task_pb2.Usage(cost=Money(currency_code="USD")))
    assert str(nothing.cost) == "0"
    unknown = types.Usage._from_message(task_pb2.Usage())
    assert unknown.cost is None

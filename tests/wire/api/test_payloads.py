"""Payloads become the same messages as with ParseDict, whatever they contain.

The random texts have no lone surrogates: PostgreSQL cannot store them, and ParseDict fails on some.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from evershell.workspace.v1 import event_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import example, given
from hypothesis import strategies as st

from evershell.api.event_codec import encode_event
from evershell.core.event import Event, EventType
from tests.support.world import NOW

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_INTEGERS = st.integers(-(2**65), 2**65) | st.integers(-9, 9) | st.just(2**31)
# Values that are not valid for most fields, or for any field.
_ODD = st.one_of(
    st.none(),
    st.booleans(),
    _INTEGERS,
    _INTEGERS.map(str),
    st.sampled_from([1.0, 1.5, 1e40, "", " 1", "1.0", "+1", "-1", "1_0", "٣", "²", "x" * 70_000]),
    _TEXT,
    st.lists(_INTEGERS, max_size=2),
    st.dictionaries(_TEXT, _INTEGERS, max_size=2),
)


def _fields_of(message: Descriptor) -> st.SearchStrategy[dict[str, Any]]:
    """Payloads whose fields are absent or have usual values, and payloads with any values.

    The latter may also have fields with their JSON names, and unknown fields.
    """
    known = {
        name: _usual(field) | _usual(field) | _ODD
        for field in message.fields
        for name in (field.name, field.json_name)
    }
    usual = {field.name: _usual(field) for field in message.fields}
    unknown = {"of_a_later_version": _ODD, "trace_id": _TEXT}
    return st.fixed_dictionaries({}, optional=usual) | st.fixed_dictionaries(
        {}, optional=known | unknown
    )


def _usual(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    if field.is_repeated:
        assert field.message_type is not None
        return st.lists(_fields_of(field.message_type), max_size=2)
    if field.message_type is not None:
        if field.message_type.full_name == Timestamp.DESCRIPTOR.full_name:
            times = st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat)
            return times | st.sampled_from(["2026-01-02T03:04:05Z", "2026-01-02T03:04:05+02:00"])
        return _fields_of(field.message_type)
    if field.enum_type is not None:
        return st.sampled_from([*field.enum_type.values_by_name, "of_a_later_version"])
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _TEXT
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    small = st.integers(0, 2**31 - 1)
    return small | small.map(str) | _INTEGERS


def _field(event_type: str) -> FieldDescriptor:
    return event_pb2.Event.DESCRIPTOR.fields_by_name[event_type]


def _payload_of(event_type: str) -> Descriptor:
    found = _field(event_type).message_type
    assert found is not None
    return found


def encoded(event_type: EventType, payload: Mapping[str, Any]) -> Message:
    entry = Event(workspace_id="ws_1", seq=1, type=event_type, time=NOW, payload=payload)
    event = encode_event(entry).event
    assert event.WhichOneof("payload") == event_type
    message: Message = getattr(event, event_type)
    return message


def parsed(event_type: EventType, payload: Mapping[str, Any]) -> Message:
    message: Message = getattr(event_pb2.Event(), event_type)
    return ParseDict(dict(payload), message, ignore_unknown_fields=True)


@example((EventType.TASK_STARTED, {"epoch": "1"}))
@example((EventType.TASK_STARTED, {"epoch": 1}))
@example((EventType.TASK_STARTED, {"epoch": True}))
@example((EventType.TASK_STARTED, {"epoch": 2**63}))
@example((EventType.TASK_SUBMITTED, {"description": "\ud800"}))
@example((EventType.TASK_COMPLETED, {"forced": 1}))
@example((EventType.TASK_COMPLETED, {"status": "of_a_later_version", "result": "r"}))
@example((EventType.TASK_COMPLETED, {"status": 5, "cancel": {"requested_at": "2026-01-02"}}))
@example((EventType.ITERATION_COMPLETED, {"model_call": {}, "tool_call": {"result": None}}))
@example((EventType.ITERATION_COMPLETED, {"tool_calls": [{"name": "a"}, {"name": "b"}]}))
@example((EventType.ITERATION_COMPLETED, {"tool_calls": [None]}))
@example((EventType.ITERATION_COMPLETED, {"tool_calls": {}}))
@example((EventType.ITERATION_COMPLETED, {"modelCall": {"inputTokens": "5"}}))
@example((EventType.ITERATION_COMPLETED, {"toolCall": {}, "tool_call": {}}))
@given(
    st.sampled_from([each for each in EventType if each is not EventType.UNSPECIFIED]).flatmap(
        lambda event_type: st.tuples(st.just(event_type), _fields_of(_payload_of(event_type)))
    )
)
def test_a_payload_becomes_the_message_that_parse_dict_makes(
    case: tuple[EventType, dict[str, Any]],
) -> None:
    event_type, payload = case
    try:
        expected = parsed(event_type, payload)
    except ParseError:
        with pytest.raises(ParseError):
            encoded(event_type, payload)
    else:
        found = encoded(event_type, payload)
        assert found == expected
        assert found.SerializeToString() == expected.SerializeToString()

"""Writes the results of the Python client: a frozen dataclass for each message that a caller gets
or makes, and its enums.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from python_text import CLIENT, FIELDS, Texts, docstring, summarized
from source import PACKAGE, Protos

# The modules, with their docstrings. A message about webhooks is in `webhooks`, one of event.proto
# in `events`, and all others are in `types`.
MODULES = {
    "types": "The results of the client, and their enums. Absent values are None.",
    "events": (
        "The events in the log of a workspace. The payload of an Event has the class of its type."
    ),
    "webhooks": "The results of the calls about webhooks.",
}
# The classes that do not have the name of their message or enum.
_NAMES = {
    "Caller": "CallerInfo",
    "CancelTaskResponse": "CancelResult",
    "SubmitTaskResponse": "SubmittedTask",
    "CancelTasksResult": "CancelledTask",
    "CancelTasksResponse": "CancelTasksResult",
    "ResumeWorkspacesResult": "ResumedWorkspace",
    "ResumeWorkspacesResponse": "ResumeWorkspacesResult",
    "HoldOrgResponse": "HoldResult",
    "CreateWebhookResponse": "CreatedWebhook",
    "RotateWebhookSecretResponse": "RotatedSecret",
    "ReplayWebhookResponse": "ReplayResult",
    "CancelTaskResponse.Outcome": "CancelOutcome",
    "CancelTasksResult.Outcome": "TaskOutcome",
    "ResumeWorkspacesResult.Outcome": "ResumeOutcome",
    "EventType.Type": "EventType",
    "TaskCompleted.WorkStopped": "WorkStopped",
    "ToolResult.Status": "ToolStatus",
    "WebhookDelivery.Status": "DeliveryStatus",
}
# By class: its first fields, if their order differs from the order in the message. Callers rely on
# this order, because they may pass positional arguments.
_ORDER = {
    "Task": [
        "id",
        "workspace_id",
        "description",
        "status",
        "phase",
        "iterations",
        "max_iterations",
        "created_at",
        "started_at",
        "completed_at",
        "cancel_requested_at",
        "cancel_requested_by",
        "cancel_reason",
        "cancel_force_at",
        "forced",
        "end_reason",
        "result",
        "usage",
        "metadata",
    ],
    "Workspace": [
        "id",
        "org_id",
        "name",
        "status",
        "status_reason",
        "created_by_user_id",
        "created_at",
        "updated_at",
        "current_task_id",
    ],
}
# The client itself reads these messages of a stream, so they need no class.
_READ = ("Error", "Heartbeat", "OrganizationHeartbeat")
_SCALARS = {
    FieldDescriptor.TYPE_STRING: ("str", '""'),
    FieldDescriptor.TYPE_BOOL: ("bool", "False"),
    FieldDescriptor.TYPE_INT32: ("int", "0"),
    FieldDescriptor.TYPE_INT64: ("int", "0"),
}
# The Python types that stand for Google's messages.
WELL_KNOWN = {
    "google.protobuf.Timestamp": "datetime",
    "google.protobuf.Duration": "timedelta",
    "google.type.Money": "Decimal",
}
_EVENT = f"{PACKAGE}.Event"
_IMPORTS = """\
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import ClassVar, Generic, Literal, TypeVar

from google.protobuf.message import Message

from evershell.client._messages import Result, named
"""
_REQUEST_ID = """\
    request_id: str = field(default="", compare=False)
    \"\"\"Identifies the call in the log of the service and in the audit log.\"\"\"
"""
# The class of an event is generic, so that type checkers derive the class of the payload from the
# type.
_EVENTS = '''

Kind = TypeVar("Kind", bound=EventType)
Payload = TypeVar("Payload", bound={payloads} | None)


@dataclass(frozen=True, slots=True)
class EventOf(Result, Generic[Kind, Payload]):
    """One entry in the log of a workspace. Entries never change."""

    _message_type: ClassVar[type[Message]] = event_pb2.Event

    seq: int
    """The position in the log, from 1 and without gaps."""
    type: Kind
    workspace_id: str
    time: datetime | None
    task_id: str | None
    """None for events of the workspace itself."""
    request_id: str | None
    """The call that caused the event; None if the agent or the fleet controller caused it."""
    trace_id: str | None
    """The W3C trace id of the call, 32 hex digits."""
    payload: Payload
    """None only for a type that this version of the client does not know."""


# For type checkers, a comparison of the type narrows the payload.
Event = {events} | EventOf[Literal[EventType.UNSPECIFIED], None]


def event_of(message: Message) -> Event:
    """The event in a message of a stream."""
    event: Event = EventOf._from_message(message)
    return event
'''


@dataclass(frozen=True)
class Attribute:
    """A field of a dataclass."""

    name: str
    kind: str
    # The default as an expression; empty if the field must be given.
    default: str
    comment: str
    # The name of the field in the message, if it differs.
    named: str = ""


class Results:
    """The classes that stand for messages and enums."""

    def __init__(self, protos: Protos) -> None:
        self._protos = protos
        self._texts = Texts(protos)
        properties = (CLIENT / "_properties.py").read_text()
        self._properties = set(
            re.findall(r"^class ([A-Za-z]+)Properties\b", properties, re.MULTILINE)
        )
        self._taken: dict[str, Descriptor | EnumDescriptor] = {}
        self._made: set[str] = set()
        for rpc in protos.service.methods:
            self._take(rpc.input_type, is_made=True)
        for rpc in protos.service.methods:
            self._take(rpc.output_type, is_made=False)

    def _take(self, message: Descriptor, *, is_made: bool) -> None:
        """Collects the messages and enums that a message refers to.

        Collects the message too, if it has a class.
        """
        has_class = not is_made and not self._is_list(message)
        for each in message.fields:
            if each.enum_type is not None:
                self._taken.setdefault(each.enum_type.full_name, each.enum_type)
            inner = each.message_type
            if inner is None or inner.file.package != PACKAGE or inner.GetOptions().map_entry:
                continue
            if inner.full_name in self._taken or inner.name in _READ:
                continue
            if is_made:
                self._made.add(inner.full_name)
            self._take_inner(inner, is_made=is_made)
        if has_class and message.file.package == PACKAGE:
            self._taken.setdefault(message.full_name, message)

    def _take_inner(self, message: Descriptor, *, is_made: bool) -> None:
        self._take(message, is_made=is_made)
        self._taken.setdefault(message.full_name, message)

    @staticmethod
    def _is_list(message: Descriptor) -> bool:
        """Whether an answer is a list or a message of a stream, which have no class."""
        is_stream = any(not each.name.startswith("_") for each in message.oneofs)
        many = [each for each in message.fields if each.is_repeated]
        rest = {each.name for each in message.fields} - {each.name for each in many}
        is_answer = message.name.endswith("Response")
        is_page = len(many) == 1 and rest <= {"next_page_token", "next_before"}
        return is_answer and (is_stream or is_page)

    def name(self, described: Descriptor | EnumDescriptor) -> str:
        """The name of the class of a message or an enum."""
        path = described.full_name.removeprefix(f"{PACKAGE}.")
        return _NAMES.get(path) or path.replace(".", "")

    def module(self, described: Descriptor | EnumDescriptor) -> str:
        """The module with the class of a message or an enum."""
        if "Webhook" in described.full_name:
            return "webhooks"
        return "events" if Path(described.file.name).stem == "event" else "types"

    def file(self, described: Descriptor) -> str:
        """The generated module of a message."""
        return f"{Path(described.file.name).stem}_pb2"

    def answers(self, message: Descriptor) -> bool:
        """Whether the class of the message has the request id of the call."""
        return message.name.endswith("Response")

    def text(self, module: str) -> str:
        """The text of a module."""
        mine = [each for each in self._taken.values() if self.module(each) == module]
        enums = [each for each in mine if isinstance(each, EnumDescriptor)]
        messages = [
            each for each in mine if isinstance(each, Descriptor) and each.full_name != _EVENT
        ]
        files = sorted({Path(each.file.name).stem for each in [*messages, *enums]})
        others = (name for name in MODULES if name != module)
        parts = [
            f'"""{MODULES[module]}"""\n\n# Written by `make gen` from protos/. Do not edit.\n\n',
            _IMPORTS,
            *(f"from evershell.workspace.v1 import {name}_pb2\n" for name in files),
            *(self._import(name, mine) for name in others),
            *(
                f"from evershell.client._properties import {name}Properties\n"
                for name in map(self.name, mine)
                if name in self._properties
            ),
            *map(self._enum, enums),
            *map(self._message, messages),
        ]
        if module == "events":
            parts.append(self._events())
        return "".join(parts)

    def _import(self, module: str, mine: list[Any]) -> str:
        """The import of the classes of another module that fields of these messages use."""
        used = {
            self.name(kind)
            for each in mine
            if isinstance(each, Descriptor)
            for field in each.fields
            for kind in (field.message_type, field.enum_type)
            if kind is not None and kind.full_name in self._taken and self.module(kind) == module
        }
        return f"from evershell.client.{module} import {', '.join(sorted(used))}\n" if used else ""

    def _heading(self, described: Descriptor | EnumDescriptor, base: str) -> str:
        name = self.name(described)
        bases = [f"{name}Properties"] * (name in self._properties) + [base]
        comment = self._texts.comment(described.full_name)
        if not comment:
            raise ValueError(f"{described.full_name} needs a comment")
        return f"class {name}({', '.join(bases)}):\n{docstring(summarized(comment), 4)}\n\n"

    def _enum(self, enum: EnumDescriptor) -> str:
        lines = [
            '    UNSPECIFIED = "unspecified"',
            '    """A value that this version of the client does not know."""',
        ]
        zero = self._texts.comment(f"{enum.full_name}.{enum.values[0].name}")
        if zero.startswith("Recorded by"):
            lines[1] = docstring(zero, 4)
        for value in enum.values:
            if value.number:
                lines.append(f'    {value.name.upper()} = "{value.name}"')
                comment = self._texts.comment(f"{enum.full_name}.{value.name}")
                lines += [docstring(comment, 4)] if comment else []
        return "\n\n" + self._heading(enum, "StrEnum") + "\n".join(lines) + "\n"

    def _message(self, message: Descriptor) -> str:
        order = {name: at for at, name in enumerate(_ORDER.get(message.name, ()))}
        attributes = sorted(
            self._attributes(message),
            key=lambda each: (bool(each.default), order.get(each.name, len(order))),
        )
        only = ", kw_only=True" if message.full_name in self._made else ""
        type_name = f"{self.file(message)}.{message.name}"
        lines = [f"    _message_type: ClassVar[type[Message]] = {type_name}\n"]
        for each in attributes:
            lines.append(f"    {each.name}: {each.kind}{each.default and f' = {each.default}'}")
            lines += [docstring(each.comment, 4)] if each.comment else []
        request_id = _REQUEST_ID if self.answers(message) else ""
        heading = f"\n\n@dataclass(frozen=True, slots=True{only})\n"
        return heading + self._heading(message, "Result") + "\n".join(lines) + "\n" + request_id

    def _attributes(self, message: Descriptor) -> Iterator[Attribute]:
        for each in message.fields:
            kind, default = self.kind(each)
            name = FIELDS.get(f"{message.name}.{each.name}", each.name)
            is_none = kind.endswith("| None")
            comment = self._texts.comment(each.full_name)
            if self._is_made(each):
                comment = self._texts.with_limits(each)
            if is_none:
                comment = re.sub(r"\b(absent|Absent)\b", "None", comment)
            if self._rule(each).none_if_empty:
                comment = re.sub(r"\b([Ee]mpty)\b", "None", comment)
            if name != each.name:
                default = f'field(default={default}, metadata=named("{each.name}"))'
            if each.name == "secret":
                default = f"field(default={default}, repr=False)"
            yield Attribute(name, kind, default, comment)

    def kind(self, field: FieldDescriptor) -> tuple[str, str]:
        """The annotation of a field and its default, which is empty if it must be given."""
        rule, is_made = self._rule(field), self._is_made(field)
        inner = field.message_type
        if field.is_repeated:
            if inner is not None and inner.GetOptions().map_entry:
                if is_made:
                    return "Mapping[str, str] | None", "field(default=None, hash=False)"
                return "Mapping[str, str]", "field(default_factory=dict, hash=False)"
            many = f"tuple[{self._item(field)}, ...]"
            return (f"{many} | None", "None") if is_made else (many, "()")
        item = self._item(field)
        if inner is not None:
            if inner.full_name in WELL_KNOWN or not rule.always_set:
                return f"{item} | None", "None"
            can_be_empty = all(default for _, default in map(self.kind, inner.fields))
            return item, f"field(default_factory={item})" if can_be_empty else ""
        if rule.none_if_empty or field.has_presence:
            return f"{item} | None", "None"
        if rule.always_set:
            return item, ""
        if field.enum_type is not None:
            return item, f"{item}.UNSPECIFIED"
        return item, _SCALARS[field.type][1]

    def _is_made(self, field: FieldDescriptor) -> bool:
        """Whether callers set the field."""
        return field.containing_type is not None and field.containing_type.full_name in self._made

    def _item(self, field: FieldDescriptor) -> str:
        if field.message_type is not None:
            return WELL_KNOWN.get(field.message_type.full_name) or self.name(field.message_type)
        if field.enum_type is not None:
            return self.name(field.enum_type)
        return _SCALARS[field.type][0]

    def _rule(self, field: FieldDescriptor) -> Any:
        return self._protos.option(field.GetOptions(), f"{PACKAGE}.field")

    def _events(self) -> str:
        payloads = self._protos.pool.FindMessageTypeByName(_EVENT).oneofs_by_name["payload"].fields
        names = {
            each.name.upper(): self.name(each.message_type)
            for each in payloads
            if each.message_type
        }
        events = [f"EventOf[Literal[EventType.{kind}], {name}]" for kind, name in names.items()]
        return _EVENTS.format(payloads=" | ".join(names.values()), events=" | ".join(events))

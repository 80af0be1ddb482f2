"""Every field of every method that changes something, with every kind of wrong value.

`python -m tests.wire.api.test_field_table` prints the table.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from evershell.workspace.v1 import workspace_service_pb2 as messages
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from evershell.api.method_options import WORKSPACE_SERVICE, public_methods
from tests.wire.api.running import HOLDER, Failed, Running, bearer

METHODS = [
    path.rpartition("/")[2]
    for path in sorted(public_methods(with_effect=True, services=[WORKSPACE_SERVICE]))
]
# More characters than any text may have, but within the size limit of the method.
LONG = {"SubmitTask": 120_000}
USUAL_LONG = 15_000
OF_KIND = ("null", "wrong type", "empty", "repeated", "unknown", "too long")
# The fields, other than the field under test, that a valid request needs.
NEEDED: dict[str, dict[str, Any]] = {
    "SubmitTask": {"description": "d"},
    "CreateWebhook": {"url": "https://a.example/", "event_types": ["task_completed"]},
}
# The methods whose path has no id.
WITHOUT_ID = (
    "CreateWorkspace",
    "CancelTasks",
    "ResumeWorkspaces",
    "HoldOrg",
    "ReleaseOrg",
    "CreateWebhook",
)
SAME_AS_ABSENT = "the same as absent: it narrows nothing"
# The cells of the table whose calls are accepted, and why that is safe.
ACCEPTED = {
    ("CancelTask", "reason", "empty"): SAME_AS_ABSENT,
    ("CancelTasks", "reason", "empty"): SAME_AS_ABSENT,
    ("HoldOrg", "reason", "empty"): SAME_AS_ABSENT,
    ("CreateWorkspace", "name", "empty"): SAME_AS_ABSENT,
    ("CreateWebhook", "description", "empty"): SAME_AS_ABSENT,
    ("CreateWorkspace", "description", "empty"): SAME_AS_ABSENT,
    ("CreateWorkspace", "skills", "empty"): SAME_AS_ABSENT,
    ("SubmitTask", "metadata", "empty"): SAME_AS_ABSENT,
    ("SubmitTask", "limits", "empty"): SAME_AS_ABSENT,
}
# The table is about REST. Over gRPC, a field of another wire type is an unknown field, and the last
# of two values counts (protobuf, "Encoding"), but generated code never sends a value twice.


@dataclass(frozen=True)
class Cell:
    """A value for one field of a method."""

    method: str
    # The path of the field: its name, or the name of its message and the name of the field.
    path: tuple[str, ...]
    kind: str
    # The body, as a caller of REST sends it.
    body: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.method, ".".join(self.path), self.kind


def cells(method: str) -> Iterator[Cell]:
    request: Descriptor = messages.DESCRIPTOR.message_types_by_name[f"{method}Request"]
    for path, field in fields(request):
        for kind in OF_KIND:
            for body in bodies(method, path, field, kind):
                yield Cell(method, path, kind, body)


def fields(
    message: Descriptor, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], FieldDescriptor]]:
    for field in message.fields:
        path = (*above, field.name)
        yield path, field
        inner = field.message_type
        if inner is not None and inner.full_name.startswith("evershell.") and not is_map(field):
            yield from fields(inner, path)


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def bodies(method: str, path: tuple[str, ...], field: FieldDescriptor, kind: str) -> Iterator[str]:
    """Bodies in which the field has a value of this kind; none if there is no such value."""
    name, long = path[-1], "x" * LONG.get(method, USUAL_LONG)
    value = valid(field)
    match kind:
        case "null":
            yield body(method, path, f'{{"{name}": null}}')
        case "wrong type":
            for wrong in ('{"a": {}}', "[{}]", "[]" if not field.is_repeated else '"a"'):
                yield body(method, path, f'{{"{name}": {wrong}}}')
        case "empty":
            if is_map(field) or (field.message_type and value == "{}"):
                yield body(method, path, f'{{"{name}": {{}}}}')
            elif field.is_repeated:
                yield body(method, path, f'{{"{name}": []}}')
                yield body(method, path, f'{{"{name}": [""]}}')
            elif value.startswith('"'):
                yield body(method, path, f'{{"{name}": ""}}')
        case "repeated":
            yield body(method, path, f'{{"{name}": {value}, "{name}": {value}}}')
            if field.json_name != name:
                yield body(method, path, f'{{"{name}": {value}, "{field.json_name}": {value}}}')
        case "unknown":
            yield body(method, path, f'{{"{name}s": {value}}}')
            yield body(method, path, f'{{"{name.upper()}": {value}}}')
        case "too long" if not field.message_type and value.startswith('"'):
            yield body(method, path, f'{{"{name}": "{long}"}}')
        case "too long" if field.is_repeated and not is_map(field):
            yield body(method, path, f'{{"{name}": {json.dumps(["x"] * 1_001)}}}')
            yield body(method, path, f'{{"{name}": ["{long}"]}}')
        case "too long" if is_map(field):
            yield body(method, path, f'{{"{name}": {{"a": "{long}"}}}}')
            yield body(method, path, f'{{"{name}": {{"{long}": "a"}}}}')
        case "too long" if value in ("5", '"5s"'):
            yield body(method, path, f'{{"{name}": {value.replace("5", "9" * 30)}}}')


def valid(field: FieldDescriptor) -> str:
    """A valid value as JSON."""
    if is_map(field):
        return '{"a": "b"}'
    of_message = {
        "google.protobuf.Duration": '"5s"',
        "google.protobuf.Timestamp": '"2026-01-02T03:04:05Z"',
    }
    if field.message_type:
        return of_message.get(field.message_type.full_name, "{}")
    plain = {FieldDescriptor.CPPTYPE_STRING: '"a"', FieldDescriptor.CPPTYPE_BOOL: "true"}
    value = plain.get(field.cpp_type, "5")
    return f"[{value}]" if field.is_repeated else value


def body(method: str, path: tuple[str, ...], inner: str) -> str:
    """The body of a valid request. `inner` has the field in question."""
    for name in reversed(path[:-1]):
        inner = f'{{"{name}": {inner}}}'
    needed = dict(NEEDED.get(method, {}))
    needed.pop(path[0], None)
    if method in ("CancelTasks", "ResumeWorkspaces") and path[0] not in ("filter", "all"):
        needed["all"] = True
    rest = json.dumps(needed)[1:-1]
    return inner[:-1] + (f", {rest}" if rest else "") + "}"


@pytest.mark.parametrize("method", METHODS)
async def test_a_wrong_value_is_refused_and_names_its_field(server: Running, method: str) -> None:
    for cell in cells(method):
        await check(server, cell)


async def check(server: Running, cell: Cell) -> None:
    sent = messages.RestBody(http_body=HttpBody(data=cell.body.encode())).SerializeToString()
    if cell.method not in WITHOUT_ID:
        # The id of the workspace or webhook, which the edge takes from the path.
        sent = b"\x0a\x04ws_1" + sent
    seen = await server.raw(
        f"/evershell.workspace.v1.WorkspaceService/{cell.method}",
        bearer(HOLDER, x_evershell_edge="rest"),
        sent,
    )
    is_refused = isinstance(seen, Failed) and seen.slug == "validation_error"
    assert is_refused == (cell.key not in ACCEPTED), (cell, seen)
    if is_refused:
        assert isinstance(seen, Failed)
        named = [name.replace("_", "").lower() for name in seen.envelope["details"]["fields"]]
        top = cell.path[0].replace("_", "")
        assert any(name.startswith(top) for name in named), (cell, named)


@pytest.mark.parametrize("method", METHODS)
async def test_an_unknown_field_is_refused_over_grpc(server: Running, method: str) -> None:
    for unknown in (b"\xfa\x07\x01a", b"\x0d\x00\x00\x00\x00"):
        # The bytes of a field that no request has, and of the first field with another wire type.
        seen = await server.raw(
            f"/evershell.workspace.v1.WorkspaceService/{method}", bearer(HOLDER), unknown
        )
        assert isinstance(seen, Failed) and seen.slug == "validation_error"


if __name__ == "__main__":
    has = {cell.key: None for method in METHODS for cell in cells(method)}
    shown = dict.fromkeys((method, path) for method, path, _ in has)
    print("| method | field |", " | ".join(OF_KIND), "|")
    print("|---|---|", "---|" * len(OF_KIND))
    for method, path in shown:
        keys = [(method, path, kind) for kind in OF_KIND]
        values = [ACCEPTED.get(key, "400" if key in has else "–") for key in keys]
        print(f"| {method} | {path} |", " | ".join(values), "|")

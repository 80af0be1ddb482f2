"""Use case: list the events of a workspace, newest first."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from evershell.core.caller import Caller
from evershell.core.event import Event, EventType
from evershell.core.ports import Workspaces
from evershell.core.validation import (
    DEFAULT_PAGE_SIZE,
    MAX_PAGE_CHARACTERS,
    MAX_PAGE_SIZE,
    Fields,
)


async def list_events(
    caller: Caller,
    workspace_id: str,
    before_seq: int,
    page_size: int,
    store: Workspaces,
    *,
    omit_outputs: bool = False,
) -> tuple[Sequence[Event], int]:
    """A page of the events before `before_seq`, newest first, and the `before_seq` of the next one.

    If `before_seq` is 0, begins with the newest event. A page ends early if it would exceed the
    size of a message. The second result is 0 if there is no older event.

    Raises Failure: validation_error, permission_denied, workspace_not_found.
    """
    fields = Fields()
    fields.identifier("workspace_id", workspace_id)
    fields.between("before", before_seq, 0, 2**63 - 1)
    if page_size:
        fields.between("page_size", page_size, 1, MAX_PAGE_SIZE)
    fields.check()
    permission = caller.permission("workspace:read")
    permission.check(await store.get_workspace(workspace_id, caller.org_id), workspace_id)
    found, has_older = await store.list_last_events(
        workspace_id, before_seq or 2**63 - 1, page_size or DEFAULT_PAGE_SIZE
    )
    page: list[Event] = []
    characters = 0
    for event in map(_without_outputs, found) if omit_outputs else found:
        characters += _characters(event.payload)
        if page and characters > MAX_PAGE_CHARACTERS:
            return page, page[-1].seq
        page.append(event)
    return page, page[-1].seq if page and has_older else 0


def _without_outputs(event: Event) -> Event:
    """The event with empty outputs in the results of its tool calls."""
    if event.type is not EventType.ITERATION_COMPLETED:
        return event
    payload = dict(event.payload)
    if "tool_call" in payload:
        payload["tool_call"] = _without_output(payload["tool_call"])
    payload["tool_calls"] = [_without_output(each) for each in payload.get("tool_calls", ())]
    return replace(event, payload=payload)


def _without_output(call: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**call, "result": {**call["result"], "output": ""}}


def _characters(value: Any) -> int:
    """The total length of the texts in a payload."""
    match value:
        case str():
            return len(value)
        case Mapping():
            return sum(map(_characters, value.values()))
        case list() | tuple():
            return sum(map(_characters, value))
        case _:
            return 0

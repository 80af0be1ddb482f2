"""Builds the calls to the service, which other modules send.

Each function makes a Call from the arguments of a client's method. It refuses values that the
request cannot hold. It also refuses an optional id that is empty, because the service would read
it as "any".
"""

import dataclasses
import math
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Any, Generic, TypeVar

from evershell.workspace.v1 import workspace_service_pb2 as service
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from evershell.client._messages import UNSPECIFIED, Result
from evershell.client.answers import Page
from evershell.client.errors import ConfigurationError, ValidationError
from evershell.client.events import Event, event_of
from evershell.client.types import (
    CancelResult,
    CancelTasksResult,
    ResumeWorkspacesResult,
    TaskFilter,
    WorkspaceFilter,
)

T = TypeVar("T")
M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Result)

Seconds = float | timedelta

# The longest time limit of a call. gRPC treats a deadline that is further away as expired.
LONGEST_SECONDS = 1e9
_KEY_HEADER = "idempotency-key"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A call of one method of the service."""

    rpc: str
    request: Message
    # Converts the response and the request id to the result.
    decode: Callable[[Any, str], T]
    # Extra time for the service, which is added to the client's timeout.
    extra_seconds: float = 0.0
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def can_repeat(self) -> bool:
        """Whether the call can be repeated without a second effect."""
        method = service.DESCRIPTOR.services_by_name["WorkspaceService"].methods_by_name[self.rpc]
        match method.GetOptions().Extensions[service.edge].repeat:
            case service.EdgeRule.always:
                return True
            case service.EdgeRule.if_task_is_named:
                assert isinstance(self.request, service.CancelTaskRequest)
                return bool(self.request.task_id)
            case service.EdgeRule.with_idempotency_key:
                return any(name == _KEY_HEADER for name, _ in self.headers)
        return False


def call(
    rpc: str,
    decode: Callable[[Any, str], T],
    /,
    headers: tuple[tuple[str, str], ...] = (),
    **fields: Any,
) -> Call[T]:
    """A call of the method with these request fields. Raises ValidationError."""
    message = request(getattr(service, f"{rpc}Request"), **fields)
    return Call(rpc, message, decode, headers=headers)


def cancel(
    workspace_id: str,
    task_id: str | None,
    reason: str,
    wait: Seconds | None,
    force_after: Seconds | None,
    include_descendants: bool = False,
) -> Call[CancelResult]:
    """The call of CancelTask. Raises ValidationError and ConfigurationError."""
    message = request(
        service.CancelTaskRequest,
        workspace_id=workspace_id,
        task_id=optional("task_id", task_id),
        reason=reason,
        wait=duration("wait", wait),
        force_after=duration("force_after", force_after),
        include_descendants=include_descendants,
    )
    return Call("CancelTask", message, with_id(CancelResult), max(seconds(wait or 0.0), 0.0))


def cancel_tasks(
    wanted: TaskFilter | None,
    everything: bool,
    reason: str,
    force_after: Seconds | None,
    dry_run: bool,
    key: str | None = None,
) -> Call[CancelTasksResult]:
    """The call of CancelTasks.

    Raises ValidationError unless exactly one of `wanted` and `everything` is given.
    """
    message = request(
        service.CancelTasksRequest,
        **_selection(service.TaskFilter, wanted, everything, "cancels every task"),
        reason=reason,
        force_after=duration("force_after", force_after),
        dry_run=dry_run,
    )
    return Call("CancelTasks", message, with_id(CancelTasksResult), headers=idempotent(key))


def resume_workspaces(
    wanted: WorkspaceFilter | None, everything: bool, dry_run: bool, key: str | None = None
) -> Call[ResumeWorkspacesResult]:
    """The call of ResumeWorkspaces.

    Raises ValidationError unless exactly one of `wanted` and `everything` is given.
    """
    effect = "resumes every failed workspace"
    message = request(
        service.ResumeWorkspacesRequest,
        **_selection(service.WorkspaceFilter, wanted, everything, effect),
        dry_run=dry_run,
    )
    decode = with_id(ResumeWorkspacesResult)
    return Call("ResumeWorkspaces", message, decode, headers=idempotent(key))


def list_events(
    workspace_id: str, before: int, page_size: int | None, omit_outputs: bool
) -> Call[tuple[Event, ...]]:
    """The call of ListEvents. Raises ValidationError."""
    return call(
        "ListEvents",
        lambda response, _: tuple(map(event_of, response.events)),
        workspace_id=workspace_id,
        before=before,
        page_size=page_size or 0,
        omit_outputs=omit_outputs,
    )


def _selection(
    kind: type[Message], wanted: Any, everything: bool, effect: str
) -> dict[str, Message | bool]:
    """The fields of a request that has either a filter or `all`.

    Refuses empty fields of the filter: the service ignores an empty list.
    """
    if wanted is None:
        if not everything:
            raise invalid("filter", f"is missing; all=True {effect}")
        return {"all": True}
    if everything:
        raise invalid("all", "must not be true if there is a filter")
    fields = {each.name: getattr(wanted, each.name) for each in dataclasses.fields(wanted)}
    present = {name: value for name, value in fields.items() if value is not None}
    if not present:
        raise invalid("filter", f"must have a field; all=True {effect}")
    before = present.get("submitted_before")
    if before is not None:
        present["submitted_before"] = timestamp("submitted_before", before)
    message = request(kind, **present)
    for name in present:
        # Checks the message instead of the argument, because an empty generator counts as true.
        if not getattr(message, name):
            raise invalid(name, "must not be empty; leave it out to match any")
    return {"filter": message}


def idempotent(key: str | None) -> tuple[tuple[str, str], ...]:
    """The header with the idempotency key, by default a new key.

    The service answers a repeated call with the same key as it answered the first call.
    """
    if key is not None and not (key.isascii() and key.isprintable()):
        raise invalid(_KEY_HEADER, "must have 1 to 255 printable ASCII characters")
    return ((_KEY_HEADER, str(uuid.uuid4()) if key is None else key),)


def only(kind: type[R]) -> Callable[[Any, str], R]:
    """Returns a function that decodes a response."""
    return lambda response, _: kind._from_message(response)


def with_id(kind: type[R]) -> Callable[[Any, str], R]:
    """Returns a function that decodes a response and adds the request id."""
    return lambda response, request_id: replace(  # type: ignore[type-var]
        kind._from_message(response), request_id=request_id
    )


def many(name: str, kind: type[R]) -> Callable[[Any, str], tuple[R, ...]]:
    """Returns a function that decodes the items in this field of a response."""
    return lambda response, _: tuple(map(kind._from_message, getattr(response, name)))


def page(name: str, kind: type[R]) -> Callable[[Any, str], Page[R]]:
    """Returns a function that decodes a page whose items are in this field of a response."""
    items = many(name, kind)
    return lambda response, request_id: Page(
        items(response, request_id), response.next_page_token or None
    )


def request(kind: type[M], **fields: Any) -> M:
    """The request. Raises ValidationError with the name of the field if a value does not fit."""
    try:
        return kind(**fields)
    except ValueError:
        for name, value in fields.items():
            valid(name, partial(kind, **{name: value}))
        raise


def valid(name: str, make: Callable[[], T]) -> T:
    """The value that `make` returns. Raises ValidationError if it is not valid for the field."""
    try:
        return make()
    except UnicodeError as error:
        raise invalid(name, "is not valid Unicode") from error
    except (ValueError, OverflowError) as error:
        raise invalid(name, "is out of range") from error


def invalid(name: str, problem: str) -> ValidationError:
    """The error for an invalid field. It is raised before the call is made."""
    return ValidationError(
        f"The request is not valid. {name}: {problem}.",
        details={"fields": {name: problem}},
        is_from_service=False,
    )


def optional(name: str, value: str | None) -> str | None:
    """The value of a field that narrows a call. Raises ValidationError if the value is empty."""
    if value == "":
        raise invalid(name, "must not be empty; leave it out to match any")
    return value


def optional_ids(name: str, ids: Iterable[str] | None) -> list[str] | None:
    """The ids of a field that narrows a call. Raises ValidationError if there are none."""
    if ids is None:
        return None
    found = list(ids)
    if not found:
        raise invalid(name, "must not be empty; leave it out to match any")
    return found


def nested(name: str, value: Result | None) -> Any:
    """The value as a message; None for None. Raises ValidationError if the value does not fit."""
    return None if value is None else valid(name, value._to_message)


def names(name: str, values: Iterable[StrEnum | str], kind: type[StrEnum]) -> list[str]:
    """The names of the values in the enum. Raises ValidationError if a value is unknown."""
    known = {each.value for each in kind if each != UNSPECIFIED}
    found = [str(each) for each in values]
    for each in found:
        if each not in known:
            raise invalid(name, f"{each!r} is not one of {', '.join(sorted(known))}")
    return found


def seconds(time: Seconds) -> float:
    """The duration in seconds. Raises ConfigurationError."""
    try:
        value = time.total_seconds() if isinstance(time, timedelta) else float(time)
    except (TypeError, ValueError):
        value = math.nan
    if math.isnan(value):
        raise ConfigurationError(f"A duration is a number of seconds or a timedelta, not {time!r}.")
    return value


def duration(name: str, time: Seconds | None) -> Duration | None:
    """The duration of a field, to the millisecond. Raises the errors of `seconds` and `valid`."""
    if time is None:
        return None
    message = Duration()
    valid(name, lambda: message.FromMilliseconds(round(seconds(time) * 1000)))
    return message


def timestamp(name: str, moment: datetime | None) -> Timestamp | None:
    """The time of a field. A time without a zone is local time. Raises ValidationError."""
    if moment is None:
        return None
    message = Timestamp()
    valid(name, lambda: message.FromDatetime(moment.astimezone()))
    return message

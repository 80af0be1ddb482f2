"""Decodes requests of A2A, where possible into requests of WorkspaceService."""

import json
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, TypeVar, cast

from a2a.types import a2a_pb2
from evershell.workspace.v1 import workspace_service_pb2
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from evershell.api import codec
from evershell.api.call import fingerprint
from evershell.api.values import decode_time
from evershell.core import errors
from evershell.core.caller import Caller
from evershell.core.change import IdempotencyKey
from evershell.core.errors import Failure
from evershell.core.task import MAX_DESCRIPTION_CHARACTERS, TaskStatus
from evershell.core.task_filter import ListFilter
from evershell.core.validation import Fields, Page
from evershell.features.a2a.states import statuses_in

VERSION = "1.0"
VERSION_HEADER = "a2a-version"
# The version of a call without the header (A2A, section 3.6.2).
_ABSENT_VERSION = "0.3"
# The patch version is ignored.
_SUPPORTED = re.compile(r"1\.0(\.\d+)?")
TEXT = "text/plain"
# The output modes that include text. A client that lists one of them accepts text.
_ACCEPTS_TEXT = frozenset({TEXT, "text/*", "*/*", "text"})
# In a task's metadata, the key for the id of the A2A message that began the task.
MESSAGE_ID = "a2a_message_id"
_MAX_MESSAGE_ID_CHARACTERS = 255
_MAX_PAGE_SIZE = 100
# The fields of WorkspaceService's requests that the metadata of an A2A request may set.
_CANCEL_OPTIONS = ("reason", "wait", "force_after", "include_descendants")
_SUBMIT_OPTIONS = ("max_iterations", "limits")
_Request = TypeVar("_Request", bound=Message)


def check_version(metadata: Mapping[str, str]) -> None:
    """Checks the version of A2A that the caller speaks. Raises Failure version_not_supported."""
    version = metadata.get(VERSION_HEADER, "").strip() or _ABSENT_VERSION
    if not _SUPPORTED.fullmatch(version):
        message = (
            f"This service speaks A2A {VERSION}, and not {version[:20]}. Send the header "
            f"`A2A-Version: {VERSION}`; without it, the version is {_ABSENT_VERSION}."
        )
        raise Failure("version_not_supported", message)


def check_ids(**values: str) -> None:
    """Checks the tenant, which is the id of a workspace, and other ids.

    Raises Failure validation_error.
    """
    fields = Fields()
    for name, value in values.items():
        fields.identifier(name, value)
    fields.check()


def check_history_length(request: Any) -> None:
    """Checks the field `history_length`. Raises Failure validation_error."""
    if request.history_length < 0:
        raise errors.invalid({"history_length": "must not be negative"})


def decode_list(request: a2a_pb2.ListTasksRequest, org_id: str) -> tuple[Page, ListFilter]:
    """The page, and the filter of its tasks. Raises Failure validation_error."""
    fields = Fields()
    fields.identifier("tenant", request.tenant)
    if request.HasField("page_size"):
        fields.between("page_size", request.page_size, 1, _MAX_PAGE_SIZE)
    fields.check()
    check_history_length(request)
    statuses = None
    if request.context_id not in ("", request.tenant):
        # A workspace has only one context, so another context has no tasks.
        statuses = frozenset[TaskStatus]()
    elif request.status:
        statuses = statuses_in(request.status)
    changed_since = None
    if request.HasField("status_timestamp_after"):
        changed_since = decode_time("status_timestamp_after", request.status_timestamp_after)
    # Fields that do not select tasks may change from page to page.
    selection = a2a_pb2.ListTasksRequest()
    selection.CopyFrom(request)
    selection.ClearField("history_length")
    selection.ClearField("include_artifacts")
    # This message has the fields that decode_page reads.
    page = codec.decode_page(cast(Any, selection), org_id)
    return page, ListFilter(statuses=statuses, changed_since=changed_since)


def message_key(request: a2a_pb2.SendMessageRequest, method: str, caller: Caller) -> IdempotencyKey:
    """The idempotency key of a message, made of caller, workspace, method and message id.

    Two requests count as equal if they have the same message and metadata. The other fields only
    say how to answer.
    """
    scope = "\0".join((caller.key, request.tenant, method, request.message.message_id))
    effect = a2a_pb2.SendMessageRequest(
        tenant=request.tenant, message=request.message, metadata=request.metadata
    )
    return IdempotencyKey(f"a2a-{sha256(scope.encode()).hexdigest()}", fingerprint(effect))


def decode_cancel(request: a2a_pb2.CancelTaskRequest) -> workspace_service_pb2.CancelTaskRequest:
    """The equivalent request of WorkspaceService. Raises Failure validation_error."""
    native = workspace_service_pb2.CancelTaskRequest(
        workspace_id=request.tenant, task_id=request.id
    )
    return _with_options(native, request.metadata, _CANCEL_OPTIONS)


def decode_message(
    request: a2a_pb2.SendMessageRequest,
) -> workspace_service_pb2.SubmitTaskRequest:
    """The equivalent request of WorkspaceService for a message that begins a task.

    Raises Failure: validation_error, content_type_not_supported.
    """
    message = request.message
    fields = Fields()
    if not 0 < len(message.message_id) <= _MAX_MESSAGE_ID_CHARACTERS:
        fields.reject(
            "message.message_id", f"must have 1 to {_MAX_MESSAGE_ID_CHARACTERS} characters"
        )
    if message.role != a2a_pb2.ROLE_USER:
        fields.reject("message.role", "must be ROLE_USER")
    if message.context_id not in ("", request.tenant):
        fields.reject("message.context_id", "must be the tenant, or absent")
    if request.configuration.history_length < 0:
        fields.reject("configuration.history_length", "must not be negative")
    if not message.parts:
        fields.reject("message.parts", "must have at least one part")
    fields.check()
    _check_modes(request.configuration.accepted_output_modes)
    description = "\n".join(_text(part) for part in message.parts)
    fields.text(
        "message.parts",
        description,
        max_characters=MAX_DESCRIPTION_CHARACTERS,
        required=True,
    )
    fields.check()
    native = workspace_service_pb2.SubmitTaskRequest(
        workspace_id=request.tenant,
        description=description,
        metadata={**_texts(message), MESSAGE_ID: message.message_id},
    )
    return _with_options(native, request.metadata, _SUBMIT_OPTIONS)


def explained(failure: Failure, request: a2a_pb2.SendMessageRequest) -> Failure:
    """Returns the failure. If the message id was used before, returns one that names the id."""
    if failure.slug != "idempotency_conflict":
        return failure
    message_id = request.message.message_id
    return Failure(
        "idempotency_conflict",
        f"The message id {message_id} was used for another message. Use a new id for each.",
        idempotency_key=message_id,
    )


def _check_modes(accepted: Sequence[str]) -> None:
    if accepted and _ACCEPTS_TEXT.isdisjoint(mode.partition(";")[0].strip() for mode in accepted):
        message = f"The agent answers in {TEXT}, which the request does not accept."
        raise Failure("content_type_not_supported", message)


def _text(part: a2a_pb2.Part) -> str:
    kind = part.WhichOneof("content")
    if kind is None:
        raise errors.invalid({"message.parts": "a part must have a content"})
    if kind != "text" or part.media_type.partition(";")[0].strip() not in ("", TEXT):
        message = f"The agent takes parts of the type {TEXT}, and no files or data."
        raise Failure("content_type_not_supported", message)
    return str(part.text)


def _texts(message: a2a_pb2.Message) -> dict[str, str]:
    """The metadata of the message as texts, without the data of extensions, which are ignored."""
    try:
        metadata = MessageToDict(message.metadata)
    except ValueError:
        # A Struct can hold NaN, for example, which JSON does not have.
        raise errors.invalid({"message.metadata": "is not valid"}) from None
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in metadata.items()
        if name not in message.extensions
    }


def _with_options(native: _Request, metadata: Struct, names: Sequence[str]) -> _Request:
    """Sets the fields in `names` from the metadata.

    The metadata has the values in the form that they have in the JSON of WorkspaceService.
    """
    found = [name for name in names if name in metadata]
    try:
        ParseDict({name: _plain(metadata[name]) for name in found}, native)
    except (ParseError, ValueError):
        texts = {f"metadata.{name}": "is not valid" for name in found}
        raise errors.invalid(texts) from None
    return native


def _plain(value: Any) -> Any:
    return MessageToDict(value) if isinstance(value, Message) else value

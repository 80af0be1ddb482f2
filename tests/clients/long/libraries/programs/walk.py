"""Calls every operation with the client that openapi-python-client has generated.

Reads `url`, `token`, `read_only` and `workspace` from its arguments. Prints what it has seen as
JSON. The client raises UnexpectedStatus at a status that the document does not have.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from generated import AuthenticatedClient, Client
from generated.api.workspace_service import (
    cancel_task,
    cancel_task_by_task_id,
    create_workspace,
    get_task,
    get_workspace,
    list_audit_entries,
    list_audit_entries_by_workspace_id,
    list_tasks,
    list_workspaces,
    resume_workspace,
    stop_workspace,
    submit_task,
)
from generated.models import (
    CancelTaskByTaskIdRequest,
    CancelTaskRequest,
    CreateWorkspaceRequest,
    Error,
    ErrorEnvelope,
    SubmitTaskRequest,
    SubmitTaskRequestMetadata,
)
from generated.types import Unset

T = TypeVar("T")
LIMIT_SECONDS = 30.0
url, token, read_only_token = sys.argv[1:]


def client_of(bearer: str) -> AuthenticatedClient:
    return AuthenticatedClient(base_url=url, token=bearer, raise_on_unexpected_status=True)


def ok(answer: T | ErrorEnvelope | None) -> T:
    assert answer is not None
    assert not isinstance(answer, ErrorEnvelope), answer
    return answer


def failed(answer: Any) -> Error:
    assert isinstance(answer, ErrorEnvelope), answer
    return answer.error


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def known(value: T | Unset) -> T:
    assert not isinstance(value, Unset)
    return value


def described(error: Error) -> dict[str, Any]:
    """Everything that the error says."""
    details = {} if isinstance(error.details, Unset) else error.details.to_dict()
    return {
        "code": error.code.value,
        "message": error.message,
        "request_id": error.request_id,
        "details": details,
    }


client = client_of(token)
created = ok(create_workspace.sync(client=client, body=CreateWorkspaceRequest(name="walk")))
# The classes have real dates and enums.
assert created.created_at.year >= 2026 and created.status.value == "provisioning"


def status() -> str:
    return ok(get_workspace.sync(created.id, client=client)).status.value


until(lambda: status() == "idle")
assert created.id in {
    each.id for each in ok(list_workspaces.sync(client=client, page_size=200)).workspaces
}

metadata = SubmitTaskRequestMetadata()
metadata["ticket"] = "7"
request = SubmitTaskRequest(description="sleep 60", metadata=metadata)
key = "walk-1"
submitted = ok(submit_task.sync(created.id, client=client, body=request, idempotency_key=key))
again = ok(submit_task.sync(created.id, client=client, body=request, idempotency_key=key))
assert again.task_id == submitted.task_id


def task() -> Any:
    return ok(get_task.sync(created.id, submitted.task_id, client=client))


until(lambda: bool(task().phase.value == "tool_call"))
assert task().metadata["ticket"] == "7"
assert [each.id for each in ok(list_tasks.sync(created.id, client=client)).tasks] == [
    submitted.task_id
]

errors = {
    "busy": failed(
        submit_task.sync(created.id, client=client, body=SubmitTaskRequest(description="true"))
    ),
    "invalid": failed(
        cancel_task.sync(created.id, client=client, body=CancelTaskRequest(reason="x" * 501))
    ),
    "unknown": failed(get_workspace.sync("ws_unknown", client=client)),
    "no_task": failed(get_task.sync(created.id, "task_unknown", client=client)),
    "denied": failed(cancel_task.sync(created.id, client=client_of(read_only_token))),
    "no_token": failed(get_workspace.sync(created.id, client=Client(base_url=url))),
}

# Without a body, and with one.
accepted = ok(cancel_task.sync(created.id, client=client))
assert accepted.outcome.value == "accepted" and accepted.task_id == submitted.task_id
assert known(known(accepted.task).cancel_requested_at) == known(accepted.requested_at)
forced = CancelTaskByTaskIdRequest(reason="again", force_after="0.1s", wait="20s")
ended = cancel_task_by_task_id.sync_detailed(
    created.id, submitted.task_id, client=client, body=forced
)
assert ended.status_code == 200
assert ok(ended.parsed).outcome.value == "already_requested"
assert known(ok(ended.parsed).task).status.value == "cancelled"
entries = ok(list_audit_entries_by_workspace_id.sync(created.id, client=client)).entries
assert "accepted" in {each.outcome for each in entries}


def has_refusal() -> bool:
    """The entry of a refused call is there within a second."""
    refused = ok(list_audit_entries.sync(client=client, outcome="permission_denied")).entries
    return created.id in {each.workspace_id for each in refused}


until(has_refusal)

assert ok(stop_workspace.sync(created.id, client=client)).id == created.id
until(lambda: status() == "stopped")
errors["stopped"] = failed(cancel_task.sync(created.id, client=client))
assert ok(resume_workspace.sync(created.id, client=client)).id == created.id
until(lambda: status() == "idle")
ok(stop_workspace.sync(created.id, client=client))
print(
    json.dumps(
        {
            "workspace": created.id,
            "task": submitted.task_id,
            "errors": {name: described(error) for name, error in errors.items()},
        }
    )
)

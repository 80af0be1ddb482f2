"""Examples of replies for the OpenAPI document."""

from typing import Any

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor

WORKSPACE_ID = "ws_01M87BM0PP0WA7E1PDVM5FMDFS"
TASK_ID = "task_01M87BM3XVW5RDTYHKM5QHVYGE"
KEY_ID = "key_01M87BM0P43R0RRYFB6HF29RVY"
ORG_ID = "org_01M87BM0NWJ8Q3Y5T2C4XKZ6RD"
REQUEST_ID = "79130bac-f95a-43b2-b452-ebd8fa0d19b1"
# The id of the call that cancels the task.
CANCEL_REQUEST_ID = "8793da47-07bf-4a4e-b03b-c755ace98620"
CREATED, SUBMITTED = "2026-11-24T18:03:20.115204Z", "2026-11-24T18:03:24.475833Z"
STARTED, CANCELLED = "2026-11-24T18:03:24.493998Z", "2026-11-24T18:03:26.545258Z"
REASON = "it has gone wrong"

WORKSPACE = {
    "id": WORKSPACE_ID,
    "org_id": ORG_ID,
    "status": "idle",
    "created_at": CREATED,
    "updated_at": STARTED,
    "epoch": "1",
    "name": "nightly",
}
TASK = {
    "id": TASK_ID,
    "workspace_id": WORKSPACE_ID,
    "description": "sleep 5\nsleep 5\nsleep 5",
    "status": "running",
    "phase": "tool_call",
    "created_at": SUBMITTED,
    "started_at": STARTED,
    "usage": {},
    "max_iterations": 100,
    "submitted_by": KEY_ID,
}
CANCELLED_TASK = TASK | {
    "cancel_requested_at": CANCELLED,
    "cancel_requested_by": KEY_ID,
    "cancel_reason": REASON,
}
# The same task once it has ended.
ENDED_TASK = {name: value for name, value in CANCELLED_TASK.items() if name != "phase"} | {
    "status": "cancelled",
    "completed_at": "2026-11-24T18:03:29.502190Z",
    "reason": REASON,
    "iterations": 1,
    "usage": {"model_calls": 1, "tool_calls": 1},
}
AUDIT_ENTRY = {
    "id": "aud_01M87BM5YH3N6V8K2QD7XTRC4W",
    "time": CANCELLED,
    "org_id": ORG_ID,
    "actor_id": KEY_ID,
    "credential_kind": "api_key",
    "credential_id": KEY_ID,
    "rpc": "CancelTask",
    "workspace_id": WORKSPACE_ID,
    "task_id": TASK_ID,
    "outcome": "accepted",
    "reason": REASON,
    "request_id": CANCEL_REQUEST_ID,
    "client_address": "203.0.113.7",
}
EVENT = {
    "seq": "4",
    "type": "task_cancel_requested",
    "time": CANCELLED,
    "workspace_id": WORKSPACE_ID,
    "task_id": TASK_ID,
    "request_id": CANCEL_REQUEST_ID,
    "task_cancel_requested": {
        "cancel": {
            "requested_by": KEY_ID,
            "credential_kind": "api_key",
            "requested_at": CANCELLED,
            "reason": REASON,
        }
    },
}
HOLD = {
    "org_id": ORG_ID,
    "on_hold": True,
    "held_by": "user_ada",
    "held_since": CANCELLED,
    "reason": "agents have gone wrong",
}
WEBHOOK_ID = "wh_01M87BM4Q2E7YB5N0T9D6SXJ3H"
WEBHOOK = {
    "id": WEBHOOK_ID,
    "org_id": ORG_ID,
    "url": "https://example.com/evershell",
    "event_types": ["task_completed"],
    "created_by": KEY_ID,
    "created_at": CREATED,
}
# Has the form of a webhook's secret, but no webhook uses it.
WEBHOOK_SECRET = "whsec_bm90IGEgc2VjcmV0IG9mIGFueSB3ZWJob29r"  # noqa: S105
# By the name of the message. The examples of all other messages are made by `_usual`.
EXAMPLES: dict[str, dict[str, Any]] = {
    "CancelTaskResponse": {
        "workspace_id": WORKSPACE_ID,
        "task_id": TASK_ID,
        "outcome": "accepted",
        "requested_at": CANCELLED,
        "requested_by": KEY_ID,
        "reason": REASON,
        "task": CANCELLED_TASK,
    },
    "SubmitTaskResponse": {
        "task_id": TASK_ID,
        "workspace_id": WORKSPACE_ID,
        "status": "delivered",
    },
    "Task": TASK,
    "CurrentIteration": {
        "workspace_id": WORKSPACE_ID,
        "task_id": TASK_ID,
        "number": 2,
        "phase": "tool_call",
        "calls": [
            {
                "phase": "tool_call",
                "name": "shell",
                "arguments": '{"command": "make test"}',
                "duration_ms": "42000",
                "output": "..F",
            }
        ],
    },
    "Event": EVENT,
    "WatchEventsResponse": {"event": EVENT},
    "WatchOrganizationResponse": {"event": EVENT, "position": "1042"},
    "Workspace": WORKSPACE,
    "AuditEntry": AUDIT_ENTRY,
    "HoldOrgResponse": {"hold": HOLD, "accepted": 3},
    "CancelTasksResponse": {
        "matched": 1,
        "accepted": 1,
        "results": [{"workspace_id": WORKSPACE_ID, "task_id": TASK_ID, "outcome": "accepted"}],
    },
    "Hold": HOLD,
    "Caller": {
        "org_id": ORG_ID,
        "actor_id": KEY_ID,
        "credential_kind": "api_key",
        "scopes": ["audit:read", "workspace:read"],
    },
    "CreateWebhookResponse": {"webhook": WEBHOOK, "secret": WEBHOOK_SECRET},
    "Webhook": WEBHOOK,
    "RotateWebhookSecretResponse": {
        "webhook": WEBHOOK | {"previous_secret_expires_at": "2026-11-25T18:03:26.545258Z"},
        "secret": WEBHOOK_SECRET,
    },
    "ReplayWebhookResponse": {"replayed": 3},
    "ListWebhookDeliveriesResponse": {
        "deliveries": [
            {
                "webhook_id": WEBHOOK_ID,
                "workspace_id": WORKSPACE_ID,
                "task_id": TASK_ID,
                "status": "pending",
                "last_seq": "5",
                "attempts": 1,
                "last_error": "the receiver answered 503",
                "last_attempt_at": "2026-11-24T18:03:26.745258Z",
                "next_attempt_at": "2026-11-24T18:03:31.745258Z",
            }
        ]
    },
}


# The fields that differ if the call has waited for the end of the task.
AFTER_WAIT: dict[str, dict[str, Any]] = {"CancelTaskResponse": {"task": ENDED_TASK}}


def reply(message: Descriptor, *, after_wait: bool = False) -> dict[str, Any]:
    """The example of a reply, with the zeros and empty texts that the edge prints.

    Raises ParseError if the example does not fit the message.
    """
    changed = AFTER_WAIT[message.name] if after_wait else {}
    return printed(_example(message) | changed, message)


def _example(message: Descriptor) -> dict[str, Any]:
    return EXAMPLES.get(message.name) or _usual(message)


def _usual(message: Descriptor) -> dict[str, Any]:
    """An example of a message that is not in EXAMPLES.

    A text field gets the value of the field with the same name in WORKSPACE, TASK or AUDIT_ENTRY.
    Text fields with other names, maps, and messages of other packages, except times, are left out.
    """
    known = {"id": WORKSPACE_ID, **AUDIT_ENTRY, **TASK, **WORKSPACE}
    example: dict[str, Any] = {}
    for field in message.fields:
        inner, value = field.message_type, known.get(field.name)
        if inner is not None and inner.GetOptions().map_entry:
            continue
        if inner is not None and inner.full_name == "google.protobuf.Timestamp":
            value = CREATED
        elif inner is not None:
            value = None if inner.file.package != message.file.package else _example(inner)
        elif field.enum_type is not None:
            value = field.enum_type.values[-1].name
        elif field.type == field.TYPE_BOOL:
            value = True
        elif field.type != field.TYPE_STRING:
            value = 1
        if value is not None:
            example[field.name] = [value] if field.is_repeated else value
    return example


def printed(example: dict[str, Any], message: Descriptor) -> dict[str, Any]:
    """The JSON that the edge prints for this message."""
    parsed = json_format.ParseDict(example, message_factory.GetMessageClass(message)())
    json_example: dict[str, Any] = json_format.MessageToDict(
        parsed, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json_example

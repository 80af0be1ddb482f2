"""The error slugs of error.proto that the service itself returns."""

from typing import Literal, TypeAlias

Slug: TypeAlias = Literal[
    "validation_error",
    "unauthenticated",
    "permission_denied",
    "workspace_not_found",
    "task_not_found",
    "workspace_stopped",
    "workspace_failed",
    "workspace_deleting",
    "workspace_provisioning",
    "workspace_busy",
    "invalid_state",
    "rate_limited",
    "agent_unreachable",
    "unavailable",
    "deadline_exceeded",
    "internal",
    "idempotency_conflict",
    "org_on_hold",
    "webhook_not_found",
    "too_many_webhooks",
    "parent_not_running",
    "tree_limit_reached",
    "task_not_cancelable",
    "unsupported_operation",
    "push_notification_not_supported",
    "content_type_not_supported",
    "version_not_supported",
]

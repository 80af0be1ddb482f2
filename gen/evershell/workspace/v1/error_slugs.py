"""The error slugs of error.proto."""

from typing import Literal, TypeAlias

Slug: TypeAlias = Literal[
    "validation_error",
    "unauthenticated",
    "permission_denied",
    "workspace_not_found",
    "task_not_found",
    "workspace_stopped",
    "workspace_failed",
    "workspace_provisioning",
    "workspace_busy",
    "invalid_state",
    "rate_limited",
    "agent_unreachable",
    "unavailable",
    "deadline_exceeded",
    "internal",
    "not_found",
    "method_not_allowed",
    "request_timeout",
    "payload_too_large",
    "unsupported_media_type",
    "upgrade_required",
    "upgrade_refused",
    "headers_too_large",
]

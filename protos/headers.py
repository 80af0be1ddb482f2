"""The headers in the OpenAPI document."""

from typing import Any

from schemas import reference
from source import Rule

# The headers of answers.
HEADERS: dict[str, dict[str, Any]] = {
    "x-request-id": {
        "description": "Identifies the call in the logs.",
        "required": True,
        "schema": {"type": "string"},
    },
    "retry-after": {
        "description": "Seconds to wait before a retry.",
        "schema": {"type": "integer"},
    },
    "x-should-retry": {
        "description": (
            "Present if the call would fail again, or could have a second effect, if it were "
            "repeated at once. This depends on the request."
        ),
        "schema": {"const": "false"},
    },
    "www-authenticate": {
        "description": "The kind of credential that is required.",
        "schema": {"const": "Bearer"},
    },
}
# A parameter of the calls that create something.
IDEMPOTENCY_KEY: dict[str, Any] = {
    "name": "idempotency-key",
    "in": "header",
    "description": (
        "Makes the call safe to repeat: a repeat with the same key and the same request creates "
        "nothing, and is answered like the first call. A key is kept for 24 hours."
    ),
    "schema": {"type": "string", "pattern": "^[ -~]+$", "minLength": 1, "maxLength": 255},
}
OF_SUCCESSES = {"x-request-id": reference("headers", "x-request-id")}


def of_errors(rules: list[Rule]) -> dict[str, Any]:
    """References to the headers that answers with these errors have."""
    names = ["x-request-id", "x-should-retry"]
    if any("retry_after_seconds" in rule.details for rule in rules):
        names.append("retry-after")
    if any(rule.slug == "unauthenticated" for rule in rules):
        names.append("www-authenticate")
    return {name: reference("headers", name) for name in names}

"""GetCaller through the edge: callers learn from the service who they are."""

from datetime import datetime
from typing import Any

import pytest

from tests.support.stack import Stack


@pytest.mark.parametrize(
    ("token", "kind", "scopes", "expires"),
    [
        ("read_only", "api_key", ["audit:read", "workspace:read"], False),
        (
            "member",
            "session",
            ["tasks:write:own", "workspace:read:own", "workspace:write:own"],
            True,
        ),
    ],
)
def test_a_credential_says_whose_it_is_and_what_it_allows(
    stack: Stack, token: str, kind: str, scopes: list[str], *, expires: bool
) -> None:
    caller: dict[str, Any] = stack.rest(token).get("/v1/caller")
    assert stack.grpc(token).call("GetCaller") == caller
    assert (caller["credential_kind"], caller["scopes"]) == (kind, scopes)
    assert caller["org_id"] == stack.ready["demo"]["org_id"]
    assert caller["actor_id"].startswith("key_") is not expires
    assert ("expires_at" in caller) is expires
    if expires:
        assert datetime.fromisoformat(caller["expires_at"]).tzinfo is not None

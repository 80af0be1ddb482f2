"""The whole stack refuses forged credentials, and bytes that are not a message."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from evershell.workspace.v1.workspace_service_pb2 import CancelTaskRequest
from joserfc.jwk import ECKey

from evershell.auth.pod_tokens import PodTokens
from tests.support.forgeries import FORGED, Headers, Victim, bearer
from tests.support.runtime_tokens import runtime_token
from tests.support.stack import Stack, Workspace
from tests.support.wires import Failed, raw_grpc

SCOPES = ["audit:read", "org:hold", "tasks:write", "workspace:read", "workspace:write"]
CANCEL = "/evershell.workspace.v1.WorkspaceService/CancelTask"


@pytest.fixture(scope="module")
def listening() -> Iterator[socket.socket]:
    """A socket that gets a connection if the service fetches the attacker's keys."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        opened.setblocking(False)
        yield opened


@pytest.fixture(scope="module")
def owned(stack: Stack) -> Workspace:
    """A workspace of the user who owns the demo's workspace."""
    return Workspace(stack, "owner")


@pytest.fixture(scope="module")
def victim(stack: Stack, owned: Workspace, listening: socket.socket) -> Victim:
    kept = json.loads((stack.state_dir / "demo.json").read_text())
    tokens = PodTokens((stack.state_dir / "control-plane.jwk").read_text())
    return Victim(
        key=ECKey.import_key(kept["session key"]),
        kid="demo",
        claims={
            "iss": "https://auth.evershell.ai",
            "aud": "evershell",
            "sub": "user_owner",
            "org_id": "org_demo",
            "permissions": SCOPES,
            "exp": int(time.time()) + 600,
        },
        api_key=stack.tokens["full_access"],
        agent_token=runtime_token(tokens, owned.id, 1),
        url=f"http://127.0.0.1:{listening.getsockname()[1]}/attacker.json",
    )


def events(stack: Stack) -> Any:
    """The number of all events, which an attack must not change."""
    with stack.database() as connection:
        return connection.execute("SELECT count(*) FROM events").fetchone()


def cancel(owned: Workspace, headers: Headers) -> tuple[str, str]:
    """Cancels over REST and over gRPC. Returns both slugs; a slug is empty for a success."""
    stack = owned.stack
    rest = stack.rest("").call("POST", f"{owned.path}/task/cancel", headers=list(headers))
    request = CancelTaskRequest(workspace_id=owned.id).SerializeToString()
    rpc = raw_grpc(stack.ready["grpc_addr"], CANCEL, headers, request)
    return rest.json().get("error", {}).get("code", ""), rpc.slug if isinstance(rpc, Failed) else ""


def test_what_is_forged_here_is_good_otherwise(victim: Victim, owned: Workspace) -> None:
    """Each credential is accepted before an attack changes it.

    So the refusal of an attack is due to the change.
    """
    for token in (victim.good(), victim.api_key):
        assert cancel(owned, bearer(token)) == ("", "")


@pytest.mark.parametrize("attack", FORGED)
def test_a_forged_credential_is_refused(
    stack: Stack, victim: Victim, owned: Workspace, listening: socket.socket, attack: str
) -> None:
    before = events(stack)
    slugs = cancel(owned, FORGED[attack](victim))
    assert slugs == ("unauthenticated", "unauthenticated")
    assert events(stack) == before
    # Nobody has fetched the attacker's keys.
    with pytest.raises(BlockingIOError):
        listening.accept()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\xff" * 64, id="garbage"),
        pytest.param(b"\x0a\x7fws", id="a truncated field"),
        pytest.param(b"\x0a\x02\xff\xfe", id="a text that is not UTF-8"),
        pytest.param(b"\x0b" * 10_000, id="deep groups"),
    ],
)
def test_bytes_that_are_no_message_are_refused(stack: Stack, body: bytes) -> None:
    headers = bearer(stack.tokens["full_access"])
    refused = raw_grpc(stack.ready["grpc_addr"], CANCEL, headers, body)
    assert isinstance(refused, Failed) and refused.slug == "validation_error"

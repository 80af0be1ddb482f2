"""Callers attack the whole stack: Envoy, workers, PostgreSQL. Each attack is made over REST and
over gRPC, and has to be refused and to change nothing.
"""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from joserfc.jwk import ECKey

from evershell.auth.pod_tokens import PodTokens
from tests.faults.long.attacks.caller_attacks import (
    AGENT_METHODS,
    ALL_SCOPES,
    BEYOND_RIGHTS,
    MESSAGES,
    SPOOFED,
    expected,
)
from tests.faults.long.attacks.wires import WIRES, Answer, Wire, slug_of, text_of
from tests.support.edge.refused_cases import BODIES
from tests.support.forgeries import FORGED, Headers, Victim, bearer
from tests.support.injections import INJECTIONS
from tests.support.runtime_tokens import runtime_token
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually
from tests.support.wires import Failed, raw_grpc
from tests.wire.api.access_rules import RULES

ABSENT = "ws_01ARZ3NDEKTSV4RRFFQ69G5FAV"
ABSENT_TASK = "task_01ARZ3NDEKTSV4RRFFQ69G5FAV"


@pytest.fixture(params=WIRES)
def wire(request: pytest.FixtureRequest, stack: Stack) -> Iterator[Wire]:
    used = Wire(request.param, stack)
    yield used
    used.close()


@pytest.fixture(scope="module")
def listening() -> Iterator[socket.socket]:
    """A socket to which a fetch of the attacker's keys would connect."""
    with socket.create_server(("127.0.0.1", 0)) as opened:
        opened.setblocking(False)
        yield opened


@pytest.fixture(scope="module")
def owned(stack: Stack) -> tuple[str, str]:
    """A workspace of the demo's owner, and a task of it that has ended."""
    workspace = Workspace(stack, "owner")
    task_id = workspace.submit("true")
    workspace.await_end(task_id)
    return workspace.id, task_id


@pytest.fixture(scope="module")
def victim(stack: Stack, owned: tuple[str, str], listening: socket.socket) -> Victim:
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
            "permissions": sorted(ALL_SCOPES),
            "exp": int(time.time()) + 600,
        },
        api_key=stack.tokens["full_access"],
        agent_token=runtime_token(tokens, owned[0], 1),
        url=f"http://127.0.0.1:{listening.getsockname()[1]}/attacker.json",
    )


def snapshot(stack: Stack) -> Any:
    """What an attack must not change."""
    with stack.database() as connection:
        return connection.execute(
            "SELECT (SELECT jsonb_agg(to_jsonb(w) - 'lease_expires_at' ORDER BY id) "
            "FROM workspaces w), (SELECT count(*) FROM tasks), (SELECT count(*) FROM events), "
            "(SELECT count(*) FROM org_holds WHERE org_id = 'org_demo')"
        ).fetchone()


def fields_of(method: str, workspace_id: str, task_id: str) -> dict[str, Any]:
    """A valid request of the method."""
    known = {
        "CancelTask": {"workspace_id", "task_id"},
        "SubmitTask": {"workspace_id", "description"},
        "GetTask": {"workspace_id", "task_id"},
        "CancelTasks": {"all"},
    }
    default = {"workspace_id"} if RULES[method].on_workspace else set()
    values = {
        "workspace_id": workspace_id,
        "task_id": task_id,
        "description": "true",
        "all": True,
    }
    return {name: values[name] for name in known.get(method, default)}


def test_what_is_forged_here_is_good_otherwise(
    stack: Stack, victim: Victim, owned: tuple[str, str], wire: Wire
) -> None:
    """So each refusal comes from what the row has changed."""
    for token in (victim.good(), victim.api_key):
        for answer in wire.send("GetWorkspace", bearer(token), workspace_id=owned[0]):
            assert slug_of(answer) == ""


@pytest.mark.parametrize("attack", FORGED)
def test_a_forged_credential_is_refused(
    stack: Stack,
    victim: Victim,
    owned: tuple[str, str],
    listening: socket.socket,
    wire: Wire,
    attack: str,
) -> None:
    headers, before = FORGED[attack](victim), snapshot(stack)
    for method in ("CancelTask", "GetWorkspace", "ListWorkspaces"):
        for answer in wire.send(method, headers, **fields_of(method, *owned)):
            assert slug_of(answer) == "unauthenticated", answer
    assert snapshot(stack) == before
    # Nobody has fetched the attacker's keys.
    with pytest.raises(BlockingIOError):
        listening.accept()


@pytest.mark.parametrize("attack", BEYOND_RIGHTS)
def test_a_call_beyond_the_callers_rights_is_refused(
    stack: Stack, owned: tuple[str, str], wire: Wire, attack: str
) -> None:
    method, _, by = attack.partition(" by ")
    headers: Headers = bearer(stack.tokens[by]) if by in stack.tokens else ()
    slug, before = expected(method, by), snapshot(stack)
    if not slug:
        assert_only_own(method, wire, headers, owned)
        assert snapshot(stack) == before
        return
    for answer in wire.send(method, headers, **fields_of(method, *owned)):
        assert slug_of(answer) == slug, answer
    assert snapshot(stack) == before
    if slug == "workspace_not_found":
        assert_same_words(method, wire, headers, owned)


def assert_only_own(method: str, wire: Wire, headers: Headers, owned: tuple[str, str]) -> None:
    """A call for the caller's organization shows nothing of another one."""
    for answer in wire.send(method, headers, **fields_of(method, *owned)):
        assert slug_of(answer) == ""
        assert owned[0] not in text_of(answer) and "org_demo" not in text_of(answer)
    if method == "HoldOrg":
        wire.send("ReleaseOrg", headers)


def assert_same_words(method: str, wire: Wire, headers: Headers, owned: tuple[str, str]) -> None:
    """The answer for a foreign workspace is that for a missing one."""
    foreign = wire.send(method, headers, **fields_of(method, *owned))
    missing = wire.send(method, headers, **fields_of(method, ABSENT, ABSENT_TASK))
    for one, other in zip(foreign, missing, strict=True):
        assert text_of(one).replace(owned[0], ABSENT).replace(owned[1], ABSENT_TASK) == text_of(
            other
        )


@pytest.mark.parametrize("attack", SPOOFED)
def test_a_header_changes_nobodys_rights(
    stack: Stack, owned: tuple[str, str], wire: Wire, attack: str
) -> None:
    before = snapshot(stack)
    for by, slug in (
        ("other_org", "workspace_not_found"),
        ("member", "permission_denied"),
        ("read_only", "permission_denied"),
        ("expired", "unauthenticated"),
    ):
        headers = (*bearer(stack.tokens[by]), *SPOOFED[attack])
        for answer in wire.send("CancelTask", headers, workspace_id=owned[0]):
            assert slug_of(answer) == slug, (by, answer)
    assert snapshot(stack) == before


@pytest.mark.parametrize("attack", INJECTIONS)
def test_an_injection_remains_a_text(
    stack: Stack, owned: tuple[str, str], wire: Wire, attack: str
) -> None:
    text, headers = INJECTIONS[attack], bearer(stack.tokens["owner"])
    (answer, *_) = wire.send("CancelTask", headers, workspace_id=owned[0], reason=text)
    assert slug_of(answer) == ""
    for audit in wire.send("ListAuditEntries", headers, workspace_id=owned[0], page_size=1):
        assert entries_of(audit)[0]["reason"] == text
    # As a filter, it matches nothing but itself.
    for name in ("actor_id", "rpc", "outcome"):
        for audit in wire.send("ListAuditEntries", headers, **{name: text}):
            assert entries_of(audit) == []
    # In place of an id, and as a page token, it is refused and repeated nowhere.
    for refused in (
        *wire.send("GetTask", headers, workspace_id=owned[0], task_id=text),
        *wire.send("ListTasks", headers, workspace_id=owned[0], page_token=text),
    ):
        assert slug_of(refused) in ("validation_error", "not_found"), refused
        assert text not in text_of(refused)


def entries_of(answer: Answer) -> list[dict[str, Any]]:
    assert isinstance(answer, dict), answer
    found: list[dict[str, Any]] = answer.get("entries", [])
    return found


@pytest.mark.parametrize("attack", [*BODIES, *MESSAGES])
def test_bytes_that_are_no_request_are_refused(stack: Stack, wire: Wire, attack: str) -> None:
    body = {**BODIES, **MESSAGES}[attack]
    headers = bearer(stack.tokens["full_access"])
    if wire.name == "REST":
        headers = (*headers, ("content-type", "application/json"))
    answer = wire.raw("CancelTask", headers, body)
    assert slug_of(answer) == "validation_error", answer
    for still in wire.send("ListWorkspaces", headers):
        assert slug_of(still) == ""


@pytest.mark.parametrize("attack", AGENT_METHODS)
@pytest.mark.parametrize("token", ["full_access", "an agent's token"])
def test_the_service_of_agents_is_not_public(
    stack: Stack, victim: Victim, wire: Wire, token: str, attack: str
) -> None:
    headers = bearer(stack.tokens.get(token, victim.agent_token))
    wire.calls += 1
    path = f"/evershell.agent.v1.RuntimeService/{attack}"
    if wire.name == "REST":
        response = stack.rest("").call("POST", path, headers=dict(headers))
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
    else:
        refused = raw_grpc(stack.ready["grpc_addr"], path, headers)
        assert isinstance(refused, Failed) and refused.status is grpc.StatusCode.UNIMPLEMENTED
        # At a worker, a caller's credential does not open it.
        if token == "full_access":
            refused = raw_grpc(stack.worker_addresses()[0], path, headers)
            assert isinstance(refused, Failed) and refused.slug == "unauthenticated"


def test_no_attack_has_forged_a_line_of_a_log(stack: Stack) -> None:
    """Runs last: every line that the attacks have left is one event of the service."""

    def lines() -> list[dict[str, Any]]:
        logs = (stack.state_dir / "logs").glob("worker-*.log")
        # A line that a worker has not finished writing has no end.
        whole = [log.read_text().rpartition("\n")[0] for log in logs]
        return [json.loads(line) for text in whole for line in text.splitlines()]

    eventually(lambda: len(lines()) > 0)
    assert not [line for line in lines() if line.get("org_id") == "org_b"]
    assert {line["event"] for line in lines()} >= {"rpc_completed"}

"""Every secret and certificate is rotated under load. No call and no cancellation is lost."""

import shutil
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evershell.auth.signing_keys import private_keys
from tests.deploy.long.operating.credentials import Credential, Grpc, Issuer, Rest
from tests.deploy.long.operating.password_server import PasswordServer, password_server
from tests.stack.long.canceller import SHORT, Canceller
from tests.stack.long.load import Caller, Load
from tests.support.edge.certificates import Authority
from tests.support.faults import assert_story, await_terminal, await_workspace
from tests.support.identity_provider import ISSUER
from tests.support.programs import run
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually

# The test mostly waits for programs, which take longer on a busy machine.
pytestmark = pytest.mark.timeout(300)

RESTART_SECONDS = 60.0
PAUSE_SECONDS = 0.2
# An agent that can no longer call the workers ends within this time. During a restart, agents
# cannot call the workers for most of this time, so the lease cannot be shorter.
LEASE_SECONDS = 20
# How long the task of an agent that can no longer call the workers may take to end.
LOST_SECONDS = LEASE_SECONDS + 25.0
# How long each canceller may take for two steps on a busy machine.
PROGRESS_SECONDS = 60.0
# A token with an unknown key makes a worker read the key set again, but not more often than every
# 10 s. This is slightly longer.
PUBLISHED_SECONDS = 11.0


@pytest.fixture
def database(tmp_path: Path) -> Iterator[PasswordServer]:
    folder = tmp_path / "postgres"
    folder.mkdir()
    with password_server(folder) as server:
        yield server


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """The authority of the edge's certificates, which every caller trusts."""
    issuing = Authority(tmp_path, "authority")
    monkeypatch.setenv("SSL_CERT_FILE", str(issuing.ca_file))
    return issuing


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path / "jwks.json")


@pytest.fixture
def stack(
    tmp_path: Path, database: PasswordServer, authority: Authority, issuer: Issuer
) -> Iterator[Stack]:
    edge = authority.issue("edge")
    running = Stack(
        tmp_path / "state",
        DATABASE_URL=database.url,
        TLS_CERT_FILE=str(edge.cert_file),
        TLS_KEY_FILE=str(edge.key_file),
        AGENT_TLS="on",
        LEASE_SECONDS=str(LEASE_SECONDS),
        JWKS=str(tmp_path / "jwks.json"),
        JWT_ISSUER=ISSUER,
    )
    with running.started():
        yield running


def restart(stack: Stack) -> None:
    done = stack.restarts()
    assert run("restart", stack.state_dir).returncode == 0
    eventually(lambda: stack.restarts() == done + 1, RESTART_SECONDS)


def rotate(stack: Stack, step: str) -> None:
    done = run("rotate", stack.state_dir, step)
    assert done.returncode == 0, done.stderr


def new_key(stack: Stack) -> tuple[str, str]:
    """A new API key of the demo organization: its id and its secret."""
    org_id = stack.ready["demo"]["org_id"]
    done = run("keys", stack.state_dir, "create", "--org", org_id, "--template", "full_access")
    assert done.returncode == 0, done.stderr
    return done.stderr.partition("Created key ")[2].split()[0], done.stdout.strip()


def presented_certificate(stack: Stack) -> bytes:
    """The certificate that the edge presents on a new connection."""
    host, _, port = stack.ready["rest_url"].removeprefix("https://").rpartition(":")
    return ssl.get_server_certificate((host, int(port))).encode()


def replace_certificate(authority: Authority, folder: Path) -> None:
    """Replaces the files of the edge's certificate and key, as an operator does."""
    renewed = authority.issue("renewed")
    shutil.copy(renewed.cert_file, folder / "edge.pem")
    shutil.copy(renewed.key_file, folder / "edge.key")


def new_cancellers(load: Load, stack: Stack, *callers: Caller) -> list[Canceller[Workspace]]:
    """Returns a canceller for each caller, in its own workspace."""
    return [
        Canceller(load, f"canceller {number}", caller, Workspace(stack), SHORT)
        for number, caller in enumerate(callers)
    ]


def progress(cancellers: list[Canceller[Workspace]]) -> None:
    """Waits until each canceller has completed a whole step that began after this call."""
    before = [each.ended for each in cancellers]
    eventually(
        lambda: all(each.ended > ended + 1 for each, ended in zip(cancellers, before, strict=True)),
        PROGRESS_SECONDS,
    )


def test_no_call_is_lost_while_every_secret_is_rotated(
    stack: Stack, database: PasswordServer, authority: Authority, issuer: Issuer, tmp_path: Path
) -> None:
    load, org_id = Load(PAUSE_SECONDS), stack.ready["demo"]["org_id"]
    key_id, secret = new_key(stack)
    api_key, session = Credential(secret), Credential(issuer.token("first", org_id))

    callers = (
        Rest(stack, api_key),
        Rest(stack, session),
        Grpc(stack, api_key, authority.ca_file),
    )
    left = Workspace(stack)
    gate = Gate(left)
    task_id = left.begin(gate.command, "echo never")
    old_agents = new_cancellers(load, stack, *callers)
    progress(old_agents)

    issuer.add("second")
    published = time.monotonic()
    new_key_id, api_key.token = new_key(stack)
    database.set_password("second")
    before = presented_certificate(stack)
    replace_certificate(authority, tmp_path)
    rotate(stack, "begin")
    restart(stack)

    assert presented_certificate(stack) != before
    assert (database.accepts("first"), database.accepts("second")) == (False, True)
    new_agents = new_cancellers(load, stack, *callers)
    eventually(lambda: time.monotonic() - published > PUBLISHED_SECONDS)
    session.token = issuer.token("second", org_id)
    assert run("keys", stack.state_dir, "revoke", key_id).returncode == 0
    progress([*old_agents, *new_agents])
    issuer.remove("first")
    progress([*old_agents, *new_agents])
    # The agent whose certificate was signed with the previous key still gets the signal.
    assert left.cancel(reason="the last task of its agent")["outcome"] == "accepted"
    load.stop()
    assert load.outcomes.failures == []

    for canceller in (*old_agents, *new_agents[:1]):
        canceller.workspace.replace_agent()
    load = Load(PAUSE_SECONDS)
    agents = (*old_agents, new_agents[1])
    credentials = (api_key, session, api_key, session)
    last = [
        Canceller(load, "the last phase", Rest(stack, credential), each.workspace, SHORT)
        for credential, each in zip(credentials, agents, strict=True)
    ]
    progress(last)
    rotate(stack, "finish")
    assert len(private_keys((stack.state_dir / "control-plane.jwk").read_text())) == 1
    restart(stack)
    progress(last)
    load.stop()
    assert load.outcomes.failures == []

    # The agent that was left behind no longer trusts any worker, so it ends when its lease ends.
    # Its cancellation is not lost.
    await_terminal(left, task_id, LOST_SECONDS)
    assert_story(left, task_id, status="cancelled", intent=True)
    await_workspace(left, "failed")
    for canceller in (*old_agents, *new_agents):
        canceller.assert_cancelled()
    assert new_key_id != key_id

"""Several signing keys: what the first key is used for, and what the others are used for."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from evershell.auth.agent_certificates import AgentCertificates
from evershell.auth.pod_tokens import PodTokens
from evershell.auth.signing_keys import (
    new_key,
    private_keys,
    read_signing_keys,
    with_first_key,
    with_new_key,
)
from evershell.cli.folder_lock import folder_lock
from evershell.commands.rotate import rotate
from evershell.core.errors import Failure, OperatorError
from evershell.core.runtime import AgentIdentity
from tests.support.agent_tls import is_issued_by
from tests.support.runtime_tokens import runtime_token
from tests.support.waiting import eventually

OLD = new_key()
BOTH = with_new_key(OLD)
NEW = with_first_key(BOTH)
WORKSPACE = "ws_1"


@pytest.mark.parametrize("secret", ["", "!" * 43, "A" * 42, "A" * 44, "A" * 42 + "\n"])
def test_a_file_with_a_damaged_key(secret: str) -> None:
    damaged = json.dumps({**json.loads(NEW), "d": secret})
    for text in (damaged, json.dumps({"keys": [json.loads(OLD), json.loads(damaged)]})):
        with pytest.raises(ValueError):
            private_keys(text)


# Nested more deeply than the JSON parser recurses.
NESTED = b"[" * 100_000


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (NESTED, "is not valid: it is neither a private JWK nor a set of them."),
        (b'{"keys": []}', "is not valid: the set has no key."),
        (b"\xff\xfe", "is not valid: it is not text."),
        (None, "cannot be read (Is a directory)."),
    ],
    ids=["nested", "no key", "binary", "directory"],
)
def test_a_file_that_is_not_valid_is_refused_in_one_line(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    path = tmp_path / "control-plane.jwk"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(OperatorError) as refused:
        read_signing_keys(path)
    assert str(refused.value) == f"{path} {problem}"


@pytest.mark.parametrize(("made_with", "signing_key"), [(NEW, 0), (OLD, 1)])
def test_tokens_of_both_keys_are_accepted(made_with: str, signing_key: int) -> None:
    made, both = PodTokens(made_with), PodTokens(BOTH)
    for agent in (
        both.identify(runtime_token(made, WORKSPACE, 3)),
        both.identify_bootstrapping(made.bootstrap_token(WORKSPACE, 3)),
    ):
        assert (agent.workspace_id, agent.epoch, agent.signing_key) == (WORKSPACE, 3, signing_key)
        # The secrets that an agent gets at its bootstrap come from the same signing key as its
        # token. So every worker that accepts the token also accepts the agent.
        assert both.runtime_secret(WORKSPACE, 3, signing_key) == made.runtime_secret(WORKSPACE, 3)
        assert both.signal_secret(WORKSPACE, 3, signing_key) == made.signal_secret(WORKSPACE, 3)


def test_a_removed_key_is_refused() -> None:
    old, new = PodTokens(OLD), PodTokens(NEW)
    with pytest.raises(Failure):
        new.identify(runtime_token(old, WORKSPACE, 3))
    with pytest.raises(Failure):
        new.identify_bootstrapping(old.bootstrap_token(WORKSPACE, 3))


def test_new_agents_get_secrets_of_the_first_key() -> None:
    both, new = PodTokens(BOTH), PodTokens(NEW)
    assert both.runtime_secret(WORKSPACE, 3) == new.runtime_secret(WORKSPACE, 3)
    assert both.bootstrap_token(WORKSPACE, 3) == new.bootstrap_token(WORKSPACE, 3)


def test_an_agent_that_refuses_one_key_gets_the_other() -> None:
    both = PodTokens(BOTH)
    both.note_refusal(WORKSPACE, 3, 0)
    # The agent also refuses a second call, which was sent at the same time.
    both.note_refusal(WORKSPACE, 3, 0)
    assert (both.signing_key(WORKSPACE, 3), both.signing_key(WORKSPACE, 4)) == (1, 0)
    both.note_refusal(WORKSPACE, 3, 1)
    assert both.signing_key(WORKSPACE, 3) == 0
    one = PodTokens(OLD)
    one.note_refusal(WORKSPACE, 3, 0)
    assert one.signing_key(WORKSPACE, 3) == 0


def test_both_sides_trust_the_certificates_of_both_keys() -> None:
    """The last key issues the control plane's certificate: earlier agents trust only this key."""
    old, both, new = (AgentCertificates(text) for text in (OLD, BOTH, NEW))
    agent = AgentIdentity(WORKSPACE, 3)
    for identity in (both.control_plane(), both.agent(agent)):
        assert identity.trusted.count("BEGIN CERTIFICATE") == 2
    assert is_issued_by(both.control_plane().certificate, old.agent(agent).trusted)
    assert is_issued_by(both.agent(agent).certificate, new.control_plane().trusted)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STATE_DIR", str(tmp_path))
    return tmp_path / "control-plane.jwk"


def command(name: str) -> Result:
    return CliRunner().invoke(rotate, [name])


def test_a_rotation(state: Path) -> None:
    state.write_text(OLD)
    assert command("begin").exit_code == 0
    assert state.stat().st_mode & 0o777 == 0o600
    new, old = private_keys(state.read_text())
    assert [old] == private_keys(OLD)
    finished = command("finish")
    assert (finished.exit_code, private_keys(state.read_text())) == (0, [new])
    assert "Agents that still have it end after the restart" in finished.output
    assert "keys" not in json.loads(state.read_text())
    # No other file is left. A lock file of one user would keep another user from the next step.
    assert list(state.parent.iterdir()) == [state]


def test_two_rotations_that_begin_together_make_one_new_key(state: Path) -> None:
    """The second rotation waits, and then finds that a rotation is in progress."""
    state.write_text(OLD)
    with ThreadPoolExecutor(1) as thread:
        with folder_lock(state.parent):
            second = thread.submit(command, "begin")
            eventually(lambda: second.done() or waits_for_lock())
            assert not second.done()
            state.write_text(BOTH)
        refused = second.result()
    assert (refused.exit_code, state.read_text()) == (1, BOTH)
    assert "A rotation is in progress." in refused.output


def waits_for_lock() -> bool:
    """Whether this process waits for a file lock: see proc_locks(5)."""
    waiting = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return any(line[1] == "->" and line[5] == str(os.getpid()) for line in waiting)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the owner of a file")
def test_the_file_keeps_its_owner(state: Path) -> None:
    """The user who runs the programs may not be the operator who rotates the key."""
    state.write_text(OLD)
    os.chown(state, 1234, 5678)
    assert command("begin").exit_code == 0
    kept = state.stat()
    assert (kept.st_uid, kept.st_gid, kept.st_mode & 0o777) == (1234, 5678, 0o600)


@pytest.mark.parametrize(
    ("step", "content", "problem"),
    [
        ("begin", BOTH, "A rotation is in progress. Finish it first."),
        ("finish", OLD, "No rotation is in progress. Begin one first."),
    ],
)
def test_a_step_out_of_order_changes_nothing(
    state: Path, step: str, content: str, problem: str
) -> None:
    state.write_text(content)
    refused = command(step)
    assert (refused.exit_code, state.read_text()) == (1, content)
    assert refused.output == f"Error: {problem} {state} was not changed.\n"

"""The commands for keys and organizations, as an operator would run them."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import grpc
import pytest

from evershell.client import Client, UnauthenticatedError
from evershell.core.errors import UnavailableError
from evershell.store.keys import PostgresKeys
from tests.support.commands import Run
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

# How long a revoked key may still work. The documents promise 10 s: workers cache a key for 5 s,
# and check the keys of streams every 3 s. The other 20 s are for a busy machine.
REVOKED_SECONDS = 30.0


def test_a_key_works_at_once_and_its_revocation_reaches_every_worker_and_stream(
    run: Run, call: Run, stack: Stack, workspace: Workspace
) -> None:
    made = run(
        "keys",
        "create",
        "--org",
        "org_demo",
        "--template",
        "submit_observe",
        "--name",
        "for the build",
    )
    assert made.returncode == 0, made.stderr
    (secret,) = made.stdout.splitlines()
    assert secret.startswith("sk_") and secret not in made.stderr
    (key_id,) = re.findall(r"key_\w+", made.stderr)

    assert stack.rest(secret).get(workspace.path)["id"] == workspace.id
    for address in stack.worker_addresses():
        assert (
            stack.grpc(secret, address).call("CancelTask", workspace_id=workspace.id)["outcome"]
            == "no_active_task"
        )
    listed = call("keys", "list", "--org", "org_demo")
    assert listed.returncode == 0, listed.stderr
    (line,) = (line for line in listed.stdout.splitlines() if line.startswith(key_id))
    assert re.fullmatch(rf"{key_id}\s+submit_observe\s+\S+Z\s+-\s+-\s+\S+\s+for the build", line)
    assert "sk_" not in listed.stdout

    after = workspace.log()[-1]["seq"] - 1
    with Client(stack.ready["grpc_addr"], secret) as client:
        messages = stack.rest(secret).events(workspace.id, after=after)
        events = client.watch(workspace.id, after=after, timeout=30)
        assert "event" in next(messages)
        next(events)

        revoked = call("keys", "revoke", key_id)

        revoked_at = time.monotonic()
        errors = [message["error"]["code"] for message in messages if "error" in message]
        with pytest.raises(UnauthenticatedError):
            list(events)
    assert errors[-1] == "unauthenticated"
    assert (revoked.returncode, revoked.stdout) == (0, ""), revoked.stderr
    for address in stack.worker_addresses():
        eventually(lambda: _refused(stack, secret, address, workspace), REVOKED_SECONDS)
    assert time.monotonic() - revoked_at < REVOKED_SECONDS
    assert stack.rest(secret).fails("GET", workspace.path).status == 401
    (line,) = (
        line
        for line in call("keys", "list", "--org", "org_demo").stdout.splitlines()
        if line.startswith(key_id)
    )
    assert re.fullmatch(rf"{key_id}\s+submit_observe\s+\S+Z\s+-\s+\S+Z\s+\S+\s+for the build", line)
    again = call("keys", "revoke", key_id)
    assert again.returncode == 1
    assert f"no valid key {key_id}" in again.stderr


def _refused(stack: Stack, secret: str, address: str, workspace: Workspace) -> bool:
    try:
        stack.grpc(secret, address).call("GetWorkspace", workspace_id=workspace.id)
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.UNAUTHENTICATED, (
            error
        )
        return True
    return False


def test_a_key_can_create_its_organization(call: Run, stack: Stack) -> None:
    arguments = ("keys", "create", "--org", "org_new", "--template", "full_access")
    unknown = call(*arguments)
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert "There is no organization org_new" in unknown.stderr
    assert call("keys", "list", "--org", "org_new").returncode == 1
    taken = call(*arguments, "--create-org", "demo")
    assert (taken.returncode, "has the slug demo" in taken.stderr) == (1, True)

    made = call(*arguments, "--create-org", "new", DATABASE_URL=stack.ready["database_url"])

    assert made.returncode == 0, made.stderr
    assert stack.rest(made.stdout.strip()).get("/v1/workspaces")["workspaces"] == []
    assert call(*arguments, "--create-org", "new").returncode == 0
    renamed = call(*arguments, "--create-org", "newer")
    assert (renamed.returncode, "its slug is new" in renamed.stderr) == (1, True)


def test_no_key_is_created_whose_secret_cannot_be_printed(call: Run, stack: Stack) -> None:
    def keys() -> set[str]:
        return set(re.findall(r"key_\w+", call("keys", "list", "--org", "org_demo").stdout))

    before = keys()
    command = [sys.executable, "-m", "evershell.commands", "keys", "create", "--org", "org_demo"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "--template", "full_access"],
            env={**os.environ, "STATE_DIR": str(stack.state_dir), "DATABASE_URL": ""},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.endswith(
        "Error: Standard output cannot be written: No space left on device.\n"
    )
    assert keys() == before


def test_a_key_that_cannot_be_stored_is_said_to_be_no_key(
    call: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: object) -> None:
        raise UnavailableError("it is read-only")

    monkeypatch.setattr(PostgresKeys, "create_key", refused)
    made = call("keys", "create", "--org", "org_demo", "--template", "full_access")
    assert made.returncode == 1
    assert re.search(
        r"^The secret is not valid, unless `keys list` shows key key_\w+\.$", made.stderr, re.M
    )
    assert made.stderr.endswith("Error: The database does not answer: it is read-only.\n")

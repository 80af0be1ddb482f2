"""Tests that agents exit when they lose the control plane or are fenced.

The stack uses short leases.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from evershell.agents.shutdown import ExitCode
from evershell.auth.pod_tokens import PodTokens
from evershell.core import workspace_lifecycle
from evershell.store.connections import open_pool
from evershell.store.postgres_store import PostgresStore
from evershell.store.service_clock import machine_clock
from tests.support import faults
from tests.support.stack import STOP_SECONDS, Stack, Workspace, running, unique_seconds
from tests.support.waiting import eventually

# The agents end 2 s before their leases are over. Shorter leases would leave them less time.
LEASE_SECONDS = 6
# They identify these processes.
CUT_OFF, OUTLIVED = unique_seconds(), unique_seconds()


@pytest.fixture(scope="module")
def short_leases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(
        tmp_path_factory.mktemp("leases") / "state", LEASE_SECONDS=str(LEASE_SECONDS), WORKERS="1"
    ).started() as own:
        yield own


def test_agents_that_are_cut_off_end_their_tools_and_themselves_before_their_leases_are_over(
    short_leases: Stack,
) -> None:
    """The frozen workers simulate a network that delivers nothing.

    The controller is also frozen until the agents exit.
    """
    cancelled, left = Workspace(short_leases), Workspace(short_leases)
    # The file says until when the tools have run.
    tool = f"(while sleep 0.02; do touch alive; done) & sleep {CUT_OFF}"
    task_ids = [workspace.submit(tool, "echo never") for workspace in (cancelled, left)]
    eventually(lambda: len(running(CUT_OFF)) == 2)
    assert cancelled.cancel()["outcome"] == "accepted"
    agents = [short_leases.agent_pid(workspace.id) for workspace in (cancelled, left)]
    with short_leases.frozen("fleet"), short_leases.frozen("serve"):
        leases_over_at = [_lease_over_at(workspace) for workspace in (cancelled, left)]
        eventually(lambda: not any(short_leases.is_alive(agent) for agent in agents))
        assert running(CUT_OFF) == []
    for workspace, lease_over_at in zip((cancelled, left), leases_over_at, strict=True):
        assert _last_sign_of_life(workspace) < lease_over_at
    for workspace, task_id, status in zip(
        (cancelled, left), task_ids, ("cancelled", "failed"), strict=True
    ):
        end = faults.await_terminal(workspace, task_id)
        assert end["work_stopped"] == "yes"
        faults.assert_story(workspace, task_id, status=status, intent=status == "cancelled")
        assert "the lease could not be renewed in time" in _log(workspace).read_text()
    faults.resume(left)
    faults.assert_next_task_works(left)


def test_of_two_agents_the_one_of_the_older_epoch_ends_its_tools_and_itself(
    short_leases: Stack, tmp_path: Path
) -> None:
    """The controller cannot reach the older agent and must fence it.

    The test performs the actions of the controller.
    """
    workspace = Workspace(short_leases)
    with ExitStack() as stack:
        stack.enter_context(short_leases.frozen("fleet"))
        short_leases.kill(short_leases.agent_pid(workspace.id))
        older = stack.enter_context(agent_by_hand(workspace, 1, tmp_path))
        task_id = workspace.submit(f"sleep {OUTLIVED}", "echo never")
        eventually(lambda: running(OUTLIVED))

        asyncio.run(_lose_agent(workspace))
        assert workspace.rest.post(f"{workspace.path}/resume")["epoch"] == "2"
        before = workspace.log()
        stack.enter_context(agent_by_hand(workspace, 2, tmp_path))

        assert older.wait(STOP_SECONDS) == ExitCode.FENCED
        assert running(OUTLIVED) == []
        faults.assert_story(workspace, task_id, status="failed", intent=False)
        # An agent of the older epoch cannot register again.
        with agent_by_hand(workspace, 1, tmp_path, registers=False) as again:
            assert again.wait(STOP_SECONDS) == ExitCode.FENCED
        assert [entry["type"] for entry in workspace.log()[len(before) :]] == ["workspace_resumed"]
        faults.assert_next_task_works(workspace)


def _log(workspace: Workspace) -> Path:
    return workspace.stack.state_dir / "fleet" / workspace.id / "log"


def _last_sign_of_life(workspace: Workspace) -> float:
    """When the agent or its tool last wrote to its file, as Unix time.

    A test that looked at the clock itself would be late on a busy machine.
    """
    alive = workspace.stack.files(workspace.id) / "alive"
    return max(_log(workspace).stat().st_mtime, alive.stat().st_mtime)


def _lease_over_at(workspace: Workspace) -> float:
    """Returns the end of the lease as Unix time. The database uses the clock of this machine."""
    with workspace.stack.database() as connection:
        row = connection.execute(
            "SELECT lease_expires_at FROM workspaces WHERE id = %s", (workspace.id,)
        ).fetchone()
    assert row is not None
    return float(row[0].timestamp())


@contextmanager
def agent_by_hand(
    workspace: Workspace,
    epoch: int,
    folder: Path,
    *,
    registers: bool = True,
    program: Sequence[str] = ("-m", "evershell.agents"),
) -> Iterator["subprocess.Popen[bytes]"]:
    """Starts an agent without a controller and waits for registration if `registers` is set."""
    before = workspace.agent_address
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", *program],
            cwd=folder,
            stdin=subprocess.PIPE,
            stderr=log,
            env={"PATH": os.environ["PATH"]},
        )
    try:
        assert process.stdin is not None
        process.stdin.write(json.dumps(_spec(workspace, epoch)).encode())
        process.stdin.close()
        if registers:
            eventually(lambda: workspace.agent_address not in (before, None))
        yield process
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def _spec(workspace: Workspace, epoch: int) -> dict[str, Any]:
    tokens = PodTokens((workspace.stack.state_dir / "control-plane.jwk").read_text())
    return {
        "workspace_id": workspace.id,
        "epoch": epoch,
        "runtime_addresses": workspace.stack.worker_addresses(),
        "runtime_secret": tokens.runtime_secret(workspace.id, epoch).hex(),
        "signal_secret": tokens.signal_secret(workspace.id, epoch).hex(),
    }


async def _lose_agent(workspace: Workspace) -> None:
    """Marks the agent as lost, like a controller that cannot reach the agent."""
    async with open_pool(workspace.stack.ready["database_url"]) as pool:
        await PostgresStore(pool, machine_clock).transition(
            workspace.id,
            lambda session: workspace_lifecycle.lose_agent(
                session, 1, "not heard of", datetime.now(UTC), work_stopped=False
            ),
        )

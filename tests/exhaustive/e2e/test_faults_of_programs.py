"""Programs that die or freeze during a cancellation: the database, the workers, the controller, the
edge.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import httpx
import psutil
import psycopg
import pytest

from tests.support import faults
from tests.support.commit_barrier import await_waiting
from tests.support.stack import ROOT, STOP_SECONDS, Gate, Stack, Workspace
from tests.support.waiting import eventually

# Within this, a call is told that the database does not answer.
ANSWER_SECONDS = 5.0
# Within this, a standby leads when the leader has gone, and has seen what it missed.
TAKEOVER_SECONDS = 5.0


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def programs(stack: Stack, name: str) -> list[psutil.Process]:
    """The stack's own processes of this name."""
    return [child for child in psutil.Process(stack.pid).children() if child.name() == name]


@contextmanager
def database_killed(stack: Stack) -> Iterator[None]:
    """What starts programs again is frozen meanwhile."""
    (postgres,) = programs(stack, "postgres")
    family = [postgres, *postgres.children(recursive=True)]
    with stack.frozen_process(stack.pid):
        postgres.kill()
        # Its sessions end by themselves; only then does the next one start.
        eventually(lambda: all(not stack.is_alive(each.pid) for each in family))
        yield


@contextmanager
def database_frozen(stack: Stack) -> Iterator[None]:
    """The kernel still takes connections, and nobody answers."""
    (postgres,) = programs(stack, "postgres")
    with ExitStack() as frozen:
        frozen.enter_context(stack.frozen_process(postgres.pid))
        for session in postgres.children(recursive=True):
            frozen.enter_context(stack.frozen_process(session.pid))
        yield


@contextmanager
def held_back(workspace: Workspace) -> Iterator[None]:
    """Nobody can change the workspace; the fault may take the lock with it."""
    with suppress(psycopg.OperationalError), workspace.stack.database() as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT 1 FROM workspaces WHERE id = %s FOR UPDATE", (workspace.id,))
        yield


@pytest.mark.parametrize("fault", [database_killed, database_frozen])
def test_a_database_that_is_away(
    fragile_stack: Stack,
    pool: ThreadPoolExecutor,
    fault: Callable[[Stack], AbstractContextManager[None]],
) -> None:
    """It goes away during an iteration and during a CancelTask, and the iteration ends while it is
    away.
    """
    workspace = Workspace(fragile_stack)
    gate = Gate(workspace)
    task_id = workspace.submit(gate.command, "echo second")
    workspace.await_phase(task_id, "tool_call")
    agent = fragile_stack.agent_pid(workspace.id)
    with held_back(workspace):
        in_hand = pool.submit(workspace.rest.call, "POST", f"{workspace.path}/task/cancel")
        await_waiting(workspace, "record_cancellation")
        with fault(fragile_stack):
            assert_unavailable(fragile_stack, workspace)
            response = in_hand.result(ANSWER_SECONDS)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
            for address in fragile_stack.worker_addresses():
                eventually(lambda: faults.health_of(address) == "NOT_SERVING", ANSWER_SECONDS)
            # The edge, which asks them, now answers by itself.
            assert_unavailable(fragile_stack, workspace)
            gate.open()
    for address in fragile_stack.worker_addresses():
        eventually(lambda: faults.health_of(address) == "SERVING", 20)

    # What the agent could not commit is committed, once. A call that was told `unavailable` may
    # have recorded the intent or not.
    faults.await_terminal(workspace, task_id)
    intent = faults.intent_of(workspace, task_id)
    assert intent in ("whole", "absent")
    status = "cancelled" if intent == "whole" else "completed"
    story = faults.assert_story(workspace, task_id, status=status, intent=intent == "whole")
    first = next(entry for entry in story if entry["type"] == "iteration_completed")
    assert first["tool_call"]["result"]["output"] == "open\n"
    assert fragile_stack.agent_pid(workspace.id) == agent
    faults.assert_next_task_works(workspace)


def assert_unavailable(stack: Stack, workspace: Workspace) -> None:
    """Both wires say so in time, and when to come again."""
    began = time.monotonic()
    response = workspace.rest.call("POST", f"{workspace.path}/task/cancel")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
    assert int(response.headers["retry-after"]) >= 1
    assert time.monotonic() - began < ANSWER_SECONDS
    began = time.monotonic()
    failed = stack.grpc(address=stack.worker_addresses()[0]).fails(
        "CancelTask", workspace_id=workspace.id
    )
    assert (failed.slug, failed.status) == ("unavailable", grpc.StatusCode.UNAVAILABLE)
    assert "RetryInfo" in failed.details
    assert time.monotonic() - began < ANSWER_SECONDS


@pytest.mark.parametrize("program", ["worker", "controller", "envoy"])
def test_a_program_that_is_killed(
    fragile_stack: Stack, pool: ThreadPoolExecutor, program: str
) -> None:
    """All of its kind die while a cancellation is recorded and its caller waits for the end."""
    workspace = Workspace(fragile_stack)
    gate = Gate(workspace)
    task_id = faults.submit(workspace, gate.command, "echo never")
    faults.await_phase(workspace, task_id, "tool_call")
    agent = fragile_stack.agent_pid(workspace.id)
    waiting = pool.submit(_cancel_and_wait, workspace)
    eventually(lambda: faults.intent_of(workspace, task_id) == "whole")
    killed = _pids(fragile_stack, program)
    for pid in killed:
        fragile_stack.kill(pid)
    gate.open()
    faults.await_terminal(workspace, task_id, 20)
    (*_, end) = faults.assert_story(workspace, task_id, status="cancelled", intent=True)
    assert end["iterations"] == 1
    assert waiting.result(STOP_SECONDS) == ("cancelled" if program == "controller" else "lost")
    eventually(lambda: len(set(_pids(fragile_stack, program)) - set(killed)) == len(killed))
    assert fragile_stack.agent_pid(workspace.id) == agent
    faults.assert_next_task_works(workspace)
    # A new controller watches over the agents, too.
    fragile_stack.kill(agent)
    faults.resume(workspace)


def _pids(stack: Stack, program: str) -> list[int]:
    if program == "envoy":
        return [process.pid for process in programs(stack, "envoy")]
    return stack.pids({"worker": "serve", "controller": "fleet"}[program])


def _cancel_and_wait(workspace: Workspace) -> str:
    """The task's status as the caller is told it; `lost`: the answer did not come."""
    try:
        response = workspace.rest.call(
            "POST", f"{workspace.path}/task/cancel", json={"wait": "30s"}
        )
    except httpx.TransportError:
        return "lost"
    return str(response.json()["task"]["status"]) if response.is_success else "lost"


def test_a_standby_takes_over(fragile_stack: Stack, tmp_path: Path) -> None:
    """The leader dies and is not restarted. Then an agent dies, which only a leader handles."""
    workspace = Workspace(fragile_stack)
    gate = Gate(workspace)
    task_id = faults.submit(workspace, gate.command, "echo never")
    faults.await_phase(workspace, task_id, "tool_call")
    assert faults.cancel(workspace, "rest") == "accepted"
    (leader,) = fragile_stack.pids("fleet")
    with _standby(leader, tmp_path), fragile_stack.frozen_process(fragile_stack.pid):
        fragile_stack.kill(leader)
        fragile_stack.kill(fragile_stack.agent_pid(workspace.id))
        end = faults.await_terminal(workspace, task_id, TAKEOVER_SECONDS)
        assert (end["status"], end["work_stopped"]) == ("cancelled", "unknown")
        faults.await_workspace(workspace, "failed")
        # It starts agents as well.
        faults.resume(workspace)
        faults.assert_next_task_works(workspace)
    # The pods of a controller that has ended are taken over by the next.
    agent = fragile_stack.agent_pid(workspace.id)
    eventually(lambda: fragile_stack.pids("fleet") not in ([], [leader]))
    faults.assert_next_task_works(workspace)
    assert fragile_stack.agent_pid(workspace.id) == agent


@contextmanager
def _standby(leader: int, folder: Path) -> Iterator[None]:
    """A second controller, with the settings of the first; it has found that another one leads."""
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "server", "fleet"]
        process = subprocess.Popen(
            command, cwd=ROOT, env=psutil.Process(leader).environ(), stderr=log
        )
    try:
        # It keeps a connection on which it asks for the leadership, and none but the leader has any
        # other use for a pool's.
        eventually(lambda: len(psutil.Process(process.pid).net_connections("unix")) >= 3)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_SECONDS)

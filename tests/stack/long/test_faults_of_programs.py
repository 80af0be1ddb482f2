"""Cancellations while the database, the workers, the controller or the edge fail."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress

import grpc
import httpx
import psutil
import psycopg
import pytest

from tests.stack.commit_barrier import await_waiting
from tests.support import faults
from tests.support.alive import is_alive
from tests.support.lengths import smoke
from tests.support.sandbox import has_sandbox
from tests.support.stack import STOP_SECONDS, Gate, Stack, Workspace
from tests.support.waiting import eventually

# The time limit for an answer. A worker waits for the database for at most 4.5 s; the callers would
# wait for 20 s.
ANSWER_SECONDS = 15.0
# How long a worker may take to start, or to find the database again, on a busy machine.
SERVING_SECONDS = 30.0
# The time limit for a replacement. The supervisor replaces a stopped program within 2 s.
REPLACEMENT_SECONDS = 120.0
# The time limit for a takeover. A standby controller needs seconds; the supervisor is frozen, so it
# does not start a new controller.
TAKEOVER_SECONDS = 30.0


@pytest.fixture(autouse=True)
def _all_workers_serve(fragile_stack: Stack) -> None:
    """Waits for all workers.

    The supervisor may still be replacing a program that an earlier test has killed.
    """
    faults.await_workers(fragile_stack, SERVING_SECONDS)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def programs(stack: Stack, name: str) -> list[psutil.Process]:
    """Returns the child processes of the stack that have this name."""
    return [child for child in psutil.Process(stack.pid).children() if child.name() == name]


@contextmanager
def database_killed(stack: Stack) -> Iterator[None]:
    """Kills the database, and keeps the supervisor frozen while the context is open."""
    (postgres,) = programs(stack, "postgres")
    family = [postgres, *postgres.children(recursive=True)]
    with stack.frozen_process(stack.pid):
        postgres.kill()
        # A new server cannot start until the old server's sessions have ended.
        eventually(lambda: all(not is_alive(each) for each in family))
        yield


@contextmanager
def database_frozen(stack: Stack) -> Iterator[None]:
    """Freezes the database: the kernel still accepts connections, but no process answers.

    Also freezes the supervisor, which would replace the database.
    """
    (postgres,) = programs(stack, "postgres")
    with ExitStack() as frozen:
        frozen.enter_context(stack.frozen_process(stack.pid))
        frozen.enter_context(stack.frozen_process(postgres.pid))
        for session in postgres.children(recursive=True):
            frozen.enter_context(stack.frozen_process(session.pid))
        yield


@contextmanager
def held_back(workspace: Workspace) -> Iterator[None]:
    """Locks the workspace against changes. A fault of the database may end the lock."""
    with suppress(psycopg.OperationalError), workspace.stack.database() as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT 1 FROM workspaces WHERE id = %s FOR UPDATE", (workspace.id,))
        yield


@pytest.mark.parametrize("fault", smoke([database_killed, database_frozen], [database_killed]))
def test_a_database_that_is_away(
    fragile_stack: Stack,
    pool: ThreadPoolExecutor,
    fault: Callable[[Stack], AbstractContextManager[None]],
) -> None:
    """The database fails during an iteration and a CancelTask call.

    The iteration ends before the database recovers.
    """
    workspace = Workspace(fragile_stack)
    gate = Gate(workspace)
    task_id = workspace.begin(gate.command, "echo second")
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
            # By now the edge knows that the workers are unhealthy, and answers the call itself.
            assert_unavailable(fragile_stack, workspace)
            gate.open()
    faults.await_workers(fragile_stack, SERVING_SECONDS)

    # The agent commits the pending iteration exactly once. The call may have recorded the intent
    # although it failed with `unavailable`.
    faults.await_terminal(workspace, task_id)
    intent = faults.intent_of(workspace, task_id)
    assert intent in ("whole", "absent")
    status = "cancelled" if intent == "whole" else "completed"
    story = faults.assert_story(workspace, task_id, status=status, intent=intent == "whole")
    first = next(entry for entry in story if entry["type"] == "iteration_completed")
    assert first["tool_call"]["result"]["output"] == "open\n"
    assert fragile_stack.agent_pid(workspace.id) == agent
    faults.assert_next_task_works(workspace, after_outage=True)


def assert_unavailable(stack: Stack, workspace: Workspace) -> None:
    """Checks that calls over REST and gRPC fail with `unavailable` in time.

    The answer has a retry delay only if the call names its task.
    """
    for path, is_named in (("/task/cancel", False), ("/tasks/task_1/cancel", True)):
        began = time.monotonic()
        response = workspace.rest.call("POST", workspace.path + path)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
        assert response.headers.get("retry-after") == ("1" if is_named else None)
        assert response.headers.get("x-should-retry") == (None if is_named else "false")
        assert time.monotonic() - began < ANSWER_SECONDS
    began = time.monotonic()
    failed = stack.grpc(address=stack.worker_addresses()[0]).fails(
        "CancelTask", workspace_id=workspace.id
    )
    assert (failed.slug, failed.status) == ("unavailable", grpc.StatusCode.UNAVAILABLE)
    assert "RetryInfo" not in failed.details
    assert time.monotonic() - began < ANSWER_SECONDS


@pytest.mark.parametrize("program", ["worker", "controller", "envoy"])
def test_a_program_that_is_killed(
    fragile_stack: Stack, pool: ThreadPoolExecutor, program: str
) -> None:
    """The programs of one kind all die after the intent is recorded, while the caller waits."""
    workspace = Workspace(fragile_stack)
    gate = Gate(workspace)
    task_id = faults.submit(workspace, gate.command, "echo never", after_outage=True)
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
    faults.assert_next_task_works(workspace, after_outage=True)
    # The new controller also monitors the agents.
    fragile_stack.kill(agent)
    faults.resume(workspace, after_outage=True)


def _pids(stack: Stack, program: str) -> list[int]:
    if program == "envoy":
        return [process.pid for process in programs(stack, "envoy")]
    return stack.pids({"worker": "serve", "controller": "fleet"}[program])


def _cancel_and_wait(workspace: Workspace) -> str:
    """Cancels the task and waits for its end.

    Returns the status of the task in the response, or `lost` if the call failed.
    """
    try:
        response = workspace.rest.call(
            "POST", f"{workspace.path}/task/cancel", json={"wait": "30s"}
        )
    except httpx.TransportError:
        return "lost"
    return str(response.json()["task"]["status"]) if response.is_success else "lost"


def test_programs_that_are_frozen_are_replaced(fragile_stack: Stack) -> None:
    """All workers, both controllers, Envoy and the database freeze at once."""
    workspace = Workspace(fragile_stack)
    gate = Gate(workspace)
    task_id = faults.submit(workspace, gate.command, "echo never", after_outage=True)
    faults.await_phase(workspace, task_id, "tool_call")
    assert faults.cancel(workspace, "rest") == "accepted"
    (postgres,) = programs(fragile_stack, "postgres")
    pids = [pid for name in ("worker", "controller", "envoy") for pid in _pids(fragile_stack, name)]
    frozen = [postgres, *postgres.children(recursive=True), *map(psutil.Process, pids)]
    for process in frozen:
        process.suspend()
    eventually(lambda: not any(each.is_running() for each in frozen), REPLACEMENT_SECONDS)
    eventually(lambda: workspace.rest.serves(workspace.path), REPLACEMENT_SECONDS)
    gate.open()
    faults.await_terminal(workspace, task_id)
    faults.assert_story(workspace, task_id, status="cancelled", intent=True)
    faults.assert_next_task_works(workspace, after_outage=True)


def test_a_standby_takes_over(fragile_stack: Stack) -> None:
    """The leader dies and is not restarted. Then an agent dies, which only a leader can handle."""
    workspace = Workspace(fragile_stack)
    gate = Gate(workspace)
    task_id = faults.submit(workspace, gate.command, "echo never", after_outage=True)
    faults.await_phase(workspace, task_id, "tool_call")
    assert faults.cancel(workspace, "rest") == "accepted"
    eventually(lambda: len(fragile_stack.pids("fleet")) == 2)
    leader = fragile_stack.leader_pid()
    with fragile_stack.frozen_process(fragile_stack.pid):
        fragile_stack.kill(leader)
        fragile_stack.kill(fragile_stack.agent_pid(workspace.id))
        end = faults.await_terminal(workspace, task_id, TAKEOVER_SECONDS)
        # In a sandbox, the kernel ends the tools together with the agent.
        stopped = "yes" if has_sandbox() else "unknown"
        assert (end["status"], end["work_stopped"]) == ("cancelled", stopped)
        faults.await_workspace(workspace, "failed")
        # The standby also starts agents.
        faults.resume(workspace, after_outage=True)
        faults.assert_next_task_works(workspace, after_outage=True)
    # A controller takes over the pods of a controller that has ended.
    agent = fragile_stack.agent_pid(workspace.id)
    fragile_stack.replace_controllers()
    faults.assert_next_task_works(workspace, after_outage=True)
    assert fragile_stack.agent_pid(workspace.id) == agent

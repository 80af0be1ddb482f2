"""A whole stack that uses PgBouncer in transaction mode."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from evershell.client import Client, TaskCompleted
from tests.conftest import drop_database, new_database
from tests.support import faults
from tests.support.pgbouncer import PgBouncer, needs_pgbouncer
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually

pytestmark = needs_pgbouncer

# Less than 5 s, because a subscriber that gets no notification reads the database after 5 s.
NOTIFIED_SECONDS = 3.0


@pytest.fixture(scope="module")
def pgbouncer(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PgBouncer]:
    url = new_database(server_url)
    running = PgBouncer(url, tmp_path_factory.mktemp("pgbouncer"))
    running.start()
    yield running
    running.stop()
    drop_database(server_url, url)


@pytest.fixture(scope="module")
def pooled_stack(pgbouncer: PgBouncer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(
        tmp_path_factory.mktemp("pooled") / "state",
        DATABASE_URL=pgbouncer.url,
        DATABASE_SESSION_URL=pgbouncer.session_url,
    ).started() as running:
        yield running


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


def test_both_workers_learn_of_the_end_at_once(
    pooled_stack: Stack, threads: ThreadPoolExecutor
) -> None:
    workspace = Workspace(pooled_stack)
    gate = Gate(workspace)
    task_id = workspace.begin(gate.command, "echo never")

    def watch(address: str) -> list[int]:
        with Client(address, pooled_stack.tokens["full_access"]) as client:
            seqs = []
            for event in client.watch(workspace.id, timeout=20):
                seqs.append(event.seq)
                if isinstance(event.payload, TaskCompleted):
                    break
            return seqs

    addresses = pooled_stack.worker_addresses()
    watching = [threads.submit(watch, address) for address in addresses]
    audit = f"{workspace.path}/audit"
    waiting = [
        threads.submit(
            pooled_stack.grpc(address=address).call,
            "CancelTask",
            workspace_id=workspace.id,
            wait={"seconds": 20},
        )
        for address in addresses
    ]
    # Both calls are recorded, the second as `already_requested`.
    eventually(lambda: len(workspace.rest.get(audit, params={"rpc": "CancelTask"})["entries"]) == 2)
    gate.open()
    faults.await_terminal(workspace, task_id)
    answers = [each.result(NOTIFIED_SECONDS) for each in waiting]
    assert sorted(each["outcome"] for each in answers) == ["accepted", "already_requested"]
    assert {each["task"]["status"] for each in answers} == {"cancelled"}
    (first, second) = (each.result(NOTIFIED_SECONDS) for each in watching)
    assert first == second == list(range(1, first[-1] + 1))
    faults.assert_story(workspace, task_id, status="cancelled", intent=True)
    faults.assert_next_task_works(workspace, after_outage=True)


def test_a_restart_of_the_pooler_loses_nothing(pooled_stack: Stack, pgbouncer: PgBouncer) -> None:
    workspace = Workspace(pooled_stack)
    gate = Gate(workspace)
    task_id = workspace.begin(gate.command, "echo never")
    agent = pooled_stack.agent_pid(workspace.id)
    pgbouncer.stop()
    assert faults.cancel(workspace, "rest") == "unavailable"
    assert faults.cancel(workspace, "grpc") == "unavailable"
    await_health(pooled_stack, "NOT_SERVING")
    pgbouncer.start()
    await_health(pooled_stack, "SERVING")
    eventually(lambda: faults.cancel(workspace, "rest") != "unavailable")
    assert faults.intent_of(workspace, task_id) == "whole"
    gate.open()
    faults.await_terminal(workspace, task_id)
    faults.assert_story(workspace, task_id, status="cancelled", intent=True)
    assert pooled_stack.agent_pid(workspace.id) == agent
    # The controller works again, too: it notices that the agent has ended.
    pooled_stack.kill(agent)
    faults.resume(workspace, after_outage=True)
    faults.assert_next_task_works(workspace, after_outage=True)


def await_health(stack: Stack, status: str) -> None:
    for address in stack.worker_addresses():
        eventually(lambda: faults.health_of(address) == status)

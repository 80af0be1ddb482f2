"""Restores a backup of a running stack while agents that started after the backup still run."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from tests.conftest import drop_database, new_database
from tests.deploy.long.operating import backups
from tests.stack.long.canceller import SHORT, Canceller
from tests.stack.long.load import Load, RestCaller
from tests.support.alive import is_alive
from tests.support.faults import assert_next_task_works, await_workspace
from tests.support.programs import run
from tests.support.promises import read_history, violations
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually

# The test mostly waits for programs, which take longer on a busy machine.
pytestmark = pytest.mark.timeout(240)

# Longer than the stack is down, so that no agent ends because its lease is over.
LEASE_SECONDS = 60.0
# How long agents that must end may take to do so, after the restored stack has started.
FENCED_SECONDS = 60.0
# How long programs and agents may take on a busy machine.
BUSY_SECONDS = 60.0

_OPEN = """
    SELECT id, cancel_requested_at IS NOT NULL FROM tasks WHERE completed_at IS NULL
"""
_ENDS = "SELECT id, status FROM tasks WHERE id = ANY(%s)"
_CANCELLED = "SELECT id FROM tasks WHERE cancel_requested_at IS NOT NULL"
_STATES = "SELECT id, status FROM workspaces"
# Makes a task, and all events of its workspace, older than TASK_RETENTION_DAYS.
_AGE = """
    WITH aged AS (
        UPDATE tasks SET created_at = created_at - interval '2 days',
            completed_at = completed_at - interval '2 days'
        WHERE id = %(task_id)s
    )
    UPDATE events SET time = time - interval '2 days' WHERE workspace_id = %(id)s
"""
_REGISTERED = """
    SELECT workspace_id, (payload ->> 'epoch')::bigint FROM events
    WHERE type IN ('workspace_provisioned', 'workspace_resumed')
"""


def read(database_url: str, query: str, *parameters: Any) -> list[Any]:
    with psycopg.connect(database_url) as connection:
        return connection.execute(query.encode(), parameters).fetchall()


class Pods:
    """The agents that a test has seen running."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._seen: list[psutil.Process] = []

    def note(self, workspace: Workspace) -> psutil.Process:
        agent = psutil.Process(self._stack.agent_pid(workspace.id))
        self._seen.append(agent)
        return agent

    def running(self) -> list[psutil.Process]:
        return list(filter(is_alive, self._seen))


@pytest.fixture
def living(server_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A stack with its own database. A test may give it settings."""
    database_url = new_database(server_url)
    stack = Stack(
        tmp_path / "state",
        DATABASE_URL=database_url,
        LEASE_SECONDS=str(int(LEASE_SECONDS)),
        **getattr(request, "param", {}),
    )
    try:
        with stack.started():
            yield stack
    finally:
        drop_database(server_url, database_url)


@pytest.fixture
def fresh_url(server_url: str) -> Iterator[str]:
    url = new_database(server_url)
    yield url
    drop_database(server_url, url)


def test_agents_and_cancellations_after_a_restore(
    living: Stack, fresh_url: str, tmp_path: Path
) -> None:
    pods, load, backup = Pods(living), Load(pause_seconds=0.05), tmp_path / "backup"
    cancellers = [
        Canceller(load, f"canceller {number}", RestCaller(living), Workspace(living), SHORT)
        for number in range(2)
    ]
    cancelled, running, resumed = (Workspace(living) for _ in range(3))
    gates = {each: Gate(each) for each in (cancelled, running, resumed)}
    in_backup = cancelled.submit(gates[cancelled].command, "echo never")
    lost = running.submit(gates[running].command, "echo never")
    for workspace, task_id in ((cancelled, in_backup), (running, lost)):
        workspace.await_phase(task_id, "tool_call")
    assert cancelled.cancel(reason="before the backup")["outcome"] == "accepted"

    eventually(lambda: all(each.ended > 1 for each in cancellers), BUSY_SECONDS)
    before = [each.ended for each in cancellers]
    backups.dump(living.ready["database_url"], backup)
    eventually(
        lambda: all(each.ended > ended for each, ended in zip(cancellers, before, strict=True)),
        BUSY_SECONDS,
    )
    load.stop()
    assert load.outcomes.failures == []

    # What happens after the backup: an accepted cancellation, an agent of a later epoch, and a
    # workspace that the backup does not know. One agent is frozen, so it cannot end itself.
    assert running.cancel(reason="after the backup")["outcome"] == "accepted"
    resumed.replace_agent()
    assert resumed.get()["epoch"] == "2"
    unknown = Workspace(living)
    everything = [cancelled, running, resumed, unknown, *(each.workspace for each in cancellers)]
    agents = {workspace.id: pods.note(workspace) for workspace in everything}
    resumed.begin(gates[resumed].command, "echo never")
    agents[resumed.id].suspend()

    lost_url = living.ready["database_url"]
    living.lose()
    assert len(pods.running()) == len(everything)
    backups.restore(backup, fresh_url)
    still_open = dict(read(fresh_url, _OPEN))
    assert (still_open[in_backup], still_open[lost]) == (True, False)
    promised = [(task_id, "recorded in the backup") for (task_id,) in read(fresh_url, _CANCELLED)]
    in_the_backup = set(read(fresh_url, _REGISTERED))
    handed_out = set(read(lost_url, _REGISTERED))
    assert (resumed.id, 2) in handed_out - in_the_backup

    done = run("fence", living.state_dir, DATABASE_URL=fresh_url)
    assert done.returncode == 0, done.stderr
    living.set(DATABASE_URL=fresh_url)
    living.start()

    eventually(lambda: not pods.running(), FENCED_SECONDS)
    known = [each for each in everything if each is not unknown]
    for workspace in known:
        await_workspace(workspace, "idle", BUSY_SECONDS)
        assert_next_task_works(workspace, after_outage=True)
    assert dict(read(fresh_url, _ENDS, [*still_open])) == {
        id_: "cancelled" if is_cancelled else "failed" for id_, is_cancelled in still_open.items()
    }
    registered = set(read(fresh_url, _REGISTERED)) - in_the_backup
    assert {workspace_id for workspace_id, _ in registered} >= {each.id for each in known}
    assert not registered & handed_out, "two agents have had the same epoch"
    with psycopg.connect(fresh_url) as connection:
        assert violations(read_history(connection, promised=promised)) == []
    assert living.rest().call("GET", unknown.path).status_code == 404


@pytest.mark.parametrize(
    "living", [{"IDLE_SUSPEND_MINUTES": "0.05", "TASK_RETENTION_DAYS": "1"}], indirect=True
)
def test_what_was_deleted_suspended_or_old_at_the_backup(
    living: Stack, fresh_url: str, tmp_path: Path
) -> None:
    pods, backup = Pods(living), tmp_path / "backup"
    suspended, stopped, busy, deleting = (Workspace(living) for _ in range(4))
    old = suspended.submit("echo kept > note")
    suspended.await_end(old)
    last_seq = suspended.log()[-1]["seq"]
    with living.database() as connection:
        connection.execute(_AGE, {"task_id": old, "id": suspended.id})
    suspended.await_status("suspended")
    stopped.rest.post(f"{stopped.path}/stop")
    stopped.await_status("stopped")
    gates = {each: Gate(each) for each in (busy, deleting)}
    for workspace, gate in gates.items():
        workspace.begin(gate.command)

    # The deletion waits up to 10 s for the task of `deleting`, which runs until its gate is opened.
    delete(deleting)
    backups.dump(living.ready["database_url"], backup)
    # The workspace is suspended in the backup. Its new agent is frozen, so it cannot end itself.
    suspended.begin("sleep 300")
    pods.note(suspended).suspend()
    delete(busy)
    delete(stopped)
    for gate in gates.values():
        gate.open()
    for workspace in (busy, stopped, deleting):
        await_removal(workspace)
    living.lose()
    assert pods.running()
    backups.restore(backup, fresh_url)
    at_backup = dict(read(fresh_url, _STATES))
    states = [at_backup[each.id] for each in (suspended, stopped, busy, deleting)]
    assert states == ["suspended", "stopped", "busy", "deleting"]
    assert read(fresh_url, _ENDS, [old]) == [(old, "completed")]
    done = run("fence", living.state_dir, DATABASE_URL=fresh_url)
    assert done.returncode == 0, done.stderr
    living.set(DATABASE_URL=fresh_url, IDLE_SUSPEND_MINUTES="0")
    living.start()

    await_removal(deleting)
    eventually(
        lambda: suspended.rest.call("GET", f"{suspended.path}/tasks/{old}").status_code == 404,
        BUSY_SECONDS,
    )
    woken = suspended.submit("grep kept note")
    assert suspended.await_end(woken)["status"] == "completed"
    assert not pods.running()
    first = suspended.log()[0]
    assert (first["seq"], first["task_id"]) == (last_seq + 1, woken)
    assert stopped.rest.post(f"{stopped.path}/resume", {})["status"] == "provisioning"
    for workspace in (busy, stopped):
        await_workspace(workspace, "idle", BUSY_SECONDS)
        assert list(living.files(workspace.id).iterdir()) == []
        assert_next_task_works(workspace, after_outage=True)
        delete(workspace)
        await_removal(workspace)
    with psycopg.connect(fresh_url) as connection:
        assert violations(read_history(connection, removes_old=True)) == []


def delete(workspace: Workspace) -> None:
    answer = workspace.rest.call("DELETE", workspace.path)
    assert (answer.status_code, answer.json()["status"]) == (202, "deleting")


def await_removal(workspace: Workspace) -> None:
    eventually(lambda: workspace.rest.call("GET", workspace.path).status_code == 404, BUSY_SECONDS)

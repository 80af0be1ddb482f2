"""A worker cannot open any more files while CancelTasks is called."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.other_org import begin
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

pytestmark = pytest.mark.soak
PATH, BODY = "/v1/tasks/cancel", {"all": True, "reason": "a batch"}


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack with one worker."""
    with Stack(tmp_path / "state", WORKERS="1").started() as running:
        yield running


@contextmanager
def no_new_files(pid: int) -> Iterator[None]:
    """Inside the block, the process cannot open a file, even if it closes another one."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def end_connections(stack: Stack) -> None:
    """Ends all connections to the database, so that the worker must open new ones."""
    with stack.database() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )


def recorded(stack: Stack) -> int:
    """Returns the number of recorded cancellations."""
    with stack.database() as connection:
        row = connection.execute(
            "SELECT count(*) FROM tasks WHERE cancel_requested_at IS NOT NULL"
        ).fetchone()
    assert row is not None
    return int(row[0])


def test_a_batch_without_open_files_changes_nothing_and_works_later(stack: Stack) -> None:
    made = [Workspace(stack) for _ in range(3)]
    begun = begin(made)
    owner = stack.rest("owner")
    # Makes the worker read the file with the keys of session tokens while it can still open files.
    assert owner.get("/v1/hold")["on_hold"] is False
    (worker,) = stack.pids("serve")
    with no_new_files(worker):
        # A call that needs no new file still works.
        assert owner.post(PATH, BODY | {"dry_run": True})["matched"] == 3
        end_connections(stack)
        for _ in range(3):
            failed = owner.fails("POST", PATH, json=BODY)
            assert (failed.status, failed.slug) == (503, "unavailable")
        assert recorded(stack) == 0
    eventually(lambda: owner.call("POST", PATH, json=BODY).status_code < 300)
    assert recorded(stack) == 3
    for workspace, (gate, task_id) in zip(made, begun, strict=True):
        gate.open()
        end = workspace.await_end(task_id)
        assert (end["status"], end["iterations"]) == ("cancelled", 1)
        assert end["cancel"]["reason"] == BODY["reason"]
    made[0].await_end(made[0].submit("true"))
    assert stack.pids("serve") == [worker]

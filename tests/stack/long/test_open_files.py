"""A worker that can open no more files, while CancelTasks and HoldOrg are called."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.other_org import begin
from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

BATCH: tuple[str, dict[str, Any]] = ("/v1/tasks/cancel", {"all": True, "reason": "a batch"})
HOLD: tuple[str, dict[str, Any]] = ("/v1/hold", {"cancel_running": True, "reason": "a hold"})


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack with one worker."""
    with Stack(tmp_path / "state", WORKERS="1").started() as running:
        yield running


@contextmanager
def no_new_files(pid: int) -> Iterator[None]:
    """Lets the process open no file, not even in the place of one that it closes."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def end_connections(stack: Stack) -> None:
    """Ends all connections to the database, so that the worker has to open others."""
    with stack.database() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )


def recorded(stack: Stack) -> tuple[int, int, int]:
    """The numbers of holds, of cancellations, and of their events."""
    with stack.database() as connection:
        row = connection.execute(
            "SELECT (SELECT count(*) FROM org_holds), "
            "(SELECT count(*) FROM tasks WHERE cancel_requested_at IS NOT NULL), "
            "(SELECT count(*) FROM events WHERE type = 'task_cancel_requested')"
        ).fetchone()
    assert row is not None
    return row[0], row[1], row[2]


@pytest.mark.parametrize(
    "emergency",
    [
        pytest.param(BATCH, id="CancelTasks"),
        pytest.param(HOLD, id="HoldOrg", marks=pytest.mark.soak),
    ],
)
def test_an_emergency_without_open_files_changes_nothing_and_works_later(
    stack: Stack, emergency: tuple[str, dict[str, Any]]
) -> None:
    made = [Workspace(stack) for _ in range(3)]
    begun = begin(made)
    owner = stack.rest("owner")
    # The worker reads the file with the keys of session tokens.
    assert owner.get("/v1/hold")["on_hold"] is False
    path, body = emergency
    (worker,) = stack.pids("serve")
    with no_new_files(worker):
        # What needs no new file works.
        assert owner.post(BATCH[0], BATCH[1] | {"dry_run": True})["matched"] == 3
        end_connections(stack)
        for _ in range(3):
            failed = owner.fails("POST", path, json=body)
            assert (failed.status, failed.slug) == (503, "unavailable")
        assert recorded(stack) == (0, 0, 0)
    eventually(lambda: owner.call("POST", path, json=body).status_code < 300)
    assert recorded(stack) == (int(emergency is HOLD), 3, 3)
    for workspace, (gate, task_id) in zip(made, begun, strict=True):
        gate.open()
        end = workspace.await_end(task_id)
        assert (end["status"], end["iterations"]) == ("cancelled", 1)
        assert end["cancel"]["reason"] == body["reason"]
    if emergency is HOLD:
        assert made[0].rest.fails("POST", f"{made[0].path}/resume").slug == "org_on_hold"
        owner.post("/v1/hold/release", status=200)
    made[0].await_end(made[0].submit("true"))
    assert stack.pids("serve") == [worker]

"""Wrong clocks of a worker, a controller, an agent and the database.

Each clock is set wrong by an hour while the programs run. Several clocks are wrong at once, some
ahead and some behind.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from evershell.stack import postgres
from tests.stack.long.clocks import Clocks
from tests.support import faults
from tests.support.alive import is_alive
from tests.support.lengths import smoke
from tests.support.metrics import scrape
from tests.support.ports import free_ports
from tests.support.receivers import receiving
from tests.support.replication import Server
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually

HOUR = 3_600
# A program notices a step of its clock within two seconds, or later on a busy machine.
NOTICE_SECONDS = 60.0
FORCE_SECONDS = 3
# The time limit for the end of a task. If a program trusted a clock that is an hour off, the task
# would end an hour late.
END_SECONDS = 120.0
NO_LABELS = frozenset[tuple[str, str]]()
OFFSET = ("evershell_clock_offset_seconds", NO_LABELS)
CORRECTION = ("evershell_clock_correction_seconds", NO_LABELS)
# The index of each program's metrics port.
INDEXES = {"serve": 0, "fleet": 1}


class Timed:
    """Tasks whose ends must not depend on any wall clock."""

    def __init__(self, stack: Stack) -> None:
        """Starts the tasks. Cancels one with force, and one without force, which continues."""
        with ThreadPoolExecutor() as pool:
            made = pool.map(lambda _: Workspace(stack), range(4))
        self.patient, self.forced, self.limited, self._frozen = made
        self.agents = [stack.agent_pid(each.id) for each in (self.patient, self.forced)]
        self._gate = Gate(self.patient)
        self.patient_task = self.patient.submit(self._gate.command, "echo never")
        self.forced_task = self.forced.submit("sleep 86400")
        self.limited_task = self.limited.submit("sleep 86400", limits={"max_duration": "1800s"})
        self._frozen_task = self._frozen.submit("sleep 86400")
        for workspace, task_id in (
            (self.patient, self.patient_task),
            (self.forced, self.forced_task),
            (self.limited, self.limited_task),
            (self._frozen, self._frozen_task),
        ):
            workspace.await_phase(task_id, "tool_call")
        self.patient.cancel()
        self._began = time.monotonic()
        self.forced.cancel(force_after=f"{FORCE_SECONDS}s")

    def check(self, stack: Stack) -> None:
        """Checks that each task ends when it must, and not earlier."""
        eventually(lambda: self.forced.task(self.forced_task).get("completed_at"), END_SECONDS)
        assert time.monotonic() - self._began >= FORCE_SECONDS
        end = self.forced.await_end(self.forced_task)
        assert (end["status"], end["forced"]) == ("cancelled", True)
        # The controller ends a pod 2 s after the force deadline. By then, it has looked at the
        # other tasks too.
        self._assert_controller_forces(stack)
        assert self.patient.task(self.patient_task)["status"] == "running"
        assert "cancel_requested_at" not in self.limited.task(self.limited_task)
        self._gate.open()
        faults.await_terminal(self.patient, self.patient_task)
        faults.assert_story(self.patient, self.patient_task, status="cancelled", intent=True)
        assert self.agents == [stack.agent_pid(each.id) for each in (self.patient, self.forced)]
        self.limited.cancel(force_after="0s")
        self.limited.await_end(self.limited_task)

    def _assert_controller_forces(self, stack: Stack) -> None:
        frozen, task_id = self._frozen, self._frozen_task
        os.kill(stack.agent_pid(frozen.id), signal.SIGSTOP)
        began = time.monotonic()
        frozen.cancel(status=503, force_after=f"{FORCE_SECONDS}s")
        eventually(lambda: frozen.task(task_id).get("completed_at"), END_SECONDS)
        assert time.monotonic() - began >= FORCE_SECONDS
        end = frozen.await_end(task_id)
        assert (end["status"], end["forced"]) == ("cancelled", True)


@pytest.fixture(scope="module")
def clocks(tmp_path_factory: pytest.TempPathFactory) -> Clocks:
    return Clocks(tmp_path_factory.mktemp("clocks") / "clocks")


@pytest.fixture(scope="module")
def stack(clocks: Clocks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("timed")
    clocks.set("database", 0)
    database = Server(folder / "data", clocks.of("database"))
    postgres.initialise(database.places.data_dir)
    database.start()
    try:
        with timed_stack(folder, clocks, database.url, WORKERS="1") as running:
            yield running
    finally:
        database.stop()


def timed_stack(
    folder: Path, clocks: Clocks, database_url: str, **settings: str
) -> AbstractContextManager[Stack]:
    """A stack whose programs follow the clocks that a test sets."""
    (port, *_) = free_ports(4, in_a_row=4)
    return Stack(
        folder / "state",
        DATABASE_URL=database_url,
        METRICS_ADDRESS=f"127.0.0.1:{port}",
        **settings,
        **clocks.environment,
    ).started()


def test_the_clock_of_a_program_decides_nothing(stack: Stack, clocks: Clocks) -> None:
    """The agent's clock is ahead when the agent starts, and is then set behind."""
    offsets = {"serve": HOUR, "fleet": -HOUR, "agent": -HOUR}
    clocks.set("agent", HOUR)
    timed = Timed(stack)
    for program, offset in offsets.items():
        clocks.set(program, offset)
    for program, index in INDEXES.items():
        _await_offset(stack, index, offsets[program])
    timed.check(stack)
    for program in offsets:
        clocks.set(program, 0)
    for index in INDEXES.values():
        _await_offset(stack, index, 0)


@pytest.mark.soak
def test_deadlines_keep_their_distance_if_the_clock_of_the_database_is_set(
    stack: Stack, clocks: Clocks
) -> None:
    """The database's clock is set an hour ahead, and later back again."""
    timed = Timed(stack)
    clocks.set("database", HOUR)
    _await_correction(stack, -HOUR)
    timed.check(stack)
    # Programs that start later must use the same time.
    for program in INDEXES:
        _restart(stack, program)
    _await_correction(stack, -HOUR)
    timed = Timed(stack)
    clocks.set("database", 0)
    _await_correction(stack, 0)
    timed.check(stack)


@pytest.mark.parametrize("seconds", smoke([-HOUR, HOUR], [-HOUR]))
def test_a_step_of_the_database_while_the_controllers_restart(
    stack: Stack, clocks: Clocks, seconds: int
) -> None:
    """No controller knows the time before the step, and the new controller's own clock is wrong."""
    with receiving() as receiver, _session_used(stack) as statuses:
        webhook = {"url": receiver.url, "event_types": ["task_completed"]}
        created = stack.rest().call("POST", "/v1/webhooks", json=webhook).json()["webhook"]["id"]
        timed = Timed(stack)
        clocks.set("fleet", -seconds)
        _step_between_controllers(stack, clocks, seconds)
        _await_correction(stack, -seconds)
        _assert_is_right(stack)
        timed.check(stack)
        eventually(lambda: receiver.events(timed.forced_task), NOTICE_SECONDS)
        _assert_deletes(stack)
        _step_between_controllers(stack, clocks, 0)
        clocks.set("fleet", 0)
        _await_correction(stack, 0)
        _assert_is_right(stack)
        stack.rest().call("DELETE", f"/v1/webhooks/{created}")
    # On a very busy machine, the edge's health checks of its only worker time out: calls get 503.
    assert set(statuses) - {503} == {200}
    assert stack.rest("expired").call("GET", "/v1/workspaces").status_code == 401


def _step_between_controllers(stack: Stack, clocks: Clocks, ahead_seconds: int) -> None:
    """Sets the clock of the database after all controllers have ended, before others start."""
    killed = stack.pids("fleet")
    with stack.frozen_process(stack.pid):
        for pid in killed:
            stack.kill(pid)
        eventually(lambda: not any(map(is_alive, killed)))
        clocks.set("database", ahead_seconds)
    eventually(lambda: set(stack.pids("fleet")) - set(killed), NOTICE_SECONDS)


@contextmanager
def _session_used(stack: Stack) -> Iterator[list[int]]:
    """Makes calls with a session token during the block. Yields their HTTP statuses."""
    statuses, ended = list[int](), threading.Event()

    def use() -> None:
        while not ended.wait(0.1):
            statuses.append(stack.rest("owner").call("GET", "/v1/workspaces").status_code)

    with ThreadPoolExecutor(1) as pool:
        using = pool.submit(use)
        try:
            yield statuses
        finally:
            ended.set()
            using.result()


def _assert_is_right(stack: Stack) -> None:
    """Checks that the service's time agrees with the clock of this test, which is right."""
    created_at = datetime.fromisoformat(Workspace(stack).get()["created_at"])
    assert abs(created_at.timestamp() - time.time()) < HOUR / 10


def _assert_deletes(stack: Stack) -> None:
    workspace = Workspace(stack)
    workspace.rest.call("DELETE", workspace.path)
    eventually(lambda: workspace.rest.call("GET", workspace.path).status_code == 404, END_SECONDS)


def _restart(stack: Stack, program: str) -> None:
    killed = set(stack.pids(program))
    for pid in killed:
        stack.kill(pid)
    eventually(lambda: len(set(stack.pids(program)) - killed) == len(killed), NOTICE_SECONDS)
    eventually(lambda: _serves(stack), NOTICE_SECONDS)


def _serves(stack: Stack) -> bool:
    return stack.rest().serves("/v1/workspaces")


def _await_offset(stack: Stack, index: int, seconds: int) -> None:
    _await_sample(stack, index, OFFSET, seconds)


def _await_correction(stack: Stack, seconds: int) -> None:
    for index in INDEXES.values():
        _await_sample(stack, index, CORRECTION, seconds)


def _await_sample(
    stack: Stack, index: int, name: tuple[str, frozenset[tuple[str, str]]], seconds: int
) -> None:
    """Waits until the sample has about this value in seconds."""

    def is_seen() -> bool:
        # A program that is starting does not answer yet.
        with suppress(httpx.TransportError):
            return abs(scrape(stack, index).get(name, 0.0) - seconds) < HOUR / 10
        return False

    eventually(is_seen, NOTICE_SECONDS)

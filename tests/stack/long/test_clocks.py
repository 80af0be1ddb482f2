"""Wrong clocks: of a worker, a controller, an agent, the database, and of its new host.

Each is an hour off, either way. Clocks are set while the programs run, and before they start.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from evershell.local import postgres
from tests.support import faults
from tests.support.clocks import Clocks
from tests.support.metrics import scrape
from tests.support.ports import free_ports
from tests.support.replication import Replication, Server
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually

HOUR = 3_600
# A clock that was set is noticed within two seconds. A busy machine takes longer.
NOTICE_SECONDS = 60.0
FORCE_SECONDS = 3
# With a clock that is an hour off, it would take an hour.
END_SECONDS = 120.0
NO_LABELS = frozenset[tuple[str, str]]()
OFFSET = ("evershell_clock_offset_seconds", NO_LABELS)
CORRECTION = ("evershell_clock_correction_seconds", NO_LABELS)
WORKER, FLEET = 0, 1


class Timed:
    """Tasks whose ends do not depend on any wall clock."""

    def __init__(self, stack: Stack) -> None:
        """Cancels one task without force, which goes on, and one with force."""
        self.patient, self.forced = Workspace(stack), Workspace(stack)
        self.agents = [stack.agent_pid(each.id) for each in (self.patient, self.forced)]
        self._gate = Gate(self.patient)
        self.patient_task = self.patient.submit(self._gate.command, "echo never")
        self.forced_task = self.forced.submit("sleep 86400")
        self.limited = Workspace(stack)
        self.limited_task = self.limited.submit("sleep 86400", limits={"max_duration": "1800s"})
        for workspace, task_id in (
            (self.patient, self.patient_task),
            (self.forced, self.forced_task),
            (self.limited, self.limited_task),
        ):
            workspace.await_phase(task_id, "tool_call")
        self.patient.cancel()
        self._began = time.monotonic()
        self.forced.cancel(force_after=f"{FORCE_SECONDS}s")

    def check(self, stack: Stack) -> None:
        """Fails unless everything ends when it has to, and nothing before."""
        eventually(lambda: self.forced.task(self.forced_task).get("completed_at"), END_SECONDS)
        assert time.monotonic() - self._began >= FORCE_SECONDS
        end = self.forced.await_end(self.forced_task)
        assert (end["status"], end["forced"]) == ("cancelled", True)
        # The controller ends a pod 2 s after the deadline. It has looked at the others by then.
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
        frozen = Workspace(stack)
        task_id = frozen.submit("sleep 86400")
        frozen.await_phase(task_id, "tool_call")
        os.kill(stack.agent_pid(frozen.id), signal.SIGSTOP)
        began = time.monotonic()
        frozen.cancel(status=503, force_after=f"{FORCE_SECONDS}s")
        eventually(lambda: frozen.task(task_id).get("completed_at"), END_SECONDS)
        assert time.monotonic() - began >= FORCE_SECONDS
        end = frozen.await_end(task_id)
        assert (end["status"], end["forced"]) == ("cancelled", True)


@pytest.fixture
def clocks(tmp_path: Path) -> Clocks:
    return Clocks(tmp_path / "clocks")


@pytest.fixture
def stack(clocks: Clocks, tmp_path: Path) -> Iterator[Stack]:
    clocks.set("database", 0)
    database = Server(tmp_path / "data", clocks.of("database"))
    postgres.initialise(database.places.data_dir)
    database.start()
    (port, *_) = free_ports(4, in_a_row=4)
    running = Stack(
        tmp_path / "state",
        DATABASE_URL=database.url,
        WORKERS="1",
        METRICS_PORT=str(port),
        **clocks.environment,
    )
    try:
        running.start()
        yield running
        assert running.stop() == 0
    finally:
        running.kill_if_running()
        database.stop()


def test_the_clock_of_a_program_decides_nothing(stack: Stack, clocks: Clocks) -> None:
    for program, index in (("serve", WORKER), ("fleet", FLEET)):
        for seconds in (HOUR, -HOUR):
            timed = Timed(stack)
            clocks.set(program, seconds)
            _await_offset(stack, index, seconds)
            timed.check(stack)
            _restart(stack, program)
            _await_offset(stack, index, seconds)
            Timed(stack).check(stack)
        clocks.set(program, 0)
        _await_offset(stack, index, 0)

    def logged() -> str:
        return "".join(path.read_text() for path in (stack.state_dir / "logs").glob("*.log"))

    eventually(lambda: logged().count('"machine_clock_off"') >= 4)


def test_the_clock_of_an_agent_decides_nothing(stack: Stack, clocks: Clocks) -> None:
    for seconds in (HOUR, -HOUR):
        clocks.set("agent", seconds)
        timed = Timed(stack)
        clocks.set("agent", -seconds)
        timed.check(stack)


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_deadlines_keep_their_distance_if_the_clock_of_the_database_is_set(
    stack: Stack, clocks: Clocks, seconds: int
) -> None:
    timed = Timed(stack)
    clocks.set("database", seconds)
    _await_correction(stack, -seconds)
    timed.check(stack)
    # Programs that start later know the same time.
    for program in ("serve", "fleet"):
        _restart(stack, program)
    _await_correction(stack, -seconds)
    Timed(stack).check(stack)


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_deadlines_keep_their_distance_at_a_fail_over_to_a_host_with_another_clock(
    clocks: Clocks, tmp_path: Path, seconds: int
) -> None:
    clocks.set("standby", seconds)
    replication = Replication(tmp_path, clocks.of("standby"))
    (port, *_) = free_ports(4, in_a_row=4)
    running = Stack(
        tmp_path / "state",
        DATABASE_URL=replication.url,
        METRICS_PORT=str(port),
        **clocks.environment,
    )
    try:
        replication.start()
        running.start()
        timed = Timed(running)
        replication.primary.kill()
        running.ready["database_url"] = replication.standby.url
        replication.promote()
        eventually(lambda: _serves(running), NOTICE_SECONDS)
        timed.check(running)
        Timed(running).check(running)
        assert running.stop() == 0
    finally:
        running.kill_if_running()
        replication.stop()


def _restart(stack: Stack, program: str) -> None:
    (pid,) = stack.pids(program)
    stack.kill(pid)
    eventually(lambda: stack.pids(program) not in ([], [pid]), NOTICE_SECONDS)
    eventually(lambda: _serves(stack), NOTICE_SECONDS)


def _serves(stack: Stack) -> bool:
    return stack.rest().serves("/v1/workspaces")


def _await_offset(stack: Stack, index: int, seconds: int) -> None:
    _await_sample(stack, index, OFFSET, seconds)


def _await_correction(stack: Stack, seconds: int) -> None:
    for index in (WORKER, FLEET):
        _await_sample(stack, index, CORRECTION, seconds)


def _await_sample(
    stack: Stack, index: int, name: tuple[str, frozenset[tuple[str, str]]], seconds: int
) -> None:
    """Waits until the sample is about this many seconds."""

    def is_seen() -> bool:
        # A program that starts does not answer yet.
        with suppress(httpx.TransportError):
            return abs(scrape(stack, index).get(name, 0.0) - seconds) < HOUR / 10
        return False

    eventually(is_seen, NOTICE_SECONDS)

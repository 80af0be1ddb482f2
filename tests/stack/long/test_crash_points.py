"""Kills a program at each step of a cancellation.

The response to the caller must stay true, and the system must recover. Each row of CASES has the
crash point, the program that dies, the permitted responses, the state of the intent, and the final
status of the task. `server/evershell/pod/crash_points.py` defines the crash points.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.support import faults
from tests.support.alive import is_alive
from tests.support.stack import Gate, Stack, Workspace
from tests.support.waiting import eventually


@dataclass(frozen=True, slots=True)
class Case:
    point: str
    # The program that dies: `worker` is the worker that handles the call or the commit, and `agent`
    # is the agent of the workspace.
    dies: str
    # The permitted outcomes and slugs. If there are none, the test does not cancel the task.
    may_be_told: tuple[str, ...]
    intent: str
    status: str
    # If set, the worker also dies before it sends the signal, and the agent ends its iteration
    # without knowing of the intent.
    is_signal_lost: bool = False

    @property
    def in_signal(self) -> bool:
        return self.point.endswith("_ack")


LOST, ACCEPTED, UNREACHABLE = "unavailable", "accepted", "agent_unreachable"
CASES = [
    Case("before_intent", "worker", (LOST,), "absent", "completed"),
    Case("before_ack", "agent", (UNREACHABLE,), "whole", "cancelled"),
    Case("after_intent", "worker", (LOST,), "whole", "cancelled"),
    Case("after_ack", "agent", (UNREACHABLE,), "whole", "cancelled"),
    Case("before_signal", "worker", (LOST,), "whole", "cancelled"),
    Case("before_terminal_commit", "agent", (ACCEPTED,), "whole", "cancelled"),
    Case("after_signal", "worker", (LOST,), "whole", "cancelled"),
    Case("after_terminal_commit", "agent", (ACCEPTED,), "whole", "cancelled"),
    Case("before_reply", "worker", (LOST,), "whole", "cancelled"),
    Case("before_iteration_commit", "agent", (), "absent", "failed"),
    Case("after_reply", "worker", (LOST, ACCEPTED), "whole", "cancelled"),
    Case("after_iteration_commit", "agent", (), "absent", "failed"),
    # The crash points of reports are reached in the second iteration.
    Case("before_report_commit", "agent", (), "absent", "failed"),
    Case("before_report_transaction", "worker", (), "absent", "completed"),
    Case("after_report_commit", "agent", (), "absent", "failed"),
    Case("after_report_transaction", "worker", (), "absent", "completed"),
    Case("before_terminal_transaction", "worker", (ACCEPTED,), "whole", "cancelled"),
    Case("before_iteration_commit", "agent", (LOST,), "whole", "cancelled", is_signal_lost=True),
    Case("after_terminal_transaction", "worker", (ACCEPTED,), "whole", "cancelled"),
    Case("after_iteration_commit", "agent", (LOST,), "whole", "cancelled", is_signal_lost=True),
    Case(
        "before_iteration_transaction", "worker", (LOST,), "whole", "cancelled", is_signal_lost=True
    ),
    Case(
        "after_iteration_transaction", "worker", (LOST,), "whole", "cancelled", is_signal_lost=True
    ),
]


@pytest.fixture(scope="module")
def kept() -> dict[str, Workspace]:
    """Holds the workspace that a passed case leaves idle for the next case."""
    return {}


@pytest.fixture
def bed(fragile_stack: Stack, kept: dict[str, Workspace]) -> Workspace:
    """Returns an idle workspace: the one that the last case has left, unless that case failed."""
    return kept.pop("workspace", None) or Workspace(fragile_stack)


def name(case: Case) -> str:
    asked = "" if case.may_be_told else "-uncancelled"
    return f"{case.point}{asked}{'-unsignalled' * case.is_signal_lost}"


def _is_serving(worker: str) -> bool:
    return faults.health_of(worker) == "SERVING"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_a_crash(
    bed: Workspace, crash_points: Path, kept: dict[str, Workspace], case: Case
) -> None:
    stack, wire = bed.stack, ("rest", "grpc")[CASES.index(case) // 2 % 2]
    gate = Gate(bed)
    task_id = faults.submit(bed, gate.command, "echo second", after_outage=True)
    faults.await_phase(bed, task_id, "tool_call")
    if case.is_signal_lost:
        # Waits until all three workers serve: the case may kill two of them, and the supervisor,
        # which is frozen below, could not restart workers that earlier cases have killed.
        for address in stack.worker_addresses():
            eventually(partial(_is_serving, address), 60)
    agent, workers = stack.agent_pid(bed.id), stack.pids("serve")
    armed = [
        crash_points / point for point in ["before_signal"] * case.is_signal_lost + [case.point]
    ]
    for point in armed:
        point.touch()

    # The agent must not get the intent in another way: the lease is so long that the agent sends no
    # heartbeat, and the controller is frozen.
    with stack.frozen("fleet") if case.is_signal_lost else nullcontext():
        if case.may_be_told:
            told = faults.cancel(bed, wire)
            assert told in case.may_be_told
            assert faults.intent_of(bed, task_id) == case.intent
        if not case.in_signal:
            gate.open()
        # The supervisor waits before it restarts a worker that has crashed several times, and the
        # agent waits longer after each attempt.
        eventually(lambda: not any(point.exists() for point in armed), 60)

    end = faults.await_terminal(bed, task_id)
    faults.assert_story(bed, task_id, status=case.status, intent=case.intent == "whole")
    # A task that is cancelled or fails must not have committed a second iteration.
    assert end["iterations"] <= 1 or case.status == "completed"
    counted = end["iterations"] + (case.point == "after_report_commit")
    if "report" in case.point:
        assert (end["usage"]["model_calls"], end["usage"]["tool_calls"]) == (counted, counted)
    if case.point == "after_report_commit" or case.status == "completed":
        assert end["iteration_lost"] is (case.status == "failed")
    if case.dies == "agent":
        eventually(lambda: not is_alive(agent))
        faults.await_workspace(bed, "failed")
        assert stack.pod_processes(bed.id) == []
        faults.resume(bed, after_outage=True)
    else:
        eventually(lambda: set(workers) - set(stack.pids("serve")))
        assert stack.agent_pid(bed.id) == agent
    faults.assert_next_task_works(bed, after_outage=True)
    kept["workspace"] = bed

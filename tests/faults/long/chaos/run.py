"""Plays a plan on a new stack, and returns the outcome."""

import asyncio
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.faults.long.chaos import sightings
from tests.faults.long.chaos.answers import Answer
from tests.faults.long.chaos.callers import Callers
from tests.faults.long.chaos.causes import RECOVERED_SECONDS
from tests.faults.long.chaos.disks import disks
from tests.faults.long.chaos.emergencies import Emergencies
from tests.faults.long.chaos.evidence import Evidence
from tests.faults.long.chaos.faults import Faults, Hit
from tests.faults.long.chaos.load import Load
from tests.faults.long.chaos.plan import Fault, Plan
from tests.faults.long.chaos.sightings import allowed_connections
from tests.faults.long.chaos.verdict import violations
from tests.support.stack import Stack, Workspace, processes_of
from tests.support.waiting import eventually

WORKERS = 2
# How long a workspace may take to complete a task before the first and after the last fault.
SETTLE_SECONDS = 60.0
# How long processes that have ended may take to be gone.
_CLEARED_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a run."""

    plan: Plan
    evidence: Evidence
    settled_seconds: float
    stop_seconds: float
    violations: list[str]


def run(plan: Plan, state_dir: Path) -> Outcome:
    """Starts a stack, plays the plan and stops the stack."""
    # The load exceeds the rate limits, which this run does not test.
    stack = Stack(
        state_dir,
        WORKERS=str(WORKERS),
        RATE_LIMIT="off",
        LOG_LEVEL="INFO",
        # In a sandbox, no tool can stop its agent.
        POD_ISOLATION="none" if plan.seed % 2 else "auto",
    )
    with disks(state_dir, plan.seconds) as mounted:
        try:
            stack.start()
            workspace_ids = [Workspace(stack).id for _ in plan.rounds]
            faults = Faults(stack, workspace_ids, mounted)
            return play_and_judge(stack, faults, plan, workspace_ids, allowed_connections(WORKERS))
        finally:
            stack.kill_if_running()


class Inflictor(Protocol):
    """Inflicts faults, and keeps a record of each."""

    hits: list[Hit]

    async def run(self, faults: Sequence[Fault]) -> None:
        """Inflicts each fault at its time, and returns when the last one is over."""


def play_and_judge(
    stack: Stack,
    faults: Inflictor,
    plan: Plan,
    workspace_ids: list[str],
    connections: int,
    *,
    marks_work: bool = False,
) -> Outcome:
    """Plays a plan on a running stack, and stops it.

    The stack may hold that many connections to the database at the end.
    """
    played = asyncio.run(_play(stack, faults, plan, workspace_ids, marks_work=marks_work))
    seen = list(played.seen)
    try:
        eventually(lambda: not list(sightings.strays(stack, workspace_ids)), _CLEARED_SECONDS)
    except TimeoutError:
        seen += sightings.strays(stack, workspace_ids)
    except (OSError, ValueError) as error:
        seen.append(f"an agent is missing: {error}")
    seen += sightings.leaked_connections(stack, connections)
    history = sightings.history(stack)
    tasks = sightings.tasks(stack, history)
    began = time.monotonic()
    seen += _stopped(stack)
    stop_seconds = time.monotonic() - began
    seen += sightings.defects(stack)
    evidence = Evidence(
        tasks=tasks,
        events=history.events,
        last_seqs=history.last_seqs,
        answers=played.answers,
        hits=played.hits,
        seen=seen,
    )
    return Outcome(plan, evidence, played.settled_seconds, stop_seconds, violations(evidence))


@dataclass(frozen=True, slots=True)
class _Played:
    answers: list[Answer]
    hits: list[Hit]
    settled_seconds: float
    seen: list[str]


async def _play(
    stack: Stack,
    faults: Inflictor,
    plan: Plan,
    workspace_ids: list[str],
    *,
    marks_work: bool,
) -> _Played:
    callers = Callers(stack)
    load = Load(callers, workspace_ids, marks_work=marks_work)
    emergencies = Emergencies(load, stack.tokens["owner"])
    try:
        seen = [
            f"before the first fault: {problem}" for problem in await load.settle(SETTLE_SECONDS)
        ]
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(plan))
            await asyncio.gather(
                faults.run(plan.faults),
                emergencies.run(plan.emergencies),
                asyncio.sleep(plan.seconds),
            )
            for last in plan.last_faults:
                await asyncio.sleep(RECOVERED_SECONDS)
                await faults.run([last])
            load.end()
        began = time.monotonic()
        seen += await load.settle(SETTLE_SECONDS)
        return _Played(load.answers, faults.hits, time.monotonic() - began, seen)
    finally:
        await callers.close()


def _stopped(stack: Stack) -> Iterator[str]:
    """Stops the stack, and yields what was wrong with that."""
    try:
        code = stack.stop()
    except subprocess.TimeoutExpired:
        yield "the stack did not stop within its time"
        stack.kill_if_running()
    else:
        if code:
            yield f"the stack ended with exit code {code}"
    yield from (f"left behind: {process}" for process in processes_of(stack.state_dir))

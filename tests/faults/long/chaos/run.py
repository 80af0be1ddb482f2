"""Plays a plan on a new stack, and returns the outcome."""

import asyncio
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
import psycopg

from evershell.histories.judge import verdict
from evershell.histories.recorder import Recorder
from tests.faults.long.chaos import old_tasks
from tests.faults.long.chaos.callers import Callers
from tests.faults.long.chaos.disks import Disks, disks
from tests.faults.long.chaos.faults import Faults, Hit
from tests.faults.long.chaos.hog import hog
from tests.faults.long.chaos.load import IDLE_SECONDS, PRICES, TOKENS, Load
from tests.faults.long.chaos.plan import Fault, Plan
from tests.faults.long.chaos.unhurt import Hurt, failures, judge_programs, judge_workspaces
from tests.faults.long.chaos.waits import Waits
from tests.faults.long.chaos.webhook import webhook
from tests.support.promises import TERMINAL, read_history, violations
from tests.support.stack import Stack, Workspace, processes_of
from tests.support.waiting import eventually, eventually_async

WORKERS = 2
# How long a workspace may take to complete a task before the first fault and after the last one, or
# to be removed. The removal of a workspace waits for deliveries of webhooks. If the worker that
# sends them has died, another worker takes them over after 60 s.
_SETTLE_SECONDS = 120.0
# How long processes that are ending may take to disappear.
_CLEARED_SECONDS = 15.0
# A log line that contains one of these reports a defect.
_DEFECTS = ("unexpected_error", "never retrieved", "Traceback")
_CANCELLED = "asyncio.exceptions.CancelledError"

# Selects tasks whose cost differs from the cost of their iterations, that exceeded their limit by a
# whole iteration, or that reached it and were not cancelled.
_WRONG_COSTS = """
    SELECT id, cost_nanos, reported, max_cost_nanos
    FROM tasks, LATERAL (
        SELECT coalesce(sum((payload -> 'model_call' ->> 'output_tokens')::bigint), 0) AS reported
        FROM events WHERE task_id = tasks.id AND type = 'iteration_completed'
    ) AS iterations
    -- A lost iteration may cost as much as another one.
    WHERE cost_nanos IS NULL
        OR cost_nanos NOT IN (reported, reported + iteration_lost::int * %(tokens)s)
        OR cost_nanos >= max_cost_nanos + %(tokens)s
        OR (cost_nanos >= max_cost_nanos AND status <> 'cancelled')
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a run. Each violation of a promise is a line."""

    load: Load
    hits: list[Hit]
    violations: list[str]
    # One line for each workspace whose agent had too little time.
    too_short: list[str]
    # How many calls the history has, and the verdict on it.
    judged: str


class Inflictor(Protocol):
    """Inflicts faults, and keeps a record of each."""

    hits: list[Hit]

    async def run(self, faults: Sequence[Fault], load: Load) -> None:
        """Inflicts each fault at its time, and returns when the last one is over."""

    def hurts(self, workspace_ids: Sequence[str]) -> Iterable[Hurt]:
        """Yields what the faults did to programs, and to the agents of these workspaces."""


def environment(state_dir: Path) -> dict[str, str]:
    """Returns the settings of every stack whose tasks are judged.

    Writes the file of prices next to the state folder.
    """
    prices = state_dir.with_name(f"{state_dir.name}.prices.json")
    prices.write_text(PRICES)
    # The load exceeds the rate limits, so they are off.
    return {"PRICES_FILE": str(prices), "RATE_LIMIT": "off", "LOG_LEVEL": "INFO"}


def run(plan: Plan, state_dir: Path) -> Outcome:
    """Starts a stack, plays the plan and stops the stack."""
    stack = new_stack(state_dir)
    return play(stack, plan, lambda ids, disks: Faults(stack, ids, disks))


def new_stack(state_dir: Path, **settings: str) -> Stack:
    """Returns a stack on one machine. It has not been started."""
    stack = Stack(
        state_dir,
        WORKERS=str(WORKERS),
        IDLE_SUSPEND_MINUTES=str(IDLE_SECONDS / 60),
        TASK_RETENTION_DAYS="1",
        **environment(state_dir),
        **settings,
    )
    # The kernel stops the stack if this process is killed.
    stack.runner = ("setpriv", "--pdeathsig", "TERM")
    return stack


def play(
    stack: Stack, plan: Plan, faults_on: Callable[[Sequence[str], Disks], Inflictor]
) -> Outcome:
    """Starts the stack, plays the plan and stops the stack.

    `faults_on` gets the ids of the workspaces, and the disks.
    """
    with disks(stack.state_dir, plan.seconds) as mounted, stack.ended():
        stack.start()
        workspace_ids = [Workspace(stack).id for _ in range(plan.workspaces)]
        old_tasks.add(stack, workspace_ids)
        faults = faults_on(workspace_ids, mounted)
        return play_and_judge(stack, faults, plan, workspace_ids, has_webhook=True)


def play_and_judge(
    stack: Stack,
    faults: Inflictor,
    plan: Plan,
    workspace_ids: list[str],
    *,
    has_webhook: bool = False,
) -> Outcome:
    """Plays a plan on a running stack, and stops the stack.

    With `has_webhook`, the stack must be able to reach a port of this process, which a stack on
    many hosts cannot.
    """
    # The demo's workspace has an agent too.
    everyone = [*workspace_ids, str(stack.ready["demo"]["workspace_id"])]
    waits = Waits(stack, everyone)
    history = stack.state_dir.with_name("history.jsonl")
    with closing(Recorder(history)) as recorder:
        playing = _play(stack, faults, waits, plan, workspace_ids, recorder, has_webhook)
        load, problems = asyncio.run(playing)
    judged, contradictions = verdict(history)
    problems += load.problems + contradictions
    problems += (
        f"{hit.fault.target} did not come back after {hit.fault.kind} at {hit.fault.at_seconds} s"
        for hit in faults.hits
        if not hit.came_back
    )
    problems += old_tasks.left(stack)
    try:
        eventually(lambda: not list(_strays(stack, workspace_ids)), _CLEARED_SECONDS)
    except TimeoutError:
        problems += _strays(stack, workspace_ids)
    with stack.database() as connection:
        problems += _left_of_deleted(stack, connection, load.deleted_ids)
        problems += _judge_tasks(connection)
        failed = failures(connection, stack.state_dir / "logs")
    # The load creates workspaces too, and a fault may hurt the agent of any of them.
    hurts = list(faults.hurts([each.workspace_id for each in failed]))
    problems += judge_programs(stack.output, hurts)
    too_short = list[str]()
    for each in judge_workspaces(stack, failed, hurts, waits):
        (too_short if each.is_too_short else problems).append(each.text)
    problems += _stopped(stack)
    problems += _defects(stack)
    return Outcome(load, faults.hits, problems, too_short, judged)


async def _play(
    stack: Stack,
    faults: Inflictor,
    waits: Waits,
    plan: Plan,
    workspace_ids: list[str],
    recorder: Recorder,
    has_webhook: bool,
) -> tuple[Load, list[str]]:
    async with AsyncExitStack() as ends:
        callers = Callers(stack, recorder)
        ends.push_async_callback(callers.close)
        load = Load(callers, _last_seqs(stack, workspace_ids), plan.seed)
        delivered = (
            await ends.enter_async_context(webhook(callers, recorder)) if has_webhook else None
        )
        following = asyncio.gather(waits.follow(), load.watch())
        ends.push_async_callback(_ended, following)
        problems = [
            f"before the first fault: {line}" for line in await load.settle(_SETTLE_SECONDS)
        ]
        with hog(plan.load, 2 * plan.seconds) if plan.load else nullcontext():
            async with asyncio.TaskGroup() as group:
                group.create_task(load.run())
                await asyncio.gather(faults.run(plan.faults, load), asyncio.sleep(plan.seconds))
                load.end()
        problems += await load.settle(_SETTLE_SECONDS)
        if delivered is not None:
            # A timeout is ignored here, because the history shows which deliveries are missing.
            with suppress(TimeoutError):
                await eventually_async(lambda: load.ended <= delivered, _SETTLE_SECONDS)
        return load, problems


async def _ended(following: "asyncio.Future[Any]") -> None:
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following


def _last_seqs(stack: Stack, workspace_ids: list[str]) -> dict[str, int]:
    """Returns the `seq` after which watchers begin. Older events may be removed during the run."""
    with stack.database() as connection:
        query = "SELECT id, last_seq FROM workspaces WHERE id = ANY (%s)"
        return dict(connection.execute(query, (workspace_ids,)).fetchall())


def _judge_tasks(connection: "psycopg.Connection[Any]") -> Iterator[str]:
    """Yields a line for each wrong row, each wrong cost, and each task that has not ended.

    evershell.histories judges what callers see.
    """
    history = read_history(connection, removes_old=True)
    for task_id, cost, reported, limit in connection.execute(_WRONG_COSTS, {"tokens": TOKENS}):
        yield f"{task_id} costs {cost}, its iterations cost {reported}, its limit is {limit}"
    yield from violations(history)
    for task in history.tasks.values():
        if task.status not in TERMINAL:
            yield f"{task.id} of {task.workspace_id} has not ended: {task.status}"


def _left_of_deleted(
    stack: Stack, connection: psycopg.Connection[Any], deleted_ids: list[str]
) -> Iterator[str]:
    """Yields a line for everything that deleted workspaces have left: rows, files and processes.

    Also yields a line if no workspace was deleted.
    """
    if not deleted_ids:
        yield "no workspace was deleted"
    for table in ("workspaces", "tasks", "events", "webhook_deliveries"):
        column = "id" if table == "workspaces" else "workspace_id"
        query = f"SELECT count(*) FROM {table} WHERE {column} = ANY (%s)"
        row = connection.execute(query.encode(), (deleted_ids,)).fetchone()
        if row is None or row[0]:
            yield f"{table} has {row and row[0]} rows of deleted workspaces"
    for workspace_id in deleted_ids:
        if left := [*stack.state_dir.glob(f"*/{workspace_id}"), *stack.pod_processes(workspace_id)]:
            yield f"deleted workspace {workspace_id} has left {left}"


def _strays(stack: Stack, workspace_ids: Sequence[str]) -> Iterator[str]:
    """Yields a line for each zombie, and for each idle pod that runs more than its agent."""
    for workspace_id in workspace_ids:
        found = stack.pod_processes(workspace_id)
        if not found:
            # The workspace is suspended.
            continue
        agent = stack.agent_pid(workspace_id)
        if found != [agent]:
            yield f"the idle pod of {workspace_id} runs {found} instead of only its agent {agent}"
    for process in stack.processes():
        with suppress(psutil.Error):
            if process.status() == psutil.STATUS_ZOMBIE:
                yield f"process {process.pid} has ended, and {process.parent()} does not reap it"


def _defects(stack: Stack) -> Iterator[str]:
    """Yields the log lines that report a defect."""
    logs = [stack.output, *stack.state_dir.glob("logs/*"), *stack.state_dir.glob("fleet/*/log")]
    for path in sorted(filter(Path.is_file, logs)):
        lines = path.read_text(errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            if any(defect in line for defect in _DEFECTS):
                # A line of JSON contains the whole traceback. In plain text, the traceback is on
                # the next lines, and the error is on the line after it.
                error = next((each for each in lines[number:] if not each.startswith(" ")), "")
                # grpcio logs a CancelledError for a call that ended before it had begun.
                if _CANCELLED not in (line if line.startswith("{") else error):
                    yield f"{path.relative_to(stack.state_dir.parent)}: {line[:2000]}"


def _stopped(stack: Stack) -> Iterator[str]:
    """Stops the stack, and yields a line for everything that went wrong."""
    try:
        code = stack.stop()
    except subprocess.TimeoutExpired:
        yield "the stack did not stop within its time"
        stack.kill_if_running()
    else:
        if code:
            yield f"the stack ended with exit code {code}"
    yield from (f"left behind: {process}" for process in processes_of(stack.state_dir))

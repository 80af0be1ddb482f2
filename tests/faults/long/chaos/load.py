"""The load: plays the rounds of every workspace during the faults, and records all answers."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import count, cycle
from typing import Any

from tests.faults.long.chaos.answers import HUNG_UP, Answer, Reply
from tests.faults.long.chaos.callers import Callers
from tests.faults.long.chaos.plan import Cancel, Plan, Round, Stopped, Wire

# The time limit of a call. No fault lasts longer than a few seconds, so every call is answered by
# then. The wait of a cancellation is added to it.
ANSWER_SECONDS = 15.0
_PAUSE_SECONDS = 0.15
# Not shorter than a round.
_ON_HOLD_PAUSE_SECONDS = 0.25
# How often a tool that marks its work does so.
_MARK_SECONDS = 0.1


class Load:
    """Makes the calls of a plan, and keeps all answers."""

    def __init__(
        self, callers: Callers, workspace_ids: list[str], *, marks_work: bool = False
    ) -> None:
        """With `marks_work`, tools write to a file of their task for as long as they run."""
        self._callers = callers
        self._marks_work = marks_work
        self._marks = count(1)
        self._workspace_ids = workspace_ids
        self.answers: list[Answer] = []
        self._over = asyncio.Event()
        self._numbers = count(1)

    async def run(self, plan: Plan) -> None:
        """Plays rounds until `end` is called, and returns when all calls are answered."""
        async with asyncio.TaskGroup() as group:
            for workspace_id, rounds in zip(self._workspace_ids, plan.rounds, strict=True):
                group.create_task(self._play_rounds(workspace_id, rounds))

    def end(self) -> None:
        """Makes `run` begin no further rounds."""
        self._over.set()

    async def settle(self, limit_seconds: float) -> list[str]:
        """Resumes every workspace and runs one more task in each of them.

        Returns a line for each workspace that did not succeed within `limit_seconds`.
        """
        self._over.clear()

        async def one(workspace_id: str) -> str:
            try:
                async with asyncio.timeout(limit_seconds):
                    return await self._complete_one(workspace_id)
            except TimeoutError:
                last = next(
                    answer
                    for answer in reversed(self.answers)
                    if answer.workspace_id == workspace_id
                )
                return (
                    f"{workspace_id} took no task within {limit_seconds:g} s; "
                    f"last: {last.rpc} {last.slug} {dict(last.body)}"
                )

        return [
            problem
            for problem in await asyncio.gather(*(one(each) for each in self._workspace_ids))
            if problem
        ]

    async def _complete_one(self, workspace_id: str) -> str:
        # A submission may fail while the controller has not yet noticed that the agent has died.
        while (task_id := await self._submit_last(workspace_id)) is None:
            await asyncio.sleep(_PAUSE_SECONDS)
        while not (task := await self._call(Wire.REST, "GetTask", workspace_id, task_id)).body.get(
            "completed_at"
        ):
            await asyncio.sleep(_PAUSE_SECONDS)
        return (
            ""
            if task.body["status"] == "completed"
            else f"{workspace_id}: its last task ended {task.body['status']}"
        )

    async def _submit_last(self, workspace_id: str) -> str | None:
        await self._bring_up(workspace_id, Wire.REST)
        submitted = await self._call(Wire.REST, "SubmitTask", workspace_id, description="true")
        return None if submitted.slug else submitted.body["task_id"]

    async def _play_rounds(self, workspace_id: str, rounds: tuple[Round, ...]) -> None:
        for each in rounds:
            if not await self._bring_up(workspace_id, each.control_wire):
                return
            await self._play(workspace_id, each)

    async def _bring_up(self, workspace_id: str, wire: Wire) -> bool:
        """Waits until the workspace is idle, and resumes it if it has stopped or failed.

        Returns False if `end` is called first.
        """
        wires = cycle([*(other for other in Wire if other is not wire), wire])
        while not self._over.is_set():
            workspace = await self._call(wire, "GetWorkspace", workspace_id)
            status = workspace.body.get("status")
            if status == "idle":
                return True
            if workspace.slug:
                wire = next(wires)
            if status in ("stopped", "failed"):
                await self._call(wire, "ResumeWorkspace", workspace_id)
            await asyncio.sleep(_PAUSE_SECONDS)
        return False

    async def _play(self, workspace_id: str, each: Round) -> None:
        mark = f"mark-{next(self._marks)}" if self._marks_work else ""
        submitted = await self._call(
            each.submit_wire,
            "SubmitTask",
            workspace_id,
            description="\n".join(_commands(each, mark)),
            metadata=_metadata(each, mark),
            limits=_limits(each),
        )
        if submitted.slug == "org_on_hold":
            await asyncio.sleep(_ON_HOLD_PAUSE_SECONDS)
        # The details of agent_unreachable name the task too, and those of workspace_busy name the
        # current task. After other failures it is unknown.
        task_id = str(submitted.body.get("task_id", ""))
        calls = [self._cancel(workspace_id, task_id, cancel) for cancel in each.cancels]
        if each.stop_after_seconds is not None:
            calls.append(self._stop(workspace_id, each))
        await asyncio.gather(*calls)
        if task_id:
            await self._call(each.control_wire, "GetTask", workspace_id, task_id)

    async def _cancel(self, workspace_id: str, task_id: str, cancel: Cancel) -> None:
        await asyncio.sleep(cancel.after_seconds)
        durations = {"wait": cancel.wait_seconds, "force_after": cancel.force_after_seconds}
        fields = {name: f"{seconds}s" for name, seconds in durations.items() if seconds is not None}
        named = task_id if cancel.names_task else ""
        # A caller that hangs up learns nothing, but _call still records an answer.
        with suppress(TimeoutError):
            async with asyncio.timeout(cancel.hangs_up_seconds):
                await self._call(
                    cancel.wire,
                    "CancelTasks" if cancel.is_batch else "CancelTask",
                    workspace_id,
                    named,
                    cancel.wait_seconds or 0,
                    **fields,
                )

    async def _stop(self, workspace_id: str, each: Round) -> None:
        await asyncio.sleep(each.stop_after_seconds or 0)
        await self._call(each.control_wire, "StopWorkspace", workspace_id)

    async def _call(
        self,
        wire: Wire,
        rpc: str,
        workspace_id: str,
        task_id: str = "",
        wait_seconds: float = 0,
        **fields: Any,
    ) -> Answer:
        """Makes a call and records its answer, even if the caller hangs up."""
        call = f"call {next(self._numbers)}"
        named = {"filter": {"workspace_ids": [workspace_id]}, "reason": call}
        if rpc != "CancelTasks":
            named = {
                "workspace_id": workspace_id,
                **({"task_id": task_id} if task_id else {}),
                **({"reason": call} if rpc == "CancelTask" else {}),
            }
        request: Mapping[str, Any] = {**named, **fields}
        sent, reply = time.time(), Reply("", HUNG_UP, {})
        try:
            reply = await self._callers.call(wire, rpc, ANSWER_SECONDS + wait_seconds, request)
        finally:
            answer = Answer(
                call=call,
                rpc=rpc,
                wire=wire,
                workspace_id=workspace_id,
                task_id=task_id,
                waits=wait_seconds > 0,
                forces="force_after" in fields,
                sent=sent,
                answered=time.time(),
                status=reply.status,
                slug=reply.slug,
                body=_of_one_task(reply) if rpc == "CancelTasks" else reply.body,
                problem=reply.problem,
                request_id=reply.request_id,
            )
            self.answers.append(answer)
        return answer

    async def call_for_org(self, wire: Wire, rpc: str, token: str, *, cancels: bool) -> Answer:
        """Makes a call about the whole organization, and records its answer."""
        call, sent = f"call {next(self._numbers)}", time.time()
        request: dict[str, Any] = {} if rpc == "ReleaseOrg" else {"reason": call}
        if rpc == "CancelTasks":
            request["all"] = True
        if rpc == "HoldOrg":
            request["cancel_running"] = cancels
        reply = await self._callers.call(wire, rpc, ANSWER_SECONDS, request, token)
        answer = Answer(
            call=call,
            rpc=rpc,
            wire=wire,
            workspace_id="",
            cancels=cancels,
            sent=sent,
            answered=time.time(),
            status=reply.status,
            slug=reply.slug,
            body=reply.body,
            problem=reply.problem,
            request_id=reply.request_id,
        )
        self.answers.append(answer)
        return answer


def _of_one_task(reply: Reply) -> Mapping[str, Any]:
    """The answer of CancelTasks for one workspace, in the form of CancelTask's."""
    if reply.slug:
        return reply.body
    results: list[Mapping[str, Any]] = reply.body["results"]
    if results:
        return results[0]
    # A task whose workspace stayed locked remains.
    return {} if reply.body["remaining"] else {"outcome": "no_active_task", "task_id": ""}


def _commands(each: Round, mark: str) -> list[str]:
    """Returns one command for each iteration. The parent of a tool's shell is its agent."""
    work = _marking(each.iteration_seconds, mark) if mark else f"sleep {each.iteration_seconds}"
    commands = [work] * each.iterations
    match each.agent_stopped:
        case Stopped.FOR_A_WHILE:
            commands[0] = f"kill -STOP $PPID; sleep {each.stopped_seconds}; kill -CONT $PPID"
        case Stopped.FOR_GOOD:
            commands[0] = f"kill -STOP $PPID; {commands[0]}"
    return commands


def _limits(each: Round) -> dict[str, str]:
    limits = {"max_duration": each.limit_seconds, "force_after": each.limit_force_after_seconds}
    return {name: f"{seconds}s" for name, seconds in limits.items() if seconds is not None}


def _marking(seconds: float, mark: str) -> str:
    """A command that takes so long, and writes to the file `mark` meanwhile."""
    times = max(1, round(seconds / _MARK_SECONDS))
    repeat = f"for i in {' '.join(map(str, range(times)))}"
    return f"{repeat}; do true > {mark}; sleep {seconds / times:.3f}; done"


def _metadata(each: Round, mark: str) -> dict[str, str]:
    """Returns what the verdict needs to know about the task."""
    known = {"agent_stopped": str(each.agent_stopped)}
    return {**known, "mark": mark} if mark else known

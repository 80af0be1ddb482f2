"""An agent that uses the library. Tests can block its model and its tool; its committer is fake."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from evershell.agents.active_task import ActiveTask
from evershell.agents.loop import AgentFunction, RejectedError, Task, run_task
from evershell.agents.reply import Reply
from evershell.agents.runtime_client import encode_commit
from evershell.agents.step import Limits, Step
from evershell.agents.tools import ToolResult, ToolStatus
from evershell.core.task import AgentEvent, IterationCompleted, IterationReported, TaskEnded

OK = ToolResult(status=ToolStatus.EXITED, output="ok")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReply:
    """A scripted reply of the model."""

    content: str = ""
    calls_tool: bool = True
    final: bool = False


class World:
    """The agent with its model and its tool, and the committer of its events.

    Each call is a step with a name, such as "tool 2". `at` maps the name of a step to a hook that
    runs before the call returns.
    """

    name = "a model"

    def __init__(
        self,
        replies: Sequence[ModelReply | BaseException],
        results: Sequence[ToolResult | BaseException] = (),
    ) -> None:
        self.replies = list(replies)
        self.results = list(results)
        self.committed: list[AgentEvent] = []
        # The reports of open iterations, which are not in `trace`.
        self.reports: list[IterationReported] = []
        self.trace: list[str] = []
        self.at: dict[str, Callable[[], Coroutine[Any, Any, object] | None]] = {}
        # The part of the newest model call's reply that has been received.
        self.partial = Reply()
        self.dropped = False
        self.rejects: type[Any] | None = None

    async def agent(self, task: Task) -> str:
        async for step in task.iterations():
            step.reply.model, self.partial = self.name, step.reply
            reply = await step.model_call(self._next(step))
            if reply.calls_tool:
                await step.tool_call("shell", "{}", self._run(), call_id="c")
            if reply.final:
                return reply.content
        return ""

    async def _take_step(self, step: str) -> None:
        self.trace.append(step)
        if (hook := self.at.get(step)) is not None and (pending := hook()) is not None:
            await pending

    async def _next(self, step: Step) -> ModelReply:
        await self._take_step(f"model {step.number}")
        reply = self.replies[step.number - 1]
        if isinstance(reply, BaseException):
            raise reply
        return reply

    async def _run(self) -> ToolResult:
        number = sum(step.startswith("tool") for step in self.trace) + 1
        try:
            await self._take_step(f"tool {number}")
        except asyncio.CancelledError:
            return ToolResult(status=ToolStatus.INTERRUPTED, exit_code=-9, output="so far")
        result = self.results[number - 1] if self.results else OK
        if isinstance(result, BaseException):
            raise result
        return result

    async def commit(self, task_id: str, events: Sequence[AgentEvent]) -> bool:
        encode_commit(task_id, events)
        if isinstance(events[0], IterationReported):
            self.reports.append(events[0])
            if (hook := self.at.get(f"report {events[0].number}")) and (pending := hook()):
                await pending
            return not self.dropped
        await self._take_step(
            "commit "
            + " ".join(
                f"{type(event).__name__} {getattr(event, 'number', '')}".strip() for event in events
            )
        )
        if self.rejects is not None and any(isinstance(event, self.rejects) for event in events):
            raise RejectedError("no")
        self.committed += events
        return not self.dropped and not isinstance(events[-1], TaskEnded)


def a_task(**changes: Any) -> ActiveTask:
    return ActiveTask(**{"id": "t1", "description": "d", "max_iterations": 10, **changes})


async def run_loop(
    world: World,
    task: ActiveTask,
    timeout_seconds: float = 60,
    function: AgentFunction | None = None,
) -> TaskEnded | None:
    """Runs the task with the world's agent, or with `function`."""
    limits = Limits(model_timeout_seconds=timeout_seconds, tool_timeout_seconds=timeout_seconds)
    async with asyncio.timeout(30):
        return await run_task(function or world.agent, task, world.commit, limits)


class Run:
    """Runs a function as an agent, and collects its iterations."""

    def __init__(self, function: Any, timeout_seconds: float = 60, **changes: Any) -> None:
        self.world, self.task = World([]), a_task(**changes)
        self._running = asyncio.create_task(
            run_loop(self.world, self.task, timeout_seconds, function)
        )

    async def end(self) -> TaskEnded:
        ending = await self._running
        assert ending is not None
        return ending

    def drop(self) -> None:
        self._running.cancel()

    @property
    def is_over(self) -> bool:
        return self._running.done()

    @property
    def iterations(self) -> list[Any]:
        return [
            event.payload for event in self.world.committed if isinstance(event, IterationCompleted)
        ]


async def ended(function: Any, **changes: Any) -> tuple[TaskEnded, list[Any]]:
    """Runs a function as an agent. Returns the end of its task and the iterations."""
    run = Run(function, **changes)
    return await run.end(), run.iterations


async def force(run: Run, reached: asyncio.Event) -> TaskEnded:
    """Cancels the task with force once `reached` is set. Returns the end of the task."""
    await reached.wait()
    run.task.cancel.request(0)
    return await run.end()


async def value(answer: Any) -> Any:
    return answer


def calling(**tools: Any) -> Any:
    """Returns an agent whose first iteration calls all these tools at the same time."""

    async def agent(task: Task) -> str:
        async for each in task.iterations():
            calls = [each.tool_call(name, {}, call) for name, call in tools.items()]
            return " ".join(await asyncio.gather(*calls))
        return ""

    return agent


async def end_late(may_end: asyncio.Event) -> None:
    """Ends only once `may_end` is set, even if the call is cancelled."""
    while not may_end.is_set():
        try:
            await may_end.wait()
        except asyncio.CancelledError:
            continue


async def wait_forever() -> None:
    await asyncio.Event().wait()


def a_reply(content: str = "", **changes: Any) -> ModelReply:
    return ModelReply(content=content, **changes)


REPLIES = [a_reply(), a_reply(), a_reply("the answer", final=True)]

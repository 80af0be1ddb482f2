"""A model, a tool and a committer that tests can block, and the loop that runs on them."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from evershell.agents.active_task import ActiveTask
from evershell.agents.iteration import Limits
from evershell.agents.loop import RejectedError, run_task
from evershell.agents.model import History, ModelReply, PartialReply
from evershell.agents.runtime_client import encode_event
from evershell.agents.tools import ToolCall, ToolResult, ToolStatus
from evershell.core.task import AgentEvent, TaskEnded

CALL = ToolCall(id="c", name="shell", arguments="{}")
OK = ToolResult(status=ToolStatus.EXITED, output="ok")


class World:
    """The model, the tool and the committer.

    Each call is a step with a name, for example "tool 2". `at` maps a step to a hook that runs
    before the call returns.
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
        self.trace: list[str] = []
        self.at: dict[str, Callable[[], Coroutine[Any, Any, object] | None]] = {}
        self.histories: list[list[ToolResult | None]] = []
        # The partial reply of the latest model call.
        self.partial = PartialReply("")
        self.dropped = False
        self.rejects: type[Any] | None = None

    async def _take_step(self, step: str) -> None:
        self.trace.append(step)
        if (hook := self.at.get(step)) is not None and (pending := hook()) is not None:
            await pending

    async def next(self, history: History, partial: PartialReply) -> ModelReply:
        self.partial = partial
        self.histories.append([iteration.result for iteration in history.iterations])
        await self._take_step(f"model {len(history.iterations) + 1}")
        reply = self.replies[len(history.iterations)]
        if isinstance(reply, BaseException):
            raise reply
        return reply

    async def run(self, call: ToolCall, interrupt: asyncio.Event) -> ToolResult:
        number = sum(step.startswith("tool") for step in self.trace) + 1
        running = asyncio.ensure_future(self._take_step(f"tool {number}"))
        interrupted = asyncio.ensure_future(interrupt.wait())
        await asyncio.wait({running, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        interrupted.cancel()
        if not running.done():
            running.cancel()
            return ToolResult(status=ToolStatus.INTERRUPTED, exit_code=-9, output="so far")
        result = self.results[number - 1] if self.results else OK
        if isinstance(result, BaseException):
            raise result
        return result

    async def commit(self, task_id: str, events: Sequence[AgentEvent]) -> bool:
        await self._take_step(
            "commit "
            + " ".join(
                f"{type(event).__name__} {getattr(event, 'number', '')}".strip() for event in events
            )
        )
        if self.rejects is not None and any(isinstance(event, self.rejects) for event in events):
            raise RejectedError("no")
        for event in events:
            encode_event(event)
            self.committed.append(event)
        return not self.dropped and not isinstance(events[-1], TaskEnded)


def a_task(**changes: Any) -> ActiveTask:
    return ActiveTask(**{"id": "t1", "description": "d", "max_iterations": 10, **changes})


async def run_loop(world: World, task: ActiveTask, timeout_seconds: float = 60) -> TaskEnded | None:
    async with asyncio.timeout(30):
        return await run_task(
            task, world, world, world.commit, Limits(model_timeout_seconds=timeout_seconds)
        )


async def wait_forever() -> None:
    await asyncio.Event().wait()


def a_reply(content: str = "", **changes: Any) -> ModelReply:
    return ModelReply(**{"model": "m", "content": content, "tool_call": CALL, **changes})


REPLIES = [a_reply(), a_reply(), a_reply("the answer", final=True)]

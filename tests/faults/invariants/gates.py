"""An agent's model and tool, whose calls wait until a rule of the state machine ends them."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from evershell.agents.active_task import TaskFailed
from evershell.agents.loop import Task
from evershell.agents.step import Step
from evershell.agents.tools import ToolResult, ToolStatus
from evershell.core.prices import PriceList, Prices
from tests.faults.invariants.record import Iteration, Record

MODEL = "priced"
# Each token costs one nano-dollar.
PRICES = PriceList(
    own={MODEL: Prices(dict.fromkeys(("input_tokens", "output_tokens"), ((0, 1000),)))}
)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the gates need to know about their agent."""

    epoch: int
    task_id: Callable[[], str]
    was_cancelled: Callable[[str], bool]
    may_interrupt: Callable[[str], bool]
    # Whether the agent's process has ended. From then on, interruptions and ends of tool calls are
    # not recorded.
    is_gone: Callable[[], bool]
    # Notes whether a tool runs for the task. A tool counts as running until its end is known, even
    # if the agent dies.
    tool_runs: Callable[[str, bool], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the model replies."""

    content: str
    calls_tool: bool
    final: bool


class Gates:
    """The agent's model and tool. At most one call is open, and it waits until a rule ends it."""

    def __init__(self, surroundings: Surroundings, record: Record) -> None:
        self._surroundings = surroundings
        self._record = record
        self._iteration: Iteration | None = None
        # What the open model call waits for; None without such a call.
        self._reply: asyncio.Future[Reply] | None = None
        # What the open tool call waits for; None without such a call.
        self._result: asyncio.Future[ToolResult] | None = None

    @property
    def is_model_called(self) -> bool:
        """Whether a model call is open."""
        return self._reply is not None and not self._reply.done()

    @property
    def is_tool_called(self) -> bool:
        """Whether a tool call is open."""
        return self._result is not None and not self._result.done()

    def reply(self, *, final: bool, tool: bool) -> None:
        """Ends the open model call with a reply."""
        assert self._reply is not None and self._iteration is not None
        number = self._iteration.number
        self._iteration.content = content = f"{'final' if final else 'step'} {number}"
        self._iteration.is_final = final
        self._reply.set_result(Reply(content=content, calls_tool=tool, final=final))

    def fail(self) -> None:
        """Makes the open model call fail."""
        assert self._reply is not None and self._iteration is not None
        self._iteration.failed = True
        self._reply.set_exception(TaskFailed("the gated model failed"))

    def end_tool(self) -> None:
        """Ends the open tool call."""
        assert self._result is not None and self._iteration is not None
        output = f"output {self._iteration.number}"
        self._result.set_result(ToolResult(status=ToolStatus.EXITED, output=output))

    async def agent(self, task: Task) -> str:
        """The function that the agent runs for a task."""
        async for step in task.iterations():
            reply = await step.model_call(self._next(step))
            step.reply.content = reply.content
            if reply.calls_tool:
                await step.tool_call("shell", {}, self._run())
            if reply.final:
                return reply.content
        return ""

    async def _next(self, step: Step) -> Reply:
        task_id = self._surroundings.task_id()
        self._iteration = Iteration(
            epoch=self._surroundings.epoch,
            task_id=task_id,
            number=step.number,
            was_cancelled=self._surroundings.was_cancelled(task_id),
        )
        self._record.iterations.append(self._iteration)
        self._iteration.content = f"part {self._iteration.number}"
        step.reply.content = self._iteration.content
        step.reply.model = MODEL
        step.reply.input_tokens, step.reply.output_tokens = 3, 2
        self._reply = asyncio.get_running_loop().create_future()
        try:
            return await self._reply
        except asyncio.CancelledError:
            self._note_interrupt("model_call")
            raise
        finally:
            self._reply = None

    async def _run(self) -> ToolResult:
        assert self._iteration is not None
        task_id = self._iteration.task_id
        self._iteration.tool_output = ""
        self._result = asyncio.get_running_loop().create_future()
        self._surroundings.tool_runs(task_id, True)
        try:
            result = await self._result
        except asyncio.CancelledError:
            self._note_interrupt("tool_call")
            result = ToolResult(
                status=ToolStatus.INTERRUPTED, output=f"so far {self._iteration.number}"
            )
        finally:
            self._result = None
            if not self._surroundings.is_gone():
                self._surroundings.tool_runs(task_id, False)
        self._iteration.tool_output = result.output
        return result

    def _note_interrupt(self, call: str) -> None:
        iteration = self._iteration
        assert iteration is not None
        if not self._surroundings.is_gone():
            iteration.interrupted_call = call
            iteration.may_interrupt = self._surroundings.may_interrupt(iteration.task_id)

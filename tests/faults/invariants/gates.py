"""A model and a tool whose calls wait until a rule lets them end."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from evershell.agents.model import History, ModelFailure, ModelReply, PartialReply
from evershell.agents.tools import ToolCall, ToolResult, ToolStatus
from tests.faults.invariants.record import Iteration, Record


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the gates need to know about their agent."""

    epoch: int
    task_id: Callable[[], str]
    was_cancelled: Callable[[str], bool]
    may_interrupt: Callable[[str], bool]
    # Whether the process has ended: later steps of its coroutines then do not count.
    is_gone: Callable[[], bool]
    # Notes whether a tool runs for the task. It counts as running until its end is known, even if
    # the agent dies.
    tool_runs: Callable[[str, bool], None]


class Gates:
    """Implements the agent's Model and Tool. At most one call is open."""

    name = "gated"

    def __init__(self, surroundings: Surroundings, record: Record) -> None:
        self._surroundings = surroundings
        self._record = record
        self._iteration: Iteration | None = None
        # The results that the open call waits for; None without an open call.
        self._reply: asyncio.Future[ModelReply] | None = None
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
        call = ToolCall(id=f"call_{number}", name="shell", arguments="{}") if tool else None
        reply = ModelReply(
            model=self.name,
            content=content,
            tool_call=call,
            final=final,
            input_tokens=3,
            output_tokens=2,
        )
        self._reply.set_result(reply)

    def fail(self) -> None:
        """Lets the open model call fail."""
        assert self._reply is not None and self._iteration is not None
        self._iteration.failed = True
        self._reply.set_exception(ModelFailure("the gated model failed"))

    def end_tool(self) -> None:
        """Ends the open tool call."""
        assert self._result is not None and self._iteration is not None
        output = f"output {self._iteration.number}"
        self._result.set_result(ToolResult(status=ToolStatus.EXITED, output=output))

    async def next(self, history: History, partial: PartialReply) -> ModelReply:
        task_id = self._surroundings.task_id()
        self._iteration = Iteration(
            epoch=self._surroundings.epoch,
            task_id=task_id,
            number=len(history.iterations) + 1,
            was_cancelled=self._surroundings.was_cancelled(task_id),
        )
        self._record.iterations.append(self._iteration)
        self._iteration.content = f"part {self._iteration.number}"
        partial.add(self._iteration.content)
        partial.input_tokens, partial.output_tokens = 3, 2
        self._reply = asyncio.get_running_loop().create_future()
        try:
            return await self._reply
        except asyncio.CancelledError:
            self._note_interrupt("model_call")
            raise
        finally:
            self._reply = None

    async def run(self, call: ToolCall, interrupt: asyncio.Event) -> ToolResult:
        assert self._iteration is not None
        task_id = self._iteration.task_id
        self._iteration.tool_output = ""
        self._result = asyncio.get_running_loop().create_future()
        self._surroundings.tool_runs(task_id, True)
        interrupted = asyncio.ensure_future(interrupt.wait())
        waited: set[asyncio.Future[Any]] = {self._result, interrupted}
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if self._result.done():
                result = self._result.result()
            else:
                self._note_interrupt("tool_call")
                result = ToolResult(
                    status=ToolStatus.INTERRUPTED, output=f"so far {self._iteration.number}"
                )
            self._iteration.tool_output = result.output
            return result
        except asyncio.CancelledError:
            self._note_interrupt("tool_call")
            raise
        finally:
            interrupted.cancel()
            self._result = None
            if not self._surroundings.is_gone():
                self._surroundings.tool_runs(task_id, False)

    def _note_interrupt(self, call: str) -> None:
        iteration = self._iteration
        assert iteration is not None
        if not self._surroundings.is_gone():
            iteration.interrupted_call = call
            iteration.may_interrupt = self._surroundings.may_interrupt(iteration.task_id)

"""One iteration: a model call and the tool call that it asked for."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from evershell.agents.active_task import ActiveTask
from evershell.agents.model import (
    History,
    Iteration,
    Model,
    ModelFailure,
    ModelReply,
    PartialReply,
)
from evershell.agents.tools import Tool, ToolCall, ToolResult, ToolStatus, storable
from evershell.core.task import Phase

T = TypeVar("T")

# How long an iteration waits for an aborted model call to end. Then it continues without it.
_ABORT_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The time limit of one model call. A tool enforces its own."""

    model_timeout_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An iteration that has ended, and the durations of its calls."""

    iteration: Iteration
    model_call_ms: int
    tool_call_ms: int

    def payload(self) -> dict[str, Any]:
        """The fields of the message IterationCompleted, except the number."""
        reply, result = self.iteration.reply, self.iteration.result
        payload: dict[str, Any] = {
            "model_call": {
                "model": storable(reply.model),
                "content": storable(reply.content),
                "input_tokens": reply.input_tokens,
                "output_tokens": reply.output_tokens,
                "duration_ms": self.model_call_ms,
                "status": "interrupted" if reply.is_interrupted else "completed",
            }
        }
        if reply.tool_call is not None and result is not None:
            payload["tool_call"] = {
                "id": storable(reply.tool_call.id),
                "name": storable(reply.tool_call.name),
                "arguments": storable(reply.tool_call.arguments),
                "result": {
                    "status": str(result.status),
                    "exit_code": result.exit_code,
                    "output": storable(result.output),
                    "truncated_bytes": result.truncated_bytes,
                },
                "duration_ms": self.tool_call_ms,
            }
        return payload


class Calls:
    """Makes the two calls of an iteration. A forced cancellation interrupts either."""

    def __init__(
        self,
        task: ActiveTask,
        model: Model,
        tool: Tool,
        limits: Limits,
        phase_changed: Callable[[], None],
    ) -> None:
        self._task = task
        self._model = model
        self._tool = tool
        self._limits = limits
        self._phase_changed = phase_changed

    async def iterate(self, history: History) -> Record:
        """Runs one iteration. Raises what the model or the tool raises."""
        try:
            began = time.monotonic()
            self._enter(Phase.MODEL_CALL)
            reply = await self._call_model(history)
            replied = time.monotonic()
            result = None
            if reply.tool_call is not None:
                self._enter(Phase.TOOL_CALL)
                result = await self._call_tool(reply.tool_call)
        finally:
            self._enter(Phase.NONE)
        return Record(
            iteration=Iteration(reply, result),
            model_call_ms=_milliseconds(replied - began),
            tool_call_ms=_milliseconds(time.monotonic() - replied),
        )

    def _enter(self, phase: Phase) -> None:
        self._task.phase = phase
        # The commit that follows the end of an iteration says so. A heartbeat at the same time
        # would delay it.
        if phase is not Phase.NONE:
            self._phase_changed()

    async def _call_model(self, history: History) -> ModelReply:
        """Returns an interrupted reply if `force_at` passed before the call succeeded.

        Raises what the model raises.
        """
        limit_seconds = self._limits.model_timeout_seconds
        partial = PartialReply(self._model.name)
        call = asyncio.ensure_future(self._model.next(history, partial))
        try:
            done = await self._wait(call, timeout_seconds=limit_seconds)
            if call in done:
                return _result_of(call)
            if not done:
                raise ModelFailure(f"The model did not answer within {limit_seconds:g} seconds.")
        except Exception:
            if not self._task.cancel.is_force_due:
                raise
        finally:
            # Still running if it is interrupted, has timed out, or this coroutine is cancelled.
            if not call.done():
                call.cancel()
                await asyncio.wait({call}, timeout=_ABORT_SECONDS)
        return partial.interrupted()

    async def _call_tool(self, tool_call: ToolCall) -> ToolResult:
        if self._task.cancel.is_force_due:
            return ToolResult(status=ToolStatus.INTERRUPTED, output="")
        interrupt = asyncio.Event()
        call = asyncio.ensure_future(self._tool.run(tool_call, interrupt))
        try:
            done = await self._wait(call)
            if call not in done:
                interrupt.set()
                await asyncio.wait({call})
            return _result_of(call)
        finally:
            if not call.done():
                call.cancel()
                await asyncio.wait({call})

    async def _wait(
        self, call: "asyncio.Future[Any]", timeout_seconds: float | None = None
    ) -> "set[asyncio.Future[Any]]":
        """Waits until the call has ended or `force_at` has passed, at most for the timeout.

        The result contains the call if it has ended, and is empty after the timeout.
        """
        forced = asyncio.ensure_future(self._task.cancel.wait_force_due())
        try:
            done, _ = await asyncio.wait(
                {call, forced}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            return done
        finally:
            forced.cancel()


def _result_of(call: "asyncio.Future[T]") -> T:
    if call.cancelled():
        # A CancelledError from inside the call must not look like the cancellation of the loop.
        raise RuntimeError("the call cancelled itself")
    return call.result()


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)

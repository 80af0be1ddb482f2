"""One iteration of a task: the agent's calls in it, and the record of these calls."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar, cast

from evershell.agents.active_task import ActiveTask, OpenCall, TaskFailed
from evershell.agents.own_keys import redacted, redacted_end
from evershell.agents.reply import Reply
from evershell.agents.tools import (
    MAX_OUTPUT_BYTES,
    BoundedOutput,
    ToolResult,
    ToolStatus,
    output_so_far,
    storable,
)
from evershell.core.task import (
    MAX_CALL_TOKENS,
    MAX_MODEL_CHARACTERS,
    MAX_TOOL_CALLS,
    TOKEN_PARTS,
    IterationReported,
    Phase,
)
from evershell.pod.messages import MAX_ARGUMENTS_BYTES

T = TypeVar("T")

# How long a call may take to end after its time limit. After that, the agent stops waiting for it.
_GRACE_SECONDS = 5.0
# The size limit of each recorded text, so that an iteration fits into one message.
_MAX_TEXT_BYTES = 1024 * 1024
# The size limits of the tool calls in a report: of each id and each name, and of all arguments
# together.
_MAX_ID_BYTES = 128
_MAX_ARGUMENTS_BYTES = 24 * 1024
# The size limit of all outputs of an iteration together. The record contains the first output
# twice, and a task may commit about 256 KiB for each iteration (core/agent_rules.py).
_MAX_OUTPUTS_BYTES = 128 * 1024


class CallTimeoutError(TaskFailed, TimeoutError):
    """A call has reached its time limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The time limits of an iteration: one for all its model calls, one for all its tool calls."""

    model_timeout_seconds: float
    tool_timeout_seconds: float


class Calls:
    """The calls of a task that have not ended. Each is an asyncio task."""

    def __init__(self, task: ActiveTask, limits: Limits, phase_changed: Callable[[], None]) -> None:
        self.limits = limits
        # The running calls, in the order in which they began.
        self.running = task.calls
        # The number of tool calls that are being reported before they begin.
        self.beginning = 0
        # The calls that did not end when they were cancelled at their limit.
        self.left: set[asyncio.Future[Any]] = set()
        # Whether the agent's function is being ended, so that no further call may begin.
        self.are_over = False
        self._task = task
        self._phase_changed = phase_changed

    @property
    def are_open(self) -> bool:
        """Whether a call is running or about to begin."""
        return bool(self.running or self.beginning)

    @property
    def is_force_due(self) -> bool:
        """Whether calls must be interrupted."""
        return self._task.cancel.is_force_due

    async def wait(self, opened: OpenCall, call: "asyncio.Future[Any]", seconds: float) -> bool:
        """Waits until the call has ended. Returns False if the call was cancelled at its limit.

        If the call was interrupted, raises CancelledError as soon as the call has ended.
        """
        self.running[call] = opened
        self._note_phase()
        try:
            if self.is_force_due:
                call.cancel()
            await asyncio.wait({call}, timeout=seconds)
            has_failed = not call.done() or call.cancelled() or call.exception() is not None
            if has_failed and self.is_force_due:
                raise asyncio.CancelledError
            if call.done():
                return True
            call.cancel()
            await asyncio.wait({call}, timeout=_GRACE_SECONDS)
            return False
        except asyncio.CancelledError:
            cancel(call)
            await asyncio.wait({call})
            raise
        finally:
            self._note_end(call)

    def _note_end(self, call: "asyncio.Future[Any]") -> None:
        del self.running[call]
        if not call.done():
            self.left.add(call)
            call.add_done_callback(self.left.discard)
        self._note_phase()

    def _note_phase(self) -> None:
        """Sets the phase to the phase of the running call that began last."""
        last = next(reversed(self.running.values()), None)
        phase = Phase.NONE if last is None else last.phase
        has_changed = phase is not self._task.phase
        self._task.phase = phase
        # When the last call ends, no heartbeat is sent: the commit that follows also shows that no
        # call runs, and a heartbeat would delay the commit.
        if has_changed and self.running:
            self._phase_changed()


# A function that reports an iteration. It returns when the control plane has recorded the report,
# and raises CancelledError if the agent's function must end.
Report = Callable[[IterationReported], Awaitable[None]]


class Step:
    """An iteration: a model call, and the tool calls that the model asked for."""

    def __init__(self, number: int, calls: Calls, report: Report) -> None:
        # Counts from 1.
        self.number = number
        self.reply = Reply()
        # Whether a forced cancellation has interrupted a call of this iteration.
        self.is_interrupted = False
        # Whether the record of the iteration is complete, so that no further call may begin.
        self.has_ended = False
        self._calls = calls
        self._has_reply = False
        self._has_failed = False
        self._model_seconds = 0.0
        self._tools: list[_Tool] = []
        self._report = report
        # The tool calls that are beginning or have begun, and how many of them have been reported.
        self._started: list[_Started] = []
        self._reported = 0
        self._reporting = asyncio.Lock()
        # The ids of the tool calls that have been announced but have not begun.
        self._announced: list[str] = []
        # By phase: when the calls of this phase reach the time limit that they share.
        self._ends_at: dict[Phase, float] = {}

    @property
    def has_calls(self) -> bool:
        """Whether a model call has been answered, or a tool call has begun."""
        return self._has_reply or bool(self._tools)

    @property
    def is_whole(self) -> bool:
        """Whether the iteration has calls and has not failed.

        A model call without an answer fails it, and so does a tool call that raises TaskFailed. An
        answer to a later model call undoes this.
        """
        return self.has_calls and not self._has_failed

    async def model_call(self, call: Awaitable[T]) -> T:
        """Waits for a model call, within the time limit, and returns what the call returns.

        Raises what the call raises, CallTimeoutError at the limit, and RuntimeError if the
        iteration has ended. A failed call can be repeated.
        """
        limit_seconds = self._calls.limits.model_timeout_seconds
        known, began = self.reply.known, time.monotonic()
        running = await self._begun(call)
        self._has_failed = True
        opened = OpenCall(
            phase=Phase.MODEL_CALL,
            began=began,
            name=lambda: self.reply.model,
            output=lambda: redacted_end(self.reply.content),
        )
        try:
            if not await self._wait(opened, running, limit_seconds):
                raise CallTimeoutError(
                    f"The model did not answer within {limit_seconds:g} seconds."
                )
            answer = _answer_of(running)
        finally:
            self._model_seconds += time.monotonic() - began
        if self.reply.known == known:
            # The answer may be any object, so reading it may fail.
            with suppress(Exception):
                self.reply.take(answer)
        self._has_reply, self._has_failed = True, False
        return answer

    async def tool_call(
        self,
        name: str,
        arguments: Mapping[str, Any] | str,
        call: Awaitable[T],
        *,
        call_id: str = "",
    ) -> T:
        """Waits for a tool call, within the time limit, and returns what the call returns.

        `arguments` are recorded: a JSON object, or its text as the model wrote it. What the call
        returns is recorded as its output. An exception is recorded too, and raised. If the call is
        cancelled, it may return its output so far. Several calls can run at a time. They share the
        size limits of the recorded texts and outputs.

        Before the call begins, it and the tokens used so far are reported to the control plane.

        At the limit, raises CallTimeoutError, unless the call returns its output so far. Raises
        TaskFailed if the iteration has too many tool calls, and RuntimeError if the iteration has
        ended.
        """
        if call_id in self._announced:
            self._announced.remove(call_id)
        else:
            call_id = call_id or self._next_id()
            self._calls.beginning += 1
            try:
                await self._start(_Started(call_id, name, _text_of(arguments)))
            except BaseException:
                asyncio.ensure_future(call).cancel()
                raise
            finally:
                self._calls.beginning -= 1
        running = await self._begun(call)
        limit_seconds = self._calls.limits.tool_timeout_seconds
        tool = _Tool(call_id, name, arguments)
        self._tools.append(tool)
        opened = OpenCall(
            phase=Phase.TOOL_CALL,
            began=tool.began,
            name=lambda: name,
            arguments=tool.arguments,
            output=partial(output_so_far, running),
        )
        try:
            in_time = await self._wait(opened, running, limit_seconds)
        except asyncio.CancelledError:
            status = ToolStatus.INTERRUPTED if self.is_interrupted else ToolStatus.TIMED_OUT
            tool.result = _so_far(running, status)
            raise
        finally:
            tool.seconds = time.monotonic() - tool.began
        if in_time:
            try:
                answer = _answer_of(running)
            except TaskFailed:
                self._has_failed = True
                raise
            except BaseException as error:
                tool.result = result_of(description_of(error), exit_code=1)
                raise
            tool.result = result_of(answer)
            return answer
        tool.result = _so_far(running, ToolStatus.TIMED_OUT)
        if not _has_answer(running):
            raise CallTimeoutError(f"The tool {name} did not end within {limit_seconds:g} seconds.")
        answer = running.result()
        return cast("T", tool.result) if isinstance(answer, ToolResult) else answer

    async def announce(self, *calls: tuple[str, Mapping[str, Any] | str, str]) -> None:
        """Reports tool calls together, before the first of them begins.

        Each of `calls` is a name, arguments and an id. A call begins when `tool_call` is called
        with its id. Raises TaskFailed if there are too many calls, and CancelledError if they must
        not begin.
        """
        new = {
            call_id: _Started(call_id, name, _text_of(given))
            for name, given, call_id in calls
            if call_id not in self._announced
        }
        await self._start(*new.values())
        self._announced += new

    def payload(self, *, is_interrupted: bool = False) -> dict[str, Any]:
        """The fields of the message IterationCompleted, except the number."""
        has_ended = self.has_calls or not is_interrupted
        model_call = self._model_call("completed" if has_ended else "interrupted")
        payload: dict[str, Any] = {
            "model_call": model_call | {"content": storable_text(self.reply.content)}
        }
        calls = [tool.payload(len(self._tools)) for tool in self._tools]
        if calls:
            payload["tool_call"] = calls[0]
        if len(calls) > 1:
            payload["tool_calls"] = calls
        return payload

    def _model_call(self, status: str) -> dict[str, Any]:
        """The fields of the message ModelCall, except the content."""
        return {
            "model": storable_text(self.reply.model),
            "input_tokens": _count(self.reply.input_tokens),
            "output_tokens": _count(self.reply.output_tokens),
            "duration_ms": _milliseconds(self._model_seconds),
            "status": status,
            **{part: count for part in TOKEN_PARTS if (count := _count(getattr(self.reply, part)))},
        }

    async def _start(self, *calls: "_Started") -> None:
        """Waits until these tool calls are reported.

        Raises TaskFailed if there are too many calls, and CancelledError if they must not begin.
        """
        if self._calls.are_over or self.has_ended:
            # Nothing is reported, because `_begun` will refuse the calls.
            return
        if len(self._started) + len(calls) > MAX_TOOL_CALLS:
            raise TaskFailed(f"An iteration had more than {MAX_TOOL_CALLS} tool calls.")
        self._started += calls
        await self._report_started()
        if self._calls.is_force_due:
            self.is_interrupted = True
            raise asyncio.CancelledError

    async def _report_started(self) -> None:
        """Reports the tool calls so far. Calls that begin together share a report."""
        number = len(self._started)
        async with self._reporting:
            if self._reported >= number or self._calls.are_over:
                return
            # Lets other calls that begin in the same turn of the event loop join the report.
            await asyncio.sleep(0)
            started = list(self._started)
            calls_payload = [each.payload(len(started)) for each in started]
            model_call = self._model_call("completed")
            # Keeps one character more than allowed, so that an over-long name is still recognized
            # as such and gets no price.
            model_call["model"] = model_call["model"][: MAX_MODEL_CHARACTERS + 1]
            await self._report(
                IterationReported(
                    self.number, {"model_call": model_call, "started_calls": calls_payload}
                )
            )
            self._reported = len(started)

    async def _begun(self, call: Awaitable[T]) -> "asyncio.Future[T]":
        """Begins the call, and returns it.

        If the call must not begin, raises RuntimeError or CancelledError.
        """
        running = asyncio.ensure_future(call)
        if self._calls.are_over or self.has_ended:
            running.cancel()
            # The agent may retry in a loop. The sleep gives other asyncio tasks a turn.
            await asyncio.sleep(0)
            if self._calls.are_over:
                raise asyncio.CancelledError
            raise RuntimeError("a call was made on the step of an iteration that has ended")
        return running

    async def _wait(
        self, opened: OpenCall, call: "asyncio.Future[Any]", limit_seconds: float
    ) -> bool:
        now = time.monotonic()
        ends_at = self._ends_at.setdefault(opened.phase, now + limit_seconds)
        try:
            return await self._calls.wait(opened, call, ends_at - now)
        except asyncio.CancelledError:
            self.is_interrupted = self.is_interrupted or self._calls.is_force_due
            raise

    def _next_id(self) -> str:
        position = len(self._started)
        return f"call_{self.number}_{position + 1}" if position else f"call_{self.number}"


@dataclass(frozen=True, slots=True)
class _Started:
    """A tool call in the form in which it is reported before it begins."""

    call_id: str
    name: str
    arguments: str

    def payload(self, calls: int) -> dict[str, Any]:
        """The fields of StartedCall. `calls` is how many tool calls share the size limit."""
        max_bytes = min(MAX_ARGUMENTS_BYTES, _MAX_ARGUMENTS_BYTES // calls)
        return {
            "id": storable_text(self.call_id, _MAX_ID_BYTES),
            "name": storable_text(self.name, _MAX_ID_BYTES),
            "arguments": storable_text(self.arguments, max_bytes),
        }


class _Tool:
    """A tool call in the form in which it is recorded."""

    def __init__(self, call_id: str, name: str, arguments: Mapping[str, Any] | str) -> None:
        self._id = call_id
        self._name = name
        self.arguments = _text_of(arguments)
        self.began = time.monotonic()
        self.seconds = 0.0
        self.result = ToolResult(status=ToolStatus.INTERRUPTED)

    def payload(self, calls: int) -> dict[str, Any]:
        """The fields of ToolCall. `calls` is how many tool calls share the size limits."""
        max_bytes = _MAX_TEXT_BYTES // calls
        output, cut = _bounded(
            storable(redacted(self.result.output)),
            min(MAX_OUTPUT_BYTES, _MAX_OUTPUTS_BYTES // calls),
        )
        return {
            "id": storable_text(self._id, max_bytes),
            "name": storable_text(self._name, max_bytes),
            "arguments": storable_text(self.arguments, max_bytes),
            "result": {
                "status": str(self.result.status),
                "exit_code": self.result.exit_code,
                "output": output,
                "truncated_bytes": self.result.truncated_bytes + cut,
            },
            "duration_ms": _milliseconds(self.seconds),
        }


def cancel(call: "asyncio.Future[Any]") -> None:
    """Cancels the call once: a second CancelledError could interrupt its cleanup."""
    if not (isinstance(call, asyncio.Task) and call.cancelling()):
        call.cancel()


def _answer_of(call: "asyncio.Future[T]") -> T:
    if call.cancelled():
        # A CancelledError from inside the call must not look like the cancellation of the agent.
        raise RuntimeError("the call cancelled itself")
    return call.result()


def _has_answer(call: "asyncio.Future[Any]") -> bool:
    return call.done() and not call.cancelled() and call.exception() is None


def _so_far(call: "asyncio.Future[Any]", status: ToolStatus) -> ToolResult:
    """The recorded result of a call that was cancelled."""
    return replace(result_of(call.result() if _has_answer(call) else None), status=status)


def result_of(answer: object, exit_code: int = 0) -> ToolResult:
    """The recorded result of a call that returned `answer`."""
    if isinstance(answer, ToolResult):
        return answer
    kept, truncated_bytes = _bounded(_text_of(answer))
    return ToolResult(
        status=ToolStatus.EXITED,
        exit_code=exit_code,
        output=kept,
        truncated_bytes=truncated_bytes,
    )


def _bounded(text: str, max_bytes: int = MAX_OUTPUT_BYTES) -> tuple[str, int]:
    """The head and the tail of the text, and how many bytes were cut."""
    output = BoundedOutput(max_bytes)
    output.feed(text.encode(errors="surrogatepass"))
    return output.finish()


def description_of(error: BaseException) -> str:
    """The recorded text of an exception."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 - the agent's own exception has no text
        return type(error).__name__


def _text_of(value: object) -> str:
    """The value as text; empty for None. Values that are no text become JSON, or else a `repr`."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    for text_of in (partial(json.dumps, default=str), repr):
        with suppress(Exception):
            return text_of(value)
    return object.__repr__(value)


def storable_text(value: object, max_bytes: int = _MAX_TEXT_BYTES) -> str:
    """The value as text that can be recorded: without keys, and cut at the limit."""
    return storable(redacted(_text_of(value))).encode()[:max_bytes].decode(errors="ignore")


def _count(tokens: Any) -> int:
    try:
        return min(max(int(tokens), 0), MAX_CALL_TOKENS)
    except (TypeError, ValueError, OverflowError):
        return 0


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)

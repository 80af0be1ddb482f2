"""What the loop asks for the next step: the model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from server.agent.tools import ToolCall, ToolResult, ToolStatus


class ModelFailure(Exception):
    """The model cannot go on. Its text says why, for people, and becomes the reason of the task's
    end.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReply:
    """The reply of the model. The content of a final reply is the task's result, unless
    `result_after_call` applies.
    """

    model: str
    content: str = ""
    tool_call: ToolCall | None = None
    # No further iteration is needed. A chat model is final when it calls no tool.
    final: bool = False
    # The task's result if the tool call of a final reply exits. Ignored if the call is interrupted,
    # times out or does not run.
    result_after_call: str = ""
    # A forced cancellation aborted the call. The reply holds what was received before that, without
    # a tool call.
    is_interrupted: bool = False
    input_tokens: int = 0
    output_tokens: int = 0


class PartialReply:
    """The part of a reply that a model call has received so far.

    The model fills it in. The loop records it when it aborts the call.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        # As reported by the endpoint so far.
        self.input_tokens = 0
        self.output_tokens = 0
        self._texts: list[str] = []

    @property
    def content(self) -> str:
        """The text received so far."""
        return "".join(self._texts)

    def add(self, text: str) -> None:
        """Appends to the content."""
        self._texts.append(text)

    def restart(self) -> None:
        """Discards the content, because the model answers again from the beginning."""
        self._texts.clear()

    def interrupted(self) -> ModelReply:
        """The reply of a call that is aborted now."""
        return ModelReply(
            model=self.model,
            content=self.content,
            is_interrupted=True,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
        )


@dataclass(frozen=True, slots=True)
class Iteration:
    """A model call that is over, and what came of its tool call, if it made one."""

    reply: ModelReply
    result: ToolResult | None


@dataclass(frozen=True, slots=True)
class History:
    """All that a model needs for its next reply."""

    description: str
    iterations: Sequence[Iteration] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where models are served, and how long one call may take."""

    # Up to the path that `/chat/completions` follows. Empty: OpenAI's own.
    base_url: str = ""
    # Empty: the endpoint asks for none.
    api_key: str = field(default="", repr=False)
    timeout_seconds: float = 120.0


class Model(Protocol):
    """Decides the next step of a task. It keeps no state of a task between two calls."""

    @property
    def name(self) -> str:
        """The name recorded for a call that is aborted before the endpoint reports the name of the
        model.
        """

    async def next(self, history: History, partial: PartialReply) -> ModelReply:
        """The next reply. A model that streams adds what it receives to `partial`.

        Raises ModelFailure; a call that is cancelled ends at once.
        """


class ScriptedModel:
    """Runs the non-blank lines of the description as shell commands, one a line and an iteration:
    the same every time, offline.

    The last line's reply is final, so N lines make N iterations. A line `fail: text` raises
    ModelFailure with that text.
    """

    name = "scripted"

    async def next(self, history: History, partial: PartialReply) -> ModelReply:
        """The command of the next line."""
        lines = [line.strip() for line in history.description.splitlines() if line.strip()]
        position = len(history.iterations)
        if position >= len(lines):
            return ModelReply(model=self.name, content="There was no command to run.", final=True)
        line = lines[position]
        if line.startswith("fail:"):
            raise ModelFailure(line.removeprefix("fail:").strip())
        is_last = position == len(lines) - 1
        exited = sum(_has_exited(iteration) for iteration in history.iterations)
        return ModelReply(
            model=self.name,
            result_after_call=_summary(exited + 1, len(lines)) if is_last else "",
            tool_call=ToolCall(
                id=f"call_{position + 1}", name="shell", arguments=json.dumps({"command": line})
            ),
            final=is_last,
        )


def _has_exited(iteration: Iteration) -> bool:
    return iteration.result is not None and iteration.result.status is ToolStatus.EXITED


def _summary(exited: int, commands: int) -> str:
    of_all = "" if exited == commands else f" of {commands}"
    return f"Ran {exited}{of_all} command{'' if commands == 1 else 's'}."

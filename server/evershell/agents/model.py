"""The model, which decides the next step of a task."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from evershell.agents.tools import ToolCall, ToolResult


class ModelFailure(Exception):
    """The model cannot continue. The human-readable text becomes the reason of the task's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReply:
    """The reply of the model."""

    model: str
    # In a final reply, the task's result, unless `result_after_call` applies.
    content: str = ""
    tool_call: ToolCall | None = None
    # Whether the task ends after this reply and its tool call.
    final: bool = False
    # The task's result if the tool call of a final reply exits. Ignored if the call is interrupted,
    # times out or does not run.
    result_after_call: str = ""
    # Whether a forced cancellation aborted the call. The reply has the text that was received
    # before that, and no tool call.
    is_interrupted: bool = False
    input_tokens: int = 0
    output_tokens: int = 0


class PartialReply:
    """The part of a reply that a model call has received so far.

    The model fills it in. The loop records it when it aborts the call.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        # The numbers that the endpoint has reported so far.
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
    """A model call that has ended, and the result of its tool call, if it made one."""

    reply: ModelReply
    result: ToolResult | None


@dataclass(frozen=True, slots=True)
class History:
    """Everything that a model needs for its next reply."""

    description: str
    iterations: Sequence[Iteration] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a model is served, and the time limit of one call."""

    # The URL without `/chat/completions`. Empty for OpenAI's own endpoint.
    base_url: str = ""
    # Empty if the endpoint requires none.
    api_key: str = field(default="", repr=False)
    timeout_seconds: float = 120.0


class Model(Protocol):
    """Decides the next step of a task. It keeps no state of a task between two calls."""

    @property
    def name(self) -> str:
        """Recorded for a call that is aborted before the endpoint reports the model's name."""

    async def next(self, history: History, partial: PartialReply) -> ModelReply:
        """The next reply. A model that streams adds what it receives to `partial`.

        Raises ModelFailure. Must end at once when it is cancelled.
        """

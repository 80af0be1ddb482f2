"""Reads a chat completion: one JSON document, or chunks in server-sent events."""

import json
import re
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel, Field, ValidationError

from evershell.agents.reply import Reply
from evershell.core.task import MAX_TOOL_CALLS

# Limits the answer, because an iteration must fit into one message to the control plane.
_MAX_ANSWER_BYTES = 1024 * 1024
_MAX_QUOTED_CHARACTERS = 300
# How much of an answer is enough to detect a web page.
_HTML_BYTES = 1024
_HTML = re.compile(r"\s*(<!doctype html|<html)", re.IGNORECASE)

_M = TypeVar("_M", bound=BaseModel)


class AnswerError(Exception):
    """The answer cannot be used.

    The text completes a sentence about the endpoint: "answered with …".
    """


class Function(BaseModel):
    """The function of a tool call; in a stream, a part of it."""

    name: str | None = None
    # Some endpoints send the arguments as a JSON object instead of as text.
    arguments: str | dict[str, Any] | None = None

    @property
    def arguments_text(self) -> str:
        """The arguments, or a part of them, as text."""
        return (
            json.dumps(self.arguments) if isinstance(self.arguments, dict) else self.arguments or ""
        )


class FunctionCall(BaseModel):
    """A tool call; in a stream, a part of one."""

    id: str | None = None
    index: int | None = None
    function: Function = Field(default_factory=Function)


class Message(BaseModel):
    """The model's message; in a stream, a part of it."""

    content: str | None = None
    refusal: str | None = None
    tool_calls: list[FunctionCall] | None = Field(None, max_length=MAX_TOOL_CALLS)

    @property
    def text(self) -> str:
        """The human-readable text: the content, or the refusal."""
        return self.content or self.refusal or ""


class _Choice(BaseModel):
    message: Message


class Completion(BaseModel):
    """The fields of a chat completion that are used. Many endpoints omit or misuse the others."""

    choices: list[_Choice] = Field(min_length=1)
    model: str | None = None
    usage: Any = None


class _ChunkChoice(BaseModel):
    delta: Message | None = None
    finish_reason: Any = None


class _Chunk(BaseModel):
    choices: list[_ChunkChoice] | None = None
    model: str | None = None
    usage: Any = None
    error: Any = None


async def receive(response: httpx2.Response, reply: Reply) -> Completion:
    """Reads an answer to its end. Each chunk of a stream is added to `reply` when it arrives.

    Raises AnswerError, and httpx2.TransportError if the connection breaks.
    """
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == "text/event-stream":
        try:
            return await _receive_stream(response, reply)
        except httpx2.SSEError:
            raise _too_long() from None
    received = bytearray()
    async for data in response.aiter_bytes():
        received += data
        _check_size(len(received))
    if is_html(received[:_HTML_BYTES].decode(errors="replace")):
        raise AnswerError("answered with an HTML page, not with JSON; is its base URL right?")
    return _parse(Completion, received)


def quoted(error: Any) -> str:
    """The endpoint's own error message, shortened; empty if there is none."""
    text = error.get("message") if isinstance(error, dict) else error
    if not isinstance(text, str) or is_html(text):
        return ""
    text = " ".join(text.split())
    short = text if len(text) <= _MAX_QUOTED_CHARACTERS else text[:_MAX_QUOTED_CHARACTERS] + "…"
    return short.rstrip(".")


def is_html(text: str) -> bool:
    """Whether the text is a web page."""
    return _HTML.match(text) is not None


async def _receive_stream(response: httpx2.Response, reply: Reply) -> Completion:
    reply.content = ""
    answer = _Streamed(reply)
    async for event in httpx2.EventSource(response, max_event_size=_MAX_ANSWER_BYTES):
        if event.data == "[DONE]":
            return answer.completion()
        if event.data:
            answer.add(_parse(_Chunk, event.data))
    if not answer.is_finished:
        raise AnswerError("ended its answer in the middle")
    return answer.completion()


class _Streamed:
    """Assembles a completion from the chunks of a stream."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._model: str | None = None
        self._usage: Any = None
        # Each tool call, with the parts of its arguments.
        self._calls: list[tuple[FunctionCall, list[str]]] = []
        self._bytes = 0
        self._has_message = False
        # Whether the endpoint has sent a finish reason. Only the usage may follow it.
        self.is_finished = False

    def add(self, chunk: _Chunk) -> None:
        """Appends a chunk. Raises AnswerError."""
        if chunk.error is not None:
            text = quoted(chunk.error)
            raise AnswerError(
                f"ended its answer with an error: {text}"
                if text
                else "ended its answer with an error"
            )
        if chunk.model:
            self._model = self._reply.model = chunk.model
        if chunk.usage is not None:
            self._usage = chunk.usage
            self._reply.set_tokens(chunk.usage)
        for choice in (chunk.choices or [])[:1]:
            self.is_finished |= bool(choice.finish_reason)
            if choice.delta is not None:
                self._add_message(choice.delta)

    def completion(self) -> Completion:
        """The assembled completion. Raises AnswerError."""
        if not self._has_message:
            raise AnswerError("did not answer with a chat completion (the stream has no message)")
        for call, arguments in self._calls:
            call.function.arguments = "".join(arguments)
        message = Message(
            content=self._reply.content, tool_calls=[call for call, _ in self._calls] or None
        )
        return Completion(choices=[_Choice(message=message)], model=self._model, usage=self._usage)

    def _add_message(self, part: Message) -> None:
        self._has_message = True
        if part.text:
            self._count(part.text)
            self._reply.add(part.text)
        for piece in part.tool_calls or []:
            call, arguments = self._call_of(piece)
            call.function.name = call.function.name or piece.function.name
            self._count(piece.function.arguments_text)
            arguments.append(piece.function.arguments_text)

    def _call_of(self, piece: FunctionCall) -> tuple[FunctionCall, list[str]]:
        """The call to which this piece belongs: the latest that it can continue, or a new one."""
        for each in reversed(self._calls):
            if not _is_another(piece, each[0]):
                return each
        if len(self._calls) == MAX_TOOL_CALLS:
            raise AnswerError(f"asked for more than {MAX_TOOL_CALLS} tool calls")
        self._calls.append((piece, []))
        return self._calls[-1]

    def _count(self, text: str) -> None:
        self._bytes += len(text.encode())
        _check_size(self._bytes)


def _is_another(piece: FunctionCall, call: FunctionCall) -> bool:
    """Whether the piece belongs to a call other than `call`.

    Neither the index nor the id is enough: some endpoints give all calls the same index, and some
    give each piece a new id.
    """
    if piece.index is not None and piece.index != call.index:
        return True
    return bool(piece.function.name and piece.id and piece.id != call.id and call.function.name)


def _check_size(size: int) -> None:
    if size > _MAX_ANSWER_BYTES:
        raise _too_long()


def _too_long() -> AnswerError:
    return AnswerError(f"answered with more than {_MAX_ANSWER_BYTES:,} bytes")


def _parse(model: type[_M], data: str | bytearray) -> _M:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    raise AnswerError(
        f"did not answer with a chat completion ({where + ': ' if where else ''}{problem['msg']})"
    )

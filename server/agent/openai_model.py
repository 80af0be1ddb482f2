"""`openai:<model>`: a model behind any endpoint that speaks OpenAI's chat-completions protocol.

This module brings in the `openai` SDK, which takes a second and 30 MB. Only an agent that uses such a model imports it, and does so
at its start.
"""

import asyncio
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from openai import APIConnectionError, APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient
from pydantic import ValidationError

from server.agent.chat import TOOLS, Completion, messages, reply_of
from server.agent.model import Endpoint, History, ModelFailure, ModelReply

_DEFAULT_BASE_URL = "https://api.openai.com/v1"
# Endpoints that check no key are still sent one; the SDK would not start without.
_NO_KEY = "none"
# 429, 5xx and connections that fail or break, after 0.5 s and then twice as long each time, or when the endpoint says.
_MAX_RETRIES = 3
# An iteration must fit into one message to the control plane.
_MAX_ANSWER_BYTES = 1024 * 1024
_MAX_QUOTED_CHARACTERS = 300


class OpenAIModel:
    """Asks the endpoint for the next reply, with the whole history each time; offers the tool `shell`.

    One call takes at most the endpoint's time limit, retries included. It is final when the model calls no tool.
    """

    def __init__(self, model: str, endpoint: Endpoint, max_retries: int = _MAX_RETRIES) -> None:
        """Raises ValueError when the endpoint's settings cannot be used; its text never holds the API key."""
        self._model = model
        self._limit_seconds = endpoint.timeout_seconds
        base_url = endpoint.base_url or _DEFAULT_BASE_URL
        self._host = _host_of(base_url)
        self._api_key = endpoint.api_key.strip()
        if not self._api_key.isascii() or not self._api_key.isprintable():
            raise ValueError("The API key of the model's endpoint holds characters that no header can carry.")
        # The HTTP status of each answer to the call in hand.
        self._statuses: list[int] = []
        client = AsyncOpenAI(
            base_url=base_url,
            api_key=self._api_key or _NO_KEY,
            # The limit is on the whole call, see `next`.
            timeout=None,
            max_retries=max_retries,
            # A connection a call: what a long tool call leaves idle is often cut by the time of the next one.
            default_headers={"connection": "close"},
            http_client=DefaultAsyncHttpxClient(event_hooks={"response": [self._note]}),
        )
        # The first use imports more of the SDK: better here, where nothing waits for the event loop.
        self._completions = client.chat.completions.with_raw_response

    async def next(self, history: History) -> ModelReply:
        """See Model."""
        self._statuses.clear()
        try:
            async with asyncio.timeout(self._limit_seconds):
                response = await self._completions.create(
                    model=self._model,
                    messages=_untyped(messages(history)),
                    tools=_untyped(TOOLS),
                    parallel_tool_calls=False,
                )
        except TimeoutError:
            seen = f"; the last answer was {_named(self._statuses[-1])}" if self._statuses else ""
            raise self._failure(f"did not answer within {self._limit_seconds:g} seconds{seen}") from None
        except APIStatusError as error:
            raise self._failure(_refusal(error)) from None
        except APIConnectionError as error:
            # The SDK's own text is the same for all of them; its cause says what happened.
            raise self._failure(f"could not be reached or broke the connection ({error.__cause__ or error.message})") from None
        return reply_of(self._read(response.http_response.content), self._model, len(history.iterations))

    async def _note(self, response: Any) -> None:
        self._statuses.append(response.status_code)

    def _read(self, body: bytes) -> Completion:
        if len(body) > _MAX_ANSWER_BYTES:
            raise self._failure(f"answered with more than {_MAX_ANSWER_BYTES:,} bytes")
        try:
            return Completion.model_validate_json(body)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
        if _is_html(body.decode(errors="replace")):
            raise self._failure("answered with an HTML page, not with JSON; is its base URL right?")
        where = ".".join(str(part) for part in problem["loc"])
        raise self._failure(f"did not answer with a chat completion ({where + ': ' if where else ''}{problem['msg']})")

    def _failure(self, what: str) -> ModelFailure:
        reason = f"The model's endpoint {self._host} {what}."
        # An endpoint may quote the key that it was sent.
        return ModelFailure(reason.replace(self._api_key, "[API key]") if self._api_key else reason)


def _host_of(base_url: str) -> str:
    """host:port, without what else the URL may carry. Raises ValueError."""
    url = urlsplit(base_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError("The base URL of the model's endpoint must begin with http:// or https:// and a host.")
    return url.hostname if url.port is None else f"{url.hostname}:{url.port}"


def _refusal(error: APIStatusError) -> str:
    """What the endpoint answered, in a few words."""
    status = _named(error.status_code)
    if error.status_code == 401:
        # Its own text would quote parts of the key.
        return f"does not take the API key ({status})"
    body = error.body
    text = body.get("message") if isinstance(body, dict) else body
    if not isinstance(text, str) or not text.strip() or _is_html(text):
        return f"answered {status}"
    text = " ".join(text.split())
    quoted = text if len(text) <= _MAX_QUOTED_CHARACTERS else text[:_MAX_QUOTED_CHARACTERS] + "…"
    return f"answered {status}: {quoted.rstrip('.')}"


def _named(status: int) -> str:
    return f"HTTP {status} (too many requests)" if status == 429 else f"HTTP {status}"


def _is_html(text: str) -> bool:
    return text.lstrip()[:15].lower().startswith(("<!doctype html", "<html"))


def _untyped(value: Sequence[dict[str, Any]]) -> Any:
    """The SDK describes its requests in types of its own, which plain dictionaries have at run time."""
    return value

"""`openai:<model>`: a model behind any endpoint of OpenAI's chat-completions protocol.

Importing the `openai` SDK takes 1 s and 30 MB. Only an agent that uses such a model imports this
module, when it starts.
"""

import asyncio
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx2
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient

from evershell.agents.chat import TOOLS, messages, reply_of
from evershell.agents.completion import AnswerError, Completion, quoted, receive
from evershell.agents.model import Endpoint, History, ModelFailure, ModelReply, PartialReply

_DEFAULT_BASE_URL = "https://api.openai.com/v1"
# The SDK requires a key, so it sends this one to endpoints that require none.
_NO_KEY = "none"
# The SDK retries 429, 5xx and connections that fail or break: after 0.5 s, then after twice as long
# each time, or when the endpoint says.
_MAX_RETRIES = 3
# Streaming parameters of the request, in order of preference. If an endpoint refuses one set, the
# next one is tried.
_STREAMING: Sequence[dict[str, Any]] = (
    {"stream": True, "stream_options": {"include_usage": True}},
    {"stream": True},
    {},
)
_STREAM_PARAMETER = re.compile(r"\bstream(ing|_options)?\b", re.IGNORECASE)


class OpenAIModel:
    """Requests each reply with the whole history. Offers the model the tool `shell`.

    A call takes at most the endpoint's time limit, including retries. A reply is final if the model
    calls no tool.
    """

    def __init__(self, model: str, endpoint: Endpoint, max_retries: int = _MAX_RETRIES) -> None:
        """Raises ValueError if a setting is not valid. Its text never contains the API key."""
        self.name = model
        self._limit_seconds = endpoint.timeout_seconds
        base_url = endpoint.base_url or _DEFAULT_BASE_URL
        self._host = _host_of(base_url)
        self._api_key = endpoint.api_key.strip()
        if not self._api_key.isascii() or not self._api_key.isprintable():
            raise ValueError(
                "The API key of the model's endpoint has characters that no HTTP header can have."
            )
        # State of the current call: the HTTP status of each answer, the text received so far, and
        # the completion once it is complete.
        self._statuses: list[int] = []
        self._partial = PartialReply(model)
        self._completion: Completion | None = None
        # The index in _STREAMING of the parameters that this endpoint accepts.
        self._streaming = 0
        client = AsyncOpenAI(
            base_url=base_url,
            api_key=self._api_key or _NO_KEY,
            # `next` limits the whole call.
            timeout=None,
            max_retries=max_retries,
            # Uses one connection per call. A kept one would be idle during the tool call, and is
            # then often closed before the next model call.
            default_headers={"connection": "close"},
            http_client=DefaultAsyncHttpxClient(event_hooks={"response": [self._receive]}),
        )
        # Accessed here because the first access imports more of the SDK, which would block the
        # event loop later. Any, because the SDK types its requests, which are plain dictionaries
        # here.
        self._completions: Any = client.chat.completions.with_streaming_response

    async def next(self, history: History, partial: PartialReply) -> ModelReply:
        self._statuses.clear()
        self._partial, self._completion = partial, None
        try:
            async with asyncio.timeout(self._limit_seconds):
                await self._ask(history)
        except TimeoutError:
            raise self._failure(self._timeout_problem()) from None
        except AnswerError as error:
            raise self._failure(str(error)) from None
        except APIStatusError as error:
            raise self._failure(_refusal(error)) from None
        except APIConnectionError as error:
            # The SDK's own text is always the same. The cause says what happened.
            raise self._failure(
                f"could not be reached or broke the connection ({error.__cause__ or error.message})"
            ) from None
        assert self._completion is not None
        return reply_of(self._completion, self.name, len(history.iterations))

    async def _ask(self, history: History) -> None:
        """Sends the request. `_receive` has read the answer when this returns."""
        while True:
            try:
                async with self._completions.create(
                    model=self.name,
                    messages=messages(history),
                    tools=TOOLS,
                    parallel_tool_calls=False,
                    **_STREAMING[self._streaming],
                ):
                    return
            except APIStatusError as error:
                if self._streaming == len(_STREAMING) - 1 or not _refuses_to_stream(error):
                    raise
                self._streaming += 1

    async def _receive(self, response: httpx2.Response) -> None:
        """Reads the answer in a hook that the SDK calls before it returns the response.

        The SDK therefore also retries a request whose connection breaks during the answer.
        """
        self._statuses.append(response.status_code)
        if response.is_success:
            self._completion = await receive(response, self._partial)

    def _timeout_problem(self) -> str:
        """The problem of a call that exceeded its time limit."""
        limit = f"within {self._limit_seconds:g} seconds"
        if not self._statuses:
            return f"did not answer {limit}"
        last = self._statuses[-1]
        if last < 300:
            return f"did not finish its answer {limit}"
        return f"did not answer {limit}; the last answer was {_status_text(last)}"

    def _failure(self, problem: str) -> ModelFailure:
        reason = f"The model's endpoint {self._host} {problem}."
        # An endpoint may quote the key.
        return ModelFailure(reason.replace(self._api_key, "[API key]") if self._api_key else reason)


def _host_of(base_url: str) -> str:
    """The host and port of the URL. Its other parts may contain secrets. Raises ValueError."""
    url = urlsplit(base_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(
            "The base URL of the model's endpoint must begin with http:// or https:// and a host."
        )
    return url.hostname if url.port is None else f"{url.hostname}:{url.port}"


def _refusal(error: APIStatusError) -> str:
    """The endpoint's answer, shortened."""
    status = _status_text(error.status_code)
    if error.status_code == 401:
        # The endpoint's own text may quote parts of the key.
        return f"refused the API key ({status})"
    text = quoted(error.body)
    return f"answered {status}: {text}" if text else f"answered {status}"


def _refuses_to_stream(error: APIStatusError) -> bool:
    """Whether the endpoint refused one of the parameters in _STREAMING."""
    return (
        error.status_code in (400, 422)
        and _STREAM_PARAMETER.search(error.response.text) is not None
    )


def _status_text(status: int) -> str:
    return f"HTTP {status} (too many requests)" if status == 429 else f"HTTP {status}"

"""`openai:<model>`: an agent whose model is served over OpenAI's chat-completions protocol.

Importing the `openai` SDK takes 1 s and 30 MB. Only an agent that uses such a model imports this
module, when it starts.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx2
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient

from evershell.agents.active_task import TaskFailed
from evershell.agents.chat import TOOLS, begin, calls_of, exchange
from evershell.agents.completion import AnswerError, Completion, Message, quoted, receive
from evershell.agents.loop import AgentFunction, Task
from evershell.agents.reply import Reply
from evershell.agents.tools import ShellTool, ToolCall, ToolResult, ToolStatus

_DEFAULT_BASE_URL = "https://api.openai.com/v1"
# Sent to endpoints that need no key, because the SDK requires one.
_NO_KEY = "none"
# The SDK retries after 408, 409, 429 and 5xx, and if a connection fails or breaks: first after
# about 0.5 s, then after twice the previous wait, unless the endpoint names another time.
_MAX_RETRIES = 3
# Streaming parameters of the request, in order of preference. If an endpoint refuses one set, the
# next one is tried.
_STREAMING: Sequence[dict[str, Any]] = (
    {"stream": True, "stream_options": {"include_usage": True}},
    {"stream": True},
    {},
)
_STREAM_PARAMETER = re.compile(r"\bstream(ing|_options)?\b", re.IGNORECASE)


def openai_agent(model: "OpenAIModel", shell: ShellTool) -> AgentFunction:
    """An agent whose model decides what the shell runs.

    The model's first answer without a tool call is the result of the task.
    """

    async def agent(task: Task) -> str:
        chat = begin(task.description)
        async for step in task.iterations():
            step.reply.model = model.name
            message = await step.model_call(model.answer(chat, step.reply))
            calls = calls_of(message, step.number)
            if not calls:
                return message.text
            await step.announce(*((call.name, call.arguments, call.id) for call in calls))
            # Calls run one after the other. After each, the shell kills the processes that are
            # left, and it cannot tell them from the processes of another running call.
            results: list[ToolResult] = []
            for call in calls:
                running = _run(shell, call, results)
                results.append(
                    await step.tool_call(call.name, call.arguments, running, call_id=call.id)
                )
            chat += exchange(message.text, calls, results)
        return ""

    return agent


async def _run(shell: ShellTool, call: ToolCall, before: Sequence[ToolResult]) -> ToolResult:
    """Runs the call, unless an earlier call has used up the time limit that all calls share."""
    if any(result.status is ToolStatus.TIMED_OUT for result in before):
        return ToolResult(status=ToolStatus.NOT_RUN, output="There was no time left for it.")
    return await shell.run(call)


class OpenAIModel:
    """Sends the whole chat with each request. Offers the model the tool `shell`.

    A call takes at most the time limit, including retries.
    """

    def __init__(
        self,
        name: str,
        *,
        base_url: str = "",
        api_key: str = "",
        timeout_seconds: float = 120.0,
        max_retries: int = _MAX_RETRIES,
    ) -> None:
        """`base_url` is the URL without `/chat/completions`; empty for OpenAI's own endpoint.

        Raises ValueError if a setting is not valid. The error never contains the API key.
        """
        self.name = name
        self._limit_seconds = timeout_seconds
        base_url = base_url or _DEFAULT_BASE_URL
        self._host = _host_of(base_url)
        self._api_key = api_key.strip()
        if not self._api_key.isascii() or not self._api_key.isprintable():
            raise ValueError(
                "The API key of the model's endpoint has characters that no HTTP header can have."
            )
        # State of the current call: the HTTP status of each answer, the text received so far, and
        # the completion once it is complete.
        self._statuses: list[int] = []
        self._reply = Reply()
        self._completion: Completion | None = None
        # The index in _STREAMING of the parameters that this endpoint accepts.
        self._streaming = 0
        client = AsyncOpenAI(
            base_url=base_url,
            api_key=self._api_key or _NO_KEY,
            # The method `answer` enforces a time limit for the whole call.
            timeout=None,
            max_retries=max_retries,
            # Uses one connection per call. An open connection would be idle during the tool call,
            # and the endpoint would often close it before the next model call.
            default_headers={"connection": "close"},
            http_client=DefaultAsyncHttpxClient(event_hooks={"response": [self._receive]}),
        )
        # Accessed here because the first access imports more of the SDK, which would block the
        # event loop later. The type is Any, because the SDK expects its own types for requests,
        # which are plain dictionaries here.
        self._completions: Any = client.chat.completions.with_streaming_response

    async def answer(self, chat: Sequence[Mapping[str, Any]], reply: Reply) -> Message:
        """The model's next message in the chat. Adds what it receives to `reply`.

        Raises TaskFailed.
        """
        self._statuses.clear()
        self._reply, self._completion = reply, None
        try:
            async with asyncio.timeout(self._limit_seconds):
                await self._ask(chat)
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
        completion = self._completion
        assert completion is not None
        message = completion.choices[0].message
        reply.model, reply.content = completion.model or self.name, message.text
        reply.set_tokens(completion.usage)
        return message

    async def _ask(self, chat: Sequence[Mapping[str, Any]]) -> None:
        """Sends the request. `_receive` has read the answer when this returns."""
        while True:
            try:
                async with self._completions.create(
                    model=self.name,
                    messages=chat,
                    tools=TOOLS,
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
            self._completion = await receive(response, self._reply)

    def _timeout_problem(self) -> str:
        """Describes what the endpoint had not done when the call exceeded its time limit."""
        limit = f"within {self._limit_seconds:g} seconds"
        if not self._statuses:
            return f"did not answer {limit}"
        last = self._statuses[-1]
        if last < 300:
            return f"did not finish its answer {limit}"
        return f"did not answer {limit}; the last answer was {_status_text(last)}"

    def _failure(self, problem: str) -> TaskFailed:
        reason = f"The model's endpoint {self._host} {problem}."
        # The endpoint's answer may quote the key.
        return TaskFailed(reason.replace(self._api_key, "[API key]") if self._api_key else reason)


def _host_of(base_url: str) -> str:
    """The host and port of the URL. The rest of the URL may contain secrets. Raises ValueError."""
    url = urlsplit(base_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(
            "The base URL of the model's endpoint must begin with http:// or https:// and a host."
        )
    return url.hostname if url.port is None else f"{url.hostname}:{url.port}"


def _refusal(error: APIStatusError) -> str:
    """Describes the error with which the endpoint answered."""
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

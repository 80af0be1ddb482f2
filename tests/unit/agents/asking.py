"""Calls the model endpoint of a test: in single calls, or in tasks with the real loop and shell."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from evershell.agents.active_task import ActiveTask, TaskFailed
from evershell.agents.chat import begin, calls_of
from evershell.agents.loop import run_task
from evershell.agents.openai_model import OpenAIModel, openai_agent
from evershell.agents.reply import Reply
from evershell.agents.step import Limits
from evershell.agents.tools import ShellTool, ToolCall
from evershell.core.task import AgentEvent, IterationCompleted, TaskEnded
from tests.support.model_server import Answer, ModelServer

KEY = "sk-a-secret-key"
CHAT = begin("do it")


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer of the endpoint, as OpenAIModel has read it."""

    model: str
    content: str
    input_tokens: int
    output_tokens: int
    tool_calls: list[ToolCall]


def model_at(server: ModelServer, timeout_seconds: float = 30, **changes: Any) -> OpenAIModel:
    settings: dict[str, Any] = {"base_url": server.base_url, "api_key": KEY}
    return OpenAIModel("test", timeout_seconds=timeout_seconds, **(settings | changes))


async def next_reply(
    server: ModelServer,
    *script: Answer,
    chat: Sequence[Mapping[str, Any]] = CHAT,
    **changes: Any,
) -> Answered:
    server.script.extend(script)
    reply = Reply()
    message = await model_at(server, **changes).answer(chat, reply)
    assert message.text == reply.content
    return Answered(
        reply.model,
        reply.content,
        reply.input_tokens,
        reply.output_tokens,
        calls_of(message, 2),
    )


async def failure(server: ModelServer, *script: Answer, **changes: Any) -> str:
    """Makes a call that must fail. Returns the reason of the failure.

    Checks that the reason contains the endpoint, but not the API key.
    """
    with pytest.raises(TaskFailed) as raised:
        await next_reply(server, *script, **changes)
    reason = str(raised.value)
    assert server.host in reason
    assert KEY not in reason
    return reason


class Run(OpenAIModel):
    """Runs a task in the loop and records its iterations."""

    def __init__(
        self, server: ModelServer, files_dir: Path, *script: Answer, **changes: Any
    ) -> None:
        super().__init__("test", base_url=server.base_url, api_key=KEY, timeout_seconds=30)
        server.script.extend(script)
        self.task = ActiveTask(
            **{"id": "t1", "description": "do it", "max_iterations": 10, **changes}
        )
        # The part of the newest reply that has been received.
        self.partial = Reply()
        self._agent = openai_agent(self, ShellTool(files_dir, "ws_1", 1))
        self.iterations: list[Any] = []

    async def end(self, tool_timeout_seconds: float = 30) -> TaskEnded:
        limits = Limits(model_timeout_seconds=30, tool_timeout_seconds=tool_timeout_seconds)
        async with asyncio.timeout(20):
            ending = await run_task(self._agent, self.task, self._commit, limits)
        assert ending is not None
        return ending

    async def answer(self, chat: Sequence[Mapping[str, Any]], reply: Reply) -> Any:
        self.partial = reply
        return await super().answer(chat, reply)

    async def _commit(self, task_id: str, events: Sequence[AgentEvent]) -> bool:
        self.iterations += [
            event.payload for event in events if isinstance(event, IterationCompleted)
        ]
        return True

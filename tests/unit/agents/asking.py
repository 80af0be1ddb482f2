"""Calls of a model at a test endpoint: one by one, or in the real loop with the real shell."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from evershell.agents.active_task import ActiveTask
from evershell.agents.iteration import Limits
from evershell.agents.loop import run_task
from evershell.agents.model import Endpoint, History, ModelFailure, ModelReply, PartialReply
from evershell.agents.openai_model import OpenAIModel
from evershell.agents.tools import ShellTool
from evershell.core.task import AgentEvent, IterationCompleted, TaskEnded
from tests.support.model_server import Answer, ModelServer

KEY = "sk-a-secret-key"
TASK = History("do it")


def model_at(server: ModelServer, timeout_seconds: float = 30, **changes: Any) -> OpenAIModel:
    return OpenAIModel(
        "test",
        Endpoint(base_url=server.base_url, api_key=KEY, timeout_seconds=timeout_seconds),
        **changes,
    )


async def next_reply(
    server: ModelServer, *script: Answer, history: History = TASK, **changes: Any
) -> ModelReply:
    server.script.extend(script)
    return await model_at(server, **changes).next(history, PartialReply("test"))


async def failure(server: ModelServer, *script: Answer, **changes: Any) -> str:
    """The reason of a failed call. Checks that it names the endpoint and not the API key."""
    with pytest.raises(ModelFailure) as raised:
        await next_reply(server, *script, **changes)
    reason = str(raised.value)
    assert server.host in reason
    assert KEY not in reason
    return reason


class Run:
    """Runs a task in the loop, and records its iterations."""

    def __init__(
        self, server: ModelServer, files_dir: Path, *script: Answer, **changes: Any
    ) -> None:
        server.script.extend(script)
        self.task = ActiveTask(
            **{"id": "t1", "description": "do it", "max_iterations": 10, **changes}
        )
        self._model = model_at(server)
        # The partial reply of the latest model call.
        self.partial = PartialReply("")
        self._tool = ShellTool(files_dir, "ws_1", 1, timeout_seconds=30)
        self.iterations: list[Any] = []

    async def end(self) -> TaskEnded:
        async with asyncio.timeout(20):
            ending = await run_task(
                self.task, self, self._tool, self._commit, Limits(model_timeout_seconds=30)
            )
        assert ending is not None
        return ending

    @property
    def name(self) -> str:
        return self._model.name

    async def next(self, history: History, partial: PartialReply) -> ModelReply:
        self.partial = partial
        return await self._model.next(history, partial)

    async def _commit(self, task_id: str, events: Sequence[AgentEvent]) -> bool:
        self.iterations += [
            event.payload for event in events if isinstance(event, IterationCompleted)
        ]
        return True

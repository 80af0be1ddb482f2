"""Agents of the OpenAI Agents SDK, the package `openai-agents`.

An iteration is a turn of the SDK: a response of the model and the tool calls in it. The adapter
does not use the SDK's own cancellation, which leaves tools running. Instead, it gives the SDK
copies of the agent's models and tools. The calls of these copies go through the library.
"""

import asyncio
import copy
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

from evershell.agents.active_task import TaskFailed
from evershell.agents.adapters.threads import threads_end
from evershell.agents.loop import AgentFunction, Task
from evershell.agents.step import Step

# Whether this code runs inside a tool call. If an agent is used as a tool, its model calls are part
# of the tool call.
_is_in_tool: ContextVar[bool] = ContextVar("_is_in_tool", default=False)


class _LoopOver(Exception):
    """The task has no further iteration."""


def agent(
    own: Any, *, conversation: str | None = "conversation.sqlite", **options: Any
) -> AgentFunction:
    """Returns a function for `run` that gives each task to an agent of the SDK.

    Each task continues the conversation of the workspace's previous task. The conversation is kept
    in the file `conversation` in the workspace's files, unless `conversation` is None or the
    options have a `session`. The options are passed to `Runner.run_streamed`.
    """

    async def run(task: Task) -> str:
        from agents import SQLiteSession

        session = SQLiteSession("workspace", conversation) if conversation else None
        try:
            async with threads_end():
                return await _Run(task).result(own, {"session": session} | options)
        finally:
            if session is not None:
                session.close()

    return run


class _Run:
    """The run of an agent on a task."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._steps = aiter(task.iterations())
        self._step: Step | None = None
        # The model's last message.
        self._text = ""
        # The copies of agents and tools, by the `id()` of the original. A copy keeps its original
        # alive, so that no other object gets this id.
        self._copies: dict[int, Any] = {}

    async def result(self, own: Any, options: dict[str, Any]) -> str:
        from agents import RunConfig, Runner

        config = copy.copy(options.get("run_config") or RunConfig())
        config.model_provider = self._provider(config.model_provider)
        if not isinstance(config.model, str | None):
            config.model = self._model(config.model)
        options = {"max_turns": None} | options | {"run_config": config}
        run = Runner.run_streamed(self._agent(own), self._task.description, **options)
        try:
            async for _ in run.stream_events():
                pass
        except _LoopOver:
            return self._text
        finally:
            run.cancel()
            if run.run_loop_task is not None:
                await asyncio.wait({run.run_loop_task})
        if run.interruptions:
            names = ", ".join(str(each.name) for each in run.interruptions)
            raise TaskFailed(f"A tool waits for an approval, which nobody can give: {names}.")
        return str(run.final_output)

    def _agent(self, own: Any) -> Any:
        """A copy of the agent that uses copies of its model, tools and handoffs."""
        from agents import Model

        if id(own) in self._copies:
            return self._copies[id(own)]
        copied = self._copies[id(own)] = copy.copy(own)
        copied.original = own
        if isinstance(own.model, Model):
            copied.model = self._model(own.model)
        copied.handoffs = [self._handoff(each) for each in own.handoffs]

        async def all_tools(context: Any) -> list[Any]:
            return [self._tool(each) for each in await type(own).get_all_tools(copied, context)]

        copied.get_all_tools = all_tools
        return copied

    def _handoff(self, own: Any) -> Any:
        from agents import Handoff

        if not isinstance(own, Handoff):
            return self._agent(own)
        copied = copy.copy(own)

        async def invoke(*arguments: Any) -> Any:
            return self._agent(await own.on_invoke_handoff(*arguments))

        copied.on_invoke_handoff = invoke
        return copied

    def _provider(self, own: Any) -> Any:
        copied = copy.copy(own)
        copied.get_model = lambda name: self._model(own.get_model(name))
        return copied

    def _model(self, own: Any) -> Any:
        copied = copy.copy(own)

        async def stream(*arguments: Any, **named: Any) -> AsyncIterator[Any]:
            events = own.stream_response(*arguments, **named)
            if _is_in_tool.get():
                async for event in events:
                    yield event
                return
            if self._step is None or self._step.has_calls:
                self._step = await anext(self._steps, None)
            if self._step is None:
                raise _LoopOver
            # If the call is interrupted before the endpoint answers, this is the recorded name.
            self._step.reply.model = str(getattr(own, "model", ""))
            for event in await self._step.model_call(_received(events, self._step)):
                yield event
            self._text = self._step.reply.content or self._text

        copied.stream_response = stream
        return copied

    def _tool(self, own: Any) -> Any:
        """A copy of a function tool. The calls of the copy go through the library.

        Other tools are not copied: they run at the model's endpoint or inside the SDK.
        """
        from agents import FunctionTool

        if not isinstance(own, FunctionTool):
            return own
        if id(own) in self._copies:
            return self._copies[id(own)]
        copied = self._copies[id(own)] = copy.copy(own)

        async def call(context: Any, arguments: str) -> Any:
            _is_in_tool.set(True)
            return await own.on_invoke_tool(context, arguments)

        async def invoke(context: Any, arguments: str) -> Any:
            if _is_in_tool.get():
                return await own.on_invoke_tool(context, arguments)
            assert self._step is not None
            return await self._step.tool_call(
                own.name, arguments, call(context, arguments), call_id=context.tool_call_id
            )

        copied.on_invoke_tool = invoke
        return copied


async def _received(events: AsyncIterator[Any], step: Step) -> list[Any]:
    """Receives all events of a response. Adds each part to the step's reply as it arrives."""
    received = []
    async for event in events:
        received.append(event)
        if event.type == "response.created":
            step.reply.model = event.response.model
        elif event.type == "response.output_text.delta":
            step.reply.add(event.delta)
        elif event.type in ("response.completed", "response.incomplete", "response.failed"):
            step.reply.take(event.response)
    return received

"""Agents of Pydantic AI, the package `pydantic-ai-slim`.

An iteration is a request to the model and the tool calls in the response. The adapter runs the
nodes of the agent's graph itself. Pydantic AI records an interrupted call in the messages.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from evershell.agents.active_task import TaskFailed
from evershell.agents.adapters.threads import threads_end
from evershell.agents.loop import AgentFunction, Task
from evershell.agents.step import Step


def agent(
    own: Any, *, conversation: str | None = "conversation.json", **options: Any
) -> AgentFunction:
    """Returns a function for `run` that gives each task to an agent of Pydantic AI.

    Each task continues the conversation of the workspace's previous task. The messages are kept in
    the file `conversation` in the workspace's files, unless `conversation` is None or the options
    have a `message_history`. The options are passed to `Agent.iter`.
    """

    async def run(task: Task) -> str:
        async with threads_end() as threads:
            with own.using_thread_executor(threads):
                if conversation is None or "message_history" in options:
                    return await _Run(task).result(own, options)
                return await _conversing(_Run(task), own, options, Path(conversation))

    return run


async def _conversing(run: "_Run", own: Any, options: dict[str, Any], file: Path) -> str:
    """Runs the agent with the messages in the file. Then stores the whole conversation there."""
    from pydantic_ai import ModelMessagesTypeAdapter
    from pydantic_ai.messages import repair_messages

    history = ModelMessagesTypeAdapter.validate_json(file.read_bytes()) if file.exists() else []
    try:
        return await run.result(own, options | {"message_history": history})
    finally:
        # Adds the missing results of interrupted tool calls: models reject a call without a result.
        messages = repair_messages(run.messages or history)
        new = file.with_name(f"{file.name}.new")
        new.write_bytes(ModelMessagesTypeAdapter.dump_json(messages))
        new.replace(file)


class _Run:
    """The run of an agent on a task."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._step: Step | None = None
        # The conversation so far.
        self.messages: list[Any] = []

    async def result(self, own: Any, options: dict[str, Any]) -> str:
        from pydantic_ai import DeferredToolRequests
        from pydantic_ai.capabilities import Hooks

        capabilities = [*options.get("capabilities", ()), Hooks(tool_execute=self._tool_call)]
        options = options | {"capabilities": capabilities}
        text = ""
        async with own.iter(self._task.description, **options) as run:
            try:
                async for step in self._task.iterations():
                    self._step = step
                    if await self._iterate(run):
                        break
                    text = step.reply.content or text
            finally:
                self.messages = run.all_messages()
                request = getattr(run.next_node, "request", None)
                if request is not None and request not in self.messages:
                    # The request has the results of the last tool calls. It is not sent in this
                    # task, but belongs to the conversation.
                    self.messages = [*self.messages, request]
        if run.result is None:
            return text
        if isinstance(run.result.output, DeferredToolRequests):
            waiting = [*run.result.output.approvals, *run.result.output.calls]
            names = ", ".join(each.tool_name for each in waiting)
            raise TaskFailed(f"A tool waits for an answer, which nobody can give: {names}.")
        return str(run.result.output)

    async def _iterate(self, run: Any) -> bool:
        """Runs the nodes of an iteration. Returns whether the agent is done."""
        from pydantic_ai import Agent

        assert self._step is not None
        node = run.next_node
        while not Agent.is_model_request_node(node):
            node = await run.next(node)
        node = await self._step.model_call(_answered(node, run, self._step))
        while not Agent.is_model_request_node(node):
            if Agent.is_end_node(node):
                return True
            node = await run.next(node)
        return False

    async def _tool_call(
        self, _: Any, *, call: Any, tool_def: Any, args: Any, handler: Callable[..., Awaitable[Any]]
    ) -> Any:
        """The hook through which Pydantic AI calls each tool."""
        assert self._step is not None
        return await self._step.tool_call(
            tool_def.name, call.args or {}, handler(args), call_id=call.tool_call_id
        )


async def _answered(node: Any, run: Any, step: Step) -> Any:
    """Runs the node that sends a request to the model. Keeps the step's reply up to date."""
    # If the call is interrupted before the endpoint answers, this is the recorded name.
    step.reply.model = run.ctx.deps.model.model_name
    async with node.stream(run.ctx) as stream:
        async for _ in stream:
            step.reply.content = stream.response.text or ""
            step.reply.model = stream.response.model_name or step.reply.model
    step.reply.add_tokens(stream.response.usage)
    return await run.next(node)

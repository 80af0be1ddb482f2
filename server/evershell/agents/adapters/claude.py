"""Agents of the Claude Agent SDK, the package `claude-agent-sdk`.

The SDK runs a program `claude`. An iteration is a message of the assistant together with the
results of its tools. The program then waits in a hook until the next iteration may begin. To
interrupt a task, the adapter does not call the SDK's `interrupt()`, but ends the program.
"""

import asyncio
import dataclasses
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from evershell.agents.active_task import TaskFailed
from evershell.agents.adapters.threads import threads_end
from evershell.agents.descendants import Descendants
from evershell.agents.loop import AgentFunction, Task
from evershell.agents.step import Step, result_of
from evershell.agents.tools import ToolResult

# How long the program may wait in the hook: longer than any commit is retried.
_HOOK_SECONDS = 86_400
# How long to wait for the end of a killed process, which may hang in the kernel.
_KILLED_SECONDS = 1.0
# Without this variable, background agents and commands would continue after their iteration and
# after a cancellation.
_ALL_IN_ITERATIONS = {"CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1"}
_END = {"continue_": False, "stopReason": "The task ends here."}


def agent(own: Any = None, *, conversation: str | None = "conversation.claude") -> AgentFunction:
    """Returns a function for `run` that gives each task to an agent with these ClaudeAgentOptions.

    Unless `conversation` is None, each task continues the conversation of the workspace's previous
    task. The program stores the conversation and its own configuration in the folder `conversation`
    in the workspace's files.
    """

    async def run(task: Task) -> str:
        from claude_agent_sdk import ClaudeAgentOptions

        program = _Program()
        options = program.hooked(own or ClaudeAgentOptions())
        # The program needs HOME, which is not set in a pod.
        environment = {"HOME": os.environ.get("HOME", str(Path.cwd()))}
        if conversation is not None:
            environment["CLAUDE_CONFIG_DIR"] = str(Path(conversation).absolute())
            options = dataclasses.replace(options, continue_conversation=True)
        options = dataclasses.replace(options, env=environment | options.env | _ALL_IN_ITERATIONS)
        async with threads_end(), program.running(options):
            return await program.result(task)

    return run


class _Program:
    """The program `claude`, and what it has sent since the last iteration began."""

    def __init__(self) -> None:
        self._client: Any = None
        self._step: Step | None = None
        # Whether the assistant's message is complete and calls tools.
        self._is_answered = False
        # The calls of tools and their results, by the id of the call.
        self._calls: dict[str, Any] = {}
        self._results: dict[str, ToolResult] = {}
        # The ids of the tool calls that are announced to the control plane, so they may begin.
        self._may_begin: set[str] = set()
        # Whether the program waits in the hook.
        self._is_waiting = False
        # The hook waits for this future. Its result is the answer of the hook.
        self._permission: asyncio.Future[dict[str, Any]] | None = None
        # The program's last message, or the error with which the program ended.
        self._end: Any = None
        self._changed = asyncio.Event()

    def hooked(self, own: Any) -> Any:
        """The options, with the hooks and settings that the adapter needs."""
        from claude_agent_sdk import HookMatcher

        # The SDK supports this event, although its types lack the event's name.
        after_tools: Any = "PostToolBatch"
        hooks = dict(own.hooks or {})
        for name, hook in ((after_tools, self._after_tools), ("PreToolUse", self._before_tool)):
            matcher = HookMatcher(hooks=[hook], timeout=_HOOK_SECONDS)
            hooks[name] = [*hooks.get(name, []), matcher]
        return dataclasses.replace(own, hooks=hooks, include_partial_messages=True)

    @asynccontextmanager
    async def running(self, options: Any) -> AsyncIterator[None]:
        """Runs the program.

        At the end of the block, everything that the program has started ends too.
        """
        from claude_agent_sdk import ClaudeSDKClient

        descendants = Descendants()
        self._client = ClaudeSDKClient(options)
        reading: asyncio.Task[None] | None = None
        try:
            await self._client.connect()
            reading = asyncio.create_task(self._read())
            yield
        except BaseException:
            descendants.kill()
            raise
        finally:
            if reading is not None:
                reading.cancel()
            await self._client.disconnect()
            # Commands may have left processes in the background.
            await descendants.wait_gone(0, _KILLED_SECONDS)

    async def result(self, task: Task) -> str:
        """Works on the task until its end."""
        text = ""
        async for step in task.iterations():
            await step.model_call(self._answer(step, task.description))
            text = step.reply.content or text
            await step.announce(
                *((each.name, each.input, each.id) for each in self._calls.values())
            )
            self._may_begin |= self._calls.keys()
            self._changed.set()
            calls = [
                step.tool_call(each.name, each.input, self._result_of(each.id), call_id=each.id)
                for each in self._calls.values()
            ]
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    raise outcome
            await self._until(lambda: self._is_waiting)
            if self._end is not None:
                return self._end.result or text
        if self._step is not None:
            self._permit(_END)
            await self._until(lambda: False)
        return text

    async def _answer(self, step: Step, description: str) -> None:
        """Lets the model continue, and waits until it has called tools or the program has ended."""
        is_first = self._step is None
        self._step, self._calls, self._results = step, {}, {}
        self._is_answered = self._is_waiting = False
        if is_first:
            self._permission = asyncio.get_running_loop().create_future()
            await self._client.query(description)
        else:
            self._permit({})
        await self._until(lambda: self._is_answered)

    async def _result_of(self, call_id: str) -> ToolResult:
        await self._until(lambda: call_id in self._results)
        return self._results[call_id]

    def _permit(self, answer: dict[str, Any]) -> None:
        """Answers the hook in which the program waits, so that the program continues or ends."""
        permission, self._permission = (
            self._permission,
            asyncio.get_running_loop().create_future(),
        )
        assert permission is not None
        permission.set_result(answer)

    async def _before_tool(self, given: Any, call_id: str | None, *_: Any) -> Any:
        """The hook that the program calls before each tool."""
        if "agent_id" not in given:
            await self._until(lambda: call_id in self._may_begin)
        return {}

    async def _after_tools(self, given: Any, *_: Any) -> Any:
        """The hook that the program calls before it gives the results of tools to the model."""
        if "agent_id" in given:
            # The tools belong to a subagent, which runs inside a tool call of this iteration.
            return {}
        assert self._permission is not None
        self._is_waiting = True
        self._changed.set()
        return await asyncio.shield(self._permission)

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Waits until the condition holds or the program has ended.

        Raises the error of a program that has failed.
        """
        while not condition() and self._end is None:
            self._changed.clear()
            await self._changed.wait()
        if isinstance(self._end, Exception):
            raise self._end

    async def _read(self) -> None:
        from claude_agent_sdk import ResultMessage

        try:
            async for message in self._client.receive_response():
                if isinstance(message, ResultMessage):
                    self._end = message
                    if message.is_error:
                        reason = message.result or "; ".join(message.errors or [message.subtype])
                        self._end = TaskFailed(f"Claude failed: {reason}")
                else:
                    self._take(message)
                self._changed.set()
            self._end = self._end or TaskFailed("The program claude ended without a result.")
        except Exception as error:  # noqa: BLE001 - raised again in `_until`
            self._end = error
        self._changed.set()

    def _take(self, message: Any) -> None:
        """Records the content of a message, unless it comes from a subagent."""
        from claude_agent_sdk import ToolResultBlock, ToolUseBlock

        if getattr(message, "parent_tool_use_id", None) is not None or self._step is None:
            return
        event = getattr(message, "event", None)
        if event is not None:
            self._take_event(event, self._step)
            return
        content = getattr(message, "content", ())
        for block in content if isinstance(content, list) else ():
            if isinstance(block, ToolUseBlock):
                self._calls[block.id] = block
            elif isinstance(block, ToolResultBlock):
                self._results[block.tool_use_id] = _result(block)

    def _take_event(self, event: dict[str, Any], step: Step) -> None:
        """Records an event of the model's stream."""
        reply = step.reply
        if event["type"] == "message_start":
            reply.model, reply.content = event["message"]["model"], ""
            # Does not count output tokens yet: `message_delta` reports all of them at the end.
            reply.add_tokens(event["message"]["usage"] | {"output_tokens": 0})
        elif event["type"] == "content_block_delta":
            reply.add(event["delta"].get("text", ""))
        elif event["type"] == "message_delta":
            usage = event["usage"]
            reply.add_tokens({name: usage[name] for name in usage if name.startswith("output")})
        elif event["type"] == "message_stop":
            self._is_answered = bool(self._calls)


def _result(block: Any) -> ToolResult:
    content = block.content or ""
    if not isinstance(content, str):
        content = "".join(part.get("text", f"[{part.get('type')}]") for part in content)
    return result_of(content, exit_code=int(bool(block.is_error)))

"""What the suite needs from each framework: an agent with one tool, and answers of its model."""

import asyncio
import importlib.util
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from evershell.agents.loop import AgentFunction
from tests.support.model_server import (
    DONE,
    Answer,
    Gate,
    ModelServer,
    answers,
    calls_tools,
    event,
    event_of,
    says,
    streams,
)


def need(package: str) -> None:
    """Skips the test if the package is not installed. In CI, such a test fails."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: make .venv/.adapters-ready")


# The token counts of the model server's answers.
ALL_TOKENS = {
    "input_tokens": 11,
    "output_tokens": 7,
    "cached_input_tokens": 5,
    "cache_write_tokens": 3,
    "input_audio_tokens": 2,
    "reasoning_tokens": 4,
    "output_audio_tokens": 1,
}
WITHOUT_AUDIO = {kind: count for kind, count in ALL_TOKENS.items() if "audio" not in kind}


class Framework:
    """A framework that uses OpenAI's chat completions. Other frameworks override what differs."""

    # The package that must be installed.
    package = ""
    # Whether an exception of a tool ends the task. If not, the model gets the error.
    fails_with_tool = False
    # Whether the framework runs synchronous functions in threads.
    has_threads = True
    # Whether the adapter knows the name of the model before the endpoint answers.
    knows_model = True
    # Whether the next task continues the conversation.
    has_conversation = True
    # Whether a forced cancellation keeps what a completed iteration has added to the conversation.
    keeps_at_force = True
    # The name of the tool.
    tool = "shell"
    # The name of the example in examples/.
    example = ""
    # The token counts that the framework reports for a model call.
    tokens: Mapping[str, int] = ALL_TOKENS

    def __init__(self) -> None:
        self._ids = itertools.count(1)

    def agent(self, server: ModelServer, folder: Path) -> AgentFunction:
        """Returns an agent with the tool `shell` of `Commands(folder)`."""
        raise NotImplementedError

    def keys(self, server: ModelServer) -> dict[str, str]:
        """Returns the keys that the example reads."""
        return {"OPENAI_API_KEY": "sk-of-the-tests", "OPENAI_BASE_URL": server.base_url}

    async def close(self) -> None:
        """Closes what the agent has opened."""

    def calls(self, *commands: str, tool: str = "shell") -> Answer:
        """Returns an answer in which the model calls the tool once for each command."""
        named = [(tool, json.dumps({"command": command})) for command in commands]
        return calls_tools(*named, ids=self._ids)

    def says(self, text: str) -> Answer:
        """Returns an answer in which the model says this text."""
        return says(text)

    def says_part(self, text: str, gate: Gate) -> Answer:
        """Returns an answer whose first part is sent at once, and its end once the gate is open."""
        first = event_of({"role": "assistant", "content": text})
        return streams(first, gate, event_of({}, "stop"), DONE)

    def breaks(self) -> Answer:
        """Returns an error of the endpoint that would occur again if the call was repeated."""
        return answers({"error": {"message": "broken"}}, 400)

    def unanswered(self, request: dict[str, Any]) -> set[str]:
        """Returns the ids of tool calls that have no result in a request to the model."""
        messages = request["messages"]
        called = {call["id"] for each in messages for call in each.get("tool_calls") or ()}
        return called - {each.get("tool_call_id") for each in messages}

    def texts(self, request: dict[str, Any]) -> str:
        """Returns the conversation in a request, as text."""
        return json.dumps(request["messages"])


class Commands:
    """The tool of the agents under test.

    It may run in any process, so it uses files to tell the test what it does.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def shell(self, command: str) -> str:
        """Runs a command."""
        kind, _, name = command.partition(" ")
        if kind == "raise":
            raise KeyError(name)
        if kind == "wait":
            (self._folder / f"{name}.began").touch()
            try:
                while not (self._folder / f"{name}.go").exists():
                    await asyncio.sleep(0.01)
            finally:
                (self._folder / f"{name}.ended").touch()
        return f"did {command}"

    def blocking_shell(self, command: str) -> str:
        """Like `shell`, for a framework that calls the tool in a thread."""
        return asyncio.run(self.shell(command))


class OpenAIAgents(Framework):
    package = "agents"
    example = "openai_agents_agent.py"
    # The SDK's usage has no counts for audio.
    tokens = WITHOUT_AUDIO

    def agent(self, server: ModelServer, folder: Path) -> AgentFunction:
        import agents
        from openai import AsyncOpenAI

        from evershell.agents.adapters import openai_agents

        agents.set_tracing_disabled(True)
        client = AsyncOpenAI(base_url=server.base_url, api_key="k", max_retries=0)
        self.close = client.close  # type: ignore[method-assign]
        commands = Commands(folder)
        own = agents.Agent(
            name="test",
            model=agents.OpenAIChatCompletionsModel("test", client),
            tools=[
                agents.function_tool(commands.shell),
                agents.function_tool(commands.blocking_shell),
            ],
        )
        return openai_agents.agent(own)


class LangGraph(Framework):
    package = "langgraph"
    # By default, LangGraph's ToolNode does not catch an exception of a tool, so it ends the graph.
    fails_with_tool = True
    example = "langgraph_agent.py"

    def agent(self, server: ModelServer, folder: Path) -> AgentFunction:
        import httpx
        from langchain_core.tools import StructuredTool
        from langchain_openai import ChatOpenAI
        from langgraph.graph import START, MessagesState, StateGraph
        from langgraph.prebuilt import ToolNode, tools_condition

        from evershell.agents.adapters import langgraph

        commands = Commands(folder)
        client = httpx.AsyncClient()
        self.close = client.aclose  # type: ignore[method-assign]
        model = ChatOpenAI(
            model="test",
            base_url=server.base_url,
            api_key="k",
            max_retries=0,
            streaming=True,
            stream_usage=True,
            http_async_client=client,
        )
        tools = [
            StructuredTool.from_function(coroutine=commands.shell),
            StructuredTool.from_function(commands.blocking_shell),
        ]
        bound = model.bind_tools(tools)

        async def ask(state: Any) -> Any:
            return {"messages": [await bound.ainvoke(state["messages"])]}

        builder = StateGraph(MessagesState)
        builder.add_node("ask", ask)
        builder.add_node("tools", ToolNode(tools))
        builder.add_edge(START, "ask")
        builder.add_conditional_edges("ask", tools_condition)
        builder.add_edge("tools", "ask")
        return langgraph.agent(builder.compile())


class PydanticAI(Framework):
    package = "pydantic_ai"
    fails_with_tool = True
    example = "pydantic_ai_agent.py"

    def agent(self, server: ModelServer, folder: Path) -> AgentFunction:
        import pydantic_ai
        from openai import AsyncOpenAI
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider

        from evershell.agents.adapters import pydantic_ai as adapter

        client = AsyncOpenAI(base_url=server.base_url, api_key="k", max_retries=0)
        self.close = client.close  # type: ignore[method-assign]
        commands = Commands(folder)
        own = pydantic_ai.Agent(
            OpenAIChatModel("test", provider=OpenAIProvider(openai_client=client)),
            tools=[commands.shell, commands.blocking_shell],
        )
        return adapter.agent(own)


class Claude(Framework):
    """The Claude Agent SDK. Its program calls an endpoint with Anthropic's protocol."""

    package = "claude_agent_sdk"
    # The SDK supports only asynchronous tools.
    has_threads = False
    knows_model = False
    keeps_at_force = False
    example = "claude_agent.py"
    tool = "mcp__test__shell"
    tokens = WITHOUT_AUDIO | {"cache_write_1h_tokens": 2}

    def agent(self, server: ModelServer, folder: Path) -> AgentFunction:
        from claude_agent_sdk import (
            AgentDefinition,
            ClaudeAgentOptions,
            ToolAnnotations,
            create_sdk_mcp_server,
            tool,
        )

        from evershell.agents.adapters import claude

        commands = Commands(folder)

        # The SDK runs tool calls in parallel only if they are marked as read-only.
        @tool("shell", "Runs a command.", {"command": str}, ToolAnnotations(readOnlyHint=True))
        async def shell(arguments: dict[str, Any]) -> dict[str, Any]:
            text = await commands.shell(arguments["command"])
            return {"content": [{"type": "text", "text": text}]}

        own = ClaudeAgentOptions(
            mcp_servers={"test": create_sdk_mcp_server("test", tools=[shell])},
            allowed_tools=[self.tool, "Bash"],
            tools=["Agent", "Bash"],
            agents={"inner": AgentDefinition("An agent.", "Do it.")},
            cli_path=self.program(folder),
            env={
                "HOME": str(folder),
                "TMPDIR": str(folder),
                "ANTHROPIC_API_KEY": "k",
                "ANTHROPIC_BASE_URL": f"http://{server.host}",
                "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
                # Otherwise, the model would have to search for the tool first.
                "ENABLE_TOOL_SEARCH": "0",
            },
        )
        return claude.agent(own)

    @staticmethod
    def program(folder: Path, start: str = "") -> Path:
        """Writes a program to run in place of the SDK's program.

        It runs `start`, waits while the file `hold` exists, and then becomes the SDK's program.
        """
        import claude_agent_sdk

        real = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
        program = folder / "claude"
        program.write_text(
            f"#!/bin/sh\ntouch {folder}/claude.began\n{start}\n"
            f"while [ -e {folder}/hold ]; do sleep 0.01; done\n"
            f'exec {real} "$@"\n'
        )
        program.chmod(0o755)
        return program

    def keys(self, server: ModelServer) -> dict[str, str]:
        return {
            "ANTHROPIC_API_KEY": "sk-of-the-tests",
            "ANTHROPIC_BASE_URL": f"http://{server.host}",
        }

    def calls(self, *commands: str, tool: str = "") -> Answer:
        return self.calls_tool(self.tool, *({"command": command} for command in commands))

    def calls_tool(self, name: str, *arguments: dict[str, Any]) -> Answer:
        """Returns an answer in which the model calls a tool once with each of the arguments."""
        blocks = [
            (
                {"type": "tool_use", "id": f"call_{next(self._ids)}", "name": name, "input": {}},
                {"type": "input_json_delta", "partial_json": json.dumps(each)},
            )
            for each in arguments
        ]
        return streams(*self._message(*blocks), *self._end("tool_use"))

    def says(self, text: str) -> Answer:
        return streams(*self._message(self._text(text)), *self._end("end_turn"))

    def says_part(self, text: str, gate: Gate) -> Answer:
        return streams(*self._message(self._text(text))[:-1], gate, *self._end("end_turn"))

    def breaks(self) -> Answer:
        error = {"type": "invalid_request_error", "message": "broken"}
        return answers({"type": "error", "error": error}, 400)

    def unanswered(self, request: dict[str, Any]) -> set[str]:
        blocks = [
            block
            for each in request["messages"]
            for block in each["content"]
            if isinstance(block, dict)
        ]
        called = {each["id"] for each in blocks if each["type"] == "tool_use"}
        return called - {each.get("tool_use_id") for each in blocks}

    @staticmethod
    def _text(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"type": "text", "text": ""}, {"type": "text_delta", "text": text}

    def _message(self, *blocks: tuple[dict[str, Any], dict[str, Any]]) -> list[bytes]:
        """Returns the events of a message, up to the end of its last block.

        Each block is given as its beginning and its delta.
        """
        message = {
            "id": f"msg_{next(self._ids)}",
            "type": "message",
            "role": "assistant",
            "model": "test",
            "content": [],
            "usage": {
                # In this protocol, the input tokens do not include tokens that were cached.
                "input_tokens": 3,
                "cache_read_input_tokens": 5,
                "cache_creation_input_tokens": 3,
                "cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 2},
                "output_tokens": 1,
            },
        }
        events = [self._event("message_start", message=message)]
        for index, (first, rest) in enumerate(blocks):
            events += [
                self._event("content_block_start", index=index, content_block=first),
                self._event("content_block_delta", index=index, delta=rest),
                self._event("content_block_stop", index=index),
            ]
        return events

    def _end(self, reason: str) -> list[bytes]:
        delta = {"stop_reason": reason}
        usage = {"output_tokens": 7, "output_tokens_details": {"thinking_tokens": 4}}
        return [
            self._event("message_delta", delta=delta, usage=usage),
            self._event("message_stop"),
        ]

    @staticmethod
    def _event(kind: str, **fields: Any) -> bytes:
        return f"event: {kind}\n".encode() + event({"type": kind} | fields)


FRAMEWORKS: dict[str, Callable[[], Framework]] = {
    "openai_agents": OpenAIAgents,
    "langgraph": LangGraph,
    "pydantic_ai": PydanticAI,
    "claude": Claude,
}

"""Handoffs, agents as tools, approvals and sessions of the OpenAI Agents SDK."""

import importlib.util
import itertools
import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from evershell.core.task import IterationCompleted, TaskEnded, TaskStatus
from tests.support.model_server import ModelServer, calls_tools, model_server, says
from tests.unit.agents.long.adapters.frameworks import need
from tests.unit.agents.loop_world import World, a_task, run_loop

agents: Any = importlib.import_module("agents") if importlib.util.find_spec("agents") else None


@pytest.fixture(autouse=True)
def _needs_the_sdk() -> None:
    need("agents")


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as running:
        yield running


@pytest.fixture
async def model(server: ModelServer) -> AsyncIterator[Any]:
    from openai import AsyncOpenAI

    agents.set_tracing_disabled(True)
    async with AsyncOpenAI(base_url=server.base_url, api_key="k", max_retries=0) as client:
        yield agents.OpenAIChatCompletionsModel("test", client)


async def ended(own: Any, **options: Any) -> tuple[TaskEnded, list[Any]]:
    from evershell.agents.adapters import openai_agents

    world = World([])
    function = openai_agents.agent(own, conversation=None, **options)
    ending = await run_loop(world, a_task(), 30, function)
    assert ending is not None
    iterations = [each for each in world.committed if isinstance(each, IterationCompleted)]
    return ending, [each.payload for each in iterations]


def call(name: str, **arguments: str) -> Any:
    return calls_tools((name, json.dumps(arguments)), ids=_ids)


_ids = itertools.count(1)


@pytest.mark.parametrize("as_object", [False, True])
async def test_a_handoff_is_an_iteration_and_both_agents_know_each_other(
    server: ModelServer, model: Any, as_object: bool
) -> None:
    @agents.function_tool
    async def shell() -> str:
        return "did"

    first = agents.Agent(name="first", model=model)
    second = agents.Agent(name="second", model=model, tools=[shell], handoffs=[first])
    first.handoffs = [agents.handoff(second) if as_object else second]
    server.script.extend(
        [
            call("transfer_to_second"),
            call("shell"),
            call("transfer_to_first"),
            says("the result"),
        ]
    )
    ending, iterations = await ended(first)
    assert (ending.status, ending.result) == (TaskStatus.COMPLETED, "the result")
    assert [each["model_call"]["input_tokens"] for each in iterations] == [11, 11, 11, 11]
    assert ["tool_call" in each for each in iterations] == [False, True, False, False]


@pytest.mark.parametrize("on_stream", [None, lambda event: None], ids=["whole", "streams"])
async def test_an_agent_that_is_a_tool_is_part_of_its_tool_call(
    server: ModelServer, model: Any, on_stream: Any
) -> None:
    """The inner agent names its model, so the model comes from the provider of the run."""

    class Provider(agents.ModelProvider):
        def get_model(self, name: str | None) -> Any:
            return model

    inner = agents.Agent(name="inner", model="named")
    tool = inner.as_tool("ask", "Asks.", on_stream=on_stream)
    outer = agents.Agent(name="outer", model="named", tools=[tool])
    server.script.extend([call("ask", input="what"), says("the answer"), says("the result")])
    config = agents.RunConfig(model_provider=Provider())
    ending, iterations = await ended(outer, run_config=config)
    assert (ending.status, ending.result) == (TaskStatus.COMPLETED, "the result")
    first, _ = iterations
    assert (first["tool_call"]["name"], first["tool_call"]["result"]["output"]) == (
        "ask",
        "the answer",
    )


async def test_a_tool_that_needs_an_approval_ends_the_task(server: ModelServer, model: Any) -> None:
    @agents.function_tool(needs_approval=True)
    async def shell() -> str:
        raise AssertionError("it was not approved")

    server.script.append(call("shell"))
    ending, iterations = await ended(agents.Agent(name="a", model=model, tools=[shell]))
    assert (ending.status, len(iterations)) == (TaskStatus.FAILED, 1)
    assert ending.reason == "A tool waits for an approval, which nobody can give: shell."


# The code of an MCP server with one tool. The SDK starts the server.
MCP_SERVER = """
from mcp.server.mcpserver import MCPServer

server = MCPServer("test")

@server.tool()
def shell(command: str) -> str:
    return f"did {command}"

server.run("stdio")
"""


async def test_a_tool_of_an_mcp_server_is_recorded(
    server: ModelServer, model: Any, tmp_path: Path
) -> None:
    from agents.mcp import MCPServerStdio

    program = tmp_path / "tools.py"
    program.write_text(MCP_SERVER)
    server.script.extend([call("shell", command="ls"), says("the result")])
    command = {"command": sys.executable, "args": [str(program)]}
    async with MCPServerStdio(params=command, client_session_timeout_seconds=60) as tools:
        own = agents.Agent(name="a", model=model, mcp_servers=[tools])
        ending, iterations = await ended(own)
    assert (ending.status, ending.result) == (TaskStatus.COMPLETED, "the result")
    tool = iterations[0]["tool_call"]
    assert (tool["name"], tool["arguments"]) == ("shell", '{"command": "ls"}')
    assert "did ls" in tool["result"]["output"]


async def test_a_session_of_ones_own(server: ModelServer, model: Any, tmp_path: Path) -> None:
    session = agents.SQLiteSession("own", tmp_path / "own.sqlite")
    server.script.append(says("the result"))
    await ended(agents.Agent(name="a", model=model), session=session)
    assert len(await session.get_items()) == 2
    session.close()

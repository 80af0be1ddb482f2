"""Graphs of LangGraph that have another structure than the graph in frameworks.py."""

import asyncio
import importlib.util
import itertools
import json
import threading
from typing import Any, TypedDict

import pytest

from evershell.core.task import IterationCompleted, TaskEnded, TaskStatus
from tests.support.model_server import ModelServer, calls_tools, model_server, says
from tests.unit.agents.long.adapters.frameworks import need
from tests.unit.agents.loop_world import World, a_task, run_loop

HAS_LANGGRAPH = importlib.util.find_spec("langgraph") is not None
graphs: Any = importlib.import_module("langgraph.graph") if HAS_LANGGRAPH else None
_ids = itertools.count(1)


@pytest.fixture(autouse=True)
def _needs_the_package() -> None:
    need("langgraph")


class State(TypedDict, total=False):
    text: str


class Run:
    """Runs a graph on a task, and collects its iterations."""

    def __init__(self, graph: Any, **changes: Any) -> None:
        from evershell.agents.adapters import langgraph

        self.world, self.task = World([]), a_task()
        function = langgraph.agent(graph, **({"conversation": None} | changes))
        self._running = asyncio.create_task(run_loop(self.world, self.task, 30, function))

    async def end(self) -> tuple[TaskEnded, list[Any]]:
        ending = await self._running
        assert ending is not None
        iterations = [each for each in self.world.committed if isinstance(each, IterationCompleted)]
        return ending, [each.payload for each in iterations]


def line(*nodes: Any, state: Any = State) -> Any:
    """Builds a graph of these functions, which run one after another."""
    builder = graphs.StateGraph(state)
    for node in nodes:
        builder.add_node(node.__name__, node)
    for before, after in itertools.pairwise([graphs.START, *(each.__name__ for each in nodes)]):
        builder.add_edge(before, after)
    return builder.compile()


TEXT = {"to_input": lambda task: {"text": task.description}}


@pytest.mark.parametrize("cancelled", [False, True])
async def test_each_super_step_of_a_graph_without_a_model_is_an_iteration(cancelled: bool) -> None:
    ran = []

    async def one(state: State) -> State:
        ran.append("one")
        run.task.cancel.is_requested = cancelled
        return {"text": "1"}

    async def two(state: State) -> State:
        ran.append("two")
        return {"text": "2"}

    run = Run(line(one, two), **TEXT)
    ending, iterations = await run.end()
    if cancelled:
        assert (ending.status, ran, len(iterations)) == (TaskStatus.CANCELLED, ["one"], 1)
        assert ending.result == "{'text': '1'}"
    else:
        assert (ending.status, ran, len(iterations)) == (TaskStatus.COMPLETED, ["one", "two"], 2)
        assert ending.result == "{'text': '2'}"


async def test_a_synchronous_node_and_tool_are_recorded() -> None:
    """The callbacks of the node and of the tool come from other threads."""
    # In debug mode, calls to the event loop from other threads fail if they are not thread-safe.
    asyncio.get_running_loop().set_debug(True)
    with model_server() as server:
        ending, iterations = await Run(_with_threads(server)).end()
    assert (ending.status, ending.result) == (TaskStatus.COMPLETED, "the result")
    first, second = iterations
    assert first["tool_call"]["result"]["output"] == "did"
    assert (second["model_call"]["input_tokens"], second["model_call"]["content"]) == (
        11,
        "the result",
    )


def _with_threads(server: ModelServer) -> Any:
    import httpx
    from langchain_core.tools import StructuredTool
    from langchain_openai import ChatOpenAI
    from langgraph.prebuilt import ToolNode, tools_condition

    def shell() -> str:
        """Runs in a thread."""
        assert threading.current_thread() is not threading.main_thread()
        return "did"

    tool = StructuredTool.from_function(shell)

    def ask(state: Any) -> Any:
        with httpx.Client() as client:
            model = ChatOpenAI(
                model="test", base_url=server.base_url, api_key="k", http_client=client
            )
            return {"messages": [model.bind_tools([tool]).invoke(state["messages"])]}

    server.script.extend([calls_tools(("shell", json.dumps({})), ids=_ids), says("the result")])
    builder = graphs.StateGraph(graphs.MessagesState)
    builder.add_node("ask", ask)
    builder.add_node("tools", ToolNode([tool]))
    builder.add_edge(graphs.START, "ask")
    builder.add_conditional_edges("ask", tools_condition)
    builder.add_edge("tools", "ask")
    return builder.compile()


async def test_a_graph_that_is_interrupted_while_it_keeps_its_state_stays_valid() -> None:
    """A node asks for a tool call, and the interruption comes before the graph's state is saved."""
    from langchain_core.messages import AIMessage
    from langgraph.checkpoint.memory import InMemorySaver

    asked: list[str] = []

    async def ask(state: Any) -> Any:
        asked.append(f"c{len(asked)}")
        return {
            "messages": [AIMessage("", tool_calls=[{"name": "t", "args": {}, "id": asked[-1]}])]
        }

    class Saver(InMemorySaver):
        async def aput(self, *arguments: Any) -> Any:
            if len(asked) == 1 and not run.task.cancel.is_requested:
                run.task.cancel.request(0)
                await asyncio.Event().wait()
            return await super().aput(*arguments)

    graph = line(ask, state=graphs.MessagesState)
    graph.checkpointer = Saver()
    run = Run(graph)
    ending, _ = await run.end()
    assert (ending.status, ending.forced) == (TaskStatus.CANCELLED, True)
    await Run(graph).end()
    state = graph.get_state({"configurable": {"thread_id": "workspace"}})
    types = [each.type for each in state.values["messages"]]
    assert types == ["human", "ai", "tool", "human", "ai"]


async def test_an_entrypoint_is_one_iteration() -> None:
    """An entrypoint runs until its last task has ended: it cannot be stopped between two tasks."""
    from langgraph.func import entrypoint, task

    @task
    async def part(text: str) -> str:
        return f"did {text}"

    @entrypoint()
    async def flow(text: str) -> str:
        first = await part(text)
        run.task.cancel.request()
        return f"{first}, {await part('more')}"

    run = Run(flow, to_input=lambda each: each.description)
    ending, iterations = await run.end()
    assert (ending.status, len(iterations)) == (TaskStatus.CANCELLED, 1)
    assert ending.result == "did d, did more"


async def test_a_reply_that_a_node_does_not_read_to_its_end() -> None:
    """If a node stops reading a reply, LangChain does not report the end of the call."""
    import httpx
    from langchain_openai import ChatOpenAI

    async def one(state: Any) -> Any:
        async with httpx.AsyncClient() as client:
            model = ChatOpenAI(
                model="test", base_url=server.base_url, api_key="k", http_async_client=client
            )
            chunks = model.astream(state["messages"])
            async for chunk in chunks:
                if chunk.text:
                    break
            await chunks.aclose()

    async def two(state: Any) -> Any:
        """Adds a second iteration."""

    with model_server() as server:
        server.script.append(says("a long result"))
        ending, iterations = await Run(line(one, two, state=graphs.MessagesState)).end()
    assert (ending.status, len(iterations)) == (TaskStatus.COMPLETED, 2)


async def test_a_graph_that_waits_for_an_answer_ends_the_task() -> None:
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.types import interrupt

    async def one(state: State) -> State:
        return {"text": interrupt("which?")}

    graph = line(one)
    graph.checkpointer = InMemorySaver()
    ending, _ = await Run(graph, **TEXT).end()
    assert ending.reason == "The graph waits for an answer, which nobody can give."


async def test_a_call_that_nobody_answers_does_not_lengthen_an_iteration() -> None:
    """The graph uses the tool call of a message as a route, so the call never gets a result."""
    from langchain_core.messages import AIMessage

    ran = []

    async def one(state: Any) -> Any:
        ran.append("one")
        call = {"name": "route", "args": {}, "id": "c", "type": "tool_call"}
        return {"messages": [AIMessage("", tool_calls=[call])]}

    async def two(state: Any) -> Any:
        ran.append("two")
        run.task.cancel.request()
        return {"messages": [AIMessage("two")]}

    async def three(state: Any) -> Any:
        raise AssertionError("it was cancelled")

    run = Run(line(one, two, three, state=graphs.MessagesState))
    ending, _ = await run.end()
    assert (ending.status, ending.result, ran) == (TaskStatus.CANCELLED, "two", ["one", "two"])

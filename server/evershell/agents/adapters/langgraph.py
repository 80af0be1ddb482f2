"""Graphs of LangGraph, the package `langgraph`.

An iteration is a super-step of the graph. If the next super-step runs the model's tool calls, it
belongs to the same iteration. A graph begins a super-step only when the adapter asks for the next
event. LangChain's callbacks report when the calls of models and tools begin and end. For each call,
`Step` awaits a future that the callbacks complete. An interrupted graph waits for its nodes, except
for nodes that run in threads.
"""

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any
from uuid import UUID

from evershell.agents.active_task import TaskFailed
from evershell.agents.adapters.threads import threads_end
from evershell.agents.loop import AgentFunction, Task
from evershell.agents.step import CallTimeoutError, Step

# Names the conversation in the checkpointer: a workspace has only one.
_CONFIG: dict[str, Any] = {"configurable": {"thread_id": "workspace"}}
_INTERRUPTED = "The call was interrupted. It may have had an effect."


def agent(
    graph: Any,
    *,
    conversation: str | None = "conversation.sqlite",
    to_input: Callable[[Task], Any] = lambda task: {"messages": [("user", task.description)]},
) -> AgentFunction:
    """Returns a function for `run` that gives each task to a compiled graph.

    With a checkpointer, each task continues from the state in which the workspace's previous task
    left the graph. Unless `conversation` is None, a graph without a checkpointer gets one that
    stores the state in the file `conversation` in the workspace's files. This checkpointer needs
    the package `langgraph-checkpoint-sqlite`.
    """

    async def run(task: Task) -> str:
        async with threads_end(), AsyncExitStack() as stack:
            own = copy.copy(graph)
            if conversation is not None and own.checkpointer is None:
                own.checkpointer = await stack.enter_async_context(_saver(conversation))
            return await _Run(task, own).result(to_input(task))

    return run


@asynccontextmanager
async def _saver(path: str) -> AsyncIterator[Any]:
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        # Tools can change the file, so only values of known types are loaded from it.
        saver.serde = JsonPlusSerializer(allowed_msgpack_modules=None)
        yield saver


class _Run:
    """The run of a graph on a task."""

    def __init__(self, task: Task, graph: Any) -> None:
        self._graph = graph
        self._steps = aiter(task.iterations())
        self._calls = _Calls()
        # The values of the graph's state.
        self._values: Any = None
        # The tool calls that had no result when the iteration began.
        self._known: set[str] = set()

    async def result(self, given: Any) -> str:
        async with asyncio.TaskGroup() as self._calls.group:
            await self._run_graph(await self._repaired(given))
        return _last_text(self._values)

    async def _repaired(self, given: Any) -> Any:
        """The input, with a result for each tool call that a cancellation has interrupted."""
        from langchain_core.messages import ToolMessage
        from langgraph.graph import END

        if not self._graph.checkpointer:
            return given
        state = await self._graph.aget_state(_CONFIG)
        if state.tasks:
            # The previous task was interrupted in a super-step. This call ends the super-step and
            # keeps what its nodes have written.
            await self._graph.aupdate_state(_CONFIG, None, as_node=END)
            state = await self._graph.aget_state(_CONFIG)
        unanswered = _unanswered(state.values)
        if not isinstance(given, dict) or "messages" not in given:
            return given
        results = [ToolMessage(_INTERRUPTED, tool_call_id=each) for each in unanswered]
        return given | {"messages": [*results, *given["messages"]]}

    async def _run_graph(self, given: Any) -> None:
        if not await self._next_step():
            return
        config = _CONFIG | {"callbacks": [_handler(self._calls)]}
        # The ids of the running nodes, the ids of the tool calls that had no result after the last
        # super-step, and whether any node has begun.
        running, unanswered, has_begun = set[str](), list[str](), False
        events = self._graph.astream(
            given,
            config,
            stream_mode=["tasks", "values"],
            # With "sync", a super-step begins only when the state of the previous one is stored.
            durability="sync" if self._graph.checkpointer else None,
        )
        async with aclosing(events):
            async for kind, event in events:
                if kind == "values":
                    self._values = event
                elif "triggers" not in event:
                    running.discard(event["id"])
                    if event["interrupts"]:
                        raise TaskFailed("The graph waits for an answer, which nobody can give.")
                else:
                    # The event announces a node, which runs only when the next event is requested.
                    if not has_begun:
                        self._known.update(_unanswered(self._values))
                    elif not running:
                        before, unanswered = unanswered, self._new_unanswered()
                        is_over = not unanswered or unanswered == before
                        if not is_over:
                            await self._announce(unanswered)
                        elif not await self._next_step():
                            return
                    has_begun = True
                    running.add(event["id"])
        await self._calls.settle()
        if self._calls.step is not None and not self._calls.step.has_calls:
            # An iteration without calls would not be recorded, so this makes an empty model call.
            await self._calls.step.model_call(asyncio.sleep(0))

    def _new_unanswered(self) -> list[str]:
        """The ids of the iteration's tool calls that have no result."""
        return [each for each in _unanswered(self._values) if each not in self._known]

    async def _announce(self, call_ids: list[str]) -> None:
        """Reports the tool calls that the next super-step runs."""
        assert self._calls.step is not None
        called = {call["id"]: call for call in _called(self._values)}
        calls = [called[each] for each in call_ids]
        await self._calls.step.announce(
            *((each["name"], each["args"], each["id"]) for each in calls)
        )

    async def _next_step(self) -> bool:
        """Begins the next iteration. Returns whether there is one."""
        self._known.update(_unanswered(self._values))
        await self._calls.settle()
        self._calls.step = await anext(self._steps, None)
        return self._calls.step is not None


class _Calls:
    """The calls of models and tools that run in a graph. Callbacks may come from any thread."""

    def __init__(self) -> None:
        self.group = asyncio.TaskGroup()
        self.step: Step | None = None
        self._loop = asyncio.get_running_loop()
        self._open: dict[UUID, asyncio.Future[Any]] = {}
        self._watched: set[asyncio.Task[None]] = set()

    async def settle(self) -> None:
        """Ends all calls of the super-step that are still open."""
        for run_id in list(self._open):
            self.end(run_id)
        if self._watched:
            await asyncio.wait(self._watched)

    def begin_model(self, run_id: UUID, model: str) -> None:
        """Begins a call of a model."""
        if self.step is not None:
            # If the call is interrupted before the endpoint answers, this is the recorded name.
            self.step.reply.model = model
        self.begin(run_id)

    def begin(self, run_id: UUID, name: str = "", arguments: Any = None, call_id: str = "") -> None:
        """Begins a call of the tool `name`, or of a model if `name` is empty."""
        future = self._open[run_id] = self._loop.create_future()
        watching = self._watch(future, name, arguments, call_id)
        try:
            watched = self.group.create_task(watching)
        except RuntimeError:
            # The task group has ended: a thread that could not be interrupted makes this call.
            watching.close()
            return
        self._watched.add(watched)
        watched.add_done_callback(self._watched.discard)

    async def _watch(
        self, call: "asyncio.Future[Any]", name: str, arguments: Any, call_id: str
    ) -> None:
        assert self.step is not None
        try:
            if name:
                await self.step.tool_call(name, arguments, call, call_id=call_id)
            else:
                await self.step.model_call(call)
        except CallTimeoutError:
            # Interrupts the graph.
            raise
        except Exception:  # noqa: BLE001 - the graph gets it too and may handle it
            return

    def hear(self, text: Any) -> None:
        """Adds a part of a model's reply."""
        if self.step is not None and isinstance(text, str):
            self.step.reply.add(text)

    def end_model(self, run_id: UUID, response: Any) -> None:
        """Records a model's reply, and ends the call."""
        message = getattr(response.generations[0][0], "message", None)
        if self.step is not None and message is not None:
            self.step.reply.take(message)
            name = message.response_metadata.get("model_name")
            self.step.reply.model = name or self.step.reply.model
        self.end(run_id)

    def end(self, run_id: UUID, result: Any = None, error: BaseException | None = None) -> None:
        """Ends a call with its result or its error."""
        future = self._open.pop(run_id, None)
        if future is None or future.done():
            return
        if isinstance(error, Exception):
            future.set_exception(error)
        else:
            future.set_result(getattr(result, "content", result))

    def in_loop(self, callback: Callable[..., None], *arguments: Any, **named: Any) -> None:
        """Calls `callback` in the thread of the event loop."""
        try:
            is_here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            is_here = False
        if is_here:
            callback(*arguments, **named)
        else:
            self._loop.call_soon_threadsafe(lambda: callback(*arguments, **named))


def _handler(calls: _Calls) -> Any:
    """The handler of LangChain's callbacks."""
    from langchain_core.callbacks import BaseCallbackHandler

    class Handler(BaseCallbackHandler):
        run_inline = True

        def on_chat_model_start(
            self, *_: Any, run_id: UUID, metadata: dict[str, Any] | None = None, **__: Any
        ) -> None:
            name = (metadata or {}).get("ls_model_name", "")
            calls.in_loop(calls.begin_model, run_id, str(name))

        on_llm_start = on_chat_model_start

        def on_llm_new_token(self, token: Any, **_: Any) -> None:
            calls.in_loop(calls.hear, token)

        def on_llm_end(self, response: Any, *, run_id: UUID, **_: Any) -> None:
            calls.in_loop(calls.end_model, run_id, response)

        def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
            calls.in_loop(calls.end, run_id, error=error)

        def on_tool_start(
            self, tool: Any, text: str, *, run_id: UUID, inputs: Any = None, **named: Any
        ) -> None:
            call_id = named.get("tool_call_id") or ""
            arguments = {"input": text} if inputs is None else inputs
            calls.in_loop(calls.begin, run_id, tool["name"], arguments, call_id)

        def on_tool_end(self, output: Any, *, run_id: UUID, **_: Any) -> None:
            calls.in_loop(calls.end, run_id, output)

        on_tool_error = on_llm_error

    return Handler()


def _messages(values: Any) -> list[Any]:
    found = (
        values.get("messages") if isinstance(values, dict) else getattr(values, "messages", None)
    )
    return found if isinstance(found, list) else []


def _unanswered(values: Any) -> list[str]:
    """The ids of tool calls in the state that have no result."""
    answered = {getattr(each, "tool_call_id", None) for each in _messages(values)}
    return [call["id"] for call in _called(values) if call["id"] not in answered]


def _called(values: Any) -> list[Any]:
    """The tool calls in the state."""
    return [call for each in _messages(values) for call in getattr(each, "tool_calls", ())]


def _last_text(values: Any) -> str:
    """The last text of the model, if any; the whole state if the state has no messages."""
    messages = _messages(values)
    texts = [each.text for each in messages if each.type == "ai" and each.text]
    return str(texts[-1]) if texts else "" if messages or values is None else str(values)

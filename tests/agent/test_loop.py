"""The contract of the agent's loop, with a model, a tool and a committer that tests can block."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import pytest

from evershell.server.agent.active_task import ActiveTask
from evershell.server.agent.encoding import encode_event
from evershell.server.agent.iteration import Limits
from evershell.server.agent.loop import RejectedError, run_task
from evershell.server.agent.model import History, ModelFailure, ModelReply, PartialReply
from evershell.server.agent.tools import ToolCall, ToolResult, ToolStatus
from evershell.server.core.task import Phase, TaskStatus
from evershell.server.core.task_lifecycle import (
    AgentEvent,
    IterationCompleted,
    TaskEnded,
    TaskStarted,
)

CALL = ToolCall(id="c", name="shell", arguments="{}")
OK = ToolResult(status=ToolStatus.EXITED, output="ok")


class World:
    """The model, the tool and the committer.

    Each call is a step with a name, for example "tool 2". `at` maps a step to a hook that runs
    before the call returns.
    """

    name = "a model"

    def __init__(
        self,
        replies: Sequence[ModelReply | BaseException],
        results: Sequence[ToolResult | BaseException] = (),
    ) -> None:
        self.replies = list(replies)
        self.results = list(results)
        self.committed: list[AgentEvent] = []
        self.trace: list[str] = []
        self.at: dict[str, Callable[[], Coroutine[Any, Any, object] | None]] = {}
        self.histories: list[list[ToolResult | None]] = []
        # The partial reply of the latest model call.
        self.partial = PartialReply("")
        self.dropped = False
        self.rejects: type[Any] | None = None

    async def _take_step(self, step: str) -> None:
        self.trace.append(step)
        if (hook := self.at.get(step)) is not None and (pending := hook()) is not None:
            await pending

    async def next(self, history: History, partial: PartialReply) -> ModelReply:
        self.partial = partial
        self.histories.append([iteration.result for iteration in history.iterations])
        await self._take_step(f"model {len(history.iterations) + 1}")
        reply = self.replies[len(history.iterations)]
        if isinstance(reply, BaseException):
            raise reply
        return reply

    async def run(self, call: ToolCall, interrupt: asyncio.Event) -> ToolResult:
        number = sum(step.startswith("tool") for step in self.trace) + 1
        running = asyncio.ensure_future(self._take_step(f"tool {number}"))
        interrupted = asyncio.ensure_future(interrupt.wait())
        await asyncio.wait({running, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        interrupted.cancel()
        if not running.done():
            running.cancel()
            return ToolResult(status=ToolStatus.INTERRUPTED, exit_code=-9, output="so far")
        result = self.results[number - 1] if self.results else OK
        if isinstance(result, BaseException):
            raise result
        return result

    async def commit(self, task_id: str, events: Sequence[AgentEvent]) -> bool:
        await self._take_step(
            "commit "
            + " ".join(
                f"{type(event).__name__} {getattr(event, 'number', '')}".strip() for event in events
            )
        )
        if self.rejects is not None and any(isinstance(event, self.rejects) for event in events):
            raise RejectedError("no")
        for event in events:
            encode_event(event)
            self.committed.append(event)
        return not self.dropped and not isinstance(events[-1], TaskEnded)


def _task(**changes: Any) -> ActiveTask:
    return ActiveTask(**{"id": "t1", "description": "d", "max_iterations": 10, **changes})


async def _run(world: World, task: ActiveTask, timeout_seconds: float = 60) -> TaskEnded | None:
    async with asyncio.timeout(30):
        return await run_task(
            task, world, world, world.commit, Limits(model_timeout_seconds=timeout_seconds)
        )


async def _wait_forever() -> None:
    await asyncio.Event().wait()


def _reply(content: str = "", **changes: Any) -> ModelReply:
    return ModelReply(**{"model": "m", "content": content, "tool_call": CALL, **changes})


REPLIES = [_reply(), _reply(), _reply("the answer", final=True)]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (ToolStatus.EXITED, "done"),
        (ToolStatus.TIMED_OUT, "said"),
        (ToolStatus.NOT_RUN, "said"),
        (ToolStatus.INTERRUPTED, ""),
    ],
)
async def test_a_result_after_the_last_call_depends_on_how_the_call_ended(
    status: ToolStatus, expected: str
) -> None:
    world = World(
        [_reply("said", final=True, result_after_call="done")], [ToolResult(status=status)]
    )
    ending = await _run(world, _task())
    assert ending is not None
    assert ending.result == expected


async def test_the_steps_of_a_task_have_this_order() -> None:
    world = World(REPLIES)
    ending = await _run(world, _task())
    assert ending == TaskEnded(status=TaskStatus.COMPLETED, result="the answer")
    expected = ["commit TaskStarted"]
    for number in (1, 2, 3):
        expected += [f"model {number}", f"tool {number}", f"commit IterationCompleted {number}"]
    # The last iteration and the end are in one commit, so that nothing can come between them.
    expected[-1] += " TaskEnded"
    assert world.trace == expected
    assert world.histories == [[], [OK], [OK, OK]]


async def test_a_final_reply_without_a_tool_call_records_none() -> None:
    world = World([_reply("done", tool_call=None, final=True)])
    await _run(world, _task())
    started, iterated, _ending = world.committed
    assert isinstance(started, TaskStarted)
    assert isinstance(iterated, IterationCompleted)
    assert "tool_call" not in iterated.payload
    assert iterated.payload["model_call"]["status"] == "completed"


@pytest.mark.parametrize(
    ("step", "iterations"),
    [
        ("commit TaskStarted", 0),
        ("model 1", 1),
        ("tool 1", 1),
        ("commit IterationCompleted 1", 1),
        ("model 2", 2),
        ("tool 2", 2),
        ("commit IterationCompleted 2", 2),
    ],
)
async def test_a_cancellation_at_any_step_lets_only_the_current_iteration_finish(
    step: str, iterations: int
) -> None:
    world, task = World(REPLIES), _task()
    world.at[step] = task.cancel.request
    assert await _run(world, task) == TaskEnded(status=TaskStatus.CANCELLED)
    assert [type(event) for event in world.committed] == [
        TaskStarted,
        *[IterationCompleted] * iterations,
        TaskEnded,
    ]
    assert [step for step in world.trace if step.startswith("model")] == [
        f"model {n + 1}" for n in range(iterations)
    ]


@pytest.mark.parametrize("step", ["model 3", "tool 3"])
async def test_a_cancellation_during_the_last_iteration_keeps_the_answer(step: str) -> None:
    world, task = World(REPLIES), _task()
    world.at[step] = task.cancel.request
    assert await _run(world, task) == TaskEnded(status=TaskStatus.CANCELLED, result="the answer")


async def test_too_many_iterations_fail_with_a_reason() -> None:
    ending = await _run(World(REPLIES), _task(max_iterations=2))
    assert ending is not None
    assert (ending.status, "2" in ending.reason) == (TaskStatus.FAILED, True)


async def test_a_task_may_use_all_its_iterations() -> None:
    ending = await _run(World(REPLIES), _task(max_iterations=3))
    assert ending is not None
    assert ending.status is TaskStatus.COMPLETED


async def test_a_model_failure_is_the_reason_of_the_end() -> None:
    ending = await _run(World([_reply(), ModelFailure("no\0 money")]), _task())
    assert ending == TaskEnded(status=TaskStatus.FAILED, reason="no\N{REPLACEMENT CHARACTER} money")


@pytest.mark.parametrize("raised", [KeyError("x"), asyncio.CancelledError()])
async def test_an_exception_of_a_model_or_a_tool_fails_only_the_task(raised: Any) -> None:
    for world in (World([raised]), World(REPLIES, [raised])):
        ending = await _run(world, _task())
        assert ending is not None
        assert (ending.status, bool(ending.reason)) == (TaskStatus.FAILED, True)
        assert [type(event) for event in world.committed] == [TaskStarted, TaskEnded]


async def test_a_model_that_does_not_answer_fails_at_its_limit() -> None:
    world = World(REPLIES)
    world.at["model 1"] = _wait_forever
    ending = await _run(world, _task(), timeout_seconds=0.01)
    assert ending is not None
    assert (ending.status, "0.01 seconds" in ending.reason) == (TaskStatus.FAILED, True)


async def test_force_interrupts_the_model_call_and_keeps_the_partial_reply() -> None:
    world, task = World(REPLIES), _task()

    async def hang() -> None:
        for text in ("so ", "far\0"):
            world.partial.add(text)
        world.partial.model, world.partial.input_tokens, world.partial.output_tokens = "m-1", 5, 3
        asyncio.get_running_loop().call_soon(task.cancel.request, time.time())
        await _wait_forever()

    world.at["model 2"] = hang
    assert await _run(world, task) == TaskEnded(status=TaskStatus.CANCELLED, forced=True)
    _, _, last, _ = world.committed
    assert isinstance(last, IterationCompleted)
    call = last.payload["model_call"]
    assert call.pop("duration_ms") >= 0
    content = "so far\N{REPLACEMENT CHARACTER}"
    assert call == {
        "model": "m-1",
        "content": content,
        "input_tokens": 5,
        "output_tokens": 3,
        "status": "interrupted",
    }
    assert last.payload.keys() == {"model_call"}
    # Both are in one commit, so that nothing can come between them.
    assert world.trace[-1] == "commit IterationCompleted 2 TaskEnded"


@pytest.mark.parametrize("end", ["hangs", "fails", "is cancelled from within", "does not end"])
async def test_force_before_any_reply_records_an_empty_model_call(end: str) -> None:
    raised = {
        "fails": ModelFailure("too late"),
        "is cancelled from within": asyncio.CancelledError(),
    }.get(end)
    world, task, may_end = World([raised or _reply()]), _task(), asyncio.Event()

    async def begin() -> None:
        task.cancel.request(time.time())
        if end == "does not end":
            while not may_end.is_set():
                with suppress(asyncio.CancelledError):
                    await may_end.wait()
        elif end == "hangs":
            await _wait_forever()

    world.at["model 1"] = begin
    assert await _run(world, task) == TaskEnded(status=TaskStatus.CANCELLED, forced=True)
    may_end.set()
    _, iterated, _ = world.committed
    assert isinstance(iterated, IterationCompleted)
    assert (iterated.number, task.iterations, list(iterated.payload)) == (1, 1, ["model_call"])
    call = iterated.payload["model_call"]
    assert (call["status"], call["model"], call["content"], call["output_tokens"]) == (
        "interrupted",
        "a model",
        "",
        0,
    )


async def test_force_takes_precedence_over_the_timeout_of_the_model_call() -> None:
    world, task = World(REPLIES), _task()

    async def hang() -> None:
        # Both times pass while the event loop is blocked, so it finds both timers due.
        task.cancel.request(time.time() + 0.02)
        asyncio.get_running_loop().call_soon(time.sleep, 0.05)
        await _wait_forever()

    world.at["model 1"] = hang
    assert await _run(world, task, timeout_seconds=0.01) == TaskEnded(
        status=TaskStatus.CANCELLED, forced=True
    )
    assert [type(event) for event in world.committed] == [
        TaskStarted,
        IterationCompleted,
        TaskEnded,
    ]


async def test_a_model_call_that_fails_before_the_force_is_due_is_a_failure() -> None:
    world, task = World([ModelFailure("no")]), _task()
    world.at["model 1"] = lambda: task.cancel.request(time.time() + 3_000)
    assert await _run(world, task) == TaskEnded(status=TaskStatus.FAILED, reason="no")
    assert [type(event) for event in world.committed] == [TaskStarted, TaskEnded]


async def test_force_interrupts_the_tool_call_and_keeps_its_output() -> None:
    world, task = World(REPLIES), _task()

    async def hang() -> None:
        loop = asyncio.get_running_loop()
        # Requested without force, then with a late deadline, then at once: the earliest applies.
        loop.call_soon(task.cancel.request)
        loop.call_soon(task.cancel.request, time.time() + 3_000)
        loop.call_later(0.001, task.cancel.request, time.time())
        loop.call_later(0.002, task.cancel.request, time.time() + 6_000)
        await _wait_forever()

    world.at["tool 1"] = hang
    assert await _run(world, task) == TaskEnded(status=TaskStatus.CANCELLED, forced=True)
    _, iterated, _ = world.committed
    assert isinstance(iterated, IterationCompleted)
    assert iterated.payload["tool_call"]["result"]["status"] == "interrupted"
    assert iterated.payload["tool_call"]["result"]["output"] == "so far"


async def test_force_between_the_calls_starts_no_tool() -> None:
    world, task = World(REPLIES), _task()
    world.at["model 1"] = lambda: task.cancel.request(time.time())
    assert await _run(world, task) == TaskEnded(status=TaskStatus.CANCELLED, forced=True)
    assert "tool 1" not in world.trace


async def test_force_after_the_end_of_the_iteration_interrupts_nothing() -> None:
    world, task = World(REPLIES), _task()
    world.at["commit IterationCompleted 1"] = lambda: task.cancel.request(time.time())
    assert await _run(world, task) == TaskEnded(status=TaskStatus.CANCELLED)


async def test_force_due_after_the_end_of_the_iteration_interrupts_nothing() -> None:
    world, task = World(REPLIES), _task()
    world.at["tool 1"] = lambda: task.cancel.request(time.time() + 3_000)
    assert await _run(world, task) == TaskEnded(status=TaskStatus.CANCELLED)
    assert len(world.committed) == 3


@pytest.mark.parametrize(
    ("step", "events"), [("commit TaskStarted", 1), ("commit IterationCompleted 2", 3)]
)
async def test_a_task_that_the_reply_does_not_name_is_dropped(step: str, events: int) -> None:
    world = World(REPLIES)
    world.at[step] = lambda: setattr(world, "dropped", True)
    assert await _run(world, _task()) is None
    assert len(world.committed) == events
    assert world.trace[-1] == step


@pytest.mark.parametrize("step", ["model 1", "tool 1"])
async def test_a_cancelled_loop_ends_its_call_and_commits_nothing_more(step: str) -> None:
    world = World(REPLIES)
    reached, ended = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        reached.set()
        try:
            await _wait_forever()
        finally:
            ended.set()

    world.at[step] = hang
    running = asyncio.create_task(_run(world, _task()))
    await reached.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    if step == "model 1":
        assert ended.is_set()
    assert [type(event) for event in world.committed] == [TaskStarted]


async def test_a_refused_iteration_fails_the_task() -> None:
    world = World(REPLIES)
    world.rejects = IterationCompleted
    ending = await _run(world, _task())
    assert ending is not None
    assert ending.status is TaskStatus.FAILED


async def test_a_task_that_an_earlier_process_started_fails() -> None:
    world = World(REPLIES)
    ending = await _run(world, _task(iterations=2))
    assert ending is not None
    assert (ending.status, world.histories) == (TaskStatus.FAILED, [])


async def test_each_phase_of_an_iteration_is_reported_and_its_end_is_left_to_the_commit() -> None:
    world, task, phases = World([_reply("x", final=True)]), _task(), list[Phase]()
    await run_task(
        task,
        world,
        world,
        world.commit,
        Limits(model_timeout_seconds=1),
        lambda: phases.append(task.phase),
    )
    assert phases == [Phase.MODEL_CALL, Phase.TOOL_CALL]
    assert task.phase is Phase.NONE

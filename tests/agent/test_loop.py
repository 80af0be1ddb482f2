"""The loop's contract, step by step, with a model, a tool and a committer that the tests hold at
any point.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import pytest

from server.agent.encoding import encode_event
from server.agent.loop import ActiveTask, Limits, RejectedError, run_task
from server.agent.model import History, ModelFailure, ModelReply, PartialReply
from server.agent.tools import ToolCall, ToolResult, ToolStatus
from server.core.task import Phase, TaskStatus
from server.core.task_lifecycle import AgentEvent, IterationCompleted, TaskEnded, TaskStarted

CALL = ToolCall(id="c", name="shell", arguments="{}")
OK = ToolResult(status=ToolStatus.EXITED, output="ok")


class World:
    """Model, tool and committer in one. `at` holds what happens at the n-th call of each, before it
    answers.
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
        # Of the latest model call.
        self.partial = PartialReply("")
        self.dropped = False
        self.rejects: type[Any] | None = None

    async def _happen(self, what: str) -> None:
        self.trace.append(what)
        if (happening := self.at.get(what)) is not None and (pending := happening()) is not None:
            await pending

    async def next(self, history: History, partial: PartialReply) -> ModelReply:
        self.partial = partial
        self.histories.append([iteration.result for iteration in history.iterations])
        await self._happen(f"model {len(history.iterations) + 1}")
        reply = self.replies[len(history.iterations)]
        if isinstance(reply, BaseException):
            raise reply
        return reply

    async def run(self, call: ToolCall, interrupt: asyncio.Event) -> ToolResult:
        number = sum(step.startswith("tool") for step in self.trace) + 1
        happening = asyncio.ensure_future(self._happen(f"tool {number}"))
        interrupted = asyncio.ensure_future(interrupt.wait())
        await asyncio.wait({happening, interrupted}, return_when=asyncio.FIRST_COMPLETED)
        interrupted.cancel()
        if not happening.done():
            happening.cancel()
            return ToolResult(status=ToolStatus.INTERRUPTED, exit_code=-9, output="so far")
        result = self.results[number - 1] if self.results else OK
        if isinstance(result, BaseException):
            raise result
        return result

    async def commit(self, task_id: str, events: Sequence[AgentEvent]) -> bool:
        await self._happen(
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
    async with asyncio.timeout(10):
        return await run_task(
            task, world, world, world.commit, Limits(model_timeout_seconds=timeout_seconds)
        )


async def _for_ever() -> None:
    await asyncio.Event().wait()


def _step(content: str = "", **changes: Any) -> ModelReply:
    return ModelReply(**{"model": "m", "content": content, "tool_call": CALL, **changes})


STEPS = [_step(), _step(), _step("the answer", final=True)]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (ToolStatus.EXITED, "done"),
        (ToolStatus.TIMED_OUT, "said"),
        (ToolStatus.NOT_RUN, "said"),
        (ToolStatus.INTERRUPTED, ""),
    ],
)
async def test_a_result_that_rests_on_the_last_call_needs_it_to_have_exited(
    status: ToolStatus, expected: str
) -> None:
    world = World(
        [_step("said", final=True, result_after_call="done")], [ToolResult(status=status)]
    )
    ending = await _run(world, _task())
    assert ending is not None
    assert ending.result == expected


async def test_the_order_of_all_that_happens() -> None:
    world = World(STEPS)
    ending = await _run(world, _task())
    assert ending == TaskEnded(status=TaskStatus.COMPLETED, result="the answer")
    expected = ["commit TaskStarted"]
    for number in (1, 2, 3):
        expected += [f"model {number}", f"tool {number}", f"commit IterationCompleted {number}"]
    # Nothing can come between the last iteration and the end.
    expected[-1] += " TaskEnded"
    assert world.trace == expected
    assert world.histories == [[], [OK], [OK, OK]]


async def test_a_final_reply_without_a_tool_call_has_no_tool_call_on_record() -> None:
    world = World([_step("done", tool_call=None, final=True)])
    await _run(world, _task())
    started, iterated, _ending = world.committed
    assert isinstance(started, TaskStarted)
    assert isinstance(iterated, IterationCompleted)
    assert "tool_call" not in iterated.payload
    assert iterated.payload["model_call"]["status"] == "completed"


@pytest.mark.parametrize(
    ("moment", "iterations"),
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
async def test_a_cancel_at_any_moment_lets_only_the_iteration_in_flight_finish(
    moment: str, iterations: int
) -> None:
    world, task = World(STEPS), _task()
    world.at[moment] = task.cancel.request
    assert await _run(world, task) == TaskEnded(status=TaskStatus.CANCELLED)
    assert [type(event) for event in world.committed] == [
        TaskStarted,
        *[IterationCompleted] * iterations,
        TaskEnded,
    ]
    assert [step for step in world.trace if step.startswith("model")] == [
        f"model {n + 1}" for n in range(iterations)
    ]


@pytest.mark.parametrize("moment", ["model 3", "tool 3"])
async def test_a_cancel_during_the_last_iteration_keeps_the_answer(moment: str) -> None:
    world, task = World(STEPS), _task()
    world.at[moment] = task.cancel.request
    assert await _run(world, task) == TaskEnded(status=TaskStatus.CANCELLED, result="the answer")


async def test_too_many_iterations_fail_with_a_reason() -> None:
    ending = await _run(World(STEPS), _task(max_iterations=2))
    assert ending is not None
    assert (ending.status, "2" in ending.reason) == (TaskStatus.FAILED, True)


async def test_as_many_iterations_as_allowed_are_enough() -> None:
    ending = await _run(World(STEPS), _task(max_iterations=3))
    assert ending is not None
    assert ending.status is TaskStatus.COMPLETED


async def test_a_model_failure_is_the_reason() -> None:
    ending = await _run(World([_step(), ModelFailure("no\0 money")]), _task())
    assert ending == TaskEnded(status=TaskStatus.FAILED, reason="no\N{REPLACEMENT CHARACTER} money")


@pytest.mark.parametrize("raised", [KeyError("x"), asyncio.CancelledError()])
async def test_what_a_model_or_a_tool_raises_fails_the_task_only(raised: Any) -> None:
    for world in (World([raised]), World(STEPS, [raised])):
        ending = await _run(world, _task())
        assert ending is not None
        assert (ending.status, bool(ending.reason)) == (TaskStatus.FAILED, True)
        assert [type(event) for event in world.committed] == [TaskStarted, TaskEnded]


async def test_a_model_that_does_not_answer_fails_at_its_limit() -> None:
    world = World(STEPS)
    world.at["model 1"] = _for_ever
    ending = await _run(world, _task(), timeout_seconds=0.01)
    assert ending is not None
    assert (ending.status, "0.01 seconds" in ending.reason) == (TaskStatus.FAILED, True)


async def test_force_breaks_off_the_model_call_and_keeps_what_it_has_received() -> None:
    world, task = World(STEPS), _task()

    async def hang() -> None:
        for text in ("so ", "far\0"):
            world.partial.add(text)
        world.partial.model, world.partial.input_tokens, world.partial.output_tokens = "m-1", 5, 3
        asyncio.get_running_loop().call_soon(task.cancel.request, time.time())
        await _for_ever()

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
    # In one commit: nothing can come between the two.
    assert world.trace[-1] == "commit IterationCompleted 2 TaskEnded"


@pytest.mark.parametrize("end", ["hangs", "fails", "is cancelled from within", "does not end"])
async def test_force_in_the_first_moment_of_a_model_call_records_an_empty_one(end: str) -> None:
    raised = {
        "fails": ModelFailure("too late"),
        "is cancelled from within": asyncio.CancelledError(),
    }.get(end)
    world, task = World([raised or _step()]), _task()

    async def begin() -> None:
        task.cancel.request(time.time())
        if end == "does not end":
            for _ in range(20):
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.1)
        elif end == "hangs":
            await _for_ever()

    world.at["model 1"] = begin
    began = time.monotonic()
    assert await _run(world, task) == TaskEnded(status=TaskStatus.CANCELLED, forced=True)
    assert time.monotonic() - began < 1.9
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


async def test_force_that_is_due_when_the_model_calls_own_limit_is_over_is_forced() -> None:
    world, task = World(STEPS), _task()

    async def hang() -> None:
        # Due while the event loop is held, so that both times have come when it looks.
        task.cancel.request(time.time() + 0.02)
        asyncio.get_running_loop().call_soon(time.sleep, 0.05)
        await _for_ever()

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


async def test_force_breaks_off_the_tool_call_and_keeps_its_output() -> None:
    world, task = World(STEPS), _task()

    async def hang() -> None:
        loop = asyncio.get_running_loop()
        # Asked for without force, then late, then at once: the earliest wins.
        loop.call_soon(task.cancel.request)
        loop.call_soon(task.cancel.request, time.time() + 3_000)
        loop.call_later(0.001, task.cancel.request, time.time())
        loop.call_later(0.002, task.cancel.request, time.time() + 6_000)
        await _for_ever()

    world.at["tool 1"] = hang
    assert await _run(world, task) == TaskEnded(status=TaskStatus.CANCELLED, forced=True)
    _, iterated, _ = world.committed
    assert isinstance(iterated, IterationCompleted)
    assert iterated.payload["tool_call"]["result"]["status"] == "interrupted"
    assert iterated.payload["tool_call"]["result"]["output"] == "so far"


async def test_force_that_falls_between_the_calls_starts_no_tool() -> None:
    world, task = World(STEPS), _task()
    world.at["model 1"] = lambda: task.cancel.request(time.time())
    assert await _run(world, task) == TaskEnded(status=TaskStatus.CANCELLED, forced=True)
    assert "tool 1" not in world.trace


async def test_force_after_the_iteration_has_ended_breaks_nothing_off() -> None:
    world, task = World(STEPS), _task()
    world.at["commit IterationCompleted 1"] = lambda: task.cancel.request(time.time())
    assert await _run(world, task) == TaskEnded(status=TaskStatus.CANCELLED)


async def test_force_later_than_the_iterations_end_breaks_nothing_off() -> None:
    world, task = World(STEPS), _task()
    world.at["tool 1"] = lambda: task.cancel.request(time.time() + 3_000)
    assert await _run(world, task) == TaskEnded(status=TaskStatus.CANCELLED)
    assert len(world.committed) == 3


@pytest.mark.parametrize(
    ("moment", "events"), [("commit TaskStarted", 1), ("commit IterationCompleted 2", 3)]
)
async def test_a_task_that_the_reply_does_not_name_is_dropped(moment: str, events: int) -> None:
    world = World(STEPS)
    world.at[moment] = lambda: setattr(world, "dropped", True)
    assert await _run(world, _task()) is None
    assert len(world.committed) == events
    assert world.trace[-1] == moment


@pytest.mark.parametrize("moment", ["model 1", "tool 1"])
async def test_given_up_it_ends_the_call_in_flight_and_commits_nothing_more(moment: str) -> None:
    world = World(STEPS)
    reached, ended = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        reached.set()
        try:
            await _for_ever()
        finally:
            ended.set()

    world.at[moment] = hang
    running = asyncio.create_task(_run(world, _task()))
    await reached.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    if moment == "model 1":
        assert ended.is_set()
    assert [type(event) for event in world.committed] == [TaskStarted]


async def test_a_refused_iteration_fails_the_task() -> None:
    world = World(STEPS)
    world.rejects = IterationCompleted
    ending = await _run(world, _task())
    assert ending is not None
    assert ending.status is TaskStatus.FAILED


async def test_a_task_begun_by_a_process_that_is_gone_is_not_begun_again() -> None:
    world = World(STEPS)
    ending = await _run(world, _task(iterations=2))
    assert ending is not None
    assert (ending.status, world.histories) == (TaskStatus.FAILED, [])


async def test_the_phase_is_told_whenever_it_changes() -> None:
    world, task, phases = World([_step("x", final=True)]), _task(), list[Phase]()
    await run_task(
        task,
        world,
        world,
        world.commit,
        Limits(model_timeout_seconds=1),
        lambda: phases.append(task.phase),
    )
    assert phases == [Phase.MODEL_CALL, Phase.TOOL_CALL, Phase.NONE]

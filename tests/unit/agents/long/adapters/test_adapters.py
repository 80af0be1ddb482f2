"""A cancellation works with every framework as docs/your-agent.md says."""

import asyncio
from typing import Any

import pytest

from evershell.core.task import TOKENS
from tests.support.model_server import DONE, Gate, streams
from tests.support.waiting import eventually_async
from tests.unit.agents.faulty_plane import at_once
from tests.unit.agents.long.adapters.conftest import World

FORCE = pytest.mark.parametrize("force", [None, 0.0], ids=["at the end", "forced"])


def summary(end: Any, iterations: list[Any]) -> tuple[str, bool, int]:
    return str(end.status), end.forced, len(iterations)


async def test_a_task_with_usage_results_and_a_conversation(world: World) -> None:
    fw = world.framework
    await world.submit("t1", fw.calls("echo a", "echo b"), fw.says("the result"))
    end, iterations = await world.end("t1")
    assert (*summary(end, iterations), end.result) == ("completed", False, 2, "the result")
    first, second = iterations
    assert first.tool_call.result.output == "did echo a"
    assert (first.tool_call.name, first.tool_call.arguments) == (fw.tool, '{"command": "echo a"}')
    assert second.model_call.content == "the result"
    for each in iterations:
        reported = {kind: getattr(each.model_call, kind) for kind in TOKENS}
        assert {kind: count for kind, count in reported.items() if count} == fw.tokens
        assert each.model_call.model
    request = await world.next_task_runs()
    assert ("the result" in fw.texts(request)) == fw.has_conversation


@FORCE
async def test_cancelled_before_the_first_iteration(world: World, force: float | None) -> None:
    """The agent learns of the cancellation from the reply to its first commit."""

    async def cancel(call: str) -> None:
        if call == "CommitEvents" and not world.plane.end("t1"):
            await world.cancel("t1", force)

    world.plane.before_reply = cancel
    await world.submit("t1", world.framework.says("never"))
    end, iterations = await world.end("t1")
    world.plane.before_reply = at_once
    assert summary(end, iterations) == ("cancelled", False, 0)
    assert not world.server.requests
    await world.next_task_runs()


async def test_cancelled_during_a_model_call(world: World) -> None:
    fw, gate = world.framework, Gate()
    await world.submit("t1", fw.says_part("so far", gate), fw.says("never"))
    await asyncio.to_thread(gate.await_reached)
    await eventually_async(lambda: world.steps[-1].reply.content == "so far")
    await world.cancel("t1")
    await world.cancel("t1", 0.0)
    end, iterations = await world.end("t1")
    assert summary(end, iterations) == ("cancelled", True, 1)
    call = iterations[0].model_call
    assert (call.status, call.content) == (call.interrupted, "so far")
    assert await asyncio.to_thread(world.server.left.wait, 15)
    await world.next_task_runs()


async def test_a_call_without_an_answer_names_its_model(world: World) -> None:
    if not world.framework.knows_model:
        pytest.skip("not applicable: only the answer names the model")
    gate = Gate()
    await world.submit("t1", streams(gate, DONE))
    await asyncio.to_thread(gate.await_reached)
    await world.cancel("t1", 0.0)
    end, iterations = await world.end("t1")
    assert summary(end, iterations) == ("cancelled", True, 1)
    assert iterations[0].model_call.model == "test"


@FORCE
@pytest.mark.parametrize("tools", [("a",), ("a", "b")], ids=["a tool", "two tools"])
async def test_cancelled_during_tool_calls(
    world: World, force: float | None, tools: tuple[str, ...]
) -> None:
    fw = world.framework
    await world.submit("t1", fw.calls(*(f"wait {each}" for each in tools)), fw.says("never"))
    for each in tools:
        await world.reached(f"{each}.began")
    # Waits, because Claude runs a tool before the agent is told of the call.
    await eventually_async(lambda: len(world.steps[-1]._tools) == len(tools))
    await world.cancel("t1", force)
    if force is None:
        world.go(*tools)
    end, iterations = await world.end("t1")
    assert summary(end, iterations) == ("cancelled", force is not None, 1)
    result = iterations[0].tool_call.result
    if force is None:
        assert result.output == "did wait a"
    assert result.status == (result.exited if force is None else result.interrupted)
    assert all((world.folder / f"{each}.ended").exists() for each in tools)
    assert len(world.server.requests) == 1
    await world.next_task_runs()


async def test_tools_begin_after_their_iteration_is_reported(world: World) -> None:
    fw = world.framework
    reports: list[int] = []

    async def look(call: str) -> None:
        task = world.plane.task
        if call == "CommitEvents" and task is not None and task.open_iteration is not None:
            # Waits for many turns of the event loop: a tool that does not wait for the reply
            # would have begun by then.
            for _ in range(100):
                await asyncio.sleep(0)
            reports.append(len(task.open_iteration.started_calls))
            assert task.open_iteration.usage.input_tokens == fw.tokens["input_tokens"]
            begun = {each.name for each in world.folder.glob("*.began")} - {"claude.began"}
            assert len(begun) < reports[-1] and (len(reports) > 1 or not begun)

    world.plane.before_reply = look
    await world.submit("t1", fw.calls("wait a", "wait b"), fw.says("the result"))
    for each in ("a", "b"):
        await world.reached(f"{each}.began")
    world.go("a", "b")
    end, _ = await world.end("t1")
    world.plane.before_reply = at_once
    assert (end.status, end.result, end.iteration_lost) == ("completed", "the result", False)
    assert (end.usage.model_calls, end.usage.tool_calls, reports[-1]) == (2, 2, 2)


@FORCE
async def test_cancelled_between_iterations(world: World, force: float | None) -> None:
    async def cancel(call: str) -> None:
        if call == "CommitEvents" and world.plane.iterations("t1"):
            await world.cancel("t1", force)

    fw = world.framework
    world.plane.before_reply = cancel
    await world.submit("t1", fw.calls("echo a"), fw.says("never"))
    end, iterations = await world.end("t1")
    world.plane.before_reply = at_once
    assert summary(end, iterations) == ("cancelled", False, 1)
    assert len(world.server.requests) == 1
    request = await world.next_task_runs()
    if force is None or fw.keeps_at_force:
        # The model still gets the result, with the next task.
        assert "did echo a" in fw.texts(request)


@FORCE
async def test_cancelled_at_the_moment_of_the_end(world: World, force: float | None) -> None:
    async def cancel(call: str) -> None:
        if call == "CommitEvents" and world.plane.end("t1"):
            await world.cancel("t1", force)

    world.plane.before_reply = cancel
    await world.submit("t1", world.framework.says("the result"))
    end, iterations = await world.end("t1")
    assert (*summary(end, iterations), end.result) == ("completed", False, 1, "the result")
    world.plane.before_reply = at_once
    await world.next_task_runs()


async def test_force_waits_for_a_function_in_a_thread(world: World) -> None:
    """Nothing can interrupt the function, so nothing is recorded before the function has ended."""
    fw = world.framework
    if not fw.has_threads:
        pytest.skip("not applicable: its tools do not run in threads")
    await world.submit("t1", fw.calls("wait a", tool="blocking_shell"), fw.says("never"))
    await world.reached("a.began")
    await world.cancel("t1", 0.0)
    # Waits for longer than an interrupted function may take to end its processes.
    assert not await world.plane.until(lambda: world.plane.end("t1"), 1)
    world.go("a")
    end, iterations = await world.end("t1")
    assert summary(end, iterations) == ("cancelled", True, 1)
    await world.next_task_runs()


async def test_a_model_call_that_fails(world: World) -> None:
    await world.submit("t1", world.framework.breaks())
    end, iterations = await world.end("t1")
    assert summary(end, iterations) == ("failed", False, 0)
    assert "broken" in end.reason
    await world.next_task_runs()


async def test_a_tool_call_that_fails(world: World) -> None:
    fw = world.framework
    await world.submit("t1", fw.calls("raise broken", "echo b"), fw.says("the result"))
    end, iterations = await world.end("t1")
    if fw.fails_with_tool:
        assert summary(end, iterations) == ("failed", False, 1)
        assert "broken" in end.reason
    else:
        assert summary(end, iterations) == ("completed", False, 2)
    assert len(world.server.requests) == (1 if fw.fails_with_tool else 2)
    await world.next_task_runs()


async def test_the_iterations_of_a_task_are_limited(world: World) -> None:
    fw = world.framework
    await world.submit("t1", fw.calls("echo a"), fw.calls("echo b"), max_iterations=2)
    end, iterations = await world.end("t1")
    assert summary(end, iterations) == ("failed", False, 2)
    assert end.reason == "The task was not done within its limit of 2 iterations."
    await world.next_task_runs()


@pytest.mark.parametrize(
    "limits",
    [{"model_timeout_seconds": 0.5}, {"tool_timeout_seconds": 0.5}],
    ids=["model", "tool"],
)
async def test_a_call_that_reaches_its_limit(world: World, limits: dict[str, float]) -> None:
    """If a tool call is too slow, the framework may report the timeout to the model."""
    fw, gate = world.framework, Gate()
    is_model = "model_timeout_seconds" in limits
    script = [fw.says_part("so far", gate)] if is_model else [fw.calls("wait a"), fw.says("told")]
    await world.submit("t1", *script)
    end, iterations = await world.end("t1")
    if is_model:
        assert summary(end, iterations) == ("failed", False, 0)
        assert "did not answer within 0.5 seconds" in end.reason
    else:
        assert iterations[0].tool_call.result.status == iterations[0].tool_call.result.timed_out
        assert (world.folder / "a.ended").exists()

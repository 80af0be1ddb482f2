"""The whole agent in this process, over real gRPC, with a control plane of the test."""

import asyncio
from dataclasses import replace
from pathlib import Path

from evershell.agent.v1.agent_service_pb2 import Signal
from evershell.workspace.v1.event_pb2 import ToolResult
from evershell.workspace.v1.task_pb2 import Task

from evershell.core.task import TaskStatus
from tests.support.waiting import eventually_async
from tests.unit.agents.conftest import Start, is_alive, started
from tests.unit.agents.faulty_plane import ControlPlane


async def test_a_task_runs_to_its_end(control_plane: ControlPlane, start: Start) -> None:
    await started(control_plane, start)
    await control_plane.run_task("t1", "echo one\n\n  echo two; exit 3  \n")
    await control_plane.reaches(lambda: control_plane.end("t1"))
    assert control_plane.kinds("t1") == [
        "task_started",
        "iteration_completed",
        "iteration_completed",
        "task_completed",
    ]
    first, second = control_plane.iterations("t1")
    assert (first.number, second.number) == (1, 2)
    assert first.tool_call.result.output == "one\n"
    assert first.tool_call.arguments == '{"command": "echo one"}'
    assert second.tool_call.result == ToolResult(
        status=ToolResult.exited, exit_code=3, output="two\n"
    )
    assert control_plane.end("t1").status == TaskStatus.COMPLETED
    assert control_plane.end("t1").result == "Ran 2 commands."
    assert first.model_call.model == "scripted"


async def test_a_cancellation_lets_the_iteration_finish_and_the_next_task_run(
    control_plane: ControlPlane, start: Start, tmp_path: Path
) -> None:
    await started(control_plane, start)
    wait = "touch begun; while [ ! -e go ]; do sleep 0.01; done; echo done"
    await control_plane.run_task("t1", f"{wait}\necho never")
    await eventually_async((tmp_path / "begun").exists)
    await control_plane.reaches(
        lambda: control_plane.heartbeats and control_plane.heartbeats[-1].phase == Task.tool_call
    )
    assert await control_plane.cancel("t1")
    now = await control_plane.signal(Signal())
    assert (now.known, now.task_id, now.phase) == (False, "t1", Task.tool_call)
    assert control_plane.end("t1") is None
    (tmp_path / "go").touch()
    await control_plane.reaches(lambda: control_plane.end("t1"))
    assert [i.tool_call.result.output for i in control_plane.iterations("t1")] == ["done\n"]
    assert control_plane.end("t1").status == TaskStatus.CANCELLED
    assert not control_plane.end("t1").forced
    # The task is sent at once, perhaps before the agent gets the acknowledgement of the end.
    await control_plane.run_task("t2", "echo next")
    await control_plane.reaches(lambda: control_plane.end("t2"))
    assert control_plane.end("t2").status == TaskStatus.COMPLETED


async def test_a_tool_that_reaches_its_limit_is_killed_with_its_process_group(
    control_plane: ControlPlane, start: Start, tmp_path: Path
) -> None:
    # The limit includes time for the command to begin on a busy machine.
    await started(control_plane, start, tool_timeout_seconds=2.5)
    own = tmp_path / "grandchild"
    line = f"(sh -c 'echo $$ > {own}; sleep 600' & wait) & echo begun; wait"
    await control_plane.run_task("t1", line)
    await control_plane.reaches(lambda: control_plane.end("t1"))
    (iteration,) = control_plane.iterations("t1")
    assert iteration.tool_call.result == ToolResult(
        status=ToolResult.timed_out, exit_code=-9, output="begun\n"
    )
    await eventually_async(lambda: not is_alive(own))


async def test_events_carry_the_trace_of_the_last_call_for_their_task(
    control_plane: ControlPlane, start: Start, tmp_path: Path
) -> None:
    await started(control_plane, start)
    first, second, third = (f"00-{digit * 32}-{digit * 16}-01" for digit in "abc")
    wait = "touch begun; while [ ! -e go ]; do sleep 0.01; done"
    await control_plane.run_task("t1", f"true\n{wait}\necho never", traceparent=first)
    await eventually_async((tmp_path / "begun").exists)
    await control_plane.cancel("t1", traceparent=second)
    # Two cancellations do not change the trace: one without a trace, and one of another task.
    await control_plane.cancel("t1")
    await control_plane.cancel("t9", traceparent=third)
    (tmp_path / "go").touch()
    await control_plane.reaches(lambda: control_plane.end("t1"))
    # The agent must learn of the next task from the traced call, not from the reply to a heartbeat.
    heartbeats = asyncio.Event()

    async def hold(call: str) -> None:
        if call == "Heartbeat":
            await heartbeats.wait()

    control_plane.before_reply = hold
    # The task is sent at once, perhaps before the agent gets the acknowledgement of the end.
    await control_plane.run_task("t2", "true", traceparent=third)
    await control_plane.reaches(lambda: control_plane.end("t2"))
    heartbeats.set()
    await control_plane.run_task("t3", "true")
    await control_plane.reaches(lambda: control_plane.end("t3"))
    assert control_plane.traces == [
        ("task_started", first),
        ("iteration_completed", first),
        ("iteration_completed", second),
        ("task_ended", second),
        *((kind, third) for kind in ("task_started", "iteration_completed", "task_ended")),
        *((kind, "") for kind in ("task_started", "iteration_completed", "task_ended")),
    ]


async def test_a_task_whose_start_was_lost_arrives_with_the_next_reply(
    control_plane: ControlPlane, start: Start
) -> None:
    control_plane.lease_length_seconds = 1.2
    await started(control_plane, start)
    await control_plane.assign("echo here", "t1")
    await control_plane.reaches(lambda: control_plane.end("t1"))
    assert control_plane.end("t1").status == TaskStatus.COMPLETED


async def test_another_task_is_refused_while_one_runs(
    control_plane: ControlPlane, start: Start, tmp_path: Path
) -> None:
    await started(control_plane, start)
    await control_plane.run_task("t1", "touch begun; sleep 600")
    await eventually_async((tmp_path / "begun").exists)
    assert control_plane.task is not None
    assert not await control_plane.start(replace(control_plane.task, id="t2"))


async def test_commits_with_lost_acknowledgements_are_repeated(
    control_plane: ControlPlane, start: Start, tmp_path: Path
) -> None:
    await started(control_plane, start)
    control_plane.lost_acknowledgements = 3
    await control_plane.run_task("t1", "echo x >> runs")
    await control_plane.reaches(lambda: control_plane.end("t1"))
    assert control_plane.kinds("t1") == ["task_started", "iteration_completed", "task_completed"]
    # Three commits, each repeated once: the start, the report of the iteration, and the iteration
    # with the end.
    assert control_plane.calls.count("CommitEvents") == 6
    assert (tmp_path / "runs").read_text() == "x\n"


async def test_the_next_worker_is_tried_when_one_does_not_answer(
    control_plane: ControlPlane, start: Start
) -> None:
    start(["127.0.0.1:1", await control_plane.serve()])
    await control_plane.reaches(lambda: control_plane.address)

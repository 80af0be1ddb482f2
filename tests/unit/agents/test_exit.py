"""What makes an agent and its tools end. The whole agent runs in this process."""

import asyncio
import os
import signal
import time
from pathlib import Path

import grpc
import pytest

from evershell.agents.shutdown import ExitCode
from tests.support.waiting import eventually_async
from tests.unit.agents.conftest import Start, is_alive, started
from tests.unit.agents.faulty_plane import ControlPlane


async def _exit_code(agent: "asyncio.Task[ExitCode]") -> ExitCode:
    async with asyncio.timeout(30):
        return await agent


async def test_a_fenced_agent_ends_its_tools_and_exits(
    control_plane: ControlPlane, start: Start, tmp_path: Path
) -> None:
    control_plane.lease_length_seconds = 1.5
    agent = await started(control_plane, start)
    await _start_long_task(control_plane, tmp_path)
    await control_plane.begin_epoch()
    assert await _exit_code(agent) is ExitCode.FENCED
    assert not is_alive(tmp_path / "begun")
    assert control_plane.kinds("t1") == ["task_started"]


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED]
)
async def test_an_agent_whose_token_is_refused_exits(
    control_plane: ControlPlane, start: Start, code: grpc.StatusCode
) -> None:
    control_plane.outage = code
    assert await _exit_code(start([await control_plane.serve()])) is ExitCode.UNAUTHORIZED


async def test_an_agent_that_cannot_renew_its_lease_ends_its_tools_and_exits(
    control_plane: ControlPlane, start: Start, tmp_path: Path
) -> None:
    """The agent ends its tools before the lease is over."""
    # The margin is a fifth of the lease's length: 12 s. So the agent begins to end after 4 s.
    control_plane.lease_seconds, control_plane.lease_length_seconds = 16.0, 60.0
    before_lease = time.monotonic()
    agent = await started(control_plane, start)
    await _start_long_task(control_plane, tmp_path)
    control_plane.outage = grpc.StatusCode.UNAVAILABLE
    assert await _exit_code(agent) is ExitCode.LEASE_OVER
    assert time.monotonic() - before_lease < 16
    assert not is_alive(tmp_path / "begun")


async def test_heartbeats_renew_the_lease(control_plane: ControlPlane, start: Start) -> None:
    # With this lease, the agent survives a stall of over two seconds, as on a busy machine.
    control_plane.lease_seconds, control_plane.lease_length_seconds = 3.0, 0.6
    agent = await started(control_plane, start)
    over_at = time.monotonic() + 3.0
    await control_plane.reaches(lambda: time.monotonic() > over_at)
    assert not agent.done()


async def test_sigterm_ends_the_tools_and_the_agent(
    control_plane: ControlPlane, start: Start, tmp_path: Path
) -> None:
    agent = await started(control_plane, start)
    await _start_long_task(control_plane, tmp_path)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await _exit_code(agent) is ExitCode.STOPPED
    assert not is_alive(tmp_path / "begun")
    assert control_plane.end("t1") is None


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.RESOURCE_EXHAUSTED]
)
async def test_an_agent_whose_commit_is_refused_exits(
    control_plane: ControlPlane, start: Start, code: grpc.StatusCode
) -> None:
    agent = await started(control_plane, start)
    control_plane.outage = code
    await control_plane.run_task("t1", "true")
    assert await _exit_code(agent) is ExitCode.REJECTED


async def test_an_agent_with_an_unknown_model_exits_at_the_start(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await _exit_code(start([], model="oracle")) is ExitCode.BAD_SPEC
    assert "oracle" in capsys.readouterr().out


async def _start_long_task(control_plane: ControlPlane, tmp_path: Path) -> None:
    line = "echo $$ > begun.new; mv begun.new begun; exec sleep 600"
    await control_plane.run_task("t1", line)
    await eventually_async((tmp_path / "begun").exists)

"""Runs an agent in this process, with a control plane or a model endpoint of the test."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from evershell.agents.program import run
from evershell.agents.shutdown import ExitCode
from evershell.agents.tools import ToolCall
from tests.support.model_server import ModelServer, model_server
from tests.unit.agents.faulty_plane import ControlPlane

Start = Callable[..., "asyncio.Task[ExitCode]"]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
async def control_plane() -> AsyncIterator[ControlPlane]:
    plane = ControlPlane()
    yield plane
    await plane.stop()


@pytest.fixture
async def start(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Start]:
    agents: list[asyncio.Task[ExitCode]] = []

    def start(addresses: list[str], **changes: Any) -> "asyncio.Task[ExitCode]":
        spec = control_plane.spec(str(tmp_path), **control_plane.more)
        spec = replace(spec, runtime_addresses=addresses, **changes)
        agents.append(asyncio.create_task(run(spec, structlog.get_logger())))
        return agents[-1]

    yield start
    for agent in agents:
        if not agent.done():
            os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(10):
                await agent


@pytest.fixture(params=["streams", "whole"])
def server(request: pytest.FixtureRequest) -> Iterator[ModelServer]:
    """A model endpoint. The test runs once with streaming, and once without."""
    with model_server(can_stream=request.param == "streams") as running:
        yield running


async def started(
    control_plane: ControlPlane, start: Start, **changes: Any
) -> "asyncio.Task[ExitCode]":
    agent = start([await control_plane.serve()], **changes)
    await control_plane.reaches(lambda: control_plane.address)
    return agent


def shell_call(command: str) -> ToolCall:
    return ToolCall(id="c", name="shell", arguments=json.dumps({"command": command}))


def is_alive(pid_file: Path) -> bool:
    """Whether the process whose id is in the file is running."""
    try:
        os.kill(int(pid_file.read_text()), 0)
    except ProcessLookupError:
        return False
    return True

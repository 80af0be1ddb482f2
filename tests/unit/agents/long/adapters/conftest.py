"""Runs an agent of a framework in this process, with a control plane of the test."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from evershell.agents import loop
from evershell.agents.program import run
from evershell.agents.step import Calls, Report, Step
from evershell.core.task import TaskStatus
from tests.support.model_server import Answer, ModelServer, model_server
from tests.support.waiting import eventually_async
from tests.unit.agents.faulty_plane import ControlPlane
from tests.unit.agents.long.adapters.frameworks import FRAMEWORKS, Framework, need


class World:
    """A running agent of a framework, with its control plane and its model's endpoint."""

    def __init__(
        self, framework: Framework, plane: ControlPlane, server: ModelServer, folder: Path
    ) -> None:
        self.framework, self.plane, self.server, self.folder = framework, plane, server, folder
        # The iterations that have begun.
        self.steps: list[Step] = []

    def begin(self, number: int, calls: Calls, report: Report) -> Step:
        """Begins an iteration, and keeps it in `steps`."""
        self.steps.append(Step(number, calls, report))
        return self.steps[-1]

    async def submit(self, task_id: str, *script: Answer, **fields: Any) -> None:
        """Starts a task. The model endpoint answers with the script."""
        self.server.script.clear()
        self.server.script.extend(script)
        await self.plane.run_task(task_id, f"do {task_id}", **fields)

    async def cancel(self, task_id: str, force_after_seconds: float | None = None) -> None:
        await self.plane.cancel(task_id, force_after_seconds)

    async def end(self, task_id: str) -> tuple[Any, list[Any]]:
        """Waits for the end of a task. Checks that the end is recorded once.

        Returns the task and its iterations.
        """
        await self.plane.reaches(lambda: self.plane.end(task_id))
        assert self.plane.kinds(task_id).count("task_completed") == 1
        return self.plane.end(task_id), self.plane.iterations(task_id)

    async def next_task_runs(self) -> dict[str, Any]:
        """Runs a task without a cancellation.

        Checks the task's conversation, and returns its first request to the model.
        """
        first = len(self.server.requests)
        fw = self.framework
        await self.submit("next", fw.calls("echo next"), fw.says("the next result"))
        end, iterations = await self.end("next")
        assert (end.status, end.result) == (TaskStatus.COMPLETED, "the next result")
        assert len(iterations) == 2
        request = self.server.requests[first]
        assert not fw.unanswered(request)
        return request

    async def reached(self, name: str) -> None:
        """Waits for a file that the tool creates."""
        await eventually_async((self.folder / name).exists)

    def go(self, *names: str) -> None:
        """Lets the tool calls with these names end."""
        for name in names:
            (self.folder / f"{name}.go").touch()


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as running:
        yield running


@pytest.fixture
def limits() -> dict[str, float]:
    """Fields of the agent's spec. A test may change them before the agent starts."""
    return {}


@pytest.fixture(params=FRAMEWORKS)
async def world(
    request: pytest.FixtureRequest,
    control_plane: ControlPlane,
    server: ModelServer,
    limits: dict[str, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[World]:
    framework = FRAMEWORKS[request.param]()
    need(framework.package)
    # Like a real agent, the agent starts in the folder of the workspace's files.
    monkeypatch.chdir(tmp_path)
    await control_plane.serve()
    spec = control_plane.spec(str(tmp_path), **limits)
    world = World(framework, control_plane, server, tmp_path)
    monkeypatch.setattr(loop, "Step", world.begin)
    function = framework.agent(server, tmp_path)
    running = asyncio.create_task(run(spec, structlog.get_logger(), function))
    await control_plane.reaches(lambda: control_plane.address)
    yield world
    if not running.done():
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(30):
            await running
    await framework.close()

import math
import random
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from evershell.core.workspace import Workspace
from evershell.fleet import agent_client
from evershell.fleet.agent_client import AgentClient
from evershell.fleet.local.isolation import Sandbox
from evershell.fleet.local.local_pods import LocalPods
from tests.support import pod_processes, world
from tests.support.fleet import RUN_ID, Fleet
from tests.support.sandbox import working_sandbox
from tests.support.small_agent import AGENT, spec_for
from tests.support.world import NOW
from tests.unit.fleet.fake_agent import TOKENS, FakeAgent


@pytest.fixture
def workspace() -> Workspace:
    return world.workspace(epoch=3, run_id=RUN_ID)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def _run_small_agent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "agent"
    program.write_text(AGENT)
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    found = working_sandbox(tmp_path)
    _run_small_agent(tmp_path, monkeypatch)
    return found


@pytest.fixture
async def pods(
    tmp_path: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LocalPods]:
    _run_small_agent(tmp_path, monkeypatch)
    yield LocalPods(tmp_path, spec_for)
    pod_processes.kill(workspace.id)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives a signal and each of its attempts a minute, so a busy machine causes no retries."""
    monkeypatch.setattr(agent_client, "SIGNAL_BUDGET_SECONDS", 60.0)
    monkeypatch.setattr(agent_client, "_ATTEMPT_SECONDS", 60.0)


@pytest.fixture
def one_attempt(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a call end after its first attempt."""
    monkeypatch.setattr(random, "uniform", lambda *_: math.inf)


@pytest.fixture
async def agent() -> AsyncIterator[FakeAgent]:
    agent = FakeAgent()
    await agent.listen()
    yield agent
    await agent.stop()


@pytest.fixture
async def client() -> AsyncIterator[AgentClient]:
    client = AgentClient(TOKENS, lambda: NOW)
    yield client
    await client.aclose()

"""The examples run in a sandbox of a real stack, and can be cancelled."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import sandbox
from tests.support.model_server import Gate, ModelServer, model_server
from tests.support.stack import ROOT, Stack, Workspace
from tests.unit.agents.long.adapters.frameworks import FRAMEWORKS, Framework, need


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> Framework:
    framework = FRAMEWORKS[request.param]()
    need(framework.package)
    return framework


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as running:
        yield running


@pytest.fixture
def stack(framework: Framework, server: ModelServer, tmp_path: Path) -> Iterator[Stack]:
    sandbox.skip_without_sandbox()
    # The pod's user must be able to read the example.
    folder = tmp_path / "agent"
    folder.mkdir()
    for each in (folder, *list(folder.parents)[:3]):
        each.chmod(0o755)
    shutil.copy(ROOT / "examples" / framework.example, folder)
    (tmp_path / "keys.json").write_text(json.dumps(framework.keys(server)))
    running = Stack(
        tmp_path / "state",
        AGENT_KEYS_FILE=str(tmp_path / "keys.json"),
        POD_ISOLATION="sandbox",
    )
    running.arguments = ("--agent", f"{folder / framework.example}:agent")
    with running.started():
        yield running


def test_an_example_is_cancelled_on_a_real_stack(
    framework: Framework, server: ModelServer, workspace: Workspace
) -> None:
    server.script.append(framework.says("the first result"))
    end = workspace.await_end(workspace.submit("first"))
    assert (end["status"], end["result"]) == ("completed", "the first result")
    for force_after in (None, "0s"):
        gate = Gate()
        server.script.clear()
        server.script.append(framework.says_part("so far", gate))
        task_id = workspace.submit("second")
        gate.await_reached()
        workspace.await_phase(task_id, "model_call")
        fields: dict[str, Any] = {} if force_after is None else {"force_after": force_after}
        assert workspace.cancel(**fields)["outcome"] == "accepted"
        if force_after is None:
            gate.opened.set()
        end = workspace.await_end(task_id)
        assert (end["status"], end["forced"]) == ("cancelled", force_after is not None)
        assert end["iterations"] == 1
    server.script.clear()
    server.script.append(framework.says("the last result"))
    end = workspace.await_end(workspace.submit("last"))
    assert (end["status"], end["result"]) == ("completed", "the last result")
    assert workspace.get()["epoch"] == "1"
    if framework.has_conversation:
        assert "the first result" in framework.texts(server.requests[-1])

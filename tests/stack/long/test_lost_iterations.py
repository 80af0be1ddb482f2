"""A forced cancellation while a synchronous tool hangs, which nothing can interrupt.

The controller ends the pod. The task keeps the iteration's usage, its end has `iteration_lost`, and
the workspace is suspended, so that the next task wakes it.
"""

import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import sandbox
from tests.support.lengths import smoke
from tests.support.model_server import Answer, ModelServer, calls_tools, model_server, says
from tests.support.promises import read_history, violations
from tests.support.stack import ROOT, Stack, Workspace
from tests.support.waiting import eventually
from tests.unit.agents.long.adapters.frameworks import Claude, need

MODEL = "gpt-5-mini"
# The body of a tool that hangs. It replaces the body of the tool of an example.
HANG = """
    import time
    open("began", "w").close()
    time.sleep(600)
"""
OWN = f"""
from evershell.agents import Task, in_thread, run

def hang():{HANG}

async def ask():
    usage = {{"input_tokens": 11, "output_tokens": 7}}
    return {{"model": "{MODEL}", "content": "", "usage": usage}}

async def agent(task: Task) -> str:
    async for step in task.iterations():
        await step.model_call(ask())
        if task.description == "hang":
            await step.tool_call("hang", {{"seconds": 600}}, in_thread(hang), call_id="call_1")
        return "the result"
    return ""
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    # The package that must be installed; empty for OWN.
    package: str = ""
    # The file of the example to change; empty for OWN.
    example: str = ""
    # Texts of the example and their replacements, which make its tool hang in a thread.
    changes: tuple[tuple[str, str], ...] = ()
    # The answers of the model.
    script: tuple[Answer, ...] = ()
    keys: dict[str, str] = field(default_factory=dict)
    # Whether the model has a price.
    has_cost: bool = True

    def source(self) -> str:
        if not self.example:
            return OWN
        text = (ROOT / "examples" / self.example).read_text()
        for before, after in self.changes:
            assert before in text, before
            text = text.replace(before, after)
        return text


_ids = itertools.count(1)
_COUNT = "async def count_words(text: str) -> int:"
_OPENAI: dict[str, Any] = {
    "changes": (
        (_COUNT, _COUNT.removeprefix("async ")),
        ('    """Counts the words of a text."""\n', '    """Hangs."""' + HANG),
    ),
    "script": (
        calls_tools(("count_words", '{"text": "a b"}'), ids=_ids, model=MODEL),
        says("the result"),
    ),
    "keys": {"OPENAI_API_KEY": "sk-of-the-tests", "OPENAI_BASE_URL": "http://{host}/v1"},
}
_claude = Claude()
CASES = {
    "own": Case(),
    "openai_agents": Case(package="agents", example="openai_agents_agent.py", **_OPENAI),
    "langgraph": Case(package="langgraph", example="langgraph_agent.py", **_OPENAI),
    "pydantic_ai": Case(package="pydantic_ai", example="pydantic_ai_agent.py", **_OPENAI),
    "claude": Case(
        package="claude_agent_sdk",
        example="claude_agent.py",
        changes=(
            (
                '    """Counts the words of a text."""\n    return',
                '    """Hangs."""\n    await asyncio.to_thread(hang)\n    return',
            ),
            (
                "from typing import Any\n",
                f"import asyncio\nfrom typing import Any\n\ndef hang():{HANG}",
            ),
        ),
        script=(
            _claude.calls_tool("mcp__own__count_words", {"text": "a b"}),
            _claude.says("the result"),
        ),
        keys={"ANTHROPIC_API_KEY": "sk-of-the-tests", "ANTHROPIC_BASE_URL": "http://{host}"},
        has_cost=False,
    ),
}


@pytest.fixture(params=smoke(CASES, ["own", "openai_agents"]))
def case(request: pytest.FixtureRequest) -> Case:
    case = CASES[request.param]
    if case.package:
        need(case.package)
    return case


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as running:
        yield running


@pytest.fixture
def stack(case: Case, server: ModelServer, tmp_path: Path) -> Iterator[Stack]:
    sandbox.skip_without_sandbox()
    # The pod's user must be able to read the agent.
    folder = tmp_path / "agent"
    folder.mkdir()
    for each in (folder, *list(folder.parents)[:3]):
        each.chmod(0o755)
    (folder / "an_agent.py").write_text(case.source())
    keys = {name: value.format(host=server.host) for name, value in case.keys.items()}
    (tmp_path / "keys.json").write_text(json.dumps(keys))
    running = Stack(
        tmp_path / "state",
        AGENT_KEYS_FILE=str(tmp_path / "keys.json"),
        POD_ISOLATION="sandbox",
    )
    running.arguments = ("--agent", f"{folder}/an_agent.py:agent")
    with running.started():
        yield running
    shutil.rmtree(folder)


def test_what_a_killed_iteration_used_counts_and_the_next_task_wakes_the_workspace(
    case: Case, server: ModelServer, workspace: Workspace
) -> None:
    server.script.extend(case.script)
    task_id = workspace.submit("hang")
    eventually((workspace.stack.files(workspace.id) / "began").exists, 30)
    assert workspace.cancel(force_after="1s")["outcome"] == "accepted"
    end = workspace.await_end(task_id)
    _assert_lost(case, end)
    task = workspace.rest.get(f"{workspace.path}/tasks/{task_id}")
    assert task["iteration_lost"] and task["usage"] == end["usage"]
    eventually(lambda: workspace.get()["status"] == "suspended")
    assert workspace.get()["status_reason"] == "its agent did not interrupt the task in time"
    assert workspace.stack.pod_processes(workspace.id) == []

    server.script.clear()
    server.script.extend(case.script[1:])
    # The call waits for the agent, which first imports its framework.
    submitted = workspace.stack.grpc().call(
        "SubmitTask", timeout=60, workspace_id=workspace.id, description="go on"
    )
    end = workspace.await_end(submitted["task_id"])
    assert (end["status"], end["result"], end["iteration_lost"]) == (
        "completed",
        "the result",
        False,
    )
    assert (workspace.get()["status"], workspace.get()["epoch"]) == ("idle", "2")
    with workspace.stack.database() as connection:
        assert violations(read_history(connection)) == []


def _assert_lost(case: Case, end: dict[str, Any]) -> None:
    assert (end["status"], end["forced"], end["work_stopped"]) == ("cancelled", True, "yes")
    assert (end["iterations"], end["iteration_lost"]) == (0, True)
    usage = end["usage"]
    counts = [
        int(usage[name]) for name in ("input_tokens", "output_tokens", "model_calls", "tool_calls")
    ]
    assert counts == [11, 7, 1, 1]
    if case.has_cost:
        assert (usage["cost"]["units"], usage["cost"]["nanos"] > 0) == ("0", True)

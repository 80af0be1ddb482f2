"""`evershell agent check` passes with an agent of each framework and with the built-in agent."""

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.model_server import Answer, model_server
from tests.unit.agents.long.adapters.frameworks import Framework
from tests.unit.agents.long.check.built_in import AGENTS
from tests.unit.agents.long.check.running import PATIENT, TASKS, cases, check

AGENT = Path(__file__).with_name("checked_adapters.py")
# How long each call takes: long enough for a heartbeat to report the call.
CALL_SECONDS = 0.4
COMMAND = f"sleep {CALL_SECONDS}; echo done"


class Model:
    """Calls a tool in two turns of each task, and answers with a text in the third turn."""

    def __init__(self, framework: Framework) -> None:
        self._framework = framework

    def __call__(self, request: dict[str, Any]) -> Answer:
        time.sleep(CALL_SECONDS)
        fw, messages = self._framework, request["messages"]
        assert not fw.unanswered(request)
        task, turns = "", 0
        for message in messages:
            texts = _texts(message) if message["role"] == "user" else []
            task, turns = (texts[-1], 0) if texts else (task, turns)
            turns += bool(message.get("tool_calls")) or "tool_use" in _kinds(message)
        if "model error" in task:
            return fw.breaks()
        if turns == 2:
            return fw.says("done")
        if "tool error" in task:
            return fw.calls("raise broken")
        return fw.calls(*[COMMAND] * (2 if "parallel" in task else 1))


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content") or []
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _kinds(message: dict[str, Any]) -> list[str]:
    return [each["type"] for each in _blocks(message)]


def _texts(message: dict[str, Any]) -> list[str]:
    """Returns the user's texts in a message, which may also contain results of tools."""
    texts = [each["text"] for each in _blocks(message) if each["type"] == "text"]
    return [each for each in texts if not each.startswith("<system-reminder>")]


# Runs only in `make soak`, because the suite in long/adapters cancels tasks at the same moments and
# takes less time.
@pytest.mark.soak
@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_of_a_framework_passes(name: str, tmp_path: Path) -> None:
    framework = AGENTS[name]()
    if importlib.util.find_spec(framework.package) is None:
        pytest.skip(f"{framework.package} is not installed: make .venv/.adapters-ready")
    with model_server() as server:
        server.respond = Model(framework)
        keys = tmp_path / "keys.json"
        keys.write_text(json.dumps({"FRAMEWORK": name, "HOST": server.host}))
        code, rows = check(*TASKS, *PATIENT, "--keys", keys, f"{AGENT}:agent")
    assert code == 0, list(rows.items())
    # The framework itself runs the loop, so no exception can be raised in it.
    unseen = {"an exception in the loop"}
    if name == "built in":
        # This agent runs its tools one after another.
        unseen.add("forced during two tools in parallel")
    assert cases(rows, "not reached") == unseen, list(rows.items())

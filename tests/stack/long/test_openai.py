"""Tests agents that call a model endpoint, in a separate stack."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.support.faults import assert_story
from tests.support.model_server import (
    Gate,
    ModelServer,
    calls,
    event_of,
    model_server,
    says,
    streams,
)
from tests.support.stack import Stack, Workspace

KEY = "sk-only-for-the-endpoint"


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with model_server() as running:
        yield running


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "key"
    path.write_text(f"{KEY}\n")
    return path


@pytest.fixture(scope="module")
def stack(
    server: ModelServer, key_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    state_dir = tmp_path_factory.mktemp("openai") / "state"
    with Stack(
        state_dir,
        MODEL="openai:test",
        OPENAI_BASE_URL=server.base_url,
        OPENAI_API_KEY_FILE=str(key_file),
    ).started() as running:
        yield running


@pytest.fixture(autouse=True)
def _afresh(server: ModelServer) -> None:
    server.script.clear()
    server.requests.clear()
    server.left.clear()


def test_a_task_with_two_tool_calls_completes_and_its_usage_is_told(
    workspace: Workspace, server: ModelServer
) -> None:
    server.script.extend((calls("echo 42 > answer"), calls("cat answer; env"), says("It is 42.")))
    end = workspace.await_end(workspace.submit("find the answer"))
    assert (end["status"], end["result"], end["iterations"]) == ("completed", "It is 42.", 3)
    assert end["usage"] == {
        "input_tokens": "33",
        "output_tokens": "21",
        "model_calls": "3",
        "tool_calls": "2",
    }
    assert server.requests[2]["messages"][-1]["content"].startswith("Exit code 0.\n42\n")
    assert server.headers[-1]["authorization"] == f"Bearer {KEY}"


def test_the_iteration_that_reaches_the_tokens_is_the_last(
    workspace: Workspace, server: ModelServer
) -> None:
    """Each answer has 18 tokens."""
    server.script.extend((calls("echo 1"), calls("echo 2"), calls("echo 3"), says("done")))
    task_id = workspace.submit("count", limits={"max_total_tokens": "36"})
    end = workspace.await_end(task_id)
    assert (end["status"], end["iterations"], end["forced"]) == ("cancelled", 2, False)
    assert end["cancel"]["requested_by"] == "system:limit"
    assert end["cancel"]["reason"] == "max_total_tokens reached: 36 of 36 tokens"
    assert len(server.requests) == 2


def test_the_key_is_in_no_log_and_not_in_what_the_agent_gives_its_tools(
    workspace: Workspace, server: ModelServer
) -> None:
    server.script.extend((calls("env; cat /proc/$PPID/environ /proc/$PPID/cmdline"), says("done")))
    workspace.await_end(workspace.submit("look around"))
    assert KEY not in json.dumps(workspace.log())
    assert KEY not in str(psutil.Process(workspace.stack.agent_pid(workspace.id)).environ())
    logs = [
        *workspace.stack.state_dir.rglob("*.log"),
        workspace.stack.state_dir / "fleet" / workspace.id / "log",
        workspace.stack.output,
    ]
    assert len(logs) > 2
    for log in logs:
        assert KEY not in log.read_text()


def test_the_key_is_rotated_without_a_restart(
    workspace: Workspace, server: ModelServer, key_file: Path
) -> None:
    """An agent keeps the key that it was started with."""

    def used() -> str:
        server.script.append(says("done"))
        end = workspace.await_end(workspace.submit("say done"))
        assert end["status"] == "completed"
        return server.headers[-1]["authorization"].removeprefix("Bearer ")

    assert used() == KEY
    key_file.write_text("the-next-key")
    try:
        assert used() == KEY
        workspace.replace_agent()
        assert used() == "the-next-key"
    finally:
        key_file.write_text(KEY)


def test_cancelling_in_a_model_call_finishes_the_iteration(
    workspace: Workspace, server: ModelServer
) -> None:
    gate = Gate()
    server.script.extend((replace(calls("echo finished"), gate=gate), says("never asked for")))
    task_id = workspace.submit("begin")
    gate.await_reached()
    workspace.await_phase(task_id, "model_call")
    assert workspace.cancel()["outcome"] == "accepted"
    assert workspace.task(task_id)["status"] == "running"
    gate.opened.set()
    end = workspace.await_end(task_id)
    assert (end["status"], end["forced"], end["iterations"], end["result"]) == (
        "cancelled",
        False,
        1,
        "finished\n",
    )
    assert len(server.requests) == 1


def test_force_in_the_middle_of_an_answer_keeps_what_has_come(
    workspace: Workspace, server: ModelServer
) -> None:
    gate = Gate()
    counted = event_of({"content": "nearly "}, usage={"prompt_tokens": 11, "completion_tokens": 4})
    server.script.append(
        streams(
            event_of({"content": "It is "}), counted, gate, event_of({"content": "done."}, "stop")
        )
    )
    task_id = workspace.submit("begin")
    gate.await_reached()
    assert workspace.cancel(force_after="1s")["outcome"] == "accepted"
    end = workspace.await_end(task_id)
    assert (end["status"], end["forced"], end["iterations"], end["result"]) == (
        "cancelled",
        True,
        1,
        "It is nearly ",
    )
    assert end["usage"] == {
        "input_tokens": "11",
        "output_tokens": "4",
        "model_calls": "1",
        "tool_calls": "0",
    }
    (iteration,) = [
        entry
        for entry in assert_story(workspace, task_id, status="cancelled", intent=True)
        if "model_call" in entry
    ]
    call = iteration["model_call"]
    assert (call["status"], call["model"], call["content"]) == (
        "interrupted",
        "test-0613",
        "It is nearly ",
    )
    assert (call["input_tokens"], call["output_tokens"], int(call["duration_ms"]) >= 1000) == (
        "11",
        "4",
        True,
    )
    assert server.left.wait(10)
    # The same agent runs the next task, whose history does not contain the interrupted one.
    server.script.append(says("next"))
    server.script.popleft()
    assert workspace.await_end(workspace.submit("go on"))["result"] == "next"
    assert (workspace.get()["epoch"], len(server.requests[-1]["messages"])) == ("1", 2)

"""Agents that call a model endpoint, in a separate stack."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.constants import crash_points_in
from tests.support.faults import assert_story, await_terminal
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
# USD per million tokens. An answer has 11 input tokens, of which 5 are cached, and 7 output tokens.
PRICES = {"input": 1, "output": 10, "cached_input": 0.5}
CALL_NANOS = (11 - 5) * 1000 + 5 * 500 + 7 * 10_000


def usd(nanos: int) -> dict[str, Any]:
    return {"currency_code": "USD", "units": "0", "nanos": nanos}


@pytest.fixture(scope="module")
def server() -> Iterator[ModelServer]:
    with model_server() as running:
        yield running


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "keys.json"
    write_key(path, KEY)
    return path


def write_key(path: Path, key: str) -> None:
    path.write_text(json.dumps({"OPENAI_API_KEY": key}))


@pytest.fixture(scope="module")
def stack(
    server: ModelServer, key_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("openai")
    prices, points = folder / "prices.json", folder / "points"
    prices.write_text(json.dumps(dict.fromkeys(("test", "test-0613"), PRICES)))
    points.mkdir()
    # If root runs the stack, its agents run as other users.
    points.chmod(0o777)
    with Stack(
        folder / "state",
        MODEL="openai:test",
        PRICES_FILE=str(prices),
        **crash_points_in(points),
        OPENAI_BASE_URL=server.base_url,
        AGENT_KEYS_FILE=str(key_file),
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
        "cost": usd(3 * CALL_NANOS),
    }
    assert server.requests[2]["messages"][-1]["content"].startswith("Exit code 0.\n42\n")
    assert server.headers[-1]["authorization"] == f"Bearer {KEY}"


def test_the_iteration_that_reaches_the_tokens_is_the_last(
    workspace: Workspace, server: ModelServer
) -> None:
    """Each answer has 18 tokens, so the second one reaches the limit."""
    server.script.extend((calls("echo 1"), calls("echo 2"), calls("echo 3"), says("done")))
    task_id = workspace.submit("count", limits={"max_total_tokens": "36"})
    end = workspace.await_end(task_id)
    assert (end["status"], end["iterations"], end["forced"]) == ("cancelled", 2, False)
    assert end["cancel"]["requested_by"] == "system:limit"
    assert end["cancel"]["reason"] == "max_total_tokens reached: 36 of 36 tokens"
    assert len(server.requests) == 2


@pytest.mark.parametrize("crash", ["", "before_report_transaction", "after_report_transaction"])
def test_the_iteration_that_reaches_the_cost_is_the_last(
    workspace: Workspace, server: ModelServer, crash: str
) -> None:
    """The limit applies even if the worker dies before or after the report that reaches it."""
    gate, points = Gate(), workspace.stack.state_dir.parent / "points"
    second = replace(calls("echo 2"), gate=gate)
    server.script.extend((calls("echo 1"), second, calls("echo 3"), says("done")))
    limit = 2 * CALL_NANOS - 1
    task_id = workspace.submit("count", limits={"max_cost": usd(limit)})
    gate.await_reached()
    if crash:
        (points / crash).touch()
    gate.opened.set()
    # A stream of events may end with its worker, so this reads the database.
    end = await_terminal(workspace, task_id)
    assert not list(points.iterdir())
    assert (end["status"], end["iterations"], end["forced"]) == ("cancelled", 2, False)
    assert workspace.task(task_id)["usage"]["cost"] == usd(2 * CALL_NANOS)
    assert end["cancel"]["requested_by"] == "system:limit"
    assert end["cancel"]["reason"] == "max_cost reached: 0.000157 of 0.000156999 USD"
    assert len(server.requests) == 2
    assert workspace.task(task_id)["limits"]["max_cost"] == usd(limit)


def test_a_model_without_a_price_ends_a_task_with_a_limit_of_cost(
    workspace: Workspace, server: ModelServer
) -> None:
    server.script.extend((calls("echo 1"), calls("echo 2", model="other"), says("done")))
    end = workspace.await_end(workspace.submit("count", limits={"max_cost": usd(999_999_999)}))
    assert (end["status"], end["iterations"]) == ("cancelled", 2)
    assert end["cancel"]["reason"] == "max_cost cannot be checked: a model without a price was used"
    assert "cost" not in end["usage"]


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
    """An agent keeps the key with which it was started. The next agent gets the new key."""

    def used() -> str:
        server.script.append(says("done"))
        end = workspace.await_end(workspace.submit("say done"))
        assert end["status"] == "completed"
        return server.headers[-1]["authorization"].removeprefix("Bearer ")

    assert used() == KEY
    write_key(key_file, "the-next-key")
    try:
        assert used() == KEY
        workspace.replace_agent()
        assert used() == "the-next-key"
    finally:
        write_key(key_file, KEY)


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
        "cost": usd(11 * 1000 + 4 * 10_000),
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
    # The same agent runs the next task, whose history does not contain the interrupted task.
    server.script.append(says("next"))
    server.script.popleft()
    assert workspace.await_end(workspace.submit("go on"))["result"] == "next"
    assert (workspace.get()["epoch"], len(server.requests[-1]["messages"])) == ("1", 2)

"""The OpenAI model over real HTTP, with single calls and in the real loop with the real shell."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from evershell.agents.chat import calls_of, exchange
from evershell.agents.completion import Message
from evershell.agents.openai_model import OpenAIModel
from evershell.agents.program import UnknownModelError, create_agent
from evershell.agents.reply import Reply
from evershell.agents.tools import ToolCall, ToolResult, ToolStatus
from evershell.core.task import TaskEnded, TaskStatus
from evershell.pod.process import become_subreaper
from tests.support.model_server import (
    ModelServer,
    calls,
    calls_tools,
    completes,
    says,
)
from tests.support.waiting import eventually_async
from tests.unit.agents.asking import CHAT, KEY, Run, next_reply
from tests.unit.agents.test_scripted import spec


async def test_a_task_with_tool_calls_runs_to_its_answer(
    server: ModelServer, tmp_path: Path
) -> None:
    run = Run(server, tmp_path, calls("echo one > f"), calls("cat f; exit 3"), says("It says one."))
    assert await run.end() == TaskEnded(status=TaskStatus.COMPLETED, result="It says one.")
    assert [each["tool_call"]["result"]["output"] for each in run.iterations[:2]] == ["", "one\n"]
    assert "tool_call" not in run.iterations[2]
    call = run.iterations[0]["model_call"]
    assert (call["status"], call["model"], call["input_tokens"], call["output_tokens"]) == (
        "completed",
        "test-0613",
        11,
        7,
    )
    system, task, first, first_result, second, second_result = server.requests[2]["messages"]
    assert (system["role"], task) == ("system", {"role": "user", "content": "do it"})
    assert first["tool_calls"][0]["function"] == {
        "name": "shell",
        "arguments": '{"command": "echo one > f"}',
    }
    assert first_result == {
        "role": "tool",
        "tool_call_id": first["tool_calls"][0]["id"],
        "content": "Exit code 0.\n",
    }
    assert second["role"] == "assistant"
    assert second_result["content"] == "Exit code 3.\none\n"


async def test_a_request_has_the_model_the_tool_and_the_key(server: ModelServer) -> None:
    await next_reply(server, says("done"))
    (request,) = server.requests
    assert (request["path"], request["model"]) == ("/v1/chat/completions", "test")
    assert (request["stream"], request["stream_options"]) == (True, {"include_usage": True})
    (tool,) = request["tools"]
    assert (tool["function"]["name"], list(tool["function"]["parameters"]["properties"])) == (
        "shell",
        ["command"],
    )
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


async def test_several_tool_calls_run_one_after_the_other_and_each_has_a_result_in_the_history(
    server: ModelServer, tmp_path: Path
) -> None:
    """The process that the first call has left behind is killed before the second call begins."""
    become_subreaper()
    first = "sleep 600 & echo $! > pid; echo one"
    run = Run(server, tmp_path, calls(first, "kill -0 $(cat pid); echo two"), says("done"))
    assert (await run.end()).status is TaskStatus.COMPLETED
    outputs = [each["result"]["output"] for each in run.iterations[0]["tool_calls"]]
    assert (outputs[0], outputs[1].splitlines()[-1]) == ("one\n", "two")
    assert "No such process" in outputs[1]
    _, _, assistant, *results = server.requests[1]["messages"]
    assert [call["id"] for call in assistant["tool_calls"]] == ["call_0", "call_1"]
    assert [each["tool_call_id"] for each in results] == ["call_0", "call_1"]
    assert results[0]["content"] == "Exit code 0.\none\n"


async def test_force_in_one_of_several_tool_calls_starts_no_other(
    server: ModelServer, tmp_path: Path
) -> None:
    run = Run(server, tmp_path, calls("echo one", "touch began; sleep 600", "touch never"))
    ending = asyncio.create_task(run.end())
    await eventually_async((tmp_path / "began").exists)
    run.task.cancel.request(force_after_seconds=0)
    assert (await ending).forced
    statuses = [each["result"]["status"] for each in run.iterations[0]["tool_calls"]]
    assert statuses == ["exited", "interrupted"]
    assert not (tmp_path / "never").exists()


async def test_tool_calls_after_the_time_limit_are_not_run(
    server: ModelServer, tmp_path: Path
) -> None:
    run = Run(server, tmp_path, calls("sleep 600", "touch never", "touch never"), says("done"))
    assert (await run.end(tool_timeout_seconds=0.2)).status is TaskStatus.COMPLETED
    statuses = [each["result"]["status"] for each in run.iterations[0]["tool_calls"]]
    assert statuses == ["timed_out", "not_run", "not_run"]
    assert list(tmp_path.iterdir()) == []
    assert server.requests[1]["messages"][-1]["content"].startswith("The command was not run.")


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([None, None], ["call_2", "call_2_2"]),
        (["x", "x", "y"], ["x", "call_2_2", "y"]),
    ],
)
def test_each_tool_call_has_an_id_of_its_own(ids: list[Any], expected: list[str]) -> None:
    asked = [{"id": each, "function": {"name": "shell", "arguments": "{}"}} for each in ids]
    message = Message.model_validate({"tool_calls": asked})
    assert [call.id for call in calls_of(message, 2)] == expected


@pytest.mark.parametrize(
    ("name", "arguments", "explanation"),
    [
        ("shell", "rm -rf", "JSON object"),
        ("shell", '{"command": 7}', "JSON object"),
        ("shell", "{}", "JSON object"),
        ("shell", "[]", "JSON object"),
        ("shell", None, "JSON object"),
        ("shell", '{"command": "a\\u0000b"}', "could not be started"),
        ("shell", '{"command": "\\ud800"}', "could not be started"),
        ("python!", "{}", "no tool 'python!'"),
        ("", "{}", "no tool ''"),
    ],
)
async def test_a_malformed_call_is_explained_to_the_model(
    server: ModelServer, tmp_path: Path, name: str, arguments: Any, explanation: str
) -> None:
    run = Run(server, tmp_path, calls_tools((name, arguments)), says("I give up."))
    assert (await run.end()).status is TaskStatus.COMPLETED
    assert run.iterations[0]["tool_call"]["result"]["status"] == "not_run"
    _, _, assistant, result = server.requests[1]["messages"]
    assert explanation in result["content"]
    function = assistant["tool_calls"][0]["function"]
    # Endpoints refuse a history with invalid names, and many of them parse the arguments.
    assert function["name"].strip("abcdefghijklmnopqrstuvwxyz_") == "" != function["name"]
    assert isinstance(json.loads(function["arguments"]), dict)


async def test_a_model_with_only_malformed_calls_ends_at_the_iteration_limit(
    server: ModelServer, tmp_path: Path
) -> None:
    run = Run(server, tmp_path, calls_tools(("shell", "{")), max_iterations=3)
    ending = await run.end()
    assert (ending.status, len(run.iterations)) == (TaskStatus.FAILED, 3)
    assert "3 iterations" in ending.reason


async def test_deviations_of_some_endpoints_are_accepted(server: ModelServer) -> None:
    odd = completes(
        {"tool_calls": [{"function": {"name": "shell", "arguments": {"command": "ls"}}}]},
        model=None,
    )
    reply = await next_reply(server, odd)
    assert reply.tool_calls == [ToolCall(id="call_2", name="shell", arguments='{"command": "ls"}')]
    assert reply.model == "test"
    server.script.clear()
    assert (
        await next_reply(server, completes({"refusal": "No.", "tool_calls": []}))
    ).content == "No."


@pytest.mark.parametrize("status", list(ToolStatus))
async def test_every_kind_of_result_has_a_message(server: ModelServer, status: ToolStatus) -> None:
    call = ToolCall(id="c", name="shell", arguments="{}")
    result = ToolResult(status=status, output="so far")
    await next_reply(server, says("done"), chat=[*CHAT, *exchange("", [call], [result])])
    assert server.requests[0]["messages"][-1]["content"].endswith(".\nso far")


@pytest.mark.parametrize(
    "usage",
    [None, {}, "much", {"prompt_tokens": None, "completion_tokens": -1}, {"prompt_tokens": 1e30}],
)
async def test_usage_that_is_missing_or_invalid_is_zero(server: ModelServer, usage: Any) -> None:
    reply = await next_reply(server, says("done", usage=usage))
    assert (reply.content, reply.input_tokens, reply.output_tokens) == ("done", 0, 0)


@pytest.mark.parametrize(
    "base_url", ["localhost:1234", "ftp://host/v1", "http:///v1", "http://host:port/v1"]
)
def test_an_invalid_base_url_is_refused_at_the_start(base_url: str) -> None:
    with pytest.raises(ValueError, match=r"base URL|[Pp]ort"):
        create_agent(spec(model="openai:test", openai_base_url=base_url))


def test_a_key_that_no_header_can_carry_is_refused_and_not_disclosed() -> None:
    for key in ("sk-\n1", "sk-\N{EURO SIGN}"):
        with pytest.raises(ValueError, match="characters") as error:
            create_agent(spec(model="openai:test", openai_api_key=key))
        assert key not in str(error.value)


async def test_the_key_is_optional_and_its_trailing_newline_is_removed(server: ModelServer) -> None:
    server.script.append(says("done"))
    for key in ("", f"{KEY}\n"):
        model = OpenAIModel("test", base_url=server.base_url, api_key=key)
        assert (await model.answer(CHAT, Reply())).content == "done"
    assert server.headers[1]["authorization"] == f"Bearer {KEY}"


def test_an_openai_model_needs_a_name() -> None:
    with pytest.raises(UnknownModelError, match="openai:<model>"):
        create_agent(spec(model="openai:"))


def test_the_repr_of_settings_hides_the_key() -> None:
    assert KEY not in repr(spec(openai_api_key=KEY))

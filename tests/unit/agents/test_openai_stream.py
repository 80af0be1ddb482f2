"""Streamed answers: how chunks are assembled, and what an interrupted call keeps."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evershell.agents.reply import Reply
from evershell.agents.tools import ToolCall
from evershell.core.task import TaskEnded, TaskStatus
from tests.support.model_server import (
    DONE,
    Answer,
    Gate,
    ModelServer,
    answers,
    calls,
    event,
    event_of,
    model_server,
    says,
    streams,
)
from tests.support.waiting import eventually_async
from tests.unit.agents.asking import CHAT, KEY, Run, failure, model_at, next_reply

STOP = event_of({}, "stop")


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with model_server() as running:
        yield running


def _call_part(arguments: Any, index: int | None = 0, **fields: Any) -> bytes:
    """Returns a chunk with a part of a tool call."""
    named = {"name": fields.pop("name")} if "name" in fields else {}
    return event_of(
        {"tool_calls": [{"index": index, "function": named | {"arguments": arguments}} | fields]}
    )


async def _force(run: Run, content: str) -> TaskEnded:
    """Forces the cancellation once the received part of the answer is `content`."""
    ending = asyncio.create_task(run.end())
    await eventually_async(lambda: run.partial.content == content)
    run.task.cancel.request(force_after_seconds=0)
    return await ending


async def test_force_in_the_middle_of_an_answer_keeps_the_partial_answer(
    server: ModelServer, tmp_path: Path
) -> None:
    held = streams(
        event_of({"content": "It is "}),
        event_of({"content": "nearly\0"}),
        Gate(),
        event_of({"content": "done"}),
        STOP,
    )
    run = Run(server, tmp_path, held)
    assert await _force(run, "It is nearly\0") == TaskEnded(
        status=TaskStatus.CANCELLED, forced=True
    )
    (iteration,) = run.iterations
    call = iteration["model_call"]
    assert (call["status"], call["model"]) == ("interrupted", "test-0613")
    assert call["content"] == "It is nearly\N{REPLACEMENT CHARACTER}"
    assert (call["input_tokens"], call["output_tokens"]) == (0, 0)
    assert await asyncio.to_thread(server.left.wait, 10)
    assert len(server.requests) == 1


async def test_force_keeps_the_token_counts_received_so_far(
    server: ModelServer, tmp_path: Path
) -> None:
    counts = [
        event_of({"content": "a"}, usage={"prompt_tokens": 11, "completion_tokens": each})
        for each in (1, 2)
    ]
    run = Run(server, tmp_path, streams(*counts, Gate()))
    await _force(run, "aa")
    call = run.iterations[0]["model_call"]
    assert (call["input_tokens"], call["output_tokens"]) == (11, 2)


async def test_force_during_a_streamed_tool_call_runs_no_tool(
    server: ModelServer, tmp_path: Path
) -> None:
    begun = _call_part('{"command": "touch ran"}', id="a", name="shell")
    run = Run(server, tmp_path, streams(begun, event_of({"content": "hm"}), Gate(), STOP))
    assert (await _force(run, "hm")).forced
    assert run.iterations[0].keys() == {"model_call"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "events",
    [
        [event_of({"content": "It is done."}), DONE],
        [event_of({"content": "It is done."}, "stop")],
        [event_of({"content": "It is "}), event_of({"refusal": "done."}), STOP],
        [
            b": keep alive\n\n",
            b"event: chunk\nid: 7\n" + event_of({"content": "It is done."}),
            STOP,
            DONE,
        ],
        [event_of({"content": "It is done."}).replace(b"\n", b"\r\n"), STOP],
        [event_of({"content": "It is done."}).replace(b"data: ", b"data:"), STOP, DONE.rstrip()],
        [
            event_of({"content": "It "})
            + event_of({"content": "is "})
            + event_of({"content": "done."}),
            STOP,
        ],
        [*(bytes([each]) for each in event_of({"content": "It is done."})), STOP],
        [
            event({"choices": []}),
            event({"choices": None}),
            event_of({"content": None}),
            event_of({"content": "It is done."}),
            STOP,
        ],
        [event_of({"content": "It is done."}), event({"choices": [{"finish_reason": "stop"}]})],
        [event_of({"content": "It is "}, ""), event_of({"content": "done."}, "stop")],
        [event_of({"content": "It is done."}, "stop"), DONE, b"data: nonsense after the end\n\n"],
    ],
)
async def test_chunks_are_assembled_to_the_answer(server: ModelServer, events: list[bytes]) -> None:
    reply = await next_reply(server, streams(*events))
    assert (reply.content, reply.tool_calls, reply.model) == ("It is done.", [], "test-0613")


LS = '{"command": "ls"}'


@pytest.mark.parametrize(
    "events",
    [
        [_call_part(LS[:5], id="a", name="shell"), _call_part(LS[5:])],
        [_call_part(None, id="a", name="shell"), _call_part(LS)],
        [_call_part(LS[:5], None, id="a", name="shell"), _call_part(LS[5:], None)],
        [_call_part({"command": "ls"}, id="a", name="shell")],
        # Each part repeats the id and the name, or the second part has another id.
        [_call_part(LS[:5], id="a", name="shell"), _call_part(LS[5:], id="a", name="shell")],
        [_call_part(LS[:5], id="a", name="shell"), _call_part(LS[5:], id="b", name=None)],
        [_call_part("", id="a"), _call_part(LS, name="shell")],
    ],
)
async def test_chunks_are_assembled_to_a_tool_call(
    server: ModelServer, events: list[bytes]
) -> None:
    reply = await next_reply(server, streams(*events, event_of({}, "tool_calls"), DONE))
    assert reply.tool_calls == [ToolCall(id="a", name="shell", arguments=LS)]


@pytest.mark.parametrize(
    ("indexes", "are_mixed"),
    [((0, 1), False), ((0, 1), True), ((0, 0), False), ((None, None), False)],
)
async def test_chunks_are_assembled_to_several_tool_calls(
    server: ModelServer, indexes: tuple[int | None, int | None], are_mixed: bool
) -> None:
    """Indexes tell the calls apart. If an index is the same for both or missing, the ids do."""
    first, second = indexes
    events = [
        _call_part(LS[:5], first, id="a", name="shell"),
        _call_part(LS[5:], first),
        _call_part("{", second, id="b", name="shell"),
        _call_part("}", second),
    ]
    if are_mixed:
        events[1], events[2] = events[2], events[1]
    reply = await next_reply(server, streams(*events, event_of({}, "tool_calls"), DONE))
    assert reply.tool_calls == [
        ToolCall(id="a", name="shell", arguments=LS),
        ToolCall(id="b", name="shell", arguments="{}"),
    ]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([event_of({"content": "It is"})], "ended its answer in the middle."),
        ([b": nothing\n\n"], "ended its answer in the middle."),
        ([DONE], "(the stream has no message)."),
        ([event({"choices": [{"finish_reason": "stop"}]})], "(the stream has no message)."),
        ([b"data: {\n\n", DONE], "did not answer with a chat completion ("),
        ([b"data: []\n\n", DONE], "did not answer with a chat completion ("),
        ([event_of({"content": 7}), STOP], "(choices.0.delta.content: "),
        (
            [event_of({"content": "hm"}), event({"error": {"message": f"no room\nfor {KEY}."}})],
            ": no room for [API key].",
        ),
        ([event({"error": "overloaded"})], "ended its answer with an error: overloaded."),
        ([event({"error": {"code": 7}})], "ended its answer with an error."),
        ([event_of({"content": "ü" * 300_000})] * 2, "more than 1,048,576 bytes."),
        ([b"data: " + b" " * 2_000_000], "more than 1,048,576 bytes."),
        ([_call_part("x" * 600_000, id="a", name="shell")] * 2, "more than 1,048,576 bytes."),
        (
            [_call_part("{}", at, name="shell") for at in range(129)],
            "asked for more than 128 tool calls.",
        ),
    ],
)
async def test_an_invalid_stream_fails_at_once(
    server: ModelServer, events: list[bytes], expected: str
) -> None:
    assert expected in await failure(server, streams(*events))
    assert len(server.requests) == 1


async def test_an_answer_whose_connection_breaks_is_retried_from_the_start(
    server: ModelServer,
) -> None:
    cut = streams(event_of({"content": "It is not"}), cut=True)
    assert (await next_reply(server, cut, says("It is done."))).content == "It is done."
    server.script.clear()
    assert "broke the connection (" in await failure(server, cut, max_retries=1)
    assert len(server.requests) == 4


async def test_an_answer_that_does_not_end_fails_at_the_timeout(server: ModelServer) -> None:
    # The timeout includes time for the answer to begin on a busy machine.
    reason = await failure(
        server, streams(event_of({"content": "hm"}), Gate()), timeout_seconds=2.5
    )
    assert reason.endswith("did not finish its answer within 2.5 seconds.")
    assert await asyncio.to_thread(server.left.wait, 10)


@pytest.mark.parametrize(
    ("refusals", "last"),
    [
        (
            [
                answers(
                    {
                        "error": {
                            "message": "Unrecognized request argument supplied: stream_options"
                        }
                    },
                    400,
                )
            ],
            {"stream": True},
        ),
        ([answers({"detail": [{"loc": ["body", "stream_options"]}]}, 422)], {"stream": True}),
        ([answers({"error": {"message": "You may not stream this model."}}, 400)] * 2, {}),
    ],
)
async def test_an_endpoint_that_refuses_to_stream_is_not_asked_to_stream_again(
    server: ModelServer, refusals: list[Answer], last: dict[str, Any]
) -> None:
    server.script.extend([*refusals, calls("ls"), says("done")])
    model = model_at(server)
    for _ in range(2):
        await model.answer(CHAT, Reply())
    assert len(server.requests) == len(refusals) + 2
    for request in server.requests[-2:]:
        assert {name: request[name] for name in request if name.startswith("stream")} == last


async def test_a_refusal_for_another_reason_is_not_retried(server: ModelServer) -> None:
    await failure(
        server,
        answers({"error": {"message": "the upstream endpoint does not know the model"}}, 400),
    )
    assert len(server.requests) == 1

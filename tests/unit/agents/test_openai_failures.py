"""Failures of an OpenAI endpoint: which ones are retried, and how they are explained."""

import asyncio
import time

import pytest

from tests.support.model_server import Answer, Gate, ModelServer, answers, says
from tests.unit.agents.asking import KEY, failure, next_reply

# Runs a test with one of the two endpoints only: the pauses between attempts are equal for both.
once = pytest.mark.parametrize("server", ["whole"], indirect=True)


@once
async def test_too_many_requests_are_retried_after_the_given_time(server: ModelServer) -> None:
    began = time.monotonic()
    reply = await next_reply(server, Answer(b"{}", 429, {"retry-after": "1"}), says("done"))
    assert (reply.content, len(server.requests)) == ("done", 2)
    assert time.monotonic() - began >= 1.0


@pytest.mark.parametrize(
    "first", [answers({}, status=500), answers({}, status=503), Answer(b'{"choices"', cut=True)]
)
async def test_a_transient_failure_is_retried(server: ModelServer, first: Answer) -> None:
    assert (await next_reply(server, first, says("done"))).content == "done"
    assert len(server.requests) == 2


async def test_a_lasting_failure_ends_after_four_attempts(server: ModelServer) -> None:
    reason = await failure(
        server, answers({"error": {"message": f"out of\norder for {KEY}."}}, status=500)
    )
    assert (
        reason
        == f"The model's endpoint {server.host} answered HTTP 500: out of order for [API key]."
    )
    assert len(server.requests) == 4


@once
async def test_retries_stay_within_the_timeout_and_the_reason_has_the_last_answer(
    server: ModelServer,
) -> None:
    # The timeout includes time for the first answer on a busy machine.
    reason = await failure(
        server, answers({}, status=429, retry_after_ms="60000"), timeout_seconds=2.5
    )
    assert reason.endswith(
        "did not answer within 2.5 seconds; the last answer was HTTP 429 (too many requests)."
    )


async def test_an_endpoint_that_hangs_fails_at_the_timeout(server: ModelServer) -> None:
    assert "did not answer within 0.2 seconds." in await failure(
        server, Answer(gate=Gate()), timeout_seconds=0.2
    )
    assert await asyncio.to_thread(server.left.wait, 10)


async def test_a_connection_that_always_breaks_fails(server: ModelServer) -> None:
    assert "broke the connection (" in await failure(server, Answer(b"{", cut=True), max_retries=0)


async def test_an_endpoint_that_does_not_listen_fails(server: ModelServer) -> None:
    server.server_close()
    assert "could not be reached" in await failure(server, max_retries=1)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(b"<!DOCTYPE html><html>", headers={"content-type": "text/html"}), "an HTML page"),
        (Answer(b" <HTML>"), "an HTML page"),
        (Answer(b"<html>No</html>", 403, {"content-type": "text/html"}), "answered HTTP 403."),
        (Answer(b""), "did not answer with a chat completion"),
        (Answer(b'{"choices": ['), "did not answer with a chat completion"),
        (Answer(b"\xff\xfe"), "did not answer with a chat completion"),
        (answers({}), "(choices: Field required)"),
        (answers([]), "did not answer with a chat completion"),
        (answers({"choices": []}), "choices"),
        (answers({"choices": None}), "choices"),
        (answers({"choices": [{}]}), "choices.0.message"),
        (answers({"choices": [{"message": {"content": 7}}]}), "choices.0.message.content"),
        (says("x" * 2_000_000), "more than 1,048,576 bytes"),
        (
            answers({"error": {"message": "Incorrect API key sk-a***key"}}, status=401),
            "refused the API key (HTTP 401).",
        ),
        (
            answers({"error": {"message": "no model 'test'"}}, status=404),
            "answered HTTP 404: no model 'test'.",
        ),
        (answers({"message": "too long " * 100}, status=400), "…"),
        (answers("no", status=400), "HTTP 400: no."),
        (answers({"error": [KEY]}, status=422), "answered HTTP 422."),
        (Answer(status=302), "answered HTTP 302."),
    ],
)
async def test_invalid_answers_and_refusals_fail_at_once(
    server: ModelServer, answer: Answer, expected: str
) -> None:
    reason = await failure(server, answer)
    assert expected in reason
    assert "***" not in reason
    assert len(reason) < 500
    assert len(server.requests) == 1

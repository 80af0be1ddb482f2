"""Calls to an API server that throttles, fails, is silent, or no longer has the watched version."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest

from evershell.fleet.kubernetes import api
from evershell.fleet.kubernetes.api import ApiError, GoneError, UnreachableError
from tests.unit.fleet.kubernetes.scripted import Script, failure, listed, pod, scripted, watched

LIMIT_SECONDS = 60.0


async def test_a_throttled_call_is_repeated_when_the_server_asks_for_it() -> None:
    script = Script(failure(429, retry_after="7"), failure(429, retry_after="3"), listed(5))
    async with scripted(script) as server:
        assert await server.list("pods", LIMIT_SECONDS) == ([], 5)
    assert script.pauses == [7.0, 3.0]


@pytest.mark.parametrize(
    "problem",
    [
        failure(500),
        failure(503),
        httpx2.ConnectError("refused"),
        httpx2.ReadTimeout("silent"),
        httpx2.Response(200, content=b"{half"),
        httpx2.Response(502, content=b"<html>", headers={"content-type": "text/html"}),
    ],
    ids=["500", "503", "refused", "silent", "half", "proxy"],
)
async def test_a_passing_failure_is_repeated(problem: httpx2.Response | Exception) -> None:
    script = Script(problem, listed(5))
    async with scripted(script) as server:
        assert await server.list("pods", LIMIT_SECONDS) == ([], 5)
    assert len(script.pauses) == 1
    assert 0 < script.pauses[0] <= 0.1


async def test_a_server_that_stays_away_is_unreachable_after_the_limit() -> None:
    script = Script(httpx2.ConnectError("refused"))
    async with scripted(script) as server:
        with pytest.raises(UnreachableError, match="refused"):
            await server.list("pods", 0.05)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
async def test_a_refusal_is_final(status: int) -> None:
    script = Script(failure(status, "because"))
    async with scripted(script) as server:
        with pytest.raises(ApiError, match="because") as raised:
            await server.create("pods", {}, LIMIT_SECONDS)
    assert raised.value.status == status
    assert len(script.calls) == 1


async def test_a_list_has_all_pages() -> None:
    page = {"metadata": {"resourceVersion": "5", "continue": "more"}, "items": [pod(1)]}
    script = Script(httpx2.Response(200, json=page), listed(5, pod(2, "agent-ws-1-2")))
    async with scripted(script) as server:
        found, version = await server.list("pods", LIMIT_SECONDS)
    assert ([each["metadata"]["name"] for each in found], version) == (
        ["agent-ws-1-1", "agent-ws-1-2"],
        5,
    )
    assert script.calls[1][2]["continue"] == "more"


async def test_a_watch_asks_for_bookmarks_and_continues_after_its_version() -> None:
    script = Script(watched(("ADDED", pod(6)), ("BOOKMARK", pod(9))))
    async with scripted(script) as server:
        seen = [type_ async for type_, _ in server.watch("pods", 5)]
    assert seen == ["ADDED", "BOOKMARK"]
    (call,) = script.calls
    assert (call[2]["resourceVersion"], call[2]["allowWatchBookmarks"]) == ("5", "true")


@pytest.mark.parametrize(
    "answer",
    [failure(410), watched(("ERROR", {"code": 410, "message": "too old"}))],
    ids=["answer", "event"],
)
async def test_a_version_that_is_too_old_is_gone(answer: httpx2.Response) -> None:
    async with scripted(Script(answer)) as server:
        with pytest.raises(GoneError):
            async for _ in server.watch("pods", 5):
                pass


@pytest.mark.parametrize(
    "answer",
    [
        failure(429),
        failure(500),
        watched(("ERROR", {"code": 500, "message": "etcd"})),
        httpx2.ConnectError("refused"),
        httpx2.Response(200, content=b'{"type": "AD'),
    ],
    ids=["throttled", "500", "event", "refused", "half a line"],
)
async def test_a_watch_that_fails_is_unreachable(answer: httpx2.Response | Exception) -> None:
    async with scripted(Script(answer)) as server:
        with pytest.raises(UnreachableError):
            async for _ in server.watch("pods", 5):
                pass


async def test_a_watch_on_a_dead_connection_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses a real socket, because the limit applies to the silence of a connection."""
    monkeypatch.setattr(api, "_SILENCE_SECONDS", 0.1)

    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        await writer.drain()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer_once, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        watch: AsyncIterator[object] = api.Api(http, "default", "").watch("pods", 60)
        with pytest.raises(UnreachableError):
            await asyncio.wait_for(anext(watch), 30)

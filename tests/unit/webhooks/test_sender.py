"""Where requests are sent: addresses, redirects, and hostile answers."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from evershell.core.errors import Failure
from evershell.core.event import EventType
from evershell.features.webhooks import sender
from evershell.features.webhooks.rules import CreateWebhook, may_call
from evershell.features.webhooks.sender import Answer, Sender
from tests.support.waiting import eventually_async

LOOPBACK = (ip_network("127.0.0.0/8"),)
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",  # noqa: S104
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "168.63.129.16",
        "192.0.0.8",
        "192.0.2.1",
        "192.31.196.1",
        "192.52.193.1",
        "192.88.99.1",
        "192.175.48.1",
        "192.168.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::8.8.8.8",
        "::ffff:8.8.8.8",
        "::ffff:0:8.8.8.8",
        "64:ff9b::8.8.8.8",
        "64:ff9b:1::8.8.8.8",
        "2001::1",
        "2001:db8::1",
        "2001:1::1",
        "2001:4:112::1",
        "2002:808:808::1",
        "2620:4f:8000::1",
        "3fff::1",
        "fc00::1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ],
)
def test_an_address_that_is_not_public_is_not_called(address: str) -> None:
    assert not may_call(ip_address(address), "https", ())
    network = ip_network(address)
    assert may_call(ip_address(address), "https", (network,))
    assert may_call(ip_address(address), "http", (network,)) == ip_address(address).is_loopback


@pytest.mark.parametrize("address", ["8.8.8.8", "2a00:1450:4001::1"])
def test_a_public_address_is_called_by_https_alone(address: str) -> None:
    assert may_call(ip_address(address), "https", ())
    assert not may_call(ip_address(address), "http", LOOPBACK)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "ftp://example.com/",
        "http://example.com/",
        "https://",
        "https:///path",
        "https://user@example.com/",
        "https://user:password@example.com/",
        "https://example.com/#part",
        "https://example.com:0/",
        "https://example.com:99999/",
        "https://exa mple.com/",
        "https://example.com\\@127.0.0.1/",
        "https://exämple.com/",
        "https://example.com/\n",
        "https://10.0.0.1/",
        "https://[::ffff:8.8.8.8]/",
        "https://[::1/",
        "https://example.com/" + "a" * 2_000,
    ],
)
def test_a_url_that_is_not_valid_is_refused(url: str) -> None:
    with pytest.raises(Failure) as raised:
        CreateWebhook(url=url, event_types=[EventType.TASK_COMPLETED])
    assert list(raised.value.details["fields"]) == ["url"]


def test_http_is_for_loopback_if_it_is_allowed() -> None:
    types = [EventType.TASK_COMPLETED]
    CreateWebhook(url="http://127.0.0.1:8000/", event_types=types, allowed_networks=LOOPBACK)
    with pytest.raises(Failure):
        CreateWebhook(url="http://10.0.0.1/", event_types=types, allowed_networks=LOOPBACK)


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[str]:
    """A server on loopback. Yields its URL."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


def answering(*answers: bytes, seen: list[bytes] | None = None) -> Serve:
    """Serves one connection: gives each request, which has no body, the next answer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            request = await reader.readuntil(b"\r\n\r\n")
            if seen is not None:
                seen.append(request)
            writer.write(answer)
        await reader.read()
        writer.close()

    return serve


async def send(url: str, networks: tuple[object, ...] = LOOPBACK, times: int = 1) -> list[Answer]:
    async with Sender(networks) as sender:  # type: ignore[arg-type]
        return [await sender.send(url, {"a": "b"}, b"") for _ in range(times)]


async def test_a_connection_is_used_again() -> None:
    ok = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nset-cookie: a=b\r\n\r\nok"
    seen: list[bytes] = []
    async with serving(answering(ok, ok, seen=seen)) as url:
        assert await send(url, times=2) == [Answer(), Answer()]
    assert len(seen) == 2
    assert b"cookie" not in seen[1].lower()


async def test_the_scheme_may_have_capitals() -> None:
    ok = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    async with serving(answering(ok)) as url:
        assert await send(url.replace("http:", "HTTP:")) == [Answer()]


async def test_a_redirect_is_a_failure_and_is_not_followed() -> None:
    seen: list[bytes] = []
    async with serving(answering(b"", seen=seen)) as other:
        moved = f"HTTP/1.1 307 Moved\r\nlocation: {other}\r\ncontent-length: 0\r\n\r\n"
        async with serving(answering(moved.encode())) as url:
            (answer,) = await send(url)
    assert answer.error == "the receiver answered 307"
    assert not seen


async def test_the_address_that_a_name_resolves_to_is_checked() -> None:
    """The name is resolved when the request is made, so no earlier check could see its address."""
    connected = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        writer.close()

    async with serving(serve) as url:
        named = url.replace("127.0.0.1", "localhost")
        for forbidden in (url, named, named.replace("http:", "https:")):
            (answer,) = await send(forbidden, ())
            assert answer == Answer("the address is not allowed", is_down=True)
        assert not connected.is_set()
        (answer,) = await send(named)
        assert answer.error
        assert connected.is_set()


async def test_without_a_thread_for_a_name_an_attempt_fails_and_addresses_are_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Names for which no DNS server answers use all threads that resolve names."""
    monkeypatch.setattr(sender, "_CONNECT_SECONDS", 0.2)
    resolve, asked, can_end = socket.getaddrinfo, list[str](), threading.Event()

    def getaddrinfo(host: str, *arguments: Any) -> Any:
        if not host.startswith("silent"):
            return resolve(host, *arguments)
        asked.append(host)
        can_end.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "no server has answered")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    ok = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    async with serving(answering(ok)) as url, Sender(LOOPBACK) as sending:

        async def is_sent(to: str) -> bool:
            return await sending.send(to, {}, b"") == Answer()

        try:
            silent = [f"https://silent-{number}.example/" for number in range(sender._DNS_THREADS)]
            for each in await asyncio.gather(*(sending.send(name, {}, b"") for name in silent)):
                assert each.is_down
            assert len(asked) == sender._DNS_THREADS
            named = url.replace("127.0.0.1", "localhost")
            assert (await sending.send(named, {}, b"")).is_down
            await eventually_async(lambda: is_sent(url))
        finally:
            can_end.set()
        await eventually_async(lambda: is_sent(named))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\na: " + b"b" * 100_000 + b"\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
    ],
    ids=["many headers", "a long header", "not HTTP"],
)
async def test_an_answer_that_is_not_valid_is_a_failure(answer: bytes) -> None:
    async with serving(answering(answer)) as url:
        (result,) = await send(url)
    assert result.error
    assert len(result.error) <= 200


async def test_a_large_body_is_not_read() -> None:
    """The connection is closed, so that no later request reads the rest."""
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
        try:
            while True:
                writer.write(b"x" * 65_536)
                await writer.drain()
        except OSError:
            closed.set()

    async with serving(serve) as url:
        assert await send(url) == [Answer()]
        await asyncio.wait_for(closed.wait(), 30)


@pytest.mark.parametrize(
    ("status", "header", "expected"),
    [
        (410, "", Answer("the receiver answered 410", is_down=True, is_gone=True)),
        (500, "", Answer("the receiver answered 500")),
        (429, "7", Answer("the receiver answered 429", is_down=True, retry_after_seconds=7)),
        (503, "9" * 30, Answer("the receiver answered 503", True, 3_600)),
        (503, "soon", Answer("the receiver answered 503", is_down=True)),
    ],
)
async def test_what_a_status_means(status: int, header: str, expected: Answer) -> None:
    answer = f"HTTP/1.1 {status} X\r\nretry-after: {header}\r\ncontent-length: 0\r\n\r\n"
    async with serving(answering(answer.encode())) as url:
        assert await send(url) == [expected]

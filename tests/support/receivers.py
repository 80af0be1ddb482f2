"""Receivers of webhooks on loopback. Each one accepts its requests, or is hostile in one way."""

import asyncio
import json
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from standardwebhooks import Webhook

from tests.support.waiting import eventually

# A function that answers a request, and returns whether it has accepted the request.
Behaviour = Callable[[asyncio.StreamWriter], Awaitable[bool]]

_LIMIT_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request that a receiver has read."""

    # The headers, by name in lower case.
    headers: dict[str, str]
    body: bytes
    # When the request arrived, in seconds since 1970, by this machine's clock.
    arrived_at: float
    # Whether the caller got a success. Also False if the caller left before the answer.
    accepted: bool

    @property
    def event(self) -> dict[str, Any]:
        """The event that the request delivers."""
        event: dict[str, Any] = json.loads(self.body)
        return event

    def verified(self, secret: str) -> dict[str, Any]:
        """Returns the event. Raises WebhookVerificationError if the secret has not signed it."""
        event: dict[str, Any] = Webhook(secret).verify(self.body, self.headers)
        return event


@dataclass
class Receiver:
    """A receiver, and the requests that it has read. A test may change `behaviour` at any time."""

    behaviour: Behaviour
    host: str = "127.0.0.1"
    # The receiver's port; 0 until the receiver listens for the first time.
    port: int = 0
    # The requests, in the order of their arrival.
    requests: list[Request] = field(default_factory=list)
    # How many requests the receiver has accepted.
    accepted: int = 0
    # The number of connections so far.
    connections: int = 0
    # The connections that are open.
    open: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def address(self) -> str:
        """The receiver's address as `host:port`."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}/hook"

    def events(self, task_id: str = "") -> list[dict[str, Any]]:
        """The events in the order of their arrival, including repeats."""
        events = [each.event for each in list(self.requests)]
        return [each for each in events if not task_id or each["task_id"] == task_id]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection until the caller closes it."""
        self.connections += 1
        self.open.add(writer)
        try:
            while True:
                await self._answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open.remove(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        pairs = (line.partition(": ") for line in head.split("\r\n")[1:] if line)
        headers = {name.lower(): value for name, _, value in pairs}
        body = await reader.readexactly(int(headers["content-length"]))
        arrived_at, position, accepted = time.time(), len(self.requests), False
        self.requests.append(Request(headers, body, arrived_at, accepted))
        if await self.behaviour(writer):
            self.requests[position] = Request(headers, body, arrived_at, True)
            self.accepted += 1


class Receivers:
    """Runs receivers in a thread. Each one can listen, refuse connections, and listen again."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # The servers, by the addresses of their receivers.
        self._servers: dict[str, asyncio.Server] = {}
        self._receivers: list[Receiver] = []

    def add(self, behaviour: Behaviour, host: str = "127.0.0.1") -> Receiver:
        """Adds a receiver, which listens at once."""
        receiver = Receiver(behaviour, host)
        self.listen(receiver)
        return receiver

    def listen(self, receiver: Receiver) -> None:
        """Makes a receiver listen on its port."""

        async def listen() -> asyncio.Server:
            return await asyncio.start_server(receiver.serve, receiver.host, receiver.port)

        server = asyncio.run_coroutine_threadsafe(listen(), self._loop).result(_LIMIT_SECONDS)
        receiver.port = server.sockets[0].getsockname()[1]
        self._servers[receiver.address] = server
        self._receivers.append(receiver)

    def refuse(self, receiver: Receiver) -> None:
        """Makes a receiver refuse new connections from now on."""
        self._loop.call_soon_threadsafe(self._servers.pop(receiver.address).close)

    def end_connections(self) -> None:
        """Closes all connections, even if a request on them has no answer yet."""

        async def abort() -> None:
            for receiver in self._receivers:
                for writer in receiver.open:
                    writer.transport.abort()

        asyncio.run_coroutine_threadsafe(abort(), self._loop).result(_LIMIT_SECONDS)

    @contextmanager
    def running(self) -> Iterator["Receivers"]:
        """Runs the receivers inside the block. Ends all connections afterwards."""
        thread = threading.Thread(target=self._loop.run_forever)
        thread.start()
        try:
            yield self
        finally:
            for server in self._servers.values():
                self._loop.call_soon_threadsafe(server.close)
            self.end_connections()
            eventually(lambda: not any(each.open for each in self._receivers), _LIMIT_SECONDS)
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join(_LIMIT_SECONDS)
            self._loop.close()


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Runs a receiver that accepts all requests, unless a test changes its behaviour."""
    with Receivers().running() as receivers:
        yield receivers.add(accept)


async def accept(writer: asyncio.StreamWriter) -> bool:
    """Accepts the request at once."""
    await _send(writer, "204 No Content")
    return True


async def hang(writer: asyncio.StreamWriter) -> bool:
    """Never answers the request."""
    await writer.wait_closed()
    return False


async def send_endless_headers(writer: asyncio.StreamWriter) -> bool:
    """Begins an answer whose headers never end."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"x-more: " + b"x" * 1_000 + b"\r\n")
        await writer.drain()


async def fail_with_endless_body(writer: asyncio.StreamWriter) -> bool:
    """Fails the request, with a body that never ends."""
    writer.write(b"HTTP/1.1 500 Internal Server Error\r\n\r\n")
    while True:
        writer.write(b"x" * 65_536)
        await writer.drain()


def refuse(status: str) -> Behaviour:
    """Answers with a status that is not a success, such as `410 Gone`."""

    async def answer(writer: asyncio.StreamWriter) -> bool:
        await _send(writer, status, "content-length: 0\r\n")
        return False

    return answer


def accept_after(seconds: float) -> Behaviour:
    """Accepts the request after a delay."""

    async def answer(writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(seconds)
        return await accept(writer)

    return answer


def redirect(url: str) -> Behaviour:
    """Redirects the caller to another address."""

    async def answer(writer: asyncio.StreamWriter) -> bool:
        await _send(writer, "307 Temporary Redirect", f"location: {url}\r\ncontent-length: 0\r\n")
        return False

    return answer


def fail_at_random(share: float, seed: int = 0) -> Behaviour:
    """Fails requests at random: this share of them on average."""
    numbers, fail = random.Random(seed), refuse("500 Internal Server Error")

    async def answer(writer: asyncio.StreamWriter) -> bool:
        return await (fail if numbers.random() < share else accept)(writer)

    return answer


async def _send(writer: asyncio.StreamWriter, status: str, headers: str = "") -> None:
    writer.write(f"HTTP/1.1 {status}\r\n{headers}\r\n".encode())
    await writer.drain()

"""An agent for the peers, which answers each signal at once and counts it.

Over HTTP/1.1 on PORT, `POST /tasks/<id>/cancel` is a signal, and `GET /signals` returns the number
of signals for each task. Over gRPC on GRPC_PORT, METHOD is a signal: its request is the task's id.

`python -m bench.peers.agent PORT GRPC_PORT`
"""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
import httpx
import uvloop

from bench import processes
from bench.servers.agent import serve_method
from tests.support.ports import free_ports

# Takes the place of the credential with which a control plane authenticates itself to an agent.
TOKEN = "token-of-the-control-plane"
METHOD = "/bench.Agent/CancelTask"
_END_OF_HEAD = b"\r\n\r\n"
_AUTHORIZATION = f"\r\nauthorization: bearer {TOKEN}\r\n".encode()


@dataclass(frozen=True)
class Agent:
    """The agent, which runs in its own process. Its ports stay the same after a restart."""

    folder: Path
    ports: list[int] = field(default_factory=lambda: free_ports(2))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Runs the agent inside the block. At the start, the agent has counted no signals."""
        port, grpc_port = self.ports
        log = self.folder / "agent.log"
        with processes.running("bench.peers.agent", port, str(grpc_port), log=log):
            yield

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.ports[1]}"

    def signals(self) -> Counter[str]:
        """The number of signals that the agent has received for each task."""
        answer = httpx.get(f"{self.url}/signals", trust_env=False, timeout=30)
        return Counter(answer.raise_for_status().json())


class _Connection(asyncio.Protocol):
    """A connection from a control plane. Its requests have no body and come one at a time."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport does not subclass asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while _END_OF_HEAD in self._received:
            head, _, self._received = self._received.partition(_END_OF_HEAD)
            status, body = self._answer(head + b"\r\n")
            self._transport.write(
                b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                % (status, len(body), body)
            )

    def _answer(self, head: bytes) -> tuple[bytes, bytes]:
        method, path, _ = head.split(b" ", 2)
        match method, path.split(b"/"):
            case b"GET", [b"", b"signals"]:
                return b"200 OK", json.dumps(self._counts).encode()
            case b"POST", [b"", b"tasks", task_id, b"cancel"]:
                if _AUTHORIZATION not in head.lower():
                    return b"401 Unauthorized", b"{}"
                self._counts[task_id.decode()] += 1
                return b"200 OK", b'{"accepted":true}'
        return b"404 Not Found", b"{}"


async def _serve(port: int, grpc_port: int) -> None:
    counts: Counter[str] = Counter()

    async def cancel_task(task_id: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        if ("authorization", f"Bearer {TOKEN}") not in (context.invocation_metadata() or ()):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "")
        counts[task_id.decode()] += 1
        return b""

    over_grpc = await serve_method(METHOD, cancel_task, grpc_port)
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(counts), "127.0.0.1", port
    )
    await asyncio.gather(server.serve_forever(), over_grpc.wait_for_termination())


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), int(sys.argv[2])))

"""An agent for the peers, which answers each signal at once and counts it.

Over HTTP/1.1, `POST /tasks/<id>/cancel` takes a signal, and `GET /signals` returns the number of
signals by task. The next port takes signals over gRPC: the request of METHOD is the id of the task.
"""

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Self, cast

import grpc
import httpx
import uvloop

from tests.bench.peers import Address
from tests.bench.peers.server_process import ServerProcess

# Stands for the credential with which a control plane authorizes itself at an agent.
TOKEN = "token-of-the-control-plane"
METHOD = "/bench.Agent/CancelTask"
_END_OF_HEAD = b"\r\n\r\n"
_AUTHORIZATION = f"\r\nauthorization: bearer {TOKEN}\r\n".encode()


class Agent:
    """The agent in a process of its own. A context manager that starts and stops it."""

    def __init__(self, folder: Path) -> None:
        self._process = ServerProcess("agent", folder)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts the agent, without signals. It has the same address each time."""
        host, port = self.address
        self._process.start(["tests.bench.peers.agent", host, str(port)], {})

    def stop(self) -> None:
        """Stops the agent."""
        self._process.stop()

    @property
    def address(self) -> Address:
        """The host and the port of the agent."""
        return self._process.address

    @property
    def pid(self) -> int:
        """The process of the agent."""
        return self._process.pid


def signals(address: Address) -> Counter[str]:
    """Asks the agent at this address for the number of signals that it has, by task."""
    host, port = address
    answer = httpx.get(f"http://{host}:{port}/signals", trust_env=False, timeout=30)
    return Counter(answer.raise_for_status().json())


class _Connection(asyncio.Protocol):
    """A connection of a control plane: requests one after another, without a body."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not instances of asyncio.Transport.
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


async def _serve(host: str, port: int) -> None:
    counts: Counter[str] = Counter()

    async def cancel_task(task_id: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        if ("authorization", f"Bearer {TOKEN}") not in (context.invocation_metadata() or ()):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "")
        counts[task_id.decode()] += 1
        return b""

    service, method = METHOD.removeprefix("/").split("/")
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(cancel_task)
    over_grpc = grpc.aio.server()
    over_grpc.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    over_grpc.add_insecure_port(f"{host}:{port + 1}")
    await over_grpc.start()
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(counts), host, port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], int(sys.argv[2])))

"""A receiver of webhooks for the bench.

`python -m bench.servers.receiver PORT accept` accepts each delivery; with `hang` instead, it never
answers. It prints a line for each delivery: the time of its arrival, in seconds since 1970, and its
body.
"""

import asyncio
import re
import sys
import time
from typing import cast

import uvloop

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_ACCEPTED = b"HTTP/1.1 204 No Content\r\n\r\n"


class _Receiver(asyncio.Protocol):
    """One connection. The caller sends a request only after the answer to the previous one."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport does not subclass asyncio.Transport.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or length is None or len(body) < int(length[1]):
            return
        self._received = b""
        sys.stdout.buffer.write(b"%f %s\n" % (time.time(), body))
        sys.stdout.buffer.flush()
        self._transport.write(self._answer)


async def _serve(port: int, behaviour: str) -> None:
    answer = {"accept": _ACCEPTED, "hang": b""}[behaviour]
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Receiver(answer), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), sys.argv[2]))

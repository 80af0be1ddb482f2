"""Reads during a flood of bad credentials, which runs in a process of its own."""

import asyncio
import json
import secrets
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections import Counter
from urllib.parse import urlsplit

from tests.support.stack import ROOT, Stack

KINDS = ("keys", "signatures")
_PER_SECOND, _READS_PER_SECOND = 1_000, 100
_CONNECTIONS = 16
_TICK_SECONDS = 0.005
# How much may be queued on a connection. The flood skips requests beyond that.
_MAX_UNSENT_BYTES = 1_000_000


def _request(url: str, path: str, token: str) -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nhost: {urlsplit(url).netloc}\r\n"
        f"authorization: Bearer {token}\r\n\r\n"
    ).encode()


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def _status(reader: asyncio.StreamReader) -> int:
    """Reads one answer, and returns its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0]))
    return int(head.split(b" ", 2)[1])


async def _read(url: str, path: str, tokens: list[str], seconds: float) -> Counter[int]:
    """Reads at a constant rate, over one connection for each token. Returns the statuses."""
    statuses: Counter[int] = Counter()

    async def caller(token: str, delay: float) -> None:
        reader, writer = await _connect(url)
        began = time.perf_counter() + delay
        for number in range(int(seconds * _READS_PER_SECOND / len(tokens))):
            due = began + number * len(tokens) / _READS_PER_SECOND
            await asyncio.sleep(due - time.perf_counter())
            writer.write(_request(url, path, token))
            statuses[await _status(reader)] += 1
        writer.close()

    await asyncio.gather(
        *(caller(token, number / _READS_PER_SECOND) for number, token in enumerate(tokens))
    )
    return statuses


async def _flood(url: str, kind: str, session: str, seconds: float) -> Counter[int]:
    """Sends bad credentials at a constant rate, and returns the answers by status.

    The kind `keys` sends unknown API keys; `signatures` sends the session token with random
    signatures.
    """
    statuses: Counter[int] = Counter()
    signed = session.rpartition(".")[0]

    def bad() -> str:
        if kind == "keys":
            return f"sk_{secrets.token_urlsafe(32)}"
        return f"{signed}.{urlsafe_b64encode(secrets.token_bytes(64)).decode().rstrip('=')}"

    async def count(reader: asyncio.StreamReader) -> None:
        while True:
            statuses[await _status(reader)] += 1

    connections = [await _connect(url) for _ in range(_CONNECTIONS)]
    counting = [asyncio.create_task(count(reader)) for reader, _ in connections]
    began, sent = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        for number in range(sent, int(elapsed * _PER_SECOND)):
            _, writer = connections[number % _CONNECTIONS]
            if writer.transport.get_write_buffer_size() < _MAX_UNSENT_BYTES:
                writer.write(_request(url, "/v1/workspaces/ws_1", bad()))
        sent = int(elapsed * _PER_SECOND)
        await asyncio.sleep(_TICK_SECONDS)
    for task in counting:
        task.cancel()
    await asyncio.gather(*counting, return_exceptions=True)
    return statuses


def statuses_beside(stack: Stack, kind: str, seconds: float) -> tuple[Counter[int], Counter[int]]:
    """The statuses of reads by four callers during a flood, and those of the flood."""
    url, tokens = stack.ready["rest_url"], stack.tokens
    command = [sys.executable, "-m", "tests.stack.long.bad_credentials", url, kind]
    with subprocess.Popen(
        [*command, str(seconds + 1)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as flooding:
        assert flooding.stdin is not None and flooding.stdout is not None
        flooding.stdin.write(tokens["owner"])
        flooding.stdin.close()
        path = f"/v1/workspaces/{stack.ready['demo']['workspace_id']}"
        callers = [tokens[name] for name in ("full_access", "owner", "read_only", "submit_observe")]
        read = asyncio.run(_read(url, path, callers, seconds))
        answered: dict[str, int] = json.loads(flooding.stdout.read())
    return read, Counter({int(status): count for status, count in answered.items()})


if __name__ == "__main__":
    target, kind, seconds = sys.argv[1:]
    print(json.dumps(asyncio.run(_flood(target, kind, sys.stdin.read(), float(seconds)))))

"""Measures the latency of reads during a flood of bad credentials.

`python -m tests.bench.flood` prints it without a flood and with a flood of each kind. Flood and
readers write HTTP/1.1 directly, to measure the service and not an HTTP client. The flood runs in
a separate process.
"""

import asyncio
import json
import math
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.stack import ROOT, Stack

KINDS = ("keys", "signatures")
_CONNECTIONS = 16
_TICK_SECONDS = 0.005
# How much may be queued on a connection. The flood skips requests beyond that.
_MAX_UNSENT_BYTES = 1_000_000


@dataclass(slots=True)
class Figures:
    """The answers to calls, by HTTP status, and the latency of each in seconds."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        ordered = sorted(self.seconds)
        p50, p99 = statistics.median(ordered), ordered[math.ceil(len(ordered) * 0.99) - 1]
        return f"p50 {p50 * 1000:5.1f} ms, p99 {p99 * 1000:5.1f} ms, {dict(self.statuses)}"


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


async def read(
    url: str, path: str, tokens: list[str], seconds: float, per_second: float = 100
) -> Figures:
    """Makes and measures reads at a constant rate, with one connection for each token."""
    figures = Figures()

    async def caller(token: str, delay: float) -> None:
        reader, writer = await _connect(url)
        began = time.perf_counter() + delay
        for number in range(int(seconds * per_second / len(tokens))):
            await asyncio.sleep(began + number * len(tokens) / per_second - time.perf_counter())
            sent = time.perf_counter()
            writer.write(_request(url, path, token))
            figures.statuses[await _status(reader)] += 1
            figures.seconds.append(time.perf_counter() - sent)
        writer.close()

    await asyncio.gather(
        *(caller(token, number / per_second) for number, token in enumerate(tokens))
    )
    return figures


async def flood(url: str, kind: str, session: str, per_second: int, seconds: float) -> Counter[int]:
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
        for number in range(sent, int(elapsed * per_second)):
            _, writer = connections[number % _CONNECTIONS]
            if writer.transport.get_write_buffer_size() < _MAX_UNSENT_BYTES:
                writer.write(_request(url, "/v1/workspaces/ws_1", bad()))
        sent = int(elapsed * per_second)
        await asyncio.sleep(_TICK_SECONDS)
    for task in counting:
        task.cancel()
    await asyncio.gather(*counting, return_exceptions=True)
    return statuses


def measure(
    stack: Stack, kind: str | None, seconds: float, per_second: int = 1_000
) -> tuple[Figures, Counter[int]]:
    """Measures reads by four callers during a flood, or without one if `kind` is None.

    Returns the figures of the reads, and the answers to the flood by status.
    """
    url, tokens = stack.ready["rest_url"], stack.tokens
    path = f"/v1/workspaces/{stack.ready['demo']['workspace_id']}"
    flooding = None
    if kind is not None:
        command = [
            sys.executable,
            "-m",
            "tests.bench.flood",
            url,
            kind,
            str(per_second),
            str(seconds + 1),
        ]
        flooding = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert flooding.stdin is not None
        flooding.stdin.write(tokens["owner"])
        flooding.stdin.close()
    callers = [tokens[name] for name in ("full_access", "owner", "read_only", "submit_observe")]
    figures = asyncio.run(read(url, path, callers, seconds))
    answered: Counter[int] = Counter()
    if flooding is not None and flooding.stdout is not None:
        answered.update(
            {int(status): count for status, count in json.loads(flooding.stdout.read()).items()}
        )
        flooding.wait()
    return figures, answered


def main() -> None:
    """Starts a stack, and prints the figures without a flood and with each kind of flood."""
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder) / "state")
        stack.start()
        try:
            measure(stack, None, 1)
            for kind in (None, *KINDS):
                figures, answered = measure(stack, kind, 10)
                print(f"{kind or 'no flood':<12} {figures}; flood: {dict(answered)}")
        finally:
            stack.kill_if_running()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        target, kind, per_second, seconds = sys.argv[1:]
        answers = asyncio.run(
            flood(target, kind, sys.stdin.read(), int(per_second), float(seconds))
        )
        print(json.dumps(answers))

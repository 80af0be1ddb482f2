"""A thousand idle watchers use little memory and slow no other call."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.support.stack import Stack, Workspace
from tests.support.waiting import eventually

WATCHERS = 1000
# Ten times what a watcher takes in Envoy. More is a thread or a large buffer for each.
MOST_KIB = 700
FIRST_EVENT_SECONDS = 50.0


@pytest.fixture
def crowded(tmp_path: Path) -> Iterator[Stack]:
    """A stack with one worker, which serves all watchers."""
    with Stack(tmp_path / "state", WORKERS="1", RATE_LIMIT="off").started() as stack:
        yield stack


async def watch(stack: Stack) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Opens a stream and returns when its first event has arrived."""
    url = urlsplit(stack.ready["rest_url"])
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    path = f"/v1/workspaces/{stack.ready['demo']['workspace_id']}/events"
    writer.write(
        (
            f"GET {path} HTTP/1.1\r\nhost: x\r\n"
            f"authorization: Bearer {stack.tokens['full_access']}\r\n\r\n"
        ).encode()
    )
    assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
    assert b"workspace_provisioned" in await reader.readuntil(b"\n\n")
    return reader, writer


def kib(stack: Stack) -> dict[str, float]:
    """The resident memory of the processes."""
    children = psutil.Process(stack.pid).children()
    envoy = next(child for child in children if child.name() == "envoy")
    (worker,) = stack.pids("serve")
    return {
        "worker": psutil.Process(worker).memory_info().rss / 1024,
        "envoy": envoy.memory_info().rss / 1024,
    }


@pytest.mark.soak
async def test_a_thousand_watchers_who_wait(crowded: Stack) -> None:
    other = await asyncio.to_thread(Workspace, crowded)
    before = kib(crowded)
    async with asyncio.timeout(FIRST_EVENT_SECONDS):
        streams = await asyncio.gather(*(watch(crowded) for _ in range(WATCHERS)))
    after = kib(crowded)
    each = {program: round((after[program] - before[program]) / WATCHERS, 1) for program in before}
    print(f"KiB a watcher: {each}")
    assert max(each.values()) < MOST_KIB, each

    # Calls to other workspaces are as fast as without watchers.
    began = time.monotonic()
    assert other.cancel()["outcome"] == "no_active_task"
    cancelled_seconds = time.monotonic() - began
    assert (await asyncio.to_thread(lambda: other.await_end(other.submit("true"))))[
        "status"
    ] == "completed"
    print(f"a cancellation beside them took {cancelled_seconds * 1000:.0f} ms")
    # A busy machine takes longer than the usual milliseconds.
    assert cancelled_seconds < 10

    # Calls to the watched workspace are as fast, and every watcher receives its events.
    path = f"/v1/workspaces/{crowded.ready['demo']['workspace_id']}"
    task_id = (
        await asyncio.to_thread(crowded.rest().post, f"{path}/tasks", {"description": "true"})
    )["task_id"]

    async def read_end(reader: asyncio.StreamReader) -> None:
        # The log begins with the end of an earlier task.
        await reader.readuntil(task_id.encode())
        await reader.readuntil(b'"task_completed":{')

    async with asyncio.timeout(FIRST_EVENT_SECONDS):
        await asyncio.gather(*(read_end(reader) for reader, _ in streams))
    assert not any(reader.at_eof() for reader, _ in streams)
    for _, writer in streams:
        writer.close()
        await writer.wait_closed()
    with httpx.Client(transport=httpx.HTTPTransport(uds=admin_socket(crowded))) as admin:
        stat = "http://admin/stats?filter=http.rest.downstream_rq_active"
        eventually(lambda: int(admin.get(stat).text.rpartition(": ")[2]) < WATCHERS / 100)


def admin_socket(stack: Stack) -> str:
    """The path of Envoy's admin socket, from its configuration."""
    path: str = json.loads(
        (stack.state_dir / "envoy.yaml").read_text().split("path: ", 1)[1].split(",", 1)[0]
    )
    return path

"""Uses up what all callers share, with the calls of one organization."""

import asyncio
import hashlib
import json
import os
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from a2a.types import a2a_pb2
from evershell.workspace.v1 import workspace_service_pb2 as messages
from google.rpc import error_details_pb2, status_pb2

from evershell.api.interceptors.shares import SHARES, Kind
from tests.support.stack import ROOT, Stack

SERVICE = "/evershell.workspace.v1.WorkspaceService/"
_A2A = "/lf.a2a.v1.A2AService/"
# The pause after a failed call. The answer asks for a pause that is twice as long.
_PAUSE_SECONDS = 0.5
# The filler makes a quarter more calls than fit into the share, but at most this many more. Refused
# calls are repeated, and a high rate of refused calls would be another kind of load.
_MOST_MORE = 100
_FILL_SECONDS = 120.0
# In reality, the filler would run on other machines. So once it has filled the share, it gets only
# the processor time that the service does not use.
_NICE = 19
_CALLS_OF_A_CONNECTION = 900
_REPORT_SECONDS = 0.2
_DEADLINE_SECONDS = 600
_KEY = """
INSERT INTO api_keys (id, org_id, name, template, sha256, created_at)
SELECT %s, org_id, 'filler', 'full_access', %s, now() FROM workspaces WHERE id = %s
"""


@dataclass(frozen=True)
class Filler:
    """The calls that fill one share."""

    kind: Kind
    method: str
    # Makes the bytes of the request. If it is None, the caller begins calls but sends no request.
    request: Callable[[str], bytes] | None
    is_stream: bool = False


def _watch(workspace_id: str) -> bytes:
    return messages.WatchEventsRequest(workspace_id=workspace_id).SerializeToString()


def _list(_: str) -> bytes:
    return messages.ListAuditEntriesRequest(page_size=200).SerializeToString()


def _send(workspace_id: str) -> bytes:
    request = a2a_pb2.SendMessageRequest(tenant=workspace_id)
    request.message.message_id = "filler"
    request.message.role = a2a_pb2.ROLE_USER
    request.message.parts.add(text="sleep 600")
    return bytes(request.SerializeToString())


FILLERS = {
    "streams": Filler(Kind.STREAMS, SERVICE + "WatchEvents", _watch, is_stream=True),
    "lists": Filler(Kind.READS, SERVICE + "ListAuditEntries", _list),
    "waits": Filler(Kind.WAITS, _A2A + "SendMessage", _send),
    "slow bodies": Filler(Kind.BODIES, SERVICE + "SubmitTask", None),
    "slow cancellations": Filler(Kind.FIRST_BODIES, SERVICE + "CancelTask", None),
}


def new_keys(stack: Stack, workspace_id: str, count: int) -> list[str]:
    """Creates API keys for the organization of the workspace. Returns their secrets."""
    keys = [f"sk_{secrets.token_urlsafe(32)}" for _ in range(count)]
    with stack.database() as database:
        for key in keys:
            digest = hashlib.sha256(key.encode()).digest()
            database.execute(_KEY, (f"key_{secrets.token_hex(8)}", digest, workspace_id))
        database.commit()
    return keys


@asynccontextmanager
async def filled(
    stack: Stack, name: str, keys: Sequence[str], workspace_ids: Sequence[str], workers: int
) -> AsyncIterator[Counter[str]]:
    """Fills the organization's share inside the block, or all keys' shares if their sum is smaller.

    The calls come from a separate process. Each key uses one of the workspaces, because two keys
    cannot wait for the same A2A message. Yields a counter of the slugs with which the filler's
    calls have ended so far. The block begins once at least one call was refused. Rate limits must
    be off, since they would refuse calls as well.
    """
    share = SHARES[FILLERS[name].kind]
    room = min(share.organization, share.credential * len(keys)) * workers
    calls = room + min(room // 4, _MOST_MORE)
    filler = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, stack.ready["grpc_addr"], name, str(calls)),
        *workspace_ids,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    )
    assert filler.stdin is not None and filler.stdout is not None
    filler.stdin.write("\n".join(keys).encode())
    filler.stdin.close()
    ends: Counter[str] = Counter()
    is_filled = asyncio.Event()
    counting = asyncio.create_task(_count(filler.stdout, ends, is_filled))
    try:
        async with asyncio.timeout(_FILL_SECONDS):
            await is_filled.wait()
        yield ends
    finally:
        filler.kill()
        await filler.wait()
        await counting


async def _count(lines: asyncio.StreamReader, ends: Counter[str], is_filled: asyncio.Event) -> None:
    async for line in lines:
        ends.update(json.loads(line))
        if _shows_full(ends):
            is_filled.set()


def _shows_full(ends: Counter[str]) -> bool:
    # On a busy machine, a worker that is behind may refuse calls before the filler has had the time
    # to fill the share.
    return bool(ends["rate_limited"] or ends["unavailable"])


def _lower_priority() -> None:
    # A nice value applies to one thread, and gRPC has its own threads.
    for thread in Path("/proc/self/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(thread.name), _NICE)
    # Linux divides the processor between sessions before it applies nice values.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(_NICE))


async def _fill(address: str, name: str, calls: str, *workspace_ids: str) -> None:
    """Keeps `calls` calls open until the process is killed.

    Prints the slugs of the calls that end.
    """
    keys = sys.stdin.read().split()
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    channels = [
        grpc.aio.insecure_channel(address, options)
        for _ in range(0, int(calls), _CALLS_OF_A_CONNECTION)
    ]
    ends: Counter[str] = Counter()
    callers = [
        asyncio.create_task(
            _hold(
                channels[number % len(channels)],
                FILLERS[name],
                keys[number % len(keys)],
                workspace_ids[number % len(keys) % len(workspace_ids)],
                ends,
            )
        )
        for number in range(int(calls))
    ]
    while not any(caller.done() for caller in callers):
        await asyncio.sleep(_REPORT_SECONDS)
        if _shows_full(ends):
            _lower_priority()
        print(json.dumps(ends), flush=True)
        ends.clear()
    await asyncio.gather(*callers)


async def _hold(
    channel: grpc.aio.Channel, filler: Filler, key: str, workspace_id: str, ends: Counter[str]
) -> None:
    """Keeps one call open: repeats the call whenever it ends."""
    metadata = (("authorization", f"Bearer {key}"), ("a2a-version", "1.0"))
    request = filler.request and filler.request(workspace_id)

    async def nothing() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    def called() -> Any:
        if request is None:
            slow: Any = channel.stream_stream(filler.method)
            return slow(nothing(), metadata=metadata, timeout=_DEADLINE_SECONDS)
        whole: Any = channel.unary_stream(filler.method)
        return whole(request, metadata=metadata, timeout=_DEADLINE_SECONDS)

    while True:
        try:
            async for _ in called():
                pass
            ends["ok"] += 1
        except grpc.aio.AioRpcError as error:
            ends[slug_of(error)] += 1
            await asyncio.sleep(_PAUSE_SECONDS)


def slug_of(error: grpc.aio.AioRpcError) -> str:
    """Returns the slug of a failed call, or its gRPC status if it has no slug."""
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    with suppress(Exception):
        for packed in status_pb2.Status.FromString(details or b"").details:
            info = error_details_pb2.ErrorInfo()
            if packed.Unpack(info):
                return str(info.reason).lower()
    return str(error.code().name)


if __name__ == "__main__":
    asyncio.run(_fill(*sys.argv[1:]))

"""The neighbour: an organization that cancels a task and reads it while another fills a share."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
from evershell.workspace.v1 import workspace_service_pb2 as messages
from evershell.workspace.v1 import workspace_service_pb2_grpc

from bench.figures import percentile
from tests.faults.long.neighbours.fillers import slug_of
from tests.support.stack import Stack, Workspace

_DEADLINE_SECONDS = 5.0
# The pause of a single caller before each cancellation. It keeps the rate below the limit of a
# credential; several callers pause for longer.
_PAUSE_SECONDS = 0.02


@dataclass
class Seen:
    """The calls of one phase."""

    # The durations of the cancellations, in seconds.
    cancels: list[float] = field(default_factory=list)
    # The durations of the reads, in seconds.
    reads: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def add(self, other: "Seen") -> None:
        self.cancels += other.cancels
        self.reads += other.reads
        self.failures += other.failures

    def p99(self) -> tuple[float, float]:
        """The p99 of the durations of cancellations and of reads, in seconds."""
        return percentile(self.cancels, 99), percentile(self.reads, 99)


async def cancel_and_read(
    stack: Stack, workspace: Workspace, task_id: str, pairs: int, callers: int = 1
) -> Seen:
    """Cancels the task and reads it, `pairs` times, over one connection.

    `callers` is the number of such loops that run at once with the same credential.
    """
    seen = Seen()
    metadata = (("authorization", f"Bearer {stack.tokens['other_org']}"),)
    cancel = messages.CancelTaskRequest(workspace_id=workspace.id, task_id=task_id)
    get = messages.GetTaskRequest(workspace_id=workspace.id, task_id=task_id)
    options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(stack.ready["grpc_addr"], options) as channel:
        stub: Any = workspace_service_pb2_grpc.WorkspaceServiceStub(channel)
        for _ in range(pairs):
            await asyncio.sleep(_PAUSE_SECONDS * callers)
            for call, request, times in (
                (stub.CancelTask, cancel, seen.cancels),
                (stub.GetTask, get, seen.reads),
            ):
                began = time.monotonic()
                try:
                    await call(request, metadata=metadata, timeout=_DEADLINE_SECONDS)
                except grpc.aio.AioRpcError as error:
                    seen.failures.append(slug_of(error))
                times.append(time.monotonic() - began)
    return seen

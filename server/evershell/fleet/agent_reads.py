"""Reads the running calls of agents. Callers who ask at the same time share one read.

If a read fails, its agent counts as silent for a few seconds. Reads of a silent agent fail at once.
So agents that do not answer cost only a few reads per second, however many callers ask. Signals are
sent even to a silent agent. When the agent acknowledges one, it no longer counts as silent.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from contextvars import Context
from typing import Any, Generic, TypeVar

from evershell.pod.signal_stream import NotAcknowledgedError

# How long an agent counts as silent after a read has failed.
_SILENT_SECONDS = 3.0
# If many agents are silent, each of them counts as silent for longer, so that at most about this
# many reads per second are sent to agents that do not answer.
_READS_A_SECOND = 50

Agent = TypeVar("Agent", bound=Hashable)
Reply = TypeVar("Reply")


class AgentReads(Generic[Agent, Reply]):
    """The reads in flight, and the agents that are silent."""

    def __init__(self) -> None:
        self._reads: dict[tuple[Agent, str], asyncio.Task[Reply]] = {}
        # When each agent stops counting as silent. The entries are roughly sorted by this time.
        self._silent: dict[Agent, float] = {}

    async def read(
        self,
        agent: Agent,
        task_id: str,
        start: Callable[[], Coroutine[Any, Any, Reply]],
        seconds: float,
    ) -> Reply:
        """Joins the read of this task that is already in flight, or starts one. Returns its answer.

        `seconds` limits the wait. Raises NotAcknowledgedError if the agent does not answer, or if
        `start` raises this error.
        """
        if time.monotonic() < self._silent.get(agent, 0.0):
            raise NotAcknowledgedError("it did not answer a moment ago")
        key = (agent, task_id)
        reading = self._reads.get(key)
        if reading is None:
            # Runs in its own context, because the deadline of this caller must not apply to the
            # others.
            reading = asyncio.create_task(start(), context=Context())
            self._reads[key] = reading
            reading.add_done_callback(lambda ended: self._end(key, ended))
        # If this caller stops waiting, the read continues for the others.
        await asyncio.wait({reading}, timeout=seconds)
        if not reading.done() or reading.cancelled():
            raise NotAcknowledgedError("it does not answer")
        error = reading.exception()
        if isinstance(error, NotAcknowledgedError):
            raise NotAcknowledgedError(str(error), error.code)
        return reading.result()

    def answered(self, agent: Agent) -> None:
        """Notes that the agent has answered, so that it no longer counts as silent."""
        self._silent.pop(agent, None)

    async def aclose(self) -> None:
        """Ends the reads that are in flight."""
        reads = list(self._reads.values())
        for reading in reads:
            reading.cancel()
        await asyncio.gather(*reads, return_exceptions=True)

    def _end(self, key: tuple[Agent, str], reading: asyncio.Task[Reply]) -> None:
        del self._reads[key]
        agent, _ = key
        self._silent.pop(agent, None)
        if reading.cancelled() or reading.exception() is None:
            return
        now = time.monotonic()
        while self._silent and next(iter(self._silent.values())) < now:
            del self._silent[next(iter(self._silent))]
        self._silent[agent] = now + max(_SILENT_SECONDS, len(self._silent) / _READS_A_SECOND)

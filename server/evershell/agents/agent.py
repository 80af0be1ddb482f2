"""The agent: wires its parts, runs until the shutdown begins, and ends its tools."""

import asyncio
import faulthandler
import os
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from evershell.agents import children
from evershell.agents.active_task import ActiveTask
from evershell.agents.lease import Heartbeat, Lease
from evershell.agents.loop import AgentFunction, RejectedError, run_task
from evershell.agents.runtime_client import RuntimeClient, RuntimeCredential, RuntimeStub
from evershell.agents.session import Session
from evershell.agents.shutdown import AgentEndingError, ExitCode, Shutdown
from evershell.agents.step import Limits
from evershell.core.task import Phase, TaskEnded
from evershell.pod.crash_points import CrashPoints, kind_of
from evershell.telemetry.logs import Log

# How long code may block the event loop before tracebacks are logged. Shorter than the default
# lease.
_BLOCKED_SECONDS = 10.0
# The number of waits into which the watching thread divides _BLOCKED_SECONDS.
_WAITS = 4
_STDERR = 2
# The time limit for ending the background work, which may hang.
_CLOSING_SECONDS = 3.0


class Agent:
    """The agent of one workspace and one epoch."""

    def __init__(
        self,
        workers: dict[str, RuntimeStub],
        credential: RuntimeCredential,
        function: AgentFunction,
        limits: Limits,
        log: Log,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        crash_points: CrashPoints | None = None,
    ) -> None:
        """`workers` maps the address of each worker to its stub."""
        self._log = log
        self.shutdown = Shutdown()
        self.session = Session(self._work, self.shutdown, self._beat_now, log, monotonic)
        self._lease = Lease(monotonic)
        runtime = RuntimeClient(workers, credential, self._lease, self.shutdown, self.session, log)
        self._runtime = runtime if crash_points is None else _armed(runtime, crash_points)
        beat = partial(self._runtime.heartbeat, self._current)
        self._heartbeat = Heartbeat(beat, self._lease)
        self._function = function
        self._limits = limits

    def _current(self) -> tuple[str, Phase]:
        return self.session.task_id, self.session.phase

    async def run(self, address: str) -> None:
        """Registers `address` (host:port) and works until the shutdown begins.

        All tools have ended when this method returns.
        """
        background = [
            asyncio.create_task(self._guard(self._register_and_beat(address))),
            asyncio.create_task(self._guard(self._watch_lease())),
        ]
        try:
            await self.shutdown.wait()
            self._log.info(
                "agent_ending", reason=self.shutdown.reason, exit_code=int(self.shutdown.code)
            )
        finally:
            # Tools end before the process, because the controller takes the end of the process to
            # mean that its tools have ended too.
            await self.session.close()
            for part in background:
                part.cancel()
            await asyncio.wait(background, timeout=_CLOSING_SECONDS)

    async def _work(self, task: ActiveTask) -> TaskEnded | None:
        watching = asyncio.create_task(_show_blocking())
        children.begin(task.id, self._runtime.call_about_child)
        try:
            return await run_task(
                self._function, task, self._runtime.commit, self._limits, self._beat_now
            )
        finally:
            watching.cancel()

    def _beat_now(self) -> None:
        self._heartbeat.beat_now()

    async def _register_and_beat(self, address: str) -> None:
        await self._runtime.register(address, os.getpid())
        self._log.info("agent_registered", address=address)
        await self._heartbeat.run()

    async def _watch_lease(self) -> None:
        await self._lease.wait_over()
        self.shutdown.begin(ExitCode.LEASE_OVER, "the lease could not be renewed in time")

    async def _guard(self, part: Coroutine[Any, Any, None]) -> None:
        """Runs one of the agent's background parts. If the part raises, begins the shutdown."""
        try:
            await part
        except AgentEndingError:
            # The shutdown has begun already.
            pass
        except RejectedError as error:
            self.shutdown.begin(ExitCode.REJECTED, f"the control plane refused the agent: {error}")
        except Exception as error:  # noqa: BLE001 - logged, with its traceback
            self._log.exception("agent_crashed")
            self.shutdown.begin(ExitCode.CRASHED, repr(error))


async def _show_blocking() -> None:
    """Writes tracebacks to the log when the code of the agent blocks the event loop.

    The watching thread counts its own waits instead of seconds, because a stop (SIGSTOP) of the
    whole process must not count. faulthandler's timer is not used: it reads the stacks without the
    interpreter's lock, which can crash the process when it continues after a stop.
    """
    turns, over = 0, threading.Event()

    def watch() -> None:
        seen, silent = turns, 0
        while not over.wait(_BLOCKED_SECONDS / _WAITS):
            seen, silent = turns, silent + 1 if turns == seen else 0
            if silent == _WAITS:
                os.write(_STDERR, b"The event loop is blocked. The threads of the agent:\n")
                faulthandler.dump_traceback(_STDERR)

    threading.Thread(target=watch, daemon=True).start()
    try:
        while True:
            await asyncio.sleep(_BLOCKED_SECONDS / _WAITS / 2)
            turns += 1
    finally:
        over.set()


def _armed(runtime: RuntimeClient, points: CrashPoints) -> RuntimeClient:
    return points.armed(runtime, commit=lambda _, events: f"{kind_of(events)}_commit")

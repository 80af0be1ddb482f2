"""Restarts the programs of a running stack one after another, without losing a call."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import structlog

from evershell.app.signals import END_WAITS
from evershell.core.errors import OperatorError
from evershell.stack.envoy.edge_process import DRAIN_SECONDS, EdgeProcess
from evershell.stack.supervisor import Supervisor

log = structlog.get_logger()

# How long a restarted program may take until it serves.
_READY_SECONDS = 30.0
# The new Envoy ends its predecessor. If the predecessor still runs this long after its expected
# end, the supervisor ends it.
_OVERTIME_SECONDS = 2.0
# The times at which the workers end the calls that wait or stream through the old Envoy, so that
# their clients reconnect. They are in seconds after the new Envoy begins to serve. There are
# several, because a client may reuse its connection to the old Envoy. The last one is just before
# the old Envoy ends.
_END_WAITS_SECONDS = (0.0, 1.0, 2.0, 3.0, DRAIN_SECONDS - 0.3)


class RollingRestart:
    """Restarts the programs of a stack on SIGHUP."""

    def __init__(
        self, supervisor: Supervisor, edge: EdgeProcess, render: Callable[[Path], None]
    ) -> None:
        """Handles SIGHUP from now on.

        `render` writes Envoy's configuration to a file, and may raise OperatorError. A SIGHUP that
        a closing terminal sends stops the stack instead.
        """
        self._supervisor = supervisor
        self._edge = edge
        self._render = render
        self._requested = asyncio.Event()
        # A process that was started with SIGHUP ignored, for example by nohup, outlives its
        # terminal.
        self._ends_with_terminal = (
            _has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._on_sighup)

    async def run_on_request(self, started: "asyncio.Task[Any]") -> None:
        """Restarts the programs after each SIGHUP. Runs until it is cancelled.

        A SIGHUP during the start or during a restart is handled afterwards.
        """
        await asyncio.wait((started,))
        while True:
            await self._requested.wait()
            self._requested.clear()
            try:
                await self.run()
            except (OperatorError, OSError) as error:
                log.error("rolling_restart_failed", reason=str(error))

    async def run(self) -> None:
        """Restarts all programs except the database and the agents.

        If a program does not serve in time, the programs after it are not restarted. Raises
        OperatorError and OSError.
        """
        started_at = time.monotonic()
        log.info("rolling_restart_started")
        # This comes first, so that an invalid configuration changes nothing.
        await asyncio.to_thread(self._edge.configure, self._render)
        names = {address: f"worker-{i}" for i, address in enumerate(self._edge.settings.workers)}
        healthy = await self._edge.healthy_workers()
        # If an earlier restart has failed, the worker that does not serve is restarted first.
        for address in sorted(names, key=lambda address: address in healthy):
            await self._restart_worker(names[address], address)
        for name in self._supervisor.names("fleet-"):
            await self._supervisor.restart(name)
            # A controller counts event-loop turns only once it is able to lead.
            await _until(partial(self._supervisor.has_turned, name), name)
            log.info("program_restarted", name=name)
        await self._replace_edge()
        log.info("rolling_restart_completed", seconds=round(time.monotonic() - started_at, 1))

    def _on_sighup(self) -> None:
        if self._ends_with_terminal and not _has_terminal():
            signal.raise_signal(signal.SIGTERM)
        else:
            self._requested.set()

    async def _restart_worker(self, name: str, address: str) -> None:
        """Restarts one worker once all others are healthy, and waits until it is healthy too."""
        others = set(self._edge.settings.workers) - {address}

        async def others_are_healthy() -> bool:
            return others <= await self._edge.healthy_workers()

        async def is_healthy() -> bool:
            return address in await self._edge.healthy_workers()

        await _until(others_are_healthy, "the workers that are not restarted")
        await self._supervisor.restart(name)
        await _until(is_healthy, name)
        log.info("program_restarted", name=name)

    async def _replace_edge(self) -> None:
        await _until(self._edge.is_live, "envoy")
        predecessor = await self._supervisor.replace(
            "envoy", self._edge.next(), _READY_SECONDS + DRAIN_SECONDS + _OVERTIME_SECONDS
        )
        await _until(self._edge.is_live, "envoy")
        live_at = time.monotonic()
        for seconds in _END_WAITS_SECONDS:
            await asyncio.sleep(max(0.0, live_at + seconds - time.monotonic()))
            if await asyncio.to_thread(self._has_callers, predecessor):
                self._supervisor.send_signal(END_WAITS, "worker-")
        await self._supervisor.wait_predecessors()
        log.info("program_restarted", name="envoy")

    def _has_callers(self, process: "subprocess.Popen[bytes]") -> bool:
        try:
            connections = psutil.Process(process.pid).net_connections("tcp")
        except psutil.Error:
            return False
        ports = (self._edge.settings.rest_port, self._edge.settings.grpc_port)
        return any(
            each.laddr.port in ports and each.status == psutil.CONN_ESTABLISHED
            for each in connections
        )


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


async def _until(holds: Callable[[], Awaitable[bool]], name: str) -> None:
    """Waits for the condition. Raises an OperatorError that names the program."""
    try:
        async with asyncio.timeout(_READY_SECONDS):
            while not await holds():
                await asyncio.sleep(0.05)
    except TimeoutError as error:
        raise OperatorError(f"{name}: not ready within {_READY_SECONDS:.0f} s") from error

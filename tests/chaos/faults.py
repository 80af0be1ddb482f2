"""The faults: whom they hit, and when that is over."""

import asyncio
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg

from tests.chaos.plan import Fault, Kind, Target
from tests.e2e.stack import Stack

# What the supervisor starts again serves by then, if it is left alone.
BACK_SECONDS = 20.0
_POLL_SECONDS = 0.05
_SIGNALS = {Kind.FREEZE: signal.SIGSTOP, Kind.KILL: signal.SIGKILL, Kind.RESTART: signal.SIGTERM}


@dataclass(frozen=True, slots=True)
class Hit:
    """A fault that took place. Times in seconds since 1970."""

    fault: Fault
    # Nobody was there to be hit: it had just been killed.
    missed: bool
    began: float
    # When it goes on, or serves again.
    ended: float
    came_back: bool = True


class Faults:
    """Does to a stack what the plan says."""

    def __init__(self, stack: Stack, workspace_ids: Sequence[str]) -> None:
        self._stack = stack
        self._workspace_ids = workspace_ids
        self._frozen: list[psutil.Process] = []
        # When each was last hit, or went on.
        self._last: dict[Target, float] = {}
        self.hits: list[Hit] = []

    async def run(self, faults: Sequence[Fault]) -> None:
        """All of them, each at its time, until the last is over; nothing is frozen when this returns."""
        try:
            async with asyncio.TaskGroup() as group:
                for fault in faults:
                    group.create_task(self._inflict(fault))
        finally:
            for process in self._frozen:
                _send(process, signal.SIGCONT)

    async def _inflict(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_seconds)
        victims = await asyncio.to_thread(self._victims, fault)
        began, came_back = time.time(), True
        self._last[fault.target] = time.monotonic()
        for victim in victims:
            _send(victim, _SIGNALS[fault.kind])
        if fault.kind is Kind.FREEZE:
            self._frozen += victims
            await asyncio.sleep(fault.seconds)
            for victim in victims:
                _send(victim, signal.SIGCONT)
            self._last[fault.target] = time.monotonic()
        elif victims:
            came_back = await self._back(fault.target, victims[0].pid)
        self.hits.append(Hit(fault, not victims, began, time.time(), came_back))

    def _victims(self, fault: Fault) -> list[psutil.Process]:
        match fault.target:
            case Target.AGENT:
                with suppress(OSError, ValueError, psutil.Error):
                    return [psutil.Process(self._stack.agent_pid(self._workspace_ids[fault.index]))]
                return []
            case Target.BACKEND:
                backends = self.backends()
                return [backends[fault.index % len(backends)]] if backends else []
            case Target.DATABASE:
                postmaster = self._program(Target.DATABASE)
                if fault.kind is Kind.FREEZE and postmaster:
                    with suppress(psutil.Error):
                        return [*postmaster, *postmaster[0].children()]
                return postmaster
            case _:
                return self._program(fault.target)

    def backends(self) -> list[psutil.Process]:
        """The processes of PostgreSQL that serve a connection."""
        found = []
        for postmaster in self._program(Target.DATABASE):
            with suppress(psutil.Error):
                for child in postmaster.children():
                    with suppress(psutil.Error):
                        if "[local]" in " ".join(child.cmdline()):
                            found.append(child)
        return found

    def _program(self, target: Target) -> list[psutil.Process]:
        """What the supervisor runs under this name, if it runs now."""
        ports = {Target.WORKER_0: self._port(0), Target.WORKER_1: self._port(1)}
        found = []
        for child in psutil.Process(self._stack.pid).children():
            # One that is just being started, or has just ended, has no command yet, or any more.
            with suppress(psutil.Error, IndexError):
                command = child.cmdline()
                is_it = {
                    Target.FLEET: command[1:] == ["-m", "server", "fleet"],
                    Target.ENVOY: Path(command[0]).name == "envoy",
                    # The others of its processes say "postgres: " and what they do.
                    Target.DATABASE: Path(command[0]).name == "postgres",
                }.get(target, command[-1] == str(ports.get(target)))
                if is_it:
                    found.append(child)
        return found

    def _port(self, index: int) -> int:
        return int(self._stack.worker_addresses()[index].rpartition(":")[2])

    async def _back(self, target: Target, pid: int) -> bool:
        """Waits until another one serves, which may be hit meanwhile too.

        The load brings agents back, and clients their connections.
        """
        if target in (Target.AGENT, Target.BACKEND):
            return True
        while time.monotonic() < self._last[target] + BACK_SECONDS:
            programs = await asyncio.to_thread(self._program, target)
            if any(program.pid != pid for program in programs) and await asyncio.to_thread(self._serves, target):
                return True
            await asyncio.sleep(_POLL_SECONDS)
        return False

    def _serves(self, target: Target) -> bool:
        if target is Target.DATABASE:
            # Until it has recovered it refuses; one that is frozen meanwhile does not answer.
            with suppress(psycopg.OperationalError):
                psycopg.connect(self._stack.ready["database_url"], connect_timeout=2).close()
                return True
            return False
        if target is Target.FLEET:
            return True
        port = (
            int(self._stack.ready["rest_url"].rpartition(":")[2])
            if target is Target.ENVOY
            else self._port(0 if target is Target.WORKER_0 else 1)
        )
        with socket.socket() as probe:
            probe.settimeout(0.2)
            return probe.connect_ex(("127.0.0.1", port)) == 0


def _send(process: psutil.Process, number: signal.Signals) -> None:
    # psutil compares the start time: a number that was given to another process since is left alone.
    with suppress(psutil.Error):
        process.send_signal(number)

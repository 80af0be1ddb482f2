"""Inflicts the faults of a plan on a stack, and waits until the stack has recovered from each."""

import asyncio
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg

from evershell.store.leadership import LEADER_LOCK_KEY
from tests.faults.long.chaos.callers import Wire
from tests.faults.long.chaos.disks import Disks
from tests.faults.long.chaos.hog import hog
from tests.faults.long.chaos.load import Load
from tests.faults.long.chaos.plan import Fault, Kind, Target
from tests.faults.long.chaos.unhurt import Hurt
from tests.support.stack import Stack

# How long a restarted program may take to serve again, unless another fault hits it.
BACK_SECONDS = 20.0
_POLL_SECONDS = 0.05
# The time limit of a probe of the database.
_PROBE_SECONDS = 2
# Each of these targets has recovered from a fault once a controller leads and the database answers.
_LED = (Target.DATABASE, Target.BACKEND, Target.FLEET)
_SIGNALS = {
    Kind.FREEZE: signal.SIGSTOP,
    Kind.FORCE: signal.SIGSTOP,
    Kind.KILL: signal.SIGKILL,
    Kind.RESTART: signal.SIGTERM,
}
# For each worker that a fault freezes, the wire to the other worker.
_OTHER = {Target.WORKER_0: Wire.WORKER_1, Target.WORKER_1: Wire.WORKER_0}
# If this process dies and so cannot end the load, the load ends by itself this much later.
_LOAD_LIMIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Hit:
    """A fault and its effect. Times are in seconds since 1970."""

    fault: Fault
    # Whether the fault had no effect because its target was not running or no disk was mounted.
    missed: bool
    began: float
    # When the target continued or served again.
    ended: float
    came_back: bool = True
    # The workspace of the agent that was hit; empty for other targets.
    workspace_id: str = ""


class Faults:
    """Inflicts faults on a stack, and keeps a record of each."""

    def __init__(self, stack: Stack, workspace_ids: Sequence[str], disks: Disks) -> None:
        self._stack = stack
        self._disks = disks
        self._workspace_ids = workspace_ids
        self._frozen: list[psutil.Process] = []
        # When the last fault of each target began or ended, in seconds of the monotonic clock.
        self._last: dict[Target, float] = {}
        self.hits: list[Hit] = []

    async def run(self, faults: Sequence[Fault], load: Load) -> None:
        """Inflicts each fault at its time, and returns when the last one is over.

        No process stays frozen, even if an error is raised.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for fault in faults:
                    group.create_task(self._inflict(fault, load))
        finally:
            for process in self._frozen:
                _send(process, signal.SIGCONT)

    def hurts(self, workspace_ids: Sequence[str]) -> Iterator[Hurt]:
        """Yields what the faults did to programs, and to the agents of these workspaces."""
        for hit in self.hits:
            target, is_fatal = hit.fault.target, hit.fault.kind is Kind.KILL
            if hit.missed:
                continue
            if target is Target.AGENT:
                yield Hurt(hit.workspace_id, hit.began, hit.ended, is_fatal=is_fatal)
            elif target is Target.PODS:
                for workspace_id in workspace_ids:
                    yield Hurt(workspace_id, hit.began, hit.ended, is_of_starts=True)
            else:
                program = "postgres" if target is Target.DATABASE else str(target)
                yield Hurt(program, hit.began, hit.ended)

    async def _inflict(self, fault: Fault, load: Load) -> None:
        await asyncio.sleep(fault.at_seconds)
        self._last[fault.target] = time.monotonic()
        self.hits.append(await self._hit(fault, load))

    async def _hit(self, fault: Fault, load: Load) -> Hit:
        match fault.kind:
            case Kind.FILL:
                return await self._fill(fault)
            case Kind.LOAD:
                return await self._take_processors(fault)
            case _:
                return await self._strike(fault, load)

    async def _take_processors(self, fault: Fault) -> Hit:
        with ExitStack() as taken:
            taking = hog(fault.index, fault.seconds + _LOAD_LIMIT_SECONDS)
            await asyncio.to_thread(taken.enter_context, taking)
            began = time.time()
            await asyncio.sleep(fault.seconds)
        return Hit(fault, False, began, time.time())

    async def _fill(self, fault: Fault) -> Hit:
        began = time.time()
        if not self._disks.has(fault.target):
            return Hit(fault, missed=True, began=began, ended=began)
        await asyncio.to_thread(self._disks.fill, fault.target)
        try:
            if fault.target is Target.DATABASE and fault.index % 2:
                await asyncio.to_thread(self._take_next_segment)
            while (left := began + fault.seconds - time.time()) > 0:
                await asyncio.sleep(min(left, _POLL_SECONDS))
                await asyncio.to_thread(self._disks.keep_full, fault.target)
        finally:
            self._disks.free(fault.target)
        self._last[fault.target] = time.monotonic()
        return Hit(fault, False, began, time.time(), await self._back(fault.target))

    def _take_next_segment(self) -> None:
        """Makes the database begin the next file of its write-ahead log.

        The full disk has no space for this file, so the database aborts and recovers.
        """
        with suppress(psycopg.Error), self._database() as connection:
            connection.execute("SELECT pg_switch_wal()")

    async def _strike(self, fault: Fault, load: Load) -> Hit:
        victims = await asyncio.to_thread(self._victims, fault)
        began, came_back = time.time(), True
        for victim in victims:
            _send(victim, _SIGNALS[fault.kind])
        if fault.kind in (Kind.FREEZE, Kind.FORCE):
            self._frozen += victims
            async with asyncio.TaskGroup() as calls:
                if fault.kind is Kind.FORCE and victims:
                    calls.create_task(load.force(_OTHER[fault.target]))
                await asyncio.sleep(fault.seconds)
                for victim in victims:
                    _send(victim, signal.SIGCONT)
            self._last[fault.target] = time.monotonic()
            came_back = await self._back(fault.target)
        elif victims:
            came_back = await self._back(fault.target, victims[0].pid)
        workspace_id = self._workspace_ids[fault.index] if fault.target is Target.AGENT else ""
        return Hit(fault, not victims, began, time.time(), came_back, workspace_id)

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
            case Target.FLEET:
                # One of the controllers, or all of them.
                controllers = self._program(Target.FLEET)
                choices = [*([each] for each in controllers), controllers]
                return choices[fault.index % len(choices)]
            case _:
                return self._program(fault.target)

    def backends(self) -> list[psutil.Process]:
        """Returns the processes of PostgreSQL that each serve one connection."""
        found = []
        for postmaster in self._program(Target.DATABASE):
            with suppress(psutil.Error):
                for child in postmaster.children():
                    with suppress(psutil.Error):
                        if "[local]" in " ".join(child.cmdline()):
                            found.append(child)
        return found

    def _program(self, target: Target) -> list[psutil.Process]:
        """Returns the processes of this program that are running."""
        ports = {Target.WORKER_0: self._port(0), Target.WORKER_1: self._port(1)}
        found = []
        for child in psutil.Process(self._stack.pid).children():
            # A process that is starting or has ended may have an empty command line.
            with suppress(psutil.Error, IndexError):
                command = child.cmdline()
                is_target = {
                    Target.FLEET: command[1:4] == ["-m", "evershell.commands", "fleet"],
                    Target.ENVOY: Path(command[0]).name == "envoy",
                    # PostgreSQL's first process. The command lines of its other processes begin
                    # with "postgres: ".
                    Target.DATABASE: Path(command[0]).name == "postgres",
                }.get(target, command[-1] == str(ports.get(target)))
                if is_target:
                    found.append(child)
        return found

    def _port(self, index: int) -> int:
        return int(self._stack.worker_addresses()[index].rpartition(":")[2])

    async def _back(self, target: Target, pid: int = 0) -> bool:
        """Waits until the target serves again, in another process than `pid`.

        Returns False if it does not serve within BACK_SECONDS. The time starts anew when a fault
        hits something that the target needs. Does not wait for agents, which the load brings back,
        or for the disks of pods and logs.
        """
        if target in (Target.AGENT, Target.PODS, Target.LOGS):
            return True
        needed = _LED if target in _LED else (target,)
        while time.monotonic() < max(self._last.get(each, 0) for each in needed) + BACK_SECONDS:
            programs = await asyncio.to_thread(self._program, target)
            is_running = target is Target.BACKEND or any(program.pid != pid for program in programs)
            if is_running and await asyncio.to_thread(self._serves, target):
                return True
            await asyncio.sleep(_POLL_SECONDS)
        return False

    def _serves(self, target: Target) -> bool:
        if target in _LED:
            return self._is_led()
        port = (
            int(self._stack.ready["rest_url"].rpartition(":")[2])
            if target is Target.ENVOY
            else self._port(0 if target is Target.WORKER_0 else 1)
        )
        with socket.socket() as probe:
            probe.settimeout(0.2)
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def _is_led(self) -> bool:
        """Whether the database answers and a fleet controller leads.

        A database that is recovering refuses connections; a frozen one does not answer.
        """
        with suppress(psycopg.OperationalError), self._database() as connection:
            found = connection.execute(
                "SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND granted",
                (LEADER_LOCK_KEY,),
            )
            return found.fetchone() is not None
        return False

    def _database(self) -> "psycopg.Connection[tuple[object, ...]]":
        options = f"-c statement_timeout={_PROBE_SECONDS}s"
        return psycopg.connect(
            self._stack.ready["database_url"],
            autocommit=True,
            connect_timeout=_PROBE_SECONDS,
            options=options,
            target_session_attrs="read-write",
        )


def _send(process: psutil.Process, number: signal.Signals) -> None:
    # psutil compares start times, so a new process that has the same id does not get the signal.
    with suppress(psutil.Error):
        process.send_signal(number)

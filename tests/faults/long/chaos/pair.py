"""Chaos on one machine with a pair of databases, TLS to agents, wrong clocks and upgrades.

An upgrade restarts the programs with a later version of this checkout, or with the checkout itself.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import psutil
import psycopg

from tests.faults.long.chaos import plan
from tests.faults.long.chaos.disks import Disks
from tests.faults.long.chaos.faults import Faults, Hit
from tests.faults.long.chaos.load import Load
from tests.faults.long.chaos.plan import Fault, Kind, Plan, Target
from tests.faults.long.chaos.run import Outcome, new_stack, play
from tests.stack.long.clocks import Clocks
from tests.support.distribution import Environment, build_later
from tests.support.replication import Replication
from tests.support.stack import Stack
from tests.support.waiting import eventually

_HOUR = 3_600
# How long `evershell restart` may take. A restart that fails during other faults is not a
# violation.
_ROLLED_SECONDS = 180.0
_REJOINED_SECONDS = 120.0
_CLOCKS = {
    Target.CLOCK_OF_WORKERS: "serve",
    Target.CLOCK_OF_CONTROLLERS: "fleet",
    Target.CLOCK_OF_DATABASE: "database",
}
# The faults of plan.WEIGHTS, without those that need the embedded database, and with the faults
# that only this module can inflict.
WEIGHTS = {
    **{
        pair: weight
        for pair, weight in plan.WEIGHTS.items()
        if pair not in ((Kind.KILL, Target.DATABASE), (Kind.FILL, Target.DATABASE))
    },
    (Kind.FAIL_OVER, Target.DATABASE): 2,
    **{(Kind.STEP, clock): 1 for clock in _CLOCKS},
    (Kind.ROLL, Target.PROGRAMS): 1,
}


def draw(seed: int, seconds: float, workspaces: int, load: int = 0) -> Plan:
    """Draws a plan from `seed`."""
    return plan.draw(seed, seconds, workspaces, load, WEIGHTS)


def run(drawn: Plan, state_dir: Path) -> Outcome:
    """Starts two databases and a stack, plays the plan and stops them."""
    folder = state_dir.parent
    clocks = Clocks(folder / "clocks")
    clocks.set("database", 0)
    later = Environment(folder / "later", build_later(folder), "local")
    pair = Replication(folder, clocks.of("database"), clocks.of("database"))
    with ExitStack() as running:
        running.callback(pair.stop)
        pair.start()
        settings = {"STATE_DIR": str(state_dir), "DATABASE_URL": pair.url}
        migrated = later.run("evershell", "migrate", cwd=folder, **settings)
        assert migrated.returncode == 0, migrated.stderr
        stack = new_stack(state_dir, AGENT_TLS="on", **settings, **clocks.environment)
        return play(
            stack,
            drawn,
            lambda ids, disks: FaultsOfPair(stack, ids, disks, pair, clocks, later.python),
        )


class FaultsOfPair(Faults):
    """Inflicts faults on a stack and its databases, and keeps a record of each."""

    def __init__(
        self,
        stack: Stack,
        workspace_ids: Sequence[str],
        disks: Disks,
        pair: Replication,
        clocks: Clocks,
        later: Path,
    ) -> None:
        """`later` is the Python interpreter of the later version."""
        super().__init__(stack, workspace_ids, disks)
        self._pair = pair
        self._clocks = clocks
        self._pythons = sys.executable, str(later)
        self._is_whole = asyncio.Lock()

    async def _hit(self, fault: Fault, load: Load) -> Hit:
        match fault.kind:
            case Kind.FAIL_OVER:
                return await self._fail_over(fault)
            case Kind.STEP:
                return await self._step(fault)
            case Kind.ROLL:
                return await self._roll(fault)
            case _:
                return await super()._hit(fault, load)

    async def _fail_over(self, fault: Fault) -> Hit:
        # One fail-over at a time: without a standby, a second one would lose committed data.
        async with self._is_whole:
            began = time.time()
            await asyncio.to_thread(self._pair.fail_over)
            self._last[fault.target] = time.monotonic()
            came_back = await self._back(fault.target)
            ended = time.time()
            await asyncio.to_thread(eventually, self._rejoined, _REJOINED_SECONDS)
        return Hit(fault, False, began, ended, came_back)

    def _rejoined(self) -> bool:
        """Tries to start another standby.

        Returns False if this fails: other faults may hit the primary.
        """
        try:
            self._pair.rejoin()
        except (psycopg.OperationalError, subprocess.SubprocessError, TimeoutError):
            self._pair.standby.stop()
            return False
        return True

    async def _step(self, fault: Fault) -> Hit:
        began, name = time.time(), _CLOCKS[fault.target]
        self._clocks.set(name, _HOUR if fault.index % 2 else -_HOUR)
        await asyncio.sleep(fault.seconds)
        self._clocks.set(name, 0)
        return Hit(fault, False, began, time.time())

    async def _roll(self, fault: Fault) -> Hit:
        began, ended = time.time(), self._rolls()
        command = (self._pythons[fault.index % 2], "-m", "evershell.commands", "restart")
        environment = os.environ | {"STATE_DIR": str(self._stack.state_dir)}
        await asyncio.to_thread(subprocess.run, command, env=environment, check=True)
        rolled = partial(eventually, lambda: self._rolls() > ended, _ROLLED_SECONDS)
        await asyncio.to_thread(rolled)
        return Hit(fault, False, began, time.time())

    def _rolls(self) -> int:
        """Returns how many restarts have ended, with or without success."""
        said = self._stack.output.read_text(errors="replace")
        return said.count("rolling_restart_completed") + said.count("rolling_restart_failed")

    def _program(self, target: Target) -> list[psutil.Process]:
        if target is Target.DATABASE:
            return self._pair.primary.processes()[:1]
        return super()._program(target)

"""The process in which a worker sends the requests of webhooks.

Sending a request takes more processor time than answering a call. A separate process with a lower
priority sends the requests, so that calls are not delayed. It is started once there are webhooks or
deliveries, and runs until the worker ends.

The worker writes a line to the process's standard input when something was committed. It closes
this input to end the process; if the worker is killed, the kernel closes the input. The process
reports its counts as lines of JSON on its standard output.
"""

import asyncio
import json
import os
import resource
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import structlog

from evershell.core.errors import UnavailableError
from evershell.features.webhooks.deliverer import Counts

_COMMAND = (sys.executable, "-P", "-m", "evershell.commands.deliver")
# How often a worker without this process checks whether there are webhooks or deliveries. When the
# worker creates a webhook, it checks at once.
_LOOK_SECONDS = 5.0
# Commits are gathered for this long, so that the events of several are delivered together.
_GATHER_SECONDS = 0.1
_END_SECONDS = 2.0
_RESTART_SECONDS = 1.0
# The niceness of the process. If the worker and the process are both busy, the process gets a
# thirtieth of the worker's processor time.
_NICENESS = 15
_WAKE = b"\n"
# If name servers do not answer, a lookup holds a thread until the resolver of the C library gives
# up. For one server and one name, that takes 4 s with these options, and 10 s without. With several
# servers or search domains, it takes longer.
RESOLVER = {"RES_OPTIONS": "timeout:2 attempts:2"}

_log = structlog.get_logger()


class DeliveryProcess:
    """Starts the delivery process once there are webhooks or deliveries. Restarts it if it ends."""

    def __init__(
        self, is_needed: Callable[[], Awaitable[bool]], counted: Callable[..., None]
    ) -> None:
        """`is_needed` may raise UnavailableError. `counted` gets the fields of Counts."""
        self._is_needed = is_needed
        self._counted = counted
        self._process: Process | None = None
        self._wake_timer: asyncio.TimerHandle | None = None
        self._created = asyncio.Event()

    def committed(self) -> None:
        """Wakes the process soon, because an event may have been committed. Returns at once."""
        if self._process is not None and self._wake_timer is None:
            loop = asyncio.get_running_loop()
            self._wake_timer = loop.call_later(_GATHER_SECONDS, self._wake)

    def created(self) -> None:
        """Checks for webhooks at once, because one was created on this worker."""
        self._created.set()

    def _wake(self) -> None:
        self._wake_timer = None
        pipe = self._process.stdin if self._process is not None else None
        # A suspended process does not read its input, so lines would pile up. One line is enough to
        # wake it.
        if (
            pipe is not None
            and not pipe.is_closing()
            and pipe.transport.get_write_buffer_size() == 0
        ):
            pipe.write(_WAKE)

    async def run(self) -> None:
        """Runs until it is cancelled, and then ends the process."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._created.wait()
            self._created.clear()
            if not await self._is_needed_now():
                continue
            try:
                code = await self._run_process()
                _log.warning("webhook_process_ended", exit_code=code)
            except OSError as error:
                _log.warning("webhook_process_not_started", error=str(error))
            await asyncio.sleep(_RESTART_SECONDS)

    async def _is_needed_now(self) -> bool:
        with suppress(UnavailableError):
            return await self._is_needed()
        return False

    async def _run_process(self) -> int:
        """Runs the process. Returns its exit code. Ends the process if this call is cancelled."""
        # The process shares the standard error of the worker, and libuv makes every descriptor that
        # a child inherits blocking (uv__process_child_init). On a full disk, log lines would then
        # block the worker.
        is_blocking = os.get_blocking(sys.stderr.fileno())
        process = await asyncio.create_subprocess_exec(
            *_COMMAND, stdin=PIPE, stdout=PIPE, env={**RESOLVER, **os.environ}
        )
        os.set_blocking(sys.stderr.fileno(), is_blocking)
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        try:
            async for line in process.stdout:
                self._counted(**json.loads(line))
            return await process.wait()
        finally:
            self._process = None
            process.stdin.close()
            await asyncio.shield(_ended(process))


async def _ended(process: Process) -> None:
    """Kills the process if it does not end in time."""
    try:
        async with asyncio.timeout(_END_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def follow_worker(wake: Callable[[], None]) -> None:
    """Runs in the delivery process: calls `wake` when the worker writes, until the worker ends."""
    os.nice(_NICENESS)
    # Raises the limit of open files, because each connection is one. Many systems allow 1,024 by
    # default.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(1024):
        wake()


def report(counts: Counts) -> None:
    """Runs in the delivery process: sends the counts to the worker."""
    line: dict[str, Any] = asdict(counts)
    with suppress(OSError):
        os.write(sys.stdout.fileno(), json.dumps(line).encode() + b"\n")

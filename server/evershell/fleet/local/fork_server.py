"""The fork server of a controller: a process that forks agents into their sandboxes.

pod/fork_server.py is the code of that process. If an agent cannot be forked, its program is
executed instead. Running agents do not need the fork server. If the fork server has died or hangs,
a later start of an agent starts a new one.
"""

import asyncio
import signal
import socket
import struct
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress

import structlog

from evershell.fleet.local.processes import ProcessId
from evershell.pod.fork_server import JOINED, ROOM_VARIABLE, ForkRequest

# How long a sandbox may take to start its command. It normally takes a few milliseconds.
_SANDBOX_SECONDS = 5.0
# How long a fork may take. It normally takes 10 ms.
_FORK_SECONDS = 5.0
_ROOM_BYTES = 1024
_MAX_ANSWER_BYTES = 1024
# The ids of the sender's process, user and group: SCM_CREDENTIALS in unix(7).
_CREDENTIALS = struct.Struct("3i")

_log = structlog.get_logger()


class ForkServer:
    """Starts the fork server when it is needed."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """`environment` is the environment of the fork server, not of its agents."""
        self._command = command
        self._environment = {**environment, ROOM_VARIABLE: " " * _ROOM_BYTES}
        self._socket: socket.socket | None = None
        self.process: ProcessId | None = None

    def start(self) -> socket.socket:
        """Starts the process unless it is running, and returns the socket to it.

        Blocks for milliseconds. Raises OSError.
        """
        if self._socket is None:
            own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            own.setblocking(False)
            with other:
                child = subprocess.Popen(
                    self._command,
                    stdin=other.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=self._environment,
                    # Signals from the terminal are meant only for `up`.
                    start_new_session=True,
                )
            # Stops `subprocess` from reaping the child, because LocalPods.reap does that.
            child.returncode = 0
            self._socket, self.process = own, ProcessId.of(child.pid)
        return self._socket

    def close(self) -> None:
        """Ends the fork server. Its agents continue to run."""
        if self._socket is not None and self.process is not None:
            self._socket.close()
            self.process.send_signal(signal.SIGKILL)
            self._socket = self.process = None

    async def fork(
        self, request: ForkRequest, gate: socket.socket, stdin: int, log: int
    ) -> ProcessId | None:
        """Forks an agent into a sandbox whose command waits at a gate (isolation.py).

        Returns None if the command is executed instead, or if the sandbox has ended. The forked
        agent and the command never both run. Raises TimeoutError if the command does not reach the
        gate.
        """
        gate.setblocking(False)
        async with asyncio.timeout(_SANDBOX_SECONDS):
            await _readable(gate)
        if not gate.recv(1):
            return None
        try:
            return await self._fork(request, stdin, log)
        except OSError as error:
            _log.warning("agent_not_forked", reason=str(error) or "the fork server does not answer")
        with suppress(OSError):
            gate.send(b"\n")
        return None

    async def _fork(self, request: ForkRequest, stdin: int, log: int) -> ProcessId:
        """Forks the agent. If this raises OSError, no agent runs, now or later."""
        own, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        own.setblocking(False)
        with own:
            with other:
                self._send(request, (stdin, log, other.fileno()))
            used = self.process
            try:
                async with asyncio.timeout(_FORK_SECONDS):
                    await _readable(own)
            except TimeoutError:
                # The fork server hangs.
                if self.process == used:
                    self.close()
                raise
            answer, credentials, _, _ = own.recvmsg(
                _MAX_ANSWER_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size)
            )
            if answer != JOINED:
                raise OSError(answer.decode(errors="replace") or "the fork server has ended")
            # The kernel has translated the process id into this PID namespace.
            agent = ProcessId.of(_CREDENTIALS.unpack(credentials[0][2])[0])
            own.send(b"\n")
        return agent

    def _send(self, request: ForkRequest, descriptors: Sequence[int]) -> None:
        with suppress(ConnectionError):
            request.send(self.start(), descriptors)
            return
        self.close()
        request.send(self.start(), descriptors)


async def _readable(descriptor: socket.socket) -> None:
    """Waits until something can be read from the socket."""
    is_readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, is_readable.set)
    try:
        await is_readable.wait()
    finally:
        loop.remove_reader(descriptor)

"""Forks agents into their sandboxes, from a process that has already imported their program.

The controller sends one message for each agent (fleet/local/fork_server.py). The agent itself, not
this process, reads its spec, so the memory of an agent contains nothing of another agent.
"""

import ctypes
import gc
import json
import os
import signal
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from evershell.pod import joining
from evershell.pod.sandbox import FILES

# The agent sends this once it is in its sandbox. Anything else is the text of an error.
JOINED = b"joined"
# An environment variable of the fork server. Its long value only reserves memory: each agent writes
# its own environment over it (_show).
ROOM_VARIABLE = "EVERSHELL_ROOM"

_MAX_BYTES = 65536
# Fields of proc_pid_stat(5), counted from the field after the name.
_ARG_START, _ENV_END = 45, 48


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkRequest:
    """A message to the fork server.

    Three descriptors are sent with it: the agent's standard input, its log, and a socket. The agent
    sends JOINED through the socket, waits for a byte, and then runs. If the socket is closed
    instead, the agent ends.
    """

    # A process that waits in the sandbox.
    pid: int
    # The user of the sandbox, if the fork server is root.
    uid: int | None
    # The command line that /proc shows for the agent.
    command: Sequence[str]
    # The environment of the agent.
    environment: Mapping[str, str]

    def send(self, server: socket.socket, descriptors: Sequence[int]) -> None:
        """Sends this message, with the descriptors, to the fork server. Raises OSError."""
        socket.send_fds(server, [json.dumps(asdict(self)).encode()], descriptors)


def serve(main: Callable[[], NoReturn]) -> None:
    """Forks until the other end of standard input is closed. `main` runs in each agent.

    The program must not have started a thread, because a forked process has only one thread.
    """
    # The kernel reaps the children of this process. Agents are not among them, because they become
    # children of the controller.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # A garbage collection would write to memory that the agents share with this process.
    gc.freeze()
    with socket.socket(fileno=os.dup(0)) as server:
        while True:
            message, descriptors, _, _ = socket.recv_fds(server, _MAX_BYTES, 3)
            if not message:
                return
            if os.fork() == 0:
                server.close()
                _fork_agent(ForkRequest(**json.loads(message)), descriptors, main)
            for descriptor in descriptors:
                os.close(descriptor)


def _fork_agent(
    request: ForkRequest, descriptors: Sequence[int], main: Callable[[], NoReturn]
) -> NoReturn:
    stdin, log, answer = descriptors
    try:
        sandbox = joining.enter(request.pid, request.uid)
        if os.fork():
            os._exit(0)
        joining.become_init(sandbox)
        _become_agent(request, stdin, log, answer)
    except Exception as error:  # noqa: BLE001 - the controller logs it, unless it has ended
        with suppress(OSError):
            os.write(answer, str(error).encode())
        os._exit(1)
    try:
        main()
    except BaseException:  # noqa: BLE001 - a program would end with it too
        traceback.print_exc()
    finally:
        os._exit(1)


def _become_agent(request: ForkRequest, stdin: int, log: int, answer: int) -> None:
    """Makes the forked process look like a new program. Returns when the controller lets it run."""
    # The agent does not get its own session: the kernel may divide processor time among sessions,
    # and many agents would then get nearly all of it.
    os.setpgid(0, 0)
    os.chdir(FILES)
    for descriptor, standard in ((stdin, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, standard)
    os.closerange(3, answer)
    os.closerange(answer + 1, os.sysconf("SC_OPEN_MAX"))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(request.environment)
    _show(request.command, request.environment)
    os.write(answer, JOINED)
    if not os.read(answer, 1):
        os._exit(0)
    os.close(answer)


def _show(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Writes the command and the environment into the memory that /proc shows. Raises ValueError.

    The controller recognizes its agents by their environment.
    """
    stat = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    arg_start, arg_end, env_start, env_end = map(int, stat[_ARG_START : _ENV_END + 1])
    variables = [f"{name}={value}" for name, value in environment.items()]
    for words, start, end in ((command, arg_start, arg_end), (variables, env_start, env_end)):
        text = b"".join(word.encode() + b"\0" for word in words)
        if len(text) > end - start:
            raise ValueError("there is no room for its environment")
        ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)

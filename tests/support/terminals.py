"""Runs a command in its own terminal, as a person would run it."""

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click

# How long a command may take to print an expected text or to end, on a busy machine.
_SECONDS = 30.0


class Terminal:
    """A running command in a terminal: what it has printed, and a way to type."""

    def __init__(self, process: "subprocess.Popen[bytes]", descriptor: int) -> None:
        self._process = process
        self._descriptor = descriptor
        self._printed = b""

    @property
    def text(self) -> str:
        """Everything that was printed, without colours and cursor movements."""
        return click.unstyle(self._printed.decode(errors="replace")).replace("\r\n", "\n")

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def await_text(self, pattern: str, *, after: int = 0) -> int:
        """Waits until text after position `after` matches. Returns the position after the match.

        Raises TimeoutError if it does not match in time.
        """
        deadline = time.monotonic() + _SECONDS
        while (match := re.compile(pattern, re.DOTALL).search(self.text, after)) is None:
            if not self._read(deadline):
                raise TimeoutError(f"{pattern!r} was not printed in:\n{self.text}")
        return match.end()

    def echoes(self) -> bool:
        """Whether the terminal shows what is typed and passes it on line by line."""
        flags = termios.tcgetattr(self._descriptor)[3]
        return bool(flags & termios.ECHO and flags & termios.ICANON)

    def await_exit(self) -> int:
        """Waits until the command ends. Returns its exit code."""
        deadline = time.monotonic() + _SECONDS
        while self._read(deadline):
            pass
        return self._process.wait(max(deadline - time.monotonic(), 0.0))

    def _read(self, deadline: float) -> bool:
        """Reads what the command prints.

        Returns False if the command has ended or the time is up.
        """
        remaining = max(deadline - time.monotonic(), 0.0)
        if not select.select([self._descriptor], [], [], remaining)[0]:
            return False
        try:
            read = os.read(self._descriptor, 65_536)
        except OSError:
            # Every process has closed the other side of the terminal.
            return False
        self._printed += read
        return bool(read)


@contextmanager
def terminal(
    command: Sequence[str], environment: dict[str, str], *, columns: int = 120, rows: int = 30
) -> Iterator[Terminal]:
    """Runs a command in a terminal of this size. Ends the command when the block ends."""

    def attach() -> None:
        # Makes the terminal the controlling terminal of the command, so that Ctrl-C sends a signal.
        # Gives SIGINT its default action. If the tests run as a background job of a shell, they
        # ignore SIGINT, and the command would inherit this.
        os.login_tty(theirs)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    ours, theirs = os.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        command,
        env={**environment, "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=attach,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(ours)

"""Runs a program of Python on a terminal of its own."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios

from tests.support.stack import ROOT

_LIMIT_SECONDS = 60.0


def on_terminal(
    program: str, *arguments: str, columns: int = 80, environment: dict[str, str] | None = None
) -> str:
    """Runs the program until it ends. Returns what it prints."""
    own, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        env=kept | {"TERM": "xterm"} | (environment or {}),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    output = b""
    try:
        while select.select([own], [], [], _LIMIT_SECONDS)[0]:
            try:
                part = os.read(own, 4096)
            except OSError:
                # The program has ended.
                break
            output += part
        process.wait(_LIMIT_SECONDS)
    finally:
        process.kill()
        process.wait()
        os.close(own)
    return output.decode()

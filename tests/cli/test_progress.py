"""The line of progress on a terminal."""

import os
import pty
import sys

PROGRAM = """
from evershell.cli.progress import shown_progress
from evershell.cli.terminal import say_lines

with shown_progress(wanted=True):
    say_lines("an event")
"""


def test_a_line_that_is_printed_meanwhile_is_above_the_progress() -> None:
    process, terminal = pty.fork()
    if process == 0:
        os.execve(sys.executable, [sys.executable, "-c", PROGRAM], os.environ | {"TERM": "xterm"})  # noqa: S606
    output = b""
    try:
        while part := os.read(terminal, 4096):
            output += part
    except OSError:
        # The program has ended.
        pass
    finally:
        os.close(terminal)
        os.waitpid(process, 0)
    before, found, after = output.partition(b"an event")
    assert found and before.endswith(b"\r\x1b[2K")
    assert b"waiting for the agent" in before and b"waiting for the agent" in after

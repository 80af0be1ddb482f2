"""The line of progress on a terminal."""

from tests.support.terminals import on_terminal

PROGRAM = """
from evershell.cli.progress import shown_progress
from evershell.cli.terminal import say_lines

with shown_progress(wanted=True):
    say_lines("an event")
"""


def test_a_line_that_is_printed_meanwhile_is_above_the_progress() -> None:
    output = on_terminal(PROGRAM)
    before, found, after = output.partition("an event")
    assert found and before.endswith("\r\x1b[2K")
    assert "waiting for the agent" in before and "waiting for the agent" in after

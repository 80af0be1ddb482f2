"""The invalid command lines in docs/command-line-errors.md print what the page shows."""

import re
import shlex

import pytest

from evershell.client import Workspace
from tests.support.documents import blocks
from tests.support.stack import ROOT
from tests.unit.cli.fake_client import FakeClient, run

PAGE = (ROOT / "docs" / "command-line-errors.md").read_text()
SECTION = PAGE.partition("## The command line is not valid\n")[2].partition("\n## ")[0]


def test_each_command_line_prints_the_error_that_the_page_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, shown, others, errors = (block.text for block in blocks(SECTION))
    printed = [
        run(monkeypatch, FakeClient(), *words, prog_name="evershell") for words in commands(whole)
    ]
    assert "".join(f"{each.output}exit code {each.exit_code}\n" for each in printed) == shown
    lines = []
    for words in commands(others):
        # Any other call would fail, because the fake has no answer to it.
        fake = FakeClient(list_workspaces=[iter([Workspace("ws_1", name="demo")])])
        result = run(monkeypatch, fake, *words)
        assert result.exit_code == 2, words
        lines.append(result.output.splitlines()[-1])
    for line, expected in zip(lines, errors.splitlines(), strict=True):
        assert re.fullmatch(".*".join(map(re.escape, expected.split("…"))), line)


def commands(block: str) -> list[list[str]]:
    """Returns the arguments of each command in a block."""
    return [shlex.split(line)[1:] for line in block.splitlines()]

"""The errors of invalid command lines. docs/command-line-errors.md shows some of them."""

import re
import shlex

import pytest

from evershell.client import Workspace
from tests.support.documents import blocks
from tests.support.stack import ROOT
from tests.unit.cli.fake_client import FakeClient, run

PAGE = (ROOT / "docs" / "command-line-errors.md").read_text()
SECTION = PAGE.partition("## The command line is not valid\n")[2].partition("\n## ")[0]
# Each invalid command line, and its error. `…` stands for anything.
ERRORS = (
    (
        "cancel",
        "Missing argument 'WORKSPACE'. --all cancels every task.",
    ),
    (
        "cancel --all --filter task=task_1",
        "--all and --filter exclude each other.",
    ),
    (
        "cancel demo --all",
        "--all and --filter take no WORKSPACE, --task, --descendants or --wait.",
    ),
    (
        "cancel demo --yes",
        "--dry-run and --yes need --all or --filter.",
    ),
    (
        "cancel --all --json",
        "--json asks nothing: add --yes, or --dry-run.",
    ),
    (
        "cancel demo --wait soon",
        "Invalid value for '--wait': 'soon' is not a duration; write 500ms, 10s, 1m, 1h or 30d.",
    ),
    (
        "cancel demo --wait 99999999999d",
        "Invalid value for '--wait': '99999999999d' is too long.",
    ),
    (
        "cancel --filter task",
        "Invalid value for '--filter': 'task' is not NAME=VALUE.",
    ),
    (
        "cancel --filter team=blue",
        "Invalid value for '--filter': 'team' is not the name of a filter.",
    ),
    (
        "cancel --filter submitted-by=key_1 --filter submitted-by=key_2",
        "Invalid value for '--filter': 'submitted-by' was given twice.",
    ),
    (
        "cancel --filter submitted-before=yesterday",
        "Invalid value for '--filter': 'yesterday' is not a time; write 2026-11-24T18:03:00Z.",
    ),
    (
        "tasks",
        "Missing argument 'WORKSPACE'. --active lists what runs in all workspaces.",
    ),
    (
        "tasks demo --status runing",
        "Invalid value for '--status': 'runing' is not one of 'submitted', 'delivered', 'running', "
        "'completed', 'failed', 'cancelled', 'delivery_failed'.",
    ),
    (
        "workspaces --limit 0",
        "Invalid value for '--limit': 0 is not in the range 1<=x<=1000000.",
    ),
    (
        "submit demo",
        "Missing argument 'DESCRIPTION'.",
    ),
    (
        "submit demo 'echo hello' --metadata team",
        "Invalid value for '--metadata': 'team' is not NAME=VALUE.",
    ),
    (
        "submit demo 'echo hello' --max-cost much",
        "Invalid value for '--max-cost': 'much' is not an amount in USD; write 0.50 or 2.",
    ),
    (
        "watch demo --after last",
        "Invalid value for '--after': 'last' is not a valid whole number.",
    ),
    (
        "webhooks add https://example.com --event task_done",
        "Invalid value for '--event': 'task_done' is not one of 'workspace_provisioned', ….",
    ),
    (
        "completion csh",
        "Invalid value for 'SHELL': 'csh' is not one of 'bash', 'zsh', 'fish'.",
    ),
    (
        "top --sort name",
        "Invalid value for '--sort': 'name' is not one of 'time', 'cost'.",
    ),
    (
        "workspaces --token-file nowhere",
        "Invalid value for '--token-file': 'nowhere': No such file or directory",
    ),
    (
        "workspaces --cert-file mine.pem",
        "--cert-file and --key-file must be given together.",
    ),
    (
        "hold --cancel-running --json",
        "--json asks nothing: add --yes, or --dry-run.",
    ),
)


def test_each_command_line_prints_the_error_that_the_page_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, shown = (block.text for block in blocks(SECTION))
    printed = [
        run(monkeypatch, FakeClient(), *shlex.split(line)[1:], prog_name="evershell")
        for line in whole.splitlines()
    ]
    assert "".join(f"{each.output}exit code {each.exit_code}\n" for each in printed) == shown


@pytest.mark.parametrize(("line", "error"), ERRORS)
def test_an_invalid_command_line_prints_its_error(
    monkeypatch: pytest.MonkeyPatch, line: str, error: str
) -> None:
    # Any other call would fail, because the fake has no answer to it.
    fake = FakeClient(list_workspaces=[iter([Workspace("ws_1", name="demo")])])
    result = run(monkeypatch, fake, *shlex.split(line))
    assert result.exit_code == 2
    expected = ".*".join(map(re.escape, f"Error: {error}".split("…")))
    assert re.fullmatch(expected, result.output.splitlines()[-1])

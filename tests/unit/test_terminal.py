"""Full or broken standard streams, small terminals, and text that other users have written.

Such text is printed with its control characters escaped.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from evershell.cli import show
from evershell.cli.main import main
from evershell.cli.terminal import printable
from tests.support.stack import ROOT
from tests.unit.cli.fake_client import ENVIRONMENT

PROGRAM = """
from evershell.cli import service
from evershell.cli.main import main
from evershell.client import CancelOutcome, SubmittedTask, TaskStatus, Workspace
from tests.unit.cli.fake_client import FakeClient, cancelled
import os, sys

id_ = "ws_01M8BEPG8M2KS3XJRB1R09Y7HY"
service.Client = FakeClient(
    cancel=[cancelled(CancelOutcome.ALREADY_FINISHED, TaskStatus.COMPLETED)],
    submit_task=[SubmittedTask("task_1", "ws_1")],
    list_workspaces=[iter([Workspace(id_, name="shell \N{SPIRAL SHELL}" + 60 * "x")])],
)
commands, sys.argv[1:] = sys.argv[1:], []
for command in commands[:-1]:
    if not (forked := os.fork()):
        main(command.split())
    code = os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])
    print("exit", code, file=sys.stderr)
main(commands[-1].split())
"""


def run(*commands: str, **options: Any) -> tuple[int, str]:
    """Runs commands in turn, each in a fork of the same process.

    Returns the exit code of the last command, and the standard error of all commands, in which
    each other command's exit code is a line.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *commands],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        **options,
    )
    return done.returncode, done.stderr


def test_a_full_disk_is_said_in_a_line() -> None:
    message = "Error: Standard output cannot be written: No space left on device.\n"
    with Path("/dev/full").open("w") as full:
        code, errors = run("workspaces", "cancel ws_1", "cancel ws_1 --json", stdout=full)
    # The exit code of a cancellation still tells the outcome.
    assert (code, errors) == (3, f"{message}exit 1\n{message}exit 3\n{message}")


def test_a_task_whose_id_cannot_be_written_is_named_in_the_message() -> None:
    with Path("/dev/full").open("w") as full:
        code, errors = run("submit ws_1 true", stdout=full)
    assert (code, "--task task_1" in errors) == (1, True)


def test_a_reader_that_has_gone_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        # The exit code of a cancellation still tells the outcome.
        assert run("cancel ws_1", "workspaces", stdout=writer) == (0, "exit 3\n")
    finally:
        os.close(writer)


def test_a_character_that_the_encoding_lacks_is_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    with (tmp_path / "output").open("w") as output:
        assert run("workspaces", stdout=output) == (0, "1 workspace.\n")
    assert r"shell \U0001f41a" in (tmp_path / "output").read_text("latin-1")


ID = "ws_01M8BEPG8M2KS3XJRB1R09Y7HY"
NAME = "the nightly import of the customers"


@pytest.mark.parametrize(
    ("columns", "name", "expected"),
    [
        (
            60,
            NAME,
            f"WORKSPACE                      NAME\n"
            f"{ID}  the nightly import of the\n{31 * ' '}customers\n",
        ),
        # The name is longer than an id, so it is broken into lines.
        (
            70,
            60 * "x",
            f"WORKSPACE                      NAME\n{ID}  {39 * 'x'}\n{31 * ' '}{21 * 'x'}\n",
        ),
        # The terminal is too narrow to show whole words next to the id.
        (36, NAME, f"{ID}\n  name          the nightly import\n{16 * ' '}of the customers\n"),
        (20, NAME, f"{ID}\n  name          {NAME}\n"),
    ],
)
def test_a_terminal_of_any_width_breaks_no_word(
    columns: int,
    name: str,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show.table(("WORKSPACE", "NAME"), [(ID, name)], "")
    lines = click.unstyle(capsys.readouterr().out).splitlines()
    assert [line.rstrip() for line in lines] == expected.splitlines()


def test_a_narrow_terminal_gets_a_row_as_a_paragraph(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    row = (ID, "busy", ID, "-", NAME)
    show.table(("WORKSPACE", "STATUS", "TASK", "CREATED", "NAME"), [row], "")
    assert click.unstyle(capsys.readouterr().out) == (
        f"{ID}  busy\n  task          {ID}\n  name          {NAME}\n"
    )


def test_texts_are_wrapped_and_commands_are_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show.said("accepted", f"the cancellation of workspace {ID} is recorded.")
    show.line("reason", f"{NAME} has gone wrong")
    show.command("follow", f"evershell watch {ID} --task {ID}")
    assert click.unstyle(capsys.readouterr().out) == (
        f"accepted: the cancellation of workspace\n{ID} is recorded.\n"
        "  reason        the nightly import of the customers has gone\n"
        "                wrong\n"
        f"  follow        evershell watch {ID} --task {ID}\n"
    )


# Escape sequences with two introducers, control characters, invisible and bidirectional characters,
# line separators, a private-use character, and one half of a surrogate pair.
CONTROL_CHARACTERS = "\x1b[2J\x9b2J\x07\b\x7f\r\u202e\u2066\u200b\u2028\ufeff\ue000\ud800"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("it has gone wrong", "it has gone wrong"),
        ("Ärger 🐚 停止\u3000理由\u00a0!", "Ärger 🐚 停止\u3000理由\u00a0!"),
        ("a\x9b31mb", r"a\x9b31mb"),
        ("user\u202etxt", r"user\u202etxt"),
        ("one\ntwo\tthree\r", r"one\ntwo\tthree\r"),
        ("\ud800", r"\ud800"),
    ],
)
def test_control_characters_are_escaped(text: str, escaped: str) -> None:
    assert printable(text) == escaped


def test_no_control_character_is_printed() -> None:
    # Above U+3000, characters of the same kind come in long runs, so a sample is enough.
    everything = "".join(map(chr, (*range(0x3000), *range(0x3000, 0x110000, 61))))
    printed = printable(everything)
    assert all(character.isprintable() or character.isspace() for character in printed)
    # No line separator or paragraph separator is printed.
    assert len(printed.splitlines()) == 1


def unescaped(output: str) -> set[str]:
    return {
        character
        for character in output
        if character in CONTROL_CHARACTERS and not character.isprintable()
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["cancel", "ws_1", f"--{CONTROL_CHARACTERS}"],
        [CONTROL_CHARACTERS],
        ["cancel", "ws_1", "--wait", CONTROL_CHARACTERS],
    ],
)
def test_an_invalid_command_line_is_quoted_safely(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, unescaped(result.output)) == (2, set())
    assert r"\x1b[2J" in result.output

"""Text from others is printed with its control characters escaped."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from evershell.cli import terminal
from evershell.cli.main import main
from evershell.cli.terminal import printable
from evershell.client import (
    CancelIntent,
    Event,
    EventType,
    IterationCompleted,
    ModelCall,
    ModelCallStatus,
    TaskCancelRequested,
    ToolCall,
    ToolResult,
    ToolStatus,
)
from evershell.commands import demo, demo_stack
from evershell.commands.demo import FollowedTask

# Escape sequences with two introducers, control characters, invisible and bidirectional characters,
# line separators, a private character and half of a surrogate pair.
CONTROL_CHARACTERS = "\x1b[2J\x9b2J\x07\b\x7f\r\u202e\u2066\u200b\u2028\ufeff\ue000\ud800"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("it has gone wrong", "it has gone wrong"),
        ("Ärger 🐚 停止\u3000理由\u00a0!", "Ärger 🐚 停止\u3000理由\u00a0!"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\x9b31mb", r"a\x9b31mb"),
        ("user\u202etxt", r"user\u202etxt"),
        ("\x00\x07\x08\x7f", r"\x00\x07\x08\x7f"),
        ("one\ntwo\tthree\r", r"one\ntwo\tthree\r"),
        ("\U000e0041", r"\U000e0041"),
        ("\ud800", r"\ud800"),
    ],
)
def test_control_characters_are_escaped(text: str, escaped: str) -> None:
    assert printable(text) == escaped


def test_a_block_keeps_its_lines() -> None:
    assert printable("one\n\ttwo\x1b[2J\r\n", block=True) == "one\n\ttwo\\x1b[2J\\r\n"


def test_no_control_character_is_printed() -> None:
    # Above the first planes, kinds of characters come in long runs.
    everything = "".join(map(chr, (*range(0x3000), *range(0x3000, 0x110000, 61))))
    printed = printable(everything)
    assert all(character.isprintable() or character.isspace() for character in printed)
    # No line or paragraph separator is printed.
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


def test_a_failure_with_foreign_text_is_printed_safely(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: Path) -> None:
        demo_stack.fail(f"the answer was:\n{CONTROL_CHARACTERS}")

    monkeypatch.setattr(demo, "find_stack", failing)
    result = CliRunner().invoke(main, ["demo"])
    assert (result.exit_code, unescaped(result.output)) == (1, set())
    assert result.output.startswith("Error: The answer was:\n\\x1b[2J\\x9b2J")


TOOL_CALL = ToolCall("1", "shell", "{}", ToolResult(ToolStatus.EXITED, 0, "", 0), 1)
MODEL_CALL = ModelCall("scripted", "", 0, 0, 0, ModelCallStatus.COMPLETED)


@pytest.mark.parametrize(
    "payload",
    [
        TaskCancelRequested(CancelIntent(CONTROL_CHARACTERS, "", None, CONTROL_CHARACTERS)),
        IterationCompleted(1, MODEL_CALL, TOOL_CALL),
        None,
    ],
)
def test_the_demo_prints_events_safely(
    payload: "TaskCancelRequested | IterationCompleted | None",
    capsys: pytest.CaptureFixture[str],
) -> None:
    event = Event(1, EventType.UNSPECIFIED, "ws_1", task_id="task_1", payload=payload)
    followed = FollowedTask(CONTROL_CHARACTERS, (CONTROL_CHARACTERS,), [(event, 0.0)])
    demo._print_event(followed, event)
    # The demo's own colours are not control characters of the event.
    output = click.unstyle(capsys.readouterr().out.removesuffix("\n"))
    assert unescaped(output) == set()
    assert r"\u202e" in output


def test_say_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say("out\nside")
    terminal.say("in\x1b[2Jside", error=True)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("out\\nside\n", "in\\x1b[2Jside\n")
